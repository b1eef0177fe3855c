package robust

import (
	"fmt"
	"sync"
)

// maxUnread is how many bytes of answers may wait for a peer to read them before no more
// of its requests are read.
const maxUnread = 1 << 20

// replies are the answers of one connection on their way to the peer.
type replies struct {
	out   *frameWriter
	limit int // of a frame
	warn  *warner

	// answering holds a token while something that was held is answered.
	answering chan struct{}
	scratch   []byte // serve's, to encode in

	order sync.Mutex  // guards the following; taken before frameWriter.mu
	v0    []*v0Answer // requests in the v0 form, in order, from the first unanswered
}

// v0Answer is the place of an answer in the order of requests, which v0 peers rely on.
type v0Answer struct {
	frame []byte
	ready bool
}

// place keeps the place of a v0 peer's request among its answers; nil for others.
func (r *replies) place(req *wireRequest) *v0Answer {
	if !req.lockStep {
		return nil
	}
	slot := &v0Answer{}
	r.order.Lock()
	defer r.order.Unlock()
	r.v0 = append(r.v0, slot)
	return slot
}

// reply queues an answer, which leaves with the next flush. Only serve calls it, or
// somebody for whom serve waits.
func (r *replies) reply(slot *v0Answer, form Protocol, id []byte, resp response, refusal error) {
	r.scratch = r.encode(r.scratch[:0], form, id, resp, refusal)
	r.queue(slot, r.scratch)
	if cap(r.scratch) > keepScratch {
		r.scratch = nil
	}
}

// replyLater sends an answer from any goroutine, without waiting for the peer.
func (r *replies) replyLater(slot *v0Answer, form Protocol, id []byte, resp response, refusal error) {
	r.queue(slot, r.encode(nil, form, id, resp, refusal))
	signal(r.out.wake)
}

// encode appends an answer's frame.
func (r *replies) encode(dst []byte, form Protocol, id []byte, resp response, refusal error) []byte {
	if refusal != nil {
		resp.setRefusal(trimPrefix(refusal))
	}
	frame, err := appendResponse(dst, form, id, resp, refusal)
	if limit := r.limit; err == nil && len(frame)-len(dst) > limit {
		err = fmt.Errorf("%w: answer of %d bytes, the limit is %d", ErrMessageTooLarge, len(frame)-len(dst), limit)
		frame, _ = appendResponse(dst, form, id, &plainResponse{answer{trimPrefix(err)}}, err) // Has nothing that could fail.
		return frame
	}
	if err != nil {
		r.warn.warn("answer cannot be encoded", "", "error", err)
		// Without a payload there is nothing left that could fail.
		frame, _ = appendResponse(dst, form, id, nil, fmt.Errorf("answer cannot be encoded: %w", err))
	}
	return frame
}

// queue queues a frame: at once, or in its turn.
func (r *replies) queue(slot *v0Answer, frame []byte) {
	if slot == nil {
		_ = r.out.queue(frame) // A connection that failed is noticed by serve.
		return
	}
	r.order.Lock()
	defer r.order.Unlock()
	slot.ready = true
	if r.v0[0] != slot {
		slot.frame = append([]byte(nil), frame...)
		return
	}
	slot.frame = frame
	for len(r.v0) > 0 && r.v0[0].ready {
		_ = r.out.queue(r.v0[0].frame) // As above.
		r.v0 = r.v0[1:]
	}
}

// refuseAll tells the peer why the connection ends.
func (r *replies) refuseAll(err error) {
	r.reply(nil, ProtocolV1, nil, &plainResponse{}, err)
}

// drain writes the answers that are queued, and waits until few are left.
func (r *replies) drain() error {
	if err := r.out.flush(); err != nil {
		return err
	}
	for room := r.out.room(maxUnread); room != nil; room = r.out.room(maxUnread) {
		<-room // Comes with the write, or with its failure at the timeout.
	}
	return nil
}

// sendHeld sends what encode returns, when it may be sent.
func (r *replies) sendHeld(slot *v0Answer, encode func() []byte) {
	r.whenRead(func() { r.queue(slot, encode()) })
}

// whenRead has answer queue an answer, one at a time and when the peer has read most of
// what it was sent: what many are answered with is not in memory together.
func (r *replies) whenRead(answer func()) {
	r.answering <- struct{}{}
	defer func() { <-r.answering }()
	if r.drain() != nil {
		return // The peer is gone, which serve notices.
	}
	answer()
	_ = r.out.flush() // As above.
}
