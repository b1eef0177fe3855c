package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"regexp"
)

// dialOld opens a connection to a broker whose answer to the hello announces no
// extension, so that the client speaks with it as with one that has none.
func dialOld(ctx context.Context, network, addr string) (net.Conn, error) {
	nc, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("%s is no TCP address", addr)
	}
	return &oldConn{TCPConn: tcp}, nil
}

// oldConn leaves the features out of the first frame that it reads. After that it is
// the connection itself.
type oldConn struct {
	*net.TCPConn
	hello   []byte // of the first frame; nil once it has been read
	pending []byte // of it, to be handed out
	past    bool
}

// features is that member of the hello, with the comma behind it or before it.
var features = regexp.MustCompile(`"features":\[[^\]]*\],|,"features":\[[^\]]*\]`)

// Read implements net.Conn. Nothing follows the first frame before it is answered, so
// what is read with its end is all that there is.
func (c *oldConn) Read(p []byte) (int, error) {
	for !c.past {
		buf := make([]byte, 4096)
		n, err := c.TCPConn.Read(buf)
		c.hello = append(c.hello, buf[:n]...)
		if err != nil {
			return 0, err
		}
		if bytes.IndexByte(c.hello, '\n') >= 0 {
			c.pending = features.ReplaceAll(c.hello, nil)
			if len(c.pending) == len(c.hello) {
				return 0, fmt.Errorf("no features in the answer to the hello: %.200q", c.hello)
			}
			c.past, c.hello = true, nil
		}
	}
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	return c.TCPConn.Read(p)
}
