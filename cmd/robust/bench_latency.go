package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/aminofox/robust-go-sdk"
)

// pace sends each message when it is due, which stands in its first 8 bytes.
func (c *benchLatencyCmd) pace(ctx context.Context, producer *robust.AsyncProducer, topic string, base time.Time, number int64, stop context.CancelCauseFunc) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := time.Since(base)
	for i := range number {
		due := began + time.Duration(float64(i)/float64(c.Rate)*float64(time.Second))
		if wait := due - time.Since(base); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		value := make([]byte, c.Size)
		binary.BigEndian.PutUint64(value, uint64(due))
		err := producer.SendFunc(ctx, robust.NewMessage(topic, value), func(_ *robust.Message, _ robust.Receipt, err error) {
			if err != nil {
				stop(err)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// read tells of each message of a partition when it was due.
func (c *benchLatencyCmd) read(ctx context.Context, client *robust.Client, topic string, p int32, from int64, note func(due time.Duration)) error {
	consumer, err := client.PartitionConsumer(topic, p, robust.WithStartOffset(from))
	if err != nil {
		return err
	}
	defer consumer.Close()
	for m, err := range consumer.All(ctx) {
		switch {
		case errors.Is(err, errEnough):
			return nil
		case err != nil:
			return err
		case len(m.Value) < 8:
			continue // Another's, in a topic that is used otherwise, too.
		}
		note(time.Duration(binary.BigEndian.Uint64(m.Value)))
	}
	return nil
}

// latencyView is a histogram in microseconds.
type latencyView struct {
	Min  int64 `json:"min_us"`
	P50  int64 `json:"p50_us"`
	P90  int64 `json:"p90_us"`
	P99  int64 `json:"p99_us"`
	P999 int64 `json:"p999_us"`
	Max  int64 `json:"max_us"`
}

func viewLatency(h *hdrhistogram.Histogram) *latencyView {
	return &latencyView{
		Min: h.Min(), P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90),
		P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9), Max: h.Max(),
	}
}

// write prints the result for people.
func (r *measured) write(w io.Writer, paint painter, width int) {
	fmt.Fprintf(w, "%s: %s in %v, %.0f messages/s, %s/s\n", r.Name, plural(r.Messages, "message"),
		time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), r.Rate, bytesText(int64(float64(r.Bytes)/max(r.Seconds, 1e-9))))
	if r.Latency == nil {
		return
	}
	l := r.Latency
	fmt.Fprintln(w)
	row(w, "MIN", "P50", "P90", "P99", "P99.9", "MAX")
	row(w, micros(l.Min), micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max))
	fmt.Fprintln(w)
	row(w, "UP TO", "MESSAGES", "SHARE")
	// As much as the columns before it leave.
	writeBars(w, r.hist, paint, max(0, min(40, width-len("500ms   100000000  100.00 %  "))))
}

// writeBars draws how many messages took how long, in steps of 1, 2, 5, 10 and so on, and
// marks what took longer than 99 in 100.
func writeBars(w io.Writer, h *hdrhistogram.Histogram, paint painter, width int) {
	var bounds, counts []int64
	at, step := int64(1), 0
	bound := func() int64 { return at * []int64{1, 2, 5}[step] }
	for _, bar := range h.Distribution() {
		if bar.Count == 0 {
			continue
		}
		for bar.To > bound() {
			if step++; step == 3 {
				at, step = at*10, 0
			}
		}
		if n := len(bounds); n == 0 || bounds[n-1] != bound() {
			bounds, counts = append(bounds, bound()), append(counts, 0)
		}
		counts[len(counts)-1] += bar.Count
	}
	most, p99 := slices.Max(counts), h.ValueAtQuantile(99)
	for i, n := range counts {
		style := paint.spark
		if i > 0 && bounds[i-1] >= p99 {
			style = paint.lag
		}
		share := fmt.Sprintf("%.2f %%", 100*float64(n)/float64(h.TotalCount()))
		// A cell that is painted is wider for the columns than for the eye, so it is the last.
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", micros(bounds[i]), n, share, paint.text(style, barText(float64(n)/float64(most), width)))
	}
}

// micros is a latency for people, with three digits or so.
func micros(us int64) string {
	d := time.Duration(us) * time.Microsecond
	switch {
	case d >= 10*time.Second:
		d = d.Round(100 * time.Millisecond)
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= 10*time.Millisecond:
		d = d.Round(100 * time.Microsecond)
	case d >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	}
	return d.String()
}
