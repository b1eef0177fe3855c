package robust

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// clockDir is a data directory whose brokers' clocks differ by decades: in a bubble of synctest
// it is the year 2000.
type clockDir struct {
	m      *memFiles
	config LogConfig
}

func newClockDir(t *testing.T, c LogConfig) *clockDir {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	return &clockDir{m, c}
}

// run has f use the log, in its own time or in the year 2000.
func (c *clockDir) run(t *testing.T, past bool, f func(t *testing.T, l PartitionLog)) {
	t.Helper()
	one := func(t *testing.T) {
		d, err := openDataDir(c.m, "/data", SyncAlways, newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err)
		f(t, openTestLog(t, d, c.config, nil))
		require.NoError(t, d.Close())
	}
	if past {
		synctest.Test(t, one)
	} else {
		one(t)
	}
}

// requireHolds requires that a log has these offsets and no others, and that a search by any time is
// right: times has that of each record.
func requireHolds(t *testing.T, l PartitionLog, start int64, times []int64) {
	t.Helper()
	from, end := l.Bounds()
	require.Equal(t, []int64{start, int64(len(times))}, []int64{from, end})
	require.Equal(t, end, readLog(t, l, start, 4096))
	asked := []int64{0, time.Now().UnixMilli(), time.Now().AddDate(100, 0, 0).UnixMilli()}
	for _, at := range times {
		asked = append(asked, at-1, at, at+1)
	}
	for _, at := range asked {
		want := end
		if i := slices.IndexFunc(times[start:], func(made int64) bool { return made >= at }); i >= 0 {
			want = start + int64(i)
		}
		got, err := l.OffsetAt(t.Context(), at)
		require.NoError(t, err)
		require.Equal(t, want, got, "the first from %v on", time.UnixMilli(at))
	}
}

// A segment that was written while the clock was ahead kept all behind it until that time had
// come.
func TestClockWasAhead(t *testing.T) {
	const age = 8 * time.Hour
	dir := newClockDir(t, LogConfig{SegmentBytes: defaultSegment, RetentionAge: age})
	var times []int64
	fill := func(t *testing.T, l PartitionLog, n int) {
		for range n {
			times = append(times, time.Now().UnixMilli())
			appendValues(t, l, 1, times[len(times)-1])
		}
	}
	dir.run(t, false, func(t *testing.T, l PartitionLog) { fill(t, l, 20) })
	dir.run(t, true, func(t *testing.T, l PartitionLog) {
		requireHolds(t, l, 0, times)
		require.NoError(t, l.Expire(time.Now()))
		requireHolds(t, l, 0, times)
		fill(t, l, 10)
		_, segments := l.(LogSizer).Size()
		require.Equal(t, 2, segments, "what comes now must not wait for what seems to come later")
		<-time.After(age / 2)
		fill(t, l, 10)
		requireHolds(t, l, 0, times)
		require.NoError(t, l.Expire(time.Now()))
		requireHolds(t, l, 0, times)
		<-time.After(age/2 + time.Hour)
		fill(t, l, 10)
		require.NoError(t, l.Expire(time.Now()))
		requireHolds(t, l, 30, times)
	})
}

// What was written before a clock that was behind was set right counted as decades old, and was
// gone with the next look.
func TestClockWasBehind(t *testing.T) {
	const age, decades = 7 * 24 * time.Hour, 26 * 365 * 24 * time.Hour
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	d, err := openQuietDir(m, "/data", SyncAlways)
	require.NoError(t, err)
	for name, s := range map[string]Storage{"memory": NewMemoryStorage(), "disk": d} {
		t.Run(name, func(t *testing.T) {
			l := openTestLog(t, s, LogConfig{RetentionAge: age}, nil)
			for range 2 {
				appendValues(t, l, 5)
				start, end := l.Bounds()
				require.NoError(t, l.Expire(setAhead(t, time.Now().Add(age-time.Hour), decades)))
				now, _ := l.Bounds()
				require.Equal(t, start, now)
				require.NoError(t, l.Expire(setAhead(t, time.Now().Add(age+time.Hour), decades)))
				now, _ = l.Bounds()
				require.Equal(t, end, now)
			}
			require.NoError(t, s.Close())
		})
	}
}

// setAhead returns what the clock would say had it been set ahead by d, a whole number of seconds:
// the time that has passed since another reading is the same.
func setAhead(t *testing.T, now time.Time, d time.Duration) time.Time {
	t.Helper()
	set := now
	// The upper bits are a flag and the seconds; see time.Time.
	*(*uint64)(unsafe.Pointer(&set)) += uint64(d/time.Second) << 30
	require.Equal(t, d, set.Round(0).Sub(now.Round(0)))
	require.Zero(t, set.Sub(now))
	return set
}
