package robust_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync/atomic"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
)

func ExampleConsumerGroup_Consume() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")
	process := func(_ context.Context, m *robust.Message) error {
		fmt.Printf("%d: %s\n", m.Offset, m.Value)
		if m.Offset == 2 {
			cancel()
		}
		return nil
	}

	group, err := client.ConsumerGroup("billing")
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	err = group.Consume(ctx, []string{"orders"}, robust.Each(func(ctx context.Context, m *robust.Message) error {
		return process(ctx, m) // nil: the message is done, and will be committed
	}))
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// 0: two books
	// 1: a lamp
	// 2: a chair
}

func ExampleClient_ConsumerGroup() {
	client, err := robust.New(robust.WithEmbeddedBroker())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	group, err := client.ConsumerGroup("billing",
		robust.WithInstanceID("worker-1"), // a restart within the session timeout moves nothing
		robust.WithSessionTimeout(time.Minute),
		robust.WithStartOffset(robust.OffsetNewest), // where nothing is committed
	)
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	fmt.Println(group.Status())
	// Output: group billing: Consume is not running
}

// An error ends Consume, and leaves its message to whoever goes on.
func ExampleEach() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	group, err := client.ConsumerGroup("billing")
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	errNoLamps := errors.New("no lamps left")
	err = group.Consume(ctx, []string{"orders"}, robust.Each(func(_ context.Context, m *robust.Message) error {
		if string(m.Value) == "a lamp" {
			return errNoLamps
		}
		return nil
	}))
	fmt.Println(errors.Is(err, errNoLamps))

	described, err := client.Admin().DescribeGroup(ctx, "billing")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("goes on at offset", described.Offsets[0].Committed)
	// Output:
	// true
	// goes on at offset 1
}

func ExampleConcurrency() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	group, err := client.ConsumerGroup("billing")
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	var handled atomic.Int32
	err = group.Consume(ctx, []string{"orders"}, robust.Each(func(_ context.Context, m *robust.Message) error {
		fmt.Println(string(m.Value))
		if handled.Add(1) == 3 {
			cancel()
		}
		return nil
	}, robust.Concurrency(8))) // messages of a key still one after the other
	if err != nil {
		log.Fatal(err)
	}
	// Unordered output:
	// two books
	// a lamp
	// a chair
}

func ExampleNewAssignor() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 3)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	// Partition 0 is the busy one: it gets a member of its own, if there are two.
	busyFirst := robust.NewAssignor("busy-first", func(group *robust.AssignmentInput) (map[robust.TopicPartition]string, error) {
		readers := make(map[robust.TopicPartition]string)
		last := len(group.Members) - 1
		for _, tp := range group.Partitions {
			readers[tp] = group.Members[min(int(tp.Partition), last)].ID
		}
		return readers, nil
	})
	group, err := client.ConsumerGroup("billing", robust.WithAssignor(busyFirst))
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	err = group.Consume(ctx, []string{"orders"}, robust.HandlerFunc(func(s *robust.Session, c *robust.Claim) error {
		if c.Partition() == 0 {
			fmt.Println(s.Claims())
			cancel()
		}
		<-c.Context().Done()
		return nil
	}))
	if err != nil {
		log.Fatal(err)
	}
	// Output: map[orders:[0 1 2]]
}

// billed has the group billing handle the first messages of partition 0 of orders.
func billed(client *robust.Client, messages int64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	group, err := client.ConsumerGroup("billing")
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	err = group.Consume(ctx, []string{"orders"}, robust.Each(func(_ context.Context, m *robust.Message) error {
		if m.Offset == messages-1 {
			cancel()
		}
		return nil
	}))
	if err != nil {
		log.Fatal(err)
	}
}

func ExampleAdminClient_DescribeGroup() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")
	billed(client, 3)
	sendOrders(client, "a pen")

	group, err := client.Admin().DescribeGroup(ctx, "billing")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s: %s, %d members\n", group.ID, group.State, len(group.Members))
	for _, o := range group.Offsets {
		fmt.Printf("%s/%d: committed %d of %d, lag %d\n", o.Topic, o.Partition, o.Committed, o.HighWaterMark, o.Lag)
	}
	// Output:
	// billing: Empty, 0 members
	// orders/0: committed 3 of 4, lag 1
}

func ExampleAdminClient_ResetOffsets() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair") // at 12:00, 12:01 and 12:02
	billed(client, 3)

	admin := client.Admin()
	offsets, err := admin.ResetOffsets(ctx, "billing", "orders", robust.ToTime(time.Date(2030, 1, 1, 12, 1, 0, 0, time.UTC)))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the group goes on at", offsets)

	offsets, err = admin.ResetOffsets(ctx, "billing", "orders", robust.ToOffset(robust.OffsetOldest), 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the group goes on at", offsets)
	// Output:
	// the group goes on at map[0:1]
	// the group goes on at map[0:0]
}
