package main

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"strconv"
	"time"
)

// external is a broker that is a program of its own, started and ended by the process
// that stands for it.
type external struct {
	cmd  *exec.Cmd
	out  tail
	done chan struct{} // closed when it has ended
}

func startExternal(name string, args ...string) (*external, error) {
	//nolint:noctx // it is ended by close, and with this process
	e := &external{cmd: exec.Command(name, args...), done: make(chan struct{})}
	e.cmd.Stdout, e.cmd.Stderr = &e.out, &e.out
	dieWithParent(e.cmd)
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(e.done)
		_ = e.cmd.Wait() // Who waits for done finds out.
	}()
	return e, nil
}

func (e *external) pid() string { return strconv.Itoa(e.cmd.Process.Pid) }

// await asks ready until it says yes, which a program that has just started does not.
func (e *external) await(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-e.done:
			return errors.Join(errors.New("it has ended: "+e.out.String()), err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (e *external) close() error {
	_ = e.cmd.Process.Kill() // It may have ended.
	<-e.done
	return nil
}

// freeAddr returns an address of this machine on which nobody listens, for programs
// that cannot choose one themselves.
func freeAddr(ctx context.Context) (host, port string, err error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer l.Close()
	return net.SplitHostPort(l.Addr().String())
}
