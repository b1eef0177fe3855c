package robust

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnnouncedBodies has brokers announce as long a body as a frame may be, on many
// connections, and send nothing of it. That costs a client next to nothing.
func TestAnnouncedBodies(t *testing.T) {
	const connections, announced = 32, 15 << 20
	bubble(t, func(t *testing.T) {
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind != requestListTopics {
				return nil
			}
			line, err := appendBodyResponse(nil, r.id, announced, &listTopicsResponse{})
			require.NoError(t, err)
			return &fakeAnswer{frames: [][]byte{line}}
		}
		var waiting sync.WaitGroup
		defer waiting.Wait()
		before := heapBytes()
		for range connections {
			c := faultClient(t, b.dial)
			require.NoError(t, c.Ping(t.Context()))
			k, err := onlyConn(t, c).begin(t.Context(), &listTopicsRequest{}, time.Minute)
			require.NoError(t, err)
			waiting.Go(func() { <-k.done })
		}
		synctest.Wait()
		require.Less(t, heapBytes()-before, int64(connections*2*bodyAtOnce))
	})
}

// TestBodiesOfAllSizes has answers with bodies of sizes around those at which memory is
// given, which come in small parts.
func TestBodiesOfAllSizes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sizes := []int{
			0, 1, maxReadBuffer, bodyAtOnce - 1, bodyAtOnce, bodyAtOnce + 1, bodyAtOnce + maxReadBuffer,
			2 * bodyAtOnce, 2*bodyAtOnce + 1, 9 * bodyAtOnce, 7*bodyAtOnce + 17, 12 * bodyAtOnce, 3,
		}
		bodies := make([][]byte, len(sizes))
		for i, size := range sizes {
			bodies[i] = make([]byte, size)
			for j := range bodies[i] {
				bodies[i][j] = byte(rand.Uint32())
			}
		}
		n := 0
		b := newFakeBroker(t, newFakeLog(faultTopic, 1))
		b.script = func(r *fakeRequest) *fakeAnswer {
			if r.kind != requestListTopics {
				return nil
			}
			n++
			return r.withBody(&listTopicsResponse{}, bodies[n-1])
		}
		proxy := newFaultProxy(t, b.dial, func(int) (up, down stream) { return nil, dripping(60_001, time.Microsecond) })
		c := faultClient(t, proxy.dial)
		require.NoError(t, c.Ping(t.Context()))
		for i := range sizes {
			k, err := onlyConn(t, c).begin(t.Context(), &listTopicsRequest{}, time.Minute)
			require.NoError(t, err)
			<-k.done
			require.NoError(t, k.err)
			require.True(t, bytes.Equal(bodies[i], k.body), "%d bytes, want %d", len(k.body), sizes[i])
		}
	})
}
