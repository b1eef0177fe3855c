package robust

import (
	"context"
	"errors"
	"fmt"
	"iter"
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
	handover

	client *Client
	cfg    config
	notice func(*ConsumerError) // passes on what goes wrong; must not block
	// notices is nil if Errors is not the consumer's own.
	notices *notices
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
		return nil, fmt.Errorf("%w: partition %d: want 0 or more", ErrInvalidRequest, partition)
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
		handover: handover{
			messages: make(chan *Message, cfg.messageBuffer),
			taking:   make(chan struct{}, 1),
			pumped:   make(chan struct{}),
			sent:     make([]int64, cfg.messageBuffer),
			next:     offsetNone,
			hook:     cfg.hooks.Consumed,
		},
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
	p.client.metrics.Consumer.addReader(p, readerSource{TopicPartition{p.fetch.topic, p.fetch.partition}, p.lag, p.received})
	p.begin()
}

// stop ends fetching, closes the Messages channel and waits for both; first tells that
// it had not been called before.
func (p *PartitionConsumer) stop() (first bool) {
	if first = p.end(); first {
		p.client.metrics.Consumer.removeReader(p)
	}
	return first
}

// Messages returns the channel of messages, which holds up to [WithMessageBuffer].
// While nobody reads it, fetching waits. Close closes it, and so does an error that
// ends the consumer, which is then the last on Errors; messages that are in the
// channel can still be read.
//
// Keys and values share the memory of what they were fetched with: an application that
// keeps one message of many for long should keep a [Message.Clone].
func (p *PartitionConsumer) Messages() <-chan *Message { return p.channel() }

// Errors returns the channel of what went wrong or is worth knowing, each a
// [*ConsumerError]: failures that are being retried, positions out of range
// ([OutOfRangeError]), a log that is another than the one that was read
// ([LogChangedError]), and the error that ends the consumer. It need not be read: when 10 wait, the oldest is
// dropped and counted. Close closes it.
func (p *PartitionConsumer) Errors() <-chan error { return p.notices.ch }

// All returns the messages as a loop, which ends with an error: ctx's cause,
// [ErrClosed] after Close, or what ended the consumer. Failures that are being
// retried go to Errors. A message is delivered once, to one loop or to the channel.
// It is the fastest way to read; of the messages' memory the same is true as for
// [PartitionConsumer.Messages].
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

// lag is what lies between the next message and the high-water mark, once both are
// known.
func (p *PartitionConsumer) lag() (int64, bool) {
	end, next := p.HighWaterMark(), p.Offset()
	return max(end-next, 0), end >= 0 && next >= 0
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
func (p *PartitionConsumer) Offset() int64 { return p.offset() }

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
	e, pumping, err := p.moveTo(s)
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
	return err
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
