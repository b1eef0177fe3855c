package main

import (
	"context"
	"errors"
	"io"
	"net"
)

// echoContestant is the floor of one message at a time: a connection that gets back
// what it sends, and nothing else.
type echoContestant struct{}

func (echoContestant) about() about {
	return about{
		name:    "echo",
		title:   "bare TCP echo of the payload",
		version: "-",
		sync:    "nothing is stored",
		kinds:   []kind{kindSync},
	}
}

func (echoContestant) serve(ctx context.Context, _ target) (server, error) {
	return listen(ctx, func(nc net.Conn) {
		buf := make([]byte, 64<<10)
		for {
			n, err := nc.Read(buf)
			if err != nil {
				return
			}
			if _, err := nc.Write(buf[:n]); err != nil {
				return
			}
		}
	}, func() error { return nil })
}

func (echoContestant) connect(ctx context.Context, t target) (session, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", t.Addr)
	if err != nil {
		return nil, err
	}
	return &echoSession{nc: nc}, nil
}

type echoSession struct {
	nc   net.Conn
	buf  []byte
	sent int64
}

func (s *echoSession) send(_ context.Context, payload []byte) error {
	if _, err := s.nc.Write(payload); err != nil {
		return err
	}
	if len(s.buf) != len(payload) {
		s.buf = make([]byte, len(payload))
	}
	if _, err := io.ReadFull(s.nc, s.buf); err != nil {
		return err
	}
	s.sent++
	return nil
}

// stored is what came back.
func (s *echoSession) stored(context.Context) (int64, error) { return s.sent, nil }
func (s *echoSession) produce(context.Context, *load) error  { return errors.ErrUnsupported }
func (s *echoSession) consume(context.Context, *sink) error  { return errors.ErrUnsupported }
func (s *echoSession) close() error                          { return s.nc.Close() }
