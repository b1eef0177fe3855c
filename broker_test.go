package robust_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	robust "github.com/aminofox/robust-go-sdk"
)

// rawConn speaks to a broker by hand.
type rawConn struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func dialRaw(t testing.TB, b *robust.Broker) *rawConn {
	t.Helper()
	nc, err := b.Dial(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	return &rawConn{t, nc, bufio.NewReader(nc)}
}

// ask sends a line and returns the line that comes back.
func (c *rawConn) ask(line string) string {
	c.t.Helper()
	_, err := fmt.Fprint(c.nc, line)
	require.NoError(c.t, err)
	return c.line()
}

func (c *rawConn) line() string {
	c.t.Helper()
	answer, err := c.r.ReadString('\n')
	require.NoError(c.t, err)
	return strings.TrimSuffix(answer, "\n")
}

// What a person types with nc is answered as documented, in either form.
func TestBrokerByHand(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	addr, err := b.Listen("127.0.0.1:0")
	require.NoError(t, err)
	nc, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr.String())
	require.NoError(t, err)
	defer nc.Close()
	c := &rawConn{t, nc, bufio.NewReader(nc)}
	require.Equal(t, `{"request_id":"1","success":true,"error":"","payload":{"topics":["demo"]}}`, //nolint:testifylint // byte for byte
		c.ask(`{"request_id":"1","request_type":4,"payload":{}}`+"\n"))
	require.Equal(t, `{"request_id":"2","success":true,"error":"","payload":"eyJ0b3BpY3MiOlsiZGVtbyJdfQ=="}`, //nolint:testifylint // as above
		c.ask(`{"type":4,"request_id":"2","payload":"e30="}`+"\n"))
	// Without a line end, over several lines, two at once.
	require.Contains(t, c.ask(`{"request_id":"3","request_type":4}`), `"request_id":"3","success":true`)
	require.Contains(t, c.ask("\r\n {\n\t\"request_id\" : \"4\",\n\t\"request_type\": 4\n}\n"), `"request_id":"4","success":true`)
	require.Contains(t, c.ask(`{"request_id":"5","request_type":4}{"request_id":"6","request_type":4}`), `"request_id":"5"`)
	require.Contains(t, c.line(), `"request_id":"6"`)
}

func TestBrokerRefusals(t *testing.T) {
	b := newBroker(t, robust.WithTopic("demo", 1))
	c := dialRaw(t, b)
	for request, want := range map[string]string{
		`{"request_id":"a","request_type":99}`:                                         `{"request_id":"a","success":false,"error":"not supported by the broker: unknown request type 99","error_code":"UNSUPPORTED","payload":{"error":"not supported by the broker: unknown request type 99"}}`,
		`{"request_id":"b","type":14}`:                                                 `"error_code":"UNSUPPORTED"`,
		`{"request_id":"c","request_type":0,"payload":{"topic":"missing"}}`:            `"error":"topic not found: missing","error_code":"TOPIC_NOT_FOUND"`,
		`{"request_id":"d","request_type":0,"payload":{"topic":5}}`:                    `"error_code":"MALFORMED"`,
		`{"request_id":"e","request_type":0,"payload":{"topic":"demo","partition":7}}`: `"error_code":"PARTITION_NOT_FOUND"`,
		`{"request_id":"f","request_type":1,"payload":{"topic":"demo","offset":-1}}`:   `"error_code":"OFFSET_OUT_OF_RANGE"`,
		`{"request_id":"g","request_type":0,"payload":"!"}`:                            `"success":false`,
		`{"request_id":7,"request_type":4}`:                                            `"error_code":"INVALID_REQUEST"`,
		`[1,2]`:                                                                        `"error_code":"INVALID_REQUEST"`,
		`"text"`:                                                                       `"error_code":"INVALID_REQUEST"`,
		`{"request_id":"h","request_type":6,"payload":{"group_id":"g"}}`:               `"error":"invalid request: 0 topics, want 1 to 1000"`,
		`{"request_id":"i","request_type":15,"payload":{"group_id":"g"}}`:              `"error_code":"GROUP_NOT_FOUND"`,
	} {
		require.Contains(t, c.ask(request+"\n"), want, request)
	}
	require.Contains(t, c.ask(`{"request_id":"z","request_type":4}`), `"success":true`, "the connection lives on")
}

// Bytes that are not a frame are answered before the connection is closed.
func TestBrokerHangsUpWithAnAnswer(t *testing.T) {
	b := newBroker(t, robust.WithMaxFrameBytes(4096))
	for _, garbage := range []string{
		"GET / HTTP/1.1\r\n\r\n",
		`{"request_id":}`,
		`{"request_id":"1","request_type":4,"payload":{]}}`,
		strings.Repeat("[", 100),
		"tru\n",
		`{"request_id":"` + strings.Repeat("x", 5000),
	} {
		code := "MALFORMED"
		if len(garbage) > 4096 {
			code = "MESSAGE_TOO_LARGE"
		}
		c := dialRaw(t, b)
		require.Contains(t, c.ask(garbage), `"error_code":"`+code+`"`, garbage)
		_, err := c.r.ReadByte()
		require.Error(t, err, garbage)
	}
}

// A held fetch holds up nothing that comes behind it on its connection.
func TestBrokerHeldFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := robust.NewBroker(robust.WithTopic("demo", 1))
		require.NoError(t, err)
		defer b.Close()
		c := dialRaw(t, b)
		hold := `{"request_id":"held","request_type":1,"payload":{"topic":"demo","partition":0,"offset":0,"max_wait_ms":10000}}`
		require.Contains(t, c.ask(hold+`{"request_id":"quick","request_type":4}`), `"request_id":"quick"`)
		began := time.Now()
		require.Contains(t, c.line(), `"request_id":"held","success":true`)
		require.Equal(t, 10*time.Second, time.Since(began))
		// A v0 peer expects its answers in order, and at once.
		require.Contains(t, c.ask(`{"request_id":"v0","type":1,"payload":{"topic":"demo","partition":0,"offset":0,"max_wait_ms":10000}}`), `"request_id":"v0"`)
		require.Equal(t, 10*time.Second, time.Since(began))
	})
}

// Shutdown answers what has come, held fetches too, before it closes.
func TestBrokerShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := robust.NewBroker(robust.WithTopic("demo", 1))
		require.NoError(t, err)
		c := dialRaw(t, b)
		_, err = fmt.Fprint(c.nc, `{"request_id":"held","request_type":1,"payload":{"topic":"demo","partition":0,"offset":0,"max_wait_ms":60000}}`)
		require.NoError(t, err)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, b.Shutdown(t.Context()))
		require.Contains(t, c.line(), `"request_id":"held","success":true`)
		_, err = c.r.ReadByte()
		require.Error(t, err)
		require.LessOrEqual(t, time.Since(began), time.Second, "it listens on for a moment, lest its last words are lost")
		require.NoError(t, b.Shutdown(t.Context()))
		require.NoError(t, b.Close())
		_, err = b.Dial(t.Context(), "", "")
		require.ErrorIs(t, err, robust.ErrClosed)
		_, err = b.Listen("127.0.0.1:0")
		require.ErrorIs(t, err, robust.ErrClosed)
	})
}

// A peer that does not read its answer holds up Shutdown only as long as its context.
func TestBrokerShutdownBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := robust.NewBroker(robust.WithTopic("demo", 1), robust.WithLogger(nil))
		require.NoError(t, err)
		c := dialRaw(t, b)
		value := strings.Repeat("AAAA", 20_000)
		for range 10 {
			require.Contains(t, c.ask(`{"request_id":"p","request_type":0,"payload":{"topic":"demo","partition":0,"value":"`+value+`"}}`), `"success":true`)
		}
		_, err = fmt.Fprint(c.nc, `{"request_id":"f","request_type":1,"payload":{"topic":"demo","partition":0,"offset":0}}`)
		require.NoError(t, err)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err = b.Shutdown(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "1 connections open")
		require.Equal(t, time.Second, time.Since(began))
	})
}

func TestBrokerServe(t *testing.T) {
	b := newBroker(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error)
	go func() { served <- b.Serve(l) }()
	c, err := robust.New(robust.WithBrokers(l.Addr().String()))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Ping(t.Context()))
	_, err = b.Listen(l.Addr().String())
	require.ErrorContains(t, err, l.Addr().String())
	require.NoError(t, b.Close())
	require.ErrorIs(t, <-served, robust.ErrClosed)
	require.ErrorIs(t, b.Serve(l), robust.ErrClosed)
	require.Error(t, c.Ping(t.Context()))
}

// One connection more than the limit is told so.
func TestBrokerConnectionLimit(t *testing.T) {
	b := newBroker(t, robust.WithConnectionLimit(2), robust.WithLogger(nil))
	first, second := dialRaw(t, b), dialRaw(t, b)
	require.Contains(t, first.ask(`{"request_id":"1","request_type":4}`), `"success":true`)
	require.Contains(t, second.ask(`{"request_id":"1","request_type":4}`), `"success":true`)
	third := dialRaw(t, b)
	require.Contains(t, third.line(), `"error_code":"OVERLOADED","retriable":true`)
	c, err := b.Client(robust.WithLogger(nil))
	require.NoError(t, err)
	defer c.Close()
	err = c.Ping(t.Context())
	require.ErrorIs(t, err, robust.ErrNoBroker)
	require.ErrorIs(t, err, robust.ErrOverloaded)
	require.NoError(t, first.nc.Close())
	require.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, time.Minute, 10*time.Millisecond)
}

// Topics and messages in a storage outlive the broker.
func TestBrokerReopensStorage(t *testing.T) {
	storage := robust.NewMemoryStorage()
	for round := range 3 {
		b, err := robust.NewBroker(robust.WithStorage(storage), robust.WithTopic("demo", 1))
		require.NoError(t, err)
		c, err := b.Client()
		require.NoError(t, err)
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		_, offset, err := producer.SendMessage(t.Context(), robust.NewMessage("demo", nil))
		require.NoError(t, err)
		require.Equal(t, int64(round), offset)
		require.NoError(t, c.Close())
		require.NoError(t, b.Close())
	}
}

// Messages go when they are too old, whether or not anything is produced.
func TestBrokerRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := robust.New(robust.WithEmbeddedBroker(robust.WithTopic("demo", 1), robust.WithRetention(3*time.Hour, 0)))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.Admin().CreateTopic(t.Context(), "short", 1, map[string]string{"retention.hours": "1"}))
		producer, err := c.SyncProducer()
		require.NoError(t, err)
		for _, topic := range []string{"demo", "short"} {
			_, _, err := producer.SendMessage(t.Context(), robust.NewMessage(topic, nil))
			require.NoError(t, err)
		}
		oldest := func(topic string) int64 {
			offsets, err := c.Admin().ListOffsets(t.Context(), topic, time.Time{})
			require.NoError(t, err)
			return offsets[0]
		}
		<-time.After(59 * time.Minute)
		require.Equal(t, int64(0), oldest("short"))
		<-time.After(2 * time.Minute)
		require.Equal(t, int64(1), oldest("short"))
		require.Equal(t, int64(0), oldest("demo"))
		<-time.After(2 * time.Hour)
		require.Equal(t, int64(1), oldest("demo"))
	})
}
