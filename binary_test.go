package robust_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientLinksNoBroker holds that a program which only uses the client carries
// no broker. A package-level table of handlers, an init function or a mention of the
// broker in client code is enough to keep the whole of it in every binary.
func TestClientLinksNoBroker(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	program := filepath.Join(t.TempDir(), "clientonly.exe")
	// An empty -ldflags stands against a -s from the environment, which would
	// leave no symbols to look at.
	goTool(t, "build", "-ldflags=", "-o", program, "./testdata/clientonly")
	symbols := goTool(t, "tool", "nm", program)

	if !strings.Contains(symbols, "robust-go-sdk.(*Client)") {
		t.Fatal("the program holds no method of Client, so its symbols say nothing about Broker")
	}
	var broker []string
	for line := range strings.Lines(symbols) {
		if strings.Contains(line, "robust-go-sdk.(*Broker)") {
			broker = append(broker, strings.TrimSpace(line))
		}
	}
	if len(broker) > 0 {
		t.Errorf("a client-only program links %d symbols of the broker:\n%s", len(broker), strings.Join(broker, "\n"))
	}
}

func goTool(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}
