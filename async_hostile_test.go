package robust

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// outcome is what a producer has told of a message.
type outcome struct {
	receipt Receipt
	err     error
}

// outcomes are what a producer tells by calls of done, by the values of the messages.
type outcomes struct {
	mu  sync.Mutex // guards the following
	all map[string][]outcome
	n   int
}

func (o *outcomes) done(m *Message, r Receipt, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all == nil {
		o.all = make(map[string][]outcome)
	}
	o.all[string(m.Value)] = append(o.all[string(m.Value)], outcome{r, err})
	o.n++
}

func (o *outcomes) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.n
}

// of returns the one outcome of a message.
func (o *outcomes) of(t testing.TB, value string) outcome {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(t, o.all[value], 1, "results of message %q", value)
	return o.all[value][0]
}

// check fails unless each of n messages, whose values are their numbers, has one outcome, and
// each partition of the broker holds those that were acknowledged where their receipts say,
// and none twice. It returns how many were acknowledged.
func (o *outcomes) check(t testing.TB, b *Broker, partitions int32, n int) (acknowledged int) {
	t.Helper()
	logs := make([][]string, partitions)
	for p := range partitions {
		logs[p] = stored(t, b, p)
		requireOnce(t, logs[p])
	}
	for i := range n {
		x := o.of(t, fmt.Sprint(i))
		if x.err != nil {
			continue
		}
		acknowledged++
		require.Less(t, x.receipt.Offset, int64(len(logs[x.receipt.Partition])))
		require.Equal(t, fmt.Sprint(i), logs[x.receipt.Partition][x.receipt.Offset])
	}
	require.Equal(t, n, o.count())
	return acknowledged
}

// requireOnce fails if a value is there twice.
func requireOnce(t testing.TB, values []string, hint ...any) {
	t.Helper()
	seen := make(map[string]bool)
	for _, v := range values {
		require.False(t, seen[v], "%q is stored twice %v", v, hint)
		seen[v] = true
	}
}

func faultAsync(t testing.TB, c *Client, opts ...AsyncOption) *AsyncProducer {
	t.Helper()
	p, err := c.AsyncProducer(opts...)
	require.NoError(t, err)
	return p
}

// gatedDial lets nobody connect before the gate is closed, so that all that is sent before
// goes into the same batch.
func gatedDial(dial dialFunc) (gated dialFunc, open func()) {
	gate := make(chan struct{})
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		select {
		case <-gate:
			return dial(ctx, network, addr)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, func() { close(gate) }
}

// asyncVictim works with a broker whose answers are judged as long as they are to be false,
// and then with one that is honest.
func asyncVictim(t *testing.T, name string, judge func(proxiedFrame) verdict) {
	const limit = 20 * time.Second // A connection without answers is given up after 15.
	storage := syncingStorage{NewMemoryStorage(), func(a Acks) Acks { return a }}
	b := faultBroker(t, 1, WithStorage(storage))
	defer b.Close()
	var count frameCounter
	var honest atomic.Bool
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return count.tap(), answers(func(f proxiedFrame) verdict {
			if honest.Load() {
				return f.pass()
			}
			return judge(f)
		})
	})
	defer proxy.stop()
	dial, open := gatedDial(proxy.dial)
	c := faultClient(t, dial, WithRequestTimeout(time.Second), WithDeliveryTimeout(limit), WithAcks(AcksSynced))
	defer c.Close()
	p := faultAsync(t, c)
	var told outcomes
	send := func(from, to int) {
		for i := from; i < to; i++ {
			require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done), name)
		}
	}
	flush := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*limit)
		defer cancel()
		require.NoError(t, p.Flush(ctx), name)
	}
	start := time.Now()
	send(0, 4)
	open()
	flush()
	took := time.Since(start)
	require.LessOrEqual(t, took, limit+time.Second, name)
	require.Less(t, count.total(), 100+int(20*took.Seconds()), name)
	require.Equal(t, 4, told.count(), name)
	before := int64(-1)
	for i := range 4 {
		x := told.of(t, fmt.Sprint(i))
		if x.err != nil {
			require.Zero(t, x.receipt, name)
			continue
		}
		require.Zero(t, x.receipt.Partition, name)
		require.Equal(t, AcksSynced, x.receipt.Acks, name)
		require.Greater(t, x.receipt.Offset, before, name)
		before = x.receipt.Offset
	}
	honest.Store(true)
	send(4, 8)
	flush()
	values := stored(t, b, 0)
	requireOnce(t, values, name)
	for i := 4; i < 8; i++ {
		x := told.of(t, fmt.Sprint(i))
		require.NoError(t, x.err, name)
		require.Less(t, x.receipt.Offset, int64(len(values)), name)
		require.Equal(t, fmt.Sprint(i), values[x.receipt.Offset], name)
	}
	require.NoError(t, p.Close(), name)
}

// TestHostileProduceBatch has the broker store what it is given and lie about it: every field
// of its answers in turn holds a wrong value, or none. Every message has one result, in time,
// no wrong one that can be recognised is taken for right, and no message is stored twice for
// an answer that makes no sense.
func TestHostileProduceBatch(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		var honest atomic.Value
		asyncVictim(t, "honest", func(f proxiedFrame) verdict {
			if f.kind == requestProduceBatch {
				honest.Store(decodeTree(t, f.text))
			}
			return f.pass()
		})
		answer := honest.Load().(map[string]any)
		n := 0
		for how, mutant := range mutants(answer) {
			if n++; n%4 != 0 && !strings.Contains(how, "base_offset") && !strings.HasSuffix(how, "left out") {
				continue // A sample will do.
			}
			asyncVictim(t, how, func(f proxiedFrame) verdict {
				if f.kind != requestProduceBatch {
					return f.pass()
				}
				lie := maps.Clone(mutant.(map[string]any))
				if lie["request_id"] == answer["request_id"] {
					lie["request_id"] = decodeTree(t, f.text)["request_id"]
				}
				return f.by(string(encodeTree(t, lie)))
			})
		}
		require.Greater(t, n, 80)
	})
}

// TestDamagedProduceBatch has answers to ProduceBatch and to InitProducer come damaged,
// once or every time.
func TestDamagedProduceBatch(t *testing.T) {
	t.Parallel()
	all := damages(t)
	for i, name := range slices.Sorted(maps.Keys(all)) {
		bubble(t, func(t *testing.T) {
			for _, kind := range []requestType{requestProduceBatch, requestInitProducer} {
				for _, most := range []int64{1, 1 << 60} {
					if kind == requestInitProducer && most > 1 && i%4 != 0 {
						continue // A sample will do.
					}
					var n atomic.Int64
					asyncVictim(t, fmt.Sprint(kind, " ", name, ", at most ", most), func(f proxiedFrame) verdict {
						if f.kind != kind || n.Add(1) > most {
							return f.pass()
						}
						return all[name](f)
					})
				}
			}
		})
	}
}

// TestBatchAnswerIsNotStored has the broker store a batch and answer what makes no sense, or
// says less than was asked for. It was split and sent again, and so stored up to twice its
// size.
func TestBatchAnswerIsNotStored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, lie := range []func(part map[string]any){
			func(part map[string]any) { part["acks"] = "stored" },
			func(part map[string]any) { part["topic"] = "other" },
			func(part map[string]any) { part["partition"] = 1 },
			func(part map[string]any) { part["base_offset"] = -1 },
			func(part map[string]any) { part["base_offset"] = "x" },
			func(part map[string]any) { part["base_offset"] = int64(1<<63 - 1) },
		} {
			asyncVictim(t, "", func(f proxiedFrame) verdict {
				if f.kind != requestProduceBatch {
					return f.pass()
				}
				return f.edited(t, func(envelope map[string]any) {
					lie(envelope["payload"].(map[string]any)["parts"].([]any)[0].(map[string]any))
				})
			})
		}
	})
}

// TestInitProducerRefused has a broker that gives out no producer IDs. What is sent fails with
// its reason, at once or, if that may pass, when the delivery timeout is over, and goes
// through when it does give some.
func TestInitProducerRefused(t *testing.T) {
	for _, tc := range []struct {
		code  string
		text  string
		want  error
		after time.Duration
	}{
		{"INVALID_REQUEST", "no IDs for you", ErrInvalidRequest, 0},
		{"UNSUPPORTED", "unknown request type 103", ErrUnsupported, 0},
		{"OVERLOADED", "all IDs are taken", ErrOverloaded, 20 * time.Second},
		{"", "who knows", context.DeadlineExceeded, 20 * time.Second},
	} {
		t.Run(tc.code, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 2)
				var gives atomic.Bool
				var count frameCounter
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
					return count.tap(), answers(func(f proxiedFrame) verdict {
						if f.kind != requestInitProducer || gives.Load() {
							return f.pass()
						}
						return f.edited(t, func(a map[string]any) {
							a["success"], a["error"], a["error_code"], a["payload"] = false, tc.text, tc.code, nil
						})
					})
				})
				c := faultClient(t, proxy.dial, WithDeliveryTimeout(20*time.Second))
				p := faultAsync(t, c)
				var told outcomes
				start := time.Now()
				for i := range 10 {
					m := to0(fmt.Sprint(i))
					m.Partition = int32(i % 2)
					require.NoError(t, p.SendFunc(t.Context(), m, told.done))
				}
				require.NoError(t, p.Flush(t.Context()))
				require.InDelta(t, tc.after.Seconds(), time.Since(start).Seconds(), 1)
				_, err := faultProducer(t, c).Send(t.Context(), to0("sync"))
				for i := range 10 {
					err := told.of(t, fmt.Sprint(i)).err
					require.ErrorIs(t, err, tc.want)
					require.ErrorContains(t, err, tc.text)
				}
				require.ErrorIs(t, err, tc.want)
				require.Less(t, count.total(), 150)
				require.Empty(t, stored(t, b, 0))
				gives.Store(true)
				require.NoError(t, p.SendFunc(t.Context(), to0("10"), told.done))
				require.NoError(t, p.Flush(t.Context()))
				require.NoError(t, told.of(t, "10").err)
				require.Equal(t, []string{"10"}, stored(t, b, 0))
				require.NoError(t, p.Close())
			})
		})
	}
}
