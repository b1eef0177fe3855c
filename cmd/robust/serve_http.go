package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustprom"
)

// webServer tells whoever watches over the process how it is.
type webServer struct {
	addr   string // "" when there is none
	ready  atomic.Bool
	failed chan error
	server *http.Server
	client *robust.Client
}

func (c *serveCmd) serveHTTP(ctx context.Context, broker *robust.Broker, logger *slog.Logger) (*webServer, error) {
	w := &webServer{failed: make(chan error, 1)}
	if c.HTTP == "" {
		return w, nil
	}
	var err error
	if w.client, err = broker.Client(robust.WithClientID("readyz"), robust.WithLogger(slog.New(slog.DiscardHandler))); err != nil {
		return nil, err
	}
	var listen net.ListenConfig
	l, err := listen.Listen(ctx, "tcp", c.HTTP)
	if err != nil {
		w.client.Close()
		return nil, fmt.Errorf("http: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", w.readyz)
	mux.Handle("GET /metrics", metricsHandler(broker, logger))
	if c.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	w.addr = l.Addr().String()
	w.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn)}
	go func() {
		if err := w.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.failed <- err
		}
	}()
	return w, nil
}

// metricsHandler tells Prometheus of the broker, of its process and of Go's runtime.
func metricsHandler(broker *robust.Broker, logger *slog.Logger) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		robustprom.NewBrokerCollector(broker),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	// Not as OpenMetrics, where go_memstats_alloc_bytes and go_memstats_alloc_bytes_total are one
	// name, which it forbids.
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		Registry: registry,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	})
}

// readyz asks the broker something, as a client would.
func (w *webServer) readyz(rw http.ResponseWriter, r *http.Request) {
	if !w.ready.Load() {
		answer(rw, http.StatusServiceUnavailable, "starting or shutting down")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := w.client.Ping(ctx); err != nil {
		answer(rw, http.StatusServiceUnavailable, err.Error())
		return
	}
	answer(rw, http.StatusOK, "ok")
}

func answer(rw http.ResponseWriter, status int, text string) {
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.WriteHeader(status)
	fmt.Fprintln(rw, text)
}

func (w *webServer) close() {
	if w.server == nil {
		return
	}
	_ = w.server.Close()
	w.client.Close()
}
