package robust

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRequestsOfNoName: each number that a peer made up got metrics of its own.
func TestRequestsOfNoName(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	p := dialPeer(t, b)
	for _, number := range []string{"57", "99", "111", "126", "127", "1000", "-5"} {
		p.send(`{"request_id":"1","request_type":` + number + `}` + "\n")
		require.False(t, p.mustAnswer("1").success)
	}
	s := b.Metrics()
	require.Len(t, s.Requests, 1)
	require.Equal(t, uint64(7), s.Requests["Unknown"].Failed)
	require.Equal(t, uint64(7), s.Requests["Unknown"].Latency.Count)
}

// produceBatch sends a batch for a partition of a topic.
func (p *rawPeer) produceBatch(topic string, data batch) producedPart {
	p.t.Helper()
	line, err := appendBodyRequest(nil, "1", requestProduceBatch, len(data), &produceBatchRequest{Parts: []producePart{{topic, 0, len(data)}}})
	require.NoError(p.t, err)
	p.send(string(line) + string(data))
	var resp produceBatchResponse
	require.NoError(p.t, decodePayload(p.mustAnswer("1").payload, &resp))
	return resp.Parts[0]
}

// TestBrokerMetricsOfRefusals: messages that were refused before they came to a log were
// counted nowhere, unless the whole request was refused.
func TestBrokerMetricsOfRefusals(t *testing.T) {
	var told toldEvents
	b, err := NewBroker(WithTopic("demo", 1), WithHooks(told.hooks()))
	require.NoError(t, err)
	defer b.Close()
	p := dialPeer(t, b)
	data := appendBatch(nil, NewMessage("demo", []byte("one")), NewMessage("demo", []byte("two")))
	require.Equal(t, "TOPIC_NOT_FOUND", string(p.produceBatch("nowhere", data).Code))
	require.Empty(t, p.produceBatch("demo", data).Code)
	p.send(`{"request_id":"2","request_type":0,"payload":{"topic":"nowhere","value":"eA=="}}` + "\n")
	require.False(t, p.mustAnswer("2").success)
	claims := append(batch(nil), data...)
	binary.BigEndian.PutUint32(claims[batchCountAt:], 1<<30)
	require.NotEmpty(t, p.produceBatch("nowhere", claims).Code)

	s := b.Metrics()
	require.Equal(t, uint64(2), s.MessagesStored)
	require.Equal(t, uint64(2+1+len(claims)), s.MessagesFailed, "of what was not checked no more are believed than there is room for")
	require.Equal(t, uint64(1), s.Requests["Produce"].Failed)
	require.Len(t, told.produced, 4)
	require.Equal(t, ProduceEvent{Topic: "nowhere", BaseOffset: -1, Messages: 2, Bytes: len(data), Err: told.produced[0].Err}, told.produced[0])
	require.ErrorIs(t, told.produced[0].Err, ErrTopicNotFound)
}

// brokenStorage stores no messages.
type brokenStorage struct{ Storage }

func (s brokenStorage) OpenPartition(ctx context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	l, err := s.Storage.OpenPartition(ctx, t, partition, c, advanced)
	return brokenLog{l}, err
}

type brokenLog struct{ PartitionLog }

func (brokenLog) Append(_ []byte, _ Acks, done func(AppendResult)) {
	done(AppendResult{Err: ErrOverloaded})
}

// TestRequestsRefusedTogether has requests that were to be stored together fail together: each
// counts.
func TestRequestsRefusedTogether(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1), WithStorage(brokenStorage{NewMemoryStorage()}), WithLogger(nil))
	require.NoError(t, err)
	defer b.Close()
	p := dialPeer(t, b)
	text := ""
	for i := range 5 {
		text += fmt.Sprintf(`{"request_id":"%d","request_type":0,"payload":{"topic":"demo","value":"eA=="}}`+"\n", i)
	}
	p.send(text)
	for i := range 5 {
		require.False(t, p.mustAnswer(fmt.Sprint(i)).success)
	}
	require.Equal(t, uint64(5), b.Metrics().Requests["Produce"].Failed)
	require.Equal(t, uint64(5), b.Metrics().Requests["Produce"].Latency.Count)
}

// TestBrokerMetricsOfRepeats: a batch that came again, and was recognised, counted as stored
// each time.
func TestBrokerMetricsOfRepeats(t *testing.T) {
	for name, opts := range map[string][]BrokerOption{"memory": nil, "directory": {WithDataDir(t.TempDir())}} {
		t.Run(name, func(t *testing.T) {
			b, err := NewBroker(append(opts, WithTopic("demo", 1))...)
			require.NoError(t, err)
			defer b.Close()
			p := dialPeer(t, b)
			data := appendBatch(nil, NewMessage("demo", []byte("one")), NewMessage("demo", []byte("two")))
			data.setProducer(producerFields{id: 7})
			for range 3 {
				require.Zero(t, p.produceBatch("demo", data).BaseOffset)
			}
			s := b.Metrics()
			require.Equal(t, uint64(2), s.MessagesStored)
			require.Equal(t, uint64(4), s.MessagesRepeated)
			require.Equal(t, uint64(len(data)), s.BytesStored)
			require.Equal(t, uint64(1), s.AppendMessages.Count)
			require.Equal(t, int64(2), s.ByTopic["demo"].Messages)
		})
	}
}

// slowTopics is a storage that takes its time to keep a topic.
type slowTopics struct{ Storage }

const slowTopic = time.Second

func (s slowTopics) PutTopic(ctx context.Context, t StoredTopic) error {
	time.Sleep(slowTopic) //nolint:forbidigo // of fake time
	return s.Storage.PutTopic(ctx, t)
}

// TestLatencyOfProduce: the time that it took to find, or to create, the topic of a single
// message was no part of its latency.
func TestLatencyOfProduce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := NewBroker(WithStorage(slowTopics{NewMemoryStorage()}), WithAutoCreateTopics(1))
		require.NoError(t, err)
		defer b.Close()
		p := dialPeer(t, b)
		defer p.nc.Close()
		p.send(`{"request_id":"1","request_type":0,"payload":{"topic":"fresh","value":"eA=="}}` + "\n")
		require.True(t, p.mustAnswer("1").success)
		require.Equal(t, slowTopic, b.Metrics().Requests["Produce"].Latency.Max)
		p.send(`{"request_id":"2","request_type":0,"payload":{"topic":"fresh","value":"eA=="}}` + "\n")
		require.True(t, p.mustAnswer("2").success)
		require.Equal(t, slowTopic, b.Metrics().Requests["Produce"].Latency.Sum, "the next one begins anew")
		p.send(`{"request_id":"3","request_type":0,"payload":{"topic":"not a name"}}` + "\n")
		require.False(t, p.mustAnswer("3").success)
		require.Equal(t, uint64(3), b.Metrics().Requests["Produce"].Latency.Count)
	})
}

// TestCountedBeforeAnswered: who had an answer might find its request not counted yet.
func TestCountedBeforeAnswered(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1), WithDataDir(t.TempDir()), WithSync(SyncAlways))
	require.NoError(t, err)
	defer b.Close()
	p := dialPeer(t, b)
	for i := range uint64(100) {
		require.Empty(t, p.produceBatch("demo", appendBatch(nil, NewMessage("demo", []byte("x")))).Code)
		p.send(`{"request_id":"2","request_type":0,"payload":{"topic":"demo","value":"eA=="}}` + "\n")
		require.True(t, p.mustAnswer("2").success)
		p.send(`{"request_id":"3","request_type":9,"payload":{"group_id":"g","offsets":[{"topic":"demo","partition":0,"offset":1}]}}` + "\n")
		require.True(t, p.mustAnswer("3").success)
		s := b.Metrics().Requests
		for _, kind := range []string{"ProduceBatch", "Produce", "CommitOffset"} {
			require.Equal(t, i+1, s[kind].Latency.Count, kind)
		}
	}
}

// TestMetricsOfClosedBroker holds that a broker which has ended can be asked still.
func TestMetricsOfClosedBroker(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	require.Empty(t, dialPeer(t, b).produceBatch("demo", appendBatch(nil, NewMessage("demo", nil))).Code)
	require.NoError(t, b.Close())
	s := b.Metrics()
	require.Equal(t, uint64(1), s.MessagesStored)
	require.Empty(t, s.ByTopic)
	require.Zero(t, s.ActiveConnections)
}

// TestSeriesStayTheSame: of topics that stood alike others were named in each snapshot, so
// that in time all were, whatever the limit.
func TestSeriesStayTheSame(t *testing.T) {
	opts := []BrokerOption{WithMaxSeries(3)}
	m := ConsumerMetrics{maxSeries: 3}
	for i := range 20 {
		opts = append(opts, WithTopic(fmt.Sprintf("topic%02d", i), 1))
		m.UpdateLag("topic", int32(i), 5)
		m.UpdateLag(fmt.Sprintf("topic%02d", i), 0, 5)
	}
	b, err := NewBroker(opts...)
	require.NoError(t, err)
	defer b.Close()
	for range 20 {
		s := b.Metrics()
		require.Equal(t, map[string]TopicStats{
			"topic00": s.ByTopic["topic00"], "topic01": s.ByTopic["topic01"], "topic02": s.ByTopic["topic02"],
		}, s.ByTopic)
		lag := m.GetStats()
		require.Equal(t, map[TopicPartition]int64{{"topic", 0}: 5, {"topic", 1}: 5, {"topic", 2}: 5}, lag.Lag)
		require.Equal(t, map[string]TopicLag{"topic": {20, 100, 5}, "topic00": {1, 5, 5}, "topic01": {1, 5, 5}}, lag.LagByTopic)
	}
}

// halfConn takes half of what it is given.
type halfConn struct{ net.Conn }

func (halfConn) Write(b []byte) (int, error) { return len(b) / 2, errors.New("no more") }
func (halfConn) Close() error                { return nil }

// TestBytesOfFailedWrite: what a write had sent before it failed was not counted.
func TestBytesOfFailedWrite(t *testing.T) {
	for _, parts := range [][2][]byte{{make([]byte, 10), nil}, {nil, make([]byte, 10)}, {make([]byte, 10), make([]byte, 10)}} {
		var counted byteCounters
		w := frameWriter{nc: halfConn{}, bytes: &counted}
		require.Error(t, w.writeChunk(parts[0], parts[1]))
		require.Equal(t, uint64(5), counted.out.Load())
	}
}

func TestTopicPartitionText(t *testing.T) {
	for _, tp := range []TopicPartition{{"orders", 0}, {"a/b", 7}, {"", -1}} {
		text, err := tp.MarshalText()
		require.NoError(t, err)
		var again TopicPartition
		require.NoError(t, again.UnmarshalText(text))
		require.Equal(t, tp, again)
	}
	for _, text := range []string{"", "orders", "7", "orders/", "orders/x", "orders/99999999999"} {
		var tp TopicPartition
		require.Error(t, tp.UnmarshalText([]byte(text)), text)
	}
}
