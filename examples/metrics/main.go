// Metrics prints the three groups of counters that a client keeps.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Metrics sends messages, reads some of them back, has one refused, and prints what the
client has counted meanwhile.
`

func main() {
	brokers := exampleutil.BrokersFlag()
	topic := flag.String("topic", "metrics-demo", "`name` of the topic; it is created unless it exists")
	count := flag.Int("n", 100, "`number` of messages to send; three quarters are read")
	timeout := flag.Duration("timeout", time.Minute, "`time` after which to give up")
	exampleutil.Main(about, func(ctx context.Context) error {
		if *count < 1 {
			return fmt.Errorf("-n %d: want more than 0", *count)
		}
		ctx, cancel := context.WithTimeout(ctx, *timeout)
		defer cancel()
		client, err := robust.New(brokers.Option())
		if err != nil {
			return err
		}
		defer client.Close()
		if _, _, err := exampleutil.CreateTopic(ctx, client.Admin(), *topic, 1, nil); err != nil {
			return err
		}
		consumer, err := traffic(ctx, client, *topic, *count)
		if err != nil {
			return err
		}
		// The lag is known as long as the partition is being read.
		defer consumer.Close()
		printStats(client.Metrics())
		return nil
	})
}

// traffic makes something to count.
func traffic(ctx context.Context, client *robust.Client, topic string, count int) (*robust.PartitionConsumer, error) {
	producer, err := client.SyncProducer()
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	first := int64(-1)
	for i := range count {
		m := robust.NewMessage(topic, fmt.Appendf(nil, "measurement %d", i))
		m.Partition = 0
		_, offset, err := producer.SendMessage(ctx, m)
		if err != nil {
			return nil, err
		}
		if first < 0 {
			first = offset
		}
	}

	nowhere := robust.NewMessage(topic, []byte("nowhere to go"))
	nowhere.Partition = 9999
	if _, _, err := producer.SendMessage(ctx, nowhere); !errors.Is(err, robust.ErrPartitionNotFound) {
		return nil, fmt.Errorf("send to a partition that is not there: %w", err)
	}

	consumer, err := client.PartitionConsumer(topic, 0, robust.WithStartOffset(first))
	if err != nil {
		return nil, err
	}
	read := 0
	for _, err := range consumer.All(ctx) {
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, consumer.Status())
		}
		if read++; read >= count*3/4 {
			break
		}
	}
	return consumer, nil
}

func printStats(m *robust.Metrics) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	producer, consumer, connection := m.Producer.GetStats(), m.Consumer.GetStats(), m.Connection.GetStats()

	fmt.Fprintln(w, "PRODUCER")
	fmt.Fprintf(w, "messages sent\t%d\n", producer.MessagesSent)
	fmt.Fprintf(w, "messages failed\t%d\n", producer.MessagesFailed)
	fmt.Fprintf(w, "bytes sent\t%d\n", producer.BytesSent)
	fmt.Fprintf(w, "retries\t%d\n", producer.Retries)
	fmt.Fprintf(w, "average latency\t%s\n", producer.AverageLatency.Round(time.Microsecond))
	fmt.Fprintf(w, "longest latency\t%s\n", producer.MaxLatency.Round(time.Microsecond))

	fmt.Fprintln(w, "\nCONSUMER")
	fmt.Fprintf(w, "messages received\t%d\n", consumer.MessagesReceived)
	fmt.Fprintf(w, "bytes received\t%d\n", consumer.BytesReceived)
	fmt.Fprintf(w, "fetches\t%d\n", consumer.FetchCount)
	fmt.Fprintf(w, "commits\t%d\n", consumer.CommitCount)
	fmt.Fprintf(w, "commit errors\t%d\n", consumer.CommitErrors)
	for partition, lag := range consumer.Lag {
		fmt.Fprintf(w, "lag of %s/%d\t%d\n", partition.Topic, partition.Partition, lag)
	}

	fmt.Fprintln(w, "\nCONNECTION")
	fmt.Fprintf(w, "active connections\t%d\n", connection.ActiveConnections)
	fmt.Fprintf(w, "connections opened\t%d\n", connection.TotalConnections)
	fmt.Fprintf(w, "connections failed\t%d\n", connection.FailedConnections)
	fmt.Fprintf(w, "reconnections\t%d\n", connection.Reconnections)
}
