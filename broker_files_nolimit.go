//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package robust

import (
	"math"
	"os"
)

// nameless tells whether a file that is open has no name any more, as far as is known.
func nameless(os.FileInfo) bool { return false }

// openFileLimit returns how many files the process may have open, as far as is known.
func openFileLimit() int { return math.MaxInt32 }
