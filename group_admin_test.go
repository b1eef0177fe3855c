package robust_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

func TestDescribeGroup(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 3))
	c := newClient(t, b, robust.WithClientID("worker"))
	produce(t, c, "demo", 3, 10)
	handled := newTally()
	h := robust.HandlerFunc(func(s *robust.Session, claim *robust.Claim) error {
		for m := range claim.Messages() {
			if m.Offset < 4 {
				s.MarkMessage(m, "four")
			}
			handled.add(m)
		}
		return nil
	})
	stop := consuming(t, newGroup(t, c, "g", robust.WithInstanceID("i")), []string{"demo", "^nothing"}, h)
	handled.await(t, 30)
	admin := c.Admin()
	require.Eventually(t, func() bool {
		d, err := admin.DescribeGroup(t.Context(), "g")
		return err == nil && d.Lag() == 18
	}, time.Minute, 10*time.Millisecond)
	d, err := admin.DescribeGroup(t.Context(), "g")
	require.NoError(t, err)
	require.Equal(t, "Stable", d.State)
	require.Equal(t, "sticky", d.Assignor)
	require.Positive(t, d.Generation)
	require.Len(t, d.Members, 1)
	m := d.Members[0]
	require.Equal(t, "i", m.InstanceID)
	require.Equal(t, "worker", m.ClientID)
	require.NotEmpty(t, m.Host)
	require.Equal(t, []string{"demo", "^nothing"}, m.Topics)
	require.Equal(t, map[string][]int32{"demo": {0, 1, 2}}, m.Assignment)
	require.Empty(t, m.Pending)
	for i, o := range d.Offsets {
		require.Equal(t, "demo", o.Topic)
		require.Equal(t, int32(i), o.Partition)
		require.Equal(t, int64(4), o.Committed)
		require.Equal(t, "four", o.Metadata)
		require.Equal(t, m.ID, o.MemberID)
		require.Positive(t, o.Epoch)
		require.Equal(t, int64(10), o.HighWaterMark)
		require.Equal(t, int64(6), o.Lag)
	}
	groups, err := admin.ListGroups(t.Context())
	require.NoError(t, err)
	require.Equal(t, []robust.GroupInfo{{ID: "g", State: "Stable", Generation: d.Generation, Members: []string{m.ID}}}, groups)

	_, err = admin.DescribeGroup(t.Context(), "h")
	require.ErrorIs(t, err, robust.ErrGroupNotFound)
	require.ErrorIs(t, admin.DeleteGroup(t.Context(), "g"), robust.ErrGroupNotEmpty)
	_, err = admin.ResetOffsets(t.Context(), "g", "demo", robust.ToOffset(0))
	require.ErrorIs(t, err, robust.ErrGroupNotEmpty)
	require.NoError(t, stop())
}

func TestResetOffsetsAndDeleteGroup(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 2), robust.WithTopic("other", 1))
	c := newClient(t, b)
	produce(t, c, "demo", 2, 10)
	late := time.Now().Add(time.Hour)
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	m := &robust.Message{Topic: "demo", Value: []byte("late"), Timestamp: late.UnixMilli()}
	_, _, err = producer.SendMessage(t.Context(), m)
	require.NoError(t, err)

	handled := newTally()
	h := robust.Each(func(_ context.Context, m *robust.Message) error {
		handled.add(m)
		return nil
	})
	stop := consuming(t, newGroup(t, c, "g"), []string{"demo"}, h)
	handled.await(t, 21)
	require.NoError(t, stop())
	admin := c.Admin()
	committed := func() map[int32]int64 {
		d, err := admin.DescribeGroup(t.Context(), "g")
		require.NoError(t, err)
		all := make(map[int32]int64)
		for _, o := range d.Offsets {
			all[o.Partition] = o.Committed
		}
		return all
	}
	require.Equal(t, map[int32]int64{0: 11, 1: 10}, committed())
	for _, test := range []struct {
		to         robust.ResetTo
		partitions []int32
		want       map[int32]int64
	}{
		{robust.ToOffset(robust.OffsetOldest), nil, map[int32]int64{0: 0, 1: 0}},
		{robust.ToOffset(7), []int32{1}, map[int32]int64{1: 7}},
		{robust.ToOffset(robust.OffsetNewest), nil, map[int32]int64{0: 11, 1: 10}},
		{robust.ToTime(late), nil, map[int32]int64{0: 10, 1: 10}},
		{robust.ToTime(time.Time{}), nil, map[int32]int64{0: 0, 1: 0}},
		{robust.ToTime(time.Unix(0, 0)), nil, map[int32]int64{0: 0, 1: 0}},
		{robust.ToTime(time.Unix(math.MaxInt32, 0)), nil, map[int32]int64{0: 11, 1: 10}},
	} {
		moved, err := admin.ResetOffsets(t.Context(), "g", "demo", test.to, test.partitions...)
		require.NoError(t, err)
		require.Equal(t, test.want, moved)
		for p, offset := range moved {
			require.Equal(t, offset, committed()[p])
		}
	}
	before := committed()
	for _, test := range []struct {
		group, topic string
		to           robust.ResetTo
		partitions   []int32
		want         error
	}{
		{"h", "demo", robust.ToOffset(0), nil, robust.ErrGroupNotFound},
		{"g", "dmeo", robust.ToOffset(0), nil, robust.ErrTopicNotFound},
		{"g", "demo", robust.ToOffset(0), []int32{1, 2}, robust.ErrPartitionNotFound},
		{"g", "demo", robust.ToOffset(11), nil, robust.ErrOffsetOutOfRange},
		{"g", "demo", robust.ToOffset(-3), nil, robust.ErrOffsetOutOfRange},
	} {
		_, err := admin.ResetOffsets(t.Context(), test.group, test.topic, test.to, test.partitions...)
		require.ErrorIs(t, err, test.want)
	}
	require.Equal(t, before, committed())

	// The group goes on from there.
	_, err = admin.ResetOffsets(t.Context(), "g", "demo", robust.ToOffset(9), 1)
	require.NoError(t, err)
	_, err = admin.ResetOffsets(t.Context(), "g", "demo", robust.ToOffset(10), 0)
	require.NoError(t, err)
	again := newTally()
	stop = consuming(t, newGroup(t, c, "g"), []string{"demo"}, robust.Each(func(_ context.Context, m *robust.Message) error {
		again.add(m)
		return nil
	}))
	again.await(t, 2)
	require.NoError(t, stop())
	require.Equal(t, map[string]int{"late": 1, "demo/1/9": 1}, again.count)

	require.NoError(t, admin.DeleteGroup(t.Context(), "g"))
	require.ErrorIs(t, admin.DeleteGroup(t.Context(), "g"), robust.ErrGroupNotFound)
	groups, err := admin.ListGroups(t.Context())
	require.NoError(t, err)
	require.Empty(t, groups)
}

// What cannot be used is refused before anything is sent, and named.
func TestGroupArguments(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	c := newClient(t, b)
	for _, id := range []string{"", strings.Repeat("g", 250)} {
		_, err := c.ConsumerGroup(id)
		require.ErrorIs(t, err, robust.ErrInvalidRequest)
	}
	for want, o := range map[string]robust.GroupOption{
		"WithAutoCommit(-1ns)":                  robust.WithAutoCommit(-1),
		"WithSessionTimeout(1ms)":               robust.WithSessionTimeout(time.Millisecond),
		"WithHeartbeatInterval(30s)":            robust.WithHeartbeatInterval(30 * time.Second),
		"WithRebalanceTimeout(0s)":              robust.WithRebalanceTimeout(0),
		"WithInstanceID(xxxx":                   robust.WithInstanceID(strings.Repeat("x", 250)),
		`WithAssignor("sticky"): want a name`:   robust.WithAssignor(robust.NewAssignor("sticky", func(*robust.AssignmentInput) (map[robust.TopicPartition]string, error) { return nil, nil })),
		`WithAssignor("mine"): want a function`: robust.WithAssignor(robust.NewAssignor("mine", nil)),
	} {
		_, err := c.ConsumerGroup("g", o)
		require.ErrorIs(t, err, robust.ErrInvalidConfig)
		require.ErrorContains(t, err, want)
	}
	g := newGroup(t, c, "g")
	ok := robust.HandlerFunc(func(*robust.Session, *robust.Claim) error { return nil })
	each := func(opts ...robust.EachOption) robust.Handler {
		return robust.Each(func(context.Context, *robust.Message) error { return nil }, opts...)
	}
	for name, err := range map[string]error{
		"no topics":    g.Consume(t.Context(), nil, ok),
		"too many":     g.Consume(t.Context(), make([]string, 1001), ok),
		"bad name":     g.Consume(t.Context(), []string{"a b"}, ok),
		"bad pattern":  g.Consume(t.Context(), []string{"^("}, ok),
		"long pattern": g.Consume(t.Context(), []string{"^" + strings.Repeat("a", 1000)}, ok),
		"no handler":   g.Consume(t.Context(), []string{"demo"}, nil),
		"nil func":     g.Consume(t.Context(), []string{"demo"}, robust.HandlerFunc(nil)),
		"nil each":     g.Consume(t.Context(), []string{"demo"}, robust.Each(nil)),
	} {
		require.ErrorIs(t, err, robust.ErrInvalidRequest, name)
	}
	for _, n := range []int{0, -1, 10_001} {
		require.ErrorContains(t, g.Consume(t.Context(), []string{"demo"}, each(robust.Concurrency(n))), fmt.Sprintf("Concurrency(%d)", n))
	}
	require.ErrorIs(t, g.Consume(t.Context(), []string{"demo"}, each(nil)), robust.ErrInvalidConfig)
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	require.ErrorIs(t, g.Consume(t.Context(), []string{"demo"}, ok), robust.ErrClosed)
	_, open := <-g.Errors()
	require.False(t, open)
	require.Contains(t, g.Status().String(), "closed")
}

// One Consume at a time.
func TestGroupConsumesOnce(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	c := newClient(t, b)
	g := newGroup(t, c, "g")
	begun := make(chan struct{})
	stop := consuming(t, g, []string{"demo"}, robust.HandlerFunc(func(_ *robust.Session, claim *robust.Claim) error {
		close(begun)
		<-claim.Context().Done()
		return nil
	}))
	<-begun
	require.ErrorIs(t, g.Consume(t.Context(), []string{"demo"}, robust.HandlerFunc(func(*robust.Session, *robust.Claim) error { return nil })), robust.ErrInvalidRequest)
	require.NoError(t, stop())
}

// Messages of one key are handled in order, others side by side, and what is committed
// never has a gap.
func TestEachConcurrency(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 2))
	c := newClient(t, b)
	producer, err := c.SyncProducer()
	require.NoError(t, err)
	const n = 2000
	var ms []*robust.Message
	for i := range n {
		m := robust.NewMessageWithKey("demo", fmt.Append(nil, i%17), fmt.Append(nil, i))
		m.Partition = int32(i % 17 % 2)
		if i%5 == 0 {
			m.Key = nil
		}
		ms = append(ms, m)
	}
	require.NoError(t, producer.SendMessages(t.Context(), ms))
	handled := newTally()
	last := make(map[string]int64)
	var most, now int
	waiting := make(chan struct{})
	h := robust.Each(func(ctx context.Context, m *robust.Message) error {
		handled.mu.Lock()
		now++
		most = max(most, now)
		key := fmt.Sprint(m.Partition, string(m.Key))
		if m.Key != nil {
			if m.Offset < last[key] {
				handled.mu.Unlock()
				return fmt.Errorf("key %s: offset %d after %d", m.Key, m.Offset, last[key])
			}
			last[key] = m.Offset
		}
		if most == 8 && waiting != nil {
			close(waiting)
			waiting = nil
		}
		wait := waiting
		handled.mu.Unlock()
		if wait != nil {
			select { // Until 8 are at work.
			case <-wait:
			case <-ctx.Done():
			}
		}
		handled.add(m)
		handled.mu.Lock()
		now--
		handled.mu.Unlock()
		return nil
	}, robust.Concurrency(8))
	stop := consuming(t, newGroup(t, c, "g"), []string{"demo"}, h)
	handled.await(t, n)
	require.NoError(t, stop())
	require.GreaterOrEqual(t, most, 8)
	for value, times := range handled.count {
		require.Equal(t, 1, times, value)
	}
	d, err := c.Admin().DescribeGroup(t.Context(), "g")
	require.NoError(t, err)
	require.Zero(t, d.Lag())
}

// A failure among messages that are handled side by side ends Consume, and is not
// committed, nor anything behind it.
func TestEachConcurrencyFails(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	c := newClient(t, b)
	produce(t, c, "demo", 1, 100)
	g := newGroup(t, c, "g")
	err := g.Consume(t.Context(), []string{"demo"}, robust.Each(func(_ context.Context, m *robust.Message) error {
		switch m.Offset {
		case 50:
			panic("fifty")
		default:
			return nil
		}
	}, robust.Concurrency(4)))
	panicked := new(robust.PanicError)
	require.ErrorAs(t, err, &panicked)
	require.Equal(t, "fifty", panicked.Value)
	d, err := c.Admin().DescribeGroup(t.Context(), "g")
	if errors.Is(err, robust.ErrGroupNotFound) {
		return // The other lanes had not begun, so that there was nothing to commit.
	}
	require.NoError(t, err)
	require.LessOrEqual(t, d.Offsets[0].Committed, int64(50))
}

func TestClaimMoves(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	c := newClient(t, b)
	produce(t, c, "demo", 1, 10)
	g := newGroup(t, c, "g", robust.WithAutoCommit(0))
	err := g.Consume(t.Context(), []string{"demo"}, robust.HandlerFunc(func(s *robust.Session, claim *robust.Claim) error {
		ctx := claim.Context()
		require.Equal(t, "demo", claim.Topic())
		require.Equal(t, robust.OffsetOldest, claim.InitialOffset())
		require.Positive(t, claim.Epoch())
		require.Equal(t, map[string][]int32{"demo": {0}}, s.Claims())
		require.Equal(t, "g", s.Group())
		require.NotEmpty(t, s.MemberID())
		next := func() int64 {
			for m, err := range claim.All(ctx) {
				require.NoError(t, err)
				return m.Offset
			}
			return -1
		}
		require.Equal(t, int64(0), next())
		require.Equal(t, int64(10), claim.HighWaterMarkOffset())
		require.Equal(t, int64(9), claim.Lag())
		require.NoError(t, claim.Seek(ctx, 8))
		require.Equal(t, int64(8), next())
		claim.Pause()
		require.Contains(t, claim.Status().String(), "paused")
		short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		for _, err := range claim.All(short) {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		cancel()
		claim.Resume()
		require.Equal(t, int64(9), next())
		require.Zero(t, claim.Lag())
		require.Equal(t, int64(10), claim.Offset())
		require.NoError(t, claim.SeekTime(ctx, time.Unix(0, 0)))
		require.Equal(t, int64(0), next())
		return context.Canceled
	}))
	require.ErrorIs(t, err, context.Canceled)
}
