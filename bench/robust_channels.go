package main

import (
	"context"
	"fmt"

	robust "github.com/aminofox/robust-go-sdk"
)

// robustChannels does the same as robustSession by way of channels.
type robustChannels struct {
	*robustSession
}

// produce has the time of a message that is timed go along as its metadata.
func (s *robustChannels) produce(ctx context.Context, l *load) error {
	sent := make(chan int64, 1)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		s.settle(ctx, l, sent)
	}()
	ln := l.lane()
	defer ln.close()
	var ms messages
	input := s.many.Input()
	count := int64(0)
	for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
		m := ms.next(it)
		if it.at != 0 {
			m.Metadata = it.at
		}
		select {
		case input <- m:
			count++
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	sent <- count
	<-settled
	return nil
}

// settle takes results until there are as many as it is told that messages were sent.
func (s *robustChannels) settle(ctx context.Context, l *load, sent <-chan int64) {
	for count, want := int64(0), int64(-1); count != want; {
		select {
		case m := <-s.many.Successes():
			at, _ := m.Metadata.(int64) // None: it is not timed.
			l.done(at, nil)
			count++
		case e := <-s.many.Errors():
			l.done(0, e.Err)
			count++
		case want = <-sent:
		case <-ctx.Done():
			return
		}
	}
}

func (s *robustChannels) consume(ctx context.Context, into *sink) error {
	return s.consumeAll(ctx, into, receivePartition)
}

func receivePartition(ctx context.Context, c *robust.PartitionConsumer, into *sink) error {
	ln := into.lane()
	defer ln.close()
	messages := c.Messages()
	for {
		select {
		case m, ok := <-messages:
			switch {
			case !ok:
				return fmt.Errorf("the messages ended at offset %d", c.Offset())
			case !ln.take(m.Value):
				return nil
			default:
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
