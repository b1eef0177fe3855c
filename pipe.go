package robust

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeBuffer is what one direction of an in-memory connection holds before its
// writer waits, as a socket's buffer would.
const pipeBuffer = 64 << 10

// newPipe returns the two ends of a connection in memory. Unlike net.Pipe it is
// buffered, so that a writer need not wait for its reader; like a socket it knows
// deadlines, and an end that is closed lets the other read what was written.
// It works under the fake time of testing/synctest.
func newPipe() (a, b *pipeConn) {
	ab, ba := newPipeHalf(), newPipeHalf()
	return &pipeConn{in: ba, out: ab}, &pipeConn{in: ab, out: ba}
}

// pipeConn is one end.
type pipeConn struct {
	in, out *pipeHalf
}

// pipeHalf is one direction.
type pipeHalf struct {
	// Each holds a token when somebody who waits should look again. Whoever
	// takes it and leaves something for another puts it back.
	readable, writable chan struct{}
	// writing holds the token of whoever writes: what one Write writes stays in
	// one piece, as on a socket. A mutex would stop the fake time of tests.
	writing chan struct{}

	readDeadline, writeDeadline pipeDeadline

	mu           sync.Mutex // guards the following
	data         []byte     // written and not read yet
	buf          []byte     // backs data
	writerClosed bool
	readerClosed bool
}

func newPipeHalf() *pipeHalf {
	return &pipeHalf{
		readable: make(chan struct{}, 1),
		writable: make(chan struct{}, 1),
		writing:  make(chan struct{}, 1),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (h *pipeHalf) read(p []byte) (int, error) {
	for {
		if h.readDeadline.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		h.mu.Lock()
		switch {
		case h.readerClosed:
			h.mu.Unlock()
			signal(h.readable)
			return 0, net.ErrClosed
		case len(h.data) > 0 || len(p) == 0:
			n := copy(p, h.data)
			h.data = h.data[n:]
			left := len(h.data) > 0
			h.mu.Unlock()
			if left {
				signal(h.readable)
			}
			signal(h.writable)
			return n, nil
		case h.writerClosed:
			h.mu.Unlock()
			signal(h.readable)
			return 0, io.EOF
		}
		h.mu.Unlock()
		select {
		case <-h.readable:
		case <-h.readDeadline.wait():
		}
	}
}

func (h *pipeHalf) write(p []byte) (int, error) {
	if !h.beginWrite() {
		return 0, os.ErrDeadlineExceeded
	}
	defer func() { <-h.writing }()
	written := 0
	for {
		if h.writeDeadline.passed() {
			return written, os.ErrDeadlineExceeded
		}
		h.mu.Lock()
		switch {
		case h.writerClosed:
			h.mu.Unlock()
			signal(h.writable)
			return written, net.ErrClosed
		case h.readerClosed:
			h.mu.Unlock()
			signal(h.writable)
			return written, io.ErrClosedPipe
		}
		n := min(len(p)-written, pipeBuffer-len(h.data))
		h.appendLocked(p[written : written+n])
		room := len(h.data) < pipeBuffer
		h.mu.Unlock()
		written += n
		if n > 0 {
			signal(h.readable)
		}
		if written == len(p) {
			if room {
				signal(h.writable)
			}
			return written, nil
		}
		select {
		case <-h.writable:
		case <-h.writeDeadline.wait():
		}
	}
}

// beginWrite takes the token of whoever writes; false means that the deadline came
// first. The one that has it is woken by a close too, and passes it on.
func (h *pipeHalf) beginWrite() bool {
	for {
		select {
		case h.writing <- struct{}{}:
			return true
		default:
		}
		if h.writeDeadline.passed() {
			return false
		}
		select {
		case h.writing <- struct{}{}:
			return true
		case <-h.writeDeadline.wait():
		}
	}
}

// appendLocked appends p, which fits, moving what is left to the front of the
// buffer when its end is reached.
func (h *pipeHalf) appendLocked(p []byte) {
	if len(h.data)+len(p) > cap(h.data) && len(h.data)+len(p) <= cap(h.buf) {
		h.data = append(h.buf[:0], h.data...)
	}
	if len(h.data) == 0 {
		h.data = h.buf[:0]
	}
	h.data = append(h.data, p...)
	if cap(h.data) > cap(h.buf) {
		h.buf = h.data[:0]
	}
}

// close marks one side closed and wakes both.
func (h *pipeHalf) close(reader bool) {
	h.mu.Lock()
	if reader {
		h.readerClosed = true
	} else {
		h.writerClosed = true
	}
	h.mu.Unlock()
	signal(h.readable)
	signal(h.writable)
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close ends both directions; the other end may still read what was written.
func (c *pipeConn) Close() error {
	c.in.close(true)
	c.out.close(false)
	c.in.readDeadline.set(time.Time{})
	c.out.writeDeadline.set(time.Time{})
	return nil
}

// CloseWrite ends one direction: the other end reads what was written, then io.EOF,
// and may go on writing.
func (c *pipeConn) CloseWrite() error {
	c.out.close(false)
	return nil
}

func (c *pipeConn) LocalAddr() net.Addr  { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr { return pipeAddr{} }

func (c *pipeConn) SetDeadline(t time.Time) error {
	c.in.readDeadline.set(t)
	c.out.writeDeadline.set(t)
	return nil
}

func (c *pipeConn) SetReadDeadline(t time.Time) error {
	c.in.readDeadline.set(t)
	return nil
}

func (c *pipeConn) SetWriteDeadline(t time.Time) error {
	c.out.writeDeadline.set(t)
	return nil
}

// embeddedAddr is the address of a broker in the same process. It is one, host:port,
// so that it passes wherever an address is asked for, and it can be nobody else's:
// .invalid is reserved (RFC 2606).
const embeddedAddr = "embedded.invalid:8686"

type pipeAddr struct{}

func (pipeAddr) Network() string { return "memory" }
func (pipeAddr) String() string  { return embeddedAddr }

// pipeDeadline is a time that can be moved and waited for.
type pipeDeadline struct {
	mu    sync.Mutex // guards the following
	timer *time.Timer
	at    time.Time
	moved chan struct{} // closed when the deadline passes or is moved; nil until waited for
}

func (d *pipeDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

func (d *pipeDeadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

// wait returns a channel that is closed when the deadline passes or is moved; the
// caller then looks again. Nil, for ever, while there is none.
func (d *pipeDeadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	if d.timer == nil && !d.at.IsZero() {
		moved := d.moved
		d.timer = time.AfterFunc(time.Until(d.at), func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.moved == moved && moved != nil {
				close(moved)
				d.moved = nil
				d.timer = nil
			}
		})
	}
	return d.moved
}
