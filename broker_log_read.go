package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
)

func (l *diskLog) Read(ctx context.Context, offset int64, maxBytes int) (LogRead, error) {
	for {
		v := l.visible.Load()
		switch {
		case l.ended.Load():
			return LogRead{}, ErrClosed
		case offset < v.start || offset > v.last.offset:
			return LogRead{}, fmt.Errorf("%w: offset %d, the log holds %d to %d", ErrOffsetOutOfRange, offset, v.start, v.last.offset)
		case offset == v.last.offset:
			return LogRead{}, nil
		}
		r, err := l.read(ctx, v, v.find(offset), offset, maxBytes)
		if errors.Is(err, os.ErrNotExist) && l.visible.Load() != v {
			continue // Retention has overtaken the reader.
		}
		astray, err := l.astray(ctx, v, err)
		if astray {
			continue
		}
		if err != nil && l.ended.Load() {
			err = ErrClosed
		}
		return r, storageError(err)
	}
}

// read reads from the i-th segment of v.
func (l *diskLog) read(ctx context.Context, v *logView, i int, offset int64, maxBytes int) (LogRead, error) {
	s, limit := v.segments[i], v.size(i)
	pos, at, err := l.locate(ctx, s, offset)
	if err != nil {
		return LogRead{}, err
	}
	f, err := s.acquire(v.next(i))
	if err != nil {
		return LogRead{}, err
	}
	defer s.log.release()
	maxBytes = max(maxBytes, minRead)
	want := int64(maxBytes)
	if at < offset {
		want += indexInterval
	}
	var w readWindow
	for {
		// From pos on, where a batch begins at offset at.
		size := max(0, min(want, limit-pos))
		err := w.load(l.store, f, pos, size)
		if err == nil && ctx.Err() != nil {
			err = endOf(ctx)
		}
		if err != nil {
			w.release(l.store)
			return LogRead{}, err
		}
		need, fault := w.cut(at, offset, int64(maxBytes), place{limit, v.next(i)})
		if w.to > w.from {
			l.remember(s, w.next, w.pos+int64(w.to))
			return w.lend(l.store), nil
		}
		pos, at = w.pos+int64(w.to), w.next
		want = max(need, int64(maxBytes))
		if int64(len(w.data)) < size && fault == nil && w.pos+int64(len(w.data)) < pos+need {
			fault = damage("the file is shorter than it was")
		}
		if fault == nil && need <= limit-pos {
			continue
		}
		if fault == nil {
			fault = damage("a batch is cut off")
		}
		d, err := s.examine(ctx, f, fault, pos, at, limit, v.next(i))
		if err == nil && offset < d.err.To {
			err = d.err
		}
		if err != nil {
			w.release(l.store)
			return LogRead{}, err
		}
		pos, at = d.end, d.err.To // The damage lies before what is wanted.
	}
}

// readWindow is a part of a segment in memory, and the batches in it that are wanted.
type readWindow struct {
	buf      *[]byte
	data     []byte
	pos      int64 // of data in the segment
	from, to int   // the wanted batches; while there are none, to is behind those that are not
	next     int64 // offset of what begins at to
}

// load reads n bytes of the segment.
func (w *readWindow) load(store *logStore, f file, pos, n int64) error {
	if w.buf == nil || int64(cap(*w.buf)) < n {
		w.release(store)
		w.buf = store.buffer(int(n))
	}
	w.pos, w.from, w.to = pos, 0, 0
	w.data = (*w.buf)[:n]
	got, err := f.ReadAt(w.data, pos)
	if got < len(w.data) && err != nil && !isEOF(err) {
		return err
	}
	w.data = w.data[:got]
	return nil
}

// cut finds the batches from the one that holds offset on, up to maxBytes of them; the
// window begins with a batch at offset at, and the segment ends at end. Where none is found,
// need is how many bytes the next takes, or the error what is wrong with it.
func (w *readWindow) cut(at, offset, maxBytes int64, end place) (need int64, fault error) {
	w.next = at
	for {
		b, need, err := cutWhole(w.data[w.to:], w.next)
		if b == nil {
			return need, err
		}
		if w.to > w.from && int64(w.to-w.from+len(b)) > maxBytes {
			return 0, nil
		}
		w.next = b.nextOffset()
		w.to += len(b)
		if w.next <= offset {
			w.from = w.to
		}
		if w.pos+int64(w.to) == end.pos || w.next == end.offset {
			return batchHeaderSize, nil // What may stand behind it was refused.
		}
	}
}

func (w *readWindow) lend(store *logStore) LogRead {
	return NewLogRead(w.data[w.from:w.to:w.to], func() { w.release(store) })
}

func (w *readWindow) release(store *logStore) {
	if w.buf != nil && cap(*w.buf) <= maxPooledRead {
		store.buffers.Put(w.buf)
	}
	w.buf = nil
}

// remember notes where the next read will begin.
func (l *diskLog) remember(s *segment, offset, pos int64) {
	for i := range l.hints {
		if h := l.hints[i].Load(); h != nil && h.segment == s && h.offset == offset {
			return
		}
	}
	l.hints[l.turn.Add(1)%uint32(len(l.hints))].Store(&readHint{s, offset, pos})
}

// locate returns a position in a segment at which a batch begins, and its offset, at or
// before the batch that holds offset.
func (l *diskLog) locate(ctx context.Context, s *segment, offset int64) (pos, at int64, err error) {
	for i := range l.hints {
		if h := l.hints[i].Load(); h != nil && h.segment == s && h.offset == offset {
			return h.pos, offset, nil
		}
	}
	e, err := l.entryBefore(ctx, s, func(e *indexEntry) bool { return e.offset <= offset })
	return e.pos, e.offset, err
}

// entryBefore returns a place in a segment before what the caller looks for (see
// segmentIndex.search), making the index anew if it is damaged.
func (l *diskLog) entryBefore(ctx context.Context, s *segment, below func(*indexEntry) bool) (indexEntry, error) {
	e, ok, err := s.index.search(below)
	if errors.Is(err, errIndexDamaged) {
		if err = l.rebuildIndex(ctx, s, err); err == nil {
			e, ok, err = s.index.search(below)
		}
	}
	if errors.Is(err, errIndexDamaged) {
		ok, err = false, nil // Its file does not keep what is written to it.
	}
	if !ok {
		e = indexEntry{offset: s.header.base, pos: segmentHeaderSize, maxTime: math.MinInt64}
	}
	return e, err
}

// astray tells whether a damage was met because the index says that a batch begins there:
// where bytes are gone before, or have been put in, it stands elsewhere. The index has then
// been made anew, and who looks again finds what is left.
func (l *diskLog) astray(ctx context.Context, v *logView, met error) (bool, error) {
	var corrupt *CorruptError
	if !errors.As(met, &corrupt) {
		return false, met
	}
	i := slices.IndexFunc(v.segments, func(s *segment) bool { return s.log.path == corrupt.File })
	if i < 0 || v.segments[i].straightened.Load() {
		return false, met
	}
	s := v.segments[i]
	e, ok, err := s.index.search(func(e *indexEntry) bool { return e.pos <= corrupt.Position })
	if err != nil || !ok || e.pos != corrupt.Position || e.offset != corrupt.From {
		return false, met
	}
	f, err := s.acquire(v.next(i))
	if err != nil {
		return false, met
	}
	placed := s.placed(f, place{e.pos, e.offset}, v.size(i))
	s.log.release()
	if placed {
		return false, met // The batch itself is damaged.
	}
	if err := l.rebuildIndex(ctx, s, errIndexDamaged); err != nil {
		return false, err
	}
	s.straightened.Store(true)
	return true, nil
}

// endingOf returns what is known of the end of v's i-th segment.
func (l *diskLog) endingOf(ctx context.Context, v *logView, i int) (*indexEntry, error) {
	if e := v.ending(i); e != nil {
		return e, nil
	}
	s := v.segments[i]
	isEnd := func(e *indexEntry) bool { return e.pos == max(s.size, segmentHeaderSize) && e.offset == v.next(i) }
	e, err := l.entryBefore(ctx, s, func(*indexEntry) bool { return true })
	if err == nil && !isEnd(&e) {
		if err = l.rebuildIndex(ctx, s, errIndexDamaged); err == nil {
			e, err = l.entryBefore(ctx, s, func(*indexEntry) bool { return true })
		}
	}
	if err == nil && !isEnd(&e) {
		path := segmentPath(l.dir, s.header.base, indexSuffix)
		err = &CorruptError{File: path, From: s.header.base, To: v.next(i), Reason: "it cannot be made anew"}
	}
	if err != nil {
		return nil, err
	}
	s.ending.Store(&e)
	return &e, nil
}

// search runs f, which looks for an offset, again where retention has overtaken it, or the
// index has led it astray.
func (l *diskLog) search(ctx context.Context, f func(v *logView) (int64, error)) (int64, error) {
	for {
		if l.ended.Load() {
			return 0, ErrClosed
		}
		v := l.visible.Load()
		offset, err := f(v)
		switch {
		case errors.Is(err, os.ErrNotExist) && l.visible.Load() != v:
			continue
		case err != nil && l.ended.Load():
			return 0, ErrClosed
		}
		astray, err := l.astray(ctx, v, err)
		if !astray {
			return offset, storageError(err)
		}
	}
}

func (l *diskLog) OffsetAt(ctx context.Context, timestamp int64) (int64, error) {
	return l.search(ctx, func(v *logView) (int64, error) {
		for i, s := range v.segments {
			e, err := l.endingOf(ctx, v, i)
			if err != nil {
				return 0, err
			}
			if v.next(i) <= v.start || e.maxTime < timestamp {
				continue
			}
			before, err := l.entryBefore(ctx, s, func(e *indexEntry) bool { return e.maxTime < timestamp })
			if err != nil {
				return 0, err
			}
			offset, ok, err := l.offsetAt(ctx, v, i, before, timestamp)
			if err != nil || ok {
				return offset, err
			}
		}
		return v.last.offset, nil
	})
}

// offsetAt looks for the first record from a place on whose time is timestamp or later.
func (l *diskLog) offsetAt(ctx context.Context, v *logView, i int, from indexEntry, timestamp int64) (offset int64, ok bool, err error) {
	err = v.segments[i].scan(ctx, from, v.size(i), v.next(i), v.start, func(b batch) (bool, error) {
		if b.maxTime() < timestamp || b.nextOffset() <= v.start {
			return true, nil
		}
		records := b.records()
		var m Message
		for {
			more, err := records.next(&m)
			if err != nil || !more {
				return err == nil, err
			}
			if m.Timestamp >= timestamp && m.Offset >= v.start {
				offset, ok = m.Offset, true
				return false, nil
			}
		}
	})
	return offset, ok, err
}

func (l *diskLog) EpochEnd(ctx context.Context, epoch int32) (int64, error) {
	return l.search(ctx, func(v *logView) (int64, error) { return l.epochEnd(ctx, v, epoch) })
}

func (l *diskLog) epochEnd(ctx context.Context, v *logView, epoch int32) (int64, error) {
	if v.last.epoch <= epoch || len(v.segments) == 0 {
		return v.last.offset, nil
	}
	// Epochs rise along the log: the segment in which the next one begins is the last
	// before which none later has ended, or one behind it, if what it had is damaged.
	i := len(v.segments) - 1
	for ; i > 0; i-- {
		e, err := l.endingOf(ctx, v, i-1)
		if err != nil {
			return 0, err
		}
		if 0 < e.epoch && e.epoch <= epoch {
			break // Of a segment that is damaged from end to end nothing is known.
		}
	}
	for end := int64(-1); i < len(v.segments); i++ {
		before, err := l.entryBefore(ctx, v.segments[i], func(e *indexEntry) bool { return e.epoch <= epoch })
		if err != nil {
			return 0, err
		}
		err = v.segments[i].scan(ctx, before, v.size(i), v.next(i), v.start, func(b batch) (bool, error) {
			if b.epoch() > epoch {
				end = b.baseOffset()
			}
			return end < 0, nil
		})
		if err != nil || end >= 0 {
			return max(end, v.start), err
		}
	}
	return v.last.offset, nil
}

// rebuildIndex makes the index of a segment anew from the segment.
func (l *diskLog) rebuildIndex(ctx context.Context, s *segment, cause error) error {
	if err := l.acquireSync(ctx); err != nil {
		return err
	}
	defer l.releaseSync()
	v := l.visible.Load()
	i := slices.Index(v.segments, s)
	if i < 0 {
		return &os.PathError{Op: "index", Path: s.log.path, Err: os.ErrNotExist}
	}
	l.store.warn.warn("index is made anew", l.name, "log", l.name, "file", s.log.path, "reason", cause)
	limit, next := v.size(i), v.next(i)
	entries, err := indexSegment(ctx, s, limit, next)
	if err != nil {
		return err
	}
	// What the log knows no more now it need not have known before.
	entries[len(entries)-1].flags |= v.last.flags & indexProducers
	if s.doubted {
		entries[len(entries)-1].flags |= indexDoubted
	}
	end := entries[len(entries)-1]
	if base := s.header.base; base > l.synced.segment || base == l.synced.segment && l.synced.at.pos != end.pos {
		// It is not synced up to its end.
		entries = entries[:len(entries)-1]
		if at := l.synced.at; l.synced.segment == s.header.base && at.pos >= segmentHeaderSize { // Else nothing is.
			at.flags = at.flags&indexProducers | indexSynced
			n, _ := slices.BinarySearchFunc(entries, at.pos, func(e indexEntry, pos int64) int { return cmp.Compare(e.pos, pos+1) })
			entries = slices.Insert(entries, n, at)
		}
	}
	path := segmentPath(l.dir, s.header.base, indexSuffix)
	data := s.header.encode(indexMagic)
	for i := range entries {
		data = entries[i].append(data)
	}
	if err := l.store.cache.givingWay(func() error { return replaceFile(l.store.files, path, data) }); err != nil {
		return err
	}
	flushed := int64(segmentHeaderSize)
	if n := len(entries); n > 0 {
		flushed = entries[n-1].pos
	}
	s.index.replace(s.indexFile(l.dir), int64(len(entries)), flushed)
	return nil
}

// indexSegment returns the entries of a segment's index. The last one is at its end.
func indexSegment(ctx context.Context, s *segment, limit, next int64) ([]indexEntry, error) {
	f, err := s.acquire(next)
	if err != nil {
		return nil, err
	}
	defer s.log.release()
	b := batchScanner{f: f, pos: segmentHeaderSize, offset: s.header.base, limit: limit}
	end := indexEntry{offset: s.header.base, pos: segmentHeaderSize, maxTime: math.MinInt64}
	var entries []indexEntry
	indexed := end.pos
	for {
		at, err := b.next()
		if b.offset > next {
			err = io.EOF // It was refused.
		}
		var d damage
		switch {
		case isEOF(err):
			end.offset, end.pos, end.flags = next, max(limit, segmentHeaderSize), indexSynced
			return append(entries, end), nil
		case errors.As(err, &d):
			h, err := s.examine(ctx, f, d, b.pos, b.offset, limit, next)
			if err != nil {
				return nil, err
			}
			b = batchScanner{f: f, pos: h.end, offset: h.err.To, limit: limit}
			if h.end < limit {
				// Those who read find by this entry where batches go on.
				entry := end
				entry.offset, entry.pos = b.offset, b.pos
				entries = append(entries, entry)
				indexed = b.pos
			}
			continue
		case err != nil:
			return nil, err
		}
		if start := b.pos - int64(len(at)); start-indexed >= indexInterval {
			entry := end
			entry.offset, entry.pos = at.baseOffset(), start
			entries = append(entries, entry)
			indexed = start
		}
		end.epoch, end.appendTime, end.maxTime = at.epoch(), at.appendTime(), max(end.maxTime, at.maxTime())
	}
}
