package robust

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkMetrics tells what it costs to measure: the same messages are sent through three
// brokers and clients in turn, round by round, one pair that measures nothing, one that
// measures, as all do, and one that has hooks too. "ratio" is how much longer a message takes
// than with the first, in the median of the rounds.
func BenchmarkMetrics(b *testing.B) {
	unmeasured := sharedOption(func(c *sharedConfig) { c.unmeasured = true })
	var told atomic.Int64
	hooks := WithHooks(Hooks{
		RequestDone: func(RequestEvent) { told.Add(1) },
		ProduceDone: func(ProduceEvent) { told.Add(1) },
		Consumed:    func(ConsumeEvent) { told.Add(1) },
	})
	kinds := []struct {
		name string
		opts []SharedOption
	}{{"off", []SharedOption{unmeasured}}, {"metrics", nil}, {"hooks", []SharedOption{hooks}}}

	b.Run("async", func(b *testing.B) {
		const round = 20_000
		compare(b, func(i int) func() time.Duration {
			p := asyncOf(b, kinds[i].opts)
			return func() time.Duration { return sendAsync(b, p, round) / round }
		}, "metrics", "hooks")
	})
	b.Run("sync", func(b *testing.B) {
		const round = 500
		compare(b, func(i int) func() time.Duration {
			p := syncOf(b, kinds[i].opts)
			m := NewMessage("bench", make([]byte, 100))
			return func() time.Duration {
				began := time.Now()
				for range round {
					if _, err := p.Send(b.Context(), m); err != nil {
						b.Fatal(err)
					}
				}
				return time.Since(began) / round
			}
		}, "metrics", "hooks")
	})
}

// compare measures rounds of several ways in turn, of which open returns the i-th, and reports
// those of the first, and how the others compare with it.
func compare(b *testing.B, open func(i int) func() time.Duration, others ...string) {
	b.Helper()
	var base []float64
	ratios := make([][]float64, len(others))
	var ways []func() time.Duration
	for i := range len(others) + 1 {
		ways = append(ways, open(i))
		ways[i]() // Connections, buffers, the processor's caches.
	}
	first := 0
	for b.Loop() {
		took := make([]time.Duration, len(ways))
		for k := range ways {
			i := (first + k) % len(ways)
			took[i] = ways[i]()
		}
		first++ // Whoever goes first is at no advantage.
		base = append(base, float64(took[0]))
		for i := range others {
			ratios[i] = append(ratios[i], float64(took[i+1])/float64(took[0]))
		}
	}
	b.ReportMetric(median(base), "ns/message")
	for i, name := range others {
		b.ReportMetric(median(ratios[i]), name+"-ratio")
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// pairOf returns a client of a broker, both of these options.
func pairOf(b *testing.B, opts []SharedOption) *Client {
	b.Helper()
	brokerOpts := []BrokerOption{WithTopic("bench", 1), WithRetention(0, 64<<20)}
	var clientOpts []Option
	for _, o := range opts {
		brokerOpts, clientOpts = append(brokerOpts, o), append(clientOpts, o)
	}
	broker, err := NewBroker(brokerOpts...)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, broker.Close()) })
	c, err := broker.Client(clientOpts...)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	return c
}

func syncOf(b *testing.B, opts []SharedOption) *SyncProducer {
	b.Helper()
	p, err := pairOf(b, opts).SyncProducer()
	require.NoError(b, err)
	return p
}

func asyncOf(b *testing.B, opts []SharedOption) *AsyncProducer {
	b.Helper()
	p, err := pairOf(b, opts).AsyncProducer()
	require.NoError(b, err)
	return p
}

// sendAsync sends n messages and waits for their results.
func sendAsync(b *testing.B, p *AsyncProducer, n int) time.Duration {
	b.Helper()
	m := NewMessage("bench", make([]byte, 100))
	var failed atomic.Int64
	done := func(_ *Message, _ Receipt, err error) {
		if err != nil {
			failed.Add(1)
		}
	}
	began := time.Now()
	for range n {
		if err := p.SendFunc(b.Context(), m, done); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, p.Flush(b.Context()))
	require.Zero(b, failed.Load())
	return time.Since(began)
}
