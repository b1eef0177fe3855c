package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/stretchr/testify/require"
)

// TestCompose reads the compose file as docker compose does, which checks it against the
// specification, and holds that it fits the image.
func TestCompose(t *testing.T) {
	opts, err := cli.NewProjectOptions([]string{filepath.Join("..", "examples", "docker-compose.yml")})
	require.NoError(t, err)
	project, err := opts.LoadProject(t.Context())
	require.NoError(t, err)

	s, err := project.GetService("robust-server")
	require.NoError(t, err)
	require.Equal(t, "robust-server", s.ContainerName)
	require.Equal(t, "aminofox/robust:0.1.0", s.Image)
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	require.Equal(t, root, s.Build.Context)
	require.FileExists(t, filepath.Join(s.Build.Context, "Dockerfile"))

	i := theImage(t)
	require.Equal(t, []types.ServicePortConfig{{Mode: "ingress", HostIP: "127.0.0.1", Target: 8686, Published: "8686", Protocol: "tcp"}}, s.Ports)
	require.Equal(t, ":8686", i.env["ROBUST_ADDR"])
	require.Len(t, s.Volumes, 1)
	require.Equal(t, types.VolumeTypeVolume, s.Volumes[0].Type)
	require.Equal(t, i.env["ROBUST_DATA"], s.Volumes[0].Target)
	require.Contains(t, project.Volumes, s.Volumes[0].Source)

	health := of[*instructions.HealthCheckCommand](i.stage)[0].Health
	require.Equal(t, append([]string{"CMD"}, i.health...), []string(s.HealthCheck.Test))
	require.Equal(t, health.Interval, time.Duration(*s.HealthCheck.Interval))
	require.Equal(t, health.Timeout, time.Duration(*s.HealthCheck.Timeout))
	require.Equal(t, health.StartPeriod, time.Duration(*s.HealthCheck.StartPeriod))
	require.EqualValues(t, health.Retries, *s.HealthCheck.Retries)
	require.Greater(t, health.Timeout, flagDefault(t, "timeout"), "the check fails by itself, and says why")
	require.Greater(t, time.Duration(*s.StopGracePeriod), flagDefault(t, "grace"))
	require.True(t, s.ReadOnly)
	require.Equal(t, []string{"ALL"}, s.CapDrop)
}

// flagDefault returns the default of a flag of robust serve that is a time.
func flagDefault(t *testing.T, name string) time.Duration {
	t.Helper()
	help := output(t, work, building(), theImage(t).program, "serve", "--help")
	m := regexp.MustCompile(`--` + name + `=(\S+)`).FindStringSubmatch(help)
	require.NotNil(t, m, help)
	d, err := time.ParseDuration(m[1])
	require.NoError(t, err)
	return d
}

func exitCode(t *testing.T, env []string, name string, args ...string) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = env
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return cmd.ProcessState.ExitCode()
}
