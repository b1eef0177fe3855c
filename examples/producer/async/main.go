// Async sends many messages without waiting for each, and says what became of them and
// how little went over the network for that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Producer/async sends messages without waiting for each. The producer collects them into
batches and tells of every message what became of it: to a function that is given with
it, or with -channels on the channels Successes and Errors. The program prints where the
messages are stored, how fast that was, and how many requests it took.
`

type options struct {
	brokers     *exampleutil.Brokers
	topic       string
	count       int
	channels    bool
	batch       int
	linger      time.Duration
	compression robust.Compression
}

func main() {
	o := options{brokers: exampleutil.BrokersFlag()}
	flag.StringVar(&o.topic, "topic", "demo-topic", "`name` of the topic; it is created unless it exists")
	flag.IntVar(&o.count, "n", 100_000, "`number` of messages to send")
	flag.BoolVar(&o.channels, "channels", false, "send by way of Input, and read Successes and Errors")
	flag.IntVar(&o.batch, "batch", 100, "`number` of messages of a partition that wait for no more")
	flag.DurationVar(&o.linger, "linger", 10*time.Millisecond, "`time` for which fewer of them wait while the broker is busy")
	flag.Func("compression", "`name`: none, gzip, snappy, lz4 or zstd (default none)", func(name string) error {
		for c := robust.CompressionNone; c <= robust.CompressionZstd; c++ {
			if c.String() == name {
				o.compression = c
				return nil
			}
		}
		return errors.New("want none, gzip, snappy, lz4 or zstd")
	})
	exampleutil.Main(about, func(ctx context.Context) error { return run(ctx, o) })
}

func run(ctx context.Context, o options) error {
	var sent traffic
	client, stop, err := connect(o.brokers, &sent)
	if err != nil {
		return err
	}
	defer stop()
	if _, _, err := exampleutil.CreateTopic(ctx, client.Admin(), o.topic, 3, nil); err != nil {
		return err
	}
	producer, err := client.AsyncProducer(
		robust.WithBatchSize(o.batch),
		robust.WithBatchTimeout(o.linger),
		robust.WithCompression(o.compression),
	)
	if err != nil {
		return err
	}
	defer producer.Close()

	began := time.Now()
	send := sendFunc
	if o.channels {
		send = sendChannels
	}
	results, err := send(ctx, producer, o)
	if err != nil {
		return err
	}
	results.print(o.topic, time.Since(began), &sent)
	if results.failed > 0 {
		return fmt.Errorf("%d messages were not stored, the first: %w", results.failed, results.first)
	}
	return nil
}

// connect returns a client whose connections are counted, of the given brokers or of one
// in this process.
func connect(brokers *exampleutil.Brokers, sent *traffic) (client *robust.Client, stop func(), err error) {
	if !brokers.Embedded() {
		client, err = robust.New(brokers.Option(), robust.WithDialer(sent.through(new(net.Dialer).DialContext)))
		return client, func() { client.Close() }, err
	}
	broker, err := robust.NewBroker()
	if err != nil {
		return nil, nil, err
	}
	client, err = robust.New(robust.WithDialer(sent.through(broker.Dial)))
	if err != nil {
		return nil, nil, errors.Join(err, broker.Close())
	}
	return client, func() {
		client.Close()
		broker.Close()
	}, nil
}

// message is the i-th of those that are sent. Messages of one key go to one partition
// and stay in order.
func message(topic string, i int) *robust.Message {
	key := fmt.Appendf(nil, "user-%d", i%64)
	return robust.NewMessageWithKey(topic, key, fmt.Appendf(nil, `{"order":%d,"customer":"%s","items":["two books","a lamp"],"currency":"EUR"}`, i, key))
}

// sendFunc sends with a function that is told of each message's result. An interrupt
// ends it, and what was sent by then is waited for.
func sendFunc(ctx context.Context, producer *robust.AsyncProducer, o options) (*results, error) {
	var all results
	for i := range o.count {
		// The calls come one after the other, so the function needs no lock.
		err := producer.SendFunc(ctx, message(o.topic, i), func(_ *robust.Message, r robust.Receipt, err error) {
			all.add(r, err)
		})
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("message %d of %d: %w", i+1, o.count, err)
		}
	}
	return &all, producer.Close() // It has called the function for the last time.
}

// sendChannels does the same by way of channels. Successes and Errors have to be read
// while messages are sent, until Close closes them.
func sendChannels(ctx context.Context, producer *robust.AsyncProducer, o options) (*results, error) {
	var all results
	read := make(chan struct{})
	go func() {
		defer close(read)
		successes, failures := producer.Successes(), producer.Errors()
		for successes != nil || failures != nil {
			select {
			case m, ok := <-successes:
				if !ok {
					successes = nil
					continue
				}
				all.add(m.Receipt, nil)
			case e, ok := <-failures:
				if !ok {
					failures = nil
					continue
				}
				all.add(robust.Receipt{}, e.Err)
			}
		}
	}()
	for i := 0; i < o.count && ctx.Err() == nil; i++ {
		select {
		case producer.Input() <- message(o.topic, i):
		case <-ctx.Done():
		}
	}
	err := producer.Close()
	<-read
	return &all, err
}

// results are what became of the messages.
type results struct {
	stored, failed int
	first          error // of those that failed
	partitions     map[int32]*extent
}

// extent is what a partition has got.
type extent struct{ messages, first, last int64 }

func (r *results) add(receipt robust.Receipt, err error) {
	if err != nil {
		if r.failed++; r.first == nil {
			r.first = err
		}
		return
	}
	r.stored++
	if r.partitions == nil {
		r.partitions = make(map[int32]*extent)
	}
	p := r.partitions[receipt.Partition]
	if p == nil {
		p = &extent{first: receipt.Offset, last: receipt.Offset}
		r.partitions[receipt.Partition] = p
	}
	p.messages++
	p.first, p.last = min(p.first, receipt.Offset), max(p.last, receipt.Offset)
}

func (r *results) print(topic string, took time.Duration, sent *traffic) {
	messages := r.stored + r.failed
	fmt.Printf("%d messages sent to topic %s: %d stored, %d failed\n\n", messages, topic, r.stored, r.failed)

	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "partition\tmessages\tfirst offset\tlast offset\t")
	var numbers []int32
	for number := range r.partitions {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		p := r.partitions[number]
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t\n", number, p.messages, p.first, p.last)
	}
	fmt.Fprintf(w, "total\t%d\t\n", r.stored)
	w.Flush()

	requests, writes := sent.requests.Load(), sent.writes.Load()
	fmt.Printf("\nstored in %s, %.0f messages/s\n", took.Round(10*time.Microsecond), float64(r.stored)/took.Seconds())
	fmt.Printf("%d requests in %d writes, %d bytes\n", requests, writes, sent.bytes.Load())
	if requests < int64(messages) {
		fmt.Printf("%.1f %% fewer requests and %.1f %% fewer writes than with one for each message\n",
			saved(requests, messages), saved(writes, messages))
	}
}

// saved is by how many per cent n is less than messages.
func saved(n int64, messages int) float64 { return 100 - 100*float64(n)/float64(messages) }
