package robust_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// Every message has one result, and is stored once, at the offset that the result says.
func TestAsyncResults(t *testing.T) {
	const n = 10_000
	broker := newBroker(t, robust.WithTopic("demo", 3))
	client := newClient(t, broker)
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	results := make(map[string]*robust.ProducerMessage)
	done := make(chan error, 1)
	go func() {
		for r := range producer.Successes() {
			results[string(r.Value)] = r
		}
		for e := range producer.Errors() {
			done <- e
			return
		}
		done <- nil
	}()
	for i := range n {
		m := robust.NewMessageWithKey("demo", fmt.Appendf(nil, "k%d", i%10), fmt.Appendf(nil, "v%d", i))
		m.Metadata = i
		require.NoError(t, producer.Send(t.Context(), m))
	}
	require.NoError(t, producer.Close())
	require.NoError(t, <-done)
	require.Len(t, results, n)
	for p := range int32(3) {
		consumer, err := client.PartitionConsumer("demo", p)
		require.NoError(t, err)
		at := int64(0)
		last := make(map[string]int)
		for m, err := range consumer.All(t.Context()) {
			require.NoError(t, err)
			r := results[string(m.Value)]
			require.NotNil(t, r)
			require.Equal(t, []int64{int64(p), at}, []int64{int64(r.Partition), r.Offset})
			require.Equal(t, string(m.Value), fmt.Sprintf("v%d", r.Metadata))
			require.GreaterOrEqual(t, r.Metadata.(int), last[string(m.Key)])
			last[string(m.Key)] = r.Metadata.(int)
			at++
			if at == consumer.HighWaterMark() {
				break
			}
		}
		require.NoError(t, consumer.Close())
	}
}

// Flush waits also for messages that a broker which takes no batches is sent one by one:
// it returned before their results were there.
func TestAsyncFlushOfSingles(t *testing.T) {
	broker := newBroker(t, robust.WithTopic("demo", 1))
	client, err := robust.New(robust.WithDialer(broker.Dial), robust.WithProtocol(robust.ProtocolV0))
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	var results atomic.Int64
	for i := range int64(2000) {
		require.NoError(t, producer.SendFunc(t.Context(), robust.NewMessage("demo", []byte("x")), func(_ *robust.Message, _ robust.Receipt, err error) {
			runtime.Gosched() // Flush is to have its chance.
			if err == nil {
				results.Add(1)
			}
		}))
		if i%50 == 49 {
			require.NoError(t, producer.Flush(t.Context()))
			require.Equal(t, i+1, results.Load())
		}
	}
	require.NoError(t, producer.Close())
}

// What cannot be sent is refused by Send itself, and nothing is taken.
func TestAsyncSendRefuses(t *testing.T) {
	ctx := t.Context()
	broker := newBroker(t, robust.WithTopic("demo", 2))
	client := newClient(t, broker, robust.WithMaxFrameBytes(4<<20))
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	wrong := func(change func(m *robust.Message)) *robust.Message {
		m := robust.NewMessage("demo", nil)
		change(m)
		return m
	}
	ended, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("enough"))
	done := func(*robust.Message, robust.Receipt, error) { t.Error("it was not taken") }
	for _, tc := range []struct {
		m    *robust.Message
		want error
	}{
		{nil, robust.ErrInvalidRequest},
		{robust.NewMessage("", nil), robust.ErrInvalidRequest},
		{robust.NewMessage("a/b", nil), robust.ErrInvalidRequest},
		{wrong(func(m *robust.Message) { m.Partition = -2 }), robust.ErrPartitionNotFound},
		{wrong(func(m *robust.Message) { m.Value = make([]byte, 4<<20+1) }), robust.ErrMessageTooLarge},
		{wrong(func(m *robust.Message) { m.ID = strings.Repeat("x", 1<<16) }), robust.ErrInvalidRequest},
	} {
		require.ErrorIs(t, producer.Send(ctx, tc.m), tc.want)
		require.ErrorIs(t, producer.SendFunc(ctx, tc.m, done), tc.want)
	}
	require.ErrorIs(t, producer.SendFunc(ended, robust.NewMessage("demo", nil), done), context.Canceled)
	require.ErrorIs(t, producer.Send(ended, robust.NewMessage("demo", nil)), context.Canceled)
	require.ErrorContains(t, producer.Send(ended, robust.NewMessage("demo", nil)), "enough")
	require.ErrorIs(t, producer.SendFunc(ctx, robust.NewMessage("demo", nil), nil), robust.ErrInvalidRequest)
	require.NoError(t, producer.Flush(ctx))
	require.NoError(t, producer.Close())
	_, more := <-producer.Successes()
	require.False(t, more)
	_, more = <-producer.Errors()
	require.False(t, more)
	require.Zero(t, client.Metrics().Producer.GetStats().MessagesSent)
}

// After Close everything says so, and nothing hangs or panics.
func TestAsyncAfterClose(t *testing.T) {
	ctx := t.Context()
	client := newClient(t, newBroker(t, robust.WithTopic("demo", 1)))
	for _, how := range []string{"close", "shutdown", "client"} {
		producer, err := client.AsyncProducer()
		require.NoError(t, err)
		require.NoError(t, producer.Send(ctx, robust.NewMessage("demo", nil)))
		switch how {
		case "close":
			require.NoError(t, producer.Close())
		case "shutdown":
			require.NoError(t, producer.Shutdown(ctx))
		default:
			require.NoError(t, client.Close())
		}
		require.ErrorIs(t, producer.Send(ctx, robust.NewMessage("demo", nil)), robust.ErrClosed)
		err = producer.SendFunc(ctx, robust.NewMessage("demo", nil), func(*robust.Message, robust.Receipt, error) {})
		require.ErrorIs(t, err, robust.ErrClosed)
		require.NoError(t, producer.Flush(ctx))
		require.NoError(t, producer.Close())
		require.NoError(t, producer.Shutdown(ctx))
		require.Equal(t, "closed", producer.Status().String())
		producer.Input() <- robust.NewMessage("demo", nil) // It stays there.
		n := 0
		for range producer.Successes() {
			n++
		}
		for e := range producer.Errors() {
			require.NoError(t, e)
		}
		require.Equal(t, 1, n)
	}
	_, err := client.AsyncProducer()
	require.ErrorIs(t, err, robust.ErrClosed)
}

// Options that make no sense are refused, those of the client are the producer's.
func TestAsyncOptions(t *testing.T) {
	client := newClient(t, newBroker(t, robust.WithTopic("demo", 1)), robust.WithReturnSuccesses(false))
	for _, opt := range []robust.AsyncOption{
		robust.WithBatchSize(0), robust.WithBatchBytes(0), robust.WithBatchTimeout(-1), robust.WithMaxBufferedBytes(0),
		robust.WithInputBuffer(-1), robust.WithCompression(99), robust.WithAcks(99), robust.WithDeliveryTimeout(0),
	} {
		_, err := client.AsyncProducer(opt)
		require.ErrorIs(t, err, robust.ErrInvalidConfig)
	}
	producer, err := client.AsyncProducer(robust.WithInputBuffer(0))
	require.NoError(t, err)
	producer.Input() <- robust.NewMessage("demo", []byte("a"))
	for client.Metrics().Producer.GetStats().MessagesSent == 0 {
		require.NoError(t, producer.Flush(t.Context()))
	}
	require.NoError(t, producer.Close())
	_, more := <-producer.Successes()
	require.False(t, more)
}

// Messages can be used for something else when they are taken, but for the Message itself.
func TestAsyncKeepsNothingOfMessages(t *testing.T) {
	broker := newBroker(t, robust.WithTopic("demo", 1))
	client := newClient(t, broker)
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	key, value, headers := []byte("key"), make([]byte, 4), map[string]string{}
	for i := range 2000 {
		copy(value, fmt.Sprintf("%04d", i))
		headers["n"] = fmt.Sprint(i)
		m := robust.NewMessageWithKey("demo", key, value)
		m.Headers = headers
		require.NoError(t, producer.SendFunc(t.Context(), m, func(_ *robust.Message, _ robust.Receipt, err error) {
			if err != nil {
				t.Error(err)
			}
		}))
	}
	require.NoError(t, producer.Close())
	consumer, err := client.PartitionConsumer("demo", 0)
	require.NoError(t, err)
	i := 0
	for m, err := range consumer.All(t.Context()) {
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%04d", i), string(m.Value))
		require.Equal(t, map[string]string{"n": fmt.Sprint(i)}, m.Headers)
		if i++; i == 2000 {
			break
		}
	}
}

// A producer's bound on memory holds also when a single message is larger: it is sent alone.
func TestAsyncLargerThanAllRoom(t *testing.T) {
	client := newClient(t, newBroker(t, robust.WithTopic("demo", 1)))
	producer, err := client.AsyncProducer(robust.WithMaxBufferedBytes(1000), robust.WithBatchBytes(100))
	require.NoError(t, err)
	var stored atomic.Int64
	for i := range 60 {
		m := robust.NewMessage("demo", make([]byte, i%3*3000))
		require.NoError(t, producer.SendFunc(t.Context(), m, func(_ *robust.Message, r robust.Receipt, err error) {
			if err != nil || r.Offset != stored.Add(1)-1 {
				t.Errorf("message %d: offset %d, %v", i, r.Offset, err)
			}
		}))
	}
	require.NoError(t, producer.Close())
	require.Equal(t, int64(60), stored.Load())
}
