package robust

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// groupStateVersion is the form in which a group is kept. Another is refused rather
// than guessed at.
const groupStateVersion = 1

// groupState is what is kept of a group, so that after a restart its members go on
// with what they read, and generation and epochs never go back.
type groupState struct {
	Version    int              `json:"version"`
	Generation int64            `json:"generation"`
	Epoch      int64            `json:"epoch"`
	Joins      int64            `json:"joins"`
	Members    []memberState    `json:"members"`
	Slots      []slotState      `json:"partitions"`
	Baseline   map[string]int32 `json:"baseline"`
	Fenced     map[string]int64 `json:"fenced,omitempty"` // Unix milliseconds by member
}

type memberState struct {
	ID          string   `json:"id"`
	Instance    string   `json:"instance,omitempty"`
	Client      string   `json:"client,omitempty"`
	Host        string   `json:"host,omitempty"`
	Topics      []string `json:"topics"`
	Assignor    string   `json:"assignor,omitempty"`
	SessionMs   int64    `json:"session_ms"`
	RebalanceMs int64    `json:"rebalance_ms"`
	Joined      int64    `json:"joined"`
	Seq         int64    `json:"seq,omitempty"`
	Incremental bool     `json:"incremental,omitempty"`
	Silent      bool     `json:"silent,omitempty"`
}

type slotState struct {
	Topic     string `json:"topic"`
	TopicID   string `json:"topic_id"`
	Partition int32  `json:"partition"`
	Target    string `json:"target,omitempty"`
	Owner     string `json:"owner,omitempty"`
	Epoch     int64  `json:"epoch"`
}

// capture returns what is to be kept.
func (g *group) capture() *groupState {
	state := &groupState{
		Version: groupStateVersion, Generation: g.generation, Epoch: g.epoch, Joins: g.joins,
		Baseline: maps.Clone(g.baseline), Fenced: make(map[string]int64),
	}
	for id, until := range g.fenced {
		state.Fenced[id] = until.UnixMilli()
	}
	for _, m := range g.members {
		state.Members = append(state.Members, memberState{
			ID: m.id, Instance: m.instance, Client: m.client, Host: m.host, Topics: m.subscription, Assignor: m.assignor,
			SessionMs: m.session.Milliseconds(), RebalanceMs: m.rebalance.Milliseconds(),
			Joined: m.joined, Seq: m.seq, Incremental: m.incremental, Silent: m.silent,
		})
	}
	for tp, s := range g.slots {
		state.Slots = append(state.Slots, slotState{tp.Topic, g.topics.get(tp.Topic).id, tp.Partition, s.target, s.owner, s.epoch})
	}
	return state
}

func (s *groupState) encode() ([]byte, error) { return json.Marshal(s) }

// restoreGroup makes a group of what was kept. Every member has its session timeout
// afresh, and is asked to sync.
func restoreGroup(now time.Time, kept StoredGroup, topics topicTable) (*group, error) {
	g := newGroup(kept.ID, topics)
	for _, o := range kept.Offsets {
		if o.Partition < topics.get(o.Topic).partitions {
			g.committed(o)
		}
	}
	if len(kept.State) == 0 {
		return g, nil
	}
	var state groupState
	if err := json.Unmarshal(kept.State, &state); err != nil {
		return nil, fmt.Errorf("%w: state of group %q: %w", ErrMalformed, shorten(kept.ID), err)
	}
	if state.Version != groupStateVersion {
		return nil, fmt.Errorf("%w: state of group %q has version %d, known is %d", ErrMalformed, shorten(kept.ID), state.Version, groupStateVersion)
	}
	g.generation, g.epoch, g.joins = state.Generation, state.Epoch, state.Joins
	maps.Copy(g.baseline, state.Baseline)
	for _, s := range state.Members {
		patterns, err := compilePatterns(s.Topics)
		if err != nil {
			return nil, err
		}
		m := &member{
			id: s.ID, instance: s.Instance, client: s.Client, host: s.Host,
			subscription: s.Topics, patterns: patterns, assignor: s.Assignor,
			session: time.Duration(s.SessionMs) * time.Millisecond, rebalance: time.Duration(s.RebalanceMs) * time.Millisecond,
			joined: s.Joined, seq: s.Seq, incremental: s.Incremental, silent: s.Silent, dirty: true,
		}
		g.members[m.id] = m
		if m.instance != "" {
			g.instances[m.instance] = m.id
		}
		g.touch(now, m)
		g.due(m.expires)
	}
	for id, until := range state.Fenced {
		g.fenced[id] = time.UnixMilli(until)
		g.due(g.fenced[id])
	}
	for _, s := range state.Slots {
		switch topic, there := g.topics.find(s.Topic); {
		case !there || topic.id != s.TopicID:
			delete(g.baseline, s.Topic) // Deleted, and perhaps made anew, while nobody looked.
		case s.Partition >= 0 && s.Partition < topic.partitions:
			g.slots[TopicPartition{s.Topic, s.Partition}] = &slot{target: s.Target, owner: s.Owner, epoch: s.Epoch}
		}
	}
	if len(g.members) > 0 {
		g.rebalance(now, false)
	}
	return g, nil
}

// describe returns everything about the group but the bounds of logs.
func (g *group) describe() *describeGroupResponse {
	resp := &describeGroupResponse{
		GroupID: g.id, State: g.state(), Generation: g.generation, Assignor: g.assignor,
		Members: []describedMember{}, Offsets: []describedOffset{},
	}
	reads := make(map[string]map[string][]int32)
	waits := make(map[string]map[string][]int32)
	add := func(to map[string]map[string][]int32, id string, tp TopicPartition) {
		if id == "" {
			return
		}
		if to[id] == nil {
			to[id] = make(map[string][]int32)
		}
		to[id][tp.Topic] = append(to[id][tp.Topic], tp.Partition)
	}
	all := make(map[TopicPartition]bool)
	for tp := range g.slots {
		all[tp] = true
	}
	for tp := range g.offsets {
		all[tp] = true
	}
	for _, tp := range slices.SortedFunc(maps.Keys(all), compareTopicPartition) {
		o := describedOffset{Topic: tp.Topic, Partition: tp.Partition, Offset: offsetNone, LogStartOffset: offsetNone, HighWaterMark: offsetNone}
		if s := g.slots[tp]; s != nil {
			o.MemberID, o.Epoch = s.owner, s.epoch
			add(reads, s.owner, tp)
			if s.target != s.owner {
				add(waits, s.target, tp)
			}
		}
		if c, ok := g.offsets[tp]; ok {
			o.Offset, o.Metadata = c.Offset, c.Metadata
		}
		resp.Offsets = append(resp.Offsets, o)
	}
	for _, id := range slices.Sorted(maps.Keys(g.members)) {
		m := g.members[id]
		d := describedMember{
			MemberID: id, InstanceID: m.instance, ClientID: m.client, Host: m.host,
			Topics: append([]string{}, m.subscription...), Assignment: reads[id], Pending: waits[id],
		}
		if d.Assignment == nil {
			d.Assignment = map[string][]int32{}
		}
		resp.Members = append(resp.Members, d)
	}
	return resp
}
