package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAsyncUnreadResults never reads results. Senders wait, for no longer than they said, and
// are told why; everything else goes on, and what is not read is in what Shutdown returns and
// in the channels, once.
func TestAsyncUnreadResults(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := quietClient(t, b)
		p := faultAsync(t, c, WithMaxBufferedBytes(100<<10))
		sent := 0
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			err := p.Send(ctx, to0(fmt.Sprint(sent)))
			cancel()
			if err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "results wait to be read")
				require.Equal(t, time.Second, time.Since(start))
				break
			}
			sent++
		}
		require.Greater(t, sent, resultBuffer)
		require.Less(t, sent, 2000)
		require.NoError(t, p.Flush(t.Context()))
		require.Len(t, stored(t, b, 0), sent)
		require.Contains(t, p.Status().Text, fmt.Sprintf("%d results wait to be read", sent))

		// Who reads some has others sent.
		seen := make(map[string]bool)
		read := func(m *ProducerMessage) {
			require.False(t, seen[string(m.Value)])
			seen[string(m.Value)] = true
		}
		for range 300 {
			read(<-p.Successes())
		}
		for range 100 {
			require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(sent))))
			sent++
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := p.Shutdown(ctx)
		require.Equal(t, 5*time.Second, time.Since(start))
		var left *UndeliveredError
		require.ErrorAs(t, err, &left)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, fmt.Sprintf("%d results were not read", len(left.Successes)))
		require.Empty(t, left.Failures)
		require.NotEmpty(t, left.Successes)
		for _, m := range left.Successes {
			read(m)
		}
		for m := range p.Successes() {
			read(m)
		}
		_, open := <-p.Errors()
		require.False(t, open)
		require.Len(t, seen, sent)
		require.Same(t, left, p.Close(), "it may be called again")
		require.Equal(t, "closed", p.Status().Text)
	})
}

// TestAsyncReadsErrorsOnly reads Errors and not Successes: failures arrive all the same.
func TestAsyncReadsErrorsOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := faultAsync(t, quietClient(t, faultBroker(t, 1)))
		for i := range 5 * resultBuffer {
			require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(i))))
		}
		require.NoError(t, p.Send(t.Context(), NewMessage("missing", nil)))
		require.ErrorIs(t, <-p.Errors(), ErrTopicNotFound)
		require.NoError(t, p.Flush(t.Context()))
		closed := make(chan error)
		go func() { closed <- p.Close() }()
		n := 0
		for range p.Successes() {
			n++
		}
		require.NoError(t, <-closed)
		require.Equal(t, 5*resultBuffer, n)
	})
}

// TestAsyncShutdownWithoutBroker ends a producer whose broker is away. Every message fails,
// and is told in a channel or in the error.
func TestAsyncShutdownWithoutBroker(t *testing.T) {
	for _, n := range []int{1, 1000} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprint(n, " known ", known), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					b := newFakeBroker(t, newFakeLog(faultTopic, 1))
					c := faultClient(t, b.dial, WithBrokers(b.addr))
					p := faultAsync(t, c)
					if known { // Else nobody knows the topic's partitions.
						require.NoError(t, p.Send(t.Context(), to0("")))
						<-p.Successes()
					}
					b.setDown(true)
					for i := range n {
						require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(i))))
					}
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
					defer cancel()
					start := time.Now()
					err := p.Shutdown(ctx)
					require.LessOrEqual(t, time.Since(start), 5*time.Second)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					var failures []*ProducerError
					for e := range p.Errors() {
						failures = append(failures, e)
					}
					if left := (*UndeliveredError)(nil); errors.As(err, &left) {
						require.Empty(t, left.Successes)
						failures = append(failures, left.Failures...)
					}
					require.Len(t, failures, n)
					seen := make(map[string]bool)
					for _, e := range failures {
						require.ErrorIs(t, e, ErrClosed)
						require.ErrorContains(t, e, "refused", "the last failure is named")
						require.False(t, seen[string(e.Msg.Value)])
						seen[string(e.Msg.Value)] = true
					}
				})
			})
		}
	}
}

// TestAsyncCloseWhileSending has several goroutines use one producer in every way while it is
// closed, by itself, with its client, or in no time. What was taken has one result, what was
// not is refused as closed or is still in Input.
func TestAsyncCloseWhileSending(t *testing.T) {
	for _, how := range []string{"close", "client", "shutdown"} {
		t.Run(how, func(t *testing.T) {
			b := faultBroker(t, 1, WithRetention(0, 1<<20))
			for range 40 {
				closeWhileSending(t, quietClient(t, b), how)
			}
		})
	}
}

func closeWhileSending(t *testing.T, c *Client, how string) {
	p := faultAsync(t, c, WithMaxBufferedBytes(20<<10), WithInputBuffer(10))
	var accepted, inInput, results atomic.Int64
	var told outcomes
	var sending, reading sync.WaitGroup
	reading.Go(func() {
		for range p.Successes() {
			results.Add(1)
		}
	})
	reading.Go(func() {
		for range p.Errors() {
			results.Add(1)
		}
	})
	refused := func(err error) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("not refused as closed: %v", err)
		}
	}
	var byCall atomic.Int64
	ended := make(chan struct{})
	for g := range 2 {
		sending.Go(func() {
			for {
				if err := p.Send(t.Context(), to0("x")); err != nil {
					refused(err)
					return
				}
				accepted.Add(1)
			}
		})
		sending.Go(func() {
			for i := 0; ; i++ {
				if err := p.SendFunc(t.Context(), to0(fmt.Sprint(g, i)), told.done); err != nil {
					refused(err)
					return
				}
				byCall.Add(1)
			}
		})
		sending.Go(func() {
			for {
				select {
				case p.Input() <- to0("y"):
					inInput.Add(1)
				case <-ended:
					return
				}
			}
		})
	}
	for range rand.IntN(200) {
		runtime.Gosched()
	}
	var undelivered *UndeliveredError
	switch how {
	case "close":
		require.NoError(t, p.Close())
	case "client":
		require.NoError(t, c.Close())
	default:
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(2))*time.Millisecond)
		if err := p.Shutdown(ctx); err != nil && !errors.As(err, &undelivered) {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		cancel()
	}
	close(ended)
	sending.Wait()
	reading.Wait()
	if undelivered != nil {
		results.Add(int64(len(undelivered.Successes) + len(undelivered.Failures)))
	}
	require.Equal(t, accepted.Load()+inInput.Load()-int64(len(p.Input())), results.Load())
	require.Equal(t, byCall.Load(), int64(told.count()))
	for value, all := range told.all {
		require.Len(t, all, 1, value)
	}
	require.NoError(t, c.Close())
}

// TestAsyncShutdownAtOnce gives up on what is under way, while its answers come.
func TestAsyncShutdownAtOnce(t *testing.T) {
	b := faultBroker(t, 3, WithRetention(0, 1<<20))
	c := quietClient(t, b)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 200 {
		p := faultAsync(t, c, WithBatchTimeout(0))
		var told outcomes
		n := 50 + rand.IntN(100)
		for i := range n {
			require.NoError(t, p.SendFunc(t.Context(), NewMessage(faultTopic, fmt.Append(nil, i)), told.done))
		}
		if err := p.Shutdown(gone); err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		require.Equal(t, n, told.count())
		for i := range n {
			if err := told.of(t, fmt.Sprint(i)).err; err != nil {
				require.ErrorIs(t, err, ErrClosed)
			}
		}
	}
}

// TestAsyncCallbacksSend has each callback send the next message, and ask for a Flush, which
// would wait for the callback itself and ends with its context.
func TestAsyncCallbacksSend(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 500
		b := faultBroker(t, 1)
		p := faultAsync(t, quietClient(t, b))
		var told outcomes
		over := make(chan struct{})
		var send func(i int)
		send = func(i int) {
			err := p.SendFunc(t.Context(), to0(fmt.Sprint(i)), func(m *Message, r Receipt, err error) {
				told.done(m, r, err)
				if i%100 == 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					if err := p.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("flush: %v", err)
					}
				}
				if i == n-1 {
					close(over)
					return
				}
				send(i + 1)
			})
			if err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
		send(0)
		<-over
		require.NoError(t, p.Flush(t.Context()))
		require.Equal(t, n, told.check(t, b, 1, n))
		require.NoError(t, p.Close())
	})
}

// TestAsyncSlowCallbacks has a callback that does not return. Senders wait when there is no
// more room, and Shutdown does not wait for it for ever.
func TestAsyncSlowCallbacks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := faultAsync(t, quietClient(t, faultBroker(t, 1)), WithMaxBufferedBytes(10<<10))
		let := make(chan struct{})
		calls, sent := 0, 0
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute/2)
			err := p.SendFunc(ctx, to0("x"), func(*Message, Receipt, error) {
				<-let
				calls++
			})
			cancel()
			if err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				break
			}
			sent++
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		require.ErrorIs(t, p.Shutdown(ctx), context.DeadlineExceeded)
		require.LessOrEqual(t, time.Since(start), 12*time.Second)
		close(let)
		synctest.Wait()
		require.Equal(t, sent, calls)
	})
}

// TestAsyncResultsAreSelected has results that nobody wants counted only.
func TestAsyncResultsAreSelected(t *testing.T) {
	for _, successes := range []bool{false, true} {
		for _, failures := range []bool{false, true} {
			bubble(t, func(t *testing.T) {
				c := quietClient(t, faultBroker(t, 1))
				p := faultAsync(t, c, WithReturnSuccesses(successes), WithReturnErrors(failures), WithMaxBufferedBytes(20<<10))
				for i := range 100 {
					require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(i))))
					m := NewMessage("missing", nil)
					m.Metadata = i
					p.Input() <- m
					p.Input() <- nil
				}
				require.Eventually(t, func() bool { return len(p.Input()) == 0 }, time.Minute, time.Millisecond)
				require.NoError(t, p.Close())
				wanted := func(yes bool, n int) int {
					if !yes {
						return 0
					}
					return n
				}
				var good, bad, wrong int
				for range p.Successes() {
					good++
				}
				for e := range p.Errors() {
					if errors.Is(e, ErrInvalidRequest) {
						wrong++
						continue
					}
					require.ErrorIs(t, e, ErrTopicNotFound)
					require.Equal(t, bad, e.Metadata)
					bad++
				}
				require.Equal(t, wanted(successes, 100), good)
				require.Equal(t, wanted(failures, 100), bad)
				require.Equal(t, wanted(failures, 100), wrong)
				stats := c.Metrics().Producer.GetStats()
				require.Equal(t, []uint64{100, 200}, []uint64{stats.MessagesSent, stats.MessagesFailed})
			})
		}
	}
}

// TestAsyncCloseOfBusyInput closes a producer while others do not stop to send on Input, as fast
// as it takes what they send. Close takes what was sent before, and leaves the rest.
func TestAsyncCloseOfBusyInput(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict { return f.delayed(10 * time.Millisecond) })
		})
		p := faultAsync(t, faultClient(t, proxy.dial), WithReturnSuccesses(false), WithInputBuffer(10), WithMaxBufferedBytes(1000))
		quit := make(chan struct{})
		var senders sync.WaitGroup
		for range 3 {
			senders.Go(func() {
				for {
					select {
					case p.Input() <- to0("v"):
					case <-quit:
						return
					}
				}
			})
		}
		<-time.After(time.Second)
		began := time.Now()
		require.NoError(t, p.Close())
		require.Less(t, time.Since(began), time.Second)
		close(quit)
		senders.Wait()
	})
}
