package robust

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// switchable is a pair of streams that pass frames on until they are told to fall
// silent, in both directions and without closing anything.
type switchable struct {
	off      atomic.Bool
	counter  frameCounter
	silenced int // the connection that falls silent; the others do not
}

func (s *switchable) script(n int) (up, down stream) {
	if n != s.silenced {
		return s.counter.tap(), nil
	}
	silence := func(f proxiedFrame) verdict {
		if s.off.Load() {
			return verdict{then: thenSilence}
		}
		s.counter.add(f.kind)
		return f.pass()
	}
	return requests(silence), answers(func(f proxiedFrame) verdict {
		if s.off.Load() {
			return verdict{then: thenSilence}
		}
		return f.pass()
	})
}

// longestSilence is when a silent connection is given up at the latest, with a
// moment for what comes after.
const longestSilence = pingAfter + pingTimeout + time.Second

// TestHalfOpenWhileSending has a broker vanish without a word, before a message is
// sent or while its answer is awaited. The silence is noticed, and the message goes
// through another connection.
func TestHalfOpenWhileSending(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var link switchable
		proxy := newFaultProxy(t, b.Dial, link.script)
		c := faultClient(t, proxy.dial)
		producer := faultProducer(t, c)
		_, offset, err := producer.SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		require.Zero(t, offset)

		link.off.Store(true)
		start := time.Now()
		_, offset, err = producer.SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
		require.Equal(t, int64(1), offset)
		require.Less(t, time.Since(start), longestSilence)
		require.Equal(t, 2, proxy.connections())
		require.Equal(t, []string{"a", "b"}, stored(t, b, 0))
		require.Equal(t, uint64(1), c.Metrics().Connection.GetStats().Reconnections)
	})
}

// TestHalfOpenWhileConsuming has the connection of a held fetch vanish.
func TestHalfOpenWhileConsuming(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		store(t, b, 1)
		link := switchable{silenced: 1}
		proxy := newFaultProxy(t, b.Dial, link.script)
		pc := faultConsumer(t, faultClient(t, proxy.dial))
		m, err := next(t, pc, time.Minute)
		require.NoError(t, err)
		require.Zero(t, m.Offset)

		link.off.Store(true)
		store(t, b, 1)
		start := time.Now()
		m, err = next(t, pc, time.Minute)
		require.NoError(t, err)
		require.Equal(t, int64(1), m.Offset)
		require.Less(t, time.Since(start), longestSilence)
	})
}

// TestHalfOpenWhileIdle has a connection vanish on which nothing happens. It is
// closed all the same, so that the next caller does not have to find out.
func TestHalfOpenWhileIdle(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var link switchable
		proxy := newFaultProxy(t, b.Dial, link.script)
		c := faultClient(t, proxy.dial)
		require.NoError(t, c.Ping(t.Context()))
		require.Equal(t, int64(1), c.Metrics().Connection.GetStats().ActiveConnections)
		link.off.Store(true)
		<-time.After(longestSilence)
		require.Zero(t, c.Metrics().Connection.GetStats().ActiveConnections)
		start := time.Now()
		require.NoError(t, c.Ping(t.Context()))
		require.Less(t, time.Since(start), time.Second)
	})
}

// TestHalfOpenOfOldBroker is the same with a broker of protocol v0, which takes one
// request at a time: behind a request that waits nothing can be asked, so it is the
// request's own time that ends the wait.
func TestHalfOpenOfOldBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var link switchable
		proxy := newFaultProxy(t, b.Dial, link.script)
		c := faultClient(t, proxy.dial, WithProtocol(ProtocolV0), WithRequestTimeout(20*time.Second))
		producer := faultProducer(t, c)
		_, _, err := producer.SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)

		link.off.Store(true)
		start := time.Now()
		_, offset, err := producer.SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
		require.Equal(t, int64(1), offset)
		require.Less(t, time.Since(start), 21*time.Second)

		// And idle.
		proxy.cutAll()
		synctest.Wait()
		require.Zero(t, c.Metrics().Connection.GetStats().ActiveConnections)
		link.silenced = proxy.connections()
		link.off.Store(false)
		_, _, err = producer.SendMessage(t.Context(), to0("c"))
		require.NoError(t, err)
		link.off.Store(true)
		<-time.After(longestSilence)
		require.Zero(t, c.Metrics().Connection.GetStats().ActiveConnections)
	})
}

// TestIdleConnectionStaysOpen holds that an hour of idleness costs a connection
// nothing but a sign of life now and then.
func TestIdleConnectionStaysOpen(t *testing.T) {
	for _, protocol := range []Protocol{ProtocolV1, ProtocolV0} {
		t.Run(protocol.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				link := switchable{silenced: -1}
				proxy := newFaultProxy(t, b.Dial, link.script)
				c := faultClient(t, proxy.dial, WithProtocol(protocol), WithMetadataMaxAge(24*time.Hour))
				producer := faultProducer(t, c)
				_, _, err := producer.SendMessage(t.Context(), to0("a"))
				require.NoError(t, err)
				before := link.counter.of(requestClusterInfo)
				<-time.After(time.Hour)
				pings := link.counter.of(requestClusterInfo) - before
				require.Greater(t, pings, int(time.Hour/(pingAfter+pingTimeout))-2)
				require.LessOrEqual(t, pings, int(time.Hour/pingAfter))
				_, _, err = producer.SendMessage(t.Context(), to0("b"))
				require.NoError(t, err)
				require.Equal(t, 1, proxy.connections())
			})
		})
	}
}

// TestBusyConnectionIsNotPinged holds that what comes anyway is sign of life enough.
func TestBusyConnectionIsNotPinged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		link := switchable{silenced: -1}
		proxy := newFaultProxy(t, b.Dial, link.script)
		c := faultClient(t, proxy.dial, WithMetadataMaxAge(24*time.Hour))
		producer := faultProducer(t, c)
		_, _, err := producer.SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		before := link.counter.of(requestClusterInfo)
		for range 200 {
			<-time.After(9 * time.Second)
			_, _, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
		}
		require.Equal(t, before, link.counter.of(requestClusterInfo))

		// Nor is the connection on which a fetch is held again and again.
		pc := faultConsumer(t, c)
		for range 201 {
			_, err := next(t, pc, time.Minute)
			require.NoError(t, err)
		}
		var held frameCounter
		proxy.mu.Lock()
		proxy.script = func(int) (up, down stream) { return held.tap(), nil }
		proxy.mu.Unlock()
		proxy.cutAll()
		<-time.After(10 * time.Minute)
		require.Greater(t, held.of(requestFetchBatch), 1000)
		require.Equal(t, 1, held.of(requestClusterInfo), "the hello alone")
	})
}

// TestSlowAnswerIsNotSilence has a fetch's answer arrive over a link so slow that it
// takes longer than a silent connection is given. Bytes that come are a sign of
// life, whether or not they complete a frame: a connection that was given up in the
// middle of a large frame made its successor begin that frame again, for ever.
func TestSlowAnswerIsNotSilence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		proxy := newFaultProxy(t, b.Dial, func(n int) (up, down stream) {
			if n == 0 {
				return nil, nil
			}
			return nil, dripping(4<<10, time.Second)
		})
		c := faultClient(t, proxy.dial)
		large := to0(strings.Repeat("x", 75_000)) // 25 s as base64
		_, _, err := faultProducer(t, c).SendMessage(t.Context(), large)
		require.NoError(t, err)
		m, err := next(t, faultConsumer(t, c), 10*time.Minute)
		require.NoError(t, err)
		require.Equal(t, large.Value, m.Value)
		require.Equal(t, 2, proxy.connections())
	})
}
