package robust

import "time"

// Hooks are functions of the application that are told what a client or a broker does; see
// [WithHooks]. Each may be nil, and then costs nothing. They are called by the goroutine
// that does the work, concurrently, sometimes many a second: they must return soon, must
// not wait for the client or the broker.
type Hooks struct {
	// Connected is told of each connection that was opened and, by a client, of each try
	// that failed.
	Connected func(ConnectionEvent)
	// Disconnected is told of each connection that has ended.
	Disconnected func(ConnectionEvent)
	// RequestDone is told of each request that was answered or, by a client, has failed.
	RequestDone func(RequestEvent)
	// ProduceDone is told of each batch that was stored, or was not, for good. A client calls
	// it before the results are there. Messages that nobody waits for any more, because the
	// context of their send has ended, are told as failed, each by itself, and not with their
	// batch: the events' messages add up to those that are counted as sent and as failed.
	ProduceDone func(ProduceEvent)
	// Consumed is told of messages that are about to be handed over, by a client, or that
	// were sent to a consumer, by a broker. What a Seek has dropped by then may be among them.
	Consumed func(ConsumeEvent)
}

// ConnectionEvent is told to [Hooks].
type ConnectionEvent struct {
	Addr    string        // the broker's as the client has it; for a broker the peer's
	Latency time.Duration // of opening it, the hello included; for a connection that has ended, how long it was open
	Err     error         // why it could not be opened, or has ended; nil if it was opened, or the peer has hung up
}

// RequestEvent is told to [Hooks].
type RequestEvent struct {
	Addr     string        // as in ConnectionEvent
	Request  string        // its name, such as "FetchBatch"; of single messages that a broker stores together one stands for all
	Requests int           // how many these are, mostly 1
	Latency  time.Duration // from when it is sent, or has come, to its answer; the time for which a broker holds it is part of it
	Err      error         // the refusal, or what broke
}

// ProduceEvent is told to [Hooks].
type ProduceEvent struct {
	Topic      string
	Partition  int32         // PartitionAny if none was chosen
	BaseOffset int64         // of the first message; -1 if none was stored, or they did not go as one batch
	Messages   int           // in the batch
	Bytes      int           // of the batch as it is stored; of messages sent by themselves [Message.Size]
	Latency    time.Duration // by a client, from the call for the first message to its result; by a broker, of storing it
	Err        error         // nil if it is stored
}

// ConsumeEvent is told to [Hooks].
type ConsumeEvent struct {
	Topic     string
	Partition int32
	Offset    int64 // of the first message
	Messages  int
	Bytes     int // by a client [Message.Size] of them; by a broker of the batches as they are stored
}

// produced tells ProduceDone of one message, which is not looked at later. m may be nil.
func (h *Hooks) produced(m *Message, took time.Duration, r Receipt, err error) {
	if h.ProduceDone == nil {
		return
	}
	e := ProduceEvent{Partition: PartitionAny, BaseOffset: offsetNone, Messages: 1, Latency: took, Err: err}
	if m != nil {
		e.Topic, e.Partition, e.Bytes = m.Topic, m.Partition, int(m.Size())
	}
	if err == nil {
		e.Partition, e.BaseOffset = r.Partition, r.Offset
	}
	h.ProduceDone(e)
}

// with returns hooks that call those of h and then those of more.
func (h Hooks) with(more Hooks) Hooks {
	return Hooks{
		Connected:    inTurn(h.Connected, more.Connected),
		Disconnected: inTurn(h.Disconnected, more.Disconnected),
		RequestDone:  inTurn(h.RequestDone, more.RequestDone),
		ProduceDone:  inTurn(h.ProduceDone, more.ProduceDone),
		Consumed:     inTurn(h.Consumed, more.Consumed),
	}
}

func inTurn[E any](first, second func(E)) func(E) {
	switch {
	case first == nil:
		return second
	case second == nil:
		return first
	}
	return func(e E) {
		first(e)
		second(e)
	}
}
