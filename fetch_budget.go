package robust

import "sync/atomic"

// fetchBudget bounds what all consumers of a client have fetched and not handed over.
// Nobody waits for room: who finds none fetches only when it has nothing in hand, and
// then asks for as little as there can be. So all together hold no more than the limit
// and a batch for each reader.
type fetchBudget struct {
	limit   int64
	used    atomic.Int64 // fetched and not handed over, or asked for
	readers atomic.Int64
}

// reserve makes room for a fetch of at most wanted bytes, and for as many as the readers'
// equal shares leave: each may have two fetches in hand. ok tells that there is some; else
// the charge is for nothing. spent gets a token when the charge is released.
func (b *fetchBudget) reserve(wanted int, spent chan struct{}) (c *charge, ok bool) {
	share := max(min(int64(wanted), b.limit/(2*max(b.readers.Load(), 1))), 1)
	for {
		used := b.used.Load()
		n := min(share, b.limit-used)
		if n <= 0 {
			return &charge{budget: b, spent: spent}, false
		}
		if b.used.CompareAndSwap(used, used+n) {
			c := &charge{budget: b, spent: spent}
			c.bytes.Store(n)
			return c, true
		}
	}
}

// charge is what one fetch takes of a budget.
type charge struct {
	budget *fetchBudget
	spent  chan struct{}
	bytes  atomic.Int64
	over   atomic.Bool // released
}

// ask is how many bytes to fetch at most; a broker sends one batch in any case.
func (c *charge) ask() int { return int(max(c.bytes.Load(), 1)) }

// settle replaces what was reserved by what has come.
func (c *charge) settle(bytes int) {
	c.budget.used.Add(int64(bytes) - c.bytes.Swap(int64(bytes)))
}

// release gives the room back; the first call counts. A nil charge has none.
func (c *charge) release() {
	if c == nil || c.over.Swap(true) {
		return
	}
	c.budget.used.Add(-c.bytes.Load())
	signal(c.spent)
}

// released tells that nothing of the fetch is in hand any more.
func (c *charge) released() bool { return c == nil || c.over.Load() }
