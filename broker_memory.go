package robust

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/google/uuid"
)

// NewMemoryStorage returns a [Storage] that keeps everything in memory. Given to one
// broker after another with [WithStorage], it outlives them.
func NewMemoryStorage() Storage {
	return &memoryStorage{
		topics: make(map[string]StoredTopic), logs: make(map[string]map[int32]*memoryLog),
		groups: make(map[string]*memoryGroup),
		id:     BrokerIdentity{ClusterID: uuid.NewString(), NodeID: uuid.NewString()},
	}
}

type memoryStorage struct {
	id BrokerIdentity // immutable

	mu     sync.Mutex // guards the following
	topics map[string]StoredTopic
	logs   map[string]map[int32]*memoryLog // by topic ID and partition
	groups map[string]*memoryGroup
}

// memoryGroup is what is kept of a group.
type memoryGroup struct {
	state   []byte
	offsets map[string]map[int32]StoredOffset // by topic ID and partition
}

func newMemoryGroup() *memoryGroup {
	return &memoryGroup{offsets: make(map[string]map[int32]StoredOffset)}
}

func (g *memoryGroup) put(o StoredOffset) {
	if g.offsets[o.TopicID] == nil {
		g.offsets[o.TopicID] = make(map[int32]StoredOffset)
	}
	g.offsets[o.TopicID][o.Partition] = o
}

// all returns the offsets.
func (g *memoryGroup) all() []StoredOffset {
	var offsets []StoredOffset
	for _, ofTopic := range g.offsets {
		offsets = slices.AppendSeq(offsets, maps.Values(ofTopic))
	}
	return offsets
}

func (s *memoryStorage) Identity(context.Context) (BrokerIdentity, error) { return s.id, nil }

func (s *memoryStorage) Topics(context.Context) ([]StoredTopic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.topics)), nil
}

func (s *memoryStorage) PutTopic(_ context.Context, t StoredTopic) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Config = maps.Clone(t.Config)
	s.topics[t.Name] = t
	return nil
}

func (s *memoryStorage) DeleteTopic(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.topics[name].ID
	delete(s.topics, name)
	delete(s.logs, id)
	for _, g := range s.groups {
		delete(g.offsets, id)
	}
	return nil
}

func (s *memoryStorage) Groups(context.Context) ([]StoredGroup, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var groups []StoredGroup
	for id, g := range s.groups {
		groups = append(groups, StoredGroup{ID: id, State: g.state, Offsets: g.all()})
	}
	return groups, nil
}

// groupLocked returns a group, which is made if it is new.
func (s *memoryStorage) groupLocked(id string) *memoryGroup {
	g := s.groups[id]
	if g == nil {
		g = newMemoryGroup()
		s.groups[id] = g
	}
	return g
}

func (s *memoryStorage) PutGroup(_ context.Context, id string, state []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groupLocked(id).state = slices.Clone(state)
	return nil
}

func (s *memoryStorage) PutOffsets(_ context.Context, id string, offsets []StoredOffset) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groupLocked(id)
	for _, o := range offsets {
		g.put(o)
	}
	return nil
}

func (s *memoryStorage) DeleteGroup(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.groups, id)
	return nil
}

func (s *memoryStorage) OpenPartition(_ context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logs[t.ID] == nil {
		s.logs[t.ID] = make(map[int32]*memoryLog)
	}
	l := s.logs[t.ID][partition]
	if l == nil {
		l = &memoryLog{}
		s.logs[t.ID][partition] = l
	}
	l.open(c, advanced)
	return l, nil
}

func (s *memoryStorage) Close() error { return nil }

const (
	minMemorySegment = 4 << 10
	maxMemorySegment = 1 << 20
	// memoryIndexBytes is how far apart the entries of a segment's index are.
	memoryIndexBytes = 4 << 10
)

// memoryLog is a partition's log in memory: segments of whole batches, the last of
// which is written. Bytes once written are never changed or moved, so that reads
// lend them without a copy; what retention removes lives on until its readers are
// done.
type memoryLog struct {
	mu       sync.RWMutex // guards the following
	config   LogConfig
	advanced func()
	closed   bool
	epoch    int32 // raised whenever the log is opened
	epochs   []epochStart
	segments []*memorySegment
	bytes    int64 // of all segments
	start    int64 // oldest offset that may be read
	end      int64 // high-water mark

	producers producerStates
}

// epochStart is where the records of an epoch begin.
type epochStart struct {
	epoch  int32
	offset int64
}

// memorySegment is a run of batches. buf has its final capacity from the start.
type memorySegment struct {
	base    int64
	buf     []byte
	index   []memoryIndex // of batches, in order, memoryIndexBytes apart or more
	maxTime int64         // of its records
	first   time.Time     // when its first batch was appended, whatever the clock says since
	latest  time.Time     // and its last
}

type memoryIndex struct {
	offset  int64 // base offset of the batch at pos
	pos     int
	maxTime int64 // of all records before pos in the segment
}

func (l *memoryLog) open(c LogConfig, advanced func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config, l.advanced, l.closed = c, advanced, false
	l.epoch++
}

func (l *memoryLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	if acks != AcksStored {
		done(AppendResult{Err: fmt.Errorf("%w: acks %q: messages are kept in memory", ErrUnsupported, acks)})
		return
	}
	result, advanced := l.append(batches) // advanced is nil if nothing is new.
	done(result)
	if advanced != nil {
		advanced()
	}
}

func (l *memoryLog) append(batches []byte) (r AppendResult, advanced func()) {
	at := time.Now()
	now := at.UnixMilli()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return AppendResult{Err: ErrClosed}, nil
	}
	// All batches are checked before any is stored.
	next := l.end
	for rest := batches; len(rest) > 0; {
		b, r, err := parseBatch(rest)
		if err != nil {
			return AppendResult{Err: err}, nil
		}
		if b.producer().id >= 0 {
			before, repeated, err := l.producers.appendAlone(b, batches, next, now)
			if err != nil || repeated {
				return AppendResult{BaseOffset: before.base, AppendTime: before.time, Repeated: repeated, Err: err}, nil
			}
		}
		b.stamp(next, l.epoch, now)
		next = b.nextOffset()
		rest = r
	}
	base := l.end
	if n := len(l.epochs); next > base && (n == 0 || l.epochs[n-1].epoch < l.epoch) {
		l.epochs = append(l.epochs, epochStart{l.epoch, base})
	}
	for rest := batches; len(rest) > 0; {
		b := cutBatch(rest)
		l.storeLocked(b, at)
		rest = rest[len(b):]
	}
	l.end = next
	l.producers.settle(next)
	l.trimBytesLocked()
	return AppendResult{BaseOffset: base, AppendTime: now}, l.advanced
}

// storeLocked copies a stamped batch to the end of the log.
func (l *memoryLog) storeLocked(b batch, now time.Time) {
	var s *memorySegment
	if n := len(l.segments); n > 0 {
		s = l.segments[n-1]
	}
	// A segment goes as a whole, when its last batch is too old: it must not take in
	// batches of all ages.
	aged := s != nil && l.config.RetentionAge > 0 && now.Sub(s.first) > l.config.RetentionAge/4
	if s == nil || aged || len(s.buf)+len(b) > cap(s.buf) {
		// Segments begin small and double, so that a partition of few messages
		// costs little.
		size := minMemorySegment
		if s != nil {
			size = max(size, 2*len(s.buf))
		}
		size = min(size, maxMemorySegment, int(l.config.SegmentBytes))
		if r := l.config.RetentionBytes; r > 0 {
			// Whole segments are removed: a few of them make up the limit.
			size = min(size, max(minMemorySegment, int(min(r/4, maxMemorySegment))))
		}
		size = max(size, len(b))
		s = &memorySegment{base: b.baseOffset(), buf: make([]byte, 0, size), maxTime: b.maxTime(), first: now}
		l.segments = append(l.segments, s)
	}
	if n := len(s.index); n == 0 || len(s.buf)-s.index[n-1].pos >= memoryIndexBytes {
		s.index = append(s.index, memoryIndex{b.baseOffset(), len(s.buf), s.maxTime})
	}
	s.buf = append(s.buf, b...)
	s.maxTime = max(s.maxTime, b.maxTime())
	s.latest = now
	l.bytes += int64(len(b))
}

func (l *memoryLog) Read(_ context.Context, offset int64, maxBytes int) (LogRead, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.closed:
		return LogRead{}, ErrClosed
	case offset < l.start || offset > l.end:
		return LogRead{}, fmt.Errorf("%w: offset %d, the log holds %d to %d", ErrOffsetOutOfRange, offset, l.start, l.end)
	case offset == l.end:
		return LogRead{}, nil
	}
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].base > offset }) - 1
	s := l.segments[i]
	from := s.find(offset)
	to := from
	for to < len(s.buf) {
		n := len(cutBatch(s.buf[to:]))
		if to > from && to+n-from > maxBytes {
			break
		}
		to += n
	}
	return NewLogRead(s.buf[from:to:to], nil), nil
}

// find returns the position of the batch that holds offset.
func (s *memorySegment) find(offset int64) int {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].offset > offset }) - 1
	pos := s.index[max(i, 0)].pos
	for {
		b := cutBatch(s.buf[pos:])
		if b.nextOffset() > offset {
			return pos
		}
		pos += len(b)
	}
}

func (l *memoryLog) Bounds() (start, end int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.start, l.end
}

func (l *memoryLog) EpochEnd(_ context.Context, epoch int32) (int64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return 0, ErrClosed
	}
	for _, e := range l.epochs {
		if e.epoch > epoch {
			return e.offset, nil
		}
	}
	return l.end, nil
}

func (l *memoryLog) OffsetAt(_ context.Context, timestamp int64) (int64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return 0, ErrClosed
	}
	for _, s := range l.segments {
		if s.maxTime < timestamp {
			continue
		}
		offset, ok, err := s.offsetAt(timestamp, l.start)
		if err != nil || ok {
			return offset, err
		}
	}
	return l.end, nil
}

// offsetAt looks for the first record of the segment that is not below start and
// whose time is timestamp or later.
func (s *memorySegment) offsetAt(timestamp, start int64) (int64, bool, error) {
	i := sort.Search(len(s.index), func(i int) bool { return s.index[i].maxTime >= timestamp && i > 0 }) - 1
	for rest := s.buf[s.index[max(i, 0)].pos:]; len(rest) > 0; {
		b := cutBatch(rest)
		rest = rest[len(b):]
		if b.maxTime() < timestamp || b.nextOffset() <= start {
			continue
		}
		records := b.records()
		var m Message
		for {
			more, err := records.next(&m)
			if err != nil {
				return 0, false, err
			}
			if !more {
				break
			}
			if m.Timestamp >= timestamp && m.Offset >= start {
				return m.Offset, true, nil
			}
		}
	}
	return 0, false, nil
}

func (l *memoryLog) DeleteBefore(_ context.Context, offset int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return ErrClosed
	case offset > l.end:
		return fmt.Errorf("%w: offset %d, the high-water mark is %d", ErrOffsetOutOfRange, offset, l.end)
	}
	l.start = max(l.start, offset)
	for len(l.segments) > 0 && l.segmentEndLocked(0) <= l.start {
		l.dropLocked()
	}
	return nil
}

// segmentEndLocked returns the offset behind the i-th segment.
func (l *memoryLog) segmentEndLocked(i int) int64 {
	if i+1 < len(l.segments) {
		return l.segments[i+1].base
	}
	return l.end
}

// dropLocked removes the oldest segment.
func (l *memoryLog) dropLocked() {
	l.start = max(l.start, l.segmentEndLocked(0))
	l.bytes -= int64(len(l.segments[0].buf))
	l.segments = slices.Delete(l.segments, 0, 1)
}

// trimBytesLocked removes segments as long as what is left is enough.
func (l *memoryLog) trimBytesLocked() {
	limit := l.config.RetentionBytes
	for limit > 0 && len(l.segments) > 1 && l.bytes-int64(len(l.segments[0].buf)) >= limit {
		l.dropLocked()
	}
}

// Size is that of the batches.
func (l *memoryLog) Size() (bytes int64, segments int) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.bytes, len(l.segments)
}

func (l *memoryLog) Configure(c LogConfig) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.config = c
	l.trimBytesLocked()
}

// Expire removes segments whose last batch is too old: the last one too, since in
// memory a new one costs nothing.
func (l *memoryLog) Expire(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.producers.expire(now.UnixMilli())
	if l.config.RetentionAge <= 0 {
		return nil
	}
	for len(l.segments) > 0 && now.Sub(l.segments[0].latest) > l.config.RetentionAge {
		l.dropLocked()
	}
	return nil
}

func (l *memoryLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return nil
}
