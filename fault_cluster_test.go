package robust

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestNextBrokerIsTried has all brokers but one be down: refusing, or black holes that
// a dial never gets out of. The one that is up is found soon, by everybody and not
// only the first, and all of them go on there.
func TestNextBrokerIsTried(t *testing.T) {
	for _, how := range []string{"refused", "black hole"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 3, 1)
				up := brokers[2]
				dial := dialFakes(brokers...)
				if how == "black hole" {
					dial = dialFakes(up)
				} else {
					brokers[0].setDown(true)
					brokers[1].setDown(true)
				}
				c := faultClient(t, dial, WithBrokers(addrsOf(brokers)...))
				producer := faultProducer(t, c)
				start := time.Now()
				_, _, err := producer.SendMessage(t.Context(), to0("a"))
				require.NoError(t, err)
				require.LessOrEqual(t, time.Since(start), 2*brokerPatience+time.Second)
				// What it has cost once is not to be paid by every call.
				start = time.Now()
				for range 50 {
					_, _, err := producer.SendMessage(t.Context(), to0("a"))
					require.NoError(t, err)
				}
				require.LessOrEqual(t, time.Since(start), 2*brokerPatience+time.Second)
				pc := faultConsumer(t, c)
				for i := range int64(51) {
					m, err := next(t, pc, time.Minute)
					require.NoError(t, err)
					require.Equal(t, i, m.Offset)
				}
				require.LessOrEqual(t, time.Since(start), 30*time.Second)
			})
		})
	}
}

// TestNoBroker has every broker be down, in either way: calls end in time, saying so.
func TestNoBroker(t *testing.T) {
	for _, how := range []string{"refused", "black hole"} {
		t.Run(how, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 2, 1)
				dial := dialFakes()
				if how == "refused" {
					brokers[0].setDown(true)
					brokers[1].setDown(true)
					dial = dialFakes(brokers...)
				}
				c := faultClient(t, dial, WithBrokers(addrsOf(brokers)...))
				start := time.Now()
				_, _, err := faultProducer(t, c, WithDeliveryTimeout(20*time.Second)).SendMessage(t.Context(), to0("a"))
				require.ErrorIs(t, err, ErrNoBroker)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				requireFault(t, err)
				require.LessOrEqual(t, time.Since(start), 20*time.Second)
				require.Greater(t, time.Since(start), 18*time.Second)

				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				start = time.Now()
				err = c.Ping(ctx)
				require.Error(t, err)
				requireFault(t, err)
				require.LessOrEqual(t, time.Since(start), time.Second)

				pc := faultConsumer(t, c)
				_, err = next(t, pc, time.Minute)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, <-pc.Errors(), ErrNoBroker)
				require.Contains(t, pc.Status().String(), "waiting for broker")
			})
		})
	}
}

// TestBrokerComesBack has the only broker be away for a while: what waits goes on when
// it is there again, soon.
func TestBrokerComesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		producer, pc := faultProducer(t, c), faultConsumer(t, c)
		for i, away := range []time.Duration{time.Millisecond, time.Second, 30 * time.Second} {
			b.setDown(true)
			back := time.Now().Add(away)
			time.AfterFunc(away, func() { b.setDown(false) })
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, int64(i), offset)
			// Two waits of at most 600 ms: for the next dial, and for the next try.
			require.Less(t, time.Since(back), 1500*time.Millisecond)
			m, err := next(t, pc, time.Minute)
			require.NoError(t, err)
			require.Equal(t, int64(i), m.Offset)
			require.Less(t, time.Since(back), 3*time.Second)
		}
	})
}

// TestRoundRobin spreads requests that any broker can serve evenly.
func TestRoundRobin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 3, 1)
		c := faultClient(t, dialFakes(brokers...), WithBrokers(addrsOf(brokers)...))
		for range 30 {
			_, err := c.Admin().GetMetadata(t.Context(), nil)
			require.NoError(t, err)
		}
		for _, b := range brokers {
			require.Len(t, b.asked(requestMetadata), 10)
		}
	})
}

// TestLeaderRouting sends and fetches at the broker that leads the partition, which
// metadata names by its ID or by its address, and asks nobody else.
func TestLeaderRouting(t *testing.T) {
	for _, named := range []string{"by ID", "by address"} {
		t.Run(named, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				brokers := cluster(t, 3, 3)
				for i, b := range brokers {
					name := b.id
					if named == "by address" {
						name = b.addr
					}
					b.log.setLeader(int32(i), name)
				}
				// One seed is enough: the others are found through it.
				c := faultClient(t, dialFakes(brokers...), WithBrokers(brokers[0].addr))
				producer := faultProducer(t, c)
				var ms []*Message
				for i := range 30 {
					m := NewMessage(faultTopic, fmt.Append(nil, i))
					m.Partition = int32(i % 3)
					if i < 15 {
						_, _, err := producer.SendMessage(t.Context(), m)
						require.NoError(t, err)
					} else {
						ms = append(ms, m)
					}
				}
				require.NoError(t, producer.SendMessages(t.Context(), ms))
				for partition := range int32(3) {
					require.Len(t, brokers[partition].asked(requestProduce), 10)
					pc, err := c.PartitionConsumer(faultTopic, partition, WithStartOffset(0))
					require.NoError(t, err)
					for i := range int64(10) {
						m, err := next(t, pc, time.Minute)
						require.NoError(t, err)
						require.Equal(t, i, m.Offset)
					}
					require.NoError(t, pc.Close())
				}
				for partition, b := range brokers {
					for _, r := range b.asked(requestFetch) {
						var q fetchRequest
						r.into(&q)
						require.Equal(t, int32(partition), q.Partition)
					}
				}
			})
		})
	}
}

// TestLeaderMoves has the leadership of a partition move while a producer and a
// consumer work. The refusal of the old leader has the new one looked up; nothing is
// lost or read twice.
func TestLeaderMoves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 3, 1)
		log := brokers[0].log
		log.setLeader(0, "a")
		c := faultClient(t, dialFakes(brokers...), WithBrokers(addrsOf(brokers)...))
		producer, pc := faultProducer(t, c), faultConsumer(t, c)
		for i := range int64(30) {
			leader := brokers[i%3]
			log.setLeader(0, leader.id)
			start := time.Now()
			before := len(leader.asked(requestProduce))
			_, offset, err := producer.SendMessage(t.Context(), to0("a"))
			require.NoError(t, err)
			require.Equal(t, i, offset)
			require.Less(t, time.Since(start), time.Second)
			require.Len(t, leader.asked(requestProduce), before+1)
			m, err := next(t, pc, time.Minute)
			require.NoError(t, err)
			require.Equal(t, i, m.Offset)
		}
		// Pipelined messages find the new leader too, and keep their order.
		log.setLeader(0, "b")
		ms := make([]*Message, 50)
		for i := range ms {
			ms[i] = to0(fmt.Sprint(i))
		}
		require.NoError(t, producer.SendMessages(t.Context(), ms))
		for i, m := range ms {
			require.Equal(t, int64(30+i), m.Offset)
		}
	})
}

// TestNobodyLeads has every broker refuse to be the leader: the refusal is returned
// after the retries, each of which has asked for metadata anew.
func TestNobodyLeads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		b.log.setLeader(0, "nobody")
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		_, _, err := faultProducer(t, c, WithRetries(4)).SendMessage(t.Context(), to0("a"))
		require.ErrorIs(t, err, ErrNotLeader)
		require.Len(t, b.asked(requestProduce), 5)
		require.Len(t, b.asked(requestMetadata), 5)
		pc := faultConsumer(t, c, WithStartOffset(0))
		_, err = next(t, pc, 20*time.Second)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, <-pc.Errors(), ErrNotLeader)
		require.Less(t, b.askedTotal(), 150)
	})
}

// TestAdvertisedAddressCannotBeReached has the leader be named with an address that
// leads nowhere, as behind a mapped port. It is reached at the seed's address, at
// once, and again at once when that connection has broken: waiting for the address
// that leads nowhere cost 5 s after every broken connection.
func TestAdvertisedAddressCannotBeReached(t *testing.T) {
	for _, named := range []string{"by ID", "by address", "by ID, and the broker does not say which one it is"} {
		t.Run(named, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := cluster(t, 1, 1)[0]
				seed := b.addr
				b.nodes["a"] = "inside.invalid:1"
				b.log.setLeader(0, "a")
				known := named == "by ID"
				switch named {
				case "by address":
					b.log.setLeader(0, "inside.invalid:1")
					b.script = func(*fakeRequest) *fakeAnswer { b.addr = "inside.invalid:1"; return nil }
				case "by ID":
				default:
					b.features = nil
				}
				dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
					if addr == seed {
						return b.dial(ctx, network, addr)
					}
					<-ctx.Done()
					return nil, ctx.Err()
				}
				c := faultClient(t, dial, WithBrokers(seed))
				producer := faultProducer(t, c)
				for i := range int64(5) {
					start := time.Now()
					_, offset, err := producer.SendMessage(t.Context(), to0("a"))
					require.NoError(t, err)
					require.Equal(t, i, offset)
					if known || i > 0 {
						require.Less(t, time.Since(start), time.Second, "message %d", i)
					} else {
						require.LessOrEqual(t, time.Since(start), brokerPatience+time.Second)
					}
					b.setDown(true)
					b.setDown(false)
				}
			})
		})
	}
}

// TestConnectionDiesAtOnce has a connection be lost at once while another to the same
// broker could not be opened a moment ago. What is reported is a failure with a cause.
func TestConnectionDiesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		var dials atomic.Int64
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				<-time.After(time.Millisecond)
				return nil, errRefused // While the second dial is under way.
			}
			<-time.After(2 * time.Millisecond)
			return b.dial(ctx, network, addr)
		}
		c := faultClient(t, dial, WithBrokers(b.addr))
		var running sync.WaitGroup
		for _, held := range []bool{false, true} {
			running.Go(func() {
				conn, err := c.pool.get(t.Context(), b.addr, held, false, patience{limit: time.Minute})
				if err == nil {
					conn.closeWith(&ConnError{Addr: b.addr, Op: "read", Err: errSilent})
				}
			})
		}
		running.Wait()
		_, err := c.pool.get(t.Context(), b.addr, false, false, patience{limit: time.Minute})
		if err != nil {
			var ce *ConnError
			require.ErrorAs(t, err, &ce)
			require.Error(t, ce.Err, "a failure without a cause")
		}
	})
}

// TestNodeMovesToAnotherAddress has a node come back at another address, which
// ClusterInfo tells. Where it was before is not asked for ever.
func TestNodeMovesToAnotherAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		brokers := cluster(t, 2, 1)
		seed, leader := brokers[0], brokers[1]
		seed.log.setLeader(0, leader.id)
		moved := newFakeBroker(t, leader.log)
		moved.id, moved.addr, moved.nodes = leader.id, "moved.invalid:1", leader.nodes
		c := faultClient(t, dialFakes(seed, leader, moved), WithBrokers(seed.addr), WithMetadataMaxAge(10*time.Second))
		producer := faultProducer(t, c)
		_, _, err := producer.SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		leader.setDown(true)
		seed.nodes[leader.id] = moved.addr
		start := time.Now()
		_, offset, err := producer.SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
		require.Equal(t, int64(1), offset)
		require.Less(t, time.Since(start), 15*time.Second)
		require.Len(t, moved.asked(requestProduce), 1)
	})
}

// TestBrokerRestarts ends a broker and opens another on the same storage and port, a
// few times, while producers and consumers work. Everything that was acknowledged is
// read where the acknowledgement says, everybody goes on.
func TestBrokerRestarts(t *testing.T) {
	t.Parallel()
	const producers, consumers, restarts, partitions = 20, 3, 4, 3
	storage := NewMemoryStorage()
	open := func() *Broker {
		b, err := NewBroker(WithStorage(storage), WithTopic(faultTopic, partitions), WithNodeID("n"), WithLogger(nil))
		require.NoError(t, err)
		return b
	}
	b := open()
	listening, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	addr := listening.String()
	c := faultClient(t, new(net.Dialer).DialContext, WithBrokers(addr))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()

	// Each producer goes on until it has sent some after the last restart.
	var round atomic.Int64
	var mu sync.Mutex
	acknowledged := make(map[TopicPartition]map[int64]string)
	counts := make([]atomic.Int64, restarts+1) // of acknowledgements, by restart
	var running sync.WaitGroup
	for i := range producers {
		producer := faultProducer(t, c)
		running.Go(func() {
			for j, last := 0, 0; last < 5; j++ {
				now := round.Load()
				m := NewMessage(faultTopic, fmt.Appendf(nil, "%d/%d", i, j))
				m.Partition = int32((i + j) % partitions)
				partition, offset, err := producer.SendMessage(ctx, m)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				tp := TopicPartition{faultTopic, partition}
				if acknowledged[tp] == nil {
					acknowledged[tp] = make(map[int64]string)
				}
				if before, twice := acknowledged[tp][offset]; twice {
					t.Errorf("offset %d was given to %s and to %s", offset, before, m.Value)
				}
				acknowledged[tp][offset] = string(m.Value)
				mu.Unlock()
				counts[now].Add(1)
				if now == restarts {
					last++
				}
			}
		})
	}
	type reading struct {
		pc    *PartitionConsumer
		read  map[int64]string
		count atomic.Int64
	}
	readings := make([]*reading, consumers)
	readCtx, stopReading := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for i := range readings {
		pc, err := c.PartitionConsumer(faultTopic, int32(i))
		require.NoError(t, err)
		r := &reading{pc: pc, read: make(map[int64]string)}
		readings[i] = r
		readers.Go(func() {
			for m, err := range pc.All(readCtx) {
				if err != nil {
					if readCtx.Err() == nil {
						t.Error(err)
					}
					return
				}
				if m.Offset != int64(len(r.read)) {
					t.Errorf("read offset %d after %d messages", m.Offset, len(r.read))
					return
				}
				r.read[m.Offset] = string(m.Value)
				r.count.Add(1)
			}
		})
	}
	for i := range restarts {
		// Everybody has got somewhere before the next restart.
		waitUntil(t, ctx, func() bool {
			if counts[i].Load() < 50 {
				return false
			}
			for _, r := range readings {
				if r.count.Load() == 0 {
					return false
				}
			}
			return true
		})
		for _, r := range readings {
			r.count.Store(0)
		}
		if i%2 == 0 {
			require.NoError(t, b.Close())
		} else {
			require.NoError(t, b.Shutdown(ctx))
		}
		b = open()
		// Somebody else's connection may have the port for a moment.
		waitUntil(t, ctx, func() bool { _, err := b.Listen(addr); return err == nil })
		round.Add(1)
	}
	running.Wait()
	for partition, r := range readings {
		end := highWaterMark(t, b, faultTopic, int32(partition))
		waitUntil(t, ctx, func() bool { return r.pc.Offset() >= end })
	}
	stopReading()
	readers.Wait()
	for partition, r := range readings {
		for offset, value := range acknowledged[TopicPartition{faultTopic, int32(partition)}] {
			require.Equal(t, value, r.read[offset])
		}
		require.Equal(t, stored(t, b, int32(partition)), valuesOf(r.read))
	}
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
}

// valuesOf puts what was read in the order of offsets.
func valuesOf(read map[int64]string) []string {
	values := make([]string, len(read))
	for offset, value := range read {
		values[offset] = value
	}
	return values
}

// waitUntil looks again and again until done says so. It is for what nothing signals.
func waitUntil(t *testing.T, ctx context.Context, done func() bool) { //nolint:revive // t goes first, as everywhere
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			require.FailNow(t, "nothing goes on any more")
		}
	}
}
