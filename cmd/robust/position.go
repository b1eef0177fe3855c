package main

import (
	"encoding"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

// position is a place in the log of a partition, as the command line names it.
type position struct {
	offset int64     // or OffsetOldest, OffsetNewest
	at     time.Time // beats offset
}

var _ encoding.TextUnmarshaler = (*position)(nil)

const positionHelp = "oldest, newest, an offset, a time (2006-01-02, 2006-01-02T15:04:05Z) or a span back from now (-90m, -7d)"

// UnmarshalText reads what positionHelp names.
func (p *position) UnmarshalText(raw []byte) error {
	text := string(raw)
	*p = position{}
	switch text {
	case "oldest":
		p.offset = robust.OffsetOldest
		return nil
	case "newest":
		p.offset = robust.OffsetNewest
		return nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		p.offset = n
		return nil
	}
	if back, found := strings.CutPrefix(text, "-"); found {
		if d, err := parseSpan(back); err == nil {
			p.at = time.Now().Add(-d)
			return nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, time.DateOnly} {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			p.at = at
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", text, positionHelp)
}

// span is a time as the command line takes it where days are usual.
type span time.Duration

var _ encoding.TextUnmarshaler = (*span)(nil)

// UnmarshalText reads what parseSpan does.
func (s *span) UnmarshalText(text []byte) error {
	d, err := parseSpan(string(text))
	if err != nil {
		return fmt.Errorf("%q is no time such as 72h or 3d", text)
	}
	*s = span(d)
	return nil
}

// parseSpan reads what time.ParseDuration does, with days of 24 hours before it.
func parseSpan(text string) (time.Duration, error) {
	days, rest, found := strings.Cut(text, "d")
	if !found {
		return time.ParseDuration(text)
	}
	n, err := strconv.ParseUint(days, 10, 16) // Of longer ones there are no Durations.
	if err != nil || rest == "" {
		return time.Duration(n) * 24 * time.Hour, err
	}
	d, err := time.ParseDuration(rest)
	return time.Duration(n)*24*time.Hour + d, err
}

func outOfRange(topic string, partition int32, oldest, newest, at int64) error {
	return fmt.Errorf("partition %d of topic %s has the offsets %d to %d, not %d: %w",
		partition, topic, oldest, newest, at, robust.ErrOffsetOutOfRange)
}

func (p position) consumerOption() robust.ConsumerOption {
	if !p.at.IsZero() {
		return robust.WithStartTime(p.at)
	}
	return robust.WithStartOffset(p.offset)
}

func (p position) resetTo() robust.ResetTo {
	if !p.at.IsZero() {
		return robust.ToTime(p.at)
	}
	return robust.ToOffset(p.offset)
}
