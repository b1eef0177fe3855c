// Simple prints the messages of one partition as they come.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Consumer/simple prints the messages of one partition until SIGINT or SIGTERM, or until
it has seen as many as -n says. With a broker in this process it also sends some: ten
at once, then one a second.
`

type options struct {
	topic     string
	partition int32
	from      int64
	count     int
}

func main() {
	brokers := exampleutil.BrokersFlag()
	o := options{from: robust.OffsetOldest}
	flag.StringVar(&o.topic, "topic", "demo-topic", "`name` of the topic")
	partition := exampleutil.Int32Flag("partition", 0, "`number` of the partition")
	flag.Func("from", "`offset` to begin at: oldest, newest or a number (default oldest)", func(s string) (err error) {
		o.from, err = parseOffset(s)
		return err
	})
	flag.IntVar(&o.count, "n", 0, "`number` of messages after which to stop; 0 does not stop")
	exampleutil.Main(about, func(ctx context.Context) error {
		o.partition = *partition
		client, err := robust.New(brokers.Option(robust.WithTopic(o.topic, o.partition+1)))
		if err != nil {
			return err
		}
		defer client.Close()
		// A consumer waits for a broker that is away; a wrong address is better
		// noticed at once.
		if err := client.Ping(ctx); err != nil {
			return err
		}
		if brokers.Embedded() {
			stop, err := feed(ctx, client, o)
			if err != nil {
				return err
			}
			defer stop()
		}
		return run(ctx, client, o)
	})
}

func parseOffset(s string) (int64, error) {
	switch s {
	case "oldest":
		return robust.OffsetOldest, nil
	case "newest":
		return robust.OffsetNewest, nil
	}
	offset, err := strconv.ParseInt(s, 10, 64)
	if err != nil || offset < 0 {
		return 0, errors.New("want oldest, newest or an offset")
	}
	return offset, nil
}

func run(ctx context.Context, client *robust.Client, o options) error {
	// Failures that pass, such as a broker that restarts, are logged by the client,
	// and the loop goes on when they are over.
	consumer, err := client.PartitionConsumer(o.topic, o.partition, robust.WithStartOffset(o.from))
	if err != nil {
		return err
	}
	defer consumer.Close()

	seen := 0
	for m, err := range consumer.All(ctx) {
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return err
		}
		fmt.Printf("offset %d  key %s  value %s  headers %v\n", m.Offset, orNone(m.Key), m.Value, m.Headers)
		if seen++; seen == o.count {
			break
		}
	}
	fmt.Printf("%d messages read, the next offset is %d, the high-water mark %d\n", seen, consumer.Offset(), consumer.HighWaterMark())
	return nil
}

func orNone(key []byte) string {
	if key == nil {
		return "-"
	}
	return string(key)
}

// feed sends ten messages, and then one a second until the returned function is
// called, which waits for the last.
func feed(ctx context.Context, client *robust.Client, o options) (stop func(), err error) {
	producer, err := client.SyncProducer()
	if err != nil {
		return nil, err
	}
	number := 0
	send := func(ctx context.Context) error {
		m := robust.NewMessageWithKey(o.topic, fmt.Appendf(nil, "user-%d", number%4), fmt.Appendf(nil, "message %d", number))
		m.Partition = o.partition
		m.Headers = map[string]string{"source": "feed"}
		number++
		_, _, err := producer.SendMessage(ctx, m)
		return err
	}
	for range 10 {
		if err := send(ctx); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := send(ctx); err != nil && ctx.Err() == nil {
					slog.Error("feed", "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
		producer.Close()
	}, nil
}
