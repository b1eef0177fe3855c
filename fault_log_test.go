package robust

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// cut takes from a log all that is behind an offset, as the power failure does that
// comes before something was synced. Batches here hold one record.
func (l *memoryLog) cut(to int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.segments) > 0 && l.segments[len(l.segments)-1].base >= to {
		l.segments = l.segments[:len(l.segments)-1]
	}
	if n := len(l.segments); n > 0 && to < l.end {
		s := l.segments[n-1]
		pos := s.find(to)
		// What was lent stays as it is: the next batch goes elsewhere.
		s.buf = slices.Clone(s.buf[:pos])
		s.index = slices.DeleteFunc(s.index, func(i memoryIndex) bool { return i.offset >= to })
	}
	l.epochs = slices.DeleteFunc(l.epochs, func(e epochStart) bool { return e.offset >= to })
	l.end = min(l.end, to)
}

// cutStorage cuts the log of partition 0 of faultTopic.
func cutStorage(t testing.TB, s Storage, to int64) {
	t.Helper()
	m := s.(*memoryStorage)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logs[m.topics[faultTopic].ID][0].cut(to)
}

// phoenix is a broker that can be replaced by another over the same storage.
type phoenix struct {
	t       testing.TB
	storage Storage
	broker  *Broker
	serving atomic.Pointer[Broker] // nil while clients cannot reach it
}

func newPhoenix(t testing.TB, partitions int32) *phoenix {
	p := &phoenix{t: t, storage: NewMemoryStorage()}
	p.rise(partitions)
	p.open()
	return p
}

// rise starts a broker, which clients do not reach yet.
func (p *phoenix) rise(partitions int32) {
	p.broker = faultBroker(p.t, partitions, WithStorage(p.storage))
}

func (p *phoenix) open() { p.serving.Store(p.broker) }

// fall ends the broker.
func (p *phoenix) fall() {
	p.serving.Store(nil)
	require.NoError(p.t, p.broker.Close())
}

// powerFails has the broker come back with a log that ends at an offset, and then more
// messages in it before anybody reads.
func (p *phoenix) powerFails(cut int64, more int) {
	p.t.Helper()
	p.fall()
	cutStorage(p.t, p.storage, cut)
	p.rise(1)
	p.store("new", more)
	p.open()
}

// store puts messages into partition 0, whose values are what and their offset.
func (p *phoenix) store(what string, n int) { storeValues(p.t, p.broker, what, n) }

func storeValues(t testing.TB, b *Broker, what string, n int) {
	t.Helper()
	for range n {
		log, _ := b.service.topics.log(TopicPartition{faultTopic, 0})
		_, end := log.Bounds()
		m := Message{Value: fmt.Append(nil, what, " ", end), Timestamp: 1}
		log.Append(appendBatch(nil, &m), AcksStored, func(r AppendResult) { require.NoError(t, r.Err) })
	}
}

func (p *phoenix) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if b := p.serving.Load(); b != nil {
		return b.Dial(ctx, network, addr)
	}
	return nil, errRefused
}

// values are what, from one offset to before another.
func values(what string, from, to int64) []string {
	var all []string
	for o := from; o < to; o++ {
		all = append(all, fmt.Sprint(what, " ", o))
	}
	return all
}

// reader takes messages of a consumer, one way or the other.
type reader func(t testing.TB, n int) []string

// readers are the ways in which a PartitionConsumer is read.
func readers() map[string]func(pc *PartitionConsumer) reader {
	return map[string]func(*PartitionConsumer) reader{
		"loop": func(pc *PartitionConsumer) reader {
			return func(t testing.TB, n int) (got []string) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for len(got) < n {
					for m, err := range pc.All(ctx) {
						require.NoError(t, err, "after %v", got)
						got = append(got, string(m.Value))
						break
					}
				}
				return got
			}
		},
		"channel": func(pc *PartitionConsumer) reader {
			return func(t testing.TB, n int) (got []string) {
				timeout := time.After(time.Minute)
				for len(got) < n {
					select {
					case m, ok := <-pc.Messages():
						require.True(t, ok, "after %v", got)
						got = append(got, string(m.Value))
					case <-timeout:
						require.Fail(t, "no message", "after %v", got)
					}
				}
				return got
			}
		},
	}
}

// notice returns the next LogChangedError on a channel of errors.
func notice(t testing.TB, errs <-chan error) *LogChangedError {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		select {
		case err, ok := <-errs:
			require.True(t, ok)
			if changed := (*LogChangedError)(nil); errors.As(err, &changed) {
				require.ErrorIs(t, err, ErrOffsetOutOfRange)
				ce := (*ConsumerError)(nil)
				require.ErrorAs(t, err, &ce)
				require.Equal(t, faultTopic, ce.Topic)
				return changed
			}
		case <-timeout:
			require.Fail(t, "no notice")
		}
	}
}

// requireQuiet holds that the log was not found to be another.
func requireQuiet(t testing.TB, errs <-chan error) {
	t.Helper()
	for {
		select {
		case err := <-errs:
			changed := (*LogChangedError)(nil)
			require.NotErrorAs(t, err, &changed)
		default:
			return
		}
	}
}

// A broker comes back whose log has lost its tail, and has taken other messages at those
// offsets since. The consumer goes back to where they begin, and says so. Once all new
// messages that stood at offsets which it had read were skipped, without a word.
func TestLogCutUnderConsumer(t *testing.T) {
	for how, read := range readers() {
		for _, more := range []int{0, 10, 50, 120} {
			t.Run(fmt.Sprint(how, " ", more), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPhoenix(t, 1)
					p.store("old", 100)
					pc := faultConsumer(t, faultClient(t, p.dial), WithFetchMaxBytes(610), WithOutOfRange(OutOfRangeNewest))
					take := read(pc)
					require.Equal(t, values("old", 0, 100), take(t, 100))
					p.powerFails(50, more)
					require.Equal(t, &LogChangedError{LostFrom: 50, LostTo: 100, To: 50}, notice(t, pc.Errors()))
					if more == 0 {
						require.Equal(t, int64(50), pc.Offset())
					}
					require.Equal(t, values("new", 50, 50+int64(more)), take(t, more))
					after(time.Second)
					require.Equal(t, 50+int64(more), pc.Offset())
					require.Equal(t, 50+int64(more), pc.HighWaterMark())
					lag, ok := pc.lag()
					require.True(t, ok)
					require.Zero(t, lag)

					// And once more, below where it went on.
					p.powerFails(40, 3)
					require.Equal(t, &LogChangedError{LostFrom: 40, LostTo: 50 + int64(more), To: 40}, notice(t, pc.Errors()))
					require.Equal(t, values("new", 40, 43), take(t, 3))

					// Seeks are of the log that is there, whichever epochs are in it.
					for _, to := range []int64{10, 42, 0} {
						require.NoError(t, pc.Seek(t.Context(), to))
						require.Equal(t, to, pc.Offset())
						want := slices.Concat(values("old", 0, 40), values("new", 40, 43))
						require.Equal(t, want[to:], take(t, int(43-to)))
					}
					requireQuiet(t, pc.Errors())
				})
			})
		}
	}
}

// What was fetched before the cut was found is delivered before what stands there now,
// and Offset tells what is next all along.
func TestLogCutBehindBufferedMessages(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		pc := faultConsumer(t, faultClient(t, p.dial), WithFetchMaxBytes(890), WithMessageBuffer(5))
		take := readers()["channel"](pc)
		require.Equal(t, values("old", 0, 10), take(t, 10))
		after(time.Second)
		p.powerFails(8, 100)
		// In the channel, in the pump's hand, at hand and in run's hand are 25 at most.
		var got []string
		for len(got) < 90 {
			at := pc.Offset()
			v := take(t, 1)[0]
			after(time.Millisecond)
			require.Contains(t, []string{fmt.Sprint("old ", at), fmt.Sprint("new ", at)}, v)
			got = append(got, v)
		}
		ghosts := slices.Index(got, "new 8")
		require.Positive(t, ghosts)
		require.LessOrEqual(t, ghosts, 26)
		require.Equal(t, values("old", 10, 10+int64(ghosts)), got[:ghosts])
		require.Equal(t, values("new", 8, 8+90-int64(ghosts)), got[ghosts:])
		require.Equal(t, &LogChangedError{LostFrom: 8, LostTo: 10 + int64(ghosts), To: 8}, notice(t, pc.Errors()))
	})
}

// A consumer that has caught up without having read a message is told the epoch of the
// one before, so that it notices too.
func TestLogCutUnderIdleConsumer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		c := faultClient(t, p.dial)
		newest := faultConsumer(t, c, WithStartOffset(OffsetNewest))
		offset := faultConsumer(t, c, WithStartOffset(100))
		after(time.Second)
		p.powerFails(50, 70)
		for _, pc := range []*PartitionConsumer{newest, offset} {
			require.Equal(t, values("new", 50, 120), readers()["loop"](pc)(t, 70))
			require.Equal(t, &LogChangedError{LostFrom: 50, LostTo: 100, To: 50}, notice(t, pc.Errors()))
		}
	})
}

// A cut above the position, or one below what retention has left, and a broker that comes
// back with all that it had.
func TestLogCutElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		pc := faultConsumer(t, faultClient(t, p.dial), WithFetchMaxBytes(450), WithMessageBuffer(1))
		take := readers()["loop"](pc)
		require.Equal(t, values("old", 0, 20), take(t, 20))
		after(time.Second)
		// Opened again, with nothing lost: a new epoch, and nothing to report.
		for range 3 {
			p.fall()
			p.rise(1)
			p.store("more", 1)
			p.open()
			after(5 * time.Second)
		}
		// A seek to what later epochs have, and back.
		for _, to := range []int64{102, 20} {
			require.NoError(t, pc.Seek(t.Context(), to))
			require.Len(t, take(t, 1), 1)
		}
		require.NoError(t, pc.Seek(t.Context(), 20))
		after(time.Second)
		requireQuiet(t, pc.Errors())
		p.powerFails(101, 1)
		require.Equal(t, slices.Concat(values("old", 20, 100), values("more", 100, 101), values("new", 101, 102)), take(t, 82))
		requireQuiet(t, pc.Errors())

		// The messages from the cut on are gone by retention as well.
		p.fall()
		cutStorage(t, p.storage, 60)
		p.rise(1)
		p.store("newer", 20)
		log, _ := p.broker.service.topics.log(TopicPartition{faultTopic, 0})
		require.NoError(t, log.DeleteBefore(t.Context(), 70))
		p.open()
		require.Equal(t, values("newer", 70, 80), take(t, 10))
		require.Equal(t, &LogChangedError{LostFrom: 60, LostTo: 102, To: 70}, notice(t, pc.Errors()))
		requireQuiet(t, pc.Errors())
	})
}

// With OutOfRangeFail the consumer ends, with what it has found.
func TestLogChangedEndsConsumer(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *phoenix)
		want   LogChangedError
	}{
		"cut":       {func(p *phoenix) { p.powerFails(50, 100) }, LogChangedError{LostFrom: 50, LostTo: 100, To: -1}},
		"made anew": {func(p *phoenix) { p.makeAnew(100) }, LogChangedError{MadeAnew: true, LostTo: 100, To: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				p := newPhoenix(t, 1)
				p.store("old", 100)
				pc := faultConsumer(t, faultClient(t, p.dial), WithOutOfRange(OutOfRangeFail))
				require.Len(t, readers()["loop"](pc)(t, 100), 100)
				after(time.Second)
				c.change(p)
				changed := (*LogChangedError)(nil)
				_, err := next(t, pc, time.Minute)
				require.ErrorAs(t, err, &changed)
				require.Equal(t, &c.want, changed)
				require.Equal(t, &c.want, notice(t, pc.Errors()))
				require.NotContains(t, err.Error(), "went on")
			})
		})
	}
}

// makeAnew deletes the topic and makes it again, out of the clients' sight.
func (p *phoenix) makeAnew(more int) {
	p.t.Helper()
	p.fall()
	p.rise(1)
	require.NoError(p.t, p.broker.service.topics.remove(p.t.Context(), faultTopic))
	require.NoError(p.t, p.broker.service.topics.create(p.t.Context(), faultTopic, 1, nil))
	p.store("new", more)
	p.open()
}

// A topic of the same name is read from its start, or from its newest message.
func TestTopicMadeAnewUnderConsumer(t *testing.T) {
	for _, policy := range []OutOfRangePolicy{OutOfRangeOldest, OutOfRangeNewest} {
		for _, more := range []int{0, 10, 150} {
			t.Run(fmt.Sprint(policy, " ", more), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPhoenix(t, 1)
					p.store("old", 100)
					pc := faultConsumer(t, faultClient(t, p.dial), WithOutOfRange(policy))
					take := readers()["channel"](pc)
					require.Len(t, take(t, 100), 100)
					after(time.Second)
					p.makeAnew(more)
					begin := int64(0)
					if policy == OutOfRangeNewest {
						begin = int64(more)
					}
					require.Equal(t, &LogChangedError{MadeAnew: true, LostTo: 100, To: begin}, notice(t, pc.Errors()))
					after(time.Second)
					require.Equal(t, begin, pc.Offset())
					p.store("newer", 5)
					want := slices.Concat(values("new", 0, int64(more)), values("newer", int64(more), int64(more)+5))
					require.Equal(t, want[begin:], take(t, len(want[begin:])))
					requireQuiet(t, pc.Errors())
				})
			})
		}
	}
}

// A topic is made anew while a consumer is paused, without the broker's having been away,
// and while a fetch waits at its end that has not named the topic yet.
func TestTopicMadeAnewUnderPausedConsumer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 10)
		c := faultClient(t, p.dial)
		pc := faultConsumer(t, c)
		take := readers()["loop"](pc)
		require.Len(t, take(t, 10), 10)
		pc.Pause()
		after(time.Second)
		admin := c.Admin()
		require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
		require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 1, nil))
		p.store("new", 20)
		pc.Resume()
		require.Equal(t, values("new", 0, 20), take(t, 20))
		require.Equal(t, &LogChangedError{MadeAnew: true, LostTo: 10, To: 0}, notice(t, pc.Errors()))

		// A named end is looked up in the topic that is there.
		pc.Pause()
		after(time.Second)
		require.NoError(t, admin.DeleteTopic(t.Context(), faultTopic))
		require.NoError(t, admin.CreateTopic(t.Context(), faultTopic, 1, nil))
		p.store("newer", 30)
		require.NoError(t, pc.Seek(t.Context(), OffsetNewest))
		pc.Resume()
		after(time.Second)
		require.Equal(t, int64(30), pc.Offset())
		requireQuiet(t, pc.Errors())
	})
}

// A group goes back to the cut, with its marks and what is committed, and its next
// members begin there.
func TestLogCutUnderGroup(t *testing.T) {
	for _, more := range []int{0, 10, 50, 120} {
		for name, opts := range map[string][]Option{
			"marks": nil, "contiguous": {WithContiguousMarks()}, "no commits": {WithAutoCommit(0)},
		} {
			t.Run(fmt.Sprint(more, " ", name), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPhoenix(t, 1)
					p.store("old", 100)
					var handled []string
					r := newRig(t)
					handle := func(s *Session, _ *Claim, m *Message) error {
						handled = append(handled, string(m.Value))
						if name == "no commits" && m.Offset%10 == 9 {
							s.MarkMessage(m, "")
							return s.Commit()
						}
						return nil
					}
					a := r.consumeWith(p.dial, "a", handle, opts...)
					after(3 * time.Second)
					require.Equal(t, values("old", 0, 100), handled)
					require.Equal(t, int64(100), committed(p.broker, 0))

					handled = nil
					p.powerFails(50, more)
					require.Equal(t, int64(50), committed(p.broker, 0))
					require.Equal(t, &LogChangedError{LostFrom: 50, LostTo: 100, To: 50}, notice(t, a.group.Errors()))
					after(10 * time.Second)
					require.Equal(t, values("new", 50, 50+int64(more)), handled)
					require.Equal(t, map[string]int{"a t/0": 2}, r.calls())
					require.Equal(t, 50+int64(more), committed(p.broker, 0))
					requireQuiet(t, a.group.Errors())
					require.NoError(t, a.stop())

					// Whoever comes next goes on.
					handled = nil
					p.store("newer", 5)
					a = r.consumeWith(p.dial, "b", handle, opts...)
					after(3 * time.Second)
					require.Equal(t, values("newer", 50+int64(more), 55+int64(more)), handled)
					require.NoError(t, a.stop())
				})
			})
		}
	}
}

// What a member has marked of messages that are gone comes to the broker when others stand
// at their offsets: it must not be taken for those. They would be skipped by whoever reads
// on after a crash of the member.
func TestLogCutBeforeCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		r := newRig(t)
		goOn := make(chan struct{})
		a := r.consumeWith(p.dial, "a", func(s *Session, _ *Claim, m *Message) error {
			switch string(m.Value) {
			case "old 99":
				p.powerFails(50, 120)
				s.MarkMessage(m, "gone")
				require.NoError(t, s.Commit())
				require.Equal(t, int64(50), committed(p.broker, 0))
			case "new 60":
				<-goOn
			}
			return nil
		})
		after(10 * time.Second)
		require.Equal(t, int64(60), committed(p.broker, 0))
		close(goOn)
		after(2 * time.Second)
		require.Equal(t, int64(170), committed(p.broker, 0))
		require.NoError(t, a.stop())
	})
}

// A handler returns by itself while the broker is away. Its next claim knows what the one
// before has read, before it has fetched anything.
func TestLogCutBetweenClaims(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		var handled []string
		h := HandlerFunc(func(s *Session, c *Claim) error {
			for m := range c.Messages() {
				handled = append(handled, string(m.Value))
				s.MarkMessage(m, "")
				if string(m.Value) == "old 99" {
					require.NoError(t, s.Commit())
					p.fall()
					return nil
				}
			}
			return nil
		})
		a := newRig(t).consumeTopics(p.dial, "a", []string{faultTopic}, h)
		after(3 * time.Second)
		require.Equal(t, values("old", 0, 100), handled)
		cutStorage(t, p.storage, 50)
		p.rise(1)
		p.store("new", 100)
		p.open()
		after(10 * time.Second)
		require.Equal(t, values("new", 50, 150), handled[100:])
		require.Equal(t, &LogChangedError{LostFrom: 50, LostTo: 100, To: 50}, notice(t, a.group.Errors()))
		require.Equal(t, int64(150), committed(p.broker, 0))
		require.NoError(t, a.stop())
	})
}

// With OutOfRangeFail a cut ends Consume.
func TestLogCutEndsConsume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		a := newRig(t).consumeWith(p.dial, "a", nil, WithOutOfRange(OutOfRangeFail))
		after(3 * time.Second)
		p.powerFails(50, 100)
		changed := (*LogChangedError)(nil)
		require.ErrorAs(t, <-a.done, &changed)
		require.Equal(t, &LogChangedError{LostFrom: 50, LostTo: 100, To: -1}, changed)
	})
}

// A topic made anew is a new partition to the group: claims of the other end, nothing
// that is committed counts, and the member is told.
func TestTopicMadeAnewUnderGroup(t *testing.T) {
	for _, away := range []bool{true, false} {
		for _, policy := range []OutOfRangePolicy{OutOfRangeOldest, OutOfRangeNewest, OutOfRangeFail} {
			t.Run(fmt.Sprint("broker away ", away, " policy ", policy), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					p := newPhoenix(t, 1)
					p.store("old", 100)
					var handled []string
					r := newRig(t)
					a := r.consumeWith(p.dial, "a", func(_ *Session, _ *Claim, m *Message) error {
						handled = append(handled, string(m.Value))
						return nil
					}, WithOutOfRange(policy))
					after(3 * time.Second)
					require.Len(t, handled, 100)
					handled = nil
					if away {
						p.makeAnew(150)
					} else {
						require.NoError(t, p.broker.service.topics.remove(t.Context(), faultTopic))
						require.NoError(t, p.broker.service.topics.create(t.Context(), faultTopic, 1, nil))
						p.store("new", 150)
					}
					require.Equal(t, &LogChangedError{MadeAnew: true, LostTo: 100, To: -1}, notice(t, a.group.Errors()))
					after(10 * time.Second)
					require.Equal(t, values("new", 0, 150), handled)
					require.Equal(t, int64(150), committed(p.broker, 0))
					requireQuiet(t, a.group.Errors())
					require.NoError(t, a.stop())
				})
			})
		}
	}
}

// oldLogs makes a broker one that tells nothing of topic IDs and epochs, and holds that it
// is not asked for them.
func oldLogs(t testing.TB) func(int) (up, down stream) {
	fields := []string{"topic_id", "last_epoch", "epoch", "diverged_at"}
	up := requests(func(f proxiedFrame) verdict {
		if f.kind == requestFetch || f.kind == requestCommitOffset {
			return f.edited(t, func(envelope map[string]any) {
				payload := envelope["payload"].(map[string]any)
				offsets, _ := payload["offsets"].([]any)
				for _, tree := range append(offsets, payload) {
					require.NotContains(t, tree, "topic_id")
					require.NotContains(t, tree, "last_epoch")
				}
			})
		}
		return f.pass()
	})
	down := answers(func(f proxiedFrame) verdict {
		return f.edited(t, func(envelope map[string]any) {
			payload, _ := envelope["payload"].(map[string]any)
			if features, _ := payload["features"].([]any); len(features) > 0 {
				payload["features"] = slices.DeleteFunc(features, func(name any) bool { return name == featureBinary })
			}
			if f.kind == requestFetch {
				for _, field := range fields {
					delete(payload, field)
				}
			}
			grants, _ := payload["grants"].([]any)
			for _, grant := range grants {
				delete(grant.(map[string]any), "topic_id")
			}
		})
	})
	return func(int) (stream, stream) { return up, down }
}

// With a broker that tells nothing, consumers and groups go by offsets as ever.
func TestLogCutOfOldBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		proxy := newFaultProxy(t, p.dial, oldLogs(t))
		pc := faultConsumer(t, faultClient(t, proxy.dial))
		take := readers()["channel"](pc)
		require.Len(t, take(t, 100), 100)
		r := newRig(t)
		var handled []string
		a := r.consumeWith(proxy.dial, "a", func(_ *Session, _ *Claim, m *Message) error {
			handled = append(handled, string(m.Value))
			return nil
		})
		after(3 * time.Second)
		require.Len(t, handled, 100)
		p.powerFails(50, 120)
		require.Equal(t, values("new", 100, 170), take(t, 70))
		after(3 * time.Second)
		require.Equal(t, values("new", 100, 170), handled[100:])
		require.Equal(t, int64(170), committed(p.broker, 0))
		p.makeAnew(180)
		require.Equal(t, values("new", 170, 180), take(t, 10))
		requireQuiet(t, pc.Errors())
		requireQuiet(t, a.group.Errors())
		require.NoError(t, a.stop())

		// A position behind the end is out of range, which it says as ever.
		p.powerFails(10, 0)
		require.Equal(t, values("new", 0, 10), take(t, 10))
		after(time.Second)
		require.Equal(t, int64(10), pc.Offset())
		requireQuiet(t, pc.Errors())
	})
}

// What a broker says of another log is held to what was asked.
func TestLogChangedNonsense(t *testing.T) {
	for name, edit := range map[string]func(payload map[string]any){
		"unasked":       func(p map[string]any) { p["diverged_at"] = 0 },
		"at the offset": func(p map[string]any) { p["epoch"], p["diverged_at"] = 3, 10 },
		"below 0":       func(p map[string]any) { p["epoch"], p["diverged_at"] = 3, -1 },
		"long ID":       func(p map[string]any) { p["topic_id"] = string(make([]byte, 300)) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				log := newFakeLog(faultTopic, 1)
				log.fill(0, 10)
				b := newFakeBroker(t, log)
				b.script = func(r *fakeRequest) *fakeAnswer {
					var q fetchRequest
					if r.kind != requestFetch {
						return nil
					}
					r.into(&q)
					p := map[string]any{"topic": faultTopic, "partition": 0, "messages": []any{}, "high_water_mark": 10, "log_start_offset": 0}
					if q.Offset < 10 {
						p["messages"] = []any{map[string]any{"id": "", "topic": faultTopic, "partition": 0, "key": nil, "value": nil, "timestamp": 1, "offset": 9}}
						if name != "unasked" {
							p["epoch"] = 3
						}
						return r.ok(p)
					}
					edit(p)
					return r.ok(p)
				}
				pc := faultConsumer(t, faultClient(t, b.dial, WithBrokers(b.addr)))
				m, err := next(t, pc, time.Minute)
				require.NoError(t, err)
				require.Equal(t, int64(9), m.Offset)
				_, err = next(t, pc, time.Minute)
				require.ErrorIs(t, err, ErrMalformed)
			})
		})
	}

	// A broker that is another one with every answer is not asked without a pause.
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		n := 0
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind != requestFetch {
				return nil
			}
			n++
			return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "messages": []any{}, "high_water_mark": 0, "log_start_offset": 0, "topic_id": fmt.Sprint(n)})
		}
		pc := faultConsumer(t, faultClient(t, b.dial, WithBrokers(b.addr)))
		after(time.Minute)
		require.Less(t, len(b.asked(requestFetch)), 80)
		require.NoError(t, pc.Close())
	})
}

// fetchRaw sends a fetch as a peer without a client.
func fetchRaw(t testing.TB, b *Broker, req fetchRequest) *fetchResponse {
	t.Helper()
	req.Topic = faultTopic
	resp := newFetchResponse()
	require.NoError(t, rawCall(t, b, ProtocolV1, &req, resp))
	return resp
}

// What the broker says of its log to those who ask, and that it says nothing to others.
func TestBrokerTellsOfItsLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("a", 10)   // epoch 1
		p.powerFails(8, 2) // epoch 2
		p.powerFails(9, 3) // epoch 3: 1 to 8, 2 to 9, 3 to 12
		_, id := p.broker.service.topics.log(TopicPartition{faultTopic, 0})
		for _, c := range []struct {
			offset int64
			epoch  int32
			at     int64 // -1: they do not part
		}{
			{0, 1, -1},
			{8, 1, -1},
			{9, 1, 8},
			{10, 1, 8},
			{12, 1, 8},
			{99, 1, 8},
			{9, 2, -1},
			{10, 2, 9},
			{12, 3, -1},
			{13, 3, 12},
			{12, 9, -1},
			{0, 9, -1},
		} {
			resp := fetchRaw(t, p.broker, fetchRequest{Offset: c.offset, TopicID: id, LastEpoch: c.epoch, MaxWaitMs: 0})
			require.Equal(t, id, resp.TopicID)
			require.Equal(t, int64(12), resp.HighWaterMark)
			if c.at < 0 {
				require.Nil(t, resp.DivergedAt, c)
				require.Len(t, resp.Messages, int(12-c.offset))
				continue
			}
			require.NotNil(t, resp.DivergedAt, c)
			require.Equal(t, c.at, *resp.DivergedAt, c)
			require.Empty(t, resp.Messages)
			require.Zero(t, resp.Epoch)
			// It is not held, however long it might be.
			began := time.Now()
			fetchRaw(t, p.broker, fetchRequest{Offset: c.offset, LastEpoch: c.epoch, MaxWaitMs: 1000})
			require.Zero(t, time.Since(began))
		}
		for offset, epoch := range []int32{1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 3, 3} {
			resp := fetchRaw(t, p.broker, fetchRequest{Offset: int64(offset), MaxMessages: 1})
			require.Len(t, resp.Messages, 1)
			require.Equal(t, epoch, resp.Epoch, offset)
		}
		require.Equal(t, int32(3), fetchRaw(t, p.broker, fetchRequest{Offset: 0}).Epoch, "of the last one")
		require.Equal(t, int32(3), fetchRaw(t, p.broker, fetchRequest{Offset: 12}).Epoch, "of the one before")
		require.Zero(t, fetchRaw(t, p.broker, fetchRequest{Offset: 12, LastEpoch: 3}).Epoch, "it is known")

		// Another topic's offset is not looked at.
		resp := fetchRaw(t, p.broker, fetchRequest{Offset: 99, TopicID: "other", LastEpoch: 1})
		require.Equal(t, id, resp.TopicID)
		require.Nil(t, resp.DivergedAt)
		require.Empty(t, resp.Messages)
		require.Equal(t, []int64{0, 12}, []int64{resp.LogStartOffset, resp.HighWaterMark})
		require.ErrorIs(t, rawCall(t, p.broker, ProtocolV1, &fetchRequest{Topic: faultTopic, Offset: 99}, newFetchResponse()), ErrOffsetOutOfRange)

		var described metadataResponse
		require.NoError(t, rawCall(t, p.broker, ProtocolV1, &metadataRequest{}, &described))
		require.Equal(t, id, described.Topics[0].TopicID)

		// A reader from before the oldest message has read nothing that is here.
		log, _ := p.broker.service.topics.log(TopicPartition{faultTopic, 0})
		require.NoError(t, log.DeleteBefore(t.Context(), 12))
		require.Zero(t, fetchRaw(t, p.broker, fetchRequest{Offset: 12}).Epoch)
	})
}

// A fetch is held while its topic is made anew: the answer belongs to the topic that was
// there, or says that there is another.
func TestHeldFetchOfTopicMadeAnew(t *testing.T) {
	for _, c := range []struct {
		named bool
		fresh int // messages in the one made anew
	}{{true, 9}, {true, 5}, {true, 0}, {false, 9}, {false, 5}, {false, 0}} {
		named := c.named
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				began := time.Now()
				b := faultBroker(t, 1)
				store(t, b, 5)
				_, id := b.service.topics.log(TopicPartition{faultTopic, 0})
				q := fetchRequest{Topic: faultTopic, Offset: 5, MaxWaitMs: 30_000}
				if named {
					q.TopicID = id
				}
				held := sendRaw(t, b, &q)
				after(time.Second)
				// Out of its sight: held looks only when it is woken.
				topics := b.service.topics
				topics.mu.Lock()
				old := topics.topics[faultTopic]
				topics.mu.Unlock()
				fresh, err := topics.open(t.Context(), StoredTopic{Name: faultTopic, ID: "fresh", Partitions: 1}, nil)
				require.NoError(t, err)
				require.NoError(t, topics.publish(fresh, nil))
				store(t, b, c.fresh)
				require.NoError(t, old.partitions[0].close())
				resp := newFetchResponse()
				answer := held.mustAnswer("1")
				require.True(t, answer.success, answer.errText)
				require.NoError(t, decodePayload(answer.payload, resp))
				require.Empty(t, resp.Messages)
				if named {
					require.Equal(t, "fresh", resp.TopicID)
				} else {
					require.Equal(t, id, resp.TopicID)
				}
				require.Equal(t, time.Second, time.Since(began), "it was held on")
			})
		})
	}
}

// Offsets that are committed beyond a log's end are taken back when the broker starts, for
// good; that is told where they are granted and asked for.
func TestCommittedOffsetsAreCut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := newPhoenix(t, 1)
		p.store("old", 100)
		commit := func(req commitOffsetRequest) error {
			req.GroupID, req.Topic = "g", faultTopic
			return rawCall(t, p.broker, ProtocolV1, &req, &commitOffsetResponse{})
		}
		require.NoError(t, commit(commitOffsetRequest{Offset: 90, Metadata: "m"}))
		p.powerFails(50, 0)
		require.Equal(t, int64(50), committed(p.broker, 0))
		// Also if nobody commits before the log has grown and the broker starts again.
		p.powerFails(50, 100)
		require.Equal(t, int64(50), committed(p.broker, 0))

		// Anybody may commit anything, but nobody is told more than there is.
		require.NoError(t, commit(commitOffsetRequest{Offset: 400}))
		var fetched fetchOffsetResponse
		require.NoError(t, rawCall(t, p.broker, ProtocolV1, &fetchOffsetRequest{GroupID: "g", Topic: faultTopic}, &fetched))
		require.Equal(t, int64(150), fetched.Offset)
		joinRaw(t, p.broker, "a", "")
		after(gatherTime)
		epochs, sync := syncRaw(t, p.broker, "a", 1)
		require.Equal(t, int64(150), sync.Grants[0].Offset)
		_, id := p.broker.service.topics.log(TopicPartition{faultTopic, 0})
		require.Equal(t, id, sync.Grants[0].TopicID)
		mine := commitOffsetRequest{MemberID: "a", Epoch: epochs[0], Offset: 120}
		require.NoError(t, commit(mine))
		require.Equal(t, int64(120), committed(p.broker, 0), "lower, and from beyond the end")
		mine.Offset = 110
		require.NoError(t, commit(mine))
		require.Equal(t, int64(120), committed(p.broker, 0), "it does not go back otherwise")

		// Of an epoch that the log has less of.
		mine.Offset, mine.LastEpoch = 140, 1
		require.NoError(t, commit(mine))
		require.Equal(t, int64(120), committed(p.broker, 0), "it counts as 50")
		mine.LastEpoch = 3
		require.NoError(t, commit(mine))
		require.Equal(t, int64(140), committed(p.broker, 0))
		require.NoError(t, commit(commitOffsetRequest{Offset: 140, LastEpoch: 1}))
		require.Equal(t, int64(50), committed(p.broker, 0), "likewise, whoever sends it")

		// Of another topic, whoever sends it; the rest is stored.
		for _, member := range []string{"a", ""} {
			req := &commitOffsetRequest{GroupID: "g", MemberID: member, Offsets: []offsetToStore{
				{Topic: faultTopic, Offset: 142, Epoch: epochs[0], TopicID: "other"},
				{Topic: faultTopic, Offset: 141, Epoch: epochs[0], TopicID: id},
			}}
			var resp commitOffsetResponse
			require.ErrorIs(t, rawCall(t, p.broker, ProtocolV1, req, &resp), ErrFenced)
			require.Equal(t, []topicPartition{{faultTopic, 0}}, resp.Fenced)
			require.Equal(t, int64(141), committed(p.broker, 0))
		}
	})
}
