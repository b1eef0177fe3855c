package robust

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// messageOverhead is what a message costs beside its bytes while it waits.
	messageOverhead = 128
	// maxInFlight is how many batches of a partition may be under way, those included that
	// were answered while one before them was not. A broker recognises as many when they
	// come again.
	maxInFlight = 5
	// fewRequests is how many requests to a broker are enough: what comes meanwhile makes
	// the next one larger. Only when batches are full up to their bytes are there more.
	fewRequests = 2
	// maxRequests is how many requests to a broker may be under way.
	maxRequests = 100
	// maxRequestBytes is how much goes into one request, if it is not one batch.
	maxRequestBytes = 1 << 20
	// maxRequestParts is how many batches go into one request.
	maxRequestParts = 1000
	// keptBatches is how many batches wait to be filled again, or one for each partition, and
	// keptBytes the memory that they have: a producer that has come to rest keeps as much.
	keptBatches = 16
	keptBytes   = 32 << 20
)

// receiver is who learns of a message's fate, once.
type receiver interface {
	// settle is called without locks. It must not block.
	settle(e *entry, r Receipt, err error)
	// gaveUp tells that nobody waits for the message any more, so that it need not be sent.
	gaveUp(e *entry) bool
}

// entry is one message on its way. Its content is in its batch, encoded.
type entry struct {
	m    *Message      // for the receiver only: whoever gave up may have changed it
	to   receiver      // nil once it has been told
	at   time.Duration // when it was handed over, since the outbox was born
	size int32         // Message.Size
	tag  int32         // the receiver's own
	// timestamp is what it is stored with.
	timestamp int64
	anywhere  bool  // its partition was to be chosen,
	moves     uint8 // and how often it has been anew
}

// maxMoves is how often a partition is chosen anew for a message: what is known of a topic
// that was just made anew may be what was asked before.
const maxMoves = 3

// movable tells whether a partition may be chosen anew for the message.
func (e *entry) movable() bool { return e.anywhere && e.moves < maxMoves }

// outbox is what a producer has been given and has not heard of yet. Messages are
// encoded when they are accepted, into the last batch of their partition; senders, one
// for each broker, take batches from there. See outbox_queue.go and outbox_sender.go.
type outbox struct {
	client *Client
	cfg    *config
	born   time.Time
	// bornAt is the same in Unix nanoseconds.
	bornAt int64
	// singles has messages sent one by one to brokers that do not take batches; else
	// they fail with errPlainBroker.
	singles bool
	// settled is given batches that are done with, without locks. It must not block, and
	// calls release for each.
	settled func(*outBatch)
	// unread says what of the memory is taken by results that are not read, for Status and
	// errors: "3 results wait to be read; ", or "". It is called without locks; nil: none is.
	unread func() string
	// What later files do. All but look are called with mu, look without.
	senderOf func(addr string) *outSender
	stage    func(t *outTopic, w staged, wave int)
	forget   func(t *outTopic)
	resume   func(t *outTopic)
	look     func(q *outQueue)

	ctx    context.Context //nolint:containedctx // ends with the outbox
	cancel context.CancelFunc

	running goroutines
	// handing counts those who have taken messages out of all lists and have not told what
	// became of them.
	handing goroutines

	topics sync.Map // *outTopic by name; deleted from under mu
	latest atomic.Pointer[outTopic]
	known  atomic.Int64 // how many topics there are

	// mu guards the following, and all that topics, queues, batches and senders have but
	// for what is said to be otherwise.
	mu       sync.Mutex
	senders  map[string]*outSender
	queues   int // of all topics
	free     []*outBatch
	kept     int   // the memory of free
	used     int64 // bytes of what is accepted and not released
	waiters  []*roomWaiter
	closed   bool // nothing more is accepted
	stopped  bool // nothing is sent that is not under way
	flushing int  // how many wait for everything to be sent
	waves    waves
	expiry   *time.Timer // runs expire; nil while nothing can expire
	id       int64       // producer ID; 0: none yet
	// epochs is where new queues begin to count theirs: behind those of queues that were let
	// go of, which the broker remembers.
	epochs int16
	sweep  int64 // how many topics there are when idle ones are let go of
}

// goroutines are counted, or what they are at. Unlike those of a sync.WaitGroup they may
// begin while they are waited for: an answer that nobody waits for any more may come at
// any time.
type goroutines struct {
	mu   sync.Mutex // guards the following
	n    int
	none chan struct{} // closed when n falls to 0; nil unless waited for
}

// Go runs f in a goroutine.
func (g *goroutines) Go(f func()) {
	g.begin()
	go func() {
		defer g.ended()
		f()
	}()
}

func (g *goroutines) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
}

func (g *goroutines) ended() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n--; g.n == 0 && g.none != nil {
		close(g.none)
		g.none = nil
	}
}

// wait waits until there are none, or ctx ends.
func (g *goroutines) wait(ctx context.Context) {
	g.mu.Lock()
	if g.n == 0 {
		g.mu.Unlock()
		return
	}
	if g.none == nil {
		g.none = make(chan struct{})
	}
	none := g.none
	g.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

// roomWaiter waits for memory.
type roomWaiter struct {
	need    int64
	granted chan struct{} // closed when it has the memory; guarded by mu
}

// waves count batches that are not done with, by the flush that they belong to: one that
// begins waits for its own wave and for all before it.
type waves struct {
	now    int
	counts map[int]int
	ended  chan struct{} // closed when a wave ends; nil unless waited for
}

// outTopic is a topic that an outbox has messages for. Until its partitions are known
// they are staged.
type outTopic struct {
	name  string                     // immutable
	entry atomic.Pointer[topicEntry] // nil while messages are staged; written under mu

	// The following are guarded by outbox.mu.
	queues    []*outQueue // by partition; nil for those without messages so far
	unknown   *outQueue   // of PartitionAny, for brokers that choose
	staged    []staged
	mixed     bool          // among them are some that have come back, not in their place yet
	wave      int           // that staged messages count for
	resolving bool          // a goroutine finds out about the partitions
	last      error         // of finding out
	used      time.Duration // when a message came last, since the outbox was born
	gone      bool          // the outbox has let go of it, and has another when need be
}

// staged is a message whose partition cannot be chosen yet.
type staged struct {
	m *Message // a copy
	e entry
	// number is the place in the queue that it has come back from; neverPlaced for none.
	number int64
}

const neverPlaced = math.MaxInt64

// outQueue is what waits for one partition, in order, and what is under way to it. All
// of it is guarded by outbox.mu, but for a batch that is under way: what is encoded in it
// belongs to the sender until its answer.
type outQueue struct {
	box       *outbox
	topic     *outTopic
	partition int32
	sender    *outSender // changes only while nothing is under way

	pending []*outBatch // in order; messages go into the last one while it is open
	flying  []*outBatch // under way, in order
	// again are batches that came back and are to be sent again. Nothing is sent until all
	// that is under way has been answered: it would overtake them.
	again   []*outBatch
	state   queueState
	dueAt   time.Duration // of a queue that lingers, since the outbox was born
	pausing bool          // after a refusal; a timer ends it
	number  int64         // of the next message
	turn    int64         // how many times a batch was sent
	missing error         // the topic was not found; its broker may create it

	// What a broker recognises batches by that come again. Renumbering begins a new epoch:
	// the broker has not stored, or has forgotten, what came before.
	id       int64 // producer ID; 0: none yet
	epoch    int16
	sequence int32 // of the next message
	renumber bool  // when nothing is under way
}

type queueState uint8

const (
	queueIdle      queueState = iota // nothing to send, or it cannot be sent now
	queueLingering                   // waits for more, until dueAt or until the broker is idle
	queueReady                       // wants to be sent
)

// outBatch is some messages of one partition, sent and acknowledged together.
type outBatch struct {
	queue   *outQueue      // nil: it only tells what became of messages
	of      TopicPartition // theirs, then; PartitionAny if they had not come to one
	number  int64          // of its first message, by which the batches of a queue are in order
	turn    int64          // of the queue, when it was sent last
	wave    int
	build   batchBuilder
	entries []entry
	gone    int  // entries that have been told already
	due     bool // it is to be sent, however small it is

	// sealed: it has been given to a sender, so nothing more goes in. encoded is set by the
	// sender then, and producer before.
	sealed   bool
	encoded  batch
	producer producerFields
	inDoubt  bool  // it may have been stored
	reusable bool  // nobody else has its memory, or will not have it when sent is written
	conn     *conn // that it was sent on last; nil: none
	end      int64 // of what was sent there
	refusals int
	faults   int
	last     error

	// What became of it; set for outbox.settled.
	base     int64
	acks     Acks
	receipts []Receipt // of each entry, in place of base and acks, if set
	err      error
}

// noSequence is the producer of a batch that has no numbers yet.
var noSequence = producerFields{id: -1, epoch: -1, sequence: -1} //nolint:gochecknoglobals // a constant in all but syntax

// outSender takes batches from the queues of the partitions that one broker leads, and
// sends them. At most one goroutine drives it at a time; a caller of the application's
// does so itself where nothing can block: a small request on an idle connection.
type outSender struct {
	box  *outbox
	addr string // of the leader; "": not known

	// The following are guarded by outbox.mu.
	queues    []*outQueue
	ready     []*outQueue   // to be sent, in order; may hold queues that are not any more
	lingering []*outQueue   // likewise
	linger    *time.Timer   // runs lingered
	waiting   bool          // linger is running
	driving   bool          // somebody drives
	requests  int           // under way
	sentAt    time.Duration // when the last of them left, since the outbox was born
	since     time.Time     // when the broker could not be reached for the first time
	// What is known of the broker, from the connection.
	conn       *conn // nil: none yet, or it has ended
	frameLimit int   // 0: not known
	batches    bool  // it takes batches
	idempotent bool  // it recognises those that come again
}

// idleLocked tells that nothing is to be sent to the broker, nor under way.
func (s *outSender) idleLocked() bool {
	return len(s.queues) == 0 && !s.driving && !s.waiting && s.requests == 0
}

// errPlainBroker: the broker does not take batches, and the producer sends by itself.
var errPlainBroker = errors.New("robust: the broker takes single messages only")

// millis is the timestamp that a message of the age is stored with.
func (o *outbox) millis(m *Message, at time.Duration) int64 {
	if m.Timestamp != 0 {
		return m.Timestamp
	}
	return (o.bornAt + int64(at)) / int64(time.Millisecond)
}

// allLocked returns the queues that there are.
func (t *outTopic) allLocked() []*outQueue {
	var all []*outQueue
	for _, q := range t.queues {
		if q != nil {
			all = append(all, q)
		}
	}
	if t.unknown != nil {
		all = append(all, t.unknown)
	}
	return all
}

// newBatchLocked returns an empty batch of a wave.
func (o *outbox) newBatchLocked(q *outQueue, wave int) *outBatch {
	b := &outBatch{}
	if n := len(o.free); n > 0 {
		b = o.free[n-1]
		o.free[n-1] = nil
		o.free = o.free[:n-1]
		o.kept -= b.build.room()
	}
	b.queue, b.wave, b.producer, b.reusable = q, wave, noSequence, true
	b.number = q.number
	o.waves.counts[b.wave]++
	return b
}

// tellingLocked returns a batch that only tells what became of messages of a wave.
func (o *outbox) tellingLocked(of TopicPartition, entries []entry, wave int) *outBatch {
	b := &outBatch{of: of, wave: wave, entries: entries}
	o.waves.counts[b.wave]++
	return b
}

func (o *outbox) endWaveLocked(wave int) {
	w := &o.waves
	if w.counts[wave]--; w.counts[wave] > 0 {
		return
	}
	delete(w.counts, wave)
	if w.ended != nil {
		close(w.ended)
		w.ended = nil
	}
}

// joinLocked has a batch count for a wave, unless it does for an earlier one.
func (o *outbox) joinLocked(b *outBatch, wave int) {
	if b.wave > wave {
		o.waves.counts[wave]++
		o.endWaveLocked(b.wave)
		b.wave = wave
	}
}

// reset makes a batch as good as new, and keeps its memory.
func (b *outBatch) reset() {
	b.build.reset()
	clear(b.entries)
	*b = outBatch{build: b.build, entries: b.entries[:0]}
}

// sentOn notes where the batch's memory is still in use.
func (b *outBatch) sentOn(c *conn, k *call) {
	if k == nil {
		return
	}
	// Of an earlier connection nobody knows when it lets go.
	b.reusable = b.reusable && (b.conn == nil || b.conn == c)
	b.conn, b.end = c, max(k.end.Load(), b.end)
}

// fail sets what becomes of a batch.
func (b *outBatch) fail(err error) { b.err = err }

// takeEntries returns the messages of which nobody has been told, as entries of their own.
func (b *outBatch) takeEntries() (taken []entry) {
	for i := range b.entries {
		if e := &b.entries[i]; e.to != nil {
			taken = append(taken, *e)
			e.to = nil
			b.gone++
		}
	}
	return taken
}

// wanted tells that somebody waits for a message.
func (b *outBatch) wanted(i int) bool {
	e := &b.entries[i]
	return e.to != nil && !e.to.gaveUp(e)
}

// isWantedLocked tells whether anybody waits for any of the batch.
func (b *outBatch) isWantedLocked() bool {
	for i := range b.entries {
		if b.wanted(i) {
			return true
		}
	}
	return false
}

// isMovableLocked tells whether for any of it a partition may be chosen anew.
func (b *outBatch) isMovableLocked() bool {
	for i := range b.entries {
		if b.entries[i].movable() && b.wanted(i) {
			return true
		}
	}
	return false
}

// unwanted is for how many nobody does.
func (b *outBatch) unwanted() (n int) {
	for i := range b.entries {
		if !b.wanted(i) {
			n++
		}
	}
	return n
}

// receipt tells where the i-th message was stored.
func (b *outBatch) receipt(i int) Receipt {
	if b.receipts != nil {
		return b.receipts[i]
	}
	return Receipt{b.queue.partition, b.base + int64(i), b.entries[i].timestamp, b.acks}
}

// tell tells every message's fate to those who wait for it, and returns the memory that
// is free with it. It is for outbox.settled.
func (b *outBatch) tell() (room int64) {
	for i := range b.entries {
		e := &b.entries[i]
		if e.to == nil {
			continue
		}
		room += int64(e.size) + messageOverhead
		if b.err != nil {
			e.to.settle(e, Receipt{}, b.err)
		} else {
			e.to.settle(e, b.receipt(i), nil)
		}
	}
	return room
}

// size is about what a batch takes.
func (b *outBatch) size() int {
	if b.encoded != nil {
		return len(b.encoded)
	}
	return b.build.size()
}

// encode finishes a batch that was never sent, or that has other numbers now.
func (b *outBatch) encode(c Compression) (err error) {
	switch {
	case b.encoded == nil:
		b.encoded, err = b.build.finish(c, b.producer)
	case b.encoded.producer() != b.producer:
		b.encoded.setProducer(b.producer)
	}
	return err
}

// source returns the batch's records, plain.
func (b *outBatch) source() (batch, error) {
	if b.encoded == nil {
		return b.build.finish(CompressionNone, noSequence)
	}
	return b.encoded.plain(maxDecompressed)
}

// maxDecompressed bounds what a batch of our own becomes.
const maxDecompressed = 1<<31 - 1

// sendNameOf is how errors call sends to a partition.
func sendNameOf(topic string, partition int32) string {
	if partition == PartitionAny {
		return "send to " + topic
	}
	return fmt.Sprintf("send to %s/%d", topic, partition)
}

// sendName is how errors and Status call a send.
func sendName(m *Message) string {
	if m == nil {
		return "send"
	}
	return sendNameOf(m.Topic, m.Partition)
}
