package robust

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// assignInput is what an assignment is computed from.
type assignInput struct {
	members    []assignMember            // in any order; IDs are unique
	partitions map[string]int32          // how many partitions each topic has; only topics that exist
	previous   map[TopicPartition]string // the member that had it last; may name members and partitions that are gone
}

type assignMember struct {
	id     string
	topics []string // that it subscribes to, names only, sorted, no duplicates; may include topics that do not exist
	rank   string   // its place in the order of members, which a static one keeps; "": id
}

// compare orders members for the assignors that go by their order.
func (m assignMember) compare(o assignMember) int {
	return cmp.Or(cmp.Compare(cmp.Or(m.rank, m.id), cmp.Or(o.rank, o.id)), cmp.Compare(m.id, o.id))
}

// audience is those who subscribe to a topic, and all topics that have exactly
// them. Topics of one audience differ only in name: where one of their partitions
// may go, the others may. When all members subscribe to the same there is one.
type audience struct {
	members []int32  // indexes into the IDs in order, ascending
	topics  []string // ascending
}

// audiencesOf returns the members' IDs in order and the audiences of all topics
// that exist and have subscribers, by their first topic. It looks at each
// distinct subscription once, since members mostly share them.
func audiencesOf(in assignInput) (ids []string, audiences []audience) {
	topics := slices.Sorted(maps.Keys(in.partitions))
	number := make(map[string]int, len(topics))
	for i, topic := range topics {
		number[topic] = i
	}

	members := slices.SortedFunc(slices.Values(in.members), assignMember.compare)
	ids = make([]string, len(members))
	var crowds [][]int32                     // members of one subscription
	heardBy := make([][]uint32, len(topics)) // the crowds of each topic
	crowdOf := make(map[string]int)
	var key []byte
	for i, m := range members {
		ids[i] = m.id
		key = key[:0]
		for _, topic := range m.topics {
			key = append(binary.AppendUvarint(key, uint64(len(topic))), topic...)
		}
		crowd, ok := crowdOf[string(key)]
		if !ok {
			crowd = len(crowds)
			crowdOf[string(key)] = crowd
			crowds = append(crowds, nil)
			for _, topic := range m.topics {
				if t, exists := number[topic]; exists {
					heardBy[t] = append(heardBy[t], uint32(crowd))
				}
			}
		}
		crowds[crowd] = append(crowds[crowd], int32(i))
	}
	return ids, groupTopics(topics, heardBy, crowds)
}

// groupTopics makes one audience of all topics that the same crowds hear.
func groupTopics(topics []string, heardBy [][]uint32, crowds [][]int32) []audience {
	var audiences []audience
	audienceOf := make(map[string]int)
	var key []byte
	for t, topic := range topics {
		if len(heardBy[t]) == 0 {
			continue
		}
		key = key[:0]
		for _, crowd := range heardBy[t] {
			key = binary.AppendUvarint(key, uint64(crowd))
		}
		a, ok := audienceOf[string(key)]
		if !ok {
			a = len(audiences)
			audienceOf[string(key)] = a
			var members []int32
			for _, crowd := range heardBy[t] {
				members = append(members, crowds[crowd]...)
			}
			slices.Sort(members)
			audiences = append(audiences, audience{members: members})
		}
		audiences[a].topics = append(audiences[a].topics, topic)
	}
	return audiences
}

// assignRange gives each member a contiguous range of each topic, the first
// members one more where it does not divide.
func assignRange(in assignInput) map[TopicPartition]string {
	owners := make(map[TopicPartition]string)
	ids, audiences := audiencesOf(in)
	for _, a := range audiences {
		for _, topic := range a.topics {
			n := int(in.partitions[topic])
			each, more := n/len(a.members), n%len(a.members)
			next := 0
			for i, m := range a.members {
				for end := (i+1)*each + min(i+1, more); next < end; next++ {
					owners[TopicPartition{topic, int32(next)}] = ids[m]
				}
			}
		}
	}
	return owners
}

// assignRoundRobin deals the partitions out in order of topic and number. A member
// that does not subscribe to the topic is passed over, and has its turn again in
// the next round.
func assignRoundRobin(in assignInput) map[TopicPartition]string {
	owners := make(map[TopicPartition]string)
	ids, audiences := audiencesOf(in)
	members := make(map[string][]int32)
	for _, a := range audiences {
		for _, topic := range a.topics {
			members[topic] = a.members
		}
	}
	turn := int32(0)
	for _, topic := range slices.Sorted(maps.Keys(members)) {
		for i := range in.partitions[topic] {
			next, _ := slices.BinarySearch(members[topic], turn)
			m := members[topic][next%len(members[topic])]
			owners[TopicPartition{topic, i}] = ids[m]
			turn = m + 1
		}
	}
	return owners
}
