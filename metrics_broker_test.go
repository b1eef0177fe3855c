package robust

import (
	"context"
	"encoding/json"
	"expvar"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBrokerMetrics(t *testing.T) {
	for _, storage := range []string{"memory", "directory"} {
		t.Run(storage, func(t *testing.T) {
			opts := []BrokerOption{WithTopic("demo", 2), WithTopic("other", 1)}
			if storage == "directory" {
				opts = append(opts, WithDataDir(t.TempDir()))
			}
			b, err := NewBroker(opts...)
			require.NoError(t, err)
			defer b.Close()
			empty := b.Metrics()
			require.Equal(t, 2, empty.Topics)
			require.Equal(t, 3, empty.Partitions)
			require.Zero(t, empty.ActiveConnections)
			require.Empty(t, empty.Requests)

			c, err := b.Client(WithMaxConnections(1))
			require.NoError(t, err)
			p, err := c.SyncProducer()
			require.NoError(t, err)
			var ms []*Message
			for range 100 {
				m := NewMessage("demo", make([]byte, 100))
				m.Partition = 1
				ms = append(ms, m)
			}
			require.NoError(t, p.SendMessages(t.Context(), ms))
			_, err = p.Send(t.Context(), NewMessage("nowhere", nil))
			require.ErrorIs(t, err, ErrTopicNotFound)
			consumer, err := c.PartitionConsumer("demo", 1)
			require.NoError(t, err)
			for range 100 {
				_, err := consumer.receive(t.Context())
				require.NoError(t, err)
			}
			require.NoError(t, consumer.Close())
			group, err := c.ConsumerGroup("readers")
			require.NoError(t, err)
			ctx, stop := context.WithCancel(t.Context())
			err = group.Consume(ctx, []string{"demo"}, Each(func(_ context.Context, m *Message) error {
				if m.Offset == 30 {
					stop()
				}
				return nil
			}))
			require.NoError(t, err)
			require.NoError(t, group.Close())

			s := b.Metrics()
			require.Equal(t, int64(1), s.ActiveConnections)
			require.Equal(t, uint64(1), s.TotalConnections)
			require.Equal(t, uint64(100), s.MessagesStored)
			require.Equal(t, int64(100), s.AppendMessages.Sum)
			require.Greater(t, s.BytesStored, uint64(100*100))
			require.GreaterOrEqual(t, s.MessagesFetched, uint64(100))
			require.Greater(t, s.BytesSent, s.BytesFetched)
			require.Greater(t, s.BytesReceived, s.BytesStored)
			require.Greater(t, c.Metrics().Connection.GetStats().BytesReceived, s.BytesFetched)
			require.Greater(t, c.Metrics().Connection.GetStats().BytesSent, s.BytesStored)
			require.Positive(t, s.Requests["ProduceBatch"].Latency.Count)
			require.Positive(t, s.Requests["FetchBatch"].Latency.Count)
			require.Positive(t, s.Requests["Metadata"].Failed)
			require.Positive(t, s.Requests["CommitOffset"].Latency.Max)
			require.Equal(t, int64(100), s.ByTopic["demo"].Messages)
			require.GreaterOrEqual(t, s.ByTopic["demo"].Bytes, int64(s.BytesStored))
			require.Equal(t, s.LogBytes, s.ByTopic["demo"].Bytes+s.ByTopic["other"].Bytes)
			require.Positive(t, s.Segments)
			require.Equal(t, 1, s.Groups)
			require.Contains(t, s.ByGroup, "readers")
			require.Zero(t, s.LeftOut)

			read := c.Metrics().Consumer.GetStats()
			require.Equal(t, read.FetchCount, read.FetchLatency.Count)
			require.Equal(t, uint64(100), uint64(min(read.FetchBytes.Sum/100, 100)))
			require.Equal(t, read.CommitCount, read.CommitLatency.Count)
			require.Positive(t, read.CommitCount)
			require.Equal(t, uint64(1), read.RebalanceLatency.Count)
			require.Less(t, read.RebalanceLatency.Max, time.Minute)
			require.Equal(t, uint64(1), c.Metrics().Connection.GetStats().ConnectLatency.Count)

			since := s.Since(empty)
			require.Equal(t, uint64(100), since.MessagesStored)
			require.Empty(t, s.Since(s).Requests)
			require.Zero(t, s.Since(s).BytesStored)
			require.Equal(t, s.ByTopic, s.Since(s).ByTopic, "how things stand")
			require.NoError(t, c.Close())
		})
	}
}

func TestProducerMetricsOfBatches(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client(WithCompression(CompressionGzip))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.AsyncProducer()
	require.NoError(t, err)
	const n, size = 200, 1000
	for range n {
		require.NoError(t, p.SendFunc(t.Context(), NewMessage("demo", make([]byte, size)), func(*Message, Receipt, error) {}))
	}
	require.NoError(t, p.Flush(t.Context()))
	s := c.Metrics().Producer.GetStats()
	require.Equal(t, uint64(n), s.MessagesSent)
	require.Equal(t, uint64(n), s.Latency.Count)
	require.Equal(t, int64(n), s.BatchMessages.Sum)
	require.Equal(t, uint64(s.BatchBytes.Sum), s.EncodedBytes)
	require.Greater(t, s.PlainBytes, uint64(n*size))
	require.Greater(t, s.CompressionRatio(), 5.0)
	require.Equal(t, int64(n), b.Metrics().AppendMessages.Sum)
	require.Equal(t, s.EncodedBytes, b.Metrics().BytesStored)
}

// TestProducerMetricsOfMemory holds that what waits is told, and not any more when its
// producer is closed.
func TestProducerMetricsOfMemory(t *testing.T) {
	c, err := New(WithBrokers("broker:1"), WithLogger(nil),
		WithDialer(func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }))
	require.NoError(t, err)
	defer c.Close()
	require.Zero(t, c.Metrics().Producer.GetStats().BufferedBytes)
	p, err := c.AsyncProducer()
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, p.SendFunc(t.Context(), NewMessage("demo", make([]byte, 100)), func(*Message, Receipt, error) {}))
	}
	require.Equal(t, int64(3*(100+messageOverhead)), c.Metrics().Producer.GetStats().BufferedBytes)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = p.Shutdown(ctx) // What it could not send is not the matter here.
	s := c.Metrics().Producer.GetStats()
	require.Zero(t, s.BufferedBytes)
	require.Equal(t, uint64(3), s.MessagesFailed)
	require.Zero(t, s.Latency.Count, "of those stored only")
}

// TestBrokerMetricsOfSingles sends messages in requests of their own, which the broker stores
// together.
func TestBrokerMetricsOfSingles(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client(WithProtocol(ProtocolV0))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for range 20 {
		_, err := p.Send(t.Context(), NewMessage("demo", []byte("x")))
		require.NoError(t, err)
	}
	s := b.Metrics()
	require.Equal(t, uint64(20), s.MessagesStored)
	require.Equal(t, uint64(20), s.Requests["Produce"].Latency.Count)
	require.Zero(t, s.Requests["Produce"].Failed)
	require.Equal(t, uint64(20), c.Metrics().Producer.GetStats().Latency.Count)
}

func TestBrokerMetricsGroupLag(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 2))
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for i := range 30 {
		m := NewMessage("demo", []byte("x"))
		m.Partition = int32(i % 3 / 2) // 20 and 10
		_, err := p.Send(t.Context(), m)
		require.NoError(t, err)
	}
	for tp, offset := range map[TopicPartition]int64{{"demo", 0}: 5, {"demo", 1}: 8} {
		err := c.ask(t.Context(), route{}, &commitOffsetRequest{GroupID: "readers", Offsets: []offsetToStore{{Topic: tp.Topic, Partition: tp.Partition, Offset: offset}}}, &commitOffsetResponse{})
		require.NoError(t, err)
	}
	require.Equal(t, GroupStats{Partitions: 2, Lag: 17, MaxLag: 15}, b.Metrics().ByGroup["readers"])

	for id, members := range map[string]int{"readers": 2, "others": 1} {
		for range members {
			join := &joinGroupRequest{GroupID: id, ClientID: "worker", Topics: []string{"demo"}}
			require.NoError(t, c.ask(t.Context(), route{}, join, &joinGroupResponse{}))
		}
	}
	s := b.Metrics()
	require.Equal(t, GroupStats{Members: 2, Partitions: 2, Lag: 17, MaxLag: 15}, s.ByGroup["readers"])
	require.Equal(t, 1, s.ByGroup["others"].Members)
	require.Equal(t, 3, s.Members)
	require.Equal(t, 2, s.Groups)
}

func TestBrokerMetricsAreBounded(t *testing.T) {
	opts := []BrokerOption{WithMaxSeries(3)}
	for i := range 10 {
		opts = append(opts, WithTopic(fmt.Sprint("topic", i), 1))
	}
	b, err := NewBroker(opts...)
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client(WithMaxSeries(2))
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	for i := range 10 {
		for range i + 1 {
			_, err := p.Send(t.Context(), NewMessage(fmt.Sprint("topic", i), []byte("x")))
			require.NoError(t, err)
		}
		c.Metrics().Consumer.UpdateLag(fmt.Sprint("topic", i), 0, int64(i))
		c.Metrics().Consumer.UpdateLag(fmt.Sprint("topic", i), 1, int64(i))
	}
	s := b.Metrics()
	require.Len(t, s.ByTopic, 3)
	require.Contains(t, s.ByTopic, "topic9", "the largest")
	require.Equal(t, 7, s.LeftOut)
	require.Equal(t, 10, s.Topics)
	lag := c.Metrics().Consumer.GetStats()
	require.Equal(t, map[TopicPartition]int64{{"topic9", 0}: 9, {"topic9", 1}: 9}, lag.Lag)
	require.Equal(t, map[string]TopicLag{"topic9": {2, 18, 9}, "topic8": {2, 16, 8}}, lag.LagByTopic)
	require.Equal(t, int64(90), lag.LagTotal)
	require.Equal(t, 18+8, lag.LagLeftOut)
	_, err = NewBroker(WithMaxSeries(0))
	require.ErrorContains(t, err, "WithMaxSeries")
}

func TestBrokerMetricsUpdatesDoNotAllocate(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	m := b.service.metrics
	_, p, err := b.service.partition("demo", 0)
	require.NoError(t, err)
	data := appendBatch(nil, NewMessage("demo", []byte("x")))
	m.of(requestProduce)
	for name, update := range map[string]func(){
		"request": func() { m.answered(nil, m.begin(requestProduce), 1, nil) },
		"append": func() {
			a := m.appends(p, data, -1)
			a.done(&AppendResult{})
		},
		"fetch": func() { m.fetched(ConsumeEvent{Topic: "demo", Messages: 1, Bytes: 10}) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, update), name)
	}
}

// TestMetricsInExpvar holds that both ends show themselves in expvar, as JSON.
func TestMetricsInExpvar(t *testing.T) {
	b, err := NewBroker(WithTopic("demo", 1))
	require.NoError(t, err)
	defer b.Close()
	c, err := b.Client()
	require.NoError(t, err)
	defer c.Close()
	p, err := c.SyncProducer()
	require.NoError(t, err)
	_, err = p.Send(t.Context(), NewMessage("demo", []byte("x")))
	require.NoError(t, err)
	c.Metrics().Consumer.UpdateLag("demo", 0, 5)
	vars := new(expvar.Map)
	vars.Set("client", c.Metrics())
	vars.Set("broker", expvar.Func(func() any { return b.Metrics() }))
	var shown struct {
		Client struct {
			Producer map[string]any
			Consumer struct{ Lag map[string]int64 }
		}
		Broker struct {
			Requests map[string]struct {
				Seconds map[string]float64
				Failed  uint64
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(vars.String()), &shown))
	require.InDelta(t, 1, shown.Client.Producer["messages_sent"], 0)
	latency, ok := shown.Client.Producer["latency_seconds"].(map[string]any)
	require.True(t, ok)
	require.InDelta(t, c.Metrics().Producer.GetStats().MaxLatency.Seconds(), latency["max"], 1e-12)
	require.Equal(t, map[string]int64{"demo/0": 5}, shown.Client.Consumer.Lag)
	require.InDelta(t, 1, shown.Broker.Requests["ProduceBatch"].Seconds["count"], 0)
	var whole map[string]any
	require.NoError(t, json.Unmarshal([]byte(b.Metrics().String()), &whole))
	require.Contains(t, whole, "log_bytes")
}

// shownNames are those that a snapshot has as JSON, and with a dot those of the values of maps.
func shownNames(t *testing.T, typ reflect.Type, under string) (names []string) {
	t.Helper()
	for i := range typ.NumField() {
		f := typ.Field(i)
		name := f.Tag.Get("json")
		require.NotEmpty(t, name, "%s.%s", typ, f.Name)
		switch {
		case name == "-":
		case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
			names = append(names, shownNames(t, f.Type.Elem(), name+".")...)
		default:
			names = append(names, under+name)
		}
	}
	return names
}

// TestMetricsDoc compares the tables of names with the snapshots.
func TestMetricsDoc(t *testing.T) {
	d := readDocument(t, "docs/metrics.md")
	exported := make(map[string]bool)
	for section, stats := range map[string]any{
		"Producer": ProducerStats{}, "Consumer": ConsumerStats{}, "Connection": ConnectionStats{}, "Broker": BrokerStats{},
	} {
		want, got := shownNames(t, reflect.TypeOf(stats), ""), []string(nil)
		for _, row := range d.table(t, section, "JSON").rows {
			got = append(got, bare(row[0]))
			name, _, _ := strings.Cut(bare(row[1]), "{")
			if name == "–" {
				continue
			}
			require.False(t, exported[name], "%s stands there twice", name)
			exported[name] = true
			require.Equal(t, row[2] == "counter", strings.HasSuffix(name, "_total"), name)
			require.True(t, strings.HasPrefix(name, "robust_"), name)
		}
		require.Equal(t, want, got, section)
	}
}

// TestStatsSince holds that each counter of a snapshot is a difference in what Since returns.
func TestStatsSince(t *testing.T) {
	var m Metrics
	count := func() {
		m.Producer.RecordSent(100, time.Second)
		m.Producer.RecordFailed()
		m.Producer.recordRetry(&ConnError{Op: "read"})
		m.Producer.recordBatch(1, 10, 20, 10)
		m.Consumer.RecordReceived(10)
		m.Consumer.recordFetch(10, time.Millisecond)
		m.Consumer.RecordCommit(true)
		m.Consumer.RecordCommit(false)
		m.Consumer.recordRebalance()
		m.Consumer.recordDroppedError()
		m.Consumer.commitLatency.record(time.Second)
		m.Consumer.rebalanceLatency.record(time.Second)
		m.Connection.RecordConnection()
		m.Connection.RecordFailed()
		m.Connection.RecordReconnection()
		m.Connection.connect.record(time.Second)
		m.Connection.bytes.read(10)
		m.Connection.bytes.wrote(10)
	}
	count()
	once := m.GetStats()
	count()
	since := m.GetStats().Since(once)
	require.Equal(t, int64(2), since.Connection.ActiveConnections, "how things stand")
	since.Connection.ActiveConnections = 1
	for _, pair := range [][2]any{{once.Producer, since.Producer}, {once.Consumer, since.Consumer}, {once.Connection, since.Connection}} {
		a, b := reflect.ValueOf(pair[0]), reflect.ValueOf(pair[1])
		for i := range a.NumField() {
			name := a.Type().Field(i).Name
			switch a.Field(i).Kind() {
			case reflect.Uint64, reflect.Map:
				require.Equal(t, a.Field(i).Interface(), b.Field(i).Interface(), name)
			case reflect.Struct:
				require.Equal(t, a.Field(i).FieldByName("Count").Uint(), b.Field(i).FieldByName("Count").Uint(), name)
				require.Equal(t, a.Field(i).FieldByName("Sum").Int(), b.Field(i).FieldByName("Sum").Int(), name)
			default:
			}
		}
	}
	require.Equal(t, Stats{}.Producer.MessagesSent, once.Since(m.GetStats()).Producer.MessagesSent, "another's, which began anew")
}
