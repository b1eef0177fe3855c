package robust

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// smallDir makes a data directory with a partition of 60 messages in small segments, a start that
// is kept, and a group.
func smallDir(t *testing.T) (m *memFiles, segments []string) {
	m = newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	d, err := openQuietDir(m, "/data", SyncAlways)
	require.NoError(t, err)
	l := openTestLog(t, d, LogConfig{SegmentBytes: 700}, nil)
	for range 30 {
		appendValues(t, l, 2)
	}
	require.NoError(t, l.DeleteBefore(t.Context(), 9))
	require.NoError(t, d.PutOffsets(t.Context(), "readers", []StoredOffset{{Topic: "demo", TopicID: "1", Offset: 17}}))
	require.NoError(t, d.Close())
	for _, path := range m.paths() {
		if strings.HasSuffix(path, segmentSuffix) && strings.Contains(path, "demo@1") {
			segments = append(segments, path)
		}
	}
	slices.Sort(segments)
	require.Greater(t, len(segments), 4)
	return m, segments
}

// harmFile changes what a file has, for good.
func harmFile(t *testing.T, m *memFiles, path string, change func([]byte) []byte) {
	t.Helper()
	data := change(slices.Clone(m.content(path)))
	f, err := m.open(path, os.O_RDWR|os.O_TRUNC)
	require.NoError(t, err)
	_, err = f.WriteAt(data, 0)
	require.NoError(t, errors.Join(err, f.sync(), f.Close()))
}

// contents returns what a directory has for readers: offsets and values, where the log begins and ends,
// and what groups have.
func contents(t *testing.T, m *memFiles) string {
	t.Helper()
	d, err := openQuietDir(m, "/data", SyncAlways)
	require.NoError(t, err)
	l, err := d.OpenPartition(t.Context(), StoredTopic{Name: "demo", ID: "1", Partitions: 1}, 0, LogConfig{SegmentBytes: 700}, func() {})
	require.NoError(t, err)
	var b strings.Builder
	start, end := l.Bounds()
	fmt.Fprintln(&b, start, end)
	for offset := start; offset < end; {
		r, err := l.Read(t.Context(), offset, 512)
		require.NoError(t, err)
		for rest := r.Batches; len(rest) > 0; {
			batch := cutBatch(rest)
			rest, offset = rest[len(batch):], batch.nextOffset()
			records := batch.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				fmt.Fprintln(&b, m.Offset, string(m.Value))
			}
		}
		r.Release()
	}
	groups, err := d.Groups(t.Context())
	require.NoError(t, err)
	fmt.Fprintf(&b, "%+v\n", groups)
	require.NoError(t, d.Close())
	return b.String()
}

// A repair that is killed, or that the power goes in, is begun anew: what it has then come to is
// what it would have, had nothing happened. With ROBUST_REPAIR_STEP=1 it ends before every operation.
func TestRepairEndsInTheMiddle(t *testing.T) {
	whole, segments := smallDir(t)
	middle, last := segments[2], segments[len(segments)-1]
	partition := filepath.Dir(middle)
	first := func(b []byte) int { return len(cutBatch(b[segmentHeaderSize:])) }
	for name, harm := range map[string]func(t *testing.T, m *memFiles){
		"a record": func(t *testing.T, m *memFiles) { harmFile(t, m, middle, flip(segmentHeaderSize+90)) },
		"bytes put in": func(t *testing.T, m *memFiles) {
			for _, path := range []string{middle, last} {
				harmFile(t, m, path, func(b []byte) []byte {
					n := first(b) + segmentHeaderSize
					return slices.Insert(b, n, make([]byte, 30)...)
				})
			}
		},
		"bytes taken out": func(t *testing.T, m *memFiles) {
			for _, path := range []string{middle, last} {
				harmFile(t, m, path, func(b []byte) []byte { return slices.Delete(b, segmentHeaderSize+20, segmentHeaderSize+70) })
			}
		},
		"all of a middle": func(t *testing.T, m *memFiles) { harmFile(t, m, middle, func([]byte) []byte { return nil }) },
		"a middle is another's": func(t *testing.T, m *memFiles) {
			other := m.content(segments[3])
			harmFile(t, m, middle, func([]byte) []byte { return other })
		},
		"the last is gone": func(t *testing.T, m *memFiles) {
			require.NoError(t, m.remove(last))
			require.NoError(t, m.syncDir(partition))
		},
		"the end": func(t *testing.T, m *memFiles) {
			harmFile(t, m, last, func(b []byte) []byte { return b[:len(b)-10] })
		},
		"start and identity": func(t *testing.T, m *memFiles) {
			harmFile(t, m, filepath.Join(partition, startName), flip(40))
			harmFile(t, m, filepath.Join("/data", identityName), flip(40))
			harmFile(t, m, middle, flip(segmentHeaderSize+90))
		},
		"groups": func(t *testing.T, m *memFiles) {
			harmFile(t, m, "/data/groups/00000000000000000000.log", flip(segmentHeaderSize+70))
		},
	} {
		t.Run(name, func(t *testing.T) {
			harmed := whole.clone()
			harm(t, harmed)
			m := harmed.clone()
			before := m.count.Load()
			report, err := inspectDataDir(t.Context(), m, "/data", true)
			require.NoError(t, err)
			require.NotEmpty(t, report.Damage)
			operations := m.count.Load() - before
			require.Greater(t, operations, int64(20))
			want := contents(t, m)
			step := int64(envCount(t, "ROBUST_REPAIR_STEP", 11))
			for n := 1 + int64(len(name))%step; n <= operations; n += step {
				for _, power := range []bool{false, true} {
					m := harmed.clone()
					m.crashAt(n)
					_, err := inspectDataDir(t.Context(), m, "/data", true)
					require.Error(t, err)
					if power {
						m = m.crash(rand.New(rand.NewPCG(uint64(n), 1)))
					} else {
						m = m.kill()
					}
					_, err = inspectDataDir(t.Context(), m, "/data", true)
					require.NoError(t, err, "ended before operation %d, by power %v", n, power)
					report, err := inspectDataDir(t.Context(), m, "/data", false)
					require.NoError(t, err)
					require.Empty(t, report.Damage, "ended before operation %d, by power %v", n, power)
					require.Equal(t, want, contents(t, m), "ended before operation %d, by power %v", n, power)
				}
			}
		})
	}
}
