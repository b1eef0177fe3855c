package robust

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"
)

// How a connection's requests leave: a call by itself, or a run of them.

// begin sends a request, to be answered within timeout; finish waits for the
// answer. A request that is too large for the broker fails here. begin waits only
// while more is queued than the network takes.
func (c *conn) begin(ctx context.Context, req request, timeout time.Duration) (*call, error) {
	k := &call{done: make(chan struct{}, 1)}
	return k, c.send(ctx, k, outgoingCall{req: req}, timeout)
}

// exchange sends a request and waits for the answer.
func (c *conn) exchange(ctx context.Context, req request, resp response, timeout time.Duration) error {
	k := &call{done: make(chan struct{}, 1)}
	if err := c.send(ctx, k, outgoingCall{req: req, reads: true}, timeout); err != nil {
		return err
	}
	return c.finish(ctx, k, resp)
}

// post is begin for a request that may have a body. notify is called with the call,
// unless post fails. lent tells that the caller is to call readUntil.
func (c *conn) post(ctx context.Context, out outgoingCall, timeout time.Duration, notify func(*call)) (lent bool, err error) {
	k := &call{notify: notify}
	err = c.send(ctx, k, out, timeout)
	return k.lent, err
}

// send puts a call in flight and its request on the way.
func (c *conn) send(ctx context.Context, k *call, out outgoingCall, timeout time.Duration) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	k.kind, k.sent = out.req.kind(), time.Now()
	k.deadline = k.sent.Add(timeout)
	if err := c.awaitRoom(ctx, timeout); err != nil {
		return err
	}
	return c.launch(ctx, k, out)
}

// sendNow is send that does not wait, however much is queued: for small requests, of
// which there are few. The connection is not of the v0 form.
func (c *conn) sendNow(k *call, req request, timeout time.Duration) error {
	k.kind, k.sent = req.kind(), time.Now()
	k.deadline = k.sent.Add(timeout)
	return c.launch(context.Background(), k, outgoingCall{req: req})
}

// launch does what is left of send when there is room.
func (c *conn) launch(ctx context.Context, k *call, out outgoingCall) error {
	k.sequence = c.sequence.Add(1)
	room, ok := c.frames.Get().(*[]byte)
	if !ok {
		room = new([]byte)
	}
	frame, size, err := c.encode((*room)[:0], k, &out)
	if err != nil {
		return err
	}
	if cap(frame) <= keepScratch {
		defer func() {
			*room = frame
			c.frames.Put(room)
		}()
	}
	if out.body != nil {
		k.end.Store(math.MaxInt64)
	}
	first, err := c.register(ctx, k, out.reads)
	if err != nil {
		return err
	}
	// With nothing else in flight the broker has read all that was sent before,
	// so a small frame cannot block, and the caller may write it itself.
	inline := first && size <= inlineWrite && c.writesAtOnce()
	if inline && out.body == nil {
		err = c.out.sendInline(frame)
	} else if err = c.out.queueTo(&k.end, frame, out.body); err == nil {
		if inline || out.flush {
			err = c.out.flush()
		} else {
			signal(c.out.wake)
		}
	}
	if err != nil {
		// The call is answered by closeWith like every other one.
		c.closeWith(&ConnError{Addr: c.addr, Op: "write", Err: err})
	}
	return nil
}

// encode appends the frame of a request. size is that of the body as well.
func (c *conn) encode(frame []byte, k *call, out *outgoingCall) (_ []byte, size int, err error) {
	const envelope = 96
	size = envelope + payloadSize(out.req)
	if c.form == ProtocolV0 {
		size += size / 3
	}
	frame = slices.Grow(frame, size)
	var room [36]byte
	id := c.ids.append(room[:0], k.sequence)
	size = 0
	for _, b := range out.body {
		size += len(b)
	}
	if out.body == nil {
		frame, err = appendRequest(frame, c.form, id, k.kind, out.req)
	} else {
		frame, err = appendBodyRequest(frame, id, k.kind, size, out.req)
	}
	if err != nil {
		return nil, 0, err
	}
	size += len(frame)
	if size > c.maxFrame {
		return nil, 0, c.frameTooLarge(k.kind, size)
	}
	return frame, size, nil
}

func (c *conn) frameTooLarge(kind requestType, size int) error {
	return fmt.Errorf("%w: %s of %d bytes in a frame, the limit is %d", ErrMessageTooLarge, kind, size, c.maxFrame)
}

// congested tells that a call would wait until others are written.
func (c *conn) congested() bool { return c.out.room(maxQueuedBytes) != nil }

// awaitRoom waits while more is queued than the network takes.
func (c *conn) awaitRoom(ctx context.Context, timeout time.Duration) error {
	room := c.out.room(maxQueuedBytes)
	if room == nil {
		return nil
	}
	t := time.NewTimer(timeout)
	defer t.Stop()
	for ; room != nil; room = c.out.room(maxQueuedBytes) {
		select {
		case <-room:
		case <-t.C:
			return &ConnError{Addr: c.addr, Op: "write", Err: errNotWritten, unsent: true}
		case <-c.done:
			return c.closedError(true)
		case <-ctx.Done():
			return endOf(ctx)
		}
	}
	return nil
}

// register puts a call in flight; first tells that it is the only one. A v0 broker
// that is being asked for a sign of life answers that first.
func (c *conn) register(ctx context.Context, k *call, reads bool) (first bool, err error) {
	for {
		c.mu.Lock()
		ping := c.ping
		if c.inflight == nil {
			c.mu.Unlock()
			return false, c.closedError(true)
		}
		if ping == nil || c.form != ProtocolV0 {
			c.putInFlightLocked(k)
			k.lent = c.turn.begunLocked(reads)
			first = c.inflightLocked() == 1
			c.mu.Unlock()
			return first, nil
		}
		c.mu.Unlock()
		timeout := time.NewTimer(time.Until(k.deadline))
		select {
		case <-ping.done:
		case <-c.done:
		case <-timeout.C:
			err = &ConnError{Addr: c.addr, Op: "wait", Err: errNoAnswer, unsent: true}
		case <-ctx.Done():
			err = endOf(ctx)
		}
		timeout.Stop()
		if err != nil {
			return false, err
		}
	}
}

func (c *conn) putInFlightLocked(k *call) {
	k.hook = c.hook
	c.inflight[k.sequence] = k
	c.wakeAtLocked(k.deadline)
}

// wakeAtLocked has check look at a deadline.
func (c *conn) wakeAtLocked(deadline time.Time) {
	if deadline.Before(c.timerAt) {
		c.timerAt = deadline
		c.timer.Reset(time.Until(deadline))
	}
}

// runChunk is about how much of a run is sent at a time.
const runChunk = 32 << 10

// postRun sends n requests of one kind, each to be answered within timeout, on a connection
// that is not of the v0 form. encode appends the payload of one after the other; answered
// is as in callRun, and called for each before postRun returns or later. It waits only while
// more is queued than the network takes.
func (c *conn) postRun(ctx context.Context, kind requestType, n int, timeout time.Duration,
	encode func(dst []byte, i int) []byte, answered func(i int, resp *wireResponse, err error),
) {
	first := c.sequence.Add(uint64(n)) - uint64(n) + 1
	room, ok := c.frames.Get().(*[]byte)
	if !ok {
		room = new([]byte)
	}
	frames := *room
	for i := 0; i < n; {
		err := endOf(ctx)
		if err == nil {
			err = c.awaitRoom(ctx, timeout)
		}
		if err != nil {
			for ; i < n; i++ {
				answered(i, nil, err)
			}
			break
		}
		from, whole := i, 0
		frames = frames[:0]
		for ; i < n && len(frames) < runChunk && len(frames)-whole <= c.maxFrame; i++ {
			whole = len(frames)
			frames = c.appendRunRequest(frames, first+uint64(i), kind, i, encode)
		}
		var tooLarge error
		sent := i - from
		if size := len(frames) - whole; size > c.maxFrame {
			tooLarge = c.frameTooLarge(kind, size)
			frames = frames[:whole]
			sent--
		}
		if sent > 0 {
			r := &callRun{kind: kind, first: first + uint64(from), from: from, done: make([]bool, sent), answered: answered}
			c.launchRun(r, frames, timeout)
		}
		if tooLarge != nil {
			answered(i-1, nil, tooLarge)
		}
	}
	if cap(frames) <= keepScratch {
		*room = frames
		c.frames.Put(room)
	}
}

// appendRunRequest appends the frame of one request of a run.
func (c *conn) appendRunRequest(dst []byte, sequence uint64, kind requestType, i int, encode func(dst []byte, i int) []byte) []byte {
	dst = append(dst, `{"request_id":"`...)
	dst = c.ids.append(dst, sequence)
	dst = append(dst, `","request_type":`...)
	dst = strconv.AppendInt(dst, int64(kind), 10)
	dst = append(dst, `,"payload":`...)
	return append(encode(dst, i), "}\n"...)
}

// launchRun puts the calls of a run in flight and their frames on the way.
func (c *conn) launchRun(r *callRun, frames []byte, timeout time.Duration) {
	r.left, r.hook = len(r.done), c.hook
	r.sent = time.Now()
	r.deadline = r.sent.Add(timeout)
	c.mu.Lock()
	if c.inflight == nil {
		left := r.leftLocked()
		c.mu.Unlock()
		left.fail(c.closedError(true))
		return
	}
	c.runs.putLocked(r)
	c.turn.begunLocked(false)
	c.wakeAtLocked(r.deadline)
	first := c.inflightLocked() == r.left
	c.mu.Unlock()
	var err error
	if first && len(frames) <= inlineWrite && c.writesAtOnce() {
		err = c.out.sendInline(frames)
	} else if err = c.out.queue(frames); err == nil {
		err = c.out.flush()
	}
	if err != nil {
		// They are answered by closeWith like all others.
		c.closeWith(&ConnError{Addr: c.addr, Op: "write", Err: err})
	}
}
