package robust

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// producerModel is an idempotent producer that writes to one log, through all lives of the
// storage. One goroutine uses it at a time; what its batches have become is the model's.
type producerModel struct {
	id      int64
	epoch   int16
	next    int32         // sequence of a new batch
	batches []*batchModel // of all epochs, in the order in which they were made
	// As an opening of the log has found it: the batches of the last epoch that are stored;
	// unsure if it cannot be said what the log knows.
	stored []*batchModel
	unsure bool
}

// stored tells whether a batch is in the log, or has been until retention has removed it.
func (b *batchModel) stored() bool { return b.offset >= 0 && !b.lost && !b.refused }

// unknown tells whether nobody can say that.
func (b *batchModel) unknown() bool { return b.offset < 0 && !b.lost && !b.refused }

// producer returns the n-th producer of a log.
func (m *storageModel) producer(l *logModel, n int) *producerModel {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(l.producers) <= n {
		l.producers = append(l.producers, &producerModel{id: int64(len(l.producers))})
	}
	return l.producers[n]
}

// makeProduced makes the next batch of a producer.
func (m *storageModel) makeProduced(rng *rand.Rand, l *logModel, p *producerModel, size int) *batchModel {
	const first = 1_000_000 // No other appender has such a number.
	data, made := m.makeBatches(rng, l, first+int(p.id), 1, size, false)
	b := made[0]
	b.produced = producerFields{p.id, p.epoch, p.next}
	batch(data).setProducer(b.produced)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(l.bodies, b.body)
	b.data = data
	b.body = string(data[batchAttributesAt:])
	l.bodies[b.body] = b
	p.next = nextSequence(p.next, int32(b.count-1))
	p.batches = append(p.batches, b)
	return b
}

// retry says that a batch that is not in the log is sent again.
func (m *storageModel) retry(b *batchModel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.life, b.offset, b.epoch = m.life, -1, 0
	b.acked, b.seen, b.refused, b.lost = false, false, false, false
}

// repeated notes the answer to a batch that was sent before.
func (m *storageModel) repeated(l *logModel, b *batchModel, acks Acks, r AppendResult, ended bool) {
	m.note("%s: batch %d, repeated: %+v", l.key, b.number, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case r.Err != nil:
		if !ended && !m.mayFail {
			m.problemLocked("%s: batch %d, repeated: %v", l.key, b.number, r.Err)
		}
		return
	case acks == AcksSynced && r.Acks != AcksSynced:
		m.problemLocked("%s: batch %d, repeated: synced was asked for, %s was given", l.key, b.number, r.Acks)
	case b.offset >= 0 && b.offset != r.BaseOffset:
		m.problemLocked("%s: batch %d, repeated: it was at %d and is acknowledged at %d", l.key, b.number, b.offset, r.BaseOffset)
	}
	b.refused = false // If it was, it was stored only now.
	b.offset, b.lasts = r.BaseOffset, b.lasts || r.Acks == AcksSynced || m.policy == SyncAlways
	if !b.acked {
		b.acked, b.ackedAt = true, time.Now()
	}
}

// refusal notes the answer to a batch that must not be stored.
func (m *storageModel) refusal(l *logModel, p producerFields, want error, r AppendResult, ended bool) {
	m.note("%s: %+v: %+v", l.key, p, r)
	if !errors.Is(r.Err, want) && !ended && !m.mayBe(r.Err) {
		m.problem("%s: %+v should be refused with %v: %+v", l.key, p, want, r)
	}
}

// survey finds out, after an opening, what a log has to know of its producers.
func (m *storageModel) survey(l *logModel, log LogReader) {
	start, _ := log.Bounds()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range l.producers {
		p.stored, p.unsure = nil, m.inDoubt()
		lost := int16(-1) // epoch of which a batch is missing
		for _, b := range p.batches {
			switch {
			case b.unknown():
				p.unsure = true
			case !b.stored():
				lost = b.produced.epoch
			case lost == b.produced.epoch && !m.inDoubt():
				m.problemLocked("%s: batch %d, %+v, is stored, and one before it is not", l.key, b.number, b.produced)
			default:
				if len(p.stored) > 0 && p.stored[0].produced.epoch != b.produced.epoch {
					p.stored = nil
				}
				p.stored = append(p.stored, b)
			}
		}
		if m.mayFail && len(p.stored) > 0 && p.stored[len(p.stored)-1].offset < start {
			p.unsure = true // Retention goes on though nothing can be kept of producers.
		}
		if m.mayFail {
			p.stored = slices.DeleteFunc(p.stored, func(b *batchModel) bool { return b.offset < start })
		}
	}
}

// probe checks, after an opening, that the logs know their producers: each of the last batches
// is recognised, one too many is refused, and so is an epoch that has passed.
func (lab *storageLab) probe() {
	m := lab.model
	for _, key := range lab.keys() {
		l, log := m.log(key), lab.logs[key]
		for _, p := range l.producers {
			n := len(p.stored)
			if p.unsure || n == 0 {
				continue
			}
			for _, b := range p.stored[max(0, n-producerWindow):] {
				acks := []Acks{AcksStored, AcksSynced}[lab.rng.IntN(2)]
				m.repeated(l, b, acks, appendNow(log, b.data, acks), false)
			}
			last := p.stored[n-1]
			beyond := last.produced
			beyond.sequence = nextSequence(beyond.sequence, int32(last.count)+lab.rng.Int32N(3))
			m.refusal(l, beyond, ErrOutOfOrderSequence, appendNow(log, producerBatch(beyond, 1, 0), AcksStored), false)
			higher := producerFields{p.id, last.produced.epoch + 1, 1 + lab.rng.Int32N(9)}
			m.refusal(l, higher, ErrOutOfOrderSequence, appendNow(log, producerBatch(higher, 1, 0), AcksStored), false)
			if lower := (producerFields{p.id, last.produced.epoch - 1, 0}); lower.epoch >= 0 {
				m.refusal(l, lower, ErrFenced, appendNow(log, producerBatch(lower, 1, 0), AcksStored), false)
			}
			m.mu.Lock()
			m.probed++
			m.mu.Unlock()
		}
	}
}

// producing is the work of a producer: new batches, some at a time, and old ones again.
func (lab *storageLab) producing(rng *rand.Rand, l *logModel, log PartitionLog, p *producerModel, size labSize) {
	var pending sync.WaitGroup
	defer pending.Wait()
	m := lab.model
	begin := func() { p.epoch, p.next, p.unsure = p.epoch+1, 0, false }
	if p.unsure && rng.IntN(2) == 0 || rng.IntN(6) == 0 {
		begin()
	}
	send := func(b *batchModel, again bool) {
		acks := AcksStored
		if rng.IntN(8) == 0 {
			acks = AcksSynced
		}
		pending.Add(1)
		log.Append(slices.Clone(b.data), acks, func(r AppendResult) {
			if ended := lab.files.failed() != nil; again {
				m.repeated(l, b, acks, r, ended)
			} else {
				m.answered(l, []*batchModel{b}, acks, r, ended)
			}
			pending.Done()
		})
	}
	pipelined := rng.IntN(2) == 0
	settled := true // nothing is under way
	for range 1 + rng.IntN(size.appends) {
		if settled && !lab.makeGood(l, log, p) {
			if lab.files.failed() == nil {
				begin()
			}
			continue
		}
		n := len(p.batches)
		last := func() *batchModel {
			if n == 0 || p.batches[n-1].produced.epoch != p.epoch {
				return nil
			}
			return p.batches[n-1]
		}()
		switch choice := rng.IntN(10); {
		case choice < 4 && last != nil && !p.unsure:
			// A log that has forgotten a producer takes its first batch for a new one.
			// One of the last, stored or under way.
			b := p.batches[max(0, n-1-rng.IntN(producerWindow))]
			if b.produced.epoch == p.epoch {
				send(b, true)
			}
		case choice == 4 && last != nil && settled && !p.unsure:
			beyond := last.produced
			beyond.sequence = nextSequence(beyond.sequence, int32(last.count)+rng.Int32N(3))
			r := appendNow(log, producerBatch(beyond, 1, 0), AcksStored)
			m.refusal(l, beyond, ErrOutOfOrderSequence, r, lab.files.failed() != nil)
		default:
			send(m.makeProduced(rng, l, p, size.bytes), false)
		}
		settled = false
		if !pipelined || rng.IntN(4) == 0 {
			pending.Wait()
			settled = true
		}
		lab.pause(rng)
	}
}

// outOfWindow tells whether so many batches of a producer came to be stored behind one that a
// log does not remember it: some are sent before the answer is there that it has failed.
func (m *storageModel) outOfWindow(p *producerModel, b *batchModel) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	behind := 0
	for _, other := range p.batches {
		if other.produced.epoch == b.produced.epoch && other.number > b.number && other.stored() {
			behind++
		}
	}
	return behind >= producerWindow
}

// makeGood sends what is missing of a producer's epoch again, in order, until all of it is
// stored; false if it is not.
func (lab *storageLab) makeGood(l *logModel, log PartitionLog, p *producerModel) bool {
	m := lab.model
	for _, b := range p.batches {
		m.mu.Lock()
		done, anew := b.produced.epoch != p.epoch || b.stored(), !b.unknown()
		m.mu.Unlock()
		switch {
		case done:
			continue
		case anew:
			m.retry(b)
		}
		r := appendNow(log, b.data, AcksStored)
		if ended := lab.files.failed() != nil; ended || r.Err == nil || !errors.Is(r.Err, ErrOutOfOrderSequence) {
			m.answered(l, []*batchModel{b}, AcksStored, r, ended)
		} else if !p.unsure && !m.outOfWindow(p, b) {
			m.problem("%s: batch %d, %+v, is the next that is missing: %v", l.key, b.number, b.produced, r.Err)
		}
		if r.Err != nil {
			return false
		}
		p.unsure = false // Where nothing is missing nobody knows yet whether the log knows it.
	}
	return true
}
