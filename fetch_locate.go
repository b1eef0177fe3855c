package robust

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// locate returns the position of the epoch, asking the broker if it was given as a
// time or a named end.
func (f *fetcher) locate(e *epoch) (int64, error) {
	f.mu.Lock()
	position, s := f.position, e.start
	f.mu.Unlock()
	if position >= 0 {
		return position, nil
	}
	f.setState(stateStarting, nil)
	at := position
	if !s.time.IsZero() {
		at = wireTime(s.time)
	}
	position, err := f.client.listOffset(e.ctx, f.topic, f.partition, at)
	if errors.Is(err, ErrUnsupported) && s.time.IsZero() {
		position, err = f.probe(e.ctx, at)
	}
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	lost := offsetNone
	if f.epoch == e {
		f.position = position
		if f.legFrom < 0 {
			f.legFrom = position
		}
		lost, e.lost = e.lost, offsetNone
	}
	f.mu.Unlock()
	switch {
	case lost < 0:
	case lost == position:
		// Without ListOffsets the start of the log is a guess; it was wrong.
		return 0, &OutOfRangeError{From: lost, To: -1}
	default:
		f.report(&ConsumerError{
			Topic: f.topic, Partition: f.partition, Offset: position,
			Err: &OutOfRangeError{From: lost, To: position},
		})
	}
	return position, nil
}

// probe finds an end of the log with fetches alone, for brokers that have no
// ListOffsets. The oldest message is taken to be at 0; the newest is searched for in
// steps that double, and then between the last two.
func (f *fetcher) probe(ctx context.Context, at int64) (int64, error) {
	if at == OffsetOldest {
		return 0, nil
	}
	// There is a message at or behind low-1, and none at high.
	low, high := int64(0), int64(-1)
	for step := int64(1); high < 0 || low < high; {
		at := low + (high-low)/2
		if high < 0 {
			at = low + step - 1
			step *= 2
		}
		if at < low {
			return 0, fmt.Errorf("%w: no end of the log up to offset %d", ErrMalformed, low)
		}
		req := &fetchRequest{Topic: f.topic, Partition: f.partition, Offset: at, MaxBytes: 1, MaxMessages: 1}
		resp := newFetchResponse()
		r := route{topic: f.topic, partition: f.partition, held: true, repeatable: true}
		err := f.client.round(ctx, r, f.client.patience(), req, resp)
		switch {
		case errors.Is(err, ErrOffsetOutOfRange):
			high = at
		case err != nil:
			return 0, err
		case resp.HighWaterMark >= 0:
			return resp.HighWaterMark, nil
		case len(resp.Messages) == 0:
			high = at
		case resp.Messages[0] == nil || resp.Messages[0].Offset < at || resp.Messages[0].Offset == math.MaxInt64:
			return 0, fmt.Errorf("%w: fetch at offset %d brought another message", ErrMalformed, at)
		default:
			low = resp.Messages[0].Offset + 1
		}
	}
	return low, nil
}

// goBack gives up a position that is not in the log, as WithOutOfRange says; locate
// finds the new one and reports both.
func (f *fetcher) goBack(e *epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cfg.outOfRange == OutOfRangeFail {
		return &OutOfRangeError{From: f.position, To: -1}
	}
	if f.epoch == e {
		e.lost, f.lastEpoch = f.position, 0
		f.jumpLocked(OffsetOldest)
		if f.cfg.outOfRange == OutOfRangeNewest {
			f.legFrom, f.position = OffsetNewest, OffsetNewest
		}
		e.start = start{offset: f.position}
	}
	return nil
}

// moved tells whether err is a position that is not in the log, and reading goes on at
// another; else it returns what is to be made of err.
func (f *fetcher) moved(e *epoch, err error) (bool, error) {
	oor, changed := (*OutOfRangeError)(nil), (*LogChangedError)(nil)
	switch {
	case e.ctx.Err() != nil || !errors.Is(err, ErrOffsetOutOfRange) || errors.As(err, &oor):
		return false, err
	case !errors.As(err, &changed):
		err = f.goBack(e)
		return err == nil, err
	case f.final || changed.To < 0:
		return false, err
	default:
		f.report(f.wrap(err))
		return true, nil
	}
}
