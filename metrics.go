package robust

import (
	"sync/atomic"
	"time"
)

// Metrics are what a client counts and measures, one set for all of its handles. They are
// live and must not be copied; GetStats returns snapshots. All methods may be called
// concurrently, and an update does not allocate, but for the first value within a power of two.
//
// It is an expvar.Var: expvar.Publish("robust", client.Metrics()) shows it.
type Metrics struct {
	Producer   ProducerMetrics
	Consumer   ConsumerMetrics
	Connection ConnectionMetrics
}

// Stats is a snapshot of [Metrics]. What it shows as JSON has the names and units of
// docs/metrics.md.
type Stats struct {
	Time       time.Time       `json:"time"` // when it was taken
	Producer   ProducerStats   `json:"producer"`
	Consumer   ConsumerStats   `json:"consumer"`
	Connection ConnectionStats `json:"connection"`
}

// GetStats returns a snapshot of all.
func (m *Metrics) GetStats() Stats {
	return Stats{time.Now(), m.Producer.GetStats(), m.Consumer.GetStats(), m.Connection.GetStats()}
}

// String returns a snapshot as JSON, as package expvar wants it.
func (m *Metrics) String() string { return jsonOf(m.GetStats()) }

// Since returns what has come after an earlier snapshot of the same metrics: counters and
// distributions are differences, what tells a present state (BufferedBytes, lag,
// ActiveConnections) is as in s. Time.Sub tells in which time that was.
func (s Stats) Since(earlier Stats) Stats {
	s.Producer = s.Producer.Since(earlier.Producer)
	s.Consumer = s.Consumer.Since(earlier.Consumer)
	s.Connection = s.Connection.Since(earlier.Connection)
	return s
}

// kept names what outlives a restart in the file of [WithMetricsFile].
func (m *Metrics) kept() keptMetrics {
	k := keptMetrics{counters: make(map[string]keptCounter), histograms: make(map[string]keptHistogram)}
	m.Producer.keep(k)
	m.Consumer.keep(k)
	m.Connection.keep(k)
	return k
}

// ProducerMetrics count what was sent.
type ProducerMetrics struct {
	messagesSent   atomic.Uint64
	messagesFailed atomic.Uint64
	bytesSent      atomic.Uint64
	retries        [maxReasons]atomic.Uint64
	latency        histogram[time.Duration]
	batchMessages  histogram[int64]
	batchBytes     histogram[int64]
	plainBytes     atomic.Uint64
	storedBytes    atomic.Uint64
	buffered       gauges
}

// NewProducerMetrics returns counters of the application's own.
func NewProducerMetrics() *ProducerMetrics { return new(ProducerMetrics) }

// ProducerStats is a snapshot of [ProducerMetrics].
type ProducerStats struct {
	MessagesSent   uint64 `json:"messages_sent"`   // stored by a broker
	MessagesFailed uint64 `json:"messages_failed"` // reported to the application as failed
	BytesSent      uint64 `json:"bytes_sent"`      // [Message.Size] of the messages sent
	Retries        uint64 `json:"retries"`         // tries after the first, of a message or a batch
	// RetriesByReason tells why: "connection" (it could not be opened, or broke), "no_answer"
	// (none came in time), or the code of the broker's refusal in lower case, such as
	// "not_leader". Reasons that have not come up are left out.
	RetriesByReason map[string]uint64 `json:"retries_by_reason"`
	// From the call to the broker's answer, retries included: the average, the longest, and
	// how they are distributed.
	AverageLatency time.Duration            `json:"-"`
	MaxLatency     time.Duration            `json:"-"`
	Latency        Histogram[time.Duration] `json:"latency_seconds"`
	// The batches that were stored: messages, and bytes as they were sent.
	BatchMessages Histogram[int64] `json:"batch_messages"`
	BatchBytes    Histogram[int64] `json:"batch_bytes"`
	// Bytes of these batches before and after compression.
	PlainBytes   uint64 `json:"batch_plain_bytes"`
	EncodedBytes uint64 `json:"batch_encoded_bytes"`
	// BufferedBytes is what counts for [WithMaxBufferedBytes] now, of all producers.
	BufferedBytes int64 `json:"buffered_bytes"`
}

// CompressionRatio tells how many bytes became one: 1 without compression, 0 if there was
// no batch.
func (s ProducerStats) CompressionRatio() float64 {
	if s.EncodedBytes == 0 {
		return 0
	}
	return float64(s.PlainBytes) / float64(s.EncodedBytes)
}

// Since is as [Stats.Since].
func (s ProducerStats) Since(earlier ProducerStats) ProducerStats {
	s.MessagesSent = grown(s.MessagesSent, earlier.MessagesSent)
	s.MessagesFailed = grown(s.MessagesFailed, earlier.MessagesFailed)
	s.BytesSent = grown(s.BytesSent, earlier.BytesSent)
	s.Retries = grown(s.Retries, earlier.Retries)
	s.PlainBytes = grown(s.PlainBytes, earlier.PlainBytes)
	s.EncodedBytes = grown(s.EncodedBytes, earlier.EncodedBytes)
	s.RetriesByReason = grownByKey(s.RetriesByReason, earlier.RetriesByReason)
	s.Latency = s.Latency.Since(earlier.Latency)
	s.AverageLatency, s.MaxLatency = s.Latency.Mean(), s.Latency.Max
	s.BatchMessages = s.BatchMessages.Since(earlier.BatchMessages)
	s.BatchBytes = s.BatchBytes.Since(earlier.BatchBytes)
	return s
}

// RecordSent counts one message of so many bytes that took latency to be stored.
func (m *ProducerMetrics) RecordSent(bytes uint64, latency time.Duration) {
	// Bytes and latency go first: a snapshot that has the message has them too, so that
	// averages err to the long side.
	m.bytesSent.Add(bytes)
	m.latency.record(latency)
	m.messagesSent.Add(1)
}

// recordBatch counts n messages that were stored in a batch, whose latencies have been
// counted; plain and encoded are its bytes before and after compression, 0 if the messages
// were sent by themselves.
func (m *ProducerMetrics) recordBatch(n, bytes uint64, plain, encoded int) {
	m.bytesSent.Add(bytes) // As in RecordSent.
	if encoded > 0 {
		m.batchMessages.record(int64(n))
		m.batchBytes.record(int64(encoded))
		m.plainBytes.Add(uint64(plain))
		m.storedBytes.Add(uint64(encoded))
	}
	m.messagesSent.Add(n)
}

// RecordFailed counts one message that was not stored.
func (m *ProducerMetrics) RecordFailed() { m.messagesFailed.Add(1) }

// recordRetry counts a try after the one that has failed with err.
func (m *ProducerMetrics) recordRetry(err error) { m.retries[reasonOf(err)].Add(1) }

// GetStats returns a snapshot.
func (m *ProducerMetrics) GetStats() ProducerStats {
	s := ProducerStats{
		MessagesSent:    m.messagesSent.Load(),
		MessagesFailed:  m.messagesFailed.Load(),
		BytesSent:       m.bytesSent.Load(),
		RetriesByReason: make(map[string]uint64),
		Latency:         m.latency.snapshot(),
		BatchMessages:   m.batchMessages.snapshot(),
		BatchBytes:      m.batchBytes.snapshot(),
		EncodedBytes:    m.storedBytes.Load(),
		PlainBytes:      m.plainBytes.Load(),
		BufferedBytes:   m.buffered.sum(),
	}
	for i := range m.retries {
		if n := m.retries[i].Load(); n > 0 {
			s.Retries += n
			s.RetriesByReason[reasonName(i)] = n
		}
	}
	s.AverageLatency, s.MaxLatency = s.Latency.Mean(), s.Latency.Max
	return s
}

func (m *ProducerMetrics) keep(k keptMetrics) {
	k.counters["producer.messages_sent"] = &m.messagesSent
	k.counters["producer.messages_failed"] = &m.messagesFailed
	k.counters["producer.bytes_sent"] = &m.bytesSent
	k.counters["producer.batch_plain_bytes"] = &m.plainBytes
	k.counters["producer.batch_encoded_bytes"] = &m.storedBytes
	for i := range m.retries {
		if name := reasonName(i); name != "" {
			k.counters["producer.retries."+name] = &m.retries[i]
		}
	}
	k.histograms["producer.latency"] = &m.latency
	k.histograms["producer.batch_messages"] = &m.batchMessages
	k.histograms["producer.batch_bytes"] = &m.batchBytes
}

// ConnectionMetrics count connections to brokers.
type ConnectionMetrics struct {
	active        atomic.Int64
	total         atomic.Uint64
	failed        atomic.Uint64
	reconnections atomic.Uint64
	connect       histogram[time.Duration]
	bytes         byteCounters
}

// NewConnectionMetrics returns counters of the application's own.
func NewConnectionMetrics() *ConnectionMetrics { return new(ConnectionMetrics) }

// ConnectionStats is a snapshot of [ConnectionMetrics].
type ConnectionStats struct {
	ActiveConnections int64  `json:"active_connections"` // open now
	TotalConnections  uint64 `json:"connections"`        // opened so far
	FailedConnections uint64 `json:"failed_connections"` // tries that failed
	Reconnections     uint64 `json:"reconnections"`      // connections opened to replace one that broke
	// ConnectLatency is how long it took to open those that were opened, the hello included.
	ConnectLatency Histogram[time.Duration] `json:"connect_seconds"`
	BytesReceived  uint64                   `json:"bytes_received"` // from brokers, frames and bodies
	BytesSent      uint64                   `json:"bytes_sent"`     // to brokers
}

// Since is as [Stats.Since].
func (s ConnectionStats) Since(earlier ConnectionStats) ConnectionStats {
	s.TotalConnections = grown(s.TotalConnections, earlier.TotalConnections)
	s.FailedConnections = grown(s.FailedConnections, earlier.FailedConnections)
	s.Reconnections = grown(s.Reconnections, earlier.Reconnections)
	s.ConnectLatency = s.ConnectLatency.Since(earlier.ConnectLatency)
	s.BytesReceived = grown(s.BytesReceived, earlier.BytesReceived)
	s.BytesSent = grown(s.BytesSent, earlier.BytesSent)
	return s
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
		ConnectLatency:    m.connect.snapshot(),
		BytesReceived:     m.bytes.in.Load(),
		BytesSent:         m.bytes.out.Load(),
	}
}

func (m *ConnectionMetrics) keep(k keptMetrics) {
	k.counters["connection.connections"] = &m.total
	k.counters["connection.failed_connections"] = &m.failed
	k.counters["connection.reconnections"] = &m.reconnections
	k.counters["connection.bytes_received"] = &m.bytes.in
	k.counters["connection.bytes_sent"] = &m.bytes.out
	k.histograms["connection.connect"] = &m.connect
}
