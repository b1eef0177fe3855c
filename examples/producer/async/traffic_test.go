package main

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// discard is a connection that takes everything.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// However what is written is cut into pieces, a request is counted once, and what stands
// in a body is none.
func TestTraffic(t *testing.T) {
	body := "{}\n{\"request_id\":\"9\"}\n\n"
	stream := `{"request_id":"1","payload":{"value":"\"body\":7"}}` + "\n" +
		`{"request_id":"2","payload":{},"body":23}` + "\n" + body +
		`{"request_id":"3","payload":{},"body":0}` + "\n" +
		`{"request_id":"4","payload":{}}` + "\n"
	require.Len(t, body, 23)
	for size := 1; size <= len(stream); size++ {
		var sent traffic
		conn, err := sent.through(func(context.Context, string, string) (net.Conn, error) { return discard{}, nil })(t.Context(), "tcp", "broker:1")
		require.NoError(t, err)
		writes := 0
		for rest := stream; rest != ""; writes++ {
			piece := rest[:min(size, len(rest))]
			_, err := conn.Write([]byte(piece))
			require.NoError(t, err)
			rest = strings.TrimPrefix(rest, piece)
		}
		require.EqualValues(t, 4, sent.requests.Load(), "pieces of %d", size)
		require.EqualValues(t, writes, sent.writes.Load())
		require.EqualValues(t, len(stream), sent.bytes.Load())
	}
}
