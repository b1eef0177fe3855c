package robust

import (
	"context"
	"fmt"
	"time"
)

// Storage is where a [Broker] keeps topics and their records. It deals in encoded
// record batches (see batch.go), never in messages. The one in memory is the
// default; [WithStorage] sets another.
//
// All methods may be called concurrently. This interface is exempt from the
// promise of compatibility until version 1: it grows with the broker.
type Storage interface {
	// Topics returns the topics that are kept, when a broker starts.
	Topics(ctx context.Context) ([]StoredTopic, error)
	// PutTopic keeps a topic's description, new or changed.
	PutTopic(ctx context.Context, t StoredTopic) error
	// DeleteTopic removes a topic, its records, and what groups have committed for
	// it. Its partitions are closed.
	DeleteTopic(ctx context.Context, name string) error
	// OpenPartition returns the log of one partition, empty if the topic of this
	// ID has none yet: another of the same name is another topic.
	// The log calls advanced after its high-water mark has risen, from any
	// goroutine; advanced does not block.
	OpenPartition(ctx context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error)
	// Identity returns who the broker is that keeps its data here, the same each time.
	Identity(ctx context.Context) (BrokerIdentity, error)
	// Close ends every log that is still open.
	Close() error
	GroupStorage
}

// GroupStorage is the part of a [Storage] that keeps consumer groups. Calls that
// change one group come one at a time.
type GroupStorage interface {
	// Groups returns the groups that are kept, when a broker starts.
	Groups(ctx context.Context) ([]StoredGroup, error)
	// PutGroup keeps a group's state, in place of its last, and leaves its offsets.
	PutGroup(ctx context.Context, id string, state []byte) error
	// PutOffsets keeps committed offsets, in place of those of the same
	// partitions: all of them or, if it fails, none.
	PutOffsets(ctx context.Context, id string, offsets []StoredOffset) error
	// DeleteGroup removes a group's state and offsets.
	DeleteGroup(ctx context.Context, id string) error
}

// BrokerIdentity is what a broker is known by.
type BrokerIdentity struct {
	ClusterID string
	NodeID    string // unless [WithNodeID] says another
}

// StoredGroup is what is kept of a consumer group. A group that has only committed
// offsets has no state.
type StoredGroup struct {
	ID      string
	State   []byte // of the broker's own making
	Offsets []StoredOffset
}

// StoredOffset is an offset that a group has committed.
type StoredOffset struct {
	Topic     string
	TopicID   string // StoredTopic.ID: an offset is of no use in a topic made anew
	Partition int32
	Offset    int64
	Metadata  string
}

// StoredTopic describes a topic.
type StoredTopic struct {
	Name       string
	ID         string // unlike the name it is never given to another topic
	Partitions int32
	Config     map[string]string // as the application gave it
}

// LogConfig is the part of a topic's configuration that concerns its logs.
type LogConfig struct {
	SegmentBytes   int64         // size at which a new segment is begun
	RetentionAge   time.Duration // 0: for ever
	RetentionBytes int64         // 0: no limit
}

// SyncPolicy says when a broker forces what it has written to stable storage. Whatever
// it says, a message that was acknowledged outlives the broker's process, also when
// that is killed. The policies differ in what a power failure, or a crash of the
// operating system, takes away: always the newest messages of a partition, never some
// from between others.
type SyncPolicy time.Duration

const (
	// SyncAlways syncs before a message is acknowledged, and before it can be read. Nothing
	// that was acknowledged is lost. Messages that come while others are being synced
	// share the next sync.
	SyncAlways SyncPolicy = -1
	// SyncNever syncs when a segment is full and when the broker is closed; apart from that
	// the operating system decides. All that it has not decided to write can be lost,
	// on Linux mostly some 30 seconds.
	SyncNever SyncPolicy = -2
)

// SyncInterval syncs what has been written every d, in the background. A power failure
// loses what was written in the last d, and in the time that the sync itself takes.
func SyncInterval(d time.Duration) SyncPolicy { return SyncPolicy(max(d, 0)) }

// String returns the policy as it is written in Go.
func (p SyncPolicy) String() string {
	switch p {
	case SyncAlways:
		return "SyncAlways"
	case SyncNever:
		return "SyncNever"
	default:
		return fmt.Sprintf("SyncInterval(%v)", time.Duration(p))
	}
}

// PartitionLog is the log of one partition.
type PartitionLog interface {
	LogReader
	// Append stores whole record batches, in one piece: it gives them their
	// offsets, stamps them in place, and calls done when they are stored as acks
	// asks, or refused, before it returns or later, from any goroutine. Appends are
	// stored in the order of their calls. batches is the log's until done is
	// called; done must not block. A log that cannot give what acks asks for
	// refuses with [ErrUnsupported], one whose storage fails with [ErrStorage].
	//
	// A batch of an idempotent producer, one with a producer id of 0 or more, is appended
	// alone; among others it is an [ErrInvalidRequest]. Its sequence is that of its first
	// record, and goes round from MaxInt32 to 0. For each producer id the log knows the epoch
	// and the last five batches, and stores a batch only if it is the next: the sequence is
	// that behind the last batch of the same epoch; or 0, in a higher epoch, which takes the
	// place of the last, or where the producer is not known. One of the five, with the
	// same sequence and as many records, is stored already, and answered with the offset and
	// the time that it has, as soon as it is stored as acks asks. A lower epoch is refused
	// with [ErrFenced], anything else as out of order.
	//
	// A batch that is not in the log any more because its end was lost, or that was refused
	// in the end, counts as not stored. One that retention or DeleteBefore has removed
	// counts as stored. What is known of a producer outlives the log's closing, and is
	// forgotten 7 days after its last batch, or when 10,000 others have been at work since.
	Append(batches []byte, acks Acks, done func(AppendResult))
	// DeleteBefore makes offset the oldest retained one, if it is higher.
	DeleteBefore(ctx context.Context, offset int64) error
	// Configure changes the log's configuration.
	Configure(c LogConfig)
	// Expire removes what is past its retention. The broker calls it every 10 s.
	Expire(now time.Time) error
	// Close ends the log; appends fail with [ErrClosed] from then on.
	Close() error
}

// LogSizer is what a [PartitionLog] may have too, so that a broker's metrics tell how large it
// is.
type LogSizer interface {
	// Size returns how many bytes the log takes, and in how many segments they are. It does
	// not wait for what is being appended, and may be called concurrently.
	Size() (bytes int64, segments int)
}

// LogReader is the part of a [PartitionLog] that reads.
type LogReader interface {
	// Read returns whole batches, unharmed, the first of which holds offset, up to
	// about maxBytes but at least one; nothing at the high-water mark. It fails with
	// [ErrOffsetOutOfRange] outside the log, and with a [CorruptError] where the
	// batch that holds offset is damaged.
	Read(ctx context.Context, offset int64, maxBytes int) (LogRead, error)
	// Bounds returns the offset of the oldest retained record and the
	// high-water mark.
	Bounds() (start, end int64)
	// OffsetAt returns the offset of the first record whose time (Unix
	// milliseconds) is timestamp or later, or the high-water mark.
	OffsetAt(ctx context.Context, timestamp int64) (int64, error)
	// EpochEnd returns the offset behind the last record of the given epoch or of an
	// earlier one: where somebody who has read records of that epoch parts from this
	// log, if he has read further.
	EpochEnd(ctx context.Context, epoch int32) (int64, error)
}

// AppendResult is what became of an append.
type AppendResult struct {
	BaseOffset int64 // of the first record
	AppendTime int64 // Unix milliseconds
	Acks       Acks  // how well it is stored
	Repeated   bool  // it was stored before
	Err        error
}

// LogRead lends the batches that a read found. They must not be changed, nor used
// after Release.
type LogRead struct {
	Batches []byte
	release func()
}

// NewLogRead returns a read whose Release calls release, which may be nil.
func NewLogRead(batches []byte, release func()) LogRead {
	return LogRead{Batches: batches, release: release}
}

// Release gives the batches back. It must be called once.
func (r LogRead) Release() {
	if r.release != nil {
		r.release()
	}
}
