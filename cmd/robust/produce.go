package main

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

type produceCmd struct {
	Topic        string            `arg:"" predictor:"topic" help:"Topic to send to."`
	Files        []string          `arg:"" optional:"" predictor:"file" help:"Files to read, - for standard input (the default)."`
	Format       string            `short:"f" enum:"line,json,whole" default:"line" help:"What a message is: a line; a line of JSON as robust consume -f json prints; or a whole file."`
	KeySeparator string            `short:"k" placeholder:"TEXT" help:"The key stands before this in a line, the value behind it; a line without it has no key."`
	Header       map[string]string `short:"H" mapsep:"none" placeholder:"NAME=VALUE" help:"Header of every message; may be given more than once."`
	Partition    partitionFlag     `short:"p" placeholder:"N|any" help:"Partition for every message; any: by key, whatever lines of JSON say (default: what a line says, else by key)."`
	Compression  compressionFlag   `short:"z" default:"none" placeholder:"NAME" predictor:"compression" help:"none, gzip, snappy, lz4 or zstd."`
	Acks         string            `enum:"stored,synced" default:"stored" help:"synced: a message counts as stored when it has reached the disk."`
	MaxLine      int               `default:"16777216" placeholder:"BYTES" help:"Longest line that is read."`
	Grace        time.Duration     `default:"10s" help:"How long to wait for the results of what was sent when a signal comes."`
	Quiet        bool              `short:"q" help:"Show no progress and no summary."`
}

// Validate is kong's.
func (c *produceCmd) Validate() error {
	if c.KeySeparator != "" && c.Format != "line" {
		return fmt.Errorf("--key-separator is for lines, not for --format %s", c.Format)
	}
	if c.MaxLine < 1 {
		return errors.New("--max-line is to be above 0")
	}
	if c.Grace < 0 {
		return errNegativeGrace
	}
	return nil
}

// partitionFlag is a partition, or that there is to be none.
type partitionFlag struct {
	number int32
	given  bool
}

// UnmarshalText reads a number or any.
func (f *partitionFlag) UnmarshalText(text []byte) error {
	f.given = true
	if string(text) == "any" {
		f.number = robust.PartitionAny
		return nil
	}
	n, err := strconv.ParseInt(string(text), 10, 32)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is neither a partition nor any", text)
	}
	f.number = int32(n)
	return nil
}

// compressionFlag is a robust.Compression on the command line.
type compressionFlag struct{ robust.Compression }

var (
	_ encoding.TextUnmarshaler = (*partitionFlag)(nil)
	_ encoding.TextUnmarshaler = (*compressionFlag)(nil)
)

// UnmarshalText reads the name of a compression.
func (f *compressionFlag) UnmarshalText(text []byte) error {
	for _, c := range []robust.Compression{
		robust.CompressionNone, robust.CompressionGzip, robust.CompressionSnappy, robust.CompressionLZ4, robust.CompressionZstd,
	} {
		if c.String() == string(text) {
			f.Compression = c
			return nil
		}
	}
	return fmt.Errorf("%q is none of none, gzip, snappy, lz4 and zstd", text)
}

// tally counts what became of messages. Its callback is called from one goroutine at a
// time, the rest from any.
type tally struct {
	mu      sync.Mutex
	stored  int64
	bytes   int64
	failed  int64
	unknown int64 // may have been stored: their results did not come
	first   error // of those that failed, and of those unknown for another reason than the end
	where   string
	fail    context.CancelCauseFunc
}

// done notes a result.
func (t *tally) done(m *robust.Message, _ robust.Receipt, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.stored++
		t.bytes += int64(len(m.Key) + len(m.Value))
		return
	}
	if errors.Is(err, robust.ErrClosed) || errors.Is(err, context.Canceled) {
		t.unknown++ // Because the program ends.
		return
	}
	if fateUnknown(err) {
		t.unknown++
	} else {
		t.failed++
	}
	if t.first == nil {
		t.first = err
		t.where, _ = m.Metadata.(string)
	}
	t.fail(err)
}

// fateUnknown says whether a message with this error may have been stored: it was on its way,
// and nobody has refused it.
func fateUnknown(err error) bool {
	var refusal *robust.BrokerError
	if errors.As(err, &refusal) {
		return false
	}
	var broken *robust.ConnError
	return errors.As(err, &broken) || errors.Is(err, robust.ErrNoBroker) || errors.Is(err, context.DeadlineExceeded)
}

// now is for the progress bar.
func (t *tally) now() (messages, bytes int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stored, t.bytes
}

// Run sends what it reads until the input ends, a message fails or a signal comes.
func (c *produceCmd) Run(ctx context.Context, a *app) error {
	in, err := c.open(a)
	if err != nil {
		return err
	}
	defer in.close()
	acks := robust.AcksStored
	if c.Acks == "synced" {
		acks = robust.AcksSynced
	}
	var watch connWatch
	client, err := a.connect(ctx, robust.WithAcks(acks), robust.WithCompression(c.Compression.Compression), watch.option())
	if err != nil {
		return err
	}
	defer client.Close()
	// Whether the topic is there is told by the first message, with which the broker may create it.
	producer, err := client.AsyncProducer()
	if err != nil {
		return err
	}
	began := time.Now()
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	t := &tally{fail: fail}
	bar := a.startProgress(c.Quiet || in.typed, in.size, t.now)
	watch.start(a)
	sent, readErr := c.send(work, producer, in, t)
	end, cancel := outlive(ctx, c.Grace)
	defer cancel()
	closeErr := producer.Shutdown(end)
	watch.stop()
	bar.stop()
	return c.conclude(ctx, a, t, conclusion{sent: sent, read: readErr, close: closeErr, took: time.Since(began)})
}

// outlive returns a context that ends so long after ctx. So what was sent before a signal
// came is waited for, and the signal counts also when everything has been sent.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	end, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-end.Done():
		}
	})
	return end, func() { stop(); cancel() }
}

// send hands messages to the producer until there are no more, and returns how many.
func (c *produceCmd) send(ctx context.Context, producer *robust.AsyncProducer, in *input, t *tally) (int64, error) {
	var sent int64
	for {
		m, err := in.next(ctx)
		if errors.Is(err, errInputEnd) {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
		m.Topic = c.Topic
		if c.Partition.given {
			m.Partition = c.Partition.number
		}
		if len(c.Header) > 0 {
			if m.Headers == nil {
				m.Headers = make(map[string]string, len(c.Header))
			}
			for name, value := range c.Header {
				m.Headers[name] = value
			}
		}
		if err := producer.SendFunc(ctx, m, t.done); err != nil {
			if ctx.Err() == nil {
				return sent, fmt.Errorf("%v: %w", m.Metadata, err)
			}
			return sent, context.Cause(ctx)
		}
		sent++
	}
}

// conclusion is how sending has ended.
type conclusion struct {
	sent        int64
	read, close error
	took        time.Duration
}

// conclude says what became of the messages. It is the last thing that is printed.
func (c *produceCmd) conclude(ctx context.Context, a *app, t *tally, end conclusion) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// What has no result by now may have been stored.
	t.unknown = max(t.unknown, end.sent-t.stored-t.failed)
	interrupted := ctx.Err() != nil
	summary := map[string]any{
		"topic": c.Topic, "stored": t.stored, "bytes": t.bytes, "failed": t.failed, "unknown": t.unknown,
		"interrupted": interrupted, "seconds": end.took.Seconds(),
	}
	text := fmt.Sprintf("%s stored in topic %s, %s in %v", plural(t.stored, "message"), c.Topic, bytesText(t.bytes), end.took.Round(time.Millisecond))
	if interrupted {
		text = "interrupted: " + text
	}
	if t.failed > 0 {
		text += fmt.Sprintf("; %d not stored", t.failed)
	}
	if t.unknown > 0 {
		text += fmt.Sprintf("; of %d it is not known", t.unknown)
	}
	// What went wrong stands before the summary, which is the last line.
	code := exitOK
	switch {
	case t.first != nil:
		code = exitUndelivered
		known, hint := explain(a, t.first)
		if known != exitFailure {
			code = known
		}
		if errors.Is(t.first, robust.ErrPartitionNotFound) && !c.Partition.given {
			hint = "the line names the partition; -p any chooses by key instead"
		}
		fmt.Fprintf(a.stderr, "robust: %s: %s\n", t.where, errText(t.first))
		if hint != "" {
			fmt.Fprintln(a.stderr, "  "+hint)
		}
	case interrupted:
		code = exitInterrupted
	case end.read != nil:
		code = report(a.stderr, a, end.read)
	case end.close != nil && t.unknown > 0:
		code = exitUndelivered
		fmt.Fprintln(a.stderr, "robust:", errText(end.close))
	}
	if a.json {
		if err := a.show(summary, nil); err != nil {
			return err
		}
	}
	if !c.Quiet && !a.json {
		fmt.Fprintln(a.stderr, text)
	}
	if code != exitOK {
		return &exitError{code: code}
	}
	return nil
}
