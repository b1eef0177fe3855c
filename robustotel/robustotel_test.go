package robustotel_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustotel"
)

// bench is a client, an instrumentation, and what comes of it.
type bench struct {
	*robustotel.Instrumentation

	client *robust.Client
	addr   string
	tracer trace.Tracer
	spans  *tracetest.InMemoryExporter
	meters *sdkmetric.ManualReader
}

func newBench(t *testing.T, opts ...robustotel.Option) *bench {
	t.Helper()
	return newBenchSampling(t, sdktrace.AlwaysSample(), opts...)
}

func newBenchSampling(t *testing.T, s sdktrace.Sampler, opts ...robustotel.Option) *bench {
	t.Helper()
	b := &bench{spans: tracetest.NewInMemoryExporter(), meters: sdkmetric.NewManualReader()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(b.spans), sdktrace.WithSampler(sdktrace.ParentBased(s)))
	b.tracer = tracers.Tracer("test")
	b.Instrumentation = robustotel.New(append([]robustotel.Option{
		robustotel.WithTracerProvider(tracers),
		robustotel.WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(b.meters))),
		robustotel.WithPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	}, opts...)...)

	broker, err := robust.NewBroker(robust.WithTopic("orders", 3), robust.WithTopic("bills", 1))
	require.NoError(t, err)
	t.Cleanup(func() { broker.Close() })
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(t, err)
	b.addr = addr.String()
	b.client, err = robust.New(robust.WithBrokers(b.addr), robust.WithHooks(b.Hooks()))
	require.NoError(t, err)
	t.Cleanup(func() { b.client.Close() })
	return b
}

func (b *bench) sync(t *testing.T) *robustotel.SyncProducer {
	t.Helper()
	p, err := b.client.SyncProducer()
	require.NoError(t, err)
	return b.SyncProducer(p)
}

func (b *bench) async(t *testing.T) *robustotel.AsyncProducer {
	t.Helper()
	p, err := b.client.AsyncProducer()
	require.NoError(t, err)
	return b.AsyncProducer(p)
}

// consume handles n messages of a topic as a member of a group.
func (b *bench) consume(t *testing.T, topic string, n int, fn func(ctx context.Context, m *robust.Message) error) {
	t.Helper()
	group, err := b.client.ConsumerGroup("billing")
	require.NoError(t, err)
	defer group.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	err = group.Consume(ctx, []string{topic}, robust.Each(func(ctx context.Context, m *robust.Message) error {
		err := fn(ctx, m)
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			cancel()
		}
		return err
	}))
	require.NoError(t, err)
}

// read returns the next messages of a partition.
func (b *bench) read(t *testing.T, topic string, partition int32, n int) (ms []*robust.Message) {
	t.Helper()
	consumer, err := b.client.PartitionConsumer(topic, partition)
	require.NoError(t, err)
	defer consumer.Close()
	for m, err := range consumer.All(t.Context()) {
		require.NoError(t, err)
		if ms = append(ms, m); len(ms) == n {
			return ms
		}
	}
	return nil
}

// named returns the spans of a name, in the order in which they ended.
func (b *bench) named(name string) (spans []tracetest.SpanStub) {
	for _, s := range b.spans.GetSpans() {
		if s.Name == name {
			spans = append(spans, s)
		}
	}
	return spans
}

func (b *bench) one(t *testing.T, name string) tracetest.SpanStub {
	t.Helper()
	spans := b.named(name)
	require.Len(t, spans, 1, name)
	return spans[0]
}

func attributes(list []attribute.KeyValue) map[string]any {
	m := make(map[string]any)
	for _, kv := range list {
		m[string(kv.Key)] = kv.Value.AsInterface()
	}
	return m
}

// linked returns what a span links to.
func linked(s tracetest.SpanStub) (ids []trace.SpanID) {
	for _, l := range s.Links {
		ids = append(ids, l.SpanContext.SpanID())
	}
	return ids
}

func nothing(context.Context, *robust.Message) error { return nil }

// TestOneTrace follows a message from who sends it to who handles it.
func TestOneTrace(t *testing.T) {
	b := newBench(t)
	for _, send := range []struct {
		name string
		send func(t *testing.T, ctx context.Context, m *robust.Message)
	}{
		{"sync", func(t *testing.T, ctx context.Context, m *robust.Message) {
			_, err := b.sync(t).Send(ctx, m)
			require.NoError(t, err)
		}},
		{"sync, as a tuple", func(t *testing.T, ctx context.Context, m *robust.Message) {
			_, _, err := b.sync(t).SendMessage(ctx, m)
			require.NoError(t, err)
		}},
		{"async", func(t *testing.T, ctx context.Context, m *robust.Message) {
			p := b.async(t)
			results := 0
			require.NoError(t, p.SendFunc(ctx, m, func(of *robust.Message, _ robust.Receipt, err error) {
				results++
				require.NoError(t, err)
				require.Same(t, m, of)
			}))
			require.NoError(t, p.Close())
			require.Equal(t, 1, results)
		}},
	} {
		t.Run(send.name, func(t *testing.T) {
			b.spans.Reset()
			member, err := baggage.NewMember("customer", "ann")
			require.NoError(t, err)
			bag, err := baggage.New(member)
			require.NoError(t, err)
			ctx, buying := b.tracer.Start(baggage.ContextWithBaggage(t.Context(), bag), "buy")
			headers := map[string]string{"currency": "EUR"}
			m := &robust.Message{ID: "4711", Topic: "bills", Value: []byte("two books"), Headers: headers, Offset: -1}
			send.send(t, ctx, m)
			buying.End()
			require.Equal(t, map[string]string{"currency": "EUR"}, headers, "the caller's map")
			require.Len(t, m.Headers, 1)

			var inside trace.SpanContext
			b.consume(t, "bills", 1, b.Handler(func(ctx context.Context, m *robust.Message) error {
				inside = trace.SpanContextFromContext(ctx)
				require.Equal(t, "ann", baggage.FromContext(ctx).Member("customer").Value())
				require.Equal(t, "EUR", m.Headers["currency"])
				return nil
			}, robustotel.Group("billing")))

			sent, processed := b.one(t, "send bills"), b.one(t, "process bills")
			require.Equal(t, trace.SpanKindProducer, sent.SpanKind)
			require.Equal(t, buying.SpanContext().SpanID(), sent.Parent.SpanID())
			require.Empty(t, sent.Links)
			offset := attributes(sent.Attributes)["messaging.robust.offset"]
			require.Equal(t, map[string]any{
				"messaging.system": "robust", "messaging.operation.name": "send", "messaging.operation.type": "send",
				"messaging.destination.name": "bills", "messaging.destination.partition.id": "0",
				"messaging.message.id": "4711", "messaging.robust.offset": offset,
			}, attributes(sent.Attributes))

			require.Equal(t, trace.SpanKindConsumer, processed.SpanKind)
			require.Equal(t, processed.SpanContext, inside)
			require.Equal(t, buying.SpanContext().TraceID(), processed.SpanContext.TraceID())
			require.Equal(t, sent.SpanContext.SpanID(), processed.Parent.SpanID())
			require.True(t, processed.Parent.IsRemote())
			require.Equal(t, []trace.SpanID{sent.SpanContext.SpanID()}, linked(processed))
			require.Equal(t, map[string]any{
				"messaging.system": "robust", "messaging.operation.name": "process", "messaging.operation.type": "process",
				"messaging.destination.name": "bills", "messaging.destination.partition.id": "0", "messaging.consumer.group.name": "billing",
				"messaging.message.id": "4711", "messaging.robust.offset": offset,
			}, attributes(processed.Attributes))
			require.Equal(t, robustotel.ScopeName, processed.InstrumentationScope.Name)
			require.Contains(t, processed.InstrumentationScope.SchemaURL, "1.43.0")
			require.False(t, processed.EndTime.Before(processed.StartTime))
		})
	}
}

// TestLinksInPlaceOfParents covers who is the parent of the span that handles a message.
func TestLinksInPlaceOfParents(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   []robustotel.Option
		around bool // something is being traced there already
	}{
		{"around", nil, true},
		{"links only", []robustotel.Option{robustotel.WithLinksOnly()}, false},
		{"links only, around", []robustotel.Option{robustotel.WithLinksOnly()}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.opts...)
			_, err := b.sync(t).Send(t.Context(), robust.NewMessage("bills", nil))
			require.NoError(t, err)
			ctx, parent := t.Context(), trace.SpanContext{}
			if c.around {
				var polling trace.Span
				ctx, polling = b.tracer.Start(ctx, "poll")
				defer polling.End()
				parent = polling.SpanContext()
			}
			require.NoError(t, b.Handler(nothing)(ctx, b.read(t, "bills", 0, 1)[0]))
			sent, processed := b.one(t, "send bills"), b.one(t, "process bills")
			require.Equal(t, parent.SpanID(), processed.Parent.SpanID())
			require.NotEqual(t, sent.SpanContext.TraceID(), processed.SpanContext.TraceID())
			require.Equal(t, []trace.SpanID{sent.SpanContext.SpanID()}, linked(processed))
		})
	}
}

// TestForeignMessages: messages that nobody has traced are handled all the same.
func TestForeignMessages(t *testing.T) {
	b := newBench(t)
	p, err := b.client.SyncProducer()
	require.NoError(t, err)
	for _, headers := range []map[string]string{nil, {"traceparent": "nonsense"}} {
		b.spans.Reset()
		m := robust.NewMessage("bills", nil)
		m.Headers = headers
		_, err = p.Send(t.Context(), m)
		require.NoError(t, err)
		b.consume(t, "bills", 1, b.Handler(nothing))
		processed := b.one(t, "process bills")
		require.Empty(t, processed.Links)
		require.False(t, processed.Parent.IsValid())
	}
}

// TestOwnContext: a message that carries a context keeps it, and sends link to it.
func TestOwnContext(t *testing.T) {
	b := newBench(t)
	const made = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	fresh := func() *robust.Message {
		return &robust.Message{Topic: "bills", Headers: map[string]string{"traceparent": made}, Offset: -1}
	}
	_, err := b.sync(t).Send(t.Context(), fresh())
	require.NoError(t, err)
	require.NoError(t, b.sync(t).SendMessages(t.Context(), []*robust.Message{fresh(), fresh()}))
	p := b.async(t)
	require.NoError(t, p.SendFunc(t.Context(), fresh(), func(*robust.Message, robust.Receipt, error) {}))
	require.NoError(t, p.Send(t.Context(), fresh()))
	require.NoError(t, p.Flush(t.Context()))
	<-p.Successes()
	require.NoError(t, p.Close())
	m := fresh()
	require.Same(t, m, b.Create(t.Context(), m))

	for _, m := range b.read(t, "bills", 0, 5) {
		require.Equal(t, map[string]string{"traceparent": made}, m.Headers)
	}
	require.Empty(t, b.named("create bills"))
	sends := b.named("send bills")
	require.Len(t, sends, 3)
	for _, s := range sends {
		require.Equal(t, trace.SpanKindClient, s.SpanKind, "its context is not that of a message")
		require.False(t, s.Parent.IsValid())
		require.NotEmpty(t, s.Links)
		for _, l := range s.Links {
			require.Equal(t, "00f067aa0ba902b7", l.SpanContext.SpanID().String())
		}
	}
}

func TestSendMessages(t *testing.T) {
	b := newBench(t)
	shared := map[string]string{"currency": "EUR"}
	ms := make([]*robust.Message, 10)
	for n := range ms {
		ms[n] = robust.NewMessageWithKey("orders", []byte{byte(n)}, nil)
		ms[n].Headers = shared
	}
	require.NoError(t, b.sync(t).SendMessages(t.Context(), ms))
	require.Len(t, shared, 1)
	creates, sent := b.named("create orders"), b.one(t, "send orders")
	require.Len(t, creates, 10)
	require.Equal(t, trace.SpanKindClient, sent.SpanKind)
	require.EqualValues(t, 10, attributes(sent.Attributes)["messaging.batch.message_count"])
	byID := make(map[string]bool)
	for n, s := range creates {
		require.Equal(t, trace.SpanKindProducer, s.SpanKind)
		require.Equal(t, s.SpanContext.SpanID(), linked(sent)[n])
		byID[s.SpanContext.SpanID().String()] = true
	}
	for _, m := range ms {
		require.GreaterOrEqual(t, m.Offset, int64(0), "what was stored is said of the caller's message")
		require.NotZero(t, m.Timestamp)
		stored := b.read(t, "orders", m.Partition, int(m.Offset)+1)[m.Offset]
		require.Equal(t, m.Key, stored.Key)
		id := strings.Split(stored.Headers["traceparent"], "-")[2]
		require.True(t, byID[id], "each has a context of its own")
		delete(byID, id)
	}
	require.Empty(t, byID)
}

func TestSendMessagesSomeFail(t *testing.T) {
	b := newBench(t)
	ms := []*robust.Message{robust.NewMessage("orders", nil), robust.NewMessage("no-such-topic", nil), nil, robust.NewMessage("orders", nil)}
	err := b.sync(t).SendMessages(t.Context(), ms)
	failed := robust.ProducerErrors(nil)
	require.ErrorAs(t, err, &failed)
	require.Len(t, failed, 2)
	require.True(t, slices.ContainsFunc(failed, func(e *robust.ProducerError) bool { return e.Msg == ms[1] }), "the error names the caller's message")
	require.Equal(t, int64(-1), ms[1].Offset)
	require.GreaterOrEqual(t, ms[3].Offset, int64(0))
	sent := b.one(t, "send")
	require.Equal(t, codes.Error, sent.Status.Code)
	require.Len(t, sent.Links, 3)
	for n, topic := range []string{"orders", "no-such-topic", "orders"} {
		require.Equal(t, topic, attributes(sent.Links[n].Attributes)["messaging.destination.name"], "the span has several")
	}
	require.EqualValues(t, 4, attributes(sent.Attributes)["messaging.batch.message_count"])
}

func TestWithoutCreateSpans(t *testing.T) {
	b := newBench(t, robustotel.WithoutCreateSpans())
	ctx, buying := b.tracer.Start(t.Context(), "buy")
	require.NoError(t, b.sync(t).SendMessages(ctx, []*robust.Message{robust.NewMessage("bills", nil), robust.NewMessage("bills", nil)}))
	p := b.async(t)
	require.NoError(t, p.Send(ctx, robust.NewMessage("bills", nil)))
	<-p.Successes()
	require.NoError(t, p.Close())
	sent := b.one(t, "send bills")
	require.Equal(t, trace.SpanKindProducer, sent.SpanKind)
	require.Empty(t, sent.Links)
	for n, m := range b.read(t, "bills", 0, 3) {
		want := sent.SpanContext
		if n == 2 {
			want = buying.SpanContext()
		}
		require.Contains(t, m.Headers["traceparent"], want.SpanID().String())
	}
	require.Empty(t, b.named("create bills"))
}

// TestChannels covers messages of which channels tell what became of them.
func TestChannels(t *testing.T) {
	b := newBench(t)
	p := b.async(t)
	m := robust.NewMessage("bills", []byte("sent"))
	m.Metadata = "mine"
	require.NoError(t, p.Send(t.Context(), m))
	require.Equal(t, "mine", (<-p.Successes()).Metadata)
	p.Input() <- b.Create(t.Context(), robust.NewMessage("bills", []byte("put in")))
	<-p.Successes()
	require.NoError(t, p.Close())
	require.Nil(t, m.Headers)

	creates := b.named("create bills")
	require.Len(t, creates, 2)
	b.consume(t, "bills", 2, b.Handler(nothing))
	for n, s := range b.named("process bills") {
		require.Equal(t, creates[n].SpanContext.SpanID(), s.Parent.SpanID())
	}

	require.ErrorIs(t, p.Send(t.Context(), m), robust.ErrClosed)
	require.Equal(t, "CLOSED", attributes(b.named("create bills")[2].Attributes)["error.type"])
}

// TestFailedSends: each failure is in the span, and is told once.
func TestFailedSends(t *testing.T) {
	b := newBench(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		topic, failure string
		size           int
		ctx            context.Context //nolint:containedctx // of one case
	}{
		{"no-such-topic", "TOPIC_NOT_FOUND", 0, t.Context()},
		{"bills", "MESSAGE_TOO_LARGE", 20 << 20, t.Context()},
		{"bills", "CANCELED", 0, canceled},
	} {
		m := robust.NewMessage(c.topic, make([]byte, c.size))
		m.ID = "4711"
		b.spans.Reset()
		_, err := b.sync(t).Send(c.ctx, m)
		require.Error(t, err)
		p := b.async(t)
		told := 0
		if p.SendFunc(c.ctx, m, func(_ *robust.Message, _ robust.Receipt, err error) {
			require.Error(t, err)
			told++
		}) != nil {
			told++
		}
		require.NoError(t, p.Close())
		require.Equal(t, 1, told)
		spans := b.named("send " + c.topic)
		require.Len(t, spans, 2)
		for _, s := range spans {
			require.Equal(t, codes.Error, s.Status.Code)
			require.NotEmpty(t, s.Status.Description)
			require.Equal(t, c.failure, attributes(s.Attributes)["error.type"])
			require.Equal(t, "4711", attributes(s.Attributes)["messaging.message.id"])
			require.Len(t, s.Events, 1)
		}
	}
	require.ErrorIs(t, b.async(t).SendFunc(t.Context(), nil, nil), robust.ErrInvalidRequest)
	_, err := b.sync(t).Send(t.Context(), nil)
	require.Error(t, err)
}

func TestFailedHandlers(t *testing.T) {
	b := newBench(t)
	m := &robust.Message{Topic: "bills"}
	oops := errors.New("oops")
	require.ErrorIs(t, b.Handler(func(context.Context, *robust.Message) error { return oops })(t.Context(), m), oops)
	require.PanicsWithValue(t, "broken", func() {
		_ = b.Handler(func(context.Context, *robust.Message) error { panic("broken") })(t.Context(), m)
	})
	spans := b.named("process bills")
	require.Len(t, spans, 2)
	require.Equal(t, "oops", spans[0].Status.Description)
	require.Equal(t, "*errors.errorString", attributes(spans[0].Attributes)["error.type"])
	require.Equal(t, codes.Error, spans[1].Status.Code)
	require.Equal(t, "PANIC", attributes(spans[1].Attributes)["error.type"])
}

func TestBatchHandler(t *testing.T) {
	b := newBench(t)
	p := b.sync(t)
	for range 3 {
		_, err := p.Send(t.Context(), robust.NewMessage("bills", nil))
		require.NoError(t, err)
	}
	ms := append(b.read(t, "bills", 0, 3), &robust.Message{Topic: "bills"})
	handle := b.BatchHandler(func(ctx context.Context, got []*robust.Message) error {
		require.Equal(t, ms, got)
		require.True(t, trace.SpanContextFromContext(ctx).IsValid())
		return nil
	}, robustotel.Group("billing"))
	require.NoError(t, handle(t.Context(), ms))
	require.NoError(t, b.BatchHandler(func(context.Context, []*robust.Message) error { return nil })(t.Context(), []*robust.Message{ms[1], {Topic: "orders"}}))
	mixed := b.one(t, "process")
	require.NotContains(t, attributes(mixed.Attributes), "messaging.destination.name")
	require.Equal(t, map[string]any{
		"messaging.destination.name": "bills", "messaging.destination.partition.id": "0", "messaging.message.id": ms[1].ID, "messaging.robust.offset": int64(1),
	}, attributes(mixed.Links[0].Attributes))
	processed := b.one(t, "process bills")
	require.EqualValues(t, 4, attributes(processed.Attributes)["messaging.batch.message_count"])
	require.Len(t, processed.Links, 3)
	for n, s := range b.named("send bills") {
		require.Equal(t, s.SpanContext.SpanID(), linked(processed)[n])
		require.EqualValues(t, n, attributes(processed.Links[n].Attributes)["messaging.robust.offset"])
	}
}

// TestReceiveFromTheAsking: a span begins when the loop asks, not when it has the message.
func TestReceiveFromTheAsking(t *testing.T) {
	b := newBench(t)
	var asked []time.Time
	messages := func(yield func(*robust.Message, error) bool) {
		for n := range 3 {
			asked = append(asked, time.Now())
			if !yield(&robust.Message{Topic: "bills", Offset: int64(n)}, nil) {
				return
			}
		}
	}
	var had []time.Time
	for _, err := range b.Receive(t.Context(), messages) {
		require.NoError(t, err)
		had = append(had, time.Now())
	}
	for n, s := range b.named("receive bills") {
		require.False(t, s.StartTime.After(asked[n]))
		require.False(t, s.EndTime.After(had[n]))
		require.False(t, n > 0 && s.StartTime.Before(had[n-1]), "what the loop does is no waiting")
	}
}

// TestManyTopics: what is kept for each topic is bounded, and what is not kept is right all the same.
func TestManyTopics(t *testing.T) {
	b := newBench(t)
	handle := b.Handler(nothing)
	const topics = 5000
	for range 2 {
		b.spans.Reset()
		for n := range topics {
			require.NoError(t, handle(t.Context(), &robust.Message{Topic: fmt.Sprint("topic", n)}))
		}
		spans := b.spans.GetSpans()
		require.Len(t, spans, topics)
		for n, s := range spans {
			require.Equal(t, fmt.Sprint("process topic", n), s.Name)
			require.Equal(t, fmt.Sprint("topic", n), attributes(s.Attributes)["messaging.destination.name"])
		}
	}
}

func TestReceive(t *testing.T) {
	b := newBench(t)
	p := b.sync(t)
	for range 3 {
		_, err := p.Send(t.Context(), robust.NewMessage("bills", nil))
		require.NoError(t, err)
	}
	consumer, err := b.client.PartitionConsumer("bills", 0)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range b.Receive(ctx, consumer.All(ctx)) {
		if ctx.Err() != nil {
			require.ErrorIs(t, err, context.Canceled)
			break
		}
		require.NoError(t, err)
		if n++; n == 3 {
			cancel()
		}
	}
	require.Equal(t, 3, n)
	sends, received := b.named("send bills"), b.named("receive bills")
	require.Len(t, received, 3)
	for n, s := range received {
		require.Equal(t, trace.SpanKindClient, s.SpanKind)
		require.Equal(t, []trace.SpanID{sends[n].SpanContext.SpanID()}, linked(s))
		require.EqualValues(t, n, attributes(s.Attributes)["messaging.robust.offset"])
	}
	require.Empty(t, b.named("receive"), "an end that was asked for is no failure")

	require.NoError(t, consumer.Close())
	for _, err := range b.Receive(t.Context(), consumer.All(t.Context())) {
		require.ErrorIs(t, err, robust.ErrClosed)
	}
	require.Equal(t, "CLOSED", attributes(b.one(t, "receive").Attributes)["error.type"])
}

// TestNotSampled: the decision not to record a trace reaches the other end.
func TestNotSampled(t *testing.T) {
	b := newBenchSampling(t, sdktrace.NeverSample())
	_, err := b.sync(t).Send(t.Context(), robust.NewMessage("bills", nil))
	require.NoError(t, err)
	p := b.async(t)
	require.NoError(t, p.SendFunc(t.Context(), robust.NewMessage("bills", nil), func(*robust.Message, robust.Receipt, error) {}))
	require.NoError(t, p.Close())
	for _, m := range b.read(t, "bills", 0, 2) {
		require.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`, m.Headers["traceparent"])
	}
	other := sdktrace.NewTracerProvider(sdktrace.WithSyncer(b.spans)) // samples whatever has no parent
	reading := robustotel.New(robustotel.WithTracerProvider(other), robustotel.WithPropagator(propagation.TraceContext{}))
	b.consume(t, "bills", 2, reading.Handler(nothing))
	require.Empty(t, b.spans.GetSpans())
}

// asked is a sampler that keeps what it is asked about.
type asked struct {
	mu    sync.Mutex
	spans map[string]map[string]any // attributes by the span's name
}

func (a *asked) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spans[p.Name] = attributes(p.Attributes)
	return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
}

func (a *asked) Description() string { return "asked" }

// TestSamplersKnow: what the conventions want to be there when a sampler decides, is.
func TestSamplersKnow(t *testing.T) {
	sampler := &asked{spans: make(map[string]map[string]any)}
	b := newBenchSampling(t, sampler, robustotel.WithAttributes(attribute.String("messaging.client.id", "test")))
	p := b.sync(t)
	m := robust.NewMessage("orders", nil)
	m.Partition = 2
	_, err := p.Send(t.Context(), m)
	require.NoError(t, err)
	bill := robust.NewMessage("bills", nil)
	require.NoError(t, p.SendMessages(t.Context(), []*robust.Message{bill}))
	ctx := trace.ContextWithSpanContext(t.Context(), trace.SpanContext{})
	for m, err := range b.Receive(ctx, func(yield func(*robust.Message, error) bool) { yield(b.read(t, "orders", 2, 1)[0], nil) }) {
		require.NoError(t, err)
		m.Headers = nil // The sampler is asked about what has no parent.
		require.NoError(t, b.Handler(nothing, robustotel.Group("billing"))(ctx, m))
		require.NoError(t, b.BatchHandler(func(context.Context, []*robust.Message) error { return nil }, robustotel.Group("billing"))(ctx, []*robust.Message{{Topic: "bills"}}))
	}
	for name, want := range map[string]map[string]any{
		"send orders":    {"messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.destination.name": "orders", "messaging.destination.partition.id": "2"},
		"create bills":   {"messaging.operation.name": "create", "messaging.operation.type": "create", "messaging.destination.name": "bills"},
		"send bills":     {"messaging.operation.name": "send", "messaging.operation.type": "send", "messaging.destination.name": "bills", "messaging.batch.message_count": int64(1)},
		"receive orders": {"messaging.operation.name": "receive", "messaging.operation.type": "receive", "messaging.destination.name": "orders", "messaging.destination.partition.id": "2"},
		"process orders": {"messaging.operation.name": "process", "messaging.operation.type": "process", "messaging.destination.name": "orders", "messaging.destination.partition.id": "2", "messaging.consumer.group.name": "billing"},
		"process bills":  {"messaging.operation.name": "process", "messaging.operation.type": "process", "messaging.destination.name": "bills", "messaging.consumer.group.name": "billing", "messaging.batch.message_count": int64(1)},
	} {
		want["messaging.system"], want["messaging.client.id"] = "robust", "test"
		require.Equal(t, want, sampler.spans[name], name)
	}
}

// TestNothingSetUp: without an SDK nothing is added to messages, and none is copied.
func TestNothingSetUp(t *testing.T) {
	for _, i := range []*robustotel.Instrumentation{
		robustotel.New(nil, robustotel.WithTracerProvider(nil), robustotel.WithMeterProvider(nil), robustotel.WithPropagator(nil)),
		robustotel.New(robustotel.WithTracerProvider(noop.NewTracerProvider()), robustotel.WithPropagator(propagation.TraceContext{})),
	} {
		m := robust.NewMessage("bills", nil)
		require.Same(t, m, i.Create(t.Context(), m))
		require.NoError(t, i.Handler(nothing)(t.Context(), m))
		require.Nil(t, i.Create(t.Context(), nil))
	}
}

// TestSideBySide has one message and one instrumentation used by many at once.
func TestSideBySide(t *testing.T) {
	b := newBench(t)
	sync1, async := b.sync(t), b.async(t)
	m := robust.NewMessage("bills", []byte("x"))
	m.Headers = map[string]string{"currency": "EUR"}
	var mu sync.Mutex
	results := 0
	var working sync.WaitGroup
	for range 8 {
		working.Go(func() {
			for range 50 {
				_, err := sync1.Send(t.Context(), m)
				require.NoError(t, err)
				require.NoError(t, async.SendFunc(t.Context(), m, func(of *robust.Message, _ robust.Receipt, err error) {
					mu.Lock()
					defer mu.Unlock()
					require.NoError(t, err)
					require.Same(t, m, of)
					results++
				}))
			}
		})
	}
	working.Wait()
	require.NoError(t, async.Close())
	require.Equal(t, 400, results)
	require.Len(t, b.named("send bills"), 800)
	ids := make(map[string]bool)
	for _, m := range b.read(t, "bills", 0, 800) {
		ids[m.Headers["traceparent"]] = true
	}
	require.Len(t, ids, 800)
}

func TestCarrier(t *testing.T) {
	m := &robust.Message{Topic: "bills", Headers: map[string]string{"a": "1"}, Metadata: t}
	c := robustotel.NewCarrier(m)
	require.Same(t, m, c.Message())
	require.Equal(t, "1", c.Get("a"))
	require.Empty(t, c.Get("b"))
	c.Set("a", "2")
	c.Set("b", "3")
	require.Equal(t, map[string]string{"a": "1"}, m.Headers)
	require.Equal(t, map[string]string{"a": "2", "b": "3"}, c.Message().Headers)
	require.Equal(t, t, c.Message().Metadata)
	require.ElementsMatch(t, []string{"a", "b"}, c.Keys())
}

// TestNoSDK holds that a program takes the API along, and the SDK only if it wants it.
func TestNoSDK(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "go.opentelemetry.io/otel/trace")
	for _, d := range deps {
		require.False(t, strings.HasPrefix(d, "go.opentelemetry.io/otel/sdk") || strings.HasPrefix(d, "go.opentelemetry.io/otel/exporters"), d)
	}
}

// TestConditions holds that every condition of the package has a name of its own.
func TestConditions(t *testing.T) {
	api, err := os.ReadFile(filepath.Join("..", "testdata", "api.txt"))
	require.NoError(t, err)
	source, err := os.ReadFile("failures.go")
	require.NoError(t, err)
	conditions := regexp.MustCompile(`(?m)^var (Err\w+)`).FindAllStringSubmatch(string(api), -1)
	require.NotEmpty(t, conditions)
	for _, c := range conditions {
		require.Contains(t, string(source), "{robust."+c[1]+", ")
	}
}

// measured returns the points of a metric by their attributes, as one string.
func (b *bench) measured(t *testing.T, name string) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, b.meters.Collect(t.Context(), &all))
	points := make(map[string]int64)
	for _, scope := range all.ScopeMetrics {
		require.Equal(t, robustotel.ScopeName, scope.Scope.Name)
		require.Contains(t, scope.Scope.SchemaURL, "1.43.0")
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				require.Equal(t, "{message}", m.Unit)
				for _, p := range data.DataPoints {
					points[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
				}
			case metricdata.Histogram[float64]:
				require.Equal(t, "s", m.Unit)
				for _, p := range data.DataPoints {
					points[p.Attributes.Encoded(attribute.DefaultEncoder())] = int64(p.Count)
					require.Positive(t, p.Sum)
					require.Len(t, p.Bounds, 14)
				}
			default:
				t.Fatalf("%s is a %T", name, data)
			}
		}
	}
	return points
}

func TestMetrics(t *testing.T) {
	b := newBench(t, robustotel.WithAttributes(attribute.String("messaging.client.id", "test")))
	p := b.sync(t)
	ms := make([]*robust.Message, 10)
	for n := range ms {
		ms[n] = robust.NewMessage("bills", nil)
	}
	require.NoError(t, p.SendMessages(t.Context(), ms))
	_, err := p.Send(t.Context(), robust.NewMessage("orders", nil))
	require.NoError(t, err)
	_, err = p.Send(t.Context(), robust.NewMessage("no-such-topic", nil))
	require.Error(t, err)
	handle := b.Handler(func(_ context.Context, m *robust.Message) error {
		if m.Offset < 0 {
			return robust.ErrStorage
		}
		return nil
	}, robustotel.Group("billing"))
	b.consume(t, "bills", 10, handle)
	require.Error(t, handle(t.Context(), robust.NewMessage("bills", nil)))

	const common = "messaging.client.id=test,"
	sent := common + "messaging.destination.name=bills,messaging.operation.name=send,messaging.operation.type=send,messaging.system=robust"
	require.Equal(t, map[string]int64{
		sent: 10,
		common + "messaging.destination.name=orders,messaging.operation.name=send,messaging.operation.type=send,messaging.system=robust":                                        1,
		"error.type=TOPIC_NOT_FOUND," + common + "messaging.destination.name=no-such-topic,messaging.operation.name=send,messaging.operation.type=send,messaging.system=robust": 1,
	}, b.measured(t, "messaging.client.sent.messages"))
	require.Equal(t, map[string]int64{
		common + "messaging.destination.name=bills,messaging.operation.name=receive,messaging.operation.type=receive,messaging.system=robust": 10,
	}, b.measured(t, "messaging.client.consumed.messages"))
	processed := common + "messaging.consumer.group.name=billing,messaging.destination.name=bills,messaging.operation.name=process,messaging.operation.type=process,messaging.system=robust"
	require.Equal(t, map[string]int64{
		processed:                         10,
		"error.type=STORAGE," + processed: 1,
	}, b.measured(t, "messaging.process.duration"))
	operations := b.measured(t, "messaging.client.operation.duration")
	require.Positive(t, operations[sent])
	host, port, _ := strings.Cut(b.addr, ":")
	server := ",messaging.system=robust,server.address=" + host + ",server.port=" + port
	require.Positive(t, operations[common+"messaging.operation.name=receive,messaging.operation.type=receive"+server], operations)
	require.Positive(t, operations[common+"messaging.operation.name=commit,messaging.operation.type=settle"+server], operations)
	require.Equal(t, "test", attributes(b.one(t, "send bills").Attributes)["messaging.client.id"])
}
