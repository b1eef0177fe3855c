// Broker runs a broker until it is told to stop.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/examples/internal/exampleutil"
)

const about = `
Broker serves clients on a TCP port until SIGINT or SIGTERM. It keeps topics, messages
and consumer groups in the directory of -data. Without it they are in memory, and gone
when it ends.
`

// shutdownTimeout bounds the wait for requests that are under way at the end.
const shutdownTimeout = 10 * time.Second

func main() {
	addr := flag.String("addr", "127.0.0.1:8686", "`address` to listen on, host:port; port 0 takes a free one")
	var options []robust.BrokerOption
	flag.Func("topic", "topic to create, `name:partitions`; may be given more than once", func(s string) error {
		option, err := parseTopic(s)
		options = append(options, option)
		return err
	})
	autoCreate := exampleutil.Int32Flag("auto-create", 0, "`number` of partitions of a topic that the first message to it creates; 0 creates none")
	data := flag.String("data", "", "`directory` to keep everything in (default: in memory)")
	exampleutil.Main(about, func(ctx context.Context) error {
		return run(ctx, *addr, append(options, robust.WithAutoCreateTopics(*autoCreate), robust.WithDataDir(*data)))
	})
}

func run(ctx context.Context, addr string, options []robust.BrokerOption) error {
	broker, err := robust.NewBroker(options...)
	if err != nil {
		return err
	}
	defer broker.Close()
	listening, err := broker.Listen(addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listening)

	<-ctx.Done()
	fmt.Println("stopping")
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return broker.Shutdown(bound)
}

// parseTopic reads name:partitions; the broker checks both.
func parseTopic(s string) (robust.BrokerOption, error) {
	name, count, ok := strings.Cut(s, ":")
	partitions, err := strconv.ParseInt(count, 10, 32)
	if !ok || err != nil {
		return nil, errors.New("want name:partitions")
	}
	return robust.WithTopic(name, int32(partitions)), nil
}
