package robust

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// The sub-benchmarks /robust and /stdlib do the same work with this package's codec
// and with encoding/json alone.

const benchTime = 1700000000123

func benchProduce() *produceRequest {
	return &produceRequest{
		Topic: "orders", Partition: -1, Key: []byte("customer-04711"), Value: benchValue(0),
		Headers:   map[string]string{"content-type": "application/json", "trace": "4bf92f3577b34da6"},
		Timestamp: benchTime,
	}
}

// benchValue is 100 bytes.
func benchValue(i int) []byte {
	v := fmt.Appendf(nil, `{"order":%d,"padding":"`, 90125+i)
	for len(v) < 98 {
		v = append(v, 'x')
	}
	return append(v, `"}`...)
}

func benchMessages(n int) []*Message {
	messages := make([]*Message, n)
	for i := range messages {
		messages[i] = &Message{
			ID: fmt.Sprintf("orders-3-%d", 1048576+i), Topic: "orders", Partition: 3,
			Key: fmt.Appendf(nil, "customer-%05d", i), Value: benchValue(i),
			Headers:   map[string]string{"content-type": "application/json", "trace": fmt.Sprintf("4bf92f3577b3%04x", i)},
			Timestamp: benchTime + int64(i), Offset: 1048576 + int64(i),
		}
	}
	return messages
}

func benchFetch() *fetchResponse {
	return &fetchResponse{Topic: "orders", Partition: 3, Messages: benchMessages(100), HighWaterMark: 1048676}
}

func BenchmarkEncodePayload(b *testing.B) {
	for _, c := range []struct {
		name string
		v    any
	}{
		{"ProduceRequest", benchProduce()},
		{"ProduceResponse", &produceResponse{Topic: "orders", Partition: 3, Offset: 1048576, Timestamp: benchTime}},
		{"FetchRequest", &fetchRequest{Topic: "orders", Partition: 3, Offset: 1048576, MaxBytes: 1 << 20, MaxMessages: 500}},
		{"Fetch100", benchFetch()},
	} {
		b.Run(c.name+"/robust", func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = appendPayload(buf[:0], c.v)
			}
			b.SetBytes(int64(len(buf)))
		})
		b.Run(c.name+"/stdlib", func(b *testing.B) {
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = json.Marshal(c.v)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

func BenchmarkDecodePayload(b *testing.B) {
	decodeBench(b, "ProduceRequest", benchProduce(), func() any { return new(produceRequest) })
	decodeBench(b, "ProduceResponse", &produceResponse{Topic: "orders", Partition: 3, Offset: 1048576, Timestamp: benchTime},
		func() any { return new(produceResponse) })
	decodeBench(b, "FetchRequest", &fetchRequest{Topic: "orders", Partition: 3, Offset: 1048576, MaxBytes: 1 << 20, MaxMessages: 500},
		func() any { return new(fetchRequest) })
	decodeBench(b, "Fetch100", benchFetch(), func() any { return newFetchResponse() })
}

func decodeBench(b *testing.B, name string, v any, blank func() any) {
	text, err := appendPayload(nil, v)
	require.NoError(b, err)
	b.Run(name+"/robust", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if err := decodePayload(text, blank()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(name+"/stdlib", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if err := json.Unmarshal(text, blank()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// stdEnvelope is a v0 response as a program would declare it that has encoding/json
// only; stdPlainEnvelope is a v1 response.
type (
	stdEnvelope struct {
		RequestID string `json:"request_id"`
		Success   bool   `json:"success"`
		Error     string `json:"error"`
		Payload   []byte `json:"payload"`
	}
	stdPlainEnvelope struct {
		RequestID string          `json:"request_id"`
		Success   bool            `json:"success"`
		Error     string          `json:"error"`
		Payload   json.RawMessage `json:"payload"`
	}
)

// BenchmarkDecodeEnvelope leaves the payload's own decoding out.
func BenchmarkDecodeEnvelope(b *testing.B) {
	small, err := appendPayload(nil, &produceResponse{Topic: "orders", Partition: 3, Offset: 1048576, Timestamp: benchTime})
	require.NoError(b, err)
	large, err := appendPayload(nil, benchFetch())
	require.NoError(b, err)
	for _, c := range []struct {
		name    string
		payload []byte
	}{{"ProduceResponse", small}, {"Fetch100", large}} {
		frame, err := json.Marshal(&stdPlainEnvelope{RequestID: peerID, Success: true, Payload: c.payload})
		require.NoError(b, err)
		envelopeBench(b, c.name+"/v1", frame, func() any { return new(stdPlainEnvelope) })
		frame, err = json.Marshal(&stdEnvelope{RequestID: peerID, Success: true, Payload: c.payload})
		require.NoError(b, err)
		envelopeBench(b, c.name+"/v0", frame, func() any { return new(stdEnvelope) })
	}
}

func envelopeBench(b *testing.B, name string, frame []byte, blank func() any) {
	b.Run(name+"/robust", func(b *testing.B) {
		var r wireResponse
		b.SetBytes(int64(len(frame)))
		b.ReportAllocs()
		for b.Loop() {
			if err := r.decode(frame); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run(name+"/stdlib", func(b *testing.B) {
		b.SetBytes(int64(len(frame)))
		b.ReportAllocs()
		for b.Loop() {
			if err := json.Unmarshal(frame, blank()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkEncodeFrame writes payload and envelope, which encoding/json does in two
// passes in v0.
func BenchmarkEncodeFrame(b *testing.B) {
	for _, c := range []struct {
		name string
		v    any
	}{
		{"ProduceResponse", &produceResponse{Topic: "orders", Partition: 3, Offset: 1048576, Timestamp: benchTime}},
		{"Fetch100", benchFetch()},
	} {
		for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
			b.Run(c.name+"/"+form.String()+"/robust", func(b *testing.B) {
				var buf []byte
				b.ReportAllocs()
				for b.Loop() {
					buf, _ = appendResponse(buf[:0], form, peerID, c.v, nil)
				}
				b.SetBytes(int64(len(buf)))
			})
			b.Run(c.name+"/"+form.String()+"/stdlib", func(b *testing.B) {
				var buf []byte
				b.ReportAllocs()
				for b.Loop() {
					payload, _ := json.Marshal(c.v)
					if form == ProtocolV0 {
						buf, _ = json.Marshal(&stdEnvelope{RequestID: peerID, Success: true, Payload: payload})
					} else {
						buf, _ = json.Marshal(&stdPlainEnvelope{RequestID: peerID, Success: true, Payload: payload})
					}
				}
				b.SetBytes(int64(len(buf)))
			})
		}
	}
}

// BenchmarkDecodeFrame is all there is to do for a frame on its way in: find its
// end, read the envelope, read the payload.
func BenchmarkDecodeFrame(b *testing.B) {
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		produce, err := appendRequest(nil, form, peerID, requestProduce, benchProduce())
		require.NoError(b, err)
		fetched, err := appendResponse(nil, form, peerID, benchFetch(), nil)
		require.NoError(b, err)
		b.Run("ProduceRequest/"+form.String(), func(b *testing.B) {
			var r wireRequest
			b.SetBytes(int64(len(produce)))
			b.ReportAllocs()
			for b.Loop() {
				var f frameScanner
				n, _, _ := f.scan(produce)
				_ = r.decode(produce[:n])
				if err := decodePayload(r.payload, new(produceRequest)); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("Fetch100/"+form.String(), func(b *testing.B) {
			var r wireResponse
			b.SetBytes(int64(len(fetched)))
			b.ReportAllocs()
			for b.Loop() {
				var f frameScanner
				n, _, _ := f.scan(fetched)
				_ = r.decode(fetched[:n])
				if err := decodePayload(r.payload, newFetchResponse()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBatch(b *testing.B) {
	for _, n := range []int{1, 100} {
		messages := benchMessages(n)
		encoded := appendBatch(nil, messages...)
		b.Run(fmt.Sprintf("Encode%d", n), func(b *testing.B) {
			var buf []byte
			b.SetBytes(int64(len(encoded)))
			b.ReportAllocs()
			for b.Loop() {
				buf = appendBatch(buf[:0], messages...)
			}
		})
		b.Run(fmt.Sprintf("Decode%d", n), func(b *testing.B) {
			b.SetBytes(int64(len(encoded)))
			b.ReportAllocs()
			for b.Loop() {
				parsed, _, err := parseBatch(encoded)
				if err != nil {
					b.Fatal(err)
				}
				readAll(b, parsed)
			}
		})
		b.Run(fmt.Sprintf("Check%d", n), func(b *testing.B) {
			b.SetBytes(int64(len(encoded)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := parseBatch(encoded); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func readAll(b *testing.B, encoded batch) {
	m := new(Message)
	r := encoded.records()
	for {
		ok, err := r.next(m)
		if err != nil {
			b.Fatal(err)
		}
		if !ok {
			return
		}
	}
}
