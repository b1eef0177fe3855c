package robust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
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

// The torture of the log: a broker in a process of its own, which is killed at random
// moments and started again on the same directory and port, under load from producers,
// a consumer group and an admin. What it has promised before is checked after each start,
// and all of it at the end.
//
//	make torture-kill KILLS=100 SEED=42
//
// Without ROBUST_KILLS (how often each variant is killed) it is a smoke test of a few
// seconds. The seed decides the plan, not the scheduler: a run is not repeated exactly
// by it.

const (
	killGroup    = "torture"
	killSegment  = 8 << 10 // so that there are many
	killStart    = 30 * time.Second
	killDrain    = time.Minute // without any progress after the last kill
	killSession  = 2 * time.Second
	killRequests = 20 * time.Second
	killDelivery = 20 * time.Minute
)

// killVariant is one kind of run.
type killVariant struct {
	name string
	sync SyncPolicy
	// early is how many of 8 brokers are killed while they open their directory.
	early  int
	topics bool // topics are made, grown and deleted all the time
	memory bool // the broker has no directory: everything is lost
	// harm does something to the directory after a kill; if there is nothing yet that
	// could be harmed it returns false, and is called again after the next one.
	harm func(w *killTorture) bool
}

// killTorture is one run.
type killTorture struct {
	killVariant
	t      *testing.T
	seed   uint64
	rng    *rand.Rand // of the loop that plans
	began  time.Time
	config processConfig
	kept   []string // topics that are there all the time
	admin  *Client
	reads  *Client // of the last check
	stop   atomic.Bool

	process   *brokerProcess // the loop's
	took      time.Duration  // to open the directory, the last time; likewise
	harmed    bool           // likewise
	found     int64          // committed after the last start; likewise
	producers []*killProducer

	looking sync.Mutex // held by whoever looks at the broker, so that looks have an order

	mu         sync.Mutex // guards the following
	parts      []TopicPartition
	known      map[TopicPartition]*killPartition
	generation int64
	violations []string
	kinds      map[string]int // how many violations there are of each format
	counts     map[string]int
}

// killPartition is what is known of a partition that is never deleted.
type killPartition struct {
	acked     int64    // behind the last offset that was acknowledged
	end       int64    // highest high-water mark that was seen
	committed int64    // that was confirmed or seen; -1: nothing
	handled   []uint64 // hash of the value that was handled, by offset; 0: none was
	covered   int64    // everything below was handled
	epoch     int64    // of the last claim
}

// killProducer numbers its messages in each partition.
type killProducer struct {
	w      *killTorture
	id     int
	exact  bool // sends each message once, whatever comes
	batch  int  // most messages of one call; 0: one at a time
	rng    *rand.Rand
	client *Client
	sent   map[TopicPartition][]killSend // by number
}

// killSend is what became of a message.
type killSend struct {
	offset int64 // where it was acknowledged to be, or offsetNone
	unsent bool  // it has certainly not reached a broker
}

func TestTortureKill(t *testing.T) {
	kills, seed := 3, uint64(1)
	if s := os.Getenv("ROBUST_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		require.NoError(t, err, "ROBUST_KILLS")
		kills, seed = n, uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("ROBUST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "ROBUST_SEED")
		seed = n
	}
	t.Logf("%d kills of each variant with ROBUST_SEED=%d", kills, seed)
	policies := []SyncPolicy{SyncInterval(defaultSyncInterval), SyncAlways, SyncNever, SyncInterval(5 * time.Millisecond)}
	other := policies[seed%uint64(len(policies))]
	for _, v := range []killVariant{
		{name: "interval", sync: policies[0], early: 1},
		{name: "always", sync: SyncAlways, early: 1},
		{name: "never", sync: SyncNever, early: 1},
		{name: "opening", sync: other, early: 6},
		{name: "topics", sync: other, early: 1, topics: true},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel() // They wait for the most part.
			w := newKillTorture(t, v, seed)
			w.run(kills)
			for _, violation := range w.violations {
				t.Errorf("violation: %s", violation)
			}
		})
	}
}

// TestTortureKillNotices holds that the torture notices what it is there for.
func TestTortureKillNotices(t *testing.T) {
	const lost = "was acknowledged|is lost|cannot be read back|goes back"
	for _, c := range []struct {
		killVariant
		want string
	}{
		{killVariant{name: "everything is lost", memory: true}, lost},
		{killVariant{name: "the end of a partition is lost", harm: harmEnd}, lost},
		{killVariant{name: "the start of a partition is lost", harm: harmStart}, lost},
		{killVariant{name: "a message is damaged", harm: harmMiddle}, lost},
		{killVariant{name: "a topic is lost", harm: harmTopic}, "was acknowledged and is lost"},
		{killVariant{name: "groups are as they were before", harm: harmGroups}, "the committed offset goes back"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.sync = SyncNever
			// A run cannot see an offset go back that a member, still known to the broker,
			// commits anew before anybody looks.
			var seen string
			for seed := uint64(1); seed <= 5 && !regexp.MustCompile(c.want).MatchString(seen); seed++ {
				w := newKillTorture(t, c.killVariant, seed)
				w.run(1)
				seen = strings.Join(w.violations, "\n")
			}
			require.Regexp(t, c.want, seen)
		})
	}
}

// harmSegment changes a file of a partition, the oldest or the newest, if there is
// something in it.
func harmSegment(w *killTorture, newest bool, change func(name string, size int64) error) bool {
	names, err := filepath.Glob(filepath.Join(w.config.Dir, topicsName, "alpha@*", "0", "*"+segmentSuffix))
	require.NoError(w.t, err)
	if len(names) == 0 {
		return false
	}
	slices.Sort(names)
	name := names[0]
	if newest {
		name = names[len(names)-1]
	}
	info, err := os.Stat(name)
	require.NoError(w.t, err)
	if info.Size() < killSegment/2 {
		return false
	}
	require.NoError(w.t, change(name, info.Size()))
	return true
}

func harmEnd(w *killTorture) bool {
	return harmSegment(w, true, func(name string, size int64) error { return os.Truncate(name, size/4) })
}

func harmStart(w *killTorture) bool {
	return harmSegment(w, false, func(name string, _ int64) error { return os.Remove(name) })
}

func harmMiddle(w *killTorture) bool {
	return harmSegment(w, false, func(name string, size int64) error {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		text[size/4] ^= 1
		return os.WriteFile(name, text, 0o600)
	})
}

func harmTopic(w *killTorture) bool {
	names, err := filepath.Glob(filepath.Join(w.config.Dir, topicsName, "beta@*"))
	require.NoError(w.t, err)
	require.Len(w.t, names, 1)
	require.NoError(w.t, os.RemoveAll(names[0]))
	return true
}

// harmGroups puts groups back to what they were at the kill before, once more was
// committed than the broker had after that.
func harmGroups(w *killTorture) bool {
	groups, before := filepath.Join(w.config.Dir, groupsName), filepath.Join(w.config.Dir, "before")
	_, err := os.Stat(before)
	harm := err == nil && w.committed() > w.found
	if harm {
		require.NoError(w.t, os.RemoveAll(groups))
		require.NoError(w.t, os.Rename(before, groups))
	} else if _, err := os.Stat(groups); err == nil {
		require.NoError(w.t, os.RemoveAll(before))
		require.NoError(w.t, os.CopyFS(before, os.DirFS(groups)))
	}
	return harm
}

// TestTortureKillChecks holds that the last check finds what is wrong with a log.
func TestTortureKillChecks(t *testing.T) {
	tp := TopicPartition{"alpha", 0}
	value := func(producer, n int) []byte { return killValue(tp, producer, n) }
	// Two exact producers and one that repeats; of the first, the last message was not
	// acknowledged.
	honest := func() [][]byte {
		return [][]byte{value(0, 0), value(1, 0), value(2, 0), value(0, 1), value(2, 0), value(1, 1), value(0, 2)}
	}
	for _, c := range []struct {
		name string
		harm func(log [][]byte) [][]byte
		want string // "": nothing is wrong
	}{
		{"honest", func(log [][]byte) [][]byte { return log }, ""},
		{"the end, not acknowledged, is lost", func(log [][]byte) [][]byte { return log[:6] }, ""},
		{"the end is lost", func(log [][]byte) [][]byte { return log[:5] }, "is lost"},
		{"one is lost", func(log [][]byte) [][]byte { return slices.Delete(log, 1, 2) }, "is lost"},
		{"one is stored twice", func(log [][]byte) [][]byte { return append(log, value(1, 1)) }, "which was sent once"},
		{"two have changed places", func(log [][]byte) [][]byte {
			log[0], log[3] = log[3], log[0]
			return log
		}, "behind message"},
		{"one is damaged", func(log [][]byte) [][]byte {
			log[2] = append(bytes.Clone(log[2]), '!')
			return log
		}, "is damaged"},
		{"one is of another partition", func(log [][]byte) [][]byte {
			log[2] = killValue(TopicPartition{"alpha", 1}, 2, 0)
			return log
		}, "not sent there"},
		{"one was never sent", func(log [][]byte) [][]byte { return append(log, value(0, 3)) }, "which was not sent"},
		{"one that was read is another", func(log [][]byte) [][]byte {
			log[6] = value(1, 2)
			return log
		}, "was read, and is another message"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newKillTorture(t, killVariant{}, 1)
			w.addPartitions(tp.Topic, 0, 1)
			none := killSend{offset: offsetNone}
			for i, sent := range [][]killSend{
				{{offset: 0}, {offset: 3}, none, {offset: offsetNone, unsent: true}}, {{offset: 1}, {offset: 5}, none}, {{offset: 4}},
			} {
				w.producers = append(w.producers, &killProducer{id: i, exact: i < 2, sent: map[TopicPartition][]killSend{tp: sent}})
			}
			w.known[tp].handled = []uint64{hashOf(value(0, 0)), 6: 0}
			if strings.Contains(c.name, "read") {
				w.known[tp].handled[6] = hashOf(value(0, 2))
			}
			w.checkLog(tp, c.harm(honest()))
			if c.want == "" {
				require.Empty(t, w.violations)
				return
			}
			require.Condition(t, func() bool {
				return slices.ContainsFunc(w.violations, func(v string) bool { return strings.Contains(v, c.want) })
			}, "%q is not among the violations: %q", c.want, w.violations)
		})
	}
}

func newKillTorture(t *testing.T, v killVariant, seed uint64) *killTorture {
	w := &killTorture{
		killVariant: v, kept: []string{"alpha", "beta"}, t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), began: time.Now(),
		known: make(map[TopicPartition]*killPartition), counts: make(map[string]int), kinds: make(map[string]int),
		config: processConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", Sync: v.sync},
	}
	if v.memory {
		w.config.Dir = ""
	}
	return w
}

// run is the whole story.
func (w *killTorture) run(kills int) {
	t := w.t
	// Nothing may take for ever; the stacks say what does.
	stuck := time.AfterFunc(time.Duration(kills)*killStart+5*time.Minute, func() {
		stacks := make([]byte, 16<<20)
		panic("stuck\n" + string(stacks[:runtime.Stack(stacks, true)]))
	})
	defer stuck.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.process = startBrokerProcess(t, w.config)
	defer func() { w.process.kill() }()
	addr, err := w.process.serving()
	require.NoError(t, err)
	w.took = time.Since(w.process.opened)
	w.config.Addr = addr
	w.admin, w.reads = w.client(), w.client()
	for i, name := range w.kept {
		partitions := int32(2 + i)
		require.NoError(t, w.admin.Admin().CreateTopic(ctx, name, partitions, map[string]string{configSegmentBytes: strconv.Itoa(killSegment)}))
		w.addPartitions(name, 0, partitions)
	}

	var producing, watching, consuming sync.WaitGroup
	stopWatch, endWatch := context.WithCancel(ctx)
	stopConsume, endConsume := context.WithCancel(ctx)
	stopProduce, endProduce := context.WithCancel(ctx)
	watching.Go(func() { w.watch(stopWatch) })
	for i := range 3 {
		consuming.Go(func() { w.consume(stopConsume, i) })
	}
	for i, p := range []*killProducer{{exact: true}, {exact: true, batch: 50}, {}, {batch: 200}} {
		p.w, p.id, p.client, p.rng = w, i, w.client(), rand.New(rand.NewPCG(w.seed, 1<<40+uint64(i)))
		p.sent = make(map[TopicPartition][]killSend)
		w.producers = append(w.producers, p)
		producing.Go(func() { p.produce(stopProduce) })
	}
	if w.topics {
		producing.Go(func() { w.changeTopics(stopProduce) })
	}
	for n := 0; n < kills || w.harm != nil && !w.harmed; n++ {
		d := time.Duration(20+w.rng.IntN(250)) * time.Millisecond
		switch w.rng.IntN(24) {
		case 0:
			d += 2 * killSession // Members that could not leave are out at last.
		case 1, 2, 3, 4, 5:
			d *= 4 // Time for the group to come to rest.
		}
		await(d)
		if !w.again(ctx) {
			break
		}
	}
	await(50 * time.Millisecond)
	w.stop.Store(true)
	if w.hopeless() {
		endProduce() // What is sent to a broker without memory may wait for long.
	}
	producing.Wait()
	endProduce()
	w.drain(ctx)
	endConsume()
	consuming.Wait()
	endWatch()
	watching.Wait()
	w.checkLogs(ctx)
	for _, p := range w.producers {
		require.NoError(t, p.client.Close())
	}
	require.NoError(t, w.admin.Close())
	require.NoError(t, w.reads.Close())
	if err := w.process.stop(); err != nil {
		w.violation("%v", err)
	}
	w.ended()
	w.inspect("checked", CheckDataDir, false)
	first := segmentPath(filepath.Join(w.config.Dir, groupsName), 0, segmentSuffix)
	if _, err := os.Stat(first); errors.Is(err, os.ErrNotExist) && !w.memory {
		w.count("times that groups were written anew, at least")
	}
	w.report()
}

// client reaches the broker wherever it is started again: at the same place.
func (w *killTorture) client() *Client {
	c, err := New(WithBrokers(w.config.Addr), WithLogger(nil), WithRequestTimeout(killRequests))
	require.NoError(w.t, err)
	return c
}

// again ends the broker, mostly by a kill, and starts another until one serves. It
// returns false if there is no point in going on.
func (w *killTorture) again(ctx context.Context) bool {
	if w.rng.IntN(8) == 0 {
		if err := w.process.stop(); err != nil {
			w.violation("%v", err)
		}
		w.count("brokers closed in good order")
	} else {
		w.process.kill()
		w.count("brokers killed")
	}
	w.ended()
	if w.harm != nil && !w.harmed {
		w.harmed = w.harm(w)
	}
	switch w.rng.IntN(8) {
	case 0:
		w.inspect("checked", CheckDataDir, true)
	case 1: // It gives up nothing that is not damaged.
		w.inspect("repaired", RepairDataDir, true)
	}
	for {
		w.process = startBrokerProcess(w.t, w.config)
		if w.rng.IntN(8) < w.early {
			// A little more than it takes, so that the first moments of serving
			// are hit as well.
			await(time.Duration(w.rng.Int64N(int64(w.took + w.took/4 + 1))))
			w.process.kill()
			w.count("brokers killed while they open")
			w.ended()
			continue
		}
		_, err := w.process.serving()
		if err != nil {
			w.violation("the broker does not start: %v", err)
			return false
		}
		w.took = time.Since(w.process.opened)
		w.mu.Lock()
		w.counts["milliseconds of the longest start"] = max(w.counts["milliseconds of the longest start"], int(w.took.Milliseconds()))
		w.mu.Unlock()
		break
	}
	looking, cancel := context.WithTimeout(ctx, killStart)
	defer cancel()
	for {
		err := w.look(looking)
		if err == nil {
			break
		}
		// A client may still go by a dial that was refused before.
		if !connectionFault(err) || !pause(looking, nil, 20*time.Millisecond) {
			w.violation("after the start: %v", err)
			return false
		}
	}
	w.found = w.committed()
	return !w.hopeless()
}

// inspect has the directory looked at while no broker works there. A kill may leave the
// torn end of a log, and no other damage.
func (w *killTorture) inspect(what string, how func(context.Context, string) (*DataDirReport, error), torn bool) {
	if w.memory || w.harm != nil {
		return
	}
	report, err := how(w.t.Context(), w.config.Dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["times that the directory was "+what]++
	if err != nil {
		w.violationLocked("the directory cannot be %s: %v", what, err)
		return
	}
	for _, d := range report.Damage {
		if d.Tail && torn {
			w.counts["torn ends of logs"]++
			continue
		}
		w.violationLocked("the directory is damaged: %+v", d)
	}
	if stored := int64(w.counts["messages stored"]); report.Records < stored {
		w.violationLocked("the directory has %d messages, %d were read", report.Records, stored)
	}
}

// committed is how much the group has committed, as far as is known.
func (w *killTorture) committed() (sum int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.known {
		sum += max(0, p.committed)
	}
	return sum
}

// ended looks at what a process has said, once it has ended.
func (w *killTorture) ended() {
	if text := w.process.broken(); text != "" {
		w.violation("the broker broke: %s", text)
	}
	for _, line := range w.process.logged() {
		w.count("broker: " + line)
	}
	if text := w.process.stderr.String(); text != "" && w.harm == nil {
		w.t.Logf("%9.3f the broker has logged:\n%.1000s", time.Since(w.began).Seconds(), text)
	}
}

func (w *killTorture) count(what string) { w.countN(what, 1) }

func (w *killTorture) countN(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

func (w *killTorture) violation(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violationLocked(format, args...)
}

// violationLocked notes a violation. Of one kind a few are enough.
func (w *killTorture) violationLocked(format string, args ...any) {
	w.counts["violations"]++
	if w.kinds[format]++; w.kinds[format] > 5 {
		return
	}
	w.violations = append(w.violations, fmt.Sprintf("%9.3f %s", time.Since(w.began).Seconds(), fmt.Sprintf(format, args...)))
}

// addPartitions has producers use the partitions of a topic from one to another, and
// checks know them.
func (w *killTorture) addPartitions(topic string, from, to int32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p := from; p < to; p++ {
		tp := TopicPartition{topic, p}
		w.parts = append(w.parts, tp)
		w.known[tp] = &killPartition{committed: -1}
	}
}

func (w *killTorture) partitions() []TopicPartition {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.parts)
}

// killValue is what a message holds: who has sent it, the how-manieth it is of its
// partition, and more, which depends on that.
func killValue(tp TopicPartition, producer, n int) []byte {
	value := fmt.Appendf(nil, "%s|%d|%d|%d|", tp.Topic, tp.Partition, producer, n)
	mix := rand.NewPCG(uint64(producer), uint64(n)).Uint64()
	size := int(mix % 300)
	if mix>>32%300 == 0 {
		size = 3 * killSegment // More than a segment holds.
	}
	filler := strconv.FormatUint(mix, 36)
	for range size/len(filler) + 1 {
		value = append(value, filler...)
	}
	return value
}

// parseKillValue is the inverse of killValue.
func parseKillValue(value []byte) (tp TopicPartition, producer, n int, err error) {
	fields := strings.SplitN(string(value), "|", 5)
	if len(fields) != 5 {
		return tp, 0, 0, fmt.Errorf("%.40q is no value of ours", value)
	}
	partition, err1 := strconv.ParseInt(fields[1], 10, 32)
	producer, err2 := strconv.Atoi(fields[2])
	n, err3 := strconv.Atoi(fields[3])
	tp = TopicPartition{fields[0], int32(partition)}
	if err := errors.Join(err1, err2, err3); err != nil {
		return tp, 0, 0, err
	}
	if !bytes.Equal(value, killValue(tp, producer, n)) {
		return tp, 0, 0, fmt.Errorf("value %d of producer %d for %s is damaged: %.80q", n, producer, tp, value)
	}
	return tp, producer, n, nil
}

func hashOf(value []byte) uint64 {
	h := fnv.New64a()
	h.Write(value)
	return h.Sum64() | 1
}

// produce sends until the end.
func (p *killProducer) produce(ctx context.Context) {
	// One send may meet with many kills.
	producer, err := p.client.SyncProducer(WithRetryBackoff(5*time.Millisecond), WithDeliveryTimeout(killDelivery))
	if err != nil {
		p.w.violation("producer: %v", err)
		return
	}
	for !p.w.stop.Load() && ctx.Err() == nil {
		failed := false
		switch {
		case p.exact && p.batch > 0:
			failed = p.pipeline(ctx, producer)
		case p.batch > 0:
			failed = p.sendMany(ctx, producer)
		default:
			failed = p.sendOne(ctx, producer)
		}
		d := time.Duration(p.rng.IntN(2000)) * time.Microsecond
		if failed {
			d = 5 * time.Millisecond
		}
		if p.w.backlog() > 5000 {
			d = 50 * time.Millisecond // Members that come and go handle little.
		}
		pause(ctx, nil, d)
	}
}

// backlog is how many messages wait to be handled.
func (w *killTorture) backlog() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts["messages acknowledged"] - w.counts["messages handled"]
}

// next makes the next message of a partition.
func (p *killProducer) next() (*Message, int) {
	parts := p.w.partitions()
	tp := parts[p.rng.IntN(len(parts))]
	n := len(p.sent[tp])
	p.sent[tp] = append(p.sent[tp], killSend{offset: offsetNone})
	m := NewMessageWithKey(tp.Topic, fmt.Append(nil, p.id), killValue(tp, p.id, n))
	m.Partition = tp.Partition
	m.Headers = map[string]string{"n": strconv.Itoa(n)}
	return m, n
}

// settle notes what became of a message.
func (p *killProducer) settle(m *Message, n int, offset int64, err error) {
	w, tp := p.w, TopicPartition{m.Topic, m.Partition}
	s := &p.sent[tp][n]
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		s.unsent = p.exact && unsent(err)
		w.counts["sends without an acknowledgement"]++
		if !connectionFault(err) && !errors.Is(err, context.Canceled) {
			w.violationLocked("send to %s: %v", tp, err)
		}
		return
	}
	s.offset = offset
	w.counts["messages acknowledged"]++
	w.known[tp].acked = max(w.known[tp].acked, offset+1)
}

func (p *killProducer) sendOne(ctx context.Context, producer *SyncProducer) (failed bool) {
	m, n := p.next()
	var r Receipt
	var err error
	if p.exact {
		r, err = sendOnce(ctx, producer, m)
	} else {
		r, err = producer.Send(ctx, m)
	}
	p.settle(m, n, r.Offset, err)
	return err != nil
}

// sendOnce sends a message that says its partition, and never again: if it fails, the
// message is stored once or not at all.
func sendOnce(ctx context.Context, p *SyncProducer, m *Message) (Receipt, error) {
	req, err := p.request(m, time.Now())
	if err != nil {
		return Receipt{}, err
	}
	req.Partition = m.Partition
	resp := newProduceResponse()
	r := route{topic: m.Topic, partition: m.Partition, bounded: true}
	if err := p.client.round(ctx, r, p.client.patience(), req, resp); err != nil {
		return Receipt{}, err
	}
	return receiptOf(req, resp)
}

// pipeline sends many messages on one connection, each once.
func (p *killProducer) pipeline(ctx context.Context, producer *SyncProducer) (failed bool) {
	c, err := p.client.pool.get(ctx, p.w.config.Addr, false, false, p.client.patience())
	if err != nil {
		return true
	}
	defer p.client.pool.put(c)
	type sending struct {
		m   *Message
		n   int
		req *produceRequest
		k   *call
	}
	var under []sending
	for range 1 + p.rng.IntN(p.batch) {
		m, n := p.next()
		req, err := producer.request(m, time.Now())
		require.NoError(p.w.t, err)
		req.Partition = m.Partition
		k, err := c.begin(ctx, req, killRequests)
		if err != nil {
			p.settle(m, n, offsetNone, err)
			failed = true
			break
		}
		under = append(under, sending{m, n, req, k})
	}
	for _, s := range under {
		resp := newProduceResponse()
		err := c.finish(ctx, s.k, resp)
		r := Receipt{}
		if err == nil {
			r, err = receiptOf(s.req, resp)
		}
		p.settle(s.m, s.n, r.Offset, err)
		failed = failed || err != nil
	}
	return failed
}

func (p *killProducer) sendMany(ctx context.Context, producer *SyncProducer) (failed bool) {
	var ms []*Message
	var ns []int
	for range 1 + p.rng.IntN(p.batch) {
		m, n := p.next()
		ms, ns = append(ms, m), append(ns, n)
	}
	errs := make(map[*Message]error)
	err := producer.SendMessages(ctx, ms)
	var failures ProducerErrors
	if errors.As(err, &failures) {
		for _, f := range failures {
			errs[f.Msg] = f.Err
		}
	}
	for i, m := range ms {
		p.settle(m, ns[i], m.Offset, errs[m])
	}
	return err != nil
}

// watch looks at the broker all the time.
func (w *killTorture) watch(ctx context.Context) {
	for pause(ctx, nil, 15*time.Millisecond) {
		if err := w.look(ctx); err != nil && ctx.Err() == nil && !connectionFault(err) {
			w.violation("looking at the broker: %v", err)
			return
		}
	}
}

// look asks the broker for what it may not take back, and compares.
func (w *killTorture) look(ctx context.Context) error {
	w.looking.Lock()
	defer w.looking.Unlock()
	type bound struct{ acked, end, committed int64 }
	w.mu.Lock()
	floor := make(map[TopicPartition]bound)
	for tp, p := range w.known {
		floor[tp] = bound{p.acked, p.end, p.committed}
	}
	w.mu.Unlock()
	ends := make(map[TopicPartition]int64)
	// The partitions that are known are asked for: metadata may be older.
	asked := make(map[string][]int32)
	for tp := range floor {
		asked[tp.Topic] = append(asked[tp.Topic], tp.Partition)
	}
	for topic, partitions := range asked {
		offsets, err := w.admin.listOffsets(ctx, topic, partitions, OffsetNewest)
		switch {
		case errors.Is(err, ErrTopicNotFound), errors.Is(err, ErrPartitionNotFound):
			w.violation("%s was acknowledged and is lost, or a partition of it: %v", topic, err)
			return err
		case err != nil:
			return err
		}
		for partition, end := range offsets {
			ends[TopicPartition{topic, partition}] = end
		}
	}
	d, err := w.admin.Admin().DescribeGroup(ctx, killGroup)
	if err != nil && !errors.Is(err, ErrGroupNotFound) {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["looks at the broker"]++
	for tp, f := range floor {
		end := ends[tp]
		switch {
		case end < f.acked:
			w.violationLocked("%s ends at %d, offset %d was acknowledged", tp, end, f.acked-1)
		case end < f.end:
			w.violationLocked("%s: the high-water mark goes back: %d after %d", tp, end, f.end)
		}
		w.known[tp].end = max(w.known[tp].end, end)
	}
	if d == nil {
		if w.generation > 0 {
			w.violationLocked("the group was acknowledged and is lost")
		}
		return nil
	}
	if d.Generation < w.generation {
		w.violationLocked("the group's generation goes back: %d after %d", d.Generation, w.generation)
	}
	w.generation = max(w.generation, d.Generation)
	committed := make(map[TopicPartition]int64)
	for _, o := range d.Offsets {
		tp := TopicPartition{o.Topic, o.Partition}
		p := w.known[tp]
		if p == nil {
			continue
		}
		committed[tp] = o.Committed
		for p.covered < int64(len(p.handled)) && p.handled[p.covered] != 0 {
			p.covered++
		}
		if o.Committed > p.covered {
			w.violationLocked("%s: committed is %d, only what is below %d was handled", tp, o.Committed, p.covered)
		}
		if o.Committed > o.HighWaterMark {
			w.violationLocked("%s: committed is %d, the high-water mark %d", tp, o.Committed, o.HighWaterMark)
		}
	}
	for tp, f := range floor {
		o, ok := committed[tp]
		if !ok {
			o = -1
		}
		if o < f.committed {
			w.violationLocked("%s: the committed offset goes back: %d after %d", tp, o, f.committed)
		}
		w.known[tp].committed = max(w.known[tp].committed, o)
	}
	return nil
}

// consume is one member after the other, until ctx ends.
func (w *killTorture) consume(ctx context.Context, i int) {
	rng := rand.New(rand.NewPCG(w.seed, 1<<41+uint64(i)))
	for ctx.Err() == nil {
		member, leave := context.WithCancel(ctx)
		if i > 0 { // The group changes all the time, and one member stays.
			stay := time.Duration(500+rng.IntN(2000)) * time.Millisecond
			go func() {
				pause(member, nil, stay)
				leave()
			}()
		}
		err := w.member(member, i)
		left := member.Err() != nil
		leave()
		w.count("members that have left")
		// One that leaves while the broker is away may not get its last commit through.
		if err != nil && (!left || !connectionFault(err) && !errors.Is(err, errLate) && !errors.Is(err, ErrFenced)) && !w.hopeless() {
			w.violation("member %d: Consume returned %v", i, err)
			return
		}
	}
}

func (w *killTorture) member(ctx context.Context, i int) error {
	c := w.client()
	defer c.Close()
	opts := []GroupOption{
		WithSessionTimeout(killSession), WithHeartbeatInterval(200 * time.Millisecond), WithRebalanceTimeout(killSession),
		WithAutoCommit(time.Duration(20+10*i) * time.Millisecond), WithFetchMaxWait(50 * time.Millisecond),
	}
	var handler Handler
	switch i {
	case 0:
		handler = HandlerFunc(w.claim)
		opts = append(opts, WithAutoCommit(500*time.Millisecond)) // For the last few.
	case 1:
		handler = Each(func(_ context.Context, m *Message) error { return w.handle(m) })
	default:
		handler = Each(func(_ context.Context, m *Message) error { return w.handle(m) }, Concurrency(4))
	}
	g, err := c.ConsumerGroup(killGroup, opts...)
	if err != nil {
		return err
	}
	return g.Consume(ctx, append(slices.Clone(w.kept), "^"+killTopics), handler)
}

// claim marks by hand, and commits every now and then. What a commit has confirmed may
// not be lost.
func (w *killTorture) claim(s *Session, c *Claim) error {
	tp := TopicPartition{c.Topic(), c.Partition()}
	w.mu.Lock()
	if p := w.known[tp]; p != nil {
		if c.Epoch() <= p.epoch {
			w.violationLocked("%s: a claim has epoch %d, one before had %d", tp, c.Epoch(), p.epoch)
		}
		p.epoch = c.Epoch()
	}
	w.mu.Unlock()
	for m := range c.Messages() {
		if err := w.handle(m); err != nil {
			return err
		}
		// With as much beside it as there may be, so that what is kept of groups is
		// written anew now and then.
		s.MarkMessage(m, strings.Repeat("m", maxOffsetMeta))
		if m.Offset%10 != 9 {
			continue
		}
		if err := s.Commit(); err == nil {
			w.mu.Lock()
			w.counts["commits confirmed"]++
			if p := w.known[tp]; p != nil && c.Context().Err() == nil {
				p.committed = max(p.committed, m.Offset+1)
			}
			w.mu.Unlock()
		}
	}
	return nil
}

// handle is what the handlers do with a message.
func (w *killTorture) handle(m *Message) error {
	if strings.HasPrefix(m.Topic, killTopics) {
		w.count("messages of passing topics handled")
		return nil
	}
	tp, _, _, err := parseKillValue(m.Value)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || tp != (TopicPartition{m.Topic, m.Partition}) {
		w.violationLocked("%s/%d at %d: read %v, %v", m.Topic, m.Partition, m.Offset, tp, err)
		return nil
	}
	p := w.known[tp]
	if p == nil {
		w.violationLocked("%s: a message of a partition that was not made", tp)
		return nil
	}
	for int64(len(p.handled)) <= m.Offset {
		p.handled = append(p.handled, 0)
	}
	h := hashOf(m.Value)
	w.counts["times a message was handled"]++
	switch p.handled[m.Offset] {
	case 0:
		p.handled[m.Offset] = h
		w.counts["messages handled"]++
	case h:
	default:
		w.violationLocked("%s: offset %d holds another message than it did", tp, m.Offset)
	}
	return nil
}

// drain waits until everything is handled and committed.
func (w *killTorture) drain(ctx context.Context) {
	progress, since := int64(-1), time.Now()
	for !w.hopeless() {
		bound, cancel := context.WithTimeout(ctx, killDrain)
		err := w.look(bound)
		var d *GroupDescription
		if err == nil {
			d, err = w.admin.Admin().DescribeGroup(bound, killGroup)
		}
		if err == nil && w.unhandled() == "" && w.allCommitted(d) {
			cancel()
			return
		}
		w.mu.Lock()
		n := int64(w.counts["messages handled"])
		w.mu.Unlock()
		if n += w.committed(); n != progress {
			progress, since = n, time.Now()
		} else if time.Since(since) > killDrain {
			w.violation("nothing is handled or committed any more for %v: %v; %s; %+v", killDrain, err, w.unhandled(), d)
		}
		pause(bound, nil, 20*time.Millisecond)
		cancel()
	}
}

func (w *killTorture) hopeless() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

// unhandled says what was not handled of what can be read.
func (w *killTorture) unhandled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for tp, p := range w.known {
		for offset := range p.end {
			if offset >= int64(len(p.handled)) || p.handled[offset] == 0 {
				return fmt.Sprintf("%s: %d of %d was not handled", tp, offset, p.end)
			}
		}
	}
	return ""
}

func (w *killTorture) allCommitted(d *GroupDescription) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := 0
	for _, o := range d.Offsets {
		if p := w.known[TopicPartition{o.Topic, o.Partition}]; p != nil && (o.Committed == p.end || p.end == 0) {
			done++
		}
	}
	return done == len(w.known)
}

// checkLogs reads everything back and compares it with what was acknowledged, sent and
// handled.
func (w *killTorture) checkLogs(ctx context.Context) {
	for _, tp := range w.partitions() {
		values, err := w.readLog(ctx, w.reads, tp)
		if err != nil {
			w.violation("%s cannot be read back: %v", tp, err)
			continue
		}
		w.checkLog(tp, values)
	}
	for _, p := range w.producers {
		w.countN("sends repeated", int(p.client.Metrics().Producer.GetStats().Retries))
	}
	more := 0
	for _, p := range w.producers {
		if p.exact {
			continue
		}
		more += int(p.client.Metrics().Producer.GetStats().Retries)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.counts["messages stored more than once"]; n > more {
		w.violationLocked("%d messages are stored more than once, %d sends were repeated", n, more)
	}
}

// readLog reads a partition from its start to its end.
func (w *killTorture) readLog(ctx context.Context, client *Client, tp TopicPartition) (values [][]byte, err error) {
	for {
		req := &fetchRequest{Topic: tp.Topic, Partition: tp.Partition, Offset: int64(len(values)), MaxBytes: 1 << 20, MaxMessages: 1000}
		resp := newFetchResponse()
		if err := client.ask(ctx, route{topic: tp.Topic, partition: tp.Partition, repeatable: true}, req, resp); err != nil {
			return nil, err
		}
		if resp.LogStartOffset != 0 {
			return nil, fmt.Errorf("the log starts at %d", resp.LogStartOffset)
		}
		if len(resp.Messages) == 0 && resp.HighWaterMark == int64(len(values)) {
			return values, nil
		}
		if len(resp.Messages) == 0 {
			return nil, fmt.Errorf("nothing at offset %d, the high-water mark is %d", len(values), resp.HighWaterMark)
		}
		for _, m := range resp.Messages {
			if m.Offset != int64(len(values)) {
				return nil, fmt.Errorf("offset %d comes, %d was to", m.Offset, len(values))
			}
			values = append(values, m.Value)
		}
	}
}

func (w *killTorture) checkLog(tp TopicPartition, values [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["messages stored"] += len(values)
	stored := make(map[int][]int, len(w.producers)) // offset of the first copy, by producer and number
	for _, p := range w.producers {
		stored[p.id] = slices.Repeat([]int{-1}, len(p.sent[tp]))
	}
	latest := make(map[int]int)
	for offset, value := range values {
		of, producer, n, err := parseKillValue(value)
		if err != nil || of != tp || n >= len(stored[producer]) {
			w.violationLocked("%s: offset %d holds what was not sent there: %v", tp, offset, err)
			continue
		}
		p := w.producers[producer]
		switch first := stored[producer][n]; {
		case p.sent[tp][n].unsent:
			w.violationLocked("%s: offset %d holds message %d of producer %d, which was not sent", tp, offset, n, producer)
		case first >= 0 && p.exact:
			w.violationLocked("%s: offsets %d and %d hold message %d of producer %d, which was sent once", tp, first, offset, n, producer)
		case first >= 0:
			w.counts["messages stored more than once"]++
			if p.sent[tp][n].offset == int64(offset) {
				stored[producer][n] = offset // It is the copy that was acknowledged.
			}
			continue
		}
		stored[producer][n] = offset
		if last, ok := latest[producer]; ok && n < last {
			w.violationLocked("%s: offset %d holds message %d of producer %d, behind message %d", tp, offset, n, producer, last)
		}
		latest[producer] = n
	}
	for _, p := range w.producers {
		for n, s := range p.sent[tp] {
			switch at := stored[p.id][n]; {
			case s.offset == offsetNone && at >= 0:
				w.counts["messages stored without an acknowledgement"]++
			case s.offset == offsetNone:
				w.counts["messages not acknowledged and not stored"]++
			case at < 0:
				w.violationLocked("%s: message %d of producer %d, acknowledged at offset %d, is lost", tp, n, p.id, s.offset)
			case int64(at) != s.offset:
				w.violationLocked("%s: message %d of producer %d, acknowledged at offset %d, is at %d", tp, n, p.id, s.offset, at)
			}
		}
	}
	for offset, h := range w.known[tp].handled {
		if h != 0 && (offset >= len(values) || hashOf(values[offset]) != h) {
			w.violationLocked("%s: offset %d was read, and is another message or none now", tp, offset)
		}
	}
}

// report prints what has happened.
func (w *killTorture) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts["generation"] = int(w.generation)
	w.counts["partitions"] = len(w.parts)
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %v, seed %d, %v\n", w.name, w.sync, w.seed, time.Since(w.began).Round(time.Second))
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		fmt.Fprintf(&text, "%8d %s\n", w.counts[what], what)
	}
	w.t.Log(text.String())
}
