package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"time"
)

// outRequest is some batches in one request.
type outRequest struct {
	batches []*outBatch
	body    [][]byte
	req     produceBatchRequest
	size    int // of the batches
	names   int // about what names them takes
	answer  int // about what the answer takes, at most
}

const (
	// partRoom is what names a batch in a request, beside its topic.
	partRoom = 64
	// partAnswerRoom is what is answered to one, refusals included, beside its topic, which
	// a refusal may name again.
	partAnswerRoom = 384
)

func (r *outRequest) add(b *outBatch, size int) {
	name := len(b.queue.topic.name)
	r.batches = append(r.batches, b)
	r.size += size
	r.names += name + partRoom
	r.answer += 2*name + partAnswerRoom
}

// senderLocked returns the sender for the broker of an address.
func (o *outbox) senderLocked(addr string) *outSender {
	s := o.senders[addr]
	if s == nil {
		// Brokers may come at other addresses time and again.
		maps.DeleteFunc(o.senders, func(_ string, s *outSender) bool { return s.idleLocked() })
		s = &outSender{box: o, addr: addr}
		s.linger = time.AfterFunc(time.Hour, s.lingered)
		s.linger.Stop()
		o.senders[addr] = s
	}
	return s
}

// lookAt sends what a queue has, if that is to be sent now.
func (o *outbox) lookAt(q *outQueue) {
	o.mu.Lock()
	s := q.sender
	drive := o.ctx.Err() == nil && s.noteLocked(q)
	o.mu.Unlock()
	if drive {
		s.driveSoon()
	}
}

// noteLocked looks at a queue in which something has changed. It tells whether the caller
// is to drive the sender, which it does without the lock.
func (s *outSender) noteLocked(q *outQueue) (drive bool) {
	if q.sender == s && q.state != queueReady && !q.blockedLocked() && (q.state == queueIdle || q.wantsLocked()) {
		s.queueUpLocked(q)
	}
	return s.beginLocked()
}

// beginLocked tells whether there is something to be sent now and nobody at it; the
// caller then drives.
func (s *outSender) beginLocked() bool {
	if s.driving || !s.sendableLocked() {
		s.armLocked()
		return false
	}
	s.driving = true
	return true
}

// armLocked has the linger timer run when something may be due that nothing else brings
// about.
func (s *outSender) armLocked() {
	if s.waiting || s.driving {
		return
	}
	var at time.Duration
	switch {
	case s.requests >= maxRequests || s.lockStep() && s.requests > 0:
		return // The answer does.
	case len(s.ready) > 0:
		at = s.sentAt + s.pace()
	case len(s.lingering) > 0:
		at = s.lingering[0].dueAt
	default:
		return
	}
	s.waiting = true
	s.linger.Reset(max(at-s.box.age(), 0))
}

// pace is the time after which one more request leaves though others are not answered:
// what is held up may be of other partitions.
func (s *outSender) pace() time.Duration { return max(s.box.cfg.batchTimeout, time.Millisecond) }

// sendableLocked tells whether a request may leave. An idle broker is given whatever
// there is.
func (s *outSender) sendableLocked() bool {
	switch {
	case s.requests == 0:
		return len(s.ready) > 0 || len(s.lingering) > 0
	case s.lockStep() || len(s.ready) == 0 || s.requests >= maxRequests:
		return false
	case s.requests < fewRequests, s.requests < maxInFlight && len(s.ready[0].pending) > 1:
		return true
	default:
		return s.box.age() >= s.sentAt+s.pace()
	}
}

// lockStep tells that the broker answers one request before it reads the next.
func (s *outSender) lockStep() bool { return s.conn != nil && s.conn.form == ProtocolV0 }

// lingered has those sent that have waited long enough.
func (s *outSender) lingered() {
	o := s.box
	o.mu.Lock()
	s.waiting = false
	now := o.age()
	for len(s.lingering) > 0 {
		q := s.lingering[0]
		due := q.state == queueLingering && q.sender == s
		if due && len(q.pending) > 0 && q.dueAt > now {
			break
		}
		s.lingering = s.lingering[1:]
		switch {
		case due && len(q.pending) > 0:
			q.pending[0].due = true
			q.state = queueReady
			s.ready = append(s.ready, q)
		case due:
			q.state = queueIdle
		}
	}
	drive := o.ctx.Err() == nil && s.beginLocked()
	o.mu.Unlock()
	if drive {
		s.drive(ownGoroutine)
	}
}

// driveSoon drives in a goroutine of its own.
func (s *outSender) driveSoon() { s.box.running.Go(func() { s.drive(ownGoroutine) }) }

// driver is who drives a sender.
type driver int

const (
	ownGoroutine driver = iota
	caller              // the application, for which whatever could block is left to a goroutine
	waiter              // a caller that does nothing else until its message is done with
)

// drive sends until nothing is to be sent now. If lent is not nil a waiter is to read that
// until its message is done with.
func (s *outSender) drive(by driver) (lent *conn) {
	o := s.box
	for {
		o.mu.Lock()
		if s.conn == nil || s.conn.ended() {
			s.conn = nil
			if by != ownGoroutine {
				o.mu.Unlock()
				s.driveSoon()
				return lent
			}
			o.mu.Unlock()
			if !s.connect() {
				return nil
			}
			continue
		}
		req, given := s.collectLocked()
		if req == nil {
			s.letGoLocked()
			s.driving = false
			again := s.beginLocked()
			o.handLocked(given)
			if !again {
				return lent
			}
			continue
		}
		s.requests++
		s.sentAt = o.age()
		c := s.conn
		o.handLocked(given)
		if by != ownGoroutine && (req.size > inlineWrite || !s.batches || c.congested()) {
			o.running.Go(func() {
				s.send(c, req, outgoingCall{flush: true})
				s.drive(ownGoroutine)
			})
			return lent
		}
		if s.send(c, req, outgoingCall{flush: by == ownGoroutine, reads: by == waiter}) {
			lent = c
		}
	}
}

// letGoLocked gives back a connection that nobody else can use meanwhile.
func (s *outSender) letGoLocked() {
	if s.lockStep() && s.requests == 0 {
		s.box.client.pool.put(s.conn)
		s.conn = nil
	}
}

// collectLocked takes batches for one request; nil if there are none. given are batches
// that are done with instead.
func (s *outSender) collectLocked() (req *outRequest, given []*outBatch) {
	if !s.sendableLocked() {
		return nil, nil
	}
	if s.requests == 0 {
		s.endLingerLocked()
	}
	for len(s.ready) > 0 {
		q := s.ready[0]
		if q.sender != s || q.state != queueReady || q.blockedLocked() {
			if q.sender == s && q.state == queueReady {
				q.state = queueIdle
			}
			s.ready = s.ready[1:]
			continue
		}
		if q.partition == PartitionAny && s.batches {
			// It knows how to create topics when it is asked about them, and has not.
			given = append(given, q.failPendingLocked(q.missing)...)
			continue
		}
		if late := s.box.age() - s.box.cfg.deliveryTimeout; q.pending[0].lateLocked(late) {
			given = append(given, q.expireLocked(late, s.box.client.pool.state().String(), func(*entry) {})...)
			continue
		}
		size := q.pending[0].size()
		if req != nil && !s.takesLocked(req, q, size) {
			break
		}
		s.ready = s.ready[1:]
		q.state = queueIdle
		b, dropped := q.takeLocked()
		given = append(given, dropped...)
		if b != nil {
			if req == nil {
				req = new(outRequest)
			}
			req.add(b, size)
		}
		s.queueUpLocked(q)
	}
	return req, given
}

// endLingerLocked has what lingers leave with what is ready.
func (s *outSender) endLingerLocked() {
	for _, q := range s.lingering {
		if q.state == queueLingering && q.sender == s {
			q.state = queueReady
			s.ready = append(s.ready, q)
		}
	}
	s.lingering = s.lingering[:0]
}

// queueUpLocked puts a queue that is in none of the sender's lists into one, unless it
// is blocked.
func (s *outSender) queueUpLocked(q *outQueue) {
	switch {
	case q.blockedLocked():
	case q.wantsLocked():
		q.state = queueReady
		s.ready = append(s.ready, q)
	default:
		q.state = queueLingering
		q.dueAt = s.box.age() + s.box.cfg.batchTimeout
		s.lingering = append(s.lingering, q)
	}
}

// takesLocked tells whether a batch of a queue goes into a request with others: neither
// that nor its answer may be larger than a frame.
func (s *outSender) takesLocked(req *outRequest, q *outQueue, size int) bool {
	name := len(q.topic.name)
	size += req.size
	return s.batches && len(req.batches) < maxRequestParts && size <= maxRequestBytes &&
		size+req.names+name+partRoom <= s.frameLimit-lineRoom &&
		req.answer+2*name+partAnswerRoom <= s.box.cfg.maxFrameBytes-lineRoom
}

// connect gets a connection, as long as there is something to send. If it returns false
// the caller does not drive any more.
func (s *outSender) connect() bool {
	o := s.box
	tries := 0
	for {
		o.mu.Lock()
		if o.ctx.Err() != nil || !s.busyLocked() {
			s.restLocked()
			o.mu.Unlock()
			return false
		}
		needID := o.id == 0
		o.mu.Unlock()
		c, id, err := s.open(needID)
		if err == nil {
			o.mu.Lock()
			if o.id == 0 && !needID {
				o.mu.Unlock() // It has been dropped meanwhile.
				o.client.pool.put(c)
				continue
			}
			s.adoptLocked(c, id)
			o.mu.Unlock()
			return true
		}
		tries++
		o.mu.Lock()
		given := s.unreachedLocked(err)
		o.handLocked(given)
		if !errors.Is(err, errPlainBroker) { // With that, all is failed that there is.
			pause(o.ctx, nil, faultBackoff.before(tries))
		}
	}
}

// restLocked ends driving when nothing waits.
func (s *outSender) restLocked() {
	for _, q := range s.queues {
		q.state = queueIdle
	}
	s.ready, s.lingering = nil, nil
	s.driving = false
}

// busyLocked tells whether anything waits.
func (s *outSender) busyLocked() bool {
	for _, q := range s.queues {
		if len(q.pending) > 0 {
			return true
		}
	}
	return false
}

// adoptLocked notes what is known of a broker that has been connected to.
func (s *outSender) adoptLocked(c *conn, id int64) {
	o := s.box
	s.conn, s.frameLimit, s.since = c, c.maxFrame, time.Time{}
	s.batches = c.form == ProtocolV1 && c.supports(featureBinary)
	s.idempotent = s.batches && c.supports(featureIdempotence)
	if o.id == 0 {
		o.id = id
	}
	for _, q := range s.queues {
		q.fitLocked()
	}
}

// unreachedLocked notes that the broker could not be reached. given are batches that are
// done with.
func (s *outSender) unreachedLocked(err error) (given []*outBatch) {
	if s.since.IsZero() {
		s.since = time.Now()
	}
	for _, q := range s.queues {
		for _, b := range q.pending {
			b.last = err
		}
		if !retriable(err) {
			given = append(given, q.failPendingLocked(err)...)
		}
	}
	return given
}

// open returns a connection to the leader, or to another broker if it cannot be reached,
// and a producer ID if one is needed and the broker gives some.
func (s *outSender) open(needID bool) (*conn, int64, error) {
	o := s.box
	ctx, cancel := context.WithTimeout(o.ctx, o.cfg.connectionTimeout)
	defer cancel()
	var last error
	for _, addr := range s.addrs() {
		others := len(s.addrs()) > 1
		w := o.client.patience()
		if others {
			w.limit = min(w.limit, brokerPatience)
		}
		c, err := o.client.pool.get(ctx, addr, false, others, w)
		if err != nil {
			last = err
			continue
		}
		if err := o.suits(c); err != nil {
			o.client.pool.put(c)
			return nil, 0, err
		}
		if !needID || !c.supports(featureIdempotence) {
			return c, 0, nil
		}
		var resp initProducerResponse
		err = c.exchange(ctx, &initProducerRequest{}, &resp, o.cfg.requestTimeout)
		if err == nil && resp.ProducerID <= 0 {
			err = fmt.Errorf("%w: InitProducer: producer ID %d", ErrMalformed, resp.ProducerID)
		}
		if err == nil {
			return c, resp.ProducerID, nil
		}
		last = err
		if !connectionFault(err) {
			return nil, 0, err
		}
	}
	return nil, 0, &noBrokerError{last}
}

// addrs are those that may be asked, the leader's first.
func (s *outSender) addrs() []string {
	r := route{}
	addrs := s.box.client.candidates(nil, r)
	if s.addr == "" {
		return addrs
	}
	all := []string{s.addr}
	for _, a := range addrs {
		if a != s.addr {
			all = append(all, a)
		}
	}
	return all
}

// suits tells what keeps a broker from being sent to.
func (o *outbox) suits(c *conn) error {
	if !o.singles && (c.form != ProtocolV1 || !c.supports(featureBinary)) {
		return errPlainBroker
	}
	if o.cfg.acks != AcksStored && !c.supports(featureAcks) {
		return unsupported(c.addr, requestProduce, featureAcks)
	}
	return nil
}

// send puts one request on the way, by what out says. lent is as in conn.post.
func (s *outSender) send(c *conn, req *outRequest, out outgoingCall) (lent bool) {
	if !s.batches {
		s.sendSingles(c, req.batches[0])
		return false
	}
	o := s.box
	req.req.Acks = o.cfg.acks.wire()
	for _, b := range req.batches {
		if err := b.encode(o.cfg.compression); err != nil {
			s.answered(c, req, nil, err)
			return false
		}
		req.req.Parts = append(req.req.Parts, producePart{b.queue.topic.name, b.queue.partition, len(b.encoded)})
		req.body = append(req.body, b.encoded)
	}
	out.req, out.body = &req.req, req.body
	lent, err := c.post(o.ctx, out, o.cfg.requestTimeout, func(k *call) { s.answered(c, req, k, nil) })
	if err != nil {
		s.answered(c, req, nil, err)
	}
	return lent
}

// sendSingles sends a batch to a broker that takes single messages only.
func (s *outSender) sendSingles(c *conn, b *outBatch) {
	o := s.box
	r := &singleRun{conn: c, ctx: o.ctx, timeout: o.cfg.requestTimeout}
	r.finished = func() {
		o.mu.Lock()
		s.landedLocked(c)
		q := b.queue
		q.landedLocked(b)
		done := q.sortLocked(b, r.results)
		q.resumeLocked()
		idle := s.afterLocked([]*outBatch{b})
		o.handLocked(done)
		for _, s := range idle {
			s.driveSoon()
		}
	}
	if err := r.start(b, o.cfg.acks); err != nil {
		s.answered(c, &outRequest{batches: []*outBatch{b}}, nil, err)
	}
}

// landedLocked notes that a request has been answered, or will not be.
func (s *outSender) landedLocked(c *conn) {
	s.requests--
	if s.conn == c && c.ended() {
		s.conn = nil
	}
}

// answered is told what came of a request.
func (s *outSender) answered(c *conn, req *outRequest, k *call, err error) {
	o := s.box
	var parts []producedPart
	if err == nil {
		parts, err = req.read(c, k)
	}
	o.mu.Lock()
	s.landedLocked(c)
	var done []*outBatch
	for i, b := range req.batches {
		q := b.queue
		q.landedLocked(b)
		b.sentOn(c, k)
		failure := err
		if failure == nil {
			failure = s.receive(c, b, &parts[i])
		}
		if failure == nil {
			done = append(done, b)
		} else {
			if outdated(failure) {
				o.forget(q.topic)
			}
			done = append(done, q.failedLocked(b, failure)...)
		}
		q.resumeLocked()
	}
	idle := s.afterLocked(req.batches)
	o.handLocked(done)
	for _, s := range idle {
		s.driveSoon()
	}
}

// afterLocked looks at what an answer has changed, and returns the senders that are to be
// driven.
func (s *outSender) afterLocked(batches []*outBatch) (idle []*outSender) {
	for _, b := range batches {
		if q := b.queue; q.sender.noteLocked(q) {
			idle = append(idle, q.sender)
		}
	}
	if s.beginLocked() {
		idle = append(idle, s)
	}
	if !s.driving {
		s.letGoLocked() // Whoever drives does so in the end.
	}
	return idle
}

// read reads an answer.
func (r *outRequest) read(c *conn, k *call) ([]producedPart, error) {
	var resp produceBatchResponse
	if err := c.result(k, &resp); err != nil {
		return nil, err
	}
	if len(resp.Parts) != len(r.batches) {
		return nil, fmt.Errorf("%w: ProduceBatch: %d parts in the answer to %d", ErrMalformed, len(resp.Parts), len(r.batches))
	}
	return resp.Parts, nil
}

// receive notes where a batch was stored. The error says why it was not.
func (s *outSender) receive(c *conn, b *outBatch, part *producedPart) error {
	q := b.queue
	switch {
	case part.Topic != q.topic.name || part.Partition != q.partition:
		return fmt.Errorf("%w: ProduceBatch: the answer for %s/%d is of %s/%d",
			ErrMalformed, q.topic.name, q.partition, shorten(part.Topic), part.Partition)
	case part.refused():
		return c.refusalOf(requestProduceBatch, &wireResponse{errText: part.Error, errCode: part.Code, retriable: part.Retriable}, "")
	case part.BaseOffset < 0, part.BaseOffset > math.MaxInt64-int64(len(b.entries)):
		return fmt.Errorf("%w: ProduceBatch: base offset %d for %s/%d", ErrMalformed, part.BaseOffset, q.topic.name, q.partition)
	}
	acks, err := parseAcks(part.Acks)
	if err != nil {
		acks = AcksStored // A level of which nobody here knows what it is worth.
	}
	if acks < q.box.cfg.acks {
		return fmt.Errorf("%w: ProduceBatch: acks %q was asked for, the batch at %s/%d, offset %d, is %s only",
			ErrMalformed, q.box.cfg.acks, q.topic.name, q.partition, part.BaseOffset, acks)
	}
	b.base, b.acks = part.BaseOffset, acks
	return nil
}
