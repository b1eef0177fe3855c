package robust

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// batchTap is a proxy's view of FetchBatch: what is under way, and what was answered.
type batchTap struct {
	mu       sync.Mutex // guards the following
	flying   int
	most     int // were under way at once
	requests int
	parts    int // of all requests
	body     int // bytes of all answers
}

func (b *batchTap) script() func(int) (stream, stream) {
	return func(int) (up, down stream) {
		return requests(func(f proxiedFrame) verdict {
				if f.kind == requestFetchBatch {
					var req wireRequest
					var q fetchBatchRequest
					if req.decode(f.text) == nil {
						_ = decodePayload(req.payload, &q) // Broken ones are not sent.
					}
					b.mu.Lock()
					b.flying++
					b.requests++
					b.parts += len(q.Partitions)
					b.most = max(b.most, b.flying)
					b.mu.Unlock()
				}
				return f.pass()
			}), answers(func(f proxiedFrame) verdict {
				if f.kind == requestFetchBatch {
					b.mu.Lock()
					b.flying--
					b.body += len(f.body)
					b.mu.Unlock()
				}
				return f.pass()
			})
	}
}

func (b *batchTap) get() (flying, most, requests, parts, body int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flying, b.most, b.requests, b.parts, b.body
}

// openAll returns a consumer of each partition.
func openAll(t testing.TB, c *Client, partitions int, opts ...ConsumerOption) []*PartitionConsumer {
	t.Helper()
	all := make([]*PartitionConsumer, partitions)
	for i := range all {
		pc, err := c.PartitionConsumer(faultTopic, int32(i), opts...)
		require.NoError(t, err)
		all[i] = pc
	}
	return all
}

// Thousands of consumers that wait share few requests, in whatever order they came; each
// has its message without any time passing, and the others wait on.
func TestManyPartitionsShareFetches(t *testing.T) {
	const partitions = 2000
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, partitions)
		var tap batchTap
		proxy := newFaultProxy(t, b.Dial, tap.script())
		c := faultClient(t, proxy.dial)
		require.NoError(t, c.Ping(t.Context()))
		var all []*PartitionConsumer
		for i := range partitions {
			pc, err := c.PartitionConsumer(faultTopic, int32(i))
			require.NoError(t, err)
			all = append(all, pc)
			if i%7 == 0 {
				after(time.Millisecond)
			}
		}
		after(10 * time.Second)
		_, most, before, partsBefore, _ := tap.get()
		require.Less(t, most, 70, "under way at once, while they came")
		after(10 * time.Second)
		flying, _, requests, parts, _ := tap.get()
		require.Less(t, flying, 50)
		// Every half second all of them, by requests of 64 or nearly so.
		require.Less(t, requests-before, 20*3*partitions/maxFetchShares)
		require.InDelta(t, 20*partitions, parts-partsBefore, 2*partitions)

		for i := range 200 {
			p := int32(i * 7 % partitions)
			began := time.Now()
			storeIn(t, b, p, 1)
			m, err := next(t, all[p], time.Minute)
			require.NoError(t, err)
			require.Equal(t, p, m.Partition)
			// Nothing but the wait for company may have come between.
			require.LessOrEqual(t, time.Since(began), maxGather/2)
		}
		for _, pc := range all {
			requireQuiet(t, pc.Errors())
		}
	})
}

// A consumer that goes elsewhere or ends leaves the request that it shares to the others.
func TestSharedFetchGoesOnWithoutOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 40)
		var tap batchTap
		proxy := newFaultProxy(t, b.Dial, tap.script())
		c := faultClient(t, proxy.dial)
		require.NoError(t, c.Ping(t.Context()))
		all := openAll(t, c, 40, WithFetchMaxWait(time.Hour))
		after(time.Second)
		flying, _, requests, _, _ := tap.get()
		require.Less(t, flying, 20)
		for i := range 20 {
			if i%2 == 0 {
				require.NoError(t, all[i].Close())
			} else {
				require.NoError(t, all[i].Seek(t.Context(), 0))
			}
		}
		after(time.Second)
		_, _, more, _, _ := tap.get()
		require.LessOrEqual(t, more-requests, 10, "for those that went elsewhere")
		for i := range 40 {
			storeIn(t, b, int32(i), 1)
			if i < 20 && i%2 == 0 {
				continue
			}
			m, err := next(t, all[i], time.Second)
			require.NoError(t, err, i)
			require.Equal(t, int32(i), m.Partition)
		}
		// What nobody waits for any more is given up with the last of them.
		for _, pc := range all {
			require.NoError(t, pc.Close())
		}
		synctest.Wait()
		c.fetches.mu.Lock()
		defer c.fetches.mu.Unlock()
		require.Empty(t, c.fetches.queues)
	})
}

// A refusal of the whole request, and a connection that breaks under it, are every
// sharer's; each goes on.
func TestSharedFetchFails(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, f proxiedFrame) verdict{
		"refused": func(t *testing.T, f proxiedFrame) verdict {
			return proxiedFrame{text: f.text}.edited(t, func(e map[string]any) {
				delete(e, "body")
				e["success"], e["error"], e["error_code"], e["retriable"], e["payload"] = false, "too much", "OVERLOADED", true, nil
			})
		},
		"cut": func(_ *testing.T, f proxiedFrame) verdict { return f.truncated() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const partitions = 100
				b := faultBroker(t, partitions)
				for p := range int32(partitions) {
					storeIn(t, b, p, 3)
				}
				var fail atomic.Bool
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
					return requests(nil), answers(func(f proxiedFrame) verdict {
						if f.kind == requestFetchBatch && fail.Load() {
							return damage(t, f)
						}
						return f.pass()
					})
				})
				c := faultClient(t, proxy.dial)
				all := openAll(t, c, partitions)
				for _, pc := range all {
					for i := range int64(3) {
						m, err := next(t, pc, time.Minute)
						require.NoError(t, err)
						require.Equal(t, i, m.Offset)
					}
				}
				after(time.Second)
				fail.Store(true)
				after(time.Second)
				fail.Store(false)
				told := 0
				for p, pc := range all {
					if len(pc.Errors()) > 0 {
						told++
					}
					storeIn(t, b, int32(p), 2)
					for i := range int64(2) {
						m, err := next(t, pc, 10*time.Second)
						require.NoError(t, err)
						require.Equal(t, 3+i, m.Offset)
					}
				}
				require.Greater(t, told, partitions/2)
			})
		})
	}
}

// A busy partition does not make those that share its requests wait longer, nor ask
// more often than it does, and what is too much for one answer comes with the next, for
// all of them in turn.
func TestSharedFetchIsFair(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const partitions, messages = 150, 40
		b := faultBroker(t, partitions)
		for p := range int32(partitions) {
			storeIn(t, b, p, messages)
		}
		var tap batchTap
		proxy := newFaultProxy(t, b.Dial, tap.script())
		// An answer has room for few partitions, and a fetch for few messages.
		c := faultClient(t, proxy.dial, WithMaxFrameBytes(32<<10), WithFetchMaxBytes(1000))
		began := time.Now()
		all := openAll(t, c, partitions)
		var readers sync.WaitGroup
		for p, pc := range all {
			readers.Go(func() {
				for i := range int64(messages) {
					m, err := next(t, pc, time.Minute)
					if err != nil || m.Offset != i || m.Partition != int32(p) {
						t.Errorf("partition %d: %v, %v in place of offset %d", p, m, err, i)
						return
					}
				}
			})
		}
		readers.Wait()
		require.Less(t, time.Since(began), time.Second)
		_, most, _, _, _ := tap.get()
		require.Less(t, most, 40)

		// One partition has a message every 20 ms; the others are as quick as it when
		// theirs comes.
		began = time.Now()
		_, _, before, _, _ := tap.get()
		for i := range 100 {
			storeIn(t, b, 0, 1)
			m, err := next(t, all[0], time.Second)
			require.NoError(t, err)
			require.Equal(t, int64(messages+i), m.Offset)
			after(20 * time.Millisecond)
			if i%10 == 0 {
				p := 1 + i
				at := time.Now()
				storeIn(t, b, int32(p), 1)
				_, err := next(t, all[p], time.Second)
				require.NoError(t, err)
				require.Less(t, time.Since(at), 20*time.Millisecond)
			}
		}
		require.Less(t, time.Since(began), 3*time.Second)
		_, _, requests, _, _ := tap.get()
		require.Less(t, requests-before, 1000)
	})
}

// All consumers of a client together hold what the budget allows and a batch for each,
// however much there is, however late they come, and whether their channel is in use.
// When they are read everything comes, and the budget is whole again.
func TestMaxFetchedBytes(t *testing.T) {
	const partitions, batches, perBatch = 300, 12, 40
	const limit = 700 << 10
	for _, channels := range []bool{false, true} {
		t.Run(fmt.Sprint("channels ", channels), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, partitions)
				size := storeBatches(t, b, batches, perBatch)
				var tap batchTap
				proxy := newFaultProxy(t, b.Dial, tap.script())
				c := faultClient(t, proxy.dial, WithMaxFetchedBytes(limit))
				all := make([]*PartitionConsumer, partitions)
				for p := range all {
					pc, err := c.PartitionConsumer(faultTopic, int32(p), WithMessageBuffer(1))
					require.NoError(t, err)
					all[p] = pc
					if channels {
						pc.Messages()
					}
					if p < 50 || p%100 == 0 {
						after(time.Second) // The first take more than will be their share.
					}
				}
				after(10 * time.Second)
				_, _, _, _, body := tap.get()
				require.LessOrEqual(t, body, limit+partitions*size)
				require.LessOrEqual(t, c.fetched.used.Load(), int64(limit+partitions*size))
				require.Greater(t, body, limit/2)
				for _, pc := range all {
					require.Equal(t, int64(batches*perBatch), pc.HighWaterMark(), "each has had its first")
				}

				held := int64(0)
				for p, pc := range all {
					for i := range int64(batches * perBatch) {
						m, err := next(t, pc, time.Minute)
						require.NoError(t, err)
						if m.Offset != i || m.Partition != int32(p) {
							t.Fatalf("partition %d: %v in place of offset %d", p, m, i)
						}
					}
					held = max(held, c.fetched.used.Load())
				}
				require.LessOrEqual(t, held, int64(limit+partitions*size))
				after(time.Second)
				for _, pc := range all {
					require.NoError(t, pc.Close())
				}
				require.Zero(t, c.fetched.used.Load())
				require.Zero(t, c.fetched.readers.Load())
			})
		})
	}
}

// storeBatches stores so many batches of so many messages in each partition. It returns
// the size of a batch.
func storeBatches(t testing.TB, b *Broker, batches, each int) int {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	size := 0
	for _, p := range topic.partitions {
		for range batches {
			ms := make([]*Message, each)
			for i := range ms {
				ms[i] = &Message{Value: make([]byte, 100), Timestamp: 1}
			}
			batch := appendBatch(nil, ms...)
			size = len(batch)
			p.log.Append(batch, AcksStored, func(r AppendResult) { require.NoError(t, r.Err) })
		}
	}
	return size
}

// Seeks, closes and errors give back what was reserved.
func TestMaxFetchedBytesIsGivenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 10)
		storeBatches(t, b, 20, 50)
		var cut atomic.Bool
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return nil, answers(func(f proxiedFrame) verdict {
				if cut.Load() && f.n%5 == 4 {
					return f.truncated()
				}
				return f.pass()
			})
		})
		c := faultClient(t, proxy.dial, WithMaxFetchedBytes(100_000))
		all := openAll(t, c, 10, WithFetchMaxBytes(7000))
		cut.Store(true)
		var readers sync.WaitGroup
		for p, pc := range all {
			readers.Go(func() {
				for i := range int64(50) {
					from := i * 37 % 900
					if err := pc.Seek(t.Context(), from); err != nil {
						t.Error(err)
					}
					for j := range i % 60 {
						m, err := next(t, pc, time.Minute)
						if err != nil || m.Offset != from+j || m.Partition != int32(p) {
							t.Errorf("partition %d: %v, %v in place of offset %d", p, m, err, from+j)
							return
						}
					}
				}
			})
		}
		readers.Wait()
		cut.Store(false)
		for _, pc := range all {
			require.NoError(t, pc.Seek(t.Context(), OffsetNewest))
		}
		after(5 * time.Second)
		// What is reserved for fetches that are held is all.
		require.LessOrEqual(t, c.fetched.used.Load(), int64(10*5000))
		for _, pc := range all {
			require.NoError(t, pc.Close())
		}
		require.Zero(t, c.fetched.used.Load())
	})
}

// Loops side by side, left and begun again, and the channel from some time on, share the
// messages: each is delivered once, and to each reader in order.
func TestHandOverSideBySide(t *testing.T) {
	const messages = 20_000
	b := faultBroker(t, 1)
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	for i := 0; i < messages; i += 100 {
		ms := make([]*Message, 100)
		for j := range ms {
			ms[j] = &Message{Value: fmt.Append(nil, i+j), Timestamp: 1}
		}
		topic.partitions[0].log.Append(appendBatch(nil, ms...), AcksStored, func(r AppendResult) { require.NoError(t, r.Err) })
	}
	c := faultClient(t, b.Dial)
	pc := faultConsumer(t, c, WithFetchMaxBytes(50_000), WithMessageBuffer(7))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var seen [messages]atomic.Int32
	var total atomic.Int64
	take := func(m *Message, before *int64) {
		if m.Offset <= *before || string(m.Value) != fmt.Sprint(m.Offset) {
			t.Errorf("offset %d, %q, behind %d", m.Offset, m.Value, *before)
		}
		*before = m.Offset
		seen[m.Offset].Add(1)
		if total.Add(1) == messages {
			cancel()
		}
	}
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			before := int64(-1)
			for n := 0; ctx.Err() == nil; n++ {
				left := n%30 + 1
				for m, err := range pc.All(ctx) {
					if err != nil {
						break
					}
					take(m, &before)
					if left--; left == 0 {
						break
					}
				}
			}
		})
	}
	readers.Go(func() {
		for total.Load() < messages/2 && ctx.Err() == nil {
			time.Sleep(time.Millisecond) //nolint:forbidigo // only to be late
		}
		before := int64(-1)
		for {
			select {
			case m := <-pc.Messages():
				take(m, &before)
			case <-ctx.Done():
				return
			}
		}
	})
	readers.Wait()
	for offset := range seen {
		require.Equal(t, int32(1), seen[offset].Load(), offset)
	}
	require.Equal(t, int64(messages), pc.Offset())
	stats := c.Metrics().Consumer.GetStats()
	require.Equal(t, uint64(messages), stats.MessagesReceived)
}

// What is counted, and where the consumer says it is, is right after every message, also
// in the middle of a batch, and over seeks.
func TestHandOverCounts(t *testing.T) {
	b := faultBroker(t, 1)
	storeBatches(t, b, 10, 50)
	c := faultClient(t, b.Dial)
	pc := faultConsumer(t, c)
	n := uint64(0)
	for _, from := range []int64{0, 120, 0, 499, 30} {
		require.NoError(t, pc.Seek(t.Context(), from))
		left := 60
		at := from
		for m, err := range pc.All(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, at, m.Offset)
			at++
			n++
			stats := c.Metrics().Consumer.GetStats()
			require.Equal(t, n, stats.MessagesReceived)
			require.Equal(t, 100*n, stats.BytesReceived)
			require.Equal(t, at, pc.Offset())
			require.Equal(t, 500-at, stats.Lag[TopicPartition{faultTopic, 0}])
			if left--; left == 0 || at == 500 {
				break
			}
		}
	}
	require.NoError(t, pc.Close())
	require.Equal(t, n, c.Metrics().Consumer.GetStats().MessagesReceived)
}

// Keys, values and the rest of messages that share memory are each message's own as far
// as an application can tell: appending to one does not change another.
func TestFetchedMessagesDoNotOverlap(t *testing.T) {
	b := faultBroker(t, 1)
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	var ms []*Message
	for i := range 10 {
		ms = append(ms, &Message{Key: fmt.Append(nil, "key", i), Value: fmt.Append(nil, "value", i), Timestamp: int64(i)})
	}
	topic.partitions[0].log.Append(appendBatch(nil, ms...), AcksStored, func(AppendResult) {})
	pc := faultConsumer(t, faultClient(t, b.Dial))
	var got []*Message
	for m, err := range pc.All(t.Context()) {
		require.NoError(t, err)
		m.Key, m.Value = append(m.Key, "xxxxxxxx"...), append(m.Value, "yyyyyyyy"...)
		if got = append(got, m); len(got) == 10 {
			break
		}
	}
	for i, m := range got {
		require.Equal(t, fmt.Sprint("key", i, "xxxxxxxx"), string(m.Key))
		require.Equal(t, fmt.Sprint("value", i, "yyyyyyyy"), string(m.Value))
	}
	require.True(t, slices.IsSortedFunc(got, func(a, b *Message) int { return int(a.Offset - b.Offset) }))
}
