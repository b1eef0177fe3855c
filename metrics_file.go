package robust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// metricsFileInterval is how often metrics are kept, beside at the end.
const metricsFileInterval = 10 * time.Second

// keptMetrics are those that outlive a restart, by the names that they have in the file.
type keptMetrics struct {
	counters   map[string]keptCounter
	histograms map[string]keptHistogram
}

// keptCounter is an *atomic.Uint64, or what adds up to a counter.
type keptCounter interface {
	Load() uint64
	Add(n uint64) uint64
}

// keptHistogram is a histogram of any unit.
type keptHistogram interface {
	save() savedHistogram
	load(s savedHistogram)
}

// savedHistogram is a histogram in a file: of each bucket its index and what it counts.
type savedHistogram struct {
	Sum     int64       `json:"sum"`
	Max     int64       `json:"max"`
	Buckets [][2]uint64 `json:"buckets"`
}

func (h *histogram[T]) save() savedHistogram {
	now := h.snapshot()
	s := savedHistogram{Sum: int64(now.Sum), Max: int64(now.Max), Buckets: make([][2]uint64, len(now.buckets))}
	for i, b := range now.buckets {
		s.Buckets[i] = [2]uint64{uint64(b.index), b.count}
	}
	return s
}

func (h *histogram[T]) load(s savedHistogram) {
	kept := Histogram[T]{Sum: T(s.Sum), Max: T(s.Max)}
	for _, b := range s.Buckets {
		kept.buckets = append(kept.buckets, bucket{int(min(b[0], bucketCount-1)), b[1]})
	}
	h.add(kept)
}

// savedMetrics is the first line of a file. The second is its checksum.
type savedMetrics struct {
	Format     int                       `json:"robust_metrics"`
	Counters   map[string]uint64         `json:"counters"`
	Histograms map[string]savedHistogram `json:"histograms"`
}

const metricsFileFormat = 1

// metricsFile keeps metrics in a file, which is replaced as a whole.
type metricsFile struct {
	path    string
	metrics func() keptMetrics
	warn    *warner   // told when the file could not be written in between
	held    io.Closer // the lock; nil where there is none

	stop    chan struct{}
	running sync.WaitGroup
	closing sync.Once
	err     error // of the last time
}

// openMetricsFile adds what a file holds to some metrics, and keeps them there until close.
// A file that is not there is made; one that is damaged is an ErrCorrupt that names it, one
// that another works with an ErrMetricsFileInUse. Without a path it returns nil.
func openMetricsFile(path string, metrics func() keptMetrics, warn *warner) (*metricsFile, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // a nil file keeps nothing
	}
	// It is written as needed, wherever the process is by then.
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("robust: metrics file: %w", err)
	}
	f := &metricsFile{path: path, metrics: metrics, warn: warn, stop: make(chan struct{})}
	if err := f.lock(); err != nil {
		return nil, err
	}
	if err = f.load(); err == nil {
		err = f.save() // It is now that somebody looks whether it can be.
	}
	if err != nil {
		return nil, errors.Join(err, f.unlock())
	}
	f.running.Go(f.run)
	return f, nil
}

// lock sees to it that nobody else works with the file: two would take turns in writing
// what each has counted.
func (f *metricsFile) lock() error {
	held, holder, err := lockFile(f.path+".lock", newLockHolder(), 0o644)
	switch {
	case errors.Is(err, errLocked):
		return fmt.Errorf("%w: %s%s", ErrMetricsFileInUse, f.path, heldBy(holder))
	case errors.Is(err, ErrUnsupported):
		return nil
	case err != nil:
		return fmt.Errorf("robust: metrics file: %w", err)
	}
	f.held = held
	return nil
}

func (f *metricsFile) unlock() error {
	if f.held == nil {
		return nil
	}
	return f.held.Close()
}

func (f *metricsFile) load() error {
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("robust: metrics file: %w", err)
	}
	saved, err := parseMetricsFile(text)
	if err != nil {
		return fmt.Errorf("%w: metrics file %s: %w; without it counting begins anew", ErrCorrupt, f.path, err)
	}
	k := f.metrics()
	for name, n := range saved.Counters {
		if c := k.counters[name]; c != nil { // Else it is another version's.
			c.Add(n)
		}
	}
	for name, s := range saved.Histograms {
		if h := k.histograms[name]; h != nil {
			h.load(s)
		}
	}
	return nil
}

// parseMetricsFile reads what encodeMetricsFile has written.
func parseMetricsFile(text []byte) (s savedMetrics, err error) {
	line, sum, whole := bytes.Cut(text, []byte("\n"))
	switch {
	case !whole:
		return s, fmt.Errorf("%d bytes without a checksum", len(text))
	case string(sum) != checksumLine(line):
		return s, fmt.Errorf("the checksum of its %d bytes is wrong", len(line))
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, err
	}
	if s.Format != metricsFileFormat {
		return s, fmt.Errorf("format %d, want %d", s.Format, metricsFileFormat)
	}
	return s, nil
}

func checksumLine(line []byte) string {
	return fmt.Sprintf("crc32c %08x\n", crc32.Checksum(line, castagnoli))
}

func encodeMetricsFile(k keptMetrics) ([]byte, error) {
	s := savedMetrics{Format: metricsFileFormat, Counters: make(map[string]uint64), Histograms: make(map[string]savedHistogram)}
	for name, c := range k.counters {
		s.Counters[name] = c.Load()
	}
	for name, h := range k.histograms {
		s.Histograms[name] = h.save()
	}
	line, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return append(append(line, '\n'), checksumLine(line)...), nil
}

// save replaces the file. The new one always has the same name until then, so that of those
// that a killed process leaves behind there is never more than one.
func (f *metricsFile) save() (err error) {
	text, err := encodeMetricsFile(f.metrics())
	if err != nil {
		return fmt.Errorf("robust: metrics file %s: %w", f.path, err)
	}
	fresh := f.path + ".tmp"
	t, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("robust: metrics file: %w", err)
	}
	_, err = t.Write(text)
	// Before it takes the other's place: a power failure must not leave an empty one there.
	err = errors.Join(err, t.Sync(), t.Close())
	if err == nil {
		err = os.Rename(fresh, f.path)
	}
	if err != nil {
		_ = os.Remove(fresh) // What is wrong is known already.
		return fmt.Errorf("robust: metrics file: %w", err)
	}
	return nil
}

func (f *metricsFile) run() {
	ticker := time.NewTicker(metricsFileInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if err := f.save(); err != nil {
				f.warn.warn("metrics cannot be kept", f.path, "error", trimPrefix(err))
			}
		case <-f.stop:
			return
		}
	}
}

// close keeps what there is in the end, once. A nil file has nothing to keep.
func (f *metricsFile) close() error {
	if f == nil {
		return nil
	}
	f.closing.Do(func() {
		close(f.stop)
		f.running.Wait()
		f.err = errors.Join(f.save(), f.unlock())
	})
	return f.err
}
