package robust

import (
	"bytes"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenBatch is the message of docs/protocol.md's record batch, as a producer sends it.
func goldenBatch(t testing.TB, p producerFields) batch {
	t.Helper()
	var w batchBuilder
	m := NewMessageWithKey("orders", []byte("ann"), []byte("two books"))
	m.Headers = map[string]string{"currency": "EUR"}
	w.add(m, 1700000000123)
	b, err := w.finish(CompressionNone, p)
	require.NoError(t, err)
	return b
}

// goldenBatches has the requests that carry batches, and InitProducer.
func goldenBatches(t testing.TB) []goldenExchange {
	sent := goldenBatch(t, producerFields{id: 4711, epoch: 0, sequence: 12})
	stored := batch(bytes.Clone(goldenBatch(t, noProducer())))
	stored.stamp(17, 2, 1700000000456)
	cut := int64(1048570)
	return []goldenExchange{
		{
			name: "produce-batch", kind: requestProduceBatch, reqBody: append(bytes.Clone(sent), sent...),
			req: &produceBatchRequest{Parts: []producePart{{"orders", 2, len(sent)}, {"orders", 0, len(sent)}}},
			resp: &produceBatchResponse{Parts: []producedPart{
				{Topic: "orders", Partition: 2, BaseOffset: 1048576},
				{Topic: "orders", Partition: 0, BaseOffset: -1, partRefusal: partRefusal{
					Error: "sequence is out of order: producer 4711, epoch 0: sequence 12, expected is 9", Code: "OUT_OF_ORDER_SEQUENCE",
				}},
			}},
		},
		{
			name: "produce-batch-synced", kind: requestProduceBatch, reqBody: sent,
			req:  &produceBatchRequest{Parts: []producePart{{"orders", 2, len(sent)}}, Acks: "synced"},
			resp: &produceBatchResponse{Parts: []producedPart{{Topic: "orders", Partition: 2, BaseOffset: 1048577, Acks: "synced"}}},
		},
		{
			name: "fetch-batch", kind: requestFetchBatch, respBody: stored,
			req: &fetchBatchRequest{
				Partitions: []fetchPart{
					{Topic: "orders", Partition: 1, Offset: 17, MaxBytes: 1 << 20, TopicID: "5a7c1f0e-93d2-4b68-a4f1-2e8d6b90c3d7", LastEpoch: 2},
					{Topic: "orders", Partition: 2, Offset: 1048578, MaxBytes: 1 << 20, TopicID: "5a7c1f0e-93d2-4b68-a4f1-2e8d6b90c3d7", LastEpoch: 7},
				},
				MaxBytes: 1 << 20, MinBytes: 1, MaxWaitMs: 500,
			},
			resp: &fetchBatchResponse{Partitions: []fetchedPart{
				{
					Topic: "orders", Partition: 1, HighWaterMark: 18, LogStartOffset: 3, TopicID: "5a7c1f0e-93d2-4b68-a4f1-2e8d6b90c3d7",
					Epoch: 2, Bytes: len(stored),
				},
				{
					Topic: "orders", Partition: 2, HighWaterMark: 1048600, LogStartOffset: 1040000, TopicID: "5a7c1f0e-93d2-4b68-a4f1-2e8d6b90c3d7",
					DivergedAt: &cut,
				},
			}},
		},
		{
			name: "init-producer", kind: requestInitProducer,
			req: &initProducerRequest{}, resp: &initProducerResponse{ProducerID: 4711},
		},
	}
}

// goldenBody compares a body with the golden one, which stands beside the line's file in
// hexadecimal digits.
func goldenBody(t *testing.T, golden func(*testing.T, string, []byte) []byte, file string, body []byte) {
	t.Helper()
	text := golden(t, bodyFile(file), []byte(hex.EncodeToString(body)+"\n"))
	kept, err := hex.DecodeString(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	require.Equal(t, body, kept)
}

// bodySize is what a line says of its body; -1: it says nothing.
func bodySize(body []byte) int {
	if body == nil {
		return -1
	}
	return len(body)
}

// bodySuffix is how the name of a file ends that has what follows a frame, in hexadecimal.
const bodySuffix = ".body.hex"

func bodyFile(file string) string { return strings.TrimSuffix(file, filepath.Ext(file)) + bodySuffix }

// A line with a body, the body and the next line are read from one stream.
func TestGoldenBodiesInStreams(t *testing.T) {
	for _, g := range goldenBatches(t) {
		if g.reqBody == nil {
			continue
		}
		line, err := appendBodyRequest(nil, g.id(ProtocolV1), g.kind, len(g.reqBody), g.req)
		require.NoError(t, err)
		in := &frameReader{r: bytes.NewReader(append(append(line, g.reqBody...), `{"request_type":4}`...)), limit: 1 << 20}
		frame, err := in.next()
		require.NoError(t, err)
		var r wireRequest
		require.NoError(t, r.decode(frame))
		body, err := in.appendBody(nil, r.body)
		require.NoError(t, err)
		require.Equal(t, g.reqBody, body)
		frame, err = in.next()
		require.NoError(t, err)
		require.NoError(t, r.decode(frame))
		require.Equal(t, requestListTopics, r.kind)
		require.Equal(t, -1, r.body)
	}
}
