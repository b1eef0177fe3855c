package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cutSuffix is added to the names of segments that recovery takes out of a log.
const cutSuffix = ".cut"

// openLog opens a log, whatever a crash has left of it. All up to the frontier, the last
// place that an index says is synced, has been on stable storage: what is damaged there
// stays, and is told to those who read it. What lies behind the frontier is looked at,
// and kept up to the first byte that is not of a whole batch in its place: a write that
// the crash has torn, or one that was lost before another that was not. So what a power
// failure takes is the end of the log, never something from its middle.
func openLog(ctx context.Context, store *logStore, dir, name string, h segmentHeader, c LogConfig, events logEvents) (*diskLog, error) {
	l := &diskLog{
		store: store, dir: dir, name: name, header: h, events: events,
		syncing: make(chan struct{}, 1), hurry: make(chan struct{}, 1), noted: segmentHeaderSize, epoch: max(1, store.epoch),
	}
	l.sync = l.syncNow
	l.config.Store(&c)
	v := &logView{last: indexEntry{maxTime: math.MinInt64}}
	infos, err := listLog(store.files, dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		// Made with the first append.
		l.written = v
		l.visible.Store(v)
		return l, nil
	case err != nil:
		return nil, storageError(err)
	}
	l.made = true
	r := recovery{log: l, view: v, again: math.MaxInt64}
	if err := r.collect(infos); err != nil {
		return nil, storageError(err)
	}
	err = r.recover(ctx)
	if err == nil {
		err = r.producers.restore(ctx, l, r.frontier, r.again)
	}
	if err != nil {
		for _, s := range l.written.segments {
			l.letGo(s)
			s.retire()
		}
		return nil, storageError(err)
	}
	return l, nil
}

// listLog returns what is in the directory of a log, all of which can be opened.
func listLog(files fileSystem, dir string) ([]fileInfo, error) {
	infos, err := files.list(dir)
	for _, info := range infos {
		if info.odd {
			return nil, &os.PathError{Op: "open", Path: filepath.Join(dir, info.name), Err: errIrregular}
		}
	}
	return infos, err
}

// recovery is a log being opened.
type recovery struct {
	log  *diskLog
	view *logView
	// The frontier: an entry of the index of the segment at.
	at       int
	frontier indexEntry
	known    bool  // there is one
	entries  int64 // of that index, up to the frontier

	// doubted: a sync has failed of what the segment at has before the frontier.
	doubted bool
	// again is the offset from which on all was written once more, and synced.
	again int64

	gone *CorruptError // the last segment, if look has found that it is missing

	lost *segment // has lost what was synced; nothing more may be written to it

	producers producerRecovery
}

// collect finds the log's segments, and clears away what was never finished.
func (r *recovery) collect(infos []fileInfo) error {
	l, v := r.log, r.view
	files := l.store.files
	var indexes []string
	for _, info := range infos {
		path := filepath.Join(l.dir, info.name)
		h := l.header
		var ok bool
		switch h.base, ok = parseSegmentName(info.name, segmentSuffix); {
		case ok:
			s := newSegment(l.store.cache, l.dir, h)
			s.size, s.linked, s.complete = info.size, true, true
			v.segments = append(v.segments, s)
		case strings.HasSuffix(info.name, producersSuffix):
			if offset, ok := parseSegmentName(info.name, producersSuffix); ok {
				r.producers.files = append(r.producers.files, offset)
			}
		case strings.HasSuffix(info.name, indexSuffix):
			indexes = append(indexes, info.name)
		case strings.HasSuffix(info.name, temporarySuffix):
			if err := files.remove(path); err != nil {
				return err
			}
		case info.name == startName:
			var err error
			if v.start, err = readStart(files, path, l.header); err != nil {
				return err
			}
		}
	}
	r.sortSegments()
	lost, err := l.missingEnd(v, indexes)
	if err != nil {
		return err
	}
	if lost != nil {
		s, err := l.standIn(lost.From)
		if err != nil {
			return err
		}
		v.segments = append(v.segments, s)
	}
	for _, name := range indexes {
		base, ok := parseSegmentName(name, indexSuffix)
		if !ok || !slices.ContainsFunc(v.segments, func(s *segment) bool { return s.header.base == base }) {
			if err := files.remove(filepath.Join(l.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// recover brings the log into the state in which it goes on.
func (r *recovery) recover(ctx context.Context) error {
	l, v := r.log, r.view
	l.written = v
	l.visible.Store(v)
	if len(v.segments) == 0 {
		v.last.offset = v.start
		return nil
	}
	if err := r.dropRemoved(); err != nil {
		return err
	}
	if err := r.findFrontier(); err != nil {
		return err
	}
	if base := v.segments[0].header.base; base > v.start {
		if !r.known {
			// Their names have outlived what stood before them.
			return r.takeAllOut()
		}
		l.store.warn.warn("log has lost its begin", l.name, "log", l.name, "dir", l.dir, "from", v.start, "to", base)
		v.start = base
	}
	last := v.segments[len(v.segments)-1]
	clean, err := r.wasClosed(last)
	if err != nil {
		return err
	}
	r.doubted = r.frontier.flags&indexDoubted != 0
	r.frontier.flags &= indexProducers
	if !r.known && len(r.producers.files) > 0 {
		r.frontier.flags = indexProducers // There may be.
	}
	v.last = r.frontier
	l.synced = syncPoint{v.segments[r.at].header.base, v.last}
	l.noted = v.last.pos
	if clean {
		l.clean, l.named, last.complete = v.last, true, false
		v.first = v.last.appendTime // Near enough: it bounds the age of what is in the segment.
		if err := r.trimIndex(last, r.entries, v.last.pos); err != nil {
			return err
		}
	} else if err := r.readUnclean(ctx); err != nil {
		return err
	}
	l.epoch = max(l.epoch, v.last.epoch+1)
	if v.last.offset < v.start {
		// What was deleted has been lost: its offsets are not given again.
		v.last.offset = v.start
		l.sealed = true
	}
	if n := len(v.segments); n > 0 && v.segments[n-1] == r.lost {
		l.sealed = true
	}
	if l.sealed {
		if err := r.rollBehindLoss(); err != nil {
			return err
		}
	} else if clean {
		return nil
	}
	return r.sync()
}

// readUnclean reads what stands behind the frontier of a log that was not closed.
func (r *recovery) readUnclean(ctx context.Context) error {
	for i, s := range r.view.segments[r.at:] {
		s.complete = false
		s.linked = i == 0 && r.known
	}
	r.log.named = r.known
	if err := r.readTail(ctx); err != nil {
		return err
	}
	// What was taken out must not come back behind what is appended now, and the names of
	// what is there may have been made just before a crash.
	return r.log.syncName()
}

// wasClosed tells whether the log ends where it was closed.
func (r *recovery) wasClosed(last *segment) (bool, error) {
	if r.at != len(r.view.segments)-1 || r.frontier.flags&indexClean == 0 || r.frontier.pos != last.size {
		return false, nil
	}
	return r.belongs(last)
}

// look finds the segments and the frontier, and changes nothing.
func (r *recovery) look() error {
	infos, err := listLog(r.log.store.files, r.log.dir)
	if err != nil {
		return storageError(err)
	}
	var indexes []string
	for _, info := range infos {
		h := r.log.header
		var ok bool
		if h.base, ok = parseSegmentName(info.name, segmentSuffix); ok {
			s := newSegment(r.log.store.cache, r.log.dir, h)
			s.size = info.size
			r.view.segments = append(r.view.segments, s)
		} else if strings.HasSuffix(info.name, indexSuffix) {
			indexes = append(indexes, info.name)
		}
	}
	r.sortSegments()
	if r.gone, err = r.log.missingEnd(r.view, indexes); err != nil {
		return storageError(err)
	}
	for len(r.view.segments) > 1 && r.view.segments[1].header.base <= r.view.start {
		r.view.segments = r.view.segments[1:]
	}
	if len(r.view.segments) == 0 {
		return nil
	}
	return storageError(r.findFrontier())
}

func (r *recovery) sortSegments() {
	slices.SortFunc(r.view.segments, func(a, b *segment) int { return cmp.Compare(a.header.base, b.header.base) })
}

// dropRemoved removes the segments before the log's start: a power failure may have
// brought them back.
func (r *recovery) dropRemoved() error {
	l, v := r.log, r.view
	for len(v.segments) > 1 && v.segments[1].header.base <= v.start {
		s := v.segments[0]
		v.segments = v.segments[1:]
		if err := l.removeSegment(s); err != nil {
			return err
		}
	}
	return nil
}

// sync syncs what was found behind the frontier. Where that fails nothing is given up: it
// may all have been on stable storage before.
func (r *recovery) sync() error {
	l, v := r.log, r.view
	for i := r.at; i < len(v.segments); i++ {
		s, end, last := v.segments[i], v.ending(i), i == len(v.segments)-1
		if s.header.base != l.synced.segment {
			l.noted = segmentHeaderSize
		}
		if err := r.writeAgain(s, i, end.pos); err != nil {
			return err
		}
		if err := l.syncSegment(s); err != nil {
			return err
		}
		// What a failed sync has lost of it does not come back: only what is left is certain.
		s.doubted = i == r.at && r.doubted
		if i == r.at && i > 0 {
			if err := r.bridgeDoubt(v.segments[i-1], s, *end); err != nil {
				return err
			}
		}
		l.synced = syncPoint{s.header.base, *end}
		l.note(s, *end, !last)
		s.complete = !last
		l.settle(s)
	}
	return nil
}

// bridgeDoubt makes a bridge behind a segment that may be in doubt: that an index has said that the
// log goes on behind it may be in the system's memory only.
func (r *recovery) bridgeDoubt(before, s *segment, end indexEntry) error {
	doubted, err := before.mayBeDoubted(s.header.base)
	if err != nil || !doubted {
		return err
	}
	r.log.gap = before
	_ = r.log.bridge(s, end) // Else with the next sync.
	return nil
}

// writeAgain writes what a segment has behind the frontier once more, before it is synced. A sync
// that has failed may have left a process before this one with bytes that can be read and are not
// on the disk, and that the system takes for written, so that a sync alone would say that they
// last. With SyncNever it would be a whole segment, of which mostly nothing was promised: that is
// done only in a log whose owner wants to hear of doubts.
func (r *recovery) writeAgain(s *segment, i int, end int64) error {
	if r.log.store.policy == SyncNever && !r.doubted && r.log.events.doubted == nil || s == r.lost {
		return nil
	}
	from, offset := int64(0), s.header.base
	if i == r.at && r.known && !r.doubted {
		from, offset = r.frontier.pos, r.frontier.offset
	}
	r.again = min(r.again, offset)
	return s.writeAgain(from, end)
}

// findFrontier looks for the last place that is known to be synced.
func (r *recovery) findFrontier() error {
	v := r.view
	for i := len(v.segments) - 1; i >= 0; i-- {
		e, entries, err := v.segments[i].lastSynced()
		if err != nil {
			return err
		}
		if entries > 0 {
			r.frontier, r.entries, r.at, r.known = e, entries, i, true
			return nil
		}
	}
	r.frontier = indexEntry{offset: v.segments[0].header.base, pos: segmentHeaderSize, maxTime: math.MinInt64}
	return nil
}

// readTail reads what lies behind the frontier, and cuts off what is not whole.
func (r *recovery) readTail(ctx context.Context) error {
	v := r.view
	end := r.frontier
	for i := r.at; ; i++ {
		s := v.segments[i]
		if i > r.at {
			end.pos, end.maxTime, r.entries = segmentHeaderSize, math.MinInt64, 0
		}
		fault, err := r.readSegment(ctx, s, &end, i > r.at)
		if err != nil {
			return err
		}
		v.last = end
		if fault != nil || i == len(v.segments)-1 || v.segments[i+1].header.base != end.offset {
			return r.cut(i, fault)
		}
		s.size = end.pos
		ending := end
		s.ending.Store(&ending)
	}
}

// rollBehindLoss begins a segment where nothing more may be written to the last one. If that
// begins at the same offset, of which all is lost, it makes way.
func (r *recovery) rollBehindLoss() error {
	v := r.view
	n := len(v.segments) - 1
	if n < 0 || v.segments[n].header.base < v.last.offset {
		return r.beginSegment()
	}
	if err := r.takeOut(v.segments[n]); err != nil {
		return err
	}
	v.segments = v.segments[:n]
	if n == 0 {
		return r.beginSegment()
	}
	// Of the one before it no more is known than where it ends.
	before := v.segments[n-1]
	ending := before.ending.Load()
	v.last.pos = before.size
	err := r.beginSegment()
	before.ending.Store(ending)
	return err
}

// beginSegment begins a segment that only recovery syncs: nobody else is to know of the log.
func (r *recovery) beginSegment() error {
	_, err := r.log.beginSegment()
	r.view = r.log.written
	return err
}

// readSegment reads a segment from end on, which it moves behind the last whole batch. The
// fault is what is wrong there. A fresh segment is one of which nothing is known; without
// a batch it may turn out not to be one at all, and end at position 0.
func (r *recovery) readSegment(ctx context.Context, s *segment, end *indexEntry, fresh bool) (fault, err error) {
	if ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	if err := r.trimIndex(s, r.entries, end.pos); err != nil {
		return nil, err
	}
	switch ours, err := r.belongs(s); {
	case err != nil:
		return nil, err
	case !ours && !fresh && r.known:
		r.loseEnd(s, end)
		return nil, nil
	case !ours:
		end.pos = 0
		return damageForeign, nil
	}
	f, err := s.acquire(end.offset)
	if err != nil {
		return nil, err
	}
	defer s.log.release()
	if !fresh && r.known && s.size < end.pos {
		r.loseEnd(s, end)
		return nil, nil
	}
	var header damage
	if err := s.header.check(f, s.log.path, segmentMagic); errors.As(err, &header) && (fresh || !r.known && s.size < segmentHeaderSize) {
		end.pos = 0
		return header, nil
	}
	b := batchScanner{f: f, pos: end.pos, offset: end.offset, limit: s.size}
	// A segment ends where the next begins. What still stands behind that was refused: the
	// segment could not be synced, and has been cut off there.
	bound := r.bound(s)
	indexed := end.pos
	for {
		if end.offset == bound {
			return nil, s.cutAt(end.pos)
		}
		next, err := b.next()
		var d damage
		switch {
		case isEOF(err):
			return nil, nil
		case errors.As(err, &d):
			return d, nil
		case err != nil:
			return nil, err
		}
		if next.epoch() < end.epoch {
			return damage(fmt.Sprintf("a batch of epoch %d behind one of %d", next.epoch(), end.epoch)), nil
		}
		if end.pos-indexed >= indexInterval {
			s.index.add(*end)
			indexed = end.pos
		}
		if end.pos == segmentHeaderSize {
			r.view.first = next.appendTime()
		}
		*end = indexEntry{
			offset: next.nextOffset(), pos: b.pos, epoch: next.epoch(),
			maxTime: max(end.maxTime, next.maxTime()), appendTime: next.appendTime(),
			flags: end.flags | r.producers.saw(next),
		}
	}
}

// belongs tells whether a segment's file is one of this place in this log: nothing may be
// written to another.
func (r *recovery) belongs(s *segment) (bool, error) {
	_, err := s.acquire(s.header.base)
	var foreign *CorruptError
	if errors.As(err, &foreign) {
		return false, nil
	}
	if err == nil {
		s.log.release()
	}
	return err == nil, err
}

// loseEnd goes on behind a segment that has lost what was synced. Its offsets are not given
// again: readers have seen them.
func (r *recovery) loseEnd(s *segment, end *indexEntry) {
	l := r.log
	l.store.warn.warn("log has lost messages", l.name, "log", l.name, "file", s.log.path,
		"size", s.size, "expected", end.pos, "offset", end.offset)
	end.pos = max(s.size, segmentHeaderSize)
	r.lost = s
}

// bound returns the offset at which the segment behind s begins; -1 if there is none.
func (r *recovery) bound(s *segment) int64 {
	for i, other := range r.view.segments {
		if other == s && i+1 < len(r.view.segments) {
			return r.view.segments[i+1].header.base
		}
	}
	return -1
}

// trimIndex has the index of a segment end with the given number of entries. It is made
// when it is needed.
func (r *recovery) trimIndex(s *segment, entries, flushed int64) error {
	s.index.count, s.index.flushed = entries, flushed
	c := s.index.file.Load()
	f, err := c.acquire(os.O_RDONLY)
	switch {
	case errors.Is(err, os.ErrNotExist):
		s.index.count, s.index.flushed = 0, segmentHeaderSize
		return nil
	case errors.Is(err, errIndexDamaged):
		s.index.count, s.index.flushed = 0, segmentHeaderSize
		return r.log.store.files.remove(c.path)
	case err != nil:
		return err
	}
	count, err := indexCount(f)
	c.release()
	if err != nil || count == entries {
		return err
	}
	out, err := r.log.store.files.open(c.path, os.O_RDWR)
	if err != nil {
		return err
	}
	return errors.Join(out.truncate(segmentHeaderSize+entries*indexEntrySize), out.Close())
}

// cut ends the log with the i-th segment, at v.last, and says what that costs.
func (r *recovery) cut(i int, fault error) error {
	l, v := r.log, r.view
	keep := i + 1
	if v.last.pos == 0 {
		keep = i // Not even its header is whole: the log ends with the one before.
	}
	for _, s := range v.segments[keep:] {
		if err := r.takeOut(s); err != nil {
			return err
		}
	}
	v.segments = v.segments[:keep]
	switch {
	case keep == 0:
		return nil
	case keep == i:
		v.last = *v.segments[i-1].ending.Load()
		return nil
	case fault == nil:
		return nil
	}
	s := v.segments[i]
	l.store.warn.warn("end of the log was not whole and is cut off", l.name, "log", l.name, "file", s.log.path,
		"position", v.last.pos, "bytes", s.size-v.last.pos, "offset", v.last.offset, "reason", fault)
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	return f.truncate(v.last.pos)
}

// takeAllOut leaves the log empty.
func (r *recovery) takeAllOut() error {
	v := r.view
	v.last.offset = v.start
	for _, s := range v.segments {
		if err := r.takeOut(s); err != nil {
			return err
		}
	}
	v.segments = nil
	return r.log.syncName()
}

// takeOut takes a segment out of the log that cannot follow on what is left. Its file
// stays, under another name.
func (r *recovery) takeOut(s *segment) error {
	l := r.log
	s.retire()
	files := l.store.files
	if s.size <= segmentHeaderSize {
		// It was just begun.
		return l.removeSegment(s)
	}
	l.store.warn.warn("segment does not follow on the end of the log and is taken out", l.name, "log", l.name,
		"file", s.log.path, "bytes", s.size, "offset", r.view.last.offset)
	err := files.remove(segmentPath(l.dir, s.header.base, indexSuffix))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return files.rename(s.log.path, s.log.path+cutSuffix)
}
