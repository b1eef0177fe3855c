package robust

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// TestHistogramBuckets holds that buckets lie side by side, that each value is in its own,
// and that none is wider than the error that is promised.
func TestHistogramBuckets(t *testing.T) {
	next := int64(0)
	for i := range bucketCount {
		low, end := bucketBounds(i)
		require.Equal(t, next, low)
		require.Greater(t, end, low)
		require.Equal(t, i, bucketOf(low))
		require.Equal(t, i, bucketOf(end-1))
		if i < bucketCount-1 {
			middle := low + (end-low)/2
			require.LessOrEqual(t, max(middle-low, end-1-middle)*64, low, "bucket %d", i)
		}
		next = end
	}
	require.Equal(t, int64(math.MaxInt64), next)
	require.Zero(t, bucketOf(-1))
}

// exactQuantile is that of sorted values.
func exactQuantile(sorted []int64, q float64) int64 {
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

func TestHistogramQuantiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() int64{
		"small":       func() int64 { return r.Int64N(64) },
		"even":        func() int64 { return r.Int64N(1e9) },
		"exponential": func() int64 { return int64(r.ExpFloat64() * 3e6) },
		"wide":        func() int64 { return int64(math.Exp(r.Float64() * 27)) },
		"two humps":   func() int64 { return []int64{100_000, 50_000_000}[r.IntN(2)] + r.Int64N(5000) },
		"one value":   func() int64 { return 123_456_789 },
	} {
		var h histogram[int64]
		values := make([]int64, 20_000)
		for i := range values {
			values[i] = draw()
			h.record(values[i])
		}
		slices.Sort(values)
		s := h.snapshot()
		require.Equal(t, uint64(len(values)), s.Count, name)
		require.Equal(t, values[len(values)-1], s.Max, name)
		sum := int64(0)
		for _, v := range values {
			sum += v
		}
		require.Equal(t, sum, s.Sum, name)
		require.Equal(t, sum/int64(len(values)), s.Mean(), name)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
			exact := exactQuantile(values, q)
			require.LessOrEqual(t, math.Abs(float64(s.Quantile(q)-exact)), float64(exact)/64, "%s: quantile %v is %d, exactly %d", name, q, s.Quantile(q), exact)
			if exact < 64 {
				require.Equal(t, exact, s.Quantile(q), name)
			}
		}
	}
}

func TestHistogramLimits(t *testing.T) {
	var h histogram[time.Duration]
	require.Zero(t, h.snapshot().Quantile(0.5))
	require.Zero(t, h.snapshot().Mean())
	h.record(-time.Second) // A clock that was set back.
	h.record(-time.Second)
	require.Zero(t, h.snapshot().Quantile(1))
	require.Zero(t, h.snapshot().Mean(), "it used to be a century")
	require.Zero(t, h.snapshot().Sum)
	h.record(time.Hour)
	h.record(2 * time.Hour)
	require.Equal(t, 2*time.Hour, h.snapshot().Quantile(0.99), "above the buckets it is the longest")
	require.Equal(t, time.Duration(0), h.snapshot().Quantile(-1))
	require.Equal(t, 2*time.Hour, h.snapshot().Quantile(2))
}

// TestHistogramLongSum: what many wait for at once adds up to more than a time.Duration holds.
// JSON then showed that less than nothing had been waited.
func TestHistogramLongSum(t *testing.T) {
	const century = 1 << 61 // nanoseconds, 73 years
	var h histogram[time.Duration]
	h.record(century)
	before := h.snapshot()
	for range 5 {
		h.record(century)
	}
	s := h.snapshot()
	require.Equal(t, time.Duration(century), s.Mean())
	require.Equal(t, uint64(6*century), uint64(s.Sum))
	since := s.Since(before)
	require.Equal(t, time.Duration(century), since.Mean())
	text, err := json.Marshal(s)
	require.NoError(t, err)
	var shown struct{ Sum float64 }
	require.NoError(t, json.Unmarshal(text, &shown))
	require.InEpsilon(t, 6*time.Duration(century).Seconds(), shown.Sum, 1e-9)

	var again histogram[time.Duration]
	again.load(h.save())
	require.Equal(t, s, again.snapshot())
}

func TestHistogramMerge(t *testing.T) {
	var a, b, both histogram[int64]
	r := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		x, y := int64(r.ExpFloat64()*1000), int64(r.ExpFloat64()*1e6)
		a.record(x)
		b.record(y)
		both.record(x)
		both.record(y)
	}
	require.Equal(t, both.snapshot(), a.snapshot().Merge(b.snapshot()))
	require.Equal(t, both.snapshot(), b.snapshot().Merge(a.snapshot()))
	require.Equal(t, a.snapshot(), a.snapshot().Merge(Histogram[int64]{}))
	require.Equal(t, a.snapshot(), Histogram[int64]{}.Merge(a.snapshot()))
}

func TestHistogramSince(t *testing.T) {
	var h, late histogram[int64]
	for i := range int64(1000) {
		h.record(i * 1000)
	}
	before := h.snapshot()
	for i := range int64(500) {
		h.record(i)
		late.record(i)
	}
	since, want := h.snapshot().Since(before), late.snapshot()
	require.Equal(t, want.buckets, since.buckets)
	require.Equal(t, want.Count, since.Count)
	require.Equal(t, want.Sum, since.Sum)
	require.InEpsilon(t, want.Max, since.Max, 1.0/64)
	require.Equal(t, before, h.snapshot().Since(since), "sums are as before")
	require.Equal(t, Histogram[int64]{}, before.Since(before))
	h.record(5_000_000)
	require.Equal(t, int64(5_000_000), h.snapshot().Since(before).Max, "reached since then, so exact")
}

func TestHistogramShown(t *testing.T) {
	var h histogram[time.Duration]
	for i := range 100 {
		h.record(time.Duration(i+1) * time.Second)
	}
	text, err := json.Marshal(h.snapshot())
	require.NoError(t, err)
	var shown map[string]float64
	require.NoError(t, json.Unmarshal(text, &shown))
	for key, want := range map[string]float64{
		"count": 100, "sum": 5050, "mean": 50.5, "p50": 50, "p90": 90, "p99": 99, "p99_9": 100, "max": 100,
	} {
		require.InEpsilon(t, want, shown[key], 1.0/64, key)
		delete(shown, key)
	}
	require.Empty(t, shown)

	last, bound := uint64(0), time.Duration(-1)
	for b, n := range h.snapshot().Buckets() {
		require.Greater(t, b, bound)
		require.Greater(t, n, last)
		require.Equal(t, min(uint64(b/time.Second), 100), n, "what is not above %v", b)
		bound, last = b, n
	}
	require.Equal(t, uint64(100), last)
}

// TestHistogramCountUpTo holds what is promised of values around a bound.
func TestHistogramCountUpTo(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var h histogram[int64]
	var values []int64
	for range 20_000 {
		values = append(values, int64(math.Exp(r.Float64()*29)))
		h.record(values[len(values)-1])
	}
	slices.Sort(values)
	s := h.snapshot()
	upTo := func(v int64) uint64 {
		n, _ := slices.BinarySearch(values, v+1)
		return uint64(n)
	}
	for _, v := range []int64{-1, 0, 1, 5, 63, 64, 100, 1000, 4096, 1e6, 1e9, 1 << 40, math.MaxInt64 - 1} {
		require.GreaterOrEqual(t, s.CountUpTo(v), upTo(v), v)
		if v < 1<<40 {
			require.LessOrEqual(t, s.CountUpTo(v), upTo(max(v, v+v/32-1)), v)
		}
		if v < 64 {
			require.Equal(t, upTo(v), s.CountUpTo(v), v)
		}
	}
	require.Zero(t, Histogram[int64]{}.CountUpTo(100))
}

// TestHistogramTally holds that a tally comes to the same as single records.
func TestHistogramTally(t *testing.T) {
	var single, tallied histogram[int64]
	took := tally[int64]{to: &tallied}
	r := rand.New(rand.NewPCG(5, 6))
	for i := range int64(5000) {
		v := i/100*1000 - 5 + r.Int64N(20)
		single.record(v)
		took.record(v)
	}
	took.flush()
	require.Equal(t, single.snapshot(), tallied.snapshot())
}

func TestHistogramConcurrently(t *testing.T) {
	const each = 10_000
	var h histogram[int64]
	var group sync.WaitGroup
	for i := range int64(4) {
		group.Go(func() {
			for j := range int64(each) {
				h.record(i*1000 + j)
				if j%1000 == 0 {
					s := h.snapshot()
					require.LessOrEqual(t, s.Count, uint64(4*each))
					least, highest := int64(0), int64(0)
					for _, b := range s.buckets {
						highest, _ = bucketBounds(b.index)
						least += highest * int64(b.count)
					}
					require.GreaterOrEqual(t, s.Sum, least, "what is counted is in the sum")
					require.GreaterOrEqual(t, s.Max, highest)
				}
			}
		})
	}
	group.Wait()
	s := h.snapshot()
	require.Equal(t, uint64(4*each), s.Count)
	require.Equal(t, int64(3000+each-1), s.Max)
	require.Equal(t, int64(4*each*(each-1)/2+6000*each), s.Sum)
}

// TestHistogramIsSmall holds that an update allocates nothing, but for the first value of a
// power of two.
func TestHistogramIsSmall(t *testing.T) {
	h := new(histogram[int64])
	v := int64(1000)
	require.Zero(t, testing.AllocsPerRun(100, func() { v++; h.record(1000 + v%24) }))
	made := testing.AllocsPerRun(1, func() { v *= 2; h.record(v) })
	require.InDelta(t, 1, made, 0)
	require.Less(t, unsafe.Sizeof(*h), uintptr(400))
}

func BenchmarkHistogram(b *testing.B) {
	var h histogram[int64]
	b.ReportAllocs()
	v := int64(0)
	for b.Loop() {
		v += 1001
		h.record(v & (1<<30 - 1))
	}
}
