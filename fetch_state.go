package robust

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// fetcher reads one partition ahead of whoever takes: run fetches while the
// application works on what it took before. One fetch waits in run's hand, so that
// what is buffered is bounded by the size of two fetches, and by the client's budget.
type fetcher struct {
	client    *Client
	cfg       *config
	topic     string
	partition int32
	report    func(error) // notices and failures; must not block
	// final has the fetcher end where the log is another than the one that was read:
	// who has handled what is gone must know of it before anything else is read.
	final bool

	ctx    context.Context //nolint:containedctx // ends the fetcher
	cancel context.CancelCauseFunc
	// quiet tells that nothing is to be handed over: there is a pause, or the fetcher
	// was closed. Written with mu held.
	quiet atomic.Bool

	ready chan *haul    // from run to take; closed by run, after err is set
	spent chan struct{} // gets a token when a charge is released
	last  *charge       // of the haul that was taken last; run's own

	mu       sync.Mutex // guards the following
	epoch    *epoch
	leg      int    // counts jumps of the position: seeks, and what is not in the log
	legFrom  int64  // where it jumped to; negative before that is known
	position int64  // of the next fetch; negative before it is known
	end      int64  // high-water mark, -1 before it is known
	topicID  string // of the topic that position is in; "": not known
	// lastEpoch is the partition epoch of the message before position, or a later one
	// in which the log was read; 0: not known.
	lastEpoch int32
	reached   reached
	paused    chan struct{}
	state     fetchState
	since     time.Time // of state
	failure   error     // in stateRetrying
	err       error     // why run ended
}

// reached is how far a log was read: what is before offset is of epoch or an earlier one.
// That is so for every lower offset as well. A reader may therefore give epoch for the
// epoch of the message before it: a log that was not cut below holds more of that epoch.
type reached struct {
	offset int64
	epoch  int32 // partition epoch; 0: not known
}

// cut is what is left of r when the log was cut at an offset.
func (r reached) cut(at int64) reached {
	r.offset = min(r.offset, at)
	return r
}

// before returns the epoch to give for the message before an offset, 0 if that is not
// known.
func (r reached) before(offset int64) int32 {
	if offset < 0 || offset > r.offset {
		return 0
	}
	return r.epoch
}

// epoch is the time between two seeks. What was fetched in an earlier one is void.
type epoch struct {
	start start           // guarded by fetcher.mu
	lost  int64           // the position that is not in the log, until there is a new one; likewise
	ctx   context.Context //nolint:containedctx // ends with the epoch
	end   context.CancelFunc
	// drained is closed when nothing of earlier epochs can be delivered any more.
	drained chan struct{}
}

// start is where to begin: an offset, one of the named ends, or a time.
type start struct {
	offset int64
	time   time.Time // zero: offset counts
}

// stretch is a part of all that is fetched in which offsets rise. Those of the next leg
// may be lower.
type stretch struct {
	epoch *epoch
	leg   int
}

// haul is what one fetch has brought, or what is left of it. Of batches everything was
// looked at but their records.
type haul struct {
	stretch

	from     int64      // records before it are not wanted
	batches  []byte     // whole ones, of rising offsets
	messages []*Message // or those of an answer in JSON
	charge   *charge
}

// empty tells that nothing is left.
func (h *haul) empty() bool { return len(h.batches)+len(h.messages) == 0 }

// drop gives up what is left, which somebody may still be looking at. A nil haul is
// nothing.
func (h *haul) drop() {
	if h != nil {
		h.charge.release()
	}
}

// fetchState is what run is doing, for Status.
type fetchState int

const (
	stateStarting fetchState = iota
	stateFetching
	stateFull
	statePaused
	stateRetrying
	stateEnded
)

func newFetcher(c *Client, cfg *config, topic string, partition int32, report func(error)) *fetcher {
	f := &fetcher{
		client: c, cfg: cfg, topic: topic, partition: partition, report: report,
		ready: make(chan *haul), spent: make(chan struct{}, 1), end: -1, since: time.Now(),
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.setEpochLocked(start{cfg.startOffset, cfg.startTime})
	return f
}

// setEpochLocked begins an epoch; the first one needs no lock.
func (f *fetcher) setEpochLocked(s start) *epoch {
	if f.epoch != nil {
		f.epoch.end()
	}
	if !s.time.IsZero() {
		s.offset = OffsetOldest // Negative: to be looked up.
	}
	e := &epoch{start: s, lost: offsetNone, drained: make(chan struct{})}
	e.ctx, e.end = context.WithCancel(f.ctx)
	f.epoch = e
	f.jumpLocked(s.offset)
	f.lastEpoch = f.reached.before(s.offset)
	if s.offset < 0 && !f.final {
		f.topicID, f.reached = "", reached{} // It is looked up in whichever topic is there.
	}
	return e
}

// jumpLocked moves the position to where it was not led by reading.
func (f *fetcher) jumpLocked(to int64) {
	f.leg++
	f.legFrom, f.position = to, to
}

// continues has a fetcher that is not running yet go on for another: in a topic, of
// whose log so much was read. The fetcher is final.
func (f *fetcher) continues(topicID string, r reached) {
	f.final, f.topicID, f.reached = true, topicID, r
	f.lastEpoch = r.before(f.position)
}

// readTo returns how far the log was read.
func (f *fetcher) readTo() reached {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached
}

// here is the stretch of what has been fetched last.
func (f *fetcher) here(e *epoch) stretch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return stretch{e, f.leg}
}

// seek begins an epoch at s; the request under way is given up.
func (f *fetcher) seek(s start) *epoch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.setEpochLocked(s)
}

func (f *fetcher) currentEpoch() *epoch {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch
}

// pause holds back fetches and takes until resume.
func (f *fetcher) pause() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused == nil {
		f.paused = make(chan struct{})
	}
	f.quiet.Store(true)
}

func (f *fetcher) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused != nil {
		close(f.paused)
		f.paused = nil
	}
	f.quiet.Store(f.ctx.Err() != nil)
}

func (f *fetcher) isPaused() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paused
}

// resumed waits until there is no pause. The error is ctx's, or the fetcher's end.
func (f *fetcher) resumed(ctx context.Context) error {
	for paused := f.isPaused(); paused != nil; paused = f.isPaused() {
		select {
		case <-paused:
		case <-ctx.Done():
			return endOf(ctx)
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
	return nil
}

// stop ends the fetcher because of cause, unless it has one; run is then about to end.
func (f *fetcher) stop(cause error) {
	f.cancel(cause)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quiet.Store(true)
}

// ended returns why run has ended.
func (f *fetcher) ended() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// wrap says where reading failed.
func (f *fetcher) wrap(err error) *ConsumerError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &ConsumerError{Topic: f.topic, Partition: f.partition, Offset: f.position, Err: err}
}

func (f *fetcher) setState(s fetchState, failure error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setStateLocked(s, failure)
}

func (f *fetcher) setStateLocked(s fetchState, failure error) {
	if s != f.state || s == stateFetching {
		f.since = time.Now()
	}
	f.state, f.failure = s, failure
}

// status says what run is doing.
func (f *fetcher) status() Status {
	f.mu.Lock()
	state, since, failure, position, end := f.state, f.since, f.failure, f.position, f.end
	if f.paused != nil && state != stateEnded {
		state = statePaused // Whatever run has in hand meanwhile.
	}
	f.mu.Unlock()
	name := fmt.Sprintf("%s/%d", f.topic, f.partition)
	switch state {
	case stateStarting:
		return Status{fmt.Sprintf("%s: looking up the start, %s", name, f.client.pool.state()), since}
	case stateFetching:
		if end == position {
			return Status{fmt.Sprintf("%s: caught up at offset %d, waiting for messages", name, position), since}
		}
		return Status{fmt.Sprintf("%s: fetching at offset %d, %s", name, position, f.client.pool.state()), since}
	case stateFull:
		return Status{fmt.Sprintf("%s: messages before offset %d wait for the application", name, position), since}
	case statePaused:
		return Status{name + ": paused by the application", since}
	case stateRetrying:
		return Status{fmt.Sprintf("%s: fetching at offset %d again after: %s; %s", name, position, trimPrefix(failure), f.client.pool.state()), since}
	case stateEnded:
	}
	return Status{Text: fmt.Sprintf("%s: ended: %s", name, trimPrefix(failure))}
}
