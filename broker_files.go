package robust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// fileSystem is what the log asks of the operating system. Names are paths. What is
// written to a file survives a crash of the machine once sync has returned, and a
// name that was made, changed or removed once syncDir of its directory has.
type fileSystem interface {
	// open opens a file for reading and writing; flag as for os.OpenFile.
	open(name string, flag int) (file, error)
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
	// makes nor changes the file.
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

// fileInfo is an entry of a directory.
type fileInfo struct {
	name string
	size int64
	dir  bool
}

// osFiles is the operating system's file system.
type osFiles struct{}

type osFile struct{ *os.File }

func (osFiles) open(name string, flag int) (file, error) {
	f, err := os.OpenFile(name, flag, 0o644)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFiles) mkdir(name string) error { return os.Mkdir(name, 0o755) }

func (osFiles) list(dir string) ([]fileInfo, error) {
	entries, err := os.ReadDir(dir)
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
		infos = append(infos, fileInfo{e.Name(), info.Size(), e.IsDir()})
	}
	return infos, nil
}

func (osFiles) rename(from, to string) error { return os.Rename(from, to) }
func (osFiles) remove(name string) error     { return os.Remove(name) }

func (osFiles) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFiles) lock(name string, content []byte) (held io.Closer, holder []byte, err error) {
	held, holder, err = lockFile(name, content)
	if errors.Is(err, errLocked) {
		return nil, holder, ErrDataDirInUse
	}
	return held, nil, err
}

func (f osFile) truncate(size int64) error { return f.Truncate(size) }
func (f osFile) sync() error               { return f.Sync() }

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
	default:
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
}
