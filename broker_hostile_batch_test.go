package robust

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// damageRecord changes a byte of the message that has this value, wherever it is stored.
func damageRecord(t *testing.T, dir, value string) {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, topicsName, "*", "0", "*"+segmentSuffix))
	require.NoError(t, err)
	found := 0
	for _, path := range segments {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		at := bytes.Index(data, []byte(value))
		if at < 0 {
			continue
		}
		found++
		data[at] ^= 0x55
		require.NoError(t, os.WriteFile(path, data, 0o600))
	}
	require.Equal(t, 1, found)
}

// A broker whose disk has damaged a batch once answered a fetch of it and of what stands
// before it with batches and a refusal at a time. No client takes that: every consumer that
// shared the request ended.
func TestDamageBehindWhatIsFetched(t *testing.T) {
	dir := t.TempDir()
	b := faultBroker(t, 2, WithDataDir(dir))
	storeBatch(t, b, faultTopic, 0, "sound")
	storeBatch(t, b, faultTopic, 0, "this one is damaged")
	storeBatch(t, b, faultTopic, 1, "another")
	damageRecord(t, dir, "this one is damaged")

	t.Run("batches", func(t *testing.T) {
		p := dialPeer(t, b)
		resp, parts := p.fetched("1", &fetchBatchRequest{Partitions: []fetchPart{
			{Topic: faultTopic, Partition: 0, MaxBytes: 1 << 20}, {Topic: faultTopic, Partition: 1, MaxBytes: 1 << 20},
		}, MaxBytes: 1 << 20})
		require.False(t, resp.Partitions[0].refused())
		require.Equal(t, []string{"sound"}, batchValues(t, parts[0]))
		require.Equal(t, []string{"another"}, batchValues(t, parts[1]))
		resp, parts = p.fetched("2", &fetchBatchRequest{Partitions: []fetchPart{
			{Topic: faultTopic, Partition: 0, Offset: 1, MaxBytes: 1 << 20}, {Topic: faultTopic, Partition: 1, MaxBytes: 1 << 20},
		}, MaxBytes: 1 << 20})
		require.EqualValues(t, "CORRUPT", resp.Partitions[0].Code)
		require.Equal(t, []string{"another"}, batchValues(t, parts[1]))
	})
	t.Run("messages", func(t *testing.T) {
		p := dialPeer(t, b)
		p.send(requestFrame(t, "1", &fetchRequest{Topic: faultTopic}))
		r := p.mustAnswer("1")
		require.True(t, r.success, r.errText)
		var resp fetchResponse
		require.NoError(t, decodePayload(r.payload, &resp))
		require.Len(t, resp.Messages, 1)
		p.send(requestFrame(t, "2", &fetchRequest{Topic: faultTopic, Offset: 1}))
		require.EqualValues(t, "CORRUPT", p.mustAnswer("2").errCode)
	})
	t.Run("consumers", func(t *testing.T) {
		c := quietClient(t, b)
		all := openAll(t, c, 2)
		for i, pc := range all {
			m, err := next(t, pc, time.Minute)
			require.NoError(t, err)
			require.Equal(t, []string{"sound", "another"}[i], string(m.Value))
		}
		_, err := next(t, all[0], time.Minute)
		require.ErrorIs(t, err, ErrCorrupt)
		storeBatch(t, b, faultTopic, 1, "more")
		m, err := next(t, all[1], time.Minute)
		require.NoError(t, err)
		require.Equal(t, "more", string(m.Value))
	})
}

// A batch that fits a frame is served, however many partitions share the request: the line
// that names them once took from the room of the body.
func TestLargestBatchIsFetchedWithManyPartitions(t *testing.T) {
	const frame, partitions = 64 << 10, 64
	b := faultBroker(t, partitions, WithMaxFrameBytes(frame))
	p := dialPeer(t, b)
	data := appendBatch(nil, &Message{Value: make([]byte, 20<<10)}, &Message{Value: make([]byte, 20<<10)}, &Message{Value: make([]byte, 22<<10)})
	require.LessOrEqual(t, len(data), frame-batchReserve)
	req := &produceBatchRequest{Parts: []producePart{{faultTopic, 0, len(data)}}}
	line, err := appendBodyRequest(nil, "1", requestProduceBatch, len(data), req)
	require.NoError(t, err)
	p.send(string(line) + string(data))
	var stored produceBatchResponse
	require.NoError(t, decodePayload(p.mustAnswer("1").payload, &stored))
	require.Empty(t, stored.Parts[0].Error)

	fetch := &fetchBatchRequest{MaxBytes: 1}
	for i := range int32(partitions) {
		fetch.Partitions = append(fetch.Partitions, fetchPart{Topic: faultTopic, Partition: i, MaxBytes: 1})
	}
	resp, parts := p.fetched("2", fetch)
	require.Empty(t, resp.Partitions[0].Error)
	require.Len(t, parts[0], len(data))
}

// Two requests by turns, each with room for the batch of one partition, once had the
// broker begin each with the same partition for ever.
func TestNoPartitionOfAFetchStarves(t *testing.T) {
	b := faultBroker(t, 4)
	for i := range int32(4) {
		storeBatch(t, b, faultTopic, i, "a message")
	}
	p := dialPeer(t, b)
	seen := make(map[int32]int)
	for i := range 100 {
		a := int32(i % 2 * 2)
		resp, _ := p.fetched(strconv.Itoa(i), &fetchBatchRequest{Partitions: []fetchPart{
			{Topic: faultTopic, Partition: a, MaxBytes: 1}, {Topic: faultTopic, Partition: a + 1, MaxBytes: 1},
		}, MaxBytes: 1})
		for _, got := range resp.Partitions {
			if got.Bytes > 0 {
				seen[got.Partition]++
			}
		}
	}
	require.Len(t, seen, 4, "%v", seen)
}

// heapGrowth is how much more memory is in use after f than before, at most; f may not
// keep any. What is measured is what was allocated and is still there at any look.
func heapGrowth(f func()) int64 {
	// Else as much garbage may gather as there is memory in use, by whatever test.
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, done := make(chan struct{}), make(chan int64)
	go func() {
		most := int64(0)
		for {
			runtime.ReadMemStats(&now)
			most = max(most, int64(now.HeapAlloc)-int64(before.HeapAlloc))
			select {
			case <-stop:
				done <- most
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	return <-done
}

// Batches that are small and unpack to much, of which little makes up messages, once were
// in memory together: as many as a fetch has asked for.
func TestFetchOfManyBombs(t *testing.T) {
	const frame, bombs = 1 << 20, 100
	b := faultBroker(t, 1, WithMaxFrameBytes(frame))
	p := dialPeer(t, b)
	bomb := bombBatch(t, frame-batchHeaderSize-1)
	require.Less(t, len(bomb), 2<<10)
	body := bytes.Repeat(bomb, bombs)
	req := &produceBatchRequest{Parts: []producePart{{faultTopic, 0, len(body)}}}
	line, err := appendBodyRequest(nil, "1", requestProduceBatch, len(body), req)
	require.NoError(t, err)
	p.send(string(line) + string(body))
	var stored produceBatchResponse
	require.NoError(t, decodePayload(p.mustAnswer("1").payload, &stored))
	require.Empty(t, stored.Parts[0].Error)
	grown := heapGrowth(func() {
		offset := int64(0)
		for i := 0; offset < bombs; i++ {
			id := strconv.Itoa(i)
			p.send(requestFrame(t, id, &fetchRequest{Topic: faultTopic, Offset: offset, MaxMessages: bombs}))
			var resp fetchResponse
			require.NoError(t, decodePayload(p.mustAnswer(id).payload, &resp))
			require.NotEmpty(t, resp.Messages)
			offset = resp.Messages[len(resp.Messages)-1].Offset + 1
		}
	})
	require.Less(t, grown, int64(30*frame))
}

// bombBatch is a batch of one message that unpacks to n bytes of records, nearly all of
// which are headers with the same empty name.
func bombBatch(t testing.TB, n int) batch {
	t.Helper()
	headers := (n - 32) / 2
	record := []byte{0, 0, 0, 0, 1, 0} // No key, and an empty value.
	record = binary.AppendUvarint(record, uint64(headers))
	record = append(record, make([]byte, 2*headers)...)
	return compressedAs(t, CompressionZstd, 1, 0, append(binary.AppendUvarint(nil, uint64(len(record))), record...))
}

// A request that names more partitions than it may is refused before there is memory for
// all of them.
func TestManyPartsTakeNoMemory(t *testing.T) {
	for _, kind := range []requestType{requestFetchBatch, requestProduceBatch} {
		t.Run(kind.String(), func(t *testing.T) {
			b := faultBroker(t, 1)
			p := dialPeer(t, b)
			field := map[requestType]string{requestFetchBatch: "partitions", requestProduceBatch: "parts"}[kind]
			list := strings.Repeat("{},", 4<<20) + "{}"
			text := `{"request_id":"1","request_type":` + strconv.Itoa(int(kind)) + `,"body":1,"payload":{"` + field + `":[` + list + "]}}\n"
			text = strings.Replace(text, `"body":1,`, map[requestType]string{requestProduceBatch: `"body":1,`}[kind], 1)
			if kind == requestProduceBatch {
				text += "x"
			}
			grown := heapGrowth(func() {
				p.send(text)
				require.EqualValues(t, "INVALID_REQUEST", p.mustAnswer("1").errCode)
			})
			require.Less(t, grown, int64(100<<20))
			p.requireServed()
		})
	}
}

// FuzzProduceBatch: whatever comes as batches, in parts of two partitions, is stored as a
// whole or refused; what is stored can be fetched, by offsets without a gap.
func FuzzProduceBatch(f *testing.F) {
	one := appendBatch(nil, &Message{Value: []byte("value"), Timestamp: 1})
	two := goldenBatch(f, producerFields{id: 7, epoch: 0, sequence: 0})
	wrapped := goldenBatch(f, producerFields{id: 7, epoch: 0, sequence: 1<<31 - 1})
	for _, body := range [][]byte{
		one, two, slices.Concat(one, one), slices.Concat(one, two), slices.Concat(two, two), slices.Concat(two, wrapped), withRecords(0, 3),
		bombBatch(f, 1<<16), compressedAs(f, CompressionGzip, 3, 2, one[batchHeaderSize:]), withRecords(1<<30, 1<<30),
	} {
		for _, cut := range []uint16{0, batchHeaderSize, uint16(len(one)), uint16(len(two))} {
			f.Add(body, cut, true)
			f.Add(body, cut, false)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, cut uint16, mend bool) {
		b, err := NewBroker(WithLogger(nil), WithTopic(faultTopic, 2))
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close()) }()
		for rest := body; mend && len(rest) >= batchHeaderSize; {
			one, err := headOf(rest)
			if err != nil {
				break
			}
			one[batchMagicAt] = batchMagic
			seal(one)
			rest = rest[len(one):]
		}
		first := min(int(cut), len(body))
		req := &produceBatchRequest{Parts: []producePart{
			{faultTopic, 0, first}, {faultTopic, 1, len(body) - first}, {faultTopic, 0, 0},
		}}
		if req.checkSizes(len(body)) == nil {
			t.Fatal("a part of no bytes")
		}
		req.Parts = req.Parts[:2]
		if first == 0 {
			req.Parts = req.Parts[1:]
		}
		if req.checkSizes(len(body)) != nil {
			return
		}
		for range 2 { // What comes again is refused, repeated or stored behind.
			b.service.produceBatch(t.Context(), req, slices.Clone(body), func(resp *produceBatchResponse, err error) {
				require.NoError(t, err)
				for _, part := range resp.Parts {
					require.Equal(t, part.refused(), part.BaseOffset == offsetNone)
				}
			})
		}
		for partition := range int32(2) {
			fetch := &fetchBatchRequest{Partitions: []fetchPart{{Topic: faultTopic, Partition: partition, MaxBytes: 1 << 20}}, MaxBytes: 1 << 20}
			got := b.service.fetchBatch(t.Context(), fetch, nil)
			require.Empty(t, got.Partitions[0].Error)
			offset := int64(0)
			for rest := slices.Concat(got.body()...); len(rest) > 0; {
				var one batch
				one, rest, err = parseBatch(rest)
				require.NoError(t, err)
				require.Equal(t, offset, one.baseOffset())
				offset = one.nextOffset()
				if one.compression() == CompressionNone {
					_, err = readBatch(one)
					require.NoError(t, err)
				}
			}
			got.release()
			if len(body) < 1<<19 {
				require.Equal(t, got.Partitions[0].HighWaterMark, offset)
			}
			answer, _, err := b.service.fetch(t.Context(), &fetchRequest{Topic: faultTopic, Partition: partition}, false)
			if err != nil {
				require.True(t, tooLargeOrMalformed(err), "%v", err)
			}
			answer.release()
		}
	})
}
