package robust

import (
	"context"
	"fmt"
	"time"
)

// GroupInfo is a consumer group as ListGroups shows it.
type GroupInfo struct {
	ID         string
	State      string
	Generation int64
	Members    []string
}

// ListGroups returns the cluster's consumer groups.
func (a *AdminClient) ListGroups(ctx context.Context) ([]GroupInfo, error) {
	var resp listGroupsResponse
	if err := a.client.ask(ctx, route{repeatable: true}, &listGroupsRequest{}, &resp); err != nil {
		return nil, err
	}
	groups := make([]GroupInfo, 0, len(resp.Groups))
	for _, g := range resp.Groups {
		groups = append(groups, GroupInfo{ID: g.GroupID, State: g.State, Generation: g.Generation, Members: g.Members})
	}
	return groups, nil
}

// Rebalance has a consumer group assign its partitions anew, or every group if
// groupID is empty; [ErrGroupNotFound].
func (a *AdminClient) Rebalance(ctx context.Context, groupID string) error {
	return a.client.ask(ctx, route{repeatable: true}, &rebalanceRequest{GroupID: groupID}, &rebalanceResponse{})
}

// GroupDescription is everything about a consumer group.
type GroupDescription struct {
	ID         string
	State      string // Empty, Stable or Rebalancing
	Generation int64
	Assignor   string // in effect; "" without members
	Members    []GroupMember
	Offsets    []GroupOffset // of every partition that is assigned or has a committed offset, in order
}

// GroupMember is a member of a group.
type GroupMember struct {
	ID         string
	InstanceID string // "" unless the member is static
	ClientID   string
	Host       string
	Topics     []string           // as subscribed to
	Assignment map[string][]int32 // what it reads, by topic
	Pending    map[string][]int32 // what it will read when others have given it up
}

// GroupOffset is how far a group has come in one partition.
type GroupOffset struct {
	Topic         string
	Partition     int32
	Committed     int64 // the next offset to be read; -1: nothing is committed
	Metadata      string
	MemberID      string // who reads it; "": nobody
	Epoch         int64  // of that member's grant, see [Claim.Epoch]
	LogStart      int64  // offset of the oldest retained message
	HighWaterMark int64
	// Lag is how many messages lie between Committed, or LogStart if nothing is
	// committed, and HighWaterMark.
	Lag int64
}

// Lag returns the sum of the partitions' lags.
func (d *GroupDescription) Lag() int64 {
	var sum int64
	for _, o := range d.Offsets {
		sum += o.Lag
	}
	return sum
}

// DescribeGroup describes a group; [ErrGroupNotFound].
func (a *AdminClient) DescribeGroup(ctx context.Context, groupID string) (*GroupDescription, error) {
	var resp describeGroupResponse
	r := route{repeatable: true, feature: featureGroups}
	if err := a.client.ask(ctx, r, &describeGroupRequest{GroupID: groupID}, &resp); err != nil {
		return nil, err
	}
	d := &GroupDescription{ID: resp.GroupID, State: resp.State, Generation: resp.Generation, Assignor: resp.Assignor}
	for _, m := range resp.Members {
		d.Members = append(d.Members, GroupMember{
			ID: m.MemberID, InstanceID: m.InstanceID, ClientID: m.ClientID, Host: m.Host,
			Topics: m.Topics, Assignment: m.Assignment, Pending: m.Pending,
		})
	}
	for _, o := range resp.Offsets {
		d.Offsets = append(d.Offsets, GroupOffset{
			Topic: o.Topic, Partition: o.Partition, Committed: o.Offset, Metadata: o.Metadata,
			MemberID: o.MemberID, Epoch: o.Epoch, LogStart: o.LogStartOffset, HighWaterMark: o.HighWaterMark,
			Lag: max(0, o.HighWaterMark-max(o.Offset, o.LogStartOffset, 0)),
		})
	}
	return d, nil
}

// DeleteGroup removes a group that has no members, with its committed offsets;
// [ErrGroupNotFound], [ErrGroupNotEmpty].
func (a *AdminClient) DeleteGroup(ctx context.Context, groupID string) error {
	return a.client.ask(ctx, route{feature: featureGroups}, &deleteGroupRequest{GroupID: groupID}, &deleteGroupResponse{})
}

// ResetTo is where [AdminClient.ResetOffsets] moves a group to.
type ResetTo struct {
	offset int64
	time   time.Time
}

// ToOffset is an offset, [OffsetOldest] or [OffsetNewest].
func ToOffset(offset int64) ResetTo { return ResetTo{offset: offset} }

// ToTime is the first message whose timestamp is t or later, or the high-water mark
// where there is none.
func ToTime(t time.Time) ResetTo { return ResetTo{offset: OffsetOldest, time: t} }

// ResetOffsets moves what a group without members has committed for a topic, in the
// partitions given, or in all, and returns where to. The errors are
// [ErrGroupNotFound], [ErrGroupNotEmpty], [ErrTopicNotFound], [ErrPartitionNotFound]
// and [ErrOffsetOutOfRange]; nothing is moved then.
func (a *AdminClient) ResetOffsets(ctx context.Context, groupID, topic string, to ResetTo, partitions ...int32) (map[int32]int64, error) {
	if to.offset < OffsetOldest {
		return nil, fmt.Errorf("%w: ToOffset(%d): want an offset, OffsetOldest or OffsetNewest", ErrOffsetOutOfRange, to.offset)
	}
	req := &resetOffsetsRequest{GroupID: groupID, Topic: topic, Partitions: partitions, Offset: to.offset}
	if !to.time.IsZero() {
		req.Timestamp = max(0, wireTime(to.time))
	}
	var resp resetOffsetsResponse
	if err := a.client.ask(ctx, route{repeatable: true, feature: featureGroups}, req, &resp); err != nil {
		return nil, err
	}
	offsets := make(map[int32]int64, len(resp.Offsets))
	for _, o := range resp.Offsets {
		offsets[o.Partition] = o.Offset
	}
	return offsets, nil
}
