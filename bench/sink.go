package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// sink takes what is consumed, until it is full.
type sink struct {
	want int64
	// timed tells that payloads begin with the time at which they were sent.
	timed bool
	got   atomic.Int64
	full  chan struct{} // closed when want messages have come

	mu    sync.Mutex // guards the following
	sum   uint64
	times *hdrhistogram.Histogram
}

func newSink(want int64, timed bool) *sink {
	return &sink{want: want, timed: timed, full: make(chan struct{}), times: newHistogram()}
}

// context returns one that ends with ctx, and when s is full. The consumers of a
// session end with it.
func (s *sink) context(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.full:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// isFull tells whether all has come, which is when a consumer that was cancelled has
// not failed.
func (s *sink) isFull() bool { return s.got.Load() >= s.want }

// sinkLane is one goroutine's way into a sink.
type sinkLane struct {
	sink  *sink
	sum   uint64
	times *hdrhistogram.Histogram // nil if times are of no interest
}

func (s *sink) lane() *sinkLane {
	ln := &sinkLane{sink: s}
	if s.timed {
		ln.times = newHistogram()
	}
	return ln
}

// take takes a message; false when the sink has had enough.
func (ln *sinkLane) take(payload []byte) bool {
	if len(payload) < 8 {
		payload = make([]byte, 8) // It is none of those that were sent, and the sum will show it.
	}
	if ln.times != nil {
		if at := int64(binary.LittleEndian.Uint64(payload)); at != 0 {
			_ = ln.times.RecordValue(min(max(nanos()-at, 0), histogramMax)) // It is in the range.
		}
	}
	n := ln.sink.got.Add(1)
	if n <= ln.sink.want {
		ln.sum += digest(payload)
	}
	if n == ln.sink.want {
		close(ln.sink.full)
	}
	return n < ln.sink.want
}

// close hands in what the lane has counted.
func (ln *sinkLane) close() {
	ln.sink.mu.Lock()
	defer ln.sink.mu.Unlock()
	ln.sink.sum += ln.sum
	ln.sum = 0
	if ln.times != nil {
		ln.sink.times.Merge(ln.times)
		ln.times.Reset()
	}
}

// check tells whether what came is what was sent.
func (s *sink) check(sum uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.got.Load(); got < s.want {
		return fmt.Errorf("%d messages are stored and %d were consumed", s.want, got)
	}
	if s.sum != sum {
		return fmt.Errorf("what was consumed is not what was sent: %d messages with the sum %x instead of %x", s.want, s.sum, sum)
	}
	return nil
}
