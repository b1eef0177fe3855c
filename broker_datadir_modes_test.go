//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package robust

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// modes returns the permissions of all that is below a directory.
func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := make(map[string]fs.FileMode)
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			found[path] = info.Mode()
		}
		return err
	}))
	return found
}

// serveOnce has a broker at work in a directory, so that all kinds of files are made.
func serveOnce(t *testing.T, dir, topic string) {
	t.Helper()
	b, err := NewBroker(WithDataDir(dir), WithTopic(topic, 1))
	require.NoError(t, err)
	c, err := b.Client()
	require.NoError(t, err)
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for i := range 10 {
		_, err := p.Send(t.Context(), NewMessage(topic, fmt.Append(nil, i)))
		require.NoError(t, err)
	}
	_, err = c.Admin().DeleteRecords(t.Context(), topic, 0, 5)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
	_, err = RepairDataDir(t.Context(), dir)
	require.NoError(t, err)
}

// Everybody on the machine could read what was in a data directory.
func TestDataDirIsPrivate(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "not", "yet", "there")
	serveOnce(t, dir, "first")
	made := modes(t, filepath.Join(parent, "not"))
	require.Greater(t, len(made), 10)
	for path, mode := range made {
		require.Zero(t, mode.Perm()&0o077, "%v %s", mode, path)
	}

	// The group may read if the directory says so; nobody but the owner writes, nor do others read.
	probe := filepath.Join(parent, "probe")
	require.NoError(t, os.Mkdir(probe, 0o777))
	umask := 0o777 &^ modes(t, probe)[probe].Perm()
	for path, mode := range made { // As an older version, or an operator, has it.
		perm := fs.FileMode(0o644)
		if mode.IsDir() {
			perm = 0o755
		}
		require.NoError(t, os.Chmod(path, perm))
	}
	made = modes(t, dir)
	serveOnce(t, dir, "second")
	for path, mode := range modes(t, dir) {
		want := 0o640 &^ umask
		if mode.IsDir() {
			want = 0o750 &^ umask
		}
		switch old, there := made[path]; {
		case strings.Contains(path, "second@"):
			require.Equal(t, want, mode.Perm(), path)
		case there && (mode.IsDir() || strings.HasSuffix(path, segmentSuffix)):
			require.Equal(t, old, mode, "it is left as it is: %s", path)
		}
	}
}
