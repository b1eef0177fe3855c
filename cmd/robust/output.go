package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"golang.org/x/term"
)

// show prints a result: v as JSON if that is asked for, else what table writes, in columns
// that tabs separate.
func (a *app) show(v any, table func(w io.Writer)) error {
	if a.json {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(v)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', tabwriter.StripEscape)
	table(w)
	return w.Flush()
}

// row writes the cells of one line.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		if texts[i] = printable(fmt.Sprint(cell)); texts[i] == "" {
			texts[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(texts, "\t"))
}

// orDash is a number that may not be known.
func orDash(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

// printable replaces what would move the cursor or the columns: IDs of groups, members and
// clients are any text of a stranger's.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// obeys says whether the file is a terminal on which the cursor can be moved.
func obeys(f *os.File) bool { return isTerminal(f) && os.Getenv("TERM") != "dumb" }

// plural is a number with its noun.
func plural[N int | int32 | int64](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
