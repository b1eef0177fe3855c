package robust

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// dataFormat is the version of what is kept as JSON.
	dataFormat = 1
	// temporarySuffix is added to the names of files that are not complete yet.
	temporarySuffix = ".tmp"
)

// sealedJSON is how values are kept in files: with a format and a checksum.
type sealedJSON struct {
	Format int             `json:"format"`
	CRC    uint32          `json:"crc32c"` // of data, as it stands there
	Data   json.RawMessage `json:"data"`
}

// replaceJSON keeps a value in a file, in place of what it had.
func replaceJSON(files fileSystem, path string, value any) error {
	data, err := sealJSON(value)
	if err != nil {
		return err
	}
	return replaceFile(files, path, data)
}

// sealJSON returns what a file has that keeps a value.
func sealJSON(value any) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	sealed, err := json.Marshal(sealedJSON{dataFormat, crc32.Checksum(data, castagnoli), data})
	return append(sealed, '\n'), err
}

// replaceFile gives a file other content, at once: after a crash it has the old or the
// new.
func replaceFile(files fileSystem, path string, data []byte) error {
	f, err := files.open(path+temporarySuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	return finishFile(files, f, path, data)
}

// finishFile is replaceFile with a temporary file that is open.
func finishFile(files fileSystem, f file, path string, data []byte) error {
	temporary := path + temporarySuffix
	_, err := f.WriteAt(data, 0)
	if err == nil {
		err = f.sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = files.rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, files.remove(temporary))
	}
	return files.syncDir(filepath.Dir(path))
}

// readJSON reads what replaceJSON has kept.
func readJSON(files fileSystem, path string, value any) error {
	data, err := readFile(files, path)
	if err != nil {
		return storageError(err)
	}
	corrupt := func(reason string) error {
		return &CorruptError{File: path, From: -1, To: -1, Reason: reason}
	}
	var sealed sealedJSON
	if err := json.Unmarshal(data, &sealed); err != nil {
		return corrupt(err.Error())
	}
	switch {
	case crc32.Checksum(sealed.Data, castagnoli) != sealed.CRC:
		return corrupt("checksum is wrong")
	case sealed.Format < 1:
		return corrupt("it names no format")
	case sealed.Format != dataFormat:
		return fmt.Errorf("%w: %s has format %d, known is %d", ErrUnsupported, path, sealed.Format, dataFormat)
	}
	if err := json.Unmarshal(sealed.Data, value); err != nil {
		return corrupt(err.Error())
	}
	return nil
}

// readFile returns the content of a file that was kept with replaceFile.
func readFile(files fileSystem, path string) ([]byte, error) {
	const most = 16 << 20
	if err := files.regular(path); err != nil {
		return nil, err
	}
	f, err := files.open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	size, err := f.size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	data := make([]byte, min(size, most))
	n, err := f.ReadAt(data, 0)
	if isEOF(err) {
		err = nil
	}
	return data[:n], errors.Join(err, f.Close())
}

// makeDir makes a directory that may be there, and what it is in.
func makeDir(files fileSystem, dir string) error {
	err := files.mkdir(dir)
	if errors.Is(err, os.ErrNotExist) && filepath.Dir(dir) != dir {
		if err := makeDir(files, filepath.Dir(dir)); err != nil {
			return err
		}
		err = files.mkdir(dir)
	}
	there := errors.Is(err, os.ErrExist)
	if err != nil && !there {
		return err
	}
	// One that is there may have been made just before a crash; not, where what it is in may not
	// be read, or changed, or cannot be synced: it may belong to others, or be of another kind.
	err = files.syncDir(filepath.Dir(dir))
	if there && (errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EINVAL)) {
		return nil
	}
	return err
}

// removeAll removes a file or a directory with what is in it, but for what symbolic links in it
// lead to, whosever that is.
func removeAll(files fileSystem, path string) error {
	infos, err := files.list(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		for _, info := range infos {
			inner := filepath.Join(path, info.name)
			if info.dir && !info.link {
				err = removeAll(files, inner)
			} else {
				err = files.remove(inner)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := files.remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
