package robust_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aminofox/robust-go-sdk"
)

// What one broker has acknowledged the next finds, topics, configuration, messages and
// groups alike, and who it is.
func TestDataDirOutlivesBroker(t *testing.T) {
	dir := t.TempDir()
	var clusterID string
	for round := range 3 {
		b, err := robust.NewBroker(robust.WithDataDir(dir), robust.WithTopic("demo", 3))
		require.NoError(t, err)
		c, err := b.Client()
		require.NoError(t, err)
		info, err := c.Admin().ClusterInfo(t.Context())
		require.NoError(t, err)
		if round > 0 {
			require.Equal(t, clusterID, info.ID)
		}
		clusterID = info.ID
		p, err := c.SyncProducer()
		require.NoError(t, err)
		for i := range 100 {
			m := robust.NewMessage("demo", fmt.Append(nil, round, "-", i))
			m.Partition = 1
			receipt, err := p.Send(t.Context(), m)
			require.NoError(t, err)
			require.Equal(t, int64(100*round+i), receipt.Offset)
		}
		pc, err := c.PartitionConsumer("demo", 1)
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		n := 0
		for m, err := range pc.All(ctx) {
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint(n/100, "-", n%100), string(m.Value))
			if n++; n == 100*(round+1) {
				break
			}
		}
		cancel()
		_, err = robust.NewBroker(robust.WithDataDir(dir))
		require.ErrorIs(t, err, robust.ErrDataDirInUse)
		require.ErrorContains(t, err, dir)
		require.ErrorContains(t, err, "process")
		require.NoError(t, c.Close())
		require.NoError(t, b.Close())
	}
}

// Files are opened when they are needed. Under a relative name they were looked for elsewhere
// when the process had changed its directory.
func TestDataDirOutlivesChdir(t *testing.T) {
	t.Chdir(t.TempDir())
	b, err := robust.NewBroker(robust.WithDataDir("queue"), robust.WithTopic("t", 1))
	require.NoError(t, err)
	t.Chdir(t.TempDir())
	c, err := b.Client()
	require.NoError(t, err)
	p, err := c.SyncProducer()
	require.NoError(t, err)
	_, err = p.Send(t.Context(), robust.NewMessage("t", []byte("kept")))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
	left, err := os.ReadDir(".")
	require.NoError(t, err)
	require.Empty(t, left)
}
