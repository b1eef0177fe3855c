//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package robust

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// soon runs f, which opens or reads something, and fails the test if it hangs.
func soon(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		require.Fail(t, "it hangs")
		return nil
	}
}

// useDir opens a directory as a broker does, reads all that is in its topic, writes to it, and closes it.
func useDir(ctx context.Context, dir string) error {
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	if err != nil {
		return err
	}
	l, err := d.OpenPartition(ctx, StoredTopic{Name: "demo", ID: "1", Partitions: 1}, 0, LogConfig{SegmentBytes: 8 << 10}, func() {})
	if err != nil {
		return errors.Join(err, d.Close())
	}
	offset, end := l.Bounds()
	for offset < end && err == nil {
		var r LogRead
		if r, err = l.Read(ctx, offset, 64<<10); err == nil {
			for rest := r.Batches; len(rest) > 0; {
				b := cutBatch(rest)
				rest, offset = rest[len(b):], b.nextOffset()
			}
			r.Release()
		}
	}
	if err == nil {
		_, err = l.OffsetAt(ctx, 1)
	}
	if err == nil {
		stored := make(chan error, 1)
		l.Append(appendBatch(nil, &Message{Value: []byte("more")}), AcksSynced, func(r AppendResult) { stored <- r.Err })
		err = <-stored
	}
	if err == nil {
		err = l.DeleteBefore(ctx, 1001)
	}
	return errors.Join(err, d.Close())
}

// Whatever stands in the place of a file: a named pipe had whoever opened it wait for ever, and
// what a symbolic link leads to was overwritten.
func TestNoFileInItsPlace(t *testing.T) {
	template := t.TempDir()
	segments := fillDataDir(t, template)
	d, err := openQuietDir(osFiles{}, template, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, openTestLog(t, d, LogConfig{SegmentBytes: 8 << 10}, nil).DeleteBefore(t.Context(), 2))
	require.NoError(t, d.Close())
	partition := filepath.Dir(segments[0])
	within := func(path string) string {
		name, err := filepath.Rel(template, path)
		require.NoError(t, err)
		return name
	}
	index := func(path string) string { return strings.TrimSuffix(path, segmentSuffix) + indexSuffix }
	last := segments[len(segments)-1]
	victims := []string{
		lockName, identityName, identityName + temporarySuffix, reserveName,
		filepath.Join(filepath.Dir(within(partition)), topicName), within(filepath.Join(partition, startName)),
		within(filepath.Join(partition, startName+temporarySuffix)),
		within(segments[1]), within(index(segments[1])), within(last), within(index(last)),
		filepath.Join(groupsName, "00000000000000000000"+segmentSuffix),
	}
	// What is not needed, or is made anew.
	spare := map[string]string{
		reserveName: "", within(filepath.Join(partition, startName+temporarySuffix)): "",
		within(index(segments[1])): "a link to another file", within(index(last)): "a link to another file",
	}
	foreign := filepath.Join(t.TempDir(), "foreign")
	kinds := map[string]func(path string) error{
		"a named pipe":           func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory":            func(path string) error { return os.MkdirAll(filepath.Join(path, "in it"), 0o700) },
		"a link to nowhere":      func(path string) error { return os.Symlink(foreign+" and away", path) },
		"a link to a device":     func(path string) error { return os.Symlink("/dev/zero", path) },
		"a link to another file": func(path string) error { return os.Symlink(foreign, path) },
		"a link to itself":       func(path string) error { return os.Symlink(filepath.Base(path), path) },
	}
	for _, victim := range victims {
		for kind, put := range kinds {
			t.Run(victim+"/"+kind, func(t *testing.T) {
				require.NoError(t, os.WriteFile(foreign, []byte("somebody else's"), 0o600))
				dir := filepath.Join(t.TempDir(), "data")
				require.NoError(t, os.CopyFS(dir, os.DirFS(template)))
				path := filepath.Join(dir, victim)
				require.NoError(t, os.RemoveAll(path))
				require.NoError(t, put(path))
				for name, use := range map[string]func() error{
					"check": func() error {
						report, err := CheckDataDir(t.Context(), dir)
						for i := range report.Damage {
							err = errors.Join(err, &report.Damage[i].CorruptError)
						}
						return err
					},
					"use": func() error { return useDir(t.Context(), dir) },
				} {
					err := soon(t, use)
					t.Log(name, err)
					if err != nil {
						require.ErrorContains(t, err, path)
						require.True(t, errors.Is(err, ErrStorage) || errors.Is(err, ErrCorrupt), "%v", err)
					}
					if name == "use" && err == nil {
						only, ok := spare[victim]
						require.True(t, ok && (only == "" || only == kind))
					}
				}
				data, err := os.ReadFile(foreign)
				require.NoError(t, err)
				require.Equal(t, "somebody else's", string(data))
				require.NoFileExists(t, foreign+" and away")
			})
		}
	}
}

// The name of who has the lock was waited for, if it was to be read from a pipe.
func TestLockHolderIsNoFile(t *testing.T) {
	dir := t.TempDir()
	d, err := openQuietDir(osFiles{}, dir, SyncAlways)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, lockName)))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, lockName), 0o600))
	require.ErrorIs(t, soon(t, func() error {
		_, err := openQuietDir(osFiles{}, dir, SyncAlways)
		return err
	}), ErrDataDirInUse)
	require.NoError(t, d.Close())
}

// While a disk is away on which a partition is, or the consumer groups, the broker began anew
// without them, and took back what groups had committed.
func TestLinkedDirectoryAway(t *testing.T) {
	for _, name := range []string{filepath.Join(topicsName, "demo@1", "0"), groupsName, topicsName} {
		t.Run(name, func(t *testing.T) {
			dir, elsewhere := t.TempDir(), t.TempDir()
			fillDataDir(t, dir)
			path, moved, away := filepath.Join(dir, name), filepath.Join(elsewhere, "moved"), filepath.Join(elsewhere, "away")
			require.NoError(t, os.Rename(path, moved))
			require.NoError(t, os.Symlink(moved, path))
			require.NoError(t, os.Rename(moved, away))
			_, err := NewBroker(WithDataDir(dir))
			require.ErrorIs(t, err, ErrStorage)
			require.ErrorContains(t, err, path)
			for _, inspect := range []func(context.Context, string) (*DataDirReport, error){CheckDataDir, RepairDataDir} {
				_, err = inspect(t.Context(), dir)
				require.ErrorIs(t, err, ErrStorage)
				require.ErrorContains(t, err, path)
			}
			require.NoError(t, os.Rename(away, moved))
			offsets, failures := readable(t, dir)
			require.Empty(t, failures)
			requireCount(t, 2000, offsets)
			d, err := openQuietDir(osFiles{}, dir, SyncAlways)
			require.NoError(t, err)
			groups, err := d.Groups(t.Context())
			require.NoError(t, err)
			require.Len(t, groups, 1)
			require.Len(t, groups[0].Offsets, 1)
			require.NoError(t, d.Close())
		})
	}
}
