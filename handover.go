package robust

import (
	"context"
	"sync"
	"sync/atomic"
)

// delivery is a run of messages that is handed over. Loops take from it without a lock:
// whoever moves next on has the message there.
type delivery struct {
	stretch

	messages []*Message
	handed   []handed
	next     atomic.Int64 // index of the next message; behind the last one when there is none
	before   int64        // offset of the next message to be delivered while none of these is
	charge   *charge      // released with the last message; nil if more of the same fetch follow
}

// handed is what is done when a message is, and all before it. It is reckoned up
// beforehand, since messages are the application's once they are handed over.
type handed struct {
	next  int64  // offset behind it
	bytes uint64 // of the messages
}

func newDelivery(of stretch, messages []*Message, c *charge) *delivery {
	d := &delivery{stretch: of, messages: messages, handed: make([]handed, len(messages)), charge: c}
	bytes := uint64(0)
	for i, m := range messages {
		bytes += m.Size()
		d.handed[i] = handed{m.Offset + 1, bytes}
	}
	return d
}

// allTaken is an index behind the messages of any delivery.
const allTaken = 1 << 40

// taken is how many messages were taken.
func (d *delivery) taken() int { return int(min(d.next.Load(), int64(len(d.messages)))) }

// close lets nobody take any more. It returns how many were taken before.
func (d *delivery) close() int { return int(min(d.next.Swap(allTaken), int64(len(d.messages)))) }

// received is what the first n messages add up to.
func (d *delivery) received(n int) received {
	if n == 0 {
		return received{}
	}
	return received{uint64(n), d.handed[n-1].bytes}
}

// offset is that of the next message when n were taken.
func (d *delivery) offset(n int) int64 {
	if n == 0 {
		return d.before
	}
	return d.handed[n-1].next
}

// handover gives the messages of a fetcher to an application: to loops directly, or by way
// of the pump to a channel, once that is in use.
type handover struct {
	fetch *fetcher
	taken func(offset int64) // called for each message when it is delivered; may be nil
	hook  func(ConsumeEvent) // told of messages before they come to hand; may be nil
	// at is what loops take messages from; nil while there is nothing, or the channel is
	// in use. Written with mu held.
	at atomic.Pointer[delivery]

	messages chan *Message
	taking   chan struct{}  // holds a token while the next messages are being taken
	pumped   chan struct{}  // closed when the pump has ended
	running  sync.WaitGroup // the fetcher and the pump

	mu      sync.Mutex // guards the following; taken before fetcher.mu
	pumping bool       // messages is in use
	closed  bool
	rest    *haul // fetched and not unpacked yet
	// unpumped is unpacked for the pump; unsent is how many messages are, or in its hand.
	unpumped *delivery
	unsent   int
	epoch    *epoch   // the one since the last seek
	leg      int      // the one that next belongs to; 0: none yet
	next     int64    // offset of the next message to be delivered, as far as it is of leg
	got      received // before what is at hand
	sent     []int64  // offsets of the messages put into the channel last, a ring
	sentAt   int      // where the next one goes
	sentOf   int      // how many of them are of this epoch
}

// begin begins to fetch.
func (p *handover) begin() { p.running.Go(p.fetch.run) }

// end ends fetching, closes the channel and waits for both; first tells that it had not
// been called before.
func (p *handover) end() (first bool) {
	p.mu.Lock()
	first = !p.closed
	p.closed = true
	p.mu.Unlock()
	p.fetch.stop(ErrClosed)
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked()
	return first
}

// channel returns the channel, which is in use from then on.
func (p *handover) channel() <-chan *Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pumping {
		return p.messages
	}
	p.pumping = true
	if d := p.leaveLocked(); d != nil {
		d.before, p.unpumped, p.unsent = p.next, d, len(d.messages)
	}
	if p.closed {
		close(p.messages)
	} else {
		e := p.epoch
		p.running.Go(func() { p.pump(e) })
	}
	return p.messages
}

// moveTo goes on at s. It returns the epoch that this begins, and whether the pump is at
// work, which then has to notice.
func (p *handover) moveTo(s start) (e *epoch, pumping bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, false, ErrClosed
	}
	if err := p.fetch.ended(); err != nil {
		return nil, false, err
	}
	e = p.fetch.seek(s)
	p.dropLocked()
	p.epoch, p.next, p.sentOf = e, offsetNone, 0
	return e, p.pumping, nil
}

// offset is that of the next message to be delivered; see [PartitionConsumer.Offset].
func (p *handover) offset() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The pump may have put one more into the channel than it has noted.
	if n := min(len(p.messages), p.sentOf); n > 0 {
		return p.sent[(p.sentAt-n+len(p.sent))%len(p.sent)]
	}
	next, more := p.progressLocked()
	p.fetch.mu.Lock()
	defer p.fetch.mu.Unlock()
	if more || p.leg == p.fetch.leg {
		return next
	}
	return p.fetch.legFrom // Nothing of it has come, and of earlier ones nothing is left.
}

// ended returns why there are no more messages.
func (p *handover) ended() error {
	if err := p.fetch.ended(); err != nil {
		return err
	}
	return ErrClosed
}

// receive returns the next message for a loop: from the channel, if that is in use,
// because what is in it comes first.
func (p *handover) receive(ctx context.Context) (*Message, error) {
	if ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	if m := p.pop(); m != nil {
		return m, nil
	}
	for {
		p.mu.Lock()
		pumping := p.pumping
		p.mu.Unlock()
		if pumping {
			break
		}
		if err := p.load(ctx); err != nil {
			return nil, err
		}
		if m := p.pop(); m != nil {
			return m, nil
		}
	}
	select {
	case m, ok := <-p.messages:
		if !ok {
			return nil, p.ended()
		}
		return m, nil
	case <-ctx.Done():
		return nil, endOf(ctx)
	}
}

// pop takes a message that is at hand, nil if there is none to be delivered now.
func (p *handover) pop() *Message {
	d := p.at.Load()
	if d == nil || p.fetch.quiet.Load() {
		return nil
	}
	i := d.next.Add(1) - 1
	if i >= int64(len(d.messages)) {
		return nil
	}
	m := d.messages[i]
	if i == int64(len(d.messages)-1) {
		p.finish(d)
	}
	if p.taken != nil {
		p.taken(m.Offset)
	}
	return m
}

// finish lets go of a delivery of which nothing is left.
func (p *handover) finish(d *delivery) {
	p.mu.Lock()
	if p.at.Load() == d {
		p.leaveLocked()
	}
	p.mu.Unlock()
	d.charge.release()
}

// leaveLocked takes what is at hand away from loops, and returns what is left of it.
func (p *handover) leaveLocked() *delivery {
	d := p.at.Load()
	if d == nil {
		return nil
	}
	n := d.close()
	p.at.Store(nil)
	p.got.add(d.received(n))
	if d.stretch == (stretch{p.epoch, p.leg}) {
		p.next = d.offset(n)
	}
	if n == len(d.messages) {
		return nil
	}
	return newDelivery(d.stretch, d.messages[n:], d.charge)
}

// dropLocked drops what was fetched and is not delivered.
func (p *handover) dropLocked() {
	for _, d := range []*delivery{p.leaveLocked(), p.unpumped} {
		if d != nil {
			d.charge.release()
		}
	}
	p.rest.drop()
	p.rest, p.unpumped, p.unsent = nil, nil, 0
}

// progressLocked returns the offset behind what was delivered, and whether there is more
// at hand of the same leg.
func (p *handover) progressLocked() (next int64, more bool) {
	next, more = p.next, p.unsent > 0 || p.rest != nil && p.rest.leg == p.leg
	if d := p.at.Load(); d != nil {
		next, more = d.offset(d.taken()), true // It goes with its last message.
	}
	return next, more
}

// received is what was delivered until now.
func (p *handover) received() received {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.got
	if d := p.at.Load(); d != nil {
		r.add(d.received(d.taken()))
	}
	return r
}

// load has messages come to hand, unless there are some, or they are for the pump to
// take. One caller at a time does, so that they stay in order.
func (p *handover) load(ctx context.Context) error {
	if err := p.fetch.resumed(ctx); err != nil {
		return err
	}
	if err := p.startTaking(ctx); err != nil {
		return err
	}
	defer p.endTaking()
	p.mu.Lock()
	enough := p.pumping || p.at.Load() != nil && p.fetch.ctx.Err() == nil
	p.mu.Unlock()
	if enough {
		return nil
	}
	for {
		d, err := p.unpack(ctx)
		if err != nil {
			return err
		}
		p.mu.Lock()
		ok := p.arriveLocked(d)
		switch {
		case !ok:
		case p.pumping:
			p.unpumped, p.unsent = d, len(d.messages)
		default:
			p.at.Store(d)
		}
		p.mu.Unlock()
		if ok {
			return nil
		}
		d.charge.release()
	}
}

func (p *handover) startTaking(ctx context.Context) error {
	select {
	case p.taking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	}
}

func (p *handover) endTaking() { <-p.taking }

// arriveLocked sets the position to what has come to hand; false if it is not wanted any
// more.
func (p *handover) arriveLocked(d *delivery) bool {
	if p.closed || d.epoch != p.epoch {
		return false
	}
	if d.leg != p.leg {
		p.leg, p.next = d.leg, d.messages[0].Offset
	}
	d.before = p.next
	return true
}

// unpack returns the messages that come next. The caller is taking.
func (p *handover) unpack(ctx context.Context) (*delivery, error) {
	for {
		h, err := p.haul(ctx)
		if err != nil {
			return nil, err
		}
		messages, err := p.fetch.unpack(h)
		if err != nil {
			p.fetch.stop(err) // The end that take tells of is this one.
		}
		last := h.empty() || err != nil
		if last {
			p.mu.Lock()
			if p.rest == h {
				p.rest = nil
			}
			p.mu.Unlock()
		}
		if p.hook != nil && len(messages) > 0 {
			p.hook(consumeEvent(p.fetch.topic, p.fetch.partition, messages))
		}
		switch {
		case len(messages) == 0 && last:
			h.drop()
		case last:
			return newDelivery(h.stretch, messages, h.charge), nil
		default:
			return newDelivery(h.stretch, messages, nil), nil
		}
	}
}

// consumeEvent is what a hook is told of messages, of which there are some.
func consumeEvent(topic string, partition int32, messages []*Message) ConsumeEvent {
	e := ConsumeEvent{Topic: topic, Partition: partition, Offset: messages[0].Offset, Messages: len(messages)}
	for _, m := range messages {
		e.Bytes += int(m.Size())
	}
	return e
}

// haul returns what was fetched and not unpacked yet. The caller is taking.
func (p *handover) haul(ctx context.Context) (*haul, error) {
	p.mu.Lock()
	h := p.rest
	p.mu.Unlock()
	if h != nil && p.fetch.ctx.Err() == nil {
		return h, nil
	}
	for {
		h, err := p.fetch.take(ctx)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		ok := !p.closed && h.epoch == p.epoch
		if ok {
			p.rest = h
		}
		p.mu.Unlock()
		if ok {
			return h, nil
		}
		h.drop()
	}
}

// pump puts messages into the channel until the consumer ends, and then closes it.
// It alone sends on the channel, so that nothing of an earlier epoch can come into
// it after it was drained.
func (p *handover) pump(e *epoch) {
	defer close(p.messages)
	defer close(p.pumped)
	var d *delivery // in hand; what is left of it is from i on
	i := 0
	defer func() {
		if d != nil {
			d.charge.release()
		}
	}()
	for {
		if now := p.fetch.currentEpoch(); now != e {
			e = now
			p.drain()
			close(e.drained)
		}
		if d == nil {
			var err error
			d, err = p.claim(e.ctx)
			i = 0
			switch {
			case err != nil && p.fetch.ctx.Err() == nil && e.ctx.Err() != nil:
				continue // A seek.
			case err != nil:
				return
			}
		}
		if d.epoch != e {
			// Of an epoch that is over, or of one that has begun since this
			// round did, which the next round will know.
			if d.epoch != p.fetch.currentEpoch() {
				d.charge.release()
				d = nil
			}
			continue
		}
		if !p.push(e, d, i) {
			if p.fetch.ctx.Err() != nil {
				return
			}
			continue
		}
		if i++; i == len(d.messages) {
			d.charge.release()
			d = nil
		}
	}
}

// claim returns the messages that come next, for the pump.
func (p *handover) claim(ctx context.Context) (*delivery, error) {
	if err := p.startTaking(ctx); err != nil {
		return nil, err
	}
	defer p.endTaking()
	p.mu.Lock()
	d := p.unpumped
	p.unpumped = nil
	p.mu.Unlock()
	if d != nil {
		return d, nil
	}
	for {
		d, err := p.unpack(ctx)
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		ok := p.arriveLocked(d)
		if ok {
			p.unsent = len(d.messages)
		}
		p.mu.Unlock()
		if ok {
			return d, nil
		}
		d.charge.release()
	}
}

// push puts a message into the channel and notes it, for Offset too; false if the epoch
// has ended before.
func (p *handover) push(e *epoch, d *delivery, i int) bool {
	if p.fetch.quiet.Load() && p.fetch.resumed(e.ctx) != nil {
		return false
	}
	if e.ctx.Err() != nil {
		return false
	}
	m := d.messages[i]
	offset, size := m.Offset, m.Size() // Later it is the application's.
	select {
	case p.messages <- m:
	default:
		select {
		case p.messages <- m:
		case <-e.ctx.Done():
			return false
		}
	}
	p.mu.Lock()
	p.sent[p.sentAt] = offset
	p.sentAt = (p.sentAt + 1) % len(p.sent)
	p.got.add(received{1, size})
	if d.epoch == p.epoch {
		p.sentOf = min(p.sentOf+1, len(p.sent))
		p.unsent--
		if d.leg == p.leg {
			p.next = offset + 1
		}
	}
	p.mu.Unlock()
	if p.taken != nil {
		p.taken(offset)
	}
	return true
}

// drain empties the channel.
func (p *handover) drain() {
	for {
		select {
		case _, open := <-p.messages:
			if !open {
				return
			}
		default:
			return
		}
	}
}
