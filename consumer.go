package robust

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
)

// PartitionConsumer reads one partition from one offset on, as a channel
// ([PartitionConsumer.Messages]) or as a loop ([PartitionConsumer.All]). It fetches
// ahead while the application works, and goes on by itself when a connection breaks
// or a broker is away. It is safe for concurrent use.
//
// An error that cannot get better ends it: the topic is not there, or the position
// is not in the log and [WithOutOfRange] says to fail.
type PartitionConsumer struct {
	client *Client
	cfg    config
	fetch  *fetcher
	notice func(*ConsumerError) // passes on what goes wrong; must not block
	// notices is nil if Errors is not the consumer's own.
	notices *notices
	taken   func(offset int64) // called for each message when it is delivered; may be nil

	messages chan *Message
	taking   chan struct{} // holds a token while the next batch is being taken
	pumped   chan struct{} // closed when the pump has ended

	running sync.WaitGroup // the fetcher and the pump

	mu      sync.Mutex // guards the following; taken before fetcher.mu
	pumping bool       // messages is in use
	closed  bool
	batch   []*Message // fetched and not delivered yet
	batchOf stretch
	epoch   *epoch  // the one since the last seek
	leg     int     // the one that next belongs to; 0: none yet
	next    int64   // offset of the next message to be delivered, as far as it is of leg
	sent    []int64 // offsets of the messages put into the channel last, a ring
	sentAt  int     // where the next one goes
	sentOf  int     // how many of them are of this epoch
}

// PartitionConsumer returns a consumer of one partition, which begins to fetch at
// once. Its options override the client's; the error wraps [ErrInvalidConfig] or
// [ErrInvalidRequest], or is [ErrClosed]. A topic or partition that is not there is
// found out by the first fetch.
func (c *Client) PartitionConsumer(topic string, partition int32, opts ...ConsumerOption) (*PartitionConsumer, error) {
	cfg, err := c.cfg.with(asOptions(opts)...)
	if err != nil {
		return nil, err
	}
	if err := checkTopicName(topic); err != nil {
		return nil, err
	}
	if partition < 0 {
		return nil, fmt.Errorf("%w: partition %d", ErrInvalidRequest, partition)
	}
	notices := newNotices(c.noticeDropped)
	p := newPartitionConsumer(c, cfg, TopicPartition{topic, partition}, func(e *ConsumerError) { notices.add(e) })
	p.notices = notices
	if err := c.register(p, p.start); err != nil {
		return nil, err
	}
	return p, nil
}

// newPartitionConsumer returns a consumer that the client does not know; start starts
// it and stop ends it. notice must not block.
func newPartitionConsumer(c *Client, cfg config, of TopicPartition, notice func(*ConsumerError)) *PartitionConsumer {
	p := &PartitionConsumer{
		client: c, cfg: cfg, notice: notice,
		messages: make(chan *Message, cfg.messageBuffer),
		taking:   make(chan struct{}, 1),
		pumped:   make(chan struct{}),
		sent:     make([]int64, cfg.messageBuffer),
		next:     offsetNone,
	}
	p.fetch = newFetcher(c, &p.cfg, of.Topic, of.Partition, p.report)
	p.epoch = p.fetch.epoch
	return p
}

// noticeDropped counts a notice that nobody has read in time.
func (c *Client) noticeDropped(notice error) {
	c.metrics.Consumer.recordDroppedError()
	c.cfg.logger.Debug("robust: a notice was dropped, nobody reads Errors", "error", notice)
}

// start begins to fetch.
func (p *PartitionConsumer) start() {
	p.client.metrics.Consumer.addReader(p, lagSource{TopicPartition{p.fetch.topic, p.fetch.partition}, p.lag})
	p.running.Go(p.fetch.run)
}

// stop ends fetching, closes the Messages channel and waits for both; first tells that
// it had not been called before.
func (p *PartitionConsumer) stop() (first bool) {
	p.mu.Lock()
	first = !p.closed
	p.closed = true
	p.mu.Unlock()
	p.fetch.cancel(ErrClosed)
	p.running.Wait()
	if first {
		p.client.metrics.Consumer.removeReader(p)
	}
	return first
}

// Messages returns the channel of messages, which holds up to [WithMessageBuffer].
// While nobody reads it, fetching waits. Close closes it, and so does an error that
// ends the consumer, which is then the last on Errors; messages that are in the
// channel can still be read.
func (p *PartitionConsumer) Messages() <-chan *Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.pumping {
		p.pumping = true
		if p.closed {
			close(p.messages)
		} else {
			e := p.epoch
			p.running.Go(func() { p.pump(e) })
		}
	}
	return p.messages
}

// Errors returns the channel of what went wrong or is worth knowing, each a
// [*ConsumerError]: failures that are being retried, positions out of range
// ([OutOfRangeError]), a log that is another than the one that was read
// ([LogChangedError]), and the error that ends the consumer. It need not be read: when 10 wait, the oldest is
// dropped and counted. Close closes it.
func (p *PartitionConsumer) Errors() <-chan error { return p.notices.ch }

// All returns the messages as a loop, which ends with an error: ctx's cause,
// [ErrClosed] after Close, or what ended the consumer. Failures that are being
// retried go to Errors. A message is delivered once, to one loop or to the channel.
func (p *PartitionConsumer) All(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := p.receive(ctx)
			if !yield(m, err) || err != nil {
				return
			}
		}
	}
}

// receive returns the next message for a loop: from the channel, if that is in use,
// because what is in it comes first.
func (p *PartitionConsumer) receive(ctx context.Context) (*Message, error) {
	if ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	p.mu.Lock()
	pumping := p.pumping
	p.mu.Unlock()
	if !pumping {
		m, of, err := p.nextMessage(ctx)
		if err == nil {
			p.delivered(m, of)
		}
		return m, err
	}
	select {
	case m, ok := <-p.messages:
		if !ok {
			return nil, p.ended()
		}
		return m, nil
	case <-ctx.Done():
		return nil, endOf(ctx)
	}
}

// ended returns why there are no more messages.
func (p *PartitionConsumer) ended() error {
	if err := p.fetch.ended(); err != nil {
		return err
	}
	return ErrClosed
}

// nextMessage takes the next message, and tells to which stretch it belongs. One
// caller at a time takes a batch, so that batches stay in order.
func (p *PartitionConsumer) nextMessage(ctx context.Context) (*Message, stretch, error) {
	for {
		if err := p.fetch.resumed(ctx); err != nil {
			return nil, stretch{}, err
		}
		if m, of, ok := p.pop(); ok {
			return m, of, nil
		}
		select {
		case p.taking <- struct{}{}:
		case <-ctx.Done():
			return nil, stretch{}, endOf(ctx)
		}
		m, of, ok := p.pop()
		if !ok {
			got, err := p.fetch.take(ctx)
			if err != nil {
				<-p.taking
				return nil, stretch{}, err
			}
			p.mu.Lock()
			p.batch, p.batchOf = got.messages, got.stretch
			if got.epoch == p.epoch && got.leg != p.leg {
				p.leg, p.next = got.leg, got.messages[0].Offset
			}
			p.mu.Unlock()
		}
		<-p.taking
		if ok {
			return m, of, nil
		}
	}
}

// pop takes a message from the batch at hand, if there is one to be delivered now.
func (p *PartitionConsumer) pop() (*Message, stretch, bool) {
	if p.fetch.ctx.Err() != nil {
		return nil, stretch{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.batchOf.epoch != p.epoch {
		p.batch = nil
	}
	if len(p.batch) == 0 {
		return nil, stretch{}, false
	}
	m := p.batch[0]
	p.batch[0] = nil
	p.batch = p.batch[1:]
	return m, p.batchOf, true
}

// delivered counts a message that the application has got, or can get from the
// channel.
func (p *PartitionConsumer) delivered(m *Message, of stretch) {
	p.client.metrics.Consumer.RecordReceived(m.Size())
	if p.taken != nil {
		p.taken(m.Offset)
	}
	p.mu.Lock()
	if of == (stretch{p.epoch, p.leg}) {
		p.next = max(p.next, m.Offset+1) // Loops side by side get here in any order.
	}
	p.mu.Unlock()
}

// lag is what lies between the next message and the high-water mark, once both are
// known.
func (p *PartitionConsumer) lag() (int64, bool) {
	end, next := p.HighWaterMark(), p.Offset()
	return max(end-next, 0), end >= 0 && next >= 0
}

// pump puts messages into the channel until the consumer ends, and then closes it.
// It alone sends on the channel, so that nothing of an earlier epoch can come into
// it after it was drained.
func (p *PartitionConsumer) pump(e *epoch) {
	defer close(p.messages)
	defer close(p.pumped)
	var m *Message // in hand
	var of stretch
	for {
		if now := p.fetch.currentEpoch(); now != e {
			e = now
			p.drain()
			close(e.drained)
		}
		if m == nil {
			var err error
			m, of, err = p.nextMessage(e.ctx)
			switch {
			case err != nil && p.fetch.ctx.Err() == nil && e.ctx.Err() != nil:
				continue // A seek.
			case err != nil:
				return
			}
		}
		if of.epoch != e {
			// Of an epoch that is over, or of one that has begun since this
			// round did, which the next round will know.
			if of.epoch != p.fetch.currentEpoch() {
				m = nil
			}
			continue
		}
		select {
		case p.messages <- m:
			p.pushed(m, of)
			m = nil
		case <-e.ctx.Done():
			if p.fetch.ctx.Err() != nil {
				return
			}
		}
	}
}

// pushed remembers the offset of a message in the channel, for Offset.
func (p *PartitionConsumer) pushed(m *Message, of stretch) {
	p.mu.Lock()
	p.sent[p.sentAt] = m.Offset
	p.sentAt = (p.sentAt + 1) % len(p.sent)
	if of.epoch == p.epoch {
		p.sentOf = min(p.sentOf+1, len(p.sent))
	}
	p.mu.Unlock()
	p.delivered(m, of)
}

// drain empties the channel.
func (p *PartitionConsumer) drain() {
	for {
		select {
		case _, open := <-p.messages:
			if !open {
				return
			}
		default:
			return
		}
	}
}

// report logs a notice and passes it on.
func (p *PartitionConsumer) report(err error) {
	ce := (*ConsumerError)(nil)
	if !errors.As(err, &ce) {
		ce = &ConsumerError{Topic: p.fetch.topic, Partition: p.fetch.partition, Offset: offsetNone, Err: err}
	}
	kind := "consumer failed"
	if oor := (*OutOfRangeError)(nil); errors.As(err, &oor) {
		kind = "consumer's position was not in the log"
	}
	if changed := (*LogChangedError)(nil); errors.As(err, &changed) {
		kind = "log is not the one that was read"
	}
	p.client.warn.warn(kind, fmt.Sprint(ce.Topic, "/", ce.Partition),
		"topic", ce.Topic, "partition", ce.Partition, "offset", ce.Offset, "error", trimPrefix(ce.Err))
	p.notice(ce)
}

// Offset returns the offset of the next message that Messages or All will deliver.
// Until the first fetch after the start or a Seek it is what was asked for, possibly
// [OffsetOldest] or [OffsetNewest]. While the channel is full it can for a moment
// still be that of the message that was received last; it is never too high.
func (p *PartitionConsumer) Offset() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The pump may have put one more into the channel than it has noted.
	if n := min(len(p.messages), p.sentOf); n > 0 {
		return p.sent[(p.sentAt-n+len(p.sent))%len(p.sent)]
	}
	p.fetch.mu.Lock()
	defer p.fetch.mu.Unlock()
	if p.leg == p.fetch.leg || len(p.batch) > 0 && p.batchOf.epoch == p.epoch {
		return p.next
	}
	return p.fetch.legFrom // Nothing of it has come, and of earlier ones nothing is left.
}

// HighWaterMark returns the high-water mark as of the last fetch, -1 before it is
// known.
func (p *PartitionConsumer) HighWaterMark() int64 {
	p.fetch.mu.Lock()
	defer p.fetch.mu.Unlock()
	return p.fetch.end
}

// Seek goes on at an offset, [OffsetOldest] or [OffsetNewest]. When it returns,
// nothing from before is left in the Messages channel; that is all it waits for.
func (p *PartitionConsumer) Seek(ctx context.Context, offset int64) error {
	if offset < OffsetOldest {
		return fmt.Errorf("%w: Seek(%d): want an offset, OffsetOldest or OffsetNewest", ErrOffsetOutOfRange, offset)
	}
	return p.seek(ctx, start{offset: offset})
}

// SeekTime is Seek to the first message whose timestamp is t or later, or to the
// high-water mark. The broker must support ListOffsets.
func (p *PartitionConsumer) SeekTime(ctx context.Context, t time.Time) error {
	return p.seek(ctx, start{offset: OffsetOldest, time: t})
}

func (p *PartitionConsumer) seek(ctx context.Context, s start) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	if err := p.fetch.ended(); err != nil {
		p.mu.Unlock()
		return err
	}
	e := p.fetch.seek(s)
	p.epoch, p.batch, p.next, p.sentOf = e, nil, offsetNone, 0
	pumping := p.pumping
	p.mu.Unlock()
	for pumping {
		select {
		case <-e.drained:
			return nil
		case <-p.pumped:
			return p.ended()
		case <-ctx.Done():
			return endOf(ctx)
		case <-e.ctx.Done():
			// A later seek ends this epoch perhaps before the pump has seen it.
			if p.fetch.ctx.Err() != nil {
				return ErrClosed
			}
			e = p.fetch.currentEpoch()
		}
	}
	return nil
}

// Pause stops delivery until Resume. What is in the Messages channel, and the message
// that waits to get in when it is full, can still be read. It may be called more than
// once.
func (p *PartitionConsumer) Pause() { p.fetch.pause() }

// Resume ends a Pause.
func (p *PartitionConsumer) Resume() { p.fetch.resume() }

// Status says what the consumer is doing or waiting for.
func (p *PartitionConsumer) Status() Status { return p.fetch.status() }

// Close ends the consumer and closes its channels; loops over All end with
// [ErrClosed]. It gives up what it is waiting for at once. It may be called from
// anywhere, also from a loop over the messages, and more than once.
func (p *PartitionConsumer) Close() error {
	if p.stop() {
		p.notices.close()
		p.client.unregister(p)
	}
	return nil
}
