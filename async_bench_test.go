package robust_test

import (
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// BenchmarkAsync sends with a callback for each message, broker and client in one process.
func BenchmarkAsync(b *testing.B) {
	for _, size := range []int{100, 1024} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			broker := newBroker(b, robust.WithTopic("bench", 1), robust.WithRetention(0, 64<<20))
			producer, err := newClient(b, broker).AsyncProducer()
			require.NoError(b, err)
			m := robust.NewMessage("bench", make([]byte, size))
			var failed, stored atomic.Int64
			done := func(_ *robust.Message, _ robust.Receipt, err error) {
				if err != nil {
					failed.Add(1)
				} else {
					stored.Add(1)
				}
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			n := int64(0)
			for b.Loop() {
				n++
				if err := producer.SendFunc(b.Context(), m, done); err != nil {
					b.Fatal(err)
				}
			}
			require.NoError(b, producer.Flush(b.Context()))
			require.Zero(b, failed.Load())
			require.Equal(b, n, stored.Load())
		})
	}
}
