package robust

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"time"
)

type brokerOption func(*brokerConfig)

func (f brokerOption) applyBroker(c *brokerConfig) { f(c) }

// Limits of a broker that nobody has asked to change.
const (
	minSegmentBytes   = 4 << 10
	defaultSegment    = 1 << 30
	defaultMaxMessage = 1 << 20
	defaultRetention  = 168 * time.Hour

	defaultSyncInterval = time.Second
)

func defaultBrokerConfig() brokerConfig {
	return brokerConfig{
		sharedConfig:   defaultSharedConfig(),
		retentionAge:   defaultRetention,
		maxConnections: 10_000,
		sync:           SyncInterval(defaultSyncInterval),
	}
}

// validate checks every limit.
func (c *brokerConfig) validate() error {
	rows := append(c.limits(), []limit{
		{"WithNodeID", len(c.nodeID) <= maxNameBytes, c.nodeID, "at most 249 bytes"},
		{"WithAdvertisedAddr", c.advertisedAddr == "" || addressesValid([]string{c.advertisedAddr}), c.advertisedAddr, "an address of the form host:port"},
		{"WithAutoCreateTopics", c.autoCreate >= 0 && c.autoCreate <= maxTopicPartitions, c.autoCreate, "0 to 10000"},
		{"WithRetention", c.retentionAge >= 0, c.retentionAge, "0 or more"},
		{"WithRetention", c.retentionBytes >= 0, c.retentionBytes, "0 or more"},
		{"WithConnectionLimit", c.maxConnections > 0, c.maxConnections, "more than 0"},
		{"WithSync", c.sync == SyncNever || c.sync == SyncAlways || c.sync > 0, c.sync, "SyncAlways, SyncNever, or SyncInterval of more than 0"},
		{"WithDataDir", c.dataDir == "" || c.storage == nil, c.dataDir, "no WithStorage beside it"},
	}...)
	for _, t := range c.topics {
		rows = append(rows,
			limit{"WithTopic", checkTopicName(t.Name) == nil, strconv.Quote(t.Name), topicNames},
			limit{"WithTopic", t.Partitions > 0 && t.Partitions <= maxTopicPartitions, fmt.Sprintf("%q, %d", t.Name, t.Partitions), "1 to 10000 partitions"})
	}
	return checkLimits(rows)
}

// WithTopic has the broker create a topic when it starts, unless there is one of
// that name.
func WithTopic(name string, partitions int32) BrokerOption {
	return brokerOption(func(c *brokerConfig) {
		c.topics = append(c.topics[:len(c.topics):len(c.topics)], StoredTopic{Name: name, Partitions: partitions})
	})
}

// WithAutoCreateTopics has the broker create a topic of so many partitions when a
// message is sent to one that is not there (default 0: it refuses).
func WithAutoCreateTopics(partitions int32) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.autoCreate = partitions })
}

// WithRetention sets how long messages are kept, and how many bytes of each
// partition, where a topic's configuration does not say (default 168h and 0, which
// is no limit; a duration of 0 keeps them for ever). Whole segments are removed,
// so that a quarter of the age, or a segment's bytes, may stay longer.
func WithRetention(age time.Duration, bytes int64) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.retentionAge, c.retentionBytes = age, bytes })
}

// WithStorage sets where topics and messages are kept (default in memory, gone with
// the broker). The broker does not close a storage that was given to it, so that
// another can be opened on it.
func WithStorage(s Storage) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.storage = s })
}

// WithDataDir has the broker keep topics, messages and consumer groups in a directory,
// which it makes (default "": in memory, gone with the broker). Only one broker at a
// time works in a directory; another fails with [ErrDataDirInUse]. [CheckDataDir] and
// [RepairDataDir] are for directories that have suffered.
//
// What the broker makes there is for its user alone; the group may read it if it may read the
// directory when the broker starts. The directory of a topic, or of one of its partitions, may be
// a symbolic link to another disk, as may a segment. While that is away, the broker does not
// start.
func WithDataDir(dir string) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.dataDir = dir })
}

// WithSync sets when what the broker writes to its data directory is forced to stable
// storage (default [SyncInterval] of a second). A producer can ask for more with
// [WithAcks].
func WithSync(p SyncPolicy) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.sync = p })
}

// WithNodeID sets the ID under which the broker stands in metadata (default a new
// UUID).
func WithNodeID(id string) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.nodeID = id })
}

// WithAdvertisedAddr sets the address, host:port, that the broker tells clients to
// reach it at (default the local address of the connection that asks).
func WithAdvertisedAddr(addr string) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.advertisedAddr = addr })
}

// WithConnectionLimit sets how many connections the broker serves at a time
// (default 10000). One more gets an answer that says so and is closed.
func WithConnectionLimit(n int) BrokerOption {
	return brokerOption(func(c *brokerConfig) { c.maxConnections = n })
}

// Keys of a topic's configuration; the first two are the specification's.
const (
	configRetentionHours = "retention.hours"
	configSegmentBytes   = "segment.bytes"
	configRetentionBytes = "retention.bytes"
	configMaxMessage     = "max.message.bytes"
)

// topicConfig is a topic's configuration, understood.
type topicConfig struct {
	log        LogConfig
	maxMessage int
}

// parseTopicConfig understands a configuration; what it does not name is the
// broker's default. The error wraps ErrInvalidConfig and names key and value.
func (c *brokerConfig) parseTopicConfig(config map[string]string) (topicConfig, error) {
	t := topicConfig{
		log: LogConfig{
			SegmentBytes:   defaultSegment,
			RetentionAge:   c.retentionAge,
			RetentionBytes: c.retentionBytes,
		},
		// A message must fit a frame in either form when it is fetched: base64
		// in base64 is 16/9 of its size, and its other fields need room.
		maxMessage: min(defaultMaxMessage, c.maxFrameBytes/2),
	}
	for key, value := range config {
		v, err := strconv.ParseInt(value, 10, 64)
		low, high := int64(0), int64(math.MaxInt64)
		switch key {
		case configRetentionHours:
			high = math.MaxInt64 / int64(time.Hour)
			t.log.RetentionAge = time.Duration(v) * time.Hour
		case configRetentionBytes:
			t.log.RetentionBytes = v
		case configSegmentBytes:
			low, high = minSegmentBytes, math.MaxInt32
			t.log.SegmentBytes = v
		case configMaxMessage:
			low, high = 1, int64(c.maxFrameBytes/2)
			t.maxMessage = int(v)
		default:
			return t, fmt.Errorf("%w: topic config %q: want %s, %s, %s or %s", ErrInvalidConfig, shorten(key),
				configRetentionHours, configRetentionBytes, configSegmentBytes, configMaxMessage)
		}
		if err != nil || v < low || v > high {
			return t, fmt.Errorf("%w: topic config %s=%q: want a whole number from %d to %d", ErrInvalidConfig, key, shorten(value), low, high)
		}
	}
	return t, nil
}

// mergeConfig returns old with changes; an empty value takes a key out.
func mergeConfig(old, changes map[string]string) map[string]string {
	merged := maps.Clone(old)
	if merged == nil {
		merged = make(map[string]string, len(changes))
	}
	for k, v := range changes {
		if v == "" {
			delete(merged, k)
		} else {
			merged[k] = v
		}
	}
	return merged
}
