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
}

func mishaps() []mishap {
	fails := func(err error) func(fileOp) fault {
		return func(fileOp) fault { return fault{err: err} }
	}
	return []mishap{
		{"fails once", 1, "", fails(syscall.EIO)},
		{"fails three times", 3, "", fails(syscall.EIO)},
		{"fails for a while", 40, "", fails(syscall.EIO)},
		{"no space", 60, "write open mkdir", fails(syscall.ENOSPC)},
		{"no handles", 30, "open list syncDir", fails(syscall.EMFILE)},
		{"read only", 200, "write open mkdir rename remove truncate", fails(syscall.EROFS)},
		{"cut short", 1, "write", func(op fileOp) fault { return fault{err: syscall.ENOSPC, short: op.size / 2} }},
		{"cut short by little", 2, "write", func(op fileOp) fault { return fault{err: syscall.EIO, short: max(0, op.size-1)} }},
		{"done but reported", 1, "", func(fileOp) fault { return fault{err: syscall.EIO, done: true} }},
		{"sync drops", 1, "sync", func(fileOp) fault { return fault{err: syscall.EIO, drop: true} }},
		{"sync drops and evicts", 2, "sync", func(fileOp) fault { return fault{err: syscall.EIO, drop: true, evict: true} }},
		{"cannot sync", 30, "sync syncDir", fails(syscall.EIO)},
	}
}

// faultRun takes a storage through a life that mishap comes over at its n-th operation, and
// through another.
type faultRun struct {
	*storageLab
	seed   uint64
	mishap mishap
	from   int64 // operation of the life, from 1
	met    atomic.Bool
	paused atomic.Bool // nothing goes wrong, and no operation counts
	n      atomic.Int64
}

func newFaultRun(seed uint64, m mishap, from int64) *faultRun {
	rng := rand.New(rand.NewPCG(seed, 23))
	policy := []SyncPolicy{SyncAlways, SyncInterval(10 * time.Millisecond), SyncNever}[seed%3]
	lab := newStorageLab(rng, policy)
	lab.model.mayFail = true
	lab.names["a"] = LogConfig{SegmentBytes: 1024}
	lab.names["b"] = LogConfig{SegmentBytes: 1024, RetentionBytes: 2500}
	return &faultRun{storageLab: lab, seed: seed, mishap: m, from: from}
}

func (r *faultRun) strike() {
	r.files.setFault(func(op fileOp) fault {
		if r.paused.Load() {
			return fault{}
		}
		m := &r.mishap
		n := r.n.Add(1)
		if n < r.from || n >= r.from+m.lasts || m.kinds != "" && !slices.Contains(strings.Fields(m.kinds), op.kind) {
			return fault{}
		}
		r.met.Store(true)
		if op.kind == "sync" || op.kind == "syncDir" {
			r.model.doubted.Store(true)
		}
		f := m.fault(op)
		if f.evict {
			r.model.evicted.Store(true)
		}
		return f
	})
}

// size is the work of a life: one thing after the other.
func (r *faultRun) size() labSize {
	return labSize{partitions: 2, appenders: 1, producers: 1, appends: 12, bytes: 300, groups: 2, deletes: true, admin: true}
}

// reopen opens the storage, if need be a second time, when nothing fails any more.
func (r *faultRun) reopen(ctx context.Context) bool {
	err := r.openStore(ctx)
	if err == nil {
		return true
	}
	if !r.model.mayBe(err) {
		r.model.problem("opening: %v", err)
	}
	r.closeStore()
	r.files.clearFault()
	if err := r.openStore(ctx); err != nil {
		r.model.problem("opening when nothing fails any more: %v", err)
		r.closeStore()
		return false
	}
	return true
}

// recovers checks that everything works, now that nothing fails any more.
func (r *faultRun) recovers(ctx context.Context) {
	r.files.clearFault()
	<-time.After(time.Minute)
	for key, log := range r.logs {
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
	defer r.closeStore()
	if !r.start(ctx) {
		return 0
	}
	r.work(ctx, r.size())
	r.end()
	r.strike()
	if !r.reopen(ctx) {
		return 0
	}
	r.model.opened()
	r.paused.Store(true)
	r.compare(ctx)
	r.paused.Store(false)
	r.work(ctx, r.size())
	operations = r.n.Load()
	r.recovers(ctx)
	r.end()
	if r.start(ctx) {
		r.work(ctx, r.size())
	}
	return operations
}

// TestStorageFaults has something go wrong at every operation on files, in all ways, or at
// some of them. ROBUST_FAULTS=all does all of it.
func TestStorageFaults(t *testing.T) {
	all := os.Getenv("ROBUST_FAULTS") == "all"
	seeds, stride := uint64(6), int64(293)
	if all {
		seeds, stride = 9, 1
	}
	runs, struck, failed := 0, 0, 0
	one := func(seed uint64, m mishap, from int64) (operations int64) {
		r := newFaultRun(seed, m, from)
		synctest.Test(t, func(t *testing.T) {
			if os.Getenv("ROBUST_TRACE") != "" {
				r.files.trace = func(op fileOp) { t.Logf("%v (%d)", op, op.size) }
				r.model.trace = func(s string) { t.Log(s) }
			}
			operations = r.run(t.Context())
		})
		runs++
		if r.met.Load() {
			struck++
		}
		if found := r.model.found(); found != "" {
			failed++
			t.Errorf("seed %d, %s from operation %d on, %v, %s:\n%s", seed, m.name, from, r.model.policy, r.how, found)
		}
		return operations
	}
	if text := os.Getenv("ROBUST_FAULT"); text != "" {
		var seed uint64
		var kind int
		var from int64
		_, err := fmt.Sscan(text, &seed, &kind, &from)
		require.NoError(t, err)
		one(seed, mishaps()[kind], from)
		return
	}
	for seed := uint64(1); seed <= seeds; seed++ {
		operations := one(seed, mishap{}, 0)
		for i, m := range mishaps() {
			for from := 1 + (int64(seed)*7+int64(i)*3)%stride; from <= operations && failed < 5; from += stride {
				one(seed, m, from)
			}
		}
	}
	t.Logf("%d lives, of which %d met a fault", runs, struck)
}
