package main

import (
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/charmbracelet/x/ansi"
)

// painter gives colours to what is printed on a terminal, and leaves the rest alone. It is for
// the styles that every terminal with colours has.
type painter struct {
	topStyles

	on bool
}

// newPainter looks at what the file is and what the environment wants.
func newPainter(f *os.File) painter {
	return painter{topStyles: newTopStyles(), on: isTerminal(f) && colorprofile.Detect(f, os.Environ()) > colorprofile.ASCII}
}

func (p painter) text(style lipgloss.Style, s string) string {
	if !p.on {
		return s
	}
	return style.Render(s)
}

// figures are those of a measurement so far.
type figures struct {
	done, total int64
	bytes       int64
	latency     bool  // whether there are the next
	p50, p99    int64 // microseconds
}

// liveLine shows the figures of a measurement while it runs, in a line that is gone when it
// ends. A nil one shows nothing.
type liveLine struct {
	name       string
	paint      painter
	rates      series // messages a second, by tick
	last       figures
	at         time.Time
	end, ended chan struct{}
}

// liveTick is how often figures are looked at.
const liveTick = 200 * time.Millisecond

// startLive shows figures if standard error is a terminal.
func (a *app) startLive(name string, now func() figures) *liveLine {
	if a.json || !obeys(a.stderr) {
		return nil
	}
	l := &liveLine{name: name, paint: newPainter(a.stderr), at: time.Now(), end: make(chan struct{}), ended: make(chan struct{})}
	go l.run(a, now)
	return l
}

func (l *liveLine) run(a *app, now func() figures) {
	defer close(l.ended)
	tick := time.NewTicker(liveTick)
	defer tick.Stop()
	for {
		select {
		case <-l.end:
			a.line.clear()
			return
		case at := <-tick.C:
			l.take(now(), at)
			a.line.draw(a.stderr, l.text(lineWidth(a.stderr)))
		}
	}
}

// take notes the figures of a tick.
func (l *liveLine) take(f figures, at time.Time) {
	if took := at.Sub(l.at).Seconds(); took > 0 {
		l.rates.add(float64(f.done-l.last.done) / took)
	}
	l.last, l.at = f, at
}

// text is the line, no longer than that. The rate is that of the last second.
func (l *liveLine) text(width int) string {
	f, recent := l.last, l.rates[max(0, len(l.rates)-int(time.Second/liveTick)):]
	var rate float64
	for _, r := range recent {
		rate += r / float64(len(recent))
	}
	share := float64(f.done) / float64(max(1, f.total))
	perByte := float64(f.bytes) / float64(max(1, f.done))
	parts := []string{
		l.paint.text(l.paint.number, l.name) + " " + l.paint.text(l.paint.spark, fmt.Sprintf("%-20s", barText(share, 20))) + fmt.Sprintf(" %3.0f %%", math.Floor(100*share)),
		l.paint.text(l.paint.number, fmt.Sprintf("%9s", countText(rate))) + " msg/s",
		fmt.Sprintf("%11s", bytesText(int64(rate*perByte))+"/s"),
	}
	if f.latency {
		parts = append(parts, l.paint.text(l.paint.dim, "p50 ")+micros(f.p50)+l.paint.text(l.paint.dim, "  p99 ")+micros(f.p99))
	}
	line := strings.Join(parts, "  ")
	if room := min(width-lipgloss.Width(line)-2, 60, len(l.rates)); room > 0 {
		line += "  " + l.paint.text(l.paint.spark, sparkline(l.rates, room))
	}
	return ansi.Truncate(line, width, "…")
}

// barText is a bar that is full at a share of 1; what is little is not nothing.
func barText(share float64, width int) string {
	eighths := int(math.Round(min(1, max(0, share)) * float64(width*8)))
	if eighths == 0 && share > 0 {
		eighths = 1
	}
	text := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		text += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return text
}

// stop removes the line and waits until it is gone.
func (l *liveLine) stop() {
	if l == nil {
		return
	}
	close(l.end)
	<-l.ended
}
