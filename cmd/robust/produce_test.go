package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// anyLines are lines of any bytes but the line end, some long, some empty.
func anyLines(n int) string {
	random := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for range n {
		length := random.IntN(60)
		if random.IntN(50) == 0 {
			length = random.IntN(100_000)
		}
		for range length {
			c := byte(random.UintN(256))
			if c == '\n' {
				c = '\r'
			}
			b.WriteByte(c)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// requireSame is for what nobody wants to see in full.
func requireSame(t *testing.T, want, got string) {
	t.Helper()
	require.Len(t, got, len(want))
	require.Equal(t, sha256.Sum256([]byte(want)), sha256.Sum256([]byte(got)))
}

func TestFileByteForByte(t *testing.T) {
	t.Parallel()
	s := serve(t, "--data", t.TempDir())
	content := anyLines(1000)
	file := writeFile(t, content)
	for _, compression := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			topic := "lines-" + compression
			succeed(t, s.addr, "", "topic", "create", topic)
			succeed(t, s.addr, "", "produce", topic, file, "-z", compression)
			requireSame(t, content, succeed(t, s.addr, "", "consume", topic, "--to", "end"))
		})
	}
	t.Run("whole", func(t *testing.T) {
		succeed(t, s.addr, "", "topic", "create", "whole")
		content := content[:200_000] // A topic takes messages of up to a MiB.
		succeed(t, s.addr, content, "produce", "whole", "-f", "whole")
		requireSame(t, content, succeed(t, s.addr, "", "consume", "whole", "--to", "end", "-f", "raw"))
	})
}

// TestJSONBothWays: what consume prints as JSON, produce makes the same messages of.
func TestJSONBothWays(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "one", "--topic", "two")
	lines := []string{
		`{"key":"ann","value":"two books","headers":{"currency":"EUR"},"timestamp":1700000000000}`,
		`{"key_base64":"/wA=","value_base64":"gIE=","timestamp":1700000000001}`,
		`{"value":{"n": 1},"timestamp":1700000000002}`,
		`{"key":"","value":"","timestamp":1700000000003}`,
		`{"key":"gone","value":null,"timestamp":1700000000004}`,
	}
	succeed(t, s.addr, strings.Join(lines, "\n"), "produce", "one", "-f", "json")
	first := succeed(t, s.addr, "", "consume", "one", "--to", "end", "-f", "json")
	want := `{"topic":"one","partition":0,"offset":0,"timestamp":1700000000000,"key":"ann","value":"two books","headers":{"currency":"EUR"}}
{"topic":"one","partition":0,"offset":1,"timestamp":1700000000001,"key_base64":"/wA=","value_base64":"gIE="}
{"topic":"one","partition":0,"offset":2,"timestamp":1700000000002,"value":"{\"n\": 1}"}
{"topic":"one","partition":0,"offset":3,"timestamp":1700000000003,"key":"","value":""}
{"topic":"one","partition":0,"offset":4,"timestamp":1700000000004,"key":"gone","value":null}
`
	require.Equal(t, strings.Split(want, "\n"), strings.Split(first, "\n"))
	succeed(t, s.addr, first, "produce", "two", "-f", "json")
	require.Equal(t, strings.ReplaceAll(first, `"topic":"one"`, `"topic":"two"`), succeed(t, s.addr, "", "consume", "two", "--to", "end", "-f", "json"))
}

func TestKeysHeadersPartitions(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "orders:3")
	succeed(t, s.addr, "ann: a:b\nno key\n", "produce", "orders", "-k", ": ", "-p", "2", "-H", "a=1,2", "-H", "b=x=y")
	require.Equal(t, "orders 2 0 ann a:b a=1,2,b=x=y|orders 2 1  no key a=1,2,b=x=y|",
		succeed(t, s.addr, "", "consume", "orders", "--to", "end", "-f", "%t %p %o %k %v %h|"))
	require.Equal(t, "ann=a:b\nno key\n", succeed(t, s.addr, "", "consume", "orders", "-p", "2", "--to", "end", "-f", "keyed", "-k", "="))
	require.Equal(t, "no key\n", succeed(t, s.addr, "", "consume", "orders", "-p", "2", "--from", "1", "-n", "1"))
	require.Empty(t, succeed(t, s.addr, "", "consume", "orders", "--from", "newest", "--to", "end"))
	require.Empty(t, succeed(t, s.addr, "", "consume", "orders", "--from", "2999-01-01", "--to", "end"))
	require.Equal(t, "a:b\nno key\n", succeed(t, s.addr, "", "consume", "orders", "--from=-1h", "--to", "end"))
	o := robustWith(t, s.addr, "", "consume", "orders", "-p", "2", "--from", "9", "--to", "end")
	require.Equal(t, exitNotFound, o.code)
	require.Contains(t, o.stderr, "partition 2 of topic orders has the offsets 0 to 2, not 9")
}

// TestProduceInterrupted: what the last line says is stored is stored, and nothing else.
func TestProduceInterrupted(t *testing.T) {
	t.Parallel()
	s := serve(t, "--data", t.TempDir(), "--topic", "numbers")
	r := start(t, s.addr, "produce", "numbers")
	written := make(chan struct{})
	go func() {
		defer close(written)
		w := bufio.NewWriter(r.stdin)
		for i := 1; ; i++ {
			if _, err := fmt.Fprintln(w, i); err != nil {
				return // The program has ended.
			}
		}
	}()
	storedIn(t, s.addr, "numbers", 1000)
	r.interrupt(t)
	o := r.wait(t)
	<-written
	require.Equal(t, exitInterrupted, o.code, o.stderr)
	var n int
	_, err := fmt.Sscanf(o.lastLine(), "interrupted: %d messages stored in topic numbers", &n)
	require.NoError(t, err, o.stderr)
	require.NotContains(t, o.lastLine(), "not known")
	require.GreaterOrEqual(t, n, 1000)
	var want strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), succeed(t, s.addr, "", "consume", "numbers", "--to", "end"))
}

// TestProduceWaitingInterrupted: a terminal at which nobody types holds nothing up.
func TestProduceWaitingInterrupted(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "numbers")
	r := start(t, s.addr, "produce", "numbers")
	_, err := r.stdin.Write([]byte("one\ntwo\nhalf a li"))
	require.NoError(t, err)
	storedIn(t, s.addr, "numbers", 2)
	r.interrupt(t)
	o := r.wait(t)
	require.Equal(t, exitInterrupted, o.code)
	require.Contains(t, o.lastLine(), "interrupted: 2 messages stored in topic numbers")
}

func TestProduceRefused(t *testing.T) {
	t.Parallel()
	s := serve(t)
	succeed(t, s.addr, "", "topic", "create", "small", "--set", "max.message.bytes=1024")
	o := robustWith(t, s.addr, "fits\n"+strings.Repeat("x", 5000)+"\n", "produce", "small")
	require.Equal(t, exitUsage, o.code, o.stderr)
	require.Contains(t, o.stderr, "standard input, line 2: ")
	require.Contains(t, o.stderr, "max.message.bytes")
	require.Contains(t, o.lastLine(), "1 message stored in topic small")
	require.Equal(t, "fits\n", succeed(t, s.addr, "", "consume", "small", "--to", "end"))

	o = robustWith(t, s.addr, "text\n", "produce", "small", "-f", "json")
	require.Equal(t, exitUsage, o.code)
	require.Contains(t, o.stderr, "standard input, line 1: ")
	o = robustWith(t, s.addr, "too long\n", "produce", "small", "--max-line", "4")
	require.Equal(t, exitUsage, o.code)
	require.Contains(t, o.stderr, "the line is longer than 4 bytes")
	// The broker keeps everything in memory and cannot promise that.
	o = robustWith(t, s.addr, "text\n", "produce", "small", "--acks", "synced")
	require.Equal(t, exitUndelivered, o.code, o.stderr)
}

func TestProduceSummaryJSON(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "one")
	require.Contains(t, succeed(t, s.addr, "a\nb\n", "produce", "one", "-o", "json"), `"stored": 2`)
}

// TestJSONPartitions: a line says where it goes, unless the command line does.
func TestJSONPartitions(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "three:3", "--topic", "copy:3", "--topic", "moved:3", "--topic", "one")
	lines := "{\"partition\":2,\"value\":\"a\"}\n{\"partition\":0,\"value\":\"b\"}\n"
	succeed(t, s.addr, lines, "produce", "three", "-f", "json")
	read := func(topic string, p string) string {
		return succeed(t, s.addr, "", "consume", topic, "-p", p, "--to", "end")
	}
	require.Equal(t, []string{"b\n", "", "a\n"}, []string{read("three", "0"), read("three", "1"), read("three", "2")})
	printed := succeed(t, s.addr, "", "consume", "three", "--to", "end", "-o", "json")
	succeed(t, s.addr, printed, "produce", "copy", "-f", "json")
	require.Equal(t, []string{"b\n", "", "a\n"}, []string{read("copy", "0"), read("copy", "1"), read("copy", "2")})
	succeed(t, s.addr, printed, "produce", "moved", "-f", "json", "-p", "1")
	require.Len(t, read("moved", "1"), 4)

	// A topic with fewer.
	o := robustWith(t, s.addr, lines, "produce", "one", "-f", "json")
	require.Equal(t, exitNotFound, o.code, o.stderr)
	require.Contains(t, o.stderr, "standard input, line 1: ")
	require.Contains(t, o.stderr, "-p any")
	succeed(t, s.addr, lines, "produce", "one", "-f", "json", "-p", "any")
	require.True(t, strings.HasSuffix(read("one", "0"), "a\nb\n"))
}

// TestJSONInput: an empty line, which is no end, and lines that are no message.
func TestJSONInput(t *testing.T) {
	t.Parallel()
	s := serve(t, "--topic", "one", "--topic", "odd")
	succeed(t, s.addr, "\n{\"value\":\"a <b> & c\"}\n \n{\"value\":\"d\"}\n\n", "produce", "one", "-f", "json")
	require.Equal(t, "a <b> & c\nd\n", succeed(t, s.addr, "", "consume", "one", "--to", "end"))
	require.Contains(t, succeed(t, s.addr, "", "consume", "one", "--to", "end", "-f", "json"), `"value":"a <b> & c"`)
	for _, line := range []string{
		`{"value":"a"}}`, `{"value":"a"} {}`, `{"value":"a"`, `null`, `[]`, `{"wrong":1}`, `{"partition":-1}`,
		`{"key":"a","key_base64":"YQ=="}`, `{"value":"a","value_base64":"YQ=="}`,
	} {
		o := robustWith(t, s.addr, line+"\n", "produce", "odd", "-f", "json")
		require.Equal(t, exitUsage, o.code, line)
		require.Contains(t, o.stderr, "standard input, line 1: ", line)
		require.Contains(t, o.lastLine(), "0 messages stored", line)
	}
}

// TestOutlive: results are waited for as long as nobody wants the program to end.
func TestOutlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		end, cancel := outlive(ctx, 10*time.Second)
		defer cancel()
		began := time.Now()
		time.AfterFunc(time.Hour, interrupt)
		<-end.Done()
		require.Equal(t, time.Hour+10*time.Second, time.Since(began))
	})
}
