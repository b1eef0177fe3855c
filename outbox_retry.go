package robust

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"
)

// failedLocked decides what becomes of a batch that was not stored, or may not have been:
// it is sent again, or done with, and then in the list.
func (q *outQueue) failedLocked(b *outBatch, err error) (done []*outBatch) {
	o := q.box
	b.last = err
	again, wait := true, time.Duration(0)
	switch {
	case errors.Is(err, ErrOutOfOrderSequence), errors.Is(err, ErrFenced) && b.producer.id >= 0:
		// It was not stored. Is it because of a batch before it, that is still to come?
		if q.firstLocked(b) {
			q.renumber = true
			b.refusals++
			again = b.refusals <= maxRenumbers
		}
	case connectionFault(err):
		b.inDoubt = b.inDoubt || !unsent(err)
		b.faults++
		wait = faultBackoff.before(b.faults)
	case !retriable(err):
		// An answer that makes no sense does not tell that nothing was stored.
		b.inDoubt = b.inDoubt || errors.Is(err, ErrMalformed) && !refused(err)
		if q.anotherWayLocked(b, err) {
			if !b.isWantedLocked() {
				err = context.Canceled // For those that nobody waits for.
			}
			b.fail(err)
			return []*outBatch{b}
		}
		again = false
	default:
		b.refusals++
		again = b.refusals <= o.cfg.retries
		wait = backoff{o.cfg.retryBackoff, o.cfg.deliveryTimeout}.before(b.refusals)
	}
	switch {
	case again && o.stopped:
		err = &waitError{what: sendNameOf(q.topic.name, q.partition), end: ErrClosed, last: err}
	case again && !b.isWantedLocked():
		b.entries = slices.DeleteFunc(b.entries, func(e entry) bool { return e.to == nil }) // They have been told.
		b.fail(context.Canceled)
		return []*outBatch{b}
	case again:
		o.client.metrics.Producer.recordRetry(err)
		q.again = append(q.again, b)
		if wait > 0 {
			q.pauseLocked(wait)
		}
		return nil
	}
	if b.producer.id >= 0 && !b.inDoubt && q.firstLocked(b) {
		q.renumber = true // What comes behind it would be refused.
	}
	b.fail(err)
	return []*outBatch{b}
}

// anotherWayLocked has the messages of a batch that was refused go another way, if there
// is one.
func (q *outQueue) anotherWayLocked(b *outBatch, err error) bool {
	if b.inDoubt {
		return false // An earlier try may have stored it.
	}
	if errors.Is(err, ErrPartitionNotFound) {
		return q.rerouteLocked(b, err)
	}
	rest := q.splitLocked(b, err)
	if rest == nil {
		return false
	}
	if q.firstLocked(b) {
		q.renumber = true
	}
	q.again = append(q.again, rest...)
	return true
}

// rerouteLocked has partitions chosen anew for messages whose partition was chosen by what is
// out of date. It tells whether there are any; the others stay in the batch.
func (q *outQueue) rerouteLocked(b *outBatch, err error) bool {
	source, failed := b.source()
	if failed != nil || q.partition == PartitionAny || !b.isMovableLocked() {
		return false
	}
	if q.firstLocked(b) {
		q.renumber = true
	}
	q.topic.last = err
	records := source.records()
	for i := range b.entries {
		var m Message
		if more, err := records.next(&m); err != nil || !more {
			break // It is of our own making.
		}
		if b.wanted(i) && b.entries[i].movable() {
			e := b.entries[i]
			e.moves++
			m.Topic, m.Partition = q.topic.name, PartitionAny
			q.box.stage(q.topic, staged{m.Clone(), e, b.number + int64(i)}, b.wave)
			b.entries[i].to = nil
		}
	}
	return true
}

// refused tells whether err is a broker's answer that says no.
func refused(err error) bool {
	var be *BrokerError
	return errors.As(err, &be)
}

// maxRenumbers is how often a batch is given new numbers.
const maxRenumbers = 10

// firstLocked tells that no batch before b is without its answer or to be sent again.
func (q *outQueue) firstLocked(b *outBatch) bool {
	before := func(other *outBatch) bool { return other != b && other.number < b.number }
	return !slices.ContainsFunc(q.flying, before) && !slices.ContainsFunc(q.again, before)
}

// splitLocked makes several batches of one that was refused and not stored, so that a
// message that cannot be stored does not keep others from it; nil if that would not help.
func (q *outQueue) splitLocked(b *outBatch, err error) []*outBatch {
	n := len(b.entries)
	switch {
	case n == 1:
		return nil
	case errors.Is(err, ErrMessageTooLarge), errors.Is(err, ErrInvalidRequest), errors.Is(err, ErrMalformed):
	default:
		return nil
	}
	half := n / 2
	first := q.rebuildLocked(b, func(i int) bool { return i < half && b.wanted(i) }, q.batchBytes())
	return append(first, q.rebuildLocked(b, func(i int) bool { return i >= half && b.wanted(i) }, q.batchBytes())...)
}

// pauseLocked sends nothing for a while.
func (q *outQueue) pauseLocked(wait time.Duration) {
	if q.pausing {
		return
	}
	q.pausing = true
	time.AfterFunc(wait, func() {
		o := q.box
		o.mu.Lock()
		q.pausing = false
		q.resumeLocked()
		o.mu.Unlock()
		o.look(q)
	})
}

// resumeLocked puts what is to be sent again before all that waits, once nothing is under
// way any more.
func (q *outQueue) resumeLocked() {
	if len(q.flying) > 0 || q.pausing {
		return
	}
	if len(q.again) > 0 {
		slices.SortStableFunc(q.again, func(a, b *outBatch) int { return cmp.Compare(a.number, b.number) })
		q.pending = append(q.again, q.pending...)
		q.again = nil
	}
	if q.renumber {
		q.renumberLocked()
	}
	q.routeLocked()
}

// renumberLocked begins a new epoch: what is to be sent again was not stored, since what
// came before it was not.
func (q *outQueue) renumberLocked() {
	q.renumber = false
	q.sequence = 0
	if q.epoch++; q.epoch < 0 {
		// All of its epochs are used up.
		q.id, q.epoch = 0, 0
		q.box.dropIDLocked()
	}
	for _, b := range q.pending {
		if b.producer.id < 0 {
			continue
		}
		b.producer = noSequence
		if b.encoded != nil {
			// A writer may still be at it.
			b.encoded = slices.Clone(b.encoded)
			b.reusable = false
		}
	}
}

// dropIDLocked has the next sender that needs a producer ID ask for another.
func (o *outbox) dropIDLocked() {
	o.id = 0
	for _, s := range o.senders {
		if s.idempotent {
			s.conn = nil // It asks when it connects, which is to the same connection.
		}
	}
}

// sortLocked makes batches of what was stored of b, message by message, and of what has
// failed, and has sent again what may yet succeed, together.
func (q *outQueue) sortLocked(b *outBatch, results []singleResult) (done []*outBatch) {
	o := q.box
	stored := o.tellingLocked(q.of(), nil, b.wave)
	stored.queue, stored.receipts = q, []Receipt{}
	var faults, refusals error // one of each
	var final []error          // of each that is not sent again
	for i := range b.entries {
		e, err := b.entries[i], results[i].err
		switch {
		case e.to == nil:
		case err == nil:
			stored.entries = append(stored.entries, e)
			stored.receipts = append(stored.receipts, results[i].receipt)
		case connectionFault(err):
			faults = err
		case retriable(err):
			refusals = err
		default:
			final = append(final, err)
		}
	}
	if len(final) > 0 {
		// Each has an error of its own, and is a batch of its own: one pass makes all.
		alone := q.rebuildLocked(b, func(i int) bool {
			err := results[i].err
			return err != nil && b.entries[i].to != nil && !connectionFault(err) && !retriable(err)
		}, 0)
		for i, some := range alone {
			done = append(done, q.retryBatchLocked(b, some, final[i])...)
		}
	}
	failed := func(i int) bool { return results[i].err != nil && b.entries[i].to != nil }
	if faults != nil {
		done = append(done, q.retryLocked(b, faults, func(i int) bool { return failed(i) && connectionFault(results[i].err) })...)
	}
	if refusals != nil {
		done = append(done, q.retryLocked(b, refusals, func(i int) bool {
			return failed(i) && !connectionFault(results[i].err) && retriable(results[i].err)
		})...)
	}
	b.entries = b.entries[:0]
	return append(done, b, stored)
}

// retryLocked decides what becomes of some of b's messages, which have failed.
func (q *outQueue) retryLocked(b *outBatch, err error, which func(i int) bool) (done []*outBatch) {
	for _, some := range q.rebuildLocked(b, which, q.batchBytes()) {
		done = append(done, q.retryBatchLocked(b, some, err)...)
	}
	return done
}

// retryBatchLocked is retryLocked for messages of b that are a batch already.
func (q *outQueue) retryBatchLocked(b, some *outBatch, err error) (done []*outBatch) {
	if outdated(err) {
		q.box.forget(q.topic)
	}
	some.inDoubt = b.inDoubt
	return q.failedLocked(some, err)
}
