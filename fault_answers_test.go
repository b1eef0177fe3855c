package robust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLateAnswer has a caller give up before its answer comes. It is free at once;
// the answer, when it comes, is nobody else's.
func TestLateAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		var produced atomic.Int64
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict {
				if f.kind != requestProduceBatch {
					return f.pass()
				}
				if produced.Add(1)%2 == 1 {
					return f.late(5 * time.Second)
				}
				return f.pass()
			})
		})
		c := faultClient(t, proxy.dial)
		producer := faultProducer(t, c)
		for i := range int64(20) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			start := time.Now()
			_, _, err := producer.SendMessage(ctx, to0(fmt.Sprint(2*i)))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			requireFault(t, err)
			require.Equal(t, time.Second, time.Since(start))
			cancel()
			_, offset, err := producer.SendMessage(t.Context(), to0(fmt.Sprint(2*i+1)))
			require.NoError(t, err)
			require.Equal(t, 2*i+1, offset)
			require.Less(t, time.Since(start), 1100*time.Millisecond, "what is held up does not hold up what comes later")
		}
		<-time.After(time.Minute)
		require.Equal(t, 1, proxy.connections())
		for i, v := range stored(t, b, 0) {
			require.Equal(t, fmt.Sprint(i), v)
		}
		// All that was given up has been forgotten.
		conn := onlyConn(t, c)
		conn.mu.Lock()
		defer conn.mu.Unlock()
		require.Empty(t, conn.inflight)
		require.Zero(t, conn.abandoned)
	})
}

// TestManyGiveUp has callers give up at every moment of a call, while others do not:
// nobody gets another's answer.
func TestManyGiveUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(nil), answers(func(f proxiedFrame) verdict { return f.late(time.Duration(1+f.n%7) * time.Millisecond) })
		})
		producer := faultProducer(t, faultClient(t, proxy.dial))
		require.NoError(t, producer.client.Ping(t.Context()))
		var running sync.WaitGroup
		var gaveUp, stayed atomic.Int64
		for i := range 40 {
			running.Go(func() {
				for j := range 25 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if j%2 == 0 {
						cancel()
						ctx, cancel = context.WithTimeout(t.Context(), time.Duration(1+(i*j)%9)*time.Millisecond)
					}
					value := fmt.Sprint(i, "/", j)
					_, offset, err := producer.SendMessage(ctx, to0(value))
					cancel()
					switch {
					case err == nil:
						stayed.Add(1)
						if got := storedFrom(t, b, 0, offset)[0]; got != value {
							t.Errorf("%s was told the offset of %s", value, got)
						}
					case errors.Is(err, context.DeadlineExceeded):
						gaveUp.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		running.Wait()
		require.GreaterOrEqual(t, stayed.Load(), int64(40*12))
		require.Greater(t, gaveUp.Load(), int64(100))
	})
}

// damages are what can happen to an answer.
func damages(t testing.TB) map[string]func(proxiedFrame) verdict {
	plain := func(text string) func(proxiedFrame) verdict {
		return func(f proxiedFrame) verdict { return f.by(text) }
	}
	edit := func(how func(map[string]any)) func(proxiedFrame) verdict {
		return func(f proxiedFrame) verdict { return f.edited(t, how) }
	}
	return map[string]func(proxiedFrame) verdict{
		"dropped":              proxiedFrame.drop,
		"twice":                proxiedFrame.twice,
		"truncated":            proxiedFrame.truncated,
		"delayed":              func(f proxiedFrame) verdict { return f.delayed(3 * time.Second) },
		"late":                 func(f proxiedFrame) verdict { return f.late(time.Minute) },
		"garbage":              plain("\x00\xff\x17\x03\x03"),
		"garbage with a line":  plain("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"brackets only":        plain("{{{{\n"),
		"object of garbage":    plain("{\"request_id\":nonsense}\n"),
		"no object":            plain("[1,2,3]\n"),
		"null":                 plain("null\n"),
		"number":               plain("17\n"),
		"text":                 plain("\"request_id\"\n"),
		"empty object":         plain("{}\n"),
		"deep":                 plain(strings.Repeat("[", 100) + "\n"),
		"success of nobody's":  plain("{\"success\":true,\"payload\":{}}\n"),
		"wrong ID":             edit(func(a map[string]any) { a["request_id"] = "7b0a9c52-4f1e-4d8a-b3c6-000000000001" }),
		"short ID":             edit(func(a map[string]any) { a["request_id"] = "7" }),
		"next ID":              edit(func(a map[string]any) { a["request_id"] = nextID(a["request_id"]) }),
		"ID is a number":       edit(func(a map[string]any) { a["request_id"] = 7 }),
		"no ID":                edit(func(a map[string]any) { delete(a, "request_id") }),
		"ID only":              edit(func(a map[string]any) { delete(a, "success"); delete(a, "payload"); delete(a, "error") }),
		"no payload":           edit(func(a map[string]any) { delete(a, "payload") }),
		"empty payload":        edit(func(a map[string]any) { a["payload"] = map[string]any{} }),
		"payload is a list":    edit(func(a map[string]any) { a["payload"] = []any{1} }),
		"payload is a number":  edit(func(a map[string]any) { a["payload"] = 1 }),
		"payload is no base64": edit(func(a map[string]any) { a["payload"] = "!" }),
		"other form":           edit(func(a map[string]any) { a["\x00text"] = true }),
		"success is text":      edit(func(a map[string]any) { a["success"] = "yes" }),
		"refused, no reason":   edit(func(a map[string]any) { a["success"] = false }),
		"unknown code":         edit(func(a map[string]any) { a["success"], a["error_code"] = false, "NO_SUCH_CODE" }),
		"unknown fields":       edit(func(a map[string]any) { a["extra"] = map[string]any{"a": []any{1}} }),
	}
}

// nextID is the ID of the request behind.
func nextID(id any) string {
	s := id.(string)
	return s[:35] + string("123456789abcdef0"[strings.IndexByte("0123456789abcdef", s[35])])
}

// TestDamagedAnswers has the first answer of a kind, or every one, come damaged. What
// is sent is stored where the result says, or the result is an error; what is
// consumed comes in order; nobody waits for ever, and nobody asks without a pause.
func TestDamagedAnswers(t *testing.T) {
	t.Parallel()
	kinds := []requestType{requestClusterInfo, requestMetadata, requestProduceBatch, requestFetchBatch, requestListOffsets}
	all := damages(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		damage := all[name]
		bubble(t, func(t *testing.T) {
			for _, kind := range kinds {
				damagedOnce(t, fmt.Sprint("first ", kind, " ", name), kind, damage)
				damagedAlways(t, fmt.Sprint("every ", kind, " ", name), kind, damage)
			}
		})
	}
}

// damagedOnce damages the first answer of a kind. Everything works in the end, but
// for a send or a consumer that the damage itself has told that it failed.
func damagedOnce(t *testing.T, name string, kind requestType, damage func(proxiedFrame) verdict) {
	b := faultBroker(t, 1)
	defer b.Close()
	store(t, b, 3)
	var seen atomic.Bool
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return requests(nil), answers(func(f proxiedFrame) verdict {
			if f.kind == kind && seen.CompareAndSwap(false, true) {
				return damage(f)
			}
			return f.pass()
		})
	})
	defer proxy.stop()
	c := faultClient(t, proxy.dial, WithRequestTimeout(5*time.Second))
	defer c.Close()
	pc := faultConsumer(t, c)
	for i := range int64(3) {
		m, err := next(t, pc, time.Minute)
		if kind == requestFetchBatch || kind == requestListOffsets {
			if err != nil && requireEnded(t, pc, name) {
				break
			}
		}
		require.NoError(t, err, name)
		require.Equal(t, i, m.Offset, name)
		require.Equal(t, fmt.Sprint(i), string(m.Value), name)
	}
	producer := faultProducer(t, c)
	_, offset, err := producer.SendMessage(t.Context(), to0(name))
	if err != nil {
		require.Equal(t, requestProduceBatch, kind, "%s: %v", name, err)
		_, offset, err = producer.SendMessage(t.Context(), to0(name))
	}
	require.NoError(t, err, name)
	require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
}

// requireEnded fails unless the consumer has ended with an error that it names.
func requireEnded(t *testing.T, pc *PartitionConsumer, name string) bool {
	t.Helper()
	err := pc.fetch.ended()
	var ce *ConsumerError
	require.ErrorAs(t, err, &ce, name)
	return true
}

// damagedAlways damages every answer of a kind.
func damagedAlways(t *testing.T, name string, kind requestType, damage func(proxiedFrame) verdict) {
	b := faultBroker(t, 1)
	defer b.Close()
	store(t, b, 3)
	var count frameCounter
	proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
		return count.tap(), answers(func(f proxiedFrame) verdict {
			if f.kind == kind {
				return damage(f)
			}
			return f.pass()
		})
	})
	defer proxy.stop()
	c := faultClient(t, proxy.dial, WithRequestTimeout(5*time.Second))
	defer c.Close()
	const limit = 20 * time.Second
	pc := faultConsumer(t, c, WithFetchMaxWait(time.Second))
	start := time.Now()
	for i := int64(0); ; i++ {
		m, err := next(t, pc, limit)
		if err != nil {
			break // In time, as the deadline below says.
		}
		require.Equal(t, i, m.Offset, name)
		require.Equal(t, fmt.Sprint(i), string(m.Value), name)
	}
	_, offset, err := faultProducer(t, c, WithDeliveryTimeout(limit)).SendMessage(t.Context(), to0(name))
	if err == nil {
		require.Equal(t, name, storedFrom(t, b, 0, offset)[0])
	}
	_ = pc.Close()
	require.LessOrEqual(t, time.Since(start), 3*limit, name)
	require.Less(t, count.total(), 1000, name)
}

// TestHostileBroker has a broker lie in every field of every answer: each in turn
// holds a wrong value, or none. Nothing panics, nobody waits for longer than said,
// nobody asks again and again without a pause, and no message is delivered that was
// not asked for.
func TestHostileBroker(t *testing.T) {
	kinds := []requestType{requestClusterInfo, requestMetadata, requestProduce, requestFetch, requestListOffsets}
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		for _, kind := range kinds {
			if form == ProtocolV0 && kind == requestListOffsets {
				continue // It has none.
			}
			t.Run(fmt.Sprintf("%v %v", form, kind), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) {
					n := 0
					for how, mutant := range mutants(honestAnswer(t, form, kind)) {
						if n++; form == ProtocolV0 && n%5 != 0 {
							continue // The payloads are the same; a sample will do.
						}
						lieTo(t, fmt.Sprint(form, " ", kind, how), form, kind, mutant.(map[string]any))
					}
				})
			})
		}
	}
}

// hostileBroker returns a broker with a few messages.
func hostileBroker(t testing.TB, form Protocol) *fakeBroker {
	log := newFakeLog(faultTopic, 2)
	log.fill(0, 2)
	log.setLeader(0, "fake")
	b := newFakeBroker(t, log)
	b.nodes = map[string]string{"fake": b.addr, "other": "other.invalid:1"}
	b.v0Only = form == ProtocolV0
	if b.v0Only {
		b.features = nil
	}
	return b
}

// honestAnswer is what the broker says when it does not lie.
func honestAnswer(t *testing.T, form Protocol, kind requestType) map[string]any {
	b := hostileBroker(t, form)
	defer b.stop()
	payload := map[requestType]any{
		requestMetadata:    &metadataRequest{Topics: []string{faultTopic}},
		requestProduce:     &produceRequest{Topic: faultTopic, Partition: 1},
		requestFetch:       &fetchRequest{Topic: faultTopic, MaxMessages: 10},
		requestListOffsets: &listOffsetsRequest{Topic: faultTopic, Partitions: []int32{0}},
	}[kind]
	text, err := appendPayload(nil, payload)
	require.NoError(t, err)
	r := &fakeRequest{broker: b, wireRequest: wireRequest{id: []byte("?"), kind: kind, form: form, payload: text}}
	return decodeTree(t, r.honest().frames[0])
}

// lieTo works with a broker that gives one false answer to every request of a kind.
func lieTo(t *testing.T, name string, form Protocol, kind requestType, lie map[string]any) {
	b := hostileBroker(t, form)
	defer b.stop()
	b.script = func(r *fakeRequest) *fakeAnswer {
		if r.kind != kind {
			return nil
		}
		answer := maps.Clone(lie)
		if answer["request_id"] == "?" {
			answer["request_id"] = string(r.id)
		}
		return &fakeAnswer{frames: [][]byte{encodeTree(t, answer)}}
	}
	c := faultClient(t, dialFakes(b), WithBrokers(b.addr), WithRequestTimeout(time.Second))
	defer c.Close()
	const limit = 2 * time.Second
	start := time.Now()
	pc := faultConsumer(t, c, WithPollInterval(500*time.Millisecond))
	before := int64(-1)
	for range 200 { // It may be made to believe that there is no end.
		m, err := next(t, pc, limit)
		if err != nil {
			require.NotErrorIs(t, err, context.Canceled)
			break
		}
		require.Equal(t, faultTopic, m.Topic, name)
		require.Zero(t, m.Partition, name)
		require.Greater(t, m.Offset, before, name)
		before = m.Offset
	}
	require.NoError(t, pc.Close())

	m := NewMessage(faultTopic, []byte("v"))
	m.Partition = 1
	r, err := faultProducer(t, c, WithDeliveryTimeout(limit)).Send(t.Context(), m)
	if err == nil {
		require.Equal(t, int32(1), r.Partition, name)
		require.GreaterOrEqual(t, r.Offset, int64(0), name)
	}
	_, _ = c.Admin().GetMetadata(t.Context(), nil)
	_, _ = c.Admin().ListOffsets(t.Context(), faultTopic, time.Now())
	_, _ = c.Admin().ClusterInfo(t.Context())
	require.NoError(t, c.Close())
	took := time.Since(start)
	require.LessOrEqual(t, took, time.Minute, name)
	require.Less(t, b.askedTotal(), 100+int(20*took.Seconds()), name)
}

// fetchAnswer is an answer to r with messages of these offsets.
func fetchAnswer(r *fakeRequest, offsets ...int64) *fakeAnswer {
	messages := []any{}
	for _, offset := range offsets {
		messages = append(messages, map[string]any{"topic": faultTopic, "partition": 0, "offset": offset})
	}
	return r.ok(map[string]any{"topic": faultTopic, "partition": 0, "messages": messages})
}

// TestHostileFetches has a broker give answers to fetches that are false in more than
// one field or from one to the next.
func TestHostileFetches(t *testing.T) {
	offsetOf := func(r *fakeRequest) int64 {
		var q fetchRequest
		r.into(&q)
		return q.Offset
	}
	var turn atomic.Int64
	cases := []struct {
		name    string
		v0      bool
		opts    []ConsumerOption
		offsets func(r *fakeRequest) *fakeAnswer // what ListOffsets is answered
		script  func(r *fakeRequest) *fakeAnswer // what a fetch is
		rate    int                              // requests a second, at most
		want    []int64                          // what is delivered first
		ends    bool                             // the consumer does
	}{
		{
			name: "out of range, wherever", rate: 10,
			offsets: func(r *fakeRequest) *fakeAnswer {
				return r.ok(map[string]any{"topic": faultTopic, "offsets": []any{map[string]any{"partition": 0, "offset": turn.Add(1)}}})
			},
			script: func(r *fakeRequest) *fakeAnswer { return r.refuse("OFFSET_OUT_OF_RANGE", "no") },
		},
		{
			name: "the same messages again", rate: 15, want: []int64{0, 1, 2},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 1, 2) },
		},
		{
			name: "messages from the start, however far", rate: 15, want: []int64{0, 1, 2, 5},
			script: func(r *fakeRequest) *fakeAnswer {
				if offsetOf(r) > 3 {
					return fetchAnswer(r, 0, 1, 2, 3)
				}
				return fetchAnswer(r, 0, 1, offsetOf(r)+2)
			},
		},
		{
			name: "the last offset of all", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, math.MaxInt64) },
		},
		{
			name: "unordered", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 2, 1) },
		},
		{
			name: "twice the same", rate: 10, ends: true,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 0, 0) },
		},
		{
			name: "gaps", rate: 15, want: []int64{5, 9},
			script: func(r *fakeRequest) *fakeAnswer {
				if offsetOf(r) > 9 {
					return fetchAnswer(r)
				}
				return fetchAnswer(r, 5, 9)
			},
		},
		{
			name: "never held", rate: 15,
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r) },
		},
		{
			name: "never held, and not asked to", rate: 15, opts: []ConsumerOption{WithFetchMaxWait(0)},
			script: func(r *fakeRequest) *fakeAnswer {
				a := fetchAnswer(r)
				a.after = 3 * time.Millisecond
				return a
			},
		},
		{
			name: "never held, but slow", rate: 15, opts: []ConsumerOption{WithFetchMaxWait(2 * time.Millisecond)},
			script: func(r *fakeRequest) *fakeAnswer {
				a := fetchAnswer(r)
				a.after = 3 * time.Millisecond
				return a
			},
		},
		{
			name: "a log without end", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, max(offsetOf(r), 0)) },
		},
		{
			name: "the same end, wherever", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, 7) },
		},
		{
			name: "an end that moves away", v0: true, rate: 10, ends: true, opts: []ConsumerOption{WithStartOffset(OffsetNewest)},
			script: func(r *fakeRequest) *fakeAnswer { return fetchAnswer(r, math.MaxInt64) },
		},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				form := ProtocolV1
				if tc.v0 {
					form = ProtocolV0
				}
				b := hostileBroker(t, form)
				limit := 300 + 30*tc.rate
				b.script = func(r *fakeRequest) *fakeAnswer {
					switch {
					case b.askedTotal() > limit:
						return r.silence() // It is a loop without a pause, as is seen below.
					case r.kind == requestFetch:
						return tc.script(r)
					case r.kind == requestListOffsets && tc.offsets != nil:
						return tc.offsets(r)
					}
					return nil
				}
				c := faultClient(t, dialFakes(b), WithBrokers(b.addr))
				pc := faultConsumer(t, c, tc.opts...)
				for _, offset := range tc.want {
					m, err := next(t, pc, time.Minute)
					require.NoError(t, err)
					require.Equal(t, offset, m.Offset)
				}
				_, err := next(t, pc, 30*time.Second)
				require.Error(t, err)
				require.Less(t, b.askedTotal(), limit)
				if tc.ends {
					var ce *ConsumerError
					require.ErrorAs(t, pc.fetch.ended(), &ce)
				} else {
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
			})
		})
	}
}
