package main

import (
	"debug/elf"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/stretchr/testify/require"
)

// stages returns the Dockerfile as Docker reads it, which must find nothing to warn of.
func stages(t *testing.T) []instructions.Stage {
	t.Helper()
	file, err := os.Open(filepath.Join("..", "Dockerfile"))
	require.NoError(t, err)
	defer file.Close()
	parsed, err := parser.Parse(file)
	require.NoError(t, err)
	require.Empty(t, parsed.Warnings)
	lint := linter.New(&linter.Config{Warn: func(rule, description, _, text string, _ []parser.Range) {
		t.Errorf("%s: %s: %s", rule, description, text)
	}})
	found, _, err := instructions.Parse(parsed.AST, lint)
	require.NoError(t, err)
	require.Len(t, found, 2)
	return found
}

// of returns the instructions of one kind.
func of[C any](stage *instructions.Stage) (found []C) {
	for _, command := range stage.Commands {
		if c, ok := command.(C); ok {
			found = append(found, c)
		}
	}
	return found
}

// image is what the Dockerfile makes.
type image struct {
	program string // a copy of what it starts
	path    string // where that is in the image
	env     map[string]string
	health  []string
	stage   *instructions.Stage
	build   string // what is / in the stage that builds
}

var buildOnce struct {
	sync.Once
	image *image
}

// theImage does what a build does: it takes the files that .dockerignore lets through, and runs
// the commands of the first stage. It is built once.
func theImage(t *testing.T) *image {
	t.Helper()
	unixOnly(t)
	buildOnce.Do(func() { buildOnce.image = buildImage(t) })
	require.NotNil(t, buildOnce.image, "the image was not built; see the first failure")
	return buildOnce.image
}

func buildImage(t *testing.T) *image {
	t.Helper()
	all := stages(t)
	ignored, err := os.Open(filepath.Join("..", ".dockerignore"))
	require.NoError(t, err)
	defer ignored.Close()
	patterns, err := ignorefile.ReadAll(ignored)
	require.NoError(t, err)
	ignore, err := patternmatcher.New(patterns)
	require.NoError(t, err)

	fs := filepath.Join(work, "image") // what is / in the first stage
	dir := "/"
	for _, command := range all[0].Commands {
		switch c := command.(type) {
		case *instructions.WorkdirCommand:
			dir = c.Path
			require.NoError(t, os.MkdirAll(filepath.Join(fs, dir), 0o755))
		case *instructions.CopyCommand:
			require.Equal(t, []string{"."}, c.SourcePaths)
			copyTree(t, filepath.Join(fs, dir, c.DestPath), func(name string) bool {
				skip, err := ignore.MatchesOrParentMatches(name)
				require.NoError(t, err)
				return !skip
			})
		case *instructions.RunCommand:
			env := building("TARGETOS="+runtime.GOOS, "TARGETARCH="+runtime.GOARCH)
			output(t, filepath.Join(fs, dir), env, "sh", "-ec", strings.Join(c.CmdLine, " "))
		case *instructions.ArgCommand:
		default:
			require.Fail(t, "cannot be done here", "%s", command.Name())
		}
	}
	require.NoDirExists(t, filepath.Join(fs, "src", "examples"))
	require.NoFileExists(t, filepath.Join(fs, "src", "robust_test.go"))

	last := &all[1]
	require.Equal(t, "scratch", last.BaseName)
	i := &image{env: make(map[string]string), stage: last, build: fs}
	for _, c := range of[*instructions.EnvCommand](last) {
		for _, kv := range c.Env {
			i.env[kv.Key] = kv.Value
		}
	}
	i.path = of[*instructions.EntrypointCommand](last)[0].CmdLine[0]
	for _, c := range of[*instructions.CopyCommand](last) {
		require.Equal(t, "build", c.From)
		source := filepath.Join(fs, filepath.FromSlash(c.SourcePaths[0]))
		_, err := os.Stat(source)
		require.NoError(t, err)
		if c.DestPath == i.path {
			i.program = source
		}
	}
	require.NotEmpty(t, i.program)
	health := of[*instructions.HealthCheckCommand](last)[0].Health.Test
	require.Equal(t, "CMD", health[0])
	i.health = health[1:]
	return i
}

// TestImage holds that the image needs nothing that it does not have, and that its parts fit
// one another.
func TestImage(t *testing.T) {
	i := theImage(t)
	if runtime.GOOS == "linux" {
		file, err := elf.Open(i.program)
		require.NoError(t, err)
		defer file.Close()
		for _, p := range file.Progs {
			require.NotContains(t, []elf.ProgType{elf.PT_INTERP, elf.PT_DYNAMIC}, p.Type, "the program is not static")
		}
	}

	user := of[*instructions.UserCommand](i.stage)[0].User
	require.Regexp(t, `^[1-9]\d*:[1-9]\d*$`, user, "Kubernetes can tell only of a number that it is not root")
	data := i.env["ROBUST_DATA"]
	require.Equal(t, []string{data}, of[*instructions.VolumeCommand](i.stage)[0].Volumes)
	owned := slices.ContainsFunc(of[*instructions.CopyCommand](i.stage), func(c *instructions.CopyCommand) bool {
		below, err := filepath.Rel(c.DestPath, data)
		if err != nil || strings.HasPrefix(below, "..") || c.Chown != user {
			return false
		}
		// What is copied into a directory that is made for it has the owner, not that directory.
		made, err := os.Stat(filepath.Join(i.build, filepath.FromSlash(path.Join(c.SourcePaths[0], filepath.ToSlash(below)))))
		return err == nil && made.IsDir() && below != "."
	})
	require.True(t, owned, "the user can write to the volume")
	require.Equal(t, i.path, i.health[0])
	require.Equal(t, []string{"serve"}, of[*instructions.CmdCommand](i.stage)[0].CmdLine)
	var ports []string
	for _, c := range of[*instructions.ExposeCommand](i.stage) {
		ports = append(ports, c.Ports...)
	}
	require.ElementsMatch(t, []string{strings.TrimPrefix(i.env["ROBUST_ADDR"], ":"), strings.TrimPrefix(i.env["ROBUST_HTTP"], ":")}, ports)

	help := output(t, work, building(), i.program, "serve", "--help")
	for name := range i.env {
		require.Regexp(t, `\(`+name+`[);]`, help, "a setting that the program knows")
	}
}

// TestImageHealth runs the program with an environment as it has in the image, and its health
// check, before and after its end.
func TestImageHealth(t *testing.T) {
	i := theImage(t)
	data := filepath.Join(t.TempDir(), "data")
	// An image has no HOME, no PATH and no temporary directory.
	s := serve(t, []string{"ROBUST_DATA=" + data, "ROBUST_HTTP=127.0.0.1:0"}, i.program, "serve")
	env := []string{"ROBUST_BROKERS=" + s.addr}
	require.Contains(t, output(t, work, env, i.program, i.health[1:]...), s.addr+" answers in ")
	require.FileExists(t, filepath.Join(data, "robust.json"))
	s.stop(t)
	require.Equal(t, 3, exitCode(t, env, i.program, i.health[1:]...))
}
