package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// topStyles are the colours. bubbletea takes them out again where there are to be none.
type topStyles struct {
	name, live, paused, away, dim, number, spark, lag, header, headerOn, selected, warn lipgloss.Style
	rows                                                                                []lipgloss.Style // of the graph, from the top
}

func newTopStyles() topStyles {
	color := func(name string) lipgloss.Style { return lipgloss.NewStyle().Foreground(lipgloss.Color(name)) }
	return topStyles{
		name:     lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Color("#0B1021")).Background(lipgloss.Color("#2DD4BF")),
		live:     color("2").Bold(true),
		paused:   color("3").Bold(true),
		away:     color("1").Bold(true),
		warn:     color("3"),
		dim:      lipgloss.NewStyle().Faint(true), // There is no grey that is readable everywhere.
		number:   lipgloss.NewStyle().Bold(true),
		spark:    color("6"),
		lag:      color("3"),
		header:   lipgloss.NewStyle().Faint(true),
		headerOn: color("6").Bold(true),
		selected: lipgloss.NewStyle().Reverse(true),
		rows:     []lipgloss.Style{color("#818CF8"), color("#60A5FA"), color("#38BDF8"), color("#2DD4BF")},
	}
}

// Below these a part of the screen is left out.
const (
	heightForGraph = 20
	heightForAll   = 14 // of the tables
	widthForGraph  = 60
	graphRows      = 4
	graphLabel     = 22
)

// View is bubbletea's.
func (m *topModel) View() tea.View {
	v := tea.NewView(m.render())
	v.AltScreen = true
	v.WindowTitle = "robust top " + printable(m.addr)
	return v
}

// render is the screen, as many lines as it has, none longer than it is wide.
func (m *topModel) render() string {
	lines := append(m.renderHead(), m.renderNotice())
	if m.state == nil {
		lines = append(lines, m.styles.dim.Render(" waiting for the broker's first answer"))
	} else {
		lines = append(lines, m.renderGraph()...)
		room := m.height - len(lines) - 1
		switch {
		case m.help:
			lines = append(lines, m.renderHelp()...)
		case m.detail != "":
			lines = append(lines, m.renderDetail(room)...)
		default:
			lines = append(lines, m.renderTables(room)...)
		}
	}
	if room := m.height - 1; len(lines) > room {
		lines = lines[:max(0, room)]
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, m.renderKeys())
	for i, line := range lines {
		lines[i] = ansi.Truncate(line, m.width, "…")
	}
	return strings.Join(lines, "\n")
}

// renderHead says who is asked and how that goes.
func (m *topModel) renderHead() []string {
	left := m.styles.name.Render(" robust top ") + " " + printable(m.addr)
	if s := m.state; s != nil {
		facts := []string{
			plural(len(s.Nodes), "broker"), plural(len(s.Topics), "topic"), plural(len(s.Groups), "group"),
			"answers in " + tookText(s.Took),
		}
		if s.Server != nil {
			facts = append(facts, plural(int64(s.Server.Connections), "connection"), bytesText(int64(s.Server.LogBytes))+" stored")
		}
		left += m.styles.dim.Render("  " + strings.Join(facts, " · "))
	}
	right := m.styles.live.Render("● live")
	switch {
	case m.paused:
		right = m.styles.paused.Render("‖ paused")
	case m.failed != nil:
		right = m.styles.away.Render("○ away")
	case m.state == nil:
		right = m.styles.dim.Render("○")
	}
	if !m.now.IsZero() {
		right += m.styles.dim.Render(m.now.Format(" 15:04:05 "))
	}
	room := max(0, m.width-lipgloss.Width(right)-1)
	left = ansi.Truncate(left, room, "…")
	return []string{left + strings.Repeat(" ", max(1, m.width-lipgloss.Width(left)-lipgloss.Width(right))) + right}
}

// renderNotice is a line for what is not as it should be, or else for the numbers that have no
// place beside a graph.
func (m *topModel) renderNotice() string {
	switch {
	case m.failed != nil:
		return m.styles.away.Render(fmt.Sprintf(" no answer since %s (%v): ", m.since.Format(time.TimeOnly),
			m.now.Sub(m.since).Round(time.Second))) + printable(awayText(m.failed))
	case m.state != nil && len(m.state.Missing) > 0:
		return m.styles.warn.Render(" not told: " + printable(strings.Join(m.state.Missing, "; ")))
	case m.state != nil && !m.hasGraph():
		return m.styles.dim.Render(" in ") + m.styles.number.Render(rateText(m.written.rates.last())) +
			m.styles.dim.Render(" msg/s · lag ") + m.styles.number.Render(countText(m.lag.last()))
	}
	return ""
}

func (m *topModel) hasGraph() bool { return m.height >= heightForGraph && m.width >= widthForGraph }

// renderGraph draws how much is written, all topics together.
func (m *topModel) renderGraph() []string {
	if !m.hasGraph() {
		return nil
	}
	width := m.width - graphLabel - 3
	label := func(name, value string) string {
		return " " + m.styles.dim.Render(fmt.Sprintf("%-8s", name)) + m.styles.number.Render(fmt.Sprintf("%*s", graphLabel-9, value))
	}
	labels := [graphRows]string{
		label("in", rateText(m.written.rates.last())+" msg/s"),
		label("peak", rateText(m.written.rates.peak(width))+" msg/s"),
		label("in all", countText(m.written.seen)+" msg"),
		label("lag", countText(m.lag.last())+" msg"),
	}
	if len(m.stored.rates) > 0 && m.state.Server != nil {
		labels[1] = label("", byteRateText(m.stored.rates.last()))
	}
	lines := graph(m.written.rates, width, graphRows)
	for i := range lines {
		lines[i] = labels[i] + "  " + m.styles.rows[i].Render(lines[i])
	}
	return append(lines, "")
}

// renderTables shares out the lines: whoever has the keys first.
func (m *topModel) renderTables(room int) []string {
	const frame = 2 // header, empty line
	if room < heightForAll-2 {
		return m.renderTable(m.pane, room-frame)
	}
	heights := [panes]int{}
	left := room
	for p := range panes {
		heights[p] = min(1, m.rows(p))
		left -= frame + max(1, heights[p])
	}
	for i := range panes {
		p := (m.pane + i) % panes
		more := max(0, min(left, m.rows(p)-heights[p]))
		heights[p] += more
		left -= more
	}
	var lines []string
	for p := range panes {
		lines = append(lines, m.renderTable(p, heights[p])...)
	}
	return lines
}

// renderTable is one table with so many rows, and an empty line.
func (m *topModel) renderTable(p topPane, height int) []string {
	v := &m.views[p]
	height = max(1, height)
	v.first = max(0, min(v.first, v.cursor, m.rows(p)-height))
	v.first = max(v.first, v.cursor-height+1)
	last := min(m.rows(p), v.first+height)
	t := m.tableOf(p, v.first, last)
	if p == m.pane {
		t.selected = v.cursor - v.first
	}
	t.sorted, t.up = topSorts(p)[v.sort].title, v.up
	return append(t.render(&m.styles, m.width), "")
}

// renderHelp says what keys do, and what is shown.
func (m *topModel) renderHelp() []string {
	lines := []string{m.styles.headerOn.Render("KEYS")}
	for _, k := range [][2]string{
		{"tab", "goes to the next table: topics, groups, brokers"},
		{"↑ ↓ pgup pgdn", "move in it; home and end, too"},
		{"enter", "shows the partitions of a topic or a group; esc goes back"},
		{"s  r", "sort by the next column; the other way round"},
		{"p, space", "stops the picture; what comes meanwhile is shown afterwards"},
		{"q, Ctrl-C", "end"},
	} {
		lines = append(lines, fmt.Sprintf(" %s %s", m.styles.number.Render(fmt.Sprintf("%-14s", k[0])), k[1]))
	}
	return append(lines, "",
		" Rates are messages a second since the look before, lags in messages. A gap in a curve",
		" is a time without answers. A broker tells no bytes and no connections: --metrics names",
		" the page of a server that does.")
}

func (m *topModel) renderKeys() string {
	keys := []string{"q quit", "? help", "tab next table", "s sort", "r reverse", "p pause", "enter partitions"}
	if m.detail != "" || m.help {
		keys = []string{"q quit", "esc back"}
	}
	line := ""
	for _, k := range keys {
		if lipgloss.Width(line)+len(k)+2 > m.width {
			break
		}
		key, what, _ := strings.Cut(k, " ")
		line += " " + m.styles.number.Render(key) + " " + m.styles.dim.Render(what) + " "
	}
	return line
}

// countText is a number of messages for people, - for one that is not known.
func countText(n float64) string {
	if math.IsNaN(n) {
		return "-"
	}
	if n >= 1e10 {
		return fmt.Sprintf("%.1fG", n/1e9)
	}
	digits := fmt.Sprintf("%.0f", n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// rateText is a rate for people; what is little is not nothing.
func rateText(n float64) string {
	if n > 0 && n < 10 {
		return fmt.Sprintf("%.1f", math.Max(n, 0.1))
	}
	return countText(math.Round(n))
}

func byteRateText(n float64) string {
	if math.IsNaN(n) {
		return "-"
	}
	return bytesText(int64(n)) + "/s"
}

// tookText is a short time for people.
func tookText(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
