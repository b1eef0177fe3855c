package main

import (
	"runtime/debug"
	"time"
)

// usage is what a process has used.
type usage struct {
	CPU  time.Duration // user and system
	Peak int64         // bytes resident at most; 0: not known
}

// ownUsage is the part of a server that runs in the present process.
type ownUsage struct{}

func (ownUsage) usage() (usage, error) { return selfUsage() }

// settle gives back what is not used any more, and has the peak count from there.
func (ownUsage) settle() {
	debug.FreeOSMemory()
	resetPeak("self")
}
