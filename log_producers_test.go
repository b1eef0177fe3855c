package robust

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// heldFiles holds up operations on files until they are let go, and may have them fail then.
type heldFiles struct {
	kind, suffix string
	entered      chan struct{} // one for each that is held up
	let          chan fault
	on           atomic.Bool
}

func holdFiles(m *memFiles, kind, suffix string) *heldFiles {
	h := &heldFiles{kind: kind, suffix: suffix, entered: make(chan struct{}, 100), let: make(chan fault)}
	h.on.Store(true)
	m.setFault(func(op fileOp) fault {
		if !h.on.Load() || op.kind != kind || !strings.HasSuffix(op.path, suffix) {
			return fault{}
		}
		h.entered <- struct{}{}
		return <-h.let
	})
	return h
}

func newLossFiles(t *testing.T) *memFiles {
	t.Helper()
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	require.NoError(t, m.syncDir("/"))
	return m
}

// appendLater appends without waiting.
func appendLater(l PartitionLog, b batch, acks Acks) <-chan AppendResult {
	done := make(chan AppendResult, 1)
	l.Append(slices.Clone(b), acks, func(r AppendResult) { done <- r })
	return done
}

// Appends that are written together see each other; when the write fails none of them was.
func TestProducersWithinWrite(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(time.Hour), SyncNever} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprint(policy, fails), func(t *testing.T) {
				m := newLossFiles(t)
				l := openLossLog(t, lossStore(m, policy), lossConfig())
				p := newTestProducer(t, l, 7)
				for range 4 {
					p.send(1, AcksStored)
				}
				other := newTestProducer(t, l, 8)
				held := holdFiles(m, "write", segmentSuffix)
				first := make(chan AppendResult, 1)
				blocker := appendBatch(nil, &Message{Value: []byte("4")})
				go func() { first <- appendNow(l, blocker, AcksStored) }()
				<-held.entered
				// These wait for the write, and are written with the next.
				var batches []batch
				var answers []<-chan AppendResult
				later := func(b batch) {
					batches = append(batches, b)
					answers = append(answers, appendLater(l, b, AcksStored))
				}
				for i := range 6 { // More than are remembered.
					later(producerBatch(producerFields{7, 0, 4 + int32(i)}, 1, 5+int64(i)))
				}
				later(batches[5])
				later(p.sent[3].data) // It is not among the last five any more.
				later(producerBatch(producerFields{7, 0, 12}, 1, 11))
				later(producerBatch(producerFields{7, 1, 0}, 1, 11))
				later(producerBatch(producerFields{8, 0, 0}, 1, 12))
				later(batches[5]) // Fenced by now.
				held.let <- fault{}
				require.NoError(t, (<-first).Err)
				<-held.entered
				held.on.Store(false)
				if fails {
					held.let <- fault{err: syscall.EIO}
				} else {
					held.let <- fault{}
				}
				var results []AppendResult
				for _, a := range answers {
					results = append(results, <-a)
				}
				require.ErrorIs(t, results[7].Err, ErrOutOfOrderSequence)
				require.ErrorIs(t, results[8].Err, ErrOutOfOrderSequence)
				require.ErrorIs(t, results[11].Err, ErrFenced)
				want := []int64{5, 6, 7, 8, 9, 10, 10, -1, -1, 11, 12}
				for i, offset := range want {
					switch {
					case offset < 0:
					case fails:
						require.ErrorIs(t, results[i].Err, ErrStorage, i)
					default:
						require.NoError(t, results[i].Err, i)
						require.Equal(t, offset, results[i].BaseOffset, i)
					}
				}
				if !fails {
					other.next.sequence = 1
					other.send(1, AcksStored)
					require.NoError(t, l.Close())
					return
				}
				// All is as it was before.
				p.next.sequence = 4
				p.again(l, AcksStored)
				_, end := l.Bounds()
				require.Equal(t, int64(5), end)
				for i, b := range batches[:6] {
					require.Equal(t, int64(5+i), appendNow(l, b, AcksStored).BaseOffset)
				}
				other.send(1, AcksStored)
				require.NoError(t, l.Close())
			})
		}
	}
}

// With SyncAlways a batch that is repeated is answered when the first is synced, and refused
// when it is cut off; then it can be stored.
func TestProducersWaitForSync(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprint("fails ", fails), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newLossFiles(t)
				l := openLossLog(t, lossStore(m, SyncAlways), lossConfig())
				p := newTestProducer(t, l, 7)
				p.send(1, AcksStored)
				p.send(2, AcksStored)
				held := holdFiles(m, "sync", segmentSuffix)
				b := p.make(3)
				first := appendLater(l, b, AcksStored)
				<-held.entered
				again := appendLater(l, b, AcksStored)
				next := p.make(1)
				second := appendLater(l, next, AcksStored)
				// What is synced already need not wait.
				p.again(l, AcksStored)
				synctest.Wait()
				for _, a := range []<-chan AppendResult{first, again, second} {
					require.Empty(t, a)
				}
				held.on.Store(false)
				if !fails {
					held.let <- fault{}
					for i, want := range []int64{3, 3, 6} {
						r := <-[]<-chan AppendResult{first, again, second}[i]
						require.NoError(t, r.Err)
						require.Equal(t, want, r.BaseOffset)
						require.Equal(t, AcksSynced, r.Acks)
					}
				} else {
					held.let <- fault{err: syscall.EIO, drop: true}
					for _, a := range []<-chan AppendResult{first, again, second} {
						require.ErrorIs(t, (<-a).Err, ErrStorage)
					}
					require.ErrorIs(t, appendNow(l, next, AcksStored).Err, ErrOutOfOrderSequence)
					p.again(l, AcksStored)
					for range 2 {
						require.Equal(t, int64(3), appendNow(l, b, AcksStored).BaseOffset)
					}
					require.Equal(t, int64(6), appendNow(l, next, AcksStored).BaseOffset)
				}
				p.send(1, AcksStored)
				_, end := l.Bounds()
				require.Equal(t, int64(8), end)
				require.NoError(t, l.Close())
			})
		})
	}
}

// Who asks for a batch to be synced that was stored before waits for that; if it fails, nobody
// ever says that it is.
func TestProducersInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newLossFiles(t)
		l := openLossLog(t, lossStore(m, SyncInterval(time.Hour)), lossConfig())
		p := newTestProducer(t, l, 7)
		p.send(1, AcksStored)
		held := holdFiles(m, "sync", segmentSuffix)
		synced := appendLater(l, p.sent[0].data, AcksSynced)
		<-held.entered
		p.again(l, AcksStored)
		require.Empty(t, synced)
		held.let <- fault{}
		require.Equal(t, AppendResult{BaseOffset: 0, AppendTime: p.sent[0].result.AppendTime, Acks: AcksSynced, Repeated: true}, <-synced)
		held.on.Store(false)
		p.again(l, AcksSynced) // Nothing is to be synced for that.

		p.send(1, AcksStored)
		held.on.Store(true)
		synced = appendLater(l, p.sent[1].data, AcksSynced)
		<-held.entered
		also := appendLater(l, p.sent[0].data, AcksSynced) // Is synced, and waits for its turn.
		held.let <- fault{err: syscall.EIO, drop: true}
		held.on.Store(false)
		require.ErrorIs(t, (<-synced).Err, ErrStorage)
		require.NoError(t, (<-also).Err)
		p.again(l, AcksStored)
		for range 2 {
			r := appendNow(l, p.sent[1].data, AcksSynced)
			require.ErrorIs(t, r.Err, ErrStorage)
			require.ErrorContains(t, r.Err, "stored at offset 1")
		}
		p.send(1, AcksSynced)
		require.NoError(t, appendNow(l, p.sent[2].data, AcksSynced).Err)
		require.NoError(t, appendNow(l, p.sent[0].data, AcksSynced).Err)
		require.NoError(t, l.Close())
	})
}

// producersDir returns the offsets of the files of producers in a log's directory.
func producersDir(m *memFiles, dir string) (offsets []int64) {
	for _, path := range m.paths() {
		if offset, ok := parseSegmentName(filepath.Base(path), producersSuffix); ok && filepath.Dir(path) == dir {
			offsets = append(offsets, offset)
		}
	}
	return offsets
}

// What is known outlives a kill, whatever retention has removed meanwhile.
func TestProducersOutliveRetention(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncInterval(10 * time.Millisecond), SyncNever} {
		t.Run(policy.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newLossFiles(t)
				s := lossStore(m, policy)
				done := make(chan struct{})
				s.running.Go(func() { s.run(done) })
				l := openLossLog(t, s, LogConfig{SegmentBytes: 1000, RetentionBytes: 3000})
				early := newTestProducer(t, l, 1)
				early.next.epoch = 3
				for range 7 {
					early.send(1, AcksStored)
				}
				late := newTestProducer(t, l, 2)
				for range 60 {
					late.send(1, AcksStored)
					<-time.After(20 * time.Millisecond)
				}
				<-time.After(2 * time.Second)
				start, _ := l.Bounds()
				require.Greater(t, start, int64(7), "all of the first are gone")
				require.Len(t, producersDir(m, "/data/0"), 1)
				rng := rand.New(rand.NewPCG(1, 1))
				for _, after := range []*memFiles{m.kill(), m.crash(rng), m.crash(rng), m.crash(rng)} {
					l := openLossLog(t, lossStore(after, policy), lossConfig())
					early.log, late.log = l, l
					early.again(l, AcksStored)
					_, end := l.Bounds()
					late.sent = slices.DeleteFunc(late.sent, func(s sentBatch) bool { return s.result.BaseOffset >= end })
					late.again(l, AcksStored)
					late.next.sequence = int32(len(late.sent))
					require.NoError(t, appendNow(l, late.make(1), AcksStored).Err)
					require.ErrorIs(t, appendNow(l, producerBatch(producerFields{1, 2, 0}, 1, 0), AcksStored).Err, ErrFenced)
					require.NoError(t, l.Close())
				}
				close(done)
				_ = l.Close() // Its files are dead.
				s.running.Wait()
			})
		})
	}
}

// The log of a broker that was killed knows producers whatever is left of the files beside the
// segments, and goes on to know them.
func TestProducersWithoutIndexes(t *testing.T) {
	m := newLossFiles(t)
	c := LogConfig{SegmentBytes: 1000}
	open := func() *diskLog { return openLossLog(t, lossStore(m, SyncInterval(time.Hour)), c) }
	l := open()
	p, q := newTestProducer(t, l, 7), newTestProducer(t, l, 8)
	q.send(1, AcksStored)
	for range 30 {
		p.send(1, AcksStored)
	}
	require.NoError(t, l.Close())
	require.Equal(t, []int64{31}, producersDir(m, "/data/0"))
	remove := func(suffix string) {
		for _, path := range m.paths() {
			if strings.HasSuffix(path, suffix) {
				m.put(path, nil)
			}
		}
	}
	for i, damage := range []func(){
		func() {},
		func() { remove(indexSuffix) },
		func() { remove(producersSuffix) },
		func() { remove(indexSuffix); remove(producersSuffix) },
		func() {
			path := segmentPath("/data/0", producersDir(m, "/data/0")[0], producersSuffix)
			data := slices.Clone(m.content(path))
			data[len(data)-9] ^= 1
			m.put(path, data)
		},
	} {
		damage()
		for range 2 { // Also when what was damaged has been put right by the first.
			l := open()
			p.log, q.log = l, l
			p.again(l, AcksStored)
			q.again(l, AcksStored)
			m = m.kill()
		}
		l := open()
		p.log, q.log = l, l
		p.again(l, AcksStored)
		q.again(l, AcksStored)
		p.send(1, AcksStored)
		require.NoError(t, l.Close())
		require.Equal(t, []int64{int64(32 + i)}, producersDir(m, "/data/0"))
	}
}

// A file of producers for an offset that the log does not have any more tells of batches that
// are gone. It is removed before others take their place, for good.
func TestProducersAheadOfLog(t *testing.T) {
	m := newLossFiles(t)
	open := func() *diskLog { return openLossLog(t, lossStore(m, SyncInterval(time.Hour)), lossConfig()) }
	l := open()
	p := newTestProducer(t, l, 7)
	for range 10 {
		p.send(1, AcksStored)
	}
	require.NoError(t, l.Close())
	segment := segmentPath("/data/0", 0, segmentSuffix)
	data := m.content(segment)
	m.put(segment, data[:segmentHeaderSize+6*len(p.sent[0].data)])
	m.put(segmentPath("/data/0", 0, indexSuffix), nil)
	require.Equal(t, []int64{10}, producersDir(m, "/data/0"))

	_ = open()
	require.Empty(t, producersDir(m, "/data/0"))
	m = m.crash(rand.New(rand.NewPCG(4, 4)))
	require.Empty(t, producersDir(m, "/data/0"), "it may not come back")
	l = open()
	_, end := l.Bounds()
	require.Equal(t, int64(6), end)
	p.sent = p.sent[:6]
	p.log = l
	p.again(l, AcksStored)
	p.next.sequence = 6
	p.send(3, AcksStored)
	p.send(3, AcksStored)
	m = m.kill()
	l = open()
	p.again(l, AcksStored)
	p.log = l
	p.send(1, AcksStored)
	require.NoError(t, l.Close())
}

// Whoever has been forgotten leaves no file behind, and costs the next opening nothing.
func TestProducersForgottenOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newLossFiles(t)
		open := func() *diskLog { return openLossLog(t, lossStore(m, SyncInterval(time.Hour)), lossConfig()) }
		l := open()
		newTestProducer(t, l, 7).send(1, AcksStored)
		require.NoError(t, l.Close())
		require.NotEmpty(t, producersDir(m, "/data/0"))
		l = open()
		require.NoError(t, l.Close())
		require.NotEmpty(t, producersDir(m, "/data/0"))
		<-time.After(8 * 24 * time.Hour)
		l = open()
		require.NoError(t, l.Close())
		require.Empty(t, producersDir(m, "/data/0"))
		reads := 0
		m.setFault(func(op fileOp) fault {
			if op.kind == "read" {
				reads += op.size
			}
			return fault{}
		})
		l = open()
		require.LessOrEqual(t, reads, 2*segmentHeaderSize+64*indexEntrySize)
		require.Nil(t, l.producers.Load())
		require.NoError(t, l.Close())
	})
}

// Without producers a log keeps and reads nothing for them; with them it reads one file when
// it was closed, and not much more than the tail when it was killed.
func TestProducersOpeningReads(t *testing.T) {
	const (
		total = 80 << 20
		fixed = 8*segmentHeaderSize + 4*64*indexEntrySize
	)
	for _, producers := range []int64{0, 1, 1000} {
		for _, segmentBytes := range []int64{8 << 20, 1 << 30} {
			t.Run(fmt.Sprintf("%d producers, segments of %d", producers, segmentBytes), func(t *testing.T) {
				dir := t.TempDir()
				_, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
				l := openPartitions(t, d, topic, segmentBytes)[0]
				a := newAppender(1, 100, 100)
				sequence := make([]int32, producers)
				write := func(bytes int64) {
					for i := int64(0); bytes > 0; i++ {
						b := batch(a.batch())
						bytes -= int64(len(b))
						if producers > 0 {
							id := i % producers
							b.setProducer(producerFields{id, 0, sequence[id]})
							sequence[id] += b.count()
						}
						require.NoError(t, appendNow(l, b, AcksStored).Err)
						if i%500 == 499 {
							syncLogs(d)
						}
					}
				}
				write(total)
				syncLogs(d)
				kept, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+producersSuffix))
				require.NoError(t, err)
				require.Equal(t, producers > 0, len(kept) == 1, kept)
				size := segmentHeaderSize + 8 + producers*(keptProducerSize+producerWindow*keptBatchSize)
				limit := int64(fixed)
				if producers > 0 {
					limit += size
				}
				know := func() {
					t.Helper()
					for id := range producers {
						b := batch(a.batch())
						b.setProducer(producerFields{id, 0, sequence[id]})
						require.NoError(t, appendNow(l, b, AcksStored).Err)
						sequence[id] += b.count()
					}
				}
				require.NoError(t, d.Close())
				files, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
				l = openPartitions(t, d, topic, segmentBytes)[0]
				require.LessOrEqual(t, files.readBytes.Load(), limit)
				require.Zero(t, files.writes.Load())
				know()
				write(20 << 20)
				// What is written is found by another as after a kill.
				copied := t.TempDir()
				copyDir(t, dir, copied)
				behind := 2 * unsyncedBytes(d) // Looked at, and written once more.
				require.NoError(t, d.Close())
				files, d, topic = openCounted(t, copied, SyncInterval(time.Hour), 1)
				l = openPartitions(t, d, topic, segmentBytes)[0]
				again := (behind/scanBytes + 2) * int64(len(a.batch()))
				require.LessOrEqual(t, files.readBytes.Load(), limit+behind+again+producersInterval+scanBytes)
				if producers == 0 {
					require.LessOrEqual(t, files.readBytes.Load(), limit+behind+again)
				}
				know()
				require.NoError(t, d.Close())
			})
		}
	}
}

// Where nothing tells what is known of producers the end of the log is read, and no more.
func TestProducersFoundInTail(t *testing.T) {
	dir := t.TempDir()
	_, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
	l := openPartitions(t, d, topic, 16<<20)[0]
	old, young := newTestProducer(t, l, 1), newTestProducer(t, l, 2)
	old.send(1, AcksStored)
	a := newAppender(1, 100, 100)
	fill := func(bytes int) {
		for ; bytes > 0; bytes -= len(a.batch()) {
			require.NoError(t, a.append(l))
		}
	}
	fill(30 << 20)
	young.send(1, AcksStored)
	young.send(1, AcksStored)
	fill(30 << 20)
	require.NoError(t, d.Close())
	kept, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+producersSuffix))
	require.NoError(t, err)
	require.Len(t, kept, 1)
	damageFile(t, kept[0], flip(70))

	files, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
	l = openPartitions(t, d, topic, 16<<20)[0]
	require.Greater(t, files.readBytes.Load(), int64(30<<20))
	require.LessOrEqual(t, files.readBytes.Load(), int64(maxProducerScan*11/10))
	old.log, young.log = l, l
	young.again(l, AcksStored)
	young.send(1, AcksStored)
	require.ErrorIs(t, appendNow(l, old.make(1), AcksStored).Err, ErrOutOfOrderSequence)
	old.next = producerFields{1, 1, 0}
	old.send(1, AcksStored)
	require.NoError(t, d.Close())
}

// What is known of producers is not kept far from where the log is synced, however much is
// appended between two syncs, and though it could not be kept for a while.
func TestProducersKeptWithFrontier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newLossFiles(t)
		s := lossStore(m, SyncInterval(time.Second))
		l := openLossLog(t, s, LogConfig{SegmentBytes: 1 << 30})
		p := newTestProducer(t, l, 7)
		a := newAppender(1, 1000, 100)
		for i, batches := range []int{30, 60, 90, 300, 30} {
			for range batches {
				require.NoError(t, a.append(l))
			}
			p.send(1, AcksStored)
			_, end := l.Bounds()
			l.syncNow()
			switch kept := producersDir(m, "/data/0"); i {
			case 0:
				require.Empty(t, kept, "3 MB")
			case 1:
				require.Equal(t, []int64{end}, kept, "9 MB")
			case 2:
				require.Equal(t, []int64{end}, kept)
				m.setFault(func(op fileOp) fault {
					if strings.Contains(op.path, producersSuffix) {
						return fault{err: syscall.ENOSPC}
					}
					return fault{}
				})
			case 3:
				require.NotEqual(t, []int64{end}, kept)
				m.clearFault()
				l.syncNow()
				require.NotEqual(t, []int64{end}, kept, "not before some time has passed")
				<-time.After(producersRetry)
			case 4:
				require.Equal(t, []int64{end}, kept)
			}
		}
		after := m.kill()
		l2 := openLossLog(t, lossStore(after, SyncInterval(time.Second)), lossConfig())
		p.again(l2, AcksStored)
		require.NoError(t, l2.Close())
		_ = l.Close() // Its files are dead.
		s.running.Wait()
	})
}

// A check tells of a file that is damaged; a repair puts it aside, and what can be found out
// again is.
func TestCheckProducers(t *testing.T) {
	dir := t.TempDir()
	_, d, topic := openCounted(t, dir, SyncInterval(time.Hour), 1)
	l := openPartitions(t, d, topic, 16<<20)[0]
	p := newTestProducer(t, l, 1)
	for range 8 {
		p.send(2, AcksStored)
	}
	require.NoError(t, d.Close())
	report, err := CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
	kept, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+producersSuffix))
	require.NoError(t, err)
	require.Len(t, kept, 1)
	damageFile(t, kept[0], flip(90))

	for _, repaired := range []bool{false, true} {
		inspect := CheckDataDir
		if repaired {
			inspect = RepairDataDir
		}
		report, err = inspect(t.Context(), dir)
		require.NoError(t, err)
		require.Len(t, report.Damage, 1)
		require.Equal(t, Damage{
			Topic: "demo", Repaired: repaired,
			CorruptError: CorruptError{File: kept[0], From: -1, To: -1, Reason: "checksum is wrong"},
		}, report.Damage[0])
	}
	require.FileExists(t, kept[0]+damagedSuffix)
	report, err = CheckDataDir(t.Context(), dir)
	require.NoError(t, err)
	require.Empty(t, report.Damage)
	_, d, topic = openCounted(t, dir, SyncInterval(time.Hour), 1)
	l = openPartitions(t, d, topic, 16<<20)[0]
	p.again(l, AcksStored)
	require.NoError(t, d.Close())

	// A version that nobody knows is not guessed at.
	damageFile(t, kept[0], func(data []byte) []byte {
		data[9] = 2
		h := sealProducers(data[:segmentHeaderSize-4])
		return sealProducers(append(h, data[segmentHeaderSize:len(data)-4]...))
	})
	_, err = CheckDataDir(t.Context(), dir)
	require.ErrorIs(t, err, ErrUnsupported)
	_, d, topic = openCounted(t, dir, SyncInterval(time.Hour), 1)
	_, err = d.OpenPartition(t.Context(), topic, 0, LogConfig{SegmentBytes: 1 << 20}, func() {})
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorContains(t, err, "version 2")
	require.NoError(t, d.Close())
}

// Many producers at once, each of which sends what was not answered again: all is stored once.
func TestProducersConcurrently(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{SegmentBytes: 64 << 10}, nil)
		const producers, batches = 8, 200
		var group sync.WaitGroup
		for id := range int64(producers) {
			group.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(id), 1))
				var window []batch
				var answers []<-chan AppendResult
				for n := range int32(batches) {
					window = append(window, producerBatch(producerFields{id, 0, n}, 1, int64(n)))
					answers = append(answers, appendLater(l, window[len(window)-1], AcksStored))
					if len(window) < producerWindow && rng.IntN(3) > 0 {
						continue
					}
					for i, b := range window {
						first, again := <-answers[i], appendNow(l, b, AcksStored)
						want := first
						want.Repeated = true
						if again != want || first.Err != nil || first.Repeated {
							t.Errorf("producer %d, %d: %+v and then %+v", id, b.producer().sequence, first, again)
						}
					}
					window, answers = nil, nil
				}
			})
		}
		group.Wait()
		counts := make(map[int64]int32)
		for offset := int64(0); ; {
			r, err := l.Read(t.Context(), offset, 1<<20)
			require.NoError(t, err)
			if len(r.Batches) == 0 {
				break
			}
			for rest := r.Batches; len(rest) > 0; {
				b := cutBatch(rest)
				rest, offset = rest[len(b):], b.nextOffset()
				p := b.producer()
				require.Equal(t, counts[p.id], p.sequence)
				counts[p.id]++
			}
			r.Release()
		}
		require.Len(t, counts, producers)
		_, end := l.Bounds()
		require.Equal(t, int64(producers*batches), end)
	})
}

// copyDir copies a directory.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
}

// unsyncedBytes returns how much of the only log that is open is not synced.
func unsyncedBytes(d *dataDir) (n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range d.logs {
		v := l.visible.Load()
		for i, s := range v.segments {
			switch {
			case s.header.base == l.synced.segment:
				n += v.size(i) - l.noted
			case s.header.base > l.synced.segment:
				n += v.size(i)
			}
		}
	}
	return n
}
