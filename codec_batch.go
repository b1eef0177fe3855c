package robust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// The hand-written codec of ProduceBatch and FetchBatch, which name many partitions at
// a time. Like that of codec.go it gives up on anything unusual.

func (r *produceBatchRequest) append(dst []byte) []byte {
	dst = append(dst, `{"parts":[`...)
	for i := range r.Parts {
		p := &r.Parts[i]
		dst = appendPartition(dst, i, p.Topic, p.Partition)
		dst = appendField(dst, `,"bytes":`, int64(p.Bytes))
		dst = append(dst, '}')
	}
	dst = append(dst, ']')
	dst = appendAcks(dst, r.Acks)
	return append(dst, '}')
}

func (r *produceBatchRequest) scan(b []byte) bool {
	var v produceBatchRequest
	s := scanner{b: b}
	topic := ""
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "parts":
			return 1, s.list(func() bool {
				if len(v.Parts) == maxPartList {
					return false // UnmarshalJSON says so.
				}
				v.Parts = append(v.Parts, producePart{})
				p := &v.Parts[len(v.Parts)-1]
				return s.object(func(key []byte) (uint, bool) {
					switch string(key) {
					case "bytes":
						return 4, s.int(&p.Bytes)
					default:
						return s.partition(key, &topic, &p.Topic, &p.Partition)
					}
				})
			})
		case "acks":
			return 2, s.str(&v.Acks)
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

// UnmarshalJSON is for what scan gives up on.
func (l *partList[T]) UnmarshalJSON(b []byte) error {
	*l = nil
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t == nil {
		return err
	} else if t != json.Delim('[') {
		return fmt.Errorf("a list of partitions cannot be %.20q", b)
	}
	for d.More() {
		if len(*l) == maxPartList {
			return fmt.Errorf("%w: more than %d partitions", ErrInvalidRequest, maxPartList)
		}
		var part T
		if err := d.Decode(&part); err != nil {
			return err
		}
		*l = append(*l, part)
	}
	return nil
}

func (r *produceBatchResponse) append(dst []byte) []byte {
	dst = append(dst, `{"parts":[`...)
	for i := range r.Parts {
		p := &r.Parts[i]
		dst = appendPartition(dst, i, p.Topic, p.Partition)
		dst = appendField(dst, `,"base_offset":`, p.BaseOffset)
		dst = appendAcks(dst, p.Acks)
		dst = p.partRefusal.append(dst)
		dst = append(dst, '}')
	}
	dst = append(dst, ']')
	dst = appendRefusal(dst, &r.answer)
	return append(dst, '}')
}

func (r *produceBatchResponse) scan(b []byte) bool {
	var v produceBatchResponse
	s := scanner{b: b}
	topic := ""
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "parts":
			return 1, s.list(func() bool {
				v.Parts = append(v.Parts, producedPart{})
				p := &v.Parts[len(v.Parts)-1]
				return s.object(func(key []byte) (uint, bool) {
					switch string(key) {
					case "base_offset":
						return 4, s.int64(&p.BaseOffset)
					case "acks":
						return 8, s.str(&p.Acks)
					case "error", "error_code", "retriable":
						return p.partRefusal.scan(&s, key)
					default:
						return s.partition(key, &topic, &p.Topic, &p.Partition)
					}
				})
			})
		case "error":
			return 2, s.str(&v.Error)
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

func (r *fetchBatchRequest) append(dst []byte) []byte {
	dst = append(dst, `{"partitions":[`...)
	for i := range r.Partitions {
		p := &r.Partitions[i]
		dst = appendPartition(dst, i, p.Topic, p.Partition)
		dst = appendField(dst, `,"offset":`, p.Offset)
		dst = appendField(dst, `,"max_bytes":`, int64(p.MaxBytes))
		if p.TopicID != "" {
			dst = append(dst, `,"topic_id":`...)
			dst = appendString(dst, p.TopicID)
		}
		if p.LastEpoch != 0 {
			dst = appendField(dst, `,"last_epoch":`, int64(p.LastEpoch))
		}
		dst = append(dst, '}')
	}
	dst = appendField(dst, `],"max_bytes":`, int64(r.MaxBytes))
	if r.MinBytes != 0 {
		dst = appendField(dst, `,"min_bytes":`, int64(r.MinBytes))
	}
	if r.MaxWaitMs != 0 {
		dst = appendField(dst, `,"max_wait_ms":`, r.MaxWaitMs)
	}
	return append(dst, '}')
}

func (r *fetchBatchRequest) scan(b []byte) bool {
	var v fetchBatchRequest
	s := scanner{b: b}
	topic, topicID := "", ""
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "partitions":
			return 1, s.list(func() bool {
				if len(v.Partitions) == maxPartList {
					return false // As above.
				}
				v.Partitions = append(v.Partitions, fetchPart{})
				p := &v.Partitions[len(v.Partitions)-1]
				return s.object(func(key []byte) (uint, bool) {
					switch string(key) {
					case "offset":
						return 4, s.int64(&p.Offset)
					case "max_bytes":
						return 8, s.int(&p.MaxBytes)
					case "topic_id":
						return 16, s.sameStr(&topicID, &p.TopicID)
					case "last_epoch":
						return 32, s.int32(&p.LastEpoch)
					default:
						return s.partition(key, &topic, &p.Topic, &p.Partition)
					}
				})
			})
		case "max_bytes":
			return 2, s.int(&v.MaxBytes)
		case "min_bytes":
			return 4, s.int(&v.MinBytes)
		case "max_wait_ms":
			return 8, s.int64(&v.MaxWaitMs)
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

func (r *fetchBatchResponse) append(dst []byte) []byte {
	dst = append(dst, `{"partitions":[`...)
	for i := range r.Partitions {
		p := &r.Partitions[i]
		dst = appendPartition(dst, i, p.Topic, p.Partition)
		dst = appendField(dst, `,"high_water_mark":`, p.HighWaterMark)
		dst = appendField(dst, `,"log_start_offset":`, p.LogStartOffset)
		if p.TopicID != "" {
			dst = append(dst, `,"topic_id":`...)
			dst = appendString(dst, p.TopicID)
		}
		if p.Epoch != 0 {
			dst = appendField(dst, `,"epoch":`, int64(p.Epoch))
		}
		if p.DivergedAt != nil {
			dst = appendField(dst, `,"diverged_at":`, *p.DivergedAt)
		}
		if p.Bytes != 0 {
			dst = appendField(dst, `,"bytes":`, int64(p.Bytes))
		}
		dst = p.partRefusal.append(dst)
		dst = append(dst, '}')
	}
	dst = append(dst, ']')
	dst = appendRefusal(dst, &r.answer)
	return append(dst, '}')
}

func (r *fetchBatchResponse) scan(b []byte) bool {
	var v fetchBatchResponse
	s := scanner{b: b}
	topic, topicID := "", ""
	ok := s.object(func(key []byte) (bit uint, ok bool) {
		switch string(key) {
		case "partitions":
			return 1, s.list(func() bool {
				v.Partitions = append(v.Partitions, fetchedPart{})
				p := &v.Partitions[len(v.Partitions)-1]
				return s.object(func(key []byte) (uint, bool) {
					switch string(key) {
					case "high_water_mark":
						return 4, s.int64(&p.HighWaterMark)
					case "log_start_offset":
						return 8, s.int64(&p.LogStartOffset)
					case "topic_id":
						return 16, s.sameStr(&topicID, &p.TopicID)
					case "epoch":
						return 32, s.int32(&p.Epoch)
					case "diverged_at":
						p.DivergedAt = new(int64)
						return 64, s.int64(p.DivergedAt)
					case "bytes":
						return 128, s.int(&p.Bytes)
					case "error", "error_code", "retriable":
						return p.partRefusal.scan(&s, key)
					default:
						return s.partition(key, &topic, &p.Topic, &p.Partition)
					}
				})
			})
		case "error":
			return 2, s.str(&v.Error)
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

// append appends what is not absent, behind another field.
func (r *partRefusal) append(dst []byte) []byte {
	if r.Error != "" {
		dst = append(dst, `,"error":`...)
		dst = appendString(dst, r.Error)
	}
	if r.Code != "" {
		dst = append(dst, `,"error_code":`...)
		dst = appendString(dst, string(r.Code))
	}
	if r.Retriable {
		dst = append(dst, `,"retriable":true`...)
	}
	return dst
}

// scan reads the value of one of the refusal's fields.
func (r *partRefusal) scan(s *scanner, key []byte) (bit uint, ok bool) {
	switch string(key) {
	case "error":
		return 1 << 16, s.str(&r.Error)
	case "error_code":
		return 1 << 17, s.str((*string)(&r.Code))
	default:
		return 1 << 18, s.bool(&r.Retriable)
	}
}

// appendPartition begins the i-th object of a list with what names a partition.
func appendPartition(dst []byte, i int, topic string, partition int32) []byte {
	if i > 0 {
		dst = append(dst, ',')
	}
	dst = append(dst, `{"topic":`...)
	dst = appendString(dst, topic)
	return appendField(dst, `,"partition":`, int64(partition))
}

func appendField(dst []byte, key string, v int64) []byte {
	return strconv.AppendInt(append(dst, key...), v, 10)
}

// partition reads what names a partition. previous is the topic before it in the list,
// whose string is used again.
func (s *scanner) partition(key []byte, previous, topic *string, partition *int32) (bit uint, ok bool) {
	switch string(key) {
	case "topic":
		return 1, s.sameStr(previous, topic)
	case "partition":
		return 2, s.int32(partition)
	default:
		return 0, false
	}
}

// list reads an array, null for none, calling item at each of its elements.
func (s *scanner) list(item func() bool) bool {
	if s.next() == 'n' {
		return s.null()
	}
	if !s.eat('[') {
		return false
	}
	if s.eat(']') {
		return true
	}
	for {
		if !item() {
			return false
		}
		if s.eat(',') {
			continue
		}
		return s.eat(']')
	}
}

// appendAcks appends what Acks.wire says, nothing for the default.
func appendAcks(dst []byte, acks string) []byte {
	if acks == "" {
		return dst
	}
	dst = append(dst, `,"acks":`...)
	return appendString(dst, acks)
}

// appendRefusal appends the text of a refusal, if there is one.
func appendRefusal(dst []byte, a *answer) []byte {
	if a.Error == "" {
		return dst
	}
	dst = append(dst, `,"error":`...)
	return appendString(dst, a.Error)
}
