package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows on a terminal how far a long input is, in one line. A nil one shows nothing.
type progress struct {
	end, ended chan struct{}
}

// startProgress shows a bar if standard error is a terminal: size is what there is to do in
// bytes, -1 if that is not known, now what is done. A short input ends before anything is
// shown.
func (a *app) startProgress(quiet bool, size int64, now func() (messages, bytes int64)) *progress {
	if quiet || a.json || !obeys(a.stderr) {
		return nil
	}
	p := &progress{end: make(chan struct{}), ended: make(chan struct{})}
	go p.run(a, size, now)
	return p
}

func (p *progress) run(a *app, size int64, now func() (messages, bytes int64)) {
	defer close(p.ended)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	var bar *progressbar.ProgressBar
	for {
		select {
		case <-p.end:
			a.line.clear()
			return
		case <-tick.C:
		}
		if bar == nil {
			bar = progressbar.NewOptions64(size,
				// It would not know how wide the terminal is by now.
				progressbar.OptionSetWriter(io.Discard),
				progressbar.OptionShowBytes(true),
				progressbar.OptionSetWidth(30),
				// Its own goroutine would draw without looking whether the bar was cleared.
				progressbar.OptionSetSpinnerChangeInterval(0),
			)
		}
		messages, bytes := now()
		bar.Describe(fmt.Sprintf("%d messages", messages))
		// Line ends and separators are read and not sent, so the bar may end a little early.
		if size > 0 {
			bytes = min(bytes, size-1)
		}
		_ = bar.Set64(bytes)
		a.line.draw(a.stderr, strings.Trim(bar.String(), "\r "))
	}
}

// stop removes the bar and waits until it is gone.
func (p *progress) stop() {
	if p == nil {
		return
	}
	close(p.end)
	<-p.ended
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return plural(n, "byte")
}
