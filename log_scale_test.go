package robust

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// countedFiles counts what is asked of the operating system. A sync of it does nothing:
// no test here loses power, and ten thousand of them would take a while.
type countedFiles struct {
	osFiles
	reads, readBytes atomic.Int64
	writes, syncs    atomic.Int64
	opened, mostOpen atomic.Int64 // files that are open, and have been at once
}

type countedFile struct {
	file
	counts *countedFiles
}

func (c *countedFiles) open(name string, flag int) (file, error) {
	f, err := c.osFiles.open(name, flag)
	if err != nil {
		return nil, err
	}
	open := c.opened.Add(1)
	for most := c.mostOpen.Load(); open > most && !c.mostOpen.CompareAndSwap(most, open); {
		most = c.mostOpen.Load()
	}
	return countedFile{f, c}, nil
}

func (c *countedFiles) syncDir(string) error { return nil }

// reset begins to count anew, apart from files that are open.
func (c *countedFiles) reset() {
	for _, n := range []*atomic.Int64{&c.reads, &c.readBytes, &c.writes, &c.syncs} {
		n.Store(0)
	}
}

func (f countedFile) ReadAt(p []byte, at int64) (int, error) {
	n, err := f.file.ReadAt(p, at)
	f.counts.reads.Add(1)
	f.counts.readBytes.Add(int64(n))
	return n, err
}

func (f countedFile) WriteAt(p []byte, at int64) (int, error) {
	f.counts.writes.Add(1)
	return f.file.WriteAt(p, at)
}

func (f countedFile) sync() error {
	f.counts.syncs.Add(1)
	return nil
}

func (f countedFile) Close() error {
	f.counts.opened.Add(-1)
	return f.file.Close()
}

// sparseTopic is a topic of which only that is on the disk which is looked at when its
// logs are opened: the headers of segments, the ends of indexes, and what lies behind the
// frontier. All else is holes.
type sparseTopic struct {
	partitions   int
	segments     int // of each partition
	segmentBytes int64
	tail         int64 // of each partition, behind the last synced entry; 0: it was closed
}

// sparseBatchRecords are in each batch of a tail.
const sparseBatchRecords = 100

// make makes the topic in an empty data directory.
func (s sparseTopic) make(tb testing.TB, dir string) {
	tb.Helper()
	d, topic := openBenchDir(tb, osFiles{}, dir, SyncNever, s.partitions)
	require.NoError(tb, d.Close())
	for p := range s.partitions {
		s.makePartition(tb, s.partitionDir(dir, topic, p), segmentHeader{topicID: topic.ID, partition: int32(p)})
	}
}

func (s sparseTopic) partitionDir(dir string, topic StoredTopic, partition int) string {
	return filepath.Join(dir, topicsName, topicDirName(topic), strconv.Itoa(partition))
}

func (s sparseTopic) makePartition(tb testing.TB, dir string, h segmentHeader) {
	tb.Helper()
	require.NoError(tb, os.Mkdir(dir, 0o755))
	for i := range s.segments {
		// A record for each byte, so that every number differs from the others.
		h.base = int64(i) * s.segmentBytes
		end := indexEntry{offset: h.base + s.segmentBytes, pos: s.segmentBytes, epoch: 1, maxTime: 1, appendTime: 1, flags: indexSynced}
		last := i == s.segments-1
		if last && s.tail > 0 {
			end.pos -= s.tail
			end.offset -= s.tail
		} else if last {
			end.flags |= indexClean
		}
		entries := end.pos / indexInterval
		index := end.append(nil)
		writeSparse(tb, segmentPath(dir, h.base, indexSuffix), h.encode(indexMagic), segmentHeaderSize+entries*indexEntrySize, index)
		size := end.pos
		var tail []byte
		if last && s.tail > 0 {
			tail = sparseTail(end.offset, s.tail)
			size += int64(len(tail))
		}
		writeSparse(tb, segmentPath(dir, h.base, segmentSuffix), h.encode(segmentMagic), size-int64(len(tail)), tail)
		if len(tail) == 0 {
			require.NoError(tb, os.Truncate(segmentPath(dir, h.base, segmentSuffix), size))
		}
	}
}

// sparseTail makes about size bytes of batches that begin at an offset.
func sparseTail(offset, size int64) []byte {
	one := batch(randomBatch(rand.NewChaCha8([32]byte{}), sparseBatchRecords, 100))
	var tail []byte
	for int64(len(tail)+len(one)) <= max(size, int64(len(one))) {
		one.stamp(offset, 1, 1)
		offset = one.nextOffset()
		tail = append(tail, one...)
	}
	return tail
}

// writeSparse makes a file of a head, a hole up to a position, and what follows there. The
// last index entry ends at the position.
func writeSparse(tb testing.TB, path string, head []byte, at int64, rest []byte) {
	tb.Helper()
	f, err := os.Create(path)
	require.NoError(tb, err)
	defer f.Close()
	_, err = f.WriteAt(head, 0)
	require.NoError(tb, err)
	_, err = f.WriteAt(rest, at)
	require.NoError(tb, err)
}

// restore takes back what opening and closing the topic's logs has added to their indexes,
// so that the next who opens them finds them as they were made.
func (s sparseTopic) restore(tb testing.TB, dir string) {
	tb.Helper()
	topic := StoredTopic{Name: "demo", ID: "1"}
	base := int64(s.segments-1) * s.segmentBytes
	for p := range s.partitions {
		path := segmentPath(s.partitionDir(dir, topic, p), base, indexSuffix)
		require.NoError(tb, os.Truncate(path, segmentHeaderSize+((s.segmentBytes-s.tail)/indexInterval+1)*indexEntrySize))
	}
}

// String is what a benchmark of the topic is called.
func (s sparseTopic) String() string {
	state := "clean"
	if s.tail > 0 {
		state = fmt.Sprintf("tail=%.0fMiB", float64(s.tail)*float64(s.partitions)/(1<<20))
	}
	gib := float64(s.segmentBytes) * float64(s.segments) * float64(s.partitions) / (1 << 30)
	return fmt.Sprintf("%.4gGiB/partitions=%d/%s", gib, s.partitions, state)
}

// BenchmarkLogOpen opens all logs of a data directory, a few at a time, as a broker
// does when it starts, after a clean end and after one that left 64 MiB behind the
// frontiers. What is read is in the system's memory.
//
//	s/open       the directory and its logs
//	close-ms     to close them again, with nothing new in them
//	KiB          heap that the open logs take
func BenchmarkLogOpen(b *testing.B) {
	const tail = 64 << 20
	for _, partitions := range []int{1, 1000} {
		for _, gib := range []int64{1, 10, 100} {
			for _, tail := range []int64{0, tail / int64(partitions)} {
				size := gib << 30 / int64(partitions)
				s := sparseTopic{partitions: partitions, segments: 1, segmentBytes: size, tail: tail}
				if size > defaultSegment {
					s.segments, s.segmentBytes = int(size/defaultSegment), defaultSegment
				}
				b.Run(s.String(), func(b *testing.B) { benchLogOpen(b, s) })
			}
		}
	}
}

func benchLogOpen(b *testing.B, s sparseTopic) {
	dir := b.TempDir()
	s.make(b, dir)
	var opens, closes, heaps ratios
	for b.Loop() {
		before := heapInUse()
		began := time.Now()
		d, topic := openBenchDir(b, osFiles{}, dir, SyncInterval(defaultSyncInterval), s.partitions)
		logs := openPartitions(b, d, topic, defaultSegment)
		opens = append(opens, time.Since(began).Seconds())
		heaps = append(heaps, float64(heapInUse()-before)/1024)
		began = time.Now()
		require.NoError(b, d.Close())
		closes = append(closes, time.Since(began).Seconds()*1e3)
		runtime.KeepAlive(logs)
		s.restore(b, dir)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(opens.quantile(0.5), "s/open")
	b.ReportMetric(opens.quantile(0.9), "s/open-p90")
	b.ReportMetric(closes.quantile(0.5), "close-ms")
	b.ReportMetric(heaps.quantile(0.5), "KiB")
}

// BenchmarkLogHeap reports the heap of a broker's log after 1 M and after 10 M messages
// have been stored in it.
func BenchmarkLogHeap(b *testing.B) {
	const records = 1000
	a := newAppender(1, records, 100)
	var one, ten ratios
	for b.Loop() {
		before := heapInUse()
		d, topic := openBenchDir(b, osFiles{}, b.TempDir(), SyncInterval(defaultSyncInterval), 1)
		l := openPartitions(b, d, topic, 64<<20)[0]
		for _, millions := range []int{1, 9} {
			for range millions * 1e6 / records {
				require.NoError(b, a.append(l))
			}
			syncLogs(d)
			one, ten = ten, append(ten, float64(heapInUse()-before)/1024)
		}
		require.NoError(b, d.Close())
	}
	n := len(ten)
	require.Len(b, one, n-1)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(ten[n-2], "KiB-1M")
	b.ReportMetric(ten[n-1], "KiB-10M")
	runtime.KeepAlive(a)
}

// openCounted opens a data directory whose files are counted, from here on.
func openCounted(t *testing.T, dir string, policy SyncPolicy, partitions int) (*countedFiles, *dataDir, StoredTopic) {
	t.Helper()
	files := &countedFiles{}
	d, topic := openBenchDir(t, files, dir, policy, partitions)
	files.reset()
	return files, d, topic
}

// A log that was closed is opened at the cost of its last index entries, whatever is in
// it; after a kill what lies behind the last synced entry is read once more, and nothing
// else.
func TestLogOpenReadsTail(t *testing.T) {
	const (
		// The headers of the index and the segment, twice each at most, and the last
		// entries of the index.
		fixed = 4*segmentHeaderSize + 64*indexEntrySize
		tail  = 1 << 20
	)
	counts := make(map[string][]int64)
	for _, segments := range []int{1, 100} {
		for _, size := range []int64{8 << 20, 1 << 30} {
			for _, tail := range []int64{0, tail} {
				s := sparseTopic{partitions: 1, segments: segments, segmentBytes: size, tail: tail}
				dir := t.TempDir()
				s.make(t, dir)
				files, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
				l := openPartitions(t, d, topic, defaultSegment)[0]
				_, end := l.Bounds()
				require.Greater(t, end, int64(segments-1)*size, s)
				read := files.readBytes.Load()
				if tail == 0 {
					require.LessOrEqual(t, read, int64(fixed), s)
					require.Zero(t, files.writes.Load(), s)
					require.Zero(t, files.syncs.Load(), s)
				} else {
					// It is read once more to be written again, and the batch at the end of what
					// is read at a time twice.
					again := tail + (tail/scanBytes+1)*int64(len(sparseTail(0, 1)))
					require.LessOrEqual(t, read, tail+again+fixed, s)
					require.LessOrEqual(t, files.syncs.Load(), int64(1), s)
				}
				// With a segment before the last, its index is looked at: fixed has room for that.
				state := fmt.Sprint("tail ", tail, ", more than one segment: ", segments > 1)
				counts[state] = append(counts[state], read)
				require.NoError(t, d.Close())

				// What a kill has left is looked at once: from then on it is synced.
				files, d, topic = openCounted(t, dir, SyncInterval(time.Hour), 1)
				openPartitions(t, d, topic, defaultSegment)
				require.LessOrEqual(t, files.readBytes.Load(), int64(fixed), s)
				require.NoError(t, d.Close())
			}
		}
	}
	for state, reads := range counts {
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(reads))), 1, "%s: %v bytes were read, which has to do with the size", state, reads)
	}
}

// A read from anywhere is a search in an index, the longest of which is halved until 64
// entries are left, and one read of the segment; where the last one ended it is only that.
func TestLogReadIsBounded(t *testing.T) {
	const segmentBytes, segments = 8 << 20, 4
	files, d, topic := openCounted(t, t.TempDir(), SyncInterval(time.Hour), 1)
	defer func() { require.NoError(t, d.Close()) }()
	l := openPartitions(t, d, topic, segmentBytes)[0]
	for _, records := range []int{1, 10} {
		a := newAppender(1, records, 100)
		for range segments * segmentBytes / 2 / len(a.batches[0]) {
			require.NoError(t, a.append(l))
		}
	}
	syncLogs(d)
	_, end := l.Bounds()
	for _, s := range d.logView().segments {
		// Opens its files, at the cost of a look at their headers.
		r, err := l.Read(t.Context(), s.header.base, minRead)
		require.NoError(t, err)
		r.Release()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	search := int64(bits.Len(segmentBytes/indexInterval/64)) + 1
	for range 2000 {
		offset := rng.Int64N(end)
		files.reset()
		r, err := l.Read(t.Context(), offset, minRead)
		require.NoError(t, err)
		if first := batch(r.Batches); first.baseOffset() > offset || first.nextOffset() <= offset {
			require.Failf(t, "wrong batch", "it begins at offset %d; %d is asked for", first.baseOffset(), offset)
		}
		next := offset
		for rest := r.Batches; len(rest) > 0; {
			at := cutBatch(rest)
			next, rest = at.nextOffset(), rest[len(at):]
		}
		r.Release()
		require.LessOrEqual(t, files.reads.Load(), search+1)
		require.LessOrEqual(t, files.readBytes.Load(), search*indexEntrySize+64*indexEntrySize+minRead+indexInterval)

		files.reset()
		r, err = l.Read(t.Context(), next, minRead)
		require.NoError(t, err)
		r.Release()
		if v := d.logView(); v.find(next) == v.find(offset) {
			require.LessOrEqual(t, files.reads.Load(), int64(1))
		}
	}
}

// logView returns what may be read of the only log that is open.
func (d *dataDir) logView() *logView {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range d.logs {
		return l.visible.Load()
	}
	return nil
}

// memoryDir returns an empty directory, in memory where the system has such a place: on
// a disk ten thousand directories may take half a minute, synced or not.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "robust-") //nolint:usetesting // t.TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// Ten thousand partitions that are all written to need few goroutines and files, and an
// idle one little memory.
func TestLogManyPartitions(t *testing.T) {
	const (
		partitions = 10_000
		// What a log with one segment that nobody reads or writes takes of the heap.
		idleBytes = 2 << 10
	)
	dir := memoryDir(t)
	goroutines := runtime.NumGoroutine()
	files, d, topic := openCounted(t, dir, SyncInterval(defaultSyncInterval), partitions)
	logs := openPartitions(t, d, topic, defaultSegment)
	require.Zero(t, files.writes.Load(), "nothing is made before the first append")
	a := newAppender(1, 1, 100)
	mostGoroutines := 0
	for range 2 {
		for _, l := range logs {
			if err := a.append(l); err != nil {
				require.NoError(t, err)
			}
			mostGoroutines = max(mostGoroutines, runtime.NumGoroutine()-goroutines)
		}
	}
	require.NoError(t, d.Close())
	// One that keeps time and as many as sync at once; those that have done so may take a
	// moment to be gone, while others begin.
	require.LessOrEqual(t, mostGoroutines, 10*maxSyncs)
	// Whoever syncs may have two more open for a moment, and so may whoever appends.
	most := files.mostOpen.Load()
	require.LessOrEqual(t, most, int64(maxOpenFiles+2*maxSyncs))
	require.Zero(t, files.opened.Load())

	before := heapInUse()
	files, d, topic = openCounted(t, dir, SyncInterval(defaultSyncInterval), partitions)
	logs = openPartitions(t, d, topic, defaultSegment)
	idle := (heapInUse() - before) / partitions
	t.Logf("open files at most %d, goroutines at most %d, heap of an idle partition %d bytes", most, mostGoroutines, idle)
	require.LessOrEqual(t, idle, int64(idleBytes))
	require.LessOrEqual(t, files.mostOpen.Load(), int64(maxOpenFiles+2))
	_, end := logs[partitions-1].Bounds()
	require.Equal(t, int64(2), end)
	require.NoError(t, d.Close())
	runtime.KeepAlive(logs)
}

// Ten times the messages take a fifth more memory at most.
func TestLogHeapIsFlat(t *testing.T) {
	const (
		messages, records = 100_000, 100
		segmentBytes      = 4 << 20
		segmentHeap       = 1536
	)
	a := newAppender(1, records, 100)
	before := heapInUse()
	_, d, topic := openCounted(t, t.TempDir(), SyncInterval(time.Hour), 1)
	l := openPartitions(t, d, topic, segmentBytes)[0]
	stored := 0
	store := func(until int) int64 {
		for ; stored < until; stored += records {
			require.NoError(t, a.append(l))
		}
		syncLogs(d)
		return heapInUse() - before
	}
	one, ten := store(messages), store(10*messages)
	segments := int64(len(d.logView().segments))
	t.Logf("heap after %d messages: %d bytes; after ten times as many, in %d segments: %d", messages, one, segments, ten)
	// What is kept of a segment does not depend on what is in it, and a segment has
	// 1 GiB unless it is told otherwise.
	require.LessOrEqual(t, ten, one+max(0, one/5)+segments*segmentHeap)
	require.NoError(t, d.Close())
	runtime.KeepAlive(a)
}
