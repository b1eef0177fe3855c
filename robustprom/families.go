package robustprom

import (
	"maps"
	"strconv"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
)

// clientFamilies are what a client measures, in the order of docs/metrics.md.
func clientFamilies() []family[robust.Stats] {
	type S = robust.Stats
	byTopic := func(s *S) map[string]robust.TopicLag { return s.Consumer.LagByTopic }
	return []family[S]{
		counter("producer_messages_sent_total", "Messages that brokers have stored.", func(s *S) uint64 { return s.Producer.MessagesSent }),
		counter("producer_messages_failed_total", "Messages that were reported to the application as failed.", func(s *S) uint64 { return s.Producer.MessagesFailed }),
		counter("producer_sent_bytes_total", "Bytes of key, value and headers of the messages that were stored.", func(s *S) uint64 { return s.Producer.BytesSent }),
		counters("producer_retries_total", "Tries after the first, of a message or a batch, by why there was one.", "reason",
			retries, func(n uint64) uint64 { return n }),
		seconds("producer_send_duration_seconds", "From the call to the broker's answer, of each message that was stored, retries included.",
			func(s *S) robust.Histogram[time.Duration] { return s.Producer.Latency }),
		messages("producer_batch_messages", "Messages in a batch that was stored.", func(s *S) robust.Histogram[int64] { return s.Producer.BatchMessages }),
		bytes("producer_batch_bytes", "Bytes of a batch as it was sent.", func(s *S) robust.Histogram[int64] { return s.Producer.BatchBytes }),
		counter("producer_batch_plain_bytes_total", "Bytes of batches before compression.", func(s *S) uint64 { return s.Producer.PlainBytes }),
		counter("producer_batch_encoded_bytes_total", "Bytes of batches after compression.", func(s *S) uint64 { return s.Producer.EncodedBytes }),
		gauge("producer_buffered_bytes", "Memory of messages that were accepted and are not done with.", func(s *S) int64 { return s.Producer.BufferedBytes }),

		counter("consumer_messages_received_total", "Messages that were handed to the application.", func(s *S) uint64 { return s.Consumer.MessagesReceived }),
		counter("consumer_received_bytes_total", "Bytes of key, value and headers of those messages.", func(s *S) uint64 { return s.Consumer.BytesReceived }),
		counter("consumer_commits_total", "Commits that succeeded.", func(s *S) uint64 { return s.Consumer.CommitCount }),
		counter("consumer_commit_errors_total", "Commits that failed.", func(s *S) uint64 { return s.Consumer.CommitErrors }),
		counter("consumer_rebalances_total", "Changes of what members of consumer groups read.", func(s *S) uint64 { return s.Consumer.Rebalances }),
		counter("consumer_errors_dropped_total", "Notices that nobody read from an Errors channel in time.", func(s *S) uint64 { return s.Consumer.ErrorsDropped }),
		seconds("consumer_fetch_duration_seconds", "From a fetch to its answer, the time for which the broker held it included.",
			func(s *S) robust.Histogram[time.Duration] { return s.Consumer.FetchLatency }),
		bytes("consumer_fetch_bytes", "Bytes of batches in the answer to a fetch, without answers that have none.", func(s *S) robust.Histogram[int64] { return s.Consumer.FetchBytes }),
		seconds("consumer_commit_duration_seconds", "How long commits took, those that failed included.",
			func(s *S) robust.Histogram[time.Duration] { return s.Consumer.CommitLatency }),
		seconds("consumer_rebalance_duration_seconds", "From joining, or hearing of a change, until all of it is told.",
			func(s *S) robust.Histogram[time.Duration] { return s.Consumer.RebalanceLatency }),
		gauge("consumer_buffered_bytes", "Memory of what was fetched and not handed over.", func(s *S) int64 { return s.Consumer.BufferedBytes }),
		newFamily("consumer_lag_messages", "Messages between the next one to be handed over and the high-water mark, of partitions that are being read.",
			[]string{"topic", "partition"}, func(s *S, to sink) {
				for tp, lag := range s.Consumer.Lag {
					to.gauge(lag, tp.Topic, strconv.Itoa(int(tp.Partition)))
				}
			}),
		gauges("consumer_topic_partitions", "Partitions of a topic that are being read.", "topic", byTopic, func(l robust.TopicLag) int { return l.Partitions }),
		gauges("consumer_topic_lag_messages", "Lag of all partitions of a topic that are being read.", "topic", byTopic, func(l robust.TopicLag) int64 { return l.Sum }),
		gauges("consumer_topic_max_lag_messages", "Lag of the partition of a topic that is furthest behind.", "topic", byTopic, func(l robust.TopicLag) int64 { return l.Max }),
		gauge("consumer_total_lag_messages", "Lag of all partitions that are being read, those without a series included.", func(s *S) int64 { return s.Consumer.LagTotal }),
		gauge("consumer_lag_left_out", "Partitions and topics that have no series of their lag.", func(s *S) int { return s.Consumer.LagLeftOut }),

		gauge("client_open_connections", "Connections to brokers that are open.", func(s *S) int64 { return s.Connection.ActiveConnections }),
		counter("client_connections_total", "Connections to brokers that were opened.", func(s *S) uint64 { return s.Connection.TotalConnections }),
		counter("client_failed_connections_total", "Tries to open a connection that failed.", func(s *S) uint64 { return s.Connection.FailedConnections }),
		counter("client_reconnections_total", "Connections that were opened in place of one that broke.", func(s *S) uint64 { return s.Connection.Reconnections }),
		seconds("client_connect_duration_seconds", "How long it took to open a connection, the hello included.",
			func(s *S) robust.Histogram[time.Duration] { return s.Connection.ConnectLatency }),
		counter("client_received_bytes_total", "Bytes from brokers, all included.", func(s *S) uint64 { return s.Connection.BytesReceived }),
		counter("client_sent_bytes_total", "Bytes to brokers, all included.", func(s *S) uint64 { return s.Connection.BytesSent }),
	}
}

// retries are those by reason, with the usual ones from the beginning: of a counter that begins
// with 1, the rate does not have that.
func retries(s *robust.Stats) map[string]uint64 {
	all := map[string]uint64{"connection": 0, "no_answer": 0}
	maps.Copy(all, s.Producer.RetriesByReason)
	return all
}

// brokerFamilies are what a broker measures and has, in the order of docs/metrics.md.
func brokerFamilies() []family[robust.BrokerStats] {
	type S = robust.BrokerStats
	requests := func(s *S) map[string]robust.RequestStats { return s.Requests }
	byTopic := func(s *S) map[string]robust.TopicStats { return s.ByTopic }
	byGroup := func(s *S) map[string]robust.GroupStats { return s.ByGroup }
	return []family[S]{
		newFamily("broker_request_duration_seconds", "From a request to its answer, the time for which it was held included.",
			[]string{"request"}, func(s *S, to sink) {
				for name, r := range s.Requests {
					to.seconds(r.Latency, name)
				}
			}),
		counters("broker_failed_requests_total", "Requests that were refused as a whole.", "request", requests, func(r robust.RequestStats) uint64 { return r.Failed }),
		gauge("broker_open_connections", "Connections of clients that are open.", func(s *S) int64 { return s.ActiveConnections }),
		counter("broker_connections_total", "Connections that were accepted.", func(s *S) uint64 { return s.TotalConnections }),
		counter("broker_refused_connections_total", "Connections over the limit.", func(s *S) uint64 { return s.RefusedConnections }),
		counter("broker_received_bytes_total", "Bytes from clients, all included.", func(s *S) uint64 { return s.BytesReceived }),
		counter("broker_sent_bytes_total", "Bytes to clients, all included.", func(s *S) uint64 { return s.BytesSent }),
		counter("broker_messages_stored_total", "Messages that were appended to logs.", func(s *S) uint64 { return s.MessagesStored }),
		counter("broker_messages_failed_total", "Messages that were refused.", func(s *S) uint64 { return s.MessagesFailed }),
		counter("broker_messages_repeated_total", "Messages that came again, were recognised and not stored twice.", func(s *S) uint64 { return s.MessagesRepeated }),
		counter("broker_stored_bytes_total", "Bytes of batches that were appended to logs.", func(s *S) uint64 { return s.BytesStored }),
		messages("broker_append_messages", "Messages in one append to a log.", func(s *S) robust.Histogram[int64] { return s.AppendMessages }),
		bytes("broker_append_bytes", "Bytes of one append to a log.", func(s *S) robust.Histogram[int64] { return s.AppendBytes }),
		counter("broker_messages_fetched_total", "Messages that were sent to consumers.", func(s *S) uint64 { return s.MessagesFetched }),
		counter("broker_fetched_bytes_total", "Bytes of batches, or of messages, that were sent to consumers.", func(s *S) uint64 { return s.BytesFetched }),
		gauge("broker_topics", "Topics.", func(s *S) int { return s.Topics }),
		gauge("broker_partitions", "Partitions of all topics.", func(s *S) int { return s.Partitions }),
		gauge("broker_groups", "Consumer groups.", func(s *S) int { return s.Groups }),
		gauge("broker_members", "Members of all consumer groups.", func(s *S) int { return s.Members }),
		gauge("broker_log_bytes", "Bytes of all logs.", func(s *S) int64 { return s.LogBytes }),
		gauge("broker_log_segments", "Segments of all logs.", func(s *S) int { return s.Segments }),
		gauges("broker_topic_partitions", "Partitions of a topic.", "topic", byTopic, func(t robust.TopicStats) int { return t.Partitions }),
		gauges("broker_topic_messages", "Messages of a topic that can be read.", "topic", byTopic, func(t robust.TopicStats) int64 { return t.Messages }),
		gauges("broker_topic_log_bytes", "Bytes of the logs of a topic.", "topic", byTopic, func(t robust.TopicStats) int64 { return t.Bytes }),
		gauges("broker_topic_log_segments", "Segments of the logs of a topic.", "topic", byTopic, func(t robust.TopicStats) int { return t.Segments }),
		gauges("broker_group_members", "Members of a consumer group.", "group", byGroup, func(g robust.GroupStats) int { return g.Members }),
		gauges("broker_group_partitions", "Partitions of which a consumer group has committed offsets.", "group", byGroup, func(g robust.GroupStats) int { return g.Partitions }),
		gauges("broker_group_lag_messages", "Messages between the committed offsets of a consumer group and the high-water marks.", "group", byGroup, func(g robust.GroupStats) int64 { return g.Lag }),
		gauges("broker_group_max_lag_messages", "The same for the partition that is furthest behind.", "group", byGroup, func(g robust.GroupStats) int64 { return g.MaxLag }),
		gauge("broker_left_out", "Topics and groups that have no series.", func(s *S) int { return s.LeftOut }),
	}
}
