package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func numbers(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// TestGroupInterrupted: two members, one after the other, read all messages, and none
// twice, though the first is interrupted in the middle.
func TestGroupInterrupted(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	all := numbers(20_000) // More than pipes hold, so the first is in the middle of it.
	succeed(t, s.addr, all, "produce", "numbers")
	r := start(t, s.addr, "consume", "numbers", "-g", "readers")
	out := bufio.NewReader(r.stdout)
	var first strings.Builder
	for range 100 {
		line, err := out.ReadString('\n')
		require.NoError(t, err)
		first.WriteString(line)
	}
	r.interrupt(t)
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	first.Write(rest)
	o := r.wait(t)
	require.Zero(t, o.code, o.stderr)
	read := strings.Count(first.String(), "\n")
	require.Equal(t, fmt.Sprintf("interrupted: %d messages read from topic numbers", read), o.lastLine())
	require.Less(t, read, 20_000)
	second := succeed(t, s.addr, "", "consume", "numbers", "-g", "readers", "--to", "end")
	require.Equal(t, all, first.String()+second)
}

// TestInterruptedBeforeEnd: a script must not take a part for the whole.
func TestInterruptedBeforeEnd(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	succeed(t, s.addr, "1\n", "produce", "numbers")
	r := start(t, s.addr, "consume", "numbers", "-n", "2")
	line, err := bufio.NewReader(r.stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "1\n", line)
	r.interrupt(t)
	o := r.wait(t)
	require.Equal(t, exitInterrupted, o.code)
	require.Equal(t, "interrupted: 1 message read from topic numbers", o.lastLine())
}

func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	succeed(t, s.addr, numbers(50_000), "produce", "numbers")
	for _, args := range [][]string{{}, {"-g", "readers"}} {
		r := start(t, s.addr, append([]string{"consume", "numbers"}, args...)...)
		_, err := bufio.NewReader(r.stdout).ReadString('\n')
		require.NoError(t, err)
		require.NoError(t, r.stdout.Close())
		o := r.wait(t)
		require.Equal(t, exitPipe, o.code, "%v", args)
		require.Empty(t, o.stderr)
	}
}

func TestFollow(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers:2")
	r := start(t, s.addr, "consume", "numbers", "--from", "oldest")
	out := bufio.NewReader(r.stdout)
	for _, line := range []string{"a\n", "b\n"} {
		succeed(t, s.addr, line, "produce", "numbers")
		got, err := out.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, line, got)
	}
	r.interrupt(t)
	require.Zero(t, r.wait(t).code)
}

func TestGroups(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers:2", "--topic", "empty")
	succeed(t, s.addr, numbers(10), "produce", "numbers", "-p", "0")
	succeed(t, s.addr, numbers(5), "produce", "numbers", "-p", "1")
	require.Equal(t, numbers(3), succeed(t, s.addr, "", "consume", "numbers", "-g", "readers", "-n", "3", "--from", "oldest")[:6])
	require.Empty(t, succeed(t, s.addr, "", "consume", "empty", "-g", "others", "--to", "end"))

	lag := func() int64 {
		var v groupView
		require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "group", "describe", "readers", "-o", "json")), &v))
		return v.Lag
	}
	succeed(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "newest")
	require.Zero(t, lag())
	require.Equal(t, "PARTITION  BEFORE  AFTER  LAG\n"+
		"0          10      4      6\n"+
		"group readers will go on there in topic numbers, 6 messages behind\n",
		succeed(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "4", "-p", "0"))
	require.EqualValues(t, 6, lag())
	require.Equal(t, "PARTITION  BEFORE  AFTER  LAG\n"+
		"0          4       2      8\n"+
		"1          5       2      3\n"+
		"group readers would go on there in topic numbers, 11 messages behind\n"+
		"nothing was changed\n",
		succeed(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "2", "--dry-run"))
	for _, to := range []string{"oldest", "newest", "-1h", "2999-01-01", "3", "99"} {
		for _, p := range []string{"0", "7"} {
			args := []string{"group", "reset", "readers", "numbers", "--to=" + to, "-p", p, "-o", "json"}
			dry := robustWith(t, s.addr, "", append(args, "--dry-run")...)
			require.EqualValues(t, 6, lag(), "nothing was changed")
			real := robustWith(t, s.addr, "", args...)
			require.Equal(t, real.code, dry.code, args)
			require.Equal(t, real.stdout, dry.stdout, args)
			succeed(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "4", "-p", "0")
		}
	}
	require.Equal(t, "5\n6\n7\n8\n9\n10\n", succeed(t, s.addr, "", "consume", "numbers", "-g", "readers", "--to", "end"))
	require.Zero(t, lag())
	require.Regexp(t, `readers +Empty +0 +0\n`, succeed(t, s.addr, "", "group", "list"))

	// While somebody reads, nothing is moved.
	r := start(t, s.addr, "consume", "numbers", "-g", "readers")
	succeed(t, s.addr, "more\n", "produce", "numbers")
	line, err := bufio.NewReader(r.stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "more\n", line)
	require.Contains(t, succeed(t, s.addr, "", "group", "describe", "readers"), "robust-cli")
	o := robustWith(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "oldest")
	require.Equal(t, exitConflict, o.code)
	require.Contains(t, o.stderr, "stop its members first")
	o = robustWith(t, s.addr, "", "group", "reset", "readers", "numbers", "--to", "oldest", "--dry-run")
	require.Equal(t, exitConflict, o.code)
	require.Contains(t, o.stdout, "nothing was changed")
	o = robustWith(t, s.addr, "", "group", "delete", "readers", "--dry-run")
	require.Equal(t, exitConflict, o.code)
	r.interrupt(t)
	require.Zero(t, r.wait(t).code)

	require.Equal(t, "would delete: group readers (2 committed offsets)\n", succeed(t, s.addr, "", "group", "delete", "readers", "--dry-run"))
	require.Equal(t, exitNotFound, robustWith(t, s.addr, "", "group", "delete", "none", "--dry-run").code)
	succeed(t, s.addr, "", "group", "delete", "readers")
	require.Equal(t, exitNotFound, robustWith(t, s.addr, "", "group", "describe", "readers").code)
	require.Contains(t, succeed(t, s.addr, "", "group", "list"), "there are no consumer groups")
}
