package robust

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// rawPeer speaks to a broker without a client.
type rawPeer struct {
	t  testing.TB
	nc net.Conn
	in *frameReader
}

func newRawPeer(t testing.TB, nc net.Conn) *rawPeer {
	t.Cleanup(func() { nc.Close() })
	return &rawPeer{t: t, nc: nc, in: &frameReader{r: nc, limit: 1 << 30}}
}

// dialPeer connects in memory.
func dialPeer(t testing.TB, b *Broker) *rawPeer {
	t.Helper()
	nc, err := b.Dial(t.Context(), "tcp", "")
	require.NoError(t, err)
	return newRawPeer(t, nc)
}

// send writes, in the background: the broker may have stopped reading.
func (p *rawPeer) send(text string) {
	go func() { _, _ = p.nc.Write([]byte(text)) }()
}

// answer reads one answer, within a minute. The error is the connection's end.
func (p *rawPeer) answer() (*wireResponse, error) {
	p.t.Helper()
	require.NoError(p.t, p.nc.SetReadDeadline(time.Now().Add(time.Minute)))
	frame, err := p.in.next()
	if err != nil {
		require.NotErrorIs(p.t, err, os.ErrDeadlineExceeded, "neither an answer nor an end")
		return nil, err
	}
	r := new(wireResponse)
	require.NoError(p.t, r.decode(bytes.Clone(frame)))
	return r, nil
}

// mustAnswer reads one answer to the request of this ID.
func (p *rawPeer) mustAnswer(id string) *wireResponse {
	p.t.Helper()
	r, err := p.answer()
	require.NoError(p.t, err)
	require.Equal(p.t, id, string(r.id))
	return r
}

// requireEnd fails unless the connection is over, with nothing more to read.
func (p *rawPeer) requireEnd() {
	p.t.Helper()
	_, err := p.answer()
	require.Error(p.t, err)
}

// requireServed fails unless the peer's next request is answered.
func (p *rawPeer) requireServed() {
	p.t.Helper()
	p.send(`{"request_id":"served","request_type":4}` + "\n")
	require.True(p.t, p.mustAnswer("served").success)
}

// malformed is what is no request, and what it is answered with before the broker
// hangs up.
var malformed = map[string]errorCode{
	"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03": "MALFORMED", // TLS
	"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n":    "MALFORMED",
	"\x00":                    "MALFORMED",
	"}":                       "MALFORMED",
	"]":                       "MALFORMED",
	"tru\n":                   "MALFORMED",
	"1 2\n":                   "MALFORMED",
	"\"open\n":                "MALFORMED",
	"{]":                      "MALFORMED",
	"{\"request_id\":\"1\",}": "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":4,\"payload\":{]}}":                  "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":0,\"payload\":{\"topic\":\"t\",}}":   "MALFORMED",
	"{\"request_id\":\"1\",\"request_type\":1,\"payload\":{\"topic\":tt}}":       "MALFORMED",
	"{\"request_id\":\"1\" \"request_type\":4}":                                  "MALFORMED",
	strings.Repeat("[", 1000):                                                    "MALFORMED",
	strings.Repeat("{\"a\":", 1000):                                              "MALFORMED",
	"{\"request_id\":\"" + strings.Repeat("x", 100_000):                          "MESSAGE_TOO_LARGE",
	"{\"payload\":{\"key\":\"" + strings.Repeat("\\\"", 50_000):                  "MESSAGE_TOO_LARGE",
	"\"" + strings.Repeat("x", 100_000):                                          "MESSAGE_TOO_LARGE",
	strings.Repeat("1", 100_000):                                                 "MESSAGE_TOO_LARGE",
	"{\"request_id\":\"1\",\"payload\":" + strings.Repeat(" ", 100_000):          "MESSAGE_TOO_LARGE",
	"{\"request_id\":\"1\",\"payload\":[" + strings.Repeat("1,", 50_000) + "1]}": "MESSAGE_TOO_LARGE",
}

// TestMalformedInputIsAnswered sends what cannot be understood, alone or with much
// behind it that nobody is going to read. It is answered before the connection is
// closed, in memory and on a socket, where closing while bytes wait to be read would
// destroy an answer that is on its way. Others do not notice.
func TestMalformedInputIsAnswered(t *testing.T) {
	b := faultBroker(t, 1, WithMaxFrameBytes(64<<10))
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	c := faultClient(t, b.Dial)
	for _, where := range []string{"memory", "tcp"} {
		for _, input := range slices.Sorted(maps.Keys(malformed)) {
			for _, behind := range []int{0, 300_000} {
				nc, err := b.Dial(t.Context(), "tcp", "")
				if where == "tcp" {
					nc, err = new(net.Dialer).DialContext(t.Context(), "tcp", addr.String())
				}
				require.NoError(t, err)
				p := newRawPeer(t, nc)
				p.requireServed()
				name := fmt.Sprintf("%s: %.60q and %d bytes", where, input, behind)
				sent := make(chan error, 1)
				go func() {
					_, err := nc.Write([]byte(input + strings.Repeat("x", behind)))
					sent <- err
				}()
				r, err := p.answer()
				require.NoError(t, err, name)
				require.False(t, r.success, name)
				require.Equal(t, malformed[input], r.errCode, name)
				require.NotEmpty(t, r.errText)
				p.requireEnd()
				require.NoError(t, <-sent, name) // It was not cut short, which is what destroys answers.
				nc.Close()
			}
		}
	}
	requireUnharmed(t, b, c)
}

// TestNoRequestIsAnswered sends JSON that is no request, or one that makes no sense:
// it is refused, by its ID if it has one, and the connection lives on.
func TestNoRequestIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		p := dialPeer(t, b)
		for _, tc := range []struct {
			input, id string
			v0        bool
		}{
			{input: "5\n"},
			{input: "-1.5e3\n"},
			{input: "true\n"},
			{input: "null\n"},
			{input: "\"request\"\n"},
			{input: "[]"},
			{input: "[{\"request_id\":\"1\"}]"},
			{input: "{}"},
			{input: "{\"request_id\":7}"},
			{input: "{\"request_id\":null,\"request_type\":4.5}"},
			{input: "{\"request_id\":\"a\",\"request_type\":\"4\"}", id: "a"},
			{input: "{\"request_id\":\"b\",\"request_type\":99}", id: "b"},
			{input: "{\"request_id\":\"c\",\"request_type\":-5}", id: "c"},
			{input: "{\"request_id\":\"d\",\"request_type\":1e400}", id: "d"},
			{input: "{\"request_id\":\"e\",\"request_type\":5,\"payload\":[]}", id: "e"},
			{input: "{\"request_id\":\"f\",\"request_type\":0,\"payload\":{\"topic\":1}}", id: "f"},
			{input: "{\"request_id\":\"g\",\"request_type\":1,\"payload\":{\"topic\":\"t\",\"offset\":\"0\"}}", id: "g"},
			{input: "{\"request_id\":\"h\",\"type\":5,\"payload\":\"!\"}", id: "h", v0: true},
			{input: "{\"request_id\":\"i\",\"type\":1,\"payload\":\"bm90aGluZw==\"}", id: "i", v0: true},
			{input: "{\"request_id\":\"\\u0022\\n\",\"type\":99,\"payload\":\"\"}", id: "\"\n", v0: true},
		} {
			p.send(tc.input)
			r, err := p.answer()
			require.NoError(t, err, tc.input)
			require.False(t, r.success, tc.input)
			require.Equal(t, tc.id, string(r.id), tc.input)
			require.NotEmpty(t, r.errText, tc.input)
			require.NotEmpty(t, r.errCode, tc.input)
			require.Equal(t, tc.v0, r.form == ProtocolV0, tc.input)
			p.requireServed()
		}
	})
}

// TestDamagedRequests sends requests of which some bytes were changed. Each is answered
// or the connection ends; the broker goes on.
func TestDamagedRequests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1, WithMaxFrameBytes(64<<10))
		c := faultClient(t, b.Dial)
		random := rand.New(rand.NewPCG(1, 2))
		var frames [][]byte
		for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
			for _, req := range []request{
				&produceRequest{Topic: faultTopic, Key: []byte("key"), Value: []byte("value"), Headers: map[string]string{"a": "b"}, ID: "id"},
				&fetchRequest{Topic: faultTopic, MaxBytes: 100, MaxMessages: 10, MaxWaitMs: 1000},
				&metadataRequest{Topics: []string{faultTopic}},
				&listOffsetsRequest{Topic: faultTopic, Partitions: []int32{0}, Timestamp: 5},
				&createTopicRequest{Name: "new", Partitions: 2, Config: map[string]string{"retention.hours": "1"}},
			} {
				frame, err := appendRequest(nil, form, "id", req.kind(), req)
				require.NoError(t, err)
				frames = append(frames, frame)
			}
		}
		p := dialPeer(t, b)
		answered, ended := 0, 0
		for i := range 3000 {
			frame := bytes.Clone(frames[i%len(frames)])
			for range 1 + random.IntN(3) {
				at := random.IntN(len(frame) - 1)
				switch random.IntN(4) {
				case 0:
					frame[at] = byte(random.Uint32())
				case 1:
					frame[at] = "{}[]\",:\\0n-"[random.IntN(11)]
				case 2:
					frame = slices.Delete(frame, at, at+1)
				case 3:
					frame = slices.Insert(frame, at, "{}[]\",:\\0n-"[random.IntN(11)])
				}
			}
			// What may have been left open is closed, so that the frame ends.
			closing := strings.Repeat("}]", maxNesting)
			p.send(string(frame) + closing + "\"" + closing + "\n")
			if _, err := p.answer(); err == nil {
				answered++
			} else {
				ended++
			}
			// It may be anywhere in what was sent, so the next one comes afresh.
			p.nc.Close()
			p = dialPeer(t, b)
		}
		require.Greater(t, answered, 2500, "%d ended without an answer", ended)
		requireUnharmed(t, b, c)
	})
}

// TestSlowFrames holds how long a frame may take to come: whoever sends a byte now and
// then does not occupy a connection for ever, and is told. Silence between frames is
// no fault, nor is sending one slowly.
func TestSlowFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		drip := func(p *rawPeer, text string, every time.Duration) {
			for i := range len(text) {
				if _, err := p.nc.Write([]byte(text[i : i+1])); err != nil {
					return
				}
				<-time.After(every)
			}
		}
		request := `{"request_id":"served","request_type":4}` + "\n"

		slow := dialPeer(t, b)
		for range 3 {
			drip(slow, request, frameTimeout/time.Duration(len(request)+2))
			require.True(t, slow.mustAnswer("served").success)
		}
		<-time.After(24 * time.Hour)
		slow.requireServed()

		loris := dialPeer(t, b)
		start := time.Now()
		go drip(loris, "{\"request_id\":\""+strings.Repeat("x", 1000), 10*time.Second)
		require.NoError(t, loris.nc.SetReadDeadline(start.Add(time.Hour)))
		frame, err := loris.in.next()
		require.NoError(t, err)
		require.Contains(t, string(frame), "MALFORMED")
		loris.requireEnd()
		require.InDelta(t, frameTimeout.Seconds(), time.Since(start).Seconds(), 2)

		// A large frame that comes in pieces has no more time than a small one.
		large := dialPeer(t, b)
		start = time.Now()
		go func() {
			for piece := "{\"payload\":\""; ; piece = strings.Repeat("x", 10_000) {
				if _, err := large.nc.Write([]byte(piece)); err != nil {
					return
				}
				<-time.After(time.Second)
			}
		}()
		require.NoError(t, large.nc.SetReadDeadline(start.Add(time.Hour)))
		frame, err = large.in.next()
		require.NoError(t, err)
		require.Contains(t, string(frame), "MALFORMED")
		require.InDelta(t, frameTimeout.Seconds(), time.Since(start).Seconds(), 2)

		// Between whole frames too: each begun one has a time of its own.
		mixed := dialPeer(t, b)
		for range 100 {
			_, err := mixed.nc.Write([]byte(request + request[:10]))
			require.NoError(t, err)
			require.True(t, mixed.mustAnswer("served").success)
			<-time.After(frameTimeout / 2)
			_, err = mixed.nc.Write([]byte(request[10:]))
			require.NoError(t, err)
			require.True(t, mixed.mustAnswer("served").success)
		}
		requireUnharmed(t, b, c)
	})
}

// brokerConnCount is how many connections the broker serves.
func brokerConnCount(b *Broker) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// TestPeerThatNeverReads asks for much and reads nothing. What the broker keeps for it
// is bounded, whether the fetches are answered at once or were held, and it is hung up
// on when it has not read for a while. Others do not notice.
func TestPeerThatNeverReads(t *testing.T) {
	large := strings.Repeat("x", 50_000)
	fetch := func(extra string) string {
		return `{"request_id":"f","request_type":1,"payload":{"topic":"t","partition":0,"offset":0,"max_bytes":10000000` + extra + "}}\n"
	}
	v0 := `{"request_id":"f","type":1,"payload":"` +
		base64.StdEncoding.EncodeToString([]byte(`{"topic":"t","partition":0,"offset":0,"max_bytes":10000000}`)) + "\"}\n"
	for name, text := range map[string]string{
		"at once": strings.Repeat(fetch(""), 3000),
		"held":    strings.Repeat(fetch(`,"min_bytes":10000000,"max_wait_ms":5000`), 1000),
		"v0":      strings.Repeat(v0, 3000),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1)
				c := faultClient(t, b.Dial)
				for range 4 {
					_, _, err := faultProducer(t, c).SendMessage(t.Context(), to0(large))
					require.NoError(t, err)
				}
				conns, heap := brokerConnCount(b), heapBytes()
				p := dialPeer(t, b)
				// The more a peer sends, the more of it is read at once.
				p.send(strings.Repeat(`{"request_id":"1","request_type":4}`+"\n", 10_000))
				for range 10_000 {
					p.mustAnswer("1")
				}
				p.send(text)
				most := int64(0)
				start := time.Now()
				for brokerConnCount(b) > conns || time.Since(start) < time.Second {
					requireUnharmed(t, b, c)
					<-time.After(2 * time.Second)
					most = max(most, heapBytes()-heap)
					require.Less(t, time.Since(start), 5*time.Minute)
				}
				// An answer is 270 or 360 KB; all of them together would be 270 MB or more.
				require.Less(t, most, int64(20<<20))
				require.LessOrEqual(t, time.Since(start), 2*time.Minute)
			})
		})
	}
}

// TestManyHeldFetches pipelines more fetches than a connection may have held. Those
// above the limit are answered at once, the others when there is something; each once.
func TestManyHeldFetches(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const fetches = 2000
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		require.NoError(t, c.Ping(t.Context()))
		p := dialPeer(t, b)
		var text strings.Builder
		for i := range fetches {
			fmt.Fprintf(&text, `{"request_id":"%d","request_type":1,"payload":{"topic":"t","partition":0,"offset":0,"max_wait_ms":20000}}`+"\n", i)
		}
		p.send(text.String())
		seen := make(map[string]bool)
		read := func() int {
			r, err := p.answer()
			require.NoError(t, err)
			require.True(t, r.success)
			require.False(t, seen[string(r.id)])
			seen[string(r.id)] = true
			resp := newFetchResponse()
			require.NoError(t, decodePayload(r.payload, resp))
			return len(resp.Messages)
		}
		start := time.Now()
		for range fetches - maxHeld {
			require.Zero(t, read())
		}
		require.Zero(t, time.Since(start))
		<-time.After(time.Second)
		p.requireServed()
		requireUnharmed(t, b, c)
		for range maxHeld {
			require.Equal(t, 1, read())
		}
		require.Equal(t, time.Second, time.Since(start))
		require.Len(t, seen, fetches)
		p.requireServed()
	})
}

// TestFormsOnOneConnection mixes both forms of the protocol on one connection. Answers
// in the v0 form come in the order of their requests, whatever is held beside them.
func TestFormsOnOneConnection(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		p := dialPeer(t, b)
		v0 := func(id string, kind int, payload string) string {
			return fmt.Sprintf(`{"request_id":"%s","type":%d,"payload":"%s"}`+"\n", id, kind, base64.StdEncoding.EncodeToString([]byte(payload)))
		}
		v1 := func(id string, kind int, payload string) string {
			return fmt.Sprintf(`{"request_id":"%s","request_type":%d,"payload":%s}`+"\n", id, kind, payload)
		}
		held := `{"topic":"t","partition":1,"offset":0,"max_wait_ms":10000}`
		p.send(v1("held 1", 1, held) +
			v0("a", 0, `{"topic":"t","partition":0,"value":"eA=="}`) +
			v1("held 2", 1, held) +
			v0("b", 1, `{"topic":"t","partition":0,"offset":5,"max_wait_ms":10000}`) + // Refused, and never held.
			v0("c", 1, `{"topic":"t","partition":0,"offset":-7}`) +
			v1("now", 4, `{}`) +
			v0("d", 99, `{}`) +
			v0("e", 13, ``) +
			v0("f", 1, `{"topic":"t","partition":0,"offset":1,"max_wait_ms":10000}`))
		start := time.Now()
		var v0Order, v1Order []string
		for range 7 {
			r, err := p.answer()
			require.NoError(t, err)
			if r.form == ProtocolV0 {
				v0Order = append(v0Order, string(r.id))
			} else {
				v1Order = append(v1Order, string(r.id))
			}
		}
		require.Equal(t, []string{"a", "b", "c", "d", "e", "f"}, v0Order)
		require.Equal(t, []string{"now"}, v1Order)
		require.Zero(t, time.Since(start))
		p.send(v1("g", 0, `{"topic":"t","partition":1,"value":"eA=="}`) + v0("h", 0, `{"topic":"t","partition":0,"value":"eA=="}`))
		var rest []string
		for range 4 {
			r, err := p.answer()
			require.NoError(t, err)
			require.True(t, r.success)
			rest = append(rest, string(r.id))
		}
		require.ElementsMatch(t, []string{"g", "h", "held 1", "held 2"}, rest)
	})
}

// TestFloodOfConnections has many peers connect, send garbage, half a request, or
// nothing, and vanish in every way while a client works.
func TestFloodOfConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		c := faultClient(t, b.Dial)
		requireUnharmed(t, b, c)
		before := brokerConnCount(b)
		random := rand.New(rand.NewPCG(3, 4))
		inputs := append(slices.Sorted(maps.Keys(malformed)), "", "{", `{"request_id":"1","request_type":4}`, strings.Repeat("\n", 1000))
		for range 300 {
			p := dialPeer(t, b)
			input := inputs[random.IntN(len(inputs))]
			p.send(input)
			switch random.IntN(3) {
			case 0:
				synctest.Wait()
				p.nc.Close()
			case 1:
				p.nc.Close()
			case 2: // It stays.
			}
			if random.IntN(10) == 0 {
				requireUnharmed(t, b, c)
			}
		}
		requireUnharmed(t, b, c)
		// What is malformed or never becomes a frame is gone after a while.
		<-time.After(2 * frameTimeout)
		require.Less(t, brokerConnCount(b)-before, 60)
		requireUnharmed(t, b, c)
	})
}

// TestBodiesThroughTheProxy sends bodies that look like frames: whatever they hold is not
// taken for one, on either side of the proxy.
func TestBodiesThroughTheProxy(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		seen := 0
		proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
			return requests(func(f proxiedFrame) verdict {
				if f.kind == requestProduceBatch {
					seen += len(f.body)
				}
				return f.pass()
			}), answers(proxiedFrame.pass)
		})
		nc, err := proxy.dial(t.Context(), "tcp", "")
		require.NoError(t, err)
		p := newRawPeer(t, nc)
		body := appendBatch(nil, NewMessage(faultTopic, []byte("\n{\"request_id\":\"no\",\"request_type\":4}\n\n")))
		for i := range 3 {
			req := &produceBatchRequest{Parts: []producePart{{Topic: faultTopic, Bytes: len(body)}}}
			line, err := appendBodyRequest(nil, fmt.Sprint(i), requestProduceBatch, len(body), req)
			require.NoError(t, err)
			p.send(string(append(line, body...)))
			require.True(t, p.mustAnswer(fmt.Sprint(i)).success)
		}
		p.requireServed()
		require.Equal(t, 3*len(body), seen)
		require.Len(t, stored(t, b, 0), 3)
	})
}
