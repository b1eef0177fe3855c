package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
)

const (
	// framesBatch messages are a frame, of which framesWindow are in flight.
	framesBatch  = 1000
	framesWindow = 8
	framesHead   = 8 // length of the body and number of messages, 4 bytes each
	framesAnswer = 8 // messages stored so far
	// framesMax is more than any body here has.
	framesMax = 64 << 20
)

// framesContestant is the ceiling of producing: frames of many messages, sent to
// something that appends them to a file and answers.
type framesContestant struct {
	// base64 has frames made of JSON with base64 in it as they are sent. Else they are
	// all there before the clock starts.
	base64 bool
}

func (c framesContestant) about() about {
	a := about{
		name:    "frames",
		title:   "ceiling: prebuilt frames of 1000, appended to a file",
		version: "-",
		sync:    "written to the file before the acknowledgement, no fsync",
		kinds:   []kind{kindProduce},
	}
	if c.base64 {
		a.name, a.title = "frames-base64", "ceiling: base64 in JSON, frames of 1000, appended to a file"
	}
	return a
}

func (framesContestant) serve(ctx context.Context, t target) (server, error) {
	f, err := os.Create(filepath.Join(t.Dir, "log"))
	if err != nil {
		return nil, err
	}
	b := &framesBroker{file: f}
	return listen(ctx, b.serve, f.Close)
}

type framesBroker struct {
	mu     sync.Mutex // guards the following
	file   *os.File
	stored uint64
}

func (b *framesBroker) serve(nc net.Conn) {
	in := bufio.NewReaderSize(nc, 256<<10)
	var body []byte
	for {
		var head [framesHead]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		size, count := int(binary.BigEndian.Uint32(head[:])), uint64(binary.BigEndian.Uint32(head[4:]))
		if size > framesMax {
			return
		}
		if cap(body) < size {
			body = make([]byte, size)
		}
		body = body[:size]
		if _, err := io.ReadFull(in, body); err != nil {
			return
		}
		stored, err := b.write(body, count)
		if err != nil {
			return
		}
		if _, err := nc.Write(binary.BigEndian.AppendUint64(nil, stored)); err != nil {
			return
		}
	}
}

func (b *framesBroker) write(body []byte, count uint64) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.file.Write(body); err != nil {
		return 0, err
	}
	b.stored += count
	return b.stored, nil
}

func (c framesContestant) connect(ctx context.Context, t target) (session, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", t.Addr)
	if err != nil {
		return nil, err
	}
	return &framesSession{nc: nc, base64: c.base64}, nil
}

type framesSession struct {
	nc       net.Conn
	base64   bool
	prebuilt [][]byte
	count    int64 // stored, as the last answer says
}

func (s *framesSession) produce(ctx context.Context, l *load) error {
	if s.prebuilt == nil && !s.base64 {
		s.prebuilt = buildFrames(l)
	}
	type frame struct {
		count int
		at    int64
	}
	flying := make(chan frame, framesWindow)
	failed := make(chan error, 1)
	go func() {
		var err error
		for f := range flying {
			if err == nil {
				err = s.answer(f.count)
			}
			l.done(f.at, err)
			if err == nil {
				l.acked.Add(int64(f.count - 1))
			}
		}
		failed <- err
	}()
	ln := l.lane()
	defer ln.close()
	next := s.prebuiltFrames(ctx, ln)
	if s.base64 {
		next = encodedFrames(ctx, ln)
	}
	var err error
	for bytes, count := next(); count > 0 && err == nil; bytes, count = next() {
		f := frame{count, nanos()}
		if _, err = s.nc.Write(bytes); err == nil {
			flying <- f
		}
	}
	close(flying)
	return errors.Join(err, <-failed)
}

// answer reads the answer to a frame of count messages.
func (s *framesSession) answer(count int) error {
	var buf [framesAnswer]byte
	if _, err := io.ReadFull(s.nc, buf[:]); err != nil {
		return err
	}
	stored := int64(binary.BigEndian.Uint64(buf[:]))
	if stored != s.count+int64(count) {
		return fmt.Errorf("%d messages are stored behind %d, not %d", stored, s.count, count)
	}
	s.count = stored
	return nil
}

// prebuiltFrames goes round and round; no count at the end.
func (s *framesSession) prebuiltFrames(ctx context.Context, ln *lane) func() ([]byte, int) {
	i := 0
	return func() ([]byte, int) {
		if !ln.skip(ctx, framesBatch) {
			return nil, 0
		}
		i++
		return s.prebuilt[i%len(s.prebuilt)], framesBatch
	}
}

// buildFrames puts the whole pool into frames: each payload with its length before it.
func buildFrames(l *load) [][]byte {
	frames := make([][]byte, max(1, len(l.pool)/l.size/framesBatch))
	for i := range frames {
		f := make([]byte, framesHead, framesHead+framesBatch*(l.size+4))
		for k := range framesBatch {
			f = binary.BigEndian.AppendUint32(f, uint32(l.size))
			f = append(f, l.pool.cut(int64(i*framesBatch+k), l.size)...)
		}
		frames[i] = finishFrame(f, framesBatch)
	}
	return frames
}

// encodedFrames makes each frame when it is asked for, in a buffer that the next one
// takes over.
func encodedFrames(ctx context.Context, ln *lane) func() ([]byte, int) {
	var f []byte
	items := make([]item, 0, framesBatch)
	return func() ([]byte, int) {
		items = ln.take(ctx, items[:0])
		if len(items) == 0 {
			return nil, 0
		}
		f = append(f[:0], make([]byte, framesHead)...)
		f = append(f, `{"topic":"`+topicName+`","messages":[`...)
		for i, it := range items {
			if i > 0 {
				f = append(f, ',')
			}
			f = append(f, `{"key":null,"value":"`...)
			f = base64.StdEncoding.AppendEncode(f, it.payload)
			f = append(f, `"}`...)
		}
		f = append(f, "]}\n"...)
		return finishFrame(f, len(items)), len(items)
	}
}

// finishFrame fills in the head.
func finishFrame(f []byte, count int) []byte {
	binary.BigEndian.PutUint32(f, uint32(len(f)-framesHead))
	binary.BigEndian.PutUint32(f[4:], uint32(count))
	return f
}

// stored asks with a frame that holds nothing.
func (s *framesSession) stored(context.Context) (int64, error) {
	if _, err := s.nc.Write(make([]byte, framesHead)); err != nil {
		return 0, err
	}
	err := s.answer(0)
	return s.count, err
}

func (s *framesSession) send(context.Context, []byte) error   { return errors.ErrUnsupported }
func (s *framesSession) consume(context.Context, *sink) error { return errors.ErrUnsupported }
func (s *framesSession) close() error                         { return s.nc.Close() }
