package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/aminofox/robust-go-sdk"
)

type groupCmd struct {
	List     groupListCmd     `cmd:"" aliases:"ls" help:"List the consumer groups with their lag."`
	Describe groupDescribeCmd `cmd:"" help:"Show members, committed offsets and lag."`
	Reset    groupResetCmd    `cmd:"" help:"Move what a group without members has committed for a topic."`
	Delete   groupDeleteCmd   `cmd:"" aliases:"rm" help:"Delete groups without members."`
}

type groupListCmd struct{}

type groupRow struct {
	ID      string `json:"id"`
	State   string `json:"state"`
	Members int    `json:"members"`
	Lag     *int64 `json:"lag"` // nil from brokers that do not tell
}

// Run lists groups.
func (c *groupListCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		groups, err := admin.ListGroups(ctx)
		if err != nil {
			return err
		}
		rows := make([]groupRow, 0, len(groups))
		for _, g := range groups {
			d, err := admin.DescribeGroup(ctx, g.ID)
			if errors.Is(err, robust.ErrGroupNotFound) {
				continue // It was deleted a moment ago.
			}
			if errors.Is(err, robust.ErrUnsupported) {
				rows = append(rows, groupRow{ID: g.ID, State: g.State, Members: len(g.Members)})
				continue
			}
			if err != nil {
				return err
			}
			lag := d.Lag()
			rows = append(rows, groupRow{ID: g.ID, State: d.State, Members: len(d.Members), Lag: &lag})
		}
		return a.show(rows, func(w io.Writer) {
			if len(rows) == 0 {
				fmt.Fprintln(w, "there are no consumer groups; robust consume TOPIC --group ID makes one")
				return
			}
			row(w, "GROUP", "STATE", "MEMBERS", "LAG")
			for _, r := range rows {
				row(w, r.ID, r.State, r.Members, orDash(r.Lag))
			}
		})
	})
}

type groupDescribeCmd struct {
	ID string `arg:"" predictor:"group" help:"The group."`
}

type groupView struct {
	ID         string       `json:"id"`
	State      string       `json:"state"`
	Generation int64        `json:"generation"`
	Assignor   string       `json:"assignor"`
	Lag        int64        `json:"lag"`
	Members    []memberView `json:"members"`
	Offsets    []offsetView `json:"offsets"`
}

type memberView struct {
	ID         string             `json:"id"`
	InstanceID string             `json:"instance_id,omitempty"`
	ClientID   string             `json:"client_id"`
	Host       string             `json:"host"`
	Topics     []string           `json:"topics"`
	Assignment map[string][]int32 `json:"assignment"`
	Pending    map[string][]int32 `json:"pending,omitempty"`
}

type offsetView struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Committed int64  `json:"committed"` // -1: nothing
	Oldest    int64  `json:"oldest"`
	Newest    int64  `json:"newest"`
	Lag       int64  `json:"lag"`
	Member    string `json:"member"`
}

func viewGroup(d *robust.GroupDescription) groupView {
	v := groupView{
		ID: d.ID, State: d.State, Generation: d.Generation, Assignor: d.Assignor, Lag: d.Lag(),
		Members: []memberView{}, Offsets: []offsetView{},
	}
	for _, m := range d.Members {
		v.Members = append(v.Members, memberView(m))
	}
	for _, o := range d.Offsets {
		v.Offsets = append(v.Offsets, offsetView{
			Topic: o.Topic, Partition: o.Partition, Committed: o.Committed,
			Oldest: o.LogStart, Newest: o.HighWaterMark, Lag: o.Lag, Member: o.MemberID,
		})
	}
	return v
}

// Run shows all about a group.
func (c *groupDescribeCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		d, err := admin.DescribeGroup(ctx, c.ID)
		if err != nil {
			return err
		}
		v := viewGroup(d)
		return a.show(v, func(w io.Writer) { tabulateGroup(w, &v) })
	})
}

func tabulateGroup(w io.Writer, v *groupView) {
	fmt.Fprintf(w, "group %s, %s, generation %d, %s, lag %d\n", v.ID, strings.ToLower(v.State), v.Generation, plural(len(v.Members), "member"), v.Lag)
	if len(v.Members) > 0 {
		fmt.Fprintln(w)
		row(w, "MEMBER", "CLIENT", "HOST", "READS", "WAITS FOR")
		for _, m := range v.Members {
			row(w, m.ID, m.ClientID, m.Host, assignmentText(m.Assignment), assignmentText(m.Pending))
		}
	}
	if len(v.Offsets) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "TOPIC", "PARTITION", "COMMITTED", "NEWEST", "LAG", "MEMBER")
	for _, o := range v.Offsets {
		committed := "-"
		if o.Committed >= 0 {
			committed = fmt.Sprint(o.Committed)
		}
		row(w, o.Topic, o.Partition, committed, o.Newest, o.Lag, o.Member)
	}
}

// assignmentText is such as orders:0,2 payments:1.
func assignmentText(assignment map[string][]int32) string {
	var parts []string
	for _, topic := range slices.Sorted(maps.Keys(assignment)) {
		var numbers []string
		for _, p := range assignment[topic] {
			numbers = append(numbers, fmt.Sprint(p))
		}
		parts = append(parts, topic+":"+strings.Join(numbers, ","))
	}
	return strings.Join(parts, " ")
}

type groupResetCmd struct {
	ID        string   `arg:"" predictor:"group" help:"The group."`
	Topic     string   `arg:"" predictor:"topic" help:"The topic."`
	To        position `required:"" placeholder:"WHERE" predictor:"position" help:"oldest, newest, an offset, a time (2006-01-02T15:04:05Z) or a span back from now (--to=-90m, --to=-7d)."`
	Partition []int32  `short:"p" placeholder:"N" help:"Partitions to move (default: all)."`
	DryRun    bool     `help:"Show from where to where, and change nothing."`
}

type resetRow struct {
	Partition int32 `json:"partition"`
	Before    int64 `json:"before"` // -1: nothing was committed
	After     int64 `json:"after"`
	Lag       int64 `json:"lag"`
}

// Run moves a group.
func (c *groupResetCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		before, err := admin.DescribeGroup(ctx, c.ID)
		if err != nil {
			return err
		}
		var after map[int32]int64
		if c.DryRun {
			after, err = c.target(ctx, admin)
		} else {
			after, err = admin.ResetOffsets(ctx, c.ID, c.Topic, c.To.resetTo(), c.Partition...)
		}
		if err != nil {
			return err
		}
		newest, err := admin.ListOffsets(ctx, c.Topic, farFuture())
		if err != nil {
			return err
		}
		if err := c.show(a, before, after, newest); err != nil {
			return err
		}
		if c.DryRun && len(before.Members) > 0 {
			return fmt.Errorf("group %s could not be moved: %w", c.ID, robust.ErrGroupNotEmpty)
		}
		return nil
	})
}

// target is where the broker would move the group, or its error.
func (c *groupResetCmd) target(ctx context.Context, admin *robust.AdminClient) (map[int32]int64, error) {
	oldest, newest, err := bounds(ctx, admin, c.Topic)
	if err != nil {
		return nil, err
	}
	to := newest
	switch {
	case !c.To.at.IsZero():
		to, err = admin.ListOffsets(ctx, c.Topic, c.To.at)
	case c.To.offset == robust.OffsetOldest:
		to = oldest
	}
	if err != nil {
		return nil, err
	}
	partitions := c.Partition
	if len(partitions) == 0 {
		partitions = slices.Sorted(maps.Keys(newest))
	}
	after := make(map[int32]int64, len(partitions))
	for _, p := range partitions {
		end, ok := newest[p]
		if !ok {
			return nil, fmt.Errorf("partition %d of topic %s: %w", p, c.Topic, robust.ErrPartitionNotFound)
		}
		after[p] = to[p]
		if at := c.To.offset; c.To.at.IsZero() && at >= 0 {
			if after[p] = at; at < oldest[p] || at > end {
				return nil, outOfRange(c.Topic, p, oldest[p], end, at)
			}
		}
	}
	return after, nil
}

func (c *groupResetCmd) show(a *app, before *robust.GroupDescription, after, newest map[int32]int64) error {
	rows := make([]resetRow, 0, len(after))
	var lag int64
	for _, p := range slices.Sorted(maps.Keys(after)) {
		r := resetRow{Partition: p, Before: -1, After: after[p], Lag: max(0, newest[p]-after[p])}
		for _, o := range before.Offsets {
			if o.Topic == c.Topic && o.Partition == p {
				r.Before = o.Committed
			}
		}
		rows = append(rows, r)
		lag += r.Lag
	}
	return a.show(rows, func(w io.Writer) {
		row(w, "PARTITION", "BEFORE", "AFTER", "LAG")
		for _, r := range rows {
			committed := "-"
			if r.Before >= 0 {
				committed = fmt.Sprint(r.Before)
			}
			row(w, r.Partition, committed, r.After, r.Lag)
		}
		would := "will"
		if c.DryRun {
			would = "would"
		}
		fmt.Fprintf(w, "group %s %s go on there in topic %s, %s behind\n", printable(c.ID), would, c.Topic, plural(lag, "message"))
		if c.DryRun {
			fmt.Fprintln(w, "nothing was changed")
		}
	})
}

type groupDeleteCmd struct {
	IDs    []string `arg:"" name:"id" predictor:"group" help:"The groups."`
	DryRun bool     `help:"Show what would go, and delete nothing."`
}

// Run deletes groups, all that it can.
func (c *groupDeleteCmd) Run(ctx context.Context, a *app) error {
	d := deletion{kind: "group", dry: c.DryRun, one: (*robust.AdminClient).DeleteGroup, look: lookAtGroup}
	return d.run(ctx, a, c.IDs)
}

// lookAtGroup says what goes with a group, or why it would not.
func lookAtGroup(ctx context.Context, admin *robust.AdminClient, id string) (string, error) {
	d, err := admin.DescribeGroup(ctx, id)
	if err != nil {
		return "", err
	}
	if len(d.Members) > 0 {
		return "", robust.ErrGroupNotEmpty
	}
	return plural(len(d.Offsets), "committed offset"), nil
}
