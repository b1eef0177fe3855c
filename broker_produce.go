package robust

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// destination is where messages go, and how well they are to be stored.
type destination struct {
	topic     *topic
	partition *partition
	acks      Acks
}

// admit tells where a message goes, of which it sets the partition and the time, or why it is
// not stored. known is the topic of the message before it, which is mostly its own; nil if
// it is to be looked up.
func (s *service) admit(ctx context.Context, req *produceRequest, known *topic) (to destination, err error) {
	if to.acks, err = parseAcks(req.Acks); err == nil {
		err = checkMessageID(req.ID)
	}
	if err != nil {
		return to, err
	}
	if to.topic = known; known == nil || known.stored.Name != req.Topic {
		if to.topic, err = s.topics.getOrCreate(ctx, req.Topic); err != nil {
			return to, err
		}
	}
	partition := req.Partition
	if partition == PartitionAny {
		n := int32(len(to.topic.partitions))
		if req.Key != nil {
			partition = PartitionForKey(req.Key, n)
		} else {
			partition = int32((to.topic.turn.Add(1) - 1) % uint32(n))
		}
	}
	if to.partition, err = to.topic.partition(partition); err != nil {
		return to, err
	}
	req.Partition = partition
	if req.Timestamp == 0 {
		req.Timestamp = time.Now().UnixMilli()
	}
	m := Message{ID: req.ID, Key: req.Key, Value: req.Value, Headers: req.Headers}
	return to, s.checkSize(&m, to.topic)
}

// checkSize holds a message to the limits of its topic and of a frame.
func (s *service) checkSize(m *Message, t *topic) error {
	if size := m.Size(); size > uint64(t.config.maxMessage) {
		return fmt.Errorf("%w: %d bytes, %s of %s is %d", ErrMessageTooLarge, size, configMaxMessage, t.stored.Name, t.config.maxMessage)
	}
	// What is stored must fit the answer to a fetch, in either form.
	if size := messageWireSize(m) + 2*len(t.stored.Name); size > s.cfg.maxFrameBytes/2 {
		return fmt.Errorf("%w: %d bytes when it is fetched, a frame has %d", ErrMessageTooLarge, size*4/3, s.cfg.maxFrameBytes)
	}
	return nil
}

// checkSizes tells whether the parts are what a body of n bytes consists of.
func (r *produceBatchRequest) checkSizes(n int) error {
	left := n
	for i := range r.Parts {
		p := &r.Parts[i]
		if p.Bytes < batchHeaderSize || p.Bytes > left {
			return fmt.Errorf("%w: part %d has %d bytes, of the body there are %d left", ErrInvalidRequest, i, p.Bytes, left)
		}
		left -= p.Bytes
	}
	if left > 0 || len(r.Parts) == 0 {
		return fmt.Errorf("%w: %d parts leave %d bytes of the body", ErrInvalidRequest, len(r.Parts), left)
	}
	return nil
}

// maxPooledBody is the largest buffer that is kept for another body.
const maxPooledBody = 2 << 20

// body returns a buffer for what comes behind a request.
func (s *service) body() *[]byte {
	if b, ok := s.bodies.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

// giveBody takes a buffer back that nobody uses any more.
func (s *service) giveBody(b *[]byte) {
	if cap(*b) <= maxPooledBody {
		s.bodies.Put(b)
	}
}

// produceBatch stores the parts of a request and calls done, from any goroutine, when
// each of them is stored or refused. body is its own until then.
func (s *service) produceBatch(ctx context.Context, req *produceBatchRequest, body []byte, done func(*produceBatchResponse, error)) {
	resp := &produceBatchResponse{Parts: make([]producedPart, len(req.Parts))}
	acks, err := parseAcks(req.Acks)
	if err != nil {
		done(resp, err)
		return
	}
	var left atomic.Int64
	left.Store(int64(len(req.Parts)) + 1)
	finish := func() {
		if left.Add(-1) == 0 {
			done(resp, nil)
		}
	}
	for i := range req.Parts {
		asked, got := &req.Parts[i], &resp.Parts[i]
		got.Topic, got.Partition, got.BaseOffset = asked.Topic, asked.Partition, offsetNone
		data := body[:asked.Bytes:asked.Bytes]
		body = body[asked.Bytes:]
		p, err := s.partitionFor(ctx, asked, data)
		if err != nil {
			s.metrics.notStored(asked.Topic, asked.Partition, countClaimed(data), len(data), err)
			got.refuse(err)
			finish()
			continue
		}
		measured := s.metrics.appends(p, data, -1)
		p.log.Append(data, acks, func(r AppendResult) {
			measured.done(&r)
			if r.Err != nil {
				got.refuse(r.Err)
			} else {
				got.BaseOffset, got.Acks = r.BaseOffset, r.Acks.wire()
			}
			finish()
		})
	}
	finish()
}

// partitionFor returns the partition to which a part goes.
func (s *service) partitionFor(ctx context.Context, part *producePart, data []byte) (*partition, error) {
	t, err := s.topics.getOrCreate(ctx, part.Topic)
	if err != nil {
		return nil, err
	}
	p, err := t.partition(part.Partition)
	if err != nil {
		return nil, err
	}
	for rest := data; len(rest) > 0; {
		b, err := headOf(rest)
		if err == nil {
			err = s.checkBatch(b, t)
		}
		if err != nil {
			// What was damaged on the way is told as that.
			_, _, damaged := parseBatch(rest)
			return nil, cmp.Or(damaged, err)
		}
		rest = rest[len(b):]
	}
	return p, nil
}

// countClaimed is how many messages batches claim to have that were not checked: a record takes
// a byte at least, unless it is compressed.
func countClaimed(data []byte) (n int) {
	for len(data) > 0 {
		b, err := headOf(data)
		if err != nil {
			break
		}
		n += min(max(int(b.count()), 0), len(b))
		data = data[len(b):]
	}
	return n
}

// batchReserve is what the line of an answer with one batch takes at most.
const batchReserve = 1024

// checkBatch checks what the log does not: the log has the checksums, and looks at no
// records. What is stored must fit the answer to a fetch: the batch as it is and, unless it
// is compressed, each message in either form.
func (s *service) checkBatch(b batch, t *topic) error {
	if limit := s.cfg.maxFrameBytes - batchReserve; len(b) > limit {
		return fmt.Errorf("%w: a batch of %d bytes, the limit is %d", ErrMessageTooLarge, len(b), limit)
	}
	if err := b.checkRecords(t.config.maxMessage); errors.Is(err, ErrMessageTooLarge) {
		return fmt.Errorf("%w, which is %s of %s", err, configMaxMessage, t.stored.Name)
	} else if err != nil {
		return err
	}
	// In JSON a byte takes six at most, and as many more if it is a header by itself.
	const most, envelope = 12, 4 << 10
	small := (s.cfg.maxFrameBytes/2 - envelope) / most
	if b.compression() != CompressionNone || len(b) <= small {
		return nil
	}
	var f recordFields
	for records := b.records(); ; {
		more, err := records.cut(&f)
		if err != nil || !more {
			return err
		}
		if f.size <= small {
			continue
		}
		var m Message
		records.read(&f, &m)
		if err := s.checkSize(&m, t); err != nil {
			return err
		}
	}
}

// headOf returns the first of the batches in data, at which only what would lead astray is
// looked.
func headOf(data []byte) (batch, error) {
	if len(data) >= batchHeaderSize {
		n := int64(int32(binary.BigEndian.Uint32(data[batchLengthAt:]))) + batchLengthEnd
		if n >= batchHeaderSize && n <= int64(len(data)) {
			return batch(data[:n:n]), nil
		}
	}
	return nil, fmt.Errorf("%w: %d bytes that are no batch", ErrMalformed, len(data))
}
