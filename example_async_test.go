package robust_test

import (
	"context"
	"fmt"
	"log"
	"slices"
	"sync"

	robust "github.com/aminofox/robust-go-sdk"
)

func ExampleClient_AsyncProducer() {
	ctx := context.Background()
	addr, stop := exampleBroker(robust.WithTopic("orders", 1))
	defer stop()

	client, err := robust.New(robust.WithBrokers(addr))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.AsyncProducer()
	if err != nil {
		log.Fatal(err)
	}

	stored := 0
	for i := range 1000 {
		m := robust.NewMessage("orders", fmt.Appendf(nil, "order %d", i))
		// done is called once for each message, one call after the other.
		err := producer.SendFunc(ctx, m, func(m *robust.Message, r robust.Receipt, err error) {
			if err != nil {
				log.Printf("%s was not stored: %v", m.Value, err)
				return
			}
			stored++
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	// Close sends what is left and waits for the results.
	if err := producer.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(stored, "messages are stored")
	// Output:
	// 1000 messages are stored
}

// Results can also be read from channels.
func ExampleAsyncProducer_Successes() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.AsyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for m := range producer.Successes() {
			fmt.Printf("%s: offset %d, %v\n", m.Value, m.Offset, m.Metadata)
		}
	})
	reading.Go(func() {
		for e := range producer.Errors() {
			fmt.Printf("%s: %v\n", e.Msg.Value, e.Err)
		}
	})
	for i, value := range []string{"a book", "a lamp"} {
		m := robust.NewMessage("orders", []byte(value))
		m.Metadata = i // It comes back with the result.
		if err := producer.Send(ctx, m); err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Close(); err != nil { // It closes the channels.
		log.Fatal(err)
	}
	reading.Wait()
	// Output:
	// a book: offset 0, 0
	// a lamp: offset 1, 1
}

func ExampleAsyncProducer_Flush() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 3)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.AsyncProducer(
		robust.WithReturnSuccesses(false), // Only failures are of interest,
		robust.WithReturnErrors(false),    // and these are counted.
		robust.WithCompression(robust.CompressionZstd),
	)
	if err != nil {
		log.Fatal(err)
	}
	for i := range 100 {
		if err := producer.Send(ctx, robust.NewMessage("orders", fmt.Appendf(nil, "order %d", i))); err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Flush(ctx); err != nil {
		log.Fatal(err)
	}
	stats := client.Metrics().Producer.GetStats()
	fmt.Printf("%d sent, %d failed\n", stats.MessagesSent, stats.MessagesFailed)
	// Output:
	// 100 sent, 0 failed
}

// A batch that ends a customer's order is sent at once.
func ExampleWithFlushPolicy() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.AsyncProducer(
		robust.WithFlushPolicy(func(b robust.PendingBatch) bool { return b.Bytes > 16<<10 || b.Messages%3 == 0 }),
	)
	if err != nil {
		log.Fatal(err)
	}
	var offsets []int64
	for _, line := range []string{"two books", "a lamp", "paid"} {
		err := producer.SendFunc(ctx, robust.NewMessage("orders", []byte(line)), func(_ *robust.Message, r robust.Receipt, err error) {
			if err == nil {
				offsets = append(offsets, r.Offset)
			}
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	if err := producer.Close(); err != nil {
		log.Fatal(err)
	}
	slices.Sort(offsets)
	fmt.Println(offsets)
	// Output:
	// [0 1 2]
}
