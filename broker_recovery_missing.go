package robust

import (
	"errors"
	"os"
)

// missingEnd tells what a log has lost if its last segment is not there: its index has outlived it,
// and says that there were messages. An index without a segment is otherwise what a removal has
// left that was not finished. Segments that are missing before others need no index to be missed.
func (l *diskLog) missingEnd(v *logView, indexes []string) (*CorruptError, error) {
	after := int64(-1)
	if n := len(v.segments); n > 0 {
		after = v.segments[n-1].header.base
	}
	var lost *CorruptError
	for _, name := range indexes {
		base, ok := parseSegmentName(name, indexSuffix)
		if !ok || base <= after {
			continue
		}
		h := l.header
		h.base = base
		s := newSegment(l.store.cache, l.dir, h)
		e, synced, err := s.lastSynced()
		s.retire()
		if err != nil {
			return nil, err
		}
		if synced > 0 && e.offset > max(base, v.start) {
			after = base
			lost = &CorruptError{File: s.log.path, From: base, To: e.offset, Reason: "the file is missing"}
		}
	}
	return lost, nil
}

// standIn makes an empty segment in the place of the last one, which is missing. It has lost what
// was synced, and is treated like any other that has.
func (l *diskLog) standIn(base int64) (*segment, error) {
	h := l.header
	h.base = base
	s := newSegment(l.store.cache, l.dir, h)
	f, err := l.store.cache.openFile(s.log.path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(h.encode(segmentMagic), 0); err == nil {
		err = f.sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = l.store.cache.syncDir(l.dir)
	}
	s.size, s.linked, s.complete = segmentHeaderSize, true, true
	return s, err
}
