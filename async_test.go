package robust_test

import (
	"fmt"
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
