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
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// chooser makes choices, as a *rand.Rand does.
type chooser interface{ IntN(n int) int }

// recoveryRun is a directory that is damaged and recovered.
type recoveryRun struct {
	template *recoveryTemplate
	files    *memFiles
	before   *memFiles // as it was damaged
	damages  []string
	problems []string

	store *dataDir
	logs  map[logKey]PartitionLog
	found map[logKey]*recoveryFound
	own   map[logKey]map[int64]batch // appended since
	// repaired: batches without records may stand for others.
	repaired bool
}

// recoveryFound is what a log was found to have.
type recoveryFound struct {
	start, end int64
	batches    []batch
	harm       []*CorruptError
}

// has returns the batch at an offset, nil if there is none.
func (f *recoveryFound) has(offset int64) batch {
	i, ok := slices.BinarySearchFunc(f.batches, offset, func(b batch, o int64) int { return int(b.baseOffset() - o) })
	if !ok {
		return nil
	}
	return f.batches[i]
}

func (r *recoveryRun) problem(format string, args ...any) {
	if len(r.problems) < 8 {
		r.problems = append(r.problems, fmt.Sprintf(format, args...))
	}
}

// damage damages a file, or two.
func (r *recoveryRun) damage(c chooser) {
	paths := r.template.paths
	path := paths[c.IntN(len(paths))]
	data := bytes.Clone(r.files.content(path))
	if data == nil {
		return // An earlier damage has removed it.
	}
	other := paths[c.IntN(len(paths))]
	if c.IntN(2) == 0 { // One of the same kind, mostly.
		for range 20 {
			if filepath.Ext(other) == filepath.Ext(path) && other != path {
				break
			}
			other = paths[c.IntN(len(paths))]
		}
	}
	at := c.IntN(len(data) + 1)
	n := min(len(data)-at, c.IntN(1+[]int{1, 40, 300, len(data)}[c.IntN(4)]))
	what := ""
	switch c.IntN(12) {
	case 0:
		what, data = fmt.Sprint("cut to ", at), data[:at]
	case 1:
		at = min(at, c.IntN(segmentHeaderSize+1))
		what, data = fmt.Sprint("cut to ", at), data[:at]
	case 2:
		n = 1 + c.IntN(3)
		what = "bits flipped at"
		for range n {
			if len(data) > 0 {
				at := c.IntN(len(data))
				data[at] ^= 1 << c.IntN(8)
				what += fmt.Sprint(" ", at)
			}
		}
	case 3:
		what = fmt.Sprintf("zeros from %d to %d", at, at+n)
		clear(data[at : at+n])
	case 4:
		what = fmt.Sprintf("garbage from %d to %d", at, at+n)
		fillGarbage(c, data[at:at+n])
	case 5:
		put := make([]byte, n)
		if c.IntN(2) == 0 {
			fillGarbage(c, put)
		}
		what, data = fmt.Sprintf("%d bytes put in at %d", n, at), slices.Insert(data, at, put...)
	case 6:
		what, data = fmt.Sprintf("bytes from %d to %d taken out", at, at+n), slices.Delete(data, at, at+n)
	case 7, 8:
		theirs := r.files.content(other)
		if theirs == nil {
			return
		}
		r.damages = append(r.damages, fmt.Sprintf("%s swapped with %s", path, other))
		r.files.put(path, theirs)
		r.files.put(other, data)
		return
	case 9:
		theirs := r.files.content(other)
		if theirs == nil {
			return
		}
		what, data = "a copy of "+other, theirs
	case 10:
		what, data = "removed", nil
	case 11:
		what, data = r.duplicate(c, path, data)
	}
	r.damages = append(r.damages, path+" "+what)
	r.files.put(path, data)
}

func fillGarbage(c chooser, b []byte) {
	for i := range b {
		b[i] = byte(c.IntN(256))
	}
}

// duplicate has some batches of a segment, or bytes of another file, there twice.
func (r *recoveryRun) duplicate(c chooser, path string, data []byte) (string, []byte) {
	for _, l := range r.template.logs {
		for _, s := range l.segments {
			if s.path != path {
				continue
			}
			from, to := s.places[c.IntN(len(s.places))].pos, s.places[c.IntN(len(s.places))].pos
			into := min(int(s.places[c.IntN(len(s.places))].pos), len(data))
			from, to = min(from, to, int64(len(data))), min(max(from, to), int64(len(data)))
			return fmt.Sprintf("batches from %d to %d again at %d", from, to, into), slices.Insert(data, into, bytes.Clone(data[from:to])...)
		}
	}
	at := c.IntN(len(data) + 1)
	return fmt.Sprintf("all from %d on again", at), append(data, data[at:]...)
}

// intact returns how many bytes from its begin a file has as they were; -1 for all of it.
func (r *recoveryRun) intact(path string) int64 {
	was, is := r.template.files.content(path), r.before.content(path)
	if is != nil && bytes.Equal(was, is) {
		return -1
	}
	n := 0
	for n < min(len(was), len(is)) && was[n] == is[n] {
		n++
	}
	return int64(n)
}

// changed tells whether a file matches that is not as it was.
func (r *recoveryRun) changed(match func(path string) bool) bool {
	return slices.ContainsFunc(r.template.paths, func(path string) bool { return match(path) && r.intact(path) >= 0 })
}

// open opens the directory as a broker does.
func (r *recoveryRun) open() error {
	r.store, r.logs, r.found = nil, make(map[logKey]PartitionLog), make(map[logKey]*recoveryFound)
	d, err := openDataDir(r.files, labDir, SyncInterval(time.Hour), newWarner(slog.New(slog.NewTextHandler(io.Discard, nil))))
	if err != nil {
		return err
	}
	r.store = d
	topics, err := d.Topics(context.Background())
	if err != nil {
		return err
	}
	for _, t := range topics {
		for p := range t.Partitions {
			l, err := d.OpenPartition(context.Background(), t, p, r.template.config, func() {})
			if err != nil {
				return errors.Join(err, d.Close())
			}
			r.logs[logKey{t.ID, p}] = l
		}
	}
	return nil
}

// refused checks that the directory may be refused with this error.
func (r *recoveryRun) refused(err error) {
	if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
		r.problem("opening fails: %v", err)
		return
	}
	for _, path := range r.template.paths {
		if r.intact(path) < 0 {
			continue
		}
		name := filepath.Base(path)
		vital := name == identityName || name == topicName || name == startName || filepath.Dir(path) == filepath.Join(labDir, groupsName)
		if vital && (strings.Contains(err.Error(), path) || name == topicName && strings.Contains(err.Error(), filepath.Dir(path))) {
			return
		}
		if vital && filepath.Dir(path) == filepath.Join(labDir, groupsName) && strings.Contains(err.Error(), labDir) {
			return // What it has lost is told of the file behind or before.
		}
	}
	r.problem("opening is refused, and no damaged file is named: %v", err)
}

// walk reads a log from start to end. With strict there must be no damage.
func (r *recoveryRun) walk(key logKey, strict bool) {
	l, model := r.logs[key], r.template.logs[key]
	f := &recoveryFound{}
	f.start, f.end = l.Bounds()
	r.found[key] = f
	for offset := f.start; offset < f.end; {
		read, err := l.Read(context.Background(), offset, 700)
		if err != nil {
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || filepath.Dir(corrupt.File) != model.dir || corrupt.Position < 0 ||
				corrupt.From > offset || corrupt.To <= offset || corrupt.To > f.end {
				r.problem("%s: read at %d of %d to %d: %v", key, offset, f.start, f.end, err)
				return
			}
			if strict {
				r.problem("%s: damage is left: %v", key, err)
			}
			f.harm = append(f.harm, corrupt)
			offset = corrupt.To
			continue
		}
		was := offset
		for rest := read.Batches; len(rest) > 0; {
			b, more, err := parseBatch(rest)
			if err != nil {
				r.problem("%s: read at %d: %v", key, offset, err)
				break
			}
			rest = more
			known := model.batches[b.baseOffset()]
			if own := r.own[key][b.baseOffset()]; own != nil {
				known = own
			}
			if !bytes.Equal(b, known) && (!r.repaired || b.count() > 0) {
				r.problem("%s: at %d there is a batch that was never stored there", key, b.baseOffset())
			}
			if b.baseOffset() > offset || b.baseOffset() < offset && offset != f.start && (len(f.harm) == 0 || f.harm[len(f.harm)-1].To != offset) || b.nextOffset() <= offset || b.nextOffset() > f.end {
				r.problem("%s: %d to %d where %d is due, and the end is %d", key, b.baseOffset(), b.nextOffset(), offset, f.end)
			}
			offset = b.nextOffset()
			f.batches = append(f.batches, bytes.Clone(b))
		}
		read.Release()
		if offset == was {
			r.problem("%s: nothing to read at %d, below the end, %d", key, offset, f.end)
			return
		}
	}
}

// checkKept checks that a log has what stands before all damage.
func (r *recoveryRun) checkKept(key logKey) {
	l, f, was := r.template.logs[key], r.found[key], r.template.served.found[key]
	inDir := func(suffix string) func(string) bool {
		return func(path string) bool { return filepath.Dir(path) == l.dir && strings.HasSuffix(path, suffix) }
	}
	if !r.changed(inDir("")) {
		if f.start != was.start || f.end != was.end || len(f.harm) > 0 || len(f.batches) != len(was.batches) {
			r.problem("%s was not damaged, and has %d to %d instead of %d to %d", key, f.start, f.end, was.start, was.end)
		}
		return
	}
	indexed := !r.changed(inDir(indexSuffix))
	if start := filepath.Join(l.dir, startName); r.changed(func(path string) bool { return path == start }) && (r.before.content(start) != nil || !indexed) {
		return // Who knows where it begins.
	}
	whole := true
	for _, s := range l.segments {
		intact := r.intact(s.path)
		if r.before.content(s.path) == nil {
			indexed = false // Its index goes with it.
		}
		for i, p := range s.places[:len(s.places)-1] {
			if whole && (intact < 0 || s.places[i+1].pos <= intact) && was.has(p.offset) != nil && f.has(p.offset) == nil {
				r.problem("%s: the batch at %d stands before all damage, and is gone", key, p.offset)
			}
		}
		whole = whole && intact < 0
	}
	if indexed && f.end < l.frontier {
		r.problem("%s: ends at %d; %d was on stable storage", key, f.end, l.frontier)
	}
}

// checkSearch checks OffsetAt and EpochEnd against what can be read.
func (r *recoveryRun) checkSearch(c chooser, key logKey) {
	l, f := r.logs[key], r.found[key]
	if len(f.batches) == 0 {
		return
	}
	for range 2 {
		one := f.batches[c.IntN(len(f.batches))]
		at := one.maxTime() + int64(c.IntN(3)-1)
		offset, err := l.OffsetAt(context.Background(), at)
		switch {
		case err != nil && (len(f.harm) == 0 || !errors.Is(err, ErrCorrupt)):
			r.problem("%s: OffsetAt(%d): %v", key, at, err)
		case err == nil:
			if want, exact := f.offsetAt(at); offset > want || offset < want && exact(offset) {
				r.problem("%s: OffsetAt(%d) is %d, not %d", key, at, offset, want)
			}
		}
		epoch := one.epoch() + int32(c.IntN(3)-1)
		end, err := l.EpochEnd(context.Background(), epoch)
		switch {
		case err != nil && (len(f.harm) == 0 || !errors.Is(err, ErrCorrupt)):
			r.problem("%s: EpochEnd(%d): %v", key, epoch, err)
		case err == nil:
			for _, b := range f.batches {
				if b.count() > 0 && (b.epoch() <= epoch && b.nextOffset() > end || b.epoch() > epoch && b.baseOffset() < end && end > f.start) {
					r.problem("%s: EpochEnd(%d) is %d; the batch at %d has epoch %d", key, epoch, end, b.baseOffset(), b.epoch())
					break
				}
			}
		}
	}
}

// offsetAt returns the offset of the first record that can be read and is not before a
// time. exact tells of a lower offset whether it can be read: then it is no answer.
func (f *recoveryFound) offsetAt(at int64) (want int64, exact func(int64) bool) {
	want = f.end
	for _, b := range f.batches {
		records := b.records()
		var m Message
		for {
			more, err := records.next(&m)
			if err != nil || !more {
				break
			}
			if m.Timestamp >= at && m.Offset >= f.start {
				want = min(want, m.Offset)
			}
		}
	}
	return want, func(offset int64) bool {
		return slices.ContainsFunc(f.batches, func(b batch) bool { return b.baseOffset() <= offset && offset < b.nextOffset() })
	}
}

// checkGroups checks that nothing is said of a group that nobody has ever said.
func (r *recoveryRun) checkGroups() {
	groups, err := r.store.Groups(context.Background())
	if err != nil {
		r.problem("groups: %v", err)
	}
	var said, want []string
	for _, g := range groups {
		for _, w := range groupWords(g) {
			said = append(said, w)
			if !r.template.words[w] {
				r.problem("nobody has ever said: %s", w)
			}
		}
	}
	for _, g := range r.template.groups {
		want = append(want, groupWords(g)...)
	}
	slices.Sort(said)
	slices.Sort(want)
	if !slices.Equal(said, want) && !r.changed(func(path string) bool {
		return filepath.Dir(path) == filepath.Join(labDir, groupsName) || filepath.Base(path) == topicName
	}) {
		r.problem("groups were not damaged, and say\n%v\ninstead of\n%v", said, want)
	}
}

// check reads all that there is.
func (r *recoveryRun) check(c chooser, strict bool) {
	known := !r.changed(func(path string) bool { return filepath.Base(path) == topicName })
	for _, key := range r.template.keys {
		if r.logs[key] == nil {
			if known {
				r.problem("%s is gone", key)
			}
			continue
		}
		r.walk(key, strict)
		if known && len(r.own) == 0 {
			r.checkKept(key)
		}
		r.checkSearch(c, key)
	}
	r.checkGroups()
}

// goOn appends to all logs, opens the directory again, and finds it all.
func (r *recoveryRun) goOn(c chooser) {
	rng := rand.New(rand.NewPCG(uint64(c.IntN(1000)), 2))
	number := 1000
	for _, key := range r.template.keys {
		l := r.logs[key]
		if l == nil {
			continue
		}
		r.own[key] = make(map[int64]batch)
		for range 1 + c.IntN(3) {
			_, end := l.Bounds()
			b := batch(makeRecoveryBatch(rng, &number, 300))
			done := make(chan AppendResult, 1)
			l.Append(b, AcksStored, func(res AppendResult) { done <- res })
			res := <-done
			if res.Err != nil || res.BaseOffset != end {
				r.problem("%s: append at %d: %+v", key, end, res)
				break
			}
			r.own[key][res.BaseOffset] = bytes.Clone(b)
		}
	}
	was := r.found
	r.found = make(map[logKey]*recoveryFound)
	r.check(c, false)
	for range 2 {
		for key, f := range r.found {
			for offset := range r.own[key] {
				if f.has(offset) == nil {
					r.problem("%s: what was appended at %d cannot be read", key, offset)
				}
			}
			for _, b := range was[key].batches {
				if b.nextOffset() > f.start && f.has(b.baseOffset()) == nil {
					r.problem("%s: the batch at %d was read and is gone", key, b.baseOffset())
				}
			}
		}
		if len(r.problems) > 0 {
			break
		}
		was = r.found
		if c.IntN(2) == 0 {
			r.files = r.files.kill()
			_ = r.store.Close() // All that it does fails.
		} else if err := r.store.Close(); err != nil {
			r.problem("closing: %v", err)
		}
		if err := r.open(); err != nil {
			r.problem("opening again: %v", err)
			return
		}
		r.check(c, false)
	}
}

// runRecovery damages a template and recovers what is left, and returns what is wrong.
func runRecovery(m *recoveryTemplate, c chooser, outcomes *recoveryOutcomes) (wrong string) {
	r := &recoveryRun{template: m, files: m.files.clone(), own: make(map[logKey]map[int64]batch)}
	defer func() {
		if p := recover(); p != nil {
			r.problem("panic: %v\n%s", p, debug.Stack())
		}
		if len(r.problems) > 0 {
			wrong = fmt.Sprintf("%s: %s\n%s", m.name, strings.Join(r.damages, "; "), strings.Join(r.problems, "\n"))
		}
	}()
	for range 1 + c.IntN(3) {
		r.damage(c)
	}
	r.before = r.files.clone()
	if c.IntN(3) == 0 {
		r.repair(c, outcomes)
		return ""
	}
	if err := r.open(); err != nil {
		outcomes.refused.Add(1)
		r.refused(err)
		return ""
	}
	r.check(c, false)
	for _, f := range r.found {
		outcomes.harm.Add(int64(len(f.harm)))
	}
	r.goOn(c)
	if err := r.store.Close(); err != nil {
		r.problem("closing: %v", err)
	}
	return ""
}

// repair has the directory inspected and repaired, and then opens it.
func (r *recoveryRun) repair(c chooser, outcomes *recoveryOutcomes) {
	outcomes.repaired.Add(1)
	ctx := context.Background()
	plain := &recoveryRun{template: r.template, files: r.files.clone(), before: r.before, own: r.own}
	refused := plain.open()
	found, err := inspectDataDir(ctx, r.files, labDir, false)
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
		r.problem("inspection: %v", err)
	}
	if refused == nil {
		plain.check(c, false)
		r.problems = append(r.problems, plain.problems...)
		if plain.store.Close() != nil {
			r.problem("closing fails")
		}
		for key, f := range plain.found {
			if len(f.harm) > 0 && len(found.Damage) == 0 {
				r.problem("%s: nothing is reported of %v", key, f.harm[0])
			}
		}
	}
	_, err = inspectDataDir(ctx, r.files, labDir, true)
	if errors.Is(err, ErrUnsupported) {
		r.refused(err) // The format of a file may be what is damaged; it is not guessed.
		return
	}
	if err != nil {
		r.problem("repair: %v", err)
		return
	}
	again, err := inspectDataDir(ctx, r.files, labDir, false)
	if err != nil {
		r.problem("inspection after the repair: %v", err)
		return
	}
	for _, d := range again.Damage {
		if filepath.Base(d.File) != topicName {
			r.problem("after the repair: %v", &d.CorruptError)
		}
	}
	if err := r.open(); err != nil {
		if refused == nil || !r.changed(func(path string) bool { return filepath.Base(path) == topicName }) {
			r.problem("opening after the repair: %v", err)
		}
		return
	}
	r.repaired = true
	r.check(c, true)
	for key, f := range plain.found {
		for _, b := range f.batches {
			if now := r.found[key]; now != nil && now.has(b.baseOffset()) == nil && b.nextOffset() > now.start {
				r.problem("%s: the repair has cost the batch at %d", key, b.baseOffset())
			}
		}
	}
	r.goOn(c)
	if err := r.store.Close(); err != nil {
		r.problem("closing: %v", err)
	}
}

type recoveryOutcomes struct{ refused, harm, repaired atomic.Int64 }

// Whatever is damaged in a data directory: what is served is what was stored, what is
// whole and stands before the damage is kept, and the log goes on.
//
// ROBUST_DAMAGES says how many directories are damaged, and ROBUST_SEED with which
// seed it begins; each is one seed, so that one that fails can be tried again alone.
func TestDamagedDirectories(t *testing.T) {
	templates := recoveryTemplates(t)
	count, first := envCount(t, "ROBUST_DAMAGES", 300), envCount(t, "ROBUST_SEED", 1)
	var (
		outcomes recoveryOutcomes
		next     atomic.Int64
		failed   atomic.Int64
		workers  sync.WaitGroup
	)
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for failed.Load() < 10 {
				n := next.Add(1) - 1
				if n >= int64(count) {
					return
				}
				seed := uint64(int64(first) + n)
				rng := rand.New(rand.NewPCG(seed, 99))
				hung := time.AfterFunc(time.Minute, func() { panic(fmt.Sprintf("seed %d takes a minute", seed)) })
				wrong := runRecovery(templates[rng.IntN(len(templates))], rng, &outcomes)
				hung.Stop()
				if wrong != "" {
					failed.Add(1)
					t.Errorf("ROBUST_DAMAGES=1 ROBUST_SEED=%d: %s", seed, wrong)
				}
			}
		})
	}
	workers.Wait()
	n := min(next.Load(), int64(count))
	t.Logf("%d recoveries (%.0f a second): %d refused, %d repaired, %d damages met", n, float64(n)/time.Since(began).Seconds(),
		outcomes.refused.Load(), outcomes.repaired.Load(), outcomes.harm.Load())
}

// FuzzDamagedDirectories lets the fuzzer choose what is damaged.
func FuzzDamagedDirectories(f *testing.F) {
	templates := recoveryTemplates(f)
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07"))
	f.Fuzz(func(t *testing.T, choices []byte) {
		c := &givenChoices{choices}
		var outcomes recoveryOutcomes
		if wrong := runRecovery(templates[c.IntN(len(templates))], c, &outcomes); wrong != "" {
			t.Error(wrong)
		}
	})
}

// givenChoices makes the choices that bytes say, two of them each, and then the first there is.
type givenChoices struct{ rest []byte }

func (c *givenChoices) IntN(n int) int {
	v := 0
	for range min(2, len(c.rest)) {
		v = v<<8 | int(c.rest[0])
		c.rest = c.rest[1:]
	}
	return v % n
}
