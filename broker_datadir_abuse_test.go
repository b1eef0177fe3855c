package robust

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// openQuietDir opens a data directory that logs nothing.
func openQuietDir(files fileSystem, dir string, policy SyncPolicy) (*dataDir, error) {
	return openDataDir(files, dir, policy, newWarner(slog.New(slog.DiscardHandler)))
}

// Where the lock file had been removed, a second broker came in, and both wrote to the same
// places.
func TestLockOutlivesItsFile(t *testing.T) {
	dir := t.TempDir()
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, lockName)))
	_, err = openQuietDir(osFiles{}, dir, SyncAlways)
	require.ErrorIs(t, err, ErrDataDirInUse)
	require.ErrorContains(t, err, dir)
	require.NoFileExists(t, filepath.Join(dir, lockName), "who is refused must not say that he has the directory")
	_, err = CheckDataDir(t.Context(), dir)
	require.ErrorIs(t, err, ErrDataDirInUse)
	_, err = RepairDataDir(t.Context(), dir)
	require.ErrorIs(t, err, ErrDataDirInUse)
	require.NoError(t, d.Close())
	d, err = openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, d.Close())
}

// The directory may be reached by another name.
func TestLockBesideSymbolicLink(t *testing.T) {
	dir := t.TempDir()
	other := filepath.Join(t.TempDir(), "other")
	require.NoError(t, os.Symlink(dir, other))
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	_, err = openQuietDir(osFiles{}, other, SyncAlways)
	require.ErrorIs(t, err, ErrDataDirInUse)
	require.ErrorContains(t, err, fmt.Sprintf("by process %d", os.Getpid()))
	require.NoError(t, d.Close())
}

// unreadableParent is a directory whose parent may be passed but not read.
type unreadableParent struct {
	osFiles
	parent string
}

func (f unreadableParent) syncDir(dir string) error {
	if dir == f.parent {
		return &os.PathError{Op: "open", Path: dir, Err: syscall.EACCES}
	}
	return f.osFiles.syncDir(dir)
}

// A data directory that was there was refused if its parent could not be read.
func TestDataDirBelowUnreadable(t *testing.T) {
	files := unreadableParent{parent: t.TempDir()}
	dir := filepath.Join(files.parent, "data")
	_, err := openQuietDir(files, dir, SyncAlways)
	require.ErrorIs(t, err, os.ErrPermission, "that a new one is there after a power failure cannot be promised")
	d, err := openQuietDir(files, dir, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, d.Close())
}

// appendAcked appends a value and returns what became of it.
func appendAcked(t *testing.T, l PartitionLog, acks Acks) error {
	t.Helper()
	answers := make(chan AppendResult, 1)
	l.Append(appendBatch(nil, &Message{Value: []byte("value")}), acks, func(r AppendResult) { answers <- r })
	select {
	case r := <-answers:
		return r.Err
	case <-time.After(time.Minute):
		require.Fail(t, "no answer")
		return nil
	}
}

// What was written to a file that somebody has removed was acknowledged as synced, and gone with
// the process.
func TestAppendToRemovedFile(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(time.Hour), SyncNever} {
		t.Run(policy.String(), func(t *testing.T) {
			dir := t.TempDir()
			d, err := openQuietDir(osFiles{}, dir, policy)
			require.NoError(t, err)
			l := openTestLog(t, d, LogConfig{}, nil)
			require.NoError(t, appendAcked(t, l, AcksSynced))
			segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
			require.NoError(t, err)
			require.Len(t, segments, 1)
			require.NoError(t, os.Remove(segments[0]))
			err = appendAcked(t, l, AcksSynced)
			require.ErrorIs(t, err, ErrStorage)
			require.ErrorContains(t, err, segments[0])
			require.NoError(t, appendAcked(t, l, AcksSynced), "it goes on in another")
			_, end := l.Bounds()
			_ = d.Close()

			d, err = openQuietDir(osFiles{}, dir, policy)
			require.NoError(t, err)
			l = openTestLog(t, d, LogConfig{}, nil)
			_, again := l.Bounds()
			require.Equal(t, end, again, "no offset is given twice")
			r, err := l.Read(t.Context(), end-1, 1)
			require.NoError(t, err)
			r.Release()
			require.NoError(t, d.Close())
		})
	}
}

// A topic whose directory had been moved to another disk, with a link in its place, was not
// there, and another of its name was made.
func TestLinkedTopic(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	fillDataDir(t, dir)
	topic := filepath.Join(dir, topicsName, "demo@1")
	moved := filepath.Join(elsewhere, "demo@1")
	require.NoError(t, os.Rename(topic, moved))
	require.NoError(t, os.Symlink(moved, topic))
	report, err := CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Equal(t, 1, report.Topics)
	offsets, failures := readable(t, dir)
	require.Empty(t, failures)
	requireCount(t, 2000, offsets)

	// While the other disk is not there, nothing may take the topic's place.
	away := filepath.Join(elsewhere, "away")
	require.NoError(t, os.Rename(moved, away))
	_, err = openQuietDir(osFiles{}, dir, SyncAlways)
	require.ErrorIs(t, err, ErrStorage)
	require.ErrorContains(t, err, topic)
	_, err = CheckDataDir(t.Context(), dir)
	require.ErrorContains(t, err, topic)
	require.NoError(t, os.Rename(away, moved))

	foreign := filepath.Join(t.TempDir(), "foreign")
	require.NoError(t, os.WriteFile(foreign, []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(filepath.Dir(foreign), filepath.Join(moved, "notes")))
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, d.DeleteTopic(t.Context(), "demo"))
	require.NoError(t, d.Close())
	require.NoDirExists(t, topic)
	left, err := os.ReadDir(filepath.Join(dir, trashName))
	require.NoError(t, err)
	require.Empty(t, left)
	require.FileExists(t, foreign, "what links in a topic lead to is not the broker's")
}

// Of a segment that was a link, as many bytes were taken for whole as the link itself has: a
// repair gave up messages of which every byte was there.
func TestLinkedSegments(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	segments := fillDataDir(t, dir)
	for _, path := range []string{segments[0], segments[2], segments[len(segments)-1]} {
		moved := filepath.Join(elsewhere, filepath.Base(path))
		require.NoError(t, os.Rename(path, moved))
		require.NoError(t, os.Symlink(moved, path))
	}
	for _, inspect := range []func(context.Context, string) (*DataDirReport, error){CheckDataDir, RepairDataDir} {
		report, err := inspect(t.Context(), dir)
		require.NoError(t, err)
		require.Empty(t, report.Damage)
	}
	offsets, failures := readable(t, dir)
	require.Empty(t, failures)
	requireCount(t, 2000, offsets)
}

// A log whose last segment had been removed ended before it without a word, and its offsets were
// given again.
func TestLastSegmentRemoved(t *testing.T) {
	for _, all := range []bool{false, true} {
		t.Run(fmt.Sprintf("all=%v", all), func(t *testing.T) {
			dir := t.TempDir()
			segments := fillDataDir(t, dir)
			last := segments[len(segments)-1]
			base, ok := parseSegmentName(filepath.Base(last), segmentSuffix)
			require.True(t, ok)
			removed := []string{last}
			if all {
				removed = segments
			}
			for _, path := range removed {
				require.NoError(t, os.Remove(path))
			}
			report, err := CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.Len(t, report.Damage, 1)
			damage := report.Damage[0]
			require.False(t, damage.Tail)
			require.Equal(t, last, damage.File)
			require.Equal(t, []int64{base, 2000}, []int64{damage.From, damage.To})
			require.NoFileExists(t, last, "a check changes nothing")

			offsets, failures := readable(t, dir)
			require.Len(t, failures, 1)
			require.Equal(t, []int64{base, 2000}, []int64{failures[0].From, failures[0].To})
			if !all {
				requireCount(t, int(base), offsets)
			}
			d, err := openQuietDir(osFiles{}, dir, SyncAlways)
			require.NoError(t, err)
			l := openTestLog(t, d, LogConfig{SegmentBytes: 8 << 10}, nil)
			require.Equal(t, int64(2000), appendValues(t, l, 1))
			require.NoError(t, d.Close())

			report, err = RepairDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.NotEmpty(t, report.Damage)
			offsets, failures = readable(t, dir)
			require.Empty(t, failures)
			require.True(t, offsets[2000])
		})
	}
}

// A check, or a repair, of what is whole read all of it, whatever had become of its context.
func TestInspectionEndsWithContext(t *testing.T) {
	dir := t.TempDir()
	fillDataDir(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, inspect := range []func(context.Context, string) (*DataDirReport, error){CheckDataDir, RepairDataDir} {
		report, err := inspect(ctx, dir)
		require.ErrorIs(t, err, context.Canceled)
		require.Zero(t, report.Batches)
	}
	// The lock is free again.
	offsets, failures := readable(t, dir)
	require.Empty(t, failures)
	requireCount(t, 2000, offsets)
}

// endingReads ends a context with a file's n-th read.
type endingReads struct {
	osFiles
	left int
	end  func()
}

func (f *endingReads) open(name string, flag int) (file, error) {
	opened, err := f.osFiles.open(name, flag)
	return endingFile{opened, f}, err
}

type endingFile struct {
	file
	reads *endingReads
}

func (f endingFile) ReadAt(p []byte, at int64) (int, error) {
	if f.reads.left--; f.reads.left == 0 {
		f.reads.end()
	}
	return f.file.ReadAt(p, at)
}

// Nor did it end within a segment, which may have gigabytes.
func TestInspectionEndsWithinSegment(t *testing.T) {
	dir := t.TempDir()
	d, err := openQuietDir(osFiles{}, dir, SyncNever)
	require.NoError(t, err)
	l := openTestLog(t, d, LogConfig{}, nil)
	value := make([]byte, 1<<20)
	for range 40 {
		appendRaw(t, l, appendBatch(nil, &Message{Value: value}))
	}
	require.NoError(t, d.Close())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	report, err := inspectDataDir(ctx, &endingReads{left: 20, end: cancel}, dir, false)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, report.Batches, int64(30))
}

// Where a log begins was taken from the file of another, and segments were removed for it.
func TestForeignStart(t *testing.T) {
	dir := t.TempDir()
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	topic := StoredTopic{Name: "demo", ID: "1", Partitions: 2}
	require.NoError(t, d.PutTopic(t.Context(), topic))
	for p := range topic.Partitions {
		l, err := d.OpenPartition(t.Context(), topic, p, LogConfig{SegmentBytes: 8 << 10}, func() {})
		require.NoError(t, err)
		for range 200 {
			appendValues(t, l, 5)
		}
		require.NoError(t, l.DeleteBefore(t.Context(), []int64{1, 900}[p]))
	}
	require.NoError(t, d.Close())
	in := func(p int, name string) string { return filepath.Join(dir, topicsName, "demo@1", fmt.Sprint(p), name) }
	theirs, err := os.ReadFile(in(1, startName))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(in(0, startName), theirs, 0o600))
	before, err := filepath.Glob(in(0, "*"+segmentSuffix))
	require.NoError(t, err)

	d, err = openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	_, err = d.OpenPartition(t.Context(), topic, 0, LogConfig{SegmentBytes: 8 << 10}, func() {})
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Equal(t, in(0, startName), corrupt.File)
	require.NoError(t, d.Close())
	report, err := CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	report, err = RepairDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	require.True(t, report.Damage[0].Repaired)
	after, err := filepath.Glob(in(0, "*"+segmentSuffix))
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// What the first repair had put aside was overwritten by the next.
func TestRepairKeepsWhatItReplaces(t *testing.T) {
	dir := t.TempDir()
	segments := fillDataDir(t, dir)
	damageFile(t, segments[1], flip(200))
	first, err := os.ReadFile(segments[1])
	require.NoError(t, err)
	_, err = RepairDataDir(t.Context(), dir)
	require.NoError(t, err)
	damageFile(t, segments[1], flip(4000))
	second, err := os.ReadFile(segments[1])
	require.NoError(t, err)
	_, err = RepairDataDir(t.Context(), dir)
	require.NoError(t, err)
	var kept [][]byte
	files, err := filepath.Glob(segments[1] + damagedSuffix + "*")
	require.NoError(t, err)
	for _, path := range files {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		kept = append(kept, data)
	}
	require.True(t, slices.ContainsFunc(kept, func(b []byte) bool { return string(b) == string(first) }), "%v", files)
	require.True(t, slices.ContainsFunc(kept, func(b []byte) bool { return string(b) == string(second) }), "%v", files)
	require.Len(t, kept, 2)
}
