package robust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// fileSystem is what the log asks of the operating system. Names are paths. What is
// written to a file survives a crash of the machine once sync has returned, and a
// name that was made, changed or removed once syncDir of its directory has.
type fileSystem interface {
	// open opens a file for reading and writing; flag as for os.OpenFile. What os.O_TRUNC empties
	// must be no symbolic link. Otherwise whoever opens it knows, from list or regular, that it is
	// a file.
	open(name string, flag int) (file, error)
	// regular fails where something else than a file, or a symbolic link to one, has its name. It
	// does not where there is nothing.
	regular(name string) error
	mkdir(name string) error
	// list returns what is in a directory, in order of name.
	list(dir string) ([]fileInfo, error)
	// rename moves a file or directory, in place of a file of the new name.
	rename(from, to string) error
	// remove removes a file or an empty directory.
	remove(name string) error
	syncDir(dir string) error
	// lock takes a lock of the file, which it makes, until the closer is closed or
	// the process ends, and puts content into it. If another has it the error is
	// ErrDataDirInUse and holder what that has put there. Without content (nil) it neither
	// makes nor changes the file. It holds, too, when somebody removes the file.
	lock(name string, content []byte) (held io.Closer, holder []byte, err error)
}

// file is an open file. ReadAt and WriteAt may be called concurrently.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	truncate(size int64) error
	// sync returns when all that was written before has reached stable storage. After
	// an error nobody knows what has, and calling it again would not tell.
	sync() error
	size() (int64, error)
}

// fileInfo is an entry of a directory. Of a symbolic link it tells what that leads to.
type fileInfo struct {
	name string
	size int64
	dir  bool
	link bool
	odd  bool // neither a file nor a directory
}

// errNameless: a file has been removed under whoever has it open.
var errNameless = errors.New("somebody has removed the file")

// osFiles is the operating system's file system. What it makes is for the process' user alone,
// and to be read by the group as far as shared says.
type osFiles struct {
	shared os.FileMode // what the group may do with directories
}

// osFilesOf returns the file system for a data directory. Its group may read what is made there
// if it may read the directory, which is private if it is still to be made.
func osFilesOf(dir string) osFiles {
	const group = 0o050
	info, err := os.Stat(dir)
	if err != nil {
		return osFiles{}
	}
	return osFiles{shared: info.Mode().Perm() & group}
}

func (o osFiles) filePerm() os.FileMode { return 0o600 | o.shared&0o444 }

type osFile struct{ *os.File }

func (o osFiles) open(name string, flag int) (file, error) {
	if flag&os.O_TRUNC != 0 {
		if err := checkPlace(name, true); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, flag, o.filePerm())
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFiles) regular(name string) error { return checkPlace(name, false) }

func (o osFiles) mkdir(name string) error { return os.Mkdir(name, 0o700|o.shared) }

func (osFiles) list(dir string) ([]fileInfo, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if info, e := os.Lstat(dir); e == nil && info.Mode()&fs.ModeSymlink != 0 {
			return nil, &os.PathError{Op: "open", Path: dir, Err: errNowhere}
		}
	}
	if err != nil {
		return nil, err
	}
	infos := make([]fileInfo, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // Removed meanwhile.
		}
		if err != nil {
			return nil, err
		}
		listed := fileInfo{name: e.Name(), size: info.Size(), dir: e.IsDir(), odd: isOdd(info)}
		if info.Mode()&fs.ModeSymlink != 0 {
			if listed, err = follow(dir, e.Name()); err != nil {
				return nil, err
			}
		}
		infos = append(infos, listed)
	}
	return infos, nil
}

// follow tells what a symbolic link leads to. Nothing may take it for a file that is not there: the
// disk may be away on which it is.
func follow(dir, name string) (fileInfo, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileInfo{}, fmt.Errorf("%w: %s is a symbolic link that leads nowhere", ErrStorage, path)
	}
	if err != nil {
		return fileInfo{}, err
	}
	return fileInfo{name: name, size: info.Size(), dir: info.IsDir(), link: true, odd: isOdd(info)}, nil
}

func isOdd(info fs.FileInfo) bool { return !info.IsDir() && !info.Mode().IsRegular() }

func (osFiles) rename(from, to string) error { return os.Rename(from, to) }
func (osFiles) remove(name string) error     { return os.Remove(name) }

func (osFiles) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (o osFiles) lock(name string, content []byte) (held io.Closer, holder []byte, err error) {
	// The directory comes first: a lock of the file alone would be nobody's once the file is
	// removed by hand.
	dir, err := lockDir(filepath.Dir(name))
	if errors.Is(err, errLocked) {
		return nil, readHolder(name), ErrDataDirInUse
	}
	if err != nil {
		return nil, nil, err
	}
	held, holder, err = lockFile(name, content, o.filePerm())
	if err == nil {
		return bothLocks{dir, held}, nil, nil
	}
	if dir != nil {
		_ = dir.Close() // Only its lock mattered.
	}
	if errors.Is(err, errLocked) {
		err = ErrDataDirInUse
	}
	return nil, holder, err
}

// readHolder returns what is in a lock file, if there is one. It only serves a message.
func readHolder(name string) []byte {
	if checkPlace(name, true) != nil {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	holder, _ := io.ReadAll(io.LimitReader(f, 1<<10))
	_ = f.Close() // It was only read.
	return holder
}

func (f osFile) truncate(size int64) error { return f.Truncate(size) }

// sync fails for a file that has no name any more, since somebody has removed it: what is written
// there ends with the process, whatever the system says.
func (f osFile) sync() error {
	if err := f.Sync(); err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && nameless(info) {
		// Some file systems count no names at all.
		if named, e := os.Stat(f.Name()); e != nil || !os.SameFile(info, named) {
			err = &os.PathError{Op: "sync", Path: f.Name(), Err: errNameless}
		}
	}
	return err
}

func (f osFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// storageError is what a failed operation on files is to those who asked for it.
func storageError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrStorage), errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnsupported):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err // Nothing has failed.
	default:
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
}
