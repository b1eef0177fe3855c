package main

import (
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
)

// newLogHandler logs for people where they look on, else for machines.
func newLogHandler(f *os.File, format string, level slog.Leveler) slog.Handler {
	terminal := isTerminal(f)
	if format == "text" || (format == "auto" && terminal) {
		return tint.NewTextHandler(f, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !terminal || os.Getenv("NO_COLOR") != ""})
	}
	return slog.NewJSONHandler(f, &slog.HandlerOptions{Level: level})
}
