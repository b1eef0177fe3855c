package robust

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// errLocked: another has the lock of a file.
var errLocked = errors.New("locked by another")

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
