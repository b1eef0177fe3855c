package robust

import (
	"cmp"
	"math"
	"slices"
	"sort"
)

// assignSticky balances the members' loads as far as their subscriptions allow,
// and of all such assignments returns one that moves the fewest partitions.
func assignSticky(in assignInput) map[TopicPartition]string {
	// Members are looked up by ID, so that is their order.
	in.members = slices.Clone(in.members)
	for i := range in.members {
		in.members[i].rank = ""
	}
	p := newStickyPlan(audiencesOf(in))
	for a := range p.audiences {
		p.recall(a, in)
	}
	for a := range p.audiences {
		if p.spare[a] > 0 {
			p.fill(a)
		}
	}
	everyone := make([]int32, len(p.ids))
	for m := range everyone {
		everyone[m] = int32(m)
	}
	p.balance(everyone)
	owners := make(map[TopicPartition]string, p.total)
	for a := range p.audiences {
		p.name(a, owners)
	}
	return owners
}

// stickyPlan says how many partitions of each audience each member holds. That is
// all that balance and moves depend on; which ones they are is decided last.
//
// Members and audiences are the nodes of a graph. A member has an edge to the
// audiences that it holds partitions of, an audience one to each of its members, so
// that a path from member to member is a chain of moves.
type stickyPlan struct {
	ids       []string
	audiences []audience
	homes     [][]home // each audience's partitions, in order
	total     int      // partitions

	seats    []seat
	first    []int32   // of each audience's seats, which are in order of member; then their number
	ofMember [][]int32 // each member's seats
	load     []int32   // of each member: held, over its seats
	spare    []int32   // partitions of each audience that nobody holds yet
	set      []int32   // the number of the set that balance has put a member into
	sets     int32

	// Of the last search for paths, by node: members first, then audiences.
	dist    []int32 // from the nearest source, or absent
	next    []int   // edges before it lead nowhere
	queue   []int32 // all nodes that were seen
	nearest int32   // distance of the nearest members that have room, or absent

	cycles cycleSearch
}

// seat is the place of one member in one audience.
type seat struct {
	member, audience int32
	held             int32
	before           int32 // how many it had: held up to here are not moved
}

// home is a partition and the seat that had it, or absent.
type home struct {
	TopicPartition
	seat int32
}

const (
	absent  = -1 // no seat, no distance, no node
	viaPool = -2 // not a seat either, but the edge from the pool
)

func newStickyPlan(ids []string, audiences []audience) *stickyPlan {
	nodes := len(ids) + len(audiences)
	p := &stickyPlan{
		ids: ids, audiences: audiences, homes: make([][]home, len(audiences)),
		ofMember: make([][]int32, len(ids)), load: make([]int32, len(ids)), set: make([]int32, len(ids)),
		spare: make([]int32, len(audiences)),
		dist:  slices.Repeat([]int32{absent}, nodes), next: make([]int, nodes),
	}
	p.cycles = cycleSearch{
		p: p, pool: int32(nodes), cost: make([]int32, nodes+1), via: make([]int32, nodes+1),
		walk: make([]int32, nodes+1), queued: make([]bool, nodes+1),
	}
	for a := range audiences {
		p.first = append(p.first, int32(len(p.seats)))
		for _, m := range audiences[a].members {
			p.ofMember[m] = append(p.ofMember[m], int32(len(p.seats)))
			p.seats = append(p.seats, seat{member: m, audience: int32(a)})
		}
	}
	p.first = append(p.first, int32(len(p.seats)))
	return p
}

// recall leaves the audience's partitions with those who had them, as far as they
// are still its members.
func (p *stickyPlan) recall(a int, in assignInput) {
	for _, topic := range p.audiences[a].topics {
		for i := range in.partitions[topic] {
			tp := TopicPartition{topic, i}
			h := home{tp, absent}
			if id, had := in.previous[tp]; had {
				h.seat = p.seatOf(a, id)
			}
			p.homes[a] = append(p.homes[a], h)
			p.total++
			if h.seat == absent {
				p.spare[a]++
				continue
			}
			s := &p.seats[h.seat]
			s.before++
			s.held++
			p.load[s.member]++
		}
	}
}

func (p *stickyPlan) seatOf(a int, id string) int32 {
	m, exists := slices.BinarySearch(p.ids, id)
	i, subscribes := slices.BinarySearch(p.audiences[a].members, int32(m))
	if !exists || !subscribes {
		return absent
	}
	return p.first[a] + int32(i)
}

func (p *stickyPlan) seatsOf(a int) []seat { return p.seats[p.first[a]:p.first[a+1]] }

// node returns the audience's node.
func (p *stickyPlan) node(audience int32) int32 { return int32(len(p.ids)) + audience }

// fill gives what nobody holds of an audience to its least loaded members. It is only
// a start for balance, but often all there is to do.
func (p *stickyPlan) fill(a int) {
	seats, n := p.seatsOf(a), int64(p.spare[a])
	missing := func(level int32) (sum int64) {
		for i := range seats {
			sum += int64(max(0, level-p.load[seats[i].member]))
		}
		return sum
	}
	// The highest level that n reaches; what remains is less than one each.
	level := int32(sort.Search(math.MaxInt32, func(i int) bool { return missing(int32(i)+1) > n }))
	more := n - missing(level)
	for i := range seats {
		s := &seats[i]
		gets := max(0, level-p.load[s.member])
		if more > 0 && p.load[s.member] <= level {
			gets++
			more--
		}
		s.held += gets
		p.load[s.member] += gets
	}
}

// balance moves partitions among the members of one set until no chain of moves
// leads from a member to one with at least two fewer, and then undoes what moves
// the balance does not need.
//
// It moves all that it can from members above a limit to members below. Those whom
// the members that are still above could give to are then at the limit or above and
// hold nothing that anybody else could take, while all others are at the limit or
// below. No chain from the first to the others exists, and one back would make the
// balance worse; so each part is balanced by itself.
func (p *stickyPlan) balance(set []int32) {
	if len(set) == 0 {
		return
	}
	lo, hi, sum := p.load[set[0]], int32(0), 0
	for _, m := range set {
		lo, hi = min(lo, p.load[m]), max(hi, p.load[m])
		sum += int(p.load[m])
	}
	if hi-lo <= 1 {
		p.settle(set, lo, hi)
		return
	}
	// Strictly between lo and hi, so that the parts' range is smaller.
	limit := max(lo+1, int32(sum/len(set)))
	p.level(set, limit)
	var above, others []int32
	for _, m := range set {
		if p.dist[m] == absent {
			others = append(others, m)
		} else {
			above = append(above, m)
		}
	}
	p.sets++
	for _, m := range above {
		p.set[m] = p.sets
	}
	p.balance(above)
	p.balance(others)
}

// level moves as many partitions as possible from members of the set that are above
// the limit to such that are below. It does so along all shortest paths, then along
// the next longer ones, as Dinic's algorithm for a maximum flow does. After the last
// search the seen members are those that the ones still above could give to.
func (p *stickyPlan) level(set []int32, limit int32) {
	// Who has most gives first, which leaves less for settle to undo.
	sources := slices.Clone(set)
	slices.SortStableFunc(sources, func(a, b int32) int { return cmp.Compare(p.load[b], p.load[a]) })
	for p.search(sources, limit); p.nearest != absent; p.search(sources, limit) {
		for _, m := range sources {
			if p.load[m] > limit {
				p.load[m] -= p.give(m, p.load[m]-limit, limit)
			}
		}
	}
}

// search finds the distances from the sources above the limit, as far as to the
// nearest members of the set that are below it.
func (p *stickyPlan) search(sources []int32, limit int32) {
	for _, node := range p.queue {
		p.dist[node], p.next[node] = absent, 0
	}
	p.queue, p.nearest = p.queue[:0], absent
	for _, m := range sources {
		if p.load[m] > limit {
			p.see(m, 0)
		}
	}
	members := int32(len(p.ids))
	for i := 0; i < len(p.queue); i++ {
		node := p.queue[i]
		d := p.dist[node]
		if d == p.nearest {
			return
		}
		if node < members {
			for _, s := range p.ofMember[node] {
				if p.seats[s].held > 0 {
					p.see(p.node(p.seats[s].audience), d+1)
				}
			}
			continue
		}
		for _, s := range p.seatsOf(int(node - members)) {
			if p.set[s.member] != p.set[sources[0]] {
				continue
			}
			p.see(s.member, d+1)
			if p.load[s.member] < limit {
				p.nearest = d + 1
			}
		}
	}
}

func (p *stickyPlan) see(node, dist int32) {
	if p.dist[node] == absent {
		p.dist[node] = dist
		p.queue = append(p.queue, node)
	}
}

// give moves up to n of what the member holds along shortest paths, and returns how
// many found a taker. At the end of a path it takes them instead.
func (p *stickyPlan) give(m, n, limit int32) (given int32) {
	if p.dist[m] == p.nearest {
		taken := max(0, min(n, limit-p.load[m]))
		p.load[m] += taken
		return taken
	}
	for ; p.next[m] < len(p.ofMember[m]); p.next[m]++ {
		s := &p.seats[p.ofMember[m][p.next[m]]]
		if s.held == 0 || p.dist[p.node(s.audience)] != p.dist[m]+1 {
			continue
		}
		moved := p.pass(s.audience, min(n-given, s.held), limit)
		s.held -= moved
		given += moved
		if given == n {
			return given
		}
	}
	return given
}

// pass moves up to n partitions of the audience on to members one step farther.
func (p *stickyPlan) pass(audience, n, limit int32) (passed int32) {
	node := p.node(audience)
	seats := p.seatsOf(int(audience))
	for ; p.next[node] < len(seats); p.next[node]++ {
		s := &seats[p.next[node]]
		if p.dist[s.member] != p.dist[node]+1 {
			continue
		}
		moved := p.give(s.member, n-passed, limit)
		s.held += moved
		passed += moved
		if passed == n {
			return passed
		}
	}
	return passed
}

// settle makes the moves the fewest that the balance of a set needs, whose loads
// are lo or hi. All other balanced assignments differ from the present one by cycles
// of moves, and by chains from members with hi to members with lo, which a pool
// between their ends closes. Unless the moves are the fewest, one makes them fewer.
func (p *stickyPlan) settle(set []int32, lo, hi int32) {
	var moved []int32
	lost := false
	for _, m := range set {
		for _, i := range p.ofMember[m] {
			if s := &p.seats[i]; s.held != s.before {
				moved = append(moved, i)
				lost = lost || s.held < s.before
			}
		}
	}
	if !lost {
		return
	}
	c := &p.cycles
	c.moved, c.lo, c.hi, c.set = moved, lo, hi, set
	for c.improve() {
	}
}

// giveCost is how many moves more there are when a partition leaves the seat, takeCost
// when one comes. It is a move where it comes to, beyond what was held before.
func (s *seat) giveCost() int32 { return -min(1, max(0, s.held-s.before)) }
func (s *seat) takeCost() int32 { return 1 - min(1, max(0, s.before-s.held)) }

// cycleSearch looks for cycles of negative cost, as Bellman and Ford do: it makes the
// ways to each node cheaper, edge by edge, from cost 0. If there is such a cycle the
// cheapest ways end up going around it. Its nodes are the plan's and the pool.
type cycleSearch struct {
	p      *stickyPlan
	set    []int32
	lo, hi int32 // their loads
	pool   int32
	moved  []int32 // all seats of the set that hold more or less than before, and some others

	cost   []int32 // of the cheapest way to each node
	via    []int32 // the seat, or viaPool, that it comes by; for the pool the member
	seen   []int32 // nodes that have been in next
	next   []int32 // nodes whose cost fell since their edges were last followed
	nodes  []int32 // the former next, whose edges are being followed
	queued []bool  // is in next, or in nodes and still to come
	walk   []int32 // who passed the node last, in cancelAll
	walker int32
}

// improve makes the moves of some cycles, and returns false if there are none.
func (c *cycleSearch) improve() bool {
	for _, node := range c.seen {
		c.cost[node], c.queued[node] = 0, false
	}
	c.seen, c.next = c.seen[:0], c.next[:0]
	// At first no other edges make anything cheaper.
	for _, i := range c.moved {
		if s := &c.p.seats[i]; s.held > s.before {
			c.step(s.member, c.p.node(s.audience), s.giveCost(), i)
		}
	}
	for len(c.next) > 0 {
		c.nodes, c.next = c.next, c.nodes[:0]
		for _, node := range c.nodes {
			c.queued[node] = false
			c.follow(node)
		}
		if c.cancelAll() {
			return true
		}
	}
	return false
}

// step takes the edge if it makes a cheaper way.
func (c *cycleSearch) step(from, to, cost, via int32) {
	if cost += c.cost[from]; cost >= c.cost[to] {
		return
	}
	c.cost[to], c.via[to] = cost, via
	if !c.queued[to] {
		c.queued[to] = true
		c.next = append(c.next, to)
		c.seen = append(c.seen, to)
	}
}

// follow takes all edges of the node.
func (c *cycleSearch) follow(node int32) {
	p := c.p
	switch {
	case node == c.pool:
		for _, m := range c.set {
			if p.load[m] == c.hi {
				c.step(node, m, 0, viaPool)
			}
		}
	case node < int32(len(p.ids)):
		for _, i := range p.ofMember[node] {
			if s := &p.seats[i]; s.held > 0 {
				c.step(node, p.node(s.audience), s.giveCost(), i)
			}
		}
		if p.load[node] == c.lo && c.lo < c.hi {
			c.step(node, c.pool, 0, node)
		}
	default:
		a := node - int32(len(p.ids))
		for i := p.first[a]; i < p.first[a+1]; i++ {
			if s := &p.seats[i]; p.set[s.member] == p.set[c.set[0]] {
				c.step(node, s.member, s.takeCost(), i)
			}
		}
	}
}

// before returns the node that the cheapest way comes from last, or absent.
func (c *cycleSearch) before(node int32) int32 {
	switch {
	case c.cost[node] == 0: // the start: where a way comes to, it costs less
		return absent
	case node == c.pool:
		return c.via[node]
	case c.via[node] == viaPool:
		return c.pool
	case node < int32(len(c.p.ids)):
		return c.p.node(c.p.seats[c.via[node]].audience)
	default:
		return c.p.seats[c.via[node]].member
	}
}

// cancelAll makes the moves of all cycles that the cheapest ways go around, and
// returns whether there were any. They have no node in common, since each has but
// one way to it; and each has a node whose way has just changed.
func (c *cycleSearch) cancelAll() (found bool) {
	earlier := c.walker
	for _, start := range c.next {
		c.walker++
		node := start
		for node != absent && c.walk[node] <= earlier {
			c.walk[node] = c.walker
			node = c.before(node)
		}
		if node != absent && c.walk[node] == c.walker {
			c.cancel(node)
			found = true
		}
	}
	return found
}

// cancel makes the moves of the cycle through the node, as often as each of them
// costs the same.
func (c *cycleSearch) cancel(start int32) {
	p := c.p
	var givers, takers []int32
	n := int32(math.MaxInt32)
	for node := start; ; {
		via := c.via[node]
		switch {
		case node == c.pool:
			p.load[via]++
			n = 1
		case via == viaPool:
			p.load[node]--
		case node < int32(len(p.ids)):
			takers = append(takers, via)
			if s := &p.seats[via]; s.held < s.before {
				n = min(n, s.before-s.held)
			}
		default:
			givers = append(givers, via)
			s := &p.seats[via]
			if n = min(n, s.held); s.held > s.before {
				n = min(n, s.held-s.before)
			}
		}
		if node = c.before(node); node == start {
			break
		}
	}
	for _, i := range givers {
		p.seats[i].held -= n
	}
	for _, i := range takers {
		p.seats[i].held += n
	}
	c.moved = append(append(c.moved, givers...), takers...)
}

// name turns the numbers of an audience into owners of its partitions. Who gives
// some away keeps of each topic as evenly as it can, so that the topics stay spread;
// what is free is dealt out in order, for the same reason.
func (p *stickyPlan) name(a int, owners map[TopicPartition]string) {
	homes, seats := p.homes[a], p.seatsOf(a)
	owner := p.keep(a)
	room := make([]int32, len(seats))
	var open []int32
	for i := range seats {
		if room[i] = max(0, seats[i].held-seats[i].before); room[i] > 0 {
			open = append(open, int32(i))
		}
	}
	turn := 0
	for i, h := range homes {
		if owner[i] == absent {
			turn %= len(open)
			owner[i] = open[turn]
			if room[owner[i]]--; room[owner[i]] == 0 {
				open = slices.Delete(open, turn, turn+1)
			} else {
				turn++
			}
		}
		owners[h.TopicPartition] = p.ids[seats[owner[i]].member]
	}
}

// keep returns for each of the audience's partitions the seat, counted within the
// audience, that keeps it, or absent.
func (p *stickyPlan) keep(a int) []int32 {
	type holding struct {
		rank int32 // among what the seat had of the topic
		home int
	}
	homes, seats := p.homes[a], p.seatsOf(a)
	owner := make([]int32, len(homes))
	losing := make([][]holding, len(seats))
	count := make([]int32, len(seats))
	for i, h := range homes {
		if h.Partition == 0 {
			clear(count)
		}
		owner[i] = absent
		s := h.seat - p.first[a]
		switch {
		case h.seat == absent:
		case seats[s].held >= seats[s].before:
			owner[i] = s
		default:
			losing[s] = append(losing[s], holding{count[s], i})
			count[s]++
		}
	}
	for s, holdings := range losing {
		slices.SortStableFunc(holdings, func(x, y holding) int { return cmp.Compare(x.rank, y.rank) })
		for _, h := range holdings[:min(len(holdings), int(seats[s].held))] {
			owner[h.home] = int32(s)
		}
	}
	return owner
}
