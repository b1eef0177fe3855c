package robust

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff says how long to wait before a try: base, doubling with each further
// try up to limit, each 20 % more or less at random so that many clients do not
// come back in step.
type backoff struct {
	base, limit time.Duration
}

// before returns the wait before the n-th retry, from 1.
func (b backoff) before(n int) time.Duration {
	d := b.limit
	if shift := n - 1; shift < 32 && b.base<<shift>>shift == b.base {
		d = min(b.base<<shift, b.limit)
	}
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// patience bounds a wait that comes before anything is sent.
type patience struct {
	limit time.Duration
	stop  <-chan struct{} // ends it when closed; nil: never
}

// pause waits for d, or until ctx ends or done is closed; it returns false if it
// was cut short.
func pause(ctx context.Context, done <-chan struct{}, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-done:
		return false
	default:
	}
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-done:
		return false
	}
}
