package robust

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"
)

// storingOverhead is what something takes that is being stored, beside its bytes.
const storingOverhead = 4 << 10

// produce takes a message, which store stores.
func (c *brokerConn) produce(req *wireRequest, slot *v0Answer) error {
	g := &c.gather
	p := &g.request
	if g.count == 0 {
		g.at = c.begin(req) // Those that came together began together.
	}
	at := g.at
	err := g.decode(req.payload)
	if err != nil {
		c.store() // What came before is answered before.
		c.reply(slot, req.form, req.id, &plainResponse{}, err)
		c.answered(at, err)
		return err
	}
	to, err := c.service.admit(c.ctx, p, g.topic)
	if err != nil {
		c.store()
		resp := &produceResponse{Topic: p.Topic, Partition: p.Partition, Offset: offsetNone, Timestamp: p.Timestamp}
		c.reply(slot, req.form, req.id, resp, err)
		c.service.metrics.notStored(p.Topic, p.Partition, 1, len(p.Key)+len(p.Value), err)
		c.answered(at, err)
		return err
	}
	g.topic = to.topic
	b := c.gatherFor(to)
	if len(b.answers) == 0 {
		b.at = at
	}
	b.add(p, req, slot)
	if g.count++; g.count >= maxGathered || max(b.records.size(), len(b.ids)) >= maxGatheredBytes {
		c.store()
	}
	return nil
}

// gatherFor returns the batch that is being gathered for a destination.
func (c *brokerConn) gatherFor(to destination) *gathered {
	for _, b := range c.gather.open {
		if b.to == to {
			return b
		}
	}
	if len(c.gather.open) == maxGatheredParts {
		c.store()
	}
	b, ok := c.service.gathers.Get().(*gathered)
	if !ok {
		b = new(gathered)
	}
	b.to = to
	c.gather.open = append(c.gather.open, b)
	return b
}

// store has stored what is gathered.
func (c *brokerConn) store() {
	g := &c.gather
	for i, b := range g.open {
		g.open[i] = nil
		c.storeBatch(b)
	}
	g.open, g.topic, g.count = g.open[:0], nil, 0
}

func (c *brokerConn) storeBatch(b *gathered) {
	data, _ := b.records.finish(CompressionNone, noProducer()) // Only compressing could fail.
	size := len(data) + storingOverhead
	c.storing.take(size, c.ctx.Done())
	c.held.Add(1)
	turn := new(handoff)
	measured := c.service.metrics.appends(b.to.partition, data, len(b.answers))
	b.to.partition.log.Append(data, b.to.acks, func(r AppendResult) {
		measured.done(&r)
		c.service.metrics.answered(c.nc, b.at, len(b.answers), r.Err)
		turn.do(func(late bool) {
			c.answerGathered(b, r)
			if late {
				signal(c.out.wake)
			}
		})
		b.reset()
		c.service.gathers.Put(b)
		c.storing.give(size)
		c.held.Done()
	})
	turn.end()
}

// handoff is between whoever calls a storage and its callback. When that comes before the
// call returns, which is the rule, its answers leave with the caller's next flush, and the
// caller cannot go on to that before they are queued.
type handoff struct {
	mu   sync.Mutex // guards the following
	over bool       // the call has returned
}

func (h *handoff) do(f func(late bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.over)
}

func (h *handoff) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}

// answerGathered queues the answers to messages that are stored, or could not be.
func (c *brokerConn) answerGathered(b *gathered, r AppendResult) {
	resp := produceResponse{Topic: b.to.topic.stored.Name, Partition: b.to.partition.id, Acks: r.Acks.wire()}
	from := 0
	answer := func(dst []byte, i int) []byte {
		to := &b.answers[i]
		id := b.ids[from:to.id]
		from = to.id
		resp.Offset, resp.Timestamp = r.BaseOffset+int64(i), to.timestamp
		if r.Err != nil {
			resp.Offset, resp.Acks = offsetNone, ""
		}
		return c.encode(dst, to.form, id, &resp, r.Err)
	}
	if b.places {
		var frame []byte
		for i := range b.answers {
			frame = answer(frame[:0], i)
			c.queue(b.answers[i].slot, frame)
		}
		return
	}
	// A connection that failed is noticed by serve.
	const size = 200
	_ = c.out.queueBy((size+len(resp.Topic))*len(b.answers), func(dst []byte) []byte {
		for i := range b.answers {
			dst = answer(dst, i)
		}
		return dst
	})
}

// produceBatch reads the body of a ProduceBatch and has its parts stored; see handleBody
// for what it returns.
func (c *brokerConn) produceBatch(req *wireRequest, frame []byte) (fault error, over bool) {
	p := new(produceBatchRequest)
	err := decodePayload(req.payload, p)
	if errors.Is(err, ErrMalformed) && !json.Valid(frame) {
		return err, true // What follows cannot be trusted.
	}
	id, at := bytes.Clone(req.id), c.begin(req)
	if err == nil {
		err = p.checkSizes(req.body)
	}
	if err != nil {
		return c.refuseBody(req, err)
	}
	size := req.body + storingOverhead
	c.storing.take(size, c.ctx.Done())
	body := c.service.body()
	*body, err = c.in.appendBody(*body, req.body)
	if err != nil {
		c.storing.give(size)
		return c.readFault(err), true
	}
	c.frames++
	c.held.Add(1)
	turn := new(handoff)
	c.service.produceBatch(c.ctx, p, *body, func(resp *produceBatchResponse, err error) {
		c.service.giveBody(body)
		c.answered(at, err)
		turn.do(func(late bool) {
			if late {
				c.replyLater(nil, ProtocolV1, id, resp, err)
			} else {
				c.reply(nil, ProtocolV1, id, resp, err)
			}
		})
		c.storing.give(size)
		c.held.Done()
	})
	turn.end()
	return nil, false
}
