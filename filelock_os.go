//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package robust

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// lockFile takes a lock of the file, which it makes, until the closer is closed or the
// process ends, and puts content into it. If another has it the error is errLocked, and
// holder what that has put there. Without content (nil) it neither makes nor changes the file.
// perm is what the file gets when it is made.
func lockFile(name string, content []byte, perm os.FileMode) (held io.Closer, holder []byte, err error) {
	flag := os.O_RDWR | os.O_CREATE
	if content == nil {
		flag = os.O_RDONLY
	}
	if err := checkPlace(name, content != nil); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		holder, _ = io.ReadAll(io.LimitReader(f, 1<<10)) // It only serves the message.
		return nil, holder, errors.Join(errLocked, f.Close())
	case err != nil:
		return nil, nil, errors.Join(&os.PathError{Op: "lock", Path: name, Err: err}, f.Close())
	}
	if content == nil {
		return f, nil, nil
	}
	// The file stays when the lock is given up: another may be about to take it.
	// Overwriting it takes no room on a full disk.
	if _, err = f.WriteAt(content, 0); err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, nil, nil
}

// lockDir takes a lock of a directory itself, which stays with it whatever becomes of the files
// in it. The error is errLocked if another has it. Where a file system has no such locks, held is
// nil.
func lockDir(name string) (held io.Closer, err error) {
	d, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case err == nil:
		return d, nil
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(errLocked, d.Close())
	}
	return nil, d.Close()
}
