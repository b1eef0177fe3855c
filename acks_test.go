package robust

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// syncingStorage keeps messages in memory and says of them what a log that syncs would.
type syncingStorage struct {
	Storage
	// reached is what a log says that it has reached when acks was asked for.
	reached func(acks Acks) Acks
}

func (s syncingStorage) OpenPartition(ctx context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	l, err := s.Storage.OpenPartition(ctx, t, partition, c, advanced)
	return syncingLog{l, s.reached}, err
}

type syncingLog struct {
	PartitionLog
	reached func(acks Acks) Acks
}

func (l syncingLog) Append(batches []byte, acks Acks, done func(AppendResult)) {
	l.PartitionLog.Append(batches, AcksStored, func(r AppendResult) {
		r.Acks = l.reached(acks)
		done(r)
	})
}

// What a send asks for reaches the log, and what the log has reached the receipt. An
// answer that says less than was asked for is an error.
func TestAcks(t *testing.T) {
	for name, c := range map[string]struct {
		reached func(Acks) Acks
		want    map[Acks]Acks // what is asked for; none: the send fails
	}{
		"as asked": {func(a Acks) Acks { return a }, map[Acks]Acks{AcksStored: AcksStored, AcksSynced: AcksSynced}},
		"always":   {func(Acks) Acks { return AcksSynced }, map[Acks]Acks{AcksStored: AcksSynced, AcksSynced: AcksSynced}},
		"less":     {func(Acks) Acks { return AcksStored }, map[Acks]Acks{AcksStored: AcksStored}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				storage := syncingStorage{NewMemoryStorage(), c.reached}
				client := faultClient(t, faultBroker(t, 1, WithStorage(storage)).Dial)
				for _, asked := range []Acks{AcksStored, AcksSynced} {
					p := faultProducer(t, client, WithAcks(asked))
					want, ok := c.want[asked]
					r, err := p.Send(t.Context(), to0("a"))
					_, _, err2 := p.SendMessage(t.Context(), to0("b"))
					err3 := p.SendMessages(t.Context(), []*Message{to0("c"), to0("d")})
					if !ok {
						for _, err := range []error{err, err2, err3} {
							require.ErrorIs(t, err, ErrMalformed)
							require.ErrorContains(t, err, `acks "synced" was asked for`)
							require.ErrorContains(t, err, "is stored only")
						}
						require.Zero(t, r)
						continue
					}
					require.NoError(t, err)
					require.NoError(t, err2)
					require.NoError(t, err3)
					require.Equal(t, want, r.Acks)
				}
			})
		})
	}
}

// A broker that keeps messages in memory refuses, and stores nothing.
func TestAcksOfMemory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		p := faultProducer(t, c, WithAcks(AcksSynced))
		_, err := p.Send(t.Context(), to0("a"))
		require.ErrorIs(t, err, ErrUnsupported)
		require.ErrorContains(t, err, "in memory")
		require.ErrorIs(t, p.SendMessages(t.Context(), []*Message{to0("a"), to0("b")}), ErrUnsupported)
		require.Empty(t, stored(t, b, 0))
	})
}

// A word that nobody knows is refused before anything is made or stored, each of those
// that are known is taken.
func TestAcksWords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithAutoCreateTopics(1))
		for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
			for _, word := range []string{"all", "Synced", "1", "stored,synced"} {
				err := rawCall(t, b, form, &produceRequest{Topic: "other", Acks: word}, newProduceResponse())
				require.ErrorIs(t, err, ErrInvalidRequest, word)
			}
			var resp produceResponse
			require.NoError(t, rawCall(t, b, form, &produceRequest{Topic: faultTopic, Acks: "stored"}, &resp))
			require.Empty(t, resp.Acks)
			require.ErrorIs(t, rawCall(t, b, form, &produceRequest{Topic: faultTopic, Acks: "synced"}, &resp), ErrUnsupported)
		}
		require.Len(t, stored(t, b, 0), 2)
		require.Equal(t, []string{faultTopic}, b.service.topics.names())
	})
}

// requireNoSync holds that a broker that has not announced acks is sent nothing, rather
// than a message of which it would promise less.
func requireNoSync(t testing.TB, c *Client) {
	t.Helper()
	p := faultProducer(t, c, WithAcks(AcksSynced))
	_, err := p.Send(t.Context(), to0("synced"))
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorContains(t, err, "has not announced acks")
	failed := ProducerErrors(nil)
	require.ErrorAs(t, p.SendMessages(t.Context(), []*Message{to0("synced"), to0("synced too")}), &failed)
	require.Len(t, failed, 2)
	require.ErrorIs(t, failed[0], ErrUnsupported)
	require.ErrorIs(t, failed[1], ErrUnsupported)
}

// The form that announces nothing cannot ask for it either, nor can a receipt of an
// answer in words that are not known promise it.
func TestAcksOfOldForm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		storage := syncingStorage{NewMemoryStorage(), func(a Acks) Acks { return a }}
		b := faultBroker(t, 1, WithStorage(storage))
		requireNoSync(t, faultClient(t, b.Dial, WithProtocol(ProtocolV0)))
		require.Empty(t, stored(t, b, 0))

		fake := newFakeBroker(t, newFakeLog(faultTopic, 1))
		fake.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind != requestProduce {
				return nil
			}
			return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "offset": 3, "timestamp": 1, "acks": "engraved"})
		}
		r, err := faultProducer(t, faultClient(t, fake.dial, WithBrokers(fake.addr))).Send(t.Context(), to0("a"))
		require.NoError(t, err)
		require.Equal(t, AcksStored, r.Acks)
	})
}
