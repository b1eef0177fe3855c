package robust

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// step is a batch that a producer sends, and what becomes of it.
type step struct {
	epoch    int16
	sequence int32
	count    int32
	want     int64 // the offset; -1 for a refusal
	err      error
}

const outOfSequence = -1

func TestProducerStates(t *testing.T) {
	const last = math.MaxInt32
	ooo := func(epoch int16, sequence int32) step {
		return step{epoch, sequence, 1, outOfSequence, ErrOutOfOrderSequence}
	}
	for name, steps := range map[string][]step{
		"in order":                    {{0, 0, 3, 0, nil}, {0, 3, 1, 3, nil}, {0, 4, 2, 4, nil}},
		"begins with 0":               {ooo(0, 1), ooo(3, 7), {3, 0, 1, 0, nil}},
		"repeats the last":            {{0, 0, 3, 0, nil}, {0, 0, 3, 0, nil}, {0, 3, 1, 3, nil}, {0, 3, 1, 3, nil}, {0, 0, 3, 0, nil}},
		"of other size":               {{0, 0, 3, 0, nil}, ooo(0, 0), {0, 0, 3, 0, nil}},
		"overlaps":                    {{0, 0, 3, 0, nil}, ooo(0, 1), ooo(0, 2), {0, 3, 1, 3, nil}},
		"leaves a gap":                {{0, 0, 1, 0, nil}, ooo(0, 2), {0, 1, 1, 1, nil}},
		"five are known, six are not": {{0, 0, 1, 0, nil}, {0, 1, 1, 1, nil}, {0, 2, 1, 2, nil}, {0, 3, 1, 3, nil}, {0, 4, 1, 4, nil}, {0, 0, 1, 0, nil}, {0, 5, 1, 5, nil}, ooo(0, 0), {0, 1, 1, 1, nil}},
		"an epoch begins": {
			{0, 0, 1, 0, nil},
			{0, 1, 1, 1, nil},
			ooo(1, 2),
			{1, 0, 1, 2, nil},
			{0, 2, 1, outOfSequence, ErrFenced},
			{0, 1, 1, outOfSequence, ErrFenced},
			{1, 1, 1, 3, nil},
			{1, 0, 1, 2, nil},
			{7, 0, 4, 4, nil},
			{math.MaxInt16, 0, 1, 8, nil},
			{7, 4, 1, outOfSequence, ErrFenced},
		},
		"no epoch, no sequence": {{-1, 0, 1, outOfSequence, ErrInvalidRequest}, {0, -1, 1, outOfSequence, ErrInvalidRequest}},
		"goes round": {
			{0, 0, last, 0, nil},
			{0, last, 1, last, nil},
			{0, 0, 2, last + 1, nil},
			{0, last, 1, last, nil},
			{0, 2, 1, last + 3, nil},
		},
		"goes round within a batch": {{0, 0, last - 1, 0, nil}, {0, last - 1, 5, last - 1, nil}, ooo(0, 4), ooo(0, 0), {0, 3, 1, last + 4, nil}, {0, last - 1, 5, last - 1, nil}},
	} {
		t.Run(name, func(t *testing.T) {
			var ps producerStates
			end := int64(0)
			for i, s := range steps {
				before, repeated, err := ps.append(producerFields{5, s.epoch, s.sequence}, s.count-1, end, int64(i))
				what := fmt.Sprintf("step %d: %+v", i, s)
				require.ErrorIs(t, err, s.err, what)
				switch {
				case s.want == outOfSequence:
					require.Error(t, err, what)
				case repeated:
					require.Equal(t, s.want, before.base, what)
					require.Less(t, before.time, int64(i), what)
				default:
					require.NoError(t, err, what)
					require.Equal(t, s.want, end, what)
					end += int64(s.count)
				}
			}
		})
	}
}

func TestProducerRefusalsSayWhy(t *testing.T) {
	var ps producerStates
	_, _, err := ps.append(producerFields{77, 3, 9}, 0, 0, 0)
	require.EqualError(t, err, "robust: sequence is out of order: producer 77, epoch 3: sequence 9, expected is 0")
	_, _, err = ps.append(producerFields{77, 3, 0}, 9, 0, 0)
	require.NoError(t, err)
	_, _, err = ps.append(producerFields{77, 3, 12}, 0, 10, 0)
	require.EqualError(t, err, "robust: sequence is out of order: producer 77, epoch 3: sequence 12, expected is 10")
	_, _, err = ps.append(producerFields{77, 2, 10}, 0, 10, 0)
	require.EqualError(t, err, "robust: fenced by a newer owner: producer 77 is in epoch 3; the batch is of epoch 2")
	require.Equal(t, errorCode("OUT_OF_ORDER_SEQUENCE"), codeOf(outOfOrder(producerFields{}, 0)))
	require.False(t, refusalMayPass(outOfOrder(producerFields{}, 0)))
	require.False(t, retriable(&BrokerError{condition: ErrOutOfOrderSequence}))
}

// A producer is forgotten seven days after its last batch, and not before.
func TestProducerExpiry(t *testing.T) {
	const expiry = int64(7 * 24 * time.Hour / time.Millisecond)
	var ps producerStates
	for i := range int64(5) {
		_, _, err := ps.append(producerFields{i, 4, 0}, 0, i, i*10)
		require.NoError(t, err)
	}
	_, _, err := ps.append(producerFields{0, 4, 1}, 0, 5, 50)
	require.NoError(t, err)
	require.Equal(t, int64(10), ps.silentSince())
	ps.expire(expiry + 10)
	require.Equal(t, 5, ps.len())
	_, repeated, err := ps.append(producerFields{1, 4, 0}, 0, 6, expiry+10)
	require.NoError(t, err)
	require.True(t, repeated, "to repeat a batch does not count")
	ps.expire(expiry + 11)
	require.Equal(t, 4, ps.len())
	require.Nil(t, ps.byID[1])

	// Whoever comes too late is not known, also where nobody has cleared up.
	_, _, err = ps.append(producerFields{3, 4, 1}, 0, 6, expiry+31)
	require.ErrorIs(t, err, ErrOutOfOrderSequence)
	_, repeated, err = ps.append(producerFields{3, 2, 0}, 0, 6, expiry+31)
	require.NoError(t, err, "of a lower epoch")
	require.False(t, repeated)
	ps.rollback(6)
	require.Equal(t, int16(4), ps.byID[3].epoch)
	require.Equal(t, int64(30), ps.byID[3].last().time)
	ps.expire(math.MaxInt64)
	require.Zero(t, ps.len())
	require.Zero(t, ps.silentSince())
}

// Beyond 10,000 the one goes that has been silent for longest.
func TestProducerLimit(t *testing.T) {
	var ps producerStates
	for i := range int64(maxLogProducers) {
		_, _, err := ps.append(producerFields{i, 0, 0}, 0, i, i)
		require.NoError(t, err)
	}
	ps.settle(maxLogProducers)
	_, _, err := ps.append(producerFields{0, 0, 1}, 0, maxLogProducers, 0)
	require.NoError(t, err)
	_, _, err = ps.append(producerFields{maxLogProducers, 0, 0}, 0, maxLogProducers+1, 0)
	require.NoError(t, err)
	// What was not written costs nobody's place.
	ps.rollback(maxLogProducers + 1)
	ps.settle(maxLogProducers + 1)
	require.NotNil(t, ps.byID[1])
	_, _, err = ps.append(producerFields{maxLogProducers, 0, 0}, 0, maxLogProducers+1, 0)
	require.NoError(t, err)
	ps.settle(maxLogProducers + 2)
	require.Equal(t, maxLogProducers, ps.len())
	require.Nil(t, ps.byID[1], "the one that has been silent for longest")
	require.NotNil(t, ps.byID[0])
	require.NotNil(t, ps.byID[2])
	require.NotNil(t, ps.byID[maxLogProducers])
}

// producersModel is a log of all that was let through, and says by looking at the whole of it.
type producersModel struct{ batches []modelBatch }

type modelBatch struct {
	p     producerFields
	count int32
	base  int64
	time  int64
}

func (m *producersModel) end() int64 {
	if len(m.batches) == 0 {
		return 0
	}
	b := m.batches[len(m.batches)-1]
	return b.base + int64(b.count)
}

// known returns the last batches of a producer's last epoch, the last one first.
func (m *producersModel) known(id, now int64) (known []modelBatch) {
	for _, b := range m.batches {
		if b.p.id != id {
			continue
		}
		if len(known) > 0 {
			last := known[len(known)-1]
			next := (uint32(last.p.sequence) + uint32(last.count)) % (1 << 31)
			if last.p.epoch != b.p.epoch || uint32(b.p.sequence) != next || b.time-last.time > producerExpiry.Milliseconds() {
				known = nil
			}
		}
		known = append(known, b)
	}
	if n := len(known); n > 0 && now-known[n-1].time > producerExpiry.Milliseconds() {
		known = nil
	}
	known = known[max(0, len(known)-producerWindow):]
	slices.Reverse(known)
	return known
}

func (m *producersModel) verdict(p producerFields, count int32, now int64) (base int64, err error) {
	known := m.known(p.id, now)
	if len(known) == 0 || p.epoch > known[0].p.epoch {
		if p.sequence != 0 {
			return 0, ErrOutOfOrderSequence
		}
		return m.end(), nil
	}
	if p.epoch < known[0].p.epoch {
		return 0, ErrFenced
	}
	next := int32((uint32(known[0].p.sequence) + uint32(known[0].count)) % (1 << 31))
	if p.sequence == next {
		return m.end(), nil
	}
	for _, b := range known {
		if b.p.sequence == p.sequence && b.count == count {
			return b.base, nil
		}
	}
	return 0, ErrOutOfOrderSequence
}

// Random producers, whose batches are in order, repeated, ahead, behind and fenced; some are
// taken back; now and then all is written and read again. What the states say is what
// the whole log says.
func TestProducerStatesModel(t *testing.T) {
	for seed := range uint64(envCount(t, "ROBUST_PRODUCERS", 60)) {
		rng := rand.New(rand.NewPCG(seed, 3))
		ps, m := &producerStates{}, &producersModel{}
		producers, now, settled := 1+rng.Int64N(4), int64(1_000), int64(0)
		next := make(map[int64]producerFields) // what a producer would send
		counts := map[string]int{}
		for range 400 {
			now += rng.Int64N(1000)
			if rng.IntN(100) == 0 {
				now += int64(producerExpiry/time.Millisecond) - rng.Int64N(2000)
			}
			id := rng.Int64N(producers)
			p, count := next[id], 1+rng.Int32N(3)
			p.id = id
			known := m.known(id, now)
			switch n := rng.IntN(20); {
			case n < 5 && len(known) > 0:
				b := known[rng.IntN(len(known))]
				p, count = b.p, b.count
			case n == 5:
				p.sequence = int32((int64(p.sequence) + int64(rng.IntN(12)-6)) & math.MaxInt32)
			case n == 6:
				p.epoch += int16(rng.IntN(3) - 1)
				p.epoch = max(p.epoch, 0)
			case n == 7:
				p.epoch, p.sequence = p.epoch+1, 0
			case n == 8 && len(known) > 0:
				count = math.MaxInt32 - p.sequence - 3 + rng.Int32N(6)
			}
			count = max(count, 1)
			end := m.end()
			base, want := m.verdict(p, count, now)
			before, repeated, err := ps.append(p, count-1, end, now)
			what := fmt.Sprintf("seed %d: %+v of %d at %d: %v, %v", seed, p, count, end, err, want)
			require.ErrorIs(t, err, want, what)
			require.Equal(t, want == nil && base < end, repeated, what)
			switch {
			case err != nil:
				counts[codeName(want)]++
			case repeated:
				counts["repeated"]++
				require.Equal(t, base, before.base, what)
			default:
				counts["stored"]++
				m.batches = append(m.batches, modelBatch{p, count, base, now})
				next[id] = producerFields{id, p.epoch, int32((uint32(p.sequence) + uint32(count)) & math.MaxInt32)}
			}
			switch rng.IntN(30) {
			case 0:
				// The end of the log goes, as far as it is not settled.
				n := len(m.batches)
				for n > 0 && m.batches[n-1].base >= settled && rng.IntN(4) > 0 {
					n--
				}
				if n < len(m.batches) {
					ps.rollback(m.batches[n].base)
					m.batches = m.batches[:n]
					next = make(map[int64]producerFields)
					for _, b := range m.batches {
						next[b.p.id] = producerFields{b.p.id, b.p.epoch, int32((uint32(b.p.sequence) + uint32(b.count)) & math.MaxInt32)}
					}
					counts["cut"]++
				}
			case 1, 2:
				settled = m.end()
				ps.settle(settled)
			case 3:
				// Another that has replayed the log, or the rest of it.
				settled = m.end()
				ps.settle(settled)
				again, at := ps, rng.IntN(len(m.batches)+1)
				if rng.IntN(2) == 0 {
					again = &producerStates{}
					at = 0
				} else if at < len(m.batches) {
					again = replayed(m.batches[:at])
				}
				if at < len(m.batches) || again != ps {
					again.replayStates(replayed(m.batches[at:]), 0)
					again.expire(now)
					ps.expire(now)
					requireSameStates(t, ps, again, what)
					ps = again
				}
				again, err := decodeProducers(ps.encode(nil), settled)
				require.NoError(t, err)
				requireSameStates(t, ps, again, what)
				ps = again
			case 4:
				ps.expire(now)
			}
		}
		require.Greater(t, counts["stored"], 50, "seed %d: %v", seed, counts)
	}
}

func codeName(err error) string {
	if err == nil {
		return ""
	}
	return string(codeOf(err))
}

func replayed(batches []modelBatch) *producerStates {
	ps := &producerStates{}
	for _, b := range batches {
		ps.replay(b.p, producedBatch{base: b.base, time: b.time, first: b.p.sequence, lastDelta: b.count - 1})
	}
	return ps
}

func requireSameStates(t *testing.T, want, got *producerStates, what string) {
	t.Helper()
	require.Equal(t, listStates(want), listStates(got), what)
	require.ElementsMatch(t, slices.Collect(maps.Keys(want.byID)), slices.Collect(maps.Keys(got.byID)), what)
}

func listStates(ps *producerStates) (states []string) {
	for s := ps.oldest; s != nil; s = s.newer {
		text := fmt.Sprintf("%d/%d", s.id, s.epoch)
		for b := range s.all() {
			text += fmt.Sprintf(" %+v", *b)
		}
		states = append(states, text)
	}
	return states
}

func TestDecodeProducersRefuses(t *testing.T) {
	ps := replayed([]modelBatch{{producerFields{7, 1, 0}, 3, 10, 5}, {producerFields{7, 1, 3}, 2, 13, 5}, {producerFields{9, 0, 0}, 1, 15, 6}})
	good := ps.encode(nil)
	_, err := decodeProducers(good, 16)
	require.NoError(t, err)
	_, err = decodeProducers(good, 15)
	require.ErrorIs(t, err, ErrMalformed, "behind the end")
	for n := range good {
		_, err := decodeProducers(good[:n], 16)
		require.ErrorIs(t, err, ErrMalformed, n)
	}
	_, err = decodeProducers(append(slices.Clone(good), 0), 16)
	require.ErrorIs(t, err, ErrMalformed)
	for at, value := range map[int]byte{
		0:                                      1,   // producers
		4:                                      255, // id
		4 + 8:                                  255, // epoch
		4 + 11:                                 0,   // batches
		4 + 12:                                 255, // base
		4 + 12 + 7:                             14,  // base behind that of the next
		4 + 12 + 16:                            255, // sequence
		4 + 12 + 23:                            9,   // last delta, over the next
		4 + 12 + 2*keptBatchSize + 7:           7,   // id, twice
		4 + 12 + 2*keptBatchSize + 12 + 7:      16,  // base behind the end
		4 + 12 + 2*keptBatchSize + 12 + 20:     255, // last delta
		4 + 12 + 2*keptBatchSize + 12 + 20 + 3: 1,   // last delta, over the end
	} {
		bad := slices.Clone(good)
		bad[at] = value
		_, err := decodeProducers(bad, 16)
		require.ErrorIs(t, err, ErrMalformed, at)
	}
}

// FuzzProducers reads what is kept of producers: whatever is let through is written again
// as it was, and can be gone on with.
func FuzzProducers(f *testing.F) {
	f.Add([]byte{}, int64(0))
	f.Add(replayed([]modelBatch{{producerFields{7, 1, 0}, 3, 10, 5}, {producerFields{7, 1, 3}, 2, 13, 5}, {producerFields{9, 0, 0}, 1, 15, 6}}).encode(nil), int64(16))
	f.Fuzz(func(t *testing.T, data []byte, end int64) {
		h := segmentHeader{topicID: "t", partition: 1, base: max(end, 0)}
		file := sealProducers(append(h.encode(producersMagic), data...))
		ps, err := parseProducers(file, "file", h)
		if err != nil {
			var d damage
			require.ErrorAs(t, err, &d)
			return
		}
		require.Equal(t, string(data), string(ps.encode(nil)))
		for id, s := range ps.byID {
			require.Equal(t, id, s.id)
			last := *s.last()
			require.LessOrEqual(t, last.nextOffset(), h.base)
			before, repeated, err := ps.append(producerFields{id, s.epoch, last.first}, last.lastDelta, h.base, last.time)
			require.NoError(t, err)
			if repeated {
				require.Equal(t, last.first, before.first)
			}
			_, _, err = ps.append(producerFields{id, s.epoch, nextSequence(s.last().first, s.last().lastDelta)}, 0, h.base, last.time)
			require.NoError(t, err)
		}
	})
}

// BenchmarkProducers is what a log does for a batch of a producer, one of as many as the
// name says, in turn.
func BenchmarkProducers(b *testing.B) {
	for _, producers := range []int64{1, 10, 1000, maxLogProducers} {
		b.Run(fmt.Sprint(producers), func(b *testing.B) {
			var ps producerStates
			base := int64(0)
			next := make([]int32, producers)
			write := func(id int64) {
				if _, repeated, err := ps.append(producerFields{id, 0, next[id]}, 99, base, base); repeated || err != nil {
					b.Fatal(repeated, err)
				}
				next[id] = nextSequence(next[id], 99)
				base += 100
				ps.settle(base)
			}
			for range producerWindow {
				for id := range producers {
					write(id)
				}
			}
			b.ReportAllocs()
			id := int64(0)
			for b.Loop() {
				write(id)
				if id++; id == producers {
					id = 0
				}
			}
		})
	}
}

// What a log keeps of a producer is a fixed amount, and of none, nothing.
func TestProducerMemory(t *testing.T) {
	const most = 300
	before := heapInUse()
	ps := &producerStates{}
	base := int64(0)
	for n := range int32(producerWindow) {
		for id := range int64(maxLogProducers) {
			_, _, err := ps.append(producerFields{id * 1_000_003, 0, n}, 0, base, base)
			require.NoError(t, err)
			base++
			ps.settle(base)
		}
	}
	each := (heapInUse() - before) / maxLogProducers
	t.Logf("%d bytes a producer; %d in a file", each, len(ps.encode(nil))/maxLogProducers)
	require.LessOrEqual(t, each, int64(most))
	runtime.KeepAlive(ps)
}
