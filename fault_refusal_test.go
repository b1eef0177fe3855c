package robust

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// refusals are what brokers say no with, and how often a message is sent then.
func refusals() []struct {
	code  errorCode
	text  string
	want  error
	times int
} {
	const retries = 3
	return []struct {
		code  errorCode
		text  string
		want  error
		times int
	}{
		{"TOPIC_NOT_FOUND", "x", ErrTopicNotFound, 1},
		{"PARTITION_NOT_FOUND", "x", ErrPartitionNotFound, 1},
		{"MESSAGE_TOO_LARGE", "x", ErrMessageTooLarge, 1},
		{"INVALID_REQUEST", "x", ErrInvalidRequest, 1},
		{"INVALID_CONFIG", "x", ErrInvalidConfig, 1},
		{"UNSUPPORTED", "x", ErrUnsupported, 1},
		{"MALFORMED", "x", ErrMalformed, 1},
		{"OFFSET_OUT_OF_RANGE", "x", ErrOffsetOutOfRange, 1},
		{"FENCED", "x", ErrFenced, 1},
		{"", "topic not found: t", ErrTopicNotFound, 1},
		{"", "Unknown Topic", ErrTopicNotFound, 1},
		{"", "invalid partition 7", ErrPartitionNotFound, 1},
		{"", "message too large", ErrMessageTooLarge, 1},
		{"", "unknown request type 0", ErrUnsupported, 1},
		{"OVERLOADED", "x", ErrOverloaded, 1 + retries},
		{"NOT_LEADER", "x", ErrNotLeader, 1 + retries},
		{"UNAVAILABLE", "x", ErrUnavailable, 1 + retries},
		{"INTERNAL", "disk: input/output error", nil, 1 + retries},
		{"SOMETHING_NEW", "x", nil, 1 + retries},
		{"", "something went wrong", nil, 1 + retries},
	}
}

// TestRefusalsAreRetriedOrNot has a broker refuse every message: what cannot get
// better is sent once, what may is sent again as often as WithRetries says. The
// refusal comes in the envelope or in the payload.
func TestRefusalsAreRetriedOrNot(t *testing.T) {
	for _, inside := range []bool{false, true} {
		for _, tc := range refusals() {
			if inside && tc.code != "" {
				continue // Codes stand in the envelope.
			}
			t.Run(fmt.Sprint(tc.code, " ", tc.text, " ", inside), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					b := cluster(t, 1, 1)[0]
					b.script = func(r *fakeRequest) *fakeAnswer {
						switch {
						case r.kind != requestProduce:
							return nil
						case inside:
							return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "offset": 0, "error": tc.text})
						}
						return r.refuse(tc.code, tc.text)
					}
					c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
					producer := faultProducer(t, c, WithRetries(3), WithRetryBackoff(time.Second))
					start := time.Now()
					_, _, err := producer.SendMessage(t.Context(), to0("a"))
					var be *BrokerError
					require.ErrorAs(t, err, &be)
					require.Equal(t, "Produce", be.Request)
					require.Equal(t, b.addr, be.Addr)
					require.Contains(t, be.Message, tc.text)
					if tc.want != nil {
						require.ErrorIs(t, err, tc.want)
					}
					require.Len(t, b.asked(requestProduce), tc.times)
					if tc.times == 1 {
						require.Zero(t, time.Since(start))
					} else {
						// 1 s, 2 s and 4 s, 20 % more or less.
						require.InDelta(t, 7, time.Since(start).Seconds(), 1.5)
					}

					// The messages of SendMessages are each treated so.
					before := len(b.asked(requestProduce))
					err = producer.SendMessages(t.Context(), []*Message{to0("a"), to0("b")})
					var failed ProducerErrors
					require.ErrorAs(t, err, &failed)
					require.Len(t, failed, 2)
					sent := len(b.asked(requestProduce)) - before
					if tc.times == 1 {
						require.Equal(t, 2, sent)
					} else {
						require.Equal(t, 2*(1+tc.times), sent, "once together, and then one by one")
					}
				})
			})
		}
	}
}

// TestOverloadPasses has a broker be overloaded for a while.
func TestOverloadPasses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := cluster(t, 1, 1)[0]
		var refused atomic.Int64
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind == requestProduce && refused.Add(1) <= 3 {
				return r.refuse("OVERLOADED", "busy")
			}
			return nil
		}
		c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
		_, offset, err := faultProducer(t, c, WithRetries(3)).SendMessage(t.Context(), to0("a"))
		require.NoError(t, err)
		require.Zero(t, offset)
		require.Equal(t, uint64(3), c.Metrics().Producer.GetStats().Retries)
	})
}

// TestTooManyConnections holds what a client makes of a broker that serves no more
// connections: it says so, tries again, and gets in when there is room.
func TestTooManyConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithConnectionLimit(1))
		first := faultClient(t, b.Dial)
		require.NoError(t, first.Ping(t.Context()))
		second := faultClient(t, b.Dial)
		start := time.Now()
		_, _, err := faultProducer(t, second, WithDeliveryTimeout(5*time.Second)).SendMessage(t.Context(), to0("a"))
		require.ErrorIs(t, err, ErrOverloaded)
		requireFault(t, err)
		require.LessOrEqual(t, time.Since(start), 5*time.Second)
		requireUnharmed(t, b, first)
		time.AfterFunc(5*time.Second, func() { first.Close() })
		_, _, err = faultProducer(t, second).SendMessage(t.Context(), to0("b"))
		require.NoError(t, err)
	})
}
