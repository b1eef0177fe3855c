package robust

// Assignors that every broker has; any other name is a member's own.
const (
	assignorSticky     = "sticky"
	assignorRange      = "range"
	assignorRoundRobin = "roundrobin"
)

// Assignor decides which member of a consumer group reads which partition; see
// [WithAssignor]. The zero Assignor is [StickyAssignor].
type Assignor struct {
	name   string
	assign AssignFunc // nil: the broker knows how
}

// AssignFunc computes an assignment: the ID of the member that is to read it, for every
// partition. The broker holds it to this: a member gets only partitions of topics that
// it subscribes to, and every partition has one reader. Its argument is its own. It may
// be called by any of the client's goroutines, one call at a time for a member, and should
// return within 5 seconds; Consume does not wait for it.
type AssignFunc func(group *AssignmentInput) (map[TopicPartition]string, error)

// AssignmentInput is what an [AssignFunc] goes by.
type AssignmentInput struct {
	Group      string
	Generation int64
	Members    []AssignmentMember // in order of ID
	Partitions []TopicPartition   // all that are to be assigned, in order
}

// AssignmentMember is a member of the group.
type AssignmentMember struct {
	ID         string
	InstanceID string // see [WithInstanceID]
	ClientID   string // see [WithClientID]
	Host       string
	Topics     []string         // that it subscribes to, patterns resolved
	Assigned   []TopicPartition // what it was to read until now
}

// StickyAssignor gives every member the same number of partitions, or one more, and
// moves no more of them than that takes. It is the default.
func StickyAssignor() Assignor { return Assignor{name: assignorSticky} }

// RangeAssignor gives every member a run of neighbouring partitions of each topic, so
// that partitions of the same number in several topics go to the same member.
func RangeAssignor() Assignor { return Assignor{name: assignorRange} }

// RoundRobinAssignor deals the partitions out one by one.
func RoundRobinAssignor() Assignor { return Assignor{name: assignorRoundRobin} }

// NewAssignor returns an assignor of the application's own. All members of a group must
// be given one of the same name; one of them is asked to run it for the group, within 5
// seconds. If it fails or takes longer the broker assigns like [StickyAssignor] and
// logs the reason.
func NewAssignor(name string, assign AssignFunc) Assignor {
	return Assignor{name: name, assign: assign}
}

// builtIn tells the assignors of this package by name.
func builtIn(name string) bool {
	return name == assignorSticky || name == assignorRange || name == assignorRoundRobin
}
