package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// closeTimeout bounds every Close that waits for something; Shutdown waits as long
// as its context.
const closeTimeout = 30 * time.Second

// Client is one pool of connections, one metadata cache and one set of metrics, and
// what producers, consumers and admin handles are derived from. It is safe for
// concurrent use. New makes it; the zero Client is of no use, as are those of the
// handles.
type Client struct {
	cfg      config
	metrics  *Metrics
	keeper   *metricsFile // nil without WithMetricsFile
	pool     *pool
	metadata *metadataCache
	warn     *warner
	fetches  *combiner
	fetched  fetchBudget
	embedded embeddedBroker // its functions are nil without WithEmbeddedBroker
	turn     atomic.Uint32  // round robin over brokers

	ctx    context.Context //nolint:containedctx // ends when the client is closed
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards the following
	handles map[handle]struct{}
	closed  bool
	closing chan struct{} // closed when Close has done its work
}

// handle is what a Client closes before itself.
type handle interface{ Close() error }

// New returns a client for the brokers of [WithBrokers]. It checks the options and
// does not touch the network: connections are opened when they are first needed.
// The error wraps [ErrInvalidConfig] and names the option.
func New(opts ...Option) (*Client, error) {
	base := defaultConfig()
	cfg, err := base.with(opts...)
	if err != nil {
		return nil, err
	}
	metrics, warn := new(Metrics), newWarner(cfg.logger)
	metrics.Consumer.maxSeries = cfg.maxSeries
	keeper, err := openMetricsFile(cfg.metricsFile, metrics.kept, warn)
	if err != nil {
		return nil, err
	}
	var embedded embeddedBroker
	if cfg.embed != nil {
		if embedded, err = cfg.embed(&cfg); err != nil {
			return nil, errors.Join(err, keeper.close())
		}
		cfg.brokers, cfg.dial = []string{embeddedAddr}, embedded.dial
	}
	c := &Client{
		cfg: cfg, metrics: metrics, keeper: keeper, warn: warn, embedded: embedded,
		handles: make(map[handle]struct{}), closing: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	t := transport{
		dial: cfg.dial, ownConns: cfg.ownConns, protocol: cfg.protocol, maxFrame: cfg.maxFrameBytes,
		frames: new(sync.Pool), writes: new(sync.Pool),
		hooks: &c.cfg.hooks, bytes: &metrics.Connection.bytes,
	}
	c.pool = newPool(t, cfg.maxConnections, cfg.connectionTimeout, &c.metrics.Connection, c.warn)
	c.fetches = newCombiner(cfg.requestTimeout, &c.metrics.Consumer)
	c.fetched.limit = int64(cfg.maxFetched)
	metrics.Consumer.buffered.set(c, c.fetched.used.Load)
	c.metadata = newMetadataCache(c.ctx, cfg.metadataMaxAge)
	c.metadata.fetch = c.fetchMetadata
	c.metadata.addrOfNode = c.pool.addrOfNode
	return c, nil
}

// Metrics returns what the client counts and measures.
func (c *Client) Metrics() *Metrics { return c.metrics }

// Status says how things stand with the brokers.
func (c *Client) Status() Status {
	if c.ctx.Err() != nil {
		return Status{Text: "closed"}
	}
	return c.pool.state()
}

// Ping asks the brokers in turn until one answers. The error wraps [ErrNoBroker] if
// none can be reached.
func (c *Client) Ping(ctx context.Context) error {
	ask := func() error {
		return c.round(ctx, route{repeatable: true}, c.patience(), &clusterInfoRequest{}, &clusterInfoResponse{})
	}
	err := ask()
	if err != nil && connectionFault(err) && !unsent(err) && ctx.Err() == nil {
		// A connection that was open broke: that says nothing of the broker now.
		err = ask()
	}
	if be := (*BrokerError)(nil); errors.As(err, &be) && !connectionFault(err) {
		return nil // A broker that refuses the question is there.
	}
	return c.waitFailed(ctx, func() string { return "ping" }, err)
}

// Close closes every handle as its own Close would, then the connections, and then
// the broker of [WithEmbeddedBroker]. Calls under way fail with [ErrClosed]. It may
// be called more than once and concurrently; every call returns when all is closed. A
// dialer, a partitioner or a log handler must not call it and wait: it waits for them.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		<-c.closing
		return nil
	}
	c.closed = true
	handles := c.handles
	c.handles = nil
	c.mu.Unlock()
	defer close(c.closing)

	// At the same time, so that waits are not added up.
	closed := make(chan error)
	for h := range handles {
		go func() { closed <- h.Close() }()
	}
	var errs []error
	for range handles {
		errs = append(errs, <-closed)
	}
	c.cancel(ErrClosed)
	c.fetches.close()
	c.pool.close()
	c.metadata.close()
	if c.embedded.close != nil {
		errs = append(errs, c.embedded.close())
	}
	errs = append(errs, c.keeper.close())
	return errors.Join(errs...)
}

// register adds a handle to those that Close closes, and calls start, unless it is
// nil, before Close can.
func (c *Client) register(h handle, start func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	c.handles[h] = struct{}{}
	if start != nil {
		start()
	}
	return nil
}

// unregister takes a handle out that was closed.
func (c *Client) unregister(h handle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.handles, h)
}

// route says where a request goes and what may be done with it.
type route struct {
	topic      string // if set, the leader of topic and partition is asked first
	partition  int32
	held       bool          // the broker may hold it
	hold       time.Duration // for how long; comes on top of the request timeout
	repeatable bool          // carrying it out twice does no harm
	bounded    bool          // the patience is for all waits together, not for each
	feature    string        // that the broker must have announced
	// by, if set, is asked first; it becomes the broker that has answered.
	by *answerer
}

// answerer is the broker that the requests of one member of a group keep to.
type answerer struct {
	mu     sync.Mutex // guards the following
	addr   string     // "": none has answered yet
	groups bool       // it has announced featureGroups
}

func (a *answerer) get() (addr string, groups bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.addr, a.groups
}

func (a *answerer) set(addr string, groups bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addr, a.groups = addr, groups
}

// supportsGroups tells whether the broker has announced featureGroups.
func (a *answerer) supportsGroups() bool {
	_, groups := a.get()
	return groups
}

// round sends a request to one broker after the other until one answers, and
// decodes the answer into resp. A request that may have been carried out goes to
// the next one only if it is repeatable. No single wait is longer than w says, nor
// are all of them together if r is bounded.
func (c *Client) round(ctx context.Context, r route, w patience, req request, resp response) error {
	return c.roundWith(ctx, r, w, func(conn *conn, limit time.Duration) error {
		return c.exchange(ctx, r, conn, limit, req, resp)
	})
}

// roundWith is round for what exchange does with a connection and a limit for the answer.
func (c *Client) roundWith(ctx context.Context, r route, w patience, exchange func(*conn, time.Duration) error) error {
	var buf [4]string
	addrs := c.candidates(buf[:0], r)
	var last error
	reached := false
	end := time.Now().Add(w.limit)
	for i, addr := range addrs {
		if r.bounded && i > 0 {
			if w.limit = time.Until(end); w.limit <= 0 {
				break
			}
		}
		err := c.once(ctx, r, addr, len(addrs) > 1, w, exchange)
		if err == nil || !connectionFault(err) {
			return err
		}
		last = err
		if !unsent(err) {
			reached = true
			if !r.repeatable {
				return err
			}
		}
		if ctx.Err() != nil {
			return endOf(ctx)
		}
	}
	if reached {
		return last
	}
	return &noBrokerError{last}
}

// candidates appends the addresses to ask: the leader if it is known, then the
// client's brokers, each call beginning with the next.
func (c *Client) candidates(dst []string, r route) []string {
	if r.by != nil {
		if addr, _ := r.by.get(); addr != "" {
			dst = append(dst, addr)
		}
	} else if r.topic != "" {
		if addr := c.metadata.leaderAddr(r.topic, r.partition); addr != "" {
			dst = append(dst, addr)
		}
	}
	seeds := c.cfg.brokers
	turn := 0
	if len(seeds) > 1 {
		turn = int(c.turn.Add(1) % uint32(len(seeds)))
	}
	for i := range seeds {
		addr := seeds[(turn+i)%len(seeds)]
		if len(dst) == 0 || dst[0] != addr {
			dst = append(dst, addr)
		}
	}
	return dst
}

// once does an exchange with one broker.
func (c *Client) once(ctx context.Context, r route, addr string, others bool, w patience, exchange func(*conn, time.Duration) error) error {
	limit, began := w.limit, time.Now()
	if others {
		w.limit = min(w.limit, brokerPatience)
	}
	conn, err := c.pool.get(ctx, addr, r.held, others, w)
	if err != nil {
		return err
	}
	defer c.pool.put(conn)
	if r.bounded {
		if limit -= time.Since(began); limit <= 0 {
			return &ConnError{Addr: addr, Op: "dial", Err: errNotConnected, unsent: true}
		}
	}
	return exchange(conn, min(limit, c.cfg.requestTimeout))
}

// exchange sends a request over a connection and waits for the answer.
func (c *Client) exchange(ctx context.Context, r route, conn *conn, limit time.Duration, req request, resp response) error {
	if !conn.supports(r.feature) {
		return unsupported(conn.addr, req.kind(), r.feature)
	}
	err := conn.exchange(ctx, req, resp, limit+r.hold)
	if r.by != nil && (err == nil || !connectionFault(err)) {
		r.by.set(conn.addr, conn.supports(featureGroups))
	}
	return err
}

// unsupported is the error of a request that needs a feature which the broker has not
// announced.
func unsupported(addr string, kind requestType, feature string) error {
	e := &BrokerError{
		Addr: addr, Request: kind.String(), condition: ErrUnsupported,
		Message: "not supported, the broker has not announced " + feature,
	}
	if feature == featureAcks {
		e.Message = "an acknowledgement of what is synced is " + e.Message
	}
	return e
}

// faultBackoff is the wait between rounds in which no broker could be reached.
var faultBackoff = backoff{base: 50 * time.Millisecond, limit: 500 * time.Millisecond} //nolint:gochecknoglobals // a constant in all but syntax

// retryPolicy bounds how often and how long something is tried again.
type retryPolicy struct {
	what     func() string // for errors: "send to demo/3"
	topic    string        // whose metadata is forgotten when it proves wrong
	once     bool          // not again if it may have been carried out
	refusals int           // tries after an answer that may get better
	faults   int           // tries after a connection fault; -1: until the deadline
	backoff  backoff       // after refusals
	deadline time.Time     // zero: none
	limit    time.Duration // the delivery timeout that is over at the deadline
	stop     chan struct{} // ends waits when closed; nil: never
	onRetry  func(error)   // called before each wait; may be nil
}

// retry calls try until it succeeds or p says that it is enough. try gets the time
// that is left.
func (c *Client) retry(ctx context.Context, p retryPolicy, try func(left time.Duration) error) error {
	var tries retryCount
	for {
		left := time.Duration(math.MaxInt64)
		if !p.deadline.IsZero() {
			left = time.Until(p.deadline)
		}
		if left <= 0 {
			return &waitError{what: p.what(), state: c.pool.state().String(), end: deliveryTimeout(p.limit)}
		}
		err := try(left)
		if err == nil {
			return nil
		}
		if outdated(err) {
			c.metadata.forget(p.topic)
		}
		if ctx.Err() != nil || !retriable(err) {
			return c.waitFailed(ctx, p.what, err)
		}
		if p.once && connectionFault(err) && !unsent(err) {
			return err // Saying that its fate is unknown beats doing it twice.
		}
		wait, ok := tries.after(err, &p)
		if !ok {
			return err
		}
		if !p.deadline.IsZero() && time.Until(p.deadline) <= wait {
			return &waitError{what: p.what(), state: c.pool.state().String(), end: deliveryTimeout(p.limit), last: err}
		}
		if p.onRetry != nil {
			p.onRetry(err)
		}
		switch {
		case pause(ctx, p.stop, wait):
		case ctx.Err() != nil:
			return &waitError{what: p.what(), state: c.pool.state().String(), end: endOf(ctx), last: err}
		default:
			return &waitError{what: p.what(), end: ErrClosed, last: err}
		}
	}
}

// retryCount counts failures, by kind.
type retryCount struct{ refusals, faults int }

// after counts a failure and returns the wait before the next try; false if there is
// to be none.
func (n *retryCount) after(err error, p *retryPolicy) (time.Duration, bool) {
	if connectionFault(err) {
		n.faults++
		return faultBackoff.before(n.faults), p.faults < 0 || n.faults <= p.faults
	}
	n.refusals++
	return p.backoff.before(n.refusals), n.refusals <= p.refusals
}

// waitFailed says what was waited for, if it is ctx that ended a wait.
func (c *Client) waitFailed(ctx context.Context, what func() string, err error) error {
	if err == nil || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	e := &waitError{what: what(), state: c.pool.state().String(), end: endOf(ctx)}
	if connectionFault(err) {
		e.last = err
	}
	return e
}

// patience is that of requests which nothing else bounds.
func (c *Client) patience() patience { return patience{limit: c.cfg.requestTimeout} }

// ask sends a request that is not a message: it is tried again a few times if that
// can do no harm.
func (c *Client) ask(ctx context.Context, r route, req request, resp response) error {
	p := retryPolicy{
		what: req.kind().String, topic: r.topic, once: !r.repeatable, refusals: 3, faults: 3,
		backoff: backoff{100 * time.Millisecond, time.Second},
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return c.retry(ctx, p, func(time.Duration) error {
		reset(resp)
		return c.round(ctx, r, c.patience(), req, resp)
	})
}

// reset takes what an earlier answer has left out of resp: decoding the next one leaves
// what it does not mention as it is.
func reset(resp response) { reflect.ValueOf(resp).Elem().SetZero() }

// fetchMetadata asks for one topic, and for the cluster's nodes to understand the
// answer.
func (c *Client) fetchMetadata(ctx context.Context, topic string, create bool) (*topicEntry, error) {
	var resp metadataResponse
	req := &metadataRequest{Topics: []string{topic}, AutoCreate: create}
	if err := c.round(ctx, route{repeatable: true}, c.patience(), req, &resp); err != nil {
		return nil, err
	}
	var info clusterInfoResponse
	if err := c.round(ctx, route{repeatable: true}, c.patience(), &clusterInfoRequest{}, &info); err != nil && connectionFault(err) {
		return nil, err
	}
	return newTopicEntry(topic, &resp, info.Nodes)
}

// listOffsets asks for some partitions of a topic, or for all. Each is asked of its
// leader, as far as that is known.
func (c *Client) listOffsets(ctx context.Context, topic string, partitions []int32, timestamp int64) (map[int32]int64, error) {
	if len(partitions) == 0 {
		entry, err := c.metadata.topic(ctx, topic, false, c.patience())
		if err != nil {
			return nil, c.waitFailed(ctx, requestListOffsets.String, err)
		}
		for p := range entry.partitions {
			partitions = append(partitions, p)
		}
	}
	byLeader := make(map[string][]int32)
	for _, p := range partitions {
		addr := c.metadata.leaderAddr(topic, p)
		byLeader[addr] = append(byLeader[addr], p)
	}
	offsets := make(map[int32]int64, len(partitions))
	for _, addr := range slices.Sorted(maps.Keys(byLeader)) {
		asked := byLeader[addr]
		r := route{topic: topic, partition: asked[0], repeatable: true, feature: featureListOffsets}
		var resp listOffsetsResponse
		if err := c.ask(ctx, r, &listOffsetsRequest{Topic: topic, Partitions: asked, Timestamp: timestamp}, &resp); err != nil {
			return nil, err
		}
		for _, o := range resp.Offsets {
			offsets[o.Partition] = o.Offset
		}
	}
	for _, p := range partitions {
		if offset, ok := offsets[p]; !ok || offset < 0 {
			return nil, fmt.Errorf("%w: ListOffsets: no offset of %s/%d in the answer", ErrMalformed, topic, p)
		}
	}
	return offsets, nil
}

// listOffset is listOffsets for one partition.
func (c *Client) listOffset(ctx context.Context, topic string, partition int32, timestamp int64) (int64, error) {
	offsets, err := c.listOffsets(ctx, topic, []int32{partition}, timestamp)
	return offsets[partition], err
}
