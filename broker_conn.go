package robust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// frameTimeout is how long a frame may take to come once it has begun, and
	// writeTimeout how long a peer may leave an answer unread.
	frameTimeout = 2 * time.Minute
	writeTimeout = 30 * time.Second
	// lateTimeout is how long requests of a peer that has hung up may still take.
	lateTimeout = 30 * time.Second
	// maxHeld is how many fetches and heartbeats of one connection are held at a
	// time; one more is answered at once.
	maxHeld = 1024
	// maxHeldParts is how many partitions the FetchBatches that are held of one
	// connection may name together.
	maxHeldParts = 20_000
	// maxGrouping is how many requests about groups of one connection wait for their
	// turn before no more of its requests are read.
	maxGrouping = 16
	// maxStoring is how many bytes of one connection may wait for the storage before no
	// more of its requests are read.
	maxStoring = 16 << 20
)

// brokerConn serves one connection. serve reads and answers requests in the order
// in which they come; fetches and heartbeats that wait are held by goroutines of their
// own, requests about groups are answered by another, which serve waits for.
type brokerConn struct {
	replies
	service *service
	nc      net.Conn
	prompt  *promptConn // nc, if it is one; nil otherwise
	host    string      // the address that the peer has reached us at
	in      *frameReader

	ctx      context.Context //nolint:containedctx // ends with the connection
	cancel   context.CancelCauseFunc
	done     chan struct{}  // closed when serve stops reading
	held     sync.WaitGroup // goroutines of what is held or answered later, and appends under way
	storing  budget         // what is being stored
	gather   gather         // messages that are to be stored; serve's
	grouping chan groupJob  // requests about groups, in order; nil before the first
	frames   int            // read so far
	seen     int            // frames when alone looked last
	timing   frameTiming    // of the frame that has begun

	mu        sync.Mutex // guards the following
	heldCount int        // fetches and heartbeats held
	heldParts int        // and the partitions that the FetchBatches among them name
}

// frameTiming is the read deadline that serve has set for a frame that has begun.
type frameTiming struct {
	set   bool
	frame int // which one, by brokerConn.frames
	since time.Time
}

// groupJob is a request about groups that waits for its turn.
type groupJob struct {
	call *groupCall
	slot *v0Answer
	form Protocol
	id   []byte
	at   underWay
}

func newBrokerConn(s *service, nc net.Conn) *brokerConn {
	c := &brokerConn{
		replies: replies{
			out: newFrameWriter(nc, writeTimeout), limit: s.cfg.maxFrameBytes, warn: s.warn,
			answering: make(chan struct{}, 1),
		},
		service: s, nc: nc, host: nc.LocalAddr().String(),
		in:      &frameReader{r: nc, limit: s.cfg.maxFrameBytes, bytes: &s.metrics.bytes},
		done:    make(chan struct{}),
		storing: budget{limit: maxStoring, given: make(chan struct{}, 1)},
	}
	c.prompt, _ = nc.(*promptConn)
	c.out.large, c.out.bytes = &s.writes, &s.metrics.bytes
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c
}

// budget bounds what is under way. One goroutine takes, any may give.
type budget struct {
	limit int64
	used  atomic.Int64
	given chan struct{} // holds a token after something was given back
}

// take waits until n more fit, or nothing else is under way, or stop is closed.
func (b *budget) take(n int, stop <-chan struct{}) {
	for {
		used := b.used.Load()
		if used == 0 || used+int64(n) <= b.limit {
			break
		}
		select {
		case <-b.given:
			continue
		case <-stop:
		}
		break
	}
	b.used.Add(int64(n))
}

func (b *budget) give(n int) {
	b.used.Add(-int64(n))
	signal(b.given)
}

// hold tells whether one more fetch may be held.
func (c *brokerConn) hold() bool { return c.holdParts(0) }

func (c *brokerConn) unhold() { c.unholdParts(0) }

// holdParts is hold for a FetchBatch.
func (c *brokerConn) holdParts(parts int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heldCount >= maxHeld || c.heldParts+parts > maxHeldParts {
		return false
	}
	c.heldCount++
	c.heldParts += parts
	return true
}

func (c *brokerConn) unholdParts(parts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heldCount--
	c.heldParts -= parts
}

// readFault tells what of a failure to read is the peer's fault, and worth an answer;
// nil if it has only hung up, or the broker ends.
func (c *brokerConn) readFault(err error) error {
	switch {
	case errors.Is(err, ErrMalformed), errors.Is(err, ErrMessageTooLarge):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: the stream ended within a frame", ErrMalformed)
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.service.draining():
		return fmt.Errorf("%w: frame was not complete within %v", ErrMalformed, frameTimeout)
	default:
		return nil
	}
}

// begin notes a request that has come, answered what has become of it: before the answer can
// reach the peer, who then finds it counted.
func (c *brokerConn) begin(req *wireRequest) underWay { return c.service.metrics.begin(req.kind) }

func (c *brokerConn) answered(at underWay, failure error) {
	c.service.metrics.answered(c.nc, at, 1, failure)
}

// refuseBody says no to a request with a body, which is skipped.
func (c *brokerConn) refuseBody(req *wireRequest, refusal error) (fault error, over bool) {
	slot, form, id, at := c.place(req), req.form, bytes.Clone(req.id), c.begin(req)
	if req.body > 0 {
		if err := c.in.skipBody(req.body); err != nil {
			return c.readFault(err), true
		}
		c.frames++
	}
	c.reply(slot, form, id, &plainResponse{}, refusal)
	c.answered(at, refusal)
	return nil, false
}
