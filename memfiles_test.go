package robust

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	errPowerLoss = errors.New("power lost")
	errKilled    = errors.New("process killed")
)

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// memFiles is a file system in memory that forgets, when the power goes, what a disk
// may forget: a file's bytes and size since its last sync, in any selection of sectors,
// and each name that was made, moved or removed since the last sync of its directory.
// It is more forgetful than the file systems in use, which keep names in order, or make a
// file's name lasting along with its bytes: who relies on that relies on a habit.
//
// Bytes are never overwritten where another memFiles may see them, so a copy of the
// whole costs little more than its names.
type memFiles struct {
	count atomic.Int64 // operations begun
	fault atomic.Pointer[func(fileOp) fault]
	trace func(fileOp) // told of every operation; nil for nobody; copies have it too

	mu      sync.RWMutex // guards the following, and every node
	dead    error        // what all operations fail with from then on
	died    time.Time
	root    *memNode
	handles map[*memFile]struct{} // open files
	most    int                   // open at once at most
	rng     *rand.Rand            // what a failed sync has dropped
}

// fileOp is an operation about to be done.
type fileOp struct {
	kind   string // the method's name; "read", "write", "close" of a file; "unlock" of a lock
	path   string
	number int64 // of all operations, from 1
	size   int   // bytes to be read or written
}

func (op fileOp) String() string { return fmt.Sprintf("%d: %s %s", op.number, op.kind, op.path) }

// fault is what goes wrong with an operation; the zero fault is nothing.
type fault struct {
	err   error
	short int  // bytes of a write that are written although it fails
	done  bool // the operation is done although it fails
	drop  bool // of a sync: what was to be synced is taken for synced, and is not
	evict bool // with drop: it is not even to be read any more
	crash bool // the power goes before this operation; a write may come as far as short
}

// memNode is a file or a directory.
type memNode struct {
	dir bool

	// Of a directory: its entries, those that would survive, and what has happened
	// since to make the difference.
	entries, kept map[string]*memNode
	changes       []*nameChange

	// Of a file. data[:frozen] may be seen by others and is not to be overwritten.
	data   []byte
	frozen int
	disk   []byte     // what would survive for certain
	writes []memWrite // what has happened since
	// strayed: a failed sync has dropped writes, so that disk and writes together do not
	// make data.
	strayed bool
	locked  bool
}

// nameChange is an entry that was made, removed, or moved: within a directory or from
// one to another, in one piece.
type nameChange struct {
	node     *memNode
	source   *memNode // directory; nil where the entry was made
	from     string
	target   *memNode // nil where it was removed
	to       string
	survives bool // one of the directories was synced
}

// memWrite is a write or a truncation: what the touched sectors, in whole, were after it.
type memWrite struct {
	at   int64 // of the first of them
	data []byte
	size int64 // of the file
}

func newMemFiles(seed uint64) *memFiles {
	return &memFiles{root: newMemDir(), handles: make(map[*memFile]struct{}), rng: rand.New(rand.NewPCG(seed, 77))}
}

func newMemDir() *memNode {
	return &memNode{dir: true, entries: make(map[string]*memNode), kept: make(map[string]*memNode)}
}

// setFault makes f decide about every operation from now on. It is called before the
// operation, with no lock held, from any goroutine: it may block.
func (m *memFiles) setFault(f func(fileOp) fault) { m.fault.Store(&f) }

// crashAt lets the power go before the n-th operation from now.
func (m *memFiles) crashAt(n int64) {
	n += m.count.Load()
	m.setFault(func(op fileOp) fault { return fault{crash: op.number >= n} })
}

// clearFault lets everything succeed again.
func (m *memFiles) clearFault() { m.fault.Store(nil) }

// begin counts an operation and returns what is to go wrong with it.
func (m *memFiles) begin(kind, path string, size int) fault {
	op := fileOp{kind, path, m.count.Add(1), size}
	var f fault
	if decide := m.fault.Load(); decide != nil {
		f = (*decide)(op)
	}
	if m.trace != nil && m.failed() == nil {
		m.trace(op)
	}
	return f
}

// failLocked returns what an operation fails with before it is done.
func (m *memFiles) failLocked(f fault) error {
	switch {
	case m.dead != nil:
		return m.dead
	case f.crash:
		m.dieLocked(errPowerLoss)
		return m.dead
	case f.err != nil && !f.done:
		return f.err
	}
	return nil
}

func (m *memFiles) dieLocked(cause error) {
	if m.dead == nil {
		m.dead, m.died = cause, time.Now()
	}
}

// failed returns what all operations fail with, if they do.
func (m *memFiles) failed() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.dead
}

// diedAt returns when operations began to fail; now, if they do not.
func (m *memFiles) diedAt() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.dead == nil {
		return time.Now()
	}
	return m.died
}

func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// lookUpLocked returns the node of a path.
func (m *memFiles) lookUpLocked(path string) (*memNode, error) {
	n := m.root
	for part := range strings.SplitSeq(filepath.ToSlash(filepath.Clean(path)), "/") {
		if part == "" || part == "." {
			continue
		}
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.entries[part]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// parentLocked returns the directory of a path and the last name in it.
func (m *memFiles) parentLocked(path string) (*memNode, string, error) {
	dir, base := filepath.Split(filepath.Clean(path))
	n, err := m.lookUpLocked(dir)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	return n, base, err
}

func (n *memNode) change(c *nameChange) {
	if c.source != nil {
		delete(c.source.entries, c.from)
		c.source.changes = append(c.source.changes, c)
	}
	if c.target != nil {
		c.target.entries[c.to] = c.node
		if c.target != c.source {
			c.target.changes = append(c.target.changes, c)
		}
	}
}

func (m *memFiles) open(name string, flag int) (file, error) {
	f := m.begin("open", name, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	h, err := m.openLocked(name, flag, f)
	if err == nil {
		err = f.err
	}
	if err != nil {
		return nil, pathError("open", name, err)
	}
	m.addHandleLocked(h)
	return h, nil
}

func (m *memFiles) addHandleLocked(h *memFile) {
	m.handles[h] = struct{}{}
	m.most = max(m.most, len(m.handles))
}

func (m *memFiles) openLocked(name string, flag int, f fault) (*memFile, error) {
	if err := m.failLocked(f); err != nil {
		return nil, err
	}
	parent, base, err := m.parentLocked(name)
	if err != nil {
		return nil, err
	}
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	n := parent.entries[base]
	if base == "" {
		n = parent
	}
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case n == nil:
		n = &memNode{}
		parent.change(&nameChange{node: n, target: parent, to: base})
	case flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, syscall.EEXIST
	case n.dir && (writable || flag&os.O_CREATE != 0):
		return nil, syscall.EISDIR
	case flag&os.O_TRUNC != 0:
		n.truncate(0)
	}
	return &memFile{files: m, node: n, name: name, writable: writable}, nil
}

func (m *memFiles) mkdir(name string) error {
	f := m.begin("mkdir", name, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.failLocked(f)
	if err != nil {
		return pathError("mkdir", name, err)
	}
	parent, base, err := m.parentLocked(name)
	switch {
	case err != nil:
	case base == "" || parent.entries[base] != nil:
		err = syscall.EEXIST
	default:
		parent.change(&nameChange{node: newMemDir(), target: parent, to: base})
		err = f.err
	}
	return pathError("mkdir", name, err)
}

func (m *memFiles) regular(string) error { return nil }

func (m *memFiles) list(dir string) ([]fileInfo, error) {
	f := m.begin("list", dir, 0)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if err := cmp.Or(m.dead, f.err); err != nil {
		return nil, pathError("open", dir, err)
	}
	n, err := m.lookUpLocked(dir)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, pathError("open", dir, err)
	}
	infos := make([]fileInfo, 0, len(n.entries))
	for name, e := range n.entries {
		infos = append(infos, fileInfo{name: name, size: int64(len(e.data)), dir: e.dir})
	}
	slices.SortFunc(infos, func(a, b fileInfo) int { return strings.Compare(a.name, b.name) })
	return infos, nil
}

func (m *memFiles) rename(from, to string) error {
	f := m.begin("rename", from, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.failLocked(f)
	if err == nil {
		err = m.renameLocked(from, to)
	}
	if err == nil {
		err = f.err
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func (m *memFiles) renameLocked(from, to string) error {
	source, oldName, err := m.parentLocked(from)
	if err != nil {
		return err
	}
	target, newName, err := m.parentLocked(to)
	if err != nil {
		return err
	}
	n := source.entries[oldName]
	if n == nil {
		return syscall.ENOENT
	}
	old := target.entries[newName]
	switch {
	case old == n && !n.dir:
		return nil
	case old != nil && old.dir:
		return syscall.EEXIST // So does os.Rename.
	case n.dir && strings.HasPrefix(filepath.Clean(to)+"/", filepath.Clean(from)+"/"):
		return syscall.EINVAL
	case old != nil && n.dir:
		return syscall.ENOTDIR
	}
	source.change(&nameChange{n, source, oldName, target, newName, false})
	return nil
}

func (m *memFiles) remove(name string) error {
	f := m.begin("remove", name, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failLocked(f); err != nil {
		return pathError("remove", name, err)
	}
	parent, base, err := m.parentLocked(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	n := parent.entries[base]
	switch {
	case n == nil:
		err = syscall.ENOENT
	case len(n.entries) > 0:
		err = syscall.ENOTEMPTY
	default:
		parent.change(&nameChange{node: n, source: parent, from: base})
		err = f.err
	}
	return pathError("remove", name, err)
}

func (m *memFiles) syncDir(dir string) error {
	f := m.begin("syncDir", dir, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.failLocked(f)
	if err != nil {
		return pathError("sync", dir, err)
	}
	n, err := m.lookUpLocked(dir)
	if err != nil {
		return pathError("open", dir, err)
	}
	n.kept = maps.Clone(n.entries)
	for _, c := range n.changes {
		c.survives = true // In the other directory, too, if it was moved.
	}
	n.changes = nil
	return pathError("sync", dir, f.err)
}

func (m *memFiles) lock(name string, content []byte) (held io.Closer, holder []byte, err error) {
	f := m.begin("lock", name, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	flag := os.O_RDWR | os.O_CREATE
	if content == nil {
		flag = os.O_RDONLY
	}
	h, err := m.openLocked(name, flag, f)
	if err == nil {
		err = f.err
	}
	if err != nil {
		return nil, nil, pathError("open", name, err)
	}
	if h.node.locked {
		return nil, bytes.Clone(h.node.data), ErrDataDirInUse
	}
	h.node.locked, h.holds = true, true
	if content != nil {
		h.node.truncate(0)
		h.node.write(content, 0)
	}
	m.addHandleLocked(h)
	return h, nil, nil
}

// memFile is an open file.
type memFile struct {
	files    *memFiles
	node     *memNode
	name     string
	writable bool
	holds    bool // the lock
	closed   bool // guarded by files.mu
}

// failLocked returns what an operation fails with before it is done.
func (h *memFile) failLocked(op string, f fault) error {
	if h.closed {
		return pathError(op, h.name, fs.ErrClosed)
	}
	return pathError(op, h.name, h.files.failLocked(f))
}

func (h *memFile) ReadAt(p []byte, off int64) (int, error) {
	f := h.files.begin("read", h.name, len(p))
	h.files.mu.RLock()
	defer h.files.mu.RUnlock()
	switch {
	case h.closed:
		return 0, pathError("read", h.name, fs.ErrClosed)
	case h.files.dead != nil:
		return 0, pathError("read", h.name, h.files.dead)
	case f.err != nil:
		return 0, pathError("read", h.name, f.err)
	case h.node.dir:
		return 0, pathError("read", h.name, syscall.EISDIR)
	case off < 0:
		return 0, pathError("readat", h.name, errors.New("negative offset"))
	case len(p) == 0:
		return 0, nil
	case off >= int64(len(h.node.data)):
		return 0, io.EOF
	}
	n := copy(p, h.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memFile) WriteAt(p []byte, off int64) (int, error) {
	f := h.files.begin("write", h.name, len(p))
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	alive := h.files.dead == nil
	err := h.failLocked("write", f)
	switch {
	case err == nil && off < 0:
		return 0, pathError("writeat", h.name, errors.New("negative offset"))
	case err == nil && !h.writable:
		return 0, pathError("write", h.name, syscall.EBADF)
	case err == nil:
		h.node.write(p, off)
		return len(p), pathError("write", h.name, f.err)
	case !alive || h.closed || !h.writable:
		return 0, err
	}
	n := min(f.short, len(p))
	h.node.write(p[:n], off)
	return n, err
}

func (h *memFile) truncate(size int64) error {
	f := h.files.begin("truncate", h.name, 0)
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	if err := h.failLocked("truncate", f); err != nil {
		return err
	}
	if size < 0 || !h.writable {
		return pathError("truncate", h.name, syscall.EINVAL)
	}
	h.node.truncate(size)
	return pathError("truncate", h.name, f.err)
}

func (h *memFile) sync() error {
	f := h.files.begin("sync", h.name, 0)
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	err := h.failLocked("sync", f)
	switch {
	case err == nil:
		h.node.sync()
		return pathError("sync", h.name, f.err)
	case f.drop && !h.closed && h.files.dead == nil:
		h.node.drop(h.files.rng, f.evict)
	}
	return err
}

func (h *memFile) size() (int64, error) {
	f := h.files.begin("size", h.name, 0)
	h.files.mu.RLock()
	defer h.files.mu.RUnlock()
	switch {
	case h.closed:
		return 0, pathError("stat", h.name, fs.ErrClosed)
	case h.files.dead != nil:
		return 0, pathError("stat", h.name, h.files.dead)
	}
	return int64(len(h.node.data)), pathError("stat", h.name, f.err)
}

// Close closes the file, whatever error it returns.
func (h *memFile) Close() error {
	kind := "close"
	if h.holds {
		kind = "unlock"
	}
	f := h.files.begin(kind, h.name, 0)
	h.files.mu.Lock()
	defer h.files.mu.Unlock()
	err := h.failLocked("close", f)
	if !h.closed {
		h.closed = true
		delete(h.files.handles, h)
		if h.holds {
			h.node.locked = false
		}
	}
	if err == nil {
		err = pathError("close", h.name, f.err)
	}
	return err
}

func alignDown(n int64) int64 { return n &^ (sectorSize - 1) }

// ownFrom makes data safe to be written from off on.
func (n *memNode) ownFrom(off int64) {
	if off < int64(n.frozen) {
		n.data, n.frozen = slices.Concat(n.data, make([]byte, sectorSize))[:len(n.data)], 0
	}
}

func (n *memNode) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	old, end := int64(len(n.data)), off+int64(len(p))
	n.ownFrom(min(off, old))
	if off > old {
		n.data = append(n.data, make([]byte, off-old)...)
	}
	if end > int64(len(n.data)) {
		n.data = append(n.data[:off], p...)
	} else {
		copy(n.data[off:], p)
	}
	// What lies between the old end and the write becomes zeros by it.
	n.note(min(off, old), end)
}

// note keeps what the sectors of a range are now.
func (n *memNode) note(from, to int64) {
	from = alignDown(from)
	to = alignDown(to + sectorSize - 1)
	data := make([]byte, to-from)
	if from < int64(len(n.data)) {
		copy(data, n.data[from:])
	}
	n.writes = append(n.writes, memWrite{from, data, int64(len(n.data))})
}

func (n *memNode) truncate(size int64) {
	old := int64(len(n.data))
	switch {
	case size > old:
		n.ownFrom(old)
		n.data = append(n.data, make([]byte, size-old)...)
	case size < old:
		// What is appended next would overwrite what others see.
		n.data = n.data[:size:size]
		n.frozen = min(n.frozen, int(size))
	default:
		return
	}
	n.note(min(size, old), max(size, old))
}

func (n *memNode) sync() {
	if n.strayed {
		disk := slices.Clone(n.disk)
		for _, w := range n.writes {
			disk = lay(disk, w.data, w.at)
		}
		n.disk = resize(disk, int64(len(n.data)))
	} else {
		n.disk, n.frozen = n.data[:len(n.data):len(n.data)], len(n.data)
	}
	n.writes = nil
}

// lay puts p into data, which grows as needed.
func lay(data, p []byte, at int64) []byte {
	if end := at + int64(len(p)); end > int64(len(data)) {
		data = append(data, make([]byte, end-int64(len(data)))...)
	}
	copy(data[at:], p)
	return data
}

func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size:size]
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}

// drop takes all writes for synced, whether they are on the disk or not.
func (n *memNode) drop(rng *rand.Rand, evict bool) {
	size := int64(len(n.data))
	n.disk = resize(n.remains(rng, newOdds(rng)), size)
	n.disk = n.disk[:size:size]
	n.writes, n.strayed = nil, true
	if evict {
		n.data, n.frozen, n.strayed = n.disk, len(n.disk), false
	}
}

// odds are how much of what was not synced survives.
type odds struct {
	name, sector, size float64
	garbage            bool // in sectors that a file has grown by and that were not written
}

func newOdds(rng *rand.Rand) odds {
	one := func() float64 { return []float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)] }
	return odds{one(), one(), one(), rng.IntN(3) == 0}
}

// remains returns what a file is after a loss of power.
func (n *memNode) remains(rng *rand.Rand, o odds) []byte {
	if len(n.writes) == 0 {
		return n.disk
	}
	if rng.IntN(4) == 0 {
		garbage := o.garbage
		o = newOdds(rng) // This one fares differently.
		o.garbage = garbage
	}
	known := alignDown(int64(len(n.disk))+sectorSize-1) / sectorSize // sectors
	extent := known
	for _, w := range n.writes {
		extent = max(extent, (w.at+int64(len(w.data)))/sectorSize)
	}
	disk := resize(slices.Clone(n.disk), extent*sectorSize)
	written := make([]bool, extent)
	for _, w := range n.writes {
		for i := 0; i < len(w.data); i += sectorSize {
			if o.sector < 1 && rng.Float64() >= o.sector {
				continue
			}
			copy(disk[w.at+int64(i):], w.data[i:i+sectorSize])
			written[(w.at+int64(i))/sectorSize] = true
		}
	}
	size := int64(len(n.disk))
	switch {
	case rng.Float64() < o.size:
		size = n.writes[len(n.writes)-1].size
	case rng.Float64() < o.size:
		size = n.writes[rng.IntN(len(n.writes))].size
	}
	if o.garbage {
		for i := known; i < extent; i++ {
			if !written[i] {
				for j := 0; j < sectorSize; j += 8 {
					binary.LittleEndian.PutUint64(disk[i*sectorSize+int64(j):], rng.Uint64())
				}
			}
		}
	}
	return resize(disk, size)
}

// crash lets the power go, if it has not, and returns what is found when it is back.
// It may be called again, and then finds something else.
func (m *memFiles) crash(rng *rand.Rand) *memFiles {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dieLocked(errPowerLoss)
	c := crasher{rng: rng, odds: newOdds(rng), happened: make(map[*nameChange]bool)}
	after := newMemFiles(rng.Uint64())
	after.trace = m.trace
	after.root = c.node(m.root)
	return after
}

type crasher struct {
	rng      *rand.Rand
	odds     odds
	happened map[*nameChange]bool
}

func (c *crasher) node(n *memNode) *memNode {
	if !n.dir {
		disk := n.remains(c.rng, c.odds)
		disk = disk[:len(disk):len(disk)]
		return &memNode{data: disk, frozen: len(disk), disk: disk}
	}
	entries := n.kept
	if len(n.changes) > 0 {
		entries = maps.Clone(n.kept)
		for _, change := range n.changes {
			c.apply(n, entries, change)
		}
	}
	after := &memNode{dir: true, entries: make(map[string]*memNode, len(entries))}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		after.entries[name] = c.node(entries[name])
	}
	after.kept = maps.Clone(after.entries)
	return after
}

// apply lets a change of names have happened in dir, or not.
func (c *crasher) apply(dir *memNode, entries map[string]*memNode, change *nameChange) {
	happened, decided := c.happened[change]
	if !decided {
		happened = change.survives || c.rng.Float64() < c.odds.name
		c.happened[change] = happened
	}
	if !happened {
		return
	}
	if change.source == dir {
		// Under another name, if the move that gave it this one did not happen.
		maps.DeleteFunc(entries, func(name string, n *memNode) bool {
			return n == change.node && (change.target != nil || name == change.from)
		})
	}
	if change.target == dir {
		entries[change.to] = change.node
	}
}

// kill ends the process, whose operations fail from then on, and returns what another
// finds: all that was written, none of it more lasting than before.
func (m *memFiles) kill() *memFiles {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dieLocked(errKilled)
	return m.copyLocked()
}

// clone returns a copy, in which no file is open.
func (m *memFiles) clone() *memFiles {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copyLocked()
}

func (m *memFiles) copyLocked() *memFiles {
	copies := make(map[*memNode]*memNode)
	changes := make(map[*nameChange]*nameChange)
	var node func(n *memNode) *memNode
	entries := func(of map[string]*memNode) map[string]*memNode {
		to := make(map[string]*memNode, len(of))
		for name, n := range of {
			to[name] = node(n)
		}
		return to
	}
	node = func(n *memNode) *memNode {
		if n == nil || copies[n] != nil {
			return copies[n]
		}
		c := &memNode{dir: n.dir, disk: n.disk, writes: slices.Clip(n.writes), strayed: n.strayed}
		copies[n] = c
		if !n.dir {
			n.frozen = len(n.data)
			c.data, c.frozen = n.data[:n.frozen:n.frozen], n.frozen
			return c
		}
		c.entries, c.kept = entries(n.entries), entries(n.kept)
		for _, change := range n.changes {
			if changes[change] == nil {
				changes[change] = &nameChange{node(change.node), node(change.source), change.from, node(change.target), change.to, change.survives}
			}
			c.changes = append(c.changes, changes[change])
		}
		return c
	}
	after := newMemFiles(m.rng.Uint64())
	after.trace = m.trace
	after.root = node(m.root)
	return after
}

// openNow returns the names of the files that are open.
func (m *memFiles) openNow() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var names []string
	for h := range m.handles {
		names = append(names, h.name)
	}
	slices.Sort(names)
	return names
}

// openMost returns how many files were open at once.
func (m *memFiles) openMost() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.most
}

// paths returns the path of every file, in order.
func (m *memFiles) paths() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var paths []string
	var walk func(dir string, n *memNode)
	walk = func(dir string, n *memNode) {
		for name, e := range n.entries {
			if path := filepath.Join(dir, name); e.dir {
				walk(path, e)
			} else {
				paths = append(paths, path)
			}
		}
	}
	walk("/", m.root)
	slices.Sort(paths)
	return paths
}

// content returns what is in a file, nil if there is none. It must not be changed.
func (m *memFiles) content(path string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookUpLocked(path)
	if err != nil || n.dir {
		return nil
	}
	n.frozen = len(n.data)
	return n.data[:n.frozen:n.frozen]
}

// scramble changes bytes of a file on the disk itself, all that was written to it being there.
func (m *memFiles) scramble(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookUpLocked(path)
	if err != nil || n.dir || len(n.data) == 0 {
		return
	}
	data := slices.Clone(n.data)
	for i := m.rng.IntN(len(data)); i < len(data); i += 1 + m.rng.IntN(40) {
		data[i] ^= byte(1 + m.rng.IntN(255))
	}
	n.data, n.frozen, n.disk, n.writes, n.strayed = data, len(data), data, nil, false
}

// put makes a file of this content, which lasts; nil removes it. The directory must be
// there.
func (m *memFiles) put(path string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, name, err := m.parentLocked(path)
	switch {
	case err != nil:
		panic(err)
	case data == nil:
		delete(dir.entries, name)
		delete(dir.kept, name)
	default:
		n := &memNode{data: data, frozen: len(data), disk: data}
		dir.entries[name], dir.kept[name] = n, n
	}
}

var _ fileSystem = (*memFiles)(nil)
