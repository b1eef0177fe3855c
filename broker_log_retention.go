package robust

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Size is that of the segments' files, without their indexes.
func (l *diskLog) Size() (bytes int64, segments int) {
	v := l.visible.Load()
	for i, s := range v.segments {
		if i < len(v.segments)-1 {
			bytes += s.size
		} else {
			bytes += v.last.pos
		}
	}
	return bytes, len(v.segments)
}

func (l *diskLog) Expire(now time.Time) error {
	l.expireProducers(now)
	return errors.Join(l.retryRemoval(), l.expireSegments(now))
}

// expireSegments removes what is past its retention.
func (l *diskLog) expireSegments(now time.Time) error {
	c := l.config.Load()
	v := l.visible.Load()
	if l.ended.Load() || len(v.segments) == 0 {
		return nil
	}
	if c.RetentionBytes > 0 {
		if err := l.drop(v.excess(c.RetentionBytes)); err != nil {
			return err
		}
	}
	if c.RetentionAge <= 0 {
		return nil
	}
	v = l.visible.Load()
	limit := now.Add(-c.RetentionAge)
	old := 0
	for old < len(v.segments)-1 {
		last, err := l.appendedBy(v, old, now.UnixMilli())
		if err != nil {
			return storageError(err)
		}
		if last >= limit.UnixMilli() || l.appendedSince(v.segments[old], limit) {
			break
		}
		old++
	}
	if old < len(v.segments)-1 || v.last.pos <= segmentHeaderSize ||
		v.last.appendTime >= limit.UnixMilli() || l.appendedSince(v.segments[old], limit) {
		return l.drop(v.segments[old].header.base)
	}
	// The segment that is written stays: another takes its place first. Where there is no room
	// for one, those before it make some.
	if err := l.exclusive(func() error { return l.rollBehind(v.last) }); err != nil {
		return errors.Join(err, l.drop(v.segments[old].header.base))
	}
	return l.drop(v.last.offset)
}

// appendedBy returns a time at which the i-th segment was complete. It says itself when its last
// batch was appended; one that says that this is still to come was written while the clock was
// ahead, and what is known of it is that the next one is younger. It would otherwise keep all
// behind it until that time has come.
func (l *diskLog) appendedBy(v *logView, i int, now int64) (int64, error) {
	for ; i < len(v.segments)-1; i++ {
		e, err := l.endingOf(context.Background(), v, i)
		if err != nil {
			return 0, err
		}
		if e.appendTime <= now {
			return e.appendTime, nil
		}
	}
	return min(v.last.appendTime, now), nil
}

// appendedSince tells whether a segment was written to since t, whatever the clock, which may have
// been put ahead since, has said then. It knows only what was written since the log was opened.
func (l *diskLog) appendedSince(s *segment, t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !s.appended.IsZero() && !s.appended.Before(t)
}

// retryRemoval removes what could not be removed when it was gone from the log.
func (l *diskLog) retryRemoval() error {
	if !l.leaves.Load() {
		return nil
	}
	_ = l.acquireSync(context.Background()) // Has no end.
	defer l.releaseSync()
	if l.ended.Load() {
		return nil // What is left the next who opens the log removes.
	}
	return storageError(l.removeLeft())
}

func (l *diskLog) DeleteBefore(_ context.Context, offset int64) error {
	if l.ended.Load() {
		return ErrClosed
	}
	v := l.visible.Load()
	switch {
	case offset > v.last.offset:
		return fmt.Errorf("%w: offset %d, the high-water mark is %d", ErrOffsetOutOfRange, offset, v.last.offset)
	case offset <= v.start:
		return nil
	}
	// A power failure must not take the log's end back before its start.
	if err := l.syncAll(); err != nil {
		return err
	}
	var rolled error
	err := l.exclusive(func() error {
		if l.isClosed() {
			return ErrClosed
		}
		v := l.visible.Load()
		if offset <= v.start {
			return nil
		}
		if err := l.keepStart(offset); err != nil {
			return err
		}
		l.update(func(v *logView) { v.start = max(v.start, offset) })
		if offset < v.last.offset {
			return nil
		}
		rolled = l.rollBehind(v.last)
		return nil
	})
	if err != nil {
		return err
	}
	// Where there is no room for another segment, those before the last make some.
	return errors.Join(rolled, l.drop(offset))
}

// drop removes the segments that end at offset or before it.
func (l *diskLog) drop(offset int64) error {
	v := l.visible.Load()
	if len(v.segments) == 0 || v.next(0) > offset {
		return nil
	}
	_ = l.acquireSync(context.Background()) // Has no end.
	defer l.releaseSync()
	if l.ended.Load() {
		return nil // The files may be another's by now.
	}
	// What is left must be found again before the rest is gone: after a power failure
	// the log would begin at 0.
	if err := l.syncWritten(true); err != nil {
		return err
	}
	return l.dropSynced(offset)
}

// syncAll syncs what has been written so far.
func (l *diskLog) syncAll() error {
	_ = l.acquireSync(context.Background()) // Has no end.
	defer l.releaseSync()
	if l.ended.Load() {
		return ErrClosed
	}
	return l.syncWritten(true)
}
