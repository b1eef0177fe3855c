package robust

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
)

// errSilentBroker is why a session ends whose broker has not answered for the session
// timeout: it may have given the partitions to others.
var errSilentBroker = fmt.Errorf("%w: no heartbeat was answered within the session timeout", ErrUnknownMember)

// newSession returns a session that has not joined yet. It ends with parent and with
// closing.
func newSession(parent, closing context.Context, c *Client, cfg *config, group string, topics []string, h Handler) *Session {
	s := &Session{
		client: c, cfg: cfg, group: group, topics: topics, handler: h,
		memberID: cfg.clientID + "-" + uuid.NewString(), by: new(answerer), born: time.Now(), since: time.Now(),
		work: make(chan struct{}, 1), synced: make(chan struct{}, 1), committing: make(chan struct{}, 1),
		claims: make(map[TopicPartition]*holding), gaveUp: make(map[TopicPartition]int64), former: make(map[TopicPartition]formerly), looked: time.Now(),
	}
	s.unsettled = s.born
	s.patterns, _ = compilePatterns(topics) // Consume has checked them.
	if len(s.memberID) > maxNameBytes {
		s.memberID = uuid.NewString()
	}
	s.ctx, s.cancel = context.WithCancelCause(parent)
	s.io, s.stopIO = context.WithCancelCause(context.WithoutCancel(parent))
	s.settled = context.AfterFunc(closing, func() { s.cancel(ErrClosed) })
	return s
}

// join makes the session's member known to the group.
func (s *Session) join(ctx context.Context) error {
	topics, err := s.resolve(ctx)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // It is for people who look.
	if len(host) > maxNameBytes {
		host = ""
	}
	req := &joinGroupRequest{GroupID: s.group, MemberID: s.MemberID(), ClientID: s.cfg.clientID, Topics: topics, Host: host}
	switch {
	case s.by.supportsGroups():
		req.InstanceID, req.Assignor = s.cfg.instanceID, s.cfg.assignor.name
		req.SessionTimeoutMs = s.cfg.sessionTimeout.Milliseconds()
		req.RebalanceTimeoutMs = s.cfg.rebalanceTimeout.Milliseconds()
	case s.generation.Load() == 0:
		req.MemberID = "" // A broker that gives IDs may know only its own.
	}
	sent := time.Now()
	var resp joinGroupResponse
	if err := s.ask(ctx, req, &resp); err != nil {
		return err
	}
	if resp.MemberID != "" {
		s.mu.Lock()
		s.memberID = resp.MemberID
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.joined, s.rejoin = topics, false
	s.mu.Unlock()
	s.heard(sent, resp.Generation)
	return nil
}

// resolve returns the topics to subscribe to. A broker that has not announced that it
// knows groups in full is not given patterns, but the topics that match now, once there
// are any.
func (s *Session) resolve(ctx context.Context) ([]string, error) {
	if err := s.ask(ctx, &clusterInfoRequest{}, &clusterInfoResponse{}); err != nil && (ctx.Err() != nil || connectionFault(err)) {
		return nil, err
	}
	for {
		if len(s.patterns) == 0 || s.by.supportsGroups() {
			return s.topics, nil
		}
		var resp listTopicsResponse
		if err := s.ask(ctx, &listTopicsRequest{}, &resp); err != nil {
			return nil, err
		}
		if topics := s.match(resp.Topics); len(topics) > 0 {
			return topics, nil
		}
		s.report(fmt.Errorf("%w: none matches", ErrTopicNotFound))
		if !pause(ctx, nil, s.cfg.metadataMaxAge) {
			return nil, endOf(ctx)
		}
	}
}

// match returns the topics subscribed to by name, and those of all that match a pattern.
func (s *Session) match(all []string) []string {
	var topics []string
	for _, t := range s.topics {
		if !isPattern(t) {
			topics = append(topics, t)
		}
	}
	for _, t := range all {
		if slices.ContainsFunc(s.patterns, func(p *regexp.Regexp) bool { return p.MatchString(t) }) {
			topics = append(topics, t)
		}
	}
	slices.Sort(topics)
	return slices.Compact(topics)
}

// lookAgain has the session join anew if other topics match its patterns by now, where
// the broker does not look by itself.
func (s *Session) lookAgain() {
	if len(s.patterns) == 0 || s.by.supportsGroups() || time.Since(s.looked) < s.cfg.metadataMaxAge {
		return
	}
	s.looked = time.Now()
	// Once: it must not keep the heartbeats.
	var resp listTopicsResponse
	r := route{repeatable: true, by: s.by}
	err := s.client.round(s.ctx, r, patience{limit: s.cfg.heartbeatEvery()}, &listTopicsRequest{}, &resp)
	topics := s.match(resp.Topics)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && len(topics) > 0 && !slices.Equal(topics, s.joined) {
		s.rejoin = true
		signal(s.work)
	}
}

// heard notes that the broker has answered what was sent then.
func (s *Session) heard(sent time.Time, generation int64) {
	at := int64(sent.Sub(s.born))
	for {
		last := s.alive.Load()
		if at <= last || s.alive.CompareAndSwap(last, at) {
			break
		}
	}
	for {
		last := s.generation.Load()
		if generation <= last || s.generation.CompareAndSwap(last, generation) {
			return
		}
	}
}

// run carries the session through, from the first sync to the last commit, and returns
// why it ended.
func (s *Session) run() error {
	s.running.Go(s.heartbeats)
	if s.cfg.autoCommit > 0 {
		s.running.Go(s.commitLoop)
	}
	s.running.Go(s.watch)
	signal(s.work)
	for s.ctx.Err() == nil {
		select {
		case <-s.work:
			if s.unsettled.IsZero() {
				s.unsettled = time.Now()
			}
			s.sync()
		case <-s.ctx.Done():
		}
	}
	return s.finish()
}

// watch loses the membership when the broker has not answered for the session timeout.
func (s *Session) watch() {
	for {
		silence := time.Since(s.born) - time.Duration(s.alive.Load())
		if silence >= s.cfg.sessionTimeout {
			s.lose(errSilentBroker)
		}
		if !pause(s.io, nil, s.cfg.sessionTimeout-silence) {
			return
		}
	}
}

// heartbeats shows the broker that the member is alive, and has the session sync when
// the broker says so, until nothing may be sent any more.
func (s *Session) heartbeats() {
	every := s.cfg.heartbeatEvery()
	// From one answered heartbeat to the next there must be time for one that is held,
	// is not answered, and is sent again.
	hold := min(every, (s.cfg.sessionTimeout-every)/4)
	limit := patience{limit: min(s.cfg.requestTimeout, (s.cfg.sessionTimeout-every)/4)}
	failures, urgent := 0, 0
	for s.io.Err() == nil {
		s.lookAgain()
		sent, next := time.Now(), every
		req := &heartbeatRequest{GroupID: s.group, MemberID: s.MemberID(), Generation: s.generation.Load()}
		r := route{repeatable: true, by: s.by, held: true}
		if s.by.supportsGroups() {
			req.MaxWaitMs, r.hold = hold.Milliseconds(), hold
			if hold >= every/4 {
				next = hold // One is always held, so that changes are heard of at once.
			}
		}
		var resp heartbeatResponse
		err := s.client.round(s.io, r, limit, req, &resp)
		s.lostIf(err)
		switch {
		case err == nil:
			failures = 0
			s.heard(sent, resp.Generation)
			if resp.Rebalance {
				s.syncBefore(sent.Add(every))
				// A broker that always says so must not keep both ends busy.
				urgent++
				pause(s.io, nil, min(every, urgentPause<<min(urgent, 12)))
				continue
			}
			urgent = 0
		case s.io.Err() != nil, s.leaving.Load() && errors.Is(err, ErrUnknownMember):
			return
		case errors.Is(err, ErrUnsupported), errors.Is(err, ErrRebalanced):
			// It is asked for the assignment instead.
			s.heard(sent, 0)
			s.syncBefore(time.Now())
		default:
			failures++
			s.report(fmt.Errorf("heartbeat: %w", err))
			pause(s.io, nil, retryHeartbeat.before(failures))
			continue
		}
		// A broker that has held the heartbeat has used the time up.
		pause(s.io, nil, time.Until(sent.Add(next))-next/10)
	}
}

// retryHeartbeat is the wait between heartbeats that failed.
var retryHeartbeat = backoff{base: 50 * time.Millisecond, limit: time.Second} //nolint:gochecknoglobals // a constant in all but syntax

// urgentPause is doubled with each heartbeat in a row that asks for a sync.
const urgentPause = 10 * time.Microsecond

// syncBefore has the session sync, and returns when it has, or at the time given.
func (s *Session) syncBefore(limit time.Time) {
	select {
	case <-s.synced:
	default:
	}
	signal(s.work)
	t := time.NewTimer(time.Until(limit))
	defer t.Stop()
	select {
	case <-s.synced:
	case <-t.C:
	case <-s.io.Done():
	}
}

// sync says what the member still reads, and takes what it may read.
func (s *Session) sync() {
	s.mu.Lock()
	rejoin := s.rejoin
	s.mu.Unlock()
	if rejoin {
		if err := s.join(s.ctx); err != nil {
			s.end(err)
			return
		}
	}
	req := &syncGroupRequest{GroupID: s.group, MemberID: s.MemberID(), Generation: s.generation.Load()}
	s.mu.Lock()
	s.seq++
	seq := s.seq
	if s.by.supportsGroups() {
		req.Seq, req.Target = seq, s.computed
		req.Owned = make(map[string][]int32)
		for tp := range s.claims {
			req.Owned[tp.Topic] = append(req.Owned[tp.Topic], tp.Partition)
		}
	}
	s.mu.Unlock()
	sent := time.Now()
	var resp syncGroupResponse
	err := s.ask(s.ctx, req, &resp)
	s.lostIf(err)
	switch {
	case s.ctx.Err() != nil:
		return
	case errors.Is(err, ErrRebalanced), errors.Is(err, ErrGroupNotFound):
		// A broker that wants to be joined anew for each generation.
		if err = s.join(s.ctx); err == nil {
			pause(s.ctx, nil, s.cfg.heartbeatEvery()/10)
			signal(s.work)
			return
		}
		s.end(err)
		return
	case err != nil:
		s.end(err)
		return
	}
	s.heard(sent, resp.Generation)
	grants, err := s.grantsOf(&resp)
	if err != nil {
		if s.ctx.Err() == nil {
			s.end(err)
		}
		return
	}
	s.mu.Lock()
	if req.Target != nil && s.computed == req.Target {
		s.computed = nil
	}
	s.mu.Unlock()
	s.note(&resp)
	s.reconcile(seq, grants, resp.Pending)
	if resp.Compute != nil {
		s.compute(resp.Compute)
	}
	signal(s.synced)
}

// maxGrants is how many partitions one member is taken to read.
const maxGrants = 100_000

// grantsOf returns what an answer to a sync grants, checked. A broker that does not
// tell committed offsets with it is asked for them.
func (s *Session) grantsOf(resp *syncGroupResponse) (map[TopicPartition]*partitionGrant, error) {
	grants := make(map[TopicPartition]*partitionGrant)
	if len(resp.Grants) > maxGrants {
		return nil, fmt.Errorf("%w: SyncGroup: %d grants", ErrMalformed, len(resp.Grants))
	}
	for i := range resp.Grants {
		g := &resp.Grants[i]
		if checkTopicName(g.Topic) != nil || g.Partition < 0 {
			return nil, fmt.Errorf("%w: SyncGroup: grant of %s/%d", ErrMalformed, shorten(g.Topic), g.Partition)
		}
		grants[TopicPartition{g.Topic, g.Partition}] = g
	}
	if s.by.supportsGroups() {
		return grants, nil
	}
	clear(grants)
	for topic, partitions := range resp.Assignment {
		for _, p := range partitions {
			tp := TopicPartition{topic, p}
			if checkTopicName(topic) != nil || p < 0 {
				return nil, fmt.Errorf("%w: SyncGroup: assignment of %s/%d", ErrMalformed, shorten(topic), p)
			}
			grants[tp] = &partitionGrant{Topic: topic, Partition: p}
			if s.holding(tp) != nil {
				continue
			}
			var committed fetchOffsetResponse
			err := s.ask(s.ctx, &fetchOffsetRequest{GroupID: s.group, Topic: topic, Partition: p}, &committed)
			if err != nil {
				return nil, err
			}
			// 0 is what such a broker may say when nothing is committed.
			grants[tp].Offset, grants[tp].Metadata = offsetNone, committed.Metadata
			if committed.Offset > 0 {
				grants[tp].Offset = committed.Offset
			}
		}
	}
	return grants, nil
}

// note keeps what an answer to a sync says for Status, and reports topics that are not
// there once.
func (s *Session) note(resp *syncGroupResponse) {
	s.mu.Lock()
	var fresh []string
	for _, t := range resp.Missing {
		if !slices.Contains(s.missing, t) {
			fresh = append(fresh, t)
		}
	}
	if resp.Pending != s.pending || !slices.Equal(resp.Missing, s.missing) {
		s.since = time.Now()
	}
	s.pending, s.missing = resp.Pending, resp.Missing
	s.mu.Unlock()
	for _, t := range fresh {
		s.report(fmt.Errorf("%w: %s; the group reads it as soon as it is there", ErrTopicNotFound, shorten(t)))
	}
}

// reconcile has claims begin and end so that they become what was granted. A claim that
// stays is not touched. The answer is to the sync of this seq: a partition that was given
// up since is another matter, which the next one settles.
func (s *Session) reconcile(seq int64, grants map[TopicPartition]*partitionGrant, pending bool) {
	changes := 0
	var anew []*ConsumerError
	s.mu.Lock()
	for tp, h := range s.claims {
		if g := grants[tp]; g != nil && g.Epoch == h.epoch || !h.revoked.IsZero() {
			continue
		}
		changes++
		h.revoked = time.Now()
		h.cancel(fmt.Errorf("%w: %s goes to another member", ErrRebalanced, tp))
		if !h.begun {
			s.giveUpLocked(h)
		}
	}
	for tp, g := range grants {
		// One that is being given up must have ended before it begins anew.
		if at, ok := s.gaveUp[tp]; s.claims[tp] == nil && (!ok || at < seq) {
			delete(s.gaveUp, tp)
			h := s.newHolding(tp, g)
			s.claims[tp] = h
			changes++
			if was, ok := s.former[tp]; ok && g.TopicID != "" && was.topicID != g.TopicID && !was.anew {
				lost := &LogChangedError{MadeAnew: true, LostTo: max(was.position, 0), To: offsetNone}
				anew = append(anew, h.failed(lost))
			}
			delete(s.former, tp)
		}
	}
	setUp := s.setUp
	s.mu.Unlock()
	for _, lost := range anew {
		s.report(lost)
	}
	if changes > 0 {
		s.client.metrics.Consumer.recordRebalance()
	}
	s.settle(changes > 0, pending)
	switch {
	case setUp:
		s.begin()
	case len(grants) > 0 || !pending:
		s.callSetup()
	}
}

// settle measures how long it has taken until the member was told all that is to change.
func (s *Session) settle(changed, pending bool) {
	s.moved = s.moved || changed
	if pending {
		return
	}
	if s.moved {
		s.client.metrics.Consumer.rebalanceLatency.record(time.Since(s.unsettled))
	}
	s.unsettled, s.moved = time.Time{}, false
}

func (s *Session) newHolding(tp TopicPartition, g *partitionGrant) *holding {
	h := &holding{of: tp, epoch: g.Epoch, topicID: g.TopicID, marks: newMarks(g.Offset, s.cfg.contiguous), start: s.startOf(g)}
	h.ctx, h.cancel = context.WithCancelCause(s.ctx)
	return h
}

// compute runs the application's assignor for the group, once for each generation that
// it is asked for.
func (s *Session) compute(req *computeRequest) {
	s.mu.Lock()
	busy := s.asked == req.Generation || s.assigning
	if !busy {
		s.asked, s.assigning = req.Generation, true
	}
	s.mu.Unlock()
	if busy {
		return // It is asked for again, or its time runs out.
	}
	// Not counted in running: a function that does not return must not keep the session.
	go func() {
		target := &computedTarget{Generation: req.Generation}
		assigned, err := s.assign(req)
		if err != nil {
			target.Error = trimPrefix(err)
			s.report(fmt.Errorf("assignor %q: %w", s.cfg.assignor.name, err))
		}
		target.Assignment = make(map[string]map[string][]int32)
		for tp, id := range assigned {
			if target.Assignment[id] == nil {
				target.Assignment[id] = make(map[string][]int32)
			}
			target.Assignment[id][tp.Topic] = append(target.Assignment[id][tp.Topic], tp.Partition)
		}
		s.mu.Lock()
		s.computed, s.assigning = target, false
		s.mu.Unlock()
		signal(s.work)
	}()
}

// assign calls the assignor.
func (s *Session) assign(req *computeRequest) (assigned map[TopicPartition]string, err error) {
	f := s.cfg.assignor.assign
	if f == nil {
		return nil, fmt.Errorf("%w: this member has no function for it", ErrInvalidConfig)
	}
	in := &AssignmentInput{Group: s.group, Generation: req.Generation}
	for _, m := range req.Members {
		member := AssignmentMember{ID: m.MemberID, InstanceID: m.InstanceID, ClientID: m.ClientID, Host: m.Host, Topics: m.Topics}
		for topic, partitions := range m.Assigned {
			for _, p := range partitions {
				member.Assigned = append(member.Assigned, TopicPartition{topic, p})
			}
		}
		slices.SortFunc(member.Assigned, compareTopicPartition)
		in.Members = append(in.Members, member)
	}
	for topic, n := range req.Partitions {
		if n > maxTopicPartitions || len(in.Partitions) > maxGroupTopics*maxTopicPartitions/10 {
			return nil, fmt.Errorf("%w: SyncGroup: too many partitions to assign", ErrMalformed)
		}
		for p := range n {
			in.Partitions = append(in.Partitions, TopicPartition{topic, p})
		}
	}
	slices.SortFunc(in.Partitions, compareTopicPartition)
	err = guard(func() error {
		assigned, err = f(in)
		return err
	})
	return assigned, err
}
