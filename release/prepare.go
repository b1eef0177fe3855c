package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/zip"
)

// kept are directories whose modules serve the work on the repository only, and have no
// versions.
func kept(dir string) bool { return slices.Contains([]string{"bench", "release", "tools"}, dir) }

// released is a module that gets a version.
type released struct {
	dir   string // relative, with slashes; "." is the root
	path  string
	needs []string // directories of other modules of the repository, as go.work names them
}

func (m *released) tag(version string) string {
	if m.dir == "." {
		return version
	}
	return m.dir + "/" + version
}

// prepare has the modules in a tree require version of one another, and makes a proxy that
// has them. The tree must hold nothing that is not to be in a module. The modules are
// returned in an order in which none comes before what it needs.
func prepare(ctx context.Context, tree, version, proxy string) ([]*released, error) {
	if major := semver.Major(version); semver.Canonical(version) != version || major != "v0" && major != "v1" {
		return nil, fmt.Errorf("%q is no version such as v1.2.3; from v2 on module paths would have to change", version)
	}
	modules, err := find(tree)
	if err != nil {
		return nil, err
	}
	// What is downloaded for it must not stay: a version may be prepared more than once, and the
	// go command would go on with the first.
	downloads, err := os.MkdirTemp("", "release")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(downloads) }()
	for _, m := range modules {
		if m.dir != "." {
			if err := addRequires(ctx, tree, m, modules, version, proxy, downloads); err != nil {
				return nil, fmt.Errorf("%s: %w", m.dir, err)
			}
		}
		if err := publish(tree, m, version, proxy); err != nil {
			return nil, fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	return modules, nil
}

// find returns the modules to be released, in order.
func find(tree string) ([]*released, error) {
	var all []*released
	err := filepath.WalkDir(tree, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.Name() != "go.mod":
			return nil
		}
		dir, err := filepath.Rel(tree, filepath.Dir(name))
		if err != nil || kept(filepath.ToSlash(dir)) {
			return err
		}
		m, err := load(tree, filepath.ToSlash(dir))
		all = append(all, m)
		return err
	})
	if err != nil {
		return nil, err
	}
	var ordered []*released
	for len(all) > 0 {
		next := slices.IndexFunc(all, func(m *released) bool {
			return !slices.ContainsFunc(m.needs, func(dir string) bool {
				return slices.ContainsFunc(all, func(other *released) bool { return other.dir == dir })
			})
		})
		if next < 0 {
			return nil, fmt.Errorf("%s and others need one another", all[0].dir)
		}
		ordered = append(ordered, all[next])
		all = slices.Delete(all, next, next+1)
	}
	return ordered, nil
}

func load(tree, dir string) (*released, error) {
	name := filepath.Join(tree, filepath.FromSlash(dir), "go.mod")
	content, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	mod, err := modfile.ParseLax(name, content, nil)
	if err != nil {
		return nil, err
	}
	m := &released{dir: dir, path: mod.Module.Mod.Path}
	name = filepath.Join(tree, filepath.FromSlash(dir), "go.work")
	content, err = os.ReadFile(name)
	if os.IsNotExist(err) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	work, err := modfile.ParseWork(name, content, nil)
	if err != nil {
		return nil, err
	}
	for _, use := range work.Use {
		if needed := path.Join(dir, use.Path); needed != dir {
			m.needs = append(m.needs, needed)
		}
	}
	return m, nil
}

// addRequires has m require version of the modules that its workspace names.
func addRequires(ctx context.Context, tree string, m *released, all []*released, version, proxy, downloads string) error {
	dir := filepath.Join(tree, filepath.FromSlash(m.dir))
	name := filepath.Join(dir, "go.mod")
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	mod, err := modfile.Parse(name, content, nil)
	if err != nil {
		return err
	}
	for _, needed := range m.needs {
		n := slices.IndexFunc(all, func(other *released) bool { return other.dir == needed })
		if n < 0 {
			return fmt.Errorf("go.work names %s, which is not released", needed)
		}
		if err := mod.AddRequire(all[n].path, version); err != nil {
			return err
		}
	}
	mod.SetRequireSeparateIndirect(mod.Require) // It is a direct one, and stands among those.
	mod.Cleanup()
	if content, err = mod.Format(); err != nil {
		return err
	}
	if err := os.WriteFile(name, content, 0o644); err != nil { //nolint:gosec // as git writes it
		return err
	}
	env, err := environment(ctx, proxy)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "tidy")
	cmd.Dir = dir
	cmd.Env = append(env, "GOWORK=off", "GOFLAGS=-mod=mod -modcacherw", "GOMODCACHE="+downloads)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go mod tidy: %w\n%s", err, out)
	}
	return nil
}

// environment has the go command find versions in a proxy of ours, then among what was
// downloaded before, and then where it mostly does. What no other proxy knows, no checksum
// database does.
func environment(ctx context.Context, proxy string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	cache, others, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return append(os.Environ(),
		"GOPROXY="+fileURL(proxy)+","+fileURL(filepath.Join(cache, "cache", "download"))+","+others,
		"GONOSUMDB=github.com/aminofox/robust-go-sdk"), nil
}

func fileURL(dir string) string {
	slashed := filepath.ToSlash(dir)
	if !strings.HasPrefix(slashed, "/") {
		slashed = "/" + slashed // a drive of Windows
	}
	return "file://" + slashed
}

// publish puts a module into a proxy.
func publish(tree string, m *released, version, proxy string) error {
	escaped, err := module.EscapePath(m.path)
	if err != nil {
		return err
	}
	dir := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others may read it
		return err
	}
	source := filepath.Join(tree, filepath.FromSlash(m.dir))
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return err
	}
	info, err := json.Marshal(map[string]any{"Version": version, "Time": time.Now().UTC()})
	if err != nil {
		return err
	}
	list, err := os.ReadFile(filepath.Join(dir, "list"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for name, content := range map[string][]byte{"list": append(list, version+"\n"...), version + ".info": info, version + ".mod": mod} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { //nolint:gosec // likewise
			return err
		}
	}
	license := filepath.Join(source, "LICENSE")
	if _, err := os.Stat(license); os.IsNotExist(err) {
		// The go command puts the repository's into modules that have none of their own.
		content, err := os.ReadFile(filepath.Join(tree, "LICENSE"))
		if err != nil {
			return err
		}
		if err := os.WriteFile(license, content, 0o644); err != nil { //nolint:gosec // likewise
			return err
		}
		defer os.Remove(license) //nolint:errcheck // of a copy
	}
	archive, err := os.Create(filepath.Join(dir, version+".zip"))
	if err != nil {
		return err
	}
	if err := zip.CreateFromDir(archive, module.Version{Path: m.path, Version: version}, source); err != nil {
		return errors.Join(err, archive.Close())
	}
	return archive.Close()
}
