package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// rig watches the members of a group: who reads what, and what was handled.
type rig struct {
	t  testing.TB
	mu sync.Mutex // guards the following

	reading map[TopicPartition]string // by name of the member
	begun   map[string]int            // ConsumeClaim calls, by member and partition
	handled map[string][]int64        // offsets by partition, in order
	doubled []string                  // partitions that two members read at once
	setups  map[string]int
	cleaned map[string]int
}

func newRig(t testing.TB) *rig {
	return &rig{
		t: t, reading: make(map[TopicPartition]string), begun: make(map[string]int),
		handled: make(map[string][]int64), setups: make(map[string]int), cleaned: make(map[string]int),
	}
}

// rigHandler is the handler of one member; handle may be nil.
type rigHandler struct {
	*rig
	name   string
	handle func(s *Session, c *Claim, m *Message) error
}

func (h rigHandler) Setup(*Session) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.setups[h.name]++
	return nil
}

func (h rigHandler) Cleanup(*Session) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleaned[h.name]++
	return nil
}

func (h rigHandler) ConsumeClaim(s *Session, c *Claim) error {
	tp := TopicPartition{c.Topic(), c.Partition()}
	h.mu.Lock()
	if other := h.reading[tp]; other != "" {
		h.doubled = append(h.doubled, fmt.Sprintf("%s: %s and %s", tp, other, h.name))
	}
	h.reading[tp] = h.name
	h.begun[h.name+" "+tp.String()]++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		if h.reading[tp] == h.name {
			delete(h.reading, tp)
		}
		h.mu.Unlock()
	}()
	for m := range c.Messages() {
		if h.handle != nil {
			if err := h.handle(s, c, m); err != nil {
				return err
			}
		}
		h.mu.Lock()
		h.handled[tp.String()] = append(h.handled[tp.String()], m.Offset)
		h.mu.Unlock()
		s.MarkMessage(m, "")
	}
	return nil
}

// shares returns how many partitions each member reads.
func (r *rig) shares() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := make(map[string]int)
	for _, name := range r.reading {
		n[name]++
	}
	return n
}

// of returns what a member reads, in order.
func (r *rig) of(name string) []TopicPartition {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []TopicPartition
	for tp, who := range r.reading {
		if who == name {
			all = append(all, tp)
		}
	}
	slices.SortFunc(all, compareTopicPartition)
	return all
}

func (r *rig) calls() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.begun)
}

// after lets fake time pass, and everything come to rest.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// groupMember is a member at work.
type groupMember struct {
	group  *ConsumerGroup
	cancel context.CancelFunc
	done   chan error
}

// stop ends Consume by its context and returns its result.
func (m *groupMember) stop() error {
	m.cancel()
	return <-m.done
}

// consumeWith has a client of its own consume faultTopic.
func (r *rig) consumeWith(dial dialFunc, name string, handle func(*Session, *Claim, *Message) error, opts ...Option) *groupMember {
	r.t.Helper()
	return r.consumeTopics(dial, name, []string{faultTopic}, rigHandler{r, name, handle}, opts...)
}

func (r *rig) consumeTopics(dial dialFunc, name string, topics []string, h Handler, opts ...Option) *groupMember {
	r.t.Helper()
	c := faultClient(r.t, dial, append([]Option{WithClientID(name)}, opts...)...)
	g, err := c.ConsumerGroup("g")
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(r.t.Context())
	m := &groupMember{group: g, cancel: cancel, done: make(chan error, 1)}
	go func() { m.done <- g.Consume(ctx, topics, h) }()
	r.t.Cleanup(cancel)
	return m
}

// committed is what a broker has for group g and a partition of faultTopic; -1: nothing.
func committed(b *Broker, partition int32) int64 {
	offset := offsetNone
	_ = b.service.groups.with(context.Background(), "g", false, func(h *hostedGroup) error {
		h.do(func(g *group, _ time.Time) {
			if o, ok := g.offsets[TopicPartition{faultTopic, partition}]; ok {
				offset = o.Offset
			}
		})
		return nil
	})
	return offset
}

// rawCall sends one request as a peer without a client, and returns its answer.
func rawCall(t testing.TB, b *Broker, form Protocol, req request, resp response) error {
	t.Helper()
	p := dialPeer(t, b)
	defer p.nc.Close()
	frame, err := appendRequest(nil, form, "1", req.kind(), req)
	require.NoError(t, err)
	p.send(string(frame))
	answer := p.mustAnswer("1")
	require.NoError(t, decodePayload(answer.payload, resp))
	if !answer.success {
		return &BrokerError{Request: req.kind().String(), Message: answer.errText, condition: conditionOf(answer.errCode, answer.errText)}
	}
	return nil
}

// A member that is never heard of again loses its partitions after its session timeout,
// to the nanosecond, and what it commits afterwards is refused.
func TestGroupMemberExpires(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		var joined joinGroupResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &joinGroupRequest{GroupID: "g", Topics: []string{faultTopic}, SessionTimeoutMs: 6000}, &joined))
		after(gatherTime)
		began := time.Now()
		var synced syncGroupResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &syncGroupRequest{GroupID: "g", MemberID: joined.MemberID, Seq: 1}, &synced))
		require.Equal(t, map[string][]int32{faultTopic: {0, 1}}, synced.Assignment)
		r := newRig(t)
		m := r.consumeWith(b.Dial, "a", nil)
		after(time.Until(began.Add(6*time.Second - time.Millisecond)))
		require.Empty(t, r.shares())
		require.Contains(t, m.group.Status().String(), "waits for other members to give up more")
		after(time.Millisecond)
		require.Equal(t, map[string]int{"a": 2}, r.shares())

		commit := &commitOffsetRequest{GroupID: "g", MemberID: joined.MemberID, Topic: faultTopic, Offset: 1, Epoch: synced.Grants[0].Epoch}
		require.ErrorIs(t, rawCall(t, b, ProtocolV1, commit, &commitOffsetResponse{}), ErrUnknownMember)
		require.NoError(t, m.stop())
	})
}

// A member whose broker has fallen silent ends its claims when the broker would give
// them away, and not before.
func TestGroupMemberWithoutAnswersEndsItsClaims(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		var muted atomic.Bool
		mute := func(f proxiedFrame) verdict {
			if muted.Load() {
				return verdict{then: thenSilence}
			}
			return f.pass()
		}
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) { return requests(mute), answers(mute) })
		r := newRig(t)
		type end struct {
			at    time.Time
			cause error
		}
		ends := make(chan end, 2)
		m := r.consumeTopics(proxy.dial, "a", []string{faultTopic}, HandlerFunc(func(s *Session, c *Claim) error {
			err := rigHandler{r, "a", nil}.ConsumeClaim(s, c)
			select {
			case ends <- end{time.Now(), context.Cause(s.Context())}:
			default:
			}
			return err
		}), WithSessionTimeout(9*time.Second))
		after(time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		muted.Store(true)
		began := time.Now()
		for range 2 {
			ended := <-ends
			require.ErrorIs(t, ended.cause, ErrUnknownMember)
			require.WithinRange(t, ended.at, began.Add(6*time.Second), began.Add(9*time.Second))
		}
		muted.Store(false)
		proxy.cutAll()
		after(10 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.NoError(t, m.stop())
	})
}

// A connection that falls silent costs no membership, even if the session timeout is
// over before the connection is given up: what is not answered is asked for on another.
func TestGroupOutlivesSilentConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		var opened, muted atomic.Int64
		proxy := newFaultProxy(t, b.Dial, func(n int) (up, down stream) {
			opened.Store(int64(n) + 1)
			mute := func(f proxiedFrame) verdict {
				if int64(n) < muted.Load() {
					return verdict{then: thenSilence}
				}
				return f.pass()
			}
			return requests(mute), answers(mute)
		})
		r := newRig(t)
		m := r.consumeWith(proxy.dial, "a", nil, WithSessionTimeout(6*time.Second))
		after(5 * time.Second)
		muted.Store(opened.Load())
		after(time.Minute)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.Equal(t, map[string]int{"a": 1}, r.setups)
		require.NoError(t, m.stop())
	})
}

// A static member that comes back within its session timeout finds what it left, and
// nothing of the others has moved.
func TestGroupStaticMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 6)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil, WithInstanceID("1"))
		bb := r.consumeWith(b.Dial, "b", nil, WithInstanceID("2"))
		after(time.Second)
		require.Equal(t, map[string]int{"a": 3, "b": 3}, r.shares())
		before := r.of("a")
		generation := bb.group.session.GenerationID()

		require.NoError(t, a.group.Close())
		require.ErrorIs(t, <-a.done, ErrClosed)
		after(29 * time.Second)
		require.Equal(t, map[string]int{"b": 3}, r.shares())
		a = r.consumeWith(b.Dial, "a", nil, WithInstanceID("1"))
		after(5 * time.Second)
		require.Equal(t, before, r.of("a"))
		for what, n := range r.calls() {
			if strings.HasPrefix(what, "b ") {
				require.Equal(t, 1, n, what)
			}
		}
		require.Equal(t, generation+1, bb.group.session.GenerationID())

		// Another of the same name takes over; the first must not come back.
		second := r.consumeWith(b.Dial, "a2", nil, WithInstanceID("1"))
		after(time.Second)
		require.ErrorIs(t, <-a.done, ErrFenced)
		after(time.Minute)
		require.Equal(t, before, r.of("a2"))
		require.Equal(t, map[string]int{"a2": 3, "b": 3}, r.shares())

		// One that does not come back is out after its session timeout.
		require.NoError(t, second.stop())
		after(31 * time.Second)
		require.Equal(t, map[string]int{"b": 6}, r.shares())
		require.NoError(t, bb.stop())
	})
}

// A handler that does not return keeps its partition for the rebalance timeout and the
// membership for as long as it likes; what it commits late is refused.
func TestGroupSlowHandler(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		p := faultProducer(t, faultClient(t, b.Dial))
		for i := range int32(6) {
			m := to0("x")
			m.Partition = i % 2
			_, _, err := p.SendMessage(t.Context(), m)
			require.NoError(t, err)
		}
		r := newRig(t)
		release := make(chan struct{})
		late := make(chan error, 2)
		a := r.consumeWith(b.Dial, "a", func(s *Session, _ *Claim, m *Message) error {
			if m.Offset == 1 {
				<-release
				s.MarkMessage(m, "")
				late <- s.Commit()
			}
			return nil
		}, WithRebalanceTimeout(10*time.Second), WithAutoCommit(0))
		after(time.Minute) // Twice the session timeout.
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		bb := r.consumeWith(b.Dial, "b", func(_ *Session, c *Claim, _ *Message) error {
			<-c.Context().Done()
			return nil
		}, WithAutoCommit(0))
		after(time.Second)
		moved := b.service.groups.targetOf(t, "b")
		require.Contains(t, a.group.Status().String(), "waits for the handler of "+moved.String()+" to return")
		after(8 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		after(time.Second)
		require.Equal(t, []string{moved.String() + ": a and b"}, r.doubled)
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.shares())
		close(release)
		require.ErrorIs(t, errors.Join(<-late, <-late), ErrFenced)
		after(time.Minute)
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.shares())
		require.Equal(t, offsetNone, committed(b, moved.Partition))
		require.GreaterOrEqual(t, committed(b, 1-moved.Partition), int64(2))
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// targetOf returns the partition that a client's member is to read.
func (c *coordinator) targetOf(t testing.TB, client string) TopicPartition {
	t.Helper()
	var found TopicPartition
	require.NoError(t, c.with(t.Context(), "g", false, func(h *hostedGroup) error {
		h.do(func(g *group, _ time.Time) {
			for tp, s := range g.slots {
				if m := g.members[s.target]; m != nil && m.client == client {
					found = tp
				}
			}
		})
		return nil
	}))
	return found
}

// A panic, an error and the end of a goroutine in a handler end Consume, and nothing
// else; what was marked is committed, and others go on with the rest.
func TestGroupHandlerFails(t *testing.T) {
	failure := errors.New("out of paper")
	for name, fail := range map[string]func() error{
		"error":  func() error { return failure },
		"panic":  func() error { panic(failure) },
		"goexit": func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 2)
				store(t, b, 5)
				r := newRig(t)
				a := r.consumeWith(b.Dial, "a", func(_ *Session, _ *Claim, m *Message) error {
					if m.Offset == 2 {
						return fail()
					}
					return nil
				})
				err := <-a.done
				switch name {
				case "error":
					require.Equal(t, failure, err)
				case "panic":
					require.ErrorIs(t, err, failure)
					panicked := new(PanicError)
					require.ErrorAs(t, err, &panicked)
					require.Contains(t, string(panicked.Stack), "group_fault_test.go")
				case "goexit":
					require.ErrorIs(t, err, errGoexit)
				}
				require.Equal(t, map[string]int{"a": 1}, r.cleaned)
				require.Equal(t, int64(2), committed(b, 0))
				require.Contains(t, a.group.Status().String(), "Consume is not running")

				// The group can be consumed again, where it stopped.
				bb := r.consumeWith(b.Dial, "b", nil)
				after(time.Second)
				require.Equal(t, []int64{0, 1, 2, 3, 4}, r.handled["t/0"])
				require.NoError(t, bb.stop())
				require.Equal(t, int64(5), committed(b, 0))
			})
		})
	}
}

// A handler that returns although its claim goes on is called again, behind what it has
// marked.
func TestGroupHandlerReturnsEarly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		store(t, b, 5)
		r := newRig(t)
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, HandlerFunc(func(s *Session, c *Claim) error {
			for m := range c.Messages() {
				r.mu.Lock()
				r.handled["t/0"] = append(r.handled["t/0"], m.Offset)
				r.mu.Unlock()
				s.MarkMessage(m, "")
				return nil
			}
			return nil
		}))
		after(time.Minute)
		require.Equal(t, []int64{0, 1, 2, 3, 4}, r.handled["t/0"])
		require.ErrorIs(t, <-a.group.Errors(), errEarlyReturn)
		require.NoError(t, a.stop())
	})
}

// Over storage that outlives the broker a restart moves nothing, and interrupts no
// claim.
func TestGroupSurvivesBrokerRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		defer storage.Close()
		b := faultBroker(t, 4, WithStorage(storage))
		var mu sync.Mutex
		current := b
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return current.Dial(ctx, network, addr)
		}
		r := newRig(t)
		a, bb := r.consumeWith(dial, "a", nil), r.consumeWith(dial, "b", nil)
		after(time.Second)
		before := map[string][]TopicPartition{"a": r.of("a"), "b": r.of("b")}
		generation := a.group.session.GenerationID()
		for range 3 {
			require.NoError(t, b.Close())
			after(2 * time.Second)
			b = faultBroker(t, 4, WithStorage(storage))
			mu.Lock()
			current = b
			mu.Unlock()
			store(t, b, 1)
			after(5 * time.Second)
			now := map[string][]TopicPartition{"a": r.of("a"), "b": r.of("b")}
			require.Equal(t, before, now)
		}
		for what, n := range r.calls() {
			require.Equal(t, 1, n, what)
		}
		require.Len(t, r.handled["t/0"], 3)
		require.Equal(t, int64(3), committed(b, 0))
		require.Greater(t, a.group.session.GenerationID(), generation)
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// A broker that has lost its memory does not know the members: they drop what they have
// and join anew.
func TestGroupOfForgetfulBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := faultBroker(t, 4), faultBroker(t, 4)
		var mu sync.Mutex
		current := first
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return current.Dial(ctx, network, addr)
		}
		r := newRig(t)
		a, bb := r.consumeWith(dial, "a", nil), r.consumeWith(dial, "b", nil)
		after(time.Second)
		mu.Lock()
		current = second
		mu.Unlock()
		require.NoError(t, first.Close())
		after(5 * time.Second)
		require.Equal(t, map[string]int{"a": 2, "b": 2}, r.shares())
		require.Equal(t, map[string]int{"a": 2, "b": 2}, r.setups)
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.cleaned)
		for !errors.Is(<-a.group.Errors(), ErrUnknownMember) {
		}
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// Topics are created, grown and deleted under a running group, by name and by pattern.
func TestGroupFollowsTopics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		r := newRig(t)
		c := faultClient(t, b.Dial)
		admin := c.Admin()
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic, "later", "^log-[0-9]+$"}, rigHandler{r, "a", nil}, WithStartOffset(OffsetNewest))
		after(time.Second)
		require.Len(t, r.of("a"), 2)
		require.ErrorIs(t, <-a.group.Errors(), ErrTopicNotFound)
		require.Contains(t, a.group.Status().String(), "waits for topics that are not there: [later]")

		// What appears under the group's eyes is read from its start, whatever
		// the option says.
		require.NoError(t, admin.CreateTopic(t.Context(), "later", 1, nil))
		require.NoError(t, admin.CreateTopic(t.Context(), "log-1", 1, nil))
		require.NoError(t, admin.CreateTopic(t.Context(), "log-x", 1, nil))
		require.NoError(t, admin.CreatePartitions(t.Context(), faultTopic, 3))
		p := faultProducer(t, c)
		for _, tp := range []TopicPartition{{"later", 0}, {"log-1", 0}, {faultTopic, 2}} {
			m := NewMessage(tp.Topic, []byte("x"))
			m.Partition = tp.Partition
			_, _, err := p.SendMessage(t.Context(), m)
			require.NoError(t, err)
		}
		after(time.Second)
		require.Equal(t, []TopicPartition{{"later", 0}, {"log-1", 0}, {faultTopic, 0}, {faultTopic, 1}, {faultTopic, 2}}, r.of("a"))
		require.Equal(t, map[string][]int64{"later/0": {0}, "log-1/0": {0}, "t/2": {0}}, r.handled)

		require.NoError(t, admin.DeleteTopic(t.Context(), "log-1"))
		after(2 * time.Second)
		require.Len(t, r.of("a"), 4)
		// One made anew has nothing committed.
		require.NoError(t, admin.CreateTopic(t.Context(), "log-1", 1, nil))
		_, _, err := p.SendMessage(t.Context(), NewMessage("log-1", []byte("y")))
		require.NoError(t, err)
		after(2 * time.Second)
		require.Equal(t, []int64{0, 0}, r.handled["log-1/0"])
		require.Equal(t, 1, r.calls()["a t/0"])
		require.GreaterOrEqual(t, a.group.client.Metrics().Consumer.GetStats().Rebalances, uint64(3))
		require.NoError(t, a.stop())
	})
}

// A group that begins at the newest message goes on there, even if it was stopped
// before it had read any.
func TestGroupKeepsWhereItBegan(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		store(t, b, 5)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil, WithStartOffset(OffsetNewest))
		after(time.Second)
		require.NoError(t, a.stop())
		store(t, b, 2)
		a = r.consumeWith(b.Dial, "a", nil, WithStartOffset(OffsetNewest))
		after(time.Second)
		require.Equal(t, []int64{5, 6}, r.handled["t/0"])
		require.NoError(t, a.stop())
	})
}

// However many partitions there are, a commit is one request; without auto commit there
// is none that the application does not ask for.
func TestGroupCommits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 8)
		var sent frameCounter
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) { return sent.tap(), nil })
		c := faultClient(t, b.Dial)
		p := faultProducer(t, c)
		for i := range int32(8) {
			m := NewMessage(faultTopic, []byte("x"))
			m.Partition = i
			_, _, err := p.SendMessage(t.Context(), m)
			require.NoError(t, err)
		}
		r := newRig(t)
		a := r.consumeWith(proxy.dial, "a", nil, WithAutoCommit(0))
		after(time.Minute)
		require.Zero(t, sent.of(requestCommitOffset))
		require.NoError(t, a.group.session.Commit())
		require.NoError(t, a.group.session.Commit())
		require.Equal(t, 1, sent.of(requestCommitOffset))
		for i := range int32(8) {
			require.Equal(t, int64(1), committed(b, i))
		}
		require.Equal(t, uint64(1), a.group.client.Metrics().Consumer.GetStats().CommitCount)
		a.group.session.MarkOffset(faultTopic, 0, 0, "")
		a.group.session.MarkOffset(faultTopic, 99, 5, "")
		require.NoError(t, a.group.session.Commit())
		require.Equal(t, int64(1), committed(b, 0))
		require.NoError(t, a.stop())
		require.Equal(t, 1, sent.of(requestCommitOffset))

		bb := r.consumeWith(proxy.dial, "b", nil)
		after(time.Minute)
		require.Equal(t, 1, sent.of(requestCommitOffset), "nothing is new")
		require.NoError(t, bb.stop())
	})
}

// With contiguous marks a message that is not done holds back those behind it.
func TestGroupContiguousMarks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		store(t, b, 10)
		r := newRig(t)
		var taken []*Message
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, HandlerFunc(func(_ *Session, c *Claim) error {
			for m := range c.Messages() {
				taken = append(taken, m)
			}
			return nil
		}), WithContiguousMarks())
		after(time.Second)
		s := a.group.session
		for _, i := range []int{0, 1, 3, 9} {
			s.MarkMessage(taken[i], "")
		}
		after(2 * time.Second)
		require.Equal(t, int64(2), committed(b, 0))
		s.MarkMessage(taken[2], "")
		after(2 * time.Second)
		require.Equal(t, int64(4), committed(b, 0))
		s.MarkOffset(faultTopic, 0, 9, "half")
		after(2 * time.Second)
		require.Equal(t, int64(10), committed(b, 0))
		require.NoError(t, a.stop())
	})
}

// Members that name an assignor of their own have it computed by one of them; if it
// fails, or is too slow, the broker assigns by itself.
func TestGroupCustomAssignor(t *testing.T) {
	all := func(in *AssignmentInput) map[TopicPartition]string {
		assigned := make(map[TopicPartition]string)
		for _, tp := range in.Partitions {
			assigned[tp] = in.Members[0].ID
		}
		return assigned
	}
	never := make(chan struct{})
	for name, test := range map[string]struct {
		assign AssignFunc
		want   map[int]int // how many members have how many partitions
		after  time.Duration
	}{
		"all to one": {func(in *AssignmentInput) (map[TopicPartition]string, error) { return all(in), nil }, map[int]int{4: 1}, time.Second},
		"error": {func(*AssignmentInput) (map[TopicPartition]string, error) {
			return nil, errors.New("no idea")
		}, map[int]int{2: 2}, time.Second},
		"panic":  {func(*AssignmentInput) (map[TopicPartition]string, error) { panic("no") }, map[int]int{2: 2}, time.Second},
		"nobody": {func(*AssignmentInput) (map[TopicPartition]string, error) { return nil, nil }, map[int]int{2: 2}, time.Second},
		"stranger": {func(*AssignmentInput) (map[TopicPartition]string, error) {
			return map[TopicPartition]string{{faultTopic, 0}: "x"}, nil
		}, map[int]int{2: 2}, time.Second},
		"too slow": {func(*AssignmentInput) (map[TopicPartition]string, error) { <-never; return nil, nil }, map[int]int{2: 2}, computeTimeout + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 4)
				r := newRig(t)
				never = make(chan struct{})
				assignor := WithAssignor(NewAssignor("mine", test.assign))
				a, bb := r.consumeWith(b.Dial, "a", nil, assignor), r.consumeWith(b.Dial, "b", nil, assignor)
				after(test.after)
				have := make(map[int]int)
				for _, n := range r.shares() {
					have[n]++
				}
				require.Equal(t, test.want, have)
				close(never)
				require.NoError(t, a.stop())
				require.NoError(t, bb.stop())
			})
		})
	}
}

// Clients of the first shipped SDK join, sync once, and read; they share a group with
// ours. They are excepted from fencing and single ownership.
func TestGroupWithOldClient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 4)
		r := newRig(t)
		var joined joinGroupResponse
		require.NoError(t, rawCall(t, b, ProtocolV0, &joinGroupRequest{GroupID: "g", ClientID: "old", Topics: []string{faultTopic}}, &joined))
		require.Equal(t, []int32{0, 1, 2, 3}, joined.Partitions, "it is not told to wait")
		a := r.consumeWith(b.Dial, "a", nil)
		after(time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares(), "nobody waits for it")
		var synced syncGroupResponse
		require.NoError(t, rawCall(t, b, ProtocolV0, &syncGroupRequest{GroupID: "g", MemberID: joined.MemberID, Generation: joined.Generation}, &synced))
		require.Len(t, synced.Assignment[faultTopic], 2)
		mine := synced.Assignment[faultTopic]

		// It reads and commits without a word about itself, and stays for that.
		for range 5 {
			after(45 * time.Second)
			fetched := newFetchResponse()
			require.NoError(t, rawCall(t, b, ProtocolV0, &fetchRequest{Topic: faultTopic, Partition: mine[0]}, fetched))
		}
		require.NoError(t, rawCall(t, b, ProtocolV0, &commitOffsetRequest{GroupID: "g", Topic: faultTopic, Partition: mine[0], Offset: 7}, &commitOffsetResponse{}))
		require.NoError(t, rawCall(t, b, ProtocolV0, &commitOffsetRequest{GroupID: "g", Topic: faultTopic, Partition: mine[0], Offset: 3}, &commitOffsetResponse{}))
		require.Equal(t, int64(3), committed(b, mine[0]), "as it was given")
		var offset fetchOffsetResponse
		require.NoError(t, rawCall(t, b, ProtocolV0, &fetchOffsetRequest{GroupID: "g", Topic: faultTopic, Partition: mine[1]}, &offset))
		require.Zero(t, offset.Offset, "0 and not -1")
		require.NoError(t, rawCall(t, b, ProtocolV1, &fetchOffsetRequest{GroupID: "g", Topic: faultTopic, Partition: mine[1]}, &offset))
		require.Equal(t, offsetNone, offset.Offset)

		after(59 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		after(time.Second)
		require.Equal(t, map[string]int{"a": 4}, r.shares(), "a minute without a sign")
		require.NoError(t, a.stop())
	})
}

// More members than partitions: the surplus waits, set up and ready.
func TestGroupSurplusMember(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil)
		after(time.Second)
		bb := r.consumeWith(b.Dial, "b", nil)
		after(time.Second)
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.setups)
		require.Equal(t, map[string]int{"a": 1}, r.shares())
		began := time.Now()
		require.NoError(t, a.stop())
		synctest.Wait()
		require.Equal(t, map[string]int{"b": 1}, r.shares())
		require.Equal(t, began, time.Now(), "the leave is told at once")
		require.NoError(t, bb.stop())
	})
}

// Rebalance and members that come and go never stop a partition that stays.
func TestGroupRebalanceRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 6)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil)
		bb := r.consumeWith(b.Dial, "b", nil)
		after(time.Second)
		admin := a.group.client.Admin()
		require.NoError(t, admin.Rebalance(t.Context(), "g"))
		require.NoError(t, admin.Rebalance(t.Context(), ""))
		require.ErrorIs(t, admin.Rebalance(t.Context(), "h"), ErrGroupNotFound)
		after(5 * time.Second)
		for what, n := range r.calls() {
			require.Equal(t, 1, n, what)
		}
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// setupHandler is a handler whose parts are functions.
type setupHandler struct {
	setup, cleanup func(*Session) error
	claim          func(*Session, *Claim) error
}

func (h setupHandler) Setup(s *Session) error                  { return h.setup(s) }
func (h setupHandler) Cleanup(s *Session) error                { return h.cleanup(s) }
func (h setupHandler) ConsumeClaim(s *Session, c *Claim) error { return h.claim(s, c) }

// Setup sees the first claims before any of them begins; Cleanup comes when all have
// returned, and can still commit.
func TestGroupSetupAndCleanup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		store(t, b, 5)
		r := newRig(t)
		var order []string
		note := func(what string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			order = append(order, what)
		}
		failure := errors.New("no room")
		fail := failure
		h := setupHandler{
			setup: func(s *Session) error {
				note(fmt.Sprint("setup ", s.Claims()))
				return fail
			},
			cleanup: func(s *Session) error {
				note("cleanup")
				if s.Context().Err() == nil {
					return errors.New("the session goes on")
				}
				return s.Commit()
			},
			claim: func(s *Session, c *Claim) error {
				note("claim")
				for m := range c.Messages() {
					s.MarkMessage(m, "")
				}
				<-time.After(time.Second)
				note("returned")
				return nil
			},
		}
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, h, WithAutoCommit(0))
		require.Equal(t, failure, <-a.done)
		require.Equal(t, []string{"setup map[t:[0 1]]"}, order)

		order, fail = nil, nil
		a = r.consumeTopics(b.Dial, "a", []string{faultTopic}, h, WithAutoCommit(0))
		after(time.Second)
		require.Equal(t, offsetNone, committed(b, 0))
		require.NoError(t, a.stop())
		require.Equal(t, []string{"setup map[t:[0 1]]", "claim", "claim", "returned", "returned", "cleanup"}, order)
		require.Equal(t, int64(5), committed(b, 0))
	})
}

// Close ends Consume, waits for its handlers, and does not wait for ever.
func TestGroupClose(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		r := newRig(t)
		release := make(chan struct{})
		h := HandlerFunc(func(*Session, *Claim) error {
			<-release
			return nil
		})
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, h, WithRebalanceTimeout(10*time.Second))
		bb := r.consumeWith(b.Dial, "b", nil)
		after(time.Second)
		began := time.Now()
		err := a.group.Close()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "close group g")
		require.Equal(t, closeTimeout, time.Since(began))
		synctest.Wait()
		require.Equal(t, map[string]int{"b": 2}, r.shares(), "the others go on after the rebalance timeout")
		close(release)
		require.ErrorIs(t, <-a.done, ErrClosed)
		require.NoError(t, a.group.Close())
		require.NoError(t, bb.group.client.Close())
		require.ErrorIs(t, <-bb.done, ErrClosed)
	})
}

// A Consume whose context has ended before it has joined leaves nothing behind.
func TestGroupContextEndsEarly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		c := faultClient(t, b.Dial)
		g, err := c.ConsumerGroup("g")
		require.NoError(t, err)
		h := HandlerFunc(func(*Session, *Claim) error { return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, g.Consume(ctx, []string{faultTopic}, h))
		gone := faultClient(t, func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody there") })
		g, err = gone.ConsumerGroup("g")
		require.NoError(t, err)
		ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		time.AfterFunc(30*time.Second, func() {
			require.Contains(t, g.Status().String(), "joining")
			require.Contains(t, g.Status().String(), "nobody there")
		})
		began := time.Now()
		require.NoError(t, g.Consume(ctx, []string{faultTopic}, h))
		require.Equal(t, time.Minute, time.Since(began))
		synctest.Wait()
		groups, err := c.Admin().ListGroups(t.Context())
		require.NoError(t, err)
		require.Empty(t, groups)
	})
}
