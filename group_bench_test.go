package robust_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// BenchmarkRebalance has one member join a running group, or leave it, while messages
// flow to every partition. The broker is in this process; every member has a client of
// its own, and all go through TCP. There are two partitions to a member.
//
//	go test -run '^$' -bench Rebalance -benchtime 20x -timeout 30m .
//
// A round takes about three seconds, so -benchtime counts rounds. For each there is a
// quiet second and then one with the rebalance in it. Reported are
//
//	ms/rebalance, max-ms        from the call of Consume, or from the cancellation of
//	                            its context, to when every partition that moves has had
//	                            a message handled by its new owner: median and maximum
//	                            of the rounds
//	moved-ms, max-moved-ms      the longest time without a handled message in a
//	                            partition that moves: median and maximum
//	unmoved-ms, max-unmoved-ms  likewise in all others, in the second of the rebalance
//	quiet-ms, max-quiet-ms      likewise in those others, in the second before it
//	every-ms                    the time between two messages of a partition as they are
//	                            sent: no gap can be shown to be shorter
//	moved/rebalance             partitions that move, on average
//	ends-unmoved                claims of other partitions that ended: none may
//
// An empty group waits for 100 ms for others to join, which is not measured here: the
// group is running.
func BenchmarkRebalance(b *testing.B) {
	// Small machines are kept from being busy with messages alone.
	every := map[int]time.Duration{3: 10 * time.Millisecond, 30: 25 * time.Millisecond, 100: 100 * time.Millisecond}
	for _, n := range []int{3, 30, 100} {
		for _, joins := range []bool{true, false} {
			what := "leave"
			if joins {
				what = "join"
			}
			b.Run(fmt.Sprintf("members=%d/%s", n, what), func(b *testing.B) {
				newRebalanceBench(b, n, every[n]).run(b, joins)
			})
		}
	}
}

// rebalanceWindow is how long gaps are looked for before a rebalance, and from its
// beginning on.
const rebalanceWindow = time.Second

type rebalanceBench struct {
	n       int
	every   time.Duration
	addr    string
	admin   *robust.AdminClient
	members []*rebalanceMember

	mu    sync.Mutex // guards the following
	parts []rebalancePartition
}

// rebalancePartition is what has happened in a partition lately.
type rebalancePartition struct {
	owner   *rebalanceMember
	handled []rebalanceHandled
	ends    []time.Time // of claims
}

type rebalanceHandled struct {
	at time.Time
	by *rebalanceMember
}

type rebalanceMember struct {
	bench  *rebalanceBench
	group  *robust.ConsumerGroup
	client *robust.Client
	cancel context.CancelFunc
	done   chan error
}

func newRebalanceBench(b *testing.B, n int, every time.Duration) *rebalanceBench {
	partitions := int32(2 * n)
	broker := newBroker(b, robust.WithTopic("demo", partitions), robust.WithLogger(nil))
	addr, err := broker.Listen("127.0.0.1:0")
	require.NoError(b, err)
	r := &rebalanceBench{n: n, every: every, addr: addr.String(), parts: make([]rebalancePartition, partitions)}
	r.admin = r.client(b).Admin()
	for range n {
		m := r.member(b)
		r.members = append(r.members, m)
		m.start(b)
	}
	// Whoever feeds takes the partitions in turn, so that each has its own pace.
	const feeders = 3
	ctx, cancel := context.WithCancel(b.Context())
	var feeding sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		feeding.Wait()
	})
	for f := range feeders {
		producer, err := r.client(b).SyncProducer()
		require.NoError(b, err)
		feeding.Go(func() { r.feed(ctx, b, producer, f, feeders) })
	}
	r.settle(b)
	return r
}

func (r *rebalanceBench) client(b *testing.B) *robust.Client {
	c, err := robust.New(robust.WithBrokers(r.addr), robust.WithLogger(nil))
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	return c
}

// feed sends to every feeders-th partition.
func (r *rebalanceBench) feed(ctx context.Context, b *testing.B, p *robust.SyncProducer, first, feeders int) {
	var own []int32
	for i := first; i < len(r.parts); i += feeders {
		own = append(own, int32(i))
	}
	tick := time.NewTicker(r.every / time.Duration(len(own)))
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		m := robust.NewMessage("demo", benchValue())
		m.Partition = own[n%len(own)]
		if _, err := p.Send(ctx, m); err != nil && ctx.Err() == nil {
			b.Errorf("Send: %v", err)
			return
		}
	}
}

func (r *rebalanceBench) member(b *testing.B) *rebalanceMember {
	m := &rebalanceMember{bench: r, client: r.client(b)}
	var err error
	m.group, err = m.client.ConsumerGroup("bench")
	require.NoError(b, err)
	return m
}

// start calls Consume.
func (m *rebalanceMember) start(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	m.cancel, m.done = cancel, make(chan error, 1)
	h := robust.Each(func(_ context.Context, x *robust.Message) error {
		r := m.bench
		r.mu.Lock()
		defer r.mu.Unlock()
		p := &r.parts[x.Partition]
		p.handled = append(p.handled, rebalanceHandled{time.Now(), m})
		return nil
	})
	go func() {
		m.done <- m.group.Consume(ctx, []string{"demo"}, robust.HandlerFunc(func(s *robust.Session, c *robust.Claim) error {
			r := m.bench
			r.mu.Lock()
			r.parts[c.Partition()].owner = m
			r.mu.Unlock()
			defer func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.parts[c.Partition()].ends = append(r.parts[c.Partition()].ends, time.Now())
			}()
			return h.ConsumeClaim(s, c)
		}))
	}()
}

// settle waits until the members have what they are to have, and messages flow.
func (r *rebalanceBench) settle(b *testing.B) {
	b.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		d, err := r.admin.DescribeGroup(b.Context(), "bench")
		ready := err == nil && d.State == "Stable" && len(d.Members) == len(r.members)
		began := time.Now()
		for ready && time.Since(began) < 10*r.every {
			<-tick.C
		}
		r.mu.Lock()
		for i := range r.parts {
			n := len(r.parts[i].handled)
			ready = ready && n > 0 && r.parts[i].handled[n-1].by == r.parts[i].owner && r.parts[i].handled[n-1].at.After(began)
		}
		r.mu.Unlock()
		if ready {
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			require.FailNow(b, "the group is not stable", "%+v, %v", d, err)
		}
	}
}

func (r *rebalanceBench) run(b *testing.B, joins bool) {
	var took, moved, unmoved, quiet []float64
	count, ends := 0, 0
	for b.Loop() {
		other := r.member(b) // Joins in this round, or in place of the one that leaves.
		before := r.forget()
		<-time.After(rebalanceWindow)
		began := time.Now()
		if joins {
			r.members = append(r.members, other)
			other.start(b)
			<-time.After(rebalanceWindow)
		} else {
			leaver := r.members[0]
			r.members = r.members[1:]
			leaver.cancel()
			<-time.After(rebalanceWindow)
			require.NoError(b, <-leaver.done)
			require.NoError(b, leaver.client.Close())
		}
		round := r.measure(b, began, before)
		count += round.moved
		ends += round.ends
		took = append(took, round.took)
		moved = append(moved, round.movedGap)
		unmoved = append(unmoved, round.unmovedGap)
		quiet = append(quiet, round.quietGap)

		// As it was.
		if joins {
			last := r.members[r.n]
			r.members = r.members[:r.n]
			last.cancel()
			require.NoError(b, <-last.done)
			require.NoError(b, last.client.Close())
		} else {
			r.members = append(r.members, other)
			other.start(b)
		}
		r.settle(b)
	}
	for unit, values := range map[string][]float64{"moved-ms": moved, "unmoved-ms": unmoved, "quiet-ms": quiet} {
		b.ReportMetric(median(values), unit)
		b.ReportMetric(slices.Max(values), "max-"+unit)
	}
	b.ReportMetric(median(took), "ms/rebalance")
	b.ReportMetric(slices.Max(took), "max-ms")
	b.ReportMetric(float64(r.every)/1e6, "every-ms")
	b.ReportMetric(float64(count)/float64(len(took)), "moved/rebalance")
	b.ReportMetric(float64(ends), "ends-unmoved")
	b.ReportMetric(0, "ns/op")
	if ends > 0 {
		b.Errorf("%d claims ended that did not move", ends)
	}
	for _, m := range r.members {
		m.cancel()
	}
	for _, m := range r.members {
		require.NoError(b, <-m.done)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// forget begins a round, and returns who reads what.
func (r *rebalanceBench) forget() []*rebalanceMember {
	r.mu.Lock()
	defer r.mu.Unlock()
	owners := make([]*rebalanceMember, len(r.parts))
	for i := range r.parts {
		p := &r.parts[i]
		owners[i] = p.owner
		p.handled, p.ends = p.handled[len(p.handled)-1:], nil
	}
	return owners
}

// rebalanceRound is what one rebalance has cost, in milliseconds.
type rebalanceRound struct {
	took, movedGap, unmovedGap, quietGap float64
	moved, ends                          int
}

func (r *rebalanceBench) measure(b *testing.B, began time.Time, before []*rebalanceMember) (round rebalanceRound) {
	b.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	end := began.Add(rebalanceWindow)
	for i := range r.parts {
		p := &r.parts[i]
		if p.owner == before[i] {
			round.ends += len(p.ends)
			round.unmovedGap = max(round.unmovedGap, longestGap(p.handled, began, end))
			round.quietGap = max(round.quietGap, longestGap(p.handled, began.Add(-rebalanceWindow), began))
			continue
		}
		round.moved++
		round.movedGap = max(round.movedGap, longestGap(p.handled, began, end))
		first := slices.IndexFunc(p.handled, func(h rebalanceHandled) bool { return h.by != before[i] })
		if first < 0 {
			require.FailNow(b, "not within the window", "partition %d has moved, nothing was handled since", i)
		}
		round.took = max(round.took, float64(p.handled[first].at.Sub(began))/1e6)
	}
	require.Positive(b, round.moved)
	return round
}

// longestGap is the longest time between two messages of which the second was handled
// in the window.
func longestGap(handled []rebalanceHandled, from, to time.Time) (ms float64) {
	for i := range handled[1:] {
		if at := handled[i+1].at; at.After(from) && !at.After(to) {
			ms = max(ms, float64(at.Sub(handled[i].at))/1e6)
		}
	}
	return ms
}
