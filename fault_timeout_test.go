package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

// TestBrokerThatNeverAnswers holds what bounds a call then: the request timeout, the
// delivery timeout, the caller's context.
func TestBrokerThatNeverAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestClusterInfo || r.kind == requestMetadata {
				return nil
			}
			return r.silence()
		}
		c := faultClient(t, b.dial, WithBrokers(b.addr), WithRequestTimeout(4*time.Second))
		start := time.Now()
		_, _, err := faultProducer(t, c, WithDeliveryTimeout(10*time.Second)).SendMessage(t.Context(), to0("a"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errNoAnswer)
		requireFault(t, err)
		require.LessOrEqual(t, time.Since(start), 10*time.Second)
		require.Len(t, b.asked(requestProduce), 3)

		start = time.Now()
		_, err = c.Admin().ListTopics(t.Context())
		requireFault(t, err)
		require.ErrorIs(t, err, errNoAnswer)
		require.Less(t, time.Since(start), 20*time.Second)

		// While a connection is in doubt another is opened, and no more.
		require.LessOrEqual(t, b.dialed(), 3)

		pc := faultConsumer(t, c)
		start = time.Now()
		_, err = next(t, pc, time.Minute)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(start))
		require.Less(t, b.askedTotal(), 100)
		require.NoError(t, pc.Close())
	})
}

// TestAbandonedCallsAreBounded has call after call given up on a connection that
// answers nothing else. It is replaced before what it remembers is much.
func TestAbandonedCallsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestProduce {
				return r.silence()
			}
			return nil
		}
		c := faultClient(t, b.dial, WithBrokers(b.addr), WithMaxConnections(1), WithMetadataMaxAge(24*time.Hour))
		producer := faultProducer(t, c)
		require.NoError(t, c.Ping(t.Context()))
		for i := range 3 * maxAbandoned {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			_, _, err := producer.SendMessage(ctx, to0("a"))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
			if i%100 == 50 && b.dialed() == 1 { // Not when it is being given up, after 15 s.
				require.LessOrEqual(t, onlyConn(t, c).load(), 2*maxAbandoned)
			}
		}
		require.GreaterOrEqual(t, b.dialed(), 2)
	})
}

// So is what a broker leaves unanswered that answers everything else.
func TestAbandonedCallsOfBusyBrokerAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestProduce {
				return r.silence()
			}
			return nil
		}
		c := faultClient(t, b.dial, WithBrokers(b.addr), WithMaxConnections(1), WithMetadataMaxAge(24*time.Hour), WithRequestTimeout(24*time.Hour))
		producer := faultProducer(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		var sending sync.WaitGroup
		for range mostAbandoned + 1 {
			sending.Go(func() { _, _, _ = producer.SendMessage(ctx, to0("a")) })
		}
		synctest.Wait()
		require.NoError(t, c.Ping(t.Context()))
		cancel()
		sending.Wait()
		require.NoError(t, c.Ping(t.Context()))
		require.Equal(t, 2, b.dialed())
	})
}

// TestAbandonedCallsKeepNothing gives calls up, by their callers and by their time. The
// connection waits for their answers on, and keeps nothing else of them.
func TestAbandonedCallsKeepNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestListTopics {
				return r.silence()
			}
			return nil
		}
		c := faultClient(t, b.dial)
		require.NoError(t, c.Ping(t.Context()))
		conn := onlyConn(t, c)
		expire := func() weak.Pointer[call] {
			over := make(chan struct{})
			k := &call{notify: func(*call) { close(over) }}
			require.NoError(t, conn.send(t.Context(), k, outgoingCall{req: &listTopicsRequest{}}, time.Second))
			<-over
			require.ErrorIs(t, k.err, errNoAnswer)
			return weak.Make(k)
		}
		giveUp := func() weak.Pointer[call] {
			k, err := conn.begin(t.Context(), &listTopicsRequest{}, time.Hour)
			require.NoError(t, err)
			conn.abandon(k)
			conn.abandon(k)
			return weak.Make(k)
		}
		for i, k := range []weak.Pointer[call]{expire(), giveUp()} {
			synctest.Wait()
			runtime.GC()
			require.Nil(t, k.Value(), i)
		}
		require.Equal(t, 2, conn.load())
		conn.mu.Lock()
		require.Equal(t, 2, conn.abandoned)
		conn.mu.Unlock()
	})
}

// slowly makes each dial take so long.
func slowly(dial dialFunc, d time.Duration) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !pause(ctx, nil, d) {
			return nil, ctx.Err()
		}
		return dial(ctx, network, addr)
	}
}

// TestDeliveryTimeoutBoundsAll has something go wrong at every stage of a send, with
// one broker and with several: no send takes longer than its delivery timeout, and
// nothing is sent when it is over.
func TestDeliveryTimeoutBoundsAll(t *testing.T) {
	silentTo := func(kinds ...requestType) func(*fakeRequest) *fakeAnswer {
		return func(r *fakeRequest) *fakeAnswer {
			if slices.Contains(kinds, r.kind) {
				return r.silence()
			}
			return nil
		}
	}
	overloaded := func(r *fakeRequest) *fakeAnswer {
		if r.kind == requestProduce {
			return r.refuse("OVERLOADED", "busy")
		}
		return nil
	}
	slow := func(r *fakeRequest) *fakeAnswer {
		a := r.honest()
		a.after = 7 * time.Second
		return a
	}
	hangUp := func(r *fakeRequest) *fakeAnswer {
		if r.kind == requestProduce {
			return r.hangUp()
		}
		return nil
	}
	stages := map[string]func(*fakeRequest) *fakeAnswer{
		"no hello":            silentTo(requestClusterInfo),
		"no metadata":         silentTo(requestMetadata),
		"no answer":           silentTo(requestProduce),
		"no answer to either": silentTo(requestProduce, requestMetadata),
		"overloaded":          overloaded,
		"slow":                slow,
		"slow dial":           silentTo(requestProduce),
		"hangs up":            hangUp,
	}
	const limit = 10 * time.Second
	for _, stage := range slices.Sorted(maps.Keys(stages)) {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprint(stage, " ", n), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					brokers := cluster(t, n, 1)
					for _, b := range brokers {
						b.script = stages[stage]
					}
					dial := dialFakes(brokers...)
					if stage == "slow dial" {
						dial = slowly(dial, 4*time.Second)
					}
					c := faultClient(t, dial, WithBrokers(addrsOf(brokers)...))
					producer := faultProducer(t, c, WithDeliveryTimeout(limit), WithRetries(1000))
					check := func(start time.Time, err error) {
						require.LessOrEqual(t, time.Since(start), limit)
						if err == nil {
							require.Equal(t, "slow", stage)
						} else if stage != "overloaded" {
							requireFault(t, err)
						}
						// Nothing comes behind.
						synctest.Wait()
						end := start.Add(limit)
						<-time.After(time.Minute)
						for _, b := range brokers {
							for _, r := range b.asked(requestProduce) {
								require.False(t, r.at.After(end), "sent %v after the end", r.at.Sub(end))
							}
						}
					}
					start := time.Now()
					_, _, err := producer.SendMessage(t.Context(), to0("a"))
					check(start, err)

					ms := make([]*Message, 20)
					for i := range ms {
						ms[i] = to0("b")
					}
					start = time.Now()
					check(start, producer.SendMessages(t.Context(), ms))

					// A context that ends before ends it before.
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					start = time.Now()
					_, _, err = producer.SendMessage(ctx, to0("a"))
					require.Error(t, err)
					require.LessOrEqual(t, time.Since(start), time.Second)
				})
			})
		}
	}
}

// TestCloseUnderFaults closes a client while its broker fails in one of many ways and
// calls are under way. Close is bounded, and every call has ended when it returns.
func TestCloseUnderFaults(t *testing.T) {
	silent := func(kinds ...requestType) func(*fakeRequest) *fakeAnswer {
		return func(r *fakeRequest) *fakeAnswer {
			if len(kinds) == 0 || slices.Contains(kinds, r.kind) {
				return r.silence()
			}
			return nil
		}
	}
	faults := map[string]func(b *fakeBroker){
		"none":        func(*fakeBroker) {},
		"down":        func(b *fakeBroker) { b.setDown(true) },
		"black hole":  func(b *fakeBroker) { b.addr = "elsewhere.invalid:1" },
		"no hello":    func(b *fakeBroker) { b.script = silent() },
		"no metadata": func(b *fakeBroker) { b.script = silent(requestMetadata) },
		"no answer":   func(b *fakeBroker) { b.script = silent(requestProduce, requestFetch, requestListOffsets) },
		"overloaded": func(b *fakeBroker) {
			b.script = func(r *fakeRequest) *fakeAnswer { return r.refuse("OVERLOADED", "busy") }
		},
		"hangs up": func(b *fakeBroker) {
			b.script = func(r *fakeRequest) *fakeAnswer { return r.hangUp() }
		},
	}
	for name, fault := range faults {
		for _, v0 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", v0), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					b := cluster(t, 1, 1)[0]
					b.v0Only = v0
					addr := b.addr
					fault(b)
					c := faultClient(t, dialFakes(b), WithBrokers(addr))
					producer := faultProducer(t, c, WithRetries(1000))
					pc := faultConsumer(t, c)
					var running sync.WaitGroup
					running.Go(func() {
						for range pc.Messages() {
						}
					})
					running.Go(func() {
						for {
							if _, _, err := producer.SendMessage(t.Context(), to0("a")); errors.Is(err, ErrClosed) {
								return
							}
							<-time.After(time.Millisecond)
						}
					})
					running.Go(func() { _ = producer.SendMessages(t.Context(), []*Message{to0("a"), to0("b")}) })
					running.Go(func() { _, _ = c.Admin().ListTopics(t.Context()) })
					running.Go(func() { _ = c.Ping(t.Context()) })
					<-time.After(700 * time.Millisecond)
					start := time.Now()
					require.NoError(t, pc.Close())
					require.Zero(t, time.Since(start))
					_ = c.Close() // It may say that sends were still under way.
					require.LessOrEqual(t, time.Since(start), closeTimeout+time.Second)
					closed := time.Now()
					running.Wait()
					require.LessOrEqual(t, time.Since(closed), time.Second)
				})
			})
		}
	}
}
