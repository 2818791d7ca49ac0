package wal

import (
	"encoding/binary"

	"pitr/internal/pg"
)

// Sizes of struct XLogRecord: src/include/access/xlogrecord.h.
const (
	recordHeaderSize = 24
	recordCRCOffset  = 20
	// recordSizeMax is XLogRecordMaxSize, 1020 MiB.
	recordSizeMax = 1020 << 20
	// infoMask is the part of xl_info that belongs to the resource manager: the complement of XLR_INFO_MASK.
	infoMask = 0xF0
	// alignment is MAXIMUM_ALIGNOF: records begin at multiples of it.
	alignment = 8
)

func align(lsn pg.LSN) pg.LSN { return (lsn + alignment - 1) &^ (alignment - 1) }

// Record is one WAL record whose checksum and prev link are right. It is valid until emit returns; Blocks and Main are there
// after Decode.
type Record struct {
	Start   pg.LSN // ReadRecPtr; what pg_waldump calls lsn
	End     pg.LSN // EndRecPtr; behind a segment switch that is the next segment
	Prev    pg.LSN
	XID     uint32
	Rmgr    Rmgr
	Info    uint8
	Length  uint32 // xl_tot_len
	Version Version

	Blocks []Block
	Main   []byte // the resource manager's own data
	TopXID uint32 // zero where the record does not name it

	raw []byte
}

func (r *Record) reset(start, end pg.LSN, raw []byte, version Version) {
	*r = Record{
		Start:   start,
		End:     end,
		Length:  binary.LittleEndian.Uint32(raw),
		XID:     binary.LittleEndian.Uint32(raw[4:]),
		Prev:    pg.LSN(binary.LittleEndian.Uint64(raw[8:])),
		Info:    raw[16],
		Rmgr:    Rmgr(raw[17]),
		Version: version,
		Blocks:  r.Blocks[:0],
		raw:     raw,
	}
}

// LengthWithoutImages is the length less that of its full-page images: XLogRecGetLen of pg_waldump. The record must have been decoded.
func (r *Record) LengthWithoutImages() uint32 {
	length := r.Length
	for _, block := range r.Blocks {
		length -= uint32(block.imageLength)
	}
	return length
}
