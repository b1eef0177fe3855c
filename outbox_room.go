package robust

import (
	"context"
	"fmt"
	"time"
)

// fits tells whether so many bytes more may be taken. A message that is larger than all
// that there may be is taken when there is nothing else.
func (o *outbox) fits(need int64) bool {
	return o.used == 0 || o.used+need <= int64(o.cfg.maxBufferedBytes)
}

// age is the time since the outbox was born.
func (o *outbox) age() time.Duration { return time.Since(o.born) }

// takeRoomLocked takes memory for a message; it may let go of the lock meanwhile.
func (o *outbox) takeRoomLocked(ctx context.Context, m *Message, need int64, at time.Duration) error {
	if o.closed {
		return ErrClosed
	}
	if len(o.waiters) == 0 && o.fits(need) {
		o.used += need
		return nil
	}
	w := &roomWaiter{need: need, granted: make(chan struct{})}
	o.waiters = append(o.waiters, w)
	o.mu.Unlock()
	timeout := time.NewTimer(at + o.cfg.deliveryTimeout - o.age())
	defer timeout.Stop()
	var end error
	select {
	case <-w.granted:
	case <-ctx.Done():
		end = endOf(ctx)
	case <-timeout.C:
		end = deliveryTimeout(o.cfg.deliveryTimeout)
	case <-o.ctx.Done():
		end = ErrClosed
	}
	state := ""
	if end != nil {
		state = o.fullness() // It takes locks.
	}
	o.mu.Lock()
	granted := o.withdrawLocked(w)
	switch {
	case granted && end == nil && !o.closed:
		return nil
	case granted:
		o.giveRoomLocked(need)
	default:
		o.grantLocked() // Those behind may fit.
	}
	if o.closed {
		return ErrClosed
	}
	return &waitError{what: sendName(m), state: state, end: end}
}

// fullness says why there is no room.
func (o *outbox) fullness() string {
	unread := ""
	if o.unread != nil {
		unread = o.unread()
	}
	o.mu.Lock()
	used := o.used
	o.mu.Unlock()
	return fmt.Sprintf("%s%d bytes wait, %s", unread, used, o.client.pool.state())
}

// withdrawLocked ends a wait, and tells whether it was granted.
func (o *outbox) withdrawLocked(w *roomWaiter) (granted bool) {
	for i, other := range o.waiters {
		if other == w {
			o.waiters = append(o.waiters[:i], o.waiters[i+1:]...)
			return false
		}
	}
	return true
}

// grantLocked gives memory to those who wait for it, in order. It waits until some is
// free, so that a sender that is faster than its brokers does not wait for each message.
func (o *outbox) grantLocked() {
	limit := int64(o.cfg.maxBufferedBytes)
	if o.used > limit-limit/8 && !o.closed {
		return
	}
	for len(o.waiters) > 0 && (o.fits(o.waiters[0].need) || o.closed) {
		w := o.waiters[0]
		o.waiters = o.waiters[1:]
		o.used += w.need
		close(w.granted)
	}
}

func (o *outbox) giveRoomLocked(n int64) {
	o.used -= n
	o.grantLocked()
}

// releaseRoom gives memory back.
func (o *outbox) releaseRoom(n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveRoomLocked(n)
}

// release ends a batch of which all have been told, and gives memory back.
func (o *outbox) release(b *outBatch, room int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.giveRoomLocked(room)
	o.endWaveLocked(b.wave)
	// An answer may come before the writer has noticed that it has written all.
	if len(o.free) < max(keptBatches, o.queues) && b.reusable && (b.conn == nil || b.conn.out.passed(b.end)) {
		b.reset()
		if room := b.build.room(); o.kept+room <= keptBytes {
			o.free = append(o.free, b)
			o.kept += room
		}
	}
}

// handLocked lets go of the lock and hands batches over that are done with.
func (o *outbox) handLocked(done []*outBatch) {
	if len(done) == 0 {
		o.mu.Unlock()
		return
	}
	for _, b := range done {
		if b.queue != nil && len(b.queue.topic.staged) > 0 {
			o.resume(b.queue.topic) // What is staged may have waited for it.
		}
	}
	o.handing.begin()
	defer o.handing.ended()
	o.mu.Unlock()
	for _, b := range done {
		o.settled(b)
	}
}
