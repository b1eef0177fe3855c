package robustotel

import (
	"context"
	"iter"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	robust "github.com/aminofox/robust-go-sdk"
)

// Group is the attribute that names the consumer group of a handler.
func Group(id string) attribute.KeyValue { return semconv.MessagingConsumerGroupName(id) }

// Handler returns fn with a span around each call, and its duration measured. It is for
// [robust.Each], and for loops over what a consumer or a claim delivers. The context that fn is given
// has the span and what else the propagator has read, such as baggage. attrs are added to spans and
// measurements.
func (i *Instrumentation) Handler(fn func(ctx context.Context, m *robust.Message) error, attrs ...attribute.KeyValue) func(ctx context.Context, m *robust.Message) error {
	more := i.handlerOptions(attrs)
	return func(ctx context.Context, m *robust.Message) error {
		ctx, opts := i.origin(ctx, m, more)
		ctx, s := i.start(ctx, opProcess, m, opts...)
		s.about(m, m.Partition, m.Offset)
		return i.process(ctx, s, m.Topic, attrs, func() error { return fn(ctx, m) })
	}
}

// BatchHandler is Handler for a function that handles several messages at once. Its span has
// links to the contexts in which they were created, and the context that fn is given has
// nothing that they carry.
func (i *Instrumentation) BatchHandler(fn func(ctx context.Context, ms []*robust.Message) error, attrs ...attribute.KeyValue) func(ctx context.Context, ms []*robust.Message) error {
	more := i.handlerOptions(attrs)
	return func(ctx context.Context, ms []*robust.Message) error {
		links := make([]trace.Link, 0, len(ms))
		topic := commonTopic(ms)
		for _, m := range ms {
			if created := i.creation(ctx, m); created.IsValid() {
				links = append(links, linkTo(created, m, topic, m.Offset))
			}
		}
		opts := append(slices.Clone(more), trace.WithLinks(links...), trace.WithAttributes(semconv.MessagingBatchMessageCount(len(ms))))
		ctx, s := i.startAt(ctx, opProcess, topic, robust.PartitionAny, opts)
		return i.process(ctx, s, topic, attrs, func() error { return fn(ctx, ms) })
	}
}

func (i *Instrumentation) handlerOptions(attrs []attribute.KeyValue) []trace.SpanStartOption {
	if len(attrs) == 0 {
		return nil
	}
	return []trace.SpanStartOption{trace.WithAttributes(attrs...)}
}

// origin returns a context that has what a message carries, with the parent of the span that
// processes it, and the options of that span.
func (i *Instrumentation) origin(ctx context.Context, m *robust.Message, opts []trace.SpanStartOption) (context.Context, []trace.SpanStartOption) {
	if len(m.Headers) == 0 {
		return ctx, opts
	}
	around := trace.SpanFromContext(ctx)
	ctx = i.extract(ctx, m)
	created := trace.SpanContextFromContext(ctx)
	if i.linksOnly || around.SpanContext().IsValid() {
		ctx = trace.ContextWithSpan(ctx, around)
	}
	if created.IsValid() {
		opts = append(opts[:len(opts):len(opts)], trace.WithLinks(trace.Link{SpanContext: created}))
	}
	return ctx, opts
}

// process calls a handler.
func (i *Instrumentation) process(ctx context.Context, s span, topic string, attrs []attribute.KeyValue, call func() error) error {
	began := time.Now()
	err := errUnwound
	defer func() { // Also when the call panics.
		s.end(err)
		i.processed(ctx, topic, attrs, time.Since(began), err)
	}()
	err = call()
	return err
}

// Receive returns messages with a span for each, from when the loop asks for it until it has it.
// messages is what [robust.PartitionConsumer.All] or [robust.Claim.All] returned for ctx. The
// spans are about waiting; what the loop does for a message, Handler traces.
func (i *Instrumentation) Receive(ctx context.Context, messages iter.Seq2[*robust.Message, error]) iter.Seq2[*robust.Message, error] {
	return func(yield func(*robust.Message, error) bool) {
		began := time.Now()
		for m, err := range messages {
			i.received(ctx, began, m, err)
			if !yield(m, err) {
				return
			}
			began = time.Now()
		}
	}
}

func (i *Instrumentation) received(ctx context.Context, began time.Time, m *robust.Message, err error) {
	switch {
	case err == nil:
		var opts []trace.SpanStartOption
		if created := i.creation(ctx, m); created.IsValid() {
			opts = append(opts, trace.WithLinks(trace.Link{SpanContext: created}))
		}
		_, s := i.start(ctx, opReceive, m, append(opts, trace.WithTimestamp(began))...)
		s.about(m, m.Partition, m.Offset)
		s.end(nil)
	case ctx.Err() == nil: // Else the loop ends as the application wants it to.
		_, s := i.startAt(ctx, opReceive, "", robust.PartitionAny, []trace.SpanStartOption{trace.WithTimestamp(began)})
		s.end(err)
	}
}
