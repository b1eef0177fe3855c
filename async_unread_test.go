package robust

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// deaf is a proxy's script for a broker that reads nothing behind the first message, and with
// plain one that knows no extension.
func deaf(t testing.TB, plain bool) func(int) (up, down stream) {
	return func(int) (up, down stream) {
		return requests(func(f proxiedFrame) verdict {
				if f.kind == requestProduce || f.kind == requestProduceBatch {
					return f.delayed(1000 * time.Hour)
				}
				return f.pass()
			}), answers(func(f proxiedFrame) verdict {
				if plain && f.kind == requestClusterInfo {
					return f.edited(t, withoutFeatures)
				}
				return f.pass()
			})
	}
}

// withoutFeatures makes the answer to a hello that of a broker which knows no extension.
func withoutFeatures(answer map[string]any) {
	if info, ok := answer["payload"].(map[string]any); ok {
		delete(info, "features")
	}
}

// unreadSends gives a producer more than all buffers on the way to its broker hold, which
// does not read it. Nobody waits for room.
func unreadSends(t testing.TB, c *Client, partitions int) (p *AsyncProducer, told *outcomes, n int) {
	p = faultAsync(t, c, WithMaxBufferedBytes(1<<30), WithDeliveryTimeout(time.Hour))
	told = new(outcomes)
	value := strings.Repeat("x", 100<<10)
	for n = range 30 * partitions {
		m := to0(fmt.Sprint(n, value))
		m.Partition = int32(n % partitions)
		require.NoError(t, p.SendFunc(t.Context(), m, told.done))
	}
	return p, told, n + 1
}

// requireAllFailed fails unless each message has had one result, that says why it was not sent.
func requireAllFailed(t testing.TB, told *outcomes, n int) {
	t.Helper()
	told.mu.Lock()
	defer told.mu.Unlock()
	require.Equal(t, n, told.n)
	require.Len(t, told.all, n)
	for _, all := range told.all {
		require.ErrorIs(t, all[0].err, ErrClosed)
	}
}

// TestCloseWhileUnread ends producers while what they send is not read, so that somebody is in
// the middle of a write that does not return.
func TestCloseWhileUnread(t *testing.T) {
	for _, how := range []struct {
		name  string
		limit time.Duration
		end   func(ctx context.Context, c *Client, p *AsyncProducer) error
	}{
		{"Shutdown", 3 * time.Second, func(ctx context.Context, _ *Client, p *AsyncProducer) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			return p.Shutdown(ctx)
		}},
		{"Close", closeTimeout + time.Second, func(_ context.Context, _ *Client, p *AsyncProducer) error { return p.Close() }},
		{"Client.Close", closeTimeout + time.Second, func(_ context.Context, c *Client, _ *AsyncProducer) error { return c.Close() }},
	} {
		for _, plain := range []bool{true, false} {
			for _, pipe := range []string{"net.Pipe", "newPipe"} {
				t.Run(fmt.Sprint(how.name, " ", plain, " ", pipe), func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						b := faultBroker(t, 4)
						proxy := newFaultProxy(t, b.Dial, deaf(t, plain))
						dial := proxy.dial
						if pipe == "net.Pipe" {
							dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
								here, there := net.Pipe()
								return here, proxy.serve(ctx, there, network, addr)
							}
						}
						c := faultClient(t, dial)
						p, told, n := unreadSends(t, c, 4)
						synctest.Wait()
						require.NotNil(t, writingTo(c))
						began := time.Now()
						require.Error(t, how.end(t.Context(), c, p))
						require.LessOrEqual(t, time.Since(began), how.limit)
						requireAllFailed(t, told, n)
						began = time.Now()
						_ = c.Close() // It may be closed already.
						require.Zero(t, time.Since(began))
						synctest.Wait()
						require.Zero(t, p.box.running.n)
					})
				})
			}
		}
	}
}

// writingTo returns a connection of a client to which something is being written, nil if
// there is none.
func writingTo(c *Client) *conn {
	c.pool.mu.Lock()
	defer c.pool.mu.Unlock()
	for _, b := range c.pool.brokers {
		i := slices.IndexFunc(b.conns, func(c *conn) bool {
			c.out.mu.Lock()
			defer c.out.mu.Unlock()
			return c.out.writing
		})
		if i >= 0 {
			return b.conns[i]
		}
	}
	return nil
}

// littleDial has the system hold little of what is written and not read: by itself it may take
// some megabytes, all that a producer has under way.
func littleDial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return c, c.(*net.TCPConn).SetWriteBuffer(32 << 10)
}

// TestCloseWhileUnreadTCP is the same over real connections, whose buffers are full.
func TestCloseWhileUnreadTCP(t *testing.T) {
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprint(plain), func(t *testing.T) {
			b := faultBroker(t, 16)
			addr, err := b.Listen("127.0.0.1:0")
			require.NoError(t, err)
			proxy := newFaultProxy(t, nil, deaf(t, plain))
			proxy.upstream = new(net.Dialer).DialContext
			c, err := New(WithBrokers(proxy.listen(t, addr.String())), WithLogger(nil), clientOption(func(c *config) { c.dial = littleDial }))
			require.NoError(t, err)
			p, told, n := unreadSends(t, c, 16)
			// What is written stays as it is for a while.
			var last atomic.Uint64
			require.Eventually(t, func() bool {
				written := c.Metrics().Connection.bytes.out.Load()
				return writingTo(c) != nil && written > 0 && last.Swap(written) == written
			}, time.Minute, 200*time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			require.ErrorIs(t, p.Shutdown(ctx), context.DeadlineExceeded)
			require.NoError(t, c.Close())
			require.Less(t, time.Since(began), pingAfter, "the silence has not ended it")
			requireAllFailed(t, told, n)
			p.box.running.wait(t.Context())
		})
	}
}
