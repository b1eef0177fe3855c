package robust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// peersDir holds frames written by hand, the way other implementations and people
// with nc write them. They are read, never written.
const peersDir = wireDir + "/peers"

const peerID = "3d9f8e70-1b2c-4a5d-8e6f-0123456789ab"

// readPeerFrame returns the frame in a file, as the end of it is found.
func readPeerFrame(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peersDir, name))
	require.NoError(t, err)
	var f frameScanner
	n, done, err := f.scan(text)
	require.NoError(t, err)
	require.True(t, done)
	require.Empty(t, bytes.TrimSpace(text[n:]))
	return text[:n]
}

func TestPeersRequests(t *testing.T) {
	fetch := &fetchRequest{Topic: "orders", Partition: 1, Offset: 42, MaxBytes: 65536, MaxMessages: 100}
	produce := &produceRequest{Topic: "orders", Partition: -1, Value: []byte("hello"), Timestamp: 1700000000123}
	tests := map[string]struct {
		number int
		kind   requestType
		form   Protocol
		want   request // nil: there is no payload
	}{
		"v0-produce":                      {0, requestProduce, ProtocolV0, produce},
		"v0-list-topics-without-payload":  {4, requestListTopics, ProtocolV0, nil},
		"v0-heartbeat-payload-null":       {6, requestHeartbeat, ProtocolV0, nil},
		"v0-cluster-info-empty-text":      {13, requestClusterInfo, ProtocolV0, nil},
		"v0-join-group-plain-payload":     {7, requestJoinGroup, ProtocolV1, &joinGroupRequest{GroupID: "billing", ClientID: "worker", Topics: []string{"orders"}, Host: "worker-1"}},
		"v0-create-topic-escaped-base64":  {2, requestCreateTopic, ProtocolV0, &createTopicRequest{Name: "orders", Partitions: 3, Config: map[string]string{"retention.hours": "168"}}},
		"v1-fetch-keys-in-another-order":  {1, requestFetch, ProtocolV1, fetch},
		"v1-fetch-pretty":                 {1, requestFetch, ProtocolV1, fetch},
		"v1-fetch-white-space":            {1, requestFetch, ProtocolV1, fetch},
		"v1-fetch-unknown-keys":           {1, requestFetch, ProtocolV1, fetch},
		"v1-fetch-keys-in-another-case":   {1, requestFetch, ProtocolV1, fetch},
		"v1-list-topics-payload-null":     {4, requestListTopics, ProtocolV1, nil},
		"v1-commit-offset-base64-payload": {9, requestCommitOffset, ProtocolV0, &commitOffsetRequest{GroupID: "billing", Topic: "orders", Partition: 2, Offset: 17}},
		"v1-produce-escapes":              {0, requestProduce, ProtocolV1, &produceRequest{Topic: "orders", Key: []byte("a"), Value: []byte("???"), Headers: map[string]string{"người": "📦", "tab": "\t"}}},
		"both-numberings":                 {5, requestMetadata, ProtocolV1, &metadataRequest{Topics: []string{"orders"}}},
		"no-number-plain":                 {0, requestProduce, ProtocolV1, produce},
		"no-number-base64":                {0, requestProduce, ProtocolV0, produce},
		"no-number-no-payload":            {0, requestProduce, ProtocolV1, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var r wireRequest
			require.NoError(t, r.decode(readPeerFrame(t, name+".request.json")))
			require.Equal(t, peerID, string(r.id))
			require.Equal(t, tt.number, r.number)
			require.Equal(t, tt.kind, r.kind)
			require.Equal(t, tt.form, r.form)
			require.Equal(t, tt.form == ProtocolV0 || strings.HasPrefix(name, "v0-"), r.lockStep)
			if tt.want == nil {
				require.Empty(t, r.payload)
				return
			}
			got := blank(tt.want)
			require.NoError(t, decodePayload(r.payload, got))
			require.Equal(t, tt.want, got)
		})
	}
	files, err := filepath.Glob(peersDir + "/*.request.json")
	require.NoError(t, err)
	require.Len(t, files, len(tests))
}

func TestPeersResponses(t *testing.T) {
	produced := &produceResponse{Topic: "orders", Partition: 2, Offset: 7, Timestamp: 1700000000123}
	tests := map[string]struct {
		success   bool
		text      string
		code      errorCode
		retriable bool
		form      Protocol
		condition error
		want      response // nil: there is no payload
	}{
		"v0-produce-no-error-field":   {success: true, form: ProtocolV0, want: produced},
		"v0-refused-without-payload":  {text: "topic not found: orders", form: ProtocolV1, condition: ErrTopicNotFound},
		"v0-refused-payload-null":     {text: "partition 9 not found", form: ProtocolV1},
		"v0-leave-group-payload-null": {success: true, form: ProtocolV1},
		"v0-fetch": {success: true, form: ProtocolV0, want: &fetchResponse{
			Topic: "orders", HighWaterMark: -1, LogStartOffset: -1,
			Messages: []*Message{{ID: "m-1", Topic: "orders", Value: []byte("hello"), Timestamp: 1700000000123, Offset: 5}},
		}},
		"v0-fetch-messages-null":           {success: true, form: ProtocolV0, want: &fetchResponse{Topic: "orders", HighWaterMark: -1, LogStartOffset: -1}},
		"v1-produce-keys-in-another-order": {success: true, form: ProtocolV1, want: produced},
		"v1-produce-pretty":                {success: true, form: ProtocolV1, want: produced},
		"v1-success-without-payload":       {success: true, form: ProtocolV1},
		"v1-refused-in-payload": {success: true, form: ProtocolV1, want: &produceResponse{
			Topic: "orders", Partition: 2, answer: answer{Error: "unknown topic: orders"},
		}},
		"v1-refused-without-code":      {text: `Topic not found: "orders"`, form: ProtocolV1, condition: ErrTopicNotFound, want: &deleteTopicResponse{}},
		"v1-refused-with-unknown-keys": {text: "not the leader", code: "NOT_LEADER", retriable: true, form: ProtocolV1, condition: ErrNotLeader, want: &produceResponse{answer: answer{Error: "not the leader"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var r wireResponse
			require.NoError(t, r.decode(readPeerFrame(t, name+".response.json")))
			require.Equal(t, peerID, string(r.id))
			require.Equal(t, tt.success, r.success)
			require.Equal(t, tt.text, r.errText)
			require.Equal(t, tt.code, r.errCode)
			require.Equal(t, tt.retriable, r.retriable)
			require.Equal(t, tt.form, r.form)
			if tt.condition != nil {
				require.ErrorIs(t, conditionOf(r.errCode, r.errText), tt.condition)
			}
			if tt.want == nil {
				require.Empty(t, r.payload)
				return
			}
			got := blank(tt.want)
			require.NoError(t, decodePayload(r.payload, got))
			require.Equal(t, tt.want, got)
		})
	}
	files, err := filepath.Glob(peersDir + "/*.response.json")
	require.NoError(t, err)
	require.Len(t, files, len(tests))
}

func TestRequestTypeNumbers(t *testing.T) {
	// The table of docs/protocol.md: the v0 number of each v1 number.
	v0 := map[requestType]int{
		0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 16: 6, 6: 7, 7: 8, 8: 9, 9: 10, 10: 11, 11: 12, 12: 13, 102: 102, 106: 106, 107: 107,
	}
	for kind := requestType(-3); kind < 110; kind++ {
		n, ok := kind.v0Number()
		want, known := v0[kind]
		require.Equal(t, known || kind >= 100, ok, kind)
		if known {
			require.Equal(t, want, n, kind)
		}
		if ok {
			require.Equal(t, kind, fromV0Number(n))
		}
		if kind >= 0 && kind <= 16 || kind >= 100 {
			require.Equal(t, kind, fromV1Number(int(kind)))
		} else {
			require.Equal(t, requestUnknown, fromV1Number(int(kind)))
		}
	}
	for _, n := range []int{-1, 14, 15, 16, 99} {
		require.Equal(t, requestUnknown, fromV0Number(n), n)
	}
	_, err := appendRequest([]byte("before"), ProtocolV0, peerID, requestNodeJoin, &nodeJoinRequest{})
	require.ErrorIs(t, err, ErrUnsupported)
}

func TestRequestEnvelopeUnusual(t *testing.T) {
	deep := func(n int) string { return strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) }
	tests := []struct {
		name, frame string
		id          string
		number      int
		kind        requestType
		form        Protocol
		payload     string
	}{
		{"nothing in it", `{}`, "", 0, requestProduce, ProtocolV1, ""},
		{"null", `null`, "", 0, requestProduce, ProtocolV1, ""},
		{"escapes in keys and values", `{"request\u005fid":"a\u0062\n","type":1}`, "ab\n", 1, requestFetch, ProtocolV0, ""},
		{"surrogate pair", `{"request_id":"\ud83d\ude00","type":1}`, "😀", 1, requestFetch, ProtocolV0, ""},
		{"not ASCII", `{"request_id":"đơn","request_type":1}`, "đơn", 1, requestFetch, ProtocolV1, ""},
		{"invalid UTF-8", "{\"request_id\":\"a\xffb\",\"request_type\":1}", "a\ufffdb", 1, requestFetch, ProtocolV1, ""},
		{"the last of two ids", `{"request_id":"a","request_id":"b"}`, "b", 0, requestProduce, ProtocolV1, ""},
		{"the last of two numbers", `{"request_type":1,"request_type":2}`, "", 2, requestCreateTopic, ProtocolV1, ""},
		{"the last of two payloads", `{"payload":{"a":1},"payload":{"b":2}}`, "", 0, requestProduce, ProtocolV1, `{"b":2}`},
		{"null takes a number back", `{"request_type":1,"request_type":null,"type":7}`, "", 7, requestJoinGroup, ProtocolV0, ""},
		{"keys in another case", `{"Request_Id":"a","Request_Type":3,"PAYLOAD":{}}`, "a", 3, requestDeleteTopic, ProtocolV1, `{}`},
		{"id null", `{"request_id":null,"type":5}`, "", 5, requestMetadata, ProtocolV0, ""},
		{"number null", `{"request_type":null,"payload":"e30="}`, "", 0, requestProduce, ProtocolV0, `{}`},
		{"minus zero", `{"request_type":-0}`, "", 0, requestProduce, ProtocolV1, ""},
		{"unknown number", `{"request_type":17}`, "", 17, requestUnknown, ProtocolV1, ""},
		{"negative number", `{"type":-1}`, "", -1, requestUnknown, ProtocolV0, ""},
		{"unknown extension", `{"request_type":4242}`, "", 4242, 4242, ProtocolV1, ""},
		{"type in both, plain", `{"request_type":6,"type":6,"payload":{}}`, "", 6, requestJoinGroup, ProtocolV1, `{}`},
		{"type in both, base64", `{"type":7,"request_type":6,"payload":"e30="}`, "", 6, requestJoinGroup, ProtocolV0, `{}`},
		{"unknown keys of every sort", `{"a":[1,{"b":"]}"}],"c":1e400,"d":true,"type":1,"e":"\""}`, "", 1, requestFetch, ProtocolV0, ""},
		{"brackets in strings", `{"type":1,"payload":{"a":"}]\\\"{["}}`, "", 1, requestFetch, ProtocolV1, `{"a":"}]\\\"{["}`},
		{"white space", " {\t\"type\" : 1 ,\r\n\"payload\" : {} }\n\n", "", 1, requestFetch, ProtocolV1, `{}`},
		{"payload is an array", `{"type":1,"payload":[1]}`, "", 1, requestFetch, ProtocolV1, `[1]`},
		{"payload is a number", `{"type":1,"payload": 7 }`, "", 1, requestFetch, ProtocolV1, `7`},
		{"payload of base64 null", `{"request_type":1,"payload":"IG51bGwg"}`, "", 1, requestFetch, ProtocolV0, ""},
		{"payload of base64 with line ends", `{"payload":"e\r\n30=\n"}`, "", 0, requestProduce, ProtocolV0, `{}`},
		{"payload is not looked into", `{"payload":{"a":nonsense}}`, "", 0, requestProduce, ProtocolV1, `{"a":nonsense}`},
		{"deep payload", `{"payload":` + deep(maxNesting) + `}`, "", 0, requestProduce, ProtocolV1, deep(maxNesting)},
		{"deeper payload", `{"payload":` + deep(maxNesting+9) + `}`, "", 0, requestProduce, ProtocolV1, deep(maxNesting + 9)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := wireRequest{id: []byte("old"), kind: requestSyncGroup, number: 99, form: ProtocolAuto, payload: []byte("old"), scratch: []byte("old")}
			require.NoError(t, r.decode([]byte(tt.frame)))
			require.Equal(t, tt.id, string(r.id))
			require.Equal(t, tt.number, r.number)
			require.Equal(t, tt.kind, r.kind)
			require.Equal(t, tt.form, r.form)
			require.Equal(t, tt.payload, string(r.payload))
		})
	}
}

// A request that could not be read used to leave the ID and the form of the
// request before it, under which the refusal then went out.
func TestRequestEnvelopeMalformed(t *testing.T) {
	tests := []struct {
		name, frame string
		id          string
		form        Protocol
	}{
		{"empty", ``, "", ProtocolV1},
		{"cut off", `{"request_id":"a"`, "", ProtocolV1},
		{"trailing data", `{"request_id":"a"} x`, "", ProtocolV1},
		{"trailing frame", `{"request_id":"a"}{}`, "", ProtocolV1},
		{"trailing comma", `{"request_id":"a",}`, "", ProtocolV1},
		{"NUL behind it", "{\"request_id\":\"a\"}\x00", "", ProtocolV1},
		{"control character", "{\"request_id\":\"a\nb\"}", "", ProtocolV1},
		{"leading zero", `{"request_id":"a","type":01}`, "", ProtocolV1},
		{"wrong bracket", `{"request_id":"a"]`, "", ProtocolV1},
		{"an array", `[1,2]`, "", ProtocolV1},
		{"a string", `"request"`, "", ProtocolV1},
		{"a number", `17`, "", ProtocolV1},
		{"id is a number", `{"request_id":7,"type":1}`, "", ProtocolV0},
		{"number is text", `{"request_id":"a","request_type":"1"}`, "a", ProtocolV1},
		{"number is text, in v0", `{"type":"1","request_id":"a","payload":"e30="}`, "a", ProtocolV0},
		{"number is a float", `{"request_id":"a","request_type":1.0}`, "a", ProtocolV1},
		{"number with exponent", `{"request_id":"a","type":1e0}`, "a", ProtocolV0},
		{"huge number", `{"request_id":"a","type":9223372036854775808}`, "a", ProtocolV0},
		{"number is an object", `{"request_id":"a","type":{}}`, "a", ProtocolV0},
		{"payload is not base64", `{"request_id":"a","request_type":1,"payload":"%%%"}`, "a", ProtocolV0},
		{"payload is base64 for URLs", `{"request_id":"a","type":1,"payload":"Pz8_"}`, "a", ProtocolV0},
		{"payload lacks padding", `{"request_id":"a","type":1,"payload":"e30"}`, "a", ProtocolV0},
		{"payload is not ASCII", `{"request_id":"a","type":1,"payload":"đơn"}`, "a", ProtocolV0},
		{"10,001 deep", `{"payload":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, "", ProtocolV1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r wireRequest
			require.NoError(t, r.decode([]byte(`{"request_id":"before","type":6,"payload":"e30="}`)))
			require.ErrorIs(t, r.decode([]byte(tt.frame)), ErrMalformed)
			require.Equal(t, tt.id, string(r.id))
			require.Equal(t, tt.form, r.form)
			require.Empty(t, r.payload)
		})
	}
}

func TestResponseEnvelopeUnusual(t *testing.T) {
	tests := []struct {
		name, frame string
		want        wireResponse
	}{
		{"nothing in it", `{}`, wireResponse{}},
		{"nulls", `{"request_id":null,"success":null,"error":null,"error_code":null,"retriable":null,"payload":null}`, wireResponse{}},
		{"the last of two", `{"success":true,"success":false,"error":"a","error":"b"}`, wireResponse{errText: "b"}},
		{"null leaves what was there", `{"success":true,"success":null}`, wireResponse{success: true}},
		{"escapes", `{"error":"caf\u00e9 \"x\"","request_id":"\u0061"}`, wireResponse{errText: `café "x"`, id: []byte("a")}},
		{"keys in another case", `{"Success":true,"Error_Code":"X","RETRIABLE":true}`, wireResponse{success: true, errCode: "X", retriable: true}},
		{"unknown keys", `{"success":true,"took_ms":1.5,"nested":{"success":false}}`, wireResponse{success: true}},
		{"payload first", `{"payload":{"success":false},"success":true}`, wireResponse{success: true, payload: []byte(`{"success":false}`)}},
		{"base64", `{"payload":"e30="}`, wireResponse{form: ProtocolV0, payload: []byte(`{}`)}},
		{"escaped base64", `{"payload":"\u0065\u00330="}`, wireResponse{form: ProtocolV0, payload: []byte(`{}`)}},
		{"empty base64", `{"payload":""}`, wireResponse{form: ProtocolV0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := wireResponse{id: []byte("old"), success: true, errText: "old", errCode: "OLD", retriable: true, payload: []byte("old")}
			require.NoError(t, r.decode([]byte(tt.frame)))
			if tt.want.form == ProtocolAuto {
				tt.want.form = ProtocolV1
			}
			tt.want.body = -1
			require.Equal(t, string(tt.want.id), string(r.id))
			require.Equal(t, string(tt.want.payload), string(r.payload))
			tt.want.id, tt.want.payload, tt.want.scratch = r.id, r.payload, r.scratch
			require.Equal(t, tt.want, r)
		})
	}
	for _, frame := range []string{
		``, `[]`, `{"success":1}`, `{"success":"true"}`, `{"error":{}}`, `{"request_id":[]}`, `{"retriable":0}`,
		`{"payload":"?"}`, `{"success":true}}`, `{"success":tru}`, `{"success":true "error":""}`,
	} {
		r := wireResponse{id: []byte("old"), success: true, payload: []byte("old")}
		require.ErrorIs(t, r.decode([]byte(frame)), ErrMalformed, frame)
		require.False(t, r.success, frame)
		require.Empty(t, r.payload, frame)
	}
}

// Nil and empty are different for keys and values, and both are kept, on the path
// of plain frames and on the one through encoding/json.
func TestPayloadNilAndEmpty(t *testing.T) {
	for _, unusual := range []string{"", `,"unknown":1`} {
		var m produceRequest
		require.NoError(t, decodePayload([]byte(`{"key":null,"value":""`+unusual+`}`), &m))
		require.Nil(t, m.Key)
		require.NotNil(t, m.Value)
		require.Empty(t, m.Value)
		require.Nil(t, m.Headers)

		f := newFetchResponse()
		require.NoError(t, decodePayload([]byte(`{"messages":[{"key":"","value":null,"headers":{}}]`+unusual+`}`), f))
		require.NotNil(t, f.Messages[0].Key)
		require.Nil(t, f.Messages[0].Value)
		require.NotNil(t, f.Messages[0].Headers)
		require.Equal(t, int64(-1), f.HighWaterMark)
		require.Equal(t, int64(-1), f.LogStartOffset)

		f = newFetchResponse()
		require.NoError(t, decodePayload([]byte(`{"messages":[]`+unusual+`}`), f))
		require.NotNil(t, f.Messages)
	}
	produced := produceResponse{Offset: 7}
	require.NoError(t, decodePayload(nil, &produced))
	require.Equal(t, int64(7), produced.Offset)
}

// A null among the messages of a fetch used to reach the consumer as a nil
// *Message.
func TestPayloadNullMessage(t *testing.T) {
	for _, text := range []string{`{"messages":[null]}`, `{"messages":[{"offset":1},null]}`, `{"messages":[{"offset":1},null,{}],"x":1}`} {
		require.ErrorIs(t, decodePayload([]byte(text), newFetchResponse()), ErrMalformed, text)
	}
}

func TestPayloadMalformed(t *testing.T) {
	for _, text := range []string{
		` `, `{`, `{}x`, `[]`, `"e30="`, `{"topic":7}`, `{"partition":2147483648}`, `{"partition":1.5}`, `{"partition":"1"}`,
		`{"offset":9223372036854775808}`, `{"timestamp":1e3}`, `{"timestamp":--1}`, `{"timestamp":00}`, `{"timestamp":-}`, `{"error":[]}`,
		`{"topic":"a" "partition":1}`, `{"topic":"a",}`, `{,}`, `{"topic"}`, `{"topic":}`, "{\"topic\":\"a\x01\"}",
	} {
		for _, v := range []any{new(produceRequest), new(produceResponse), new(fetchRequest), newFetchResponse()} {
			if reference := json.Unmarshal([]byte(text), reflect.New(reflect.TypeOf(v).Elem()).Interface()); reference != nil {
				require.ErrorIs(t, decodePayload([]byte(text), v), ErrMalformed, "%T %s", v, text)
			} else {
				require.NoError(t, decodePayload([]byte(text), v), "%T %s", v, text)
			}
		}
	}
	for _, text := range []string{`{"value":"a"}`, `{"value":"YQ"}`, "{\"value\":\"Y\nQ==\"}", `{"key":{}}`, `{"headers":{"a":1}}`, `{"headers":{"a":"b",}}`, `{"headers":[]}`, `{"headers":{"a"}}`} {
		require.ErrorIs(t, decodePayload([]byte(text), new(produceRequest)), ErrMalformed, text)
		text = `{"messages":[` + text + `]}`
		require.ErrorIs(t, decodePayload([]byte(text), newFetchResponse()), ErrMalformed, text)
	}
	for _, text := range []string{`{"messages":{}}`, `{"messages":[1]}`, `{"messages":[{}{}]}`, `{"messages":[{},]}`, `{"messages":[{}`} {
		require.ErrorIs(t, decodePayload([]byte(text), newFetchResponse()), ErrMalformed, text)
	}
	require.Error(t, decodePayload([]byte(`{}`), nil))
}

// manyMessages returns a fetch whose messages are of every size around the bounds
// of the blocks that keys and values share.
func manyMessages() *fetchResponse {
	f := &fetchResponse{Topic: "orders", Messages: []*Message{}, HighWaterMark: 1000}
	for i := range 300 {
		m := &Message{ID: fmt.Sprint("m-", i), Topic: "orders", Offset: int64(i), Timestamp: int64(-i)}
		if i%3 > 0 {
			m.Key = bytes.Repeat([]byte{byte(i)}, i%5)
		}
		if i%7 > 0 {
			m.Value = bytes.Repeat([]byte{byte(i)}, i*i%(maxRoom/4+100))
		}
		if i%50 == 0 {
			m.Value = bytes.Repeat([]byte{byte(i)}, maxRoom+i)
		}
		if i%2 == 0 {
			m.Headers = map[string]string{"number": fmt.Sprint(i), "người": "Ái"}
		}
		if i%11 == 0 {
			m.Topic = "payments"
		}
		f.Messages = append(f.Messages, m)
	}
	return f
}

func TestFetchOfManySizes(t *testing.T) {
	want := manyMessages()
	text := want.append(nil)
	got := newFetchResponse()
	require.True(t, got.scan(text))
	require.Equal(t, want, got)
	std := newFetchResponse()
	require.NoError(t, json.Unmarshal(text, std))
	require.Equal(t, want, std)
}

// What was decoded keeps nothing of the frame's buffer, which is used again, and an
// application that appends to one key or value does not write into the next.
func TestDecodedIsIndependent(t *testing.T) {
	want := manyMessages()
	text := want.append(nil)
	got := newFetchResponse()
	require.True(t, got.scan(text))
	for i := range text {
		text[i] = 'x'
	}
	require.Equal(t, want, got)
	for _, m := range got.Messages {
		m.Key = append(m.Key, "garbage"...)
		m.Value = append(m.Value, "garbage"...)
	}
	for i, m := range got.Messages {
		require.Equal(t, string(want.Messages[i].Key)+"garbage", string(m.Key))
		require.Equal(t, string(want.Messages[i].Value)+"garbage", string(m.Value))
	}

	text = []byte(`{"topic":"orders","key":"YWJj","value":"ZGVm","headers":{"a":"b"},"id":"id"}`)
	var p produceRequest
	require.True(t, p.scan(text))
	for i := range text {
		text[i] = 'x'
	}
	_ = append(p.Key, "garbage"...)
	require.Equal(t, produceRequest{
		Topic: "orders", Key: []byte("abc"), Value: []byte("def"), Headers: map[string]string{"a": "b"}, ID: "id",
	}, p)
}

func TestAppendErrorLeavesNothing(t *testing.T) {
	before := []byte("before")
	cannot := func() {}
	for _, form := range []Protocol{ProtocolV1, ProtocolV0} {
		got, err := appendRequest(before, form, peerID, requestMetadata, cannot)
		require.ErrorIs(t, err, ErrMalformed)
		require.Equal(t, "before", string(got))
		got, err = appendResponse(before, form, peerID, cannot, nil)
		require.ErrorIs(t, err, ErrMalformed)
		require.Equal(t, "before", string(got))

		got, err = appendResponse(before, form, "an \"id\" of\n somebody else's đ", nil, nil)
		require.NoError(t, err)
		var r wireResponse
		require.NoError(t, r.decode(got[len("before"):]))
		require.Equal(t, "an \"id\" of\n somebody else's đ", string(r.id))
	}
}

// A v0 payload of any size comes back whole, also into a buffer that has been used.
func TestBase64PayloadSizes(t *testing.T) {
	var r wireRequest
	var buf []byte
	for _, n := range []int{1000, 0, 1, 2, 3, 4, 5, 100_000, 7} {
		want := strings.Repeat("a", n)
		var err error
		buf, err = appendRequest(buf[:0], ProtocolV0, peerID, requestDeleteTopic, &deleteTopicRequest{Name: want})
		require.NoError(t, err)
		require.NoError(t, r.decode(buf))
		var got deleteTopicRequest
		require.NoError(t, decodePayload(r.payload, &got))
		require.Equal(t, want, got.Name)

		text := buf[bytes.LastIndexByte(buf, ':')+2 : len(buf)-3]
		plain, err := base64.StdEncoding.DecodeString(string(text))
		require.NoError(t, err)
		require.Equal(t, `{"name":"`+want+`"}`, string(plain))
	}
}

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Text that is small on the wire and large in memory stays within a multiple of
// what was sent, which the limit on frames bounds.
func TestPayloadAllocationIsBounded(t *testing.T) {
	const size = 1 << 20
	fill := func(head, unit, tail string) []byte {
		n := (size - len(head) - len(tail)) / (len(unit) + 1)
		return []byte(head + strings.TrimSuffix(strings.Repeat(unit+",", n), ",") + tail)
	}
	tests := []struct {
		name  string
		text  []byte
		v     any
		times uint64
	}{
		{"produce of one value", []byte(`{"value":"` + strings.Repeat("QUJD", size/4) + `"}`), new(produceRequest), 1},
		{"produce of one header many times", fill(`{"headers":{`, `"":""`, `}}`), new(produceRequest), 2},
		{"fetch of one value", []byte(`{"messages":[{"value":"` + strings.Repeat("QUJD", size/4) + `"}]}`), newFetchResponse(), 1},
		{"fetch of empty messages", fill(`{"messages":[`, `{}`, `]}`), newFetchResponse(), 72},
		{"fetch of empty values", fill(`{"messages":[`, `{"value":""}`, `]}`), newFetchResponse(), 16},
		{"fetch of small values", fill(`{"messages":[`, `{"value":"QUJD"}`, `]}`), newFetchResponse(), 16},
		{"fetch of empty headers", fill(`{"messages":[`, `{"headers":{}}`, `]}`), newFetchResponse(), 24},
		{"fetch of single headers", fill(`{"messages":[`, `{"headers":{"":""}}`, `]}`), newFetchResponse(), 32},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			n := allocated(func() { err = decodePayload(tt.text, tt.v) })
			require.NoError(t, err)
			require.LessOrEqual(t, n, tt.times*uint64(len(tt.text))+64<<10)
			t.Logf("%d bytes of text, %.1f times as much memory", len(tt.text), float64(n)/float64(len(tt.text)))
		})
	}
}
