package robustotel

import (
	"runtime/debug"
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// ScopeName is the name of the instrumentation scope of spans and measurements.
const ScopeName = "github.com/aminofox/robust-go-sdk/robustotel"

// Instrumentation makes spans and measurements. It is safe for concurrent use; one serves a
// whole program.
type Instrumentation struct {
	settings

	tracer      trace.Tracer
	instruments instruments
	starts      known[startKey, beginning]
	sets        known[measuredKey, measured]
}

type settings struct {
	tracers    trace.TracerProvider
	meters     metric.MeterProvider
	propagator propagation.TextMapPropagator
	common     []attribute.KeyValue
	linksOnly  bool
	noCreate   bool
}

// Option is an option of [New].
type Option interface{ apply(s *settings) }

type option func(*settings)

func (f option) apply(s *settings) { f(s) }

// WithTracerProvider sets who makes spans (default: the global provider).
func WithTracerProvider(p trace.TracerProvider) Option {
	return option(func(s *settings) { s.tracers = p })
}

// WithMeterProvider sets who takes measurements (default: the global provider).
func WithMeterProvider(p metric.MeterProvider) Option {
	return option(func(s *settings) { s.meters = p })
}

// WithPropagator sets how the context of a trace is written into headers and read from them
// (default: the global propagator, which does neither until the application sets one, such
// as [propagation.TraceContext]).
func WithPropagator(p propagation.TextMapPropagator) Option {
	return option(func(s *settings) { s.propagator = p })
}

// WithAttributes adds attributes to every span and measurement, such as messaging.client.id
// (default: none).
func WithAttributes(attrs ...attribute.KeyValue) Option {
	return option(func(s *settings) { s.common = append(s.common, attrs...) })
}

// WithLinksOnly keeps the span that processes a message in the trace that is under way there,
// or in one of its own, with a link to the context in which the message was created (default:
// that is its parent if nothing is being traced there). It is for messages that many consumers
// read, or that one reads long after they were sent.
func WithLinksOnly() Option {
	return option(func(s *settings) { s.linksOnly = true })
}

// WithoutCreateSpans makes no spans "create" (default: one for each message of
// SyncProducer.SendMessages, AsyncProducer.Send and Create). The messages of SendMessages then
// all carry the context of its span "send", and others that of whoever sends them.
func WithoutCreateSpans() Option {
	return option(func(s *settings) { s.noCreate = true })
}

// New returns an instrumentation. A nil option, or an option that was given nil, changes nothing.
func New(opts ...Option) *Instrumentation {
	i := new(Instrumentation)
	for _, o := range opts {
		if o != nil {
			o.apply(&i.settings)
		}
	}
	if i.tracers == nil {
		i.tracers = otel.GetTracerProvider()
	}
	if i.meters == nil {
		i.meters = otel.GetMeterProvider()
	}
	if i.propagator == nil {
		i.propagator = otel.GetTextMapPropagator()
	}
	i.tracer = i.tracers.Tracer(ScopeName,
		trace.WithInstrumentationVersion(version()), trace.WithSchemaURL(semconv.SchemaURL))
	i.instruments = newInstruments(i.meters.Meter(ScopeName,
		metric.WithInstrumentationVersion(version()), metric.WithSchemaURL(semconv.SchemaURL)))
	return i
}

// version is this module's as the program was built with it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == ScopeName {
			return m.Version
		}
	}
	return ""
}

// operation is one of the conventions' operations.
type operation uint8

const (
	opCreate operation = iota
	opSend
	// opForward is a send whose context is not that of a message.
	opForward
	opReceive
	opProcess
	opCommit
)

func (o operation) name() string {
	return [...]string{"create", "send", "send", "receive", "process", "commit"}[o]
}

func (o operation) typ() attribute.KeyValue {
	switch o {
	case opCreate:
		return semconv.MessagingOperationTypeCreate
	case opReceive:
		return semconv.MessagingOperationTypeReceive
	case opProcess:
		return semconv.MessagingOperationTypeProcess
	case opCommit:
		return semconv.MessagingOperationTypeSettle
	default:
		return semconv.MessagingOperationTypeSend
	}
}

func (o operation) kind() trace.SpanKind {
	switch o {
	case opCreate, opSend:
		return trace.SpanKindProducer
	case opProcess:
		return trace.SpanKindConsumer
	default:
		return trace.SpanKindClient
	}
}

func (o operation) spanName(topic string) string {
	if topic == "" {
		return o.name()
	}
	return o.name() + " " + topic
}

// attributes returns those that spans and measurements of an operation have. The topic is ""
// if there are several.
func (i *Instrumentation) attributes(o operation, topic string) []attribute.KeyValue {
	attrs := append(slices.Clone(i.common),
		semconv.MessagingSystemKey.String("robust"), semconv.MessagingOperationName(o.name()), o.typ())
	if topic != "" {
		attrs = append(attrs, semconv.MessagingDestinationName(topic))
	}
	return attrs
}
