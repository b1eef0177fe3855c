package robust

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Handler is what an application does in a consumer group. For each session Setup is
// called once, then ConsumeClaim for each partition that comes to the member, side by
// side, and Cleanup when all of them have returned. A panic in any of them ends Consume
// with a [*PanicError].
type Handler interface {
	// Setup is called before any claim, when the member knows its first partitions.
	// An error ends Consume, without Cleanup.
	Setup(s *Session) error
	// Cleanup is called after every ConsumeClaim has returned, before the last
	// commit. It may commit, unless the membership is lost or the handlers have
	// taken longer than [WithRebalanceTimeout] to return. An error ends Consume.
	Cleanup(s *Session) error
	// ConsumeClaim handles the messages of a claim. When the claim ends its context
	// is cancelled and its channel closed; ConsumeClaim is then to return within
	// [WithRebalanceTimeout]. Only the partition that moves waits for it, and how
	// long it works on a message never costs the membership. What it has marked is
	// committed before the next member reads the partition.
	//
	// An error ends Consume, unless the claim has ended or the error is that of a
	// commit whose partitions have gone to others ([CommitError]). If it returns
	// before its claim has ended otherwise, it is called again with a new claim that
	// begins after what is marked. So it is when the log has lost its end
	// ([LogChangedError]): the channel is closed and, once ConsumeClaim has returned,
	// marks go back to where other messages stand now.
	ConsumeClaim(s *Session, c *Claim) error
}

// checkedHandler is a handler of this package that may have been made wrongly.
type checkedHandler interface{ check() error }

// HandlerFunc is a [Handler] that has nothing to set up.
type HandlerFunc func(s *Session, c *Claim) error

// Setup does nothing.
func (HandlerFunc) Setup(*Session) error { return nil }

// Cleanup does nothing.
func (HandlerFunc) Cleanup(*Session) error { return nil }

// ConsumeClaim calls f.
func (f HandlerFunc) ConsumeClaim(s *Session, c *Claim) error { return f(s, c) }

// Session is one membership in a consumer group: from joining until the member leaves,
// or is taken for dead. Rebalances do not end it: claims come and go within it. It is
// safe for concurrent use.
type Session struct {
	client  *Client
	cfg     *config
	group   string
	topics  []string // as given to Consume
	handler Handler
	// patterns are those of topics, for brokers that do not know any.
	patterns []*regexp.Regexp
	looked   time.Time            // when topics were last matched; the heartbeats' own
	report   func(error)          // logs, and passes on; must not block, as notice
	notice   func(*ConsumerError) // passes on what is logged already

	by      *answerer // the broker that coordinates the group
	born    time.Time
	settled func() bool // undoes what newSession has set up outside of the session

	ctx     context.Context //nolint:containedctx // Session.Context
	cancel  context.CancelCauseFunc
	leaving atomic.Bool // says goodbye, or has

	// io ends when nothing may be sent for the membership any more: it is lost, or
	// all is done. It outlives ctx, for the last commits.
	io     context.Context //nolint:containedctx // ends requests
	stopIO context.CancelCauseFunc

	generation atomic.Int64
	work       chan struct{}  // gets a token when there is something to sync
	synced     chan struct{}  // gets a token after each sync
	committing chan struct{}  // holds a token while a commit is under way
	running    sync.WaitGroup // heartbeats, commits, computations
	handlers   sync.WaitGroup // calls of ConsumeClaim
	alive      atomic.Int64   // when the last request was sent that the broker has answered, since born

	// Whoever syncs has these: since when something else may be granted, zero while all that
	// is has been told, and whether anything was in that time.
	unsettled time.Time
	moved     bool

	mu       sync.Mutex // guards the following
	memberID string     // brokers of the documented protocol give it
	claims   map[TopicPartition]*holding
	seq      int64                    // of the last sync
	gaveUp   map[TopicPartition]int64 // partitions given up, and seq at that time
	former   map[TopicPartition]formerly
	pending  bool // others have to give up what is to come
	since    time.Time
	missing  []string        // topics that are not there
	computed *computedTarget // to be told with the next sync
	asked    int64           // the generation that an assignment was computed for
	// assigning tells that the application's assignor is at work.
	assigning bool
	setUp     bool     // Setup has been called
	failure   error    // that ended the session, other than its contexts
	lost      error    // why the membership is gone
	joined    []string // topics of the last join
	rejoin    bool     // they are others by now
}

// formerly is what is remembered of a partition that was given up: its topic may be
// another when it comes back.
type formerly struct {
	topicID  string
	position int64 // behind what was marked; negative: nothing was
	anew     bool  // that the topic is another is reported already
}

// Context ends with the session; [context.Cause] says why: the end of Consume's
// context, [ErrClosed], a handler's error, [ErrUnknownMember] or [ErrFenced].
func (s *Session) Context() context.Context { return s.ctx }

// Group returns the ID of the consumer group.
func (s *Session) Group() string { return s.group }

// MemberID returns the ID under which the group knows the member.
func (s *Session) MemberID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.memberID
}

// GenerationID returns the group's generation as far as the member has heard of it. It
// rises with every change of the assignment.
func (s *Session) GenerationID() int64 { return s.generation.Load() }

// Claims returns the partitions that the member has now, by topic and in order.
func (s *Session) Claims() map[string][]int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims := make(map[string][]int32)
	for tp, h := range s.claims {
		if h.revoked.IsZero() {
			claims[tp.Topic] = append(claims[tp.Topic], tp.Partition)
		}
	}
	for _, partitions := range claims {
		slices.Sort(partitions)
	}
	return claims
}

// MarkMessage marks a message as handled, and with it all before it in its partition,
// unless [WithContiguousMarks] is set. What is marked is committed by [WithAutoCommit]
// or [Session.Commit], with metadata. Marks move forward only, but for those of messages
// that the broker has lost; one for a partition that is not the member's any more does
// nothing.
//
// Metadata has at most 4096 bytes; what is longer is cut. A mark beyond the high-water
// mark does nothing, as does one of no message. Both are reported.
func (s *Session) MarkMessage(m *Message, metadata string) {
	if m == nil {
		s.report(fmt.Errorf("%w: MarkMessage: the message is nil", ErrInvalidRequest))
		return
	}
	s.mark(TopicPartition{m.Topic, m.Partition}, m.Offset, metadata, (*marks).message)
}

// MarkOffset marks all messages of a partition below offset as handled: offset is the
// next one to be read. Otherwise it is like MarkMessage.
func (s *Session) MarkOffset(topic string, partition int32, offset int64, metadata string) {
	s.mark(TopicPartition{topic, partition}, offset-1, metadata, (*marks).belowNext)
}

// mark marks the message of offset, or everything up to it.
func (s *Session) mark(tp TopicPartition, offset int64, metadata string, mark func(m *marks, offset int64, metadata string)) {
	h := s.holding(tp)
	if h == nil {
		return
	}
	if end := h.end.Load(); end >= 0 && offset >= end || offset == math.MaxInt64 {
		s.report(h.failed(fmt.Errorf("%w: mark of offset %d, the high-water mark is %d", ErrOffsetOutOfRange, offset, end)))
		return
	}
	if len(metadata) > maxOffsetMeta {
		s.report(h.failed(fmt.Errorf("%w: metadata of %d bytes is cut to %d", ErrInvalidRequest, len(metadata), maxOffsetMeta)))
		metadata = metadata[:maxOffsetMeta]
	}
	mark(h.marks, offset, strings.ToValidUTF8(metadata, ""))
}

func (s *Session) holding(tp TopicPartition) *holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims[tp]
}

// Commit commits what is marked and not committed yet, in one request however many
// partitions there are, unless their metadata comes to more than about 4 MiB. It returns
// when the broker has it, after at most [WithRebalanceTimeout]. The error is a
// [*CommitError] if partitions have gone to other members meanwhile; the others are
// committed all the same. It works in Cleanup too, within the rebalance timeout.
func (s *Session) Commit() error { return s.commit(nil) }

// commit commits what is marked, of one holding or of all.
func (s *Session) commit(only *holding) error {
	if s.io.Err() != nil {
		return context.Cause(s.io)
	}
	ctx, cancel := context.WithTimeout(s.io, s.cfg.rebalanceTimeout)
	defer cancel()
	// One at a time: a commit that overtakes another would take the offset back.
	select {
	case s.committing <- struct{}{}:
		defer func() { <-s.committing }()
	case <-ctx.Done():
		return endOf(ctx)
	}
	var pending []pendingMark
	refused := new(CommitError)
	for _, h := range s.holdings() {
		if only != nil && h != only {
			continue
		}
		// Before the marks, which are cut before another claim begins to read: what was
		// marked of a log that is gone must not be told without its epoch.
		readTo := h.readTo()
		if next, metadata, token, ok := h.marks.pending(); ok {
			offset := offsetToStore{h.of.Topic, h.of.Partition, next, metadata, h.epoch, h.topicID, readTo.before(next)}
			pending = append(pending, pendingMark{h.marks, token, offset})
		} else if h.marks.refused() {
			refused.Fenced = append(refused.Fenced, h.of)
		}
	}
	var err error
	if len(pending) > 0 {
		began := time.Now()
		err = s.sendCommit(ctx, pending, refused)
		s.client.metrics.Consumer.commitLatency.record(time.Since(began))
		s.client.metrics.Consumer.RecordCommit(err == nil && len(refused.Fenced) == 0)
		s.lostIf(err)
	}
	if err == nil && len(refused.Fenced) > 0 {
		refused.Group = s.group
		return refused
	}
	return err
}

// pendingMark is a mark that is being committed.
type pendingMark struct {
	marks  *marks
	token  int
	offset offsetToStore
}

// sendCommit sends a commit until it is answered, adding to refused the partitions that
// are not the member's any more.
func (s *Session) sendCommit(ctx context.Context, pending []pendingMark, refused *CommitError) error {
	if !s.by.supportsGroups() {
		return s.sendCommits(ctx, pending, refused)
	}
	// A broker takes only so much at a time.
	if n := commitAtOnce(pending, min(maxGroupPayload, s.client.cfg.maxFrameBytes)); n < len(pending) {
		if err := s.sendCommit(ctx, pending[:n], refused); err != nil {
			return err
		}
		return s.sendCommit(ctx, pending[n:], refused)
	}
	req := &commitOffsetRequest{GroupID: s.group, MemberID: s.MemberID(), Generation: s.generation.Load()}
	for _, p := range pending {
		req.Offsets = append(req.Offsets, p.offset)
	}
	var resp commitOffsetResponse
	err := s.ask(ctx, req, &resp)
	if err != nil && len(resp.Fenced) == 0 {
		return err
	}
	for _, p := range pending {
		tp := topicPartition{p.offset.Topic, p.offset.Partition}
		if slices.Contains(resp.Fenced, tp) {
			p.marks.forget()
			refused.Fenced = append(refused.Fenced, TopicPartition(tp))
		} else {
			p.marks.committed(p.token)
		}
	}
	return nil
}

// commitAtOnce returns how many of some marks, at least one, fit a request of so many bytes,
// its other fields and the frame around it included.
func commitAtOnce(pending []pendingMark, limit int) int {
	const others, numbers = 2 << 10, 160 // of the request, and of one offset
	room := limit - others
	for i := range min(len(pending), maxOffsets) {
		o := &pending[i].offset
		metadata, err := json.Marshal(o.Metadata) // What is escaped grows.
		room -= numbers + len(o.Topic) + len(o.TopicID) + len(metadata)
		if (err != nil || room < 0) && i > 0 {
			return i
		}
	}
	return min(len(pending), maxOffsets)
}

// sendCommits commits one partition after the other, for brokers that know no better.
func (s *Session) sendCommits(ctx context.Context, pending []pendingMark, refused *CommitError) error {
	var failed error
	for _, p := range pending {
		o := p.offset
		req := &commitOffsetRequest{GroupID: s.group, Topic: o.Topic, Partition: o.Partition, Offset: o.Offset, Metadata: o.Metadata}
		err := s.ask(ctx, req, &commitOffsetResponse{})
		switch {
		case errors.Is(err, ErrFenced), errors.Is(err, ErrTopicNotFound), errors.Is(err, ErrPartitionNotFound):
			p.marks.forget()
			refused.Fenced = append(refused.Fenced, TopicPartition{o.Topic, o.Partition})
		case err != nil && ctx.Err() != nil:
			return err
		case err != nil:
			failed = err // The others can do better.
		default:
			p.marks.committed(p.token)
		}
	}
	return failed
}

// holdings returns what the member holds, in order.
func (s *Session) holdings() []*holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*holding, 0, len(s.claims))
	for _, h := range s.claims {
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b *holding) int { return compareTopicPartition(a.of, b.of) })
	return all
}

// ask sends a request of the member's until it is answered or ctx ends.
func (s *Session) ask(ctx context.Context, req request, resp response) error {
	p := retryPolicy{
		what:     func() string { return req.kind().String() + " of group " + s.group },
		refusals: math.MaxInt, faults: -1, backoff: backoff{50 * time.Millisecond, time.Second},
		onRetry: func(err error) {
			if !connectionFault(err) { // The pool reports those.
				s.report(err)
			}
		},
	}
	limit := patience{limit: min(s.cfg.requestTimeout, s.cfg.sessionTimeout)}
	return s.client.retry(ctx, p, func(time.Duration) error {
		reset(resp)
		return s.client.round(ctx, route{repeatable: true, by: s.by}, limit, req, resp)
	})
}

// lostIf ends the session if err says that the group does not know the member any
// more, or another of its instance ID better.
func (s *Session) lostIf(err error) {
	// A member that leaves is unknown: a heartbeat under way may hear of it first.
	if !s.leaving.Load() && (errors.Is(err, ErrUnknownMember) || errors.Is(err, ErrFenced)) {
		s.lose(err)
	}
}

// end ends the session with the membership intact: what is marked is still committed.
// Its contexts end it without a failure.
func (s *Session) end(failure error) {
	s.mu.Lock()
	panicked := (*PanicError)(nil)
	if s.failure == nil && (s.ctx.Err() == nil || errors.As(failure, &panicked)) {
		s.failure = failure
	}
	s.mu.Unlock()
	s.cancel(failure)
}

// lose ends the session at once: the membership is gone, and with it the right to
// commit.
func (s *Session) lose(cause error) {
	s.mu.Lock()
	if s.lost == nil {
		s.lost = cause
	}
	s.mu.Unlock()
	s.cancel(cause)
	s.stopIO(cause)
}

// commitLoop commits what is marked as long as that is possible: also while handlers
// return that the session's end has caught at work.
func (s *Session) commitLoop() {
	for pause(s.io, nil, s.cfg.autoCommit) {
		if err := s.commit(nil); err != nil && s.io.Err() == nil {
			s.report(err)
		}
	}
}

// startOf tells where to begin a partition: what is committed, else what the options
// say. A partition that has come up under the group's eyes is read from its start:
// nothing in it was there to be skipped.
func (s *Session) startOf(g *partitionGrant) start {
	switch {
	case g.Offset >= 0:
		return start{offset: g.Offset}
	case g.Appeared:
		return start{offset: OffsetOldest}
	default:
		return start{s.cfg.startOffset, s.cfg.startTime}
	}
}

// String describes a partition as logs and statuses do.
func (tp TopicPartition) String() string { return fmt.Sprint(tp.Topic, "/", tp.Partition) }

// status says what the session is doing.
func (s *Session) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	reading := 0
	var slowest *holding
	for _, h := range s.claims {
		switch {
		case h.revoked.IsZero():
			reading++
		case slowest == nil || h.revoked.Before(slowest.revoked):
			slowest = h
		}
	}
	text := fmt.Sprintf("group %s: reads %d partitions in generation %d", s.group, reading, s.generation.Load())
	switch {
	case slowest != nil:
		return Status{text + ", waits for the handler of " + slowest.of.String() + " to return", slowest.revoked}
	case s.ctx.Err() != nil:
		return Status{text + ", is ending", s.since}
	case s.pending:
		return Status{text + ", waits for other members to give up more", s.since}
	case len(s.missing) > 0:
		return Status{fmt.Sprintf("%s, waits for topics that are not there: %s", text, shorten(fmt.Sprint(s.missing))), s.since}
	case s.client.pool.state().Since.IsZero():
		return Status{Text: text}
	default:
		state := s.client.pool.state()
		return Status{text + ", " + state.Text, cmp.Or(state.Since, s.since)}
	}
}
