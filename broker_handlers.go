package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
)

// maxNodes is how many nodes may be recorded by NodeJoin.
const maxNodes = 1000

// features are what this broker announces.
func features() []string {
	return []string{featureLongPoll, featureListOffsets, featureAlterTopic, featureDeleteRecords, featureGroups, featureAcks, featureBinary, featureIdempotence}
}

// service answers the requests of every connection.
type service struct {
	cfg       *brokerConfig
	clusterID string
	topics    *topicSet
	groups    *coordinator
	warn      *warner
	metrics   *brokerMetrics
	drained   chan struct{} // closed when the broker begins to end
	bodies    sync.Pool     // of *[]byte, for what comes behind requests
	gathers   sync.Pool     // of *gathered
	writes    sync.Pool     // of *[]byte, for answers; see frameWriter.large

	mu    sync.Mutex        // guards the following
	nodes map[string]string // what NodeJoin recorded: address by ID
}

// draining tells that the broker takes no more requests.
func (s *service) draining() bool {
	select {
	case <-s.drained:
		return true
	default:
		return false
	}
}

// partition looks a partition up.
func (s *service) partition(name string, id int32) (*topic, *partition, error) {
	t, err := s.topics.get(name)
	if err != nil {
		return nil, nil, err
	}
	p, err := t.partition(id)
	return t, p, err
}

// plainResponse is for answers that have nothing to say, and for refusals of
// requests that could not be read.
type plainResponse struct{ answer }

// decodeAnd decodes a request and has f answer it.
func decodeAnd[R any](ctx context.Context, payload []byte, f func(context.Context, *R) (response, error)) (response, error) {
	req := new(R)
	if err := decodePayload(payload, req); err != nil {
		return &plainResponse{}, err
	}
	return f(ctx, req)
}

// answer answers every request but Produce and Fetch, which the connection hands to
// produce and fetch, and those about groups, which it hands to groupRequest. The response is never nil. host is where the connection that
// asks was accepted.
func (s *service) answer(ctx context.Context, kind requestType, number int, payload []byte, host string) (response, error) {
	switch kind {
	case requestCreateTopic:
		return decodeAnd(ctx, payload, s.createTopic)
	case requestDeleteTopic:
		return decodeAnd(ctx, payload, s.deleteTopic)
	case requestListTopics:
		return decodeAnd(ctx, payload, s.listTopics)
	case requestMetadata:
		return decodeAnd(ctx, payload, s.topicMetadata)
	case requestClusterInfo:
		return decodeAnd(ctx, payload, func(_ context.Context, _ *clusterInfoRequest) (response, error) {
			return s.clusterInfo(host), nil
		})
	case requestNodeJoin:
		return decodeAnd(ctx, payload, s.nodeJoin)
	case requestNodeLeave:
		return decodeAnd(ctx, payload, s.nodeLeave)
	case requestListOffsets:
		return decodeAnd(ctx, payload, s.listOffsets)
	case requestAlterTopic:
		return decodeAnd(ctx, payload, s.alterTopic)
	case requestDeleteRecords:
		return decodeAnd(ctx, payload, s.deleteRecords)
	case requestInitProducer:
		return decodeAnd(ctx, payload, s.initProducer)
	case requestJoinGroup, requestLeaveGroup, requestSyncGroup, requestCommitOffset, requestFetchOffset, requestHeartbeat,
		requestListGroups, requestRebalance, requestDescribeGroup, requestDeleteGroup, requestResetOffsets,
		requestProduce, requestFetch, requestProduceBatch, requestFetchBatch, requestUnknown:
	}
	return &plainResponse{}, fmt.Errorf("%w: unknown request type %d", ErrUnsupported, number)
}

func (s *service) createTopic(ctx context.Context, req *createTopicRequest) (response, error) {
	return &createTopicResponse{Name: req.Name}, s.topics.create(ctx, req.Name, req.Partitions, req.Config)
}

func (s *service) deleteTopic(ctx context.Context, req *deleteTopicRequest) (response, error) {
	return &deleteTopicResponse{Name: req.Name}, s.topics.remove(ctx, req.Name)
}

func (s *service) alterTopic(ctx context.Context, req *alterTopicRequest) (response, error) {
	return &alterTopicResponse{Name: req.Name}, s.topics.alter(ctx, req.Name, req.Partitions, req.Config)
}

func (s *service) listTopics(context.Context, *listTopicsRequest) (response, error) {
	return &listTopicsResponse{Topics: append([]string{}, s.topics.names()...)}, nil
}

// topicMetadata describes the topics asked for, or all. Those that are there are in
// the answer even if another is not and the answer is a refusal.
func (s *service) topicMetadata(ctx context.Context, req *metadataRequest) (response, error) {
	resp := &metadataResponse{Topics: []topicMetadata{}}
	names := slices.Clone(req.Topics)
	slices.Sort(names)
	names = slices.Compact(names)
	all := len(names) == 0
	if all {
		names = s.topics.names()
	}
	var missing error
	for _, name := range names {
		get := func(_ context.Context, name string) (*topic, error) { return s.topics.get(name) }
		if req.AutoCreate {
			get = s.topics.getOrCreate
		}
		t, err := get(ctx, name)
		switch {
		case err == nil:
		case all && errors.Is(err, ErrTopicNotFound):
			continue // Deleted since names were listed.
		case missing == nil:
			missing = err
			continue
		default:
			continue
		}
		described := topicMetadata{Name: name, Config: maps.Clone(t.stored.Config), TopicID: t.stored.ID}
		for _, p := range t.partitions {
			described.Partitions = append(described.Partitions, partitionMetadata{
				ID: p.id, Leader: s.cfg.nodeID, Replicas: []string{s.cfg.nodeID},
			})
		}
		resp.Topics = append(resp.Topics, described)
	}
	return resp, missing
}

// clusterInfo describes the broker, and the nodes that said they joined.
func (s *service) clusterInfo(host string) *clusterInfoResponse {
	addr := s.cfg.advertisedAddr
	if addr == "" {
		addr = host
	}
	resp := &clusterInfoResponse{
		ClusterID: s.clusterID,
		Nodes:     []nodeInfo{{s.cfg.nodeID, addr}},
		NodeID:    s.cfg.nodeID,
		Protocol:  ProtocolV1.String(),
		Features:  features(),
		Limits:    &wireLimits{MaxFrameBytes: s.cfg.maxFrameBytes},
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.nodes)) {
		resp.Nodes = append(resp.Nodes, nodeInfo{id, s.nodes[id]})
	}
	return resp
}

// nodeJoin records a node. It is for those who look: it leads nothing.
func (s *service) nodeJoin(_ context.Context, req *nodeJoinRequest) (response, error) {
	resp := &nodeJoinResponse{}
	switch {
	case req.NodeID == "" || len(req.NodeID) > maxNameBytes:
		return resp, fmt.Errorf("%w: node_id %q: want 1 to %d bytes", ErrInvalidRequest, shorten(req.NodeID), maxNameBytes)
	case req.NodeID == s.cfg.nodeID:
		return resp, fmt.Errorf("%w: node_id %q is this broker's", ErrInvalidRequest, shorten(req.NodeID))
	case len(req.Addr) > maxNameBytes || !addressesValid([]string{req.Addr}):
		return resp, fmt.Errorf("%w: addr %q: want host:port", ErrInvalidRequest, shorten(req.Addr))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.nodes[req.NodeID]; !known && len(s.nodes) >= maxNodes {
		return resp, fmt.Errorf("%w: %d nodes have joined", ErrOverloaded, maxNodes)
	}
	s.nodes[req.NodeID] = req.Addr
	return resp, nil
}

func (s *service) nodeLeave(_ context.Context, req *nodeLeaveRequest) (response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.nodes[req.NodeID]; !known {
		return &nodeLeaveResponse{}, fmt.Errorf("%w: node_id %q has not joined", ErrInvalidRequest, shorten(req.NodeID))
	}
	delete(s.nodes, req.NodeID)
	return &nodeLeaveResponse{}, nil
}

// initProducer gives a producer ID that nobody else has: 63 random bits.
func (s *service) initProducer(context.Context, *initProducerRequest) (response, error) {
	return &initProducerResponse{ProducerID: 1 + rand.Int64N(math.MaxInt64)}, nil
}

func (s *service) listOffsets(ctx context.Context, req *listOffsetsRequest) (response, error) {
	resp := &listOffsetsResponse{Topic: req.Topic, Offsets: []partitionOffset{}}
	t, err := s.topics.get(req.Topic)
	if err != nil {
		return resp, err
	}
	asked := t.partitions
	if len(req.Partitions) > 0 {
		asked = nil
		for _, id := range req.Partitions[:min(len(req.Partitions), maxTopicPartitions)] {
			p, err := t.partition(id)
			if err != nil {
				return resp, err
			}
			asked = append(asked, p)
		}
	}
	for _, p := range asked {
		offset, err := p.offsetAt(ctx, req.Timestamp)
		if err != nil {
			return resp, err
		}
		resp.Offsets = append(resp.Offsets, partitionOffset{p.id, offset})
	}
	return resp, nil
}

// offsetAt looks up a time, or one of the named ends.
func (p *partition) offsetAt(ctx context.Context, timestamp int64) (int64, error) {
	start, end := p.log.Bounds()
	switch timestamp {
	case OffsetOldest:
		return start, nil
	case OffsetNewest:
		return end, nil
	default:
		return p.log.OffsetAt(ctx, timestamp)
	}
}

func (s *service) deleteRecords(ctx context.Context, req *deleteRecordsRequest) (response, error) {
	resp := &deleteRecordsResponse{Topic: req.Topic, Partition: req.Partition, LogStartOffset: -1}
	t, err := s.topics.get(req.Topic)
	if err != nil {
		return resp, err
	}
	p, err := t.partition(req.Partition)
	if err != nil {
		return resp, err
	}
	offset := req.Offset
	if offset == OffsetNewest {
		_, offset = p.log.Bounds()
	}
	if offset < 0 {
		return resp, fmt.Errorf("%w: offset %d", ErrOffsetOutOfRange, offset)
	}
	err = p.log.DeleteBefore(ctx, offset)
	resp.LogStartOffset, _ = p.log.Bounds()
	return resp, err
}
