// Package examples_test runs the examples as a reader would.
package examples_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deadline is generous to slow machines; nothing waits for it when all is well.
const deadline = 2 * time.Minute

func TestExamples(t *testing.T) {
	t.Setenv("ROBUST_BROKERS", "") // Whatever the developer's shell has.
	dir := build(t)
	t.Run("embedded", func(t *testing.T) { testEmbedded(t, dir) })
	t.Run("sequence", func(t *testing.T) { testSequence(t, dir) })
	t.Run("group", func(t *testing.T) { testGroup(t, dir) })
	t.Run("kept", func(t *testing.T) { testKept(t, dir) })
	t.Run("usage", func(t *testing.T) { testUsage(t, dir) })
	t.Run("environment", func(t *testing.T) { testEnvironment(t, dir) })
	t.Run("documented", func(t *testing.T) { testDocumented(t, dir) })
}

// build compiles every example and returns the directory of the programs.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and runs programs")
	}
	dir := t.TempDir()
	for _, example := range []string{"admin", "broker", "consumer/group", "consumer/simple", "metrics", "producer/async", "producer/simple", "quickstart"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", program(dir, example), "./"+example)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	return dir
}

func program(dir, example string) string {
	return filepath.Join(dir, strings.ReplaceAll(example, "/", "-")+".exe")
}

// result is what a program that has ended left behind.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a program to its end.
func run(t *testing.T, dir, example string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(dir, example), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	require.NoError(t, ctx.Err(), "%s %v did not end in time\n%s%s", example, args, &stdout, &stderr)
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// process is a program that runs until it is interrupted.
type process struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr bytes.Buffer
}

// start starts a program.
func start(t *testing.T, dir, example string, args ...string) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
	p := &process{cmd: exec.CommandContext(ctx, program(dir, example), args...)}
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = &p.stderr
	p.out = bufio.NewReader(stdout)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = p.cmd.Wait() // It has been waited for, unless the test failed.
	})
	return p
}

// line returns the next line of output.
func (p *process) line(t *testing.T) string {
	t.Helper()
	line, err := p.out.ReadString('\n')
	require.NoError(t, err, "%s", &p.stderr)
	return strings.TrimSuffix(line, "\n")
}

// stop sends a signal and returns the rest of the output and the exit code.
func (p *process) stop(t *testing.T, signal os.Signal) (rest string, code int) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(signal))
	text, err := io.ReadAll(p.out)
	require.NoError(t, err)
	_ = p.cmd.Wait() // The exit code is what counts.
	return string(text), p.cmd.ProcessState.ExitCode()
}

// startBroker starts examples/broker on a free port and returns its address.
func startBroker(t *testing.T, dir string, args ...string) (p *process, addr string) {
	t.Helper()
	p = start(t, dir, "broker", append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	addr, ok := strings.CutPrefix(p.line(t), "listening on ")
	require.True(t, ok)
	return p, addr
}

const (
	quickstartDone = "nothing is missing, and each of 28 keys is in order\n"
	adminDone      = "topic demo-topic.no-such-topic cannot be deleted: it is not there\n"
)

// testEmbedded runs each example by itself.
func testEmbedded(t *testing.T, dir string) {
	for _, c := range []struct {
		example string
		args    []string
		want    []string // regular expressions
	}{
		{"quickstart", nil, []string{
			`^400 messages sent to topic demo\n`, `(?m)^ +total +400 +9624`, quickstartDone + "$",
		}},
		{"quickstart", []string{"-topic", "t", "-partitions", "7", "-chunk", "1", "-file", "examples_test.go"}, []string{
			`messages sent to topic t\n`, `(?m)^ +6 +[1-9]`, `nothing is missing`,
		}},
		{"admin", nil, []string{
			"created topic demo-topic\n", "demo-topic has 3 partitions, retention.hours=168, segment.bytes=1073741824\n",
			"demo-topic has 6 partitions, retention.hours=24\n", "the oldest is now 4\n", adminDone, `node embedded of the cluster`,
		}},
		{"producer/simple", []string{"-n", "5"}, []string{
			`partition \d  offset 0  key user-0  value message 0\n`, `partition \d  offset 1  key user-0  value message 4\n$`,
		}},
		{"producer/async", []string{"-n", "10000"}, []string{
			`^10000 messages sent to topic demo-topic: 10000 stored, 0 failed\n`, `(?m)^ +total +10000\n`, `\n9\d\.\d % fewer requests and 9\d\.\d % fewer writes than with one for each message\n$`,
		}},
		{"producer/async", []string{"-n", "10000", "-channels", "-compression", "zstd"}, []string{
			`^10000 messages sent to topic demo-topic: 10000 stored, 0 failed\n`,
		}},
		{"consumer/simple", []string{"-n", "11"}, []string{
			`^offset 0  key user-0  value message 0  headers map\[source:feed\]\n`, "\n11 messages read, the next offset is 11, the high-water mark 1\\d\n$",
		}},
		{"consumer/simple", []string{"-n", "3", "-from", "4", "-partition", "2"}, []string{
			`^offset 4  `, "\n3 messages read, the next offset is 7, the high-water mark ",
		}},
		{"consumer/simple", []string{"-n", "1", "-from", "newest"}, []string{`^offset [1-9]\d+  `, "1 messages read"}},
		{"consumer/group", nil, []string{
			`^joined group demo-group as group-example-`, `\ngeneration 1: demo-topic/3 comes\n`, `\ngeneration 1: demo-topic/3 goes\n`,
			`\n20 messages handled\n  demo-topic/0: 5\n  demo-topic/1: 5\n  demo-topic/2: 5\n  demo-topic/3: 5\n$`,
		}},
		{"metrics", nil, []string{
			`messages sent +100\n`, `messages failed +1\n`, `messages received +75\n`, `lag of metrics-demo/0 +25\n`,
			`active connections +[12]\n`, `reconnections +0\n$`,
		}},
	} {
		t.Run(strings.Join(append([]string{c.example}, c.args...), " "), func(t *testing.T) {
			r := run(t, dir, c.example, c.args...)
			require.Zero(t, r.code, "%s", r.stderr)
			for _, want := range c.want {
				require.Regexp(t, want, r.stdout)
			}
			require.Empty(t, r.stderr)
		})
	}
}

// testSequence runs the examples one after the other against one broker.
func testSequence(t *testing.T, dir string) {
	if runtime.GOOS == "windows" {
		t.Skip("processes cannot be interrupted")
	}
	broker, addr := startBroker(t, dir, "-topic", "other:2", "-auto-create", "1")
	against := func(example string, args ...string) string {
		t.Helper()
		r := run(t, dir, example, append([]string{"-brokers", addr}, args...)...)
		require.Zero(t, r.code, "%s %v\n%s%s", example, args, r.stdout, r.stderr)
		return r.stdout
	}

	out := against("admin")
	require.Contains(t, out, "created topic demo-topic\ntopics: demo-topic, other\n")
	require.Contains(t, out, adminDone)
	require.Contains(t, out, " of the cluster is at "+addr+"\n")
	out = against("admin")
	require.Contains(t, out, "topic demo-topic is there already, so it is not changed\n")
	require.Contains(t, out, "demo-topic has 6 partitions, retention.hours=24\n")
	require.NotContains(t, out, "doubled")

	// Partition 0 holds offsets 4 to 9; nothing else is sent there but what follows.
	out = against("consumer/simple", "-n", "6")
	require.True(t, strings.HasPrefix(out, "offset 4  key -  value record 4  headers map[]\n"), out)
	require.Contains(t, out, "6 messages read, the next offset is 10, the high-water mark 10\n")

	consumer := start(t, dir, "consumer/simple", "-brokers", addr, "-topic", "made-by-the-first-message", "-from", "oldest")
	_ = consumer.cmd.Wait()
	require.Equal(t, 1, consumer.cmd.ProcessState.ExitCode())
	require.Contains(t, consumer.stderr.String(), "topic not found")

	require.Contains(t, against("producer/simple", "-topic", "made-by-the-first-message", "-n", "3"), "offset 2  key user-2  value message 2\n")
	consumer = start(t, dir, "consumer/simple", "-brokers", addr, "-topic", "made-by-the-first-message")
	require.Contains(t, consumer.line(t), "value message 0")
	require.Contains(t, consumer.line(t), "value message 1")
	require.Contains(t, consumer.line(t), "value message 2")
	rest, code := consumer.stop(t, os.Interrupt)
	require.Zero(t, code, "%s", &consumer.stderr)
	require.Equal(t, "3 messages read, the next offset is 3, the high-water mark 3\n", rest)

	require.Contains(t, against("producer/async", "-topic", "many", "-n", "5000"), "5000 messages sent to topic many: 5000 stored, 0 failed\n")

	require.Regexp(t, `lag of metrics-demo/0 +25\n`, against("metrics"))
	require.Regexp(t, `lag of metrics-demo/0 +25\n`, against("metrics"))

	// The second run finds the messages of the first in its topic.
	require.Contains(t, against("quickstart"), quickstartDone)
	out = against("quickstart", "-chunk", "1000")
	require.Contains(t, out, quickstartDone)
	require.NotRegexp(t, `(?m)^ +\d +\d+ +\d+ +0 `, out, "a first offset of 0")

	require.Contains(t, against("admin", "-topic", "demo", "-delete"), "deleted topic demo\n")
	r := run(t, dir, "admin", "-brokers", addr, "-topic", "demo", "-delete")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "topic not found: demo")

	rest, code = broker.stop(t, os.Interrupt)
	require.Zero(t, code, "%s", &broker.stderr)
	require.Equal(t, "stopping\n", rest)
	for _, example := range []string{"quickstart", "admin", "producer/simple", "producer/async", "consumer/simple", "consumer/group", "metrics"} {
		r := run(t, dir, example, "-brokers", addr)
		require.Equal(t, 1, r.code, example)
		require.Contains(t, r.stderr, "no broker can be reached", example)
	}
}

// testGroup has the members of a group share a topic.
func testGroup(t *testing.T, dir string) {
	if runtime.GOOS == "windows" {
		t.Skip("processes cannot be interrupted")
	}
	_, addr := startBroker(t, dir, "-topic", "demo-topic:4")
	join := func(args ...string) *process {
		t.Helper()
		p := start(t, dir, "consumer/group", append([]string{"-brokers", addr}, args...)...)
		require.Regexp(t, `^joined group demo-group as group-example-`, p.line(t))
		return p
	}
	// moved reads n lines that say the same of n partitions, and returns which.
	moved := func(p *process, n int, how string) (partitions []string) {
		t.Helper()
		for range n {
			m := regexp.MustCompile(`^generation \d+: (demo-topic/\d) ` + how + `$`).FindStringSubmatch(p.line(t))
			require.NotNil(t, m)
			partitions = append(partitions, m[1])
		}
		return partitions
	}
	// send sends n messages, and returns how many have gone to the partitions.
	send := func(n string, partitions []string) (count int) {
		t.Helper()
		r := run(t, dir, "producer/simple", "-brokers", addr, "-n", n)
		require.Zero(t, r.code, "%s", r.stderr)
		for _, partition := range partitions {
			count += strings.Count(r.stdout, strings.Replace(partition, "demo-topic/", "partition ", 1)+"  ")
		}
		return count
	}

	first := join()
	all := moved(first, 4, "comes")
	second := join()
	theirs := moved(second, 2, "comes")
	require.ElementsMatch(t, theirs, moved(first, 2, "goes"))

	count := send("8", theirs)
	for range count {
		require.Regexp(t, `^demo-topic/\d  offset \d  key user-`, second.line(t))
	}
	for range 8 - count {
		require.Regexp(t, `^demo-topic/\d  offset \d  key user-`, first.line(t))
	}
	rest, code := second.stop(t, os.Interrupt)
	require.Zero(t, code, "%s", &second.stderr)
	require.Regexp(t, fmt.Sprintf(`^generation 2: demo-topic/\d goes\ngeneration 2: demo-topic/\d goes\n%d messages handled\n`, count), rest)
	require.ElementsMatch(t, theirs, moved(first, 2, "comes"))
	rest, code = first.stop(t, os.Interrupt)
	require.Zero(t, code, "%s", &first.stderr)
	require.Contains(t, rest, fmt.Sprintf("\n%d messages handled\n", 8-count))

	// Who comes later goes on behind what was handled. A member with a name gets
	// its partitions back although it has not left the group.
	for _, offset := range []string{"2", "3"} {
		static := join("-instance", "one")
		require.ElementsMatch(t, all, moved(static, 4, "comes"))
		require.Equal(t, 1, send("1", all))
		require.Regexp(t, `^demo-topic/\d  offset `+offset+`  key user-0  value message 0$`, static.line(t))
		rest, code = static.stop(t, os.Interrupt)
		require.Zero(t, code, "%s", &static.stderr)
		require.Contains(t, rest, "\n1 messages handled\n")
	}
}

// testKept runs examples more than once over one directory.
func testKept(t *testing.T, dir string) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no data directories on Windows")
	}
	data := filepath.Join(t.TempDir(), "queue")
	for i := range 3 {
		r := run(t, dir, "quickstart", "-data", data)
		require.Zero(t, r.code, "%s", r.stderr)
		require.Contains(t, r.stdout, quickstartDone)
		want := "400 messages sent to topic demo\n"
		if i > 0 {
			want = fmt.Sprintf("found %d messages of earlier runs\n", 400*i) + want
		}
		require.True(t, strings.HasPrefix(r.stdout, want), r.stdout)
	}

	data = filepath.Join(t.TempDir(), "broker")
	broker, addr := startBroker(t, dir, "-data", data, "-topic", "demo-topic:2")
	against := func(example string, args ...string) string {
		t.Helper()
		r := run(t, dir, example, append([]string{"-brokers", addr}, args...)...)
		require.Zero(t, r.code, "%s %v\n%s%s", example, args, r.stdout, r.stderr)
		return r.stdout
	}
	against("producer/simple", "-n", "6")
	require.Contains(t, against("consumer/group", "-n", "6"), "\n6 messages handled\n")

	second := run(t, dir, "broker", "-addr", "127.0.0.1:0", "-data", data)
	require.Equal(t, 1, second.code)
	require.Contains(t, second.stderr, "data directory is in use")
	r := run(t, dir, "quickstart", "-brokers", addr, "-data", data)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "-data is for the broker in this process")

	_, code := broker.stop(t, os.Interrupt)
	require.Zero(t, code, "%s", &broker.stderr)
	broker, addr = startBroker(t, dir, "-data", data)
	require.Contains(t, against("admin"), "topics: demo-topic\ndemo-topic has 2 partitions")
	require.Contains(t, against("producer/simple", "-n", "1"), "offset 3  key user-0")
	broker.stop(t, os.Kill)

	_, addr = startBroker(t, dir, "-data", data)
	// The group goes on behind what it had handled.
	require.Regexp(t, `demo-topic/\d  offset 3  key user-0  value message 0\n`, against("consumer/group", "-n", "1"))
}

// testUsage covers what is wrong from the start.
func testUsage(t *testing.T, dir string) {
	for _, c := range []struct {
		example, args string
		code          int
		stderr        string
	}{
		{"quickstart", "-h", 0, "Usage: "},
		{"admin", "-h", 0, "-delete"},
		{"broker", "-h", 0, "-auto-create number"},
		{"broker", "-h", 0, "-data directory"},
		{"producer/simple", "-h", 0, "host:port[,host:port]"},
		{"consumer/simple", "-h", 0, "oldest, newest or a number"},
		{"consumer/group", "-h", 0, "finds its partitions again"},
		{"metrics", "-h", 0, "three quarters are read"},
		{"quickstart", "file.csv", 2, `unexpected argument "file.csv"`},
		{"quickstart", "-brokers ,", 2, "want host:port[,host:port]"},
		{"quickstart", "-brokers localhost", 1, "want addresses of the form host:port"},
		{"quickstart", "-file no-such-file", 1, "no-such-file"},
		{"quickstart", "-partitions 0", 1, "partitions 0: want 1 to 10000"},
		{"quickstart", "-topic a/b", 1, `topic name "a/b"`},
		{"quickstart", "-timeout 1ns", 1, "deadline exceeded"},
		{"consumer/simple", "-from yesterday", 2, "want oldest, newest or an offset"},
		{"consumer/simple", "-partition -1", 1, "want 1 to 10000 partitions"},
		{"consumer/group", "-topic a/b", 1, `WithTopic("a/b")`},
		{"broker", "-topic orders", 2, "want name:partitions"},
		{"broker", "-topic orders:0", 1, "want 1 to 10000 partitions"},
		{"broker", "-addr 127.0.0.1:99999", 1, "listen on 127.0.0.1:99999"},
	} {
		t.Run(c.example+" "+c.args, func(t *testing.T) {
			r := run(t, dir, c.example, strings.Fields(c.args)...)
			require.Equal(t, c.code, r.code, "%s", r.stderr)
			require.Contains(t, r.stderr, c.stderr)
		})
	}
}

// testEnvironment has the environment name the broker, unless the flag does.
func testEnvironment(t *testing.T, dir string) {
	_, addr := startBroker(t, dir, "-topic", "demo-topic:2")
	t.Setenv("ROBUST_BROKERS", addr)
	r := run(t, dir, "admin")
	require.Zero(t, r.code, "%s", r.stderr)
	require.Contains(t, r.stdout, "topic demo-topic is there already")

	t.Setenv("ROBUST_BROKERS", "localhost")
	r = run(t, dir, "admin", "-brokers", addr)
	require.Zero(t, r.code, "%s", r.stderr)
	t.Setenv("ROBUST_BROKERS", ",")
	r = run(t, dir, "admin")
	require.Equal(t, 2, r.code)
	require.Contains(t, r.stderr, `ROBUST_BROKERS is ",": want host:port`)
}

// testDocumented compares what the pages say that a command prints with what it
// prints, but for times and what depends on them. The commands of a page that name one
// directory have one.
func testDocumented(t *testing.T, dir string) {
	documented := regexp.MustCompile("(?m)^```sh\ngo run \\./examples/(.*)\n```\n\n```text\n((?:.*\n)*?)```$")
	varies := regexp.MustCompile(`\d+(\.\d+)?(ns|µs|ms|s)\b|\d+ messages/s|fetches +\d+|high-water mark \d+|\d+ requests in \d+ writes, \d+ bytes|\d+\.\d %`)
	for _, page := range []string{"README.md", filepath.Join("..", "README.md")} {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		commands := documented.FindAllSubmatch(text, -1)
		require.NotEmpty(t, commands, page)
		data := t.TempDir()
		for _, c := range commands {
			words := strings.Fields(string(c[1]))
			if i := slices.Index(words, "-data"); i >= 0 {
				if runtime.GOOS == "windows" {
					continue // There are no data directories.
				}
				words[i+1] = filepath.Join(data, words[i+1])
			}
			r := run(t, dir, words[0], words[1:]...)
			require.Equal(t,
				varies.ReplaceAllString(string(c[2]), "?"),
				varies.ReplaceAllString(r.stdout, "?"), "%s: %s", page, c[1])
		}
	}
}
