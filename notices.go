package robust

import "sync"

// errorBuffer is how many notices an Errors channel holds.
const errorBuffer = 10

// notices is what goes wrong without ending anything, in a channel that need not be
// read: the oldest makes room for the newest.
type notices struct {
	ch      chan error
	dropped func(error) // called for each that had to make room

	mu     sync.Mutex // guards the following
	closed bool
}

func newNotices(dropped func(error)) *notices {
	return &notices{ch: make(chan error, errorBuffer), dropped: dropped}
}

// add puts a notice into the channel.
func (n *notices) add(notice error) {
	if oldest := n.push(notice); oldest != nil {
		n.dropped(oldest)
	}
}

// push returns the notice that had to make room.
func (n *notices) push(notice error) (oldest error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for !n.closed {
		select {
		case n.ch <- notice:
			return oldest
		default:
		}
		select {
		case oldest = <-n.ch:
		default:
		}
	}
	return oldest
}

// close closes the channel; what is in it can still be read.
func (n *notices) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.closed = true
		close(n.ch)
	}
}
