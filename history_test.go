package robust

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// Histories: what concurrent clients have asked of a partition and been told, with the
// times of both, is compared with an append-only log that does one thing after the
// other. Each operation must have happened at one moment between its call and its answer
// (linearizability), whatever becomes of connections and of the broker meanwhile.
//
//	make torture-history DURATION=10m SEED=42

// historyOp is one operation on a partition.
type historyOp struct {
	client    int
	kind      historyKind
	call, ret time.Duration // since the start of the history
	value     string        // of an append
	// offset is where a read began; or what an append was told, offsetNone if nothing: it
	// has happened once or not at all, at any time after its call.
	offset int64
	values []string // of a read: none at the end
	beyond bool     // the read was refused, its offset lies behind the end
	end    int64    // of bounds
}

type historyKind int

const (
	historyAppend historyKind = iota
	historyRead
	historyBounds
)

// historyNever is when an operation without an answer has ended.
const historyNever = time.Duration(math.MaxInt64)

func (o historyOp) String() string {
	at := fmt.Sprintf("%v to %v, client %d: ", o.call.Round(time.Microsecond), o.ret.Round(time.Microsecond), o.client)
	if o.ret == historyNever {
		at = fmt.Sprintf("%v and unanswered, client %d: ", o.call.Round(time.Microsecond), o.client)
	}
	switch {
	case o.kind == historyAppend:
		return fmt.Sprintf("%sappend %s is at %d", at, o.value, o.offset)
	case o.kind == historyBounds:
		return fmt.Sprintf("%sthe end is %d", at, o.end)
	case o.beyond:
		return fmt.Sprintf("%sread at %d is beyond the end", at, o.offset)
	default:
		return fmt.Sprintf("%sread at %d: %d, %.40q", at, o.offset, len(o.values), o.values)
	}
}

// checkHistory checks the operations on one partition. final is what it held when all of
// them were over.
//
// A state of the log is all that it holds, and a search over such states does not end.
// But nothing is ever removed and every value is appended once, so what the log has held
// at any time is a beginning of final, and its length says which. So it is enough
//
//   - to compare every value that was acknowledged or read with what final holds at its
//     offset, without regard to time, and
//   - to search for an order of the operations in which the length is what each of them
//     has seen: an append whose value stands at k in final makes k+1 of the length k.
//
// An append without an answer whose value is not in final has not happened: nothing could
// have taken it out again. TestHistoryModel compares this with the search over all that a
// log can hold, where that ends.
func checkHistory(ops []historyOp, final []string) error {
	places := make(map[string]int64, len(final))
	for offset, value := range final {
		if first, ok := places[value]; ok {
			return fmt.Errorf("%s is at %d and at %d", value, first, offset)
		}
		places[value] = int64(offset)
	}
	appended := make(map[string]bool, len(final))
	history := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		switch o.kind {
		case historyAppend:
			appended[o.value] = true
			place, ok := places[o.value]
			switch {
			case !ok && o.offset == offsetNone:
				continue
			case !ok:
				return fmt.Errorf("lost: %v", o)
			case o.offset != offsetNone && o.offset != place:
				return fmt.Errorf("found at %d: %v", place, o)
			}
			o.offset = place
		case historyRead:
			for i, value := range o.values {
				if at := o.offset + int64(i); at >= int64(len(final)) || final[at] != value {
					return fmt.Errorf("read what is not at %d: %v", at, o)
				}
			}
		case historyBounds:
		}
		history = append(history, porcupine.Operation{ClientId: o.client, Input: o, Call: int64(o.call), Return: int64(o.ret)})
	}
	for _, value := range final {
		if !appended[value] {
			return fmt.Errorf("%s is at %d and was not appended", value, places[value])
		}
	}
	result, info := porcupine.CheckOperationsVerbose(lengthModel(), history, time.Minute)
	if result == porcupine.Ok {
		return nil
	}
	return fmt.Errorf("linearizable: %s; as far as it goes:\n%s", result, unexplained(history, info))
}

// lengthModel is a log of which only the length is known.
func lengthModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, _ any) (bool, any) {
			length, o := state.(int64), input.(historyOp)
			switch {
			case o.kind == historyAppend:
				return length == o.offset, length + 1
			case o.kind == historyBounds:
				return length == o.end, length
			case o.beyond:
				return length < o.offset, length
			case len(o.values) == 0:
				return length == o.offset, length
			default:
				return length >= o.offset+int64(len(o.values)), length
			}
		},
	}
}

// unexplained returns the first operations that the longest order has no place for.
func unexplained(history []porcupine.Operation, info porcupine.LinearizationInfo) string {
	longest := make(map[int]bool)
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = make(map[int]bool)
				for _, i := range order {
					longest[i] = true
				}
			}
		}
	}
	var left []historyOp
	for i, o := range history {
		if !longest[i] {
			left = append(left, o.Input.(historyOp))
		}
	}
	slices.SortFunc(left, func(a, b historyOp) int { return int(a.ret - b.ret) })
	var text strings.Builder
	for _, o := range left[:min(len(left), 10)] {
		fmt.Fprintln(&text, o)
	}
	return text.String()
}

// wholeModel is a log of which all is known: the model that is obviously right, for
// small histories.
func wholeModel() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{""} },
		Step: func(state, input, _ any) []any {
			var log []string
			if state != "" {
				log = strings.Split(state.(string), " ")
			}
			length, o := int64(len(log)), input.(historyOp)
			fits := false
			switch {
			case o.kind == historyAppend:
				next := strings.TrimSpace(state.(string) + " " + o.value)
				switch o.offset {
				case offsetNone:
					return []any{state, next}
				case length:
					return []any{next}
				}
				return nil
			case o.kind == historyBounds:
				fits = length == o.end
			case o.beyond:
				fits = length < o.offset
			case len(o.values) == 0:
				fits = length == o.offset
			default:
				end := o.offset + int64(len(o.values))
				fits = length >= end && slices.Equal(log[o.offset:end], o.values)
			}
			if fits {
				return []any{state}
			}
			return nil
		},
	}
	return model.ToModel()
}

// TestHistoryPlanted holds that the check finds what a broken log would be told by.
func TestHistoryPlanted(t *testing.T) {
	op := func(call, ret int, o historyOp) historyOp {
		o.call, o.ret = time.Duration(call), time.Duration(ret)
		if ret == 0 {
			o.ret = historyNever
		}
		return o
	}
	add := func(call, ret int, value string, offset int64) historyOp {
		return op(call, ret, historyOp{value: value, offset: offset})
	}
	read := func(call, ret int, offset int64, values ...string) historyOp {
		return op(call, ret, historyOp{kind: historyRead, offset: offset, values: values})
	}
	beyond := func(call, ret int, offset int64) historyOp {
		return op(call, ret, historyOp{kind: historyRead, offset: offset, beyond: true})
	}
	end := func(call, ret int, end int64) historyOp {
		return op(call, ret, historyOp{kind: historyBounds, end: end})
	}
	for _, c := range []struct {
		name  string
		ops   []historyOp
		final string
		want  string // "": it is a history of a log
	}{
		{"nothing", nil, "", ""},
		{"one after the other", []historyOp{add(1, 2, "a", 0), read(3, 4, 0, "a"), read(5, 6, 1), end(7, 8, 1), beyond(9, 10, 2)}, "a", ""},
		{"side by side", []historyOp{add(1, 9, "a", 1), add(1, 9, "b", 0), read(2, 3, 0, "b"), end(4, 5, 2)}, "b a", ""},
		{"read before it is acknowledged", []historyOp{add(1, 9, "a", 0), read(2, 3, 0, "a")}, "a", ""},
		{"unanswered and stored late", []historyOp{add(1, 0, "a", offsetNone), read(2, 3, 0), read(8, 9, 0, "a")}, "a", ""},
		{"unanswered and not stored", []historyOp{add(1, 0, "a", offsetNone), add(2, 3, "b", 0)}, "b", ""},
		{"a stale read", []historyOp{add(1, 2, "a", 0), read(3, 4, 0)}, "a", "Illegal"},
		{"a stale end", []historyOp{add(1, 2, "a", 0), add(3, 4, "b", 1), end(5, 6, 1)}, "a b", "Illegal"},
		{"the end goes back", []historyOp{add(1, 9, "a", 0), end(2, 3, 1), end(4, 5, 0)}, "a", "Illegal"},
		{"an end without a record", []historyOp{end(1, 2, 1), add(3, 4, "a", 0)}, "a", "Illegal"},
		{"out of range below the end", []historyOp{add(1, 2, "a", 0), add(1, 3, "b", 1), beyond(4, 5, 1)}, "a b", "Illegal"},
		{"read before it was sent", []historyOp{read(1, 2, 0, "a"), add(3, 4, "a", 0)}, "a", "Illegal"},
		{"out of order", []historyOp{add(1, 2, "a", 1), add(3, 4, "b", 0)}, "b a", "Illegal"},
		{"an offset given twice", []historyOp{add(1, 2, "a", 0), add(3, 4, "b", 0)}, "a", "lost"},
		{"another offset than was said", []historyOp{add(1, 2, "a", 0), add(3, 4, "b", 2)}, "a b", "found at 1"},
		{"lost", []historyOp{add(1, 2, "a", 0), read(3, 4, 0, "a")}, "", "lost"},
		{"read and then lost", []historyOp{add(1, 0, "a", offsetNone), read(3, 4, 0, "a")}, "", "not at 0"},
		{"stored twice", []historyOp{add(1, 0, "a", offsetNone)}, "a a", "at 0 and at 1"},
		{"of nobody", []historyOp{add(1, 2, "a", 0)}, "a x", "was not appended"},
		{"skipped", []historyOp{add(1, 2, "a", 0), add(3, 4, "b", 1), read(5, 6, 0, "b")}, "a b", "not at 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := checkHistory(c.ops, strings.Fields(c.final))
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

// TestHistoryModel compares checkHistory with the search over everything that a log can
// hold, on small histories, most of which are those of a log.
func TestHistoryModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	verdicts := make(map[bool]int)
	for range 3000 {
		ops, final := randomHistory(rng)
		var whole []porcupine.Operation
		latest := time.Duration(0)
		for _, o := range ops {
			latest = max(latest, o.call)
			if o.ret != historyNever {
				latest = max(latest, o.ret)
			}
			whole = append(whole, porcupine.Operation{ClientId: o.client, Input: o, Call: int64(o.call), Return: int64(o.ret)})
		}
		// What checkHistory takes final for: all of it is read, and nothing comes after.
		for i := range whole {
			if whole[i].Return == int64(historyNever) {
				whole[i].Return = int64(latest + 1)
			}
		}
		for _, o := range []historyOp{{kind: historyRead, values: final}, {kind: historyBounds, end: int64(len(final))}} {
			whole = append(whole, porcupine.Operation{ClientId: 100 + int(o.kind), Input: o, Call: int64(latest + 2), Return: int64(latest + 3)})
		}
		want := porcupine.CheckOperations(wholeModel(), whole)
		err := checkHistory(ops, final)
		require.Equal(t, want, err == nil, "%v\n%v: %v", ops, final, err)
		verdicts[want]++
	}
	t.Logf("%d are histories of a log, %d are not", verdicts[true], verdicts[false])
	require.Greater(t, verdicts[true], 500)
	require.Greater(t, verdicts[false], 500)
}

// randomHistory makes a small history of a log, and mostly does it some harm.
func randomHistory(rng *rand.Rand) (ops []historyOp, final []string) {
	for i := range 3 + rng.IntN(6) {
		o := historyOp{client: i, kind: historyKind(rng.IntN(3))}
		// It happens at 10i, and its call and answer reach over others.
		o.call = time.Duration(10*i - rng.IntN(30))
		o.ret = time.Duration(10*i + 1 + rng.IntN(30))
		length := int64(len(final))
		switch o.kind {
		case historyAppend:
			o.value, o.offset = string(rune('a'+i)), length
			if rng.IntN(4) == 0 {
				o.offset, o.ret = offsetNone, historyNever
			}
			if o.offset != offsetNone || rng.IntN(2) == 0 {
				final = append(final, o.value)
			}
		case historyRead:
			o.offset = rng.Int64N(length + 2)
			o.beyond = o.offset > length
			if o.offset < length {
				o.values = slices.Clone(final[o.offset : o.offset+1+rng.Int64N(length-o.offset)])
			}
		case historyBounds:
			o.end = length
		}
		ops = append(ops, o)
	}
	final = slices.Clone(final)
	harmed := &ops[rng.IntN(len(ops))]
	switch rng.IntN(8) {
	case 0:
		harmed.end = max(0, harmed.end-1)
	case 1:
		harmed.call, harmed.ret = 1000, 1001
	case 2:
		if len(harmed.values) > 0 {
			harmed.values = harmed.values[1:]
		}
	case 3:
		harmed.offset++
	case 4:
		if len(final) > 1 {
			final[0], final[1] = final[1], final[0]
		}
	case 5:
		harmed.beyond = harmed.kind == historyRead && len(harmed.values) == 0
	}
	return ops, final
}

// historyBroker is a broker whose partitions have a history.
type historyBroker interface {
	dial(ctx context.Context, network, addr string) (net.Conn, error)
	// restart ends the broker, by force or not, and starts it again.
	restart(byForce bool) error
}

// historyRun is a history as it is made.
type historyRun struct {
	t      *testing.T
	seed   uint64
	topic  string
	broker historyBroker
	began  time.Time
	calm   chan struct{} // closed when nothing is harmed any more

	mu       sync.Mutex // guards the following
	ops      [historyPartitions][]historyOp
	ends     [historyPartitions]int64 // highest that was seen
	failures []string
	counts   map[string]int
}

const (
	historyPartitions = 2
	historyProducers  = 3
	historyReaders    = 3
	// historyRound bounds what has to be searched.
	historyRound = 1200 * time.Millisecond
)

func TestHistory(t *testing.T) {
	duration, seed := historyRound, uint64(1)
	if s := os.Getenv("ROBUST_HISTORY"); s != "" {
		d, err := time.ParseDuration(s)
		require.NoError(t, err, "ROBUST_HISTORY")
		duration, seed = d, uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("ROBUST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "ROBUST_SEED")
		seed = n
	}
	t.Logf("%v of each policy with ROBUST_SEED=%d", duration, seed)
	for _, policy := range []SyncPolicy{SyncInterval(defaultSyncInterval), SyncAlways, SyncNever} {
		t.Run(policy.String(), func(t *testing.T) {
			t.Parallel() // They wait for the most part.
			b := newProcessBroker(t, t.TempDir(), policy)
			counts := make(map[string]int)
			for round, began := 0, time.Now(); round == 0 || time.Since(began) < duration; round++ {
				counts["rounds"]++
				// Each begins with an empty log.
				failures := historyOf(t, b, fmt.Sprint("history-", round), seed+uint64(round), historyRound, 5, counts)
				require.Empty(t, failures, "seed %d", seed)
			}
			require.NoError(t, b.process.stop())
			b.ended()
			t.Logf("seed %d: %v", seed, counts)
		})
	}
}

// TestHistoryNotices holds that a history tells of a broker that breaks its word.
func TestHistoryNotices(t *testing.T) {
	t.Run("a broker without memory", func(t *testing.T) {
		t.Parallel()
		b := newProcessBroker(t, "", SyncNever)
		require.NotEmpty(t, historyOf(t, b, "history", 1, historyRound/3, 1, make(map[string]int)))
		require.NoError(t, b.process.stop())
	})
	for name, c := range map[string]struct {
		bug  plantedBug
		want string
	}{
		"no bug":                      {plantedNone, ""},
		"a stale end":                 {plantedStale, "linearizable: Illegal"},
		"an offset given twice":       {plantedTwice, "found at"},
		"acknowledged and not stored": {plantedLost, "lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := NewBroker(WithStorage(&plantedStorage{Storage: NewMemoryStorage(), bug: c.bug}), WithLogger(nil))
			require.NoError(t, err)
			defer b.Close()
			// The bug shows now and then, at the latest when there was time enough.
			var failures []string
			for round := 0; round == 0 || c.want != "" && len(failures) == 0 && round < 50; round++ {
				failures = historyOf(t, plantedBroker{b}, fmt.Sprint("history-", round), 1, historyRound/3, 0, make(map[string]int))
			}
			if c.want == "" {
				require.Empty(t, failures)
				return
			}
			require.Contains(t, strings.Join(failures, "\n"), c.want)
		})
	}
}

// processBroker is a broker in a process of its own, over a directory.
type processBroker struct {
	t       *testing.T
	config  processConfig // its address is that of the first process from then on
	process *brokerProcess
}

func newProcessBroker(t *testing.T, dir string, policy SyncPolicy) *processBroker {
	b := &processBroker{t: t, config: processConfig{Dir: dir, Addr: "127.0.0.1:0", Sync: policy}}
	addr, err := b.start()
	require.NoError(t, err)
	b.config.Addr = addr
	return b
}

func (b *processBroker) start() (addr string, err error) {
	b.process = startBrokerProcess(b.t, b.config)
	b.t.Cleanup(b.process.kill)
	return b.process.serving()
}

func (b *processBroker) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", b.config.Addr)
}

func (b *processBroker) restart(byForce bool) error {
	if byForce {
		b.process.kill()
	} else if err := b.process.stop(); err != nil {
		return err
	}
	b.ended()
	_, err := b.start()
	return err
}

func (b *processBroker) ended() { require.Empty(b.t, b.process.broken()) }

// plantedBroker is a broker in this process, which nothing happens to.
type plantedBroker struct{ *Broker }

func (b plantedBroker) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return b.Dial(ctx, network, addr)
}

func (b plantedBroker) restart(bool) error { return nil }

// plantedBug is what is wrong with a plantedStorage.
type plantedBug int

const (
	plantedNone plantedBug = iota
	plantedStale
	plantedTwice
	plantedLost
)

// plantedStorage is a storage whose logs have a bug that shows now and then.
type plantedStorage struct {
	Storage
	bug plantedBug
}

type plantedLog struct {
	PartitionLog
	bug plantedBug

	mu sync.Mutex
	n  int
}

func (s *plantedStorage) OpenPartition(ctx context.Context, topic StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	l, err := s.Storage.OpenPartition(ctx, topic, partition, c, advanced)
	return &plantedLog{PartitionLog: l, bug: s.bug}, err
}

// turn tells whether it is time for the bug to show.
func (l *plantedLog) turn(bug plantedBug) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	return l.bug == bug && l.n%40 == 0
}

func (l *plantedLog) Bounds() (start, end int64) {
	start, end = l.PartitionLog.Bounds()
	if l.turn(plantedStale) && end > start+5 {
		end -= 5
	}
	return start, end
}

func (l *plantedLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	if l.turn(plantedLost) {
		_, end := l.PartitionLog.Bounds()
		done(AppendResult{BaseOffset: end, AppendTime: time.Now().UnixMilli()})
		return
	}
	l.PartitionLog.Append(batches, acks, func(r AppendResult) {
		if l.turn(plantedTwice) && r.BaseOffset > 0 {
			r.BaseOffset--
		}
		done(r)
	})
}

// historyOf makes one round of history and returns what is wrong with it.
func historyOf(t *testing.T, b historyBroker, topic string, seed uint64, lasts time.Duration, restarts int, counts map[string]int) []string {
	r := &historyRun{t: t, seed: seed, topic: topic, broker: b, began: time.Now(), calm: make(chan struct{}), counts: counts}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // of the whole round
	defer cancel()
	admin, err := New(WithBrokers("broker.invalid:1"), WithDialer(b.dial), WithLogger(nil))
	require.NoError(t, err)
	defer admin.Close()
	config := map[string]string{configSegmentBytes: strconv.Itoa(minSegmentBytes)}
	require.NoError(t, admin.Admin().CreateTopic(ctx, topic, historyPartitions, config))

	var clients sync.WaitGroup
	for i := range historyProducers + historyReaders {
		clients.Go(func() { r.client(ctx, i) })
	}
	rng := rand.New(rand.NewPCG(seed, 0))
	for left := restarts; left > 0 || time.Since(r.began) < lasts; {
		if !pause(ctx, nil, time.Duration(rng.Int64N(int64(lasts)/int64(restarts+1)))) {
			break
		}
		if left > 0 {
			left--
			byForce := rng.IntN(3) > 0
			if err := b.restart(byForce); err != nil {
				r.fail("%v", err)
				break
			}
			r.count(map[bool]string{true: "kills", false: "restarts"}[byForce])
		}
	}
	close(r.calm)
	clients.Wait()
	for partition := range int32(historyPartitions) {
		final, err := r.final(ctx, admin, partition)
		if err != nil {
			r.fail("%s/%d cannot be read back: %v", topic, partition, err)
			continue
		}
		if err := checkHistory(r.ops[partition], final); err != nil {
			r.fail("%s/%d: %v", topic, partition, err)
		}
		counts["operations"] += len(r.ops[partition])
		counts["records"] += len(final)
	}
	return r.failures
}

func (r *historyRun) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what]++
}

func (r *historyRun) fail(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// client does one thing after the other until the end, through connections that are cut.
func (r *historyRun) client(ctx context.Context, i int) {
	rng := rand.New(rand.NewPCG(r.seed, 1+uint64(i)))
	proxy := &faultProxy{upstream: r.broker.dial, script: r.script(i)}
	defer proxy.stop()
	c, err := New(WithBrokers("broker.invalid:1"), WithDialer(proxy.dial), WithLogger(nil))
	require.NoError(r.t, err)
	defer c.Close()
	producer, err := c.SyncProducer()
	require.NoError(r.t, err)
	for n := 0; ; n++ {
		select {
		case <-r.calm:
			return
		default:
		}
		partition := rng.Int32N(historyPartitions)
		err := error(nil)
		switch {
		case i < historyProducers:
			err = r.append(ctx, producer, partition, i, fmt.Sprintf("%d-%d", i, n), rng)
		case rng.IntN(3) == 0:
			err = r.bounds(ctx, c, partition, i)
		default:
			err = r.read(ctx, c, partition, i, rng)
		}
		d := time.Duration(rng.IntN(4000)) * time.Microsecond
		if err != nil {
			r.count("operations failed")
			d = 10 * time.Millisecond
		}
		pause(ctx, r.calm, d)
	}
}

// script is what becomes of a client's connections: some are cut, some are slow.
func (r *historyRun) script(client int) func(n int) (up, down stream) {
	return func(n int) (up, down stream) {
		rng := rand.New(rand.NewPCG(r.seed, 1<<20*uint64(client+1)+uint64(n)))
		delay := time.Duration(rng.IntN(3000)) * time.Microsecond
		slow := eachFrame(func(_ *proxyLink, f *proxiedFrame) verdict { return f.delayed(delay) })
		switch rng.IntN(4) {
		case 0:
			return cutAfter(500 + rng.Int64N(20_000)), nil
		case 1:
			return nil, cutAfter(500 + rng.Int64N(20_000))
		case 2:
			return slow, slow
		default:
			return nil, nil
		}
	}
}

// record adds an operation that has just got its answer.
func (r *historyRun) record(partition int32, o historyOp) {
	if o.ret == 0 {
		o.ret = time.Since(r.began)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops[partition] = append(r.ops[partition], o)
	r.ends[partition] = max(r.ends[partition], o.end, o.offset+1)
}

// unexpected notes an error that no fault explains, and returns it.
func (r *historyRun) unexpected(err error) error {
	if !connectionFault(err) && !errors.Is(err, ErrUnavailable) {
		r.fail("%v", err)
	}
	return err
}

func (r *historyRun) append(ctx context.Context, p *SyncProducer, partition int32, client int, value string, rng *rand.Rand) error {
	// Longer than its name, so that there are segments.
	m := NewMessageWithKey(r.topic, []byte(value), make([]byte, rng.IntN(300)))
	m.Partition = partition
	o := historyOp{client: client, value: value, offset: offsetNone, call: time.Since(r.began)}
	receipt, err := sendOnce(ctx, p, m)
	switch {
	case err == nil:
		o.offset = receipt.Offset
	case unsent(err):
		return err
	default:
		_ = r.unexpected(err) // Its fate is what counts.
		o.ret = historyNever
		r.count("appends unanswered")
	}
	r.record(partition, o)
	return err
}

func (r *historyRun) bounds(ctx context.Context, c *Client, partition int32, client int) error {
	o := historyOp{client: client, kind: historyBounds, call: time.Since(r.began)}
	var err error
	if o.end, err = c.listOffset(ctx, r.topic, partition, OffsetNewest); err != nil {
		return r.unexpected(err)
	}
	r.record(partition, o)
	return nil
}

func (r *historyRun) read(ctx context.Context, c *Client, partition int32, client int, rng *rand.Rand) error {
	r.mu.Lock()
	end := r.ends[partition]
	r.mu.Unlock()
	// Mostly about the end, where something happens.
	offset := max(0, end+3-rng.Int64N(10))
	if rng.IntN(3) == 0 {
		offset = rng.Int64N(end + 1)
	}
	o := historyOp{client: client, kind: historyRead, offset: offset, call: time.Since(r.began)}
	resp, err := r.fetch(ctx, c, partition, offset, 1+rng.IntN(20), rng.Int64N(3)*10)
	switch {
	case errors.Is(err, ErrOffsetOutOfRange):
		o.beyond = true
	case err != nil:
		return r.unexpected(err)
	default:
		for i, m := range resp.Messages {
			if m.Offset != offset+int64(i) {
				r.fail("read at %d: offset %d is in place %d", offset, m.Offset, i)
			}
			o.values = append(o.values, string(m.Key))
		}
		// What it says of the end is a statement of its own.
		r.record(partition, historyOp{client: client, kind: historyBounds, end: resp.HighWaterMark, call: o.call})
	}
	r.record(partition, o)
	return nil
}

func (r *historyRun) fetch(ctx context.Context, c *Client, partition int32, offset int64, most int, wait int64) (*fetchResponse, error) {
	req := &fetchRequest{Topic: r.topic, Partition: partition, Offset: offset, MaxBytes: 1 << 20, MaxMessages: most, MinBytes: 1, MaxWaitMs: wait}
	resp := newFetchResponse()
	err := c.ask(ctx, route{topic: r.topic, partition: partition, repeatable: true}, req, resp)
	return resp, err
}

// final reads all that a partition holds.
func (r *historyRun) final(ctx context.Context, c *Client, partition int32) (values []string, err error) {
	for {
		resp, err := r.fetch(ctx, c, partition, int64(len(values)), 1000, 0)
		if err != nil {
			return nil, err
		}
		if len(resp.Messages) == 0 {
			if resp.HighWaterMark != int64(len(values)) || resp.LogStartOffset != 0 {
				return nil, fmt.Errorf("%d records from %d to %d", len(values), resp.LogStartOffset, resp.HighWaterMark)
			}
			return values, nil
		}
		for _, m := range resp.Messages {
			if m.Offset != int64(len(values)) {
				return nil, fmt.Errorf("offset %d comes, %d was to", m.Offset, len(values))
			}
			values = append(values, string(m.Key))
		}
	}
}
