package robust

import (
	"fmt"
	"hash/fnv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The hash is FNV-1a as the standard library has it, taken unsigned.
func TestPartitionForKey(t *testing.T) {
	for i := range 10_000 {
		key := fmt.Appendf(nil, "key-%d", i)
		h := fnv.New32a()
		_, _ = h.Write(key)
		n := int32(i%100 + 1)
		require.Equal(t, int32(h.Sum32()%uint32(n)), PartitionForKey(key, n))
	}
	require.Equal(t, int32(2166136261%7), PartitionForKey(nil, 7))
}

func TestHashPartitioner(t *testing.T) {
	p := HashPartitioner()
	require.Equal(t, PartitionForKey([]byte("k"), 5), p(NewMessageWithKey("demo", []byte("k"), nil), 5))
	require.Equal(t, PartitionForKey(nil, 5), p(NewMessageWithKey("demo", []byte{}, nil), 5), "an empty key is a key")
	seen := make(map[int32]int)
	for range 15 {
		seen[p(NewMessage("demo", nil), 5)]++
	}
	require.Equal(t, map[int32]int{0: 3, 1: 3, 2: 3, 3: 3, 4: 3}, seen)
}

func TestBackoff(t *testing.T) {
	b := backoff{base: 50 * time.Millisecond, limit: 500 * time.Millisecond}
	for n, ms := range map[int]int{1: 50, 2: 100, 3: 200, 4: 400, 5: 500, 6: 500, 40: 500, 1 << 30: 500} {
		want := time.Duration(ms) * time.Millisecond
		for range 100 {
			got := b.before(n)
			require.InDelta(t, want, got, float64(want)*0.2, "retry %d", n)
		}
	}
	require.Zero(t, backoff{0, time.Second}.before(3))
}
