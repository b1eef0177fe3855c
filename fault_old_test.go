package robust

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// oldBroker is one of the brokers that are out there: published, without extensions.
type oldBroker struct {
	name  string
	v0    bool
	setUp func(b *fakeBroker)
	dials int // connections until the form is found
}

func oldBrokers() []oldBroker {
	first := func(r *fakeRequest) bool { // whether r is the hello of both forms
		return r.conn == 0 && r.kind == requestClusterInfo
	}
	return []oldBroker{
		{name: "v0", v0: true, dials: 1},
		{name: "v0 that hangs up on the first hello", v0: true, dials: 2, setUp: func(b *fakeBroker) {
			b.script = func(r *fakeRequest) *fakeAnswer {
				if first(r) {
					return r.hangUp()
				}
				return nil
			}
		}},
		{name: "v0 that is silent on the first hello", v0: true, dials: 2, setUp: func(b *fakeBroker) {
			b.script = func(r *fakeRequest) *fakeAnswer {
				if first(r) {
					return r.silence()
				}
				return nil
			}
		}},
		{name: "v0 that answers the first hello with garbage", v0: true, dials: 2, setUp: func(b *fakeBroker) {
			b.script = func(r *fakeRequest) *fakeAnswer {
				if first(r) {
					return r.raw("ERR\n")
				}
				return nil
			}
		}},
		{name: "v1", dials: 1},
		{name: "v1 without ClusterInfo", dials: 2, setUp: func(b *fakeBroker) { b.noInfo = true }},
		{name: "v1 that does not say who leads", dials: 1, setUp: func(b *fakeBroker) { b.log.setLeader(0, "") }},
	}
}

// TestOldBrokers works with brokers that know no extension. The form is found out,
// everything is sent and read, the ends of the log are found by fetching, and what
// needs an extension says that it is not supported.
func TestOldBrokers(t *testing.T) {
	for _, old := range oldBrokers() {
		t.Run(old.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) { workWithOldBroker(t, old) })
		})
	}
}

func workWithOldBroker(t *testing.T, old oldBroker) {
	b := newFakeBroker(t, newFakeLog(faultTopic, 2))
	b.features, b.v0Only = nil, old.v0
	b.log.setLeader(0, b.addr)
	if old.setUp != nil {
		old.setUp(b)
	}
	c := faultClient(t, b.dial, WithBrokers(b.addr))
	require.NoError(t, c.Ping(t.Context()))
	require.Equal(t, old.dials, b.dialed())
	require.Equal(t, old.v0, onlyConn(t, c).form == ProtocolV0)

	producer := faultProducer(t, c)
	for i := range int64(20) {
		_, offset, err := producer.SendMessage(t.Context(), to0(fmt.Sprint(i)))
		require.NoError(t, err)
		require.Equal(t, i, offset)
	}
	ms := make([]*Message, 17)
	for i := range ms {
		ms[i] = to0(fmt.Sprint(20 + i))
	}
	require.NoError(t, producer.SendMessages(t.Context(), ms))

	// From the start, from an offset, and from behind the newest.
	all := faultConsumer(t, c, WithFetchMaxMessages(5))
	for i := range int64(37) {
		m, err := next(t, all, time.Minute)
		require.NoError(t, err)
		require.Equal(t, i, m.Offset)
		require.Equal(t, fmt.Sprint(i), string(m.Value))
	}
	m, err := next(t, faultConsumer(t, c, WithStartOffset(30)), time.Minute)
	require.NoError(t, err)
	require.Equal(t, int64(30), m.Offset)
	newest := faultConsumer(t, c, WithStartOffset(OffsetNewest))
	_, err = next(t, newest, time.Second)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, int64(37), newest.Offset())
	_, _, err = producer.SendMessage(t.Context(), to0("new"))
	require.NoError(t, err)
	for _, pc := range []*PartitionConsumer{all, newest} {
		m, err := next(t, pc, time.Minute)
		require.NoError(t, err)
		require.Equal(t, "new", string(m.Value))
	}

	// A broker that does not hold fetches is asked now and then, not on and on.
	before := len(b.asked(requestFetch))
	<-time.After(10 * time.Second)
	require.Less(t, len(b.asked(requestFetch))-before, 3*10*10+10)

	_, err = c.Admin().ListOffsets(t.Context(), faultTopic, time.Now())
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorIs(t, c.Admin().CreatePartitions(t.Context(), faultTopic, 5), ErrUnsupported)
	requireNoSync(t, c)
	require.NoError(t, all.SeekTime(t.Context(), time.Now()))
	_, err = next(t, all, time.Minute)
	require.ErrorIs(t, err, ErrUnsupported)

	require.Zero(t, b.overlapped(), "a second request came before the first was answered")
}

// TestOldBrokerProbing finds the newest offset of logs of every small length, and of
// one of the published brokers' own answers to what is beyond it.
func TestOldBrokerProbing(t *testing.T) {
	for _, beyond := range []string{"empty", "refused"} {
		t.Run(beyond, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100} {
					log := newFakeLog(faultTopic, 1)
					log.fill(0, n)
					b := newFakeBroker(t, log)
					b.features, b.v0Only = nil, true
					b.script = func(r *fakeRequest) *fakeAnswer {
						var q fetchRequest
						if r.kind == requestFetch {
							r.into(&q)
						}
						if beyond == "refused" && q.Offset > int64(n) {
							return r.refuse("", "offset out of range")
						}
						return nil
					}
					c := faultClient(t, b.dial, WithBrokers(b.addr))
					pc := faultConsumer(t, c, WithStartOffset(OffsetNewest))
					_, err := next(t, pc, 300*time.Millisecond)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.Equal(t, int64(n), pc.Offset())
					require.Less(t, len(b.asked(requestFetch)), 40)
					require.NoError(t, c.Close())
					b.stop()
				}
			})
		})
	}
}

// TestFormIsNeverLearntFromSilence has a broker say nothing at first, in either form.
// When it speaks it is understood, whatever it speaks.
func TestFormIsNeverLearntFromSilence(t *testing.T) {
	for _, v0 := range []bool{false, true} {
		t.Run(fmt.Sprint("v0 ", v0), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := newFakeBroker(t, newFakeLog(faultTopic, 1))
				b.v0Only = v0
				var speaks atomic.Bool
				b.script = func(r *fakeRequest) *fakeAnswer {
					if speaks.Load() {
						return nil
					}
					return r.silence()
				}
				c := faultClient(t, b.dial, WithBrokers(b.addr), WithConnectionTimeout(10*time.Second))
				start := time.Now()
				err := c.Ping(t.Context())
				require.ErrorIs(t, err, ErrNoBroker)
				requireFault(t, err)
				require.LessOrEqual(t, time.Since(start), 10*time.Second)
				speaks.Store(true)
				_, _, err = faultProducer(t, c).SendMessage(t.Context(), to0("a"))
				require.NoError(t, err)
				require.Equal(t, v0, onlyConn(t, c).form == ProtocolV0)
			})
		})
	}
}

// TestFormChanges has a broker of one form be replaced by one of the other, at the
// same address.
func TestFormChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		log := newFakeLog(faultTopic, 1)
		b := newFakeBroker(t, log)
		c := faultClient(t, b.dial, WithBrokers(b.addr))
		producer := faultProducer(t, c)
		for i := range 6 {
			b.setDown(true)
			b.running.Wait()
			b.v0Only = i%2 == 1
			b.setDown(false)
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, int64(i), offset)
			require.Equal(t, b.v0Only, onlyConn(t, c).form == ProtocolV0)
		}
	})
}

// TestOldBrokerIsAskedOneAtATime uses a broker that serves one request at a time
// around the moments at which its idle connection is asked for a sign of life. That
// question is a request too: a caller that came while it was under way used to send a
// second one.
func TestOldBrokerIsAskedOneAtATime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.features, b.v0Only = nil, true
		b.script = func(r *fakeRequest) *fakeAnswer {
			a := r.honest()
			a.after = 20 * time.Millisecond
			return a
		}
		c := faultClient(t, b.dial, WithBrokers(b.addr), WithMaxConnections(1), WithMetadataMaxAge(24*time.Hour))
		producer := faultProducer(t, c)
		for i := range 200 {
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, int64(i), offset)
			// Before, while and after the idle connection is asked.
			<-time.After(pingAfter + time.Duration(i%60-30)*time.Millisecond)
		}
		require.Zero(t, b.overlapped(), "a second request came before the first was answered")
		require.Equal(t, 1, b.dialed())
		require.Greater(t, len(b.asked(requestClusterInfo)), 50)
	})
}

// TestAsyncGivesConnectionBack sends to a broker that serves one request at a time, over the only
// connection that there may be. Others can use it when nothing is under way.
func TestAsyncGivesConnectionBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.features, b.v0Only = nil, true
		c := faultClient(t, b.dial, WithBrokers(b.addr), WithMaxConnections(1))
		p := faultAsync(t, c)
		var told outcomes
		ping := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.NoError(t, c.Ping(ctx))
		}
		for i := range 3 {
			require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
			require.NoError(t, p.Flush(t.Context()))
			ping()
		}
		require.NoError(t, p.Close())
		ping()
	})
}
