//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package robust

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A broker's process is stopped for longer than any session or request lasts, and goes on as if
// nothing had been: what was on its way arrives, once, and the groups read on.
func TestBrokerProcessStopped(t *testing.T) {
	const session = 500 * time.Millisecond
	process := startBrokerProcess(t, processConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", Sync: SyncInterval(defaultSyncInterval)})
	defer process.kill()
	addr, err := process.serving()
	require.NoError(t, err)
	client := func() *Client {
		c, err := New(WithBrokers(addr), WithRequestTimeout(session))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, c.Close()) })
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := client()
	require.NoError(t, c.Admin().CreateTopic(ctx, "demo", 2, nil))
	r := newRig(t)
	members := []string{"a", "b"}
	ended := make(chan error, len(members))
	reading, leave := context.WithCancel(ctx)
	defer leave()
	for _, name := range members {
		g, err := client().ConsumerGroup("g", WithSessionTimeout(session))
		require.NoError(t, err)
		go func() { ended <- g.Consume(reading, []string{"demo"}, rigHandler{r, name, nil}) }()
	}
	p, err := c.SyncProducer()
	require.NoError(t, err)
	sent := 0
	send := func(ctx context.Context, partition int32) error {
		m := NewMessage("demo", fmt.Append(nil, sent))
		m.Partition = partition
		_, err := p.Send(ctx, m)
		if err == nil {
			sent++
		}
		return err
	}
	handled := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		n := 0
		for _, offsets := range r.handled {
			seen := make(map[int64]bool)
			for _, offset := range offsets {
				seen[offset] = true
			}
			n += len(seen)
		}
		return n
	}
	stopped := 0
	for round := range 2 {
		waitUntil(t, ctx, func() bool { s := r.shares(); return s["a"] == 1 && s["b"] == 1 })
		for i := range 20 {
			require.NoError(t, send(ctx, int32(i%2)))
		}
		waitUntil(t, ctx, func() bool { return handled() >= sent })

		require.NoError(t, process.cmd.Process.Signal(syscall.SIGSTOP))
		var is syscall.WaitStatus
		_, err := syscall.Wait4(process.cmd.Process.Pid, &is, syscall.WUNTRACED, nil)
		require.NoError(t, err)
		require.True(t, is.Stopped())
		stopped++
		short, done := context.WithTimeout(ctx, session/4)
		require.ErrorIs(t, send(short, 0), context.DeadlineExceeded, "who sends is free when his context ends")
		done()
		patient := make(chan error, 1)
		go func() { patient <- send(ctx, 1) }()
		waitUntil(t, ctx, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.cleaned["a"] > round && r.cleaned["b"] > round // Their sessions have ended.
		})
		require.NoError(t, process.cmd.Process.Signal(syscall.SIGCONT))
		require.NoError(t, <-patient)
	}
	waitUntil(t, ctx, func() bool { s := r.shares(); return s["a"] == 1 && s["b"] == 1 })
	require.NoError(t, send(ctx, 0))
	ends, err := c.Admin().ListOffsets(ctx, "demo", time.Now().AddDate(1, 0, 0))
	require.NoError(t, err)
	total := 0
	for _, end := range ends {
		total += int(end)
	}
	require.GreaterOrEqual(t, total, sent)
	require.LessOrEqual(t, total, sent+stopped, "only those may be there, too, of which nobody knows")
	waitUntil(t, ctx, func() bool { return handled() == total })
	leave()
	for range members {
		require.NoError(t, <-ended)
	}
	require.NoError(t, process.stop())
	require.Empty(t, process.broken())
}
