package robust

import (
	"bytes"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAsyncAnswerIsOvertaken has the answer to one batch stay away while those to the batches
// behind it come. However many these are, the broker has to recognise the first when the
// connection breaks and it comes again.
func TestAsyncAnswerIsOvertaken(t *testing.T) {
	for lost := 1; lost <= 3; lost++ {
		bubble(t, func(t *testing.T) {
			const n = 30
			b := faultBroker(t, 1)
			var answered atomic.Int64
			proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
				return requests(nil), answers(func(f proxiedFrame) verdict {
					if f.kind == requestProduceBatch && answered.Add(1) == int64(lost) {
						return f.drop()
					}
					return f.pass()
				})
			})
			p := faultAsync(t, faultClient(t, proxy.dial), WithBatchSize(1))
			var told outcomes
			for i := range n {
				require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
				<-time.After(100 * time.Millisecond)
			}
			require.Less(t, told.count(), n, "an answer is missing")
			proxy.cutAll()
			require.NoError(t, p.Flush(t.Context()))
			require.Equal(t, numbers(0, n), stored(t, b, 0))
			require.Equal(t, n, told.check(t, b, 1, n))
		})
	}
}

// TestAsyncSplitIsOvertaken has one message in a batch be too large, and the answer to the
// half that it is in come behind that to the other half. What is left of the first half is
// stored before the second.
func TestAsyncSplitIsOvertaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n, size = 8, 200 << 10
		b := faultBroker(t, 1)
		var answered atomic.Int64
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind == requestProduceBatch && answered.Add(1) == 2 {
					return f.late(time.Second)
				}
				return f.pass()
			})
		})
		require.NoError(t, quietClient(t, b).Admin().AlterTopicConfig(t.Context(), faultTopic, map[string]string{"max.message.bytes": "300000"}))
		dial, open := gatedDial(proxy.dial)
		p := faultAsync(t, faultClient(t, dial), WithBatchBytes(4<<20))
		var told outcomes
		for i := range n {
			m := to0(fmt.Sprint(i))
			m.Key = make([]byte, size)
			if i == 0 {
				m.Key = make([]byte, 2*size)
			}
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
		}
		open()
		require.NoError(t, p.Flush(t.Context()))
		require.Equal(t, numbers(1, n), stored(t, b, 0))
		require.ErrorIs(t, told.of(t, "0").err, ErrMessageTooLarge)
	})
}

// TestAsyncEpochsAreUsedUp refuses a message when a partition is in its last epoch. The batches
// that follow are of another producer ID, which the broker has given.
func TestAsyncEpochsAreUsedUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		var mu sync.Mutex
		var seen []producerFields
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(func(f proxiedFrame) verdict {
				if f.kind == requestProduceBatch {
					mu.Lock()
					defer mu.Unlock()
					seen = append(seen, batch(bytes.Clone(f.body)).producer())
				}
				return f.pass()
			}), nil
		})
		require.NoError(t, quietClient(t, b).Admin().AlterTopicConfig(t.Context(), faultTopic, map[string]string{"max.message.bytes": "1000"}))
		p := faultAsync(t, faultClient(t, proxy.dial))
		var told outcomes
		send := func(partition int32, value string, size int) {
			m := to0(value)
			m.Partition, m.Key = partition, make([]byte, size)
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			require.NoError(t, p.Flush(t.Context()))
		}
		send(0, "0", 1)
		p.box.mu.Lock()
		q := p.box.topic(faultTopic).queues[0]
		q.renumber, q.epoch = true, math.MaxInt16-1
		q.resumeLocked()
		p.box.mu.Unlock()
		send(0, "1", 1)
		send(0, "large", 2000)
		send(0, "2", 1)
		send(1, "3", 1)
		require.ErrorIs(t, told.of(t, "large").err, ErrMessageTooLarge)
		for i := range 4 {
			require.NoError(t, told.of(t, fmt.Sprint(i)).err)
		}
		require.Equal(t, numbers(0, 3), stored(t, b, 0))
		mu.Lock()
		defer mu.Unlock()
		first := seen[0].id
		require.Equal(t, producerFields{first, math.MaxInt16, 0}, seen[1])
		last := seen[len(seen)-2:]
		require.Positive(t, last[0].id)
		require.NotEqual(t, first, last[0].id)
		require.Equal(t, last[0], last[1], "another partition has the ID as well")
	})
}
