package robust

import (
	"net"
	"sync/atomic"
	"time"
)

// brokerMetrics are what a broker counts and measures itself.
type brokerMetrics struct {
	hooks      Hooks
	unmeasured bool // see sharedConfig

	requests [countedRequests]atomic.Pointer[requestMetrics] // by kind; nil before the first

	active           atomic.Int64
	total            atomic.Uint64
	refused          atomic.Uint64
	bytes            byteCounters
	messagesStored   atomic.Uint64
	messagesFailed   atomic.Uint64
	messagesRepeated atomic.Uint64
	bytesStored      atomic.Uint64
	messagesFetched  atomic.Uint64
	bytesFetched     atomic.Uint64
	appendMessages   histogram[int64]
	appendBytes      histogram[int64]
}

// requestMetrics are those of requests of one kind.
type requestMetrics struct {
	failed  atomic.Uint64
	latency histogram[time.Duration]
}

// countedRequests is how many kinds of requests there may be; the last is for those that
// are not known.
const countedRequests = 128

// of returns the metrics of a kind. Whatever peers send, there are no more than there are
// names.
func (m *brokerMetrics) of(kind requestType) *requestMetrics {
	if kind >= 0 && kind < countedRequests-1 {
		if r := m.requests[kind].Load(); r != nil {
			return r
		}
	}
	if kind < 0 || kind >= countedRequests-1 || kind.name() == "" {
		kind = countedRequests - 1
	}
	for {
		if r := m.requests[kind].Load(); r != nil {
			return r
		}
		m.requests[kind].CompareAndSwap(nil, new(requestMetrics))
	}
}

// requestOf is the inverse of the index that of uses.
func requestOf(i int) requestType {
	if i == countedRequests-1 {
		return requestUnknown
	}
	return requestType(i)
}

// underWay is a request that is being answered.
type underWay struct {
	kind  requestType
	began time.Time
}

// begin notes a request that has come.
func (m *brokerMetrics) begin(kind requestType) underWay {
	if m.unmeasured {
		return underWay{}
	}
	return underWay{kind, time.Now()}
}

// answered counts n requests that began together; failure is what they were refused with.
func (m *brokerMetrics) answered(peer net.Conn, r underWay, n int, failure error) {
	if m.unmeasured {
		return
	}
	took := time.Since(r.began)
	of := m.of(r.kind)
	if failure != nil {
		of.failed.Add(uint64(n))
	}
	of.latency.recordN(took, uint64(n))
	if m.hooks.RequestDone != nil {
		m.hooks.RequestDone(RequestEvent{
			Addr: peer.RemoteAddr().String(), Request: r.kind.String(), Requests: n, Latency: took, Err: failure,
		})
	}
}

// appending is an append to a log that is being measured.
type appending struct {
	metrics   *brokerMetrics // nil: it is not
	partition *partition
	messages  int
	bytes     int
	began     time.Time // zero without a hook
}

// appends measures an append of whole batches, before they are the log's; count is how many
// messages they hold, -1 to have them counted.
func (m *brokerMetrics) appends(p *partition, data []byte, count int) appending {
	if m.unmeasured {
		return appending{}
	}
	a := appending{metrics: m, partition: p, messages: count, bytes: len(data)}
	if count < 0 {
		a.messages = countRecords(data)
	}
	if m.hooks.ProduceDone != nil {
		a.began = time.Now()
	}
	return a
}

// countRecords counts those of whole batches, whose lengths have been checked, by their
// heads.
func countRecords(data []byte) (n int) {
	for len(data) > 0 {
		b := cutBatch(data)
		n += int(max(b.count(), 0))
		data = data[len(b):]
	}
	return n
}

// notStored counts messages that never came to a log.
func (m *brokerMetrics) notStored(topic string, partition int32, messages, bytes int, err error) {
	if m.unmeasured {
		return
	}
	m.messagesFailed.Add(uint64(messages))
	if m.hooks.ProduceDone != nil {
		m.hooks.ProduceDone(ProduceEvent{
			Topic: topic, Partition: partition, BaseOffset: offsetNone, Messages: messages, Bytes: bytes, Err: err,
		})
	}
}

// done counts what has come of an append.
func (a *appending) done(r *AppendResult) {
	m := a.metrics
	switch {
	case m == nil:
		return
	case r.Err != nil:
		m.messagesFailed.Add(uint64(a.messages))
	case r.Repeated:
		m.messagesRepeated.Add(uint64(a.messages))
	default:
		m.bytesStored.Add(uint64(a.bytes))
		m.appendMessages.record(int64(a.messages))
		m.appendBytes.record(int64(a.bytes))
		m.messagesStored.Add(uint64(a.messages))
	}
	if m.hooks.ProduceDone == nil {
		return
	}
	e := ProduceEvent{
		Topic: a.partition.topic, Partition: a.partition.id, BaseOffset: offsetNone,
		Messages: a.messages, Bytes: a.bytes, Latency: time.Since(a.began), Err: r.Err,
	}
	if r.Err == nil {
		e.BaseOffset = r.BaseOffset
	}
	m.hooks.ProduceDone(e)
}

// fetched counts what a consumer is sent of one partition.
func (m *brokerMetrics) fetched(e ConsumeEvent) {
	if m.unmeasured || e.Bytes == 0 && e.Messages == 0 {
		return
	}
	m.bytesFetched.Add(uint64(e.Bytes))
	m.messagesFetched.Add(uint64(e.Messages))
	if m.hooks.Consumed != nil {
		m.hooks.Consumed(e)
	}
}

// connected counts a connection in, and returns what counts it out.
func (m *brokerMetrics) connected(nc net.Conn) (ended func(fault error)) {
	m.total.Add(1)
	m.active.Add(1)
	began := time.Now()
	if m.hooks.Connected != nil {
		m.hooks.Connected(ConnectionEvent{Addr: nc.RemoteAddr().String()})
	}
	return func(fault error) {
		m.active.Add(-1)
		if m.hooks.Disconnected != nil {
			m.hooks.Disconnected(ConnectionEvent{Addr: nc.RemoteAddr().String(), Latency: time.Since(began), Err: fault})
		}
	}
}

// kept names what outlives a restart in the file of [WithMetricsFile].
func (m *brokerMetrics) kept() keptMetrics {
	k := keptMetrics{
		counters: map[string]keptCounter{
			"broker.connections":         &m.total,
			"broker.refused_connections": &m.refused,
			"broker.bytes_received":      &m.bytes.in,
			"broker.bytes_sent":          &m.bytes.out,
			"broker.messages_stored":     &m.messagesStored,
			"broker.messages_failed":     &m.messagesFailed,
			"broker.messages_repeated":   &m.messagesRepeated,
			"broker.bytes_stored":        &m.bytesStored,
			"broker.messages_fetched":    &m.messagesFetched,
			"broker.bytes_fetched":       &m.bytesFetched,
		},
		histograms: map[string]keptHistogram{
			"broker.append_messages": &m.appendMessages,
			"broker.append_bytes":    &m.appendBytes,
		},
	}
	for i := range m.requests {
		if kind := requestOf(i); kind.name() != "" {
			r := m.of(kind)
			k.counters["broker.failed."+kind.String()] = &r.failed
			k.histograms["broker.requests."+kind.String()] = &r.latency
		}
	}
	return k
}

// BrokerStats is a snapshot of what a broker counts and measures, and of what it has. What
// it shows as JSON has the names and units of docs/metrics.md.
type BrokerStats struct {
	Time time.Time `json:"time"` // when it was taken
	// Requests are those that were answered, by their names, such as "FetchBatch", or "Unknown";
	// kinds of which there was none are left out.
	Requests map[string]RequestStats `json:"requests"`

	ActiveConnections  int64  `json:"active_connections"`  // open now
	TotalConnections   uint64 `json:"connections"`         // accepted so far
	RefusedConnections uint64 `json:"refused_connections"` // over [WithConnectionLimit]
	BytesReceived      uint64 `json:"bytes_received"`      // from clients, frames and bodies
	BytesSent          uint64 `json:"bytes_sent"`          // to clients

	// What was appended to logs; bytes are of the batches as they are stored.
	MessagesStored   uint64           `json:"messages_stored"`
	MessagesFailed   uint64           `json:"messages_failed"`   // that were refused
	MessagesRepeated uint64           `json:"messages_repeated"` // that came again, were recognised and not stored twice
	BytesStored      uint64           `json:"bytes_stored"`
	AppendMessages   Histogram[int64] `json:"append_messages"` // in one append
	AppendBytes      Histogram[int64] `json:"append_bytes"`
	// What was sent to consumers.
	MessagesFetched uint64 `json:"messages_fetched"`
	BytesFetched    uint64 `json:"bytes_fetched"`

	Topics     int `json:"topics"`
	Partitions int `json:"partitions"`
	Groups     int `json:"groups"`
	Members    int `json:"members"` // of all groups
	// LogBytes and Segments are of all partitions whose storage tells them ([LogSizer]).
	LogBytes int64 `json:"log_bytes"`
	Segments int   `json:"segments"`
	// ByTopic has the largest topics, and ByGroup the groups that are furthest behind, as many
	// as [WithMaxSeries] says; LeftOut is how many of both are not named.
	ByTopic map[string]TopicStats `json:"by_topic"`
	ByGroup map[string]GroupStats `json:"by_group"`
	LeftOut int                   `json:"left_out"`
}

// RequestStats are those of requests of one kind.
type RequestStats struct {
	// Latency is from when the request has come to its answer. The time for which it was held
	// is part of it. Its Count is that of the requests.
	Latency Histogram[time.Duration] `json:"seconds"`
	Failed  uint64                   `json:"failed"` // that were refused as a whole
}

// TopicStats is what there is of a topic.
type TopicStats struct {
	Partitions int   `json:"partitions"`
	Messages   int64 `json:"messages"` // that can be read
	Bytes      int64 `json:"bytes"`    // of its logs
	Segments   int   `json:"segments"`
}

// GroupStats is how a consumer group stands.
type GroupStats struct {
	Members    int `json:"members"`
	Partitions int `json:"partitions"` // with a committed offset
	// Lag is how many messages lie between the committed offsets and the high-water marks,
	// MaxLag that of the partition furthest behind. Partitions without a committed offset do
	// not count.
	Lag    int64 `json:"lag"`
	MaxLag int64 `json:"max_lag"`
}

// String returns the snapshot as JSON, as package expvar wants it.
func (s BrokerStats) String() string { return jsonOf(s) }

// Since is as [Stats.Since].
func (s BrokerStats) Since(earlier BrokerStats) BrokerStats {
	requests := make(map[string]RequestStats)
	for name, r := range s.Requests {
		before := earlier.Requests[name]
		r.Latency, r.Failed = r.Latency.Since(before.Latency), grown(r.Failed, before.Failed)
		if r.Latency.Count > 0 {
			requests[name] = r
		}
	}
	s.Requests = requests
	s.TotalConnections = grown(s.TotalConnections, earlier.TotalConnections)
	s.RefusedConnections = grown(s.RefusedConnections, earlier.RefusedConnections)
	s.BytesReceived = grown(s.BytesReceived, earlier.BytesReceived)
	s.BytesSent = grown(s.BytesSent, earlier.BytesSent)
	s.MessagesStored = grown(s.MessagesStored, earlier.MessagesStored)
	s.MessagesFailed = grown(s.MessagesFailed, earlier.MessagesFailed)
	s.MessagesRepeated = grown(s.MessagesRepeated, earlier.MessagesRepeated)
	s.BytesStored = grown(s.BytesStored, earlier.BytesStored)
	s.AppendMessages = s.AppendMessages.Since(earlier.AppendMessages)
	s.AppendBytes = s.AppendBytes.Since(earlier.AppendBytes)
	s.MessagesFetched = grown(s.MessagesFetched, earlier.MessagesFetched)
	s.BytesFetched = grown(s.BytesFetched, earlier.BytesFetched)
	return s
}

// snapshot returns what was counted and measured until now.
func (m *brokerMetrics) snapshot() BrokerStats {
	s := BrokerStats{
		Time:     time.Now(),
		Requests: make(map[string]RequestStats),

		ActiveConnections:  m.active.Load(),
		TotalConnections:   m.total.Load(),
		RefusedConnections: m.refused.Load(),
		BytesReceived:      m.bytes.in.Load(),
		BytesSent:          m.bytes.out.Load(),

		MessagesStored:   m.messagesStored.Load(),
		MessagesFailed:   m.messagesFailed.Load(),
		MessagesRepeated: m.messagesRepeated.Load(),
		BytesStored:      m.bytesStored.Load(),
		AppendMessages:   m.appendMessages.snapshot(),
		AppendBytes:      m.appendBytes.snapshot(),
		MessagesFetched:  m.messagesFetched.Load(),
		BytesFetched:     m.bytesFetched.Load(),

		ByTopic: make(map[string]TopicStats),
		ByGroup: make(map[string]GroupStats),
	}
	for i := range m.requests {
		r := m.requests[i].Load()
		if r == nil {
			continue
		}
		if latency := r.latency.snapshot(); latency.Count > 0 {
			s.Requests[requestOf(i).String()] = RequestStats{latency, r.failed.Load()}
		}
	}
	return s
}
