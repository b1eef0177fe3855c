package main

import (
	"fmt"
	"slices"
)

// renderDetail is what is known of the partitions of a topic or a group.
func (m *topModel) renderDetail(room int) []string {
	t := m.detailTable()
	if t == nil {
		return []string{m.styles.warn.Render(" " + printable(m.detail) + " is gone")}
	}
	height := max(1, room-2)
	m.below = max(0, min(m.below, len(t.rows)-height))
	t.rows = t.rows[m.below:min(len(t.rows), m.below+height)]
	title := " " + m.styles.number.Render(printable(m.detail))
	return append([]string{title}, t.render(&m.styles, m.width)...)
}

// detailTable is nil if what it is about is no more.
func (m *topModel) detailTable() *topTable {
	if m.pane == paneGroups {
		i := slices.IndexFunc(m.state.Groups, func(g topGroup) bool { return g.ID == m.detail })
		if i < 0 {
			return nil
		}
		return m.offsetTable(&m.state.Groups[i])
	}
	i := slices.IndexFunc(m.state.Topics, func(t topTopic) bool { return t.Name == m.detail })
	if i < 0 {
		return nil
	}
	return m.partitionTable(&m.state.Topics[i])
}

func (m *topModel) partitionTable(topic *topTopic) *topTable {
	t := &topTable{
		columns: []topColumn{
			{title: "PARTITION"},
			{title: "OLDEST", width: 12, order: 3, style: m.styles.dim},
			{title: "NEWEST", width: 12, order: 2, style: m.styles.dim},
			{title: titleMessages, width: 12},
			{title: titleRate, width: 9, style: m.styles.number},
			{title: "LEADER", left: true, least: nameLeast, order: 1, style: m.styles.dim},
		},
		selected: -1, empty: "no partitions",
	}
	for _, p := range topic.Partitions {
		row := []string{fmt.Sprint(p.ID), "-", "-", "-", "-", printable(p.Leader)}
		if part := m.topics[topic.Name].parts[p.ID]; topic.Told && part != nil {
			oldest, newest := topic.Oldest[p.ID], topic.Newest[p.ID]
			row[1], row[2], row[3] = countText(float64(oldest)), countText(float64(newest)), countText(float64(newest-oldest))
			row[4] = rateText(part.rate)
		}
		t.rows = append(t.rows, row)
	}
	return t
}

func (m *topModel) offsetTable(g *topGroup) *topTable {
	t := &topTable{
		columns: []topColumn{
			{title: titleTopic, left: true, width: 16, least: nameLeast},
			{title: "PARTITION"},
			{title: "COMMITTED", width: 12, order: 2, style: m.styles.dim},
			{title: "NEWEST", width: 12, order: 3, style: m.styles.dim},
			{title: titleLag, width: 9, style: m.styles.number},
			{title: "MEMBER", left: true, least: nameLeast, order: 1, style: m.styles.dim},
		},
		selected: -1, empty: "nothing is committed or assigned, or the broker does not tell",
	}
	for i := range g.Offsets {
		o := &g.Offsets[i]
		committed := "-"
		if o.Committed >= 0 {
			committed = countText(float64(o.Committed))
		}
		member := printable(o.MemberID)
		if member == "" {
			member = "nobody"
		}
		t.rows = append(t.rows, []string{
			printable(o.Topic), fmt.Sprint(o.Partition), committed, countText(float64(o.HighWaterMark)), countText(float64(o.Lag)), member,
		})
	}
	return t
}
