package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestUnit has systemd read its unit, and say how much the service could do to the machine.
func TestUnit(t *testing.T) {
	i := theImage(t)
	text, err := os.ReadFile(filepath.Join("..", "examples", "systemd", "robust.service"))
	require.NoError(t, err)
	unit := string(text)
	help := output(t, work, building(), i.program, "serve", "--help")
	for _, name := range regexp.MustCompile(`ROBUST_\w+`).FindAllString(unit, -1) {
		require.Regexp(t, `\(`+name+`[);]`, help)
	}
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(unit)
	require.NotNil(t, m)
	end, err := time.ParseDuration(m[1] + "s")
	require.NoError(t, err)
	require.Greater(t, end, flagDefault(t, "grace"))
	for _, line := range []string{"DynamicUser=yes", "StateDirectory=robust", "NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=on-failure", "LimitNOFILE=65536"} {
		require.Contains(t, unit, "\n"+line+"\n")
	}

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd here")
	}
	// It looks whether the program is there.
	const installed = "/usr/local/bin/robust"
	require.Contains(t, unit, "\nExecStart="+installed+" serve\n")
	file := filepath.Join(t.TempDir(), "robust.service")
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(unit, installed, i.program)), 0o600))
	out, err := exec.CommandContext(t.Context(), analyze, "verify", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "robust.service:", "a line that systemd does not understand")
	out, err = exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--threshold=20", file).CombinedOutput()
	require.NoError(t, err, "an exposure of at most 2 of 10\n%s", out)
}
