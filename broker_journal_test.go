package robust

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// journalFiles are those that a journal is kept in, of a seed.
func journalFiles(t *testing.T, seed uint64) *memFiles {
	t.Helper()
	m := newMemFiles(seed)
	require.NoError(t, m.mkdir("/data"))
	require.NoError(t, m.syncDir("/"))
	return m
}

// journalOf opens the journal, which knows one topic, and says to log what it warns of.
func journalOf(t *testing.T, m *memFiles, p SyncPolicy, log io.Writer) (*journal, error) {
	t.Helper()
	s := newLogStore(m, p, newWarner(slog.New(slog.NewTextHandler(log, nil))))
	return openJournal(t.Context(), s, "/data/groups", map[string]bool{"1": true})
}

// Consumer groups that were written anew after a sync had failed are found although what is in
// doubt could not be removed, and a power failure has taken some of it: their log said that it
// was damaged, and the broker could not be started.
func TestGroupsWrittenAnewOutliveTheirDamage(t *testing.T) {
	damaged := 0
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			m := journalFiles(t, seed)
			var said bytes.Buffer
			open := func(m *memFiles) *journal {
				j, err := journalOf(t, m, SyncInterval(time.Hour), &said)
				require.NoError(t, err, "seed %d", seed)
				return j
			}
			j := open(m)
			commit := func(offset int64) {
				o := StoredOffset{Topic: "demo", TopicID: "1", Offset: offset}
				require.NoError(t, j.putOffsets(t.Context(), "readers", []StoredOffset{o}))
				require.NoError(t, j.putState(t.Context(), "readers", fmt.Append(nil, offset)))
			}
			commit(1)
			require.NoError(t, j.log.syncAll())
			for i := range int64(20) {
				commit(2 + i)
			}
			m.setFault(func(op fileOp) fault {
				switch {
				case op.kind == "sync" && op.path == segmentPath("/data/groups", 0, segmentSuffix):
					return fault{err: syscall.EIO, drop: true}
				case strings.HasPrefix(filepath.Base(op.path), startName):
					return fault{err: syscall.EIO}
				}
				return fault{}
			})
			require.ErrorIs(t, j.log.syncAll(), ErrStorage)
			synctest.Wait() // They are written anew.
			want := j.all()
			after := m.crash(rand.New(rand.NewPCG(seed, 9)))
			_ = j.close() // All that it does fails.
			said.Reset()
			j = open(after)
			require.Equal(t, want, j.all())
			bad := strings.Contains(said.String(), "nothing is lost")
			commit(100)
			if bad {
				damaged++
				from, _ := j.log.Bounds()
				require.NotZero(t, from, "what is damaged goes with the next change")
			}
			want = j.all()
			require.NoError(t, j.close())
			said.Reset()
			j = open(after)
			require.Equal(t, want, j.all())
			require.Empty(t, said.String())
			require.NoError(t, j.close())
		})
	}
	require.NotZero(t, damaged, "the power failure has taken something")
}

// Behind a failed sync no commit is taken until all groups are written anew, be it by the next
// process: what a power failure leaves of their log would otherwise be damaged.
func TestGroupsInDoubtAreWrittenAnewFirst(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			m := journalFiles(t, seed)
			open := func() *journal {
				j, err := journalOf(t, m, SyncInterval(time.Hour), io.Discard)
				require.NoError(t, err, "seed %d", seed)
				return j
			}
			j := open()
			commit := func(offset int64) error {
				return j.putOffsets(t.Context(), "readers", []StoredOffset{{Topic: "demo", TopicID: "1", Offset: offset}})
			}
			for i := range int64(20) {
				require.NoError(t, commit(1+i))
			}
			refuses := func(op fileOp) bool { // A segment to write them to.
				return op.kind == "open" && strings.HasSuffix(op.path, segmentSuffix) && op.path != segmentPath("/data/groups", 0, segmentSuffix)
			}
			m.setFault(func(op fileOp) fault {
				switch {
				case op.kind == "sync" && op.path == segmentPath("/data/groups", 0, segmentSuffix):
					return fault{err: syscall.EIO, drop: true}
				case refuses(op):
					return fault{err: syscall.EIO}
				}
				return fault{}
			})
			require.ErrorIs(t, j.log.syncAll(), ErrStorage)
			synctest.Wait()
			want := j.all()
			require.ErrorIs(t, commit(50), ErrStorage)
			require.Equal(t, want, j.all())
			m.clearFault()
			if seed%2 == 0 {
				require.NoError(t, commit(51))
			} else { // The next process has nothing but what stands there.
				killed := m.kill()
				_ = j.close() // All that it does fails.
				m = killed
				j = open()
			}
			want = j.all()
			require.NoError(t, j.log.syncAll())
			after := m.crash(rand.New(rand.NewPCG(seed, 9)))
			_ = j.close() // All that it does fails.
			m = after
			j = open()
			require.Equal(t, want, j.all())
			require.NoError(t, j.close())
		})
	}
}

// TestGroupsOutliveASyncThatFailedBefore has the groups' log be dropped by the sync of a process
// that opens it, which then ends; the next finds nothing wrong, and the power goes. Where nothing
// is synced but when a segment is full, too, the groups are there.
func TestGroupsOutliveASyncThatFailedBefore(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			m := journalFiles(t, seed)
			open := func() (*journal, error) { return journalOf(t, m, SyncNever, io.Discard) }
			j, err := open()
			require.NoError(t, err)
			for i := range int64(20) {
				require.NoError(t, j.putOffsets(t.Context(), "readers", []StoredOffset{{Topic: "demo", TopicID: "1", Offset: 1 + i}}))
			}
			want := j.all()
			m = m.kill()
			m.setFault(func(op fileOp) fault {
				if op.kind == "sync" {
					return fault{err: syscall.EIO, drop: true}
				}
				return fault{}
			})
			_, err = open()
			require.ErrorIs(t, err, ErrStorage)
			m = m.kill()
			m.clearFault()
			j, err = open()
			require.NoError(t, err)
			require.Equal(t, want, j.all())
			m = m.crash(rand.New(rand.NewPCG(seed, 9)))
			j, err = open()
			require.NoError(t, err, "seed %d", seed)
			require.Equal(t, want, j.all())
			require.NoError(t, j.close())
		})
	}
}

// TestGroupsWithoutWhatASyncHasLost has a sync drop what groups have committed, and the power go
// before all could be written anew: the broker starts, with the groups as they were at one time,
// and says so, also when that cannot be written anew at once.
func TestGroupsWithoutWhatASyncHasLost(t *testing.T) {
	older := 0
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			m := journalFiles(t, seed)
			var said bytes.Buffer
			open := func() *journal {
				j, err := journalOf(t, m, SyncInterval(time.Hour), &said)
				require.NoError(t, err, "seed %d", seed)
				return j
			}
			j := open()
			// Two groups always stand at the same offset.
			commit := func(offset int64) {
				for _, group := range []string{"a", "b"} {
					require.NoError(t, j.putOffsets(t.Context(), group, []StoredOffset{{Topic: "demo", TopicID: "1", Offset: offset}}))
				}
			}
			commit(1)
			require.NoError(t, j.log.syncAll())
			for i := range int64(20) {
				commit(2 + i)
			}
			m.setFault(func(op fileOp) fault {
				if op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix) {
					return fault{err: syscall.EIO, drop: true}
				}
				return fault{}
			})
			require.ErrorIs(t, j.log.syncAll(), ErrStorage)
			synctest.Wait()
			_ = j.log.syncAll() // The index says that there was something.
			after := m.crash(rand.New(rand.NewPCG(seed, 9)))
			_ = j.close() // All that it does fails.
			m = after
			stands := func() int64 {
				at := make(map[string]int64)
				for _, g := range j.all() {
					at[g.ID] = g.Offsets[0].Offset
				}
				require.True(t, at["a"] == at["b"] || at["a"] == at["b"]+1, "%v", at)
				return at["b"]
			}
			refuses := seed%2 == 0
			if refuses { // What is to be written anew.
				infos, err := m.list("/data/groups")
				require.NoError(t, err)
				var there []string
				for _, info := range infos {
					there = append(there, filepath.Join("/data/groups", info.name))
				}
				m.setFault(func(op fileOp) fault {
					if op.kind == "open" && strings.HasSuffix(op.path, segmentSuffix) && !slices.Contains(there, op.path) {
						return fault{err: syscall.EIO}
					}
					return fault{}
				})
			}
			said.Reset()
			j = open()
			at := stands()
			require.Positive(t, at)
			if strings.Contains(said.String(), "older than they were") {
				older++
			}
			if refuses {
				killed := m.kill()
				_ = j.close()
				m = killed
				m.clearFault()
				j = open()
				require.Equal(t, at, stands())
			}
			commit(100)
			require.EqualValues(t, 100, stands())
			require.NoError(t, j.close())
			said.Reset()
			j = open()
			require.EqualValues(t, 100, stands())
			require.Empty(t, said.String())
			require.NoError(t, j.close())
		})
	}
	require.NotZero(t, older, "a sync has lost something that is told of")
}
