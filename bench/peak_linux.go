package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// peak is the largest resident size that a process had since resetPeak; its name is
// "self" or a number.
func peak(process string) int64 {
	text, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// resetPeak has peak count anew. Where the system does not let it, the peak is that of
// the process's whole life.
func resetPeak(process string) {
	_ = os.WriteFile("/proc/"+process+"/clear_refs", []byte("5"), 0)
}

// dieWithParent has a program killed when the thread that starts it ends.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
