package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/aminofox/robust-go-sdk"
)

// topState is how things stand, as far as a broker tells.
type topState struct {
	At      time.Time
	Took    time.Duration // of one request
	Cluster string
	Nodes   []robust.NodeInfo
	Topics  []topTopic // by name
	Groups  []topGroup // by ID
	Missing []string   // what the broker does not tell
	Server  *topServer // nil where nobody has said where its metrics are
}

type topTopic struct {
	Name, ID   string
	Partitions []robust.PartitionMetadata
	Told       bool // whether the offsets are known
	Oldest     map[int32]int64
	Newest     map[int32]int64
}

type topGroup struct {
	ID, State string
	Members   int
	Told      bool // whether the rest is known
	Lag       int64
	Offsets   []robust.GroupOffset
}

// written is how many messages the topic has ever been given.
func (t *topTopic) written() (n int64) {
	for _, offset := range t.Newest {
		n += offset
	}
	return n
}

// kept is how many messages it has.
func (t *topTopic) kept() int64 {
	n := t.written()
	for _, offset := range t.Oldest {
		n -= offset
	}
	return n
}

// read is how far the group has come, all partitions together.
func (g *topGroup) read() (n int64) {
	for i := range g.Offsets {
		n += max(g.Offsets[i].Committed, g.Offsets[i].LogStart, 0)
	}
	return n
}

// topLooker asks a broker, by requests that any client may send.
type topLooker struct {
	admin   *robust.AdminClient
	metrics *metricsPage // nil: nothing of the server's own
}

// topRequests is how many requests are under way at a time.
const topRequests = 8

const (
	missingOffsets = "messages and rates: the broker does not announce list_offsets"
	missingLag     = "lag: the broker does not announce groups"
)

// look asks for everything once.
func (l *topLooker) look(ctx context.Context) (*topState, error) {
	began := time.Now()
	info, err := l.admin.ClusterInfo(ctx)
	if err != nil {
		return nil, err
	}
	s := &topState{Took: time.Since(began), Cluster: info.ID, Nodes: info.Nodes}
	topics, err := l.admin.GetMetadata(ctx, nil)
	if err != nil {
		return nil, err
	}
	groups, err := l.admin.ListGroups(ctx)
	if err != nil && !errors.Is(err, robust.ErrUnsupported) {
		return nil, err
	}
	if err := l.lookAtTopics(ctx, s, topics); err != nil {
		return nil, err
	}
	if err := l.lookAtGroups(ctx, s, groups); err != nil {
		return nil, err
	}
	if l.metrics != nil {
		if s.Server, err = l.metrics.read(ctx); err != nil {
			s.Missing = append(s.Missing, "metrics: "+err.Error())
		}
	}
	s.At = time.Now()
	return s, nil
}

func (l *topLooker) lookAtTopics(ctx context.Context, s *topState, topics []robust.TopicMetadata) error {
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(topRequests)
	for i := range topics {
		work.Go(func() error {
			t := topTopic{Name: topics[i].Name, ID: topics[i].ID, Partitions: topics[i].Partitions, Told: true}
			var err error
			t.Oldest, t.Newest, err = bounds(ctx, l.admin, t.Name)
			switch {
			case errors.Is(err, robust.ErrUnsupported):
				t = topTopic{Name: t.Name, ID: t.ID, Partitions: t.Partitions}
			case errors.Is(err, robust.ErrTopicNotFound):
				return nil // It was deleted a moment ago.
			case err != nil:
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			s.Topics = append(s.Topics, t)
			s.miss(!t.Told, missingOffsets)
			return nil
		})
	}
	err := work.Wait()
	slices.SortFunc(s.Topics, func(a, b topTopic) int { return strings.Compare(a.Name, b.Name) })
	return err
}

func (l *topLooker) lookAtGroups(ctx context.Context, s *topState, groups []robust.GroupInfo) error {
	var mu sync.Mutex
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(topRequests)
	for i := range groups {
		work.Go(func() error {
			g := topGroup{ID: groups[i].ID, State: groups[i].State, Members: len(groups[i].Members)}
			d, err := l.admin.DescribeGroup(ctx, g.ID)
			switch {
			case errors.Is(err, robust.ErrUnsupported):
			case errors.Is(err, robust.ErrGroupNotFound):
				return nil // As with topics.
			case err != nil:
				return err
			default:
				g = topGroup{ID: g.ID, State: d.State, Members: len(d.Members), Told: true, Lag: d.Lag(), Offsets: d.Offsets}
			}
			mu.Lock()
			defer mu.Unlock()
			s.Groups = append(s.Groups, g)
			s.miss(!g.Told, missingLag)
			return nil
		})
	}
	err := work.Wait()
	slices.SortFunc(s.Groups, func(a, b topGroup) int { return strings.Compare(a.ID, b.ID) })
	return err
}

// miss notes, once, what is missing.
func (s *topState) miss(missing bool, what string) {
	if missing && !slices.Contains(s.Missing, what) {
		s.Missing = append(s.Missing, what)
	}
}
