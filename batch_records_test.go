package robust

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// plainly encodes a batch as its description says, field by field.
func plainly(messages ...*Message) batch {
	counted := func(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }
	nullable := func(b []byte) []byte {
		if b == nil {
			return varint(-1)
		}
		return append(varint(int64(len(b))), b...)
	}
	b := append(batch(nil), make([]byte, batchHeaderSize)...)
	latest := messages[0].Timestamp
	for i, m := range messages {
		fields := [][]byte{
			{0},
			varint(int64(i)), varint(m.Timestamp - messages[0].Timestamp), counted(m.ID), nullable(m.Key), nullable(m.Value),
			binary.AppendUvarint(nil, uint64(len(m.Headers))),
		}
		for k, v := range m.Headers {
			fields = append(fields, counted(k), counted(v))
		}
		b = append(b, record(fields...)...)
		latest = max(latest, m.Timestamp)
	}
	b[batchMagicAt] = batchMagic
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(len(messages)))
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(len(messages)-1))
	binary.BigEndian.PutUint64(b[batchFirstTimeAt:], uint64(messages[0].Timestamp))
	binary.BigEndian.PutUint64(b[batchMaxTimeAt:], uint64(latest))
	copy(b[batchProducerAt:], strings.Repeat("\xff", 14))
	return seal(b)
}

// The builder and appendBatch write what the description says, byte for byte, whatever was
// built in the same buffer before. The order of headers is left to chance, so their batches
// are compared by what they are read as.
func TestBatchBuilder(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 4))
	var w batchBuilder
	for round := range 500 {
		require.Equal(t, batchHeaderSize, w.size())
		require.Zero(t, w.count())
		messages := make([]*Message, 1+r.IntN(20))
		ordered := true
		for i := range messages {
			messages[i] = randomMessage(r)
			messages[i].Offset = int64(i)
			if round%2 == 0 && len(messages[i].Headers) > 1 {
				messages[i].Headers = map[string]string{"name": strings.Repeat("v", r.IntN(300))}
			}
			ordered = ordered && len(messages[i].Headers) < 2
			w.add(messages[i], messages[i].Timestamp)
			require.Equal(t, i+1, w.count())
		}
		want := plainly(messages...)
		got, err := w.finish(CompressionNone, noProducer())
		require.NoError(t, err)
		require.Len(t, got, len(want))
		require.Equal(t, len(want), w.size())
		require.Equal(t, len(got), cap(got), "appending to the batch does not write into the builder")
		other := appendBatch([]byte("in front"), messages...)[8:]
		if ordered {
			require.True(t, slices.Equal(want, got))
			require.True(t, slices.Equal(want, other))
		}
		for _, b := range []batch{want, got, other} {
			parsed, rest, err := parseBatch(b)
			require.NoError(t, err)
			require.Empty(t, rest)
			if slices.ContainsFunc(messages, func(m *Message) bool { return len(m.ID) > maxNameBytes }) {
				require.ErrorIs(t, parsed.checkRecords(1<<20), ErrInvalidRequest)
			} else {
				require.NoError(t, parsed.checkRecords(1<<20))
			}
			read, err := readBatch(parsed)
			require.NoError(t, err)
			require.Equal(t, messages, read)
		}
		w.reset()
	}
}

// Lengths of a record that just do and just do not fit one byte, two and three, with the
// headers, which are written before the length is known.
func TestBatchBuilderLengths(t *testing.T) {
	for _, around := range []int{1 << 7, 1 << 14, 1 << 21} {
		for n := around - min(16, 1<<23/around); n < around; n++ { // The long ones take long.
			value := strings.Repeat("v", n)
			for _, m := range []*Message{
				{Value: []byte(value)},
				{Headers: map[string]string{"k": value}},
				{Value: []byte(value[:n/2]), Headers: map[string]string{"k": value[n/2:]}},
			} {
				require.True(t, slices.Equal(plainly(m, m), appendBatch(nil, m, m)), "%d of value, %d of headers", len(m.Value), len(m.Headers["k"]))
			}
		}
	}
}

// The time that is given counts, not the message's.
func TestBatchBuilderTimes(t *testing.T) {
	var w batchBuilder
	for _, at := range []int64{1000, 900, 1100, math.MinInt64, math.MaxInt64} {
		w.add(&Message{Timestamp: 5, Offset: 7, Topic: "t", Partition: 3}, at)
	}
	b, err := w.finish(CompressionNone, noProducer())
	require.NoError(t, err)
	require.Equal(t, int64(1000), b.firstTime())
	require.Equal(t, int64(math.MaxInt64), b.maxTime())
	messages, err := readBatch(b)
	require.NoError(t, err)
	require.Equal(t, int64(900), messages[1].Timestamp)
	require.Equal(t, int64(math.MinInt64), messages[3].Timestamp)
	require.Equal(t, int64(4), messages[4].Offset)
}

func TestBatchBuilderMemory(t *testing.T) {
	var w batchBuilder
	messages := benchRecords(1000, 100)
	build := func(c Compression) batch {
		w.reset()
		for _, m := range messages {
			w.add(m, m.Timestamp)
		}
		b, err := w.finish(c, noProducer())
		require.NoError(t, err)
		return b
	}
	require.Zero(t, testing.AllocsPerRun(10, func() { build(CompressionNone) }))

	// A compressed batch outlives the builder's next.
	first := build(CompressionLZ4)
	before := slices.Clone(first)
	messages = benchRecords(900, 110)
	build(CompressionLZ4)
	build(CompressionNone)
	require.Equal(t, before, first)

	require.NotZero(t, cap(w.buf))
	w.reset()
	require.NotZero(t, cap(w.buf))
	w.add(&Message{Value: make([]byte, maxKeptBuffer)}, 0)
	_, err := w.finish(CompressionGzip, noProducer())
	require.NoError(t, err)
	w.reset()
	require.Zero(t, cap(w.buf))
	require.NotZero(t, cap(w.packed))
	build(CompressionNone)
}

func TestBatchCompressed(t *testing.T) {
	messages := benchRecords(500, 100)
	messages[3].Headers = map[string]string{"a": "b"}
	messages[4].Key = []byte{}
	plain := buildBatch(t, CompressionNone, messages)
	eachCompression(t, func(t *testing.T, c Compression) {
		var w batchBuilder
		for _, m := range messages {
			w.add(m, m.Timestamp)
		}
		p := producerFields{1 << 40, 1 << 10, 1 << 20}
		built, err := w.finish(c, p)
		require.NoError(t, err)
		require.Less(t, len(built), len(plain)*3/4)
		require.Equal(t, len(plain), w.size())
		built.stamp(1000, 3, 4)
		b, rest, err := parseBatch(append(slices.Clone(built), "behind"...))
		require.NoError(t, err)
		require.Equal(t, "behind", string(rest))
		require.Equal(t, c, b.compression())
		require.Equal(t, p, b.producer())
		require.Equal(t, plain.count(), b.count())
		require.Equal(t, plain.lastOffsetDelta(), b.lastOffsetDelta())
		require.Equal(t, plain.firstTime(), b.firstTime())
		require.Equal(t, plain.maxTime(), b.maxTime())
		require.NoError(t, b.checkRecords(1))

		_, err = readBatch(b)
		require.ErrorIs(t, err, ErrMalformed)
		_, err = b.appendMessages(nil, "t", 0, 0)
		require.ErrorIs(t, err, ErrMalformed)

		got, err := b.plain(len(plain) - batchHeaderSize)
		require.NoError(t, err)
		require.Equal(t, c, b.compression(), "the batch is as it was")
		require.Equal(t, CompressionNone, got.compression())
		require.Equal(t, int64(1000), got.baseOffset())
		require.Equal(t, int32(3), got.epoch())
		require.Equal(t, p, got.producer())
		require.True(t, slices.Equal(plain[batchHeaderSize:], got[batchHeaderSize:]))
		read, err := readBatch(got)
		require.NoError(t, err)
		require.Len(t, read, len(messages))
		require.Equal(t, int64(1499), read[499].Offset)
		_, err = b.plain(len(plain) - batchHeaderSize - 1)
		require.ErrorIs(t, err, ErrMessageTooLarge)
	})
	same, err := plain.plain(0)
	require.NoError(t, err)
	require.Same(t, &plain[0], &same[0])
	_, err = new(batchBuilder).finishOne(9)
	require.ErrorIs(t, err, ErrUnsupported)
}

// finishOne finishes a batch of one message.
func (w *batchBuilder) finishOne(c Compression) (batch, error) {
	w.add(&Message{}, 0)
	return w.finish(c, noProducer())
}

// What does not shrink is stored as it is.
func TestBatchIncompressible(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	eachCompression(t, func(t *testing.T, c Compression) {
		for _, size := range []int{0, 1, 20, 1000, 200_000} {
			b := buildBatch(t, c, []*Message{{Value: randomBytes(r, size)}})
			require.Equal(t, CompressionNone, b.compression(), size)
			_, _, err := parseBatch(b)
			require.NoError(t, err)
		}
	})
}

func TestBatchProducer(t *testing.T) {
	for _, c := range []Compression{CompressionNone, CompressionLZ4} {
		b := buildBatch(t, c, benchRecords(100, 100))
		require.Equal(t, producerFields{-1, -1, -1}, b.producer())
		for _, p := range []producerFields{{0, 0, 0}, {math.MaxInt64, math.MaxInt16, math.MaxInt32}, {1, 2, 3}, noProducer()} {
			b.setProducer(p)
			parsed, _, err := parseBatch(b)
			require.NoError(t, err)
			require.Equal(t, p, parsed.producer())
			require.Equal(t, c, parsed.compression())
			require.Equal(t, int32(100), parsed.count())
		}
	}
}

// compressedAs returns a batch whose records are these bytes, compressed, and whose header
// says what it is told.
func compressedAs(t testing.TB, c Compression, count, lastDelta int32, records []byte) batch {
	packed, err := c.compress(nil, records)
	require.NoError(t, err)
	b := withRecords(count, lastDelta, packed)
	binary.BigEndian.PutUint16(b[batchAttributesAt:], uint16(c))
	return seal(b)
}

// What is inside does not have to be what the header says.
func TestBatchCompressedLies(t *testing.T) {
	records := plainly(&Message{}, &Message{})[batchHeaderSize:]
	eachCompression(t, func(t *testing.T, c Compression) {
		b, _, err := parseBatch(compressedAs(t, c, 1<<24, 1<<24, records))
		require.NoError(t, err)
		n := allocated(func() {
			_, err = b.plain(1 << 20)
			require.ErrorIs(t, err, ErrMalformed)
		})
		require.Less(t, n, uint64(1<<20))

		for name, b := range map[string]batch{
			"too few":   compressedAs(t, c, 3, 2, append(slices.Clone(records), 0, 0, 0, 0, 0, 0, 0, 0)),
			"too many":  compressedAs(t, c, 1, 2, records),
			"no offset": compressedAs(t, c, 2, 1, slices.Concat(records[:9], records[:9])),
			"not cut":   compressedAs(t, c, 2, 1, records[:17]),
		} {
			p, err := b.plain(1 << 20)
			if err == nil {
				_, err = p.appendMessages(nil, "t", 0, 0)
			}
			require.ErrorIs(t, err, ErrMalformed, name)
		}
		b = compressedAs(t, c, 2, 1, records)
		_, err = seal(b[:len(b)-1]).plain(1 << 20)
		require.ErrorIs(t, err, ErrMalformed)
	})
}

func TestAppendMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 100 {
		messages := make([]*Message, 1+r.IntN(300))
		for i := range messages {
			messages[i] = randomMessage(r)
		}
		b := appendBatch(nil, messages...)
		base := []int64{0, 95, 1<<40 - 3, math.MaxInt64 - 1000}[r.IntN(4)]
		b.stamp(base, 1, 1)
		want, err := readBatch(b)
		require.NoError(t, err)
		for _, m := range want {
			m.Topic, m.Partition = "orders", 12
			if m.ID == "" {
				m.ID = fmt.Sprintf("orders-12-%d", m.Offset)
			}
		}
		from := r.IntN(len(want)+2) - 1
		given := &Message{}
		got, err := b.appendMessages([]*Message{given}, "orders", 12, base+int64(from))
		require.NoError(t, err)
		require.Same(t, given, got[0])
		require.Equal(t, want[min(max(from, 0), len(want)):], got[1:])
		for _, m := range got[1:] {
			_, _ = append(m.Key, "garbage"...), append(m.Value, "garbage"...)
		}
		again, err := b.appendMessages(nil, "orders", 12, 0)
		require.NoError(t, err)
		require.Equal(t, want, again)
	}
	none, err := withRecords(0, 9).appendMessages(nil, "t", 0, 0)
	require.NoError(t, err)
	require.Empty(t, none)
	long := strings.Repeat("t", 1000) // No broker has such a topic.
	got, err := appendBatch(nil, &Message{}).appendMessages(nil, long, math.MinInt32, 0)
	require.NoError(t, err)
	require.Equal(t, long+"--2147483648-0", got[0].ID)
}

// How much is allocated for a batch of many messages, beside the slice that was given.
func TestAppendMessagesMemory(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(i int, m *Message)
		allocs float64 // of 1000 messages
		bytes  float64 // of each
	}{
		{"no ids", func(int, *Message) {}, 8 + 4, 128 + 24},
		{"ids", func(i int, m *Message) { m.ID = fmt.Sprint("id", 10000+i) }, 8 + 2, 128 + 16},
		{"headers", func(i int, m *Message) { m.Headers = map[string]string{"name": fmt.Sprint(i)} }, 8 + 4 + 8 + 2*1000, 600},
	} {
		messages := benchRecords(1000, 100)
		for i, m := range messages {
			tt.change(i, m)
		}
		b := buildBatch(t, CompressionNone, messages)
		room := make([]*Message, 0, 1000)
		decode := func() {
			_, err := b.appendMessages(room, "orders", 3, 0)
			require.NoError(t, err)
		}
		allocs := testing.AllocsPerRun(10, decode)
		size := float64(allocated(decode)) / 1000
		t.Logf("%s: %.0f allocations, %.0f bytes a message", tt.name, allocs, size)
		require.LessOrEqual(t, allocs, tt.allocs, tt.name)
		require.LessOrEqual(t, size, tt.bytes+10, tt.name)
	}
}

func TestCheckRecords(t *testing.T) {
	good := appendBatch(nil,
		&Message{ID: strings.Repeat("i", maxNameBytes), Key: []byte("12"), Value: []byte("345"), Headers: map[string]string{"6": "78"}, Timestamp: 5},
		&Message{Timestamp: 7}, &Message{Timestamp: 6},
	)
	require.NoError(t, good.checkRecords(8))
	require.ErrorIs(t, good.checkRecords(7), ErrMessageTooLarge)
	require.Zero(t, testing.AllocsPerRun(10, func() { _ = good.checkRecords(8) }))

	empty := plainly(&Message{}, &Message{}, &Message{})[batchHeaderSize:]
	for name, b := range map[string]batch{
		"none":              withRecords(0, 0),
		"a gap":             withRecords(2, 2, empty[:9], empty[18:]),
		"offsets behind it": withRecords(3, 3, empty),
		"one too few":       withRecords(2, 1, empty),
		"a later time":      func() batch { b := slices.Clone(good); b[batchMaxTimeAt+7]++; return seal(b) }(),
		"an earlier time":   func() batch { b := slices.Clone(good); b[batchMaxTimeAt+7]--; return seal(b) }(),
		"none, compressed":  compressedAs(t, CompressionZstd, 0, 0, empty),
		"gaps, compressed":  compressedAs(t, CompressionZstd, 2, 2, empty),
	} {
		require.ErrorIs(t, b.checkRecords(100), ErrMalformed, name)
	}
	long := appendBatch(nil, &Message{ID: strings.Repeat("i", maxNameBytes+1)})
	require.ErrorIs(t, long.checkRecords(100), ErrInvalidRequest)
	require.NoError(t, withRecords(3, 2, empty).checkRecords(0))
}

func TestBatchWeighAndSearch(t *testing.T) {
	messages := benchRecords(200, 100)
	for i, m := range messages {
		m.Timestamp = 1000 + int64(i/2*10)
	}
	messages[100].Timestamp = 5000
	for _, c := range append([]Compression{CompressionNone}, compressions...) {
		b := buildBatch(t, c, messages)
		b.stamp(70, 1, 1)
		for _, from := range []int64{0, 70, 71, 269, 270} {
			size, count := b.weigh(from, 1<<20)
			require.Equal(t, min(270-from, 200), int64(count))
			require.Equal(t, count*100, size)
		}
		for _, tt := range []struct{ at, start, want int64 }{
			{0, 0, 70},
			{1000, 70, 70},
			{1001, 70, 72},
			{1010, 73, 73},
			{1010, 74, 74},
			{4000, 0, 170},
			{5000, 0, 170},
			{4000, 171, -1},
			{5001, 0, -1},
			{0, 269, 269},
			{0, 270, -1},
		} {
			offset, ok, err := b.offsetAt(tt.at, tt.start)
			require.NoError(t, err)
			require.Equal(t, tt.want >= 0, ok, "%+v", tt)
			if ok {
				require.Equal(t, tt.want, offset, "%+v", tt)
			}
		}
		if c != CompressionNone {
			size, count := b.weigh(0, 100)
			require.Zero(t, size+count, "over the limit")
		}
	}
	b := compressedAs(t, CompressionGzip, 3, 2, make([]byte, maxSearched+1))
	_, _, err := b.offsetAt(0, 0)
	require.ErrorIs(t, err, ErrMessageTooLarge)
}
