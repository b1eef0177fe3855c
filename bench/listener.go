package main

import (
	"context"
	"errors"
	"net"
	"sync"
)

// listener is the broker of the references: a function that serves connections.
type listener struct {
	ownUsage
	l   net.Listener
	wg  sync.WaitGroup
	end func() error // called when nothing is served any more

	mu     sync.Mutex // guards the following
	closed bool
	conns  []net.Conn
}

// listen serves each connection with serve, which returns when reading fails.
func listen(ctx context.Context, serve func(net.Conn), end func() error) (*listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, end())
	}
	s := &listener{l: l, end: end}
	s.wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil || !s.add(nc) {
				return
			}
			s.wg.Go(func() {
				defer nc.Close()
				serve(nc)
			})
		}
	})
	return s, nil
}

// add keeps a connection, to be cut by close; false after that.
func (s *listener) add(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return false
	}
	s.conns = append(s.conns, nc)
	return true
}

func (s *listener) addr() string { return s.l.Addr().String() }

func (s *listener) close() error {
	err := s.l.Close()
	s.mu.Lock()
	s.closed = true
	for _, nc := range s.conns {
		nc.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return errors.Join(err, s.end())
}
