package robust

import "cmp"

// answerReader reads the answers of a connection. What is behind the line of one, its
// body, is read apart from it.
type answerReader struct {
	in    *frameReader
	heard func() // called when something has come

	resp    wireResponse
	call    *call // whose answer has a body that is to be read, nil if nobody wants it
	left    int   // how long that is; -1: there is none
	longest int   // of the bodies so far
}

// bodyAtOnce is how much memory a body is given before any of it has come, unless the
// connection has brought a longer one before. The rest it is given as it comes: an answer
// that announces much costs nothing by that.
const bodyAtOnce = 1 << 20

// bodyError is a failure to read the body of a call's answer.
type bodyError struct {
	call *call
	err  error
}

func (e *bodyError) Error() string { return e.err.Error() }

// half tells that the last answer was read up to its body.
func (a *answerReader) half() bool { return a.left >= 0 }

// next reads the next answer, which is valid until the next call; nil if a body is to be
// read first. After a timeout it may be called again: nothing is lost.
func (a *answerReader) next() (*wireResponse, error) {
	if a.half() {
		return nil, nil
	}
	if cap(a.resp.scratch) > keepScratch {
		a.resp.scratch = nil
	}
	line := a.in.lineAhead()
	ok, err := a.resp.decodeLine(line)
	if ok {
		a.in.take(line)
		a.heard()
	} else {
		if line, err = a.in.next(); err != nil {
			return nil, err
		}
		a.heard()
		err = a.resp.decode(line)
	}
	return &a.resp, cmp.Or(err, checkBody(a.resp.body, a.in.limit))
}

// deliver hands the answer that was read last to its call, unless a body follows. If k is
// nil nobody waits for it, because its ID is not ours or was answered before, and it is
// dropped.
func (a *answerReader) deliver(k *call) {
	resp := &a.resp
	if k != nil {
		k.payload = append(k.payload[:0], resp.payload...)
		k.resp = wireResponse{
			success: resp.success, errText: resp.errText, errCode: resp.errCode, retriable: resp.retriable,
			form: resp.form, payload: k.payload, body: resp.body,
		}
	}
	if resp.body >= 0 {
		a.call, a.left = k, resp.body
	} else if k != nil {
		k.complete()
	}
}

// readHalf reads what is left of the last answer, and completes its call unless the error
// is a *bodyError of it.
func (a *answerReader) readHalf() error {
	if !a.half() {
		return nil
	}
	k, size := a.call, a.left
	a.call, a.left = nil, -1
	if k == nil {
		return a.in.skipBody(size)
	}
	room := make([]byte, min(size, max(bodyAtOnce, a.longest)))
	body, err := a.in.appendBody(room, size)
	if err != nil {
		return &bodyError{k, err}
	}
	k.body = body
	a.longest = max(a.longest, size)
	a.heard()
	k.complete()
	return nil
}
