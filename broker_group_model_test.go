package robust

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	modelCustom    = "custom" // an assignor that members run
	modelEvents    = 120_000
	modelMembers   = 7                       // at once
	modelEpisode   = 400                     // events at most, before everybody behaves
	modelCalm      = 8                       // rounds within which a group must come to rest
	modelBeat      = 1900 * time.Millisecond // below every session timeout
	modelPartition = 6                       // of a topic, at most
)

// TestGroupModel drives group with random events, as members would that behave, and
// such that do not, over a network that delays, repeats, reorders and loses. After
// each event it checks what must hold always; in the end of each episode, that the
// group comes to rest once everybody behaves.
//
// ROBUST_MODEL_EVENTS sets the number of events, ROBUST_MODEL_SEED begins with the
// episode of that seed.
func TestGroupModel(t *testing.T) {
	total, seed := modelNumber(t, "ROBUST_MODEL_EVENTS", modelEvents), uint64(modelNumber(t, "ROBUST_MODEL_SEED", 1))
	unconcerned := 0
	for events := 0; events < total; seed++ {
		m := runModel(seed, modelEpisode)
		events += m.events
		unconcerned += m.unconcerned
		if m.failure != "" {
			m = shorterModel(m)
			require.Fail(t, m.failure, "seed %d, %d events:\n%s", m.seed, m.events, m.history())
		}
	}
	t.Logf("%d changes of topics were nothing to the group", unconcerned)
	require.Positive(t, unconcerned+max(0, modelEvents-total), "what is nothing to a group was not looked at")
}

func modelNumber(t *testing.T, variable string, otherwise int) int {
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return n
}

// shorterModel looks for a shorter episode that fails in the same way. Replaying less
// of the same one would not do: the order in which group walks its maps is not the
// seed's.
func shorterModel(failed *model) *model {
	kind, _, _ := strings.Cut(failed.failure, ":")
	for limit := 8; limit < failed.limit; limit += limit / 2 {
		for seed := range uint64(20_000 / limit) {
			m := runModel(seed, limit)
			if k, _, _ := strings.Cut(m.failure, ":"); k == kind && len(m.log) < len(failed.log) {
				return m
			}
		}
	}
	return failed
}

// runModel runs the episode of a seed.
func runModel(seed uint64, limit int) *model {
	m := newModel(seed, limit)
	for n := m.rng.IntN(limit) + limit/4 + 1; n > 0 && m.failure == ""; n-- {
		m.step()
	}
	if m.failure == "" {
		m.calm()
	}
	return m
}

// model is a group, the storage under it, and its members at the other end of a
// network.
type model struct {
	seed    uint64
	limit   int
	rng     *rand.Rand
	g       *group
	now     time.Time
	failure string // the first; it ends the episode
	log     []modelEntry
	events  int
	calming bool

	steps    []modelStep // what may happen, by weight
	weight   int
	equal    bool // all subscribe to choices
	choices  []string
	restarts bool           // the broker ends now and then
	members  []*modelMember // that may still do something
	made     int
	net      []*packet // on their way
	held     []*heldBeat
	lost     map[int64]string // epochs of grants that were taken from their owners, and why
	topics   int              // ever made

	unconcerned int // changes of topics that were nothing to the group

	storing *StoredOffset // of a commit that was accepted and not answered
	stored  map[TopicPartition]StoredOffset

	// As they were after the last event.
	was       snapshot
	maxEpoch  int64
	revoking  map[TopicPartition]time.Time // since when an owner has to give up
	lastHeard map[string]time.Time         // the last sign of life of each member
}

type modelEntry struct {
	at     time.Time
	format string
	args   []any
}

type modelStep struct {
	weight int
	do     func(*model)
}

// snapshot is what an event is compared with.
type snapshot struct {
	generation, epoch int64
	slots             map[TopicPartition]slot
	members           map[string]memberWas
	offsets           map[TopicPartition]StoredOffset
	topics            topicTable
	settled           bool // neither gathering nor computing
}

type memberWas struct {
	*member
	dirty              bool
	incremental        bool
	session, rebalance time.Duration
}

// heldBeat is a heartbeat that the broker has not answered yet.
type heldBeat struct {
	req   *packet
	m     *member
	until time.Time
	woken bool
}

// newModel returns an empty group. Each seed leaves out some of what can happen, so
// that the rest happens more often together.
func newModel(seed uint64, limit int) *model {
	m := &model{
		seed: seed, limit: limit, rng: rand.New(rand.NewPCG(seed, 1)),
		now:  time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC),
		lost: make(map[int64]string), stored: make(map[TopicPartition]StoredOffset),
		revoking: make(map[TopicPartition]time.Time), lastHeard: make(map[string]time.Time),
	}
	topics := topicTable{}
	for _, name := range []string{"a", "b", "p1"} {
		if m.chance(80) {
			m.topics++
			topics = topics.with(name, topicShape{fmt.Sprint(name, "#", m.topics), int32(1 + m.rng.IntN(modelPartition))})
		}
	}
	m.g = newGroup("g", topics)
	m.equal = m.chance(50)
	m.choices = m.subscription()
	m.steps = []modelStep{{40, (*model).deliver}, {30, (*model).act}, {8, (*model).pass}, {4, (*model).arrive}, {4, (*model).store}}
	for _, s := range []modelStep{
		{4, (*model).lose},
		{4, (*model).repeat},
		{3, (*model).passLong},
		{2, (*model).depart},
		{2, (*model).returnStatic},
		{1, (*model).rejoin},
		{2, (*model).misbehave},
		{2, (*model).makeTopic},
		{1, (*model).growTopic},
		{1, (*model).deleteTopic},
		{1, (*model).remakeTopic},
		{1, (*model).request},
		{2, (*model).commitFreely},
		{2, (*model).fetch},
		{1, (*model).reset},
	} {
		if m.chance(60) {
			m.steps = append(m.steps, s)
		}
	}
	if m.restarts = m.chance(60); m.restarts {
		m.steps = append(m.steps, modelStep{1, (*model).restart})
	}
	for _, s := range m.steps {
		m.weight += s.weight
	}
	m.was = snapshot{
		slots: make(map[TopicPartition]slot), members: make(map[string]memberWas), offsets: make(map[TopicPartition]StoredOffset),
	}
	m.look(false)
	return m
}

func (m *model) chance(percent int) bool { return m.rng.IntN(100) < percent }

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, modelEntry{m.now, format, args})
}

func (m *model) fail(format string, args ...any) {
	if m.failure == "" {
		m.failure = fmt.Sprintf(format, args...)
		m.note("%s", "FAILED "+m.failure)
	}
}

func (m *model) history() string {
	var b strings.Builder
	start := m.log[0].at
	for _, e := range m.log {
		fmt.Fprintf(&b, "%8.3fs "+e.format+"\n", append([]any{e.at.Sub(start).Seconds()}, e.args...)...)
	}
	return b.String()
}

func (m *model) step() {
	n := m.rng.IntN(m.weight)
	for _, s := range m.steps {
		if n -= s.weight; n < 0 {
			s.do(m)
			return
		}
	}
}

// event has f work on the group as coordinator does, and checks what has come of it.
func (m *model) event(c cause, f func(g *group)) {
	m.overdue()
	m.bare(c, f)
}

// overdue does what the timer would.
func (m *model) overdue() {
	if !m.g.next.IsZero() && !m.now.Before(m.g.next) {
		if !m.calming {
			m.note("tick")
		}
		m.bare(cause{kind: causeTime}, func(g *group) { g.tick(m.now) })
		if earliest := m.earliest(); !earliest.IsZero() && !earliest.After(m.now) {
			m.fail("overdue: tick has left something to do at %v", earliest.Sub(m.now))
		}
	}
}

func (m *model) bare(c cause, f func(g *group)) {
	if m.failure != "" {
		return
	}
	m.events++
	f(m.g)
	quiet := !m.g.changed && (c.kind == causeBeat || c.kind == causeSync || c.kind == causeCommit) && m.settled() == m.was.settled
	m.check(c, quiet)
	m.look(quiet)
	for _, h := range m.held {
		if _, ok := m.g.woken[h.req.from.id]; ok {
			h.woken = true
		}
	}
	clear(m.g.woken)
	for _, note := range m.g.notes {
		m.note("  notes %q", note)
	}
	m.g.notes, m.g.changed = nil, false
}

// look takes the snapshot for the next event; of one that has changed nothing that is
// kept, only what may have changed.
func (m *model) look(quiet bool) {
	g, was := m.g, &m.was
	clear(was.members)
	for id, b := range g.members {
		was.members[id] = memberWas{b, b.dirty, b.incremental, b.session, b.rebalance}
	}
	if quiet {
		return
	}
	was.generation, was.epoch, was.topics, was.settled = g.generation, g.epoch, g.topics, m.settled()
	clear(was.slots)
	for tp, slot := range g.slots {
		was.slots[tp] = *slot
	}
	clear(was.offsets)
	maps.Copy(was.offsets, g.offsets)
}

// --- Members ---

// modelMember is one membership, as Session has it.
type modelMember struct {
	id, instance, assignor string

	topics    []string
	session   time.Duration
	rebalance time.Duration
	legacy    bool // it knows the documented fields only
	v0        bool // likewise, and it joins over a connection without extensions
	beats     bool // it sends heartbeats
	zombie    bool // it goes on reading however long nobody answers
	stalled   bool // it never gives up what it reads
	mute      bool // it sends nothing any more

	joined     bool
	done       bool // the session has ended
	fenced     bool
	generation int64
	seq        int64
	alive      time.Time // when it sent what was answered last
	claims     map[TopicPartition]*modelClaim
	work       bool // it has to sync
	pending    bool
	missing    []string
	asked      int64
	compute    *computeRequest // of which the assignor has not returned
	computed   *computedTarget

	joining, syncing, beating *packet // waited for
}

type modelClaim struct {
	epoch    int64
	revoked  bool
	position int64
}

func (s *modelMember) incremental() bool { return !s.legacy && !s.v0 }

// packet is a request, or the answer to one, on its way.
type packet struct {
	from     *modelMember
	kind     string
	sent     time.Time
	copies   int // of the request, on their way
	join     joinEvent
	sync     syncEvent
	hold     time.Duration // of a heartbeat
	heldNow  bool
	beatGen  int64
	tp       TopicPartition // of a commit
	epoch    int64
	offset   int64
	answerTo *packet // nil for a request

	err        error
	generation int64
	rebalance  bool
	resp       *syncGroupResponse
}

func (m *model) send(p *packet) *packet {
	if p.sent.IsZero() {
		p.sent = m.now
	}
	p.copies++
	m.net = append(m.net, p)
	return p
}

func (m *model) reply(req, answer *packet) {
	answer.from, answer.kind, answer.answerTo, answer.sent = req.from, req.kind, req, m.now
	if !req.from.done && m.failure == "" {
		m.net = append(m.net, answer)
	}
}

// member returns one that does something, nil if there is none.
func (m *model) member() *modelMember {
	if len(m.members) == 0 {
		return nil
	}
	s := m.members[m.rng.IntN(len(m.members))]
	if s.mute || s.done {
		return nil
	}
	return s
}

func (m *model) subscription() []string {
	all := [][]string{{"a"}, {"b"}, {"a", "b"}, {"^p"}, {"a", "^p"}, {"^[ab]$"}, {"a", "b", "p1"}}
	return all[m.rng.IntN(len(all))]
}

// arrive has a new member join.
func (m *model) arrive() {
	if len(m.members) >= modelMembers {
		return
	}
	instance := ""
	if m.chance(25) {
		instance = fmt.Sprint("i", m.rng.IntN(3))
	}
	m.begin(instance)
}

func (m *model) begin(instance string) *modelMember {
	m.made++
	s := &modelMember{
		id: fmt.Sprint("m", m.made), instance: instance, topics: m.choices,
		session:   time.Duration(2+m.rng.IntN(6)) * time.Second,
		rebalance: time.Duration(1+m.rng.IntN(8)) * time.Second,
		claims:    make(map[TopicPartition]*modelClaim), beats: true,
	}
	if !m.equal {
		s.topics = m.subscription()
	}
	// A seed mostly has one assignor, so that it is used.
	names := []string{"", "", assignorSticky, assignorRange, assignorRoundRobin, modelCustom, modelCustom, modelCustom}
	s.assignor = names[m.seed%uint64(len(names))]
	if m.chance(5) {
		s.assignor = names[m.rng.IntN(len(names))]
	}
	switch n := m.rng.IntN(100); {
	case n < 5:
		s.legacy, s.instance, s.assignor = true, "", ""
	case n < 9:
		s.v0, s.beats, s.instance, s.assignor = true, m.chance(20), "", ""
	case n < 20:
		s.stalled = true
	}
	s.zombie = m.chance(10)
	m.members = append(m.members, s)
	m.sendJoin(s)
	return s
}

func (m *model) sendJoin(s *modelMember) {
	e := joinEvent{
		member: s.id, instance: s.instance, topics: s.topics, assignor: s.assignor,
		session: defaultSession, rebalance: defaultRebalance, silent: s.v0,
	}
	if s.incremental() {
		e.session, e.rebalance, e.incremental = s.session, s.rebalance, true
	}
	e.patterns, _ = compilePatterns(e.topics)
	s.joined = false
	s.joining = m.send(&packet{from: s, kind: "join", join: e})
	m.note("%s sends join instance=%q topics=%v assignor=%q session=%v rebalance=%v legacy=%v v0=%v stalled=%v zombie=%v",
		s.id, s.instance, s.topics, s.assignor, e.session, e.rebalance, s.legacy, s.v0, s.stalled, s.zombie)
}

// sendSync says what the member reads.
func (m *model) sendSync(s *modelMember) {
	e := syncEvent{member: s.id, owned: make(map[TopicPartition]bool)}
	if s.incremental() {
		s.seq++
		e.seq, e.target = s.seq, s.computed
		for tp := range s.claims {
			e.owned[tp] = true
		}
	}
	s.work = false
	s.syncing = m.send(&packet{from: s, kind: "sync", sync: e})
	m.note("%s sends sync seq=%d owned=%v target=%v", s.id, e.seq, slices.SortedFunc(maps.Keys(e.owned), compareTopicPartition), e.target)
}

func (m *model) sendBeat(s *modelMember, hold time.Duration) {
	s.beating = m.send(&packet{from: s, kind: "heartbeat", hold: hold, beatGen: s.generation})
	m.note("%s sends heartbeat hold=%v", s.id, hold)
}

// act has a member do something that it may do now.
func (m *model) act() {
	s := m.member()
	if s == nil {
		return
	}
	// What is not answered is asked again, in the same words.
	for _, p := range []*packet{s.joining, s.syncing, s.beating} {
		if p != nil && p.copies == 0 && !p.heldNow && m.chance(50) {
			m.note("%s repeats %s", s.id, p.kind)
			m.send(p)
		}
	}
	if !s.joined {
		return
	}
	m.finishCompute(s)
	switch m.rng.IntN(4) {
	case 0, 1:
		if s.work && s.syncing == nil {
			m.sendSync(s)
		}
	case 2:
		if s.beats && s.beating == nil {
			hold := time.Duration(0)
			if s.incremental() && m.chance(60) {
				hold = time.Duration(1+m.rng.IntN(4000)) * time.Millisecond
			}
			m.sendBeat(s, hold)
		}
	default:
		if s.incremental() && len(s.claims) > 0 {
			m.actOnClaim(s)
		}
	}
}

// actOnClaim has a member commit or give up.
func (m *model) actOnClaim(s *modelMember) {
	of := slices.SortedFunc(maps.Keys(s.claims), compareTopicPartition)
	tp := of[m.rng.IntN(len(of))]
	c := s.claims[tp]
	if m.chance(60) || c.revoked {
		c.position += int64(m.rng.IntN(3))
		m.send(&packet{from: s, kind: "commit", tp: tp, epoch: c.epoch, offset: c.position})
		m.note("%s sends commit %v epoch=%d offset=%d", s.id, tp, c.epoch, c.position)
	}
	if c.revoked && !s.stalled && m.chance(60) {
		m.giveUp(s, tp)
	}
}

func (m *model) giveUp(s *modelMember, tp TopicPartition) {
	m.note("%s gives up %v", s.id, tp)
	delete(s.claims, tp)
	s.work = true
}

// end is the end of a session: it reads nothing any more, and nothing is told to it.
func (m *model) end(s *modelMember) {
	s.done = true
	clear(s.claims)
	m.members = slices.DeleteFunc(m.members, func(other *modelMember) bool { return other == s })
}

// depart ends a session in order. Static members do not say so.
func (m *model) depart() {
	s := m.member()
	if s == nil || !s.joined {
		return
	}
	m.note("%s closes", s.id)
	if s.instance == "" {
		m.send(&packet{from: s, kind: "leave"})
	}
	m.end(s)
}

// returnStatic has a static member start again, whether it has ended or not.
func (m *model) returnStatic() {
	if len(m.members) < modelMembers {
		m.begin(fmt.Sprint("i", m.rng.IntN(3)))
	}
}

// rejoin has a member join again under its ID; it has dropped what it read.
func (m *model) rejoin() {
	s := m.member()
	if s == nil || !s.joined || s.v0 {
		return
	}
	m.note("%s joins again", s.id)
	clear(s.claims)
	s.syncing, s.work, s.computed, s.compute = nil, false, nil, nil
	if !m.equal && m.chance(50) {
		s.topics = m.subscription()
	}
	if s.incremental() && m.chance(20) {
		s.instance = fmt.Sprint("i", m.rng.IntN(3))
	}
	m.sendJoin(s)
}

// misbehave has a member stop doing something.
func (m *model) misbehave() {
	s := m.member()
	if s == nil {
		return
	}
	if m.chance(50) {
		s.stalled = true
		m.note("%s gives nothing up from now on", s.id)
		return
	}
	s.mute = true
	m.note("%s is silent from now on", s.id)
}

// lose is what a member does that hears that it is none, or hears nothing.
func (m *model) loseMembership(s *modelMember, why string) {
	m.note("%s is lost: %s", s.id, why)
	m.end(s)
	if !s.fenced && len(m.members) < modelMembers && m.chance(70) {
		m.begin(s.instance)
	}
}

// watch ends the claims of members that have had no answer for their session timeout.
func (m *model) watch() {
	for _, s := range slices.Clone(m.members) {
		if s.joined && s.incremental() && !s.zombie && !m.now.Before(s.alive.Add(s.session)) {
			m.loseMembership(s, "watchdog")
		}
	}
}

// --- Network ---

// take takes a packet off the network.
func (m *model) take() *packet {
	if len(m.net) == 0 {
		return nil
	}
	i := 0
	if m.chance(60) {
		i = m.rng.IntN(len(m.net))
	}
	p := m.net[i]
	if p.answerTo == nil && p.kind == "commit" && m.storing != nil {
		return nil // It waits for the storage.
	}
	m.net = slices.Delete(m.net, i, i+1)
	if p.answerTo == nil {
		p.copies--
	}
	return p
}

func (m *model) deliver() {
	if p := m.take(); p != nil {
		m.handle(p)
	}
}

func (m *model) handle(p *packet) {
	if p.answerTo != nil {
		m.hear(p)
	} else {
		m.serve(p)
	}
}

func (m *model) lose() {
	if p := m.take(); p != nil {
		m.note("%s of %s gets lost, answer=%v", p.kind, p.from.id, p.answerTo != nil)
	}
}

// repeat has a request come twice.
func (m *model) repeat() {
	if len(m.net) == 0 || len(m.net) > 40 {
		return
	}
	if p := m.net[m.rng.IntN(len(m.net))]; p.answerTo == nil {
		m.note("%s of %s is repeated", p.kind, p.from.id)
		m.send(p)
	}
}

// serve has the broker answer a request.
func (m *model) serve(p *packet) {
	switch p.kind {
	case "join":
		m.serveJoin(p)
	case "leave":
		m.event(cause{kind: causeLeave, member: p.from.id}, func(g *group) {
			m.note("leave of %s arrives: %v", p.from.id, g.leave(m.now, p.from.id))
		})
	case "sync":
		m.serveSync(p)
	case "heartbeat":
		m.serveBeat(p)
	case "commit":
		m.serveCommit(p)
	}
}

func (m *model) serveJoin(p *packet) {
	answer := &packet{}
	m.event(cause{kind: causeJoin, member: p.join.member, instance: p.join.instance}, func(g *group) {
		_, answer.err = g.join(m.now, p.join)
		answer.generation = g.generation
		m.note("join of %s arrives: generation %d, %v", p.from.id, answer.generation, answer.err)
		m.heardFrom(p.from.id, answer.err)
	})
	m.reply(p, answer)
}

func (m *model) serveSync(p *packet) {
	answer := &packet{}
	m.event(cause{kind: causeSync, member: p.sync.member, sync: &p.sync}, func(g *group) {
		var b *member
		if b, answer.err = g.sync(m.now, p.sync); answer.err == nil {
			answer.resp = g.syncAnswer(b)
		}
		answer.generation = g.generation
		m.note("sync of %s seq=%d arrives: %s", p.from.id, p.sync.seq, syncText{answer})
		m.heardFrom(p.from.id, answer.err)
	})
	m.reply(p, answer)
}

func (m *model) serveBeat(p *packet) {
	answer := &packet{}
	var hold *heldBeat
	m.event(cause{kind: causeBeat, member: p.from.id}, func(g *group) {
		var b *member
		b, answer.rebalance, answer.err = g.heartbeat(m.now, p.from.id, p.beatGen)
		answer.generation = g.generation
		m.heardFrom(p.from.id, answer.err)
		if answer.err == nil && !answer.rebalance && p.hold > 0 {
			g.hold(b)
			hold = &heldBeat{req: p, m: b, until: m.now.Add(min(p.hold, b.session/2))}
		}
		if m.calming && answer.err == nil && !answer.rebalance {
			return
		}
		m.note("heartbeat of %s arrives: rebalance=%v, held=%v, %v", p.from.id, answer.rebalance, hold != nil, answer.err)
	})
	if hold != nil && m.failure == "" {
		p.heldNow = true
		m.held = append(m.held, hold)
		return
	}
	m.reply(p, answer)
}

// release answers a heartbeat that was held.
func (m *model) release(h *heldBeat) {
	m.held = slices.DeleteFunc(m.held, func(other *heldBeat) bool { return other == h })
	h.req.heldNow = slices.ContainsFunc(m.held, func(other *heldBeat) bool { return other.req == h.req })
	answer := &packet{}
	m.overdue()
	m.bare(cause{kind: causeBeat, member: h.m.id}, func(g *group) {
		g.unhold(h.m)
		answer.generation = g.generation
		if _, answer.err = g.member(h.m.id); answer.err == nil {
			answer.rebalance = h.m.dirty
		}
		m.note("heartbeat of %s is held no longer: rebalance=%v, %v", h.m.id, answer.rebalance, answer.err)
	})
	m.reply(h.req, answer)
}

func (m *model) heardFrom(id string, err error) {
	if err == nil {
		m.lastHeard[id] = m.now
	}
}

// serveCommit judges a commit, and leaves it to store to keep it.
func (m *model) serveCommit(p *packet) {
	tp, id := p.tp, p.from.id
	m.event(cause{kind: causeCommit, member: id}, func(g *group) {
		o := StoredOffset{Topic: tp.Topic, TopicID: g.topics.get(tp.Topic).id, Partition: tp.Partition, Offset: p.offset}
		_, err := g.member(id)
		keep, owned := g.mayCommit(id, p.epoch, o, math.MaxInt64)
		if err == nil && !owned {
			err = ErrFenced
		}
		m.note("commit of %s %v epoch=%d offset=%d arrives: keep=%v, %v", id, tp, p.epoch, p.offset, keep, err)
		m.checkCommit(p, err)
		if err == nil && keep {
			m.storing = &o
		}
	})
}

// commitFreely commits as somebody does who is no member.
func (m *model) commitFreely() {
	tp, ok := m.somePartition()
	if !ok || m.storing != nil {
		return
	}
	m.event(cause{kind: causeCommit}, func(g *group) {
		o := StoredOffset{Topic: tp.Topic, TopicID: g.topics.get(tp.Topic).id, Partition: tp.Partition, Offset: int64(m.rng.IntN(20))}
		g.seen(m.now, tp)
		m.note("commit of nobody %v offset=%d", tp, o.Offset)
		m.heardReader(tp)
		o.Metadata = "free"
		m.storing = &o
	})
}

// heardReader takes a fetch for a sign of life of a member without heartbeats.
func (m *model) heardReader(tp TopicPartition) {
	if s := m.g.slots[tp]; s != nil {
		if b := m.g.members[s.owner]; b != nil && b.silent {
			m.lastHeard[b.id] = m.now
		}
	}
}

// store completes a commit.
func (m *model) store() {
	if m.storing == nil {
		return
	}
	o := *m.storing
	m.storing = nil
	tp := TopicPartition{o.Topic, o.Partition}
	m.stored[tp] = o
	if m.restarts && m.chance(2) {
		m.restart() // It is kept, and the broker is gone before it knows.
	}
	c := cause{kind: causeStored}
	if o.Metadata == "free" {
		c.back = &tp
	}
	m.event(c, func(g *group) { g.committed(o) })
	m.note("stored %v=%d", tp, o.Offset)
}

// reset moves offsets of a group without members.
func (m *model) reset() {
	tp, ok := m.somePartition()
	if !ok || m.storing != nil || len(m.g.members) > 0 {
		return
	}
	m.storing = &StoredOffset{Topic: tp.Topic, TopicID: m.g.topics.get(tp.Topic).id, Partition: tp.Partition, Offset: int64(m.rng.IntN(20)), Metadata: "free"}
	m.store()
}

func (m *model) somePartition() (TopicPartition, bool) {
	var names []string
	for name := range m.g.topics.all() {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 {
		return TopicPartition{}, false
	}
	name := names[m.rng.IntN(len(names))]
	return TopicPartition{name, m.rng.Int32N(m.g.topics.get(name).partitions)}, true
}

// fetch is a sign of life of members that send no heartbeats.
func (m *model) fetch() {
	if tp, ok := m.somePartition(); ok {
		m.event(cause{kind: causeBeat}, func(g *group) {
			m.heardReader(tp)
			g.seen(m.now, tp)
		})
	}
}

// request has somebody ask for a new assignment.
func (m *model) request() {
	if len(m.g.members) == 0 && len(m.g.offsets) == 0 {
		return
	}
	m.event(cause{kind: causeRequest}, func(g *group) { g.rebalance(m.now, false) })
	m.note("rebalance is asked for")
}

// --- What members hear ---

// hear has a member take an answer, if it waits for it.
func (m *model) hear(p *packet) {
	s, req := p.from, p.answerTo
	if s.done || s.mute && m.chance(50) {
		return
	}
	switch req {
	case s.joining:
		s.joining = nil
	case s.syncing:
		s.syncing = nil
	case s.beating:
		s.beating = nil
	default:
		return
	}
	if p.err != nil {
		s.fenced = errors.Is(p.err, ErrFenced)
		m.loseMembership(s, p.err.Error())
		return
	}
	if req.sent.After(s.alive) {
		s.alive = req.sent
	}
	s.generation = max(s.generation, p.generation)
	switch {
	case p.kind == "join":
		s.joined, s.work = true, true
	case p.kind == "heartbeat":
		s.work = s.work || p.rebalance
	case s.incremental():
		m.hearSync(s, req, p.resp)
	default:
		s.pending = p.resp.Pending
		clear(s.claims)
		for _, g := range p.resp.Grants {
			s.claims[TopicPartition{g.Topic, g.Partition}] = &modelClaim{epoch: g.Epoch}
		}
	}
}

// hearSync does what Session does with what it is granted.
func (m *model) hearSync(s *modelMember, req *packet, resp *syncGroupResponse) {
	if req.sync.target == s.computed {
		s.computed = nil
	}
	s.pending, s.missing = resp.Pending, resp.Missing
	grants := make(map[TopicPartition]int64)
	for _, g := range resp.Grants {
		grants[TopicPartition{g.Topic, g.Partition}] = g.Epoch
	}
	for tp, c := range s.claims {
		if epoch, ok := grants[tp]; !ok || epoch != c.epoch {
			c.revoked = true
		}
	}
	for _, g := range resp.Grants {
		if tp := (TopicPartition{g.Topic, g.Partition}); s.claims[tp] == nil {
			s.claims[tp] = &modelClaim{epoch: g.Epoch, position: max(0, g.Offset)}
			m.checkClaim(s, tp, g.Epoch)
		}
	}
	m.note("%s hears of its sync: reads %s, pending=%v, compute=%v", s.id, claimText(s.claims), s.pending, resp.Compute != nil)
	if c := resp.Compute; c != nil && s.asked != c.Generation {
		s.asked, s.compute = c.Generation, c
	}
}

// finishCompute has a member's assignor return, mostly soon and right.
func (m *model) finishCompute(s *modelMember) {
	c := s.compute
	if c == nil || m.chance(30) {
		return
	}
	s.compute = nil
	n := m.rng.IntN(16)
	if n == 0 {
		return // It never returns.
	}
	s.computed, s.work = m.assignment(c), true
	switch n {
	case 1:
		s.computed = &computedTarget{Generation: c.Generation, Error: "broken"}
	case 2:
		s.computed.Assignment["nobody"] = map[string][]int32{"a": {0}}
	case 3:
		for _, topics := range s.computed.Assignment {
			for topic, partitions := range topics {
				topics[topic] = append(partitions, partitions[0])
			}
		}
	case 4:
		for _, topics := range s.computed.Assignment {
			clear(topics)
		}
	case 5:
		s.computed.Generation--
	case 6:
		s.computed.Assignment[s.id] = map[string][]int32{"a": {0, 1}, "b": {0}, "p1": {0}, "p2": {0}}
	case 7:
		s.computed.Assignment[s.id] = map[string][]int32{"a": {modelPartition}, "": {-1}}
	}
}

// assignment is one that no other assignor would make.
func (m *model) assignment(c *computeRequest) *computedTarget {
	t := &computedTarget{Generation: c.Generation, Assignment: make(map[string]map[string][]int32)}
	for _, topic := range slices.Sorted(maps.Keys(c.Partitions)) {
		for p := range c.Partitions[topic] {
			var able []string
			for _, member := range c.Members {
				if slices.Contains(member.Topics, topic) {
					able = append(able, member.MemberID)
				}
			}
			if len(able) == 0 {
				continue
			}
			id := able[m.rng.IntN(len(able))]
			if t.Assignment[id] == nil {
				t.Assignment[id] = make(map[string][]int32)
			}
			t.Assignment[id][topic] = append(t.Assignment[id][topic], p)
		}
	}
	return t
}

// --- Time, topics, restarts ---

func (m *model) pass()     { m.advance(time.Duration(m.rng.IntN(150)) * time.Millisecond) }
func (m *model) passLong() { m.advance(time.Duration(m.rng.IntN(4000)) * time.Millisecond) }

// advance lets time pass. Heartbeats that are held are answered in time; what else is
// due may be late.
func (m *model) advance(d time.Duration) {
	end := m.now.Add(d)
	for m.failure == "" {
		next := end
		var first *heldBeat
		for _, h := range m.held {
			until := h.until
			if h.woken {
				until = m.now
			}
			if !until.After(next) {
				next, first = until, h
			}
		}
		if next.After(m.now) {
			m.now = next
		}
		m.watch()
		if first == nil {
			break
		}
		m.release(first)
	}
	if m.chance(50) {
		m.overdue()
	}
}

func (m *model) setTopics(topics topicTable, format string, args ...any) {
	m.note(format, args...)
	m.event(cause{kind: causeTopics}, func(g *group) {
		concerned := g.concerned(topics, g.topics.differences(topics))
		generation, slots, baseline, offsets := g.generation, len(g.slots), maps.Clone(g.baseline), maps.Clone(g.offsets)
		g.topicsChanged(m.now, topics)
		if concerned {
			return
		}
		m.unconcerned++
		if g.changed || len(g.woken) > 0 || g.generation != generation || len(g.slots) != slots ||
			!maps.Equal(g.baseline, baseline) || !maps.Equal(g.offsets, offsets) {
			m.fail("topics: the group is not concerned, and has changed")
		}
	})
}

func (m *model) makeTopic() {
	name := []string{"a", "b", "p1", "p2"}[m.rng.IntN(4)]
	if m.g.topics.has(name) {
		return
	}
	m.topics++
	shape := topicShape{fmt.Sprint(name, "#", m.topics), int32(1 + m.rng.IntN(modelPartition))}
	m.setTopics(m.g.topics.with(name, shape), "topic %s is made: %v", name, shape)
}

func (m *model) growTopic() {
	if tp, ok := m.somePartition(); ok && m.g.topics.get(tp.Topic).partitions < modelPartition {
		shape := m.g.topics.get(tp.Topic)
		shape.partitions++
		m.setTopics(m.g.topics.with(tp.Topic, shape), "topic %s grows: %v", tp.Topic, shape)
	}
}

func (m *model) deleteTopic() {
	if tp, ok := m.somePartition(); ok {
		m.setTopics(m.g.topics.without(tp.Topic), "topic %s is deleted", tp.Topic)
	}
}

// remakeTopic deletes a topic and makes it anew, and the group learns of both at once.
func (m *model) remakeTopic() {
	if tp, ok := m.somePartition(); ok {
		m.topics++
		shape := topicShape{fmt.Sprint(tp.Topic, "#", m.topics), int32(1 + m.rng.IntN(modelPartition))}
		m.setTopics(m.g.topics.with(tp.Topic, shape), "topic %s is made anew: %v", tp.Topic, shape)
	}
}

// restart ends the broker and starts it again over what is kept. What was on its way
// went with the connections.
func (m *model) restart() {
	state, err := m.g.capture().encode()
	if err != nil {
		m.fail("encode: %v", err)
		return
	}
	for _, p := range m.net {
		p.copies = 0
	}
	for _, h := range m.held {
		h.req.heldNow = false
	}
	m.net, m.held, m.storing = nil, nil, nil
	m.note("the broker starts again")
	kept := StoredGroup{ID: "g", State: state, Offsets: slices.Collect(maps.Values(m.stored))}
	m.bare(cause{kind: causeRestart}, func(*group) {
		g, err := restoreGroup(m.now, kept, m.g.topics)
		if err != nil {
			m.fail("restore: %v", err)
			return
		}
		m.g = g
		for id := range g.members {
			m.lastHeard[id] = m.now
		}
		for tp := range m.revoking {
			m.revoking[tp] = m.now
		}
	})
}

// --- Texts for the log ---

type syncText struct{ p *packet }

func (t syncText) String() string {
	if t.p.err != nil {
		return t.p.err.Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "generation %d, pending=%v, compute=%v, grants", t.p.generation, t.p.resp.Pending, t.p.resp.Compute != nil)
	for _, g := range t.p.resp.Grants {
		fmt.Fprintf(&b, " %s/%d@%d", g.Topic, g.Partition, g.Epoch)
	}
	return b.String()
}

func claimText(claims map[TopicPartition]*modelClaim) string {
	var b strings.Builder
	for _, tp := range slices.SortedFunc(maps.Keys(claims), compareTopicPartition) {
		fmt.Fprintf(&b, " %v@%d", tp, claims[tp].epoch)
		if claims[tp].revoked {
			b.WriteByte('!')
		}
	}
	return b.String()
}

// --- Invariants ---

const (
	causeTime    = "time"
	causeJoin    = "join"
	causeLeave   = "leave"
	causeSync    = "sync"
	causeBeat    = "heartbeat"
	causeCommit  = "commit"
	causeStored  = "stored"
	causeTopics  = "topics"
	causeRequest = "request"
	causeRestart = "restart"
)

// cause is the event that is being checked.
type cause struct {
	kind             string
	member, instance string
	sync             *syncEvent
	back             *TopicPartition // whose offset may go back
}

// check holds the group against what was before the event. The order is such that the
// most telling failure comes first. After a quiet one, which has changed nothing that
// is kept, half of it has nothing to find.
func (m *model) check(c cause, quiet bool) {
	m.checkChanged()
	if !quiet {
		m.checkGeneration()
		m.checkEpochs()
		m.checkReleases(c)
		m.checkOffsets(c)
		m.checkTargets()
		m.checkBalance()
		m.checkMoves(c)
		m.checkRestart(c)
		m.checkInstances()
	}
	m.checkWoken(c)
	m.checkOffered()
	m.checkNext()
	m.checkHeld()
}

// checkGeneration: the generation never goes back, and members that come and go raise
// it.
func (m *model) checkGeneration() {
	for id := range m.g.members {
		if m.was.members[id].member == nil && m.g.generation <= m.was.generation {
			m.fail("generation: %d is still that of before %s", m.g.generation, id)
		}
	}
	if m.g.generation < m.was.generation {
		m.fail("generation: from %d to %d", m.was.generation, m.g.generation)
	}
}

// checkEpochs: each grant has an epoch of its own, higher than all before, and a
// partition without an owner has none that counts.
func (m *model) checkEpochs() {
	highest := m.maxEpoch
	seen := make(map[int64]TopicPartition, len(m.g.slots))
	for tp, s := range m.g.slots {
		if s.owner == "" {
			continue
		}
		if other, ok := seen[s.epoch]; ok {
			m.fail("epoch: %d is of %v and %v", s.epoch, tp, other)
		}
		seen[s.epoch] = tp
		before, had := m.was.slots[tp]
		if had && before.owner == s.owner && before.epoch == s.epoch {
			continue
		}
		if s.epoch <= m.maxEpoch {
			m.fail("epoch: %v is granted to %s with %d, which is not above %d", tp, s.owner, s.epoch, m.maxEpoch)
		}
		highest = max(highest, s.epoch)
	}
	if m.g.epoch < m.was.epoch || m.g.epoch < highest {
		m.fail("epoch: the group's is %d after %d", m.g.epoch, max(m.was.epoch, highest))
	}
	m.maxEpoch = max(highest, m.g.epoch)
}

// checkReleases: a partition is taken from an incremental owner only if it has said
// that it does not read it, has left, was replaced, was silent or has had its time.
// Unless it has said so itself it may go on reading, and its grant counts as lost.
func (m *model) checkReleases(c cause) {
	for tp, before := range m.was.slots {
		now := m.g.slots[tp]
		owner := m.was.members[before.owner]
		kept := now != nil && now.owner == before.owner && now.epoch == before.epoch
		if before.owner != "" && !kept && owner.member != nil && owner.incremental {
			m.checkRelease(c, tp, before, owner)
		}
	}
	for tp, s := range m.g.slots {
		if s.owner == "" || s.owner == s.target {
			delete(m.revoking, tp)
		} else if _, ok := m.revoking[tp]; !ok || m.was.slots[tp].owner != s.owner {
			m.revoking[tp] = m.now
		}
	}
	maps.DeleteFunc(m.revoking, func(tp TopicPartition, _ time.Time) bool { return m.g.slots[tp] == nil })
}

func (m *model) checkRelease(c cause, tp TopicPartition, before slot, owner memberWas) {
	id := before.owner
	s := m.find(id)
	reads := s != nil && s.claims[tp] != nil && s.claims[tp].epoch == before.epoch
	lose := func(why string) {
		m.note("  %v@%d is taken from %s: %s", tp, before.epoch, id, why)
		m.lost[before.epoch] = why
	}
	replaced := c.kind == causeJoin && c.instance != "" && c.member != id && owner.instance == c.instance
	switch {
	case m.g.topics.get(tp.Topic).id != m.was.topics.get(tp.Topic).id:
		lose("topic deleted")
	case replaced:
		lose("replaced")
	case c.member == id && (c.kind == causeSync && !c.sync.owned[tp] || c.kind == causeLeave || c.kind == causeJoin):
		if reads {
			m.fail("two owners: %v@%d is released by a %s of %s, which reads it", tp, before.epoch, c.kind, id)
		}
		m.lost[before.epoch] = "given up"
	case c.kind == causeTime && m.expired(id, owner):
		if reads && !s.zombie {
			m.fail("expiry: %s is out while its watchdog lets it read %v", id, tp)
		}
		lose("expired")
	case c.kind == causeTime && !m.revoking[tp].IsZero() && !m.now.Before(m.revoking[tp].Add(owner.rebalance)):
		lose("rebalance timeout")
	default:
		m.fail("two owners: %v@%d is taken from %s without a reason, by %s of %s", tp, before.epoch, id, c.kind, c.member)
	}
}

// expired tells whether a member was silent for its session timeout, by what the model
// knows.
func (m *model) expired(id string, b memberWas) bool {
	held := slices.ContainsFunc(m.held, func(h *heldBeat) bool { return h.m == b.member })
	return !held && !m.now.Before(m.lastHeard[id].Add(b.session))
}

func (m *model) find(id string) *modelMember {
	for _, s := range m.members {
		if s.id == id {
			return s
		}
	}
	return nil
}

// checkClaim: who begins to read a partition is its owner, and no other incremental
// member believes to be, unless that one's grant was lost.
func (m *model) checkClaim(s *modelMember, tp TopicPartition, epoch int64) {
	if why, ok := m.lost[epoch]; ok {
		if why == "given up" {
			m.fail("two owners: %s begins %v@%d, which it has given up", s.id, tp, epoch)
		}
		return
	}
	if slot := m.g.slots[tp]; slot == nil || slot.owner != s.id || slot.epoch != epoch {
		m.fail("two owners: %s begins %v@%d, which is not its own: %+v", s.id, tp, epoch, slot)
	}
	for _, other := range m.members {
		if c := other.claims[tp]; c != nil && other != s && other.incremental() && m.lost[c.epoch] == "" {
			m.fail("two owners: %s begins %v@%d while %s reads it @%d", s.id, tp, epoch, other.id, c.epoch)
		}
	}
}

// checkCommit: an owner's commits in the epoch of its grant are accepted, all others
// are refused.
func (m *model) checkCommit(p *packet, err error) {
	s := m.g.slots[p.tp]
	owns := s != nil && s.owner == p.from.id && s.epoch == p.epoch && m.g.members[p.from.id] != nil
	if owns != (err == nil) {
		m.fail("commit: of %s for %v@%d, owner %v: %v", p.from.id, p.tp, p.epoch, owns, err)
	}
	if why, ok := m.lost[p.epoch]; ok && err == nil {
		m.fail("commit: of %s for %v@%d is accepted, but the grant was lost: %s", p.from.id, p.tp, p.epoch, why)
	}
	if c := p.from.claims[p.tp]; c != nil && c.epoch == p.epoch && m.lost[c.epoch] == "" && err != nil {
		m.fail("commit: of %s for %v@%d, which it reads, is refused: %v", p.from.id, p.tp, p.epoch, err)
	}
}

// checkOffsets: what is committed never goes back, unless somebody commits who is no
// member, or the topic is gone.
func (m *model) checkOffsets(c cause) {
	for tp, before := range m.was.offsets {
		if m.g.topics.get(tp.Topic).id != before.TopicID || c.back != nil && *c.back == tp {
			continue
		}
		if now, ok := m.g.offsets[tp]; (!ok || now.Offset < before.Offset) && m.stored[tp].Metadata != "free" {
			m.fail("offset: of %v goes back from %d to %d by %s", tp, before.Offset, now.Offset, c.kind)
		}
	}
	for tp, o := range m.g.offsets {
		if o.TopicID != m.g.topics.get(tp.Topic).id {
			m.fail("offset: of %v is one of topic %s, which is gone", tp, o.TopicID)
		}
	}
}

func (m *model) settled() bool { return m.g.gathering.IsZero() && m.g.computing == nil }

// checkTargets: every partition that somebody subscribes to is to be read by a member
// that does.
func (m *model) checkTargets() {
	g := m.g
	for tp, s := range g.slots {
		if s.owner != "" && g.members[s.owner] == nil {
			m.fail("owner: of %v is %s, which is no member", tp, s.owner)
		}
		if s.target != "" && g.members[s.target] == nil {
			m.fail("target: of %v is %s, which is no member", tp, s.target)
		}
	}
	if !m.settled() {
		return
	}
	for name, topic := range g.topics.all() {
		wanted := false
		for _, b := range g.members {
			wanted = wanted || b.wantsByModel(name)
		}
		if wanted != g.subscribed(name) {
			m.fail("subscription: to %s: %v, the group takes it for %v", name, wanted, !wanted)
		}
		for _, p := range g.patterns {
			if p.topics[name] != p.MatchString(name) {
				m.fail("subscription: %s matches %s: %v, the group takes it for %v", name, p, p.MatchString(name), p.topics[name])
			}
		}
		if !wanted {
			continue
		}
		for p := range topic.partitions {
			tp := TopicPartition{name, p}
			if s := g.slots[tp]; s == nil || s.target == "" {
				m.fail("target: nobody is to read %v", tp)
			} else if !g.members[s.target].wantsByModel(name) || !slices.Contains(g.members[s.target].topics, name) {
				m.fail("target: %s is to read %v and does not subscribe to it", s.target, tp)
			}
		}
	}
}

// alike tells whether all members subscribe to the same topics.
func (m *model) alike() bool {
	var first *member
	for _, b := range m.g.members {
		if first == nil {
			first = b
		}
		if !slices.Equal(first.topics, b.topics) {
			return false
		}
	}
	return first != nil
}

// checkBalance: with equal subscriptions the sticky assignor gives nobody two more
// than another.
func (m *model) checkBalance() {
	if m.g.assignor != assignorSticky || !m.settled() || !m.alike() {
		return
	}
	loads := make(map[string]int)
	for _, s := range m.g.slots {
		if s.target != "" {
			loads[s.target]++
		}
	}
	lo, hi := len(m.g.slots), 0
	for id := range m.g.members {
		lo, hi = min(lo, loads[id]), max(hi, loads[id])
	}
	if hi > lo+1 {
		m.fail("balance: from %d to %d", lo, hi)
	}
}

// checkMoves: when members come and go no more partitions change their target than
// the balance needs.
func (m *model) checkMoves(c cause) {
	join := c.kind == causeJoin || c.kind == causeLeave || c.kind == causeTime
	if !join || m.g.assignor != assignorSticky || !m.settled() || !m.was.settled || !m.alike() {
		return
	}
	replaced := ""
	for id, b := range m.was.members {
		if c.kind == causeJoin && b.instance != "" && m.g.members[id] == nil {
			replaced = id
		}
	}
	had := make(map[string]int)
	moved, total := 0, 0
	for tp, s := range m.g.slots {
		if s.target == "" {
			continue
		}
		total++
		before := m.was.slots[tp].target
		if before == "" {
			before = m.was.slots[tp].owner
		}
		if before == replaced && replaced != "" {
			before = c.member
		}
		if m.g.members[before] != nil {
			had[before]++
		}
		if before != s.target {
			moved++
		}
	}
	if needed := neededMoves(total, len(m.g.members), had); moved > needed {
		m.fail("moves: %d by %s, %d are needed", moved, c.kind, needed)
	}
}

// neededMoves is how many partitions get another reader at least when all members are
// to have as many as the others.
func neededMoves(total, members int, had map[string]int) int {
	loads := slices.SortedFunc(maps.Values(had), func(a, b int) int { return b - a })
	stay := 0
	for i, load := range loads {
		share := total / members
		if i < total%members {
			share++
		}
		stay += min(load, share)
	}
	return total - stay
}

// checkRestart: nothing moves because the broker starts again.
func (m *model) checkRestart(c cause) {
	if c.kind != causeRestart {
		return
	}
	for id := range m.was.members {
		if m.g.members[id] == nil {
			m.fail("restart: member %s is gone", id)
		}
	}
	if !m.was.settled {
		return
	}
	for tp, before := range m.was.slots {
		s := m.g.slots[tp]
		if before.target == "" && before.owner == "" {
			continue
		}
		if s == nil || s.target != before.target {
			m.fail("restart: %v moves from %s to %+v", tp, before.target, s)
		}
	}
}

// checkWoken: whoever has something to do from now on is woken; one that must give up
// has something to do.
func (m *model) checkWoken(c cause) {
	if c.kind == causeRestart {
		return // Nobody waits yet.
	}
	for id, b := range m.g.members {
		before := m.was.members[id]
		_, woken := m.g.woken[id]
		if b.dirty && !before.dirty && !woken && before.member == b {
			m.fail("woken: %s has something to do, and its heartbeat is held, after %s of %s", id, c.kind, c.member)
		}
	}
	for id := range m.was.members {
		if _, woken := m.g.woken[id]; m.g.members[id] == nil && !woken {
			m.fail("woken: %s is no member any more, and its heartbeat is held, after %s of %s", id, c.kind, c.member)
		}
	}
	for tp, s := range m.g.slots {
		before := m.was.slots[tp]
		b := m.g.members[s.owner]
		if b == nil || s.target == s.owner || before.owner != s.owner || before.target != s.owner || b.silent {
			continue
		}
		if !b.dirty && (c.kind != causeSync || c.member != s.owner) {
			m.fail("woken: %s must give up %v, and is not told, after %s of %s", s.owner, tp, c.kind, c.member)
		}
	}
}

// checkOffered: a partition without an owner is known to its target, or will be; and
// who computes is there, and told so.
func (m *model) checkOffered() {
	if c := m.g.computing; c != nil {
		if by := m.g.members[c.by]; by == nil || c.generation > m.was.generation && !by.dirty {
			m.fail("offered: %s is to compute and does not know: %+v", c.by, by)
		}
	}
	for tp, s := range m.g.slots {
		if b := m.g.members[s.target]; s.owner == "" && b != nil && !b.dirty {
			m.fail("offered: %s is not told that it can have %v", s.target, tp)
		}
		if m.g.gathering.IsZero() && s.owner != "" && s.owner != s.target && s.revokeBy.IsZero() {
			m.fail("offered: %s has for ever to give up %v", s.owner, tp)
		}
	}
}

// earliest is when something is due.
func (m *model) earliest() time.Time {
	var earliest time.Time
	due := func(t time.Time) {
		if !t.IsZero() && (earliest.IsZero() || t.Before(earliest)) {
			earliest = t
		}
	}
	due(m.g.gathering)
	if m.g.computing != nil {
		due(m.g.computing.deadline)
	}
	for _, b := range m.g.members {
		if b.held == 0 {
			due(b.expires)
		}
	}
	for _, s := range m.g.slots {
		due(s.revokeBy)
	}
	for _, until := range m.g.fenced {
		due(until)
	}
	return earliest
}

// checkNext: next is not later than what is due.
func (m *model) checkNext() {
	if earliest := m.earliest(); !earliest.IsZero() && (m.g.next.IsZero() || m.g.next.After(earliest)) {
		m.fail("next: is %v later than what is due", m.g.next.Sub(earliest))
	}
}

// checkHeld: members know how many of their heartbeats are held, and none expires
// before its session timeout has passed since it was heard of.
func (m *model) checkHeld() {
	for id, b := range m.g.members {
		if b.held < 0 {
			m.fail("held: %s has %d", id, b.held)
		}
		timeout := b.session
		if b.silent {
			timeout = silentTimeout
		}
		if want := m.lastHeard[id].Add(timeout); b.expires.Before(want) && !b.silent {
			m.fail("expiry: %s expires %v early", id, want.Sub(b.expires))
		}
	}
}

// checkInstances: an instance ID leads to the one member that has it.
func (m *model) checkInstances() {
	for instance, id := range m.g.instances {
		if b := m.g.members[id]; b == nil || b.instance != instance {
			m.fail("instance: %q leads to %s: %+v", instance, id, b)
		}
	}
	for id, b := range m.g.members {
		if b.instance != "" && m.g.instances[b.instance] != id {
			m.fail("instance: %q of %s leads to %q", b.instance, id, m.g.instances[b.instance])
		}
	}
}

// checkChanged: what is to be kept says so.
func (m *model) checkChanged() {
	if m.g.changed {
		return
	}
	same := m.g.generation == m.was.generation && m.g.epoch == m.was.epoch && len(m.g.members) == len(m.was.members) && len(m.g.slots) == len(m.was.slots)
	for tp, s := range m.g.slots {
		before := m.was.slots[tp]
		same = same && s.target == before.target && s.owner == before.owner && s.epoch == before.epoch
	}
	for id := range m.g.members {
		same = same && m.was.members[id].member != nil
	}
	if !same {
		m.fail("changed: something is not kept")
	}
}

// --- The end of an episode ---

// calm has everybody behave who is still there, and finds out whether the group comes
// to rest.
func (m *model) calm() {
	m.note("from now on everybody behaves")
	m.calming = true
	for len(m.held) > 0 && m.failure == "" {
		m.release(m.held[0])
	}
	for range 1000 {
		if m.storing != nil {
			m.store()
		}
		m.deliver()
	}
	m.store()
	for _, p := range m.net {
		p.copies = 0
	}
	m.net = nil
	for _, s := range slices.Clone(m.members) {
		s.stalled, s.zombie = false, false
		if s.mute || s.v0 && !s.beats {
			m.end(s)
		}
	}
	// First those who are gone must be found out.
	for limit := int(silentTimeout/modelBeat) + 2; m.ghosts() && m.failure == ""; limit-- {
		if limit == 0 {
			m.fail("expiry: members that are silent stay for ever")
		}
		m.rounds(1, false)
	}
	m.rounds(modelCalm, false)
	m.rounds(2, true)
	if m.failure == "" {
		m.checkRest()
	}
}

// ghosts tells whether the group has members that are not there.
func (m *model) ghosts() bool {
	for id := range m.g.members {
		if m.find(id) == nil {
			return true
		}
	}
	return false
}

// rounds has every member send a heartbeat, sync if it is told to, give up what it
// must, and sync again. If the group is at rest, nobody may be told to.
func (m *model) rounds(n int, rest bool) {
	for range n {
		m.advance(modelBeat)
		m.overdue()
		for _, s := range slices.Clone(m.members) {
			if m.failure == "" && !s.done {
				m.round(s, rest)
			}
		}
	}
}

func (m *model) round(s *modelMember, rest bool) {
	s.work = s.work || s.syncing != nil // It would ask again.
	s.joining, s.syncing, s.beating = nil, nil, nil
	if !s.joined {
		m.sendJoin(s)
		m.flush()
	}
	if s.done {
		return
	}
	s.beating = m.send(&packet{from: s, kind: "heartbeat", beatGen: s.generation})
	m.flush()
	m.giveUpAll(s)
	for syncs := 0; s.work && !s.done && m.failure == ""; syncs++ {
		if rest {
			m.fail("rest: %s is told to sync for ever", s.id)
		}
		if syncs > 5 {
			m.fail("rest: %s syncs in a loop", s.id)
		}
		m.sendSync(s)
		m.flush()
		if s.compute != nil {
			s.computed, s.work = m.assignment(s.compute), true
			s.compute = nil
		}
		m.giveUpAll(s)
	}
}

func (m *model) giveUpAll(s *modelMember) {
	for _, tp := range slices.SortedFunc(maps.Keys(s.claims), compareTopicPartition) {
		if s.claims[tp].revoked {
			m.giveUp(s, tp)
		}
	}
}

// flush delivers everything at once.
func (m *model) flush() {
	for len(m.net) > 0 && m.failure == "" {
		p := m.net[0]
		m.net = m.net[1:]
		if p.answerTo == nil {
			p.copies--
		}
		m.handle(p)
	}
}

// checkRest: every partition is read by the member that is to read it, everybody knows
// what is theirs, and nobody waits for more.
func (m *model) checkRest() {
	if state := m.g.state(); state != groupStable && state != groupEmpty {
		m.fail("rest: the group is %s", state)
	}
	for _, d := range m.g.describe().Members {
		if len(d.Pending) > 0 {
			m.fail("rest: %s is described as waiting for %v", d.MemberID, d.Pending)
		}
	}
	for tp, s := range m.g.slots {
		if s.owner != s.target {
			m.fail("rest: %v is read by %q and not by %q", tp, s.owner, s.target)
		}
	}
	for _, s := range m.members {
		b := m.g.members[s.id]
		if b == nil {
			m.fail("rest: %s is no member", s.id)
			return
		}
		m.checkMemberRest(s, b)
	}
}

func (m *model) checkMemberRest(s *modelMember, b *member) {
	resp := m.g.syncAnswer(b)
	if len(resp.Grants) != len(s.claims) {
		m.fail("rest: %s reads%s and not %s", s.id, claimText(s.claims), syncText{&packet{resp: resp}})
	}
	for _, g := range resp.Grants {
		c := s.claims[TopicPartition{g.Topic, g.Partition}]
		if c == nil || c.revoked || s.incremental() && c.epoch != g.Epoch {
			m.fail("rest: %s reads%s and not %s", s.id, claimText(s.claims), syncText{&packet{resp: resp}})
		}
	}
	if resp.Pending || s.pending {
		m.fail("pending: %s waits for more, the group says %v", s.id, resp.Pending)
	}
	if s.incremental() && !slices.Equal(resp.Missing, s.missing) {
		m.fail("missing: %s was told %v, it is %v", s.id, s.missing, resp.Missing)
	}
}

// wantsByModel tells whether a member subscribes to a topic, without the group's help.
func (m *member) wantsByModel(topic string) bool {
	return slices.Contains(m.subscription, topic) ||
		slices.ContainsFunc(m.patterns, func(p *regexp.Regexp) bool { return p.MatchString(topic) })
}
