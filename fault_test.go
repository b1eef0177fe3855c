package robust

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests of faults are in files by what goes wrong. What they share is here, and the
// proxy and the fake broker in faultproxy_test.go.
//
//	fault_cut_test.go      connections that are cut
//	fault_silence_test.go  connections that fall silent, are idle or slow
//	fault_answers_test.go  answers that come late, damaged or false
//	fault_log_test.go      logs that lose their end, topics that are made anew
//	fault_old_test.go      brokers without extensions, and the forms of the protocol
//	fault_cluster_test.go  several brokers, leaders, addresses, restarts
//	fault_refusal_test.go  brokers that say no
//	fault_timeout_test.go  what bounds a call, and Close, whatever goes wrong
//	fault_peer_test.go     a broker and peers that send what no client would
//	async_fault_test.go    brokers that are away, old or die while producers do not wait
//	async_hostile_test.go  answers to record batches that are damaged or false
//	async_topic_test.go    topics and leaders that change under producers
//	async_forget_test.go   topics and brokers that come and go, of which nothing is kept
//	async_unread_test.go   producers that end while their broker does not read
//	async_order_test.go    what could have producers store twice, or in another order

// faultTopic is the topic of these tests.
const faultTopic = "t"

// bubble runs a test under fake time. What would wait for ever ends it with the
// stacks of all goroutines, instead of letting fake time run on.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		stuck := time.AfterFunc(1000*time.Hour, func() { panic("stuck: 1000 hours of fake time have passed") })
		defer stuck.Stop()
		f(t)
	})
}

// faultBroker returns a quiet broker with the topic.
func faultBroker(t testing.TB, partitions int32, opts ...BrokerOption) *Broker {
	t.Helper()
	return quietBroker(t, append([]BrokerOption{WithTopic(faultTopic, partitions)}, opts...)...)
}

// faultClient returns a quiet client that reaches its brokers through dial.
func faultClient(t testing.TB, dial dialFunc, opts ...Option) *Client {
	t.Helper()
	c, err := New(append([]Option{WithBrokers(embeddedAddr), WithDialer(dial), WithLogger(nil)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func faultProducer(t testing.TB, c *Client, opts ...ProducerOption) *SyncProducer {
	t.Helper()
	p, err := c.SyncProducer(opts...)
	require.NoError(t, err)
	return p
}

func faultConsumer(t testing.TB, c *Client, opts ...ConsumerOption) *PartitionConsumer {
	t.Helper()
	pc, err := c.PartitionConsumer(faultTopic, 0, opts...)
	require.NoError(t, err)
	return pc
}

// to0 is a message for partition 0.
func to0(value string) *Message {
	m := NewMessage(faultTopic, []byte(value))
	m.Partition = 0
	return m
}

// stored reads a partition of a broker directly: values by offset.
func stored(t testing.TB, b *Broker, partition int32) []string {
	t.Helper()
	return storedFrom(t, b, partition, 0)
}

func highWaterMark(t testing.TB, b *Broker, name string, partition int32) int64 {
	t.Helper()
	topic, err := b.service.topics.get(name)
	require.NoError(t, err)
	_, end := topic.partitions[partition].log.Bounds()
	return end
}

func storedFrom(t testing.TB, b *Broker, partition int32, from int64) []string {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	log := topic.partitions[partition].log
	var values []string
	for {
		at := from + int64(len(values))
		read, err := log.Read(t.Context(), at, 1<<20)
		require.NoError(t, err)
		if len(read.Batches) == 0 {
			return values
		}
		for rest := read.Batches; len(rest) > 0; {
			cut, r, err := parseBatch(rest)
			require.NoError(t, err)
			rest = r
			records := cut.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				if m.Offset < from {
					continue // The batch begins before.
				}
				require.Equal(t, from+int64(len(values)), m.Offset)
				values = append(values, string(m.Value))
			}
		}
		read.Release()
	}
}

// store puts messages "0", "1", ... into partition 0 of a broker directly.
func store(t testing.TB, b *Broker, n int) {
	t.Helper()
	storeIn(t, b, 0, n)
}

// storeIn is store for any partition.
func storeIn(t testing.TB, b *Broker, partition int32, n int) {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	for i := range n {
		m := Message{Value: fmt.Append(nil, i), Timestamp: 1}
		topic.partitions[partition].log.Append(appendBatch(nil, &m), AcksStored, func(r AppendResult) { require.NoError(t, r.Err) })
	}
}

// requireFault fails unless err is of a connection, or of a wait that ended.
func requireFault(t testing.TB, err error) {
	t.Helper()
	var conn *ConnError
	var wait *waitError
	require.True(t, errors.As(err, &conn) || errors.As(err, &wait), "%T: %v", err, err)
}

// next returns the next message of a consumer, within fake time.
func next(t testing.TB, pc *PartitionConsumer, limit time.Duration) (*Message, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return pc.receive(ctx)
}

// onlyConn returns the one connection of a client.
func onlyConn(t testing.TB, c *Client) *conn {
	t.Helper()
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	var all []*conn
	for _, b := range c.pool.brokers {
		all = append(all, b.conns...)
	}
	require.Len(t, all, 1)
	return all[0]
}

// cluster returns brokers that share one log, at a.invalid:1, b.invalid:1 and so on,
// and what ClusterInfo lists of them.
func cluster(t testing.TB, n, partitions int) []*fakeBroker {
	log := newFakeLog(faultTopic, partitions)
	nodes := make(map[string]string)
	brokers := make([]*fakeBroker, n)
	for i := range brokers {
		b := newFakeBroker(t, log)
		b.id = string(rune('a' + i))
		b.addr = b.id + ".invalid:1"
		b.nodes = nodes
		brokers[i] = b
		nodes[b.id] = b.addr
	}
	return brokers
}

func addrsOf(brokers []*fakeBroker) []string {
	addrs := make([]string, len(brokers))
	for i, b := range brokers {
		addrs[i] = b.addr
	}
	return addrs
}

// requireUnharmed fails unless a client of the broker works.
func requireUnharmed(t testing.TB, b *Broker, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, offset, err := faultProducer(t, c).SendMessage(ctx, to0("unharmed"))
	require.NoError(t, err)
	require.Equal(t, "unharmed", storedFrom(t, b, 0, offset)[0])
}

// heapBytes is what is allocated and in use.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
