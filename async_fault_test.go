package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSendGivesMessageBack has Send return, with its context, before the answer comes. From
// then on the message is the caller's; it was read when the answer came.
func TestSendGivesMessageBack(t *testing.T) {
	for _, known := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			b := faultBroker(t, 1)
			var held atomic.Bool
			proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
				return requests(nil), answers(func(f proxiedFrame) verdict {
					if held.Load() {
						return f.delayed(time.Second)
					}
					return f.pass()
				})
			})
			p := faultProducer(t, faultClient(t, proxy.dial))
			if known {
				_, err := p.Send(t.Context(), to0("first"))
				require.NoError(t, err)
			}
			held.Store(true)
			var over sync.WaitGroup
			for range 20 {
				over.Go(func() {
					m := NewMessage(faultTopic, []byte("v"))
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					defer cancel()
					_, err := p.Send(ctx, m)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					for range 1000 {
						m.Timestamp++
						m.Partition++
						m.Value[0]++
						<-time.After(10 * time.Millisecond)
					}
				})
			}
			over.Wait()
			require.NoError(t, p.Close())
		})
	}
}

// TestSendMessagesCancelled has contexts end while results come: a message has its receipt, or
// the error says that nobody waited for it.
func TestSendMessagesCancelled(t *testing.T) {
	b := faultBroker(t, 1)
	p := faultProducer(t, faultClient(t, b.Dial))
	_, err := p.Send(t.Context(), to0("first"))
	require.NoError(t, err)
	for i := range 3000 {
		ctx, cancel := context.WithCancel(t.Context())
		ms := []*Message{to0("a"), to0("b"), to0("c")}
		var cancelling sync.WaitGroup
		cancelling.Go(func() {
			<-time.After(time.Duration(i%300) * time.Microsecond)
			cancel()
		})
		failed := make(map[*Message]bool)
		var errs ProducerErrors
		if err := p.SendMessages(ctx, ms); err != nil {
			require.ErrorAs(t, err, &errs)
		}
		for _, e := range errs {
			require.ErrorIs(t, e.Err, context.Canceled)
			failed[e.Msg] = true
		}
		for _, m := range ms {
			require.Equal(t, failed[m], m.Timestamp == 0)
		}
		cancelling.Wait()
	}
}

// TestAsyncDeliveryTimeout has the broker be away. Each message fails when its own time is
// over, with the reason, and what comes later goes through.
func TestAsyncDeliveryTimeout(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprint("known ", known), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				log := newFakeLog(faultTopic, 2)
				b := newFakeBroker(t, log)
				c := faultClient(t, b.dial, WithBrokers(b.addr), WithDeliveryTimeout(30*time.Second))
				p := faultAsync(t, c)
				if known {
					require.NoError(t, p.SendFunc(t.Context(), to0("first"), func(*Message, Receipt, error) {}))
					require.NoError(t, p.Flush(t.Context()))
				}
				b.setDown(true)
				var over sync.WaitGroup
				for i := range 20 {
					over.Add(1)
					start := time.Now()
					m := to0(fmt.Sprint(i))
					m.Partition = int32(i % 2)
					require.NoError(t, p.SendFunc(t.Context(), m, func(_ *Message, _ Receipt, err error) {
						defer over.Done()
						if took := time.Since(start); took < 30*time.Second || took > 30*time.Second+100*time.Millisecond {
							t.Errorf("message %d failed after %s", i, took)
						}
						var w *waitError
						if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &w) || !w.Timeout() || !strings.Contains(err.Error(), "refused") ||
							!strings.Contains(err.Error(), "the delivery timeout of 30s is over") {
							t.Errorf("message %d: %v", i, err)
						}
					}))
					<-time.After(time.Duration(i) * 137 * time.Millisecond)
				}
				require.Contains(t, p.Status().Text, "messages under way")
				over.Wait()
				require.Equal(t, "idle", p.Status().Text)
				b.setDown(false)
				var told outcomes
				require.NoError(t, p.SendFunc(t.Context(), to0("late"), told.done))
				require.NoError(t, p.Flush(t.Context()))
				require.NoError(t, told.of(t, "late").err)
				require.NoError(t, p.Close())
			})
		})
	}
}

// TestAsyncBrokerAway has the broker be away for a minute, while the application goes on
// sending: it waits, its contexts end, memory stays within its bound. When the broker is back
// all that was taken is stored, once and in order.
func TestAsyncBrokerAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const room = 256 << 10
		b := faultBroker(t, 1)
		var away atomic.Bool
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) { return passAll, passAll })
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away.Load() {
				return nil, errRefused
			}
			return proxy.dial(ctx, network, addr)
		}
		c := faultClient(t, dial, WithDeliveryTimeout(10*time.Minute))
		p := faultAsync(t, c, WithMaxBufferedBytes(room))
		var told outcomes
		accepted, ended := 0, 0
		pad := strings.Repeat("x", 1000)
		send := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			m := to0(fmt.Sprint(accepted))
			m.Key = []byte(pad)
			switch err := p.SendFunc(ctx, m, told.done); {
			case err == nil:
				accepted++
			default:
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "bytes wait")
				ended++
			}
			p.box.mu.Lock()
			defer p.box.mu.Unlock()
			require.LessOrEqual(t, p.box.used, int64(room))
		}
		for range 100 {
			send()
		}
		away.Store(true)
		proxy.cutAll()
		start := time.Now()
		for ended == 0 { // It is full.
			send()
		}
		full := heapBytes()
		for time.Since(start) < time.Minute {
			send()
		}
		require.Greater(t, ended, 55)
		require.Less(t, heapBytes()-full, int64(room))
		away.Store(false)
		for range 1000 {
			send()
		}
		require.NoError(t, p.Close())
		require.Equal(t, accepted, told.check(t, b, 1, accepted))
		require.Equal(t, numbers(0, accepted), stored(t, b, 0))
	})
}

// TestAsyncBrokerDies has the broker die for good in the middle. Every message has one
// result, and what was acknowledged was stored.
func TestAsyncBrokerDies(t *testing.T) {
	for _, how := range []string{"cut", "silent", "closed"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const n = 2000
				b := faultBroker(t, 3)
				var dead atomic.Bool
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
					if dead.Load() && how == "cut" {
						return cutAfter(0), cutAfter(0)
					}
					return requests(nil), answers(func(f proxiedFrame) verdict {
						if dead.Load() {
							return f.drop()
						}
						return f.pass()
					})
				})
				dial := proxy.dial
				if how == "closed" {
					dial = b.Dial
				}
				c := faultClient(t, dial, WithDeliveryTimeout(20*time.Second), WithRequestTimeout(3*time.Second))
				p := faultAsync(t, c, WithBatchTimeout(time.Millisecond))
				var told outcomes
				for i := range n {
					m := to0(fmt.Sprint(i))
					m.Partition = int32(i % 3)
					require.NoError(t, p.SendFunc(t.Context(), m, told.done))
					if i%100 == 0 {
						<-time.After(time.Millisecond)
					}
					if i == n/2 {
						dead.Store(true)
						switch how {
						case "cut":
							proxy.cutAll()
						case "closed":
							ctx, cancel := context.WithCancel(t.Context())
							cancel()
							_ = b.Shutdown(ctx)
						}
					}
				}
				start := time.Now()
				require.NoError(t, p.Flush(t.Context()))
				require.LessOrEqual(t, time.Since(start), 21*time.Second)
				require.NoError(t, p.Close())
				if how == "closed" {
					require.Equal(t, n, told.count())
					for i := range n {
						told.of(t, fmt.Sprint(i))
					}
					return
				}
				acknowledged := told.check(t, b, 3, n)
				require.Greater(t, acknowledged, n/4)
				require.Less(t, acknowledged, n)
			})
		})
	}
}

// TestAsyncOldBrokers sends to brokers that take no batches: all is stored, in order and
// once.
func TestAsyncOldBrokers(t *testing.T) {
	for _, old := range oldBrokers() {
		t.Run(old.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const n = 400
				b := newFakeBroker(t, newFakeLog(faultTopic, 2))
				b.features, b.v0Only = nil, old.v0
				if old.setUp != nil {
					old.setUp(b)
				}
				c := faultClient(t, b.dial, WithBrokers(b.addr))
				p := faultAsync(t, c, WithCompression(CompressionZstd), WithBatchSize(10))
				var told outcomes
				for i := range n {
					m := to0(fmt.Sprint(i))
					m.Partition = int32(i % 2)
					require.NoError(t, p.SendFunc(t.Context(), m, told.done))
					if i%50 == 0 {
						<-time.After(time.Millisecond)
					}
				}
				require.NoError(t, p.Close())
				require.Equal(t, n, told.count())
				for partition := range int32(2) {
					all := b.log.messages(partition)
					require.Len(t, all, n/2)
					for i, m := range all {
						require.Equal(t, fmt.Sprint(2*i+int(partition)), string(m.Value))
						x := told.of(t, string(m.Value))
						require.NoError(t, x.err)
						require.Equal(t, int64(i), x.receipt.Offset)
						require.Equal(t, partition, x.receipt.Partition)
					}
				}
				require.Zero(t, b.overlapped(), "a second request came before the first was answered")
			})
		})
	}
}

// refusingStorage refuses to store something now and then.
type refusingStorage struct {
	Storage
	appends *atomic.Int64
}

func (s refusingStorage) OpenPartition(ctx context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	l, err := s.Storage.OpenPartition(ctx, t, partition, c, advanced)
	return refusingLog{l, s.appends}, err
}

type refusingLog struct {
	PartitionLog
	appends *atomic.Int64
}

func (l refusingLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	if l.appends.Add(1)%5 == 3 {
		done(AppendResult{Err: ErrOverloaded})
		return
	}
	l.PartitionLog.Append(batches, acks, done)
}

// TestAsyncWithoutFeatures has a broker that does not say that it knows batches, or producers,
// and one that knows both, which refuse some of what comes, over connections that break and
// answers that overtake each other. Nothing is lost and nothing overtakes: what is stored
// twice is followed by what came behind it, and nothing is when the broker knows producers.
func TestAsyncWithoutFeatures(t *testing.T) {
	t.Parallel()
	for _, without := range []string{featureBinary, featureIdempotence, "none"} {
		t.Run(without, func(t *testing.T) {
			for range 2 {
				bubble(t, func(t *testing.T) { sendWithout(t, without) })
			}
		})
	}
}

func sendWithout(t *testing.T, without string) {
	const n = 1000
	var opts []BrokerOption
	if without != featureBinary { // Messages that are refused one by one may be overtaken.
		opts = append(opts, WithStorage(refusingStorage{NewMemoryStorage(), new(atomic.Int64)}))
	}
	b := faultBroker(t, 2, opts...)
	var seen frameCounter
	proxy := newFaultProxy(t, b.Dial, func(conn int) (up, down stream) {
		left := 12 + 5*conn // answers until it is cut
		if without == featureBinary {
			left *= 20 // Each is of one message.
		}
		return requests(func(f proxiedFrame) verdict {
				seen.add(f.kind)
				return f.pass()
			}), answers(func(f proxiedFrame) verdict {
				if f.kind == requestClusterInfo {
					return f.edited(t, func(a map[string]any) {
						info := a["payload"].(map[string]any)
						info["features"] = slices.DeleteFunc(info["features"].([]any), func(x any) bool { return x == without })
					})
				}
				if left--; left < 0 {
					return verdict{then: thenCut}
				}
				return f.late(time.Duration(rand.IntN(4)) * time.Millisecond)
			})
	})
	c := faultClient(t, proxy.dial, WithDeliveryTimeout(time.Hour), WithRetries(100), WithRetryBackoff(time.Millisecond))
	p := faultAsync(t, c, WithBatchSize(5))
	var told outcomes
	for i := range n {
		m := to0(fmt.Sprint(i))
		m.Partition = int32(i % 2)
		require.NoError(t, p.SendFunc(t.Context(), m, told.done))
		if i%10 == 0 {
			<-time.After(time.Millisecond)
		}
	}
	require.NoError(t, p.Flush(t.Context()))
	require.NoError(t, p.Close())
	require.Greater(t, proxy.connections(), 2, "it was cut")
	require.Equal(t, without == featureBinary, seen.of(requestProduceBatch) == 0)
	var logs [2][]string
	for partition := range 2 {
		values := stored(t, b, int32(partition))
		logs[partition] = values
		next := partition // the first that has not been stored
		for _, v := range values {
			var i int
			_, err := fmt.Sscan(v, &i)
			require.NoError(t, err)
			require.LessOrEqual(t, i, next, "message %d is stored before %d", i, next)
			if i == next {
				next += 2
			}
		}
		require.Equal(t, n+partition, next)
		if without == "none" {
			requireOnce(t, values)
		}
	}
	for i := range n {
		x := told.of(t, fmt.Sprint(i))
		require.NoError(t, x.err)
		require.Equal(t, fmt.Sprint(i), logs[x.receipt.Partition][x.receipt.Offset])
	}
}

// TestAsyncComesAndGoes opens and closes producers, and clients, a thousand times. Nothing is
// left of them.
func TestAsyncComesAndGoes(t *testing.T) {
	b := faultBroker(t, 1, WithRetention(0, 1<<10))
	c := quietClient(t, b)
	use := func(c *Client, i int) {
		p := faultAsync(t, c)
		var told outcomes
		for range 3 {
			require.NoError(t, p.SendFunc(t.Context(), to0("x"), told.done))
		}
		if i%2 == 0 {
			require.NoError(t, p.Send(t.Context(), to0("y")))
			p.Input() <- to0("z")
			<-p.Successes()
		}
		if i%3 == 0 {
			require.NoError(t, p.Flush(t.Context()))
		}
		require.NoError(t, p.Close())
		require.Equal(t, 3, told.count())
	}
	cycle := func(n int) {
		for i := range n {
			use(c, i)
			if i%10 == 0 {
				// Not one of the test's own, which it keeps until its end.
				other, err := b.Client(WithLogger(nil))
				require.NoError(t, err)
				use(other, i)
				require.NoError(t, other.Close())
			}
		}
	}
	cycle(100)
	goroutines, heap := runtime.NumGoroutine(), heapBytes()
	cycle(1000)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 }, 10*time.Second, time.Millisecond)
	grown := heapBytes() - heap
	t.Logf("%d bytes in 1100 cycles", grown)
	require.Less(t, grown, int64(1<<20))
}
