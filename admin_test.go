package robust_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

func TestAdminTopics(t *testing.T) {
	for _, p := range []robust.Protocol{robust.ProtocolV1, robust.ProtocolV0} {
		t.Run(p.String(), func(t *testing.T) {
			ctx := t.Context()
			c := newClient(t, newBroker(t), robust.WithProtocol(p))
			admin := c.Admin()
			names, err := admin.ListTopics(ctx)
			require.NoError(t, err)
			require.Empty(t, names)

			config := map[string]string{"retention.hours": "168", "segment.bytes": "1073741824"}
			require.NoError(t, admin.CreateTopic(ctx, "b", 3, config))
			require.NoError(t, admin.CreateTopic(ctx, "a", 1, nil))
			names, err = admin.ListTopics(ctx)
			require.NoError(t, err)
			require.Equal(t, []string{"a", "b"}, names)

			metadata, err := admin.GetMetadata(ctx, []string{"b"})
			require.NoError(t, err)
			require.Len(t, metadata, 1)
			require.Equal(t, config, metadata[0].Config)
			require.Len(t, metadata[0].Partitions, 3)
			for i, partition := range metadata[0].Partitions {
				require.Equal(t, int32(i), partition.ID)
				require.NotEmpty(t, partition.Leader)
			}
			metadata, err = admin.GetMetadata(ctx, nil)
			require.NoError(t, err)
			require.Len(t, metadata, 2)
			metadata, err = admin.GetMetadata(ctx, []string{"a", "missing"})
			require.ErrorIs(t, err, robust.ErrTopicNotFound)
			require.ErrorContains(t, err, "missing")
			require.Len(t, metadata, 1, "what is there comes beside the error")

			err = admin.CreateTopic(ctx, "a", 1, nil)
			require.ErrorIs(t, err, robust.ErrTopicExists)
			be := (*robust.BrokerError)(nil)
			require.ErrorAs(t, err, &be)
			require.Equal(t, "CreateTopic", be.Request)

			require.NoError(t, admin.DeleteTopic(ctx, "a"))
			require.ErrorIs(t, admin.DeleteTopic(ctx, "a"), robust.ErrTopicNotFound)
			require.NoError(t, admin.Close())
		})
	}
}

func TestAdminRefusals(t *testing.T) {
	ctx := t.Context()
	admin := newClient(t, newBroker(t, robust.WithTopic("demo", 1))).Admin()
	for _, c := range []struct {
		err  error
		want error
		text string
	}{
		{admin.CreateTopic(ctx, "a b", 1, nil), robust.ErrInvalidRequest, `"a b"`},
		{admin.CreateTopic(ctx, "..", 1, nil), robust.ErrInvalidRequest, `topic name "..": want 1 to 249 of A-Z a-z 0-9 . _ -, and neither . nor ..`},
		{admin.CreateTopic(ctx, "x", 0, nil), robust.ErrInvalidRequest, "partitions 0"},
		{admin.CreateTopic(ctx, "x", 1_000_000, nil), robust.ErrInvalidRequest, "partitions 1000000"},
		{admin.CreateTopic(ctx, "x", 1, map[string]string{"retention.days": "1"}), robust.ErrInvalidConfig, `topic config "retention.days": want retention.hours, retention.bytes, segment.bytes or max.message.bytes`},
		{admin.CreateTopic(ctx, "x", 1, map[string]string{"retention.hours": "-1"}), robust.ErrInvalidConfig, `retention.hours="-1"`},
		{admin.CreateTopic(ctx, "x", 1, map[string]string{"segment.bytes": "1k"}), robust.ErrInvalidConfig, `segment.bytes="1k"`},
		{admin.CreatePartitions(ctx, "demo", 0), robust.ErrInvalidRequest, "CreatePartitions(0)"},
		{admin.CreatePartitions(ctx, "missing", 2), robust.ErrTopicNotFound, "missing"},
		{admin.AlterTopicConfig(ctx, "demo", map[string]string{"x": "y"}), robust.ErrInvalidConfig, `"x"`},
		{admin.NodeJoin(ctx, "", "host:1"), robust.ErrInvalidRequest, "node_id"},
		{admin.NodeJoin(ctx, "n", "nonsense"), robust.ErrInvalidRequest, "addr"},
		{admin.NodeLeave(ctx, "n"), robust.ErrInvalidRequest, "node_id"},
		{admin.Rebalance(ctx, "g"), robust.ErrGroupNotFound, "g"},
	} {
		require.ErrorIs(t, c.err, c.want)
		require.ErrorContains(t, c.err, c.text)
	}
	require.NoError(t, admin.Rebalance(ctx, ""))
}

func TestAdminAlter(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 2)))
	admin := c.Admin()
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	m := robust.NewMessage("demo", []byte("x"))
	m.Partition = 3
	_, _, err = producer.SendMessage(ctx, m)
	require.ErrorIs(t, err, robust.ErrPartitionNotFound)

	require.NoError(t, admin.CreatePartitions(ctx, "demo", 4))
	require.NoError(t, admin.CreatePartitions(ctx, "demo", 4), "it says how many there are to be")
	require.ErrorIs(t, admin.CreatePartitions(ctx, "demo", 3), robust.ErrInvalidRequest)
	_, _, err = producer.SendMessage(ctx, m)
	require.NoError(t, err)

	require.NoError(t, admin.AlterTopicConfig(ctx, "demo", map[string]string{"max.message.bytes": "10"}))
	_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", make([]byte, 11)))
	require.ErrorIs(t, err, robust.ErrMessageTooLarge)
	require.ErrorContains(t, err, "max.message.bytes")
	require.NoError(t, admin.AlterTopicConfig(ctx, "demo", map[string]string{"max.message.bytes": ""}))
	_, _, err = producer.SendMessage(ctx, robust.NewMessage("demo", make([]byte, 11)))
	require.NoError(t, err)
}

func TestAdminOffsets(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithTopic("demo", 2)))
	admin := c.Admin()
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 10 {
		m := robust.NewMessage("demo", fmt.Append(nil, i))
		m.Partition, m.Timestamp = 1, base.Add(time.Duration(i)*time.Minute).UnixMilli()
		_, _, err := producer.SendMessage(ctx, m)
		require.NoError(t, err)
	}
	offsets := func(at time.Time) map[int32]int64 {
		t.Helper()
		o, err := admin.ListOffsets(ctx, "demo", at)
		require.NoError(t, err)
		return o
	}
	require.Equal(t, map[int32]int64{0: 0, 1: 0}, offsets(time.Time{}))
	require.Equal(t, map[int32]int64{0: 0, 1: 4}, offsets(base.Add(3*time.Minute+time.Second)))
	require.Equal(t, map[int32]int64{0: 0, 1: 10}, offsets(time.Now().Add(time.Hour)))

	oldest, err := admin.DeleteRecords(ctx, "demo", 1, 6)
	require.NoError(t, err)
	require.Equal(t, int64(6), oldest)
	require.Equal(t, map[int32]int64{0: 0, 1: 6}, offsets(time.Time{}))
	_, err = admin.DeleteRecords(ctx, "demo", 1, 11)
	require.ErrorIs(t, err, robust.ErrOffsetOutOfRange)
	oldest, err = admin.DeleteRecords(ctx, "demo", 1, robust.OffsetNewest)
	require.NoError(t, err)
	require.Equal(t, int64(10), oldest)
	_, err = admin.ListOffsets(ctx, "missing", time.Time{})
	require.ErrorIs(t, err, robust.ErrTopicNotFound)
}

func TestAdminCluster(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithNodeID("one"), robust.WithAdvertisedAddr("broker.example:8686")))
	admin := c.Admin()
	require.NoError(t, admin.NodeJoin(ctx, "two", "other.example:8686"))
	info, err := admin.ClusterInfo(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, info.ID)
	require.Equal(t, []robust.NodeInfo{{ID: "one", Addr: "broker.example:8686"}, {ID: "two", Addr: "other.example:8686"}}, info.Nodes)
	require.Equal(t, []string{"broker.example:8686", "other.example:8686"}, info.Brokers)
	require.NoError(t, admin.NodeLeave(ctx, "two"))
	info, err = admin.ClusterInfo(ctx)
	require.NoError(t, err)
	require.Len(t, info.Nodes, 1)

	groups, err := admin.ListGroups(ctx)
	require.NoError(t, err)
	require.Empty(t, groups)
}

// A topic is created by the first message where the broker does so, and by nobody who
// only looks.
func TestAutoCreateTopics(t *testing.T) {
	ctx := t.Context()
	c := newClient(t, newBroker(t, robust.WithAutoCreateTopics(4)))
	_, err := c.Admin().GetMetadata(ctx, []string{"demo"})
	require.ErrorIs(t, err, robust.ErrTopicNotFound)
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	partition, _, err := producer.SendMessage(ctx, robust.NewMessageWithKey("demo", []byte("k"), nil))
	require.NoError(t, err)
	require.Equal(t, robust.PartitionForKey([]byte("k"), 4), partition)
	metadata, err := c.Admin().GetMetadata(ctx, []string{"demo"})
	require.NoError(t, err)
	require.Len(t, metadata[0].Partitions, 4)
	_, _, err = producer.SendMessage(ctx, robust.NewMessage("no good", nil))
	require.ErrorIs(t, err, robust.ErrInvalidRequest)
	require.NotErrorIs(t, err, robust.ErrTopicNotFound)
}
