package robust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// serve runs until the peer hangs up, sends what cannot be understood, or the
// broker closes. It closes the connection after all answers have been written.
func (c *brokerConn) serve() {
	var writer sync.WaitGroup
	writerDone := make(chan struct{})
	writer.Go(func() { c.out.run(writerDone) })

	c.in.beforeRead = c.beforeRead
	ended := c.service.metrics.connected(c.nc)
	last, told := c.read()
	c.store()
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
	ended(last)
}

// read serves requests until there are no more. It returns the peer's fault that
// ended it, nil if there was none, and whether the peer has been told of it.
func (c *brokerConn) read() (fault error, told bool) {
	var req wireRequest
	for {
		frame := c.in.lineAhead()
		ok, err := req.decodeLine(frame)
		if ok {
			c.in.take(frame)
		} else {
			if frame, err = c.in.next(); err != nil {
				return c.readFault(err), false
			}
			err = req.decode(frame)
		}
		c.frames++
		if err != nil {
			if !json.Valid(frame) {
				return err, false
			}
			c.store()
			c.reply(c.place(&req), req.form, req.id, &plainResponse{}, fmt.Errorf("%w: not a request: %s", ErrInvalidRequest, trimPrefix(err)))
			continue
		}
		if req.body >= 0 || req.kind == requestProduceBatch {
			c.store()
			if fault, over := c.handleBody(&req, frame); over {
				return fault, false
			}
		} else if refusal := c.handle(&req); errors.Is(refusal, ErrMalformed) && !json.Valid(frame) {
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

// handleBody answers a request that bytes follow, after reading them. over tells that
// nothing more can be read, fault that the peer is to be told why.
func (c *brokerConn) handleBody(req *wireRequest, frame []byte) (fault error, over bool) {
	if err := checkBody(req.body, c.in.limit); err != nil {
		return err, true
	}
	switch {
	case req.kind != requestProduceBatch:
		return c.refuseBody(req, fmt.Errorf("%w: %s has no body", ErrInvalidRequest, req.kind))
	case req.lockStep:
		return c.refuseBody(req, fmt.Errorf("%w: %s in the v0 form", ErrInvalidRequest, req.kind))
	case req.body < 0:
		return c.refuseBody(req, fmt.Errorf("%w: %s without a body", ErrInvalidRequest, req.kind))
	default:
		return c.produceBatch(req, frame)
	}
}

// beforeRead stores the messages that came together, writes the answers to all requests
// that did, and waits for the peer to read them before it may send more.
func (c *brokerConn) beforeRead(partial bool) error {
	c.store()
	if err := c.drain(); err != nil {
		return err
	}
	c.prompt.expect(!partial && c.alone())
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

// alone tells that the peer has sent one request, whose answer it has: it may have waited
// for that, and send the next one at once.
func (c *brokerConn) alone() bool {
	one := c.frames-c.seen <= 2 // A request with a body counts for two.
	c.seen = c.frames
	if !one || c.storing.used.Load() != 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.heldCount == 0
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

// handle answers one request, now or later. The error is the refusal, if it was
// answered now.
func (c *brokerConn) handle(req *wireRequest) error {
	slot := c.place(req)
	if req.kind == requestProduce {
		return c.produce(req, slot)
	}
	c.store() // Requests begin in their order.
	switch req.kind {
	case requestFetch:
		return c.fetch(req, slot)
	case requestFetchBatch:
		return c.fetchBatch(req, slot)
	default:
	}
	at := c.begin(req)
	later, err := c.service.groupRequest(req, c.hold)
	switch {
	case err != nil:
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		c.answered(at, err)
		return err
	case later != nil:
		c.answerLater(groupJob{later, slot, req.form, bytes.Clone(req.id), at})
		return nil
	}
	resp, err := c.service.answer(c.ctx, req.kind, req.number, req.payload, c.host)
	c.reply(slot, req.form, req.id, resp, err)
	c.answered(at, err)
	return err
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
	c.sendHeld(j.slot, func() []byte {
		c.answered(j.at, err)
		return c.encode(nil, j.form, j.id, resp, err)
	})
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
