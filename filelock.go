package robust

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

var (
	// errLocked: another has the lock of a file.
	errLocked = errors.New("locked by another")
	// What may stand in the place of a file.
	errIrregular = errors.New("it is not a regular file")
	errLink      = errors.New("it is a symbolic link")
	errNowhere   = errors.New("it is a symbolic link that leads nowhere")
)

// checkPlace fails where a name stands for something else than a file. To open a named pipe would
// wait for who writes to it, and a device may do anything. A symbolic link may lead to a file, but to
// one that is there: what is on a disk that is away must not be taken for missing. Where whatever the
// file has is going to be overwritten (fresh) it must be no link at all: what others have elsewhere
// is theirs.
func checkPlace(name string, fresh bool) error {
	info, err := os.Lstat(name)
	if err == nil && info.Mode()&os.ModeSymlink != 0 {
		if fresh {
			return &os.PathError{Op: "open", Path: name, Err: errLink}
		}
		if info, err = os.Stat(name); errors.Is(err, os.ErrNotExist) {
			return &os.PathError{Op: "open", Path: name, Err: errNowhere}
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return &os.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	case !info.Mode().IsRegular():
		return &os.PathError{Op: "open", Path: name, Err: errIrregular}
	default:
		return nil
	}
}

// lockHolder is what whoever locks a file leaves in it for others to read.
type lockHolder struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// newLockHolder returns what this process leaves in a file that it locks.
func newLockHolder() []byte {
	host, _ := os.Hostname() // Only shown.
	text, err := json.Marshal(lockHolder{os.Getpid(), host, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return nil // A time of five digits; then nobody is named.
	}
	return append(text, '\n')
}

// heldBy says who has a lock, behind a colon, by what has been found in the file; "" if that
// does not tell.
func heldBy(content []byte) string {
	var h lockHolder
	if json.Unmarshal(content, &h) != nil || h.PID == 0 {
		return ""
	}
	return fmt.Sprintf(": by process %d on %s since %s", h.PID, h.Host, h.Since.Format(time.DateTime))
}

// bothLocks are a directory's lock, nil where there is none, and that of a file in it.
type bothLocks struct{ dir, file io.Closer }

func (l bothLocks) Close() error {
	err := l.file.Close()
	if l.dir != nil {
		err = errors.Join(err, l.dir.Close())
	}
	return err
}
