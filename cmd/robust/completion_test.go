//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCompletion(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders", "--topic", "payments")
	succeed(t, s.addr, "1\n", "produce", "orders")
	for _, id := range []string{"billing", "two words; $(boom)"} {
		succeed(t, s.addr, "", "consume", "orders", "-g", id, "-n", "1")
	}
	completeAt := func(addr, line string, env ...string) []string {
		cmd := command(t, addr)
		cmd.Env = append(append(cmd.Env, env...), "COMP_LINE="+line)
		out, err := cmd.Output()
		require.NoError(t, err)
		return strings.Fields(string(out))
	}
	config := writeFile(t, "brokers = [\""+s.addr+"\"]\n")
	for line, want := range map[string][]string{
		"robust t":                               {"topic", "top"},
		"robust topic ":                          {"create", "list", "describe", "delete"},
		"robust consume p":                       {"payments"},
		"robust consume orders -g ":              {"billing"},
		"robust consume orders --from ":          {"oldest", "newest"},
		"robust consume orders --to=":            {"follow", "end"},
		"robust group reset b":                   {"billing"},
		"robust group reset billing p":           {"payments"},
		"robust group reset billing p --dr":      {"--dry-run"},
		"robust produce orders -z s":             {"snappy"},
		"robust bench produce --topic o":         {"orders"},
		"robust top --on":                        {"--once"},
		"robust completion ":                     {"bash", "zsh", "fish"},
		"robust serve --retention":               {"--retention", "--retention-bytes"},
		"robust -b 127.0.0.1:1 topic describe o": nil,
	} {
		require.ElementsMatch(t, want, completeAt(s.addr, line), line)
	}
	absent := absentAddr(t)
	require.Equal(t, []string{"orders"}, completeAt(absent, "robust consume --brokers="+s.addr+" o"))
	require.Equal(t, []string{"orders"}, completeAt(absent, "robust consume -b "+s.addr+" o"))
	require.Equal(t, []string{"orders"}, completeAt("", "robust consume --config "+config+" o"))
	require.Equal(t, []string{"orders"}, completeAt("", "robust consume o", "ROBUST_CONFIG="+config))
}

// TestCompletionInShells: the shells themselves, with the script that they are given, on a
// terminal at which somebody types.
func TestCompletionInShells(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders", "--topic", "payments")
	for shell, args := range map[string][]string{
		"bash": {"--norc", "--noprofile", "-i"},
		"zsh":  {"-f", "-i"},
		"fish": {"--no-config", "--private", "-i"},
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed, so nothing was completed in it: %v", shell, err)
			}
			// A directory that must be quoted.
			dir := filepath.Join(t.TempDir(), "it's here")
			require.NoError(t, os.Mkdir(dir, 0o700))
			program := filepath.Join(dir, "robust")
			require.NoError(t, os.Symlink(os.Args[0], program))
			script := filepath.Join(dir, "script")
			cmd := command(t, "", "completion", shell)
			cmd.Path = program
			text, err := cmd.Output()
			require.NoError(t, err)
			// The program finds out by itself where it is, behind the link.
			word := quoteWord(program)
			if shell == "bash" {
				word = quoteWord(word)
			}
			require.Contains(t, string(text), quoteWord(os.Args[0]))
			require.NoError(t, os.WriteFile(script, []byte(strings.ReplaceAll(string(text), quoteWord(os.Args[0]), word)), 0o600))

			sh := command(t, s.addr)
			sh.Path, sh.Args, sh.Dir = path, append([]string{shell}, args...), dir
			sh.Env = append(sh.Env, "PS1=$ ", "PROMPT=$ ", "LANG=C.UTF-8", "TERM=xterm-256color")
			e := onScreen(t, sh)
			e.press("source ./script; echo read''y\n")
			e.until("ready")
			for typed, want := range map[string]string{
				"robust comp\t":                         "robust completion ",
				"robust topic desc\tpay\t":              "robust topic describe payments",
				"robust top --onc\t":                    "robust top --once",
				"robust group reset g pay\t--dry\t":     "robust group reset g payments --dry-run",
				"robust bench late\t--output=js\t":      "robust bench latency --output=json",
				"robust consume orders --from newe\t":   "robust consume orders --from newest",
				"echo before; robust produce -z snap\t": "echo before; robust produce -z snappy",
			} {
				e.press(typed)
				e.until(strings.TrimSpace(want))
				e.press("\x15") // Ctrl-U clears the line.
			}
			e.press("\x15exit\n")
			require.NoError(t, sh.Wait())
		})
	}
}
