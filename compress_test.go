package robust

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
)

var compressions = []Compression{CompressionGzip, CompressionSnappy, CompressionLZ4, CompressionZstd}

func eachCompression(t *testing.T, f func(t *testing.T, c Compression)) {
	for _, c := range compressions {
		t.Run(c.String(), func(t *testing.T) { f(t, c) })
	}
}

func TestCompressionString(t *testing.T) {
	var names []string
	for c := CompressionNone; c <= CompressionZstd+1; c++ {
		names = append(names, c.String())
	}
	require.Equal(t, []string{"none", "gzip", "snappy", "lz4", "zstd", "Compression(5)"}, names)
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// samples are contents by name.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(7, 7))
	all := map[string][]byte{
		"nothing": {}, "a byte": {'x'}, "a few": []byte("abcabcabcabcabcabc"),
		"zeros": make([]byte, 1<<20), "text": buildBatch(nil, CompressionNone, benchRecords(3000, 100))[batchHeaderSize:],
		"runs":     bytes.Repeat([]byte("0123456789abcdef"), 100_000),
		"above it": bytes.Repeat([]byte("0123456789"), 300_000), // larger than the zstd window
	}
	for _, n := range []int{255, 256, 1000, 1024, 1025, 65536, 65537, 128 << 10, 128<<10 + 1, 500_000} {
		all[fmt.Sprint("random", n)] = randomBytes(r, n)
		all[fmt.Sprint("halves", n)] = append(randomBytes(r, n/2), make([]byte, n-n/2)...)
	}
	return all
}

func TestCompressionRoundTrip(t *testing.T) {
	all := samples()
	for _, c := range append([]Compression{CompressionNone}, compressions...) {
		for name, want := range all {
			name = c.String() + " of " + name
			before := slices.Clone(want)
			packed, err := c.compress([]byte("in front"), want)
			require.NoError(t, err, name)
			require.True(t, bytes.Equal(before, want), name)
			require.Equal(t, "in front", string(packed[:8]), name)
			packed = packed[8:]
			for _, room := range []int{0, 1, len(want) + 100} {
				got, err := c.decompress(append(make([]byte, 0, room+5), "there"...), packed, len(want))
				require.NoError(t, err, name)
				require.Equal(t, "there", string(got[:5]), name)
				require.True(t, bytes.Equal(want, got[5:]), name)
			}
			if len(want) > 0 {
				got, err := c.decompress([]byte("there"), packed, len(want)-1)
				require.ErrorIs(t, err, ErrMessageTooLarge, name)
				require.Equal(t, "there", string(got), name)
			}
		}
	}
	for _, c := range []Compression{5, 6, 7, 255} {
		_, err := c.compress(nil, nil)
		require.ErrorIs(t, err, ErrUnsupported)
		_, err = c.decompress(nil, nil, 1)
		require.ErrorIs(t, err, ErrMalformed)
	}
}

// What we write is what the formats' own readers read, and what others write we read.
func TestCompressionFormats(t *testing.T) {
	want := samples()["text"]
	packed := make(map[Compression][]byte)
	for _, c := range compressions {
		p, err := c.compress(nil, want)
		require.NoError(t, err)
		packed[c] = p
	}
	r, err := stdgzip.NewReader(bytes.NewReader(packed[CompressionGzip]))
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	got, err = snappy.DecodeStrict(nil, packed[CompressionSnappy])
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, len(want), int(binary.LittleEndian.Uint32(packed[CompressionLZ4])))
	got = make([]byte, len(want))
	n, err := lz4.UncompressBlock(packed[CompressionLZ4][4:], got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got[:n]))

	for c, foreign := range map[Compression][]byte{
		CompressionGzip: gzipped(t, want), CompressionSnappy: snappy.Encode(nil, want), CompressionZstd: zstdAll(t, want),
	} {
		got, err = c.decompress([]byte("there"), foreign, len(want))
		require.NoError(t, err, c)
		require.True(t, bytes.Equal(want, got[5:]), c)
	}
	// What does not say how much it holds all together is refused.
	_, err = CompressionGzip.decompress(nil, slices.Concat(gzipped(t, want), gzipped(t, want)), 1<<30)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = CompressionZstd.decompress(nil, zstdStream(t, want), 1<<30)
	require.ErrorIs(t, err, ErrMalformed)
	_, err = CompressionZstd.decompress(nil, slices.Concat(zstdAll(t, want), zstdAll(t, want)), 1<<30)
	require.ErrorIs(t, err, ErrMalformed)
}

func gzipped(t testing.TB, data []byte) []byte {
	var out bytes.Buffer
	w := stdgzip.NewWriter(&out)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstdAll(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	require.NoError(t, err)
	return w.EncodeAll(data, nil)
}

// zstdStream returns a frame that does not say how much it holds.
func zstdStream(t testing.TB, data []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	require.NoError(t, err)
	_, err = w.ReadFrom(bytes.NewReader(data))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	var h zstd.Header
	require.NoError(t, h.Decode(out.Bytes()))
	require.False(t, h.HasFCS)
	return out.Bytes()
}

// zstdRuns is a frame of 1 GiB in 32 KiB: each block says one byte many times. size is what
// the header says, -1 for nothing.
func zstdRuns(size int64) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd}
	if size >= 0 {
		b = binary.LittleEndian.AppendUint32(append(b, 0xa0), uint32(size)) // one segment, a size of 4 bytes
	} else {
		b = append(b, 0, 0x38) // a window of 128 KiB
	}
	const blocks, each = 8192, 128 << 10
	for i := range blocks {
		head := uint32(each<<3 | 1<<1)
		if i == blocks-1 {
			head |= 1
		}
		b = append(b, byte(head), byte(head>>8), byte(head>>16), 'x')
	}
	return b
}

// bombs are contents that claim, or have, far more than they are.
func bombs(t testing.TB) map[string]struct {
	c      Compression
	packed []byte
} {
	const gib = 1 << 30
	type bomb = struct {
		c      Compression
		packed []byte
	}
	// A MiB of zeros is the same bytes each time, up to where the last block begins.
	var piece bytes.Buffer
	w := stdgzip.NewWriter(&piece)
	_, err := w.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, w.Flush())
	const head = 10
	gz := slices.Concat(piece.Bytes()[:head], bytes.Repeat(piece.Bytes()[head:], gib>>20), []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0x40})
	lying := slices.Clone(gz)
	binary.LittleEndian.PutUint32(lying[len(lying)-4:], 100)
	boasting := gzipped(t, []byte("abc"))
	binary.LittleEndian.PutUint32(boasting[len(boasting)-4:], math.MaxUint32)

	// A GiB of zeros in snappy: literals of one, then copies of 64 from one before.
	sn := binary.AppendUvarint(nil, gib)
	sn = append(append(sn, 0, 0), bytes.Repeat([]byte{63<<2 | 2, 1, 0}, (gib-1)/64)...)
	sn = append(sn, 62<<2|2, 1, 0)
	// And in lz4: one literal, and a match as long as 255 say often enough.
	lz := binary.LittleEndian.AppendUint32(nil, gib)
	lz = append(append(lz, 0x1f, 0, 1, 0), bytes.Repeat([]byte{255}, (gib-1-4-15-5)/255)...)
	lz = append(lz, byte((gib-1-4-15-5)%255), 0x50, 0, 0, 0, 0, 0)

	return map[string]bomb{
		"gzip":                    {CompressionGzip, gz},
		"gzip that says 100":      {CompressionGzip, lying},
		"gzip that says 4 GiB":    {CompressionGzip, boasting},
		"snappy":                  {CompressionSnappy, sn},
		"snappy that says 4 GiB":  {CompressionSnappy, append(binary.AppendUvarint(nil, math.MaxUint32), sn[5:1000]...)},
		"snappy that says 2^63":   {CompressionSnappy, append(binary.AppendUvarint(nil, 1<<63), sn[5:1000]...)},
		"lz4":                     {CompressionLZ4, lz},
		"lz4 that says 4 GiB":     {CompressionLZ4, append([]byte{255, 255, 255, 255}, lz[4:1000]...)},
		"lz4 that says 100":       {CompressionLZ4, append([]byte{100, 0, 0, 0}, lz[4:]...)},
		"zstd":                    {CompressionZstd, zstdRuns(gib)},
		"zstd that says nothing":  {CompressionZstd, zstdRuns(-1)},
		"zstd that says 100":      {CompressionZstd, zstdRuns(100)},
		"zstd that says 2 MiB":    {CompressionZstd, zstdRuns(2 << 20)},
		"zstd that says 4 GiB":    {CompressionZstd, zstdRuns(math.MaxUint32)},
		"zstd of many frames":     {CompressionZstd, bytes.Repeat(zstdAll(t, make([]byte, 1<<20)), 1000)},
		"zstd behind a small one": {CompressionZstd, append(zstdAll(t, []byte("abc")), zstdRuns(-1)...)},
	}
}

// Whatever is claimed, no more memory is taken than the limit and a little, and the input.
func TestCompressionBombs(t *testing.T) {
	all := bombs(t)
	for name, bomb := range all {
		for _, limit := range []int{0, 1000, 1 << 20, 4 << 20} {
			t.Run(fmt.Sprintf("%s/%d", name, limit), func(t *testing.T) {
				one, err := bomb.c.compress(nil, []byte("x"))
				require.NoError(t, err)
				_, err = bomb.c.decompress(nil, one, 1) // The pool has its decompressor.
				require.NoError(t, err)
				n := allocated(func() { _, err = bomb.c.decompress(nil, bomb.packed, limit) })
				require.True(t, tooLargeOrMalformed(err), "%v", err)
				require.LessOrEqual(t, n, uint64(limit)*9/4+1<<20)
			})
		}
	}
	for _, name := range []string{"gzip", "snappy", "lz4", "zstd"} {
		_, err := all[name].c.decompress(nil, all[name].packed, 1<<20)
		require.ErrorIs(t, err, ErrMessageTooLarge, name)
	}
}

func tooLargeOrMalformed(err error) bool {
	return errors.Is(err, ErrMessageTooLarge) || errors.Is(err, ErrMalformed)
}

// Whatever becomes of compressed bytes, decompressing them is an error of the right kind, or
// gives something within the limit.
func TestCompressionDamage(t *testing.T) {
	eachCompression(t, func(t *testing.T, c Compression) {
		r := rand.New(rand.NewPCG(3, uint64(c)))
		text := samples()["text"][:600]
		for _, content := range [][]byte{text, append(randomBytes(r, 300), make([]byte, 300)...), []byte("x")} {
			packed, err := c.compress(nil, content)
			require.NoError(t, err)
			check := func(damaged []byte) bool {
				got, err := c.decompress([]byte("there"), damaged, 1000)
				if err != nil {
					require.True(t, tooLargeOrMalformed(err), "%v", err)
					require.Equal(t, "there", string(got))
					return false
				}
				require.Equal(t, "there", string(got[:5]))
				require.LessOrEqual(t, len(got), 1005)
				return true
			}
			for n := range packed {
				require.False(t, check(packed[:n]), "cut to %d of %d bytes", n, len(packed))
			}
			for i := range packed {
				for _, flip := range []byte{1, 8, 128, 255} {
					damaged := slices.Clone(packed)
					damaged[i] ^= flip
					check(damaged)
				}
			}
			for range 300 {
				damaged := slices.Clone(packed)
				for range 1 + r.IntN(8) {
					damaged[r.IntN(len(damaged))] = byte(r.Uint32())
				}
				check(damaged)
			}
			require.False(t, check(append(slices.Clone(packed), "behind"...)), "bytes behind the end")
		}
	})
}

func TestCompressionConcurrently(t *testing.T) {
	eachCompression(t, func(t *testing.T, c Compression) {
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 1))
				for range 20 {
					want := bytes.Repeat(randomBytes(r, 1+r.IntN(100)), 1+r.IntN(300))
					packed, err := c.compress(nil, want)
					if err == nil {
						packed, err = c.decompress(nil, packed, len(want))
					}
					if err != nil || !bytes.Equal(want, packed) {
						t.Errorf("%d bytes: %v", len(want), err)
					}
				}
			})
		}
		group.Wait()
	})
}

// FuzzDecompress: what comes out of a peer's bytes is within the limit, and compressed and
// decompressed again it is the same.
func FuzzDecompress(f *testing.F) {
	for _, c := range compressions {
		for _, name := range []string{"nothing", "a byte", "a few", "halves1000"} {
			packed, err := c.compress(nil, samples()[name])
			require.NoError(f, err)
			f.Add(packed, byte(c), uint16(2000))
		}
	}
	f.Add(zstdRuns(-1)[:40], byte(CompressionZstd), uint16(1000))
	f.Fuzz(func(t *testing.T, data []byte, number byte, limit uint16) {
		c := compressions[int(number)%len(compressions)]
		var got []byte
		var err error
		n := allocated(func() { got, err = c.decompress(nil, data, int(limit)) })
		require.LessOrEqual(t, n, uint64(4<<20), "the decompressors' own memory, at the most")
		if err != nil {
			require.True(t, tooLargeOrMalformed(err), "%v", err)
			return
		}
		require.LessOrEqual(t, len(got), int(limit))
		packed, err := c.compress(nil, got)
		require.NoError(t, err)
		again, err := c.decompress(nil, packed, len(got))
		require.NoError(t, err)
		require.True(t, bytes.Equal(got, again))
	})
}
