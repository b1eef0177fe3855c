package robust

import (
	"cmp"
	"slices"
	"time"
)

// callRun is requests that were sent together and are answered one by one. Their IDs are
// consecutive, and what a call takes by itself they share.
type callRun struct {
	kind     requestType
	first    uint64 // sequence of the first
	from     int    // its number, from which the others count on
	sent     time.Time
	deadline time.Time
	// answered is told, once for each, the number of a call and its answer, or why there
	// is none. It must not block, nor keep the answer.
	answered func(i int, resp *wireResponse, err error)
	hook     func(*call) // told of each call as well; nil: none

	// The following are guarded by conn.mu.
	done []bool // those that have their answer
	left int
	// abandoned: nobody waits for what is left, and only first, done and left are set.
	abandoned bool
}

// complete tells what became of the i-th call.
func (r *callRun) complete(i int, resp *wireResponse, err error) {
	if r.hook != nil {
		k := &call{kind: r.kind, sent: r.sent, deadline: r.deadline, err: err}
		if resp != nil {
			k.resp = *resp
		}
		r.hook(k)
	}
	r.answered(r.from+i, resp, err)
}

// unanswered is some calls of a run that have no answer.
type unanswered struct {
	run   *callRun
	calls []int
}

func (u unanswered) fail(err error) {
	for _, i := range u.calls {
		u.run.complete(i, nil, err)
	}
}

// leftLocked returns the calls of a run that are still in flight.
func (r *callRun) leftLocked() unanswered {
	u := unanswered{run: r, calls: make([]int, 0, r.left)}
	for i, done := range r.done {
		if !done {
			u.calls = append(u.calls, i)
		}
	}
	return u
}

// callRuns are the runs in flight on a connection, guarded by its mutex.
type callRuns struct {
	runs  []*callRun // by sequence
	calls int        // of theirs without an answer
}

func (l *callRuns) putLocked(r *callRun) {
	// Runs of several goroutines may come out of order.
	at, _ := slices.BinarySearchFunc(l.runs, r.first, (*callRun).compare)
	l.runs = slices.Insert(l.runs, at, r)
	l.calls += r.left
}

// takeLocked takes out the call of a sequence; nil if it is in no run, or was taken before.
// Answers mostly come in the order of the requests, which the first run begins.
func (l *callRuns) takeLocked(sequence uint64) (r *callRun, i int) {
	if len(l.runs) == 0 {
		return nil, 0
	}
	at := 0
	if len(l.runs) > 1 && sequence >= l.runs[1].first {
		// Of those that begin before it, the last.
		at, _ = slices.BinarySearchFunc(l.runs, sequence+1, (*callRun).compare)
		at--
	}
	r = l.runs[at]
	n := sequence - r.first // Huge, if it comes before.
	if n >= uint64(len(r.done)) || r.done[n] {
		return nil, 0
	}
	r.done[n] = true
	r.left--
	l.calls--
	if r.left == 0 {
		l.runs = slices.Delete(l.runs, at, at+1)
	}
	return r, int(n)
}

// compare is for searching runs by the sequence of their first call.
func (r *callRun) compare(first uint64) int { return cmp.Compare(r.first, first) }

// lateLocked returns what is left of the runs whose deadlines have passed, of which nobody
// waits for answers any more, and the earliest deadline of the others, if it is before next.
// expired is called for each of those runs.
func (l *callRuns) lateLocked(now, next time.Time, expired func(*callRun)) ([]unanswered, time.Time) {
	var late []unanswered
	for at, r := range l.runs {
		switch {
		case r.abandoned:
		case !r.deadline.After(now):
			expired(r)
			late = append(late, r.leftLocked())
			// In flight nothing is kept of those who have waited. An answer that is being
			// handed over has the run itself.
			l.runs[at] = &callRun{first: r.first, done: r.done, left: r.left, abandoned: true}
		case r.deadline.Before(next):
			next = r.deadline
		}
	}
	return late, next
}

// clearLocked ends all runs, and returns the calls that somebody waits for.
func (l *callRuns) clearLocked() []unanswered {
	var left []unanswered
	for _, r := range l.runs {
		if !r.abandoned {
			left = append(left, r.leftLocked())
		}
	}
	*l = callRuns{}
	return left
}
