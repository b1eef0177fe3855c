package robust

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// scanInPieces finds the end of the frame that text begins with, given size bytes
// more at a time, the way a connection is read: what was not consumed comes again.
func scanInPieces(f *frameScanner, text []byte, size int) (n int, done bool, err error) {
	for end := 0; end < len(text) && !done && err == nil; {
		end = min(end+size, len(text))
		var m int
		m, done, err = f.scan(text[n:end])
		n += m
	}
	return n, done, err
}

func TestFrameScanner(t *testing.T) {
	tests := []struct {
		name, text string
		end        int // -1: there is none
	}{
		{"empty", ``, -1},
		{"space", " \t\r\n", -1},
		{"empty object", `{}`, 2},
		{"white space before it", " \n\t{} ", 5},
		{"two frames", `{"a":1}{"b":2}`, 7},
		{"line end", "{\"a\":1}\n{}", 7},
		{"array", `[{"a":[1]},2] 3`, 13},
		{"nested", `{"a":{"b":[{"c":{}}]}}x`, 22},
		{"brackets in strings", `{"}":"]}{[","]":"{"}`, 20},
		{"escaped quote", `{"a":"\"}"}`, 11},
		{"escaped backslash", `{"a":"\\"}`, 10},
		{"escaped backslash and quote", `{"a":"\\\"}\\"}`, 15},
		{"ends in an escape", `{"a":"\`, -1},
		{"ends in an escaped escape", `{"a":"\\`, -1},
		{"ends in a string", `{"a":"b`, -1},
		{"ends in an object", `{"a":"b"`, -1},
		{"unicode", `{"đ":"\u007d😀"}`, 19},
		{"as deep as may be", strings.Repeat("[", maxNesting) + strings.Repeat("]", maxNesting), 2 * maxNesting},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for size := 1; size <= len(tt.text)+1; size++ {
				var f frameScanner
				n, done, err := scanInPieces(&f, []byte(tt.text), size)
				require.NoError(t, err)
				require.Equal(t, tt.end >= 0, done)
				if done {
					require.Equal(t, tt.end, n)
					require.Equal(t, frameScanner{}, f, "it is ready for the next frame")
				}
			}
		})
	}
	for _, open := range []string{"[", `{"a":`, `[{"":`} {
		var f frameScanner
		_, done, err := f.scan([]byte(strings.Repeat(open, maxNesting+1)))
		require.False(t, done)
		require.ErrorIs(t, err, ErrMalformed)
	}
}

// A string of escapes used to be searched to its end again for each of them, so that
// one frame took minutes.
func TestFrameScannerManyEscapes(t *testing.T) {
	for _, escape := range []string{`\\`, `\n`, `\"`, `\u0000`} {
		text := []byte(`{"a":"` + strings.Repeat(escape, defaultMaxFrameBytes/len(escape)) + `"}`)
		var f frameScanner
		n, done, err := f.scan(text)
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, len(text), n)
	}
}

// What the scanner takes, it reads as encoding/json does; it may take less.
func TestScannerInteger(t *testing.T) {
	usual := []string{"0", "-0", "7", "-7", "10", "123456789012345678", "-123456789012345678", "2147483647", "-2147483648"}
	for _, text := range usual {
		s := scanner{b: []byte(" \n" + text + " ,")}
		got, ok := s.integer()
		require.True(t, ok, text)
		want, err := strconv.ParseInt(text, 10, 64)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.True(t, s.eat(','))
		require.True(t, s.end())
	}
	for _, text := range []string{
		"", "-", "+1", "01", "-01", "00", "1.0", "1.", ".5", "1e3", "1E3", "0e0", "0.0", "- 1", "0x1", "NaN", "null", `"1"`,
		"9223372036854775807", "-9223372036854775808", "9223372036854775808", strings.Repeat("9", 40),
	} {
		s := scanner{b: []byte(text)}
		_, ok := s.integer()
		ok = ok && s.end()
		require.False(t, ok, text)
	}
	var p produceResponse
	require.NoError(t, decodePayload([]byte(`{"offset":9223372036854775807,"timestamp":-9223372036854775808}`), &p))
	require.Equal(t, int64(math.MaxInt64), p.Offset)
	require.Equal(t, int64(math.MinInt64), p.Timestamp)

	for _, text := range []string{"2147483648", "-2147483649", "4294967296"} {
		s := scanner{b: []byte(text)}
		var v int32
		require.False(t, s.int32(&v), text)
	}
}

func TestScannerText(t *testing.T) {
	for _, text := range []string{``, `a`, `topic-0.x_Y`, `người gửi`, `😀`, "\x7f", `{,:]}`, "\u2028", "\ufffd"} {
		s := scanner{b: []byte(` "` + text + `"`)}
		var got string
		require.True(t, s.str(&got), text)
		require.True(t, s.end())
		require.Equal(t, text, got)
	}
	for _, text := range []string{``, `"`, `"a`, `a"`, `"\n"`, `"\""`, `"\`, "\"\x00\"", "\"\n\"", "\"\x1f\"", "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", `'a'`, `null`} {
		s := scanner{b: []byte(text)}
		var got string
		require.False(t, s.str(&got), text)
	}
}

func TestScannerBase64(t *testing.T) {
	for text, want := range map[string][]byte{
		`null`: nil, `""`: {}, `"YQ=="`: []byte("a"), `"YWI="`: []byte("ab"), `"YWJj"`: []byte("abc"), `"/+8="`: {0xff, 0xef},
	} {
		s := scanner{b: []byte(" " + text + " ")}
		got := []byte("old")
		require.True(t, s.base64(&got), text)
		require.True(t, s.end(), text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{``, `nul`, `n`, `"`, `"YQ`, `"YQ"`, `"YQ="`, `"Y"`, `"YQ==="`, `"YR==YQ=="`, "\"YQ=\n=\"", "\"YWJj\n\r\n\n\"", "\"YQ\n\n\n\n==\"", "\"\n\n\n\n\"", "\"YQ\r==\"", `"Y Q="`, `"Y\/Q="`, `"-_-_"`, `7`, `[]`} {
		s := scanner{b: []byte(text)}
		var got []byte
		require.False(t, s.base64(&got), text)
	}
}

func TestScannerStringMap(t *testing.T) {
	for text, want := range map[string]map[string]string{
		`null`: nil, `{}`: {}, `{ }`: {}, `{"a":"b"}`: {"a": "b"}, ` { "a" : "b" , "" : "" } `: {"a": "b", "": ""},
		`{"a":"1","a":"2"}`: {"a": "2"}, `{"A":"1","a":"2"}`: {"A": "1", "a": "2"}, `{"đ":"{}"}`: {"đ": "{}"},
	} {
		s := scanner{b: []byte(text)}
		var got map[string]string
		require.True(t, s.stringMap(&got), text)
		require.True(t, s.end(), text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{``, `{`, `{"a"}`, `{"a":}`, `{"a":1}`, `{"a":null}`, `{"a":"b",}`, `{,}`, `{"a":"b" "c":"d"}`, `{"a":"\u0062"}`, `{"a":"b"]`, `{"a":"b"`, `[]`, `nul`} {
		s := scanner{b: []byte(text)}
		var got map[string]string
		require.False(t, s.stringMap(&got), text)
	}
}

func TestScannerRaw(t *testing.T) {
	for _, text := range []string{`{}`, `{"a":[1,{"b":"}"}]}`, `""`, `"e30="`, `null`, `{"not":json]`, `"not base64, đ"`} {
		s := scanner{b: []byte(" " + text + " ")}
		got, ok := s.raw()
		require.True(t, ok, text)
		require.Equal(t, text, string(got))
		require.True(t, s.end())
	}
	for _, text := range []string{``, ` `, `{`, `{"a":"`, `"`, `"a\n"`, `"\"`, "\"a\n\"", "\"a\r\"", `nul`, `true`, `1`, `[]`} {
		s := scanner{b: []byte(text)}
		_, ok := s.raw()
		require.False(t, ok, text)
	}
}

func TestAppendString(t *testing.T) {
	for _, text := range []string{
		"", "a", "người gửi", "😀", `"`, `\`, "a\"b\\c", "\x00\x01\x1f\x7f", "\n\r\t\b\f", "<script>&amp;", "\u2028\u2029",
		"\xff", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\ufffd", "đ\"\xff", strings.Repeat("x", 1000),
	} {
		got := appendString([]byte("before"), text)
		require.True(t, bytes.HasPrefix(got, []byte("before\"")))
		got = got[len("before"):]
		require.NotContains(t, string(got), "\n", "a frame is one line")
		require.True(t, utf8.Valid(got))
		var back, want string
		require.NoError(t, json.Unmarshal(got, &back))
		std, err := json.Marshal(text)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(std, &want))
		require.Equal(t, want, back)
	}
}

func TestAppendHeadersSorted(t *testing.T) {
	require.Empty(t, appendHeaders(nil, nil))
	require.Empty(t, appendHeaders(nil, map[string]string{}))
	many := make(map[string]string)
	for i := range 50 {
		many[strconv.Itoa(i*7919%1000)] = "v"
	}
	want, err := json.Marshal(many)
	require.NoError(t, err)
	require.Equal(t, `,"headers":`+string(want), string(appendHeaders(nil, many)))
}

// TestFlatObject holds that what is found at many bytes at once is what frameScanner finds.
func TestFlatObject(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const alphabet = `{}[]"\a,:`
	flat := 0
	for range 300_000 {
		b := []byte{'{'}
		for range rng.IntN(12) {
			b = append(b, alphabet[rng.IntN(len(alphabet))])
		}
		n := flatObject(b)
		if n == 0 {
			continue
		}
		flat++
		f := frameScanner{depth: 1, outside: 1}
		end, done, err := f.scan(b)
		require.NoError(t, err)
		require.True(t, done, "%s", b)
		require.Equal(t, end, n, "%s", b)
	}
	require.Greater(t, flat, 10_000)
	require.Equal(t, 7, flatObject([]byte(`{"a":1},{}`)))
}
