package robust

// The payloads of the requests that carry record batches behind their frame.

// maxPartList is how many partitions one request may name.
const maxPartList = 10_000

// partList is what a request says of each partition. One that is longer than it may be is
// not read: a few bytes of text each would make up many times as much memory.
type partList[T any] []T

// produceBatchRequest stores record batches. The body holds those of one part after the
// other. Each part is stored as a whole or not at all; a part with a producer ID is one
// batch.
type produceBatchRequest struct {
	Parts partList[producePart] `json:"parts"`
	Acks  string                `json:"acks,omitempty"` // Acks.wire
}

type producePart struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Bytes     int    `json:"bytes"` // of the body
}

// produceBatchResponse has the parts of the request, in their order. It is no refusal
// when parts are refused.
type produceBatchResponse struct {
	Parts []producedPart `json:"parts"`
	answer
}

type producedPart struct {
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	BaseOffset int64  `json:"base_offset"`    // of the first record; -1: not stored
	Acks       string `json:"acks,omitempty"` // what was reached, as in the request
	partRefusal
}

// partRefusal is why one part of a request was refused, in the words of an envelope.
type partRefusal struct {
	Error     string    `json:"error,omitempty"`
	Code      errorCode `json:"error_code,omitempty"`
	Retriable bool      `json:"retriable,omitempty"`
}

func (r *partRefusal) refused() bool { return r.Error != "" || r.Code != "" }

// refuse says no because of err.
func (r *partRefusal) refuse(err error) {
	*r = partRefusal{Error: trimPrefix(err), Code: codeOf(err), Retriable: refusalMayPass(err)}
}

// fetchBatchRequest asks for record batches of partitions, and is answered when any of
// them has some.
type fetchBatchRequest struct {
	Partitions partList[fetchPart] `json:"partitions"`
	MaxBytes   int                 `json:"max_bytes"`             // of the whole body, but at least one batch
	MinBytes   int                 `json:"min_bytes,omitempty"`   // of batches, all partitions together
	MaxWaitMs  int64               `json:"max_wait_ms,omitempty"` // see fetchRequest
}

type fetchPart struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	MaxBytes  int    `json:"max_bytes"`            // of its batches, but at least one
	TopicID   string `json:"topic_id,omitempty"`   // see fetchRequest
	LastEpoch int32  `json:"last_epoch,omitempty"` // likewise
}

// fetchBatchResponse has the partitions of the request, in their order. It is no refusal
// when partitions are refused.
type fetchBatchResponse struct {
	Partitions []fetchedPart `json:"partitions"`
	answer
}

type fetchedPart struct {
	Topic          string `json:"topic"`
	Partition      int32  `json:"partition"`
	HighWaterMark  int64  `json:"high_water_mark"`
	LogStartOffset int64  `json:"log_start_offset"`
	TopicID        string `json:"topic_id,omitempty"`    // see fetchResponse
	Epoch          int32  `json:"epoch,omitempty"`       // likewise
	DivergedAt     *int64 `json:"diverged_at,omitempty"` // likewise
	// Bytes of the body are this partition's: whole batches as they are stored. The
	// first may begin before the offset that was asked for.
	Bytes int `json:"bytes,omitempty"`
	partRefusal
}

// initProducerRequest asks for a producer ID, with which batches that are sent again are
// not stored twice.
type initProducerRequest struct{}

type initProducerResponse struct {
	ProducerID int64 `json:"producer_id"`
	Epoch      int16 `json:"producer_epoch"`
	answer
}

func (*produceBatchRequest) kind() requestType { return requestProduceBatch }
func (*fetchBatchRequest) kind() requestType   { return requestFetchBatch }
func (*initProducerRequest) kind() requestType { return requestInitProducer }
