//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package robust

import (
	"math"
	"syscall"
)

// openFileLimit returns how many files the process may have open, as far as is known.
func openFileLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt32
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)) //nolint:unconvert // signed on some systems
}
