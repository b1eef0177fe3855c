package main

import (
	"bufio"
	"io"
	"net"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// plainBroker stands before a broker and has it announce no extensions, so that clients take
// it for one that knows only the published requests.
func plainBroker(t *testing.T, addr string) string {
	t.Helper()
	var listen net.ListenConfig
	l, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // The test has ended.
			}
			go relayPlain(client, addr)
		}
	}()
	return l.Addr().String()
}

func relayPlain(client net.Conn, addr string) {
	defer client.Close()
	var dialer net.Dialer
	broker, err := dialer.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer broker.Close()
	go func() {
		_, _ = io.Copy(broker, client) // Its end is the connection's.
		broker.Close()
	}()
	features, nodes := regexp.MustCompile(`"features":\[[^]]*\]`), regexp.MustCompile(`"addr":"[^"]*"`)
	// The client is not to go to the broker by itself.
	self := []byte(`"addr":"` + client.LocalAddr().String() + `"`)
	for lines := bufio.NewReader(broker); ; {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		line = features.ReplaceAll(line, []byte(`"features":[]`))
		if _, err := client.Write(nodes.ReplaceAll(line, self)); err != nil {
			return
		}
	}
}

// TestPlainBroker: what needs no extension works without one, and what does says so.
func TestPlainBroker(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders:2")
	addr := plainBroker(t, s.addr)
	succeed(t, addr, numbers(3), "produce", "orders", "-p", "1")
	require.Equal(t, numbers(3), succeed(t, addr, "", "consume", "orders", "-n", "3"))
	require.Equal(t, numbers(2), succeed(t, addr, "", "consume", "orders", "-g", "readers", "-n", "2"))
	require.Equal(t, "TOPIC   PARTITIONS  MESSAGES\norders  2           -\n", succeed(t, addr, "", "topic", "list"))
	require.Regexp(t, `(?m)^1 +- +- +- `, succeed(t, addr, "", "topic", "describe", "orders"))
	require.Equal(t, "GROUP    STATE  MEMBERS  LAG\nreaders  Empty  0        -\n", succeed(t, addr, "", "group", "list"))
	for _, args := range [][]string{
		{"consume", "orders", "--to", "end"},
		{"consume", "orders", "--to", "end", "-g", "readers"},
		{"group", "describe", "readers"},
	} {
		o := robustWith(t, addr, "", args...)
		require.Equal(t, exitFailure, o.code, args)
		require.Contains(t, o.stderr, "the broker knows the published requests only", args)
	}
}
