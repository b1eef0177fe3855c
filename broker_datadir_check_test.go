package robust

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// fillDataDir makes a data directory with one partition of 2,000 messages in segments of
// 8 KiB, whose values are their offsets, and returns the paths of the segments.
func fillDataDir(t *testing.T, dir string) (segments []string) {
	t.Helper()
	d, err := openDataDir(osFiles{}, dir, SyncInterval(defaultSyncInterval), newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	l := openTestLog(t, d, LogConfig{SegmentBytes: 8 << 10}, nil)
	for range 400 {
		appendValues(t, l, 5)
	}
	require.NoError(t, d.PutOffsets(t.Context(), "readers", []StoredOffset{{Topic: "demo", TopicID: "1", Offset: 7}}))
	require.NoError(t, d.Close())
	segments, err = filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
	require.NoError(t, err)
	require.Greater(t, len(segments), 4)
	return segments
}

// readable returns the offsets that can be read, and the errors met on the way.
func readable(t *testing.T, dir string) (offsets map[int64]bool, failures []*CorruptError) {
	t.Helper()
	d, err := openDataDir(osFiles{}, dir, SyncInterval(defaultSyncInterval), newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	l := openTestLog(t, d, LogConfig{SegmentBytes: 8 << 10}, nil)
	offset, end := l.Bounds()
	offsets = make(map[int64]bool)
	for offset < end {
		r, err := l.Read(t.Context(), offset, 4096)
		var corrupt *CorruptError
		if err != nil {
			require.ErrorAs(t, err, &corrupt)
			require.LessOrEqual(t, corrupt.From, offset)
			require.Greater(t, corrupt.To, offset)
			failures = append(failures, corrupt)
			offset = corrupt.To
			continue
		}
		for rest := r.Batches; len(rest) > 0; {
			b := cutBatch(rest)
			rest, offset = rest[len(b):], b.nextOffset()
			records := b.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				require.Equal(t, fmt.Sprint(m.Offset), string(m.Value))
				offsets[m.Offset] = true
			}
		}
		r.Release()
	}
	return offsets, failures
}

// requireCount is require.Len without a page of offsets.
func requireCount(t *testing.T, want int, got map[int64]bool) {
	t.Helper()
	if len(got) != want {
		require.Failf(t, "wrong number of offsets", "%d instead of %d", len(got), want)
	}
}

func damageFile(t *testing.T, path string, change func(data []byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, change(data), 0o600))
}

func flip(at int) func([]byte) []byte {
	return func(data []byte) []byte {
		data[at] ^= 0x10
		return data
	}
}

// Whatever is damaged: what is whole is read, what is not is named by file and offsets;
// after a repair everything else is read without an error, and a check finds nothing.
func TestDamageIsFoundAndRepaired(t *testing.T) {
	batchSize := func(data []byte) int { return len(cutBatch(data[segmentHeaderSize:])) }
	for name, harm := range map[string]struct {
		segment int
		change  func(data []byte) []byte
		lost    int // messages
	}{
		"a record":          {1, flip(segmentHeaderSize + 100), 5},
		"a head":            {1, flip(segmentHeaderSize + batchLengthAt), 5},
		"the file's header": {1, flip(20), 0},
		"two batches": {2, func(b []byte) []byte {
			n := batchSize(b)
			return flip(segmentHeaderSize + n + 80)(flip(segmentHeaderSize + 80)(b))
		}, 10},
		"bytes put in": {2, func(b []byte) []byte {
			n := batchSize(b) + segmentHeaderSize
			return append(b[:n:n], append(make([]byte, 30), b[n:]...)...)
		}, 0},
		"bytes taken out": {2, func(b []byte) []byte { n := batchSize(b) + segmentHeaderSize; return append(b[:n:n], b[n+60:]...) }, 5},
		"a batch taken out": {2, func(b []byte) []byte {
			n := batchSize(b)
			return append(b[:segmentHeaderSize:segmentHeaderSize], b[segmentHeaderSize+n:]...)
		}, 5},
		"the end of a middle": {1, func(b []byte) []byte { return b[:len(b)-10] }, 5},
		"the end of the last": {-1, func(b []byte) []byte { return b[:len(b)-10] }, 5},
		"all of a middle":     {1, func([]byte) []byte { return nil }, -1},
		"in the last":         {-1, flip(segmentHeaderSize + 100), 5},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			segments := fillDataDir(t, dir)
			report, err := CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.Empty(t, report.Damage)
			require.Equal(t, int64(2000), report.Records-1, "and one of a group")
			path := segments[(harm.segment+len(segments))%len(segments)]
			damageFile(t, path, harm.change)

			report, err = CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.NotEmpty(t, report.Damage)
			lost := map[int64]bool{}
			for _, d := range report.Damage {
				require.Equal(t, "demo", d.Topic)
				require.Equal(t, path, d.File)
				require.False(t, d.Tail, d.Error())
				for offset := d.From; offset < d.To; offset++ {
					lost[offset] = true
				}
			}
			if harm.lost >= 0 {
				requireCount(t, harm.lost, lost)
			}
			offsets, failures := readable(t, dir)
			requireCount(t, 2000-len(lost), offsets)
			require.Equal(t, len(lost) > 0, len(failures) > 0)

			report, err = RepairDataDir(t.Context(), dir)
			require.NoError(t, err)
			for _, d := range report.Damage {
				require.True(t, d.Repaired, d.Error())
			}
			report, err = CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.Empty(t, report.Damage)
			offsets, failures = readable(t, dir)
			requireCount(t, 2000-len(lost), offsets)
			require.Empty(t, failures)
		})
	}
}

// What a crash leaves at the end is told apart from damage, and is gone after the next
// start.
func TestCheckTellsTheTail(t *testing.T) {
	dir := t.TempDir()
	segments := fillDataDir(t, dir)
	last := segments[len(segments)-1]
	damageFile(t, last, func(data []byte) []byte { return append(data, make([]byte, 100)...) })
	report, err := CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	require.True(t, report.Damage[0].Tail)
	offsets, failures := readable(t, dir)
	requireCount(t, 2000, offsets)
	require.Empty(t, failures)
	report, err = CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
}

// An index is a help: without it, or with a wrong one, everything is still found.
func TestIndexIsMadeAnew(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, change := range map[string]func([]byte) []byte{
		"gone":        nil,
		"empty":       func([]byte) []byte { return nil },
		"cut off":     func(b []byte) []byte { return b[:len(b)-7] },
		"header":      flip(3),
		"first entry": flip(segmentHeaderSize + 3),
		"noise": func(b []byte) []byte {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fillDataDir(t, dir)
			indexes, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+indexSuffix))
			require.NoError(t, err)
			require.NotEmpty(t, indexes)
			for _, path := range indexes {
				if change == nil {
					require.NoError(t, os.Remove(path))
				} else {
					damageFile(t, path, change)
				}
			}
			offsets, failures := readable(t, dir)
			requireCount(t, 2000, offsets)
			require.Empty(t, failures)
			report, err := CheckDataDir(t.Context(), dir)
			require.NoError(t, err)
			require.Empty(t, report.Damage)
		})
	}
}

// A batch in the value of a message is not taken for one of the log, wherever the damage is.
func TestBatchWithinMessage(t *testing.T) {
	dir := t.TempDir()
	d, err := openDataDir(osFiles{}, dir, SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	l := openTestLog(t, d, LogConfig{}, nil)
	inner := appendBatch(nil, &Message{Value: []byte("inner")})
	inner.stamp(1, 1, 1)
	appendRaw(t, l, appendBatch(nil, &Message{Value: []byte("0")}))
	appendRaw(t, l, appendBatch(nil, &Message{Value: append(make([]byte, 50), inner...)}))
	appendRaw(t, l, appendBatch(nil, &Message{Value: []byte("2")}))
	require.NoError(t, d.Close())
	segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
	require.NoError(t, err)
	damageFile(t, segments[0], func(data []byte) []byte {
		first := len(cutBatch(data[segmentHeaderSize:]))
		return flip(segmentHeaderSize + first + batchHeaderSize + 20)(data)
	})
	offsets := map[int64]string{}
	d, err = openDataDir(osFiles{}, dir, SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	l = openTestLog(t, d, LogConfig{}, nil)
	for _, offset := range []int64{0, 1, 2} {
		r, err := l.Read(t.Context(), offset, 1)
		if err != nil {
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, []int64{1, 2}, []int64{corrupt.From, corrupt.To})
			continue
		}
		var m Message
		records := cutBatch(r.Batches).records()
		_, err = records.next(&m)
		require.NoError(t, err)
		offsets[m.Offset] = string(m.Value)
		r.Release()
	}
	require.Equal(t, map[int64]string{0: "0", 2: "2"}, offsets)
	require.NoError(t, d.Close())
}

func TestDataDirFormats(t *testing.T) {
	warn := newWarner(slog.New(slog.DiscardHandler))
	t.Run("unknown version of a segment", func(t *testing.T) {
		dir := t.TempDir()
		segments := fillDataDir(t, dir)
		damageFile(t, segments[0], func(data []byte) []byte {
			data[9] = 2
			binary.BigEndian.PutUint32(data[segmentHeaderSize-4:], crc32.Checksum(data[:segmentHeaderSize-4], castagnoli))
			return data
		})
		d, err := openDataDir(osFiles{}, dir, SyncAlways, warn)
		require.NoError(t, err)
		l := openTestLog(t, d, LogConfig{}, nil)
		_, err = l.Read(t.Context(), 0, 1)
		require.ErrorIs(t, err, ErrUnsupported)
		require.ErrorContains(t, err, "version 2")
		require.ErrorContains(t, err, segments[0])
		require.NoError(t, d.Close())
	})
	t.Run("unknown format of a topic", func(t *testing.T) {
		dir := t.TempDir()
		fillDataDir(t, dir)
		topics, err := filepath.Glob(filepath.Join(dir, topicsName, "*", topicName))
		require.NoError(t, err)
		data, err := os.ReadFile(topics[0])
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(topics[0], []byte(`{"format":2`+string(data[len(`{"format":1`):])), 0o600))
		_, err = openDataDir(osFiles{}, dir, SyncAlways, warn)
		require.ErrorIs(t, err, ErrUnsupported)
		require.ErrorContains(t, err, topics[0])
	})
	t.Run("damaged description of a topic", func(t *testing.T) {
		dir := t.TempDir()
		fillDataDir(t, dir)
		topics, err := filepath.Glob(filepath.Join(dir, topicsName, "*", topicName))
		require.NoError(t, err)
		damageFile(t, topics[0], flip(60))
		_, err = openDataDir(osFiles{}, dir, SyncAlways, warn)
		require.ErrorIs(t, err, ErrCorrupt)
		require.ErrorContains(t, err, topics[0])
		report, err := CheckDataDir(t.Context(), dir)
		require.NoError(t, err)
		require.Len(t, report.Damage, 1)
		require.Equal(t, topics[0], report.Damage[0].File)
	})
	t.Run("a description that is gone", func(t *testing.T) {
		dir := t.TempDir()
		fillDataDir(t, dir)
		topics, err := filepath.Glob(filepath.Join(dir, topicsName, "*", topicName))
		require.NoError(t, err)
		require.NoError(t, os.Remove(topics[0]))
		_, err = openDataDir(osFiles{}, dir, SyncAlways, warn)
		require.ErrorIs(t, err, ErrCorrupt, "messages are not thrown away")
	})
	t.Run("no data directory", func(t *testing.T) {
		_, err := CheckDataDir(t.Context(), t.TempDir())
		require.ErrorContains(t, err, "not a data directory")
	})
	t.Run("in use", func(t *testing.T) {
		dir := t.TempDir()
		d, err := openDataDir(osFiles{}, dir, SyncAlways, warn)
		require.NoError(t, err)
		_, err = CheckDataDir(t.Context(), dir)
		require.ErrorIs(t, err, ErrDataDirInUse)
		require.NoError(t, d.Close())
	})
}

// What is no data directory is refused in one sentence.
func TestCheckDataDirOfAnother(t *testing.T) {
	dir := t.TempDir()
	_, err := CheckDataDir(t.Context(), dir)
	require.ErrorIs(t, err, ErrStorage)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.EqualError(t, err, "robust: "+dir+" is not a data directory: open "+filepath.Join(dir, topicsName)+": no such file or directory")
}

// A crash may leave the directory of a topic that was being made.
func TestCheckDataDirUnfinishedTopic(t *testing.T) {
	dir := t.TempDir()
	fillDataDir(t, dir)
	unfinished := filepath.Join(dir, topicsName, "half@2")
	require.NoError(t, os.Mkdir(unfinished, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(unfinished, topicName+temporarySuffix), []byte("{"), 0o644))
	report, err := CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
	require.DirExists(t, unfinished)
	report, err = RepairDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
	require.NoDirExists(t, unfinished)

	require.NoError(t, os.MkdirAll(filepath.Join(unfinished, "0"), 0o755))
	report, err = CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Len(t, report.Damage, 1)
	require.Equal(t, filepath.Join(unfinished, topicName), report.Damage[0].File)
}

// onlyReads refuses what would change anything, as a file system does that is mounted to be
// read only.
type onlyReads struct{ *memFiles }

func (f onlyReads) open(name string, flag int) (file, error) {
	if flag != os.O_RDONLY {
		return nil, pathError("open", name, syscall.EROFS)
	}
	return f.memFiles.open(name, flag)
}

func (f onlyReads) lock(name string, content []byte) (held io.Closer, holder []byte, err error) {
	if content != nil {
		return nil, nil, pathError("open", name, syscall.EROFS)
	}
	return f.memFiles.lock(name, content)
}

// What can only be read could not be checked: the lock was written, and descriptions were
// opened to be written.
func TestCheckChangesNothing(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	d, err := openDataDir(m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(t, err)
	topic := StoredTopic{Name: "t", ID: "id", Partitions: 1}
	require.NoError(t, d.PutTopic(t.Context(), topic))
	l, err := d.OpenPartition(t.Context(), topic, 0, lossConfig(), nil)
	require.NoError(t, err)
	appendValues(t, l, 10)
	require.NoError(t, l.DeleteBefore(t.Context(), 5))
	_, err = inspectDataDir(t.Context(), onlyReads{m}, "/data", false)
	require.ErrorIs(t, err, ErrDataDirInUse)
	require.NoError(t, d.Close())

	holder := slices.Clone(m.content("/data/lock"))
	for _, path := range []string{"/data/lock", "/data/topics/t@id/0/00000000000000000000.index"} {
		report, err := inspectDataDir(t.Context(), onlyReads{m}, "/data", false)
		require.NoError(t, err)
		require.Empty(t, report.Damage)
		require.EqualValues(t, 10, report.Records)
		require.Equal(t, holder, m.content("/data/lock"))
		require.NoError(t, m.remove(path)) // A copy may be without it.
		holder = nil
	}
	_, err = inspectDataDir(t.Context(), onlyReads{m}, "/data", true)
	require.ErrorIs(t, err, syscall.EROFS)
}
