package robust

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const labDir = "/srv/data"

// envCount returns the number that an environment variable asks for, or normal.
func envCount(t testing.TB, name string, normal int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return normal
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// storageLab lets a storage work on files in memory, end in all ways, and be opened
// again, and holds it against a model.
type storageLab struct {
	model  *storageModel
	rng    *rand.Rand
	files  *memFiles
	store  Storage
	topics []StoredTopic
	logs   map[logKey]PartitionLog
	names  map[string]LogConfig // of topics
	how    lifeEnd
	ended  time.Time
}

func newStorageLab(rng *rand.Rand, policy SyncPolicy) *storageLab {
	lab := &storageLab{
		model: newStorageModel(policy), rng: rng, files: newMemFiles(rng.Uint64()),
		logs: make(map[logKey]PartitionLog), names: make(map[string]LogConfig), ended: time.Now(),
	}
	if err := lab.files.mkdir("/srv"); err != nil {
		panic(err)
	}
	if err := lab.files.syncDir("/"); err != nil {
		panic(err)
	}
	return lab
}

// openStore opens the storage and all logs; what it returns beside an error may be in part.
func (lab *storageLab) openStore(ctx context.Context) error {
	clear(lab.logs)
	lab.store, lab.topics = nil, nil
	quiet := newWarner(slog.New(slog.NewTextHandler(io.Discard, nil)))
	s, err := openDataDir(lab.files, labDir, lab.model.policy, quiet)
	if err != nil {
		return err
	}
	lab.store = s
	topics, err := s.Topics(ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(topics, func(a, b StoredTopic) int { return strings.Compare(a.ID, b.ID) })
	lab.topics = topics
	for _, t := range topics {
		if err := lab.openTopic(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

func (lab *storageLab) openTopic(ctx context.Context, t StoredTopic) error {
	for p := range t.Partitions {
		if _, err := lab.openLog(ctx, t, p); err != nil {
			return err
		}
	}
	return nil
}

// keys returns the logs, in order, so that the same happens each time.
func (lab *storageLab) keys() []logKey {
	return slices.SortedFunc(maps.Keys(lab.logs), func(a, b logKey) int { return strings.Compare(a.String(), b.String()) })
}

// config is that of a topic's logs.
func (lab *storageLab) config(t StoredTopic) LogConfig {
	c := lab.names[t.Name]
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 4096
	}
	return c
}

func (lab *storageLab) openLog(ctx context.Context, t StoredTopic, p int32) (PartitionLog, error) {
	l, err := lab.store.OpenPartition(ctx, t, p, lab.config(t), func() {})
	if err == nil {
		key := logKey{t.ID, p}
		lab.logs[key] = l
		lab.model.log(key).config = lab.config(t)
	}
	return l, err
}

// start opens the storage, in which the power may go a few times, and compares it with
// the model.
func (lab *storageLab) start(ctx context.Context) bool {
	for tries := 0; ; tries++ {
		if tries < 3 && lab.rng.IntN(3) == 0 {
			lab.files.crashAt(1 + lab.rng.Int64N(80))
		}
		err := lab.openStore(ctx)
		lab.files.clearFault()
		if lab.files.failed() == nil {
			if err != nil {
				lab.model.problem("%s: opening: %v", lab.how, err)
				_ = lab.closeStore()
				return false
			}
			break
		}
		lab.model.note("%v while opening", lab.files.failed())
		_ = lab.closeStore()
		if lab.rng.IntN(3) == 0 {
			lab.files, lab.how = lab.files.kill(), max(lab.how, endedKilled)
		} else {
			lab.files, lab.how = lab.files.crash(lab.rng), endedPower
		}
	}
	lab.model.note("opened after %s", lab.how)
	lab.model.opened()
	lab.compare(ctx)
	lab.probe()
	return lab.model.found() == ""
}

// compare compares all that there is with the model.
func (lab *storageLab) compare(ctx context.Context) {
	lab.model.checkTopics(ctx, lab.store, lab.how)
	lab.model.checkGroups(ctx, lab.store, lab.how, lab.ended)
	for _, t := range lab.topics {
		for p := range t.Partitions {
			key := logKey{t.ID, p}
			lab.model.checkLog(ctx, lab.rng, lab.model.log(key), lab.logs[key], lab.how, lab.ended)
			lab.model.survey(lab.model.log(key), lab.logs[key])
		}
	}
}

// closeStore returns the error of Close.
func (lab *storageLab) closeStore() error {
	if lab.store == nil {
		return nil
	}
	err := lab.store.Close()
	if err != nil && lab.files.failed() == nil && !lab.model.mayBe(err) {
		lab.model.problem("closing: %v", err)
	}
	if open := lab.files.openNow(); len(open) > 0 && lab.files.failed() == nil {
		lab.model.problem("open after Close: %v", open)
	}
	lab.store = nil
	return err
}

// end ends the storage's life in one way or another.
func (lab *storageLab) end() {
	lab.ended = lab.files.diedAt()
	dead := lab.files.failed() != nil
	switch n := lab.rng.IntN(10); {
	case dead && n < 3:
		_ = lab.closeStore()
		lab.files, lab.how = lab.files.kill(), endedKilled
	case dead:
		_ = lab.closeStore()
		lab.files, lab.how = lab.files.crash(lab.rng), endedPower
	case n < 2:
		files := lab.files.kill()
		_ = lab.closeStore()
		lab.files, lab.how = files, endedKilled
	case n < 6:
		files := lab.files.crash(lab.rng)
		_ = lab.closeStore()
		lab.files, lab.how = files, endedPower
	default:
		failed := lab.closeStore() != nil // Then nothing is promised beyond what was before.
		lab.how = endedClean
		if failed && lab.model.mayFail {
			lab.how = endedKilled
		}
		switch {
		case lab.files.failed() != nil:
			lab.files, lab.how = lab.files.crash(lab.rng), endedPower // While it was closed.
		case n < 8:
			// What Close has returned from is as lasting as can be.
			lab.files = lab.files.crash(lab.rng)
			if lab.model.inDoubt() || failed {
				lab.how = endedPower
			}
		}
	}
}

// expected reports whether an error is one: the power has gone.
func (lab *storageLab) expected(what string, err error) bool {
	if err != nil && lab.files.failed() == nil && !lab.model.mayBe(err) {
		lab.model.problem("%s: %v", what, err)
	}
	return err == nil
}

// work lets many use the storage side by side, until they are done or the power goes.
func (lab *storageLab) work(ctx context.Context, size labSize) {
	var group sync.WaitGroup
	defer group.Wait()
	worker := func(f func(rng *rand.Rand)) {
		rng := rand.New(rand.NewPCG(lab.rng.Uint64(), 5))
		if size.workers {
			group.Go(func() { f(rng) })
		} else {
			f(rng)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(lab.names)) {
		i := slices.IndexFunc(lab.topics, func(t StoredTopic) bool { return t.Name == name })
		var t StoredTopic
		if i >= 0 {
			t = lab.topics[i]
		} else {
			t = StoredTopic{Name: name, ID: lab.model.newID(), Partitions: size.partitions}
			if !lab.expected("put topic", lab.model.putTopic(ctx, lab.store, t)) || !lab.expected("open", lab.openTopic(ctx, t)) {
				return
			}
			lab.topics = append(lab.topics, t)
		}
		for p := range t.Partitions {
			key := logKey{t.ID, p}
			log, model := lab.logs[key], lab.model.log(key)
			for n := range size.producers {
				p := lab.model.producer(model, n)
				worker(func(rng *rand.Rand) { lab.producing(rng, model, log, p, size) })
			}
			for appender := range size.appenders {
				worker(func(rng *rand.Rand) { lab.appender(ctx, rng, model, log, lab.model.life*100+appender, size) })
			}
			if size.readers {
				worker(func(rng *rand.Rand) { lab.reader(ctx, rng, model, log) })
			}
		}
	}
	topics := slices.DeleteFunc(slices.Clone(lab.topics), func(t StoredTopic) bool { return lab.names[t.Name].SegmentBytes == 0 })
	for g := range size.groups {
		worker(func(rng *rand.Rand) { lab.committer(ctx, rng, fmt.Sprint("g", g), topics) })
	}
	if size.admin {
		worker(func(rng *rand.Rand) { lab.admin(ctx, rng) })
	}
}

// pause lets the time of the bubble pass, now and then.
func (lab *storageLab) pause(rng *rand.Rand) {
	if rng.IntN(6) == 0 {
		<-time.After(time.Duration(rng.IntN(30)) * time.Millisecond)
	}
}

// appender appends, waiting for each answer or not, and deletes as it goes.
func (lab *storageLab) appender(ctx context.Context, rng *rand.Rand, model *logModel, log PartitionLog, id int, size labSize) {
	var pending sync.WaitGroup
	defer pending.Wait()
	pipelined := rng.IntN(2) == 0
	for range 1 + rng.IntN(size.appends) {
		if lab.files.failed() != nil {
			return
		}
		data, made := lab.model.makeBatches(rng, model, id, size.batches(rng), size.bytes, size.alike)
		acks := AcksStored
		if rng.IntN(cmp.Or(size.synced, 8)) == 0 {
			acks = AcksSynced
		}
		pending.Add(1)
		log.Append(data, acks, func(r AppendResult) {
			lab.model.answered(model, made, acks, r, lab.files.failed() != nil)
			pending.Done()
		})
		if !pipelined || rng.IntN(4) == 0 {
			pending.Wait()
		}
		if rng.IntN(12) == 0 {
			start, end := log.Bounds()
			switch {
			case model.config.RetentionBytes > 0 || model.config.RetentionAge > 0:
				lab.expected("expire", lab.model.expire(model, log, time.Now().Add(time.Duration(rng.IntN(80))*time.Millisecond)))
			case size.deletes && end > start:
				lab.expected("delete", lab.model.deleteBefore(ctx, model, log, start+rng.Int64N(end-start+1)))
			}
		}
		lab.pause(rng)
	}
}

func (lab *storageLab) reader(ctx context.Context, rng *rand.Rand, model *logModel, log PartitionLog) {
	for range 1 + rng.IntN(20) {
		start, end := log.Bounds()
		if start < end {
			_, err := lab.model.read(ctx, model, log, start+rng.Int64N(end-start), 1+rng.IntN(3000))
			if again, _ := log.Bounds(); again == start {
				lab.expected("read", err)
			}
		}
		lab.pause(rng)
	}
}

func (lab *storageLab) committer(ctx context.Context, rng *rand.Rand, id string, topics []StoredTopic) {
	for range 1 + rng.IntN(15) {
		switch n := rng.IntN(10); {
		case n == 0:
			lab.expected("delete group", lab.model.deleteGroup(ctx, lab.store, id))
		case n < 4:
			lab.expected("put group", lab.model.putGroup(ctx, lab.store, id, fmt.Sprint("state ", rng.Uint32())))
		case len(topics) > 0:
			var offsets []StoredOffset
			for _, t := range topics {
				for p := range t.Partitions {
					if rng.IntN(2) == 0 {
						offsets = append(offsets, StoredOffset{t.Name, t.ID, p, rng.Int64N(1000), fmt.Sprint("m", rng.IntN(10))})
					}
				}
			}
			if len(offsets) > 0 {
				lab.expected("put offsets", lab.model.putOffsets(ctx, lab.store, id, offsets))
			}
		}
		lab.pause(rng)
	}
}

// admin makes, changes and deletes a topic, in which a group has offsets.
func (lab *storageLab) admin(ctx context.Context, rng *rand.Rand) {
	var t StoredTopic
	if i := slices.IndexFunc(lab.topics, func(t StoredTopic) bool { return t.Name == "brief" }); i >= 0 {
		t = lab.topics[i]
	}
	for range 1 + rng.IntN(8) {
		switch {
		case t.ID == "":
			next := StoredTopic{Name: "brief", ID: lab.model.newID(), Partitions: 1}
			if !lab.expected("put topic", lab.model.putTopic(ctx, lab.store, next)) {
				return
			}
			t = next
		case rng.IntN(3) == 0:
			if !lab.expected("delete topic", lab.model.deleteTopic(ctx, lab.store, t)) {
				return
			}
			t = StoredTopic{}
		case rng.IntN(3) == 0:
			next := t
			next.Config = map[string]string{"key": fmt.Sprint(rng.IntN(100))}
			if !lab.expected("put topic", lab.model.putTopic(ctx, lab.store, next)) {
				return
			}
			t = next
		default:
			key := logKey{t.ID, 0}
			log, err := lab.store.OpenPartition(ctx, t, 0, LogConfig{SegmentBytes: 4096}, func() {})
			if !lab.expected("open partition", err) {
				return
			}
			model := lab.model.log(key)
			lab.appender(ctx, rng, model, log, lab.model.life*100+99, labSize{appends: 3, bytes: 500})
			if !lab.expected("close partition", log.Close()) {
				return
			}
			lab.expected("put offsets", lab.model.putOffsets(ctx, lab.store, "brief", []StoredOffset{{t.Name, t.ID, 0, rng.Int64N(50), ""}}))
		}
		lab.pause(rng)
	}
}

// labSize is how much happens in a life.
type labSize struct {
	workers    bool // side by side
	topics     int
	partitions int32
	appenders  int
	producers  int
	appends    int // of each
	synced     int // of so many one waits for a sync; 0 for 8
	bytes      int // of a record's value
	alike      bool
	groups     int
	readers    bool
	deletes    bool
	admin      bool
}

// batches is how many are to be appended in one piece.
func (s labSize) batches(rng *rand.Rand) int {
	if s.alike {
		return 1 + rng.IntN(6)
	}
	return 1 + rng.IntN(5)/3
}

// newLabSize returns a small or a large one: what fails in a small one is easier to see.
func newLabSize(rng *rand.Rand) labSize {
	size := newPlainLabSize(rng)
	size.producers = rng.IntN(3)
	if size.producers > 0 && rng.IntN(2) == 0 {
		size.appenders = 0
	}
	return size
}

func newPlainLabSize(rng *rand.Rand) labSize {
	switch rng.IntN(5) {
	case 0:
		return labSize{topics: 1, partitions: 1, appenders: 1, appends: 8, bytes: 100 + rng.IntN(200), alike: true}
	case 1:
		return labSize{topics: 1, partitions: 1, appenders: 1, appends: 8, bytes: 1500, deletes: rng.IntN(2) == 0}
	case 2:
		return labSize{topics: 1, partitions: 1, appenders: 1, appends: 20, bytes: 300, groups: 1, admin: rng.IntN(2) == 0}
	case 3:
		return labSize{workers: true, topics: 1, partitions: 1, appenders: 3, appends: 15, bytes: 600, readers: true, deletes: rng.IntN(2) == 0}
	default:
		return labSize{
			workers: true, topics: 1 + rng.IntN(3), partitions: int32(1 + rng.IntN(2)), appenders: 1 + rng.IntN(3), appends: 20, bytes: []int{10, 300, 3000}[rng.IntN(3)],
			groups: rng.IntN(3), readers: true, deletes: rng.IntN(2) == 0, admin: rng.IntN(2) == 0,
		}
	}
}

// runLab takes a storage through some lives, and returns what was wrong.
func runLab(ctx context.Context, seed uint64, trace func(string)) (summary string) {
	rng := rand.New(rand.NewPCG(seed, 11))
	policy := []SyncPolicy{SyncAlways, SyncAlways, SyncInterval(10 * time.Millisecond), SyncNever}[rng.IntN(4)]
	lab := newStorageLab(rng, policy)
	if trace != nil {
		lab.files.trace = func(op fileOp) { trace(fmt.Sprintf("%v (%d)", op, op.size)) }
		lab.model.trace = trace
	}
	size := newLabSize(rng)
	configs := []LogConfig{{SegmentBytes: 4096}, {SegmentBytes: 4096, RetentionBytes: 6000}, {SegmentBytes: 4096, RetentionAge: 40 * time.Millisecond}}
	rng.Shuffle(len(configs), func(i, j int) { configs[i], configs[j] = configs[j], configs[i] })
	for i := range size.topics {
		lab.names[string(rune('a'+i))] = configs[i]
	}
	for range 2 + rng.IntN(3) {
		if !lab.start(ctx) {
			break
		}
		switch rng.IntN(6) {
		case 0, 1, 2:
			lab.files.crashAt(1 + rng.Int64N(300))
		case 3:
			lab.files.crashAt(1 + rng.Int64N(10)) // What was found at the opening lasts, or does not.
		}
		lab.work(ctx, size)
		lab.model.note("ends: %v", lab.files.failed())
		lab.end()
		if lab.model.found() != "" {
			break
		}
	}
	_ = lab.closeStore()
	if found := lab.model.found(); found != "" {
		return fmt.Sprintf("%v, %+v:\n%s", policy, size, found)
	}
	return ""
}

// TestPowerLoss: ROBUST_POWERLOSS is the number of runs, ROBUST_SEED the first of their
// seeds; with ROBUST_TRACE what the files go through is told, which is best for one run.
func TestPowerLoss(t *testing.T) {
	first := envCount(t, "ROBUST_SEED", 1)
	var trace func(string)
	if os.Getenv("ROBUST_TRACE") != "" {
		trace = func(text string) { t.Log(text) }
	}
	failed := 0
	for seed := first; seed < first+envCount(t, "ROBUST_POWERLOSS", 300) && failed < 5; seed++ {
		var problems string
		synctest.Test(t, func(t *testing.T) { problems = runLab(t.Context(), uint64(seed), trace) })
		if problems != "" {
			failed++
			t.Errorf("seed %d: %s", seed, problems)
		}
	}
}
