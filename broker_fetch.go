package robust

import (
	"context"
	"errors"
	"time"
)

const (
	// What a fetch gets that does not say how much it wants.
	defaultFetchBytes    = 1 << 20
	defaultFetchMessages = 500
	// maxFetchHold is the longest that a fetch is held, whatever it asks for.
	maxFetchHold = time.Minute
)

// fetchedMessages is a fetch's answer as it is collected. Its messages alias what the
// storage has lent until release is called.
type fetchedMessages struct {
	fetchResponse
	reads []LogRead

	size        int // of the messages
	minBytes    int
	maxBytes    int
	maxMessages int
	frame       int  // bytes of a frame that are left
	maxFrame    int  // bytes of a frame
	unpacked    int  // bytes that the compressed batches among them take
	crammed     bool // a batch was left packed because of that
}

// newFetchedMessages begins the answer to req.
func newFetchedMessages(req *fetchRequest, maxFrame int) *fetchedMessages {
	f := &fetchedMessages{
		fetchResponse: fetchResponse{
			Topic: req.Topic, Partition: req.Partition, Messages: []*Message{}, HighWaterMark: -1, LogStartOffset: -1,
		},
		maxBytes: req.MaxBytes, maxMessages: req.MaxMessages,
		// In the form that takes more room, base64 around base64, the answer
		// must still fit a frame.
		frame: maxFrame / 2, maxFrame: maxFrame,
	}
	if f.maxBytes <= 0 {
		f.maxBytes = defaultFetchBytes
	}
	f.maxBytes = min(f.maxBytes, f.frame)
	if f.maxMessages <= 0 {
		f.maxMessages = defaultFetchMessages
	}
	if req.MinBytes > 1 {
		f.minBytes = min(req.MinBytes, f.maxBytes)
	} // Else any message is enough, an empty one too.
	return f
}

func (f *fetchedMessages) release() {
	for _, r := range f.reads {
		r.Release()
	}
	f.reads = nil
}

// full tells that no further message is wanted.
func (f *fetchedMessages) full() bool {
	return f.size >= f.maxBytes || len(f.Messages) >= f.maxMessages || f.frame <= 0 || f.crammed
}

// add adds a message, unless it is one too many. The first is never.
func (f *fetchedMessages) add(m *Message) bool {
	size := int(m.Size())
	frame := messageWireSize(m)
	if len(f.Messages) > 0 && (f.full() || f.size+size > f.maxBytes || frame > f.frame) {
		return false
	}
	f.Messages = append(f.Messages, m)
	f.size += size
	f.frame -= frame
	return true
}

// fetch reads what there is. enough tells whether that satisfies the request, so
// that it need not be held.
func (s *service) fetch(ctx context.Context, req *fetchRequest, v0 bool) (f *fetchedMessages, enough bool, err error) {
	f = newFetchedMessages(req, s.cfg.maxFrameBytes)
	t, p, err := s.partition(req.Topic, req.Partition)
	if err != nil {
		return f, true, err
	}
	if f.TopicID = t.stored.ID; req.TopicID != "" && req.TopicID != f.TopicID {
		// Made anew: the offset means nothing here, which the ID says.
		f.LogStartOffset, f.HighWaterMark = p.log.Bounds()
		return f, true, nil
	}
	offset := req.Offset
	if v0 && offset < 0 {
		offset, _ = p.log.Bounds()
	}
	err = p.answer(ctx, f, offset, req.LastEpoch)
	f.LogStartOffset, f.HighWaterMark = p.log.Bounds()
	if errors.Is(err, ErrClosed) {
		// The topic was deleted meanwhile, or the broker is closing.
		if _, gone := s.topics.get(req.Topic); gone != nil {
			err = gone
		}
	}
	enough = err != nil || f.DivergedAt != nil || f.full() || len(f.Messages) > 0 && f.size >= f.minBytes
	return f, enough, err
}

// answer adds the messages from offset on to f, unless the log is another there than
// the one of the reader, who has read a message of lastEpoch last.
func (p *partition) answer(ctx context.Context, f *fetchedMessages, offset int64, lastEpoch int32) error {
	if lastEpoch > 0 {
		end, err := p.log.EpochEnd(ctx, lastEpoch)
		if err != nil {
			return err
		}
		if offset > end {
			f.DivergedAt = &end
			return nil
		}
	}
	err := p.collect(ctx, f, offset)
	if err == nil && len(f.Messages) == 0 && lastEpoch <= 0 {
		// Who waits here without having read anything is to notice it all the same
		// when the log loses what is before.
		f.Epoch = p.epochBefore(ctx, offset)
	}
	return err
}

// epochBefore returns the epoch of the message before offset, 0 if there is none.
func (p *partition) epochBefore(ctx context.Context, offset int64) int32 {
	if start, _ := p.log.Bounds(); offset <= start {
		return 0
	}
	read, err := p.log.Read(ctx, offset-1, 1)
	if err != nil {
		return 0 // Whoever reads it is told.
	}
	defer read.Release()
	b, _, err := parseBatch(read.Batches)
	if err != nil {
		return 0 // As above.
	}
	return b.epoch()
}

// collect adds the messages from offset on to f. What is damaged, or was overtaken by
// retention, does not take from the reader what stands before it: the next fetch is told.
func (p *partition) collect(ctx context.Context, f *fetchedMessages, offset int64) error {
	if err := p.collectAll(ctx, f, offset); len(f.Messages) == 0 {
		return err
	}
	return nil
}

func (p *partition) collectAll(ctx context.Context, f *fetchedMessages, offset int64) error {
	for !f.full() {
		read, err := p.log.Read(ctx, offset, f.maxBytes-f.size)
		if err != nil {
			return err
		}
		f.reads = append(f.reads, read)
		if len(read.Batches) == 0 {
			return nil
		}
		for rest := read.Batches; len(rest) > 0; {
			var b batch
			if b, rest, err = parseBatch(rest); err != nil {
				return err
			}
			if more, err := p.collectBatch(f, b, offset); err != nil || !more {
				return err
			}
			offset = max(offset, b.nextOffset())
		}
	}
	return nil
}

// collectBatch adds one batch's messages from offset on to f; more tells whether all
// of them were wanted. A batch that is larger than a frame when it is decompressed could
// not have been sent plain, and is refused. A message keeps all of its batch in memory, of
// which it may be little: when those that were unpacked take as much as a frame, no other is.
func (p *partition) collectBatch(f *fetchedMessages, b batch, offset int64) (more bool, err error) {
	if b.compression() != CompressionNone {
		if f.unpacked >= f.maxFrame {
			f.crammed = true
			return false, nil
		}
		if b, err = b.plain(f.maxFrame); err != nil {
			return false, err
		}
		before, size := len(f.Messages), len(b)
		defer func() {
			if len(f.Messages) > before {
				f.unpacked += size
			}
		}()
	}
	records := b.records()
	for {
		m := &Message{Topic: p.topic, Partition: p.id}
		another, err := records.nextFrom(offset, m)
		if err != nil || !another {
			return err == nil, err
		}
		if m.ID == "" {
			m.ID = messageID(p.topic, p.id, m.Offset)
		}
		if !f.add(m) {
			return false, nil
		}
		f.Epoch = b.epoch()
	}
}

// await waits until a fetch has enough to be answered with, its time is over, stop is
// closed, or there is something wrong, which fetch will find out. The request names the
// topic by its ID.
func (s *service) await(ctx context.Context, req *fetchRequest, stop <-chan struct{}) {
	timeout := time.NewTimer(time.Duration(min(req.MaxWaitMs, maxFetchHold.Milliseconds())) * time.Millisecond)
	defer timeout.Stop()
	wanted := newFetchedMessages(req, s.cfg.maxFrameBytes)
	left, messages := wanted.minBytes, wanted.maxMessages
	next := req.Offset
	t, p, err := s.partition(req.Topic, req.Partition)
	if err != nil || t.stored.ID != req.TopicID {
		return
	}
	w := newWatch([]*partition{p})
	defer w.end()
	for {
		w.arm(0)
		if now, _, err := s.partition(req.Topic, req.Partition); err != nil || now.stored.ID != req.TopicID {
			return
		}
		// Only what has come since the last look is looked at.
		size, count, to, err := p.measure(ctx, next, left, s.cfg.maxFrameBytes)
		left, messages, next = left-size, messages-count, to
		if err != nil || messages < wanted.maxMessages && left <= 0 || messages <= 0 {
			return
		}
		select {
		case <-w.wake:
			w.take()
		case <-timeout.C:
			return
		case <-stop:
			return
		}
	}
}

// measure counts the messages from offset on and their bytes, until there are enough
// bytes. It returns where it stopped. maxFrame is as for collectBatch.
func (p *partition) measure(ctx context.Context, offset int64, enough, maxFrame int) (size, count int, next int64, err error) {
	for size < enough || count == 0 {
		read, err := p.log.Read(ctx, offset, enough-size)
		if err != nil || len(read.Batches) == 0 {
			read.Release()
			return size, count, offset, err
		}
		for rest := read.Batches; len(rest) > 0; {
			b := cutBatch(rest)
			rest = rest[len(b):]
			if size >= enough && b.baseOffset() >= offset {
				count += int(b.count()) // Their size makes no difference any more.
			} else {
				more, records := b.weigh(offset, maxFrame)
				size, count = size+more, count+records
			} // Damage is for fetch to find.
			offset = b.nextOffset()
		}
		read.Release()
	}
	return size, count, offset, nil
}
