package robust

import (
	"log/slog"
	"sync"
	"time"
)

// warnInterval is how often one kind of failure is logged at most.
const warnInterval = 30 * time.Second

// warner logs failures: the first of each kind at once, so that none is silent,
// and then one every warnInterval with the number of those between.
type warner struct {
	log *slog.Logger

	mu    sync.Mutex // guards the following
	kinds map[string]*warnedKind
}

type warnedKind struct {
	last       time.Time
	suppressed int
}

func newWarner(log *slog.Logger) *warner {
	return &warner{log: log, kinds: make(map[string]*warnedKind)}
}

// warn logs a failure of the given kind and subject: a broker, a partition.
func (w *warner) warn(kind, subject string, args ...any) {
	const maxKinds = 1000
	now := time.Now()
	w.mu.Lock()
	key := kind + "\x00" + subject
	k := w.kinds[key]
	switch {
	case k == nil:
		if len(w.kinds) >= maxKinds {
			// Forgetting them all costs a few lines of log, a table that
			// grows with every subject there ever was costs memory.
			clear(w.kinds)
		}
		k = &warnedKind{}
		w.kinds[key] = k
	case now.Sub(k.last) < warnInterval:
		k.suppressed++
		w.mu.Unlock()
		return
	}
	suppressed := k.suppressed
	k.last, k.suppressed = now, 0
	w.mu.Unlock()
	if suppressed > 0 {
		args = append(args, "suppressed", suppressed)
	}
	w.log.Warn("robust: "+kind, args...)
}
