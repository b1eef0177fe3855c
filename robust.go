// Package robust is a client for the Robust message queue and streaming
// platform, and an embeddable broker that speaks the same protocol.
//
// # Topics, partitions, offsets
//
// A topic is a named, append-only sequence of messages, divided into
// partitions. Within a partition every message has an offset: 0, 1, 2 and so
// on. Messages with the same key go to the same partition and are read in the
// order in which they were stored. The high-water mark of a partition is the
// offset that its next message will get.
//
// # One client, many handles
//
// [New] returns a [Client]: one pool of connections, one metadata cache and one
// set of metrics. Producers, consumers and the admin handle are derived from it
// and share them:
//
//	client, err := robust.New(robust.WithBrokers("localhost:8686"))
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//
//	producer, err := client.SyncProducer()
//	...
//	partition, offset, err := producer.SendMessage(ctx, robust.NewMessage("orders", value))
//
// New does not touch the network. Connections are opened when they are first
// needed and replaced when they break; [Client.Ping] proves that a broker can be
// reached. [Client.Status] and the Status method of every handle say in one
// sentence what it is waiting for.
//
// # Reading
//
// A [PartitionConsumer] reads one partition, as a channel or as a loop:
//
//	consumer, err := client.PartitionConsumer("orders", 0)
//	...
//	for m, err := range consumer.All(ctx) {
//		if err != nil {
//			return err
//		}
//		process(m)
//	}
//
// # Consumer groups
//
// The members of a [ConsumerGroup] share the partitions of topics. What they have
// handled is committed, so that whoever reads a partition next goes on there:
//
//	group, err := client.ConsumerGroup("billing")
//	...
//	err = group.Consume(ctx, []string{"orders"}, robust.Each(process))
//
// [Each] calls a function for every message, which is done when the function returns
// nil. A [Handler] works on whole partitions: it is given a [Claim] for each of them,
// and marks what is done in its [Session]. When members come and go, only the
// partitions that move are interrupted. Delivery is at least once: nothing is
// committed that was only delivered. [AdminClient.DescribeGroup] shows members,
// offsets and lag.
//
// # A broker in the same process
//
// [NewBroker] makes a broker, [Broker.Listen] serves it on a port, [Broker.Dial]
// reaches it in memory. [WithEmbeddedBroker] does all of it in one line for
// programs and tests that want a queue and no server:
//
//	client, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("orders", 3)))
//
// # The wire
//
// Client and broker exchange JSON objects over TCP, one a line, in the form that
// docs/protocol.md describes; a broker can be asked by hand with nc. What an
// address speaks, and which optional parts, is found out when a connection is
// opened.
package robust

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultAddr is the broker address that a [Client] uses when [WithBrokers] is
// not given. The port is the one that the protocol documents.
const DefaultAddr = "localhost:8686"

// PartitionAny as a [Message]'s Partition leaves the choice of the partition to
// the producer's [Partitioner].
const PartitionAny int32 = -1

// Offsets that name a position rather than a number; for [WithStartOffset] and
// [PartitionConsumer.Seek].
const (
	// OffsetNewest is the high-water mark: only messages stored from now on.
	OffsetNewest int64 = -1
	// OffsetOldest is the first message that is still retained.
	OffsetOldest int64 = -2
)

// offsetNone is the Offset of a message that is not stored.
const offsetNone int64 = -1

// Message is what producers send and consumers receive. Its JSON form is the one
// on the wire.
//
// A producer reads a message until its send has returned; it must not be changed
// meanwhile. A message from a consumer belongs to the application; the messages
// of one fetch may share memory, so an application that keeps a few of many for
// long should keep a [Message.Clone].
type Message struct {
	// ID is the application's own identifier. Empty unless the application set
	// it; a consumer then receives what the broker makes up for it,
	// topic-partition-offset. At most 249 bytes.
	ID string `json:"id"`
	// Topic is required.
	Topic string `json:"topic"`
	// Partition is where the message goes or came from. The constructors set
	// [PartitionAny]; in a literal &Message{} it is 0, which is a real partition.
	Partition int32 `json:"partition"`
	// Key selects the partition; nil means no key.
	Key []byte `json:"key"`
	// Value is the content. Nil and empty are different and both are kept.
	Value []byte `json:"value"`
	// Headers travel with the message; they are not ordered. In JSON they are
	// UTF-8: other bytes, there and in ID, arrive as U+FFFD.
	Headers map[string]string `json:"headers,omitempty"`
	// Timestamp is in Unix milliseconds. 0 is replaced by the time of sending.
	Timestamp int64 `json:"timestamp"`
	// Offset is -1 until the message is stored.
	Offset int64 `json:"offset"`
	// Metadata is never sent; it comes back with the result of a send.
	Metadata any `json:"-"`
}

// NewMessage returns a message for topic whose partition the producer chooses.
func NewMessage(topic string, value []byte) *Message {
	return NewMessageWithKey(topic, nil, value)
}

// NewMessageWithKey returns a message for topic whose partition the producer
// chooses by key.
func NewMessageWithKey(topic string, key, value []byte) *Message {
	return &Message{Topic: topic, Partition: PartitionAny, Key: key, Value: value, Offset: offsetNone}
}

// Clone returns a deep copy, except for Metadata, which is shared.
func (m *Message) Clone() *Message {
	c := *m
	c.Key = slices.Clone(m.Key)
	c.Value = slices.Clone(m.Value)
	c.Headers = maps.Clone(m.Headers)
	return &c
}

// Size returns the bytes that the message counts for in batches, limits and
// metrics: its key, value and headers.
func (m *Message) Size() uint64 {
	n := len(m.Key) + len(m.Value)
	if len(m.Headers) > 0 { // Beginning to range over a map takes its time.
		for k, v := range m.Headers {
			n += len(k) + len(v)
		}
	}
	return uint64(n)
}

// Time returns the Timestamp as a time.
func (m *Message) Time() time.Time { return time.UnixMilli(m.Timestamp) }

// TopicPartition names one partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// MarshalText returns topic and partition with a slash between, as they stand in the JSON
// of metrics.
func (tp TopicPartition) MarshalText() ([]byte, error) {
	return strconv.AppendInt(append([]byte(tp.Topic), '/'), int64(tp.Partition), 10), nil
}

// UnmarshalText reads what MarshalText returns.
func (tp *TopicPartition) UnmarshalText(text []byte) error {
	i := strings.LastIndexByte(string(text), '/')
	n, err := strconv.ParseInt(string(text[i+1:]), 10, 32)
	if i < 0 || err != nil {
		return fmt.Errorf("robust: %q is no topic and partition, as in orders/3", text)
	}
	*tp = TopicPartition{string(text[:i]), int32(n)}
	return nil
}

func compareTopicPartition(a, b TopicPartition) int {
	return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
}

// PendingBatch is a batch that waits to be sent, as [WithFlushPolicy] sees it.
type PendingBatch struct {
	Topic     string
	Partition int32
	Messages  int
	Bytes     int       // encoded
	Since     time.Time // when its first message was taken
}

// Acks is how well a message is stored when a broker acknowledges it.
type Acks int

const (
	// AcksStored says that the broker has stored it as its [WithSync] says. That is
	// the default.
	AcksStored Acks = iota
	// AcksSynced says that it has reached stable storage: it outlives a power failure.
	AcksSynced
)

// String returns "stored" or "synced".
func (a Acks) String() string {
	switch a {
	case AcksStored:
		return "stored"
	case AcksSynced:
		return "synced"
	default:
		return "Acks(" + strconv.Itoa(int(a)) + ")"
	}
}

// Compression is how the records of a batch are compressed, on the wire and in the log.
type Compression uint8

const (
	// CompressionNone leaves records as they are. That is the default.
	CompressionNone Compression = iota
	// CompressionGzip is for readers that have nothing else: it is the slowest.
	CompressionGzip
	// CompressionSnappy is fast, and makes text half as long.
	CompressionSnappy
	// CompressionLZ4 is as fast as Snappy to write and faster to read.
	CompressionLZ4
	// CompressionZstd makes batches shortest, at a moderate price.
	CompressionZstd
)

// String returns "none", "gzip", "snappy", "lz4" or "zstd".
func (c Compression) String() string {
	switch c {
	case CompressionNone:
		return "none"
	case CompressionGzip:
		return "gzip"
	case CompressionSnappy:
		return "snappy"
	case CompressionLZ4:
		return "lz4"
	case CompressionZstd:
		return "zstd"
	default:
		return "Compression(" + strconv.Itoa(int(c)) + ")"
	}
}

// Receipt tells where a message was stored.
type Receipt struct {
	Partition int32
	Offset    int64
	Timestamp int64 // of the message, Unix milliseconds
	// Acks is how well it was stored by then: never less than [WithAcks] asks for,
	// and more where the broker does so anyway.
	Acks Acks
}

// Status says in one sentence what a handle is doing or waiting for, and since
// when. The words are for people: they also stand in the errors of waits that
// ended without success, and may change.
type Status struct {
	Text  string
	Since time.Time // the zero Time when nothing is waited for
}

// String returns the sentence, with the time waited where something is waited for.
func (s Status) String() string {
	if s.Since.IsZero() {
		return s.Text
	}
	return s.Text + " (for " + roundDuration(time.Since(s.Since)).String() + ")"
}

// roundDuration keeps two or three digits, which is what a reader wants of a wait.
func roundDuration(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second)
	case d >= 100*time.Millisecond:
		return d.Round(100 * time.Millisecond)
	default:
		return d.Round(time.Millisecond)
	}
}
