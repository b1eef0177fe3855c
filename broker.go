package robust

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"
)

// retentionInterval is how often a broker looks for messages past their retention.
const retentionInterval = 10 * time.Second

// closeGrace is how long a Shutdown whose context has ended waits for the storage: it has to sync
// what was written.
const closeGrace = 10 * time.Second

// Broker is a broker in this process. It is made by [NewBroker], reached through
// [Broker.Listen], [Broker.Serve], [Broker.Dial] or [Broker.Client], and ended by
// [Broker.Shutdown] or [Broker.Close]. It is safe for concurrent use.
type Broker struct {
	cfg       brokerConfig
	storage   Storage
	ownsStore bool
	service   *service
	warn      *warner
	keeper    *metricsFile // nil without WithMetricsFile

	running sync.WaitGroup // connections, listeners' goroutines, retention

	mu        sync.Mutex // guards the following
	stopping  bool
	listeners map[net.Listener]struct{}
	conns     map[*brokerConn]struct{}
	refusing  int // connections being told that there are too many
	closing   sync.Once
	closeErr  error
}

// NewBroker returns a broker that does not listen yet. The error wraps
// [ErrInvalidConfig] and names the option, or says why the storage cannot be used.
func NewBroker(opts ...BrokerOption) (*Broker, error) {
	cfg := defaultBrokerConfig()
	for _, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("%w: an option is nil", ErrInvalidConfig)
		}
		o.applyBroker(&cfg)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &Broker{
		cfg: cfg, storage: cfg.storage, warn: newWarner(cfg.logger),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*brokerConn]struct{}),
	}
	if err := b.openStorage(); err != nil {
		return nil, err
	}
	id, err := b.storage.Identity(context.Background())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("robust: open storage: %w", err), b.closeStorage())
	}
	if b.cfg.nodeID == "" {
		b.cfg.nodeID = id.NodeID
	}
	metrics := &brokerMetrics{hooks: cfg.hooks, unmeasured: cfg.unmeasured}
	if b.keeper, err = openMetricsFile(cfg.metricsFile, metrics.kept, b.warn); err != nil {
		return nil, errors.Join(err, b.closeStorage())
	}
	groups := newCoordinator(b.storage, b.warn)
	b.service = &service{
		metrics: metrics,
		cfg:     &b.cfg, clusterID: id.ClusterID, warn: b.warn,
		topics: newTopicSet(&b.cfg, b.storage, groups.setTopics), groups: groups,
		drained: make(chan struct{}), nodes: make(map[string]string),
	}
	groups.log = b.service.topics.log
	err = b.service.topics.load(context.Background())
	if err == nil {
		err = groups.load(context.Background())
	}
	if err != nil {
		groups.close()
		return nil, errors.Join(err, b.service.topics.close(), b.closeStorage(), b.keeper.close())
	}
	b.running.Go(b.expireLoop)
	b.running.Go(groups.run)
	return b, nil
}

// openStorage opens the storage that the options name.
func (b *Broker) openStorage() error {
	switch {
	case b.storage != nil:
		return nil
	case b.cfg.dataDir == "":
		b.storage = NewMemoryStorage()
	default:
		// Files are opened as they are needed, wherever the process is by then.
		dir, err := filepath.Abs(b.cfg.dataDir)
		if err != nil {
			return storageError(err)
		}
		d, err := openDataDir(osFilesOf(dir), dir, b.cfg.sync, b.warn)
		if err != nil {
			return err
		}
		b.storage = d
	}
	b.ownsStore = true
	return nil
}

// Listen serves on a TCP address, host:port, in the background; port 0 takes a free
// one. The broker can be reached when Listen returns, at the address it returns.
func (b *Broker) Listen(addr string) (net.Addr, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("robust: listen on %s: %w", addr, err)
	}
	err = b.addListener(l, func() {
		if err := b.accept(l); !errors.Is(err, ErrClosed) {
			b.warn.warn("listener failed", l.Addr().String(), "addr", l.Addr().String(), "error", err)
		}
	})
	if err != nil {
		_ = l.Close() // Nobody has used it.
		return nil, err
	}
	return l.Addr(), nil
}

// Serve accepts connections from l and serves them until the broker is shut down,
// when it returns [ErrClosed], or l fails. It closes l.
func (b *Broker) Serve(l net.Listener) error {
	if l == nil {
		return fmt.Errorf("%w: Serve: the listener is nil", ErrInvalidRequest)
	}
	if err := b.addListener(l, nil); err != nil {
		_ = l.Close() // As promised; the broker's end is what counts.
		return err
	}
	return b.accept(l)
}

// addListener has stop close l, and runs serve, unless it is nil, in a goroutine that
// Close waits for.
func (b *Broker) addListener(l net.Listener, serve func()) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopping {
		return ErrClosed
	}
	b.listeners[l] = struct{}{}
	if serve != nil {
		b.running.Go(serve)
	}
	return nil
}

// accept is Serve for a listener that has been added.
func (b *Broker) accept(l net.Listener) error {
	defer func() {
		b.mu.Lock()
		delete(b.listeners, l)
		b.mu.Unlock()
		_ = l.Close() // It may be closed already.
	}()
	_, own := l.(*net.TCPListener) // Others may keep what they accept.
	failures := 0
	for {
		nc, err := l.Accept()
		if err == nil {
			failures = 0
			if own {
				nc = promptOf(nc)
			}
			b.serve(nc)
			continue
		}
		if b.service.draining() {
			return ErrClosed
		}
		var passing interface{ Temporary() bool }
		if !errors.As(err, &passing) || !passing.Temporary() {
			return fmt.Errorf("robust: accept: %w", err)
		}
		// Most often too many open files: others may close theirs.
		failures++
		b.warn.warn("accept failed", l.Addr().String(), "addr", l.Addr().String(), "error", err)
		pause(context.Background(), b.service.drained, backoff{5 * time.Millisecond, time.Second}.before(failures))
	}
}

// serve serves one connection in the background, or tells it why not.
func (b *Broker) serve(nc net.Conn) bool {
	c := newBrokerConn(b.service, nc)
	b.mu.Lock()
	switch {
	case b.stopping:
		b.mu.Unlock()
		_ = nc.Close() // The listener is about to close as well.
		return false
	case len(b.conns) >= b.cfg.maxConnections:
		const mostRefusing = 100
		tell := b.refusing < mostRefusing
		if tell {
			b.refusing++
			b.running.Go(func() { b.refuse(c) })
		}
		b.mu.Unlock()
		b.service.metrics.refused.Add(1)
		b.warn.warn("too many connections", "", "limit", b.cfg.maxConnections)
		if !tell {
			_ = nc.Close() // Telling all of a flood would be one.
		}
		return tell
	}
	b.conns[c] = struct{}{}
	b.running.Go(func() {
		c.serve()
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	})
	b.mu.Unlock()
	return true
}

// refuse answers a connection over the limit and closes it.
func (b *Broker) refuse(c *brokerConn) {
	c.refuseAll(fmt.Errorf("%w: %d connections", ErrOverloaded, b.cfg.maxConnections))
	_ = c.out.flush() // A peer that cannot be told is closed all the same.
	hangUp(c.nc, true)
	b.mu.Lock()
	b.refusing--
	b.mu.Unlock()
}

// Dial connects to the broker in memory, without a port; it fits [WithDialer].
// network and addr are not looked at.
func (b *Broker) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, endOf(ctx)
	}
	here, there := newPipe()
	if !b.serve(there) {
		return nil, fmt.Errorf("dial broker in memory: %w", ErrClosed)
	}
	return here, nil
}

// Client returns a client that reaches the broker through [Broker.Dial].
func (b *Broker) Client(opts ...Option) (*Client, error) {
	return New(append(opts[:len(opts):len(opts)], WithBrokers(embeddedAddr), WithDialer(b.Dial))...)
}

// WithEmbeddedBroker starts a broker in this process, which the client reaches in
// memory and closes with itself. [WithBrokers] and [WithDialer] are then not used.
func WithEmbeddedBroker(opts ...BrokerOption) Option {
	return clientOption(func(c *config) {
		c.embed = func(c *config) (embeddedBroker, error) {
			shared := sharedOption(func(s *sharedConfig) { *s = c.forEmbedded() })
			b, err := NewBroker(append([]BrokerOption{shared}, opts...)...)
			if err != nil {
				return embeddedBroker{}, err
			}
			return embeddedBroker{dial: b.Dial, close: b.Close}, nil
		}
	})
}

// expireLoop applies retention until the broker ends.
func (b *Broker) expireLoop() {
	ticker := time.NewTicker(retentionInterval)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			b.service.topics.expire(now, func(p *partition, err error) {
				b.warn.warn("retention failed", fmt.Sprint(p.topic, "/", p.id), "topic", p.topic, "partition", p.id, "error", err)
			})
		case <-b.service.drained:
			return
		}
	}
}

// stop closes the listeners and has every connection read no more requests.
func (b *Broker) stop() []*brokerConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stopping {
		b.stopping = true
		close(b.service.drained)
		b.service.groups.cancel()
	}
	for l := range b.listeners {
		_ = l.Close() // Its goroutine reports.
	}
	conns := make([]*brokerConn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	return conns
}

// Shutdown stops accepting connections and requests, answers those that have come,
// fetches that are held with what there is, and then does as Close. If ctx ends
// first, Shutdown closes what is left and returns an error, 10 s later at most: a storage
// that hangs, as on a disk that does not answer, it leaves behind. That goes on to close
// if it can, and has its directory locked until then, or until the process ends.
func (b *Broker) Shutdown(ctx context.Context) error {
	for _, c := range b.stop() {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0)) // A connection that has failed needs none.
	}
	ended := make(chan struct{})
	go func() {
		b.running.Wait()
		close(ended)
	}()
	var cut error
	select {
	case <-ended:
	case <-ctx.Done():
		b.mu.Lock()
		left := len(b.conns)
		b.mu.Unlock()
		cut = &waitError{what: "shut down broker", state: fmt.Sprintf("%d connections open", left), end: endOf(ctx)}
	}
	return errors.Join(cut, b.closeBy(ctx))
}

// closeBy is Close, and leaves it behind when it takes closeGrace longer than ctx does.
func (b *Broker) closeBy(ctx context.Context) error {
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
	}
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case err := <-closed:
		return err
	case <-grace.C:
		return fmt.Errorf("%w: it has not closed within %v, and is left behind", ErrStorage, closeGrace)
	}
}

// Close closes listeners and connections at once, and the storage unless it was
// given with [WithStorage]. It waits for what the storage has under way, without a bound:
// where a disk may hang, call Shutdown. Close and Shutdown may be called more than once and
// concurrently.
func (b *Broker) Close() error {
	for _, c := range b.stop() {
		c.cancel(ErrClosed)
		_ = c.nc.Close() // It ends its serve, whatever it returns.
	}
	b.running.Wait()
	return b.finish()
}

// finish closes topics and storage, once.
func (b *Broker) finish() error {
	b.closing.Do(func() {
		b.service.groups.close()
		b.closeErr = errors.Join(b.service.topics.close(), b.closeStorage(), b.keeper.close())
	})
	return b.closeErr
}

func (b *Broker) closeStorage() error {
	if !b.ownsStore {
		return nil
	}
	return b.storage.Close()
}
