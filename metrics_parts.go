package robust

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// grown is by how much a counter has grown; 0 if it is another one, which began anew.
func grown(now, earlier uint64) uint64 { return now - min(now, earlier) }

func grownByKey[K comparable](now, earlier map[K]uint64) map[K]uint64 {
	d := make(map[K]uint64)
	for k, n := range now {
		if n = grown(n, earlier[k]); n > 0 {
			d[k] = n
		}
	}
	return d
}

// keepLargest takes the smallest values out of a map that has more than limit of them, and
// returns how many that were. Of equal ones the first by name stay, so that as long as things
// stand alike the same are named.
func keepLargest[K comparable, V any](all map[K]V, limit int, compare func(a, b V) int, byName func(a, b K) int) (left int) {
	if len(all) <= limit {
		return 0
	}
	keys := slices.SortedFunc(maps.Keys(all), func(a, b K) int { return cmp.Or(compare(all[b], all[a]), byName(a, b)) })
	for _, k := range keys[limit:] {
		delete(all, k)
	}
	return len(keys) - limit
}

// gauges are values that are asked for when a snapshot is taken.
type gauges struct {
	mu  sync.Mutex // guards the following
	all map[any]func() int64
}

// set adds a value under a key of its own, or takes it out if it is nil.
func (g *gauges) set(key any, value func() int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if value == nil {
		delete(g.all, key)
		return
	}
	if g.all == nil {
		g.all = make(map[any]func() int64)
	}
	g.all[key] = value
}

// sum asks without the lock: whoever has a value takes its own.
func (g *gauges) sum() (total int64) {
	g.mu.Lock()
	all := slices.Collect(maps.Values(g.all))
	g.mu.Unlock()
	for _, value := range all {
		total += value()
	}
	return total
}

// byteCounters count what goes over connections. A nil one counts nothing.
type byteCounters struct{ in, out atomic.Uint64 }

func (c *byteCounters) read(n int) {
	if c != nil {
		c.in.Add(uint64(n))
	}
}

func (c *byteCounters) wrote(n int) {
	if c != nil {
		c.out.Add(uint64(n))
	}
}

// Reasons of retries beside the codes of brokers, whose reasons are numbered as in errorCodes.
const (
	reasonInternal = iota
	reasonConnection
	reasonNoAnswer
	reasonCodes
	maxReasons = 32
)

// reasonOf is why something is tried again that has failed with err.
func reasonOf(err error) int {
	if connectionFault(err) {
		if ce := (*ConnError)(nil); errors.As(err, &ce) && ce.Op == "wait" {
			return reasonNoAnswer
		}
		return reasonConnection
	}
	code := codeOf(err)
	for i := range errorCodes {
		if errorCodes[i].code == code {
			return reasonCodes + i
		}
	}
	return reasonInternal
}

// reasonName is the name of a reason; "" if there is none of that number.
func reasonName(i int) string {
	switch {
	case i == reasonInternal:
		return strings.ToLower(string(codeInternal))
	case i == reasonConnection:
		return "connection"
	case i == reasonNoAnswer:
		return "no_answer"
	case i < reasonCodes+len(errorCodes):
		return strings.ToLower(string(errorCodes[i-reasonCodes].code))
	default:
		return ""
	}
}

// jsonOf is the JSON of a snapshot, in which nothing can fail.
func jsonOf(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "{}"
	}
	return string(text)
}
