package robust

import (
	"bytes"
	"fmt"
)

func (c *brokerConn) fetch(req *wireRequest, slot *v0Answer) error {
	q, at := new(fetchRequest), c.begin(req)
	if err := decodePayload(req.payload, q); err != nil {
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		c.answered(at, err)
		return err
	}
	f, enough, err := c.service.fetch(c.ctx, q, req.lockStep)
	if req.lockStep && err == nil {
		c.service.groups.fetched(TopicPartition{q.Topic, q.Partition})
	}
	if enough || q.MaxWaitMs <= 0 || req.lockStep || !c.hold() {
		c.sentMessages(f)
		c.reply(slot, req.form, req.id, &f.fetchResponse, err)
		f.release()
		c.answered(at, err)
		return err
	}
	f.release()
	form, id := req.form, bytes.Clone(req.id)
	named := q.TopicID != ""
	q.TopicID = f.TopicID // It stays with this topic, whoever asked.
	c.held.Go(func() {
		c.service.await(c.ctx, q, c.done)
		c.answerHeld(q, named, form, id, at)
		c.unhold()
	})
	return nil
}

// answerHeld answers a fetch that was held. named tells that the peer has named the
// topic's ID.
func (c *brokerConn) answerHeld(q *fetchRequest, named bool, form Protocol, id []byte, at underWay) {
	c.sendHeld(nil, func() []byte {
		f, _, err := c.service.fetch(c.ctx, q, false)
		c.sentMessages(f)
		c.answered(at, err)
		defer f.release()
		if !named && err == nil {
			// Of a topic made anew meanwhile there are no messages in f. The peer must
			// not take its ID for that of the topic whose offset it has: it is told
			// that nothing has come, and with the next fetch of the change.
			f.TopicID = q.TopicID
		}
		return c.encode(nil, form, id, &f.fetchResponse, err)
	})
}

// sentMessages counts what a fetch is answered with.
func (c *brokerConn) sentMessages(f *fetchedMessages) {
	e := ConsumeEvent{Topic: f.Topic, Partition: f.Partition, Messages: len(f.Messages), Bytes: f.size}
	if e.Messages > 0 {
		e.Offset = f.Messages[0].Offset
	}
	c.service.metrics.fetched(e)
}

// fetchBatch answers a FetchBatch, now or when there is something.
func (c *brokerConn) fetchBatch(req *wireRequest, slot *v0Answer) error {
	q, at := new(fetchBatchRequest), c.begin(req)
	err := decodePayload(req.payload, q)
	switch {
	case err != nil:
	case req.lockStep:
		err = fmt.Errorf("%w: %s in the v0 form", ErrInvalidRequest, req.kind)
	default:
		err = q.check()
	}
	if err != nil {
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		c.answered(at, err)
		return err
	}
	f := c.service.fetchBatch(c.ctx, q, nil)
	if f.enough() || q.MaxWaitMs <= 0 || !c.holdParts(len(q.Partitions)) {
		c.queueBatches(f, req.id, at)
		return nil
	}
	held, id := f.hold(), bytes.Clone(req.id)
	c.held.Go(func() {
		defer c.unholdParts(len(q.Partitions))
		c.service.awaitBatches(c.ctx, held, c.done)
		c.whenRead(func() {
			c.queueBatches(c.service.fetchBatch(c.ctx, q, held.topicIDs), id, at)
		})
	})
	return nil
}

// queueBatches queues the answer to a FetchBatch and sees to it that it is released.
func (c *brokerConn) queueBatches(f *fetchedBatches, id []byte, at underWay) {
	line, err := f.line(nil, id)
	if err == nil && len(line) > c.limit {
		err = fmt.Errorf("%w: answer of %d bytes, the limit is %d", ErrMessageTooLarge, len(line), c.limit)
	}
	c.answered(at, err)
	if err != nil {
		f.release()
		c.queue(nil, c.encode(nil, ProtocolV1, id, &plainResponse{}, err))
		return
	}
	for i := range f.Partitions {
		if p, asked := &f.Partitions[i], &f.request.Partitions[i]; p.Bytes > 0 {
			c.service.metrics.fetched(ConsumeEvent{p.Topic, p.Partition, asked.Offset, int(f.parts[i].next - asked.Offset), p.Bytes})
		}
	}
	_ = c.out.lend(line, f.body(), f.release) // A connection that failed is noticed by serve.
}
