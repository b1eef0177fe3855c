package robust

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A table says what a map would, every one that it was made of says what it said, and
// differences are those.
func TestTopicTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	type version struct {
		table topicTable
		want  map[string]topicShape
	}
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprint("t", i))
	}
	differences := func(v, o version) (differ []string) {
		for _, name := range names {
			was, had := v.want[name]
			if is, has := o.want[name]; had != has || is != was {
				differ = append(differ, name)
			}
		}
		return differ
	}
	check := func(v version) {
		require.Equal(t, len(v.want), v.table.len())
		if n := v.table.root; n != nil && n.size <= tableLeaf/2 {
			require.Nil(t, n.children, "what has few topics takes little memory")
		}
		require.Equal(t, v.want, maps.Collect(v.table.all()))
		for _, name := range names {
			shape, there := v.want[name]
			if v.table.get(name) != shape || v.table.has(name) != there {
				require.Fail(t, "look-up", "%s: %v, want %v", name, v.table.get(name), shape)
			}
		}
	}
	versions := []version{{topicTable{}, map[string]topicShape{}}}
	for step := range 2000 {
		last := versions[len(versions)-1]
		if step%7 == 0 {
			last = versions[rng.IntN(len(versions))] // Of one table there may be many others.
		}
		next := version{last.table, maps.Clone(last.want)}
		name := names[rng.IntN(len(names))]
		// Nearly all of them, nearly none, and so on.
		if rng.IntN(10) < 1+8*(step/500%2) {
			next.table = next.table.without(name)
			delete(next.want, name)
		} else {
			shape := topicShape{fmt.Sprint(rng.IntN(3)), int32(1 + rng.IntN(3))}
			next.table = next.table.with(name, shape)
			next.want[name] = shape
		}
		versions = append(versions, next)
		if other := versions[rng.IntN(len(versions))]; step%10 == 0 {
			differ := next.table.differences(other.table)
			slices.Sort(differ)
			require.Equal(t, slices.Sorted(slices.Values(differences(next, other))), differ)
		}
	}
	for i := 0; i < len(versions); i += 7 {
		check(versions[i])
	}
	last := versions[len(versions)-1]
	last.want = maps.Clone(last.want)
	for _, name := range names {
		last.table = last.table.without(name)
		delete(last.want, name)
		check(last)
	}
	seen := 0
	for range versions[300].table.all() {
		if seen++; seen == 20 {
			break
		}
	}
	require.Equal(t, 20, seen)
}

// Topics whose hashes are alike, to the last bit even, are told apart by their names.
func TestTopicTableOfLikeHashes(t *testing.T) {
	for _, mask := range []uint64{0, 1 << 63, 1<<60 | 1} {
		var n *tableNode
		hash := func(i int) uint64 { return uint64(i) * 0x9e3779b97f4a7c15 & mask }
		const many = 5 * tableLeaf
		for round := range 2 {
			for i := range many {
				n = n.with(0, tableTopic{hash(i), fmt.Sprint(i), topicShape{"id", int32(i + round)}})
			}
			require.Equal(t, many, n.size)
			for i := range many {
				shape, there := n.find(hash(i), fmt.Sprint(i))
				require.True(t, there)
				require.Equal(t, int32(i+round), shape.partitions)
			}
		}
		for i := range many {
			require.Equal(t, many-i, n.size)
			n = n.without(0, hash(i), fmt.Sprint(i))
			_, there := n.find(hash(i), fmt.Sprint(i))
			require.False(t, there)
		}
		require.Nil(t, n)
	}
}

// A topic that is made, grown or deleted costs as much where there are many as where there
// are few: a broker that goes over all topics for each is slow to have many.
func TestTopicCostsTheSameAmongMany(t *testing.T) {
	const few, many, made = 100, 5000, 200
	cost := func(t *testing.T, n int) (bytes, allocs float64) {
		b := quietBroker(t)
		topics := b.service.topics
		for i := range n {
			require.NoError(t, topics.create(t.Context(), fmt.Sprint("there-", i), 1, nil))
		}
		// To these groups what is made is nothing; the first has something of all that are there.
		for i := range 10 {
			req := &joinGroupRequest{GroupID: fmt.Sprint("g", i), MemberID: "m", Topics: []string{"none"}}
			if i == 0 {
				req.Topics = []string{"^there-"}
			}
			_, err := b.service.joinGroup(t.Context(), req, false)
			require.NoError(t, err)
		}
		for i := range n {
			_, err := b.service.commitOffset(t.Context(), &commitOffsetRequest{GroupID: "g0", Topic: fmt.Sprint("there-", i)})
			require.NoError(t, err)
		}
		after(time.Second) // The groups have come to rest.
		var before, behind runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range made {
			name := fmt.Sprint("made-", i)
			if topics.create(t.Context(), name, 1, nil) != nil || topics.alter(t.Context(), name, 2, nil) != nil {
				t.Fatal(name)
			}
			if i%2 == 0 && topics.remove(t.Context(), name) != nil {
				t.Fatal(name)
			}
		}
		runtime.ReadMemStats(&behind)
		for _, h := range b.service.groups.all() {
			require.Equal(t, n+made/2, h.group.topics.len())
		}
		return float64(behind.TotalAlloc-before.TotalAlloc) / made, float64(behind.Mallocs-before.Mallocs) / made
	}
	bubble(t, func(t *testing.T) {
		fewBytes, fewAllocs := cost(t, few)
		manyBytes, manyAllocs := cost(t, many)
		t.Logf("%d topics: %.0f bytes, %.0f allocations; %d topics: %.0f bytes, %.0f allocations", few, fewBytes, fewAllocs, many, manyBytes, manyAllocs)
		require.Less(t, manyBytes, 3*fewBytes)
		require.Less(t, manyAllocs, 2*fewAllocs)
	})
}
