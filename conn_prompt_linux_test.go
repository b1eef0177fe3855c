package robust

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patientPrompt makes a connection one that is detached after few reads, however slow they
// are, and looks for longer than a loaded machine takes.
func patientPrompt(nc net.Conn) *promptConn {
	c := promptOf(nc).(*promptConn)
	c.wait, c.patience = time.Hour, 20*time.Millisecond
	return c
}

// forDetached gives the process processors enough for n detached connections.
func forDetached(t *testing.T, n int) {
	t.Helper()
	before := runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 2*n))
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// tcpPair returns both ends of a connection.
func tcpPair(t *testing.T) (here, there *net.TCPConn) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	b, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// detachedPair returns a connection that is detached, and its peer.
func detachedPair(t *testing.T) (*promptConn, *net.TCPConn) {
	t.Helper()
	forDetached(t, 1)
	here, there := tcpPair(t)
	c := patientPrompt(here)
	t.Cleanup(func() { c.Close() })
	require.Eventually(t, func() bool { c.detach(); return c.nc == nil }, 10*time.Second, time.Millisecond,
		"another test's connections are detached")
	c.expect(true)
	return c, there
}

func processFiles(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	return len(files)
}

func TestPromptDetachesAndAttaches(t *testing.T) {
	forDetached(t, 1)
	here, there := tcpPair(t)
	c := patientPrompt(here)
	echo := func() {
		t.Helper()
		_, err := there.Write([]byte("ping"))
		require.NoError(t, err)
		b := make([]byte, 16)
		n, err := c.Read(b)
		require.NoError(t, err)
		require.Equal(t, "ping", string(b[:n]))
		_, err = c.Write([]byte("pong"))
		require.NoError(t, err)
		_, err = io.ReadFull(there, b[:4])
		require.NoError(t, err)
		require.Equal(t, "pong", string(b[:4]))
	}
	// What is not expected soon is read as ever.
	for range 2 * promptAfter {
		echo()
		require.NotNil(t, c.nc)
	}
	for round := range 3 {
		c.expect(true)
		require.Eventually(t, func() bool { echo(); return c.nc == nil }, time.Minute, time.Microsecond, "round %d", round)
		echo()
		c.expect(false)
		echo()
		require.IsType(t, (*os.File)(nil), c.nc, "round %d", round)
	}
	// And what does not come is waited for as ever, less readily each time.
	c.expect(true)
	require.Eventually(t, func() bool { echo(); return c.nc == nil }, time.Minute, time.Microsecond)
	after := c.after
	var late sync.WaitGroup
	late.Go(func() {
		for attached := false; !attached; {
			runtime.Gosched()
			c.mu.Lock()
			attached = c.nc != nil
			c.mu.Unlock()
		}
		_, err := there.Write([]byte("late"))
		if err != nil {
			t.Error(err)
		}
	})
	b := make([]byte, 16)
	n, err := c.Read(b)
	late.Wait()
	require.NoError(t, err)
	require.Equal(t, "late", string(b[:n]))
	require.NotNil(t, c.nc)
	require.Equal(t, 2*after, c.after)
}

// A connection that its maker has put into blocking mode, as os.File.Fd does, stays with the
// poller: looking at it lasted until something came.
func TestPromptBlockingStaysAttached(t *testing.T) {
	forDetached(t, 1)
	here, _ := tcpPair(t)
	file, err := here.File()
	require.NoError(t, err)
	file.Fd()
	require.NoError(t, file.Close())
	require.Eventually(t, func() bool { return detached.Load() == 0 }, time.Minute, time.Millisecond)
	files := processFiles(t)
	c := patientPrompt(here)
	c.detach()
	require.NotNil(t, c.nc)
	require.Zero(t, detached.Load())
	require.LessOrEqual(t, processFiles(t), files)
}

// What the peer did before it wrote, it did before the read, also for the race detector, by
// which this test fails: users' tests of both ends in one process rely on that.
func TestPromptReadFollowsWrite(t *testing.T) {
	c, there := detachedPair(t)
	c.patience = time.Minute
	done := 0
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 16))
		done++
		read <- err
	}()
	awaitUse(t, c)
	done++
	_, err := there.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, <-read)
	require.Equal(t, 2, done)
}

// keepingListener keeps what it accepts.
type keepingListener struct {
	net.Listener
	kept chan net.Conn
}

func (l *keepingListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err == nil {
		l.kept <- nc
	}
	return nc, err
}

// Connections that somebody else may have kept are left as they are, so that closing them cuts
// them off; those that nobody else can have are not.
func TestPromptIsOwn(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			b, err := NewBroker()
			require.NoError(t, err)
			defer b.Close()
			l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			require.NoError(t, err)
			opts := []Option{WithBrokers(l.Addr().String())}
			var dialled net.Conn
			if !own {
				l = &keepingListener{Listener: l, kept: make(chan net.Conn, 1)}
				opts = append(opts, WithDialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
					dialled, err = new(net.Dialer).DialContext(ctx, network, addr)
					return dialled, err
				}))
			}
			served := make(chan error, 1)
			go func() { served <- b.Serve(l) }()
			c, err := New(opts...)
			require.NoError(t, err)
			defer c.Close()
			opened, _, err := c.pool.connect(t.Context(), l.Addr().String(), ProtocolAuto)
			require.NoError(t, err)
			defer opened.nc.Close()
			b.mu.Lock()
			conns := slices.Collect(maps.Keys(b.conns))
			b.mu.Unlock()
			require.Len(t, conns, 1)
			require.Equal(t, own, conns[0].prompt != nil, "the broker's")
			if kept, ok := l.(*keepingListener); ok {
				require.Same(t, <-kept.kept, conns[0].nc)
			}
			require.Equal(t, own, opened.prompt != nil, "the client's")
			if !own {
				require.Same(t, dialled, opened.nc)
			}
			require.NoError(t, b.Close())
			require.ErrorIs(t, <-served, ErrClosed)
		})
	}
}

func TestPromptEnds(t *testing.T) {
	b := make([]byte, 16)
	t.Run("peer closes", func(t *testing.T) {
		c, there := detachedPair(t)
		require.NoError(t, there.Close())
		_, err := c.Read(b)
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("peer resets", func(t *testing.T) {
		c, there := detachedPair(t)
		require.NoError(t, there.SetLinger(0))
		require.NoError(t, there.Close())
		_, err := c.Read(b)
		require.ErrorContains(t, err, "reset")
	})
	t.Run("closed before", func(t *testing.T) {
		c, _ := detachedPair(t)
		require.NoError(t, c.Close())
		_, err := c.Read(b)
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = c.Write(b)
		require.ErrorIs(t, err, net.ErrClosed)
		require.ErrorIs(t, c.SetDeadline(time.Time{}), net.ErrClosed)
		require.ErrorIs(t, c.CloseWrite(), net.ErrClosed)
		require.ErrorIs(t, c.Close(), net.ErrClosed)
	})
	t.Run("closed without lingering", func(t *testing.T) {
		c, there := detachedPair(t)
		require.NoError(t, syscall.SetsockoptLinger(c.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}))
		require.NoError(t, c.Close())
		_, err := there.Read(b)
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
	t.Run("closed during a read", func(t *testing.T) {
		c, there := detachedPair(t)
		c.patience = time.Hour
		ended := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 16))
			ended <- err
		}()
		awaitUse(t, c)
		require.NoError(t, c.Close())
		require.Error(t, <-ended)
		_, err := there.Read(b)
		require.ErrorIs(t, err, io.EOF)
	})
	t.Run("deadline before", func(t *testing.T) {
		c, there := detachedPair(t)
		require.NoError(t, c.SetReadDeadline(time.Unix(1, 0)))
		_, err := c.Read(b)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, c.SetReadDeadline(time.Time{}))
		_, err = there.Write([]byte("x"))
		require.NoError(t, err)
		n, err := c.Read(b)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
	t.Run("deadline during a read", func(t *testing.T) {
		c, _ := detachedPair(t)
		c.patience = time.Second
		ended := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 16))
			ended <- err
		}()
		awaitUse(t, c)
		require.NoError(t, c.SetReadDeadline(time.Unix(1, 0)))
		require.ErrorIs(t, <-ended, os.ErrDeadlineExceeded)
	})
	t.Run("no more is written", func(t *testing.T) {
		c, there := detachedPair(t)
		require.NoError(t, c.CloseWrite())
		_, err := there.Read(b)
		require.ErrorIs(t, err, io.EOF)
		_, err = there.Write([]byte("x"))
		require.NoError(t, err)
		n, err := c.Read(b)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
}

// What a connection fails with is the same before it was detached, while it is, and after.
func TestPromptErrors(t *testing.T) {
	b := make([]byte, 16)
	for name, move := range map[string]func(t *testing.T, c *promptConn){
		"detached":       func(*testing.T, *promptConn) {},
		"attached again": func(t *testing.T, c *promptConn) { require.True(t, c.attach()) },
		"never detached": nil,
	} {
		t.Run(name, func(t *testing.T) {
			var c *promptConn
			var there *net.TCPConn
			if move == nil {
				var here *net.TCPConn
				here, there = tcpPair(t)
				c = promptOf(here).(*promptConn)
			} else {
				c, there = detachedPair(t)
				move(t, c)
			}
			failed := func(op string, err, want error) {
				t.Helper()
				require.ErrorIs(t, err, want)
				var netErr net.Error
				require.ErrorAs(t, err, &netErr)
				require.Equal(t, errors.Is(want, os.ErrDeadlineExceeded), netErr.Timeout())
				var opErr *net.OpError
				require.ErrorAs(t, err, &opErr)
				require.Equal(t, op, opErr.Op)
				require.Equal(t, there.RemoteAddr(), opErr.Source)
				require.Equal(t, there.LocalAddr(), opErr.Addr)
			}
			require.NoError(t, c.SetDeadline(time.Unix(1, 0)))
			_, err := c.Read(b)
			failed("read", err, os.ErrDeadlineExceeded)
			_, err = c.Write(b)
			failed("write", err, os.ErrDeadlineExceeded)
			require.NoError(t, c.SetDeadline(time.Time{}))
			require.NoError(t, there.SetLinger(0))
			require.NoError(t, there.Close())
			_, err = c.Read(b)
			failed("read", err, syscall.ECONNRESET)
			var call *os.SyscallError
			require.ErrorAs(t, err, &call)
			_, err = c.Write(b)
			failed("write", err, syscall.EPIPE)
			require.NoError(t, c.Close())
			_, err = c.Read(b)
			failed("read", err, net.ErrClosed)
			_, err = c.Write(b)
			failed("write", err, net.ErrClosed)
			require.ErrorIs(t, c.SetReadDeadline(time.Time{}), net.ErrClosed)
			require.ErrorIs(t, c.SetWriteDeadline(time.Time{}), net.ErrClosed)
			require.ErrorIs(t, c.CloseWrite(), net.ErrClosed)
			require.ErrorIs(t, c.Close(), net.ErrClosed)
		})
	}
}

// awaitUse waits until somebody uses the detached socket.
func awaitUse(t *testing.T, c *promptConn) {
	t.Helper()
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.users > 0
	}, time.Minute, time.Microsecond)
}

// A writer whose peer does not read waits as long as its deadline allows, and does not
// keep the reader from reading.
func TestPromptWriterWaits(t *testing.T) {
	c, there := detachedPair(t)
	payload := make([]byte, 32<<20)
	_, _ = rand.Read(payload)
	written := make(chan error, 1)
	go func() {
		_, err := c.Write(payload)
		written <- err
	}()
	awaitUse(t, c)
	_, err := there.Write([]byte("meanwhile"))
	require.NoError(t, err)
	c.expect(false) // Which it cannot be attached for while somebody writes.
	b := make([]byte, 16)
	n, err := c.Read(b)
	require.NoError(t, err)
	require.Equal(t, "meanwhile", string(b[:n]))
	got := make([]byte, len(payload))
	_, err = io.ReadFull(there, got)
	require.NoError(t, err)
	require.NoError(t, <-written)
	require.True(t, bytes.Equal(payload, got))

	require.NoError(t, c.Close())
	c, _ = detachedPair(t)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = c.Write(payload)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, c.SetWriteDeadline(time.Time{}))
	go func() {
		_, err := c.Write(payload)
		written <- err
	}()
	awaitUse(t, c)
	require.NoError(t, c.Close())
	require.Error(t, <-written)
}

// A reader whose connection cannot be attached, because a writer waits for its peer, ends all
// the same.
func TestPromptEndsBesideWriter(t *testing.T) {
	for name, end := range map[string]struct {
		how  func(c *promptConn, there *net.TCPConn) error
		want error
	}{
		"deadline": {func(c *promptConn, _ *net.TCPConn) error { return c.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"end":      {func(_ *promptConn, there *net.TCPConn) error { return there.CloseWrite() }, io.EOF},
		"close":    {func(c *promptConn, _ *net.TCPConn) error { return c.Close() }, net.ErrClosed},
	} {
		for _, soon := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", soon ", soon), func(t *testing.T) {
				c, there := detachedPair(t)
				var writer sync.WaitGroup
				writer.Go(func() { _, _ = c.Write(make([]byte, 64<<20)) }) // Until it is closed.
				awaitUse(t, c)
				require.NoError(t, end.how(c, there))
				c.expect(soon)
				ended := make(chan error, 1)
				go func() {
					_, err := c.Read(make([]byte, 16))
					ended <- err
				}()
				select {
				case err := <-ended:
					require.ErrorIs(t, err, end.want)
				case <-time.After(20 * time.Second):
					t.Error("the reader does not end")
				}
				_ = c.Close()
				writer.Wait()
			})
		}
	}
}

func TestPromptWritesBoth(t *testing.T) {
	forDetached(t, 1)
	here, there := tcpPair(t)
	c := patientPrompt(here)
	both := func(state string) {
		t.Helper()
		n, err := c.writeBoth([]byte("head "), []byte("body"))
		require.NoError(t, err, state)
		require.Equal(t, 9, n, state)
		b := make([]byte, 9)
		_, err = io.ReadFull(there, b)
		require.NoError(t, err, state)
		require.Equal(t, "head body", string(b), state)
	}
	both("attached")
	require.Eventually(t, func() bool { c.detach(); return c.nc == nil }, time.Minute, time.Millisecond)
	both("detached")
	require.True(t, c.attach())
	both("attached again")
}

// No more connections are detached than may be, none keeps its place when it is closed, and
// no file stays open.
func TestPromptPlaces(t *testing.T) {
	forDetached(t, 2)
	most := runtime.GOMAXPROCS(0) / 2
	require.Eventually(t, func() bool { return detached.Load() == 0 }, time.Minute, time.Millisecond)
	files := processFiles(t)
	for range 20 {
		var all []*promptConn
		for range most + 3 {
			here, _ := tcpPair(t)
			c := patientPrompt(here)
			c.detach()
			all = append(all, c)
		}
		require.LessOrEqual(t, int(detached.Load()), most)
		require.Positive(t, detached.Load())
		for i, c := range all {
			if i%2 == 0 && c.nc == nil {
				require.True(t, c.attach())
			}
			require.NoError(t, c.Close())
		}
		require.Eventually(t, func() bool { return detached.Load() == 0 }, time.Minute, time.Millisecond)
	}
	runtime.GC()
	// The peers are closed at the end of the test.
	require.LessOrEqual(t, processFiles(t)-files, 20*(most+3)+8)
}

// promptListener accepts connections that are detached soon.
type promptListener struct {
	net.Listener
	mu    sync.Mutex
	conns []*promptConn
}

func (l *promptListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := patientPrompt(nc)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, c)
	return c, nil
}

// wasDetached tells whether any of the connections was.
func wasDetached(conns []*promptConn) bool {
	for _, c := range conns {
		c.mu.Lock()
		_, tcp := c.nc.(*net.TCPConn)
		c.mu.Unlock()
		if !tcp {
			return true
		}
	}
	return false
}

// Both ends of a producer's connection are detached while it sends one message after the
// other; whatever interrupts that, each message is stored once and in order.
func TestPromptProducer(t *testing.T) {
	forDetached(t, 4)
	b, err := NewBroker(WithTopic("t", 1), WithDataDir(t.TempDir()))
	require.NoError(t, err)
	defer b.Close()
	tcp, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := &promptListener{Listener: tcp}
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	var mu sync.Mutex
	var dialled []*promptConn
	c, err := New(WithBrokers(tcp.Addr().String()), WithDialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		p := patientPrompt(nc)
		mu.Lock()
		defer mu.Unlock()
		dialled = append(dialled, p)
		return p, nil
	}))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var sent []string
	send := func(ctx context.Context, n int) {
		for range n {
			value := fmt.Sprint(len(sent))
			_, err := p.Send(ctx, &Message{Topic: "t", Value: []byte(value)})
			require.NoError(t, err)
			sent = append(sent, value)
		}
	}
	send(ctx, 100)
	mu.Lock()
	require.True(t, wasDetached(dialled), "the client's")
	mu.Unlock()
	l.mu.Lock()
	require.True(t, wasDetached(l.conns), "the broker's")
	l.mu.Unlock()

	// Others join, and leave it alone again.
	var others sync.WaitGroup
	for range 4 {
		others.Go(func() {
			for range 50 {
				if _, err := p.Send(ctx, &Message{Topic: "t", Key: []byte("other"), Value: []byte("other")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	send(ctx, 50)
	others.Wait()
	send(ctx, 50)
	// The caller gives up, or the connection breaks, at any moment.
	given := 0
	for i := range 50 {
		short, cancel := context.WithTimeout(ctx, time.Duration(i*5)*time.Microsecond)
		_, err := p.Send(short, &Message{Topic: "t", Key: []byte("given up"), Value: []byte("given up")})
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			given++
		}
		send(ctx, 1)
	}
	for range 5 {
		l.mu.Lock()
		_ = l.conns[len(l.conns)-1].Close()
		l.mu.Unlock()
		send(ctx, 20)
	}
	var got []string
	reader, err := c.PartitionConsumer("t", 0)
	require.NoError(t, err)
	for m, err := range reader.All(ctx) {
		require.NoError(t, err)
		if m.Key == nil {
			got = append(got, string(m.Value))
		}
		if len(got) == len(sent) {
			break
		}
	}
	require.Equal(t, sent, got)
	require.NoError(t, c.Close())
	require.NoError(t, b.Shutdown(ctx))
	require.ErrorIs(t, <-served, ErrClosed)
	require.Eventually(t, func() bool { return detached.Load() == 0 }, time.Minute, time.Millisecond)
}
