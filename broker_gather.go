package robust

// Messages that come together in requests of their own, as of a producer that does not
// wait for each answer, are stored together: one batch for each partition. What has come is
// known without waiting, so a message by itself is stored as soon as ever.
const (
	// maxGathered is how many messages are stored together, and maxGatheredBytes how
	// large a batch they make up. A reader of few messages reads the batch that has them.
	maxGathered      = 1024
	maxGatheredBytes = 64 << 10
	// maxGatheredParts is how many partitions are gathered for at a time.
	maxGatheredParts = 32
)

// gather is what has come and is to be stored. serve alone uses it.
type gather struct {
	request produceRequest // the last; used again
	room    []byte         // of its key and value
	topic   *topic         // of the last message; nil if there is none to be stored
	open    []*gathered
	count   int
	at      underWay // the first of those in open
}

// gathered are messages for one partition, and who is to be told of them.
type gathered struct {
	to      destination
	records batchBuilder
	ids     []byte // of the requests
	answers []gatheredAnswer
	places  bool     // one of the answers has its place
	at      underWay // of the first request
}

// gatheredAnswer is the answer to one request.
type gatheredAnswer struct {
	slot      *v0Answer
	form      Protocol
	id        int // where it ends in gathered.ids
	timestamp int64
}

// decode reads a request into g.request, which is valid until the next.
func (g *gather) decode(payload []byte) error {
	topic := g.request.Topic
	g.request = produceRequest{}
	if n := len(payload) * 3 / 4; cap(g.room) < n {
		g.room = make([]byte, n)
	}
	if len(payload) > 0 && g.request.scanInto(payload, g.room[:cap(g.room)], topic) {
		if cap(g.room) > keepScratch {
			g.room = nil
		}
		return nil
	}
	return decodePayload(payload, &g.request)
}

// add takes a message, of which it keeps no part.
func (b *gathered) add(p *produceRequest, req *wireRequest, slot *v0Answer) {
	m := Message{ID: p.ID, Key: p.Key, Value: p.Value, Headers: p.Headers}
	b.records.add(&m, p.Timestamp)
	b.ids = append(b.ids, req.id...)
	b.answers = append(b.answers, gatheredAnswer{slot, req.form, len(b.ids), p.Timestamp})
	b.places = b.places || slot != nil
}

// reset forgets the messages.
func (b *gathered) reset() {
	b.records.reset()
	if cap(b.ids) > keepScratch {
		b.ids = nil
	}
	clear(b.answers)
	b.to, b.ids, b.answers, b.places = destination{}, b.ids[:0], b.answers[:0], false
}
