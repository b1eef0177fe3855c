package robust

import (
	"context"
	"fmt"
	"sync/atomic"
)

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

// body returns a buffer of n bytes.
func (s *service) body(n int) *[]byte {
	b, ok := s.bodies.Get().(*[]byte)
	if !ok || cap(*b) < n {
		room := make([]byte, n)
		b = &room
	}
	*b = (*b)[:n]
	return b
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
		log, err := s.logFor(ctx, asked, data)
		if err != nil {
			got.refuse(err)
			finish()
			continue
		}
		log.Append(data, acks, func(r AppendResult) {
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

// logFor returns the log to which a part goes.
func (s *service) logFor(ctx context.Context, part *producePart, data []byte) (PartitionLog, error) {
	t, err := s.topics.getOrCreate(ctx, part.Topic)
	if err != nil {
		return nil, err
	}
	p, err := t.partition(part.Partition)
	if err != nil {
		return nil, err
	}
	return p.log, nil
}
