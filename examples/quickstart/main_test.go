package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

func TestCheck(t *testing.T) {
	sent := messages("demo", [][]byte{[]byte("ann,1"), []byte("bob,2"), []byte("ann,3"), []byte("no comma")})
	ann1, bob2, ann3, other := sent[0], sent[1], sent[2], sent[3]
	changed := ann3.Clone()
	changed.Value = []byte("ann,4")
	for _, c := range []struct {
		name     string
		received [][]*robust.Message
		twice    int
		err      string
	}{
		{name: "complete", received: [][]*robust.Message{{ann1, ann3}, {bob2, other}}},
		{name: "stored twice", received: [][]*robust.Message{{ann1, ann3, ann1, ann3}, {bob2, other}}, twice: 2},
		{name: "missing", received: [][]*robust.Message{{ann1, ann3}, {other}}, err: "1 of 4 messages are missing"},
		{name: "out of order", received: [][]*robust.Message{{ann3, ann1}, {bob2, other}}, err: `out of order: line 0 of key "ann" came behind line 2`},
		{name: "changed", received: [][]*robust.Message{{ann1, changed}, {bob2, other}}, err: "partition 0, offset -1: line 2 came back changed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			keys, twice, err := check(sent, c.received)
			if c.err != "" {
				require.EqualError(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, 3, keys)
			require.Equal(t, c.twice, twice)
		})
	}
}

func TestKeyOf(t *testing.T) {
	require.Equal(t, "ann", string(keyOf([]byte("ann,R-1,9.90"))))
	require.Len(t, keyOf([]byte("no comma")), 16)
	require.NotEqual(t, keyOf([]byte("no comma")), keyOf([]byte("another line")))
	require.NotEmpty(t, keyOf([]byte(",starts with one")))
	require.NotEmpty(t, keyOf(nil))
}
