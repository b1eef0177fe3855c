package robust

import (
	"context"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// diskLog is a partition's log on disk. Appends wait in a queue; whoever finds nobody at
// work writes what has gathered there, so that one goroutine at a time changes the log
// (see broker_log_write.go). Syncing is another's job, whoever has the token (see
// broker_log_sync.go), and goes on beside it. Readers look at a view, which is replaced,
// never changed, and wait for nobody.
type diskLog struct {
	store  *logStore
	name   string        // for those who read the log's messages
	dir    string        // where its segments are
	header segmentHeader // without base offset
	events logEvents
	sync   func() // syncs what has been written; for the store

	config  atomic.Pointer[LogConfig]
	visible atomic.Pointer[logView] // what may be read
	ended   atomic.Bool             // closed: nothing may be read any more
	hints   [4]atomic.Pointer[readHint]
	turn    atomic.Uint32 // of hints

	producers atomic.Pointer[logProducers] // nil while there are none

	// wanted is how many wait for nobody to append, and hurry hears of it.
	wanted atomic.Int32
	hurry  chan struct{}

	// syncing is a token: syncs, and writes to the files of indexes, come one at a time.
	// synced, the place up to which all is on stable storage, belongs to it, and so
	// does noted, the position of the last index entry of the last segment that says so.
	syncing chan struct{}
	synced  syncPoint
	noted   int64
	named   bool // the name of the directory has reached stable storage
	// doubtful: a sync has failed; the next who opens the log is to look at its end.
	doubtful bool
	// gap is the last segment that could not be synced, while no index behind it says for
	// certain that the log goes on: after a power failure the segment may be gone.
	gap   *segment
	clean indexEntry // the log's end when it was opened, if that is in its index
	// left are segments that are gone from the log's front, and whose files could not be
	// removed yet; leaves tells whether there are any, whoever has the token.
	left   []*segment
	leaves atomic.Bool

	mu      sync.Mutex // guards the following; not held across I/O
	queue   []*logJob
	working bool // somebody works on the queue
	writing bool // and is writing to the last segment
	closed  bool // no append is taken
	written *logView
	waiters []*logJob // written appends that wait for a sync, in order

	// The following belong to whoever works.
	epoch  int32 // of what is appended
	made   bool  // the directory is there
	torn   bool  // there may be bytes behind the last batch
	sealed bool  // nothing more may be written to the last segment
	// refused are segments that the log no longer has, and that are still to be removed.
	refused []*segment
}

// logEvents are told what becomes of a log, from any goroutine; they may be nil.
type logEvents struct {
	advanced func() // there is more to read; does not block
	// doubted: a sync has failed of what is acknowledged. It has a goroutine of its own.
	doubted func()
}

// advanced tells that there is more to read.
func (l *diskLog) advanced() {
	if l.events.advanced != nil {
		l.events.advanced()
	}
}

// logView is a log as it was at one moment. It is not changed once others know it.
type logView struct {
	segments []*segment // oldest first
	start    int64      // oldest offset that may be read
	first    int64      // append time of the last segment's first batch; 0 while it is empty
	last     indexEntry // the end of the log, in the last segment
}

// logProducers is what a log has of idempotent producers.
type logProducers struct {
	states producerStates // whoever works
	// silent is a time since when the one that has been silent for longest has been so, at
	// least; 0 if there are none.
	silent atomic.Int64

	// For whoever has the sync token: where they were kept last; the files that have them,
	// by offset; and when to try again after a failure.
	kept  syncPoint
	files []int64
	again time.Time
}

// syncPoint is a place in a log; segment is the base offset of the segment it is in.
type syncPoint struct {
	segment int64
	at      indexEntry
}

// readHint remembers where a read ended, since the next one mostly goes on there.
type readHint struct {
	segment *segment
	offset  int64
	pos     int64
}

// logStore is what the logs of a data directory share.
type logStore struct {
	files fileSystem
	cache *fileCache
	// reserve has room on a full disk; nil in logs that are in no data directory.
	reserve *reserve
	policy  SyncPolicy
	warn    *warner
	epoch   int32 // of logs that are opened now, at least

	unsaved chan struct{}  // holds a token for each segment that is kept open until it is synced
	hungry  atomic.Int64   // how many wait for a token of unsaved
	running sync.WaitGroup // goroutines of the store and its logs
	buffers sync.Pool      // of *[]byte, for reads
	gather  sync.Pool      // of *[]byte of gatherBytes, for writes
	kick    chan struct{}  // has the dirty logs synced at once

	mu      sync.Mutex // guards the following
	dirty   map[*diskLog]struct{}
	due     []*diskLog            // to be synced now, in order
	queued  map[*diskLog]struct{} // those in due
	workers int                   // goroutines that sync what is due
}

const (
	// maxOpenFiles is how many files of a data directory are kept open, unless the
	// process may have less than twice as many. Those that were written to and not
	// synced yet are at most half of them.
	maxOpenFiles = 4096
	// maxSyncs is how many logs are synced at a time: each takes a thread.
	maxSyncs = 16
	// maxPooledRead is the largest buffer that is kept for another read.
	maxPooledRead = 2 << 20
)

func newLogStore(files fileSystem, policy SyncPolicy, warn *warner) *logStore {
	open := max(4, min(maxOpenFiles, openFileLimit()/2))
	return &logStore{
		files: files, cache: newFileCache(files, open), policy: policy, warn: warn,
		unsaved: make(chan struct{}, open/2), kick: make(chan struct{}, 1),
		dirty: make(map[*diskLog]struct{}), queued: make(map[*diskLog]struct{}),
	}
}

// markDirty has a log synced when its time has come.
func (s *logStore) markDirty(l *diskLog) {
	s.mu.Lock()
	s.dirty[l] = struct{}{}
	s.mu.Unlock()
	if s.hungry.Load() > 0 {
		signal(s.kick)
	}
}

// syncSoon has a log synced as soon as it is its turn.
func (s *logStore) syncSoon(l *diskLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, already := s.queued[l]; already {
		return
	}
	s.queued[l] = struct{}{}
	s.due = append(s.due, l)
	if s.workers < maxSyncs {
		s.workers++
		s.running.Go(s.work)
	}
}

// work syncs what is due, until nothing is.
func (s *logStore) work() {
	for {
		s.mu.Lock()
		if len(s.due) == 0 {
			s.workers--
			s.due = nil
			s.mu.Unlock()
			return
		}
		l := s.due[0]
		s.due = s.due[1:]
		delete(s.queued, l)
		s.mu.Unlock()
		l.sync()
	}
}

// run has what has been written synced every interval, until done is closed.
func (s *logStore) run(done <-chan struct{}) {
	interval := defaultSyncInterval
	if s.policy > 0 {
		interval = time.Duration(s.policy)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.kick:
		case <-done:
			return
		}
		s.reserve.fill()
		s.mu.Lock()
		dirty := s.dirty
		s.dirty = make(map[*diskLog]struct{})
		s.mu.Unlock()
		for l := range dirty {
			s.syncSoon(l)
		}
	}
}

// replaceJSON keeps a value in a file, in place of what it had.
func (s *logStore) replaceJSON(path string, value any) error {
	data, err := sealJSON(value)
	if err != nil {
		return err
	}
	return s.cache.givingWay(func() error {
		if s.reserve == nil {
			return replaceFile(s.files, path, data)
		}
		return s.reserve.replaceFile(path, data)
	})
}

func (s *logStore) forget(l *diskLog) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dirty, l)
}

// ending returns where the i-th segment ends.
func (v *logView) ending(i int) *indexEntry {
	if i == len(v.segments)-1 {
		return &v.last
	}
	return v.segments[i].ending.Load()
}

// size returns the position at which the i-th segment ends.
func (v *logView) size(i int) int64 {
	if i == len(v.segments)-1 {
		return v.last.pos
	}
	return v.segments[i].size
}

// lastBase returns the base offset of the last segment; 0 if there is none.
func (v *logView) lastBase() int64 {
	if len(v.segments) == 0 {
		return 0
	}
	return v.segments[len(v.segments)-1].header.base
}

// next returns the offset at which the i-th segment ends.
func (v *logView) next(i int) int64 {
	if i == len(v.segments)-1 {
		return v.last.offset
	}
	return v.segments[i+1].header.base
}

// find returns the segment that holds an offset from start on.
func (v *logView) find(offset int64) int {
	return sort.Search(len(v.segments), func(i int) bool { return v.segments[i].header.base > offset }) - 1
}

func (l *diskLog) Bounds() (start, end int64) {
	v := l.visible.Load()
	return v.start, v.last.offset
}

func (l *diskLog) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *diskLog) Configure(c LogConfig) { l.config.Store(&c) }

// update changes what is written and what is visible; whoever works calls it.
func (l *diskLog) update(change func(v *logView)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	written, visible := *l.written, *l.visible.Load()
	change(&written)
	change(&visible)
	l.written = &written
	l.visible.Store(&visible)
}

// dropped tells whether retention has removed a segment.
func (l *diskLog) dropped(s *segment) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !slices.Contains(l.written.segments, s)
}

// acquireSync takes the sync token.
func (l *diskLog) acquireSync(ctx context.Context) error {
	select {
	case l.syncing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return endOf(ctx)
	}
}

func (l *diskLog) releaseSync() { <-l.syncing }

// awaitUnsaved waits until one more segment may be kept open that is not synced; counted
// tells whether it holds a token for that. Where somebody waits for those who append
// (exclusive) it does not wait: what it waits for might be waiting for that.
func (l *diskLog) awaitUnsaved() (counted bool) {
	s := l.store
	select {
	case s.unsaved <- struct{}{}:
		return true
	default:
	}
	s.hungry.Add(1)
	defer s.hungry.Add(-1)
	signal(s.kick)
	for l.wanted.Load() == 0 {
		select {
		case s.unsaved <- struct{}{}:
			return true
		case <-l.hurry:
		}
	}
	return false
}

// giveUnsaved ends what awaitUnsaved has begun.
func (l *diskLog) giveUnsaved(counted bool) {
	if counted {
		<-l.store.unsaved
	}
}

// settle no longer keeps a segment open that is synced, unless it has been written to
// meanwhile. If others wait for their turn it is let go all the same: a log that is
// always ahead of its sync must not keep them waiting for ever.
func (l *diskLog) settle(s *segment) {
	l.mu.Lock()
	w := l.written
	last := len(w.segments) > 0 && w.segments[len(w.segments)-1] == s
	if !s.pinned || last && (l.writing || w.last.pos != l.synced.at.pos) && l.store.hungry.Load() == 0 {
		l.mu.Unlock()
		return
	}
	counted := s.counted
	s.pinned = false
	l.mu.Unlock()
	s.out.release()
	l.giveUnsaved(counted)
}

// letGo no longer keeps a segment open, whatever has become of it.
func (l *diskLog) letGo(s *segment) {
	l.mu.Lock()
	pinned, counted := s.pinned, s.counted
	s.pinned = false
	l.mu.Unlock()
	if pinned {
		s.out.release()
		l.giveUnsaved(counted)
	}
}

// logJob is an append, or something else that must not happen beside one.
type logJob struct {
	batches []byte // nil if they are stored already
	acks    Acks
	done    func(AppendResult)
	result  AppendResult
	end     int64 // offset behind what was appended

	run func() // if it is no append
}

// buffer returns room for n bytes.
func (s *logStore) buffer(n int) *[]byte {
	if b, ok := s.buffers.Get().(*[]byte); ok && cap(*b) >= n {
		return b
	}
	size := minRead
	for size < n {
		size *= 2
	}
	b := make([]byte, size)
	return &b
}

// minRead is how much is read at least.
const minRead = 4 << 10
