package robust

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkConsume counts a message of 100 bytes that is read through TCP, from a broker
// in this process: by All, through the channel and by Each, of one partition and of
// several, stored one by one and a thousand together.
//
//	go test -run '^$' -bench '^BenchmarkConsume$' .
//
// cpu-ns/msg is the processor time of both ends together, which says more than ns/op
// where others share the machine.
func BenchmarkConsume(b *testing.B) {
	for _, batch := range []int{1000, 1} {
		for _, partitions := range []int{1, 8, 1000} {
			if partitions == 1000 && batch == 1 {
				continue
			}
			for _, kind := range []string{"all", "channel", "each"} {
				b.Run(fmt.Sprintf("batch=%d/partitions=%d/%s", batch, partitions, kind), func(b *testing.B) {
					newConsumeBench(b, partitions, batch).run(kind)
				})
			}
		}
	}
}

// consumeBench is a number of messages, read again and again until there were enough.
type consumeBench struct {
	*testing.B

	client     *Client
	partitions int
	each       int64 // messages of a partition
	left       atomic.Int64
	ctx        context.Context //nolint:containedctx // ends the readers
	cancel     context.CancelFunc
}

func newConsumeBench(b *testing.B, partitions, batch int) *consumeBench {
	broker := faultBroker(b, int32(partitions))
	each := max(100_000/partitions/batch, 2) * batch
	pool := make([]byte, 1<<20)
	for i := range pool {
		pool[i] = byte(rand.Uint32())
	}
	topic, err := broker.service.topics.get(faultTopic)
	require.NoError(b, err)
	for _, p := range topic.partitions {
		for stored := 0; stored < each; stored += batch {
			ms := make([]*Message, batch)
			for i := range ms {
				at := rand.IntN(len(pool) - 100)
				ms[i] = &Message{Value: pool[at : at+100], Timestamp: 1}
			}
			p.log.Append(appendBatch(nil, ms...), AcksStored, func(r AppendResult) { require.NoError(b, r.Err) })
		}
	}
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(b, err)
	c := faultClient(b, new(net.Dialer).DialContext, WithBrokers(addr.String()))
	require.NoError(b, c.Ping(b.Context()))
	return &consumeBench{B: b, client: c, partitions: partitions, each: int64(each)}
}

// reader returns what is called with each message of a partition; false ends the reading.
// Each reader takes its share in hundreds, so that they do not share a counter.
func (b *consumeBench) reader(seek func() error) func(*Message) bool {
	have := 0
	return func(m *Message) bool {
		if have == 0 {
			if b.left.Add(-100) <= 0 {
				b.cancel()
				return false
			}
			have = 100
		}
		have--
		if m.Offset == b.each-1 {
			require.NoError(b, seek())
		}
		return true
	}
}

func (b *consumeBench) run(kind string) {
	b.ctx, b.cancel = context.WithCancel(b.Context())
	b.left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime(b)
	if kind == "each" {
		b.runEach()
	} else {
		b.runConsumers(kind)
	}
	b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N), "cpu-ns/msg")
	b.StopTimer()
	b.cancel()
}

func (b *consumeBench) runConsumers(kind string) {
	var readers sync.WaitGroup
	for p := range b.partitions {
		readers.Go(func() {
			pc, err := b.client.PartitionConsumer(faultTopic, int32(p))
			require.NoError(b, err)
			defer pc.Close()
			more := b.reader(func() error { return pc.Seek(context.Background(), 0) })
			if kind == "all" {
				for m, err := range pc.All(b.ctx) {
					if err != nil || !more(m) {
						return
					}
				}
				return
			}
			messages := pc.Messages()
			for {
				select {
				case m := <-messages:
					if !more(m) {
						return
					}
				case <-b.ctx.Done():
					return
				}
			}
		})
	}
	readers.Wait()
}

func (b *consumeBench) runEach() {
	g, err := b.client.ConsumerGroup("bench")
	require.NoError(b, err)
	defer g.Close()
	h := HandlerFunc(func(s *Session, c *Claim) error {
		more := b.reader(func() error { return c.Seek(context.Background(), 0) })
		return Each(func(_ context.Context, m *Message) error {
			more(m)
			return nil
		}).ConsumeClaim(s, c)
	})
	require.NoError(b, g.Consume(b.ctx, []string{faultTopic}, h))
}
