// Release prepares a version of the modules of this repository, and makes a file proxy of
// them. ../CONTRIBUTING.md says how a version is released.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

func main() {
	version := flag.String("version", "", "`version` to prepare, such as v1.2.3")
	proxy := flag.String("proxy", "", "`directory` for a module proxy that has it; a temporary one if it is not given")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *version, *proxy, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// run prepares a version in the repository that the working directory is in.
func run(ctx context.Context, version, proxy string, out io.Writer) error {
	root, err := git(ctx, ".", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	if changed, err := git(ctx, root, "status", "--porcelain"); err != nil || changed != "" {
		return fmt.Errorf("the tree has changes that are not committed:\n%s%w", changed, err)
	}
	temp, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(temp) }()
	if proxy == "" {
		proxy = filepath.Join(temp, "proxy")
	}
	// A tag has what is committed, not what else lies in the tree.
	tree := filepath.Join(temp, "tree")
	if _, err := git(ctx, root, "clone", "--quiet", "--no-hardlinks", ".", tree); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(tree, ".git")); err != nil {
		return err
	}
	modules, err := prepare(ctx, tree, version, proxy)
	if err != nil {
		return err
	}
	tags := make([]string, len(modules))
	for n, m := range modules {
		tags[n] = m.tag(version)
		for _, name := range []string{"go.mod", "go.sum"} {
			content, err := os.ReadFile(filepath.Join(tree, m.dir, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(root, m.dir, name), content, 0o644); err != nil { //nolint:gosec // as git writes them
				return err
			}
		}
	}
	// No branch has the commit: in a workspace the go command would look for a version that is
	// required there, although it does not use it.
	fmt.Fprintf(out, "The go.mod and go.sum files require %s of one another. What is left:\n\n", version)
	fmt.Fprintf(out, "  git switch --detach\n  git commit -am 'release %s'\n", version)
	for _, tag := range tags {
		fmt.Fprintf(out, "  git tag %s\n", tag)
	}
	fmt.Fprintf(out, "  git push --atomic origin %s\n  git switch -\n", strings.Join(tags, " "))
	return nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
