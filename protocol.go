package robust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"

	base64fast "github.com/segmentio/asm/base64"
)

// Protocol is a published form of the wire protocol; see docs/protocol.md.
type Protocol uint8

const (
	// ProtocolAuto finds out at connect what a broker speaks.
	ProtocolAuto Protocol = iota
	// ProtocolV1 is the documented form: payloads are JSON objects.
	ProtocolV1
	// ProtocolV0 is the form of the first shipped brokers and clients: payloads
	// are base64 text, and the requests are numbered differently.
	ProtocolV0
)

func (p Protocol) String() string {
	switch p {
	case ProtocolAuto:
		return "auto"
	case ProtocolV1:
		return "v1"
	case ProtocolV0:
		return "v0"
	default:
		return "Protocol(" + strconv.Itoa(int(p)) + ")"
	}
}

// Limits of what is read from a peer.
const (
	defaultMaxFrameBytes = 16 << 20
	minMaxFrameBytes     = 4 << 10
)

// wireRequest is a request's envelope as a broker reads it.
type wireRequest struct {
	id      []byte      // request_id; aliases the frame, or a copy
	kind    requestType // in v1's numbering; requestUnknown if the number is not
	number  int         // as sent
	form    Protocol    // the payload's form, in which the answer goes out
	payload []byte      // JSON text, or nothing; aliases the frame or scratch
	body    int         // bytes that follow the frame's line; -1: none do
	// lockStep tells that a v0 peer sent it, by the number's key or the payload's
	// form: it expects its answers in the order of its requests, and at once.
	lockStep bool

	scratch []byte // decoded base64; kept for reuse
}

// wireResponse is a response's envelope as a client reads it.
type wireResponse struct {
	id        []byte // request_id; aliases the frame, or a copy
	success   bool
	errText   string
	errCode   errorCode
	retriable bool
	form      Protocol // how the payload came
	payload   []byte   // JSON text, or nothing; aliases the frame or scratch
	body      int      // bytes that follow the frame's line; -1: none do

	scratch []byte
}

// stdRequest and stdResponse are the envelopes for encoding/json, which reads
// whatever the hand-written scanner leaves alone.
type stdRequest struct {
	RequestID   string          `json:"request_id"`
	RequestType *int            `json:"request_type"`
	Type        *int            `json:"type"`
	Body        *int            `json:"body"`
	Payload     json.RawMessage `json:"payload"`
}

type stdResponse struct {
	RequestID string          `json:"request_id"`
	Success   bool            `json:"success"`
	Error     string          `json:"error"`
	ErrorCode errorCode       `json:"error_code"`
	Retriable bool            `json:"retriable"`
	Body      *int            `json:"body"`
	Payload   json.RawMessage `json:"payload"`
}

// decode reads the envelope in frame, of which r then holds parts. The payload
// is not looked into: whoever decodes it finds out whether it is JSON. After an
// error r holds what the answer needs: the ID, if it could be read, and the form.
func (r *wireRequest) decode(frame []byte) error {
	e := rawRequest{body: -1}
	if e.scan(frame) {
		return r.understand(&e, nil)
	}
	var std stdRequest
	// A field of the wrong type does not keep Unmarshal from reading the others.
	malformed := unmarshalJSON(frame, &std)
	e = rawRequest{id: []byte(std.RequestID), payload: std.Payload, body: bodyOf(std.Body)}
	if std.RequestType != nil {
		e.v1, e.hasV1 = *std.RequestType, true
	}
	if std.Type != nil {
		e.v0, e.hasV0 = *std.Type, true
	}
	return r.understand(&e, malformed)
}

// decodeLine is decode for a line that may be a frame. It is not looked for the frame's end
// before, which saves a pass over it; false means that it has to be.
func (r *wireRequest) decodeLine(line []byte) (ok bool, err error) {
	e := rawRequest{body: -1}
	if !e.scan(line) {
		return false, nil
	}
	return true, r.understand(&e, nil)
}

// understand tells what an envelope asks for. malformed is what was wrong with it.
func (r *wireRequest) understand(e *rawRequest, malformed error) error {
	*r = wireRequest{
		id: e.id, body: e.body, kind: requestUnknown, form: ProtocolV1, scratch: r.scratch,
	}
	text := len(e.payload) > 0 && e.payload[0] == '"'
	// Whatever the numbering, the answer's payload has the form of the request's.
	none := len(e.payload) == 0 || bytes.Equal(e.payload, jsonNull)
	if text || none && !e.hasV1 && e.hasV0 {
		r.form = ProtocolV0
	}
	r.lockStep = r.form == ProtocolV0 || e.hasV0 && !e.hasV1
	if malformed != nil {
		return fmt.Errorf("%w: request: %w", ErrMalformed, malformed)
	}
	switch {
	case e.hasV1:
		r.number, r.kind = e.v1, fromV1Number(e.v1)
	case e.hasV0:
		r.number, r.kind = e.v0, fromV0Number(e.v0)
	default:
		r.number, r.kind = 0, requestProduce
	}
	var err error
	r.payload, r.scratch, err = plainPayload(e.payload, r.scratch)
	if err != nil {
		return fmt.Errorf("%w: request payload: %w", ErrMalformed, err)
	}
	return nil
}

// bodyOf is the length of the body that an envelope names; -1: it names none.
func bodyOf(n *int) int {
	if n == nil {
		return -1
	}
	return *n
}

// checkBody holds the body that an envelope names to a limit.
func checkBody(n, limit int) error {
	switch {
	case n < -1:
		return fmt.Errorf("%w: a body of %d bytes", ErrMalformed, n)
	case n > limit:
		return fmt.Errorf("%w: a body of %d bytes, the limit is %d", ErrMessageTooLarge, n, limit)
	default:
		return nil
	}
}

// decode reads the envelope in frame, of which r then holds parts.
func (r *wireResponse) decode(frame []byte) error {
	if ok, err := r.decodeLine(frame); ok {
		return err
	}
	var std stdResponse
	if err := unmarshalJSON(frame, &std); err != nil {
		*r = wireResponse{form: ProtocolV1, body: -1, scratch: r.scratch}
		return fmt.Errorf("%w: response: %w", ErrMalformed, err)
	}
	return r.understand(&rawResponse{
		id: []byte(std.RequestID), success: std.Success, errText: std.Error,
		errCode: string(std.ErrorCode), retriable: std.Retriable, payload: std.Payload, body: bodyOf(std.Body),
	})
}

// decodeLine is decode for a line that may be a frame; see wireRequest.decodeLine.
func (r *wireResponse) decodeLine(line []byte) (ok bool, err error) {
	e := rawResponse{body: -1}
	if !e.scan(line) {
		return false, nil
	}
	return true, r.understand(&e)
}

func (r *wireResponse) understand(e *rawResponse) error {
	*r = wireResponse{
		id: e.id, success: e.success, errText: e.errText, errCode: errorCode(e.errCode), retriable: e.retriable,
		body: e.body, form: ProtocolV1, scratch: r.scratch,
	}
	if len(e.payload) > 0 && e.payload[0] == '"' {
		r.form = ProtocolV0
	}
	var err error
	r.payload, r.scratch, err = plainPayload(e.payload, r.scratch)
	if err != nil {
		return fmt.Errorf("%w: response payload: %w", ErrMalformed, err)
	}
	return nil
}

// plainPayload returns the JSON text of a payload in either form: raw itself, or
// what the base64 in it says, decoded into scratch. Null and "" are nothing.
func plainPayload(raw, scratch []byte) (payload, newScratch []byte, err error) {
	switch {
	case len(raw) == 0 || bytes.Equal(raw, jsonNull):
		return nil, scratch, nil
	case raw[0] != '"':
		return raw, scratch, nil
	}
	text := raw[1 : len(raw)-1]
	if bytes.IndexByte(text, '\\') >= 0 {
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, scratch, err
		}
		text = []byte(s)
	}
	n := base64.StdEncoding.DecodedLen(len(text))
	if cap(scratch) < n {
		scratch = make([]byte, n)
	}
	scratch = scratch[:cap(scratch)]
	n, err = base64fast.StdEncoding.Decode(scratch, text)
	if err != nil {
		return nil, scratch, err
	}
	if bytes.Equal(bytes.TrimSpace(scratch[:n]), jsonNull) {
		n = 0
	}
	return scratch[:n], scratch, nil
}

// appendRequest appends the frame of one request, its line end included, or
// nothing with an error. id is of the client's own making and needs no escapes.
func appendRequest[ID string | []byte](dst []byte, form Protocol, id ID, kind requestType, payload any) ([]byte, error) {
	start := len(dst)
	var err error
	if form != ProtocolV0 {
		dst = append(dst, `{"request_id":"`...)
		dst = append(dst, id...)
		dst = append(dst, `","request_type":`...)
		dst = strconv.AppendInt(dst, int64(kind), 10)
		dst = append(dst, `,"payload":`...)
		if dst, err = appendPayload(dst, payload); err != nil {
			return dst[:start], err
		}
		return append(dst, "}\n"...), nil
	}
	n, ok := kind.v0Number()
	if !ok {
		return dst, fmt.Errorf("%w: protocol v0 has no %s", ErrUnsupported, kind)
	}
	dst = append(dst, `{"type":`...)
	dst = strconv.AppendInt(dst, int64(n), 10)
	dst = append(dst, `,"request_id":"`...)
	dst = append(dst, id...)
	dst = append(dst, `","payload":"`...)
	if dst, err = appendPayloadText(dst, payload); err != nil {
		return dst[:start], err
	}
	return append(dst, "\"}\n"...), nil
}

// appendBodyRequest appends the line of a request that body bytes follow, in the v1 form.
func appendBodyRequest[ID string | []byte](dst []byte, id ID, kind requestType, body int, payload any) ([]byte, error) {
	start := len(dst)
	dst = append(dst, `{"request_id":"`...)
	dst = append(dst, id...)
	dst = append(dst, `","request_type":`...)
	dst = strconv.AppendInt(dst, int64(kind), 10)
	dst = append(dst, `,"body":`...)
	dst = strconv.AppendInt(dst, int64(body), 10)
	dst = append(dst, `,"payload":`...)
	dst, err := appendPayload(dst, payload)
	if err != nil {
		return dst[:start], err
	}
	return append(dst, "}\n"...), nil
}

// appendBodyResponse appends the line of an answer that body bytes follow, in the v1 form.
func appendBodyResponse[ID string | []byte](dst []byte, id ID, body int, payload any) ([]byte, error) {
	start := len(dst)
	dst = append(dst, `{"request_id":`...)
	dst = appendString(dst, id)
	dst = append(dst, `,"success":true,"error":"","body":`...)
	dst = strconv.AppendInt(dst, int64(body), 10)
	dst = append(dst, `,"payload":`...)
	dst, err := appendPayload(dst, payload)
	if err != nil {
		return dst[:start], err
	}
	return append(dst, "}\n"...), nil
}

// appendHello appends the request that both forms of broker understand, each
// under its own number: v1 reads request_type, v0 reads type.
func appendHello(dst []byte, id string) []byte {
	v0, _ := requestClusterInfo.v0Number()
	return fmt.Appendf(dst, `{"request_id":"%s","request_type":%d,"type":%d,"payload":null}`+"\n",
		id, requestClusterInfo, v0)
}

// appendResponse appends the frame of one response, its line end included, or
// nothing with an error. refusal is nil for success; payload may be nil.
func appendResponse[ID string | []byte](dst []byte, form Protocol, id ID, payload any, refusal error) ([]byte, error) {
	start := len(dst)
	dst = append(dst, `{"request_id":`...)
	dst = appendString(dst, id)
	if refusal == nil {
		dst = append(dst, `,"success":true,"error":""`...)
	} else {
		dst = append(dst, `,"success":false,"error":`...)
		dst = appendString(dst, trimPrefix(refusal))
		dst = append(dst, `,"error_code":`...)
		dst = appendString(dst, string(codeOf(refusal)))
		if refusalMayPass(refusal) {
			dst = append(dst, `,"retriable":true`...)
		}
	}
	dst = append(dst, `,"payload":`...)
	var err error
	if form != ProtocolV0 {
		if dst, err = appendPayload(dst, payload); err != nil {
			return dst[:start], err
		}
		return append(dst, "}\n"...), nil
	}
	dst = append(dst, '"')
	if dst, err = appendPayloadText(dst, payload); err != nil {
		return dst[:start], err
	}
	return append(dst, "\"}\n"...), nil
}

// appendPayloadText appends the payload's JSON as base64.
func appendPayloadText(dst []byte, payload any) ([]byte, error) {
	start := len(dst)
	dst, err := appendPayload(dst, payload)
	if err != nil {
		return dst, err
	}
	// The base64 goes behind the text that it is made from, and then over it.
	end := len(dst)
	dst = appendBase64(dst, dst[start:])
	n := copy(dst[start:], dst[end:])
	return dst[:start+n], nil
}
