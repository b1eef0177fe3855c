package robust

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
)

const (
	// reserveName is the file of a data directory that holds room for others.
	reserveName  = "reserve"
	reserveBytes = 16 << 10
)

// States of a reserve.
const (
	reserveSpent int32 = iota
	reserveThere
	reserveBusy // somebody is about to change it
)

// reserve is a file that holds room on the disk. On a full one a broker must still be able to
// keep where a log begins before it removes what stands before, and that it was opened:
// otherwise nothing would ever make room. Where there is none for a small file, the reserve
// becomes that file: to overwrite what it has takes no room. nil is a reserve that is spent.
type reserve struct {
	files fileSystem
	path  string
	state atomic.Int32
}

// openReserve finds the reserve that a broker before has left.
func openReserve(files fileSystem, path string) *reserve {
	r := &reserve{files: files, path: path}
	if files.regular(path) != nil {
		return r // It is not overwritten, either.
	}
	f, err := files.open(path, os.O_RDWR)
	if err != nil {
		return r // It is made when there is room.
	}
	size, err := f.size()
	if errors.Join(err, f.Close()) == nil && size == reserveBytes {
		r.state.Store(reserveThere)
	}
	return r
}

// fill makes the reserve if it is spent and there is room.
func (r *reserve) fill() {
	if r == nil || !r.state.CompareAndSwap(reserveSpent, reserveBusy) {
		return
	}
	f, err := r.files.open(r.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err == nil {
		_, err = f.WriteAt(make([]byte, reserveBytes), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		_ = r.files.remove(r.path) // A part would only take room from others.
		r.state.Store(reserveSpent)
		return
	}
	r.state.Store(reserveThere)
}

// replaceFile is replaceFile on a disk that may be full.
func (r *reserve) replaceFile(path string, data []byte) error {
	err := replaceFile(r.files, path, data)
	if !isFull(err) || len(data) > reserveBytes || !r.state.CompareAndSwap(reserveThere, reserveBusy) {
		return err
	}
	err = r.becomeFile(path, data)
	r.state.Store(reserveSpent)
	r.fill() // What it had too much, and what the file had before, may do.
	return err
}

// becomeFile gives a file other content, with the room of the reserve.
func (r *reserve) becomeFile(path string, data []byte) error {
	temporary := path + temporarySuffix
	if err := r.files.rename(r.path, temporary); err != nil {
		return err
	}
	f, err := r.files.open(temporary, os.O_RDWR)
	if err != nil {
		return errors.Join(err, r.files.remove(temporary))
	}
	if err := f.truncate(int64(len(data))); err != nil {
		return errors.Join(err, f.Close(), r.files.remove(temporary))
	}
	return finishFile(r.files, f, path, data)
}

// isFull tells whether an operation has failed for want of room.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }
