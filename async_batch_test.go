package robust

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// passedBatch is a batch on its way to a broker.
type passedBatch struct {
	after     time.Duration // since the log of them was begun
	request   int           // in which request
	partition int32
	values    []string
	size      int
	how       Compression
}

// batchLog is a proxy that notes the batches that pass, and holds their answers up.
type batchLog struct {
	t     *testing.T
	begun time.Time
	hold  func() time.Duration // nil: for no time

	mu       sync.Mutex // guards the following
	batches  []passedBatch
	requests int
}

func newBatchLog(t *testing.T, b *Broker) (*batchLog, *faultProxy) {
	l := &batchLog{t: t, begun: time.Now()}
	return l, newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return requests(l.note), answers(func(f proxiedFrame) verdict {
			if f.kind == requestProduceBatch && l.hold != nil {
				return f.late(l.hold())
			}
			return f.pass()
		})
	})
}

func (l *batchLog) note(f proxiedFrame) verdict {
	if f.kind != requestProduceBatch {
		return f.pass()
	}
	var req wireRequest
	var q produceBatchRequest
	require.NoError(l.t, req.decode(f.text))
	require.NoError(l.t, decodePayload(req.payload, &q))
	l.mu.Lock()
	defer l.mu.Unlock()
	body := f.body
	for _, part := range q.Parts {
		b := batch(body[:part.Bytes])
		body = body[part.Bytes:]
		sent := passedBatch{
			after: time.Since(l.begun), request: l.requests, partition: part.Partition, size: len(b), how: b.compression(),
		}
		plain, err := b.plain(64 << 20)
		require.NoError(l.t, err)
		for records := plain.records(); ; {
			var m Message
			more, err := records.next(&m)
			require.NoError(l.t, err)
			if !more {
				break
			}
			sent.values = append(sent.values, string(m.Value))
		}
		l.batches = append(l.batches, sent)
	}
	l.requests++
	return f.pass()
}

// since returns the batches that have passed behind the first n.
func (l *batchLog) since(n int) []passedBatch {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.batches[n:])
}

func (l *batchLog) now() time.Duration { return time.Since(l.begun) }

// batching is a producer, warm, whose batches are noted.
func batching(t *testing.T, partitions int32, hold time.Duration, opts ...AsyncOption) (l *batchLog, send func(from, to int), p *AsyncProducer) {
	l, proxy := newBatchLog(t, faultBroker(t, partitions))
	c := faultClient(t, proxy.dial, WithMetadataMaxAge(time.Hour))
	p = faultAsync(t, c, append([]AsyncOption{WithReturnSuccesses(false)}, opts...)...)
	send = func(from, to int) {
		for i := from; i < to; i++ {
			require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(i))))
		}
	}
	send(-1, 0)
	require.NoError(t, p.Flush(t.Context()))
	require.Len(t, l.since(0), 1)
	l.hold = func() time.Duration { return hold }
	return l, send, p
}

func numbers(from, to int) []string {
	var all []string
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// TestAsyncIdleSendsAtOnce sends to a broker that has answered everything: nothing is waited
// for.
func TestAsyncIdleSendsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, send, p := batching(t, 1, time.Millisecond, WithBatchTimeout(time.Hour))
		for i := range 10 {
			at := l.now()
			send(i, i+1)
			require.Equal(t, at, l.since(1 + i)[0].after)
			<-time.After(time.Second)
		}
		require.Len(t, l.since(1), 10)
		require.NoError(t, p.Close())
	})
}

// TestAsyncLinger sends to a broker that has not answered yet. What comes is sent together
// when its time is over, or when the answer is there.
func TestAsyncLinger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, send, p := batching(t, 1, time.Second, WithBatchTimeout(30*time.Millisecond))
		at := l.now()
		send(0, 1)
		<-time.After(5 * time.Millisecond)
		send(1, 4)
		<-time.After(20 * time.Millisecond)
		send(4, 6)
		<-time.After(time.Minute)
		got := l.since(1)
		require.Len(t, got, 2)
		require.Equal(t, at, got[0].after)
		require.Equal(t, at+35*time.Millisecond, got[1].after, "from the first message on")
		require.Equal(t, numbers(1, 6), got[1].values)
		require.NoError(t, p.Close())
	})
	bubble(t, func(t *testing.T) {
		l, send, p := batching(t, 1, 50*time.Millisecond, WithBatchTimeout(time.Hour))
		at := l.now()
		send(0, 1)
		<-time.After(10 * time.Millisecond)
		send(1, 6)
		<-time.After(time.Minute)
		got := l.since(1)
		require.Len(t, got, 2)
		require.Equal(t, at+50*time.Millisecond, got[1].after, "when the broker is idle")
		require.Equal(t, numbers(1, 6), got[1].values)
		require.NoError(t, p.Close())
	})
}

// TestAsyncFlushes sends what waits when somebody wants it: Flush, or Close.
func TestAsyncFlushes(t *testing.T) {
	for _, how := range []string{"flush", "close"} {
		bubble(t, func(t *testing.T) {
			l, send, p := batching(t, 1, time.Second, WithBatchTimeout(time.Hour))
			send(0, 1)
			<-time.After(10 * time.Millisecond)
			send(1, 6)
			require.Len(t, l.since(1), 1)
			at := l.now()
			if how == "flush" {
				require.NoError(t, p.Flush(t.Context()))
			} else {
				require.NoError(t, p.Close())
			}
			got := l.since(1)
			require.Len(t, got, 2)
			require.Equal(t, at, got[1].after)
			require.Equal(t, numbers(1, 6), got[1].values)
			require.Equal(t, at+time.Second, l.now())
			require.NoError(t, p.Close())
		})
	}
}

// TestAsyncBatchSize fills batches. A full one does not wait for its time to be over.
func TestAsyncBatchSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, send, p := batching(t, 1, time.Second, WithBatchTimeout(time.Hour), WithBatchSize(7))
		at := l.now()
		send(0, 1)
		send(1, 7)
		require.Len(t, l.since(1), 1)
		send(7, 8)
		got := l.since(1)
		require.Len(t, got, 2)
		require.Equal(t, at, got[1].after)
		require.Equal(t, numbers(1, 8), got[1].values)
		// Two requests are enough. Those that come meanwhile make the next one larger.
		send(8, 30)
		<-time.After(time.Second)
		got = l.since(3)
		require.Len(t, got, 1)
		require.Equal(t, numbers(8, 30), got[0].values)
		require.NoError(t, p.Close())
	})
}

// TestAsyncBatchBytes fills batches up to their bytes, with messages of any size. A larger
// message is a batch of its own, and order is kept.
func TestAsyncBatchBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const limit = 2000
		l, _, p := batching(t, 1, 10*time.Millisecond, WithBatchBytes(limit))
		var want []string
		for i := range 500 {
			size := rand.IntN(300)
			if i%50 == 7 {
				size = 3 * limit
			}
			value := fmt.Sprintf("%d %s", i, strings.Repeat("x", size))
			want = append(want, value)
			require.NoError(t, p.Send(t.Context(), to0(value)))
			if i%20 == 0 {
				<-time.After(time.Millisecond)
			}
		}
		require.NoError(t, p.Close())
		var got []string
		full := 0
		for _, b := range l.since(1) {
			got = append(got, b.values...)
			if len(b.values) > 1 {
				require.LessOrEqual(t, b.size, limit)
			}
			if b.size > limit/2 {
				full++
			}
		}
		require.Equal(t, want, got)
		require.Greater(t, full, 20)
	})
}

// TestAsyncSmallFrames has a broker whose frames are smaller than the batches that wait when
// it is reached for the first time.
func TestAsyncSmallFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const limit = 64 << 10
		b := faultBroker(t, 1, WithMaxFrameBytes(limit))
		l, proxy := newBatchLog(t, b)
		dial, open := gatedDial(proxy.dial)
		p := faultAsync(t, faultClient(t, dial))
		var told outcomes
		for i := range 1000 {
			require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
			if i%10 == 0 {
				require.NoError(t, p.SendFunc(t.Context(), to0(strings.Repeat("x", 2000)+fmt.Sprint(i)), told.done))
			}
		}
		synctest.Wait()
		open()
		require.NoError(t, p.Close())
		require.Equal(t, 1100, told.count())
		require.Len(t, stored(t, b, 0), 1100)
		for _, s := range l.since(0) {
			require.Less(t, s.size, limit)
		}
		for i := range 1000 {
			require.NoError(t, told.of(t, fmt.Sprint(i)).err)
		}
	})
}

// TestAsyncManySmallPartitions sends to so many partitions that what names them, and what is
// answered, takes a good part of the frames that a broker takes, or the client.
func TestAsyncManySmallPartitions(t *testing.T) {
	const partitions = 500
	for _, c := range []struct {
		name   string
		broker []BrokerOption
		client []Option
	}{
		{"broker", []BrokerOption{WithMaxFrameBytes(128 << 10)}, nil},
		{"client", nil, []Option{WithMaxFrameBytes(128 << 10), WithFetchMaxBytes(64 << 10)}},
	} {
		for _, topic := range []string{faultTopic, strings.Repeat(faultTopic, 249)} {
			t.Run(fmt.Sprint(c.name, len(topic)), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					b := quietBroker(t, append([]BrokerOption{WithTopic(topic, partitions)}, c.broker...)...)
					dial, open := gatedDial(b.Dial)
					client := faultClient(t, dial, c.client...)
					p := faultAsync(t, client)
					var told outcomes
					for i := range partitions {
						m := NewMessage(topic, fmt.Append(nil, i))
						m.Partition = int32(i)
						require.NoError(t, p.SendFunc(t.Context(), m, told.done))
					}
					open()
					require.NoError(t, p.Flush(t.Context()))
					for i := range partitions {
						require.NoError(t, told.of(t, fmt.Sprint(i)).err)
					}
					require.EqualValues(t, 1, client.Metrics().Connection.GetStats().TotalConnections, "none broke")
				})
			})
		}
	}
}

// TestFlushPolicy asks the application after each message, and does as it says.
func TestFlushPolicy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked []PendingBatch
		var mu sync.Mutex
		l, send, p := batching(t, 2, time.Second, WithBatchTimeout(time.Hour), WithFlushPolicy(func(b PendingBatch) bool {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, b)
			return b.Messages == 4
		}))
		asked = nil
		send(0, 1) // At once.
		<-time.After(time.Millisecond)
		at := time.Now()
		send(1, 4)
		<-time.After(2 * time.Millisecond)
		require.Len(t, l.since(1), 1)
		send(4, 5)
		got := l.since(1)
		require.Len(t, got, 2)
		require.Equal(t, numbers(1, 5), got[1].values)
		require.Len(t, asked, 4, "what has left is not asked about")
		bytes := 0
		for i, b := range asked {
			require.Equal(t, []any{faultTopic, int32(0), i + 1}, []any{b.Topic, b.Partition, b.Messages})
			require.True(t, b.Since.Equal(at), "%v %v", b.Since, at)
			require.Greater(t, b.Bytes, bytes)
			bytes = b.Bytes
		}
		require.Equal(t, bytes, got[1].size)
		require.NoError(t, p.Close())
	})
}

// TestFlushPolicyMayUseTheProducer asks a policy that looks at the producer itself.
func TestFlushPolicyMayUseTheProducer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		var p *AsyncProducer
		nested := 0
		ready := false
		p = faultAsync(t, quietClient(t, b), WithReturnSuccesses(false), WithFlushPolicy(func(PendingBatch) bool {
			if !ready {
				return false
			}
			_ = p.Status()
			if nested == 0 {
				nested++
				require.NoError(t, p.Send(t.Context(), to0("nested")))
				nested--
			}
			return true
		}))
		ready = true
		for i := range 20 {
			require.NoError(t, p.Send(t.Context(), to0(fmt.Sprint(i))))
		}
		require.NoError(t, p.Close())
		require.GreaterOrEqual(t, len(stored(t, b, 0)), 20)
	})
}

// TestAsyncPartitionsShareRequests sends to many partitions: they share requests, and a few
// requests are enough.
func TestAsyncPartitionsShareRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const partitions = 50
		l, _, p := batching(t, partitions, 5*time.Millisecond)
		for i := range 5000 {
			m := to0(fmt.Sprint(i))
			m.Partition = int32(i % partitions)
			require.NoError(t, p.Send(t.Context(), m))
			if i%100 == 0 {
				<-time.After(time.Millisecond)
			}
		}
		require.NoError(t, p.Close())
		got := l.since(1)
		messages := 0
		for _, b := range got {
			messages += len(b.values)
		}
		require.Equal(t, 5000, messages)
		require.Less(t, got[len(got)-1].request, 60)
	})
}

// TestCompressionEndToEnd sends with each compression. Batches are on the wire and in the log
// as they were made, and consumers read what was sent; what does not shrink is plain.
func TestCompressionEndToEnd(t *testing.T) {
	t.Parallel()
	for _, how := range []Compression{CompressionNone, CompressionGzip, CompressionSnappy, CompressionLZ4, CompressionZstd} {
		t.Run(how.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const n = 300
				dir := t.TempDir()
				b := faultBroker(t, 1, WithDataDir(dir))
				l, proxy := newBatchLog(t, b)
				c := faultClient(t, proxy.dial)
				p := faultAsync(t, c, WithCompression(how))
				var told outcomes
				var want []string
				noise := make([]byte, 3000)
				for i := range n {
					value := fmt.Sprint(i, strings.Repeat(" again", 50))
					if i%3 == 0 {
						for j := range noise {
							noise[j] = byte(rand.IntN(256))
						}
						value = string(noise)
					}
					want = append(want, value)
					require.NoError(t, p.SendFunc(t.Context(), to0(value), told.done))
					if i%30 == 0 {
						require.NoError(t, p.Flush(t.Context()))
					}
				}
				require.NoError(t, p.Flush(t.Context()))
				// Nothing but noise, alone in its batch.
				require.NoError(t, p.SendFunc(t.Context(), to0(want[0]+"\x17"), told.done))
				require.NoError(t, p.Close())
				want = append(want, want[0]+"\x17")
				sync := faultProducer(t, c, WithCompression(how))
				_, err := sync.Send(t.Context(), to0(strings.Repeat("sync", 100)))
				require.NoError(t, err)
				want = append(want, strings.Repeat("sync", 100))

				sent := l.since(0)
				require.Equal(t, how, sent[len(sent)-1].how)
				require.Equal(t, CompressionNone, sent[len(sent)-2].how)
				require.Equal(t, []string{want[n]}, sent[len(sent)-2].values)
				shrunk := 0
				for _, s := range sent {
					if s.how == how {
						shrunk++
					} else {
						require.Equal(t, CompressionNone, s.how)
					}
				}
				require.Greater(t, shrunk, len(sent)/2)
				require.Equal(t, sent, l.storedBatches(b, sent), "the log has them as they came")
				for range 2 {
					pc := faultConsumer(t, c)
					for i := range want {
						m, err := next(t, pc, time.Minute)
						require.NoError(t, err)
						require.Equal(t, want[i], string(m.Value))
						require.Equal(t, int64(i), m.Offset)
						if i <= n {
							require.Equal(t, int64(i), told.of(t, want[i]).receipt.Offset)
						}
					}
					require.NoError(t, pc.Close())
					// And once more from the files.
					require.NoError(t, b.Close())
					b = faultBroker(t, 1, WithDataDir(dir))
					c = quietClient(t, b)
				}
			})
		})
	}
}

// storedBatches returns what partition 0 holds in the terms of what was sent.
func (l *batchLog) storedBatches(b *Broker, sent []passedBatch) []passedBatch {
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(l.t, err)
	var all []passedBatch
	for at := int64(0); ; {
		read, err := topic.partitions[0].log.Read(l.t.Context(), at, 1<<20)
		require.NoError(l.t, err)
		if len(read.Batches) == 0 {
			return all
		}
		for rest := read.Batches; len(rest) > 0; {
			cut, r, err := parseBatch(rest)
			require.NoError(l.t, err)
			rest = r
			s := sent[len(all)]
			s.size, s.how = len(cut), cut.compression()
			all = append(all, s)
			at = cut.nextOffset()
		}
		read.Release()
	}
}
