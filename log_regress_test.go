package robust

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// fullFiles is a disk that may be full.
type fullFiles struct {
	*countedFiles
	full atomic.Bool
}

type fullFile struct {
	file
	files *fullFiles
}

func (f *fullFiles) open(name string, flag int) (file, error) {
	opened, err := f.countedFiles.open(name, flag)
	if err != nil {
		return nil, err
	}
	return fullFile{opened, f}, nil
}

func (f fullFile) WriteAt(p []byte, at int64) (int, error) {
	if f.files.full.Load() {
		return 0, syscall.ENOSPC
	}
	return f.file.WriteAt(p, at)
}

// A log whose write had failed was kept open for a sync that nobody was to do. After 512
// of them every other append waited for ever, also when the disk had room again.
func TestLogGivesWayAfterFailedWrite(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncInterval(10 * time.Millisecond), SyncAlways} {
		t.Run(policy.String(), func(t *testing.T) {
			const partitions = maxOpenFiles/2 + 1
			files := &fullFiles{countedFiles: &countedFiles{}}
			d, topic := openBenchDir(t, files, memoryDir(t), policy, partitions)
			defer func() { require.NoError(t, d.Close()) }()
			logs := openPartitions(t, d, topic, defaultSegment)
			a := newAppender(1, 1, 100)
			for _, l := range logs {
				require.NoError(t, a.append(l))
			}
			syncLogs(d)
			d.store.mu.Lock()
			clear(d.store.dirty) // They are synced.
			d.store.mu.Unlock()

			files.full.Store(true)
			for _, l := range logs[1:] {
				require.ErrorIs(t, a.append(l), ErrStorage)
			}
			files.full.Store(false)
			done := make(chan AppendResult, 1)
			go logs[0].Append(newAppender(2, 1, 100).batch(), AcksStored, func(r AppendResult) { done <- r })
			select {
			case r := <-done:
				require.NoError(t, r.Err)
			case <-time.After(5 * time.Second):
				t.Error("an append waits for logs that have nothing to be synced")
				for _, l := range logs[1:] {
					require.NoError(t, a.append(l)) // For it to end.
				}
				<-done
			}
		})
	}
}

// Every log to which several had appended at once kept up to a megabyte for the next time.
func TestLogHeapAfterAppendsAtOnce(t *testing.T) {
	const partitions, appenders, idleBytes = 100, 64, 4 << 10
	all := make([]*appender, appenders)
	for i := range all {
		all[i] = newAppender(byte(i), 100, 150)
	}
	before := heapInUse()
	_, d, topic := openCounted(t, memoryDir(t), SyncNever, partitions)
	logs := openPartitions(t, d, topic, defaultSegment)
	for _, l := range logs {
		var running sync.WaitGroup
		for _, a := range all {
			running.Go(func() {
				for range 10 {
					if err := a.append(l); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		running.Wait()
	}
	syncLogs(d) // Until then the index is in memory.
	idle := (heapInUse() - before) / partitions
	t.Logf("heap of an idle partition: %d bytes", idle)
	require.LessOrEqual(t, idle, int64(idleBytes))
	require.NoError(t, d.Close())
	runtime.KeepAlive(all)
}

// More logs than can be synced at a time make room for others, and each waits for its own
// appends to let it: the appends wait for the others to be synced.
func TestLogsAllTrimAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions, appends = 4 * maxSyncs, 60
		files := newMemFiles(1)
		require.NoError(t, files.mkdir("/data"))
		store := newLogStore(files, SyncInterval(time.Millisecond), newWarner(slog.New(slog.DiscardHandler)))
		store.unsaved = make(chan struct{}, 2)
		done := make(chan struct{})
		store.running.Go(func() { store.run(done) })
		config := LogConfig{SegmentBytes: 512, RetentionBytes: 512}
		logs := make([]*diskLog, partitions)
		var running sync.WaitGroup
		for i := range logs {
			l, err := openLog(t.Context(), store, fmt.Sprint("/data/", i), fmt.Sprint(i), segmentHeader{partition: int32(i)}, config, logEvents{})
			require.NoError(t, err)
			logs[i] = l
			running.Go(func() {
				a := newAppender(byte(i), 1, 100)
				for range appends {
					if err := a.append(l); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		running.Wait()
		for _, l := range logs {
			require.NoError(t, l.Close())
			start, end := l.Bounds()
			require.EqualValues(t, appends, end)
			require.Positive(t, start)
		}
		close(done)
		store.running.Wait()
	})
}

// Segments whose files could not be removed were forgotten, and took room until the log was
// opened again.
func TestRetentionRemovesLater(t *testing.T) {
	m := newLossFiles(t)
	l := openLossLog(t, lossStore(m, SyncNever), LogConfig{SegmentBytes: 1000, RetentionBytes: 1})
	for range 30 {
		require.NoError(t, appendOne(l, AcksStored).Err)
	}
	m.setFault(func(op fileOp) fault {
		if op.kind == "remove" {
			return fault{err: syscall.EIO}
		}
		return fault{}
	})
	require.ErrorIs(t, l.Expire(time.Now()), ErrStorage)
	start, _ := l.Bounds()
	require.Positive(t, start)
	require.ErrorIs(t, l.Expire(time.Now()), ErrStorage)
	m.clearFault()
	require.NoError(t, l.Expire(time.Now()))
	for _, path := range m.paths() {
		if base, ok := parseSegmentName(filepath.Base(path), segmentSuffix); ok {
			require.GreaterOrEqual(t, base, start, path)
		}
	}
	before := m.count.Load()
	require.NoError(t, l.Expire(time.Now()))
	require.Equal(t, before, m.count.Load())
	require.NoError(t, l.Close())
}

// A directory that is there need not be made to last: where what it is in may not be read, or
// cannot be synced, no broker could be started.
func TestDataDirBelowOthersDirectory(t *testing.T) {
	for _, cause := range []syscall.Errno{syscall.EACCES, syscall.EPERM, syscall.EINVAL, syscall.EROFS} {
		m := newLossFiles(t)
		m.setFault(func(op fileOp) fault {
			if op.path == "/" {
				return fault{err: cause}
			}
			return fault{}
		})
		d, err := openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err, cause)
		require.NoError(t, d.Close())
		_, err = openDataDir(m, "/new", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
		require.ErrorIs(t, err, cause, "one that was made is not known to last")
	}
	m := newLossFiles(t)
	m.setFault(func(op fileOp) fault {
		if op.path == "/" {
			return fault{err: syscall.EIO}
		}
		return fault{}
	})
	_, err := openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.ErrorIs(t, err, ErrStorage)
}

// Retention needs a file for where a log begins: where no more could be open it failed, however
// many were kept open that nobody used.
func TestRetentionWithoutHandles(t *testing.T) {
	m := newLossFiles(t)
	l := openLossLog(t, lossStore(m, SyncInterval(time.Hour)), LogConfig{SegmentBytes: 1000})
	for range 30 {
		require.NoError(t, appendOne(l, AcksStored).Err)
	}
	for at := range int64(30) {
		r, err := l.Read(t.Context(), at, 1)
		require.NoError(t, err)
		r.Release()
	}
	require.NoError(t, l.syncAll())
	l.Configure(LogConfig{SegmentBytes: 1000, RetentionBytes: 1})
	limit := len(m.openNow())
	m.setFault(func(op fileOp) fault {
		if op.kind == "open" && len(m.openNow()) >= limit {
			return fault{err: syscall.EMFILE}
		}
		return fault{}
	})
	require.NoError(t, l.Expire(time.Now()))
	start, _ := l.Bounds()
	require.Positive(t, start)
	require.NoError(t, l.Close())
}
