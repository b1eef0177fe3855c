package robust

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxGroupMembers  = 1000
	defaultSession   = 30 * time.Second
	defaultRebalance = 30 * time.Second
	// gatherTime is how long an empty group waits for others to join with the
	// first, so that a start of many is one assignment and not many.
	gatherTime = 100 * time.Millisecond
	// silentTimeout is how long a member of v0, which has no heartbeats, stays
	// without a fetch or a commit.
	silentTimeout = time.Minute
	// fencedTime is how long a member whose place another has taken is told so, and
	// maxFenced how many such are remembered.
	fencedTime = 5 * time.Minute
	maxFenced  = 1000
	// computeTimeout is how long a member's own assignor has.
	computeTimeout = 5 * time.Second
)

// What a group is said to be doing.
const (
	groupEmpty       = "Empty"
	groupStable      = "Stable"
	groupRebalancing = "Rebalancing"
)

// group is the state of one consumer group and its rules, and nothing else: no clock,
// no lock, no network, no storage. Events are its methods, each told the time; whom
// they concern stands in woken, that there is something to keep in changed.
//
// Every partition has a target, who is to read it, and an owner, who may be reading
// it. An assignment changes targets at once, an owner changes only when the one
// before has given the partition up, has left, or has had its time.
type group struct {
	id         string
	topics     topicTable // of the broker
	generation int64      // counts assignments
	epoch      int64      // of the latest grant
	joins      int64      // members that ever joined
	members    map[string]*member
	instances  map[string]string    // member by instance ID
	fenced     map[string]time.Time // members whose place another has taken, and until when they are told so
	slots      map[TopicPartition]*slot
	baseline   map[string]int32 // partitions that a topic had when it was first subscribed to
	offsets    map[TopicPartition]StoredOffset
	gathering  time.Time                // when the first assignment of an empty group is made; zero: none is due
	computing  *computation             // nil unless a member's assignor is at work
	wanted     map[string]bool          // topics that members subscribe to, there or not
	patterns   map[string]*groupPattern // that members subscribe to
	computeBy  time.Time                // when the group waits for that no longer; zero: it does not
	assignor   string                   // in effect

	next time.Time // when tick has something to do; zero: never

	woken   map[string]struct{} // members that have something to do, for the caller to take
	changed bool                // something to be kept has changed; likewise
	notes   []string            // things to be logged; likewise
}

// slot is one partition of a topic that the group subscribes to.
type slot struct {
	target   string // member that is to read it; "": none
	owner    string // member that may be reading it; "": none
	epoch    int64  // of the owner's grant
	revokeBy time.Time
}

// groupPattern is a pattern and the topics that match it.
type groupPattern struct {
	*regexp.Regexp
	topics map[string]bool
}

// member is one consumer.
type member struct {
	id, instance, client, host string

	subscription []string // as given
	patterns     []*regexp.Regexp
	topics       []string // what subscription comes to
	assignor     string
	session      time.Duration
	rebalance    time.Duration
	incremental  bool // it says what it owns; else it takes each answer for that
	silent       bool // it sends no heartbeats, and gives nothing up

	joined  int64 // its place in the order of joining
	seq     int64 // of its last sync
	expires time.Time
	held    int  // heartbeats that the broker holds
	dirty   bool // it has to sync
	expects bool // it was told that more will come
}

// computation is a member's assignor at work.
type computation struct {
	generation int64
	by         string
	deadline   time.Time
}

func newGroup(id string, topics topicTable) *group {
	return &group{
		id: id, topics: topics,
		members:   make(map[string]*member),
		instances: make(map[string]string),
		fenced:    make(map[string]time.Time),
		slots:     make(map[TopicPartition]*slot),
		baseline:  make(map[string]int32),
		offsets:   make(map[TopicPartition]StoredOffset),
		wanted:    make(map[string]bool),
		patterns:  make(map[string]*groupPattern),
		woken:     make(map[string]struct{}),
	}
}

// state is what the group is doing.
func (g *group) state() string {
	if len(g.members) == 0 {
		return groupEmpty
	}
	if !g.gathering.IsZero() || g.computing != nil {
		return groupRebalancing
	}
	for _, s := range g.slots {
		if s.owner != s.target {
			return groupRebalancing
		}
	}
	return groupStable
}

// due notes that tick has something to do at t.
func (g *group) due(t time.Time) {
	if g.next.IsZero() || t.Before(g.next) {
		g.next = t
	}
}

// wake says that a member has to sync.
func (g *group) wake(id string) {
	if m := g.members[id]; m != nil {
		m.dirty = true
	}
	g.woken[id] = struct{}{}
}

func (g *group) releaseAll(m *member) {
	for _, s := range g.slots {
		if s.owner == m.id {
			g.release(s)
		}
	}
}

// release frees a partition and offers it to its target.
func (g *group) release(s *slot) {
	s.owner, s.revokeBy = "", time.Time{}
	g.changed = true
	g.offer(s)
}

// offer tells the target of a free partition that it can have it; a member that would
// not ask again just gets it.
func (g *group) offer(s *slot) {
	m := g.members[s.target]
	if s.owner != "" || m == nil {
		return
	}
	if m.silent {
		g.grant(s, m)
		return
	}
	g.wake(m.id)
}

func (g *group) grant(s *slot, m *member) {
	g.epoch++
	s.owner, s.epoch, s.revokeBy = m.id, g.epoch, time.Time{}
	g.changed = true
}

// subscribed tells whether any member wants a topic, which may be a new one.
func (g *group) subscribed(topic string) bool {
	if g.wanted[topic] {
		return true
	}
	for _, p := range g.patterns {
		if p.MatchString(topic) {
			return true
		}
	}
	return false
}

// resolvePatterns finds out what the members' patterns come to. Each is held to all topics
// once, then to those that appear: names are many, and patterns may be slow.
func (g *group) resolvePatterns() {
	used := make(map[string]bool)
	for _, m := range g.members {
		for _, re := range m.patterns {
			used[re.String()] = true
			if g.patterns[re.String()] == nil {
				p := &groupPattern{re, make(map[string]bool)}
				g.patterns[re.String()] = p
				for topic := range g.topics.all() {
					p.look(topic, true)
				}
			}
		}
	}
	maps.DeleteFunc(g.patterns, func(pattern string, _ *groupPattern) bool { return !used[pattern] })
}

// look finds out whether a topic matches, unless it is gone.
func (p *groupPattern) look(topic string, there bool) {
	if there && p.MatchString(topic) {
		p.topics[topic] = true
	} else {
		delete(p.topics, topic)
	}
}

// rebalance begins a generation: it finds out which partitions there are, and assigns
// them unless an empty group is still gathering. joined tells that a member's wishes
// are the cause; partitions that appear otherwise have come up under its eyes.
func (g *group) rebalance(now time.Time, joined bool) {
	g.generation++
	g.changed = true
	g.computing = nil
	g.resolve(joined)
	if len(g.members) == 0 {
		g.gathering = time.Time{}
	}
	if g.gathering.IsZero() {
		g.assign(now)
	}
}

// resolve finds out the partitions of all topics that members subscribe to.
func (g *group) resolve(joined bool) {
	g.resolvePatterns()
	g.wanted = make(map[string]bool)
	for _, m := range g.members {
		g.resolveTopics(m)
		for _, t := range m.topics {
			g.wanted[t] = true
		}
	}
	for t := range g.wanted {
		n := g.topics.get(t).partitions
		if _, known := g.baseline[t]; !known {
			g.baseline[t] = 0
			if joined {
				g.baseline[t] = n
			}
		}
		for p := range n {
			if tp := (TopicPartition{t, p}); g.slots[tp] == nil {
				g.slots[tp] = &slot{}
			}
		}
	}
	maps.DeleteFunc(g.baseline, func(topic string, _ int32) bool { return !g.wanted[topic] && !g.topics.has(topic) })
	for tp, s := range g.slots {
		if !g.wanted[tp.Topic] {
			s.target = ""
		}
		if !g.wanted[tp.Topic] && s.owner == "" || tp.Partition >= g.topics.get(tp.Topic).partitions {
			delete(g.slots, tp)
		}
	}
}

// resolveTopics finds out what a member's subscription comes to.
func (g *group) resolveTopics(m *member) {
	m.topics = m.topics[:0:0]
	for _, t := range m.subscription {
		if !isPattern(t) {
			m.topics = append(m.topics, t)
		}
	}
	for _, p := range m.patterns {
		for t := range g.patterns[p.String()].topics {
			m.topics = append(m.topics, t)
		}
	}
	slices.Sort(m.topics)
	m.topics = slices.Compact(m.topics)
}

// chooseAssignor returns the assignor that all members name, or sticky.
func (g *group) chooseAssignor() string {
	names := make(map[string]bool)
	for _, m := range g.members {
		if m.assignor == "" {
			names[assignorSticky] = true
		} else {
			names[m.assignor] = true
		}
	}
	if len(names) == 1 {
		for name := range names {
			return name
		}
	}
	if len(names) > 1 {
		g.notes = append(g.notes, "members name different assignors ("+strings.Join(slices.Sorted(maps.Keys(names)), ", ")+"), sticky is used")
	}
	return assignorSticky
}

// assign computes the targets, or has a member compute them.
func (g *group) assign(now time.Time) {
	if len(g.members) == 0 {
		g.assignor = ""
		g.retarget(now, nil)
		return
	}
	g.assignor = g.chooseAssignor()
	switch g.assignor {
	case assignorSticky:
		g.retarget(now, g.sticky())
	case assignorRange:
		g.retarget(now, assignRange(g.input()))
	case assignorRoundRobin:
		g.retarget(now, assignRoundRobin(g.input()))
	default:
		g.compute(now)
	}
}

// input is what an assignor goes by. Stickiness is to the target: what moves already is
// not moved back.
func (g *group) input() assignInput {
	in := assignInput{partitions: make(map[string]int32), previous: make(map[TopicPartition]string, len(g.slots))}
	for _, m := range g.members {
		in.members = append(in.members, assignMember{id: m.id, rank: cmp.Or(m.instance, m.id), topics: m.topics})
		for _, t := range m.topics {
			if topic, ok := g.topics.find(t); ok {
				in.partitions[t] = topic.partitions
			}
		}
	}
	for tp, s := range g.slots {
		if g.members[s.target] != nil {
			in.previous[tp] = s.target
		}
	}
	return in
}

// sticky computes targets that move as little as balance allows. A partition whose
// target is gone goes back to its owner where that makes no difference to others.
func (g *group) sticky() map[TopicPartition]string {
	targets := assignSticky(g.input())
	loads := make(map[string]int)
	var free []TopicPartition
	freeOf := make(map[string][]TopicPartition) // by target
	for tp, id := range targets {
		loads[id]++
		if s := g.slots[tp]; s != nil && g.members[s.target] == nil {
			free = append(free, tp)
			freeOf[id] = append(freeOf[id], tp)
		}
	}
	slices.SortFunc(free, compareTopicPartition)
	takes := func(id string, tp TopicPartition) bool { return slices.Contains(g.members[id].topics, tp.Topic) }
	for _, tp := range free {
		owner, got := g.slots[tp].owner, targets[tp]
		if owner == got || g.members[owner] == nil || !takes(owner, tp) {
			continue
		}
		if loads[got] > loads[owner] {
			targets[tp] = owner
			loads[got]--
			loads[owner]++
			continue
		}
		// Else for another free one that the owner has got.
		for _, other := range freeOf[owner] {
			if targets[other] == owner && g.slots[other].owner != owner && takes(got, other) {
				targets[tp], targets[other] = owner, got
				break
			}
		}
	}
	return targets
}

// retarget gives every partition its target. Owners that are not are told to give up,
// and have until their rebalance timeout.
func (g *group) retarget(now time.Time, targets map[TopicPartition]string) {
	for tp, s := range g.slots {
		if was := s.target; was != targets[tp] {
			s.target = targets[tp]
			g.changed = true
		}
		owner := g.members[s.owner]
		switch {
		case s.owner == "":
			g.offer(s)
		case s.owner == s.target:
			s.revokeBy = time.Time{}
		case owner == nil || owner.silent:
			g.release(s) // It would never give it up.
		case s.revokeBy.IsZero():
			s.revokeBy = now.Add(owner.rebalance)
			g.due(s.revokeBy)
			g.wake(s.owner)
		}
	}
	g.disappoint()
}

// disappoint has members sync that were told that more will come, and are not to get
// anything.
func (g *group) disappoint() {
	if !g.gathering.IsZero() || g.computing != nil {
		return
	}
	waiting := make(map[string]bool)
	for _, s := range g.slots {
		if s.owner != s.target {
			waiting[s.target] = true
		}
	}
	for id, m := range g.members {
		if m.expects && !waiting[id] {
			g.wake(id)
		}
	}
}

// compute has a member's own assignor compute the targets. Until it has, what is
// assigned stays.
func (g *group) compute(now time.Time) {
	var by *member
	for _, m := range g.members {
		if m.incremental && (by == nil || m.joined < by.joined) {
			by = m
		}
	}
	if by == nil {
		g.fallBack(now, "no member can run it")
		return
	}
	// However often members come and go meanwhile, the group waits no longer.
	if g.computeBy.IsZero() {
		g.computeBy = now.Add(computeTimeout)
	}
	if !now.Before(g.computeBy) {
		g.fallBack(now, fmt.Sprintf("no answer within %v", computeTimeout))
		return
	}
	g.computing = &computation{generation: g.generation, by: by.id, deadline: g.computeBy}
	g.due(g.computing.deadline)
	stay := make(map[TopicPartition]string)
	for tp, s := range g.slots {
		before := s.target
		if g.members[before] == nil {
			before = s.owner
		}
		if m := g.members[before]; m != nil && slices.Contains(m.topics, tp.Topic) {
			stay[tp] = before
		}
	}
	g.retarget(now, stay)
	g.wake(by.id)
}

// computeRequest is what the member that computes has to know.
func (g *group) computeRequest() *computeRequest {
	in := g.input()
	req := &computeRequest{Generation: g.computing.generation, Partitions: in.partitions}
	assigned := make(map[string]map[string][]int32)
	for tp, id := range in.previous {
		if assigned[id] == nil {
			assigned[id] = make(map[string][]int32)
		}
		assigned[id][tp.Topic] = append(assigned[id][tp.Topic], tp.Partition)
	}
	for _, id := range slices.Sorted(maps.Keys(g.members)) {
		m := g.members[id]
		for _, partitions := range assigned[id] {
			slices.Sort(partitions)
		}
		req.Members = append(req.Members, computeMember{
			MemberID: id, InstanceID: m.instance, ClientID: m.client, Host: m.host,
			Topics: append([]string{}, m.topics...), Assigned: assigned[id],
		})
	}
	return req
}

// computed takes over what a member's assignor has come to, if it was asked.
func (g *group) computed(now time.Time, m *member, t *computedTarget) {
	c := g.computing
	if c == nil || c.by != m.id || c.generation != t.Generation {
		return
	}
	if t.Error != "" {
		g.fallBack(now, shorten(t.Error))
		return
	}
	targets, err := g.checkTarget(t)
	if err != nil {
		g.fallBack(now, err.Error())
		return
	}
	g.computing, g.computeBy = nil, time.Time{}
	g.retarget(now, targets)
}

// checkTarget holds an assignor of unknown making to what every other one keeps: each
// partition has one reader, which subscribes to its topic.
func (g *group) checkTarget(t *computedTarget) (map[TopicPartition]string, error) {
	targets := make(map[TopicPartition]string)
	for id, topics := range t.Assignment {
		m := g.members[id]
		if m == nil {
			return nil, fmt.Errorf("%q is not a member", shorten(id))
		}
		for topic, partitions := range topics {
			for _, p := range partitions {
				tp := TopicPartition{topic, p}
				switch {
				case g.slots[tp] == nil || p >= g.topics.get(topic).partitions:
					return nil, fmt.Errorf("there is no partition %s/%d", shorten(topic), p)
				case !slices.Contains(m.topics, topic):
					return nil, fmt.Errorf("member %s does not subscribe to %s", shorten(id), topic)
				case targets[tp] != "":
					return nil, fmt.Errorf("%s/%d is assigned twice", topic, p)
				}
				targets[tp] = id
			}
		}
	}
	for tp := range g.slots {
		if targets[tp] == "" && g.subscribed(tp.Topic) {
			return nil, fmt.Errorf("%s/%d is not assigned", tp.Topic, tp.Partition)
		}
	}
	return targets, nil
}

// fallBack assigns as sticky does, because the members' assignor has failed.
func (g *group) fallBack(now time.Time, reason string) {
	g.notes = append(g.notes, fmt.Sprintf("assignor %q: %s, sticky is used", shorten(g.assignor), reason))
	g.computing, g.computeBy = nil, time.Time{}
	g.retarget(now, g.sticky())
}
