package robust

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// documentedOnly makes a broker one that knows of groups what is documented, and
// nothing of this package's additions. Of refused it knows nothing at all.
func documentedOnly(t testing.TB, refused ...requestType) func(int) (up, down stream) {
	plain := map[requestType][]string{
		requestJoinGroup:    {"group_id", "member_id", "client_id", "topics", "host"},
		requestSyncGroup:    {"group_id", "member_id", "generation"},
		requestHeartbeat:    {"group_id", "member_id", "generation"},
		requestCommitOffset: {"group_id", "topic", "partition", "offset", "metadata"},
	}
	up := requests(func(f proxiedFrame) verdict {
		known, ok := plain[f.kind]
		if !ok {
			return f.pass()
		}
		return f.edited(t, func(envelope map[string]any) {
			for field := range envelope["payload"].(map[string]any) {
				require.Contains(t, known, field, f.kind.String())
			}
		})
	})
	down := answers(func(f proxiedFrame) verdict {
		return f.edited(t, func(envelope map[string]any) {
			if slices.Contains(refused, f.kind) {
				envelope["success"], envelope["error"], envelope["error_code"] = false, "unknown request type", "UNSUPPORTED"
				return
			}
			payload, _ := envelope["payload"].(map[string]any)
			for _, field := range []string{"features", "grants", "pending", "missing", "compute"} {
				delete(payload, field)
			}
			if f.kind == requestSyncGroup {
				delete(payload, "generation")
			}
		})
	})
	return func(int) (stream, stream) { return up, down }
}

// Against a broker that knows the documented requests alone, members share a group with
// heartbeats, or without by asking for the assignment.
func TestGroupOfOldBroker(t *testing.T) {
	for name, refused := range map[string][]requestType{
		"heartbeats":    nil,
		"no heartbeats": {requestHeartbeat},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 4)
				store(t, b, 5)
				proxy := newFaultProxy(t, b.Dial, documentedOnly(t, refused...))
				r := newRig(t)
				a := r.consumeTopics(proxy.dial, "a", []string{faultTopic, "^log-"}, rigHandler{r, "a", nil})
				after(10 * time.Second)
				require.Equal(t, map[string]int{"a": 4}, r.shares())
				require.Equal(t, int64(5), committed(b, 0))
				bb := r.consumeWith(proxy.dial, "b", nil)
				after(10 * time.Second)
				require.Equal(t, map[string]int{"a": 2, "b": 2}, r.shares())
				after(10 * time.Minute)
				require.Equal(t, map[string]int{"a": 2, "b": 2}, r.shares())
				for what, n := range r.calls() {
					require.LessOrEqual(t, n, 2, what)
				}
				require.NoError(t, a.stop())
				after(40 * time.Second)
				require.Equal(t, map[string]int{"b": 4}, r.shares())
				require.Equal(t, []int64{0, 1, 2, 3, 4}, r.handled["t/0"])
				require.NoError(t, bb.stop())
			})
		})
	}
}

// A pattern is resolved by the client where the broker would not understand it, and
// topics that appear are picked up.
func TestGroupPatternOfOldBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithTopic("log-1", 1))
		proxy := newFaultProxy(t, b.Dial, documentedOnly(t))
		r := newRig(t)
		a := r.consumeTopics(proxy.dial, "a", []string{"^log-"}, rigHandler{r, "a", nil})
		after(10 * time.Second)
		require.Equal(t, []TopicPartition{{"log-1", 0}}, r.of("a"))
		require.NoError(t, a.group.client.Admin().CreateTopic(t.Context(), "log-2", 1, nil))
		after(2 * time.Minute)
		require.Equal(t, []TopicPartition{{"log-1", 0}, {"log-2", 0}}, r.of("a"))
		require.Equal(t, 1, r.calls()["a log-1/0"])
		require.NoError(t, a.stop())
	})
}

// Members that know the documented fields alone and members of this package share a
// group.
func TestGroupOfOldAndNewMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 6)
		proxy := newFaultProxy(t, b.Dial, documentedOnly(t))
		r := newRig(t)
		old := r.consumeWith(proxy.dial, "old", nil)
		after(10 * time.Second)
		fresh := r.consumeWith(b.Dial, "new", nil)
		v0 := r.consumeWith(b.Dial, "v0", nil, WithProtocol(ProtocolV0))
		after(30 * time.Second)
		require.Equal(t, map[string]int{"old": 2, "new": 2, "v0": 2}, r.shares())
		require.NoError(t, old.stop())
		after(5 * time.Second)
		require.Equal(t, map[string]int{"new": 3, "v0": 3}, r.shares())
		require.NoError(t, fresh.stop())
		require.NoError(t, v0.stop())
	})
}

// A broker that is lost is looked for among the others.
func TestGroupGoesToAnotherBroker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := NewMemoryStorage()
		defer storage.Close()
		first := faultBroker(t, 2, WithStorage(storage))
		r := newRig(t)
		var second atomic.Pointer[Broker]
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			b := first
			if addr == "b.invalid:1" {
				b = second.Load()
			}
			if b == nil {
				return nil, errors.New("nobody there")
			}
			return b.Dial(ctx, network, addr)
		}
		a := r.consumeWith(dial, "a", nil, WithBrokers("a.invalid:1", "b.invalid:1"))
		after(3 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.NoError(t, first.Close())
		second.Store(faultBroker(t, 2, WithStorage(storage)))
		after(10 * time.Second)
		require.Equal(t, map[string]int{"a": 2}, r.shares())
		require.Equal(t, 1, r.calls()["a t/0"])
		require.NoError(t, a.stop())
	})
}
