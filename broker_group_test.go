package robust

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// joinRaw joins as a member that says what it owns, and waits for the first assignment.
func joinRaw(t testing.TB, b *Broker, id, instance string) {
	t.Helper()
	req := &joinGroupRequest{GroupID: "g", MemberID: id, InstanceID: instance, Topics: []string{faultTopic}, SessionTimeoutMs: 30_000, RebalanceTimeoutMs: 10_000}
	var resp joinGroupResponse
	require.NoError(t, rawCall(t, b, ProtocolV1, req, &resp))
	require.Equal(t, id, resp.MemberID)
}

// syncRaw syncs and returns the grants by partition.
func syncRaw(t testing.TB, b *Broker, id string, seq int64, owned ...int32) (map[int32]int64, *syncGroupResponse) {
	t.Helper()
	resp := new(syncGroupResponse)
	req := &syncGroupRequest{GroupID: "g", MemberID: id, Seq: seq, Owned: map[string][]int32{faultTopic: owned}}
	require.NoError(t, rawCall(t, b, ProtocolV1, req, resp))
	epochs := make(map[int32]int64)
	for _, g := range resp.Grants {
		epochs[g.Partition] = g.Epoch
	}
	return epochs, resp
}

func commitRaw(t testing.TB, b *Broker, id string, partition int32, offset, epoch int64) error {
	t.Helper()
	req := &commitOffsetRequest{GroupID: "g", MemberID: id, Topic: faultTopic, Partition: partition, Offset: offset, Epoch: epoch}
	return rawCall(t, b, ProtocolV1, req, &commitOffsetResponse{})
}

// A partition that went from one member to another and back is not the one it was: what
// the first time commits late is refused, and a sync that comes late frees nothing.
func TestGroupGrantsAreFenced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		storeIn(t, b, 0, 10)
		storeIn(t, b, 1, 10)
		joinRaw(t, b, "a", "")
		after(gatherTime)
		first, _ := syncRaw(t, b, "a", 1)
		require.Len(t, first, 2)
		joinRaw(t, b, "b", "")
		_, resp := syncRaw(t, b, "b", 1)
		require.True(t, resp.Pending)
		require.Empty(t, resp.Grants)
		stay, _ := syncRaw(t, b, "a", 2, 0, 1)
		require.Len(t, stay, 1)
		for p, epoch := range stay {
			require.Equal(t, first[p], epoch, "what stays keeps its epoch")
		}
		var kept, moved int32
		for p := range stay {
			kept, moved = p, 1-p
		}
		require.NoError(t, commitRaw(t, b, "a", moved, 5, first[moved]), "until it is given up")
		syncRaw(t, b, "a", 3, kept)
		granted, _ := syncRaw(t, b, "b", 2)
		require.Greater(t, granted[moved], first[moved])
		require.ErrorIs(t, commitRaw(t, b, "a", moved, 6, first[moved]), ErrFenced)
		require.NoError(t, commitRaw(t, b, "b", moved, 7, granted[moved]))
		require.NoError(t, commitRaw(t, b, "b", moved, 6, granted[moved]), "behind is no error")
		require.Equal(t, int64(7), committed(b, moved), "and changes nothing")

		require.NoError(t, rawCall(t, b, ProtocolV1, &leaveGroupRequest{GroupID: "g", MemberID: "b"}, &leaveGroupResponse{}))
		back, _ := syncRaw(t, b, "a", 4, kept)
		require.Greater(t, back[moved], granted[moved])
		require.ErrorIs(t, commitRaw(t, b, "a", moved, 9, first[moved]), ErrFenced, "its own epoch of before")
		require.NoError(t, commitRaw(t, b, "a", moved, 8, back[moved]))

		late, _ := syncRaw(t, b, "a", 3, kept)
		require.Equal(t, back, late)
		require.NoError(t, commitRaw(t, b, "a", moved, 9, back[moved]), "the late sync has freed nothing")
		require.ErrorIs(t, commitRaw(t, b, "x", moved, 9, back[moved]), ErrUnknownMember)
	})
}

// A heartbeat is held until there is something to do, and a member whose heartbeat is
// held is alive.
func TestHeartbeatIsHeld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		joinRaw(t, b, "a", "")
		after(gatherTime)
		syncRaw(t, b, "a", 1)
		beat := func(id string, wait time.Duration) (*heartbeatResponse, time.Duration, error) {
			began := time.Now()
			var resp heartbeatResponse
			err := rawCall(t, b, ProtocolV1, &heartbeatRequest{GroupID: "g", MemberID: id, MaxWaitMs: wait.Milliseconds()}, &resp)
			return &resp, time.Since(began), err
		}
		resp, took, err := beat("a", 3*time.Second)
		require.NoError(t, err)
		require.False(t, resp.Rebalance)
		require.Equal(t, 3*time.Second, took)
		_, took, err = beat("a", time.Hour)
		require.NoError(t, err)
		require.Equal(t, 15*time.Second, took, "half the session timeout at most")

		time.AfterFunc(time.Second, func() { joinRaw(t, b, "b", "") })
		resp, took, err = beat("a", 10*time.Second)
		require.NoError(t, err)
		require.True(t, resp.Rebalance)
		require.Equal(t, time.Second, took)
		_, took, _ = beat("a", 10*time.Second)
		require.Zero(t, took, "until it has synced")

		time.AfterFunc(time.Second, func() { joinRaw(t, b, "c", "i") })
		syncRaw(t, b, "a", 2)
		_, _, err = beat("nobody", time.Second)
		require.ErrorIs(t, err, ErrUnknownMember)
		after(time.Second)
		syncRaw(t, b, "c", 1)
		time.AfterFunc(time.Second, func() { joinRaw(t, b, "d", "i") })
		_, took, err = beat("c", 10*time.Second)
		require.ErrorIs(t, err, ErrFenced)
		require.Equal(t, time.Second, took)

		// The broker's end answers what is held.
		syncRaw(t, b, "a", 3)
		time.AfterFunc(time.Second, func() { _ = b.Shutdown(t.Context()) })
		_, took, err = beat("a", 10*time.Second)
		require.NoError(t, err)
		require.Equal(t, time.Second, took)
	})
}

// What a member says of itself has bounds, and what is out of them is named.
func TestGroupRequestLimits(t *testing.T) {
	b := faultBroker(t, 2)
	long := strings.Repeat("x", 250)
	join := func(change func(*joinGroupRequest)) request {
		req := &joinGroupRequest{GroupID: "g", Topics: []string{faultTopic}}
		change(req)
		return req
	}
	commit := func(change func(*commitOffsetRequest)) request {
		req := &commitOffsetRequest{GroupID: "g", Topic: faultTopic}
		change(req)
		return req
	}
	for _, test := range []struct {
		req  request
		want error
		text string
	}{
		{join(func(r *joinGroupRequest) { r.GroupID = "" }), ErrInvalidRequest, "group_id"},
		{join(func(r *joinGroupRequest) { r.GroupID = long }), ErrInvalidRequest, "group_id"},
		{join(func(r *joinGroupRequest) { r.MemberID = long }), ErrInvalidRequest, "member_id"},
		{join(func(r *joinGroupRequest) { r.ClientID = long }), ErrInvalidRequest, "client_id"},
		{join(func(r *joinGroupRequest) { r.InstanceID = long }), ErrInvalidRequest, "instance_id"},
		{join(func(r *joinGroupRequest) { r.Host = long }), ErrInvalidRequest, "host"},
		{join(func(r *joinGroupRequest) { r.Assignor = long }), ErrInvalidRequest, "assignor"},
		{join(func(r *joinGroupRequest) { r.Topics = nil }), ErrInvalidRequest, "0 topics"},
		{join(func(r *joinGroupRequest) { r.Topics = []string{"a b"} }), ErrInvalidRequest, "a b"},
		{join(func(r *joinGroupRequest) { r.Topics = []string{"^("} }), ErrInvalidRequest, "^("},
		{join(func(r *joinGroupRequest) { r.SessionTimeoutMs = -1 }), ErrInvalidRequest, "session_timeout_ms -1"},
		{join(func(r *joinGroupRequest) { r.SessionTimeoutMs = 1 << 62 }), ErrInvalidRequest, "session_timeout_ms"},
		{join(func(r *joinGroupRequest) { r.RebalanceTimeoutMs = 1 << 62 }), ErrInvalidRequest, "rebalance_timeout_ms"},
		{commit(func(r *commitOffsetRequest) { r.GroupID = "" }), ErrInvalidRequest, "group_id"},
		{commit(func(r *commitOffsetRequest) { r.Topic = "none" }), ErrTopicNotFound, "none"},
		{commit(func(r *commitOffsetRequest) { r.Partition = 2 }), ErrPartitionNotFound, "2"},
		{commit(func(r *commitOffsetRequest) { r.Offset = -1 }), ErrInvalidRequest, "offset -1"},
		{commit(func(r *commitOffsetRequest) { r.Metadata = strings.Repeat("m", 4097) }), ErrInvalidRequest, "4097 bytes"},
		{commit(func(r *commitOffsetRequest) { r.MemberID = "x" }), ErrUnknownMember, "g"},
		{&syncGroupRequest{GroupID: "none", MemberID: "x"}, ErrUnknownMember, "none"},
		{&heartbeatRequest{GroupID: "none", MemberID: "x"}, ErrUnknownMember, "none"},
		{&leaveGroupRequest{GroupID: "none", MemberID: "x"}, ErrUnknownMember, "none"},
		{&fetchOffsetRequest{GroupID: "g", Topic: "none"}, ErrTopicNotFound, "none"},
		{&describeGroupRequest{GroupID: "none"}, ErrGroupNotFound, "none"},
	} {
		err := rawCall(t, b, ProtocolV1, test.req, &plainResponse{})
		require.ErrorIs(t, err, test.want, test.text)
		require.ErrorContains(t, err, test.text)
	}
	var groups listGroupsResponse
	require.NoError(t, rawCall(t, b, ProtocolV1, &listGroupsRequest{}, &groups))
	require.Empty(t, groups.Groups, "what was refused has left nothing behind")
}

func TestGroupMemberLimit(t *testing.T) {
	g := newGroup("g", topicTable{})
	now := time.Unix(0, 0)
	for i := range maxGroupMembers {
		_, err := g.join(now, joinEvent{member: string(rune('a'+i%26)) + strings.Repeat("x", i/26), topics: []string{"t"}, session: time.Second, incremental: true})
		require.NoError(t, err)
	}
	_, err := g.join(now, joinEvent{member: "one more", topics: []string{"t"}})
	require.ErrorIs(t, err, ErrOverloaded)
}

// groupStorage is a storage whose part about groups can be made to fail.
type groupStorage struct {
	Storage
	fail atomic.Bool
}

var errDisk = errors.New("disk on fire")

func (s *groupStorage) PutGroup(ctx context.Context, id string, state []byte) error {
	if s.fail.Load() {
		return errDisk
	}
	return s.Storage.PutGroup(ctx, id, state)
}

func (s *groupStorage) PutOffsets(ctx context.Context, id string, offsets []StoredOffset) error {
	if s.fail.Load() {
		return errDisk
	}
	return s.Storage.PutOffsets(ctx, id, offsets)
}

func (s *groupStorage) DeleteGroup(ctx context.Context, id string) error {
	if s.fail.Load() {
		return errDisk
	}
	return s.Storage.DeleteGroup(ctx, id)
}

// While the storage fails nothing is told that would not be kept; members go on when it
// is mended.
func TestGroupStorageFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := &groupStorage{Storage: NewMemoryStorage()}
		b := faultBroker(t, 2, WithStorage(storage))
		store(t, b, 3)
		storage.fail.Store(true)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil)
		after(10 * time.Second)
		require.Empty(t, r.shares())
		require.ErrorContains(t, <-a.group.Errors(), "disk on fire")
		storage.fail.Store(false)
		after(10 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.Equal(t, int64(3), committed(b, 0))

		storage.fail.Store(true)
		store(t, b, 3)
		after(10 * time.Second)
		require.Equal(t, int64(3), committed(b, 0))
		storage.fail.Store(false)
		after(10 * time.Second)
		require.Equal(t, int64(6), committed(b, 0))
		require.NoError(t, a.stop())

		storage.fail.Store(true)
		require.ErrorContains(t, rawCall(t, b, ProtocolV1, &deleteGroupRequest{GroupID: "g"}, &deleteGroupResponse{}), "disk on fire")
		require.Equal(t, int64(6), committed(b, 0), "it is still there")
		time.AfterFunc(150*time.Millisecond, func() { storage.fail.Store(false) })
		require.NoError(t, a.group.client.Admin().DeleteGroup(t.Context(), "g"), "it is tried again")
		require.Equal(t, offsetNone, committed(b, 0))
	})
}

// A broker that was stopped for longer than the session timeout has heard none of its
// members, and does not take them for dead.
func TestGroupOfStalledBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		after(5 * time.Second) // So that it does not look around just when the member is due.
		joinRaw(t, b, "a", "")
		after(gatherTime)
		require.NoError(t, b.service.groups.with(t.Context(), "g", false, func(h *hostedGroup) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			require.True(t, h.timer.Stop()) // As good as stopped.
			return nil
		}))
		after(time.Minute)
		grants, _ := syncRaw(t, b, "a", 1)
		require.Len(t, grants, 2)
		after(31 * time.Second)
		require.ErrorIs(t, commitRaw(t, b, "a", 0, 1, grants[0]), ErrUnknownMember)
	})
}

// A group of which nothing is left is forgotten, in memory and in the storage.
func TestGroupIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		b := faultBroker(t, 2, WithStorage(storage))
		joinRaw(t, b, "a", "")
		after(2 * retentionInterval)
		require.Len(t, b.service.groups.all(), 1)
		require.NoError(t, rawCall(t, b, ProtocolV1, &leaveGroupRequest{GroupID: "g", MemberID: "a"}, &leaveGroupResponse{}))
		var groups listGroupsResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &listGroupsRequest{}, &groups))
		require.Empty(t, groups.Groups)
		after(2 * retentionInterval)
		require.Empty(t, b.service.groups.all())
		kept, err := storage.Groups(t.Context())
		require.NoError(t, err)
		require.Empty(t, kept)
		synctest.Wait()
	})
}
