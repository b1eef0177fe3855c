package robust

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"time"
)

// The payloads of the requests about consumer groups, in the order of
// docs/protocol.md.

type joinGroupRequest struct {
	GroupID  string   `json:"group_id"`
	MemberID string   `json:"member_id"`
	ClientID string   `json:"client_id"`
	Topics   []string `json:"topics"` // names, and patterns that begin with ^
	Host     string   `json:"host,omitempty"`
	// InstanceID names the member across restarts; "" for one that is not static.
	InstanceID         string `json:"instance_id,omitempty"`
	Assignor           string `json:"assignor,omitempty"`
	SessionTimeoutMs   int64  `json:"session_timeout_ms,omitempty"`
	RebalanceTimeoutMs int64  `json:"rebalance_timeout_ms,omitempty"`
}

type joinGroupResponse struct {
	GroupID    string  `json:"group_id"`
	MemberID   string  `json:"member_id"`
	Generation int64   `json:"generation"`
	Partitions []int32 `json:"partitions"`
	answer
}

type leaveGroupRequest struct {
	GroupID  string `json:"group_id"`
	MemberID string `json:"member_id"`
}

type leaveGroupResponse struct {
	answer
}

type syncGroupRequest struct {
	GroupID    string `json:"group_id"`
	MemberID   string `json:"member_id"`
	Generation int64  `json:"generation"`
	// Seq rises with each sync of a membership. It makes Owned count: all that the
	// member still reads. A sync without it takes the answer for what it owns.
	Seq    int64              `json:"seq,omitempty"`
	Owned  map[string][]int32 `json:"owned,omitempty"`
	Target *computedTarget    `json:"target,omitempty"`
}

// computedTarget is what a member's own assignor has come to, or why it has not.
type computedTarget struct {
	Generation int64                         `json:"generation"`
	Assignment map[string]map[string][]int32 `json:"assignment,omitempty"` // by member and topic
	Error      string                        `json:"error,omitempty"`
}

type syncGroupResponse struct {
	Assignment map[string][]int32 `json:"assignment"`
	Generation int64              `json:"generation,omitempty"`
	Pending    bool               `json:"pending,omitempty"` // others have to give up what is to come
	Grants     []partitionGrant   `json:"grants,omitempty"`  // Assignment in detail
	Missing    []string           `json:"missing,omitempty"` // topics subscribed to that are not there
	Compute    *computeRequest    `json:"compute,omitempty"`
	answer
}

// partitionGrant lets a member read a partition.
type partitionGrant struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Epoch     int64  `json:"epoch"`  // rises with each grant of the group
	Offset    int64  `json:"offset"` // committed last; -1: none
	Metadata  string `json:"metadata,omitempty"`
	// Appeared: the partition was made while the group was subscribed to its topic.
	Appeared bool   `json:"appeared,omitempty"`
	TopicID  string `json:"topic_id,omitempty"` // the topic that Offset is of
}

// computeRequest asks a member to run its assignor for the whole group.
type computeRequest struct {
	Generation int64            `json:"generation"`
	Members    []computeMember  `json:"members"`
	Partitions map[string]int32 `json:"partitions"` // how many each topic has
}

type computeMember struct {
	MemberID   string             `json:"member_id"`
	InstanceID string             `json:"instance_id,omitempty"`
	ClientID   string             `json:"client_id,omitempty"`
	Host       string             `json:"host,omitempty"`
	Topics     []string           `json:"topics"`
	Assigned   map[string][]int32 `json:"assigned,omitempty"` // what it was to read until now
}

type commitOffsetRequest struct {
	GroupID   string `json:"group_id"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  string `json:"metadata,omitempty"`
	// With MemberID the commit is refused unless the member holds the grant of
	// Epoch. Offsets, if there are any, stand for what offsetToStore has too.
	MemberID   string          `json:"member_id,omitempty"`
	Generation int64           `json:"generation,omitempty"` // for people who look; Epoch says more
	Epoch      int64           `json:"epoch,omitempty"`
	TopicID    string          `json:"topic_id,omitempty"`
	LastEpoch  int32           `json:"last_epoch,omitempty"`
	Offsets    []offsetToStore `json:"offsets,omitempty"`
}

type offsetToStore struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  string `json:"metadata,omitempty"`
	Epoch     int64  `json:"epoch,omitempty"`
	// TopicID is the topic that Offset is of; "": whichever has the name.
	TopicID string `json:"topic_id,omitempty"`
	// LastEpoch is a partition epoch up to which the log was read, to Offset at
	// least; 0: not known. From where the log is another by now nothing is handled.
	LastEpoch int32 `json:"last_epoch,omitempty"`
}

// commitOffsetResponse names those of Offsets that were refused; the others are
// stored.
type commitOffsetResponse struct {
	Fenced []topicPartition `json:"fenced,omitempty"`
	answer
}

// topicPartition is TopicPartition on the wire.
type topicPartition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

type fetchOffsetRequest struct {
	GroupID   string `json:"group_id"`
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

type fetchOffsetResponse struct {
	Offset   int64  `json:"offset"`
	Metadata string `json:"metadata,omitempty"`
	answer
}

type listGroupsRequest struct{}

type listGroupsResponse struct {
	Groups []groupMetadata `json:"groups"`
	answer
}

type groupMetadata struct {
	GroupID    string   `json:"group_id"`
	State      string   `json:"state"`
	Generation int64    `json:"generation"`
	Members    []string `json:"members"`
}

type rebalanceRequest struct {
	GroupID string `json:"group_id,omitempty"`
}

type rebalanceResponse struct {
	answer
}

type heartbeatRequest struct {
	GroupID    string `json:"group_id"`
	MemberID   string `json:"member_id"`
	Generation int64  `json:"generation"`
	// MaxWaitMs lets the broker hold the answer until there is something to do.
	MaxWaitMs int64 `json:"max_wait_ms,omitempty"`
}

type heartbeatResponse struct {
	Rebalance  bool  `json:"rebalance"`
	Generation int64 `json:"generation"`
	answer
}

// describeGroupRequest asks for everything about a group.
type describeGroupRequest struct {
	GroupID string `json:"group_id"`
}

type describeGroupResponse struct {
	GroupID    string            `json:"group_id"`
	State      string            `json:"state"`
	Generation int64             `json:"generation"`
	Assignor   string            `json:"assignor"` // "" without members
	Members    []describedMember `json:"members"`
	Offsets    []describedOffset `json:"offsets"`
	answer
}

type describedMember struct {
	MemberID   string             `json:"member_id"`
	InstanceID string             `json:"instance_id,omitempty"`
	ClientID   string             `json:"client_id"`
	Host       string             `json:"host"`
	Topics     []string           `json:"topics"`     // as subscribed to
	Assignment map[string][]int32 `json:"assignment"` // what it reads
	Pending    map[string][]int32 `json:"pending,omitempty"`
}

// describedOffset is a partition that is assigned or has a committed offset.
type describedOffset struct {
	Topic          string `json:"topic"`
	Partition      int32  `json:"partition"`
	Offset         int64  `json:"offset"` // committed; -1: none
	Metadata       string `json:"metadata,omitempty"`
	MemberID       string `json:"member_id,omitempty"` // who reads it
	Epoch          int64  `json:"epoch,omitempty"`     // of that member's grant
	LogStartOffset int64  `json:"log_start_offset"`
	HighWaterMark  int64  `json:"high_water_mark"`
}

type deleteGroupRequest struct {
	GroupID string `json:"group_id"`
}

type deleteGroupResponse struct {
	answer
}

// resetOffsetsRequest moves what a group without members has committed for a topic:
// to Offset, which may be OffsetOldest or OffsetNewest, or, if Timestamp is set, to
// the first message at or after it.
type resetOffsetsRequest struct {
	GroupID    string  `json:"group_id"`
	Topic      string  `json:"topic"`
	Partitions []int32 `json:"partitions,omitempty"` // none: all
	Offset     int64   `json:"offset"`
	Timestamp  int64   `json:"timestamp,omitempty"`
}

type resetOffsetsResponse struct {
	Topic   string            `json:"topic"`
	Offsets []partitionOffset `json:"offsets"`
	answer
}

func (*joinGroupRequest) kind() requestType     { return requestJoinGroup }
func (*leaveGroupRequest) kind() requestType    { return requestLeaveGroup }
func (*syncGroupRequest) kind() requestType     { return requestSyncGroup }
func (*commitOffsetRequest) kind() requestType  { return requestCommitOffset }
func (*fetchOffsetRequest) kind() requestType   { return requestFetchOffset }
func (*listGroupsRequest) kind() requestType    { return requestListGroups }
func (*rebalanceRequest) kind() requestType     { return requestRebalance }
func (*heartbeatRequest) kind() requestType     { return requestHeartbeat }
func (*describeGroupRequest) kind() requestType { return requestDescribeGroup }
func (*deleteGroupRequest) kind() requestType   { return requestDeleteGroup }
func (*resetOffsetsRequest) kind() requestType  { return requestResetOffsets }

const (
	// maxGroupTopics is how many topics and patterns a member subscribes to.
	maxGroupTopics = 1000
	// maxPatterns, maxPatternBytes and maxPatternSteps bound what a member's patterns
	// may cost. Steps are what they come to, together, when their repetitions are
	// written out.
	maxPatterns     = 20
	maxPatternBytes = 1000
	maxPatternSteps = 500
	// maxGroupPayload bounds what a request about groups may come to in memory, many
	// times its size.
	maxGroupPayload = 4 << 20
	// maxOffsets is how many offsets one commit has.
	maxOffsets = 20_000
	// maxOffsetMeta is how many bytes of metadata come with an offset.
	maxOffsetMeta = 4096
	// maxGroupTimeout is the longest session or rebalance timeout.
	maxGroupTimeout = 24 * time.Hour
)

// checkSubscription checks the topics that a member subscribes to, and compiles those
// that are patterns.
func checkSubscription(topics []string) ([]*regexp.Regexp, error) {
	if len(topics) == 0 || len(topics) > maxGroupTopics {
		return nil, fmt.Errorf("%w: %d topics, want 1 to %d", ErrInvalidRequest, len(topics), maxGroupTopics)
	}
	for _, t := range topics {
		if isPattern(t) {
			continue
		}
		if err := checkTopicName(t); err != nil {
			return nil, err
		}
	}
	return compilePatterns(topics)
}

// isPattern tells patterns from names.
func isPattern(topic string) bool { return strings.HasPrefix(topic, "^") }

// patternSteps counts what a pattern comes to.
func patternSteps(re *syntax.Regexp) int {
	steps := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		steps = min(steps+patternSteps(sub), maxPatternSteps+1)
	}
	if re.Op == syntax.OpRepeat {
		steps = min(steps*max(re.Min, re.Max, 1), maxPatternSteps+1)
	}
	return steps
}

// compilePatterns compiles those of topics that are patterns.
func compilePatterns(topics []string) ([]*regexp.Regexp, error) {
	var patterns []*regexp.Regexp
	steps := 0
	for _, t := range topics {
		if !isPattern(t) {
			continue
		}
		if len(t) > maxPatternBytes {
			return nil, fmt.Errorf("%w: pattern %q of %d bytes: want at most %d", ErrInvalidRequest, shorten(t), len(t), maxPatternBytes)
		}
		parsed, err := syntax.Parse(t, syntax.Perl)
		if err == nil {
			steps += patternSteps(parsed)
		}
		if err == nil && steps > maxPatternSteps {
			err = errors.New("too large when its repetitions are written out")
		}
		var p *regexp.Regexp
		if err == nil {
			p, err = regexp.Compile(t)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: pattern %q: %w", ErrInvalidRequest, shorten(t), err)
		}
		if patterns = append(patterns, p); len(patterns) > maxPatterns {
			return nil, fmt.Errorf("%w: more than %d patterns", ErrInvalidRequest, maxPatterns)
		}
	}
	return patterns, nil
}
