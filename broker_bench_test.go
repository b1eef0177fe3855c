package robust

import (
	"bytes"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchPeer connects over TCP without a client.
func benchPeer(b *testing.B, broker *Broker) net.Conn {
	b.Helper()
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(b, err)
	nc, err := new(net.Dialer).DialContext(b.Context(), "tcp", addr.String())
	require.NoError(b, err)
	b.Cleanup(func() { nc.Close() })
	return nc
}

// BenchmarkBrokerProduce counts a message that the broker stores, of 100 bytes: its own
// share, since what is sent was made before, and of the answers only the lines are counted.
// json is a request for each, a thousand of them sent together, to one partition or to six
// in turn; batch has batches of a thousand.
func BenchmarkBrokerProduce(b *testing.B) {
	const many = 1000
	value := bytes.Repeat([]byte{3, 10, 17, 24}, 25)
	run := func(name string, answers int, sent []byte) {
		b.Run(name, func(b *testing.B) {
			nc := benchPeer(b, quietBroker(b, WithTopic("bench", 6), WithRetention(0, 64<<20)))
			b.ReportAllocs()
			buf := make([]byte, 256<<10)
			for i := 0; b.Loop(); i++ {
				if i%many != 0 {
					continue
				}
				go func() { _, _ = nc.Write(sent) }() // The answers tell.
				for lines := 0; lines < answers; {
					n, err := nc.Read(buf)
					if err != nil {
						b.Fatal(err)
					}
					lines += bytes.Count(buf[:n], []byte("\n"))
				}
			}
		})
	}
	for _, partitions := range []int32{1, 6} {
		var sent []byte
		for i := range int32(many) {
			var err error
			sent, err = appendRequest(sent, ProtocolV1, peerID, requestProduce,
				&produceRequest{Topic: "bench", Partition: i % partitions, Value: value, Timestamp: 1_700_000_000_000})
			require.NoError(b, err)
		}
		run(fmt.Sprint("json/", partitions), many, sent)
	}
	messages := make([]*Message, many)
	for i := range messages {
		messages[i] = &Message{Value: value, Timestamp: 1_700_000_000_000}
	}
	body := appendBatch(nil, messages...)
	sent, err := appendBodyRequest(nil, peerID, requestProduceBatch, len(body),
		&produceBatchRequest{Parts: []producePart{{Topic: "bench", Bytes: len(body)}}})
	require.NoError(b, err)
	run("batch", 1, append(sent, body...))
}

// BenchmarkBrokerFetch counts a byte of batches that the broker serves, 1 MiB at a time.
func BenchmarkBrokerFetch(b *testing.B) {
	for _, storage := range []string{"memory", "disk"} {
		b.Run(storage, func(b *testing.B) {
			opts := []BrokerOption{WithTopic("bench", 1)}
			if storage == "disk" {
				opts = append(opts, WithDataDir(b.TempDir()), WithSync(SyncNever))
			}
			broker := quietBroker(b, opts...)
			nc := benchPeer(b, broker)
			const size = 1 << 20
			value := string(bytes.Repeat([]byte{3, 10, 17, 24}, 4<<10))
			for range 2 * size / len(value) {
				storeBatch(b, broker, "bench", 0, value)
			}
			line, err := appendRequest(nil, ProtocolV1, peerID, requestFetchBatch,
				&fetchBatchRequest{Partitions: []fetchPart{{Topic: "bench", MaxBytes: size}}, MaxBytes: size})
			require.NoError(b, err)
			in := &frameReader{r: nc, limit: 1 << 30}
			b.ReportAllocs()
			b.SetBytes(size)
			var r wireResponse
			for b.Loop() {
				if _, err := nc.Write(line); err != nil {
					b.Fatal(err)
				}
				frame, err := in.next()
				if err != nil {
					b.Fatal(err)
				}
				if err := r.decode(frame); err != nil || r.body < size/2 {
					b.Fatal(err, r.body)
				}
				if err := in.skipBody(r.body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
