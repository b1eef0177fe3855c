package robust

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fill puts n messages into every partition of faultTopic directly.
func fill(t testing.TB, b *Broker, n int) {
	t.Helper()
	topic, err := b.service.topics.get(faultTopic)
	require.NoError(t, err)
	for _, p := range topic.partitions {
		for i := range n {
			m := Message{Value: fmt.Append(nil, i), Timestamp: 1}
			p.log.Append(appendBatch(nil, &m), AcksStored, func(r AppendResult) { require.NoError(t, r.Err) })
		}
	}
}

// untilRevoked handles messages by waiting for the end of the claim.
func untilRevoked(_ *Session, c *Claim, _ *Message) error {
	<-c.Context().Done()
	return nil
}

// slowSetup is a handler whose Setup takes a minute.
type slowSetup struct{ rigHandler }

func (h slowSetup) Setup(s *Session) error {
	<-time.After(time.Minute)
	return h.rigHandler.Setup(s)
}

// However near to the session timeout the heartbeat interval is, a quiet group is one
// session: a heartbeat that was held for the whole interval made the next one come too
// late.
func TestGroupHeartbeatInterval(t *testing.T) {
	const session = 10 * time.Second
	for _, ratio := range []float64{0.01, 0.2, 0.33, 0.5, 0.6, 0.75, 0.9, 0.99} {
		t.Run(fmt.Sprint(ratio), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				r := newRig(t)
				every := time.Duration(ratio * float64(session))
				a := r.consumeWith(b.Dial, "a", nil, WithSessionTimeout(session), WithHeartbeatInterval(every))
				after(5 * time.Minute)
				require.Equal(t, map[string]int{"a": 1}, r.setups)
				require.Equal(t, map[string]int{"a t/0": 1}, r.calls())
				require.NoError(t, a.stop())
			})
		})
	}
}

// A broker whose heartbeats always ask for a sync is not asked without end: each of them
// brought the next one at once.
func TestGroupHeartbeatsAlwaysAskForSync(t *testing.T) {
	for name, script := range map[string]func(int) (up, down stream){
		"new broker": func(int) (up, down stream) {
			return requests(func(f proxiedFrame) verdict {
				if f.kind != requestHeartbeat {
					return f.pass()
				}
				// It would be held otherwise.
				return f.edited(t, func(e map[string]any) { delete(e["payload"].(map[string]any), "max_wait_ms") })
			}), answers(proxiedFrame.pass)
		},
		"old broker": documentedOnly(t),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				below := newFaultProxy(t, b.Dial, script)
				var beats atomic.Int64
				proxy := newFaultProxy(t, below.dial, func(int) (up, down stream) {
					return requests(nil), answers(func(f proxiedFrame) verdict {
						if f.kind != requestHeartbeat {
							return f.pass()
						}
						if beats.Add(1) > 10_000 {
							return f.drop() // Else fake time would never pass.
						}
						return f.edited(t, func(e map[string]any) { e["payload"].(map[string]any)["rebalance"] = true })
					})
				})
				r := newRig(t)
				a := r.consumeWith(proxy.dial, "a", nil)
				after(2 * time.Second)
				require.Less(t, beats.Load(), int64(200))
				require.Equal(t, map[string]int{"a": 1}, r.shares())
				require.NoError(t, a.stop())
			})
		})
	}
}

// A handler that outlives the rebalance timeout at the end does not cost what others
// have marked meanwhile, be it committed automatically or at the end: it never was.
func TestGroupSlowHandlerAtTheEnd(t *testing.T) {
	for autoCommit, wait := range map[time.Duration]time.Duration{
		time.Second: 2 * time.Second,
		time.Hour:   11 * time.Second,
	} {
		t.Run(autoCommit.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 2)
				fill(t, b, 5)
				r := newRig(t)
				release := make(chan struct{})
				a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, HandlerFunc(func(s *Session, c *Claim) error {
					if c.Partition() == 1 {
						<-release
						return nil
					}
					<-c.Context().Done()
					s.MarkOffset(faultTopic, 0, 5, "the last thing it does")
					return nil
				}), WithRebalanceTimeout(10*time.Second), WithAutoCommit(autoCommit))
				after(time.Second)
				a.cancel()
				after(wait)
				require.Equal(t, int64(5), committed(b, 0))
				require.Equal(t, offsetNone, committed(b, 1))
				require.Empty(t, a.done, "it waits for its handlers")
				after(time.Minute)
				close(release)
				require.NoError(t, <-a.done)
			})
		})
	}
}

// What a handler fails with is what Consume returns, also if its context ends while
// other handlers finish: it returned nil, as if nothing had been wrong.
func TestGroupHandlerFailsAndContextEnds(t *testing.T) {
	failure := errors.New("out of paper")
	for name, test := range map[string]struct {
		fail func() error
		late bool // after the context's end
	}{
		"error":      {fail: func() error { return failure }},
		"panic":      {fail: func() error { panic(failure) }},
		"late panic": {func() error { panic(failure) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 2)
				r := newRig(t)
				a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, HandlerFunc(func(_ *Session, c *Claim) error {
					if c.Partition() == 0 {
						if test.late {
							<-c.Context().Done()
						}
						return test.fail()
					}
					<-c.Context().Done()
					<-time.After(2 * time.Second)
					return nil
				}))
				after(time.Second)
				require.ErrorIs(t, a.stop(), failure)
			})
		})
	}
}

// An error of the handler's that wraps what would end the membership, but of something
// else, ends Consume: it was taken for the group's own, and the handler called again and
// again.
func TestGroupHandlerFailsForAnotherGroup(t *testing.T) {
	for _, of := range []error{ErrUnknownMember, ErrFenced, ErrRebalanced, &CommitError{Group: "another"}} {
		t.Run(of.Error(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				store(t, b, 1)
				failure := fmt.Errorf("another group: %w", of)
				r := newRig(t)
				a := r.consumeWith(b.Dial, "a", func(*Session, *Claim, *Message) error { return failure })
				after(time.Minute)
				a.cancel()
				require.Equal(t, failure, <-a.done)
				require.Equal(t, map[string]int{"a t/0": 1}, r.calls())
			})
		})
	}
}

// slowlyMoved has a member read two partitions and lose one of them to another member,
// because handle does not return in time. It returns the one that it has lost.
func slowlyMoved(t testing.TB, r *rig, b *Broker, handle func(*Session, *Claim, *Message) error, opts ...Option) (a, bb *groupMember, moved TopicPartition) {
	t.Helper()
	fill(t, b, 5)
	a = r.consumeWith(b.Dial, "a", handle, append(opts, WithRebalanceTimeout(10*time.Second))...)
	after(time.Second)
	require.Equal(t, map[string]int{"a": 2}, r.shares())
	bb = r.consumeWith(b.Dial, "b", untilRevoked, WithAutoCommit(0))
	after(time.Second)
	moved = b.service.groups.targetOf(t, "b")
	after(10 * time.Second)
	require.Equal(t, []TopicPartition{moved}, r.of("b"))
	return a, bb, moved
}

// Commit says that marks are lost also when an automatic commit has heard of it before:
// it returned nil, and the handler took its work for committed.
func TestGroupCommitTellsOfEarlierRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		r := newRig(t)
		release, late := make(chan struct{}), make(chan error, 2)
		a, bb, moved := slowlyMoved(t, r, b, func(s *Session, c *Claim, m *Message) error {
			<-release
			if c.Context().Err() == nil {
				return nil
			}
			s.MarkMessage(m, "")
			<-time.After(5 * time.Second) // Several automatic commits.
			late <- s.Commit()
			late <- s.Commit()
			return nil
		})
		close(release)
		for range 2 {
			refused := new(CommitError)
			require.ErrorAs(t, <-late, &refused)
			require.Equal(t, &CommitError{Group: "g", Fenced: []TopicPartition{moved}}, refused)
			require.ErrorIs(t, refused, ErrFenced)
		}
		require.Equal(t, int64(5), committed(b, 1-moved.Partition))
		require.Equal(t, offsetNone, committed(b, moved.Partition))
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// A handler that returns the error of a commit which was refused for another partition
// does not end Consume, and is called again: one slow handler ended the whole member.
func TestGroupFencedCommitDoesNotEndConsume(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		r := newRig(t)
		release := make(chan struct{})
		returned := make(chan error, 10)
		a, bb, moved := slowlyMoved(t, r, b, func(s *Session, c *Claim, m *Message) error {
			s.MarkMessage(m, "")
			<-release
			if c.Context().Err() != nil {
				<-time.After(time.Minute) // It still holds what it has lost.
			}
			err := s.Commit()
			if err != nil {
				returned <- err
			}
			return err
		}, WithAutoCommit(0))
		kept := TopicPartition{faultTopic, 1 - moved.Partition}
		close(release)
		after(30 * time.Second)
		require.ErrorIs(t, <-returned, ErrFenced)
		require.Equal(t, []TopicPartition{kept}, r.of("a"))
		require.Greater(t, r.calls()["a "+kept.String()], 1)
		after(5 * time.Minute)
		require.Equal(t, []TopicPartition{kept}, r.of("a"))
		require.Equal(t, []TopicPartition{moved}, r.of("b"))
		require.Equal(t, int64(5), committed(b, kept.Partition))
		require.Empty(t, a.done)
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// With a broker that is told one partition at a time, a refusal of one does not count
// those behind it as committed: they were never sent.
func TestGroupSingleCommitsAfterRefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 3)
		fill(t, b, 1)
		old := newFaultProxy(t, b.Dial, documentedOnly(t))
		var commits atomic.Int64
		proxy := newFaultProxy(t, old.dial, func(int) (up, down stream) {
			refuse := func(f proxiedFrame, code string) verdict {
				return f.edited(t, func(e map[string]any) { e["success"], e["error"], e["error_code"] = false, "no", code })
			}
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind != requestCommitOffset {
					return f.pass()
				}
				switch commits.Add(1) {
				case 1:
					return refuse(f, "FENCED")
				case 2:
					return refuse(f, "INVALID_REQUEST")
				default:
					return f.pass()
				}
			})
		})
		r := newRig(t)
		a := r.consumeWith(proxy.dial, "a", nil, WithAutoCommit(0))
		after(10 * time.Second)
		require.Equal(t, map[string]int{"a": 3}, r.shares())
		s := a.group.session
		require.ErrorIs(t, s.Commit(), ErrInvalidRequest)
		require.Equal(t, int64(1), committed(b, 2), "the others do not wait for one")
		for range 2 {
			require.Equal(t, &CommitError{Group: "g", Fenced: []TopicPartition{{faultTopic, 0}}}, s.Commit())
			require.Equal(t, int64(1), committed(b, 1))
			require.Equal(t, int64(1), committed(b, 2))
		}
		require.Equal(t, int64(4), commits.Load(), "what is committed, or refused, is not sent again")
		require.Equal(t, map[string]int{"a": 3}, r.shares())
		require.NoError(t, a.stop())
	})
}

// What moves while Setup takes its time is not begun behind it: two members read it.
func TestGroupSlowSetup(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		fill(t, b, 3)
		r := newRig(t)
		a := r.consumeTopics(b.Dial, "a", []string{faultTopic}, slowSetup{rigHandler{r, "a", nil}}, WithRebalanceTimeout(10*time.Second))
		after(time.Second)
		bb := r.consumeWith(b.Dial, "b", untilRevoked)
		after(30 * time.Second)
		require.Equal(t, map[string]int{"b": 1}, r.shares())
		after(time.Minute)
		require.Empty(t, r.doubled)
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.shares())
		require.Equal(t, map[string]int{"a": 1, "b": 1}, r.setups)
		require.Len(t, r.calls(), 2)
		require.NoError(t, a.stop())
		require.NoError(t, bb.stop())
	})
}

// With a broker that knows no heartbeats, a Setup that takes longer than the session
// timeout does not cost the membership: nothing else was taken for a sign of life.
func TestGroupSlowSetupWithoutHeartbeats(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		proxy := newFaultProxy(t, b.Dial, documentedOnly(t, requestHeartbeat))
		r := newRig(t)
		a := r.consumeTopics(proxy.dial, "a", []string{faultTopic}, slowSetup{rigHandler{r, "a", nil}})
		after(10 * time.Minute)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.Equal(t, map[string]int{"a": 1}, r.setups)
		require.Empty(t, r.cleaned)
		require.NoError(t, a.stop())
	})
}

// A partition that is given up while an answer to an earlier sync is on its way is not
// begun by that answer: it began at what had been committed when the answer was made,
// and messages were handled again.
func TestGroupLateSyncAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		fill(t, b, 10)
		var slow atomic.Bool
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind == requestSyncGroup && slow.Load() {
					return f.late(500 * time.Millisecond)
				}
				return f.pass()
			})
		})
		r := newRig(t)
		release := make(chan struct{})
		a := r.consumeWith(proxy.dial, "a", func(_ *Session, _ *Claim, m *Message) error {
			if m.Offset == 8 {
				<-release
			}
			return nil
		}, WithAutoCommit(time.Hour))
		after(time.Second)
		// One partition is to move to another member, which leaves again.
		joinRaw(t, b, "b", "")
		after(time.Second)
		slow.Store(true)
		require.NoError(t, rawCall(t, b, ProtocolV1, &leaveGroupRequest{GroupID: "g", MemberID: "b"}, &leaveGroupResponse{}))
		require.NoError(t, b.service.groups.with(t.Context(), "g", false, func(h *hostedGroup) error {
			h.do(func(g *group, _ time.Time) {
				for id := range g.members {
					g.wake(id)
				}
			})
			return nil
		}))
		after(100 * time.Millisecond)
		close(release) // While the answer is on its way.
		after(10 * time.Second)
		for p := range int32(2) {
			require.Equal(t, []int64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, r.handled[TopicPartition{faultTopic, p}.String()])
		}
		require.NoError(t, a.stop())
	})
}

// What cannot be committed does not keep back what can: metadata that is too long is
// cut, a mark beyond the end of the partition does nothing, and both are reported.
func TestGroupAbsurdMarks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		fill(t, b, 3)
		r := newRig(t)
		a := r.consumeWith(b.Dial, "a", nil, WithAutoCommit(0))
		after(time.Second)
		s := a.group.session
		s.MarkMessage(&Message{Topic: faultTopic, Partition: 0, Offset: 2}, strings.Repeat("x", 5000))
		require.ErrorIs(t, <-a.group.Errors(), ErrInvalidRequest)
		for _, offset := range []int64{4, math.MaxInt64, math.MinInt64, -1} {
			s.MarkOffset(faultTopic, 1, offset, "")
		}
		s.MarkMessage(nil, "")
		s.MarkMessage(&Message{Topic: faultTopic, Partition: 1, Offset: math.MaxInt64}, "")
		require.ErrorIs(t, <-a.group.Errors(), ErrOffsetOutOfRange)
		require.NoError(t, s.Commit())
		require.Equal(t, int64(3), committed(b, 0))
		require.Equal(t, int64(3), committed(b, 1))
		require.NoError(t, a.stop())
		require.ErrorIs(t, s.Commit(), ErrClosed)
	})
}

// An assignor of the application's that does not return keeps neither the group nor
// Consume.
func TestGroupAssignorThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		r := newRig(t)
		release := make(chan struct{})
		defer close(release)
		assignor := NewAssignor("mine", func(*AssignmentInput) (map[TopicPartition]string, error) {
			<-release
			return nil, nil
		})
		a := r.consumeWith(b.Dial, "a", nil, WithAssignor(assignor))
		after(computeTimeout + time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		began := time.Now()
		require.NoError(t, a.stop())
		require.Equal(t, began, time.Now())
	})
}

// A member that leaves hears nothing of its last heartbeat, which the broker answers before
// the leave is confirmed: it was reported as a failure of the group.
func TestGroupLeaveIsNoFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind == requestLeaveGroup {
					return f.late(time.Second)
				}
				return f.pass()
			})
		})
		r := newRig(t)
		m := r.consumeWith(proxy.dial, "a", nil)
		after(time.Second)
		require.Equal(t, map[string]int{"a": 1}, r.shares())
		require.NoError(t, m.stop())
		select {
		case err := <-m.group.Errors():
			require.NoError(t, err)
		default:
		}
	})
}

// More than 500 partitions took several requests, and 500 whose metadata grows when it is
// escaped took one that no broker accepts.
func TestGroupCommitsMany(t *testing.T) {
	const partitions = 520
	for what, test := range map[string]struct {
		metadata string
		requests int
	}{
		"short metadata":      {"x", 1},
		"metadata that grows": {strings.Repeat("\x01", maxOffsetMeta), 4},
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, partitions)
				var sent frameCounter
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) { return sent.tap(), nil })
				fill(t, b, 1)
				r := newRig(t)
				a := r.consumeWith(proxy.dial, "a", func(s *Session, _ *Claim, m *Message) error {
					s.MarkMessage(m, test.metadata)
					return nil
				}, WithAutoCommit(0))
				after(5 * time.Second)
				require.NoError(t, a.group.session.Commit())
				require.Equal(t, test.requests, sent.of(requestCommitOffset))
				for i := range int32(partitions) {
					require.Equal(t, int64(1), committed(b, i))
				}
				require.NoError(t, a.stop())
			})
		})
	}
}
