package robust

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// seal writes the lengths and checksums of a batch whose fields or records were
// changed.
func seal(b batch) batch {
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchLengthEnd))
	return sealCRC(b)
}

func sealCRC(b batch) batch {
	binary.BigEndian.PutUint32(b[batchHeadCRCAt:], crc32.Checksum(b[:batchHeadCRCAt], castagnoli))
	binary.BigEndian.PutUint32(b[batchCRCAt:], crc32.Checksum(b[batchAttributesAt:], castagnoli))
	return b
}

// withRecords returns a valid header with count and last offset delta as given, in
// front of records.
func withRecords(count, lastDelta int32, records ...[]byte) batch {
	b := slices.Clone(appendBatch(nil, &Message{})[:batchHeaderSize])
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(count))
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(lastDelta))
	return seal(append(b, slices.Concat(records...)...))
}

// readBatch returns the records of b, each with its Topic and Partition unset.
func readBatch(b batch) ([]*Message, error) {
	var all []*Message
	for r := b.records(); ; {
		m := new(Message)
		if ok, err := r.next(m); err != nil || !ok {
			return all, err
		}
		all = append(all, m)
	}
}

// randomMessage returns a message as it comes out of a batch.
func randomMessage(r *rand.Rand) *Message {
	blob := func() []byte {
		switch r.IntN(5) {
		case 0:
			return nil
		case 1:
			return []byte{}
		case 2:
			return []byte(strings.Repeat("x", 63+r.IntN(3))) // lengths around the steps of a varint
		case 3:
			return []byte(strings.Repeat("y", 8190+r.IntN(4)))
		}
		b := make([]byte, r.IntN(100))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	times := []int64{0, 1, -1, 1700000000123, math.MaxInt64, math.MinInt64, int64(r.Uint64()), 1700000000000 + r.Int64N(1000)}
	m := &Message{Key: blob(), Value: blob(), Timestamp: times[r.IntN(len(times))]}
	if r.IntN(3) == 0 {
		m.ID = string(blob())
	}
	for range r.IntN(5) {
		if m.Headers == nil {
			m.Headers = make(map[string]string)
		}
		m.Headers[string(blob())] = string(blob())
	}
	return m
}

func TestBatchRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	for range 500 {
		messages := make([]*Message, 1+r.IntN(20))
		latest := int64(math.MinInt64)
		for i := range messages {
			messages[i] = randomMessage(r)
			messages[i].Offset = int64(i)
			latest = max(latest, messages[i].Timestamp)
		}
		encoded := appendBatch([]byte("before"), messages...)
		require.Equal(t, "before", string(encoded[:6]))
		encoded = append(encoded, "behind"...)

		b, rest, err := parseBatch(encoded[6:])
		require.NoError(t, err)
		require.Equal(t, "behind", string(rest))
		require.Equal(t, len(messages), int(b.count()))
		require.Equal(t, len(messages)-1, int(b.lastOffsetDelta()))
		require.Equal(t, messages[0].Timestamp, b.firstTime())
		require.Equal(t, latest, b.maxTime())
		require.Zero(t, b.baseOffset())
		require.Equal(t, int64(len(messages)), b.nextOffset())
		require.Zero(t, b.attributes())
		got, err := readBatch(b)
		require.NoError(t, err)
		require.Equal(t, messages, got)
	}
}

// The layout byte for byte, since logs and other implementations depend on it.
func TestBatchGolden(t *testing.T) {
	b := appendBatch(nil,
		&Message{ID: "id", Key: []byte("key"), Value: []byte("value"), Headers: map[string]string{"h": "v"}, Timestamp: 1700000000123},
		&Message{Value: []byte{}, Timestamp: 1700000000023},
	)
	b.stamp(1048576, 7, 1700000000456)
	want := strings.Join([]string{
		"0000000000100000", // base offset
		"0000005c",         // length
		"01",               // magic
		"00000007",         // partition epoch
		"0000018bcfe569c8", // append time
		"ba1fd50b",         // head crc
		"a2339fdc",         // crc
		"0000",             // attributes
		"00000002",         // count
		"00000001",         // last offset delta
		"0000018bcfe5687b", // first time
		"0000018bcfe5687b", // max time
		"ffffffffffffffff", // producer id
		"ffff",             // producer epoch
		"ffffffff",         // base sequence
		"15" + "00" + "00" + "00" + "02" + "6964" + "06" + "6b6579" + "0a" + "76616c7565" + "01" + "01" + "68" + "01" + "76",
		"08" + "00" + "02" + "c701" + "00" + "01" + "00" + "00",
	}, "")
	require.Equal(t, want, hex.EncodeToString(b))
}

func TestBatchStamp(t *testing.T) {
	b := appendBatch(nil, &Message{Value: []byte("a")}, &Message{Value: []byte("b")})
	body := slices.Clone(b[batchCRCAt:])
	for _, offset := range []int64{0, 1, 1 << 40, math.MaxInt64 - 2} {
		b.stamp(offset, int32(offset), -offset)
		require.Equal(t, body, b[batchCRCAt:], "the body and its checksum stay")
		got, rest, err := parseBatch(b)
		require.NoError(t, err)
		require.Empty(t, rest)
		require.Equal(t, offset, got.baseOffset())
		require.Equal(t, offset+2, got.nextOffset())
		require.Equal(t, int32(offset), got.epoch())
		require.Equal(t, -offset, got.appendTime())
		messages, err := readBatch(got)
		require.NoError(t, err)
		require.Equal(t, offset+1, messages[1].Offset)
	}
	for _, offset := range []int64{-1, math.MinInt64, math.MaxInt64, math.MaxInt64 - 1} {
		b.stamp(offset, 0, 0)
		_, _, err := parseBatch(b)
		require.ErrorIs(t, err, ErrMalformed, offset)
	}
}

func TestBatchDamage(t *testing.T) {
	b := appendBatch(nil,
		&Message{ID: "id", Key: []byte("key"), Value: []byte("value"), Headers: map[string]string{"h": "v"}, Timestamp: 1700000000123},
		&Message{Timestamp: 1700000000124},
	)
	b.stamp(1048576, 7, 1700000000456)
	data := slices.Concat(b, b)

	// Every change of one byte, in each of its bits and in all.
	for i := range b {
		for _, flip := range []byte{1, 2, 4, 8, 16, 32, 64, 128, 255} {
			damaged := slices.Clone(data)
			damaged[i] ^= flip
			_, rest, err := parseBatch(damaged)
			require.ErrorIs(t, err, ErrMalformed, "byte %d ^ %d", i, flip)
			require.Len(t, rest, len(damaged))
		}
	}
	// Every truncation.
	for n := range b {
		_, _, err := parseBatch(b[:n])
		require.ErrorIs(t, err, ErrMalformed, n)
	}
	// A piece missing in the middle.
	for n := range len(b) - 1 {
		_, _, err := parseBatch(slices.Concat(b[:n], b[n+1:], b))
		require.ErrorIs(t, err, ErrMalformed, n)
	}
	first, rest, err := parseBatch(data)
	require.NoError(t, err)
	require.Equal(t, b, first)
	require.Equal(t, []byte(b), rest)
	require.Equal(t, len(first), cap(first), "appending to one batch does not write into the next")
}

func TestBatchLiesInHeader(t *testing.T) {
	put32 := func(at int, v int32) func(batch) {
		return func(b batch) { binary.BigEndian.PutUint32(b[at:], uint32(v)) }
	}
	counts := func(count, lastDelta int32) func(batch) {
		return func(b batch) {
			put32(batchCountAt, count)(b)
			put32(batchLastDeltaAt, lastDelta)(b)
		}
	}
	tests := map[string]func(batch){
		"length 0":                     put32(batchLengthAt, 0),
		"length of less than a header": put32(batchLengthAt, batchHeaderSize-batchLengthEnd-1),
		"length of one byte more":      put32(batchLengthAt, batchHeaderSize-batchLengthEnd+17),
		"length -1":                    put32(batchLengthAt, -1),
		"least length":                 put32(batchLengthAt, math.MinInt32),
		"greatest length":              put32(batchLengthAt, math.MaxInt32),
		"magic 0":                      func(b batch) { b[batchMagicAt] = 0 },
		"magic 2":                      func(b batch) { b[batchMagicAt] = 2 },
		"unknown compression":          func(b batch) { b[batchAttributesAt+1] = 5 },
		"no compression at all":        func(b batch) { b[batchAttributesAt+1] = 7 },
		"reserved attribute":           func(b batch) { b[batchAttributesAt+1] = 8 },
		"unknown attribute":            func(b batch) { b[batchAttributesAt] = 0x80 },
		"nothing, compressed":          func(b batch) { counts(0, 1)(b); b[batchAttributesAt+1] = 4 },
		"count -1, compressed":         func(b batch) { counts(-1, 1)(b); b[batchAttributesAt+1] = 4 },
		"too much, compressed":         func(b batch) { counts(1<<24+1, 1<<24)(b); b[batchAttributesAt+1] = 4 },
		"more than offsets, likewise":  func(b batch) { counts(3, 1)(b); b[batchAttributesAt+1] = 4 },
		"count -1":                     counts(-1, 0),
		"greatest count":               counts(math.MaxInt32, math.MaxInt32),
		"more than there is room for":  counts(3, 3),
		"more than offsets":            counts(2, 0),
		"last delta -1":                counts(0, -1),
		"least last delta":             counts(2, math.MinInt32),
	}
	for name, lie := range tests {
		t.Run(name, func(t *testing.T) {
			b := appendBatch(nil, &Message{}, &Message{})
			require.Len(t, b, batchHeaderSize+16, "two records with nothing in them")
			lie(b)
			sealCRC(b)
			n := allocated(func() {
				_, _, err := parseBatch(b)
				require.ErrorIs(t, err, ErrMalformed)
			})
			require.Less(t, n, uint64(64<<10))
		})
	}
}

// record returns a record with its length in front.
func record(fields ...[]byte) []byte {
	body := slices.Concat(fields...)
	return append(binary.AppendUvarint(nil, uint64(len(body))), body...)
}

func varint(v int64) []byte { return binary.AppendVarint(nil, v) }

func TestRecordReader(t *testing.T) {
	var (
		attributes = []byte{0}
		none       = varint(-1)
		noID       = []byte{0}
		noHeaders  = []byte{0}
		huge       = binary.AppendUvarint(nil, math.MaxUint64)
		endless    = []byte(strings.Repeat("\xff", 20))
	)
	empty := func(delta int64) []byte {
		return record(attributes, varint(delta), varint(0), noID, none, none, noHeaders)
	}
	require.Len(t, empty(0), minRecordSize)

	good := map[string]struct {
		batch   batch
		offsets []int64
	}{
		"none, as compaction may leave":     {withRecords(0, 9), nil},
		"gaps":                              {withRecords(2, 9, empty(3), empty(7)), []int64{3, 7}},
		"last where the header says":        {withRecords(2, 9, empty(0), empty(9)), []int64{0, 9}},
		"one header twice":                  {withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, []byte{2, 1, 'a', 0, 1, 'a', 0})), []int64{0}},
		"a varint longer than it has to be": {withRecords(1, 0, record(attributes, []byte{0x80, 0}, varint(0), noID, none, none, noHeaders)), []int64{0}},
	}
	for name, tt := range good {
		t.Run(name, func(t *testing.T) {
			b, _, err := parseBatch(tt.batch)
			require.NoError(t, err)
			messages, err := readBatch(b)
			require.NoError(t, err)
			var offsets []int64
			for _, m := range messages {
				offsets = append(offsets, m.Offset)
			}
			require.Equal(t, tt.offsets, offsets)
		})
	}

	pad := make([]byte, 200) // so that lengths that are a little too large stay inside the batch
	bad := map[string]batch{
		"count without records":       withRecords(1, 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}),
		"records without count":       withRecords(0, 0, empty(0)),
		"bytes behind the last":       withRecords(1, 0, empty(0), []byte{0}),
		"delta goes back":             withRecords(2, 9, empty(3), empty(2)),
		"delta repeats":               withRecords(2, 9, empty(3), empty(3)),
		"delta below the base":        withRecords(1, 9, empty(-1)),
		"delta above the last":        withRecords(1, 9, empty(10)),
		"huge delta":                  withRecords(1, 9, record(attributes, varint(math.MaxInt64), varint(0), noID, none, none, noHeaders)),
		"attributes":                  withRecords(1, 0, record([]byte{1}, varint(0), varint(0), noID, none, none, noHeaders)),
		"nothing in it":               withRecords(1, 0, record(), pad),
		"cut in its attributes":       withRecords(1, 0, record(attributes), pad),
		"cut in its value":            withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, varint(3), []byte("ab")), pad),
		"cut in its headers":          withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, []byte{1, 1, 'a', 1}), pad),
		"more than its fields":        withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, noHeaders, []byte{0})),
		"length past the end":         withRecords(1, 0, binary.AppendUvarint(nil, 201), pad),
		"huge length":                 withRecords(1, 0, huge, pad),
		"endless length":              withRecords(1, 0, endless),
		"endless delta":               withRecords(1, 0, record(attributes, endless, pad)),
		"id past the end":             withRecords(1, 0, record(attributes, varint(0), varint(0), huge, pad)),
		"endless id":                  withRecords(1, 0, record(attributes, varint(0), varint(0), endless, pad)),
		"key of -2":                   withRecords(1, 0, record(attributes, varint(0), varint(0), noID, varint(-2), none, noHeaders)),
		"key of the least length":     withRecords(1, 0, record(attributes, varint(0), varint(0), noID, varint(math.MinInt64), none, noHeaders)),
		"value of the greatest":       withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, varint(math.MaxInt64), pad)),
		"huge count of headers":       withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, huge, pad)),
		"more headers than fit":       withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, binary.AppendUvarint(nil, 101), pad)),
		"header with a value too big": withRecords(1, 0, record(attributes, varint(0), varint(0), noID, none, none, []byte{1, 0}, huge, pad)),
	}
	for name, data := range bad {
		t.Run(name, func(t *testing.T) {
			b, _, err := parseBatch(data)
			require.NoError(t, err)
			n := allocated(func() {
				_, err := readBatch(b)
				require.ErrorIs(t, err, ErrMalformed)
				given := make([]*Message, 1, 9)
				got, err := b.appendMessages(given, "t", 0, 0)
				require.ErrorIs(t, err, ErrMalformed)
				require.Equal(t, given, got)
				require.Equal(t, make([]*Message, 9), got[:9], "nothing is left behind")
				require.ErrorIs(t, b.checkRecords(1<<30), ErrMalformed)
			})
			require.Less(t, n, uint64(64<<10))
		})
	}
}

// A count of headers, all with the same key, used to size a map of as many. Their text is
// copied, no more.
func TestRecordReaderSameHeader(t *testing.T) {
	const n = 1 << 20
	headers := append(binary.AppendUvarint(nil, n), make([]byte, 2*n)...)
	b, _, err := parseBatch(withRecords(1, 0, record([]byte{0}, varint(0), varint(0), []byte{0}, varint(-1), varint(-1), headers)))
	require.NoError(t, err)
	var messages []*Message
	require.Less(t, allocated(func() { messages, err = readBatch(b) }), uint64(len(b)+64<<10))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"": ""}, messages[0].Headers)
	require.Less(t, allocated(func() { messages, err = b.appendMessages(nil, "t", 0, 0) }), uint64(len(b)+64<<10))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"": ""}, messages[0].Headers)
}

// A producer's clock may say anything; the deltas wrap around, and back.
func TestBatchTimes(t *testing.T) {
	times := []int64{math.MinInt64, -1, 0, 1, 1700000000123, math.MaxInt64}
	for _, a := range times {
		for _, b := range times {
			t.Run(fmt.Sprint(a, " ", b), func(t *testing.T) {
				encoded, _, err := parseBatch(appendBatch(nil, &Message{Timestamp: a}, &Message{Timestamp: b}))
				require.NoError(t, err)
				require.Equal(t, a, encoded.firstTime())
				require.Equal(t, max(a, b), encoded.maxTime())
				got, err := readBatch(encoded)
				require.NoError(t, err)
				require.Equal(t, a, got[0].Timestamp)
				require.Equal(t, b, got[1].Timestamp)
			})
		}
	}
}

// Keys and values are parts of the batch, and appending to one leaves the batch as
// it is.
func TestRecordsAliasBatch(t *testing.T) {
	b := appendBatch(nil, &Message{Key: []byte("key"), Value: []byte("value")}, &Message{Value: []byte{}})
	before := slices.Clone(b)
	messages, err := readBatch(b)
	require.NoError(t, err)
	for _, m := range messages {
		_ = append(m.Key, "garbage"...)
		_ = append(m.Value, "garbage"...)
	}
	require.Equal(t, before, b)
}
