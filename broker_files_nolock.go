//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package robust

import (
	"fmt"
	"io"
	"math"
	"runtime"
)

// Without a lock that ends with its process, two brokers could write to one directory.
func (osFiles) lock(string, []byte) (held io.Closer, holder []byte, err error) {
	return nil, nil, fmt.Errorf("%w: a data directory on %s, where files cannot be locked", ErrUnsupported, runtime.GOOS)
}

// openFileLimit returns how many files the process may have open, as far as is known.
func openFileLimit() int { return math.MaxInt32 }
