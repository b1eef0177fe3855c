package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aminofox/robust-go-sdk"
)

// asProgram has the test binary be the program, so that the tests drive real processes and
// the race detector looks on.
const asProgram = "ROBUST_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// patience is far more than anything takes.
const patience = time.Minute

// command is the program with these arguments, in an environment that has nothing of the
// developer's own.
func command(t *testing.T, addr string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience) // A server is ended in a cleanup.
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	// The race detector would have each process wait for a second before it ends.
	cmd.Env = []string{asProgram + "=1", "GORACE=atexit_sleep_ms=0", "HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "TERM=xterm"}
	if addr != "" {
		cmd.Env = append(cmd.Env, "ROBUST_BROKERS="+addr)
	}
	return cmd
}

type outcome struct {
	stdout, stderr string
	code           int
}

// lastLine is what somebody who looks at the terminal reads last.
func (o outcome) lastLine() string {
	lines := strings.Split(strings.TrimRight(o.stderr, "\n"), "\n")
	return lines[len(lines)-1]
}

// robustWith runs the program to its end.
func robustWith(t *testing.T, addr, stdin string, args ...string) outcome {
	t.Helper()
	cmd := command(t, addr, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	code := exitCode(t, cmd.Run())
	return outcome{stdout: stdout.String(), stderr: stderr.String(), code: code}
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	return exit.ExitCode()
}

// succeed is robustWith where nothing must go wrong, and returns the output.
func succeed(t *testing.T, addr, stdin string, args ...string) string {
	t.Helper()
	o := robustWith(t, addr, stdin, args...)
	require.Zero(t, o.code, "%v\n%s", args, o.stderr)
	return o.stdout
}

// server is a process of robust serve.
type server struct {
	cmd        *exec.Cmd
	addr, http string
	stderr     bytes.Buffer
}

// serve starts one on a port of its own, and ends it with the test.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	s := &server{cmd: command(t, "", append([]string{"serve", "--addr", "127.0.0.1:0"}, args...)...)}
	stdout, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	s.cmd.Stderr = &s.stderr
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() { s.stop(t) })
	lines := bufio.NewReader(stdout)
	s.addr = announced(t, lines, "listening on ")
	for _, arg := range args {
		if arg == "--http" {
			s.http = announced(t, lines, "http on ")
		}
	}
	return s
}

func announced(t *testing.T, lines *bufio.Reader, prefix string) string {
	t.Helper()
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	addr, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix)
	require.True(t, found, line)
	return addr
}

// stop ends the process with a signal, once.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.cmd.Wait(), s.stderr.String())
}

// running is the program while it is at work.
type running struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr bytes.Buffer
}

func start(t *testing.T, addr string, args ...string) *running {
	t.Helper()
	r := &running{cmd: command(t, addr, args...)}
	var err error
	r.stdin, err = r.cmd.StdinPipe()
	require.NoError(t, err)
	r.stdout, err = r.cmd.StdoutPipe()
	require.NoError(t, err)
	r.cmd.Stderr = &r.stderr
	require.NoError(t, r.cmd.Start())
	return r
}

func (r *running) wait(t *testing.T) outcome {
	t.Helper()
	code := exitCode(t, r.cmd.Wait())
	return outcome{stderr: r.stderr.String(), code: code}
}

// storedIn waits until a topic has so many messages.
func storedIn(t *testing.T, addr, topic string, n int64) {
	t.Helper()
	client, err := robust.New(robust.WithBrokers(addr))
	require.NoError(t, err)
	defer client.Close()
	require.Eventually(t, func() bool {
		views, err := viewTopics(t.Context(), client.Admin(), []string{topic})
		return err == nil && *views[0].Messages >= n
	}, patience, 5*time.Millisecond)
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	return name
}

// interrupt is what Ctrl-C does.
func (r *running) interrupt(t *testing.T) {
	t.Helper()
	require.NoError(t, r.cmd.Process.Signal(os.Interrupt))
}
