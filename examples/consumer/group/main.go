// Group reads a topic as a member of a consumer group.
package main

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Consumer/group reads a topic as a member of a consumer group until SIGINT or SIGTERM, or
until it has seen as many messages as -n says, and prints which partitions come and go.
Started more than once with the same brokers, the members share the partitions. With a
broker in this process it sends 20 messages first and reads those.
`

const (
	embeddedPartitions = 4
	embeddedMessages   = 20
)

type options struct {
	group, topic, instance string
	count                  int
}

func main() {
	brokers := exampleutil.BrokersFlag()
	var o options
	flag.StringVar(&o.group, "group", "demo-group", "`name` of the group")
	flag.StringVar(&o.topic, "topic", "demo-topic", "`name` of the topic, or a pattern that begins with ^")
	flag.StringVar(&o.instance, "instance", "", "`name` of this member, under which it finds its partitions again after a restart")
	flag.IntVar(&o.count, "n", 0, "`number` of messages after which to stop; 0 does not stop")
	exampleutil.Main(about, func(ctx context.Context) error {
		client, err := robust.New(
			brokers.Option(robust.WithTopic(o.topic, embeddedPartitions)),
			robust.WithClientID("group-example"),
		)
		if err != nil {
			return err
		}
		defer client.Close()
		// A member waits for a broker that is away; a wrong address is better noticed
		// at once.
		if err := client.Ping(ctx); err != nil {
			return err
		}
		if brokers.Embedded() {
			if o.count == 0 {
				o.count = embeddedMessages
			}
			if err := feed(ctx, client, o.topic); err != nil {
				return err
			}
		}
		return run(ctx, client, o)
	})
}

func run(ctx context.Context, client *robust.Client, o options) error {
	group, err := client.ConsumerGroup(o.group, robust.WithInstanceID(o.instance))
	if err != nil {
		return err
	}
	defer group.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := &member{handled: make(map[robust.TopicPartition]int), count: o.count, enough: cancel}
	m.Handler = robust.Each(m.handle)
	// It returns nil when the context ends, with everything committed that was handled.
	err = group.Consume(ctx, []string{o.topic}, m)
	m.printTotals()
	return err
}

// member is the Handler of Each that also prints what happens.
type member struct {
	robust.Handler

	count  int    // messages after which it is enough; 0: never
	enough func() // ends Consume

	mu      sync.Mutex // guards the following
	total   int
	handled map[robust.TopicPartition]int
}

func (m *member) Setup(s *robust.Session) error {
	fmt.Printf("joined group %s as %s\n", s.Group(), s.MemberID())
	return m.Handler.Setup(s)
}

func (m *member) ConsumeClaim(s *robust.Session, c *robust.Claim) error {
	fmt.Printf("generation %d: %s/%d comes\n", s.GenerationID(), c.Topic(), c.Partition())
	err := m.Handler.ConsumeClaim(s, c)
	fmt.Printf("generation %d: %s/%d goes\n", s.GenerationID(), c.Topic(), c.Partition())
	return err
}

// handle is called for each message, side by side for several partitions.
func (m *member) handle(_ context.Context, msg *robust.Message) error {
	fmt.Printf("%s/%d  offset %d  key %s  value %s\n", msg.Topic, msg.Partition, msg.Offset, msg.Key, msg.Value)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handled[robust.TopicPartition{Topic: msg.Topic, Partition: msg.Partition}]++
	if m.total++; m.total == m.count {
		m.enough()
	}
	return nil
}

func (m *member) printTotals() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var totals []string
	for tp, n := range m.handled {
		totals = append(totals, fmt.Sprintf("  %s/%d: %d", tp.Topic, tp.Partition, n))
	}
	slices.Sort(totals)
	fmt.Println(strings.Join(append([]string{fmt.Sprintf("%d messages handled", m.total)}, totals...), "\n"))
}

// feed sends messages, so that there is something to read.
func feed(ctx context.Context, client *robust.Client, topic string) error {
	producer, err := client.SyncProducer()
	if err != nil {
		return err
	}
	defer producer.Close()
	var messages []*robust.Message
	for i := range embeddedMessages {
		messages = append(messages, robust.NewMessageWithKey(topic, fmt.Appendf(nil, "user-%d", i%8), fmt.Appendf(nil, "message %d", i)))
	}
	return producer.SendMessages(ctx, messages)
}
