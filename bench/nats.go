package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
)

const (
	natsStream = "BENCH"
	// natsPending is how many messages of PublishAsync are in flight at most, which is
	// the default.
	natsPending = 4000
)

// natsContestant is NATS JetStream.
type natsContestant struct {
	// fast has it send by fast ingest instead of PublishAsync.
	fast bool
	// async has the stream acknowledge before it writes.
	async bool
}

func (c natsContestant) about() about {
	a := about{
		name:    "nats",
		title:   "NATS JetStream, PublishAsync, ordered consumer",
		version: "nats-server " + natsserver.VERSION + ", nats.go " + nats.Version,
		sync:    "written to the file before the acknowledgement, fsync every 2 minutes",
		kinds:   []kind{kindProduce, kindConsume, kindSync, kindLatency},
	}
	if c.fast {
		a.name, a.title = "nats-fast", "NATS JetStream, fast ingest"
		a.version += ", jetstreamext " + moduleVersion("github.com/synadia-io/orbit.go/jetstreamext")
		a.kinds = []kind{kindProduce}
	}
	if c.async {
		a.name, a.title = "nats-fast-async", "NATS JetStream, fast ingest, asynchronous persistence"
		a.sync = "written to the file some time after the acknowledgement, fsync every 2 minutes"
	}
	return a
}

func (natsContestant) serve(_ context.Context, t target) (server, error) {
	s, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: natsserver.RANDOM_PORT,
		JetStream: true, StoreDir: t.Dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return nil, errors.New("the server does not get ready")
	}
	return &natsServer{server: s}, nil
}

type natsServer struct {
	ownUsage
	server *natsserver.Server
}

func (s *natsServer) addr() string { return s.server.ClientURL() }

func (s *natsServer) close() error {
	s.server.Shutdown()
	s.server.WaitForShutdown()
	return nil
}

func (c natsContestant) connect(ctx context.Context, t target) (session, error) {
	nc, err := nats.Connect(t.Addr)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(natsPending))
	if err == nil {
		config := jetstream.StreamConfig{
			Name: natsStream, Subjects: []string{topicName}, Storage: jetstream.FileStorage, AllowBatchPublish: c.fast,
		}
		if c.async {
			config.PersistMode = jetstream.AsyncPersistMode
		}
		_, err = js.CreateStream(ctx, config)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	s := &natsSession{nc: nc, js: js}
	if c.fast {
		return &natsFastSession{s}, nil
	}
	return s, nil
}

type natsSession struct {
	nc *nats.Conn
	js jetstream.JetStream
}

func (s *natsSession) produce(ctx context.Context, l *load) error {
	type published struct {
		at     int64
		future jetstream.PubAckFuture
	}
	// The window is the client's; what is in the channel besides is acknowledged already.
	pending := make(chan published, natsPending)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		for p := range pending {
			select {
			case <-p.future.Ok():
				l.done(p.at, nil)
			case err := <-p.future.Err():
				l.done(p.at, err)
			case <-ctx.Done():
				l.done(p.at, ctx.Err())
			}
		}
	}()
	ln := l.lane()
	defer ln.close()
	var err error
	for it, ok := ln.next(ctx); ok && err == nil; it, ok = ln.next(ctx) {
		var f jetstream.PubAckFuture
		if f, err = s.js.PublishAsync(topicName, it.payload, jetstream.WithStallWait(time.Minute)); err == nil {
			pending <- published{it.at, f}
		}
	}
	close(pending)
	<-settled
	return err
}

func (s *natsSession) send(ctx context.Context, payload []byte) error {
	_, err := s.js.Publish(ctx, topicName, payload)
	return err
}

func (s *natsSession) stored(ctx context.Context) (int64, error) {
	stream, err := s.js.Stream(ctx, natsStream)
	if err != nil {
		return 0, err
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return 0, err
	}
	return int64(info.State.Msgs), nil
}

// consume uses the ordered push consumer, which is the fastest reader that there is.
func (s *natsSession) consume(ctx context.Context, into *sink) error {
	nc, err := nats.Connect(s.nc.ConnectedUrl())
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		return err
	}
	ln := into.lane()
	done := make(chan struct{})
	more := true
	sub, err := js.Subscribe(topicName, func(m *nats.Msg) {
		if !more {
			return
		}
		if more = ln.take(m.Data); !more {
			close(done)
		}
	}, nats.BindStream(natsStream), nats.OrderedConsumer(), nats.DeliverAll())
	if err != nil {
		return err
	}
	select {
	case <-done:
		ln.close()
		return sub.Unsubscribe()
	case <-ctx.Done():
		return fmt.Errorf("after %d messages: %w", into.got.Load(), ctx.Err())
	}
}

func (s *natsSession) close() error {
	s.nc.Close()
	return nil
}

// natsFastSession sends by fast ingest.
type natsFastSession struct {
	*natsSession
}

func (s *natsFastSession) produce(ctx context.Context, l *load) error {
	failed := make(chan error, 1)
	p, err := jetstreamext.NewFastPublisher(s.js, jetstreamext.WithFastPublisherErrorHandler(func(err error) {
		select {
		case failed <- err:
		default: // The first is enough.
		}
	}))
	if err != nil {
		return err
	}
	ln := l.lane()
	defer ln.close()
	// Messages are acknowledged in their order, up to a number in the batch.
	var times []int64
	var acked uint64
	settle := func(upTo uint64) {
		for ; acked < upTo && len(times) > 0; acked++ {
			l.done(times[0], nil)
			times = times[1:]
		}
	}
	for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
		ack, err := p.Add(topicName, it.payload)
		if err != nil {
			return err
		}
		times = append(times, it.at)
		settle(ack.AckSequence)
	}
	ack, err := p.Close(ctx)
	if err != nil {
		return err
	}
	settle(ack.BatchSize)
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
