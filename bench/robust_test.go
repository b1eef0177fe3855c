package main

import (
	"sync"
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

// TestGatherer holds that each message gets its own result.
func TestGatherer(t *testing.T) {
	c, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic(topicName, 2)))
	require.NoError(t, err)
	defer c.Close()
	many, err := newManySender(c)
	require.NoError(t, err)
	var mu sync.Mutex
	results := make(map[*robust.Message]error)
	for i := range 3000 {
		m := &robust.Message{Topic: topicName, Partition: int32(i % 2), Value: []byte("12345678")}
		if i%100 == 0 {
			m.Partition = 7
		}
		require.NoError(t, many.SendFunc(t.Context(), m, func(of *robust.Message, _ robust.Receipt, err error) {
			mu.Lock()
			defer mu.Unlock()
			require.NotContains(t, results, of)
			results[of] = err
		}))
	}
	require.NoError(t, many.Flush(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, results, 3000)
	for m, err := range results {
		if m.Partition == 7 {
			require.ErrorIs(t, err, robust.ErrPartitionNotFound)
		} else {
			require.NoError(t, err)
		}
	}
	require.NoError(t, many.Close())
}
