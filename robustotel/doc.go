// Package robustotel instruments producers and consumers of
// [github.com/aminofox/robust-go-sdk] with OpenTelemetry: spans for sending, receiving and
// processing messages, the context of a trace carried in their headers, and metrics. Names
// and attributes are those of the messaging conventions, version 1.43. It uses the API of
// OpenTelemetry only; what becomes of spans and measurements the application decides by the
// SDK that it sets up.
//
//	tracing := robustotel.New()
//	client, err := robust.New(robust.WithHooks(tracing.Hooks())) // metrics
//	...
//	producer := tracing.SyncProducer(plain)                      // spans of sends
//	...
//	err = group.Consume(ctx, topics, robust.Each(
//		tracing.Handler(process, robustotel.Group("billing")), // spans of processing
//	))
//
// # Spans
//
// A message carries the context in which it was created, as the propagator writes it: with
// that of W3C Trace Context in the header traceparent.
//
//   - SyncProducer.Send, SyncProducer.SendMessage and AsyncProducer.SendFunc make a span
//     "send TOPIC" (kind producer) from the call to the result. The message carries its
//     context.
//   - SyncProducer.SendMessages makes a span "create TOPIC" (producer) for each message, which
//     carries its context, and one "send" (client) for all, with a link to each of them. Of the
//     links of a span the SDK keeps 128, unless it is told otherwise (OTEL_SPAN_LINK_COUNT_LIMIT).
//   - AsyncProducer.Send makes a span "create TOPIC", and so does [Instrumentation.Create] for
//     messages that are sent in any other way.
//   - [Instrumentation.Handler] makes a span "process TOPIC" (consumer) around the function that
//     handles a message, with a link to the context in which that was created. If nothing
//     else is being traced there, that is its parent, too, so that one trace holds both ends;
//     [WithLinksOnly] leaves it at links. [Instrumentation.BatchHandler] makes one span for
//     many messages, with links.
//   - [Instrumentation.Receive] makes a span "receive TOPIC" (client) for each message that a
//     loop waits for.
//
// A message that already carries the context of a trace keeps it, and the span of its send
// links to that. One that was received and is sent on is such a message; to have it begin
// anew, remove the headers that the propagator's Fields names.
//
// No call changes a message that it is given. What is sent is a copy with a copy of the
// headers, unless there is nothing to add to them. Keys and values of messages do not appear in
// spans; offsets do, as messaging.robust.offset.
//
// # Metrics
//
// They come from [Instrumentation.Hooks], by batch, whether spans are made or not:
// messaging.client.sent.messages, messaging.client.consumed.messages, and
// messaging.client.operation.duration for the operations send (a batch, from the call for its
// first message), receive (a request to a broker, which may have held it) and commit.
// messaging.process.duration comes from Handler and BatchHandler.
//
// # Errors
//
// What fails has the status Error and error.type. That is the condition that the broker names,
// such as TOPIC_NOT_FOUND, or one of CLOSED, NO_BROKER, CONNECTION, CANCELED, TIMEOUT and
// PANIC, or else the type of the error.
package robustotel
