//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package robust

import "math"

// openFileLimit returns how many files the process may have open, as far as is known.
func openFileLimit() int { return math.MaxInt32 }
