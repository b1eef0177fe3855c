package robust

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// recoveryTemplate is a data directory to be damaged, and all that was ever put into it.
type recoveryTemplate struct {
	name   string
	files  *memFiles
	paths  []string // of files that may be damaged
	config LogConfig
	logs   map[logKey]*recoveryLog
	keys   []logKey        // of logs, in order
	groups []StoredGroup   // as an opening finds them
	words  map[string]bool // what was ever said of groups: see groupWords
	served *recoveryRun    // what an opening finds in the logs
}

// recoveryLog is a partition of a template.
type recoveryLog struct {
	dir      string
	topic    StoredTopic
	batches  map[int64]batch // all that were stored, by offset
	segments []recoverySegment
	frontier int64 // highest offset that an index says is synced
}

// recoverySegment is a segment's file, with the places of the whole batches from its begin.
type recoverySegment struct {
	path   string
	places []place // the last is where they end
}

// groupWords returns what a group says, in words that can be compared.
func groupWords(g StoredGroup) (words []string) {
	if len(g.State) > 0 {
		words = append(words, fmt.Sprintf("%s is %s", g.ID, g.State))
	}
	for _, o := range g.Offsets {
		words = append(words, fmt.Sprintf("%s has read %+v", g.ID, o))
	}
	slices.Sort(words)
	return words
}

// makeRecoveryTemplate makes a data directory with segments of about segmentBytes, in
// several lives, of which the last ends as how says.
func makeRecoveryTemplate(t testing.TB, name string, how lifeEnd, seed uint64, segmentBytes int64, size, rounds int) *recoveryTemplate {
	rng := rand.New(rand.NewPCG(seed, 1))
	files := newMemFiles(seed)
	require.NoError(t, files.mkdir("/srv"))
	require.NoError(t, files.syncDir("/"))
	m := &recoveryTemplate{
		name: name, config: LogConfig{SegmentBytes: segmentBytes},
		logs: make(map[logKey]*recoveryLog), words: make(map[string]bool),
	}
	topics := []StoredTopic{{Name: "alpha", ID: "t1", Partitions: 2}, {Name: "beta", ID: "t2", Partitions: 1}}
	gone := StoredTopic{Name: "gone", ID: "t3", Partitions: 1}
	if size > 1000 {
		topics = topics[1:]
	}
	ctx := t.Context()
	number := 0
	for life := range 3 {
		d, err := openDataDir(files, labDir, SyncInterval(time.Hour), newWarner(slog.New(slog.DiscardHandler)))
		require.NoError(t, err)
		for _, topic := range append(topics, gone) {
			if topic.ID == gone.ID && life > 0 {
				continue
			}
			require.NoError(t, d.PutTopic(ctx, topic))
			for p := range topic.Partitions {
				l, err := d.OpenPartition(ctx, topic, p, m.config, func() {})
				require.NoError(t, err)
				key := logKey{topic.ID, p}
				if m.logs[key] == nil {
					dir := filepath.Join(labDir, topicsName, topicDirName(topic), strconv.Itoa(int(p)))
					m.logs[key] = &recoveryLog{dir: dir, topic: topic, batches: make(map[int64]batch)}
				}
				for range rounds {
					acks := AcksStored
					if rng.IntN(3) == 0 {
						acks = AcksSynced
					}
					m.logs[key].append(t, l, makeRecoveryBatch(rng, &number, size), acks)
				}
				if life == 1 && p == 0 {
					start, end := l.Bounds()
					require.NoError(t, l.DeleteBefore(ctx, start+(end-start)/2+1))
				}
				if topic.ID == gone.ID {
					require.NoError(t, l.Close())
				}
			}
		}
		for i := range 6 {
			number++
			g := StoredGroup{ID: fmt.Sprint("group", i%3), State: fmt.Append(nil, "state ", number)}
			require.NoError(t, d.PutGroup(ctx, g.ID, g.State))
			for _, topic := range topics {
				g.Offsets = append(g.Offsets, StoredOffset{Topic: topic.Name, TopicID: topic.ID, Partition: int32(i % 2), Offset: int64(number), Metadata: "m"})
			}
			require.NoError(t, d.PutOffsets(ctx, g.ID, g.Offsets))
			for _, w := range groupWords(g) {
				m.words[w] = true
			}
			switch {
			case i == 4 && life > 0:
				require.NoError(t, d.DeleteGroup(ctx, g.ID))
			case i == 2 && life > 0:
				d.groups.changing <- struct{}{}
				err := d.groups.rewrite()
				<-d.groups.changing
				require.NoError(t, err)
			}
		}
		switch {
		case life == 0:
			require.NoError(t, d.DeleteTopic(ctx, gone.Name))
			delete(m.logs, logKey{gone.ID, 0})
			require.NoError(t, d.Close())
		case life == 1 || how == endedClean:
			require.NoError(t, d.Close())
		default:
			old := files
			if files = old.kill(); how == endedPower {
				files = files.crash(rng)
			}
			_ = d.Close() // All that it does fails.
		}
	}
	// All in it is lasting now.
	m.files = newMemFiles(seed)
	for _, path := range files.paths() {
		require.NoError(t, makeDir(m.files, filepath.Dir(path)))
		m.files.put(path, files.content(path))
		if name := filepath.Base(path); name != lockName && !strings.HasSuffix(name, temporarySuffix) {
			m.paths = append(m.paths, path)
		}
	}
	for key, l := range m.logs {
		l.survey(t, m.files)
		m.keys = append(m.keys, key)
	}
	slices.SortFunc(m.keys, func(a, b logKey) int { return strings.Compare(a.String(), b.String()) })
	m.survey(t)
	return m
}

func makeRecoveryBatch(rng *rand.Rand, number *int, size int) []byte {
	ms := make([]*Message, 1+rng.IntN(4))
	for i := range ms {
		*number++
		value := fmt.Sprint(*number, " ") + strings.Repeat(string(rune('a'+rng.IntN(26))), rng.IntN(size))
		ms[i] = &Message{Value: []byte(value), Timestamp: int64(*number*10 + rng.IntN(60))}
	}
	return appendBatch(nil, ms...)
}

// append appends a batch to a log, and remembers it.
func (l *recoveryLog) append(t testing.TB, log PartitionLog, b batch, acks Acks) {
	done := make(chan AppendResult, 1)
	log.Append(b, acks, func(r AppendResult) { done <- r })
	require.NoError(t, (<-done).Err)
	l.batches[b.baseOffset()] = bytes.Clone(b)
}

// survey finds where the batches of a log are.
func (l *recoveryLog) survey(t testing.TB, files *memFiles) {
	for _, path := range files.paths() {
		if filepath.Dir(path) != l.dir {
			continue
		}
		data := files.content(path)
		if base, ok := parseSegmentName(filepath.Base(path), segmentSuffix); ok {
			s := recoverySegment{path: path}
			at := place{min(segmentHeaderSize, int64(len(data))), base}
			for {
				s.places = append(s.places, at)
				b, _, _ := cutWhole(data[at.pos:], at.offset)
				if b == nil {
					break
				}
				require.Equal(t, l.batches[at.offset], b)
				at = place{at.pos + int64(len(b)), b.nextOffset()}
			}
			l.segments = append(l.segments, s)
		} else if strings.HasSuffix(path, indexSuffix) {
			for pos := segmentHeaderSize; pos+indexEntrySize <= len(data); pos += indexEntrySize {
				var e indexEntry
				if e.parse(data[pos:pos+indexEntrySize]) && e.flags&indexSynced != 0 {
					l.frontier = max(l.frontier, e.offset)
				}
			}
		}
	}
}

// survey opens the undamaged directory.
func (m *recoveryTemplate) survey(t testing.TB) {
	r := &recoveryRun{template: m, files: m.files.clone(), own: make(map[logKey]map[int64]batch)}
	require.NoError(t, r.open())
	for key := range r.logs {
		r.walk(key, false)
	}
	m.groups, _ = r.store.Groups(t.Context())
	require.NoError(t, r.store.Close())
	require.Empty(t, r.problems)
	for key := range m.logs {
		require.NotNil(t, r.found[key], "%s", key)
		require.Empty(t, r.found[key].harm)
	}
	m.served = r
}

// recoveryTemplates are directories that were closed, killed and cut off from power, of small
// segments and of some that have an index worth the name.
func recoveryTemplates(t testing.TB) []*recoveryTemplate {
	return []*recoveryTemplate{
		makeRecoveryTemplate(t, "closed", endedClean, 1, 1500, 300, 7),
		makeRecoveryTemplate(t, "killed", endedKilled, 2, 1500, 300, 7),
		makeRecoveryTemplate(t, "power lost", endedPower, 3, 1500, 300, 7),
		makeRecoveryTemplate(t, "power lost again", endedPower, 4, 2500, 200, 7),
		makeRecoveryTemplate(t, "large", endedClean, 5, 64<<10, 5000, 8),
		makeRecoveryTemplate(t, "large, killed", endedKilled, 6, 64<<10, 5000, 8),
	}
}
