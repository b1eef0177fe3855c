package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is far more than anything takes.
const patience = 5 * time.Minute

// work is a directory for what the tests share; it is removed at the end.
var work string

func TestMain(m *testing.M) {
	os.Exit(runIn(m))
}

func runIn(m *testing.M) int {
	dir, err := os.MkdirTemp("", "release-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	work = dir
	return m.Run()
}

// building is the environment of every build, so that they share what was compiled. It has
// nothing of the developer's own.
func building(more ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ROBUST_") && !strings.HasPrefix(kv, "GOWORK=") && !strings.HasPrefix(kv, "GOFLAGS=") {
			env = append(env, kv)
		}
	}
	return append(append(env, "CGO_ENABLED=0", "GOFLAGS=-trimpath"), more...)
}

// output runs a program to its end and returns its output.
func output(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stderr = dir, env, &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v\n%s%s", name, args, out, &stderr)
	return string(out)
}

// copyTree copies the files of the repository that pass, given by their paths within it.
func copyTree(t *testing.T, to string, passes func(name string) bool) {
	t.Helper()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin", "queue"}, name) {
			return filepath.SkipDir
		}
		if !d.Type().IsRegular() || !passes(filepath.ToSlash(name)) {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o644)
	}))
}

// server is a process of robust serve.
type server struct {
	cmd    *exec.Cmd
	addr   string
	out    *bufio.Reader
	stderr bytes.Buffer
}

// unixOnly skips a test where there is neither a shell nor a signal that ends a process in
// good order.
func unixOnly(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("for Unix")
	}
}

// serve starts one on a free port with the environment env, by a command line that begins with
// the program. It ends with the test.
func serve(t *testing.T, env []string, command ...string) *server {
	t.Helper()
	cmd := lasting(t, command[0], command[1:]...)
	cmd.Env = env
	return serveBy(t, cmd)
}

// lasting is a command that may run until the test ends.
func lasting(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, name, args...)
}

// serveBy is serve for a command that may have more than an environment.
func serveBy(t *testing.T, cmd *exec.Cmd) *server {
	t.Helper()
	s := &server{cmd: cmd}
	s.cmd.Env = append(s.cmd.Env, "ROBUST_ADDR=127.0.0.1:0")
	s.cmd.Stderr = &s.stderr
	stdout, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() { s.stop(t) })
	s.out = bufio.NewReader(stdout)
	line, err := s.out.ReadString('\n')
	require.NoError(t, err, "%s", &s.stderr)
	var found bool
	s.addr, found = strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	require.True(t, found, line)
	return s
}

// stop ends the process with a signal, once.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.cmd.ProcessState != nil {
		return
	}
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	_, _ = io.Copy(io.Discard, s.out)
	require.NoError(t, s.cmd.Wait(), "%s", &s.stderr)
}
