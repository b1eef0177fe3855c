package robust

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cutUp and cutDown are scripts that cut one connection, and leave others alone.
func cutUp(conn int, n int64) func(int) (stream, stream) {
	return func(i int) (up, down stream) {
		if i == conn {
			up = cutAfter(n)
		}
		return up, nil
	}
}

func cutDown(conn int, n int64) func(int) (stream, stream) {
	return func(i int) (up, down stream) {
		if i == conn {
			down = cutAfter(n)
		}
		return nil, down
	}
}

func noFault(int) (up, down stream) { return nil, nil }

// cuts gives the scripts that cut a connection after so many bytes of its
// conversation, which was as long as it was in link: after every step-th, the first
// and the last included.
func cuts(link *proxyLink, conn int, step int64, each func(name string, script func(int) (stream, stream))) {
	for n := int64(0); n < link.up.passed.Load()+step; n += step {
		each(fmt.Sprintf("connection %d cut after %d bytes up", conn, n), cutUp(conn, n))
	}
	for n := int64(0); n < link.down.passed.Load()+step; n += step {
		each(fmt.Sprintf("connection %d cut after %d bytes down", conn, n), cutDown(conn, n))
	}
}

// TestCutWhileSending cuts the connection at every byte of hello, metadata and
// produce. The message is sent again on another, and is where the result says.
func TestCutWhileSending(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		send := func(name string, script func(int) (stream, stream)) *faultProxy {
			proxy := newFaultProxy(t, b.Dial, script)
			defer proxy.stop()
			c := faultClient(t, proxy.dial)
			defer c.Close()
			start := time.Now()
			partition, offset, err := faultProducer(t, c).SendMessage(t.Context(), to0(name))
			require.NoError(t, err, name)
			require.Less(t, time.Since(start), time.Second, name)
			require.Zero(t, partition)
			require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
			return proxy
		}
		link := send("no fault", noFault).link(0)
		require.Greater(t, link.up.passed.Load(), int64(400))
		sent := 1
		cuts(link, 0, 1, func(name string, script func(int) (stream, stream)) {
			send(name, script)
			sent++
		})
		times := make(map[string]int)
		for _, v := range stored(t, b, 0) {
			times[v]++
			require.LessOrEqual(t, times[v], 2, v)
		}
		require.Len(t, times, sent)
	})
}

// TestEveryConnectionCut cuts every connection early, so that no message gets
// through. The send ends in time with an error that says why; what it reports as
// stored is stored.
func TestEveryConnectionCut(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		const limit = time.Second
		send := func(name string, script func(int) (stream, stream), others ...Option) error {
			proxy := newFaultProxy(t, b.Dial, script)
			defer proxy.stop()
			c := faultClient(t, proxy.dial, others...)
			defer c.Close()
			start := time.Now()
			_, offset, err := faultProducer(t, c, WithDeliveryTimeout(limit)).SendMessage(t.Context(), to0(name))
			require.LessOrEqual(t, time.Since(start), limit, name)
			if err != nil {
				requireFault(t, err)
				require.Equal(t, offsetNone, offset)
			} else {
				require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
			}
			return err
		}
		failed := 0
		for n := int64(0); n < 1200; n += 13 {
			for dir, script := range []func(int) (stream, stream){
				func(int) (stream, stream) { return cutAfter(n), nil },
				func(int) (stream, stream) { return nil, cutAfter(n) },
			} {
				if send(fmt.Sprintf("direction %d cut after %d bytes", dir, n), script) != nil {
					failed++
				}
			}
		}
		require.Greater(t, failed, 60)
	})
}

// TestCutWhileConsuming cuts, at every byte, the connection on which a consumer
// fetches and the one on which it asks where to. Every message is delivered once, in
// order.
func TestCutWhileConsuming(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const messages = 3
		b := faultBroker(t, 1)
		store(t, b, messages)
		consume := func(name string, script func(int) (stream, stream)) *faultProxy {
			proxy := newFaultProxy(t, b.Dial, script)
			defer proxy.stop()
			c := faultClient(t, proxy.dial)
			defer c.Close()
			pc := faultConsumer(t, c, WithFetchMaxBytes(170))
			for i := range int64(messages) {
				m, err := next(t, pc, 10*time.Second)
				require.NoError(t, err, name)
				require.Equal(t, i, m.Offset, name)
				require.Equal(t, fmt.Sprint(i), string(m.Value), name)
			}
			_, err := next(t, pc, 100*time.Millisecond)
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
			require.Equal(t, int64(messages), pc.Offset())
			return proxy
		}
		whole := consume("no fault", noFault)
		for conn := range whole.connections() {
			step := int64(1)
			if conn == 0 {
				step = 8 // It is much like the one on which a producer sends.
			}
			cuts(whole.link(conn), conn, step, func(name string, script func(int) (stream, stream)) { consume(name, script) })
		}
	})
}

// TestCutWhilePipelining cuts a connection on which many messages are under way to
// two partitions. None is lost, each is where its result says, and those of one
// partition stand in the order in which they were given; some may stand there twice.
func TestCutWhilePipelining(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const each = 10
		b := faultBroker(t, 2)
		round := 0
		send := func(name string, script func(int) (stream, stream)) *faultProxy {
			proxy := newFaultProxy(t, b.Dial, script)
			defer proxy.stop()
			c := faultClient(t, proxy.dial)
			defer c.Close()
			var ms []*Message
			for i := range each {
				for partition := range int32(2) {
					m := NewMessage(faultTopic, fmt.Appendf(nil, "%d/%d", round, i))
					m.Partition = partition
					ms = append(ms, m)
				}
			}
			from := []int64{highWaterMark(t, b, faultTopic, 0), highWaterMark(t, b, faultTopic, 1)}
			require.NoError(t, faultProducer(t, c).SendMessages(t.Context(), ms), name)
			for partition := range int32(2) {
				values := storedFrom(t, b, partition, from[partition])
				// What an earlier connection had left in its buffers may come late.
				mine := fmt.Sprintf("%d/", round)
				var first []string
				for _, v := range values {
					if strings.HasPrefix(v, mine) && !slices.Contains(first, v) {
						first = append(first, v)
					}
				}
				require.Len(t, first, each, name)
				for i, v := range first {
					require.Equal(t, fmt.Sprintf("%d/%d", round, i), v, name)
				}
				for _, m := range ms {
					if m.Partition == partition {
						require.Equal(t, string(m.Value), values[m.Offset-from[partition]], name)
					}
				}
			}
			round++
			return proxy
		}
		link := send("no fault", noFault).link(0)
		cuts(link, 0, 29, func(name string, script func(int) (stream, stream)) { send(name, script) })
	})
}

// TestCutOverTCP does some of the above on sockets: a producer and a consumer work
// through connections that are cut again and again.
func TestCutOverTCP(t *testing.T) {
	b := faultBroker(t, 1)
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	cutting := func(i int) (up, down stream) {
		// Enough for the hello and a few requests more each time.
		if i%2 == 0 {
			return cutAfter(int64(600 + 97*i)), nil
		}
		return nil, cutAfter(int64(1200 + 97*i))
	}
	proxy := newFaultProxy(t, new(net.Dialer).DialContext, cutting)
	c := faultClient(t, new(net.Dialer).DialContext, WithBrokers(proxy.listen(t, addr.String())))
	producer, pc := faultProducer(t, c), faultConsumer(t, c, WithFetchMaxBytes(450))
	const messages = 60
	acknowledged := make(map[int64]string)
	for i := range messages {
		value := fmt.Sprint("message ", i)
		_, offset, err := producer.SendMessage(t.Context(), to0(value))
		require.NoError(t, err)
		acknowledged[offset] = value
	}
	all := stored(t, b, 0)
	for i, value := range all {
		m, err := next(t, pc, time.Minute)
		require.NoError(t, err)
		require.Equal(t, int64(i), m.Offset)
		require.Equal(t, value, string(m.Value))
		if want, ok := acknowledged[m.Offset]; ok {
			require.Equal(t, want, value)
			delete(acknowledged, m.Offset)
		}
	}
	require.Empty(t, acknowledged)
	require.Greater(t, proxy.connections(), 5)
}
