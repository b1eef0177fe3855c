package robust

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// helloTimeout is how long a broker may be silent before the other form of
// the protocol is tried.
const helloTimeout = 2 * time.Second

// transport is how connections are opened; the pool has one.
type transport struct {
	dial     dialFunc
	ownConns bool // nobody else has the connections that dial opens
	protocol Protocol
	maxFrame int
	hooks    *Hooks
	bytes    *byteCounters

	// Of *[]byte, shared by the connections: to encode in, and frameWriter.large.
	frames, writes *sync.Pool
}

// helloResult is what came of one hello.
type helloResult int

const (
	helloAnswered   helloResult = iota
	helloRefused                // an answer, but no
	helloFailed                 // no answer that could be read
	helloTurnedAway             // the broker does not serve this connection
)

// connect opens a connection and finds out what the broker speaks, beginning with
// guess (ProtocolAuto for none). It returns a conn that is not started yet, and
// the form to guess next time: one that the broker has answered in, or guess.
func (t *transport) connect(ctx context.Context, addr string, guess Protocol) (*conn, Protocol, error) {
	switch t.protocol {
	case ProtocolV0:
		c, err := t.open(ctx, addr)
		if err == nil {
			c.form = ProtocolV0
		}
		return c, ProtocolV0, err
	case ProtocolV1:
		c, _, err := t.try(ctx, addr, ProtocolV1, 0)
		if err != nil && c != nil {
			_ = c.nc.Close() // The hello's failure is what counts.
			c = nil
		}
		return c, ProtocolV1, err
	default:
	}
	if guess == ProtocolV0 {
		c, result, err := t.try(ctx, addr, ProtocolV0, helloTimeout)
		switch {
		case result == helloAnswered:
			return c, c.form, nil
		case c == nil:
			return nil, guess, err
		}
		_ = c.nc.Close() // The hello's failure is what counts.
		if result == helloTurnedAway {
			return nil, guess, err
		}
	}
	first, firstResult, firstErr := t.try(ctx, addr, ProtocolAuto, helloTimeout)
	if firstResult == helloAnswered {
		return first, first.form, nil
	}
	if first == nil || firstResult == helloTurnedAway || ctx.Err() != nil {
		if first != nil {
			_ = first.nc.Close() // As above.
		}
		return nil, guess, firstErr
	}
	second, secondResult, secondErr := t.try(ctx, addr, ProtocolV0, helloTimeout)
	switch {
	case secondResult == helloAnswered:
		_ = first.nc.Close() // As above.
		return second, second.form, nil
	case firstResult == helloRefused && secondResult == helloRefused:
		_ = second.nc.Close() // The first one serves.
		return first, guess, nil
	}
	_ = first.nc.Close() // As above.
	if second != nil {
		_ = second.nc.Close() // As above.
	}
	if firstResult == helloFailed {
		return nil, guess, firstErr
	}
	return nil, guess, secondErr
}

// open opens a connection without a word.
func (t *transport) open(ctx context.Context, addr string) (*conn, error) {
	nc, err := t.dial(ctx, "tcp", addr)
	if err == nil && nc == nil {
		err = fmt.Errorf("%w: WithDialer: returned no connection", ErrInvalidConfig)
	}
	if err != nil {
		return nil, &ConnError{Addr: addr, Op: "dial", Err: err, unsent: true}
	}
	if t.ownConns {
		nc = promptOf(nc)
	}
	// Request IDs are UUIDs of version 8: random, but for the last 48 bits, which
	// count. Nobody else has them, and finding a call costs no string compare.
	id := uuid.New()
	id[6] = id[6]&0x0f | 0x80
	c := &conn{
		addr:     addr,
		nc:       nc,
		in:       &frameReader{r: nc, limit: t.maxFrame, bytes: t.bytes},
		form:     ProtocolV1,
		maxFrame: t.maxFrame,
		ids:      idSpace(id.String()[:24]),
		born:     time.Now(),
		out:      newFrameWriter(nc, 0),
		frames:   t.frames,
		done:     make(chan struct{}),
		inflight: make(map[uint64]*call),
	}
	c.prompt, _ = nc.(*promptConn)
	c.out.large, c.out.bytes = t.writes, t.bytes
	if tell := t.hooks.RequestDone; tell != nil {
		c.hook = func(k *call) { tell(c.event(k)) }
	}
	return c, nil
}

// try opens a connection and says hello in one form, waiting for at most limit, or
// as long as ctx lasts if that is 0. The conn is nil only if none could be opened.
func (t *transport) try(ctx context.Context, addr string, form Protocol, limit time.Duration) (*conn, helloResult, error) {
	c, err := t.open(ctx, addr)
	if err != nil {
		return nil, helloFailed, err
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	// Moving the deadline into the past is what interrupts a read on every kind
	// of connection.
	stop := context.AfterFunc(ctx, func() { _ = c.nc.SetDeadline(time.Unix(1, 0)) })
	result, err := c.hello(form)
	if !stop() || ctx.Err() != nil {
		return c, helloFailed, &ConnError{Addr: addr, Op: "hello", Err: fmt.Errorf("%w: %w", errNoAnswer, endOf(ctx)), unsent: true}
	}
	return c, result, err
}

// hello asks for ClusterInfo: in both forms at once, or in one. A refusal is no
// error: a broker need not know the request.
func (c *conn) hello(form Protocol) (helloResult, error) {
	id := c.ids.id(c.sequence.Add(1))
	var frame []byte
	var err error
	if form == ProtocolAuto {
		frame = appendHello(nil, id)
	} else if frame, err = appendRequest(nil, form, id, requestClusterInfo, &clusterInfoRequest{}); err != nil {
		return helloFailed, err
	}
	fail := func(err error) (helloResult, error) {
		return helloFailed, &ConnError{Addr: c.addr, Op: "hello", Err: err, unsent: true}
	}
	if _, err := c.nc.Write(frame); err != nil {
		return fail(err)
	}
	answer, err := c.in.next()
	if err != nil {
		return fail(err)
	}
	var resp wireResponse
	if err := resp.decode(answer); err != nil {
		return fail(err)
	}
	if string(resp.id) != id && (len(resp.id) > 0 || resp.success) {
		return fail(fmt.Errorf("%w: answer to %q, asked as %q", ErrMalformed, resp.id, id))
	}
	if len(resp.id) == 0 {
		// A broker that cannot serve the connection at all says so without ID.
		return helloTurnedAway, &ConnError{Addr: c.addr, Op: "hello", Err: c.refusalOf(requestClusterInfo, &resp, ""), unsent: true}
	}
	if !resp.success {
		return helloRefused, nil
	}
	c.form = resp.form
	if len(resp.payload) == 0 && form == ProtocolV0 {
		c.form = ProtocolV0
	}
	if err := decodePayload(resp.payload, &c.peer); err != nil {
		return fail(err)
	}
	if c.peer.Protocol == ProtocolV1.String() {
		// It was asked in v0 after a failure, but knows better.
		c.form = ProtocolV1
	}
	if l := c.peer.Limits; l != nil && l.MaxFrameBytes > 0 {
		c.maxFrame = min(c.maxFrame, l.MaxFrameBytes)
	}
	return helloAnswered, nil
}
