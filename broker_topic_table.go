package robust

import (
	"hash/maphash"
	"iter"
	"slices"
)

const (
	// tableLeaf is how many topics a node has before it is split.
	tableLeaf = 16
	// tableBits is how many bits of the hash choose among a node's children, of which there
	// are tableWidth.
	tableBits  = 4
	tableWidth = 1 << tableBits
)

// topicTable says which topics a broker has. It is a value: it never changes, however many
// share it, and with and without make others. What a change costs has next to nothing to
// do with the number of topics, since all but the nodes on the way to that topic is shared
// with the table before. The zero table is empty.
type topicTable struct {
	seed maphash.Seed // of all tables that come of one another
	root *tableNode   // nil: empty
}

// topicShape is what groups have to know of a topic.
type topicShape struct {
	id         string
	partitions int32
}

// tableNode is immutable once it is in a table. It has topics, or, if they were too many,
// children.
type tableNode struct {
	size     int // topics in it and below
	topics   []tableTopic
	children *[tableWidth]*tableNode // by the hash's bits, lowest first; nil: no topic
}

type tableTopic struct {
	hash  uint64
	name  string
	shape topicShape
}

// len returns how many topics there are.
func (t topicTable) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.size
}

// find returns a topic, and whether it is there.
func (t topicTable) find(name string) (topicShape, bool) {
	if t.root == nil {
		return topicShape{}, false
	}
	return t.root.find(maphash.String(t.seed, name), name)
}

// get returns a topic; the zero shape if it is not there.
func (t topicTable) get(name string) topicShape {
	shape, _ := t.find(name)
	return shape
}

// has tells whether a topic is there.
func (t topicTable) has(name string) bool {
	_, there := t.find(name)
	return there
}

// with returns the table with a topic, whose shape may be another than before.
func (t topicTable) with(name string, shape topicShape) topicTable {
	if t.root == nil {
		t.seed = maphash.MakeSeed()
	}
	t.root = t.root.with(0, tableTopic{maphash.String(t.seed, name), name, shape})
	return t
}

// without returns the table without a topic.
func (t topicTable) without(name string) topicTable {
	if t.has(name) {
		t.root = t.root.without(0, maphash.String(t.seed, name), name)
	}
	return t
}

// all returns every topic, in no order.
func (t topicTable) all() iter.Seq2[string, topicShape] {
	return func(yield func(string, topicShape) bool) {
		t.root.each(func(topic tableTopic) bool { return yield(topic.name, topic.shape) })
	}
}

// differences returns the names of topics that are not the same in both tables. It looks at
// all of them.
func (t topicTable) differences(o topicTable) []string {
	var differ []string
	for name, was := range t.all() {
		if is, there := o.find(name); !there || is != was {
			differ = append(differ, name)
		}
	}
	for name := range o.all() {
		if !t.has(name) {
			differ = append(differ, name)
		}
	}
	return differ
}

// branch is which child of a node of that depth has a hash.
func branch(hash uint64, depth int) uint64 { return hash >> (depth * tableBits) % tableWidth }

func (n *tableNode) find(hash uint64, name string) (topicShape, bool) {
	for depth := 0; n != nil; depth++ {
		if n.children == nil {
			if i := n.index(name); i >= 0 {
				return n.topics[i].shape, true
			}
			break
		}
		n = n.children[branch(hash, depth)]
	}
	return topicShape{}, false
}

func (n *tableNode) index(name string) int {
	return slices.IndexFunc(n.topics, func(t tableTopic) bool { return t.name == name })
}

// with returns a node with one topic more, or another in its place; n may be nil.
func (n *tableNode) with(depth int, topic tableTopic) *tableNode {
	if n == nil {
		return leafOf([]tableTopic{topic})
	}
	if n.children != nil {
		return n.replace(branch(topic.hash, depth), func(child *tableNode) *tableNode {
			return child.with(depth+1, topic)
		})
	}
	if i := n.index(topic.name); i >= 0 {
		topics := slices.Clone(n.topics)
		topics[i] = topic
		return leafOf(topics)
	}
	topics := append(n.topics[:len(n.topics):len(n.topics)], topic)
	// Topics that no bit tells apart stay together.
	if len(topics) <= tableLeaf || depth*tableBits >= 64 {
		return leafOf(topics)
	}
	split := &tableNode{size: len(topics), children: new([tableWidth]*tableNode)}
	for _, t := range topics {
		child := &split.children[branch(t.hash, depth)]
		*child = (*child).with(depth+1, t)
	}
	return split
}

// without returns a node without a topic that is in it; nil if that was the last.
func (n *tableNode) without(depth int, hash uint64, name string) *tableNode {
	switch {
	case n.size == 1:
		return nil
	case n.children == nil:
		return leafOf(slices.DeleteFunc(slices.Clone(n.topics), func(t tableTopic) bool { return t.name == name }))
	}
	less := n.replace(branch(hash, depth), func(child *tableNode) *tableNode {
		return child.without(depth+1, hash, name)
	})
	// Not as soon as they have room: else one topic that comes and goes would split and join
	// them each time.
	if less.size > tableLeaf/2 {
		return less
	}
	topics := make([]tableTopic, 0, less.size)
	less.each(func(t tableTopic) bool {
		topics = append(topics, t)
		return true
	})
	return leafOf(topics)
}

// replace returns a node with another child in the place of one.
func (n *tableNode) replace(i uint64, f func(child *tableNode) *tableNode) *tableNode {
	children := *n.children
	size := n.size
	if was := children[i]; was != nil {
		size -= was.size
	}
	children[i] = f(children[i])
	if is := children[i]; is != nil {
		size += is.size
	}
	return &tableNode{size: size, children: &children}
}

func leafOf(topics []tableTopic) *tableNode { return &tableNode{size: len(topics), topics: topics} }

// each calls f for every topic until it returns false; n may be nil.
func (n *tableNode) each(f func(tableTopic) bool) bool {
	if n == nil {
		return true
	}
	for _, t := range n.topics {
		if !f(t) {
			return false
		}
	}
	if n.children != nil {
		for _, child := range n.children {
			if !child.each(f) {
				return false
			}
		}
	}
	return true
}
