package robust

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkCreateTopics makes topics of one partition in a broker in memory, one after the
// other, by way of a client, where there are as many topics as the name says, give or take a
// tenth, and as many groups, one of which subscribes to all by a pattern that the new ones do
// not match, and has committed an offset in each.
func BenchmarkCreateTopics(b *testing.B) {
	for _, c := range []struct{ topics, groups int }{{100, 0}, {1_000, 0}, {10_000, 0}, {100, 1_000}, {10_000, 1_000}} {
		b.Run(fmt.Sprint(c.topics, "/groups=", c.groups), func(b *testing.B) {
			ctx := b.Context()
			broker := quietBroker(b)
			topics := broker.service.topics
			for i := range c.topics {
				require.NoError(b, topics.create(ctx, fmt.Sprint("there-", i), 1, nil))
			}
			for i := range c.groups {
				req := &joinGroupRequest{
					GroupID: fmt.Sprint("g-", i), MemberID: "m", SessionTimeoutMs: maxGroupTimeout.Milliseconds(),
					Topics: []string{fmt.Sprint("there-", i%c.topics)},
				}
				if i == 0 {
					req.Topics = []string{"^there-.*"}
				}
				_, err := broker.service.joinGroup(ctx, req, false)
				require.NoError(b, err)
			}
			if c.groups > 0 {
				for i := range c.topics {
					req := &commitOffsetRequest{GroupID: "g-0", Topic: fmt.Sprint("there-", i)}
					_, err := broker.service.commitOffset(ctx, req)
					require.NoError(b, err)
				}
			}
			admin := quietClient(b, broker).Admin()
			b.ReportAllocs()
			made := 0
			for b.Loop() {
				if made == c.topics/10 {
					b.StopTimer()
					for i := range made {
						require.NoError(b, topics.remove(ctx, fmt.Sprint("made-", i)))
					}
					made = 0
					b.StartTimer()
				}
				if err := admin.CreateTopic(ctx, fmt.Sprint("made-", made), 1, nil); err != nil {
					b.Fatal(err)
				}
				made++
			}
		})
	}
}
