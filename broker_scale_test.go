//go:build unix

package robust

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestManyPartitions has a broker in a process of its own with ROBUST_PARTITIONS partitions: all
// are made, some messages are written to every tenth, or to all, the broker is closed or killed,
// and opened again, when everything has to be there. It reports what that takes.
func TestManyPartitions(t *testing.T) {
	n := envCount(t, "ROBUST_PARTITIONS", 0)
	if n == 0 {
		t.Skip("ROBUST_PARTITIONS says how many")
	}
	ctx := t.Context()
	dir := t.TempDir()
	want := make([]int64, n)
	var process *brokerProcess
	var c *Client
	start := func(what string) {
		began := time.Now()
		process = startBrokerProcess(t, processConfig{Dir: dir, Addr: "127.0.0.1:0", Sync: SyncInterval(defaultSyncInterval)})
		addr, err := process.serving()
		require.NoError(t, err)
		took := time.Since(began)
		c, err = New(WithBrokers(addr), WithRequestTimeout(5*time.Minute))
		require.NoError(t, err)
		require.NoError(t, c.Ping(ctx))
		t.Logf("%s: %v, %s", what, took.Round(time.Millisecond), processUse(process.cmd.Process.Pid))
	}
	write := func(each int) {
		began := time.Now()
		p, err := c.AsyncProducer()
		require.NoError(t, err)
		sent := 0
		for round := range 3 {
			for i := 0; i < n; i += each {
				m := NewMessage("demo", fmt.Append(nil, i, round))
				m.Partition = int32(i)
				require.NoError(t, p.SendFunc(ctx, m, func(_ *Message, _ Receipt, err error) {
					if err != nil {
						t.Errorf("partition %d: %v", i, err)
					}
				}))
				want[i]++
				sent++
			}
		}
		require.NoError(t, p.Flush(ctx))
		require.NoError(t, p.Close())
		t.Logf("  %d messages to every %d. partition: %v, %s", sent, each, time.Since(began).Round(time.Millisecond), processUse(process.cmd.Process.Pid))
	}
	check := func() {
		began := time.Now()
		ends, err := c.Admin().ListOffsets(ctx, "demo", time.Now().AddDate(1, 0, 0))
		require.NoError(t, err)
		require.Len(t, ends, n)
		for i, end := range ends {
			require.Equal(t, want[i], end, "partition %d", i)
		}
		t.Logf("  looked at in %v", time.Since(began).Round(time.Millisecond))
	}
	start("empty")
	began := time.Now()
	require.NoError(t, c.Admin().CreateTopic(ctx, "demo", int32(n), nil))
	t.Logf("  topic made: %v, %s", time.Since(began).Round(time.Millisecond), processUse(process.cmd.Process.Pid))
	for _, each := range []int{10, 1} {
		for _, kill := range []bool{false, true} {
			write(each)
			check()
			require.NoError(t, c.Close())
			began := time.Now()
			how := "after it was closed"
			if kill {
				how = "after it was killed"
				process.kill()
			} else {
				require.NoError(t, process.stop())
				t.Logf("  closed: %v", time.Since(began).Round(time.Millisecond))
			}
			start(how)
			check()
		}
	}
	require.NoError(t, c.Close())
	require.NoError(t, process.stop())
	require.Empty(t, process.broken())
}

// processUse tells what a process has, where the system tells.
func processUse(pid int) string {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return "files and memory are not known"
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	use := []string{fmt.Sprint(len(files), " open files")}
	for line := range strings.Lines(string(status)) {
		for _, name := range []string{"VmRSS:", "VmHWM:", "Threads:"} {
			if value, ok := strings.CutPrefix(line, name); ok {
				use = append(use, name+" "+strings.TrimSpace(value))
			}
		}
	}
	return strings.Join(use, ", ")
}
