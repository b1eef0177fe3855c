package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// naiveWindow is how many requests are in flight.
const naiveWindow = 1024

// naiveContestant is what the protocol is with nothing done about it: one message a
// request, encoding/json at both ends, pipelined through buffers.
type naiveContestant struct{}

func (naiveContestant) about() about {
	return about{
		name:    "naive-json",
		title:   "naive pipelined JSON, encoding/json",
		version: "-",
		sync:    "written to the file before the acknowledgement, no fsync",
		kinds:   []kind{kindProduce},
	}
}

// naiveRequest and naiveResponse have the documented fields, in one object.
type naiveRequest struct {
	ID        int64  `json:"request_id"`
	Type      int    `json:"request_type"` // naiveCount, or a message
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Key       []byte `json:"key"`
	Value     []byte `json:"value"`
	Timestamp int64  `json:"timestamp"`
}

type naiveResponse struct {
	ID        int64  `json:"request_id"`
	Success   bool   `json:"success"`
	Error     string `json:"error"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Timestamp int64  `json:"timestamp"`
}

// naiveCount is the request for the number of messages, which Offset answers.
const naiveCount = 1

func (naiveContestant) serve(ctx context.Context, t target) (server, error) {
	f, err := os.Create(filepath.Join(t.Dir, "log"))
	if err != nil {
		return nil, err
	}
	b := &naiveBroker{file: bufio.NewWriterSize(f, 64<<10)}
	return listen(ctx, b.serve, f.Close)
}

type naiveBroker struct {
	mu     sync.Mutex // guards the following
	file   *bufio.Writer
	stored int64
}

// serve answers what has come in together, after it is written.
func (b *naiveBroker) serve(nc net.Conn) {
	in, out := bufio.NewReaderSize(nc, 64<<10), bufio.NewWriterSize(nc, 64<<10)
	answers := json.NewEncoder(out)
	var waiting []naiveResponse
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return
		}
		var req naiveRequest
		if err := json.Unmarshal(line, &req); err != nil {
			return
		}
		waiting = append(waiting, b.take(&req))
		if in.Buffered() > 0 && len(waiting) < naiveWindow {
			continue
		}
		if err := b.flush(); err != nil {
			return
		}
		for i := range waiting {
			if err := answers.Encode(&waiting[i]); err != nil {
				return
			}
		}
		if err := out.Flush(); err != nil {
			return
		}
		waiting = waiting[:0]
	}
}

func (b *naiveBroker) take(req *naiveRequest) naiveResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	resp := naiveResponse{ID: req.ID, Success: true, Partition: req.Partition, Offset: b.stored, Timestamp: req.Timestamp}
	if req.Type == naiveCount {
		return resp
	}
	if _, err := b.file.Write(req.Value); err != nil {
		resp.Success, resp.Error = false, err.Error()
		return resp
	}
	b.stored++
	return resp
}

func (b *naiveBroker) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.file.Flush()
}

func (naiveContestant) connect(ctx context.Context, t target) (session, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", t.Addr)
	if err != nil {
		return nil, err
	}
	return &naiveSession{nc: nc, in: bufio.NewReaderSize(nc, 64<<10), out: bufio.NewWriterSize(nc, 64<<10)}, nil
}

type naiveSession struct {
	nc   net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
	last int64 // request ID
}

func (s *naiveSession) produce(ctx context.Context, l *load) error {
	type request struct{ id, at int64 }
	flying := make(chan request, naiveWindow)
	failed := make(chan error, 1)
	var dead atomic.Bool
	go func() {
		var err error
		for r := range flying {
			if err != nil {
				continue // So that the sender does not wait for room.
			}
			var resp naiveResponse
			if resp, err = s.answer(r.id); err == nil && !resp.Success {
				err = errors.New(resp.Error)
			}
			l.done(r.at, err)
			if err != nil {
				dead.Store(true)
				s.nc.Close()
			}
		}
		failed <- err
	}()
	ln := l.lane()
	defer ln.close()
	requests := json.NewEncoder(s.out)
	var err error
	for it, ok := ln.next(ctx); ok && err == nil && !dead.Load(); it, ok = ln.next(ctx) {
		s.last++
		r := request{s.last, it.at}
		if err = requests.Encode(&naiveRequest{ID: r.id, Topic: topicName, Partition: it.partition, Value: it.payload}); err != nil {
			break
		}
		select {
		case flying <- r:
		default:
			err = s.out.Flush() // The window is full: what is awaited must be on its way.
			flying <- r
		}
	}
	err = errors.Join(err, s.out.Flush())
	close(flying)
	return errors.Join(err, <-failed)
}

func (s *naiveSession) answer(id int64) (naiveResponse, error) {
	var resp naiveResponse
	line, err := s.in.ReadSlice('\n')
	if err != nil {
		return resp, err
	}
	if err := json.Unmarshal(line, &resp); err != nil {
		return resp, err
	}
	if resp.ID != id {
		return resp, fmt.Errorf("the answer to request %d came for %d", resp.ID, id)
	}
	return resp, nil
}

func (s *naiveSession) stored(context.Context) (int64, error) {
	s.last++
	if err := json.NewEncoder(s.out).Encode(&naiveRequest{ID: s.last, Type: naiveCount}); err != nil {
		return 0, err
	}
	if err := s.out.Flush(); err != nil {
		return 0, err
	}
	resp, err := s.answer(s.last)
	return resp.Offset, err
}

func (s *naiveSession) send(context.Context, []byte) error   { return errors.ErrUnsupported }
func (s *naiveSession) consume(context.Context, *sink) error { return errors.ErrUnsupported }
func (s *naiveSession) close() error                         { return s.nc.Close() }
