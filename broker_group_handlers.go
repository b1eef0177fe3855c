package robust

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

const (
	// maxHeartbeatHold is the longest that a heartbeat is held, whatever it asks for.
	maxHeartbeatHold = time.Minute
	// maxOwned is how many partitions a member may own.
	maxOwned = 100_000
)

// groupCall is a request about groups that has been understood. answer may take its
// time: the storage is asked, and a heartbeat may be held until stop is closed.
type groupCall struct {
	answer func(ctx context.Context, stop <-chan struct{}) (response, error)
	held   bool // counts as held until it is answered
}

// prepare keeps a request for f, whose context ends with the connection, to be decoded
// in its turn: decoded it may be large.
func prepare[R any](payload []byte, f func(context.Context, *R) (response, error)) (*groupCall, error) {
	if len(payload) > maxGroupPayload {
		return nil, fmt.Errorf("%w: payload of %d bytes, a request about groups has at most %d", ErrMessageTooLarge, len(payload), maxGroupPayload)
	}
	if len(payload) > 0 && !json.Valid(payload) {
		return nil, fmt.Errorf("%w: payload is not JSON", ErrMalformed)
	}
	kept := bytes.Clone(payload)
	return &groupCall{answer: func(ctx context.Context, _ <-chan struct{}) (response, error) {
		req := new(R)
		if err := decodePayload(kept, req); err != nil {
			return &plainResponse{}, err
		}
		return f(ctx, req)
	}}, nil
}

// groupRequest understands a request about groups; nil if it is about something else.
// hold tells whether one more answer may be held.
func (s *service) groupRequest(req *wireRequest, hold func() bool) (*groupCall, error) {
	payload := req.payload
	v0 := req.lockStep
	switch req.kind {
	case requestJoinGroup:
		return prepare(payload, func(ctx context.Context, r *joinGroupRequest) (response, error) {
			return s.joinGroup(ctx, r, v0)
		})
	case requestLeaveGroup:
		return prepare(payload, s.leaveGroup)
	case requestSyncGroup:
		return prepare(payload, s.syncGroup)
	case requestCommitOffset:
		return prepare(payload, s.commitOffset)
	case requestFetchOffset:
		return prepare(payload, func(ctx context.Context, r *fetchOffsetRequest) (response, error) {
			return s.fetchOffset(ctx, r, v0)
		})
	case requestHeartbeat:
		r := new(heartbeatRequest)
		if err := decodePayload(payload, r); err != nil {
			return nil, err
		}
		held := r.MaxWaitMs > 0 && !v0 && hold()
		return &groupCall{held: held, answer: func(ctx context.Context, stop <-chan struct{}) (response, error) {
			return s.heartbeat(ctx, r, held, stop)
		}}, nil
	case requestListGroups:
		return prepare(payload, s.listGroups)
	case requestRebalance:
		return prepare(payload, s.rebalance)
	case requestDescribeGroup:
		return prepare(payload, s.describeGroup)
	case requestDeleteGroup:
		return prepare(payload, s.deleteGroup)
	case requestResetOffsets:
		return prepare(payload, s.resetOffsets)
	default:
		return nil, nil //nolint:nilnil // documented: not a request about groups
	}
}

// checkName bounds what clients make up: 0 to 249 bytes, 1 if it is required.
func checkName(field, value string, required bool) error {
	if len(value) > maxNameBytes || required && value == "" {
		least := 0
		if required {
			least = 1
		}
		return fmt.Errorf("%w: %s %q of %d bytes: want %d to %d", ErrInvalidRequest, field, shorten(value), len(value), least, maxNameBytes)
	}
	return nil
}

// groupTimeout understands a timeout; absent it is def.
func groupTimeout(field string, ms int64, def time.Duration) (time.Duration, error) {
	if ms < 0 || ms > maxGroupTimeout.Milliseconds() {
		return 0, fmt.Errorf("%w: %s %d: want 1 to %d", ErrInvalidRequest, field, ms, maxGroupTimeout.Milliseconds())
	}
	return cmp.Or(time.Duration(ms)*time.Millisecond, def), nil
}

// joinEventOf checks a request to join.
func joinEventOf(req *joinGroupRequest, v0 bool) (joinEvent, error) {
	e := joinEvent{
		member: req.MemberID, instance: req.InstanceID, client: req.ClientID, host: req.Host,
		topics: req.Topics, assignor: req.Assignor,
		incremental: req.SessionTimeoutMs > 0, silent: v0 && req.SessionTimeoutMs == 0,
	}
	err := errors.Join(
		checkName("group_id", req.GroupID, true), checkName("member_id", req.MemberID, false),
		checkName("instance_id", req.InstanceID, false), checkName("client_id", req.ClientID, false),
		checkName("host", req.Host, false), checkName("assignor", req.Assignor, false))
	if err != nil {
		return e, err
	}
	if e.patterns, err = checkSubscription(req.Topics); err != nil {
		return e, err
	}
	if e.session, err = groupTimeout("session_timeout_ms", req.SessionTimeoutMs, defaultSession); err != nil {
		return e, err
	}
	if e.rebalance, err = groupTimeout("rebalance_timeout_ms", req.RebalanceTimeoutMs, defaultRebalance); err != nil {
		return e, err
	}
	if e.member == "" {
		e.member = uuid.NewString()
	}
	return e, nil
}

func (s *service) joinGroup(ctx context.Context, req *joinGroupRequest, v0 bool) (response, error) {
	resp := &joinGroupResponse{GroupID: req.GroupID, MemberID: req.MemberID, Partitions: []int32{}}
	e, err := joinEventOf(req, v0)
	if err != nil {
		return resp, err
	}
	resp.MemberID = e.member
	return resp, s.groups.with(ctx, req.GroupID, true, func(h *hostedGroup) error {
		// Who resets offsets must know that nobody joins meanwhile.
		err := h.acquire(ctx)
		if err != nil {
			return err
		}
		if e.silent {
			h.silent.Store(true)
		}
		there := h.do(func(g *group, now time.Time) {
			var m *member
			if m, err = g.join(now, e); err != nil {
				return
			}
			resp.Generation = g.generation
			// The documented answer has partitions of one topic.
			first := req.Topics[0]
			for _, grant := range g.syncAnswer(m).Grants {
				if grant.Topic == first {
					resp.Partitions = append(resp.Partitions, grant.Partition)
				}
			}
		})
		h.release()
		if !there {
			return errGroupGone
		}
		if err != nil {
			return err
		}
		return s.groups.keep(ctx, h)
	})
}

func (s *service) leaveGroup(ctx context.Context, req *leaveGroupRequest) (response, error) {
	return &leaveGroupResponse{}, s.memberOf(ctx, req.GroupID, func(h *hostedGroup) error {
		var err error
		if !h.do(func(g *group, now time.Time) { err = g.leave(now, req.MemberID) }) {
			return errGroupGone
		}
		if err != nil {
			return err
		}
		return s.groups.keep(ctx, h)
	})
}

func (s *service) syncGroup(ctx context.Context, req *syncGroupRequest) (response, error) {
	resp := &syncGroupResponse{Assignment: map[string][]int32{}}
	e := syncEvent{member: req.MemberID, seq: req.Seq, target: req.Target, owned: make(map[TopicPartition]bool)}
	owned := 0
	for _, partitions := range req.Owned {
		owned += len(partitions)
	}
	if owned > maxOwned {
		return resp, fmt.Errorf("%w: owned: %d partitions, want at most %d", ErrInvalidRequest, owned, maxOwned)
	}
	for topic, partitions := range req.Owned {
		for _, p := range partitions {
			e.owned[TopicPartition{topic, p}] = true
		}
	}
	err := s.memberOf(ctx, req.GroupID, func(h *hostedGroup) error {
		var err error
		there := h.do(func(g *group, now time.Time) {
			var m *member
			if m, err = g.sync(now, e); err == nil {
				resp = g.syncAnswer(m)
			}
		})
		if !there {
			return errGroupGone
		}
		if err != nil {
			return err
		}
		// A commit of the owner before may be on its way to the storage. It has
		// arrived when the grants are kept.
		if err := s.groups.keep(ctx, h); err != nil {
			return err
		}
		h.do(func(g *group, _ time.Time) { g.tellOffsets(resp) })
		for i := range resp.Grants {
			grant := &resp.Grants[i]
			grant.Offset = s.within(TopicPartition{grant.Topic, grant.Partition}, grant.Offset)
		}
		return nil
	})
	if err != nil {
		// What has not been kept is not to be read.
		resp = &syncGroupResponse{Assignment: map[string][]int32{}}
	}
	return resp, err
}

// within returns a committed offset, or the high-water mark if it is above that: from
// beyond it a reader would be sent back to the start of the log.
func (s *service) within(tp TopicPartition, offset int64) int64 {
	if l, _ := s.topics.log(tp); l != nil {
		_, end := l.Bounds()
		return min(offset, end)
	}
	return offset
}

// memberOf is with for the requests of members: a group that is not there does not
// know them.
func (s *service) memberOf(ctx context.Context, id string, f func(h *hostedGroup) error) error {
	err := s.groups.with(ctx, id, false, f)
	if errors.Is(err, ErrGroupNotFound) {
		return fmt.Errorf("%w: there is no group %s", ErrUnknownMember, shorten(id))
	}
	return err
}

func (s *service) heartbeat(ctx context.Context, req *heartbeatRequest, held bool, stop <-chan struct{}) (response, error) {
	var wait time.Duration
	if held {
		wait = time.Duration(min(req.MaxWaitMs, maxHeartbeatHold.Milliseconds())) * time.Millisecond
	}
	resp := new(heartbeatResponse)
	err := s.memberOf(ctx, req.GroupID, func(h *hostedGroup) (err error) {
		resp, err = s.groups.heartbeat(ctx, h, req, wait, stop)
		return err
	})
	return resp, err
}

// offsetsOf checks a commit, in either of its forms.
func (s *service) offsetsOf(req *commitOffsetRequest) ([]offsetToStore, error) {
	if err := checkName("group_id", req.GroupID, true); err != nil {
		return nil, err
	}
	offsets := req.Offsets
	if len(offsets) > maxOffsets {
		return nil, fmt.Errorf("%w: %d offsets, want at most %d", ErrInvalidRequest, len(offsets), maxOffsets)
	}
	if len(offsets) == 0 {
		offsets = []offsetToStore{{req.Topic, req.Partition, req.Offset, req.Metadata, req.Epoch, req.TopicID, req.LastEpoch}}
	}
	for _, o := range offsets {
		switch {
		case o.Offset < 0:
			return nil, fmt.Errorf("%w: offset %d of %s/%d", ErrInvalidRequest, o.Offset, shorten(o.Topic), o.Partition)
		case len(o.Metadata) > maxOffsetMeta:
			return nil, fmt.Errorf("%w: metadata of %s/%d: %d bytes, want at most %d", ErrInvalidRequest, shorten(o.Topic), o.Partition, len(o.Metadata), maxOffsetMeta)
		}
		t, err := s.topics.get(o.Topic)
		if err == nil {
			_, err = t.partition(o.Partition)
		}
		// A topic may be deleted while a member reads it, who is told so.
		if err != nil && req.MemberID == "" {
			return nil, err
		}
	}
	return offsets, nil
}

func (s *service) commitOffset(ctx context.Context, req *commitOffsetRequest) (response, error) {
	resp := new(commitOffsetResponse)
	offsets, err := s.offsetsOf(req)
	if err != nil {
		return resp, err
	}
	with := func(f func(h *hostedGroup) error) error { return s.memberOf(ctx, req.GroupID, f) }
	if req.MemberID == "" {
		with = func(f func(h *hostedGroup) error) error { return s.groups.with(ctx, req.GroupID, true, f) }
	}
	var refusal error
	err = with(func(h *hostedGroup) (err error) {
		resp.Fenced, refusal, err = s.groups.commit(ctx, h, req, offsets)
		return err
	})
	if err != nil {
		return &commitOffsetResponse{}, err
	}
	return resp, refusal
}

// fetchOffset returns what was committed, -1 if nothing was; v0 peers, which know no
// -1, are told 0.
func (s *service) fetchOffset(ctx context.Context, req *fetchOffsetRequest, v0 bool) (response, error) {
	resp := &fetchOffsetResponse{Offset: offsetNone}
	if v0 {
		resp.Offset = 0
	}
	if err := checkName("group_id", req.GroupID, true); err != nil {
		return resp, err
	}
	t, err := s.topics.get(req.Topic)
	if err != nil {
		return resp, err
	}
	if _, err := t.partition(req.Partition); err != nil {
		return resp, err
	}
	err = s.groups.with(ctx, req.GroupID, false, func(h *hostedGroup) error {
		if !h.do(func(g *group, _ time.Time) {
			if o, ok := g.offsets[TopicPartition{req.Topic, req.Partition}]; ok {
				resp.Offset, resp.Metadata = o.Offset, o.Metadata
			}
		}) {
			return errGroupGone
		}
		return nil
	})
	if errors.Is(err, ErrGroupNotFound) {
		err = nil // It has committed nothing.
	}
	resp.Offset = s.within(TopicPartition{req.Topic, req.Partition}, resp.Offset)
	return resp, err
}

func (s *service) listGroups(context.Context, *listGroupsRequest) (response, error) {
	resp := &listGroupsResponse{Groups: []groupMetadata{}}
	for _, h := range s.groups.all() {
		h.do(func(g *group, _ time.Time) {
			if g.idle() {
				return
			}
			info := groupMetadata{GroupID: g.id, State: g.state(), Generation: g.generation, Members: []string{}}
			info.Members = append(info.Members, slices.Sorted(maps.Keys(g.members))...)
			resp.Groups = append(resp.Groups, info)
		})
	}
	return resp, nil
}

// existing is with for a group that anybody would see.
func (s *service) existing(ctx context.Context, id string, f func(h *hostedGroup) error) error {
	return s.groups.with(ctx, id, false, func(h *hostedGroup) error {
		idle := false
		if !h.do(func(g *group, _ time.Time) { idle = g.idle() }) {
			return errGroupGone
		}
		if idle {
			return fmt.Errorf("%w: %s", ErrGroupNotFound, shorten(id))
		}
		return f(h)
	})
}

func (s *service) rebalance(ctx context.Context, req *rebalanceRequest) (response, error) {
	again := func(h *hostedGroup) error {
		if !h.do(func(g *group, now time.Time) { g.rebalance(now, false) }) {
			return errGroupGone
		}
		return s.groups.keep(ctx, h)
	}
	if req.GroupID != "" {
		return &rebalanceResponse{}, s.existing(ctx, req.GroupID, again)
	}
	for _, h := range s.groups.all() {
		if err := again(h); err != nil && !errors.Is(err, errGroupGone) {
			return &rebalanceResponse{}, err
		}
	}
	return &rebalanceResponse{}, nil
}

func (s *service) describeGroup(ctx context.Context, req *describeGroupRequest) (response, error) {
	resp := &describeGroupResponse{GroupID: req.GroupID, Members: []describedMember{}, Offsets: []describedOffset{}}
	err := s.existing(ctx, req.GroupID, func(h *hostedGroup) error {
		if !h.do(func(g *group, _ time.Time) { resp = g.describe() }) {
			return errGroupGone
		}
		return nil
	})
	for i := range resp.Offsets {
		o := &resp.Offsets[i]
		if t, err := s.topics.get(o.Topic); err == nil {
			if p, err := t.partition(o.Partition); err == nil {
				o.LogStartOffset, o.HighWaterMark = p.log.Bounds()
			}
		}
	}
	return resp, err
}

// mustBeEmpty refuses what would pull the rug from under members.
func mustBeEmpty(g *group) error {
	if n := len(g.members); n > 0 {
		return fmt.Errorf("%w: %s has %d", ErrGroupNotEmpty, shorten(g.id), n)
	}
	return nil
}

func (s *service) deleteGroup(ctx context.Context, req *deleteGroupRequest) (response, error) {
	return &deleteGroupResponse{}, s.existing(ctx, req.GroupID, func(h *hostedGroup) error {
		return s.groups.remove(ctx, h, mustBeEmpty)
	})
}

func (s *service) resetOffsets(ctx context.Context, req *resetOffsetsRequest) (response, error) {
	resp := &resetOffsetsResponse{Topic: req.Topic, Offsets: []partitionOffset{}}
	t, err := s.topics.get(req.Topic)
	if err != nil {
		return resp, err
	}
	partitions := slices.Compact(slices.Sorted(slices.Values(req.Partitions)))
	if len(partitions) == 0 {
		for _, p := range t.partitions {
			partitions = append(partitions, p.id)
		}
	}
	var offsets []StoredOffset
	for _, id := range partitions {
		p, err := t.partition(id)
		if err == nil && ctx.Err() != nil {
			err = endOf(ctx)
		}
		if err != nil {
			return resp, err
		}
		at, err := p.resetTo(ctx, req)
		if err != nil {
			return resp, err
		}
		offsets = append(offsets, StoredOffset{Topic: req.Topic, TopicID: t.stored.ID, Partition: id, Offset: at})
		resp.Offsets = append(resp.Offsets, partitionOffset{Partition: id, Offset: at})
	}
	err = s.existing(ctx, req.GroupID, func(h *hostedGroup) error {
		if err := h.acquire(ctx); err != nil {
			return err
		}
		defer h.release()
		err := errGroupGone
		h.do(func(g *group, _ time.Time) { err = mustBeEmpty(g) })
		if err != nil {
			return err
		}
		return s.groups.store(ctx, h, offsets)
	})
	if err != nil {
		resp.Offsets = []partitionOffset{}
	}
	return resp, err
}

// resetTo finds the offset that a reset asks for.
func (p *partition) resetTo(ctx context.Context, req *resetOffsetsRequest) (int64, error) {
	start, end := p.log.Bounds()
	switch {
	case req.Timestamp > 0:
		return p.log.OffsetAt(ctx, req.Timestamp)
	case req.Offset == OffsetOldest:
		return start, nil
	case req.Offset == OffsetNewest:
		return end, nil
	case req.Offset < start || req.Offset > end:
		return 0, fmt.Errorf("%w: offset %d, %s/%d holds %d to %d", ErrOffsetOutOfRange, req.Offset, p.topic, p.id, start, end)
	default:
		return req.Offset, nil
	}
}
