package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConfigValues: a value in the file means what it means on the command line, and a number
// is no time: of what it would be one, nobody has said.
func TestConfigValues(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders")
	succeed(t, s.addr, numbers(5), "produce", "orders")
	with := func(text string, args ...string) outcome {
		return robustWith(t, s.addr, "", append(args, "--config", writeFile(t, text))...)
	}
	for text, want := range map[string]string{
		"from = 3\npartition = 0":           "4\n5\n",
		"from = \"-1h\"\nnumber = 1":        "1\n",
		"from = 2001-02-03\nnumber = 2":     "1\n2\n",
		"from = 2001-02-03T04:05:06Z\nn = ": "",
		"from = 2001-02-03T04:05:06Z":       numbers(5),
	} {
		o := with("[consume]\nto = \"end\"\n"+text, "consume", "orders")
		if want == "" {
			require.Equal(t, exitUsage, o.code, text)
			continue
		}
		require.Equal(t, want, o.stdout, "%s\n%s", text, o.stderr)
	}
	o := with("[topic.create]\nset = {\"retention.hours\" = 5, \"segment.bytes\" = \"70000\"}", "topic", "create", "set")
	require.Zero(t, o.code, o.stderr)
	require.Contains(t, succeed(t, s.addr, "", "topic", "describe", "set"), "retention.hours = 5\nsegment.bytes = 70000\n")

	o = with("timeout = 5", "ping")
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Contains(t, o.stderr, "--timeout: ")
	require.Contains(t, o.stderr, "missing unit")
	o = with("[serve]\naddr = \"127.0.0.1:0\"\nretention = 72", "serve")
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Contains(t, o.stderr, "--retention: ")
}

// TestConfigFileNamed: who has forgotten that there is a file is told where.
func TestConfigFileNamed(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"brokrs = 1\n", "brokers = [\n"} {
		config := writeFile(t, text)
		o := robustWith(t, "", "", "ping", "--config", config)
		require.Equal(t, exitUsage, o.code)
		require.Contains(t, o.stderr, config)
	}
}
