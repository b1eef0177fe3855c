package robust

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// SyncProducer sends messages and waits until a broker has stored them. It is safe
// for concurrent use; what is sent concurrently shares requests and writes.
//
// A message is stored at least once when its send succeeds, and exactly once where the
// broker recognises what is sent again after a connection broke, as those of this package
// do. Messages that one goroutine sends to a partition one after the other are stored in
// that order.
type SyncProducer struct {
	client *Client
	cfg    config
	box    *outbox
	// plain is when a broker was found to take single messages only, in Unix nanoseconds; 0:
	// none was.
	plain   atomic.Int64
	waiters sync.Pool // of *sendWaiter

	closing chan struct{} // closed when Close begins: nothing is tried again
	idle    chan struct{} // closed when no send is under way after that

	mu     sync.Mutex // guards the following
	closed bool
	sends  int       // under way
	since  time.Time // when sends rose from 0
}

// SyncProducer returns a producer. Its options override the client's; the error
// wraps [ErrInvalidConfig], or is [ErrClosed].
func (c *Client) SyncProducer(opts ...ProducerOption) (*SyncProducer, error) {
	cfg, err := c.cfg.with(asOptions(opts)...)
	if err != nil {
		return nil, err
	}
	p := &SyncProducer{client: c, cfg: cfg, closing: make(chan struct{}), idle: make(chan struct{})}
	p.cfg.batchTimeout = 0 // Who waits for its answer is not kept waiting.
	p.box = newOutbox(c, &p.cfg, false, func(b *outBatch) {
		p.box.count(b)
		p.box.release(b, b.tell())
	})
	if err := c.register(p, p.box.shown); err != nil {
		return nil, err
	}
	return p, nil
}

// SendMessage sends m and returns where it was stored. It does not change m. See
// [SyncProducer.Send] for the errors.
func (p *SyncProducer) SendMessage(ctx context.Context, m *Message) (partition int32, offset int64, err error) {
	r, err := p.Send(ctx, m)
	if err != nil {
		return PartitionAny, offsetNone, err
	}
	return r.Partition, r.Offset, nil
}

// Send sends m and returns where it was stored. A message whose Timestamp is 0 gets
// the present time, one whose Partition is [PartitionAny] the partition that
// [WithPartitioner] chooses. m must not be changed until Send returns.
//
// The wait ends with ctx or with [WithDeliveryTimeout], and the error then says what
// was waited for; the message may have been stored all the same. A refusal is a
// [*BrokerError], such as [ErrTopicNotFound] or [ErrMessageTooLarge].
func (p *SyncProducer) Send(ctx context.Context, m *Message) (Receipt, error) {
	start := time.Now()
	if err := p.enter(start); err != nil {
		return Receipt{}, err
	}
	defer p.leave()
	if !p.isPlain(start) {
		r, err := p.sendBatched(ctx, m, start)
		if !errors.Is(err, errPlainBroker) {
			return r, err
		}
		p.plain.Store(start.UnixNano())
	}
	r, err := p.send(ctx, m, start)
	p.record(m, start, r, err)
	return r, err
}

// isPlain tells whether a broker was found lately that takes single messages only.
func (p *SyncProducer) isPlain(now time.Time) bool {
	at := p.plain.Load()
	return at != 0 && now.UnixNano()-at < int64(p.cfg.metadataMaxAge)
}

// fate is what becomes of a message, for one who waits for it.
type fate struct {
	state   atomic.Int32
	receipt Receipt
	err     error
}

// States of a fate. Whoever changes it from the first has the say.
const (
	fateOpen int32 = iota
	fateKnown
	fateGivenUp
)

// set tells that it is known, unless nobody waits any more.
func (f *fate) set(r Receipt, err error) bool {
	if f.state.Load() != fateOpen {
		return false
	}
	f.receipt, f.err = r, err
	return f.state.CompareAndSwap(fateOpen, fateKnown)
}

// sendWaiter waits for one message.
type sendWaiter struct {
	fate

	done  chan struct{}        // gets a token when the fate is known
	reads atomic.Pointer[conn] // that the waiting one reads; nil: none
}

func (w *sendWaiter) gaveUp(*entry) bool { return w.state.Load() == fateGivenUp }

func (w *sendWaiter) settle(_ *entry, r Receipt, err error) {
	if w.set(r, err) {
		w.done <- struct{}{}
		if c := w.reads.Load(); c != nil {
			c.interrupt()
		}
	}
}

// sendBatched sends one message by way of the outbox.
func (p *SyncProducer) sendBatched(ctx context.Context, m *Message, start time.Time) (Receipt, error) {
	if ctx.Err() != nil {
		err := p.client.waitFailed(ctx, func() string { return sendName(m) }, endOf(ctx))
		p.record(m, start, Receipt{}, err)
		return Receipt{}, err
	}
	w, ok := p.waiters.Get().(*sendWaiter)
	if !ok {
		w = &sendWaiter{done: make(chan struct{}, 1)}
	}
	lent, err := p.box.accept(ctx, m, handing{w, 0, start.Sub(p.box.born), waiter})
	if err != nil {
		p.record(m, start, Receipt{}, err)
		return Receipt{}, err
	}
	if lent != nil {
		w.reads.Store(lent)
		lent.readUntil(ctx, w.done)
		w.reads.Store(nil)
	}
	select {
	case <-w.done:
	default:
		select {
		case <-w.done:
		case <-ctx.Done():
			if w.state.CompareAndSwap(fateOpen, fateGivenUp) {
				err := p.client.waitFailed(ctx, func() string { return sendName(m) }, endOf(ctx))
				p.record(m, start, Receipt{}, err)
				return Receipt{}, err
			}
			<-w.done // It has come after all.
		}
	}
	r, err := w.receipt, w.err
	w.fate = fate{}
	p.waiters.Put(w)
	return r, err
}

// record counts the result of a message that was sent by itself, or that nobody waits for any
// more. The message is the caller's.
func (p *SyncProducer) record(m *Message, start time.Time, r Receipt, err error) {
	took := time.Since(start)
	if err == nil {
		p.client.metrics.Producer.RecordSent(m.Size(), took)
		p.cfg.hooks.produced(m, took, r, nil)
		return
	}
	p.client.metrics.Producer.RecordFailed()
	p.cfg.hooks.produced(m, took, Receipt{}, err)
}

// send sends one message within the delivery timeout, counted from start.
func (p *SyncProducer) send(ctx context.Context, m *Message, start time.Time) (Receipt, error) {
	req, err := p.request(m, start)
	if err != nil {
		return Receipt{}, err
	}
	policy := retryPolicy{
		what: func() string { return sendName(m) }, topic: m.Topic,
		refusals: p.cfg.retries, faults: -1,
		backoff:  backoff{p.cfg.retryBackoff, p.cfg.deliveryTimeout},
		deadline: start.Add(p.cfg.deliveryTimeout), limit: p.cfg.deliveryTimeout,
		stop:    p.closing,
		onRetry: p.client.metrics.Producer.recordRetry,
	}
	var receipt Receipt
	err = p.client.retry(ctx, policy, func(left time.Duration) error {
		var err error
		receipt, err = p.try(ctx, m, req, left)
		if m.Partition == PartitionAny && errors.Is(err, ErrPartitionNotFound) {
			// The choice was made by what is out of date.
			p.client.metadata.forget(m.Topic)
			receipt, err = p.try(ctx, m, req, left)
		}
		return err
	})
	if err != nil {
		return Receipt{}, err
	}
	return receipt, nil
}

// try chooses a partition and sends once.
func (p *SyncProducer) try(ctx context.Context, m *Message, req *produceRequest, left time.Duration) (Receipt, error) {
	w, end := patience{left, p.closing}, time.Now().Add(left)
	if err := p.route(ctx, m, req, w); err != nil {
		return Receipt{}, err
	}
	w.limit = time.Until(end)
	r := route{topic: req.Topic, partition: req.Partition, repeatable: true, bounded: true, feature: p.needs()}
	resp := newProduceResponse()
	if err := p.client.round(ctx, r, w, req, resp); err != nil {
		return Receipt{}, err
	}
	return receiptOf(req, resp)
}

// needs returns the feature without which a broker would give a weaker promise than
// the producer is to have; "" for none.
func (p *SyncProducer) needs() string {
	if p.cfg.acks == AcksStored {
		return ""
	}
	return featureAcks
}

// request checks m and makes its request; the partition comes later.
func (p *SyncProducer) request(m *Message, now time.Time) (*produceRequest, error) {
	if err := checkOutgoing(m); err != nil {
		return nil, err
	}
	if size := m.Size(); size > uint64(p.cfg.maxFrameBytes) {
		return nil, fmt.Errorf("%w: %d bytes, WithMaxFrameBytes is %d", ErrMessageTooLarge, size, p.cfg.maxFrameBytes)
	}
	timestamp := m.Timestamp
	if timestamp == 0 {
		timestamp = now.UnixMilli()
	}
	return &produceRequest{
		Topic: m.Topic, Partition: PartitionAny,
		Key: m.Key, Value: m.Value, Headers: m.Headers, Timestamp: timestamp, ID: m.ID, Acks: p.cfg.acks.wire(),
	}, nil
}

// route sets req's partition from what is known of the topic.
func (p *SyncProducer) route(ctx context.Context, m *Message, req *produceRequest, w patience) error {
	req.Partition = PartitionAny
	if m.Partition >= 0 {
		req.Partition = m.Partition
	}
	entry, err := p.client.metadata.topic(ctx, m.Topic, true, w)
	switch {
	case errors.Is(err, ErrTopicNotFound):
		// The broker may still create it when the message comes, and chooses the
		// partition then, by the same hash.
		return nil
	case err != nil:
		return err
	case m.Partition >= 0:
		return nil
	}
	req.Partition, err = choosePartition(p.cfg.partitioner, m, entry.partitions)
	return err
}

// enter counts a send in.
func (p *SyncProducer) enter(now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	if p.sends == 0 {
		p.since = now
	}
	p.sends++
	return nil
}

// leave counts it out.
func (p *SyncProducer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sends--
	if p.closed && p.sends == 0 {
		close(p.idle)
	}
}

// Status says how many sends are under way and how things stand with the brokers.
func (p *SyncProducer) Status() Status {
	p.mu.Lock()
	closed, sends, since := p.closed, p.sends, p.since
	p.mu.Unlock()
	switch {
	case sends > 0:
		return Status{fmt.Sprintf("%d sends under way, %s", sends, p.client.pool.state()), since}
	case closed:
		return Status{Text: "closed"}
	default:
		return Status{Text: "idle"}
	}
}

// Close ends the producer; the Client stays open. Sends begun later fail with
// [ErrClosed]; those under way get the answer that they are waiting for but are not
// tried again. Close waits for them, at most 30 seconds. It may be called more than
// once.
func (p *SyncProducer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return p.Shutdown(ctx)
}

// Shutdown is Close with a bound of the caller's: the error says how many sends were
// still under way when ctx ended.
func (p *SyncProducer) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.closing)
		if p.sends == 0 {
			close(p.idle)
		}
	}
	p.mu.Unlock()
	p.box.stop(false)
	select {
	case <-p.idle:
		p.ended(ctx)
		return nil
	case <-ctx.Done():
		p.mu.Lock()
		sends := p.sends
		p.mu.Unlock()
		if sends == 0 {
			p.ended(ctx)
			return nil
		}
		return &waitError{what: "close producer", state: fmt.Sprintf("%d sends under way", sends), end: endOf(ctx)}
	}
}

// ended lets go of a producer of which nothing is under way any more. A write that nobody
// waits for may be: it ends with the connection.
func (p *SyncProducer) ended(ctx context.Context) {
	p.box.close(ctx)
	p.client.unregister(p)
}
