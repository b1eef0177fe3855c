package robust

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMetricsCount(t *testing.T) {
	p := NewProducerMetrics()
	p.RecordSent(100, 10*time.Millisecond)
	p.RecordSent(50, 30*time.Millisecond)
	p.RecordFailed()
	p.recordRetry(&ConnError{Op: "read"})
	p.recordRetry(&ConnError{Op: "wait"})
	p.recordRetry(&BrokerError{condition: ErrNotLeader})
	p.recordRetry(&BrokerError{condition: ErrNotLeader})
	p.recordRetry(&BrokerError{})
	sent := p.GetStats()
	require.Equal(t, 2, int(sent.MessagesSent))
	require.Equal(t, 1, int(sent.MessagesFailed))
	require.Equal(t, 150, int(sent.BytesSent))
	require.Equal(t, 20*time.Millisecond, sent.AverageLatency)
	require.Equal(t, 30*time.Millisecond, sent.MaxLatency)
	require.Equal(t, 5, int(sent.Retries))
	require.Equal(t, map[string]uint64{"connection": 1, "no_answer": 1, "not_leader": 2, "internal": 1}, sent.RetriesByReason)
	require.Zero(t, sent.CompressionRatio())
	p.recordBatch(3, 300, 1000, 250)
	p.recordBatch(1, 100, 0, 0)
	require.InDelta(t, 4, p.GetStats().CompressionRatio(), 0)
	require.Equal(t, int64(3), p.GetStats().BatchMessages.Quantile(0.5))
	require.Equal(t, 1, int(p.GetStats().BatchBytes.Count), "of messages sent by themselves there is no batch")

	c := NewConsumerMetrics()
	c.RecordReceived(10)
	c.RecordFetch()
	c.RecordCommit(true)
	c.RecordCommit(false)
	c.recordDroppedError()
	c.UpdateLag("demo", 1, 5)
	c.UpdateLag("demo", 1, 4)
	c.UpdateLag("demo", 2, 9)
	stats := c.GetStats()
	require.Equal(t, ConsumerStats{
		MessagesReceived: 1, BytesReceived: 10, FetchCount: 1, CommitCount: 1, CommitErrors: 1, ErrorsDropped: 1,
		Lag:        map[TopicPartition]int64{{"demo", 1}: 4, {"demo", 2}: 9},
		LagByTopic: map[string]TopicLag{"demo": {Partitions: 2, Sum: 13, Max: 9}}, LagTotal: 13,
	}, stats)
	delivered := uint64(0) // by each reader
	reader := func(lag int64, known bool) readerSource {
		return readerSource{
			of:       TopicPartition{"demo", 3},
			lag:      func() (int64, bool) { return lag, known },
			received: func() received { return received{delivered, 10 * delivered} },
		}
	}
	c.addReader(1, reader(7, true))
	c.addReader(2, reader(9, true))
	c.addReader(3, reader(100, false))
	require.Equal(t, int64(9), c.GetStats().Lag[TopicPartition{"demo", 3}], "the one furthest behind")
	delivered = 2
	require.Equal(t, uint64(1+3*2), c.GetStats().MessagesReceived)
	c.removeReader(2)
	c.removeReader(2)
	require.Equal(t, uint64(1+3*2), c.GetStats().MessagesReceived, "what was delivered stays")
	require.Equal(t, uint64(10+3*20), c.GetStats().BytesReceived)
	require.Equal(t, int64(7), c.GetStats().Lag[TopicPartition{"demo", 3}])
	c.removeReader(1)
	require.NotContains(t, c.GetStats().Lag, TopicPartition{"demo", 3})
	require.Len(t, stats.Lag, 2, "a snapshot does not change")

	n := NewConnectionMetrics()
	n.RecordConnection()
	n.RecordConnection()
	n.RecordDisconnection()
	n.RecordFailed()
	n.RecordReconnection()
	require.Equal(t, ConnectionStats{ActiveConnections: 1, TotalConnections: 2, FailedConnections: 1, Reconnections: 1}, n.GetStats())
}

func TestMetricsUpdatesDoNotAllocate(t *testing.T) {
	var m Metrics
	m.Consumer.UpdateLag("demo", 0, 1)
	for name, update := range map[string]func(){
		"record": func() { m.Producer.latency.record(time.Second) },
		"tally": func() {
			took := tally[time.Duration]{to: &m.Producer.latency}
			took.record(time.Millisecond)
			took.record(time.Hour)
			took.flush()
		},
		"recordBatch":         func() { m.Producer.recordBatch(10, 1000, 1200, 300) },
		"recordFetch":         func() { m.Consumer.recordFetch(100, time.Millisecond) },
		"bytes":               func() { m.Connection.bytes.read(10); m.Connection.bytes.wrote(10) },
		"RecordSent":          func() { m.Producer.RecordSent(100, time.Millisecond) },
		"RecordFailed":        m.Producer.RecordFailed,
		"RecordReceived":      func() { m.Consumer.RecordReceived(100) },
		"RecordFetch":         m.Consumer.RecordFetch,
		"RecordCommit":        func() { m.Consumer.RecordCommit(true) },
		"UpdateLag":           func() { m.Consumer.UpdateLag("demo", 0, 7) },
		"RecordConnection":    m.Connection.RecordConnection,
		"RecordDisconnection": m.Connection.RecordDisconnection,
		"RecordReconnection":  m.Connection.RecordReconnection,
	} {
		require.Zero(t, testing.AllocsPerRun(100, update), name)
	}
}

func TestMetricsConcurrently(t *testing.T) {
	var m Metrics
	var group sync.WaitGroup
	const each = 1000
	for i := range 8 {
		group.Go(func() {
			for range each {
				m.Producer.RecordSent(1, time.Duration(i))
				m.Consumer.UpdateLag("demo", int32(i%4), int64(i))
				_ = m.Producer.GetStats()
				_ = m.Consumer.GetStats()
			}
		})
	}
	group.Wait()
	stats := m.Producer.GetStats()
	require.Equal(t, uint64(8*each), stats.MessagesSent)
	require.Equal(t, uint64(8*each), stats.BytesSent)
	require.Equal(t, time.Duration(7), stats.MaxLatency)
	require.Equal(t, uint64(8*each), stats.Latency.Count)
	require.Len(t, m.Consumer.GetStats().Lag, 4)
}
