package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(text)
}

func TestServeHTTP(t *testing.T) {
	t.Parallel()
	s := serve(t, "--http", "127.0.0.1:0")
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/debug/pprof/": 404, "/": 404} {
		status, _ := get(t, "http://"+s.http+path)
		require.Equal(t, want, status, path)
	}
	s = serve(t, "--http", "127.0.0.1:0", "--pprof")
	status, body := get(t, "http://"+s.http+"/debug/pprof/")
	require.Equal(t, 200, status)
	require.Contains(t, body, "goroutine")
}

func TestPing(t *testing.T) {
	t.Parallel()
	s := serve(t)
	require.Regexp(t, `^`+s.addr+` answers in [0-9.]+.?s\n$`, succeed(t, s.addr, "", "ping"))
	var v struct {
		Brokers      []string
		Milliseconds float64
	}
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "ping", "-o", "json")), &v))
	require.Equal(t, []string{s.addr}, v.Brokers)
	require.Positive(t, v.Milliseconds)
}

// TestServeAgain: a signal ends the broker in good order, and the next one has everything.
func TestServeAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	s := serve(t, "--data", dir, "--topic", "orders:2", "--sync", "always")
	succeed(t, s.addr, numbers(100), "produce", "orders", "-p", "1", "--acks", "synced")

	o := robustWith(t, "", "", "serve", "--addr", "127.0.0.1:0", "--data", dir)
	require.Equal(t, exitConflict, o.code)
	require.Contains(t, o.stderr, "stop the broker that works there")
	o = robustWith(t, "", "", "serve", "--addr", s.addr)
	require.Equal(t, exitConflict, o.code, o.stderr)
	require.Contains(t, o.stderr, "port 0")

	s.stop(t)
	for line := range strings.Lines(s.stderr.String()) {
		var entry map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &entry), "nobody looks on, so the log is JSON: %s", line)
	}
	require.Contains(t, s.stderr.String(), "the broker has ended")
	s = serve(t, "--data", dir)
	require.Equal(t, numbers(100), succeed(t, s.addr, "", "consume", "orders", "--to", "end"))
}

func TestLogCheckRepair(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, "--data", dir, "--topic", "orders")
	for range 3 {
		succeed(t, s.addr, numbers(100), "produce", "orders")
	}
	o := robustWith(t, "", "", "log", "check", dir)
	require.Equal(t, exitConflict, o.code)
	require.NotContains(t, o.stderr, "--data", "the command has no such flag")
	s.stop(t)
	require.Contains(t, succeed(t, "", "", "log", "check", dir), "nothing is damaged")

	// A byte in the first batch.
	var segment string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".log") && strings.Contains(path, "orders") {
			segment = path
		}
		return err
	}))
	require.NotEmpty(t, segment)
	content, err := os.ReadFile(segment)
	require.NoError(t, err)
	content[len(content)/5] ^= 1
	require.NoError(t, os.WriteFile(segment, content, 0o600))

	o = robustWith(t, "", "", "log", "check", dir)
	require.Equal(t, exitDamaged, o.code, o.stdout)
	require.Contains(t, o.stderr, "robust log repair")
	require.Contains(t, succeed(t, "", "", "log", "repair", dir), "repaired: ")
	require.Contains(t, succeed(t, "", "", "log", "check", dir), "nothing is damaged")
	s = serve(t, "--data", dir)
	read := succeed(t, s.addr, "", "consume", "orders", "--to", "end")
	require.True(t, strings.HasSuffix(read, numbers(100)+numbers(100)), "only the first batch is gone")
}

func TestTopics(t *testing.T) {
	t.Parallel()
	s := serve(t)
	require.Contains(t, succeed(t, s.addr, "", "topic", "list"), "there are no topics")
	succeed(t, s.addr, "", "topic", "create", "orders", "-p", "2", "--set", "retention.hours=5")
	o := robustWith(t, s.addr, "", "topic", "create", "orders")
	require.Equal(t, exitConflict, o.code)
	succeed(t, s.addr, "", "topic", "create", "orders", "--if-not-exists")
	succeed(t, s.addr, numbers(3), "produce", "orders", "-p", "1")
	require.Equal(t, "TOPIC   PARTITIONS  MESSAGES\norders  2           3\n", succeed(t, s.addr, "", "topic", "list"))
	require.Regexp(t, `^topic orders, 2 partitions, 3 messages\nretention.hours = 5\n`, succeed(t, s.addr, "", "topic", "describe", "orders"))
	var views []topicView
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "topic", "describe", "orders", "-o", "json")), &views))
	require.EqualValues(t, 3, *views[0].Partitions[1].Newest)
	o = robustWith(t, s.addr, "", "topic", "delete", "orders", "none", "--dry-run")
	require.Equal(t, exitNotFound, o.code)
	require.Equal(t, "would delete: topic orders (2 partitions, 3 messages)\n", o.stdout)
	o = robustWith(t, s.addr, "", "topic", "delete", "orders", "none")
	require.Equal(t, exitNotFound, o.code)
	require.Contains(t, o.stdout, "deleted: topic orders\n")
	require.Contains(t, o.stderr, "topic none")
}

// absentAddr is where nobody listens.
func absentAddr(t *testing.T) string {
	t.Helper()
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func TestAbsentBroker(t *testing.T) {
	t.Parallel()
	addr := absentAddr(t)
	for _, args := range [][]string{
		{"topic", "list"},
		{"produce", "orders"},
		{"consume", "orders"},
		{"group", "list"},
		{"bench", "produce"},
		{"ping"},
	} {
		o := robustWith(t, addr, "text\n", args...)
		require.Equal(t, exitNoBroker, o.code, args)
		require.Contains(t, o.stderr, "is one running at "+addr+"? robust serve starts one", args)
	}
}

// requireUsage holds that each command line is refused as a wrong one, with an error that says
// what is wanted in terms of the command line.
func requireUsage(t *testing.T, wants map[string]string) {
	t.Helper()
	for args, want := range wants {
		o := robustWith(t, "127.0.0.1:1", "", strings.Fields(args)...)
		require.Equal(t, exitUsage, o.code, "%s\n%s", args, o.stderr)
		require.Contains(t, o.stderr, want, args)
		require.NotContains(t, o.stderr, "With", args)
		require.Empty(t, o.stdout, args)
	}
}

func TestWrongUsage(t *testing.T) {
	t.Parallel()
	requireUsage(t, map[string]string{
		"":                              "expected one of",
		"topics":                        "did you mean \"topic\"?",
		"topic create":                  "see: robust topic create --help",
		"topic list --wrong":            "unknown flag --wrong",
		"consume orders --from tuesday": "is none of oldest, newest, an offset",
		"consume orders -f %x":          "%x means nothing",
		"consume orders -f vlaue":       "is none of value, keyed",
		"consume orders -g g -p 1":      "exclude one another",
		"produce orders /none":          "no such file",
		"produce orders -z zip":         "none, gzip, snappy, lz4 and zstd",
		"produce orders -f json -k :":   "is for lines",
		"serve --sync sometimes":        "none of always, never",
		"serve --pprof":                 "--http",
		"serve --topic orders:many":     "as in orders:3",
		"log check /none":               "/none",
		"group reset g t":               "--to",
		"bench produce -s 1":            "--size",
	})
}

// TestConfigFile: the command line beats the environment, and that the file.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders:2")
	config := writeFile(t, "brokers = [\""+s.addr+"\"]\noutput = \"json\"\n[topic.create]\npartitions = 4\n[serve]\nretention-bytes = 1000000\n")
	require.Contains(t, succeed(t, "", "", "topic", "list", "--config", config), `"name": "orders"`)
	require.Contains(t, succeed(t, "", "", "topic", "list", "--config", config, "-o", "table"), "TOPIC")
	require.Equal(t, exitNoBroker, robustWith(t, absentAddr(t), "", "topic", "list", "--config", config).code)
	require.Contains(t, succeed(t, "", "", "topic", "create", "four", "--config", config), `"partitions": 4`)
	o := robustWith(t, "", "", "topic", "list", "--config", writeFile(t, "[serve]\nwrong = \"x\"\n"))
	require.Equal(t, exitUsage, o.code)
	require.Contains(t, o.stderr, "serve.wrong, which is no flag")
	require.Equal(t, exitUsage, robustWith(t, "", "", "topic", "list", "--config", writeFile(t, "=")).code)
}

// TestReadmeExitCodes: the page lists the codes that there are.
func TestReadmeExitCodes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## Exit codes")
	require.True(t, found)
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	var want []string
	for _, code := range []int{
		exitOK, exitFailure, exitUsage, exitNoBroker, exitNotFound, exitConflict, exitDamaged, exitUndelivered, exitInterrupted, exitPipe,
	} {
		want = append(want, strconv.Itoa(code))
	}
	require.Equal(t, want, got)
}
