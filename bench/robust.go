package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
)

// robustContestant is this repository's client and broker.
type robustContestant struct {
	// old has the client take the broker for one without extensions, which leaves the
	// documented JSON.
	old bool
	// embedded has the broker in the client's process.
	embedded bool
	// channels has results and messages come by way of channels, instead of callbacks and
	// loops.
	channels bool
	// full has the broker sync a segment when it is full, as kfake does.
	full bool
}

func (c robustContestant) about() about {
	a := about{
		name:        "robust",
		title:       "robust",
		version:     "this tree",
		sync:        "written to the file before the acknowledgement, fsync every second",
		kinds:       []kind{kindProduce, kindConsume, kindSync, kindLatency},
		partitioned: true,
		embedded:    c.embedded,
	}
	switch {
	case c.old:
		a.name, a.title = "robust-json", "robust, documented JSON alone"
	case c.embedded:
		a.name, a.title = "robust-inprocess", "robust, broker in process"
	case c.channels:
		a.name, a.title = "robust-channels", "robust, by way of channels"
		a.kinds = []kind{kindProduce, kindConsume, kindLatency}
	case c.full:
		a.name, a.title = "robust-syncnever", "robust, fsync when a segment is full"
		a.sync = "written to the file before the acknowledgement, fsync when a segment is full (SyncNever)"
		a.kinds = []kind{kindProduce}
	default:
	}
	return a
}

func (c robustContestant) brokerOptions(t target) []robust.BrokerOption {
	policy := robust.SyncInterval(time.Second)
	if c.full {
		policy = robust.SyncNever
	}
	return []robust.BrokerOption{
		robust.WithDataDir(t.Dir),
		robust.WithSync(policy),
		robust.WithRetention(0, 0),
		robust.WithTopic(topicName, int32(t.Partitions)),
	}
}

func (c robustContestant) serve(_ context.Context, t target) (server, error) {
	b, err := robust.NewBroker(c.brokerOptions(t)...)
	if err != nil {
		return nil, err
	}
	addr, err := b.Listen("127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &robustServer{broker: b, address: addr.String()}, nil
}

type robustServer struct {
	ownUsage
	broker  *robust.Broker
	address string
}

func (s *robustServer) addr() string { return s.address }
func (s *robustServer) close() error { return s.broker.Close() }

func (c robustContestant) connect(_ context.Context, t target) (session, error) {
	options := []robust.Option{robust.WithBrokers(t.Addr)}
	switch {
	case c.embedded:
		options = []robust.Option{robust.WithEmbeddedBroker(c.brokerOptions(t)...)}
	case c.old:
		options = append(options, robust.WithDialer(dialOld))
	default:
	}
	client, err := robust.New(options...)
	if err != nil {
		return nil, err
	}
	s := &robustSession{client: client, counter: client, partitions: t.Partitions}
	if c.old {
		// Counting is not what is measured, and the old way is slow.
		if s.counter, err = robust.New(robust.WithBrokers(t.Addr)); err != nil {
			return nil, errors.Join(err, client.Close())
		}
	}
	if s.one, err = client.SyncProducer(); err == nil {
		s.many, err = client.AsyncProducer()
	}
	if err != nil {
		return nil, errors.Join(err, client.Close(), s.counter.Close())
	}
	if c.channels {
		return &robustChannels{s}, nil
	}
	return s, nil
}

type robustSession struct {
	client     *robust.Client
	counter    *robust.Client // asks for offsets
	partitions int
	one        *robust.SyncProducer
	many       *robust.AsyncProducer
}

// messages makes a program's messages, many at a time.
type messages []robust.Message

func (ms *messages) next(it item) *robust.Message {
	if len(*ms) == 0 {
		*ms = make([]robust.Message, chunk)
	}
	m := &(*ms)[0]
	*ms = (*ms)[1:]
	m.Topic, m.Partition, m.Value = topicName, it.partition, it.payload
	return m
}

func (s *robustSession) produce(ctx context.Context, l *load) error {
	ln := l.lane()
	defer ln.close()
	untimed := func(_ *robust.Message, _ robust.Receipt, err error) { l.done(0, err) }
	var ms messages
	for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
		done := untimed
		if at := it.at; at != 0 {
			done = func(_ *robust.Message, _ robust.Receipt, err error) { l.done(at, err) }
		}
		if err := s.many.SendFunc(ctx, ms.next(it), done); err != nil {
			return err
		}
	}
	return s.many.Flush(ctx)
}

func (s *robustSession) send(ctx context.Context, payload []byte) error {
	_, err := s.one.Send(ctx, &robust.Message{Topic: topicName, Value: payload})
	return err
}

func (s *robustSession) stored(ctx context.Context) (int64, error) {
	ends, err := s.counter.Admin().ListOffsets(ctx, topicName, time.Now().Add(time.Hour))
	var total int64
	for _, end := range ends {
		total += end
	}
	return total, err
}

func (s *robustSession) consume(ctx context.Context, into *sink) error {
	return s.consumeAll(ctx, into, consumePartition)
}

// consumeAll has read read each partition.
func (s *robustSession) consumeAll(ctx context.Context, into *sink, read func(context.Context, *robust.PartitionConsumer, *sink) error) error {
	ctx, cancel := into.context(ctx)
	defer cancel()
	errs := make([]error, s.partitions)
	var wg sync.WaitGroup
	for p := range s.partitions {
		c, err := s.client.PartitionConsumer(topicName, int32(p), robust.WithStartOffset(robust.OffsetOldest))
		if err != nil {
			errs[p] = err
			cancel()
			break
		}
		wg.Go(func() {
			errs[p] = errors.Join(read(ctx, c, into), c.Close())
			if errs[p] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil && !into.isFull() {
		return err
	}
	return nil
}

func consumePartition(ctx context.Context, c *robust.PartitionConsumer, into *sink) error {
	ln := into.lane()
	defer ln.close()
	for m, err := range c.All(ctx) {
		if err != nil {
			return err
		}
		if !ln.take(m.Value) {
			return nil
		}
	}
	return fmt.Errorf("the messages ended at offset %d", c.Offset())
}

func (s *robustSession) close() error {
	return errors.Join(s.many.Close(), s.one.Close(), s.client.Close(), s.counter.Close())
}
