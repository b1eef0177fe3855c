// Robust is the command line of the Robust message queue: the broker as a server, and what
// one needs beside it to see what is there, to send and to read. README.md describes it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// cli is what may stand on the command line. The comments of its fields are their help.
type cli struct {
	Brokers []string         `short:"b" env:"ROBUST_BROKERS" default:"localhost:8686" placeholder:"HOST:PORT" help:"Brokers to begin with (${env})."`
	Timeout time.Duration    `env:"ROBUST_TIMEOUT" default:"5s" help:"How long to look for a broker, and to wait for an answer of few bytes (${env})."`
	Output  string           `short:"o" enum:"table,json" default:"table" env:"ROBUST_OUTPUT" help:"Form of results: table or json (${env})."`
	Config  kong.ConfigFlag  `env:"ROBUST_CONFIG" placeholder:"FILE" help:"TOML file with values for flags (${env}; robust.toml in the user's configuration directory if it is there)."`
	Verbose bool             `short:"v" help:"Log what the client does about failures."`
	Version kong.VersionFlag `help:"Print the version and end."`

	Serve   serveCmd   `cmd:"" help:"Run a broker."`
	Topic   topicCmd   `cmd:"" help:"Create, list, describe and delete topics."`
	Produce produceCmd `cmd:"" help:"Send messages from standard input or files."`
	Consume consumeCmd `cmd:"" help:"Read messages."`
	Group   groupCmd   `cmd:"" help:"List, describe, reset and delete consumer groups."`
	Log     logCmd     `cmd:"" help:"Check or repair the data directory of a broker that is not running."`
	Ping    pingCmd    `cmd:"" help:"Ask whether a broker answers, for health checks."`
	Bench   benchCmd   `cmd:"" help:"Measure a broker."`
	Top     topCmd     `cmd:"" help:"Watch topics, groups and brokers."`

	Completion completionCmd `cmd:"" help:"Print what makes a shell complete commands, flags, topics and groups."`
}

func main() {
	// A pipe whose reader has gone makes writes fail, and what was read can end in good order.
	signal.Ignore(syscall.SIGPIPE)
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // As nohup has it.
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	// The second signal kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run does what args ask for and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr *os.File) int {
	var c cli
	parser, err := kong.New(&c,
		kong.Name("robust"),
		kong.Description("The Robust message queue: a broker, and tools beside it.\n\n"+exitCodesHelp),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.Configuration(loadTOML, configFiles()...),
		kong.Vars{"version": version()},
		kong.Writers(stdout, stderr),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		// The configuration file is read by now.
		fmt.Fprintln(stderr, "robust:", err)
		return exitUsage
	}
	completeWords(parser)
	parsed, err := parser.Parse(asFlags(args))
	if err != nil {
		return reportUsage(stderr, err)
	}
	a := &app{
		stdin: stdin, stdout: stdout, stderr: stderr,
		brokers: c.Brokers, timeout: c.Timeout, json: c.Output == "json", verbose: c.Verbose,
	}
	return report(stderr, a, parsed.Run(a))
}

// asFlags has help and version mean the flags of these names.
func asFlags(args []string) []string {
	switch {
	case len(args) > 0 && args[0] == "help":
		return append(slices.Clone(args[1:]), "--help")
	case len(args) == 1 && args[0] == "version":
		return []string{"--version"}
	}
	return args
}

// reportUsage says what is wrong with the command line and where to read on.
func reportUsage(stderr io.Writer, err error) int {
	fmt.Fprintln(stderr, "robust:", err)
	help := "robust --help"
	var wrong *kong.ParseError
	if errors.As(err, &wrong) && wrong.Context != nil {
		if command := wrong.Context.Selected(); command != nil {
			help = commandPath(command) + " --help"
		}
	}
	fmt.Fprintf(stderr, "  see: %s\n", help)
	return exitUsage
}

// commandPath is what is typed to run a command; kong's own path has the aliases in it.
func commandPath(n *kong.Node) string {
	if n.Parent == nil {
		return n.Name
	}
	return commandPath(n.Parent) + " " + n.Name
}

// app is what every command is given.
type app struct {
	stdin          io.Reader
	stdout, stderr *os.File
	brokers        []string
	timeout        time.Duration
	json, verbose  bool
	line           statusLine
	told           notices
}

// notice tells of a failure that ends nothing.
func (a *app) notice(err error) { a.line.aside(func() { a.told.tell(a.stderr, err) }) }

// configFiles are read when they are there, the later before the earlier.
func configFiles() []string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(dir, "robust", "robust.toml")}
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "robust (devel)"
	}
	return fmt.Sprintf("robust %s %s", info.Main.Version, info.GoVersion)
}
