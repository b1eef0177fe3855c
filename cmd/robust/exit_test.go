package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aminofox/robust-go-sdk"
)

// TestReport: what an error is told as. A broker's broken connection is not the reader of the
// output, though the system has the same number for both.
func TestReport(t *testing.T) {
	t.Parallel()
	pipe := &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.EPIPE}
	conn := &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{fmt.Errorf("%w: %w", errWrite, pipe), exitPipe, ""},
		{conn, exitFailure, "robust: write tcp: write: broken pipe\n"},
		{fmt.Errorf("group g: %w", robust.ErrRebalanced), exitFailure, "robust: group g: consumer group rebalanced\n"},
		{fmt.Errorf("asking: %w", context.Canceled), exitInterrupted, "robust: interrupted\n"},
		{&exitError{code: exitUndelivered}, exitUndelivered, ""},
		{errors.Join(aboutOne("topic", "a", robust.ErrTopicNotFound)), exitNotFound, "robust: topic a: topic not found\n" +
			"  robust topic list shows what there is, robust topic create NAME makes one\n"},
	} {
		var stderr bytes.Buffer
		require.Equal(t, c.code, report(&stderr, &app{}, c.err), c.err)
		require.Equal(t, c.text, stderr.String())
	}
}

// TestNotices: a broker that is away is told once, and after a while once more.
func TestNotices(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		var told notices
		for range 59 {
			told.tell(&out, robust.ErrNoBroker)
			time.Sleep(time.Second) //nolint:forbidigo // Time is the bubble's.
		}
		told.tell(&out, robust.ErrUnavailable)
		require.Equal(t, strings.Repeat("robust: no broker can be reached; waiting for one\n", 2)+"robust: broker is shutting down\n", out.String())
	})
}

// TestNoticesOfOneCause: what has happened to a connection is told once, and not for each
// partition that was read by it.
func TestNoticesOfOneCause(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	var told notices
	broken := &robust.ConnError{Addr: "b:1", Op: "read", Err: errors.New("broker closed the connection")}
	for p := range 5 {
		told.tell(&out, fmt.Errorf("robust: consume t/%d at offset 7: %w", p, broken))
		told.tell(&out, fmt.Errorf("robust: consume t/%d at offset 7: %w", p, fmt.Errorf("%w: %w", robust.ErrNoBroker, broken)))
	}
	told.tell(&out, errors.New("robust: consume t/0 at offset 7: offset 7 is out of range"))
	require.Equal(t, "robust: read b:1: broker closed the connection\n"+
		"robust: no broker can be reached: read b:1: broker closed the connection; waiting for one\n"+
		"robust: consume t/0 at offset 7: offset 7 is out of range\n", out.String())
}

// TestForeignText: IDs are what clients say, and nothing for the terminal to obey.
func TestForeignText(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	row(&out, "a\x1b[2Jb\tc\n", "", 1)
	require.Equal(t, "a\uFFFD[2Jb\uFFFDc\uFFFD\t-\t1\n", out.String())
}
