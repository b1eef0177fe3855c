package robust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

func newOutbox(c *Client, cfg *config, singles bool, settled func(*outBatch)) *outbox {
	o := &outbox{
		client: c, cfg: cfg, born: time.Now(), singles: singles, settled: settled,
		senders: make(map[string]*outSender), waves: waves{counts: make(map[int]int)},
	}
	o.bornAt = o.born.UnixNano()
	o.senderOf, o.stage, o.forget, o.resume, o.look = o.senderLocked, o.stageLocked, o.forgetLocked, o.resolveLocked, o.lookAt
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// handing says how a message is handed over.
type handing struct {
	to  receiver
	tag int32         // to's own
	at  time.Duration // since the outbox was born
	by  driver        // caller or waiter
}

// accept takes a message, whose fate h.to will learn unless accept fails. It waits for
// memory, but not longer than ctx and the delivery timeout, counted from h.at. m itself is kept for its result, its key, value and headers are not.
// If lent is not nil the caller is to read that until the fate is known.
func (o *outbox) accept(ctx context.Context, m *Message, h handing) (lent *conn, err error) {
	size, err := o.check(m)
	if err != nil {
		return nil, err
	}
	t := o.topic(m.Topic)
	e := entry{
		m: m, to: h.to, at: h.at, size: int32(size), tag: h.tag,
		timestamp: o.millis(m, h.at), anywhere: m.Partition == PartitionAny,
	}
	known := t.entry.Load()
	partition, err := o.chooseOf(m, known)
	if err != nil {
		return nil, err
	}
	if known != nil {
		o.refresh(t, known, h.at)
	}
	o.mu.Lock()
	if err := o.takeRoomLocked(ctx, m, int64(size)+messageOverhead, h.at); err != nil {
		o.mu.Unlock()
		return nil, err
	}
	for t.gone || t.entry.Load() != known {
		if t.gone {
			o.latest.CompareAndSwap(t, nil) // Somebody may have found it before it went.
		}
		// The application's function is not to be called with the lock.
		o.mu.Unlock()
		t = o.topic(m.Topic)
		known = t.entry.Load()
		if partition, err = o.chooseOf(m, known); err != nil {
			o.releaseRoom(int64(size) + messageOverhead)
			return nil, err
		}
		o.mu.Lock()
		if o.closed {
			o.giveRoomLocked(int64(size) + messageOverhead)
			o.mu.Unlock()
			return nil, ErrClosed
		}
	}
	o.armLocked()
	t.used = h.at
	if known == nil {
		o.stageLocked(t, staged{m.Clone(), e, neverPlaced}, o.waves.now)
		o.mu.Unlock()
		return nil, nil
	}
	q := t.queueLocked(o, partition)
	s := q.sender
	drive := false
	if begun := q.addLocked(m, e); begun || q.state != queueReady {
		drive = s.noteLocked(q) // Else all has been seen to.
	}
	o.mu.Unlock()
	if drive {
		lent = s.drive(h.by)
	}
	if o.cfg.flushPolicy != nil {
		o.askPolicy(q)
	}
	return lent, nil
}

// check tells whether a message can be sent at all, and how much it weighs.
func (o *outbox) check(m *Message) (size uint64, err error) {
	if err := checkOutgoing(m); err != nil {
		return 0, err
	}
	size = m.Size()
	if size > uint64(o.cfg.maxFrameBytes) {
		return 0, fmt.Errorf("%w: %d bytes, WithMaxFrameBytes is %d", ErrMessageTooLarge, size, o.cfg.maxFrameBytes)
	}
	return size, nil
}

// checkOutgoing tells what is wrong with a message, whatever the limits are.
func checkOutgoing(m *Message) error {
	if m == nil {
		return fmt.Errorf("%w: the message is nil", ErrInvalidRequest)
	}
	if err := checkTopicName(m.Topic); err != nil {
		return err
	}
	if m.Partition < PartitionAny || m.Partition >= maxTopicPartitions {
		return fmt.Errorf("%w: %s/%d", ErrPartitionNotFound, m.Topic, m.Partition)
	}
	return checkMessageID(m.ID)
}

// askPolicy has a queue's batch sent if the application says so.
func (o *outbox) askPolicy(q *outQueue) {
	o.mu.Lock()
	b := q.openLocked()
	if b == nil {
		o.mu.Unlock()
		return
	}
	state := PendingBatch{
		Topic: q.topic.name, Partition: q.partition, Messages: b.build.count(), Bytes: b.build.size(),
		Since: o.born.Add(b.entries[0].at),
	}
	number := b.number
	o.mu.Unlock()
	if !o.cfg.flushPolicy(state) {
		return
	}
	o.mu.Lock()
	drive := false
	if b := q.openLocked(); b != nil && b.number == number {
		b.due = true
		drive = q.sender.noteLocked(q)
	}
	s := q.sender
	o.mu.Unlock()
	if drive {
		s.drive(caller)
	}
}

// flush sends everything that was accepted before it, and waits until all of it is done
// with.
func (o *outbox) flush(ctx context.Context) error {
	o.mu.Lock()
	wave := o.waves.now
	o.waves.now++
	o.flushing++
	o.mu.Unlock()
	o.kickAll()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.flushing--
	}()
	for {
		o.mu.Lock()
		under := 0
		for w, n := range o.waves.counts {
			if w <= wave {
				under += n
			}
		}
		if under == 0 {
			o.mu.Unlock()
			return nil
		}
		if o.waves.ended == nil {
			o.waves.ended = make(chan struct{})
		}
		ended := o.waves.ended
		o.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return endOf(ctx)
		}
	}
}

// kickAll has every sender look at its queues.
func (o *outbox) kickAll() {
	o.mu.Lock()
	var idle []*outSender
	for _, s := range o.senders {
		for _, q := range s.queues {
			if s.noteLocked(q) {
				idle = append(idle, s)
			}
		}
	}
	o.mu.Unlock()
	for _, s := range idle {
		s.driveSoon()
	}
}

// stop ends the outbox: nothing more is accepted, what is not under way fails, and what is
// gets its answer but is not sent again. With abandon it fails as well, at once.
func (o *outbox) stop(abandon bool) {
	o.mu.Lock()
	o.closed, o.stopped = true, true
	o.grantLocked()
	failed := o.failWaitingLocked(func(q *outQueue, b *outBatch) error {
		return &waitError{what: sendNameOf(q.topic.name, q.partition), end: ErrClosed, last: b.last}
	})
	if abandon {
		failed = append(failed, o.abandonLocked()...)
	}
	o.cancel()
	o.handLocked(failed)
}

// abandonLocked fails what is under way; its fate is unknown.
func (o *outbox) abandonLocked() (failed []*outBatch) {
	o.topics.Range(func(_, v any) bool {
		t := v.(*outTopic) //nolint:forcetypeassert // nothing else is in it
		for _, q := range t.allLocked() {
			for _, b := range q.flying {
				f := o.tellingLocked(q.of(), b.takeEntries(), b.wave)
				f.fail(&waitError{what: sendNameOf(t.name, q.partition), state: "its answer has not come", end: ErrClosed, last: b.last})
				failed = append(failed, f)
			}
		}
		return true
	})
	return failed
}

// refuseMore has nothing more accepted.
func (o *outbox) refuseMore() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.grantLocked()
}

// failWaitingLocked takes out everything that is not under way.
func (o *outbox) failWaitingLocked(why func(*outQueue, *outBatch) error) (failed []*outBatch) {
	o.topics.Range(func(_, v any) bool {
		t := v.(*outTopic) //nolint:forcetypeassert // nothing else is in it
		for _, q := range t.allLocked() {
			for _, b := range slices.Concat(q.again, q.pending) {
				b.fail(why(q, b))
				failed = append(failed, b)
			}
			q.pending, q.again = nil, nil
		}
		if b := o.unstageLocked(t, func() error { return &waitError{what: "send to " + t.name, end: ErrClosed, last: t.last} }); b != nil {
			failed = append(failed, b)
		}
		return true
	})
	return failed
}

// close ends the goroutines and waits for them, at most as long as ctx lasts; stop must
// have been called.
func (o *outbox) close(ctx context.Context) {
	o.client.metrics.Producer.buffered.set(o, nil)
	o.cancel()
	o.mu.Lock()
	if o.expiry != nil {
		o.expiry.Stop()
	}
	for _, s := range o.senders {
		s.linger.Stop()
	}
	o.mu.Unlock()
	o.running.wait(ctx)
}

// armLocked sees to it that expire runs when the delivery timeout of the first message
// is over.
func (o *outbox) armLocked() {
	if o.expiry == nil {
		o.expiry = time.AfterFunc(o.cfg.deliveryTimeout, o.expire)
	}
}

// expire fails what has waited for too long.
func (o *outbox) expire() {
	now := o.age()
	limit := now - o.cfg.deliveryTimeout
	state := o.client.pool.state().String()
	o.mu.Lock()
	if o.ctx.Err() != nil {
		o.mu.Unlock()
		return
	}
	next := time.Duration(-1) // when the next one is due
	earliest := func(e *entry) {
		if at := e.at + o.cfg.deliveryTimeout; next < 0 || at < next {
			next = at
		}
	}
	var failed []*outBatch
	o.topics.Range(func(_, v any) bool {
		t := v.(*outTopic) //nolint:forcetypeassert // as in failWaitingLocked
		for _, q := range t.allLocked() {
			failed = append(failed, q.expireLocked(limit, state, earliest)...)
		}
		if b := o.expireStagedLocked(t, limit, state, earliest); b != nil {
			failed = append(failed, b)
		}
		if len(t.staged) > 0 {
			o.resolveLocked(t) // They may have waited for what has expired.
		}
		return true
	})
	o.expiry = nil
	if next >= 0 {
		o.expiry = time.AfterFunc(max(next-now, time.Millisecond), o.expire)
	}
	o.handLocked(failed)
}

// count counts what became of a batch's messages, and tells the application's hook.
func (o *outbox) count(b *outBatch) {
	if o.cfg.unmeasured || errors.Is(b.err, errPlainBroker) {
		return
	}
	now := o.age()
	var n, bytes uint64
	var first time.Duration // when that message was handed over
	took := tally[time.Duration]{to: &o.client.metrics.Producer.latency}
	for i := range b.entries {
		e := &b.entries[i]
		if e.to == nil || e.to.gaveUp(e) {
			continue
		}
		if n++; n == 1 {
			first = e.at
		}
		bytes += uint64(e.size)
		if b.err == nil {
			took.record(now - e.at)
		}
	}
	if n == 0 {
		return
	}
	took.flush()
	if b.err != nil {
		o.client.metrics.Producer.messagesFailed.Add(n)
	} else {
		o.client.metrics.Producer.recordBatch(n, bytes, b.build.size(), len(b.encoded))
	}
	if tell := o.cfg.hooks.ProduceDone; tell != nil {
		tell(b.event(int(n), int(bytes), now-first))
	}
}

// event is what a hook is told of a batch, of which somebody waits for n messages. It does
// not look at these: whoever gives up meanwhile may change them.
func (b *outBatch) event(n, bytes int, took time.Duration) ProduceEvent {
	of := b.of
	if b.queue != nil {
		of = b.queue.of()
	}
	e := ProduceEvent{
		Topic: of.Topic, Partition: of.Partition, BaseOffset: offsetNone,
		Messages: n, Bytes: bytes, Latency: took, Err: b.err,
	}
	if b.encoded != nil {
		e.Bytes = len(b.encoded)
	}
	if b.err == nil && b.receipts == nil {
		e.BaseOffset = b.base
	}
	return e
}

// buffered is how many bytes are accepted and not released.
func (o *outbox) buffered() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.used
}

// shown has the client's metrics tell of the outbox's memory, until it is closed.
func (o *outbox) shown() { o.client.metrics.Producer.buffered.set(o, o.buffered) }

// status says what waits, and how things stand with the brokers.
func (o *outbox) status() Status {
	state := o.client.pool.state()
	o.mu.Lock()
	defer o.mu.Unlock()
	messages, queues := 0, 0
	first := time.Duration(-1)
	name := ""
	o.topics.Range(func(_, v any) bool {
		t := v.(*outTopic) //nolint:forcetypeassert // nothing else is in it
		if len(t.staged) > 0 {
			messages, queues, name = messages+len(t.staged), queues+1, t.name
			first = earliestOf(first, t.staged[0].e.at)
		}
		for _, q := range t.allLocked() {
			n := 0
			for _, list := range [][]*outBatch{q.flying, q.again, q.pending} {
				for _, b := range list {
					n += len(b.entries) - b.gone
					if len(b.entries) > 0 {
						first = earliestOf(first, b.entries[0].at)
					}
				}
			}
			if n > 0 {
				messages, queues, name = messages+n, queues+1, fmt.Sprintf("%s/%d", t.name, q.partition)
			}
		}
		return true
	})
	switch {
	case messages == 0 && o.closed:
		return Status{Text: "closed"}
	case messages == 0:
		return Status{Text: "idle"}
	case queues > 1:
		name = fmt.Sprintf("%d partitions", queues)
	}
	return Status{fmt.Sprintf("%s: %d messages under way, %s", name, messages, state.Text), o.born.Add(first)}
}

func earliestOf(a, b time.Duration) time.Duration {
	if a < 0 || b < a {
		return b
	}
	return a
}
