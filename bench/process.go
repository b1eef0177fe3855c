package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// roleEnv, if it is set, makes a child of the program: its value is what role says.
const roleEnv = "ROBUST_BENCH_ROLE"

// role is what a child is to do. Exactly one of its fields is set.
type role struct {
	Broker *brokerRole `json:",omitempty"`
	Worker *job        `json:",omitempty"`
}

// runRole does what a child is for and returns its exit code. A child ends when its
// standard input does, so that none outlives its parent, however that ends.
func runRole(text string) int {
	var r role
	err := json.Unmarshal([]byte(text), &r)
	switch {
	case err != nil:
	case r.Broker != nil:
		err = runBroker(*r.Broker)
	case r.Worker != nil:
		err = runWorker(*r.Worker)
	default:
		err = errors.New("no role")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// childEnd is how long a child may take to end after its standard input has.
const childEnd = 20 * time.Second

// child is the program once more, in a role.
type child struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr tail
	cancel context.CancelFunc
	end    sync.Once
	err    error // of its end
}

// startChild starts one. When ctx ends so does the child.
func startChild(ctx context.Context, r role) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &child{cmd: exec.CommandContext(ctx, self), cancel: cancel}
	c.cmd.Env = append(os.Environ(), roleEnv+"="+string(text))
	c.cmd.Stderr = &c.stderr
	c.cmd.WaitDelay = childEnd
	if c.stdin, err = c.cmd.StdinPipe(); err == nil {
		var out io.Reader
		if out, err = c.cmd.StdoutPipe(); err == nil {
			c.stdout = bufio.NewReader(out)
			c.cmd.Cancel = c.stdin.Close
			err = c.cmd.Start()
		}
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return c, nil
}

// read returns the next line that the child prints. One that ends instead has failed.
func (c *child) read() (string, error) {
	line, err := c.stdout.ReadString('\n')
	if err != nil {
		if end := c.stop(); end != nil {
			err = end
		}
		return "", err
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// ask sends a line and returns the answer to it.
func (c *child) ask(line string) (string, error) {
	if _, err := io.WriteString(c.stdin, line+"\n"); err != nil {
		return "", errors.Join(err, c.stop())
	}
	return c.read()
}

// stop ends the child and waits for that.
func (c *child) stop() error {
	c.end.Do(func() {
		c.cancel() // Which closes its standard input, and kills it if that does not help.
		err := c.cmd.Wait()
		if err != nil && !errors.Is(err, context.Canceled) {
			c.err = fmt.Errorf("%w: %s", err, strings.TrimSpace(c.stderr.String()))
		}
	})
	return c.err
}

// tail is a writer that keeps the end of what is written. It is safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const kept = 2 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if n := len(t.text) - kept; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
