package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// mishap is a way for operations on files to go wrong.
type mishap struct {
	name  string
	lasts int64  // operations, from the first on
	kinds string // those that it happens to; "" for all
	fault func(op fileOp) fault
	// damage is that the index an operation is about is damaged, and nothing fails.
	damage bool
}

func (m *mishap) happensTo(op fileOp) bool {
	if m.damage {
		return strings.HasSuffix(op.path, indexSuffix)
	}
	return m.kinds == "" || slices.Contains(strings.Fields(m.kinds), op.kind)
}

// unsettles tells whether syncs may fail.
func (m *mishap) unsettles() bool {
	return !m.damage && (m.kinds == "" || strings.Contains(m.kinds, "sync"))
}

// strike is a mishap on its way.
type strike struct {
	mishap
	from  int64 // operation of the life, from 1
	waits bool  // for an operation that it can happen to; else it may happen to none
	begun atomic.Int64
}

// at tells whether the strike happens to the n-th operation.
func (s *strike) at(n int64, op fileOp) bool {
	from := s.from
	if s.waits {
		if n >= from && s.happensTo(op) {
			s.begun.CompareAndSwap(0, n)
		}
		if from = s.begun.Load(); from == 0 {
			return false
		}
	}
	return n >= from && n < from+s.lasts && s.happensTo(op)
}

func mishaps() []mishap {
	fails := func(err error) func(fileOp) fault {
		return func(fileOp) fault { return fault{err: err} }
	}
	return []mishap{
		{"fails once", 1, "", fails(syscall.EIO), false},
		{"fails three times", 3, "", fails(syscall.EIO), false},
		{"fails for a while", 40, "", fails(syscall.EIO), false},
		{"no space", 60, "write open mkdir", fails(syscall.ENOSPC), false},
		{"no handles", 30, "open list syncDir", fails(syscall.EMFILE), false},
		{"read only", 200, "write open mkdir rename remove truncate", fails(syscall.EROFS), false},
		{"cut short", 1, "write", func(op fileOp) fault { return fault{err: syscall.ENOSPC, short: op.size / 2} }, false},
		{"cut short by little", 2, "write", func(op fileOp) fault { return fault{err: syscall.EIO, short: max(0, op.size-1)} }, false},
		{"done but reported", 1, "", func(fileOp) fault { return fault{err: syscall.EIO, done: true} }, false},
		{"sync drops", 1, "sync", func(fileOp) fault { return fault{err: syscall.EIO, drop: true} }, false},
		{"sync drops and evicts", 2, "sync", func(fileOp) fault { return fault{err: syscall.EIO, drop: true, evict: true} }, false},
		{"cannot sync", 30, "sync syncDir", fails(syscall.EIO), false},
	}
}

// pairedMishaps are those that come two in a life.
func pairedMishaps() []mishap {
	fails := func(fileOp) fault { return fault{err: syscall.EIO} }
	none := func(fileOp) fault { return fault{} }
	return append(mishaps(),
		mishap{name: "one sync fails", lasts: 1, kinds: "sync", fault: fails},
		mishap{name: "names cannot be synced", lasts: 1, kinds: "syncDir", fault: fails},
		mishap{name: "one open fails", lasts: 1, kinds: "open", fault: fails},
		mishap{name: "one write fails", lasts: 1, kinds: "write", fault: fails},
		mishap{name: "not removed", lasts: 20, kinds: "remove truncate rename", fault: fails},
		mishap{name: "index damaged", lasts: 1, fault: none, damage: true},
		mishap{name: "indexes damaged", lasts: 40, fault: none, damage: true},
	)
}

// faultRun takes a storage through a life that mishaps come over, and through another.
type faultRun struct {
	*storageLab
	seed    uint64
	strikes []*strike
	met     []atomic.Bool // by strike
	paused  atomic.Bool   // nothing goes wrong, and no operation counts
	n       atomic.Int64

	paired bool
	loss   int64 // operation before which the power goes; 0 for none
	abrupt bool  // the life ends while what has failed may still fail
}

func newFaultRun(seed uint64, strikes ...*strike) *faultRun {
	rng := rand.New(rand.NewPCG(seed, 23))
	policy := []SyncPolicy{SyncAlways, SyncInterval(10 * time.Millisecond), SyncNever}[seed%3]
	lab := newStorageLab(rng, policy)
	lab.model.mayFail = true
	lab.names["a"] = LogConfig{SegmentBytes: 1024}
	lab.names["b"] = LogConfig{SegmentBytes: 1024, RetentionBytes: 2500}
	return &faultRun{storageLab: lab, seed: seed, strikes: strikes, met: make([]atomic.Bool, len(strikes))}
}

// newPairedRun makes a run in which two mishaps come, one after the other, and maybe a loss of
// power after them. A life of the seed takes the given number of operations. What happens is
// chosen by number.
func newPairedRun(seed uint64, number, operations int64) *faultRun {
	var strikes []*strike
	rng := rand.New(rand.NewPCG(seed, uint64(number)))
	if operations > 0 {
		kinds := pairedMishaps()
		first := 1 + rng.Int64N(operations)
		apart := operations
		if rng.IntN(2) == 0 {
			apart = 40
		}
		a := &strike{mishap: kinds[rng.IntN(len(kinds))], from: first, waits: true}
		b := &strike{from: first + 1 + rng.Int64N(apart), waits: true}
		for {
			b.mishap = kinds[rng.IntN(len(kinds))]
			// An index that says where a log goes on behind a failed sync is all that says it.
			spoils := seed%3 != 0 && (a.damage && b.unsettles() || b.damage && a.unsettles())
			if b.name != a.name && !spoils {
				break
			}
		}
		strikes = []*strike{a, b}
	}
	r := newFaultRun(seed, strikes...)
	r.paired = true
	if seed%2 == 0 {
		r.names["a"] = LogConfig{SegmentBytes: 100 << 10}
	}
	if operations > 0 {
		switch rng.IntN(4) {
		case 0:
			r.loss = strikes[1].from + 1 + rng.Int64N(80)
		case 1:
			r.abrupt = true
		}
	}
	return r
}

func (r *faultRun) String() string {
	var parts []string
	for _, s := range r.strikes {
		parts = append(parts, fmt.Sprintf("%s from operation %d on", s.name, s.from))
	}
	if r.loss > 0 {
		parts = append(parts, fmt.Sprintf("power lost at %d", r.loss))
	}
	if r.abrupt {
		parts = append(parts, "abrupt end")
	}
	return strings.Join(parts, ", ")
}

func (r *faultRun) strike() {
	r.files.setFault(func(op fileOp) fault {
		if r.paused.Load() {
			return fault{}
		}
		n := r.n.Add(1)
		if r.loss > 0 && n >= r.loss {
			return fault{crash: true}
		}
		for i, s := range r.strikes {
			// The second comes when the first has.
			if i > 0 && !r.met[i-1].Load() || !s.at(n, op) {
				continue
			}
			r.met[i].Store(true)
			return r.hit(s, op)
		}
		return fault{}
	})
}

// hit has a mishap happen to an operation.
func (r *faultRun) hit(s *strike, op fileOp) fault {
	if s.damage {
		r.files.scramble(op.path)
		return fault{}
	}
	// With SyncNever segments are not kept open: a sync that cannot open one has failed, too.
	opens := op.kind == "open" && r.model.policy == SyncNever && strings.HasSuffix(op.path, segmentSuffix)
	if op.kind == "sync" || op.kind == "syncDir" || opens {
		r.model.doubted.Store(true)
	}
	f := s.fault(op)
	if f.evict {
		r.model.evicted.Store(true)
	}
	return f
}

// size is the work of a life: one thing after the other.
func (r *faultRun) size() labSize {
	if r.paired {
		size := labSize{partitions: 1, appenders: 1, producers: 1, appends: 12, bytes: 300, groups: 1, deletes: true, admin: r.seed%5 == 0, synced: 3}
		if r.seed%2 == 0 {
			size.bytes = 6000
		}
		return size
	}
	return labSize{partitions: 2, appenders: 1, producers: 1, appends: 12, bytes: 300, groups: 2, deletes: true, admin: true}
}

// reopen opens the storage, if need be a second time, when nothing fails any more.
func (r *faultRun) reopen(ctx context.Context) bool {
	err := r.openStore(ctx)
	if err == nil {
		return true
	}
	if r.files.failed() == nil && !r.model.mayBe(err) {
		r.model.problem("opening: %v", err)
	}
	_ = r.closeStore()
	r.files.clearFault()
	if r.files.failed() != nil {
		r.files, r.how = r.files.crash(r.rng), endedPower
		return false
	}
	if err := r.openStore(ctx); r.files.failed() == nil && err != nil {
		r.model.problem("opening when nothing fails any more: %v", err)
		_ = r.closeStore()
		return false
	}
	return true
}

// recovers checks that everything works, now that nothing fails any more.
func (r *faultRun) recovers(ctx context.Context) {
	r.files.clearFault()
	<-time.After(time.Minute)
	for _, key := range r.keys() {
		log := r.logs[key]
		if !slices.ContainsFunc(r.topics, func(t StoredTopic) bool { return t.ID == key.id && r.names[t.Name].SegmentBytes > 0 }) {
			continue // It may have been deleted.
		}
		model := r.model.log(key)
		for range 2 {
			data, made := r.model.makeBatches(r.rng, model, 7, 1, 50, true)
			done := make(chan AppendResult, 1)
			log.Append(data, AcksSynced, func(a AppendResult) { done <- a })
			a := <-done
			r.model.answered(model, made, AcksSynced, a, false)
			if a.Err != nil {
				r.model.problem("%s: append when nothing fails any more: %v", key, a.Err)
			}
			start, end := log.Bounds()
			for at := start; at < end && a.Err == nil; {
				next, err := r.model.read(ctx, model, log, at, 2000)
				if again, _ := log.Bounds(); errors.Is(err, ErrOffsetOutOfRange) && at < again {
					at = again // Retention was quicker.
					continue
				}
				if err != nil && !r.model.mayBe(err) {
					r.model.problem("%s: read when nothing fails any more: %v", key, err)
				}
				if err != nil {
					break
				}
				at = next
			}
		}
	}
	for _, t := range r.topics {
		if r.logs[logKey{t.ID, 0}] == nil || r.names[t.Name].SegmentBytes == 0 {
			continue
		}
		offsets := []StoredOffset{{t.Name, t.ID, 0, r.rng.Int64N(1000), ""}}
		if err := r.model.putOffsets(ctx, r.store, "late", offsets); err != nil {
			r.model.problem("offsets when nothing fails any more: %v", err)
		}
	}
}

// run returns how many operations the struck life took.
func (r *faultRun) run(ctx context.Context) (operations int64) {
	defer func() { _ = r.closeStore() }()
	if !r.start(ctx) {
		return 0
	}
	r.work(ctx, r.size())
	r.end()
	r.strike()
	if r.reopen(ctx) {
		r.model.opened()
		r.paused.Store(true)
		r.compare(ctx)
		r.paused.Store(false)
		r.work(ctx, r.size())
		operations = r.n.Load()
		if !r.abrupt && r.files.failed() == nil {
			r.recovers(ctx)
		}
		r.end()
		r.files.clearFault()
	}
	lives := 1
	if r.paired {
		lives = 2
	}
	for range lives {
		if r.model.found() != "" || !r.start(ctx) {
			break
		}
		r.work(ctx, r.size())
		if r.paired {
			r.end()
		}
	}
	return operations
}

// faultLives runs lives, and counts them.
type faultLives struct {
	t                    *testing.T
	runs, struck, failed int
}

// run returns how many operations the struck life took.
func (l *faultLives) run(r *faultRun, name string) (operations int64) {
	synctest.Test(l.t, func(t *testing.T) {
		if os.Getenv("ROBUST_TRACE") != "" {
			r.files.trace = func(op fileOp) { t.Logf("%v (%d)", op, op.size) }
			r.model.trace = func(s string) { t.Log(s) }
		}
		operations = r.run(t.Context())
	})
	l.runs++
	if n := len(r.met); n > 0 && r.met[n-1].Load() {
		l.struck++
	}
	if found := r.model.found(); found != "" {
		l.failed++
		l.t.Errorf("%s: %v; %v, %s:\n%s", name, r, r.model.policy, r.how, found)
	}
	return operations
}

// all has every mishap come at every stride-th operation.
func (l *faultLives) all(seed uint64, stride int64) {
	operations := l.run(newFaultRun(seed), fmt.Sprint("seed ", seed))
	for i, m := range mishaps() {
		for from := 1 + (int64(seed)*7+int64(i)*3)%stride; from <= operations && l.failed < 5; from += stride {
			l.run(newFaultRun(seed, &strike{mishap: m, from: from}), fmt.Sprintf("ROBUST_FAULT=%q", fmt.Sprint(seed, i, from)))
		}
	}
}

// pairs has two mishaps come, in a number of lives.
func (l *faultLives) pairs(seed uint64, lives int64) {
	operations := l.run(newPairedRun(seed, 0, 0), fmt.Sprint("seed ", seed))
	for n := int64(1); n <= lives && l.failed < 8; n++ {
		l.run(newPairedRun(seed, n, operations), fmt.Sprintf("ROBUST_FAULTS_PAIRED=%q", fmt.Sprint(seed, n, operations)))
	}
}

// TestStorageFaults has something go wrong at every operation on files, in all ways, or at
// some of them, and two things in one life. ROBUST_FAULTS=all does all of the former and many of
// the latter: ROBUST_FAULTS_LIVES each of ROBUST_FAULTS_SEEDS seeds from ROBUST_FAULTS_SEED on.
func TestStorageFaults(t *testing.T) {
	seeds, stride, pairs, perPair := 6, int64(293), 6, int64(18)
	if os.Getenv("ROBUST_FAULTS") == "all" {
		seeds, stride, pairs, perPair = 9, 1, 1000, 50
	}
	perPair = int64(envCount(t, "ROBUST_FAULTS_LIVES", int(perPair)))
	lives := &faultLives{t: t}
	if text := os.Getenv("ROBUST_FAULT"); text != "" {
		var seed uint64
		var kind int
		var from int64
		_, err := fmt.Sscan(text, &seed, &kind, &from)
		require.NoError(t, err)
		lives.run(newFaultRun(seed, &strike{mishap: mishaps()[kind], from: from}), text)
		return
	}
	if text := os.Getenv("ROBUST_FAULTS_PAIRED"); text != "" {
		var seed uint64
		var number, operations int64
		_, err := fmt.Sscan(text, &seed, &number, &operations)
		require.NoError(t, err)
		lives.run(newPairedRun(seed, number, operations), text)
		return
	}
	t.Run("one", func(t *testing.T) {
		lives := &faultLives{t: t}
		for seed := range seeds {
			lives.all(uint64(seed+1), stride)
		}
		t.Logf("%d lives, of which %d met a fault", lives.runs, lives.struck)
	})
	t.Run("two", func(t *testing.T) {
		lives := &faultLives{t: t}
		first := envCount(t, "ROBUST_FAULTS_SEED", 11)
		for seed := range envCount(t, "ROBUST_FAULTS_SEEDS", pairs) {
			lives.pairs(uint64(first+seed), perPair)
		}
		t.Logf("%d lives, of which %d met two faults", lives.runs, lives.struck)
	})
}
