package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

// runOutcomes is what became of the calls of a run.
type runOutcomes struct {
	mu      sync.Mutex // guards the following
	offsets map[int][]int64
	errs    map[int][]error
	told    int
	all     chan struct{} // closed when n are told
}

// postMessages sends n messages as a run, the i-th of which is value(i).
func postMessages(ctx context.Context, c *conn, n int, timeout time.Duration, value func(i int) string) *runOutcomes {
	o := &runOutcomes{offsets: make(map[int][]int64), errs: make(map[int][]error), all: make(chan struct{})}
	c.postRun(ctx, requestProduce, n, timeout, func(dst []byte, i int) []byte {
		return (&produceRequest{Topic: faultTopic, Value: []byte(value(i))}).append(dst)
	}, func(i int, resp *wireResponse, err error) {
		var p produceResponse
		if err == nil {
			err = c.understand(requestProduce, resp, &p)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if err != nil {
			o.errs[i] = append(o.errs[i], err)
		} else {
			o.offsets[i] = append(o.offsets[i], p.Offset)
		}
		if o.told++; o.told == n {
			close(o.all)
		}
	})
	return o
}

// of returns what became of the i-th call, which must have been told once.
func (o *runOutcomes) of(t testing.TB, i int) (offset int64, err error) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Equal(t, 1, len(o.offsets[i])+len(o.errs[i]), "results of call %d", i)
	if len(o.errs[i]) > 0 {
		return 0, o.errs[i][0]
	}
	return o.offsets[i][0], nil
}

// runConn returns a connection to a broker with a script for the requests of runs, by the
// values of their messages.
func runConn(t testing.TB, script func(r *fakeRequest, value string) *fakeAnswer, opts ...Option) *conn {
	b := newFakeBroker(t, newFakeLog(faultTopic, 1))
	b.script = func(r *fakeRequest) *fakeAnswer {
		if r.kind != requestProduce {
			return nil
		}
		var p produceRequest
		r.into(&p)
		return script(r, string(p.Value))
	}
	client := faultClient(t, b.dial, opts...)
	require.NoError(t, client.Ping(t.Context()))
	return onlyConn(t, client)
}

func honestly(*fakeRequest, string) *fakeAnswer { return nil }

// TestRun has a broker answer what is in one run each in a way of its own. Each call has one
// result, and the connection goes on.
func TestRun(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var hooked sync.Map
		c := runConn(t, func(r *fakeRequest, value string) *fakeAnswer {
			switch value {
			case "refused":
				return r.refuse("", "no")
			case "lost":
				return r.silence()
			case "twice":
				a := r.honest()
				return &fakeAnswer{frames: append(a.frames, a.frames...)}
			case "nonsense":
				return r.ok(map[string]any{"offset": "nine"})
			case "body":
				return r.withBody(&produceResponse{Topic: faultTopic, Offset: 7}, []byte("behind"))
			}
			return nil
		}, WithHooks(Hooks{RequestDone: func(e RequestEvent) {
			if e.Request == "Produce" {
				n, _ := hooked.LoadOrStore(e.Err != nil, new(int))
				*n.(*int)++
			}
		}}))
		values := []string{"a", "refused", "lost", "b", "twice", "nonsense", "body", "c"}
		const timeout = 3 * time.Second
		began := time.Now()
		o := postMessages(t.Context(), c, len(values), timeout, func(i int) string { return values[i] })
		<-o.all
		require.Equal(t, timeout, time.Since(began))
		for i, value := range values {
			offset, err := o.of(t, i)
			switch value {
			case "refused":
				var refused *BrokerError
				require.ErrorAs(t, err, &refused)
				require.Equal(t, "no", refused.Message)
			case "lost":
				require.ErrorIs(t, err, errNoAnswer)
				require.False(t, unsent(err))
			case "nonsense":
				require.ErrorIs(t, err, ErrMalformed)
			case "body":
				require.NoError(t, err)
				require.EqualValues(t, 7, offset)
			default:
				require.NoError(t, err, value)
				require.EqualValues(t, slices.Index([]string{"a", "b", "twice", "c"}, value), offset)
			}
		}
		require.Equal(t, 1, c.load(), "the lost one may be answered yet")
		o = postMessages(t.Context(), c, 1, timeout, func(int) string { return "d" })
		<-o.all
		offset, err := o.of(t, 0)
		require.NoError(t, err)
		require.EqualValues(t, 4, offset)
		synctest.Wait()
		n, _ := hooked.Load(true)
		require.Equal(t, 2, *n.(*int), "hooks of refused and lost calls")
		n, _ = hooked.Load(false)
		require.Equal(t, 7, *n.(*int), "hooks of the others")
	})
}

// TestRunLateAnswers has all answers come when nobody waits for them any more.
func TestRunLateAnswers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := runConn(t, func(r *fakeRequest, value string) *fakeAnswer {
			a := r.honest()
			if value == "0" {
				a.after = 2 * time.Second
			}
			return a
		})
		o := postMessages(t.Context(), c, 3, time.Second, func(i int) string { return fmt.Sprint(i) })
		<-o.all
		for i := range 3 {
			_, err := o.of(t, i)
			require.ErrorIs(t, err, errNoAnswer)
		}
		c.mu.Lock()
		require.Equal(t, 3, c.abandoned)
		c.mu.Unlock()
		<-time.After(2 * time.Second)
		require.Zero(t, c.load())
		c.mu.Lock()
		require.Zero(t, c.abandoned)
		require.Empty(t, c.runs.runs)
		c.mu.Unlock()
		require.False(t, c.ended())
	})
}

// TestRunBrokenOff has the connection end between the answers of a run, and the context
// before another.
func TestRunBrokenOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := runConn(t, func(r *fakeRequest, value string) *fakeAnswer {
			if value == "5" {
				return r.hangUp()
			}
			return nil
		})
		o := postMessages(t.Context(), c, 100, time.Minute, func(i int) string { return fmt.Sprint(i) })
		<-o.all
		for i := range 100 {
			offset, err := o.of(t, i)
			if i < 5 {
				require.NoError(t, err)
				require.EqualValues(t, i, offset)
				continue
			}
			require.True(t, connectionFault(err), "%d: %v", i, err)
			require.False(t, unsent(err))
		}
		o = postMessages(t.Context(), c, 2, time.Minute, func(i int) string { return fmt.Sprint(i) })
		for i := range 2 {
			_, err := o.of(t, i)
			require.True(t, unsent(err), "%d: %v", i, err)
		}

		c = runConn(t, honestly)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		cancel(cause)
		o = postMessages(ctx, c, 2, time.Minute, func(i int) string { return fmt.Sprint(i) })
		for i := range 2 {
			_, err := o.of(t, i)
			require.ErrorIs(t, err, cause)
		}
	})
}

// TestRunSizes has messages that are too large for the broker among others, and a run that
// takes many frames' room.
func TestRunSizes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := runConn(t, honestly)
		require.Equal(t, 1<<20, c.maxFrame)
		large := strings.Repeat("x", 1<<20)
		values := []string{large, "a", large, large, strings.Repeat("y", 700<<10), "b", large}
		for i := range 200 {
			values = append(values, strings.Repeat("z", 100*i))
		}
		o := postMessages(t.Context(), c, len(values), time.Minute, func(i int) string { return values[i] })
		<-o.all
		next := int64(0)
		for i, value := range values {
			offset, err := o.of(t, i)
			if value == large {
				require.ErrorIs(t, err, ErrMessageTooLarge)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, next, offset)
			next++
		}
		require.Zero(t, c.load())
	})
}

// TestRunUnread has a broker that reads nothing any more: the run waits no longer than it
// may.
func TestRunUnread(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := runConn(t, func(r *fakeRequest, _ string) *fakeAnswer {
			return &fakeAnswer{after: time.Hour}
		})
		began := time.Now()
		o := postMessages(t.Context(), c, 3000, 2*time.Second, func(int) string { return strings.Repeat("x", 8<<10) })
		<-o.all
		require.Less(t, time.Since(began), time.Minute)
		for i := range 3000 {
			_, err := o.of(t, i)
			require.True(t, connectionFault(err), "%d: %v", i, err)
		}
	})
}

// TestRunsForgotten has run after run expire, of which no call or few are answered, on a
// connection that is silent otherwise and on one that is not. It keeps nothing of those who
// have waited, and is given up before what it remembers is much.
func TestRunsForgotten(t *testing.T) {
	for _, silent := range []bool{true, false} {
		t.Run(fmt.Sprint(silent), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := runConn(t, func(r *fakeRequest, value string) *fakeAnswer {
					if !silent && value == "7" {
						return nil
					}
					return r.silence()
				})
				const n = 500
				// Nothing but the pointer stays here.
				expire := func() weak.Pointer[runOutcomes] {
					o := postMessages(t.Context(), c, n, time.Second, func(i int) string { return fmt.Sprint(i) })
					<-o.all
					return weak.Make(o)
				}
				calls, limit := 0, mostAbandoned
				if silent {
					limit = int(pingTimeout/time.Second+1) * n
				}
				for !c.ended() {
					require.LessOrEqual(t, calls, limit+2*n)
					o := expire()
					calls += n
					synctest.Wait()
					runtime.GC()
					require.Nil(t, o.Value(), "after %d calls", calls)
					if !silent && !c.ended() {
						// The other calls of what is left are found in it.
						require.Equal(t, calls/n*(n-1), c.load())
					}
				}
				require.ErrorIs(t, c.cause, errForgotten)
				require.Greater(t, calls, maxAbandoned)
				require.Equal(t, silent, calls <= mostAbandoned)
			})
		})
	}
}

// TestRunsAnsweredLate has the answers to many runs come in any order, when nobody waits for
// most of them.
func TestRunsAnsweredLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var held [][]byte
		c := runConn(t, func(r *fakeRequest, value string) *fakeAnswer {
			if value == "now" {
				mu.Lock()
				defer mu.Unlock()
				a := r.honest()
				rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				a.frames, held = append(held, a.frames...), nil
				return a
			}
			mu.Lock()
			defer mu.Unlock()
			held = append(held, r.honest().frames...)
			return r.silence()
		})
		total := 0
		for round := range 20 {
			n := 1 + rand.IntN(40)
			timeout := time.Duration(1+rand.IntN(3)) * time.Second
			late := postMessages(t.Context(), c, n, timeout, func(i int) string { return fmt.Sprint(round, "/", i) })
			if round%3 > 0 {
				<-late.all
			}
			if total += n; round%5 < 4 {
				continue
			}
			now := postMessages(t.Context(), c, 1, time.Minute, func(int) string { return "now" })
			<-now.all
			_, err := now.of(t, 0)
			require.NoError(t, err)
			<-late.all
			require.Zero(t, c.load())
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Zero(t, c.abandoned)
		require.Empty(t, c.runs.runs)
	})
}
