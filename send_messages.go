package robust

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// SendMessages sends ms, many at a time, and sets Partition, Offset and Timestamp of
// each that was stored. If any was not, the error is [ProducerErrors], which holds
// those and nothing else; a closed producer takes none and returns [ErrClosed]. The
// messages of a partition are sent in their order; one that a broker refuses and then
// takes when it is sent again is stored behind later ones. What has not been sent when ctx
// ends is not sent any more.
func (p *SyncProducer) SendMessages(ctx context.Context, ms []*Message) error {
	start := time.Now()
	if err := p.enter(start); err != nil {
		return err
	}
	defer p.leave()
	if p.isPlain(start) {
		return p.sendPipelined(ctx, ms, start).orNil()
	}
	return p.sendTogether(ctx, ms, start).orNil()
}

// orNil keeps an empty list from being an error.
func (es ProducerErrors) orNil() error {
	if len(es) == 0 {
		return nil
	}
	return es
}

// sendGroup waits for several messages.
type sendGroup struct {
	fates []fate
	left  atomic.Int64
	done  chan struct{} // closed when every fate is known
}

func (g *sendGroup) gaveUp(e *entry) bool { return g.fates[e.tag].state.Load() == fateGivenUp }

func (g *sendGroup) settle(e *entry, r Receipt, err error) {
	g.fates[e.tag].set(r, err)
	if g.left.Add(-1) == 0 {
		close(g.done)
	}
}

// sendTogether sends messages by way of the outbox, and returns those that failed.
func (p *SyncProducer) sendTogether(ctx context.Context, ms []*Message, start time.Time) (failed ProducerErrors) {
	g := &sendGroup{fates: make([]fate, len(ms)), done: make(chan struct{})}
	g.left.Store(int64(len(ms)) + 1)
	for i, m := range ms {
		err := endOf(ctx)
		if err == nil {
			_, err = p.box.accept(ctx, m, handing{g, int32(i), start.Sub(p.box.born), caller})
		}
		if err != nil {
			err = p.client.waitFailed(ctx, func() string { return sendName(m) }, err)
			p.record(m, start, Receipt{}, err)
			g.settle(&entry{tag: int32(i)}, Receipt{}, err)
		}
	}
	if g.left.Add(-1) > 0 {
		select {
		case <-g.done:
		case <-ctx.Done():
		}
	}
	var plain []*Message // of which brokers have to be sent each by itself
	for i, m := range ms {
		f := &g.fates[i]
		var err error
		if f.state.CompareAndSwap(fateOpen, fateGivenUp) {
			// Whoever comes too late to settle it may just write to it.
			err = p.client.waitFailed(ctx, func() string { return sendName(m) }, endOf(ctx))
			p.record(m, start, Receipt{}, err)
		} else if err = f.err; err == nil {
			m.Partition, m.Offset, m.Timestamp = f.receipt.Partition, f.receipt.Offset, f.receipt.Timestamp
		}
		switch {
		case err == nil:
		case errors.Is(err, errPlainBroker):
			plain = append(plain, m)
		case m == nil:
			failed = append(failed, &ProducerError{Msg: &Message{}, Err: err})
		default:
			failed = append(failed, &ProducerError{Msg: m, Err: err, Metadata: m.Metadata})
		}
	}
	if len(plain) > 0 {
		p.plain.Store(start.UnixNano())
		failed = append(failed, p.sendPipelined(ctx, plain, start)...)
	}
	return failed
}

// sendPipelined sends messages each by itself, many at a time, and returns those that
// failed.
func (p *SyncProducer) sendPipelined(ctx context.Context, ms []*Message, start time.Time) (failed ProducerErrors) {
	// Enough to fill any pipe; what is in flight is memory at both ends.
	const window = 1024
	line := pipeline{ways: make(map[TopicPartition]*conn), conns: make(map[string]*conn)}
	states := make([]pipelined, len(ms))
	settle := func(s *pipelined) {
		if e := p.settleInto(ctx, &line, s, start); e != nil {
			failed = append(failed, e)
		}
		*s = pipelined{} // What it holds is not needed any more.
	}
	for i, m := range ms {
		if i >= window {
			settle(&states[i-window])
		}
		states[i].m = m
		p.begin(ctx, &line, &states[i], start)
	}
	for i := max(0, len(ms)-window); i < len(ms); i++ {
		settle(&states[i])
	}
	return failed
}

// pipelined is a message of SendMessages: sent and waiting for its answer, to be
// sent by itself (no call), or failed.
type pipelined struct {
	m    *Message
	req  *produceRequest
	conn *conn
	call *call
	err  error
}

// pipeline is what one SendMessages sends through.
type pipeline struct {
	// ways is the connection of each partition, the same one for all of its messages
	// so that they stay in order; nil for those that cannot be pipelined to.
	ways  map[TopicPartition]*conn
	conns map[string]*conn // by address, for the partitions that share one
	// broken is set by the first message that has to be sent again. Those behind
	// it are then sent one by one, so that they do not overtake it.
	broken bool
}

// begin sends s without waiting for the answer, if there is a connection on which
// that can be done.
func (p *SyncProducer) begin(ctx context.Context, line *pipeline, s *pipelined, start time.Time) {
	if ctx.Err() != nil {
		s.err = endOf(ctx)
		return
	}
	w := patience{time.Until(start.Add(p.cfg.deliveryTimeout)), p.closing}
	if s.req, s.err = p.request(s.m, start); s.err != nil || w.limit <= 0 || line.broken {
		return
	}
	if err := p.route(ctx, s.m, s.req, w); err != nil {
		line.broken = retriable(err)
		if !line.broken {
			s.err = err
		}
		return
	}
	c := p.way(ctx, line, TopicPartition{s.m.Topic, s.req.Partition}, w)
	if c == nil {
		return
	}
	left := time.Until(start.Add(p.cfg.deliveryTimeout))
	if left <= 0 {
		return
	}
	k, err := c.begin(ctx, s.req, min(left, p.cfg.requestTimeout))
	switch {
	case err == nil:
		s.conn, s.call = c, k
	case connectionFault(err):
		line.broken = true
	default:
		s.err = err
	}
}

// way returns the connection for a partition's messages, nil if they have to be sent
// one by one.
func (p *SyncProducer) way(ctx context.Context, line *pipeline, tp TopicPartition, w patience) *conn {
	if c, ok := line.ways[tp]; ok {
		return c
	}
	addr := p.client.metadata.leaderAddr(tp.Topic, tp.Partition)
	if addr == "" {
		addr = p.client.cfg.brokers[0]
	}
	c, ok := line.conns[addr]
	if !ok {
		w.limit = min(w.limit, brokerPatience)
		c, _ = p.client.pool.get(ctx, addr, false, true, w) // Without one, each send finds out why.
		if c != nil && (c.form == ProtocolV0 || !c.supports(p.needs())) {
			p.client.pool.put(c)
			c = nil
		}
		line.conns[addr] = c
	}
	line.ways[tp] = c
	return c
}

// settleInto settles s and puts the result into its message; nil for success.
func (p *SyncProducer) settleInto(ctx context.Context, line *pipeline, s *pipelined, start time.Time) *ProducerError {
	r, err := p.settle(ctx, line, s, start)
	p.record(s.m, start, r, err)
	switch {
	case err == nil:
		s.m.Partition, s.m.Offset, s.m.Timestamp = r.Partition, r.Offset, r.Timestamp
		return nil
	case s.m == nil:
		return &ProducerError{Msg: &Message{}, Err: err}
	default:
		return &ProducerError{Msg: s.m, Err: err, Metadata: s.m.Metadata}
	}
}

// settle waits for a message's answer, or sends it by itself if it has not been sent
// or has failed in a way that may get better.
func (p *SyncProducer) settle(ctx context.Context, line *pipeline, s *pipelined, start time.Time) (Receipt, error) {
	if s.err != nil {
		return Receipt{}, p.client.waitFailed(ctx, s.name, s.err)
	}
	if s.call != nil {
		resp := newProduceResponse()
		err := s.conn.finish(ctx, s.call, resp)
		switch {
		case err == nil:
			return receiptOf(s.req, resp)
		case ctx.Err() != nil || !retriable(err) && (s.m.Partition != PartitionAny || !errors.Is(err, ErrPartitionNotFound)):
			return Receipt{}, p.client.waitFailed(ctx, s.name, err)
		}
		if outdated(err) {
			p.client.metadata.forget(s.m.Topic)
		}
		line.broken = true
		p.client.metrics.Producer.recordRetry(err)
	}
	return p.send(ctx, s.m, start)
}

// name is how errors call it.
func (s *pipelined) name() string { return sendName(s.m) }
