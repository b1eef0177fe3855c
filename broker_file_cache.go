package robust

import (
	"container/list"
	"errors"
	"os"
	"sync"
	"syscall"
)

// fileCache keeps files open that are in use or were used lately, so that a broker of
// many partitions and segments needs few.
type fileCache struct {
	files fileSystem
	limit int // of open files; more are open only while more are in use

	mu   sync.Mutex // guards the following, and the state of every cachedFile; not held while a file is opened or closed
	open int        // files that are open or being opened
	idle *list.List // of *cachedFile that nobody uses, the one used last in front
}

// cachedFile is a file that is opened when it is needed. The zero value with path and
// cache is ready.
type cachedFile struct {
	cache *fileCache
	path  string
	// check looks at a file that was opened; may be nil.
	check func(file) error

	f    file // nil while it is not open
	refs int
	elem *list.Element // in cache.idle; nil while it is used or not open
	gone bool          // to be closed when nobody uses it
}

func newFileCache(files fileSystem, limit int) *fileCache {
	return &fileCache{files: files, limit: limit, idle: list.New()}
}

// acquire returns the file, opened, until release. flag is for a file that is not open.
func (c *cachedFile) acquire(flag int) (file, error) {
	cache := c.cache
	cache.mu.Lock()
	if c.gone {
		cache.mu.Unlock()
		return nil, &os.PathError{Op: "open", Path: c.path, Err: os.ErrNotExist}
	}
	c.refs++
	if c.elem != nil {
		cache.idle.Remove(c.elem)
		c.elem = nil
	}
	if f := c.f; f != nil {
		cache.mu.Unlock()
		return f, nil
	}
	cache.open++
	victims := cache.evictLocked(cache.limit)
	cache.mu.Unlock()
	closeAll(victims)
	f, err := c.openChecked(flag)
	var unused file
	defer func() { closeAll([]file{unused}) }()
	cache.mu.Lock()
	defer cache.mu.Unlock()
	switch {
	case err != nil:
		cache.open--
		c.refs--
		unused = c.restLocked()
		return nil, err
	case c.f != nil:
		// Somebody else has opened it meanwhile.
		cache.open--
		_ = f.Close() // Nothing was written to it.
		return c.f, nil
	}
	c.f = f
	return f, nil
}

// openFile opens a file.
func (c *fileCache) openFile(path string, flag int) (f file, err error) {
	err = c.givingWay(func() error {
		f, err = c.files.open(path, flag)
		return err
	})
	return f, err
}

// syncDir syncs a directory.
func (c *fileCache) syncDir(dir string) error {
	return c.givingWay(func() error { return c.files.syncDir(dir) })
}

// givingWay does something for which a file has to be opened. Where too many are open, the
// idle ones are closed, and it is done again.
func (c *fileCache) givingWay(f func() error) error {
	err := f()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		c.mu.Lock()
		victims := c.evictLocked(0)
		c.mu.Unlock()
		closeAll(victims)
		err = f()
	}
	return err
}

// openChecked opens the file and looks at it.
func (c *cachedFile) openChecked(flag int) (file, error) {
	f, err := c.cache.openFile(c.path, flag)
	if err != nil {
		return nil, err
	}
	if c.check != nil {
		if err := c.check(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// adopt takes over a file that was just made, in use once.
func (c *cachedFile) adopt(f file) {
	c.cache.mu.Lock()
	c.f = f
	c.refs++
	c.cache.open++
	victims := c.cache.evictLocked(c.cache.limit)
	c.cache.mu.Unlock()
	closeAll(victims)
}

// release ends a use.
func (c *cachedFile) release() {
	c.cache.mu.Lock()
	c.refs--
	closed := c.restLocked()
	victims := c.cache.evictLocked(c.cache.limit)
	c.cache.mu.Unlock()
	closeAll(append(victims, closed))
}

// restLocked puts a file that nobody uses among the idle ones. It returns it if it is
// to be closed instead.
func (c *cachedFile) restLocked() file {
	if c.refs > 0 || c.f == nil {
		return nil
	}
	if !c.gone {
		c.elem = c.cache.idle.PushFront(c)
		return nil
	}
	f := c.f
	c.f = nil
	c.cache.open--
	return f
}

// evictLocked gives up idle files until at most limit are open, and returns them to be
// closed.
func (c *fileCache) evictLocked(limit int) (victims []file) {
	for c.open > limit && c.idle.Len() > 0 {
		victim := c.idle.Remove(c.idle.Back()).(*cachedFile)
		victims = append(victims, victim.f)
		victim.f, victim.elem = nil, nil
		c.open--
	}
	return victims
}

// retire has the file closed as soon as nobody uses it, and not opened again.
func (c *cachedFile) retire() {
	c.cache.mu.Lock()
	c.gone = true
	if c.elem != nil {
		c.cache.idle.Remove(c.elem)
		c.elem = nil
	}
	closed := c.restLocked()
	c.cache.mu.Unlock()
	closeAll([]file{closed})
}

// closeAll closes files that are idle. What was written to them and had to be synced has
// been synced before.
func closeAll(files []file) {
	for _, f := range files {
		if f != nil {
			_ = f.Close() // Nobody depends on it any more.
		}
	}
}
