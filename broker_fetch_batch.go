package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// fetchedBatches is the answer to a FetchBatch as it is collected. Its batches are what
// the storage has lent, until release is called.
type fetchedBatches struct {
	fetchBatchResponse
	request *fetchBatchRequest
	parts   []fetchedLog // as in Partitions

	size     int // of the batches
	minBytes int
	maxBytes int
	capacity int  // bytes of a body
	frame    int  // those that are left
	full     bool // there would be more, but for its size
	news     bool // a partition has something to say that is no batch
}

// fetchedLog is what was read of one partition.
type fetchedLog struct {
	partition *partition // nil: it is not there, or another
	batches   [][]byte
	reads     []LogRead // that lend the batches
	next      int64     // offset behind the batches
}

// check refuses what is not a request for batches.
func (r *fetchBatchRequest) check() error {
	if len(r.Partitions) == 0 {
		return fmt.Errorf("%w: no partitions", ErrInvalidRequest)
	}
	return nil
}

// newFetchedBatches begins the answer to req.
func newFetchedBatches(req *fetchBatchRequest, maxFrame int) *fetchedBatches {
	f := &fetchedBatches{
		fetchBatchResponse: fetchBatchResponse{Partitions: make([]fetchedPart, len(req.Partitions))},
		request:            req,
		parts:              make([]fetchedLog, len(req.Partitions)),
		maxBytes:           req.MaxBytes, minBytes: req.MinBytes,
		// The line before the body takes nothing from it.
		capacity: maxFrame, frame: maxFrame,
	}
	if f.maxBytes <= 0 {
		f.maxBytes = defaultFetchBytes
	}
	f.minBytes = min(max(f.minBytes, 1), f.maxBytes)
	return f
}

func (f *fetchedBatches) release() {
	for i := range f.parts {
		for _, r := range f.parts[i].reads {
			r.Release()
		}
		f.parts[i].reads, f.parts[i].batches = nil, nil
	}
}

// body returns the batches in the order of the partitions.
func (f *fetchedBatches) body() [][]byte {
	var body [][]byte
	for i := range f.parts {
		body = append(body, f.parts[i].batches...)
	}
	return body
}

// fetchBatch reads what there is of the partitions, beginning with any of them, so that not
// always the same ones find room: chance is fair to a peer's requests in whatever order they
// come, which no turn of the connection would be. topicIDs, unless it is nil, says of which topics
// the partitions are whose topic the request does not name by its ID.
func (s *service) fetchBatch(ctx context.Context, req *fetchBatchRequest, topicIDs []string) *fetchedBatches {
	f := newFetchedBatches(req, s.cfg.maxFrameBytes)
	for i := range f.Partitions {
		asked, got := &req.Partitions[i], &f.Partitions[i]
		got.Topic, got.Partition, got.HighWaterMark, got.LogStartOffset = asked.Topic, asked.Partition, -1, -1
		t, p, err := s.partition(asked.Topic, asked.Partition)
		if err != nil {
			f.refuse(i, err)
			continue
		}
		got.TopicID = t.stored.ID
		if asked.TopicID == "" && topicIDs != nil && topicIDs[i] != got.TopicID {
			// As in answerHeld: the peer learns of the change with the next fetch.
			got.TopicID = topicIDs[i]
			f.news = true
			continue
		}
		if asked.TopicID != "" && asked.TopicID != got.TopicID {
			got.LogStartOffset, got.HighWaterMark = p.log.Bounds()
			f.news = true // The offset means nothing here, which the ID says.
			continue
		}
		f.parts[i] = fetchedLog{partition: p, next: asked.Offset}
	}
	first := rand.IntN(len(f.parts))
	for k := range f.parts {
		i := (first + k) % len(f.parts)
		p := f.parts[i].partition
		if p == nil {
			continue
		}
		if err := f.answerPart(ctx, i); err != nil {
			if errors.Is(err, ErrClosed) {
				// The topic was deleted meanwhile, or the broker is closing.
				_, _, gone := s.partition(p.topic, p.id)
				err = cmp.Or(gone, err)
			}
			f.refuse(i, err)
		}
		got := &f.Partitions[i]
		got.LogStartOffset, got.HighWaterMark = p.log.Bounds()
	}
	return f
}

// enough tells whether the request need not be held.
func (f *fetchedBatches) enough() bool { return f.news || f.full || f.size >= f.minBytes }

// refuse says why there is nothing of a partition.
func (f *fetchedBatches) refuse(i int, err error) {
	f.Partitions[i].refuse(err)
	f.news = true
}

// line appends the line of the answer, behind which body comes.
func (f *fetchedBatches) line(dst, id []byte) ([]byte, error) {
	return appendBodyResponse(dst, id, f.size, &f.fetchBatchResponse)
}

// answerPart adds the batches of a partition, unless the log is another there than the one
// of the reader.
func (f *fetchedBatches) answerPart(ctx context.Context, i int) error {
	asked, got, p := &f.request.Partitions[i], &f.Partitions[i], f.parts[i].partition
	if asked.LastEpoch > 0 {
		end, err := p.log.EpochEnd(ctx, asked.LastEpoch)
		if err != nil {
			return err
		}
		if asked.Offset > end {
			got.DivergedAt = &end
			f.news = true
			return nil
		}
	}
	err := f.collect(ctx, i)
	if err == nil && got.Bytes == 0 && asked.LastEpoch <= 0 {
		got.Epoch = p.epochBefore(ctx, asked.Offset) // As in partition.answer.
	}
	return err
}

// collect adds batches of a partition: as many as it, and all together, may have. As in
// partition.collect, what is wrong behind them the next fetch is told.
func (f *fetchedBatches) collect(ctx context.Context, i int) error {
	if err := f.collectAll(ctx, i); f.Partitions[i].Bytes == 0 {
		return err
	}
	return nil
}

func (f *fetchedBatches) collectAll(ctx context.Context, i int) error {
	got, l := &f.Partitions[i], &f.parts[i]
	wanted := f.request.Partitions[i].MaxBytes
	if wanted <= 0 {
		wanted = defaultFetchBytes
	}
	for got.Bytes < wanted {
		left := min(f.maxBytes-f.size, f.frame)
		if left <= 0 {
			f.full = true
			return nil
		}
		read, err := l.partition.log.Read(ctx, l.next, min(wanted-got.Bytes, left))
		if err != nil {
			return err
		}
		taken, err := f.take(i, read, wanted-got.Bytes)
		if err != nil || !taken {
			read.Release()
			return err
		}
	}
	return nil
}

// take adds batches of what was read, wanted bytes of them at most, but one of a partition
// at least. It returns false if none was taken.
func (f *fetchedBatches) take(i int, read LogRead, wanted int) (bool, error) {
	got, l := &f.Partitions[i], &f.parts[i]
	size := 0
	for rest := read.Batches; len(rest) > 0; {
		b, err := headOf(rest)
		if err != nil && size > 0 {
			break // As where a batch is too large.
		}
		if err != nil {
			return false, fmt.Errorf("%w: the log has lent %w", ErrCorrupt, err)
		}
		if len(b) > f.capacity {
			if size+got.Bytes > 0 {
				break // The next fetch is told.
			}
			return false, fmt.Errorf("%w: a batch of %d bytes at offset %d, the answer has room for %d", ErrMessageTooLarge, len(b), b.baseOffset(), f.capacity)
		}
		if size+len(b) > f.frame || f.size+size > 0 && f.size+size+len(b) > f.maxBytes {
			f.full = true
			break
		}
		if got.Bytes+size > 0 && size+len(b) > wanted {
			break
		}
		size += len(b)
		rest = rest[len(b):]
		l.next, got.Epoch = b.nextOffset(), b.epoch()
	}
	if size == 0 {
		return false, nil
	}
	l.batches = append(l.batches, read.Batches[:size:size])
	l.reads = append(l.reads, read)
	got.Bytes += size
	f.size += size
	f.frame -= size
	return true, nil
}

// heldBatches is a FetchBatch that waits.
type heldBatches struct {
	request  *fetchBatchRequest
	topicIDs []string // of its partitions
	parts    []*partition
	next     []int64 // offset of each from which on nothing was counted
	left     int     // bytes to wait for
}

// hold makes of an answer that is not enough what is to be waited for, and releases it.
func (f *fetchedBatches) hold() *heldBatches {
	h := &heldBatches{
		request:  f.request,
		topicIDs: make([]string, len(f.parts)),
		parts:    make([]*partition, len(f.parts)),
		next:     make([]int64, len(f.parts)),
		left:     f.minBytes - f.size,
	}
	for i := range f.parts {
		h.topicIDs[i], h.parts[i], h.next[i] = f.Partitions[i].TopicID, f.parts[i].partition, f.parts[i].next
	}
	f.release()
	return h
}

// awaitBatches waits until a FetchBatch has enough to be answered with, its time is over,
// stop is closed, or there is something wrong, which fetchBatch will find out.
func (s *service) awaitBatches(ctx context.Context, h *heldBatches, stop <-chan struct{}) {
	timeout := time.NewTimer(time.Duration(min(h.request.MaxWaitMs, maxFetchHold.Milliseconds())) * time.Millisecond)
	defer timeout.Stop()
	w := newWatch(h.parts)
	defer w.end()
	for i := range h.parts {
		if w.arm(i); s.look(ctx, h, i) {
			return
		}
	}
	for {
		select {
		case <-w.wake:
		case <-timeout.C:
			return
		case <-stop:
			return
		}
		for _, i := range w.take() {
			if w.arm(i); s.look(ctx, h, i) {
				return
			}
		}
	}
}

// look counts what has come to a partition. It returns true if that is enough, or the
// partition is not what it was.
func (s *service) look(ctx context.Context, h *heldBatches, i int) bool {
	p := h.parts[i]
	if _, now, err := s.partition(p.topic, p.id); err != nil || now != p {
		return true
	}
	if h.left <= 1 {
		_, end := p.log.Bounds()
		return end > h.next[i]
	}
	for h.left > 0 {
		read, err := p.log.Read(ctx, h.next[i], h.left)
		if err != nil {
			return true
		}
		for rest := read.Batches; len(rest) > 0; {
			b, err := headOf(rest)
			if err != nil {
				return true
			}
			rest = rest[len(b):]
			h.left -= len(b)
			h.next[i] = b.nextOffset()
		}
		read.Release()
		if len(read.Batches) == 0 {
			return false
		}
	}
	return true
}
