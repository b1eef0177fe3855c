package robustotel

import (
	"context"
	"errors"
	"strconv"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	robust "github.com/aminofox/robust-go-sdk"
)

// offsetKey is where a message is stored in its partition.
const offsetKey = attribute.Key("messaging.robust.offset")

// startKey names what spans of an operation begin with.
type startKey struct {
	operation operation
	topic     string
	partition int32
}

// beginning is what they begin with.
type beginning struct {
	name string
	opts []trace.SpanStartOption
}

// start begins a span about a message.
func (i *Instrumentation) start(ctx context.Context, o operation, m *robust.Message, more ...trace.SpanStartOption) (context.Context, span) {
	return i.startAt(ctx, o, m.Topic, m.Partition, more)
}

// startAt begins a span about messages of a topic, and of a partition if that is known: a sampler
// is to know it, too. What is the same for every message of a partition is made once.
func (i *Instrumentation) startAt(ctx context.Context, o operation, topic string, partition int32, more []trace.SpanStartOption) (context.Context, span) {
	partition = max(partition, robust.PartitionAny)
	b := i.starts.get(startKey{o, topic, partition}, func() beginning {
		attrs := i.attributes(o, topic)
		if partition >= 0 {
			attrs = append(attrs, partitionID(partition))
		}
		return beginning{o.spanName(topic), []trace.SpanStartOption{trace.WithSpanKind(o.kind()), trace.WithAttributes(attrs...)}}
	})
	if len(more) > 0 {
		b.opts = append(b.opts[:len(b.opts):len(b.opts)], more...)
	}
	ctx, s := i.tracer.Start(ctx, b.name, b.opts...)
	return ctx, span{s}
}

// span is a span of ours.
type span struct{ trace.Span }

// about adds what is known of the message that a span began with. Partition and offset are known
// of one that is stored.
func (s span) about(m *robust.Message, partition int32, offset int64) {
	if !s.IsRecording() {
		return
	}
	if partition == m.Partition {
		partition = robust.PartitionAny // It began with that.
	}
	s.SetAttributes(messageAttributes(m, partition, offset)...)
}

func partitionID(partition int32) attribute.KeyValue {
	return semconv.MessagingDestinationPartitionID(strconv.Itoa(int(partition)))
}

func messageAttributes(m *robust.Message, partition int32, offset int64) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, 4)
	if m.ID != "" {
		attrs = append(attrs, semconv.MessagingMessageID(m.ID))
	}
	if partition >= 0 {
		attrs = append(attrs, partitionID(partition))
	}
	if offset >= 0 {
		attrs = append(attrs, offsetKey.Int64(offset))
	}
	return attrs
}

// sent ends the span of a message with what has become of that.
func (s span) sent(m *robust.Message, r robust.Receipt, err error) {
	if err != nil {
		r.Partition, r.Offset = m.Partition, -1
	}
	s.about(m, r.Partition, r.Offset)
	s.end(err)
}

// linkTo is a link to the context in which a message was created. It names the topic unless all
// that the span is about are of that one: a partition is one of a topic.
func linkTo(created trace.SpanContext, m *robust.Message, common string, offset int64) trace.Link {
	attrs := messageAttributes(m, m.Partition, offset)
	if m.Topic != common {
		attrs = append(attrs, semconv.MessagingDestinationName(m.Topic))
	}
	return trace.Link{SpanContext: created, Attributes: attrs}
}

// end ends it, with the error of what it stands for.
func (s span) end(err error) {
	if err != nil && s.IsRecording() {
		s.RecordError(err)
		s.SetStatus(codes.Error, err.Error())
		s.SetAttributes(failure(err))
	}
	s.End()
}

// creation returns the context in which a message was created, as far as it carries one.
func (i *Instrumentation) creation(ctx context.Context, m *robust.Message) trace.SpanContext {
	if len(m.Headers) == 0 {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(i.extract(ctx, m))
}

// extract returns ctx with what a message carries in place of what ctx is part of.
func (i *Instrumentation) extract(ctx context.Context, m *robust.Message) context.Context {
	if trace.SpanContextFromContext(ctx).IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{})
	}
	return i.propagator.Extract(ctx, &Carrier{message: m})
}

// inject returns m with the context of ctx, or m if there is none to be carried.
func (i *Instrumentation) inject(ctx context.Context, m *robust.Message) *robust.Message {
	c := Carrier{message: m}
	i.propagator.Inject(ctx, &c)
	return c.message
}

// Create returns m with the context of a new span "create", for a message that is sent in a
// way that makes no span, such as [robust.AsyncProducer.Input]. m itself does not change. One that
// carries a context already is returned as it is.
func (i *Instrumentation) Create(ctx context.Context, m *robust.Message) *robust.Message {
	out, s := i.create(ctx, m)
	s.end(nil)
	return out
}

// create begins the span, which stands for nothing if there is to be none.
func (i *Instrumentation) create(ctx context.Context, m *robust.Message) (*robust.Message, span) {
	none := span{trace.SpanFromContext(context.Background())}
	switch {
	case m == nil || i.creation(ctx, m).IsValid():
		return m, none
	case i.noCreate:
		return i.inject(ctx, m), none
	}
	ctx, s := i.start(ctx, opCreate, m)
	s.about(m, m.Partition, -1)
	return i.inject(ctx, m), s
}

// send begins the span of a single message.
func (i *Instrumentation) send(ctx context.Context, m *robust.Message) (*robust.Message, span) {
	if created := i.creation(ctx, m); created.IsValid() {
		_, s := i.start(ctx, opForward, m, trace.WithLinks(trace.Link{SpanContext: created}))
		return m, s
	}
	ctx, s := i.start(ctx, opSend, m)
	return i.inject(ctx, m), s
}

// SyncProducer returns p with spans for its sends. Its other methods are p's own.
func (i *Instrumentation) SyncProducer(p *robust.SyncProducer) *SyncProducer {
	return &SyncProducer{SyncProducer: p, with: i}
}

// SyncProducer is a [robust.SyncProducer] whose sends are traced.
type SyncProducer struct {
	*robust.SyncProducer

	with *Instrumentation
}

// Send is [robust.SyncProducer.Send] with a span.
func (p *SyncProducer) Send(ctx context.Context, m *robust.Message) (robust.Receipt, error) {
	if m == nil {
		return p.SyncProducer.Send(ctx, m)
	}
	out, s := p.with.send(ctx, m)
	r, err := p.SyncProducer.Send(ctx, out)
	s.sent(m, r, err)
	return r, err
}

// SendMessage is [robust.SyncProducer.SendMessage] with a span.
func (p *SyncProducer) SendMessage(ctx context.Context, m *robust.Message) (partition int32, offset int64, err error) {
	r, err := p.Send(ctx, m)
	if err != nil {
		return robust.PartitionAny, -1, err
	}
	return r.Partition, r.Offset, nil
}

// SendMessages is [robust.SyncProducer.SendMessages] with a span for each message, and one for
// all.
func (p *SyncProducer) SendMessages(ctx context.Context, ms []*robust.Message) error {
	outs, s := p.with.sendMany(ctx, ms)
	err := p.SyncProducer.SendMessages(ctx, outs)
	for n, out := range outs {
		if m := ms[n]; out != m {
			m.Partition, m.Offset, m.Timestamp = out.Partition, out.Offset, out.Timestamp
		}
	}
	if failed := robust.ProducerErrors(nil); errors.As(err, &failed) {
		nameOriginals(failed, outs, ms)
	}
	s.end(err)
	return err
}

// nameOriginals puts the caller's messages in place of what was sent for them.
func nameOriginals(failed robust.ProducerErrors, outs, ms []*robust.Message) {
	originals := make(map[*robust.Message]*robust.Message, len(ms))
	for n, out := range outs {
		originals[out] = ms[n]
	}
	for _, e := range failed {
		if m := originals[e.Msg]; m != nil {
			e.Msg = m
		}
	}
}

// sendMany begins the span of several messages, and returns what to send.
func (i *Instrumentation) sendMany(ctx context.Context, ms []*robust.Message) ([]*robust.Message, span) {
	outs := make([]*robust.Message, len(ms))
	links := make([]trace.Link, 0, len(ms))
	topic := commonTopic(ms)
	own := 0 // that carry no context yet
	for n, m := range ms {
		outs[n] = m
		if m == nil {
			continue
		}
		if !i.noCreate {
			outs[n] = i.Create(ctx, m)
		}
		if created := i.creation(ctx, outs[n]); created.IsValid() {
			links = append(links, linkTo(created, m, topic, -1))
		} else {
			own++
		}
	}
	o := opForward
	if i.noCreate && own > 0 {
		o = opSend
	}
	ctx, s := i.startAt(ctx, o, topic, robust.PartitionAny, []trace.SpanStartOption{
		trace.WithLinks(links...), trace.WithAttributes(semconv.MessagingBatchMessageCount(len(ms))),
	})
	if i.noCreate {
		for n, m := range outs {
			if m != nil && !i.creation(ctx, m).IsValid() {
				outs[n] = i.inject(ctx, m)
			}
		}
	}
	return outs, s
}

// commonTopic returns the topic of messages, "" if they have several.
func commonTopic(ms []*robust.Message) (topic string) {
	for _, m := range ms {
		switch {
		case m == nil:
		case topic == "":
			topic = m.Topic
		case topic != m.Topic:
			return ""
		}
	}
	return topic
}

// AsyncProducer returns p with spans for Send and SendFunc. Its other methods are p's own.
func (i *Instrumentation) AsyncProducer(p *robust.AsyncProducer) *AsyncProducer {
	return &AsyncProducer{AsyncProducer: p, with: i}
}

// AsyncProducer is a [robust.AsyncProducer] whose sends are traced. What is sent by way of Input
// is not, unless it comes from [Instrumentation.Create].
type AsyncProducer struct {
	*robust.AsyncProducer

	with *Instrumentation
}

// SendFunc is [robust.AsyncProducer.SendFunc] with a span, which ends before done is called.
func (p *AsyncProducer) SendFunc(ctx context.Context, m *robust.Message, done func(m *robust.Message, r robust.Receipt, err error)) error {
	if m == nil || done == nil {
		return p.AsyncProducer.SendFunc(ctx, m, done)
	}
	out, s := p.with.send(ctx, m)
	if out == m && !s.IsRecording() {
		s.End()
		return p.AsyncProducer.SendFunc(ctx, m, done)
	}
	err := p.AsyncProducer.SendFunc(ctx, out, func(_ *robust.Message, r robust.Receipt, err error) {
		s.sent(m, r, err)
		done(m, r, err)
	})
	if err != nil {
		s.sent(m, robust.Receipt{}, err)
	}
	return err
}

// Send is [robust.AsyncProducer.Send] with a span "create", which ends when the message is taken;
// what becomes of it Successes and Errors tell, whose Msg is the copy that was sent, with the
// Metadata of m.
func (p *AsyncProducer) Send(ctx context.Context, m *robust.Message) error {
	out, s := p.with.create(ctx, m)
	err := p.AsyncProducer.Send(ctx, out)
	s.end(err)
	return err
}
