package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
)

type topCmd struct {
	Interval time.Duration `short:"i" default:"1s" help:"How often to look."`
	Once     bool          `help:"Print one table, after two looks, and end; so it is where the output is no terminal, or one that cannot be drawn on, and with -o json."`
	Metrics  string        `placeholder:"URL" help:"Where the server shows its metrics (robust serve --http), for bytes and connections, which brokers do not tell otherwise."`
}

// Validate is kong's.
func (c *topCmd) Validate() error {
	if c.Interval < 100*time.Millisecond {
		return errors.New("--interval is 100ms at least")
	}
	return nil
}

// Run shows how things stand until somebody has seen enough.
func (c *topCmd) Run(ctx context.Context, a *app) error {
	looker := &topLooker{}
	if c.Metrics != "" {
		page, err := newMetricsPage(c.Metrics)
		if err != nil {
			return usageErrorf("", "--metrics: %w", err)
		}
		looker.metrics = page
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	looker.admin = client.Admin()
	ask := func() (*topState, error) {
		// A broker that is away is to be told of before long.
		look, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		return looker.look(look)
	}
	m := newTopModel(strings.Join(a.brokers, ","), c.Interval, ask)
	if c.Once || a.json || !obeys(a.stdout) {
		return m.once(ctx, a)
	}
	program := tea.NewProgram(m, tea.WithOutput(a.stdout), tea.WithEnvironment(os.Environ()), tea.WithoutSignalHandler())
	stop := context.AfterFunc(ctx, program.Quit)
	defer stop()
	_, err = program.Run()
	return err
}

// topView is how things stand, as JSON.
type topView struct {
	Time    time.Time       `json:"time"`
	Cluster string          `json:"cluster"`
	Brokers []topBrokerView `json:"brokers"`
	Rate    *float64        `json:"messages_per_second"` // nil where it is not told
	Topics  []topTopicView  `json:"topics"`
	Groups  []topGroupView  `json:"groups"`
	Server  *topServerView  `json:"server,omitempty"`
	Missing []string        `json:"missing"` // what the broker does not tell
}

type topBrokerView struct {
	ID    string `json:"id"`
	Addr  string `json:"addr"`
	Leads int    `json:"leads"` // partitions
}

type topTopicView struct {
	Name       string   `json:"name"`
	Partitions int      `json:"partitions"`
	Messages   *int64   `json:"messages"` // nil where it is not told, like the next
	Rate       *float64 `json:"messages_per_second"`
}

type topGroupView struct {
	ID      string   `json:"id"`
	State   string   `json:"state"`
	Members int      `json:"members"`
	Lag     *int64   `json:"lag"` // nil where it is not told, like the next
	Rate    *float64 `json:"messages_per_second"`
}

type topServerView struct {
	Connections int64    `json:"connections"`
	LogBytes    int64    `json:"log_bytes"`
	BytesRate   *float64 `json:"stored_bytes_per_second"`
}

// once looks twice, since a rate is between two looks, and prints.
func (m *topModel) once(ctx context.Context, a *app) error {
	for i := range 2 {
		if i > 0 {
			select {
			case <-time.After(m.interval):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		state, err := m.ask()
		if err != nil {
			return err
		}
		m.take(topLook{state: state, at: state.At})
	}
	v := m.view()
	return a.show(v, func(w io.Writer) { v.write(w, m.state.Took) })
}

// view puts together what is shown.
func (m *topModel) view() *topView {
	s := m.state
	v := &topView{
		Time: s.At, Cluster: s.Cluster, Rate: known(m.written.rates.last()), Missing: append([]string{}, s.Missing...),
		Brokers: []topBrokerView{}, Topics: []topTopicView{}, Groups: []topGroupView{},
	}
	for _, n := range s.Nodes {
		v.Brokers = append(v.Brokers, topBrokerView{ID: n.ID, Addr: n.Addr, Leads: s.leads(n.ID)})
	}
	for _, t := range m.sortedTopics() {
		view := topTopicView{Name: t.Name, Partitions: len(t.Partitions)}
		if t.Told {
			kept := t.kept()
			view.Messages, view.Rate = &kept, known(m.topics[t.Name].written.rates.last())
		}
		v.Topics = append(v.Topics, view)
	}
	for _, g := range m.sortedGroups() {
		view := topGroupView{ID: g.ID, State: g.State, Members: g.Members}
		if g.Told {
			lag := g.Lag
			view.Lag, view.Rate = &lag, known(m.groups[g.ID].read.rates.last())
		}
		v.Groups = append(v.Groups, view)
	}
	if s.Server != nil {
		v.Server = &topServerView{
			Connections: int64(s.Server.Connections), LogBytes: int64(s.Server.LogBytes), BytesRate: known(m.stored.rates.last()),
		}
	}
	return v
}

// known is nil for NaN.
func known(n float64) *float64 {
	if math.IsNaN(n) {
		return nil
	}
	return &n
}

// write prints the tables for people.
func (v *topView) write(w io.Writer, took time.Duration) {
	rate := func(r *float64) string {
		if r == nil {
			return "-"
		}
		return strings.ReplaceAll(rateText(*r), ",", "") // A script may read it.
	}
	fmt.Fprintf(w, "cluster %s, %s, answers in %s\n", printable(v.Cluster), plural(len(v.Brokers), "broker"), tookText(took))
	if v.Server != nil {
		stored := math.NaN()
		if v.Server.BytesRate != nil {
			stored = *v.Server.BytesRate
		}
		fmt.Fprintf(w, "%s, %s stored, %s\n", plural(v.Server.Connections, "connection"), bytesText(v.Server.LogBytes), byteRateText(stored))
	}
	for _, what := range v.Missing {
		fmt.Fprintf(w, "not told: %s\n", printable(what))
	}
	fmt.Fprintln(w)
	row(w, titleTopic, "PARTITIONS", titleMessages, titleRate)
	for _, t := range v.Topics {
		row(w, t.Name, t.Partitions, orDash(t.Messages), rate(t.Rate))
	}
	fmt.Fprintln(w)
	row(w, titleGroup, titleState, titleMembers, titleRead, titleLag)
	for _, g := range v.Groups {
		row(w, g.ID, g.State, g.Members, rate(g.Rate), orDash(g.Lag))
	}
	fmt.Fprintln(w)
	row(w, titleBroker, "ADDRESS", "LEADS")
	for _, b := range v.Brokers {
		row(w, b.ID, b.Addr, plural(b.Leads, "partition"))
	}
}
