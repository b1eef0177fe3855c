package robust

import (
	"context"
	"encoding/binary"
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

// run has the producers send, while trouble is made until they are done.
func (w *produceTorture) run(dial dialFunc, trouble func(context.Context)) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Minute)
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
		c := faultClient(w.t, dial, WithDeliveryTimeout(10*time.Minute), WithRequestTimeout(5*time.Second),
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
	p, err := c.AsyncProducer(WithBatchSize(1+w.int(200)), WithBatchTimeout(time.Duration(w.int(5))*time.Millisecond))
	if err != nil {
		w.t.Error(err)
		return
	}
	for n := range uint64(w.messages / tortureProducers) {
		err := p.SendFunc(ctx, w.message(producer, n), func(_ *Message, r Receipt, err error) { w.tell(producer, n, r, err) })
		if err != nil {
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
		last := make(map[uint64]uint64) // number behind the last message, by producer
		next := int64(0)
		pc, err := c.PartitionConsumer(faultTopic, partition)
		require.NoError(t, err)
		for m, err := range pc.All(t.Context()) {
			require.NoError(t, err)
			require.Equal(t, next, m.Offset)
			next++
			producer, n := binary.BigEndian.Uint64(m.Value), binary.BigEndian.Uint64(m.Value[8:])
			require.GreaterOrEqual(t, n, last[producer], "%d/%d: message %d of producer %d is stored twice or late", partition, m.Offset, n, producer)
			last[producer] = n + 1
			told := w.told[producer][n]
			if told.err == nil {
				require.Equal(t, []int64{int64(partition), m.Offset}, []int64{int64(told.receipt.Partition), told.receipt.Offset},
					"message %d of producer %d", n, producer)
			} else {
				w.count("stored without an acknowledgement", 1)
			}
			delete(w.told[producer], n)
			total++
			if next == ends[partition] {
				break
			}
		}
		require.NoError(t, pc.Close())
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
