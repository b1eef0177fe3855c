package robust

import (
	"context"
	"sync"
	"sync/atomic"
)

// resultQueue hands things over one after the other, in a goroutine that is there while
// there are some.
type resultQueue[T any] struct {
	box  *outbox
	each func(T)

	mu      sync.Mutex // guards the following
	waiting []T
	spare   []T
	running bool
	idle    chan struct{} // closed when the goroutine ends; nil unless waited for
}

func (q *resultQueue[T]) init(o *outbox, each func(T)) { q.box, q.each = o, each }

func (q *resultQueue[T]) add(x T) {
	q.mu.Lock()
	q.waiting = append(q.waiting, x)
	start := !q.running
	q.running = true
	q.mu.Unlock()
	if start {
		q.box.running.Go(q.run)
	}
}

func (q *resultQueue[T]) run() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.running = false
			if q.idle != nil {
				close(q.idle)
				q.idle = nil
			}
			q.mu.Unlock()
			return
		}
		some := q.waiting
		q.waiting = q.spare[:0]
		q.mu.Unlock()
		for _, x := range some {
			q.each(x)
		}
		clear(some)
		q.mu.Lock()
		q.spare = some
		q.mu.Unlock()
	}
}

// finish waits until everything is handed over, or ctx ends.
func (q *resultQueue[T]) finish(ctx context.Context) {
	q.mu.Lock()
	if !q.running {
		q.mu.Unlock()
		return
	}
	if q.idle == nil {
		q.idle = make(chan struct{})
	}
	idle := q.idle
	q.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// resultPump is a channel of results that may be left unread for as long as there is
// memory. A goroutine sends on it while there are some.
type resultPump[T any] struct {
	box  *outbox
	ch   chan T
	stop chan struct{} // closed when results are not handed over any more
	left atomic.Int64  // results that are not in the channel yet; may be a few too many

	mu      sync.Mutex // guards the following
	results []pumped[T]
	running bool
	closed  bool          // the channel is; results stay where they are
	idle    chan struct{} // closed when the goroutine ends; nil unless waited for
}

// pumped is a result and the memory that is free when it is read.
type pumped[T any] struct {
	result T
	room   int64
}

// resultBuffer is how many results the channel holds, for which their memory is given
// back early.
const resultBuffer = 256

func (p *resultPump[T]) init(o *outbox) {
	p.box, p.ch, p.stop = o, make(chan T, resultBuffer), make(chan struct{})
}

func (p *resultPump[T]) add(result T, room int64) {
	p.mu.Lock()
	p.results = append(p.results, pumped[T]{result, room})
	p.left.Add(1)
	start := !p.running && !p.closed
	p.running = p.running || start
	p.mu.Unlock()
	if start {
		p.box.running.Go(p.run)
	}
}

// waiting is how many results are not read.
func (p *resultPump[T]) waiting() int { return int(p.left.Load()) + len(p.ch) }

func (p *resultPump[T]) run() {
	for {
		p.mu.Lock()
		some := p.results
		if len(some) > 0 {
			p.results = nil
			p.mu.Unlock()
			if n := p.send(some); n < len(some) {
				p.mu.Lock()
				p.results = append(some[n:], p.results...)
				p.endLocked()
				p.mu.Unlock()
				return
			}
			continue
		}
		p.endLocked()
		p.mu.Unlock()
		return
	}
}

func (p *resultPump[T]) endLocked() {
	p.running = false
	if p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// send puts results into the channel, and returns how many, when it is stopped.
func (p *resultPump[T]) send(some []pumped[T]) int {
	const together = 64 // for how many memory is given back at a time
	n, room := int64(0), int64(0)
	account := func() {
		if n > 0 {
			p.left.Add(-n)
			p.box.releaseRoom(room)
			n, room = 0, 0
		}
	}
	defer account()
	for i, r := range some {
		select {
		case p.ch <- r.result:
		default:
			account() // Before there may be long to wait.
			select {
			case p.ch <- r.result:
			case <-p.stop:
				return i
			}
		}
		n++
		if room += r.room; n == together {
			account()
		}
	}
	return len(some)
}

// finish waits until everything is in the channel and read, or ctx ends, and then closes
// the channel. Nothing is added any more.
func (p *resultPump[T]) finish(ctx context.Context) {
	p.mu.Lock()
	var idle chan struct{}
	if p.running {
		if p.idle == nil {
			p.idle = make(chan struct{})
		}
		idle = p.idle
	}
	p.mu.Unlock()
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			close(p.stop)
			<-idle
		}
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	close(p.ch)
}

// rest returns the results that did not get into the channel.
func (p *resultPump[T]) rest() []T {
	p.mu.Lock()
	defer p.mu.Unlock()
	var left []T
	for _, r := range p.results {
		left = append(left, r.result)
	}
	return left
}
