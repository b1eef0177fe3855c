package robust

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// produceTorture has producers send while connections are cut, slow and carry requests and
// answers twice, and while the broker is killed. Afterwards each message that was acknowledged
// has to be in the log once, where the acknowledgement says, each that was not at most once,
// and those of a producer in a partition in their order.
type produceTorture struct {
	t        testing.TB
	messages int // of all producers
	// plain has the broker know no extension. Then a message may be stored more than once, but
	// none for the first time before one that was sent before it, unless that has failed.
	plain bool

	mu     sync.Mutex // guards the following
	rng    *rand.Rand
	counts map[string]int
	told   []map[uint64]tortureReceipt // by producer, by number
}

// tortureReceipt is what a producer was told of a message.
type tortureReceipt struct {
	receipt Receipt
	err     error
}

const (
	tortureProducers  = 6
	torturePartitions = 3
)

// TestTortureProduce is planned by ROBUST_SEED and sends ROBUST_MESSAGES messages in each of
// its parts.
func TestTortureProduce(t *testing.T) {
	messages, seed := 6000, rand.Uint64()
	if s := os.Getenv("ROBUST_MESSAGES"); s != "" {
		n, err := strconv.Atoi(s)
		require.NoError(t, err, "ROBUST_MESSAGES")
		messages = n
	}
	if s := os.Getenv("ROBUST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "ROBUST_SEED")
		seed = n
	}
	t.Logf("ROBUST_SEED=%d", seed)
	begin := func(t *testing.T) *produceTorture {
		return &produceTorture{t: t, messages: messages, rng: rand.New(rand.NewPCG(seed, 0)), counts: make(map[string]int)}
	}
	t.Run("proxy", func(t *testing.T) {
		w := begin(t)
		b := faultBroker(t, torturePartitions, WithDataDir(t.TempDir()), WithRetention(0, 0))
		proxy := newFaultProxy(t, b.Dial, w.script)
		w.run(proxy.dial, nil)
		w.count("connections", proxy.connections())
		w.check(faultClient(t, b.Dial))
	})
	t.Run("plain", func(t *testing.T) {
		bubble(t, func(t *testing.T) { // Silence takes its time.
			w := begin(t)
			w.plain = true
			b := faultBroker(t, torturePartitions, WithDataDir(t.TempDir()), WithRetention(0, 0))
			old := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
				return requests(nil), answers(func(f proxiedFrame) verdict {
					if f.kind == requestClusterInfo {
						return f.edited(t, withoutFeatures)
					}
					return f.pass()
				})
			})
			proxy := newFaultProxy(t, old.dial, w.plainScript)
			w.run(proxy.dial, nil)
			w.count("connections", proxy.connections())
			w.check(faultClient(t, b.Dial))
		})
	})
	t.Run("kill", func(t *testing.T) {
		w := begin(t)
		config := processConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0", Sync: SyncInterval(time.Second)}
		process := startBrokerProcess(t, config)
		defer func() { process.kill() }()
		addr, err := process.serving()
		require.NoError(t, err)
		config.Addr = addr
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		admin := faultClient(t, dial)
		require.NoError(t, admin.Admin().CreateTopic(t.Context(), faultTopic, torturePartitions, nil))
		w.run(dial, func(ctx context.Context) {
			longest := max(200, w.messages/500)
			for pause(ctx, nil, time.Duration(20+w.int(longest))*time.Millisecond) {
				process.kill()
				w.count("brokers killed", 1)
				process = startBrokerProcess(t, config)
				_, err := process.serving()
				require.NoError(t, err)
			}
		})
		w.check(admin)
	})
}

func (w *produceTorture) count(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

func (w *produceTorture) int(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

// script is what becomes of a connection: mostly it is cut sooner or later, in one direction.
func (w *produceTorture) script(int) (up, down stream) {
	after := int64(w.int(1 << w.int(21)))
	switch w.int(5) {
	case 0:
		return cutAfter(after), passAll
	case 1:
		return passAll, cutAfter(after)
	case 2: // Requests come twice: a broker that does not recognise them stores them twice.
		return requests(func(f proxiedFrame) verdict {
			if f.kind == requestProduceBatch && w.int(4) == 0 {
				w.count("requests twice", 1)
				return f.twice()
			}
			return f.pass()
		}), cutAfter(after)
	case 3:
		return requests(nil), answers(func(f proxiedFrame) verdict {
			switch w.int(20) {
			case 0:
				w.count("answers lost", 1)
				return verdict{then: thenCut}
			case 1:
				w.count("answers twice", 1)
				return f.twice()
			case 2:
				w.count("answers late", 1)
				return f.delayed(time.Duration(w.int(20)) * time.Millisecond)
			case 3:
				w.count("answers late, others not", 1)
				return f.late(time.Duration(w.int(20)) * time.Millisecond)
			default:
				return f.pass()
			}
		})
	default:
		return dripping(1<<10+after/16, time.Millisecond), passAll
	}
}

// plainScript is script for a broker that takes messages one by one. Some connections fall
// silent, for which others have to be found.
func (w *produceTorture) plainScript(int) (up, down stream) {
	after := int64(w.int(1 << (1 + w.int(17))))
	switch w.int(7) {
	case 0:
		return cutAfter(after), passAll
	case 1:
		return passAll, cutAfter(after)
	case 2:
		w.count("connections silent to the broker", 1)
		return silentAfter(after), passAll
	case 3:
		w.count("connections silent to the client", 1)
		return passAll, silentAfter(after)
	case 4:
		return requests(func(f proxiedFrame) verdict {
			if f.kind == requestProduce && w.int(50) == 0 {
				w.count("requests twice", 1)
				return f.twice()
			}
			return f.pass()
		}), cutAfter(after)
	case 5:
		return requests(nil), answers(func(f proxiedFrame) verdict {
			switch w.int(100) {
			case 0:
				w.count("answers lost, with what follows", 1)
				return verdict{then: thenCut}
			case 1:
				w.count("answers lost", 1)
				return f.drop()
			case 2:
				w.count("answers twice", 1)
				return f.twice()
			case 3:
				w.count("answers late", 1)
				return f.delayed(time.Duration(w.int(2000)) * time.Millisecond)
			case 4:
				w.count("answers late, others not", 1)
				return f.late(time.Duration(w.int(20_000)) * time.Millisecond)
			default:
				return f.pass()
			}
		})
	default:
		return dripping(1<<10+after/16, time.Millisecond), cutAfter(after)
	}
}

// run has the producers send, while trouble is made until they are done.
func (w *produceTorture) run(dial dialFunc, trouble func(context.Context)) {
	began := time.Now()
	limit := 30 * time.Minute
	if w.plain {
		limit = 500 * time.Hour // Of fake time, of which silence takes much.
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	troubled, calm := context.WithCancel(ctx)
	defer calm()
	var making sync.WaitGroup
	if trouble != nil {
		making.Go(func() { trouble(troubled) })
	}
	w.told = make([]map[uint64]tortureReceipt, tortureProducers)
	var sending sync.WaitGroup
	for i := range tortureProducers {
		w.told[i] = make(map[uint64]tortureReceipt)
		delivery := 10 * time.Minute
		if w.plain && i == 0 {
			delivery = 10 * time.Second // Some of its messages fail.
		}
		c := faultClient(w.t, dial, WithDeliveryTimeout(delivery), WithRequestTimeout(5*time.Second),
			WithCompression(Compression(i%5)), WithMaxBufferedBytes(1<<20))
		sending.Go(func() {
			if i%3 == 2 {
				w.sendSync(ctx, i, c)
			} else {
				w.sendAsync(ctx, i, c)
			}
			w.count("retries", int(c.Metrics().Producer.GetStats().Retries))
		})
	}
	sending.Wait()
	calm()
	making.Wait()
	w.count("seconds", int(time.Since(began).Seconds()))
}

// message is the n-th of a producer; the value says so.
func (w *produceTorture) message(producer int, n uint64) *Message {
	value := make([]byte, 16+w.int(100))
	binary.BigEndian.PutUint64(value, uint64(producer))
	binary.BigEndian.PutUint64(value[8:], n)
	m := NewMessage(faultTopic, value)
	m.Partition = int32(n % torturePartitions)
	return m
}

func (w *produceTorture) tell(producer int, n uint64, r Receipt, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, twice := w.told[producer][n]; twice {
		w.t.Errorf("producer %d was told twice of message %d", producer, n)
	}
	w.told[producer][n] = tortureReceipt{r, err}
}

func (w *produceTorture) sendAsync(ctx context.Context, producer int, c *Client) {
	opts := []AsyncOption{WithBatchSize(1 + w.int(200)), WithBatchTimeout(time.Duration(w.int(5)) * time.Millisecond)}
	if w.plain {
		// No time passes between messages, which would all be in one batch.
		opts = append(opts, WithBatchBytes(1<<(10+w.int(5))))
	}
	p, err := c.AsyncProducer(opts...)
	if err != nil {
		w.t.Error(err)
		return
	}
	for n := range uint64(w.messages / tortureProducers) {
		err := p.SendFunc(ctx, w.message(producer, n), func(_ *Message, r Receipt, err error) { w.tell(producer, n, r, err) })
		switch {
		case err == nil:
		case w.plain && errors.Is(err, context.DeadlineExceeded):
			w.count("not taken in time", 1)
			w.tell(producer, n, Receipt{}, err)
		default:
			w.t.Errorf("producer %d: message %d: %v", producer, n, err)
			return
		}
	}
	if err := p.Flush(ctx); err != nil {
		w.t.Errorf("producer %d: %v", producer, err)
	}
	if err := p.Close(); err != nil {
		w.t.Errorf("producer %d: %v", producer, err)
	}
}

// sendSync sends one after the other to each partition, side by side.
func (w *produceTorture) sendSync(ctx context.Context, producer int, c *Client) {
	p, err := c.SyncProducer()
	if err != nil {
		w.t.Error(err)
		return
	}
	var lanes sync.WaitGroup
	for partition := range uint64(torturePartitions) {
		lanes.Go(func() {
			for n := partition; n < uint64(w.messages/tortureProducers); n += torturePartitions {
				r, err := p.Send(ctx, w.message(producer, n))
				w.tell(producer, n, r, err)
			}
		})
	}
	lanes.Wait()
}

// check reads the logs and compares them with what the producers were told.
func (w *produceTorture) check(c *Client) {
	t := w.t
	total := 0
	for producer, told := range w.told {
		require.Len(t, told, w.messages/tortureProducers, "results of producer %d", producer)
	}
	for partition := range int32(torturePartitions) {
		ends, err := c.listOffsets(t.Context(), faultTopic, []int32{partition}, OffsetNewest)
		require.NoError(t, err)
		in := tortureLog{w: w, partition: partition, last: make(map[uint64]uint64), stored: make([]map[uint64]bool, tortureProducers)}
		next := int64(0)
		pc, err := c.PartitionConsumer(faultTopic, partition)
		require.NoError(t, err)
		for m, err := range pc.All(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, next, m.Offset)
			next++
			in.add(m)
			total++
			if next == ends[partition] {
				break
			}
		}
		require.NoError(t, pc.Close())
		in.forgetStored()
	}
	for producer, told := range w.told {
		for n, r := range told {
			require.Error(t, r.err, "message %d of producer %d was acknowledged at %d/%d and is not stored", n, producer, r.receipt.Partition, r.receipt.Offset)
			w.count("not acknowledged and not stored", 1)
		}
	}
	w.count("messages stored", total)
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		t.Logf("%12d %s", w.counts[what], what)
	}
}

// tortureLog is what a partition holds, as it is read.
type tortureLog struct {
	w         *produceTorture
	partition int32
	last      map[uint64]uint64 // number behind the last message, by producer
	// stored is by producer and number: whether a message is where its acknowledgement says.
	stored []map[uint64]bool
}

func (l *tortureLog) add(m *Message) {
	w, t := l.w, l.w.t
	producer, n := binary.BigEndian.Uint64(m.Value), binary.BigEndian.Uint64(m.Value[8:])
	told := w.told[producer][n]
	there, again := l.stored[producer][n]
	switch {
	case again && w.plain:
		w.count("stored again", 1)
	case w.plain && told.err != nil && n < l.last[producer]:
		w.count("stored late, and not acknowledged", 1)
	default:
		require.GreaterOrEqual(t, n, l.last[producer], "%d/%d: message %d of producer %d is stored twice or late", l.partition, m.Offset, n, producer)
		l.last[producer] = n + 1
	}
	here := told.receipt.Partition == l.partition && told.receipt.Offset == m.Offset
	switch {
	case told.err != nil && !again:
		w.count("stored without an acknowledgement", 1)
	case told.err == nil && !w.plain:
		require.True(t, here, "%d/%d: message %d of producer %d was acknowledged at %d/%d",
			l.partition, m.Offset, n, producer, told.receipt.Partition, told.receipt.Offset)
	}
	if l.stored[producer] == nil {
		l.stored[producer] = make(map[uint64]bool)
	}
	l.stored[producer][n] = there || here || told.err != nil
}

// forgetStored takes out what is there where it was acknowledged, and what was not acknowledged.
func (l *tortureLog) forgetStored() {
	for producer, numbers := range l.stored {
		for n, there := range numbers {
			if there {
				delete(l.w.told[producer], n)
			}
		}
	}
}
