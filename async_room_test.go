package robust

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRoomOfCancelledSends cancels some of the sends that are in a batch which is then taken
// apart, because one of its messages or all of it is too large. The memory of all of them is
// free in the end.
func TestRoomOfCancelledSends(t *testing.T) {
	for name, c := range map[string]struct {
		large   int // size of the one message that is
		opts    []BrokerOption
		waiting time.Duration // in which sends are cancelled
	}{
		"split":           {2000, nil, 1500 * time.Millisecond},
		"does not fit":    {10, []BrokerOption{WithMaxFrameBytes(8 << 10)}, 500 * time.Millisecond},
		"not sent so far": {10, nil, 500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := faultBroker(t, 1, c.opts...)
				proxy := newFaultProxy(t, b.Dial, func(int) (up, down stream) {
					return requests(nil), answers(func(f proxiedFrame) verdict {
						if f.kind == requestProduceBatch {
							return f.late(time.Second)
						}
						return f.pass()
					})
				})
				require.NoError(t, quietClient(t, b).Admin().AlterTopicConfig(t.Context(), faultTopic, map[string]string{"max.message.bytes": "1500"}))
				dial, open := gatedDial(proxy.dial)
				p := faultProducer(t, faultClient(t, dial))
				var sending sync.WaitGroup
				cancelled, cancel := context.WithTimeout(t.Context(), c.waiting)
				defer cancel()
				for i := range 20 {
					sending.Go(func() {
						ctx, m := t.Context(), to0(strings.Repeat("v", 1000))
						if i%2 == 0 {
							ctx = cancelled
						}
						if i == 7 {
							m.Value = []byte(strings.Repeat("v", c.large))
						}
						_, err := p.Send(ctx, m)
						switch {
						case i%2 == 0 && err == nil:
							t.Error("it was not cancelled")
						case i%2 == 1 && (err == nil) == (i == 7 && c.large > 1500):
							t.Error(i, err)
						}
					})
				}
				synctest.Wait()
				time.AfterFunc(time.Second, open)
				sending.Wait()
				<-time.After(time.Minute)
				p.box.mu.Lock()
				defer p.box.mu.Unlock()
				require.Zero(t, p.box.used)
			})
		})
	}
}
