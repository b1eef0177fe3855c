package robust

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// AsyncProducer sends messages without waiting for each: it collects those of a partition
// into batches, has several under way, and tells of every message it has taken what became
// of it, exactly once. It is safe for concurrent use.
//
// A message is sent at once when nothing is under way to its broker, and else as part of a
// batch, when that is full ([WithBatchSize], [WithBatchBytes]), when its time is over
// ([WithBatchTimeout]), or when the broker has answered what was under way, whichever comes
// first. The messages that one goroutine sends to a partition are stored in that order.
// Where the broker can recognise them, those that are sent again after a fault are stored
// once and in their order; see [WithDeliveryTimeout] for how long that goes on.
//
// Messages are encoded when they are taken: Key, Value and Headers may be used for
// something else when Send or SendFunc has returned, the Message itself when its result
// is there. What is taken and has no result yet, or a result that nobody has read, counts
// for [WithMaxBufferedBytes]; when that is used up, senders wait.
type AsyncProducer struct {
	client *Client
	cfg    config
	box    *outbox

	calls     resultQueue[*outBatch] // of which callbacks are to be told
	successes resultPump[*ProducerMessage]
	failures  resultPump[*ProducerError]

	input   chan *Message
	intake  sync.Once     // starts takeInput
	taken   chan struct{} // closed when takeInput has ended, or will not begin
	ending  atomic.Bool   // Close has begun
	closing chan struct{} // closed when Close begins
	closed  sync.Once
	done    chan struct{} // closed when Close has done its work
	late    error         // what Close could not do; set before done is closed
}

// ProducerMessage is a message that was stored.
type ProducerMessage struct {
	*Message

	Partition int32
	Offset    int64
	Metadata  any // the message's
	// Receipt tells the same and more.
	Receipt Receipt
}

// UndeliveredError is what [AsyncProducer.Shutdown] could not deliver in time: results
// that nobody has read. Messages that had no result by then are among the failures.
type UndeliveredError struct {
	Successes []*ProducerMessage
	Failures  []*ProducerError
	Err       error // why it could not wait longer
}

func (e *UndeliveredError) Error() string {
	return fmt.Sprintf("robust: close producer: %d results were not read: %s", len(e.Successes)+len(e.Failures), trimPrefix(e.Err))
}

// Unwrap returns why it could not wait longer.
func (e *UndeliveredError) Unwrap() error { return e.Err }

// AsyncProducer returns a producer that does not wait. Its options override the client's;
// the error wraps [ErrInvalidConfig], or is [ErrClosed].
func (c *Client) AsyncProducer(opts ...AsyncOption) (*AsyncProducer, error) {
	cfg, err := c.cfg.with(asOptions(opts)...)
	if err != nil {
		return nil, err
	}
	p := &AsyncProducer{
		client: c, cfg: cfg, input: make(chan *Message, cfg.inputBuffer),
		taken: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{}),
	}
	p.box = newOutbox(c, &p.cfg, true, p.settled)
	p.box.unread = p.unread
	p.calls.init(p.box, p.callBack)
	p.successes.init(p.box)
	p.failures.init(p.box)
	if err := c.register(p, p.box.shown); err != nil {
		return nil, err
	}
	return p, nil
}

// callback is a receiver that the application has given with its message.
type callback func(m *Message, r Receipt, err error)

func (f callback) settle(e *entry, r Receipt, err error) { f(e.m, r, err) }
func (callback) gaveUp(*entry) bool                      { return false }

// channels is the receiver of messages whose results go to Successes and Errors.
type channels struct{ p *AsyncProducer }

func (c channels) gaveUp(*entry) bool { return false }

func (c channels) settle(e *entry, r Receipt, err error) {
	room := int64(e.size) + messageOverhead
	switch {
	case err != nil && c.p.cfg.returnErrors:
		c.p.failures.add(&ProducerError{Msg: e.m, Err: err, Metadata: e.m.Metadata}, room)
	case err == nil && c.p.cfg.returnSuccesses:
		c.p.successes.add(&ProducerMessage{Message: e.m, Partition: r.Partition, Offset: r.Offset, Metadata: e.m.Metadata, Receipt: r}, room)
	default:
		c.p.box.releaseRoom(room)
	}
}

// Send takes a message whose result goes to Successes or Errors. It waits while there is
// no room, and fails, having taken nothing, with ctx, with [ErrClosed], when the delivery
// timeout is over, or because of what is wrong with the message.
func (p *AsyncProducer) Send(ctx context.Context, m *Message) error {
	return p.take(ctx, m, channels{p})
}

// SendFunc is Send for a message of whose result done is called, once, unless SendFunc
// fails. That is the fastest way: no channel stands between. The calls of done come one
// after the other, from a goroutine of the producer's; as long as one takes, results that
// follow have to wait, and with them, when there is no more room, senders. A done that
// sends a message itself, and so may have to wait for itself, should do so in a goroutine
// of its own. It must not call Close, Shutdown or Flush.
func (p *AsyncProducer) SendFunc(ctx context.Context, m *Message, done func(m *Message, r Receipt, err error)) error {
	if done == nil {
		return fmt.Errorf("%w: SendFunc: done is nil", ErrInvalidRequest)
	}
	return p.take(ctx, m, callback(done))
}

func (p *AsyncProducer) take(ctx context.Context, m *Message, to receiver) error {
	if p.ending.Load() {
		return ErrClosed
	}
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	_, err := p.box.accept(ctx, m, handing{to: to, at: p.box.age(), by: caller})
	return err
}

// Input returns a channel that takes messages as Send does, [WithInputBuffer] of them
// ahead; what is wrong with a message goes to Errors. It is for select statements: unlike
// Send it cannot tell that the producer is closed. It is never closed; what is sent on it
// after Close stays there.
func (p *AsyncProducer) Input() chan<- *Message {
	p.intake.Do(func() { p.box.running.Go(p.takeInput) })
	return p.input
}

// takeInput takes messages from Input until Close, and then those that are in it, but not
// those that come after that: they may never end.
func (p *AsyncProducer) takeInput() {
	defer close(p.taken)
	for {
		select {
		case m := <-p.input:
			p.takeFromInput(m)
		case <-p.closing:
			for range len(p.input) {
				p.takeFromInput(<-p.input)
			}
			return
		}
	}
}

func (p *AsyncProducer) takeFromInput(m *Message) {
	at := p.box.age()
	_, err := p.box.accept(p.box.ctx, m, handing{to: channels{p}, at: at, by: caller})
	if err == nil {
		return
	}
	p.client.metrics.Producer.RecordFailed()
	p.cfg.hooks.produced(m, p.box.age()-at, Receipt{}, err)
	if m == nil {
		m = &Message{}
	}
	if p.cfg.returnErrors {
		p.failures.add(&ProducerError{Msg: m, Err: err, Metadata: m.Metadata}, 0)
	}
}

// Successes returns the channel of messages that were stored, unless
// [WithReturnSuccesses] is off. It has to be read: a result that is not, and for
// which there is no room in the channel, counts for [WithMaxBufferedBytes]. Close closes it.
func (p *AsyncProducer) Successes() <-chan *ProducerMessage { return p.successes.ch }

// Errors returns the channel of messages that were not stored, or whose fate is unknown,
// unless [WithReturnErrors] is off. As Successes, it has to be read, and Close closes it.
func (p *AsyncProducer) Errors() <-chan *ProducerError { return p.failures.ch }

// settled takes a batch of which everything is known.
func (p *AsyncProducer) settled(b *outBatch) {
	p.box.count(b)
	p.calls.add(b)
}

// callBack tells everybody of a batch's fate.
func (p *AsyncProducer) callBack(b *outBatch) {
	room := int64(0)
	for i := range b.entries {
		e := &b.entries[i]
		if e.to == nil {
			continue
		}
		if _, ok := e.to.(callback); ok {
			room += int64(e.size) + messageOverhead
		} // Else it is the channels' until the result is read.
		if b.err != nil {
			e.to.settle(e, Receipt{}, b.err)
		} else {
			e.to.settle(e, b.receipt(i), nil)
		}
	}
	p.box.release(b, room)
}

// Flush sends everything that was taken before the call, and waits until each of these
// messages has its result: until done has returned, or the result waits to be read. The
// error is ctx's.
func (p *AsyncProducer) Flush(ctx context.Context) error {
	err := p.box.flush(ctx)
	if err != nil {
		return &waitError{what: "flush", state: p.Status().String(), end: err}
	}
	return nil
}

// Status says how much waits, and how things stand with the brokers.
func (p *AsyncProducer) Status() Status {
	select {
	case <-p.done:
		return Status{Text: "closed"}
	default:
	}
	s := p.box.status()
	s.Text = p.unread() + s.Text
	return s
}

// unread says how many results are not read, if any.
func (p *AsyncProducer) unread() string {
	n := p.successes.waiting() + p.failures.waiting()
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d results wait to be read; ", n)
}

// Close sends what was taken, waits for the results, at most 30 seconds, and closes
// Successes and Errors; keep reading them meanwhile. What cannot be sent in that time
// fails. The Client stays open. It may be called more than once; the error is that of
// [AsyncProducer.Shutdown].
func (p *AsyncProducer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return p.Shutdown(ctx)
}

// Shutdown is Close with a bound of the caller's. When ctx ends first, what has no result
// fails, and the error is an [*UndeliveredError] with the results that nobody has read, but
// for those that are in Successes and Errors by then, at most 256 each: they can still be
// received there.
func (p *AsyncProducer) Shutdown(ctx context.Context) error {
	first := false
	p.closed.Do(func() {
		first = true
		p.ending.Store(true)
		close(p.closing)
	})
	if !first {
		select {
		case <-p.done:
			return p.late
		case <-ctx.Done():
			return endOf(ctx)
		}
	}
	p.intake.Do(func() { close(p.taken) }) // It cannot begin any more.
	end := p.finish(ctx)
	p.box.stop(end != nil)
	<-p.taken
	// Callbacks of the application that do not return are not waited for much longer.
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if end == nil {
		patience = ctx
	}
	p.box.handing.wait(patience)
	p.calls.finish(patience)
	p.successes.finish(ctx)
	p.failures.finish(ctx)
	left := &UndeliveredError{Successes: p.successes.rest(), Failures: p.failures.rest(), Err: end}
	if len(left.Successes)+len(left.Failures) > 0 {
		if left.Err == nil {
			left.Err = endOf(ctx)
		}
		p.late = left
	} else {
		p.late = end
	}
	p.box.close(patience)
	p.client.unregister(p)
	close(p.done)
	return p.late
}

// finish takes and sends what is left. The error is ctx's.
func (p *AsyncProducer) finish(ctx context.Context) error {
	select {
	case <-p.taken:
	case <-ctx.Done():
		return endOf(ctx)
	}
	p.box.refuseMore()
	return p.box.flush(ctx)
}
