package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAsyncMissingTopic sends to a topic that is not there. Its messages fail, soon, and
// nobody else's wait for that.
func TestAsyncMissingTopic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		p := faultAsync(t, quietClient(t, b))
		var told outcomes
		start := time.Now()
		for i := range 50 {
			m := to0(fmt.Sprint(i))
			if i%2 == 0 {
				m.Topic, m.Partition = "missing", PartitionAny-int32(i%4/2)*PartitionAny // Any of them, or 0.
			}
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
		}
		require.NoError(t, p.Flush(t.Context()))
		require.Less(t, time.Since(start), time.Second)
		for i := range 50 {
			x := told.of(t, fmt.Sprint(i))
			if i%2 == 0 {
				require.ErrorIs(t, x.err, ErrTopicNotFound)
			} else {
				require.NoError(t, x.err)
			}
		}
		require.Len(t, stored(t, b, 0), 25)
		// It is there when somebody has made it.
		require.NoError(t, p.client.Admin().CreateTopic(t.Context(), "missing", 2, nil))
		require.NoError(t, p.SendFunc(t.Context(), NewMessage("missing", []byte("a")), told.done))
		require.NoError(t, p.Flush(t.Context()))
		require.NoError(t, told.of(t, "a").err)
		require.NoError(t, p.Close())
	})
}

// TestAsyncCreatesTopics sends to brokers that create topics when they are asked about them,
// or when a message comes.
func TestAsyncCreatesTopics(t *testing.T) {
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		bubble(t, func(t *testing.T) {
			b := faultBroker(t, 1, WithAutoCreateTopics(3))
			c := quietClient(t, b, WithProtocol(form))
			p := faultAsync(t, c)
			var told outcomes
			for i := range 300 {
				m := NewMessageWithKey(fmt.Sprintf("new%d", i%4), fmt.Append(nil, i), fmt.Append(nil, i))
				require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			}
			require.NoError(t, p.Close())
			for i := range 300 {
				require.NoError(t, told.of(t, fmt.Sprint(i)).err)
			}
			total := int64(0)
			for topic := range 4 {
				for partition := range int32(3) {
					total += highWaterMark(t, b, fmt.Sprintf("new%d", topic), partition)
				}
			}
			require.Equal(t, int64(300), total)
		})
	}
}

// TestAsyncGrownTopic sends to a topic that is given more partitions: who names one reaches
// it at once, the others when metadata is old.
func TestAsyncGrownTopic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		c := quietClient(t, b, WithMetadataMaxAge(10*time.Second))
		p := faultAsync(t, c)
		var told outcomes
		n := 0
		send := func(partition int32) {
			m := NewMessage(faultTopic, fmt.Append(nil, n))
			m.Partition = partition
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			n++
		}
		for range 50 {
			send(PartitionAny)
		}
		send(4)
		require.NoError(t, p.Flush(t.Context()))
		require.ErrorIs(t, told.of(t, "50").err, ErrPartitionNotFound)
		require.NoError(t, c.Admin().CreatePartitions(t.Context(), faultTopic, 6))
		send(4)
		require.NoError(t, p.Flush(t.Context()))
		require.NoError(t, told.of(t, "51").err)
		for range 300 {
			send(PartitionAny)
			<-time.After(100 * time.Millisecond)
		}
		require.NoError(t, p.Close())
		require.Equal(t, n-1, told.check(t, b, 6, n))
		for partition := range int32(6) {
			require.NotEmpty(t, stored(t, b, partition))
		}
	})
}

// TestAsyncTopicIsMadeAnew deletes a topic and makes it anew, with as many partitions or
// fewer, while messages are sent. Each has one result and is stored once; afterwards all goes
// on, from offset 0, without an error for messages that name no partition.
func TestAsyncTopicIsMadeAnew(t *testing.T) {
	for _, partitions := range []int32{3, 1} {
		t.Run(fmt.Sprint(partitions), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 3)
				c := quietClient(t, b)
				p := faultAsync(t, c)
				admin := quietClient(t, b).Admin()
				var told outcomes
				n := 0
				send := func(partition int32) {
					m := NewMessage(faultTopic, fmt.Append(nil, n))
					m.Partition = partition
					require.NoError(t, p.SendFunc(t.Context(), m, told.done))
					n++
				}
				for range 5 {
					for range 100 {
						send(int32(n % 3))
					}
					require.NoError(t, p.Flush(t.Context()))
					require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
					require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 3, nil))
				}
				synctest.Wait()
				// Nobody has told the producer, and there is nothing left.
				require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
				require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, partitions, nil))
				before := n
				for range 300 {
					send(PartitionAny)
				}
				require.NoError(t, p.Flush(t.Context()))
				logs := make([][]string, partitions)
				for i := range logs {
					logs[i] = stored(t, b, int32(i))
					requireOnce(t, logs[i])
				}
				for i := range n {
					x := told.of(t, fmt.Sprint(i))
					require.NoError(t, x.err, i)
					if i >= before {
						require.Equal(t, fmt.Sprint(i), logs[x.receipt.Partition][x.receipt.Offset])
					}
				}
				require.Len(t, slices.Concat(logs...), 300)
				if partitions == 1 {
					send(2) // That is there no more.
					send(0)
					require.NoError(t, p.Flush(t.Context()))
					require.ErrorIs(t, told.of(t, fmt.Sprint(n-2)).err, ErrPartitionNotFound)
					require.NoError(t, told.of(t, fmt.Sprint(n-1)).err)
				}
				// While it is not there messages fail, and say so.
				require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
				send(PartitionAny)
				send(0)
				require.NoError(t, p.Flush(t.Context()))
				for i := n - 2; i < n; i++ {
					require.ErrorIs(t, told.of(t, fmt.Sprint(i)).err, ErrTopicNotFound)
				}
				require.NoError(t, p.Close())
			})
		})
	}
}

// TestAsyncKeysStayInOrder has a topic be made anew with fewer partitions while messages with
// keys are sent. What was on its way to a partition that is gone goes to another, and there no
// message of the same key that was sent later stands before it: whether the producer learns of
// it by a refusal or by looking again, with brokers that take batches and with others.
func TestAsyncKeysStayInOrder(t *testing.T) {
	for _, with := range []struct {
		name   string
		form   Protocol
		maxAge time.Duration
	}{
		{"refused", ProtocolV1, time.Minute},
		{"looked up", ProtocolV1, time.Millisecond},
		{"plain", ProtocolV0, time.Minute},
		{"plain, looked up", ProtocolV0, time.Millisecond},
	} {
		t.Run(with.name, func(t *testing.T) {
			for seed := range uint64(5) {
				bubble(t, func(t *testing.T) { sendKeysToFewer(t, seed, WithProtocol(with.form), WithMetadataMaxAge(with.maxAge)) })
			}
		})
	}
}

func sendKeysToFewer(t *testing.T, seed uint64, opts ...Option) {
	const keys, n = 20, 1500
	rng := rand.New(rand.NewPCG(seed, 7))
	b := faultBroker(t, 6)
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		late := rand.New(rand.NewPCG(seed, 8))
		return requests(nil), answers(func(f proxiedFrame) verdict { return f.late(time.Duration(late.IntN(4)) * time.Millisecond) })
	})
	c := faultClient(t, proxy.dial, append(opts, WithDeliveryTimeout(time.Hour))...)
	p := faultAsync(t, c, WithBatchSize(5), WithBatchTimeout(time.Millisecond))
	admin := quietClient(t, b).Admin()
	var told outcomes
	for i := range n {
		m := NewMessageWithKey(faultTopic, fmt.Append(nil, i%keys), fmt.Append(nil, i))
		require.NoError(t, p.SendFunc(t.Context(), m, told.done))
		if i%20 == 0 {
			<-time.After(time.Duration(rng.IntN(2000)) * time.Microsecond)
		}
		if i == n/2 {
			require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
			require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 2, nil))
		}
	}
	require.NoError(t, p.Flush(t.Context()))
	require.NoError(t, p.Close())
	last := make(map[int]int) // by key
	there := 0
	for partition := range int32(2) {
		clear(last)
		values := stored(t, b, partition)
		there += len(values)
		requireOnce(t, values)
		for offset, v := range values {
			var i int
			_, err := fmt.Sscan(v, &i)
			require.NoError(t, err)
			before, ok := last[i%keys]
			require.False(t, ok && before > i, "message %d, at offset %d of partition %d, stands behind %d of the same key", i, offset, partition, before)
			last[i%keys] = i
		}
	}
	for i := range n {
		if err := told.of(t, fmt.Sprint(i)).err; err != nil {
			require.ErrorIs(t, err, ErrTopicNotFound)
			there++
		}
	}
	require.GreaterOrEqual(t, there, n/2)
}

// TestAsyncPartitionIsGone has messages that name a partition share a batch with others that
// came to it by their key, and the topic made anew without that partition: only the former
// fail.
func TestAsyncPartitionIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 3)
		c := quietClient(t, b)
		p := faultAsync(t, c)
		var told outcomes
		n := 0
		send := func(partition int32, key string) {
			m := NewMessage(faultTopic, fmt.Append(nil, n))
			m.Key, m.Partition = []byte(key), partition
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			n++
		}
		key := ""
		for i := 0; key == ""; i++ {
			send(PartitionAny, fmt.Sprint(i))
			require.NoError(t, p.Flush(t.Context()))
			if told.of(t, fmt.Sprint(n-1)).receipt.Partition == 2 {
				key = fmt.Sprint(i)
			}
		}
		admin := quietClient(t, b).Admin()
		require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
		require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 1, nil))
		synctest.Wait()
		before := n
		for range 10 {
			send(2, "")
			send(PartitionAny, key)
		}
		require.NoError(t, p.Flush(t.Context()))
		for i := before; i < n; i += 2 {
			require.ErrorIs(t, told.of(t, fmt.Sprint(i)).err, ErrPartitionNotFound)
			x := told.of(t, fmt.Sprint(i+1))
			require.NoError(t, x.err)
			require.EqualValues(t, 0, x.receipt.Partition)
		}
		require.Len(t, stored(t, b, 0), 10)
	})
}

// TestAsyncTopicComesAndGoes deletes a topic and makes it anew while batches are on their way.
// What is stored at last is there once, in order, and no message has failed for another
// reason than that the topic was not there.
func TestAsyncTopicComesAndGoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 3000
		b := faultBroker(t, 2)
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict { return f.late(time.Millisecond) })
		})
		p := faultAsync(t, faultClient(t, proxy.dial), WithBatchSize(10), WithBatchTimeout(time.Millisecond))
		admin := quietClient(t, b).Admin()
		var told outcomes
		for i := range n {
			m := to0(fmt.Sprint(i))
			m.Partition = int32(i % 2)
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			if i%7 == 0 {
				<-time.After(300 * time.Microsecond)
			}
			if i%300 == 150 {
				require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
			}
			if i%300 == 150+i/300 {
				require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 2, nil))
			}
		}
		require.NoError(t, p.Close())
		failed := 0
		for i := range n {
			if err := told.of(t, fmt.Sprint(i)).err; err != nil {
				failed++
				require.True(t, errors.Is(err, ErrTopicNotFound) || errors.Is(err, ErrPartitionNotFound), "%v", err)
			}
		}
		require.Less(t, failed, n/2)
		for partition := range int32(2) {
			values := stored(t, b, partition)
			requireOnce(t, values)
			require.NotEmpty(t, values)
			last := -1
			for offset, v := range values {
				var i int
				_, err := fmt.Sscan(v, &i)
				require.NoError(t, err)
				require.Greater(t, i, last)
				last = i
				if x := told.of(t, v); x.err == nil {
					require.Equal(t, int64(offset), x.receipt.Offset)
				}
			}
		}
	})
}

// TestAsyncTooLarge has one message in a batch be larger than the topic takes. It fails, alone,
// and the others are stored in their order.
func TestAsyncTooLarge(t *testing.T) {
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		for _, n := range []int{1, 2, 3, 20, 333} {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				dial, open := gatedDial(b.Dial)
				require.NoError(t, quietClient(t, b).Admin().AlterTopicConfig(t.Context(), faultTopic, map[string]string{"max.message.bytes": "1000"}))
				p := faultAsync(t, faultClient(t, dial, WithProtocol(form)))
				var told outcomes
				var want []string
				large := func(i int) bool { return i%17 == 1%n }
				for i := range n {
					m := to0(fmt.Sprint(i))
					if large(i) {
						m.Key = []byte(strings.Repeat("k", 1000))
					} else {
						want = append(want, fmt.Sprint(i))
					}
					require.NoError(t, p.SendFunc(t.Context(), m, told.done))
				}
				open()
				require.NoError(t, p.Flush(t.Context()))
				values := stored(t, b, 0)
				require.Equal(t, want, values)
				for i := range n {
					x := told.of(t, fmt.Sprint(i))
					if large(i) {
						require.ErrorIs(t, x.err, ErrMessageTooLarge)
					} else {
						require.NoError(t, x.err)
						require.Equal(t, fmt.Sprint(i), values[x.receipt.Offset])
					}
				}
				require.NoError(t, p.SendFunc(t.Context(), to0("after"), told.done))
				require.NoError(t, p.Close())
				require.NoError(t, told.of(t, "after").err)
			})
		}
	}
}

// TestAsyncLeaderMoves has partitions move between two brokers while batches are on their way,
// and connections break. Everything is stored once and in order, and nobody else is slowed.
func TestAsyncLeaderMoves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n, partitions = 2000, 3
		brokers := cluster(t, 2, partitions)
		log := brokers[0].log
		for i, b := range brokers {
			b.features = []string{featureBinary, featureIdempotence}
			answered := 0
			b.script = func(r *fakeRequest) *fakeAnswer {
				if r.kind != requestProduceBatch {
					return nil
				}
				a := r.honest()
				if answered++; answered%(40+i) == 39 { // It is stored, and nobody hears of it.
					return r.hangUp()
				}
				a.after = 100 * time.Microsecond
				return a
			}
		}
		log.setLeader(0, "a")
		log.setLeader(1, "b")
		log.setLeader(2, "a")
		p := faultAsync(t, faultClient(t, dialFakes(brokers...), WithBrokers(addrsOf(brokers)...)), WithBatchTimeout(time.Millisecond))
		var told outcomes
		for i := range n {
			m := to0(fmt.Sprint(i))
			m.Partition = int32(i % partitions)
			require.NoError(t, p.SendFunc(t.Context(), m, told.done))
			if i%10 == 0 {
				<-time.After(time.Millisecond)
			}
			if i%200 == 199 {
				log.setLeader(0, string("ab"[i/200%2]))
				log.setLeader(2, string("ba"[i/200%2]))
			}
		}
		start := time.Now()
		require.NoError(t, p.Close())
		require.Less(t, time.Since(start), 10*time.Second)
		for partition := range int32(partitions) {
			var values, want []string
			for _, m := range log.messages(partition) {
				values = append(values, string(m.Value))
			}
			for i := int(partition); i < n; i += partitions {
				want = append(want, fmt.Sprint(i))
				x := told.of(t, fmt.Sprint(i))
				require.NoError(t, x.err)
				require.Equal(t, int64(i/partitions), x.receipt.Offset)
			}
			require.Equal(t, want, values)
		}
		for _, b := range brokers {
			require.Greater(t, len(b.asked(requestProduceBatch)), 10)
		}
	})
}

// fakeProducer is what a fake log remembers of a producer in a partition.
type fakeProducer struct {
	epoch int16
	next  int32           // sequence
	bases map[int32]int64 // offsets by sequence
}

// produceBatch stores batches, once each.
func (r *fakeRequest) produceBatch() *fakeAnswer {
	b := r.broker
	var q produceBatchRequest
	r.into(&q)
	resp := &produceBatchResponse{}
	body := r.behind
	for _, part := range q.Parts {
		got := producedPart{Topic: part.Topic, Partition: part.Partition, BaseOffset: offsetNone}
		sent := batch(body[:part.Bytes])
		body = body[part.Bytes:]
		if err := b.log.appendBatch(b, part.Partition, sent, &got.BaseOffset); err != nil {
			got.refuse(err)
		}
		resp.Parts = append(resp.Parts, got)
	}
	text, err := appendPayload(nil, resp)
	require.NoError(b.t, err)
	var payload map[string]any
	unmarshalNumbers(b.t, text, &payload)
	return r.ok(payload)
}

func (l *fakeLog) appendBatch(b *fakeBroker, partition int32, sent batch, base *int64) error {
	l.mu.Lock()
	leader := l.leaders[partition]
	if leader != b.id {
		l.mu.Unlock()
		return ErrNotLeader
	}
	if l.producers == nil {
		l.producers = make(map[string]*fakeProducer)
	}
	p := sent.producer()
	key := fmt.Sprint(p.id, "/", partition)
	state := l.producers[key]
	if state == nil || p.epoch > state.epoch {
		state = &fakeProducer{epoch: p.epoch, bases: make(map[int32]int64)}
		l.producers[key] = state
	}
	known, again := state.bases[p.sequence]
	l.mu.Unlock()
	switch {
	case p.epoch < state.epoch:
		return ErrFenced
	case again:
		*base = known
		return nil
	case p.sequence != state.next:
		return ErrOutOfOrderSequence
	}
	plain, err := sent.plain(64 << 20)
	if err != nil {
		return err
	}
	for records := plain.records(); ; {
		var m Message
		more, err := records.next(&m)
		if err != nil || !more {
			return errors.Join(err)
		}
		stored := l.append(&produceRequest{Topic: l.topic, Partition: partition, Value: slices.Clone(m.Value), Timestamp: m.Timestamp})
		l.mu.Lock()
		if *base < 0 {
			*base = stored.Offset
			state.bases[p.sequence] = stored.Offset
		}
		state.next++
		l.mu.Unlock()
	}
}

// TestAsyncAcks asks for messages to be synced. The receipts say so; a broker that cannot
// refuses, before anything is sent if it does not know what is asked of it.
func TestAsyncAcks(t *testing.T) {
	for _, tc := range []struct {
		name string
		opts []BrokerOption
		form Protocol
		want error
	}{
		{"files", []BrokerOption{WithDataDir(t.TempDir())}, ProtocolAuto, nil},
		{"files, one by one", []BrokerOption{WithDataDir(t.TempDir())}, ProtocolV0, ErrUnsupported},
		{"memory", nil, ProtocolAuto, ErrUnsupported},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1, tc.opts...)
				p := faultAsync(t, quietClient(t, b, WithProtocol(tc.form)), WithAcks(AcksSynced))
				var told outcomes
				for i := range 100 {
					require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
				}
				start := time.Now()
				require.NoError(t, p.Close())
				require.Less(t, time.Since(start), 5*time.Second)
				for i := range 100 {
					x := told.of(t, fmt.Sprint(i))
					if tc.want != nil {
						require.ErrorIs(t, x.err, tc.want)
						continue
					}
					require.NoError(t, x.err)
					require.Equal(t, AcksSynced, x.receipt.Acks)
				}
				if tc.want != nil {
					require.Empty(t, stored(t, b, 0))
				}
			})
		})
	}
}

// TestAsyncSinglesRefused has a broker without batches refuse most messages of a large
// batch, each for a reason of its own, which its sender is told.
func TestAsyncSinglesRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			var m produceRequest
			if r.kind == requestProduce {
				r.into(&m)
			}
			if len(m.Value) == 0 || m.Value[len(m.Value)-1] == '0' {
				return nil
			}
			return r.refuse("INVALID_REQUEST", "no "+string(m.Value)+".")
		}
		const n = 2000
		p := faultAsync(t, faultClient(t, b.dial), WithBatchSize(n))
		var told outcomes
		for i := range n {
			require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
		}
		require.NoError(t, p.Close())
		for i := range n {
			err := told.of(t, fmt.Sprint(i)).err
			if i%10 == 0 {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, fmt.Sprintf("no %d.", i))
			}
		}
	})
}

// TestKeysWaitNoLongerThanNeeded has a message for a partition that is gone wait for another,
// whose answer does not come and whose sender gives up: once that is over, the first is stored.
func TestKeysWaitNoLongerThanNeeded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 6)
		var held atomic.Bool
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind == requestProduceBatch && held.CompareAndSwap(true, false) {
					return f.late(time.Hour)
				}
				return f.pass()
			})
		})
		c := faultClient(t, proxy.dial)
		p, err := c.SyncProducer()
		require.NoError(t, err)
		keys := make(map[int32]string) // by partition
		for i := 0; len(keys) < 6; i++ {
			r, err := p.Send(t.Context(), NewMessageWithKey(faultTopic, fmt.Append(nil, i), nil))
			require.NoError(t, err)
			keys[r.Partition] = fmt.Sprint(i)
		}
		admin := quietClient(t, b).Admin()
		require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
		require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 1, nil))
		ctx, giveUp := context.WithCancel(t.Context())
		held.Store(true)
		first, second := make(chan error, 1), make(chan error, 1)
		start := time.Now()
		go func() {
			_, err := p.Send(ctx, NewMessageWithKey(faultTopic, []byte(keys[4]), []byte("first")))
			first <- err
		}()
		synctest.Wait()
		require.False(t, held.Load(), "the answer is held back")
		go func() {
			_, err := p.Send(t.Context(), NewMessageWithKey(faultTopic, []byte(keys[5]), []byte("second")))
			second <- err
		}()
		synctest.Wait()
		giveUp()
		require.ErrorIs(t, <-first, context.Canceled)
		require.NoError(t, <-second)
		require.Less(t, time.Since(start), time.Minute)
		require.Equal(t, []string{"second"}, stored(t, b, 0))
		require.NoError(t, p.Close())
	})
}
