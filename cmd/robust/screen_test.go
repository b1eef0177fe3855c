//go:build unix

package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// screen is a terminal of which the test sees what somebody in front of it would.
type screen struct {
	t       *testing.T
	ptmx    *os.File
	changed chan struct{} // has one when something was printed

	mu  sync.Mutex // guards the following
	vt  *vt.Emulator
	raw strings.Builder
}

// onScreen starts the program with a terminal of its own for all that it writes, and reads
// unless its input is given.
func onScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	return onScreenSized(t, cmd, 100, 24)
}

func onScreenSized(t *testing.T, cmd *exec.Cmd, width, height int) *screen {
	t.Helper()
	ptmx, tty, err := pty.Open()
	require.NoError(t, err)
	s := &screen{t: t, ptmx: ptmx, changed: make(chan struct{}, 1), vt: vt.NewEmulator(width, height)}
	require.NoError(t, pty.Setsize(ptmx, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}))
	cmd.Stdout, cmd.Stderr = tty, tty
	if cmd.Stdin == nil {
		cmd.Stdin = tty
	}
	// A resized terminal tells who has it as theirs: the one that is the output's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	require.NoError(t, cmd.Start())
	require.NoError(t, tty.Close())
	var working sync.WaitGroup
	// What a terminal answers to questions goes to the program.
	working.Go(func() {
		_, _ = io.Copy(ptmx, s.vt) // It ends with the terminal.
	})
	// A program may not end before its last words are read.
	working.Go(s.read)
	t.Cleanup(func() {
		ptmx.Close()
		answers, ok := s.vt.InputPipe().(io.Closer)
		require.True(t, ok)
		require.NoError(t, answers.Close())
		working.Wait()
	})
	return s
}

// read shows what the program prints, until it has ended.
func (s *screen) read() {
	buf := make([]byte, 4096)
	for {
		n, err := s.ptmx.Read(buf)
		s.mu.Lock()
		s.raw.Write(buf[:n])
		_, _ = s.vt.Write(buf[:n])
		s.mu.Unlock()
		select {
		case s.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// shown is the text on the screen.
func (s *screen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vt.String()
}

// printed is all that has ever come.
func (s *screen) printed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raw.String()
}

func (s *screen) isAltScreen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vt.IsAltScreen()
}

// until waits until the screen shows this.
func (s *screen) until(text string) string {
	s.t.Helper()
	return s.untilThat(text, func(shown string) bool { return strings.Contains(shown, text) })
}

func (s *screen) untilThat(what string, ok func(shown string) bool) string {
	s.t.Helper()
	late := time.After(patience)
	for {
		shown := s.shown()
		if ok(shown) {
			return shown
		}
		select {
		case <-s.changed:
		case <-late:
			require.FailNow(s.t, "not shown: "+what, shown)
		}
	}
}

func (s *screen) press(keys string) {
	s.t.Helper()
	_, err := s.ptmx.WriteString(keys)
	require.NoError(s.t, err)
}

func (s *screen) resize(width, height int) {
	s.t.Helper()
	s.mu.Lock()
	s.vt.Resize(width, height)
	s.mu.Unlock()
	require.NoError(s.t, pty.Setsize(s.ptmx, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}))
}
