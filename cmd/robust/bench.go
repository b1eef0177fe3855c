package main

import (
	"context"
	"crypto/rand"
	"errors"
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
	Topic       string          `placeholder:"NAME" help:"Topic to use, which stays; without it one is made and deleted."`
	Partitions  int32           `short:"p" default:"3" help:"Partitions of the topic that is made."`
	Size        int             `short:"s" default:"100" help:"Bytes of a message."`
	Number      int64           `short:"n" name:"number" default:"100000" help:"Messages."`
	Compression compressionFlag `short:"z" default:"none" placeholder:"NAME" help:"none, gzip, snappy, lz4 or zstd."`
	Acks        string          `enum:"stored,synced" default:"stored" help:"synced: a message counts as stored when it has reached the disk."`
}

// Validate is kong's.
func (f *benchFlags) Validate() error {
	if f.Size < 8 || f.Number < 1 || f.Partitions < 1 {
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

// finish computes what follows from what was counted.
func (r *measured) finish(messages, bytes int64, took time.Duration) *measured {
	r.Messages, r.Bytes, r.Seconds = messages, bytes, took.Seconds()
	r.Rate = float64(messages) / max(took.Seconds(), 1e-9)
	if r.hist != nil && r.hist.TotalCount() > 0 {
		r.Latency = viewLatency(r.hist)
	}
	return r
}

// with calls fn with a client and a topic, which is deleted if it was made for this.
func (f *benchFlags) with(ctx context.Context, a *app, fn func(client *robust.Client, topic string) (*measured, error)) (err error) {
	acks := robust.AcksStored
	if f.Acks == "synced" {
		acks = robust.AcksSynced
	}
	client, err := a.connect(ctx, robust.WithAcks(acks), robust.WithCompression(f.Compression.Compression))
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
			err = errors.Join(err, client.Admin().DeleteTopic(end, topic))
		}()
	}
	r, err := fn(client, topic)
	if err != nil {
		return err
	}
	return a.show(r, r.write)
}

type benchProduceCmd struct{ benchFlags }

// Run measures sending.
func (c *benchProduceCmd) Run(ctx context.Context, a *app) error {
	return c.with(ctx, a, func(client *robust.Client, topic string) (*measured, error) {
		return c.produce(ctx, a, client, topic)
	})
}

// produce sends all messages and waits for their results.
func (f *benchFlags) produce(ctx context.Context, a *app, client *robust.Client, topic string) (*measured, error) {
	producer, err := client.AsyncProducer()
	if err != nil {
		return nil, err
	}
	defer producer.Close()
	r := newMeasured("produce", topic)
	var stored atomic.Int64
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	bar := a.startProgress(false, f.Number*int64(f.Size), func() (int64, int64) { return stored.Load(), stored.Load() * int64(f.Size) })
	defer bar.stop()
	value := randomBytes(f.Size)
	began := time.Now()
	for range f.Number {
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
			return nil, context.Cause(work)
		}
	}
	if err := producer.Flush(work); err != nil {
		return nil, err
	}
	took := time.Since(began)
	if err := context.Cause(work); err != nil {
		return nil, err
	}
	return r.finish(f.Number, f.Number*int64(f.Size), took), nil
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
		return c.consume(ctx, client, topic, oldest, newest)
	})
}

// consume reads all partitions side by side.
func (c *benchConsumeCmd) consume(ctx context.Context, client *robust.Client, topic string, oldest, newest map[int32]int64) (*measured, error) {
	r := &measured{Name: "consume", Topic: topic}
	var messages, bytes atomic.Int64
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	began := time.Now()
	var readers sync.WaitGroup
	for p, end := range newest {
		if oldest[p] == end {
			continue
		}
		readers.Go(func() {
			consumer, err := client.PartitionConsumer(topic, p)
			if err != nil {
				fail(err)
				return
			}
			defer consumer.Close()
			for m, err := range consumer.All(work) {
				if err != nil {
					fail(err)
					return
				}
				messages.Add(1)
				bytes.Add(int64(len(m.Key) + len(m.Value)))
				if m.Offset+1 >= end {
					return
				}
			}
		})
	}
	readers.Wait()
	if err := context.Cause(work); err != nil {
		return nil, err
	}
	return r.finish(messages.Load(), bytes.Load(), time.Since(began)), nil
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
	defer producer.Close()
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
				if read.Add(1) == c.Number {
					stop(errEnough)
				}
			}); err != nil {
				stop(err)
			}
		})
	}
	bar := a.startProgress(false, c.Number*int64(c.Size), func() (int64, int64) { return read.Load(), read.Load() * int64(c.Size) })
	defer bar.stop()
	began := time.Now()
	if err := c.pace(work, producer, topic, base, stop); err != nil {
		stop(err)
	}
	readers.Wait()
	if err := context.Cause(work); !errors.Is(err, errEnough) {
		return nil, err
	}
	return r.finish(read.Load(), read.Load()*int64(c.Size), time.Since(began)), nil
}
