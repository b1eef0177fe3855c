package robust

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	// promptAfter is after how many waits in a row that were over within promptWait a
	// connection is detached, and promptMost how many that takes at most: after each
	// promptLook that was in vain it takes twice as many.
	promptAfter = 8
	promptWait  = 250 * time.Microsecond
	promptMost  = 1024
	// promptLook is for how long the reader of a detached connection looks for what is to
	// come.
	promptLook = 100 * time.Microsecond
	// promptStep is how long a detached connection waits for the system at a time, where it
	// has to.
	promptStep = 10 * time.Millisecond
)

// promptConn is a TCP connection that is detached from the runtime's poller while what its
// reader waits for comes at once, time and again.
//
// For what comes to any other connection the system wakes a thread that polls, and the
// runtime its supervisor, its scheduler and by these the goroutine. With one message in
// flight that is most of a round trip, and of what it takes of the processors. The reader
// of a detached connection looks for what is to come, and nobody is woken. When that is in
// vain the connection is attached again, and waits as any other.
type promptConn struct {
	local, remote net.Addr

	// The following are the reader's.
	soon   bool // what is read next may come at once
	streak int  // waits in a row that were short
	after  int  // how many it takes

	wait, patience time.Duration // promptWait and promptLook

	// writing is held while something is written, and while the reader moves the
	// connection; taken before mu.
	writing sync.Mutex

	mu            sync.Mutex   // guards the following
	nc            attachedConn // nil while detached; moved by the reader, with writing held
	fd            int          // the socket while detached
	users         int          // of fd, which is not closed before they are done
	closed        bool
	readDeadline  time.Time
	writeDeadline time.Time
}

// attachedConn is a *net.TCPConn or, once it was detached, an *os.File.
type attachedConn interface {
	io.ReadWriteCloser
	syscall.Conn
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// errBlocks is why a connection whose calls block cannot be detached: looking would last until
// something comes.
var errBlocks = errors.New("the connection is in blocking mode")

// detached is how many connections of the process are. They may be half as many as there
// are processors, which others need as well.
var detached atomic.Int32 //nolint:gochecknoglobals // the processors are the process's

// promptOf makes a connection a promptConn, if it can be one. Nobody else may have it: what
// they closed or asked for its descriptor would no longer be the connection.
func promptOf(nc net.Conn) net.Conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	return &promptConn{nc: tcp, local: tcp.LocalAddr(), remote: tcp.RemoteAddr(), after: promptAfter, wait: promptWait, patience: promptLook, fd: -1}
}

// expect tells whether what is read next may come at once. It is the reader's; nil is
// the promptConn of a connection that is none.
func (c *promptConn) expect(soon bool) {
	if c != nil {
		c.soon = soon
	}
}

func (c *promptConn) LocalAddr() net.Addr  { return c.local }
func (c *promptConn) RemoteAddr() net.Addr { return c.remote }

// Read looks at c.nc without the lock: nobody else moves it.
func (c *promptConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // A read of no bytes would look like the end.
	}
	if c.soon && c.nc != nil && c.streak >= c.after {
		c.detach()
	}
	if c.nc == nil {
		if c.soon {
			if n, err := c.look(b); n > 0 || err != nil {
				c.after = max(c.after-1, promptAfter)
				return n, err
			}
			c.after = min(2*c.after, promptMost)
		}
		c.streak = 0
		for !c.attach() {
			// Somebody writes more than the peer reads, who may be waiting for us to read.
			if n, err := c.readWithin(b, promptStep); n > 0 || err != nil {
				return n, err
			}
		}
	}
	if !c.soon {
		n, err := c.nc.Read(b)
		return n, c.netError(err)
	}
	began := time.Now()
	n, err := c.nc.Read(b)
	if time.Since(began) <= c.wait {
		c.streak++
	} else {
		c.streak = 0
	}
	return n, c.netError(err)
}

// look reads what comes while it is looked for; nothing if it does not come.
func (c *promptConn) look(b []byte) (int, error) {
	if _, err := c.use(&c.readDeadline); err != nil {
		return 0, c.opError("read", err)
	}
	defer c.unuse()
	for until := time.Now().Add(c.patience); ; {
		n, err := c.readNow(b)
		if n > 0 || err != nil || time.Now().After(until) {
			return n, err
		}
		// The peer may need this processor.
		_, _, _ = syscall.Syscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// readWithin is look for more than a moment.
func (c *promptConn) readWithin(b []byte, patience time.Duration) (int, error) {
	if _, err := c.use(&c.readDeadline); err != nil {
		return 0, c.opError("read", err)
	}
	defer c.unuse()
	awaitSocket(c.fd, awaitRead, patience)
	return c.readNow(b)
}

// readNow reads what is there, nothing if nothing is. What it fails with the system tells
// only once. syscall.Read tells the race detector, as the reads of package net do, that what
// was done before the write was done before the read.
func (c *promptConn) readNow(b []byte) (int, error) {
	n, err := syscall.Read(c.fd, b)
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EINTR):
		return 0, nil
	case err != nil:
		return 0, c.opError("read", os.NewSyscallError("read", err))
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// opError makes an error as those of package net.
func (c *promptConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.remote.Network(), Source: c.local, Addr: c.remote, Err: err}
}

// netError makes an error of an os.File what it were of package net.
func (c *promptConn) netError(err error) error {
	var failed *os.PathError
	if err == nil || !errors.As(err, &failed) {
		return err
	}
	var errno syscall.Errno
	switch err = failed.Err; {
	case errors.Is(err, os.ErrClosed):
		err = net.ErrClosed
	case errors.As(err, &errno):
		err = os.NewSyscallError(failed.Op, errno)
	}
	return c.opError(failed.Op, err)
}

func (c *promptConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.nc != nil {
		n, err := c.nc.Write(b)
		return n, c.netError(err)
	}
	for written := 0; ; {
		n, err := c.writeSome(b[written:])
		if written += n; written == len(b) {
			return written, nil
		}
		if err != nil {
			return written, c.opError("write", err)
		}
	}
}

// writeSome writes what there is room for, and waits a moment if there is none.
func (c *promptConn) writeSome(b []byte) (int, error) {
	deadline, err := c.use(&c.writeDeadline)
	if err != nil {
		return 0, err
	}
	defer c.unuse()
	n, err := syscall.Write(c.fd, b)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, syscall.EINTR):
	case errors.Is(err, syscall.EAGAIN):
		patience := promptStep
		if !deadline.IsZero() {
			patience = max(0, min(patience, time.Until(deadline)))
		}
		awaitSocket(c.fd, awaitWrite, patience)
	default:
		return 0, os.NewSyscallError("write", err)
	}
	return 0, nil
}

// writeBoth writes two slices, with one call where that can be.
func (c *promptConn) writeBoth(b, more []byte) (int, error) {
	c.writing.Lock()
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		defer c.writing.Unlock()
		n, err := (&net.Buffers{b, more}).WriteTo(tcp)
		return int(n), err
	}
	c.writing.Unlock()
	n, err := c.Write(b)
	if err != nil {
		return n, err
	}
	k, err := c.Write(more)
	return n + k, err
}

// use begins a use of the detached socket, and returns the deadline that applies.
func (c *promptConn) use(deadline *time.Time) (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return time.Time{}, net.ErrClosed
	case !deadline.IsZero() && !time.Now().Before(*deadline):
		return time.Time{}, os.ErrDeadlineExceeded
	}
	c.users++
	return *deadline, nil
}

func (c *promptConn) unuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users--
	c.closeUnusedLocked()
}

// closeUnusedLocked closes the detached socket after Close, when nobody uses it.
func (c *promptConn) closeUnusedLocked() {
	if c.closed && c.users == 0 && c.fd >= 0 {
		closeNow(c.fd)
		c.fd = -1
		detached.Add(-1)
	}
}

// detach takes the connection away from the poller, if it may be and nobody writes.
func (c *promptConn) detach() {
	c.streak = 0 // It is tried again after as many.
	if !c.writing.TryLock() {
		return
	}
	defer c.writing.Unlock()
	if int(detached.Add(1)) > runtime.GOMAXPROCS(0)/2 {
		detached.Add(-1)
		return
	}
	c.mu.Lock()
	old := c.nc
	fd, err := dupOf(old)
	if err == nil && !c.closed {
		c.nc, c.fd = nil, fd
		c.mu.Unlock()
		_ = old.Close() // The socket goes on.
		return
	}
	c.mu.Unlock()
	if err == nil {
		closeNow(fd)
	}
	detached.Add(-1)
}

// attach gives the connection to the poller, unless it is closed or somebody writes.
func (c *promptConn) attach() bool {
	if !c.writing.TryLock() {
		return false
	}
	defer c.writing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.nc = os.NewFile(uintptr(c.fd), c.remote.String())
	c.fd = -1
	detached.Add(-1)
	// They fail only if the connection has ended, which whoever uses it learns.
	_ = c.nc.SetReadDeadline(c.readDeadline)
	_ = c.nc.SetWriteDeadline(c.writeDeadline)
	return true
}

func (c *promptConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline ends a Read that is under way while the connection is detached within
// promptStep of the deadline.
func (c *promptConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readDeadline = t
	if c.closed {
		return net.ErrClosed
	}
	if c.nc == nil {
		return nil
	}
	return c.nc.SetReadDeadline(t)
}

// SetWriteDeadline is as SetReadDeadline.
func (c *promptConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeDeadline = t
	if c.closed {
		return net.ErrClosed
	}
	if c.nc == nil {
		return nil
	}
	return c.nc.SetWriteDeadline(t)
}

// CloseWrite tells the peer that nothing more is written.
func (c *promptConn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if c.nc == nil {
		return os.NewSyscallError("shutdown", syscall.Shutdown(c.fd, syscall.SHUT_WR))
	}
	var failed error
	err := control(c.nc, func(fd int) { failed = syscall.Shutdown(fd, syscall.SHUT_WR) })
	return errors.Join(err, os.NewSyscallError("shutdown", failed))
}

func (c *promptConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if c.nc != nil {
		return c.nc.Close()
	}
	if c.users > 0 {
		// It ends the waits of who reads or writes. It fails if the peer has ended it. Where
		// nobody waits, closing says what SO_LINGER has it say.
		_ = syscall.Shutdown(c.fd, syscall.SHUT_RDWR)
	}
	c.closeUnusedLocked()
	return nil
}

// control calls f with the file descriptor of a connection, which stays open meanwhile.
func control(nc syscall.Conn, f func(fd int)) error {
	raw, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// dupOf returns a second file descriptor of a connection. It is none of the standard ones,
// which os.File takes for a terminal's or a pipe's. A connection whose calls block has none:
// os.File.Fd makes it one for whoever took a *os.File of it.
func dupOf(nc syscall.Conn) (fd int, err error) {
	const least = 3
	var failed error
	err = control(nc, func(from int) {
		flags, err := fcntl(from, syscall.F_GETFL, 0)
		if failed = err; err != nil {
			return
		}
		if flags&syscall.O_NONBLOCK == 0 {
			failed = errBlocks
			return
		}
		fd, failed = fcntl(from, syscall.F_DUPFD_CLOEXEC, least)
	})
	return fd, errors.Join(err, failed)
}

func fcntl(fd, command, arg int) (int, error) {
	r, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), uintptr(command), uintptr(arg))
	if errno != 0 {
		return 0, os.NewSyscallError("fcntl", errno)
	}
	return int(r), nil
}

// closeNow closes a file descriptor with which nothing can be lost.
func closeNow(fd int) { _ = syscall.Close(fd) }

// pollFd is what ppoll(2) takes and returns.
type pollFd struct {
	fd      int32
	events  int16
	revents int16
}

const (
	awaitRead  = 0x1 // POLLIN
	awaitWrite = 0x4 // POLLOUT
)

// awaitSocket waits until fd can be read or written, has ended, or patience has.
func awaitSocket(fd int, events int16, patience time.Duration) {
	p := pollFd{fd: int32(fd), events: events}
	timeout := syscall.NsecToTimespec(int64(patience))
	_, _, _ = syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
}
