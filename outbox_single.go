package robust

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// singleRun sends the messages of a batch one by one, to a broker that takes no batches:
// all at once, or to one that reads no further before it has answered, one after the
// other.
type singleRun struct {
	conn     *conn
	ctx      context.Context //nolint:containedctx // the outbox's, for the run
	timeout  time.Duration   // of each message
	reqs     []produceRequest
	results  []singleResult
	left     atomic.Int64
	finished func() // called once, when all results are there
}

// singleResult is what became of one message.
type singleResult struct {
	receipt Receipt
	err     error
}

// start sends the messages of a batch.
func (r *singleRun) start(b *outBatch, acks Acks) error {
	source, err := b.source()
	if err != nil {
		return err
	}
	records := source.records()
	for range b.entries {
		var m Message
		if more, err := records.next(&m); err != nil || !more {
			break // It is of our own making.
		}
		r.reqs = append(r.reqs, produceRequest{
			Topic: b.queue.topic.name, Partition: b.queue.partition,
			Key: m.Key, Value: m.Value, Headers: m.Headers, Timestamp: m.Timestamp, ID: m.ID, Acks: acks.wire(),
		})
	}
	r.results = make([]singleResult, len(r.reqs))
	if r.conn.form == ProtocolV0 {
		r.step(0)
		return nil
	}
	r.left.Store(int64(len(r.reqs)))
	for i := range r.reqs {
		r.post(i, func() {
			if r.left.Add(-1) == 0 {
				r.finished()
			}
		})
	}
	return nil
}

// post sends one message; answered is called when its result is there.
func (r *singleRun) post(i int, answered func()) {
	req := &r.reqs[i]
	_, err := r.conn.post(r.ctx, outgoingCall{req: req}, r.timeout, func(k *call) {
		resp := newProduceResponse()
		err := r.conn.result(k, resp)
		if err == nil {
			r.results[i].receipt, err = receiptOf(req, resp)
		}
		r.results[i].err = err
		answered()
	})
	if err != nil {
		r.results[i].err = err
		answered()
	}
}

// step sends the messages from the i-th on, one after the other.
func (r *singleRun) step(i int) {
	if i == len(r.reqs) {
		r.finished()
		return
	}
	r.post(i, func() {
		if err := r.results[i].err; err != nil && connectionFault(err) {
			for j := i + 1; j < len(r.results); j++ {
				r.results[j].err = &ConnError{Addr: r.conn.addr, Op: "write", Err: errors.New("the message before it failed"), unsent: true}
			}
			r.finished()
			return
		}
		r.step(i + 1)
	})
}

// newProduceResponse returns what an answer without a payload leaves as it is.
func newProduceResponse() *produceResponse {
	return &produceResponse{Partition: PartitionAny, Offset: offsetNone}
}

// receiptOf returns where the answer to req says that the message was stored. One
// that does not say so, speaks of another partition, or of less than was asked for, is
// no receipt.
func receiptOf(req *produceRequest, resp *produceResponse) (Receipt, error) {
	other := resp.Topic != "" && resp.Topic != req.Topic || req.Partition != PartitionAny && resp.Partition != req.Partition
	if other || resp.Partition < 0 || resp.Offset < 0 {
		return Receipt{}, fmt.Errorf("%w: Produce: the answer for %s/%d is of %s/%d, offset %d",
			ErrMalformed, req.Topic, req.Partition, shorten(resp.Topic), resp.Partition, resp.Offset)
	}
	acks, err := parseAcks(resp.Acks)
	if err != nil {
		acks = AcksStored // A level of which nobody here knows what it is worth.
	}
	if req.Acks != "" && req.Acks != acks.wire() {
		return Receipt{}, fmt.Errorf("%w: Produce: acks %q was asked for, the message at %s/%d, offset %d, is %s only",
			ErrMalformed, req.Acks, req.Topic, resp.Partition, resp.Offset, acks)
	}
	return Receipt{resp.Partition, resp.Offset, req.Timestamp, acks}, nil
}
