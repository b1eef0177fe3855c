package robust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The torture of consumer groups: members that come, go, die, stall, panic and are cut
// off, a broker that restarts, topics that grow and appear, over TCP and through
// proxies that harm connections, while what groups promise is checked by machine.
//
//	make torture-groups DURATION=10m SEED=42
//
// Without ROBUST_TORTURE (a duration) it is a smoke test of a few seconds. The seed
// decides the plan, not the scheduler: a run is not repeated exactly by it.

const (
	tortureGroup   = "torture"
	tortureHB      = 150 * time.Millisecond
	tortureClose   = 10 * time.Second // bound of every Close, and of Consume after its context
	tortureDrain   = 30 * time.Second // bound of progress after the faults
	tortureMembers = 8
	torturePattern = "late-"
)

// tortureSlack is what a machine under load may be late by.
const tortureSlack = 500 * time.Millisecond

// torture is one run. What its checks need is kept here, in one order: that of mu.
type torture struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand // of the loop that plans
	storage *tortureStorage
	admin   *Client
	began   time.Time
	calm    atomic.Bool // the faults are over
	ends    sync.WaitGroup
	members []*tortureMember          // of the loop that plans
	holders map[string]*tortureMember // likewise: who was started last, by instance ID
	serial  int

	mu         sync.Mutex // guards the following
	broker     *Broker
	addr       string
	restarted  time.Time // when the broker came back last
	starved    time.Time // when this process did not run for a while
	parts      map[TopicPartition]*torturePartition
	epochs     map[int64]tortureGrant
	events     []string
	violations []string
	counts     map[string]int
	receipts   map[TopicPartition]map[int64]string

	generation     int64 // as DescribeGroup said last
	keptGeneration int64
	keptEpoch      int64
}

// tortureGrant is who has begun a claim with an epoch.
type tortureGrant struct {
	tp TopicPartition
	s  *Session
}

// torturePartition is what is known of a partition.
type torturePartition struct {
	running   map[*tortureClaim]struct{}
	begun     int64    // highest epoch of a claim that has begun
	handled   []uint16 // how often, by offset
	covered   int64    // everything below was handled
	committed int64    // that the storage keeps; -1: nothing
	described int64    // committed, as DescribeGroup said last
	epoch     int64    // likewise
	keptEpoch int64
	atKeep    int64           // committed when the group's state was kept last
	floor     map[int64]int64 // by epoch: what was committed for certain before the grant
	asked     map[int64]int64 // highest epoch with which an offset was to be committed
	last      *tortureClaim   // that has ended last, if it was in order
}

// tortureClaim is one call of ConsumeClaim.
type tortureClaim struct {
	m        *tortureMember
	s        *Session
	tp       TopicPartition
	epoch    int64
	next     int64            // offset that must come, -1: any
	keys     map[string]int64 // last offset by key, where messages are handled side by side
	stalling int
	stalled  time.Time // since when
	over     time.Time // when its context ended; zero: it has not
	cause    error
	marked   int64 // by a handler that marks what it handles: the next one, if any was
}

// tortureMember is one member, from its client to its end.
type tortureMember struct {
	w         *torture
	n         int
	kind      int
	topics    []string
	instance  string
	session   time.Duration
	rebalance time.Duration
	weather   bool // its connections are harmed at random
	rng       *rand.Rand
	proxy     *faultProxy
	proxyAddr string
	client    *Client
	group     *ConsumerGroup
	cancel    context.CancelFunc
	done      chan struct{} // closed when its Consume has returned for good
	closed    chan struct{} // closed when all of it has ended

	// guarded by torture.mu
	refusing  bool      // its dialer refuses
	killed    time.Time // it is dead
	replaced  time.Time // another has been started with its instance ID
	blocked   bool
	disturbed time.Time // its connections were harmed, and until when that is an excuse
	leaving   bool
	stall     time.Duration    // the next messages are handled for as long
	stalls    int              // how many
	fail      int              // the next message: 1 panics, 2 fails
	claims    map[*Session]int // that run, -1 after Cleanup
	over      map[*Session]time.Time
}

const torturePanic = "the handler was told to panic"

var errTorture = errors.New("the handler was told to fail")

const (
	kindEach = iota
	kindEachSideBySide
	kindMessages
	kindManual
	kindAll
	kindContiguous
	kinds
)

func TestTortureGroups(t *testing.T) {
	duration, seed := 3*time.Second, uint64(1)
	if s := os.Getenv("ROBUST_TORTURE"); s != "" {
		d, err := time.ParseDuration(s)
		require.NoError(t, err, "ROBUST_TORTURE")
		duration, seed = d, uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("ROBUST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "ROBUST_SEED")
		seed = n
	}
	t.Logf("%v with ROBUST_SEED=%d", duration, seed)
	// Nothing may take for ever; the stacks say what does.
	stuck := time.AfterFunc(duration+3*time.Minute, func() {
		stacks := make([]byte, 16<<20)
		panic("stuck\n" + string(stacks[:runtime.Stack(stacks, true)]))
	})
	defer stuck.Stop()
	w := &torture{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), began: time.Now(),
		parts: make(map[TopicPartition]*torturePartition), epochs: make(map[int64]tortureGrant),
		counts: make(map[string]int), receipts: make(map[TopicPartition]map[int64]string),
		holders: make(map[string]*tortureMember),
	}
	w.storage = &tortureStorage{Storage: NewMemoryStorage(), w: w}
	w.run(duration)
}

// run is the whole story.
func (w *torture) run(duration time.Duration) {
	t := w.t
	w.start("127.0.0.1:0")
	defer func() { require.NoError(t, w.current().Close()) }()
	admin, err := New(WithBrokers("broker.invalid:1"), WithDialer(w.dial), WithLogger(nil), WithRequestTimeout(time.Second))
	require.NoError(t, err)
	w.admin = admin
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, admin.Admin().CreateTopic(ctx, "grows", 3, nil))
	require.NoError(t, admin.Admin().CreateTopic(ctx, "stays", 5, nil))

	var watching, producing sync.WaitGroup
	stopWatch, stopProduce := context.WithCancel(ctx)
	watching.Go(func() { w.watch(stopWatch) })
	watching.Go(func() { w.feel(stopWatch) })
	produceCtx, endProduce := context.WithCancel(ctx)
	topics := make(chan string, 10) // that come later
	for i := range 2 {
		producing.Go(func() { w.produce(produceCtx, i, topics) })
	}
	for range 3 {
		w.join("", true)
	}
	w.plan(ctx, duration, topics)

	// The faults are over.
	w.calm.Store(true)
	for _, m := range w.members {
		w.unblock(m)
	}
	w.members = slices.DeleteFunc(w.members, func(m *tortureMember) bool { return !w.alive(m) })
	for range 3 {
		w.join("", true)
	}
	endProduce()
	producing.Wait()
	w.drain(ctx)
	for _, m := range w.members {
		w.end(m, w.rng.IntN(3))
	}
	w.ends.Wait()
	w.empty(ctx)
	stopProduce()
	watching.Wait()
	w.readBack()
	require.NoError(t, admin.Close())
	w.report()
}

// dial reaches the broker as it is now.
func (w *torture) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	w.mu.Lock()
	addr := w.addr
	w.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func (w *torture) current() *Broker {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broker
}

// start starts a broker over what the last one has left.
func (w *torture) start(addr string) {
	b, err := NewBroker(WithStorage(w.storage), WithLogger(nil))
	require.NoError(w.t, err)
	var at net.Addr
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 500 { // The port may be taken for a moment.
		if at, err = b.Listen(addr); err == nil {
			break
		}
		<-tick.C
	}
	require.NoError(w.t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broker, w.addr, w.restarted = b, at.String(), time.Now()
}

func (w *torture) restart() {
	w.note("broker closes")
	began := time.Now()
	require.NoError(w.t, w.current().Close())
	if d := time.Since(began); d > tortureClose {
		w.violation("Close of the broker took %v", d)
	}
	await(time.Duration(w.rng.IntN(250)) * time.Millisecond)
	w.start(w.addr)
	w.note("broker is back")
	w.count("broker restarts")
}

// await lets time pass.
func await(d time.Duration) { <-time.After(d) }

func (w *torture) count(what string) { w.countN(what, 1) }

func (w *torture) countN(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

// note remembers an event, for whoever has to explain a violation.
func (w *torture) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, args...)
}

func (w *torture) noteLocked(format string, args ...any) {
	w.events = append(w.events, fmt.Sprintf("%9.3f %s", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...)))
	if len(w.events) > 20_000 {
		w.events = append([]string(nil), w.events[10_000:]...)
	}
}

func (w *torture) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violationLocked(nil, format, args...)
}

// violationLocked fails the test, and says what has happened lately where about says.
func (w *torture) violationLocked(about []string, format string, args ...any) {
	text := fmt.Sprintf("%9.3f %s", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...))
	w.violations = append(w.violations, text)
	if n := len(w.violations); n <= 5 {
		var lately []string
		for _, e := range slices.Backward(w.events) {
			if len(lately) >= 60 {
				break
			}
			if strings.Contains(e, "broker") || slices.ContainsFunc(about, func(a string) bool { return strings.Contains(e+" ", a+" ") }) {
				lately = append(lately, e)
			}
		}
		slices.Reverse(lately)
		w.t.Errorf("violation: %s\n  lately:\n  %s", text, strings.Join(lately, "\n  "))
	} else if n <= 50 {
		w.t.Errorf("violation: %s", text)
	}
}

func (w *torture) partLocked(tp TopicPartition) *torturePartition {
	p := w.parts[tp]
	if p == nil {
		p = &torturePartition{
			running: make(map[*tortureClaim]struct{}), committed: -1, described: -1, atKeep: -1,
			floor: make(map[int64]int64), asked: make(map[int64]int64),
		}
		w.parts[tp] = p
	}
	return p
}

// plan does something to the group every now and then.
func (w *torture) plan(ctx context.Context, duration time.Duration, topics chan<- string) {
	end := time.Now().Add(duration)
	grown, lates := int32(3), 0
	type action struct {
		weight int
		do     func()
	}
	actions := []action{
		{14, func() {
			if len(w.members) < tortureMembers {
				w.join("", w.rng.IntN(5) > 0)
			}
		}},
		{9, func() {
			if len(w.members) > 2 {
				m := w.take()
				w.count("left")
				w.end(m, w.rng.IntN(3))
			}
		}},
		{6, func() {
			if len(w.members) > 1 {
				w.kill(w.take())
			}
		}},
		{8, func() { w.stall(w.pick()) }},
		{4, func() { // It is to give something up while it stalls.
			w.stall(w.pick())
			await(100 * time.Millisecond)
			if len(w.members) < tortureMembers {
				w.join("", true)
			}
		}},
		{4, func() { // It leaves while it stalls.
			if len(w.members) > 2 {
				m := w.take()
				w.stall(m)
				await(100 * time.Millisecond)
				w.count("left")
				w.end(m, w.rng.IntN(3))
			}
		}},
		{6, func() {
			if m := w.pick(); m != nil {
				w.mu.Lock()
				m.fail = 1 + w.rng.IntN(2)
				w.mu.Unlock()
			}
		}},
		{8, func() {
			if m := w.pick(); m != nil {
				w.block(m, time.Duration(100+w.rng.IntN(3000))*time.Millisecond)
			}
		}},
		{6, func() { w.cutNow(w.pick()) }},
		{7, func() { w.static() }},
		{1, func() { w.restart() }},
		{2, func() {
			err := w.admin.Admin().Rebalance(ctx, tortureGroup)
			if err != nil && !errors.Is(err, ErrGroupNotFound) {
				w.violation("Rebalance: %v", err)
			}
		}},
		{2, func() {
			if grown < 12 {
				if err := w.admin.Admin().CreatePartitions(ctx, "grows", grown+1); err != nil {
					w.violation("CreatePartitions: %v", err)
					return
				}
				grown++
				w.note("grows has %d partitions", grown)
			}
		}},
		{2, func() {
			if lates >= 3 {
				return
			}
			lates++
			name := fmt.Sprint(torturePattern, lates)
			if err := w.admin.Admin().CreateTopic(ctx, name, 2, nil); err != nil {
				w.violation("CreateTopic: %v", err)
				return
			}
			w.note("%s is there", name)
			topics <- name
			topics <- name
		}},
	}
	total := 0
	for _, a := range actions {
		total += a.weight
	}
	// Even a short run has each of them once; what needs members comes later.
	must := w.rng.Perm(len(actions))
	for time.Now().Before(end) {
		w.members = slices.DeleteFunc(w.members, func(m *tortureMember) bool { return !w.alive(m) })
		if len(must) > 0 {
			actions[must[0]].do()
			must = must[1:]
		} else {
			n := w.rng.IntN(total)
			for _, a := range actions {
				if n -= a.weight; n < 0 {
					a.do()
					break
				}
			}
		}
		w.mu.Lock()
		hopeless := len(w.violations) > 50
		w.mu.Unlock()
		if hopeless {
			return
		}
		await(time.Duration(20+w.rng.IntN(400)) * time.Millisecond)
	}
}

// alive tells that a member has neither died nor ended by itself.
func (w *torture) alive(m *tortureMember) bool {
	select {
	case <-m.done:
		w.end(m, 0)
		return false
	default:
		return true
	}
}

func (w *torture) pick() *tortureMember {
	if len(w.members) == 0 {
		return nil
	}
	return w.members[w.rng.IntN(len(w.members))]
}

func (w *torture) take() *tortureMember {
	i := w.rng.IntN(len(w.members))
	m := w.members[i]
	w.members = slices.Delete(w.members, i, i+1)
	return m
}

// join starts a member.
func (w *torture) join(instance string, everything bool) *tortureMember {
	w.serial++
	m := &tortureMember{
		w: w, n: w.serial, kind: w.rng.IntN(kinds), instance: instance,
		session:   time.Duration(1000+w.rng.IntN(1000)) * time.Millisecond,
		rebalance: time.Second,
		weather:   !w.calm.Load() && w.rng.IntN(2) == 0,
		rng:       rand.New(rand.NewPCG(w.seed, uint64(w.serial))),
		topics:    []string{"grows", "stays", "^" + torturePattern},
		done:      make(chan struct{}), closed: make(chan struct{}),
		claims: make(map[*Session]int), over: make(map[*Session]time.Time),
	}
	if w.rng.IntN(3) == 0 {
		m.rebalance = 3500 * time.Millisecond // More than a session timeout: nobody takes before that.
	}
	if !everything {
		m.topics = m.topics[:1+w.rng.IntN(2)]
	}
	m.proxy = &faultProxy{upstream: w.dial, script: m.script}
	m.proxyAddr = m.proxy.listen(w.t, "")
	client, err := New(WithBrokers("broker.invalid:1"), WithDialer(m.dial), WithLogger(nil), WithClientID(m.String()),
		WithRequestTimeout(time.Second), WithConnectionTimeout(time.Second))
	require.NoError(w.t, err)
	m.client = client
	opts := []GroupOption{
		WithSessionTimeout(m.session), WithRebalanceTimeout(m.rebalance), WithHeartbeatInterval(tortureHB),
		WithAutoCommit(time.Duration(50+w.rng.IntN(200)) * time.Millisecond), WithInstanceID(instance),
	}
	if m.kind == kindManual {
		opts = append(opts, WithAutoCommit(0))
	}
	if m.kind == kindContiguous {
		opts = append(opts, WithContiguousMarks())
	}
	consumerOpts := []ConsumerOption{
		WithStartOffset(OffsetOldest), WithFetchMaxWait(200 * time.Millisecond),
		WithFetchMaxBytes(100 + w.rng.IntN(5000)), WithMessageBuffer(1 + w.rng.IntN(20)),
	}
	for _, o := range consumerOpts {
		opts = append(opts, o)
	}
	m.group, err = client.ConsumerGroup(tortureGroup, opts...)
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(w.t.Context())
	m.cancel = cancel
	if old := w.holders[instance]; old != nil {
		w.mu.Lock()
		old.replaced = time.Now()
		w.mu.Unlock()
	}
	if instance != "" {
		w.holders[instance] = m
	}
	w.note("%s joins, kind %d, session %v, rebalance %v, weather %v, instance %q", m, m.kind, m.session, m.rebalance, m.weather, instance)
	w.count("members joined")
	w.ends.Go(m.notices)
	w.ends.Go(func() { m.consume(ctx) })
	w.members = append(w.members, m)
	return m
}

func (m *tortureMember) String() string { return fmt.Sprint("m", m.n) }

// consume has the member consume until it is closed, whatever its handlers do.
func (m *tortureMember) consume(ctx context.Context) {
	defer close(m.done)
	w := m.w
	for {
		err := m.group.Consume(ctx, m.topics, m)
		panicked := (*PanicError)(nil)
		w.mu.Lock()
		over := m.leaving || !m.killed.IsZero()
		excused := w.excuseLocked(m, time.Now()) != ""
		w.noteLocked("%s Consume returned %v", m, err)
		again := false
		switch {
		case err == nil && over, errors.Is(err, ErrClosed) && over:
		case errors.As(err, &panicked) && panicked.Value == torturePanic:
			w.counts["panics"]++
			again = true
		case errors.Is(err, errTorture):
			w.counts["handlers that failed"]++
			again = true
		case errors.Is(err, ErrFenced) && !m.replaced.IsZero():
			w.counts["members fenced"]++
		case over:
			// Its last commit may not get through.
			if !excused && !errors.Is(err, ErrFenced) && !errors.Is(err, errLate) {
				w.violationLocked([]string{m.String()}, "%s: Consume returned %v", m, err)
			}
		default:
			w.violationLocked([]string{m.String()}, "%s: Consume returned %v", m, err)
		}
		w.mu.Unlock()
		if !again {
			return
		}
	}
}

// notices reads what the member reports.
func (m *tortureMember) notices() {
	w := m.w
	for err := range m.group.Errors() {
		w.mu.Lock()
		if ce := (*ConsumerError)(nil); !errors.As(err, &ce) || errors.Is(err, ErrFenced) {
			w.noteLocked("%s reports %v", m, err)
		}
		switch {
		case errors.Is(err, ErrUnknownMember) && strings.Contains(err.Error(), "joining again"):
			w.counts["memberships lost"]++
			if why := w.excuseLocked(m, time.Now()); why == "" {
				w.violationLocked([]string{m.String()}, "%s lost its membership for no reason: %v", m, err)
			}
		case errors.Is(err, ErrFenced) && strings.Contains(err.Error(), "commit"):
			w.counts["fenced commits"]++
		}
		w.mu.Unlock()
	}
}

// excuseLocked says why a member may have lost partitions without having given them
// up; "" if there is no reason.
func (w *torture) excuseLocked(m *tortureMember, now time.Time) string {
	switch {
	case !m.killed.IsZero():
		return "dead"
	case !m.replaced.IsZero():
		return "replaced"
	case m.blocked, now.Before(m.disturbed):
		return "connections harmed"
	case now.Sub(w.starved) < m.session+m.rebalance:
		return "machine stalled"
	}
	return ""
}

// disturb notes that the member's connections were harmed.
func (m *tortureMember) disturb(what string, d time.Duration) {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["connections "+what]++
	w.noteLocked("%s connection %s %v", m, what, d)
	m.disturbLocked(d)
}

func (m *tortureMember) disturbLocked(d time.Duration) {
	until := time.Now().Add(d + m.session + m.rebalance + time.Second)
	if until.After(m.disturbed) {
		m.disturbed = until
	}
}

// dial is the member's dialer.
func (m *tortureMember) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	m.w.mu.Lock()
	refusing := m.refusing
	m.w.mu.Unlock()
	if refusing {
		return nil, errors.New("refused")
	}
	return new(net.Dialer).DialContext(ctx, "tcp", m.proxyAddr)
}

// script is what becomes of the member's n-th connection.
func (m *tortureMember) script(n int) (up, down stream) {
	w := m.w
	w.mu.Lock()
	refusing := m.refusing
	w.mu.Unlock()
	if refusing {
		return cutAfter(0), cutAfter(0)
	}
	rng := rand.New(rand.NewPCG(w.seed, uint64(m.n)<<20+uint64(n)))
	weatherUp, weatherDown := proxiedFrame.pass, proxiedFrame.pass
	if m.weather {
		weatherUp, weatherDown = m.weatherOf(rng), m.weatherOf(rng)
	}
	tap := requests(func(f proxiedFrame) verdict {
		if f.kind == requestCommitOffset {
			m.tap(f.text)
		}
		return weatherUp(f)
	})
	return tap, eachFrame(func(_ *proxyLink, f *proxiedFrame) verdict { return weatherDown(*f) })
}

// weatherOf decides how a direction is harmed. Each direction calls it from one
// goroutine.
func (m *tortureMember) weatherOf(rng *rand.Rand) func(proxiedFrame) verdict {
	w := m.w
	last := 5 + rng.IntN(600)
	own := rand.New(rand.NewPCG(rng.Uint64(), 0))
	switch rng.IntN(6) {
	case 0:
		return func(f proxiedFrame) verdict {
			if f.n < last || w.calm.Load() {
				return f.pass()
			}
			m.disturb("cut", 0)
			if own.IntN(2) == 0 {
				return f.truncated()
			}
			return verdict{then: thenCut}
		}
	case 1:
		return func(f proxiedFrame) verdict {
			if f.n < last || w.calm.Load() {
				return f.pass()
			}
			m.disturb("half open", pingAfter+pingTimeout) // So long it is not noticed.
			return verdict{then: thenSilence}
		}
	case 2, 3:
		return func(f proxiedFrame) verdict {
			if own.IntN(100) > 0 || w.calm.Load() {
				return f.pass()
			}
			d := time.Duration(own.IntN(800)) * time.Millisecond
			m.disturb("delayed", d)
			return f.delayed(d)
		}
	default:
		return proxiedFrame.pass
	}
}

// tap remembers with which epochs commits were asked for.
func (m *tortureMember) tap(frame []byte) {
	var envelope wireRequest
	var req commitOffsetRequest
	w := m.w
	if envelope.decode(frame) != nil || decodePayload(envelope.payload, &req) != nil {
		w.violation("%s sends a commit that cannot be read: %s", m, frame)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range req.Offsets {
		p := w.partLocked(TopicPartition{o.Topic, o.Partition})
		p.asked[o.Offset] = max(p.asked[o.Offset], o.Epoch)
	}
}

// stall has a member stall in one to three of its partitions.
func (w *torture) stall(m *tortureMember) {
	if m == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	m.stall, m.stalls = m.rebalance+time.Duration(w.rng.IntN(1500))*time.Millisecond, 1+w.rng.IntN(3)
}

// cutNow cuts what a member has.
func (w *torture) cutNow(m *tortureMember) {
	if m == nil {
		return
	}
	m.disturb("cut", 0)
	m.proxy.cutAll()
}

// block keeps a member off the broker for a while.
func (w *torture) block(m *tortureMember, d time.Duration) {
	w.mu.Lock()
	if m.blocked {
		w.mu.Unlock()
		return
	}
	m.blocked, m.refusing = true, true
	w.counts["members cut off"]++
	w.noteLocked("%s is cut off for %v", m, d)
	w.mu.Unlock()
	m.proxy.cutAll()
	w.ends.Go(func() {
		select {
		case <-time.After(d):
		case <-m.closed:
		}
		w.unblock(m)
	})
}

func (w *torture) unblock(m *tortureMember) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.blocked && m.killed.IsZero() {
		m.blocked, m.refusing = false, false
		m.disturbLocked(0)
		w.noteLocked("%s is no longer cut off", m)
	}
}

// kill has a member die without a word. What runs of it is a zombie, until its own
// session timeout.
func (w *torture) kill(m *tortureMember) {
	w.mu.Lock()
	m.killed, m.refusing = time.Now(), true
	w.counts["members died"]++
	w.noteLocked("%s dies", m)
	w.mu.Unlock()
	m.proxy.cutAll()
	later := time.Duration(w.rng.IntN(2000)) * time.Millisecond
	w.ends.Go(func() {
		await(m.session + tortureSlack)
		w.mu.Lock()
		for tp, p := range w.parts {
			for c := range p.running {
				if c.m == m && c.over.IsZero() {
					w.violationLocked([]string{m.String(), tp.String()}, "%s died %v ago, its claim of %s goes on: zombie", m, time.Since(m.killed), tp)
				}
			}
		}
		w.mu.Unlock()
		await(later)
		w.end(m, 0)
	})
}

// static restarts a member with an instance ID, in one of the ways in which that
// happens, or starts it.
func (w *torture) static() {
	instance := fmt.Sprint("i", w.rng.IntN(3))
	i := slices.IndexFunc(w.members, func(m *tortureMember) bool { return m.instance == instance })
	if i < 0 {
		if len(w.members) < tortureMembers {
			w.join(instance, true)
		}
		return
	}
	old := w.members[i]
	w.members = slices.Delete(w.members, i, i+1)
	w.count("static members restarted")
	how := w.rng.IntN(3)
	w.note("%s is restarted, way %d", old, how)
	switch how {
	case 0:
		w.end(old, 0)
		<-old.closed
	case 1:
		w.kill(old)
	}
	m := w.join(instance, true)
	if how != 2 {
		return
	}
	// Both live, and one is to be fenced. Which, is not certain if the broker
	// restarts or connections break meanwhile.
	w.mu.Lock()
	m.replaced = old.replaced
	w.mu.Unlock()
	w.ends.Go(func() {
		select {
		case <-old.done:
		case <-m.done:
		case <-time.After(20 * time.Second):
			w.violation("neither %s nor %s of instance %s was fenced", old, m, instance)
		}
		w.end(old, 0)
	})
}

// end ends a member in one of the ways there are, in the background.
func (w *torture) end(m *tortureMember, how int) {
	w.mu.Lock()
	first := !m.leaving
	m.leaving = true
	if first {
		w.noteLocked("%s is closed", m)
	}
	w.mu.Unlock()
	if !first {
		return
	}
	w.ends.Go(func() {
		defer close(m.closed)
		bounded := func(what string, f func()) {
			began := time.Now()
			f()
			if d := time.Since(began); d > tortureClose {
				w.violation("%s: %s took %v", m, what, d)
			}
		}
		switch how {
		case 0:
			bounded("Close of the group", func() {
				if err := m.group.Close(); err != nil {
					w.violation("%s: Close of the group: %v", m, err)
				}
			})
		case 1:
			m.cancel()
			bounded("Consume after its context", func() { <-m.done })
		}
		bounded("Close of the client", func() {
			if err := m.client.Close(); err != nil {
				w.violation("%s: Close of the client: %v", m, err)
			}
		})
		bounded("Consume after Close", func() { <-m.done })
		m.cancel()
		m.proxy.stop()
		w.mu.Lock()
		w.noteLocked("%s has ended", m)
		for tp, p := range w.parts {
			for c := range p.running {
				if c.m == m {
					w.violationLocked([]string{m.String()}, "%s is closed, its handler of %s is not", m, tp)
				}
			}
		}
		w.mu.Unlock()
	})
}

// Setup is the handler's.
func (m *tortureMember) Setup(s *Session) error {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := m.claims[s]; ok {
		w.violationLocked(nil, "%s: Setup was called twice", m)
	}
	m.claims[s] = 0
	w.counts["sessions"]++
	context.AfterFunc(s.Context(), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		m.over[s] = time.Now()
	})
	return nil
}

// Cleanup is the handler's.
func (m *tortureMember) Cleanup(s *Session) error {
	w := m.w
	if m.kind == kindManual {
		m.commit(s, nil, 0)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := m.claims[s]; n != 0 {
		w.violationLocked(nil, "%s: Cleanup while %d claims run", m, n)
	}
	m.claims[s] = -1
	return nil
}

// ConsumeClaim is the handler's.
func (m *tortureMember) ConsumeClaim(s *Session, c *Claim) error {
	k := m.begin(s, c)
	defer m.finish(k, context.AfterFunc(c.Context(), func() {
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		k.over, k.cause = time.Now(), context.Cause(c.Context())
		m.w.noteLocked("%s claim of %s in epoch %d is over: %v", m, k.tp, k.epoch, k.cause)
	}))
	metadata := fmt.Sprint("e", k.epoch)
	each := func(_ context.Context, x *Message) error { return k.handle(x) }
	switch m.kind {
	case kindEach:
		return Each(each).ConsumeClaim(s, c)
	case kindEachSideBySide:
		k.keys = make(map[string]int64)
		return Each(each, Concurrency(4)).ConsumeClaim(s, c)
	case kindMessages:
		n := 0
		for x := range c.Messages() {
			if err := k.handle(x); err != nil {
				return err
			}
			s.MarkMessage(x, metadata)
			if n++; n == 300 {
				return nil // It is called again.
			}
		}
	case kindManual:
		var last int64
		for x := range c.Messages() {
			if err := k.handle(x); err != nil {
				return err
			}
			s.MarkMessage(x, metadata)
			last = x.Offset + 1
			if last%16 == 0 || len(c.Messages()) == 0 {
				m.commit(s, k, last)
			}
		}
		m.commit(s, k, last)
	case kindAll:
		for x, err := range c.All(c.Context()) {
			if err == nil {
				err = k.handle(x)
			}
			if err != nil {
				return err
			}
			s.MarkOffset(x.Topic, x.Partition, x.Offset+1, metadata)
		}
	case kindContiguous:
		var held []*Message
		for x := range c.Messages() {
			if err := k.handle(x); err != nil {
				return err
			}
			held = append(held, x)
			if len(held) < 4 && len(c.Messages()) > 0 {
				continue
			}
			for _, x := range slices.Backward(held) {
				s.MarkMessage(x, metadata)
			}
			held = held[:0]
		}
	}
	return nil
}

// commit commits what is marked, and checks that the broker has it.
func (m *tortureMember) commit(s *Session, k *tortureClaim, next int64) {
	began := time.Now()
	err := s.Commit()
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["calls of Commit"]++
	if d := time.Since(began); d > m.rebalance+tortureSlack {
		w.violationLocked([]string{m.String()}, "%s: Commit took %v", m, d)
	}
	switch {
	case errors.Is(err, ErrFenced):
		w.counts["fenced commits"]++
	case err != nil:
		w.counts["failed calls of Commit"]++
		// After that the group goes on without the member.
		over := m.over[s]
		if w.excuseLocked(m, time.Now()) == "" && (over.IsZero() || time.Since(over) < m.rebalance-tortureSlack) {
			w.violationLocked([]string{m.String()}, "%s: Commit: %v", m, err)
		}
	case k != nil && next > 0 && w.partLocked(k.tp).committed < next && w.partLocked(k.tp).begun == k.epoch:
		w.violationLocked([]string{m.String(), k.tp.String()}, "%s: Commit of %s to %d has returned, the broker has %d", m, k.tp, next, w.partLocked(k.tp).committed)
	}
}

// begin checks that a claim may begin.
func (m *tortureMember) begin(s *Session, c *Claim) *tortureClaim {
	w := m.w
	tp := TopicPartition{c.Topic(), c.Partition()}
	k := &tortureClaim{m: m, s: s, tp: tp, epoch: c.Epoch(), next: max(0, c.InitialOffset())}
	about := []string{m.String(), tp.String()}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	p := w.partLocked(tp)
	w.noteLocked("%s begins %s in epoch %d at %d, committed is %d", m, tp, k.epoch, c.InitialOffset(), p.committed)
	w.counts["claims begun"]++
	if _, ok := m.claims[s]; !ok {
		w.violationLocked(about, "%s: a claim begins before Setup", m)
	}
	m.claims[s]++
	before, again := w.epochs[k.epoch]
	w.epochs[k.epoch] = tortureGrant{tp, s}
	if k.epoch <= 0 || again && before != (tortureGrant{tp, s}) {
		w.violationLocked(about, "%s begins %s in epoch %d, which was %s's", m, tp, k.epoch, before.tp)
	}
	if k.epoch < p.begun {
		why := w.excuseLocked(m, now)
		w.counts["claims begun late: "+why]++
		if why == "" {
			w.violationLocked(about, "%s begins %s in epoch %d, %d has begun", m, tp, k.epoch, p.begun)
		}
	}
	for other := range p.running {
		if other.epoch == k.epoch {
			w.violationLocked(about, "%s begins %s in epoch %d, which runs", m, tp, k.epoch)
		}
		if other.epoch < k.epoch {
			w.overlapLocked(now, other, k)
		}
	}
	p.begun = max(p.begun, k.epoch)
	p.running[k] = struct{}{}
	if !again {
		initial := max(-1, c.InitialOffset())
		if initial > p.committed {
			w.violationLocked(about, "%s begins %s at %d, committed is %d", m, tp, initial, p.committed)
		}
		if floor, ok := p.floor[k.epoch]; ok && initial < floor {
			w.violationLocked(about, "%s begins %s in epoch %d at %d, committed was %d before the grant", m, tp, k.epoch, initial, floor)
		}
		if initial < p.committed {
			w.counts["claims that a commit has overtaken"]++
		}
		// What was marked is committed before the next one begins.
		if l := p.last; l != nil && len(p.running) == 1 && l.epoch < k.epoch && max(0, initial) < l.marked && w.excuseLocked(l.m, now) == "" {
			w.violationLocked([]string{m.String(), l.m.String(), tp.String()}, "%s begins %s at %d, %s has marked up to %d and had returned", m, tp, initial, l.m, l.marked)
		}
	}
	p.last = nil
	return k
}

// overlapLocked checks that k may begin while the handler of an earlier claim runs.
func (w *torture) overlapLocked(now time.Time, earlier, k *tortureClaim) {
	m := earlier.m
	about := []string{m.String(), k.m.String(), k.tp.String()}
	why := w.excuseLocked(m, now)
	if why == "" && earlier.stalling > 0 && now.Sub(earlier.stalled) >= m.rebalance-tortureSlack &&
		!earlier.over.IsZero() && now.Sub(earlier.over) >= m.rebalance-tortureSlack {
		why = "stalled"
	}
	w.counts["overlaps: "+why]++
	switch {
	case why == "":
		w.violationLocked(about, "%s and %s both read %s, in epochs %d and %d; the first one's claim is over: %v", m, k.m, k.tp, earlier.epoch, k.epoch, !earlier.over.IsZero())
	case !m.killed.IsZero() && m.replaced.IsZero() && earlier.over.IsZero() && m.rebalance > m.session+time.Second && now.Sub(m.killed) < m.rebalance-tortureSlack:
		// It was dead and had the time of its session; then it knows.
		w.violationLocked(about, "zombie: %s begins %s %v after the death of %s, whose claim is not over", k.m, k.tp, now.Sub(m.killed), m)
	}
}

func (m *tortureMember) finish(k *tortureClaim, stop func() bool) {
	w := m.w
	stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	m.claims[k.s]--
	delete(w.parts[k.tp].running, k)
	if errors.Is(k.cause, ErrRebalanced) {
		w.counts["claims revoked"]++
	}
	w.noteLocked("%s leaves %s in epoch %d", m, k.tp, k.epoch)
	if p := w.parts[k.tp]; k.epoch == p.begun && (k.over.IsZero() || time.Since(k.over) < m.rebalance-tortureSlack) &&
		(m.kind == kindEach || m.kind == kindMessages || m.kind == kindAll) && w.excuseLocked(m, time.Now()) == "" {
		p.last = k
	}
}

// handle is what the handlers do with a message.
func (k *tortureClaim) handle(x *Message) error {
	m := k.m
	w := m.w
	w.mu.Lock()
	if x.Topic != k.tp.Topic || x.Partition != k.tp.Partition {
		w.violationLocked(nil, "%s: a claim of %s brings a message of %s/%d", m, k.tp, x.Topic, x.Partition)
	}
	if k.keys == nil {
		if x.Offset != k.next {
			w.violationLocked([]string{m.String(), k.tp.String()}, "%s: %s in epoch %d: offset %d comes, %d was to", m, k.tp, k.epoch, x.Offset, k.next)
		}
		k.next = x.Offset + 1
	} else if last, ok := k.keys[string(x.Key)]; x.Offset < k.next || ok && x.Offset <= last {
		w.violationLocked(nil, "%s: %s in epoch %d: key %s: offset %d after %d", m, k.tp, k.epoch, x.Key, x.Offset, last)
	}
	if k.keys != nil {
		k.keys[string(x.Key)] = x.Offset
	}
	work := time.Duration(0)
	if m.rng.IntN(10) == 0 {
		work = time.Duration(m.rng.IntN(5000)) * time.Microsecond
	}
	stall, fail := time.Duration(0), m.fail
	m.fail = 0
	if m.stalls > 0 && k.stalling == 0 {
		m.stalls--
		stall = m.stall
	}
	if stall > 0 {
		w.counts["handlers stalled"]++
		if k.stalling == 0 {
			k.stalled = time.Now()
		}
		k.stalling++
		w.noteLocked("%s stalls in %s for %v", m, k.tp, stall)
	}
	w.mu.Unlock()
	if work+stall > 0 {
		await(work + stall) // Whatever its context says.
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if stall > 0 {
		k.stalling--
		w.noteLocked("%s goes on in %s", m, k.tp)
	}
	switch fail {
	case 1:
		panic(torturePanic)
	case 2:
		return errTorture
	}
	p := w.partLocked(k.tp)
	for int64(len(p.handled)) <= x.Offset {
		p.handled = append(p.handled, 0)
	}
	p.handled[x.Offset]++
	k.marked = x.Offset + 1 // When its handler marks it, before it returns.
	return nil
}

// tortureStorage sees what is kept, in the order in which it is, and takes its time.
type tortureStorage struct {
	Storage
	w *torture
}

func (s *tortureStorage) dawdle() {
	if rand.IntN(20) == 0 && !s.w.calm.Load() {
		await(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
}

// Close leaves the storage to the next broker.
func (s *tortureStorage) Close() error { return nil }

func (s *tortureStorage) PutGroup(ctx context.Context, id string, state []byte) error {
	w := s.w
	var kept groupState
	if err := json.Unmarshal(state, &kept); err != nil {
		w.violation("kept state: %v", err)
	}
	w.mu.Lock()
	if kept.Generation < w.keptGeneration || kept.Epoch < w.keptEpoch {
		w.violationLocked(nil, "the state that is kept goes back: generation %d after %d, epoch %d after %d", kept.Generation, w.keptGeneration, kept.Epoch, w.keptEpoch)
	}
	w.keptGeneration, w.keptEpoch = kept.Generation, kept.Epoch
	for _, slot := range kept.Slots {
		p := w.partLocked(TopicPartition{slot.Topic, slot.Partition})
		if slot.Epoch > p.keptEpoch {
			p.keptEpoch = slot.Epoch
			p.floor[slot.Epoch] = p.atKeep
		} else if slot.Epoch < p.keptEpoch && slot.Epoch != 0 {
			w.violationLocked(nil, "%s/%d: epoch %d is kept after %d", slot.Topic, slot.Partition, slot.Epoch, p.keptEpoch)
		}
	}
	for _, p := range w.parts {
		p.atKeep = p.committed
	}
	w.mu.Unlock()
	s.dawdle()
	return s.Storage.PutGroup(ctx, id, state)
}

func (s *tortureStorage) PutOffsets(ctx context.Context, id string, offsets []StoredOffset) error {
	w := s.w
	w.mu.Lock()
	for _, o := range offsets {
		w.commitLocked(o)
	}
	w.mu.Unlock()
	s.dawdle()
	err := s.Storage.PutOffsets(ctx, id, offsets)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range offsets {
		tp := TopicPartition{o.Topic, o.Partition}
		if p := w.partLocked(tp); err == nil {
			p.committed = max(p.committed, o.Offset)
			w.noteLocked("committed: %s to %d, %s", tp, o.Offset, o.Metadata)
		}
	}
	return err
}

// commitLocked checks a commit that the broker has accepted.
func (w *torture) commitLocked(o StoredOffset) {
	tp := TopicPartition{o.Topic, o.Partition}
	p := w.partLocked(tp)
	w.counts["commits"]++
	about := []string{tp.String()}
	if o.Offset < p.committed {
		w.violationLocked(about, "%s: commit of %d after %d", tp, o.Offset, p.committed)
	}
	for p.covered < int64(len(p.handled)) && p.handled[p.covered] > 0 {
		p.covered++
	}
	if p.covered < o.Offset {
		w.violationLocked(about, "%s: commit of %d, %d was not handled", tp, o.Offset, p.covered)
	}
	epoch := p.asked[o.Offset]
	if exact, err := strconv.ParseInt(strings.TrimPrefix(o.Metadata, "e"), 10, 64); err == nil {
		epoch = min(epoch, exact)
	}
	if epoch < p.begun {
		w.violationLocked(about, "%s: commit of %d in epoch %d, %d has begun", tp, o.Offset, epoch, p.begun)
	}
	if o.Offset > p.committed {
		maps.DeleteFunc(p.asked, func(offset, _ int64) bool { return offset < o.Offset-1000 })
	}
}

// watch looks at the group all the time, by a connection that nothing happens to but
// the broker's restarts.
func (w *torture) watch(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		d, err := w.admin.Admin().DescribeGroup(asked, tortureGroup)
		cancel()
		w.mu.Lock()
		switch {
		case err == nil:
			w.counts["descriptions"]++
			w.describedLocked(d)
		case ctx.Err() == nil && !errors.Is(err, ErrGroupNotFound) && !connectionFault(err):
			w.violationLocked(nil, "DescribeGroup: %v", err)
		}
		w.mu.Unlock()
	}
}

func (w *torture) describedLocked(d *GroupDescription) {
	if d.Generation < w.generation {
		w.violationLocked(nil, "generation goes back: %d after %d, kept is %d", d.Generation, w.generation, w.keptGeneration)
	}
	w.generation = d.Generation
	for _, o := range d.Offsets {
		p := w.partLocked(TopicPartition{o.Topic, o.Partition})
		about := []string{TopicPartition{o.Topic, o.Partition}.String()}
		if o.Committed < p.described || o.Committed > p.committed {
			w.violationLocked(about, "%s: described as committed to %d, after %d; kept is %d", TopicPartition{o.Topic, o.Partition}, o.Committed, p.described, p.committed)
		}
		p.described = o.Committed
		if o.Epoch != 0 && o.Epoch < p.epoch {
			w.violationLocked(about, "%s: epoch goes back: %d after %d, kept is %d", TopicPartition{o.Topic, o.Partition}, o.Epoch, p.epoch, p.keptEpoch)
		}
		p.epoch = max(p.epoch, o.Epoch)
	}
}

// feel finds out when the machine does not let the process run: timeouts run all the
// same.
func (w *torture) feel(ctx context.Context) {
	const every, late = 10 * time.Millisecond, 200 * time.Millisecond
	last := time.Now()
	for pause(ctx, nil, every) {
		now := time.Now()
		if gap := now.Sub(last); gap > late {
			w.mu.Lock()
			w.starved = now
			w.counts["times that the machine stalled"]++
			w.noteLocked("broker and all stood still for %v", gap)
			w.mu.Unlock()
		}
		last = now
	}
}

// produce sends numbered messages until ctx ends.
func (w *torture) produce(ctx context.Context, id int, more <-chan string) {
	rng := rand.New(rand.NewPCG(w.seed, 1<<40+uint64(id)))
	harm := &tortureMember{w: w, n: 1<<20 + id, weather: true}
	proxy := &faultProxy{upstream: w.dial, script: func(n int) (up, down stream) {
		judge := harm.weatherOf(rand.New(rand.NewPCG(w.seed, 1<<41+uint64(id)<<20+uint64(n))))
		return eachFrame(func(_ *proxyLink, f *proxiedFrame) verdict { return judge(*f) }), nil
	}}
	defer proxy.stop()
	c, err := New(WithBrokers("broker.invalid:1"), WithDialer(proxy.dial), WithLogger(nil), WithRequestTimeout(time.Second))
	if err != nil {
		w.violation("producer: %v", err)
		return
	}
	defer c.Close()
	producer, err := c.SyncProducer(WithRetries(20), WithRetryBackoff(20*time.Millisecond))
	if err != nil {
		w.violation("producer: %v", err)
		return
	}
	topics := []string{"grows", "stays"}
	tick := time.NewTicker(8 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		case name := <-more:
			topics = append(topics, name)
		}
		topic := topics[rng.IntN(len(topics))]
		value := fmt.Sprintf("%s|%d|%d", topic, id, n)
		x := NewMessageWithKey(topic, fmt.Append(nil, rng.IntN(50)), []byte(value))
		// What has begun is finished: the end of the test is no fault.
		r, err := producer.Send(context.WithoutCancel(ctx), x)
		w.mu.Lock()
		if err != nil {
			w.counts["sends failed"]++
			w.noteLocked("Send: %v", err)
		} else {
			w.counts["messages sent"]++
			tp := TopicPartition{topic, r.Partition}
			if w.receipts[tp] == nil {
				w.receipts[tp] = make(map[int64]string)
			}
			if was, ok := w.receipts[tp][r.Offset]; ok {
				w.violationLocked(nil, "%s has offset %d for %s and for %s", tp, r.Offset, was, value)
			}
			w.receipts[tp][r.Offset] = value
		}
		w.mu.Unlock()
	}
}

// drain waits until all is handled and committed.
func (w *torture) drain(ctx context.Context) {
	began := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := w.admin.Admin().DescribeGroup(ctx, tortureGroup)
		if err == nil && d.Lag() == 0 && w.allHandled() == "" {
			w.t.Logf("drained after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > tortureDrain {
			w.violation("not drained after %v: %v; %s", tortureDrain, err, w.allHandled())
			if d != nil {
				w.t.Logf("state %s, generation %d", d.State, d.Generation)
				for _, o := range d.Offsets {
					w.t.Logf("%s: committed %d of %d, epoch %d of %s", TopicPartition{o.Topic, o.Partition}, o.Committed, o.HighWaterMark, o.Epoch, o.MemberID)
				}
			}
			for _, m := range w.members {
				w.t.Logf("%s: kind %d, %s", m, m.kind, m.group.Status())
			}
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// logs are the logs of the broker.
func (w *torture) logs() map[TopicPartition]PartitionLog {
	b := w.current()
	logs := make(map[TopicPartition]PartitionLog)
	for _, name := range []string{"grows", "stays", torturePattern + "1", torturePattern + "2", torturePattern + "3"} {
		topic, err := b.service.topics.get(name)
		if err != nil {
			continue
		}
		for _, p := range topic.partitions {
			logs[TopicPartition{name, p.id}] = p.log
		}
	}
	return logs
}

// allHandled says what has not been handled.
func (w *torture) allHandled() string {
	logs := w.logs()
	w.mu.Lock()
	defer w.mu.Unlock()
	var missing []string
	for tp, log := range logs {
		_, end := log.Bounds()
		p := w.partLocked(tp)
		for offset := range end {
			if offset >= int64(len(p.handled)) || p.handled[offset] == 0 {
				missing = append(missing, fmt.Sprintf("%s: %d of %d is not handled", tp, offset, end))
				break
			}
		}
	}
	return strings.Join(missing, "; ")
}

// empty waits until the group has no members: static ones are there until their
// session timeout.
func (w *torture) empty(ctx context.Context) {
	timeout := time.After(tortureClose)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := w.admin.Admin().DescribeGroup(ctx, tortureGroup)
		if err == nil && d.State == groupEmpty {
			if lag := d.Lag(); lag != 0 {
				w.violation("the last members have left %d messages uncommitted", lag)
			}
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			w.violation("the group is not empty: %+v, %v", d, err)
			return
		}
	}
}

// readBack compares the logs with receipts and what was handled.
func (w *torture) readBack() {
	if missing := w.allHandled(); missing != "" {
		w.violation("lost: %s", missing)
	}
	for tp, log := range w.logs() {
		values := w.readLog(tp, log)
		w.mu.Lock()
		for offset, value := range w.receipts[tp] {
			if offset >= int64(len(values)) || values[offset] != value {
				w.violationLocked(nil, "%s: no %s at offset %d", tp, value, offset)
			}
		}
		p := w.partLocked(tp)
		w.counts["messages stored"] += len(values)
		for _, n := range p.handled {
			w.counts["times a message was handled"] += int(n)
			if n > 1 {
				w.counts["messages handled more than once"]++
			}
		}
		if p.committed != int64(len(values)) && len(values) > 0 {
			w.violationLocked([]string{tp.String()}, "%s: committed is %d of %d", tp, p.committed, len(values))
		}
		w.mu.Unlock()
	}
}

func (w *torture) readLog(tp TopicPartition, log PartitionLog) (values []string) {
	_, end := log.Bounds()
	for int64(len(values)) < end {
		read, err := log.Read(w.t.Context(), int64(len(values)), 1<<20)
		require.NoError(w.t, err)
		for rest := bytes.Clone(read.Batches); len(rest) > 0; {
			cut, r, err := parseBatch(rest)
			require.NoError(w.t, err)
			rest = r
			records := cut.records()
			for {
				var x Message
				more, err := records.next(&x)
				require.NoError(w.t, err)
				if !more {
					break
				}
				require.Equal(w.t, int64(len(values)), x.Offset, tp)
				values = append(values, string(x.Value))
			}
		}
		read.Release()
	}
	return values
}

// report prints what has happened.
func (w *torture) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["generation"] = int(w.generation)
	w.counts["violations"] = len(w.violations)
	var text strings.Builder
	fmt.Fprintf(&text, "seed %d, %v\n", w.seed, time.Since(w.began).Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		fmt.Fprintf(&text, "%8d %s\n", w.counts[what], what)
	}
	w.t.Log(text.String())
}
