package robust

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What is synced behind a segment that could not be synced is promised only once its index says
// so on stable storage. Where that failed the appends that had waited were told that they were
// synced, and a power failure took them with what stood before them.
func TestIndexFailsBehindFailedSync(t *testing.T) {
	for seed := range uint64(40) {
		m := newMemFiles(seed)
		require.NoError(t, m.mkdir("/data"))
		require.NoError(t, m.syncDir("/"))
		policy := SyncInterval(time.Hour)
		l := openLossLog(t, lossStore(m, policy), lossConfig())
		require.NoError(t, appendOne(l, AcksSynced).Err)
		syncs := true
		m.setFault(func(op fileOp) fault {
			switch {
			case op.kind == "open" && strings.HasSuffix(op.path, indexSuffix):
				return fault{err: syscall.EIO}
			case op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix) && syncs:
				return fault{err: syscall.EIO, drop: true}
			}
			return fault{}
		})
		require.ErrorIs(t, appendOne(l, AcksSynced).Err, ErrStorage)
		syncs = false
		promised := int64(1)
		for range 3 {
			if r := appendOne(l, AcksSynced); r.Err == nil {
				promised = r.BaseOffset + 1
			}
		}
		if seed%2 == 0 { // It can be written again.
			m.clearFault()
			last := appendOne(l, AcksSynced)
			require.NoError(t, last.Err)
			promised = last.BaseOffset + 1
		}
		lost := openLossLog(t, lossStore(m.crash(rand.New(rand.NewPCG(seed, 3))), policy), lossConfig())
		_, end := lost.Bounds()
		require.GreaterOrEqual(t, end, promised, "seed %d", seed)
	}
}

// A segment that cannot be synced does not keep those behind it from it: they were left for the
// next append, however late that came, or for no one, when the log was closed, and kept files
// open that others waited for.
func TestSyncBehindFailedSync(t *testing.T) {
	for _, closes := range []bool{false, true} {
		t.Run(fmt.Sprint("closes ", closes), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemFiles(1)
				require.NoError(t, m.mkdir("/data"))
				require.NoError(t, m.syncDir("/"))
				store := lossStore(m, SyncInterval(time.Second))
				done := make(chan struct{})
				store.running.Go(func() { store.run(done) })
				l := openLossLog(t, store, LogConfig{SegmentBytes: 1000})
				require.NoError(t, appendOne(l, AcksSynced).Err)
				first := l.visible.Load().segments[0].log.path
				m.setFault(func(op fileOp) fault {
					if op.kind == "sync" && op.path == first {
						return fault{err: syscall.EIO, drop: true}
					}
					return fault{}
				})
				for range 12 {
					require.NoError(t, appendOne(l, AcksStored).Err)
				}
				_, segments := l.Size()
				require.Greater(t, segments, 2)
				if closes {
					require.ErrorIs(t, l.Close(), ErrStorage)
				} else {
					time.Sleep(5 * time.Second) //nolint:forbidigo // of fake time
					synctest.Wait()
				}
				close(done)
				store.running.Wait()
				require.Empty(t, store.unsaved, "files that are kept open")
				lost := openLossLog(t, lossStore(m.crash(rand.New(rand.NewPCG(1, 3))), SyncNever), lossConfig())
				_, end := lost.Bounds()
				require.EqualValues(t, 13, end)
			})
		})
	}
}

// A log that is being opened belongs to who opens it: the store synced it beside, as soon as
// recovery had begun a segment, and went on with it where the opening failed.
func TestRecoveryIsAlone(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprint("fails ", fails), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemFiles(1)
				require.NoError(t, m.mkdir("/data"))
				l := openLossLog(t, lossStore(m, SyncAlways), lossConfig())
				for range 3 {
					require.NoError(t, appendOne(l, AcksSynced).Err)
				}
				path := l.visible.Load().segments[0].log.path
				require.NoError(t, l.Close())
				f, err := m.open(path, os.O_RDWR)
				require.NoError(t, err)
				size, err := f.size()
				require.NoError(t, err)
				require.NoError(t, f.truncate(size-10)) // The log goes on in another segment.
				require.NoError(t, f.Close())

				store := lossStore(m, SyncAlways)
				done := make(chan struct{})
				store.running.Go(func() { store.run(done) })
				begun, opening := false, true
				m.setFault(func(op fileOp) fault {
					begun = begun || op.kind == "open" && strings.HasSuffix(op.path, "3"+segmentSuffix)
					if !opening {
						t.Errorf("%v beside the opening", op)
					}
					if op.kind != "sync" || !begun {
						return fault{}
					}
					opening = false
					time.Sleep(5 * time.Second) //nolint:forbidigo // of fake time
					synctest.Wait()
					opening = true
					if fails {
						return fault{err: syscall.EIO}
					}
					return fault{}
				})
				l, err = openLog(t.Context(), store, "/data/0", "t/0", segmentHeader{topicID: "id"}, lossConfig(), logEvents{})
				opening = !fails
				time.Sleep(5 * time.Second) //nolint:forbidigo // of fake time
				close(done)
				store.running.Wait()
				m.clearFault()
				require.True(t, begun)
				require.Empty(t, store.unsaved, "files that are kept open")
				if fails {
					require.ErrorIs(t, err, ErrStorage)
					l = openLossLog(t, lossStore(m, SyncAlways), lossConfig())
				} else {
					require.NoError(t, err)
				}
				r := appendOne(l, AcksSynced)
				require.NoError(t, r.Err)
				require.EqualValues(t, 3, r.BaseOffset)
				require.NoError(t, l.Close())
			})
		})
	}
}

// An index that is made anew says only of what is synced that it is: it said so of a whole
// segment as soon as another was begun, and a power failure left a hole there instead of the
// log's end.
func TestIndexMadeAnewBeforeSync(t *testing.T) {
	put := func(l *diskLog, acks Acks) {
		done := make(chan AppendResult, 1)
		l.Append(appendBatch(nil, &Message{Value: make([]byte, 5000)}), acks, func(r AppendResult) { done <- r })
		require.NoError(t, (<-done).Err)
	}
	for seed := range uint64(20) {
		m := newMemFiles(seed)
		require.NoError(t, m.mkdir("/data"))
		require.NoError(t, m.syncDir("/"))
		policy := SyncInterval(time.Hour)
		l := openLossLog(t, lossStore(m, policy), LogConfig{SegmentBytes: 100_000})
		for range 10 {
			put(l, AcksSynced)
		}
		for range 12 {
			put(l, AcksStored)
		}
		_, segments := l.Size()
		require.Equal(t, 2, segments)
		f, err := m.open(segmentPath("/data/0", 0, indexSuffix), os.O_RDWR)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("damaged!"), segmentHeaderSize)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		r, err := l.Read(t.Context(), 0, 1)
		require.NoError(t, err)
		r.Release()
		lost := openLossLog(t, lossStore(m.crash(rand.New(rand.NewPCG(seed, 3))), policy), lossConfig())
		_, end := lost.Bounds()
		require.GreaterOrEqual(t, end, int64(10))
		for at := int64(0); at < end; at++ {
			r, err := lost.Read(t.Context(), at, 1)
			require.NoError(t, err, "seed %d, offset %d of %d", seed, at, end)
			r.Release()
		}
		require.NoError(t, lost.Close())
	}
}

// A log that is closed leaves its files alone, whatever was still to be synced or removed: they
// may be another's by then.
func TestClosedLogIsLeftAlone(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(time.Hour)} {
		t.Run(policy.String(), func(t *testing.T) {
			m := newLossFiles(t)
			l := openLossLog(t, lossStore(m, policy), LogConfig{SegmentBytes: 1000, RetentionBytes: 1})
			for range 20 {
				require.NoError(t, appendOne(l, AcksStored).Err)
			}
			m.setFault(func(op fileOp) fault {
				if slices.Contains([]string{"sync", "remove", "truncate"}, op.kind) {
					return fault{err: syscall.EIO}
				}
				return fault{}
			})
			_ = l.exclusive(func() error { // Something is to be synced.
				l.written.segments[len(l.written.segments)-1].cut = true
				return nil
			})
			require.ErrorIs(t, l.Close(), ErrStorage)
			m.clearFault()
			before := m.count.Load()
			l.syncNow()
			require.NoError(t, l.drop(l.visible.Load().last.offset))
			require.NoError(t, l.Expire(time.Now()))
			require.ErrorIs(t, l.DeleteBefore(t.Context(), 1), ErrClosed)
			require.Equal(t, before, m.count.Load(), "operations on files")
		})
	}
}
