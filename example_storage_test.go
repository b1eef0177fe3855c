//go:build !windows

package robust_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	robust "github.com/aminofox/robust-go-sdk"
)

// A broker keeps its messages in a directory; another, opened there later, has them.
func ExampleWithDataDir() {
	ctx := context.Background()
	parent, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(parent) }()
	dir := filepath.Join(parent, "queue")

	broker, err := robust.NewBroker(
		robust.WithDataDir(dir), // made if it is not there
		robust.WithTopic("orders", 1),
	)
	if err != nil {
		log.Fatal(err)
	}
	client, err := broker.Client()
	if err != nil {
		log.Fatal(err)
	}
	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	if _, err := producer.Send(ctx, robust.NewMessage("orders", []byte("two books"))); err != nil {
		log.Fatal(err)
	}
	client.Close()
	if err := broker.Close(); err != nil {
		log.Fatal(err)
	}

	broker, err = robust.NewBroker(robust.WithDataDir(dir))
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	client, err = broker.Client()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	consumer, err := client.PartitionConsumer("orders", 0)
	if err != nil {
		log.Fatal(err)
	}
	for m, err := range consumer.All(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("offset %d: %s\n", m.Offset, m.Value)
		break
	}
	// Output:
	// offset 0: two books
}
