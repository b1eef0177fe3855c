package robust

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// benchRecords returns n messages whose values are JSON of some size, of a few words and
// many numbers, as events are: they can be compressed by about two thirds.
func benchRecords(n, size int) []*Message {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"created", "paid", "shipped", "returned", "Berlin", "Huế", "São Paulo", "express", "standard"}
	messages := make([]*Message, n)
	for i := range messages {
		value := fmt.Appendf(nil, `{"order":%d,"customer":"%016x"`, r.Uint32(), r.Uint64())
		for len(value) < size-1 {
			value = fmt.Appendf(value, `,"%s":%d`, words[r.IntN(len(words))], r.IntN(1e6))
		}
		messages[i] = &Message{Value: append(value[:size-1], '}'), Timestamp: 1700000000000 + int64(i/10)}
	}
	return messages
}

func buildBatch(b testing.TB, c Compression, messages []*Message) batch {
	var w batchBuilder
	for _, m := range messages {
		w.add(m, m.Timestamp)
	}
	built, err := w.finish(c, noProducer())
	if err != nil {
		b.Fatal(err)
	}
	return built
}

// perRecord reports a benchmark's time for each record.
func perRecord(b *testing.B, records int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(records), "ns/record")
}

func BenchmarkBatchBuild(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for _, headers := range []int{0, 2} {
			messages := benchRecords(1000, size)
			for i, m := range messages {
				for h := range headers {
					if m.Headers == nil {
						m.Headers = make(map[string]string)
					}
					m.Headers[fmt.Sprint("header", h)] = fmt.Sprint(i)
				}
			}
			run := func(b *testing.B, finish bool) {
				var w batchBuilder
				b.ReportAllocs()
				for b.Loop() {
					w.reset()
					for _, m := range messages {
						w.add(m, m.Timestamp)
					}
					if finish {
						_, _ = w.finish(CompressionNone, noProducer())
					}
				}
				perRecord(b, len(messages))
			}
			b.Run(fmt.Sprintf("%d_%dheaders/Add", size, headers), func(b *testing.B) { run(b, false) })
			b.Run(fmt.Sprintf("%d_%dheaders/AddFinish", size, headers), func(b *testing.B) { run(b, true) })
		}
	}
}

func BenchmarkBatchRead(b *testing.B) {
	for _, size := range []int{100, 1024} {
		for _, kind := range []string{"plain", "ids", "headers"} {
			messages := benchRecords(1000, size)
			for i, m := range messages {
				switch kind {
				case "ids":
					m.ID = fmt.Sprintf("order-%08d", i)
				case "headers":
					m.Headers = map[string]string{"content-type": "application/json", "trace": fmt.Sprint(i)}
				}
			}
			built := buildBatch(b, CompressionNone, messages)
			b.Run(fmt.Sprintf("%d_%s/Messages", size, kind), func(b *testing.B) {
				var out []*Message
				var err error
				b.ReportAllocs()
				for b.Loop() {
					if out, err = built.appendMessages(out[:0], "orders", 3, 0); err != nil {
						b.Fatal(err)
					}
				}
				perRecord(b, len(messages))
			})
			b.Run(fmt.Sprintf("%d_%s/Check", size, kind), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := built.checkRecords(1 << 20); err != nil {
						b.Fatal(err)
					}
				}
				perRecord(b, len(messages))
			})
			b.Run(fmt.Sprintf("%d_%s/Parse", size, kind), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, _, err := parseBatch(built); err != nil {
						b.Fatal(err)
					}
				}
				perRecord(b, len(messages))
			})
		}
	}
}

func BenchmarkBatchCompress(b *testing.B) {
	for _, count := range []int{100, 10000} {
		messages := benchRecords(count, 100)
		plain := buildBatch(b, CompressionNone, messages)
		for _, c := range []Compression{CompressionGzip, CompressionSnappy, CompressionLZ4, CompressionZstd} {
			packed := buildBatch(b, c, messages)
			b.Run(fmt.Sprintf("%d/%s/Compress", count, c), func(b *testing.B) {
				var out []byte
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					out, _ = c.compress(out[:0], plain[batchHeaderSize:])
				}
				b.ReportMetric(float64(len(plain))/float64(len(packed)), "ratio")
			})
			b.Run(fmt.Sprintf("%d/%s/Decompress", count, c), func(b *testing.B) {
				var out []byte
				var err error
				b.SetBytes(int64(len(plain)))
				b.ReportAllocs()
				for b.Loop() {
					if out, err = c.decompress(out[:0], packed[batchHeaderSize:], 1<<30); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
