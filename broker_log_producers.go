package robust

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strings"
	"time"
)

// What a log knows of idempotent producers is in the batches that they have written. So that
// not all of them have to be read when the log is opened it is kept, from time to time, in a
// file that is named by the offset up to which it holds: a header as segments have it, the
// states (see broker_producers.go), and the CRC-32C of all before.
//
// Such a file is written by whoever has the sync token, when what it tells of is synced, and
// is as lasting. So it is seldom far before the frontier, and never behind the end of a log
// that has lost its tail. Retention removes no segment before there is one for the offset
// at which the log begins from then on. It is a help: without it the last of the log's batches
// are read instead, and who has written none of them has to begin a new epoch.
//
// A log that knows no producers says so in its index (indexProducers), and is opened without
// a look for them.
const producersSuffix = ".producers"

const (
	// producersInterval is how much is appended before producers are kept again. It may have
	// to be read once more when the log is opened.
	producersInterval = 8 << 20
	// producersRetry is how long it waits, at least, after they could not be kept.
	producersRetry = 10 * time.Second
	// mostKeptProducers is how large the file can be.
	mostKeptProducers = segmentHeaderSize + 4 + maxLogProducers*(keptProducerSize+producerWindow*keptBatchSize) + 4
)

// keptProducers is a file of producers. Without data there are none.
type keptProducers struct {
	at   syncPoint
	data []byte
}

// expireProducers forgets the producers that have been silent for too long.
func (l *diskLog) expireProducers(now time.Time) {
	p := l.producers.Load()
	if p == nil {
		return
	}
	if since := p.silent.Load(); since == 0 || now.UnixMilli()-since <= producerExpiry.Milliseconds() {
		return
	}
	_ = l.exclusive(func() error {
		p.states.expire(now.UnixMilli())
		p.silent.Store(p.states.silentSince())
		return nil
	})
}

// doubtProducers takes batches for what a failed sync of a segment has made of them: the
// log is w now.
func (l *diskLog) doubtProducers(s *segment, w *logView) {
	p := l.producers.Load()
	switch {
	case p == nil:
	case l.store.policy == SyncAlways:
		p.states.rollback(w.last.offset)
	default:
		p.states.doubt(l.synced.at.offset, w.ending(slices.Index(w.segments, s)).offset)
	}
}

// viewToSync returns what has been written so far, and what is known of producers there, if
// it is to be kept again. The caller has the sync token.
func (l *diskLog) viewToSync() (w *logView, kept *keptProducers) {
	l.mu.Lock()
	w = l.written
	l.mu.Unlock()
	p := l.producers.Load()
	if p == nil || time.Now().Before(p.again) {
		return w, nil
	}
	// With SyncNever the last segment is not synced, as long as it is.
	rolled := w.lastBase() != p.kept.segment
	if !rolled && (l.store.policy == SyncNever || w.last.pos-p.kept.at.pos < producersInterval) {
		return w, nil
	}
	_ = l.exclusive(func() error {
		w = l.written
		if p.states.len() == 0 || len(w.segments) == 0 {
			p.kept = syncPoint{w.lastBase(), w.last} // There is nothing to keep.
			return nil
		}
		kept = l.encodeProducers(p, w)
		return nil
	})
	return w, kept
}

// finalProducers returns what is to be kept of producers when the log is closed; nil if that
// has been done. Whoever works calls it, who has the sync token.
func (l *diskLog) finalProducers() *keptProducers {
	p := l.producers.Load()
	switch w := l.written; {
	case p == nil || len(w.segments) == 0:
		return nil
	case p.states.len() == 0:
		return &keptProducers{}
	case p.kept.at.offset == w.last.offset && slices.Contains(p.files, w.last.offset):
		return nil
	default:
		return l.encodeProducers(p, w)
	}
}

func (l *diskLog) encodeProducers(p *logProducers, w *logView) *keptProducers {
	h := l.header
	h.base = w.last.offset
	data := sealProducers(p.states.encode(h.encode(producersMagic)))
	return &keptProducers{syncPoint{w.lastBase(), w.last}, data}
}

// sealProducers ends a file of producers.
func sealProducers(data []byte) []byte {
	return binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

// keepProducers writes a file of producers, and removes those before it. That it cannot be
// written may cost some of what is known of them, not a message. The caller has the sync token.
func (l *diskLog) keepProducers(kept *keptProducers) {
	if kept == nil {
		return
	}
	p := l.producers.Load()
	current := int64(-1)
	if kept.data != nil {
		current = kept.at.at.offset
		if !slices.Contains(p.files, current) {
			p.files = append(p.files, current)
		}
		path := segmentPath(l.dir, current, producersSuffix)
		err := l.store.cache.givingWay(func() error { return replaceFile(l.store.files, path, kept.data) })
		if err != nil {
			p.again = time.Now().Add(producersRetry)
			l.store.warn.warn("producers cannot be kept", l.name, "log", l.name, "error", err)
			return
		}
		p.kept = kept.at
	}
	p.files = slices.DeleteFunc(p.files, func(offset int64) bool {
		if offset == current {
			return false
		}
		err := l.store.files.remove(segmentPath(l.dir, offset, producersSuffix))
		return err == nil || errors.Is(err, os.ErrNotExist) // Else later.
	})
}

// readProducers reads a file of producers. The error is a damage, or that of the read, or
// ErrUnsupported for a version that is not known.
func readProducers(files fileSystem, dir string, h segmentHeader) (*producerStates, error) {
	path := segmentPath(dir, h.base, producersSuffix)
	data, err := readFile(files, path)
	if err != nil {
		return nil, err
	}
	return parseProducers(data, path, h)
}

func parseProducers(data []byte, path string, h segmentHeader) (*producerStates, error) {
	end := len(data) - 4
	if end < segmentHeaderSize {
		return nil, damage("it is cut off")
	}
	if err := h.checkBytes(data[:segmentHeaderSize], path, producersMagic); err != nil {
		return nil, err
	}
	if len(data) > mostKeptProducers || crc32.Checksum(data[:end], castagnoli) != binary.BigEndian.Uint32(data[end:]) {
		return nil, damage("checksum is wrong")
	}
	ps, err := decodeProducers(data[segmentHeaderSize:end], h.base)
	if err != nil {
		return nil, damage(fmt.Sprint("it cannot be: ", strings.TrimPrefix(err.Error(), ErrMalformed.Error()+": ")))
	}
	return ps, nil
}
