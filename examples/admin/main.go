// Admin creates, describes and changes a topic.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Admin creates a topic, describes it, gives it more partitions and another retention,
deletes some of its messages, and describes the cluster. A topic that was there before
is described and not changed.
`

func main() {
	brokers := exampleutil.BrokersFlag()
	topic := flag.String("topic", "demo-topic", "`name` of the topic")
	partitions := exampleutil.Int32Flag("partitions", 3, "`number` of partitions to create it with")
	remove := flag.Bool("delete", false, "delete the topic and its messages, and do nothing else")
	exampleutil.Main(about, func(ctx context.Context) error {
		client, err := robust.New(brokers.Option())
		if err != nil {
			return err
		}
		defer client.Close()
		if *remove {
			if err := client.Admin().DeleteTopic(ctx, *topic); err != nil {
				return err
			}
			fmt.Println("deleted topic", *topic)
			return nil
		}
		return run(ctx, client, *topic, *partitions)
	})
}

func run(ctx context.Context, client *robust.Client, topic string, partitions int32) error {
	admin := client.Admin()
	_, created, err := exampleutil.CreateTopic(ctx, admin, topic, partitions, map[string]string{
		"retention.hours": "168",
		"segment.bytes":   "1073741824",
	})
	if err != nil {
		return err
	}
	if created {
		fmt.Printf("created topic %s\n", topic)
	} else {
		fmt.Printf("topic %s is there already, so it is not changed\n", topic)
	}
	topics, err := admin.ListTopics(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("topics: %s\n", strings.Join(topics, ", "))
	if err := describe(ctx, admin, topic); err != nil {
		return err
	}
	if created {
		if err := change(ctx, admin, topic, partitions); err != nil {
			return err
		}
		if err := deleteRecords(ctx, client, topic); err != nil {
			return err
		}
	}
	if err := admin.DeleteTopic(ctx, topic+".no-such-topic"); !errors.Is(err, robust.ErrTopicNotFound) {
		return fmt.Errorf("delete a topic that is not there: %w", err)
	}
	fmt.Printf("topic %s.no-such-topic cannot be deleted: it is not there\n", topic)

	cluster, err := admin.ClusterInfo(ctx)
	if err != nil {
		return err
	}
	for _, node := range cluster.Nodes {
		fmt.Printf("node %s of the cluster is at %s\n", node.ID, node.Addr)
	}
	return nil
}

// describe prints a topic's partitions and configuration.
func describe(ctx context.Context, admin *robust.AdminClient, topic string) error {
	described, err := admin.GetMetadata(ctx, []string{topic})
	if err != nil {
		return err
	}
	t := described[0]
	fmt.Printf("%s has %d partitions", t.Name, len(t.Partitions))
	for _, key := range slices.Sorted(maps.Keys(t.Config)) {
		fmt.Printf(", %s=%s", key, t.Config[key])
	}
	fmt.Println()
	oldest, err := admin.ListOffsets(ctx, topic, time.Time{})
	if err != nil {
		return err
	}
	newest, err := admin.ListOffsets(ctx, topic, time.Now().Add(time.Hour))
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "  PARTITION\tLEADER\tOLDEST OFFSET\tHIGH-WATER MARK")
	for _, p := range t.Partitions {
		fmt.Fprintf(w, "  %d\t%s\t%d\t%d\n", p.ID, p.Leader, oldest[p.ID], newest[p.ID])
	}
	return nil
}

// change doubles the partitions and shortens the retention.
func change(ctx context.Context, admin *robust.AdminClient, topic string, partitions int32) error {
	if err := admin.CreatePartitions(ctx, topic, 2*partitions); err != nil {
		return err
	}
	// What is not named stays; an empty value goes back to the broker's default.
	err := admin.AlterTopicConfig(ctx, topic, map[string]string{"retention.hours": "24", "segment.bytes": ""})
	if err != nil {
		return err
	}
	fmt.Println("doubled the partitions, changed the configuration")
	return describe(ctx, admin, topic)
}

// deleteRecords sends ten messages to partition 0 and deletes the first four.
func deleteRecords(ctx context.Context, client *robust.Client, topic string) error {
	producer, err := client.SyncProducer()
	if err != nil {
		return err
	}
	defer producer.Close()
	messages := make([]*robust.Message, 10)
	for i := range messages {
		messages[i] = robust.NewMessage(topic, fmt.Appendf(nil, "record %d", i))
		messages[i].Partition = 0
	}
	if err := producer.SendMessages(ctx, messages); err != nil {
		return err
	}
	oldest, err := client.Admin().DeleteRecords(ctx, topic, 0, messages[4].Offset)
	if err != nil {
		return err
	}
	fmt.Printf("sent 10 messages to partition 0, deleted those before offset %d; the oldest is now %d\n", messages[4].Offset, oldest)
	return describe(ctx, client.Admin(), topic)
}
