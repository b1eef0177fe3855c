package robust

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	segmentSuffix = ".log"
	indexSuffix   = ".index"
	// scanBytes is how much of a segment is read at a time.
	scanBytes = 256 << 10
)

// segment is one file of a log, with its index.
type segment struct {
	header segmentHeader
	log    cachedFile // for readers
	out    cachedFile // for who writes
	index  segmentIndex

	// size is where the last batch ends; it is set when another segment takes over, and
	// does not change from then on.
	size int64
	// ending is what the index says of the segment's end; nil before it is known.
	ending atomic.Pointer[indexEntry]
	// For whoever has the sync token: its name has reached stable storage, and its
	// index says how it ends.
	linked   bool
	complete bool
	// doubted, likewise: a sync of it has failed, and the log has kept it.
	doubted bool
	// pinned: it is kept open until it is synced; counted: a token of logStore.unsaved
	// stands for that. Guarded by the log's mutex.
	pinned, counted bool
	// appended is when it was written to last, since the log was opened; guarded likewise.
	appended time.Time
	// cut: what stood behind its end was cut off, and might come back; guarded likewise.
	cut bool

	harmMu sync.Mutex // guards harm
	harm   []harm     // what is known to be damaged

	// straightened: the index has been made anew because it led astray. It is done once:
	// what the file has where the index was told that a batch begins may change under it.
	straightened atomic.Bool
}

// harm is a damaged part of a segment.
type harm struct {
	err *CorruptError
	end int64 // position behind it
}

func segmentPath(dir string, base int64, suffix string) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", base, suffix))
}

// parseSegmentName returns the base offset in the name of a segment or an index.
func parseSegmentName(name, suffix string) (base int64, ok bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 20 {
		return 0, false
	}
	base, err := strconv.ParseInt(digits, 10, 64)
	return base, err == nil && base >= 0
}

func newSegment(cache *fileCache, dir string, h segmentHeader) *segment {
	s := &segment{header: h}
	s.log = cachedFile{
		cache: cache, path: segmentPath(dir, h.base, segmentSuffix),
		check: s.checkFile,
	}
	s.out = cachedFile{cache: cache, path: s.log.path}
	s.index.file.Store(s.indexFile(dir))
	s.index.count = -1
	s.index.flushed = segmentHeaderSize
	return s
}

func (s *segment) indexFile(dir string) *cachedFile {
	return &cachedFile{
		cache: s.log.cache, path: segmentPath(dir, s.header.base, indexSuffix),
		check: func(f file) error {
			if size, err := f.size(); err != nil || size == 0 {
				return err // It was just made.
			}
			err := s.header.check(f, segmentPath(dir, s.header.base, indexSuffix), indexMagic)
			var d damage
			if errors.As(err, &d) {
				return fmt.Errorf("%w: %w", errIndexDamaged, err)
			}
			return err
		},
	}
}

// checkFile refuses a file that belongs elsewhere, or is of another version. A damaged
// header does no harm: every batch says for itself what it is and where it belongs.
func (s *segment) checkFile(f file) error {
	err := s.header.check(f, s.log.path, segmentMagic)
	var d damage
	switch {
	case !errors.As(err, &d):
		return err
	case d == damageForeign:
		return &CorruptError{File: s.log.path, From: s.header.base, To: s.header.base, Reason: string(d)}
	default:
		return nil
	}
}

// acquire opens the segment for reading. It ends at the offset next.
func (s *segment) acquire(next int64) (file, error) {
	f, err := s.log.acquire(os.O_RDONLY)
	var foreign *CorruptError
	if errors.As(err, &foreign) {
		all := *foreign
		all.To = next
		return nil, &all
	}
	return f, err
}

// cutWhole cuts the first batch off data, which was read from a log at the given offset,
// and checks it whole. need is how many bytes it takes, if there are too few.
func cutWhole(data []byte, offset int64) (b batch, need int64, err error) {
	if len(data) < batchHeaderSize {
		return nil, batchHeaderSize, nil
	}
	// The length is worth something only if the head is as it was written.
	if crc32.Checksum(data[:batchHeadCRCAt], castagnoli) != binary.BigEndian.Uint32(data[batchHeadCRCAt:]) {
		return nil, 0, damage("checksum of a batch's head is wrong")
	}
	size := int64(int32(binary.BigEndian.Uint32(data[batchLengthAt:]))) + batchLengthEnd
	if size < batchHeaderSize {
		return nil, 0, damage(fmt.Sprintf("a batch says that it has %d bytes", size))
	}
	if size > int64(len(data)) {
		return nil, size, nil
	}
	b, _, err = parseBatch(data[:size])
	if err != nil {
		return nil, 0, damage(strings.TrimPrefix(err.Error(), ErrMalformed.Error()+": "))
	}
	if b.baseOffset() != offset {
		return nil, 0, damage(fmt.Sprintf("a batch begins at offset %d instead of %d", b.baseOffset(), offset))
	}
	return b, 0, nil
}

// batchScanner reads a segment's batches one after the other, and checks each.
type batchScanner struct {
	f      file
	pos    int64 // of the next batch
	offset int64 // at which it has to begin
	limit  int64 // position behind the last one

	buf  []byte // what was read from pos on
	room []byte // its memory
}

// next returns a batch, which is good until the next call, or io.EOF at the limit. After a
// damage, pos and offset are those of what is damaged.
func (s *batchScanner) next() (batch, error) {
	for {
		b, need, err := cutWhole(s.buf, s.offset)
		if b != nil {
			s.buf = s.buf[len(b):]
			s.pos += int64(len(b))
			s.offset = b.nextOffset()
			return b, nil
		}
		left := s.limit - s.pos
		switch {
		case left == 0:
			return nil, io.EOF
		case err != nil:
			return nil, err
		case need > left:
			return nil, damage(fmt.Sprintf("a batch of %d bytes or more has %d", need, left))
		}
		size := min(max(need, scanBytes), left)
		if int64(cap(s.room)) < size {
			s.room = make([]byte, size)
		}
		s.buf = s.room[:size]
		if n, err := s.f.ReadAt(s.buf, s.pos); n < len(s.buf) {
			if err == nil || errors.Is(err, io.EOF) {
				return nil, damage("the file is shorter than it was")
			}
			return nil, err
		}
	}
}

// place is a position in a segment at which a batch begins, and its offset.
type place struct{ pos, offset int64 }

// resync finds where whole batches go on behind a damage that begins at from, at the
// latest at an anchor, a place that is known. What looks like a batch counts only if
// others follow on it up to the anchor: there may be batches in the values of messages.
func resync(ctx context.Context, f file, from, anchor place) (place, error) {
	window := make([]byte, scanBytes)
	effort := 4 * (anchor.pos - from.pos)
	for pos := from.pos; anchor.pos-pos >= batchHeaderSize; {
		if ctx.Err() != nil {
			return anchor, endOf(ctx)
		}
		n := int(min(int64(len(window)), anchor.pos-pos))
		if _, err := f.ReadAt(window[:n], pos); err != nil && !isEOF(err) {
			return anchor, err
		}
		last := n - batchHeaderSize
		for i := 0; i <= last; i++ {
			head := window[i : i+batchHeaderSize]
			if !likeHead(head) {
				continue
			}
			found := place{pos + int64(i), batch(head).baseOffset()}
			if found.offset < from.offset || found.offset > anchor.offset {
				continue
			}
			r := batchScanner{f: f, pos: found.pos, offset: found.offset, limit: anchor.pos}
			var err error
			for err == nil {
				_, err = r.next()
			}
			// Where there is more damage before the anchor, every batch between would be
			// followed up to it.
			if effort -= r.pos - found.pos; effort < 0 {
				return anchor, nil
			}
			if isEOF(err) && r.offset == anchor.offset {
				return found, nil
			}
		}
		pos += int64(last) + 1
	}
	return anchor, nil
}

// likeHead tells whether bytes are the head of a batch. Few get as far as a checksum.
func likeHead(b []byte) bool {
	return b[batchMagicAt] == batchMagic && b[0] <= math.MaxInt8 && b[batchLengthAt] <= math.MaxInt8 &&
		crc32.Checksum(b[:batchHeadCRCAt], castagnoli) == binary.BigEndian.Uint32(b[batchHeadCRCAt:])
}

// placed tells whether an entry of the index, or one that soon follows on it, says where a
// batch begins: not, if bytes are gone before it or have been put in.
func (s *segment) placed(f file, e place, limit int64) bool {
	const most = 8 // What is damaged there may be a batch itself.
	for range most {
		var head [batchHeaderSize]byte
		if _, err := f.ReadAt(head[:], e.pos); err == nil && likeHead(head[:]) && batch(head[:]).baseOffset() == e.offset {
			return true
		}
		next, ok, err := s.index.after(e.pos)
		if err != nil || !ok || next.pos >= limit {
			return false
		}
		e = place{next.pos, next.offset}
	}
	return false
}

// lastSynced returns the last place in a segment that its index says is synced, and how many
// entries there are up to there; none if the index is missing or damaged.
func (s *segment) lastSynced() (e indexEntry, entries int64, err error) {
	c := s.index.file.Load()
	f, err := c.acquire(os.O_RDONLY)
	if err == nil {
		var count int64
		if count, err = indexCount(f); err == nil {
			e, entries, err = lastEntry(f, count, func(e *indexEntry) bool {
				return e.flags&indexSynced != 0 && e.offset >= s.header.base
			})
		}
		c.release()
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errIndexDamaged) {
		return indexEntry{}, 0, nil
	}
	return e, entries, err
}

// writeAgain writes what the segment has from one position to another once more, so that a sync
// brings it to the disk, whatever the system holds of it.
func (s *segment) writeAgain(from, to int64) error {
	if from >= to {
		return nil
	}
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	buf := make([]byte, min(scanBytes, to-from))
	for from < to && err == nil {
		buf = buf[:min(int64(len(buf)), to-from)]
		if _, err = f.ReadAt(buf, from); err == nil {
			_, err = f.WriteAt(buf, from)
		}
		from += int64(len(buf))
	}
	// On some file systems it takes room; then the broker is to make some.
	if isEOF(err) || errors.Is(err, syscall.ENOSPC) {
		return nil
	}
	return err
}

// cutAt cuts off what stands behind a position.
func (s *segment) cutAt(pos int64) error {
	if s.size == pos {
		return nil
	}
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	if err := f.truncate(pos); err != nil {
		return err
	}
	s.size = pos
	return nil
}

// mayBeDoubted tells whether some of what the segment has before an offset may have failed to be
// synced: its index does not say that it was.
func (s *segment) mayBeDoubted(end int64) (bool, error) {
	e, entries, err := s.lastSynced()
	return entries == 0 || e.offset < end || e.flags&indexDoubted != 0, err
}

// retire closes the segment's files once nobody uses them.
func (s *segment) retire() {
	s.log.retire()
	s.out.retire()
	s.index.file.Load().retire()
}

// scan calls f with every batch from a place up to limit, until it returns false. It ends
// with a CorruptError where offsets cannot be read, unless they lie before start.
func (s *segment) scan(ctx context.Context, from indexEntry, limit, next, start int64, f func(batch) (bool, error)) error {
	if from.pos >= limit && from.offset >= next {
		return nil
	}
	opened, err := s.acquire(next)
	if err != nil {
		return err
	}
	defer s.log.release()
	r := batchScanner{f: opened, pos: from.pos, offset: from.offset, limit: limit}
	for {
		if r.offset == next {
			return nil // What stands behind it was refused.
		}
		b, err := r.next()
		if errors.Is(err, io.EOF) {
			err = damage("what follows is missing")
		}
		var d damage
		switch {
		case errors.As(err, &d):
			h, err := s.examine(ctx, opened, d, r.pos, r.offset, limit, next)
			if err != nil {
				return err
			}
			if h.err.To > max(start, h.err.From) {
				return h.err
			}
			r = batchScanner{f: opened, pos: h.end, offset: h.err.To, limit: limit}
			continue
		case err != nil:
			return err
		}
		if more, err := f(b); err != nil || !more {
			return err
		}
	}
}

// examine finds out how far a damage goes that begins at pos, where a batch should be at
// offset. The segment ends at the position limit and the offset next.
func (s *segment) examine(ctx context.Context, f file, cause error, pos, offset, limit, next int64) (harm, error) {
	const mostHarm = 64
	var d damage
	if !errors.As(cause, &d) {
		return harm{}, cause
	}
	s.harmMu.Lock()
	for _, h := range s.harm {
		if h.err.Position == pos && h.end <= limit {
			s.harmMu.Unlock()
			return h, nil
		}
	}
	s.harmMu.Unlock()
	from, end := place{pos, offset}, place{limit, next}
	if e, ok, err := s.index.after(pos); err == nil && ok && e.pos < limit {
		end = place{e.pos, e.offset}
	}
	end, err := resync(ctx, f, from, end)
	if err == nil && end.pos < limit && !s.placed(f, end, limit) {
		// What the index says is not so: bytes are gone, or have been put in.
		var found place
		if found, err = resync(ctx, f, from, place{limit, next}); found.pos < limit {
			end = found
		}
	}
	if err != nil {
		return harm{}, err
	}
	h := harm{&CorruptError{File: s.log.path, Position: pos, From: offset, To: end.offset, Reason: string(d)}, end.pos}
	if end.pos < limit {
		// What goes on behind it stays where it is.
		s.harmMu.Lock()
		if len(s.harm) < mostHarm {
			s.harm = append(s.harm, h)
		}
		s.harmMu.Unlock()
	}
	return h, nil
}
