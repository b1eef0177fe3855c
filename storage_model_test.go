package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// lifeEnd is how a storage was left.
type lifeEnd int

const (
	endedClean  lifeEnd = iota // closed
	endedKilled                // the process ended
	endedPower                 // the power went
)

func (e lifeEnd) String() string { return [...]string{"closed", "killed", "power lost"}[e] }

// storageModel is what a storage was told and what it has answered, which says what it
// has to hold, may hold and must not hold. It is told of everything before the storage is,
// and of every answer at once.
type storageModel struct {
	policy  SyncPolicy
	mayFail bool         // the files may fail while the storage lives
	doubted atomic.Bool  // a sync has failed: without SyncAlways acknowledged messages may go
	evicted atomic.Bool  // and the system has forgotten them
	trace   func(string) // may be nil

	mu       sync.Mutex // guards the following and what hangs on it
	problems []string
	life     int // of the storage: openings so far
	logs     map[logKey]*logModel
	topics   map[string]*topicModel // by ID
	groups   map[string]*groupModel
	ids      int
	probed   int // producers that a log was to know after an opening
}

type logKey struct {
	id        string // the topic's
	partition int32
}

func (k logKey) String() string { return fmt.Sprintf("%s/%d", k.id, k.partition) }

// logModel is a partition.
type logModel struct {
	key    logKey
	config LogConfig
	bodies map[string]*batchModel // by what follows the broker's fields, different in each
	list   []*batchModel          // in the order of their making

	producers []*producerModel

	deleted int64     // what an acknowledged DeleteBefore said
	asked   int64     // what any said
	began   int64     // where it began after the power had gone
	expired time.Time // the latest time that Expire was told
	epoch   int32     // the highest that was seen
	raised  int32     // what the epoch of this life has to be above
}

// batchModel is a batch that a log was asked to store.
type batchModel struct {
	body     string
	count    int64
	size     int64
	appender int
	number   int // of all batches of the log, in the order of their making
	life     int
	latest   int64 // time of its last record
	made     time.Time

	produced producerFields // of a producer's
	data     []byte         // of a producer's, as it is sent

	offset  int64 // -1 until it is known
	epoch   int32 // once seen
	acked   bool
	ackedAt time.Time
	lasts   bool // the power may go
	seen    bool // it was read
	refused bool
	lost    bool // it was there and is not any more: never to be seen again
}

type topicModel struct {
	id string
	// may are the forms that it may have now, nil for none at all. There is more than one
	// after an operation without an answer.
	may []*StoredTopic
}

// groupModel is a group: a state that is certain, and what has happened since. The first
// acked operations were acknowledged.
type groupModel struct {
	state   groupContent
	history []groupChange
	acked   int
}

type groupContent struct {
	there   bool
	state   string
	offsets map[logKey]StoredOffset
}

type groupChange struct {
	ackedAt time.Time
	failed  bool // it may have happened, or not
	apply   func(*groupContent)
}

// mayBe tells whether an error is one that failing files may lead to.
func (m *storageModel) mayBe(err error) bool {
	return m.mayFail && (errors.Is(err, ErrStorage) || m.inDoubt() && errors.Is(err, ErrCorrupt))
}

// inDoubt tells whether what is not known to be synced may be anywhere or nowhere.
func (m *storageModel) inDoubt() bool { return m.doubted.Load() && m.policy != SyncAlways }

func newStorageModel(policy SyncPolicy) *storageModel {
	return &storageModel{
		policy: policy, logs: make(map[logKey]*logModel),
		topics: make(map[string]*topicModel), groups: make(map[string]*groupModel),
	}
}

// problem notes what should not be.
func (m *storageModel) problem(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.problemLocked(format, args...)
}

func (m *storageModel) problemLocked(format string, args ...any) {
	if len(m.problems) < 10 {
		m.problems = append(m.problems, fmt.Sprintf("life %d: ", m.life)+fmt.Sprintf(format, args...))
	}
}

// note tells those who trace what happens.
func (m *storageModel) note(format string, args ...any) {
	if m.trace != nil {
		m.trace(fmt.Sprintf(format, args...))
	}
}

// found returns the problems so far, one a line.
func (m *storageModel) found() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.problems, "\n")
}

// newID returns a topic ID that no other has.
func (m *storageModel) newID() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ids++
	return fmt.Sprint("t", m.ids)
}

func (m *storageModel) log(key logKey) *logModel {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.logLocked(key)
}

func (m *storageModel) logLocked(key logKey) *logModel {
	l := m.logs[key]
	if l == nil {
		l = &logModel{key: key, bodies: make(map[string]*batchModel)}
		m.logs[key] = l
	}
	return l
}

// makeBatches returns batches to be appended in one piece: of 1 to 4 records, of up to
// size bytes or a little more; or all alike, so that one may stand where another stood.
func (m *storageModel) makeBatches(rng *rand.Rand, l *logModel, appender, count, size int, alike bool) ([]byte, []*batchModel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var data []byte
	var made []*batchModel
	for range count {
		records := 1 + rng.IntN(4)
		if alike {
			records = 1
		}
		ms := make([]*Message, records)
		b := &batchModel{appender: appender, number: len(l.list), life: m.life, offset: -1, count: int64(len(ms)), made: time.Now()}
		for i := range ms {
			value := fmt.Sprintf("%s %d %d.%d ", l.key, appender, b.number, i)
			fill := rng.IntN(size + 1)
			if alike {
				fill = max(0, size-len(value))
			}
			value += strings.Repeat(string(rune('a'+rng.IntN(26))), fill)
			b.latest = int64(b.number*10 + rng.IntN(50))
			ms[i] = &Message{Value: []byte(value), Timestamp: b.latest}
		}
		from := len(data)
		data = appendBatch(data, ms...)
		b.body, b.size = string(data[from+batchAttributesAt:]), int64(len(data)-from)
		l.bodies[b.body] = b
		l.list = append(l.list, b)
		made = append(made, b)
	}
	return data, made
}

// answered notes what an append has returned. ended is whether the storage's life is over:
// then an error says nothing of what has become of it.
func (m *storageModel) answered(l *logModel, made []*batchModel, acks Acks, r AppendResult, ended bool) {
	m.note("%s: batches %d to %d: %+v", l.key, made[0].number, made[len(made)-1].number, r)
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Err != nil {
		if !ended && !m.mayFail {
			m.problemLocked("%s: append: %v", l.key, r.Err)
		}
		for _, b := range made {
			b.refused = !ended && !m.inDoubt()
			if b.seen && b.refused {
				m.problemLocked("%s: batch %d was read at %d, and was refused: %v", l.key, b.number, b.offset, r.Err)
			}
		}
		return
	}
	if acks == AcksSynced && r.Acks != AcksSynced {
		m.problemLocked("%s: synced was asked for, %s was given", l.key, r.Acks)
	}
	next := r.BaseOffset
	for _, b := range made {
		if b.offset >= 0 && b.offset != next {
			m.problemLocked("%s: batch %d was read at %d and acknowledged at %d", l.key, b.number, b.offset, next)
		}
		b.offset, b.acked, b.ackedAt = next, true, time.Now()
		b.lasts = r.Acks == AcksSynced || m.policy == SyncAlways
		next += b.count
	}
}

// sawLocked notes a batch that was read, which has the offset that its place says.
func (m *storageModel) sawLocked(l *logModel, b batch) *batchModel {
	known := l.bodies[string(b[batchAttributesAt:])]
	switch {
	case known == nil:
		m.problemLocked("%s: at %d there is a batch that was never appended", l.key, b.baseOffset())
		return nil
	case known.lost:
		m.problemLocked("%s: batch %d of life %d was lost and came back, at %d", l.key, known.number, known.life, b.baseOffset())
	case known.offset >= 0 && known.offset != b.baseOffset():
		m.problemLocked("%s: batch %d was at %d and is at %d", l.key, known.number, known.offset, b.baseOffset())
	case known.refused && known.life == m.life:
		m.problemLocked("%s: batch %d was refused and is there, at %d", l.key, known.number, b.baseOffset())
	}
	if known.epoch != 0 && known.epoch != b.epoch() {
		m.problemLocked("%s: batch %d had epoch %d and has %d", l.key, known.number, known.epoch, b.epoch())
	}
	known.offset, known.epoch, known.seen = b.baseOffset(), b.epoch(), true
	if known.life == m.life && known.epoch <= l.raised {
		m.problemLocked("%s: batch %d has epoch %d; one before a loss had %d", l.key, known.number, known.epoch, l.raised)
	}
	l.epoch = max(l.epoch, known.epoch)
	return known
}

// read reads once, and checks what it gets. An offset that is not there any more is
// none, nor is an error, if the storage may fail by now.
func (m *storageModel) read(ctx context.Context, l *logModel, log LogReader, offset int64, maxBytes int) (next int64, err error) {
	r, err := log.Read(ctx, offset, maxBytes)
	if err != nil {
		return offset, err
	}
	defer r.Release()
	next = offset
	for rest := r.Batches; len(rest) > 0; {
		b, after, err := parseBatch(rest)
		if err != nil {
			m.problem("%s: read at %d: %v", l.key, offset, err)
			return offset, err
		}
		if b.baseOffset() > next || b.nextOffset() <= next || (next > offset && b.baseOffset() != next) {
			m.problem("%s: read at %d, and got %d to %d where %d is due", l.key, offset, b.baseOffset(), b.nextOffset(), next)
		}
		m.mu.Lock()
		m.sawLocked(l, b)
		m.mu.Unlock()
		rest, next = after, b.nextOffset()
	}
	if next == offset {
		if _, end := log.Bounds(); offset < end {
			// The end may have moved meanwhile; then there is something to read now.
			if r, err := log.Read(ctx, offset, 1); err == nil {
				if len(r.Batches) == 0 {
					m.problem("%s: nothing to read at %d, below the end, %d", l.key, offset, end)
				}
				r.Release()
			}
		}
	}
	return next, nil
}

// opened says that a storage was opened, at what time those before have ended.
func (m *storageModel) opened() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
}

// loggedBatch is a batch as a full read of a log has found it.
type loggedBatch struct {
	model      *batchModel
	base, next int64
	epoch      int32
}

// checkLog reads a whole log, after an opening, and compares. at is when the storage
// ended.
func (m *storageModel) checkLog(ctx context.Context, rng *rand.Rand, l *logModel, log PartitionLog, how lifeEnd, at time.Time) {
	start, end := log.Bounds()
	var found []loggedBatch
	var gone [][2]int64 // what cannot be read
	for offset := start; offset < end; {
		r, err := log.Read(ctx, offset, 1+rng.IntN(5000))
		var corrupt *CorruptError
		if m.inDoubt() && errors.As(err, &corrupt) && corrupt.From <= offset && offset < corrupt.To {
			gone = append(gone, [2]int64{offset, corrupt.To})
			offset = corrupt.To
			continue
		}
		if err != nil {
			m.problem("%s: %s: read at %d of %d to %d: %v", l.key, how, offset, start, end, err)
			return
		}
		was := offset
		m.mu.Lock()
		for rest := r.Batches; len(rest) > 0; {
			b, after, err := parseBatch(rest)
			if err != nil {
				m.problemLocked("%s: %s: read at %d: %v", l.key, how, offset, err)
				break
			}
			if b.baseOffset() != offset && (len(found) > 0 || b.baseOffset() > offset) || b.nextOffset() <= offset || b.nextOffset() > end {
				m.problemLocked("%s: %s: %d to %d where %d is due, and the end is %d", l.key, how, b.baseOffset(), b.nextOffset(), offset, end)
			}
			if known := m.sawLocked(l, b); known != nil {
				found = append(found, loggedBatch{known, b.baseOffset(), b.nextOffset(), b.epoch()})
			}
			rest, offset = after, b.nextOffset()
		}
		m.mu.Unlock()
		r.Release()
		if offset == was {
			m.problem("%s: %s: nothing to read at %d, below the end, %d", l.key, how, offset, end)
			return
		}
	}
	m.mu.Lock()
	for _, b := range l.list {
		// The log says that they are lost.
		b.lost = b.lost || !b.lasts && slices.ContainsFunc(gone, func(r [2]int64) bool { return r[0] < b.offset+b.count && b.offset < r[1] })
	}
	m.compareLocked(l, found, start, end, how, at)
	m.mu.Unlock()
	if len(gone) > 0 {
		return
	}
	m.checkEpochs(ctx, l, log, found, start, end)
	m.checkTimes(ctx, rng, l, log, found, start, end)
}

// compareLocked holds what a log was found to have against what it must and may have.
func (m *storageModel) compareLocked(l *logModel, found []loggedBatch, start, end int64, how lifeEnd, at time.Time) {
	last := make(map[int]int) // by appender
	epoch := int32(0)
	for _, f := range found {
		b := f.model
		if before, ok := last[b.appender]; ok && before >= b.number {
			m.problemLocked("%s: %s: batch %d of appender %d stands behind %d", l.key, how, b.number, b.appender, before)
		}
		last[b.appender] = b.number
		if f.epoch < epoch {
			m.problemLocked("%s: %s: epoch %d at %d, behind %d", l.key, how, f.epoch, f.base, epoch)
		}
		epoch = f.epoch
	}
	present := make(map[*batchModel]bool)
	for _, f := range found {
		present[f.model] = true
	}
	var kept int64
	for _, b := range l.list {
		switch {
		case present[b]:
			kept += b.size
			b.acked = true // As good as: it can be read.
			if b.ackedAt.IsZero() || how == endedKilled {
				b.ackedAt = time.Now()
			}
			// What a failed sync has dropped is still there to be read, by another process,
			// too: that it is found says nothing, until the power has gone.
			b.lasts = b.lasts || how == endedPower || how == endedClean && !m.inDoubt() || m.policy == SyncAlways
			if b.refused && m.laterAckLocked(l, b) {
				m.problemLocked("%s: %s: batch %d was refused and is there, at %d", l.key, how, b.number, b.offset)
			}
			// It was sent again, without an answer, or left by a write or a sync that failed and
			// not removed in time. Now it is stored: readers and its producer rely on that.
			b.refused = false
		case b.lost:
		case b.offset < 0:
			// It never was there, and must not come up from now on; or it was, below the start.
			b.lost = start == 0
		case b.offset+b.count <= start:
			m.checkRemovalLocked(l, b, how)
		case b.offset < end:
			m.problemLocked("%s: %s: batch %d was at %d and is not; the log has %d to %d", l.key, how, b.number, b.offset, start, end)
		default:
			if m.mustSurvive(b, how, at) {
				m.problemLocked("%s: %s: batch %d of life %d is lost, at %d; the log has %d to %d", l.key, how, b.number, b.life, b.offset, start, end)
			}
			b.lost = true
		}
	}
	if start < l.deleted {
		m.problemLocked("%s: %s: the log starts at %d; it was deleted before %d", l.key, how, start, l.deleted)
	}
	if how == endedPower {
		l.began = start // However little the power has left.
	}
	if bytes := l.config.RetentionBytes; bytes > 0 && start > max(l.asked, l.began) && kept < bytes && !m.inDoubt() {
		m.problemLocked("%s: %s: the log starts at %d and holds %d bytes; retention is %d", l.key, how, start, kept, bytes)
	}
	if how != endedClean {
		l.raised = l.epoch
	}
}

// checkRemovalLocked checks that a batch below the start of a log may have been removed.
func (m *storageModel) checkRemovalLocked(l *logModel, b *batchModel, how lifeEnd) {
	switch {
	case b.offset+b.count <= l.asked, l.config.RetentionBytes > 0:
	case l.config.RetentionAge > 0 && !l.expired.IsZero() && b.made.Add(-time.Millisecond).Before(l.expired.Add(-l.config.RetentionAge)):
	default:
		m.problemLocked("%s: %s: batch %d at %d was removed, and nobody asked for it", l.key, how, b.number, b.offset)
	}
}

// laterAckLocked tells whether a batch that came later, in the same life, was acknowledged.
func (m *storageModel) laterAckLocked(l *logModel, b *batchModel) bool {
	return slices.ContainsFunc(l.list[b.number+1:], func(other *batchModel) bool {
		return other.life == b.life && other.acked && !other.refused && other.appender == b.appender
	})
}

// mustSurvive tells whether a batch has to be there although the storage ended so.
func (m *storageModel) mustSurvive(b *batchModel, how lifeEnd, at time.Time) bool {
	switch {
	case b.lasts:
		return true
	case m.inDoubt() && (how == endedPower || m.evicted.Load()):
		return false
	case how != endedPower:
		return b.acked || b.seen
	case m.policy == SyncAlways:
		return b.acked || b.seen
	case m.policy == SyncNever:
		return false
	default:
		return b.acked && b.ackedAt.Add(time.Duration(m.policy)).Before(at)
	}
}

func (m *storageModel) checkEpochs(ctx context.Context, l *logModel, log PartitionLog, found []loggedBatch, start, end int64) {
	for epoch := range l.epoch + 2 {
		want, i := end, slices.IndexFunc(found, func(f loggedBatch) bool { return f.epoch > epoch })
		if i >= 0 {
			want = found[i].base
		}
		got, err := log.EpochEnd(ctx, epoch)
		switch {
		case err != nil:
			m.problem("%s: end of epoch %d: %v", l.key, epoch, err)
		case (i == 0 || len(found) == 0) && got <= max(want, start): // What was removed is not known any more.
		case got != want:
			m.problem("%s: end of epoch %d is %d, want %d; the log has %d to %d", l.key, epoch, got, want, start, end)
		}
	}
}

func (m *storageModel) checkTimes(ctx context.Context, rng *rand.Rand, l *logModel, log PartitionLog, found []loggedBatch, start, end int64) {
	if len(found) == 0 {
		return
	}
	f := found[rng.IntN(len(found))].model
	for _, at := range []int64{f.latest, f.latest + int64(rng.IntN(50))} {
		want := end
		for _, f := range found {
			if offset, ok := f.model.offsetAt(at, start); ok {
				want = offset
				break
			}
		}
		got, err := log.OffsetAt(ctx, at)
		if err != nil || got != want {
			m.problem("%s: offset at time %d is %d (%v), want %d; the log has %d to %d", l.key, at, got, err, want, start, end)
		}
	}
}

// offsetAt returns the first offset from start on whose time is at or later.
func (b *batchModel) offsetAt(at, start int64) (int64, bool) {
	head := appendBatch(nil, &Message{})[:batchAttributesAt]
	encoded := slices.Concat(head, []byte(b.body))
	encoded.stamp(b.offset, 0, 0)
	for records := encoded.records(); ; {
		var msg Message
		if more, err := records.next(&msg); err != nil || !more {
			return 0, false
		}
		if msg.Timestamp >= at && msg.Offset >= start {
			return msg.Offset, true
		}
	}
}

// deleteBefore deletes, and notes it.
func (m *storageModel) deleteBefore(ctx context.Context, l *logModel, log PartitionLog, offset int64) error {
	m.mu.Lock()
	l.asked = max(l.asked, offset)
	m.mu.Unlock()
	err := log.DeleteBefore(ctx, offset)
	if err == nil {
		m.mu.Lock()
		l.deleted = max(l.deleted, offset)
		m.mu.Unlock()
		if start, _ := log.Bounds(); start < offset {
			m.problem("%s: the log starts at %d, deleted before %d", l.key, start, offset)
		}
	}
	return err
}

func (m *storageModel) expire(l *logModel, log PartitionLog, now time.Time) error {
	m.mu.Lock()
	if now.After(l.expired) {
		l.expired = now
	}
	m.mu.Unlock()
	return log.Expire(now)
}

// putTopic keeps a topic, and notes it.
func (m *storageModel) putTopic(ctx context.Context, s Storage, t StoredTopic) error {
	m.mu.Lock()
	model := m.topics[t.ID]
	if model == nil {
		model = &topicModel{id: t.ID, may: []*StoredTopic{nil}}
		m.topics[t.ID] = model
	}
	kept := t
	kept.Config = maps.Clone(t.Config)
	model.may = append(model.may, &kept)
	m.mu.Unlock()
	err := s.PutTopic(ctx, t)
	if err == nil {
		m.mu.Lock()
		model.may = []*StoredTopic{&kept}
		m.mu.Unlock()
	}
	return err
}

// deleteTopic deletes a topic and, in the model of every group, its offsets. No group may
// commit offsets of it meanwhile.
func (m *storageModel) deleteTopic(ctx context.Context, s Storage, t StoredTopic) error {
	m.mu.Lock()
	model := m.topics[t.ID]
	model.may = append(model.may, nil)
	m.mu.Unlock()
	err := s.DeleteTopic(ctx, t.Name)
	if err == nil {
		m.mu.Lock()
		model.may = []*StoredTopic{nil}
		m.mu.Unlock()
	}
	return err
}

// checkTopics compares the topics after an opening, and returns them.
func (m *storageModel) checkTopics(ctx context.Context, s Storage, how lifeEnd) []StoredTopic {
	topics, err := s.Topics(ctx)
	if err != nil {
		m.problem("%s: topics: %v", how, err)
		return nil
	}
	slices.SortFunc(topics, func(a, b StoredTopic) int { return strings.Compare(a.Name, b.Name) })
	m.mu.Lock()
	defer m.mu.Unlock()
	got := make(map[string]*StoredTopic)
	for i, t := range topics {
		if m.topics[t.ID] == nil {
			m.problemLocked("%s: topic %+v was never made", how, t)
		}
		if i > 0 && topics[i-1].Name == t.Name {
			m.problemLocked("%s: there are two topics: %+v, %+v", how, topics[i-1], t)
		}
		got[t.ID] = &t
	}
	for id, model := range m.topics {
		if !slices.ContainsFunc(model.may, func(t *StoredTopic) bool { return sameTopic(t, got[id]) }) {
			m.problemLocked("%s: topic %s is %+v, want %+v", how, id, got[id], model.may)
		}
		model.may = []*StoredTopic{got[id]}
	}
	return topics
}

func sameTopic(a, b *StoredTopic) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && a.ID == b.ID && a.Partitions == b.Partitions && maps.Equal(a.Config, b.Config)
}

// changeGroup notes a change of a group and makes it. A group's come one at a time.
func (m *storageModel) changeGroup(id string, apply func(*groupContent), change func() error) error {
	m.mu.Lock()
	g := m.groups[id]
	if g == nil {
		g = &groupModel{}
		m.groups[id] = g
	}
	g.history = append(g.history, groupChange{apply: apply})
	m.mu.Unlock()
	err := change()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		g.history[len(g.history)-1].ackedAt = time.Now()
		g.acked = len(g.history)
	}
	g.history[len(g.history)-1].failed = err != nil && m.mayFail
	return err
}

func (m *storageModel) putGroup(ctx context.Context, s Storage, id, state string) error {
	return m.changeGroup(id, func(g *groupContent) {
		g.there, g.state = true, state
	}, func() error { return s.PutGroup(ctx, id, []byte(state)) })
}

func (m *storageModel) putOffsets(ctx context.Context, s Storage, id string, offsets []StoredOffset) error {
	return m.changeGroup(id, func(g *groupContent) {
		g.there = true
		if g.offsets == nil {
			g.offsets = make(map[logKey]StoredOffset)
		}
		for _, o := range offsets {
			g.offsets[logKey{o.TopicID, o.Partition}] = o
		}
	}, func() error { return s.PutOffsets(ctx, id, offsets) })
}

func (m *storageModel) deleteGroup(ctx context.Context, s Storage, id string) error {
	return m.changeGroup(id, func(g *groupContent) { *g = groupContent{} }, func() error { return s.DeleteGroup(ctx, id) })
}

// without returns a content less the offsets of topics that are not there.
func (g groupContent) without(gone func(id string) bool) groupContent {
	g.offsets = maps.Clone(g.offsets)
	maps.DeleteFunc(g.offsets, func(key logKey, _ StoredOffset) bool { return gone(key.id) })
	return g
}

func (g groupContent) equal(other groupContent) bool {
	// A group of which nothing is kept may be there or not.
	empty := func(g groupContent) bool { return g.state == "" && len(g.offsets) == 0 }
	if empty(g) && empty(other) {
		return true
	}
	return g.there == other.there && g.state == other.state && maps.Equal(g.offsets, other.offsets)
}

// checkGroups compares all groups after an opening, when the topics are known.
func (m *storageModel) checkGroups(ctx context.Context, s Storage, how lifeEnd, at time.Time) {
	groups, err := s.Groups(ctx)
	if err != nil {
		m.problem("%s: groups: %v", how, err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := func(id string) bool { return m.topics[id] == nil || m.topics[id].may[0] == nil }
	got := make(map[string]groupContent)
	for _, g := range groups {
		if m.groups[g.ID] == nil || got[g.ID].there {
			m.problemLocked("%s: group %q was never made, or comes twice", how, g.ID)
			continue
		}
		content := groupContent{true, string(g.State), make(map[logKey]StoredOffset)}
		for _, o := range g.Offsets {
			content.offsets[logKey{o.TopicID, o.Partition}] = o
			if gone(o.TopicID) {
				m.problemLocked("%s: group %q has an offset of topic %s, which is gone", how, g.ID, o.TopicID)
			}
		}
		got[g.ID] = content
	}
	for _, id := range slices.Sorted(maps.Keys(m.groups)) {
		m.checkGroupLocked(id, m.groups[id], got[id].without(gone), gone, how, at)
	}
}

func (m *storageModel) checkGroupLocked(id string, g *groupModel, got groupContent, gone func(string) bool, how lifeEnd, at time.Time) {
	may := []groupContent{g.state} // what it may be
	matched := -1
	for i := 0; ; i++ {
		if slices.ContainsFunc(may, func(c groupContent) bool { return c.without(gone).equal(got) }) {
			matched = i
		}
		if i == len(g.history) {
			break
		}
		change := &g.history[i]
		for n, c := range may {
			if change.failed {
				may = append(may, c)
			}
			may[n].offsets = maps.Clone(c.offsets)
			change.apply(&may[n])
		}
		for n := len(may) - 1; n > 0; n-- {
			if slices.ContainsFunc(may[:n], may[n].equal) {
				may = slices.Delete(may, n, n+1)
			}
		}
	}
	least := g.acked
	if m.inDoubt() && (how == endedPower || m.evicted.Load()) {
		least = 0
	} else if how == endedPower && m.policy != SyncAlways {
		least = 0
		for i := range g.acked {
			if d := time.Duration(m.policy); d >= 0 && g.history[i].ackedAt.Add(d).Before(at) && !g.history[i].ackedAt.IsZero() {
				least = i + 1
			}
		}
	}
	if matched < least {
		m.problemLocked("%s: group %q is %+v, as after change %d of %d; %d were acknowledged", how, id, got, matched, len(g.history), least)
	}
	if m.policy == SyncAlways || how != endedKilled {
		g.state, g.history, g.acked = got, nil, 0
		return
	}
	// Nobody says that what was found lasts by now.
	g.history, g.acked = g.history[:max(0, matched)], max(0, matched)
	for i := range g.history {
		g.history[i].ackedAt = time.Now()
	}
}
