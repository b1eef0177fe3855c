package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/aminofox/robust-go-sdk"
)

type benchCmd struct {
	Produce benchProduceCmd `cmd:"" help:"Send as fast as the broker takes it; the latency is from the send to its result."`
	Consume benchConsumeCmd `cmd:"" help:"Read a topic as fast as the broker gives it; without --topic one is filled first."`
	Latency benchLatencyCmd `cmd:"" help:"Send at a steady rate and read what was sent; the latency is from one end to the other."`
}

// benchFlags are those of every measurement.
type benchFlags struct {
	Topic       string          `placeholder:"NAME" predictor:"topic" help:"Topic to use, which stays; without it one is made and deleted."`
	Partitions  int32           `short:"p" default:"3" help:"Partitions of the topic that is made."`
	Size        int             `short:"s" default:"100" help:"Bytes of a message that is sent."`
	Number      int64           `short:"n" name:"number" placeholder:"N" help:"Messages (default: 100000; those of 10 seconds for latency; all that there are for consume --topic)."`
	Compression compressionFlag `short:"z" default:"none" placeholder:"NAME" predictor:"compression" help:"Of what is sent: none, gzip, snappy, lz4 or zstd."`
	Acks        string          `enum:"stored,synced" default:"stored" help:"synced: a message counts as stored when it has reached the disk."`
}

// benchMessages is how many messages there are unless somebody says otherwise.
const benchMessages = 100_000

// Validate is kong's.
func (f *benchFlags) Validate() error {
	if f.Size < 8 || f.Number < 0 || f.Partitions < 1 {
		return errors.New("--size is 8 at least, --number and --partitions 1")
	}
	return nil
}

// measured is what a measurement has found.
type measured struct {
	Name     string                  `json:"measurement"`
	Topic    string                  `json:"topic"`
	Messages int64                   `json:"messages"`
	Bytes    int64                   `json:"bytes"`
	Seconds  float64                 `json:"seconds"`
	Rate     float64                 `json:"messages_per_second"`
	Latency  *latencyView            `json:"latency,omitempty"`
	Partial  bool                    `json:"interrupted,omitempty"`
	hist     *hdrhistogram.Histogram // nil where there is none
	mu       sync.Mutex              // guards hist while it is filled
}

func newMeasured(name, topic string) *measured {
	return &measured{Name: name, Topic: topic, hist: hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)}
}

// note counts one latency.
func (r *measured) note(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Beyond a minute is a minute.
	_ = r.hist.RecordValue(min(max(1, d.Microseconds()), r.hist.HighestTrackableValue()))
}

// soFar are the figures while messages are on their way.
func (r *measured) soFar(done, total, bytes int64) figures {
	f := figures{done: done, total: total, bytes: bytes}
	if r.hist == nil {
		return f
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hist.TotalCount() > 0 {
		f.latency, f.p50, f.p99 = true, r.hist.ValueAtQuantile(50), r.hist.ValueAtQuantile(99)
	}
	return f
}

// finish computes what follows from what was counted.
func (r *measured) finish(messages, bytes int64, took time.Duration) *measured {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Messages, r.Bytes, r.Seconds = messages, bytes, took.Seconds()
	r.Rate = float64(messages) / max(took.Seconds(), 1e-9)
	if r.hist != nil && r.hist.TotalCount() > 0 {
		r.Latency = viewLatency(r.hist)
	}
	return r
}

// with calls fn with a client and a topic, which is deleted if it was made for this. What
// was measured until a signal came is shown, too.
func (f *benchFlags) with(ctx context.Context, a *app, fn func(client *robust.Client, topic string) (*measured, error)) error {
	acks := robust.AcksStored
	if f.Acks == "synced" {
		acks = robust.AcksSynced
	}
	var watch connWatch
	client, err := a.connect(ctx, robust.WithAcks(acks), robust.WithCompression(f.Compression.Compression), watch.option())
	if err != nil {
		return err
	}
	defer client.Close()
	topic := f.Topic
	if topic == "" {
		topic = "robust-bench-" + rand.Text()[:8]
		if err := client.Admin().CreateTopic(ctx, topic, f.Partitions, nil); err != nil {
			return err
		}
		defer func() {
			// Also when a signal has come.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
			defer cancel()
			if err := client.Admin().DeleteTopic(end, topic); err != nil {
				fmt.Fprintf(a.stderr, "robust: topic %s is left behind: %s\n", topic, errText(err))
			}
		}()
	}
	watch.start(a)
	r, err := fn(client, topic)
	watch.stop()
	if ctx.Err() != nil {
		err = &exitError{code: exitInterrupted}
		fmt.Fprintln(a.stderr, "interrupted")
	}
	if r == nil || err != nil && r.Messages == 0 {
		return err
	}
	r.Partial = err != nil
	return errors.Join(err, a.show(r, func(w io.Writer) { r.write(w, newPainter(a.stdout), widthOf(a.stdout)) }))
}

type benchProduceCmd struct{ benchFlags }

// Run measures sending.
func (c *benchProduceCmd) Run(ctx context.Context, a *app) error {
	return c.with(ctx, a, func(client *robust.Client, topic string) (*measured, error) {
		return c.produce(ctx, a, client, topic)
	})
}

// benchPatience is how long results are waited for when a measurement ends early.
const benchPatience = 2 * time.Second

// produce sends all messages and waits for their results. What comes with an error was
// measured until then.
func (f *benchFlags) produce(ctx context.Context, a *app, client *robust.Client, topic string) (*measured, error) {
	producer, err := client.AsyncProducer()
	if err != nil {
		return nil, err
	}
	number := cmp.Or(f.Number, benchMessages)
	r := newMeasured("produce", topic)
	var stored atomic.Int64
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	live := a.startLive(r.Name, func() figures { return r.soFar(stored.Load(), number, stored.Load()*int64(f.Size)) })
	defer live.stop()
	value := randomBytes(f.Size)
	began := time.Now()
	for range number {
		sent := time.Now()
		err := producer.SendFunc(work, robust.NewMessage(topic, value), func(_ *robust.Message, _ robust.Receipt, err error) {
			if err != nil {
				fail(err)
				return
			}
			r.note(time.Since(sent))
			stored.Add(1)
		})
		if err != nil {
			break // work has ended.
		}
	}
	err = producer.Flush(work)
	n, took := stored.Load(), time.Since(began)
	if cause := context.Cause(work); cause != nil {
		err = cause
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchPatience)
	defer cancel()
	closed := producer.Shutdown(end)
	return r.finish(n, n*int64(f.Size), took), cmp.Or(err, closed)
}

// randomBytes do not compress.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // It never fails.
	return b
}

type benchConsumeCmd struct{ benchFlags }

// Run measures reading.
func (c *benchConsumeCmd) Run(ctx context.Context, a *app) error {
	return c.with(ctx, a, func(client *robust.Client, topic string) (*measured, error) {
		if c.Topic == "" {
			if _, err := c.produce(ctx, a, client, topic); err != nil {
				return nil, err
			}
		}
		oldest, newest, err := bounds(ctx, client.Admin(), topic)
		if err != nil {
			return nil, err
		}
		return c.consume(ctx, a, client, topic, oldest, newest)
	})
}

// consume reads all partitions side by side.
func (c *benchConsumeCmd) consume(ctx context.Context, a *app, client *robust.Client, topic string, oldest, newest map[int32]int64) (*measured, error) {
	r := &measured{Name: "consume", Topic: topic}
	var total int64
	for p, end := range newest {
		total += end - oldest[p]
	}
	if c.Number > 0 {
		total = min(total, c.Number)
	}
	var messages, bytes atomic.Int64
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	live := a.startLive(r.Name, func() figures { return r.soFar(messages.Load(), total, bytes.Load()) })
	defer live.stop()
	began := time.Now()
	var readers sync.WaitGroup
	for p, end := range newest {
		if oldest[p] == end {
			continue
		}
		readers.Go(func() {
			if err := c.readTo(work, client, topic, p, end, func(m *robust.Message) bool {
				bytes.Add(int64(len(m.Key) + len(m.Value)))
				return messages.Add(1) == total
			}); err != nil {
				stop(err)
			}
		})
	}
	readers.Wait()
	took := time.Since(began)
	err := context.Cause(work)
	if errors.Is(err, errEnough) {
		err = nil
	}
	return r.finish(messages.Load(), bytes.Load(), took), err
}

// readTo reads a partition up to an offset; enough says which message is the last of all
// that are wanted, and errEnough that it was there.
func (c *benchConsumeCmd) readTo(ctx context.Context, client *robust.Client, topic string, p int32, end int64, enough func(m *robust.Message) bool) error {
	consumer, err := client.PartitionConsumer(topic, p)
	if err != nil {
		return err
	}
	defer consumer.Close()
	for m, err := range consumer.All(ctx) {
		switch {
		case err != nil:
			return err
		case enough(m):
			return errEnough
		case m.Offset+1 >= end:
			return nil
		}
	}
	return nil
}

type benchLatencyCmd struct {
	benchFlags

	Rate int `short:"r" default:"1000" help:"Messages a second."`
}

// Validate is kong's.
func (c *benchLatencyCmd) Validate() error {
	if c.Rate < 1 {
		return errors.New("--rate is to be above 0")
	}
	return c.benchFlags.Validate()
}

// Run measures the way from a producer to a consumer.
func (c *benchLatencyCmd) Run(ctx context.Context, a *app) error {
	return c.with(ctx, a, func(client *robust.Client, topic string) (*measured, error) {
		return c.measure(ctx, a, client, topic)
	})
}

// measure sends on a plan: the latency counts from when a message was due, so a broker
// that stops for a while is not asked less often, and its pause not seen once only.
func (c *benchLatencyCmd) measure(ctx context.Context, a *app, client *robust.Client, topic string) (*measured, error) {
	_, newest, err := bounds(ctx, client.Admin(), topic)
	if err != nil {
		return nil, err
	}
	producer, err := client.AsyncProducer()
	if err != nil {
		return nil, err
	}
	number := cmp.Or(c.Number, 10*int64(c.Rate))
	r := newMeasured("latency", topic)
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	base := time.Now()
	var read atomic.Int64
	var readers sync.WaitGroup
	for p, from := range newest {
		readers.Go(func() {
			if err := c.read(work, client, topic, p, from, func(due time.Duration) {
				r.note(time.Since(base) - due)
				if read.Add(1) == number {
					stop(errEnough)
				}
			}); err != nil {
				stop(err)
			}
		})
	}
	live := a.startLive(r.Name, func() figures { return r.soFar(read.Load(), number, read.Load()*int64(c.Size)) })
	defer live.stop()
	began := time.Now()
	if err := c.pace(work, producer, topic, base, number, stop); err != nil {
		stop(err)
	}
	readers.Wait()
	n, took := read.Load(), time.Since(began)
	err = context.Cause(work)
	if errors.Is(err, errEnough) {
		err = nil
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchPatience)
	defer cancel()
	closed := producer.Shutdown(end)
	return r.finish(n, n*int64(c.Size), took), cmp.Or(err, closed)
}
