package robust

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// A segment's index tells where batches are, every indexInterval bytes or so, and up to
// where the segment is known to have reached stable storage. It is a help: what it says
// is checked against the segment, and it can be made anew from it. Behind a header (see
// broker_file_header.go) it has entries of 40 bytes, big-endian:
//
//	 0  offset       int64   base offset of the batch at position, or the next offset at the segment's end
//	 8  position     uint32  in the segment
//	12  epoch        int32   of the last batch before position; 0 without one
//	16  max time     int64   of the records before position in the segment
//	24  append time  int64   of the last batch before position
//	32  flags        uint16  1 all before position is synced; 2 the broker was closed here; 4 the log knows producers there;
//	                         8, beside 1: a sync has failed, and some of it may not outlive a power failure
//	34  reserved     uint16  0
//	36  crc          uint32  CRC-32C of the bytes before it
const (
	indexEntrySize = 40
	indexInterval  = 16 << 10
	indexSynced    = 1
	indexClean     = 2
	indexProducers = 4
	indexDoubted   = 8
)

type indexEntry struct {
	offset     int64
	pos        int64
	epoch      int32
	maxTime    int64
	appendTime int64
	flags      uint16
}

func (e *indexEntry) append(dst []byte) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.offset))
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.pos))
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.epoch))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.maxTime))
	dst = binary.BigEndian.AppendUint64(dst, uint64(e.appendTime))
	dst = binary.BigEndian.AppendUint16(dst, e.flags)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// parse reads an entry; false if it is damaged.
func (e *indexEntry) parse(b []byte) bool {
	if crc32.Checksum(b[:indexEntrySize-4], castagnoli) != binary.BigEndian.Uint32(b[indexEntrySize-4:]) {
		return false
	}
	*e = indexEntry{
		offset:     int64(binary.BigEndian.Uint64(b)),
		pos:        int64(binary.BigEndian.Uint32(b[8:])),
		epoch:      int32(binary.BigEndian.Uint32(b[12:])),
		maxTime:    int64(binary.BigEndian.Uint64(b[16:])),
		appendTime: int64(binary.BigEndian.Uint64(b[24:])),
		flags:      binary.BigEndian.Uint16(b[32:]),
	}
	return e.offset >= 0 && e.pos >= segmentHeaderSize
}

// segmentIndex is the index of one segment. Its file is written by whoever has the log's
// sync token; it is read by anybody.
type segmentIndex struct {
	file atomic.Pointer[cachedFile] // another one when the index is made anew

	mu      sync.RWMutex // guards the following; not held across I/O
	count   int64        // entries in the file; -1 before it was looked at
	flushed int64        // position in the last of them
	tail    []indexEntry // those that are not in the file yet
}

// errIndexDamaged has the index made anew.
var errIndexDamaged = errors.New("index is damaged")

// add adds an entry, in memory for now. The log may have grown since the position was
// right, and added others behind it.
func (x *segmentIndex) add(e indexEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	at := sort.Search(len(x.tail), func(i int) bool { return x.tail[i].pos > e.pos })
	if at == len(x.tail) {
		x.tail = append(x.tail, e)
		return
	}
	// Those who search may have the tail at hand: it is not changed in place.
	x.tail = slices.Concat(x.tail[:at], []indexEntry{e}, x.tail[at:])
}

// last returns the position in the last entry, or an earlier one.
func (x *segmentIndex) last() int64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if n := len(x.tail); n > 0 {
		return x.tail[n-1].pos
	}
	return x.flushed
}

// replace has the entries of another file take the place of those of the file so far.
func (x *segmentIndex) replace(with *cachedFile, count, flushed int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.count, x.flushed = count, flushed
	n := sort.Search(len(x.tail), func(i int) bool { return x.tail[i].pos > flushed })
	x.tail = slices.Clone(x.tail[n:])
	x.file.Swap(with).retire()
}

// cut forgets what is in memory of positions beyond pos.
func (x *segmentIndex) cut(pos int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n := sort.Search(len(x.tail), func(i int) bool { return x.tail[i].pos > pos })
	x.tail = x.tail[:n]
}

// flush writes the tail to the file, which is made if it is not there.
func (x *segmentIndex) flush(h segmentHeader, sync bool) (err error) {
	tail, count := x.entries()
	if len(tail) == 0 && !sync {
		return nil
	}
	c := x.file.Load()
	f, err := c.cache.openFile(c.path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var buf []byte
	at := segmentHeaderSize + count*indexEntrySize
	if count == 0 {
		buf, at = h.encode(indexMagic), 0
	}
	for i := range tail {
		buf = tail[i].append(buf)
	}
	if _, err := f.WriteAt(buf, at); err != nil {
		return err
	}
	x.mu.Lock()
	x.count = count + int64(len(tail))
	if n := len(tail); n > 0 {
		x.flushed = tail[n-1].pos
	}
	x.tail = append([]indexEntry(nil), x.tail[len(tail):]...)
	x.mu.Unlock()
	if !sync {
		return nil
	}
	if err := f.sync(); err != nil || count > 0 {
		return err
	}
	return c.cache.syncDir(filepath.Dir(c.path))
}

// indexCount returns how many entries a file has room for.
func indexCount(f file) (int64, error) {
	size, err := f.size()
	if err != nil {
		return 0, err
	}
	return max(0, size-segmentHeaderSize) / indexEntrySize, nil
}

// search returns the last entry for which below is true, which must hold for all entries
// up to one of them and for none after; false if it holds for none.
func (x *segmentIndex) search(below func(*indexEntry) bool) (e indexEntry, ok bool, err error) {
	tail, count := x.entries()
	if n := sort.Search(len(tail), func(i int) bool { return !below(&tail[i]) }); n > 0 {
		return tail[n-1], true, nil
	}
	if count == 0 {
		return e, false, nil
	}
	f, count, release, err := x.open(count)
	if err != nil {
		return e, false, err
	}
	defer release()
	n, e, err := searchEntries(f, count, below)
	return e, n > 0, err
}

// entries returns the entries that are not in the file, and how many are; -1 if the file
// was not looked at.
func (x *segmentIndex) entries() (tail []indexEntry, count int64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.tail, x.count
}

// open opens the file, and counts its entries if count is -1.
func (x *segmentIndex) open(count int64) (f file, counted int64, release func(), err error) {
	c := x.file.Load()
	f, err = c.acquire(os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil, fmt.Errorf("%w: %w", errIndexDamaged, err)
	}
	if err != nil {
		return nil, 0, nil, err
	}
	if count < 0 {
		if count, err = indexCount(f); err != nil {
			c.release()
			return nil, 0, nil, err
		}
		x.mu.Lock()
		x.count = max(x.count, count)
		x.mu.Unlock()
	}
	return f, count, c.release, nil
}

// after returns the first entry behind a position.
func (x *segmentIndex) after(pos int64) (e indexEntry, ok bool, err error) {
	tail, count := x.entries()
	if count != 0 {
		f, count, release, err := x.open(count)
		if err != nil {
			return e, false, err
		}
		defer release()
		n, _, err := searchEntries(f, count, func(e *indexEntry) bool { return e.pos <= pos })
		if err != nil {
			return e, false, err
		}
		if n < count {
			var b [indexEntrySize]byte
			err := readIndex(f, b[:], n)
			return e, err == nil && e.parse(b[:]), err
		}
	}
	if i := sort.Search(len(tail), func(i int) bool { return tail[i].pos > pos }); i < len(tail) {
		return tail[i], true, nil
	}
	return e, false, nil
}

// searchEntries returns how many of the first count entries of a file are below, and the
// last of those.
func searchEntries(f file, count int64, below func(*indexEntry) bool) (n int64, e indexEntry, err error) {
	// All entries before low are below, none from high on is. Those from first on are
	// in memory, once they are few.
	const block = 64
	room := make([]byte, block*indexEntrySize)
	low, high, first := int64(0), count, int64(-1)
	at := new(indexEntry) // One for all: below has it on the heap.
	for low < high {
		if first < 0 && high-low <= block {
			first = low
			if err := readIndex(f, room[:(high-low)*indexEntrySize], low); err != nil {
				return 0, e, err
			}
		}
		mid := low + (high-low)/2
		b := room[:indexEntrySize]
		if first >= 0 {
			b = room[(mid-first)*indexEntrySize:]
		} else if err := readIndex(f, b, mid); err != nil {
			return 0, e, err
		}
		if !at.parse(b) {
			return 0, e, errIndexDamaged
		}
		if below(at) {
			low, e = mid+1, *at
		} else {
			high = mid
		}
	}
	return low, e, nil
}

// readIndex fills b with entries from the i-th on.
func readIndex(f file, b []byte, i int64) error {
	_, err := f.ReadAt(b, segmentHeaderSize+i*indexEntrySize)
	if errors.Is(err, io.EOF) {
		return errIndexDamaged // It was longer.
	}
	return err
}

// lastEntry returns the last undamaged entry of a file for which want is true, and how
// many entries, damaged ones too, stand up to and including it.
func lastEntry(f file, count int64, want func(*indexEntry) bool) (e indexEntry, n int64, err error) {
	const block = 64
	var buf [block * indexEntrySize]byte
	for high := count; high > 0; {
		low := max(0, high-block)
		b := buf[:(high-low)*indexEntrySize]
		if err := readIndex(f, b, low); err != nil {
			return e, 0, err
		}
		for i := high - 1; i >= low; i-- {
			if e.parse(b[(i-low)*indexEntrySize:]) && want(&e) {
				return e, i + 1, nil
			}
		}
		high = low
	}
	return indexEntry{}, 0, nil
}
