package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestWrongValues: what only shows when the command runs is told by the flag's name, too.
func TestWrongValues(t *testing.T) {
	t.Parallel()
	requireUsage(t, map[string]string{
		"ping -b nowhere":                         `--brokers(["nowhere"])`,
		"ping --timeout 0s":                       "--timeout(0s)",
		"serve --retention=-5s":                   "--retention",
		"serve --retention-bytes=-5":              "--retention-bytes",
		"serve --max-connections 0":               "--max-connections(0)",
		"serve --max-frame 1":                     "--max-frame(1)",
		"serve --auto-create=-1":                  "--auto-create(-1)",
		"serve --advertise x":                     "--advertise(x)",
		"serve --topic a/b":                       "--topic(",
		"serve --addr nowhere":                    "HOST:PORT",
		"serve --addr 127.0.0.1:0 --http nowhere": "HOST:PORT",
		"serve --addr 127.0.0.1:70000":            "HOST:PORT",
		"serve --grace=-1s":                       "--grace",
		"produce orders --grace=-1s":              "--grace",
		"consume orders -n 0":                     "-n ",
		"topic list --wrong":                      "see: robust topic list --help\n",
	})
	dir := t.TempDir()
	o := robustWith(t, "127.0.0.1:1", "", "produce", "orders", writeFile(t, "a\n"), dir)
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Contains(t, o.stderr, dir+" is a directory")
}

// TestAskedForHelp: what newcomers type is what they mean.
func TestAskedForHelp(t *testing.T) {
	t.Parallel()
	for asked, same := range map[string]string{
		"help":              "--help",
		"help consume":      "consume --help",
		"help topic create": "topic create --help",
		"version":           "--version",
	} {
		want := succeed(t, "127.0.0.1:1", "", strings.Fields(same)...)
		require.NotEmpty(t, want)
		require.Equal(t, want, succeed(t, "127.0.0.1:1", "", strings.Fields(asked)...), asked)
	}
}

// TestRetentionInDays: days are a span here as they are for consume --from.
func TestRetentionInDays(t *testing.T) {
	t.Parallel()
	var s span
	require.NoError(t, s.UnmarshalText([]byte("3d12h")))
	require.Equal(t, span(84*time.Hour), s)
	require.Error(t, s.UnmarshalText([]byte("3")))
	serve(t, "--retention", "3d", "--topic", "one")
	requireUsage(t, map[string]string{"serve --retention 3x": `--retention: "3x" is no time such as 72h or 3d`})
}

// TestWrongJSON: what is wrong with a line is told in its own terms, and nothing is sent that
// is not what stands there.
func TestWrongJSON(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "one")
	for line, want := range map[string]string{
		`{"headers":{"a":1}}`:   "headers is a number where text is wanted",
		`{"key":5}`:             "key is a number where text is wanted",
		`{"partition":"1"}`:     "partition is a string where a whole number is wanted",
		`{"timestamp":1.5}`:     "timestamp is a number 1.5 where a whole number is wanted",
		"{\"value\":\"a\xff\"}": "not UTF-8",
		`"text"`:                "no object",
	} {
		o := robustWith(t, s.addr, line+"\n", "produce", "one", "-f", "json")
		require.Equal(t, exitUsage, o.code, line)
		require.Contains(t, o.stderr, "standard input, line 1: ", line)
		require.Contains(t, o.stderr, want, line)
		require.NotContains(t, o.stderr, "Go ", line)
	}
	// Files of some editors begin with a mark.
	succeed(t, s.addr, "\ufeff{\"value\":\"a\"}\r\n", "produce", "one", "-f", "json")
	require.Equal(t, "a\n", succeed(t, s.addr, "", "consume", "one", "--to", "end"))
}

// TestLogCheckElsewhere: where nothing could be read, nothing is reported.
func TestLogCheckElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := serve(t, "--data", dir, "--topic", "orders")
	for _, command := range []string{"check", "repair"} {
		o := robustWith(t, "", "", "log", command, dir, "-o", "json")
		require.Equal(t, exitConflict, o.code)
		require.Empty(t, o.stdout)
	}
	s.stop(t)
	o := robustWith(t, "", "", "log", "check", filepath.Dir(dir))
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Empty(t, o.stdout)
	require.NotContains(t, o.stderr, "log check")
}

// TestFromDays: nobody wants to count the hours of a week.
func TestFromDays(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders")
	succeed(t, s.addr, "a\n", "produce", "orders")
	require.Equal(t, "a\n", succeed(t, s.addr, "", "consume", "orders", "--from=-7d", "--to", "end"))
	require.Equal(t, "a\n", succeed(t, s.addr, "", "consume", "orders", "--from=-1d12h", "--to", "end"))
	require.Equal(t, exitUsage, robustWith(t, s.addr, "", "consume", "orders", "--from=-d", "--to", "end").code)
}
