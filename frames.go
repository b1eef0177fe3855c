package robust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Buffer sizes of a connection. They grow with what passes and shrink again, so
// that an idle connection is cheap.
const (
	minReadBuffer  = 4 << 10
	maxReadBuffer  = 256 << 10 // grows beyond only for a larger frame
	keepWriteSpare = 32 << 10
	// keepScratch is the size up to which a connection keeps a buffer that it
	// decodes or encodes with.
	keepScratch = 64 << 10
	// writeChunk is what is written at a time, so that progress can be seen.
	writeChunk = 64 << 10
	// inlineWrite is what fits into the buffer of a connection that has nothing
	// else in it, so that writing it cannot block.
	inlineWrite = 16 << 10
)

// frameReader cuts a stream into frames. One goroutine uses it.
type frameReader struct {
	r     io.Reader
	limit int
	// beforeRead, if set, is called before every read, which may block; partial
	// tells that a frame has begun. An error ends the reading.
	beforeRead func(partial bool) error

	buf        []byte
	start, end int // buf[start:end] is read and not given out yet
	lean       int // reads in a row that needed little of a large buffer
}

// next returns the next frame, without the white space around it. It is valid
// until the next call. The error is io.EOF only between frames; one that wraps
// ErrMalformed or ErrMessageTooLarge is the peer's fault, and nothing more can be
// read after it.
func (f *frameReader) next() ([]byte, error) {
	for {
		f.skipSpace()
		if f.start < f.end {
			break
		}
		if err := f.fill(false); err != nil {
			return nil, err
		}
	}
	switch c := f.buf[f.start]; c {
	case '{', '[':
		return f.structure()
	case '"', '-', 't', 'f', 'n', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return f.line()
	default:
		return nil, fmt.Errorf("%w: frame begins with %q, want an object", ErrMalformed, c)
	}
}

// structure reads a frame that is an object or an array.
func (f *frameReader) structure() ([]byte, error) {
	var s frameScanner
	seen := 0
	for {
		n, done, err := s.scan(f.buf[f.start+seen : f.end])
		if err != nil {
			return nil, err
		}
		seen += n
		if seen > f.limit {
			return nil, f.tooLarge()
		}
		if done {
			frame := f.buf[f.start : f.start+seen]
			f.start += seen
			return frame, nil
		}
		if err := f.fill(true); err != nil {
			return nil, err
		}
	}
}

// line reads a frame that is some other JSON value; only the line's end can tell
// where it ends.
func (f *frameReader) line() ([]byte, error) {
	seen := 0
	for {
		n := bytes.IndexByte(f.buf[f.start+seen:f.end], '\n')
		if n >= 0 {
			frame := f.buf[f.start : f.start+seen+n]
			f.start += seen + n
			return frame, nil
		}
		seen = f.end - f.start
		if seen > f.limit {
			return nil, f.tooLarge()
		}
		err := f.fill(true)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			// The stream's end is the line's end as well.
			frame := f.buf[f.start:f.end]
			f.start = f.end
			return frame, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (f *frameReader) tooLarge() error {
	return fmt.Errorf("%w: frame is longer than %d bytes", ErrMessageTooLarge, f.limit)
}

func (f *frameReader) skipSpace() {
	for f.start < f.end {
		switch f.buf[f.start] {
		case ' ', '\t', '\r', '\n':
			f.start++
		default:
			return
		}
	}
}

// fill reads more.
func (f *frameReader) fill(partial bool) error {
	if f.beforeRead != nil {
		if err := f.beforeRead(partial); err != nil {
			return err
		}
	}
	f.makeRoom()
	room := len(f.buf) - f.end
	n, err := f.r.Read(f.buf[f.end:])
	f.end += n
	switch {
	case n == room && len(f.buf) < maxReadBuffer:
		f.resize(2 * len(f.buf))
	case f.end > len(f.buf)/8:
		f.lean = 0
	case len(f.buf) > minReadBuffer:
		if f.lean++; f.lean == 16 {
			f.lean = 0
			f.resize(max(minReadBuffer, len(f.buf)/8))
		}
	}
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	case err == io.EOF && partial:
		return io.ErrUnexpectedEOF
	default:
		return err
	}
}

// makeRoom lets at least one byte be read.
func (f *frameReader) makeRoom() {
	switch {
	case f.buf == nil:
		f.buf = make([]byte, minReadBuffer)
	case f.start == f.end:
		f.start, f.end = 0, 0
		if len(f.buf) > maxReadBuffer {
			f.buf = make([]byte, maxReadBuffer)
		}
	case f.end == len(f.buf) && f.start >= len(f.buf)/2:
		copy(f.buf, f.buf[f.start:f.end])
		f.start, f.end = 0, f.end-f.start
	case f.end == len(f.buf):
		f.resize(2 * len(f.buf))
	}
}

// resize moves what is unread into a buffer of n bytes, in which it fits.
func (f *frameReader) resize(n int) {
	b := make([]byte, max(n, f.end-f.start))
	f.end = copy(b, f.buf[f.start:f.end])
	f.start = 0
	f.buf = b
}

// frameWriter writes frames to a connection. Any goroutine may queue and flush;
// whoever holds the token (writing) writes, and takes what others have queued
// meanwhile with it, so that many small frames leave in few writes. run is the
// goroutine that writes for those who cannot wait.
type frameWriter struct {
	nc      net.Conn
	timeout time.Duration // of one chunk; 0: none

	wake chan struct{} // holds a token when run should look

	progress atomic.Int64 // Unix nanoseconds; see lastProgress

	mu      sync.Mutex    // guards the following; not held while writing
	pending []byte        // queued frames
	spare   []byte        // the buffer that pending is not
	writing bool          // somebody holds the token
	taken   chan struct{} // closed when pending was taken; nil unless waited for
	err     error         // of the write that failed; nothing is written after it
}

func newFrameWriter(nc net.Conn, timeout time.Duration) *frameWriter {
	return &frameWriter{nc: nc, timeout: timeout, wake: make(chan struct{}, 1)}
}

// run writes what is queued until done is closed.
func (w *frameWriter) run(done <-chan struct{}) {
	for {
		select {
		case <-w.wake:
			_ = w.flush() // The failure is kept, and met by whoever comes next.
		case <-done:
			return
		}
	}
}

// queue adds a frame to what will be written by the next flush.
func (w *frameWriter) queue(frame []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.pending = append(w.pending, frame...)
	return nil
}

// send has run write the frame, with whatever else is queued by then.
func (w *frameWriter) send(frame []byte) error {
	if err := w.queue(frame); err != nil {
		return err
	}
	signal(w.wake)
	return nil
}

// sendInline writes the frame itself if nobody else is writing, which saves waking
// run; it is for small frames on a connection that has nothing else under way.
func (w *frameWriter) sendInline(frame []byte) error {
	w.mu.Lock()
	if w.err != nil || w.writing || len(w.pending) > 0 {
		w.mu.Unlock()
		return w.send(frame)
	}
	w.writing = true
	w.mu.Unlock()
	err := w.write(frame)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writing = false
	if err != nil {
		w.failLocked(err)
	} else if len(w.pending) > 0 {
		signal(w.wake)
	}
	return w.err
}

// flush writes what is queued, unless somebody else is at it, who will then.
func (w *frameWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing {
		return w.err
	}
	w.writing = true
	for len(w.pending) > 0 && w.err == nil {
		buf := w.pending
		w.pending, w.spare = w.spare[:0], nil
		if w.taken != nil {
			close(w.taken)
			w.taken = nil
		}
		w.mu.Unlock()
		err := w.write(buf)
		w.mu.Lock()
		w.spare = buf[:0]
		if err != nil {
			w.failLocked(err)
		}
	}
	if cap(w.spare) > keepWriteSpare {
		w.spare = nil
	}
	w.writing = false
	return w.err
}

// write writes b, each chunk of it within the timeout.
func (w *frameWriter) write(b []byte) error {
	for {
		chunk := b[:min(len(b), writeChunk)]
		b = b[len(chunk):]
		if w.timeout > 0 {
			if err := w.nc.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
				return err
			}
		}
		if _, err := w.nc.Write(chunk); err != nil || len(b) == 0 {
			return err
		}
		w.progress.Store(time.Now().UnixNano())
	}
}

// lastProgress is when a part of more than one chunk was taken last. What fits one
// says nothing of the peer: the system takes it.
func (w *frameWriter) lastProgress() time.Time { return time.Unix(0, w.progress.Load()) }

// failLocked ends the connection, so that its reader notices.
func (w *frameWriter) failLocked(err error) {
	w.err = err
	w.pending, w.spare = nil, nil
	if w.taken != nil {
		close(w.taken)
		w.taken = nil
	}
	_ = w.nc.Close() // The write's error says more.
}

// room returns nil if fewer than limit bytes are queued, and otherwise a channel
// that is closed when that may have changed.
func (w *frameWriter) room(limit int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) < limit || w.err != nil {
		return nil
	}
	if w.taken == nil {
		w.taken = make(chan struct{})
	}
	return w.taken
}
