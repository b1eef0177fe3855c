// Package robustprom has Prometheus read what a client or a broker of package robust
// measures:
//
//	prometheus.MustRegister(robustprom.NewClientCollector(client.Metrics()))
//	http.Handle("/metrics", promhttp.Handler())
//
// Where a process has several clients, each gets a label of its own, since a registry takes
// a name only once:
//
//	orders := prometheus.WrapRegistererWith(prometheus.Labels{"client": "orders"}, prometheus.DefaultRegisterer)
//	orders.MustRegister(robustprom.NewClientCollector(client.Metrics()))
//
// All names are in docs/metrics.md of the repository, beside those that the snapshots of
// package robust have for the same. dashboard.json, beside this file, is a Grafana dashboard
// that uses them.
//
// # Distributions
//
// Latencies and sizes are classic histograms with fixed bounds, which every Prometheus reads,
// in text as well, and which add up over processes. Native ones would be finer, but have to be
// turned on in the server and do not go into text. What package robust counts has buckets of
// 1/32 of a power of two, which need not end where a bound is: a value that is above a bound by
// less than 1/32 may be counted as not above it. One that is not above it always is, and counts
// and sums are exact.
//
// # Restarts
//
// [robust.WithMetricsFile] is not for what Prometheus scrapes, which takes a counter that falls for
// one that began anew at 0. After a kill, counters from the file go on a little below where
// they were scraped last, and rates would show once all that was ever counted.
//
// # Series
//
// How many series there are is bounded, whatever peers do. What is named by topic, partition or
// group is as much as [robust.WithMaxSeries] says, the largest first; with N, a client has at
// most 4 N of these series and a broker 8 N. All else comes to less than 300 series for a client,
// and for a broker to 100, and 25 for each of the 27 kinds of requests that it has answered.
package robustprom
