package robust

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	base64fast "github.com/segmentio/asm/base64"
)

var jsonNull = []byte("null") //nolint:gochecknoglobals // a constant in all but syntax

// maxNesting is how deep objects and arrays of a frame may stand in one another. The
// deepest published payload has five levels.
const maxNesting = 64

// frameScanner finds the end of one JSON object or array in a stream, across as
// many reads as it takes. It looks at strings and brackets only; whether the text
// in between is JSON is for the decoder to find out.
type frameScanner struct {
	depth    int
	outside  int // depth at which the frame is over
	inString bool
}

// scan looks at b, the bytes that follow those it has seen. It returns how many
// belong to the frame, and whether the frame is complete; if not, all of b does,
// less an escape that b has cut in two.
func (f *frameScanner) scan(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		if f.inString {
			if n = f.stringEnd(b, n); f.inString {
				return n, false, nil
			}
			continue
		}
		switch b[n] {
		case '"':
			f.inString = true
		case '{', '[':
			if f.depth++; f.depth > maxNesting {
				return n, false, fmt.Errorf("%w: frame is nested more than %d deep", ErrMalformed, maxNesting)
			}
		case '}', ']':
			if f.depth--; f.depth <= f.outside {
				f.depth = f.outside
				return n + 1, true, nil
			}
		}
		n++
	}
	return n, false, nil
}

// stringEnd goes on in a string at b[n] and returns what follows its closing quote.
// Without one inString stays, and what is returned is the end of b or an escape
// that b has cut in two. Each byte is looked at twice at most, however many escapes
// there are.
func (f *frameScanner) stringEnd(b []byte, n int) int {
	for {
		end := len(b)
		if i := bytes.IndexByte(b[n:], '"'); i >= 0 {
			end = n + i
		}
		for n < end {
			i := bytes.IndexByte(b[n:end], '\\')
			if i < 0 {
				n = end
				break
			}
			if n+i+1 == len(b) {
				return n + i
			}
			n += i + 2
		}
		switch {
		case n > end: // The quote was escaped.
		case end == len(b):
			return end
		default:
			f.inString = false
			return end + 1
		}
	}
}

// scanner reads JSON of the plain sort that peers write. Every method reports
// whether it could; on false the whole text is left to encoding/json, so that
// behaviour on anything unusual is encoding/json's: escapes, floats, keys in
// another case or given twice, values of another type, syntax errors.
type scanner struct {
	b []byte
	i int

	// room is what is left of the block that keys and values are decoded into.
	// They share blocks so that a fetch costs few allocations; a block is bounded
	// so that whoever keeps one message of many does not keep them all.
	room []byte
}

const maxRoom = 64 << 10

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

// eat consumes c and the white space before it.
func (s *scanner) eat(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// next returns the byte that the next token begins with, 0 at the end.
func (s *scanner) next() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// end tells that nothing but white space is left.
func (s *scanner) end() bool { return s.next() == 0 && s.i == len(s.b) }

// plainText tells which bytes of a string neither end it nor need a second look.
var plainText = func() (plain [256]bool) { //nolint:gochecknoglobals // a constant in all but syntax
	for c := 0x20; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// text returns the inside of a string that has no escapes and is valid UTF-8.
func (s *scanner) text() ([]byte, bool) {
	if !s.eat('"') {
		return nil, false
	}
	rest := s.b[s.i:]
	ascii := true
	for n, c := range rest {
		switch {
		case plainText[c]:
		case c == '"':
			s.i += n + 1
			return rest[:n], ascii || utf8.Valid(rest[:n])
		case c < utf8.RuneSelf:
			return nil, false
		default:
			ascii = false
		}
	}
	return nil, false
}

// str is text as a string, into dst.
func (s *scanner) str(dst *string) bool {
	t, ok := s.text()
	if ok {
		*dst = string(t)
	}
	return ok
}

// sameStr is str for a value that mostly is the previous one again.
func (s *scanner) sameStr(previous, dst *string) bool {
	t, ok := s.text()
	if ok && string(t) != *previous {
		*previous = string(t)
	}
	*dst = *previous
	return ok
}

// base64 reads the bytes that a base64 string stands for, nil for null, into dst.
func (s *scanner) base64(dst *[]byte) bool {
	if s.next() == 'n' {
		*dst = nil
		return s.null()
	}
	if !s.eat('"') {
		return false
	}
	n := bytes.IndexByte(s.b[s.i:], '"')
	if n < 0 {
		return false
	}
	t := s.b[s.i : s.i+n]
	s.i += n + 1
	if n == 0 {
		*dst = []byte{}
		return true
	}
	val := s.take(base64.StdEncoding.DecodedLen(n))
	size, err := base64fast.StdEncoding.Decode(val, t)
	*dst = val[:size]
	// The decoder skips line ends, which JSON does not allow in a string: without
	// them, all but the padding makes three bytes of four.
	return err == nil && n%4 == 0 && size >= n/4*3-2
}

// take returns n bytes of the shared block, or of their own if they are many.
func (s *scanner) take(n int) []byte {
	if n > len(s.room) {
		if n > maxRoom/4 {
			return make([]byte, n)
		}
		// Of plain messages a third or so is keys and values, once decoded.
		s.room = make([]byte, max(n, min((len(s.b)-s.i)*3/8, maxRoom)))
	}
	val := s.room[:n:n]
	s.room = s.room[n:]
	return val
}

// integer reads a number without fraction or exponent that fits an int64.
func (s *scanner) integer() (int64, bool) {
	s.space()
	start := s.i
	if s.i < len(s.b) && s.b[s.i] == '-' {
		s.i++
	}
	digits := s.i
	var v uint64
	for s.i < len(s.b) {
		c := s.b[s.i] - '0'
		if c > 9 {
			break
		}
		v = v*10 + uint64(c)
		s.i++
	}
	n := s.i - digits
	// Eighteen digits cannot overflow; the rest goes the slow way. A leading
	// zero is not JSON.
	if n == 0 || n > 18 || n > 1 && s.b[digits] == '0' {
		return 0, false
	}
	if s.i < len(s.b) {
		if c := s.b[s.i]; c == '.' || c == 'e' || c == 'E' {
			return 0, false
		}
	}
	if digits > start {
		return -int64(v), true
	}
	return int64(v), true
}

// int64 is integer into dst.
func (s *scanner) int64(dst *int64) bool {
	v, ok := s.integer()
	if ok {
		*dst = v
	}
	return ok
}

// int32 is integer into dst, if it fits.
func (s *scanner) int32(dst *int32) bool {
	v, ok := s.integer()
	if !ok || v != int64(int32(v)) {
		return false
	}
	*dst = int32(v)
	return true
}

// int is integer into dst, if it fits.
func (s *scanner) int(dst *int) bool {
	v, ok := s.integer()
	if !ok || v != int64(int(v)) {
		return false
	}
	*dst = int(v)
	return true
}

func (s *scanner) word(w string) bool {
	s.space()
	if len(s.b)-s.i >= len(w) && string(s.b[s.i:s.i+len(w)]) == w {
		s.i += len(w)
		return true
	}
	return false
}

func (s *scanner) null() bool { return s.word("null") }

// bool reads true or false into dst.
func (s *scanner) bool(dst *bool) bool {
	if s.word("true") {
		*dst = true
		return true
	}
	*dst = false
	return s.word("false")
}

// raw returns an object, a string or null, unexamined: whoever decodes it finds out
// whether the object is JSON and the string base64. Only escapes, and line ends,
// which base64's decoder would skip, are left to encoding/json.
func (s *scanner) raw() ([]byte, bool) {
	first := s.next()
	start := s.i
	switch first {
	case '{':
		n := flatObject(s.b[s.i:])
		if n == 0 {
			f := frameScanner{depth: 1, outside: 1} // The envelope.
			var done bool
			var err error
			if n, done, err = f.scan(s.b[s.i:]); !done || err != nil {
				return nil, false
			}
		}
		s.i += n
	case '"':
		s.i++
		n := bytes.IndexByte(s.b[s.i:], '"')
		if n < 0 {
			return nil, false
		}
		t := s.b[s.i : s.i+n]
		if bytes.IndexByte(t, '\\') >= 0 || bytes.IndexByte(t, '\n') >= 0 || bytes.IndexByte(t, '\r') >= 0 {
			return nil, false
		}
		s.i += n + 1
	case 'n':
		if !s.null() {
			return nil, false
		}
	default:
		return nil, false
	}
	return s.b[start:s.i], true
}

// flatObject returns how long the object is that b begins with, if nothing in it is an
// object, an array or an escape: 0 if that cannot be told. It looks for the end as
// frameScanner does, at many bytes at once.
func flatObject(b []byte) int {
	n := bytes.IndexByte(b, '}') + 1
	if n == 0 {
		return 0
	}
	object := b[:n]
	// After an even number of quotes, none of them escaped, the brace is in no string.
	if bytes.Count(object, []byte{'"'})%2 != 0 || bytes.IndexByte(object, '\\') >= 0 ||
		bytes.IndexByte(object[1:], '{') >= 0 || bytes.IndexByte(object, '[') >= 0 || bytes.IndexByte(object, ']') >= 0 {
		return 0
	}
	return n
}

// object reads an object, giving each key to field, which reads the value and
// returns a bit of its own: a key that comes twice, or that field does not know
// (0), makes the object unusual. Unknown keys are too: encoding/json compares
// keys without regard to case, and it skips values that this scanner would have
// to check.
func (s *scanner) object(field func(key []byte) (bit uint, ok bool)) bool {
	if !s.eat('{') {
		return false
	}
	if s.eat('}') {
		return true
	}
	var seen uint
	for {
		key, ok := s.text()
		if !ok || !s.eat(':') {
			return false
		}
		bit, ok := field(key)
		if !ok || bit == 0 || seen&bit != 0 {
			return false
		}
		seen |= bit
		if s.eat(',') {
			continue
		}
		return s.eat('}')
	}
}

// stringMap reads an object of strings, nil for null. A key that comes twice
// keeps its last value, as in encoding/json.
func (s *scanner) stringMap(dst *map[string]string) bool {
	if s.next() == 'n' {
		return s.null()
	}
	if !s.eat('{') {
		return false
	}
	m := make(map[string]string, 1)
	*dst = m
	if s.eat('}') {
		return true
	}
	// One string holds the object's text, of which the keys and values are parts.
	f := frameScanner{depth: 1}
	n, done, err := f.scan(s.b[s.i:])
	if !done || err != nil {
		return false
	}
	start := s.i
	all := string(s.b[start : start+n])
	part := func() (string, bool) {
		t, ok := s.text()
		if !ok {
			return "", false
		}
		end := s.i - 1 - start
		return all[end-len(t) : end], true
	}
	for {
		k, ok := part()
		if !ok || !s.eat(':') {
			return false
		}
		v, ok := part()
		if !ok {
			return false
		}
		m[k] = v
		if s.eat(',') {
			continue
		}
		return s.eat('}')
	}
}

// appendString appends s as a JSON string.
func appendString[S string | []byte](dst []byte, s S) []byte {
	ascii := true
	for i := range len(s) {
		c := s[i]
		if c < 0x20 || c == '"' || c == '\\' {
			return appendUnusualString(dst, string(s))
		}
		if c >= utf8.RuneSelf {
			ascii = false
		}
	}
	if !ascii && !utf8.ValidString(string(s)) {
		return appendUnusualString(dst, string(s))
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// appendUnusualString leaves escaping, and the repair of invalid UTF-8, to
// encoding/json.
func appendUnusualString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		// A string cannot fail to marshal; strconv keeps the frame whole if
		// that ever changes.
		return strconv.AppendQuoteToASCII(dst, s)
	}
	return append(dst, b...)
}

// appendBytes appends b as base64, or null.
func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return append(dst, jsonNull...)
	}
	dst = append(dst, '"')
	dst = appendBase64(dst, b)
	return append(dst, '"')
}

// fastEncode is from how many bytes on the vector encoder takes less time than the standard
// library's. Decoding, it does so of any text.
const fastEncode = 192

func appendBase64(dst, b []byte) []byte {
	if len(b) < fastEncode {
		return base64.StdEncoding.AppendEncode(dst, b)
	}
	n := base64.StdEncoding.EncodedLen(len(b))
	dst = slices.Grow(dst, n)
	base64fast.StdEncoding.Encode(dst[len(dst):len(dst)+n], b)
	return dst[:len(dst)+n]
}

// unmarshalJSON is json.Unmarshal with errors fit for a peer, which knows nothing of
// Go's types.
func unmarshalJSON(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	if te := (*json.UnmarshalTypeError)(nil); errors.As(err, &te) {
		if te.Field == "" {
			return fmt.Errorf("want an object, not %s", te.Value)
		}
		return fmt.Errorf("%s cannot be %s", te.Field, te.Value)
	}
	return err
}
