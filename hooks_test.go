package robust

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// toldEvents are what hooks were told.
type toldEvents struct {
	mu           sync.Mutex
	connected    []ConnectionEvent
	disconnected []ConnectionEvent
	requests     []RequestEvent
	produced     []ProduceEvent
	consumed     []ConsumeEvent
}

func noteIn[E any](mu *sync.Mutex, all *[]E) func(E) {
	return func(e E) {
		mu.Lock()
		defer mu.Unlock()
		*all = append(*all, e)
	}
}

func (e *toldEvents) hooks() Hooks {
	return Hooks{
		Connected: noteIn(&e.mu, &e.connected), Disconnected: noteIn(&e.mu, &e.disconnected),
		RequestDone: noteIn(&e.mu, &e.requests), ProduceDone: noteIn(&e.mu, &e.produced), Consumed: noteIn(&e.mu, &e.consumed),
	}
}

// request returns the events of one kind.
func (e *toldEvents) request(name string) (found []RequestEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.requests {
		if r.Request == name {
			found = append(found, r)
		}
	}
	return found
}

func TestHooksOfBothEnds(t *testing.T) {
	for _, protocol := range []Protocol{ProtocolV1, ProtocolV0} {
		t.Run(protocol.String(), func(t *testing.T) {
			var client, broker toldEvents
			b, err := NewBroker(WithTopic("demo", 1), WithHooks(broker.hooks()))
			require.NoError(t, err)
			c, err := b.Client(WithProtocol(protocol), WithHooks(client.hooks()))
			require.NoError(t, err)
			p, err := c.SyncProducer()
			require.NoError(t, err)
			for range 3 {
				_, err = p.Send(t.Context(), NewMessage("demo", []byte("0123456789")))
				require.NoError(t, err)
			}
			_, err = p.Send(t.Context(), NewMessage("nowhere", nil))
			require.ErrorIs(t, err, ErrTopicNotFound)
			consumer, err := c.PartitionConsumer("demo", 0)
			require.NoError(t, err)
			for i := range 3 {
				m, err := consumer.receive(t.Context())
				require.NoError(t, err)
				require.Equal(t, int64(i), m.Offset)
			}
			require.NoError(t, c.Close())
			require.NoError(t, b.Close())

			for name, e := range map[string]*toldEvents{"client": &client, "broker": &broker} {
				require.NotEmpty(t, e.connected, name)
				require.Len(t, e.disconnected, len(e.connected), name)
				for _, d := range e.disconnected {
					require.Greater(t, d.Latency, time.Duration(0), name)
					require.NotEmpty(t, d.Addr, name)
				}
				stored, messages := 0, 0
				for _, d := range e.produced {
					if d.Err == nil {
						require.Equal(t, "demo", d.Topic, name)
						require.Equal(t, int32(0), max(d.Partition, 0), name)
						require.Greater(t, d.Latency, time.Duration(0), name)
						require.GreaterOrEqual(t, d.Bytes, 10*d.Messages, name)
						stored += d.Messages
					}
				}
				require.Equal(t, 3, stored, name)
				for _, d := range e.consumed {
					require.Equal(t, "demo", d.Topic, name)
					require.GreaterOrEqual(t, d.Bytes, 10*d.Messages, name)
					messages += d.Messages
				}
				require.GreaterOrEqual(t, messages, 3, name)
				require.Equal(t, int64(0), e.consumed[0].Offset, name)
				for _, r := range e.requests {
					require.Equal(t, 1, r.Requests, name)
					require.Greater(t, r.Latency, time.Duration(0), name)
				}
			}
			kind := map[Protocol]string{ProtocolV1: "ProduceBatch", ProtocolV0: "Produce"}[protocol]
			require.GreaterOrEqual(t, len(client.request(kind)), 3)
			require.GreaterOrEqual(t, len(broker.request(kind)), 3)
			require.Equal(t, int64(2), broker.produced[2].BaseOffset)
			failed := client.produced[len(client.produced)-1]
			require.ErrorIs(t, failed.Err, ErrTopicNotFound)
			require.Equal(t, "nowhere", failed.Topic)
			refused := 0
			for _, r := range client.requests {
				if r.Err != nil {
					require.ErrorIs(t, r.Err, ErrTopicNotFound)
					refused++
				}
			}
			require.NotZero(t, refused)
		})
	}
}

func TestHookIsToldOfFailedDials(t *testing.T) {
	var told toldEvents
	c, err := New(WithBrokers("broker:1"), WithLogger(nil), WithHooks(told.hooks()),
		WithDialer(func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }))
	require.NoError(t, err)
	require.ErrorIs(t, c.Ping(t.Context()), ErrNoBroker)
	require.NoError(t, c.Close())
	require.NotEmpty(t, told.connected)
	require.Equal(t, "broker:1", told.connected[0].Addr)
	require.ErrorIs(t, told.connected[0].Err, net.ErrClosed)
	require.Empty(t, told.disconnected)
}

// TestHooksTogether holds that hooks given twice are both told, in order, and that those of a
// client do not go to the broker that is embedded in it.
func TestHooksTogether(t *testing.T) {
	var order []string
	var mu sync.Mutex
	hook := func(name string) Option {
		return WithHooks(Hooks{Connected: func(ConnectionEvent) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
		}})
	}
	c, err := New(WithEmbeddedBroker(), hook("first"), WithHooks(Hooks{}), hook("second"))
	require.NoError(t, err)
	require.NoError(t, c.Ping(t.Context()))
	require.NoError(t, c.Close())
	require.Equal(t, []string{"first", "second"}, order)
}

// restless is a receiver that changes its message as soon as it is asked whether it still
// waits, as one may that has just given up.
type restless struct {
	m    *Message
	told chan error
}

func (r *restless) gaveUp(*entry) bool {
	go func() { r.m.Topic, r.m.Partition = "changed", 7 }()
	return false
}

func (r *restless) settle(_ *entry, _ Receipt, err error) { r.told <- err }

// TestHookLooksAtNoMessage: the hook used to be told the topic of a message that never had a
// partition out of the message, which was its sender's again by then: a data race.
func TestHookLooksAtNoMessage(t *testing.T) {
	var told toldEvents
	c, err := New(WithBrokers("broker:1"), WithLogger(nil), WithHooks(told.hooks()),
		WithDialer(func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	r := &restless{NewMessage("nowhere", []byte("x")), make(chan error, 1)}
	_, err = p.box.accept(t.Context(), r.m, handing{to: r, at: p.box.age()})
	require.NoError(t, err)
	require.NoError(t, p.Close())
	require.ErrorIs(t, <-r.told, ErrClosed)
	require.Len(t, told.produced, 1)
	require.Equal(t, "nowhere", told.produced[0].Topic)
	require.Equal(t, PartitionAny, told.produced[0].Partition)
}

// heldConn keeps back what it has received while held is locked.
type heldConn struct {
	net.Conn

	held *sync.RWMutex
}

func (c *heldConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.held.RLock()
	defer c.held.RUnlock()
	return n, err
}

// TestHooksAddUp: messages that nobody waited for any more were counted as failed, without a
// word to the hook, and those of SendMessages as sent, too, when their answer came.
func TestHooksAddUp(t *testing.T) {
	for _, protocol := range []Protocol{ProtocolV1, ProtocolV0} {
		t.Run(protocol.String(), func(t *testing.T) {
			var told toldEvents
			b, err := NewBroker(WithTopic("demo", 1))
			require.NoError(t, err)
			defer b.Close()
			var held sync.RWMutex // Locked, no answer arrives.
			dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
				nc, err := b.Dial(ctx, network, addr)
				return &heldConn{nc, &held}, err
			}
			c, err := New(WithBrokers("broker:1"), WithDialer(dial), WithProtocol(protocol), WithLogger(nil), WithHooks(told.hooks()))
			require.NoError(t, err)
			p, err := c.SyncProducer()
			require.NoError(t, err)
			ms := func() (ms []*Message) {
				for range 10 {
					ms = append(ms, NewMessage("demo", []byte("0123456789")))
				}
				return ms
			}
			require.NoError(t, p.SendMessages(t.Context(), ms()))
			r, err := p.Send(t.Context(), NewMessage("demo", nil))
			require.NoError(t, err)
			require.Equal(t, r.Offset, told.produced[len(told.produced)-1].BaseOffset)

			_, err = p.Send(t.Context(), NewMessage("not a topic's name", nil))
			require.ErrorIs(t, err, ErrInvalidRequest)
			_, err = p.Send(t.Context(), nil)
			require.ErrorIs(t, err, ErrInvalidRequest)
			over, cancel := context.WithCancel(t.Context())
			cancel()
			_, err = p.Send(over, NewMessage("demo", nil))
			require.ErrorIs(t, err, context.Canceled)

			held.Lock()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			require.Error(t, p.SendMessages(ctx, ms()))
			_, err = p.Send(ctx, NewMessage("demo", nil))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			held.Unlock()
			_, err = p.Send(t.Context(), NewMessage("demo", nil)) // Its answer comes behind those.
			require.NoError(t, err)
			require.NoError(t, c.Close())

			var sent, failed uint64
			for _, e := range told.produced {
				if e.Err == nil {
					sent += uint64(e.Messages)
				} else {
					failed += uint64(e.Messages)
				}
			}
			s := c.Metrics().Producer.GetStats()
			require.Equal(t, uint64(10+1+1), sent)
			require.Equal(t, uint64(3+10+1), failed)
			require.Equal(t, sent, s.MessagesSent)
			require.Equal(t, failed, s.MessagesFailed)
		})
	}
}
