package robust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// quietBroker is a broker that ends with the test and logs nothing.
func quietBroker(t testing.TB, opts ...BrokerOption) *Broker {
	t.Helper()
	b, err := NewBroker(append([]BrokerOption{WithLogger(nil)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// quietClient is a client of b in memory.
func quietClient(t testing.TB, b *Broker, opts ...Option) *Client {
	t.Helper()
	return faultClient(t, b.Dial, opts...)
}

func messages(n int) []*Message {
	ms := make([]*Message, n)
	for i := range ms {
		ms[i] = NewMessage("demo", fmt.Append(nil, i))
	}
	return ms
}

// What is sent with a context that has ended is not sent.
func TestSendCancelled(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	c := quietClient(t, b)
	p := faultProducer(t, c)
	require.NoError(t, p.SendMessages(t.Context(), messages(1)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var failed ProducerErrors
	require.ErrorAs(t, p.SendMessages(ctx, messages(2000)), &failed)
	require.Len(t, failed, 2000)
	_, err := p.Send(ctx, messages(1)[0])
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, p.SendMessages(t.Context(), messages(1)))
	require.Equal(t, int64(2), highWaterMark(t, b, "demo", 0))
	require.Zero(t, c.Metrics().Connection.GetStats().Reconnections)
}

// Nor is what has no time left.
func TestSendPastItsDeadline(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	c := quietClient(t, b)
	require.NoError(t, c.Ping(t.Context())) // There is a connection, and nothing to wait for.
	p := faultProducer(t, c, WithDeliveryTimeout(1))
	err := p.SendMessages(t.Context(), messages(100))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, faultProducer(t, c).SendMessages(t.Context(), messages(1)))
	require.Equal(t, int64(1), highWaterMark(t, b, "demo", 0))
}

// A broker that has several addresses gets a partition's messages in order.
func TestSendMessagesOrderOverTwoAddresses(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(addr.String())
	require.NoError(t, err)
	c, err := New(WithBrokers("127.0.0.1:"+port, "localhost:"+port), WithLogger(nil))
	require.NoError(t, err)
	defer c.Close()
	for range 4 {
		require.NoError(t, c.Ping(t.Context()))
	}
	ms := messages(5000)
	require.NoError(t, faultProducer(t, c).SendMessages(t.Context(), ms))
	for i, m := range ms {
		require.Equal(t, int64(i), m.Offset)
	}
}

// A topic made anew with fewer partitions is noticed by the first answer.
func TestSendToShrunkTopic(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 4))
	c, other := quietClient(t, b), quietClient(t, b)
	p := faultProducer(t, c, WithPartitioner(func(_ *Message, n int32) int32 { return n - 1 }))
	require.NoError(t, p.SendMessages(t.Context(), messages(2)))
	require.NoError(t, other.Admin().DeleteTopic(t.Context(), "demo"))
	require.NoError(t, other.Admin().CreateTopic(t.Context(), "demo", 1, nil))
	partition, offset, err := p.SendMessage(t.Context(), messages(1)[0])
	require.NoError(t, err)
	require.Equal(t, int32(0), partition)
	require.Equal(t, int64(0), offset)
	require.NoError(t, other.Admin().DeleteTopic(t.Context(), "demo"))
	require.NoError(t, other.Admin().CreateTopic(t.Context(), "demo", 3, nil))
	require.NoError(t, p.SendMessages(t.Context(), messages(10)), "nothing is wrong with partition 0")
}

// wrapStorage puts a log of the test's own around each log.
type wrapStorage struct {
	Storage
	put    func(ctx context.Context, t StoredTopic) error
	remove func() error
	append func(l PartitionLog, batches []byte, done func(AppendResult))
}

type wrapLog struct {
	PartitionLog
	s *wrapStorage
}

func (s *wrapStorage) PutTopic(ctx context.Context, t StoredTopic) error {
	if s.put != nil {
		return s.put(ctx, t)
	}
	return s.Storage.PutTopic(ctx, t)
}

func (s *wrapStorage) DeleteTopic(ctx context.Context, name string) error {
	if s.remove != nil {
		if err := s.remove(); err != nil {
			return err
		}
	}
	return s.Storage.DeleteTopic(ctx, name)
}

func (s *wrapStorage) OpenPartition(ctx context.Context, t StoredTopic, p int32, c LogConfig, advanced func()) (PartitionLog, error) {
	l, err := s.Storage.OpenPartition(ctx, t, p, c, advanced)
	return &wrapLog{l, s}, err
}

func (l *wrapLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	if l.s.append != nil {
		l.s.append(l.PartitionLog, batches, done)
		return
	}
	l.PartitionLog.Append(batches, acks, done)
}

// A storage may call done from any goroutine, before Append returns or after.
func TestBrokerAsynchronousStorage(t *testing.T) {
	var turn atomic.Int64
	storage := &wrapStorage{Storage: NewMemoryStorage(), append: func(l PartitionLog, batches []byte, done func(AppendResult)) {
		l.Append(batches, AcksStored, func(r AppendResult) {
			started := make(chan struct{})
			go func() {
				close(started)
				done(r)
			}()
			if turn.Add(1)%2 == 0 {
				<-started
				runtime.Gosched()
			}
		})
	}}
	b := quietBroker(t, WithStorage(storage), WithTopic("demo", 1))
	for _, protocol := range []Protocol{ProtocolV1, ProtocolV0} {
		c := quietClient(t, b, WithProtocol(protocol))
		p := faultProducer(t, c)
		for range 50 {
			require.NoError(t, p.SendMessages(t.Context(), messages(100)))
		}
		require.Zero(t, c.Metrics().Producer.GetStats().Retries, "no answer was late")
	}
	require.Equal(t, int64(2*50*100), highWaterMark(t, b, "demo", 0))
}

// Close does not wait for a storage that waits for its context.
func TestBrokerCloseEndsContexts(t *testing.T) {
	waiting := make(chan struct{})
	storage := &wrapStorage{Storage: NewMemoryStorage(), put: func(ctx context.Context, _ StoredTopic) error {
		close(waiting)
		<-ctx.Done()
		return ctx.Err()
	}}
	b := quietBroker(t, WithStorage(storage))
	c := quietClient(t, b)
	created := make(chan error)
	go func() { created <- c.Admin().CreateTopic(t.Context(), "demo", 1, nil) }()
	<-waiting
	require.NoError(t, b.Close())
	require.Error(t, <-created)
}

// A topic that the storage cannot delete is still there, with all of its messages.
func TestDeleteTopicFails(t *testing.T) {
	fail := true
	storage := &wrapStorage{Storage: NewMemoryStorage(), remove: func() error {
		if fail {
			return errors.New("the disk is gone")
		}
		return nil
	}}
	b := quietBroker(t, WithStorage(storage), WithTopic("demo", 1))
	c := quietClient(t, b)
	p := faultProducer(t, c)
	require.NoError(t, p.SendMessages(t.Context(), messages(3)))
	require.ErrorContains(t, c.Admin().DeleteTopic(t.Context(), "demo"), "the disk is gone")
	require.ErrorIs(t, c.Admin().CreateTopic(t.Context(), "demo", 1, nil), ErrTopicExists)
	require.NoError(t, p.SendMessages(t.Context(), messages(1)))
	require.Equal(t, int64(4), highWaterMark(t, b, "demo", 0))
	fail = false
	require.NoError(t, c.Admin().DeleteTopic(t.Context(), "demo"))
	require.NoError(t, c.Admin().CreateTopic(t.Context(), "demo", 1, nil))
	require.Zero(t, highWaterMark(t, b, "demo", 0))
}

// Messages whose JSON is much longer than they are can be read all the same.
func TestConsumerEscapes(t *testing.T) {
	for _, protocol := range []Protocol{ProtocolV1, ProtocolV0} {
		b := quietBroker(t, WithTopic("demo", 1), WithMaxFrameBytes(1<<20))
		c := quietClient(t, b, WithProtocol(protocol), WithMaxFrameBytes(1<<20), WithFetchMaxBytes(512<<10))
		p := faultProducer(t, c)
		for range 8 {
			m := NewMessage("demo", nil)
			m.Headers = map[string]string{"h": strings.Repeat("\x01", 60_000)}
			_, err := p.Send(t.Context(), m)
			require.NoError(t, err)
		}
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		for i := range int64(8) {
			require.Equal(t, i, (<-pc.Messages()).Offset)
		}
	}
}

// A frame that is too long will be so the next time: reading ends and says so.
func TestConsumerFrameTooLarge(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	require.NoError(t, faultProducer(t, quietClient(t, b)).SendMessages(t.Context(), []*Message{NewMessage("demo", make([]byte, 10_000))}))
	c := quietClient(t, b, WithMaxFrameBytes(4096), WithFetchMaxBytes(1024))
	pc, err := c.PartitionConsumer("demo", 0)
	require.NoError(t, err)
	for _, err := range pc.All(t.Context()) {
		require.ErrorIs(t, err, ErrMessageTooLarge)
	}
}

// An empty message is a message: nobody waits for more.
func TestConsumerEmptyMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quietBroker(t, WithTopic("demo", 1))
		c := quietClient(t, b)
		pc, err := c.PartitionConsumer("demo", 0, WithFetchMaxWait(time.Hour))
		require.NoError(t, err)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, faultProducer(t, c).SendMessages(t.Context(), []*Message{NewMessage("demo", nil)}))
		<-pc.Messages()
		require.Zero(t, time.Since(began))
	})
}

// cutConn fails its first writes of one request.
type cutConn struct {
	net.Conn
	request string
	left    *atomic.Int32
}

func (c cutConn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.request) && c.left.Add(-1) >= 0 {
		c.Conn.Close()
		return 0, errors.New("cut")
	}
	return c.Conn.Write(p)
}

// A position that is not in the log is reported, also if the new one cannot be found
// at the first try.
func TestConsumerOutOfRangeIsReported(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	seed := quietClient(t, b)
	require.NoError(t, faultProducer(t, seed).SendMessages(t.Context(), messages(10)))
	_, err := seed.Admin().DeleteRecords(t.Context(), "demo", 0, 5)
	require.NoError(t, err)
	var cuts atomic.Int32
	cuts.Store(6)
	c, err := New(WithLogger(nil), WithDialer(func(ctx context.Context, n, a string) (net.Conn, error) {
		nc, err := b.Dial(ctx, n, a)
		return cutConn{nc, `"request_type":102`, &cuts}, err
	}))
	require.NoError(t, err)
	defer c.Close()
	pc, err := c.PartitionConsumer("demo", 0, WithStartOffset(1))
	require.NoError(t, err)
	require.Equal(t, int64(5), (<-pc.Messages()).Offset)
	for {
		oor := (*OutOfRangeError)(nil)
		if errors.As(<-pc.Errors(), &oor) {
			require.Equal(t, OutOfRangeError{From: 1, To: 5}, *oor)
			return
		}
	}
}

// A loop ends with its context, however much is at hand.
func TestAllEndsWithItsContext(t *testing.T) {
	c := quietClient(t, quietBroker(t, WithTopic("demo", 1)))
	require.NoError(t, faultProducer(t, c).SendMessages(t.Context(), messages(1000)))
	for _, channel := range []bool{false, true} {
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		if channel {
			pc.Messages()
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		for _, err := range pc.All(ctx) {
			if err == nil {
				n++
			}
			cancel()
		}
		require.Equal(t, 1, n)
	}
}

// slowConn writes 64 KB a second.
type slowConn struct{ net.Conn }

func (c slowConn) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		<-time.After(time.Second / 16)
		m, err := c.Conn.Write(p[:min(len(p), 4<<10)])
		n += m
		if err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// A message that takes long to send is not taken for silence.
func TestSlowUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quietBroker(t, WithTopic("demo", 1))
		c, err := New(WithLogger(nil), WithDialer(func(ctx context.Context, n, a string) (net.Conn, error) {
			nc, err := b.Dial(ctx, n, a)
			return slowConn{nc}, err
		}))
		require.NoError(t, err)
		defer c.Close()
		_, err = faultProducer(t, c).Send(t.Context(), NewMessage("demo", make([]byte, 1<<20)))
		require.NoError(t, err)
		require.Equal(t, int64(1), highWaterMark(t, b, "demo", 0))
		require.Zero(t, c.Metrics().Connection.GetStats().Reconnections)
	})
}

// stuckConn takes writes until it is told to stop, and then none, while answers
// still come.
type stuckConn struct {
	net.Conn
	stuck *atomic.Bool
	ended chan struct{}
}

func (c stuckConn) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		<-c.ended
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// A send ends with its delivery timeout also while it waits to be written.
func TestSendWhileWritesAreStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quietBroker(t, WithTopic("demo", 1))
		var stuck atomic.Bool
		ended := make(chan struct{})
		c, err := New(WithLogger(nil), WithMaxConnections(1), WithDialer(func(ctx context.Context, n, a string) (net.Conn, error) {
			nc, err := b.Dial(ctx, n, a)
			return stuckConn{nc, &stuck, ended}, err
		}))
		require.NoError(t, err)
		p := faultProducer(t, c, WithDeliveryTimeout(time.Second))
		require.NoError(t, p.SendMessages(t.Context(), messages(1)))
		stuck.Store(true)
		results := make(chan time.Duration)
		for range 12 {
			go func() {
				began := time.Now()
				_, err := p.Send(t.Context(), NewMessage("demo", make([]byte, 1<<20-1000)))
				if err == nil {
					began = time.Time{}
				}
				results <- time.Since(began)
			}()
		}
		for range 12 {
			require.Less(t, <-results, 3*time.Second)
		}
		close(ended)
		require.NoError(t, c.Close())
	})
}

// A producer is shut down while a write does not end, because the broker does not read. That
// takes no longer than the context lasts.
func TestShutdownWhileWriteIsStuck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var stuck atomic.Bool
		ended := make(chan struct{})
		defer close(ended)
		p := faultProducer(t, faultClient(t, func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := b.Dial(ctx, network, addr)
			return stuckConn{nc, &stuck, ended}, err
		}))
		_, err := p.Send(t.Context(), to0("v"))
		require.NoError(t, err)
		stuck.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = p.Send(ctx, to0(strings.Repeat("v", 100_000)))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		require.NoError(t, p.Shutdown(ctx))
		require.LessOrEqual(t, time.Since(began), time.Second)
	})
}

// An advertised address that cannot be reached costs nothing, even when the
// connections to the one that can are lost.
func TestAdvertisedAddrUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quietBroker(t, WithTopic("demo", 1), WithAdvertisedAddr("192.0.2.1:1"))
		c, err := New(WithBrokers("seed.example:1"), WithLogger(nil), WithDialer(func(ctx context.Context, n, a string) (net.Conn, error) {
			if a != "seed.example:1" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return b.Dial(ctx, n, a)
		}))
		require.NoError(t, err)
		defer c.Close()
		p := faultProducer(t, c)
		for range 3 {
			began := time.Now()
			_, err := p.Send(t.Context(), NewMessage("demo", nil))
			require.NoError(t, err)
			require.Less(t, time.Since(began), time.Second)
			b.mu.Lock()
			for bc := range b.conns {
				bc.nc.Close()
			}
			b.mu.Unlock()
			synctest.Wait()
		}
	})
}

// logFunc is a slog.Handler that calls a function.
type logFunc struct {
	slog.Handler
	f func(message string)
}

func (l logFunc) Enabled(context.Context, slog.Level) bool { return true }

func (l logFunc) Handle(_ context.Context, r slog.Record) error {
	l.f(r.Message)
	return nil
}

// The application's logger is called without a lock.
func TestLoggerMayCallBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pc atomic.Pointer[PartitionConsumer]
		var calls atomic.Int64
		logger := slog.New(logFunc{slog.DiscardHandler, func(string) {
			if p := pc.Load(); p != nil {
				_ = p.Offset()
				_ = p.Status()
				calls.Add(1)
			}
		}})
		c, err := New(WithLogger(logger), WithDialer(func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no") }))
		require.NoError(t, err)
		p, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		pc.Store(p)
		<-time.After(10 * time.Minute)
		require.NoError(t, c.Close())
		require.NotZero(t, calls.Load())
	})
}

// failListener fails as an accept does.
type failListener struct{ err error }

func (l failListener) Accept() (net.Conn, error) { return nil, l.err }
func (l failListener) Close() error              { return nil }
func (l failListener) Addr() net.Addr            { return pipeAddr{} }

type passingError struct{ error }

func (passingError) Temporary() bool { return true }

// Serve ends when its listener has failed for good, and waits out what passes.
func TestServeEndsWithItsListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := quietBroker(t)
		broken := errors.New("broken")
		require.ErrorIs(t, b.Serve(failListener{broken}), broken)
		served := make(chan error)
		go func() { served <- b.Serve(failListener{passingError{broken}}) }()
		<-time.After(time.Hour)
		require.NoError(t, b.Close())
		require.ErrorIs(t, <-served, ErrClosed)
	})
}

// heapWhile returns the most that the heap grew while f ran and what it left behind.
func heapWhile(f func(sample func())) int64 {
	before := heapBytes()
	most := before
	f(func() { most = max(most, heapBytes()) })
	return most - before
}

// A peer that asks for much and reads nothing does not fill the broker's memory,
// whether its fetches are held or not.
func TestBrokerMemoryOfUnreadAnswers(t *testing.T) {
	for _, held := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := quietBroker(t, WithTopic("demo", 1))
			p := faultProducer(t, quietClient(t, b))
			send := func() {
				_, err := p.Send(t.Context(), NewMessage("demo", make([]byte, 1<<20)))
				require.NoError(t, err)
			}
			if !held {
				send()
			}
			nc, err := b.Dial(t.Context(), "", "")
			require.NoError(t, err)
			var requests strings.Builder
			for i := range 300 {
				fmt.Fprintf(&requests, `{"request_id":"%d","request_type":1,"payload":{"topic":"demo","offset":0,"max_wait_ms":60000}}`, i)
			}
			grown := heapWhile(func(sample func()) {
				go func() { _, _ = io.WriteString(nc, requests.String()) }()
				synctest.Wait()
				sample()
				if held {
					send()
					synctest.Wait()
					sample()
				}
			})
			require.Less(t, grown, int64(30<<20))
			nc.Close()
		})
	}
}

// A topic is described once, however often it is named; an answer that no frame
// holds is refused.
func TestMetadataAnswerIsBounded(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1000), WithMaxFrameBytes(100_000))
	p := dialPeer(t, b)
	p.send(`{"request_id":"1","request_type":5,"payload":{"topics":["demo"` + strings.Repeat(`,"demo"`, 1000) + `]}}`)
	resp := p.mustAnswer("1")
	require.False(t, resp.success)
	require.Equal(t, errorCode("MESSAGE_TOO_LARGE"), resp.errCode)
	p.requireServed()
}

// Loops side by side leave the right offset behind.
func TestOffsetOfConcurrentLoops(t *testing.T) {
	c := quietClient(t, quietBroker(t, WithTopic("demo", 1)))
	pc, err := c.PartitionConsumer("demo", 0)
	require.NoError(t, err)
	p := faultProducer(t, c)
	for round := range int64(30) {
		require.NoError(t, p.SendMessages(t.Context(), messages(50)))
		ctx, cancel := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		var got atomic.Int64
		for range 8 {
			loops.Go(func() {
				for _, err := range pc.All(ctx) {
					if err == nil && got.Add(1) == 50 {
						cancel()
					}
				}
			})
		}
		loops.Wait()
		cancel()
		require.Equal(t, 50*(round+1), pc.Offset())
	}
}

// A handle that is made while the client closes is closed with it, or not made.
func TestHandlesWhileClosing(t *testing.T) {
	b := quietBroker(t, WithTopic("demo", 1))
	for range 300 {
		c, err := b.Client(WithLogger(nil))
		require.NoError(t, err)
		var makers sync.WaitGroup
		for range 8 {
			makers.Go(func() {
				if _, err := c.PartitionConsumer("demo", 0); err != nil {
					require.ErrorIs(t, err, ErrClosed)
				}
			})
		}
		makers.Go(func() { require.NoError(t, c.Close()) })
		makers.Wait()
		require.Empty(t, c.metrics.Consumer.sources)
	}
}

// An idle producer closes, whatever its context.
func TestShutdownIdleProducer(t *testing.T) {
	c := quietClient(t, quietBroker(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		require.NoError(t, faultProducer(t, c).Shutdown(ctx))
	}
}

// Brokers without codes are understood by their words.
func TestConditionByText(t *testing.T) {
	for text, want := range map[string]error{
		"partition 9 not found":   ErrPartitionNotFound,
		"Partition not found":     ErrPartitionNotFound,
		"topic not found: orders": ErrTopicNotFound,
		"not found, partition":    nil,
		"disk on fire":            nil,
	} {
		err := &BrokerError{Message: text, condition: conditionOf("", text)}
		require.Equal(t, want, err.Unwrap(), text)
		require.Equal(t, want == nil, retriable(err), text)
	}
}

func TestWireTime(t *testing.T) {
	require.Equal(t, OffsetOldest, wireTime(time.Time{}))
	require.Equal(t, OffsetOldest, wireTime(time.UnixMilli(-1)))
	require.Equal(t, int64(0), wireTime(time.UnixMilli(0)))
	require.Equal(t, int64(5), wireTime(time.UnixMilli(5)))
	require.Equal(t, int64(math.MaxInt64), wireTime(time.Unix(1<<60, 0)))
}

// What ends within a frame is answered, to a peer that has only ended its own side.
func TestBrokerAnswersCutFrames(t *testing.T) {
	b := quietBroker(t)
	for _, cut := range []string{`{"request_id":"1","request_type":4,"payload":{}`, "[", "true", `"abc`, "12"} {
		nc, err := b.Dial(t.Context(), "", "")
		require.NoError(t, err)
		_, err = io.WriteString(nc, cut)
		require.NoError(t, err)
		require.NoError(t, nc.(*pipeConn).CloseWrite())
		answer, err := io.ReadAll(nc)
		require.NoError(t, err)
		require.Contains(t, string(answer), `"success":false`, cut)
	}
}

// Dialers and listeners that are none get an error.
func TestNothingToTalkThrough(t *testing.T) {
	c, err := New(WithLogger(nil), WithDialer(func(context.Context, string, string) (net.Conn, error) { return nil, nil }))
	require.NoError(t, err)
	defer c.Close()
	require.ErrorContains(t, c.Ping(t.Context()), "WithDialer")
	require.ErrorIs(t, quietBroker(t).Serve(nil), ErrInvalidRequest)
}

// Every wrong option is named, not only the first.
func TestEveryWrongOptionIsNamed(t *testing.T) {
	_, err := New(WithRetries(-1), WithMaxConnections(0), WithPollInterval(-1), WithRequestTimeout(1<<62))
	for _, name := range []string{"WithRetries(-1)", "WithMaxConnections(0)", "WithPollInterval(-1ns)", "WithRequestTimeout("} {
		require.ErrorContains(t, err, name)
	}
}

// A partition that grows slowly keeps little more than its retention says.
func TestMemoryRetentionOfSlowPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openTestLog(t, NewMemoryStorage(), LogConfig{RetentionAge: time.Hour}, nil)
		for range 24 * 60 {
			appendValues(t, l, 1)
			<-time.After(time.Minute)
			require.NoError(t, l.Expire(time.Now()))
		}
		start, end := l.Bounds()
		require.InDelta(t, 70, end-start, 15)
	})
}

// Connections end while calls with bodies are begun. What is still being written is known.
func TestCallsBegunWhileConnectionEnds(t *testing.T) {
	b := faultBroker(t, 1)
	c := faultClient(t, b.Dial)
	for range 100 {
		require.NoError(t, c.Ping(t.Context()))
		ending := onlyConn(t, c)
		var begun, answered sync.WaitGroup
		for range 4 {
			answered.Add(1)
			begun.Go(func() {
				body := appendBatch(nil, to0("v"))
				out := outgoingCall{req: &produceBatchRequest{Parts: []producePart{{faultTopic, 0, len(body)}}}, body: [][]byte{body}}
				var sent outBatch
				_, err := ending.post(t.Context(), out, time.Minute, func(k *call) {
					defer answered.Done()
					sent.sentOn(ending, k)
				})
				if err != nil {
					answered.Done()
				}
			})
		}
		begun.Go(func() { ending.closeWith(&ConnError{Op: "read", Err: errSilent}) })
		begun.Wait()
		answered.Wait()
	}
}
