package robust

import "sync/atomic"

// Partitioner chooses the partition of a message whose Partition is
// [PartitionAny], of a topic that has n. It returns a number from 0 to n-1, must
// give the same answer for the same key as long as n stays, and is called
// concurrently.
type Partitioner func(m *Message, n int32) int32

// HashPartitioner is the default: [PartitionForKey] of the key, round robin
// without one.
func HashPartitioner() Partitioner {
	next := RoundRobinPartitioner()
	return func(m *Message, n int32) int32 {
		if m.Key == nil {
			return next(m, n)
		}
		return PartitionForKey(m.Key, n)
	}
}

// RoundRobinPartitioner ignores the key and takes the partitions in turn.
func RoundRobinPartitioner() Partitioner {
	var turn atomic.Uint32
	return func(_ *Message, n int32) int32 {
		return int32((turn.Add(1) - 1) % uint32(n))
	}
}

// PartitionForKey returns the partition of a key in a topic of n partitions: the
// 32-bit FNV-1a hash of the key, unsigned, modulo n. Brokers and every client that
// follows docs/protocol.md choose the same. n must be more than 0.
func PartitionForKey(key []byte, n int32) int32 {
	h := uint32(2166136261)
	for _, c := range key {
		h = (h ^ uint32(c)) * 16777619
	}
	return int32(h % uint32(n))
}
