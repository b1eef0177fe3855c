package main

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/aminofox/robust-go-sdk"
)

// topPane is one of the tables.
type topPane int

const (
	paneTopics topPane = iota
	paneGroups
	paneBrokers
	panes
)

// paneView is how a table is looked at.
type paneView struct {
	cursor int // row
	first  int // that is shown
	sort   int // index into topSorts
	up     bool
}

// topModel is the live view: what was seen, and how it is looked at. It is changed by
// Update alone, and knows no clock but the times in messages.
type topModel struct {
	addr     string // whom it asks
	interval time.Duration
	ask      func() (*topState, error) // nil where a test gives the answers

	width, height int
	pane          topPane
	views         [panes]paneView
	detail        string // the topic or group whose partitions are shown
	below         int    // how far down in them
	help          bool
	paused        bool
	held          []topLook // what has come since

	now    time.Time
	state  *topState // nil until there is one
	failed error     // why the last look did not succeed
	since  time.Time // when the first of these was

	styles topStyles

	written counter
	stored  counter // bytes, if the server tells
	lag     series
	topics  map[string]*topicTrend
	groups  map[string]*groupTrend
}

type topicTrend struct {
	id      string
	written counter
	parts   map[int32]*partTrend
}

// partTrend has no past: there may be thousands of partitions.
type partTrend struct {
	seen int64
	rate float64
}

type groupTrend struct {
	read counter
	lag  series
}

// topLook is a look, as a message to the model.
type topLook struct {
	state *topState
	err   error
	at    time.Time
}

// topTick has the model look again.
type topTick struct{ at time.Time }

func newTopModel(addr string, interval time.Duration, ask func() (*topState, error)) *topModel {
	return &topModel{
		addr: addr, interval: interval, ask: ask, width: 80, height: 24, styles: newTopStyles(),
		topics: make(map[string]*topicTrend), groups: make(map[string]*groupTrend),
	}
}

// Init begins to look.
func (m *topModel) Init() tea.Cmd { return m.look }

func (m *topModel) look() tea.Msg { //nolint:ireturn // a tea.Cmd
	state, err := m.ask()
	return topLook{state: state, err: err, at: time.Now()}
}

// Update is bubbletea's.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) { //nolint:ireturn // what bubbletea asks for
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	case topTick:
		return m, m.look
	case topLook:
		m.held = append(m.held, msg)
		if m.paused {
			// What is held back is bounded by what is shown of it later.
			m.held = m.held[max(0, len(m.held)-seriesLength):]
		} else {
			m.release()
		}
		return m, tea.Tick(m.interval, func(at time.Time) tea.Msg { return topTick{at: at} })
	}
	m.settle()
	return m, nil
}

// release takes in the looks that are held.
func (m *topModel) release() {
	for _, l := range m.held {
		m.take(l)
	}
	m.held = nil
	m.settle()
}

// take takes in one look.
func (m *topModel) take(l topLook) {
	m.now = l.at
	if l.err != nil {
		if m.failed == nil {
			m.since = l.at
		}
		m.failed = l.err
		m.gap()
		return
	}
	s := l.state
	m.state, m.failed = s, nil
	var written, lag int64
	topics := make(map[string]*topicTrend, len(s.Topics))
	for i := range s.Topics {
		t := &s.Topics[i]
		trend := m.topics[t.Name]
		if trend == nil || trend.id != t.ID {
			trend = &topicTrend{id: t.ID, parts: make(map[int32]*partTrend)}
		}
		topics[t.Name] = trend
		if t.Told {
			trend.add(t, s.At)
			written += t.written()
		}
	}
	groups := make(map[string]*groupTrend, len(s.Groups))
	for i := range s.Groups {
		g := &s.Groups[i]
		trend := m.groups[g.ID]
		if trend == nil {
			trend = &groupTrend{}
		}
		groups[g.ID] = trend
		if g.Told {
			trend.read.add(float64(g.read()), s.At)
			trend.lag.add(float64(g.Lag))
			lag += g.Lag
		}
	}
	m.topics, m.groups = topics, groups
	m.lag.add(float64(lag))
	m.addWritten(written, s)
}

// addWritten notes the sum of all topics. That falls when one is deleted, which says nothing
// of a rate, so the rates are summed up instead.
func (m *topModel) addWritten(written int64, s *topState) {
	rate, known := 0.0, false
	for _, t := range m.topics {
		if n := len(t.written.rates); n > 0 && !math.IsNaN(t.written.rates[n-1]) {
			rate, known = rate+t.written.rates[n-1], true
		}
	}
	first := m.written.at.IsZero()
	m.written.seen, m.written.at = float64(written), s.At
	if !known && (first || len(s.Topics) > 0) {
		rate = math.NaN()
	}
	m.written.rates.add(rate)
	if s.Server != nil {
		m.stored.add(s.Server.Stored, s.At)
	} else if !m.stored.at.IsZero() {
		m.stored.rates.add(math.NaN())
	}
}

func (t *topicTrend) add(topic *topTopic, at time.Time) {
	took := at.Sub(t.written.at).Seconds()
	for p, offset := range topic.Newest {
		part := t.parts[p]
		if part == nil {
			part = &partTrend{seen: offset}
			t.parts[p] = part
		}
		if part.rate = 0; took > 0 {
			part.rate = float64(max(0, offset-part.seen)) / took
		}
		part.seen = offset
	}
	t.written.add(float64(topic.written()), at)
}

// gap shows in all curves that nothing was seen.
func (m *topModel) gap() {
	nan := math.NaN()
	m.written.rates.add(nan)
	m.stored.rates.add(nan)
	m.lag.add(nan)
	for _, t := range m.topics {
		t.written.rates.add(nan)
	}
	for _, g := range m.groups {
		g.read.rates.add(nan)
		g.lag.add(nan)
	}
}

// key does what a key stands for.
func (m *topModel) key(key string) tea.Cmd {
	v := &m.views[m.pane]
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "?", "h":
		m.help = !m.help
	case "esc", "backspace":
		m.help, m.detail = false, ""
	case "enter":
		m.open()
	case "tab", "shift+tab":
		step := topPane(1)
		if key == "shift+tab" {
			step = panes - 1
		}
		m.pane, m.detail = (m.pane+step)%panes, ""
	case "s":
		v.sort = (v.sort + 1) % len(topSorts(m.pane))
		v.up = false
	case "r":
		v.up = !v.up
	case "p", "space":
		if m.paused = !m.paused; !m.paused {
			m.release()
		}
	default:
		m.move(key)
	}
	m.settle()
	return nil
}

// move moves the cursor.
func (m *topModel) move(key string) {
	v := &m.views[m.pane]
	steps := map[string]int{
		"up": -1, "k": -1, "down": 1, "j": 1, "pgup": -10, "pgdown": 10, "home": -math.MaxInt32, "g": -math.MaxInt32,
		"end": math.MaxInt32, "G": math.MaxInt32,
	}
	if m.detail != "" {
		m.below += steps[key]
		return
	}
	v.cursor += steps[key]
}

// open shows the partitions of what the cursor is at.
func (m *topModel) open() {
	m.settle()
	v := m.views[m.pane]
	if v.cursor >= m.rows(m.pane) {
		return
	}
	m.below = 0
	switch m.pane {
	case paneTopics:
		m.detail = m.sortedTopics()[v.cursor].Name
	case paneGroups:
		m.detail = m.sortedGroups()[v.cursor].ID
	default:
	}
}

// settle keeps the cursors where rows are.
func (m *topModel) settle() {
	for p := range panes {
		v := &m.views[p]
		v.cursor = max(0, min(v.cursor, m.rows(p)-1))
	}
	m.below = max(0, m.below)
}

func (m *topModel) rows(p topPane) int {
	switch {
	case m.state == nil:
		return 0
	case p == paneTopics:
		return len(m.state.Topics)
	case p == paneGroups:
		return len(m.state.Groups)
	}
	return len(m.state.Nodes)
}

// topSort is an order of rows: 0 is the column by which a table is sorted, title what
// stands above it.
type topSort struct{ title string }

func topSorts(p topPane) []topSort {
	switch p {
	case paneTopics:
		return []topSort{{titleRate}, {titleTopic}, {titleMessages}, {titlePartitions}}
	case paneGroups:
		return []topSort{{titleLag}, {titleGroup}, {titleRead}, {titleMembers}}
	default:
		return []topSort{{titleBroker}}
	}
}

// sortedTopics are in the order that is asked for; names decide between equals.
func (m *topModel) sortedTopics() []*topTopic {
	rows := make([]*topTopic, len(m.state.Topics))
	for i := range m.state.Topics {
		rows[i] = &m.state.Topics[i]
	}
	v := m.views[paneTopics]
	sortRows(rows, v.up, func(a, b *topTopic) int {
		switch topSorts(paneTopics)[v.sort].title {
		case titleRate:
			return cmp.Compare(m.topics[b.Name].written.rates.last(), m.topics[a.Name].written.rates.last())
		case titleMessages:
			return cmp.Compare(b.kept(), a.kept())
		case titlePartitions:
			return cmp.Compare(len(b.Partitions), len(a.Partitions))
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return rows
}

func (m *topModel) sortedGroups() []*topGroup {
	rows := make([]*topGroup, len(m.state.Groups))
	for i := range m.state.Groups {
		rows[i] = &m.state.Groups[i]
	}
	v := m.views[paneGroups]
	sortRows(rows, v.up, func(a, b *topGroup) int {
		switch topSorts(paneGroups)[v.sort].title {
		case titleLag:
			return cmp.Compare(b.Lag, a.Lag)
		case titleRead:
			return cmp.Compare(m.groups[b.ID].read.rates.last(), m.groups[a.ID].read.rates.last())
		case titleMembers:
			return cmp.Compare(b.Members, a.Members)
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return rows
}

func (m *topModel) sortedNodes() []robust.NodeInfo {
	rows := slices.Clone(m.state.Nodes)
	sortRows(rows, m.views[paneBrokers].up, func(a, b robust.NodeInfo) int { return cmp.Compare(a.ID, b.ID) })
	return rows
}

// sortRows keeps the order of those that are equal.
func sortRows[R any](rows []R, up bool, compare func(a, b R) int) {
	slices.SortStableFunc(rows, func(a, b R) int {
		if up {
			a, b = b, a
		}
		return compare(a, b)
	})
}

// awayText says why a look has failed, shortly.
func awayText(err error) string {
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, robust.ErrNoBroker) {
		return "no answer in time"
	}
	return strings.TrimPrefix(errText(err), "no broker can be reached: ")
}
