//go:build unix

package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// TestHangup: a terminal that is closed ends the broker in good order, unless it was told to
// overlook that.
func TestHangup(t *testing.T) {
	t.Parallel()
	// Whoever runs the tests may overlook it, as nohup has it, and a process begins as its parent
	// is, but for what that listens to.
	listen := make(chan os.Signal, 1)
	signal.Notify(listen, syscall.SIGHUP)
	defer signal.Stop(listen)
	s := serve(t)
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGHUP))
	require.NoError(t, s.cmd.Wait(), s.stderr.String())
	require.Contains(t, s.stderr.String(), "the broker has ended")
}

// TestNarrowBar: the bar stays in its line, however short that is, and whatever is told
// meanwhile has one of its own.
func TestNarrowBar(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer w.Close()
	cmd := command(t, s.addr, "produce", "numbers", "--grace", "10ms")
	cmd.Stdin = r
	e := onScreenSized(t, cmd, 20, 5)
	require.NoError(t, r.Close())
	_, err = io.WriteString(w, "1\n2\n")
	require.NoError(t, err)
	e.until("2 messages")
	for i := range 5 { // It is drawn again and again.
		_, err = io.WriteString(w, "3\n")
		require.NoError(t, err)
		e.until(string(rune('3'+i)) + " messages")
	}
	require.Equal(t, 1, strings.Count(strings.TrimSpace(e.shown()), "\n")+1, e.shown())

	require.NoError(t, s.cmd.Process.Kill())
	require.Error(t, s.cmd.Wait())
	require.Regexp(t, `(?m)^robust: `, e.until("robust: "))
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	e.until("interrupted: 7")
	require.Equal(t, exitInterrupted, exitCode(t, cmd.Wait()))
}

// TestTypedInput: no bar where somebody types, and what was typed before the end of the input
// is sent when it comes.
func TestTypedInput(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "lines")
	cmd := command(t, s.addr, "produce", "lines")
	e := onScreen(t, cmd)
	e.press("one\n")
	storedIn(t, s.addr, "lines", 1)
	e.press("two\x04\x04") // The first hands over what stands in the line.
	require.NoError(t, cmd.Wait())
	e.until("2 messages stored in topic lines, 6 bytes in ")
	require.NotContains(t, e.printed(), "[0s]")
	require.Equal(t, "one\ntwo\n", succeed(t, s.addr, "", "consume", "lines", "--to", "end"))
}

// TestDumbTerminal: what it would have to obey is not sent to it.
func TestDumbTerminal(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	for _, args := range [][]string{
		{"top", "-i", "100ms"},
		{"bench", "latency", "-n", "500", "-r", "1000"},
		{"produce", "numbers", writeFile(t, numbers(300_000))},
		{"serve", "--addr", s.addr},
	} {
		cmd := command(t, s.addr, args...)
		cmd.Env = append(cmd.Env, "TERM=dumb")
		ptmx, tty, err := pty.Open()
		require.NoError(t, err)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		require.NoError(t, cmd.Start())
		require.NoError(t, tty.Close())
		var printed bytes.Buffer
		_, _ = io.Copy(&printed, ptmx) // Until the program has ended.
		ptmx.Close()
		code := exitCode(t, cmd.Wait())
		if args[0] == "serve" {
			require.Equal(t, exitConflict, code)
		} else {
			require.Zero(t, code, printed.String())
		}
		require.NotContains(t, printed.String(), "\x1b", args)
		require.NotContains(t, strings.ReplaceAll(printed.String(), "\r\n", ""), "\r", args)
	}
}

// TestBenchNarrow: the bars of the histogram fit the terminal.
func TestBenchNarrow(t *testing.T) {
	t.Parallel()
	s := serve(t)
	cmd := command(t, s.addr, "bench", "produce", "-n", "2000")
	e := onScreenSized(t, cmd, 40, 24)
	require.NoError(t, cmd.Wait())
	shown := e.until("█")
	_, bars, found := strings.Cut(shown, "SHARE")
	require.True(t, found, shown)
	for _, line := range strings.Split(strings.TrimSpace(bars), "\n")[1:] {
		require.Regexp(t, `^\d\S+ +\d+ +\d+\.\d\d %`, line)
	}
}

// TestProduceTold: who waits for a broker that has gone away is told that.
func TestProduceTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, "--data", dir, "--topic", "numbers")
	cmd := command(t, s.addr, "produce", "numbers")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.WriteString(stdin, "1\n")
	require.NoError(t, err)
	storedIn(t, s.addr, "numbers", 1)
	require.NoError(t, s.cmd.Process.Kill())
	require.Error(t, s.cmd.Wait())
	_, err = io.WriteString(stdin, "2\n")
	require.NoError(t, err)
	require.NoError(t, stdin.Close())
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Regexp(t, "^robust: .*"+regexp.QuoteMeta(s.addr), first)
	serve(t, "--addr", s.addr, "--data", dir)
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Regexp(t, `^(robust: [^\n]*\n)?2 messages stored in topic numbers, [^\n]*\n$`, string(rest))
}

// TestBenchTold: a broker that goes away in the middle is told of, and where the line of figures
// was.
func TestBenchTold(t *testing.T) {
	t.Parallel()
	s := serve(t)
	cmd := command(t, s.addr, "bench", "latency", "-n", "1000000", "--timeout", "1s")
	e := onScreen(t, cmd)
	e.until(" p99 ")
	require.NoError(t, s.cmd.Process.Kill())
	require.Error(t, s.cmd.Wait())
	require.Regexp(t, `(?m)^robust: .*`+s.addr, e.until("connection refused"))
	e.press("\x03")
	e.until("interrupted")
	require.Equal(t, exitInterrupted, exitCode(t, cmd.Wait()))
}
