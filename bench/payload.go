package main

import (
	"encoding/binary"
	"math/rand/v2"
)

// poolBytes is what payloads are cut from. It is larger than any batch, so that no
// compressor and no cache finds a payload again.
const poolBytes = 64 << 20

// pool is random bytes.
type pool []byte

func newPool(n int) pool {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n))
	p := make(pool, n)
	_, _ = rand.NewChaCha8(seed).Read(p) // It never fails.
	return p
}

// cut returns the bytes of message i, which are other ones for each i until the pool
// has been gone through some size times.
func (p pool) cut(i int64, size int) []byte {
	places := int64(len(p)/size - 1)
	round := i / places
	at := int(i%places)*size + int(round*7)%size
	return p[at : at+size : at+size]
}

// digest is what a message adds to the sum by which what was consumed is compared with
// what was sent. Payloads have 8 bytes at least.
func digest(payload []byte) uint64 { return binary.LittleEndian.Uint64(payload) }
