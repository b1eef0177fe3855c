package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
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

	for _, accept := range []string{
		"text/plain;version=0.0.4",
		"application/openmetrics-text;version=1.0.0",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
	} {
		t.Run(accept, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
			require.NoError(t, err)
			request.Header.Set("Accept", accept)
			response, err := http.DefaultClient.Do(request)
			require.NoError(t, err)
			defer response.Body.Close()
			content := response.Header.Get("Content-Type")
			text, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			types, values := parseExposition(t, text, content)
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
