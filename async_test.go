package robust_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// Every message has one result, and is stored once, at the offset that the result says.
func TestAsyncResults(t *testing.T) {
	const n = 10_000
	broker := newBroker(t, robust.WithTopic("demo", 3))
	client := newClient(t, broker)
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	results := make(map[string]*robust.ProducerMessage)
	done := make(chan error, 1)
	go func() {
		for r := range producer.Successes() {
			results[string(r.Value)] = r
		}
		for e := range producer.Errors() {
			done <- e
			return
		}
		done <- nil
	}()
	for i := range n {
		m := robust.NewMessageWithKey("demo", fmt.Appendf(nil, "k%d", i%10), fmt.Appendf(nil, "v%d", i))
		m.Metadata = i
		require.NoError(t, producer.Send(t.Context(), m))
	}
	require.NoError(t, producer.Close())
	require.NoError(t, <-done)
	require.Len(t, results, n)
	for p := range int32(3) {
		consumer, err := client.PartitionConsumer("demo", p)
		require.NoError(t, err)
		at := int64(0)
		last := make(map[string]int)
		for m, err := range consumer.All(t.Context()) {
			require.NoError(t, err)
			r := results[string(m.Value)]
			require.NotNil(t, r)
			require.Equal(t, []int64{int64(p), at}, []int64{int64(r.Partition), r.Offset})
			require.Equal(t, string(m.Value), fmt.Sprintf("v%d", r.Metadata))
			require.GreaterOrEqual(t, r.Metadata.(int), last[string(m.Key)])
			last[string(m.Key)] = r.Metadata.(int)
			at++
			if at == consumer.HighWaterMark() {
				break
			}
		}
		require.NoError(t, consumer.Close())
	}
}

// Flush waits also for messages that a broker which takes no batches is sent one by one:
// it returned before their results were there.
func TestAsyncFlushOfSingles(t *testing.T) {
	broker := newBroker(t, robust.WithTopic("demo", 1))
	client, err := robust.New(robust.WithDialer(broker.Dial), robust.WithProtocol(robust.ProtocolV0))
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	producer, err := client.AsyncProducer()
	require.NoError(t, err)
	var results atomic.Int64
	for i := range int64(2000) {
		require.NoError(t, producer.SendFunc(t.Context(), robust.NewMessage("demo", []byte("x")), func(_ *robust.Message, _ robust.Receipt, err error) {
			runtime.Gosched() // Flush is to have its chance.
			if err == nil {
				results.Add(1)
			}
		}))
		if i%50 == 49 {
			require.NoError(t, producer.Flush(t.Context()))
			require.Equal(t, i+1, results.Load())
		}
	}
	require.NoError(t, producer.Close())
}
