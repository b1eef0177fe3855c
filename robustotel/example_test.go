package robustotel_test

import (
	"context"
	"fmt"
	"log"

	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustotel"
)

func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// A program sets these up once, with an exporter to where its traces are kept, and
	// mostly as the global ones, which New finds by itself.
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	tracing := robustotel.New(
		robustotel.WithTracerProvider(provider),
		robustotel.WithPropagator(propagation.TraceContext{}),
	)

	client, err := robust.New(
		robust.WithEmbeddedBroker(robust.WithTopic("orders", 1)),
		robust.WithHooks(tracing.Hooks()), // for metrics
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	plain, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	producer := tracing.SyncProducer(plain)
	if _, err := producer.Send(ctx, robust.NewMessage("orders", []byte("two books"))); err != nil {
		log.Fatal(err)
	}

	group, err := client.ConsumerGroup("billing")
	if err != nil {
		log.Fatal(err)
	}
	defer group.Close()
	bill := func(_ context.Context, m *robust.Message) error {
		fmt.Printf("bill for %s\n", m.Value)
		cancel()
		return nil
	}
	err = group.Consume(ctx, []string{"orders"}, robust.Each(tracing.Handler(bill, robustotel.Group("billing"))))
	if err != nil {
		log.Fatal(err)
	}

	ended := spans.GetSpans()
	for _, s := range ended {
		fmt.Println(s.Name)
	}
	fmt.Println("one trace:", ended[0].SpanContext.TraceID() == ended[1].SpanContext.TraceID())
	// Output:
	// bill for two books
	// send orders
	// process orders
	// one trace: true
}
