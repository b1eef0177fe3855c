package robust_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// memoryClient returns a client of an embedded broker, for tests under fake time: it
// must be closed inside the bubble.
func memoryClient(t testing.TB, opts ...robust.Option) *robust.Client {
	t.Helper()
	c, err := robust.New(append([]robust.Option{
		robust.WithEmbeddedBroker(robust.WithTopic("demo", 1)), robust.WithLogger(nil),
	}, opts...)...)
	require.NoError(t, err)
	return c
}

// fill sends n messages to demo/0, whose values are their offsets and whose
// timestamps are a second apart from base.
func fill(t testing.TB, c *robust.Client, n int, base time.Time) {
	t.Helper()
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	ms := make([]*robust.Message, n)
	for i := range ms {
		ms[i] = robust.NewMessage("demo", fmt.Append(nil, i))
		ms[i].Timestamp = base.Add(time.Duration(i) * time.Second).UnixMilli()
	}
	require.NoError(t, producer.SendMessages(t.Context(), ms))
	require.NoError(t, producer.Close())
}

var fillBase = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestConsumerStart(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	fill(t, c, 100, fillBase)
	_, err := c.Admin().DeleteRecords(ctx, "demo", 0, 10)
	require.NoError(t, err)
	for name, o := range map[string]struct {
		opt  robust.ConsumerOption
		want int64
	}{
		"default":      {robust.WithPollInterval(time.Second), 10},
		"oldest":       {robust.WithStartOffset(robust.OffsetOldest), 10},
		"newest":       {robust.WithStartOffset(robust.OffsetNewest), 100},
		"offset":       {robust.WithStartOffset(42), 42},
		"time":         {robust.WithStartTime(fillBase.Add(30500 * time.Millisecond)), 31},
		"time before":  {robust.WithStartTime(fillBase.Add(-time.Hour)), 10},
		"ancient time": {robust.WithStartTime(time.Time{}.Add(1)), 10},
		"time behind":  {robust.WithStartTime(fillBase.Add(time.Hour)), 100},
	} {
		t.Run(name, func(t *testing.T) {
			pc, err := c.PartitionConsumer("demo", 0, o.opt)
			require.NoError(t, err)
			defer pc.Close()
			if o.want == 100 {
				// The position is settled once the high-water mark is known.
				require.Eventually(t, func() bool { return pc.HighWaterMark() == 100 }, time.Minute, time.Millisecond)
				require.Equal(t, int64(100), pc.Offset())
				return
			}
			m := <-pc.Messages()
			require.Equal(t, o.want, m.Offset)
			require.Equal(t, fmt.Sprint(o.want), string(m.Value))
			require.Equal(t, fmt.Sprintf("demo-0-%d", o.want), m.ID)
		})
	}
}

// A consumer that has caught up is held by the broker: a message arrives without any
// time passing, and while there is none a fetch is sent every half second, no more.
func TestConsumerLongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t)
		defer c.Close()
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.InDelta(t, 120, c.Metrics().Consumer.GetStats().FetchCount, 2)
		began := time.Now()
		_, _, err = producer.SendMessage(t.Context(), robust.NewMessage("demo", []byte("x")))
		require.NoError(t, err)
		require.Equal(t, "x", string((<-pc.Messages()).Value))
		require.Zero(t, time.Since(began))
	})
}

// A fetch waits for as many bytes as it asks for, or for its time. Bytes are those of
// record batches, which have a header.
func TestConsumerMinBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t)
		defer c.Close()
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMinBytes(1000), robust.WithFetchMaxWait(10*time.Second))
		require.NoError(t, err)
		synctest.Wait()
		began := time.Now()
		send := func(n int) {
			_, _, err := producer.SendMessage(t.Context(), robust.NewMessage("demo", make([]byte, n)))
			require.NoError(t, err)
		}
		send(600)
		<-pc.Messages()
		require.Equal(t, 10*time.Second, time.Since(began).Round(time.Second), "too little: at the end of the wait")
		send(600)
		synctest.Wait()
		require.Empty(t, pc.Messages())
		send(600)
		<-pc.Messages()
		require.Equal(t, 10*time.Second, time.Since(began).Round(time.Second), "enough: at once")
	})
}

// Against a broker that cannot hold a fetch it asks at the poll interval.
func TestConsumerPollInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t, robust.WithProtocol(robust.ProtocolV0))
		defer c.Close()
		pc, err := c.PartitionConsumer("demo", 0, robust.WithPollInterval(time.Second))
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.InDelta(t, 60, c.Metrics().Consumer.GetStats().FetchCount, 2)
		require.NoError(t, pc.Close())
	})
}

func TestConsumerPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t)
		defer c.Close()
		fill(t, c, 10, fillBase)
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		pc.Pause()
		pc.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		for _, err := range pc.All(ctx) {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		cancel()
		require.Contains(t, pc.Status().String(), "paused by the application")
		pc.Resume()
		got := 0
		for m, err := range pc.All(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, int64(got), m.Offset)
			if got++; got == 5 {
				pc.Pause()
				time.AfterFunc(time.Minute, pc.Resume)
			}
			if got == 10 {
				break
			}
		}
		require.Equal(t, int64(10), pc.Offset())
	})
}

func TestConsumerSeek(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	fill(t, c, 1000, fillBase)
	pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxBytes(700), robust.WithMessageBuffer(13))
	require.NoError(t, err)
	for i := range int64(300) {
		// Each time some of what came before is in the channel, some on its way.
		want := i * 37 % 990
		require.NoError(t, pc.Seek(ctx, want))
		require.Contains(t, []int64{want, robust.OffsetNewest}, pc.Offset())
		for j := range i % 9 {
			require.Equal(t, want+j, (<-pc.Messages()).Offset)
		}
	}
	require.NoError(t, pc.SeekTime(ctx, fillBase.Add(500*time.Second)))
	require.Equal(t, int64(500), (<-pc.Messages()).Offset)
	require.NoError(t, pc.Seek(ctx, robust.OffsetOldest))
	require.Equal(t, int64(0), (<-pc.Messages()).Offset)
	require.NoError(t, pc.Seek(ctx, robust.OffsetNewest))
	_, err = c.Admin().DeleteRecords(ctx, "demo", 0, 1)
	require.NoError(t, err)
	require.ErrorIs(t, pc.Seek(ctx, -3), robust.ErrOffsetOutOfRange)
	require.NoError(t, pc.Close())
	require.ErrorIs(t, pc.Seek(ctx, 0), robust.ErrClosed)
}

// Many goroutines seek, pause and read at once; at the end a single reader gets
// every message in order.
func TestConsumerSeekConcurrently(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	fill(t, c, 500, fillBase)
	pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxBytes(1100), robust.WithMessageBuffer(5))
	require.NoError(t, err)
	reading, stop := context.WithCancel(ctx)
	var readers, seekers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for _, err := range pc.All(reading) {
				if err != nil {
					return
				}
			}
		})
		readers.Go(func() {
			for {
				select {
				case <-pc.Messages():
				case <-reading.Done():
					return
				}
			}
		})
		seekers.Go(func() {
			for i := range int64(200) {
				require.NoError(t, pc.Seek(ctx, i))
				pc.Pause()
				pc.Resume()
				_ = pc.Offset()
				_ = pc.Status()
			}
		})
	}
	seekers.Wait()
	stop()
	readers.Wait()
	require.NoError(t, pc.Seek(ctx, 0))
	for i := range int64(500) {
		require.Contains(t, []int64{i - 1, i}, pc.Offset())
		require.Equal(t, i, (<-pc.Messages()).Offset)
	}
	require.NoError(t, pc.Close())
}

func TestConsumerOutOfRange(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	fill(t, c, 100, fillBase)
	_, err := c.Admin().DeleteRecords(ctx, "demo", 0, 20)
	require.NoError(t, err)

	expect := func(pc *robust.PartitionConsumer, from, to int64) {
		t.Helper()
		err := <-pc.Errors()
		oor := (*robust.OutOfRangeError)(nil)
		require.ErrorAs(t, err, &oor)
		require.ErrorIs(t, err, robust.ErrOffsetOutOfRange)
		require.Equal(t, robust.OutOfRangeError{From: from, To: to}, *oor)
	}
	t.Run("oldest", func(t *testing.T) {
		for _, from := range []int64{5, 101} {
			pc, err := c.PartitionConsumer("demo", 0, robust.WithStartOffset(from))
			require.NoError(t, err)
			require.Equal(t, int64(20), (<-pc.Messages()).Offset)
			expect(pc, from, 20)
			require.NoError(t, pc.Close())
		}
	})
	t.Run("newest", func(t *testing.T) {
		pc, err := c.PartitionConsumer("demo", 0, robust.WithStartOffset(5), robust.WithOutOfRange(robust.OutOfRangeNewest))
		require.NoError(t, err)
		expect(pc, 5, 100)
		require.NoError(t, pc.Close())
	})
	t.Run("fail", func(t *testing.T) {
		pc, err := c.PartitionConsumer("demo", 0, robust.WithStartOffset(5), robust.WithOutOfRange(robust.OutOfRangeFail))
		require.NoError(t, err)
		_, open := <-pc.Messages()
		require.False(t, open)
		expect(pc, 5, -1)
		for m, err := range pc.All(ctx) {
			require.Nil(t, m)
			require.ErrorIs(t, err, robust.ErrOffsetOutOfRange)
		}
		require.ErrorIs(t, pc.Seek(ctx, 30), robust.ErrOffsetOutOfRange, "it has ended")
		require.NoError(t, pc.Close())
	})
}

// What cannot get better ends a consumer with one request, and says so.
func TestConsumerFinalErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t)
		defer c.Close()
		pc, err := c.PartitionConsumer("missing", 0)
		require.NoError(t, err)
		<-time.After(time.Hour)
		require.ErrorIs(t, <-pc.Errors(), robust.ErrTopicNotFound)
		for _, err := range pc.All(t.Context()) {
			require.ErrorIs(t, err, robust.ErrTopicNotFound)
		}
		require.Contains(t, pc.Status().String(), "topic not found")
		pc, err = c.PartitionConsumer("demo", 1)
		require.NoError(t, err)
		require.ErrorIs(t, <-pc.Errors(), robust.ErrPartitionNotFound)

		// A topic deleted under a waiting consumer.
		pc, err = c.PartitionConsumer("demo", 0, robust.WithFetchMaxWait(time.Hour))
		require.NoError(t, err)
		synctest.Wait()
		require.NoError(t, c.Admin().DeleteTopic(t.Context(), "demo"))
		require.ErrorIs(t, <-pc.Errors(), robust.ErrTopicNotFound)
	})
}

// Close works from inside a loop, from other goroutines, twice, with unread messages
// and while a fetch is held.
func TestConsumerClose(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	fill(t, c, 1000, fillBase)
	open := func() *robust.PartitionConsumer {
		pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxWait(time.Hour))
		require.NoError(t, err)
		return pc
	}
	t.Run("inside a loop", func(t *testing.T) {
		pc := open()
		var last error
		n := 0
		for _, err := range pc.All(ctx) {
			if last = err; err == nil {
				n++
				require.NoError(t, pc.Close())
			}
		}
		require.Equal(t, 1, n)
		require.ErrorIs(t, last, robust.ErrClosed)
	})
	t.Run("unread", func(t *testing.T) {
		pc := open()
		<-pc.Messages()
		require.NoError(t, pc.Close())
		left := 0
		for range pc.Messages() {
			left++
		}
		require.LessOrEqual(t, left, 100)
		for err := range pc.Errors() {
			require.Fail(t, "an orderly end is no error", err)
		}
	})
	t.Run("held", func(t *testing.T) {
		pc := open()
		require.NoError(t, pc.Seek(ctx, 1000))
		ended := make(chan error)
		go func() {
			for _, err := range pc.All(ctx) {
				ended <- err
			}
		}()
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() { require.NoError(t, pc.Close()) })
		}
		group.Wait()
		require.ErrorIs(t, <-ended, robust.ErrClosed)
	})
	t.Run("never read", func(t *testing.T) {
		pc := open()
		require.NoError(t, pc.Close())
		_, ok := <-pc.Messages()
		require.False(t, ok)
	})
	t.Run("by the client", func(t *testing.T) {
		c := memoryClient(t)
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		messages := pc.Messages()
		require.NoError(t, c.Close())
		_, ok := <-messages
		require.False(t, ok)
		require.NoError(t, pc.Close())
		_, err = c.PartitionConsumer("demo", 0)
		require.ErrorIs(t, err, robust.ErrClosed)
	})
}

// What is fetched ahead is bounded, whoever does not read.
func TestConsumerBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memoryClient(t)
		defer c.Close()
		for range 10 {
			fill(t, c, 500, fillBase)
		}
		pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxBytes(4000), robust.WithMessageBuffer(20))
		require.NoError(t, err)
		require.Len(t, make([]struct{}, cap(pc.Messages())), 20)
		<-time.After(time.Hour)
		require.Len(t, pc.Messages(), 20)
		// One is at hand and one ahead. Of those at hand before there were fewer messages than
		// the channel takes: a producer's first batch leaves with what there is.
		fetches := c.Metrics().Consumer.GetStats().FetchCount
		require.LessOrEqual(t, fetches, uint64(3))
		<-time.After(time.Hour)
		require.Equal(t, fetches, c.Metrics().Consumer.GetStats().FetchCount)
		require.Contains(t, pc.Status().String(), "wait for the application")
		require.Equal(t, int64(0), pc.Offset())
		require.Equal(t, int64(5000), pc.HighWaterMark())
	})
}

// A message larger than what a fetch asks for comes all the same.
func TestConsumerLargeMessage(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	for _, n := range []int{10, 500_000, 10} {
		_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", make([]byte, n)))
		require.NoError(t, err)
	}
	pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxBytes(100))
	require.NoError(t, err)
	for _, n := range []int{10, 500_000, 10} {
		require.Len(t, (<-pc.Messages()).Value, n)
	}
}

// Everything about a message comes back as it was sent, in both forms.
func TestConsumerRoundTrip(t *testing.T) {
	ctx := t.Context()
	for _, p := range []robust.Protocol{robust.ProtocolV1, robust.ProtocolV0} {
		c := newClient(t, newBroker(t, robust.WithTopic("demo", 1)), robust.WithProtocol(p))
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		sent := []*robust.Message{
			{Topic: "demo", ID: "own", Key: []byte("k"), Value: []byte{0, 255}, Headers: map[string]string{"a": "b", "ü": "\"\n\u2028<"}, Timestamp: 5},
			{Topic: "demo", Key: []byte{}, Value: []byte{}, Timestamp: -5},
			{Topic: "demo", Timestamp: 1 << 60},
		}
		require.NoError(t, producer.SendMessages(ctx, sent))
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		for i, want := range sent {
			got := <-pc.Messages()
			if want.ID == "" {
				want.ID = fmt.Sprintf("demo-0-%d", i)
			}
			require.Equal(t, want, got)
		}
	}
}

// Lag goes down to nothing as messages are read, and the gauge goes with its reader.
func TestConsumerLag(t *testing.T) {
	ctx := t.Context()
	c := memoryClient(t)
	defer c.Close()
	for range 10 {
		fill(t, c, 10, fillBase)
	}
	pc, err := c.PartitionConsumer("demo", 0, robust.WithFetchMaxBytes(1))
	require.NoError(t, err)
	key := robust.TopicPartition{Topic: "demo", Partition: 0}
	next := int64(0)
	for m, err := range pc.All(ctx) {
		require.NoError(t, err)
		next = m.Offset + 1
		require.Equal(t, 100-next, c.Metrics().Consumer.GetStats().Lag[key])
		if next == 100 {
			break
		}
	}
	require.NoError(t, pc.Close())
	require.NotContains(t, c.Metrics().Consumer.GetStats().Lag, key)
	stats := c.Metrics().Consumer.GetStats()
	require.Equal(t, uint64(100), stats.MessagesReceived)
	require.GreaterOrEqual(t, stats.FetchCount, uint64(10), "a fetch brings a batch, however little it may bring")
}

// Notices that nobody reads are dropped, the oldest first, and counted.
func TestConsumerUnreadErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := robust.New(robust.WithLogger(nil), robust.WithDialer(refuseDial))
		require.NoError(t, err)
		pc, err := c.PartitionConsumer("demo", 0)
		require.NoError(t, err)
		<-time.After(time.Minute)
		require.Len(t, pc.Errors(), 10)
		require.NotZero(t, c.Metrics().Consumer.GetStats().ErrorsDropped)
		err = <-pc.Errors()
		ce := (*robust.ConsumerError)(nil)
		require.ErrorAs(t, err, &ce)
		require.Equal(t, "demo", ce.Topic)
		require.ErrorIs(t, err, robust.ErrNoBroker)
		conn := (*robust.ConnError)(nil)
		require.ErrorAs(t, err, &conn)
		require.Contains(t, pc.Status().String(), "refused by the test")
		require.NoError(t, c.Close())
	})
}
