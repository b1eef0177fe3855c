package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"
)

// metadataCache knows the partitions of topics and the brokers that lead them. One
// request at a time refreshes a topic, in a goroutine that outlives the caller who
// started it; what is old is used while it is being refreshed.
type metadataCache struct {
	ctx    context.Context //nolint:containedctx // the client's life, for refreshes
	maxAge time.Duration
	// fetch asks a broker for one topic.
	fetch func(ctx context.Context, topic string, create bool) (*topicEntry, error)
	// addrOfNode finds the address at which a broker was reached.
	addrOfNode func(id string) string
	running    sync.WaitGroup // refreshes

	mu      sync.Mutex // guards the following
	topics  map[string]*topicEntry
	sweep   int // how many there are when old ones are dropped
	flights map[string]*metadataFlight
	closed  bool
}

// manyTopics is how many topics are remembered however long they were not used. Of more,
// those are let go of that were not used lately, whenever they are twice as many as were left
// the last time.
const manyTopics = 1024

// keptAges is how many times its maximal age an entry is kept. One that is used is looked up
// again when that is over, so only without brokers it may be as old.
const keptAges = 10

// topicEntry is what is known of one topic; immutable.
type topicEntry struct {
	partitions int32
	leaders    map[int32]leader // by partition; none for those that have no leader
	fetched    time.Time
}

// leader is the broker that leads a partition.
type leader struct {
	id   string
	addr string // as the cluster advertises it; "" if it does not
}

// metadataFlight is a refresh under way.
type metadataFlight struct {
	done  chan struct{} // closed when the following are set
	entry *topicEntry
	err   error
}

func newMetadataCache(ctx context.Context, maxAge time.Duration) *metadataCache {
	return &metadataCache{
		ctx: ctx, maxAge: maxAge,
		topics:  make(map[string]*topicEntry),
		flights: make(map[string]*metadataFlight),
	}
}

// topic returns what is known of a topic, asking for it if need be and waiting for
// the answer no longer than w says; create makes a broker that creates topics by
// itself create this one.
func (m *metadataCache) topic(ctx context.Context, name string, create bool, w patience) (*topicEntry, error) {
	m.mu.Lock()
	entry := m.topics[name]
	if entry != nil && time.Since(entry.fetched) < m.maxAge {
		m.mu.Unlock()
		return entry, nil
	}
	flight, err := m.flightLocked(name, create)
	m.mu.Unlock()
	if entry != nil {
		return entry, nil
	}
	if err != nil {
		return nil, err
	}
	t := time.NewTimer(w.limit)
	defer t.Stop()
	select {
	case <-flight.done:
		return flight.entry, flight.err
	case <-w.stop:
		return nil, ErrClosed
	case <-t.C:
		return nil, fmt.Errorf("%w: metadata of %q did not come in time", ErrNoBroker, name)
	case <-ctx.Done():
		return nil, endOf(ctx)
	}
}

// flightLocked returns the refresh of a topic that is under way, or starts one.
func (m *metadataCache) flightLocked(name string, create bool) (*metadataFlight, error) {
	if m.closed {
		return nil, ErrClosed
	}
	// A topic that is asked for on behalf of a producer and one that is only
	// looked at are two questions.
	key := name
	if create {
		key += "\x00create"
	}
	if f := m.flights[key]; f != nil {
		return f, nil
	}
	f := &metadataFlight{done: make(chan struct{})}
	m.flights[key] = f
	m.running.Go(func() {
		entry, err := m.fetch(m.ctx, name, create)
		m.mu.Lock()
		delete(m.flights, key)
		switch {
		case err == nil:
			m.topics[name] = entry
			m.sweepLocked()
		case errors.Is(err, ErrTopicNotFound):
			delete(m.topics, name)
		}
		m.mu.Unlock()
		f.entry, f.err = entry, err
		close(f.done)
	})
	return f, nil
}

// sweepLocked drops entries that nobody has used for long.
func (m *metadataCache) sweepLocked() {
	if len(m.topics) <= manyTopics || len(m.topics) < m.sweep {
		return
	}
	maps.DeleteFunc(m.topics, func(_ string, e *topicEntry) bool { return time.Since(e.fetched)/keptAges > m.maxAge })
	m.sweep = 2 * max(len(m.topics), manyTopics)
}

// leaderAddr returns the address to send requests for a partition to, "" if it is
// not known.
func (m *metadataCache) leaderAddr(topic string, partition int32) string {
	m.mu.Lock()
	entry := m.topics[topic]
	m.mu.Unlock()
	if entry == nil {
		return ""
	}
	l, ok := entry.leaders[partition]
	if !ok {
		return ""
	}
	// The address at which the broker was reached is better than the one that
	// it advertises: behind a mapped port that one may not be reachable.
	if addr := m.addrOfNode(l.id); addr != "" {
		return addr
	}
	return l.addr
}

// forget drops what is known of a topic, because an answer showed it to be wrong.
func (m *metadataCache) forget(topic string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.topics, topic)
}

// close waits for refreshes; ctx must have ended.
func (m *metadataCache) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.running.Wait()
}

// newTopicEntry checks and digests a broker's answers.
func newTopicEntry(name string, resp *metadataResponse, nodes []nodeInfo) (*topicEntry, error) {
	for _, t := range resp.Topics {
		if t.Name != name {
			continue
		}
		entry := &topicEntry{
			partitions: int32(len(t.Partitions)),
			leaders:    make(map[int32]leader, len(t.Partitions)),
			fetched:    time.Now(),
		}
		for _, p := range t.Partitions {
			if p.ID < 0 || p.ID >= entry.partitions {
				return nil, fmt.Errorf("%w: metadata of %q: partition %d of %d", ErrMalformed, name, p.ID, entry.partitions)
			}
			if p.Leader != "" {
				entry.leaders[p.ID] = leader{p.Leader, nodeAddr(p.Leader, nodes)}
			}
		}
		if entry.partitions == 0 {
			return nil, fmt.Errorf("%w: %q has no partitions", ErrTopicNotFound, name)
		}
		return entry, nil
	}
	return nil, fmt.Errorf("%w: %q", ErrTopicNotFound, name)
}

// nodeAddr returns the address of a leader, which some brokers name by it.
func nodeAddr(id string, nodes []nodeInfo) string {
	for _, n := range nodes {
		if n.ID == id && addressesValid([]string{n.Addr}) {
			return n.Addr
		}
	}
	if _, port, err := net.SplitHostPort(id); err == nil && port != "" {
		return id
	}
	return ""
}
