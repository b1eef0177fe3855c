package robustotel

import (
	"context"
	"net"
	"strconv"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"

	robust "github.com/aminofox/robust-go-sdk"
)

type instruments struct {
	sent      metric.Int64Counter
	consumed  metric.Int64Counter
	operation metric.Float64Histogram
	process   metric.Float64Histogram
}

func newInstruments(m metric.Meter) instruments {
	// In seconds, as the conventions ask for.
	bounds := metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
	sent, err1 := messagingconv.NewClientSentMessages(m)
	consumed, err2 := messagingconv.NewClientConsumedMessages(m)
	operation, err3 := messagingconv.NewClientOperationDuration(m, bounds)
	process, err4 := messagingconv.NewProcessDuration(m, bounds)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			otel.Handle(err)
		}
	}
	return instruments{sent: sent.Inst(), consumed: consumed.Inst(), operation: operation.Inst(), process: process.Inst()}
}

// measuredKey names a set of attributes of measurements.
type measuredKey struct {
	operation              operation
	topic, server, failure string
}

// measured is the set of attributes of a measurement.
type measured struct{ metric.MeasurementOption }

// measure returns what goes with a measurement.
func (i *Instrumentation) measure(o operation, topic, server string, err error) measured {
	key := measuredKey{operation: o, topic: topic, server: server}
	var failed attribute.KeyValue
	if err != nil {
		failed = failure(err)
		key.failure = failed.Value.AsString()
	}
	return i.sets.get(key, func() measured {
		attrs := i.attributes(o, topic)
		if server != "" {
			attrs = append(attrs, serverAttributes(server)...)
		}
		if err != nil {
			attrs = append(attrs, failed)
		}
		return measured{metric.WithAttributeSet(attribute.NewSet(attrs...))}
	})
}

func serverAttributes(addr string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return []attribute.KeyValue{semconv.ServerAddress(addr)}
	}
	attrs := []attribute.KeyValue{semconv.ServerAddress(host)}
	if n, err := strconv.Atoi(port); err == nil {
		attrs = append(attrs, semconv.ServerPort(n))
	}
	return attrs
}

// Hooks returns what has a client measured; give it to [robust.New] by [robust.WithHooks].
// Other hooks may be given beside it.
func (i *Instrumentation) Hooks() robust.Hooks {
	// Batches and requests belong to no one context.
	ctx := context.Background()
	return robust.Hooks{
		ProduceDone: func(e robust.ProduceEvent) {
			with := i.measure(opSend, e.Topic, "", e.Err)
			i.instruments.sent.Add(ctx, int64(e.Messages), with)
			i.instruments.operation.Record(ctx, e.Latency.Seconds(), with)
		},
		Consumed: func(e robust.ConsumeEvent) {
			i.instruments.consumed.Add(ctx, int64(e.Messages), i.measure(opReceive, e.Topic, "", nil))
		},
		RequestDone: func(e robust.RequestEvent) {
			var o operation
			switch e.Request {
			case "Fetch", "FetchBatch":
				o = opReceive
			case "CommitOffset":
				o = opCommit
			default:
				return
			}
			i.instruments.operation.Record(ctx, e.Latency.Seconds(), i.measure(o, "", e.Addr, e.Err))
		},
	}
}

// processed measures a call of a handler.
func (i *Instrumentation) processed(ctx context.Context, topic string, attrs []attribute.KeyValue, took time.Duration, err error) {
	if !i.instruments.process.Enabled(ctx) {
		return
	}
	with := i.measure(opProcess, topic, "", err)
	if len(attrs) == 0 {
		i.instruments.process.Record(ctx, took.Seconds(), with)
		return
	}
	i.instruments.process.Record(ctx, took.Seconds(), with, metric.WithAttributes(attrs...))
}
