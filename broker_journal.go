package robust

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// journal keeps consumer groups in a log of their own: what changes is appended, and the
// last word counts. When most of the log is out of date all that still counts is appended
// again, and the rest removed. A record's key says what it is; its value is JSON.
type journal struct {
	log *diskLog

	// changing is a token: what is appended, and what is remembered of it, come in
	// the same order.
	changing chan struct{}

	// The following belong to whoever has changing.
	live     int64     // bytes that count, about
	total    int64     // bytes in the log, about
	doubtful bool      // some of the log may not outlive a power failure, whatever is synced now
	again    time.Time // not to be written anew before
	closed   bool
	whole    int64 // offset from which on all that counted was last written anew; -1 if that is not known

	mu     sync.Mutex // guards the following
	groups map[string]*memoryGroup
}

// Keys of a journal's records.
const (
	journalState   = "state"   // of a group; its last
	journalOffsets = "offsets" // that a group has committed
	journalDelete  = "delete"  // of a group
	journalTopic   = "topic"   // that is gone, and offsets with it
	journalWhole   = "whole"   // ends what was written anew: nothing before it counts
)

// groupsName is the directory of the journal in a data directory, and stands for a topic in
// the headers of its files.
const groupsName = "groups"

const (
	journalSegment = 16 << 20
	// journalSlack is what a journal has at least before it is written anew.
	journalSlack = 4 << 20
	// journalRetry is how long it waits, at least, after it could not be written anew.
	journalRetry = 10 * time.Second
	// journalBatch is how many offsets a record has at most.
	journalBatch = 1000
)

// journalEntry is a record's value.
type journalEntry struct {
	Group   string         `json:"group,omitempty"`
	State   []byte         `json:"state,omitempty"`
	Offsets []StoredOffset `json:"offsets,omitempty"`
	TopicID string         `json:"topic_id,omitempty"`
	From    int64          `json:"from,omitempty"` // the offset at which that was begun
}

// openJournal reads a journal. Offsets of topics that are not known are forgotten.
func openJournal(ctx context.Context, store *logStore, dir string, topics map[string]bool) (*journal, error) {
	config := LogConfig{SegmentBytes: journalSegment}
	j := &journal{changing: make(chan struct{}, 1), groups: make(map[string]*memoryGroup), whole: -1}
	j.changing <- struct{}{}
	defer func() { <-j.changing }()
	l, err := openLog(ctx, store, dir, "consumer groups", segmentHeader{topicID: groupsName}, config, logEvents{doubted: j.restore})
	if err != nil {
		return nil, fmt.Errorf("consumer groups: %w", err)
	}
	j.log = l
	if err := j.read(ctx); err != nil {
		j.closed = true
		_ = l.Close() // What was read tells more.
		return nil, fmt.Errorf("consumer groups: %w", err)
	}
	for _, g := range j.groups {
		maps.DeleteFunc(g.offsets, func(id string, _ map[int32]StoredOffset) bool { return !topics[id] })
	}
	j.live = j.measure()
	doubted, err := l.segmentsDoubted()
	if err != nil {
		j.closed = true
		_ = l.Close() // What was found out tells more.
		return nil, fmt.Errorf("consumer groups: %w", err)
	}
	if j.doubtful = j.doubtful || doubted; j.doubtful {
		j.compact()
	}
	return j, nil
}

// read brings back what the log has. What is damaged is of no account if all that counts was
// written anew behind it: where the disk kept that from being finished, what is out of date and
// in doubt is still there. Else, if a failed sync has lost it, groups are what they were before it,
// all of them: what stands behind it may be a part of what was to be written anew.
func (j *journal) read(ctx context.Context) error {
	start, end := j.log.Bounds()
	var first, damaged *CorruptError // damaged is the last
	lost := true                     // by failed syncs
	for at := start; at < end; {
		var c *CorruptError
		err := j.readFrom(ctx, at, end)
		if err == nil {
			break
		}
		if !errors.As(err, &c) || c.To <= at {
			return err
		}
		doubted, err := j.log.segmentDoubted(c.From)
		if err != nil {
			return err
		}
		lost = lost && doubted
		first, damaged, at = cmp.Or(first, c), c, c.To
	}
	whole := j.whole
	switch {
	case damaged == nil:
		return nil
	case whole >= damaged.To:
		j.log.store.warn.warn("consumer groups were damaged before they were written anew; nothing is lost", "", "error", damaged)
	case lost:
		j.log.store.warn.warn("consumer groups are older than they were: a failed sync has lost what came last", "", "error", first)
		whole, end = start, first.From
	default:
		return damaged
	}
	clear(j.groups)
	j.total, j.whole, j.doubtful = 0, -1, true
	return j.readFrom(ctx, whole, end)
}

// readFrom is read for the offsets from one to another.
func (j *journal) readFrom(ctx context.Context, offset, end int64) error {
	for offset < end {
		r, err := j.log.Read(ctx, offset, scanBytes)
		if err != nil {
			return err
		}
		for rest := r.Batches; len(rest) > 0; {
			b := cutBatch(rest)
			rest = rest[len(b):]
			j.total += int64(len(b))
			offset = b.nextOffset()
			if err := j.replayBatch(b); err != nil {
				r.Release()
				return err
			}
		}
		r.Release()
	}
	return nil
}

func (j *journal) replayBatch(b batch) error {
	records := b.records()
	var m Message
	for {
		more, err := records.next(&m)
		if err == nil && more {
			err = j.replay(&m)
		}
		if err != nil {
			return fmt.Errorf("record at offset %d: %w", m.Offset, err)
		}
		if !more {
			return nil
		}
	}
}

func (j *journal) replay(m *Message) error {
	var e journalEntry
	if err := json.Unmarshal(m.Value, &e); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return j.apply(string(m.Key), &e)
}

// apply remembers what an entry says.
func (j *journal) apply(kind string, e *journalEntry) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch kind {
	case journalState:
		j.groupLocked(e.Group).state = e.State
	case journalOffsets:
		g := j.groupLocked(e.Group)
		for _, o := range e.Offsets {
			g.put(o)
		}
	case journalDelete:
		delete(j.groups, e.Group)
	case journalTopic:
		for _, g := range j.groups {
			delete(g.offsets, e.TopicID)
		}
	case journalWhole:
		j.whole = e.From
	default:
		return fmt.Errorf("%w: a record %q", ErrUnsupported, shorten(kind))
	}
	return nil
}

// groupLocked returns a group, which is made if it is new.
func (j *journal) groupLocked(id string) *memoryGroup {
	g := j.groups[id]
	if g == nil {
		g = newMemoryGroup()
		j.groups[id] = g
	}
	return g
}

func (j *journal) all() []StoredGroup {
	j.mu.Lock()
	defer j.mu.Unlock()
	var groups []StoredGroup
	for id, g := range j.groups {
		groups = append(groups, StoredGroup{ID: id, State: slices.Clone(g.state), Offsets: g.all()})
	}
	return groups
}

func (j *journal) putState(ctx context.Context, id string, state []byte) error {
	return j.put(ctx, journalState, journalEntry{Group: id, State: slices.Clone(state)})
}

func (j *journal) putOffsets(ctx context.Context, id string, offsets []StoredOffset) error {
	var entries []journalEntry
	for chunk := range slices.Chunk(offsets, journalBatch) {
		entries = append(entries, journalEntry{Group: id, Offsets: slices.Clone(chunk)})
	}
	if len(entries) == 0 {
		return nil
	}
	return j.put(ctx, journalOffsets, entries...)
}

func (j *journal) deleteGroup(ctx context.Context, id string) error {
	return j.put(ctx, journalDelete, journalEntry{Group: id})
}

func (j *journal) forgetTopic(ctx context.Context, id string) error {
	return j.put(ctx, journalTopic, journalEntry{TopicID: id})
}

// put appends entries of one kind, all of them or none, and remembers them.
func (j *journal) put(ctx context.Context, kind string, entries ...journalEntry) error {
	batch, err := encodeEntries(kind, entries)
	if err != nil {
		return err
	}
	select {
	case j.changing <- struct{}{}:
		defer func() { <-j.changing }()
	case <-ctx.Done():
		return endOf(ctx)
	}
	if j.doubtful {
		// Behind a hole it would not count, unless all is written anew there first.
		if err := j.rewrite(); err != nil {
			return err
		}
	}
	if err := j.append(batch, AcksStored); err != nil {
		return err
	}
	for i := range entries {
		if err := j.apply(kind, &entries[i]); err != nil {
			return err
		}
	}
	j.compact()
	return nil
}

func encodeEntries(kind string, entries []journalEntry) ([]byte, error) {
	messages := make([]*Message, len(entries))
	for i := range entries {
		value, err := json.Marshal(&entries[i])
		if err != nil {
			return nil, err
		}
		messages[i] = &Message{Key: []byte(kind), Value: value}
	}
	return appendBatch(nil, messages...), nil
}

// append appends a batch and waits for it, whatever may end meanwhile: what is remembered
// must be what is stored.
func (j *journal) append(batch []byte, acks Acks) error {
	stored := make(chan error, 1)
	j.log.Append(batch, acks, func(r AppendResult) { stored <- r.Err })
	err := <-stored
	if err == nil {
		j.total += int64(len(batch))
	}
	return err
}

// measure returns about how many bytes of a log all that counts takes.
func (j *journal) measure() (n int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, g := range j.groups {
		n += int64(len(id)) + int64(len(g.state))*4/3 + batchHeaderSize
		for _, o := range g.all() {
			n += int64(len(o.Topic)+len(o.TopicID)+len(o.Metadata)) + 80
		}
	}
	return n
}

// compact writes what counts anew if most of the log does not, or is in doubt, and removes what
// is before; the caller has the token. Whenever it stops, the log still says the same.
func (j *journal) compact() {
	start, _ := j.log.Bounds()
	stale := j.doubtful || j.total >= journalSlack+4*j.live
	if !stale && start >= j.whole || time.Now().Before(j.again) {
		return
	}
	var err error
	if stale {
		err = j.rewrite()
	}
	if err == nil {
		err = j.log.drop(j.whole)
	}
	j.live = j.measure()
	if err == nil {
		j.total = j.live
		return
	}
	j.again = time.Now().Add(journalRetry)
	j.log.store.warn.warn("consumer groups cannot be compacted", "", "error", err)
}

// restore writes all that counts anew, after a sync of the log has failed: a power failure
// could leave a hole in it, and what is behind a hole does not say what was before.
func (j *journal) restore() {
	j.changing <- struct{}{}
	defer func() { <-j.changing }()
	if j.log == nil || j.closed {
		return
	}
	j.doubtful = true
	j.compact()
}

// rewrite appends all that counts anew; the caller has the token.
func (j *journal) rewrite() error {
	if err := j.log.exclusive(j.log.roll); err != nil {
		return storageError(err)
	}
	_, from := j.log.Bounds()
	write := func(kind string, e journalEntry) error {
		batch, err := encodeEntries(kind, []journalEntry{e})
		if err != nil {
			return err
		}
		return j.append(batch, AcksStored)
	}
	for _, g := range j.all() {
		if err := write(journalState, journalEntry{Group: g.ID, State: g.State}); err != nil {
			return err
		}
		for chunk := range slices.Chunk(g.Offsets, journalBatch) {
			if err := write(journalOffsets, journalEntry{Group: g.ID, Offsets: chunk}); err != nil {
				return err
			}
		}
	}
	if err := write(journalWhole, journalEntry{From: from}); err != nil {
		return err
	}
	j.whole, j.doubtful = from, false
	return nil
}

func (j *journal) close() error {
	j.changing <- struct{}{}
	defer func() { <-j.changing }()
	j.closed = true
	return j.log.Close()
}
