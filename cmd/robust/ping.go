package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

type pingCmd struct{}

// Run tells whether a broker answers, which is what health checks want to know.
func (c *pingCmd) Run(ctx context.Context, a *app) error {
	client, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	// connect has opened the connection, so this is an answer's time.
	began := time.Now()
	if err := ask(ctx, a, client); err != nil {
		return err
	}
	took := time.Since(began)
	return a.show(map[string]any{"brokers": a.brokers, "milliseconds": float64(took) / float64(time.Millisecond)}, func(w io.Writer) {
		fmt.Fprintf(w, "%s answers in %s\n", strings.Join(a.brokers, ","), took.Round(time.Microsecond))
	})
}

func ask(ctx context.Context, a *app, client *robust.Client) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return client.Ping(ctx)
}
