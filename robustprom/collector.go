package robustprom

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	robust "github.com/aminofox/robust-go-sdk"
)

// Collector is a [prometheus.Collector] of a client or a broker. It keeps nothing: each scrape
// takes a snapshot. Its methods may be called concurrently.
type Collector struct {
	descs   []*prometheus.Desc
	collect func(chan<- prometheus.Metric)
}

// NewClientCollector returns a collector of what a client measures, [robust.Client.Metrics].
func NewClientCollector(m *robust.Metrics) *Collector {
	return newCollector(m.GetStats, clientFamilies())
}

// NewBrokerCollector returns a collector of what a broker measures and has, [robust.Broker.Metrics].
// A scrape looks at each of its partitions and committed offsets, which takes about a
// microsecond for each. A broker that was closed can be collected still.
func NewBrokerCollector(b *robust.Broker) *Collector {
	return newCollector(b.Metrics, brokerFamilies())
}

// Describe is as [prometheus.Collector] wants it.
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		to <- d
	}
}

// Collect is as [prometheus.Collector] wants it.
func (c *Collector) Collect(to chan<- prometheus.Metric) { c.collect(to) }

// newCollector returns a collector of families, each of which has its values from the same
// snapshot.
func newCollector[S any](snapshot func() S, families []family[S]) *Collector {
	c := &Collector{collect: func(to chan<- prometheus.Metric) {
		s := snapshot()
		for _, f := range families {
			f.send(&s, sink{f.desc, to})
		}
	}}
	for _, f := range families {
		c.descs = append(c.descs, f.desc)
	}
	return c
}

// family is all series of one name, which send takes out of a snapshot.
type family[S any] struct {
	desc *prometheus.Desc
	send func(*S, sink)
}

func newFamily[S any](name, help string, labels []string, send func(*S, sink)) family[S] {
	return family[S]{prometheus.NewDesc("robust_"+name, help, labels, nil), send}
}

func counter[S any](name, help string, value func(*S) uint64) family[S] {
	return newFamily(name, help, nil, func(s *S, to sink) { to.counter(value(s)) })
}

func gauge[S any, N int | int64](name, help string, value func(*S) N) family[S] {
	return newFamily(name, help, nil, func(s *S, to sink) { to.gauge(int64(value(s))) })
}

func seconds[S any](name, help string, value func(*S) robust.Histogram[time.Duration]) family[S] {
	return newFamily(name, help, nil, func(s *S, to sink) { to.seconds(value(s)) })
}

func messages[S any](name, help string, value func(*S) robust.Histogram[int64]) family[S] {
	return newFamily(name, help, nil, func(s *S, to sink) { to.distribution(value(s), messageBounds) })
}

func bytes[S any](name, help string, value func(*S) robust.Histogram[int64]) family[S] {
	return newFamily(name, help, nil, func(s *S, to sink) { to.distribution(value(s), byteBounds) })
}

// counters is a counter for each key of a map, named by label.
func counters[S, V any](name, help, label string, all func(*S) map[string]V, value func(V) uint64) family[S] {
	return newFamily(name, help, []string{label}, func(s *S, to sink) {
		for key, v := range all(s) {
			to.counter(value(v), key)
		}
	})
}

// gauges is a gauge for each key of a map, named by label.
func gauges[S, V any, N int | int64](name, help, label string, all func(*S) map[string]V, value func(V) N) family[S] {
	return newFamily(name, help, []string{label}, func(s *S, to sink) {
		for key, v := range all(s) {
			to.gauge(int64(value(v)), key)
		}
	})
}

// sink takes the series of a family.
type sink struct {
	desc *prometheus.Desc
	to   chan<- prometheus.Metric
}

func (s sink) counter(v uint64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(s.desc, prometheus.CounterValue, float64(v), sound(labels)...)
}

func (s sink) gauge(v int64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(s.desc, prometheus.GaugeValue, float64(v), sound(labels)...)
}

func (s sink) seconds(h robust.Histogram[time.Duration], labels ...string) {
	buckets := make(map[float64]uint64, len(latencyBounds))
	for _, bound := range latencyBounds {
		buckets[bound.Seconds()] = h.CountUpTo(bound)
	}
	s.to <- prometheus.MustNewConstHistogram(s.desc, h.Count, sumOf(h)/float64(time.Second), buckets, sound(labels)...)
}

func (s sink) distribution(h robust.Histogram[int64], bounds []int64) {
	buckets := make(map[float64]uint64, len(bounds))
	for _, bound := range bounds {
		buckets[float64(bound)] = h.CountUpTo(bound)
	}
	s.to <- prometheus.MustNewConstHistogram(s.desc, h.Count, sumOf(h), buckets)
}

// sumOf is modulo 2^64, as [robust.Histogram] has it: Prometheus takes a counter that begins
// anew for what it is.
func sumOf[T ~int64](h robust.Histogram[T]) float64 { return float64(uint64(h.Sum)) }

// sound quotes what is no text, and what could be taken for a quoted one: Prometheus would
// refuse the whole scrape for it, or for two series of one name.
func sound(labels []string) []string {
	for i, l := range labels {
		if !utf8.ValidString(l) || strings.HasPrefix(l, `"`) {
			labels[i] = strconv.QuoteToASCII(l)
		}
	}
	return labels
}

// The bounds of classic histograms. Below the first there is nothing to tell apart, above the
// last something is wrong in any case.
//
//nolint:gochecknoglobals // constants in all but syntax
var (
	latencyBounds = []time.Duration{
		10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond,
		100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
		time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
		10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
		100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second,
		10 * time.Second, 30 * time.Second, time.Minute,
	}
	messageBounds = []int64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000}
	byteBounds    = []int64{1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24}
)
