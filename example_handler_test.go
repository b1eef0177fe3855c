package robust_test

import (
	"context"
	"fmt"
	"log"

	robust "github.com/aminofox/robust-go-sdk"
)

// ledger is a Handler that commits by itself, after each order.
type ledger struct {
	full func() // called when the last order is in it
}

func (l *ledger) Setup(s *robust.Session) error {
	fmt.Println("reads", s.Claims())
	return nil
}

func (l *ledger) Cleanup(s *robust.Session) error {
	fmt.Println("closed")
	return s.Commit()
}

func (l *ledger) ConsumeClaim(s *robust.Session, c *robust.Claim) error {
	for m := range c.Messages() { // until the partition goes to another member
		fmt.Printf("%d: %s\n", m.Offset, m.Value)
		s.MarkMessage(m, "")
		if err := s.Commit(); err != nil {
			return err
		}
		if c.Lag() == 0 {
			l.full()
		}
	}
	return nil
}

func ExampleHandler() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	for _, order := range []string{"two books", "a lamp", "a chair"} {
		if _, _, err := producer.SendMessage(ctx, robust.NewMessage("orders", []byte(order))); err != nil {
			log.Fatal(err)
		}
	}

	group, err := client.ConsumerGroup("ledger", robust.WithAutoCommit(0))
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	if err := group.Consume(ctx, []string{"orders"}, &ledger{full: cancel}); err != nil {
		log.Fatal(err)
	}
	// Output:
	// reads map[orders:[0]]
	// 0: two books
	// 1: a lamp
	// 2: a chair
	// closed
}
