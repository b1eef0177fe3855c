package robust

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Every bad value is refused, by an error that names option and value.
func TestOptionLimits(t *testing.T) {
	for _, c := range []struct {
		opt  Option
		want string
	}{
		{WithBrokers(), "WithBrokers([])"},
		{WithBrokers("a:1", "nonsense"), `WithBrokers(["a:1" "nonsense"])`},
		{WithBrokers(""), `WithBrokers([""])`},
		{WithBrokers("host:"), `WithBrokers(["host:"])`},
		{WithBrokers("host:0"), `WithBrokers(["host:0"])`},
		{WithBrokers("host:65536"), `WithBrokers(["host:65536"])`},
		{WithBrokers("host:-1"), `WithBrokers(["host:-1"])`},
		{WithBrokers("host:99999999999999999999"), `WithBrokers(["host:99999999999999999999"])`},
		{WithClientID(""), "WithClientID()"},
		{WithDialer(nil), "WithDialer(nil)"},
		{WithConnectionTimeout(0), "WithConnectionTimeout(0s)"},
		{WithRequestTimeout(-time.Second), "WithRequestTimeout(-1s)"},
		{WithMaxConnections(0), "WithMaxConnections(0)"},
		{WithMaxConnections(1001), "WithMaxConnections(1001)"},
		{WithProtocol(9), "WithProtocol(Protocol(9))"},
		{WithMetadataMaxAge(0), "WithMetadataMaxAge(0s)"},
		{WithRetries(-1), "WithRetries(-1)"},
		{WithRetryBackoff(-1), "WithRetryBackoff(-1ns)"},
		{WithDeliveryTimeout(0), "WithDeliveryTimeout(0s)"},
		{WithPartitioner(nil), "WithPartitioner(nil)"},
		{WithAcks(-1), "WithAcks(Acks(-1))"},
		{WithAcks(2), "WithAcks(Acks(2))"},
		{WithCompression(5), "WithCompression(Compression(5))"},
		{WithStartOffset(-3), "WithStartOffset(-3)"},
		{WithFetchMaxMessages(0), "WithFetchMaxMessages(0)"},
		{WithFetchMinBytes(0), "WithFetchMinBytes(0)"},
		{WithFetchMaxBytes(0), "WithFetchMaxBytes(0)"},
		{WithFetchMaxBytes(9 << 20), "WithFetchMaxBytes(9437184)"},
		{WithFetchMaxWait(-1), "WithFetchMaxWait(-1ns)"},
		{WithPollInterval(0), "WithPollInterval(0s)"},
		{WithMessageBuffer(0), "WithMessageBuffer(0)"},
		{WithOutOfRange(3), "WithOutOfRange(3)"},
		{WithMaxFrameBytes(1), "WithMaxFrameBytes(1)"},
		{nil, "an option is nil"},
	} {
		_, err := New(c.opt)
		require.ErrorIs(t, err, ErrInvalidConfig, c.want)
		require.ErrorContains(t, err, c.want)
	}
}

func TestBrokerOptionLimits(t *testing.T) {
	for _, c := range []struct {
		opt  BrokerOption
		want string
	}{
		{WithTopic("a b", 1), `WithTopic("a b")`},
		{WithTopic("", 1), `WithTopic("")`},
		{WithTopic("..", 1), `WithTopic(".."): want 1 to 249 of A-Z a-z 0-9 . _ -, and neither . nor ..`},
		{WithTopic("a", 0), `WithTopic("a", 0)`},
		{WithTopic("a", maxTopicPartitions+1), `WithTopic("a", 10001)`},
		{WithAutoCreateTopics(-1), "WithAutoCreateTopics(-1)"},
		{WithRetention(-1, 0), "WithRetention(-1ns)"},
		{WithRetention(0, -1), "WithRetention(-1)"},
		{WithAdvertisedAddr("nonsense"), "WithAdvertisedAddr(nonsense)"},
		{WithConnectionLimit(0), "WithConnectionLimit(0)"},
		{WithMaxFrameBytes(-1), "WithMaxFrameBytes(-1)"},
		{nil, "an option is nil"},
	} {
		_, err := NewBroker(c.opt)
		require.ErrorIs(t, err, ErrInvalidConfig, c.want)
		require.ErrorContains(t, err, c.want)
	}
}

// The embedded broker's options are checked by New, with its own words.
func TestEmbeddedBrokerOptionLimits(t *testing.T) {
	_, err := New(WithEmbeddedBroker(WithTopic("a", 0)))
	require.ErrorIs(t, err, ErrInvalidConfig)
	require.ErrorContains(t, err, `WithTopic("a", 0)`)
}

// A handle's options are checked with the client's beneath them.
func TestHandleOptionLimits(t *testing.T) {
	c, err := New(WithFetchMaxBytes(1000))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.SyncProducer(WithRetries(-1))
	require.ErrorContains(t, err, "WithRetries(-1)")
	_, err = c.PartitionConsumer("demo", 0, WithFetchMinBytes(1001))
	require.ErrorContains(t, err, "WithFetchMaxBytes(1000): want at least WithFetchMinBytes")
	_, err = c.PartitionConsumer("de mo", 0)
	require.ErrorIs(t, err, ErrInvalidRequest)
	_, err = c.PartitionConsumer("demo", -1)
	require.ErrorIs(t, err, ErrInvalidRequest)
	require.ErrorContains(t, err, "partition -1: want 0 or more")
}

// Positions that are no numbers are not told as numbers.
func TestConsumerErrorText(t *testing.T) {
	for offset, want := range map[int64]string{
		OffsetOldest: "robust: consume t/3 at the oldest offset: topic not found",
		offsetNone:   "robust: consume t/3: topic not found",
		0:            "robust: consume t/3 at offset 0: topic not found",
	} {
		require.EqualError(t, &ConsumerError{Topic: "t", Partition: 3, Offset: offset, Err: ErrTopicNotFound}, want)
	}
}

// Nothing is said to be gone where nothing was read.
func TestLogChangedErrorText(t *testing.T) {
	require.EqualError(t, &LogChangedError{MadeAnew: true, To: 0}, "robust: the topic was deleted and made anew, went on at 0")
	require.EqualError(t, &LogChangedError{MadeAnew: true, LostTo: 7, To: -1}, "robust: the topic was deleted and made anew: the messages below offset 7 are gone")
}

// What an option fits is a matter of its type, so that the compiler checks it.
func TestOptionsFit(t *testing.T) {
	fits := func(o any) (client, producer, consumer, broker bool) {
		_, client = o.(Option)
		_, producer = o.(ProducerOption)
		_, consumer = o.(ConsumerOption)
		_, broker = o.(BrokerOption)
		return client, producer, consumer, broker
	}
	for name, c := range map[string]struct {
		opt                                any
		client, producer, consumer, broker bool
	}{
		"client":   {WithBrokers("a:1"), true, false, false, false},
		"producer": {WithRetries(1), true, true, false, false},
		"consumer": {WithStartOffset(0), true, false, true, false},
		"broker":   {WithTopic("a", 1), false, false, false, true},
		"shared":   {WithLogger(nil), true, false, false, true},
	} {
		client, producer, consumer, broker := fits(c.opt)
		require.Equal(t, []bool{c.client, c.producer, c.consumer, c.broker}, []bool{client, producer, consumer, broker}, name)
	}
}

// A handle's options change nothing for the others.
func TestHandleOptionsAreItsOwn(t *testing.T) {
	c, err := New(WithRetries(7))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer(WithRetries(1))
	require.NoError(t, err)
	q, err := c.SyncProducer()
	require.NoError(t, err)
	require.Equal(t, 1, p.cfg.retries)
	require.Equal(t, 7, q.cfg.retries)
	require.Equal(t, 7, c.cfg.retries)
}

// The slices that options get are the caller's to change afterwards.
func TestOptionsCopy(t *testing.T) {
	addrs := []string{"a:1"}
	opt := WithBrokers(addrs...)
	addrs[0] = "b:2"
	c, err := New(opt)
	require.NoError(t, err)
	defer c.Close()
	addrs[0] = "c:3"
	require.NotEqual(t, "c:3", c.cfg.brokers[0])
}

func TestLoggerNilIsSilent(t *testing.T) {
	c, err := New(WithLogger(nil), WithDialer(func(context.Context, string, string) (net.Conn, error) {
		return nil, net.ErrClosed
	}))
	require.NoError(t, err)
	defer c.Close()
	require.False(t, c.cfg.logger.Enabled(t.Context(), slog.LevelError))
	require.ErrorIs(t, c.Ping(t.Context()), ErrNoBroker)
}
