package robust

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// faultProxy stands between clients and a broker and does to each direction of each
// connection what its script says. It serves any kind of connection: as a dialer
// (dial), which makes one in memory, or on a port (listen).
type faultProxy struct {
	upstream dialFunc
	// script gives what becomes of the directions of the n-th connection, counted
	// from 0: up is towards the broker. Nil passes everything on.
	script func(n int) (up, down stream)

	running sync.WaitGroup // links, and what listens

	mu       sync.Mutex // guards the following
	links    []*proxyLink
	listener net.Listener
	stopped  bool
}

// proxyLink is one connection through the proxy.
type proxyLink struct {
	proxy    *faultProxy
	up, down *proxySink
	done     chan struct{} // closed with the link
	once     sync.Once

	mu    sync.Mutex             // guards the following
	kinds map[string]requestType // of requests that have passed, by ID
}

// proxySink is where a direction ends. Each Write arrives in one piece.
type proxySink struct {
	nc     net.Conn
	token  chan struct{}
	passed atomic.Int64 // bytes
}

// stream passes on what comes from src until it returns; how it returns says what
// becomes of the link.
type stream func(l *proxyLink, dst *proxySink, src net.Conn) streamEnd

type streamEnd int

const (
	endOfSource streamEnd = iota // what has passed is still delivered
	endCut                       // both ends are closed at once
)

func newFaultProxy(t testing.TB, upstream dialFunc, script func(n int) (up, down stream)) *faultProxy {
	p := &faultProxy{upstream: upstream, script: script}
	t.Cleanup(p.stop)
	return p
}

// dial fits WithDialer.
func (p *faultProxy) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	here, there := newPipe()
	if err := p.serve(ctx, there, network, addr); err != nil {
		return nil, err
	}
	return here, nil
}

// listen serves on a TCP port and dials addr for each connection. It returns where.
func (p *faultProxy) listen(t testing.TB, addr string) string {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	ctx := context.WithoutCancel(t.Context())
	p.running.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if p.serve(ctx, nc, "tcp", addr) != nil {
				nc.Close()
			}
		}
	})
	return l.Addr().String()
}

// serve begins to proxy one connection.
func (p *faultProxy) serve(ctx context.Context, client net.Conn, network, addr string) error {
	broker, err := p.upstream(ctx, network, addr)
	if err != nil {
		return err
	}
	l := &proxyLink{
		proxy: p,
		up:    &proxySink{nc: broker, token: make(chan struct{}, 1)},
		down:  &proxySink{nc: client, token: make(chan struct{}, 1)},
		done:  make(chan struct{}),
		kinds: make(map[string]requestType),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		client.Close()
		broker.Close()
		return net.ErrClosed
	}
	up, down := p.script(len(p.links))
	p.links = append(p.links, l)
	p.running.Go(func() { l.run(up, l.up, client) })
	p.running.Go(func() { l.run(down, l.down, broker) })
	return nil
}

// link returns the n-th connection, nil if there is none yet.
func (p *faultProxy) link(n int) *proxyLink {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n >= len(p.links) {
		return nil
	}
	return p.links[n]
}

// connections is how many there have been.
func (p *faultProxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.links)
}

// cutAll cuts every connection.
func (p *faultProxy) cutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.cut()
	}
}

func (p *faultProxy) stop() {
	p.mu.Lock()
	p.stopped = true
	if p.listener != nil {
		p.listener.Close()
	}
	p.mu.Unlock()
	p.cutAll()
	p.running.Wait()
}

func (l *proxyLink) cut() {
	l.once.Do(func() {
		close(l.done)
		l.up.nc.Close()
		l.down.nc.Close()
	})
}

// run serves one direction.
func (l *proxyLink) run(s stream, dst *proxySink, src net.Conn) {
	if s == nil {
		s = passAll
	}
	if s(l, dst, src) == endCut {
		l.cut()
		return
	}
	if half, ok := dst.nc.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // It may be gone already.
		return
	}
	dst.nc.Close()
}

func (s *proxySink) Write(b []byte) (int, error) {
	s.token <- struct{}{}
	defer func() { <-s.token }()
	n, err := s.nc.Write(b)
	s.passed.Add(int64(n))
	return n, err
}

// passAll passes everything on.
func passAll(_ *proxyLink, dst *proxySink, src net.Conn) streamEnd {
	_, _ = io.Copy(dst, src) // However it ends, it ends.
	return endOfSource
}

// cutAfter passes n bytes on and then cuts the connection.
func cutAfter(n int64) stream {
	return func(_ *proxyLink, dst *proxySink, src net.Conn) streamEnd {
		if _, err := io.CopyN(dst, src, n); err != nil {
			return endOfSource
		}
		return endCut
	}
}

// silentAfter passes n bytes on and swallows the rest: a peer that is gone without
// a word.
func silentAfter(n int64) stream {
	return func(l *proxyLink, dst *proxySink, src net.Conn) streamEnd {
		_, _ = io.CopyN(dst, src, n)    // If it ends before, so does the rest.
		_, _ = io.Copy(io.Discard, src) // Until the source ends.
		<-l.done                        // Nor is the end passed on.
		return endCut
	}
}

// dripping passes n bytes on every d.
func dripping(n int64, d time.Duration) stream {
	return func(l *proxyLink, dst *proxySink, src net.Conn) streamEnd {
		for {
			if _, err := io.CopyN(dst, src, n); err != nil {
				return endOfSource
			}
			select {
			case <-time.After(d):
			case <-l.done:
				return endCut
			}
		}
	}
}

// verdict is what becomes of one frame.
type verdict struct {
	instead [][]byte      // goes on in its place, as it stands
	delay   time.Duration // before that; what follows waits too
	late    time.Duration // likewise, but what follows does not wait
	then    verdictEnd
}

type verdictEnd int

const (
	thenGoOn verdictEnd = iota
	thenCut
	thenSilence
)

// proxiedFrame is one that passes the proxy.
type proxiedFrame struct {
	n    int         // how many came before it in this direction
	kind requestType // of the request, or of the one that is answered
	text []byte      // without the line end
	body []byte      // what follows the line; nil: nothing does
}

// whole is the frame as it came, its body included.
func (f proxiedFrame) whole() []byte { return append(lineOf(f.text), f.body...) }

// What becomes of a frame, in one word.
func (f proxiedFrame) pass() verdict  { return verdict{instead: [][]byte{f.whole()}} }
func (f proxiedFrame) drop() verdict  { return verdict{} }
func (f proxiedFrame) twice() verdict { return verdict{instead: [][]byte{f.whole(), f.whole()}} }

// truncated cuts the connection in the middle of the frame; behind its line if it has a
// body.
func (f proxiedFrame) truncated() verdict {
	half := f.text[:len(f.text)/2]
	if f.body != nil {
		half = append(lineOf(f.text), f.body[:len(f.body)/2]...)
	}
	return verdict{instead: [][]byte{half}, then: thenCut}
}
func (f proxiedFrame) by(text string) verdict { return verdict{instead: [][]byte{[]byte(text)}} }
func (f proxiedFrame) late(d time.Duration) verdict {
	return verdict{instead: [][]byte{f.whole()}, late: d}
}

func (f proxiedFrame) delayed(d time.Duration) verdict {
	return verdict{instead: [][]byte{f.whole()}, delay: d}
}

// edited passes the frame on after edit has changed its envelope. Its body stays, and
// stays as long, unless edit says otherwise of the latter.
func (f proxiedFrame) edited(t testing.TB, edit func(envelope map[string]any)) verdict {
	envelope := decodeTree(t, f.text)
	edit(envelope)
	return verdict{instead: [][]byte{append(encodeTree(t, envelope), f.body...)}}
}

func lineOf(text []byte) []byte { return append(text[:len(text):len(text)], '\n') }

// requests judges every request; nil passes them on. The proxy knows answers by
// their requests, so it stands up where answers stands down.
func requests(each func(proxiedFrame) verdict) stream {
	return eachFrame(func(l *proxyLink, f *proxiedFrame) verdict {
		var req wireRequest
		_ = req.decode(f.text) // What is no request has no kind.
		f.kind = req.kind
		l.mu.Lock()
		l.kinds[string(req.id)] = req.kind
		l.mu.Unlock()
		if each == nil {
			return f.pass()
		}
		return each(*f)
	})
}

// answers judges every answer.
func answers(each func(proxiedFrame) verdict) stream {
	return eachFrame(func(l *proxyLink, f *proxiedFrame) verdict {
		var resp wireResponse
		_ = resp.decode(f.text) // As above.
		l.mu.Lock()
		kind, ok := l.kinds[string(resp.id)]
		l.mu.Unlock()
		f.kind = requestUnknown
		if ok {
			f.kind = kind
		}
		return each(*f)
	})
}

// eachFrame passes frames on as judge says.
func eachFrame(judge func(*proxyLink, *proxiedFrame) verdict) stream {
	return func(l *proxyLink, dst *proxySink, src net.Conn) streamEnd {
		in := &frameReader{r: src, limit: 1 << 30}
		for n := 0; ; n++ {
			f := &proxiedFrame{n: n}
			var err error
			if f.text, f.body, err = nextWithBody(in); err != nil {
				return endOfSource
			}
			v := judge(l, f)
			if v.late > 0 {
				l.proxy.running.Go(func() { l.writeAfter(v.late, dst, v.instead) })
			} else if !l.writeAfter(v.delay, dst, v.instead) {
				return endOfSource
			}
			switch v.then {
			case thenCut:
				return endCut
			case thenSilence:
				return silentAfter(0)(l, dst, src)
			case thenGoOn:
			}
		}
	}
}

// nextWithBody returns copies of the next frame and of the body that it says follows it,
// nil if it says none.
func nextWithBody(in *frameReader) (text, body []byte, err error) {
	if text, err = in.next(); err != nil {
		return nil, nil, err
	}
	text = bytes.Clone(text)
	var envelope struct {
		Body *int `json:"body"`
	}
	if !bytes.Contains(text, []byte(`"body":`)) {
		return text, nil, nil
	}
	// What is no frame passes as it is; the peer judges it.
	_ = json.Unmarshal(text, &envelope)
	if envelope.Body == nil {
		return text, nil, nil
	}
	if err := checkBody(*envelope.Body, in.limit); err != nil || *envelope.Body < 0 {
		return text, nil, err
	}
	body, err = in.appendBody(make([]byte, *envelope.Body), *envelope.Body)
	return text, body, err
}

func (l *proxyLink) writeAfter(d time.Duration, dst *proxySink, pieces [][]byte) bool {
	if d > 0 {
		select {
		case <-time.After(d):
		case <-l.done:
			return false
		}
	}
	for _, b := range pieces {
		if _, err := dst.Write(b); err != nil {
			return false
		}
	}
	return true
}

// frameCounter counts requests by kind.
type frameCounter struct {
	mu     sync.Mutex
	counts map[requestType]int
}

func (c *frameCounter) add(kind requestType) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[requestType]int)
	}
	c.counts[kind]++
}

func (c *frameCounter) of(kind requestType) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[kind]
}

func (c *frameCounter) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.counts {
		n += k
	}
	return n
}

// tap is a stream that counts requests and passes them on.
func (c *frameCounter) tap() stream {
	return requests(func(f proxiedFrame) verdict {
		c.add(f.kind)
		return f.pass()
	})
}

// decodeTree reads an answer as a tree of JSON, its payload in either form.
func decodeTree(t testing.TB, text []byte) map[string]any {
	t.Helper()
	var tree map[string]any
	unmarshalNumbers(t, text, &tree)
	if s, ok := tree["payload"].(string); ok {
		plain, err := base64.StdEncoding.DecodeString(s)
		require.NoError(t, err)
		var payload any
		unmarshalNumbers(t, plain, &payload)
		tree["payload"], tree["\x00text"] = payload, true
	}
	return tree
}

func unmarshalNumbers(t testing.TB, text []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	require.NoError(t, d.Decode(v))
}

// encodeTree is the inverse of decodeTree, with the line end.
func encodeTree(t testing.TB, tree map[string]any) []byte {
	t.Helper()
	tree = maps.Clone(tree)
	if tree["\x00text"] == true {
		plain, err := json.Marshal(tree["payload"])
		require.NoError(t, err)
		tree["payload"] = base64.StdEncoding.EncodeToString(plain)
		delete(tree, "\x00text")
	}
	text, err := json.Marshal(tree)
	require.NoError(t, err)
	return lineOf(text)
}

// mutants yields every tree that differs from v in one place, with where and how.
func mutants(v any) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) { mutate("", v, yield) }
}

// wrongValues stand in for whatever a field held.
func wrongValues() []any {
	number := func(s string) any { return json.Number(s) }
	return []any{
		nil, false, "", "x", strings.Repeat("y", 300),
		[]any{},
		map[string]any{},
		[]any{nil},
		number("-1"), number("0"), number("7"),
		number("2147483648"), number("9223372036854775807"), number("-9223372036854775808"), number("1e400"),
	}
}

func mutate(path string, v any, yield func(string, any) bool) bool {
	for _, wrong := range wrongValues() {
		if path == "" {
			break // The whole answer is another test's.
		}
		if !yield(fmt.Sprintf("%s=%.40v(%[2]T)", path, wrong), wrong) {
			return false
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			without := maps.Clone(v)
			delete(without, key)
			if key == "\x00text" {
				continue
			}
			if !yield(path+"."+key+" left out", without) {
				return false
			}
			inner := func(how string, child any) bool {
				with := maps.Clone(v)
				with[key] = child
				return yield(how, with)
			}
			if !mutate(path+"."+key, v[key], inner) {
				return false
			}
		}
	case []any:
		if len(v) > 0 {
			backwards := slices.Clone(v)
			slices.Reverse(backwards)
			if !yield(path+" backwards", backwards) || !yield(path+" doubled", append(slices.Clone(v), v...)) ||
				!yield(path+" cut", v[:len(v)-1]) {
				return false
			}
		}
		for i := range v {
			inner := func(how string, child any) bool {
				with := slices.Clone(v)
				with[i] = child
				return yield(how, with)
			}
			if !mutate(fmt.Sprintf("%s[%d]", path, i), v[i], inner) {
				return false
			}
		}
	}
	return true
}

// fakeLog is what one or more fakeBrokers keep: the messages of one topic.
type fakeLog struct {
	topic string

	mu         sync.Mutex // guards the following
	partitions [][]*Message
	leaders    map[int32]string         // as metadata names them; none: it names none
	producers  map[string]*fakeProducer // by ID and partition
}

func newFakeLog(topic string, partitions int) *fakeLog {
	return &fakeLog{topic: topic, partitions: make([][]*Message, partitions), leaders: make(map[int32]string)}
}

// fill appends messages whose value says their offset.
func (l *fakeLog) fill(partition int32, n int) {
	for range n {
		l.append(&produceRequest{Topic: l.topic, Partition: partition})
	}
}

func (l *fakeLog) append(r *produceRequest) *Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	stored := l.partitions[r.Partition]
	m := &Message{
		ID: "id", Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers,
		Timestamp: r.Timestamp, Offset: int64(len(stored)),
	}
	if m.Value == nil {
		m.Value = fmt.Append(nil, m.Offset)
	}
	l.partitions[r.Partition] = append(stored, m)
	return m
}

func (l *fakeLog) messages(partition int32) []*Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.partitions[partition])
}

func (l *fakeLog) setLeader(partition int32, leader string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaders[partition] = leader
}

// fakeBroker is a broker that a test has made up. It answers honestly, within what
// the published brokers can, unless its script has something else to say.
type fakeBroker struct {
	t    testing.TB
	addr string
	id   string // "": it does not name itself
	log  *fakeLog
	// v0Only makes it one of the first shipped brokers: it knows protocol v0
	// alone, serves one request at a time, and hangs up on what it does not know.
	v0Only   bool
	features []string
	noInfo   bool              // ClusterInfo is unknown to it
	nodes    map[string]string // what ClusterInfo lists: addresses by ID
	// script may answer a request in the broker's place; nil leaves it to the
	// broker. An empty answer is none.
	script func(r *fakeRequest) *fakeAnswer

	running sync.WaitGroup

	mu       sync.Mutex // guards the following
	requests []*fakeRequest
	conns    []net.Conn
	down     bool
	overlaps int // requests that came before the one before was answered
}

type fakeRequest struct {
	wireRequest

	broker *fakeBroker
	conn   int // on which connection, counted from 0
	at     time.Time
	behind []byte // its body; nil: it has none
}

type fakeAnswer struct {
	frames [][]byte
	after  time.Duration
	hangUp bool
}

func newFakeBroker(t testing.TB, log *fakeLog) *fakeBroker {
	b := &fakeBroker{t: t, addr: "fake.invalid:1", id: "fake", log: log, features: []string{featureListOffsets}}
	t.Cleanup(b.stop)
	return b
}

// dial fits WithDialer.
func (b *fakeBroker) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	here, there := newPipe()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, fmt.Errorf("dial %s: %w", addr, errRefused)
	}
	n := len(b.conns)
	b.conns = append(b.conns, there)
	b.running.Go(func() { b.serve(there, n) })
	return here, nil
}

var errRefused = errors.New("connection refused")

// setDown ends every connection and refuses others, or stops doing that.
func (b *fakeBroker) setDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
	if down {
		for _, nc := range b.conns {
			nc.Close()
		}
	}
}

func (b *fakeBroker) stop() {
	b.setDown(true)
	b.running.Wait()
}

// serve reads requests as they come and answers them one after the other.
func (b *fakeBroker) serve(nc net.Conn, conn int) {
	defer nc.Close()
	queue := make(chan *fakeRequest, 10_000)
	b.running.Go(func() {
		defer close(queue)
		in := &frameReader{r: nc, limit: 64 << 20}
		for {
			frame, body, err := nextWithBody(in)
			if err != nil {
				return
			}
			r := &fakeRequest{broker: b, conn: conn, at: time.Now(), behind: body}
			if !b.read(&r.wireRequest, frame) {
				return
			}
			b.mu.Lock()
			b.requests = append(b.requests, r)
			b.mu.Unlock()
			queue <- r
		}
	})
	for r := range queue {
		if b.v0Only {
			// Long enough for a second request to show itself.
			<-time.After(time.Millisecond)
			if len(queue) > 0 {
				b.mu.Lock()
				b.overlaps++
				b.mu.Unlock()
				return
			}
		}
		a := b.answer(r)
		if a.after > 0 {
			<-time.After(a.after)
		}
		for _, f := range a.frames {
			if _, err := nc.Write(f); err != nil {
				break
			}
		}
		if a.hangUp {
			nc.Close()
		}
	}
}

// read reads a request; false means that the broker cannot and hangs up.
func (b *fakeBroker) read(r *wireRequest, frame []byte) bool {
	if !b.v0Only {
		return r.decode(frame) == nil
	}
	// This is how the first shipped brokers read.
	var v0 struct {
		Type      int    `json:"type"`
		RequestID string `json:"request_id"`
		Payload   []byte `json:"payload"`
	}
	if json.Unmarshal(frame, &v0) != nil {
		return false
	}
	*r = wireRequest{id: []byte(v0.RequestID), number: v0.Type, kind: fromV0Number(v0.Type), form: ProtocolV0, payload: v0.Payload}
	return true
}

func (b *fakeBroker) answer(r *fakeRequest) *fakeAnswer {
	if b.script != nil {
		if a := b.script(r); a != nil {
			return a
		}
	}
	return r.honest()
}

// ok answers with a payload.
func (r *fakeRequest) ok(payload map[string]any) *fakeAnswer {
	return r.with(map[string]any{"request_id": string(r.id), "success": true, "error": "", "payload": payload})
}

// refuse answers no. Brokers without extensions give no code.
func (r *fakeRequest) refuse(code errorCode, text string) *fakeAnswer {
	envelope := map[string]any{"request_id": string(r.id), "success": false, "error": text, "payload": nil}
	if code != "" {
		envelope["error_code"] = string(code)
	}
	return r.with(envelope)
}

func (r *fakeRequest) with(envelope map[string]any) *fakeAnswer {
	if r.form == ProtocolV0 && envelope["payload"] != nil {
		envelope["\x00text"] = true
	}
	return &fakeAnswer{frames: [][]byte{encodeTree(r.broker.t, envelope)}}
}

// silence is no answer.
func (*fakeRequest) silence() *fakeAnswer { return &fakeAnswer{} }

// withBody answers with a payload and what follows it.
func (r *fakeRequest) withBody(payload any, body []byte) *fakeAnswer {
	line, err := appendBodyResponse(nil, r.id, len(body), payload)
	require.NoError(r.broker.t, err)
	return &fakeAnswer{frames: [][]byte{append(line, body...)}}
}

// raw answers with bytes as they stand.
func (*fakeRequest) raw(text string) *fakeAnswer { return &fakeAnswer{frames: [][]byte{[]byte(text)}} }

func (r *fakeRequest) hangUp() *fakeAnswer { return &fakeAnswer{hangUp: true} }

// into decodes the payload.
func (r *fakeRequest) into(v any) {
	require.NoError(r.broker.t, decodePayload(r.payload, v))
}

// honest answers as a broker of the published kind does.
func (r *fakeRequest) honest() *fakeAnswer {
	b := r.broker
	switch r.kind {
	case requestClusterInfo:
		return r.clusterInfo()
	case requestMetadata:
		return r.metadata()
	case requestProduce:
		var p produceRequest
		r.into(&p)
		if refusal := r.misplaced(p.Topic, p.Partition); refusal != nil {
			return refusal
		}
		m := b.log.append(&p)
		return r.ok(map[string]any{"topic": m.Topic, "partition": m.Partition, "offset": m.Offset, "timestamp": m.Timestamp})
	case requestFetch:
		return r.fetch()
	case requestFetchBatch:
		if slices.Contains(b.features, featureBinary) {
			return r.fetchBatch()
		}
	case requestProduceBatch:
		if slices.Contains(b.features, featureBinary) {
			return r.produceBatch()
		}
	case requestInitProducer:
		if slices.Contains(b.features, featureIdempotence) {
			return r.ok(map[string]any{"producer_id": 1 + len(b.asked(requestInitProducer)), "producer_epoch": 0})
		}
	case requestListOffsets:
		if slices.Contains(b.features, featureListOffsets) {
			return r.listOffsets()
		}
	}
	if b.v0Only {
		return r.hangUp()
	}
	return r.refuse("", fmt.Sprintf("unknown request type %d", r.number))
}

func (r *fakeRequest) clusterInfo() *fakeAnswer {
	b := r.broker
	if b.noInfo {
		return r.refuse("", fmt.Sprintf("unknown request type %d", r.number))
	}
	nodes := []any{}
	for _, id := range slices.Sorted(maps.Keys(b.nodes)) {
		nodes = append(nodes, map[string]any{"id": id, "addr": b.nodes[id]})
	}
	info := map[string]any{"cluster_id": "fakes", "nodes": nodes}
	if len(b.features) > 0 && !b.v0Only {
		info["features"], info["node_id"], info["protocol"] = b.features, b.id, "v1"
		info["limits"] = map[string]any{"max_frame_bytes": 1 << 20}
	}
	return r.ok(info)
}

func (r *fakeRequest) metadata() *fakeAnswer {
	log := r.broker.log
	log.mu.Lock()
	defer log.mu.Unlock()
	var q metadataRequest
	r.into(&q)
	if len(q.Topics) > 0 && !slices.Contains(q.Topics, log.topic) {
		return r.refuse("", "topic not found: "+q.Topics[0])
	}
	partitions := []any{}
	for id := range log.partitions {
		partitions = append(partitions, map[string]any{"id": id, "leader": log.leaders[int32(id)]})
	}
	return r.ok(map[string]any{"topics": []any{map[string]any{"name": log.topic, "partitions": partitions}}})
}

// misplaced refuses what this broker does not have or does not lead.
func (r *fakeRequest) misplaced(topic string, partition int32) *fakeAnswer {
	b := r.broker
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	if topic != b.log.topic {
		return r.refuse("", "topic not found: "+topic)
	}
	if partition < 0 || int(partition) >= len(b.log.partitions) {
		return r.refuse("", fmt.Sprintf("invalid partition %d", partition))
	}
	if leader := b.log.leaders[partition]; leader != "" && leader != b.id && leader != b.addr {
		return r.refuse("NOT_LEADER", "not the leader: that is "+leader)
	}
	return nil
}

func (r *fakeRequest) fetch() *fakeAnswer {
	b := r.broker
	var q fetchRequest
	r.into(&q)
	if refusal := r.misplaced(q.Topic, q.Partition); refusal != nil {
		return refusal
	}
	all := b.log.messages(q.Partition)
	from := min(max(q.Offset, 0), int64(len(all)))
	to := min(from+int64(q.MaxMessages), int64(len(all)))
	messages := []any{}
	for _, m := range all[from:to] {
		messages = append(messages, map[string]any{
			"id": m.ID, "topic": m.Topic, "partition": m.Partition, "key": m.Key, "value": m.Value,
			"timestamp": m.Timestamp, "offset": m.Offset, "headers": map[string]any{"h": "v"},
		})
	}
	answer := map[string]any{"topic": q.Topic, "partition": q.Partition, "messages": messages}
	if len(b.features) > 0 {
		answer["high_water_mark"], answer["log_start_offset"] = len(all), 0
	}
	return r.ok(answer)
}

// fetchBatch answers with one batch for each partition that has more. It holds nothing.
func (r *fakeRequest) fetchBatch() *fakeAnswer {
	b := r.broker
	var q fetchBatchRequest
	r.into(&q)
	resp := &fetchBatchResponse{}
	var body []byte
	for _, p := range q.Partitions {
		got := fetchedPart{Topic: p.Topic, Partition: p.Partition}
		if p.Topic != b.log.topic || int(p.Partition) >= len(b.log.partitions) {
			got.refuse(ErrPartitionNotFound)
			resp.Partitions = append(resp.Partitions, got)
			continue
		}
		all := b.log.messages(p.Partition)
		got.HighWaterMark = int64(len(all))
		if p.Offset < got.HighWaterMark {
			batch := batchAt(p.Offset, all[p.Offset:]...)
			got.Bytes = len(batch)
			body = append(body, batch...)
		}
		resp.Partitions = append(resp.Partitions, got)
	}
	return r.withBody(resp, body)
}

// batchAt is a stored batch.
func batchAt(offset int64, messages ...*Message) batch {
	b := appendBatch(nil, messages...)
	b.stamp(offset, 1, 1)
	return b
}

func (r *fakeRequest) listOffsets() *fakeAnswer {
	var q listOffsetsRequest
	r.into(&q)
	offsets := []any{}
	for _, p := range q.Partitions {
		if refusal := r.misplaced(q.Topic, p); refusal != nil {
			return refusal
		}
		offset := int64(0)
		if q.Timestamp != OffsetOldest {
			offset = int64(len(r.broker.log.messages(p)))
		}
		offsets = append(offsets, map[string]any{"partition": p, "offset": offset})
	}
	return r.ok(map[string]any{"topic": q.Topic, "offsets": offsets})
}

// asked returns the requests of one kind, in the order in which they came.
func (b *fakeBroker) asked(kind requestType) []*fakeRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	var of []*fakeRequest
	for _, r := range b.requests {
		if r.kind == kind {
			of = append(of, r)
		}
	}
	return of
}

// askedTotal is how many requests have come.
func (b *fakeBroker) askedTotal() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.requests)
}

// dialed is how many connections there have been.
func (b *fakeBroker) dialed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// overlapped is how many requests came before the one before them was answered.
func (b *fakeBroker) overlapped() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.overlaps
}

// dialFakes is a dialer for several brokers: each at its address. An address that is
// nobody's is a black hole, which only the dial's context ends.
func dialFakes(brokers ...*fakeBroker) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		for _, b := range brokers {
			if b.addr == addr {
				return b.dial(ctx, network, addr)
			}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
}
