package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

// consumeGroup reads as a member. A message is marked when it is written.
func (c *consumeCmd) consumeGroup(ctx context.Context, a *app, client *robust.Client, out *sink) error {
	if _, err := client.Admin().GetMetadata(ctx, []string{c.Topic}); err != nil {
		return err
	}
	_, newest, err := bounds(ctx, client.Admin(), c.Topic)
	if err != nil && (!errors.Is(err, robust.ErrUnsupported) || c.To == "end") {
		return err
	}
	group, err := client.ConsumerGroup(c.Group, c.From.consumerOption().(robust.GroupOption), robust.WithAutoCommit(250*time.Millisecond))
	if err != nil {
		return err
	}
	defer group.Close()
	go func() {
		for err := range group.Errors() {
			a.notice(err)
		}
	}()
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if c.To == "end" {
		go c.watchEnd(work, client.Admin(), newest, stop)
	}
	err = group.Consume(work, []string{c.Topic}, robust.Each(func(_ context.Context, m *robust.Message) error {
		full, err := out.put(m)
		if full && err == nil {
			stop(errEnough)
		}
		return err
	}))
	if err != nil {
		return err
	}
	return context.Cause(work)
}

// watchEnd stops when the group has committed all that was stored when it began, whoever of
// its members has read it.
func (c *consumeCmd) watchEnd(ctx context.Context, admin *robust.AdminClient, end map[int32]int64, stop context.CancelCauseFunc) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		g, err := admin.DescribeGroup(ctx, c.Group)
		switch {
		case errors.Is(err, robust.ErrUnsupported):
			stop(fmt.Errorf("--to end with a group: %w", err))
			return
		case err == nil && c.reached(g, end):
			stop(errEnough)
			return
		}
	}
}

// reached says whether the group has come to these offsets.
func (c *consumeCmd) reached(g *robust.GroupDescription, end map[int32]int64) bool {
	missing := len(end)
	for _, o := range g.Offsets {
		if want, ok := end[o.Partition]; ok && o.Topic == c.Topic && max(o.Committed, o.LogStart) >= want {
			missing--
		}
	}
	return missing == 0
}
