package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

// The exit codes. README.md has the same table.
const (
	exitOK          = 0
	exitFailure     = 1   // what no other code stands for
	exitUsage       = 2   // the command line, or a value in it, makes no sense
	exitNoBroker    = 3   // no broker can be reached
	exitNotFound    = 4   // there is no such topic, partition, group or offset
	exitConflict    = 5   // the topic exists, the group has members, the directory is in use
	exitDamaged     = 6   // the data directory is damaged
	exitUndelivered = 7   // some messages were not stored
	exitInterrupted = 130 // a signal came before everything was done
	exitPipe        = 141 // whoever reads the output has gone
)

const exitCodesHelp = `Exit codes: 0 done; 1 failed; 2 wrong usage; 3 no broker; 4 not found; 5 in conflict with what is there; ` +
	`6 damaged data; 7 messages not stored; 130 interrupted; 141 the reader of the output has gone.`

// exitError ends a command with a code of its own.
type exitError struct {
	code int
	err  error  // nil: everything was said
	hint string // what to do next
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageErrorf is for values that are only seen to be wrong when the command runs.
func usageErrorf(hint, format string, args ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, args...), hint: hint}
}

// report tells a command's error, with what can be done about it, and returns the exit
// code.
func report(stderr io.Writer, a *app, err error) int {
	if err == nil {
		return exitOK
	}
	code, hint := explain(a, err)
	if readerGone(err) {
		return exitPipe
	}
	var own *exitError
	if errors.As(err, &own) && own.err == nil {
		return own.code
	}
	text := errText(err)
	if code == exitInterrupted {
		text = "interrupted" // Which signal it was, and what it has cut off, is of no use.
	}
	// The client's errors name the package, as the program's do.
	fmt.Fprintln(stderr, "robust:", text)
	if hint != "" {
		fmt.Fprintln(stderr, "  "+hint)
	}
	return code
}

// readerGone says whether err is about the output. A connection to a broker may end with
// the same number and is no file.
func readerGone(err error) bool {
	var file *fs.PathError
	return errors.As(err, &file) && errors.Is(file, syscall.EPIPE)
}

// errText is an error without the package's name in front, which is the program's, too, nor
// in front of the errors that are part of it.
func errText(err error) string {
	text := strings.ReplaceAll(strings.TrimPrefix(err.Error(), "robust: "), ": robust: ", ": ")
	if errors.Is(err, robust.ErrInvalidConfig) {
		text = flagNames.Replace(text)
	}
	return text
}

// flagNames has for the package's options the flags that set them.
var flagNames = strings.NewReplacer( //nolint:gochecknoglobals // a table, never written
	"WithBrokers(", "--brokers(",
	"WithConnectionTimeout(", "--timeout(",
	"WithRetention(", "--retention or --retention-bytes(",
	"WithConnectionLimit(", "--max-connections(",
	"WithMaxFrameBytes(", "--max-frame(",
	"WithAutoCreateTopics(", "--auto-create(",
	"WithAdvertisedAddr(", "--advertise(",
	"WithTopic(", "--topic(",
	"WithNodeID(", "--node-id(",
	"WithDataDir(", "--data(",
)

// notices tells errors that come again and again once, and again when some time has
// gone by: a broker that is away is tried every second. Any goroutine may call it.
type notices struct {
	mu sync.Mutex
	at map[string]time.Time // by text
}

// noticeAgain is how long a text is not repeated.
const noticeAgain = 30 * time.Second

func (n *notices) tell(w io.Writer, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	text, now := noticeText(err), time.Now()
	if at, told := n.at[text]; told && now.Sub(at) < noticeAgain {
		return
	}
	maps.DeleteFunc(n.at, func(_ string, at time.Time) bool { return now.Sub(at) >= noticeAgain })
	if n.at == nil {
		n.at = make(map[string]time.Time)
	}
	n.at[text] = now
	fmt.Fprintln(w, "robust:", text)
}

// waitingForOne tells a notice from the error that ends a command.
const waitingForOne = "; waiting for one"

// noticeText leaves out for what a connection was used that has failed: many partitions may
// be read by one.
func noticeText(err error) string {
	var conn *robust.ConnError
	switch {
	case !errors.As(err, &conn) && errors.Is(err, robust.ErrNoBroker):
		return errText(err) + waitingForOne
	case !errors.As(err, &conn):
		return errText(err)
	case errors.Is(err, robust.ErrNoBroker):
		return errText(robust.ErrNoBroker) + ": " + errText(conn) + waitingForOne
	}
	if conn.Op == "dial" {
		return errText(conn) + waitingForOne
	}
	return errText(conn)
}

// aboutError is about one of several things that were named.
type aboutError struct {
	noun, name string
	err        error
}

func aboutOne(noun, name string, err error) error {
	return &aboutError{noun: noun, name: name, err: err}
}

func (e *aboutError) Error() string { return fmt.Sprintf("%s %s: %s", e.noun, e.name, errText(e.err)) }

func (e *aboutError) Unwrap() error { return e.err }

// explain finds code and hint for an error.
func explain(a *app, err error) (code int, hint string) {
	var own *exitError
	if errors.As(err, &own) {
		return own.code, own.hint
	}
	var addr *net.AddrError
	if errors.As(err, &addr) && !errors.Is(err, robust.ErrNoBroker) {
		return exitUsage, "an address is HOST:PORT, such as 127.0.0.1:8686 or :8686"
	}
	for _, known := range []struct {
		err  error
		code int
		hint string
	}{
		{robust.ErrTopicNotFound, exitNotFound, "robust topic list shows what there is, robust topic create NAME makes one"},
		{robust.ErrPartitionNotFound, exitNotFound, "robust topic describe NAME shows the partitions"},
		{robust.ErrGroupNotFound, exitNotFound, "robust group list shows what there is"},
		{robust.ErrOffsetOutOfRange, exitNotFound, "robust topic describe NAME shows the offsets"},
		{robust.ErrTopicExists, exitConflict, "robust topic describe NAME shows it, --if-not-exists is content with it"},
		{robust.ErrGroupNotEmpty, exitConflict, "stop its members first; robust group describe ID shows them"},
		{robust.ErrDataDirInUse, exitConflict, "stop the broker that works there, or give another directory"},
		{robust.ErrInvalidConfig, exitUsage, ""},
		{robust.ErrInvalidRequest, exitUsage, ""},
		{robust.ErrMessageTooLarge, exitUsage, "the broker's --max-frame and the topic's max.message.bytes bound messages"},
		{robust.ErrCorrupt, exitDamaged, "stop the broker; robust log check DIR says what is damaged"},
		{robust.ErrStorage, exitFailure, "the broker's log says what its disk has; robust log check DIR reads a directory"},
		{robust.ErrUnsupported, exitFailure, "the broker knows the published requests only; robust serve has the others"},
		{robust.ErrNoBroker, exitNoBroker, noBrokerHint(a)},
		{syscall.EADDRINUSE, exitConflict, "another program listens there: give another address, or port 0 for a free one"},
		{context.Canceled, exitInterrupted, ""},
	} {
		if errors.Is(err, known.err) {
			return known.code, known.hint
		}
	}
	return exitFailure, ""
}

func noBrokerHint(a *app) string {
	return fmt.Sprintf("is one running at %s? robust serve starts one; --brokers or ROBUST_BROKERS name another",
		strings.Join(a.brokers, ", "))
}
