//go:build unix

package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/stretchr/testify/require"
)

// TestImageAlone runs the program where there is nothing but what is in the image, as the
// user that it has there, and so does its health check. It is what comes nearest to a container
// without an engine, and needs to be root.
func TestImageAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can change the root directory")
	}
	i := theImage(t)
	root := t.TempDir()
	for _, c := range of[*instructions.CopyCommand](i.stage) {
		i.copyInto(t, root, c)
	}
	first, second, _ := strings.Cut(of[*instructions.UserCommand](i.stage)[0].User, ":")
	as := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: id(t, first), Gid: id(t, second)}}
		for name, value := range i.env {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		return cmd
	}

	if err := as(exec.CommandContext(t.Context(), i.path, "--version")).Run(); errors.Is(err, syscall.EPERM) {
		t.Skip("this root may not change the root directory")
	}
	cmd := as(lasting(t, i.path, "serve"))
	cmd.Env = append(cmd.Env, "ROBUST_HTTP=127.0.0.1:0") // The port may be taken here.
	s := serveBy(t, cmd)
	check := as(exec.CommandContext(t.Context(), i.health[0], i.health[1:]...))
	check.Env = append(check.Env, "ROBUST_BROKERS="+s.addr)
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.FileExists(t, filepath.Join(root, i.env["ROBUST_DATA"], "robust.json"))
}

// copyInto does what COPY does.
func (i *image) copyInto(t *testing.T, root string, c *instructions.CopyCommand) {
	t.Helper()
	source := filepath.Join(i.build, filepath.FromSlash(c.SourcePaths[0]))
	uid, gid, _ := strings.Cut(c.Chown, ":")
	require.NoError(t, os.MkdirAll(filepath.Join(root, filepath.Dir(c.DestPath)), 0o755))
	require.NoError(t, filepath.WalkDir(source, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		target := filepath.Join(root, c.DestPath, below)
		if d.IsDir() {
			if err := os.MkdirAll(target, 0o755); err != nil || below == "." {
				return err // The directory itself is made, not copied.
			}
		} else {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if err := os.WriteFile(target, content, 0o755); err != nil {
				return err
			}
		}
		if c.Chown == "" {
			return nil
		}
		return os.Chown(target, int(id(t, uid)), int(id(t, gid)))
	}))
}

func id(t *testing.T, s string) uint32 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 32)
	require.NoError(t, err)
	return uint32(n)
}
