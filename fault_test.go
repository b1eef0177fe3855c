package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// faultTopic is the topic of these tests.
const faultTopic = "t"

// bubble runs a test under fake time. What would wait for ever ends it with the
// stacks of all goroutines, instead of letting fake time run on.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		stuck := time.AfterFunc(1000*time.Hour, func() { panic("stuck: 1000 hours of fake time have passed") })
		defer stuck.Stop()
		f(t)
	})
}

// faultBroker returns a quiet broker with the topic.
func faultBroker(t testing.TB, partitions int32, opts ...BrokerOption) *Broker {
	t.Helper()
	b, err := NewBroker(append([]BrokerOption{WithTopic(faultTopic, partitions), WithLogger(nil)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// faultClient returns a quiet client that reaches its brokers through dial.
func faultClient(t testing.TB, dial dialFunc, opts ...Option) *Client {
	t.Helper()
	c, err := New(append([]Option{WithBrokers(embeddedAddr), WithDialer(dial), WithLogger(nil)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func faultProducer(t testing.TB, c *Client, opts ...ProducerOption) *SyncProducer {
	t.Helper()
	p, err := c.SyncProducer(opts...)
	require.NoError(t, err)
	return p
}

func faultConsumer(t testing.TB, c *Client, opts ...ConsumerOption) *PartitionConsumer {
	t.Helper()
	pc, err := c.PartitionConsumer(faultTopic, 0, opts...)
	require.NoError(t, err)
	return pc
}

// to0 is a message for partition 0.
func to0(value string) *Message {
	m := NewMessage(faultTopic, []byte(value))
	m.Partition = 0
	return m
}

// stored reads a partition of a broker directly: values by offset.
func stored(t testing.TB, b *Broker, partition int32) []string {
	t.Helper()
	return storedFrom(t, b, partition, 0)
}

func highWaterMark(t testing.TB, b *Broker, partition int32) int64 {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	_, end := topic.partitions[partition].log.Bounds()
	return end
}

func storedFrom(t testing.TB, b *Broker, partition int32, from int64) []string {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	log := topic.partitions[partition].log
	var values []string
	for {
		at := from + int64(len(values))
		read, err := log.Read(t.Context(), at, 1<<20)
		require.NoError(t, err)
		if len(read.Batches) == 0 {
			return values
		}
		for rest := read.Batches; len(rest) > 0; {
			cut, r, err := parseBatch(rest)
			require.NoError(t, err)
			rest = r
			records := cut.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				require.Equal(t, from+int64(len(values)), m.Offset)
				values = append(values, string(m.Value))
			}
		}
		read.Release()
	}
}

// store puts messages "0", "1", ... into partition 0 of a broker directly.
func store(t testing.TB, b *Broker, n int) {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	for i := range n {
		m := Message{Value: fmt.Append(nil, i), Timestamp: 1}
		topic.partitions[0].log.Append(appendBatch(nil, &m), func(r AppendResult) { require.NoError(t, r.Err) })
	}
}

// requireFault fails unless err is of a connection, or of a wait that ended.
func requireFault(t testing.TB, err error) {
	t.Helper()
	var conn *ConnError
	var wait *waitError
	require.True(t, errors.As(err, &conn) || errors.As(err, &wait), "%T: %v", err, err)
}

// next returns the next message of a consumer, within fake time.
func next(t testing.TB, pc *PartitionConsumer, limit time.Duration) (*Message, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return pc.receive(ctx)
}

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
			pc := faultConsumer(t, c, WithFetchMaxMessages(2))
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
			from := []int64{highWaterMark(t, b, 0), highWaterMark(t, b, 1)}
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
	producer, pc := faultProducer(t, c), faultConsumer(t, c, WithFetchMaxMessages(5))
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
		require.Greater(t, held.of(requestFetch), 1000)
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

// TestLateAnswer has a caller give up before its answer comes. It is free at once;
// the answer, when it comes, is nobody else's.
func TestLateAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var produced atomic.Int64
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind != requestProduce {
					return f.pass()
				}
				if produced.Add(1)%2 == 1 {
					return f.late(5 * time.Second)
				}
				return f.pass()
			})
		})
		c := faultClient(t, proxy.dial)
		producer := faultProducer(t, c)
		for i := range int64(20) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, _, err := producer.SendMessage(ctx, to0(fmt.Sprint(2*i)))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			requireFault(t, err)
			require.Equal(t, time.Second, time.Since(start))
			cancel()
			_, offset, err := producer.SendMessage(t.Context(), to0(fmt.Sprint(2*i+1)))
			require.NoError(t, err)
			require.Equal(t, 2*i+1, offset)
			require.Equal(t, time.Second, time.Since(start))
		}
		<-time.After(time.Minute)
		require.Equal(t, 1, proxy.connections())
		for i, v := range stored(t, b, 0) {
			require.Equal(t, fmt.Sprint(i), v)
		}
		// All that was given up has been forgotten.
		conn := onlyConn(t, c)
		conn.mu.Lock()
		defer conn.mu.Unlock()
		require.Empty(t, conn.inflight)
		require.Zero(t, conn.abandoned)
	})
}

// onlyConn returns the one connection of a client.
func onlyConn(t testing.TB, c *Client) *conn {
	t.Helper()
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	var all []*conn
	for _, b := range c.pool.brokers {
		all = append(all, b.conns...)
	}
	require.Len(t, all, 1)
	return all[0]
}

// TestManyGiveUp has callers give up at every moment of a call, while others do not:
// nobody gets another's answer.
func TestManyGiveUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict { return f.late(time.Duration(1+f.n%7) * time.Millisecond) })
		})
		producer := faultProducer(t, faultClient(t, proxy.dial))
		require.NoError(t, producer.client.Ping(t.Context()))
		var running sync.WaitGroup
		var gaveUp, stayed atomic.Int64
		for i := range 40 {
			running.Go(func() {
				for j := range 25 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if j%2 == 0 {
						cancel()
						ctx, cancel = context.WithTimeout(t.Context(), time.Duration(1+(i*j)%9)*time.Millisecond)
					}
					value := fmt.Sprint(i, "/", j)
					_, offset, err := producer.SendMessage(ctx, to0(value))
					cancel()
					switch {
					case err == nil:
						stayed.Add(1)
						if got := storedFrom(t, b, 0, offset)[0]; got != value {
							t.Errorf("%s was told the offset of %s", value, got)
						}
					case errors.Is(err, context.DeadlineExceeded):
						gaveUp.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		running.Wait()
		require.GreaterOrEqual(t, stayed.Load(), int64(40*12))
		require.Greater(t, gaveUp.Load(), int64(100))
	})
}

// damages are what can happen to an answer.
func damages(t testing.TB) map[string]func(proxiedFrame) verdict {
	plain := func(text string) func(proxiedFrame) verdict {
		return func(f proxiedFrame) verdict { return f.by(text) }
	}
	edit := func(how func(map[string]any)) func(proxiedFrame) verdict {
		return func(f proxiedFrame) verdict { return f.edited(t, how) }
	}
	return map[string]func(proxiedFrame) verdict{
		"dropped":              proxiedFrame.drop,
		"twice":                proxiedFrame.twice,
		"truncated":            proxiedFrame.truncated,
		"delayed":              func(f proxiedFrame) verdict { return f.delayed(3 * time.Second) },
		"late":                 func(f proxiedFrame) verdict { return f.late(time.Minute) },
		"garbage":              plain("\x00\xff\x17\x03\x03"),
		"garbage with a line":  plain("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"brackets only":        plain("{{{{\n"),
		"object of garbage":    plain("{\"request_id\":nonsense}\n"),
		"no object":            plain("[1,2,3]\n"),
		"null":                 plain("null\n"),
		"number":               plain("17\n"),
		"text":                 plain("\"request_id\"\n"),
		"empty object":         plain("{}\n"),
		"deep":                 plain(strings.Repeat("[", 100) + "\n"),
		"success of nobody's":  plain("{\"success\":true,\"payload\":{}}\n"),
		"wrong ID":             edit(func(a map[string]any) { a["request_id"] = "7b0a9c52-4f1e-4d8a-b3c6-000000000001" }),
		"short ID":             edit(func(a map[string]any) { a["request_id"] = "7" }),
		"next ID":              edit(func(a map[string]any) { a["request_id"] = nextID(a["request_id"]) }),
		"ID is a number":       edit(func(a map[string]any) { a["request_id"] = 7 }),
		"no ID":                edit(func(a map[string]any) { delete(a, "request_id") }),
		"ID only":              edit(func(a map[string]any) { delete(a, "success"); delete(a, "payload"); delete(a, "error") }),
		"no payload":           edit(func(a map[string]any) { delete(a, "payload") }),
		"empty payload":        edit(func(a map[string]any) { a["payload"] = map[string]any{} }),
		"payload is a list":    edit(func(a map[string]any) { a["payload"] = []any{1} }),
		"payload is a number":  edit(func(a map[string]any) { a["payload"] = 1 }),
		"payload is no base64": edit(func(a map[string]any) { a["payload"] = "!" }),
		"other form":           edit(func(a map[string]any) { a["\x00text"] = true }),
		"success is text":      edit(func(a map[string]any) { a["success"] = "yes" }),
		"refused, no reason":   edit(func(a map[string]any) { a["success"] = false }),
		"unknown code":         edit(func(a map[string]any) { a["success"], a["error_code"] = false, "NO_SUCH_CODE" }),
		"unknown fields":       edit(func(a map[string]any) { a["extra"] = map[string]any{"a": []any{1}} }),
	}
}

// nextID is the ID of the request behind.
func nextID(id any) string {
	s := id.(string)
	return s[:35] + string("123456789abcdef0"[strings.IndexByte("0123456789abcdef", s[35])])
}

// TestDamagedAnswers has the first answer of a kind, or every one, come damaged. What
// is sent is stored where the result says, or the result is an error; what is
// consumed comes in order; nobody waits for ever, and nobody asks without a pause.
func TestDamagedAnswers(t *testing.T) {
	t.Parallel()
	kinds := []requestType{requestClusterInfo, requestMetadata, requestProduce, requestFetch, requestListOffsets}
	all := damages(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		damage := all[name]
		bubble(t, func(t *testing.T) {
			for _, kind := range kinds {
				if kind == requestProduce && name == "empty payload" {
					continue // It reads as partition 0, offset 0.
				}
				damagedOnce(t, fmt.Sprint("first ", kind, " ", name), kind, damage)
				damagedAlways(t, fmt.Sprint("every ", kind, " ", name), kind, damage)
			}
		})
	}
}

// damagedOnce damages the first answer of a kind. Everything works in the end, but
// for a send or a consumer that the damage itself has told that it failed.
func damagedOnce(t *testing.T, name string, kind requestType, damage func(proxiedFrame) verdict) {
	b := faultBroker(t, 1)
	defer b.Close()
	store(t, b, 3)
	var seen atomic.Bool
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return requests(nil), answers(func(f proxiedFrame) verdict {
			if f.kind == kind && seen.CompareAndSwap(false, true) {
				return damage(f)
			}
			return f.pass()
		})
	})
	defer proxy.stop()
	c := faultClient(t, proxy.dial, WithRequestTimeout(5*time.Second))
	defer c.Close()
	pc := faultConsumer(t, c)
	for i := range int64(3) {
		m, err := next(t, pc, time.Minute)
		if kind == requestFetch || kind == requestListOffsets {
			if err != nil && requireEnded(t, pc, name) {
				break
			}
		}
		require.NoError(t, err, name)
		require.Equal(t, i, m.Offset, name)
		require.Equal(t, fmt.Sprint(i), string(m.Value), name)
	}
	producer := faultProducer(t, c)
	_, offset, err := producer.SendMessage(t.Context(), to0(name))
	if err != nil {
		require.Equal(t, requestProduce, kind, "%s: %v", name, err)
		_, offset, err = producer.SendMessage(t.Context(), to0(name))
	}
	require.NoError(t, err, name)
	require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
}

// requireEnded fails unless the consumer has ended with an error that it names.
func requireEnded(t *testing.T, pc *PartitionConsumer, name string) bool {
	t.Helper()
	err := pc.fetch.ended()
	var ce *ConsumerError
	require.ErrorAs(t, err, &ce, name)
	return true
}

// damagedAlways damages every answer of a kind.
func damagedAlways(t *testing.T, name string, kind requestType, damage func(proxiedFrame) verdict) {
	b := faultBroker(t, 1)
	defer b.Close()
	store(t, b, 3)
	var count frameCounter
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return count.tap(), answers(func(f proxiedFrame) verdict {
			if f.kind == kind {
				return damage(f)
			}
			return f.pass()
		})
	})
	defer proxy.stop()
	c := faultClient(t, proxy.dial, WithRequestTimeout(5*time.Second))
	defer c.Close()
	const limit = 20 * time.Second
	pc := faultConsumer(t, c, WithFetchMaxWait(time.Second))
	start := time.Now()
	for i := int64(0); ; i++ {
		m, err := next(t, pc, limit)
		if err != nil {
			break // In time, as the deadline below says.
		}
		require.Equal(t, i, m.Offset, name)
		require.Equal(t, fmt.Sprint(i), string(m.Value), name)
	}
	_, offset, err := faultProducer(t, c, WithDeliveryTimeout(limit)).SendMessage(t.Context(), to0(name))
	if err == nil {
		require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
	}
	_ = pc.Close()
	require.LessOrEqual(t, time.Since(start), 3*limit, name)
	require.Less(t, count.total(), 1000, name)
}

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

		// The connection is good: it answers signs of life. Nothing is wrong with
		// it but the requests themselves.
		require.Equal(t, 1, b.dialed())

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
			if i%100 == 0 && b.dialed() == 1 {
				require.LessOrEqual(t, onlyConn(t, c).load(), 2*maxAbandoned)
			}
		}
		require.GreaterOrEqual(t, b.dialed(), 2)
	})
}

// TestHostileBroker has a broker lie in every field of every answer: each in turn
// holds a wrong value, or none. Nothing panics, nobody waits for longer than said,
// nobody asks again and again without a pause, and no message is delivered that was
// not asked for.
func TestHostileBroker(t *testing.T) {
	kinds := []requestType{requestClusterInfo, requestMetadata, requestProduce, requestFetch, requestListOffsets}
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		for _, kind := range kinds {
			if form == ProtocolV0 && kind == requestListOffsets {
				continue // It has none.
			}
			t.Run(fmt.Sprintf("%v %v", form, kind), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) {
					n := 0
					for how, mutant := range mutants(honestAnswer(t, form, kind)) {
						if n++; form == ProtocolV0 && n%5 != 0 {
							continue // The payloads are the same; a sample will do.
						}
						lieTo(t, fmt.Sprint(form, " ", kind, how), form, kind, mutant.(map[string]any))
					}
				})
			})
		}
	}
}

// hostileBroker returns a broker with three messages.
func hostileBroker(t testing.TB, form Protocol) *fakeBroker {
	log := newFakeLog(faultTopic, 2)
	log.fill(0, 3)
	log.setLeader(0, "fake")
	b := newFakeBroker(t, log)
	b.nodes = map[string]string{"fake": b.addr, "other": "other.invalid:1"}
	b.v0Only = form == ProtocolV0
	if b.v0Only {
		b.features = nil
	}
	return b
}

// honestAnswer is what the broker says when it does not lie.
func honestAnswer(t *testing.T, form Protocol, kind requestType) map[string]any {
	b := hostileBroker(t, form)
	defer b.stop()
	payload := map[requestType]any{
		requestMetadata:    &metadataRequest{Topics: []string{faultTopic}},
		requestProduce:     &produceRequest{Topic: faultTopic, Partition: 1},
		requestFetch:       &fetchRequest{Topic: faultTopic, MaxMessages: 10},
		requestListOffsets: &listOffsetsRequest{Topic: faultTopic, Partitions: []int32{0}},
	}[kind]
	text, err := appendPayload(nil, payload)
	require.NoError(t, err)
	r := &fakeRequest{broker: b, wireRequest: wireRequest{id: "?", kind: kind, form: form, payload: text}}
	return decodeTree(t, r.honest().frames[0])
}

// lieTo works with a broker that gives one false answer to every request of a kind.
func lieTo(t *testing.T, name string, form Protocol, kind requestType, lie map[string]any) {
	b := hostileBroker(t, form)
	defer b.stop()
	b.script = func(r *fakeRequest) *fakeAnswer {
		if r.kind != kind {
			return nil
		}
		answer := maps.Clone(lie)
		if answer["request_id"] == "?" {
			answer["request_id"] = r.id
		}
		return &fakeAnswer{frames: [][]byte{encodeTree(t, answer)}}
	}
	c := faultClient(t, dialFakes(b), WithBrokers(b.addr), WithRequestTimeout(time.Second))
	defer c.Close()
	const limit = 2 * time.Second
	start := time.Now()
	pc := faultConsumer(t, c)
	before := int64(-1)
	for range 200 { // It may be made to believe that there is no end.
		m, err := next(t, pc, limit)
		if err != nil {
			require.NotErrorIs(t, err, context.Canceled)
			break
		}
		require.Equal(t, faultTopic, m.Topic, name)
		require.Zero(t, m.Partition, name)
		require.Greater(t, m.Offset, before, name)
		before = m.Offset
	}
	require.NoError(t, pc.Close())

	m := NewMessage(faultTopic, []byte("v"))
	m.Partition = 1
	r, err := faultProducer(t, c, WithDeliveryTimeout(limit)).Send(t.Context(), m)
	if err == nil {
		require.Equal(t, int32(1), r.Partition, name)
		require.GreaterOrEqual(t, r.Offset, int64(0), name)
	}
	_, _ = c.Admin().GetMetadata(t.Context(), nil)
	_, _ = c.Admin().ListOffsets(t.Context(), faultTopic, time.Now())
	_, _ = c.Admin().ClusterInfo(t.Context())
	require.NoError(t, c.Close())
	took := time.Since(start)
	require.LessOrEqual(t, took, time.Minute, name)
	require.Less(t, b.askedTotal(), 100+int(50*took.Seconds()), name)
}

// fetchAnswer is an answer to r with messages of these offsets.
func fetchAnswer(r *fakeRequest, offsets ...int64) *fakeAnswer {
	messages := []any{}
	for _, offset := range offsets {
		messages = append(messages, map[string]any{"topic": faultTopic, "partition": 0, "offset": offset})
	}
	return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "messages": messages})
}

// TestHostileFetches has a broker give answers to fetches that are false in more than
// one field or from one to the next.
func TestHostileFetches(t *testing.T) {
	offsetOf := func(r *fakeRequest) int64 {
		var q fetchRequest
		r.into(&q)
		return q.Offset
	}
	var turn atomic.Int64
	cases := []struct {
		name    string
		v0      bool
		opts    []ConsumerOption
		offsets func(r *fakeRequest) *fakeAnswer // what ListOffsets is answered
		script  func(r *fakeRequest) *fakeAnswer // what a fetch is
		rate    int                              // requests a second, at most
		want    []int64                          // what is delivered first
		ends    bool                             // the consumer does
	}{
		{
			name: "out of range, wherever", rate: 10,
			offsets: func(r *fakeRequest) *fakeAnswer {
				return r.ok(map[string]any{"topic": faultTopic, "offsets": []any{map[string]any{"partition": 0, "offset": turn.Add(1)}}})
			},
			script: func(r *fakeRequest) *fakeAnswer { return r.refuse("OFFSET_OUT_OF_RANGE", "no") },
		},
		{
			name: "the same messages again", rate: 15, want: []int64{0, 1, 2},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 1, 2) },
		},
		{
			name: "messages from the start, however far", rate: 15, want: []int64{0, 1, 2, 5},
			script: func(r *fakeRequest) *fakeAnswer {
				if offsetOf(r) > 3 {
					return fetchAnswer(r, 0, 1, 2, 3)
				}
				return fetchAnswer(r, 0, 1, offsetOf(r)+2)
			},
		},
		{
			name: "the last offset of all", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, math.MaxInt64) },
		},
		{
			name: "unordered", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 2, 1) },
		},
		{
			name: "twice the same", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 0) },
		},
		{
			name: "gaps", rate: 15, want: []int64{5, 9},
			script: func(r *fakeRequest) *fakeAnswer {
				if offsetOf(r) > 9 {
					return fetchAnswer(r)
				}
				return fetchAnswer(r, 5, 9)
			},
		},
		{
			name: "never held", rate: 15,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r) },
		},
		{
			name: "never held, and not asked to", rate: 15, opts: []ConsumerOption{WithFetchMaxWait(0)},
			script: func(r *fakeRequest) *fakeAnswer {
				a := fetchAnswer(r)
				a.after = 3 * time.Millisecond
				return a
			},
		},
		{
			name: "never held, but slow", rate: 15, opts: []ConsumerOption{WithFetchMaxWait(2 * time.Millisecond)},
			script: func(r *fakeRequest) *fakeAnswer {
				a := fetchAnswer(r)
				a.after = 3 * time.Millisecond
				return a
			},
		},
		{
			name: "a log without end", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, max(offsetOf(r), 0)) },
		},
		{
			name: "the same end, wherever", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 7) },
		},
		{
			name: "an end that moves away", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, math.MaxInt64) },
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				form := ProtocolV1
				if tc.v0 {
					form = ProtocolV0
				}
				b := hostileBroker(t, form)
				limit := 300 + 30*tc.rate
				b.script = func(r *fakeRequest) *fakeAnswer {
					switch {
					case b.askedTotal() > limit:
						return r.silence() // It is a loop without a pause, as is seen below.
					case r.kind == requestFetch:
						return tc.script(r)
					case r.kind == requestListOffsets && tc.offsets != nil:
						return tc.offsets(r)
					}
					return nil
				}
				c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
				pc := faultConsumer(t, c, tc.opts...)
				for _, offset := range tc.want {
					m, err := next(t, pc, time.Minute)
					require.NoError(t, err)
					require.Equal(t, offset, m.Offset)
				}
				_, err := next(t, pc, 30*time.Second)
				require.Error(t, err)
				require.Less(t, b.askedTotal(), limit)
				if tc.ends {
					var ce *ConsumerError
					require.ErrorAs(t, pc.fetch.ended(), &ce)
				} else {
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
			})
		})
	}
}

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
