package robust_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// benchValue is what the benchmarks send, 100 bytes.
func benchValue() []byte {
	v := make([]byte, 100)
	for i := range v {
		v[i] = byte(i*7 + 3)
	}
	return v
}

// BenchmarkSync has one message in flight. echo is the floor: a bare TCP echo of as
// many bytes as a request and its answer have, in the same run.
func BenchmarkSync(b *testing.B) {
	b.Run("echo", func(b *testing.B) {
		l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
		require.NoError(b, err)
		defer l.Close()
		go func() {
			nc, err := l.Accept()
			if err == nil {
				_, _ = io.Copy(nc, nc)
				nc.Close()
			}
		}()
		nc, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
		require.NoError(b, err)
		defer nc.Close()
		buf := make([]byte, 300)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := nc.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(nc, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, transport := range []string{"tcp", "memory"} {
		b.Run(transport, func(b *testing.B) {
			producer := benchProducer(b, transport)
			m := robust.NewMessage("bench", benchValue())
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := producer.SendMessage(b.Context(), m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func benchProducer(b *testing.B, transport string) *robust.SyncProducer {
	b.Helper()
	broker := newBroker(b, robust.WithTopic("bench", 1), robust.WithRetention(0, 64<<20))
	var c *robust.Client
	if transport == "tcp" {
		c = newClient(b, broker)
	} else {
		var err error
		c, err = broker.Client()
		require.NoError(b, err)
		b.Cleanup(func() { c.Close() })
	}
	producer, err := c.SyncProducer()
	require.NoError(b, err)
	_, _, err = producer.SendMessage(b.Context(), robust.NewMessage("bench", nil))
	require.NoError(b, err)
	return producer
}

// BenchmarkSyncParallel has many goroutines on one producer.
func BenchmarkSyncParallel(b *testing.B) {
	for _, goroutines := range []int{10, 100} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			producer := benchProducer(b, "tcp")
			b.SetParallelism(goroutines / 2)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				m := robust.NewMessage("bench", benchValue())
				for pb.Next() {
					if _, _, err := producer.SendMessage(b.Context(), m); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkSendMessages counts a message of a thousand that are sent together.
func BenchmarkSendMessages(b *testing.B) {
	producer := benchProducer(b, "tcp")
	const batch = 1000
	ms := make([]*robust.Message, batch)
	for i := range ms {
		ms[i] = robust.NewMessage("bench", benchValue())
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%batch == 0 {
			if err := producer.SendMessages(b.Context(), ms); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkIdleConnection reports the memory of an idle connection, both ends
// together: a client with one connection, its goroutines' stacks included.
func BenchmarkIdleConnection(b *testing.B) {
	broker := newBroker(b)
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(b, err)
	const count = 500
	used := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for b.Loop() {
		before := used()
		clients := make([]*robust.Client, count)
		for i := range clients {
			clients[i], err = robust.New(robust.WithBrokers(addr.String()))
			require.NoError(b, err)
			require.NoError(b, clients[i].Ping(b.Context()))
		}
		b.ReportMetric(float64(used()-before)/count, "B/connection")
		for _, c := range clients {
			require.NoError(b, c.Close())
		}
	}
}
