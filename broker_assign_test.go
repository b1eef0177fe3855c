package robust

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// assignmentOf reads "a: x0 x1, b: y0", members with one-letter topics.
func assignmentOf(text string) map[TopicPartition]string {
	owners := make(map[TopicPartition]string)
	for part := range strings.SplitSeq(text, ",") {
		id, list, _ := strings.Cut(strings.TrimSpace(part), ":")
		for _, tp := range strings.Fields(list) {
			n, err := strconv.Atoi(tp[1:])
			if err != nil {
				panic(err)
			}
			owners[TopicPartition{tp[:1], int32(n)}] = id
		}
	}
	return owners
}

// subscriptionsOf reads "a: x y, b: x".
func subscriptionsOf(text string) []assignMember {
	var members []assignMember
	for part := range strings.SplitSeq(text, ",") {
		id, list, _ := strings.Cut(strings.TrimSpace(part), ":")
		if id != "" {
			members = append(members, assignMember{id: id, topics: strings.Fields(list)})
		}
	}
	return members
}

func TestAssign(t *testing.T) {
	assignors := map[string]func(assignInput) map[TopicPartition]string{
		"range": assignRange, "round robin": assignRoundRobin, "sticky": assignSticky,
	}
	for _, tt := range []struct {
		name       string
		members    string
		partitions map[string]int32
		previous   string
		want       map[string]string // by assignor; sticky is named where previous matters
	}{
		{name: "nobody", partitions: map[string]int32{"x": 2}, want: map[string]string{
			"range": "", "round robin": "", "sticky": "",
		}},
		{name: "nothing", members: "a: x, b:", want: map[string]string{
			"range": "", "round robin": "", "sticky": "",
		}},
		{name: "empty topic", members: "a: x", partitions: map[string]int32{"x": 0, "y": 1}, want: map[string]string{
			"range": "", "round robin": "", "sticky": "",
		}},
		{
			name: "more members than partitions", members: "b: x, c: x, a: x", partitions: map[string]int32{"x": 2},
			want: map[string]string{
				"range": "a: x0, b: x1", "round robin": "a: x0, b: x1", "sticky": "a: x0, b: x1",
			},
		},
		{
			name: "two topics", members: "b: x y, a: x y", partitions: map[string]int32{"y": 3, "x": 3},
			want: map[string]string{
				"range":       "a: x0 x1 y0 y1, b: x2 y2",
				"round robin": "a: x0 x2 y1, b: x1 y0 y2",
				"sticky":      "a: x0 x2 y1, b: x1 y0 y2",
			},
		},
		{
			name: "different subscriptions", members: "a: x, b: x y, c: x y z q", partitions: map[string]int32{"x": 1, "y": 2, "z": 3},
			want: map[string]string{
				"range":       "a: x0, b: y0, c: y1 z0 z1 z2",
				"round robin": "a: x0, b: y0, c: y1 z0 z1 z2",
				"sticky":      "a: x0, b: y0 y1, c: z0 z1 z2",
			},
		},
		{
			name: "round robin goes on where it passed over", members: "a: x, b: y, c: x y", partitions: map[string]int32{"x": 3, "y": 4},
			want: map[string]string{
				"range":       "a: x0 x1, b: y0 y1, c: x2 y2 y3",
				"round robin": "a: x0 x2, b: y0 y2, c: x1 y1 y3",
			},
		},
		{
			name: "all stay", members: "a: x, b: x", partitions: map[string]int32{"x": 5}, previous: "a: x1 x4, b: x0 x2 x3",
			want: map[string]string{"sticky": "a: x1 x4, b: x0 x2 x3"},
		},
		{
			name: "gone members, topics and partitions", members: "a: x, b: x", partitions: map[string]int32{"x": 4},
			previous: "a: x0 x9 z0, b: z1, gone: x1 x2 x3",
			want:     map[string]string{"sticky": "a: x0 x1, b: x2 x3"},
		},
		{
			name: "who joins takes of each topic", members: "a: x y, b: x y", partitions: map[string]int32{"x": 4, "y": 4},
			previous: "a: x0 x1 x2 x3 y0 y1 y2 y3",
			want:     map[string]string{"sticky": "a: x0 x1 y0 y1, b: x2 x3 y2 y3"},
		},
		{
			name: "who leaves leaves the rest alone", members: "a: x, c: x", partitions: map[string]int32{"x": 6},
			previous: "a: x0 x3, b: x1 x4, c: x2 x5",
			want:     map[string]string{"sticky": "a: x0 x1 x3, c: x2 x4 x5"},
		},
		{
			name: "a chain", members: "a: x, b: x y, c: y z", partitions: map[string]int32{"x": 3, "y": 1, "z": 1},
			previous: "a: x0 x1 x2, b: y0, c: z0",
			want:     map[string]string{"sticky": "a: x0 x1, b: x2 y0, c: z0"},
		},
		{
			name: "a chain of two moves", members: "a: x, b: x y, c: y", partitions: map[string]int32{"x": 3, "y": 2},
			previous: "a: x0 x1 x2, b: y0 y1",
			want:     map[string]string{"sticky": "a: x0 x1, b: x2 y0, c: y1"},
		},
		{
			name: "no longer subscribed", members: "a: y, b: x y", partitions: map[string]int32{"x": 2, "y": 2},
			previous: "a: x0 x1, b: y0 y1",
			want:     map[string]string{"sticky": "b: x0 x1, a: y0 y1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := assignInput{
				members: subscriptionsOf(tt.members), partitions: tt.partitions, previous: assignmentOf(tt.previous),
			}
			for name, want := range tt.want {
				require.Equal(t, assignmentOf(want), assignors[name](in), name)
			}
		})
	}
}

// randomAssignInput makes a small group, has partitions assigned in it, and then
// changes the group.
func randomAssignInput(r *rand.Rand) assignInput {
	equal := r.IntN(2) == 0
	density := r.Float64()
	in := assignInput{partitions: make(map[string]int32)}
	var topics []string
	for i := range r.IntN(7) {
		topics = append(topics, string(rune('p'+i)))
		if r.IntN(8) > 0 {
			in.partitions[topics[i]] = int32(r.IntN(13))
		}
	}
	subscription := func() []string {
		var names []string
		for _, topic := range topics {
			if equal || r.Float64() < density {
				names = append(names, topic)
			}
		}
		return names
	}
	for i := range r.IntN(8) + 1 {
		in.members = append(in.members, assignMember{id: string(rune('a' + i)), topics: subscription()})
	}
	switch r.IntN(5) {
	case 0: // the first assignment
		return in
	case 1: // owners without any order, and few of them
		in.previous = make(map[TopicPartition]string)
		owners := r.IntN(len(in.members)) + 1
		for topic, n := range in.partitions {
			for i := range n {
				in.previous[TopicPartition{topic, i}] = in.members[(int(i)*7+len(topic))%owners].id
			}
		}
	case 2:
		in.previous = assignRange(in)
	default:
		in.previous = assignSticky(in)
	}
	perturb(r, &in, subscription)
	return in
}

func perturb(r *rand.Rand, in *assignInput, subscription func() []string) {
	for i := range r.IntN(4) {
		switch r.IntN(5) {
		case 0:
			in.members = append(in.members, assignMember{id: fmt.Sprint("new", i), topics: subscription()})
		case 1:
			if i := r.IntN(len(in.members)); len(in.members) > 1 {
				in.members = slices.Delete(slices.Clone(in.members), i, i+1)
			}
		case 2:
			in.members[r.IntN(len(in.members))].topics = subscription()
		case 3:
			for _, topic := range slices.Sorted(maps.Keys(in.partitions)) {
				if r.IntN(3) == 0 {
					in.partitions[topic] = int32(r.IntN(13))
				}
			}
		case 4:
			for _, tp := range sortedPartitions(in.previous) {
				switch r.IntN(10) {
				case 0:
					delete(in.previous, tp)
				case 1:
					in.previous[tp] = "gone"
				case 2:
					in.previous[tp] = in.members[r.IntN(len(in.members))].id
				}
			}
		}
	}
}

func sortedPartitions(owners map[TopicPartition]string) []TopicPartition {
	return slices.SortedFunc(maps.Keys(owners), func(a, b TopicPartition) int {
		if c := strings.Compare(a.Topic, b.Topic); c != 0 {
			return c
		}
		return int(a.Partition - b.Partition)
	})
}

// assignProblem restates an input in the plainest form, partition by partition, for
// checks that share nothing with the solution.
type assignProblem struct {
	members    []string
	partitions []TopicPartition
	can        [][]int // the members that may have it, by partition
	had        []int   // the member that had it and may have it, or -1
}

func problemOf(in assignInput) assignProblem {
	var p assignProblem
	for _, m := range in.members {
		p.members = append(p.members, m.id)
	}
	for topic, n := range in.partitions {
		var can []int
		for m := range in.members {
			if slices.Contains(in.members[m].topics, topic) {
				can = append(can, m)
			}
		}
		if len(can) == 0 {
			continue
		}
		for i := range n {
			tp := TopicPartition{topic, i}
			had := slices.Index(p.members, in.previous[tp])
			if !slices.Contains(can, had) {
				had = -1
			}
			p.partitions, p.can, p.had = append(p.partitions, tp), append(p.can, can), append(p.had, had)
		}
	}
	return p
}

// equal returns whether all members may have all partitions.
func (p assignProblem) equal() bool {
	return !slices.ContainsFunc(p.can, func(can []int) bool { return len(can) != len(p.members) })
}

// loads checks that the assignment is complete and goes to subscribers only.
func (p assignProblem) loads(owners map[TopicPartition]string) ([]int, error) {
	loads := make([]int, len(p.members))
	if len(owners) != len(p.partitions) {
		return nil, fmt.Errorf("%d partitions have owners, want %d", len(owners), len(p.partitions))
	}
	for i, tp := range p.partitions {
		m := slices.Index(p.members, owners[tp])
		if !slices.Contains(p.can[i], m) {
			return nil, fmt.Errorf("%v has owner %q", tp, owners[tp])
		}
		loads[m]++
	}
	return loads, nil
}

// improvable returns a member that a chain of moves takes one from and a member with
// at least two fewer that it gives one to.
func (p assignProblem) improvable(owners map[TopicPartition]string, loads []int) (from, to string, found bool) {
	takers := make([][]int, len(p.members))
	for i, tp := range p.partitions {
		m := slices.Index(p.members, owners[tp])
		takers[m] = append(takers[m], p.can[i]...)
	}
	for m := range p.members {
		seen := map[int]bool{m: true}
		for queue := []int{m}; len(queue) > 0; queue = queue[1:] {
			for _, taker := range takers[queue[0]] {
				if seen[taker] {
					continue
				}
				if loads[taker] <= loads[m]-2 {
					return p.members[m], p.members[taker], true
				}
				seen[taker] = true
				queue = append(queue, taker)
			}
		}
	}
	return "", "", false
}

// moves counts the partitions that do not stay where they were and could be.
func (p assignProblem) moves(owners map[TopicPartition]string) (n int) {
	for i, tp := range p.partitions {
		if p.had[i] >= 0 && owners[tp] != p.members[p.had[i]] {
			n++
		}
	}
	return n
}

// fewestMovesEqual is for equal subscriptions: everybody keeps up to the quota, and
// as many as there are partitions over keep one more.
func (p assignProblem) fewestMovesEqual() int {
	held := make([]int, len(p.members))
	total := 0
	for _, had := range p.had {
		if had >= 0 {
			held[had]++
			total++
		}
	}
	quota, over := len(p.partitions)/len(held), len(p.partitions)%len(held)
	kept := 0
	for _, n := range held {
		kept += min(n, quota)
		if n > quota && over > 0 {
			kept++
			over--
		}
	}
	return total - kept
}

// fewestMoves adds the partitions one by one, each along the cheapest chain of moves,
// where a member's n-th partition costs n times more than all moves together. That
// is the minimum-cost flow of the assignment, so that its result is balanced and has
// the fewest moves of all that are.
func (p assignProblem) fewestMoves() (loads []int, moves int) {
	weight := len(p.partitions) + 1
	owner := slices.Repeat([]int{-1}, len(p.partitions))
	loads = make([]int, len(p.members))
	price := func(i, m int) int {
		if p.had[i] == m || p.had[i] < 0 {
			return 0
		}
		return 1
	}
	for first := range p.partitions {
		cost := slices.Repeat([]int{math.MaxInt32}, len(p.members))
		last := make([]int, len(p.members)) // the partition whose move the chain ends with
		for _, m := range p.can[first] {
			cost[m], last[m] = price(first, m), first
		}
		for changed := true; changed; {
			changed = false
			for i, m := range owner[:first] {
				if cost[m] == math.MaxInt32 {
					continue
				}
				for _, to := range p.can[i] {
					if c := cost[m] + price(i, to) - price(i, m); c < cost[to] {
						cost[to], last[to], changed = c, i, true
					}
				}
			}
		}
		best := p.can[first][0]
		for m := range loads {
			if cost[m] < math.MaxInt32 && cost[m]+loads[m]*weight < cost[best]+loads[best]*weight {
				best = m
			}
		}
		loads[best]++
		for m, i := best, -1; i != first; {
			i = last[m]
			owner[i], m = m, owner[i]
		}
	}
	for i, m := range owner {
		moves += price(i, m)
	}
	return loads, moves
}

// squares orders loads by balance: a move to a member with at least two fewer makes
// it smaller.
func squares(loads []int) (sum int) {
	for _, n := range loads {
		sum += n * n
	}
	return sum
}

func TestAssignStickyProperties(t *testing.T) {
	const seed, cases = 20250601, 5_000
	different := 0
	for i := range cases {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		in := randomAssignInput(r)
		p := problemOf(in)
		got := assignSticky(in)
		about := []any{"seed %d, case %d: %+v gives %v", seed, i, in, got}

		loads, err := p.loads(got)
		require.NoError(t, err, about...)
		from, to, found := p.improvable(got, loads)
		require.False(t, found, "%s could give to %s: seed %d, case %d: %+v gives %v", from, to, seed, i, in, got)
		if p.equal() {
			require.Equal(t, p.fewestMovesEqual(), p.moves(got), about...)
		} else {
			different++
		}
		if i%4 == 0 { // it takes longer than everything else
			best, moves := p.fewestMoves()
			require.Equal(t, squares(best), squares(loads), about...)
			require.Equal(t, moves, p.moves(got), about...)
		}

		again := in
		again.members = slices.Clone(in.members)
		r.Shuffle(len(again.members), func(i, j int) {
			again.members[i], again.members[j] = again.members[j], again.members[i]
		})
		require.Equal(t, got, assignSticky(again), about...)
		again.previous = got
		require.Equal(t, got, assignSticky(again), about...)

		for _, assign := range []func(assignInput) map[TopicPartition]string{assignRange, assignRoundRobin} {
			got := assign(in)
			_, err := p.loads(got)
			require.NoError(t, err, about...)
			require.Equal(t, got, assign(again), about...)
		}
	}
	require.Greater(t, different, cases/4, "too few cases with different subscriptions")
}

// A group of changing size: who leaves gives up what it had, who joins takes its
// share, and nothing else moves.
func TestAssignStickySequence(t *testing.T) {
	const total = 100
	in := assignInput{partitions: map[string]int32{"x": 60, "y": 30, "z": 10}}
	topics := []string{"x", "y", "z"}
	r := rand.New(rand.NewPCG(1, 2))
	for step := range 200 {
		joins := len(in.members) == 0 || (len(in.members) < 40 && r.IntN(5) > 1)
		id := fmt.Sprint("member", step)
		if joins {
			in.members = append(in.members, assignMember{id: id, topics: topics})
		} else {
			i := r.IntN(len(in.members))
			id = in.members[i].id
			in.members = slices.Delete(in.members, i, i+1)
		}
		got := assignSticky(in)
		loads := make(map[string]int)
		moved, had := 0, 0
		for tp, owner := range got {
			loads[owner]++
			if in.previous[tp] == id {
				had++
			}
			if in.previous[tp] != owner {
				moved++
				if joins {
					require.Equal(t, id, owner, "step %d: %v moves among those who stay", step, tp)
				} else {
					require.Equal(t, id, in.previous[tp], "step %d: %v moves among those who stay", step, tp)
				}
			}
		}
		n := len(in.members)
		if n == 0 {
			require.Empty(t, got)
			in.previous = got
			continue
		}
		require.Len(t, got, total)
		for owner, load := range loads {
			require.InDelta(t, float64(total)/float64(n), load, 0.999, "step %d: %s", step, owner)
		}
		if joins {
			require.Equal(t, total/n, moved, "step %d: joining %d members", step, n-1)
		} else {
			require.Equal(t, had, moved, "step %d: leaving %d members", step, n)
		}
		in.previous = got
	}
}

// assignBenchInput is members with 100 topics of 100 partitions each; with a share
// below 1, each subscribes to about that share of them.
func assignBenchInput(members int, share float64) assignInput {
	r := rand.New(rand.NewPCG(3, uint64(members)))
	in := assignInput{partitions: make(map[string]int32)}
	var topics []string
	for i := range 100 {
		topics = append(topics, fmt.Sprintf("orders.region-%02d", i))
		in.partitions[topics[i]] = 100
	}
	for i := range members {
		m := assignMember{id: fmt.Sprintf("consumer-%d-%08x", i, r.Uint32())}
		for _, topic := range topics {
			if r.Float64() < share {
				m.topics = append(m.topics, topic)
			}
		}
		in.members = append(in.members, m)
	}
	return in
}

func BenchmarkAssignSticky(b *testing.B) {
	for _, members := range []int{100, 1000} {
		for _, share := range []float64{1, 0.5, 0.03} {
			whole := assignBenchInput(members, share)
			for _, before := range []string{"none", "joined", "left", "half", "range", "first"} {
				in := whole
				switch before {
				case "joined":
					fewer := whole
					fewer.members = whole.members[1:]
					in.previous = assignSticky(fewer)
				case "left":
					in.previous = assignSticky(whole)
					in.members = whole.members[1:]
				case "half":
					fewer := whole
					fewer.members = whole.members[members/2:]
					in.previous = assignSticky(fewer)
				case "range":
					in.previous = assignRange(whole)
				case "first": // to whoever subscribes first
					in.previous = make(map[TopicPartition]string)
					for _, m := range slices.Backward(whole.members) {
						for _, topic := range m.topics {
							for i := range in.partitions[topic] {
								in.previous[TopicPartition{topic, i}] = m.id
							}
						}
					}
				}
				b.Run(fmt.Sprintf("members=%d/share=%v/before=%s", members, share, before), func(b *testing.B) {
					b.ReportAllocs()
					for b.Loop() {
						assignSticky(in)
					}
				})
			}
		}
	}
}
