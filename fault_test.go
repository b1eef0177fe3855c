package robust

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
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

// hostileBroker returns a broker with a few messages.
func hostileBroker(t testing.TB, form Protocol) *fakeBroker {
	log := newFakeLog(faultTopic, 2)
	log.fill(0, 2)
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
	pc := faultConsumer(t, c, WithPollInterval(500*time.Millisecond))
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
	require.Less(t, b.askedTotal(), 100+int(20*took.Seconds()), name)
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

// cluster returns brokers that share one log, at a.invalid:1, b.invalid:1 and so on,
// and what ClusterInfo lists of them.
func cluster(t testing.TB, n, partitions int) []*fakeBroker {
	log := newFakeLog(faultTopic, partitions)
	nodes := make(map[string]string)
	brokers := make([]*fakeBroker, n)
	for i := range brokers {
		b := newFakeBroker(t, log)
		b.id = string(rune('a' + i))
		b.addr = b.id + ".invalid:1"
		b.nodes = nodes
		brokers[i] = b
		nodes[b.id] = b.addr
	}
	return brokers
}

func addrsOf(brokers []*fakeBroker) []string {
	addrs := make([]string, len(brokers))
	for i, b := range brokers {
		addrs[i] = b.addr
	}
	return addrs
}

// TestNextBrokerIsTried has all brokers but one be down: refusing, or black holes that
// a dial never gets out of. The one that is up is found soon, by everybody and not
// only the first, and all of them go on there.
func TestNextBrokerIsTried(t *testing.T) {
	for _, how := range []string{"refused", "black hole"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 3, 1)
				up := brokers[2]
				dial := dialFakes(brokers...)
				if how == "black hole" {
					dial = dialFakes(up)
				} else {
					brokers[0].setDown(true)
					brokers[1].setDown(true)
				}
				c := faultClient(t, dial, WithBrokers(addrsOf(brokers)...))
				producer := faultProducer(t, c)
				start := time.Now()
				_, _, err := producer.SendMessage(t.Context(), to0("a"))
				require.NoError(t, err)
				require.LessOrEqual(t, time.Since(start), 2*brokerPatience+time.Second)
				// What it has cost once is not to be paid by every call.
				start = time.Now()
				for range 50 {
					_, _, err := producer.SendMessage(t.Context(), to0("a"))
					require.NoError(t, err)
				}
				require.LessOrEqual(t, time.Since(start), 2*brokerPatience+time.Second)
				pc := faultConsumer(t, c)
				for i := range int64(51) {
					m, err := next(t, pc, time.Minute)
					require.NoError(t, err)
					require.Equal(t, i, m.Offset)
				}
				require.LessOrEqual(t, time.Since(start), 30*time.Second)
			})
		})
	}
}

// TestNoBroker has every broker be down, in either way: calls end in time, saying so.
func TestNoBroker(t *testing.T) {
	for _, how := range []string{"refused", "black hole"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 2, 1)
				dial := dialFakes()
				if how == "refused" {
					brokers[0].setDown(true)
					brokers[1].setDown(true)
					dial = dialFakes(brokers...)
				}
				c := faultClient(t, dial, WithBrokers(addrsOf(brokers)...))
				start := time.Now()
				_, _, err := faultProducer(t, c, WithDeliveryTimeout(20*time.Second)).SendMessage(t.Context(), to0("a"))
				require.ErrorIs(t, err, ErrNoBroker)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				requireFault(t, err)
				require.LessOrEqual(t, time.Since(start), 20*time.Second)
				require.Greater(t, time.Since(start), 18*time.Second)

				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start = time.Now()
				err = c.Ping(ctx)
				require.Error(t, err)
				requireFault(t, err)
				require.LessOrEqual(t, time.Since(start), time.Second)

				pc := faultConsumer(t, c)
				_, err = next(t, pc, time.Minute)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, <-pc.Errors(), ErrNoBroker)
				require.Contains(t, pc.Status().String(), "waiting for broker")
			})
		})
	}
}

// TestBrokerComesBack has the only broker be away for a while: what waits goes on when
// it is there again, soon.
func TestBrokerComesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		producer, pc := faultProducer(t, c), faultConsumer(t, c)
		for i, away := range []time.Duration{time.Millisecond, time.Second, 30 * time.Second} {
			b.setDown(true)
			back := time.Now().Add(away)
			time.AfterFunc(away, func() { b.setDown(false) })
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, int64(i), offset)
			// Two waits of at most 600 ms: for the next dial, and for the next try.
			require.Less(t, time.Since(back), 1500*time.Millisecond)
			m, err := next(t, pc, time.Minute)
			require.NoError(t, err)
			require.Equal(t, int64(i), m.Offset)
			require.Less(t, time.Since(back), 3*time.Second)
		}
	})
}

// TestRoundRobin spreads requests that any broker can serve evenly.
func TestRoundRobin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 3, 1)
		c := faultClient(t, dialFakes(brokers...), WithBrokers(addrsOf(brokers)...))
		for range 30 {
			_, err := c.Admin().GetMetadata(t.Context(), nil)
			require.NoError(t, err)
		}
		for _, b := range brokers {
			require.Len(t, b.asked(requestMetadata), 10)
		}
	})
}

// TestLeaderRouting sends and fetches at the broker that leads the partition, which
// metadata names by its ID or by its address, and asks nobody else.
func TestLeaderRouting(t *testing.T) {
	for _, named := range []string{"by ID", "by address"} {
		t.Run(named, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 3, 3)
				for i, b := range brokers {
					name := b.id
					if named == "by address" {
						name = b.addr
					}
					b.log.setLeader(int32(i), name)
				}
				// One seed is enough: the others are found through it.
				c := faultClient(t, dialFakes(brokers...), WithBrokers(brokers[0].addr))
				producer := faultProducer(t, c)
				var ms []*Message
				for i := range 30 {
					m := NewMessage(faultTopic, fmt.Append(nil, i))
					m.Partition = int32(i % 3)
					if i < 15 {
						_, _, err := producer.SendMessage(t.Context(), m)
						require.NoError(t, err)
					} else {
						ms = append(ms, m)
					}
				}
				require.NoError(t, producer.SendMessages(t.Context(), ms))
				for partition := range int32(3) {
					require.Len(t, brokers[partition].asked(requestProduce), 10)
					pc, err := c.PartitionConsumer(faultTopic, partition, WithStartOffset(0))
					require.NoError(t, err)
					for i := range int64(10) {
						m, err := next(t, pc, time.Minute)
						require.NoError(t, err)
						require.Equal(t, i, m.Offset)
					}
					require.NoError(t, pc.Close())
				}
				for partition, b := range brokers {
					for _, r := range b.asked(requestFetch) {
						var q fetchRequest
						r.into(&q)
						require.Equal(t, int32(partition), q.Partition)
					}
				}
			})
		})
	}
}

// TestLeaderMoves has the leadership of a partition move while a producer and a
// consumer work. The refusal of the old leader has the new one looked up; nothing is
// lost or read twice.
func TestLeaderMoves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 3, 1)
		log := brokers[0].log
		log.setLeader(0, "a")
		c := faultClient(t, dialFakes(brokers...), WithBrokers(addrsOf(brokers)...))
		producer, pc := faultProducer(t, c), faultConsumer(t, c)
		for i := range int64(30) {
			leader := brokers[i%3]
			log.setLeader(0, leader.id)
			start := time.Now()
			before := len(leader.asked(requestProduce))
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, i, offset)
			require.Less(t, time.Since(start), time.Second)
			require.Len(t, leader.asked(requestProduce), before+1)
			m, err := next(t, pc, time.Minute)
			require.NoError(t, err)
			require.Equal(t, i, m.Offset)
		}
		// Pipelined messages find the new leader too, and keep their order.
		log.setLeader(0, "b")
		ms := make([]*Message, 50)
		for i := range ms {
			ms[i] = to0(fmt.Sprint(i))
		}
		require.NoError(t, producer.SendMessages(t.Context(), ms))
		for i, m := range ms {
			require.Equal(t, int64(30+i), m.Offset)
		}
	})
}

// TestNobodyLeads has every broker refuse to be the leader: the refusal is returned
// after the retries, each of which has asked for metadata anew.
func TestNobodyLeads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		b.log.setLeader(0, "nobody")
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		_, _, err := faultProducer(t, c, WithRetries(4)).SendMessage(t.Context(), to0("a"))
		require.ErrorIs(t, err, ErrNotLeader)
		require.Len(t, b.asked(requestProduce), 5)
		require.Len(t, b.asked(requestMetadata), 5)
		pc := faultConsumer(t, c, WithStartOffset(0))
		_, err = next(t, pc, 20*time.Second)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, <-pc.Errors(), ErrNotLeader)
		require.Less(t, b.askedTotal(), 150)
	})
}

// TestAdvertisedAddressCannotBeReached has the leader be named with an address that
// leads nowhere, as behind a mapped port. It is reached at the seed's address, at
// once, and again at once when that connection has broken: waiting for the address
// that leads nowhere cost 5 s after every broken connection.
func TestAdvertisedAddressCannotBeReached(t *testing.T) {
	for _, named := range []string{"by ID", "by address", "by ID, and the broker does not say which one it is"} {
		t.Run(named, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := cluster(t, 1, 1)[0]
				seed := b.addr
				b.nodes["a"] = "inside.invalid:1"
				b.log.setLeader(0, "a")
				known := named == "by ID"
				switch named {
				case "by address":
					b.log.setLeader(0, "inside.invalid:1")
					b.script = func(*fakeRequest) *fakeAnswer { b.addr = "inside.invalid:1"; return nil }
				case "by ID":
				default:
					b.features = nil
				}
				dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr == seed {
						return b.dial(ctx, network, addr)
					}
					<-ctx.Done()
					return nil, ctx.Err()
				}
				c := faultClient(t, dial, WithBrokers(seed))
				producer := faultProducer(t, c)
				for i := range int64(5) {
					start := time.Now()
					_, offset, err := producer.SendMessage(t.Context(), to0("a"))
					require.NoError(t, err)
					require.Equal(t, i, offset)
					if known || i > 0 {
						require.Less(t, time.Since(start), time.Second, "message %d", i)
					} else {
						require.LessOrEqual(t, time.Since(start), brokerPatience+time.Second)
					}
					b.setDown(true)
					b.setDown(false)
				}
			})
		})
	}
}

// TestConnectionDiesAtOnce has a connection be lost at once while another to the same
// broker could not be opened a moment ago. What is reported is a failure with a cause.
func TestConnectionDiesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		var dials atomic.Int64
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-time.After(time.Millisecond)
				return nil, errRefused // While the second dial is under way.
			}
			<-time.After(2 * time.Millisecond)
			return b.dial(ctx, network, addr)
		}
		c := faultClient(t, dial, WithBrokers(b.addr))
		var running sync.WaitGroup
		for _, held := range []bool{false, true} {
			running.Go(func() {
				conn, err := c.pool.get(t.Context(), b.addr, held, false, patience{limit: time.Minute})
				if err == nil {
					conn.closeWith(&ConnError{Addr: b.addr, Op: "read", Err: errSilent})
				}
			})
		}
		running.Wait()
		_, err := c.pool.get(t.Context(), b.addr, false, false, patience{limit: time.Minute})
		if err != nil {
			var ce *ConnError
			require.ErrorAs(t, err, &ce)
			require.Error(t, ce.Err, "a failure without a cause")
		}
	})
}

// TestNodeMovesToAnotherAddress has a node come back at another address, which
// ClusterInfo tells. Where it was before is not asked for ever.
func TestNodeMovesToAnotherAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 2, 1)
		seed, leader := brokers[0], brokers[1]
		seed.log.setLeader(0, leader.id)
		moved := newFakeBroker(t, leader.log)
		moved.id, moved.addr, moved.nodes = leader.id, "moved.invalid:1", leader.nodes
		c := faultClient(t, dialFakes(seed, leader, moved), WithBrokers(seed.addr), WithMetadataMaxAge(10*time.Second))
		producer := faultProducer(t, c)
		_, _, err := producer.SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		leader.setDown(true)
		seed.nodes[leader.id] = moved.addr
		start := time.Now()
		_, offset, err := producer.SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
		require.Equal(t, int64(1), offset)
		require.Less(t, time.Since(start), 15*time.Second)
		require.Len(t, moved.asked(requestProduce), 1)
	})
}

// TestBrokerRestarts ends a broker and opens another on the same storage and port, a
// few times, while producers and consumers work. Everything that was acknowledged is
// read where the acknowledgement says, everybody goes on.
func TestBrokerRestarts(t *testing.T) {
	t.Parallel()
	const producers, consumers, restarts, partitions = 20, 3, 4, 3
	storage := NewMemoryStorage()
	open := func() *Broker {
		b, err := NewBroker(WithStorage(storage), WithTopic(faultTopic, partitions), WithNodeID("n"), WithLogger(nil))
		require.NoError(t, err)
		return b
	}
	b := open()
	listening, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	addr := listening.String()
	c := faultClient(t, new(net.Dialer).DialContext, WithBrokers(addr))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	// Each producer goes on until it has sent some after the last restart.
	var round atomic.Int64
	var mu sync.Mutex
	acknowledged := make(map[TopicPartition]map[int64]string)
	counts := make([]atomic.Int64, restarts+1) // of acknowledgements, by restart
	var running sync.WaitGroup
	for i := range producers {
		producer := faultProducer(t, c)
		running.Go(func() {
			for j, last := 0, 0; last < 5; j++ {
				now := round.Load()
				m := NewMessage(faultTopic, fmt.Appendf(nil, "%d/%d", i, j))
				m.Partition = int32((i + j) % partitions)
				partition, offset, err := producer.SendMessage(ctx, m)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				tp := TopicPartition{faultTopic, partition}
				if acknowledged[tp] == nil {
					acknowledged[tp] = make(map[int64]string)
				}
				if before, twice := acknowledged[tp][offset]; twice {
					t.Errorf("offset %d was given to %s and to %s", offset, before, m.Value)
				}
				acknowledged[tp][offset] = string(m.Value)
				mu.Unlock()
				counts[now].Add(1)
				if now == restarts {
					last++
				}
			}
		})
	}
	type reading struct {
		pc    *PartitionConsumer
		read  map[int64]string
		count atomic.Int64
	}
	readings := make([]*reading, consumers)
	readCtx, stopReading := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for i := range readings {
		pc, err := c.PartitionConsumer(faultTopic, int32(i))
		require.NoError(t, err)
		r := &reading{pc: pc, read: make(map[int64]string)}
		readings[i] = r
		readers.Go(func() {
			for m, err := range pc.All(readCtx) {
				if err != nil {
					if readCtx.Err() == nil {
						t.Error(err)
					}
					return
				}
				if m.Offset != int64(len(r.read)) {
					t.Errorf("read offset %d after %d messages", m.Offset, len(r.read))
					return
				}
				r.read[m.Offset] = string(m.Value)
				r.count.Add(1)
			}
		})
	}
	for i := range restarts {
		// Everybody has got somewhere before the next restart.
		waitUntil(t, ctx, func() bool {
			if counts[i].Load() < 50 {
				return false
			}
			for _, r := range readings {
				if r.count.Load() == 0 {
					return false
				}
			}
			return true
		})
		for _, r := range readings {
			r.count.Store(0)
		}
		if i%2 == 0 {
			require.NoError(t, b.Close())
		} else {
			require.NoError(t, b.Shutdown(ctx))
		}
		b = open()
		// Somebody else's connection may have the port for a moment.
		waitUntil(t, ctx, func() bool { _, err := b.Listen(addr); return err == nil })
		round.Add(1)
	}
	running.Wait()
	for partition, r := range readings {
		end := highWaterMark(t, b, int32(partition))
		waitUntil(t, ctx, func() bool { return r.pc.Offset() >= end })
	}
	stopReading()
	readers.Wait()
	for partition, r := range readings {
		for offset, value := range acknowledged[TopicPartition{faultTopic, int32(partition)}] {
			require.Equal(t, value, r.read[offset])
		}
		require.Equal(t, stored(t, b, int32(partition)), valuesOf(r.read))
	}
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
}

// valuesOf puts what was read in the order of offsets.
func valuesOf(read map[int64]string) []string {
	values := make([]string, len(read))
	for offset, value := range read {
		values[offset] = value
	}
	return values
}

// waitUntil looks again and again until done says so. It is for what nothing signals.
func waitUntil(t *testing.T, ctx context.Context, done func() bool) { //nolint:revive // t goes first, as everywhere
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			require.FailNow(t, "nothing goes on any more")
		}
	}
}

// refusals are what brokers say no with, and how often a message is sent then.
func refusals() []struct {
	code  errorCode
	text  string
	want  error
	times int
} {
	const retries = 3
	return []struct {
		code  errorCode
		text  string
		want  error
		times int
	}{
		{"TOPIC_NOT_FOUND", "x", ErrTopicNotFound, 1},
		{"PARTITION_NOT_FOUND", "x", ErrPartitionNotFound, 1},
		{"MESSAGE_TOO_LARGE", "x", ErrMessageTooLarge, 1},
		{"INVALID_REQUEST", "x", ErrInvalidRequest, 1},
		{"INVALID_CONFIG", "x", ErrInvalidConfig, 1},
		{"UNSUPPORTED", "x", ErrUnsupported, 1},
		{"MALFORMED", "x", ErrMalformed, 1},
		{"OFFSET_OUT_OF_RANGE", "x", ErrOffsetOutOfRange, 1},
		{"FENCED", "x", ErrFenced, 1},
		{"", "topic not found: t", ErrTopicNotFound, 1},
		{"", "Unknown Topic", ErrTopicNotFound, 1},
		{"", "invalid partition 7", ErrPartitionNotFound, 1},
		{"", "message too large", ErrMessageTooLarge, 1},
		{"", "unknown request type 0", ErrUnsupported, 1},
		{"OVERLOADED", "x", ErrOverloaded, 1 + retries},
		{"NOT_LEADER", "x", ErrNotLeader, 1 + retries},
		{"UNAVAILABLE", "x", ErrUnavailable, 1 + retries},
		{"INTERNAL", "disk: input/output error", nil, 1 + retries},
		{"SOMETHING_NEW", "x", nil, 1 + retries},
		{"", "something went wrong", nil, 1 + retries},
	}
}

// TestRefusalsAreRetriedOrNot has a broker refuse every message: what cannot get
// better is sent once, what may is sent again as often as WithRetries says. The
// refusal comes in the envelope or in the payload.
func TestRefusalsAreRetriedOrNot(t *testing.T) {
	for _, inside := range []bool{false, true} {
		for _, tc := range refusals() {
			if inside && tc.code != "" {
				continue // Codes stand in the envelope.
			}
			t.Run(fmt.Sprint(tc.code, " ", tc.text, " ", inside), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					b := cluster(t, 1, 1)[0]
					b.script = func(r *fakeRequest) *fakeAnswer {
						switch {
						case r.kind != requestProduce:
							return nil
						case inside:
							return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "offset": 0, "error": tc.text})
						}
						return r.refuse(tc.code, tc.text)
					}
					c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
					producer := faultProducer(t, c, WithRetries(3), WithRetryBackoff(time.Second))
					start := time.Now()
					_, _, err := producer.SendMessage(t.Context(), to0("a"))
					var be *BrokerError
					require.ErrorAs(t, err, &be)
					require.Equal(t, "Produce", be.Request)
					require.Equal(t, b.addr, be.Addr)
					require.Contains(t, be.Message, tc.text)
					if tc.want != nil {
						require.ErrorIs(t, err, tc.want)
					}
					require.Len(t, b.asked(requestProduce), tc.times)
					if tc.times == 1 {
						require.Zero(t, time.Since(start))
					} else {
						// 1 s, 2 s and 4 s, 20 % more or less.
						require.InDelta(t, 7, time.Since(start).Seconds(), 1.5)
					}

					// The messages of SendMessages are each treated so.
					before := len(b.asked(requestProduce))
					err = producer.SendMessages(t.Context(), []*Message{to0("a"), to0("b")})
					var failed ProducerErrors
					require.ErrorAs(t, err, &failed)
					require.Len(t, failed, 2)
					sent := len(b.asked(requestProduce)) - before
					if tc.times == 1 {
						require.Equal(t, 2, sent)
					} else {
						require.Equal(t, 2*(1+tc.times), sent, "once together, and then one by one")
					}
				})
			})
		}
	}
}

// TestOverloadPasses has a broker be overloaded for a while.
func TestOverloadPasses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		var refused atomic.Int64
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestProduce && refused.Add(1) <= 3 {
				return r.refuse("OVERLOADED", "busy")
			}
			return nil
		}
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		_, offset, err := faultProducer(t, c, WithRetries(3)).SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		require.Zero(t, offset)
		require.Equal(t, uint64(3), c.Metrics().Producer.GetStats().Retries)
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

// rawPeer speaks to a broker without a client.
type rawPeer struct {
	t  testing.TB
	nc net.Conn
	in *frameReader
}

func newRawPeer(t testing.TB, nc net.Conn) *rawPeer {
	t.Cleanup(func() { nc.Close() })
	return &rawPeer{t: t, nc: nc, in: &frameReader{r: nc, limit: 1 << 30}}
}

// dialPeer connects in memory.
func dialPeer(t testing.TB, b *Broker) *rawPeer {
	t.Helper()
	nc, err := b.Dial(t.Context(), "tcp", "")
	require.NoError(t, err)
	return newRawPeer(t, nc)
}

// send writes, in the background: the broker may have stopped reading.
func (p *rawPeer) send(text string) {
	go func() { _, _ = p.nc.Write([]byte(text)) }()
}

// answer reads one answer, within a minute. The error is the connection's end.
func (p *rawPeer) answer() (*wireResponse, error) {
	p.t.Helper()
	require.NoError(p.t, p.nc.SetReadDeadline(time.Now().Add(time.Minute)))
	frame, err := p.in.next()
	if err != nil {
		require.NotErrorIs(p.t, err, os.ErrDeadlineExceeded, "neither an answer nor an end")
		return nil, err
	}
	r := new(wireResponse)
	require.NoError(p.t, r.decode(bytes.Clone(frame)))
	return r, nil
}

// mustAnswer reads one answer to the request of this ID.
func (p *rawPeer) mustAnswer(id string) *wireResponse {
	p.t.Helper()
	r, err := p.answer()
	require.NoError(p.t, err)
	require.Equal(p.t, id, string(r.id))
	return r
}

// requireEnd fails unless the connection is over, with nothing more to read.
func (p *rawPeer) requireEnd() {
	p.t.Helper()
	_, err := p.answer()
	require.Error(p.t, err)
}

// requireServed fails unless the peer's next request is answered.
func (p *rawPeer) requireServed() {
	p.t.Helper()
	p.send(`{"request_id":"served","request_type":4}` + "\n")
	require.True(p.t, p.mustAnswer("served").success)
}

// requireUnharmed fails unless a client of the broker works.
func requireUnharmed(t testing.TB, b *Broker, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, offset, err := faultProducer(t, c).SendMessage(ctx, to0("unharmed"))
	require.NoError(t, err)
	require.Equal(t, "unharmed", storedFrom(t, b, 0, offset)[0])
}

// malformed is what is no request, and what it is answered with before the broker
// hangs up.
var malformed = map[string]errorCode{
	"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "MALFORMED", // TLS
	"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n":    "MALFORMED",
	"\x00":                    "MALFORMED",
	"}":                       "MALFORMED",
	"]":                       "MALFORMED",
	"tru\n":                   "MALFORMED",
	"1 2\n":                   "MALFORMED",
	"\"open\n":                "MALFORMED",
	"{]":                      "MALFORMED",
	"{\"request_id\":\"1\",}": "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":4,\"payload\":{]}}":                  "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":0,\"payload\":{\"topic\":\"t\",}}":   "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":1,\"payload\":{\"topic\":tt}}":       "MALFORMED",
	"{\"request_id\":\"1\" \"request_type\":4}":                                  "MALFORMED",
	strings.Repeat("[", 1000):                                                    "MALFORMED",
	strings.Repeat("{\"a\":", 1000):                                              "MALFORMED",
	"{\"request_id\":\"" + strings.Repeat("x", 100_000):                          "MESSAGE_TOO_LARGE",
	"{\"payload\":{\"key\":\"" + strings.Repeat("\\\"", 50_000):                  "MESSAGE_TOO_LARGE",
	"\"" + strings.Repeat("x", 100_000):                                          "MESSAGE_TOO_LARGE",
	strings.Repeat("1", 100_000):                                                 "MESSAGE_TOO_LARGE",
	"{\"request_id\":\"1\",\"payload\":" + strings.Repeat(" ", 100_000):          "MESSAGE_TOO_LARGE",
	"{\"request_id\":\"1\",\"payload\":[" + strings.Repeat("1,", 50_000) + "1]}": "MESSAGE_TOO_LARGE",
}

// TestMalformedInputIsAnswered sends what cannot be understood, alone or with much
// behind it that nobody is going to read. It is answered before the connection is
// closed, in memory and on a socket, where closing while bytes wait to be read would
// destroy an answer that is on its way. Others do not notice.
func TestMalformedInputIsAnswered(t *testing.T) {
	b := faultBroker(t, 1, WithMaxFrameBytes(64<<10))
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	c := faultClient(t, b.Dial)
	for _, where := range []string{"memory", "tcp"} {
		for _, input := range slices.Sorted(maps.Keys(malformed)) {
			for _, behind := range []int{0, 300_000} {
				nc, err := b.Dial(t.Context(), "tcp", "")
				if where == "tcp" {
					nc, err = new(net.Dialer).DialContext(t.Context(), "tcp", addr.String())
				}
				require.NoError(t, err)
				p := newRawPeer(t, nc)
				p.requireServed()
				name := fmt.Sprintf("%s: %.60q and %d bytes", where, input, behind)
				sent := make(chan error, 1)
				go func() {
					_, err := nc.Write([]byte(input + strings.Repeat("x", behind)))
					sent <- err
				}()
				r, err := p.answer()
				require.NoError(t, err, name)
				require.False(t, r.success, name)
				require.Equal(t, malformed[input], r.errCode, name)
				require.NotEmpty(t, r.errText)
				p.requireEnd()
				require.NoError(t, <-sent, name) // It was not cut short, which is what destroys answers.
				nc.Close()
			}
		}
	}
	requireUnharmed(t, b, c)
}

// TestNoRequestIsAnswered sends JSON that is no request, or one that makes no sense:
// it is refused, by its ID if it has one, and the connection lives on.
func TestNoRequestIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		p := dialPeer(t, b)
		for _, tc := range []struct {
			input, id string
			v0        bool
		}{
			{input: "5\n"},
			{input: "-1.5e3\n"},
			{input: "true\n"},
			{input: "null\n"},
			{input: "\"request\"\n"},
			{input: "[]"},
			{input: "[{\"request_id\":\"1\"}]"},
			{input: "{}"},
			{input: "{\"request_id\":7}"},
			{input: "{\"request_id\":null,\"request_type\":4.5}"},
			{input: "{\"request_id\":\"a\",\"request_type\":\"4\"}", id: "a"},
			{input: "{\"request_id\":\"b\",\"request_type\":99}", id: "b"},
			{input: "{\"request_id\":\"c\",\"request_type\":-5}", id: "c"},
			{input: "{\"request_id\":\"d\",\"request_type\":1e400}", id: "d"},
			{input: "{\"request_id\":\"e\",\"request_type\":5,\"payload\":[]}", id: "e"},
			{input: "{\"request_id\":\"f\",\"request_type\":0,\"payload\":{\"topic\":1}}", id: "f"},
			{input: "{\"request_id\":\"g\",\"request_type\":1,\"payload\":{\"topic\":\"t\",\"offset\":\"0\"}}", id: "g"},
			{input: "{\"request_id\":\"h\",\"type\":5,\"payload\":\"!\"}", id: "h", v0: true},
			{input: "{\"request_id\":\"i\",\"type\":1,\"payload\":\"bm90aGluZw==\"}", id: "i", v0: true},
			{input: "{\"request_id\":\"\\u0022\\n\",\"type\":99,\"payload\":\"\"}", id: "\"\n", v0: true},
		} {
			p.send(tc.input)
			r, err := p.answer()
			require.NoError(t, err, tc.input)
			require.False(t, r.success, tc.input)
			require.Equal(t, tc.id, string(r.id), tc.input)
			require.NotEmpty(t, r.errText, tc.input)
			require.NotEmpty(t, r.errCode, tc.input)
			require.Equal(t, tc.v0, r.form == ProtocolV0, tc.input)
			p.requireServed()
		}
	})
}

// TestDamagedRequests sends requests of which some bytes were changed. Each is answered
// or the connection ends; the broker goes on.
func TestDamagedRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithMaxFrameBytes(64<<10))
		c := faultClient(t, b.Dial)
		random := rand.New(rand.NewPCG(1, 2))
		var frames [][]byte
		for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
			for _, req := range []request{
				&produceRequest{Topic: faultTopic, Key: []byte("key"), Value: []byte("value"), Headers: map[string]string{"a": "b"}, ID: "id"},
				&fetchRequest{Topic: faultTopic, MaxBytes: 100, MaxMessages: 10, MaxWaitMs: 1000},
				&metadataRequest{Topics: []string{faultTopic}},
				&listOffsetsRequest{Topic: faultTopic, Partitions: []int32{0}, Timestamp: 5},
				&createTopicRequest{Name: "new", Partitions: 2, Config: map[string]string{"retention.hours": "1"}},
			} {
				frame, err := appendRequest(nil, form, "id", req.kind(), req)
				require.NoError(t, err)
				frames = append(frames, frame)
			}
		}
		p := dialPeer(t, b)
		answered, ended := 0, 0
		for i := range 3000 {
			frame := bytes.Clone(frames[i%len(frames)])
			for range 1 + random.IntN(3) {
				at := random.IntN(len(frame) - 1)
				switch random.IntN(4) {
				case 0:
					frame[at] = byte(random.Uint32())
				case 1:
					frame[at] = "{}[]\",:\\0n-"[random.IntN(11)]
				case 2:
					frame = slices.Delete(frame, at, at+1)
				case 3:
					frame = slices.Insert(frame, at, "{}[]\",:\\0n-"[random.IntN(11)])
				}
			}
			// What may have been left open is closed, so that the frame ends.
			closing := strings.Repeat("}]", maxNesting)
			p.send(string(frame) + closing + "\"" + closing + "\n")
			if _, err := p.answer(); err == nil {
				answered++
			} else {
				ended++
			}
			// It may be anywhere in what was sent, so the next one comes afresh.
			p.nc.Close()
			p = dialPeer(t, b)
		}
		require.Greater(t, answered, 2500, "%d ended without an answer", ended)
		requireUnharmed(t, b, c)
	})
}

// TestSlowFrames holds how long a frame may take to come: whoever sends a byte now and
// then does not occupy a connection for ever, and is told. Silence between frames is
// no fault, nor is sending one slowly.
func TestSlowFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		drip := func(p *rawPeer, text string, every time.Duration) {
			for i := range len(text) {
				if _, err := p.nc.Write([]byte(text[i : i+1])); err != nil {
					return
				}
				<-time.After(every)
			}
		}
		request := `{"request_id":"served","request_type":4}` + "\n"

		slow := dialPeer(t, b)
		for range 3 {
			drip(slow, request, frameTimeout/time.Duration(len(request)+2))
			require.True(t, slow.mustAnswer("served").success)
		}
		<-time.After(24 * time.Hour)
		slow.requireServed()

		loris := dialPeer(t, b)
		start := time.Now()
		go drip(loris, "{\"request_id\":\""+strings.Repeat("x", 1000), 10*time.Second)
		require.NoError(t, loris.nc.SetReadDeadline(start.Add(time.Hour)))
		frame, err := loris.in.next()
		require.NoError(t, err)
		require.Contains(t, string(frame), "MALFORMED")
		loris.requireEnd()
		require.InDelta(t, frameTimeout.Seconds(), time.Since(start).Seconds(), 2)

		// A large frame that comes in pieces has no more time than a small one.
		large := dialPeer(t, b)
		start = time.Now()
		go func() {
			for piece := "{\"payload\":\""; ; piece = strings.Repeat("x", 10_000) {
				if _, err := large.nc.Write([]byte(piece)); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}()
		require.NoError(t, large.nc.SetReadDeadline(start.Add(time.Hour)))
		frame, err = large.in.next()
		require.NoError(t, err)
		require.Contains(t, string(frame), "MALFORMED")
		require.InDelta(t, frameTimeout.Seconds(), time.Since(start).Seconds(), 2)

		// Between whole frames too: each begun one has a time of its own.
		mixed := dialPeer(t, b)
		for range 100 {
			_, err := mixed.nc.Write([]byte(request + request[:10]))
			require.NoError(t, err)
			require.True(t, mixed.mustAnswer("served").success)
			<-time.After(frameTimeout / 2)
			_, err = mixed.nc.Write([]byte(request[10:]))
			require.NoError(t, err)
			require.True(t, mixed.mustAnswer("served").success)
		}
		requireUnharmed(t, b, c)
	})
}

// heapBytes is what is allocated and in use.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// brokerConnCount is how many connections the broker serves.
func brokerConnCount(b *Broker) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// TestPeerThatNeverReads asks for much and reads nothing. What the broker keeps for it
// is bounded, whether the fetches are answered at once or were held, and it is hung up
// on when it has not read for a while. Others do not notice.
func TestPeerThatNeverReads(t *testing.T) {
	large := strings.Repeat("x", 50_000)
	fetch := func(extra string) string {
		return `{"request_id":"f","request_type":1,"payload":{"topic":"t","partition":0,"offset":0,"max_bytes":10000000` + extra + "}}\n"
	}
	v0 := `{"request_id":"f","type":1,"payload":"` +
		base64.StdEncoding.EncodeToString([]byte(`{"topic":"t","partition":0,"offset":0,"max_bytes":10000000}`)) + "\"}\n"
	for name, text := range map[string]string{
		"at once": strings.Repeat(fetch(""), 3000),
		"held":    strings.Repeat(fetch(`,"min_bytes":10000000,"max_wait_ms":5000`), 1000),
		"v0":      strings.Repeat(v0, 3000),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				c := faultClient(t, b.Dial)
				for range 4 {
					_, _, err := faultProducer(t, c).SendMessage(t.Context(), to0(large))
					require.NoError(t, err)
				}
				conns, heap := brokerConnCount(b), heapBytes()
				p := dialPeer(t, b)
				// The more a peer sends, the more of it is read at once.
				p.send(strings.Repeat(`{"request_id":"1","request_type":4}`+"\n", 10_000))
				for range 10_000 {
					p.mustAnswer("1")
				}
				p.send(text)
				most := int64(0)
				start := time.Now()
				for brokerConnCount(b) > conns || time.Since(start) < time.Second {
					requireUnharmed(t, b, c)
					<-time.After(2 * time.Second)
					most = max(most, heapBytes()-heap)
					require.Less(t, time.Since(start), 5*time.Minute)
				}
				// An answer is 270 or 360 KB; all of them together would be 270 MB or more.
				require.Less(t, most, int64(20<<20))
				require.LessOrEqual(t, time.Since(start), 2*time.Minute)
			})
		})
	}
}

// TestManyHeldFetches pipelines more fetches than a connection may have held. Those
// above the limit are answered at once, the others when there is something; each once.
func TestManyHeldFetches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const fetches = 2000
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		require.NoError(t, c.Ping(t.Context()))
		p := dialPeer(t, b)
		var text strings.Builder
		for i := range fetches {
			fmt.Fprintf(&text, `{"request_id":"%d","request_type":1,"payload":{"topic":"t","partition":0,"offset":0,"max_wait_ms":20000}}`+"\n", i)
		}
		p.send(text.String())
		seen := make(map[string]bool)
		read := func() int {
			r, err := p.answer()
			require.NoError(t, err)
			require.True(t, r.success)
			require.False(t, seen[string(r.id)])
			seen[string(r.id)] = true
			resp := newFetchResponse()
			require.NoError(t, decodePayload(r.payload, resp))
			return len(resp.Messages)
		}
		start := time.Now()
		for range fetches - maxHeld {
			require.Zero(t, read())
		}
		require.Zero(t, time.Since(start))
		<-time.After(time.Second)
		p.requireServed()
		requireUnharmed(t, b, c)
		for range maxHeld {
			require.Equal(t, 1, read())
		}
		require.Equal(t, time.Second, time.Since(start))
		require.Len(t, seen, fetches)
		p.requireServed()
	})
}

// TestFormsOnOneConnection mixes both forms of the protocol on one connection. Answers
// in the v0 form come in the order of their requests, whatever is held beside them.
func TestFormsOnOneConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		p := dialPeer(t, b)
		v0 := func(id string, kind int, payload string) string {
			return fmt.Sprintf(`{"request_id":"%s","type":%d,"payload":"%s"}`+"\n", id, kind, base64.StdEncoding.EncodeToString([]byte(payload)))
		}
		v1 := func(id string, kind int, payload string) string {
			return fmt.Sprintf(`{"request_id":"%s","request_type":%d,"payload":%s}`+"\n", id, kind, payload)
		}
		held := `{"topic":"t","partition":1,"offset":0,"max_wait_ms":10000}`
		p.send(v1("held 1", 1, held) +
			v0("a", 0, `{"topic":"t","partition":0,"value":"eA=="}`) +
			v1("held 2", 1, held) +
			v0("b", 1, `{"topic":"t","partition":0,"offset":5,"max_wait_ms":10000}`) + // Refused, and never held.
			v0("c", 1, `{"topic":"t","partition":0,"offset":-7}`) +
			v1("now", 4, `{}`) +
			v0("d", 99, `{}`) +
			v0("e", 13, ``) +
			v0("f", 1, `{"topic":"t","partition":0,"offset":1,"max_wait_ms":10000}`))
		start := time.Now()
		var v0Order, v1Order []string
		for range 7 {
			r, err := p.answer()
			require.NoError(t, err)
			if r.form == ProtocolV0 {
				v0Order = append(v0Order, string(r.id))
			} else {
				v1Order = append(v1Order, string(r.id))
			}
		}
		require.Equal(t, []string{"a", "b", "c", "d", "e", "f"}, v0Order)
		require.Equal(t, []string{"now"}, v1Order)
		require.Zero(t, time.Since(start))
		p.send(v1("g", 0, `{"topic":"t","partition":1,"value":"eA=="}`) + v0("h", 0, `{"topic":"t","partition":0,"value":"eA=="}`))
		var rest []string
		for range 4 {
			r, err := p.answer()
			require.NoError(t, err)
			require.True(t, r.success)
			rest = append(rest, string(r.id))
		}
		require.ElementsMatch(t, []string{"g", "h", "held 1", "held 2"}, rest)
	})
}

// TestTooManyConnections holds what a client makes of a broker that serves no more
// connections: it says so, tries again, and gets in when there is room.
func TestTooManyConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithConnectionLimit(1))
		first := faultClient(t, b.Dial)
		require.NoError(t, first.Ping(t.Context()))
		second := faultClient(t, b.Dial)
		start := time.Now()
		_, _, err := faultProducer(t, second, WithDeliveryTimeout(5*time.Second)).SendMessage(t.Context(), to0("a"))
		require.ErrorIs(t, err, ErrOverloaded)
		requireFault(t, err)
		require.LessOrEqual(t, time.Since(start), 5*time.Second)
		requireUnharmed(t, b, first)
		time.AfterFunc(5*time.Second, func() { first.Close() })
		_, _, err = faultProducer(t, second).SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
	})
}

// TestFloodOfConnections has many peers connect, send garbage, half a request, or
// nothing, and vanish in every way while a client works.
func TestFloodOfConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		requireUnharmed(t, b, c)
		before := brokerConnCount(b)
		random := rand.New(rand.NewPCG(3, 4))
		inputs := append(slices.Sorted(maps.Keys(malformed)), "", "{", `{"request_id":"1","request_type":4}`, strings.Repeat("\n", 1000))
		for range 300 {
			p := dialPeer(t, b)
			input := inputs[random.IntN(len(inputs))]
			p.send(input)
			switch random.IntN(3) {
			case 0:
				synctest.Wait()
				p.nc.Close()
			case 1:
				p.nc.Close()
			case 2: // It stays.
			}
			if random.IntN(10) == 0 {
				requireUnharmed(t, b, c)
			}
		}
		requireUnharmed(t, b, c)
		// What is malformed or never becomes a frame is gone after a while.
		<-time.After(2 * frameTimeout)
		require.Less(t, brokerConnCount(b)-before, 60)
		requireUnharmed(t, b, c)
	})
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
