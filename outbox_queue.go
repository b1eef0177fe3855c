package robust

import (
	"context"
	"slices"
	"time"
)

func newOutQueue(o *outbox, t *outTopic, partition int32) *outQueue {
	o.queues++
	q := &outQueue{box: o, topic: t, partition: partition, epoch: o.epochs}
	q.routeLocked()
	return q
}

// queueLocked returns the queue of a partition.
func (t *outTopic) queueLocked(o *outbox, partition int32) *outQueue {
	if partition == PartitionAny {
		if t.unknown == nil {
			t.unknown = newOutQueue(o, t, partition)
		}
		return t.unknown
	}
	for int(partition) >= len(t.queues) {
		t.queues = append(t.queues, nil)
	}
	if t.queues[partition] == nil {
		t.queues[partition] = newOutQueue(o, t, partition)
	}
	return t.queues[partition]
}

// routeLocked gives the queue to the sender of the broker that leads the partition.
func (q *outQueue) routeLocked() {
	addr := ""
	if q.partition != PartitionAny {
		addr = q.box.client.metadata.leaderAddr(q.topic.name, q.partition)
	}
	s := q.box.senderOf(addr)
	if s == q.sender {
		return
	}
	if q.sender != nil {
		q.sender.queues = slices.DeleteFunc(q.sender.queues, func(other *outQueue) bool { return other == q })
		q.state = queueIdle
	}
	q.sender = s
	s.queues = append(s.queues, q)
}

// idleLocked tells that nothing is under way or waits.
func (q *outQueue) idleLocked() bool {
	return len(q.pending)+len(q.flying)+len(q.again) == 0 && !q.pausing
}

// of is the partition that the queue is of.
func (q *outQueue) of() TopicPartition { return TopicPartition{q.topic.name, q.partition} }

// openLocked returns the batch that messages go into, nil if there is none.
func (q *outQueue) openLocked() *outBatch {
	if n := len(q.pending); n > 0 && !q.pending[n-1].sealed {
		return q.pending[n-1]
	}
	return nil
}

// addLocked puts a message into the last batch, and tells whether that is a new one.
func (q *outQueue) addLocked(m *Message, e entry) (begun bool) {
	b := q.openLocked()
	if b == nil || b.build.count() > 0 && b.build.size()+int(e.size)+recordRoom > q.batchBytes() {
		b = q.box.newBatchLocked(q, q.box.waves.now)
		q.pending = append(q.pending, b)
		begun = true
	}
	b.build.add(m, e.timestamp)
	b.entries = append(b.entries, e)
	q.number++
	return begun
}

// recordRoom is about what a record takes beside its message.
const recordRoom = 32

// batchBytes is how large a batch may become.
func (q *outQueue) batchBytes() int {
	limit := q.sender.frameLimit
	if limit == 0 {
		limit = q.box.cfg.maxFrameBytes
	}
	return min(q.box.cfg.batchBytes, limit-lineRoom)
}

// lineRoom is what is left of a frame for what stands before a batch.
const lineRoom = 1 << 10

// wantsLocked tells that the first batch is to be sent without waiting for more.
func (q *outQueue) wantsLocked() bool {
	o := q.box
	b := q.pending[0]
	return len(q.pending) > 1 || b.sealed || b.due || b.build.count() >= o.cfg.batchSize || o.flushing > 0 || o.closed || o.cfg.batchTimeout == 0
}

// blockedLocked tells that nothing may be sent now, however much wants to be.
func (q *outQueue) blockedLocked() bool {
	limit := maxInFlight
	if !q.sender.idempotent {
		limit = 1 // A second one could overtake a first that is refused.
	}
	return len(q.pending) == 0 || len(q.again) > 0 || q.pausing || q.renumber || q.windowLocked() >= limit || q.inDoubtLocked()
}

// windowLocked is how many batches are under way or, if that is more, were sent since the
// oldest that may have to be sent again, with that. Answers may overtake each other: those
// behind it may have theirs.
func (q *outQueue) windowLocked() int {
	n := len(q.flying)
	for _, b := range q.flying {
		if b.isWantedLocked() {
			return max(n, int(q.turn-b.turn)+1)
		}
	}
	return n
}

// inDoubtLocked tells that the first batch must not be sent yet, because it would be new to
// the broker and one that may have been stored before is under way again: with more stored
// behind that, the broker would not recognise it any more.
func (q *outQueue) inDoubtLocked() bool {
	return q.pending[0].producer.id < 0 && slices.ContainsFunc(q.flying, func(b *outBatch) bool { return b.inDoubt })
}

// shiftLocked takes the first batch off those that wait. The array that they stand in does
// not hold on to it.
func (q *outQueue) shiftLocked() *outBatch {
	b := q.pending[0]
	q.pending[0] = nil
	q.pending = q.pending[1:]
	return b
}

// takeLocked takes the first batch out to be sent; nil if nobody waits for what was in it.
// given are batches that are done with instead.
func (q *outQueue) takeLocked() (b *outBatch, given []*outBatch) {
	b = q.shiftLocked()
	if !b.sealed && b.unwanted() > 0 {
		rest := q.rebuildLocked(b, b.wanted, q.batchBytes())
		b.fail(context.Canceled)
		given = append(given, b)
		q.pending = append(rest, q.pending...)
		if len(rest) == 0 {
			return nil, given
		}
		b = q.shiftLocked()
	}
	b.sealed = true
	if q.sender.idempotent && b.producer.id < 0 {
		q.numberLocked(b)
	}
	q.turn++
	b.turn = q.turn
	q.flying = append(q.flying, b)
	return b, given
}

// numberLocked gives a batch its sequence.
func (q *outQueue) numberLocked(b *outBatch) {
	if q.id == 0 {
		q.id = q.box.id
	}
	b.producer = producerFields{id: q.id, epoch: q.epoch, sequence: q.sequence}
	q.sequence = int32((int64(q.sequence) + int64(len(b.entries))) & maxSequence)
}

// maxSequence is the last sequence, behind which 0 follows.
const maxSequence = 1<<31 - 1

// rebuildLocked makes new batches of those messages of b that keep wants. They are not b's
// any more; it has the others, whose memory is free when these are told.
func (q *outQueue) rebuildLocked(b *outBatch, keep func(i int) bool, limit int) (batches []*outBatch) {
	source, err := b.source()
	if err != nil {
		return nil // It is of our own making.
	}
	records := source.records()
	var m Message
	var to *outBatch
	for i := range b.entries {
		if more, err := records.next(&m); err != nil || !more {
			break // As above.
		}
		if !keep(i) {
			continue
		}
		if to == nil || to.build.count() > 0 && to.build.size()+int(b.entries[i].size)+recordRoom > limit {
			to = q.box.newBatchLocked(q, b.wave)
			// Where messages are missing it is a lower number, but of no other batch.
			to.number = b.number + int64(i)
			to.last, to.refusals, to.faults, to.due = b.last, b.refusals, b.faults, true
			batches = append(batches, to)
		}
		to.build.add(&m, m.Timestamp)
		to.entries = append(to.entries, b.entries[i])
		b.entries[i].to = nil
	}
	return batches
}

// fitLocked makes smaller batches of those that are too large for the broker's frames.
func (q *outQueue) fitLocked() {
	limit := q.batchBytes()
	for i := 0; i < len(q.pending); i++ {
		b := q.pending[i]
		if b.sealed || len(b.entries) < 2 || b.build.size() <= limit {
			continue
		}
		rest := q.rebuildLocked(b, b.wanted, limit)
		b.fail(context.Canceled)
		q.box.running.Go(func() { q.box.settled(b) })
		q.pending = append(q.pending[:i:i], append(rest, q.pending[i+1:]...)...)
		i += len(rest) - 1
	}
}

// failPendingLocked takes out all that waits.
func (q *outQueue) failPendingLocked(err error) (failed []*outBatch) {
	failed = q.pending
	q.pending = nil
	for _, b := range failed {
		b.fail(err)
	}
	return failed
}

// expireLocked takes out what was handed over before limit, and tells left of the first
// message that is left.
func (q *outQueue) expireLocked(limit time.Duration, state string, left func(*entry)) (failed []*outBatch) {
	lists := [][]*outBatch{q.flying, q.again, q.pending}
	for _, list := range lists {
		for _, b := range list {
			var late []entry
			for i := range b.entries {
				e := &b.entries[i]
				if e.to == nil {
					continue
				}
				if e.at > limit {
					left(e)
					break
				}
				late = append(late, *e)
				e.to = nil
				b.gone++
			}
			if len(late) > 0 {
				f := q.box.tellingLocked(q.of(), late, b.wave)
				f.fail(&waitError{what: sendNameOf(q.topic.name, q.partition), state: state, end: deliveryTimeout(q.box.cfg.deliveryTimeout), last: b.last})
				failed = append(failed, f)
			}
		}
	}
	// Those of which nothing is wanted any more need not be sent, or not again.
	drop := func(b *outBatch) bool {
		if b.gone < len(b.entries) {
			return false
		}
		b.entries = b.entries[:0]
		failed = append(failed, b)
		return true
	}
	q.again = slices.DeleteFunc(q.again, drop)
	q.pending = slices.DeleteFunc(q.pending, drop)
	return failed
}

// lateLocked tells whether a message that was handed over before limit is still in the
// batch.
func (b *outBatch) lateLocked(limit time.Duration) bool {
	i := slices.IndexFunc(b.entries, func(e entry) bool { return e.to != nil })
	return i >= 0 && b.entries[i].at <= limit
}

// landedLocked takes a batch out of those under way.
func (q *outQueue) landedLocked(b *outBatch) {
	q.flying = slices.DeleteFunc(q.flying, func(other *outBatch) bool { return other == b })
}
