package robustotel

import (
	"sync"
	"sync/atomic"
)

// maxKnown bounds what is kept, in case topics are made without end. It comes to some 3 MB.
const maxKnown = 4096

// known keeps what is made of a few different keys again and again.
type known[K comparable, V any] struct {
	values sync.Map
	count  atomic.Int64
}

// get returns the value of key, making it if need be.
func (k *known[K, V]) get(key K, make func() V) V {
	if v, ok := k.values.Load(key); ok {
		return v.(V) // Nothing else is stored.
	}
	v := make()
	if k.count.Load() < maxKnown {
		if _, loaded := k.values.LoadOrStore(key, v); !loaded {
			k.count.Add(1)
		}
	}
	return v
}
