//go:build unix

package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// terminal is the other end of one that a program writes to.
type terminal struct {
	t    *testing.T
	ptmx *os.File
	text bytes.Buffer
}

func newTerminal(t *testing.T) (*terminal, *os.File) {
	t.Helper()
	ptmx, tty, err := pty.Open()
	require.NoError(t, err)
	// The test keeps both ends, so that nothing is lost when the program has ended.
	t.Cleanup(func() { ptmx.Close(); tty.Close() })
	require.NoError(t, pty.Setsize(ptmx, &pty.Winsize{Rows: 24, Cols: 100}))
	return &terminal{t: t, ptmx: ptmx}, tty
}

// until reads until the text was printed.
func (e *terminal) until(text string) {
	e.t.Helper()
	for !strings.Contains(e.text.String(), text) {
		e.more()
	}
}

func (e *terminal) more() {
	e.t.Helper()
	buf := make([]byte, 4096)
	require.NoError(e.t, e.ptmx.SetReadDeadline(time.Now().Add(patience)))
	n, err := e.ptmx.Read(buf)
	e.text.Write(buf[:n])
	require.NoError(e.t, err, e.text.String())
}

// lastLine is what stands in the last line that was ended, once the text is there.
func (e *terminal) lastLine(text string) string {
	e.t.Helper()
	e.until(text)
	for !strings.HasSuffix(e.text.String(), "\r\n") {
		e.more()
	}
	lines := strings.Split(strings.TrimRight(e.text.String(), "\r\n"), "\r")
	return lines[len(lines)-1]
}

func TestProgressBar(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	term, tty := newTerminal(t)
	cmd := command(t, s.addr, "produce", "numbers")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	cmd.Stderr = tty
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(stdin, "1\n2\n")
	require.NoError(t, err)
	term.until("2 messages ")
	require.NotContains(t, term.text.String(), "stored")
	_, err = io.WriteString(stdin, "3\n")
	require.NoError(t, err)
	term.until("3 messages ")
	require.NoError(t, stdin.Close())
	// The bar is gone from its line before the summary is there.
	require.Regexp(t, `^\S*3 messages stored in topic numbers, 3 bytes in `, term.lastLine("stored in topic"))
	require.NoError(t, cmd.Wait())

	// Where no terminal is there is only the summary.
	o := robustWith(t, s.addr, numbers(10), "produce", "numbers")
	require.Regexp(t, `^10 messages stored in topic numbers, 11 bytes in [^\n]*\n$`, o.stderr)
}

func TestTableOnTerminal(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders:2")
	term, tty := newTerminal(t)
	cmd := command(t, s.addr, "topic", "list")
	cmd.Stdout, cmd.Stderr = tty, tty
	require.NoError(t, cmd.Start())
	term.until("0\r\n")
	require.NoError(t, cmd.Wait())
	require.Equal(t, "TOPIC   PARTITIONS  MESSAGES\r\norders  2           0\r\n", term.text.String())
}

// TestCtrlCOnTerminal: the bar does not stay on the line that says what was stored.
func TestCtrlCOnTerminal(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	term, tty := newTerminal(t)
	cmd := command(t, s.addr, "produce", "numbers")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	cmd.Stderr = tty
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(stdin, "1\n2\n")
	require.NoError(t, err)
	term.until("2 messages ")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Regexp(t, `^\S*interrupted: 2 messages stored in topic numbers, `, term.lastLine("stored in topic"))
	require.Equal(t, exitInterrupted, exitCode(t, cmd.Wait()))
}

// TestLogOnTerminal: people get text.
func TestLogOnTerminal(t *testing.T) {
	t.Parallel()
	term, tty := newTerminal(t)
	cmd := command(t, "", "serve", "--addr", "127.0.0.1:0")
	cmd.Stdout, cmd.Stderr = tty, tty
	require.NoError(t, cmd.Start())
	term.until("listening on ")
	require.NotContains(t, term.text.String(), `{"time"`)
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	term.until("the broker has ended")
	require.NoError(t, cmd.Wait())
}

// TestBenchOnTerminal: figures while it runs, and what was measured until Ctrl-C.
func TestBenchOnTerminal(t *testing.T) {
	t.Parallel()
	s := serve(t)
	cmd := command(t, s.addr, "bench", "latency", "--rate", "500", "-n", "1000000")
	e := onScreen(t, cmd)
	shown := e.until(" p99 ")
	require.Regexp(t, `latency ▏ +0 %  .* msg/s .*/s  p50 \S+  p99 \S+`, shown)
	e.press("\x03")
	require.Equal(t, exitInterrupted, exitCode(t, cmd.Wait()))
	shown = e.until("█")
	require.Regexp(t, `(?s)^[^\n]*interrupted *\nlatency: \d+ messages in .*P99\.9.*UP TO +MESSAGES +SHARE`, shown)
	require.NotContains(t, shown, "p50", "the figures are gone")
	require.Contains(t, succeed(t, s.addr, "", "topic", "list"), "there are no topics")
}
