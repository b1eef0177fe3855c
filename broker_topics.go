package robust

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// opensAtOnce is how many topics, and how many partitions of each, are opened at a time.
const opensAtOnce = 4

// topicSet is a broker's topics and the open logs of their partitions.
type topicSet struct {
	config  *brokerConfig
	storage Storage
	// changed is called when topics are others than before, with their names: by one after
	// the other, in the order of the changes.
	changed func(topics topicTable, names ...string)

	// changing holds a token while a topic is created, altered or deleted, which
	// may wait for the storage. A channel, so that a caller can stop waiting.
	changing chan struct{}
	table    topicTable // what changed was last told; owned by whoever changes topics

	mu     sync.RWMutex // guards the following; not held while the storage works
	topics map[string]*topic
	closed bool
}

// topic is immutable; a change of the topic makes another that shares partitions.
type topic struct {
	stored     StoredTopic
	config     topicConfig
	partitions []*partition
	turn       *atomic.Uint32 // round robin of messages without key
}

func newTopicSet(config *brokerConfig, storage Storage, changed func(topicTable, ...string)) *topicSet {
	return &topicSet{
		config: config, storage: storage, changed: changed,
		changing: make(chan struct{}, 1),
		topics:   make(map[string]*topic),
	}
}

// load opens what the storage keeps, then creates what the options ask for.
func (s *topicSet) load(ctx context.Context) error {
	kept, err := s.storage.Topics(ctx)
	if err != nil {
		return fmt.Errorf("robust: open storage: %w", err)
	}
	err = inParallel(len(kept), opensAtOnce, func(i int) error {
		t, err := s.open(ctx, kept[i], nil)
		if err != nil {
			return fmt.Errorf("robust: open topic %q: %w", kept[i].Name, err)
		}
		s.mu.Lock()
		s.topics[t.stored.Name] = t
		s.mu.Unlock()
		return nil
	})
	if err != nil {
		return err
	}
	for name, t := range s.topics { // Nobody else knows s yet.
		s.table = s.table.with(name, t.shape())
	}
	s.changed(s.table, s.names()...)
	for _, t := range s.config.topics {
		if err := s.create(ctx, t.Name, t.Partitions, t.Config); err != nil && !errors.Is(err, ErrTopicExists) {
			return err
		}
	}
	return nil
}

// open opens the logs of a topic, but for those that are open already.
func (s *topicSet) open(ctx context.Context, stored StoredTopic, already []*partition) (*topic, error) {
	config, err := s.config.parseTopicConfig(stored.Config)
	if err != nil {
		return nil, err
	}
	fresh := make([]*partition, int(stored.Partitions)-len(already))
	err = inParallel(len(fresh), opensAtOnce, func(i int) error {
		p := &partition{topic: stored.Name, id: int32(len(already) + i)}
		var err error
		p.log, err = s.storage.OpenPartition(ctx, stored, p.id, config.log, p.advanced)
		if err == nil {
			fresh[i] = p
		}
		return err
	})
	if err != nil {
		for _, p := range fresh {
			if p != nil {
				err = errors.Join(err, p.close())
			}
		}
		return nil, err
	}
	return &topic{stored: stored, config: config, partitions: slices.Concat(already, fresh), turn: new(atomic.Uint32)}, nil
}

// change runs f, which changes the topics, alone.
func (s *topicSet) change(ctx context.Context, f func() error) error {
	select {
	case s.changing <- struct{}{}:
		defer func() { <-s.changing }()
		return f()
	case <-ctx.Done():
		return endOf(ctx)
	}
}

// create makes a topic.
func (s *topicSet) create(ctx context.Context, name string, partitions int32, config map[string]string) error {
	if err := checkTopicName(name); err != nil {
		return err
	}
	if err := checkPartitionCount(partitions); err != nil {
		return err
	}
	if _, err := s.config.parseTopicConfig(config); err != nil {
		return err
	}
	return s.change(ctx, func() error {
		if _, err := s.get(name); err == nil {
			return fmt.Errorf("%w: %s", ErrTopicExists, name)
		} else if !errors.Is(err, ErrTopicNotFound) {
			return err
		}
		stored := StoredTopic{Name: name, ID: uuid.NewString(), Partitions: partitions, Config: maps.Clone(config)}
		if err := s.storage.PutTopic(ctx, stored); err != nil {
			return err
		}
		t, err := s.open(ctx, stored, nil)
		if err != nil {
			return errors.Join(err, s.storage.DeleteTopic(ctx, name))
		}
		return s.publish(t, nil)
	})
}

func checkPartitionCount(n int32) error {
	if n < 1 || n > maxTopicPartitions {
		return fmt.Errorf("%w: partitions %d: want 1 to %d", ErrInvalidRequest, n, maxTopicPartitions)
	}
	return nil
}

// publish makes a topic visible, in old's place if it is not new.
func (s *topicSet) publish(t, old *topic) error {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.topics[t.stored.Name] = t
	}
	s.mu.Unlock()
	if !closed {
		s.tell(t.stored.Name)
		return nil
	}
	// close has closed what old has; the rest was opened meanwhile.
	err := ErrClosed
	known := 0
	if old != nil {
		known = len(old.partitions)
	}
	for _, p := range t.partitions[known:] {
		err = errors.Join(err, p.close())
	}
	return err
}

// alter grows a topic, unless partitions is 0, and changes its configuration.
func (s *topicSet) alter(ctx context.Context, name string, partitions int32, changes map[string]string) error {
	return s.change(ctx, func() error {
		old, err := s.get(name)
		if err != nil {
			return err
		}
		stored := old.stored
		stored.Config = mergeConfig(stored.Config, changes)
		if partitions != 0 {
			if err := checkPartitionCount(partitions); err != nil {
				return err
			}
			if partitions < stored.Partitions {
				return fmt.Errorf("%w: partitions %d: %s has %d, and partitions cannot be taken away", ErrInvalidRequest, partitions, name, stored.Partitions)
			}
			stored.Partitions = partitions
		}
		if _, err := s.config.parseTopicConfig(stored.Config); err != nil {
			return err
		}
		if err := s.storage.PutTopic(ctx, stored); err != nil {
			return err
		}
		t, err := s.open(ctx, stored, old.partitions)
		if err != nil {
			return errors.Join(err, s.storage.PutTopic(ctx, old.stored))
		}
		t.turn = old.turn
		for _, p := range old.partitions {
			p.log.Configure(t.config.log)
		}
		return s.publish(t, old)
	})
}

// remove deletes a topic. Those who wait for its partitions learn of it.
func (s *topicSet) remove(ctx context.Context, name string) error {
	return s.change(ctx, func() error {
		t, err := s.get(name)
		if errors.Is(err, ErrTopicNotFound) {
			// The storage may not have been able to delete it for good.
			return cmp.Or(s.storage.DeleteTopic(ctx, name), err)
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.topics, name)
		s.mu.Unlock()
		for _, p := range t.partitions {
			err = errors.Join(err, p.close())
		}
		deleted := s.storage.DeleteTopic(ctx, name)
		if deleted == nil {
			s.tell(name)
			return err
		}
		// Everything is still there, and has to be found again.
		back, failed := s.open(ctx, t.stored, nil)
		switch {
		case failed == nil:
			back.turn = t.turn
			failed = s.publish(back, nil)
		case errors.Is(failed, ErrTopicNotFound):
			failed = nil // It is gone all the same.
			s.tell(name)
		default:
			s.tell(name)
		}
		return errors.Join(deleted, failed)
	})
}

// get returns a topic; the error is ErrTopicNotFound with its name, or ErrClosed.
func (s *topicSet) get(name string) (*topic, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t := s.topics[name]; t != nil {
		return t, nil
	}
	if s.closed {
		return nil, ErrClosed
	}
	return nil, fmt.Errorf("%w: %s", ErrTopicNotFound, shorten(name))
}

// getOrCreate is get for a producer: it creates the topic if the broker does so.
func (s *topicSet) getOrCreate(ctx context.Context, name string) (*topic, error) {
	t, err := s.get(name)
	if s.config.autoCreate == 0 || !errors.Is(err, ErrTopicNotFound) {
		return t, err
	}
	if err := s.create(ctx, name, s.config.autoCreate, nil); err != nil && !errors.Is(err, ErrTopicExists) {
		return nil, err
	}
	return s.get(name)
}

// partition returns one partition of a topic.
func (t *topic) partition(id int32) (*partition, error) {
	if id < 0 || int(id) >= len(t.partitions) {
		return nil, fmt.Errorf("%w: partition %d, %s has %d", ErrPartitionNotFound, id, t.stored.Name, len(t.partitions))
	}
	return t.partitions[id], nil
}

// log returns the log of a partition and the ID of its topic; nil if it is not there.
func (s *topicSet) log(tp TopicPartition) (l PartitionLog, topicID string) {
	t, err := s.get(tp.Topic)
	if err != nil {
		return nil, ""
	}
	p, err := t.partition(tp.Partition)
	if err != nil {
		return nil, ""
	}
	return p.log, t.stored.ID
}

// tell says that a topic is another than before, or gone. It is called by whoever changes
// topics, alone.
func (s *topicSet) tell(name string) {
	if t, err := s.get(name); err == nil {
		s.table = s.table.with(name, t.shape())
	} else {
		s.table = s.table.without(name)
	}
	s.changed(s.table, name)
}

func (t *topic) shape() topicShape { return topicShape{t.stored.ID, t.stored.Partitions} }

// names returns the topics in order.
func (s *topicSet) names() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.topics))
}

// all returns every partition.
func (s *topicSet) all() []*partition {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var ps []*partition
	for _, t := range s.topics {
		ps = append(ps, t.partitions...)
	}
	return ps
}

// expire applies retention to every log.
func (s *topicSet) expire(now time.Time, report func(p *partition, err error)) {
	for _, p := range s.all() {
		if err := p.log.Expire(now); err != nil {
			report(p, err)
		}
	}
}

// close closes every log; no topic can be found or made afterwards.
func (s *topicSet) close() error {
	s.mu.Lock()
	s.closed = true
	topics := s.topics
	s.topics = make(map[string]*topic)
	s.mu.Unlock()
	var partitions []*partition
	for _, t := range topics {
		partitions = append(partitions, t.partitions...)
	}
	errs := make([]error, len(partitions))
	_ = inParallel(len(partitions), maxSyncs, func(i int) error {
		errs[i] = partitions[i].close()
		return nil // The others are to be closed all the same.
	})
	return errors.Join(errs...)
}
