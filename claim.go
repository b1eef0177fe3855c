package robust

import (
	"context"
	"iter"
	"sync/atomic"
	"time"
)

// Claim is one partition that a member of a consumer group reads, from when it is given
// the partition until it has to give it up. It is safe for concurrent use, and of no
// use after its ConsumeClaim has returned.
type Claim struct {
	holding  *holding
	consumer *PartitionConsumer
	initial  int64
}

// holding is a partition that the broker has granted to the member. Claims come and go
// with the calls of ConsumeClaim; a holding has one at a time.
type holding struct {
	of    TopicPartition
	epoch int64
	// topicID is the topic that it is of, "" from brokers that do not tell.
	topicID string
	marks   *marks
	start   start           // where the first claim begins
	ctx     context.Context //nolint:containedctx // Claim.Context
	cancel  context.CancelCauseFunc

	revoked time.Time // when it was to be given up; zero: it is not; guarded by Session.mu
	begun   bool      // a goroutine serves it; likewise
	anew    bool      // that its topic was made anew is reported; likewise
	end     highWater // of its present claim's consumer
}

// failed says where something went wrong.
func (h *holding) failed(err error) *ConsumerError {
	return &ConsumerError{Topic: h.of.Topic, Partition: h.of.Partition, Offset: h.marks.position(), Err: err}
}

// readTo returns how far the log was read in the claims until now.
func (h *holding) readTo() reached {
	if c := h.end.consumer.Load(); c != nil {
		return c.fetch.readTo()
	}
	return reached{}
}

// highWater is the consumer that knows the high-water mark of a holding.
type highWater struct {
	consumer atomic.Pointer[PartitionConsumer]
}

// Load returns the high-water mark, -1 before it is known.
func (w *highWater) Load() int64 {
	if c := w.consumer.Load(); c != nil {
		return c.HighWaterMark()
	}
	return offsetNone
}

// Topic returns the claim's topic.
func (c *Claim) Topic() string { return c.holding.of.Topic }

// Partition returns the claim's partition.
func (c *Claim) Partition() int32 { return c.holding.of.Partition }

// Epoch returns the number of the grant. It rises with every grant of the group, so it
// can serve as a fencing token: a store that refuses lower ones than it has seen for a
// partition is safe from a member that was taken for dead. 0 from brokers that give
// none.
func (c *Claim) Epoch() int64 { return c.holding.epoch }

// InitialOffset returns where reading began: the committed offset, or what
// [WithStartOffset] says, possibly [OffsetOldest] or [OffsetNewest].
func (c *Claim) InitialOffset() int64 { return c.initial }

// HighWaterMarkOffset returns the high-water mark as of the last fetch, -1 before it is
// known.
func (c *Claim) HighWaterMarkOffset() int64 { return c.consumer.HighWaterMark() }

// Offset returns the offset of the next message that Messages or All will deliver; see
// [PartitionConsumer.Offset].
func (c *Claim) Offset() int64 { return c.consumer.Offset() }

// Lag returns how many messages lie between Offset and the high-water mark, -1 before
// that is known.
func (c *Claim) Lag() int64 {
	if lag, ok := c.consumer.lag(); ok {
		return lag
	}
	return -1
}

// Context ends with the claim, and with the session; [context.Cause] says why. What is
// done for a message can use it to stop in the middle: the message is handled again by
// whoever reads the partition next.
func (c *Claim) Context() context.Context { return c.holding.ctx }

// Messages returns the channel of messages. It is closed when the claim ends; what was
// in it and not yet received is left to the next reader of the partition.
func (c *Claim) Messages() <-chan *Message { return c.consumer.Messages() }

// All returns the messages as a loop, which ends without an error when the claim ends,
// and with ctx's if that ends first. It is faster than Messages.
func (c *Claim) All(ctx context.Context) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		for {
			m, err := c.consumer.receive(ctx)
			if err != nil {
				if ctx.Err() != nil && c.holding.ctx.Err() == nil {
					yield(nil, err)
				}
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Pause stops delivery until Resume; see [PartitionConsumer.Pause]. The partition stays
// the member's.
func (c *Claim) Pause() { c.consumer.Pause() }

// Resume ends a Pause.
func (c *Claim) Resume() { c.consumer.Resume() }

// Seek goes on at an offset, [OffsetOldest] or [OffsetNewest]; see
// [PartitionConsumer.Seek]. Marks do not go back with it.
func (c *Claim) Seek(ctx context.Context, offset int64) error { return c.consumer.Seek(ctx, offset) }

// SeekTime is Seek to the first message whose timestamp is t or later.
func (c *Claim) SeekTime(ctx context.Context, t time.Time) error { return c.consumer.SeekTime(ctx, t) }

// Status says what the claim is doing or waiting for.
func (c *Claim) Status() Status { return c.consumer.Status() }

// end stops reading. What the channel still has is dropped, so that its reader does not
// go on with what is no longer the member's.
func (c *Claim) end() {
	c.consumer.stop()
	c.consumer.drain()
}
