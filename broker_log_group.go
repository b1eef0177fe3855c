package robust

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// appendGroup is what is written at once. view is the log as it will be afterwards.
type appendGroup struct {
	log     *diskLog
	jobs    []*logJob
	size    int
	view    logView
	epoch   int32
	at      time.Time
	now     int64 // the same, Unix milliseconds
	indexed int64 // position of the last index entry
	entries []indexEntry
}

// add checks and stamps an append's batches: all of them or none.
func (g *appendGroup) add(j *logJob) error {
	next := g.view.last.offset
	for rest := j.batches; len(rest) > 0; {
		b, more, err := parseBatch(rest)
		if err != nil {
			return err
		}
		if next > math.MaxInt64-int64(b.lastOffsetDelta())-1 {
			return fmt.Errorf("%w: a batch of %d offsets behind offset %d", ErrMalformed, int64(b.lastOffsetDelta())+1, next)
		}
		if b.producer().id >= 0 {
			if repeated, err := g.produced(j, b); err != nil || repeated {
				return err
			}
		}
		b.stamp(next, g.epoch, g.now)
		next = b.nextOffset()
		rest = more
	}
	base, last := g.view.last.offset, &g.view.last
	last.flags = g.log.producersFlag()
	for rest := j.batches; len(rest) > 0; {
		b := cutBatch(rest)
		rest = rest[len(b):]
		if last.pos-g.indexed >= indexInterval {
			g.entries = append(g.entries, *last)
			g.indexed = last.pos
		}
		if last.pos == segmentHeaderSize {
			g.view.first = g.now
		}
		last.offset, last.pos = b.nextOffset(), last.pos+int64(len(b))
		last.epoch, last.appendTime, last.maxTime = g.epoch, g.now, max(last.maxTime, b.maxTime())
	}
	j.result = AppendResult{BaseOffset: base, AppendTime: g.now, Acks: j.acks}
	j.end = last.offset
	g.jobs = append(g.jobs, j)
	g.size += len(j.batches)
	return nil
}

// produced looks at a batch of a producer, which may be stored already: then it is answered
// with the others, and not written.
func (g *appendGroup) produced(j *logJob, b batch) (repeated bool, err error) {
	p := g.log.tracked()
	before, repeated, err := p.states.appendAlone(b, j.batches, g.view.last.offset, g.now)
	switch {
	case err != nil:
		return false, err
	case !repeated:
		if p.silent.Load() == 0 {
			p.silent.Store(g.now)
		}
		return false, nil
	case before.doubted && (j.acks == AcksSynced || g.log.store.policy == SyncAlways):
		return true, inDoubt(before.base)
	}
	j.batches = nil
	j.result = AppendResult{BaseOffset: before.base, AppendTime: before.time, Acks: j.acks, Repeated: true}
	j.end = before.nextOffset()
	g.jobs = append(g.jobs, j)
	return true, nil
}

// producersFlag returns what the index says of the log's end; whoever works calls it.
func (l *diskLog) producersFlag() uint16 {
	if p := l.producers.Load(); p != nil && p.states.len() > 0 {
		return indexProducers
	}
	return 0
}

// tracked returns what the log has of producers, which it may not have had before; whoever
// works calls it.
func (l *diskLog) tracked() *logProducers {
	p := l.producers.Load()
	if p == nil {
		p = &logProducers{}
		l.producers.Store(p)
	}
	return p
}

// abandon has a group fail that could not be written, but for appends of what was stored
// before it: the log ends at end.
func (g *appendGroup) abandon(end int64, err error) {
	if p := g.log.producers.Load(); p != nil {
		p.states.rollback(end)
	}
	g.size = 0
	g.jobs = slices.DeleteFunc(g.jobs, func(j *logJob) bool {
		if j.end <= end {
			return false
		}
		j.fail(err)
		return true
	})
}

// fail ends an append that is not stored.
func (j *logJob) fail(err error) { j.done(AppendResult{Err: storageError(err)}) }

// inDoubt says that an append is stored, and no more.
func inDoubt(base int64) error {
	return fmt.Errorf("%w: stored at offset %d, but not known to outlive a power failure", ErrStorage, base)
}
