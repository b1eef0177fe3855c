package robust

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// requireFewTopics fails if a producer remembers more topics than it should after it has sent
// to few of late.
func requireFewTopics(t testing.TB, p *AsyncProducer) {
	t.Helper()
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	topics, queues := 0, 0
	p.box.topics.Range(func(_, _ any) bool { topics++; return true })
	for _, s := range p.box.senders {
		queues += len(s.queues)
	}
	require.LessOrEqual(t, topics, 2*manyTopics+1)
	require.LessOrEqual(t, queues, 2*manyTopics+1)
	require.Equal(t, p.box.known.Load(), int64(topics))
	require.Equal(t, queues, p.box.queues)
	require.LessOrEqual(t, len(p.box.free), queues)
	p.client.metadata.mu.Lock()
	defer p.client.metadata.mu.Unlock()
	require.LessOrEqual(t, len(p.client.metadata.topics), 2*manyTopics+1)
}

// TestAsyncForgetsTopics sends to topic after topic, and now and then to those that were sent
// to before. A producer used to remember every topic that it ever had a message for.
func TestAsyncForgetsTopics(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint(plain), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const topics, rounds, senders = 4000, 2, 4
				b := faultBroker(t, 1, WithAutoCreateTopics(1))
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
					return requests(nil), answers(func(f proxiedFrame) verdict {
						if plain && f.kind == requestClusterInfo {
							return f.edited(t, withoutFeatures)
						}
						return f.pass()
					})
				})
				c := faultClient(t, proxy.dial, WithMetadataMaxAge(time.Second))
				p := faultAsync(t, c)
				var told outcomes
				for round := range rounds {
					var sending sync.WaitGroup
					for sender := range senders {
						sending.Go(func() {
							order := rand.Perm(topics / senders)
							for i, n := range order {
								topic := n*senders + sender
								m := NewMessage(fmt.Sprint("t", topic), fmt.Appendf(nil, "%d/%d", topic, round))
								m.Partition = int32(topic%3)/2 + PartitionAny // Some name theirs.
								if err := p.SendFunc(t.Context(), m, told.done); err != nil {
									t.Error(err)
								}
								if i%100 == 99 {
									<-time.After(10 * time.Second)
								}
							}
						})
					}
					sending.Wait()
					require.NoError(t, p.Flush(t.Context()))
					requireFewTopics(t, p)
				}
				require.NoError(t, p.Close())
				require.Equal(t, topics*rounds, told.count())
				for topic := range topics {
					require.EqualValues(t, rounds, highWaterMark(t, b, fmt.Sprint("t", topic), 0), "topic %d", topic)
					for round := range rounds {
						x := told.of(t, fmt.Sprintf("%d/%d", topic, round))
						require.NoError(t, x.err)
						require.EqualValues(t, round, x.receipt.Offset)
					}
				}
			})
		})
	}
}

// TestAsyncForgetsEpochs lets go of queues whose epochs are nearly used up: what is sent to
// their partitions then is not taken for what was sent before.
func TestAsyncForgetsEpochs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		p := faultAsync(t, quietClient(t, b))
		var told outcomes
		const n = 40
		for i := range n {
			require.NoError(t, p.SendFunc(t.Context(), to0(fmt.Sprint(i)), told.done))
			require.NoError(t, p.Flush(t.Context()))
			<-time.After(time.Millisecond)
			p.box.mu.Lock()
			topic := p.box.topic(faultTopic)
			require.True(t, topic.idleLocked())
			if i == n/2 {
				topic.queues[0].epoch = 1<<15 - 1
			}
			leaving := make(map[*outSender]bool)
			p.box.dropTopicLocked(topic, leaving)
			require.Len(t, leaving, 1)
			p.box.mu.Unlock()
		}
		require.NoError(t, p.Close())
		require.Equal(t, n, told.check(t, b, 1, n))
	})
}

// TestAsyncForgetsBrokers has brokers come at ever new addresses.
func TestAsyncForgetsBrokers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := faultAsync(t, quietClient(t, faultBroker(t, 1)))
		p.box.mu.Lock()
		defer p.box.mu.Unlock()
		for i := range 100 {
			p.box.senderLocked(fmt.Sprint(i))
			require.Len(t, p.box.senders, 1)
		}
	})
}
