package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// writeHead writes where and with what was measured.
func writeHead(w io.Writer, s *settings, command string, now time.Time) {
	fmt.Fprintf(w, "## Side by side, %s\n\n", now.UTC().Format("2006-01-02"))
	fmt.Fprintf(w, "`%s`\n\n", command)
	fmt.Fprintf(w, "%s, %d CPUs, %s/%s, %s, %s. Each run lasts %v, warming up apart; %d of each, one contestant after the other, and then again; "+
		"the median of each figure. Loopback, random payloads, broker and client in processes of their own. "+
		"Only ratios within one table mean something.\n",
		processor(), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, kernel(), runtime.Version(), s.duration, s.count)
}

// writeContestants writes what took part, what an acknowledgement is worth there, and
// what could not take part.
func writeContestants(w io.Writer, rows []row) {
	fmt.Fprint(w, "\n### Who took part\n\n| | rows | versions | an acknowledged message is |\n|---|---|---|---|\n")
	var missing []string
	for _, c := range contestants() {
		a := c.about()
		if a.missing != "" {
			missing = append(missing, fmt.Sprintf("%s did not take part: %s.", a.title, a.missing))
			continue
		}
		for _, r := range rows {
			if r.Contestant == a.name && len(r.Results) > 0 {
				fmt.Fprintf(w, "| %s | %s | %s | %s |\n", a.title, a.name, a.version, a.sync)
				break
			}
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(missing, "\n"))
	}
}

// processor is the name that the system has for its processor.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown processor"
}

// kernel is the name of the operating system's kernel and its version.
func kernel() string {
	//nolint:noctx // it ends by itself
	out, err := exec.Command("uname", "-sr").Output()
	if err != nil {
		return "unknown kernel"
	}
	return strings.TrimSpace(string(out))
}
