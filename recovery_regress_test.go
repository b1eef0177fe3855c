package robust

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// openDamaged opens a log as fillDataDir makes one.
func openDamaged(t *testing.T, dir string) (*dataDir, PartitionLog) {
	t.Helper()
	d, err := openDataDir(osFiles{}, dir, SyncInterval(defaultSyncInterval), newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	return d, openTestLog(t, d, LogConfig{SegmentBytes: 8 << 10}, nil)
}

// Bytes between two batches that take no offset away do not keep a search from going on.
func TestSearchPastBytesPutIn(t *testing.T) {
	dir := t.TempDir()
	d, l := openDamaged(t, dir)
	for i := range 200 {
		appendValues(t, l, 1, int64(i*10))
	}
	require.NoError(t, d.Close())
	segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
	require.NoError(t, err)
	damageFile(t, segments[0], func(b []byte) []byte {
		return slices.Insert(b, segmentHeaderSize+len(cutBatch(b[segmentHeaderSize:])), make([]byte, 30)...)
	})
	d, l = openDamaged(t, dir)
	offset, err := l.OffsetAt(t.Context(), 55)
	require.NoError(t, err)
	require.Equal(t, int64(6), offset)
	require.NoError(t, d.Close())
}

// Where an epoch ends is found before and behind a segment of which nothing is left.
func TestEpochEndBesideLostSegment(t *testing.T) {
	for _, lost := range []int{1, -2} { // Before the end, and behind it.
		dir := t.TempDir()
		fillDataDir(t, dir)
		d, l := openDamaged(t, dir)
		for range 400 {
			appendValues(t, l, 5)
		}
		require.NoError(t, d.Close())
		segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
		require.NoError(t, err)
		path := segments[(lost+len(segments))%len(segments)]
		require.NoError(t, os.Truncate(path, 0))
		require.NoError(t, os.Remove(strings.TrimSuffix(path, segmentSuffix)+indexSuffix))
		d, l = openDamaged(t, dir)
		end, err := l.EpochEnd(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, int64(2000), end)
		require.NoError(t, d.Close())
	}
}
