package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/alecthomas/kong"
	"github.com/posener/complete"
	"github.com/willabides/kongplete"

	"github.com/aminofox/robust-go-sdk"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Each script has the program itself answer, which is given the line up to the cursor.
// PROGRAM is the program as a word; bash takes a word that is a command.
const bashCompletion = `complete -C COMMAND robust
`

// A value behind = is all that is completed, so zsh and fish must be told that it begins there.
const zshCompletion = `#compdef robust
_robust() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" PROGRAM)}")
    [[ $PREFIX == --*=* ]] && compset -P '*='
    compadd -- ${found:#}
}
if [[ ${funcstack[1]} == _robust ]]; then
    _robust "$@"
else
    (( $+functions[compdef] )) || { autoload -U compinit && compinit }
    compdef _robust robust
fi
`

const fishCompletion = `function __complete_robust
    set -lx COMP_LINE (commandline -cp)
    set -l before (commandline -ct | string match -r -- '^--[^=]*=')
    if test -z (commandline -ct)
        set COMP_LINE "$COMP_LINE "
    end
    for found in (PROGRAM)
        echo "$before$found"
    end
end
complete -f -c robust -a "(__complete_robust)"
`

// Run prints what the shell is to read.
func (c *completionCmd) Run(a *app) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	script := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Shell]
	text := strings.NewReplacer("PROGRAM", quoteWord(program), "COMMAND", quoteWord(quoteWord(program))).Replace(script)
	_, err = a.stdout.WriteString(text)
	return err
}

// quoteWord makes any text a word of a shell.
func quoteWord(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("/._-+", r)
	}
	if s != "" && strings.TrimFunc(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// withoutGlobals takes the flags that every command has, and their values, out of a line that
// is to be completed: the library would take the values for arguments of the command. What
// is being typed stays.
func withoutGlobals(line string, global *kong.Node) string {
	takes := make(map[string]bool) // a value, by name
	for _, flag := range global.Flags {
		takes["--"+flag.Name] = !flag.IsBool()
		if flag.Short != 0 {
			takes["-"+string(flag.Short)] = !flag.IsBool()
		}
	}
	words := strings.Split(line, " ")
	last := len(words) - 1
	kept := words[:0:0]
	for i := 0; i <= last; i++ {
		name, _, assigned := strings.Cut(words[i], "=")
		value, known := takes[name]
		end := i
		if known && value && !assigned {
			end++
		}
		if known && end < last {
			i = end
			continue
		}
		kept = append(kept, words[i])
	}
	return strings.Join(kept, " ")
}

// completeWords answers the shell and ends the program, if it is the shell that asks.
func completeWords(parser *kong.Kong) {
	line := os.Getenv("COMP_LINE")
	if point, err := strconv.Atoi(os.Getenv("COMP_POINT")); err == nil && point >= 0 && point < len(line) {
		line = line[:point]
	}
	brokers := completionBrokers(strings.Fields(line))
	if line != "" {
		// The library reads the environment.
		_ = os.Setenv("COMP_LINE", withoutGlobals(line, parser.Model.Node))
		_ = os.Unsetenv("COMP_POINT")
	}
	kongplete.Complete(parser,
		kongplete.WithPredictor("file", complete.PredictFiles("*")),
		kongplete.WithPredictor("dir", complete.PredictDirs("*")),
		kongplete.WithPredictor("position", complete.PredictSet("oldest", "newest")),
		kongplete.WithPredictor("compression", complete.PredictSet("none", "gzip", "snappy", "lz4", "zstd")),
		kongplete.WithPredictor("format", complete.PredictSet("value", "keyed", "json", "raw")),
		kongplete.WithPredictor("topic", predictFromBroker(brokers, func(ctx context.Context, admin *robust.AdminClient) ([]string, error) {
			return admin.ListTopics(ctx)
		})),
		kongplete.WithPredictor("group", predictFromBroker(brokers, func(ctx context.Context, admin *robust.AdminClient) ([]string, error) {
			groups, err := admin.ListGroups(ctx)
			names := make([]string, len(groups))
			for i, g := range groups {
				names[i] = g.ID
			}
			return names, err
		})),
	)
}

// predictFromBroker asks the broker that the command would ask for names. A shell that
// waits must not wait for long, nor be told what went wrong.
func predictFromBroker(brokers []string, list func(ctx context.Context, admin *robust.AdminClient) ([]string, error)) complete.Predictor { //nolint:ireturn // what kongplete takes
	return complete.PredictFunc(func(complete.Args) []string {
		a := &app{stderr: os.Stderr, brokers: brokers, timeout: time.Second}
		ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
		defer cancel()
		var names []string
		_ = a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) (err error) {
			names, err = list(ctx, admin)
			return err
		})
		// What is no word of a shell by itself cannot be put there.
		return slices.DeleteFunc(names, func(name string) bool { return quoteWord(name) != name })
	})
}

// completionBrokers finds the brokers on the line, in the environment or in the file, which
// nobody has parsed yet.
func completionBrokers(words []string) []string {
	value := func(long, short string) (last string) {
		for i, word := range words {
			if text, found := strings.CutPrefix(word, long+"="); found {
				last = text
			} else if (word == long || word == short) && i+1 < len(words) {
				last = words[i+1]
			}
		}
		return last
	}
	if brokers := value("--brokers", "-b"); brokers != "" {
		return strings.Split(brokers, ",")
	}
	if brokers := os.Getenv("ROBUST_BROKERS"); brokers != "" {
		return strings.Split(brokers, ",")
	}
	files := configFiles()
	for _, name := range []string{os.Getenv("ROBUST_CONFIG"), value("--config", "")} {
		if name != "" {
			files = []string{name}
		}
	}
	for _, name := range files {
		if brokers := brokersOfFile(name); len(brokers) > 0 {
			return brokers
		}
	}
	return []string{robust.DefaultAddr}
}

// brokersOfFile are none where anything is wrong.
func brokersOfFile(name string) (brokers []string) {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var values struct {
		Brokers any `toml:"brokers"`
	}
	if err := decodeTOML(f, &values); err != nil {
		return nil
	}
	switch listed := values.Brokers.(type) {
	case string:
		return strings.Split(listed, ",")
	case []any:
		for _, one := range listed {
			brokers = append(brokers, fmt.Sprint(one))
		}
	}
	return brokers
}
