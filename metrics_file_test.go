package robust

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// produceWith sends n messages with a client of these options, and returns its last stats.
func produceWith(t *testing.T, b *Broker, n int, opts ...Option) Stats {
	t.Helper()
	c, err := b.Client(opts...)
	require.NoError(t, err)
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for range n {
		_, err := p.Send(t.Context(), NewMessage("demo", []byte("0123456789")))
		require.NoError(t, err)
	}
	stats := c.Metrics().GetStats()
	require.NoError(t, c.Close())
	return stats
}

func TestMetricsFileKeepsCounting(t *testing.T) {
	dir := t.TempDir()
	ofClient, ofBroker := filepath.Join(dir, "client"), filepath.Join(dir, "broker")
	var before BrokerStats
	for run := range 3 {
		b, err := NewBroker(WithTopic("demo", 1), WithMetricsFile(ofBroker))
		require.NoError(t, err)
		stats := produceWith(t, b, 10, WithMetricsFile(ofClient))
		require.Equal(t, uint64(10*(run+1)), stats.Producer.MessagesSent)
		require.Equal(t, uint64(10*(run+1)), stats.Producer.Latency.Count)
		require.Equal(t, int64(10*(run+1)), stats.Producer.BatchMessages.Sum)
		require.Equal(t, uint64(run+1), stats.Connection.TotalConnections)
		require.Equal(t, int64(1), stats.Connection.ActiveConnections, "how things stand is not kept")
		now := b.Metrics()
		require.Equal(t, uint64(10*(run+1)), now.MessagesStored)
		require.Equal(t, uint64(10*(run+1)), now.Requests["ProduceBatch"].Latency.Count)
		require.Equal(t, uint64(10), now.Since(before).MessagesStored)
		require.Positive(t, now.ByTopic["demo"].Bytes)
		before = now
		require.NoError(t, b.Close())
		require.NoError(t, b.Close(), "closed twice")
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, f := range left {
		names = append(names, f.Name())
	}
	require.Equal(t, []string{"broker", "broker.lock", "client", "client.lock"}, names)
}

// TestMetricsFileInUse: two that counted in one file took turns in writing over what the other
// had counted, and nobody was told.
func TestMetricsFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	c, err := New(WithMetricsFile(path))
	require.NoError(t, err)
	c.Metrics().Producer.RecordFailed()
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = New(WithMetricsFile(path))
	require.ErrorIs(t, err, ErrMetricsFileInUse)
	require.ErrorContains(t, err, path+": by process "+strconv.Itoa(os.Getpid()))
	_, err = NewBroker(WithMetricsFile(path))
	require.ErrorIs(t, err, ErrMetricsFileInUse)
	_, err = New(WithEmbeddedBroker(WithMetricsFile(path)), WithMetricsFile(path))
	require.ErrorIs(t, err, ErrMetricsFileInUse)
	same, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, whole, same, "who is refused leaves it alone")
	require.NoError(t, c.Close())

	// Whoever comes next has what was counted, also after one that failed to open it.
	require.NoError(t, os.WriteFile(path+".tmp", []byte("left by one that was killed"), 0o600))
	_, err = New(WithMetricsFile(path), WithEmbeddedBroker(WithDataDir(path)))
	require.Error(t, err)
	c, err = New(WithMetricsFile(path))
	require.NoError(t, err)
	require.Equal(t, uint64(1), c.Metrics().Producer.GetStats().MessagesFailed)
	require.NoError(t, c.Close())
	require.NoFileExists(t, path+".tmp")
}

// encoded is what would be kept of metrics now.
func encoded(t *testing.T, m *Metrics) savedMetrics {
	t.Helper()
	text, err := encodeMetricsFile(m.kept())
	require.NoError(t, err)
	s, err := parseMetricsFile(text)
	require.NoError(t, err)
	return s
}

func TestMetricsFileRoundTrip(t *testing.T) {
	var m, again Metrics
	m.Producer.recordRetry(&BrokerError{condition: ErrNotLeader})
	m.Producer.RecordSent(7, 2*time.Hour)
	m.Producer.RecordSent(7, time.Millisecond)
	m.Consumer.RecordCommit(false)
	path := filepath.Join(t.TempDir(), "metrics")
	f, err := openMetricsFile(path, m.kept, newWarner(defaultConfig().logger))
	require.NoError(t, err)
	require.NoError(t, f.close())
	f, err = openMetricsFile(path, again.kept, newWarner(defaultConfig().logger))
	require.NoError(t, err)
	require.NoError(t, f.close())
	require.Equal(t, m.Producer.GetStats(), again.Producer.GetStats())
	require.Equal(t, m.Consumer.GetStats(), again.Consumer.GetStats())
}

// TestMetricsFileDamaged holds that a file which was torn or altered is refused with an error
// that names it, wherever that was, and that it stays as it is.
func TestMetricsFileDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	produceWith(t, b, 5, WithMetricsFile(path))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	refused := func(text []byte, why string) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, text, 0o600))
		_, err := New(WithMetricsFile(path))
		require.ErrorIs(t, err, ErrCorrupt, why)
		require.ErrorContains(t, err, path, why)
		_, err = NewBroker(WithMetricsFile(path))
		require.ErrorIs(t, err, ErrCorrupt, why)
		kept, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, kept)
	}
	step := max(len(whole)/50, 1)
	for n := 0; n < len(whole); n += step {
		refused(whole[:n], "torn")
		altered := append([]byte(nil), whole...)
		altered[n] ^= 1
		refused(altered, "altered")
	}
	refused(whole[:len(whole)-1], "its last byte is missing")
	line := []byte(`{"robust_metrics":2}`)
	refused([]byte(string(line)+"\n"+checksumLine(line)), "of another format")
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	c, err := New(WithMetricsFile(path))
	require.NoError(t, err)
	require.Equal(t, uint64(5), c.Metrics().Producer.GetStats().MessagesSent)
	require.NoError(t, c.Close())
}

func TestMetricsFileThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	_, err := New(WithMetricsFile(filepath.Join(dir, "metrics")))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, dir)
	_, err = New(WithMetricsFile(t.TempDir()))
	require.ErrorContains(t, err, "metrics file")
}

// TestMetricsFileInBetween holds that a process which is killed loses ten seconds at most, also
// of what readers have received that are still at it: that used to be kept when they ended.
func TestMetricsFileInBetween(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	synctest.Test(t, func(t *testing.T) {
		var m Metrics
		f, err := openMetricsFile(path, m.kept, newWarner(defaultConfig().logger))
		require.NoError(t, err)
		m.Producer.RecordSent(1, time.Second)
		m.Consumer.RecordReceived(1)
		m.Consumer.addReader(1, readerSource{received: func() received { return received{3, 300} }})
		time.Sleep(metricsFileInterval + time.Second) //nolint:forbidigo // of fake time
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		saved, err := parseMetricsFile(text)
		require.NoError(t, err)
		require.Equal(t, uint64(1), saved.Counters["producer.messages_sent"])
		require.Equal(t, uint64(4), saved.Counters["consumer.messages_received"])
		require.Equal(t, uint64(301), saved.Counters["consumer.bytes_received"])
		m.Consumer.removeReader(1)
		require.Equal(t, uint64(4), encoded(t, &m).Counters["consumer.messages_received"], "not twice")
		require.True(t, strings.HasSuffix(string(text), "\n"))
		require.NoError(t, f.close())
	})
}
