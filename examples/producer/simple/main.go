// Simple sends messages one by one and says where each was stored.
package main

import (
	"context"
	"flag"
	"fmt"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Producer/simple sends messages with keys and headers, one by one, and prints where
each was stored. The topic must exist; examples/admin creates it.
`

func main() {
	brokers := exampleutil.BrokersFlag()
	topic := flag.String("topic", "demo-topic", "`name` of the topic")
	count := flag.Int("n", 10, "`number` of messages to send")
	exampleutil.Main(about, func(ctx context.Context) error {
		return run(ctx, brokers.Option(robust.WithTopic(*topic, 3)), *topic, *count)
	})
}

func run(ctx context.Context, brokers robust.Option, topic string, count int) error {
	client, err := robust.New(brokers)
	if err != nil {
		return err
	}
	defer client.Close()
	// New opens no connection; without Ping a wrong address would only be noticed by
	// the first send, which waits for the broker as long as WithDeliveryTimeout says.
	if err := client.Ping(ctx); err != nil {
		return err
	}
	producer, err := client.SyncProducer(robust.WithRetries(5))
	if err != nil {
		return err
	}
	defer producer.Close()

	for i := range count {
		// Messages of one key go to one partition and stay in order.
		key := fmt.Sprintf("user-%d", i%4)
		m := robust.NewMessageWithKey(topic, []byte(key), fmt.Appendf(nil, "message %d", i))
		m.Headers = map[string]string{"source": "examples/producer/simple", "number": fmt.Sprint(i)}
		partition, offset, err := producer.SendMessage(ctx, m)
		if err != nil {
			return fmt.Errorf("message %d of %d: %w", i+1, count, err)
		}
		fmt.Printf("partition %d  offset %d  key %s  value %s\n", partition, offset, key, m.Value)
	}
	return nil
}
