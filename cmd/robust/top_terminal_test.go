//go:build unix

package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// screen is a terminal of which the test sees what somebody in front of it would.
type screen struct {
	t    *testing.T
	ptmx *os.File
	vt   *vt.Emulator
	raw  strings.Builder
}

// onScreen starts the program with a terminal of its own for all that it reads and writes.
func onScreen(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	ptmx, tty, err := pty.Open()
	require.NoError(t, err)
	t.Cleanup(func() { ptmx.Close(); tty.Close() })
	s := &screen{t: t, ptmx: ptmx, vt: vt.NewEmulator(100, 24)}
	require.NoError(t, pty.Setsize(ptmx, &pty.Winsize{Rows: 24, Cols: 100}))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	// A resized terminal tells who has it as theirs.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	// What a terminal answers to questions goes to the program.
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		buf := make([]byte, 256)
		for {
			n, err := s.vt.Read(buf)
			if err != nil {
				return
			}
			if _, err := ptmx.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		answers, ok := s.vt.InputPipe().(io.Closer)
		require.True(t, ok)
		require.NoError(t, answers.Close())
		<-answered
	})
	return s
}

// until waits until the screen shows this.
func (s *screen) until(text string) string {
	s.t.Helper()
	return s.untilThat(text, func(shown string) bool { return strings.Contains(shown, text) })
}

func (s *screen) untilThat(what string, ok func(shown string) bool) string {
	s.t.Helper()
	buf := make([]byte, 4096)
	for {
		if shown := s.vt.String(); ok(shown) {
			return shown
		}
		require.NoError(s.t, s.ptmx.SetReadDeadline(time.Now().Add(patience)))
		n, err := s.ptmx.Read(buf)
		s.raw.Write(buf[:n])
		_, _ = s.vt.Write(buf[:n])
		require.NoError(s.t, err, "%s\n%s", what, s.vt.String())
	}
}

func (s *screen) press(keys string) {
	s.t.Helper()
	_, err := s.ptmx.WriteString(keys)
	require.NoError(s.t, err)
}

func (s *screen) resize(width, height int) {
	s.t.Helper()
	s.vt.Resize(width, height)
	require.NoError(s.t, pty.Setsize(s.ptmx, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}))
}

// TestTopOnTerminal: the live view of a real broker, which goes away and comes back.
func TestTopOnTerminal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, "--data", dir, "--topic", "orders:2", "--topic", "payments", "--node-id", "node-1")
	succeed(t, s.addr, numbers(500), "produce", "orders")
	succeed(t, s.addr, "", "consume", "orders", "-g", "billing", "--to", "end")
	cmd := command(t, s.addr, "top", "-i", "100ms")
	cmd.Env = append(cmd.Env, "COLORTERM=truecolor")
	e := onScreen(t, cmd)
	shown := e.until("billing ")
	require.Contains(t, shown, "robust top  "+s.addr+"  1 broker · 2 topics · 1 group")
	require.Regexp(t, `orders +2 +500 `, shown)
	require.True(t, e.vt.IsAltScreen())
	require.Contains(t, e.raw.String(), "38;2;", "there are colours")

	succeed(t, s.addr, numbers(34), "produce", "orders")
	e.until(" 534 ")
	e.untilThat("a rate", func(shown string) bool { return !strings.Contains(shown, "peak          0 msg/s") })

	e.press("\t\r")
	require.Contains(t, e.until("COMMITTED"), "nobody")
	e.press("\x1b")
	e.until("BROKER (1)")
	e.resize(60, 12)
	e.untilThat("a small screen", func(shown string) bool {
		return !strings.Contains(shown, "BROKER") && strings.Contains(shown, "GROUP (1)")
	})
	e.resize(100, 24)
	e.until("BROKER (1)")
	e.press("p")
	e.until("‖ paused")
	e.press("p?")
	e.until("stops the picture")
	e.press("?")

	// The broker dies, and another goes on at its place.
	require.NoError(t, s.cmd.Process.Kill())
	require.Error(t, s.cmd.Wait())
	shown = e.until("○ away")
	require.Contains(t, e.until("no answer since"), "orders", "what was seen stays: %s", shown)
	serve(t, "--addr", s.addr, "--data", dir, "--node-id", "node-1")
	shown = e.until("● live")
	require.NotContains(t, shown, "no answer")

	e.press("q")
	e.untilThat("the shell's screen", func(string) bool { return !e.vt.IsAltScreen() })
	require.NoError(t, cmd.Wait())
	require.NotContains(t, e.vt.String(), "orders", "nothing is left behind")
}

// TestTopEnds: Ctrl-C, which a terminal sends as a key, and a signal. Without colours where
// nobody wants them.
func TestTopEnds(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders")
	for name, end := range map[string]func(e *screen, cmd *exec.Cmd){
		"key":    func(e *screen, _ *exec.Cmd) { e.press("\x03") },
		"signal": func(_ *screen, cmd *exec.Cmd) { require.NoError(t, cmd.Process.Signal(syscall.SIGTERM)) },
	} {
		cmd := command(t, s.addr, "top")
		cmd.Env = append(cmd.Env, "NO_COLOR=1")
		e := onScreen(t, cmd)
		e.until("orders")
		end(e, cmd)
		e.untilThat("the shell's screen", func(string) bool { return !e.vt.IsAltScreen() })
		require.NoError(t, cmd.Wait(), name)
		require.False(t, e.vt.CursorHidden(), name)
		require.NotRegexp(t, "\x1b\\[([0-9;]*;)?([349][0-7]|10[0-7]|38)[;m]", e.raw.String(), name)
	}
}
