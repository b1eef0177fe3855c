package main

import (
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// The titles of columns, which also name the order.
const (
	titleTopic      = "TOPIC"
	titlePartitions = "PARTS"
	titleMessages   = "MESSAGES"
	titleRate       = "IN/s"
	titleGroup      = "GROUP"
	titleState      = "STATE"
	titleMembers    = "MEMBERS"
	titleLag        = "LAG"
	titleRead       = "OUT/s"
	titleBroker     = "BROKER"
)

// topColumn is a column of a table.
type topColumn struct {
	title string
	left  bool
	width int // at least, so that columns stand still while numbers change
	least int // what it may be cut to where there is no room; 0: it is not cut
	order int // columns of the highest go first where there is none even so; 0 always stays
	style lipgloss.Style
}

// topTable is a table that fills the screen's width; the last thing in a row is a curve.
type topTable struct {
	columns    []topColumn
	rows       [][]string
	curves     []series // one a row; nil: there are none
	curveTitle string
	curve      lipgloss.Style
	count      int // rows in all
	selected   int // in rows; -1: none
	sorted     string
	up         bool
	empty      string // said instead of rows
}

// curveLeast and curveMost bound what is left for curves.
const (
	curveLeast = 10
	curveMost  = 120
	nameLeast  = 8 // of a name
)

// render returns header and rows.
func (t *topTable) render(s *topStyles, width int) []string {
	widths, shown := t.layout(width)
	used := 1
	for i, w := range widths {
		if shown[i] {
			used += w + 2
		}
	}
	curve := 0
	if t.curves != nil && width-used-1 >= curveLeast {
		curve = min(curveMost, width-used-1)
	}
	header := s.header
	if t.selected >= 0 {
		header = s.headerOn
	}
	lines := []string{" " + t.renderHeader(header, widths, shown, curve)}
	if len(t.rows) == 0 {
		return append(lines, s.dim.Render(" "+t.empty))
	}
	for y, row := range t.rows {
		var b strings.Builder
		for i, cell := range row {
			if !shown[i] {
				continue
			}
			text := fit(cell, widths[i], t.columns[i].left) + "  "
			if y != t.selected {
				text = t.columns[i].style.Render(text)
			}
			b.WriteString(text)
		}
		line := b.String()
		if y == t.selected {
			line = s.selected.Render(strings.TrimSuffix(line, "  ")) + "  "
		}
		if curve > 0 {
			line += t.curve.Render(sparkline(t.curves[y], curve))
		}
		lines = append(lines, " "+line)
	}
	return lines
}

// layout finds how wide columns are, and which are shown.
func (t *topTable) layout(width int) (widths []int, shown []bool) {
	widths, shown = make([]int, len(t.columns)), make([]bool, len(t.columns))
	used := 1
	for i, c := range t.columns {
		widths[i] = max(c.width, lipgloss.Width(t.title(i)))
		for _, row := range t.rows {
			widths[i] = max(widths[i], lipgloss.Width(row[i]))
		}
		shown[i] = true
		used += widths[i] + 2
	}
	full := widths[0]
	for i := len(t.columns) - 1; i >= 0; i-- {
		if c := t.columns[i]; c.least > 0 {
			cut := max(0, min(used-width, widths[i]-max(c.least, min(24, width/3))))
			widths[i] -= cut
			used -= cut
		}
	}
	for order := len(t.columns); order > 0 && used > width; order-- {
		for i, c := range t.columns {
			if c.order == order && used > width {
				shown[i] = false
				used -= widths[i] + 2
			}
		}
	}
	// What a column that has gone leaves over is the name's.
	widths[0] += max(0, min(width-used, full-widths[0]))
	return widths, shown
}

// title is a column's, with what tells the order.
func (t *topTable) title(i int) string {
	title := t.columns[i].title
	if i == 0 && t.count > 0 {
		title = fmt.Sprintf("%s (%d)", title, t.count)
	}
	if t.columns[i].title != t.sorted {
		return title
	}
	// Names rise, numbers fall, unless it is the other way round.
	if t.columns[i].left == t.up {
		return title + " ▼"
	}
	return title + " ▲"
}

func (t *topTable) renderHeader(style lipgloss.Style, widths []int, shown []bool, curve int) string {
	var b strings.Builder
	for i := range t.columns {
		if shown[i] {
			b.WriteString(fit(t.title(i), widths[i], t.columns[i].left) + "  ")
		}
	}
	if curve > 0 {
		b.WriteString(fit(t.curveTitle, curve, false))
	}
	return style.Render(b.String())
}

// fit makes a text so wide.
func fit(text string, width int, left bool) string {
	text = ansi.Truncate(text, width, "…")
	space := strings.Repeat(" ", max(0, width-lipgloss.Width(text)))
	if left {
		return text + space
	}
	return space + text
}

// tableOf is a pane's table, from one row to another.
func (m *topModel) tableOf(p topPane, from, to int) *topTable {
	switch p {
	case paneTopics:
		return m.topicTable(from, to)
	case paneGroups:
		return m.groupTable(from, to)
	default:
		return m.brokerTable(from, to)
	}
}

func (m *topModel) topicTable(from, to int) *topTable {
	t := &topTable{
		columns: []topColumn{
			{title: titleTopic, left: true, width: 16, least: nameLeast},
			{title: titlePartitions, order: 3, style: m.styles.dim},
			{title: titleMessages, width: 12, order: 2},
			{title: titleRate, width: 9, order: 1, style: m.styles.number},
		},
		curves: []series{}, curve: m.styles.spark, curveTitle: "IN/s, " + m.spanText(),
		count: len(m.state.Topics), selected: -1, empty: "no topics; robust topic create NAME makes one",
	}
	for _, topic := range m.sortedTopics()[from:to] {
		trend := m.topics[topic.Name]
		row := []string{printable(topic.Name), fmt.Sprint(len(topic.Partitions)), "-", "-"}
		if topic.Told {
			row[2], row[3] = countText(float64(topic.kept())), rateText(trend.written.rates.last())
		}
		t.rows = append(t.rows, row)
		t.curves = append(t.curves, trend.written.rates)
	}
	return t
}

func (m *topModel) groupTable(from, to int) *topTable {
	t := &topTable{
		columns: []topColumn{
			{title: titleGroup, left: true, width: 16, least: nameLeast},
			{title: titleState, left: true, width: 11, order: 4, style: m.styles.dim},
			{title: titleMembers, order: 3, style: m.styles.dim},
			{title: titleRead, width: 9, order: 2},
			{title: titleLag, width: 9, order: 1, style: m.styles.number},
		},
		curves: []series{}, curve: m.styles.lag, curveTitle: "LAG, " + m.spanText(),
		count: len(m.state.Groups), selected: -1, empty: "no consumer groups; robust consume TOPIC --group ID makes one",
	}
	for _, g := range m.sortedGroups()[from:to] {
		trend := m.groups[g.ID]
		row := []string{printable(g.ID), printable(g.State), fmt.Sprint(g.Members), "-", "-"}
		if g.Told {
			row[3], row[4] = rateText(trend.read.rates.last()), countText(float64(g.Lag))
		}
		t.rows = append(t.rows, row)
		t.curves = append(t.curves, trend.lag)
	}
	return t
}

func (m *topModel) brokerTable(from, to int) *topTable {
	t := &topTable{
		columns: []topColumn{
			{title: titleBroker, left: true, width: 16, least: nameLeast},
			{title: "ADDRESS", left: true, least: nameLeast, order: 1},
			{title: "LEADS", left: true, order: 2, style: m.styles.dim},
		},
		count: len(m.state.Nodes), selected: -1, empty: "the broker names none",
	}
	for _, n := range m.sortedNodes()[from:to] {
		t.rows = append(t.rows, []string{printable(n.ID), printable(n.Addr), plural(m.state.leads(n.ID), "partition")})
	}
	return t
}

// leads is how many partitions a broker leads.
func (s *topState) leads(id string) (n int) {
	for i := range s.Topics {
		for _, p := range s.Topics[i].Partitions {
			if p.Leader == id {
				n++
			}
		}
	}
	return n
}

// spanText is how much time a cell of a curve is.
func (m *topModel) spanText() string {
	if m.interval == time.Second {
		return "each second"
	}
	return fmt.Sprintf("each %v", m.interval)
}
