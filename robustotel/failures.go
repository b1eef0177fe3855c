package robustotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	robust "github.com/aminofox/robust-go-sdk"
)

// conditions are what errors are counted under, the first that fits.
var conditions = []struct { //nolint:gochecknoglobals // a table, never written
	err  error
	name string
}{
	{robust.ErrTopicNotFound, "TOPIC_NOT_FOUND"},
	{robust.ErrPartitionNotFound, "PARTITION_NOT_FOUND"},
	{robust.ErrTopicExists, "TOPIC_EXISTS"},
	{robust.ErrOffsetOutOfRange, "OFFSET_OUT_OF_RANGE"},
	{robust.ErrMessageTooLarge, "MESSAGE_TOO_LARGE"},
	{robust.ErrInvalidConfig, "INVALID_CONFIG"},
	{robust.ErrUnsupported, "UNSUPPORTED"},
	{robust.ErrNotLeader, "NOT_LEADER"},
	{robust.ErrOverloaded, "OVERLOADED"},
	{robust.ErrGroupNotFound, "GROUP_NOT_FOUND"},
	{robust.ErrGroupNotEmpty, "GROUP_NOT_EMPTY"},
	{robust.ErrUnknownMember, "UNKNOWN_MEMBER"},
	{robust.ErrRebalanced, "REBALANCED"},
	{robust.ErrFenced, "FENCED"},
	{robust.ErrOutOfOrderSequence, "OUT_OF_ORDER_SEQUENCE"},
	{robust.ErrStorage, "STORAGE"},
	{robust.ErrCorrupt, "CORRUPT"},
	{robust.ErrMalformed, "MALFORMED"},
	{robust.ErrUnavailable, "UNAVAILABLE"},
	{robust.ErrInvalidRequest, "INVALID_REQUEST"},
	{robust.ErrDataDirInUse, "DATA_DIR_IN_USE"},
	{robust.ErrMetricsFileInUse, "METRICS_FILE_IN_USE"},
	{robust.ErrClosed, "CLOSED"},
	{robust.ErrNoBroker, "NO_BROKER"},
	{context.DeadlineExceeded, "TIMEOUT"},
	{context.Canceled, "CANCELED"},
	{errUnwound, "PANIC"},
}

// errUnwound is the end of a call that did not return.
var errUnwound = errors.New("the handler did not return: it panicked, or ended its goroutine")

// failure returns error.type of an error.
func failure(err error) attribute.KeyValue {
	for _, c := range conditions {
		if errors.Is(err, c.err) {
			return semconv.ErrorTypeKey.String(c.name)
		}
	}
	if broken := (*robust.ConnError)(nil); errors.As(err, &broken) {
		return semconv.ErrorTypeKey.String("CONNECTION")
	}
	return semconv.ErrorType(err)
}
