package robust_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
)

// A queue in one process: a broker in memory, a producer and a consumer.
func Example() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 3)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	partition, offset, err := producer.SendMessage(ctx, robust.NewMessageWithKey("orders", []byte("ann"), []byte("two books")))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("stored in partition %d at offset %d\n", partition, offset)

	consumer, err := client.PartitionConsumer("orders", partition)
	if err != nil {
		log.Fatal(err)
	}
	for m, err := range consumer.All(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s ordered %s\n", m.Key, m.Value)
		break
	}
	// Output:
	// stored in partition 2 at offset 0
	// ann ordered two books
}

// exampleBroker starts a broker on a free port, for the examples that need an address.
func exampleBroker(opts ...robust.BrokerOption) (addr string, stop func()) {
	broker, err := robust.NewBroker(opts...)
	if err != nil {
		log.Fatal(err)
	}
	listening, err := broker.Listen("127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return listening.String(), func() { broker.Close() }
}

func ExampleNew() {
	client, err := robust.New(
		robust.WithBrokers("queue-1.example.com:8686", "queue-2.example.com:8686"),
		robust.WithClientID("billing"),
		robust.WithRequestTimeout(10*time.Second),
		robust.WithRetries(5), // for every producer of this client
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(client.Status())

	// What is wrong is said at once, with the option's name.
	_, err = robust.New(robust.WithMaxConnections(0))
	fmt.Println(err)
	// Output:
	// not connected
	// robust: invalid configuration: WithMaxConnections(0): want 1 to 1000
}

func ExampleClient_Ping() {
	client, err := robust.New(
		robust.WithBrokers("127.0.0.1:1"), // nobody listens there
		robust.WithLogger(nil),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := client.Ping(ctx); errors.Is(err, robust.ErrNoBroker) {
		fmt.Println("no broker can be reached")
	}
	// Output: no broker can be reached
}

func ExampleClient_SyncProducer() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	producer, err := client.SyncProducer(
		robust.WithRetries(5),
		robust.WithDeliveryTimeout(20*time.Second),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	fmt.Println(producer.Status())
	// Output: idle
}

func ExampleSyncProducer_SendMessage() {
	ctx := context.Background()
	addr, stop := exampleBroker(robust.WithTopic("orders", 3))
	defer stop()

	client, err := robust.New(robust.WithBrokers(addr))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}

	m := robust.NewMessageWithKey("orders", []byte("ann"), []byte("two books"))
	m.Headers = map[string]string{"currency": "EUR"}
	partition, offset, err := producer.SendMessage(ctx, m)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("partition %d, offset %d\n", partition, offset)
	// Output: partition 2, offset 0
}

func ExampleSyncProducer_SendMessages() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 3)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}

	messages := []*robust.Message{
		robust.NewMessageWithKey("orders", []byte("ann"), []byte("two books")),
		robust.NewMessageWithKey("orders", []byte("eve"), []byte("a lamp")),
		robust.NewMessageWithKey("oders", []byte("ann"), []byte("a pen")), // no such topic
		robust.NewMessageWithKey("orders", []byte("ann"), []byte("a chair")),
	}
	err = producer.SendMessages(ctx, messages)
	var failed robust.ProducerErrors
	if errors.As(err, &failed) {
		for _, f := range failed {
			fmt.Printf("%s: %v\n", f.Msg.Value, errors.Is(f, robust.ErrTopicNotFound))
		}
	}
	for _, m := range messages {
		fmt.Printf("%s: partition %d, offset %d\n", m.Value, m.Partition, m.Offset)
	}
	// Output:
	// a pen: true
	// two books: partition 2, offset 0
	// a lamp: partition 0, offset 0
	// a pen: partition -1, offset -1
	// a chair: partition 2, offset 1
}

// sendOrders sends values to partition 0 of orders, for the examples that read.
func sendOrders(client *robust.Client, values ...string) {
	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	for i, value := range values {
		m := robust.NewMessage("orders", []byte(value))
		m.Partition = 0
		m.Timestamp = time.Date(2030, 1, 1, 12, i, 0, 0, time.UTC).UnixMilli()
		if _, _, err := producer.SendMessage(context.Background(), m); err != nil {
			log.Fatal(err)
		}
	}
}

func ExampleClient_PartitionConsumer() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	consumer, err := client.PartitionConsumer("orders", 0,
		robust.WithStartOffset(1),
		robust.WithFetchMaxWait(time.Second),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	m := <-consumer.Messages()
	fmt.Printf("%d: %s\n", m.Offset, m.Value)
	// Output: 1: a lamp
}

func ExamplePartitionConsumer_All() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")
	process := func(m *robust.Message) {
		fmt.Printf("%d: %s\n", m.Offset, m.Value)
		if m.Offset == 2 {
			cancel()
		}
	}

	consumer, err := client.PartitionConsumer("orders", 0)
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	for m, err := range consumer.All(ctx) {
		if ctx.Err() != nil {
			break // The application ends.
		}
		if err != nil {
			log.Fatal(err)
		}
		process(m)
	}
	// Output:
	// 0: two books
	// 1: a lamp
	// 2: a chair
}

func ExamplePartitionConsumer_Messages() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	consumer, err := client.PartitionConsumer("orders", 0)
	if err != nil {
		log.Fatal(err)
	}
	for m := range consumer.Messages() { // until Close, or an error that ends the consumer
		fmt.Printf("%d: %s\n", m.Offset, m.Value)
		if m.Offset == 2 {
			consumer.Close()
		}
	}
	for err := range consumer.Errors() { // closed by Close as well
		log.Print(err)
	}
	// Output:
	// 0: two books
	// 1: a lamp
	// 2: a chair
}

func ExamplePartitionConsumer_Seek() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair") // at 12:00, 12:01 and 12:02

	consumer, err := client.PartitionConsumer("orders", 0)
	if err != nil {
		log.Fatal(err)
	}
	defer consumer.Close()
	fmt.Printf("%s\n", (<-consumer.Messages()).Value)

	if err := consumer.Seek(ctx, 2); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", (<-consumer.Messages()).Value)

	if err := consumer.SeekTime(ctx, time.Date(2030, 1, 1, 12, 0, 30, 0, time.UTC)); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", (<-consumer.Messages()).Value)
	// Output:
	// two books
	// a chair
	// a lamp
}

func ExampleClient_Admin() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	admin := client.Admin()
	err = admin.CreateTopic(ctx, "orders", 3, map[string]string{"retention.hours": "168"})
	if err != nil && !errors.Is(err, robust.ErrTopicExists) {
		log.Fatal(err)
	}
	if err := admin.CreatePartitions(ctx, "orders", 6); err != nil {
		log.Fatal(err)
	}
	if err := admin.AlterTopicConfig(ctx, "orders", map[string]string{"retention.hours": "24"}); err != nil {
		log.Fatal(err)
	}

	topics, err := admin.ListTopics(ctx)
	if err != nil {
		log.Fatal(err)
	}
	metadata, err := admin.GetMetadata(ctx, topics)
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range metadata {
		fmt.Println(t.Name, len(t.Partitions), t.Config)
	}
	// Output: orders 6 map[retention.hours:24]
}

func ExampleAdminClient_DeleteRecords() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair") // at 12:00, 12:01 and 12:02

	admin := client.Admin()
	offsets, err := admin.ListOffsets(ctx, "orders", time.Date(2030, 1, 1, 12, 1, 0, 0, time.UTC))
	if err != nil {
		log.Fatal(err)
	}
	oldest, err := admin.DeleteRecords(ctx, "orders", 0, offsets[0])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the oldest message is now at offset", oldest)
	// Output: the oldest message is now at offset 1
}

func ExampleNewBroker() {
	broker, err := robust.NewBroker(
		robust.WithTopic("orders", 3),
		robust.WithRetention(24*time.Hour, 0),
	)
	if err != nil {
		log.Fatal(err)
	}
	addr, err := broker.Listen("127.0.0.1:0") // port 0 takes a free one
	if err != nil {
		log.Fatal(err)
	}

	client, err := robust.New(robust.WithBrokers(addr.String()))
	if err != nil {
		log.Fatal(err)
	}
	topics, err := client.Admin().ListTopics(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(topics)
	client.Close()

	// Shutdown answers what is under way, Close does not.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := broker.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: [orders]
}

func ExampleBroker_Dial() {
	broker, err := robust.NewBroker()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()

	// In memory, without a port; Broker.Client does the same in one call.
	client, err := robust.New(robust.WithDialer(broker.Dial))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(client.Ping(context.Background()))
	// Output: <nil>
}

func ExampleWithEmbeddedBroker() {
	client, err := robust.New(robust.WithEmbeddedBroker(
		robust.WithTopic("orders", 3),
		robust.WithAutoCreateTopics(1),
	))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close() // the broker too

	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	_, _, err = producer.SendMessage(context.Background(), robust.NewMessage("made-by-this-message", nil))
	fmt.Println(err)
	// Output: <nil>
}

func ExampleClient_Metrics() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	sent := client.Metrics().Producer.GetStats()
	fmt.Printf("%d messages, %d bytes, %d failed\n", sent.MessagesSent, sent.BytesSent, sent.MessagesFailed)
	// Output: 3 messages, 22 bytes, 0 failed
}

func ExampleHistogram() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	before := client.Metrics().GetStats()
	sendOrders(client, "two books", "a lamp", "a chair")
	lately := client.Metrics().GetStats().Since(before).Producer
	fmt.Println(lately.Latency.Count, lately.Latency.Quantile(0.99) > 0, lately.BatchMessages.Sum)
	// Output: 3 true 3
}

func ExampleBroker_Metrics() {
	broker, err := robust.NewBroker(robust.WithTopic("orders", 1))
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	client, err := broker.Client()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	stats := broker.Metrics()
	produced := stats.Requests["ProduceBatch"].Latency
	fmt.Println(stats.MessagesStored, stats.ByTopic["orders"].Messages, produced.Quantile(0.99) <= produced.Max)
	// Output: 3 3 true
}

func ExampleWithHooks() {
	var mu sync.Mutex
	stored := 0
	hooks := robust.WithHooks(robust.Hooks{
		ProduceDone: func(e robust.ProduceEvent) { // called by several goroutines
			mu.Lock()
			defer mu.Unlock()
			if e.Err == nil {
				stored += e.Messages
			}
		},
	})
	client, err := robust.New(hooks, robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	sendOrders(client, "two books", "a lamp", "a chair")

	mu.Lock()
	defer mu.Unlock()
	fmt.Println(stored)
	// Output: 3
}

func ExampleNewProducerMetrics() {
	metrics := robust.NewProducerMetrics() // counters of the application's own
	metrics.RecordSent(120, 3*time.Millisecond)
	metrics.RecordSent(80, time.Millisecond)
	metrics.RecordFailed()

	stats := metrics.GetStats()
	fmt.Println(stats.MessagesSent, stats.MessagesFailed, stats.BytesSent, stats.AverageLatency)
	// Output: 2 1 200 2ms
}

func ExampleBrokerError() {
	ctx := context.Background()
	client, err := robust.New(robust.WithEmbeddedBroker())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	err = client.Admin().DeleteTopic(ctx, "orders")
	if errors.Is(err, robust.ErrTopicNotFound) {
		fmt.Println("there is no such topic")
	}
	var refusal *robust.BrokerError
	if errors.As(err, &refusal) {
		fmt.Printf("%s was refused: %s\n", refusal.Request, refusal.Message)
	}
	// Output:
	// there is no such topic
	// DeleteTopic was refused: topic not found: orders
}

func ExampleStatus() {
	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	fmt.Println(client.Status())
	sendOrders(client, "two books")
	fmt.Println(client.Status())

	consumer, err := client.PartitionConsumer("orders", 0)
	if err != nil {
		log.Fatal(err)
	}
	<-consumer.Messages()
	consumer.Close()
	fmt.Println(consumer.Status())
	// Output:
	// not connected
	// connected to 1 broker
	// orders/0: ended: closed
}

func ExamplePartitionForKey() {
	for _, key := range []string{"ann", "eve", "customer-4711"} {
		fmt.Println(key, robust.PartitionForKey([]byte(key), 3))
	}
	// Output:
	// ann 2
	// eve 0
	// customer-4711 1
}
