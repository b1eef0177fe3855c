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
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// What the records of a compressed batch look like. Each form says how long they are, which
// is weighed against the limit before room is made for so much, and held against what
// then comes:
//
//	gzip    RFC 1952, one member, whose last four bytes are the size
//	snappy  the block format, which begins with the size
//	lz4     the block format, behind the size as a little-endian uint32
//	zstd    RFC 8878, one frame, whose header has the size, without a dictionary
//
// The batch has a checksum, so that formats which frame and check blocks would do so again.
// Compressors are set for speed: their next levels take twice the time to save some 3 %.

const (
	// How many bytes each can make of one at most.
	maxGzipRatio   = 1032
	maxSnappyRatio = 22
	maxLZ4Ratio    = 255
	maxZstdRatio   = 128 << 10

	gzipTrailer = 8
	lz4Header   = 4

	// zstdSlack is what the decoder wants behind the end, so as to copy larger pieces.
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
		dst = slices.Grow(dst, s2.MaxEncodedLen(len(src)))
		return dst[:start+len(s2.EncodeSnappy(dst[start:cap(dst)], src))], nil
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
// more than limit bytes, and with [ErrMalformed] if src is damaged. It makes room for no
// more than limit, whatever src says; where a zstd frame holds more than it says, that is
// noticed a block too late, and takes as much again and a quarter.
func (c Compression) decompress(dst, src []byte, limit int) ([]byte, error) {
	if c == CompressionNone {
		if len(src) > limit {
			return dst, c.tooLarge(int64(len(src)), limit)
		}
		return append(dst, src...), nil
	}
	n, err := c.contentSize(src)
	if err != nil {
		return dst, fmt.Errorf("%w: %s: %w", ErrMalformed, c, err)
	}
	if n > int64(min(limit, math.MaxInt32)) {
		return dst, c.tooLarge(n, limit)
	}
	start, end := len(dst), len(dst)+int(n)
	dst = slices.Grow(dst, int(n)+zstdSlack)
	switch c {
	case CompressionNone: // Has been dealt with.
	case CompressionGzip:
		err = decompressGzip(dst[start:end], src)
	case CompressionSnappy:
		_, err = s2.Decode(dst[start:end], src)
	case CompressionLZ4:
		err = decompressLZ4(dst[start:end], src[lz4Header:])
	case CompressionZstd:
		err = decompressZstd(dst[start:end], src)
	}
	if err != nil {
		return dst[:start], fmt.Errorf("%w: %s: %w", ErrMalformed, c, err)
	}
	return dst[:end], nil
}

func (c Compression) tooLarge(n int64, limit int) error {
	return fmt.Errorf("%w: %s: %d bytes, decompressed, allowed are %d", ErrMessageTooLarge, c, n, limit)
}

var errContentSize = errors.New("the content has another size")

// contentSize returns how many bytes src says that it holds.
func (c Compression) contentSize(src []byte) (n int64, err error) {
	var ratio int64
	switch c {
	case CompressionGzip:
		if len(src) < gzipTrailer {
			return 0, io.ErrUnexpectedEOF
		}
		n, ratio = int64(binary.LittleEndian.Uint32(src[len(src)-4:])), maxGzipRatio
	case CompressionSnappy:
		size, err := s2.DecodedLen(src)
		if err != nil {
			return 0, err
		}
		n, ratio = int64(size), maxSnappyRatio
	case CompressionLZ4:
		if len(src) < lz4Header {
			return 0, io.ErrUnexpectedEOF
		}
		n, ratio = int64(binary.LittleEndian.Uint32(src)), maxLZ4Ratio
	case CompressionZstd:
		var h zstd.Header
		if err := h.Decode(src); err != nil {
			return 0, err
		}
		if !h.HasFCS {
			return 0, errors.New("its header has no size")
		}
		n, ratio = int64(min(h.FrameContentSize, math.MaxInt64)), maxZstdRatio
	default:
		return 0, errors.New("not known")
	}
	if n/ratio > int64(len(src)) {
		return 0, fmt.Errorf("%w: %d bytes cannot become %d", errContentSize, len(src), n)
	}
	return n, nil
}

type gzipWriter struct {
	out []byte
	z   *gzip.Writer
}

func newGzipWriter() *gzipWriter {
	w := new(gzipWriter)
	w.z, _ = gzip.NewWriterLevel(w, gzip.BestSpeed)
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
	src  bytes.Reader
	z    gzip.Reader
	more [1]byte
}

func decompressGzip(dst, src []byte) error {
	r, _ := gzipReaders.Get().(*gzipReader)
	defer gzipReaders.Put(r)
	r.src.Reset(src)
	defer r.src.Reset(nil)
	if err := r.z.Reset(&r.src); err != nil {
		return noEOF(err)
	}
	if _, err := io.ReadFull(&r.z, dst); err != nil {
		return noEOF(err)
	}
	switch _, err := io.ReadFull(&r.z, r.more[:]); {
	case err == nil:
		return errContentSize
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// noEOF returns err, unless it is io.EOF, which is no way for content to end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func compressLZ4(dst, src []byte) ([]byte, error) {
	w, _ := lz4Writers.Get().(*lz4.Compressor)
	defer lz4Writers.Put(w)
	start := len(dst)
	dst = slices.Grow(dst, lz4Header+lz4.CompressBlockBound(len(src)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(src)))
	n, err := w.CompressBlock(src, dst[len(dst):cap(dst)])
	return dst[:start+lz4Header+n], err
}

func decompressLZ4(dst, src []byte) error {
	n, err := lz4.UncompressBlock(src, dst)
	if err == nil && n != len(dst) {
		err = errContentSize
	}
	return err
}

// newZstdEncoder returns an encoder for EncodeAll, which starts no goroutine. With a window
// of the size of a batch it takes 3 MiB, with its own of 4 MiB it would take 9.
func newZstdEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
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

func decompressZstd(dst, src []byte) error {
	d, _ := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(d)
	out, err := d.DecodeAll(src, dst[:0])
	if err == nil && len(out) != len(dst) {
		err = errContentSize
	}
	return err
}
