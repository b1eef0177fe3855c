package robust

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// maxProducerScan is how much of a log is read before the frontier, at most, to find the
// batches of producers: where it was to be kept what is known of them, and cannot be read. A
// batch of which its producer does not know whether it is stored is one of its last, and
// not old; whoever has written nothing in that part has to begin a new epoch.
const maxProducerScan = 32 << 20

// producerRecovery finds out what a log that is opened knows of producers.
type producerRecovery struct {
	files []int64         // that have it, by offset
	tail  *producerStates // of the batches behind the frontier; nil if there are none
}

// saw takes in a batch behind the frontier, and returns what an index says of it.
func (r *producerRecovery) saw(b batch) (flag uint16) {
	if b.producer().id < 0 {
		return 0
	}
	if r.tail == nil {
		r.tail = &producerStates{}
	}
	r.tail.replayBatch(b, false)
	return indexProducers
}

// restore is called when the rest of the log is in order, and all behind the frontier was read;
// from the offset again on it was written once more, and synced.
func (r *producerRecovery) restore(ctx context.Context, l *diskLog, frontier indexEntry, again int64) error {
	before := frontier.flags&indexProducers != 0
	if err := r.clear(l, before); err != nil {
		return err
	}
	p := &logProducers{files: r.files}
	if before && len(l.written.segments) > 0 {
		if err := r.restoreBefore(ctx, l, frontier, p); err != nil {
			return err
		}
	}
	states := &p.states
	if r.tail != nil {
		states.replayStates(r.tail, p.kept.at.offset)
	}
	states.trust(again)
	states.expire(time.Now().UnixMilli())
	p.silent.Store(states.silentSince())
	if states.len() > 0 || len(p.files) > 0 {
		l.producers.Store(p)
	}
	return nil
}

// clear removes files that are of no use: all, if before the frontier there are no producers,
// and those of offsets that the log does not have any more. They must be gone before those
// offsets are given again.
func (r *producerRecovery) clear(l *diskLog, before bool) error {
	end := l.written.last.offset
	slices.Sort(r.files)
	stale := slices.DeleteFunc(slices.Clone(r.files), func(offset int64) bool { return before && offset <= end })
	if len(stale) == 0 {
		return nil
	}
	for _, offset := range stale {
		if err := l.store.files.remove(segmentPath(l.dir, offset, producersSuffix)); err != nil {
			return err
		}
	}
	r.files = slices.DeleteFunc(r.files, func(offset int64) bool { return slices.Contains(stale, offset) })
	return l.store.cache.syncDir(l.dir)
}

// restoreBefore finds out what was known at the frontier, or later: p.kept says where. It begins
// with the newest file that can be used.
func (r *producerRecovery) restoreBefore(ctx context.Context, l *diskLog, frontier indexEntry, p *logProducers) error {
	v := l.written
	// Where the log may be read from on: not before it begins, nor too much.
	first := sync.OnceValues(func() (syncPoint, error) { return l.placeBefore(ctx, v, frontier, maxProducerScan) })
	for _, offset := range slices.Backward(r.files) {
		if offset < frontier.offset {
			if at, err := first(); err != nil || offset < at.at.offset {
				break
			}
		}
		h := l.header
		h.base = offset
		states, err := readProducers(l.store.files, l.dir, h)
		var d damage
		switch {
		case errors.As(err, &d):
			path := segmentPath(l.dir, offset, producersSuffix)
			l.store.warn.warn("what was known of producers is damaged", l.name, "log", l.name, "file", path, "reason", d)
			continue
		case err != nil:
			return err
		}
		p.states, p.kept = *states, l.placeOf(v, offset)
		return l.replay(ctx, v, &p.states, offset, frontier.offset)
	}
	at, err := first()
	if err != nil {
		return err
	}
	p.kept = at
	return l.replay(ctx, v, &p.states, at.at.offset, frontier.offset)
}

// placeOf returns about where an offset is.
func (l *diskLog) placeOf(v *logView, offset int64) syncPoint {
	p := syncPoint{v.segments[max(0, v.find(offset))].header.base, indexEntry{offset: offset, pos: segmentHeaderSize}}
	if offset == v.last.offset {
		p.at = v.last
	}
	return p
}

// placeBefore returns the place that is about n bytes before another, or that at which the
// log begins.
func (l *diskLog) placeBefore(ctx context.Context, v *logView, at indexEntry, n int64) (syncPoint, error) {
	begin := v.segments[0].header.base
	if at.offset <= begin {
		return syncPoint{begin, indexEntry{offset: at.offset, pos: segmentHeaderSize}}, nil
	}
	i := v.find(at.offset - 1)
	pos := min(at.pos, v.size(i))
	for ; i > 0 && pos-segmentHeaderSize < n; i-- {
		n -= pos - segmentHeaderSize
		pos = v.size(i - 1)
	}
	e, err := l.entryBefore(ctx, v.segments[i], func(e *indexEntry) bool { return e.pos <= max(pos-n, segmentHeaderSize) })
	return syncPoint{v.segments[i].header.base, e}, err
}

// replay takes in the batches from one offset to another.
func (l *diskLog) replay(ctx context.Context, v *logView, ps *producerStates, from, to int64) error {
	for i := max(0, v.find(from)); i < len(v.segments) && v.segments[i].header.base < to && from < to; i++ {
		s := v.segments[i]
		doubted, err := s.mayBeDoubted(min(v.next(i), to))
		if err != nil {
			return err
		}
		e, err := l.entryBefore(ctx, s, func(e *indexEntry) bool { return e.offset <= from })
		if err != nil {
			return err
		}
		// What is damaged nobody can read; it is passed over.
		err = s.scan(ctx, e, v.size(i), v.next(i), math.MaxInt64, func(b batch) (bool, error) {
			if b.baseOffset() >= from {
				ps.replayBatch(b, doubted)
			}
			return b.nextOffset() < to, nil
		})
		var corrupt *CorruptError
		if err != nil && !errors.As(err, &corrupt) {
			return err
		}
	}
	return nil
}
