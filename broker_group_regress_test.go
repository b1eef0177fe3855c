package robust

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// askTogether sends requests in one piece and returns their answers, by request.
func askTogether(t testing.TB, b *Broker, form Protocol, reqs ...request) []*wireResponse {
	t.Helper()
	p := dialPeer(t, b)
	defer p.nc.Close()
	var frames []byte
	for i, req := range reqs {
		frame, err := appendRequest(nil, form, strconv.Itoa(i), req.kind(), req)
		require.NoError(t, err)
		frames = append(frames, frame...)
	}
	p.send(string(frames))
	answered := make([]*wireResponse, len(reqs))
	for range reqs {
		resp, err := p.answer()
		require.NoError(t, err)
		i, err := strconv.Atoi(string(resp.id))
		require.NoError(t, err)
		answered[i] = resp
	}
	return answered
}

// sendRaw sends a request 1 as a peer without a client, and does not wait for its answer.
func sendRaw(t testing.TB, b *Broker, req request) *rawPeer {
	t.Helper()
	frame, err := appendRequest(nil, ProtocolV1, "1", req.kind(), req)
	require.NoError(t, err)
	p := dialPeer(t, b)
	p.send(string(frame))
	return p
}

// watchedStorage is a storage that says what is asked of it before it does it.
type watchedStorage struct {
	Storage
	putOffsets func([]StoredOffset) // may be nil
	offsetAt   func()               // may be nil
}

func (s *watchedStorage) PutOffsets(ctx context.Context, id string, offsets []StoredOffset) error {
	if s.putOffsets != nil {
		s.putOffsets(offsets)
	}
	return s.Storage.PutOffsets(ctx, id, offsets)
}

func (s *watchedStorage) OpenPartition(ctx context.Context, topic StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	log, err := s.Storage.OpenPartition(ctx, topic, partition, c, advanced)
	return &watchedLog{log, s}, err
}

type watchedLog struct {
	PartitionLog
	storage *watchedStorage
}

func (l *watchedLog) OffsetAt(ctx context.Context, timestamp int64) (int64, error) {
	if l.storage.offsetAt != nil {
		l.storage.offsetAt()
	}
	return l.PartitionLog.OffsetAt(ctx, timestamp)
}

// Commits of one connection are kept in the order in which they come: an older offset
// overtook a newer one, and stayed.
func TestGroupPipelinedCommits(t *testing.T) {
	for _, form := range []Protocol{ProtocolV0, ProtocolV1} {
		t.Run(form.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var kept []int64
				b := faultBroker(t, 1, WithStorage(&watchedStorage{Storage: NewMemoryStorage(), putOffsets: func(offsets []StoredOffset) {
					<-time.After(time.Millisecond) // So that others could come first.
					kept = append(kept, offsets[0].Offset)
				}}))
				var commits []request
				var want []int64
				for i := range int64(20) {
					commits = append(commits, &commitOffsetRequest{GroupID: "g", Topic: faultTopic, Offset: i + 1})
					want = append(want, i+1)
				}
				for _, resp := range askTogether(t, b, form, commits...) {
					require.True(t, resp.success, resp.errText)
				}
				require.Equal(t, want, kept)
				require.Equal(t, int64(20), committed(b, 0))
			})
		})
	}
}

// A member that joins and leaves in one breath is gone: the leave came first at times,
// was refused, and the member stayed until its session timeout.
func TestGroupPipelinedJoinAndLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		for i := range 20 {
			id := fmt.Sprint("g", i)
			for _, resp := range askTogether(t, b, ProtocolV1,
				&joinGroupRequest{GroupID: id, MemberID: "m", Topics: []string{faultTopic}, SessionTimeoutMs: 60_000},
				&leaveGroupRequest{GroupID: id, MemberID: "m"},
			) {
				require.True(t, resp.success, resp.errText)
			}
		}
		var groups listGroupsResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &listGroupsRequest{}, &groups))
		require.Empty(t, groups.Groups)
	})
}

// Who is granted a partition is told the offset of a commit that the storage was still
// at work on: it was told the one before, and handled again what was committed.
func TestGroupGrantFollowsCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		reached, goOn := make(chan struct{}), make(chan struct{})
		b := faultBroker(t, 1, WithStorage(&watchedStorage{Storage: NewMemoryStorage(), putOffsets: func([]StoredOffset) {
			close(reached)
			<-goOn
		}}))
		store(t, b, 60)
		joinRaw(t, b, "a", "")
		after(gatherTime)
		epochs, _ := syncRaw(t, b, "a", 1)
		require.Len(t, epochs, 1)
		joinRaw(t, b, "b", "")
		commit := sendRaw(t, b, &commitOffsetRequest{GroupID: "g", MemberID: "a", Topic: faultTopic, Offset: 50, Epoch: epochs[0]})
		<-reached
		leave := sendRaw(t, b, &leaveGroupRequest{GroupID: "g", MemberID: "a"})
		after(time.Millisecond)
		sync := sendRaw(t, b, &syncGroupRequest{GroupID: "g", MemberID: "b", Seq: 1})
		after(time.Millisecond)
		close(goOn)
		require.True(t, commit.mustAnswer("1").success)
		require.True(t, leave.mustAnswer("1").success)
		var granted syncGroupResponse
		require.NoError(t, decodePayload(sync.mustAnswer("1").payload, &granted))
		require.Len(t, granted.Grants, 1)
		require.Equal(t, int64(50), granted.Grants[0].Offset)
	})
}

// Epochs rise over the end of a group that was forgotten: they began anew, and a store
// that fences by them refused every later member.
func TestGroupEpochsRiseOverSweep(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		last := int64(0)
		for i := range 4 {
			id := fmt.Sprint("m", i)
			joinRaw(t, b, id, "")
			after(gatherTime)
			epochs, _ := syncRaw(t, b, id, 1)
			require.Greater(t, epochs[0], last)
			last = epochs[0]
			require.NoError(t, rawCall(t, b, ProtocolV1, &leaveGroupRequest{GroupID: "g", MemberID: id}, &leaveGroupResponse{}))
			after(2 * sweepInterval)
			require.Empty(t, b.service.groups.all())
		}
	})
}

// The generation does not go back over a restart, and who is gone stays gone, also after
// changes that no request has asked for: those were kept with the next request alone.
func TestGroupGenerationOverRestart(t *testing.T) {
	join := func(t *testing.T, b *Broker, id string, session time.Duration) {
		req := &joinGroupRequest{GroupID: "g", MemberID: id, Topics: []string{faultTopic}, SessionTimeoutMs: session.Milliseconds()}
		require.NoError(t, rawCall(t, b, ProtocolV1, req, &joinGroupResponse{}))
	}
	generation := func(t *testing.T, b *Broker) int64 {
		var resp heartbeatResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &heartbeatRequest{GroupID: "g", MemberID: "stays"}, &resp))
		return resp.Generation
	}
	for name, change := range map[string]func(*testing.T, *Broker){
		"members expire": func(*testing.T, *Broker) { after(10 * time.Second) },
		"topics change": func(t *testing.T, b *Broker) {
			after(10 * time.Second)
			require.NoError(t, rawCall(t, b, ProtocolV1, &rebalanceRequest{GroupID: "g"}, &rebalanceResponse{})) // Keeps all before.
			admin := faultClient(t, b.Dial).Admin()
			for n := range int32(5) {
				require.NoError(t, admin.CreatePartitions(t.Context(), faultTopic, 2+n))
			}
			after(time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				storage := NewMemoryStorage()
				defer storage.Close()
				b := faultBroker(t, 1, WithStorage(storage))
				join(t, b, "stays", time.Hour)
				for i := range 5 {
					join(t, b, fmt.Sprint("m", i), time.Duration(i+1)*time.Second)
				}
				before := generation(t, b)
				change(t, b)
				then := generation(t, b)
				require.GreaterOrEqual(t, then, before+5)
				require.NoError(t, b.Close())
				b = faultBroker(t, 1, WithStorage(storage))
				require.Greater(t, generation(t, b), then, "the restart is one more")
				var groups listGroupsResponse
				require.NoError(t, rawCall(t, b, ProtocolV1, &listGroupsRequest{}, &groups))
				require.Equal(t, []string{"stays"}, groups.Groups[0].Members)
			})
		})
	}
}

// regressGroup is a group of which nothing but its rules is there, and its members,
// which give up what they are to give up.
type regressGroup struct {
	*group
	now  time.Time
	seqs map[string]int64
}

func newRegressGroup(partitions int32) *regressGroup {
	return &regressGroup{newGroup("g", topicTable{}.with(faultTopic, topicShape{"id", partitions})), time.Unix(0, 0), make(map[string]int64)}
}

func (g *regressGroup) join(t testing.TB, id string) {
	t.Helper()
	e := joinEvent{member: id, topics: []string{faultTopic}, session: time.Hour, rebalance: time.Hour, incremental: true}
	_, err := g.group.join(g.now, e)
	require.NoError(t, err)
}

func (g *regressGroup) gather() {
	g.now = g.now.Add(gatherTime)
	g.tick(g.now)
}

// sync says that a member reads what is granted to it and to stay.
func (g *regressGroup) sync(t testing.TB, id string) {
	t.Helper()
	owned := make(map[TopicPartition]bool)
	for tp, s := range g.slots {
		owned[tp] = s.owner == id && s.target == id
	}
	g.seqs[id]++
	_, err := g.group.sync(g.now, syncEvent{member: id, seq: g.seqs[id], owned: owned})
	require.NoError(t, err)
}

func (g *regressGroup) owners() map[TopicPartition]string {
	owners := make(map[TopicPartition]string)
	for tp, s := range g.slots {
		owners[tp] = s.owner
	}
	return owners
}

// A copy of a JoinGroup that comes late takes nothing from the member: it was taken for
// one that reads nothing yet, and its partitions went to others while it read them.
func TestGroupDelayedJoin(t *testing.T) {
	g := newRegressGroup(4)
	g.join(t, "a")
	g.gather()
	g.sync(t, "a")
	g.sync(t, "a")
	g.join(t, "b") // Two are to move, and a still reads them.
	g.join(t, "a") // The copy.
	g.sync(t, "b")
	for tp, owner := range g.owners() {
		require.Equal(t, "a", owner, "%s", tp)
	}
	g.sync(t, "a")
	g.sync(t, "b")
	n := make(map[string]int)
	for _, owner := range g.owners() {
		n[owner]++
	}
	require.Equal(t, map[string]int{"a": 2, "b": 2}, n)
}

// A member that joins and leaves at once moves nothing: what was to go to it went to
// others than those who were still reading it.
func TestGroupJoinAndLeaveMovesNothing(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		g := newRegressGroup(2 + rnd.Int32N(12))
		var ids []string
		for i := range 2 + rnd.IntN(3) {
			ids = append(ids, fmt.Sprintf("%c%d", 'a'+rnd.IntN(26), i))
			g.join(t, ids[i])
			g.gather()
			for range 3 {
				for _, id := range ids {
					g.sync(t, id)
				}
			}
		}
		require.Equal(t, groupStable, g.state(), "seed %d", seed)
		before := g.owners()
		comes := string(rune('a'+rnd.IntN(26))) + "9"
		g.join(t, comes)
		require.NoError(t, g.leave(g.now, comes))
		for tp, s := range g.slots {
			require.Equal(t, before[tp], s.target, "seed %d: %s", seed, tp)
		}
	}
}

// Patterns that are small to write and huge to compile are refused before they are
// compiled, and so are more of them than anybody needs: a join took hundreds of
// megabytes.
func TestGroupPatternsAreBounded(t *testing.T) {
	b := faultBroker(t, 1)
	join := func(topics ...string) error {
		return rawCall(t, b, ProtocolV1, &joinGroupRequest{GroupID: "g", MemberID: "m", Topics: topics}, &joinGroupResponse{})
	}
	g, err := faultClient(t, b.Dial).ConsumerGroup("g")
	require.NoError(t, err)
	over, cancel := context.WithCancel(t.Context())
	cancel() // So that it returns also if it does not refuse.
	consume := func(topics ...string) error {
		return g.Consume(over, topics, HandlerFunc(func(*Session, *Claim) error { return nil }))
	}
	for _, pattern := range []string{
		"^(" + strings.Repeat("a?", 480) + "){1000}",
		"^" + strings.Repeat("b{1000}", 140),
		"^(c{30}){30}(c{30}){30}(c{30}){30}",
		"^(d{1,1000}|e{1,1000}|f{1,1000})*",
		"^(g[a-z]{0,900}){0,}h{3,}" + strings.Repeat("(i{900})?", 3),
	} {
		var before, behind runtime.MemStats
		runtime.ReadMemStats(&before)
		refusals := []error{join(pattern), consume(pattern), join(faultTopic, "^ok$", pattern)}
		runtime.ReadMemStats(&behind)
		for _, err := range refusals {
			require.ErrorIs(t, err, ErrInvalidRequest)
			require.ErrorContains(t, err, strconv.Quote(pattern[:20])[:20])
		}
		require.Less(t, behind.TotalAlloc-before.TotalAlloc, uint64(1<<20), pattern[:20])
	}
	many := make([]string, maxPatterns+1)
	for i := range many {
		many[i] = fmt.Sprintf("^log-%d-[0-9]{1,3}$", i)
	}
	for _, err := range []error{join(many...), consume(many...)} {
		require.ErrorIs(t, err, ErrInvalidRequest)
		require.ErrorContains(t, err, "more than 20 patterns")
	}
	require.NoError(t, join(many[1:]...))
}

// ResetOffsets looks every partition up once, however often it is named, and ends with
// its connection: one request kept a broker, and its Close, busy for minutes.
func TestResetOffsetsOfMany(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const partitions = 100
		var looked atomic.Int64
		b := faultBroker(t, partitions, WithStorage(&watchedStorage{Storage: NewMemoryStorage(), offsetAt: func() {
			looked.Add(1)
			<-time.After(time.Second)
		}}))
		store(t, b, 3)
		require.NoError(t, rawCall(t, b, ProtocolV1, &commitOffsetRequest{GroupID: "g", Topic: faultTopic, Offset: 1}, &commitOffsetResponse{}))
		named := slices.Repeat([]int32{0, 1}, 50_000)
		var resp resetOffsetsResponse
		require.NoError(t, rawCall(t, b, ProtocolV1, &resetOffsetsRequest{GroupID: "g", Topic: faultTopic, Partitions: named, Timestamp: 9}, &resp))
		require.Equal(t, []partitionOffset{{Partition: 0, Offset: 3}, {Partition: 1}}, resp.Offsets)
		require.Equal(t, int64(2), looked.Load())
		require.Equal(t, int64(3), committed(b, 0))

		named[77] = partitions
		err := rawCall(t, b, ProtocolV1, &resetOffsetsRequest{GroupID: "g", Topic: faultTopic, Partitions: named, Offset: OffsetOldest}, &resp)
		require.ErrorIs(t, err, ErrPartitionNotFound)
		require.Equal(t, int64(3), committed(b, 0))

		sendRaw(t, b, &resetOffsetsRequest{GroupID: "g", Topic: faultTopic, Timestamp: 9})
		after(1500 * time.Millisecond)
		began := time.Now()
		require.NoError(t, b.Close())
		require.LessOrEqual(t, time.Since(began), time.Second)
		require.Equal(t, int64(4), looked.Load())
	})
}

// A group remembers of topics what its members subscribe to now, and of members whose
// place another has taken a bounded number for a bounded time, whatever the members say.
func TestGroupMemoryIsBounded(t *testing.T) {
	g := newGroup("g", topicTable{})
	now := time.Unix(0, 0)
	for i := range 50 {
		topics := make([]string, 100)
		for j := range topics {
			topics[j] = fmt.Sprint("none-", i, "-", j)
		}
		_, err := g.join(now, joinEvent{member: "m", topics: topics, session: maxGroupTimeout, incremental: true})
		require.NoError(t, err)
		require.Len(t, g.baseline, 100)
	}
	for i := range 3 * maxFenced {
		_, err := g.join(now, joinEvent{member: fmt.Sprint("s", i), instance: "1", topics: []string{"x"}, session: maxGroupTimeout, incremental: true})
		require.NoError(t, err)
	}
	require.Len(t, g.members, 2)
	require.Len(t, g.instances, 1)
	require.Len(t, g.fenced, maxFenced)
	_, err := g.member(fmt.Sprint("s", 3*maxFenced-2))
	require.ErrorIs(t, err, ErrFenced)
	g.tick(now.Add(fencedTime))
	require.Len(t, g.fenced, maxFenced, "as long as the session timeout of those who may come back")
	g.tick(now.Add(maxGroupTimeout))
	require.Empty(t, g.fenced)
}

// What is remembered of fetches, which are the signs of life of those who send no
// heartbeats, is of partitions that there are, and of the last minute.
func TestGroupSignsOfLifeAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 2)
		heard := func() int {
			b.service.groups.mu.Lock()
			defer b.service.groups.mu.Unlock()
			return len(b.service.groups.heard)
		}
		require.NoError(t, rawCall(t, b, ProtocolV0, &joinGroupRequest{GroupID: "g", ClientID: "old", Topics: []string{faultTopic}}, &joinGroupResponse{}))
		for i := range 20 {
			require.Error(t, rawCall(t, b, ProtocolV0, &fetchRequest{Topic: fmt.Sprint("none-", i)}, newFetchResponse()))
			require.Error(t, rawCall(t, b, ProtocolV0, &fetchRequest{Topic: faultTopic, Partition: int32(2 + i)}, newFetchResponse()))
			require.NoError(t, rawCall(t, b, ProtocolV0, &fetchRequest{Topic: faultTopic, Partition: int32(i % 2)}, newFetchResponse()))
		}
		require.Equal(t, 2, heard())
		after(silentTimeout + 2*sweepInterval)
		require.Zero(t, heard())
	})
}

// A commit of very many partitions is refused before it is looked at, and costs an honest
// group nothing.
func TestGroupCommitIsBounded(t *testing.T) {
	b := faultBroker(t, 1)
	var text strings.Builder
	text.WriteString(`{"request_id":"1","request_type":9,"payload":{"group_id":"g","member_id":"x","offsets":[{}`)
	for range 3 << 20 {
		text.WriteString(`,{}`)
	}
	text.WriteString("]}}\n")
	p := dialPeer(t, b)
	p.send(text.String())
	require.Equal(t, errorCode("MESSAGE_TOO_LARGE"), p.mustAnswer("1").errCode)
	p.send(`{"request_id":"2","request_type":9,"payload":{"group_id":"g","offsets":[{}` + strings.Repeat(",{}", maxOffsets) + "]}}\n")
	require.Equal(t, errorCode("INVALID_REQUEST"), p.mustAnswer("2").errCode)
	p.requireServed()
}

// Of one member one heartbeat is held: a newer one has the older answered.
func TestGroupHoldsOneHeartbeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := faultBroker(t, 1)
		joinRaw(t, b, "a", "")
		after(gatherTime)
		syncRaw(t, b, "a", 1)
		p := dialPeer(t, b)
		began := time.Now()
		for i := range 3 {
			p.send(fmt.Sprintf(`{"request_id":"%d","request_type":16,"payload":{"group_id":"g","member_id":"a","max_wait_ms":10000}}`+"\n", i))
			synctest.Wait()
		}
		p.mustAnswer("0")
		p.mustAnswer("1")
		require.Equal(t, began, time.Now())
		p.mustAnswer("2")
		require.Equal(t, 10*time.Second, time.Since(began))
	})
}

// slowDeletion is a storage that cannot delete a group, and says so when it is let.
type slowDeletion struct {
	Storage
	begun, end chan struct{}
}

func (s *slowDeletion) DeleteGroup(context.Context, string) error {
	close(s.begun)
	<-s.end
	return errDisk
}

// A group that could not be removed was not told what became of topics meanwhile: it went on
// with offsets of one that was deleted and made anew.
func TestGroupThatStaysKnowsTheTopics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := &slowDeletion{NewMemoryStorage(), make(chan struct{}), make(chan struct{})}
		b := faultBroker(t, 1, WithStorage(s))
		ctx := t.Context()
		_, err := b.service.commitOffset(ctx, &commitOffsetRequest{GroupID: "g", Topic: faultTopic, Offset: 7})
		require.NoError(t, err)
		removed := make(chan error, 1)
		groups := b.service.groups
		h := groups.all()[0]
		go func() { removed <- groups.remove(ctx, h, func(*group) error { return nil }) }()
		<-s.begun
		require.NoError(t, b.service.topics.remove(ctx, faultTopic))
		require.NoError(t, b.service.topics.create(ctx, faultTopic, 2, nil))
		require.NoError(t, b.service.topics.create(ctx, "other", 1, nil))
		close(s.end)
		require.ErrorIs(t, <-removed, errDisk)
		var topics topicTable
		var offsets int
		h.do(func(g *group, _ time.Time) { topics, offsets = g.topics, len(g.offsets) })
		require.Zero(t, offsets)
		require.Equal(t, *groups.topics.Load(), topics)
		require.True(t, topics.has("other"))
	})
}
