package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// liar is a session that does its work badly.
type liar struct {
	lose    bool // a message is acknowledged and not stored
	forget  bool // a message is never acknowledged
	refuse  bool // a message fails
	double  bool // a message is received twice, and another not at all
	missing bool // the consumer gives up early

	payloads [][]byte
}

func (s *liar) produce(ctx context.Context, l *load) error {
	ln := l.lane()
	defer ln.close()
	for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
		switch first := len(s.payloads) == 0; {
		case first && s.forget:
			s.forget = false
		case first && s.refuse:
			s.refuse = false
			l.done(it.at, errors.New("no room"))
		case first && s.lose:
			s.lose = false
			l.done(it.at, nil)
		default:
			s.payloads = append(s.payloads, it.payload)
			l.done(it.at, nil)
		}
	}
	return nil
}

func (s *liar) consume(_ context.Context, into *sink) error {
	if s.missing {
		return errors.New("the connection is gone")
	}
	ln := into.lane()
	defer ln.close()
	for i, p := range s.payloads {
		if s.double && i == 1 {
			p = s.payloads[0]
		}
		ln.take(p)
	}
	return nil
}

func (s *liar) send(context.Context, []byte) error    { return errors.New("no room") }
func (s *liar) stored(context.Context) (int64, error) { return int64(len(s.payloads)), nil }
func (s *liar) close() error                          { return nil }

// TestMiscounted holds that a row whose messages are not all there fails, however fast.
func TestMiscounted(t *testing.T) {
	for _, c := range []struct {
		session liar
		kinds   []kind
		want    string
	}{
		{liar{}, []kind{kindProduce, kindConsume}, ""},
		{liar{lose: true}, []kind{kindProduce}, "1100 messages were acknowledged and 1099 are stored"},
		{liar{lose: true}, []kind{kindConsume}, "1100 messages were acknowledged and 1099 are stored"},
		{liar{forget: true}, []kind{kindProduce}, "100 messages were sent and 99 acknowledged"},
		{liar{refuse: true}, []kind{kindProduce}, "1 of 100 messages failed, the first with: no room"},
		{liar{double: true}, []kind{kindProduce, kindConsume}, "what was consumed is not what was sent"},
		{liar{missing: true}, []kind{kindConsume}, "the connection is gone"},
		{liar{}, []kind{kindSync}, "no room"},
	} {
		w := &worker{
			job:     job{Kinds: c.kinds, Size: 100, Partitions: 1, Duration: time.Minute, Limit: 1000},
			session: &c.session, pool: newPool(1 << 20),
		}
		results := make([]result, len(c.kinds))
		err := w.work(t.Context(), results)
		if c.want == "" {
			require.NoError(t, err)
			require.Equal(t, int64(1000), results[0].Messages)
			require.Equal(t, int64(1100), results[1].Messages)
			continue
		}
		require.ErrorContains(t, err, c.want)
		if c.session.double {
			require.Empty(t, results[0].Err)
			require.Contains(t, results[1].Err, c.want)
		}
	}
}

// TestPaced holds that with a rate messages come when they are due, and that one who
// comes late is told since when.
func TestPaced(t *testing.T) {
	const rate = 1000
	l := newLoad(loadConfig{pool: newPool(1 << 20), size: 100, partitions: 3, limit: 100, rate: rate})
	l.begun = time.Now().Add(-50 * time.Millisecond) // As if half of them were due.
	ln := l.lane()
	items := ln.take(t.Context(), make([]item, 0, 100))
	require.GreaterOrEqual(t, len(items), 50)
	require.Zero(t, items[0].at, "all is still warming up")
	require.Equal(t, l.begun.Add(20*time.Millisecond).Sub(processStart()).Nanoseconds(), items[20].at)
	require.Equal(t, int32(2), items[20].partition)
	s := newSink(1, true)
	into := s.lane()
	require.False(t, into.take(items[20].payload))
	into.close()
	require.Equal(t, int64(1), s.times.TotalCount())
	require.GreaterOrEqual(t, s.times.Max(), (29 * time.Millisecond).Nanoseconds())

	rest := 0
	for _, ok := ln.next(t.Context()); ok; _, ok = ln.next(t.Context()) {
		rest++
	}
	require.Equal(t, 100, len(items)+rest)
	require.GreaterOrEqual(t, time.Since(l.begun), 99*time.Millisecond)
}

// TestPool holds that payloads do not come again for as long as they can be others.
func TestPool(t *testing.T) {
	p := newPool(1 << 16)
	seen := make(map[string]bool)
	for i := range int64(5000) { // some seven times through
		payload := p.cut(i, 100)
		require.Len(t, payload, 100)
		require.False(t, seen[string(payload)], i)
		seen[string(payload)] = true
	}
}
