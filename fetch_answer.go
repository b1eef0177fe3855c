package robust

import (
	"cmp"
	"fmt"
	"math"
)

// advance moves the position to next, behind what has come.
func (f *fetcher) advance(e *epoch, next int64, got *fetchedPart) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch != e {
		return
	}
	if next > f.position {
		f.position = next
		f.lastEpoch = 0
	}
	f.end = max(got.HighWaterMark, f.position)
	f.topicID = cmp.Or(f.topicID, got.TopicID)
	if got.Epoch <= 0 {
		return
	}
	f.lastEpoch = got.Epoch
	if f.position > f.reached.offset {
		f.reached = reached{f.position, got.Epoch}
	}
}

// verify finds out whether the log that answers is the one that was read, and if not
// moves to where reading goes on; the error is then a [*LogChangedError]. What was
// fetched before is still delivered: it was stored once, and comes before what is there
// now.
func (f *fetcher) verify(e *epoch, asked *fetchPart, got *fetchedPart) error {
	if len(got.TopicID) > maxNameBytes {
		return fmt.Errorf("%w: fetch: topic ID %q of %d bytes", ErrMalformed, shorten(got.TopicID), len(got.TopicID))
	}
	anew := asked.TopicID != "" && got.TopicID != "" && got.TopicID != asked.TopicID
	at := got.DivergedAt
	if !anew && at == nil {
		return nil
	}
	changed := &LogChangedError{MadeAnew: anew, LostTo: asked.Offset, To: offsetNone}
	to := max(got.LogStartOffset, 0)
	switch {
	case anew && f.cfg.outOfRange == OutOfRangeNewest:
		to = max(got.HighWaterMark, 0)
	case anew:
	case asked.LastEpoch == 0 || *at < 0 || *at >= asked.Offset:
		return fmt.Errorf("%w: fetch at offset %d, last epoch %d: the log diverges at %d", ErrMalformed, asked.Offset, asked.LastEpoch, *at)
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
	f.end = max(got.HighWaterMark, to)
	switch {
	case f.final: // What was reached is for whoever goes on.
	case anew:
		f.topicID, f.reached = got.TopicID, reached{}
	default:
		f.reached = f.reached.cut(*at)
	}
	f.lastEpoch = f.reached.before(to)
	return changed
}

// checkMessages returns those of a fetch's messages that are at position or behind it,
// and an error if they are not what was asked for.
func (f *fetcher) checkMessages(messages []*Message, position int64) ([]*Message, error) {
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

// checkBatches returns the offset behind the batches of a fetch at position, and an error
// if anything but their records shows that they are not what was asked for.
func checkBatches(data []byte, position int64) (next int64, err error) {
	next = position
	for first := true; len(data) > 0; first = false {
		b, rest, err := parseBatch(data)
		if err != nil {
			return 0, fmt.Errorf("fetch at offset %d: %w", next, err)
		}
		// The first may begin before the position, which is in it then.
		if b.nextOffset() <= next || !first && b.baseOffset() < next {
			return 0, fmt.Errorf("%w: fetch at offset %d: a batch of offsets %d to %d", ErrMalformed, next, b.baseOffset(), b.nextOffset()-1)
		}
		next, data = b.nextOffset(), rest
	}
	return next, nil
}

// unpackSize is about how many bytes of batches are unpacked at a time. What is unpacked
// is handed over while it is still in the processor's cache.
const unpackSize = 32 << 10

// unpack takes the next messages out of a haul, none only if none are left. An error is
// that of the batch that comes next.
func (f *fetcher) unpack(h *haul) ([]*Message, error) {
	messages := h.messages
	h.messages = nil
	for size := 0; len(h.batches) > 0 && size < unpackSize; {
		b := cutBatch(h.batches)
		plain, err := b.plain(f.cfg.maxFrameBytes)
		if err == nil {
			messages, err = plain.appendMessages(messages, f.topic, f.partition, h.from)
		}
		switch {
		case err == nil:
		case len(messages) > 0:
			return messages, nil // It comes next.
		default:
			return nil, &ConsumerError{Topic: f.topic, Partition: f.partition, Offset: max(b.baseOffset(), h.from), Err: err}
		}
		h.batches = h.batches[len(b):]
		if size += len(plain); len(messages) == 0 {
			size = 0 // All of it was before the position, or is gone.
		}
	}
	return messages, nil
}
