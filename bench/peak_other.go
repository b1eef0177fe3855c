//go:build !linux

package main

import "os/exec"

// Only Linux says how much of a process was resident at most since a given moment.

func peak(string) int64       { return 0 }
func resetPeak(string)        {}
func dieWithParent(*exec.Cmd) {}
