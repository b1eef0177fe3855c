package robust

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A segment is a file of record batches, as they are on the wire, each of which begins at
// the offset at which the one before ends. Segments and their indexes are named by the
// offset of the first record, what is known of producers (see broker_log_producers.go) by
// that behind the last. They begin with a header, big-endian:
//
//	 0  magic        8 bytes  "robust" and "lg" for a segment, "ix" for an index, "pr" for producers
//	 8  version      uint16   1
//	10  reserved     uint16   0
//	12  partition    int32
//	16  base offset  int64
//	24  topic ID     36 bytes, cut off or filled with zeros
//	60  crc          uint32   CRC-32C of the bytes before it
const (
	segmentHeaderSize = 64
	segmentVersion    = 1
	segmentMagic      = "robustlg"
	indexMagic        = "robustix"
	producersMagic    = "robustpr"
	maxTopicIDBytes   = 36
)

// segmentHeader says which log a file belongs to, and where in it.
type segmentHeader struct {
	topicID   string
	partition int32
	base      int64
}

func (h segmentHeader) encode(magic string) []byte {
	dst := append(make([]byte, 0, segmentHeaderSize), magic...)
	dst = binary.BigEndian.AppendUint16(dst, segmentVersion)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.partition))
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.base))
	var id [maxTopicIDBytes]byte
	copy(id[:], h.topicID)
	dst = append(dst, id[:]...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst, castagnoli))
}

// damage is what is wrong with bytes that were read.
type damage string

func (d damage) Error() string { return string(d) }

const damageForeign damage = "it belongs to another log, or another place in it"

// check reads a file's header. The error is a damage, one that wraps ErrUnsupported for a
// version that is not known, or that of the read.
func (h segmentHeader) check(f file, path, magic string) error {
	var b [segmentHeaderSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil && !isEOF(err) {
		return err
	} else if err != nil {
		return damage("the header is cut off")
	}
	return h.checkBytes(b[:], path, magic)
}

// checkBytes is check for who has the header in memory.
func (h segmentHeader) checkBytes(b []byte, path, magic string) error {
	switch {
	case crc32.Checksum(b[:segmentHeaderSize-4], castagnoli) != binary.BigEndian.Uint32(b[segmentHeaderSize-4:]):
		return damage("the header's checksum is wrong")
	case string(b[:8]) != magic:
		return damage("it is a file of another kind")
	}
	if version := binary.BigEndian.Uint16(b[8:]); version != segmentVersion {
		return fmt.Errorf("%w: %s has format version %d, known is %d", ErrUnsupported, path, version, segmentVersion)
	}
	if string(b) != string(h.encode(magic)) {
		return damageForeign
	}
	return nil
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }
