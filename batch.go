package robust

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
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
//	33  attributes         uint16  bits 0-2 compression; 3-5 reserved; the rest 0
//	35  count              int32   records in the batch; 0 stands for records that are gone; the rest may then be zeros
//	39  last offset delta  int32   count-1 until a log is compacted
//	43  first time         int64   of the first record, Unix milliseconds
//	51  max time           int64   of all records
//	59  producer id        int64   -1 without
//	67  producer epoch     int16   -1 without
//	69  base sequence      int32   -1 without
//	73  records
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

	// minRecordSize is a record with nothing in it: one byte for each field.
	minRecordSize = 8
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

// producerFields are what a batch says of the idempotent producer that has made it; all of
// them are -1 without one.
type producerFields struct {
	id       int64
	epoch    int16
	sequence int32 // of the first record
}

func (b batch) producer() producerFields {
	return producerFields{
		id:       int64(binary.BigEndian.Uint64(b[batchProducerAt:])),
		epoch:    int16(binary.BigEndian.Uint16(b[batchProdEpochAt:])),
		sequence: int32(binary.BigEndian.Uint32(b[batchSequenceAt:])),
	}
}

// setProducer writes a producer's fields, and the checksum that covers them.
func (b batch) setProducer(p producerFields) {
	binary.BigEndian.PutUint64(b[batchProducerAt:], uint64(p.id))
	binary.BigEndian.PutUint16(b[batchProdEpochAt:], uint16(p.epoch))
	binary.BigEndian.PutUint32(b[batchSequenceAt:], uint32(p.sequence))
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
	case b.attributes() != 0:
		return nil, data, fmt.Errorf("%w: record batch has attributes %#x, which are not known", ErrMalformed, b.attributes())
	// Whoever makes room for the records may go by the count.
	case int64(b.count()) > (size-batchHeaderSize)/minRecordSize:
		return nil, data, fmt.Errorf("%w: record batch of %d bytes cannot hold %d records", ErrMalformed, size, b.count())
	case b.count() < 0 || b.lastOffsetDelta() < 0 || int64(b.count()) > int64(b.lastOffsetDelta())+1:
		return nil, data, fmt.Errorf("%w: record batch of %d records has last offset delta %d", ErrMalformed, b.count(), b.lastOffsetDelta())
	case b.baseOffset() < 0 || b.baseOffset() > math.MaxInt64-int64(b.lastOffsetDelta())-1:
		return nil, data, fmt.Errorf("%w: record batch has base offset %d", ErrMalformed, b.baseOffset())
	}
	return b, data[size:], nil
}

// appendBatch appends a batch of messages, uncompressed and unstamped but for a
// base offset of 0. There must be at least one message.
func appendBatch(dst []byte, messages ...*Message) batch {
	start := len(dst)
	size := batchHeaderSize
	for _, m := range messages {
		size += int(m.Size()) + 4*binary.MaxVarintLen64 + 2*binary.MaxVarintLen32*len(m.Headers)
	}
	dst = slices.Grow(dst, size)[:start+batchHeaderSize]
	clear(dst[start:])
	first, latest := messages[0].Timestamp, messages[0].Timestamp
	for i, m := range messages {
		latest = max(latest, m.Timestamp)
		dst = appendRecord(dst, int64(i), m.Timestamp-first, m)
	}
	batch(dst[start:]).setHeader(int32(len(messages)), int32(len(messages)-1), first, latest)
	return dst
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
	b.setHeader(0, int32(count-1), latest, latest)
	b.stamp(base, epoch, appended)
	return b
}

// setHeader writes the fields of a batch that has its bytes behind the header, for a base
// offset of 0 and without producer.
func (b batch) setHeader(count, lastDelta int32, first, latest int64) {
	binary.BigEndian.PutUint32(b[batchLengthAt:], uint32(len(b)-batchLengthEnd))
	b[batchMagicAt] = batchMagic
	binary.BigEndian.PutUint32(b[batchCountAt:], uint32(count))
	binary.BigEndian.PutUint32(b[batchLastDeltaAt:], uint32(lastDelta))
	binary.BigEndian.PutUint64(b[batchFirstTimeAt:], uint64(first))
	binary.BigEndian.PutUint64(b[batchMaxTimeAt:], uint64(latest))
	none := int64(-1)
	binary.BigEndian.PutUint64(b[batchProducerAt:], uint64(none))
	binary.BigEndian.PutUint16(b[batchProdEpochAt:], uint16(none))
	binary.BigEndian.PutUint32(b[batchSequenceAt:], uint32(none))
	binary.BigEndian.PutUint32(b[batchCRCAt:], crc32.Checksum(b[batchAttributesAt:], castagnoli))
	b.stamp(0, 0, 0)
}

func appendRecord(dst []byte, offsetDelta, timeDelta int64, m *Message) []byte {
	dst = binary.AppendUvarint(dst, uint64(recordSize(offsetDelta, timeDelta, m)))
	dst = append(dst, 0)
	dst = binary.AppendVarint(dst, offsetDelta)
	dst = binary.AppendVarint(dst, timeDelta)
	dst = appendCounted(dst, m.ID)
	dst = appendNullable(dst, m.Key)
	dst = appendNullable(dst, m.Value)
	dst = binary.AppendUvarint(dst, uint64(len(m.Headers)))
	for k, v := range m.Headers {
		dst = appendCounted(dst, k)
		dst = appendCounted(dst, v)
	}
	return dst
}

// recordSize is what a record's length field says.
func recordSize(offsetDelta, timeDelta int64, m *Message) int {
	n := 1 + varintSize(offsetDelta) + varintSize(timeDelta) +
		countedSize(len(m.ID)) + nullableSize(m.Key) + nullableSize(m.Value) + uvarintSize(uint64(len(m.Headers)))
	for k, v := range m.Headers {
		n += countedSize(len(k)) + countedSize(len(v))
	}
	return n
}

func appendCounted(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendNullable(dst, b []byte) []byte {
	if b == nil {
		return binary.AppendVarint(dst, -1)
	}
	dst = binary.AppendVarint(dst, int64(len(b)))
	return append(dst, b...)
}

func countedSize(n int) int { return uvarintSize(uint64(n)) + n }

func nullableSize(b []byte) int {
	if b == nil {
		return varintSize(-1)
	}
	return varintSize(int64(len(b))) + len(b)
}

func varintSize(v int64) int { return uvarintSize(uint64(v)<<1 ^ uint64(v>>63)) }

func uvarintSize(v uint64) int {
	n := 1
	for v >= 0x80 {
		v >>= 7
		n++
	}
	return n
}

// recordReader reads a batch's records in order. Keys and values alias the batch.
type recordReader struct {
	b         batch
	rest      []byte
	left      int32
	lastDelta int64 // offset delta of the record read last, -1 before the first
}

func (b batch) records() recordReader {
	return recordReader{b: b, rest: b[batchHeaderSize:], left: b.count(), lastDelta: -1}
}

// next reads one record into m, all but its Topic and Partition. It returns false
// behind the last one, and an error on records that are not as the header says.
func (r *recordReader) next(m *Message) (bool, error) {
	if r.left == 0 {
		if len(r.rest) > 0 && (r.b.count() > 0 || bytes.Trim(r.rest, "\x00") != nil) {
			return false, fmt.Errorf("%w: %d bytes behind the last record of a batch", ErrMalformed, len(r.rest))
		}
		return false, nil
	}
	r.left--
	n, w := binary.Uvarint(r.rest)
	if w <= 0 || n > uint64(len(r.rest)-w) {
		return false, fmt.Errorf("%w: record length", ErrMalformed)
	}
	f := fieldReader{b: r.rest[w : w+int(n)]}
	r.rest = r.rest[w+int(n):]
	attributes := f.byte()
	offsetDelta := f.varint()
	timeDelta := f.varint()
	m.ID = string(f.take(f.uvarint()))
	m.Key = f.nullable()
	m.Value = f.nullable()
	m.Headers = f.headers()
	if f.bad || len(f.b) > 0 || attributes != 0 || offsetDelta <= r.lastDelta || offsetDelta > int64(r.b.lastOffsetDelta()) {
		return false, fmt.Errorf("%w: record at offset %d or behind it", ErrMalformed, r.b.baseOffset()+r.lastDelta+1)
	}
	r.lastDelta = offsetDelta
	m.Offset = r.b.baseOffset() + offsetDelta
	m.Timestamp = r.b.firstTime() + timeDelta
	return true, nil
}

// fieldReader reads the fields of one record; bad is set, and stays, when they run
// over its end.
type fieldReader struct {
	b   []byte
	bad bool
}

func (f *fieldReader) byte() byte {
	if b := f.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (f *fieldReader) varint() int64 {
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fieldReader) uvarint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fieldReader) take(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	b := f.b[:n:n]
	f.b = f.b[n:]
	return b
}

func (f *fieldReader) nullable() []byte {
	n := f.varint()
	if n == -1 {
		return nil
	}
	return f.take(uint64(n)) // A length below -1 becomes one that is not there.
}

func (f *fieldReader) headers() map[string]string {
	n := f.uvarint()
	// Each header takes two bytes at least: a count beyond that is a lie, and
	// must not be counted to.
	if n > uint64(len(f.b))/2 {
		f.bad, f.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	// Nor does a count size the map: all of its headers may have the same key.
	h := make(map[string]string, min(n, 8))
	for range n {
		k := f.take(f.uvarint())
		h[string(k)] = string(f.take(f.uvarint()))
	}
	return h
}

// cutBatch returns the first batch of data that parseBatch has let through before.
func cutBatch(data []byte) batch {
	n := batchLengthEnd + int(int32(binary.BigEndian.Uint32(data[batchLengthAt:])))
	return batch(data[:n:n])
}
