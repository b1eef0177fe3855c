package robust

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// syncNow syncs what has been written so far. With SyncNever that is what somebody waits
// for, and full segments. Appends that come during one sync share the next.
func (l *diskLog) syncNow() {
	_ = l.acquireSync(context.Background()) // Has no end.
	if l.ended.Load() {
		l.releaseSync() // Close has synced it, or could not.
		return
	}
	l.mu.Lock()
	all := l.store.policy != SyncNever || len(l.waiters) > 0
	l.mu.Unlock()
	_ = l.syncWritten(all) // Those who wait are told, and the log says it.
	l.releaseSync()
	l.mu.Lock()
	more := len(l.waiters) > 0
	l.mu.Unlock()
	if more {
		l.store.syncSoon(l)
	}
}

// syncWritten brings what has been written so far to stable storage, the last segment
// only if all says so, and answers those who wait for that. The caller has the sync token.
// Where a segment fails, and the log keeps it, those behind it are synced all the same: nobody
// else may come to do it.
func (l *diskLog) syncWritten(all bool) error {
	l.mu.Lock()
	last := l.written.lastBase()
	l.mu.Unlock()
	var errs []error
	for {
		err := l.syncSegments(all)
		errs = append(errs, err)
		// Each failure takes l.synced behind another segment.
		if err == nil || l.store.policy == SyncAlways || l.synced.segment >= last {
			return errors.Join(errs...)
		}
	}
}

// syncSegments is syncWritten up to the first failure.
func (l *diskLog) syncSegments(all bool) error {
	w, producers := l.viewToSync()
	// What is kept of producers must not be ahead of what is synced.
	all = all || producers != nil
	rolled := false
	for i, s := range w.segments {
		end := w.ending(i)
		last := i == len(w.segments)-1
		if s.header.base < l.synced.segment || last && !all {
			continue
		}
		if s.header.base != l.synced.segment {
			l.noted = segmentHeaderSize
		}
		gone, err := l.syncGrown(s, end)
		if err != nil {
			return l.syncFailed(s, err)
		}
		if gone {
			continue
		}
		if !s.complete {
			l.note(s, *end, !last)
			rolled = rolled || !last
			s.complete = !last
		}
		l.settle(s)
	}
	if !all && len(w.segments) > 0 {
		s := w.segments[len(w.segments)-1]
		l.flushIndex(s, false)
	}
	l.answerSynced(w)
	l.keepProducers(producers)
	if rolled {
		if err := l.trimBytes(); err != nil {
			l.store.warn.warn("retention failed", l.name, "log", l.name, "error", err)
		}
	}
	return nil
}

// syncGrown syncs a segment to which something was added since it was synced, or of which
// something was cut off. gone tells that the log has no such segment any more.
func (l *diskLog) syncGrown(s *segment, end *indexEntry) (gone bool, err error) {
	l.mu.Lock()
	cut := s.cut
	s.cut = false
	l.mu.Unlock()
	grown := !s.linked || s.header.base != l.synced.segment || l.synced.at.pos != end.pos
	if !cut && !grown {
		return false, nil
	}
	if l.dropped(s) {
		return true, nil
	}
	err = l.syncUpTo(s, *end)
	if !grown && errors.Is(err, errNameless) {
		return false, nil // Nobody will find what was cut off there.
	}
	return false, err
}

// syncUpTo syncs what has been written of a segment.
func (l *diskLog) syncUpTo(s *segment, end indexEntry) error {
	if err := l.syncSegment(s); err != nil {
		return err
	}
	// Who is told that it is synced relies on the bridge, too.
	if err := l.bridge(s, end); err != nil {
		return err
	}
	l.synced = syncPoint{s.header.base, end}
	return nil
}

// syncSegment syncs a segment's file, and its name when it is new.
func (l *diskLog) syncSegment(s *segment) error {
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	if err := f.sync(); err != nil {
		return err
	}
	if s.linked {
		return nil
	}
	if err := l.syncName(); err != nil {
		return err
	}
	s.linked = true
	return nil
}

// syncName syncs the directory in which a segment was made, and at first that which it is
// in itself.
func (l *diskLog) syncName() error {
	if err := l.store.cache.syncDir(l.dir); err != nil || l.named {
		return err
	}
	if err := l.store.cache.syncDir(filepath.Dir(l.dir)); err != nil {
		return err
	}
	l.named = true
	return nil
}

// maxNoteInterval is how much of a segment is synced, at most, before its index says so
// again. After a crash as much is read that need not be.
const maxNoteInterval = 256 << 10

// note says in a segment's index that it is synced up to end, if there is much that is
// new, or the segment is complete.
func (l *diskLog) note(s *segment, end indexEntry, complete bool) {
	if !complete && end.pos-l.noted < min(maxNoteInterval, l.config.Load().SegmentBytes/16) {
		return
	}
	end.flags = end.flags&indexProducers | indexSynced
	if s.doubted {
		end.flags |= indexDoubted
	}
	s.index.add(end)
	l.noted = end.pos
	l.flushIndex(s, complete)
}

// bridge sees to it that what was synced in s is kept although a segment before it is in
// doubt: recovery would end the log where that is gone, had the index of s not reached
// stable storage, too. A segment in which there is nothing needs none, and may yet make way
// for another.
func (l *diskLog) bridge(s *segment, end indexEntry) error {
	if l.gap == nil || l.gap == s || end.pos <= segmentHeaderSize {
		return nil
	}
	end.flags = end.flags&indexProducers | indexSynced
	s.index.add(end)
	if err := s.index.flush(s.header, true); err != nil {
		return err
	}
	// The index may have been made before, without its name.
	if err := l.store.cache.syncDir(l.dir); err != nil {
		return err
	}
	l.noted = end.pos
	l.gap = nil
	return nil
}

// flushIndex writes what is new of an index. That it cannot be written costs a longer
// search, not a message.
func (l *diskLog) flushIndex(s *segment, sync bool) {
	if err := s.index.flush(s.header, sync); err != nil {
		l.store.warn.warn("index cannot be written", l.name, "log", l.name, "error", err)
	}
}

// answerSynced shows what has been synced, and answers those who have waited for it.
func (l *diskLog) answerSynced(w *logView) {
	always := l.store.policy == SyncAlways
	l.mu.Lock()
	if always && len(w.segments) > 0 {
		v := *w
		// Retention may have moved the start meanwhile.
		v.start = l.written.start
		base := l.written.segments[0].header.base
		v.segments = slices.DeleteFunc(slices.Clone(v.segments), func(s *segment) bool { return s.header.base < base })
		l.visible.Store(&v)
	}
	answered := l.takeWaitersLocked(func(j *logJob) bool { return j.end <= l.synced.at.offset })
	l.mu.Unlock()
	for _, j := range answered {
		j.done(j.result)
	}
	if always && len(answered) > 0 {
		l.advanced()
	}
}

// takeWaitersLocked takes some of those who wait for a sync out of the queue. Mostly they are
// the first, but for appends that repeat what was stored before.
func (l *diskLog) takeWaitersLocked(which func(*logJob) bool) (taken []*logJob) {
	var left []*logJob
	for _, j := range l.waiters {
		if which(j) {
			taken = append(taken, j)
		} else {
			left = append(left, j)
		}
	}
	l.waiters = left
	return taken
}

// syncFailed deals with a segment that could not be synced. What of it has reached stable
// storage nobody knows, and to sync it again would not tell, since the system may have
// given up what it could not write. So nothing more is written to it. Appends that wait
// fail. With SyncAlways nobody has seen them, and they are cut off; else they are served,
// as long as they can be read, and those who read the log hear of the doubt.
func (l *diskLog) syncFailed(s *segment, cause error) error {
	always := l.store.policy == SyncAlways
	var failed []*logJob
	var w *logView
	_ = l.exclusive(func() error {
		// An append may have had it make way until now.
		if l.dropped(s) {
			return nil
		}
		l.letGo(s)
		l.mu.Lock()
		failed = l.takeWaitersLocked(func(j *logJob) bool { return j.end > l.synced.at.offset })
		l.sealed = true
		if always {
			l.cutUnsyncedLocked()
		}
		w = l.written
		l.mu.Unlock()
		l.doubtProducers(s, w)
		if err := l.removeRest(); err != nil {
			l.store.warn.warn("what was not acknowledged cannot be removed yet", l.name, "log", l.name, "error", err)
		}
		return nil
	})
	if w == nil {
		return nil
	}
	l.answerSynced(w)
	l.doubtful = true
	from := l.synced.at.offset
	if always {
		if errors.Is(cause, errNameless) {
			l.gap = s // What stands before the cut is gone, too.
		}
		l.store.warn.warn("sync failed; what was not acknowledged is given up", l.name, "log", l.name, "file", s.log.path, "error", cause)
	} else {
		i := slices.Index(w.segments, s)
		l.synced = syncPoint{s.header.base, *w.ending(i)}
		s.linked, s.doubted = true, true
		l.gap = s
		l.store.warn.warn("sync failed; acknowledged messages may not outlive a power failure", l.name, "log", l.name,
			"file", s.log.path, "from", from, "to", l.synced.at.offset, "error", cause)
		l.settle(s)
		if l.events.doubted != nil {
			l.store.running.Go(l.events.doubted)
		}
	}
	for _, j := range failed {
		if always {
			j.fail(cause)
		} else {
			j.fail(fmt.Errorf("%w: %w", inDoubt(j.result.BaseOffset), cause))
		}
	}
	return storageError(cause)
}

// cutUnsyncedLocked takes the log back to where it is synced. What else its files have is
// for removeRest to remove.
func (l *diskLog) cutUnsyncedLocked() {
	w := *l.written
	keep := 0
	for _, s := range w.segments {
		if s.header.base >= l.synced.at.offset && (s.header.base != l.synced.segment || !s.linked) {
			break
		}
		keep++
	}
	l.refused = append(l.refused, w.segments[keep:]...)
	w.segments = slices.Clone(w.segments[:keep])
	w.last = l.synced.at
	l.torn = keep > 0
	if keep == 0 {
		w.last.pos = 0
	} else {
		s := w.segments[keep-1]
		if s.header.base != l.synced.segment {
			// The segment behind it had nothing in it.
			w.last.pos, w.last.maxTime = s.size, math.MaxInt64 // Which may be less.
		}
		s.index.cut(w.last.pos)
		s.ending.Store(nil)
	}
	l.written = &w
}

// segmentsDoubted tells whether a sync may have failed of what stands before the last segment. The
// log is one that was just opened: what the last one has was written once more.
func (l *diskLog) segmentsDoubted() (bool, error) {
	v := l.visible.Load()
	for i, s := range v.segments[:max(0, len(v.segments)-1)] {
		if doubted, err := s.mayBeDoubted(v.next(i)); doubted || err != nil {
			return doubted, err
		}
	}
	return false, nil
}

// segmentDoubted tells whether a sync may have failed of the segment that an offset is in.
func (l *diskLog) segmentDoubted(offset int64) (bool, error) {
	v := l.visible.Load()
	i := v.find(offset)
	return v.segments[i].mayBeDoubted(v.next(i))
}

// Close ends the log. What is written is synced, whatever the policy, and the index says
// so: the next who opens the log need not look for what a crash has left.
func (l *diskLog) Close() error {
	first := false
	err := l.exclusive(func() error {
		l.mu.Lock()
		first = !l.closed
		l.closed = true
		l.mu.Unlock()
		if !first {
			return nil
		}
		return l.removeRest()
	})
	if !first {
		return nil
	}
	_ = l.acquireSync(context.Background()) // Has no end.
	synced := l.syncWritten(true)
	if synced != nil {
		// What was refused is not to be found by the next who opens the log.
		synced = errors.Join(synced, l.exclusive(l.removeRest))
	}
	l.ended.Store(true)
	var w *logView
	var refused []*segment
	var producers *keptProducers
	var end indexEntry
	_ = l.exclusive(func() error {
		w, refused = l.written, l.refused
		producers = l.finalProducers()
		end = w.last
		end.flags = l.producersFlag()
		return nil
	})
	if n := len(w.segments); n > 0 && err == nil && synced == nil {
		l.keepProducers(producers)
		if end != l.clean && !l.doubtful {
			end.flags |= indexSynced | indexClean
			w.segments[n-1].index.add(end)
			l.flushIndex(w.segments[n-1], true)
		}
	}
	for _, s := range slices.Concat(w.segments, refused) {
		l.letGo(s)
		s.retire()
	}
	l.store.forget(l)
	l.releaseSync()
	return errors.Join(storageError(err), synced)
}
