package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/aminofox/robust-go-sdk"
)

type consumeCmd struct {
	Topic        string   `arg:"" predictor:"topic" help:"Topic to read."`
	Group        string   `short:"g" placeholder:"ID" predictor:"group" help:"Read as a member of this consumer group, which remembers what was read."`
	Partition    []int32  `short:"p" placeholder:"N" help:"Partitions to read (default: all)."`
	From         position `default:"oldest" placeholder:"WHERE" predictor:"position" help:"Where to begin: oldest, newest, an offset, a time (2006-01-02T15:04:05Z) or a span back from now (--from=-90m, --from=-7d). A group begins there where it has nothing committed."`
	To           string   `enum:"follow,end" default:"follow" help:"end: stop at what is stored now; follow: wait for more."`
	Number       *int64   `short:"n" name:"number" placeholder:"N" help:"Stop after so many messages."`
	Format       string   `short:"f" placeholder:"FORMAT" predictor:"format" help:"value (a line, the default), keyed (key, separator, value), json (the default with -o json), raw (values and nothing else), or a text with %t topic, %p partition, %o offset, %T time in milliseconds, %d date, %k key, %v value, %h headers, %% a percent sign, \\n, \\t."`
	KeySeparator string   `short:"k" default:":" placeholder:"TEXT" help:"Between key and value with -f keyed."`
	Quiet        bool     `short:"q" help:"Print no summary when a signal comes."`
}

// Validate is kong's.
func (c *consumeCmd) Validate() error {
	if c.Group != "" && len(c.Partition) > 0 {
		return errors.New("--partition and --group exclude one another: a group shares out the partitions itself")
	}
	if c.Number != nil && *c.Number < 1 {
		return errors.New("-n is to be above 0")
	}
	_, err := newFormat(cmp.Or(c.Format, "value"), c.KeySeparator)
	return err
}

// errEnough ends reading in good order.
var errEnough = errors.New("enough was read")

// Run reads until there is enough or a signal comes.
func (c *consumeCmd) Run(ctx context.Context, a *app) error {
	format := "value"
	if a.json {
		format = "json"
	}
	write, err := newFormat(cmp.Or(c.Format, format), c.KeySeparator)
	if err != nil {
		return err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	out := &sink{w: a.stdout, format: write}
	if c.Number != nil {
		out.limit = *c.Number
	}
	if c.Group != "" {
		err = c.consumeGroup(ctx, a, client, out)
	} else {
		err = c.consumePartitions(ctx, a, client, out)
	}
	if err != nil && !errors.Is(err, errEnough) && (ctx.Err() == nil || errors.Is(err, errWrite)) {
		return err
	}
	if ctx.Err() == nil {
		return nil
	}
	if !c.Quiet {
		fmt.Fprintf(a.stderr, "interrupted: %s read from topic %s\n", plural(out.count(), "message"), c.Topic)
	}
	// Who follows a topic can stop no other way.
	if c.To == "follow" && c.Number == nil {
		return nil
	}
	return &exitError{code: exitInterrupted}
}

// errWrite is wrapped around what the output says.
var errWrite = errors.New("writing the output")

// sink prints messages, at most limit if that is not 0.
type sink struct {
	mu     sync.Mutex
	w      io.Writer
	format format
	buf    []byte
	n      int64
	limit  int64
}

// put prints a message, in one write: a message counts as read when it is out. full says
// that it was the last one that is wanted; a further one is refused with errEnough.
func (s *sink) put(m *robust.Message) (full bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limit > 0 && s.n >= s.limit {
		return true, errEnough
	}
	s.buf = s.format(s.buf[:0], m)
	if _, err := s.w.Write(s.buf); err != nil {
		return false, fmt.Errorf("%w: %w", errWrite, err)
	}
	s.n++
	return s.limit > 0 && s.n >= s.limit, nil
}

func (s *sink) count() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// consumePartitions reads partitions side by side, each in order.
func (c *consumeCmd) consumePartitions(ctx context.Context, a *app, client *robust.Client, out *sink) error {
	topics, err := client.Admin().GetMetadata(ctx, []string{c.Topic})
	if err != nil {
		return err
	}
	oldest, newest, err := bounds(ctx, client.Admin(), c.Topic)
	// A broker that does not tell its offsets can be followed all the same.
	told := !errors.Is(err, robust.ErrUnsupported) || c.To == "end"
	if err != nil && told {
		return err
	}
	partitions, err := c.partitions(&topics[0])
	if err != nil {
		return err
	}
	for _, p := range partitions {
		if at := c.From.offset; told && c.From.at.IsZero() && at >= 0 && (at < oldest[p] || at > newest[p]) {
			return outOfRange(c.Topic, p, oldest[p], newest[p], at)
		}
	}
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var readers sync.WaitGroup
	for _, p := range partitions {
		end := int64(-1)
		if c.To == "end" {
			if end = newest[p]; end == oldest[p] {
				continue
			}
		}
		readers.Go(func() {
			if err := c.readPartition(work, a, client, p, end, out); err != nil {
				stop(err)
			}
		})
	}
	readers.Wait()
	return context.Cause(work)
}

// partitions are those that are to be read, in order.
func (c *consumeCmd) partitions(topic *robust.TopicMetadata) ([]int32, error) {
	var all []int32
	for _, p := range topic.Partitions {
		all = append(all, p.ID)
	}
	for _, p := range c.Partition {
		if !slices.Contains(all, p) {
			return nil, fmt.Errorf("partition %d of topic %s: %w", p, c.Topic, robust.ErrPartitionNotFound)
		}
	}
	if len(c.Partition) > 0 {
		all = slices.Clone(c.Partition)
		slices.Sort(all)
		all = slices.Compact(all)
	}
	return all, nil
}

// readPartition reads up to the offset end, which -1 leaves open.
func (c *consumeCmd) readPartition(ctx context.Context, a *app, client *robust.Client, p int32, end int64, out *sink) error {
	consumer, err := client.PartitionConsumer(c.Topic, p, c.From.consumerOption())
	if err != nil {
		return err
	}
	defer consumer.Close()
	if end >= 0 {
		if done, err := c.nothingToRead(ctx, client, p, end); done || err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		for err := range consumer.Errors() {
			a.notice(err)
			// What was to be read may be gone, and nothing would come any more.
			if end >= 0 && consumer.Offset() >= end {
				stop(errPartitionEnd)
			}
		}
	}()
	err = copyTo(ctx, consumer, end, out)
	if errors.Is(err, errPartitionEnd) {
		return nil
	}
	return err
}

// copyTo prints what a consumer reads.
func copyTo(ctx context.Context, consumer *robust.PartitionConsumer, end int64, out *sink) error {
	for m, err := range consumer.All(ctx) {
		if err != nil {
			return err
		}
		if end >= 0 && m.Offset >= end {
			return nil
		}
		full, err := out.put(m)
		if err != nil {
			return err
		}
		if full {
			return errEnough
		}
		if end >= 0 && m.Offset+1 >= end {
			return nil
		}
	}
	return context.Cause(ctx)
}

var errPartitionEnd = errors.New("the end of the partition")

// nothingToRead says whether reading begins at or behind end.
func (c *consumeCmd) nothingToRead(ctx context.Context, client *robust.Client, p int32, end int64) (bool, error) {
	if c.From.at.IsZero() {
		return c.From.offset == robust.OffsetNewest || c.From.offset >= end, nil
	}
	offsets, err := client.Admin().ListOffsets(ctx, c.Topic, c.From.at)
	return offsets[p] >= end, err
}
