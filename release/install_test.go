package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const version = "v1.2.3"

// theProxy has a version of every module that is released, made from the tree as it is now. It
// also tells of a later one of the root, which nothing must take that was prepared for another.
func theProxy(t *testing.T) (dir string, modules []*released) {
	t.Helper()
	tree, dir := t.TempDir(), t.TempDir()
	copyTree(t, tree, func(name string) bool {
		first, _, _ := strings.Cut(name, "/")
		return !kept(first) && !strings.HasPrefix(name, ".git/")
	})
	root := filepath.Join(dir, "github.com", "aminofox", "robust-go-sdk", "@v")
	require.NoError(t, os.MkdirAll(root, 0o755))
	for name, content := range map[string]string{"list": "v1.9.0\n", "v1.9.0.info": `{"Version":"v1.9.0"}`, "v1.9.0.mod": "module github.com/aminofox/robust-go-sdk\n"} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o600))
	}
	modules, err := prepare(t.Context(), tree, version, dir)
	require.NoError(t, err)
	return dir, modules
}

// downloading is an environment with an empty module cache, in which the go command finds
// versions in a proxy.
func downloading(t *testing.T, proxy string) []string {
	t.Helper()
	env, err := environment(t.Context(), proxy)
	require.NoError(t, err)
	for _, kv := range env {
		if strings.HasPrefix(kv, "GOPROXY=") {
			proxy = kv
		}
	}
	// No database has the checksums of versions that do not exist.
	return building(proxy, "GOMODCACHE="+t.TempDir(), "GOFLAGS=-trimpath -modcacherw", "GOSUMDB=off")
}

// TestInstall installs the command line as a user does, through a proxy, with no checkout and
// an empty module cache, and uses the libraries from a program of its own.
func TestInstall(t *testing.T) {
	unixOnly(t)
	proxy, modules := theProxy(t)
	dir := t.TempDir()
	env := append(downloading(t, proxy), "GOPATH="+filepath.Join(dir, "gopath"), "GOBIN="+filepath.Join(dir, "bin"))

	output(t, dir, env, "go", "install", "github.com/aminofox/robust-go-sdk/cmd/robust@latest")
	program := filepath.Join(dir, "bin", "robust")
	require.True(t, strings.HasPrefix(output(t, dir, env, program, "--version"), "robust "+version+" go1."))
	require.Contains(t, output(t, dir, env, "go", "version", "-m", program), "github.com/aminofox/robust-go-sdk\t"+version+"\t")

	// What is not a program is imported by one.
	main := "package main\n\nimport (\n"
	var get []string
	for _, m := range modules {
		if !strings.HasPrefix(m.dir, "cmd/") {
			main += "\t_ \"" + m.path + "\"\n"
			get = append(get, m.path+"@"+version)
		}
	}
	require.GreaterOrEqual(t, len(get), 2)
	user := filepath.Join(dir, "user")
	require.NoError(t, os.MkdirAll(user, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(user, "go.mod"), []byte("module example.com/user\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(user, "main.go"), []byte(main+")\n\nfunc main() {}\n"), 0o600))
	output(t, user, env, "go", append([]string{"get"}, get...)...)
	output(t, user, env, "go", "vet", ".")
}

// TestPrepare covers the order of modules, and versions that cannot be.
func TestPrepare(t *testing.T) {
	modules, err := find("..")
	require.NoError(t, err)
	require.Equal(t, ".", modules[0].dir)
	require.Equal(t, version, modules[0].tag(version))
	done := make(map[string]bool)
	for _, m := range modules {
		require.False(t, kept(m.dir))
		for _, needed := range m.needs {
			require.True(t, done[needed], "%s before %s", needed, m.dir)
		}
		done[m.dir] = true
	}
	require.True(t, done["cmd/robust"])
	require.True(t, done["robustotel"])
	require.True(t, done["robustprom"])
	for _, m := range modules[1:] {
		require.Equal(t, m.dir+"/"+version, m.tag(version))
	}
	for _, wrong := range []string{"", "1.2.3", "v1.2", "v2.0.0", "latest"} {
		_, err := prepare(t.Context(), "..", wrong, t.TempDir())
		require.ErrorContains(t, err, "is no version such as v1.2.3")
	}
}

// TestRun prepares a release in a repository and does what is left to be done by hand. What the
// go command then makes of the tags is what go.sum has.
func TestRun(t *testing.T) {
	unixOnly(t)
	tree, origin := t.TempDir(), t.TempDir()
	copyTree(t, tree, func(name string) bool { return !strings.HasPrefix(name, ".git/") })
	// The origin is where GitHub would be.
	config := filepath.Join(t.TempDir(), "gitconfig")
	require.NoError(t, os.WriteFile(config, []byte("[url \""+fileURL(origin)+"\"]\n\tinsteadOf = https://github.com/aminofox/robust-go-sdk\n"+
		"[user]\n\tname = a\n\temail = a@example.com\n"), 0o600))
	env := building("GIT_CONFIG_GLOBAL=" + config)
	git := func(args ...string) string { return output(t, tree, env, "git", args...) }
	output(t, origin, env, "git", "init", "--quiet", "--bare")
	git("init", "--quiet", "--initial-branch=main")
	git("remote", "add", "origin", "https://github.com/aminofox/robust-go-sdk")
	git("add", ".")
	git("commit", "--quiet", "-m", "all")
	main := git("rev-parse", "main")
	t.Chdir(filepath.Join(tree, "release"))

	var out strings.Builder
	require.NoError(t, run(t.Context(), version, "", &out))
	changed := strings.Fields(git("diff", "--name-only"))
	require.Contains(t, changed, "cmd/robust/go.mod")
	require.Contains(t, changed, "robustotel/go.sum")
	require.NotContains(t, changed, "go.mod")
	require.ErrorContains(t, run(t.Context(), version, "", &out), "changes that are not committed")

	for _, command := range regexp.MustCompile(`(?m)^  (git .*)$`).FindAllStringSubmatch(out.String(), -1) {
		output(t, tree, env, "sh", "-ec", command[1])
	}
	require.Equal(t, main, git("rev-parse", "HEAD"))
	require.Empty(t, git("status", "--porcelain"))
	require.Equal(t, "main\n", git("branch", "--show-current"))

	direct := append(downloading(t, t.TempDir()), "GIT_CONFIG_GLOBAL="+config, "GONOPROXY=github.com/aminofox/robust-go-sdk")
	var downloaded struct{ Sum, GoModSum string }
	require.NoError(t, json.Unmarshal([]byte(output(t, t.TempDir(), direct, "go", "mod", "download", "-json", "github.com/aminofox/robust-go-sdk@"+version)), &downloaded))
	sums := git("show", "cmd/robust/"+version+":cmd/robust/go.sum")
	require.Contains(t, sums, "github.com/aminofox/robust-go-sdk "+version+" "+downloaded.Sum+"\n")
	require.Contains(t, sums, "github.com/aminofox/robust-go-sdk "+version+"/go.mod "+downloaded.GoModSum+"\n")
	// A checkout of a tag needs no workspace.
	git("switch", "--quiet", "--detach", "cmd/robust/"+version)
	output(t, filepath.Join(tree, "cmd", "robust"), append(direct, "GOWORK=off"), "go", "list", "-deps", "-test", "./...")
}
