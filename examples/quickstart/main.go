// Quickstart sends every line of a file to a topic, reads all of its partitions back
// and checks that nothing is missing and that nothing is out of order.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Quickstart sends every line of a file to a topic, reads all of its partitions back,
and fails if a message is missing or if messages of one key are out of order. The key
is what stands before the first comma of a line. Over a directory (-data) it finds the
messages of earlier runs.
`

// orders is the file that is sent unless -file names another.
//
//go:embed testdata/orders.csv
var orders []byte

type options struct {
	brokers    *exampleutil.Brokers
	topic      string
	partitions int32
	file       string
	chunk      int
	data       string
	timeout    time.Duration
}

func main() {
	o := options{brokers: exampleutil.BrokersFlag()}
	flag.StringVar(&o.topic, "topic", "demo", "`name` of the topic; it is created unless it exists")
	partitions := exampleutil.Int32Flag("partitions", 3, "`number` of partitions of a new topic")
	flag.StringVar(&o.file, "file", "", "`file` to send (default: 400 orders that come with the program)")
	flag.IntVar(&o.chunk, "chunk", 100, "`number` of messages in one SendMessages")
	flag.StringVar(&o.data, "data", "", "`directory` in which the broker in this process keeps messages (default: in memory)")
	flag.DurationVar(&o.timeout, "timeout", time.Minute, "`time` after which to give up")
	exampleutil.Main(about, func(ctx context.Context) error {
		o.partitions = *partitions
		return run(ctx, o)
	})
}

func run(ctx context.Context, o options) error {
	if o.chunk <= 0 {
		return fmt.Errorf("-chunk %d: want more than 0", o.chunk)
	}
	if o.data != "" && !o.brokers.Embedded() {
		return errors.New("-data is for the broker in this process, -brokers for others")
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	lines, err := readLines(o.file)
	if err != nil {
		return err
	}

	client, err := robust.New(o.brokers.Option(robust.WithDataDir(o.data)))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := client.Admin()
	partitions, created, err := exampleutil.CreateTopic(ctx, admin, o.topic, o.partitions, nil)
	if err != nil {
		return err
	}
	if !created {
		slog.Info("topic is there already", "topic", o.topic, "partitions", partitions)
	}
	from, earlier, err := ends(ctx, admin, o.topic)
	if errors.Is(err, robust.ErrUnsupported) {
		slog.Info("the broker cannot list offsets: reading from the start")
	} else if err != nil {
		return err
	}
	if earlier > 0 {
		fmt.Printf("found %d messages of earlier runs\n", earlier)
	}

	sent := messages(o.topic, lines)
	began := time.Now()
	if err := send(ctx, client, sent, o.chunk); err != nil {
		return err
	}
	sending := time.Since(began)

	began = time.Now()
	received := make([][]*robust.Message, partitions)
	for p := range partitions {
		received[p], err = read(ctx, client, o.topic, p, from, sent)
		if err != nil {
			return err
		}
	}
	reading := time.Since(began)

	fmt.Printf("%d messages sent to topic %s\n\n", len(sent), o.topic)
	printTable(received)
	fmt.Printf("\nsent in %s, %.0f messages/s\n", round(sending), rate(len(sent), sending))
	fmt.Printf("read in %s, %.0f messages/s\n", round(reading), rate(len(sent), reading))
	keys, twice, err := check(sent, received)
	if err != nil {
		return err
	}
	if twice > 0 {
		fmt.Printf("%d messages are stored twice: a connection broke and they were sent again\n", twice)
	}
	fmt.Printf("nothing is missing, and each of %d keys is in order\n", keys)
	return nil
}

// ends returns the high-water marks of a topic's partitions, below which lies whatever
// they hold already, and how many messages that are.
func ends(ctx context.Context, admin *robust.AdminClient, topic string) (from map[int32]int64, earlier int64, err error) {
	oldest, err := admin.ListOffsets(ctx, topic, time.Time{})
	if err != nil {
		return nil, 0, err
	}
	from, err = admin.ListOffsets(ctx, topic, time.Now().Add(time.Hour))
	if err != nil {
		return nil, 0, err
	}
	for partition, end := range from {
		earlier += end - oldest[partition]
	}
	return from, earlier, nil
}

// readLines returns the lines of a file, or of the orders.
func readLines(file string) ([][]byte, error) {
	text := orders
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	var lines [][]byte
	for line := range bytes.Lines(text) {
		lines = append(lines, bytes.TrimRight(line, "\r\n"))
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%s holds no lines", file)
	}
	return lines, nil
}

// messages makes a message of each line. Its headers say in which run it was sent and
// which line it is, so that messages of others in the same topic do not disturb.
func messages(topic string, lines [][]byte) []*robust.Message {
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	ms := make([]*robust.Message, len(lines))
	for i, line := range lines {
		ms[i] = robust.NewMessageWithKey(topic, keyOf(line), line)
		ms[i].Headers = map[string]string{"run": run, "line": strconv.Itoa(i)}
	}
	return ms
}

// keyOf returns what stands before the first comma, or a hash of the line if that is
// nothing.
func keyOf(line []byte) []byte {
	if key, _, ok := bytes.Cut(line, []byte(",")); ok && len(key) > 0 {
		return key
	}
	h := fnv.New64a()
	h.Write(line)
	return fmt.Appendf(nil, "%016x", h.Sum64())
}

// send sends the messages, a chunk at a time. SendMessages sets where each is stored.
func send(ctx context.Context, client *robust.Client, ms []*robust.Message, chunk int) error {
	producer, err := client.SyncProducer()
	if err != nil {
		return err
	}
	defer producer.Close()
	for len(ms) > 0 {
		n := min(chunk, len(ms))
		if err := producer.SendMessages(ctx, ms[:n]); err != nil {
			return err
		}
		ms = ms[n:]
	}
	return nil
}

// read returns the messages of this run in one partition, as they are stored.
func read(ctx context.Context, client *robust.Client, topic string, partition int32, from map[int32]int64, sent []*robust.Message) ([]*robust.Message, error) {
	start, ok := from[partition]
	if !ok {
		start = robust.OffsetOldest
	}
	last := int64(-1)
	for _, m := range sent {
		if m.Partition == partition {
			last = max(last, m.Offset)
		}
	}
	if last < 0 {
		return nil, nil
	}
	consumer, err := client.PartitionConsumer(topic, partition, robust.WithStartOffset(start))
	if err != nil {
		return nil, err
	}
	defer consumer.Close()
	run := sent[0].Headers["run"]
	var received []*robust.Message
	for m, err := range consumer.All(ctx) {
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, consumer.Status())
		}
		if m.Headers["run"] == run {
			received = append(received, m)
		}
		if m.Offset >= last {
			break
		}
	}
	return received, nil
}

// check compares what was received with what was sent, and returns how many keys
// there are and how many messages came more than once.
func check(sent []*robust.Message, received [][]*robust.Message) (keys, twice int, err error) {
	seen := make([]bool, len(sent))
	lastOf := make(map[string]int) // the line of each key that came last
	for partition, ms := range received {
		for _, m := range ms {
			line, err := strconv.Atoi(m.Headers["line"])
			if err != nil || line < 0 || line >= len(sent) {
				return 0, 0, fmt.Errorf("partition %d, offset %d: line %q was never sent", partition, m.Offset, m.Headers["line"])
			}
			want := sent[line]
			if !bytes.Equal(m.Key, want.Key) || !bytes.Equal(m.Value, want.Value) {
				return 0, 0, fmt.Errorf("partition %d, offset %d: line %d came back changed", partition, m.Offset, line)
			}
			if seen[line] {
				twice++
				continue
			}
			seen[line] = true
			key := string(m.Key)
			if last, ok := lastOf[key]; ok && line < last {
				return 0, 0, fmt.Errorf("out of order: line %d of key %q came behind line %d", line, key, last)
			}
			lastOf[key] = line
		}
	}
	missing := 0
	for _, ok := range seen {
		if !ok {
			missing++
		}
	}
	if missing > 0 {
		return 0, 0, fmt.Errorf("%d of %d messages are missing", missing, len(sent))
	}
	return len(lastOf), twice, nil
}

func printTable(received [][]*robust.Message) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	fmt.Fprintln(w, "partition\tmessages\tbytes\tfirst offset\tlast offset\t")
	count, size := 0, 0
	for partition, ms := range received {
		bytes := 0
		for _, m := range ms {
			bytes += len(m.Value)
		}
		count, size = count+len(ms), size+bytes
		if len(ms) == 0 {
			fmt.Fprintf(w, "%d\t0\t0\t-\t-\t\n", partition)
			continue
		}
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t%d\t\n", partition, len(ms), bytes, ms[0].Offset, ms[len(ms)-1].Offset)
	}
	fmt.Fprintf(w, "total\t%d\t%d\t\n", count, size)
}

func rate(n int, d time.Duration) float64 { return float64(n) / d.Seconds() }

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
