package robust_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// newBroker returns a broker that ends with the test.
func newBroker(t testing.TB, opts ...robust.BrokerOption) *robust.Broker {
	t.Helper()
	b, err := robust.NewBroker(opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// newClient returns a client of b through TCP, which ends with the test.
func newClient(t testing.TB, b *robust.Broker, opts ...robust.Option) *robust.Client {
	t.Helper()
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	c, err := robust.New(append([]robust.Option{robust.WithBrokers(addr.String())}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

func TestSendMessage(t *testing.T) {
	for _, p := range []robust.Protocol{robust.ProtocolAuto, robust.ProtocolV1, robust.ProtocolV0} {
		t.Run(p.String(), func(t *testing.T) {
			c := newClient(t, newBroker(t, robust.WithTopic("demo", 3)), robust.WithProtocol(p))
			ctx := t.Context()
			require.NoError(t, c.Ping(ctx))
			producer, err := c.SyncProducer()
			require.NoError(t, err)
			for i := range 10 {
				m := robust.NewMessageWithKey("demo", []byte("k"), fmt.Append(nil, "value ", i))
				partition, offset, err := producer.SendMessage(ctx, m)
				require.NoError(t, err)
				require.Equal(t, robust.PartitionForKey([]byte("k"), 3), partition)
				require.Equal(t, int64(i), offset)
			}
			ms := make([]*robust.Message, 3000)
			for i := range ms {
				ms[i] = robust.NewMessage("demo", fmt.Append(nil, i))
			}
			require.NoError(t, producer.SendMessages(ctx, ms))
		})
	}
}

func TestConsume(t *testing.T) {
	for _, p := range []robust.Protocol{robust.ProtocolAuto, robust.ProtocolV1, robust.ProtocolV0} {
		t.Run(p.String(), func(t *testing.T) {
			c := newClient(t, newBroker(t, robust.WithTopic("demo", 1)), robust.WithProtocol(p))
			ctx := t.Context()
			producer, err := c.SyncProducer()
			require.NoError(t, err)
			const n = 2500
			ms := make([]*robust.Message, n)
			for i := range ms {
				ms[i] = robust.NewMessage("demo", fmt.Append(nil, i))
			}
			require.NoError(t, producer.SendMessages(ctx, ms))
			pc, err := c.PartitionConsumer("demo", 0)
			require.NoError(t, err)
			i := 0
			for m, err := range pc.All(ctx) {
				require.NoError(t, err)
				require.Equal(t, int64(i), m.Offset)
				require.Equal(t, fmt.Sprint(i), string(m.Value))
				i++
				require.Equal(t, int64(i), pc.Offset())
				if i == n/2 {
					break
				}
			}
			for m := range pc.Messages() {
				require.Equal(t, int64(i), m.Offset)
				if i++; i == n {
					break
				}
			}
			require.NoError(t, pc.Seek(ctx, 7))
			require.Equal(t, int64(7), (<-pc.Messages()).Offset)
			require.NoError(t, pc.Close())
		})
	}
}
