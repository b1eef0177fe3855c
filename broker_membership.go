package robust

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"time"
)

// joinEvent is a request to join.
type joinEvent struct {
	member, instance, client, host string

	topics      []string
	patterns    []*regexp.Regexp // of those of topics that begin with ^
	assignor    string
	session     time.Duration
	rebalance   time.Duration
	incremental bool
	silent      bool
}

// member returns a member, or why there is none.
func (g *group) member(id string) (*member, error) {
	if m := g.members[id]; m != nil {
		return m, nil
	}
	if _, ok := g.fenced[id]; ok {
		return nil, fmt.Errorf("%w: another member of this instance ID has joined", ErrFenced)
	}
	return nil, fmt.Errorf("%w: %s has no member %q", ErrUnknownMember, shorten(g.id), shorten(id))
}

// join adds a member, or says anew what it wants. A member of an instance ID that
// another has takes that one's place, and nothing moves.
func (g *group) join(now time.Time, e joinEvent) (*member, error) {
	if _, ok := g.fenced[e.member]; ok {
		return nil, fmt.Errorf("%w: another member of instance %q has joined", ErrFenced, shorten(e.instance))
	}
	before := g.members[g.instances[e.instance]]
	if e.instance == "" || before != nil && before.id == e.member {
		before = nil
	}
	m := g.members[e.member]
	if m == nil && before == nil && len(g.members) >= maxGroupMembers {
		return nil, fmt.Errorf("%w: group %s has %d members", ErrOverloaded, shorten(g.id), maxGroupMembers)
	}
	fresh := m == nil
	if fresh {
		g.joins++
		m = &member{id: e.member, joined: g.joins}
		if len(g.members) == 0 {
			g.gathering = now.Add(gatherTime)
			g.due(g.gathering)
		}
		g.members[e.member] = m
	}
	same := m.describe(e)
	if before != nil {
		same = g.replace(now, before, m) && fresh
	}
	if m.instance != e.instance {
		same = same && fresh // Else its rank has changed.
		delete(g.instances, m.instance)
		m.instance = e.instance
	}
	if e.instance != "" {
		g.instances[e.instance] = m.id
	}
	g.touch(now, m)
	g.due(m.expires)
	g.wake(m.id)
	g.changed = true
	// A member that takes what it gets first is not told to wait.
	hurry := !e.incremental && !g.gathering.IsZero()
	if hurry {
		g.gathering = time.Time{}
	}
	switch {
	case !same, hurry, fresh && before == nil, before != nil && g.computing != nil:
		g.rebalance(now, true)
	case before != nil:
		g.generation++
	}
	return m, nil
}

// describe takes over what a join says of a member; same tells that it says of topics
// and assignor what was known.
func (m *member) describe(e joinEvent) (same bool) {
	same = slices.Equal(m.subscription, e.topics) && m.assignor == e.assignor
	m.client, m.host = e.client, e.host
	m.subscription, m.patterns, m.assignor = e.topics, e.patterns, e.assignor
	m.session, m.rebalance = e.session, e.rebalance
	m.incremental, m.silent = e.incremental, e.silent
	return same
}

// replace puts m in the place of a member of the same instance, which is told that it
// is fenced; same tells that they want the same.
func (g *group) replace(now time.Time, before, m *member) (same bool) {
	for _, s := range g.slots {
		if s.target == before.id {
			s.target = m.id
		}
		if s.owner == before.id {
			g.release(s)
		}
	}
	m.joined, m.topics = before.joined, before.topics
	delete(g.members, before.id)
	if len(g.fenced) >= maxFenced {
		oldest := before.id
		for id, until := range g.fenced {
			if o, ok := g.fenced[oldest]; !ok || until.Before(o) {
				oldest = id
			}
		}
		delete(g.fenced, oldest)
	}
	g.fenced[before.id] = now.Add(max(fencedTime, before.session))
	g.due(g.fenced[before.id])
	g.wake(before.id)
	return slices.Equal(m.subscription, before.subscription) && m.assignor == before.assignor
}

// touch notes a sign of life.
func (g *group) touch(now time.Time, m *member) {
	m.expires = now.Add(m.session)
	if m.silent {
		m.expires = now.Add(silentTimeout)
	}
}

// spare gives members that would be expired their time once more, and those that have
// to give something up.
func (g *group) spare(now time.Time) {
	for _, m := range g.members {
		if !now.Before(m.expires) {
			g.touch(now, m)
		}
	}
	for _, s := range g.slots {
		if m := g.members[s.owner]; m != nil && !s.revokeBy.IsZero() {
			s.revokeBy = now.Add(m.rebalance)
		}
	}
}

// leave takes a member out.
func (g *group) leave(now time.Time, id string) error {
	m, err := g.member(id)
	if err != nil {
		return err
	}
	g.remove(m)
	g.rebalance(now, false)
	return nil
}

// remove takes a member out and frees what it has; rebalance must follow.
func (g *group) remove(m *member) {
	delete(g.members, m.id)
	if g.instances[m.instance] == m.id {
		delete(g.instances, m.instance)
	}
	g.releaseAll(m)
	g.changed = true
	g.wake(m.id) // Its held heartbeats are to be told.
}

// syncEvent says what a member still reads; seq 0 says nothing of it.
type syncEvent struct {
	member string
	seq    int64
	owned  map[TopicPartition]bool
	target *computedTarget
}

// sync takes from a member what it has given up, gives it what is free, and returns
// what it may read. A sync that is overtaken by a later one changes nothing.
func (g *group) sync(now time.Time, e syncEvent) (*member, error) {
	m, err := g.member(e.member)
	if err != nil {
		return nil, err
	}
	g.touch(now, m)
	if e.seq > 0 && e.seq <= m.seq {
		return m, nil
	}
	m.seq = e.seq
	if e.seq > 0 && !m.incremental {
		m.incremental, g.changed = true, true
	}
	if e.target != nil {
		g.computed(now, m, e.target)
	}
	for tp, s := range g.slots {
		given := s.target != m.id
		if e.seq > 0 {
			given = !e.owned[tp]
		}
		if s.owner == m.id && given {
			g.release(s)
		}
	}
	var free []TopicPartition
	for tp, s := range g.slots {
		if s.target == m.id && s.owner == "" {
			free = append(free, tp)
		}
	}
	slices.SortFunc(free, compareTopicPartition)
	for _, tp := range free {
		g.grant(g.slots[tp], m)
	}
	m.dirty = false
	return m, nil
}

// syncAnswer is what a member is told to read.
func (g *group) syncAnswer(m *member) *syncGroupResponse {
	resp := &syncGroupResponse{
		Assignment: make(map[string][]int32), Generation: g.generation,
		Pending: !g.gathering.IsZero() || g.computing != nil,
	}
	for tp, s := range g.slots {
		if s.target != m.id {
			continue
		}
		if s.owner != m.id && !m.silent {
			resp.Pending = true
			continue
		}
		grant := partitionGrant{
			Topic: tp.Topic, Partition: tp.Partition, Epoch: s.epoch, Offset: offsetNone,
			Appeared: tp.Partition >= g.baseline[tp.Topic], TopicID: g.topics.get(tp.Topic).id,
		}
		resp.Grants = append(resp.Grants, grant)
	}
	slices.SortFunc(resp.Grants, func(a, b partitionGrant) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	g.tellOffsets(resp)
	for _, grant := range resp.Grants {
		resp.Assignment[grant.Topic] = append(resp.Assignment[grant.Topic], grant.Partition)
	}
	for _, t := range m.subscription {
		if !isPattern(t) && !g.topics.has(t) {
			resp.Missing = append(resp.Missing, t)
		}
	}
	if c := g.computing; c != nil && c.by == m.id {
		resp.Compute = g.computeRequest()
	}
	m.expects = resp.Pending
	return resp
}

// tellOffsets says of every grant how far the group has come, and with which metadata
// as long as that is not much: FetchOffset has the rest.
func (g *group) tellOffsets(resp *syncGroupResponse) {
	room := 64 << 10
	for i := range resp.Grants {
		grant := &resp.Grants[i]
		if o, ok := g.offsets[TopicPartition{grant.Topic, grant.Partition}]; ok {
			grant.Offset = o.Offset
			if room -= len(o.Metadata); room >= 0 {
				grant.Metadata = o.Metadata
			}
		}
	}
}

// heartbeat notes that a member is alive, and tells whether it has to sync. A member
// that knows only the documented requests syncs for every new generation.
func (g *group) heartbeat(now time.Time, id string, generation int64) (*member, bool, error) {
	m, err := g.member(id)
	if err != nil {
		return nil, false, err
	}
	if m.silent {
		m.silent, g.changed = false, true
	}
	g.touch(now, m)
	g.due(m.expires)
	return m, m.dirty || !m.incremental && generation != g.generation, nil
}

// hold keeps a member from expiring while its heartbeat is held; unhold ends that.
func (g *group) hold(m *member) { m.held++ }

func (g *group) unhold(m *member) {
	m.held--
	g.due(m.expires)
}

// seen notes that a partition was fetched by somebody who sends no heartbeats.
func (g *group) seen(now time.Time, tp TopicPartition) {
	if s := g.slots[tp]; s != nil {
		if m := g.members[s.owner]; m != nil && m.silent {
			g.touch(now, m)
		}
	}
}

// mayCommit tells whether a member's commit is accepted, and worth keeping: what an
// owner commits never goes back, except to below end, the high-water mark, from above
// it: nothing is there that could have been handled.
func (g *group) mayCommit(id string, epoch int64, o StoredOffset, end int64) (keep, owned bool) {
	tp := TopicPartition{o.Topic, o.Partition}
	s := g.slots[tp]
	if s == nil || s.owner != id || s.epoch != epoch {
		return false, false
	}
	before, ok := g.offsets[tp]
	return !ok || before.Offset > end || o.Offset > before.Offset || o.Offset == before.Offset && o.Metadata != before.Metadata, true
}

// committed takes over what was kept, unless the topic is gone or another by now.
func (g *group) committed(o StoredOffset) {
	if topic, there := g.topics.find(o.Topic); there && topic.id == o.TopicID {
		g.offsets[TopicPartition{o.Topic, o.Partition}] = o
	}
}

// topicsChanged takes over the broker's topics as they are now.
func (g *group) topicsChanged(now time.Time, topics topicTable) {
	g.topicsDiffer(now, topics, g.topics.differences(topics))
}

// topicsDiffer is topicsChanged for who knows which topics may be others than before.
func (g *group) topicsDiffer(now time.Time, topics topicTable, differ []string) {
	old := g.topics
	g.topics = topics
	touched := false
	appeared := make(map[string]bool) // topics that were not there, or are not any more
	for _, name := range differ {
		was, is := old.get(name), topics.get(name)
		if is == was {
			continue
		}
		touched = g.subscribed(name) || touched
		if was.id != "" && is.id != was.id {
			touched = g.dropTopic(name, was.partitions) || touched
		}
		for _, p := range g.patterns {
			p.look(name, topics.has(name))
		}
		if (was.id == "") != (is.id == "") && g.wanted[name] {
			appeared[name] = true
		}
	}
	if len(appeared) > 0 {
		for _, m := range g.members {
			if slices.ContainsFunc(m.subscription, func(t string) bool { return appeared[t] }) {
				g.wake(m.id) // It was told what is missing.
			}
		}
	}
	if touched {
		g.rebalance(now, false)
	}
}

// concerned tells whether it is anything to the group that these topics change. If it is
// not, topicsDiffer would do no more than take over the table.
func (g *group) concerned(topics topicTable, differ []string) bool {
	return slices.ContainsFunc(differ, func(name string) bool {
		was, is := g.topics.get(name), topics.get(name)
		if is == was {
			return false
		}
		if was.id != "" && is.id != was.id {
			if _, known := g.baseline[name]; known || g.has(name, was.partitions) {
				return true
			}
		}
		return g.subscribed(name)
	})
}

// has tells whether there is anything of a topic of so many partitions.
func (g *group) has(topic string, partitions int32) bool {
	for range partitionsOf(g.slots, topic, partitions) {
		return true
	}
	for range partitionsOf(g.offsets, topic, partitions) {
		return true
	}
	return false
}

// dropTopic forgets a topic that was deleted, and perhaps made anew: nobody can read it
// any more, nor give it up. It tells whether anybody was to read it.
func (g *group) dropTopic(name string, partitions int32) (dropped bool) {
	delete(g.baseline, name)
	for tp, s := range partitionsOf(g.slots, name, partitions) {
		if s.owner != "" {
			g.wake(s.owner)
		}
		delete(g.slots, tp)
		dropped = true
	}
	for tp := range partitionsOf(g.offsets, name, partitions) {
		delete(g.offsets, tp)
	}
	return dropped
}

// partitionsOf is what m has of a topic of so many partitions. It goes over the partitions
// or over m, whichever are fewer; m may lose what is at hand.
func partitionsOf[V any](m map[TopicPartition]V, topic string, partitions int32) iter.Seq2[TopicPartition, V] {
	return func(yield func(TopicPartition, V) bool) {
		if len(m) < int(partitions) {
			for tp, v := range m {
				if tp.Topic == topic && !yield(tp, v) {
					return
				}
			}
			return
		}
		for p := range partitions {
			tp := TopicPartition{topic, p}
			if v, there := m[tp]; there && !yield(tp, v) {
				return
			}
		}
	}
}

// tick does what is due.
func (g *group) tick(now time.Time) {
	if g.next.IsZero() || now.Before(g.next) {
		return
	}
	if !g.gathering.IsZero() && !now.Before(g.gathering) {
		g.gathering = time.Time{}
		g.assign(now)
	}
	expired := false
	for _, m := range g.members {
		if m.held == 0 && !now.Before(m.expires) {
			g.notes = append(g.notes, fmt.Sprintf("member %s has given no sign of life in time and is out", shorten(m.id)))
			g.remove(m)
			expired = true
		}
	}
	if expired {
		g.rebalance(now, false)
	}
	for tp, s := range g.slots {
		if !s.revokeBy.IsZero() && !now.Before(s.revokeBy) {
			g.notes = append(g.notes, fmt.Sprintf("member %s has not given up %s/%d in time, it is taken", shorten(s.owner), tp.Topic, tp.Partition))
			g.wake(s.owner)
			g.release(s)
		}
	}
	if c := g.computing; c != nil && !now.Before(c.deadline) {
		g.fallBack(now, fmt.Sprintf("no answer within %v", computeTimeout))
	}
	maps.DeleteFunc(g.fenced, func(_ string, until time.Time) bool { return !now.Before(until) })
	g.reschedule()
}

// reschedule finds out when tick is needed next.
func (g *group) reschedule() {
	g.next = time.Time{}
	if !g.gathering.IsZero() {
		g.due(g.gathering)
	}
	for _, m := range g.members {
		if m.held == 0 {
			g.due(m.expires)
		}
	}
	for _, s := range g.slots {
		if !s.revokeBy.IsZero() {
			g.due(s.revokeBy)
		}
	}
	if g.computing != nil {
		g.due(g.computing.deadline)
	}
	for _, until := range g.fenced {
		g.due(until)
	}
}
