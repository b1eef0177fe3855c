package robust

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/google/uuid"
)

// A data directory has
//
//	lock                                  who works in it
//	robust.json                           who the broker is
//	groups/                               the log of consumer groups (broker_journal.go)
//	topics/NAME@ID/topic.json             a topic
//	topics/NAME@ID/PARTITION/*.log, *.index, *.producers, start.json
//	trash/                                topics that are being deleted
//	reserve                               room for when the disk is full (broker_reserve.go)
//
// The name in a directory's is for people; topic.json has the one that counts, and must be
// where it belongs.
const (
	lockName     = "lock"
	identityName = "robust.json"
	topicsName   = "topics"
	trashName    = "trash"
	topicName    = "topic.json"
)

// dataDir is a [Storage] in a directory.
type dataDir struct {
	store *logStore
	dir   string
	held  io.Closer // the lock
	id    BrokerIdentity
	done  chan struct{} // closed by Close, ends the store's goroutine

	groups *journal

	// changing is a token: topics are made and removed one at a time.
	changing chan struct{}

	mu     sync.Mutex // guards the following; not held across I/O
	topics map[string]*storedTopicDir
	logs   map[*diskLog]struct{}
	closed bool

	// deleted has topics, by name, that are gone, but might be back after a power failure,
	// or whose offsets would; it belongs to whoever has changing.
	deleted map[string]deletedTopic
}

// storedTopicDir is a topic and where it is.
type storedTopicDir struct {
	topic StoredTopic
	dir   string
}

// deletedTopic is a topic in the trash.
type deletedTopic struct{ id, trash string }

// openDataDir opens a data directory, which is made if it is not there.
func openDataDir(files fileSystem, dir string, policy SyncPolicy, warn *warner) (*dataDir, error) {
	for _, d := range []string{dir, filepath.Join(dir, topicsName), filepath.Join(dir, trashName)} {
		if err := makeDir(files, d); err != nil {
			return nil, storageError(err)
		}
	}
	held, err := lockDataDir(files, dir, false)
	if err != nil {
		return nil, err
	}
	d := &dataDir{
		store: newLogStore(files, policy, warn), dir: dir, held: held,
		done: make(chan struct{}), changing: make(chan struct{}, 1),
		topics: make(map[string]*storedTopicDir), logs: make(map[*diskLog]struct{}),
		deleted: make(map[string]deletedTopic),
	}
	d.store.reserve = openReserve(files, filepath.Join(dir, reserveName))
	d.store.running.Go(func() { d.store.run(d.done) })
	if err := d.load(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.store.reserve.fill()
	return d, nil
}

// lockDataDir sees to it that nobody else is at work in a directory. Who only looks may do so
// where nothing can be written, too.
func lockDataDir(files fileSystem, dir string, look bool) (io.Closer, error) {
	path := filepath.Join(dir, lockName)
	held, holder, err := files.lock(path, newLockHolder())
	if look && (errors.Is(err, syscall.EROFS) || errors.Is(err, os.ErrPermission)) {
		held, holder, err = files.lock(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			return io.NopCloser(nil), nil // No broker was ever there.
		}
	}
	if !errors.Is(err, ErrDataDirInUse) {
		return held, storageError(err)
	}
	return nil, fmt.Errorf("%w: %s%s", ErrDataDirInUse, dir, heldBy(holder))
}

// load reads what the directory has.
func (d *dataDir) load() error {
	files := d.store.files
	if err := d.loadIdentity(); err != nil {
		return err
	}
	root := filepath.Join(d.dir, topicsName)
	infos, err := files.list(root)
	if err != nil {
		return storageError(err)
	}
	for _, info := range infos {
		dir := filepath.Join(root, info.name)
		if !info.dir {
			continue // Nobody knows whose it is.
		}
		// What is found now is relied on, also if it was made just before a crash.
		if err := files.syncDir(dir); err != nil {
			return storageError(err)
		}
		t, err := readTopic(files, dir)
		if errors.Is(err, os.ErrNotExist) {
			unfinished, err := isUnfinished(files, dir)
			if err == nil && unfinished {
				err = storageError(removeAll(files, dir))
			}
			if err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if other := d.topics[t.Name]; other != nil { // Of another ID.
			return fmt.Errorf("%w: %s and %s are both topic %q", ErrCorrupt, other.dir, dir, t.Name)
		}
		d.topics[t.Name] = &storedTopicDir{t, dir}
	}
	trash := filepath.Join(d.dir, trashName)
	leftovers, err := files.list(trash)
	if err != nil {
		return storageError(err)
	}
	if len(leftovers) > 0 {
		// A directory that comes back is to have all its files.
		if err := files.syncDir(root); err != nil {
			return storageError(err)
		}
	}
	for _, info := range leftovers {
		d.empty(filepath.Join(trash, info.name))
	}
	d.groups, err = openJournal(context.Background(), d.store, filepath.Join(d.dir, groupsName), d.topicIDs())
	return err
}

// readTopic reads the description of the topic in a directory.
func readTopic(files fileSystem, dir string) (t StoredTopic, err error) {
	path := filepath.Join(dir, topicName)
	if err := readJSON(files, path, &t); err != nil {
		return t, err
	}
	if topicDirName(t) != filepath.Base(dir) {
		return t, &CorruptError{File: path, From: -1, To: -1, Reason: fmt.Sprintf("it describes topic %q of ID %s", t.Name, t.ID)}
	}
	return t, nil
}

// isUnfinished tells whether a directory without the description of a topic is that of one
// that was being made, of which nobody has heard. The error is a CorruptError if it is that of
// a topic with messages. Anything else is somebody else's.
func isUnfinished(files fileSystem, dir string) (bool, error) {
	infos, err := files.list(dir)
	if err != nil {
		return false, storageError(err)
	}
	if !strings.Contains(filepath.Base(dir), "@") {
		return false, nil
	}
	ours := true
	for _, info := range infos {
		ours = ours && info.name == topicName+temporarySuffix
		if info.dir {
			return false, &CorruptError{File: filepath.Join(dir, topicName), From: -1, To: -1, Reason: "there are messages of a topic that nothing describes"}
		}
	}
	return ours, nil
}

func (d *dataDir) topicIDs() map[string]bool {
	ids := make(map[string]bool, len(d.topics))
	for _, t := range d.topics {
		ids[t.topic.ID] = true
	}
	return ids
}

func (d *dataDir) loadIdentity() error {
	path := filepath.Join(d.dir, identityName)
	var kept storedIdentity
	err := readJSON(d.store.files, path, &kept)
	if errors.Is(err, os.ErrNotExist) {
		kept = storedIdentity{ClusterID: uuid.NewString(), NodeID: uuid.NewString()}
	} else if err != nil {
		return err
	}
	kept.Epoch++
	d.id = BrokerIdentity{kept.ClusterID, kept.NodeID}
	d.store.epoch = kept.Epoch
	return storageError(d.store.replaceJSON(path, kept))
}

// storedIdentity is who the broker is. Epoch counts how often the directory was opened:
// what a log has lost may be all that tells the last epoch.
type storedIdentity struct {
	ClusterID string `json:"cluster_id"`
	NodeID    string `json:"node_id"`
	Epoch     int32  `json:"epoch"`
}

func (d *dataDir) Identity(context.Context) (BrokerIdentity, error) { return d.id, nil }

func (d *dataDir) Topics(context.Context) ([]StoredTopic, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var topics []StoredTopic
	for _, t := range d.topics {
		topics = append(topics, t.topic)
	}
	return topics, nil
}

// change runs f, which makes or removes a topic, alone.
func (d *dataDir) change(ctx context.Context, f func() error) error {
	select {
	case d.changing <- struct{}{}:
		defer func() { <-d.changing }()
	case <-ctx.Done():
		return endOf(ctx)
	}
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	if closed {
		return ErrClosed
	}
	return storageError(f())
}

func (d *dataDir) PutTopic(ctx context.Context, t StoredTopic) error {
	return d.change(ctx, func() error {
		t.Config = maps.Clone(t.Config)
		d.mu.Lock()
		known := d.topics[t.Name]
		d.mu.Unlock()
		if known != nil && known.topic.ID == t.ID {
			if err := d.store.replaceJSON(filepath.Join(known.dir, topicName), t); err != nil {
				return err
			}
			d.mu.Lock()
			d.topics[t.Name] = &storedTopicDir{t, known.dir}
			d.mu.Unlock()
			return nil
		}
		dir := filepath.Join(d.dir, topicsName, topicDirName(t))
		if err := makeDir(d.store.files, dir); err != nil {
			return err
		}
		if err := d.store.replaceJSON(filepath.Join(dir, topicName), t); err != nil {
			return errors.Join(err, removeAll(d.store.files, dir))
		}
		d.mu.Lock()
		d.topics[t.Name] = &storedTopicDir{t, dir}
		d.mu.Unlock()
		return nil
	})
}

// topicDirName is a directory for a topic, not too long for a file system, and unlike that
// of any other also where upper and lower case are the same.
func topicDirName(t StoredTopic) string {
	const most = 150
	safe := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r < 128 && (r == '.' || r == '_' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
				return r
			}
			return '_'
		}, s[:min(len(s), most)])
	}
	return safe(t.Name) + "@" + safe(t.ID)
}

// DeleteTopic may be called again for a topic that it could not delete for good.
func (d *dataDir) DeleteTopic(ctx context.Context, name string) error {
	return d.change(ctx, func() error {
		d.mu.Lock()
		t := d.topics[name]
		d.mu.Unlock()
		if t != nil {
			// With its name it is gone; the rest takes its time.
			trash := filepath.Join(d.dir, trashName, uuid.NewString())
			if err := d.moveAway(t.dir, trash); err != nil {
				return err
			}
			d.mu.Lock()
			delete(d.topics, name)
			d.mu.Unlock()
			d.deleted[name] = deletedTopic{t.topic.ID, trash}
		}
		return d.finishDeletion(context.WithoutCancel(ctx), name)
	})
}

// moveAway moves a directory, or finds that it has been moved.
func (d *dataDir) moveAway(dir, to string) error {
	err := d.store.files.rename(dir, to)
	if err == nil {
		return nil
	}
	if _, there := d.store.files.list(to); there == nil {
		return nil // An error may come of what was done all the same.
	}
	return err
}

// finishDeletion makes sure that a topic does not come back, nor what groups have
// committed for it.
func (d *dataDir) finishDeletion(ctx context.Context, name string) error {
	t, ok := d.deleted[name]
	if !ok {
		return nil
	}
	err := d.store.files.syncDir(filepath.Join(d.dir, topicsName))
	if err == nil {
		// Not before: a directory that comes back is to have all its files.
		d.empty(t.trash)
		err = d.groups.forgetTopic(ctx, t.id)
	}
	if err != nil {
		return fmt.Errorf("%w: the topic is deleted, but may come back after a power failure: %w", ErrStorage, err)
	}
	delete(d.deleted, name)
	return nil
}

// empty removes what is left of a deleted topic, in the background.
func (d *dataDir) empty(trash string) {
	d.store.running.Go(func() {
		if err := removeAll(d.store.files, trash); err != nil {
			d.store.warn.warn("files of a deleted topic cannot be removed", trash, "dir", trash, "error", err)
		}
	})
}

func (d *dataDir) OpenPartition(ctx context.Context, t StoredTopic, partition int32, c LogConfig, advanced func()) (PartitionLog, error) {
	d.mu.Lock()
	known := d.topics[t.Name]
	closed := d.closed
	d.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case known == nil || known.topic.ID != t.ID:
		return nil, fmt.Errorf("%w: %s", ErrTopicNotFound, t.Name)
	}
	dir := filepath.Join(known.dir, strconv.Itoa(int(partition)))
	name := t.Name + "/" + strconv.Itoa(int(partition))
	l, err := openLog(ctx, d.store, dir, name, segmentHeader{topicID: t.ID, partition: partition}, c, logEvents{advanced: advanced})
	if err != nil {
		return nil, fmt.Errorf("partition %d: %w", partition, err)
	}
	d.mu.Lock()
	closed = d.closed
	if !closed {
		d.logs[l] = struct{}{}
	}
	d.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrClosed, l.Close())
	}
	return &dataDirLog{l, d}, nil
}

// dataDirLog is a log that its data directory forgets when it is closed.
type dataDirLog struct {
	*diskLog
	d *dataDir
}

func (l *dataDirLog) Close() error {
	l.d.mu.Lock()
	delete(l.d.logs, l.diskLog)
	l.d.mu.Unlock()
	return l.diskLog.Close()
}

func (d *dataDir) Groups(context.Context) ([]StoredGroup, error) { return d.groups.all(), nil }

func (d *dataDir) PutGroup(ctx context.Context, id string, state []byte) error {
	return d.groups.putState(ctx, id, state)
}

func (d *dataDir) PutOffsets(ctx context.Context, id string, offsets []StoredOffset) error {
	return d.groups.putOffsets(ctx, id, offsets)
}

func (d *dataDir) DeleteGroup(ctx context.Context, id string) error {
	return d.groups.deleteGroup(ctx, id)
}

// Close closes every log, and gives the directory up.
func (d *dataDir) Close() error {
	d.changing <- struct{}{} // A topic that is being made or removed comes first.
	defer func() { <-d.changing }()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	logs := slices.Collect(maps.Keys(d.logs))
	d.mu.Unlock()
	closed := make([]error, len(logs))
	_ = inParallel(len(logs), maxSyncs, func(i int) error {
		closed[i] = logs[i].Close()
		return nil // The others are to be closed all the same.
	})
	err := errors.Join(closed...)
	for name := range d.deleted {
		err = errors.Join(err, d.finishDeletion(context.Background(), name))
	}
	if d.groups != nil {
		err = errors.Join(err, d.groups.close())
	}
	close(d.done)
	d.store.running.Wait()
	return errors.Join(err, storageError(d.held.Close()))
}
