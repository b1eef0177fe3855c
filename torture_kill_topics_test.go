package robust

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// killTopics begins the names of the topics that are made and deleted while the broker
// is killed. The group reads them too, so that it commits while they go.
const killTopics = "passing-"

// passingTopic is what is known of one of them.
type passingTopic struct {
	name       string
	life       int // which of its name it is
	fate       topicFate
	partitions int32
	config     map[string]string
	sent       int
	acked      map[TopicPartition]map[int64]string
}

// topicFate is whether a topic is there.
type topicFate int

const (
	fateGone    topicFate = iota
	fateThere             // its making was acknowledged, or it was seen
	fateMaking            // a request to make it has got no answer
	fateRemoval           // a request to delete it has got no answer
)

// changeTopics makes, fills, checks and deletes topics, one step at a time, and has one
// of those that stay grow.
func (w *killTorture) changeTopics(ctx context.Context) {
	rng := rand.New(rand.NewPCG(w.seed, 1<<42))
	client := w.client()
	defer client.Close()
	producer, err := client.SyncProducer()
	if err != nil {
		w.violation("producer: %v", err)
		return
	}
	topics := make([]*passingTopic, 3)
	for i := range topics {
		topics[i] = &passingTopic{name: fmt.Sprint(killTopics, i)}
	}
	for !w.stop.Load() && pause(ctx, nil, time.Duration(rng.IntN(3000))*time.Microsecond) {
		if rng.IntN(20) == 0 {
			w.grow(ctx, client)
			continue
		}
		p := topics[rng.IntN(len(topics))]
		if !w.settleTopic(ctx, client, p) {
			continue
		}
		switch {
		case p.fate == fateGone:
			w.makeTopic(ctx, client, p, rng)
		case rng.IntN(5) == 0:
			w.checkTopic(ctx, client, p)
		case rng.IntN(5) == 0:
			w.deleteTopic(ctx, client, p)
		default:
			for range 1 + rng.IntN(10) {
				w.fillTopic(ctx, producer, p, rng)
			}
		}
	}
}

// settleTopic compares what is known of a topic with what the broker says, and finds out
// what is not known. It returns false if the broker cannot be asked.
func (w *killTorture) settleTopic(ctx context.Context, client *Client, p *passingTopic) bool {
	described, err := client.Admin().GetMetadata(ctx, []string{p.name})
	there := err == nil
	switch {
	case errors.Is(err, ErrTopicNotFound):
	case err != nil:
		if !connectionFault(err) && ctx.Err() == nil {
			w.violation("metadata of %s: %v", p.name, err)
		}
		return false
	case len(described) != 1:
		w.violation("metadata of %s: %d topics", p.name, len(described))
		return false
	}
	switch {
	case p.fate == fateGone && there:
		w.violation("%s has come back, its deletion was acknowledged", p.name)
	case p.fate == fateThere && !there:
		w.violation("%s was acknowledged and is lost", p.name)
	case p.fate == fateMaking:
		w.count("topics whose making was not acknowledged: there " + strconv.FormatBool(there))
	case p.fate == fateRemoval:
		w.count("topics whose deletion was not acknowledged: there " + strconv.FormatBool(there))
	}
	p.fate = fateGone
	if there {
		p.fate = fateThere
		if n := int32(len(described[0].Partitions)); n != p.partitions {
			w.violation("%s has %d partitions, it was made with %d", p.name, n, p.partitions)
		}
		for key, value := range p.config {
			if got := described[0].Config[key]; got != value {
				w.violation("%s has %s=%q, it was made with %q", p.name, key, got, value)
			}
		}
	}
	return true
}

func (w *killTorture) makeTopic(ctx context.Context, client *Client, p *passingTopic, rng *rand.Rand) {
	p.life++
	p.partitions, p.sent, p.acked = 1+rng.Int32N(3), 0, make(map[TopicPartition]map[int64]string)
	p.config = map[string]string{configSegmentBytes: strconv.Itoa(minSegmentBytes), configRetentionHours: strconv.Itoa(1000 + p.life)}
	switch err := client.Admin().CreateTopic(ctx, p.name, p.partitions, p.config); {
	case err == nil:
		p.fate = fateThere
		w.count("topics made")
	case connectionFault(err), ctx.Err() != nil:
		p.fate = fateMaking
	default:
		w.violation("make %s: %v", p.name, err)
	}
}

func (w *killTorture) deleteTopic(ctx context.Context, client *Client, p *passingTopic) {
	switch err := client.Admin().DeleteTopic(ctx, p.name); {
	case err == nil:
		p.fate = fateGone
		w.count("topics deleted")
	case connectionFault(err), ctx.Err() != nil:
		p.fate = fateRemoval
	default:
		w.violation("delete %s: %v", p.name, err)
	}
}

// fillTopic sends a message, once.
func (w *killTorture) fillTopic(ctx context.Context, producer *SyncProducer, p *passingTopic, rng *rand.Rand) {
	tp := TopicPartition{p.name, rng.Int32N(p.partitions)}
	value := fmt.Sprintf("%s|%d|%d|%s", tp, p.life, p.sent, strings.Repeat("x", rng.IntN(500)))
	p.sent++
	m := NewMessage(tp.Topic, []byte(value))
	m.Partition = tp.Partition
	r, err := sendOnce(ctx, producer, m)
	if err != nil {
		if !connectionFault(err) && ctx.Err() == nil {
			w.violation("send to %s: %v", tp, err)
		}
		return
	}
	w.count("messages of passing topics acknowledged")
	if p.acked[tp] == nil {
		p.acked[tp] = make(map[int64]string)
	}
	p.acked[tp][r.Offset] = value
}

// checkTopic reads a topic back: all that was acknowledged is there, and nothing of
// another life; nor is there anything of one in what the group has committed.
func (w *killTorture) checkTopic(ctx context.Context, client *Client, p *passingTopic) {
	for partition := range p.partitions {
		tp := TopicPartition{p.name, partition}
		values, err := w.readLog(ctx, client, tp)
		if err != nil {
			if !connectionFault(err) && ctx.Err() == nil {
				w.violation("%s cannot be read back: %v", tp, err)
			}
			return
		}
		seen := make(map[string]bool)
		for offset, value := range values {
			if !strings.HasPrefix(string(value), fmt.Sprintf("%s|%d|", tp, p.life)) || seen[string(value)] {
				w.violation("%s, the %d. of its name: offset %d holds %.40q, before: %v", tp, p.life, offset, value, seen[string(value)])
			}
			seen[string(value)] = true
		}
		for offset, value := range p.acked[tp] {
			if offset >= int64(len(values)) || string(values[offset]) != value {
				w.violation("%s, the %d. of its name: the message that was acknowledged at offset %d of %d is not there", tp, p.life, offset, len(values))
			}
		}
	}
	d, err := client.Admin().DescribeGroup(ctx, killGroup)
	if err != nil {
		return
	}
	for _, o := range d.Offsets {
		if o.Topic == p.name && o.Committed > o.HighWaterMark {
			w.violation("%s/%d, the %d. of its name: committed is %d, the high-water mark %d", o.Topic, o.Partition, p.life, o.Committed, o.HighWaterMark)
		}
	}
	w.count("passing topics read back")
}

// grow adds a partition to the last of the topics that stay.
func (w *killTorture) grow(ctx context.Context, client *Client) {
	const most = 8
	name := w.kept[len(w.kept)-1]
	known := int32(0)
	for _, tp := range w.partitions() {
		if tp.Topic == name {
			known++
		}
	}
	if known < most {
		err := client.Admin().CreatePartitions(ctx, name, known+1)
		if err != nil && !connectionFault(err) && !errors.Is(err, ErrInvalidRequest) && ctx.Err() == nil {
			w.violation("grow %s: %v", name, err)
		}
		if err == nil {
			w.count("partitions added")
			w.addPartitions(name, known, known+1)
			known++
		}
	}
	described, err := client.Admin().GetMetadata(ctx, []string{name})
	if err != nil {
		if !connectionFault(err) && ctx.Err() == nil {
			w.violation("metadata of %s: %v", name, err)
		}
		return
	}
	switch n := int32(len(described[0].Partitions)); {
	case n < known:
		w.violation("%s has %d partitions, %d were acknowledged", name, n, known)
	case n > known:
		// One whose answer was lost.
		w.addPartitions(name, known, n)
	}
}
