package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
)

// brokerRole is what the process of a broker is told.
type brokerRole struct {
	Contestant string
	Target     target
}

// The lines by which the process of a broker is asked for what it has used.
const (
	askUsage  = "usage"
	askSettle = "settle"
)

// runBroker serves until standard input ends. It prints where it serves, and answers
// each line.
func runBroker(r brokerRole) error {
	// The life of a program started below hangs on the thread that has started it.
	runtime.LockOSThread()
	c := findContestant(r.Contestant)
	if c == nil {
		return fmt.Errorf("there is no contestant %q", r.Contestant)
	}
	s, err := c.serve(context.Background(), r.Target)
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, s.addr())
	return errors.Join(answer(s, os.Stdin, os.Stdout), s.close())
}

// answer answers the lines of in until its end.
func answer(s server, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lines.Text() == askSettle {
			s.settle()
		}
		u, err := s.usage()
		if err != nil {
			return err
		}
		text, err := json.Marshal(u)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, string(text))
	}
	return lines.Err()
}

// brokerProcess is the broker of a run, in a process of its own.
type brokerProcess struct {
	child *child
	addr  string
}

func startBroker(ctx context.Context, name string, t target) (*brokerProcess, error) {
	c, err := startChild(ctx, role{Broker: &brokerRole{name, t}})
	if err != nil {
		return nil, err
	}
	addr, err := c.read()
	if err != nil {
		return nil, fmt.Errorf("the broker did not start: %w", err)
	}
	return &brokerProcess{c, addr}, nil
}

// ask asks with one of the lines above. A nil process has used nothing.
func (b *brokerProcess) ask(line string) (usage, error) {
	if b == nil {
		return usage{}, nil
	}
	text, err := b.child.ask(line)
	if err != nil {
		return usage{}, fmt.Errorf("the broker has failed: %w", err)
	}
	var u usage
	err = json.Unmarshal([]byte(text), &u)
	return u, err
}

func (b *brokerProcess) stop() error {
	if b == nil {
		return nil
	}
	if err := b.child.stop(); err != nil {
		return fmt.Errorf("the broker has failed: %w", err)
	}
	return nil
}
