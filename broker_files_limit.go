//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package robust

import (
	"math"
	"os"
	"syscall"
)

// nameless tells whether a file that is open has no name any more.
func nameless(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}

// openFileLimit returns how many files the process may have open, as far as is known.
func openFileLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxInt32
	}
	return int(min(uint64(limit.Cur), math.MaxInt32)) //nolint:unconvert // signed on some systems
}
