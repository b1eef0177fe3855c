package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustprom"
)

// TestExposition has Prometheus' scraper read what a server tells, in each form that it may
// ask for; and holds that the histograms are there as what the dashboard takes them for.
func TestExposition(t *testing.T) {
	b, err := robust.NewBroker(robust.WithTopic("orders", 2))
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for range 10 {
		_, err = p.Send(t.Context(), robust.NewMessage("orders", []byte("two books")))
		require.NoError(t, err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(robustprom.NewClientCollector(c.Metrics()), robustprom.NewBrokerCollector(b))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	defer server.Close()

	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			types, values := scrape(t, server.URL, form, form)
			for name, kind := range types {
				require.Equal(t, isHistogram(name), kind == model.MetricTypeHistogram, "%s is a %s", name, kind)
			}
			require.InDelta(t, 10, values[`{__name__="robust_producer_messages_sent_total"}`], 0)
			require.InDelta(t, 10, values[`{__name__="robust_producer_send_duration_seconds_bucket", le="60.0"}`], 0)
			require.InDelta(t, 10, values[`{__name__="robust_broker_append_messages_sum"}`], 0)
			require.InDelta(t, 2, values[`{__name__="robust_broker_topic_partitions", topic="orders"}`], 0)
		})
	}
}

// TestServeExposition has Prometheus' scraper read what robust serve tells.
func TestServeExposition(t *testing.T) {
	unixOnly(t)
	s := serve(t, []string{"ROBUST_DATA=" + t.TempDir(), "ROBUST_HTTP=127.0.0.1:0"}, theImage(t).program, "serve")
	line, err := s.out.ReadString('\n')
	require.NoError(t, err)
	addr, found := strings.CutPrefix(strings.TrimSpace(line), "http on ")
	require.True(t, found, line)
	c, err := robust.New(robust.WithBrokers(s.addr))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Admin().CreateTopic(t.Context(), "orders", 3, nil))
	p, err := c.SyncProducer()
	require.NoError(t, err)
	_, err = p.Send(t.Context(), robust.NewMessage("orders", []byte("two books")))
	require.NoError(t, err)

	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			answer := form
			if form == openMetrics { // Its names would clash there.
				answer = plainText
			}
			types, values := scrape(t, "http://"+addr+"/metrics", form, answer)
			require.Equal(t, model.MetricTypeHistogram, types["robust_broker_request_duration_seconds"])
			require.Equal(t, model.MetricTypeGauge, types["go_goroutines"])
			require.InDelta(t, 1, values[`{__name__="robust_broker_messages_stored_total"}`], 0)
			require.InDelta(t, 3, values[`{__name__="robust_broker_topic_partitions", topic="orders"}`], 0)
			require.InDelta(t, 1, values[`{__name__="robust_broker_request_duration_seconds_bucket", le="+Inf", request="ProduceBatch"}`], 0)
		})
	}
}

// The forms that Prometheus asks for.
const (
	plainText   = "text/plain;version=0.0.4"
	openMetrics = "application/openmetrics-text;version=1.0.0"
	protocol    = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)

var forms = []string{plainText, openMetrics, protocol}

// scrape returns what parseExposition does of a page that is asked for in one form and answered
// in another.
func scrape(t *testing.T, url, form, answer string) (map[string]model.MetricType, map[string]float64) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	request.Header.Set("Accept", form)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	content := response.Header.Get("Content-Type")
	kind, _, _ := strings.Cut(answer, ";")
	require.True(t, strings.HasPrefix(content, kind), content)
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return parseExposition(t, text, content)
}

// parseExposition returns the types of metrics, and the values of their series.
func parseExposition(t *testing.T, text []byte, content string) (map[string]model.MetricType, map[string]float64) {
	t.Helper()
	types, values := make(map[string]model.MetricType), make(map[string]float64)
	p, err := textparse.New(text, content, labels.NewSymbolTable(), textparse.ParserOptions{KeepClassicOnClassicAndNativeHistograms: true})
	require.NoError(t, err)
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return types, values
		}
		require.NoError(t, err)
		switch entry {
		case textparse.EntryType:
			name, kind := p.Type()
			require.NotContains(t, types, string(name))
			types[string(name)] = kind
		case textparse.EntrySeries:
			_, _, v := p.Series()
			var l labels.Labels
			p.Labels(&l)
			values[l.String()] = v
		default:
		}
	}
}
