package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// TestExamplesInSequence runs the six examples one after the other against one server, the
// consumers beside the producers as well as after them, and counts every message.
func TestExamplesInSequence(t *testing.T) {
	root, err := filepath.Abs("..")
	require.NoError(t, err)
	bin := t.TempDir()
	for _, name := range []string{"admin", "producer/simple", "producer/async", "consumer/simple", "consumer/group", "metrics"} {
		output(t, root, building("GOWORK=off"), "go", "build", "-o", filepath.Join(bin, name), "./examples/"+name)
	}
	s := serve(t, building("ROBUST_DATA="+filepath.Join(t.TempDir(), "data")), theImage(t).program, "serve")
	env := building("ROBUST_BROKERS=" + s.addr)
	example := func(name string, args ...string) string {
		t.Helper()
		return output(t, bin, env, filepath.Join(bin, name), args...)
	}

	// It sends ten messages to partition 0 and deletes four of them.
	require.Contains(t, example("admin"), "sent 10 messages to partition 0, deleted those before offset 4")
	stored := map[int32]map[int64]string{0: {}} // by partition and offset
	for n := 4; n < 10; n++ {
		stored[0][int64(n)] = fmt.Sprint("record ", n)
	}

	// A group reads all that is sent from now on, too, until it has so many messages.
	const single, many = 100, 5000
	const all = 6 + single + many
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	group := exec.CommandContext(ctx, filepath.Join(bin, "consumer/group"), "-n", strconv.Itoa(all))
	group.Env = env
	var handled strings.Builder
	group.Stdout = &handled
	require.NoError(t, group.Start())

	lines := regexp.MustCompile(`(?m)^partition (\d+)  offset (\d+)  key \S+  value (.*)$`).FindAllStringSubmatch(example("producer/simple", "-n", strconv.Itoa(single)), -1)
	require.Len(t, lines, single)
	for _, l := range lines {
		partition, offset := number(t, l[1]), number(t, l[2])
		if stored[int32(partition)] == nil {
			stored[int32(partition)] = make(map[int64]string)
		}
		require.NotContains(t, stored[int32(partition)], offset, "two messages at one offset")
		stored[int32(partition)][offset] = l[3]
	}
	require.Contains(t, example("producer/async", "-n", strconv.Itoa(many)), fmt.Sprintf("%d messages sent to topic demo-topic: %d stored, 0 failed\n", many, many))

	log := readAll(t, s.addr, "demo-topic", 6)
	count, orders := 0, make(map[string]bool)
	for partition, ms := range log {
		first := int64(0)
		if partition == 0 {
			first = 4
		}
		for n, m := range ms {
			require.Equal(t, first+int64(n), m.Offset, "offsets have no gaps")
			if value, acknowledged := stored[partition][m.Offset]; acknowledged {
				require.Equal(t, value, string(m.Value))
				delete(stored[partition], m.Offset)
			} else {
				require.False(t, orders[string(m.Value)], "stored twice: %s", m.Value)
				orders[string(m.Value)] = true
			}
			count++
		}
	}
	for partition, left := range stored {
		require.Empty(t, left, "acknowledged in partition %d and not there", partition)
	}
	require.Len(t, orders, many)
	require.Equal(t, all, count)

	// Read by themselves the messages of a partition are the same.
	out := example("consumer/simple", "-partition", "0", "-n", strconv.Itoa(len(log[0])))
	read := regexp.MustCompile(`(?m)^offset (\d+)  key \S+  value (.*)  headers `).FindAllStringSubmatch(out, -1)
	require.Len(t, read, len(log[0]))
	for n, m := range log[0] {
		require.Equal(t, []string{strconv.FormatInt(m.Offset, 10), string(m.Value)}, read[n][1:])
	}

	// And the group has handled each once, and committed it.
	require.NoError(t, group.Wait())
	require.Contains(t, handled.String(), fmt.Sprintf("\n%d messages handled\n", all))
	seen := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^demo-topic/(\d)  offset (\d+)  `).FindAllStringSubmatch(handled.String(), -1) {
		require.False(t, seen[m[0]], "handled twice: %s", m[0])
		seen[m[0]] = true
	}
	require.Len(t, seen, all)
	description := output(t, bin, env, theImage(t).program, "group", "describe", "demo-group")
	require.Contains(t, description, "lag 0\n")

	require.Regexp(t, `messages sent +100\n(?s:.*)messages received +75\n`, example("metrics"))
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	require.NoError(t, err)
	return n
}

// readAll returns what the partitions of a topic hold.
func readAll(t *testing.T, addr, topic string, partitions int) map[int32][]*robust.Message {
	t.Helper()
	client, err := robust.New(robust.WithBrokers(addr))
	require.NoError(t, err)
	defer client.Close()
	log := make(map[int32][]*robust.Message)
	described, err := client.Admin().DescribeGroup(t.Context(), "demo-group")
	require.NoError(t, err)
	require.Len(t, described.Offsets, partitions)
	for _, o := range described.Offsets {
		consumer, err := client.PartitionConsumer(topic, o.Partition)
		require.NoError(t, err)
		for m, err := range consumer.All(t.Context()) {
			require.NoError(t, err)
			log[o.Partition] = append(log[o.Partition], m)
			if m.Offset == o.HighWaterMark-1 {
				break
			}
		}
		require.NoError(t, consumer.Close())
	}
	require.Len(t, slices.Collect(maps.Keys(log)), partitions)
	return log
}
