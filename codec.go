package robust

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// The hand-written half of the codec: the envelope, Produce and Fetch, which are
// nearly all of the traffic. Every decoder here gives up on anything unusual and
// leaves it to encoding/json, so that the two never differ in what they accept;
// fuzz tests hold them to that.

// rawRequest is a request's envelope before it is understood.
type rawRequest struct {
	id           []byte
	v1, v0       int // request_type, type
	hasV1, hasV0 bool
	body         int // -1: not there
	payload      []byte
}

// scan reads the envelope; false leaves it to encoding/json, and e in any state.
func (e *rawRequest) scan(frame []byte) bool {
	s := scanner{b: frame}
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "request_id":
			e.id, ok = s.text()
			return 1, ok
		case "request_type":
			e.hasV1 = true
			return 2, s.int(&e.v1)
		case "type":
			e.hasV0 = true
			return 4, s.int(&e.v0)
		case "payload":
			e.payload, ok = s.raw()
			return 8, ok
		case "body":
			return 16, s.int(&e.body)
		default:
			return 0, false
		}
	})
	return ok && s.end()
}

// rawResponse is a response's envelope before it is understood.
type rawResponse struct {
	id        []byte
	success   bool
	errText   string
	errCode   string
	retriable bool
	body      int // -1: not there
	payload   []byte
}

// scan reads the envelope; false leaves it to encoding/json, and e in any state.
func (e *rawResponse) scan(frame []byte) bool {
	s := scanner{b: frame}
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "request_id":
			e.id, ok = s.text()
			return 1, ok
		case "success":
			return 2, s.bool(&e.success)
		case "error":
			return 4, s.str(&e.errText)
		case "payload":
			e.payload, ok = s.raw()
			return 8, ok
		case "error_code":
			return 16, s.str(&e.errCode)
		case "retriable":
			return 32, s.bool(&e.retriable)
		case "body":
			return 64, s.int(&e.body)
		default:
			return 0, false
		}
	})
	return ok && s.end()
}

// appendPayload appends v, one of the payload types of messages.go or nil, as JSON.
func appendPayload(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(dst, "{}"...), nil
	case *produceRequest:
		return v.append(dst), nil
	case *produceResponse:
		return v.append(dst), nil
	case *fetchRequest:
		return v.append(dst), nil
	case *fetchResponse:
		return v.append(dst), nil
	case *produceBatchRequest:
		return v.append(dst), nil
	case *produceBatchResponse:
		return v.append(dst), nil
	case *fetchBatchRequest:
		return v.append(dst), nil
	case *fetchBatchResponse:
		return v.append(dst), nil
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return dst, fmt.Errorf("%w: payload: %w", ErrMalformed, err)
		}
		return append(dst, b...), nil
	}
}

// messageWireSize is at least what a message takes in a v1 fetch.
func messageWireSize(m *Message) int {
	const fields = 200
	n := fields + 2*len(m.Topic) + stringWireSize(m.ID) +
		base64.StdEncoding.EncodedLen(len(m.Key)) + base64.StdEncoding.EncodedLen(len(m.Value))
	for k, v := range m.Headers {
		n += stringWireSize(k) + stringWireSize(v) + len(`"":"",`)
	}
	return n
}

// stringWireSize is at least what a string takes in JSON: up to six bytes for one.
func stringWireSize(s string) int {
	n := len(s)
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			n += 5
		}
	}
	return n
}

// payloadSize estimates how long a request's payload will be, so that its buffer need
// not grow.
func payloadSize(v any) int {
	const fields = 180
	p, ok := v.(*produceRequest)
	if !ok {
		return fields
	}
	n := fields + len(p.Topic) + len(p.ID) + base64.StdEncoding.EncodedLen(len(p.Key)) + base64.StdEncoding.EncodedLen(len(p.Value))
	for k, v := range p.Headers {
		n += len(k) + len(v) + 6
	}
	return n
}

// decodePayload reads JSON into v, one of the payload types of messages.go. Without
// a payload v stays as it is.
func decodePayload(b []byte, v any) error {
	if len(b) == 0 {
		return nil
	}
	var done bool
	switch v := v.(type) {
	case *produceRequest:
		done = v.scan(b)
	case *produceResponse:
		done = v.scan(b)
	case *fetchRequest:
		done = v.scan(b)
	case *fetchResponse:
		done = v.scan(b)
	case *produceBatchRequest:
		done = v.scan(b)
	case *produceBatchResponse:
		done = v.scan(b)
	case *fetchBatchRequest:
		done = v.scan(b)
	case *fetchBatchResponse:
		done = v.scan(b)
	}
	if done {
		return nil
	}
	if err := unmarshalJSON(b, v); errors.Is(err, ErrInvalidRequest) {
		return err
	} else if err != nil {
		return fmt.Errorf("%w: payload: %w", ErrMalformed, err)
	}
	if v, ok := v.(*fetchResponse); ok && slices.Contains(v.Messages, nil) {
		return fmt.Errorf("%w: payload: a message is null", ErrMalformed)
	}
	return nil
}

func (r *produceRequest) append(dst []byte) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, r.Topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(r.Partition), 10)
	dst = append(dst, `,"key":`...)
	dst = appendBytes(dst, r.Key)
	dst = append(dst, `,"value":`...)
	dst = appendBytes(dst, r.Value)
	dst = appendHeaders(dst, r.Headers)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, r.Timestamp, 10)
	if r.ID != "" {
		dst = append(dst, `,"id":`...)
		dst = appendString(dst, r.ID)
	}
	dst = appendAcks(dst, r.Acks)
	return append(dst, '}')
}

func (r *produceRequest) scan(b []byte) bool {
	return r.scanInto(b, make([]byte, len(b)*3/4), "")
}

// scanInto is scan with room for the key and the value, which fit into what their base64
// stands for. topic is what the request is expected to name, whose string is then used.
func (r *produceRequest) scanInto(b, room []byte, topic string) bool {
	var v produceRequest
	s := scanner{b: b, room: room}
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "topic":
			return 1, s.sameStr(&topic, &v.Topic)
		case "partition":
			return 2, s.int32(&v.Partition)
		case "key":
			return 4, s.base64(&v.Key)
		case "value":
			return 8, s.base64(&v.Value)
		case "headers":
			return 16, s.stringMap(&v.Headers)
		case "timestamp":
			return 32, s.int64(&v.Timestamp)
		case "id":
			return 64, s.str(&v.ID)
		case "acks":
			return 128, s.str(&v.Acks)
		default:
			return 0, false
		}
	})
	if !ok || !s.end() {
		return false
	}
	*r = v
	return true
}

func (r *produceResponse) append(dst []byte) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, r.Topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(r.Partition), 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, r.Offset, 10)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, r.Timestamp, 10)
	dst = appendAcks(dst, r.Acks)
	dst = appendRefusal(dst, &r.answer)
	return append(dst, '}')
}

// scan reads the answer of the topic that is mostly r's, whose string is then used.
func (r *produceResponse) scan(b []byte) bool {
	v := produceResponse{Partition: r.Partition, Offset: r.Offset} // Left out, they stay.
	s, topic := scanner{b: b}, r.Topic
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "topic":
			return 1, s.sameStr(&topic, &v.Topic)
		case "partition":
			return 2, s.int32(&v.Partition)
		case "offset":
			return 4, s.int64(&v.Offset)
		case "timestamp":
			return 8, s.int64(&v.Timestamp)
		case "error":
			return 16, s.str(&v.Error)
		case "acks":
			return 32, s.str(&v.Acks)
		default:
			return 0, false
		}
	})
	if !ok || !s.end() {
		return false
	}
	*r = v
	return true
}

func (r *fetchRequest) append(dst []byte) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, r.Topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(r.Partition), 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, r.Offset, 10)
	dst = append(dst, `,"max_bytes":`...)
	dst = strconv.AppendInt(dst, int64(r.MaxBytes), 10)
	dst = append(dst, `,"max_messages":`...)
	dst = strconv.AppendInt(dst, int64(r.MaxMessages), 10)
	if r.MinBytes != 0 {
		dst = append(dst, `,"min_bytes":`...)
		dst = strconv.AppendInt(dst, int64(r.MinBytes), 10)
	}
	if r.MaxWaitMs != 0 {
		dst = append(dst, `,"max_wait_ms":`...)
		dst = strconv.AppendInt(dst, r.MaxWaitMs, 10)
	}
	if r.TopicID != "" {
		dst = append(dst, `,"topic_id":`...)
		dst = appendString(dst, r.TopicID)
	}
	if r.LastEpoch != 0 {
		dst = append(dst, `,"last_epoch":`...)
		dst = strconv.AppendInt(dst, int64(r.LastEpoch), 10)
	}
	return append(dst, '}')
}

func (r *fetchRequest) scan(b []byte) bool {
	var v fetchRequest
	s := scanner{b: b}
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "topic":
			return 1, s.str(&v.Topic)
		case "partition":
			return 2, s.int32(&v.Partition)
		case "offset":
			return 4, s.int64(&v.Offset)
		case "max_bytes":
			return 8, s.int(&v.MaxBytes)
		case "max_messages":
			return 16, s.int(&v.MaxMessages)
		case "min_bytes":
			return 32, s.int(&v.MinBytes)
		case "max_wait_ms":
			return 64, s.int64(&v.MaxWaitMs)
		case "topic_id":
			return 128, s.str(&v.TopicID)
		case "last_epoch":
			return 256, s.int32(&v.LastEpoch)
		default:
			return 0, false
		}
	})
	if !ok || !s.end() {
		return false
	}
	*r = v
	return true
}

func (r *fetchResponse) append(dst []byte) []byte {
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, r.Topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(r.Partition), 10)
	dst = append(dst, `,"messages":[`...)
	for i, m := range r.Messages {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendMessage(dst, m)
	}
	dst = append(dst, `],"high_water_mark":`...)
	dst = strconv.AppendInt(dst, r.HighWaterMark, 10)
	dst = append(dst, `,"log_start_offset":`...)
	dst = strconv.AppendInt(dst, r.LogStartOffset, 10)
	if r.TopicID != "" {
		dst = append(dst, `,"topic_id":`...)
		dst = appendString(dst, r.TopicID)
	}
	if r.Epoch != 0 {
		dst = append(dst, `,"epoch":`...)
		dst = strconv.AppendInt(dst, int64(r.Epoch), 10)
	}
	if r.DivergedAt != nil {
		dst = append(dst, `,"diverged_at":`...)
		dst = strconv.AppendInt(dst, *r.DivergedAt, 10)
	}
	dst = appendRefusal(dst, &r.answer)
	return append(dst, '}')
}

// appendMessage appends a message as it stands in a fetch.
func appendMessage(dst []byte, m *Message) []byte {
	dst = append(dst, `{"id":`...)
	dst = appendString(dst, m.ID)
	dst = append(dst, `,"topic":`...)
	dst = appendString(dst, m.Topic)
	dst = append(dst, `,"partition":`...)
	dst = strconv.AppendInt(dst, int64(m.Partition), 10)
	dst = append(dst, `,"key":`...)
	dst = appendBytes(dst, m.Key)
	dst = append(dst, `,"value":`...)
	dst = appendBytes(dst, m.Value)
	dst = appendHeaders(dst, m.Headers)
	dst = append(dst, `,"timestamp":`...)
	dst = strconv.AppendInt(dst, m.Timestamp, 10)
	dst = append(dst, `,"offset":`...)
	dst = strconv.AppendInt(dst, m.Offset, 10)
	return append(dst, '}')
}

func (r *fetchResponse) scan(b []byte) bool {
	v := fetchResponse{HighWaterMark: r.HighWaterMark, LogStartOffset: r.LogStartOffset}
	s := scanner{b: b}
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "topic":
			return 1, s.str(&v.Topic)
		case "partition":
			return 2, s.int32(&v.Partition)
		case "messages":
			v.Messages, ok = s.messages(v.Topic)
			return 4, ok
		case "high_water_mark":
			return 8, s.int64(&v.HighWaterMark)
		case "log_start_offset":
			return 16, s.int64(&v.LogStartOffset)
		case "error":
			return 32, s.str(&v.Error)
		case "topic_id":
			return 64, s.str(&v.TopicID)
		case "epoch":
			return 128, s.int32(&v.Epoch)
		case "diverged_at":
			v.DivergedAt = new(int64)
			return 256, s.int64(v.DivergedAt)
		default:
			return 0, false
		}
	})
	if !ok || !s.end() {
		return false
	}
	*r = v
	return true
}

// messages reads the array of a fetch from topic. The messages come in slabs, so
// that a fetch costs few allocations.
func (s *scanner) messages(topic string) ([]*Message, bool) {
	if s.next() == 'n' {
		return nil, s.null()
	}
	if !s.eat('[') {
		return nil, false
	}
	list := []*Message{}
	if s.eat(']') {
		return list, true
	}
	const maxSlab = 64
	var slab []Message
	for {
		if len(slab) == 0 {
			slab = make([]Message, min(maxSlab, len(list)+1))
		}
		m := &slab[0]
		slab = slab[1:]
		m.Topic = topic
		if !s.message(m) {
			return nil, false
		}
		topic = m.Topic
		list = append(list, m)
		if s.eat(',') {
			continue
		}
		return list, s.eat(']')
	}
}

// message reads one message of a fetch. If m has a topic already and the text says
// the same, m keeps the string that it has.
func (s *scanner) message(m *Message) bool {
	previous := m.Topic
	m.Topic = ""
	return s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "id":
			return 1, s.str(&m.ID)
		case "topic":
			t, ok := s.text()
			if ok && string(t) == previous {
				m.Topic = previous
			} else {
				m.Topic = string(t)
			}
			return 2, ok
		case "partition":
			return 4, s.int32(&m.Partition)
		case "key":
			return 8, s.base64(&m.Key)
		case "value":
			return 16, s.base64(&m.Value)
		case "headers":
			return 32, s.stringMap(&m.Headers)
		case "timestamp":
			return 64, s.int64(&m.Timestamp)
		case "offset":
			return 128, s.int64(&m.Offset)
		default:
			return 0, false
		}
	})
}

// appendHeaders appends headers in the order of their keys, nothing if there are
// none.
func appendHeaders(dst []byte, headers map[string]string) []byte {
	if len(headers) == 0 {
		return dst
	}
	dst = append(dst, `,"headers":{`...)
	if len(headers) == 1 {
		for k, v := range headers {
			dst = appendString(dst, k)
			dst = append(dst, ':')
			dst = appendString(dst, v)
		}
		return append(dst, '}')
	}
	keys := make([]string, 0, 8)
	for k := range headers {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for i, k := range keys {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendString(dst, headers[k])
	}
	return append(dst, '}')
}
