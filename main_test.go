package robust

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakDeadline is how long goroutines may take to end after the last test. Nothing
// waits for it when none remain, so it is generous to slow machines.
const leakDeadline = 10 * time.Second

// TestMain fails the run when goroutines remain after the tests: whoever starts one
// waits for it, and a Close that does not would show nowhere else. It is also where
// the processes begin that tests have as brokers.
func TestMain(m *testing.M) {
	if config := os.Getenv(brokerProcessEnv); config != "" {
		os.Exit(runBrokerProcess(config))
	}
	code := m.Run()
	if code == 0 && !fuzzing() {
		if left := waitForGoroutines(leakDeadline); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "goroutines that remain after the tests: %d\n\n%s\n", len(left), strings.Join(left, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// fuzzing reports whether this process generates fuzz inputs or runs them for one
// that does. Such a worker is ended in the middle of its work, so what remains then
// says nothing.
func fuzzing() bool {
	for _, name := range []string{"test.fuzz", "test.fuzzworker"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != f.DefValue {
			return true
		}
	}
	return false
}

// waitForGoroutines returns the stacks of the goroutines that are still there when
// the deadline has passed, or nothing as soon as there are none.
func waitForGoroutines(deadline time.Duration) []string {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(deadline)
	for {
		left := otherGoroutines()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-timeout:
			return left
		}
	}
}

// otherGoroutines returns the stack of every goroutine except the calling one and
// those of the test runner, the runtime and the signal handler. Goroutines of other
// packages count: an unclosed decoder or an idle HTTP connection is a leak of
// whoever opened it.
func otherGoroutines() []string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	stacks := strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")
	return slices.DeleteFunc(stacks[1:], func(stack string) bool { // the first is this goroutine
		for _, creator := range []string{"testing.", "runtime.", "runtime/", "os/signal."} {
			if strings.Contains(stack, "\ncreated by "+creator) {
				return true
			}
		}
		return false
	})
}
