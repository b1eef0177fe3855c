package robust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A connection on which nothing has come for pingAfter is asked for a sign of
	// life, and given up if there is none within pingTimeout more.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// slowestFrame is how many bytes of a frame must come in a second, on average,
	// to be a sign of life before the frame is complete.
	slowestFrame = 1 << 10
	// maxAbandoned is how many answers may be missing, to calls that nobody waits
	// for any more, before a connection on which nothing has come for pingTimeout
	// is given up.
	maxAbandoned = 1024
	// mostAbandoned is how many are borne of a broker that answers others.
	mostAbandoned = 16 * maxAbandoned
	// maxQueuedBytes is how much may wait to be written before callers wait.
	maxQueuedBytes = 4 << 20
)

// Causes of a connection's end that nothing else names.
var (
	errNoAnswer   = errors.New("no answer in time")
	errNotWritten = errors.New("the broker does not read what was sent before")
	errSilent     = errors.New("broker is silent")
	errAbandoned  = errors.New("a call was given up before its answer came")
	errForgotten  = errors.New("too many requests were never answered")
)

// conn is one connection to one broker. readLoop and the frameWriter's run go from
// start until closeWith; whoever starts it waits for them. What is said to be the
// reader's is that of whoever's turn it is to read.
type conn struct {
	addr     string      // immutable, as all up to out
	nc       net.Conn    // written through out, read by the reader, closed by closeWith
	prompt   *promptConn // nc, if it is one; nil otherwise
	in       *frameReader
	form     Protocol
	peer     clusterInfoResponse // what the hello was answered; empty if it was not
	maxFrame int                 // what the broker takes
	held     bool                // serves requests that a broker may hold
	ids      idSpace
	onClose  func(*conn, error) // called once, without locks
	born     time.Time
	frames   *sync.Pool  // of *[]byte, to encode in
	hook     func(*call) // told of each call that is complete; nil: nobody is
	out      *frameWriter

	sequence atomic.Uint64 // the rest of a request ID
	lastRead atomic.Int64  // when a sign of life came last, as time since born

	done chan struct{} // closed by closeWith, after cause is set

	turn readTurn

	// The following are the reader's.
	answers    answerReader
	frameSince time.Duration // when the frame being read began, since born; 0: none
	reads      int           // of c.in, when something was heard last

	taken bool // a caller has it to itself; guarded by pool.mu

	mu sync.Mutex // guards the following; never held across I/O
	// inflight is calls by sequence: nil for those that nobody waits for any more, of which
	// nothing else is kept. The map is nil once the connection is closed.
	inflight  map[uint64]*call
	runs      callRuns      // in flight as well
	abandoned int           // how many of those in flight nobody waits for
	ping      *call         // the one under way, nil if none
	doubt     time.Duration // when a call was last given up on which nothing hinted at an answer, since born
	timer     *time.Timer   // runs check
	timerAt   time.Time
	cause     error // why done was closed
}

// supports tells whether the broker announced a feature; "" is none, which every
// broker has.
func (c *conn) supports(feature string) bool {
	return feature == "" || slices.Contains(c.peer.Features, feature)
}

// start begins serving calls, with goroutines that running counts.
func (c *conn) start(running *sync.WaitGroup, onClose func(*conn, error)) {
	c.onClose = onClose
	c.heard()
	c.in.beforeRead = c.heardPart
	c.answers = answerReader{in: c.in, heard: c.heard, left: -1}
	c.turn.resumed = make(chan struct{}, 1)
	if c.writesAtOnce() { // And can be interrupted, which does no harm.
		c.turn.nc = c.nc
	}
	c.mu.Lock()
	c.timerAt = time.Now().Add(pingAfter)
	c.timer = time.AfterFunc(pingAfter, c.check)
	c.mu.Unlock()
	running.Go(c.readLoop)
	running.Go(func() { c.out.run(c.done) })
}

// heard notes that a frame has come.
func (c *conn) heard() {
	if c.reads == c.in.reads {
		return // It has come with what came before.
	}
	c.reads = c.in.reads
	c.lastRead.Store(int64(time.Since(c.born)))
	c.frameSince = 0
}

// heardPart takes a part of a frame for a sign of life as well: over a slow link a
// large one takes longer than silence is borne, and would be begun again for ever.
// But one that hardly grows may never end.
func (c *conn) heardPart(partial bool) error {
	if !partial {
		return nil
	}
	now := time.Since(c.born)
	if c.frameSince == 0 {
		c.frameSince = now
	}
	if size := c.in.partial(); float64(size) >= slowestFrame*(now-c.frameSince).Seconds() {
		c.lastRead.Store(int64(now))
	}
	return nil
}

// load is how many calls are in flight, those that nobody waits for included.
func (c *conn) load() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inflightLocked()
}

func (c *conn) inflightLocked() int { return len(c.inflight) + c.runs.calls }

// doubtful tells that a call was not answered in time, and that nothing has come in the
// second half of that time, nor since: the connection may be dead without anybody having
// said so.
func (c *conn) doubtful() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doubt > time.Duration(c.lastRead.Load())
}

// ended tells that no call can be made any more.
func (c *conn) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// writesAtOnce tells whether a small write to an idle connection returns at once.
// Of a connection that somebody else made nothing is known: net.Pipe, for one,
// blocks every write until it is read.
func (c *conn) writesAtOnce() bool {
	switch c.nc.(type) {
	case *net.TCPConn, *promptConn, *pipeConn:
		return true
	default:
		return false
	}
}

// finish waits for the answer to k and decodes it into resp. The error is a
// *BrokerError if the broker refused, a *ConnError if the connection failed, or
// ctx's cause.
func (c *conn) finish(ctx context.Context, k *call, resp response) error {
	if k.lent {
		c.readUntil(ctx, k.done)
	}
	select {
	case <-k.done:
	default:
		select {
		case <-k.done:
		case <-ctx.Done():
			c.abandon(k)
			return endOf(ctx)
		}
	}
	return c.result(k, resp)
}

// result decodes the answer to a call that is complete; see finish.
func (c *conn) result(k *call, resp response) error {
	if k.err != nil {
		return k.err
	}
	return c.understand(k.kind, &k.resp, resp)
}

// understand decodes an answer.
func (c *conn) understand(kind requestType, answer *wireResponse, resp response) error {
	decodeErr := decodePayload(answer.payload, resp)
	if !answer.success || resp.refusal() != "" {
		return c.refusalOf(kind, answer, resp.refusal())
	}
	if decodeErr != nil {
		return fmt.Errorf("robust: %s: broker %s: %w", kind, c.addr, decodeErr)
	}
	return nil
}

// event is what a hook is told of a call that is complete.
func (c *conn) event(k *call) RequestEvent {
	e := RequestEvent{Addr: c.addr, Request: k.kind.String(), Requests: 1, Latency: time.Since(k.sent), Err: k.err}
	if e.Err == nil && !k.resp.success {
		e.Err = c.refusalOf(k.kind, &k.resp, "")
	}
	return e
}

// refusalOf makes the error of an answer that says no.
func (c *conn) refusalOf(kind requestType, resp *wireResponse, text string) error {
	if resp.errText != "" {
		text = resp.errText
	}
	if text == "" {
		text = "refused without a reason"
	}
	return &BrokerError{
		Addr: c.addr, Request: kind.String(), Message: text,
		condition: conditionOf(resp.errCode, text), again: resp.retriable,
	}
}

// abandon gives up waiting for k. Its answer is dropped when it comes; on a v0
// connection nothing could be sent before that, so it is closed.
func (c *conn) abandon(k *call) {
	c.mu.Lock()
	if c.inflight[k.sequence] == k {
		c.inflight[k.sequence] = nil
		c.abandoned++
	}
	many := c.forgottenLocked(time.Since(c.lastSign()))
	c.mu.Unlock()
	switch {
	case c.form == ProtocolV0:
		c.closeWith(&ConnError{Addr: c.addr, Op: "wait", Err: errAbandoned})
	case many:
		c.closeWith(&ConnError{Addr: c.addr, Op: "wait", Err: errForgotten})
	}
}

// lastSign is when there was a sign of life. That a part of a large frame was taken is one
// as well.
func (c *conn) lastSign() time.Time {
	last := c.born.Add(time.Duration(c.lastRead.Load()))
	if written := c.out.lastProgress(); written.After(last) {
		return written
	}
	return last
}

// forgottenLocked tells that more answers are missing, to calls that nobody waits for any
// more, than are borne after such a silence.
func (c *conn) forgottenLocked(silence time.Duration) bool {
	return c.abandoned > maxAbandoned && silence >= pingTimeout || c.abandoned > mostAbandoned
}

// readLoop gives each answer to its call, and rests while others do.
func (c *conn) readLoop() {
	for {
		err := c.readAnswer()
		if err == nil {
			err = c.readHalf()
		}
		if err != nil {
			c.readFailed(err)
			return
		}
		c.mu.Lock()
		rest := c.turn.restsLocked(c.idleLocked())
		c.mu.Unlock()
		if rest {
			c.turn.rest(&c.mu, c.done)
		}
	}
}

// readUntil reads for everybody until done has a token or ctx ends. The caller was lent
// the turn.
func (c *conn) readUntil(ctx context.Context, done <-chan struct{}) {
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, c.interrupt)
		defer stop()
	}
	c.prompt.expect(true)
	idle := true
	for {
		// From here on others have to interrupt.
		c.turn.inside.Store(false)
		if len(done) > 0 || ctx.Err() != nil || c.answers.half() {
			break
		}
		err := c.readAnswer()
		if err != nil && !c.resumable(err) {
			c.readFailed(err)
			idle = false // So that the loop ends.
			break
		}
	}
	c.prompt.expect(false)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn.backLocked(idle && c.idleLocked())
}

// idleLocked tells that nothing is in flight, nor read of what comes next. The caller is
// the reader.
func (c *conn) idleLocked() bool {
	return c.inflightLocked() == 0 && !c.answers.half() && !c.in.ahead()
}

// interrupt has a caller that reads for a call, if there is one, look whether it is over.
func (c *conn) interrupt() {
	if c.turn.inside.Load() {
		return // It does so next.
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn.interruptLocked()
}

// resumable tells whether a failure to read is an interruption only, after which reading
// goes on where it stopped.
func (c *conn) resumable(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn.goOnLocked()
	return true
}

func (c *conn) readFailed(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("broker closed the connection")
	}
	c.closeWith(&ConnError{Addr: c.addr, Op: "read", Err: err})
}

// readAnswer reads an answer and hands it to its call, unless a body follows, which is
// left to readHalf.
func (c *conn) readAnswer() error {
	resp, err := c.answers.next()
	c.turn.inside.Store(true)
	switch {
	case err != nil || resp == nil:
		return err
	case len(resp.id) == 0 && !resp.success:
		// Not about one request: the broker cannot go on.
		return c.refusalOf(requestUnknown, resp, "")
	default:
		k, run, i := c.waiting(resp.id)
		if run != nil {
			run.complete(i, resp, nil)
		}
		c.answers.deliver(k)
		return nil
	}
}

// readHalf reads the body of the answer that was read last, if it has one. Only the loop
// calls it, since it cannot be interrupted.
func (c *conn) readHalf() error {
	err := c.answers.readHalf()
	var failed *bodyError
	if errors.As(err, &failed) {
		failed.call.err = &ConnError{Addr: c.addr, Op: "read", Err: failed.err}
		defer failed.call.complete()
		return failed.err
	}
	return err
}

// waiting takes the call of an ID that somebody waits for out of those in flight: a call of
// its own or the i-th of a run. Both are nil if there is none.
func (c *conn) waiting(id []byte) (k *call, run *callRun, i int) {
	sequence, ok := c.ids.sequence(id)
	if !ok {
		return nil, nil, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.turn.answeredLocked(c.inflightLocked()) }()
	if run, i = c.runs.takeLocked(sequence); run != nil {
		if run.abandoned {
			c.abandoned--
			return nil, nil, 0
		}
		return nil, run, i
	}
	k, known := c.inflight[sequence]
	delete(c.inflight, sequence)
	switch {
	case known && k == nil:
		c.abandoned--
	case known && k == c.ping:
		c.ping = nil
	}
	return k, nil, 0
}

// check runs when something may be due: an answer that did not come in time, a
// sign of life to ask for, or one that did not come.
func (c *conn) check() {
	now := time.Now()
	c.mu.Lock()
	if c.inflight == nil {
		c.mu.Unlock()
		return
	}
	last := c.lastSign()
	late, lateRuns, next := c.expireLocked(now, last)
	silence := now.Sub(last)
	waits := c.form == ProtocolV0 && c.inflightLocked() > 0
	lockStepFailed := waits && c.abandoned > 0
	dead := c.ping != nil && silence >= pingAfter+pingTimeout
	forgotten := c.forgottenLocked(silence)
	ask := c.ping == nil && silence >= pingAfter && !waits
	var pingID uint64
	if ask {
		pingID = c.sequence.Add(1)
		c.ping = &call{kind: requestClusterInfo, sequence: pingID, done: make(chan struct{}, 1)}
		c.inflight[pingID] = c.ping
		c.turn.begunLocked(false)
	}
	due := last.Add(pingAfter)
	if c.ping != nil {
		due = last.Add(pingAfter + pingTimeout)
	}
	if due.After(now) && due.Before(next) {
		next = due
	}
	c.timerAt = next
	c.timer.Reset(next.Sub(now))
	c.mu.Unlock()

	for _, k := range late {
		k.complete()
	}
	for _, u := range lateRuns {
		u.fail(&ConnError{Addr: c.addr, Op: "wait", Err: errNoAnswer})
	}
	if len(late) > 0 {
		c.interrupt() // It may be one of these that somebody reads for.
	}
	switch {
	case dead:
		c.closeWith(&ConnError{Addr: c.addr, Op: "wait", Err: errSilent})
	case lockStepFailed:
		c.closeWith(&ConnError{Addr: c.addr, Op: "wait", Err: errNoAnswer})
	case forgotten:
		c.closeWith(&ConnError{Addr: c.addr, Op: "wait", Err: errForgotten})
	case ask:
		frame, err := appendRequest(nil, c.form, c.ids.id(pingID), requestClusterInfo, &clusterInfoRequest{})
		if err == nil {
			err = c.out.send(frame)
		}
		if err != nil {
			c.closeWith(&ConnError{Addr: c.addr, Op: "write", Err: err})
		}
	}
}

// expireLocked gives up the calls that are late; the caller completes them without the
// lock. last is when there was a sign of life. next is when to look again, at the latest.
func (c *conn) expireLocked(now, last time.Time) (late []*call, lateRuns []unanswered, next time.Time) {
	next = now.Add(pingAfter)
	doubt := func(sent, deadline time.Time) {
		if now.Sub(last) > deadline.Sub(sent)/2 {
			c.doubt = now.Sub(c.born)
		}
	}
	lateRuns, next = c.runs.lateLocked(now, next, func(r *callRun) {
		doubt(r.sent, r.deadline)
		c.abandoned += r.left
	})
	for sequence, k := range c.inflight {
		switch {
		case k == nil || k == c.ping: // A ping has its end in silence.
		case !k.deadline.After(now):
			doubt(k.sent, k.deadline)
			c.inflight[sequence] = nil
			c.abandoned++
			k.err = &ConnError{Addr: c.addr, Op: "wait", Err: errNoAnswer}
			late = append(late, k)
		case k.deadline.Before(next):
			next = k.deadline
		}
	}
	return late, lateRuns, next
}

// closeWith ends the connection; every call in flight fails with cause. Only the
// first call of closeWith counts.
func (c *conn) closeWith(cause error) {
	c.mu.Lock()
	calls := c.inflight
	if calls == nil {
		c.mu.Unlock()
		return
	}
	c.inflight = nil
	runs := c.runs.clearLocked()
	c.cause = cause
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	close(c.done)
	_ = c.nc.Close() // Nothing depends on how a broken connection closes.
	for _, k := range calls {
		if k != nil {
			k.err = cause
			k.complete()
		}
	}
	for _, u := range runs {
		u.fail(cause)
	}
	if c.onClose != nil {
		c.onClose(c, cause)
	}
}

// closedError is the error of a call that came too late.
func (c *conn) closedError(notSent bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ce *ConnError
	if errors.As(c.cause, &ce) {
		e := *ce
		e.unsent = notSent
		return &e
	}
	return c.cause
}
