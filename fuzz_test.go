package robust

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// What these targets hold: bytes from a peer may be refused, but they never cause a
// panic, nor memory beyond a small multiple of their own size; and where the
// hand-written codec reads or writes something, encoding/json does the same.

// addWireFiles gives every golden frame whose path contains part to add.
func addWireFiles(f *testing.F, part string, add func(frame []byte)) {
	f.Helper()
	for _, file := range wireFiles(f) {
		if strings.Contains(file, part) && !strings.HasSuffix(file, bodySuffix) {
			frame, err := os.ReadFile(file)
			require.NoError(f, err)
			add(frame)
		}
	}
}

// unusualFrames are what the envelopes' tables do not have as files.
func unusualFrames() []string {
	return []string{
		``, `{}`, `null`, `[]`, `1`, `"x"`, `{`, `}`, `{]`, `{}{}`, ` {} `, "\ufeff{}",
		`{"request_id":"\u0061\"","payload":"\u00653\/="}`, `{"Type":1,"TYPE":2,"type":3}`, `{"payload":"e30"}`, `{"payload":"IG51bGw="}`,
		`{"request_id":"a","request_id":"b","payload":{"a":"}"},"payload":null}`, `{"ty\u0070e":1e1}`, `{"type":1.5}`, `{"type":99999999999999999999}`,
		"{\"request_id\":\"\xff\"}", "{\"error\":\"\xc3\x28\",\"success\":true}", `{"payload":[[[]]],"success":tru}`, `{"ſuccess":true,"reque\u017ft_id":"k"}`,
		`{"payload":{"a":1]}`, `{"payload":{nonsense}}`, `{"payload":{"a":"\`, `{"error_code":null,"retriable":true,"success":null,"error":null}`,
		`{"a":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`,
	}
}

// FuzzFrame: a frame's end is found wherever the stream is cut, and where
// encoding/json finds it.
func FuzzFrame(f *testing.F) {
	addWireFiles(f, "", func(frame []byte) { f.Add(frame, []byte{3, 1, 20}) })
	for i, text := range unusualFrames() {
		f.Add([]byte(text), []byte{byte(i)})
	}
	f.Add([]byte(`{"a\"b\\":["}\\\"]"]} {"next":1}`), []byte{1})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		var whole frameScanner
		end, done, err := whole.scan(data)
		require.LessOrEqual(t, end, len(data))

		var pieces frameScanner
		var n int
		var pieceDone bool
		var pieceErr error
		for i, have := 0, 0; have < len(data) && !pieceDone && pieceErr == nil; i++ {
			size := 1
			if len(cuts) > 0 {
				size += int(cuts[i%len(cuts)])
			}
			have = min(have+size, len(data))
			var m int
			m, pieceDone, pieceErr = pieces.scan(data[n:have])
			n += m
		}
		require.Equal(t, end, n)
		require.Equal(t, done, pieceDone)
		require.Equal(t, err, pieceErr)
		if err == nil {
			require.Equal(t, whole, pieces)
		}

		if first := bytes.TrimLeft(data, " \t\r\n"); len(first) == 0 || first[0] != '{' && first[0] != '[' {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return
		}
		if nesting(value) > maxNesting {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, dec.InputOffset(), int64(end))
	})
}

// nesting is how deep the objects and arrays of valid JSON stand in one another.
func nesting(text []byte) int {
	dec := json.NewDecoder(bytes.NewReader(text))
	depth, deepest := 0, 0
	for {
		token, err := dec.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// referencePayload reads a payload in either form with encoding/json alone.
func referencePayload(raw json.RawMessage) (payload []byte, form Protocol, err error) {
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return nil, ProtocolAuto, nil
	case raw[0] != '"':
		return raw, ProtocolV1, nil
	}
	if err := json.Unmarshal(raw, &payload); err != nil {
		return nil, ProtocolV0, err
	}
	if string(bytes.TrimSpace(payload)) == "null" {
		payload = nil
	}
	return payload, ProtocolV0, nil
}

// invalidPlain tells that an envelope's payload is not JSON. The envelope is decoded
// without looking into it, so it takes this to know what encoding/json says of the
// whole frame.
func invalidPlain(form Protocol, payload []byte) bool {
	return form == ProtocolV1 && len(payload) > 0 && !json.Valid(payload)
}

// usedBefore is a frame whose parts must not show in the next that is decoded into
// the same struct.
const usedBefore = `{"request_id":"before","type":6,"success":true,"error":"before","error_code":"BEFORE","retriable":true,"payload":"eyJiZWZvcmUiOjF9"}`

func FuzzRequest(f *testing.F) {
	addWireFiles(f, ".request.", func(frame []byte) { f.Add(frame) })
	for _, text := range unusualFrames() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r wireRequest
		require.NoError(t, r.decode([]byte(usedBefore)))
		err := r.decode(data)

		var env struct {
			RequestID   string          `json:"request_id"`
			RequestType *int            `json:"request_type"`
			Type        *int            `json:"type"`
			Payload     json.RawMessage `json:"payload"`
		}
		wantErr := json.Unmarshal(data, &env)
		var payload []byte
		var form Protocol
		if wantErr == nil {
			payload, form, wantErr = referencePayload(env.Payload)
		}
		if wantErr != nil {
			require.True(t, err != nil || invalidPlain(r.form, r.payload), "encoding/json: %v", wantErr)
			return
		}
		require.NoError(t, err)
		number, kind := 0, requestProduce
		numbering := ProtocolV1
		switch {
		case env.RequestType != nil:
			number, kind = *env.RequestType, fromV1Number(*env.RequestType)
		case env.Type != nil:
			number, kind, numbering = *env.Type, fromV0Number(*env.Type), ProtocolV0
		}
		if form == ProtocolAuto {
			form = numbering
		}
		require.Equal(t, env.RequestID, string(r.id))
		require.Equal(t, number, r.number)
		require.Equal(t, kind, r.kind)
		require.Equal(t, form, r.form)
		require.Equal(t, form == ProtocolV0 || numbering == ProtocolV0, r.lockStep)
		require.Equal(t, string(payload), string(r.payload))
	})
}

func FuzzResponse(f *testing.F) {
	addWireFiles(f, ".response.", func(frame []byte) { f.Add(frame) })
	for _, text := range unusualFrames() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r wireResponse
		require.NoError(t, r.decode([]byte(usedBefore)))
		err := r.decode(data)

		var env struct {
			RequestID string          `json:"request_id"`
			Success   bool            `json:"success"`
			Error     string          `json:"error"`
			ErrorCode string          `json:"error_code"`
			Retriable bool            `json:"retriable"`
			Payload   json.RawMessage `json:"payload"`
		}
		wantErr := json.Unmarshal(data, &env)
		var payload []byte
		var form Protocol
		if wantErr == nil {
			payload, form, wantErr = referencePayload(env.Payload)
		}
		if wantErr != nil {
			require.True(t, err != nil || invalidPlain(r.form, r.payload), "encoding/json: %v", wantErr)
			return
		}
		require.NoError(t, err)
		if form == ProtocolAuto {
			form = ProtocolV1
		}
		require.Equal(t, env.RequestID, string(r.id))
		require.Equal(t, env.Success, r.success)
		require.Equal(t, env.Error, r.errText)
		require.Equal(t, env.ErrorCode, string(r.errCode))
		require.Equal(t, env.Retriable, r.retriable)
		require.Equal(t, form, r.form)
		require.Equal(t, string(payload), string(r.payload))
	})
}

// scannedPayloads returns one of each payload that is decoded by hand.
func scannedPayloads() []any {
	return []any{
		new(produceRequest), new(produceResponse), new(fetchRequest), newFetchResponse(),
		new(produceBatchRequest), new(produceBatchResponse), new(fetchBatchRequest), new(fetchBatchResponse), new(initProducerResponse),
	}
}

// FuzzPayload: by hand or not, a payload is read as encoding/json reads it.
func FuzzPayload(f *testing.F) {
	addWireFiles(f, "", func(frame []byte) {
		var env struct{ Payload json.RawMessage }
		require.NoError(f, json.Unmarshal(frame, &env))
		payload, _, err := referencePayload(env.Payload)
		require.NoError(f, err)
		f.Add(payload)
	})
	for _, text := range []string{
		``, `null`, `{}`, `[]`, `{"messages":null}`, `{"messages":[null]}`, `{"messages":[]}`, `{"messages":[{}],"messages":[{"id":"a"},{}]}`,
		`{"key":null,"value":"","headers":null}`, `{"key":[1,2],"value":"YQ\n=="}`, `{"Key":"YQ==","KEY":null}`, `{"headers":{"a":"b","a":null}}`,
		`{"headers":{"a":"b","\u0061":"c"}}`, "{\"headers\":{\"\xff\":\"\xfe\"}}", `{"partition":2147483648}`, `{"offset":9223372036854775807,"timestamp":-9223372036854775808}`,
		`{"headers":{"a":"1"},"headers":{"b":"2"},"value":"YQ==","value":null}`, `{"messages":[{"topic":"a","id":"b","offset":1},{"partition":2}]}`,
		"{\"value\":\"YWJj\n\n\n\n\"}", `{"offset":-0,"partition":1.0}`, `{"topic":"\ud800"}`, `{"high_water_mark":null,"log_start_offset":3,"error":""}`,
		`{"acks":"synced","topic_id":"a","last_epoch":3,"epoch":7}`, `{"diverged_at":null,"topic_id":null,"epoch":null}`, `{"diverged_at":0,"epoch":2147483648}`,
		`{"messages":[{"topic":"a","key":"YQ=="},{"topic":"b","value":"Yg==","headers":{}},{"topic":"","metadata":1}]}`,
		`{"parts":[{"topic":"a","partition":1,"bytes":73},{"topic":"a","bytes":-1}],"acks":"synced"}`, `{"parts":[null,{"Bytes":2}]}`, `{"parts":null}`, `{"parts":{}}`, `{"parts":[]}`,
		`{"parts":[{"topic":"a","base_offset":-1,"error":"no","error_code":"STORAGE","retriable":true}],"parts":[{}]}`, `{"partitions":[{"bytes":1,"diverged_at":null}]}`,
		`{"partitions":[{"topic":"a","topic_id":"b","offset":-3,"max_bytes":1,"last_epoch":2},{"topic_id":"b"}],"max_bytes":1,"min_bytes":2,"max_wait_ms":3}`,
		`{"producer_id":4711,"producer_epoch":32768}`, `{"producer_id":9223372036854775807,"producer_epoch":-1,"error":""}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for i, got := range scannedPayloads() {
			want := scannedPayloads()[i]
			frame := slices.Clone(data)
			err := decodePayload(frame, got)
			if len(data) == 0 {
				require.NoError(t, err)
				require.Equal(t, want, got)
				continue
			}
			wantErr := json.Unmarshal(data, want)
			if fetched, ok := want.(*fetchResponse); ok && slices.Contains(fetched.Messages, nil) {
				wantErr = errors.New("a message is null")
			}
			if wantErr != nil {
				require.ErrorIs(t, err, ErrMalformed)
				continue
			}
			require.NoError(t, err)
			for j := range frame {
				frame[j] = '#' // Nothing that was decoded may still be in the frame.
			}
			withoutEmptyLists(want)
			withoutEmptyLists(got)
			require.True(t, reflect.DeepEqual(want, got), "encoding/json: %+v, not %+v", want, got)
		}
	})
}

// withoutEmptyLists makes nil of the lists of an answer about batches that are empty: what a
// reader makes of them is the same.
func withoutEmptyLists(v any) {
	switch v := v.(type) {
	case *produceBatchResponse:
		if len(v.Parts) == 0 {
			v.Parts = nil
		}
	case *fetchBatchResponse:
		if len(v.Partitions) == 0 {
			v.Partitions = nil
		}
	}
}

// FuzzEncode: what we write, encoding/json and we read alike, and as if
// encoding/json had written it.
func FuzzEncode(f *testing.F) {
	f.Add("orders", int32(-1), []byte("key"), []byte("value"), byte(0x20), "content-type", "a<b>&\u2028", "người", "gửi", int64(1700000000123), int64(7), "id", "topic not found: x")
	f.Add("\xff\"\\", int32(1<<31-1), []byte{}, []byte{0xff}, byte(0x43), "\xff", "\n", "\xfe", "\x00", int64(-1<<63), int64(1<<63-1), "\ud7ff", "\x7f\u2029")
	f.Add("", int32(0), []byte{}, []byte{}, byte(0xfc), "", "", "", "", int64(0), int64(0), "", "")
	f.Fuzz(func(t *testing.T, topic string, partition int32, key, value []byte, flags byte, k1, v1, k2, v2 string, timestamp, offset int64, id, text string) {
		if flags&1 != 0 {
			key = nil
		}
		if flags&2 != 0 {
			value = nil
		}
		headers := map[string]string{k1: v1, k2: v2}
		if flags&4 != 0 {
			headers = map[string]string{}
		}
		if flags&8 != 0 {
			headers = nil
		}
		m := &Message{
			ID: id, Topic: topic, Partition: partition, Key: key, Value: value, Headers: headers,
			Timestamp: timestamp, Offset: offset, Metadata: t,
		}
		messages := []*Message{}
		for i := range int(flags >> 4 & 3) {
			messages = append(messages, m)
			if i%2 > 0 {
				messages = append(messages, &Message{ID: text, Topic: topic, Value: key, Headers: map[string]string{k2: k1}})
			}
		}
		divergedAt := &offset
		if flags&8 != 0 {
			divergedAt = nil
		}
		payloads := []any{
			&produceRequest{Topic: topic, Partition: partition, Key: key, Value: value, Headers: headers, Timestamp: timestamp, ID: id, Acks: k1},
			&produceResponse{Topic: topic, Partition: partition, Offset: offset, Timestamp: timestamp, Acks: v1, answer: answer{Error: text}},
			&fetchRequest{Topic: topic, Partition: partition, Offset: offset, MaxBytes: len(k1), MaxMessages: len(v1), MinBytes: len(k2), MaxWaitMs: timestamp, TopicID: k1, LastEpoch: partition},
			&fetchResponse{Topic: topic, Partition: partition, Messages: messages, HighWaterMark: offset, LogStartOffset: timestamp, TopicID: v2, Epoch: partition, DivergedAt: divergedAt, answer: answer{Error: text}},
		}
		for i, payload := range payloads {
			ours, err := appendPayload(nil, payload)
			require.NoError(t, err)
			require.True(t, json.Valid(ours) && utf8.Valid(ours), "%q", ours)
			require.NotContains(t, string(ours), "\n", "a frame is one line")
			std, err := json.Marshal(payload)
			require.NoError(t, err)
			want := scannedPayloads()[i]
			require.NoError(t, json.Unmarshal(std, want))
			for _, written := range [][]byte{ours, std} {
				got := scannedPayloads()[i]
				require.NoError(t, json.Unmarshal(written, got))
				require.True(t, reflect.DeepEqual(want, got), "%s", written)
				got = scannedPayloads()[i]
				require.NoError(t, decodePayload(written, got))
				require.True(t, reflect.DeepEqual(want, got), "%s", written)
			}
			if i == int(flags>>6) {
				checkEnvelopes(t, payload, ours, id, text)
			}
		}
	})
}

// checkEnvelopes writes a payload, whose JSON text is known, in every envelope there
// is and reads it back.
func checkEnvelopes(t *testing.T, payload any, text []byte, id, refusal string) {
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		frame, err := appendRequest(nil, form, peerID, requestSyncGroup, payload)
		require.NoError(t, err)
		require.True(t, json.Valid(frame))
		require.Equal(t, len(frame)-1, bytes.IndexByte(frame, '\n'), "a frame is one line")
		var e rawRequest
		require.True(t, e.scan(frame), "our own frames are plain")
		var r wireRequest
		require.NoError(t, r.decode(frame))
		require.Equal(t, peerID, string(r.id))
		require.Equal(t, requestSyncGroup, r.kind)
		require.Equal(t, form, r.form)
		require.Equal(t, string(text), string(r.payload))

		for _, cause := range []error{nil, errors.New(refusal)} {
			frame, err = appendResponse(nil, form, id, payload, cause)
			require.NoError(t, err)
			require.Equal(t, len(frame)-1, bytes.IndexByte(frame, '\n'), "a frame is one line")
			var env struct {
				RequestID string `json:"request_id"`
				Success   bool
				Error     string
				ErrorCode string `json:"error_code"`
				Payload   json.RawMessage
			}
			require.NoError(t, json.Unmarshal(frame, &env))
			require.Equal(t, cause == nil, env.Success)
			require.Equal(t, asJSON(t, id), env.RequestID)
			if form == ProtocolV0 {
				require.Equal(t, `"`+base64.StdEncoding.EncodeToString(text)+`"`, string(env.Payload))
			} else {
				require.Equal(t, string(text), string(env.Payload))
			}
			if cause != nil {
				require.Equal(t, asJSON(t, trimPrefix(cause)), env.Error)
			}
			var r wireResponse
			require.NoError(t, r.decode(frame))
			require.Equal(t, env.RequestID, string(r.id))
			require.Equal(t, env.Success, r.success)
			require.Equal(t, env.Error, r.errText)
			require.Equal(t, env.ErrorCode, string(r.errCode))
			require.Equal(t, cause != nil, r.retriable)
			require.Equal(t, form, r.form)
			require.Equal(t, string(text), string(r.payload))
		}
	}
}

// asJSON returns what becomes of a string on its way through JSON: invalid UTF-8 is
// replaced.
func asJSON(t *testing.T, s string) string {
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, &s))
	return s
}

// FuzzBatch: batches that are not as they should be are refused, at a cost in
// proportion to their size, or to what they may be decompressed to; what is let through
// can be written again. With mend, the checksums and the length are put right first, so
// that what lies behind them is reached.
func FuzzBatch(f *testing.F) {
	const limit = 64 << 10
	plain := appendBatch(nil, &Message{Value: []byte("value")})
	full := appendBatch(nil,
		&Message{ID: "id", Key: []byte("key"), Value: []byte("value"), Headers: map[string]string{"a": "b", "c": "d"}, Timestamp: 1700000000123},
		&Message{Key: []byte{}, Timestamp: 1700000000100}, &Message{Timestamp: -1 << 63},
	)
	full.stamp(1<<40, 3, 1700000000456)
	seeds := []batch{plain, full, slices.Concat(full, plain), withRecords(0, 3), withRecords(1<<30, 1<<30), {}}
	for _, c := range compressions {
		seeds = append(seeds, buildBatch(f, c, benchRecords(5, 40)), compressedAs(f, c, 3, 2, full[batchHeaderSize:]))
	}
	for _, b := range seeds {
		f.Add([]byte(b), false)
		f.Add([]byte(b), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, mend bool) {
		if mend && len(data) >= batchHeaderSize {
			b := batch(slices.Clone(data))
			b[batchMagicAt] = batchMagic
			data = seal(b)
		}
		var sound []batch
		unpacked := 0
		n := allocated(func() {
			for rest := data; ; {
				b, next, err := parseBatch(rest)
				if err != nil {
					require.ErrorIs(t, err, ErrMalformed)
					require.Len(t, next, len(rest))
					return
				}
				require.Equal(t, len(rest), len(b)+len(next))
				rest = next
				p, err := b.plain(limit)
				if err != nil {
					require.True(t, tooLargeOrMalformed(err), "%v", err)
					unpacked += limit
					continue
				}
				require.LessOrEqual(t, len(p), max(len(b), batchHeaderSize+limit))
				unpacked += len(p)
				if _, err = readBatch(p); err != nil {
					require.ErrorIs(t, err, ErrMalformed)
					_, err = p.appendMessages(nil, "t", 1, 0)
					require.ErrorIs(t, err, ErrMalformed)
					continue
				}
				sound = append(sound, b)
			}
		})
		require.LessOrEqual(t, n, 64*uint64(len(data)+unpacked)+4<<20)
		for _, b := range sound {
			checkSoundBatch(t, b, limit)
		}
	})
}

// checkSoundBatch holds the ways to read a batch against each other.
func checkSoundBatch(t *testing.T, b batch, limit int) {
	p, err := b.plain(limit)
	require.NoError(t, err)
	messages, err := readBatch(p)
	require.NoError(t, err)
	require.Len(t, messages, int(b.count()))
	size := 0
	for i, m := range messages {
		require.GreaterOrEqual(t, m.Offset, b.baseOffset())
		require.Less(t, m.Offset, b.nextOffset())
		require.True(t, i == 0 || m.Offset > messages[i-1].Offset)
		size += int(m.Size())
	}
	weight, count := b.weigh(b.baseOffset(), limit)
	require.Len(t, messages, count)
	require.GreaterOrEqual(t, weight, size, "of headers of the same name one is left")
	from := b.baseOffset()
	if len(messages) > 1 {
		from = messages[len(messages)/2].Offset
	}
	got, err := p.appendMessages(nil, "t", 1, from)
	require.NoError(t, err)
	require.Len(t, got, len(messages)-len(messages)/2*min(1, len(messages)/2))
	for i, m := range got {
		want := *messages[len(messages)-len(got)+i]
		want.Topic, want.Partition = "t", 1
		if want.ID == "" {
			want.ID = messageID("t", 1, want.Offset)
		}
		require.True(t, reflect.DeepEqual(&want, m), "%+v, not %+v", want, m)
	}
	if err := p.checkRecords(1 << 30); err != nil {
		require.True(t, errors.Is(err, ErrMalformed) || errors.Is(err, ErrInvalidRequest), "%v", err)
	}
	if len(messages) > 0 {
		offset, ok, err := b.offsetAt(messages[0].Timestamp, 0)
		require.NoError(t, err)
		require.True(t, !ok || offset == messages[0].Offset)
	}
	checkBatchAgain(t, messages)
}

// checkBatchAgain writes the messages of a batch and reads them back.
func checkBatchAgain(t *testing.T, messages []*Message) {
	if len(messages) == 0 {
		return
	}
	b := appendBatch(nil, messages...)
	parsed, rest, err := parseBatch(b)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, uint32(len(b)-batchLengthEnd), binary.BigEndian.Uint32(b[batchLengthAt:]))
	again, err := readBatch(parsed)
	require.NoError(t, err)
	require.Len(t, again, len(messages))
	for i, m := range again {
		require.Equal(t, int64(i), m.Offset)
		m.Offset = messages[i].Offset
	}
	require.True(t, reflect.DeepEqual(messages, again), "%+v, not %+v", messages, again)
}

// FuzzGroup: whatever requests about groups come, in whatever order, the broker answers
// each, and the groups stay sound: nobody owns or is to read a partition who is not a
// member, and what is kept of a group makes the same group again.
func FuzzGroup(f *testing.F) {
	var all []byte
	addWireFiles(f, ".request", func(frame []byte) {
		f.Add(frame)
		all = append(append(all, frame...), '\n')
	})
	f.Add(all)
	f.Add([]byte(`{"request_type":6,"payload":{"group_id":"g","member_id":"a","topics":["t","^t"],"session_timeout_ms":1000,"assignor":"x"}}
{"request_type":8,"payload":{"group_id":"g","member_id":"a","seq":1,"owned":{"t":[0]},"target":{"generation":1,"assignment":{"a":{"t":[0,1]}}}}}
{"request_type":9,"payload":{"group_id":"g","member_id":"a","offsets":[{"topic":"t","partition":0,"offset":5,"epoch":1}]}}
{"type":7,"payload":"eyJncm91cF9pZCI6ImciLCJ0b3BpY3MiOlsidCJdfQ=="}
{"request_type":110,"payload":{"group_id":"g","topic":"t","offset":-2}}
{"request_type":7,"payload":{"group_id":"g","member_id":"a"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := NewBroker(WithTopic("t", 2), WithTopic("orders", 2), WithLogger(nil))
		require.NoError(t, err)
		defer b.Close()
		for line := range bytes.Lines(data) {
			var req wireRequest
			if req.decode(bytes.TrimSpace(line)) != nil {
				continue
			}
			call, err := b.service.groupRequest(&req, func() bool { return false })
			if err != nil || call == nil {
				continue
			}
			resp, _ := call.answer(t.Context(), nil)
			require.NotNil(t, resp)
		}
		for _, h := range b.service.groups.all() {
			h.do(func(g *group, now time.Time) { requireSound(t, g, now) })
		}
	})
}

func requireSound(t *testing.T, g *group, now time.Time) {
	for tp, s := range g.slots {
		for _, id := range []string{s.target, s.owner} {
			require.True(t, id == "" || g.members[id] != nil, "%s of %v is no member", id, tp)
		}
	}
	state, err := g.capture().encode()
	require.NoError(t, err)
	var offsets []StoredOffset
	for _, o := range g.offsets {
		offsets = append(offsets, o)
	}
	again, err := restoreGroup(now, StoredGroup{ID: g.id, State: state, Offsets: offsets}, g.topics)
	require.NoError(t, err)
	require.Equal(t, g.offsets, again.offsets)
	require.Len(t, again.members, len(g.members))
	require.GreaterOrEqual(t, again.generation, g.generation)
	require.GreaterOrEqual(t, again.epoch, g.epoch)
}
