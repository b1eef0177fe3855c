package robust

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Conditions to branch on with errors.Is. What a broker answers is wrapped in a
// [BrokerError], a failed connection in a [ConnError]; both unwrap to these.
var (
	// ErrClosed: the handle, client or broker was closed.
	ErrClosed = errors.New("robust: closed")
	// ErrInvalidConfig: an option or a topic config has a value that cannot be used.
	ErrInvalidConfig = errors.New("robust: invalid configuration")
	// ErrInvalidRequest: the broker understood the request and it makes no sense:
	// a topic name with a space, a partition count of 0, an unknown request type.
	ErrInvalidRequest = errors.New("robust: invalid request")
	// ErrNoBroker: none of the client's brokers can be reached.
	ErrNoBroker = errors.New("robust: no broker can be reached")
	// ErrTopicNotFound: no topic has this name.
	ErrTopicNotFound = errors.New("robust: topic not found")
	// ErrTopicExists: a topic of this name is there already.
	ErrTopicExists = errors.New("robust: topic already exists")
	// ErrPartitionNotFound: the topic has no such partition.
	ErrPartitionNotFound = errors.New("robust: partition not found")
	// ErrOffsetOutOfRange: the offset is below the oldest retained message or
	// above the high-water mark.
	ErrOffsetOutOfRange = errors.New("robust: offset out of range")
	// ErrMessageTooLarge: the message is larger than the topic, the broker or a
	// frame allows.
	ErrMessageTooLarge = errors.New("robust: message too large")
	// ErrMalformed: bytes that are not a frame, a payload or a record batch.
	ErrMalformed = errors.New("robust: malformed data")
	// ErrUnsupported: the broker does not know this request.
	ErrUnsupported = errors.New("robust: not supported by the broker")
	// ErrNotLeader: the broker does not serve this partition; metadata names the
	// one that does.
	ErrNotLeader = errors.New("robust: not the leader of the partition")
	// ErrUnavailable: the broker is shutting down.
	ErrUnavailable = errors.New("robust: broker is shutting down")
	// ErrOverloaded: the broker is at one of its limits; later may be better.
	ErrOverloaded = errors.New("robust: broker overloaded")
	// ErrGroupNotFound: no consumer group has this ID.
	ErrGroupNotFound = errors.New("robust: consumer group not found")
	// ErrGroupNotEmpty: the operation needs a group without members.
	ErrGroupNotEmpty = errors.New("robust: consumer group has members")
	// ErrUnknownMember: the group has no member of this ID: it was silent for its
	// session timeout, or the broker has lost its memory.
	ErrUnknownMember = errors.New("robust: unknown member of the consumer group")
	// ErrRebalanced: the group's generation moved on.
	ErrRebalanced = errors.New("robust: consumer group rebalanced")
	// ErrFenced: another member or producer has taken over.
	ErrFenced = errors.New("robust: fenced by a newer owner")
	// ErrStorage: the broker's storage failed: no space, an I/O error, a directory
	// that cannot be written to. Nothing of the request was stored, unless the error
	// says so; later may be better.
	ErrStorage = errors.New("robust: storage failed")
	// ErrCorrupt: stored bytes are damaged. See [CorruptError].
	ErrCorrupt = errors.New("robust: stored data is damaged")
	// ErrDataDirInUse: another broker works in the directory.
	ErrDataDirInUse = errors.New("robust: data directory is in use")
	// ErrMetricsFileInUse: another client or broker counts in the file.
	ErrMetricsFileInUse = errors.New("robust: metrics file is in use")

	// ErrOutOfOrderSequence: a batch of an idempotent producer is neither the next of its
	// batches nor one of the last that were stored. The producer sees to it; an application
	// does not meet it.
	ErrOutOfOrderSequence = errors.New("robust: sequence is out of order")
)

// errorCode is the stable word for a condition on the wire (error_code).
type errorCode string

const (
	codeInternal errorCode = "INTERNAL"
	// codeUnavailable is what a broker's own ErrClosed travels as; for a client that is
	// ErrUnavailable, since its own ErrClosed means something else.
	codeUnavailable errorCode = "UNAVAILABLE"
)

// errorCodes pairs each condition that a broker can answer with its code and
// with the phrases by which brokers without codes are understood; a * in them
// stands for anything. The order
// matters for the phrases: the first that matches wins.
var errorCodes = []struct { //nolint:gochecknoglobals // a table, never written
	err     error
	code    errorCode
	phrases []string
}{
	{ErrTopicNotFound, "TOPIC_NOT_FOUND", []string{"topic not found", "unknown topic"}},
	{ErrPartitionNotFound, "PARTITION_NOT_FOUND", []string{"partition*not found", "invalid partition", "unknown partition"}},
	{ErrTopicExists, "TOPIC_EXISTS", []string{"already exists"}},
	{ErrOffsetOutOfRange, "OFFSET_OUT_OF_RANGE", []string{"out of range", "invalid offset"}},
	{ErrMessageTooLarge, "MESSAGE_TOO_LARGE", []string{"too large"}},
	{ErrInvalidConfig, "INVALID_CONFIG", nil},
	{ErrUnsupported, "UNSUPPORTED", []string{"unknown request type", "not supported", "unsupported"}},
	{ErrNotLeader, "NOT_LEADER", []string{"not leader", "not the leader"}},
	{ErrOverloaded, "OVERLOADED", nil},
	{ErrGroupNotFound, "GROUP_NOT_FOUND", []string{"group not found", "unknown group"}},
	{ErrGroupNotEmpty, "GROUP_NOT_EMPTY", nil},
	{ErrUnknownMember, "UNKNOWN_MEMBER", []string{"unknown member", "member*not found"}},
	{ErrRebalanced, "REBALANCED", []string{"rebalanc", "generation"}},
	{ErrFenced, "FENCED", []string{"fenced"}},
	{ErrOutOfOrderSequence, "OUT_OF_ORDER_SEQUENCE", nil},
	{ErrStorage, "STORAGE", nil},
	{ErrCorrupt, "CORRUPT", nil},
	{ErrMalformed, "MALFORMED", []string{"malformed"}},
	{ErrUnavailable, codeUnavailable, []string{"shutting down"}},
	{ErrInvalidRequest, "INVALID_REQUEST", nil},
}

// codeOf returns the code under which err travels.
func codeOf(err error) errorCode {
	for i := range errorCodes {
		if errors.Is(err, errorCodes[i].err) {
			return errorCodes[i].code
		}
	}
	if errors.Is(err, ErrClosed) {
		return codeUnavailable
	}
	return codeInternal
}

// conditionOf returns the condition that a broker named by its code or, without
// one, by its text; nil if neither is known.
func conditionOf(code errorCode, text string) error {
	if code != "" {
		for i := range errorCodes {
			if errorCodes[i].code == code {
				return errorCodes[i].err
			}
		}
		return nil
	}
	text = strings.ToLower(text)
	for i := range errorCodes {
		for _, phrase := range errorCodes[i].phrases {
			before, after, _ := strings.Cut(phrase, "*")
			if _, rest, ok := strings.Cut(text, before); ok && strings.Contains(rest, after) {
				return errorCodes[i].err
			}
		}
	}
	return nil
}

// BrokerError is a broker's refusal. It unwraps to the condition that the broker
// named, so that errors.Is(err, ErrTopicNotFound) works on it.
type BrokerError struct {
	Addr    string // the broker that answered
	Request string // the request's name, such as "Produce"
	Message string // the broker's own words

	condition error // nil when the broker named none that is known
	again     bool  // the broker said that the same request may succeed later
}

func (e *BrokerError) Error() string {
	return fmt.Sprintf("robust: %s: broker %s: %s", e.Request, e.Addr, e.Message)
}

// Unwrap returns the condition that the broker named, or nil.
func (e *BrokerError) Unwrap() error { return e.condition }

// ConnError is a connection that could not be opened or that broke. Whether the
// broker has carried out a request that was under way is then unknown.
type ConnError struct {
	Addr string
	Op   string // "dial", "hello", "write", "read" or "wait"
	Err  error

	unsent bool // the request never left this process
}

func (e *ConnError) Error() string {
	cause := e.Err
	// The net package says address and operation once more.
	if op := (*net.OpError)(nil); errors.As(cause, &op) && op.Err != nil {
		cause = op.Err
	}
	return fmt.Sprintf("robust: %s %s: %s", e.Op, e.Addr, trimPrefix(cause))
}

// Unwrap returns the cause.
func (e *ConnError) Unwrap() error { return e.Err }

// noBrokerError is ErrNoBroker with the last of the failures that led to it.
type noBrokerError struct{ last error }

func (e *noBrokerError) Error() string {
	return ErrNoBroker.Error() + ": " + trimPrefix(e.last)
}

func (e *noBrokerError) Unwrap() []error { return []error{ErrNoBroker, e.last} }

// ConsumerError is what went wrong while one partition was read.
type ConsumerError struct {
	Topic     string
	Partition int32
	Offset    int64 // of the next message that would have been read; -1 or OffsetOldest while it is not known
	Err       error
}

func (e *ConsumerError) Error() string {
	at := ""
	switch {
	case e.Offset >= 0:
		at = fmt.Sprintf(" at offset %d", e.Offset)
	case e.Offset == OffsetOldest:
		at = " at the oldest offset"
	}
	return fmt.Sprintf("robust: consume %s/%d%s: %s", e.Topic, e.Partition, at, trimPrefix(e.Err))
}

// Unwrap returns the cause.
func (e *ConsumerError) Unwrap() error { return e.Err }

// GroupError is what went wrong in a consumer group beside a single partition.
type GroupError struct {
	Group string
	Err   error
}

func (e *GroupError) Error() string {
	return fmt.Sprintf("robust: group %s: %s", e.Group, trimPrefix(e.Err))
}

// Unwrap returns the cause.
func (e *GroupError) Unwrap() error { return e.Err }

// CommitError is a commit that the broker has refused for some partitions, because
// they have gone to other members, or their topic was deleted. The others are committed.
type CommitError struct {
	Group  string
	Fenced []TopicPartition
}

func (e *CommitError) Error() string {
	return fmt.Sprintf("robust: commit of group %s: %v are not the member's any more", e.Group, e.Fenced)
}

// Unwrap returns [ErrFenced].
func (e *CommitError) Unwrap() error { return ErrFenced }

// PanicError is a panic of the application's code, in a [Handler] or an [AssignFunc].
type PanicError struct {
	Value any    // what it panicked with
	Stack []byte // of the goroutine, as runtime/debug.Stack gives it
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("robust: panic: %v\n%s", e.Value, e.Stack)
}

// Unwrap returns the value, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// OutOfRangeError tells that a consumer's position was not in the log, and where
// it went on instead. It is a notice, wrapped in a [ConsumerError], unless the
// consumer was told to fail ([OutOfRangeFail]).
type OutOfRangeError struct {
	From int64 // the position that is not in the log
	To   int64 // where reading went on; -1 if it did not
}

func (e *OutOfRangeError) Error() string {
	switch {
	case e.To < 0:
		return fmt.Sprintf("robust: offset %d is out of range", e.From)
	case e.To > e.From:
		return fmt.Sprintf("robust: offset %d is out of range, went on at %d: up to %d messages were not read", e.From, e.To, e.To-e.From)
	default:
		return fmt.Sprintf("robust: offset %d is out of range, went back to %d", e.From, e.To)
	}
}

// Unwrap returns [ErrOffsetOutOfRange].
func (e *OutOfRangeError) Unwrap() error { return ErrOffsetOutOfRange }

// LogChangedError tells that the partition does not hold any more what a consumer has
// read of it: the broker has lost the end of the log, as in a power failure, or the topic
// was deleted and made anew. Offsets from LostFrom on, below LostTo, stand for other
// messages now, or for none yet. It is a notice, wrapped in a [ConsumerError], unless the
// consumer was told to fail ([OutOfRangeFail]).
//
// Where the log was cut, reading goes on at the cut, whatever [WithOutOfRange] says but
// to fail. A topic made anew is read from its oldest message, or its newest with
// [OutOfRangeNewest]; by a group from its start in any case, and without its Consume
// ending.
type LogChangedError struct {
	MadeAnew         bool  // the topic is another of the same name; else its log was cut
	LostFrom, LostTo int64 // LostFrom <= offset < LostTo; LostTo is where the consumer was
	To               int64 // where reading went on; -1 if it did not, or a group says it
}

func (e *LogChangedError) Error() string {
	s := fmt.Sprintf("robust: the log has lost its end: messages from offset %d on, read up to %d, are gone", e.LostFrom, e.LostTo-1)
	if e.MadeAnew {
		s = "robust: the topic was deleted and made anew"
		if e.LostTo > 0 {
			s += fmt.Sprintf(": the messages below offset %d are gone", e.LostTo)
		}
	}
	if e.To >= 0 {
		s += fmt.Sprintf(", went on at %d", e.To)
	}
	return s
}

// Unwrap returns [ErrOffsetOutOfRange]: the position is one of a log that is not there.
func (e *LogChangedError) Unwrap() error { return ErrOffsetOutOfRange }

// CorruptError is damage in a file of a broker's storage. What is damaged is never
// served. It unwraps to [ErrCorrupt]; a client has the same words in a [BrokerError].
type CorruptError struct {
	File     string // path of the file
	Position int64  // of the first damaged byte or batch in it
	// From and To are the offsets that cannot be read, From <= offset < To. Both are
	// -1 where the damage is not in a log.
	From, To int64
	Reason   string // what is wrong
}

func (e *CorruptError) Error() string {
	s := fmt.Sprintf("%s: %s at position %d: %s", ErrCorrupt, e.File, e.Position, e.Reason)
	if e.From < e.To {
		s += fmt.Sprintf("; offsets %d to %d cannot be read", e.From, e.To-1)
	}
	return s
}

func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// ProducerError is a message that was not stored, or whose fate is unknown
// because the connection broke before the answer.
type ProducerError struct {
	Msg      *Message
	Err      error
	Metadata any // the message's
}

func (e *ProducerError) Error() string {
	return fmt.Sprintf("robust: send to %s: %s", e.Msg.Topic, trimPrefix(e.Err))
}

// Unwrap returns the cause.
func (e *ProducerError) Unwrap() error { return e.Err }

// ProducerErrors are the messages of one [SyncProducer.SendMessages] that failed,
// in the order in which they were given.
type ProducerErrors []*ProducerError

func (es ProducerErrors) Error() string {
	switch len(es) {
	case 0:
		return "robust: no message failed"
	case 1:
		return es[0].Error()
	default:
		return fmt.Sprintf("robust: %d messages were not sent, the first: %s", len(es), trimPrefix(es[0]))
	}
}

// Unwrap returns every failure, for errors.Is and errors.As.
func (es ProducerErrors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// waitError is a wait that a deadline or a cancellation ended, with what was
// waited for. It unwraps to both the end's reason and the last failure.
type waitError struct {
	what  string // "send to demo/3"
	state string // the words of Status
	end   error  // context.DeadlineExceeded, context.Canceled, or a context's cause
	last  error  // the last failure before the end, or nil
}

func (e *waitError) Error() string {
	s := "robust: " + e.what + ": " + e.end.Error()
	if e.state != "" {
		s += ": " + e.state
	}
	if e.last != nil {
		s += ": last error: " + trimPrefix(e.last)
	}
	return s
}

func (e *waitError) Unwrap() []error {
	if e.last == nil {
		return []error{e.end}
	}
	return []error{e.end, e.last}
}

// Timeout tells callers that look for net.Error's method.
func (e *waitError) Timeout() bool { return errors.Is(e.end, context.DeadlineExceeded) }

// deliveryTimeout is the end of a wait that WithDeliveryTimeout has bounded, and not a context
// of the application's: for errors.Is it is context.DeadlineExceeded all the same.
type deliveryTimeout time.Duration

func (d deliveryTimeout) Error() string {
	return "the delivery timeout of " + time.Duration(d).String() + " is over"
}

func (deliveryTimeout) Is(target error) bool { return target == context.DeadlineExceeded }

// Timeout tells callers that look for net.Error's method.
func (deliveryTimeout) Timeout() bool { return true }

// endOf says why ctx has ended: with its cause, if it was given one.
func endOf(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// trimPrefix gives err's text without the package's prefix, for use inside
// another of the package's messages.
func trimPrefix(err error) string { return strings.TrimPrefix(err.Error(), "robust: ") }

// connectionFault tells whether err is a connection that failed rather than a
// broker's answer: another broker, or the same one later, may do better.
func connectionFault(err error) bool {
	var ce *ConnError
	return errors.As(err, &ce) || errors.Is(err, ErrNoBroker)
}

// unsent tells whether the request of which err came has certainly not reached
// a broker, so that repeating it cannot do anything twice.
func unsent(err error) bool {
	var ce *ConnError
	return errors.As(err, &ce) && ce.unsent || errors.Is(err, ErrNoBroker)
}

// retriable tells whether the same request may succeed when it is sent again.
func retriable(err error) bool {
	switch {
	// The caller gave up or the handle is closed: nobody wants the answer.
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded) && !connectionFault(err), errors.Is(err, ErrInvalidConfig):
		return false
	// A frame that is too long for us will be so the next time.
	case errors.Is(err, ErrMessageTooLarge):
		return false
	// A broken connection says nothing about the request.
	case connectionFault(err):
		return true
	}
	var be *BrokerError
	if !errors.As(err, &be) {
		// Not a broker's answer: our own check of the arguments, or bytes that
		// could not be understood and will not get better.
		return false
	}
	switch {
	case be.again:
		return true
	// Metadata was stale; it is refreshed before the next try.
	case errors.Is(be, ErrNotLeader):
		return true
	case errors.Is(be, ErrOverloaded), errors.Is(be, ErrStorage):
		return true
	// A broker that shuts down will be replaced or come back.
	case errors.Is(be, ErrUnavailable):
		return true
	// Every other known condition is about the request itself.
	case be.condition != nil:
		return false
	// A refusal in words that nobody published: an internal error of the
	// broker's, which may pass.
	default:
		return true
	}
}

// outdated tells whether err shows that what is known of a topic's partitions is out
// of date.
func outdated(err error) bool {
	return errors.Is(err, ErrNotLeader) || errors.Is(err, ErrTopicNotFound) || errors.Is(err, ErrPartitionNotFound)
}

// refusalMayPass is what a broker says of its own refusals: whether the same
// request may succeed later.
func refusalMayPass(err error) bool {
	return errors.Is(err, ErrOverloaded) || errors.Is(err, ErrNotLeader) || errors.Is(err, ErrStorage) ||
		codeOf(err) == codeUnavailable || codeOf(err) == codeInternal
}
