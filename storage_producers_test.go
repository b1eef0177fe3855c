package robust

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// producerBatch makes a batch of a producer. Its values are those of appendValues for a batch
// at the offset at.
func producerBatch(p producerFields, count int, at int64) batch {
	ms := make([]*Message, count)
	for i := range ms {
		ms[i] = &Message{Value: fmt.Append(nil, at+int64(i))}
	}
	b := appendBatch(nil, ms...)
	b.setProducer(p)
	return b
}

// testProducer sends batches to a log, and knows what became of them.
type testProducer struct {
	t    testing.TB
	log  PartitionLog
	next producerFields
	sent []sentBatch
}

// sentBatch is a batch that is stored.
type sentBatch struct {
	data   batch
	result AppendResult
}

func newTestProducer(t testing.TB, l PartitionLog, id int64) *testProducer {
	return &testProducer{t: t, log: l, next: producerFields{id: id}}
}

func appendNow(l PartitionLog, b batch, acks Acks) AppendResult {
	done := make(chan AppendResult, 1)
	l.Append(slices.Clone(b), acks, func(r AppendResult) { done <- r })
	return <-done
}

// make makes the next batch.
func (p *testProducer) make(count int) batch {
	_, end := p.log.Bounds()
	b := producerBatch(p.next, count, end)
	p.next.sequence = nextSequence(p.next.sequence, int32(count-1))
	return b
}

// send has the next batch stored.
func (p *testProducer) send(count int, acks Acks) AppendResult {
	p.t.Helper()
	b := p.make(count)
	_, end := p.log.Bounds()
	r := appendNow(p.log, b, acks)
	require.NoError(p.t, r.Err)
	require.Equal(p.t, end, r.BaseOffset)
	p.sent = append(p.sent, sentBatch{b, r})
	return r
}

// again sends the last batches again, the n-th from the end, which must be recognised.
func (p *testProducer) again(l PartitionLog, acks Acks) {
	p.t.Helper()
	_, end := l.Bounds()
	for _, s := range p.sent[max(0, len(p.sent)-producerWindow):] {
		if s.data.producer().epoch != p.next.epoch {
			continue
		}
		r := appendNow(l, s.data, acks)
		require.NoError(p.t, r.Err)
		require.Equal(p.t, s.result.BaseOffset, r.BaseOffset)
		require.Equal(p.t, s.result.AppendTime, r.AppendTime)
		require.GreaterOrEqual(p.t, r.Acks, acks)
	}
	_, after := l.Bounds()
	require.Equal(p.t, end, after, "nothing is stored again")
}

func TestStorageStoresOnce(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		advances := 0
		l := openTestLog(t, s, LogConfig{}, func() { advances++ })
		a, b := newTestProducer(t, l, 0), newTestProducer(t, l, math.MaxInt64)
		for i := range 20 {
			a.send(1+i%3, AcksStored)
			b.send(2, AcksStored)
			appendValues(t, l, 1)
			a.again(l, AcksStored)
			b.again(l, AcksStored)
		}
		require.Equal(t, 60, advances, "nobody is woken for what was there")
		refused := func(what error, p producerFields, count int) {
			_, end := l.Bounds()
			r := appendNow(l, producerBatch(p, count, end), AcksStored)
			require.ErrorIs(t, r.Err, what)
			require.NotErrorIs(t, r.Err, ErrStorage)
			_, after := l.Bounds()
			require.Equal(t, end, after)
		}
		gap := a.next
		gap.sequence++
		refused(ErrOutOfOrderSequence, gap, 1)
		refused(ErrOutOfOrderSequence, a.sent[len(a.sent)-1-producerWindow].data.producer(), int(a.sent[len(a.sent)-1-producerWindow].data.count()))
		refused(ErrOutOfOrderSequence, a.sent[len(a.sent)-1].data.producer(), 9)
		refused(ErrOutOfOrderSequence, producerFields{1234, 0, 1}, 1)
		refused(ErrInvalidRequest, producerFields{0, -1, 1}, 1)
		refused(ErrInvalidRequest, producerFields{0, 0, -1}, 1)
		refused(ErrOutOfOrderSequence, producerFields{0, 1, a.next.sequence}, 1)
		a.next = producerFields{0, 1, 0}
		a.send(3, AcksStored)
		refused(ErrFenced, producerFields{0, 0, a.sent[len(a.sent)-2].data.producer().sequence}, 2)
		a.again(l, AcksStored)
		b.again(l, AcksStored)
		readLog(t, l, 0, 1<<20)

		// After all of that is removed, and the log is opened again.
		_, end := l.Bounds()
		require.NoError(t, l.DeleteBefore(t.Context(), end))
		a.again(l, AcksStored)
		require.NoError(t, l.Close())
		l = openTestLog(t, s, LogConfig{}, nil)
		a.log, b.log = l, l
		a.again(l, AcksStored)
		b.again(l, AcksStored)
		refused(ErrFenced, producerFields{0, 0, 0}, 1)
		a.send(1, AcksStored)
		b.send(1, AcksStored)
		a.again(l, AcksStored)
		b.again(l, AcksStored)
		_, end = l.Bounds()
		require.Equal(t, end, readLog(t, l, end-2, 1<<20))
	})
}

// A batch of a producer comes alone: what is answered is one offset.
func TestStorageRefusesProducersTogether(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		plain := appendBatch(nil, &Message{Value: []byte("0")})
		first, second := producerBatch(producerFields{7, 0, 0}, 1, 0), producerBatch(producerFields{7, 0, 1}, 1, 0)
		for _, together := range [][]byte{slices.Concat(first, second), slices.Concat(plain, first), slices.Concat(first, plain)} {
			r := appendNow(l, together, AcksStored)
			require.ErrorIs(t, r.Err, ErrInvalidRequest)
			require.NotErrorIs(t, r.Err, ErrStorage)
		}
		_, end := l.Bounds()
		require.Zero(t, end)
		require.NoError(t, appendNow(l, first, AcksStored).Err)
		require.NoError(t, appendNow(l, slices.Concat(plain, plain), AcksStored).Err)
		require.Equal(t, int64(3), appendNow(l, second, AcksStored).BaseOffset)
	})
}

func TestStorageSequencesGoRound(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		// A batch stands for more offsets than it has records once it has been compacted.
		most := appendBatch(nil, &Message{Value: []byte("x")})
		most.setHeader(CompressionNone, 1, math.MaxInt32-2, 0, 0, noProducer())
		most.setProducer(producerFields{7, 0, 0})
		require.NoError(t, appendNow(l, most, AcksStored).Err)
		p := newTestProducer(t, l, 7)
		p.next.sequence = math.MaxInt32 - 1
		for _, count := range []int{1, 3, 1} {
			p.send(count, AcksStored)
		}
		require.Equal(t, int32(3), p.next.sequence)
		p.again(l, AcksStored)
		require.NoError(t, l.Close())
		l = openTestLog(t, s, LogConfig{}, nil)
		p.again(l, AcksStored)
		require.Equal(t, int64(0), appendNow(l, most, AcksStored).BaseOffset)
		p.log = l
		p.send(1, AcksStored)
	})
}

func TestStorageForgetsProducers(t *testing.T) {
	for name, open := range map[string]func() Storage{
		"memory": NewMemoryStorage,
		"disk": func() Storage {
			m := newMemFiles(1)
			require.NoError(t, m.mkdir("/srv"))
			d, err := openDataDir(m, labDir, SyncInterval(time.Hour), newWarner(slog.New(slog.DiscardHandler)))
			require.NoError(t, err)
			return d
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := open()
				defer func() { require.NoError(t, s.Close()) }()
				l := openTestLog(t, s, LogConfig{}, nil)
				a, b, c := newTestProducer(t, l, 1), newTestProducer(t, l, 2), newTestProducer(t, l, 3)
				for _, p := range []*testProducer{a, b, c} {
					p.next.epoch = 5
					p.send(1, AcksStored)
					p.send(1, AcksStored)
				}
				<-time.After(6 * 24 * time.Hour)
				b.send(1, AcksStored)
				<-time.After(24*time.Hour - time.Millisecond)
				require.NoError(t, l.Expire(time.Now()))
				a.again(l, AcksStored)
				<-time.After(2 * time.Millisecond)
				// One of them is found out when it comes.
				require.ErrorIs(t, appendNow(l, a.make(1), AcksStored).Err, ErrOutOfOrderSequence)
				require.NoError(t, l.Expire(time.Now()))
				require.ErrorIs(t, appendNow(l, c.make(1), AcksStored).Err, ErrOutOfOrderSequence)
				b.again(l, AcksStored)
				require.NoError(t, l.Close())
				l = openTestLog(t, s, LogConfig{}, nil)
				a.log, b.log, c.log = l, l, l
				b.again(l, AcksStored)
				require.ErrorIs(t, appendNow(l, a.make(1), AcksStored).Err, ErrOutOfOrderSequence)
				c.next = producerFields{3, 0, 0}
				c.send(1, AcksStored)
				<-time.After(30 * 24 * time.Hour)
				require.NoError(t, l.Expire(time.Now()))
				b.next = producerFields{2, 0, 0}
				b.send(1, AcksStored)
				b.again(l, AcksStored)
				<-time.After(30 * 24 * time.Hour)
				require.NoError(t, l.Close())
				l = openTestLog(t, s, LogConfig{}, nil)
				require.ErrorIs(t, appendNow(l, b.make(1), AcksStored).Err, ErrOutOfOrderSequence)
			})
		})
	}
}
