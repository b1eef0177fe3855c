package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"unicode/utf8"

	"github.com/aminofox/robust-go-sdk"
)

// input makes messages of what it reads. Reading may block for ever, as a terminal does,
// so it has a goroutine of its own, which a program that ends leaves behind.
type input struct {
	size   int64 // of all files in bytes; -1 where it is not known
	typed  bool  // at a terminal
	files  []*os.File
	ch     chan item
	ctx    context.Context //nolint:containedctx // ends the goroutine, when the input is closed
	cancel context.CancelFunc
}

type item struct {
	m   *robust.Message
	err error
}

// open opens all files, so that one that is missing is noticed before anything is sent.
func (c *produceCmd) open(a *app) (*input, error) {
	in := &input{ch: make(chan item, 64)}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	names := c.Files
	if len(names) == 0 {
		names = []string{"-"}
	}
	type source struct {
		name string
		r    io.Reader
	}
	var sources []source
	for _, name := range names {
		if name == "-" {
			in.size = addSize(in.size, a.stdin)
			in.typed = in.typed || isTyped(a.stdin)
			sources = append(sources, source{"standard input", a.stdin})
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			in.close()
			return nil, &exitError{code: exitUsage, err: err}
		}
		in.files = append(in.files, f)
		if info, err := f.Stat(); err == nil && info.IsDir() {
			in.close()
			return nil, usageErrorf("", "%s is a directory", name)
		}
		in.size = addSize(in.size, f)
		sources = append(sources, source{name, f})
	}
	go func() {
		defer close(in.ch)
		for _, s := range sources {
			if err := c.read(in, s.name, s.r); err != nil {
				in.put(item{err: err})
				return
			}
		}
	}()
	return in, nil
}

// addSize adds the size of a regular file.
func addSize(size int64, r io.Reader) int64 {
	f, ok := r.(*os.File)
	if !ok || size < 0 {
		return -1
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return -1
	}
	return size + info.Size()
}

func isTyped(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && isTerminal(f)
}

func (in *input) put(i item) bool {
	select {
	case in.ch <- i:
		return true
	case <-in.ctx.Done():
		return false
	}
}

// errInputEnd is an end as it should be, which nothing that is wrong with a line can be
// taken for.
var errInputEnd = errors.New("the end of the input")

// next returns errInputEnd behind the last message.
func (in *input) next(ctx context.Context) (*robust.Message, error) {
	// A signal beats what has been read already.
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case i, ok := <-in.ch:
		if !ok {
			return nil, errInputEnd
		}
		return i.m, i.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (in *input) close() {
	in.cancel()
	for _, f := range in.files {
		f.Close()
	}
}

// read puts the messages of one file.
func (c *produceCmd) read(in *input, name string, r io.Reader) error {
	if c.Format == "whole" {
		value, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		m := robust.NewMessage("", value)
		m.Metadata = name
		in.put(item{m: m})
		return nil
	}
	lines := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		where := fmt.Sprintf("%s, line %d", name, n)
		line, err := readLine(lines, c.MaxLine)
		ended := errors.Is(err, io.EOF)
		if ended && line == nil {
			return nil
		}
		if err != nil && !ended {
			return fmt.Errorf("%s: %w", where, err)
		}
		if c.Format == "json" && len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		m, err := c.message(line)
		if err != nil {
			return usageErrorf("lines of JSON look like this: {\"key\":\"ann\",\"value\":\"two books\"}", "%s: %w", where, err)
		}
		m.Metadata = where
		if !in.put(item{m: m}) || ended {
			return nil
		}
	}
}

// readLine returns a line without its end, and with io.EOF the last one if it has none. A
// terminal says only once that its input ends.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit+1 {
			return nil, usageErrorf("--max-line sets another limit, --format whole sends a file as one message",
				"the line is longer than %d bytes", limit)
		}
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF):
			return line, err
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// message makes a message of a line.
func (c *produceCmd) message(line []byte) (*robust.Message, error) {
	if c.Format == "json" {
		return messageOfJSON(line)
	}
	if c.KeySeparator != "" {
		if key, value, found := bytes.Cut(line, []byte(c.KeySeparator)); found {
			return robust.NewMessageWithKey("", key, value), nil
		}
	}
	return robust.NewMessage("", line), nil
}

// messageJSON is a message as produce reads and consume prints it. Of key and value the
// text stands there if it is valid UTF-8, else base64 under the other name.
type messageJSON struct {
	Topic       string            `json:"topic,omitempty"`
	Partition   *int32            `json:"partition,omitempty"`
	Offset      int64             `json:"offset"`
	Timestamp   int64             `json:"timestamp"` // Unix milliseconds
	Key         *string           `json:"key,omitempty"`
	KeyBase64   []byte            `json:"key_base64,omitempty"`
	Value       json.RawMessage   `json:"value,omitempty"`
	ValueBase64 []byte            `json:"value_base64,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
}

// wantedText is what a field of messageJSON takes.
func wantedText(k reflect.Kind) string {
	switch k {
	case reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Map:
		return "an object"
	default:
		return "text"
	}
}

// messageOfJSON reads a line that is not empty. A value that is not a string is sent as the JSON that it is.
func messageOfJSON(line []byte) (*robust.Message, error) {
	var j messageJSON
	line = bytes.TrimPrefix(bytes.TrimSpace(line), []byte("\ufeff")) // A mark of files, and no part of the text.
	switch {
	case !utf8.Valid(line):
		return nil, errors.New("it is not UTF-8; value_base64 and key_base64 take any bytes")
	case len(line) == 0 || line[0] != '{':
		return nil, errors.New("it is no object, which begins with {")
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&j); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			err = fmt.Errorf("%s is a %s where %s is wanted", wrong.Field, wrong.Value, wantedText(wrong.Type.Kind()))
		}
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	if j.Key != nil && j.KeyBase64 != nil || j.Value != nil && j.ValueBase64 != nil {
		return nil, errors.New("key and key_base64 exclude one another, and so do value and value_base64")
	}
	m := robust.NewMessage("", j.ValueBase64)
	if j.Partition != nil {
		if m.Partition = *j.Partition; m.Partition < 0 {
			return nil, fmt.Errorf("partition %d is below 0", m.Partition)
		}
	}
	m.Timestamp, m.Headers = j.Timestamp, j.Headers
	if m.Key = j.KeyBase64; j.Key != nil {
		m.Key = []byte(*j.Key)
	}
	switch {
	case j.Value == nil || string(j.Value) == "null":
	case j.Value[0] == '"':
		var text string
		if err := json.Unmarshal(j.Value, &text); err != nil {
			return nil, err
		}
		m.Value = []byte(text)
	default:
		m.Value = j.Value
	}
	return m, nil
}
