package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// scrape reads what a server tells Prometheus, as Prometheus does.
func scrape(t *testing.T, addr string) map[string]*dto.MetricFamily {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/metrics", nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, response.StatusCode, "%s", text)
	require.Equal(t, expfmt.TypeTextPlain, expfmt.ResponseFormat(response.Header).FormatType())
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	require.NoError(t, err)
	return families
}

// value is that of a counter or a gauge, or the count of a histogram; of the series with this
// label, if one is given.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, label ...string) float64 {
	t.Helper()
	require.Contains(t, families, name)
	for _, m := range families[name].GetMetric() {
		if len(label) == 0 || m.GetLabel()[0].GetValue() == label[0] {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	require.Fail(t, "no series", "%s%v", name, label)
	return 0
}

// TestServeMetrics scrapes a server before and after it was worked with.
func TestServeMetrics(t *testing.T) {
	t.Parallel()
	s := serve(t, "--http", "127.0.0.1:0", "--topic", "orders:2", "--data", t.TempDir())
	before := scrape(t, s.http)
	require.Zero(t, value(t, before, "robust_broker_messages_stored_total"))
	require.InDelta(t, 1, value(t, before, "robust_broker_topics"), 0)
	require.NotContains(t, before, "robust_client_open_connections", "what looks after the broker is no client of it")

	succeed(t, s.addr, numbers(1000), "produce", "orders", "-p", "1")
	require.Equal(t, numbers(1000), succeed(t, s.addr, "", "consume", "orders", "--to", "end", "-g", "readers"))
	require.NotZero(t, robustWith(t, s.addr, "x\n", "produce", "nowhere").code)
	after := scrape(t, s.http)
	require.InDelta(t, 1000, value(t, after, "robust_broker_messages_stored_total"), 0)
	require.GreaterOrEqual(t, value(t, after, "robust_broker_messages_fetched_total"), 1000.0)
	require.InDelta(t, 1000, value(t, after, "robust_broker_topic_messages", "orders"), 0)
	require.Positive(t, value(t, after, "robust_broker_topic_log_bytes", "orders"))
	require.Positive(t, value(t, after, "robust_broker_request_duration_seconds", "ProduceBatch"))
	require.Positive(t, value(t, after, "robust_broker_failed_requests_total", "Metadata"))
	require.Zero(t, value(t, after, "robust_broker_group_lag_messages", "readers"))
	require.Positive(t, value(t, after, "robust_broker_received_bytes_total"))

	took := float64(time.Since(time.Unix(int64(value(t, after, "process_start_time_seconds")), 0)).Seconds())
	require.Less(t, took, patience.Seconds())
	require.Positive(t, value(t, after, "go_goroutines"))
	require.Contains(t, after, "go_build_info")
	for name, f := range after {
		require.NotEmpty(t, f.GetHelp(), name)
		require.Regexp(t, `^(robust_broker|go|process|promhttp)_`, name, fmt.Sprint(f.GetType()))
	}
}

// TestTopOfServer: top shows what a real server's metrics tell, once and live.
func TestTopOfServer(t *testing.T) {
	t.Parallel()
	s := serve(t, "--http", "127.0.0.1:0", "--topic", "orders:2", "--data", t.TempDir())
	succeed(t, s.addr, numbers(1000), "produce", "orders")
	var v topView
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "top", "-i", "100ms", "-o", "json", "--metrics", s.http)), &v))
	require.Empty(t, v.Missing)
	require.NotNil(t, v.Server)
	require.EqualValues(t, 1, v.Server.Connections, "top's own")
	require.InDelta(t, value(t, scrape(t, s.http), "robust_broker_log_bytes"), v.Server.LogBytes, 0)
	require.Greater(t, v.Server.LogBytes, int64(1000))
	require.NotNil(t, v.Server.BytesRate)
	require.Zero(t, *v.Server.BytesRate)

	// Bytes are stored while it looks.
	r := start(t, s.addr, "bench", "latency", "--topic", "orders", "-n", "1000000")
	storedIn(t, s.addr, "orders", 1500)
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "top", "-o", "json", "--metrics", "http://"+s.http+"/metrics")), &v))
	require.Positive(t, *v.Server.BytesRate)
	require.GreaterOrEqual(t, v.Server.Connections, int64(2))
	require.Contains(t, succeed(t, s.addr, "", "top", "-i", "100ms", "--metrics", s.http), " connections, ")
	r.interrupt(t)
	require.Equal(t, exitInterrupted, r.wait(t).code)
}
