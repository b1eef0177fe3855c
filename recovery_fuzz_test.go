package robust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// ruin is a data directory before it is damaged, and what was ever stored there.
type ruin struct {
	files     *memFiles
	topics    []StoredTopic
	logs      map[logKey]*ruinedLog
	committed map[string]bool // group, topic ID, partition and offset
}

// ruinedLog is a log of a ruin. Sound is what a broker finds that opens the directory as
// it is.
type ruinedLog struct {
	dir     string
	batches map[int64]batch // by base offset
	soundOf []batch
	start   int64
	end     int64
}

func fuzzConfig() LogConfig { return LogConfig{SegmentBytes: 1 << 10} }

func openFuzzed(files fileSystem) (*dataDir, error) {
	return openDataDir(files, labDir, SyncInterval(defaultSyncInterval), newWarner(slog.New(slog.NewTextHandler(io.Discard, nil))))
}

// newRuin fills a data directory in two lives, the last of which ends as how says.
func newRuin(t testing.TB, rng *rand.Rand, how lifeEnd) *ruin {
	t.Helper()
	r := &ruin{files: newMemFiles(rng.Uint64()), logs: make(map[logKey]*ruinedLog), committed: make(map[string]bool)}
	require.NoError(t, r.files.mkdir("/srv"))
	require.NoError(t, r.files.syncDir("/"))
	r.topics = []StoredTopic{{Name: "one", ID: "id-1", Partitions: 2}, {Name: "two", ID: "id-2", Partitions: 1}}
	clock := int64(1_000_000)
	for life := range 2 {
		d, err := openFuzzed(r.files)
		require.NoError(t, err)
		for _, topic := range r.topics {
			require.NoError(t, d.PutTopic(t.Context(), topic))
			for p := range topic.Partitions {
				l, err := d.OpenPartition(t.Context(), topic, p, fuzzConfig(), func() {})
				require.NoError(t, err)
				r.fill(t, rng, l, logKey{topic.ID, p}, &clock)
				if life == 1 && p == 0 {
					_, end := l.Bounds()
					if rng.IntN(3) > 0 {
						end /= 4
					}
					require.NoError(t, l.DeleteBefore(t.Context(), end))
				}
			}
			r.commit(t, rng, d, topic)
		}
		files := r.files
		if life == 1 && how == endedKilled {
			files = r.files.clone()
		}
		if life == 1 && how == endedPower {
			files = r.files.crash(rng)
		}
		if err := d.Close(); files == r.files {
			require.NoError(t, err)
		}
		r.files = files
	}
	r.look(t)
	return r
}

func (r *ruin) fill(t testing.TB, rng *rand.Rand, l PartitionLog, key logKey, clock *int64) {
	t.Helper()
	kept := r.logs[key]
	if kept == nil {
		kept = &ruinedLog{batches: make(map[int64]batch)}
		r.logs[key] = kept
	}
	for range 12 + rng.IntN(6) {
		messages := make([]*Message, 1+rng.IntN(4))
		for i := range messages {
			value := make([]byte, rng.IntN(90))
			for j := range value {
				value[j] = byte(rng.Uint32())
			}
			*clock += int64(rng.IntN(3))
			messages[i] = &Message{Value: value, Timestamp: *clock}
		}
		b := appendBatch(nil, messages...)
		at := appendRaw(t, l, b).BaseOffset
		kept.batches[at] = b
	}
}

func (r *ruin) commit(t testing.TB, rng *rand.Rand, d *dataDir, topic StoredTopic) {
	t.Helper()
	for range 4 {
		group, p, offset := fmt.Sprint("g", rng.IntN(2)), rng.Int32N(topic.Partitions), rng.Int64N(20)
		require.NoError(t, d.PutOffsets(t.Context(), group, []StoredOffset{{Topic: topic.Name, TopicID: topic.ID, Partition: p, Offset: offset}}))
		r.committed[fmt.Sprint(group, topic.ID, p, offset)] = true
	}
}

// look finds out what an undamaged directory gives, and where its logs are.
func (r *ruin) look(t testing.TB) {
	t.Helper()
	d, err := openFuzzed(r.files.clone())
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	for _, topic := range r.topics {
		for p := range topic.Partitions {
			l, err := d.OpenPartition(t.Context(), topic, p, fuzzConfig(), func() {})
			require.NoError(t, err)
			kept := r.logs[logKey{topic.ID, p}]
			kept.dir = filepath.Join(d.topics[topic.Name].dir, fmt.Sprint(p))
			kept.start, kept.end = l.Bounds()
			for at := kept.start; at < kept.end; {
				b := readOne(t, l, at)
				require.Equal(t, kept.batches[b.baseOffset()], b)
				kept.soundOf = append(kept.soundOf, b)
				at = b.nextOffset()
			}
		}
	}
}

func readOne(t testing.TB, l PartitionLog, offset int64) batch {
	t.Helper()
	read, err := l.Read(t.Context(), offset, 1)
	require.NoError(t, err)
	defer read.Release()
	return bytes.Clone(cutBatch(read.Batches))
}

// wreck is a ruin with damage done.
type wreck struct {
	*ruin
	rng    *rand.Rand
	files  *memFiles
	done   []string          // what was damaged, and how
	paths  []string          // what was damaged
	broken map[string][]byte // what is in those now
	lost   map[logKey][][2]int64
	wrong  []string
}

func (w *wreck) fail(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// damage does something to a file.
func (w *wreck) damage() {
	paths := slices.DeleteFunc(w.files.paths(), func(p string) bool { return filepath.Base(p) == lockName })
	path := paths[w.rng.IntN(len(paths))]
	data := bytes.Clone(w.files.content(path))
	at := func(n int) int { return w.rng.IntN(max(1, n)) }
	what := ""
	touched := []string{path}
	switch w.rng.IntN(10) {
	case 0:
		data = data[:at(len(data)+1)]
		what = fmt.Sprint("cut to ", len(data))
	case 1:
		data = data[:at(min(len(data), segmentHeaderSize)+1)]
		what = fmt.Sprint("cut to ", len(data))
	case 2, 3:
		if len(data) > 0 {
			i := at(len(data))
			data[i] ^= 1 << at(8)
			what = fmt.Sprint("bit flipped at ", i)
		}
	case 4:
		i := at(len(data))
		n := at(min(700, len(data)-i))
		random := w.rng.IntN(2) == 0
		for j := i; j < i+n; j++ {
			data[j] = 0
			if random {
				data[j] = byte(w.rng.Uint32())
			}
		}
		what = fmt.Sprintf("%d bytes overwritten at %d", n, i)
	case 5:
		i, n := at(len(data)+1), 1+at(200)
		data = slices.Insert(data, i, make([]byte, n)...)
		what = fmt.Sprintf("%d bytes put in at %d", n, i)
	case 6:
		i := at(len(data))
		n := at(min(400, len(data)-i))
		data = slices.Delete(data, i, i+n)
		what = fmt.Sprintf("%d bytes taken out at %d", n, i)
	case 7:
		i := at(len(data))
		n := at(min(400, len(data)-i))
		data = slices.Insert(data, i, bytes.Clone(data[i:i+n])...)
		what = fmt.Sprintf("%d bytes doubled at %d", n, i)
	case 8:
		what, data = "removed", nil
	default:
		other := paths[w.rng.IntN(len(paths))]
		if w.rng.IntN(2) == 0 {
			w.files.put(other, data)
			touched = append(touched, other)
		}
		data = bytes.Clone(w.files.content(other))
		what = fmt.Sprintf("as %s, %d changed", other, len(touched))
	}
	w.files.put(path, data)
	w.paths = append(w.paths, touched...)
	w.done = append(w.done, path+" "+what)
}

// touched tells whether something below dir was damaged.
func (w *wreck) touched(dir string) bool {
	return slices.ContainsFunc(w.paths, func(p string) bool { return strings.HasPrefix(p, dir+"/") })
}

func (w *wreck) touchedName(name string) bool {
	return slices.ContainsFunc(w.paths, func(p string) bool { return filepath.Base(p) == name })
}

// refusal checks an error of opening something: it is of damage, and names its file.
func (w *wreck) refusal(what string, err error) {
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
		w.fail("%s: %v", what, err)
	}
	if !strings.Contains(err.Error(), labDir) {
		w.fail("%s: the error names no file: %v", what, err)
	}
}

// open opens everything and compares it with what was stored; true if all could be opened.
func (w *wreck) open(ctx context.Context) bool {
	d, err := openFuzzed(w.files)
	if err != nil {
		w.refusal("opening", err)
		if !w.touchedName(identityName) && !w.touchedName(topicName) && !w.touched(filepath.Join(labDir, groupsName)) {
			w.fail("opening: %v", err)
		}
		return false
	}
	all := true
	logs := make(map[logKey]PartitionLog)
	for _, topic := range w.topics {
		if known := d.topics[topic.Name]; known == nil || known.topic.ID != topic.ID {
			if !w.touchedName(topicName) {
				w.fail("topic %s is not there", topic.Name)
			}
			all = false
			continue
		}
		for p := range topic.Partitions {
			key := logKey{topic.ID, p}
			l, err := d.OpenPartition(ctx, topic, p, fuzzConfig(), func() {})
			if err != nil {
				w.refusal(fmt.Sprint("opening ", key), err)
				if !w.touched(w.logs[key].dir) {
					w.fail("opening %v, which was not touched: %v", key, err)
				}
				all = false
				continue
			}
			logs[key] = l
			w.compare(ctx, key, l)
		}
	}
	for _, g := range d.groups.all() {
		for _, o := range g.Offsets {
			if !w.committed[fmt.Sprint(g.ID, o.TopicID, o.Partition, o.Offset)] {
				w.fail("group %s: offset %+v was never committed", g.ID, o)
			}
		}
	}
	ends := w.goOn(logs)
	if err := d.Close(); err != nil {
		w.fail("closing: %v", err)
	}
	if open := w.files.openNow(); len(open) > 0 {
		w.fail("open after Close: %v", open)
	}
	w.again(ctx, ends)
	return all
}

// readAll reads a log from start to end, and returns the batches; what cannot be read goes
// to w.lost.
func (w *wreck) readAll(ctx context.Context, key logKey, l LogReader) (found []batch) {
	start, end := l.Bounds()
	w.lost[key] = nil
	for at := start; at < end; {
		read, err := l.Read(ctx, at, w.rng.IntN(2000))
		if err != nil {
			var c *CorruptError
			if !errors.As(err, &c) || c.From > at || c.To <= at || !strings.HasPrefix(c.File, labDir) {
				w.fail("%v: reading %d of %d to %d: %v", key, at, start, end, err)
				return found
			}
			w.lost[key] = append(w.lost[key], [2]int64{at, c.To})
			at = c.To
			continue
		}
		if len(read.Batches) == 0 {
			w.fail("%v: nothing at %d of %d to %d", key, at, start, end)
			return found
		}
		for rest := read.Batches; len(rest) > 0; {
			b := cutBatch(rest)
			rest = rest[len(b):]
			if b.nextOffset() <= at || len(found) > 0 && b.baseOffset() < found[len(found)-1].nextOffset() || at > start && b.baseOffset() > at {
				w.fail("%v: a batch of %d to %d at %d", key, b.baseOffset(), b.nextOffset(), at)
			}
			found = append(found, bytes.Clone(b))
			at = b.nextOffset()
		}
		read.Release()
	}
	return found
}

// compare holds a log against what was stored.
func (w *wreck) compare(ctx context.Context, key logKey, l PartitionLog) {
	kept := w.logs[key]
	start, end := l.Bounds()
	if start > end {
		w.fail("%v: starts at %d and ends at %d", key, start, end)
	}
	found := w.readAll(ctx, key, l)
	for _, b := range found {
		if !bytes.Equal(b, kept.batches[b.baseOffset()]) && b.count() > 0 {
			w.fail("%v: the batch at %d is not the one that was stored", key, b.baseOffset())
		}
	}
	if !w.touched(kept.dir) {
		if start != kept.start || end != kept.end || len(found) != len(kept.soundOf) {
			w.fail("%v was not touched and has %d to %d, %d batches, instead of %d to %d, %d", key, start, end, len(found), kept.start, kept.end, len(kept.soundOf))
		}
	}
	if whole := w.wholeBefore(key); whole > start && !w.touched(kept.dir+"/"+startName) {
		for _, b := range kept.soundOf {
			if b.nextOffset() <= whole && b.baseOffset() >= start && !slices.ContainsFunc(found, func(f batch) bool { return f.baseOffset() == b.baseOffset() }) {
				w.fail("%v: the batch at %d is not there, whole up to %d", key, b.baseOffset(), whole)
			}
		}
	}
	w.compareTimes(ctx, key, l, found)
}

// wholeBefore returns the offset up to which nothing was done to a log's segments.
func (w *wreck) wholeBefore(key logKey) int64 {
	kept := w.logs[key]
	first := kept.end
	for _, path := range w.paths {
		if filepath.Dir(path) != kept.dir || !strings.HasSuffix(path, segmentSuffix) {
			continue
		}
		base, _ := parseSegmentName(filepath.Base(path), segmentSuffix)
		was, is := w.ruin.files.content(path), w.broken[path]
		same := 0
		for same < min(len(was), len(is)) && was[same] == is[same] {
			same++
		}
		if same < segmentHeaderSize {
			first = min(first, base)
			continue
		}
		for pos, at := segmentHeaderSize, base; ; {
			if pos >= len(was) {
				break
			}
			b := kept.batches[at]
			if b == nil || pos+len(b) > same {
				first = min(first, at)
				break
			}
			pos, at = pos+len(b), b.nextOffset()
		}
	}
	return first
}

// compareTimes asks for offsets by time and for the ends of epochs.
func (w *wreck) compareTimes(ctx context.Context, key logKey, l PartitionLog, found []batch) {
	if len(found) == 0 {
		return
	}
	start, end := l.Bounds()
	unreadable := func(from, to int64) bool {
		return slices.ContainsFunc(w.lost[key], func(r [2]int64) bool { return r[0] < to && from < r[1] })
	}
	want := found[w.rng.IntN(len(found))].maxTime() - w.rng.Int64N(3)
	truth := end
	for _, b := range found {
		if b.maxTime() >= want && b.count() > 0 {
			truth = max(start, b.baseOffset()+offsetInBatch(b, want, start))
			break
		}
	}
	got, err := l.OffsetAt(ctx, want)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			w.fail("%v: OffsetAt: %v", key, err)
		}
	} else if got != truth && !unreadable(0, max(got, truth)) {
		w.fail("%v: offset at %d is %d, not %d", key, want, got, truth)
	}
	epoch := found[w.rng.IntN(len(found))].epoch()
	truth = end
	for _, b := range found {
		if b.epoch() > epoch {
			truth = max(start, b.baseOffset())
			break
		}
	}
	if got, err = l.EpochEnd(ctx, epoch); err != nil {
		if !errors.Is(err, ErrCorrupt) {
			w.fail("%v: EpochEnd: %v", key, err)
		}
	} else if got != truth && !unreadable(min(got, truth)-1, max(got, truth)) {
		w.fail("%v: epoch %d ends at %d, not %d", key, epoch, got, truth)
	}
}

// offsetInBatch returns how far into a batch the first record of a time or later is.
func offsetInBatch(b batch, timestamp, start int64) int64 {
	records := b.records()
	var m Message
	for {
		more, err := records.next(&m)
		if err != nil || !more {
			return int64(b.lastOffsetDelta()) + 1
		}
		if m.Timestamp >= timestamp && m.Offset >= start {
			return m.Offset - b.baseOffset()
		}
	}
}

// goOn appends to every log, and returns what.
func (w *wreck) goOn(logs map[logKey]PartitionLog) map[logKey]batch {
	appended := make(map[logKey]batch)
	for key, l := range logs {
		_, end := l.Bounds()
		b := appendBatch(nil, &Message{Value: fmt.Append(nil, "after ", key), Timestamp: 5_000_000})
		done := make(chan AppendResult, 1)
		l.Append(b, AcksSynced, func(r AppendResult) { done <- r })
		r := <-done
		if r.Err != nil || r.BaseOffset != end {
			w.fail("%v: appending behind %d: %+v", key, end, r)
			continue
		}
		appended[key] = b
	}
	return appended
}

// again opens the directory once more, and looks for what was appended.
func (w *wreck) again(ctx context.Context, appended map[logKey]batch) {
	d, err := openFuzzed(w.files)
	if err != nil {
		w.fail("opening again: %v", err)
		return
	}
	for _, topic := range w.topics {
		for p := range topic.Partitions {
			key := logKey{topic.ID, p}
			b := appended[key]
			if b == nil {
				continue
			}
			l, err := d.OpenPartition(ctx, topic, p, fuzzConfig(), func() {})
			if err != nil {
				w.fail("opening %v again: %v", key, err)
				continue
			}
			if _, end := l.Bounds(); end != b.nextOffset() {
				w.fail("%v: ends at %d, not %d", key, end, b.nextOffset())
			}
			before := len(w.wrong)
			found := w.readAll(ctx, key, l)
			if n := len(found); len(w.wrong) == before && (n == 0 || !bytes.Equal(found[n-1], b)) {
				w.fail("%v: what was appended at %d is not there", key, b.baseOffset())
			}
		}
	}
	if err := d.Close(); err != nil {
		w.fail("closing again: %v", err)
	}
}

// inspect checks and repairs a copy of the directory, which then has no damage left.
func (w *wreck) inspect(ctx context.Context, files *memFiles) {
	if _, err := inspectDataDir(ctx, files, labDir, false); err != nil {
		w.refusal("checking", err)
		return
	}
	report, err := inspectDataDir(ctx, files, labDir, true)
	if err != nil {
		w.refusal("repairing", err)
		return
	}
	for _, damage := range report.Damage {
		if !damage.Repaired && !damage.Tail {
			return // Some things nobody can make up.
		}
	}
	after, err := inspectDataDir(ctx, files, labDir, false)
	if err != nil {
		w.fail("checking after a repair: %v", err)
	} else if len(after.Damage) > 0 {
		w.fail("damaged after a repair: %+v", after.Damage)
	}
	w.files = files
	w.repaired(ctx)
}

// repaired reads what a repair has left, in which nothing is unreadable any more.
func (w *wreck) repaired(ctx context.Context) {
	d, err := openFuzzed(w.files)
	if err != nil {
		w.fail("opening after a repair: %v", err)
		return
	}
	for _, topic := range w.topics {
		for p := range topic.Partitions {
			key := logKey{topic.ID, p}
			if known := d.topics[topic.Name]; known == nil || known.topic.ID != topic.ID {
				continue
			}
			l, err := d.OpenPartition(ctx, topic, p, fuzzConfig(), func() {})
			if err != nil {
				w.fail("opening %v after a repair: %v", key, err)
				continue
			}
			w.compare(ctx, key, l)
			if len(w.lost[key]) > 0 {
				w.fail("%v: cannot be read after a repair: %v", key, w.lost[key])
			}
		}
	}
	if err := d.Close(); err != nil {
		w.fail("closing after a repair: %v", err)
	}
}

// runWreck damages a ruin, and returns what is wrong with how that is taken.
func runWreck(ctx context.Context, ruins []*ruin, rng *rand.Rand) string {
	r := ruins[rng.IntN(len(ruins))]
	w := &wreck{ruin: r, rng: rng, files: r.files.clone(), lost: make(map[logKey][][2]int64), broken: make(map[string][]byte)}
	for n := 1 + rng.IntN(3)/2; n > 0; n-- {
		w.damage()
	}
	for _, path := range w.paths {
		w.broken[path] = w.files.content(path)
	}
	copied := w.files.clone()
	w.open(ctx)
	if rng.IntN(3) == 0 {
		w.inspect(ctx, copied)
	}
	if len(w.wrong) == 0 {
		return ""
	}
	return strings.Join(append(w.done, w.wrong...), "\n")
}

func newRuins(t testing.TB) []*ruin {
	rng := rand.New(rand.NewPCG(1, 17))
	var ruins []*ruin
	for range 3 {
		for _, how := range []lifeEnd{endedClean, endedKilled, endedPower} {
			ruins = append(ruins, newRuin(t, rng, how))
		}
	}
	return ruins
}

// TestRecoveryFuzz: ROBUST_RECOVERIES is the number of damaged directories that are opened,
// ROBUST_SEED the first of their seeds.
func TestRecoveryFuzz(t *testing.T) {
	first, count := envCount(t, "ROBUST_SEED", 1), envCount(t, "ROBUST_RECOVERIES", 800)
	ruins := newRuins(t)
	var next, failed atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for failed.Load() < 5 {
				n := next.Add(1) - 1
				if n >= int64(count) {
					return
				}
				seed := uint64(int64(first) + n)
				if wrong := runWreck(t.Context(), ruins, rand.New(rand.NewPCG(seed, 19))); wrong != "" {
					failed.Add(1)
					t.Errorf("ROBUST_SEED=%d ROBUST_RECOVERIES=1:\n%s", seed, wrong)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d damaged directories, from ROBUST_SEED=%d on", min(next.Load(), int64(count)), first)
}

// FuzzRecovery lets the fuzzer choose what is damaged.
func FuzzRecovery(f *testing.F) {
	ruins := newRuins(f)
	f.Add([]byte("seed"))
	f.Fuzz(func(t *testing.T, choices []byte) {
		if wrong := runWreck(t.Context(), ruins, rand.New(&chosen{rest: choices})); wrong != "" {
			t.Error(wrong)
		}
	})
}

// chosen is a source of random numbers that are given, and then of others.
type chosen struct {
	rest []byte
	n    uint64
}

func (c *chosen) Uint64() uint64 {
	c.n = c.n*6364136223846793005 + 1442695040888963407
	if len(c.rest) < 2 {
		return c.n
	}
	v := uint64(c.rest[0])<<8 | uint64(c.rest[1])
	c.rest = c.rest[2:]
	return v<<48 | v<<32 | v<<16 | v
}
