//go:build unix

package main

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

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
	require.True(t, e.isAltScreen())
	require.Contains(t, e.printed(), "38;2;", "there are colours")

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
	e.untilThat("the shell's screen", func(string) bool { return !e.isAltScreen() })
	require.NoError(t, cmd.Wait())
	require.NotContains(t, e.shown(), "orders", "nothing is left behind")
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
		e.untilThat("the shell's screen", func(string) bool { return !e.isAltScreen() })
		require.NoError(t, cmd.Wait(), name)
		require.False(t, e.vt.CursorHidden(), name)
		require.NotRegexp(t, "\x1b\\[([0-9;]*;)?([349][0-7]|10[0-7]|38)[;m]", e.printed(), name)
	}
}
