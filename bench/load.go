package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// chunk is how many messages a lane takes from a load at once. The first of each is
// the one whose acknowledgement is timed: to time all would cost more than to send them.
const chunk = 64

// loadConfig is how much is to be sent.
type loadConfig struct {
	pool       pool
	size       int
	partitions int
	duration   time.Duration
	limit      int64 // messages at most
	// rate is messages a second; 0: as many as go. With a rate every payload begins
	// with the time at which it was due, and sending ends with limit alone.
	rate int
	// first is the number of the first message, so that two loads do not send the same.
	first int64
}

// load hands out messages and counts what becomes of them.
type load struct {
	loadConfig
	begun   time.Time
	claimed atomic.Int64
	acked   atomic.Int64

	mu    sync.Mutex // guards the following
	sent  int64
	sum   uint64
	acks  *hdrhistogram.Histogram
	fails int64
	err   error // the first
}

func newLoad(c loadConfig) *load {
	return &load{loadConfig: c, begun: time.Now(), acks: newHistogram()}
}

// item is a message to send.
type item struct {
	payload   []byte
	partition int32
	at        int64 // when it was sent or due, for done; 0: not timed
}

// lane is one goroutine's share of a load.
type lane struct {
	load  *load
	index int64 // of the next message
	left  int   // of the chunk
	sent  int64
	sum   uint64
}

func (l *load) lane() *lane { return &lane{load: l} }

// next returns the next message, when it is due; false at the end.
func (ln *lane) next(ctx context.Context) (item, bool) {
	l := ln.load
	if ln.left == 0 && !ln.claim(ctx) {
		return item{}, false
	}
	i := ln.index
	it := item{
		payload:   l.pool.cut(l.first+i, l.size),
		partition: int32(i % int64(l.partitions)),
	}
	switch {
	case l.rate > 0:
		at, ok := ln.await(ctx)
		if !ok {
			return item{}, false
		}
		if i < l.limit/10 {
			at = 0 // All is still warming up.
		}
		it.at = at
		it.payload = append([]byte(nil), it.payload...)
		binary.LittleEndian.PutUint64(it.payload, uint64(at))
	case ln.left == chunk:
		it.at = nanos()
	default:
	}
	ln.index++
	ln.left--
	ln.sent++
	ln.sum += digest(it.payload)
	return it, true
}

// take fills items up to their capacity. With a rate it waits for one only, and takes
// what else is due.
func (ln *lane) take(ctx context.Context, items []item) []item {
	for len(items) < cap(items) {
		if ln.load.rate > 0 && len(items) > 0 && !ln.due(ctx) {
			break
		}
		it, ok := ln.next(ctx)
		if !ok {
			break
		}
		items = append(items, it)
	}
	return items
}

// skip counts n messages as sent that the contestant makes itself; false at the end.
func (ln *lane) skip(ctx context.Context, n int) bool {
	if !ln.load.claim(ctx, n, &ln.index) {
		return false
	}
	ln.sent += int64(n)
	return true
}

// claim takes a chunk. With a rate it takes one message, since others may wait for the
// next.
func (ln *lane) claim(ctx context.Context) bool {
	n := chunk
	if ln.load.rate > 0 {
		n = 1
	}
	if !ln.load.claim(ctx, n, &ln.index) {
		return false
	}
	ln.left = int(min(int64(n), ln.load.limit-ln.index))
	return true
}

// claim takes n messages or the rest, and says which is the first.
func (l *load) claim(ctx context.Context, n int, first *int64) bool {
	late := l.rate == 0 && time.Since(l.begun) >= l.duration
	if ctx.Err() != nil || late && l.claimed.Load() > 0 { // However late it is, something is sent.
		return false
	}
	*first = l.claimed.Add(int64(n)) - int64(n)
	return *first < l.limit
}

// due tells whether the next message is.
func (ln *lane) due(ctx context.Context) bool {
	if ln.left == 0 && !ln.claim(ctx) {
		return false
	}
	return time.Since(ln.dueAt()) >= 0
}

func (ln *lane) dueAt() time.Time {
	return ln.load.begun.Add(time.Duration(ln.index * int64(time.Second) / int64(ln.load.rate)))
}

// await waits until the next message is due and returns the time from which it is
// counted: when it was due, if the producer comes late; if it has waited, when it woke,
// since a timer that rings late is nobody's latency.
func (ln *lane) await(ctx context.Context) (int64, bool) {
	at := ln.dueAt()
	wait := time.Until(at)
	if wait <= 0 {
		return at.Sub(processStart()).Nanoseconds(), true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nanos(), true
	case <-ctx.Done():
		return 0, false
	}
}

// close hands in what the lane has counted.
func (ln *lane) close() {
	l := ln.load
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent += ln.sent
	l.sum += ln.sum
	ln.sent, ln.sum = 0, 0
}

// done takes the result of the message whose time was at.
func (l *load) done(at int64, err error) {
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fails++
		if l.err == nil {
			l.err = err
		}
		return
	}
	if at != 0 {
		l.mu.Lock()
		_ = l.acks.RecordValue(min(nanos()-at, histogramMax)) // It is in the range.
		l.mu.Unlock()
	}
	l.acked.Add(1)
}

// check tells whether each message that was sent was acknowledged.
func (l *load) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch acked := l.acked.Load(); {
	case l.fails > 0:
		return fmt.Errorf("%d of %d messages failed, the first with: %w", l.fails, l.sent, l.err)
	case acked != l.sent:
		return fmt.Errorf("%d messages were sent and %d acknowledged", l.sent, acked)
	case l.sent == 0:
		return fmt.Errorf("nothing was sent")
	default:
		return nil
	}
}
