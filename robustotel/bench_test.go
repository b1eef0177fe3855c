package robustotel_test

import (
	"testing"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace/noop"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustotel"
)

// BenchmarkMessage measures what is added to a message at both ends, without sending it.
func BenchmarkMessage(b *testing.B) {
	for _, c := range []struct {
		name string
		opt  robustotel.Option
	}{
		{"no SDK", robustotel.WithTracerProvider(noop.NewTracerProvider())},
		{"not sampled", robustotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())))},
		{"sampled", robustotel.WithTracerProvider(sdktrace.NewTracerProvider())},
	} {
		b.Run(c.name, func(b *testing.B) {
			i := robustotel.New(c.opt, robustotel.WithPropagator(propagation.TraceContext{}))
			handle := i.Handler(nothing, robustotel.Group("billing"))
			m := robust.NewMessage("bills", []byte("two books"))
			b.ReportAllocs()
			for b.Loop() {
				if err := handle(b.Context(), i.Create(b.Context(), m)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
