package robust

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func lossStore(m fileSystem, p SyncPolicy) *logStore {
	return newLogStore(m, p, newWarner(slog.New(slog.DiscardHandler)))
}

func openLossLog(t *testing.T, s *logStore, c LogConfig) *diskLog {
	l, err := openLog(t.Context(), s, "/data/0", "t/0", segmentHeader{topicID: "id"}, c, logEvents{})
	require.NoError(t, err)
	return l
}

func appendOne(l *diskLog, acks Acks) AppendResult {
	ch := make(chan AppendResult, 1)
	l.Append(appendBatch(nil, &Message{Value: []byte(strings.Repeat("x", 100))}), acks, func(r AppendResult) { ch <- r })
	return <-ch
}

func lossConfig() LogConfig { return LogConfig{SegmentBytes: 1 << 20} }

// A crash right after a segment was begun leaves an empty one; that must not be begun twice.
func TestRollBehindEmptySegment(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	l := openLossLog(t, lossStore(m, SyncInterval(time.Second)), lossConfig())
	for range 10 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.exclusive(l.roll))
	m = m.kill()
	l = openLossLog(t, lossStore(m, SyncInterval(time.Second)), lossConfig())
	require.NoError(t, l.DeleteBefore(t.Context(), 10))
	for range 5 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.Close())
	l = openLossLog(t, lossStore(m, SyncInterval(time.Second)), lossConfig())
	_, e := l.Bounds()
	require.EqualValues(t, 15, e)
}

// The same by a write that failed for lack of space, without a crash.
func TestRollAfterFailedWrite(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	c := LogConfig{SegmentBytes: 1000}
	l := openLossLog(t, lossStore(m, SyncAlways), c)
	for range 5 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	for {
		m.setFault(func(op fileOp) fault {
			if op.kind == "write" && strings.HasSuffix(op.path, ".log") && op.size != segmentHeaderSize {
				return fault{err: syscall.ENOSPC}
			}
			return fault{}
		})
		r := appendOne(l, AcksSynced)
		m.clearFault()
		require.Error(t, r.Err)
		l.mu.Lock()
		w := l.written
		l.mu.Unlock()
		if w.last.pos == segmentHeaderSize {
			break
		}
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	_, end := l.Bounds()
	require.NoError(t, l.DeleteBefore(t.Context(), end))
	for range 3 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	_, e := l.Bounds()
	m = m.kill()
	l = openLossLog(t, lossStore(m, SyncAlways), c)
	_, e2 := l.Bounds()
	require.Equal(t, e, e2)
}

// The same by a sync that failed while the last segment was empty.
func TestRollAfterFailedSync(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	c := LogConfig{SegmentBytes: 1 << 20, RetentionAge: time.Hour}
	l := openLossLog(t, lossStore(m, SyncInterval(time.Hour)), c)
	for range 10 {
		require.NoError(t, appendOne(l, AcksStored).Err)
	}
	m.setFault(func(op fileOp) fault {
		if op.kind == "sync" {
			return fault{err: syscall.EIO}
		}
		return fault{}
	})
	require.Error(t, l.Expire(time.Now().Add(2*time.Hour))) // rolls, then the sync fails
	m.clearFault()
	for range 5 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.Expire(time.Now().Add(30*time.Minute)))
	require.NoError(t, l.DeleteBefore(t.Context(), 10)) // or later retention
	_, e := l.Bounds()
	l = openLossLog(t, lossStore(m.kill(), SyncInterval(time.Hour)), c)
	_, e2 := l.Bounds()
	require.Equal(t, e, e2)
}

// A log that was opened clean knows the ends of its segments from their indexes only.
func TestSyncFailsBehindEmptySegment(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	l := openLossLog(t, lossStore(m, SyncAlways), lossConfig())
	for range 10 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.exclusive(l.roll))
	m = m.kill()
	l = openLossLog(t, lossStore(m, SyncAlways), lossConfig())
	require.NoError(t, l.Close())
	l = openLossLog(t, lossStore(m, SyncAlways), lossConfig())
	m.setFault(func(op fileOp) fault {
		if op.kind == "sync" {
			return fault{err: syscall.EIO, drop: true}
		}
		return fault{}
	})
	require.ErrorIs(t, appendOne(l, AcksSynced).Err, ErrStorage)
}

// A file that is shortened under a broker is damage.
func TestReadOfShortenedFile(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	l := openLossLog(t, lossStore(m, SyncAlways), lossConfig())
	for range 10 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	f, err := m.open(segmentPath("/data/0", 0, segmentSuffix), os.O_RDWR)
	require.NoError(t, err)
	require.NoError(t, f.truncate(1000))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { _, err := l.Read(ctx, 9, 100); done <- err }()
	select {
	case err := <-done:
		require.ErrorIs(t, err, ErrCorrupt)
	case <-time.After(5 * time.Second):
		t.Fatal("read spins")
	}
}

// What recovery has removed must not come back behind what is appended afterwards.
func TestTwoPowerLosses(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newMemFiles(seed)
		require.NoError(t, m.mkdir("/data"))
		require.NoError(t, m.syncDir("/"))
		s := lossStore(m, SyncInterval(time.Hour))
		l := openLossLog(t, s, lossConfig())
		for range 10 {
			require.NoError(t, appendOne(l, AcksSynced).Err)
		}
		require.NoError(t, l.Close()) // known frontier
		l = openLossLog(t, s, lossConfig())
		for range 5 {
			require.NoError(t, appendOne(l, AcksStored).Err)
		}
		require.NoError(t, l.exclusive(l.roll))
		m = m.crash(rng)
		s = lossStore(m, SyncAlways)
		l = openLossLog(t, s, lossConfig())
		_, e := l.Bounds()
		for range 20 {
			require.NoError(t, appendOne(l, AcksSynced).Err)
		}
		m = m.crash(rng)
		s = lossStore(m, SyncAlways)
		l = openLossLog(t, s, lossConfig())
		_, e2 := l.Bounds()
		require.GreaterOrEqual(t, e2, e+20, "seed %d", seed)
	}
}

// Who waits until another log is synced does not wait for the interval.
func TestUnsavedWaitersAreKicked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFiles(1)
		require.NoError(t, m.mkdir("/data"))
		m.setFault(func(op fileOp) fault {
			if op.kind == "write" {
				<-time.After(5 * time.Millisecond)
			}
			return fault{}
		})
		s := lossStore(m, SyncInterval(time.Hour))
		s.unsaved = make(chan struct{}, 4)
		done := make(chan struct{})
		s.running.Go(func() { s.run(done) })
		const n = 64
		ch := make(chan int, n)
		var logs []*diskLog
		for i := range n {
			l, err := openLog(t.Context(), s, fmt.Sprint("/data/", i), fmt.Sprint(i), segmentHeader{partition: int32(i)}, lossConfig(), logEvents{})
			require.NoError(t, err)
			logs = append(logs, l)
		}
		for i, l := range logs {
			go func() { appendOne(l, AcksStored); ch <- i }()
		}
		got := 0
		for got < n {
			select {
			case <-ch:
				got++
			case <-time.After(5 * time.Second):
				t.Fatalf("only %d of %d appends done; hungry %d", got, n, s.hungry.Load())
			}
		}
		for _, l := range logs {
			require.NoError(t, l.Close())
		}
		close(done)
		s.running.Wait()
	})
}

// A log whose start is damaged begins, after a repair, with what is there.
func TestRepairOfStart(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	d, err := openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	topic := StoredTopic{Name: "t", ID: "id", Partitions: 1}
	require.NoError(t, d.PutTopic(t.Context(), topic))
	pl, err := d.OpenPartition(t.Context(), topic, 0, lossConfig(), nil)
	require.NoError(t, err)
	l := pl.(*dataDirLog).diskLog
	for range 10 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.DeleteBefore(t.Context(), 10))
	for range 10 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	files := m.kill()
	_ = d.Close() // The files are gone.
	m = files
	path := "/data/topics/t@id/0/start.json"
	b := append([]byte{}, m.content(path)...)
	b[len(b)-5] ^= 1
	m.put(path, b)
	_, err = inspectDataDir(t.Context(), m, "/data", true)
	require.NoError(t, err)
	d, err = openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	pl, err = d.OpenPartition(t.Context(), topic, 0, lossConfig(), nil)
	require.NoError(t, err)
	_, e := pl.Bounds()
	require.EqualValues(t, 20, e)
	require.NoError(t, d.Close())
}

// A name that could not be synced is synced by the next who opens the log.
func TestFailedSyncOfName(t *testing.T) {
	bad := 0
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newMemFiles(seed)
		require.NoError(t, m.mkdir("/data"))
		require.NoError(t, m.syncDir("/"))
		c := LogConfig{SegmentBytes: 64 << 10}
		s := lossStore(m, SyncInterval(time.Hour))
		l := openLossLog(t, s, c)
		for range 50 {
			require.NoError(t, appendOne(l, AcksStored).Err)
		}
		failed := false
		m.setFault(func(op fileOp) fault {
			if op.kind == "syncDir" && op.path == "/data/0" && !failed {
				failed = true
				return fault{err: syscall.EIO}
			}
			return fault{}
		})
		l.syncNow() // fails
		m.clearFault()
		require.True(t, failed)
		l.syncNow() // the next tick
		m = m.kill()
		l = openLossLog(t, lossStore(m, SyncInterval(time.Hour)), c)
		require.NoError(t, m.syncDir("/data")) // as dataDir.load does
		r := appendOne(l, AcksSynced)
		require.NoError(t, r.Err)
		m = m.crash(rng)
		l = openLossLog(t, lossStore(m, SyncAlways), c)
		_, e := l.Bounds()
		if e <= r.BaseOffset {
			bad++
		}
	}
	require.Zero(t, bad)
}

// Retention may remove what a search by time looks at.
func TestOffsetAtOvertakenByRetention(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	c := LogConfig{SegmentBytes: 1000}
	l := openLossLog(t, lossStore(m, SyncAlways), c)
	for range 30 {
		require.NoError(t, appendOne(l, AcksSynced).Err)
	}
	require.NoError(t, l.Close())
	l = openLossLog(t, lossStore(m, SyncAlways), c)
	once := false
	m.setFault(func(op fileOp) fault {
		if !once && op.kind == "open" && strings.HasSuffix(op.path, "00000.index") {
			once = true
			require.NoError(t, l.DeleteBefore(t.Context(), 20))
		}
		return fault{}
	})
	_, err := l.OffsetAt(t.Context(), 1)
	require.NoError(t, err)
}

// What somebody has put beside the topics is left alone.
func TestForeignDirectoryIsKept(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	open := func() *dataDir {
		d, err := openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err)
		return d
	}
	require.NoError(t, open().Close())
	for _, dir := range []string{"lost+found", "copy@home", "half@1"} {
		require.NoError(t, m.mkdir("/data/topics/"+dir))
	}
	m.put("/data/topics/lost+found/mine", []byte("x"))
	m.put("/data/topics/copy@home/mine", []byte("x"))
	m.put("/data/topics/half@1/topic.json.tmp", []byte("x"))
	require.NoError(t, open().Close())
	require.NotNil(t, m.content("/data/topics/lost+found/mine"))
	require.NotNil(t, m.content("/data/topics/copy@home/mine"))
	require.Nil(t, m.content("/data/topics/half@1/topic.json.tmp"))
	report, err := inspectDataDir(t.Context(), m, "/data", true)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
	require.NotNil(t, m.content("/data/topics/copy@home/mine"))
}
