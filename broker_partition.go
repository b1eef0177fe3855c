package robust

import (
	"sync"
	"sync/atomic"
)

// partition is an open log and those who wait for it to grow.
type partition struct {
	topic string
	id    int32
	log   PartitionLog

	waiting atomic.Bool // watches has something; spares appends the lock

	mu      sync.Mutex // guards the following
	watches []*watched
	closed  bool
}

// watch waits for any of many partitions to grow or to be closed. One goroutine uses it.
type watch struct {
	// wake holds a token when there is something to take.
	wake chan struct{}
	logs []watched

	mu      sync.Mutex // guards the following; taken after partition.mu
	changed []int      // which of logs
}

// watched is one partition of a watch. It stands in the partition's list, at place, until
// the watch is told: a partition that grows often, and is not looked at in between, tells
// once. place is guarded by partition.mu.
type watched struct {
	watch     *watch
	which     int // of watch.logs
	partition *partition
	place     int // -1: it does not stand in the list
}

// newWatch returns a watch of partitions, none of which are watched yet.
func newWatch(partitions []*partition) *watch {
	w := &watch{wake: make(chan struct{}, 1), logs: make([]watched, len(partitions))}
	for i, p := range partitions {
		w.logs[i] = watched{w, i, p, -1}
	}
	return w
}

// arm has the watch told, once, when its i-th log grows or is closed. Whoever waits arms
// before looking at the log.
func (w *watch) arm(i int) {
	e := &w.logs[i]
	p := e.partition
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case e.place >= 0:
	case p.closed:
		w.tell(e)
	default:
		e.place = len(p.watches)
		p.watches = append(p.watches, e)
		p.waiting.Store(true)
	}
}

// tell notes that a log has changed.
func (w *watch) tell(e *watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = append(w.changed, e.which)
	signal(w.wake)
}

// take returns which logs have changed since they were armed.
func (w *watch) take() []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := w.changed
	w.changed = nil
	return changed
}

// end takes the watch out of the lists that it stands in.
func (w *watch) end() {
	for i := range w.logs {
		e := &w.logs[i]
		p := e.partition
		p.mu.Lock()
		if e.place >= 0 {
			last := len(p.watches) - 1
			p.watches[e.place] = p.watches[last]
			p.watches[e.place].place = e.place
			p.watches[last] = nil
			p.watches = p.watches[:last]
			p.waiting.Store(last > 0)
		}
		p.mu.Unlock()
	}
}

// advanced tells those who wait; the log calls it after it has grown.
func (p *partition) advanced() {
	if !p.waiting.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tellLocked()
}

func (p *partition) tellLocked() {
	for _, e := range p.watches {
		e.place = -1
		e.watch.tell(e)
	}
	clear(p.watches)
	p.watches = p.watches[:0]
	p.waiting.Store(false)
}

// close closes the log and tells those who wait, who will find it closed.
func (p *partition) close() error {
	err := p.log.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.tellLocked()
	return err
}
