package robust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipeResult is what a Read or a Write returned.
type pipeResult struct {
	n   int
	err error
}

// background runs a Read or a Write that may block; its result comes on the channel.
func background(op func([]byte) (int, error), b []byte) <-chan pipeResult {
	done := make(chan pipeResult, 1)
	go func() {
		n, err := op(b)
		done <- pipeResult{n, err}
	}()
	return done
}

// requireBlocked fails if the result is there although nothing else is going to
// happen. It works in a bubble only.
func requireBlocked(t *testing.T, done <-chan pipeResult) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-done:
		require.Failf(t, "did not block", "returned %d, %v", r.n, r.err)
	default:
	}
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
}

// filledPipe returns a pipe in which a's direction is full.
func filledPipe(t *testing.T) (a, b *pipeConn) {
	t.Helper()
	a, b = newPipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	n, err := a.Write(make([]byte, pipeBuffer))
	require.NoError(t, err)
	require.Equal(t, pipeBuffer, n)
	return a, b
}

func TestPipeCarriesBothDirections(t *testing.T) {
	a, b := newPipe()
	const total = 3 * pipeBuffer
	sent := make([]byte, total)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	var running sync.WaitGroup
	for _, end := range []*pipeConn{a, b} {
		running.Go(func() {
			for rest := sent; len(rest) > 0; {
				n := min(1+rand.IntN(pipeBuffer/2), len(rest))
				written, err := end.Write(rest[:n])
				if err != nil || written != n {
					t.Errorf("wrote %d of %d: %v", written, n, err)
					return
				}
				rest = rest[n:]
			}
		})
		running.Go(func() {
			var got []byte
			buf := make([]byte, 10_000)
			for len(got) < total {
				n, err := end.Read(buf[:1+rand.IntN(len(buf))])
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, buf[:n]...)
			}
			if !bytes.Equal(sent, got) {
				t.Error("what was read is not what was written")
			}
		})
	}
	running.Wait()
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}

func TestPipeAddresses(t *testing.T) {
	a, b := newPipe()
	defer a.Close()
	defer b.Close()
	for _, addr := range []net.Addr{a.LocalAddr(), a.RemoteAddr(), b.LocalAddr(), b.RemoteAddr()} {
		require.Equal(t, "memory", addr.Network())
		require.Equal(t, embeddedAddr, addr.String())
	}
}

// TestPipeBuffer holds the buffer's limits: a writer waits when it is full, and goes
// on with every byte of room.
func TestPipeBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := filledPipe(t)
		done := background(a.Write, make([]byte, 10))
		for range 10 {
			requireBlocked(t, done)
			n, err := b.Read(make([]byte, 1))
			require.NoError(t, err)
			require.Equal(t, 1, n)
		}
		require.Equal(t, pipeResult{10, nil}, <-done)

		// The other direction has a buffer of its own.
		n, err := b.Write(make([]byte, pipeBuffer))
		require.NoError(t, err)
		require.Equal(t, pipeBuffer, n)
		a.out.mu.Lock()
		require.Len(t, a.out.data, pipeBuffer)
		require.LessOrEqual(t, cap(a.out.buf), 2*pipeBuffer)
		a.out.mu.Unlock()
	})
}

// TestPipeKeepsNoMore writes and reads through the buffer for long, at every fill,
// and holds that it does not grow.
func TestPipeKeepsNoMore(t *testing.T) {
	a, b := newPipe()
	defer a.Close()
	defer b.Close()
	for i := range 2000 {
		chunk := bytes.Repeat([]byte{byte(i)}, 1+i*31%9000)
		_, err := a.Write(chunk)
		require.NoError(t, err)
		got := make([]byte, len(chunk))
		_, err = io.ReadFull(b, got)
		require.NoError(t, err)
		require.Equal(t, chunk, got)
	}
	require.LessOrEqual(t, cap(a.out.buf), 16<<10)
}

func TestPipeEmptyReadsAndWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := filledPipe(t)
		n, err := b.Read(nil)
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = a.Read(nil) // Nothing to read, and nothing asked for.
		require.NoError(t, err)
		require.Zero(t, n)
		n, err = a.Write(nil) // No room, and none needed.
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

func TestPipeReadDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe()
		defer a.Close()
		defer b.Close()
		start := time.Now()

		require.NoError(t, a.SetReadDeadline(start.Add(time.Hour)))
		n, err := a.Read(make([]byte, 1))
		requireTimeout(t, err)
		require.Zero(t, n)
		require.Equal(t, time.Hour, time.Since(start))

		// It stays passed, even if there is something to read, until it is moved.
		_, err = b.Write([]byte("x"))
		require.NoError(t, err)
		_, err = a.Read(make([]byte, 1))
		requireTimeout(t, err)
		require.NoError(t, a.SetReadDeadline(time.Time{}))
		n, err = a.Read(make([]byte, 1))
		require.NoError(t, err)
		require.Equal(t, 1, n)

		// A blocked read follows the deadline as it moves: later, sooner, away, past.
		start = time.Now()
		require.NoError(t, a.SetReadDeadline(start.Add(time.Minute)))
		done := background(a.Read, make([]byte, 1))
		requireBlocked(t, done)
		require.NoError(t, a.SetReadDeadline(start.Add(time.Hour)))
		<-time.After(2 * time.Minute)
		requireBlocked(t, done)
		require.NoError(t, a.SetReadDeadline(start.Add(3*time.Minute)))
		requireBlocked(t, done)
		<-time.After(2 * time.Minute)
		requireTimeout(t, (<-done).err)

		require.NoError(t, a.SetReadDeadline(time.Now().Add(time.Minute)))
		done = background(a.Read, make([]byte, 1))
		requireBlocked(t, done)
		require.NoError(t, a.SetReadDeadline(time.Time{}))
		<-time.After(time.Hour)
		requireBlocked(t, done)
		require.NoError(t, a.SetReadDeadline(time.Unix(1, 0)))
		requireTimeout(t, (<-done).err)

		// The peer's deadlines, and writes, are other matters.
		_, err = a.Write([]byte("y"))
		require.NoError(t, err)
		_, err = b.Read(make([]byte, 1))
		require.NoError(t, err)
	})
}

func TestPipeWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := filledPipe(t)
		start := time.Now()
		require.NoError(t, a.SetWriteDeadline(start.Add(time.Minute)))
		n, err := a.Write([]byte("abc"))
		requireTimeout(t, err)
		require.Zero(t, n)
		require.Equal(t, time.Minute, time.Since(start))

		// What went in before the deadline counts.
		_, err = b.Read(make([]byte, 2))
		require.NoError(t, err)
		require.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Minute)))
		n, err = a.Write([]byte("abc"))
		requireTimeout(t, err)
		require.Equal(t, 2, n)

		// Both at once; reads of this end stop too, the peer's do not.
		require.NoError(t, a.SetDeadline(time.Unix(1, 0)))
		_, err = a.Write([]byte("x"))
		requireTimeout(t, err)
		_, err = a.Read(make([]byte, 1))
		requireTimeout(t, err)
		got := make([]byte, pipeBuffer)
		_, err = io.ReadFull(b, got)
		require.NoError(t, err)
		require.Equal(t, "ab", string(got[pipeBuffer-2:]))

		require.NoError(t, a.SetDeadline(time.Time{}))
		_, err = a.Write([]byte("x"))
		require.NoError(t, err)
	})
}

// TestPipeDeadlineTakesNoWakeup holds that whoever runs into a deadline that is
// then taken back leaves what it was woken for to the others.
func TestPipeDeadlineTakesNoWakeup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 500 {
			a, b := newPipe()
			ends := make(chan pipeResult, 2)
			for range 2 {
				go func() {
					n, err := a.Read(make([]byte, 1))
					ends <- pipeResult{n, err}
				}()
			}
			synctest.Wait()
			// One reader is woken for the byte, and may find that a deadline has
			// passed that the other does not see any more.
			_, err := b.Write([]byte("x"))
			require.NoError(t, err)
			require.NoError(t, a.SetReadDeadline(time.Unix(1, 0)))
			require.NoError(t, a.SetReadDeadline(time.Time{}))
			synctest.Wait()
			if len(ends) < 2 {
				// Somebody still waits, so nothing must be there to be read.
				a.in.mu.Lock()
				left := len(a.in.data)
				a.in.mu.Unlock()
				require.Zero(t, left, "a reader waits although there is something to read")
			}
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
			<-ends
			<-ends
		}
	})
}

func TestPipeClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe()
		_, err := a.Write([]byte("last words"))
		require.NoError(t, err)
		require.NoError(t, a.SetDeadline(time.Now().Add(time.Hour)))
		require.NoError(t, a.Close())
		require.NoError(t, a.Close())

		// The end that closed is done at once, whatever its deadline was.
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = a.Write([]byte("x"))
		require.ErrorIs(t, err, net.ErrClosed)

		// The other reads what was written, and then the end, again and again.
		got := make([]byte, 5)
		_, err = io.ReadFull(b, got)
		require.NoError(t, err)
		rest, err := io.ReadAll(b)
		require.NoError(t, err)
		require.Equal(t, "last words", string(got)+string(rest))
		for range 3 {
			_, err = b.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
		}
		// What it writes goes nowhere, and it is told.
		_, err = b.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe)
		require.NoError(t, b.Close())
		_, err = b.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// TestPipeCloseWakesEveryone holds that nobody stays blocked on either end, however
// many wait.
func TestPipeCloseWakesEveryone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, closer := range []string{"own end", "other end"} {
			a, b := filledPipe(t)
			var readers, writers []<-chan pipeResult
			for range 5 {
				readers = append(readers, background(a.Read, make([]byte, 1)))
				writers = append(writers, background(a.Write, []byte("x")))
			}
			for i := range readers {
				requireBlocked(t, readers[i])
				requireBlocked(t, writers[i])
			}
			readErr, writeErr := io.EOF, io.ErrClosedPipe
			if closer == "own end" {
				require.NoError(t, a.Close())
				readErr, writeErr = net.ErrClosed, net.ErrClosed
			} else {
				require.NoError(t, b.Close())
			}
			for _, done := range readers {
				require.ErrorIs(t, (<-done).err, readErr, closer)
			}
			for _, done := range writers {
				r := <-done
				require.ErrorIs(t, r.err, writeErr, closer)
				require.Zero(t, r.n)
			}
		}
	})
}

// TestPipeConcurrentWrites has many write at once, and holds that every Write
// arrives in one piece, as on a socket, also those that are larger than the buffer.
func TestPipeConcurrentWrites(t *testing.T) {
	const writers, each, size = 6, 20, pipeBuffer + 1000
	a, b := newPipe()
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for i := range each {
				n := 8 + (i*7919+w)%size
				record := bytes.Repeat([]byte{byte(w)}, n)
				binary.BigEndian.PutUint32(record, uint32(n))
				if written, err := a.Write(record); err != nil || written != n {
					t.Errorf("wrote %d of %d: %v", written, n, err)
				}
			}
		})
	}
	split := 0
	for range writers * each {
		var head [8]byte
		_, err := io.ReadFull(b, head[:])
		require.NoError(t, err)
		n := binary.BigEndian.Uint32(head[:])
		if n > 8+size {
			split++
			break
		}
		body := make([]byte, n-8)
		_, err = io.ReadFull(b, body)
		require.NoError(t, err)
		if bytes.Count(body, head[4:5]) != len(body) {
			split++
			break
		}
	}
	if split > 0 {
		t.Error("another Write came in between")
		require.NoError(t, b.Close())
	}
	writing.Wait()
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}

// TestPipeConcurrentReads has many read at once; nothing is lost or read twice.
func TestPipeConcurrentReads(t *testing.T) {
	a, b := newPipe()
	const total = 5 * pipeBuffer / 4
	var mu sync.Mutex
	seen := make(map[uint32]int)
	var reading sync.WaitGroup
	for range 4 {
		reading.Go(func() {
			buf := make([]byte, 4) // A Read takes what is there, in writes of 4.
			for {
				n, err := b.Read(buf)
				switch {
				case n == 4:
					mu.Lock()
					seen[binary.BigEndian.Uint32(buf)]++
					mu.Unlock()
				case errors.Is(err, io.EOF):
					return
				default:
					t.Errorf("read %d: %v", n, err)
					return
				}
			}
		})
	}
	for i := range uint32(total) {
		_, err := a.Write(binary.BigEndian.AppendUint32(nil, i))
		require.NoError(t, err)
	}
	require.NoError(t, a.Close())
	reading.Wait()
	require.Len(t, seen, total)
	for i, n := range seen {
		require.Equal(t, 1, n, i)
	}
	require.NoError(t, b.Close())
}

// TestPipeDeadlinesMoveUnderUse moves deadlines while both ends are busy, and holds
// that every byte arrives once and in order: an operation that ends early says how
// far it came.
func TestPipeDeadlinesMoveUnderUse(t *testing.T) {
	a, b := newPipe()
	const total = 20 * pipeBuffer
	stop := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			deadline := time.Unix(1, 0)
			if rand.IntN(2) == 0 {
				deadline = time.Now().Add(time.Duration(rand.IntN(100)) * time.Microsecond)
			}
			_ = a.SetWriteDeadline(deadline)
			_ = b.SetReadDeadline(deadline)
			_ = a.SetWriteDeadline(time.Time{})
			_ = b.SetReadDeadline(time.Time{})
		}
	})
	running.Go(func() {
		chunk := make([]byte, 3000)
		for at := 0; at < total; {
			n := min(len(chunk), total-at)
			for i := range n {
				chunk[i] = byte((at + i) % 251)
			}
			n, err := a.Write(chunk[:n])
			at += n
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
				return
			}
		}
	})
	buf := make([]byte, 5000)
	for at := 0; at < total; {
		n, err := b.Read(buf)
		for i := range n {
			if buf[i] != byte((at+i)%251) {
				require.Failf(t, "wrong byte", "at %d", at+i)
			}
		}
		at += n
		if err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		}
	}
	close(stop)
	running.Wait()
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}
