package robust

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"
)

// ConsumerGroup is a member of a consumer group: the members of a group share the
// partitions of topics, each partition has one reader, and what was handled is
// committed, so that another can go on. It is safe for concurrent use.
//
// When members come and go, only the partitions that move are interrupted.
type ConsumerGroup struct {
	client  *Client
	cfg     config
	id      string
	notices *notices

	ctx     context.Context //nolint:containedctx // ends with Close
	cancel  context.CancelCauseFunc
	running sync.WaitGroup // Consume

	mu        sync.Mutex // guards the following
	closed    bool
	consuming bool
	session   *Session // nil between sessions
	failure   error    // why there is none
	since     time.Time
}

// ConsumerGroup returns a member of the group, which joins with
// [ConsumerGroup.Consume]. Group IDs have 1 to 249 bytes. The options override the
// client's; the error wraps [ErrInvalidConfig] or [ErrInvalidRequest], or is
// [ErrClosed].
func (c *Client) ConsumerGroup(groupID string, opts ...GroupOption) (*ConsumerGroup, error) {
	cfg, err := c.cfg.with(asOptions(opts)...)
	if err != nil {
		return nil, err
	}
	if groupID == "" || len(groupID) > maxNameBytes || !utf8.ValidString(groupID) {
		return nil, fmt.Errorf("%w: group ID %q: want 1 to %d bytes of UTF-8", ErrInvalidRequest, shorten(groupID), maxNameBytes)
	}
	g := &ConsumerGroup{client: c, cfg: cfg, id: groupID, notices: newNotices(c.noticeDropped)}
	g.ctx, g.cancel = context.WithCancelCause(context.Background())
	if err := c.register(g, nil); err != nil {
		return nil, err
	}
	return g, nil
}

// Consume joins the group and has h handle the messages of topics, through every
// rebalance, broker restart and lost connection. It returns
//
//   - nil when ctx has ended and all that was marked is committed, which may take as
//     long as [WithRebalanceTimeout] and the goodbye 5 seconds more,
//   - [ErrClosed] after Close,
//   - the error of h that ended it, a [*PanicError] for a panic,
//   - [ErrFenced] when another member has the same instance ID ([WithInstanceID]),
//   - the broker's refusal if it does not have it join; one that may pass, such as a
//     group that is full, is reported and tried again until ctx ends,
//   - what failed at the end, if marks could not be committed.
//
// It returns after all calls of h have returned. A name in topics that begins with ^ is
// a regular expression (RE2 syntax) for all topics whose names match, those that are
// created later included; topics that are not there are reported and read as soon as
// they are. One Consume of a ConsumerGroup runs at a time; another is
// [ErrInvalidRequest].
func (g *ConsumerGroup) Consume(ctx context.Context, topics []string, h Handler) error {
	if _, err := checkSubscription(topics); err != nil {
		return err
	}
	if f, ok := h.(HandlerFunc); h == nil || ok && f == nil {
		return fmt.Errorf("%w: Consume: the handler is nil", ErrInvalidRequest)
	}
	if c, ok := h.(checkedHandler); ok {
		if err := c.check(); err != nil {
			return err
		}
	}
	if err := g.beginConsume(); err != nil {
		return err
	}
	defer g.endConsume()
	failures := 0
	for {
		began := time.Now()
		e := g.consume(ctx, append([]string(nil), topics...), h)
		switch {
		case e.failure != nil && e.failed == nil:
			return e.failure
		case e.failure != nil || e.failed != nil && e.lost == nil:
			return errors.Join(e.failure, e.failed)
		case errors.Is(e.lost, ErrFenced):
			return e.lost
		case ctx.Err() != nil:
			return nil
		case g.ctx.Err() != nil:
			return ErrClosed
		}
		if time.Since(began) > time.Minute {
			failures = 0
		}
		failures++
		g.setSession(nil, e.lost)
		g.report(fmt.Errorf("the session is over, joining again: %w", errors.Join(e.lost, e.failed)))
		pause(ctx, g.ctx.Done(), backoff{10 * time.Millisecond, time.Second}.before(failures))
	}
}

// ending is how a session has ended. If nothing of it is set its contexts have ended it.
type ending struct {
	failure error // what ended it: the handler, the broker's refusal
	lost    error // why the membership is gone
	failed  error // what went wrong at the end
}

// consume is one session.
func (g *ConsumerGroup) consume(ctx context.Context, topics []string, h Handler) ending {
	s := newSession(ctx, g.ctx, g.client, &g.cfg, g.id, topics, h)
	s.report, s.notice = g.report, func(e *ConsumerError) { g.notices.add(e) }
	defer s.lose(ErrClosed) // Nothing of it goes on.
	defer s.settled()
	if err := s.join(s.ctx); err != nil {
		if s.ctx.Err() != nil {
			s.leave() // The broker may have heard of the member.
			return ending{}
		}
		return ending{failure: err}
	}
	g.setSession(s, nil)
	defer g.setSession(nil, nil)
	failed := s.run()
	s.mu.Lock()
	defer s.mu.Unlock()
	return ending{s.failure, s.lost, failed}
}

func (g *ConsumerGroup) beginConsume() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	if g.consuming {
		return fmt.Errorf("%w: Consume is running already", ErrInvalidRequest)
	}
	g.consuming, g.since = true, time.Now()
	g.running.Add(1)
	return nil
}

func (g *ConsumerGroup) endConsume() {
	g.mu.Lock()
	g.consuming = false
	g.mu.Unlock()
	g.running.Done()
}

func (g *ConsumerGroup) setSession(s *Session, failure error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.session, g.failure, g.since = s, failure, time.Now()
}

// report logs what goes wrong without ending anything, and passes it on.
func (g *ConsumerGroup) report(err error) {
	ce := (*ConsumerError)(nil)
	if !errors.As(err, &ce) {
		err = &GroupError{Group: g.id, Err: err}
	}
	g.client.warn.warn("consumer group", g.id, "group", g.id, "error", trimPrefix(err))
	g.notices.add(err)
}

// Errors returns the channel of what went wrong or is worth knowing and ends nothing:
// [*GroupError] and, about single partitions, [*ConsumerError]. It need not be read:
// when 10 wait, the oldest is dropped and counted. Close closes it.
func (g *ConsumerGroup) Errors() <-chan error { return g.notices.ch }

// Status says what the member is doing or waiting for.
func (g *ConsumerGroup) Status() Status {
	g.mu.Lock()
	s, failure, since, consuming, closed := g.session, g.failure, g.since, g.consuming, g.closed
	g.mu.Unlock()
	switch {
	case s != nil:
		return s.status()
	case closed:
		return Status{Text: "group " + g.id + ": closed"}
	case !consuming:
		return Status{Text: "group " + g.id + ": Consume is not running"}
	case failure != nil:
		return Status{fmt.Sprintf("group %s: joining again after: %s; %s", g.id, trimPrefix(failure), g.client.pool.state().Text), since}
	default:
		return Status{fmt.Sprintf("group %s: joining, %s", g.id, g.client.pool.state().Text), since}
	}
}

// Close ends Consume as the end of its context does, and waits for it, 30 seconds at
// most: the error then says what it waits for. A member with an instance ID does not
// leave the group. It must not be called and waited for by the handler. It may be
// called more than once.
func (g *ConsumerGroup) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return g.Shutdown(ctx)
}

// Shutdown is Close that waits as long as ctx lasts. If it fails for that, Consume is
// still ending; Shutdown or Close may be called again.
func (g *ConsumerGroup) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.cancel(ErrClosed)
	done := make(chan struct{})
	go func() {
		g.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return &waitError{what: "close group " + g.id, state: g.Status().String(), end: endOf(ctx)}
	}
	g.notices.close()
	g.client.unregister(g)
	return nil
}
