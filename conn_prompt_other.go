//go:build !linux

package robust

import "net"

// promptConn is a connection whose reader may wait for it in a system call of its own. Here
// there is none.
type promptConn struct{ net.Conn }

func promptOf(nc net.Conn) net.Conn { return nc }

func (c *promptConn) expect(bool) {}

func (c *promptConn) writeBoth(b, more []byte) (int, error) {
	n, err := (&net.Buffers{b, more}).WriteTo(c.Conn)
	return int(n), err
}
