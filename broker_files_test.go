package robust

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// eachFileSystem runs a test on the operating system's files and on those in memory:
// what is tested in memory holds only as far as the two behave alike.
func eachFileSystem(t *testing.T, f func(t *testing.T, files fileSystem, dir string)) {
	t.Run("os", func(t *testing.T) { f(t, osFiles{}, t.TempDir()) })
	t.Run("memory", func(t *testing.T) {
		m := newMemFiles(1)
		require.NoError(t, m.mkdir("/dir"))
		f(t, m, "/dir")
		require.Empty(t, m.openNow())
	})
}

func openFile(t testing.TB, files fileSystem, name string, flag int) file {
	t.Helper()
	f, err := files.open(name, flag)
	require.NoError(t, err)
	return f
}

func writeAt(t testing.TB, f file, text string, at int64) {
	t.Helper()
	n, err := f.WriteAt([]byte(text), at)
	require.NoError(t, err)
	require.Len(t, text, n)
}

// textOf returns the text of a file.
func textOf(t testing.TB, f file) string {
	t.Helper()
	size, err := f.size()
	require.NoError(t, err)
	text := make([]byte, size)
	n, err := f.ReadAt(text, 0)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	return string(text)
}

func TestFilesReadAndWrite(t *testing.T) {
	eachFileSystem(t, func(t *testing.T, files fileSystem, dir string) {
		name := filepath.Join(dir, "f")
		f := openFile(t, files, name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		writeAt(t, f, "0123456789", 0)
		writeAt(t, f, "ab", 4)
		writeAt(t, f, "end", 13)
		require.Equal(t, "0123ab6789\x00\x00\x00end", textOf(t, f))

		buf := make([]byte, 5)
		n, err := f.ReadAt(buf, 13)
		require.Equal(t, 3, n)
		require.Equal(t, io.EOF, err)
		n, err = f.ReadAt(buf, 16)
		require.Equal(t, 0, n)
		require.Equal(t, io.EOF, err)
		n, err = f.ReadAt(buf[:0], 3)
		require.Equal(t, 0, n)
		require.NoError(t, err)
		_, err = f.ReadAt(buf, -1)
		require.Error(t, err)
		_, err = f.WriteAt(buf, -1)
		require.Error(t, err)

		require.NoError(t, f.truncate(6))
		require.NoError(t, f.truncate(8))
		require.Equal(t, "0123ab\x00\x00", textOf(t, f))
		require.Error(t, f.truncate(-1))
		require.NoError(t, f.sync())

		// Two open the same file, and one keeps it when it is removed.
		g := openFile(t, files, name, os.O_RDWR)
		writeAt(t, g, "G", 0)
		require.Equal(t, "G123ab\x00\x00", textOf(t, f))
		require.NoError(t, g.Close())
		require.NoError(t, files.remove(name))
		writeAt(t, f, "F", 1)
		require.Equal(t, "GF23ab\x00\x00", textOf(t, f))
		require.NoError(t, f.Close())
	})
}

func TestFilesOpen(t *testing.T) {
	eachFileSystem(t, func(t *testing.T, files fileSystem, dir string) {
		name := filepath.Join(dir, "f")
		_, err := files.open(name, os.O_RDWR)
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, name)
		_, err = files.open(filepath.Join(dir, "none", "f"), os.O_RDWR|os.O_CREATE)
		require.ErrorIs(t, err, fs.ErrNotExist)
		f := openFile(t, files, name, os.O_RDWR|os.O_CREATE)
		writeAt(t, f, "text", 0)
		require.NoError(t, f.Close())
		_, err = files.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
		require.ErrorIs(t, err, fs.ErrExist)
		_, err = files.open(filepath.Join(name, "f"), os.O_RDWR|os.O_CREATE)
		require.ErrorIs(t, err, syscall.ENOTDIR)
		_, err = files.open(dir, os.O_RDWR)
		require.ErrorIs(t, err, syscall.EISDIR)

		f = openFile(t, files, name, os.O_RDONLY)
		require.Equal(t, "text", textOf(t, f))
		_, err = f.WriteAt([]byte("x"), 0)
		require.Error(t, err)
		require.Error(t, f.truncate(0))
		require.NoError(t, f.Close())
		f = openFile(t, files, name, os.O_RDWR|os.O_TRUNC)
		size, err := f.size()
		require.NoError(t, err)
		require.Zero(t, size)
		require.NoError(t, f.Close())

		_, err = f.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, fs.ErrClosed)
		_, err = f.WriteAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, fs.ErrClosed)
		_, err = f.size()
		require.ErrorIs(t, err, fs.ErrClosed)
		require.ErrorIs(t, f.sync(), fs.ErrClosed)
		require.ErrorIs(t, f.truncate(0), fs.ErrClosed)
		require.ErrorIs(t, f.Close(), fs.ErrClosed)
	})
}

func TestFilesNames(t *testing.T) {
	eachFileSystem(t, func(t *testing.T, files fileSystem, dir string) {
		path := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
		put := func(name, text string) {
			t.Helper()
			f := openFile(t, files, name, os.O_RDWR|os.O_CREATE)
			writeAt(t, f, text, 0)
			require.NoError(t, f.Close())
		}
		names := func(dir string) string {
			t.Helper()
			infos, err := files.list(dir)
			require.NoError(t, err)
			var b strings.Builder
			for _, info := range infos {
				b.WriteString(info.name)
				if info.dir {
					b.WriteByte('/')
				}
				b.WriteByte(' ')
			}
			return b.String()
		}
		require.NoError(t, files.mkdir(path("d")))
		require.ErrorIs(t, files.mkdir(path("d")), fs.ErrExist)
		require.ErrorIs(t, files.mkdir(path("none", "d")), fs.ErrNotExist)
		put(path("d", "b"), "b")
		put(path("d", "a"), "aa")
		put(path("c"), "c")
		require.Equal(t, "c d/ ", names(dir))
		infos, err := files.list(path("d"))
		require.NoError(t, err)
		require.Equal(t, []fileInfo{{name: "a", size: 2}, {name: "b", size: 1}}, infos)
		_, err = files.list(path("none"))
		require.ErrorIs(t, err, fs.ErrNotExist)
		require.ErrorContains(t, err, path("none"))
		_, err = files.list(path("c"))
		require.ErrorIs(t, err, syscall.ENOTDIR)

		// In place of a file, and of an open one, which goes on as it was.
		a := openFile(t, files, path("d", "a"), os.O_RDWR)
		require.NoError(t, files.rename(path("c"), path("d", "a")))
		require.Equal(t, "aa", textOf(t, a))
		require.NoError(t, a.Close())
		a = openFile(t, files, path("d", "a"), os.O_RDWR)
		require.Equal(t, "c", textOf(t, a))
		require.NoError(t, a.Close())
		require.ErrorIs(t, files.rename(path("c"), path("x")), fs.ErrNotExist)
		require.NoError(t, files.rename(path("d", "a"), path("d", "a")))

		// A directory with what is in it.
		require.NoError(t, files.rename(path("d"), path("e")))
		require.Equal(t, "e/ ", names(dir))
		require.Equal(t, "a b ", names(path("e")))
		require.NoError(t, files.mkdir(path("d")))
		require.ErrorIs(t, files.rename(path("e"), path("d")), fs.ErrExist)
		require.ErrorIs(t, files.rename(path("e", "a"), path("d")), fs.ErrExist)
		require.ErrorIs(t, files.rename(path("d"), path("e", "a")), syscall.ENOTDIR)
		require.ErrorIs(t, files.rename(path("d"), path("d", "d")), syscall.EINVAL)

		require.ErrorIs(t, files.remove(path("e")), syscall.ENOTEMPTY)
		require.NoError(t, files.remove(path("e", "a")))
		require.NoError(t, files.remove(path("e", "b")))
		require.NoError(t, files.remove(path("e")))
		require.NoError(t, files.remove(path("d")))
		require.ErrorIs(t, files.remove(path("d")), fs.ErrNotExist)
		require.Empty(t, names(dir))
		require.NoError(t, files.syncDir(dir))
		require.ErrorIs(t, files.syncDir(path("d")), fs.ErrNotExist)
	})
}

func TestFilesLock(t *testing.T) {
	eachFileSystem(t, func(t *testing.T, files fileSystem, dir string) {
		name := filepath.Join(dir, "lock")
		held, _, err := files.lock(name, []byte("first of all"))
		require.NoError(t, err)
		_, holder, err := files.lock(name, []byte("second"))
		require.ErrorIs(t, err, ErrDataDirInUse)
		require.Equal(t, "first of all", string(holder))
		require.NoError(t, held.Close())
		held, _, err = files.lock(name, []byte("third"))
		require.NoError(t, err)
		_, holder, err = files.lock(name, nil)
		require.ErrorIs(t, err, ErrDataDirInUse)
		require.Equal(t, "third", string(holder))
		require.NoError(t, held.Close())
		require.NoError(t, files.remove(name))
		_, _, err = files.lock(filepath.Join(dir, "none", "lock"), nil)
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
}

// Operations at random, the same on both.
func TestFilesAlike(t *testing.T) {
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/dir"))
	dir := t.TempDir()
	type both struct{ os, mem file }
	var open []both
	rng := rand.New(rand.NewPCG(5, 6))
	check := func(a, b error) {
		t.Helper()
		if a == nil || b == nil {
			require.Equal(t, a, b)
			return
		}
		var x, y syscall.Errno
		require.Equal(t, errors.As(a, &x), errors.As(b, &y), "%v, %v", a, b)
		require.Equal(t, x, y, "%v, %v", a, b)
	}
	names := []string{"a", "b", "c", "d", "a/a", "a/b", "b/a", "b/b", "a/a/a"}
	osName := func(name string) string { return filepath.Join(dir, name) }
	memName := func(name string) string { return filepath.Join("/dir", name) }
	for range 20_000 {
		name, other := names[rng.IntN(len(names))], names[rng.IntN(len(names))]
		switch what := rng.IntN(12); {
		case what == 0 && len(open) < 5:
			flag := os.O_RDWR | []int{0, os.O_CREATE, os.O_CREATE | os.O_EXCL, os.O_TRUNC}[rng.IntN(4)]
			f, err := osFiles{}.open(osName(name), flag)
			g, err2 := m.open(memName(name), flag)
			check(err, err2)
			if err == nil {
				open = append(open, both{f, g})
			}
		case what == 1:
			check(osFiles{}.mkdir(osName(name)), m.mkdir(memName(name)))
		case what == 2:
			check(osFiles{}.remove(osName(name)), m.remove(memName(name)))
		case what == 3 && !strings.HasPrefix(name, other+"/"):
			check(osFiles{}.rename(osName(name), osName(other)), m.rename(memName(name), memName(other)))
		case what == 4:
			a, err := osFiles{}.list(osName(name))
			b, err2 := m.list(memName(name))
			check(err, err2)
			for i := range a {
				if a[i].dir {
					a[i].size = 0
				}
			}
			require.Equal(t, a, b)
		case len(open) == 0:
		case what == 5:
			i := rng.IntN(len(open))
			check(open[i].os.Close(), open[i].mem.Close())
			open = slices.Delete(open, i, i+1)
		case what == 6:
			f, size := open[rng.IntN(len(open))], rng.Int64N(3000)
			check(f.os.truncate(size), f.mem.truncate(size))
		case what == 7:
			require.NoError(t, open[rng.IntN(len(open))].mem.sync())
		case what < 10:
			f, p, at := open[rng.IntN(len(open))], make([]byte, rng.IntN(2000)), rng.Int64N(3000)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			_, err := f.os.WriteAt(p, at)
			_, err2 := f.mem.WriteAt(p, at)
			check(err, err2)
		default:
			f, p, q, at := open[rng.IntN(len(open))], make([]byte, 1000), make([]byte, 1000), rng.Int64N(3000)
			n, err := f.os.ReadAt(p, at)
			n2, err2 := f.mem.ReadAt(q, at)
			require.Equal(t, n, n2)
			require.Equal(t, err, err2)
			require.Equal(t, p, q)
		}
	}
	for _, f := range open {
		check(f.os.Close(), f.mem.Close())
	}
	require.Empty(t, m.openNow())
}

func TestMemFilesPowerLoss(t *testing.T) {
	pad := func(b byte, n int) string { return string(bytes.Repeat([]byte{b}, n)) }
	old, added := pad('a', 700), pad('b', 2000)
	seen := make(map[string]int)
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newMemFiles(seed)
		require.NoError(t, m.mkdir("/d"))
		f := openFile(t, m, "/d/f", os.O_RDWR|os.O_CREATE)
		writeAt(t, f, old, 0)
		if m.clone().crash(rng).content("/d/f") != nil {
			seen["unsynced name"]++
		}
		require.NoError(t, f.sync())
		require.NoError(t, m.syncDir("/d"))
		require.NoError(t, m.syncDir("/"))
		require.Equal(t, old, string(m.clone().crash(rng).content("/d/f")), "what is synced is there, whatever comes")

		writeAt(t, f, added, 700)
		after := m.crash(rng)
		require.ErrorIs(t, f.sync(), errPowerLoss)
		_, err := m.list("/d")
		require.ErrorIs(t, err, errPowerLoss)
		text := string(after.content("/d/f"))
		require.GreaterOrEqual(t, len(text), 700)
		require.Equal(t, old, text[:700])
		switch {
		case len(text) == 700:
			seen["nothing"]++
		case text == old+added:
			seen["all"]++
		default:
			require.Len(t, text, 2700)
			var first string
			for at := 700; at < len(text); at = (at/sectorSize + 1) * sectorSize {
				sector := text[at:min(len(text), (at/sectorSize+1)*sectorSize)]
				switch sector {
				case pad('b', len(sector)):
					first += "b"
				case pad(0, len(sector)):
					first += "0"
				default:
					first += "x"
				}
			}
			seen[first]++
		}
		require.Equal(t, after.content("/d/f"), after.crash(rng).content("/d/f"), "power that goes again takes nothing more")
	}
	for _, what := range []string{"unsynced name", "nothing", "all", "00000", "0bbbb", "b000b", "0xxxx"} {
		require.NotZero(t, seen[what], "%s: %v", what, seen)
	}
}

func TestMemFilesPowerLossOfNames(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := newMemFiles(seed)
		put := func(name, text string) {
			f := openFile(t, m, name, os.O_RDWR|os.O_CREATE)
			writeAt(t, f, text, 0)
			require.NoError(t, f.sync())
			require.NoError(t, f.Close())
		}
		require.NoError(t, m.mkdir("/d"))
		require.NoError(t, m.mkdir("/e"))
		put("/d/a", "old")
		put("/d/gone", "gone")
		require.NoError(t, m.syncDir("/d"))
		require.NoError(t, m.syncDir("/"))
		put("/d/a.new", "new")
		require.NoError(t, m.rename("/d/a.new", "/d/a"))
		require.NoError(t, m.remove("/d/gone"))
		put("/d/moved", "moved")
		require.NoError(t, m.syncDir("/d"))
		require.NoError(t, m.rename("/d/moved", "/e/moved"))
		put("/d/a.new", "newer")
		require.NoError(t, m.rename("/d/a.new", "/d/a"))
		require.NoError(t, m.remove("/d/a"))

		after := m.crash(rng)
		for _, path := range after.paths() {
			seen[path+"="+string(after.content(path))]++
		}
		require.Len(t, slices.DeleteFunc(after.paths(), func(p string) bool { return filepath.Base(p) != "moved" }), 1,
			"a file that is moved is in one of two places")
		require.Nil(t, after.content("/d/gone"))
	}
	for _, what := range []string{"/d/a=new", "/d/a=newer", "/d/a.new=newer", "/d/moved=moved", "/e/moved=moved"} {
		require.NotZero(t, seen[what], "%s: %v", what, seen)
	}
	require.Zero(t, seen["/d/a=old"])
}

// Of a sync that fails nobody knows what it has done, and the next one does not tell.
func TestMemFilesDroppedSync(t *testing.T) {
	lost, kept := 0, 0
	for seed := range uint64(200) {
		m := newMemFiles(seed)
		f := openFile(t, m, "/f", os.O_RDWR|os.O_CREATE)
		require.NoError(t, m.syncDir("/"))
		writeAt(t, f, "first", 0)
		evict := seed%2 == 0
		m.setFault(func(op fileOp) fault {
			if op.kind == "sync" {
				return fault{err: syscall.EIO, drop: true, evict: evict}
			}
			return fault{}
		})
		require.ErrorIs(t, f.sync(), syscall.EIO)
		m.clearFault()
		require.NoError(t, f.sync())
		visible := textOf(t, f)
		if !evict {
			require.Equal(t, "first", visible)
		}
		writeAt(t, f, "second", sectorSize)
		require.NoError(t, f.sync())
		after := string(m.crash(rand.New(rand.NewPCG(seed, 1))).content("/f"))
		require.Len(t, after, sectorSize+6)
		require.Equal(t, "second", after[sectorSize:])
		if after[:5] == "first" {
			kept++
		} else {
			lost++
			require.NotEqual(t, evict, visible == "first")
		}
	}
	require.NotZero(t, lost)
	require.NotZero(t, kept)
}

func TestMemFilesFaults(t *testing.T) {
	m := newMemFiles(1)
	f := openFile(t, m, "/f", os.O_RDWR|os.O_CREATE)
	writeAt(t, f, "0123456789", 0)
	var ops []string
	m.setFault(func(op fileOp) fault {
		ops = append(ops, op.kind)
		switch op.kind {
		case "write":
			return fault{err: syscall.ENOSPC, short: 3}
		case "truncate":
			return fault{err: syscall.EIO, done: true}
		default:
			return fault{err: syscall.EMFILE}
		}
	})
	n, err := f.WriteAt([]byte("abcdef"), 0)
	require.Equal(t, 3, n)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "/f")
	require.ErrorIs(t, f.truncate(5), syscall.EIO)
	_, err = m.open("/g", os.O_RDWR|os.O_CREATE)
	require.ErrorIs(t, err, syscall.EMFILE)
	_, err = m.list("/")
	require.ErrorIs(t, err, syscall.EMFILE)
	_, _, err = m.lock("/lock", nil)
	require.ErrorIs(t, err, syscall.EMFILE)
	require.ErrorIs(t, f.Close(), syscall.EMFILE)
	require.Equal(t, []string{"write", "truncate", "open", "list", "lock", "close"}, ops)
	m.clearFault()
	require.Empty(t, m.openNow(), "it is closed, whatever it said")
	require.Equal(t, []string{"/f"}, m.paths())
	f = openFile(t, m, "/f", os.O_RDWR)
	require.Equal(t, "abc34", textOf(t, f))

	count := m.count.Load()
	m.crashAt(3)
	writeAt(t, f, "x", 0)
	writeAt(t, f, "y", 1)
	_, err = f.WriteAt([]byte("z"), 2)
	require.ErrorIs(t, err, errPowerLoss)
	m.clearFault()
	require.ErrorIs(t, f.sync(), errPowerLoss)
	require.Equal(t, count+4, m.count.Load())
	require.Equal(t, 1, m.openMost())
}

// A process that is killed leaves all that it has written, but nothing that lasts.
func TestMemFilesKill(t *testing.T) {
	lost := 0
	for seed := range uint64(100) {
		m := newMemFiles(seed)
		_, _, err := m.lock("/lock", []byte("me"))
		require.NoError(t, err)
		f := openFile(t, m, "/f", os.O_RDWR|os.O_CREATE)
		require.NoError(t, m.syncDir("/"))
		writeAt(t, f, "text", 0)
		next := m.kill()
		_, err = f.WriteAt([]byte("late"), 0)
		require.ErrorIs(t, err, errKilled)
		require.Equal(t, "text", string(next.content("/f")))
		held, _, err := next.lock("/lock", []byte("next"))
		require.NoError(t, err)
		require.NoError(t, held.Close())
		if string(next.crash(rand.New(rand.NewPCG(seed, 1))).content("/f")) != "text" {
			lost++
		}
	}
	require.NotZero(t, lost)
}

// Copies share their bytes until one of them writes.
func TestMemFilesCopies(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	type copied struct {
		m    *memFiles
		f    file
		want string
	}
	open := func(m *memFiles, want string) copied {
		return copied{m, openFile(t, m, "/f", os.O_RDWR|os.O_CREATE), want}
	}
	m := newMemFiles(1)
	require.NoError(t, openFile(t, m, "/f", os.O_RDWR|os.O_CREATE).Close())
	require.NoError(t, m.syncDir("/"))
	all := []copied{open(m, "")}
	for range 3000 {
		c := &all[rng.IntN(len(all))]
		switch rng.IntN(8) {
		case 0:
			if len(all) < 20 {
				all = append(all, open(c.m.clone(), c.want))
			}
		case 1:
			require.NoError(t, c.f.sync())
			if len(all) < 20 {
				all = append(all, open(c.m.clone().crash(rng), c.want))
			}
		case 2:
			size := rng.IntN(2000)
			require.NoError(t, c.f.truncate(int64(size)))
			c.want = (c.want + strings.Repeat("\x00", 2000))[:size]
		default:
			at, text := rng.IntN(2000), strings.Repeat(string(rune('a'+rng.IntN(26))), 1+rng.IntN(700))
			if rng.IntN(2) == 0 {
				at = len(c.want)
			}
			writeAt(t, c.f, text, int64(at))
			want := c.want + strings.Repeat("\x00", max(0, at+len(text)-len(c.want)))
			c.want = want[:at] + text + want[at+len(text):]
		}
		for _, c := range all {
			require.Equal(t, c.want, string(c.m.content("/f")))
		}
	}
}

func TestMemFilesConcurrently(t *testing.T) {
	m := newMemFiles(1)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			name := "/" + string(rune('a'+i))
			f := openFile(t, m, name, os.O_RDWR|os.O_CREATE)
			for j := range 200 {
				writeAt(t, f, "0123456789", int64(j)*10)
				if j%10 == 0 {
					require.NoError(t, f.sync())
					require.NoError(t, m.syncDir("/"))
					m.clone()
				}
				textOf(t, f)
				_, err := m.list("/")
				require.NoError(t, err)
				require.Len(t, m.content(name), j*10+10)
			}
			require.NoError(t, f.Close())
		})
	}
	group.Wait()
	require.Len(t, m.paths(), 4)
}
