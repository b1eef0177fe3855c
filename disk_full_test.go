package robust

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// smallDisk has room for so many blocks and no more. A file takes whole ones, also after it
// was removed, as long as it is open.
type smallDisk struct {
	*memFiles
	blocks atomic.Int64
}

type smallDiskFile struct {
	*memFile
	disk *smallDisk
}

const diskBlock = 4 << 10

func blocksOf(bytes int) int64 { return (int64(bytes) + diskBlock - 1) / diskBlock }

func newSmallDisk(t *testing.T) *smallDisk {
	d := &smallDisk{memFiles: newMemFiles(1)}
	d.blocks.Store(math.MaxInt64)
	require.NoError(t, d.mkdir("/data"))
	return d
}

func (d *smallDisk) open(name string, flag int) (file, error) {
	f, err := d.memFiles.open(name, flag)
	if err != nil {
		return nil, err
	}
	return smallDiskFile{f.(*memFile), d}, nil
}

// usedLocked returns how many blocks files take.
func (d *smallDisk) usedLocked() (blocks int64) {
	seen := make(map[*memNode]bool)
	var add func(n *memNode)
	add = func(n *memNode) {
		if !seen[n] {
			seen[n] = true
			blocks += blocksOf(len(n.data))
		}
		for _, e := range n.entries {
			add(e)
		}
	}
	add(d.root)
	for h := range d.handles {
		add(h.node)
	}
	return blocks
}

// fill leaves no block that is not taken.
func (d *smallDisk) fill() {
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.blocks.Store(d.usedLocked())
}

// WriteAt writes as much as there is room for.
func (f smallDiskFile) WriteAt(p []byte, off int64) (int, error) {
	f.disk.mu.RLock()
	size := len(f.node.data)
	left := f.disk.blocks.Load() - f.disk.usedLocked()
	f.disk.mu.RUnlock()
	room := int(min(blocksOf(size)+left, math.MaxInt32)*diskBlock) - int(off)
	if room >= len(p) {
		return f.memFile.WriteAt(p, off)
	}
	n, err := f.memFile.WriteAt(p[:max(room, 0)], off)
	return n, errors.Join(err, pathError("write", f.name, syscall.ENOSPC))
}

// openSmall opens a data directory on a disk, and the log of its only partition.
func openSmall(t *testing.T, disk *smallDisk, policy SyncPolicy, c LogConfig) (*dataDir, *diskLog) {
	d, err := openDataDir(disk, "/data", policy, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	topic := StoredTopic{Name: "t", ID: "id", Partitions: 1}
	if len(d.topics) == 0 {
		require.NoError(t, d.PutTopic(t.Context(), topic))
	}
	l, err := d.OpenPartition(t.Context(), topic, 0, c, nil)
	require.NoError(t, err)
	return d, l.(*dataDirLog).diskLog
}

// fillLog appends until there is no room.
func fillLog(t *testing.T, disk *smallDisk, l *diskLog) {
	var err error
	for n := 0; err == nil; n++ {
		if n == 100 {
			disk.fill()
		}
		stored := make(chan error, 1)
		batch := appendBatch(nil, &Message{Value: []byte(strings.Repeat("x", 1000))})
		l.Append(batch, AcksStored, func(r AppendResult) { stored <- r.Err })
		err = <-stored
	}
	require.True(t, isFull(err), "%v", err)
}

// Retention has to keep where a log begins before it removes anything, for which there was
// no room: a full disk stayed full.
func TestRetentionOnFullDisk(t *testing.T) {
	const segment = 8 << 10
	later := time.Now().Add(2 * time.Hour)
	for name, test := range map[string]struct {
		config LogConfig
		free   func(l *diskLog) error
		roll   bool // it needs another segment, for which there is no room at first
	}{
		"by size":         {LogConfig{SegmentBytes: segment, RetentionBytes: 5 * segment}, func(l *diskLog) error { return l.Expire(later) }, false},
		"by age":          {LogConfig{SegmentBytes: segment, RetentionAge: time.Hour}, func(l *diskLog) error { return l.Expire(later) }, true},
		"up to an offset": {LogConfig{SegmentBytes: segment}, func(l *diskLog) error { return l.DeleteBefore(t.Context(), 60) }, false},
		"up to the end": {LogConfig{SegmentBytes: segment}, func(l *diskLog) error {
			_, end := l.Bounds()
			return l.DeleteBefore(t.Context(), end)
		}, true},
	} {
		for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(time.Hour), SyncNever} {
			t.Run(name+" "+policy.String(), func(t *testing.T) {
				disk := newSmallDisk(t)
				d, l := openSmall(t, disk, policy, LogConfig{SegmentBytes: segment})
				fillLog(t, disk, l)
				_, end := l.Bounds()
				l.Configure(test.config)
				if test.roll {
					disk.setFault(func(op fileOp) (f fault) {
						if op.kind == "write" && strings.HasSuffix(op.path, segmentSuffix) {
							f.err = syscall.ENOSPC // The reserve may have left some room.
						}
						return f
					})
				}
				err := test.free(l)
				disk.clearFault()
				if test.roll {
					require.True(t, isFull(err), "%v", err)
				} else {
					require.NoError(t, err)
				}
				start, _ := l.Bounds()
				require.Positive(t, start)
				require.NoError(t, appendOne(l, AcksSynced).Err)
				for offset := start; offset <= end; offset++ {
					r, err := l.Read(t.Context(), offset, 1)
					require.NoError(t, err)
					require.Equal(t, offset, cutBatch(r.Batches).baseOffset())
					r.Release()
				}
				require.NoError(t, d.Close())
				d, l = openSmall(t, disk, policy, test.config)
				again, after := l.Bounds()
				require.Equal(t, start, again)
				require.Equal(t, end+1, after)
				require.NoError(t, d.Close())
			})
		}
	}
}

// A broker could not be started on a full disk, not even to make room on it, nor could a
// topic's retention be changed.
func TestOpenOnFullDisk(t *testing.T) {
	const segment = 8 << 10
	disk := newSmallDisk(t)
	c := LogConfig{SegmentBytes: segment}
	d, l := openSmall(t, disk, SyncAlways, c)
	fillLog(t, disk, l)
	epoch := d.store.epoch
	for opened := range 5 {
		require.NoError(t, d.Close())
		disk.fill()
		d, l = openSmall(t, disk, SyncAlways, c)
		require.Equal(t, epoch+int32(opened)+1, d.store.epoch)
		topic := StoredTopic{Name: "t", ID: "id", Partitions: 1, Config: map[string]string{"n": fmt.Sprint(opened)}}
		require.NoError(t, d.PutTopic(t.Context(), topic))
	}
	start, end := l.Bounds()
	require.NoError(t, l.DeleteBefore(t.Context(), end-10))
	require.NoError(t, appendOne(l, AcksSynced).Err)
	require.Greater(t, end-10, start)
	require.NoError(t, d.Close())
}
