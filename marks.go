package robust

import "sync"

// run finds the end of the unbroken run of messages that are done, however many are
// worked on at a time and in whichever order they are finished.
type run struct {
	taken []int64 // offsets delivered and not behind the end of the run, in order
	done  map[int64]struct{}
	end   int64 // offset behind the run
}

func newRun(start int64) *run { return &run{done: make(map[int64]struct{}), end: start} }

// take notes that a message was delivered. Messages are taken in order; after a seek
// back they come once more, which changes nothing.
func (r *run) take(offset int64) {
	if n := len(r.taken); offset >= r.end && (n == 0 || offset > r.taken[n-1]) {
		r.taken = append(r.taken, offset)
	}
}

// finish notes that a message is done, perhaps before it is known to be taken, and
// returns the end of the run.
func (r *run) finish(offset int64) int64 {
	if offset >= r.end {
		r.done[offset] = struct{}{}
	}
	return r.advance()
}

// finishBelow notes that all messages below offset are done.
func (r *run) finishBelow(offset int64) int64 {
	n := 0
	for n < len(r.taken) && r.taken[n] < offset {
		delete(r.done, r.taken[n])
		n++
	}
	r.taken = r.taken[n:]
	r.end = max(r.end, offset)
	return r.advance()
}

func (r *run) advance() int64 {
	n := 0
	for ; n < len(r.taken); n++ {
		offset := r.taken[n]
		if _, ok := r.done[offset]; !ok && offset >= r.end {
			break
		}
		delete(r.done, offset)
		r.end = max(r.end, offset+1)
	}
	r.taken = r.taken[n:]
	return r.end
}

// open is how many messages are taken and not behind the end of the run.
func (r *run) open() int { return len(r.taken) }

// marks is how far a partition has been handled, and how far that is committed. It
// moves forward only, but for cut.
type marks struct {
	mu        sync.Mutex // guards the following
	run       *run       // nil: a mark stands for everything before it
	next      int64      // of the next message to be read, were it committed now; -1: nothing is marked
	metadata  string     // that was marked with it
	latest    string     // metadata of the latest mark
	changed   bool       // next or metadata is not committed yet
	changes   int        // counts changes
	forgotten bool       // nothing may be committed any more
}

func newMarks(committed int64, contiguous bool) *marks {
	m := &marks{next: committed}
	if contiguous {
		m.run = newRun(committed)
	}
	return m
}

// take notes that a message was delivered.
func (m *marks) take(offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != nil {
		// A message can be marked before it is noted as delivered.
		m.run.take(offset)
		m.moveLocked(m.run.advance(), m.latest)
	}
}

// message marks one message.
func (m *marks) message(offset int64, metadata string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := offset + 1
	m.latest = metadata
	if m.run != nil {
		next = m.run.finish(offset)
	}
	m.moveLocked(next, metadata)
}

// belowNext marks everything up to offset, that of the last message.
func (m *marks) belowNext(offset int64, metadata string) { m.below(offset+1, metadata) }

// below marks everything below offset.
func (m *marks) below(offset int64, metadata string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latest = metadata
	if m.run != nil {
		offset = m.run.finishBelow(offset)
	}
	m.moveLocked(offset, metadata)
}

func (m *marks) moveLocked(next int64, metadata string) {
	if next > m.next {
		m.next, m.metadata, m.changed = next, metadata, true
		m.changes++
	}
}

// cut takes back what is marked from offset on: other messages stand there now. Nobody
// may be at work on one of those before.
func (m *marks) cut(offset int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != nil {
		m.run = newRun(min(m.run.end, offset))
	}
	if m.next > offset {
		m.next, m.metadata, m.latest, m.changed = offset, "", "", true
		m.changes++
	}
}

// position is where reading goes on after what is marked; negative if nothing is.
func (m *marks) position() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next
}

// pending returns what is to be committed; committed takes the token that goes with it.
func (m *marks) pending() (next int64, metadata string, token int, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next, m.metadata, m.changes, m.changed && !m.forgotten
}

// refused tells that something is marked that will never be committed.
func (m *marks) refused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed && m.forgotten
}

// committed notes that what pending returned is committed.
func (m *marks) committed(token int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if token == m.changes {
		m.changed = false
	}
}

// forget has nothing be committed any more.
func (m *marks) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten = true
}
