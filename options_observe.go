package robust

// WithHooks sets functions that are told what a client or a broker does (default: none).
// Given more than once, all are told, in order.
func WithHooks(h Hooks) SharedOption {
	return sharedOption(func(c *sharedConfig) { c.hooks = c.hooks.with(h) })
}

// WithMaxSeries bounds how many partitions, and how many topics and groups, a snapshot of
// metrics names (default 1000): of more, those with the largest lag or log.
func WithMaxSeries(n int) SharedOption {
	return sharedOption(func(c *sharedConfig) { c.maxSeries = n })
}

// WithMetricsFile has counters and distributions go on after a restart where they ended
// (default "": they begin anew). They are read from the file, which is made if it is not
// there, and written to it every 10 s and when the client or the broker is closed. A file
// serves one of them at a time: another fails with [ErrMetricsFileInUse], which names the
// holder, unless the system cannot lock files (Windows). The lock is of a file beside it, whose
// name ends with .lock. A file that is damaged is refused with [ErrCorrupt].
//
// What has come after the last writing is lost with a process that is killed: counters then go
// on below where they were, which Prometheus takes for counters that begin at 0. Where that
// scrapes, leave the file out.
func WithMetricsFile(path string) SharedOption {
	return sharedOption(func(c *sharedConfig) { c.metricsFile = path })
}
