package robust

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics are a client's counters, updated by the client itself: one set for all
// of its handles. It is live and must not be copied; the GetStats methods return
// snapshots. All methods may be called concurrently and an update does not
// allocate.
type Metrics struct {
	Producer   ProducerMetrics
	Consumer   ConsumerMetrics
	Connection ConnectionMetrics
}

// ProducerMetrics count what was sent.
type ProducerMetrics struct {
	messagesSent   atomic.Uint64
	messagesFailed atomic.Uint64
	bytesSent      atomic.Uint64
	retries        atomic.Uint64
	latencySum     atomic.Int64
	latencyMax     atomic.Int64
}

// NewProducerMetrics returns counters of the application's own.
func NewProducerMetrics() *ProducerMetrics { return new(ProducerMetrics) }

// ProducerStats is a snapshot of [ProducerMetrics].
type ProducerStats struct {
	MessagesSent   uint64        // stored by a broker
	MessagesFailed uint64        // reported to the application as failed
	BytesSent      uint64        // [Message.Size] of the messages sent
	Retries        uint64        // tries after the first
	AverageLatency time.Duration // from the call to the broker's answer, retries included
	MaxLatency     time.Duration
}

// RecordSent counts one message of so many bytes that took latency to be stored.
func (m *ProducerMetrics) RecordSent(bytes uint64, latency time.Duration) {
	// Bytes and latency go first: a snapshot that has the message has them too,
	// so that its averages err to the long side and never divide by a message
	// that is not there.
	m.bytesSent.Add(bytes)
	m.latencySum.Add(int64(latency))
	m.raiseLatency(latency)
	m.messagesSent.Add(1)
}

// recordBatch counts n messages at once; sum and longest are of their latencies.
func (m *ProducerMetrics) recordBatch(n, bytes uint64, sum, longest time.Duration) {
	m.bytesSent.Add(bytes) // As in RecordSent.
	m.latencySum.Add(int64(sum))
	m.raiseLatency(longest)
	m.messagesSent.Add(n)
}

func (m *ProducerMetrics) raiseLatency(latency time.Duration) {
	for {
		longest := m.latencyMax.Load()
		if int64(latency) <= longest || m.latencyMax.CompareAndSwap(longest, int64(latency)) {
			return
		}
	}
}

// RecordFailed counts one message that was not stored.
func (m *ProducerMetrics) RecordFailed() { m.messagesFailed.Add(1) }

func (m *ProducerMetrics) recordRetry() { m.retries.Add(1) }

// GetStats returns a snapshot.
func (m *ProducerMetrics) GetStats() ProducerStats {
	s := ProducerStats{
		MessagesSent:   m.messagesSent.Load(),
		MessagesFailed: m.messagesFailed.Load(),
		BytesSent:      m.bytesSent.Load(),
		Retries:        m.retries.Load(),
		MaxLatency:     time.Duration(m.latencyMax.Load()),
	}
	if s.MessagesSent > 0 {
		s.AverageLatency = time.Duration(uint64(m.latencySum.Load()) / s.MessagesSent)
	}
	return s
}

// ConsumerMetrics count what was read.
type ConsumerMetrics struct {
	messagesReceived atomic.Uint64
	bytesReceived    atomic.Uint64
	fetches          atomic.Uint64
	commits          atomic.Uint64
	commitErrors     atomic.Uint64
	rebalances       atomic.Uint64
	errorsDropped    atomic.Uint64

	mu      sync.RWMutex // guards the following
	lag     map[TopicPartition]*atomic.Int64
	sources map[any]readerSource // the client's own readers, asked for each snapshot
}

// readerSource is a reader that counts by itself.
type readerSource struct {
	of  TopicPartition
	lag func() (int64, bool) // false while it is not known
	// received is how many messages, and bytes of them, were delivered until now.
	received func() (messages, bytes uint64)
}

// NewConsumerMetrics returns counters of the application's own.
func NewConsumerMetrics() *ConsumerMetrics { return new(ConsumerMetrics) }

// ConsumerStats is a snapshot of [ConsumerMetrics].
type ConsumerStats struct {
	MessagesReceived uint64 // handed to the application or put into its channel
	BytesReceived    uint64 // [Message.Size] of them
	FetchCount       uint64 // fetch requests answered
	CommitCount      uint64 // commits that succeeded
	CommitErrors     uint64 // commits that failed
	Rebalances       uint64 // changes of what members of consumer groups read
	ErrorsDropped    uint64 // notices that nobody read from an Errors channel in time
	// Lag is, for each partition that is being read, how many messages lie
	// between the next one to be handed over and the high-water mark; of several
	// readers of one partition, the one that is furthest behind.
	Lag map[TopicPartition]int64
}

// RecordReceived counts one message of so many bytes.
func (m *ConsumerMetrics) RecordReceived(bytes uint64) {
	m.bytesReceived.Add(bytes)
	m.messagesReceived.Add(1)
}

// RecordFetch counts one fetch.
func (m *ConsumerMetrics) RecordFetch() { m.fetches.Add(1) }

// RecordCommit counts one commit.
func (m *ConsumerMetrics) RecordCommit(success bool) {
	if success {
		m.commits.Add(1)
	} else {
		m.commitErrors.Add(1)
	}
}

func (m *ConsumerMetrics) recordRebalance() { m.rebalances.Add(1) }

func (m *ConsumerMetrics) recordDroppedError() { m.errorsDropped.Add(1) }

// UpdateLag sets how far the reader of a partition is behind.
func (m *ConsumerMetrics) UpdateLag(topic string, partition int32, lag int64) {
	m.lagOf(topic, partition).Store(lag)
}

// lagOf returns the gauge of one partition.
func (m *ConsumerMetrics) lagOf(topic string, partition int32) *atomic.Int64 {
	key := TopicPartition{topic, partition}
	m.mu.RLock()
	gauge := m.lag[key]
	m.mu.RUnlock()
	if gauge != nil {
		return gauge
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if gauge = m.lag[key]; gauge == nil {
		if m.lag == nil {
			m.lag = make(map[TopicPartition]*atomic.Int64)
		}
		gauge = new(atomic.Int64)
		m.lag[key] = gauge
	}
	return gauge
}

// addReader has every snapshot ask a reader, until removeReader is called with the same
// key.
func (m *ConsumerMetrics) addReader(key any, s readerSource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sources == nil {
		m.sources = make(map[any]readerSource)
	}
	m.sources[key] = s
}

// removeReader keeps what a reader has delivered, which is all that it ever will.
func (m *ConsumerMetrics) removeReader(key any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.sources[key]; ok {
		messages, bytes := s.received()
		m.bytesReceived.Add(bytes)
		m.messagesReceived.Add(messages)
		delete(m.sources, key)
	}
}

// GetStats returns a snapshot.
func (m *ConsumerMetrics) GetStats() ConsumerStats {
	m.mu.RLock()
	gauges := maps.Clone(m.lag)
	sources := slices.Collect(maps.Values(m.sources))
	// With the lock: a reader that is removed is counted here or there.
	messages, bytes := m.messagesReceived.Load(), m.bytesReceived.Load()
	m.mu.RUnlock()
	s := ConsumerStats{
		MessagesReceived: messages,
		BytesReceived:    bytes,
		FetchCount:       m.fetches.Load(),
		CommitCount:      m.commits.Load(),
		CommitErrors:     m.commitErrors.Load(),
		Rebalances:       m.rebalances.Load(),
		ErrorsDropped:    m.errorsDropped.Load(),
		Lag:              make(map[TopicPartition]int64, len(gauges)),
	}
	for key, gauge := range gauges {
		s.Lag[key] = gauge.Load()
	}
	// Without the lock: a reader takes its own.
	for _, source := range sources {
		if lag, ok := source.lag(); ok {
			s.Lag[source.of] = max(lag, s.Lag[source.of])
		}
		messages, bytes := source.received()
		s.MessagesReceived += messages
		s.BytesReceived += bytes
	}
	return s
}

// ConnectionMetrics count connections to brokers.
type ConnectionMetrics struct {
	active        atomic.Int64
	total         atomic.Uint64
	failed        atomic.Uint64
	reconnections atomic.Uint64
}

// NewConnectionMetrics returns counters of the application's own.
func NewConnectionMetrics() *ConnectionMetrics { return new(ConnectionMetrics) }

// ConnectionStats is a snapshot of [ConnectionMetrics].
type ConnectionStats struct {
	ActiveConnections int64  // open now
	TotalConnections  uint64 // opened so far
	FailedConnections uint64 // tries that failed
	Reconnections     uint64 // connections opened to replace one that broke
}

// RecordConnection counts a connection that was opened.
func (m *ConnectionMetrics) RecordConnection() {
	m.total.Add(1)
	m.active.Add(1)
}

// RecordDisconnection counts a connection that ended.
func (m *ConnectionMetrics) RecordDisconnection() { m.active.Add(-1) }

// RecordFailed counts a connection that could not be opened.
func (m *ConnectionMetrics) RecordFailed() { m.failed.Add(1) }

// RecordReconnection counts a connection that replaces one that broke; it is
// counted with RecordConnection as well.
func (m *ConnectionMetrics) RecordReconnection() { m.reconnections.Add(1) }

// GetStats returns a snapshot.
func (m *ConnectionMetrics) GetStats() ConnectionStats {
	return ConnectionStats{
		ActiveConnections: m.active.Load(),
		TotalConnections:  m.total.Load(),
		FailedConnections: m.failed.Load(),
		Reconnections:     m.reconnections.Load(),
	}
}
