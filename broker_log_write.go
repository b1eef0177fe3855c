package robust

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// maxGroupBytes is how much of what has gathered is written at a time.
	maxGroupBytes = 1 << 20
	// gatherBytes is how much of it is copied together. Batches of half of that are
	// written on their own: copying them would cost more than the call does.
	gatherBytes = 128 << 10
	// maxSegmentSize is what positions in an index can name.
	maxSegmentSize = math.MaxUint32
)

func (l *diskLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	if !l.enqueue(&logJob{batches: batches, acks: acks, done: done}) {
		done(AppendResult{Err: ErrClosed})
	}
}

// exclusive runs f when nobody appends, and returns what it returns.
func (l *diskLog) exclusive(f func() error) error {
	var err error
	l.wanted.Add(1)
	defer l.wanted.Add(-1)
	signal(l.hurry)
	ran := make(chan struct{})
	l.enqueue(&logJob{run: func() {
		err = f()
		close(ran)
	}})
	<-ran
	return err
}

// enqueue has a job done, by the caller if nobody else is at work; false if the log is
// closed and the job is an append.
func (l *diskLog) enqueue(j *logJob) bool {
	l.mu.Lock()
	if l.closed && j.run == nil {
		l.mu.Unlock()
		return false
	}
	l.queue = append(l.queue, j)
	if l.working {
		l.mu.Unlock()
		return true
	}
	l.working = true
	l.mu.Unlock()
	if l.work(1) {
		// What came meanwhile is not the caller's to do.
		l.store.running.Go(func() { l.work(math.MaxInt) })
	}
	return true
}

// work does what is queued, rounds times at most; it tells whether there is more.
func (l *diskLog) work(rounds int) (more bool) {
	for {
		l.mu.Lock()
		jobs := l.queue
		if len(jobs) == 0 {
			l.working = false
			l.mu.Unlock()
			return false
		}
		if rounds == 0 {
			l.mu.Unlock()
			return true
		}
		rounds--
		l.queue = nil
		l.mu.Unlock()
		for len(jobs) > 0 {
			if run := jobs[0].run; run != nil {
				run()
				jobs = jobs[1:]
				continue
			}
			jobs = jobs[l.appendSome(jobs):]
		}
	}
}

// appendSome stores the first of some jobs with one write, and returns how many.
func (l *diskLog) appendSome(jobs []*logJob) (n int) {
	at := time.Now()
	now := at.UnixMilli()
	if err := l.prepare(int64(len(jobs[0].batches)), now); err != nil {
		jobs[0].fail(err)
		return 1
	}
	if p := l.producers.Load(); p != nil {
		p.states.settle(l.visible.Load().last.offset) // What can be read is not cut off.
	}
	g := appendGroup{log: l, view: *l.written, epoch: l.epoch, at: at, now: now}
	g.indexed = g.view.segments[len(g.view.segments)-1].index.last()
	for _, j := range jobs {
		if j.run != nil || len(g.jobs) > 0 && (g.size+len(j.batches) > maxGroupBytes || !l.fits(&g.view, int64(len(j.batches)), now)) {
			break
		}
		n++
		if err := g.add(j); err != nil {
			j.done(AppendResult{Err: err})
		}
	}
	if g.size > 0 {
		if err := l.write(&g); err != nil {
			g.abandon(l.written.last.offset, err)
		}
	}
	l.finish(&g)
	return n
}

// fits tells whether the last segment may take in size more bytes.
func (l *diskLog) fits(v *logView, size, now int64) bool {
	c := l.config.Load()
	switch {
	case v.last.pos == segmentHeaderSize:
		return true // Where else should they go.
	case v.last.pos+size > min(c.SegmentBytes, maxSegmentSize):
		return false
	default:
		// A segment goes as a whole, when its last batch is too old: it must not
		// take in batches of all ages. A first one that is still to come says that the clock
		// was put back, and nothing of its age.
		quarter := (c.RetentionAge / 4).Milliseconds()
		return c.RetentionAge <= 0 || -quarter <= now-v.first && now-v.first <= quarter
	}
}

// prepare sees to it that size bytes can be written to the last segment.
func (l *diskLog) prepare(size, now int64) error {
	v := l.written
	if len(v.segments) == 0 || l.sealed || !l.fits(v, size, now) {
		return l.roll()
	}
	return l.removeRest()
}

// removeRest removes what failed operations have left behind the log's end: the rest of a write,
// and segments of which nothing is synced. It must not be there when something else is
// written in its place: the end of it might look like batches that follow.
func (l *diskLog) removeRest() error {
	if l.torn {
		if err := l.cutTorn(); err != nil {
			return err
		}
	}
	if len(l.refused) == 0 {
		return nil
	}
	for _, s := range slices.Backward(l.refused) {
		l.letGo(s)
		if err := l.removeSegment(s); err != nil {
			return err
		}
	}
	// One that came back after a power failure would seem to follow on the segment in which
	// the log goes on.
	if err := l.store.cache.syncDir(l.dir); err != nil {
		return err
	}
	l.refused = nil
	return nil
}

func (l *diskLog) cutTorn() error {
	v := l.written
	s := v.segments[len(v.segments)-1]
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	if err := f.truncate(v.last.pos); err != nil {
		return err
	}
	l.torn = false
	l.mu.Lock()
	s.cut = true
	l.mu.Unlock()
	return nil
}

// write writes a group behind the last segment's last batch.
func (l *diskLog) write(g *appendGroup) error {
	s := l.written.segments[len(l.written.segments)-1]
	if err := l.beginWriting(s); err != nil {
		return err
	}
	f, err := s.out.acquire(os.O_RDWR)
	if err == nil {
		// It is torn until all is written: whoever stops in between finds it so.
		l.torn = true
		if err = l.store.writeJobs(f, g.jobs, l.written.last.pos); err == nil {
			l.torn = false
		}
		s.out.release()
	}
	l.mu.Lock()
	l.writing = false
	if err == nil {
		v := g.view
		l.written = &v
		s.appended = g.at
	}
	l.mu.Unlock()
	if err != nil {
		// It is kept open for a sync, of which nobody else has cause to think.
		l.store.markDirty(l)
		if l.torn {
			_ = l.removeRest() // Tried again before the next write.
		}
		return err
	}
	for _, e := range g.entries {
		s.index.add(e)
	}
	return nil
}

// writeJobs writes batches at pos, one behind the other: small ones together, so that they
// take few calls, large ones from where they are.
func (s *logStore) writeJobs(f file, jobs []*logJob, pos int64) error {
	if len(jobs) == 1 {
		_, err := f.WriteAt(jobs[0].batches, pos)
		return err
	}
	room, ok := s.gather.Get().(*[]byte)
	if !ok {
		b := make([]byte, 0, gatherBytes)
		room = &b
	}
	defer s.gather.Put(room)
	buf := (*room)[:0]
	flush := func() error {
		_, err := f.WriteAt(buf, pos)
		pos += int64(len(buf))
		buf = buf[:0]
		return err
	}
	for _, j := range jobs {
		large := len(j.batches) >= gatherBytes/2
		if len(buf) > 0 && (large || len(buf)+len(j.batches) > cap(buf)) {
			if err := flush(); err != nil {
				return err
			}
		}
		if large {
			if _, err := f.WriteAt(j.batches, pos); err != nil {
				return err
			}
			pos += int64(len(j.batches))
			continue
		}
		buf = append(buf, j.batches...)
	}
	if len(buf) == 0 {
		return nil
	}
	return flush()
}

// beginWriting keeps a segment open until it is synced: a system may forget, with the
// open file, that it could not write.
func (l *diskLog) beginWriting(s *segment) error {
	l.mu.Lock()
	l.writing = true
	pinned := s.pinned
	l.mu.Unlock()
	if pinned || l.store.policy == SyncNever {
		return nil
	}
	counted := l.awaitUnsaved()
	if _, err := s.out.acquire(os.O_RDWR); err != nil {
		l.giveUnsaved(counted)
		l.mu.Lock()
		l.writing = false
		l.mu.Unlock()
		return err
	}
	l.mu.Lock()
	s.pinned, s.counted = true, counted
	l.mu.Unlock()
	return nil
}

// finish shows what was written, and answers those who do not wait for a sync.
func (l *diskLog) finish(g *appendGroup) {
	always := l.store.policy == SyncAlways
	waiting := false
	l.mu.Lock()
	if !always {
		l.visible.Store(l.written)
	}
	seen := l.visible.Load().last.offset
	waits := func(j *logJob) bool {
		if always {
			return j.end > seen
		}
		return j.acks == AcksSynced
	}
	for _, j := range g.jobs {
		if always {
			j.result.Acks = AcksSynced
		}
		if waits(j) {
			l.waiters = append(l.waiters, j)
			waiting = true
		}
	}
	l.mu.Unlock()
	for _, j := range g.jobs {
		if !waits(j) {
			j.done(j.result)
		}
	}
	if !always && g.size > 0 {
		l.advanced()
	}
	if waiting {
		l.store.syncSoon(l)
	} else if g.size > 0 {
		l.store.markDirty(l)
	}
}

// rollBehind begins a segment, if the log still ends at last, and is open.
func (l *diskLog) rollBehind(last indexEntry) error {
	if l.written.last != last || l.isClosed() {
		return nil
	}
	return storageError(l.roll())
}

// roll begins a segment at the log's end, and has it synced when its time has come.
func (l *diskLog) roll() error {
	begun, err := l.beginSegment()
	if begun {
		l.store.markDirty(l)
	}
	return err
}

// beginSegment begins a segment at the log's end. One in which there is nothing will do, unless
// it is sealed; then it makes way, since the other has the same name.
func (l *diskLog) beginSegment() (begun bool, err error) {
	v := *l.written
	if n := len(v.segments); n > 0 && v.segments[n-1].header.base == v.last.offset {
		if !l.sealed {
			return false, nil
		}
		if !slices.Contains(l.refused, v.segments[n-1]) {
			l.refused = append(l.refused, v.segments[n-1])
		}
		l.torn = false // What it was goes with its segment.
		v.segments = v.segments[:n-1]
	}
	if err := l.removeRest(); err != nil {
		return false, err
	}
	if !l.made {
		if err := l.store.files.mkdir(l.dir); err != nil && !errors.Is(err, os.ErrExist) {
			return false, err
		}
		l.made = true
	}
	h := l.header
	h.base = v.last.offset
	s := newSegment(l.store.cache, l.dir, h)
	if err := l.createSegment(s); err != nil {
		// It may be there all the same, and the segment before it would seem to end here.
		l.refused = append(l.refused, s)
		_ = l.removeRest() // Tried again before the next write.
		return false, err
	}
	s.index.count = 0
	caughtUp := l.visible.Load().last == v.last
	if n := len(v.segments); n > 0 && n == len(l.written.segments) {
		old, ending := v.segments[n-1], v.last
		old.size = ending.pos
		old.ending.Store(&ending)
	}
	v.segments = append(slices.Clone(v.segments), s)
	v.first = 0
	v.last.pos, v.last.maxTime = segmentHeaderSize, math.MinInt64
	l.sealed = false
	l.mu.Lock()
	l.written = &v
	if caughtUp {
		l.visible.Store(&v)
	}
	l.mu.Unlock()
	return true, nil
}

// createSegment makes a segment's file.
func (l *diskLog) createSegment(s *segment) error {
	// What another attempt may have left.
	for _, name := range []string{s.log.path, segmentPath(l.dir, s.header.base, indexSuffix)} {
		if err := l.store.files.remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	never := l.store.policy == SyncNever
	counted := !never && l.awaitUnsaved()
	f, err := l.store.cache.openFile(s.log.path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err == nil {
		if _, err = f.WriteAt(s.header.encode(segmentMagic), 0); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		l.giveUnsaved(counted)
		return err
	}
	s.out.adopt(f)
	if never {
		s.out.release()
	} else {
		s.pinned, s.counted = true, counted
	}
	return nil
}

// removeSegment removes a segment's files.
func (l *diskLog) removeSegment(s *segment) error {
	s.retire()
	var errs []error
	for _, name := range []string{s.log.path, segmentPath(l.dir, s.header.base, indexSuffix)} {
		if err := l.store.files.remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// excess returns the offset before which segments may go so that at least bytes are left;
// 0 if none may.
func (v *logView) excess(bytes int64) int64 {
	for i := len(v.segments) - 1; i >= 0; i-- {
		if bytes <= 0 {
			return v.next(i)
		}
		bytes -= v.size(i) - segmentHeaderSize
	}
	return 0
}

// trimBytes removes segments as long as what is left is enough; the caller has the sync
// token.
func (l *diskLog) trimBytes() error {
	limit := l.config.Load().RetentionBytes
	if limit <= 0 {
		return nil
	}
	return l.dropSynced(l.visible.Load().excess(limit))
}

// dropSynced is drop for who has the sync token, and up to the segment that is synced.
func (l *diskLog) dropSynced(offset int64) error {
	var old []*segment
	err := l.exclusive(func() error {
		v := l.visible.Load()
		for i, s := range v.segments {
			if i == len(v.segments)-1 || v.next(i) > offset || v.next(i) > l.synced.segment {
				break
			}
			old = append(old, s)
		}
		if n := len(old); n > 0 {
			base := v.next(n - 1)
			// After a power failure some of what is removed may be back, and
			// some not.
			if err := l.keepStart(max(base, v.start)); err != nil {
				old = nil
				return err
			}
			l.update(func(v *logView) {
				v.segments = slices.Clone(v.segments[n:])
				v.start = max(v.start, base)
			})
		}
		return nil
	})
	for _, s := range old {
		l.settle(s)
	}
	l.left = append(l.left, old...)
	return storageError(errors.Join(err, l.removeLeft()))
}

// removeLeft removes the segments that are gone from the log's front; the caller has the sync
// token.
func (l *diskLog) removeLeft() error {
	var errs []error
	l.left = slices.DeleteFunc(l.left, func(s *segment) bool {
		err := l.removeSegment(s)
		errs = append(errs, err)
		return err == nil
	})
	l.leaves.Store(len(l.left) > 0)
	l.store.reserve.fill() // Before others take what has become free.
	return errors.Join(errs...)
}

// startName is the file that keeps a log's start where no segment begins.
const startName = "start.json"

// storedStart says, too, whose start it is, if the file is not from before that was kept.
type storedStart struct {
	Start     int64  `json:"start"`
	TopicID   string `json:"topic_id,omitempty"`
	Partition int32  `json:"partition,omitempty"`
}

// readStart reads the oldest offset of a log that may be read.
func readStart(files fileSystem, path string, h segmentHeader) (int64, error) {
	var kept storedStart
	if err := readJSON(files, path, &kept); err != nil {
		return 0, err
	}
	if kept.TopicID != "" && (kept.TopicID != h.topicID || kept.Partition != h.partition) {
		return 0, &CorruptError{File: path, From: -1, To: -1, Reason: string(damageForeign)}
	}
	return kept.Start, nil
}

// keepStart keeps the oldest offset that may be read.
func (l *diskLog) keepStart(offset int64) error {
	err := l.store.replaceJSON(filepath.Join(l.dir, startName), storedStart{offset, l.header.topicID, l.header.partition})
	if err == nil {
		err = l.store.cache.syncDir(filepath.Dir(l.dir)) // The directory may be new itself.
	}
	return storageError(err)
}
