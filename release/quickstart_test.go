package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// block is a fenced block of commands, and what the page says that they print; "" if it
// does not.
type block struct{ commands, prints string }

func blocks(t *testing.T, page string) (found []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile("(?m)^```sh\n((?:.*\n)+?)```\n(?:\n```text\n((?:.*\n)*?)```\n)?").FindAllStringSubmatch(string(text), -1) {
		found = append(found, block{m[1], m[2]})
	}
	return found
}

// shell runs blocks one after the other, as if they were typed into one terminal.
type shell struct {
	env   []string
	state string // a script that goes on where the last block ended
}

func newShell(t *testing.T, dir string, env []string) *shell {
	t.Helper()
	s := &shell{env: env, state: filepath.Join(t.TempDir(), "state")}
	require.NoError(t, os.WriteFile(s.state, []byte("cd '"+dir+"'\n"), 0o600))
	return s
}

func (s *shell) run(t *testing.T, commands string) string {
	t.Helper()
	script := ". '" + s.state + "'\n" + commands + "{ export -p; printf 'cd %q\\n' \"$PWD\"; } >'" + s.state + "'\n"
	return output(t, "", s.env, "bash", "-eo", "pipefail", "-c", script)
}

// TestQuickstart runs the commands of examples/QUICKSTART.md, word for word, but for those that
// need Docker or the network. The server has a port of its own, in case 8686 is taken.
func TestQuickstart(t *testing.T) {
	unixOnly(t)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	page := blocks(t, filepath.Join(root, "examples", "QUICKSTART.md"))
	// A home that is empty, with what was compiled and downloaded all the same.
	home := t.TempDir()
	env := building("HOME="+home, "GOBIN="+filepath.Join(home, "bin"), "PATH="+filepath.Join(home, "bin")+":"+os.Getenv("PATH"))
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		env = append(env, name+"="+strings.TrimSpace(output(t, root, building(), "go", "env", name)))
	}
	sh := newShell(t, root, env)

	const documented = "localhost:8686"
	addr := ""
	count := 0
	for _, b := range page {
		switch {
		case strings.Contains(b.commands, "docker "), strings.Contains(b.commands, "git clone "):
			continue
		case strings.HasPrefix(b.commands, "robust serve "):
			require.Empty(t, addr, "there is one server")
			require.Equal(t, "listening on 127.0.0.1:8686\n", b.prints)
			addr = serve(t, env, "bash", "-c", "exec "+b.commands).addr
			sh.env = append(sh.env, "ROBUST_BROKERS="+addr)
			count++
			continue
		}
		got := sh.run(t, strings.ReplaceAll(b.commands, documented, addr))
		if b.prints != "" {
			got = strings.ReplaceAll(got, addr, documented)
			require.Equal(t, steady(b.prints), steady(got), "%s", b.commands)
		}
		count++
	}
	require.GreaterOrEqual(t, count, 12)
	require.NotEmpty(t, addr)
	require.FileExists(t, filepath.Join(home, "robust-data", "robust.json"))
}

// steady is what a command prints without what differs from one run to the next.
func steady(text string) string {
	return regexp.MustCompile(`\d+(\.\d+)?(ns|µs|ms|s)\b|\d+ messages/s|\d+ requests in \d+ writes, \d+ bytes|\d+\.\d %`).ReplaceAllString(text, "?")
}

// TestQuickstartDocker holds that what the page has done by Docker are commands of the client
// that is here.
func TestQuickstartDocker(t *testing.T) {
	var commands []string
	for _, b := range blocks(t, filepath.Join("..", "examples", "QUICKSTART.md")) {
		for line := range strings.Lines(b.commands) {
			if strings.HasPrefix(line, "docker ") {
				commands = append(commands, strings.TrimSpace(line))
			}
		}
	}
	require.True(t, slices.Contains(commands, "docker compose up -d"))
	require.True(t, slices.Contains(commands, "docker compose down -v"))
	if exec.CommandContext(t.Context(), "docker", "compose", "version").Run() != nil {
		t.Skip("there is no docker compose here")
	}
	for _, command := range commands {
		words := append(strings.Fields(command), "--help")
		require.Zero(t, exitCode(t, os.Environ(), words[0], words[1:]...), command)
	}
	// The client reads the file by itself; an engine it does not need for that.
	output(t, "..", os.Environ(), "docker", "compose", "-f", "examples/docker-compose.yml", "config", "--quiet")
}
