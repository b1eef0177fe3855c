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
	req      produceRequest  // of the message that is being sent
	resp     produceResponse // of the answer that is being read, by whose turn it is to read
	records  recordReader    // of the messages that are to be sent
	results  []singleResult
	left     atomic.Int64
	finished func() // called once, when all results are there
}

// singleResult is what became of one message.
type singleResult struct {
	receipt Receipt // of which the time is there before
	err     error
}

// start sends the messages of a batch.
func (r *singleRun) start(b *outBatch, acks Acks) error {
	source, err := b.source()
	if err != nil {
		return err
	}
	r.records = source.records()
	r.req = produceRequest{Topic: b.queue.topic.name, Partition: b.queue.partition, Acks: acks.wire()}
	r.results = make([]singleResult, len(b.entries))
	if r.conn.form == ProtocolV0 {
		r.step(0)
		return nil
	}
	r.left.Store(int64(len(r.results)))
	r.conn.postRun(r.ctx, requestProduce, len(r.results), r.timeout, func(dst []byte, i int) []byte {
		r.next(i)
		return r.req.append(dst)
	}, r.answered)
	return nil
}

// next makes req that of the i-th message, which follows the one before.
func (r *singleRun) next(i int) {
	var m Message
	_, _ = r.records.next(&m) // It is of our own making.
	r.req.Key, r.req.Value, r.req.Headers, r.req.ID, r.req.Timestamp = m.Key, m.Value, m.Headers, m.ID, m.Timestamp
	r.results[i].receipt.Timestamp = m.Timestamp
}

// answered notes what became of the i-th message.
func (r *singleRun) answered(i int, answer *wireResponse, err error) {
	result := &r.results[i]
	if err == nil {
		result.receipt, err = r.read(answer, result.receipt.Timestamp)
	}
	result.err = err
	if r.left.Add(-1) == 0 {
		r.finished()
	}
}

// read returns what an answer says of the message of a time. Reading the answers of a
// connection is one goroutine's at a time.
func (r *singleRun) read(answer *wireResponse, timestamp int64) (Receipt, error) {
	r.resp = produceResponse{Topic: r.req.Topic, Partition: PartitionAny, Offset: offsetNone}
	if err := r.conn.understand(requestProduce, answer, &r.resp); err != nil {
		return Receipt{}, err
	}
	return receiptOf(&produceRequest{Topic: r.req.Topic, Partition: r.req.Partition, Timestamp: timestamp, Acks: r.req.Acks}, &r.resp)
}

// step sends the messages from the i-th on, one after the other.
func (r *singleRun) step(i int) {
	if i == len(r.results) {
		r.finished()
		return
	}
	r.next(i)
	result := &r.results[i]
	answered := func(k *call, err error) {
		if err == nil {
			err = k.err
		}
		if err == nil {
			result.receipt, err = r.read(&k.resp, r.req.Timestamp)
		}
		result.err = err
		if err != nil && connectionFault(err) {
			for j := i + 1; j < len(r.results); j++ {
				r.results[j].err = &ConnError{Addr: r.conn.addr, Op: "write", Err: errors.New("the message before it failed"), unsent: true}
			}
			r.finished()
			return
		}
		r.step(i + 1)
	}
	if _, err := r.conn.post(r.ctx, outgoingCall{req: &r.req}, r.timeout, func(k *call) { answered(k, nil) }); err != nil {
		answered(nil, err)
	}
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
