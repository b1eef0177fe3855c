package robust

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// batchAnswer is an answer with the body behind it.
type batchAnswer struct {
	*wireResponse
	bytes []byte
}

// answerWithBody is answer for what may have a body.
func (p *rawPeer) answerWithBody(id string) batchAnswer {
	p.t.Helper()
	r := p.mustAnswer(id)
	a := batchAnswer{wireResponse: r}
	if r.body >= 0 {
		var err error
		a.bytes, err = p.in.appendBody(make([]byte, r.body), r.body)
		require.NoError(p.t, err)
	}
	return a
}

// requestFrame is a request in the v1 form.
func requestFrame(t testing.TB, id string, req request) string {
	t.Helper()
	frame, err := appendRequest(nil, ProtocolV1, id, req.kind(), req)
	require.NoError(t, err)
	return string(frame)
}

// storeBatch appends a batch of messages with these values to a partition.
func storeBatch(t testing.TB, b *Broker, topic string, partition int32, values ...string) batch {
	t.Helper()
	messages := make([]*Message, len(values))
	for i, v := range values {
		messages[i] = &Message{Value: []byte(v), Timestamp: 1_700_000_000_000 + int64(i)}
	}
	data := appendBatch(nil, messages...)
	_, p, err := b.service.partition(topic, partition)
	require.NoError(t, err)
	done := make(chan AppendResult, 1)
	p.log.Append(data, AcksStored, func(r AppendResult) { done <- r })
	r := <-done
	require.NoError(t, r.Err)
	return data
}

// fetched asks for batches and returns the answer, each partition with its part of the body.
func (p *rawPeer) fetched(id string, req *fetchBatchRequest) (*fetchBatchResponse, [][]byte) {
	p.t.Helper()
	p.send(requestFrame(p.t, id, req))
	return p.readFetched(id)
}

func (p *rawPeer) readFetched(id string) (*fetchBatchResponse, [][]byte) {
	p.t.Helper()
	a := p.answerWithBody(id)
	require.True(p.t, a.success, a.errText)
	require.GreaterOrEqual(p.t, a.body, 0)
	resp := new(fetchBatchResponse)
	require.NoError(p.t, decodePayload(a.payload, resp))
	var parts [][]byte
	rest := a.bytes
	for i := range resp.Partitions {
		n := resp.Partitions[i].Bytes
		parts = append(parts, rest[:n])
		rest = rest[n:]
	}
	require.Empty(p.t, rest)
	return resp, parts
}

// batchValues reads the values of batches.
func batchValues(t testing.TB, data []byte) []string {
	t.Helper()
	var all []string
	for len(data) > 0 {
		b, rest, err := parseBatch(data)
		require.NoError(t, err)
		data = rest
		records := b.records()
		for {
			var m Message
			more, err := records.next(&m)
			require.NoError(t, err)
			if !more {
				break
			}
			all = append(all, string(m.Value))
		}
	}
	return all
}

func TestFetchBatchServesWhatIsStored(t *testing.T) {
	b := faultBroker(t, 3)
	p := dialPeer(t, b)
	first := storeBatch(t, b, faultTopic, 0, "a", "b")
	storeBatch(t, b, faultTopic, 0, "c")
	storeBatch(t, b, faultTopic, 2, "d")
	resp, parts := p.fetched("1", &fetchBatchRequest{Partitions: []fetchPart{
		{Topic: faultTopic, Partition: 0, Offset: 1, MaxBytes: 1 << 20},
		{Topic: faultTopic, Partition: 1, Offset: 0, MaxBytes: 1 << 20},
		{Topic: faultTopic, Partition: 2, Offset: 0, MaxBytes: 1 << 20},
	}, MaxBytes: 1 << 20})
	require.Len(t, resp.Partitions, 3)
	require.Equal(t, []string{"a", "b", "c"}, batchValues(t, parts[0]))
	require.Empty(t, parts[1])
	require.Equal(t, []string{"d"}, batchValues(t, parts[2]))
	require.Equal(t, []byte(first), parts[0][:len(first)])
	require.EqualValues(t, 3, resp.Partitions[0].HighWaterMark)
	p.requireServed()

	p.send(requestFrame(t, "2", &fetchBatchRequest{Partitions: []fetchPart{
		{Topic: faultTopic, Partition: 0, Offset: 3, MaxBytes: 1 << 20},
		{Topic: faultTopic, Partition: 1, Offset: 0, MaxBytes: 1 << 20},
	}, MaxBytes: 1 << 20, MaxWaitMs: 60_000}))
	p.requireServed()
	storeBatch(t, b, faultTopic, 1, "e")
	_, parts = p.readFetched("2")
	require.Empty(t, parts[0])
	require.Equal(t, []string{"e"}, batchValues(t, parts[1]))
}
