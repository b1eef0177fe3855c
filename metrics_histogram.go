package robust

import (
	"encoding/json"
	"iter"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// Values are counted in buckets: one for each value below 2*subBuckets, and subBuckets for
// each power of two from there on. So a bucket is at most 1/subBuckets of its values wide,
// and its middle differs from any of them by at most half of that.
const (
	subBits    = 5
	subBuckets = 1 << subBits
	// maxMeasured is what the buckets reach to; one more has all that is not below it. In
	// nanoseconds it is 18 minutes.
	maxMeasured = 1 << 40
	bucketCount = (40-subBits+1)*subBuckets + 1
)

// histogram counts durations or sizes. The zero value is ready for use, and all methods may
// be called concurrently. What is counted mostly lies within a few powers of two: the buckets
// of each are made with its first value, and no other update allocates.
type histogram[T ~int64] struct {
	sum     atomic.Int64
	longest atomic.Int64
	octaves [bucketCount/subBuckets + 1]atomic.Pointer[octave]
}

// octave is the buckets of a power of two.
type octave [subBuckets]atomic.Uint64

// counter returns that of a bucket.
func (h *histogram[T]) counter(bucket int) *atomic.Uint64 {
	p := &h.octaves[bucket/subBuckets]
	for {
		if o := p.Load(); o != nil {
			return &o[bucket%subBuckets]
		}
		p.CompareAndSwap(nil, new(octave))
	}
}

// bucketOf returns the bucket of a value.
func bucketOf(v int64) int {
	switch {
	case v < 0:
		return 0
	case v >= maxMeasured:
		return bucketCount - 1
	}
	shift := max(bits.Len64(uint64(v))-subBits-1, 0)
	return shift*subBuckets + int(v>>shift)
}

// bucketBounds returns the lowest value of a bucket, and the one behind its highest.
func bucketBounds(i int) (low, end int64) {
	switch {
	case i < 2*subBuckets:
		return int64(i), int64(i) + 1
	case i >= bucketCount-1:
		return maxMeasured, math.MaxInt64
	}
	shift := i/subBuckets - 1
	low = int64(i-shift*subBuckets) << shift
	return low, low + 1<<shift
}

// record counts one value. One below 0, as of an interval of a clock that was set back, counts
// as 0.
func (h *histogram[T]) record(v T) { h.recordN(v, 1) }

// recordN counts n values that are the same, as far as is known.
func (h *histogram[T]) recordN(v T, n uint64) {
	v = max(v, 0)
	h.raise(v)
	h.count(bucketOf(int64(v)), n, int64(v)*int64(n))
}

// raise notes a value that is counted in a bucket.
func (h *histogram[T]) raise(v T) {
	for {
		longest := h.longest.Load()
		if int64(v) <= longest || h.longest.CompareAndSwap(longest, int64(v)) {
			return
		}
	}
}

// count adds n values of a bucket, which raise has been told of. What they add up to goes
// first: a snapshot that has a value has it in its sum too, so that averages err to the
// long side.
func (h *histogram[T]) count(bucket int, n uint64, sum int64) {
	h.sum.Add(sum)
	h.counter(bucket).Add(n)
}

// snapshot returns what was counted until now.
func (h *histogram[T]) snapshot() Histogram[T] {
	var s Histogram[T]
	for i := range h.octaves {
		o := h.octaves[i].Load()
		if o == nil {
			continue
		}
		for j := range o {
			if n := o[j].Load(); n > 0 {
				s.buckets = append(s.buckets, bucket{i*subBuckets + j, n})
				s.Count += n
			}
		}
	}
	s.Sum, s.Max = T(h.sum.Load()), T(h.longest.Load())
	return s
}

// add adds what was counted elsewhere.
func (h *histogram[T]) add(s Histogram[T]) {
	h.raise(s.Max)
	h.sum.Add(int64(s.Sum))
	for _, b := range s.buckets {
		h.counter(b.index).Add(b.count)
	}
}

// tally counts values that come one after the other and are mostly alike, for one
// goroutine: with two comparisons each, and a histogram's atomic operations only where the
// bucket changes. flush is to be called in the end.
type tally[T ~int64] struct {
	to       *histogram[T]
	low, end int64
	bucket   int
	n        uint64
	sum      int64
	total    int64
	longest  T
}

func (t *tally[T]) record(v T) {
	v = max(v, 0)
	if int64(v) < t.low || int64(v) >= t.end {
		t.flush()
		t.bucket = bucketOf(int64(v))
		t.low, t.end = bucketBounds(t.bucket)
	}
	t.n++
	t.sum += int64(v)
	t.longest = max(t.longest, v)
}

func (t *tally[T]) flush() {
	if t.n > 0 {
		t.to.raise(t.longest)
		t.to.count(t.bucket, t.n, t.sum)
		t.total += t.sum
		t.n, t.sum = 0, 0
	}
}

// Histogram is a distribution of durations, or of sizes, as it was at one moment: it does
// not change, and may be copied. Values are counted in buckets, of which there are 32 for
// each power of two, up to 2^40: in nanoseconds 18 minutes. So a quantile differs from the
// value that it stands for by at most 1/64 of it, 1.6 %; below 64 it is exact, from 2^40 on
// it is Max.
type Histogram[T ~int64] struct {
	Count uint64
	// Sum is modulo 2^64, so it is negative from 2^63 on: 292 years, to which the latencies of
	// a thousand requests that are always under way add up in four months. As a uint64 it is
	// right for as long again; of a shorter time Since is.
	Sum T
	Max T

	buckets []bucket // by index, none empty; not changed once the histogram is made
}

type bucket struct {
	index int
	count uint64
}

// Mean returns the average, 0 of nothing.
func (h Histogram[T]) Mean() T {
	if h.Count == 0 {
		return 0
	}
	return T(uint64(h.Sum) / h.Count)
}

// Quantile returns the value that a share of q, from 0 to 1, does not exceed: 0.99 is the
// 99th percentile. It is 0 where nothing was counted.
func (h Histogram[T]) Quantile(q float64) T {
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(h.Count)))
	for _, b := range h.buckets {
		if rank > b.count {
			rank -= b.count
			continue
		}
		low, end := bucketBounds(b.index)
		if end == math.MaxInt64 {
			return h.Max
		}
		return min(T(low+(end-low)/2), h.Max)
	}
	return h.Max
}

// Merge returns the distribution of the values of both.
func (h Histogram[T]) Merge(other Histogram[T]) Histogram[T] {
	return h.combine(other, Histogram[T]{
		Count: h.Count + other.Count, Sum: h.Sum + other.Sum, Max: max(h.Max, other.Max),
	}, func(a, b uint64) uint64 { return a + b })
}

// Since returns the distribution of the values that have come after an earlier snapshot of
// the same histogram. Max is exact if it was reached since then, else as good as a quantile.
func (h Histogram[T]) Since(earlier Histogram[T]) Histogram[T] {
	sum := h.Sum - earlier.Sum
	if uint64(h.Sum) < uint64(earlier.Sum) { // It has passed 2^64, or is another one's, which began anew.
		sum = max(sum, 0)
	}
	d := h.combine(earlier, Histogram[T]{Sum: sum, Max: h.Max}, func(a, b uint64) uint64 { return a - min(a, b) })
	for _, b := range d.buckets {
		d.Count += b.count
	}
	switch {
	case d.Count == 0:
		d.Sum, d.Max = 0, 0
	case h.Max == earlier.Max:
		d.Max = d.Quantile(1)
	}
	return d
}

// combine fills the buckets of to.
func (h Histogram[T]) combine(other, to Histogram[T], f func(a, b uint64) uint64) Histogram[T] {
	a, b := h.buckets, other.buckets
	for len(a)+len(b) > 0 {
		i := bucketCount
		if len(a) > 0 {
			i = a[0].index
		}
		if len(b) > 0 {
			i = min(i, b[0].index)
		}
		var x, y uint64
		if len(a) > 0 && a[0].index == i {
			x, a = a[0].count, a[1:]
		}
		if len(b) > 0 && b[0].index == i {
			y, b = b[0].count, b[1:]
		}
		if n := f(x, y); n > 0 {
			to.buckets = append(to.buckets, bucket{i, n})
		}
	}
	return to
}

// Buckets returns, in rising order, how many values are not above each bound, those below
// the bucket included, as a Prometheus histogram has them. Buckets without values are left
// out.
func (h Histogram[T]) Buckets() iter.Seq2[T, uint64] {
	return func(yield func(T, uint64) bool) {
		n := uint64(0)
		for _, b := range h.buckets {
			n += b.count
			_, end := bucketBounds(b.index)
			bound := T(end - 1)
			if end == math.MaxInt64 {
				bound = h.Max
			}
			if !yield(bound, n) {
				return
			}
		}
	}
}

// CountUpTo returns how many values are not above v. Of those that are above it by less than
// 1/32 of it some may be among them; below 64 there are none.
func (h Histogram[T]) CountUpTo(v T) (n uint64) {
	for _, b := range h.buckets {
		if low, _ := bucketBounds(b.index); T(low) > v {
			break
		}
		n += b.count
	}
	return n
}

// MarshalJSON tells count, sum, mean, maximum and the usual percentiles; durations in
// seconds.
func (h Histogram[T]) MarshalJSON() ([]byte, error) {
	unit := 1.0
	if _, ok := any(h.Sum).(time.Duration); ok {
		unit = float64(time.Second)
	}
	in := func(v T) float64 { return float64(v) / unit }
	return json.Marshal(struct {
		Count uint64  `json:"count"`
		Sum   float64 `json:"sum"`
		Mean  float64 `json:"mean"`
		P50   float64 `json:"p50"`
		P90   float64 `json:"p90"`
		P99   float64 `json:"p99"`
		P999  float64 `json:"p99_9"`
		Max   float64 `json:"max"`
	}{
		h.Count, float64(uint64(h.Sum)) / unit, in(h.Mean()),
		in(h.Quantile(0.5)), in(h.Quantile(0.9)), in(h.Quantile(0.99)), in(h.Quantile(0.999)), in(h.Max),
	})
}
