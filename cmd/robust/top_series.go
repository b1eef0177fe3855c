package main

import (
	"math"
	"strings"
	"time"
)

// seriesLength is how much of the past is kept, and more than any terminal shows.
const seriesLength = 400

// series is a value as it was look by look; NaN where it is not known.
type series []float64

func (s *series) add(v float64) {
	if len(*s) == seriesLength {
		copy(*s, (*s)[1:])
		*s = (*s)[:seriesLength-1]
	}
	*s = append(*s, v)
}

// last is the newest value, NaN if there is none.
func (s series) last() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	return s[len(s)-1]
}

// peak is the largest of the newest n.
func (s series) peak(n int) float64 {
	var most float64
	for _, v := range s[max(0, len(s)-n):] {
		if v > most { // Not of NaN.
			most = v
		}
	}
	return most
}

// counter is what becomes of a number that rises: how fast.
type counter struct {
	rates series
	seen  float64
	at    time.Time
}

// add notes what the number is at a time.
func (c *counter) add(now float64, at time.Time) {
	rate := math.NaN()
	if took := at.Sub(c.at).Seconds(); !c.at.IsZero() && took > 0 {
		rate = max(0, now-c.seen) / took
	}
	c.seen, c.at = now, at
	c.rates.add(rate)
}

// bars are eighths of a cell.
var bars = [...]rune{' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'} //nolint:gochecknoglobals // a table, never written

// sparkline draws the newest values in so many cells, the newest at the right. What is not
// known is a gap, and what is 0 stays distinct from what is little.
func sparkline(s series, width int) string {
	if width <= 0 {
		return ""
	}
	peak := s.peak(width)
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", max(0, width-len(s))))
	for _, v := range s[max(0, len(s)-width):] {
		switch {
		case math.IsNaN(v):
			b.WriteByte(' ')
		case v <= 0:
			b.WriteRune(bars[1])
		default:
			b.WriteRune(bars[2+int(math.Round(v/peak*6))])
		}
	}
	return b.String()
}

// graph is a sparkline of several rows, from the top.
func graph(s series, width, height int) []string {
	peak := s.peak(width)
	rows := make([]string, height)
	for y := range rows {
		var b strings.Builder
		b.WriteString(strings.Repeat(" ", max(0, width-len(s))))
		for _, v := range s[max(0, len(s)-width):] {
			eighths := 0
			if v > 0 && peak > 0 { // Not of NaN.
				eighths = max(1, int(math.Round(v/peak*float64(height*8))))
			} else if v == 0 {
				eighths = 1
			}
			b.WriteRune(bars[min(8, max(0, eighths-(height-1-y)*8))])
		}
		rows[y] = b.String()
	}
	return rows
}
