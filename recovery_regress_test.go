package robust

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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

// A segment of which all is lost makes way for another at the same offset: removing what is
// old does not take the new one's file.
func TestEmptiedLastSegment(t *testing.T) {
	for _, size := range []int64{0, 10, segmentHeaderSize - 1, segmentHeaderSize} {
		dir := t.TempDir()
		fillDataDir(t, dir)
		d, l := openDamaged(t, dir)
		require.NoError(t, l.DeleteBefore(t.Context(), 1999))
		require.NoError(t, l.DeleteBefore(t.Context(), 2000)) // A segment is begun.
		require.NoError(t, d.Close())
		segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
		require.NoError(t, err)
		require.Len(t, segments, 1)
		require.NoError(t, os.Truncate(segments[0], size))
		for life := range 3 {
			d, l = openDamaged(t, dir)
			require.Equal(t, int64(2000+life*5), appendValues(t, l, 5))
			next := int64(2000 + life*5 + 5)
			require.NoError(t, l.DeleteBefore(t.Context(), next-1))
			require.Equal(t, next, readLog(t, l, next-1, 100))
			require.NoError(t, d.Close())
		}
	}
}

// A file that belongs elsewhere is not written to, whether it is known what it had or not.
func TestForeignLastSegment(t *testing.T) {
	for name, indexed := range map[string]bool{"with its index": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			segments := fillDataDir(t, dir)
			last := segments[len(segments)-1]
			other, err := os.ReadFile(segments[0])
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(last, other, 0o600))
			if !indexed {
				require.NoError(t, os.Remove(strings.TrimSuffix(last, segmentSuffix)+indexSuffix))
			}
			offsets, failures := readable(t, dir)
			base, ok := parseSegmentName(filepath.Base(last), segmentSuffix)
			require.True(t, ok)
			requireCount(t, int(base), offsets)
			d, l := openDamaged(t, dir)
			next := appendValues(t, l, 5)
			if indexed {
				require.NotEmpty(t, failures)
				require.Equal(t, int64(2000), next, "what is known to have been is not given again")
			} else {
				require.Equal(t, base, next)
			}
			require.Equal(t, next+5, readLog(t, l, next, 100))
			require.NoError(t, d.Close())
			_, err = RepairDataDir(t.Context(), dir)
			require.NoError(t, err)
			report, err := CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.Empty(t, report.Damage)
			_, failures = readable(t, dir)
			require.Empty(t, failures)
		})
	}
}

// A segment that was written to in two lives says in its index where it ends, as others do.
func TestIndexEndsAfterReopening(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		d, l := openDamaged(t, dir)
		for range 50 {
			appendValues(t, l, 1)
		}
		require.NoError(t, d.Close())
	}
	d, l := openDamaged(t, dir)
	for range 50 {
		appendValues(t, l, 1)
	}
	require.NoError(t, d.Close())
	indexes, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+indexSuffix))
	require.NoError(t, err)
	require.Len(t, indexes, 2)
	data, err := os.ReadFile(indexes[0])
	require.NoError(t, err)
	var e indexEntry
	require.True(t, e.parse(data[len(data)-indexEntrySize:]))
	info, err := os.Stat(strings.TrimSuffix(indexes[0], indexSuffix) + segmentSuffix)
	require.NoError(t, err)
	require.Equal(t, info.Size(), e.pos)
	require.Equal(t, uint16(indexSynced), e.flags)
}

// What has lost its end is not written to, also if a segment that was begun behind it is
// lost with it.
func TestLostEndBeforeTornSegment(t *testing.T) {
	dir := t.TempDir()
	segments := fillDataDir(t, dir)
	last := segments[len(segments)-1]
	next := filepath.Join(filepath.Dir(last), "00000000000000002000"+segmentSuffix)
	require.NoError(t, os.WriteFile(next, make([]byte, 39), 0o600))
	damageFile(t, last, func(b []byte) []byte { return b[:len(b)-10] })
	for life := range 2 {
		d, l := openDamaged(t, dir)
		require.Equal(t, int64(2000+5*life), appendValues(t, l, 5))
		require.Equal(t, int64(2005+5*life), readLog(t, l, 2000, 100))
		require.NoError(t, d.Close())
	}
}

// What stands between two damages is read, also when the log has grown behind them.
func TestReadBetweenDamages(t *testing.T) {
	dir := t.TempDir()
	d, l := openDamaged(t, dir)
	l.Configure(LogConfig{SegmentBytes: 1 << 20})
	value := make([]byte, 5000)
	for range 20 {
		appendRaw(t, l, appendBatch(nil, &Message{Value: value}))
	}
	require.NoError(t, d.Close())
	segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
	require.NoError(t, err)
	data, err := os.ReadFile(strings.TrimSuffix(segments[0], segmentSuffix) + indexSuffix)
	require.NoError(t, err)
	var e indexEntry
	require.True(t, e.parse(data[segmentHeaderSize:segmentHeaderSize+indexEntrySize]))
	damageFile(t, segments[0], func(b []byte) []byte {
		return flip(int(e.pos) + 100)(flip(int(e.pos) - 100)(flip(segmentHeaderSize + 100)(b)))
	})
	d, l = openDamaged(t, dir)
	l.Configure(LogConfig{SegmentBytes: 1 << 20})
	appendRaw(t, l, appendBatch(nil, &Message{Value: value}))
	_, err = l.Read(t.Context(), 0, 1)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.LessOrEqual(t, corrupt.To, e.offset)
	r, err := l.Read(t.Context(), e.offset+1, 1)
	require.NoError(t, err)
	r.Release()
	require.NoError(t, d.Close())
}

// Where bytes are gone from a segment, or have been put in, what stands behind is found by
// whoever looks for it there, not only by who reads on from the damage: the index led
// searches and readers to places where no batch begins, and they took what stands there for
// damaged.
func TestSearchBehindShiftedBatches(t *testing.T) {
	const each = 200
	takeOut := func(b []byte) []byte { return slices.Delete(b, segmentHeaderSize+100, segmentHeaderSize+130) }
	putIn := func(b []byte) []byte { return slices.Insert(b, segmentHeaderSize+100, make([]byte, 30)...) }
	for _, c := range []struct {
		name   string
		shift  func(b []byte) []byte
		behind int // messages in the segment behind
	}{
		{"taken out of the last segment", takeOut, 0},
		{"taken out of another", takeOut, 1},
		{"put into another", putIn, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			open := func(dir string) (*dataDir, PartitionLog) {
				d, l := openDamaged(t, dir)
				l.Configure(LogConfig{SegmentBytes: 1 << 20})
				return d, l
			}
			for life := range 2 {
				d, l := open(dir)
				for i := range each {
					appendValues(t, l, 1, int64(life*each+i)*10)
				}
				require.NoError(t, d.Close())
			}
			d, l := openDamaged(t, dir) // With segments so small that another is begun.
			for range c.behind {
				appendValues(t, l, 1, 1<<20)
			}
			require.NoError(t, d.Close())
			segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
			require.NoError(t, err)
			require.Len(t, segments, 1+c.behind)
			damageFile(t, segments[0], c.shift)
			const wanted = each // Of it there is an entry: the log was closed there.
			for what, look := range map[string]func(l PartitionLog) int64{
				"read": func(l PartitionLog) int64 {
					r, err := l.Read(t.Context(), wanted, 1)
					require.NoError(t, err)
					defer r.Release()
					return batch(r.Batches).baseOffset()
				},
				"time": func(l PartitionLog) int64 {
					offset, err := l.OffsetAt(t.Context(), wanted*10)
					require.NoError(t, err)
					return offset
				},
				"epoch": func(l PartitionLog) int64 {
					end, err := l.EpochEnd(t.Context(), 1)
					require.NoError(t, err)
					return end
				},
			} {
				// Nobody has read there before, nor made the index anew.
				as := t.TempDir()
				require.NoError(t, os.CopyFS(as, os.DirFS(dir)))
				d, l := open(as)
				require.Equal(t, int64(wanted), look(l), what)
				require.NoError(t, d.Close())
			}
		})
	}
}

// What was acknowledged as synced behind a segment that could not be synced outlives a power
// failure: recovery ended the log where that segment was gone.
func TestSyncedBehindFailedSync(t *testing.T) {
	for seed := range uint64(40) {
		files := newMemFiles(seed)
		open := func() (*dataDir, PartitionLog) {
			d, err := openDataDir(files, "/data", SyncInterval(time.Hour), newWarner(slog.New(slog.DiscardHandler)))
			require.NoError(t, err)
			return d, openTestLog(t, d, LogConfig{SegmentBytes: 1 << 20}, nil)
		}
		put := func(l PartitionLog) AppendResult {
			done := make(chan AppendResult, 1)
			l.Append(appendBatch(nil, &Message{Value: make([]byte, 2000)}), AcksSynced, func(r AppendResult) { done <- r })
			return <-done
		}
		d, l := open()
		require.NoError(t, files.syncDir("/"))
		require.NoError(t, put(l).Err)
		files.setFault(func(op fileOp) fault {
			switch {
			case op.kind == "open" && strings.HasSuffix(op.path, indexSuffix):
				return fault{err: syscall.EIO}
			case op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix):
				return fault{err: syscall.EIO, drop: true}
			}
			return fault{}
		})
		require.ErrorIs(t, put(l).Err, ErrStorage)
		require.ErrorIs(t, put(l).Err, ErrStorage) // In a segment of its own.
		// The indexes of those before cannot be written either: they would say it, too.
		files.setFault(func(op fileOp) fault {
			if op.kind == "open" && strings.HasSuffix(op.path, indexSuffix) && !strings.HasSuffix(op.path, "03"+indexSuffix) {
				return fault{err: syscall.EIO}
			}
			return fault{}
		})
		last := put(l)
		require.NoError(t, last.Err)
		require.Equal(t, int64(3), last.BaseOffset)
		old := files
		files = old.crash(rand.New(rand.NewPCG(seed, 3)))
		_ = d.Close() // All that it does fails.
		d, l = open()
		r, err := l.Read(t.Context(), last.BaseOffset, 1)
		require.NoError(t, err, "seed %d", seed)
		require.NotEmpty(t, r.Batches, "seed %d", seed)
		require.Equal(t, last.BaseOffset, batch(r.Batches).baseOffset())
		r.Release()
		require.NoError(t, d.Close())
	}
}

// TestSegmentGoesWhileItsSyncFails has an append remove a segment in which there is nothing
// between the failure of its sync and what the log makes of that.
func TestSegmentGoesWhileItsSyncFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		files := newMemFiles(1)
		d, err := openDataDir(files, "/data", SyncInterval(10*time.Millisecond), newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err)
		l := openTestLog(t, d, LogConfig{SegmentBytes: 1000}, nil)
		put := func() error {
			done := make(chan AppendResult, 1)
			l.Append(appendBatch(nil, &Message{Value: make([]byte, 800)}), AcksStored, func(r AppendResult) { done <- r })
			return (<-done).Err
		}
		second := func(op fileOp, kind string) bool {
			return op.kind == kind && strings.HasSuffix(op.path, "1"+segmentSuffix)
		}
		removing, goOn := make(chan struct{}), make(chan struct{})
		written, removed := 0, 0
		files.setFault(func(op fileOp) fault {
			switch {
			case second(op, "write"):
				if written++; written == 2 { // Behind the header.
					return fault{err: syscall.EIO}
				}
			case second(op, "sync"):
				<-removing
				return fault{err: syscall.EIO}
			case op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix):
				return fault{err: syscall.EIO}
			case second(op, "remove"):
				if removed++; removed == 2 { // Before it was made there was one, too.
					close(removing)
					<-goOn
				}
			}
			return fault{}
		})
		require.NoError(t, put())
		require.ErrorIs(t, put(), ErrStorage)
		<-time.After(20 * time.Millisecond)
		last := make(chan error, 1)
		go func() { last <- put() }()
		synctest.Wait()
		require.Equal(t, 2, removed)
		files.clearFault()
		close(goOn)
		require.NoError(t, <-last)
		r, err := l.Read(t.Context(), 1, 1)
		require.NoError(t, err)
		require.NotEmpty(t, r.Batches)
		r.Release()
		require.NoError(t, d.Close())
	})
}

// An index that was made anew before anything was synced had an entry that could not be, and was
// made anew by whoever used it.
func TestIndexMadeAnewWithNothingSynced(t *testing.T) {
	l := openLossLog(t, lossStore(newLossFiles(t), SyncNever), lossConfig())
	require.NoError(t, appendOne(l, AcksStored).Err)
	s := l.visible.Load().segments[0]
	require.NoError(t, l.rebuildIndex(t.Context(), s, errIndexDamaged))
	_, _, err := s.index.search(func(*indexEntry) bool { return true })
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// What a failed sync has dropped is still there to be read, also by the next process, for which
// a sync does nothing: recovery took it for synced, and a power failure made a hole of it, with
// what was acknowledged behind it.
func TestRecoveryWritesAgainWhatASyncHasDropped(t *testing.T) {
	put := func(l *diskLog) error {
		done := make(chan AppendResult, 1)
		l.Append(appendBatch(nil, &Message{Value: make([]byte, 3000)}), AcksSynced, func(r AppendResult) { done <- r })
		return (<-done).Err
	}
	for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(time.Hour)} {
		for seed := range uint64(40) {
			files := newMemFiles(seed)
			require.NoError(t, files.mkdir("/data"))
			require.NoError(t, files.syncDir("/"))
			l := openLossLog(t, lossStore(files, policy), lossConfig())
			require.NoError(t, put(l))
			files.setFault(func(op fileOp) fault {
				return map[string]fault{"sync": {err: syscall.EIO, drop: true}, "truncate": {err: syscall.EROFS}}[op.kind]
			})
			require.ErrorIs(t, put(l), ErrStorage)
			killed := files.kill()
			_ = l.Close() // All that it does fails.
			l = openLossLog(t, lossStore(killed, policy), lossConfig())
			require.NoError(t, put(l))
			_, end := l.Bounds()
			require.EqualValues(t, 3, end)
			after := killed.crash(rand.New(rand.NewPCG(seed, 5)))
			_ = l.Close() // Likewise.
			l = openLossLog(t, lossStore(after, policy), lossConfig())
			_, again := l.Bounds()
			require.Equal(t, end, again, "%v, seed %d", policy, seed)
			for at := range end {
				r, err := l.Read(t.Context(), at, 1)
				require.NoError(t, err, "%v, seed %d, offset %d", policy, seed, at)
				r.Release()
			}
			require.NoError(t, l.Close())
		}
	}
}

// A batch of which a failed sync has left nobody knowing whether it outlives a power failure was
// answered as synced when it was sent again after the log had been closed and opened.
func TestDoubtOutlivesProcess(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncInterval(time.Hour), SyncNever} {
		for _, end := range []string{"closed", "killed", "killed, producers lost"} {
			files := newLossFiles(t)
			l := openLossLog(t, lossStore(files, policy), lossConfig())
			first, second := producerBatch(producerFields{1, 0, 0}, 1, 0), producerBatch(producerFields{1, 0, 1}, 1, 1)
			require.NoError(t, appendNow(l, first, AcksStored).Err)
			files.setFault(func(op fileOp) fault {
				if op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix) {
					return fault{err: syscall.EIO, drop: true}
				}
				return fault{}
			})
			require.ErrorIs(t, l.syncAll(), ErrStorage)
			files.clearFault()
			require.NoError(t, appendNow(l, second, AcksSynced).Err)
			require.ErrorIs(t, appendNow(l, first, AcksSynced).Err, ErrStorage)
			killed := files
			if end != "closed" {
				killed = files.kill()
			}
			if end == "killed, producers lost" {
				for _, path := range killed.paths() {
					if strings.HasSuffix(path, producersSuffix) {
						killed.put(path, nil)
					}
				}
			}
			_ = l.Close()
			l = openLossLog(t, lossStore(killed, policy), lossConfig())
			require.ErrorIs(t, appendNow(l, first, AcksSynced).Err, ErrStorage, "%v, %s", policy, end)
			require.True(t, appendNow(l, first, AcksStored).Repeated)
			r := appendNow(l, second, AcksSynced)
			require.NoError(t, r.Err)
			require.True(t, r.Repeated)
			require.NoError(t, l.Close())
			// With SyncAlways a batch has to be synced whatever was asked for.
			l = openLossLog(t, lossStore(killed, SyncAlways), lossConfig())
			require.ErrorIs(t, appendNow(l, first, AcksStored).Err, ErrStorage)
			require.NoError(t, l.Close())
		}
	}
}

// Where the log goes on behind a segment in doubt, an index said that had not reached stable
// storage. The next process relied on it: after a power failure the log ended where the segment in
// doubt was gone, before what had been acknowledged as synced.
func TestSyncedBehindDoubtOfAnotherProcess(t *testing.T) {
	for seed := range uint64(40) {
		files := newMemFiles(seed)
		require.NoError(t, files.mkdir("/data"))
		require.NoError(t, files.syncDir("/"))
		policy := SyncInterval(time.Hour)
		l := openLossLog(t, lossStore(files, policy), lossConfig())
		require.NoError(t, appendOne(l, AcksSynced).Err)
		files.setFault(func(op fileOp) fault {
			switch {
			case op.kind == "sync" && strings.HasSuffix(op.path, indexSuffix):
				return fault{err: syscall.EIO}
			case op.kind == "sync" && strings.HasSuffix(op.path, "0"+segmentSuffix):
				return fault{err: syscall.EIO, drop: true}
			}
			return fault{}
		})
		require.ErrorIs(t, appendOne(l, AcksSynced).Err, ErrStorage)
		require.ErrorIs(t, appendOne(l, AcksSynced).Err, ErrStorage)
		killed := files.kill()
		_ = l.Close() // All that it does fails.
		l = openLossLog(t, lossStore(killed, policy), lossConfig())
		last := appendOne(l, AcksSynced)
		require.NoError(t, last.Err)
		after := killed.crash(rand.New(rand.NewPCG(seed, 6)))
		_ = l.Close() // Likewise.
		l = openLossLog(t, lossStore(after, policy), lossConfig())
		r, err := l.Read(t.Context(), last.BaseOffset, 1)
		require.NoError(t, err, "seed %d", seed)
		require.NotEmpty(t, r.Batches, "seed %d", seed)
		r.Release()
		require.NoError(t, l.Close())
	}
}
