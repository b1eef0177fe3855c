//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package robust

import (
	"fmt"
	"io"
	"os"
	"runtime"
)

// lockFile cannot lock a file so that the lock ends with the process.
func lockFile(string, []byte, os.FileMode) (held io.Closer, holder []byte, err error) {
	return nil, nil, fmt.Errorf("%w: on %s files cannot be locked", ErrUnsupported, runtime.GOOS)
}

// lockDir locks nothing; lockFile has said so.
func lockDir(string) (held io.Closer, err error) { return nil, nil }
