package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const version = "v1.2.3"

// copied is the tree as it is now, without what is not released.
func copied(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	copyTree(t, tree, func(name string) bool {
		first, _, _ := strings.Cut(name, "/")
		return !kept(first) && !strings.HasPrefix(name, ".git/")
	})
	return tree
}

// theProxy has a version of every module that is released.
func theProxy(t *testing.T) (dir string, modules []*released) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("GOPROXY", offline(t))
	modules, err := prepare(t.Context(), copied(t), version, dir)
	require.NoError(t, err)
	return dir, modules
}

// offline is a proxy of what was downloaded before, and then those that are set up.
func offline(t *testing.T) string {
	t.Helper()
	cache := strings.TrimSpace(output(t, ".", os.Environ(), "go", "env", "GOMODCACHE"))
	proxies := strings.TrimSpace(output(t, ".", os.Environ(), "go", "env", "GOPROXY"))
	return fileURL(filepath.Join(cache, "cache", "download")) + "," + proxies
}

// TestInstall installs the command line as a user does, through a proxy, with no checkout and
// an empty module cache, and uses the libraries from a program of its own.
func TestInstall(t *testing.T) {
	unixOnly(t)
	proxy, modules := theProxy(t)
	dir := t.TempDir()
	// No database has the checksums of versions that do not exist.
	env := append(building(), "GOPATH="+filepath.Join(dir, "gopath"), "GOMODCACHE="+filepath.Join(dir, "modules"), "GOBIN="+filepath.Join(dir, "bin"),
		"GOFLAGS=-trimpath -modcacherw", "GOPROXY="+fileURL(proxy)+","+offline(t), "GOSUMDB=off")

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
			get = append(get, m.path+"@latest")
		}
	}
	require.GreaterOrEqual(t, len(get), 2)
	user := filepath.Join(dir, "user")
	require.NoError(t, os.MkdirAll(user, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(user, "go.mod"), []byte("module example.com/user\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(user, "main.go"), []byte(main+")\n\nfunc main() {}\n"), 0o600))
	output(t, user, env, "go", append([]string{"get"}, get...)...)
	output(t, user, env, "go", "vet", ".")

	// A version that comes after a later one is of modules of that version.
	tree := copied(t)
	modules, err := prepare(t.Context(), tree, "v1.2.2", proxy)
	require.NoError(t, err)
	for _, m := range modules[1:] {
		mod, err := os.ReadFile(filepath.Join(tree, m.dir, "go.mod"))
		require.NoError(t, err)
		require.Contains(t, string(mod), modules[0].path+" v1.2.2\n")
	}
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
	for _, m := range modules[1:] {
		require.Equal(t, m.dir+"/"+version, m.tag(version))
	}
	for _, wrong := range []string{"", "1.2.3", "v1.2", "v2.0.0", "latest"} {
		_, err := prepare(t.Context(), "..", wrong, t.TempDir())
		require.ErrorContains(t, err, "is no version such as v1.2.3")
	}
}

// TestRun prepares a release in a repository, up to what is left to be done by hand.
func TestRun(t *testing.T) {
	unixOnly(t)
	tree := t.TempDir()
	copyTree(t, tree, func(name string) bool { return !strings.HasPrefix(name, ".git/") })
	env := append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	output(t, tree, env, "git", "init", "--quiet")
	output(t, tree, env, "git", "add", ".")
	output(t, tree, env, "git", "commit", "--quiet", "-m", "all")
	t.Setenv("GOPROXY", offline(t))
	t.Chdir(filepath.Join(tree, "release"))

	var out strings.Builder
	require.NoError(t, run(t.Context(), version, "", &out))
	require.Contains(t, out.String(), "git commit -am 'release v1.2.3'\n  git tag v1.2.3\n")
	require.Contains(t, out.String(), "git tag cmd/robust/v1.2.3\n")
	changed := strings.Fields(output(t, tree, env, "git", "diff", "--name-only"))
	require.Contains(t, changed, "cmd/robust/go.mod")
	require.Contains(t, changed, "robustotel/go.sum")
	require.NotContains(t, changed, "go.mod")
	mod, err := os.ReadFile(filepath.Join(tree, "robustotel", "go.mod"))
	require.NoError(t, err)
	require.Contains(t, string(mod), "github.com/aminofox/robust-go-sdk "+version+"\n")
	// The workspace still has the sources beside it.
	output(t, filepath.Join(tree, "robustotel"), building(), "go", "build", "./...")

	require.ErrorContains(t, run(t.Context(), version, "", &out), "changes that are not committed")
}
