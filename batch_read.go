package robust

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	// messageSlab is how many messages of a batch share their memory, and textSlab how
	// many bytes of text do: an application that keeps one message keeps as much, and
	// the batch. A slab of messages is 16 KiB.
	messageSlab = 128
	textSlab    = 4 << 10

	// maxSearched is how much a batch may hold, decompressed, in which the log looks for
	// a time.
	maxSearched = 64 << 20
)

// plain returns a batch whose records can be read: b itself, unless it is compressed; else
// one in memory of its own, with the same fields. That one is for reading: it has no
// checksums. It fails with [ErrMessageTooLarge] if the records take more than limit bytes.
func (b batch) plain(limit int) (batch, error) {
	c := b.compression()
	if c == CompressionNone {
		return b, nil
	}
	out, err := c.decompress(slices.Clone(b[:batchHeaderSize]), b[batchHeaderSize:], min(limit, math.MaxInt32-batchHeaderSize))
	if err != nil {
		return nil, fmt.Errorf("batch at offset %d: %w", b.baseOffset(), err)
	}
	p := batch(slices.Clip(out))
	binary.BigEndian.PutUint32(p[batchLengthAt:], uint32(len(p)-batchLengthEnd))
	binary.BigEndian.PutUint16(p[batchAttributesAt:], p.attributes()&^compressionBits)
	if !p.countFits() {
		return nil, fmt.Errorf("%w: %d bytes, decompressed, cannot hold %d records", ErrMalformed, len(p)-batchHeaderSize, p.count())
	}
	return p, nil
}

// recordFields says where the fields of one record are.
type recordFields struct {
	b              []byte // the record, behind its length
	offsetDelta    int64
	timeDelta      int64
	id, key, value span
	headers        int // where the first name begins
	headerCount    int
	size           int // as [Message.Size] counts
}

// span is a part of a record; of null, to is -1.
type span struct{ from, to int }

func (s span) len() int { return max(s.to-s.from, 0) }

// of returns the part of b. Appending to it does not write into b.
func (s span) of(b []byte) []byte {
	if s.to < 0 {
		return nil
	}
	return b[s.from:s.to:s.to]
}

// overrun is the position behind a field that does not fit.
const overrun = math.MaxInt

// short returns the varint at a position, which may be overrun, if it is of one byte, as
// most are; else more than a byte of a varint holds. It is worth a second function, long,
// since it can be inlined.
func short(b []byte, at int) uint64 {
	if at < len(b) {
		return uint64(b[at])
	}
	return 0xff
}

const shortEnd = 0x80

// long returns the varint at a position, which may be overrun.
func long(b []byte, at int) (v uint64, next int) {
	if at >= len(b) {
		return 0, overrun
	}
	v, n := binary.Uvarint(b[at:])
	if n <= 0 {
		return 0, overrun
	}
	return v, at + n
}

func zigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// behind returns the position behind n bytes.
func behind(b []byte, at int, n uint64) int {
	if at > len(b) || n > uint64(len(b)-at) {
		return overrun
	}
	return at + int(n)
}

// cut cuts the first record off data. It returns what follows, and false if the record is
// not whole, or not sound.
func (f *recordFields) cut(data []byte) (rest []byte, ok bool) {
	u, at := short(data, 0), 1
	if u >= shortEnd {
		u, at = long(data, 0)
	}
	end := behind(data, at, u)
	if end == overrun {
		return data, false
	}
	b := data[at:end]
	f.b = b
	if len(b) == 0 || b[0] != 0 {
		return data, false
	}
	u, at = short(b, 1), 2
	if u >= shortEnd {
		u, at = long(b, 1)
	}
	f.offsetDelta = zigzag(u)
	if u = short(b, at); u < shortEnd {
		at++
	} else {
		u, at = long(b, at)
	}
	f.timeDelta = zigzag(u)
	return data[end:], f.cutContent(b, at)
}

// cutContent finds the fields that the message is made of. It returns false if they are not
// sound, or do not end where the record does.
func (f *recordFields) cutContent(b []byte, at int) bool {
	u := short(b, at)
	if u < shortEnd {
		at++
	} else {
		u, at = long(b, at)
	}
	f.id = span{at, behind(b, at, u)}
	f.key = nullable(b, f.id.to)
	at = max(f.key.to, f.key.from)
	f.value = nullable(b, at)
	at = max(f.value.to, f.value.from)
	if u = short(b, at); u < shortEnd {
		at++
	} else {
		u, at = long(b, at)
	}
	f.size = f.key.len() + f.value.len()
	f.headers, f.headerCount = at, 0
	// Each header takes two bytes at least: a count beyond that is a lie, and must not
	// be counted to.
	if u > 0 && (at > len(b) || u > uint64(len(b)-at)/2) {
		return false
	}
	f.headerCount = int(u)
	for range 2 * f.headerCount {
		u, at = long(b, at)
		at = behind(b, at, u)
		f.size += int(u)
	}
	return at == len(b)
}

// nullable finds a field whose length may be -1.
func nullable(b []byte, at int) span {
	u := short(b, at)
	if u < shortEnd {
		at++
	} else {
		u, at = long(b, at)
	}
	switch {
	case u == 1:
		return span{at, -1}
	case u&1 != 0:
		return span{overrun, overrun}
	}
	return span{at, behind(b, at, u>>1)}
}

// headerMap returns the headers, parts of text, which is a copy of their bytes.
func (f *recordFields) headerMap(text string) map[string]string {
	if f.headerCount == 0 {
		return nil
	}
	// A count does not size the map: all of its headers may have the same key.
	h := make(map[string]string, min(f.headerCount, 8))
	start, at := f.headers, f.headers
	next := func() string {
		n, from := long(f.b, at)
		at = from + int(n)
		return text[from-start : at-start]
	}
	for range f.headerCount {
		k := next()
		h[k] = next()
	}
	return h
}

// recordReader reads a plain batch's records in order. Keys and values alias the batch.
type recordReader struct {
	b         batch
	rest      []byte
	left      int32 // -1 if the batch is not plain
	lastDelta int64 // offset delta of the record read last, -1 before the first
}

func (b batch) records() recordReader {
	r := recordReader{b: b, rest: b[batchHeaderSize:], left: b.count(), lastDelta: -1}
	if b.compression() != CompressionNone {
		r.left = -1
	}
	return r
}

// cut cuts one record into f. It returns false behind the last one, and an error on records
// that are not as the header says.
func (r *recordReader) cut(f *recordFields) (bool, error) {
	if r.left <= 0 {
		return false, r.end()
	}
	rest, ok := f.cut(r.rest)
	if !ok || f.offsetDelta <= r.lastDelta || f.offsetDelta > int64(r.b.lastOffsetDelta()) {
		return false, fmt.Errorf("%w: record at offset %d or behind it", ErrMalformed, r.b.baseOffset()+r.lastDelta+1)
	}
	r.rest, r.lastDelta = rest, f.offsetDelta
	r.left--
	return true, nil
}

// end returns what is wrong with what stands behind the last record.
func (r *recordReader) end() error {
	switch {
	case r.left < 0:
		return fmt.Errorf("%w: a compressed batch was to be read", ErrMalformed)
	case len(r.rest) > 0 && (r.b.count() > 0 || bytes.Trim(r.rest, "\x00") != nil):
		return fmt.Errorf("%w: %d bytes behind the last record of a batch", ErrMalformed, len(r.rest))
	}
	return nil
}

// next reads one record into m, all but its Topic and Partition. It returns false
// behind the last one, and an error on records that are not as the header says.
func (r *recordReader) next(m *Message) (bool, error) {
	var f recordFields
	more, err := r.cut(&f)
	if err != nil || !more {
		return false, err
	}
	r.read(&f, m)
	return true, nil
}

// nextFrom is next for the first record that is not before an offset.
func (r *recordReader) nextFrom(offset int64, m *Message) (bool, error) {
	var f recordFields
	for {
		more, err := r.cut(&f)
		if err != nil || !more {
			return false, err
		}
		if r.b.baseOffset()+f.offsetDelta >= offset {
			r.read(&f, m)
			return true, nil
		}
	}
}

func (r *recordReader) read(f *recordFields, m *Message) {
	m.ID = string(f.id.of(f.b))
	m.Key, m.Value = f.key.of(f.b), f.value.of(f.b)
	m.Headers = f.headerMap(string(f.b[f.headers:]))
	m.Offset = r.b.baseOffset() + f.offsetDelta
	m.Timestamp = r.b.firstTime() + f.timeDelta
}

// textSlabs makes strings, many of which share their memory.
type textSlabs struct{ b strings.Builder }

// text returns b as a string. A new slab is for as many like it as count says, this one
// included, with a little over, for numbers that get longer.
func (t *textSlabs) text(b []byte, count int) string {
	if len(b) == 0 {
		return ""
	}
	if t.b.Cap()-t.b.Len() < len(b) {
		t.b = strings.Builder{}
		t.b.Grow(max(len(b), min((len(b)+1)*min(count, textSlab), textSlab)))
	}
	start := t.b.Len()
	t.b.Write(b)
	return t.b.String()[start:]
}

// messageID is the ID of a message that its producer gave none.
func messageID(topic string, partition int32, offset int64) string {
	var room [maxNameBytes + 40]byte
	return string(strconv.AppendInt(appendIDPrefix(room[:0], topic, partition), offset, 10))
}

func appendIDPrefix(b []byte, topic string, partition int32) []byte {
	b = append(b, topic...)
	b = append(b, '-')
	b = strconv.AppendInt(b, int64(partition), 10)
	return append(b, '-')
}

// appendMessages appends the records from an offset on of a plain batch: all of them or, if
// there is anything wrong with the batch, none. Keys and values alias it. Of the rest, what
// belongs to one message is in slabs that it shares with others; 128 messages without
// headers take two allocations, and one with headers a map more.
func (b batch) appendMessages(dst []*Message, topic string, partition int32, from int64) ([]*Message, error) {
	var (
		f       recordFields
		slab    []Message
		texts   textSlabs
		room    [maxNameBytes + 40]byte
		before  = len(dst)
		records = b.records()
	)
	id := appendIDPrefix(room[:0], topic, partition)
	for {
		more, err := records.cut(&f)
		switch {
		case err != nil:
			clear(dst[before:])
			return dst[:before], err
		case !more:
			return dst, nil
		case b.baseOffset()+f.offsetDelta < from:
			continue
		}
		left := int(records.left) + 1
		if len(slab) == 0 {
			slab = make([]Message, min(left, messageSlab))
			dst = slices.Grow(dst, left)
		}
		m := &slab[0]
		slab = slab[1:]
		m.Topic, m.Partition = topic, partition
		m.Offset = b.baseOffset() + f.offsetDelta
		m.Timestamp = b.firstTime() + f.timeDelta
		m.Key, m.Value = f.key.of(f.b), f.value.of(f.b)
		if m.ID = texts.text(f.id.of(f.b), left); m.ID == "" {
			m.ID = texts.text(strconv.AppendInt(id, m.Offset, 10), left)
		}
		if f.headerCount > 0 {
			m.Headers = f.headerMap(texts.text(f.b[f.headers:], left))
		}
		dst = append(dst, m)
	}
}

// checkRecords checks a batch that a producer has sent, beyond what parseBatch has: that it
// holds records for as many offsets as it takes, one for each, of sound form, none of them
// a message of more than maxMessage bytes, and that the latest time is that of a record. A
// compressed batch is checked as far as that goes without decompressing it: readers check
// what they read.
func (b batch) checkRecords(maxMessage int) error {
	if b.count() == 0 || b.lastOffsetDelta() != b.count()-1 {
		return fmt.Errorf("%w: %d records for %d offsets", ErrMalformed, b.count(), int64(b.lastOffsetDelta())+1)
	}
	if b.compression() != CompressionNone {
		return nil
	}
	var f recordFields
	latest := int64(math.MinInt64)
	for records := b.records(); ; {
		more, err := records.cut(&f)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if f.size > maxMessage {
			return fmt.Errorf("%w: record %d has %d bytes, allowed are %d", ErrMessageTooLarge, f.offsetDelta, f.size, maxMessage)
		}
		if f.id.len() > maxNameBytes {
			return checkMessageID(string(f.id.of(f.b)))
		}
		latest = max(latest, b.firstTime()+f.timeDelta)
	}
	if latest != b.maxTime() {
		return fmt.Errorf("%w: the latest time of a batch is %d, not %d", ErrMalformed, latest, b.maxTime())
	}
	return nil
}

// weigh counts the records from an offset on and the bytes of their messages, up to the
// first that is damaged. It looks at no more than limit bytes, decompressed.
func (b batch) weigh(from int64, limit int) (size, count int) {
	p, err := b.plain(limit)
	if err != nil {
		return 0, 0
	}
	var f recordFields
	for records := p.records(); ; {
		more, err := records.cut(&f)
		if err != nil || !more {
			return size, count
		}
		if b.baseOffset()+f.offsetDelta >= from {
			size += f.size
			count++
		}
	}
}

// offsetAt returns the offset of the first record from start on whose time is timestamp or
// later, false if there is none.
func (b batch) offsetAt(timestamp, start int64) (offset int64, ok bool, err error) {
	if b.maxTime() < timestamp || b.nextOffset() <= start {
		return 0, false, nil
	}
	p, err := b.plain(maxSearched)
	if err != nil {
		return 0, false, err
	}
	var f recordFields
	for records := p.records(); ; {
		more, err := records.cut(&f)
		if err != nil || !more {
			return 0, false, err
		}
		offset = b.baseOffset() + f.offsetDelta
		if offset >= start && b.firstTime()+f.timeDelta >= timestamp {
			return offset, true, nil
		}
	}
}
