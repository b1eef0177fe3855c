package robust

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// copyLive copies a directory that is being written to, file by file, in this order of their names:
// what is gone meanwhile is left out, as cp does.
func copyLive(t *testing.T, from, to string, order func(paths []string)) {
	t.Helper()
	var paths []string
	require.NoError(t, filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err == nil && e.IsDir():
			name, err := filepath.Rel(from, path)
			return errors.Join(err, os.MkdirAll(filepath.Join(to, name), 0o700))
		}
		paths = append(paths, path)
		return err
	}))
	order(paths)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		name, err := filepath.Rel(from, path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(to, name), data, 0o600))
	}
}

// readCopy reads all that can be read of a partition, which must be as it was written, and
// returns how many messages that are and how many are told to be damaged.
func readCopy(t *testing.T, l PartitionLog) (whole, damaged int64) {
	t.Helper()
	offset, end := l.Bounds()
	for offset < end {
		r, err := l.Read(t.Context(), offset, 16<<10)
		if err != nil {
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Greater(t, corrupt.To, offset)
			damaged += corrupt.To - offset
			offset = corrupt.To
			continue
		}
		for rest := r.Batches; len(rest) > 0; {
			b := cutBatch(rest)
			rest, offset = rest[len(b):], b.nextOffset()
			records := b.records()
			for {
				var m Message
				more, err := records.next(&m)
				require.NoError(t, err)
				if !more {
					break
				}
				require.Equal(t, fmt.Sprint(m.Offset), strings.TrimRight(string(m.Value), " "))
				whole++
			}
		}
		r.Release()
	}
	return whole, damaged
}

// A copy of a directory that a broker is writing to has its files at different moments. Another
// broker opens it, and serves nothing that was not written so.
func TestCopyOfLiveDirectory(t *testing.T) {
	dir := t.TempDir()
	quiet := WithLogger(slog.New(slog.DiscardHandler))
	b, err := NewBroker(WithDataDir(dir), quiet)
	require.NoError(t, err)
	c, err := b.Client()
	require.NoError(t, err)
	topics := []string{"kept", "short", "made"}
	configs := map[string]map[string]string{
		"kept":  {configSegmentBytes: "4096"},
		"short": {configSegmentBytes: "4096", configRetentionBytes: "20000"},
		"made":  {configSegmentBytes: "4096"},
	}
	var stop sync.WaitGroup
	stopped := make(chan struct{})
	allowed := make(chan struct{}, 800) // Messages of a round: what is copied grows no faster than it is copied.
	write := func(topic string) {
		require.NoError(t, c.Admin().CreateTopic(t.Context(), topic, 1, configs[topic]))
		stop.Go(func() {
			p, err := c.SyncProducer()
			require.NoError(t, err)
			for n := 0; ; n++ {
				select {
				case <-stopped:
					return
				case <-allowed:
				}
				m := NewMessage(topic, fmt.Appendf(nil, "%d%*s", n, n%300, ""))
				m.Partition = 0
				receipt, err := p.Send(t.Context(), m)
				require.NoError(t, err)
				require.EqualValues(t, n, receipt.Offset)
				if n%10 == 0 {
					offsets := []StoredOffset{{Topic: topic, Offset: int64(n)}}
					require.NoError(t, b.storage.PutOffsets(t.Context(), topic, offsets))
				}
			}
		})
	}
	write("kept")
	write("short")
	total, gone, refused := int64(0), int64(0), 0
	for round := range envCount(t, "ROBUST_COPIES", 6) {
		if round == 2 {
			write("made")
		}
		for len(allowed) < cap(allowed) {
			allowed <- struct{}{}
		}
		order := []func([]string){func([]string) {}, slices.Reverse[[]string]}[round%2]
		copied := filepath.Join(t.TempDir(), "copy")
		copyLive(t, dir, copied, order)
		other, err := NewBroker(WithDataDir(copied), quiet)
		if err != nil {
			require.True(t, errors.Is(err, ErrCorrupt) || errors.Is(err, ErrStorage), "%v", err)
			require.ErrorContains(t, err, copied)
			refused++
			continue
		}
		for _, repaired := range []bool{false, true} {
			if repaired {
				_, err := RepairDataDir(t.Context(), copied)
				require.NoError(t, err)
				report, err := CheckDataDir(t.Context(), copied)
				require.NoError(t, err)
				require.Empty(t, report.Damage)
				other, err = NewBroker(WithDataDir(copied), quiet)
				require.NoError(t, err)
			}
			for _, topic := range topics {
				l, _ := other.service.topics.log(TopicPartition{topic, 0})
				if l == nil {
					continue
				}
				whole, damaged := readCopy(t, l)
				total, gone = total+whole, gone+damaged
				require.False(t, repaired && damaged > 0)
				appendRaw(t, l, appendBatch(nil, &Message{Value: fmt.Append(nil, endOfLog(l))}))
			}
			require.NoError(t, other.Close())
		}
	}
	close(stopped)
	stop.Wait()
	require.NoError(t, c.Close())
	require.NoError(t, b.Close())
	t.Logf("%d messages of copies are whole, %d are told to be damaged, %d copies are refused", total, gone, refused)
	require.NotZero(t, total)
}

func endOfLog(l PartitionLog) int64 {
	_, end := l.Bounds()
	return end
}
