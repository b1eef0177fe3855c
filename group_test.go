package robust_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// produce sends n messages to every partition of a topic, whose values are
// topic/partition/number.
func produce(t testing.TB, c *robust.Client, topic string, partitions int32, n int) {
	t.Helper()
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	var ms []*robust.Message
	for p := range partitions {
		for i := range n {
			m := robust.NewMessage(topic, fmt.Appendf(nil, "%s/%d/%d", topic, p, i))
			m.Partition = p
			ms = append(ms, m)
		}
	}
	require.NoError(t, producer.SendMessages(t.Context(), ms))
	require.NoError(t, producer.Close())
}

// tally counts how often each value was handled.
type tally struct {
	mu    sync.Mutex
	count map[string]int
	grown chan struct{}
}

func newTally() *tally { return &tally{count: make(map[string]int), grown: make(chan struct{}, 1)} }

func (y *tally) add(m *robust.Message) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.count[string(m.Value)]++
	select {
	case y.grown <- struct{}{}:
	default:
	}
}

func (y *tally) distinct() int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return len(y.count)
}

// await waits until n different values have been handled.
func (y *tally) await(t testing.TB, n int) {
	t.Helper()
	timeout := time.After(time.Minute)
	for y.distinct() < n {
		select {
		case <-y.grown:
		case <-timeout:
			require.Failf(t, "not handled in time", "%d of %d", y.distinct(), n)
		}
	}
}

// consuming runs Consume in the background; stop ends it and returns its error.
func consuming(t testing.TB, g *robust.ConsumerGroup, topics []string, h robust.Handler) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Consume(ctx, topics, h) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

func newGroup(t testing.TB, c *robust.Client, id string, opts ...robust.GroupOption) *robust.ConsumerGroup {
	t.Helper()
	g, err := c.ConsumerGroup(id, opts...)
	require.NoError(t, err)
	return g
}

func TestGroupReadsEverythingOnce(t *testing.T) {
	for _, p := range []robust.Protocol{robust.ProtocolAuto, robust.ProtocolV1, robust.ProtocolV0} {
		t.Run(p.String(), func(t *testing.T) {
			b := newBroker(t, robust.WithTopic("demo", 6))
			c := newClient(t, b, robust.WithProtocol(p), robust.WithHeartbeatInterval(100*time.Millisecond))
			produce(t, c, "demo", 6, 50)
			handled := newTally()
			h := robust.Each(func(_ context.Context, m *robust.Message) error {
				handled.add(m)
				return nil
			})
			stop := consuming(t, newGroup(t, c, "g"), []string{"demo"}, h)
			handled.await(t, 300)
			require.NoError(t, stop())
			for value, n := range handled.count {
				require.Equal(t, 1, n, value)
			}
			d, err := c.Admin().DescribeGroup(t.Context(), "g")
			if p == robust.ProtocolV0 {
				require.ErrorIs(t, err, robust.ErrUnsupported)
				return
			}
			require.NoError(t, err)
			require.Equal(t, "Empty", d.State)
			require.Zero(t, d.Lag())
			require.Len(t, d.Offsets, 6)

			// The next member has nothing to read.
			again := newTally()
			stop = consuming(t, newGroup(t, c, "g"), []string{"demo"}, robust.Each(func(_ context.Context, m *robust.Message) error {
				again.add(m)
				return nil
			}))
			produce(t, c, "demo", 1, 1)
			again.await(t, 1)
			require.NoError(t, stop())
			require.Equal(t, 1, again.distinct())
		})
	}
}

// A rebalance interrupts only the partitions that move.
func TestGroupRebalance(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 4))
	c := newClient(t, b)
	var mu sync.Mutex
	begun := make(map[string]int)
	owners := make(map[int32]string)
	changed := make(chan struct{}, 100)
	handler := func(name string) robust.Handler {
		return robust.HandlerFunc(func(_ *robust.Session, claim *robust.Claim) error {
			mu.Lock()
			begun[fmt.Sprint(name, claim.Partition())]++
			if owners[claim.Partition()] != "" {
				mu.Unlock()
				return errors.New("two owners")
			}
			owners[claim.Partition()] = name
			mu.Unlock()
			changed <- struct{}{}
			for range claim.Messages() {
			}
			mu.Lock()
			owners[claim.Partition()] = ""
			mu.Unlock()
			return nil
		})
	}
	settled := func(want map[string]int) {
		t.Helper()
		timeout := time.After(30 * time.Second)
		for {
			mu.Lock()
			have := make(map[string]int)
			for _, name := range owners {
				have[name]++
			}
			mu.Unlock()
			if fmt.Sprint(have) == fmt.Sprint(want) {
				return
			}
			select {
			case <-changed:
			case <-timeout:
				require.Failf(t, "not balanced", "%v, want %v", have, want)
			}
		}
	}
	stopA := consuming(t, newGroup(t, c, "g"), []string{"demo"}, handler("a"))
	settled(map[string]int{"a": 4})
	began := time.Now()
	stopB := consuming(t, newGroup(t, c, "g"), []string{"demo"}, handler("b"))
	settled(map[string]int{"a": 2, "b": 2})
	t.Log("joined after", time.Since(began))
	began = time.Now()
	require.NoError(t, stopA())
	settled(map[string]int{"b": 4})
	t.Log("left after", time.Since(began))
	require.NoError(t, stopB())
	for what, n := range begun {
		require.Equal(t, 1, n, what)
	}
}
