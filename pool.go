package robust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// busyLoad is how many calls a connection has in flight when it is worth
	// opening another: fewer share one, and with it the writes.
	busyLoad = 128
	// brokerPatience is how long a call waits for a connection to one broker
	// when there are others to ask.
	brokerPatience = 5 * time.Second
)

// errNotConnected is the cause of a call that stopped waiting for a connection
// that is still being opened.
var errNotConnected = errors.New("still connecting")

// pool keeps the connections of a client, by address. It opens them in goroutines
// of its own, so that a caller can stop waiting and the connection is there for
// the next.
type pool struct {
	transport
	max     int           // connections to each broker
	timeout time.Duration // to open one
	backoff backoff
	metrics *ConnectionMetrics
	warn    *warner

	ctx     context.Context //nolint:containedctx // the life of the pool, for dials
	cancel  context.CancelFunc
	running sync.WaitGroup // dials, and the goroutines of connections

	mu      sync.Mutex // guards the following; taken before conn.mu
	brokers map[string]*brokerConns
	closed  bool
}

// brokerConns is what a pool knows of one address. Guarded by pool.mu.
type brokerConns struct {
	addr     string
	guess    Protocol // what it spoke last
	nodeID   string   // what it calls itself
	conns    []*conn
	dialing  [2]*dialAttempt // one for connections that are held, one for the others
	lost     int             // connections that broke and were not replaced yet
	failures int             // dials in a row
	lastErr  error           // of the last of them
	failing  time.Time       // when the first of them failed
	retryAt  time.Time       // no dial before that
	freed    chan struct{}   // closed when a connection is put back; nil unless waited for
}

// dialAttempt is a connection being opened.
type dialAttempt struct {
	since time.Time
	done  chan struct{} // closed when err is set
	err   error
}

func newPool(t transport, limit int, timeout time.Duration, m *ConnectionMetrics, w *warner) *pool {
	ctx, cancel := context.WithCancel(context.Background())
	return &pool{
		transport: t, max: limit, timeout: timeout, metrics: m, warn: w,
		backoff: backoff{base: 50 * time.Millisecond, limit: 500 * time.Millisecond},
		ctx:     ctx, cancel: cancel,
		brokers: make(map[string]*brokerConns),
	}
}

// get returns a connection to addr, for a request that the broker may hold or for
// one that it answers at once; put gives it back. It waits for one to be opened,
// but not longer than w says, and, if there are others to ask, not for a broker
// whose last dial failed or is taking that long. The error is a *ConnError, ErrClosed
// or ctx's cause.
func (p *pool) get(ctx context.Context, addr string, held, others bool, w patience) (*conn, error) {
	var timeout <-chan time.Time
	for {
		c, attempt, freed, err := p.look(addr, held, others)
		if c != nil || err != nil {
			return c, err
		}
		if timeout == nil {
			limit := w.limit
			if others && attempt != nil {
				// What others have waited before counts: a broker that swallows
				// dials is to cost its time once, and not every call again.
				limit -= time.Since(attempt.since)
			}
			t := time.NewTimer(limit)
			defer t.Stop()
			timeout = t.C
		}
		var dialed chan struct{}
		if attempt != nil {
			dialed = attempt.done
		}
		select {
		case <-dialed:
			if attempt.err != nil {
				return nil, attempt.err
			}
		case <-freed:
		case <-timeout:
			return nil, &ConnError{Addr: addr, Op: "dial", Err: errNotConnected, unsent: true}
		case <-w.stop:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, endOf(ctx)
		}
	}
}

// look returns a connection if there is one to be had, or what to wait for: the attempt
// to open one, if any, and the return of one.
func (p *pool) look(addr string, held, others bool) (*conn, *dialAttempt, <-chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, nil, ErrClosed
	}
	b := p.brokerLocked(addr)
	best, load := b.idlestLocked(held, p.max > 1)
	var attempt *dialAttempt
	doubtful := best != nil && best.doubtful()
	if best == nil || load >= busyLoad || doubtful {
		attempt = p.dialLocked(b, held)
	}
	if doubtful && attempt != nil {
		best = nil // Another one is worth the wait.
	}
	if best == nil && attempt == nil {
		// The other kind's connection is better than none.
		best, _ = b.idlestLocked(held, false)
	}
	if best != nil {
		best.taken = best.form == ProtocolV0
		return best, nil, nil, nil
	}
	if len(b.conns) == 0 && (attempt == nil || others && b.failures > 0) {
		return nil, nil, nil, &ConnError{Addr: addr, Op: "dial", Err: trimDial(b.lastErr), unsent: true}
	}
	if b.freed == nil {
		b.freed = make(chan struct{})
	}
	return nil, attempt, b.freed, nil
}

// trimDial takes the layers of an earlier ConnError off, so that they are not said
// twice.
func trimDial(err error) error {
	var ce *ConnError
	if errors.As(err, &ce) {
		return ce.Err
	}
	return err
}

// put gives a connection back.
func (p *pool) put(c *conn) {
	if c.form != ProtocolV0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.taken = false
	p.brokerLocked(c.addr).freedLocked()
}

func (b *brokerConns) freedLocked() {
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

func (p *pool) brokerLocked(addr string) *brokerConns {
	b := p.brokers[addr]
	if b == nil {
		b = &brokerConns{addr: addr}
		p.brokers[addr] = b
	}
	return b
}

// idlestLocked returns the connection with the fewest calls in flight, of those that
// serve this kind of request if kinds are told apart; nil if there is none that can
// take one more. Connections to v0 brokers, which hold no request, serve every kind.
func (b *brokerConns) idlestLocked(held, apart bool) (best *conn, load int) {
	for _, c := range b.conns {
		if c.taken || apart && c.form != ProtocolV0 && c.held != held {
			continue
		}
		n := c.load()
		if c.doubtful() {
			n += busyLoad
		}
		if best == nil || n < load {
			best, load = c, n
		}
	}
	return best, load
}

// dialLocked begins to open a connection, unless one is being opened, the limit is
// reached, or the last failure is too fresh. It returns the attempt under way.
func (p *pool) dialLocked(b *brokerConns, held bool) *dialAttempt {
	lane := 0
	if held && p.max > 1 {
		lane = 1
	}
	if b.dialing[lane] != nil {
		return b.dialing[lane]
	}
	total, same := 0, 0
	for _, c := range b.conns {
		total++
		if c.held == (lane == 1) || c.form == ProtocolV0 {
			same++
		}
	}
	for _, a := range b.dialing {
		if a != nil {
			total++
		}
	}
	// Held requests have up to half of the connections, the others the rest.
	limit := p.max - p.max/2
	if lane == 1 {
		limit = p.max / 2
	}
	if b.guess == ProtocolV0 {
		limit = p.max
	}
	if total >= p.max || same >= limit || time.Now().Before(b.retryAt) {
		return nil
	}
	a := &dialAttempt{since: time.Now(), done: make(chan struct{})}
	b.dialing[lane] = a
	guess := b.guess
	p.running.Go(func() { p.open(b, lane, guess, a) })
	return a
}

// open opens one connection.
func (p *pool) open(b *brokerConns, lane int, guess Protocol, a *dialAttempt) {
	ctx, cancel := context.WithTimeout(p.ctx, p.timeout)
	defer cancel()
	c, form, err := p.connect(ctx, b.addr, guess)
	took := time.Since(a.since)
	if p.hooks.Connected != nil {
		// Before the connection is used, so that its end is not told first.
		p.hooks.Connected(ConnectionEvent{Addr: b.addr, Latency: took, Err: err})
	}
	if c != nil {
		c.held = lane == 1
	}

	p.mu.Lock()
	b.dialing[lane] = nil
	if err == nil && p.closed {
		_ = c.nc.Close() // It was never used.
		err = ErrClosed
		if p.hooks.Disconnected != nil {
			told := ConnectionEvent{Addr: b.addr, Latency: time.Since(c.born), Err: err}
			defer p.hooks.Disconnected(told)
		}
	}
	if err != nil {
		if b.failures == 0 {
			b.failing = time.Now()
		}
		b.failures++
		b.lastErr = err
		b.retryAt = time.Now().Add(p.backoff.before(b.failures))
	} else {
		b.failures, b.lastErr, b.retryAt = 0, nil, time.Time{}
		b.guess = form
		b.nodeID = c.peer.NodeID
		b.conns = append(b.conns, c)
		if b.lost > 0 {
			b.lost--
			p.metrics.RecordReconnection()
		}
		p.metrics.RecordConnection()
		p.metrics.connect.record(took)
		c.start(&p.running, p.closedConn)
	}
	failures := b.failures
	p.mu.Unlock()
	a.err = err
	close(a.done)

	if err != nil && !errors.Is(err, ErrClosed) && p.ctx.Err() == nil {
		p.metrics.RecordFailed()
		p.warn.warn("broker cannot be reached", b.addr, "addr", b.addr, "failures", failures, "error", trimPrefix(err))
	}
}

// closedConn takes a connection out that has ended.
func (p *pool) closedConn(c *conn, cause error) {
	p.metrics.RecordDisconnection()
	if p.hooks.Disconnected != nil {
		p.hooks.Disconnected(ConnectionEvent{Addr: c.addr, Latency: time.Since(c.born), Err: cause})
	}
	p.mu.Lock()
	b := p.brokerLocked(c.addr)
	b.conns = slices.DeleteFunc(b.conns, func(o *conn) bool { return o == c })
	closed := p.closed
	if !closed {
		b.lost++
	}
	b.freedLocked()
	p.mu.Unlock()
	if !closed && !errors.Is(cause, errAbandoned) {
		p.warn.warn("connection lost", c.addr, "addr", c.addr, "error", trimPrefix(cause))
	}
}

// addrOfNode returns the address under which the broker with this ID was reached,
// one to which there is a connection if possible; "" if there is none or it cannot be
// reached there any more.
func (p *pool) addrOfNode(id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	best, connected := "", false
	for addr, b := range p.brokers {
		if b.nodeID != id || b.failures > 0 && len(b.conns) == 0 {
			continue
		}
		// Always the same one of several, or a partition's messages could take
		// two ways.
		now := len(b.conns) > 0
		if best == "" || now && !connected || now == connected && addr < best {
			best, connected = addr, now
		}
	}
	return best
}

// state says how things stand with the brokers, in the words of Status.
func (p *pool) state() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var connected int
	var waits []string
	var since time.Time
	addrs := make([]string, 0, len(p.brokers))
	for addr := range p.brokers {
		addrs = append(addrs, addr)
	}
	slices.Sort(addrs)
	for _, addr := range addrs {
		b := p.brokers[addr]
		if len(b.conns) > 0 {
			connected++
			continue
		}
		var text string
		switch {
		case b.failures > 0:
			text = fmt.Sprintf("broker %s, failed %d times (%s)", addr, b.failures, trimPrefix(trimDial(b.lastErr)))
			if wait := b.retryAt.Sub(now); wait > 0 {
				text += ", next try in " + roundDuration(wait).String()
			}
			since = earlier(since, b.failing)
		case b.dialing[0] != nil || b.dialing[1] != nil:
			text = "broker " + addr + ", connecting"
			for _, a := range b.dialing {
				if a != nil {
					since = earlier(since, a.since)
				}
			}
		default:
			continue
		}
		waits = append(waits, text)
	}
	switch {
	case len(waits) > 0 && connected == 0:
		return Status{"waiting for " + strings.Join(waits, "; "), since}
	case len(waits) > 0:
		return Status{fmt.Sprintf("connected to %d brokers, waiting for %s", connected, strings.Join(waits, "; ")), since}
	case connected == 1:
		return Status{Text: "connected to 1 broker"}
	case connected > 1:
		return Status{Text: fmt.Sprintf("connected to %d brokers", connected)}
	default:
		return Status{Text: "not connected"}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// close ends every connection and waits for their goroutines.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	var conns []*conn
	for _, b := range p.brokers {
		conns = append(conns, b.conns...)
		b.freedLocked()
	}
	p.mu.Unlock()
	p.cancel()
	for _, c := range conns {
		c.closeWith(ErrClosed)
	}
	p.running.Wait()
}
