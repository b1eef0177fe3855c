package robust

import (
	"cmp"
	"time"
)

// Metrics returns a snapshot of what the broker counts and measures, and of what it has:
// topics, logs, groups. It looks at each of them, which takes about a microsecond for each
// partition and committed offset.
func (b *Broker) Metrics() BrokerStats {
	s := b.service.metrics.snapshot()
	b.service.describeTopics(&s)
	b.service.describeGroups(&s)
	s.LeftOut = keepLargest(s.ByTopic, b.cfg.maxSeries, func(x, y TopicStats) int {
		return cmp.Or(cmp.Compare(x.Bytes, y.Bytes), cmp.Compare(x.Messages, y.Messages))
	}, cmp.Compare[string]) + keepLargest(s.ByGroup, b.cfg.maxSeries, func(x, y GroupStats) int {
		return cmp.Compare(x.Lag, y.Lag)
	}, cmp.Compare[string])
	return s
}

func (s *service) describeTopics(stats *BrokerStats) {
	for _, name := range s.topics.names() {
		t, err := s.topics.get(name)
		if err != nil {
			continue // Deleted meanwhile.
		}
		d := TopicStats{Partitions: len(t.partitions)}
		for _, p := range t.partitions {
			start, end := p.log.Bounds()
			d.Messages += end - start
			if l, ok := p.log.(LogSizer); ok {
				bytes, segments := l.Size()
				d.Bytes += bytes
				d.Segments += segments
			}
		}
		stats.Topics++
		stats.Partitions += d.Partitions
		stats.LogBytes += d.Bytes
		stats.Segments += d.Segments
		stats.ByTopic[name] = d
	}
}

func (s *service) describeGroups(stats *BrokerStats) {
	for _, h := range s.groups.all() {
		var d GroupStats
		var id string
		committed := make(map[TopicPartition]StoredOffset)
		if !h.do(func(g *group, _ time.Time) {
			id, d.Members = g.id, len(g.members)
			for tp, o := range g.offsets {
				committed[tp] = o
			}
		}) {
			continue // Removed meanwhile.
		}
		for tp, o := range committed {
			log, topicID := s.topics.log(tp)
			if log == nil || o.TopicID != "" && o.TopicID != topicID {
				continue // Of a topic that is gone.
			}
			start, end := log.Bounds()
			lag := max(end-max(o.Offset, start), 0)
			d.Partitions++
			d.Lag += lag
			d.MaxLag = max(d.MaxLag, lag)
		}
		stats.Groups++
		stats.Members += d.Members
		stats.ByGroup[id] = d
	}
}
