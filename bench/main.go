// Bench measures this repository's client and broker beside others, at the same work,
// in one run. README.md says how to run it and how to read what it prints.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if text := os.Getenv(roleEnv); text != "" {
		os.Exit(runRole(text))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run measures what args ask for, and prints tables to out.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	s := settings{match: regexp.MustCompile("")}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.Func("match", "only rows whose name `regexp` matches, such as produce/100B/1/franz-go", func(text string) (err error) {
		s.match, err = regexp.Compile(text)
		return err
	})
	sizes := flags.String("size", "100 1024", "sizes of messages in `bytes`")
	partitions := flags.String("partitions", "1 6 1000", "`numbers` of partitions")
	flags.DurationVar(&s.duration, "duration", 3*time.Second, "how long each run sends")
	flags.IntVar(&s.count, "count", 3, "runs of each row")
	flags.IntVar(&s.rate, "rate", 2000, "messages a second where latency is measured")
	flags.Int64Var(&s.maxBytes, "max-bytes", 4<<30, "bytes of payload that a run sends at most")
	flags.StringVar(&s.dir, "dir", "", "`directory` for what brokers write (default: that of temporary files)")
	svg := flags.String("svg", "", "`file` to draw the rates into")
	list := flags.Bool("list", false, "print the names of the rows and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if s.sizes, err = numbers(*sizes, 8); err != nil {
		return fmt.Errorf("-size: %w", err)
	}
	if s.partitions, err = numbers(*partitions, 1); err != nil {
		return fmt.Errorf("-partitions: %w", err)
	}
	if s.duration <= 0 || s.count <= 0 || s.rate <= 0 || s.maxBytes <= 0 || flags.NArg() > 0 {
		return errors.New("durations and numbers are to be above 0, and nothing follows the flags")
	}
	if *list {
		return listRows(out, &s)
	}
	rows, runErr := runAll(ctx, &s, progress)
	writeHead(out, &s, commandLine(args), time.Now())
	err = writeTables(out, rows, s.rate)
	writeContestants(out, rows)
	if *svg != "" {
		err = errors.Join(err, writeChart(*svg, rows))
	}
	return errors.Join(runErr, err)
}

// commandLine is what can be typed to measure the same.
func commandLine(args []string) string {
	line := "bench"
	plain := regexp.MustCompile(`^[\w./:=-]+$`)
	for _, arg := range args {
		if !plain.MatchString(arg) {
			arg = "'" + arg + "'"
		}
		line += " " + arg
	}
	return line
}

// numbers reads numbers with white space or commas between them.
func numbers(text string, least int) ([]int, error) {
	var all []int
	for _, field := range strings.Fields(strings.ReplaceAll(text, ",", " ")) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		if n < least {
			return nil, fmt.Errorf("%d is less than %d", n, least)
		}
		all = append(all, n)
	}
	return all, nil
}

func listRows(out io.Writer, s *settings) error {
	for _, heat := range s.heats() {
		for _, j := range heat {
			for _, k := range j.Kinds {
				fmt.Fprintln(out, rowName(k, j.Size, j.Partitions, j.Contestant))
			}
		}
	}
	return nil
}

func writeChart(file string, rows []row) error {
	svg, err := drawChart(rows)
	if err != nil {
		return err
	}
	if svg == nil {
		return errors.New("there is no rate to draw")
	}
	return os.WriteFile(file, svg, 0o644)
}
