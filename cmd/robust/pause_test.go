//go:build unix

package main

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// pause stops the process in its tracks, until resume.
func (s *server) pause(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGSTOP))
	var status syscall.WaitStatus
	_, err := syscall.Wait4(s.cmd.Process.Pid, &status, syscall.WUNTRACED, nil)
	require.NoError(t, err)
	require.True(t, status.Stopped())
}

func (s *server) resume(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGCONT))
}

// TestInterruptedWhileWaiting: a signal that comes when all was sent, and results are waited
// for, ends the program after the grace, too.
func TestInterruptedWhileWaiting(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "one")
	r := start(t, s.addr, "produce", "one", "--grace", "50ms")
	_, err := r.stdin.Write([]byte("a\n"))
	require.NoError(t, err)
	storedIn(t, s.addr, "one", 1)
	s.pause(t)
	defer s.resume(t)
	_, err = r.stdin.Write([]byte("b\n"))
	require.NoError(t, err)
	require.NoError(t, r.stdin.Close())
	r.interrupt(t)
	o := r.wait(t)
	require.Equal(t, exitInterrupted, o.code, o.stderr)
	require.Regexp(t, "interrupted: 1 message stored in topic one", o.lastLine())
}
