package robust

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ConsumerMetrics count what was read.
type ConsumerMetrics struct {
	messagesReceived atomic.Uint64
	bytesReceived    atomic.Uint64
	fetches          atomic.Uint64
	commits          atomic.Uint64
	commitErrors     atomic.Uint64
	rebalances       atomic.Uint64
	errorsDropped    atomic.Uint64
	fetchLatency     histogram[time.Duration]
	fetchBytes       histogram[int64]
	commitLatency    histogram[time.Duration]
	rebalanceLatency histogram[time.Duration]
	buffered         gauges
	maxSeries        int // 0: defaultMaxSeries; immutable

	mu      sync.RWMutex // guards the following
	lag     map[TopicPartition]*atomic.Int64
	sources map[any]readerSource // the client's own readers, asked for each snapshot
}

// defaultMaxSeries is what a snapshot names of partitions, and of topics, unless
// WithMaxSeries says otherwise.
const defaultMaxSeries = 1000

// readerSource is a reader that counts by itself.
type readerSource struct {
	of  TopicPartition
	lag func() (int64, bool) // false while it is not known
	// received is what was delivered until now.
	received func() received
}

// received is how many messages were delivered, and bytes of them.
type received struct{ messages, bytes uint64 }

func (r *received) add(more received) {
	r.messages += more.messages
	r.bytes += more.bytes
}

// NewConsumerMetrics returns counters of the application's own.
func NewConsumerMetrics() *ConsumerMetrics { return new(ConsumerMetrics) }

// ConsumerStats is a snapshot of [ConsumerMetrics].
type ConsumerStats struct {
	MessagesReceived uint64 `json:"messages_received"` // handed to the application or put into its channel
	BytesReceived    uint64 `json:"bytes_received"`    // [Message.Size] of them
	FetchCount       uint64 `json:"fetches"`           // fetch requests answered
	CommitCount      uint64 `json:"commits"`           // commits that succeeded
	CommitErrors     uint64 `json:"commit_errors"`     // commits that failed
	Rebalances       uint64 `json:"rebalances"`        // changes of what members of consumer groups read
	ErrorsDropped    uint64 `json:"errors_dropped"`    // notices that nobody read from an Errors channel in time
	// FetchLatency is the time from a fetch request to its answer. That for which the broker
	// held it, because there was nothing to be read, is part of it.
	FetchLatency  Histogram[time.Duration] `json:"fetch_seconds"`
	FetchBytes    Histogram[int64]         `json:"fetch_bytes"`    // of batches or messages in an answer, without those that have none
	CommitLatency Histogram[time.Duration] `json:"commit_seconds"` // of commits, those that failed included
	// RebalanceLatency is how long changes took: from when a member joins, or learns that
	// there is something else for it to read, until it has been told all of that.
	RebalanceLatency Histogram[time.Duration] `json:"rebalance_seconds"`
	// BufferedBytes is what counts for [WithMaxFetchedBytes] now.
	BufferedBytes int64 `json:"buffered_bytes"`
	// Lag is, for each partition that is being read, how many messages lie
	// between the next one to be handed over and the high-water mark; of several
	// readers of one partition, the one that is furthest behind. Of more partitions than
	// [WithMaxSeries] it has those that are furthest behind.
	Lag map[TopicPartition]int64 `json:"lag"`
	// LagByTopic sums Lag up, of all partitions of each topic. Of more topics than
	// WithMaxSeries it has those that are furthest behind.
	LagByTopic map[string]TopicLag `json:"lag_by_topic"`
	LagTotal   int64               `json:"lag_total"`    // of all partitions
	LagLeftOut int                 `json:"lag_left_out"` // how many partitions and topics are not named
}

// TopicLag is how far the readers of a topic are behind.
type TopicLag struct {
	Partitions int   `json:"partitions"` // that are being read
	Sum        int64 `json:"sum"`
	Max        int64 `json:"max"` // of one partition
}

// Since is as [Stats.Since].
func (s ConsumerStats) Since(earlier ConsumerStats) ConsumerStats {
	s.MessagesReceived = grown(s.MessagesReceived, earlier.MessagesReceived)
	s.BytesReceived = grown(s.BytesReceived, earlier.BytesReceived)
	s.FetchCount = grown(s.FetchCount, earlier.FetchCount)
	s.CommitCount = grown(s.CommitCount, earlier.CommitCount)
	s.CommitErrors = grown(s.CommitErrors, earlier.CommitErrors)
	s.Rebalances = grown(s.Rebalances, earlier.Rebalances)
	s.ErrorsDropped = grown(s.ErrorsDropped, earlier.ErrorsDropped)
	s.FetchLatency = s.FetchLatency.Since(earlier.FetchLatency)
	s.FetchBytes = s.FetchBytes.Since(earlier.FetchBytes)
	s.CommitLatency = s.CommitLatency.Since(earlier.CommitLatency)
	s.RebalanceLatency = s.RebalanceLatency.Since(earlier.RebalanceLatency)
	return s
}

// RecordReceived counts one message of so many bytes.
func (m *ConsumerMetrics) RecordReceived(bytes uint64) {
	m.bytesReceived.Add(bytes)
	m.messagesReceived.Add(1)
}

// RecordFetch counts one fetch.
func (m *ConsumerMetrics) RecordFetch() { m.fetches.Add(1) }

// recordFetch counts a fetch that was answered with so many bytes.
func (m *ConsumerMetrics) recordFetch(bytes int, latency time.Duration) {
	m.fetchLatency.record(latency)
	if bytes > 0 {
		m.fetchBytes.record(int64(bytes))
	}
	m.fetches.Add(1)
}

// RecordCommit counts one commit.
func (m *ConsumerMetrics) RecordCommit(success bool) {
	if success {
		m.commits.Add(1)
	} else {
		m.commitErrors.Add(1)
	}
}

// recordRebalance counts a change of what a member reads.
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
		last := s.received()
		m.bytesReceived.Add(last.bytes)
		m.messagesReceived.Add(last.messages)
		delete(m.sources, key)
	}
}

// receivedCounter is a counter of what was received, by readers that are at it too.
type receivedCounter struct {
	*atomic.Uint64

	all func() uint64
}

func (c receivedCounter) Load() uint64 { return c.all() }

// readers returns those that count by themselves, and what all the others have received.
func (m *ConsumerMetrics) readers() ([]readerSource, received) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	// With the lock: a reader that is removed is counted here or there.
	return slices.Collect(maps.Values(m.sources)), received{m.messagesReceived.Load(), m.bytesReceived.Load()}
}

// received is what was received until now.
func (m *ConsumerMetrics) received() received {
	readers, total := m.readers()
	for _, r := range readers { // Without the lock: a reader takes its own.
		total.add(r.received())
	}
	return total
}

// GetStats returns a snapshot.
func (m *ConsumerMetrics) GetStats() ConsumerStats {
	readers, total := m.readers()
	m.mu.RLock()
	gauges := maps.Clone(m.lag)
	m.mu.RUnlock()
	s := ConsumerStats{
		FetchCount:       m.fetches.Load(),
		CommitCount:      m.commits.Load(),
		CommitErrors:     m.commitErrors.Load(),
		Rebalances:       m.rebalances.Load(),
		ErrorsDropped:    m.errorsDropped.Load(),
		FetchLatency:     m.fetchLatency.snapshot(),
		FetchBytes:       m.fetchBytes.snapshot(),
		CommitLatency:    m.commitLatency.snapshot(),
		RebalanceLatency: m.rebalanceLatency.snapshot(),
		BufferedBytes:    m.buffered.sum(),
		Lag:              make(map[TopicPartition]int64, len(gauges)),
	}
	for key, gauge := range gauges {
		s.Lag[key] = gauge.Load()
	}
	for _, r := range readers {
		if lag, ok := r.lag(); ok {
			s.Lag[r.of] = max(lag, s.Lag[r.of])
		}
		total.add(r.received())
	}
	s.MessagesReceived, s.BytesReceived = total.messages, total.bytes
	s.sumLag(cmp.Or(m.maxSeries, defaultMaxSeries))
	return s
}

// sumLag sums Lag up by topic, and bounds what is named.
func (s *ConsumerStats) sumLag(limit int) {
	s.LagByTopic = make(map[string]TopicLag)
	for tp, lag := range s.Lag {
		t := s.LagByTopic[tp.Topic]
		s.LagByTopic[tp.Topic] = TopicLag{t.Partitions + 1, t.Sum + lag, max(t.Max, lag)}
		s.LagTotal += lag
	}
	s.LagLeftOut = keepLargest(s.Lag, limit, cmp.Compare[int64], compareTopicPartition) +
		keepLargest(s.LagByTopic, limit, func(a, b TopicLag) int { return cmp.Compare(a.Sum, b.Sum) }, cmp.Compare[string])
}

func (m *ConsumerMetrics) keep(k keptMetrics) {
	k.counters["consumer.messages_received"] = receivedCounter{&m.messagesReceived, func() uint64 { return m.received().messages }}
	k.counters["consumer.bytes_received"] = receivedCounter{&m.bytesReceived, func() uint64 { return m.received().bytes }}
	k.counters["consumer.fetches"] = &m.fetches
	k.counters["consumer.commits"] = &m.commits
	k.counters["consumer.commit_errors"] = &m.commitErrors
	k.counters["consumer.rebalances"] = &m.rebalances
	k.counters["consumer.errors_dropped"] = &m.errorsDropped
	k.histograms["consumer.fetch"] = &m.fetchLatency
	k.histograms["consumer.fetch_bytes"] = &m.fetchBytes
	k.histograms["consumer.commit"] = &m.commitLatency
	k.histograms["consumer.rebalance"] = &m.rebalanceLatency
}
