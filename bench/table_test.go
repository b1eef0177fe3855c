package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func produced(rates ...float64) []result {
	var all []result
	for _, rate := range rates {
		all = append(all, result{
			Kind: kindProduce, Messages: 1000, Rate: rate, AckP50: 1500 * time.Microsecond, AckP99: 20 * time.Millisecond,
			ClientCPU: 250 * time.Nanosecond, BrokerCPU: 1300 * time.Nanosecond, ClientPeak: 30 << 20, BrokerPeak: 20 << 20,
		})
	}
	return all
}

func TestTables(t *testing.T) {
	rows := []row{
		{"robust", kindConsume, 1024, 6, []result{{Kind: kindConsume, Messages: 5, Rate: 12}}},
		{"robust", kindProduce, 100, 1, produced(2e6, 1e6, 3e6)},
		{"franz-go", kindProduce, 100, 1, produced(1e6, 999_400, 1_000_600)},
		{"redis", kindProduce, 100, 1, append(produced(1e6), result{Kind: kindProduce, Err: "10 messages\nwere | lost"})},
		{"nats", kindProduce, 100, 1, nil},
	}
	var b strings.Builder
	require.NoError(t, writeTables(&b, rows, 100))
	require.Equal(t, `
### Produce, many in flight, 100 B, 1 partition

| | messages/s | lowest to highest | times robust | MB/s | acknowledged p50, us | p99 | client CPU, us a message | broker CPU | client peak, MiB | broker peak |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| robust | 2.00 M | 1.00 M to 3.00 M | 1.00 | 200 | 1500 | 20000 | 0.25 | 1.30 | 30 | 20 |
| franz-go, kfake on disk | 1.00 M | 999 k to 1.00 M | 0.50 | 100 | 1500 | 20000 | 0.25 | 1.30 | 30 | 20 |
| Redis streams, rueidis | **failed** 1 of 2: 10 messages were / lost | | | | | | | | | |

### Consume, 1 KiB, 6 partitions

| | messages/s | lowest to highest | times robust | MB/s | client CPU, us a message | broker CPU | client peak, MiB | broker peak |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
| robust | 12.0 | 12.0 to 12.0 | 1.00 | 0.01 | – | – | – | – |
`, b.String())
	require.Equal(t, "Latency at 100 messages/s, 100 B, 1 partition", heading(kindLatency, 100, 1, 100))
}

func TestFormat(t *testing.T) {
	for n, want := range map[float64]string{
		0.5: "0.50", 9.99: "9.99", 9.996: "10.0", 99.96: "100", 999.4: "999", 999.6: "1.00 k",
		12_345: "12.3 k", 999_499: "999 k", 999_501: "1.00 M", 13.5e6: "13.5 M", 135e6: "135 M",
	} {
		require.Equal(t, want, formatRate(n), n)
	}
}

func TestChart(t *testing.T) {
	rows := []row{
		{"robust", kindProduce, 100, 1, produced(2e6)},
		{"franz-go", kindProduce, 100, 1, produced(1e6)},
		{"nats-fast", kindProduce, 100, 6, produced(1e6)},
		{"redis", kindProduce, 100, 1, []result{{Kind: kindProduce, Err: "lost"}}},
		{"robust", kindConsume, 1024, 1, []result{{Kind: kindConsume, Messages: 5, Rate: 1200}}},
	}
	svg, err := drawChart(rows)
	require.NoError(t, err)
	requireSVG(t, svg, "robust  2.00 M/s", "franz-go  1.00 M/s", "robust  1.20 k/s", "Consume, 1 KiB, 1 partition", "10 k", "10 M")
	require.NotContains(t, string(svg), "nats-fast")
	require.NotContains(t, string(svg), "redis")

	svg, err = drawChart(nil)
	require.NoError(t, err)
	require.Nil(t, svg)
}
