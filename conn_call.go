package robust

import (
	"encoding/hex"
	"sync/atomic"
	"time"
)

// call is one request under way.
type call struct {
	kind     requestType
	sequence uint64    // its place in conn.inflight
	sent     time.Time // when it was begun
	deadline time.Time // when it fails for want of an answer
	// When the fields below are set, done gets one token or, if it is nil, notify is
	// called: once, without locks, by whoever finds it out. It must not block.
	done   chan struct{}
	notify func(*call)
	hook   func(*call) // called before that; nil: none

	// end is that of the request's body in what is written; 0 without a body. A call may be
	// over, with its connection, before that is known: then it is behind all that ever will
	// be written.
	end atomic.Int64

	resp    wireResponse // its parts are the call's own
	payload []byte       // backs resp.payload
	body    []byte       // what came behind the answer's frame
	err     error        // a *ConnError, when there is no response

	lent bool // the caller is to read for itself until done gets its token; see readTurn
}

// complete tells whoever waits for the call.
func (k *call) complete() {
	if k.hook != nil {
		k.hook(k)
	}
	if k.done != nil {
		k.done <- struct{}{}
	} else {
		k.notify(k)
	}
}

// outgoingCall is what a call sends.
type outgoingCall struct {
	req  request
	body [][]byte // must not change before the frameWriter has passed call.end; nil: none
	// flush has the caller write what is queued, which may take as long as the broker
	// takes to read it.
	flush bool
	// reads offers that the caller reads until it has its answer, if nobody else does. If
	// it is to, call.lent is set, and it calls readUntil.
	reads bool
}

// idSpace makes the request IDs of a connection, which look like UUIDs: the first 24
// characters are the connection's, the others say which call it is.
type idSpace string

func (p idSpace) id(sequence uint64) string { return string(p.append(nil, sequence)) }

func (p idSpace) append(dst []byte, sequence uint64) []byte {
	var tail [6]byte
	for i := range tail {
		tail[i] = byte(sequence >> (40 - 8*i))
	}
	return hex.AppendEncode(append(dst, p...), tail[:])
}

// sequence is the inverse of id.
func (p idSpace) sequence(id []byte) (uint64, bool) {
	if len(id) != 36 || string(id[:24]) != string(p) {
		return 0, false
	}
	var tail [6]byte
	if _, err := hex.Decode(tail[:], id[24:]); err != nil {
		return 0, false
	}
	var sequence uint64
	for _, b := range tail {
		sequence = sequence<<8 | uint64(b)
	}
	return sequence, true
}
