package robust

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Option configures a [Client]. Options of producers and consumers are Options
// too: given to [New] they are the default of every handle, given to a handle
// they override it.
type Option interface{ apply(c *config) }

// AsyncOption configures an [AsyncProducer], or, given to [New], every one.
type AsyncOption interface {
	Option
	asyncOption()
}

// ProducerOption configures a [SyncProducer] or an [AsyncProducer], or, given to [New],
// every producer.
type ProducerOption interface {
	AsyncOption
	producerOption()
}

// GroupOption configures a [ConsumerGroup], or, given to [New], every one.
type GroupOption interface {
	Option
	groupOption()
}

// ConsumerOption configures a [PartitionConsumer] or the claims of a [ConsumerGroup],
// or, given to [New], every consumer.
type ConsumerOption interface {
	GroupOption
	consumerOption()
}

// BrokerOption configures a [Broker].
type BrokerOption interface{ applyBroker(c *brokerConfig) }

// SharedOption configures either end.
type SharedOption interface {
	Option
	BrokerOption
}

type clientOption func(*config)

func (f clientOption) apply(c *config) { f(c) }

type producerOption func(*config)

func (f producerOption) apply(c *config) { f(c) }
func (producerOption) asyncOption()      {}
func (producerOption) producerOption()   {}

type asyncOption func(*config)

func (f asyncOption) apply(c *config) { f(c) }
func (asyncOption) asyncOption()      {}

type groupOption func(*config)

func (f groupOption) apply(c *config) { f(c) }
func (groupOption) groupOption()      {}

type consumerOption func(*config)

func (f consumerOption) apply(c *config) { f(c) }
func (consumerOption) groupOption()      {}
func (consumerOption) consumerOption()   {}

type sharedOption func(*sharedConfig)

func (f sharedOption) apply(c *config)             { f(&c.sharedConfig) }
func (f sharedOption) applyBroker(c *brokerConfig) { f(&c.sharedConfig) }

// sharedConfig is what client and broker have in common.
type sharedConfig struct {
	logger        *slog.Logger // never nil once defaults are set
	maxFrameBytes int
	hooks         Hooks
	maxSeries     int
	metricsFile   string // "": none
	// unmeasured: nothing is counted of what is produced. For the benchmark that tells what
	// counting costs.
	unmeasured bool
}

// forEmbedded is what a broker takes over from the client that it is embedded in: not what
// shows the client's own doings.
func (c *sharedConfig) forEmbedded() sharedConfig {
	s := *c
	s.hooks, s.metricsFile = Hooks{}, ""
	return s
}

// config is everything that can be said to New and to a handle. It is copied for
// each handle and not changed after validate.
type config struct {
	sharedConfig

	brokers           []string
	clientID          string
	dial              dialFunc
	ownConns          bool // nobody else has the connections that dial opens
	connectionTimeout time.Duration
	requestTimeout    time.Duration
	maxConnections    int
	protocol          Protocol
	metadataMaxAge    time.Duration
	maxFetched        int
	// embed starts the broker of WithEmbeddedBroker; nil without.
	embed func(*config) (embeddedBroker, error)

	// Producers.
	retries         int
	retryBackoff    time.Duration
	deliveryTimeout time.Duration
	partitioner     Partitioner
	acks            Acks
	compression     Compression

	// Batches of producers.
	batchSize        int
	batchBytes       int
	batchTimeout     time.Duration
	flushPolicy      func(PendingBatch) bool // nil: none
	maxBufferedBytes int
	inputBuffer      int
	returnSuccesses  bool
	returnErrors     bool

	// Consumers.
	startOffset      int64
	startTime        time.Time // zero: startOffset counts
	fetchMaxMessages int
	fetchMinBytes    int
	fetchMaxBytes    int
	fetchMaxWait     time.Duration
	pollInterval     time.Duration
	messageBuffer    int
	outOfRange       OutOfRangePolicy

	// Consumer groups.
	autoCommit       time.Duration // 0: off
	contiguous       bool
	sessionTimeout   time.Duration
	heartbeat        time.Duration // 0: by sessionTimeout
	rebalanceTimeout time.Duration
	instanceID       string
	assignor         Assignor
}

// heartbeatEvery is how often a member of a group shows that it is alive.
func (c *config) heartbeatEvery() time.Duration {
	if c.heartbeat > 0 {
		return c.heartbeat
	}
	return min(3*time.Second, c.sessionTimeout/3)
}

// brokerConfig is everything that can be said to NewBroker.
type brokerConfig struct {
	sharedConfig

	nodeID         string
	advertisedAddr string // "": the accepted connection's local address
	storage        Storage
	dataDir        string // "": storage, or memory
	sync           SyncPolicy
	topics         []StoredTopic // made at the start unless they are there
	autoCreate     int32         // partitions of topics made on first use; 0: none are
	retentionAge   time.Duration // 0: for ever
	retentionBytes int64         // 0: no limit
	maxConnections int
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// embeddedBroker is a broker in this process, as a client needs it.
type embeddedBroker struct {
	dial  dialFunc
	close func() error
}

func defaultConfig() config {
	return config{
		sharedConfig:      defaultSharedConfig(),
		brokers:           []string{DefaultAddr},
		clientID:          "robust",
		dial:              new(net.Dialer).DialContext,
		ownConns:          true,
		connectionTimeout: 30 * time.Second,
		requestTimeout:    30 * time.Second,
		maxConnections:    5,
		metadataMaxAge:    time.Minute,
		maxFetched:        50 << 20,
		retries:           3,
		retryBackoff:      100 * time.Millisecond,
		deliveryTimeout:   time.Minute,
		partitioner:       HashPartitioner(),
		batchSize:         100,
		batchBytes:        1 << 20,
		batchTimeout:      10 * time.Millisecond,
		maxBufferedBytes:  64 << 20,
		inputBuffer:       1000,
		returnSuccesses:   true,
		returnErrors:      true,
		startOffset:       OffsetOldest,
		fetchMaxMessages:  500,
		fetchMinBytes:     1,
		fetchMaxBytes:     1 << 20,
		fetchMaxWait:      500 * time.Millisecond,
		pollInterval:      100 * time.Millisecond,
		messageBuffer:     100,
		autoCommit:        time.Second,
		sessionTimeout:    30 * time.Second,
		rebalanceTimeout:  30 * time.Second,
	}
}

func defaultSharedConfig() sharedConfig {
	return sharedConfig{logger: slog.Default(), maxFrameBytes: defaultMaxFrameBytes, maxSeries: defaultMaxSeries}
}

// limit is one row of a validate table.
type limit struct {
	option string
	ok     bool
	got    any
	want   string
}

// checkLimits returns an error that names every option whose value is wrong.
func checkLimits(rows []limit) error {
	var wrong []string
	for _, r := range rows {
		if !r.ok {
			wrong = append(wrong, fmt.Sprintf("%s(%v): want %s", r.option, r.got, r.want))
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%w: %s", ErrInvalidConfig, strings.Join(wrong, "; "))
	}
	return nil
}

// maxDuration keeps sums of durations from overflowing.
const maxDuration = 366 * 24 * time.Hour

// wait is the limit of a duration that must be something, or may be nothing.
func wait(option string, d, least time.Duration) limit {
	want := "more than 0, at most 8784h"
	if least == 0 {
		want = "0 to 8784h"
	}
	return limit{option, d >= least && d <= maxDuration, d, want}
}

func (c *sharedConfig) limits() []limit {
	return []limit{
		{"WithMaxFrameBytes", c.maxFrameBytes >= minMaxFrameBytes && c.maxFrameBytes <= math.MaxInt32, c.maxFrameBytes, "4096 to 2147483647"},
		{"WithMaxSeries", c.maxSeries > 0, c.maxSeries, "more than 0"},
	}
}

// validate checks every limit, whoever set the value.
func (c *config) validate() error {
	return checkLimits(append(c.limits(), []limit{
		{"WithBrokers", len(c.brokers) > 0, c.brokers, "at least one address"},
		{"WithBrokers", addressesValid(c.brokers), fmt.Sprintf("%q", c.brokers), "addresses of the form host:port"},
		{"WithClientID", c.clientID != "" && len(c.clientID) <= 249, c.clientID, "1 to 249 bytes"},
		{"WithDialer", c.dial != nil, "nil", "a function"},
		wait("WithConnectionTimeout", c.connectionTimeout, 1),
		wait("WithRequestTimeout", c.requestTimeout, 1),
		{"WithMaxConnections", c.maxConnections > 0 && c.maxConnections <= 1000, c.maxConnections, "1 to 1000"},
		{"WithProtocol", c.protocol <= ProtocolV0, c.protocol, "ProtocolAuto, ProtocolV1 or ProtocolV0"},
		wait("WithMetadataMaxAge", c.metadataMaxAge, 1),
		{"WithMaxFetchedBytes", c.maxFetched > 0, c.maxFetched, "more than 0"},
		{"WithRetries", c.retries >= 0, c.retries, "0 or more"},
		wait("WithRetryBackoff", c.retryBackoff, 0),
		wait("WithDeliveryTimeout", c.deliveryTimeout, 1),
		{"WithPartitioner", c.partitioner != nil, "nil", "a function"},
		{"WithAcks", c.acks == AcksStored || c.acks == AcksSynced, c.acks, "AcksStored or AcksSynced"},
		{"WithCompression", c.compression <= CompressionZstd, c.compression, "CompressionNone to CompressionZstd"},
		{"WithBatchSize", c.batchSize > 0, c.batchSize, "more than 0"},
		{"WithBatchBytes", c.batchBytes > 0 && c.batchBytes <= math.MaxInt32, c.batchBytes, "1 to 2147483647"},
		wait("WithBatchTimeout", c.batchTimeout, 0),
		{"WithMaxBufferedBytes", c.maxBufferedBytes > 0, c.maxBufferedBytes, "more than 0"},
		{"WithInputBuffer", c.inputBuffer >= 0 && c.inputBuffer <= 1<<20, c.inputBuffer, "0 to 1048576"},
		{"WithStartOffset", c.startOffset >= OffsetOldest, c.startOffset, "an offset, OffsetOldest or OffsetNewest"},
		{"WithFetchMaxMessages", c.fetchMaxMessages > 0, c.fetchMaxMessages, "more than 0"},
		{"WithFetchMinBytes", c.fetchMinBytes > 0, c.fetchMinBytes, "more than 0"},
		{"WithFetchMaxBytes", c.fetchMaxBytes >= c.fetchMinBytes, c.fetchMaxBytes, "at least WithFetchMinBytes"},
		{"WithFetchMaxBytes", c.fetchMaxBytes <= c.maxFrameBytes/2, c.fetchMaxBytes, "at most half of WithMaxFrameBytes"},
		wait("WithFetchMaxWait", c.fetchMaxWait, 0),
		wait("WithPollInterval", c.pollInterval, 1),
		{"WithMessageBuffer", c.messageBuffer > 0 && c.messageBuffer <= 1<<20, c.messageBuffer, "1 to 1048576"},
		{"WithOutOfRange", c.outOfRange <= OutOfRangeFail, c.outOfRange, "OutOfRangeOldest, OutOfRangeNewest or OutOfRangeFail"},
		{"WithAutoCommit", c.autoCommit == 0 || c.autoCommit >= time.Millisecond && c.autoCommit <= maxDuration, c.autoCommit, "0, or 1ms to 8784h"},
		{"WithSessionTimeout", c.sessionTimeout >= 10*time.Millisecond && c.sessionTimeout <= maxGroupTimeout, c.sessionTimeout, "10ms to 24h"},
		{"WithHeartbeatInterval", c.heartbeat >= 0 && c.heartbeat < c.sessionTimeout, c.heartbeat, "less than WithSessionTimeout"},
		{"WithRebalanceTimeout", c.rebalanceTimeout >= 10*time.Millisecond && c.rebalanceTimeout <= maxGroupTimeout, c.rebalanceTimeout, "10ms to 24h"},
		{"WithInstanceID", len(c.instanceID) <= maxNameBytes && utf8.ValidString(c.instanceID), c.instanceID, "at most 249 bytes of UTF-8"},
		{"WithAssignor", len(c.assignor.name) <= maxNameBytes && (c.assignor.assign == nil || c.assignor.name != "" && !builtIn(c.assignor.name)), strconv.Quote(c.assignor.name), "a name of at most 249 bytes that no other assignor has"},
		{"WithAssignor", c.assignor.assign != nil || c.assignor.name == "" || builtIn(c.assignor.name), strconv.Quote(c.assignor.name), "a function"},
	}...))
}

func addressesValid(addrs []string) bool {
	for _, a := range addrs {
		_, port, err := net.SplitHostPort(a)
		if err != nil || port == "" {
			return false
		}
		// A port may have a name, too.
		if n, err := strconv.Atoi(port); errors.Is(err, strconv.ErrRange) || err == nil && (n < 1 || n > math.MaxUint16) {
			return false
		}
	}
	return true
}

// with returns a copy to which opts have been applied, validated.
func (c *config) with(opts ...Option) (config, error) {
	d := *c
	for _, o := range opts {
		if o == nil {
			return d, fmt.Errorf("%w: an option is nil", ErrInvalidConfig)
		}
		o.apply(&d)
	}
	return d, d.validate()
}

// asOptions widens a handle's options.
func asOptions[O Option](opts []O) []Option {
	all := make([]Option, len(opts))
	for i, o := range opts {
		all[i] = o
	}
	return all
}

// WithBrokers sets the addresses, host:port, of the brokers to begin with
// (default [DefaultAddr]). Others are learned from metadata.
func WithBrokers(addrs ...string) Option {
	return clientOption(func(c *config) { c.brokers = append([]string(nil), addrs...) })
}

// WithClientID sets the name under which brokers know the client (default
// "robust").
func WithClientID(id string) Option {
	return clientOption(func(c *config) { c.clientID = id })
}

// WithDialer sets the function that opens connections (default a [net.Dialer]).
// [Broker.Dial] fits. The context it gets ends with the connection timeout or when
// the client is closed. Whoever keeps a connection that was opened for a client may
// close it, which cuts it off.
func WithDialer(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return clientOption(func(c *config) { c.dial, c.ownConns = dial, false })
}

// WithConnectionTimeout bounds the opening of a connection, the hello included
// (default 30s). Where a client has several brokers, a call does not wait that
// long for one of them: after 5s it asks the next.
func WithConnectionTimeout(d time.Duration) Option {
	return clientOption(func(c *config) { c.connectionTimeout = d })
}

// WithRequestTimeout bounds the wait for the answer to one request (default 30s).
// A retry has the same time again; the time for which a broker was asked to hold a
// fetch comes on top.
func WithRequestTimeout(d time.Duration) Option {
	return clientOption(func(c *config) { c.requestTimeout = d })
}

// WithMaxConnections sets how many connections to each broker may be open (default
// 5). A connection is opened only when those that are open are busy, apart from
// one of its own for requests that a broker holds until there is data.
func WithMaxConnections(n int) Option {
	return clientOption(func(c *config) { c.maxConnections = n })
}

// WithProtocol fixes the form of the protocol (default [ProtocolAuto]: found out
// when a connection is opened, and remembered for each address).
func WithProtocol(p Protocol) Option {
	return clientOption(func(c *config) { c.protocol = p })
}

// WithMetadataMaxAge sets the age at which what is known of a topic's partitions is
// refreshed in the background (default 1m). An answer that shows it to be out of
// date refreshes it at once.
func WithMetadataMaxAge(d time.Duration) Option {
	return clientOption(func(c *config) { c.metadataMaxAge = d })
}

// WithMaxFetchedBytes bounds what all consumers and claims of the client together have
// fetched and not yet handed over, in bytes as they are fetched (default 50 MiB). Each of
// them has an equal share, for two fetches, and may hold one record batch, as brokers
// store it, beyond that: so at the least each gets on. Messages in a Messages channel are
// handed over ([WithMessageBuffer]).
func WithMaxFetchedBytes(n int) Option {
	return clientOption(func(c *config) { c.maxFetched = n })
}

// WithRetries sets how often a message that a broker refused, and that it may yet
// take, is sent again (default 3). Zero sends once. Connections that break do not
// count: the message is sent again until [WithDeliveryTimeout]. If the answer was what got
// lost, a broker that does not recognise it, an older one, stores it twice.
func WithRetries(n int) ProducerOption {
	return producerOption(func(c *config) { c.retries = n })
}

// WithRetryBackoff sets the wait before the first retry (default 100ms). It
// doubles with each further one, 20 % more or less at random.
func WithRetryBackoff(d time.Duration) ProducerOption {
	return producerOption(func(c *config) { c.retryBackoff = d })
}

// WithDeliveryTimeout bounds a send from the call to its result, whatever happens
// in between: connecting, waiting, retries (default 1m). The error is then
// context.DeadlineExceeded for errors.Is. A context that ends earlier ends it earlier.
func WithDeliveryTimeout(d time.Duration) ProducerOption {
	return producerOption(func(c *config) { c.deliveryTimeout = d })
}

// WithPartitioner sets how a message whose Partition is [PartitionAny] gets one
// (default [HashPartitioner]).
func WithPartitioner(p Partitioner) ProducerOption {
	return producerOption(func(c *config) { c.partitioner = p })
}

// WithAcks sets how well a message has to be stored before its send succeeds (default
// [AcksStored]). With [AcksSynced] a send fails with [ErrUnsupported] where the broker
// cannot promise that: it is an older one, or keeps its messages in memory.
func WithAcks(a Acks) ProducerOption {
	return producerOption(func(c *config) { c.acks = a })
}

// WithBatchSize sets how many messages of a partition make a batch that waits for no more
// (default 100). Those that come while it has to wait for its turn join it, up to
// [WithBatchBytes].
func WithBatchSize(n int) AsyncOption {
	return asyncOption(func(c *config) { c.batchSize = n })
}

// WithBatchBytes sets how many bytes a batch may have, encoded (default 1 MiB; less where
// frames are smaller). A larger message is a batch of its own.
func WithBatchBytes(n int) AsyncOption {
	return asyncOption(func(c *config) { c.batchBytes = n })
}

// WithBatchTimeout sets how long a batch waits for more messages while others are under
// way to its broker (default 10ms). A broker that has answered everything is sent what
// there is at once.
func WithBatchTimeout(d time.Duration) AsyncOption {
	return asyncOption(func(c *config) { c.batchTimeout = d })
}

// WithFlushPolicy sets a function that is asked after each message whether its batch is to
// be sent now (default: none; [WithBatchSize] and [WithBatchTimeout] decide, as they also
// do beside it). It is called concurrently, and must not wait.
func WithFlushPolicy(policy func(PendingBatch) bool) AsyncOption {
	return asyncOption(func(c *config) { c.flushPolicy = policy })
}

// WithMaxBufferedBytes bounds the messages that a producer has taken and whose results are
// not there, or not read: their [Message.Size] and 128 bytes for each (default 64 MiB).
// The 256 results that each of the channels Successes and Errors holds do not count. Who
// sends more waits, and nothing is dropped.
func WithMaxBufferedBytes(n int) AsyncOption {
	return asyncOption(func(c *config) { c.maxBufferedBytes = n })
}

// WithInputBuffer sets how many messages the channel of [AsyncProducer.Input] holds
// (default 1000).
func WithInputBuffer(n int) AsyncOption {
	return asyncOption(func(c *config) { c.inputBuffer = n })
}

// WithReturnSuccesses sets whether messages that were stored are told on
// [AsyncProducer.Successes], which then has to be read (default true).
func WithReturnSuccesses(on bool) AsyncOption {
	return asyncOption(func(c *config) { c.returnSuccesses = on })
}

// WithReturnErrors sets whether messages that were not stored are told on
// [AsyncProducer.Errors], which then has to be read (default true). Failures are counted
// and, the first of a kind, logged in any case.
func WithReturnErrors(on bool) AsyncOption {
	return asyncOption(func(c *config) { c.returnErrors = on })
}

// WithCompression sets how batches are compressed (default [CompressionNone]): by the
// producer, so that the broker stores and serves them as they came, and consumers
// decompress. A batch that does not shrink is sent plain. Where the broker does not take
// batches, because it is an older one, messages are sent without compression.
func WithCompression(c Compression) ProducerOption {
	return producerOption(func(o *config) { o.compression = c })
}

// WithStartOffset sets where reading begins: an offset, [OffsetOldest] or
// [OffsetNewest] (default OffsetOldest).
func WithStartOffset(offset int64) ConsumerOption {
	return consumerOption(func(c *config) { c.startOffset, c.startTime = offset, time.Time{} })
}

// WithStartTime begins reading at the first message whose timestamp is t or later,
// at the high-water mark where there is none (default: [WithStartOffset] decides).
// The broker must support ListOffsets.
func WithStartTime(t time.Time) ConsumerOption {
	return consumerOption(func(c *config) { c.startTime = t })
}

// WithFetchMaxMessages sets how many messages a fetch asks for at most (default
// 500).
func WithFetchMaxMessages(n int) ConsumerOption {
	return consumerOption(func(c *config) { c.fetchMaxMessages = n })
}

// WithFetchMinBytes sets how many bytes of messages a fetch waits for, within
// [WithFetchMaxWait] (default 1).
func WithFetchMinBytes(n int) ConsumerOption {
	return consumerOption(func(c *config) { c.fetchMinBytes = n })
}

// WithFetchMaxBytes sets how many bytes of messages a fetch asks for at most
// (default 1 MiB). A single larger message is fetched all the same.
func WithFetchMaxBytes(n int) ConsumerOption {
	return consumerOption(func(c *config) { c.fetchMaxBytes = n })
}

// WithFetchMaxWait sets how long a broker may hold a fetch while there is less than
// [WithFetchMinBytes] (default 500ms). Brokers that cannot hold a fetch are asked
// every [WithPollInterval].
func WithFetchMaxWait(d time.Duration) ConsumerOption {
	return consumerOption(func(c *config) { c.fetchMaxWait = d })
}

// WithPollInterval sets how long to wait after an empty fetch from a broker that
// cannot hold one until there is data (default 100ms).
func WithPollInterval(d time.Duration) ConsumerOption {
	return consumerOption(func(c *config) { c.pollInterval = d })
}

// WithMessageBuffer sets how many messages the Messages channel holds (default
// 100). Beside them at most two fetches of [WithFetchMaxBytes] each wait.
func WithMessageBuffer(n int) ConsumerOption {
	return consumerOption(func(c *config) { c.messageBuffer = n })
}

// OutOfRangePolicy says what a consumer does when its position is not in the log:
// the messages there were removed before it read them, or never existed.
type OutOfRangePolicy uint8

const (
	// OutOfRangeOldest goes on at the oldest retained message. From beyond the
	// high-water mark too: the log was then lost or made anew, and what is in it
	// was not read yet.
	OutOfRangeOldest OutOfRangePolicy = iota
	// OutOfRangeNewest goes on at the high-water mark.
	OutOfRangeNewest
	// OutOfRangeFail ends the consumer.
	OutOfRangeFail
)

// WithOutOfRange sets what a consumer does when its position is not in the log
// (default [OutOfRangeOldest]). It reports an [OutOfRangeError] in any case. Where the
// broker tells that the log is another than the one that was read it goes back to where
// they part, unless it is to fail, and reports a [LogChangedError], which says more.
func WithOutOfRange(p OutOfRangePolicy) ConsumerOption {
	return consumerOption(func(c *config) { c.outOfRange = p })
}

// WithAutoCommit sets how often a group commits what is marked (default 1s). It also
// commits when a claim is revoked and when the session ends. 0 leaves all of it to
// [Session.Commit], but for where a partition is begun at its newest message or a time:
// that is committed before its first message is handled.
func WithAutoCommit(every time.Duration) GroupOption {
	return groupOption(func(c *config) { c.autoCommit = every })
}

// WithContiguousMarks has a mark of a message stand for that message alone, and commits
// the end of the unbroken run of marked messages, so that messages may be handled in
// any order and none is lost (default: a mark stands for everything before it, too). A
// message that is never marked holds back all behind it, whose offsets are remembered.
func WithContiguousMarks() GroupOption {
	return groupOption(func(c *config) { c.contiguous = true })
}

// WithSessionTimeout sets how long a member of a group may be silent before the broker
// gives its partitions to others (default 30s). A member that has heard nothing for
// that long ends its claims itself. How long a handler works on a message does not
// count.
func WithSessionTimeout(d time.Duration) GroupOption {
	return groupOption(func(c *config) { c.sessionTimeout = d })
}

// WithHeartbeatInterval sets how often a member shows that it is alive (default a third
// of [WithSessionTimeout], 3s at most). A broker that holds heartbeats tells of changes
// at once, another at the next heartbeat.
func WithHeartbeatInterval(d time.Duration) GroupOption {
	return groupOption(func(c *config) { c.heartbeat = d })
}

// WithRebalanceTimeout sets how long a handler may take to return when its claim is
// revoked, before the broker gives the partition to another member all the same
// (default 30s). It also bounds [Session.Commit].
func WithRebalanceTimeout(d time.Duration) GroupOption {
	return groupOption(func(c *config) { c.rebalanceTimeout = d })
}

// WithInstanceID makes the member static: it keeps its partitions when it is closed and
// comes back under the same ID within [WithSessionTimeout], and nothing moves (default
// none: it leaves when it is closed). Each live member of a group needs an ID of its
// own: of two the one that came first ends with [ErrFenced].
func WithInstanceID(id string) GroupOption {
	return groupOption(func(c *config) { c.instanceID = id })
}

// WithAssignor sets who decides which member reads what (default [StickyAssignor]).
// Where members of a group are given different ones, StickyAssignor is used. Brokers
// other than this package's may not look at it.
func WithAssignor(a Assignor) GroupOption {
	return groupOption(func(c *config) { c.assignor = a })
}

// WithLogger sets where failures are logged, at level Warn, each kind of failure at
// most every 30 seconds (default [slog.Default]). What goes well is logged at
// level Debug or not at all. Nil turns logging off.
func WithLogger(l *slog.Logger) SharedOption {
	return sharedOption(func(c *sharedConfig) {
		if l == nil {
			l = slog.New(slog.DiscardHandler)
		}
		c.logger = l
	})
}

// WithMaxFrameBytes sets the largest frame to read or to send, in bytes (default 16
// MiB). In a frame a message's key and value take a third more than their size.
func WithMaxFrameBytes(n int) SharedOption {
	return sharedOption(func(c *sharedConfig) { c.maxFrameBytes = n })
}
