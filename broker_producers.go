package robust

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"
)

const (
	// producerWindow is how many of a producer's batches a log can recognise. A producer
	// may have as many under way: which of them were stored a retry finds out.
	producerWindow = 5
	// producerExpiry is how long after its last batch a producer is forgotten.
	producerExpiry = 7 * 24 * time.Hour
	// maxLogProducers is how many producers a log knows; beyond that the one goes that has
	// been silent for longest.
	maxLogProducers = 10_000
)

// producerStates is what a log knows of the idempotent producers that have written to it: of
// each its epoch and its last batches, so that one that comes again is recognised, and none
// is stored before the one that was sent before it. It belongs to whoever appends, and does
// no I/O.
//
// A batch is taken for stored as soon as it is let through. Where it is not stored after
// all, rollback makes that undone; settle says up to where that cannot happen any more.
type producerStates struct {
	byID map[int64]*producerState
	// newest and oldest are the ends of a list, in order of the last batch.
	newest, oldest *producerState
	undo           []producerUndo // in the order in which the batches were let through
}

// producerState is one producer. It has batches, but for a moment in rollback.
type producerState struct {
	newer, older *producerState
	id           int64
	epoch        int16
	// batches has count of them, of which the oldest is the first-th, and goes round.
	first, count uint8
	batches      [producerWindow]producedBatch
}

// producedBatch is a batch that a producer has written.
type producedBatch struct {
	base      int64
	time      int64 // when it was appended, Unix milliseconds
	first     int32 // sequence of the first record
	lastDelta int32 // of its offsets, and sequences
	doubted   bool  // whether it outlives a power failure nobody knows
}

// producerUndo is what was before a batch.
type producerUndo struct {
	base  int64
	s     *producerState
	newer *producerState // than s in the list
	// replaced is the state that s had before it began anew; nil if it was made, or grew.
	replaced *producerState
	made     bool
	full     bool
	dropped  producedBatch // if it was full
}

// nextSequence is the sequence behind n others that begin at first: they go round.
func nextSequence(first, lastDelta int32) int32 {
	return int32((int64(first) + int64(lastDelta) + 1) & math.MaxInt32)
}

func (b *producedBatch) nextOffset() int64 { return b.base + int64(b.lastDelta) + 1 }

// batch returns the i-th batch, from the oldest on.
func (s *producerState) batch(i uint8) *producedBatch {
	return &s.batches[(s.first+i)%producerWindow]
}

func (s *producerState) last() *producedBatch { return s.batch(s.count - 1) }

// all returns all batches, the oldest first.
func (s *producerState) all() iter.Seq[*producedBatch] {
	return func(yield func(*producedBatch) bool) {
		for i := range s.count {
			if !yield(s.batch(i)) {
				return
			}
		}
	}
}

func (s *producerState) expired(now int64) bool {
	return now-s.last().time > producerExpiry.Milliseconds()
}

// find returns a batch that the producer has written before, nil if it is not known.
func (s *producerState) find(first, lastDelta int32) *producedBatch {
	for i := s.count; i > 0; i-- {
		if b := s.batch(i - 1); b.first == first && b.lastDelta == lastDelta {
			return b
		}
	}
	return nil
}

// push adds a batch, and returns what has to make room for it.
func (s *producerState) push(b producedBatch) (dropped producedBatch, full bool) {
	if s.count < producerWindow {
		s.count++
		*s.last() = b
		return dropped, false
	}
	dropped = *s.batch(0)
	s.first = (s.first + 1) % producerWindow
	*s.last() = b
	return dropped, true
}

// pop takes the last batch away, and brings back what had to make room for it.
func (s *producerState) pop(dropped producedBatch, full bool) {
	if !full {
		s.count--
		return
	}
	*s.last() = dropped
	s.first = (s.first + producerWindow - 1) % producerWindow
}

// begin has a state begin anew with a batch.
func (s *producerState) begin(epoch int16, b producedBatch) {
	s.epoch, s.first, s.count = epoch, 0, 1
	s.batches = [producerWindow]producedBatch{b}
}

// append looks whether a batch may be stored, at the offset base, and takes it for stored. If
// it has been before, that is what it returns.
func (ps *producerStates) append(p producerFields, lastDelta int32, base, now int64) (before producedBatch, repeated bool, err error) {
	if p.epoch < 0 || p.sequence < 0 {
		return before, false, fmt.Errorf("%w: producer %d has epoch %d and sequence %d", ErrInvalidRequest, p.id, p.epoch, p.sequence)
	}
	b := producedBatch{base: base, time: now, first: p.sequence, lastDelta: lastDelta}
	s := ps.newest // Mostly it is the same again.
	if s == nil || s.id != p.id {
		s = ps.byID[p.id]
	}
	switch {
	case s == nil || s.expired(now) || p.epoch > s.epoch:
		// Where nothing is known of the batches before it, nothing says that they are stored.
		if p.sequence != 0 {
			return before, false, outOfOrder(p, 0)
		}
	case p.epoch < s.epoch:
		return before, false, fmt.Errorf("%w: producer %d is in epoch %d; the batch is of epoch %d", ErrFenced, p.id, s.epoch, p.epoch)
	default:
		last := s.last()
		if next := nextSequence(last.first, last.lastDelta); p.sequence != next {
			if known := s.find(p.sequence, lastDelta); known != nil {
				return *known, true, nil
			}
			return before, false, outOfOrder(p, next)
		}
		u := producerUndo{base: base, s: s, newer: s.newer}
		u.dropped, u.full = s.push(b)
		ps.undo = append(ps.undo, u)
		ps.touch(s)
		return before, false, nil
	}
	if s == nil {
		s = ps.insert(p.id)
		ps.undo = append(ps.undo, producerUndo{base: base, s: s, made: true})
	} else {
		was := *s
		ps.undo = append(ps.undo, producerUndo{base: base, s: s, newer: s.newer, replaced: &was})
		ps.touch(s)
	}
	s.begin(p.epoch, b)
	return before, false, nil
}

// appendAlone is append for a batch of a producer, which has to be all that is appended.
func (ps *producerStates) appendAlone(b batch, all []byte, base, now int64) (before producedBatch, repeated bool, err error) {
	if len(b) < len(all) {
		return before, false, fmt.Errorf("%w: a batch of producer %d among others", ErrInvalidRequest, b.producer().id)
	}
	return ps.append(b.producer(), b.lastOffsetDelta(), base, now)
}

func outOfOrder(p producerFields, expected int32) error {
	return fmt.Errorf("%w: producer %d, epoch %d: sequence %d, expected is %d", ErrOutOfOrderSequence, p.id, p.epoch, p.sequence, expected)
}

// replay takes in a batch that is stored, whatever came before it: what the log has is what
// was let through, or all that is left of it.
func (ps *producerStates) replay(p producerFields, b producedBatch) {
	s := ps.byID[p.id]
	switch {
	case s == nil:
		s = ps.insert(p.id)
		s.begin(p.epoch, b)
	case s.epoch != p.epoch, s.expired(b.time), b.first == 0 && nextSequence(s.last().first, s.last().lastDelta) != 0:
		// With sequence 0 it was let through because no more was known of the producer.
		s.begin(p.epoch, b)
		ps.touch(s)
	default:
		s.push(b)
		ps.touch(s)
	}
	ps.trim()
}

// replayBatch is replay for a batch as it is stored, if a producer has written it.
func (ps *producerStates) replayBatch(b batch, doubted bool) {
	if p := b.producer(); p.id >= 0 && p.epoch >= 0 && p.sequence >= 0 {
		ps.replay(p, producedBatch{base: b.baseOffset(), time: b.appendTime(), first: p.sequence, lastDelta: b.lastOffsetDelta(), doubted: doubted})
	}
}

// replayStates is replay for all that others know of the offsets from one on.
func (ps *producerStates) replayStates(others *producerStates, from int64) {
	for s := others.oldest; s != nil; s = s.newer {
		for b := range s.all() {
			if b.base >= from {
				ps.replay(producerFields{s.id, s.epoch, b.first}, *b)
			}
		}
	}
}

// rollback forgets the batches from the offset end on, as if they had never come.
func (ps *producerStates) rollback(end int64) {
	n := len(ps.undo)
	for ; n > 0 && ps.undo[n-1].base >= end; n-- {
		u := &ps.undo[n-1]
		switch s := u.s; {
		case u.made:
			ps.remove(s)
		case u.replaced != nil:
			s.epoch, s.first, s.count, s.batches = u.replaced.epoch, u.replaced.first, u.replaced.count, u.replaced.batches
		default:
			s.pop(u.dropped, u.full)
		}
		if !u.made && ps.newest == u.s && u.newer != nil {
			ps.unlink(u.s)
			ps.linkBehind(u.s, u.newer)
		}
	}
	clear(ps.undo[n:])
	ps.undo = ps.undo[:n]
}

// settle says that what stands before the offset end will not be rolled back.
func (ps *producerStates) settle(end int64) {
	const mostIdle = 256
	n := 0
	for n < len(ps.undo) && ps.undo[n].base < end {
		n++
	}
	switch {
	case n < len(ps.undo):
		ps.undo = slices.Delete(ps.undo, 0, n)
	case n > mostIdle:
		ps.undo = nil
	default:
		ps.undo = ps.undo[:0]
	}
	ps.trim()
}

// doubt notes that nobody knows whether the batches from one offset to another outlive a
// power failure.
func (ps *producerStates) doubt(from, to int64) {
	for s := ps.newest; s != nil; s = s.older {
		for b := range s.all() {
			b.doubted = b.doubted || from <= b.base && b.base < to
		}
	}
}

// trust notes that what stands from an offset on outlives a power failure.
func (ps *producerStates) trust(from int64) {
	for s := ps.newest; s != nil; s = s.older {
		for b := range s.all() {
			b.doubted = b.doubted && b.base < from
		}
	}
}

// expire forgets the producers that have been silent for too long.
func (ps *producerStates) expire(now int64) {
	for ps.oldest != nil && ps.oldest.expired(now) {
		ps.remove(ps.oldest)
	}
}

// silentSince returns the time of the last batch of the producer that has been silent for
// longest; 0 if there is none.
func (ps *producerStates) silentSince() int64 {
	if ps.oldest == nil {
		return 0
	}
	return ps.oldest.last().time
}

func (ps *producerStates) len() int { return len(ps.byID) }

func (ps *producerStates) trim() {
	for len(ps.byID) > maxLogProducers {
		ps.remove(ps.oldest)
	}
}

func (ps *producerStates) insert(id int64) *producerState {
	if ps.byID == nil {
		ps.byID = make(map[int64]*producerState)
	}
	s := &producerState{id: id}
	ps.byID[id] = s
	ps.link(s)
	return s
}

// remove forgets a producer, unless that was done before.
func (ps *producerStates) remove(s *producerState) {
	if ps.byID[s.id] == s {
		delete(ps.byID, s.id)
		ps.unlink(s)
	}
}

// touch makes a producer the newest.
func (ps *producerStates) touch(s *producerState) {
	if ps.newest != s {
		ps.unlink(s)
		ps.link(s)
	}
}

// link makes s the newest.
func (ps *producerStates) link(s *producerState) {
	s.older, s.newer = ps.newest, nil
	if ps.newest == nil {
		ps.oldest = s
	} else {
		ps.newest.newer = s
	}
	ps.newest = s
}

// linkBehind makes s the next older than another; the oldest, if that has been removed.
func (ps *producerStates) linkBehind(s, newer *producerState) {
	if ps.byID[newer.id] != newer {
		newer = ps.oldest
	}
	if newer == nil {
		ps.link(s)
		return
	}
	s.newer, s.older = newer, newer.older
	newer.older = s
	if s.older == nil {
		ps.oldest = s
	} else {
		s.older.newer = s
	}
}

func (ps *producerStates) unlink(s *producerState) {
	if s.newer == nil {
		ps.newest = s.older
	} else {
		s.newer.older = s.older
	}
	if s.older == nil {
		ps.oldest = s.newer
	} else {
		s.older.newer = s.newer
	}
}

// States are kept, big-endian, as
//
//	producers  uint32, then for each, the one that has been silent for longest first:
//	id         int64
//	epoch      int16
//	batches    uint16, 1 to 5, then for each, the oldest first:
//	base       int64   offset of the first record
//	time       int64   when it was appended, Unix milliseconds
//	first      int32   sequence of the first record
//	last delta int32   of its offsets, and sequences; the highest bit is set if nobody knows whether the batch outlives a power failure
const (
	keptProducerSize = 12
	keptBatchSize    = 24
	keptDoubted      = 1 << 31
)

func (ps *producerStates) encode(dst []byte) []byte {
	ps.trim()
	dst = slices.Grow(dst, 4+ps.len()*(keptProducerSize+producerWindow*keptBatchSize))
	dst = binary.BigEndian.AppendUint32(dst, uint32(ps.len()))
	for s := ps.oldest; s != nil; s = s.newer {
		dst = binary.BigEndian.AppendUint64(dst, uint64(s.id))
		dst = binary.BigEndian.AppendUint16(dst, uint16(s.epoch))
		dst = binary.BigEndian.AppendUint16(dst, uint16(s.count))
		for b := range s.all() {
			dst = binary.BigEndian.AppendUint64(dst, uint64(b.base))
			dst = binary.BigEndian.AppendUint64(dst, uint64(b.time))
			dst = binary.BigEndian.AppendUint32(dst, uint32(b.first))
			delta := uint32(b.lastDelta)
			if b.doubted {
				delta |= keptDoubted
			}
			dst = binary.BigEndian.AppendUint32(dst, delta)
		}
	}
	return dst
}

// decodeProducers reads what encode has written of a log that ends at the offset end.
func decodeProducers(data []byte, end int64) (*producerStates, error) {
	ps := &producerStates{}
	if len(data) < 4 {
		return nil, fmt.Errorf("%w: producers are cut off", ErrMalformed)
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	if count > maxLogProducers {
		return nil, fmt.Errorf("%w: %d producers", ErrMalformed, count)
	}
	for range count {
		if len(data) < keptProducerSize {
			return nil, fmt.Errorf("%w: producers are cut off", ErrMalformed)
		}
		id, epoch := int64(binary.BigEndian.Uint64(data)), int16(binary.BigEndian.Uint16(data[8:]))
		n := int(binary.BigEndian.Uint16(data[10:]))
		data = data[keptProducerSize:]
		switch {
		case id < 0 || epoch < 0 || ps.byID[id] != nil:
			return nil, fmt.Errorf("%w: producer %d of epoch %d", ErrMalformed, id, epoch)
		case n < 1 || n > producerWindow || len(data) < n*keptBatchSize:
			return nil, fmt.Errorf("%w: producer %d has %d batches", ErrMalformed, id, n)
		}
		s := ps.insert(id)
		s.epoch = epoch
		at := int64(0)
		for range n {
			delta := binary.BigEndian.Uint32(data[20:])
			b := producedBatch{
				base: int64(binary.BigEndian.Uint64(data)), time: int64(binary.BigEndian.Uint64(data[8:])),
				first: int32(binary.BigEndian.Uint32(data[16:])), lastDelta: int32(delta &^ keptDoubted), doubted: delta&keptDoubted != 0,
			}
			data = data[keptBatchSize:]
			if b.base < at || b.base >= end || b.first < 0 || b.lastDelta < 0 || int64(b.lastDelta) >= end-b.base {
				return nil, fmt.Errorf("%w: a batch of producer %d at offset %d", ErrMalformed, id, b.base)
			}
			at = b.nextOffset()
			s.push(b)
		}
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last producer", ErrMalformed, len(data))
	}
	return ps, nil
}
