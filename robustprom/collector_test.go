package robustprom

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// patience is far more than anything takes.
const patience = time.Minute

// pair is a broker that listens, and a client of it, with what serves the metrics of both.
type pair struct {
	broker *robust.Broker
	client *robust.Client
	addr   string
	url    string
	faulty *atomic.Bool // the next write fails, and with it its connection
}

// faultyConn is a connection of a pair.
type faultyConn struct {
	net.Conn

	faulty *atomic.Bool
}

func (c faultyConn) Write(b []byte) (int, error) {
	if c.faulty.CompareAndSwap(true, false) {
		c.Close()
	}
	return c.Conn.Write(b)
}

func newPair(t *testing.T, brokerOpts []robust.BrokerOption, clientOpts ...robust.Option) *pair {
	t.Helper()
	b, err := robust.NewBroker(brokerOpts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	faulty := new(atomic.Bool)
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		return faultyConn{nc, faulty}, err
	}
	silent := robust.WithLogger(slog.New(slog.DiscardHandler)) // It would tell of the faults.
	c, err := robust.New(append(clientOpts, robust.WithBrokers(addr.String()), robust.WithDialer(dial), silent)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewClientCollector(c.Metrics()), NewBrokerCollector(b))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(server.Close)
	return &pair{b, c, addr.String(), server.URL, faulty}
}

// scrape reads the metrics as Prometheus would.
func (p *pair) scrape(t testing.TB) map[string]*dto.MetricFamily {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", text)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	require.NoError(t, err)
	return families
}

// load sends, reads and commits from several goroutines, and waits for the end of it.
func (p *pair) load(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var handled atomic.Int64
	read, done := context.WithCancel(ctx)
	defer done()
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() {
		group, err := p.client.ConsumerGroup("readers", robust.WithStartOffset(robust.OffsetOldest))
		if err != nil {
			t.Error(err)
			return
		}
		defer group.Close()
		err = group.Consume(read, []string{"orders"}, robust.Each(func(context.Context, *robust.Message) error {
			if handled.Add(1) == int64(2*n) {
				done()
			}
			return nil
		}))
		if err != nil {
			t.Error(err)
		}
	})
	producer, err := p.client.AsyncProducer(robust.WithCompression(robust.CompressionSnappy))
	require.NoError(t, err)
	var failed atomic.Int64
	for i := range n {
		m := robust.NewMessage("orders", []byte(strings.Repeat("a book, ", 20)))
		m.Key = []byte(strconv.Itoa(i))
		require.NoError(t, producer.SendFunc(ctx, m, func(_ *robust.Message, _ robust.Receipt, err error) {
			if err != nil {
				failed.Add(1)
			}
		}))
	}
	require.NoError(t, producer.Flush(ctx))
	require.Zero(t, failed.Load())
	sync, err := p.client.SyncProducer()
	require.NoError(t, err)
	for range n {
		_, err := sync.Send(ctx, robust.NewMessage("orders", []byte("a lamp")))
		require.NoError(t, err)
	}
	_, err = sync.Send(ctx, robust.NewMessage("nowhere", nil))
	require.ErrorIs(t, err, robust.ErrTopicNotFound)
	running.Wait()
	require.GreaterOrEqual(t, handled.Load(), int64(2*n))
	for len(p.client.Metrics().Producer.GetStats().RetriesByReason) == 0 {
		p.faulty.Store(true)
		_, err = sync.Send(ctx, robust.NewMessage("orders", []byte("once more")))
		require.NoError(t, err)
	}
}

// TestScrape has a real server scraped while there is work, and compares what it tells when
// there is none any more with the snapshots.
func TestScrape(t *testing.T) {
	p := newPair(t, []robust.BrokerOption{robust.WithTopic("orders", 3), robust.WithTopic("empty", 1), robust.WithDataDir(t.TempDir())})
	stop := make(chan struct{})
	var scraping sync.WaitGroup
	for range 2 {
		scraping.Go(func() {
			before := make(map[string]float64)
			for {
				for series, v := range countersOf(p.scrape(t)) {
					if v < before[series] {
						t.Errorf("%s was %v and is %v", series, before[series], v)
					}
					before[series] = v
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	p.load(t, 500)
	close(stop)
	scraping.Wait()

	reader, err := p.client.PartitionConsumer("orders", 0, robust.WithStartOffset(robust.OffsetOldest))
	require.NoError(t, err)
	<-reader.Messages()
	var families map[string]*dto.MetricFamily
	var broker robust.BrokerStats
	var client robust.Stats
	require.Eventually(t, func() bool { // The reader fetches ahead, and then waits for long.
		broker, client = p.broker.Metrics(), p.client.Metrics().GetStats()
		families = p.scrape(t)
		b, c := p.broker.Metrics(), p.client.Metrics().GetStats()
		b.Time, c.Time = broker.Time, client.Time
		return fmt.Sprint(b) == fmt.Sprint(broker) && fmt.Sprint(c) == fmt.Sprint(client)
	}, patience, 10*time.Millisecond)
	checkClient(t, families, client)
	checkBroker(t, families, broker)
	require.NoError(t, reader.Close())
}

// countersOf returns all that must not fall: counters, and counts of histograms.
func countersOf(families map[string]*dto.MetricFamily) map[string]float64 {
	all := make(map[string]float64)
	for name, f := range families {
		for _, m := range f.GetMetric() {
			series := name + fmt.Sprint(m.GetLabel())
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				all[series] = m.GetCounter().GetValue()
			case dto.MetricType_HISTOGRAM:
				all[series] = float64(m.GetHistogram().GetSampleCount())
				for _, b := range m.GetHistogram().GetBucket() {
					all[fmt.Sprint(series, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			default:
			}
		}
	}
	return all
}

// found is a metric by its labels' values.
func found(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) *dto.Metric {
	t.Helper()
	f := families["robust_"+name]
	require.NotNil(t, f, name)
	require.NotEmpty(t, f.GetHelp())
	for _, m := range f.GetMetric() {
		var values []string
		for _, l := range m.GetLabel() {
			values = append(values, l.GetValue())
		}
		sort.Strings(values)
		sort.Strings(labels)
		if strings.Join(values, "\n") == strings.Join(labels, "\n") {
			return m
		}
	}
	require.Fail(t, "no series", "%s%v", name, labels)
	return nil
}

// is compares a counter or a gauge.
func is[N int | int64 | uint64](t *testing.T, families map[string]*dto.MetricFamily, want N, name string, labels ...string) {
	t.Helper()
	m := found(t, families, name, labels...)
	if strings.HasSuffix(name, "_total") {
		require.NotNil(t, m.GetCounter(), name)
		require.InDelta(t, float64(want), m.GetCounter().GetValue(), 0, name)
		return
	}
	require.NotNil(t, m.GetGauge(), name)
	require.InDelta(t, float64(want), m.GetGauge().GetValue(), 0, name)
}

// histogramIs compares a histogram with a distribution: its bounds with each value that the
// distribution tells.
func histogramIs[T ~int64](t *testing.T, families map[string]*dto.MetricFamily, want robust.Histogram[T], unit float64, name string, labels ...string) {
	t.Helper()
	h := found(t, families, name, labels...).GetHistogram()
	require.NotNil(t, h, name)
	require.Equal(t, want.Count, h.GetSampleCount(), name)
	require.InEpsilon(t, 1+float64(want.Sum)/unit, 1+h.GetSampleSum(), 1e-9, name)
	buckets := h.GetBucket()
	require.Greater(t, len(buckets), 5, name)
	for _, b := range buckets {
		bound := b.GetUpperBound() * unit
		var least, most uint64 // below the bound for sure, and at most
		for v, n := range want.Buckets() {
			if float64(v) <= bound {
				least = n
			}
			if float64(v) <= bound*(1+1.0/31) {
				most = n
			}
		}
		require.GreaterOrEqual(t, b.GetCumulativeCount(), least, "%s le=%v", name, b.GetUpperBound())
		require.LessOrEqual(t, b.GetCumulativeCount(), most, "%s le=%v", name, b.GetUpperBound())
	}
	require.Equal(t, want.Count, buckets[len(buckets)-1].GetCumulativeCount(), "%s has nothing above its bounds", name)
}

func checkClient(t *testing.T, f map[string]*dto.MetricFamily, s robust.Stats) {
	t.Helper()
	const second = float64(time.Second)
	require.GreaterOrEqual(t, s.Producer.MessagesSent, uint64(1000))
	is(t, f, s.Producer.MessagesSent, "producer_messages_sent_total")
	require.Positive(t, s.Producer.MessagesFailed)
	is(t, f, s.Producer.MessagesFailed, "producer_messages_failed_total")
	is(t, f, s.Producer.BytesSent, "producer_sent_bytes_total")
	require.NotEmpty(t, s.Producer.RetriesByReason)
	for reason, n := range s.Producer.RetriesByReason {
		is(t, f, n, "producer_retries_total", reason)
	}
	histogramIs(t, f, s.Producer.Latency, second, "producer_send_duration_seconds")
	histogramIs(t, f, s.Producer.BatchMessages, 1, "producer_batch_messages")
	histogramIs(t, f, s.Producer.BatchBytes, 1, "producer_batch_bytes")
	require.Greater(t, s.Producer.PlainBytes, s.Producer.EncodedBytes)
	is(t, f, s.Producer.PlainBytes, "producer_batch_plain_bytes_total")
	is(t, f, s.Producer.EncodedBytes, "producer_batch_encoded_bytes_total")
	is(t, f, s.Producer.BufferedBytes, "producer_buffered_bytes")

	require.Positive(t, s.Consumer.CommitCount)
	is(t, f, s.Consumer.MessagesReceived, "consumer_messages_received_total")
	is(t, f, s.Consumer.BytesReceived, "consumer_received_bytes_total")
	is(t, f, s.Consumer.CommitCount, "consumer_commits_total")
	is(t, f, s.Consumer.CommitErrors, "consumer_commit_errors_total")
	is(t, f, s.Consumer.Rebalances, "consumer_rebalances_total")
	is(t, f, s.Consumer.ErrorsDropped, "consumer_errors_dropped_total")
	histogramIs(t, f, s.Consumer.FetchLatency, second, "consumer_fetch_duration_seconds")
	histogramIs(t, f, s.Consumer.FetchBytes, 1, "consumer_fetch_bytes")
	histogramIs(t, f, s.Consumer.CommitLatency, second, "consumer_commit_duration_seconds")
	histogramIs(t, f, s.Consumer.RebalanceLatency, second, "consumer_rebalance_duration_seconds")
	require.Positive(t, s.Consumer.BufferedBytes)
	is(t, f, s.Consumer.BufferedBytes, "consumer_buffered_bytes")
	require.Len(t, s.Consumer.Lag, 1)
	for tp, lag := range s.Consumer.Lag {
		require.Positive(t, lag)
		is(t, f, lag, "consumer_lag_messages", tp.Topic, strconv.Itoa(int(tp.Partition)))
		is(t, f, lag, "consumer_total_lag_messages")
		is(t, f, lag, "consumer_topic_lag_messages", tp.Topic)
		is(t, f, lag, "consumer_topic_max_lag_messages", tp.Topic)
		is(t, f, 1, "consumer_topic_partitions", tp.Topic)
	}
	is(t, f, 0, "consumer_lag_left_out")

	require.Positive(t, s.Connection.ActiveConnections)
	is(t, f, s.Connection.ActiveConnections, "client_open_connections")
	is(t, f, s.Connection.TotalConnections, "client_connections_total")
	is(t, f, s.Connection.FailedConnections, "client_failed_connections_total")
	is(t, f, s.Connection.Reconnections, "client_reconnections_total")
	histogramIs(t, f, s.Connection.ConnectLatency, second, "client_connect_duration_seconds")
	is(t, f, s.Connection.BytesReceived, "client_received_bytes_total")
	is(t, f, s.Connection.BytesSent, "client_sent_bytes_total")
}

func checkBroker(t *testing.T, f map[string]*dto.MetricFamily, s robust.BrokerStats) {
	t.Helper()
	require.Contains(t, s.Requests, "ProduceBatch")
	require.Len(t, f["robust_broker_request_duration_seconds"].GetMetric(), len(s.Requests))
	for name, r := range s.Requests {
		histogramIs(t, f, r.Latency, float64(time.Second), "broker_request_duration_seconds", name)
		is(t, f, r.Failed, "broker_failed_requests_total", name)
	}
	require.Positive(t, s.Requests["Metadata"].Failed)
	is(t, f, s.ActiveConnections, "broker_open_connections")
	is(t, f, s.TotalConnections, "broker_connections_total")
	is(t, f, s.RefusedConnections, "broker_refused_connections_total")
	is(t, f, s.BytesReceived, "broker_received_bytes_total")
	is(t, f, s.BytesSent, "broker_sent_bytes_total")
	require.GreaterOrEqual(t, s.MessagesStored, uint64(1000))
	is(t, f, s.MessagesStored, "broker_messages_stored_total")
	is(t, f, s.MessagesFailed, "broker_messages_failed_total")
	is(t, f, s.MessagesRepeated, "broker_messages_repeated_total")
	is(t, f, s.BytesStored, "broker_stored_bytes_total")
	histogramIs(t, f, s.AppendMessages, 1, "broker_append_messages")
	histogramIs(t, f, s.AppendBytes, 1, "broker_append_bytes")
	is(t, f, s.MessagesFetched, "broker_messages_fetched_total")
	is(t, f, s.BytesFetched, "broker_fetched_bytes_total")
	is(t, f, 2, "broker_topics")
	is(t, f, 4, "broker_partitions")
	is(t, f, 1, "broker_groups")
	is(t, f, s.Members, "broker_members")
	is(t, f, s.LogBytes, "broker_log_bytes")
	is(t, f, s.Segments, "broker_log_segments")
	require.Len(t, s.ByTopic, 2)
	for name, topic := range s.ByTopic {
		is(t, f, topic.Partitions, "broker_topic_partitions", name)
		is(t, f, topic.Messages, "broker_topic_messages", name)
		is(t, f, topic.Bytes, "broker_topic_log_bytes", name)
		is(t, f, topic.Segments, "broker_topic_log_segments", name)
	}
	require.Contains(t, s.ByGroup, "readers")
	for id, group := range s.ByGroup {
		is(t, f, group.Members, "broker_group_members", id)
		is(t, f, group.Partitions, "broker_group_partitions", id)
		is(t, f, group.Lag, "broker_group_lag_messages", id)
		is(t, f, group.MaxLag, "broker_group_max_lag_messages", id)
	}
	is(t, f, s.LeftOut, "broker_left_out")
}

// series counts those of some families, as Prometheus does.
func series(families map[string]*dto.MetricFamily, prefix string) (n int) {
	for name, f := range families {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); h != nil {
				n += len(h.GetBucket()) + 2
			} else {
				n++
			}
		}
	}
	return n
}

// TestSeriesAreBounded holds what docs/metrics.md says of their number, with many topics,
// groups and partitions.
func TestSeriesAreBounded(t *testing.T) {
	const limit = 5
	opts := []robust.BrokerOption{robust.WithMaxSeries(limit)}
	for i := range 30 {
		opts = append(opts, robust.WithTopic(fmt.Sprint("topic", i), 3))
	}
	p := newPair(t, opts, robust.WithMaxSeries(limit))
	few := p.scrape(t)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.addr)
	require.NoError(t, err)
	defer nc.Close()
	answers := bufio.NewScanner(nc)
	for i := range 30 {
		topic := fmt.Sprint("topic", i)
		for partition := range int32(3) {
			p.client.Metrics().Consumer.UpdateLag(topic, partition, int64(i))
			_, err := fmt.Fprintf(nc, `{"request_id":"1","request_type":9,"payload":{"group_id":"group%d","offsets":[{"topic":%q,"partition":%d,"offset":0}]}}`+"\n", i, topic, partition)
			require.NoError(t, err)
			require.True(t, answers.Scan())
			require.Contains(t, answers.Text(), `"success":true`)
		}
	}
	many := p.scrape(t)
	require.Len(t, many["robust_broker_topic_messages"].GetMetric(), limit)
	require.Len(t, many["robust_broker_group_lag_messages"].GetMetric(), limit)
	require.Len(t, many["robust_consumer_lag_messages"].GetMetric(), limit)
	is(t, many, 25+25, "broker_left_out")
	is(t, many, 85+25, "consumer_lag_left_out")
	kinds := len(many["robust_broker_request_duration_seconds"].GetMetric())
	require.Positive(t, kinds)
	require.LessOrEqual(t, series(many, "robust_broker_"), 8*limit+100+25*kinds)
	clients := series(many, "robust_producer_") + series(many, "robust_consumer_") + series(many, "robust_client_")
	require.LessOrEqual(t, clients, 4*limit+300)
	require.LessOrEqual(t, clients-4*limit, series(few, "robust_producer_")+series(few, "robust_consumer_")+series(few, "robust_client_"))
}

// TestNamesOfAnyBytes: a name that is no text had Prometheus refuse everything.
func TestNamesOfAnyBytes(t *testing.T) {
	var m robust.Metrics
	m.Consumer.UpdateLag("\xff", 0, 1)
	m.Consumer.UpdateLag("\xfe", 0, 2)
	m.Consumer.UpdateLag("größe \"\\\n", 0, 3)
	m.Consumer.UpdateLag(`"\xff"`, 0, 4) // It looked like what the first is quoted to, and two of a name are refused.
	require.NoError(t, testutil.CollectAndCompare(NewClientCollector(&m), strings.NewReader(`# HELP robust_consumer_topic_lag_messages Lag of all partitions of a topic that are being read.
# TYPE robust_consumer_topic_lag_messages gauge
robust_consumer_topic_lag_messages{topic="\"\\xfe\""} 2
robust_consumer_topic_lag_messages{topic="\"\\xff\""} 1
robust_consumer_topic_lag_messages{topic="\"\\\"\\\\xff\\\"\""} 4
robust_consumer_topic_lag_messages{topic="größe \"\\\n"} 3
`), "robust_consumer_topic_lag_messages"))
}

// TestSumsDoNotFall: latencies of many at once add up fast, those of a thousand fetches that are
// held to the 292 years of a time.Duration in four months. Sums then went from the largest to
// the least number that there is, and rates with them.
func TestSumsDoNotFall(t *testing.T) {
	var m robust.Metrics
	collector := NewClientCollector(&m)
	before := 0.0
	for n := 1; n <= 3; n++ {
		m.Producer.RecordSent(1, time.Duration(1<<62))
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(collector)
		families, err := registry.Gather()
		require.NoError(t, err)
		i := slices.IndexFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "robust_producer_send_duration_seconds" })
		sum := families[i].GetMetric()[0].GetHistogram().GetSampleSum()
		require.InEpsilon(t, float64(n)*time.Duration(1<<62).Seconds(), sum, 1e-9)
		require.Greater(t, sum, before)
		before = sum
	}
}

// TestUsualReasons: the rate of a counter that begins with 1 does not have that.
func TestUsualReasons(t *testing.T) {
	require.NoError(t, testutil.CollectAndCompare(NewClientCollector(new(robust.Metrics)), strings.NewReader(`# HELP robust_producer_retries_total Tries after the first, of a message or a batch, by why there was one.
# TYPE robust_producer_retries_total counter
robust_producer_retries_total{reason="connection"} 0
robust_producer_retries_total{reason="no_answer"} 0
`), "robust_producer_retries_total"))
}

// described are the names that a collector has, with their labels, as in {topic,partition}.
func described(t *testing.T, c prometheus.Collector) map[string]string {
	t.Helper()
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		c.Describe(descs)
	}()
	form := regexp.MustCompile(`fqName: "([^"]+)".*variableLabels: \{([^}]*)\}`)
	names := make(map[string]string)
	for d := range descs {
		match := form.FindStringSubmatch(d.String())
		require.NotNil(t, match, d.String())
		require.NotContains(t, names, match[1])
		names[match[1]] = match[2]
	}
	return names
}

// TestNamesAreDocumented compares docs/metrics.md with what is exported: names, labels and kinds.
func TestNamesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	want, kinds := make(map[string]string), make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `[^`]+` \\| `([^`{]+)(?:\\{([^`]*)\\})?` \\| (\\w+) \\|").FindAllStringSubmatch(string(text), -1) {
		want[row[1]], kinds[row[1]] = row[2], row[3]
	}
	require.Greater(t, len(want), 50)

	p := newPair(t, []robust.BrokerOption{robust.WithTopic("orders", 1)})
	got := described(t, NewClientCollector(p.client.Metrics()))
	for name, labels := range described(t, NewBrokerCollector(p.broker)) {
		require.NotContains(t, got, name)
		got[name] = labels
	}
	require.Equal(t, want, got)

	p.load(t, 10)
	p.client.Metrics().Consumer.UpdateLag("orders", 0, 1)
	families := p.scrape(t)
	require.ElementsMatch(t, slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(families)))
	for name, f := range families {
		kind := map[dto.MetricType]string{
			dto.MetricType_COUNTER: "counter", dto.MetricType_GAUGE: "gauge", dto.MetricType_HISTOGRAM: "distribution",
		}[f.GetType()]
		require.Equal(t, kinds[name], kind, name)
		// OpenMetrics knows counters by their names without _total.
		if base, ok := strings.CutSuffix(name, "_total"); ok {
			require.NotContains(t, families, base)
		}
	}
}

func TestNamesAreAsPrometheusWantsThem(t *testing.T) {
	p := newPair(t, []robust.BrokerOption{robust.WithTopic("orders", 1)})
	p.load(t, 10)
	p.client.Metrics().Consumer.UpdateLag("orders", 0, 1)
	for _, c := range []prometheus.Collector{NewClientCollector(p.client.Metrics()), NewBrokerCollector(p.broker)} {
		problems, err := testutil.CollectAndLint(c)
		require.NoError(t, err)
		require.Empty(t, problems)
	}
}

// TestCollectOfClosed holds that who scrapes does not have to know what has ended.
func TestCollectOfClosed(t *testing.T) {
	b, err := robust.NewBroker(robust.WithTopic("orders", 1))
	require.NoError(t, err)
	c, err := b.Client()
	require.NoError(t, err)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewClientCollector(c.Metrics()), NewBrokerCollector(b))
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
	families, err := registry.Gather()
	require.NoError(t, err)
	require.NotEmpty(t, families)
}

// TestSeveralClients holds that the collectors of two clients go into one registry, with a
// label each.
func TestSeveralClients(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	for i, name := range []string{"orders", "payments"} {
		var m robust.Metrics
		for range i + 1 {
			m.Producer.RecordFailed()
		}
		prometheus.WrapRegistererWith(prometheus.Labels{"client": name}, registry).MustRegister(NewClientCollector(&m))
	}
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`# HELP robust_producer_messages_failed_total Messages that were reported to the application as failed.
# TYPE robust_producer_messages_failed_total counter
robust_producer_messages_failed_total{client="orders"} 1
robust_producer_messages_failed_total{client="payments"} 2
`), "robust_producer_messages_failed_total"))
}
