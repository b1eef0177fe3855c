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

func blocks(text string) (found []block) {
	for _, m := range regexp.MustCompile("(?m)^```sh\n((?:.*\n)+?)```\n(?:\n```text\n((?:.*\n)*?)```\n)?").FindAllStringSubmatch(text, -1) {
		found = append(found, block{m[1], m[2]})
	}
	return found
}

func page(t *testing.T, name ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{".."}, name...)...))
	require.NoError(t, err)
	return string(text)
}

// shell runs blocks one after the other, as if they were typed into one terminal.
type shell struct {
	env   []string
	state string // a script that goes on where the last block ended
	all   bool   // whether what it is told beside the output counts
	home  string
	addr  string // of the server, once there is one
}

// newShell is at the root of the repository, in a home that is empty, with what was compiled and
// downloaded all the same.
func newShell(t *testing.T) *shell {
	t.Helper()
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	s := &shell{home: t.TempDir(), state: filepath.Join(t.TempDir(), "state")}
	s.env = building("HOME="+s.home, "GOBIN="+filepath.Join(s.home, "bin"), "PATH="+filepath.Join(s.home, "bin")+":"+os.Getenv("PATH"))
	for _, name := range []string{"GOCACHE", "GOMODCACHE", "GOPATH"} {
		s.env = append(s.env, name+"="+strings.TrimSpace(output(t, root, building(), "go", "env", name)))
	}
	require.NoError(t, os.WriteFile(s.state, []byte("cd '"+root+"'\n"), 0o600))
	return s
}

func (s *shell) run(t *testing.T, commands string) string {
	t.Helper()
	script := ". '" + s.state + "'\n"
	if s.all {
		script += "exec 2>&1\n"
	}
	script += commands + "{ export -p; printf 'cd %q\\n' \"$PWD\"; } >'" + s.state + "'\n"
	return output(t, "", s.env, "bash", "-eo", "pipefail", "-c", script)
}

// follow runs a block, and compares what it prints with the page. The server has a port of its
// own, in case 8686 is taken.
func (s *shell) follow(t *testing.T, b block) {
	t.Helper()
	if strings.HasPrefix(b.commands, "robust serve ") {
		require.Empty(t, s.addr, "there is one server")
		require.Equal(t, "listening on 127.0.0.1:8686\n", b.prints)
		s.addr = serve(t, s.env, "bash", "-c", "exec "+b.commands).addr
		s.env = append(s.env, "ROBUST_BROKERS="+s.addr)
		return
	}
	const documented = "localhost:8686"
	commands := b.commands
	if s.addr != "" {
		commands = strings.ReplaceAll(commands, documented, s.addr)
	}
	got := s.run(t, commands)
	if s.addr != "" {
		got = strings.ReplaceAll(got, s.addr, documented)
	}
	if b.prints != "" {
		require.Equal(t, steady(b.prints), steady(got), "%s", b.commands)
	}
}

// TestQuickstart runs the commands of examples/QUICKSTART.md, word for word, but for those that
// need Docker or the network.
func TestQuickstart(t *testing.T) {
	unixOnly(t)
	sh := newShell(t)
	count := 0
	for _, b := range blocks(page(t, "examples", "QUICKSTART.md")) {
		if strings.Contains(b.commands, "docker ") || strings.Contains(b.commands, "git clone ") {
			continue
		}
		sh.follow(t, b)
		count++
	}
	require.GreaterOrEqual(t, count, 12)
	require.NotEmpty(t, sh.addr)
	require.FileExists(t, filepath.Join(sh.home, "robust-data", "robust.json"))
}

// TestReadmeSession runs what the README shows of the command line, and its first command.
func TestReadmeSession(t *testing.T) {
	unixOnly(t)
	readme := page(t, "README.md")
	opening, rest, found := strings.Cut(readme, "\n## From the command line\n")
	require.True(t, found)
	section, _, found := strings.Cut(rest, "\n## ")
	require.True(t, found)
	first := blocks(opening)
	require.Equal(t, []string{"git clone https://github.com/aminofox/robust-go-sdk\ncd robust-go-sdk\n", "go run ./examples/quickstart\n", "make test\n"},
		[]string{first[0].commands, first[1].commands, first[2].commands})
	sh := newShell(t)
	sh.follow(t, first[1])
	sh.all = true
	session := blocks(section)
	require.Len(t, session, 4)
	for _, b := range session {
		sh.follow(t, b)
	}
	require.NotEmpty(t, sh.addr)
}

// steady is what a command prints without what differs from one run to the next.
func steady(text string) string {
	return regexp.MustCompile(`\d+(\.\d+)?(ns|µs|ms|s)\b|\d+ messages/s|\d+ requests in \d+ writes, \d+ bytes|\d+\.\d %`).ReplaceAllString(text, "?")
}

// TestQuickstartDocker holds that what the page has done by Docker are commands of the client
// that is here.
func TestQuickstartDocker(t *testing.T) {
	var commands []string
	for _, b := range blocks(page(t, "examples", "QUICKSTART.md")) {
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
