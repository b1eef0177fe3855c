package robust

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// maxFetchShares is how many partitions share one FetchBatch, if its frames may be
	// so long: for each there is room for fetchShareSize.
	maxFetchShares = 64
	fetchShareSize = 1 << 10
	// freeFetches is how many FetchBatch a broker may hold of one connection before
	// those that are ready to wait do so for company first, each further one a
	// gatherStep longer, maxGather at most. So the number of those that are held grows
	// with the root of that of partitions, if not less.
	freeFetches = 8
	gatherStep  = time.Millisecond
	maxGather   = 100 * time.Millisecond
	// readyFetches is how many FetchBatch are under way of those that a broker is to
	// answer at once: what comes meanwhile shares the next.
	readyFetches = 4
)

// combiner has the fetchers of a client share FetchBatch requests. It has no goroutine:
// requests are sent, without waiting, by whoever finds that they may be, which is the
// fetcher that wants something, the one that brings an answer, or a timer.
type combiner struct {
	timeout time.Duration // for an answer, beside the time that it may be held
	metrics *ConsumerMetrics

	mu     sync.Mutex // guards the following, and all of fetchQueue; taken before conn.mu
	queues map[*conn]*fetchQueue
	closed bool
}

// fetchQueue is what is wanted on one connection. It is there as long as there is
// something in it or under way.
type fetchQueue struct {
	conn    *conn
	waiting [2][]*fetchWant // by whether they are ready
	flying  [2]int          // requests under way, likewise
	timer   *time.Timer     // for those that wait for company; nil: not set
	gather  bool            // its time is over
}

// fetchWant is what one fetcher wants of a FetchBatch.
type fetchWant struct {
	part     fetchPart
	end      int64 // the high-water mark that it knows of
	minBytes int
	maxWait  time.Duration
	// ready says that there is something to be had, so that the broker is not to hold
	// the request.
	ready bool
	// answered has room for the one answer.
	answered chan fetchShare

	request *sharedFetch // that it is part of; nil while it waits; guarded by combiner.mu
	dropped bool         // nobody waits for the answer; likewise
}

// newFetchWant returns a want that was not asked for yet.
func newFetchWant(part fetchPart, end int64, minBytes int, maxWait time.Duration) *fetchWant {
	w := &fetchWant{part: part, end: end, minBytes: minBytes, maxWait: maxWait, answered: make(chan fetchShare, 1)}
	// More than a byte may be far from there, and then the broker is to hold it.
	w.ready = maxWait <= 0 || minBytes <= 1 && end > part.Offset
	return w
}

// fetchShare is one fetcher's share of an answer.
type fetchShare struct {
	part fetchedPart
	data []byte // the batches; shares memory with those of others
	// alone tells that data is most of that memory.
	alone bool
	// early tells that the broker has answered because of others.
	early bool
	took  time.Duration // by the broker
	err   error
}

// sharedFetch is one FetchBatch.
type sharedFetch struct {
	queue *fetchQueue
	call  call
	wants []*fetchWant // in the order of the request
	ready bool         // as all of wants
	left  int          // wants that are not dropped; guarded by combiner.mu, as all below
	sent  bool         // the connection has the call
	over  bool         // it is not under way any more
}

func newCombiner(timeout time.Duration, m *ConsumerMetrics) *combiner {
	return &combiner{timeout: timeout, metrics: m, queues: make(map[*conn]*fetchQueue)}
}

// fetch asks for what is wanted over a connection to a broker that has announced
// featureBinary, and waits for the share. The error is that of the whole request, or
// ctx's.
func (c *combiner) fetch(ctx context.Context, conn *conn, w *fetchWant) (fetchShare, error) {
	c.ask(conn, w)
	select {
	case s := <-w.answered:
		return s, s.err
	case <-ctx.Done():
		c.drop(w)
		return fetchShare{}, endOf(ctx)
	}
}

// ask puts a want into the queue of a connection.
func (c *combiner) ask(conn *conn, w *fetchWant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		w.answerLocked(fetchShare{err: ErrClosed})
		return
	}
	q := c.queues[conn]
	if q == nil {
		q = &fetchQueue{conn: conn}
		c.queues[conn] = q
	}
	q.addLocked(w)
	c.sendLocked(q)
}

func (q *fetchQueue) addLocked(w *fetchWant) {
	w.request = nil
	q.waiting[class(w.ready)] = append(q.waiting[class(w.ready)], w)
}

// shares is how many partitions share a request.
func (q *fetchQueue) shares() int { return min(maxFetchShares, max(q.conn.maxFrame/fetchShareSize, 1)) }

// class is the index of those that are ready or not.
func class(ready bool) int {
	if ready {
		return 1
	}
	return 0
}

// drop gives a want up. The request that it is part of goes on for the others.
func (c *combiner) drop(w *fetchWant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := w.request
	if w.dropped || r == nil || r.over {
		w.dropped = true
		return
	}
	w.dropped = true
	if r.left--; r.left == 0 && r.sent {
		c.giveUpLocked(r)
	}
}

// giveUpLocked gives up a request that nobody waits for. It lets go of the lock
// meanwhile.
func (c *combiner) giveUpLocked(r *sharedFetch) {
	c.landedLocked(r)
	c.mu.Unlock()
	r.queue.conn.abandon(&r.call)
	c.mu.Lock()
	c.sendLocked(r.queue)
}

// landedLocked notes that a request is not under way any more.
func (c *combiner) landedLocked(r *sharedFetch) {
	r.over = true
	r.queue.flying[class(r.ready)]--
}

// sendLocked sends what may leave a queue now, and forgets the queue if it is empty. It
// lets go of the lock meanwhile.
func (c *combiner) sendLocked(q *fetchQueue) {
	for {
		r := c.nextLocked(q)
		if r == nil {
			break
		}
		c.mu.Unlock()
		r.call.notify = func(*call) { c.answered(r) }
		if err := q.conn.sendNow(&r.call, r.payload(), c.timeout+r.wait()); err != nil {
			r.call.err = err
			c.answered(r)
		}
		c.mu.Lock()
		if r.sent = true; r.left == 0 && !r.over {
			c.giveUpLocked(r) // All were dropped before it was sent.
		}
	}
	if len(q.waiting[0])+len(q.waiting[1])+q.flying[0]+q.flying[1] > 0 {
		return
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	if c.queues[q.conn] == q {
		delete(c.queues, q.conn)
	}
}

// nextLocked returns the next request to be sent, nil if what waits is to wait on.
func (c *combiner) nextLocked(q *fetchQueue) *sharedFetch {
	if q.flying[1] < readyFetches {
		if r := q.requestLocked(true); r != nil {
			return r
		}
	}
	n := q.flying[0]
	if n < freeFetches || q.gather || len(q.waiting[0]) >= q.shares() {
		if r := q.requestLocked(false); r != nil {
			return r
		}
		q.gather = false
	}
	if len(q.waiting[0]) > 0 && q.timer == nil {
		d := min(time.Duration(n-freeFetches+1)*gatherStep, maxGather)
		q.timer = time.AfterFunc(d, func() { c.gathered(q) })
	}
	return nil
}

// gathered sends those that have waited for company.
func (c *combiner) gathered(q *fetchQueue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.timer = nil
	if !c.closed {
		q.gather = true
		c.sendLocked(q)
	}
}

// requestLocked makes a request of what waits: of all that can share one with the first.
// It returns nil if nothing does.
func (q *fetchQueue) requestLocked(ready bool) *sharedFetch {
	waiting := q.waiting[class(ready)]
	waiting = slices.DeleteFunc(waiting, func(w *fetchWant) bool { return w.dropped })
	if len(waiting) == 0 {
		q.waiting[class(ready)] = nil
		return nil
	}
	r := &sharedFetch{queue: q, ready: ready, wants: make([]*fetchWant, 0, min(len(waiting), q.shares()))}
	q.waiting[class(ready)] = slices.DeleteFunc(waiting, func(w *fetchWant) bool {
		if len(r.wants) == q.shares() || !w.joins(r.wants) {
			return false
		}
		w.request = r
		r.wants = append(r.wants, w)
		return true
	})
	r.left = len(r.wants)
	q.flying[class(ready)]++
	return r
}

// joins tells whether w can be part of a request with others. Each partition is in it
// once.
func (w *fetchWant) joins(others []*fetchWant) bool {
	if len(others) > 0 && !w.ready && (w.minBytes != others[0].minBytes || w.maxWait != others[0].maxWait) {
		return false
	}
	return !slices.ContainsFunc(others, func(o *fetchWant) bool {
		return o.part.Partition == w.part.Partition && o.part.Topic == w.part.Topic
	})
}

// wait is how long the broker may hold the request.
func (r *sharedFetch) wait() time.Duration {
	if r.ready {
		return 0
	}
	return r.wants[0].maxWait
}

// payload is what is asked for.
func (r *sharedFetch) payload() *fetchBatchRequest {
	req := &fetchBatchRequest{
		Partitions: make([]fetchPart, len(r.wants)),
		MinBytes:   r.wants[0].minBytes, MaxWaitMs: r.wait().Milliseconds(),
	}
	for i, w := range r.wants {
		req.Partitions[i] = w.part
		req.MaxBytes += w.part.MaxBytes
	}
	req.MaxBytes = min(req.MaxBytes, r.queue.conn.maxFrame/2)
	return req
}

// answered gives each want of a request its share, or the error of all. Those for which
// there is no news wait on if the broker has answered because of others.
func (c *combiner) answered(r *sharedFetch) {
	resp, err := r.read()
	if err == nil {
		c.metrics.recordFetch(len(r.call.body), time.Since(r.call.sent))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.over {
		return
	}
	c.landedLocked(r)
	body, took, others := r.call.body, time.Since(r.call.sent), 0
	for i, w := range r.wants {
		if err != nil {
			w.answerLocked(fetchShare{err: err})
		} else if w.substance(&resp.Partitions[i]) {
			others++
		}
	}
	for i, w := range r.wants {
		if err != nil || w.dropped {
			continue
		}
		s := fetchShare{part: resp.Partitions[i], took: took}
		s.data, body = body[:s.part.Bytes:s.part.Bytes], body[s.part.Bytes:]
		s.alone = 2*len(s.data) >= len(r.call.body)
		s.early = others > 0
		switch {
		case w.substance(&s.part):
			s.early = others > 1
		case s.early && !w.news(&s.part):
			r.queue.addLocked(w)
			continue
		case !s.early && r.ready && w.maxWait > 0:
			// There is nothing after all, so it waits like any other.
			w.ready, w.end = false, s.part.HighWaterMark
			r.queue.addLocked(w)
			continue
		}
		w.answerLocked(s)
	}
	c.sendLocked(r.queue)
}

// answerLocked ends a want.
func (w *fetchWant) answerLocked(s fetchShare) {
	if !w.dropped {
		w.dropped = true
		w.answered <- s
	}
}

// substance tells whether a part of an answer is a reason to answer.
func (w *fetchWant) substance(p *fetchedPart) bool {
	anew := p.TopicID != "" && w.part.TopicID != "" && p.TopicID != w.part.TopicID
	return p.Bytes > 0 || p.refused() || p.DivergedAt != nil || anew
}

// news tells whether a part of an answer says what the fetcher does not know.
func (w *fetchWant) news(p *fetchedPart) bool {
	return p.HighWaterMark != w.end || p.TopicID != w.part.TopicID
}

// read decodes the answer, and checks that it is one to the request.
func (r *sharedFetch) read() (*fetchBatchResponse, error) {
	k, conn := &r.call, r.queue.conn
	if k.err != nil {
		return nil, k.err
	}
	resp := new(fetchBatchResponse)
	err := decodePayload(k.resp.payload, resp)
	switch {
	case !k.resp.success || resp.refusal() != "":
		return nil, conn.refusalOf(k.kind, &k.resp, resp.refusal())
	case err != nil:
	case len(resp.Partitions) != len(r.wants):
		err = fmt.Errorf("%w: %d partitions, asked for %d", ErrMalformed, len(resp.Partitions), len(r.wants))
	default:
		err = r.check(resp)
	}
	if err != nil {
		return nil, fmt.Errorf("robust: %s: broker %s: %w", k.kind, conn.addr, err)
	}
	return resp, nil
}

// check holds the parts of an answer to those of the request, and to the body.
func (r *sharedFetch) check(resp *fetchBatchResponse) error {
	left := len(r.call.body)
	for i := range resp.Partitions {
		p, asked := &resp.Partitions[i], &r.wants[i].part
		switch {
		case p.Topic != asked.Topic || p.Partition != asked.Partition:
			return fmt.Errorf("%w: %s/%d in place of %s/%d", ErrMalformed, shorten(p.Topic), p.Partition, asked.Topic, asked.Partition)
		case p.Bytes < 0 || p.Bytes > left:
			return fmt.Errorf("%w: %d bytes of %s/%d, of the body there are %d left", ErrMalformed, p.Bytes, p.Topic, p.Partition, left)
		case p.Bytes > 0 && (p.refused() || p.DivergedAt != nil):
			return fmt.Errorf("%w: %s/%d has batches, and none", ErrMalformed, p.Topic, p.Partition)
		}
		left -= p.Bytes
	}
	if left > 0 {
		return fmt.Errorf("%w: the partitions leave %d bytes of the body", ErrMalformed, left)
	}
	return nil
}

// close has no request be sent any more. The connections end all that is under way.
func (c *combiner) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, q := range c.queues {
		if q.timer != nil {
			q.timer.Stop()
		}
		for _, waiting := range q.waiting {
			for _, w := range waiting {
				w.answerLocked(fetchShare{err: ErrClosed})
			}
		}
	}
}
