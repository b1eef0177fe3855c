package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxGroups is how many groups a broker keeps.
	maxGroups = 10_000
	// keepDelay is how long what nobody asks for waits to be kept, with others of
	// its kind, and keepRetry how long after the storage has failed.
	keepDelay = 20 * time.Millisecond
	keepRetry = time.Second
	// storageTimeout is how long the storage may take to keep something of a group.
	storageTimeout = 20 * time.Second
	// sweepInterval is how often groups of which nothing is left are looked for.
	sweepInterval = 10 * time.Second
	// stalled is how late the broker must be to take itself for the one that was
	// silent: it was stopped, or starved, and has heard none of the members.
	stalled = time.Second
)

// coordinator runs the groups of a broker: it gives them the time, keeps what they
// want kept, and wakes those who wait for them.
type coordinator struct {
	storage GroupStorage
	warn    *warner
	topics  atomic.Pointer[topicTable]
	// log returns the log of a partition and the ID of its topic; nil if it is not there.
	log     func(TopicPartition) (PartitionLog, string)
	running sync.WaitGroup // timers that are at work

	ctx    context.Context //nolint:containedctx // ends with the broker
	cancel context.CancelFunc

	mu     sync.Mutex // guards the following; taken before hostedGroup.mu
	groups map[string]*hostedGroup
	heard  map[TopicPartition]time.Time // when a fetch was last taken for a sign of life
	closed bool
}

// hostedGroup is a group at work.
type hostedGroup struct {
	coordinator *coordinator
	// silent tells that there has been a member without heartbeats.
	silent atomic.Bool
	// storing holds a token while the storage keeps something of the group, so
	// that it is asked to do one thing after another. A channel, so that a caller
	// can stop waiting.
	storing chan struct{}

	mu      sync.Mutex // guards the following
	group   *group
	waiting map[string]chan struct{} // by member; closed when the member is woken
	version uint64                   // counts what is to be kept
	kept    uint64                   // the version that the storage has
	failed  bool                     // it did not take the last one
	timer   *time.Timer              // runs tick; nil before it is needed
	timerAt time.Time
	gone    bool // removed, or the broker ends: to be looked up again
}

func newCoordinator(storage GroupStorage, warn *warner) *coordinator {
	c := &coordinator{storage: storage, warn: warn, groups: make(map[string]*hostedGroup), heard: make(map[TopicPartition]time.Time)}
	c.topics.Store(&topicTable{})
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// load takes up the groups that the storage keeps.
func (c *coordinator) load(ctx context.Context) error {
	kept, err := c.storage.Groups(ctx)
	if err != nil {
		return fmt.Errorf("robust: open storage: groups: %w", err)
	}
	for _, k := range kept {
		g, err := restoreGroup(time.Now(), k, *c.topics.Load())
		if err != nil {
			return fmt.Errorf("robust: open group %q: %w", k.ID, err)
		}
		if err := c.cutOffsets(ctx, g); err != nil {
			return fmt.Errorf("robust: open group %q: %w", k.ID, err)
		}
		h := c.host(g)
		for _, m := range g.members {
			if m.silent {
				h.silent.Store(true)
			}
		}
		h.do(func(*group, time.Time) {})
	}
	return nil
}

// cutOffsets takes back what a group has committed behind the end of a log: the log has
// lost its tail. It loses nothing while it is open, so now is the time to look: later
// other messages stand there, which nobody has handled.
func (c *coordinator) cutOffsets(ctx context.Context, g *group) error {
	var cut []StoredOffset
	for tp, o := range g.offsets {
		l, _ := c.log(tp)
		if l == nil {
			continue
		}
		if _, end := l.Bounds(); o.Offset > end {
			c.warn.warn("consumer group has committed more than there is, its offset is taken back", g.id,
				"group", g.id, "topic", tp.Topic, "partition", tp.Partition, "from", o.Offset, "to", end)
			o.Offset = end
			cut = append(cut, o)
		}
	}
	if len(cut) == 0 {
		return nil
	}
	if err := c.storage.PutOffsets(ctx, g.id, cut); err != nil {
		return err
	}
	for _, o := range cut {
		g.committed(o)
	}
	return nil
}

// host puts a group to work; c.mu is held, or nobody else knows c yet.
func (c *coordinator) host(g *group) *hostedGroup {
	h := &hostedGroup{
		coordinator: c, group: g,
		storing: make(chan struct{}, 1), waiting: make(map[string]chan struct{}),
	}
	c.groups[g.id] = h
	return h
}

// close stops the timers. Groups stay as they are kept.
func (c *coordinator) close() {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	for _, h := range c.groups {
		h.mu.Lock()
		h.goLocked()
		h.mu.Unlock()
	}
	c.mu.Unlock()
	c.running.Wait()
}

// goLocked ends the group's work.
func (h *hostedGroup) goLocked() {
	h.gone = true
	if h.timer != nil {
		h.timer.Stop()
	}
}

// setTopics has every group know the topics as they are now. Those that are named may be
// others than when it was last called; it is called by one after the other.
func (c *coordinator) setTopics(topics topicTable, differ ...string) {
	c.topics.Store(&topics)
	c.mu.Lock()
	groups := make([]*hostedGroup, 0, len(c.groups))
	for _, h := range c.groups {
		groups = append(groups, h)
	}
	c.mu.Unlock()
	for _, h := range groups {
		h.setTopics(topics, differ)
	}
}

// setTopics has a group know the topics. It is cheap for the many that have nothing to do
// with those that differ.
func (h *hostedGroup) setTopics(topics topicTable, differ []string) {
	h.mu.Lock()
	concerned := !h.gone && h.group.concerned(topics, differ)
	if !h.gone && !concerned {
		h.group.topics = topics
	}
	h.mu.Unlock()
	if concerned {
		h.do(func(g *group, now time.Time) { g.topicsDiffer(now, topics, differ) })
	}
}

// do has f work on the group, with the lock held; false if the group is gone.
func (h *hostedGroup) do(f func(g *group, now time.Time)) bool {
	h.mu.Lock()
	if h.gone {
		h.mu.Unlock()
		return false
	}
	now := time.Now()
	if next := h.group.next; !next.IsZero() && now.Sub(next) > stalled {
		h.group.spare(now)
	}
	h.group.tick(now) // What is overdue comes first, whenever the timer runs.
	f(h.group, now)
	notes := h.settleLocked()
	id := h.group.id
	h.mu.Unlock()
	for _, note := range notes {
		h.coordinator.warn.warn("consumer group: "+note, id, "group", id)
	}
	return true
}

// settleLocked does what an event has left to do: it wakes members and sets the timer.
// It returns what is to be logged.
func (h *hostedGroup) settleLocked() (notes []string) {
	g := h.group
	if g.changed {
		h.version++
		g.changed = false
	}
	for id := range g.woken {
		if wake := h.waiting[id]; wake != nil {
			close(wake)
			delete(h.waiting, id)
		}
	}
	clear(g.woken)
	if !g.next.IsZero() {
		h.armLocked(g.next)
	}
	// What no request waits for is kept all the same: a restart must not bring back
	// what is gone.
	if h.version > h.kept {
		delay := keepDelay
		if h.failed {
			delay = keepRetry
		}
		h.armLocked(time.Now().Add(delay))
	}
	notes, g.notes = g.notes, nil
	return notes
}

// armLocked has tick run at t, or earlier.
func (h *hostedGroup) armLocked(t time.Time) {
	if !h.timerAt.IsZero() && !t.Before(h.timerAt) {
		return
	}
	h.timerAt = t
	if h.timer == nil {
		h.timer = time.AfterFunc(time.Until(t), h.tick)
	} else {
		h.timer.Reset(time.Until(t))
	}
}

// tick lets time pass for the group, and keeps what has come of it.
func (h *hostedGroup) tick() {
	c := h.coordinator
	h.mu.Lock()
	if h.gone {
		h.mu.Unlock()
		return
	}
	c.running.Add(1) // close waits only after it has set gone.
	h.timerAt = time.Time{}
	h.mu.Unlock()
	defer c.running.Done()
	h.do(func(*group, time.Time) {})
	if err := c.keep(c.ctx, h); err != nil && c.ctx.Err() == nil {
		c.warn.warn("consumer group cannot be kept", h.group.id, "group", h.group.id, "error", trimPrefix(err))
	}
}

// errGroupGone has the group looked up again.
var errGroupGone = errors.New("group is gone")

// with has f work on a group, which is made if create says so. The error is f's,
// ErrGroupNotFound, or that of the wait.
func (c *coordinator) with(ctx context.Context, id string, create bool, f func(h *hostedGroup) error) error {
	for {
		h, err := c.lookup(id, create)
		if err != nil {
			return err
		}
		err = f(h)
		if !errors.Is(err, errGroupGone) {
			return err
		}
		// Whoever removes it has the token until it is removed.
		if err := h.acquire(ctx); err != nil {
			return err
		}
		h.release()
	}
}

func (c *coordinator) lookup(id string, create bool) (*hostedGroup, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.groups[id]
	switch {
	case c.closed:
		return nil, ErrClosed
	case h != nil:
		return h, nil
	case !create:
		return nil, fmt.Errorf("%w: %s", ErrGroupNotFound, shorten(id))
	case len(c.groups) >= maxGroups:
		return nil, fmt.Errorf("%w: %d consumer groups", ErrOverloaded, maxGroups)
	}
	g := newGroup(id, *c.topics.Load())
	// Epochs rise even over the end of a group: what was fenced with one must not be
	// locked by it for ever.
	g.epoch = time.Now().UnixMicro()
	return c.host(g), nil
}

// acquire takes the token that it takes to have the storage keep something.
func (h *hostedGroup) acquire(ctx context.Context) error {
	select {
	case h.storing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	}
}

func (h *hostedGroup) release() { <-h.storing }

// keep returns when the storage has everything that has happened until now: what a
// member was told must hold after a restart.
func (c *coordinator) keep(ctx context.Context, h *hostedGroup) error {
	h.mu.Lock()
	wanted := h.version
	done := h.kept >= wanted
	h.mu.Unlock()
	if done {
		return nil
	}
	if err := h.acquire(ctx); err != nil {
		return err
	}
	defer h.release()
	h.mu.Lock()
	if h.kept >= wanted || h.gone {
		h.mu.Unlock()
		return nil
	}
	version := h.version
	captured := h.group.capture()
	id := h.group.id
	h.mu.Unlock()
	state, err := captured.encode()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, storageTimeout)
		defer cancel()
		err = c.storage.PutGroup(ctx, id, state)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed = err != nil
	if err != nil {
		return fmt.Errorf("keep group %s: %w", shorten(id), err)
	}
	h.kept = max(h.kept, version)
	return nil
}

// remove removes a group if it is as f says, which returns why not.
func (c *coordinator) remove(ctx context.Context, h *hostedGroup, f func(g *group) error) error {
	if err := h.acquire(ctx); err != nil {
		return err
	}
	defer h.release()
	var id string
	err := errGroupGone
	h.do(func(g *group, _ time.Time) {
		id = g.id
		if err = f(g); err == nil {
			h.goLocked()
		}
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := c.storage.DeleteGroup(ctx, id); err != nil {
		h.mu.Lock()
		h.gone, h.timerAt = false, time.Time{}
		h.version++                                         // The storage may have forgotten a part.
		h.group.topicsChanged(time.Now(), *c.topics.Load()) // Of what has changed meanwhile it was not told.
		h.settleLocked()
		h.mu.Unlock()
		return fmt.Errorf("remove group %s: %w", shorten(id), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, id)
	return nil
}

// run looks for groups of which nothing is left until the broker ends.
func (c *coordinator) run() {
	for pause(c.ctx, nil, sweepInterval) {
		c.sweep(c.ctx)
	}
}

// sweep removes the groups that have neither members nor offsets.
func (c *coordinator) sweep(ctx context.Context) {
	c.mu.Lock()
	maps.DeleteFunc(c.heard, func(_ TopicPartition, at time.Time) bool { return time.Since(at) > silentTimeout })
	c.mu.Unlock()
	for _, h := range c.all() {
		idle := false
		h.do(func(g *group, _ time.Time) { idle = g.idle() })
		if !idle {
			continue
		}
		err := c.remove(ctx, h, func(g *group) error {
			if !g.idle() {
				return ErrGroupNotEmpty
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrGroupNotEmpty) && !errors.Is(err, errGroupGone) {
			c.warn.warn("consumer group cannot be removed", "", "error", trimPrefix(err))
		}
	}
}

// idle tells that nothing would be lost with the group.
func (g *group) idle() bool { return len(g.members) == 0 && len(g.offsets) == 0 }

// all returns every group in order of ID.
func (c *coordinator) all() []*hostedGroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	groups := make([]*hostedGroup, 0, len(c.groups))
	for _, h := range c.groups {
		groups = append(groups, h)
	}
	slices.SortFunc(groups, func(a, b *hostedGroup) int { return strings.Compare(a.group.id, b.group.id) })
	return groups
}

// fetched takes a fetch of somebody who sends no heartbeats for a sign of life, of one
// partition once in a second.
func (c *coordinator) fetched(tp TopicPartition) {
	now := time.Now()
	c.mu.Lock()
	var groups []*hostedGroup
	if now.Sub(c.heard[tp]) >= time.Second {
		for _, h := range c.groups {
			if h.silent.Load() {
				groups = append(groups, h)
			}
		}
		if len(groups) > 0 {
			c.heard[tp] = now
		}
	}
	c.mu.Unlock()
	for _, h := range groups {
		h.do(func(g *group, now time.Time) { g.seen(now, tp) })
	}
}

// heartbeat answers a heartbeat when there is something to do, or wait is over. stop
// ends the wait.
func (c *coordinator) heartbeat(ctx context.Context, h *hostedGroup, req *heartbeatRequest, wait time.Duration, stop <-chan struct{}) (*heartbeatResponse, error) {
	resp := new(heartbeatResponse)
	var m *member
	var wake chan struct{}
	var err error
	there := h.do(func(g *group, now time.Time) {
		m, resp.Rebalance, err = g.heartbeat(now, req.MemberID, req.Generation)
		resp.Generation = g.generation
		if err != nil || resp.Rebalance || wait <= 0 {
			return
		}
		// A member must not live on because its connection is held open.
		wait = min(wait, m.session/2)
		g.hold(m)
		// One for each member: a newer heartbeat has the older answered.
		if older := h.waiting[m.id]; older != nil {
			close(older)
		}
		wake = make(chan struct{})
		h.waiting[m.id] = wake
	})
	if !there {
		return resp, errGroupGone
	}
	if wake == nil {
		return resp, err
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	select {
	case <-wake:
	case <-timeout.C:
	case <-stop:
	case <-ctx.Done():
	}
	there = h.do(func(g *group, _ time.Time) {
		g.unhold(m)
		resp.Generation = g.generation
		if _, err = g.member(m.id); err == nil {
			resp.Rebalance = m.dirty
		}
	})
	if !there {
		return resp, errGroupGone
	}
	return resp, err
}

// commit keeps offsets for a group. Those that are refused are returned with the
// reason of the last.
func (c *coordinator) commit(ctx context.Context, h *hostedGroup, req *commitOffsetRequest, offsets []offsetToStore) (fenced []topicPartition, refusal, err error) {
	if err := h.acquire(ctx); err != nil {
		return nil, nil, err
	}
	defer h.release()
	// Nothing else is committed meanwhile, so no commit that is stored can be above
	// what these logs hold now unless they have lost it.
	logs, err := c.committable(ctx, offsets)
	if err != nil {
		return nil, nil, err
	}
	var accepted []StoredOffset
	there := h.do(func(g *group, now time.Time) {
		if req.MemberID != "" {
			if _, refusal = g.member(req.MemberID); refusal != nil {
				return
			}
		}
		for i, o := range offsets {
			stored := StoredOffset{o.Topic, g.topics.get(o.Topic).id, o.Partition, o.Offset, o.Metadata}
			end := int64(math.MaxInt64)
			if l := logs[i]; l.topicID == stored.TopicID {
				stored.Offset, end = min(o.Offset, l.common), l.end
			}
			other := o.TopicID != "" && o.TopicID != stored.TopicID
			if req.MemberID == "" && !other {
				g.seen(now, TopicPartition{o.Topic, o.Partition})
				accepted = append(accepted, stored) // Whoever sends it.
				continue
			}
			switch keep, owned := g.mayCommit(req.MemberID, o.Epoch, stored, end); {
			case !owned || other:
				fenced = append(fenced, topicPartition{o.Topic, o.Partition})
			case keep:
				accepted = append(accepted, stored)
			}
		}
	})
	if !there {
		return nil, nil, errGroupGone
	}
	if n := len(fenced); n > 0 {
		last := fenced[n-1]
		refusal = fmt.Errorf("%w: %d of %d partitions are not the member's in that epoch, or not of that topic ID, the last is %s/%d",
			ErrFenced, n, len(offsets), shorten(last.Topic), last.Partition)
	}
	return fenced, refusal, c.store(ctx, h, accepted)
}

// committable is what a commit for a partition is held to.
type committable struct {
	topicID string // "": the partition is not there
	end     int64  // the log's high-water mark
	common  int64  // up to where the log is the one that the reader has read
}

// committable looks up the logs of a commit.
func (c *coordinator) committable(ctx context.Context, offsets []offsetToStore) ([]committable, error) {
	logs := make([]committable, len(offsets))
	for i, o := range offsets {
		l, topicID := c.log(TopicPartition{o.Topic, o.Partition})
		if l == nil {
			continue
		}
		_, end := l.Bounds()
		logs[i] = committable{topicID: topicID, end: end, common: math.MaxInt64}
		if o.LastEpoch <= 0 {
			continue
		}
		common, err := l.EpochEnd(ctx, o.LastEpoch)
		switch {
		case err == nil:
			logs[i].common = common
		case !errors.Is(err, ErrClosed): // Else the topic is being deleted, of which the group will hear.
			return nil, fmt.Errorf("commit of %s/%d: %w", shorten(o.Topic), o.Partition, err)
		}
	}
	return logs, nil
}

// store keeps offsets; the caller has the token.
func (c *coordinator) store(ctx context.Context, h *hostedGroup, offsets []StoredOffset) error {
	if len(offsets) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := c.storage.PutOffsets(ctx, h.group.id, offsets); err != nil {
		return fmt.Errorf("keep offsets of group %s: %w", shorten(h.group.id), err)
	}
	h.do(func(g *group, _ time.Time) {
		for _, o := range offsets {
			g.committed(o)
		}
	})
	return nil
}
