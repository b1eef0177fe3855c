package robust

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
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
	// largeWrite is the size of the buffers that connections which write much share.
	largeWrite = 256 << 10
	// leanReads is how many reads in a row need little before the buffer is made smaller.
	leanReads = 128
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
	bytes      *byteCounters // nil: nobody counts

	buf        []byte
	start, end int // buf[start:end] is read and not given out yet
	lean       int // reads in a row that needed little of a large buffer
	bodyRead   int // of the body that is being read
	reads      int // from r
}

// partial is how much of the frame that has begun is there.
func (f *frameReader) partial() int { return f.bodyRead + f.end - f.start }

// ahead tells whether anything but white space was read of what comes next.
func (f *frameReader) ahead() bool {
	f.skipSpace()
	return f.start < f.end
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

// line returns what has come up to the end of the line in which the next frame begins, nil
// if that has not come. Mostly it is the frame, which whoever decodes it finds out; take then
// takes it.
func (f *frameReader) lineAhead() []byte {
	f.skipSpace()
	if f.start == f.end || f.buf[f.start] != '{' {
		return nil
	}
	n := bytes.IndexByte(f.buf[f.start:f.end], '\n')
	if n < 0 || n > f.limit {
		return nil
	}
	return f.buf[f.start : f.start+n]
}

// take takes a line that lineAhead has returned, but for its end, in place of next.
func (f *frameReader) take(line []byte) { f.start += len(line) }

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

// appendBody reads the n bytes that follow a frame with a body: the line end, exactly one, is
// behind the frame that next returned last, which is not valid any more. They go into dst in
// place of what it holds. Beyond its capacity it grows as they come: who only announces them
// gets no memory.
func (f *frameReader) appendBody(dst []byte, n int) ([]byte, error) {
	dst = dst[:0]
	err := f.readBody(n, func(from int) []byte {
		if from == cap(dst) {
			dst = slices.Grow(dst[:from], min(n-from, max(from, maxReadBuffer)))
		}
		return dst[from:min(n, cap(dst))]
	})
	if err != nil {
		return dst[:0], err
	}
	return dst[:n], nil
}

// skipBody is appendBody for bytes that nobody wants.
func (f *frameReader) skipBody(n int) error {
	sink := make([]byte, min(n, writeChunk))
	return f.readBody(n, func(from int) []byte { return sink[:min(len(sink), n-from)] })
}

// readBody reads n bytes behind a line end, from the offset from on into room(from).
func (f *frameReader) readBody(n int, room func(from int) []byte) error {
	for f.start == f.end {
		if err := f.fill(true); err != nil {
			return err
		}
	}
	if c := f.buf[f.start]; c != '\n' {
		return fmt.Errorf("%w: %q before a body, want a line end", ErrMalformed, c)
	}
	f.start++
	defer func() { f.bodyRead = 0 }()
	for f.bodyRead < n {
		dst := room(f.bodyRead)
		if f.start < f.end {
			k := copy(dst, f.buf[f.start:f.end])
			f.start += k
			f.bodyRead += k
			continue
		}
		// The rest is read to where it belongs.
		if f.beforeRead != nil {
			if err := f.beforeRead(true); err != nil {
				return err
			}
		}
		f.reads++
		k, err := f.r.Read(dst)
		f.bytes.read(k)
		f.bodyRead += k
		switch {
		case k > 0:
		case err == nil:
			return io.ErrNoProgress
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
	return nil
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
	f.reads++
	n, err := f.r.Read(f.buf[f.end:])
	f.bytes.read(n)
	f.end += n
	switch {
	case n == room && len(f.buf) < maxReadBuffer:
		f.resize(2 * len(f.buf))
	case f.end > len(f.buf)/8:
		f.lean = 0
	case len(f.buf) > minReadBuffer:
		if f.lean++; f.lean == leanReads {
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
	large   *sync.Pool    // of *[]byte, largeWrite long; nil: none are shared
	bytes   *byteCounters // nil: nobody counts

	wake chan struct{} // holds a token when run should look

	progress atomic.Int64 // Unix nanoseconds; see lastProgress

	mu      sync.Mutex    // guards the following; not held while writing
	pending outgoing      // queued frames
	spare   outgoing      // the buffers that pending has not
	writing bool          // somebody holds the token
	taken   chan struct{} // closed when pending was taken; nil unless waited for
	err     error         // of the write that failed; nothing is written after it
	queued  int64         // bytes that were queued so far
	written int64         // and of those, how many were written
}

// outgoing is a stream of bytes to be written: most of it copied together, large bodies
// where they are.
type outgoing struct {
	copied   []byte
	large    *[]byte // copied's buffer, if it is a shared one
	lent     []lentBody
	size     int      // of all
	releases []func() // of what was lent; called when it is written, or never will be
}

// lentBody is what comes behind the first bytes of copied.
type lentBody struct {
	at    int
	bytes []byte
}

// copyBody is the size up to which copying a body costs less than writing it apart.
const copyBody = 8 << 10

func (o *outgoing) add(frame []byte, body [][]byte) {
	o.copied = append(o.copied, frame...)
	o.size += len(frame)
	for _, b := range body {
		o.size += len(b)
		if len(b) <= copyBody {
			o.copied = append(o.copied, b...)
		} else {
			o.lent = append(o.lent, lentBody{len(o.copied), b})
		}
	}
}

// release gives back what was lent. The writer's lock is not held: the owner may do what
// he likes.
func (o *outgoing) release() {
	for _, f := range o.releases {
		f()
	}
	clear(o.releases)
	o.releases = o.releases[:0]
}

// reset empties o, and gives up buffers that are larger than is worth keeping.
func (o *outgoing) reset(shared *sync.Pool) {
	clear(o.lent)
	o.copied, o.lent, o.size = o.copied[:0], o.lent[:0], 0
	if o.large != nil {
		shared.Put(o.large)
		o.large, o.copied = nil, nil
	}
	if cap(o.copied) > keepWriteSpare {
		o.copied = nil
	}
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

// queue adds a frame to what will be written by the next flush, and what belongs behind
// it. A large body must not change until it is written, or the connection has ended.
func (w *frameWriter) queue(frame []byte, body ...[]byte) error {
	var end atomic.Int64
	return w.queueTo(&end, frame, body)
}

// roomLocked makes room for n bytes, if they take more than a connection has for itself.
func (w *frameWriter) roomLocked(n int) {
	o := &w.pending
	n += len(o.copied)
	if w.large == nil || n <= cap(o.copied) || n <= keepWriteSpare || n > largeWrite {
		return
	}
	b, ok := w.large.Get().(*[]byte)
	if !ok {
		room := make([]byte, largeWrite)
		b = &room
	}
	o.copied = append((*b)[:0], o.copied...)
	o.large = b
}

// queueBy is queue for frames that encode appends, some n bytes.
func (w *frameWriter) queueBy(n int, encode func(dst []byte) []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.roomLocked(n)
	before := len(w.pending.copied)
	w.pending.copied = encode(w.pending.copied)
	n = len(w.pending.copied) - before
	w.pending.size += n
	w.queued += int64(n)
	return nil
}

// queueTo is queue that sets end, before anything is written, to the position that is
// passed when all of it is.
func (w *frameWriter) queueTo(end *atomic.Int64, frame []byte, body [][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.roomLocked(len(frame))
	before := w.pending.size
	w.pending.add(frame, body)
	w.queued += int64(w.pending.size - before)
	end.Store(w.queued)
	return nil
}

// lend is queue for a body that is somebody's: release is called, once and from any
// goroutine, when nobody looks at it any more, whatever becomes of the connection.
func (w *frameWriter) lend(frame []byte, body [][]byte, release func()) error {
	w.mu.Lock()
	err := w.err
	lent := false
	if err == nil {
		before := w.pending.size
		had := len(w.pending.lent)
		w.pending.add(frame, body)
		w.queued += int64(w.pending.size - before)
		if lent = len(w.pending.lent) > had; lent {
			w.pending.releases = append(w.pending.releases, release)
		}
	}
	w.mu.Unlock()
	if !lent {
		release()
	}
	return err
}

// passed tells whether all up to a position is written, so that nobody looks at it any
// more.
func (w *frameWriter) passed(position int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written >= position
}

// send has run write the frame, with whatever else is queued by then.
func (w *frameWriter) send(frame []byte, body ...[]byte) error {
	if err := w.queue(frame, body...); err != nil {
		return err
	}
	signal(w.wake)
	return nil
}

// sendInline writes the frame itself if nobody else is writing, which saves waking
// run; it is for small frames on a connection that has nothing else under way.
func (w *frameWriter) sendInline(frame []byte) error {
	w.mu.Lock()
	if w.err != nil || w.writing || w.pending.size > 0 {
		w.mu.Unlock()
		return w.send(frame)
	}
	w.writing = true
	w.mu.Unlock()
	failed := w.write(frame, nil)
	w.mu.Lock()
	w.writing = false
	var dropped outgoing
	if failed != nil {
		dropped = w.failLocked(failed)
	} else if w.pending.size > 0 {
		signal(w.wake)
	}
	err := w.err
	w.mu.Unlock()
	dropped.release()
	return err
}

// flush writes what is queued, unless somebody else is at it, who will then.
func (w *frameWriter) flush() error {
	dropped, err := w.flushPending()
	dropped.release()
	return err
}

// flushPending is flush but for what a failure has left, which it returns.
func (w *frameWriter) flushPending() (dropped outgoing, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing {
		return outgoing{}, w.err
	}
	w.writing = true
	for w.pending.size > 0 && w.err == nil {
		out := w.pending
		w.pending, w.spare = w.spare, outgoing{}
		if w.taken != nil {
			close(w.taken)
			w.taken = nil
		}
		w.mu.Unlock()
		err := w.writeAll(&out)
		out.release()
		w.mu.Lock()
		if err != nil {
			dropped = w.failLocked(err)
			break
		}
		w.written += int64(out.size)
		out.reset(w.large)
		w.spare = out
	}
	w.writing = false
	return dropped, w.err
}

// writeAll writes what is copied and what is lent, in order.
func (w *frameWriter) writeAll(o *outgoing) error {
	from := 0
	for _, l := range o.lent {
		if err := w.write(o.copied[from:l.at], l.bytes); err != nil {
			return err
		}
		from = l.at
	}
	if from == len(o.copied) {
		return nil
	}
	return w.write(o.copied[from:], nil)
}

// write writes b and then more, each chunk within the timeout. The end of b and the
// beginning of more go in one call, where the connection can do that.
func (w *frameWriter) write(b, more []byte) error {
	for {
		chunk := b[:min(len(b), writeChunk)]
		b = b[len(chunk):]
		extra := more[:0]
		if len(b) == 0 {
			extra = more[:min(len(more), writeChunk-len(chunk))]
			more = more[len(extra):]
		}
		if w.timeout > 0 {
			if err := w.nc.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
				return err
			}
		}
		if err := w.writeChunk(chunk, extra); err != nil || len(b)+len(more) == 0 {
			return err
		}
		w.progress.Store(time.Now().UnixNano())
	}
}

func (w *frameWriter) writeChunk(b, more []byte) error {
	var n int
	var err error
	switch {
	case len(more) == 0:
		n, err = w.nc.Write(b)
	case len(b) == 0:
		n, err = w.nc.Write(more)
	default:
		if nc, ok := w.nc.(*promptConn); ok {
			n, err = nc.writeBoth(b, more)
		} else {
			var sum int64
			sum, err = (&net.Buffers{b, more}).WriteTo(w.nc)
			n = int(sum)
		}
	}
	w.bytes.wrote(n) // Also of a write that failed in between.
	return err
}

// lastProgress is when a part of more than one chunk was taken last. What fits one
// says nothing of the peer: the system takes it.
func (w *frameWriter) lastProgress() time.Time { return time.Unix(0, w.progress.Load()) }

// failLocked ends the connection, so that its reader notices. What it returns is to be
// released without the lock.
func (w *frameWriter) failLocked(err error) (dropped outgoing) {
	w.err = err
	dropped = w.pending
	w.pending, w.spare = outgoing{}, outgoing{}
	if w.taken != nil {
		close(w.taken)
		w.taken = nil
	}
	_ = w.nc.Close() // The write's error says more.
	return dropped
}

// room returns nil if fewer than limit bytes are queued, and otherwise a channel
// that is closed when that may have changed.
func (w *frameWriter) room(limit int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending.size < limit || w.err != nil {
		return nil
	}
	if w.taken == nil {
		w.taken = make(chan struct{})
	}
	return w.taken
}
