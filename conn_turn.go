package robust

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// restAfter is after how many answers in a row, each to the only call in flight, a
	// connection's loop leaves reading to the callers.
	restAfter = 8
	// restTick is how often a loop that rests looks whether it is still spared anything. A
	// connection that nobody uses is read by its loop: it learns of the end of it.
	restTick = 20 * time.Millisecond
)

// readTurn is whose turn it is to read a connection. Mostly it is that of the connection's
// loop. While calls are made one at a time, the caller reads its answer itself: no
// goroutine has to be woken by another.
type readTurn struct {
	nc net.Conn // nil: only the loop reads
	// resumed gets a token when the loop is to go on.
	resumed chan struct{}
	// inside tells that the caller whose turn it is looks at its own call next anyway.
	inside atomic.Bool

	// Guarded by the connection's mutex:
	resting     bool // the loop reads nothing
	lent        bool // a caller reads; only while the loop rests
	alone       int  // answers in a row after which nothing was in flight
	lendings    int  // so far
	interrupted bool // by interruptLocked
}

// answeredLocked notes that so many calls are left in flight after an answer.
func (t *readTurn) answeredLocked(inflight int) {
	if inflight == 0 {
		t.alone++
	} else {
		t.alone = 0
	}
}

// restsLocked tells the loop whether it is to rest. idle says that nothing is in flight,
// nor read of what comes next.
func (t *readTurn) restsLocked(idle bool) bool {
	t.resting = idle && t.nc != nil && t.alone >= restAfter
	return t.resting
}

// begunLocked notes that a call is put in flight. It lends the turn to the caller, if it
// wants that and can have it; then the caller has to give it back.
func (t *readTurn) begunLocked(wanted bool) (lent bool) {
	if !t.resting || t.lent {
		return false
	}
	if !wanted {
		t.resumeLocked()
		return false
	}
	t.lent = true
	t.lendings++
	return true
}

// backLocked gives the turn back.
func (t *readTurn) backLocked(idle bool) {
	t.goOnLocked()
	t.lent = false
	if !idle {
		t.resumeLocked()
	}
}

func (t *readTurn) resumeLocked() {
	t.resting, t.alone = false, 0
	signal(t.resumed)
}

// rest returns when the loop is to read again; mu is the connection's mutex, done closed
// at its end. A caller that reads is not overtaken even then: it gives the turn back.
func (t *readTurn) rest(mu *sync.Mutex, done <-chan struct{}) {
	tick := time.NewTicker(restTick)
	defer tick.Stop()
	for seen := -1; ; {
		ended := false
		select {
		case <-t.resumed:
			return
		case <-done:
			ended, done = true, nil
		case <-tick.C:
		}
		mu.Lock()
		again := t.resting && !t.lent && (ended || t.lendings == seen)
		seen = t.lendings
		if again {
			t.resting = false
		}
		mu.Unlock()
		if again {
			return
		}
	}
}

// interruptLocked has the caller whose turn it is, if there is one, look at its call
// again: what it reads times out, which it takes for nothing else.
func (t *readTurn) interruptLocked() {
	if t.lent && !t.interrupted {
		t.interrupted = true
		_ = t.nc.SetReadDeadline(time.Unix(1, 0)) // It fails if the connection has ended.
	}
}

// goOnLocked makes up for interruptLocked.
func (t *readTurn) goOnLocked() {
	if t.interrupted {
		t.interrupted = false
		_ = t.nc.SetReadDeadline(time.Time{}) // As above.
	}
}
