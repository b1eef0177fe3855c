package robust

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// AdminClient manages topics and looks at the cluster. It needs no closing of its
// own and is safe for concurrent use.
//
// A request that changes something and whose answer was lost with the connection is
// not repeated: the [*ConnError] says that its fate is unknown.
type AdminClient struct {
	client *Client
}

// TopicMetadata describes a topic.
type TopicMetadata struct {
	Name       string
	Partitions []PartitionMetadata // in order of ID
	// Config is what the topic was given; nil from brokers that do not tell.
	Config map[string]string
	// ID is the topic's own: a topic that is made anew under the same Name has another,
	// and offsets of the one mean nothing in the other. "" from brokers that do not tell.
	ID string
}

// PartitionMetadata describes a partition.
type PartitionMetadata struct {
	ID     int32
	Leader string // the ID of the broker that serves it
	// Replicas are the brokers that keep it; nil from brokers that do not tell.
	Replicas []string
}

// ClusterInfo describes the cluster.
type ClusterInfo struct {
	ID      string
	Brokers []string // their addresses
	Nodes   []NodeInfo
}

// NodeInfo is one node of the cluster.
type NodeInfo struct {
	ID   string
	Addr string
}

// Admin returns the client's admin handle.
func (c *Client) Admin() *AdminClient { return &AdminClient{client: c} }

// CreateTopic creates a topic. config may be nil; the keys are retention.hours,
// retention.bytes, segment.bytes and max.message.bytes. The errors are
// [ErrTopicExists], [ErrInvalidRequest] and [ErrInvalidConfig], which names the key.
func (a *AdminClient) CreateTopic(ctx context.Context, name string, partitions int32, config map[string]string) error {
	if err := checkTopicName(name); err != nil {
		return err
	}
	req := &createTopicRequest{Name: name, Partitions: partitions, Config: config}
	return a.client.ask(ctx, route{}, req, &createTopicResponse{})
}

// DeleteTopic deletes a topic with all of its messages; [ErrTopicNotFound].
func (a *AdminClient) DeleteTopic(ctx context.Context, name string) error {
	err := a.client.ask(ctx, route{}, &deleteTopicRequest{Name: name}, &deleteTopicResponse{})
	a.client.metadata.forget(name)
	return err
}

// ListTopics returns the names of all topics in order.
func (a *AdminClient) ListTopics(ctx context.Context) ([]string, error) {
	var resp listTopicsResponse
	if err := a.client.ask(ctx, route{repeatable: true}, &listTopicsRequest{}, &resp); err != nil {
		return nil, err
	}
	slices.Sort(resp.Topics)
	return resp.Topics, nil
}

// GetMetadata describes the topics of these names, or all of them if there are none.
// If one is not there the error is [ErrTopicNotFound] and names it, and those that
// are there are returned beside it.
func (a *AdminClient) GetMetadata(ctx context.Context, topics []string) ([]TopicMetadata, error) {
	var resp metadataResponse
	err := a.client.ask(ctx, route{repeatable: true}, &metadataRequest{Topics: topics}, &resp)
	described := make([]TopicMetadata, 0, len(resp.Topics))
	for _, t := range resp.Topics {
		d := TopicMetadata{Name: t.Name, Config: t.Config, ID: t.TopicID}
		for _, p := range t.Partitions {
			d.Partitions = append(d.Partitions, PartitionMetadata(p))
		}
		slices.SortFunc(d.Partitions, func(a, b PartitionMetadata) int { return int(a.ID) - int(b.ID) })
		described = append(described, d)
	}
	if err == nil {
		// Some brokers leave out what they do not have.
		for _, name := range topics {
			if !slices.ContainsFunc(described, func(d TopicMetadata) bool { return d.Name == name }) {
				return described, fmt.Errorf("%w: %s", ErrTopicNotFound, shorten(name))
			}
		}
	}
	return described, err
}

// CreatePartitions grows a topic to so many partitions. Keys may go to other
// partitions from then on. Fewer than there are is [ErrInvalidRequest].
func (a *AdminClient) CreatePartitions(ctx context.Context, topic string, partitions int32) error {
	if partitions <= 0 {
		return fmt.Errorf("%w: CreatePartitions(%d): want more than 0", ErrInvalidRequest, partitions)
	}
	return a.alter(ctx, &alterTopicRequest{Name: topic, Partitions: partitions})
}

// AlterTopicConfig changes the named keys of a topic's configuration and leaves the
// others; an empty value puts a key back to the broker's default.
func (a *AdminClient) AlterTopicConfig(ctx context.Context, topic string, config map[string]string) error {
	return a.alter(ctx, &alterTopicRequest{Name: topic, Config: config})
}

// alter may be repeated: it says how the topic is to be, not how to change it.
func (a *AdminClient) alter(ctx context.Context, req *alterTopicRequest) error {
	r := route{repeatable: true, feature: featureAlterTopic}
	err := a.client.ask(ctx, r, req, &alterTopicResponse{})
	a.client.metadata.forget(req.Name)
	return err
}

// DeleteRecords removes the messages of a partition below an offset, all of them for
// [OffsetNewest], and returns the offset of the oldest that is left.
func (a *AdminClient) DeleteRecords(ctx context.Context, topic string, partition int32, before int64) (oldest int64, err error) {
	r := route{topic: topic, partition: partition, repeatable: true, feature: featureDeleteRecords}
	var resp deleteRecordsResponse
	err = a.client.ask(ctx, r, &deleteRecordsRequest{Topic: topic, Partition: partition, Offset: before}, &resp)
	if err != nil {
		return offsetNone, err
	}
	return resp.LogStartOffset, nil
}

// ListOffsets returns, for each partition of a topic, the offset of the first message
// whose timestamp is at or later, and the high-water mark where there is none. The
// zero Time gives the oldest retained offsets, a time in the future the high-water
// marks.
func (a *AdminClient) ListOffsets(ctx context.Context, topic string, at time.Time) (map[int32]int64, error) {
	return a.client.listOffsets(ctx, topic, nil, wireTime(at))
}

// ClusterInfo describes the cluster.
func (a *AdminClient) ClusterInfo(ctx context.Context) (*ClusterInfo, error) {
	var resp clusterInfoResponse
	if err := a.client.ask(ctx, route{repeatable: true}, &clusterInfoRequest{}, &resp); err != nil {
		return nil, err
	}
	info := &ClusterInfo{ID: resp.ClusterID}
	for _, n := range resp.Nodes {
		info.Brokers = append(info.Brokers, n.Addr)
		info.Nodes = append(info.Nodes, NodeInfo(n))
	}
	return info, nil
}

// NodeJoin records a node in the cluster's description. The embedded broker gives it
// nothing to lead.
func (a *AdminClient) NodeJoin(ctx context.Context, id, addr string) error {
	return a.client.ask(ctx, route{repeatable: true}, &nodeJoinRequest{NodeID: id, Addr: addr}, &nodeJoinResponse{})
}

// NodeLeave takes out what NodeJoin has recorded.
func (a *AdminClient) NodeLeave(ctx context.Context, id string) error {
	return a.client.ask(ctx, route{}, &nodeLeaveRequest{NodeID: id}, &nodeLeaveResponse{})
}

// Close does nothing: the handle owns nothing. It is here because the specification
// has it.
func (a *AdminClient) Close() error { return nil }
