package robust

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

// callSetup calls Setup. Nothing begins before another sync has shown that it is still
// the member's: Setup may have taken its time.
func (s *Session) callSetup() {
	if err := guard(func() error { return s.handler.Setup(s) }); err != nil {
		s.end(err)
		return
	}
	s.mu.Lock()
	s.setUp = true
	s.mu.Unlock()
	signal(s.work)
}

// begin has the handler work on what has come to the member.
func (s *Session) begin() {
	for _, h := range s.holdings() {
		s.mu.Lock()
		begin := !h.begun && h.revoked.IsZero()
		h.begun = h.begun || begin
		s.mu.Unlock()
		if begin {
			s.handlers.Go(func() { s.serve(h) })
		}
	}
}

// giveUpLocked forgets a partition; the next sync tells the broker.
func (s *Session) giveUpLocked(h *holding) {
	delete(s.claims, h.of)
	s.gaveUp[h.of] = s.seq
	if h.topicID != "" {
		s.former[h.of] = formerly{h.topicID, h.marks.position(), h.anew}
	}
	signal(s.work)
}

// serve has the handler work on a partition until it is revoked or the session ends.
// It gives a revoked partition up after its marks are committed.
func (s *Session) serve(h *holding) {
	s.fixStart(h)
	var readTo reached
	for calls := 1; h.ctx.Err() == nil; calls++ {
		readTo = s.consume(h, readTo)
		if h.ctx.Err() == nil {
			pause(h.ctx, nil, backoff{100 * time.Millisecond, time.Second}.before(calls))
		}
	}
	if s.ctx.Err() != nil {
		return // finish commits, after Cleanup.
	}
	if s.cfg.autoCommit > 0 {
		if err := s.commit(h); err != nil && s.io.Err() == nil {
			s.report(h.failed(fmt.Errorf("last commit: %w", err)))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveUpLocked(h)
}

// fixStart commits where a partition is begun that has nothing committed and is not
// read from its start: otherwise a member that takes it over before a message was
// handled would begin elsewhere.
func (s *Session) fixStart(h *holding) {
	if h.start.time.IsZero() && h.start.offset != OffsetNewest {
		return
	}
	at := h.start.offset
	if !h.start.time.IsZero() {
		at = wireTime(h.start.time)
	}
	for failures := 1; h.ctx.Err() == nil; failures++ {
		offset, err := s.client.listOffset(h.ctx, h.of.Topic, h.of.Partition, at)
		switch {
		case err == nil:
			h.start = start{offset: offset}
			h.marks.below(offset, "")
			_ = s.commit(h) // It is tried again with the next one.
			return
		case errors.Is(err, ErrUnsupported):
			return // The fetcher looks for it in its own way.
		case !retriable(err) && h.ctx.Err() == nil:
			s.report(h.failed(err))
		}
		pause(h.ctx, nil, retryFetch.before(failures))
	}
}

// consume has the handler work on one claim of a partition, of whose log so much was read
// before. It returns how much that is now. A claim ends with the log that it reads: when
// another is there in its place, nobody is at work any more on what is gone, and what is
// marked of it can be taken back.
func (s *Session) consume(h *holding, readTo reached) reached {
	cfg := *s.cfg
	cfg.startOffset, cfg.startTime = h.start.offset, h.start.time
	if marked := h.marks.position(); marked >= 0 {
		cfg.startOffset, cfg.startTime = marked, time.Time{}
	}
	c := &Claim{holding: h, initial: cfg.startOffset, consumer: newPartitionConsumer(s.client, cfg, h.of, s.notice)}
	if s.cfg.contiguous {
		c.consumer.taken = h.marks.take
	}
	c.consumer.fetch.continues(h.topicID, readTo)
	h.end.consumer.Store(c.consumer)
	c.consumer.start()
	stop := context.AfterFunc(h.ctx, c.end)
	err := guard(func() error { return s.handler.ConsumeClaim(s, c) })
	ended := h.ctx.Err() != nil
	stop()
	fault := c.consumer.fetch.ended()
	c.end()
	readTo = c.consumer.fetch.readTo()
	panicked, refused, changed := (*PanicError)(nil), (*CommitError)(nil), (*LogChangedError)(nil)
	if err := c.consumer.fetch.ended(); errors.As(err, &changed) {
		fault = err // It may have come only after the handler had returned.
		readTo = s.logChanged(h, changed, readTo)
	}
	switch {
	case errors.As(err, &panicked):
		s.end(err)
	case ended:
	case errors.As(err, &refused) && refused.Group == s.group:
		// Partitions have gone to others, perhaps not even this one: no reason to
		// stop the rest.
		s.report(h.failed(err))
	case err != nil:
		s.end(err)
	case changed != nil && changed.MadeAnew:
		// The topic of that name is granted by itself. Until then there is nothing to
		// read, nor to report.
		signal(s.work)
		pause(h.ctx, nil, s.cfg.sessionTimeout)
	case changed != nil && changed.To >= 0: // It is reported.
	case fault != nil && !outdated(fault):
		s.end(fault)
	case fault == nil:
		s.report(h.failed(errEarlyReturn))
	}
	return readTo
}

// logChanged notes that the log of a holding is another than the one that was read, of
// which nobody handles anything any more. It returns what was read of the one that is
// there.
func (s *Session) logChanged(h *holding, changed *LogChangedError, readTo reached) reached {
	if changed.MadeAnew {
		s.mu.Lock()
		h.anew = true
		s.mu.Unlock()
		return reached{}
	}
	if changed.To >= 0 {
		h.marks.cut(changed.To)
	}
	return readTo.cut(changed.LostFrom)
}

// errEarlyReturn is a notice: a handler that returns does not end a claim.
var errEarlyReturn = errors.New("robust: ConsumeClaim returned before its claim ended, and is called again")

// errGoexit is what becomes of code that ends its goroutine.
var errGoexit = errors.New("robust: the handler has ended its goroutine (runtime.Goexit)")

// guard calls the application's code, in a goroutine of its own if that is the only way
// to survive a runtime.Goexit in it.
func guard(f func() error) (err error) {
	done := make(chan error, 1)
	go func() {
		err := errGoexit
		defer func() {
			if v := recover(); v != nil {
				err = &PanicError{Value: v, Stack: debug.Stack()}
			}
			done <- err
		}()
		err = f()
	}()
	return <-done
}

// finish ends the session in order: handlers, Cleanup, the last commit, the leave. A
// handler that takes longer than the rebalance timeout does not keep its partition from
// others. It returns what went wrong with that.
func (s *Session) finish() error {
	returned := make(chan struct{})
	go func() {
		s.handlers.Wait()
		close(returned)
	}()
	late := time.NewTimer(s.cfg.rebalanceTimeout)
	defer late.Stop()
	var failed error
	select {
	case <-returned:
	case <-late.C:
		s.report(fmt.Errorf("handlers have not returned within %v, the group goes on without them", s.cfg.rebalanceTimeout))
		failed = s.lastCommit()
		s.leave()
		s.stopIO(errLate)
		<-returned
	}
	if s.setUp {
		failed = errors.Join(failed, guard(func() error { return s.handler.Cleanup(s) }), s.lastCommit())
	}
	s.leave()
	s.stopIO(ErrClosed)
	s.running.Wait()
	return failed
}

// errLate is why nothing can be committed any more when handlers have outlived the
// rebalance timeout after the session's end.
var errLate = errors.New("robust: the rebalance timeout was over before the handlers had returned")

// lastCommit commits what is marked, unless that is left to the application. What has
// gone to other members is theirs; the rest is worth an error.
func (s *Session) lastCommit() error {
	if s.cfg.autoCommit == 0 || s.isLost() {
		return nil
	}
	err := s.commit(nil)
	refused := (*CommitError)(nil)
	switch {
	case errors.As(err, &refused):
		s.report(err)
		err = nil
	case s.io.Err() != nil && !s.uncommitted():
		err = nil // There was nothing left to commit.
	}
	return err
}

// uncommitted tells that something is marked that is not committed.
func (s *Session) uncommitted() bool {
	return slices.ContainsFunc(s.holdings(), func(h *holding) bool {
		_, _, _, pending := h.marks.pending()
		return pending
	})
}

// isLost tells that the membership is gone.
func (s *Session) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost != nil
}

// leaveTimeout bounds the goodbye: without it the broker finds out by itself.
const leaveTimeout = 5 * time.Second

// leave says that the member is gone, unless it is static and may come back, or lost, or
// no broker has ever been reached.
func (s *Session) leave() {
	addr, _ := s.by.get()
	if s.cfg.instanceID != "" || s.io.Err() != nil || addr == "" {
		return
	}
	s.leaving.Store(true)
	ctx, cancel := context.WithTimeout(s.io, leaveTimeout)
	defer cancel()
	err := s.ask(ctx, &leaveGroupRequest{GroupID: s.group, MemberID: s.MemberID()}, &leaveGroupResponse{})
	if err != nil && !errors.Is(err, ErrUnknownMember) {
		s.report(fmt.Errorf("leave: %w", err))
	}
}
