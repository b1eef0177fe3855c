package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/posener/complete"
	"github.com/willabides/kongplete"

	"github.com/aminofox/robust-go-sdk"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

const bashCompletion = `complete -C %[1]s robust
`

const zshCompletion = `autoload -U +X bashcompinit && bashcompinit
complete -C %[1]s robust
`

const fishCompletion = `function __complete_robust
    set -lx COMP_LINE (commandline -cp)
    test -z (commandline -ct)
    and set COMP_LINE "$COMP_LINE "
    %[1]s
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
	_, err = fmt.Fprintf(a.stdout, script, program)
	return err
}

// completeWords answers the shell and ends the program, if it is the shell that asks.
func completeWords(parser *kong.Kong) {
	kongplete.Complete(parser,
		kongplete.WithPredictor("file", complete.PredictFiles("*")),
		kongplete.WithPredictor("dir", complete.PredictDirs("*")),
		kongplete.WithPredictor("topic", predictFromBroker(func(ctx context.Context, admin *robust.AdminClient) ([]string, error) {
			return admin.ListTopics(ctx)
		})),
		kongplete.WithPredictor("group", predictFromBroker(func(ctx context.Context, admin *robust.AdminClient) ([]string, error) {
			groups, err := admin.ListGroups(ctx)
			names := make([]string, len(groups))
			for i, g := range groups {
				names[i] = g.ID
			}
			return names, err
		})),
	)
}

// predictFromBroker asks the broker of the environment for names. A shell that waits must
// not wait for long, nor be told what went wrong.
func predictFromBroker(list func(ctx context.Context, admin *robust.AdminClient) ([]string, error)) complete.Predictor { //nolint:ireturn // what kongplete takes
	return complete.PredictFunc(func(complete.Args) []string {
		a := &app{stderr: os.Stderr, brokers: []string{robust.DefaultAddr}, timeout: time.Second}
		if brokers := os.Getenv("ROBUST_BROKERS"); brokers != "" {
			a.brokers = strings.Split(brokers, ",")
		}
		ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
		defer cancel()
		var names []string
		_ = a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) (err error) {
			names, err = list(ctx, admin)
			return err
		})
		return names
	})
}
