package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// retryFetch is the wait between fetches that failed.
var retryFetch = backoff{base: 100 * time.Millisecond, limit: time.Second} //nolint:gochecknoglobals // a constant in all but syntax

// fetcher reads one partition ahead of whoever takes: run fetches while the
// application works on what it took before. One fetch waits in run's hand, so that
// what is buffered is bounded by the size of two fetches.
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

	ready chan fetched // from run to take; closed by run, after err is set

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

// fetched is what one fetch brought.
type fetched struct {
	stretch

	messages []*Message
}

// stretch is a part of all that is fetched in which offsets rise. Those of the next leg
// may be lower.
type stretch struct {
	epoch *epoch
	leg   int
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
		ready: make(chan fetched), end: -1, since: time.Now(),
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
}

func (f *fetcher) resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused != nil {
		close(f.paused)
		f.paused = nil
	}
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

// take returns the next batch of messages, never an empty one. The error is what
// ended the fetcher, or ctx's.
func (f *fetcher) take(ctx context.Context) (fetched, error) {
	for {
		select {
		case got, ok := <-f.ready:
			switch {
			case !ok:
				return fetched{}, f.ended()
			case got.epoch == f.currentEpoch():
				return got, nil
			}
		case <-ctx.Done():
			return fetched{}, endOf(ctx)
		}
	}
}

// ended returns why run has ended.
func (f *fetcher) ended() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// run fetches until the fetcher is closed or an error comes that cannot get better.
func (f *fetcher) run() {
	err := f.fetchLoop()
	f.mu.Lock()
	f.err = err
	f.setStateLocked(stateEnded, err)
	f.mu.Unlock()
	if !errors.Is(err, ErrClosed) {
		f.report(err)
	}
	close(f.ready)
}

func (f *fetcher) fetchLoop() error {
	failures := 0
	for f.ctx.Err() == nil {
		if f.isPaused() != nil {
			f.setState(statePaused, nil)
			if err := f.resumed(f.ctx); err != nil {
				break
			}
		}
		e := f.currentEpoch()
		messages, err := f.fetch(e)
		moved, err := f.moved(e, err)
		switch {
		case e.ctx.Err() != nil:
			continue // Closed, or a seek: what came is not wanted.
		case err == nil && !moved:
			failures = 0
		case err == nil:
			// Once there is no reason to wait; a broker that is never content with
			// the position that it has named itself would be asked without end.
			if failures++; failures > 1 {
				pause(e.ctx, nil, retryFetch.before(failures-1))
			}
			continue
		case retriable(err):
			failures++
			f.setState(stateRetrying, err)
			if outdated(err) {
				f.client.metadata.forget(f.topic)
			}
			f.report(f.wrap(err))
			pause(e.ctx, nil, retryFetch.before(failures))
			continue
		default:
			return f.wrap(err)
		}
		if len(messages) > 0 {
			f.setState(stateFull, nil)
			select {
			case f.ready <- fetched{f.here(e), messages}:
			case <-e.ctx.Done():
			}
		}
	}
	return context.Cause(f.ctx)
}

// moved tells whether err is a position that is not in the log, and reading goes on at
// another; else it returns what is to be made of err.
func (f *fetcher) moved(e *epoch, err error) (bool, error) {
	oor, changed := (*OutOfRangeError)(nil), (*LogChangedError)(nil)
	switch {
	case e.ctx.Err() != nil || !errors.Is(err, ErrOffsetOutOfRange) || errors.As(err, &oor):
		return false, err
	case !errors.As(err, &changed):
		err = f.goBack(e)
		return err == nil, err
	case f.final || changed.To < 0:
		return false, err
	default:
		f.report(f.wrap(err))
		return true, nil
	}
}

// wrap says where reading failed.
func (f *fetcher) wrap(err error) *ConsumerError {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &ConsumerError{Topic: f.topic, Partition: f.partition, Offset: f.position, Err: err}
}

// fetch does one fetch at the position, which it moves behind what came. Without
// long poll it waits after an empty fetch.
func (f *fetcher) fetch(e *epoch) ([]*Message, error) {
	position, err := f.locate(e)
	if err != nil {
		return nil, err
	}
	f.setState(stateFetching, nil)
	// Metadata only tells which broker to ask; the fetch itself brings any error.
	_, _ = f.client.metadata.topic(e.ctx, f.topic, false, f.client.patience())
	req := &fetchRequest{
		Topic: f.topic, Partition: f.partition, Offset: position,
		MaxBytes: f.cfg.fetchMaxBytes, MaxMessages: f.cfg.fetchMaxMessages,
		MinBytes: f.cfg.fetchMinBytes, MaxWaitMs: f.cfg.fetchMaxWait.Milliseconds(),
	}
	f.mu.Lock()
	req.TopicID, req.LastEpoch = f.topicID, f.lastEpoch
	f.mu.Unlock()
	r := route{topic: f.topic, partition: f.partition, held: true, hold: f.cfg.fetchMaxWait, repeatable: true}
	resp := newFetchResponse()
	began := time.Now()
	if err := f.client.round(e.ctx, r, f.client.patience(), req, resp); err != nil {
		return nil, err
	}
	f.client.metrics.Consumer.RecordFetch()
	if err := f.verify(e, req, resp); err != nil {
		return nil, err
	}
	messages, err := f.check(resp.Messages, position)
	if err != nil {
		return nil, err
	}
	f.advance(e, messages, resp)
	// A broker that holds fetches has used up most of the time that it was given. One
	// that does not even tell the high-water mark does not hold any: it is only far.
	held := resp.HighWaterMark >= 0 && req.MaxWaitMs > 0 && time.Since(began) >= f.cfg.fetchMaxWait/2
	if len(messages) == 0 && !held {
		pause(e.ctx, nil, f.cfg.pollInterval)
	}
	return messages, nil
}

// advance moves the position behind what has come.
func (f *fetcher) advance(e *epoch, messages []*Message, resp *fetchResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch != e {
		return
	}
	if n := len(messages); n > 0 {
		f.position = messages[n-1].Offset + 1
		f.lastEpoch = 0
	}
	f.end = max(resp.HighWaterMark, f.position)
	f.topicID = cmp.Or(f.topicID, resp.TopicID)
	if resp.Epoch <= 0 {
		return
	}
	f.lastEpoch = resp.Epoch
	if f.position > f.reached.offset {
		f.reached = reached{f.position, resp.Epoch}
	}
}

// verify finds out whether the log that answers is the one that was read, and if not
// moves to where reading goes on; the error is then a [*LogChangedError]. What was
// fetched before is still delivered: it was stored once, and comes before what is there
// now.
func (f *fetcher) verify(e *epoch, req *fetchRequest, resp *fetchResponse) error {
	if len(resp.TopicID) > maxNameBytes {
		return fmt.Errorf("%w: fetch: topic ID %q of %d bytes", ErrMalformed, shorten(resp.TopicID), len(resp.TopicID))
	}
	anew := req.TopicID != "" && resp.TopicID != "" && resp.TopicID != req.TopicID
	at := resp.DivergedAt
	if !anew && at == nil {
		return nil
	}
	changed := &LogChangedError{MadeAnew: anew, LostTo: req.Offset, To: offsetNone}
	to := max(resp.LogStartOffset, 0)
	switch {
	case anew && f.cfg.outOfRange == OutOfRangeNewest:
		to = max(resp.HighWaterMark, 0)
	case anew:
	case req.LastEpoch == 0 || *at < 0 || *at >= req.Offset:
		return fmt.Errorf("%w: fetch at offset %d, last epoch %d: the log diverges at %d", ErrMalformed, req.Offset, req.LastEpoch, *at)
	default:
		changed.LostFrom = *at
		to = max(to, *at)
	}
	if f.cfg.outOfRange == OutOfRangeFail || anew && f.final {
		return changed
	}
	changed.To = to
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch != e {
		return endOf(e.ctx)
	}
	f.jumpLocked(to)
	f.end = max(resp.HighWaterMark, to)
	switch {
	case f.final: // What was reached is for whoever goes on.
	case anew:
		f.topicID, f.reached = resp.TopicID, reached{}
	default:
		f.reached = f.reached.cut(*at)
	}
	f.lastEpoch = f.reached.before(to)
	return changed
}

// cut is what is left of r when the log was cut at an offset.
func (r reached) cut(at int64) reached {
	r.offset = min(r.offset, at)
	return r
}

// check returns those of a fetch's messages that are at position or behind it, and
// an error if they are not what was asked for.
func (f *fetcher) check(messages []*Message, position int64) ([]*Message, error) {
	last := int64(-1)
	skip := 0
	for i, m := range messages {
		switch {
		case m == nil:
			return nil, fmt.Errorf("%w: fetch: message %d is null", ErrMalformed, i)
		case m.Topic != "" && m.Topic != f.topic, m.Partition != f.partition:
			return nil, fmt.Errorf("%w: fetch: message %d is of %s/%d", ErrMalformed, i, shorten(m.Topic), m.Partition)
		case m.Offset <= last, m.Offset == math.MaxInt64: // No offset could follow that one.
			return nil, fmt.Errorf("%w: fetch: message %d has offset %d, behind %d", ErrMalformed, i, m.Offset, last)
		}
		last = m.Offset
		m.Topic = f.topic
		if m.Offset < position {
			skip = i + 1
		}
	}
	return messages[skip:], nil
}

// locate returns the position of the epoch, asking the broker if it was given as a
// time or a named end.
func (f *fetcher) locate(e *epoch) (int64, error) {
	f.mu.Lock()
	position, s := f.position, e.start
	f.mu.Unlock()
	if position >= 0 {
		return position, nil
	}
	f.setState(stateStarting, nil)
	at := position
	if !s.time.IsZero() {
		at = wireTime(s.time)
	}
	position, err := f.client.listOffset(e.ctx, f.topic, f.partition, at)
	if errors.Is(err, ErrUnsupported) && s.time.IsZero() {
		position, err = f.probe(e.ctx, at)
	}
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	lost := offsetNone
	if f.epoch == e {
		f.position = position
		if f.legFrom < 0 {
			f.legFrom = position
		}
		lost, e.lost = e.lost, offsetNone
	}
	f.mu.Unlock()
	switch {
	case lost < 0:
	case lost == position:
		// Without ListOffsets the start of the log is a guess; it was wrong.
		return 0, &OutOfRangeError{From: lost, To: -1}
	default:
		f.report(&ConsumerError{
			Topic: f.topic, Partition: f.partition, Offset: position,
			Err: &OutOfRangeError{From: lost, To: position},
		})
	}
	return position, nil
}

// probe finds an end of the log with fetches alone, for brokers that have no
// ListOffsets. The oldest message is taken to be at 0; the newest is searched for in
// steps that double, and then between the last two.
func (f *fetcher) probe(ctx context.Context, at int64) (int64, error) {
	if at == OffsetOldest {
		return 0, nil
	}
	// There is a message at or behind low-1, and none at high.
	low, high := int64(0), int64(-1)
	for step := int64(1); high < 0 || low < high; {
		at := low + (high-low)/2
		if high < 0 {
			at = low + step - 1
			step *= 2
		}
		if at < low {
			return 0, fmt.Errorf("%w: no end of the log up to offset %d", ErrMalformed, low)
		}
		req := &fetchRequest{Topic: f.topic, Partition: f.partition, Offset: at, MaxBytes: 1, MaxMessages: 1}
		resp := newFetchResponse()
		r := route{topic: f.topic, partition: f.partition, held: true, repeatable: true}
		err := f.client.round(ctx, r, f.client.patience(), req, resp)
		switch {
		case errors.Is(err, ErrOffsetOutOfRange):
			high = at
		case err != nil:
			return 0, err
		case resp.HighWaterMark >= 0:
			return resp.HighWaterMark, nil
		case len(resp.Messages) == 0:
			high = at
		case resp.Messages[0] == nil || resp.Messages[0].Offset < at || resp.Messages[0].Offset == math.MaxInt64:
			return 0, fmt.Errorf("%w: fetch at offset %d brought another message", ErrMalformed, at)
		default:
			low = resp.Messages[0].Offset + 1
		}
	}
	return low, nil
}

// goBack gives up a position that is not in the log, as WithOutOfRange says; locate
// finds the new one and reports both.
func (f *fetcher) goBack(e *epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.outOfRange == OutOfRangeFail {
		return &OutOfRangeError{From: f.position, To: -1}
	}
	if f.epoch == e {
		e.lost, f.lastEpoch = f.position, 0
		f.jumpLocked(OffsetOldest)
		if f.cfg.outOfRange == OutOfRangeNewest {
			f.legFrom, f.position = OffsetNewest, OffsetNewest
		}
		e.start = start{offset: f.position}
	}
	return nil
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
