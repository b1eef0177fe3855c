package robust

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// storages are what the contract is tested on.
var storages = map[string]func(testing.TB) Storage{
	"memory": func(testing.TB) Storage { return NewMemoryStorage() },
	"disk": func(t testing.TB) Storage {
		d, err := openDataDir(osFiles{}, t.TempDir(), SyncInterval(defaultSyncInterval), newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err)
		return d
	},
}

// eachStorage runs a test on every storage.
func eachStorage(t *testing.T, f func(t *testing.T, s Storage)) {
	for name, open := range storages {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			defer func() { require.NoError(t, s.Close()) }()
			f(t, s)
		})
	}
}

func openTestLog(t testing.TB, s Storage, c LogConfig, advanced func()) PartitionLog {
	t.Helper()
	if c.SegmentBytes == 0 {
		c.SegmentBytes = defaultSegment
	}
	if advanced == nil {
		advanced = func() {}
	}
	topic := StoredTopic{Name: "demo", ID: "1", Partitions: 1}
	require.NoError(t, s.PutTopic(t.Context(), topic))
	l, err := s.OpenPartition(t.Context(), topic, 0, c, advanced)
	require.NoError(t, err)
	return l
}

// appendValues appends a batch of messages, whose values are their offsets, and
// returns its base offset.
func appendValues(t testing.TB, l PartitionLog, count int, timestamps ...int64) int64 {
	t.Helper()
	_, end := l.Bounds()
	ms := make([]*Message, count)
	for i := range ms {
		ms[i] = &Message{Value: fmt.Append(nil, end+int64(i))}
		if i < len(timestamps) {
			ms[i].Timestamp = timestamps[i]
		}
	}
	return appendRaw(t, l, appendBatch(nil, ms...)).BaseOffset
}

func appendRaw(t testing.TB, l PartitionLog, batches []byte) AppendResult {
	t.Helper()
	done := make(chan AppendResult, 1)
	l.Append(batches, AcksStored, func(r AppendResult) { done <- r })
	r := <-done
	require.NoError(t, r.Err)
	return r
}

// readLog reads from offset to the end and checks that offsets are dense and values
// what appendValues wrote.
func readLog(t testing.TB, l PartitionLog, offset int64, maxBytes int) int64 {
	t.Helper()
	for {
		r, err := l.Read(t.Context(), offset, maxBytes)
		require.NoError(t, err)
		if len(r.Batches) == 0 {
			r.Release()
			return offset
		}
		for rest := r.Batches; len(rest) > 0; {
			b, next, err := parseBatch(rest)
			require.NoError(t, err)
			rest = next
			records := b.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				if m.Offset < offset {
					continue
				}
				if m.Offset != offset || string(m.Value) != fmt.Sprint(offset) {
					require.Failf(t, "wrong record", "at offset %d: %+v", offset, m)
				}
				offset++
			}
		}
		r.Release()
	}
}

func TestStorageAppendAndRead(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		advances := 0
		l := openTestLog(t, s, LogConfig{}, func() { advances++ })
		start, end := l.Bounds()
		require.Equal(t, []int64{0, 0}, []int64{start, end})
		rng := rand.New(rand.NewPCG(1, 2))
		var next int64
		for range 2000 {
			n := 1 + rng.IntN(20)
			require.Equal(t, next, appendValues(t, l, n))
			next += int64(n)
		}
		require.Equal(t, 2000, advances)
		for range 20 {
			require.Equal(t, next, readLog(t, l, rng.Int64N(next+1), 1+rng.IntN(100_000)))
		}
	})
}

func TestStorageStampsBatches(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		appendValues(t, l, 3)
		// Two batches in one append.
		two := appendBatch(nil, &Message{Value: []byte("3")}, &Message{Value: []byte("4")})
		two = append(two, appendBatch(nil, &Message{Value: []byte("5")})...)
		before := time.Now().UnixMilli()
		r := appendRaw(t, l, two)
		require.Equal(t, int64(3), r.BaseOffset)
		require.GreaterOrEqual(t, r.AppendTime, before)
		require.Equal(t, int64(6), readLog(t, l, 0, 1<<20))
		read, err := l.Read(t.Context(), 4, 1<<20)
		require.NoError(t, err)
		defer read.Release()
		b, _, err := parseBatch(read.Batches)
		require.NoError(t, err)
		require.Equal(t, int64(3), b.baseOffset())
		require.Equal(t, r.AppendTime, b.appendTime())
		require.Equal(t, int32(1), b.epoch())
	})
}

// A bad batch among good ones stores nothing.
func TestStorageRefusesBadBatches(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		good := appendBatch(nil, &Message{Value: []byte("0")})
		bad := appendBatch(nil, &Message{Value: []byte("1")})
		bad[len(bad)-1] ^= 1
		for _, batches := range [][]byte{bad, append(append([]byte(nil), good...), bad...), good[:20], append(append([]byte(nil), good...), 0)} {
			l.Append(batches, AcksStored, func(r AppendResult) { require.ErrorIs(t, r.Err, ErrMalformed) })
		}
		_, end := l.Bounds()
		require.Zero(t, end)
	})
}

func TestStorageOutOfRange(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		appendValues(t, l, 10)
		require.NoError(t, l.DeleteBefore(t.Context(), 4))
		for _, offset := range []int64{-1, 0, 3, 11} {
			_, err := l.Read(t.Context(), offset, 1)
			require.ErrorIs(t, err, ErrOffsetOutOfRange, offset)
		}
		require.Equal(t, int64(10), readLog(t, l, 4, 1))
		require.ErrorIs(t, l.DeleteBefore(t.Context(), 11), ErrOffsetOutOfRange)
		require.NoError(t, l.DeleteBefore(t.Context(), 2), "lower than what is deleted already")
		start, _ := l.Bounds()
		require.Equal(t, int64(4), start)
		require.NoError(t, l.DeleteBefore(t.Context(), 10))
		start, end := l.Bounds()
		require.Equal(t, []int64{10, 10}, []int64{start, end})
		require.Equal(t, int64(10), appendValues(t, l, 1), "offsets are never given twice")
	})
}

func TestStorageOffsetAt(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{}, nil)
		var times []int64
		rng := rand.New(rand.NewPCG(3, 4))
		for range 3000 {
			batch := make([]int64, 1+rng.IntN(5))
			for i := range batch {
				batch[i] = int64(len(times)+i)*10 + rng.Int64N(100) // Not in order.
			}
			appendValues(t, l, len(batch), batch...)
			times = append(times, batch...)
		}
		check := func(start int) {
			for range 500 {
				at := rng.Int64N(int64(len(times)*10 + 200))
				want := int64(len(times))
				for i := start; i < len(times); i++ {
					if times[i] >= at {
						want = int64(i)
						break
					}
				}
				got, err := l.OffsetAt(t.Context(), at)
				require.NoError(t, err)
				require.Equal(t, want, got, "time %d", at)
			}
		}
		check(0)
		require.NoError(t, l.DeleteBefore(t.Context(), 1234))
		check(1234)
	})
}

func TestStorageRetention(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{SegmentBytes: 4 << 10, RetentionBytes: 64 << 10, RetentionAge: time.Hour}, nil)
		for range 5000 {
			appendValues(t, l, 1)
		}
		require.NoError(t, l.Expire(time.Now()))
		start, end := l.Bounds()
		require.Equal(t, int64(5000), end)
		kept := int64(0)
		for offset := start; offset < end; {
			r, err := l.Read(t.Context(), offset, 1<<20)
			require.NoError(t, err)
			kept += int64(len(r.Batches))
			for rest := r.Batches; len(rest) > 0; {
				b := cutBatch(rest)
				rest, offset = rest[len(b):], b.nextOffset()
			}
			r.Release()
		}
		require.GreaterOrEqual(t, kept, int64(64<<10), "retention.bytes is what stays at least")
		require.Less(t, kept, int64(64<<10+8<<10), "and a segment or so more")

		require.NoError(t, l.Expire(time.Now().Add(2*time.Hour)))
		appendValues(t, l, 1)
		start, end = l.Bounds()
		require.Equal(t, int64(5001), end)
		require.Greater(t, start, int64(4000))

		l.Configure(LogConfig{SegmentBytes: 4 << 10})
		require.NoError(t, l.Expire(time.Now().Add(1000*time.Hour)))
		after, _ := l.Bounds()
		require.Equal(t, start, after, "without limits nothing goes")
	})
}

// Readers and a writer at once: every read is of whole, right batches, whatever
// retention does meanwhile.
func TestStorageConcurrently(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		l := openTestLog(t, s, LogConfig{SegmentBytes: 16 << 10, RetentionBytes: 200 << 10}, nil)
		const total = 5000
		var group sync.WaitGroup
		group.Go(func() {
			for i := range total {
				appendValues(t, l, 1)
				if i%1000 == 0 {
					require.NoError(t, l.Expire(time.Now()))
				}
			}
		})
		for range 2 {
			group.Go(func() {
				for offset := int64(0); offset < total; {
					start, _ := l.Bounds()
					offset = max(offset, start)
					r, err := l.Read(t.Context(), offset, 10_000)
					if err != nil {
						require.ErrorIs(t, err, ErrOffsetOutOfRange)
						continue
					}
					for rest := r.Batches; len(rest) > 0; {
						b, next, err := parseBatch(rest)
						require.NoError(t, err)
						require.LessOrEqual(t, b.baseOffset(), offset)
						rest, offset = next, b.nextOffset()
					}
					r.Release()
				}
			})
		}
		group.Wait()
	})
}

func TestStorageKeepsTopics(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		ctx := t.Context()
		config := map[string]string{"retention.hours": "1"}
		want := StoredTopic{Name: "demo", ID: "1", Partitions: 1, Config: map[string]string{"retention.hours": "1"}}
		require.NoError(t, s.PutTopic(ctx, StoredTopic{Name: "demo", ID: "1", Partitions: 1, Config: config}))
		config["retention.hours"] = "2"
		topics, err := s.Topics(ctx)
		require.NoError(t, err)
		require.Equal(t, []StoredTopic{want}, topics)

		l := openTestLog(t, s, LogConfig{}, nil)
		appendValues(t, l, 5)
		require.NoError(t, l.Close())
		l.Append(appendBatch(nil, &Message{}), AcksStored, func(r AppendResult) { require.ErrorIs(t, r.Err, ErrClosed) })

		l = openTestLog(t, s, LogConfig{}, nil)
		require.Equal(t, int64(5), readLog(t, l, 0, 1<<20), "an opened log has what the closed one had")
		appendValues(t, l, 1)
		r, err := l.Read(ctx, 5, 1)
		require.NoError(t, err)
		require.Equal(t, int32(2), cutBatch(r.Batches).epoch(), "every open raises the epoch")
		r.Release()
		require.NoError(t, l.Close())

		require.NoError(t, s.DeleteTopic(ctx, "demo"))
		topics, err = s.Topics(ctx)
		require.NoError(t, err)
		require.Empty(t, topics)
		l = openTestLog(t, s, LogConfig{}, nil)
		_, end := l.Bounds()
		require.Zero(t, end, "a topic made anew is empty")
		require.NoError(t, l.Close())
	})
}

func TestStorageKeepsGroups(t *testing.T) {
	eachStorage(t, func(t *testing.T, s Storage) {
		ctx := t.Context()
		kept := func() map[string]StoredGroup {
			groups, err := s.Groups(ctx)
			require.NoError(t, err)
			byID := make(map[string]StoredGroup)
			for _, g := range groups {
				byID[g.ID] = g
			}
			return byID
		}
		require.Empty(t, kept())
		for _, topic := range []StoredTopic{{Name: "demo", ID: "1", Partitions: 2}, {Name: "other", ID: "2", Partitions: 1}} {
			require.NoError(t, s.PutTopic(ctx, topic))
		}
		state := []byte("state")
		require.NoError(t, s.PutGroup(ctx, "g", state))
		state[0] = 'S'
		require.Equal(t, "state", string(kept()["g"].State))
		offsets := []StoredOffset{{"demo", "1", 0, 5, "m"}, {"other", "2", 0, 7, ""}}
		require.NoError(t, s.PutOffsets(ctx, "g", offsets))
		require.NoError(t, s.PutOffsets(ctx, "only offsets/../\x00", []StoredOffset{{"demo", "1", 1, 1, ""}}))
		require.Len(t, kept(), 2)
		require.ElementsMatch(t, offsets, kept()["g"].Offsets)
		require.Empty(t, kept()["only offsets/../\x00"].State)

		require.NoError(t, s.PutOffsets(ctx, "g", []StoredOffset{{"demo", "1", 0, 3, "back"}}))
		require.NoError(t, s.PutGroup(ctx, "g", []byte("more")))
		require.ElementsMatch(t, []StoredOffset{{"demo", "1", 0, 3, "back"}, {"other", "2", 0, 7, ""}}, kept()["g"].Offsets)
		require.Equal(t, "more", string(kept()["g"].State))

		require.NoError(t, s.DeleteTopic(ctx, "demo"))
		require.Equal(t, []StoredOffset{{"other", "2", 0, 7, ""}}, kept()["g"].Offsets, "a topic takes its offsets along")
		require.NoError(t, s.DeleteGroup(ctx, "g"))
		require.NoError(t, s.DeleteGroup(ctx, "g"))
		require.NotContains(t, kept(), "g")
	})
}
