package robust

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var updateWire = flag.Bool("update-wire", false, "write the golden frames that are missing from "+wireDir)

// wireDir holds golden frames. What is in it has been sent to somebody: frames are
// added, never changed.
const wireDir = "testdata/wire"

// goldenExchange is a request and its answer, either of which may be left out. A
// refusal goes with the answer.
type goldenExchange struct {
	name    string
	kind    requestType
	req     request
	resp    response
	refusal error
	// What comes behind the lines; nil: nothing.
	reqBody, respBody []byte
}

// goldenExchanges has each request once under its own name, and variants.
func goldenExchanges(t testing.TB) []goldenExchange {
	all := goldenMessages()
	all = append(all, goldenBatches(t)...)
	all = append(all, goldenTopics()...)
	all = append(all, goldenGroups()...)
	all = append(all, goldenMemberships()...)
	all = append(all, goldenCluster()...)
	return append(all, goldenRefusals()...)
}

func goldenMessages() []goldenExchange {
	return []goldenExchange{
		{
			name: "produce", kind: requestProduce,
			req: &produceRequest{
				Topic: "orders", Partition: 2, Key: []byte("customer-4711"),
				Value:     []byte(`{"order":90125,"total":"59.90"}`),
				Headers:   map[string]string{"trace": "4bf92f3577b34da6", "content-type": "application/json"},
				Timestamp: 1700000000123, ID: "order-90125",
			},
			resp: &produceResponse{Topic: "orders", Partition: 2, Offset: 1048576, Timestamp: 1700000000123},
		},
		{
			name: "produce-broker-chooses", kind: requestProduce,
			req: &produceRequest{
				Topic: "orders", Partition: -1, Value: []byte("hello"),
				Headers:   map[string]string{"người gửi": "Nguyễn Ái", "ville": "Besançon <\"A&B\">", "empty": ""},
				Timestamp: 1700000000124,
			},
			resp: &produceResponse{Topic: "orders", Partition: 0, Offset: 0, Timestamp: 1700000000124},
		},
		{
			name: "produce-null-value", kind: requestProduce,
			req: &produceRequest{Topic: "orders", Partition: -1, Key: []byte("customer-4711"), Timestamp: 1700000000125},
		},
		{
			name: "produce-empty-value", kind: requestProduce,
			req: &produceRequest{Topic: "orders", Key: []byte{}, Value: []byte{}, Timestamp: -1},
		},
		{
			name: "produce-synced", kind: requestProduce,
			req: &produceRequest{
				Topic: "orders", Partition: 2, Value: []byte("hello"), Timestamp: 1700000000126, Acks: "synced",
			},
			resp: &produceResponse{Topic: "orders", Partition: 2, Offset: 1048579, Timestamp: 1700000000126, Acks: "synced"},
		},
		{
			name: "fetch", kind: requestFetch,
			req: &fetchRequest{Topic: "orders", Partition: 2, Offset: 1048576, MaxBytes: 1 << 20, MaxMessages: 500, MinBytes: 1, MaxWaitMs: 500},
			resp: &fetchResponse{
				Topic: "orders", Partition: 2, HighWaterMark: 1048578, LogStartOffset: 1040000,
				Messages: []*Message{
					{
						ID: "order-90125", Topic: "orders", Partition: 2, Key: []byte("customer-4711"),
						Value:     []byte(`{"order":90125,"total":"59.90"}`),
						Headers:   map[string]string{"trace": "4bf92f3577b34da6", "content-type": "application/json"},
						Timestamp: 1700000000123, Offset: 1048576,
					},
					{
						ID: "orders-2-1048577", Topic: "orders", Partition: 2, Value: []byte{0, 0xff, 0xfe},
						Headers:   map[string]string{"người gửi": "Nguyễn Ái"},
						Timestamp: 1700000000130, Offset: 1048577,
					},
				},
			},
		},
		{
			name: "fetch-at-once", kind: requestFetch,
			req:  &fetchRequest{Topic: "orders", Offset: -1, MaxBytes: 65536, MaxMessages: 10},
			resp: &fetchResponse{Topic: "orders", Messages: []*Message{}},
		},
		{
			name: "fetch-null-and-empty-values", kind: requestFetch,
			resp: &fetchResponse{
				Topic: "orders", HighWaterMark: 2,
				Messages: []*Message{
					{ID: "orders-0-0", Topic: "orders", Key: []byte("customer-4711"), Timestamp: 1700000000125},
					{ID: "orders-0-1", Topic: "orders", Key: []byte{}, Value: []byte{}, Timestamp: -1, Offset: 1},
				},
			},
		},
		{
			name: "fetch-of-known-log", kind: requestFetch,
			req: &fetchRequest{
				Topic: "orders", Partition: 2, Offset: 1048578, MaxBytes: 1 << 20, MaxMessages: 500, MinBytes: 1, MaxWaitMs: 500,
				TopicID: ordersID, LastEpoch: 7,
			},
			resp: &fetchResponse{
				Topic: "orders", Partition: 2, HighWaterMark: 1048579, LogStartOffset: 1040000, TopicID: ordersID, Epoch: 8,
				Messages: []*Message{{
					ID: "orders-2-1048578", Topic: "orders", Partition: 2, Value: []byte("hello"), Timestamp: 1700000000150, Offset: 1048578,
				}},
			},
		},
		{
			name: "fetch-of-cut-log", kind: requestFetch,
			resp: &fetchResponse{
				Topic: "orders", Partition: 2, Messages: []*Message{}, HighWaterMark: 1048600, LogStartOffset: 1040000,
				TopicID: ordersID, DivergedAt: ptr(1048570),
			},
		},
		{
			name: "fetch-of-topic-made-anew", kind: requestFetch,
			resp: &fetchResponse{
				Topic: "orders", Partition: 2, Messages: []*Message{}, HighWaterMark: 3,
				TopicID: "e0c1d7a4-5b39-4f62-8a17-9d0e6c2b4f58",
			},
		},
		{
			name: "list-offsets", kind: requestListOffsets,
			req: &listOffsetsRequest{Topic: "orders", Partitions: []int32{0, 2}, Timestamp: 1700000000000},
			resp: &listOffsetsResponse{Topic: "orders", Offsets: []partitionOffset{
				{Partition: 0, Offset: 17}, {Partition: 2, Offset: 1048576},
			}},
		},
		{
			name: "delete-records", kind: requestDeleteRecords,
			req:  &deleteRecordsRequest{Topic: "orders", Partition: 2, Offset: 1048000},
			resp: &deleteRecordsResponse{Topic: "orders", Partition: 2, LogStartOffset: 1048000},
		},
	}
}

// ordersID is the ID of topic orders.
const ordersID = "5a7c1f0e-93d2-4b68-a4f1-2e8d6b90c3d7"

func ptr(n int64) *int64 { return &n }

func goldenTopics() []goldenExchange {
	return []goldenExchange{
		{
			name: "create-topic", kind: requestCreateTopic,
			req: &createTopicRequest{
				Name: "orders", Partitions: 3,
				Config: map[string]string{"segment.bytes": "1073741824", "retention.hours": "168"},
			},
			resp: &createTopicResponse{Name: "orders"},
		},
		{
			name: "delete-topic", kind: requestDeleteTopic,
			req:  &deleteTopicRequest{Name: "orders"},
			resp: &deleteTopicResponse{Name: "orders"},
		},
		{
			name: "list-topics", kind: requestListTopics,
			req:  &listTopicsRequest{},
			resp: &listTopicsResponse{Topics: []string{"orders", "payments.v2"}},
		},
		{
			name: "metadata", kind: requestMetadata,
			req: &metadataRequest{Topics: []string{"orders"}, AutoCreate: true},
			resp: &metadataResponse{Topics: []topicMetadata{{
				Name: "orders",
				Partitions: []partitionMetadata{
					{ID: 0, Leader: "node-1", Replicas: []string{"node-1"}},
					{ID: 1, Leader: "node-1", Replicas: []string{"node-1"}},
				},
				Config: map[string]string{"retention.hours": "168"},
			}}},
		},
		{
			name: "metadata-with-id", kind: requestMetadata,
			resp: &metadataResponse{Topics: []topicMetadata{{
				Name:       "orders",
				Partitions: []partitionMetadata{{ID: 0, Leader: "node-1", Replicas: []string{"node-1"}}},
				TopicID:    ordersID,
			}}},
		},
		{
			name: "metadata-of-all", kind: requestMetadata,
			req:  &metadataRequest{},
			resp: &metadataResponse{Topics: []topicMetadata{}},
		},
		{
			name: "alter-topic", kind: requestAlterTopic,
			req: &alterTopicRequest{
				Name: "orders", Partitions: 6,
				Config: map[string]string{"retention.hours": "24", "retention.bytes": ""},
			},
			resp: &alterTopicResponse{Name: "orders"},
		},
	}
}

func goldenGroups() []goldenExchange {
	const group, member = "billing", "billing-worker-1-5f2b"
	return []goldenExchange{
		{
			name: "join-group", kind: requestJoinGroup,
			req: &joinGroupRequest{
				GroupID: group, ClientID: "billing-worker-1",
				Topics: []string{"orders", "payments.v2"}, Host: "worker-1.example.com",
			},
			resp: &joinGroupResponse{GroupID: group, MemberID: member, Generation: 4, Partitions: []int32{0, 2}},
		},
		{
			name: "leave-group", kind: requestLeaveGroup,
			req:  &leaveGroupRequest{GroupID: group, MemberID: member},
			resp: &leaveGroupResponse{},
		},
		{
			name: "sync-group", kind: requestSyncGroup,
			req: &syncGroupRequest{GroupID: group, MemberID: member, Generation: 4},
			resp: &syncGroupResponse{Assignment: map[string][]int32{
				"payments.v2": {1}, "orders": {0, 2},
			}},
		},
		{
			name: "commit-offset", kind: requestCommitOffset,
			req: &commitOffsetRequest{
				GroupID: group, Topic: "orders", Partition: 2, Offset: 1048577, Metadata: "lô hàng 7",
			},
			resp: &commitOffsetResponse{},
		},
		{
			name: "fetch-offset", kind: requestFetchOffset,
			req:  &fetchOffsetRequest{GroupID: group, Topic: "orders", Partition: 2},
			resp: &fetchOffsetResponse{Offset: 1048577, Metadata: "lô hàng 7"},
		},
		{
			name: "list-groups", kind: requestListGroups,
			req: &listGroupsRequest{},
			resp: &listGroupsResponse{Groups: []groupMetadata{
				{GroupID: group, State: "Stable", Generation: 4, Members: []string{member}},
				{GroupID: "audit", State: "Empty", Generation: 9, Members: []string{}},
			}},
		},
		{
			name: "heartbeat", kind: requestHeartbeat,
			req:  &heartbeatRequest{GroupID: group, MemberID: member, Generation: 4},
			resp: &heartbeatResponse{Rebalance: true, Generation: 5},
		},
		{
			name: "rebalance", kind: requestRebalance,
			req:  &rebalanceRequest{GroupID: group},
			resp: &rebalanceResponse{},
		},
		{
			name: "describe-group", kind: requestDescribeGroup,
			req: &describeGroupRequest{GroupID: group},
			resp: &describeGroupResponse{
				GroupID: group, State: "Rebalancing", Generation: 5, Assignor: "sticky",
				Members: []describedMember{
					{
						MemberID: member, InstanceID: "worker-1", ClientID: "billing-worker-1", Host: "worker-1.example.com",
						Topics: []string{"orders", "refunds", "^payments"}, Assignment: map[string][]int32{"orders": {0, 1}, "payments.v2": {0}},
					},
					{
						MemberID: "billing-worker-2-9c01", ClientID: "billing-worker-2", Host: "worker-2.example.com",
						Topics: []string{"orders", "refunds", "^payments"}, Assignment: map[string][]int32{},
						Pending: map[string][]int32{"orders": {1}},
					},
				},
				Offsets: []describedOffset{
					{Topic: "orders", Partition: 0, Offset: 17, MemberID: member, Epoch: 31, HighWaterMark: 17},
					{Topic: "orders", Partition: 1, Offset: 1048577, Metadata: "lô hàng 7", MemberID: member, Epoch: 33, LogStartOffset: 1040000, HighWaterMark: 1048578},
					{Topic: "payments.v2", Partition: 0, Offset: -1, MemberID: member, Epoch: 32, HighWaterMark: 4},
				},
			},
		},
		{
			name: "delete-group", kind: requestDeleteGroup,
			req:  &deleteGroupRequest{GroupID: "audit"},
			resp: &deleteGroupResponse{},
		},
		{
			name: "reset-offsets", kind: requestResetOffsets,
			req: &resetOffsetsRequest{GroupID: "audit", Topic: "orders", Partitions: []int32{0, 2}, Offset: -2},
			resp: &resetOffsetsResponse{Topic: "orders", Offsets: []partitionOffset{
				{Partition: 0, Offset: 0}, {Partition: 2, Offset: 1040000},
			}},
		},
		{
			name: "reset-offsets-to-time", kind: requestResetOffsets,
			req: &resetOffsetsRequest{GroupID: "audit", Topic: "payments.v2", Offset: -2, Timestamp: 1700000000000},
			resp: &resetOffsetsResponse{Topic: "payments.v2", Offsets: []partitionOffset{
				{Partition: 0, Offset: 4},
			}},
		},
	}
}

// goldenMemberships has what the feature groups adds to the requests of members.
func goldenMemberships() []goldenExchange {
	const group, member, second = "billing", "billing-worker-1-5f2b", "billing-worker-2-9c01"
	return []goldenExchange{
		{
			name: "join-group-in-full", kind: requestJoinGroup,
			req: &joinGroupRequest{
				GroupID: group, MemberID: member, ClientID: "billing-worker-1",
				Topics: []string{"orders", "refunds", "^payments"}, Host: "worker-1.example.com",
				InstanceID: "worker-1", Assignor: "sticky", SessionTimeoutMs: 30000, RebalanceTimeoutMs: 60000,
			},
			resp: &joinGroupResponse{GroupID: group, MemberID: member, Generation: 5, Partitions: []int32{}},
		},
		{
			name: "sync-group-owned", kind: requestSyncGroup,
			req: &syncGroupRequest{
				GroupID: group, MemberID: member, Generation: 5, Seq: 7,
				Owned: map[string][]int32{"orders": {0, 2}},
			},
			resp: &syncGroupResponse{
				Assignment: map[string][]int32{"orders": {0}, "payments.v2": {1}}, Generation: 6, Pending: true,
				Grants: []partitionGrant{
					{Topic: "orders", Partition: 0, Epoch: 31, Offset: 17, Metadata: "lô hàng 7"},
					{Topic: "payments.v2", Partition: 1, Epoch: 34, Offset: -1, Appeared: true},
				},
				Missing: []string{"refunds"},
			},
		},
		{
			name: "sync-group-compute", kind: requestSyncGroup,
			resp: &syncGroupResponse{
				Assignment: map[string][]int32{"orders": {0, 1}}, Generation: 8, Pending: true,
				Grants: []partitionGrant{
					{Topic: "orders", Partition: 0, Epoch: 31, Offset: 17},
					{Topic: "orders", Partition: 1, Epoch: 33, Offset: 1048577},
				},
				Compute: &computeRequest{
					Generation: 8,
					Members: []computeMember{
						{
							MemberID: member, InstanceID: "worker-1", ClientID: "billing-worker-1", Host: "worker-1.example.com",
							Topics: []string{"orders"}, Assigned: map[string][]int32{"orders": {0, 1}},
						},
						{MemberID: second, ClientID: "billing-worker-2", Host: "worker-2.example.com", Topics: []string{"orders"}},
					},
					Partitions: map[string]int32{"orders": 2},
				},
			},
		},
		{
			name: "sync-group-target", kind: requestSyncGroup,
			req: &syncGroupRequest{
				GroupID: group, MemberID: member, Generation: 8, Seq: 9,
				Owned: map[string][]int32{"orders": {0, 1}},
				Target: &computedTarget{Generation: 8, Assignment: map[string]map[string][]int32{
					member: {"orders": {0}}, second: {"orders": {1}},
				}},
			},
			resp: &syncGroupResponse{
				Assignment: map[string][]int32{"orders": {0}}, Generation: 8,
				Grants: []partitionGrant{{Topic: "orders", Partition: 0, Epoch: 31, Offset: 17}},
			},
		},
		{
			name: "sync-group-no-target", kind: requestSyncGroup,
			req: &syncGroupRequest{
				GroupID: group, MemberID: member, Generation: 8, Seq: 9,
				Owned:  map[string][]int32{"orders": {0, 1}},
				Target: &computedTarget{Generation: 8, Error: "no member is in region eu-2"},
			},
		},
		{
			name: "commit-offset-of-member", kind: requestCommitOffset,
			req: &commitOffsetRequest{
				GroupID: group, Topic: "orders", Partition: 0, Offset: 18,
				MemberID: member, Generation: 6, Epoch: 31,
			},
			resp: &commitOffsetResponse{},
		},
		{
			name: "commit-offset-of-many", kind: requestCommitOffset,
			req: &commitOffsetRequest{
				GroupID: group, MemberID: member, Generation: 6,
				Offsets: []offsetToStore{
					{Topic: "orders", Partition: 0, Offset: 18, Epoch: 31},
					{Topic: "orders", Partition: 2, Offset: 1048578, Metadata: "lô hàng 8", Epoch: 29},
				},
			},
		},
		{
			name: "sync-group-of-known-topic", kind: requestSyncGroup,
			resp: &syncGroupResponse{
				Assignment: map[string][]int32{"orders": {0}}, Generation: 9,
				Grants: []partitionGrant{{Topic: "orders", Partition: 0, Epoch: 31, Offset: 17, TopicID: ordersID}},
			},
		},
		{
			name: "commit-offset-of-known-log", kind: requestCommitOffset,
			req: &commitOffsetRequest{
				GroupID: group, MemberID: member, Generation: 9,
				Offsets: []offsetToStore{{Topic: "orders", Partition: 0, Offset: 19, Epoch: 31, TopicID: ordersID, LastEpoch: 7}},
			},
		},
		{
			name: "heartbeat-held", kind: requestHeartbeat,
			req:  &heartbeatRequest{GroupID: group, MemberID: member, Generation: 6, MaxWaitMs: 3000},
			resp: &heartbeatResponse{Generation: 6},
		},
	}
}

func goldenCluster() []goldenExchange {
	return []goldenExchange{
		{
			name: "cluster-info", kind: requestClusterInfo,
			req: &clusterInfoRequest{},
			resp: &clusterInfoResponse{
				ClusterID: "robust-7d1f", NodeID: "node-1",
				Nodes:    []nodeInfo{{ID: "node-1", Addr: "queue-1.example.com:8686"}, {ID: "node-2", Addr: "[2001:db8::2]:8686"}},
				Protocol: "v1",
				Features: []string{featureLongPoll, featureListOffsets, featureAlterTopic, featureDeleteRecords},
				Limits:   &wireLimits{MaxFrameBytes: 16 << 20},
			},
		},
		{
			name: "cluster-info-published-fields", kind: requestClusterInfo,
			resp: &clusterInfoResponse{
				ClusterID: "robust-cluster",
				Nodes:     []nodeInfo{{ID: "node-1", Addr: "localhost:8686"}},
			},
		},
		{
			name: "cluster-info-with-groups", kind: requestClusterInfo,
			resp: &clusterInfoResponse{
				ClusterID: "robust-7d1f", NodeID: "node-1",
				Nodes:    []nodeInfo{{ID: "node-1", Addr: "queue-1.example.com:8686"}, {ID: "node-2", Addr: "[2001:db8::2]:8686"}},
				Protocol: "v1",
				Features: []string{featureLongPoll, featureListOffsets, featureAlterTopic, featureDeleteRecords, featureGroups},
				Limits:   &wireLimits{MaxFrameBytes: 16 << 20},
			},
		},
		{
			name: "cluster-info-with-acks", kind: requestClusterInfo,
			resp: &clusterInfoResponse{
				ClusterID: "robust-7d1f", NodeID: "node-1",
				Nodes:    []nodeInfo{{ID: "node-1", Addr: "queue-1.example.com:8686"}, {ID: "node-2", Addr: "[2001:db8::2]:8686"}},
				Protocol: "v1",
				Features: []string{featureLongPoll, featureListOffsets, featureAlterTopic, featureDeleteRecords, featureGroups, featureAcks},
				Limits:   &wireLimits{MaxFrameBytes: 16 << 20},
			},
		},
		{
			name: "node-join", kind: requestNodeJoin,
			req:  &nodeJoinRequest{NodeID: "node-2", Addr: "[2001:db8::2]:8686"},
			resp: &nodeJoinResponse{},
		},
		{
			name: "node-leave", kind: requestNodeLeave,
			req:  &nodeLeaveRequest{NodeID: "node-2"},
			resp: &nodeLeaveResponse{},
		},
	}
}

func goldenRefusals() []goldenExchange {
	refuse := func(name string, kind requestType, resp response, err error) goldenExchange {
		if resp != nil {
			resp.setRefusal(trimPrefix(err))
		}
		return goldenExchange{name: name, kind: kind, resp: resp, refusal: err}
	}
	return []goldenExchange{
		refuse("refused-topic-not-found", requestProduce, &produceResponse{Topic: "ordres", Partition: -1, Offset: -1},
			fmt.Errorf("%w: ordres", ErrTopicNotFound)),
		refuse("refused-offset-out-of-range", requestFetch, &fetchResponse{
			Topic: "orders", Partition: 2, Messages: []*Message{}, HighWaterMark: 1048578, LogStartOffset: 1040000,
		}, fmt.Errorf("%w: 7 is below 1040000", ErrOffsetOutOfRange)),
		refuse("refused-topic-exists", requestCreateTopic, &createTopicResponse{Name: "orders"},
			fmt.Errorf("%w: orders", ErrTopicExists)),
		refuse("refused-invalid-config", requestCreateTopic, &createTopicResponse{Name: "orders"},
			fmt.Errorf(`%w: retention.hours is "<sieben>"`, ErrInvalidConfig)),
		refuse("refused-overloaded", requestProduce, &produceResponse{Topic: "orders", Partition: 2, Offset: -1},
			fmt.Errorf("%w: 4096 requests are waiting", ErrOverloaded)),
		refuse("refused-fenced", requestCommitOffset, &commitOffsetResponse{Fenced: []topicPartition{{Topic: "orders", Partition: 2}}},
			fmt.Errorf("%w: billing-worker-1-5f2b does not read orders/2 in epoch 29", ErrFenced)),
		refuse("refused-unknown-member", requestHeartbeat, &heartbeatResponse{},
			fmt.Errorf(`%w: billing has no member "billing-worker-1-5f2b"`, ErrUnknownMember)),
		refuse("refused-group-not-empty", requestDeleteGroup, &deleteGroupResponse{},
			fmt.Errorf("%w: billing has 2", ErrGroupNotEmpty)),
		refuse("refused-internal", requestListTopics, nil, errors.New("disk: input/output error")),
		refuse("refused-unsupported", requestUnknown, nil, fmt.Errorf("%w: unknown request type 77", ErrUnsupported)),
		refuse("refused-malformed", requestUnknown, nil, fmt.Errorf("%w: request: unexpected end of JSON input", ErrMalformed)),
	}
}

// number is what the request is called in a form, ok whether it is there at all.
func (g *goldenExchange) number(form Protocol) (n int, ok bool) {
	switch {
	case form != ProtocolV0:
		return int(g.kind), true
	case g.kind >= 100:
		return 0, false // An extension, for which nobody needs v0.
	case g.kind == requestUnknown:
		return int(g.kind), true
	default:
		return g.kind.v0Number()
	}
}

// id is the frame's request ID.
func (g *goldenExchange) id(form Protocol) string {
	if g.kind == requestUnknown {
		return "" // What cannot be read has no ID either.
	}
	n, _ := g.number(form)
	return fmt.Sprintf("7b0a9c52-4f1e-4d8a-b3c6-%012x", n+1)
}

// file is where the frame is.
func (g *goldenExchange) file(form Protocol, direction string) string {
	n, _ := g.number(form)
	name := fmt.Sprintf("%02d-%s.%s.json", n, g.name, direction)
	if g.kind == requestUnknown {
		name = fmt.Sprintf("%s.%s.json", g.name, direction)
	}
	return filepath.Join(wireDir, form.String(), name)
}

// TestGoldenFrames: what we write is what the files say, and what they say is what
// we read, in both directions and both forms.
func TestGoldenFrames(t *testing.T) {
	golden := func(t *testing.T, file string, written []byte) []byte {
		if *updateWire {
			addFile(t, file, written)
		}
		frame, err := os.ReadFile(file)
		require.NoError(t, err, "write it with: go test -run TestGoldenFrames -update-wire .")
		require.Equal(t, string(frame), string(written))
		return frame
	}
	helloFile := filepath.Join(wireDir, "hello.request.json")
	named := map[string]bool{helloFile: true}
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		for _, g := range goldenExchanges(t) {
			if _, ok := g.number(form); !ok {
				continue
			}
			id := g.id(form)
			if g.req != nil {
				named[g.file(form, "request")] = true
				t.Run(form.String()+"/"+g.name+"/request", func(t *testing.T) {
					require.Equal(t, g.kind, g.req.kind())
					written, err := appendRequest(nil, form, id, g.kind, g.req)
					if g.reqBody != nil {
						written, err = appendBodyRequest(nil, id, g.kind, len(g.reqBody), g.req)
						named[bodyFile(g.file(form, "request"))] = true
						goldenBody(t, golden, g.file(form, "request"), g.reqBody)
					}
					require.NoError(t, err)
					frame := golden(t, g.file(form, "request"), written)
					checkGoldenRequest(t, frame, form, &g)
				})
			}
			if g.resp != nil || g.refusal != nil {
				named[g.file(form, "response")] = true
				t.Run(form.String()+"/"+g.name+"/response", func(t *testing.T) {
					var payload any
					if g.resp != nil {
						payload = g.resp
					}
					written, err := appendResponse(nil, form, id, payload, g.refusal)
					if g.respBody != nil {
						written, err = appendBodyResponse(nil, id, len(g.respBody), payload)
						named[bodyFile(g.file(form, "response"))] = true
						goldenBody(t, golden, g.file(form, "response"), g.respBody)
					}
					require.NoError(t, err)
					frame := golden(t, g.file(form, "response"), written)
					checkGoldenResponse(t, frame, form, &g)
				})
			}
		}
	}
	t.Run("hello", func(t *testing.T) {
		const id = "7b0a9c52-4f1e-4d8a-b3c6-000000000001"
		frame := golden(t, helloFile, appendHello(nil, id))
		var r wireRequest
		require.NoError(t, r.decode(frame))
		require.Equal(t, id, string(r.id))
		require.Equal(t, requestClusterInfo, r.kind)
		require.Empty(t, r.payload)
		require.Equal(t, ProtocolV1, r.form)
		require.False(t, r.lockStep)

		var v0 struct{ Type int }
		require.NoError(t, json.Unmarshal(frame, &v0))
		require.Equal(t, requestClusterInfo, fromV0Number(v0.Type))
	})
	for _, file := range wireFiles(t) {
		assert.True(t, named[file] || filepath.ToSlash(filepath.Dir(file)) == peersDir, "no test names %s", file)
	}
}

func TestGoldenFramesAreComplete(t *testing.T) {
	requests, responses := make(map[requestType]bool), make(map[requestType]bool)
	for _, g := range goldenExchanges(t) {
		requests[g.kind] = requests[g.kind] || g.req != nil
		responses[g.kind] = responses[g.kind] || g.resp != nil && g.refusal == nil
	}
	kinds := []requestType{
		requestProduceBatch, requestFetchBatch, requestInitProducer,
		requestListOffsets, requestAlterTopic, requestDeleteRecords,
		requestDescribeGroup, requestDeleteGroup, requestResetOffsets,
	}
	for kind := requestProduce; kind <= requestHeartbeat; kind++ {
		kinds = append(kinds, kind)
	}
	for _, kind := range kinds {
		require.True(t, requests[kind], "no request of %s", kind)
		require.True(t, responses[kind], "no response of %s", kind)
	}
}

func TestGoldenFramesAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "v1", "frame.json")
	addFile(t, file, []byte("as it was sent"))
	addFile(t, file, []byte("as it would be sent today"))
	kept, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "as it was sent", string(kept))
}

// addFile writes a golden frame that is not there yet. One that is there stays as
// it is, whatever we would write today.
func addFile(t *testing.T, file string, frame []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	require.NoError(t, err)
	_, err = f.Write(frame)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// wireFiles returns every file under wireDir.
func wireFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	require.NoError(t, filepath.WalkDir(wireDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	}))
	require.NotEmpty(t, files)
	return files
}

func checkGoldenRequest(t *testing.T, frame []byte, form Protocol, g *goldenExchange) {
	t.Helper()
	require.Equal(t, 1, bytes.Count(frame, []byte("\n")), "a frame is one line")
	number, _ := g.number(form)

	var r wireRequest
	require.NoError(t, r.decode(frame))
	require.Equal(t, g.id(form), string(r.id))
	require.Equal(t, g.kind, r.kind)
	require.Equal(t, number, r.number)
	require.Equal(t, form, r.form)
	require.Equal(t, form == ProtocolV0, r.lockStep)
	require.Equal(t, bodySize(g.reqBody), r.body)
	got := blank(g.req)
	require.NoError(t, decodePayload(r.payload, got))
	require.Equal(t, g.req, got)

	// A peer that has nothing but encoding/json and the published envelope.
	got = blank(g.req)
	dec := json.NewDecoder(bytes.NewReader(frame))
	dec.DisallowUnknownFields()
	if form == ProtocolV0 {
		var env struct {
			Type      int    `json:"type"`
			RequestID string `json:"request_id"`
			Payload   []byte `json:"payload"`
		}
		require.NoError(t, dec.Decode(&env))
		require.Equal(t, number, env.Type)
		require.NoError(t, json.Unmarshal(env.Payload, got))
	} else {
		var env struct {
			RequestID   string          `json:"request_id"`
			RequestType int             `json:"request_type"`
			Body        int             `json:"body"`
			Payload     json.RawMessage `json:"payload"`
		}
		require.NoError(t, dec.Decode(&env))
		require.Equal(t, number, env.RequestType)
		require.NoError(t, json.Unmarshal(env.Payload, got))
	}
	require.Equal(t, g.req, got)
}

func checkGoldenResponse(t *testing.T, frame []byte, form Protocol, g *goldenExchange) {
	t.Helper()
	require.Equal(t, 1, bytes.Count(frame, []byte("\n")), "a frame is one line")

	var r wireResponse
	require.NoError(t, r.decode(frame))
	require.Equal(t, g.id(form), string(r.id))
	require.Equal(t, form, r.form)
	require.Equal(t, g.refusal == nil, r.success)
	require.Equal(t, bodySize(g.respBody), r.body)
	if g.refusal == nil {
		require.Empty(t, r.errText)
		require.Empty(t, r.errCode)
		require.False(t, r.retriable)
	} else {
		require.Equal(t, trimPrefix(g.refusal), r.errText)
		require.Equal(t, codeOf(g.refusal), r.errCode)
		require.Equal(t, refusalMayPass(g.refusal), r.retriable)
	}
	if g.resp == nil {
		require.Equal(t, "{}", string(r.payload))
		return
	}
	got := blank(g.resp)
	require.NoError(t, decodePayload(r.payload, got))
	require.Equal(t, g.resp, got)

	got = blank(g.resp)
	if form == ProtocolV0 {
		var env struct {
			RequestID string `json:"request_id"`
			Success   bool   `json:"success"`
			Error     string `json:"error"`
			Payload   []byte `json:"payload"`
		}
		require.NoError(t, json.Unmarshal(frame, &env))
		require.Equal(t, r.errText, env.Error)
		require.NoError(t, json.Unmarshal(env.Payload, got))
	} else {
		var env struct{ Payload json.RawMessage }
		require.NoError(t, json.Unmarshal(frame, &env))
		require.NoError(t, json.Unmarshal(env.Payload, got))
	}
	require.Equal(t, g.resp, got)
}

// blank returns what a payload of like's type is decoded into.
func blank[T any](like T) T {
	if _, ok := any(like).(*fetchResponse); ok {
		return any(newFetchResponse()).(T)
	}
	return reflect.New(reflect.TypeOf(like).Elem()).Interface().(T)
}
