package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// topic returns what the outbox has of a topic.
func (o *outbox) topic(name string) *outTopic {
	if t := o.latest.Load(); t != nil && t.name == name {
		return t
	}
	v, ok := o.topics.Load(name)
	if !ok {
		if v, ok = o.topics.LoadOrStore(name, &outTopic{name: name, used: o.age()}); !ok {
			o.addedTopic()
		}
	}
	t := v.(*outTopic) //nolint:forcetypeassert // nothing else is in it
	o.latest.Store(t)
	return t
}

// addedTopic counts a topic, and lets go of others that nothing was sent to for so long that
// what is known of them would be looked up again anyway; see manyTopics.
func (o *outbox) addedTopic() {
	n := o.known.Add(1)
	if n <= manyTopics {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if n < o.sweep {
		return
	}
	unused := o.age() - o.cfg.metadataMaxAge
	leaving := make(map[*outSender]bool)
	o.topics.Range(func(_, v any) bool {
		t := v.(*outTopic) //nolint:forcetypeassert // nothing else is in it
		if t.used < unused && t.idleLocked() {
			o.dropTopicLocked(t, leaving)
		}
		return true
	})
	for s := range leaving {
		s.queues = slices.DeleteFunc(s.queues, func(q *outQueue) bool { return q.topic.gone })
	}
	o.sweep = 2 * max(o.known.Load(), manyTopics)
}

// idleLocked tells that nothing of a topic is under way or waits.
func (t *outTopic) idleLocked() bool {
	busy := func(q *outQueue) bool { return !q.idleLocked() }
	return len(t.staged) == 0 && !t.resolving && !slices.ContainsFunc(t.allLocked(), busy)
}

// dropTopicLocked lets go of a topic that is idle. Who sends to it next begins anew, and so in
// an epoch that the broker has not seen. The caller takes its queues from the senders.
func (o *outbox) dropTopicLocked(t *outTopic, leaving map[*outSender]bool) {
	t.gone = true
	o.topics.Delete(t.name)
	o.latest.CompareAndSwap(t, nil)
	o.known.Add(-1)
	for _, q := range t.allLocked() {
		o.queues--
		q.state = queueIdle
		leaving[q.sender] = true
		if q.id == 0 || q.id != o.id || q.epoch < o.epochs {
			continue
		}
		if o.epochs = q.epoch + 1; o.epochs < 0 {
			o.epochs = 0
			o.dropIDLocked()
		}
	}
}

// stageLocked keeps a message of a wave until the topic's partitions are known.
func (o *outbox) stageLocked(t *outTopic, w staged, wave int) {
	switch {
	case len(t.staged) == 0:
		t.wave = wave
		o.waves.counts[wave]++
	case wave < t.wave:
		o.waves.counts[wave]++
		o.endWaveLocked(t.wave)
		t.wave = wave
	}
	t.staged = append(t.staged, w)
	t.mixed = t.mixed || w.number != neverPlaced
	o.resolveLocked(t)
}

// resolveLocked has the partitions of a topic found out.
func (o *outbox) resolveLocked(t *outTopic) {
	if !t.resolving {
		t.resolving = true
		o.running.Go(func() { o.resolve(t) })
	}
}

// sortStagedLocked has what came back from a partition that is gone stand where it was handed
// over: before what was since.
func (t *outTopic) sortStagedLocked() {
	if !t.mixed {
		return
	}
	t.mixed = false
	slices.SortStableFunc(t.staged, func(a, b staged) int {
		return cmp.Or(cmp.Compare(a.e.at, b.e.at), cmp.Compare(a.number, b.number))
	})
}

// awaitsLocked tells that messages may yet come back from partitions that a topic of so many
// does not have. What has been handed over since is not to be placed before them: with the same
// key it would overtake them.
func (t *outTopic) awaitsLocked(partitions int32) bool {
	for _, q := range t.queues[min(int(partitions), len(t.queues)):] {
		if q == nil {
			continue
		}
		for _, list := range [][]*outBatch{q.flying, q.again, q.pending} {
			if slices.ContainsFunc(list, (*outBatch).isMovableLocked) {
				return true
			}
		}
	}
	return false
}

// resolve finds out about a topic's partitions and places what is staged. It ends when
// nothing is staged, or when that has to wait for what is on its way to partitions that are
// gone: handLocked has it begin again.
func (o *outbox) resolve(t *outTopic) {
	for {
		entry, err := o.lookUp(t)
		o.mu.Lock()
		awaits := err == nil && t.awaitsLocked(entry.partitions)
		if len(t.staged) == 0 || awaits {
			t.resolving = false
			if err == nil && !awaits {
				t.entry.Store(entry)
			}
			idle := o.rerouteLocked(t)
			o.mu.Unlock()
			for _, s := range idle {
				s.driveSoon()
			}
			return
		}
		if err != nil && !errors.Is(err, ErrTopicNotFound) {
			failed := o.unstageLocked(t, func() error { return err })
			o.handLocked([]*outBatch{failed})
			continue
		}
		o.mu.Unlock()
		o.place(t, entry, err)
	}
}

// rerouteLocked gives each queue of a topic of which nothing is under way to the broker
// that leads its partition now. It returns the senders that are to be driven.
func (o *outbox) rerouteLocked(t *outTopic) (idle []*outSender) {
	for _, q := range t.allLocked() {
		if len(q.flying) == 0 {
			q.routeLocked()
			if q.sender.noteLocked(q) {
				idle = append(idle, q.sender)
			}
		}
	}
	return idle
}

// lookUp asks for a topic's partitions until there is an answer or nothing is staged.
func (o *outbox) lookUp(t *outTopic) (*topicEntry, error) {
	var entry *topicEntry
	policy := retryPolicy{
		what: func() string { return "send to " + t.name }, topic: t.name,
		refusals: o.cfg.retries, faults: -1, backoff: backoff{o.cfg.retryBackoff, o.cfg.deliveryTimeout},
		onRetry: func(err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			t.last = err
		},
	}
	ctx, cancel := context.WithCancel(o.ctx)
	defer cancel()
	asked := false
	err := o.client.retry(ctx, policy, func(time.Duration) error {
		o.mu.Lock()
		left := len(t.staged)
		o.mu.Unlock()
		if left == 0 && asked {
			cancel()
			return endOf(ctx)
		}
		asked = true
		var err error
		entry, err = o.client.metadata.topic(ctx, t.name, true, o.client.patience())
		return err
	})
	return entry, err
}

// place puts what is staged into queues, also what is staged meanwhile. Without an entry
// the topic is not there, as far as is known, and the broker may choose, or create it.
func (o *outbox) place(t *outTopic, known *topicEntry, missing error) {
	for {
		o.mu.Lock()
		if known != nil && t.awaitsLocked(known.partitions) {
			o.mu.Unlock()
			return
		}
		t.sortStagedLocked()
		waiting := t.staged
		t.staged = nil
		if len(waiting) == 0 {
			if known != nil {
				t.entry.Store(known)
			}
			o.mu.Unlock()
			return
		}
		wave := t.wave
		o.handing.begin() // What is taken here is in no list meanwhile.
		o.mu.Unlock()
		// The application chooses, so that is done without the lock.
		chosen := make([]choice, len(waiting))
		for i := range waiting {
			chosen[i].partition, chosen[i].err = o.chooseOf(waiting[i].m, known)
		}
		o.mu.Lock()
		if o.stopped {
			if len(t.staged) > 0 {
				o.endWaveLocked(t.wave)
			}
			t.staged, t.wave = append(waiting, t.staged...), wave
			failed := o.unstageLocked(t, func() error { return &waitError{what: "send to " + t.name, end: ErrClosed, last: t.last} })
			o.handLocked([]*outBatch{failed})
			o.handing.ended()
			continue
		}
		failed, idle := o.distributeLocked(t, waiting, chosen, missing, wave)
		o.endWaveLocked(wave)
		o.handLocked(failed)
		o.handing.ended()
		for _, s := range idle {
			s.driveSoon()
		}
	}
}

// choice is the partition that a message goes to, or why there is none.
type choice struct {
	partition int32
	err       error
}

// distributeLocked puts messages into the queues of the partitions that were chosen for
// them. failed are those for which none was; idle are the senders to be driven.
func (o *outbox) distributeLocked(t *outTopic, waiting []staged, chosen []choice, missing error, wave int) (failed []*outBatch, idle []*outSender) {
	for i := range waiting {
		w := &waiting[i]
		if err := chosen[i].err; err != nil {
			b := o.tellingLocked(TopicPartition{t.name, PartitionAny}, []entry{w.e}, wave)
			b.fail(err)
			failed = append(failed, b)
			continue
		}
		q := t.queueLocked(o, chosen[i].partition)
		q.missing = missing
		q.addLocked(w.m, w.e)
		o.joinLocked(q.openLocked(), wave)
		if q.sender.noteLocked(q) {
			idle = append(idle, q.sender)
		}
	}
	return failed, idle
}

// chooseOf returns the partition that a message goes to, if that can be known by now.
func (o *outbox) chooseOf(m *Message, known *topicEntry) (int32, error) {
	if m.Partition != PartitionAny || known == nil {
		return m.Partition, nil
	}
	return choosePartition(o.cfg.partitioner, m, known.partitions)
}

// choosePartition asks the application, and checks what it says.
func choosePartition(p Partitioner, m *Message, n int32) (int32, error) {
	partition := p(m, n)
	if partition < 0 || partition >= n {
		return 0, fmt.Errorf("%w: WithPartitioner: returned %d for a topic of %d partitions", ErrInvalidConfig, partition, n)
	}
	return partition, nil
}

// refresh has what is known of a topic looked up again when it is old.
func (o *outbox) refresh(t *outTopic, known *topicEntry, now time.Duration) {
	if now-known.fetched.Sub(o.born) < o.cfg.metadataMaxAge {
		return
	}
	// What is old is returned at once, and asked for beside that.
	entry, err := o.client.metadata.topic(o.ctx, t.name, true, patience{limit: time.Nanosecond})
	if err != nil || entry == known {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case t.entry.Load() != known:
	case t.awaitsLocked(entry.partitions):
		t.entry.Store(nil) // Messages are staged until it does not.
		o.resolveLocked(t)
	default:
		t.entry.Store(entry)
	}
}

// forgetLocked has a topic's partitions found out anew, since an answer was not as it was
// to be expected.
func (o *outbox) forgetLocked(t *outTopic) {
	o.client.metadata.forget(t.name)
	t.entry.Store(nil)
	o.resolveLocked(t)
}

// unstageLocked takes out what is staged, failed; nil if nothing is.
func (o *outbox) unstageLocked(t *outTopic, why func() error) *outBatch {
	if len(t.staged) == 0 {
		return nil
	}
	entries := make([]entry, len(t.staged))
	for i := range t.staged {
		entries[i] = t.staged[i].e
	}
	t.staged = nil
	b := o.tellingLocked(TopicPartition{t.name, PartitionAny}, entries, t.wave)
	b.fail(why())
	o.endWaveLocked(t.wave)
	return b
}

// expireStagedLocked takes out what was staged before limit; nil if nothing was.
func (o *outbox) expireStagedLocked(t *outTopic, limit time.Duration, state string, left func(*entry)) *outBatch {
	t.sortStagedLocked()
	n := 0
	for n < len(t.staged) && t.staged[n].e.at <= limit {
		n++
	}
	rest, wave := t.staged[n:], t.wave
	t.staged = t.staged[:n]
	b := o.unstageLocked(t, func() error {
		return &waitError{what: "send to " + t.name, state: state, end: deliveryTimeout(o.cfg.deliveryTimeout), last: t.last}
	})
	t.staged = rest
	if len(rest) == 0 {
		return b
	}
	if b != nil {
		o.waves.counts[wave]++
	}
	left(&rest[0].e)
	return b
}
