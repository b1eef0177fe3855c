package main

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"

	"github.com/aminofox/robust-go-sdk"
)

// topAt is when the first look of a test is.
func topAt(seconds int) time.Time { return time.Date(2026, 1, 31, 12, 0, seconds, 0, time.UTC) }

// topSeen is what a broker with two topics and a group says in a second: orders gets so many
// messages in it, and the group reads half of them.
func topSeen(seconds int, orders int64) *topState {
	partitions := func(n int32) (all []robust.PartitionMetadata) {
		for p := range n {
			all = append(all, robust.PartitionMetadata{ID: p, Leader: "node-1"})
		}
		return all
	}
	return &topState{
		At: topAt(seconds), Took: 400 * time.Microsecond, Cluster: "c1", Nodes: []robust.NodeInfo{{ID: "node-1", Addr: "127.0.0.1:8686"}},
		Topics: []topTopic{
			{
				Name: "idle", ID: "t2", Told: true, Partitions: partitions(1),
				Oldest: map[int32]int64{0: 5}, Newest: map[int32]int64{0: 12},
			},
			{
				Name: "orders", ID: "t1", Told: true, Partitions: partitions(2),
				Oldest: map[int32]int64{0: 0, 1: 0}, Newest: map[int32]int64{0: orders, 1: 1_000_000},
			},
		},
		Groups: []topGroup{{
			ID: "billing", State: "Stable", Members: 2, Told: true, Lag: orders / 2,
			Offsets: []robust.GroupOffset{
				{Topic: "orders", Partition: 0, Committed: orders - orders/2, HighWaterMark: orders, Lag: orders / 2, MemberID: "m-1"},
				{Topic: "orders", Partition: 1, Committed: 1_000_000, HighWaterMark: 1_000_000, MemberID: "m-2"},
			},
		}},
	}
}

// topScreen is a model of that size that has seen orders grow by so many a second.
func topScreen(t *testing.T, width, height int, grown ...int64) *topModel {
	t.Helper()
	m := newTopModel("127.0.0.1:8686", time.Second, nil)
	send(m, tea.WindowSizeMsg{Width: width, Height: height})
	orders := int64(0)
	for i, n := range grown {
		orders += n
		send(m, topLook{state: topSeen(i, orders), at: topAt(i)})
	}
	return m
}

func send(m *topModel, messages ...tea.Msg) {
	for _, msg := range messages {
		m.Update(msg)
	}
}

// press sends keys by their names.
func press(m *topModel, keys ...string) {
	named := map[string]rune{"tab": tea.KeyTab, "enter": tea.KeyEnter, "esc": tea.KeyEscape, "down": tea.KeyDown, "end": tea.KeyEnd}
	for _, key := range keys {
		k := tea.KeyPressMsg{Code: named[key]}
		if k.Code == 0 {
			k = tea.KeyPressMsg{Code: rune(key[0]), Text: key}
		}
		send(m, k)
	}
}

// plain is the screen without colours, nor spaces at the ends of lines.
func plain(m *topModel) string {
	lines := strings.Split(ansi.Strip(m.View().Content), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

// requireScreen compares, and shows what there is so that it can be looked at.
func requireScreen(t *testing.T, want string, m *topModel) {
	t.Helper()
	got := plain(m)
	require.Equal(t, strings.Split(strings.Trim(want, "\n"), "\n"), strings.Split(strings.Trim(got, "\n"), "\n"), "\n%s", got)
}

// requireFits: whatever is shown is as large as the terminal at most.
func requireFits(t *testing.T, m *topModel) {
	t.Helper()
	lines := strings.Split(m.View().Content, "\n")
	require.Len(t, lines, m.height)
	for _, line := range lines {
		require.LessOrEqual(t, lipgloss.Width(line), m.width, line)
	}
}

func TestTopScreen(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 90, 24)
	requireFits(t, m)
	require.Contains(t, plain(m), "waiting for the broker's first answer")
	m = topScreen(t, 90, 24, 0, 100, 400, 1600, 800, 0)
	requireFits(t, m)
	requireScreen(t, `
 robust top  127.0.0.1:8686  1 broker · 2 topics · 1 group · answers in … ● live 12:00:05

 in            0 msg/s                                                                █
 peak      1,600 msg/s                                                                █
 in all  1,002,912 msg                                                                ██
 lag         1,450 msg                                                              ▂███▁

 TOPIC (2)         PARTS      MESSAGES     IN/s ▼                       IN/s, each second
 idle                  1             7          0                                   ▁▁▁▁▁
 orders                2     1,002,900          0                                   ▂▄█▅▁

 GROUP (1)         STATE        MEMBERS      OUT/s      LAG ▼            LAG, each second
 billing           Stable             2          0      1,450                      ▁▂▃▆██

 BROKER (1) ▲      ADDRESS         LEADS
 node-1            127.0.0.1:8686  3 partitions







 q quit  ? help  tab next table  s sort  r reverse  p pause  enter partitions
`, m)
}

func TestTopDetail(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 80, 14, 0, 1000)
	press(m, "enter")
	requireScreen(t, `
 robust top  127.0.0.1:8686  1 broker · 2 topics · 1 group · a… ● live 12:00:01
 in 1,000 msg/s · lag 500
 orders
 PARTITION        OLDEST        NEWEST      MESSAGES       IN/s  LEADER
         0             0         1,000         1,000      1,000  node-1
         1             0     1,000,000     1,000,000          0  node-1







 q quit  esc back
`, m)
	press(m, "esc", "tab", "enter")
	requireScreen(t, `
 robust top  127.0.0.1:8686  1 broker · 2 topics · 1 group · a… ● live 12:00:01
 in 1,000 msg/s · lag 500
 billing
 TOPIC             PARTITION     COMMITTED        NEWEST        LAG  MEMBER
 orders                    0           500         1,000        500  m-1
 orders                    1     1,000,000     1,000,000          0  m-2







 q quit  esc back
`, m)
	// What is shown may go.
	s := topSeen(9, 0)
	s.Groups = nil
	send(m, topLook{state: s, at: s.At})
	require.Contains(t, plain(m), " billing is gone")
	requireFits(t, m)
}

// TestTopAway: a broker that goes away and comes back. What was seen stays, with a gap in
// the curves, and rates are over the whole time then.
func TestTopAway(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 90, 24, 0, 100, 100)
	for i := range 3 {
		send(m, topLook{err: fmt.Errorf("%w: dial 127.0.0.1:8686: connection refused", robust.ErrNoBroker), at: topAt(3 + i)})
	}
	requireFits(t, m)
	require.Contains(t, plain(m), "○ away 12:00:05")
	require.Contains(t, plain(m), "\n no answer since 12:00:03 (2s): dial 127.0.0.1:8686: connection refused\n")
	require.Regexp(t, `orders +2 +1,000,200 +- +██\n`, plain(m))
	send(m, topLook{state: topSeen(6, 600), at: topAt(6)})
	require.Contains(t, plain(m), "● live")
	require.NotContains(t, plain(m), "no answer")
	require.Regexp(t, `orders +2 +1,000,600 +100 +██   █\n`, plain(m))

	// A topic that was made anew begins anew.
	s := topSeen(7, 5)
	s.Topics[1].ID = "t3"
	send(m, topLook{state: s, at: s.At})
	require.Regexp(t, `orders +2 +1,000,005 +-\n`, plain(m))
}

// TestTopPause: the picture stands still, and nothing is missing from it afterwards.
func TestTopPause(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 90, 24, 0, 100)
	press(m, "p")
	before := plain(m)
	require.Contains(t, before, "‖ paused 12:00:01")
	for i := range 3 {
		send(m, topLook{state: topSeen(2+i, int64(200+100*i)), at: topAt(2 + i)})
	}
	require.Equal(t, before, plain(m))
	press(m, "p")
	require.Contains(t, plain(m), "● live 12:00:04")
	require.Regexp(t, `orders +2 +1,000,400 +100 +████\n`, plain(m))
	// For as long as it may be.
	press(m, "p")
	for i := range 3 * seriesLength {
		send(m, topLook{state: topSeen(5+i, 500), at: topAt(5 + i)})
	}
	require.Len(t, m.held, seriesLength)
}

func TestTopKeys(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 100, 30, 0, 100)
	first := func() string {
		_, rest, found := strings.Cut(plain(m), " TOPIC (2)")
		require.True(t, found)
		return strings.Fields(strings.Split(rest, "\n")[1])[0]
	}
	require.Equal(t, "orders", first(), "by rate")
	press(m, "r")
	require.Equal(t, "idle", first())
	require.Contains(t, plain(m), "IN/s ▲")
	press(m, "s")
	require.Equal(t, "idle", first(), "by name")
	require.Contains(t, plain(m), "TOPIC (2) ▲")
	press(m, "r")
	require.Equal(t, "orders", first())
	press(m, "s")
	require.Contains(t, plain(m), "MESSAGES ▼")
	press(m, "s", "s")
	require.Contains(t, plain(m), "IN/s ▼")
	press(m, "?")
	require.Contains(t, plain(m), "stops the picture")
	requireFits(t, m)
	press(m, "esc")
	require.NotContains(t, plain(m), "stops the picture")
	for range 4 {
		press(m, "down", "end", "tab")
		requireFits(t, m)
	}
	for _, key := range []tea.KeyPressMsg{{Code: 'q', Text: "q"}, {Code: 'c', Mod: tea.ModCtrl}} {
		_, cmd := m.Update(key)
		require.IsType(t, tea.QuitMsg{}, cmd())
	}
}

// TestTopSizes: every terminal, also one in which there is no room for anything.
func TestTopSizes(t *testing.T) {
	t.Parallel()
	m := topScreen(t, 80, 24, 0, 100, 50)
	s := topSeen(3, 200)
	for i := range 50 {
		s.Topics = append(s.Topics, topTopic{Name: fmt.Sprintf("topic-with-a-name-of-some-\x1b[2J-%02d", i), Told: true})
		s.Groups = append(s.Groups, topGroup{ID: fmt.Sprintf("grüppe-\x1b[2J-%02d", i), Told: true})
	}
	send(m, topLook{state: s, at: s.At})
	for width := 1; width < 130; width += 5 {
		for _, height := range []int{1, 2, 3, 4, 6, 9, 12, 15, heightForAll, heightForGraph - 1, heightForGraph, 24, 59} {
			send(m, tea.WindowSizeMsg{Width: width, Height: height})
			requireFits(t, m)
		}
	}
	require.NotContains(t, m.View().Content, "\x1b[2J")
	send(m, tea.WindowSizeMsg{Width: 46, Height: 12})
	press(m, "end")
	requireScreen(t, `
 robust top  127.0.0.1:8686 … ● live 12:00:03
 in 50 msg/s · lag 100
 TOPIC (52)              MESSAGES     IN/s ▼
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -
 topic-with-a-name…             0          -

 q quit  ? help  tab next table  s sort
`, m)
}

// TestTopMissing: a broker that knows only the published requests.
func TestTopMissing(t *testing.T) {
	t.Parallel()
	m := newTopModel("queue:8686", time.Second, nil)
	s := &topState{
		At: topAt(0), Missing: []string{missingOffsets, missingLag},
		Topics: []topTopic{{Name: "orders", Partitions: []robust.PartitionMetadata{{ID: 0}}}},
		Groups: []topGroup{{ID: "billing", State: "Stable", Members: 1}},
	}
	send(m, topLook{state: s, at: s.At})
	requireFits(t, m)
	require.Contains(t, plain(m), "not told: messages and rates: the broker does not announce list_offsets; lag:")
	require.Regexp(t, `orders +1 +- +-\n`, plain(m))
	require.Regexp(t, `billing +Stable +1 +- +-\n`, plain(m))
}

func TestTopMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/metrics.md")
	require.NoError(t, err)
	for name := range new(topServer).series() {
		require.Contains(t, string(page), "`"+name+"`", "what docs/metrics.md does not have, no server shows")
	}
	answer := "# HELP robust_broker_open_connections open now\nrobust_broker_open_connections 7\nrobust_broker_stored_bytes_total 3e6\n" +
		"robust_broker_log_bytes 1.048576e+06\nrobust_broker_topic_log_bytes{topic=\"orders\"} 9\n"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, answer)
	}))
	defer server.Close()
	metrics, err := newMetricsPage(strings.TrimPrefix(server.URL, "http://"))
	require.NoError(t, err)
	got, err := metrics.read(t.Context())
	require.NoError(t, err)
	require.Equal(t, &topServer{Connections: 7, Stored: 3e6, LogBytes: 1 << 20}, got)
	metrics.url = server.URL + "/none"
	_, err = metrics.read(t.Context())
	require.ErrorContains(t, err, "404")
	answer = "go_goroutines 7\n"
	metrics.url = server.URL + "/metrics"
	_, err = metrics.read(t.Context())
	require.ErrorContains(t, err, "none of a broker's")

	m := topScreen(t, 140, 24)
	for i := range 2 {
		s := topSeen(i, 0)
		s.Server = &topServer{Connections: 7, Stored: float64(i << 21), LogBytes: 1 << 20}
		send(m, topLook{state: s, at: s.At})
	}
	require.Contains(t, plain(m), "7 connections · 1.0 MiB stored")
	require.Contains(t, plain(m), "2.0 MiB/s")
	requireFits(t, m)
}

func TestCurves(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	require.Equal(t, "  ▁▂▅ █", sparkline(series{0, 1, 50, nan, 100}, 7))
	require.Equal(t, "▁▁", sparkline(series{100, 0, 0}, 2))
	require.Empty(t, sparkline(series{1}, 0))
	require.Equal(t, []string{"   █", " ▄ █", "▁█ █"}, graph(series{0, 50, nan, 100}, 4, 3))
	var s series
	for i := range 2 * seriesLength {
		s.add(float64(i))
	}
	require.Len(t, s, seriesLength)
	require.InDelta(t, 2*seriesLength-1, s.last(), 0)
	for n, want := range map[float64]string{0: "0", 0.01: "0.1", 3.14: "3.1", 12.6: "13", 1234567: "1,234,567", nan: "-", 2.5e10: "25.0G"} {
		require.Equal(t, want, rateText(n))
	}
}

// TestTopOnce: where no terminal is, there is one table.
func TestTopOnce(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders", "--node-id", "node-1")
	succeed(t, s.addr, numbers(10), "produce", "orders")
	succeed(t, s.addr, "", "consume", "orders", "-g", "readers", "-n", "3")
	out := succeed(t, s.addr, "", "top", "-i", "100ms")
	require.Regexp(t, `^cluster \S+, 1 broker, answers in \S+ ms\n\n`+
		`TOPIC +PARTITIONS +MESSAGES +IN/s\norders +1 +10 +0\n\n`+
		`GROUP +STATE +MEMBERS +OUT/s +LAG\nreaders +Empty +0 +0 +7\n\n`+
		`BROKER +ADDRESS +LEADS\nnode-1 +127\.0\.0\.1:\d+ +1 partition\n$`, out)
	var v topView
	require.NoError(t, json.Unmarshal([]byte(succeed(t, s.addr, "", "top", "--once", "-o", "json", "-i", "100ms")), &v))
	require.EqualValues(t, 10, *v.Topics[0].Messages)
	require.EqualValues(t, 7, *v.Groups[0].Lag)
	require.Empty(t, v.Missing)
	require.Nil(t, v.Server)

	require.NoError(t, json.Unmarshal([]byte(succeed(t, plainBroker(t, s.addr), "", "top", "-o", "json", "-i", "100ms")), &v))
	require.Equal(t, []string{missingOffsets, missingLag}, v.Missing)
	require.Nil(t, v.Topics[0].Messages)
	require.Nil(t, v.Groups[0].Lag)
	require.Contains(t, succeed(t, plainBroker(t, s.addr), "", "top", "-i", "100ms"), "not told: lag: ")

	require.Equal(t, exitNoBroker, robustWith(t, absentAddr(t), "", "top").code)
	require.Equal(t, exitUsage, robustWith(t, s.addr, "", "top", "-i", "1ms").code)
}
