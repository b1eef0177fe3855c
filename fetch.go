package robust

import (
	"context"
	"errors"
	"slices"
	"time"
)

// retryFetch is the wait between fetches that failed.
var retryFetch = backoff{base: 100 * time.Millisecond, limit: time.Second} //nolint:gochecknoglobals // a constant in all but syntax

// take returns what the next fetch has brought, which is never nothing. The error is
// what ended the fetcher, or ctx's.
func (f *fetcher) take(ctx context.Context) (*haul, error) {
	for {
		select {
		case h, ok := <-f.ready:
			switch {
			case !ok:
				return nil, f.ended()
			case h.epoch == f.currentEpoch():
				return h, nil
			}
			h.charge.release()
		case <-ctx.Done():
			return nil, endOf(ctx)
		}
	}
}

// run fetches until the fetcher is closed or an error comes that cannot get better.
func (f *fetcher) run() {
	f.client.fetched.readers.Add(1)
	err := f.fetchLoop()
	f.client.fetched.readers.Add(-1)
	f.mu.Lock()
	f.err = err
	f.setStateLocked(stateEnded, err)
	f.mu.Unlock()
	if !errors.Is(err, ErrClosed) {
		f.report(err)
	}
	close(f.ready)
}

func (f *fetcher) fetchLoop() error {
	failures := 0
	for f.ctx.Err() == nil {
		if f.isPaused() != nil {
			f.setState(statePaused, nil)
			if err := f.resumed(f.ctx); err != nil {
				break
			}
		}
		e := f.currentEpoch()
		h, err := f.fetch(e)
		moved, err := f.moved(e, err)
		switch {
		case e.ctx.Err() != nil:
			h.drop()
			continue // Closed, or a seek: what came is not wanted.
		case err == nil && !moved:
			failures = 0
		case err == nil:
			// Once there is no reason to wait; a broker that is never content with
			// the position that it has named itself would be asked without end.
			if failures++; failures > 1 {
				pause(e.ctx, nil, retryFetch.before(failures-1))
			}
			continue
		case retriable(err):
			failures++
			f.setState(stateRetrying, err)
			if outdated(err) {
				f.client.metadata.forget(f.topic)
			}
			f.report(f.wrap(err))
			pause(e.ctx, nil, retryFetch.before(failures))
			continue
		default:
			return f.wrap(err)
		}
		if h == nil {
			continue
		}
		f.setState(stateFull, nil)
		select {
		case f.ready <- h:
			f.last = h.charge
		case <-e.ctx.Done():
			h.drop()
		}
	}
	return context.Cause(f.ctx)
}

// fetch does one fetch at the position, which it moves behind what came. It returns nil
// if nothing did; without long poll it waits then.
func (f *fetcher) fetch(e *epoch) (*haul, error) {
	position, err := f.locate(e)
	if err != nil {
		return nil, err
	}
	charge, err := f.reserve(e)
	if err != nil {
		return nil, err
	}
	f.setState(stateFetching, nil)
	// Metadata only tells which broker to ask; the fetch itself brings any error.
	_, _ = f.client.metadata.topic(e.ctx, f.topic, false, f.client.patience())
	a, err := f.ask(e, position, charge.ask())
	next := position
	if err == nil {
		next, err = f.read(e, a)
	}
	if err != nil || len(a.batches)+len(a.messages) == 0 {
		charge.release()
	}
	if err != nil {
		return nil, err
	}
	f.advance(e, next, &a.part)
	if len(a.batches)+len(a.messages) > 0 {
		charge.settle(a.size())
		return &haul{stretch: f.here(e), from: position, batches: a.batches, messages: a.messages, charge: charge}, nil
	}
	if next == position && !a.held {
		pause(e.ctx, nil, f.cfg.pollInterval)
	}
	return nil, nil //nolint:nilnil // as the comment says
}

// reserve makes room for a fetch in the client's budget. If there is none it waits until
// nothing is in hand of what was fetched before; one more batch is then borne.
func (f *fetcher) reserve(e *epoch) (*charge, error) {
	for {
		c, ok := f.client.fetched.reserve(f.cfg.fetchMaxBytes, f.spent)
		if ok || f.last.released() {
			return c, nil
		}
		f.setState(stateFull, nil)
		select {
		case <-f.spent:
		case <-e.ctx.Done():
			return nil, endOf(e.ctx)
		}
	}
}

// fetchedAnswer is what a broker has said to a fetch, by whichever request.
type fetchedAnswer struct {
	asked    fetchPart
	part     fetchedPart
	batches  []byte
	shared   bool       // batches share memory with what others have fetched
	messages []*Message // from brokers that send no batches
	// held tells that there is no reason to wait before the next one.
	held bool
}

// size is what the answer takes of memory.
func (a *fetchedAnswer) size() int {
	n := len(a.batches)
	for _, m := range a.messages {
		n += int(m.Size())
	}
	return n
}

// ask asks one broker after the other for what there is at a position.
func (f *fetcher) ask(e *epoch, position int64, most int) (*fetchedAnswer, error) {
	f.mu.Lock()
	end := f.end
	a := &fetchedAnswer{asked: fetchPart{
		Topic: f.topic, Partition: f.partition, Offset: position, MaxBytes: most, TopicID: f.topicID, LastEpoch: f.lastEpoch,
	}}
	f.mu.Unlock()
	r := route{topic: f.topic, partition: f.partition, held: true, hold: f.cfg.fetchMaxWait, repeatable: true}
	return a, f.client.roundWith(e.ctx, r, f.client.patience(), func(conn *conn, limit time.Duration) error {
		if conn.supports(featureBinary) {
			return f.askForBatches(e, conn, end, a)
		}
		return f.askForMessages(e, r, conn, limit, a)
	})
}

// askForBatches is ask of one broker that sends batches. What it says is of more than one
// byte of messages, so that it holds the request.
func (f *fetcher) askForBatches(e *epoch, conn *conn, end int64, a *fetchedAnswer) error {
	w := newFetchWant(a.asked, end, f.cfg.fetchMinBytes, f.cfg.fetchMaxWait)
	s, err := f.client.fetches.fetch(e.ctx, conn, w)
	if err != nil {
		return err
	}
	if p := s.part.partRefusal; p.refused() {
		return conn.refusalOf(requestFetchBatch, &wireResponse{errText: p.Error, errCode: p.Code, retriable: p.Retriable}, "")
	}
	a.part, a.batches, a.shared = s.part, s.data, !s.alone
	a.held = s.early || f.wasHeld(s.took, &s.part)
	return nil
}

// askForMessages is ask of one broker that sends messages.
func (f *fetcher) askForMessages(e *epoch, r route, conn *conn, limit time.Duration, a *fetchedAnswer) error {
	req := &fetchRequest{
		Topic: a.asked.Topic, Partition: a.asked.Partition, Offset: a.asked.Offset,
		MaxBytes: a.asked.MaxBytes, MaxMessages: f.cfg.fetchMaxMessages,
		MinBytes: f.cfg.fetchMinBytes, MaxWaitMs: f.cfg.fetchMaxWait.Milliseconds(),
		TopicID: a.asked.TopicID, LastEpoch: a.asked.LastEpoch,
	}
	resp := newFetchResponse()
	began := time.Now()
	if err := f.client.exchange(e.ctx, r, conn, limit, req, resp); err != nil {
		return err
	}
	bytes := uint64(0)
	for _, m := range resp.Messages {
		if m != nil { // Which read finds out.
			bytes += m.Size()
		}
	}
	f.client.metrics.Consumer.recordFetch(int(bytes), time.Since(began))
	a.messages = resp.Messages
	a.part = fetchedPart{
		HighWaterMark: resp.HighWaterMark, LogStartOffset: resp.LogStartOffset,
		TopicID: resp.TopicID, Epoch: resp.Epoch, DivergedAt: resp.DivergedAt,
	}
	a.held = f.wasHeld(time.Since(began), &a.part)
	return nil
}

// wasHeld tells whether a broker has held a fetch. One that does has used up most of the
// time that it was given. One that does not even tell the high-water mark does not hold
// any: it is only far.
func (f *fetcher) wasHeld(took time.Duration, got *fetchedPart) bool {
	return got.HighWaterMark >= 0 && f.cfg.fetchMaxWait >= time.Millisecond && took >= f.cfg.fetchMaxWait/2
}

// read checks an answer, and returns the offset behind what has come. Of the answer it
// leaves what is wanted.
func (f *fetcher) read(e *epoch, a *fetchedAnswer) (next int64, err error) {
	if err := f.verify(e, &a.asked, &a.part); err != nil {
		return 0, err
	}
	if a.messages, err = f.checkMessages(a.messages, a.asked.Offset); err != nil {
		return 0, err
	}
	next = a.asked.Offset
	if n := len(a.messages); n > 0 {
		next = a.messages[n-1].Offset + 1
	}
	if next, err = checkBatches(a.batches, next); err != nil {
		return 0, err
	}
	if a.shared && len(a.batches) > 0 {
		// The others' must not be kept in memory with it.
		a.batches = slices.Clone(a.batches)
	}
	return next, nil
}
