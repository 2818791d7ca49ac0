package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of wal_segment_size: WalSegMinSize and WalSegMaxSize in src/include/access/xlog_internal.h.
const (
	SegmentSizeMin SegmentSize = 1 << 20
	SegmentSizeMax SegmentSize = 1 << 30
)

// SegmentSize is wal_segment_size in bytes: a power of two from 1 MiB to 1 GiB.
type SegmentSize uint64

// Valid follows IsValidWalSegSize in src/include/access/xlog_internal.h.
func (s SegmentSize) Valid() bool {
	return s >= SegmentSizeMin && s <= SegmentSizeMax && s&(s-1) == 0
}

// ParseSegmentSize reads the answer of SHOW wal_segment_size, such as 16MB or 1GB.
func ParseSegmentSize(text string) (SegmentSize, error) {
	scale := SegmentSize(1)
	digits := text
	for suffix, factor := range map[string]SegmentSize{"kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30} {
		if rest, found := strings.CutSuffix(text, suffix); found {
			digits, scale = rest, factor
		}
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	size := SegmentSize(n) * scale
	if err != nil || !size.Valid() {
		return 0, fmt.Errorf("parse WAL segment size %q: not a power of two from 1MB to 1GB", text)
	}
	return size, nil
}

// Start is the first position of the segment that holds lsn.
func (s SegmentSize) Start(lsn LSN) LSN { return lsn &^ LSN(s-1) }

// Offset is where in its segment lsn lies.
func (s SegmentSize) Offset(lsn LSN) uint64 { return uint64(lsn) & uint64(s-1) }

// Segment is the segment of timeline tli that holds lsn (XLByteToSeg).
func (s SegmentSize) Segment(tli Timeline, lsn LSN) Segment {
	return Segment{Timeline: tli, Number: uint64(lsn) / uint64(s)}
}

// Segment is one WAL file: a timeline and the number of the segment in it.
type Segment struct {
	Timeline Timeline
	Number   uint64
}

// Start is the position of the segment's first byte.
func (s Segment) Start(size SegmentSize) LSN { return LSN(s.Number * uint64(size)) }

// End is the position behind the segment's last byte.
func (s Segment) End(size SegmentSize) LSN { return LSN((s.Number + 1) * uint64(size)) }

// Next is the segment behind this one on the same timeline.
func (s Segment) Next() Segment { return Segment{Timeline: s.Timeline, Number: s.Number + 1} }

// Name is the file name that Postgres gives it: XLogFileName in src/include/access/xlog_internal.h.
func (s Segment) Name(size SegmentSize) string {
	perID := uint64(0x100000000) / uint64(size)
	return fmt.Sprintf("%08X%08X%08X", uint32(s.Timeline), s.Number/perID, s.Number%perID)
}

// ParseSegmentName reads the 24 digits of a WAL file name: XLogFromFileName.
func ParseSegmentName(name string, size SegmentSize) (Segment, error) {
	if !IsSegmentName(name) {
		return Segment{}, fmt.Errorf("parse WAL file name %q: not 24 upper-case hexadecimal digits", name)
	}
	tli, _ := parseHex(name[:8], 8)
	high, _ := parseHex(name[8:16], 8)
	low, _ := parseHex(name[16:], 8)
	perID := uint64(0x100000000) / uint64(size)
	if tli == 0 || low >= perID {
		return Segment{}, fmt.Errorf("parse WAL file name %q: no such segment when segments have %d bytes", name, size)
	}
	return Segment{Timeline: Timeline(tli), Number: high*perID + low}, nil
}

// IsSegmentName follows IsXLogFileName: 24 upper-case hexadecimal digits and nothing else.
func IsSegmentName(name string) bool {
	if len(name) != 24 {
		return false
	}
	return strings.Trim(name, "0123456789ABCDEF") == ""
}
