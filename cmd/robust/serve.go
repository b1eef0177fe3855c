package main

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

type serveCmd struct {
	Addr           string        `default:"127.0.0.1:8686" env:"ROBUST_ADDR" help:"Address to listen on; port 0 takes a free one (${env})."`
	Advertise      string        `env:"ROBUST_ADVERTISE" placeholder:"HOST:PORT" help:"Address that clients are told, where it is not the one they came to (${env})."`
	Data           string        `type:"path" env:"ROBUST_DATA" placeholder:"DIR" help:"Directory for topics, messages and groups; without it they are in memory and gone with the broker (${env})."`
	Sync           syncFlag      `default:"1s" env:"ROBUST_SYNC" placeholder:"always|never|TIME" help:"When what was written is forced to the disk: always, never, or so often (${env})."`
	Retention      span          `default:"168h" placeholder:"168h" env:"ROBUST_RETENTION" help:"How long messages are kept, such as 72h or 3d; 0 for ever (${env})."`
	RetentionBytes int64         `default:"0" env:"ROBUST_RETENTION_BYTES" help:"Bytes that are kept of each partition; 0 sets no limit (${env})."`
	Topic          []topicSpec   `env:"ROBUST_TOPICS" placeholder:"NAME[:N]" help:"Topics to create if they are not there, with so many partitions (${env})."`
	AutoCreate     int32         `default:"0" env:"ROBUST_AUTO_CREATE" placeholder:"N" help:"Partitions of a topic that the first message to it creates; 0 creates none (${env})."`
	NodeID         string        `env:"ROBUST_NODE_ID" placeholder:"ID" help:"The broker's ID in metadata; a new one if it has none yet (${env})."`
	MaxConnections int           `default:"10000" env:"ROBUST_MAX_CONNECTIONS" help:"Connections at a time (${env})."`
	MaxFrame       int           `default:"16777216" env:"ROBUST_MAX_FRAME" help:"Bytes of the largest frame (${env})."`
	HTTP           string        `name:"http" env:"ROBUST_HTTP" placeholder:"HOST:PORT" help:"Address for /metrics, /healthz and /readyz (${env})."`
	Pprof          bool          `env:"ROBUST_PPROF" help:"Serve /debug/pprof/ there, too (${env})."`
	LogLevel       slog.Level    `default:"info" env:"ROBUST_LOG_LEVEL" help:"debug, info, warn or error (${env})."`
	LogFormat      string        `default:"auto" enum:"auto,text,json" env:"ROBUST_LOG_FORMAT" help:"text, json, or auto: text on a terminal (${env})."`
	Grace          time.Duration `default:"30s" env:"ROBUST_GRACE" help:"How long to wait for what is under way when a signal comes (${env})."`
}

// Validate is kong's.
func (c *serveCmd) Validate() error {
	if c.Pprof && c.HTTP == "" {
		return errors.New("--pprof needs an address to serve at: --http 127.0.0.1:6060")
	}
	if c.Grace < 0 {
		return errNegativeGrace
	}
	return nil
}

var errNegativeGrace = errors.New("--grace is a time, and not below 0")

// syncFlag is a robust.SyncPolicy on the command line.
type syncFlag struct{ policy robust.SyncPolicy }

var (
	_ encoding.TextUnmarshaler = (*syncFlag)(nil)
	_ encoding.TextUnmarshaler = (*topicSpec)(nil)
)

// UnmarshalText reads always, never or a time.
func (f *syncFlag) UnmarshalText(text []byte) error {
	switch string(text) {
	case "always":
		f.policy = robust.SyncAlways
		return nil
	case "never":
		f.policy = robust.SyncNever
		return nil
	}
	d, err := time.ParseDuration(string(text))
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is none of always, never and a time such as 1s", text)
	}
	f.policy = robust.SyncInterval(d)
	return nil
}

// topicSpec is a topic's name and partitions on the command line.
type topicSpec struct {
	name       string
	partitions int32
}

// UnmarshalText reads NAME or NAME:PARTITIONS.
func (t *topicSpec) UnmarshalText(text []byte) error {
	name, number, given := strings.Cut(string(text), ":")
	n := int64(1)
	if given {
		var err error
		if n, err = strconv.ParseInt(number, 10, 32); err != nil || n < 1 {
			return fmt.Errorf("%q: partitions are a number above 0, as in orders:3", text)
		}
	}
	t.name, t.partitions = name, int32(n)
	return nil
}

func (c *serveCmd) options(logger *slog.Logger) []robust.BrokerOption {
	opts := []robust.BrokerOption{
		robust.WithLogger(logger),
		robust.WithSync(c.Sync.policy),
		robust.WithRetention(time.Duration(c.Retention), c.RetentionBytes),
		robust.WithAutoCreateTopics(c.AutoCreate),
		robust.WithConnectionLimit(c.MaxConnections),
		robust.WithMaxFrameBytes(c.MaxFrame),
	}
	if c.Data != "" {
		opts = append(opts, robust.WithDataDir(c.Data))
	}
	if c.Advertise != "" {
		opts = append(opts, robust.WithAdvertisedAddr(c.Advertise))
	}
	if c.NodeID != "" {
		opts = append(opts, robust.WithNodeID(c.NodeID))
	}
	for _, t := range c.Topic {
		opts = append(opts, robust.WithTopic(t.name, t.partitions))
	}
	return opts
}

// Run serves until a signal comes.
func (c *serveCmd) Run(ctx context.Context, a *app) error {
	logger := slog.New(newLogHandler(a.stderr, c.LogFormat, c.LogLevel))
	began := time.Now()
	broker, err := robust.NewBroker(c.options(logger)...)
	if err != nil {
		return err
	}
	defer broker.Close()
	web, err := c.serveHTTP(ctx, broker, logger)
	if err != nil {
		return err
	}
	defer web.close()
	addr, err := broker.Listen(c.Addr)
	if err != nil {
		return err
	}
	where := c.Data
	if where == "" {
		where = "memory"
		logger.Warn("messages are kept in memory and will be gone with this process; --data DIR keeps them")
	}
	logger.Info("the broker is ready", "addr", addr.String(), "data", where, "sync", c.Sync.policy.String(),
		"took", time.Since(began).Round(time.Millisecond).String())
	web.ready.Store(true)
	if err := c.announce(a, addr, web); err != nil {
		return err
	}

	select {
	case <-ctx.Done():
	case err := <-web.failed:
		return fmt.Errorf("http: %w", err)
	}
	web.ready.Store(false)
	logger.Info("a signal came: answering what is under way", "at most", c.Grace.String())
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.Grace)
	defer cancel()
	if err := broker.Shutdown(end); err != nil {
		return fmt.Errorf("shutting down: %w", err)
	}
	logger.Info("the broker has ended")
	return nil
}

// announce prints the addresses for whoever has started the broker, above all with port 0.
func (c *serveCmd) announce(a *app, addr net.Addr, web *webServer) error {
	if a.json {
		_, err := fmt.Fprintf(a.stdout, "{\"addr\":%q,\"http\":%q}\n", addr, web.addr)
		return err
	}
	text := fmt.Sprintf("listening on %s\n", addr)
	if web.addr != "" {
		text += fmt.Sprintf("http on %s\n", web.addr)
	}
	_, err := a.stdout.WriteString(text)
	return err
}
