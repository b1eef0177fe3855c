package robust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// What the records of a compressed batch look like. Each says how long it is before anything
// has to be made room for, so that a claim can be weighed against the limit first:
//
//	gzip    RFC 1952; its last four bytes are the size
//	snappy  the block format, which begins with the size
//	lz4     the block format, behind the size as a little-endian uint32
//	zstd    one frame, RFC 8878, without dictionary; the size in its header may be missing
//
// The batch has a checksum, so formats that frame and check blocks would do so again.

const (
	// What each can make at most of a byte. A batch that claims more is not believed.
	maxGzipRatio   = 1032
	maxSnappyRatio = 22
	maxLZ4Ratio    = 255

	lz4HeaderSize = 4

	// zstdBlock is what a block of a frame holds at most, and zstdSlack what the decoder
	// wants behind the end, so that it can copy in larger pieces.
	zstdBlock = 128 << 10
	zstdSlack = 16
)

// Writers and readers of these formats have tables of 100 KiB to some MiB, which are worth
// keeping. A pool lets go of what is not used.
//
//nolint:gochecknoglobals // pools: nothing in them outlasts a call but memory
var (
	gzipWriters  = sync.Pool{New: func() any { return newGzipWriter() }}
	gzipReaders  = sync.Pool{New: func() any { return new(gzipReader) }}
	lz4Writers   = sync.Pool{New: func() any { return new(lz4.Compressor) }}
	zstdEncoders = sync.Pool{New: func() any { return newZstdEncoder() }}
	zstdDecoders = sync.Pool{New: func() any { return newZstdDecoder() }}
)

// compress appends src, compressed. It is not always shorter.
func (c Compression) compress(dst, src []byte) ([]byte, error) {
	start := len(dst)
	switch c {
	case CompressionNone:
		return append(dst, src...), nil
	case CompressionGzip:
		return compressGzip(dst, src)
	case CompressionSnappy:
		dst = slices.Grow(dst, snappy.MaxEncodedLen(len(src)))
		return dst[:start+len(snappy.Encode(dst[start:cap(dst)], src))], nil
	case CompressionLZ4:
		return compressLZ4(dst, src)
	case CompressionZstd:
		e, _ := zstdEncoders.Get().(*zstd.Encoder)
		defer zstdEncoders.Put(e)
		return e.EncodeAll(src, dst), nil
	default:
		return dst, fmt.Errorf("%w: %s", ErrUnsupported, c)
	}
}

// decompress appends what compress was given. It fails with [ErrMessageTooLarge] if that is
// more than limit bytes, and with [ErrMalformed] if src is damaged. It makes room for little
// more than limit, whatever src says.
func (c Compression) decompress(dst, src []byte, limit int) ([]byte, error) {
	limit = min(max(limit, 0), math.MaxInt32) // A batch cannot be longer.
	start := len(dst)
	var err error
	switch c {
	case CompressionNone:
		if len(src) > limit {
			return dst, c.tooLarge(limit)
		}
		return append(dst, src...), nil
	case CompressionGzip:
		dst, err = decompressGzip(dst, src, limit)
	case CompressionSnappy:
		dst, err = decompressSnappy(dst, src, limit)
	case CompressionLZ4:
		dst, err = decompressLZ4(dst, src, limit)
	case CompressionZstd:
		dst, err = decompressZstd(dst, src, limit)
	default:
		return dst, fmt.Errorf("%w: %s", ErrMalformed, c)
	}
	switch {
	case errors.Is(err, errOverLimit):
		return dst[:start], c.tooLarge(limit)
	case err != nil:
		return dst[:start], fmt.Errorf("%w: %s: %w", ErrMalformed, c, err)
	}
	return dst, nil
}

var (
	errOverLimit = errors.New("more than the limit")
	errSize      = errors.New("the size is not what it says")
)

func (c Compression) tooLarge(limit int) error {
	return fmt.Errorf("%w: %s: more than %d bytes, decompressed", ErrMessageTooLarge, c, limit)
}

// checkSize tells whether n bytes may come out of src.
func checkSize(n int64, src []byte, ratio, limit int) error {
	switch {
	case n > int64(len(src))*int64(ratio):
		return errSize
	case n > int64(limit):
		return errOverLimit
	}
	return nil
}

type gzipWriter struct {
	out []byte
	z   *gzip.Writer
}

func newGzipWriter() *gzipWriter {
	w := new(gzipWriter)
	w.z = gzip.NewWriter(w)
	return w
}

// Write appends what z has compressed.
func (w *gzipWriter) Write(p []byte) (int, error) {
	w.out = append(w.out, p...)
	return len(p), nil
}

func compressGzip(dst, src []byte) ([]byte, error) {
	w, _ := gzipWriters.Get().(*gzipWriter)
	defer gzipWriters.Put(w)
	w.out = dst
	w.z.Reset(w)
	_, err := w.z.Write(src)
	err = errors.Join(err, w.z.Close())
	dst, w.out = w.out, nil
	return dst, err
}

type gzipReader struct {
	src bytes.Reader
	z   gzip.Reader
}

func decompressGzip(dst, src []byte, limit int) ([]byte, error) {
	if len(src) < 4 {
		return dst, io.ErrUnexpectedEOF
	}
	r, _ := gzipReaders.Get().(*gzipReader)
	defer gzipReaders.Put(r)
	r.src.Reset(src)
	defer r.src.Reset(nil)
	if err := r.z.Reset(&r.src); err != nil {
		return dst, err
	}
	// The size is modulo 2^32, and of the last member only: it is no more than a good guess.
	size := int64(binary.LittleEndian.Uint32(src[len(src)-4:]))
	size = min(size, int64(len(src))*maxGzipRatio, int64(limit))
	start := len(dst)
	dst = slices.Grow(dst, int(size)+1) // one more, which finds the end
	for {
		n, err := r.z.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		switch {
		case len(dst)-start > limit:
			return dst, errOverLimit
		case errors.Is(err, io.EOF):
			return dst, nil
		case err != nil:
			return dst, err
		}
		if len(dst) == cap(dst) {
			dst = slices.Grow(dst, min(max(len(dst)-start, 512), limit-(len(dst)-start)+1))
		}
	}
}

func decompressSnappy(dst, src []byte, limit int) ([]byte, error) {
	n, err := snappy.DecodedLen(src)
	if err == nil {
		err = checkSize(int64(n), src, maxSnappyRatio, limit)
	}
	if err != nil {
		return dst, err
	}
	start := len(dst)
	dst = slices.Grow(dst, n)
	out, err := snappy.Decode(dst[start:start:cap(dst)], src)
	return dst[:start+len(out)], err
}

func compressLZ4(dst, src []byte) ([]byte, error) {
	w, _ := lz4Writers.Get().(*lz4.Compressor)
	defer lz4Writers.Put(w)
	start := len(dst)
	dst = slices.Grow(dst, lz4HeaderSize+lz4.CompressBlockBound(len(src)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(src)))
	n, err := w.CompressBlock(src, dst[len(dst):cap(dst)])
	return dst[:start+lz4HeaderSize+n], err
}

func decompressLZ4(dst, src []byte, limit int) ([]byte, error) {
	if len(src) < lz4HeaderSize {
		return dst, io.ErrUnexpectedEOF
	}
	n := int64(binary.LittleEndian.Uint32(src))
	src = src[lz4HeaderSize:]
	if err := checkSize(n, src, maxLZ4Ratio, limit); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = slices.Grow(dst, int(n))[:start+int(n)]
	got, err := lz4.UncompressBlock(src, dst[start:])
	if err == nil && int64(got) != n {
		err = errSize
	}
	return dst, err
}

// newZstdEncoder returns an encoder for EncodeAll, of which one runs at a time.
func newZstdEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithZeroFrames(true))
	if err != nil {
		panic(err) // The options are at fault.
	}
	return e
}

// newZstdDecoder likewise. It makes no room of its own: it writes where it is told to.
func newZstdDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // As above.
	}
	return d
}

func decompressZstd(dst, src []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return dst, err
	}
	d, _ := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(d)
	if !h.HasFCS {
		return decompressStream(d, dst, src, limit)
	}
	if h.FrameContentSize > uint64(limit) {
		return dst, errOverLimit
	}
	start, n := len(dst), int(h.FrameContentSize)
	// A frame that holds more than it says is noticed a block later, for which the larger
	// ones have room, so that nothing is moved.
	dst = slices.Grow(dst, n+zstdSlack+min(n/8, zstdBlock))
	out, err := d.DecodeAll(src, dst[start:start:cap(dst)])
	if err != nil {
		return dst, err
	}
	return dst[:start+len(out)], nil
}

// decompressStream decompresses frames that do not say how much they hold. It tries with
// more and more room.
func decompressStream(d *zstd.Decoder, dst, src []byte, limit int) ([]byte, error) {
	for room := min(max(4*len(src), 4<<10), limit); ; room = min(4*room, limit) {
		// With room for one block more, want of room is no reason for an error as long
		// as there is no more than there is room for.
		out, err := d.DecodeAll(src, make([]byte, 0, room+zstdBlock+zstdSlack))
		switch {
		case len(out) > room && room < limit:
			continue
		case len(out) > room:
			return dst, errOverLimit
		case err != nil:
			return dst, err
		}
		return append(dst, out...), nil
	}
}
