package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// kafkaContestant is franz-go with kfake, the Kafka broker in Go of the same authors,
// which keeps its partitions on disk.
type kafkaContestant struct{}

func (kafkaContestant) about() about {
	return about{
		name:        "franz-go",
		title:       "franz-go, kfake on disk",
		version:     "franz-go " + moduleVersion("github.com/twmb/franz-go") + ", kfake " + moduleVersion("github.com/twmb/franz-go/pkg/kfake"),
		sync:        "written to the file before the acknowledgement (acks=all, idempotent), fsync when a segment is full",
		kinds:       []kind{kindProduce, kindConsume, kindSync, kindLatency},
		partitioned: true,
	}
}

func (kafkaContestant) serve(_ context.Context, t target) (server, error) {
	c, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.DataDir(t.Dir),
		kfake.SeedTopics(int32(t.Partitions), topicName),
	)
	if err != nil {
		return nil, err
	}
	return &kafkaServer{cluster: c}, nil
}

type kafkaServer struct {
	ownUsage
	cluster *kfake.Cluster
}

func (s *kafkaServer) addr() string { return strings.Join(s.cluster.ListenAddrs(), ",") }

func (s *kafkaServer) close() error {
	s.cluster.Close()
	return nil
}

func (kafkaContestant) connect(_ context.Context, t target) (session, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(t.Addr),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
	)
	if err != nil {
		return nil, err
	}
	return &kafkaSession{client: client, addr: t.Addr, partitions: t.Partitions}, nil
}

type kafkaSession struct {
	client     *kgo.Client
	addr       string
	partitions int
}

func (s *kafkaSession) produce(ctx context.Context, l *load) error {
	ln := l.lane()
	defer ln.close()
	untimed := func(_ *kgo.Record, err error) { l.done(0, err) }
	var slab []kgo.Record
	for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
		if len(slab) == 0 {
			slab = make([]kgo.Record, chunk)
		}
		r := &slab[0]
		slab = slab[1:]
		r.Topic, r.Partition, r.Value = topicName, it.partition, it.payload
		done := untimed
		if at := it.at; at != 0 {
			done = func(_ *kgo.Record, err error) { l.done(at, err) }
		}
		s.client.Produce(ctx, r, done)
	}
	return s.client.Flush(ctx)
}

func (s *kafkaSession) send(ctx context.Context, payload []byte) error {
	return s.client.ProduceSync(ctx, &kgo.Record{Topic: topicName, Value: payload}).FirstErr()
}

func (s *kafkaSession) stored(ctx context.Context) (int64, error) {
	ends, err := kadm.NewClient(s.client).ListEndOffsets(ctx, topicName)
	if err != nil {
		return 0, err
	}
	var total int64
	ends.Each(func(o kadm.ListedOffset) {
		total += o.Offset
		err = errors.Join(err, o.Err)
	})
	return total, err
}

func (s *kafkaSession) consume(ctx context.Context, into *sink) error {
	from := make(map[int32]kgo.Offset, s.partitions)
	for p := range s.partitions {
		from[int32(p)] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(s.addr),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topicName: from}),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	ln := into.lane()
	defer ln.close()
	for more := true; more; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("after %d messages: %w", into.got.Load(), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			more = ln.take(r.Value) && more
		})
	}
	return nil
}

func (s *kafkaSession) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.client.Flush(ctx)
	s.client.Close()
	return err
}
