package robust

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The end of the run is behind a message exactly when it and all before it are done,
// in whichever order they are finished, taken again or skipped.
func TestRunIsUnbroken(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		start := rnd.Int64N(5)
		r := newRun(start)
		done := make(map[int64]bool)
		var taken []int64
		next := start
		for range 60 {
			switch rnd.IntN(4) {
			case 0, 1:
				next += rnd.Int64N(3) // Offsets may be missing.
				r.take(next)
				taken = append(taken, next)
				next++
			case 2:
				if len(taken) > 0 {
					o := taken[rnd.IntN(len(taken))]
					r.finish(o)
					done[o] = true
				}
			case 3:
				if len(taken) > 0 && rnd.IntN(10) == 0 { // A seek back.
					for _, o := range taken[rnd.IntN(len(taken)):] {
						r.take(o)
					}
				}
			}
			want := start
			for _, o := range taken {
				if !done[o] {
					break
				}
				want = o + 1
			}
			require.Equal(t, want, r.end, "seed %d", seed)
		}
		require.LessOrEqual(t, len(r.done), len(taken))
	}
}

// Whoever reads the channel can mark a message before it is noted as delivered.
func TestMarkBeforeTaken(t *testing.T) {
	m := newMarks(0, true)
	m.take(0)
	m.message(1, "one")
	m.message(0, "zero")
	require.Equal(t, int64(1), m.position())
	m.take(1)
	require.Equal(t, int64(2), m.position())
	_, _, _, ok := m.pending()
	require.True(t, ok)
}

func TestMarksMoveForwardOnly(t *testing.T) {
	m := newMarks(5, false)
	_, _, _, ok := m.pending()
	require.False(t, ok, "what is committed need not be committed")
	m.below(3, "back")
	_, _, _, ok = m.pending()
	require.False(t, ok)
	m.message(9, "nine")
	next, metadata, token, ok := m.pending()
	require.True(t, ok)
	require.Equal(t, int64(10), next)
	require.Equal(t, "nine", metadata)
	m.message(11, "eleven")
	m.committed(token)
	next, _, token, ok = m.pending()
	require.True(t, ok, "marked while the commit was under way")
	require.Equal(t, int64(12), next)
	m.committed(token)
	_, _, _, ok = m.pending()
	require.False(t, ok)
	m.message(20, "")
	m.forget()
	_, _, _, ok = m.pending()
	require.False(t, ok)
}
