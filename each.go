package robust

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Each returns a [Handler] that calls fn for one message of a partition after the
// other, and marks each for which it returns nil. ctx is the claim's: it ends when the
// partition goes to another member. An error of fn ends Consume, with the message
// unmarked, unless ctx has ended.
func Each(fn func(ctx context.Context, m *Message) error, opts ...EachOption) Handler { //nolint:ireturn // its type says nothing
	h := &eachHandler{fn: fn, concurrency: 1}
	for _, o := range opts {
		if o == nil {
			h.wrong = fmt.Errorf("%w: an option of Each is nil", ErrInvalidConfig)
			continue
		}
		o.applyEach(h)
	}
	return h
}

// EachOption is an option of [Each].
type EachOption interface{ applyEach(h *eachHandler) }

type eachOption func(*eachHandler)

func (f eachOption) applyEach(h *eachHandler) { f(h) }

// Concurrency has [Each] handle up to n messages of each partition side by side
// (default 1). Messages with the same key are handled in order, those without a key in
// any. What is committed is the end of the unbroken run of handled messages, so that
// none is lost whichever is finished first.
func Concurrency(n int) EachOption {
	return eachOption(func(h *eachHandler) { h.concurrency = n })
}

const (
	maxConcurrency = 10_000
	// laneBuffer is how many messages wait for a busy lane, and eachGap how many are
	// begun behind one that is not done.
	laneBuffer = 16
	eachGap    = 10_000
)

type eachHandler struct {
	fn          func(ctx context.Context, m *Message) error
	concurrency int
	wrong       error
}

// check returns what is wrong with the arguments of Each.
func (h *eachHandler) check() error {
	switch {
	case h.fn == nil:
		return fmt.Errorf("%w: Each: the function is nil", ErrInvalidRequest)
	case h.concurrency < 1 || h.concurrency > maxConcurrency:
		return fmt.Errorf("%w: Concurrency(%d): want 1 to %d", ErrInvalidConfig, h.concurrency, maxConcurrency)
	}
	return h.wrong
}

func (h *eachHandler) Setup(*Session) error   { return nil }
func (h *eachHandler) Cleanup(*Session) error { return nil }

func (h *eachHandler) ConsumeClaim(_ *Session, c *Claim) error {
	if h.concurrency > 1 {
		return h.consumeSideBySide(c)
	}
	for m, err := range c.All(c.Context()) {
		if err == nil {
			err = h.fn(c.Context(), m)
		}
		if err != nil {
			return err
		}
		// It was delivered, so there is nothing for MarkOffset to look at.
		c.holding.marks.belowNext(m.Offset, "")
	}
	return nil
}

// lanes handles the messages of one claim side by side: each lane those of some keys,
// in order.
type lanes struct {
	fn     func(ctx context.Context, m *Message) error
	mark   func(next int64)
	ctx    context.Context //nolint:containedctx // ends with the claim or the first failure
	cancel context.CancelCauseFunc

	mu   sync.Mutex // guards the following
	run  *run
	room chan struct{} // closed when a message is done; nil unless waited for
}

func (h *eachHandler) consumeSideBySide(c *Claim) error {
	l := &lanes{fn: h.fn, run: newRun(offsetNone)}
	l.mark = func(next int64) { c.holding.marks.below(next, "") }
	l.ctx, l.cancel = context.WithCancelCause(c.Context())
	defer l.cancel(nil)
	queues := make([]chan *Message, h.concurrency)
	var working sync.WaitGroup
	turn := 0
	for m, err := range c.All(l.ctx) {
		if err != nil || l.take(m.Offset) != nil {
			break
		}
		lane := turn % len(queues)
		if m.Key != nil {
			lane = int(PartitionForKey(m.Key, int32(len(queues))))
		} else {
			turn++
		}
		if queues[lane] == nil {
			queue := make(chan *Message, laneBuffer)
			queues[lane] = queue
			working.Go(func() {
				if err := guard(func() error { return l.work(queue) }); err != nil {
					l.cancel(err)
				}
			})
		}
		select {
		case queues[lane] <- m:
		case <-l.ctx.Done():
		}
	}
	for _, queue := range queues {
		if queue != nil {
			close(queue)
		}
	}
	working.Wait()
	err := context.Cause(l.ctx)
	if panicked := (*PanicError)(nil); c.Context().Err() != nil && !errors.As(err, &panicked) {
		return nil
	}
	return err
}

// take begins a message, when those that are begun and not done are not too far apart.
func (l *lanes) take(offset int64) error {
	for {
		l.mu.Lock()
		if l.run.open() < eachGap {
			l.run.take(offset)
			l.mu.Unlock()
			return nil
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// work handles the messages of one lane.
func (l *lanes) work(queue <-chan *Message) error {
	for m := range queue {
		select {
		case <-l.ctx.Done():
			return nil // What waits is left to the next reader.
		default:
		}
		if err := l.fn(l.ctx, m); err != nil {
			return err
		}
		l.mu.Lock()
		l.mark(l.run.finish(m.Offset))
		if l.room != nil {
			close(l.room)
			l.room = nil
		}
		l.mu.Unlock()
	}
	return nil
}
