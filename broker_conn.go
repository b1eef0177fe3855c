package robust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// frameTimeout is how long a frame may take to come once it has begun, and
	// writeTimeout how long a peer may leave an answer unread.
	frameTimeout = 2 * time.Minute
	writeTimeout = 30 * time.Second
	// maxUnread is how many bytes of answers may wait for a peer to read them
	// before no more of its requests are read.
	maxUnread = 1 << 20
	// lateTimeout is how long requests of a peer that has hung up may still take.
	lateTimeout = 30 * time.Second
	// maxHeld is how many fetches and heartbeats of one connection are held at a
	// time; one more is answered at once.
	maxHeld = 1024
	// maxHeldParts is how many partitions the fetches that are held of one connection may
	// wait for, if they name many.
	maxHeldParts = 20_000
	// maxGrouping is how many requests about groups of one connection wait for their
	// turn before no more of its requests are read.
	maxGrouping = 16
	// maxAppends is how many produces of one connection wait for the storage at a
	// time before no more of its requests are read.
	maxAppends = 4096
	// maxBodies is likewise for requests with bodies.
	maxBodies = 8
)

// brokerConn serves one connection. serve reads and answers requests in the order
// in which they come; fetches and heartbeats that wait are held by goroutines of their
// own, requests about groups are answered by another, which serve waits for.
type brokerConn struct {
	service *service
	nc      net.Conn
	host    string // the address that the peer has reached us at
	in      *frameReader
	out     *frameWriter

	ctx     context.Context //nolint:containedctx // ends with the connection
	cancel  context.CancelCauseFunc
	done    chan struct{}  // closed when serve stops reading
	held    sync.WaitGroup // goroutines of what is held or answered later, and appends under way
	appends chan struct{}  // holds a token for each append under way
	bodies  chan struct{}  // holds a token for each request with a body under way
	// answering holds a token while something that was held is answered.
	answering chan struct{}
	grouping  chan groupJob // requests about groups, in order; nil before the first
	scratch   []byte        // serve's buffer for answers
	frames    int           // read so far
	timing    frameTiming   // of the frame that has begun
	turn      atomic.Uint32 // of the partitions of a FetchBatch

	mu        sync.Mutex  // guards the following
	heldCount int         // fetches and heartbeats held
	heldParts int         // and partitions that those wait for which name many
	v0        []*v0Answer // requests in the v0 form, in order, from the first unanswered
}

// frameTiming is the read deadline that serve has set for a frame that has begun.
type frameTiming struct {
	set   bool
	frame int // which one, by brokerConn.frames
	since time.Time
}

// v0Answer is the place of an answer in the order of requests, which v0 peers rely on.
type v0Answer struct {
	frame []byte
	ready bool
}

func newBrokerConn(s *service, nc net.Conn) *brokerConn {
	c := &brokerConn{
		service: s, nc: nc, host: nc.LocalAddr().String(),
		in:        &frameReader{r: nc, limit: s.cfg.maxFrameBytes},
		out:       newFrameWriter(nc, writeTimeout),
		done:      make(chan struct{}),
		appends:   make(chan struct{}, maxAppends),
		bodies:    make(chan struct{}, maxBodies),
		answering: make(chan struct{}, 1),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.in.beforeRead = c.beforeRead
	return c
}

// serve runs until the peer hangs up, sends what cannot be understood, or the
// broker closes. It closes the connection after all answers have been written.
func (c *brokerConn) serve() {
	var writer sync.WaitGroup
	writerDone := make(chan struct{})
	writer.Go(func() { c.out.run(writerDone) })

	last, told := c.read()
	if last != nil && !told {
		c.refuseAll(last)
	}
	// What is held is answered with what there is, what is being stored when it is.
	close(c.done)
	if c.grouping != nil {
		close(c.grouping)
	}
	// A storage that does not come to an end must not keep the connection for ever.
	late := time.AfterFunc(lateTimeout, func() { c.cancel(ErrClosed) })
	c.held.Wait()
	late.Stop()
	_ = c.out.flush() // A peer that cannot be written to is gone.
	close(writerDone)
	writer.Wait()
	c.cancel(ErrClosed)
	hangUp(c.nc, last != nil || c.service.draining())
}

// read serves requests until there are no more. It returns the peer's fault that
// ended it, nil if there was none, and whether the peer has been told of it.
func (c *brokerConn) read() (fault error, told bool) {
	var req wireRequest
	for {
		frame, err := c.in.next()
		if err != nil {
			return c.readFault(err), false
		}
		c.frames++
		if err := req.decode(frame); err != nil {
			if !json.Valid(frame) {
				return err, false
			}
			c.reply(c.place(&req), req.form, req.id, &plainResponse{}, fmt.Errorf("%w: not a request: %s", ErrInvalidRequest, trimPrefix(err)))
			continue
		}
		if req.body >= 0 || req.kind == requestProduceBatch {
			if fault, gone := c.handleBody(&req); fault != nil || gone {
				return fault, false
			}
			continue
		}
		refusal := c.handle(&req)
		if errors.Is(refusal, ErrMalformed) && !json.Valid(frame) {
			return refusal, true // What follows cannot be trusted.
		}
		if cap(req.scratch) > keepScratch {
			req.scratch = nil
		}
		if c.out.room(maxUnread) != nil && c.drain() != nil {
			return nil, false //nolint:nilerr // the peer is gone, there is nobody to tell
		}
	}
}

// handleBody answers a request that bytes follow, after reading them. gone tells that the
// peer is, fault that what it sends cannot be read on.
func (c *brokerConn) handleBody(req *wireRequest) (fault error, gone bool) {
	if err := checkBody(req.body, c.in.limit); err != nil {
		return err, false
	}
	if req.kind != requestProduceBatch || req.form != ProtocolV1 || req.body < 0 {
		slot, form, id := c.place(req), req.form, req.id
		err := fmt.Errorf("%w: %s with a body of %d bytes", ErrInvalidRequest, req.kind, req.body)
		if req.body > 0 {
			if err := c.in.skipBody(req.body); err != nil {
				return c.readFault(err), true
			}
		}
		c.reply(slot, form, id, &plainResponse{}, err)
		return nil, false
	}
	return c.produceBatch(req)
}

// readFault tells what of a failure to read is the peer's fault, and worth an answer;
// nil if it has only hung up, or the broker ends.
func (c *brokerConn) readFault(err error) error {
	switch {
	case errors.Is(err, ErrMalformed), errors.Is(err, ErrMessageTooLarge):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the stream ended within a frame", ErrMalformed)
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.service.draining():
		return fmt.Errorf("%w: frame was not complete within %v", ErrMalformed, frameTimeout)
	default:
		return nil
	}
}

// beforeRead writes the answers to all requests that came together, and waits for
// the peer to read them before it may send more.
func (c *brokerConn) beforeRead(partial bool) error {
	if err := c.drain(); err != nil {
		return err
	}
	if !partial {
		if !c.timing.set {
			return nil
		}
		c.timing.set = false
		return c.setReadDeadline(time.Time{})
	}
	// A second more or less does not matter, and most frames are done by then.
	if c.timing.set && (c.timing.frame == c.frames || time.Since(c.timing.since) < time.Second) {
		return nil
	}
	c.timing = frameTiming{set: true, frame: c.frames, since: time.Now()}
	return c.setReadDeadline(c.timing.since.Add(frameTimeout))
}

// drain writes the answers that are queued, and waits until few are left.
func (c *brokerConn) drain() error {
	if err := c.out.flush(); err != nil {
		return err
	}
	for room := c.out.room(maxUnread); room != nil; room = c.out.room(maxUnread) {
		<-room // Comes with the write, or with its failure at the timeout.
	}
	return nil
}

// setReadDeadline moves the deadline, unless the broker has set it to stop serve.
func (c *brokerConn) setReadDeadline(t time.Time) error {
	if err := c.nc.SetReadDeadline(t); err != nil {
		return err
	}
	if c.service.draining() {
		return c.nc.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// place keeps the place of a v0 peer's request among its answers; nil for others.
func (c *brokerConn) place(req *wireRequest) *v0Answer {
	if !req.lockStep {
		return nil
	}
	slot := &v0Answer{}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.v0 = append(c.v0, slot)
	return slot
}

// handle answers one request, now or later. The error is the refusal, if it was
// answered now.
func (c *brokerConn) handle(req *wireRequest) error {
	slot := c.place(req)
	switch req.kind {
	case requestProduce:
		return c.produce(req, slot)
	case requestFetch:
		return c.fetch(req, slot)
	case requestFetchBatch:
		return c.fetchBatch(req, slot)
	default:
	}
	later, err := c.service.groupRequest(req, c.hold)
	switch {
	case err != nil:
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		return err
	case later != nil:
		c.answerLater(groupJob{later, slot, req.form, req.id})
		return nil
	}
	resp, err := c.service.answer(c.ctx, req.kind, req.number, req.payload, c.host)
	c.reply(slot, req.form, req.id, resp, err)
	return err
}

// groupJob is a request about groups that waits for its turn.
type groupJob struct {
	call *groupCall
	slot *v0Answer
	form Protocol
	id   string
}

// answerLater answers a request about groups outside of serve, because the storage may
// be asked: one after the other, since each may say what the next one relies on. A
// heartbeat that is held waits by itself.
func (c *brokerConn) answerLater(j groupJob) {
	if j.call.held {
		c.held.Go(func() {
			defer c.unhold()
			c.answerGroup(j)
		})
		return
	}
	if c.grouping == nil {
		jobs := make(chan groupJob, maxGrouping)
		c.grouping = jobs
		c.held.Go(func() {
			for j := range jobs {
				c.answerGroup(j)
			}
		})
	}
	c.grouping <- j
}

func (c *brokerConn) answerGroup(j groupJob) {
	resp, err := j.call.answer(c.ctx, c.done)
	c.sendHeld(j.slot, func() []byte { return c.encode(nil, j.form, j.id, resp, err) })
}

func (c *brokerConn) produce(req *wireRequest, slot *v0Answer) error {
	p := new(produceRequest)
	if err := decodePayload(req.payload, p); err != nil {
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		return err
	}
	// When done is called before produce returns, which is the rule, serve itself
	// answers, in the order of requests and with the next flush.
	c.appends <- struct{}{}
	c.held.Add(1)
	var mu sync.Mutex
	returned := false
	form, id := req.form, req.id
	c.service.produce(c.ctx, p, func(resp *produceResponse, err error) {
		// With the lock, serve cannot go on to flush before the answer is queued,
		// nor use the scratch that it is encoded in.
		mu.Lock()
		if returned {
			c.replyLater(slot, form, id, resp, err)
		} else {
			c.reply(slot, form, id, resp, err)
		}
		mu.Unlock()
		<-c.appends
		c.held.Done()
	})
	mu.Lock()
	returned = true
	mu.Unlock()
	return nil
}

// produceBatch reads the body of a ProduceBatch and has its parts stored; see handleBody
// for what it returns.
func (c *brokerConn) produceBatch(req *wireRequest) (fault error, gone bool) {
	p := new(produceBatchRequest)
	err := decodePayload(req.payload, p)
	if err == nil {
		err = p.checkSizes(req.body)
	}
	id := req.id
	if err != nil {
		if skipped := c.in.skipBody(req.body); skipped != nil {
			return c.readFault(skipped), true
		}
		c.reply(nil, ProtocolV1, id, &plainResponse{}, err)
		return nil, false
	}
	c.bodies <- struct{}{}
	body := c.service.body(req.body)
	if err := c.in.body(*body); err != nil {
		<-c.bodies
		return c.readFault(err), true
	}
	c.held.Add(1)
	var mu sync.Mutex
	returned := false
	c.service.produceBatch(c.ctx, p, *body, func(resp *produceBatchResponse, err error) {
		c.service.bodies.Put(body)
		// As in produce.
		mu.Lock()
		if returned {
			c.replyLater(nil, ProtocolV1, id, resp, err)
		} else {
			c.reply(nil, ProtocolV1, id, resp, err)
		}
		mu.Unlock()
		<-c.bodies
		c.held.Done()
	})
	mu.Lock()
	returned = true
	mu.Unlock()
	return nil, false
}

func (c *brokerConn) fetch(req *wireRequest, slot *v0Answer) error {
	q := new(fetchRequest)
	if err := decodePayload(req.payload, q); err != nil {
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		return err
	}
	f, enough, err := c.service.fetch(c.ctx, q, req.lockStep)
	if req.lockStep && err == nil {
		c.service.groups.fetched(TopicPartition{q.Topic, q.Partition})
	}
	if enough || q.MaxWaitMs <= 0 || req.lockStep || !c.hold() {
		c.reply(slot, req.form, req.id, &f.fetchResponse, err)
		f.release()
		return err
	}
	f.release()
	form, id := req.form, req.id
	named := q.TopicID != ""
	q.TopicID = f.TopicID // It stays with this topic, whoever asked.
	c.held.Go(func() {
		c.service.await(c.ctx, q, c.done)
		c.answerHeld(q, named, form, id)
		c.unhold()
	})
	return nil
}

// answerHeld answers a fetch that was held. named tells that the peer has named the
// topic's ID.
func (c *brokerConn) answerHeld(q *fetchRequest, named bool, form Protocol, id string) {
	c.sendHeld(nil, func() []byte {
		f, _, err := c.service.fetch(c.ctx, q, false)
		defer f.release()
		if !named && err == nil {
			// Of a topic made anew meanwhile there are no messages in f. The peer must
			// not take its ID for that of the topic whose offset it has: it is told
			// that nothing has come, and with the next fetch of the change.
			f.TopicID = q.TopicID
		}
		return c.encode(nil, form, id, &f.fetchResponse, err)
	})
}

// fetchBatch answers a FetchBatch, now or when there is something.
func (c *brokerConn) fetchBatch(req *wireRequest, slot *v0Answer) error {
	q := new(fetchBatchRequest)
	err := decodePayload(req.payload, q)
	switch {
	case err != nil:
	case req.lockStep:
		err = fmt.Errorf("%w: %s in the v0 form", ErrInvalidRequest, req.kind)
	default:
		err = q.check()
	}
	if err != nil {
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		return err
	}
	id := req.id
	f := c.service.fetchBatch(c.ctx, q, nil, c.nextTurn())
	if f.enough() || q.MaxWaitMs <= 0 || !c.holdParts(len(q.Partitions)) {
		c.queueBatches(f, id)
		return nil
	}
	held := f.hold()
	c.held.Go(func() {
		defer c.unholdParts(len(q.Partitions))
		c.service.awaitBatches(c.ctx, held, c.done)
		c.whenRead(func() {
			c.queueBatches(c.service.fetchBatch(c.ctx, q, held.topicIDs, c.nextTurn()), id)
		})
	})
	return nil
}

// queueBatches queues the answer to a FetchBatch and sees to it that it is released.
func (c *brokerConn) queueBatches(f *fetchedBatches, id string) {
	line, err := f.line(nil, id, c.service.cfg.maxFrameBytes)
	if err == nil && len(line) > c.service.cfg.maxFrameBytes {
		err = fmt.Errorf("%w: answer of %d bytes, the limit is %d", ErrMessageTooLarge, len(line), c.service.cfg.maxFrameBytes)
	}
	if err != nil {
		f.release()
		c.queue(nil, c.encode(nil, ProtocolV1, id, &plainResponse{}, err))
		return
	}
	_ = c.out.lend(line, f.body(), f.release) // A connection that failed is noticed by serve.
}

// nextTurn is where the next FetchBatch begins with its partitions.
func (c *brokerConn) nextTurn() int { return int(c.turn.Add(1) & math.MaxInt16) }

// sendHeld sends what encode returns, when it may be sent.
func (c *brokerConn) sendHeld(slot *v0Answer, encode func() []byte) {
	c.whenRead(func() { c.queue(slot, encode()) })
}

// whenRead has answer queue an answer, one at a time and when the peer has read most of
// what it was sent: what many are answered with is not in memory together.
func (c *brokerConn) whenRead(answer func()) {
	c.answering <- struct{}{}
	defer func() { <-c.answering }()
	if c.drain() != nil {
		return // The peer is gone, which serve notices.
	}
	answer()
	_ = c.out.flush() // As above.
}

// hold tells whether one more fetch may be held.
func (c *brokerConn) hold() bool { return c.holdParts(0) }

func (c *brokerConn) unhold() { c.unholdParts(0) }

// holdParts is hold for a fetch of many partitions.
func (c *brokerConn) holdParts(parts int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heldCount >= maxHeld || c.heldParts+parts > maxHeldParts {
		return false
	}
	c.heldCount++
	c.heldParts += parts
	return true
}

func (c *brokerConn) unholdParts(parts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heldCount--
	c.heldParts -= parts
}

// reply queues an answer, which leaves with the next flush. Only serve calls it, or
// somebody for whom serve waits.
func (c *brokerConn) reply(slot *v0Answer, form Protocol, id string, resp response, refusal error) {
	c.scratch = c.encode(c.scratch[:0], form, id, resp, refusal)
	c.queue(slot, c.scratch)
	if cap(c.scratch) > keepScratch {
		c.scratch = nil
	}
}

// replyLater sends an answer from any goroutine, without waiting for the peer.
func (c *brokerConn) replyLater(slot *v0Answer, form Protocol, id string, resp response, refusal error) {
	c.queue(slot, c.encode(nil, form, id, resp, refusal))
	signal(c.out.wake)
}

// encode appends an answer's frame.
func (c *brokerConn) encode(dst []byte, form Protocol, id string, resp response, refusal error) []byte {
	if refusal != nil {
		resp.setRefusal(trimPrefix(refusal))
	}
	frame, err := appendResponse(dst, form, id, resp, refusal)
	if limit := c.service.cfg.maxFrameBytes; err == nil && len(frame)-len(dst) > limit {
		err = fmt.Errorf("%w: answer of %d bytes, the limit is %d", ErrMessageTooLarge, len(frame)-len(dst), limit)
		frame, _ = appendResponse(dst, form, id, &plainResponse{answer{trimPrefix(err)}}, err) // Has nothing that could fail.
		return frame
	}
	if err != nil {
		c.service.warn.warn("answer cannot be encoded", "", "error", err)
		// Without a payload there is nothing left that could fail.
		frame, _ = appendResponse(dst, form, id, nil, fmt.Errorf("answer cannot be encoded: %w", err))
	}
	return frame
}

// queue queues a frame: at once, or in its turn.
func (c *brokerConn) queue(slot *v0Answer, frame []byte) {
	if slot == nil {
		_ = c.out.queue(frame) // A connection that failed is noticed by serve.
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	slot.ready = true
	if c.v0[0] != slot {
		slot.frame = append([]byte(nil), frame...)
		return
	}
	slot.frame = frame
	for len(c.v0) > 0 && c.v0[0].ready {
		_ = c.out.queue(c.v0[0].frame) // As above.
		c.v0 = c.v0[1:]
	}
}

// refuseAll tells the peer why the connection ends.
func (c *brokerConn) refuseAll(err error) {
	c.reply(nil, ProtocolV1, "", &plainResponse{}, err)
}

// hangUp closes a connection. If the peer may still be sending, closing at once
// could destroy the last answer on its way: the peer's system drops what it has
// received when it learns that what it sends is no longer wanted. So reading goes on
// for a moment.
func hangUp(nc net.Conn, sending bool) {
	const most, patience = 1 << 20, time.Second
	if half, ok := nc.(interface{ CloseWrite() error }); ok && sending {
		if half.CloseWrite() == nil && nc.SetReadDeadline(time.Now().Add(patience)) == nil {
			_, _ = io.CopyN(io.Discard, nc, most) // Whatever comes, it ends here.
		}
	}
	_ = nc.Close() // Nothing depends on it any more.
}
