package robust

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"
)

// A record batch is how records are stored, and the unit that a broker checks,
// stamps and serves without looking inside. Big-endian:
//
//	 0  base offset        int64   the broker's
//	 8  length             int32   of all that follows it
//	12  magic              int8    1
//	13  partition epoch    int32   the broker's
//	17  append time        int64   the broker's, Unix milliseconds
//	25  head crc           uint32  CRC-32C of the bytes before it
//	29  crc                uint32  CRC-32C of all that follows it
//	33  attributes         uint16  bits 0-2 compression, as [Compression] numbers it; 3-5 reserved; the rest 0
//	35  count              int32   records in the batch; 0 stands for records that are gone; the rest may then be zeros
//	39  last offset delta  int32   count-1 until a log is compacted
//	43  first time         int64   of the first record, Unix milliseconds
//	51  max time           int64   of all records
//	59  producer id        int64   -1 without
//	67  producer epoch     int16   -1 without
//	69  base sequence      int32   of the first record; -1 without
//	73  records                    compressed all together, see compress.go
//
// The broker's fields lie outside the body's CRC, so that stamping a batch does
// not cost a pass over it; the head has a CRC of its own, so that a flipped bit in
// an offset does not go unnoticed. A record is
//
//	length        uvarint of all that follows it
//	attributes    1 byte, 0
//	offset delta  varint (zigzag, as all deltas and nullable lengths)
//	time delta    varint, to the first time
//	id            uvarint length, bytes
//	key           varint length, -1 for null, bytes
//	value         varint length, -1 for null, bytes
//	headers       uvarint count; each: uvarint length, bytes, twice
const (
	batchHeaderSize = 73
	batchMagic      = 1

	batchLengthAt     = 8
	batchMagicAt      = 12
	batchEpochAt      = 13
	batchAppendTimeAt = 17
	batchHeadCRCAt    = 25
	batchCRCAt        = 29
	batchAttributesAt = 33
	batchCountAt      = 35
	batchLastDeltaAt  = 39
	batchFirstTimeAt  = 43
	batchMaxTimeAt    = 51
	batchProducerAt   = 59
	batchProdEpochAt  = 67
	batchSequenceAt   = 69

	// batchLengthEnd is where what the length counts begins.
	batchLengthEnd = batchLengthAt + 4

	// compressionBits are those of the attributes that name the compression.
	compressionBits = 7

	// minRecordSize is a record with nothing in it: one byte for each field.
	minRecordSize = 8
	// maxCompressedRecords is how many records a compressed batch may say that it holds,
	// whose size says nothing about that.
	maxCompressedRecords = 1 << 24
	// maxKeptBuffer is how large a buffer a batchBuilder keeps.
	maxKeptBuffer = 2 << 20
)

// castagnoli is CRC-32C, for which processors have an instruction.
var castagnoli = crc32.MakeTable(crc32.Castagnoli) //nolint:gochecknoglobals // a table, never written

// batch is one encoded record batch, header and records. Its methods expect what
// parseBatch has let through.
type batch []byte

func (b batch) baseOffset() int64      { return int64(binary.BigEndian.Uint64(b)) }
func (b batch) epoch() int32           { return int32(binary.BigEndian.Uint32(b[batchEpochAt:])) }
func (b batch) appendTime() int64      { return int64(binary.BigEndian.Uint64(b[batchAppendTimeAt:])) }
func (b batch) attributes() uint16     { return binary.BigEndian.Uint16(b[batchAttributesAt:]) }
func (b batch) count() int32           { return int32(binary.BigEndian.Uint32(b[batchCountAt:])) }
func (b batch) lastOffsetDelta() int32 { return int32(binary.BigEndian.Uint32(b[batchLastDeltaAt:])) }

func (b batch) firstTime() int64 { return int64(binary.BigEndian.Uint64(b[batchFirstTimeAt:])) }
func (b batch) maxTime() int64   { return int64(binary.BigEndian.Uint64(b[batchMaxTimeAt:])) }

func (b batch) compression() Compression { return Compression(b.attributes() & compressionBits) }

// producerFields tell whose a batch is, and which of his, so that one that comes twice is
// recognised.
type producerFields struct {
	id       int64
	epoch    int16
	sequence int32 // of the first record
}

// noProducer is what a batch has without.
func noProducer() producerFields { return producerFields{-1, -1, -1} }

func (b batch) producer() producerFields {
	return producerFields{
		id:       int64(binary.BigEndian.Uint64(b[batchProducerAt:])),
		epoch:    int16(binary.BigEndian.Uint16(b[batchProdEpochAt:])),
		sequence: int32(binary.BigEndian.Uint32(b[batchSequenceAt:])),
	}
}

// setProducer changes the producer's fields, and the checksum with them.
func (b batch) setProducer(p producerFields) {
	b.putProducer(p)
	b.sum()
}

func (b batch) putProducer(p producerFields) {
	binary.BigEndian.PutUint64(b[batchProducerAt:], uint64(p.id))
	binary.BigEndian.PutUint16(b[batchProdEpochAt:], uint16(p.epoch))
	binary.BigEndian.PutUint32(b[batchSequenceAt:], uint32(p.sequence))
}

// sum writes the checksum of the body.
func (b batch) sum() {
	binary.BigEndian.PutUint32(b[batchCRCAt:], crc32.Checksum(b[batchAttributesAt:], castagnoli))
}

// nextOffset is the offset behind the batch's last record.
func (b batch) nextOffset() int64 { return b.baseOffset() + int64(b.lastOffsetDelta()) + 1 }

// stamp writes the broker's fields.
func (b batch) stamp(baseOffset int64, epoch int32, appendTime int64) {
	binary.BigEndian.PutUint64(b, uint64(baseOffset))
	binary.BigEndian.PutUint32(b[batchEpochAt:], uint32(epoch))
	binary.BigEndian.PutUint64(b[batchAppendTimeAt:], uint64(appendTime))
	binary.BigEndian.PutUint32(b[batchHeadCRCAt:], crc32.Checksum(b[:batchHeadCRCAt], castagnoli))
}

// parseBatch cuts the first batch off data, after checking everything but the
// records: that the length fits, that both checksums are right, and that the
// counts agree with each other. rest is what follows it.
func parseBatch(data []byte) (b batch, rest []byte, err error) {
	if len(data) < batchHeaderSize {
		return nil, data, fmt.Errorf("%w: record batch of %d bytes, want at least %d", ErrMalformed, len(data), batchHeaderSize)
	}
	length := int64(int32(binary.BigEndian.Uint32(data[batchLengthAt:])))
	size := length + batchLengthEnd
	if size < batchHeaderSize || size > int64(len(data)) {
		return nil, data, fmt.Errorf("%w: record batch says %d bytes, there are %d", ErrMalformed, size, len(data))
	}
	b = data[:size:size]
	if b[batchMagicAt] != batchMagic {
		return nil, data, fmt.Errorf("%w: record batch has magic %d, want %d", ErrMalformed, b[batchMagicAt], batchMagic)
	}
	if crc32.Checksum(b[:batchHeadCRCAt], castagnoli) != binary.BigEndian.Uint32(b[batchHeadCRCAt:]) {
		return nil, data, fmt.Errorf("%w: record batch: checksum of its head is wrong", ErrMalformed)
	}
	if crc32.Checksum(b[batchAttributesAt:], castagnoli) != binary.BigEndian.Uint32(b[batchCRCAt:]) {
		return nil, data, fmt.Errorf("%w: record batch: checksum is wrong", ErrMalformed)
	}
	switch {
	case b.attributes()&^compressionBits != 0 || b.compression() > CompressionZstd:
		return nil, data, fmt.Errorf("%w: record batch has attributes %#x, which are not known", ErrMalformed, b.attributes())
	case !b.countFits():
		return nil, data, fmt.Errorf("%w: record batch of %d bytes cannot hold %d records", ErrMalformed, size, b.count())
	case b.count() < 0 || b.lastOffsetDelta() < 0 || int64(b.count()) > int64(b.lastOffsetDelta())+1:
		return nil, data, fmt.Errorf("%w: record batch of %d records has last offset delta %d", ErrMalformed, b.count(), b.lastOffsetDelta())
	case b.baseOffset() < 0 || b.baseOffset() > math.MaxInt64-int64(b.lastOffsetDelta())-1:
		return nil, data, fmt.Errorf("%w: record batch has base offset %d", ErrMalformed, b.baseOffset())
	}
	return b, data[size:], nil
}

// countFits tells whether the batch can hold as many records as it says: whoever makes room
// for the records may go by the count. What stands for records that are gone is not
// compressed.
func (b batch) countFits() bool {
	if b.compression() == CompressionNone {
		return int(b.count()) <= (len(b)-batchHeaderSize)/minRecordSize
	}
	return 0 < b.count() && b.count() <= maxCompressedRecords
}

// cutBatch returns the first batch of data that parseBatch has let through before.
func cutBatch(data []byte) batch {
	n := batchLengthEnd + int(int32(binary.BigEndian.Uint32(data[batchLengthAt:])))
	return batch(data[:n:n])
}

// appendBatch appends a batch of messages, uncompressed and unstamped but for a
// base offset of 0. There must be at least one message.
func appendBatch(dst []byte, messages ...*Message) batch {
	w := batchBuilder{buf: dst, start: len(dst)}
	size := batchHeaderSize
	for _, m := range messages {
		size += int(m.Size()) + recordOverhead + len(m.ID) + 2*binary.MaxVarintLen32*len(m.Headers)
	}
	w.buf = slices.Grow(w.buf, size)
	for _, m := range messages {
		w.add(m, m.Timestamp)
	}
	w.putHeader(w.buf[w.start:], CompressionNone, noProducer())
	return w.buf
}

// emptyBatch returns a batch of size bytes that stands for count offsets whose records are
// gone. Its times and epoch are those of the batch before it, nil if there is none.
func emptyBatch(base, count int64, size int, before batch) batch {
	b := make(batch, size)
	var epoch int32
	var appended, latest int64
	if before != nil {
		epoch, appended, latest = before.epoch(), before.appendTime(), before.maxTime()
	}
	b.setHeader(CompressionNone, 0, int32(count-1), latest, latest, noProducer())
	b.stamp(base, epoch, appended)
	return b
}

// setHeader writes the fields of a batch that has its bytes behind the header, for a base
// offset of 0.
func (b batch) setHeader(c Compression, count, lastDelta int32, first, latest int64, p producerFields) {
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchLengthEnd))
	b[batchMagicAt] = batchMagic
	binary.BigEndian.PutUint16(b[batchAttributesAt:], uint16(c))
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(count))
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(lastDelta))
	binary.BigEndian.PutUint64(b[batchFirstTimeAt:], uint64(first))
	binary.BigEndian.PutUint64(b[batchMaxTimeAt:], uint64(latest))
	b.putProducer(p)
	b.sum()
	b.stamp(0, 0, 0)
}

// batchBuilder makes a batch, record by record, in a buffer that it uses again. The zero
// value is ready for use. It must not be used concurrently.
type batchBuilder struct {
	buf    []byte // from start on room for the header, then the records
	start  int
	n      int32
	first  int64 // time of the first record
	latest int64 // time of the latest
	packed []byte
}

// count returns how many records have been added.
func (w *batchBuilder) count() int { return int(w.n) }

// size returns how long the batch is, if it is not compressed.
func (w *batchBuilder) size() int { return max(len(w.buf)-w.start, batchHeaderSize) }

// room is the memory that it has.
func (w *batchBuilder) room() int { return cap(w.buf) + cap(w.packed) }

// reset forgets the records. It keeps the buffers, unless they are large.
func (w *batchBuilder) reset() {
	w.buf, w.start, w.n = w.buf[:0], 0, 0
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	if cap(w.packed) > maxKeptBuffer {
		w.packed = nil
	}
}

// add appends a record. Of m it takes ID, key, value and headers, which it copies.
func (w *batchBuilder) add(m *Message, timestamp int64) {
	if w.n == 0 {
		w.buf = append(w.buf[:w.start], make([]byte, batchHeaderSize)...)
		w.first, w.latest = timestamp, timestamp
	}
	w.latest = max(w.latest, timestamp)
	w.buf = appendRecord(w.buf, int64(w.n), timestamp-w.first, m)
	w.n++
}

// finish returns the batch of the records that were added, at least one. It is compressed
// only if that makes it shorter. If it is not it is the builder's buffer: good until reset
// or add is called. The builder keeps the records: with other fields, or another
// compression, the same ones make another batch.
func (w *batchBuilder) finish(c Compression, p producerFields) (batch, error) {
	b := batch(w.buf[w.start:len(w.buf):len(w.buf)])
	if c != CompressionNone {
		packed, err := c.compress(w.packed[:0], b[batchHeaderSize:])
		if err != nil {
			return nil, err
		}
		w.packed = packed
		if batchHeaderSize+len(packed) < len(b) {
			b = slices.Concat(b[:batchHeaderSize], packed)
		} else {
			c = CompressionNone
		}
	}
	w.putHeader(b, c, p)
	return b, nil
}

func (w *batchBuilder) putHeader(b batch, c Compression, p producerFields) {
	b.setHeader(c, w.n, w.n-1, w.first, w.latest, p)
}

// recordOverhead is at least what a record takes beside its ID, key, value and headers.
const recordOverhead = 1 + 7*binary.MaxVarintLen64

// appendRecord appends a record, with one look at each of the message's fields.
func appendRecord(dst []byte, offsetDelta, timeDelta int64, m *Message) []byte {
	// What the length says, but for names and values of headers.
	size := 1 + varintSize(offsetDelta) + varintSize(timeDelta) +
		countedSize(len(m.ID)) + nullableSize(m.Key) + nullableSize(m.Value) + uvarintSize(uint64(len(m.Headers)))
	start := len(dst)
	dst = slices.Grow(dst, binary.MaxVarintLen64+size)
	b := dst[start : start+binary.MaxVarintLen64+size]
	n := putUvarint(b, uint64(size))
	behind := n
	b[n] = 0
	n++
	n += putVarint(b[n:], offsetDelta)
	n += putVarint(b[n:], timeDelta)
	n += putUvarint(b[n:], uint64(len(m.ID)))
	n += copy(b[n:], m.ID)
	n += putNullable(b[n:], m.Key)
	n += putNullable(b[n:], m.Value)
	n += putUvarint(b[n:], uint64(len(m.Headers)))
	dst = dst[:start+n]
	if len(m.Headers) == 0 {
		return dst
	}
	for k, v := range m.Headers {
		dst = appendCounted(dst, k)
		dst = appendCounted(dst, v)
	}
	return fixLength(dst, start, behind)
}

// fixLength writes the length of the record at start anew, whose first field stands behind
// a length of n bytes.
func fixLength(dst []byte, start, n int) []byte {
	size := uint64(len(dst) - start - n)
	if want := uvarintSize(size); want > n {
		var room [binary.MaxVarintLen64]byte
		dst = slices.Insert(dst, start+n, room[:want-n]...)
	}
	putUvarint(dst[start:], size)
	return dst
}

func putUvarint(b []byte, v uint64) int {
	if v < 0x80 {
		b[0] = byte(v)
		return 1
	}
	return binary.PutUvarint(b, v)
}

func putVarint(b []byte, v int64) int { return putUvarint(b, uint64(v)<<1^uint64(v>>63)) }

func putNullable(b, field []byte) int {
	if field == nil {
		b[0] = 1 // -1
		return 1
	}
	n := putVarint(b, int64(len(field)))
	return n + copy(b[n:], field)
}

func appendCounted(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func countedSize(n int) int { return uvarintSize(uint64(n)) + n }

func nullableSize(b []byte) int {
	if b == nil {
		return 1
	}
	return uvarintSize(uint64(len(b))<<1) + len(b)
}

func varintSize(v int64) int { return uvarintSize(uint64(v)<<1 ^ uint64(v>>63)) }

func uvarintSize(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
