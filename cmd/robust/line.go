package main

import (
	"os"
	"sync"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"
)

// statusLine is the line of a terminal that is drawn again and again while a command is at work.
// The zero value has not been drawn.
type statusLine struct {
	mu sync.Mutex // guards the terminal, and f
	f  *os.File   // nil: nothing stands there
}

// draw has the line show a text, as much of it as fits.
func (l *statusLine) draw(f *os.File, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f = f
	_, _ = f.WriteString("\r" + ansi.Truncate(text, lineWidth(f), "…") + "\x1b[K") // Nobody can be told.
}

// aside clears the line for whatever else is to be printed.
func (l *statusLine) aside(show func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_, _ = l.f.WriteString("\r\x1b[K")
		l.f = nil
	}
	show()
}

func (l *statusLine) clear() { l.aside(func() {}) }

// widthOf is how wide a terminal is, 80 where there is none.
func widthOf(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return 80
	}
	return width
}

// lineWidth is how long the line may be: a terminal prints ^C, which must not go on in the next.
func lineWidth(f *os.File) int { return max(0, widthOf(f)-len("^C")-1) }
