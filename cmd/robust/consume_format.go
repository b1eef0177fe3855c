package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aminofox/robust-go-sdk"
)

// format appends a message as it is to be printed.
type format func(b []byte, m *robust.Message) []byte

func newFormat(name, separator string) (format, error) {
	switch name {
	case "value":
		return func(b []byte, m *robust.Message) []byte { return append(append(b, m.Value...), '\n') }, nil
	case "raw":
		return func(b []byte, m *robust.Message) []byte { return append(b, m.Value...) }, nil
	case "keyed":
		return func(b []byte, m *robust.Message) []byte {
			if m.Key != nil {
				b = append(append(b, m.Key...), separator...)
			}
			return append(append(b, m.Value...), '\n')
		}, nil
	case "json":
		return appendJSON, nil
	}
	if !strings.Contains(name, "%") {
		return nil, fmt.Errorf("--format %q is none of value, keyed, json, raw and a text with %%v and the like", name)
	}
	return newTemplate(name)
}

// newTemplate splits a text into what stands in it and what is put in.
func newTemplate(text string) (format, error) {
	var parts []format
	literal := func(s string) {
		parts = append(parts, func(b []byte, _ *robust.Message) []byte { return append(b, s...) })
	}
	for text != "" {
		at := strings.IndexAny(text, `%\`)
		if at < 0 {
			literal(text)
			break
		}
		literal(text[:at])
		if at+1 == len(text) {
			return nil, fmt.Errorf("--format ends in the middle of %q", text[at:])
		}
		part, err := templatePart(text[at], text[at+1])
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		text = text[at+2:]
	}
	return func(b []byte, m *robust.Message) []byte {
		for _, part := range parts {
			b = part(b, m)
		}
		return b
	}, nil
}

func templatePart(mark, letter byte) (format, error) {
	switch string([]byte{mark, letter}) {
	case `%t`:
		return func(b []byte, m *robust.Message) []byte { return append(b, m.Topic...) }, nil
	case `%p`:
		return func(b []byte, m *robust.Message) []byte { return strconv.AppendInt(b, int64(m.Partition), 10) }, nil
	case `%o`:
		return func(b []byte, m *robust.Message) []byte { return strconv.AppendInt(b, m.Offset, 10) }, nil
	case `%T`:
		return func(b []byte, m *robust.Message) []byte { return strconv.AppendInt(b, m.Timestamp, 10) }, nil
	case `%d`:
		return func(b []byte, m *robust.Message) []byte { return m.Time().AppendFormat(b, time.RFC3339Nano) }, nil
	case `%k`:
		return func(b []byte, m *robust.Message) []byte { return append(b, m.Key...) }, nil
	case `%v`:
		return func(b []byte, m *robust.Message) []byte { return append(b, m.Value...) }, nil
	case `%h`:
		return appendHeaders, nil
	case `%%`, `\\`:
		return func(b []byte, _ *robust.Message) []byte { return append(b, letter) }, nil
	case `\n`:
		return func(b []byte, _ *robust.Message) []byte { return append(b, '\n') }, nil
	case `\t`:
		return func(b []byte, _ *robust.Message) []byte { return append(b, '\t') }, nil
	case `\0`:
		return func(b []byte, _ *robust.Message) []byte { return append(b, 0) }, nil
	}
	return nil, fmt.Errorf("--format: %c%c means nothing", mark, letter)
}

func appendHeaders(b []byte, m *robust.Message) []byte {
	for i, name := range slices.Sorted(maps.Keys(m.Headers)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, name...), '='), m.Headers[name]...)
	}
	return b
}

// appendJSON is the line that messageOfJSON reads.
func appendJSON(b []byte, m *robust.Message) []byte {
	j := messageJSON{Topic: m.Topic, Partition: &m.Partition, Offset: m.Offset, Timestamp: m.Timestamp, Headers: m.Headers}
	switch {
	case m.Key == nil:
	case utf8.Valid(m.Key):
		key := string(m.Key)
		j.Key = &key
	default:
		j.KeyBase64 = m.Key
	}
	switch {
	case m.Value == nil:
		j.Value = json.RawMessage("null")
	case utf8.Valid(m.Value):
		j.Value = marshalText(string(m.Value))
	default:
		j.ValueBase64 = m.Value
	}
	return append(append(b, marshalText(j)...), '\n')
}

// marshalText is json.Marshal for what nobody puts into HTML, with <, > and & as they are.
// Its values are such as can always be written.
func marshalText(v any) []byte {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSuffix(line.Bytes(), []byte{'\n'})
}
