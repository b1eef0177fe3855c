package robust

import (
	"fmt"
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
