package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// TestOldBroker holds that the client of robust-json knows of no extension.
func TestOldBroker(t *testing.T) {
	b, err := robust.NewBroker(robust.WithTopic(topicName, 1))
	require.NoError(t, err)
	defer b.Close()
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	alter := func(options ...robust.Option) error {
		c, err := robust.New(append(options, robust.WithBrokers(addr.String()))...)
		require.NoError(t, err)
		defer c.Close()
		return c.Admin().AlterTopicConfig(t.Context(), topicName, map[string]string{"retention.hours": "1"})
	}
	require.NoError(t, alter())
	require.ErrorIs(t, alter(robust.WithDialer(dialOld)), robust.ErrUnsupported)
}
