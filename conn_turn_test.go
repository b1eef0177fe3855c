package robust

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// turnRig is a producer whose broker's answers to ProduceBatch pass through judge.
type turnRig struct {
	t        *testing.T
	broker   *Broker
	proxy    *faultProxy
	client   *Client
	producer *SyncProducer
	judge    atomic.Pointer[func(proxiedFrame) verdict]
}

func newTurnRig(t *testing.T, opts ...Option) *turnRig {
	r := &turnRig{t: t, broker: faultBroker(t, 1)}
	r.obey(proxiedFrame.pass)
	r.proxy = newFaultProxy(t, r.broker.Dial, func(int) (up, down stream) {
		return requests(nil), answers(func(f proxiedFrame) verdict {
			if f.kind != requestProduceBatch {
				return f.pass()
			}
			return (*r.judge.Load())(f)
		})
	})
	r.client = faultClient(t, r.proxy.dial, opts...)
	r.producer = faultProducer(t, r.client)
	return r
}

func (r *turnRig) obey(judge func(proxiedFrame) verdict) { r.judge.Store(&judge) }

// send has n messages stored, one after the other.
func (r *turnRig) send(n int) {
	r.t.Helper()
	for i := range n {
		_, err := r.producer.Send(r.t.Context(), to0(fmt.Sprint(i)))
		require.NoError(r.t, err)
	}
}

// turn tells whose turn it is, and how often a caller has had it.
func (r *turnRig) turn() (resting, lent bool, lendings int) {
	c := onlyConn(r.t, r.client)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.turn.resting, c.turn.lent, c.turn.lendings
}

// untilCallersRead sends until callers have read their answers themselves many times in a
// row. The loop may find the next call in flight before it can rest, and a sender may be
// driven by another goroutine, so it can take a while.
func (r *turnRig) untilCallersRead() {
	r.t.Helper()
	r.send(1)
	for row, n := 0, 0; row < 20; n++ {
		require.Less(r.t, n, 10_000)
		_, _, before := r.turn()
		r.send(1)
		resting, lent, after := r.turn()
		require.False(r.t, lent)
		if row++; after == before || !resting {
			row = 0
		}
	}
}

// The loop reads again when nobody has called for a while: it learns that the broker is
// gone.
func TestCallersReadTheirAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newTurnRig(t)
		r.untilCallersRead()
		<-time.After(3 * restTick)
		resting, _, _ := r.turn()
		require.False(t, resting)
		r.untilCallersRead()
		c := onlyConn(t, r.client)
		require.NoError(t, r.broker.Close())
		<-time.After(3 * restTick)
		require.True(t, c.ended())
	})
}

// Whoever reads stops when its context ends, also in the middle of an answer, which is
// read to its end by whoever comes next.
func TestCallerThatReadsIsCancelled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newTurnRig(t)
		r.untilCallersRead()
		c := onlyConn(t, r.client)
		for _, judge := range []func(proxiedFrame) verdict{
			func(f proxiedFrame) verdict { return f.delayed(3 * time.Second) },
			func(f proxiedFrame) verdict {
				line := f.whole()
				half := verdict{instead: [][]byte{line[:len(line)/2]}}
				r.obey(func(f proxiedFrame) verdict {
					return verdict{instead: [][]byte{append(line[len(line)/2:len(line):len(line)], f.whole()...)}}
				})
				return half
			},
		} {
			r.obey(judge)
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := r.producer.Send(ctx, to0("late"))
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
			if _, lent, _ := r.turn(); lent {
				t.Fatal("the turn was not given back")
			}
			r.send(1)
			r.obey(proxiedFrame.pass)
			r.untilCallersRead()
		}
		require.Same(t, c, onlyConn(t, r.client))
	})
}

// What ends a call without an answer has to be noticed by the caller that reads.
func TestCallerThatReadsIsTold(t *testing.T) {
	silent := func(proxiedFrame) verdict { return verdict{} }
	for name, c := range map[string]struct {
		opts   []Option
		meddle func(r *turnRig)
		takes  time.Duration
		err    error
	}{
		"delivery timeout": {[]Option{WithDeliveryTimeout(2 * time.Second)}, nil, 2 * time.Second, context.DeadlineExceeded},
		"request timeout": {
			[]Option{WithRequestTimeout(2 * time.Second)},
			func(r *turnRig) {
				<-time.After(time.Second)
				r.obey(proxiedFrame.pass)
			},
			2 * time.Second, nil,
		},
		"connection lost": {
			nil, func(r *turnRig) {
				<-time.After(time.Second)
				r.obey(proxiedFrame.pass)
				r.proxy.cutAll()
			}, time.Second, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newTurnRig(t, c.opts...)
				r.untilCallersRead()
				r.obey(silent)
				began := time.Now()
				var meddling sync.WaitGroup
				if c.meddle != nil {
					meddling.Go(func() { c.meddle(r) })
				}
				_, err := r.producer.Send(t.Context(), to0("silence"))
				if c.err == nil {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, c.err)
				}
				require.GreaterOrEqual(t, time.Since(began), c.takes)
				require.Less(t, time.Since(began), c.takes+time.Second)
				meddling.Wait()
			})
		})
	}
}

// A call that others make meanwhile is answered though its answer is read by a caller with
// one of its own, and later without it.
func TestCallsBesideACallerThatReads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newTurnRig(t)
		r.untilCallersRead()
		r.obey(func(f proxiedFrame) verdict {
			r.obey(proxiedFrame.pass)
			return f.late(time.Second)
		})
		var sending sync.WaitGroup
		sending.Go(func() { r.send(1) })
		synctest.Wait()
		_, lent, _ := r.turn()
		require.True(t, lent)
		began := time.Now()
		require.NoError(t, r.client.Ping(t.Context()))
		require.Zero(t, time.Since(began))
		var pinging sync.WaitGroup
		for range 5 {
			pinging.Go(func() {
				for range 100 {
					if err := r.client.Ping(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		sending.Wait()
		pinging.Wait()
		_, lent, _ = r.turn()
		require.False(t, lent)
		r.untilCallersRead()
	})
}

// Callers with contexts that end at any time, over TCP: each gets its answer or its
// context's end, and nothing that was acknowledged is missing.
func TestCallersReadOverTCP(t *testing.T) {
	b := faultBroker(t, 1)
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	c := faultClient(t, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr.String())
	})
	producer := faultProducer(t, c)
	var acknowledged atomic.Int64
	for round := range 20 {
		var sending sync.WaitGroup
		for i := range 1 + round%3 {
			rng := rand.New(rand.NewPCG(uint64(round), uint64(i)))
			sending.Go(func() {
				for range 200 {
					ctx, cancel := context.WithCancel(t.Context())
					if rng.IntN(3) == 0 {
						d := time.Duration(rng.IntN(200)) * time.Microsecond
						time.AfterFunc(d, cancel)
					}
					_, err := producer.Send(ctx, to0("x"))
					switch {
					case err == nil:
						acknowledged.Add(1)
					case ctx.Err() == nil:
						t.Errorf("round %d: %v", round, err)
					}
					cancel()
				}
			})
		}
		sending.Wait()
	}
	require.NoError(t, producer.Close())
	require.Positive(t, acknowledged.Load())
	require.GreaterOrEqual(t, highWaterMark(t, b, faultTopic, 0), acknowledged.Load())
}
