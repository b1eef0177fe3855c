package main

import (
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
)

// newLogHandler logs for people where they look on, else for machines.
func newLogHandler(f *os.File, format string, level slog.Leveler) slog.Handler {
	if format == "text" || (format == "auto" && isTerminal(f)) {
		return tint.NewTextHandler(f, &tint.Options{Level: level, TimeFormat: time.TimeOnly, NoColor: !obeys(f) || os.Getenv("NO_COLOR") != ""})
	}
	return slog.NewJSONHandler(f, &slog.HandlerOptions{Level: level})
}
