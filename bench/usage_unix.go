//go:build unix

package main

import (
	"syscall"
	"time"
)

// selfUsage is what the present process has used.
func selfUsage() (usage, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return usage{}, err
	}
	return usage{
		CPU:  time.Duration(r.Utime.Nano() + r.Stime.Nano()),
		Peak: peak("self"),
	}, nil
}
