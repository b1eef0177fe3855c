package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/nsqio/go-nsq"
	"github.com/nsqio/nsq/nsqd"
)

const (
	// nsqBatch messages go into one MultiPublish, of which nsqWindow are in flight.
	nsqBatch  = 1000
	nsqWindow = 8
	// nsqInFlight is how many messages nsqd sends ahead of their acknowledgement, which
	// is all that it allows.
	nsqInFlight = 2500
)

// nsqContestant is NSQ: nsqd with everything on disk.
type nsqContestant struct{}

func (nsqContestant) about() about {
	return about{
		name:    "nsq",
		title:   "NSQ, MultiPublish",
		version: "nsqd " + moduleVersion("github.com/nsqio/nsq") + ", go-nsq " + nsq.VERSION,
		sync:    "written to the file before the acknowledgement (mem-queue-size 0), fsync every 2500 messages or 2 seconds",
		kinds:   []kind{kindProduce, kindConsume, kindSync, kindLatency},
	}
}

func (nsqContestant) serve(_ context.Context, t target) (server, error) {
	o := nsqd.NewOptions()
	o.TCPAddress, o.HTTPAddress, o.HTTPSAddress = "127.0.0.1:0", "127.0.0.1:0", ""
	o.BroadcastAddress = "127.0.0.1"
	o.DataPath = t.Dir
	o.MemQueueSize = 0
	o.Logger = silence{}
	n, err := nsqd.New(o)
	if err != nil {
		return nil, err
	}
	s := &nsqServer{daemon: n, ended: make(chan error, 1)}
	go func() { s.ended <- n.Main() }()
	return s, nil
}

// silence takes what nsqd logs.
type silence struct{}

// Output implements the interface of nsqd's loggers.
func (silence) Output(int, string) error { return nil }

type nsqServer struct {
	ownUsage
	daemon *nsqd.NSQD
	ended  chan error
}

// addr has both addresses, that of messages first.
func (s *nsqServer) addr() string {
	return s.daemon.RealTCPAddr().String() + " " + s.daemon.RealHTTPAddr().String()
}

func (s *nsqServer) close() error {
	s.daemon.Exit()
	return <-s.ended
}

func (nsqContestant) connect(_ context.Context, t target) (session, error) {
	tcp, stats, _ := strings.Cut(t.Addr, " ")
	p, err := nsq.NewProducer(tcp, nsq.NewConfig())
	if err != nil {
		return nil, err
	}
	p.SetLoggerLevel(nsq.LogLevelMax)
	return &nsqSession{producer: p, tcp: tcp, stats: stats}, nil
}

type nsqSession struct {
	producer   *nsq.Producer
	tcp, stats string // addresses
}

func (s *nsqSession) produce(ctx context.Context, l *load) error {
	ln := l.lane()
	defer ln.close()
	results := make(chan *nsq.ProducerTransaction, nsqWindow)
	flying := 0
	settle := func() {
		r := <-results
		flying--
		for _, it := range r.Args {
			at, _ := it.(int64) // They are the times that were passed below.
			l.done(at, r.Error)
		}
	}
	items := make([]item, 0, nsqBatch)
	for {
		if items = ln.take(ctx, items[:0]); len(items) == 0 {
			break
		}
		bodies := make([][]byte, len(items))
		times := make([]any, len(items))
		for i, it := range items {
			bodies[i], times[i] = it.payload, it.at
		}
		if flying == nsqWindow {
			settle()
		}
		if err := s.producer.MultiPublishAsync(topicName, bodies, results, times...); err != nil {
			return err
		}
		flying++
	}
	for flying > 0 {
		settle()
	}
	return nil
}

func (s *nsqSession) send(_ context.Context, payload []byte) error {
	return s.producer.Publish(topicName, payload)
}

func (s *nsqSession) stored(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.stats+"/stats?format=json&topic="+topicName, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // What matters of it has been read.
	var stats struct {
		Topics []struct {
			MessageCount int64 `json:"message_count"`
		} `json:"topics"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil {
		return 0, err
	}
	if len(stats.Topics) != 1 {
		return 0, fmt.Errorf("%d topics, not one", len(stats.Topics))
	}
	return stats.Topics[0].MessageCount, nil
}

func (s *nsqSession) consume(ctx context.Context, into *sink) error {
	config := nsq.NewConfig()
	config.MaxInFlight = nsqInFlight
	c, err := nsq.NewConsumer(topicName, "bench", config)
	if err != nil {
		return err
	}
	c.SetLoggerLevel(nsq.LogLevelMax)
	ln := into.lane()
	c.AddHandler(nsq.HandlerFunc(func(m *nsq.Message) error {
		ln.take(m.Body)
		return nil
	}))
	if err := c.ConnectToNSQD(s.tcp); err != nil {
		return err
	}
	select {
	case <-into.full:
	case <-ctx.Done():
		err = errors.Join(fmt.Errorf("after %d messages", into.got.Load()), ctx.Err())
	}
	c.Stop()
	<-c.StopChan
	ln.close()
	return err
}

func (s *nsqSession) close() error {
	s.producer.Stop()
	return nil
}
