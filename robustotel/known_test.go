package robustotel

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestKnownIsBounded has more keys than are kept.
func TestKnownIsBounded(t *testing.T) {
	var k known[int, int]
	made := 0
	ask := func(n int) {
		require.Equal(t, -n, k.get(n, func() int { made++; return -n }))
	}
	for n := range maxKnown + 10 {
		ask(n)
		ask(n)
	}
	require.Equal(t, maxKnown+20, made)
	kept := 0
	k.values.Range(func(any, any) bool { kept++; return true })
	require.Equal(t, maxKnown, kept)
}
