package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
)

func TestBench(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, args := range [][]string{{"produce"}, {"consume"}, {"latency", "--rate", "5000"}} {
		out := succeed(t, s.addr, "", append([]string{"bench"}, append(args, "-n", "500")...)...)
		require.Contains(t, out, args[0]+": 500 messages in ")
		if args[0] != "consume" {
			require.Contains(t, out, "P99.9")
			require.Contains(t, out, "█")
		}
	}
	require.Contains(t, succeed(t, s.addr, "", "topic", "list"), "there are no topics", "what was made was not deleted")
	var r measured
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "bench", "produce", "-n", "10", "-o", "json")), &r))
	require.EqualValues(t, 10, r.Messages)
	require.NotZero(t, r.Latency.P50)

	// With a topic that is there, consume reads what it has, or so many.
	succeed(t, s.addr, "", "topic", "create", "kept")
	succeed(t, s.addr, "", "bench", "produce", "--topic", "kept", "-n", "300")
	require.Contains(t, succeed(t, s.addr, "", "bench", "consume", "--topic", "kept"), "consume: 300 messages in ")
	require.Contains(t, succeed(t, s.addr, "", "bench", "consume", "--topic", "kept", "-n", "120"), "consume: 120 messages in ")
}

// TestBenchNothing: an empty topic has a result, too.
func TestBenchNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "empty")
	require.Contains(t, succeed(t, s.addr, "", "bench", "consume", "--topic", "empty"), "consume: 0 messages")
	require.Contains(t, succeed(t, s.addr, "", "bench", "consume", "--topic", "empty", "-o", "json"), `"messages": 0`)
}

// TestLiveLine: the figures as they are shown, whatever room there is.
func TestLiveLine(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	l := &liveLine{name: "produce", at: at}
	for i := range 10 {
		f := figures{done: int64(i+1) * 2000, total: 80_000, bytes: int64(i+1) * 200_000}
		if i > 0 {
			f.latency, f.p50, f.p99 = true, 850, 12_345
		}
		l.take(f, at.Add(time.Duration(i+1)*liveTick))
	}
	require.Equal(t, "produce █████                 25 %     10,000 msg/s  976.6 KiB/s  p50 850µs  p99 12.3ms  ██████████", l.text(120))
	require.Equal(t, "produce █████                 25 %     10,000 msg/s…", l.text(52))
	for width := range 120 {
		require.LessOrEqual(t, ansi.StringWidth(l.text(width)), width)
	}
	require.Equal(t, []string{"", "▏", "█▌", "███", "███"}, []string{barText(0, 3), barText(0.0001, 3), barText(0.5, 3), barText(1, 3), barText(7, 3)})
}

func TestLatencyBars(t *testing.T) {
	t.Parallel()
	h := hdrhistogram.New(1, 60_000_000, 3)
	for v, n := range map[int64]int64{3: 50, 7: 900, 40: 45, 15_000: 5} {
		require.NoError(t, h.RecordValues(v, n))
	}
	var out strings.Builder
	writeBars(&out, h, painter{}, 40)
	require.Equal(t, "5µs\t50\t5.00 %\t██▎\n10µs\t900\t90.00 %\t"+strings.Repeat("█", 40)+"\n50µs\t45\t4.50 %\t██\n20ms\t5\t0.50 %\t▎\n", out.String())
	for us, want := range map[int64]string{7: "7µs", 999: "999µs", 1234: "1.23ms", 45678: "45.7ms", 1_234_567: "1.23s", 59_999_999: "1m0s"} {
		require.Equal(t, want, micros(us))
	}
}
