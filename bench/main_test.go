package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be what the program is: its own children.
func TestMain(m *testing.M) {
	if text := os.Getenv(roleEnv); text != "" {
		os.Exit(runRole(text))
	}
	os.Exit(m.Run())
}

// testMessages is how many each contestant moves. It is what those send at once that
// send the most.
const testMessages = 1000

// TestContestants has each contestant that is there do all that it can, and count.
func TestContestants(t *testing.T) {
	for _, c := range contestants() {
		a := c.about()
		t.Run(a.name, func(t *testing.T) {
			if a.missing != "" {
				t.Skip(a.missing)
			}
			require.NotContains(t, a.version, "unknown")
			partitions := 1
			if a.partitioned {
				partitions = 3
			}
			s := settings{match: regexp.MustCompile(`/` + a.name + `$`), duration: time.Minute, maxBytes: 100 * testMessages, rate: 100_000}
			kinds := 0
			for _, group := range together() {
				for _, j := range s.heat(group, 100, partitions) {
					j.Pool, j.Dir = 1<<20, t.TempDir()
					for _, r := range j.run(t.Context()) {
						require.Empty(t, r.Err, r.Kind)
						require.GreaterOrEqual(t, r.Messages, int64(testMessages), r.Kind)
						require.Positive(t, r.Rate, r.Kind)
						kinds++
					}
				}
			}
			require.Len(t, a.kinds, kinds)
		})
	}
}

// TestRun is the whole program, with those contestants that are quickest at starting.
func TestRun(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "rates.svg")
	var out, progress bytes.Buffer
	require.NoError(t, run(t.Context(), []string{
		"-match", "^(sync/100B/1/echo|produce/100B/6/robust|produce/1KiB/1/naive-json)$",
		"-duration", "10ms", "-count", "2", "-svg", svg, "-dir", t.TempDir(),
	}, &out, &progress))
	text := out.String()
	require.NotContains(t, text, "failed", progress.String())
	for _, want := range []string{
		"One message at a time, 100 B, 1 partition", "Produce, many in flight, 100 B, 6 partitions",
		"Produce, many in flight, 1 KiB, 1 partition", "| bare TCP echo of the payload |", "| robust |", "fsync every second",
	} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "Consume")
	require.Equal(t, 6, strings.Count(progress.String(), "\n"), progress.String())
	drawn, err := os.ReadFile(svg)
	require.NoError(t, err)
	requireSVG(t, drawn, "echo", "naive-json")
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-size", "7"}, {"-size", "x"}, {"-partitions", "0"}, {"-duration", "0s"}, {"-count", "0"}, {"-match", "("}, {"more"},
	} {
		require.Error(t, run(t.Context(), args, io.Discard, io.Discard), args)
	}
	var out bytes.Buffer
	require.NoError(t, run(t.Context(), []string{"-list", "-match", "^produce/100B/1000/", "-size", "100,1024"}, &out, io.Discard))
	require.Contains(t, out.String(), "produce/100B/1000/robust\n")
	require.NotContains(t, out.String(), "consume")
	require.NotContains(t, out.String(), "nsq")
	require.Equal(t, "bench -match 'a|b' -count 2", commandLine([]string{"-match", "a|b", "-count", "2"}))
}

// TestChildFails holds that what a process of a run says before it fails is told.
func TestChildFails(t *testing.T) {
	_, err := startBroker(t.Context(), "nobody", target{})
	require.ErrorContains(t, err, `there is no contestant "nobody"`)
	results := job{Contestant: "robust", Kinds: []kind{kindSync}, Partitions: 1, Dir: filepath.Join(os.DevNull, "x")}.run(t.Context())
	require.Len(t, results, 1)
	require.Contains(t, results[0].Err, "the broker did not start")
}

// requireSVG holds that text is an SVG in which each of the names stands.
func requireSVG(t *testing.T, text []byte, names ...string) {
	t.Helper()
	var inside strings.Builder
	decoder := xml.NewDecoder(bytes.NewReader(text))
	first := ""
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		switch token := token.(type) {
		case xml.StartElement:
			if first == "" {
				first = token.Name.Local
			}
		case xml.CharData:
			inside.Write(token)
		default:
		}
	}
	require.Equal(t, "svg", first)
	for _, name := range names {
		require.Contains(t, inside.String(), name)
	}
}
