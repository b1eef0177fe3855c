package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"sync/atomic"
)

// traffic counts what a client says to brokers.
type traffic struct {
	requests atomic.Int64
	writes   atomic.Int64
	bytes    atomic.Int64
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// through returns dial with its connections counted.
func (t *traffic) through(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &countedConn{Conn: conn, traffic: t}, nil
	}
}

// countedConn is a connection that counts. Requests are lines of JSON; behind one that
// has a body, so many bytes of it follow.
type countedConn struct {
	net.Conn

	traffic *traffic
	line    []byte // as far as it was written
	body    int    // bytes of it that are still to come
}

// Write counts. A connection has one writer at a time.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.traffic.writes.Add(1)
	c.traffic.bytes.Add(int64(n))
	c.follow(p[:n])
	return n, err
}

// follow takes note of what was written.
func (c *countedConn) follow(p []byte) {
	for len(p) > 0 {
		if c.body > 0 {
			n := min(c.body, len(p))
			c.body -= n
			p = p[n:]
			continue
		}
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			c.line = append(c.line, p...)
			return
		}
		c.line = append(c.line, p[:end]...)
		p = p[end+1:]
		var request struct {
			Body int `json:"body"`
		}
		if json.Unmarshal(c.line, &request) == nil {
			c.traffic.requests.Add(1)
			c.body = request.Body
		}
		c.line = c.line[:0]
	}
}
