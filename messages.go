package robust

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// requestType numbers the requests as the specification documents them (v1).
// docs/protocol.md has the table; v0 peers count differently from 6 on.
type requestType int

const (
	requestProduce      requestType = 0
	requestFetch        requestType = 1
	requestCreateTopic  requestType = 2
	requestDeleteTopic  requestType = 3
	requestListTopics   requestType = 4
	requestMetadata     requestType = 5
	requestJoinGroup    requestType = 6
	requestLeaveGroup   requestType = 7
	requestSyncGroup    requestType = 8
	requestCommitOffset requestType = 9
	requestFetchOffset  requestType = 10
	requestListGroups   requestType = 11
	requestClusterInfo  requestType = 12
	requestNodeJoin     requestType = 13
	requestNodeLeave    requestType = 14
	requestRebalance    requestType = 15
	requestHeartbeat    requestType = 16

	// Extensions start at 100, so that they collide with nothing published. A
	// broker announces them in its ClusterInfo answer.
	requestProduceBatch  requestType = 100
	requestFetchBatch    requestType = 101
	requestListOffsets   requestType = 102
	requestInitProducer  requestType = 103
	requestAlterTopic    requestType = 106
	requestDeleteRecords requestType = 107
	requestDescribeGroup requestType = 108
	requestDeleteGroup   requestType = 109
	requestResetOffsets  requestType = 110

	requestUnknown requestType = -1
)

// String is what errors and logs call the request.
func (t requestType) String() string {
	if name := t.name(); name != "" {
		return name
	}
	return "Request" + strconv.Itoa(int(t))
}

// name is that of a request which is one of those above; "" for others.
func (t requestType) name() string {
	documented := [...]string{
		"Produce", "Fetch", "CreateTopic", "DeleteTopic", "ListTopics", "Metadata",
		"JoinGroup", "LeaveGroup", "SyncGroup", "CommitOffset", "FetchOffset", "ListGroups",
		"ClusterInfo", "NodeJoin", "NodeLeave", "Rebalance", "Heartbeat",
	}
	if t >= 0 && int(t) < len(documented) {
		return documented[t]
	}
	switch t {
	case requestProduceBatch:
		return "ProduceBatch"
	case requestFetchBatch:
		return "FetchBatch"
	case requestInitProducer:
		return "InitProducer"
	case requestListOffsets:
		return "ListOffsets"
	case requestAlterTopic:
		return "AlterTopic"
	case requestDeleteRecords:
		return "DeleteRecords"
	case requestDescribeGroup:
		return "DescribeGroup"
	case requestDeleteGroup:
		return "DeleteGroup"
	case requestResetOffsets:
		return "ResetOffsets"
	case requestUnknown:
		return "Unknown"
	default:
		return ""
	}
}

// v0Number returns the number that v0 peers know t by; ok is false for requests
// that v0 does not have.
func (t requestType) v0Number() (n int, ok bool) {
	switch {
	case t >= requestProduce && t <= requestMetadata, t >= 100:
		return int(t), true
	case t == requestHeartbeat:
		return 6, true
	case t >= requestJoinGroup && t <= requestClusterInfo:
		return int(t) + 1, true
	default:
		return 0, false
	}
}

// fromV0Number is the inverse of v0Number.
func fromV0Number(n int) requestType {
	switch {
	case n >= 0 && n <= int(requestMetadata), n >= 100:
		return requestType(n)
	case n == 6:
		return requestHeartbeat
	case n >= 7 && n <= 13:
		return requestType(n - 1)
	default:
		return requestUnknown
	}
}

// fromV1Number gives requestUnknown for what is not a number of v1's.
func fromV1Number(n int) requestType {
	if n >= int(requestProduce) && n <= int(requestHeartbeat) || n >= 100 {
		return requestType(n)
	}
	return requestUnknown
}

// The payloads of the requests, in the order of docs/protocol.md. Fields that the
// protocol marks as optional additions are left out when they say nothing, so
// that peers without them see what they know.

// answer is what every response payload may carry: the refusal's text, which the
// envelope has too, since published peers look at either.
type answer struct {
	Error string `json:"error,omitempty"`
}

func (a *answer) refusal() string     { return a.Error }
func (a *answer) setRefusal(s string) { a.Error = s }

// request is a request's payload; it knows its own number.
type request interface{ kind() requestType }

// response is a response's payload.
type response interface {
	refusal() string
	setRefusal(text string)
}

type produceRequest struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Key       []byte            `json:"key"`
	Value     []byte            `json:"value"`
	Headers   map[string]string `json:"headers,omitempty"`
	Timestamp int64             `json:"timestamp"`
	ID        string            `json:"id,omitempty"`
	Acks      string            `json:"acks,omitempty"` // Acks.wire
}

type produceResponse struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Timestamp int64  `json:"timestamp"`
	Acks      string `json:"acks,omitempty"` // what was reached, as in the request
	answer
}

// wire is how Produce says it: the default goes without saying, so that nothing
// changes for peers that know no other.
func (a Acks) wire() string {
	if a == AcksStored {
		return ""
	}
	return a.String()
}

// parseAcks is the inverse of wire.
func parseAcks(word string) (Acks, error) {
	switch word {
	case "", AcksStored.String():
		return AcksStored, nil
	case AcksSynced.String():
		return AcksSynced, nil
	default:
		return 0, fmt.Errorf("%w: acks %q: want %q or %q", ErrInvalidRequest, shorten(word), AcksStored, AcksSynced)
	}
}

type fetchRequest struct {
	Topic       string `json:"topic"`
	Partition   int32  `json:"partition"`
	Offset      int64  `json:"offset"`
	MaxBytes    int    `json:"max_bytes"`
	MaxMessages int    `json:"max_messages"`
	MinBytes    int    `json:"min_bytes,omitempty"`
	MaxWaitMs   int64  `json:"max_wait_ms,omitempty"`
	// TopicID is the topic that Offset is of; "": whichever has the name.
	TopicID string `json:"topic_id,omitempty"`
	// LastEpoch is the partition epoch of the message before Offset; 0: not known.
	LastEpoch int32 `json:"last_epoch,omitempty"`
}

// fetchResponse carries HighWaterMark and LogStartOffset as -1 from brokers that
// do not send them; see newFetchResponse.
type fetchResponse struct {
	Topic          string     `json:"topic"`
	Partition      int32      `json:"partition"`
	Messages       []*Message `json:"messages"`
	HighWaterMark  int64      `json:"high_water_mark"`
	LogStartOffset int64      `json:"log_start_offset"`
	// TopicID is the topic that answers. If it is not the request's there are no
	// messages: the offset is of another topic.
	TopicID string `json:"topic_id,omitempty"`
	// Epoch is the partition epoch of the last message, or of the message before the
	// request's offset if there is none and the request does not name it; 0: not known.
	Epoch int32 `json:"epoch,omitempty"`
	// DivergedAt says that the log is not the one of the request's LastEpoch from
	// this offset on, which is below the request's; there are no messages then.
	DivergedAt *int64 `json:"diverged_at,omitempty"`
	answer
}

func newFetchResponse() *fetchResponse {
	return &fetchResponse{HighWaterMark: -1, LogStartOffset: -1}
}

type createTopicRequest struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions"`
	Config     map[string]string `json:"config,omitempty"`
}

type createTopicResponse struct {
	Name string `json:"name"`
	answer
}

type deleteTopicRequest struct {
	Name string `json:"name"`
}

type deleteTopicResponse struct {
	Name string `json:"name"`
	answer
}

type listTopicsRequest struct{}

type listTopicsResponse struct {
	Topics []string `json:"topics"`
	answer
}

type metadataRequest struct {
	Topics []string `json:"topics,omitempty"`
	// AutoCreate asks a broker that creates topics by itself to do so for Topics.
	// A producer sets it; somebody who only looks does not.
	AutoCreate bool `json:"auto_create,omitempty"`
}

type metadataResponse struct {
	Topics []topicMetadata `json:"topics"`
	answer
}

type topicMetadata struct {
	Name       string              `json:"name"`
	Partitions []partitionMetadata `json:"partitions"`
	Config     map[string]string   `json:"config,omitempty"`
	// TopicID is the topic's own: one made anew under its name has another.
	TopicID string `json:"topic_id,omitempty"`
}

type partitionMetadata struct {
	ID       int32    `json:"id"`
	Leader   string   `json:"leader"`
	Replicas []string `json:"replicas,omitempty"`
}

type clusterInfoRequest struct{}

type clusterInfoResponse struct {
	ClusterID string     `json:"cluster_id"`
	Nodes     []nodeInfo `json:"nodes"`
	// NodeID is the node that answers, so that a client knows under which of its
	// addresses a partition's leader can be reached.
	NodeID   string      `json:"node_id,omitempty"`
	Protocol string      `json:"protocol,omitempty"`
	Features []string    `json:"features,omitempty"`
	Limits   *wireLimits `json:"limits,omitempty"`
	answer
}

type nodeInfo struct {
	ID   string `json:"id"`
	Addr string `json:"addr"`
}

// wireLimits is what a broker takes at most.
type wireLimits struct {
	MaxFrameBytes int `json:"max_frame_bytes,omitempty"`
}

// Features that a broker lists in ClusterInfo.
const (
	featureLongPoll      = "long_poll"      // min_bytes, max_wait_ms, high_water_mark, log_start_offset
	featureListOffsets   = "list_offsets"   // request 102
	featureAlterTopic    = "alter_topic"    // request 106
	featureDeleteRecords = "delete_records" // request 107
	featureGroups        = "groups"         // requests 108 to 110, and all that is optional in those of groups
	featureAcks          = "acks"           // acks in Produce and ProduceBatch
	featureBinary        = "binary"         // bodies behind frames; requests 100 and 101
	featureIdempotence   = "idempotence"    // request 103, and what is said of producers in batches
)

type nodeJoinRequest struct {
	NodeID string `json:"node_id"`
	Addr   string `json:"addr"`
}

type nodeJoinResponse struct {
	answer
}

type nodeLeaveRequest struct {
	NodeID string `json:"node_id"`
}

type nodeLeaveResponse struct {
	answer
}

// listOffsetsRequest asks, for each partition of a topic, for the offset of the
// first message at or after Timestamp (Unix milliseconds), or the high-water mark
// where there is none; OffsetNewest and OffsetOldest as Timestamp ask for the ends.
type listOffsetsRequest struct {
	Topic      string  `json:"topic"`
	Partitions []int32 `json:"partitions,omitempty"` // none: all
	Timestamp  int64   `json:"timestamp"`
}

// wireTime is a time as ListOffsets has it. Times before 1970, whose numbers name the
// ends, are before any message.
func wireTime(t time.Time) int64 {
	switch {
	case t.Before(time.UnixMilli(0)):
		return OffsetOldest
	case t.After(time.UnixMilli(math.MaxInt64)):
		return math.MaxInt64
	default:
		return t.UnixMilli()
	}
}

type listOffsetsResponse struct {
	Topic   string            `json:"topic"`
	Offsets []partitionOffset `json:"offsets"`
	answer
}

type partitionOffset struct {
	Partition int32 `json:"partition"`
	Offset    int64 `json:"offset"`
}

// alterTopicRequest changes what it names: Partitions, unless 0, and the keys of
// Config; an empty value puts a key back to its default.
type alterTopicRequest struct {
	Name       string            `json:"name"`
	Partitions int32             `json:"partitions,omitempty"`
	Config     map[string]string `json:"config,omitempty"`
}

type alterTopicResponse struct {
	Name string `json:"name"`
	answer
}

// deleteRecordsRequest removes what is below Offset; OffsetNewest removes all.
type deleteRecordsRequest struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

type deleteRecordsResponse struct {
	Topic          string `json:"topic"`
	Partition      int32  `json:"partition"`
	LogStartOffset int64  `json:"log_start_offset"`
	answer
}

func (*produceRequest) kind() requestType       { return requestProduce }
func (*fetchRequest) kind() requestType         { return requestFetch }
func (*createTopicRequest) kind() requestType   { return requestCreateTopic }
func (*deleteTopicRequest) kind() requestType   { return requestDeleteTopic }
func (*listTopicsRequest) kind() requestType    { return requestListTopics }
func (*metadataRequest) kind() requestType      { return requestMetadata }
func (*clusterInfoRequest) kind() requestType   { return requestClusterInfo }
func (*nodeJoinRequest) kind() requestType      { return requestNodeJoin }
func (*nodeLeaveRequest) kind() requestType     { return requestNodeLeave }
func (*listOffsetsRequest) kind() requestType   { return requestListOffsets }
func (*alterTopicRequest) kind() requestType    { return requestAlterTopic }
func (*deleteRecordsRequest) kind() requestType { return requestDeleteRecords }

const (
	// maxNameBytes is how long the names of topics, groups and nodes may be.
	maxNameBytes = 249
	// topicNames is what checkTopicName takes, in words.
	topicNames = "1 to 249 of A-Z a-z 0-9 . _ -, and neither . nor .."
	// maxTopicPartitions is how many partitions a topic may have.
	maxTopicPartitions = 10_000
)

// checkTopicName holds names to what every storage can keep: 1 to 249 of
// A-Z a-z 0-9 . _ - and neither "." nor "..".
func checkTopicName(name string) error {
	ok := name != "" && len(name) <= maxNameBytes && name != "." && name != ".."
	for i := 0; ok && i < len(name); i++ {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%w: topic name %q: want %s", ErrInvalidRequest, shorten(name), topicNames)
	}
	return nil
}

// checkMessageID bounds what does not count for a message's size.
func checkMessageID(id string) error {
	if len(id) > maxNameBytes {
		return fmt.Errorf("%w: message ID %q of %d bytes: want at most %d", ErrInvalidRequest, shorten(id), len(id), maxNameBytes)
	}
	return nil
}

// shorten keeps errors readable, whatever a peer sends.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
