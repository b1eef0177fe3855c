package robust

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The benchmarks of the log on disk, all of them by `make bench-log`; DESIGN.md says what
// they have found. What a disk and its neighbours do changes from one second to the next,
// so nothing is compared across runs: each round does the same thing with the log and
// with bare files, one right after the other, and the ratio of the two is reported.
//
//	x-bare            how many times as long as the same on one bare file: the median of
//	                  the rounds; x-bare-p10 and x-bare-p90 are its spread
//	x-own             likewise with a bare file for each of those who append
//	msg/s, MB/s       through the log; bytes count as they are stored
//	us/append, us/read  time of one call, on average
//	allocs/append, B/append  what it allocates, likewise
//
// An iteration is a round; ns/op would be the sum of all that is compared, and is not shown.

const (
	// legTime is how long one side of a comparison takes, about.
	legTime = 25 * time.Millisecond
	// legBytes bounds what it writes: to the memory of the system, not through it.
	legBytes = 16 << 20
	// legKept is how much may gather before what has been written is removed.
	legKept = 64 << 20
)

// logPolicies are what appends are measured with.
func logPolicies() []SyncPolicy {
	return []SyncPolicy{SyncNever, SyncInterval(defaultSyncInterval), SyncAlways}
}

// openBenchDir opens a data directory with a topic of some partitions.
func openBenchDir(tb testing.TB, files fileSystem, dir string, policy SyncPolicy, partitions int) (*dataDir, StoredTopic) {
	tb.Helper()
	d, err := openDataDir(files, dir, policy, newWarner(slog.New(slog.DiscardHandler)))
	require.NoError(tb, err)
	topic := StoredTopic{Name: "demo", ID: "1", Partitions: int32(partitions)}
	topics, err := d.Topics(tb.Context())
	require.NoError(tb, err)
	if len(topics) == 0 {
		require.NoError(tb, d.PutTopic(tb.Context(), topic))
	}
	return d, topic
}

// openPartitions opens the logs of a topic's partitions, the way a broker does when it
// starts: one after the other.
func openPartitions(tb testing.TB, d *dataDir, topic StoredTopic, segmentBytes int64) []PartitionLog {
	tb.Helper()
	logs := make([]PartitionLog, topic.Partitions)
	require.NoError(tb, inParallel(len(logs), opensAtOnce, func(i int) (err error) {
		logs[i], err = d.OpenPartition(tb.Context(), topic, int32(i), LogConfig{SegmentBytes: segmentBytes}, func() {})
		return err
	}))
	return logs
}

// randomBatch makes a batch of random values, which nothing can make smaller.
func randomBatch(rng *rand.ChaCha8, records, valueBytes int) []byte {
	ms := make([]*Message, records)
	now := time.Now().UnixMilli()
	for i := range ms {
		ms[i] = &Message{Value: make([]byte, valueBytes), Timestamp: now}
		_, _ = rng.Read(ms[i].Value) // Cannot fail.
	}
	return appendBatch(nil, ms...)
}

// appender appends batches to a log, one after the other.
type appender struct {
	batches [][]byte
	next    int
	results chan AppendResult
	done    func(AppendResult)
}

func newAppender(seed byte, records, valueBytes int) *appender {
	rng := rand.NewChaCha8([32]byte{seed})
	a := &appender{results: make(chan AppendResult, 1)}
	a.done = func(r AppendResult) { a.results <- r }
	// A few, so that what is written is not always in the processor's nearest cache.
	for range max(2, min(64, 512<<10/(records*valueBytes))) {
		a.batches = append(a.batches, randomBatch(rng, records, valueBytes))
	}
	return a
}

func (a *appender) batch() []byte {
	a.next++
	return a.batches[a.next%len(a.batches)]
}

// append stores one batch, and waits for it.
func (a *appender) append(l PartitionLog) error {
	l.Append(a.batch(), AcksStored, a.done)
	r := <-a.results
	return r.Err
}

// runLeg calls op most times, by some goroutines side by side, or less often if it takes
// longer than legTime; that does not end it if it must not fall short. It returns how often
// it was called, and how long that took.
func runLeg(b *testing.B, goroutines int, most int64, fallShort bool, op func(who int) error) (n int64, took time.Duration) {
	b.Helper()
	var left, done atomic.Int64
	left.Store(most)
	var failed atomic.Pointer[error]
	began := time.Now()
	run := func(who int) {
		var n int64
		defer func() { done.Add(n) }()
		for left.Add(-1) >= 0 {
			if err := op(who); err != nil {
				failed.Store(&err)
				return
			}
			// The clock is not looked at each time: it is not what is measured.
			if n++; fallShort && n&7 == 0 && time.Since(began) > legTime {
				return
			}
		}
	}
	if goroutines == 1 {
		run(0)
	} else {
		var all sync.WaitGroup
		for who := range goroutines {
			all.Go(func() { run(who) })
		}
		all.Wait()
	}
	took = time.Since(began)
	if err := failed.Load(); err != nil {
		require.NoError(b, *err)
	}
	return done.Load(), took
}

// bareFiles are what a log is compared with: files that are written to, at their end, and
// nothing else.
type bareFiles struct {
	files []*os.File
	ends  []atomic.Int64
	sync  bool
}

func newBareFiles(b *testing.B, dir string, count int, sync bool) *bareFiles {
	b.Helper()
	bare := &bareFiles{files: make([]*os.File, count), ends: make([]atomic.Int64, count), sync: sync}
	for i := range bare.files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("bare-%d-%d", count, i)))
		require.NoError(b, err)
		bare.files[i] = f
		b.Cleanup(func() { f.Close() })
	}
	return bare
}

func (bare *bareFiles) append(who int, data []byte) error {
	i := who % len(bare.files)
	at := bare.ends[i].Add(int64(len(data))) - int64(len(data))
	if _, err := bare.files[i].WriteAt(data, at); err != nil || !bare.sync {
		return err
	}
	return bare.files[i].Sync()
}

// empty makes room when much has gathered.
func (bare *bareFiles) empty(b *testing.B) {
	b.Helper()
	for i, f := range bare.files {
		if bare.ends[i].Load() > legKept/int64(len(bare.files)) {
			require.NoError(b, f.Truncate(0))
			bare.ends[i].Store(0)
		}
	}
}

// ratios are those of the rounds of a comparison.
type ratios []float64

func (r ratios) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(r))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// logCost is what a log has cost in all rounds together.
type logCost struct {
	calls, messages, bytes int64
	took                   time.Duration
	mallocs, allocated     uint64
	bare, own              ratios
}

// measure adds a leg that goes through the log.
func (c *logCost) measure(f func() (int64, time.Duration)) (n int64, took time.Duration) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, took = f()
	runtime.ReadMemStats(&after)
	c.calls += n
	c.took += took
	c.mallocs += after.Mallocs - before.Mallocs
	c.allocated += after.TotalAlloc - before.TotalAlloc
	return n, took
}

func (c *logCost) report(b *testing.B, call string) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	if c.messages > 0 {
		b.ReportMetric(float64(c.messages)/c.took.Seconds(), "msg/s")
	}
	b.ReportMetric(float64(c.bytes)/c.took.Seconds()/1e6, "MB/s")
	b.ReportMetric(float64(c.took.Nanoseconds())/1e3/float64(c.calls), "us/"+call)
	b.ReportMetric(float64(c.mallocs)/float64(c.calls), "allocs/"+call)
	b.ReportMetric(float64(c.allocated)/float64(c.calls), "B/"+call)
	b.ReportMetric(c.bare.quantile(0.5), "x-bare")
	b.ReportMetric(c.bare.quantile(0.1), "x-bare-p10")
	b.ReportMetric(c.bare.quantile(0.9), "x-bare-p90")
	if len(c.own) > 0 {
		b.ReportMetric(c.own.quantile(0.5), "x-own")
	}
}

// BenchmarkLogAppend appends batches to one partition's log. Bare is a WriteAt of the same
// batches, with SyncAlways each followed by a sync of the file, as one has it who knows
// nothing of the others.
func BenchmarkLogAppend(b *testing.B) {
	for _, policy := range logPolicies() {
		for _, appenders := range []int{1, 64} {
			for _, valueBytes := range []int{100, 1024} {
				for _, records := range []int{1, 100, 1000} {
					name := fmt.Sprintf("%v/appenders=%d/value=%d/batch=%d", policy, appenders, valueBytes, records)
					b.Run(name, func(b *testing.B) { benchLogAppend(b, policy, appenders, valueBytes, records) })
				}
			}
		}
	}
}

func benchLogAppend(b *testing.B, policy SyncPolicy, appenders, valueBytes, records int) {
	dir := b.TempDir()
	d, topic := openBenchDir(b, osFiles{}, dir, policy, 1)
	defer func() { require.NoError(b, d.Close()) }()
	l := openPartitions(b, d, topic, defaultSegment)[0]
	shared := newBareFiles(b, dir, 1, policy == SyncAlways)
	own := shared
	if appenders > 1 {
		own = newBareFiles(b, dir, appenders, policy == SyncAlways)
	}
	all := make([]*appender, appenders)
	for i := range all {
		all[i] = newAppender(byte(i), records, valueBytes)
	}
	size := int64(len(all[0].batches[0]))
	most := max(legBytes/size, int64(appenders))
	require.NoError(b, all[0].append(l), "the first one makes the files")
	c := &logCost{}
	kept := int64(0)
	for b.Loop() {
		n, took := c.measure(func() (int64, time.Duration) {
			return runLeg(b, appenders, most, true, func(who int) error { return all[who].append(l) })
		})
		c.messages += n * int64(records)
		c.bytes += n * size
		_, bare := runLeg(b, appenders, n, false, func(who int) error { return shared.append(who, all[who].batch()) })
		c.bare = append(c.bare, took.Seconds()/bare.Seconds())
		if appenders > 1 {
			_, bare = runLeg(b, appenders, n, false, func(who int) error { return own.append(who, all[who].batch()) })
			c.own = append(c.own, took.Seconds()/bare.Seconds())
		}
		shared.empty(b)
		own.empty(b)
		if kept += n * size; kept > legKept {
			kept = 0
			_, end := l.Bounds()
			require.NoError(b, l.DeleteBefore(b.Context(), end))
			require.NoError(b, all[0].append(l))
		}
	}
	c.report(b, "append")
}

// BenchmarkLogRead reads batches that the system has in memory. Bare is a ReadAt of the
// bytes that the log has returned, from a file that has as many; whoever reads through the
// log also has every checksum looked at.
//
//	sequential  from the log's start to its end, up to 1 MiB at a time
//	random      4 KiB or the batch, whichever is more, from a random offset
//	tail        appends a batch, and reads it; bare is a WriteAt and a ReadAt
func BenchmarkLogRead(b *testing.B) {
	for _, valueBytes := range []int{100, 1024} {
		for _, records := range []int{1, 100, 1000} {
			b.Run(fmt.Sprintf("value=%d/batch=%d", valueBytes, records), func(b *testing.B) {
				benchLogRead(b, valueBytes, records)
			})
		}
	}
}

func benchLogRead(b *testing.B, valueBytes, records int) {
	const stored, segmentBytes = 128 << 20, 32 << 20
	dir := b.TempDir()
	d, topic := openBenchDir(b, osFiles{}, dir, SyncInterval(defaultSyncInterval), 1)
	defer func() { require.NoError(b, d.Close()) }()
	l := openPartitions(b, d, topic, segmentBytes)[0]
	bare := newBareFiles(b, dir, 1, false)
	a := newAppender(1, records, valueBytes)
	size := int64(len(a.batches[0]))
	for range stored / size {
		require.NoError(b, a.append(l))
		require.NoError(b, bare.append(0, a.batch()))
	}
	syncLogs(d)
	_, end := l.Bounds()
	room := make([]byte, 2<<20)
	rng := rand.New(rand.NewPCG(1, 2))

	b.Run("sequential", func(b *testing.B) {
		offset, pos := int64(0), int64(0)
		benchReads(b, int64(records)*int64(valueBytes), func() (int, error) {
			n, next, err := readOnce(b, l, offset, 1<<20)
			if offset = next; offset == end {
				offset = 0
			}
			return n, err
		}, func(n int) error {
			if pos+int64(n) > bare.ends[0].Load() {
				pos = 0
			}
			_, err := bare.files[0].ReadAt(room[:n], pos)
			pos += int64(n)
			return err
		})
	})
	b.Run("random", func(b *testing.B) {
		benchReads(b, int64(records)*int64(valueBytes), func() (int, error) {
			n, _, err := readOnce(b, l, rng.Int64N(end), minRead)
			return n, err
		}, func(n int) error {
			_, err := bare.files[0].ReadAt(room[:n], rng.Int64N(bare.ends[0].Load()-int64(n)))
			return err
		})
	})
	b.Run("tail", func(b *testing.B) {
		benchReads(b, int64(records)*int64(valueBytes), func() (int, error) {
			_, from := l.Bounds()
			if err := a.append(l); err != nil {
				return 0, err
			}
			n, _, err := readOnce(b, l, from, 1<<20)
			return n, err
		}, func(n int) error {
			if err := bare.append(0, a.batch()); err != nil {
				return err
			}
			_, err := bare.files[0].ReadAt(room[:n], bare.ends[0].Load()-int64(n))
			return err
		})
		require.NoError(b, l.DeleteBefore(b.Context(), end), "what the last run has added goes with the directory")
	})
}

// readOnce reads from a log, and returns how much and the offset behind it.
func readOnce(b *testing.B, l PartitionLog, offset int64, maxBytes int) (n int, next int64, err error) {
	r, err := l.Read(b.Context(), offset, maxBytes)
	if err != nil {
		return 0, 0, err
	}
	defer r.Release()
	next = offset
	for rest := r.Batches; len(rest) > 0; {
		at := cutBatch(rest)
		next, rest = at.nextOffset(), rest[len(at):]
	}
	if next == offset {
		return 0, 0, fmt.Errorf("nothing at offset %d", offset)
	}
	return len(r.Batches), next, nil
}

// benchReads compares reads, which return how much they have read, with bare ones of as
// much. The values of a batch have about batchBytes.
func benchReads(b *testing.B, batchBytes int64, read func() (int, error), bare func(n int) error) {
	b.Helper()
	c := &logCost{}
	sizes := make([]int, 0, 1<<16)
	for b.Loop() {
		sizes = sizes[:0]
		bytes := int64(0)
		n, took := c.measure(func() (int64, time.Duration) {
			return runLeg(b, 1, min(int64(cap(sizes)), legBytes/batchBytes+1), true, func(int) error {
				n, err := read()
				sizes = append(sizes, n)
				bytes += int64(n)
				return err
			})
		})
		c.bytes += bytes
		i := 0
		_, alone := runLeg(b, 1, n, false, func(int) error {
			i++
			return bare(sizes[i-1])
		})
		c.bare = append(c.bare, took.Seconds()/alone.Seconds())
	}
	c.report(b, "read")
}

// BenchmarkLogPartitions appends to many partitions, in turn, while what was written is
// synced every second. One partition is appended to in the same round, just before.
//
//	ns/message    through many partitions; ns/message-one through one
//	x-one         how many times as long as with one partition
//	x-one-synced  likewise, and what is left in the end has been synced in that time
//	x-one-bare    likewise with bare files that are never synced, up to 1,000 of them
//	sync-ms       how long it takes to sync what is left in the end
//	open          files that are open, at most
//	goroutines    how many more there are than before the logs were opened, at most
//	KiB           heap that the logs take when all is done
func BenchmarkLogPartitions(b *testing.B) {
	for _, partitions := range []int{1, 100, 1000, 10_000} {
		for _, records := range []int{1, 100} {
			b.Run(fmt.Sprintf("partitions=%d/batch=%d", partitions, records), func(b *testing.B) {
				benchLogPartitions(b, partitions, records)
			})
		}
	}
}

func benchLogPartitions(b *testing.B, partitions, records int) {
	const (
		// Two syncs fall into a leg at least, if it does not write too much.
		turnTime  = 2500 * time.Millisecond
		turnBytes = 512 << 20
	)
	a := newAppender(1, records, 100)
	heap := heapInUse()
	goroutines := runtime.NumGoroutine()
	d, topic := openBenchDir(b, osFiles{}, b.TempDir(), SyncInterval(defaultSyncInterval), partitions+1)
	defer func() { require.NoError(b, d.Close()) }()
	logs := openPartitions(b, d, topic, defaultSegment)
	for _, l := range logs {
		require.NoError(b, a.append(l), "the first one makes the files")
	}
	syncLogs(d)
	mostOpen, mostGoroutines := 0, 0
	// leg returns how long a message has taken, and how long the sync after the last one.
	leg := func(logs []PartitionLog) (each, synced, both time.Duration) {
		began := time.Now()
		n := int64(0)
		for ; n*int64(len(a.batches[0])) < turnBytes; n++ {
			if err := a.append(logs[n%int64(len(logs))]); err != nil {
				require.NoError(b, err)
			}
			if n&255 == 0 {
				mostOpen = max(mostOpen, openFiles(d))
				mostGoroutines = max(mostGoroutines, runtime.NumGoroutine()-goroutines)
				if time.Since(began) > turnTime {
					n++
					break
				}
			}
		}
		took := time.Since(began)
		syncLogs(d)
		all := time.Since(began)
		messages := time.Duration(n * int64(records))
		return took / messages, all - took, all / messages
	}
	bareLeg := func(bare *bareFiles) time.Duration {
		const most = 100_000
		began := time.Now()
		n := 0
		for ; n < most && n*len(a.batches[0]) < legKept; n++ {
			if err := bare.append(n, a.batch()); err != nil {
				require.NoError(b, err)
			}
		}
		return time.Since(began) / time.Duration(n)
	}
	var oneBare, manyBare *bareFiles
	if partitions <= 1000 {
		dir := b.TempDir()
		oneBare, manyBare = newBareFiles(b, dir, 1, false), newBareFiles(b, dir, partitions+1, false)
		bareLeg(oneBare)
		bareLeg(manyBare)
	}
	var xs, xsSynced, bares, ones, many, syncs ratios
	for b.Loop() {
		one, _, oneBoth := leg(logs[:1])
		each, synced, both := leg(logs[1:])
		xsSynced = append(xsSynced, float64(both)/float64(oneBoth))
		xs = append(xs, float64(each)/float64(one))
		ones = append(ones, float64(one))
		many = append(many, float64(each))
		syncs = append(syncs, synced.Seconds()*1e3)
		if oneBare != nil {
			one := bareLeg(oneBare)
			bares = append(bares, float64(bareLeg(manyBare))/float64(one))
		}
	}
	if oneBare != nil {
		b.ReportMetric(bares.quantile(0.5), "x-one-bare")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(many.quantile(0.5), "ns/message")
	b.ReportMetric(ones.quantile(0.5), "ns/message-one")
	b.ReportMetric(xs.quantile(0.5), "x-one")
	b.ReportMetric(xsSynced.quantile(0.5), "x-one-synced")
	b.ReportMetric(syncs.quantile(0.5), "sync-ms")
	b.ReportMetric(float64(mostOpen), "open")
	b.ReportMetric(float64(mostGoroutines), "goroutines")
	b.ReportMetric(float64(heapInUse()-heap)/1024, "KiB")
	runtime.KeepAlive(logs)
	runtime.KeepAlive(a)
}

// syncLogs has all that was written synced, by as many as do that in the background.
func syncLogs(d *dataDir) {
	d.mu.Lock()
	logs := slices.Collect(maps.Keys(d.logs))
	d.mu.Unlock()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range maxSyncs {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(logs)); i = next.Add(1) - 1 {
				l := logs[i]
				l.syncing <- struct{}{}
				_ = l.syncWritten(true) // The log's to tell.
				l.releaseSync()
			}
		})
	}
	workers.Wait()
}

// openFiles tells how many files a data directory has open.
func openFiles(d *dataDir) int {
	d.store.cache.mu.Lock()
	defer d.store.cache.mu.Unlock()
	return d.store.cache.open
}

// heapInUse is what is reachable. What a pool keeps is gone after two collections.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
