package robust

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// brokerProcessEnv, if it is set, makes a broker of the test binary: its value is what
// processConfig says, as JSON.
const brokerProcessEnv = "ROBUST_BROKER_PROCESS"

// processConfig is how a broker in a process of its own is set up.
type processConfig struct {
	Dir  string // "": it keeps everything in memory, and so loses it
	Addr string
	Sync SyncPolicy
}

// brokerProcess is a broker in a process of its own, which can be killed. It is the
// test binary, run once more.
type brokerProcess struct {
	cmd    *exec.Cmd
	stdin  io.Closer // the process ends in good order when it is closed
	stdout *bufio.Reader
	stderr bytes.Buffer // to be read after the end
	opened time.Time    // when it began to open its directory
	end    sync.Once
	err    error // of its end
}

// processStart bounds the start of a process on a machine that has much else to do.
const processStart = time.Minute

// runBrokerProcess is what such a process does. It says when it opens its directory and
// where it serves, and ends with its standard input, so that it does not outlive its
// parent.
func runBrokerProcess(text string) int {
	var c processConfig
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = serveProcess(&c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveProcess(c *processConfig) error {
	fmt.Fprintln(os.Stdout, "opening")
	b, err := NewBroker(WithDataDir(c.Dir), WithSync(c.Sync), WithRetention(0, 0),
		WithLogger(slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		return err
	}
	addr, err := b.Listen(c.Addr)
	for tries := 0; errors.Is(err, syscall.EADDRINUSE) && tries < 1000; tries++ {
		<-time.After(10 * time.Millisecond) // A connection of somebody else may have the port.
		addr, err = b.Listen(c.Addr)
	}
	if err != nil {
		return errors.Join(err, b.Close())
	}
	fmt.Fprintln(os.Stdout, "serving", addr)
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, b.Close())
}

// startBrokerProcess starts a process and returns when it opens its directory.
func startBrokerProcess(t testing.TB, c processConfig) *brokerProcess {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there are no data directories on Windows")
	}
	self, err := os.Executable()
	require.NoError(t, err)
	config, err := json.Marshal(c)
	require.NoError(t, err)
	//nolint:noctx // it is to outlive the test's context, which ends before the last checks
	p := &brokerProcess{cmd: exec.Command(self)}
	// The race detector would have it wait for a second before it exits.
	p.cmd.Env = append(os.Environ(), brokerProcessEnv+"="+string(config), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.stdout = bufio.NewReader(stdout)
	p.cmd.Stderr = &p.stderr
	require.NoError(t, p.cmd.Start())
	if _, err := p.says("opening"); err != nil {
		require.NoError(t, err)
	}
	p.opened = time.Now()
	return p
}

// serving waits until the process can be reached, and returns where.
func (p *brokerProcess) serving() (addr string, err error) { return p.says("serving ") }

// says reads a line that begins as it is to, and returns the rest. A process that says
// nothing is ended, with its stacks.
func (p *brokerProcess) says(prefix string) (string, error) {
	late := time.AfterFunc(processStart, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	line, err := p.stdout.ReadString('\n')
	late.Stop()
	rest, ok := strings.CutPrefix(line, prefix)
	if err != nil || !ok {
		p.kill()
		return "", fmt.Errorf("broker process: want %q, it says %q: %w\n%s", prefix, line, errors.Join(err, p.err), &p.stderr)
	}
	return strings.TrimSpace(rest), nil
}

// kill ends the process in the middle of what it does.
func (p *brokerProcess) kill() {
	p.end.Do(func() {
		_ = p.cmd.Process.Kill() // It may have ended.
		p.err = p.cmd.Wait()
	})
}

// stop ends it in good order.
func (p *brokerProcess) stop() error {
	p.end.Do(func() {
		late := time.AfterFunc(processStart, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
		defer late.Stop()
		p.err = errors.Join(p.stdin.Close(), p.cmd.Wait())
	})
	if p.err != nil {
		return fmt.Errorf("broker process: %w\n%s", p.err, &p.stderr)
	}
	return nil
}

// broken returns what the process has said of itself that no process may, once it has
// ended; "" if nothing.
func (p *brokerProcess) broken() string {
	text := p.stderr.String()
	for _, sign := range []string{"DATA RACE", "panic:", "fatal error:", "[signal "} {
		if strings.Contains(text, sign) {
			return text
		}
	}
	return ""
}

var logLine = regexp.MustCompile(`(?m)^time=\S+ level=(\w+) msg=("[^"]*"|\S+).*$`)

var uuidText = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// logged returns what the process has logged, level and message of each line.
func (p *brokerProcess) logged() (lines []string) {
	for _, m := range logLine.FindAllStringSubmatch(p.stderr.String(), -1) {
		lines = append(lines, m[1]+" "+uuidText.ReplaceAllString(strings.Trim(m[2], `"`), "ID"))
	}
	return lines
}
