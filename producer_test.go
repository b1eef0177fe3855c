package robust_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

func refuseDial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("refused by the test")
}

func TestSendChoosesPartitions(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 5)))
	hashed, err := c.SyncProducer()
	require.NoError(t, err)
	seen := make(map[int32]int)
	for range 20 {
		partition, _, err := hashed.SendMessage(ctx, robust.NewMessage("demo", nil))
		require.NoError(t, err)
		seen[partition]++
	}
	require.Equal(t, map[int32]int{0: 4, 1: 4, 2: 4, 3: 4, 4: 4}, seen, "without a key in turn")

	own, err := c.SyncProducer(robust.WithPartitioner(func(m *robust.Message, n int32) int32 { return n - 1 }))
	require.NoError(t, err)
	partition, _, err := own.SendMessage(ctx, robust.NewMessageWithKey("demo", []byte("k"), nil))
	require.NoError(t, err)
	require.Equal(t, int32(4), partition)

	m := robust.NewMessageWithKey("demo", []byte("k"), nil)
	m.Partition = 2
	partition, _, err = own.SendMessage(ctx, m)
	require.NoError(t, err)
	require.Equal(t, int32(2), partition, "an explicit partition is not for the partitioner")

	for _, bad := range []int32{-1, 5} {
		p, err := c.SyncProducer(robust.WithPartitioner(func(*robust.Message, int32) int32 { return bad }))
		require.NoError(t, err)
		_, _, err = p.SendMessage(ctx, robust.NewMessage("demo", nil))
		require.ErrorIs(t, err, robust.ErrInvalidConfig)
		require.ErrorContains(t, err, "WithPartitioner")
	}
}

func TestSendRefusals(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 1)))
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	with := func(f func(m *robust.Message)) *robust.Message {
		m := robust.NewMessage("demo", nil)
		f(m)
		return m
	}
	for _, tc := range []struct {
		m    *robust.Message
		want error
	}{
		{nil, robust.ErrInvalidRequest},
		{robust.NewMessage("", nil), robust.ErrInvalidRequest},
		{robust.NewMessage("a/b", nil), robust.ErrInvalidRequest},
		{robust.NewMessage("missing", nil), robust.ErrTopicNotFound},
		{with(func(m *robust.Message) { m.Partition = -2 }), robust.ErrPartitionNotFound},
		{with(func(m *robust.Message) { m.Partition = 1 }), robust.ErrPartitionNotFound},
		{with(func(m *robust.Message) { m.Value = make([]byte, 1<<20+1) }), robust.ErrMessageTooLarge},
		{with(func(m *robust.Message) { m.Value = make([]byte, 15<<20) }), robust.ErrMessageTooLarge},
		{with(func(m *robust.Message) { m.Value = make([]byte, 20<<20) }), robust.ErrMessageTooLarge},
	} {
		partition, offset, err := producer.SendMessage(ctx, tc.m)
		require.ErrorIs(t, err, tc.want)
		require.Equal(t, robust.PartitionAny, partition)
		require.Equal(t, int64(-1), offset)
	}
	require.Equal(t, uint64(9), c.Metrics().Producer.GetStats().MessagesFailed)
	require.Zero(t, c.Metrics().Producer.GetStats().Retries, "none of them can get better")
	_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", nil))
	require.NoError(t, err, "the connection has survived")
}

// SendMessages sets what was stored and returns exactly what was not.
func TestSendMessagesPartly(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 1)))
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	require.NoError(t, producer.SendMessages(ctx, nil))
	ms := make([]*robust.Message, 100)
	for i := range ms {
		switch {
		case i == 50:
		case i%10 == 3:
			ms[i] = robust.NewMessage("missing", nil)
			ms[i].Metadata = i
		default:
			ms[i] = robust.NewMessage("demo", fmt.Append(nil, i))
		}
	}
	err = producer.SendMessages(ctx, ms)
	var failed robust.ProducerErrors
	require.ErrorAs(t, err, &failed)
	require.ErrorIs(t, err, robust.ErrTopicNotFound)
	require.ErrorIs(t, err, robust.ErrInvalidRequest)
	require.Len(t, failed, 11)
	require.Equal(t, 3, failed[0].Metadata)
	require.Same(t, ms[3], failed[0].Msg)
	next := int64(0)
	for i, m := range ms {
		switch {
		case i == 50:
		case i%10 == 3:
			require.Equal(t, int64(-1), m.Offset)
		default:
			require.Equal(t, next, m.Offset)
			require.Equal(t, int32(0), m.Partition)
			require.NotZero(t, m.Timestamp)
			next++
		}
	}
}

// A send without a broker ends with its context or with the delivery timeout, and
// says what it was waiting for.
func TestSendWithoutBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := robust.New(robust.WithLogger(nil), robust.WithDialer(refuseDial), robust.WithBrokers("one.example:8686", "two.example:8686"))
		require.NoError(t, err)
		defer c.Close()
		producer, err := c.SyncProducer(robust.WithDeliveryTimeout(20 * time.Second))
		require.NoError(t, err)

		began := time.Now()
		_, _, err = producer.SendMessage(t.Context(), robust.NewMessage("demo", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, robust.ErrNoBroker)
		require.ErrorContains(t, err, "send to demo: the delivery timeout of 20s is over: ")
		require.NotContains(t, err.Error(), "context", "the application's has not ended")
		require.ErrorContains(t, err, "one.example:8686, failed")
		require.ErrorContains(t, err, "refused by the test")
		require.LessOrEqual(t, time.Since(began), 20*time.Second)
		require.Greater(t, time.Since(began), 19*time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began = time.Now()
		_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "send to demo: context deadline exceeded: ")
		require.Equal(t, 3*time.Second, time.Since(began))

		cause := errors.New("the application's reason")
		withCause, cancelCause := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancelCause(cause) })
		err = producer.SendMessages(withCause, []*robust.Message{robust.NewMessage("demo", nil)})
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, cause)
		require.ErrorIs(t, c.Ping(t.Context()), robust.ErrNoBroker)
	})
}

// A dial that hangs holds nobody past its context.
func TestSendWhileDialHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := robust.New(robust.WithLogger(nil), robust.WithDialer(func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}))
		require.NoError(t, err)
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", nil))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(began))
		require.Contains(t, c.Status().String(), "connecting")
		ended := make(chan error)
		go func() {
			_, _, err := producer.SendMessage(t.Context(), robust.NewMessage("demo", nil))
			ended <- err
		}()
		synctest.Wait()
		require.Contains(t, producer.Status().String(), "1 sends under way")
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, robust.ErrClosed)
		require.Less(t, time.Since(began), 32*time.Second)
	})
}

func TestProducerClose(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 1)))
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			for {
				_, _, err := producer.SendMessage(ctx, robust.NewMessage("demo", nil))
				if err != nil {
					require.ErrorIs(t, err, robust.ErrClosed)
					return
				}
			}
		})
	}
	require.NoError(t, producer.Close())
	require.NoError(t, producer.Close())
	group.Wait()
	require.ErrorIs(t, producer.SendMessages(ctx, []*robust.Message{robust.NewMessage("demo", nil)}), robust.ErrClosed)
	require.Equal(t, "closed", producer.Status().String())
	require.NoError(t, c.Ping(ctx), "the client stays open")
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Ping(ctx), robust.ErrClosed)
	_, err = c.SyncProducer()
	require.ErrorIs(t, err, robust.ErrClosed)
	require.Equal(t, "closed", c.Status().String())
}

// 1,000 idle clients and 100 busy goroutines on one client.
func TestManyClients(t *testing.T) {
	ctx := t.Context()
	b := newBroker(t, robust.WithTopic("demo", 7))
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	idle := make([]*robust.Client, 1000)
	for i := range idle {
		idle[i], err = robust.New(robust.WithBrokers(addr.String()))
		require.NoError(t, err)
		require.NoError(t, idle[i].Ping(ctx))
	}
	busy, err := robust.New(robust.WithBrokers(addr.String()))
	require.NoError(t, err)
	producer, err := busy.SyncProducer()
	require.NoError(t, err)
	const goroutines, each = 100, 200
	var group sync.WaitGroup
	for g := range goroutines {
		group.Go(func() {
			for i := range each {
				_, _, err := producer.SendMessage(ctx, robust.NewMessageWithKey("demo", fmt.Append(nil, g), fmt.Append(nil, g, " ", i)))
				require.NoError(t, err)
			}
		})
	}
	group.Wait()
	require.LessOrEqual(t, busy.Metrics().Connection.GetStats().ActiveConnections, int64(5))
	require.Equal(t, uint64(goroutines*each), busy.Metrics().Producer.GetStats().MessagesSent)

	// Each key's messages are in order, and all of them are there.
	next := make(map[string]int)
	for partition := range int32(7) {
		pc, err := busy.PartitionConsumer("demo", partition)
		require.NoError(t, err)
		end, err := busy.Admin().ListOffsets(ctx, "demo", time.Now().Add(time.Hour))
		require.NoError(t, err)
		for range end[partition] {
			m := <-pc.Messages()
			key := string(m.Key)
			require.Equal(t, fmt.Sprint(key, " ", next[key]), strings.TrimSpace(string(m.Value)))
			next[key]++
		}
	}
	require.Len(t, next, goroutines)
	for _, n := range next {
		require.Equal(t, each, n)
	}
	for _, c := range idle {
		require.NoError(t, c.Close())
	}
	require.NoError(t, busy.Close())
}
