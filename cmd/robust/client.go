package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/aminofox/robust-go-sdk"
)

// connect returns a client that has reached a broker.
func (a *app) connect(ctx context.Context, opts ...robust.Option) (*robust.Client, error) {
	logger := slog.DiscardHandler
	if a.verbose {
		logger = newLogHandler(a.stderr, "auto", slog.LevelDebug)
	}
	opts = append([]robust.Option{
		robust.WithBrokers(a.brokers...),
		robust.WithClientID("robust-cli"),
		robust.WithLogger(slog.New(logger)),
		robust.WithConnectionTimeout(a.timeout),
	}, opts...)
	client, err := robust.New(opts...)
	if err != nil {
		return nil, err
	}
	look, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if err := client.Ping(look); err != nil {
		client.Close()
		if ctx.Err() == nil && (errors.Is(err, robust.ErrNoBroker) || errors.Is(err, context.DeadlineExceeded)) {
			return nil, &exitError{code: exitNoBroker, err: err, hint: noBrokerHint(a)}
		}
		return nil, err
	}
	return client, nil
}

// withAdmin calls fn with an admin handle.
func (a *app) withAdmin(ctx context.Context, fn func(ctx context.Context, admin *robust.AdminClient) error) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return fn(ctx, client.Admin())
}

// connWatch tells of connections that are lost or cannot be opened while a command is at work.
// Hooks are called by whoever does the work, concurrently.
type connWatch struct {
	app atomic.Pointer[app]
}

func (w *connWatch) option() robust.Option {
	on := func(err error) {
		if a := w.app.Load(); a != nil && err != nil {
			a.notice(err)
		}
	}
	return robust.WithHooks(robust.Hooks{
		Connected:    func(e robust.ConnectionEvent) { on(e.Err) },
		Disconnected: func(e robust.ConnectionEvent) { on(cmp.Or(e.Err, hungUp(e.Addr))) },
	})
}

func hungUp(addr string) error { return fmt.Errorf("broker %s has closed the connection", addr) }

func (w *connWatch) start(a *app) { w.app.Store(a) }

func (w *connWatch) stop() { w.app.Store(nil) }
