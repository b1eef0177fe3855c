package main

import (
	"context"
	"sync"

	robust "github.com/aminofox/robust-go-sdk"
)

// manySender is a producer with many messages in flight, as the measurements use one.
type manySender interface {
	// SendFunc takes m and returns; done is called with the result.
	SendFunc(ctx context.Context, m *robust.Message, done func(*robust.Message, robust.Receipt, error)) error
	// Flush returns when each message that was taken has its result.
	Flush(ctx context.Context) error
	Close() error
}

// newManySender returns the client's fastest way to send many.
func newManySender(client *robust.Client) (manySender, error) {
	producer, err := client.SyncProducer()
	if err != nil {
		return nil, err
	}
	return newGatherer(producer), nil
}

const (
	// gathered is how many messages go into one SendMessages at most.
	gathered = 1000
	// gatherers is how many of them go on side by side.
	gatherers = 4
)

// gatherer sends with SendMessages what is waiting, many at a time.
type gatherer struct {
	producer *robust.SyncProducer
	queue    chan sending
	pending  sync.WaitGroup // messages without a result
	workers  sync.WaitGroup
}

type sending struct {
	m    *robust.Message
	done func(*robust.Message, robust.Receipt, error)
}

func newGatherer(producer *robust.SyncProducer) *gatherer {
	g := &gatherer{producer: producer, queue: make(chan sending, gatherers*gathered)}
	for range gatherers {
		g.workers.Go(g.work)
	}
	return g
}

// SendFunc implements manySender.
func (g *gatherer) SendFunc(ctx context.Context, m *robust.Message, done func(*robust.Message, robust.Receipt, error)) error {
	g.pending.Add(1)
	select {
	case g.queue <- sending{m, done}:
		return nil
	case <-ctx.Done():
		g.pending.Done()
		return ctx.Err()
	}
}

// Flush implements manySender.
func (g *gatherer) Flush(context.Context) error {
	g.pending.Wait()
	return nil
}

// Close implements manySender.
func (g *gatherer) Close() error {
	close(g.queue)
	g.workers.Wait()
	return g.producer.Close()
}

func (g *gatherer) work() {
	batch := make([]sending, 0, gathered)
	ms := make([]*robust.Message, 0, gathered)
	for first := range g.queue {
		batch, ms = append(batch[:0], first), append(ms[:0], first.m)
	more:
		for len(batch) < gathered {
			select {
			case next, ok := <-g.queue:
				if !ok {
					break more
				}
				batch, ms = append(batch, next), append(ms, next.m)
			default:
				break more
			}
		}
		g.send(batch, ms)
	}
}

// send sends a batch. An error names the messages that it is about.
func (g *gatherer) send(batch []sending, ms []*robust.Message) {
	err := g.producer.SendMessages(context.Background(), ms)
	failed, some := err.(robust.ProducerErrors) //nolint:errorlint // it is what SendMessages returns, never wrapped
	for _, s := range batch {
		reason := err
		if some {
			reason = nil
			for _, e := range failed {
				if e.Msg == s.m {
					reason = e.Err
				}
			}
		}
		s.done(s.m, robust.Receipt{Partition: s.m.Partition, Offset: s.m.Offset, Timestamp: s.m.Timestamp}, reason)
		g.pending.Done()
	}
}
