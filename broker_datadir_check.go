package robust

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// damagedSuffix is added to the names of files that a repair has replaced.
const damagedSuffix = ".damaged"

// DataDirReport is what [CheckDataDir] and [RepairDataDir] have found.
type DataDirReport struct {
	Topics     int
	Partitions int   // with messages
	Segments   int   // files of partitions, and of consumer groups
	Batches    int64 // that are whole
	Records    int64 // in them
	Bytes      int64 // of them
	Damage     []Damage
}

// Damage is a fault in a data directory.
type Damage struct {
	Topic     string // "" where it is not in a partition
	Partition int32
	CorruptError
	// Tail: it is at the end of a log, behind all that is known to have reached stable
	// storage. That is what a crash leaves of a write; the broker cuts it off when
	// it starts.
	Tail bool
	// Repaired: messages at these offsets are gone, and all others can be read. What is
	// not in a log has been put aside; the broker does without.
	Repaired bool
}

// CheckDataDir reads all that is in a data directory and reports what is damaged. It
// changes nothing, so the directory may be one that can only be read. No broker may be at
// work there: then it fails with [ErrDataDirInUse]. A report comes also with an error, of
// what was read until then.
func CheckDataDir(ctx context.Context, dir string) (*DataDirReport, error) {
	return inspectDataDir(ctx, osFilesOf(dir), dir, false)
}

// RepairDataDir opens the logs of a data directory as a broker does when it starts, and
// then has batches without messages take the place of what is damaged, so that the
// messages behind it can be read without a gap in the offsets; those of the damaged
// batches are lost. Files that it replaces stay, with ".damaged" behind their names, and a
// number from the second time on. Files that it makes are the user's that runs it, who should be
// the broker's. No broker may be at work there. What the report does not
// call repaired is still damaged: the description of a topic cannot be made up.
func RepairDataDir(ctx context.Context, dir string) (*DataDirReport, error) {
	return inspectDataDir(ctx, osFilesOf(dir), dir, true)
}

// foreignDirError is a directory that no broker has made.
type foreignDirError struct {
	dir string
	err error
}

func (e *foreignDirError) Error() string {
	cause := strings.TrimPrefix(e.err.Error(), ErrStorage.Error()+": ")
	return "robust: " + e.dir + " is not a data directory: " + cause
}

func (e *foreignDirError) Unwrap() error { return e.err }

// inspector goes through a data directory.
type inspector struct {
	files  fileSystem
	store  *logStore
	dir    string
	repair bool
	report *DataDirReport
	topic  string // being looked at; "" for others
	id     int32
	before batch // header of the last whole batch of the log that was met; nil before the first
}

func inspectDataDir(ctx context.Context, files fileSystem, dir string, repair bool) (*DataDirReport, error) {
	report := &DataDirReport{}
	if _, err := files.list(filepath.Join(dir, topicsName)); err != nil {
		return report, &foreignDirError{dir, storageError(err)}
	}
	held, err := lockDataDir(files, dir, !repair)
	if err != nil {
		return report, err
	}
	store := newLogStore(files, SyncNever, newWarner(slog.New(slog.DiscardHandler)))
	i := inspector{files: files, store: store, dir: dir, repair: repair, report: report}
	err = i.all(ctx)
	store.running.Wait()
	return report, errors.Join(err, held.Close())
}

func (i *inspector) all(ctx context.Context) error {
	var id storedIdentity
	path := filepath.Join(i.dir, identityName)
	if err := i.kept(path, readJSON(i.files, path, &id)); err != nil {
		return err
	}
	root := filepath.Join(i.dir, topicsName)
	infos, err := i.files.list(root)
	if err != nil {
		return storageError(err)
	}
	for _, info := range infos {
		if !info.dir {
			continue
		}
		if err := i.inspectTopic(ctx, filepath.Join(root, info.name)); err != nil {
			return err
		}
	}
	i.topic, i.id = "", 0
	return i.inspectLog(ctx, filepath.Join(i.dir, groupsName), "consumer groups", segmentHeader{topicID: groupsName})
}

// kept makes of what has come of reading a file of values what a report needs. A repair puts a
// damaged one aside: the broker does without.
func (i *inspector) kept(path string, err error) error {
	var corrupt *CorruptError
	switch {
	case err == nil, errors.Is(err, os.ErrNotExist):
		return nil
	case !errors.As(err, &corrupt):
		return err
	}
	d := Damage{Topic: i.topic, Partition: i.id, CorruptError: *corrupt}
	if i.repair {
		if err := i.putAside(path, path); err != nil {
			return storageError(err)
		}
		d.Repaired = true
	}
	i.report.Damage = append(i.report.Damage, d)
	return nil
}

func (i *inspector) inspectTopic(ctx context.Context, dir string) error {
	i.topic, i.id = filepath.Base(dir), 0
	t, err := readTopic(i.files, dir)
	if errors.Is(err, os.ErrNotExist) {
		var unfinished bool
		if unfinished, err = isUnfinished(i.files, dir); unfinished && i.repair {
			return storageError(removeAll(i.files, dir))
		}
		if err == nil {
			return nil // The broker clears it away, or it is somebody else's.
		}
	}
	var corrupt *CorruptError
	if err != nil && !errors.As(err, &corrupt) {
		return err
	}
	if corrupt != nil {
		i.report.Damage = append(i.report.Damage, Damage{Topic: i.topic, CorruptError: *corrupt})
		return nil //nolint:nilerr // it is in the report
	}
	i.topic = t.Name
	i.report.Topics++
	for id := range t.Partitions {
		i.id = id
		inner := filepath.Join(dir, strconv.Itoa(int(id)))
		h := segmentHeader{topicID: t.ID, partition: id}
		if err := i.inspectLog(ctx, inner, fmt.Sprintf("%s/%d", t.Name, id), h); err != nil {
			return err
		}
	}
	return nil
}

// inspectLog inspects a log. A repair opens it first, as a broker would, so that what is
// left to do is no longer at its end.
func (i *inspector) inspectLog(ctx context.Context, dir, name string, h segmentHeader) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	if _, err := i.files.list(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	start, err := readStart(i.files, filepath.Join(dir, startName), h)
	if err := i.kept(filepath.Join(dir, startName), err); err != nil {
		return err
	}
	if err := i.inspectProducers(dir, h); err != nil {
		return err
	}
	if i.topic != "" {
		i.report.Partitions++
	}
	if i.repair {
		if err := i.remakeStart(dir, h); err != nil {
			return err
		}
		l, err := openLog(ctx, i.store, dir, name, h, LogConfig{SegmentBytes: math.MaxInt32}, logEvents{})
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			return err
		}
	}
	l := &diskLog{store: i.store, dir: dir, name: name, header: h}
	r := recovery{log: l, view: &logView{start: start}}
	if err := r.look(); err != nil {
		return err
	}
	i.before = nil
	segments := r.view.segments
	for n, s := range segments {
		next := int64(-1)
		if n+1 < len(segments) {
			next = segments[n+1].header.base
		}
		err := i.inspectSegment(ctx, &r, n, next)
		s.retire()
		if err != nil {
			return err
		}
	}
	if r.gone != nil {
		i.damaged(Damage{CorruptError: *r.gone})
	}
	return nil
}

// putAside gives a file a name that says that a repair has taken it out of the place of another,
// and that no other has: what earlier repairs have put aside stays.
func (i *inspector) putAside(from, path string) error {
	infos, err := i.files.list(filepath.Dir(path))
	if err != nil {
		return err
	}
	aside := path + damagedSuffix
	taken := func(info fileInfo) bool { return info.name == filepath.Base(aside) }
	for n := 2; slices.ContainsFunc(infos, taken); n++ {
		aside = path + damagedSuffix + "." + strconv.Itoa(n)
	}
	return i.files.rename(from, aside)
}

// inspectProducers checks what is kept of producers. A repair puts a damaged file aside: the
// broker finds out again from the log what it can.
func (i *inspector) inspectProducers(dir string, h segmentHeader) error {
	infos, err := i.files.list(dir)
	if err != nil {
		return storageError(err)
	}
	for _, info := range infos {
		var ok bool
		if h.base, ok = parseSegmentName(info.name, producersSuffix); !ok {
			continue
		}
		_, err := readProducers(i.files, dir, h)
		var d damage
		if err == nil {
			continue
		}
		if !errors.As(err, &d) {
			return storageError(err)
		}
		path := filepath.Join(dir, info.name)
		if i.repair {
			if err := i.putAside(path, path); err != nil {
				return storageError(err)
			}
		}
		i.damaged(Damage{CorruptError: CorruptError{File: path, From: -1, To: -1, Reason: string(d)}, Repaired: i.repair})
	}
	return nil
}

// remakeStart has a log whose start is not known begin with what is there.
func (i *inspector) remakeStart(dir string, h segmentHeader) error {
	path := filepath.Join(dir, startName)
	infos, err := i.files.list(dir)
	if err != nil {
		return storageError(err)
	}
	aside, first := false, int64(-1)
	for _, info := range infos {
		switch base, ok := parseSegmentName(info.name, segmentSuffix); {
		case info.name == startName:
			return nil
		case strings.HasPrefix(info.name, startName+damagedSuffix):
			aside = true
		case ok && first < 0:
			first = base // They come in order.
		}
	}
	if !aside || first <= 0 {
		return nil
	}
	return storageError(replaceJSON(i.files, path, storedStart{first, h.topicID, h.partition}))
}

// hole is a damaged part of a segment, from one place to another. before is the batch in
// front of it, nil if there is none.
type hole struct {
	from, to place
	reason   damage
	before   batch
}

// damageBehind is what a write leaves that has failed, in front of another segment. Nobody
// reads it.
const damageBehind damage = "there are bytes behind the segment's end"

// inspectSegment inspects the n-th segment; next is the offset at which it must end, -1 if
// that is not known.
func (i *inspector) inspectSegment(ctx context.Context, r *recovery, n int, next int64) error {
	s := r.view.segments[n]
	i.report.Segments++
	known := n < r.at || r.known && n == r.at && next >= 0
	limit := s.size
	if n == r.at && r.known && next < 0 {
		next, limit = r.frontier.offset, min(limit, r.frontier.pos)
		known = true
	}
	f, err := s.acquire(max(next, s.header.base))
	var corrupt *CorruptError
	switch {
	case errors.As(err, &corrupt):
		i.damaged(Damage{CorruptError: *corrupt, Tail: !known, Repaired: i.repair})
		if !i.repair {
			return nil
		}
		return storageError(i.replaceForeign(ctx, s, corrupt))
	case err != nil:
		return storageError(err)
	}
	defer s.log.release()
	var header damage
	bad := errors.As(s.header.check(f, s.log.path, segmentMagic), &header)
	if bad {
		i.damaged(Damage{
			CorruptError: CorruptError{File: s.log.path, From: s.header.base, To: s.header.base, Reason: string(header)},
			Tail:         !known, Repaired: i.repair,
		})
	}
	holes, err := i.scan(ctx, s, f, limit, next, known)
	if err != nil {
		return storageError(err)
	}
	for _, h := range holes {
		i.damaged(Damage{
			CorruptError: CorruptError{File: s.log.path, Position: h.from.pos, From: h.from.offset, To: h.to.offset, Reason: string(h.reason)},
			Tail:         !known || h.reason == damageBehind, Repaired: i.repair,
		})
	}
	if limit < s.size {
		// Behind the frontier there may be more; nobody was promised that it stays.
		b := batchScanner{f: f, pos: limit, offset: next, limit: s.size}
		for err = nil; err == nil; {
			if ctx.Err() != nil {
				return endOf(ctx)
			}
			_, err = b.next()
		}
		var d damage
		if errors.As(err, &d) {
			i.damaged(Damage{
				CorruptError: CorruptError{File: s.log.path, Position: b.pos, From: b.offset, To: b.offset, Reason: string(d)},
				Tail:         true, Repaired: i.repair,
			})
		}
	}
	if !i.repair || !bad && len(holes) == 0 {
		return nil
	}
	return storageError(i.rewrite(ctx, s, f, holes))
}

// replaceForeign puts a segment without messages in the place of one that belongs elsewhere.
func (i *inspector) replaceForeign(ctx context.Context, s *segment, corrupt *CorruptError) error {
	f, err := s.out.acquire(os.O_RDWR)
	if err != nil {
		return err
	}
	defer s.out.release()
	all := hole{
		place{segmentHeaderSize, corrupt.From},
		place{max(s.size, segmentHeaderSize), corrupt.To},
		damage(corrupt.Reason), slices.Clone(i.before),
	}
	return i.rewrite(ctx, s, f, []hole{all})
}

func (i *inspector) damaged(d Damage) {
	d.Topic, d.Partition = i.topic, i.id
	i.report.Damage = append(i.report.Damage, d)
}

// scan reads a segment up to limit and returns what is damaged. Where the place at which
// it ends is not known, it ends with the first damage.
func (i *inspector) scan(ctx context.Context, s *segment, f file, limit, next int64, known bool) (holes []hole, err error) {
	b := batchScanner{f: f, pos: segmentHeaderSize, offset: s.header.base, limit: limit}
	for {
		if ctx.Err() != nil {
			return holes, endOf(ctx)
		}
		if end := (place{b.pos, next}); known && b.offset == next && b.pos < limit {
			return append(holes, hole{end, place{limit, next}, damageBehind, nil}), nil
		}
		at, err := b.next()
		var d damage
		switch {
		case err == nil:
			i.count(at)
			i.before = append(i.before[:0], at[:batchHeaderSize]...)
			continue
		case isEOF(err):
			if known && next >= 0 && b.offset != next {
				from := place{b.pos, b.offset}
				holes = append(holes, hole{from, place{limit, next}, "what follows is missing", slices.Clone(i.before)})
			}
			return holes, nil
		case !errors.As(err, &d):
			return holes, err
		}
		from := place{b.pos, b.offset}
		if !known {
			return append(holes, hole{from, from, d, nil}), nil
		}
		h, err := s.examine(ctx, f, d, b.pos, b.offset, limit, next)
		if err != nil {
			return holes, err
		}
		to := place{h.end, h.err.To}
		holes = append(holes, hole{from, to, d, slices.Clone(i.before)})
		b = batchScanner{f: f, pos: to.pos, offset: to.offset, limit: limit}
		if to.pos >= limit {
			return holes, nil
		}
	}
}

func (i *inspector) count(b batch) {
	i.report.Batches++
	i.report.Records += int64(b.count())
	i.report.Bytes += int64(len(b))
}

// rewrite puts a segment in the place of one with holes, in which batches without records
// stand for what is gone. It ends at the offset next, or where the last batch does.
func (i *inspector) rewrite(ctx context.Context, s *segment, f file, holes []hole) error {
	path := s.log.path
	temporary := path + temporarySuffix
	if err := copyRanges(i.files, f, temporary, nil, []hole{{from: place{pos: s.size}}}); err != nil {
		return err
	}
	if err := i.putAside(temporary, path); err != nil {
		return err
	}
	end := place{s.size, 0}
	if err := copyRanges(i.files, f, temporary, s.header.encode(segmentMagic), append(holes, hole{from: end, to: end})); err != nil {
		return err
	}
	if err := i.files.rename(temporary, path); err != nil {
		return err
	}
	if err := i.files.syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	// Positions may have moved.
	made := newSegment(i.store.cache, filepath.Dir(path), s.header)
	defer made.retire()
	return remakeIndex(ctx, made, filepath.Dir(path))
}

// copyRanges makes a file of what stands before and between holes in another. header takes
// the place of its first bytes; batches without records that of the holes, where offsets
// are gone.
func copyRanges(files fileSystem, from file, path string, header []byte, holes []hole) (err error) {
	out, err := files.open(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := out.WriteAt(header, 0); err != nil {
		return err
	}
	at, pos := int64(len(header)), int64(len(header))
	room := make([]byte, scanBytes)
	for _, h := range holes {
		for pos < h.from.pos {
			b := room[:min(scanBytes, h.from.pos-pos)]
			if n, err := from.ReadAt(b, pos); n < len(b) {
				return errors.Join(err, fmt.Errorf("%s: %d bytes at position %d are missing", path, len(b)-n, pos+int64(n)))
			}
			if _, err := out.WriteAt(b, at); err != nil {
				return err
			}
			pos, at = pos+int64(len(b)), at+int64(len(b))
		}
		filler := fillHole(h)
		if _, err := out.WriteAt(filler, at); err != nil {
			return err
		}
		pos, at = h.to.pos, at+int64(len(filler))
	}
	return out.sync()
}

// fillHole returns batches without records for the offsets of a hole, as large as it is if
// that is possible.
func fillHole(h hole) []byte {
	var filler []byte
	for offset := h.from.offset; offset < h.to.offset; {
		count := min(h.to.offset-offset, math.MaxInt32)
		size := batchHeaderSize
		if offset+count == h.to.offset {
			size = max(size, int(h.to.pos-h.from.pos)-len(filler))
		}
		filler = append(filler, emptyBatch(offset, count, size, h.before)...)
		offset += count
	}
	return filler
}

// remakeIndex makes a segment's index anew.
func remakeIndex(ctx context.Context, s *segment, dir string) error {
	f, err := s.acquire(s.header.base)
	if err != nil {
		return err
	}
	defer s.log.release()
	size, err := f.size()
	if err != nil {
		return err
	}
	b := batchScanner{f: f, pos: segmentHeaderSize, offset: s.header.base, limit: size}
	for err == nil {
		if ctx.Err() != nil {
			return endOf(ctx)
		}
		_, err = b.next()
	}
	if !isEOF(err) {
		return err
	}
	entries, err := indexSegment(ctx, s, size, b.offset)
	if err != nil {
		return err
	}
	data := s.header.encode(indexMagic)
	for n := range entries {
		entries[n].flags |= indexProducers // It may, by segments before this one.
		data = entries[n].append(data)
	}
	return replaceFile(s.log.cache.files, segmentPath(dir, s.header.base, indexSuffix), data)
}
