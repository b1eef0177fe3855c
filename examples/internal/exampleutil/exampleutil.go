// Package exampleutil is what the examples have in common: the choice of the broker,
// flags, logging, signals and exit codes.
package exampleutil

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lmittmann/tint"

	robust "github.com/aminofox/robust-go-sdk"
)

// Brokers is the value of the -brokers flag.
type Brokers struct{ addrs []string }

// brokersEnv is where the addresses come from without the flag. The robust command looks
// there, too.
const brokersEnv = "ROBUST_BROKERS"

// BrokersFlag declares -brokers.
func BrokersFlag() *Brokers {
	b := new(Brokers)
	if addrs := os.Getenv(brokersEnv); addrs != "" {
		if err := b.Set(addrs); err != nil {
			fmt.Fprintf(os.Stderr, "%s is %q: %v\n", brokersEnv, addrs, err)
			os.Exit(2)
		}
	}
	flag.Var(b, "brokers", "`addresses` of the brokers, host:port[,host:port] (default: those of "+brokersEnv+", or else a broker in this process)")
	return b
}

// String makes Brokers a [flag.Value].
func (b *Brokers) String() string { return strings.Join(b.addrs, ",") }

// Set makes Brokers a [flag.Value].
func (b *Brokers) Set(s string) error {
	b.addrs = nil
	for addr := range strings.SplitSeq(s, ",") {
		if addr = strings.TrimSpace(addr); addr == "" {
			return errors.New("want host:port[,host:port]")
		}
		b.addrs = append(b.addrs, addr)
	}
	return nil
}

// Embedded tells that there are no addresses.
func (b *Brokers) Embedded() bool { return b.addrs == nil }

// Option returns what to give to [robust.New]: the addresses or, without any, a broker in
// this process that has the given options.
func (b *Brokers) Option(embedded ...robust.BrokerOption) robust.Option {
	if b.Embedded() {
		return robust.WithEmbeddedBroker(append([]robust.BrokerOption{robust.WithNodeID("embedded")}, embedded...)...)
	}
	return robust.WithBrokers(b.addrs...)
}

// Int32Flag declares a flag for a number of partitions or of one partition.
func Int32Flag(name string, value int32, usage string) *int32 {
	v := &int32Value{value}
	flag.Var(v, name, usage)
	return &v.n
}

type int32Value struct{ n int32 }

func (v *int32Value) String() string { return strconv.Itoa(int(v.n)) }

func (v *int32Value) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return errors.New("want a whole number")
	}
	v.n = int32(n)
	return nil
}

// Main parses the flags, sets up logging, and calls run with a context that SIGINT
// and SIGTERM end; a second signal ends the process at once. It exits with 0 if run
// returns nil, with 1 if it returns an error, and with 2 if the flags are wrong.
func Main(about string, run func(ctx context.Context) error) {
	name := filepath.Base(os.Args[0])
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "%s\n\nUsage: %s [flags]\n\n", strings.TrimSpace(about), name)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q; see %s -h\n", flag.Arg(0), name)
		os.Exit(2)
	}
	// A client logs what goes wrong to slog's default logger.
	slog.SetDefault(slog.New(tint.NewTextHandler(os.Stderr, &tint.Options{
		TimeFormat: time.TimeOnly,
		NoColor:    !terminal(os.Stderr) || os.Getenv("NO_COLOR") != "",
	})))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx)
	stop()
	if err != nil {
		slog.Error(strings.TrimPrefix(err.Error(), "robust: "))
		os.Exit(1)
	}
}

func terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// CreateTopic creates a topic and returns how many partitions it has. A topic that is
// there already stays as it is, and created is false.
func CreateTopic(ctx context.Context, admin *robust.AdminClient, topic string, partitions int32, config map[string]string) (n int32, created bool, err error) {
	err = admin.CreateTopic(ctx, topic, partitions, config)
	switch {
	case err == nil:
		return partitions, true, nil
	case !errors.Is(err, robust.ErrTopicExists):
		return 0, false, err
	}
	described, err := admin.GetMetadata(ctx, []string{topic})
	if err != nil {
		return 0, false, err
	}
	return int32(len(described[0].Partitions)), false, nil
}
