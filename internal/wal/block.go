package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Relation is a RelFileLocator: the directory and file that hold a relation.
type Relation struct {
	Tablespace, Database, Number uint32
}

func (r Relation) String() string { return fmt.Sprintf("%d/%d/%d", r.Tablespace, r.Database, r.Number) }

// Fork is a ForkNumber: src/include/common/relpath.h.
type Fork uint8

func (f Fork) String() string {
	names := [...]string{"main", "fsm", "vm", "init"}
	if int(f) < len(names) {
		return names[f]
	}
	return fmt.Sprintf("fork %d", uint8(f))
}

// Block is a block that a record changes.
type Block struct {
	ID       uint8
	Relation Relation
	Fork     Fork
	Number   uint32
	HasImage bool
	Data     []byte // the resource manager's data for the block, without the image

	imageLength, dataLength int
}

// Block and data header ids, and flags: src/include/access/xlogrecord.h (XLR_BLOCK_ID_*, BKPBLOCK_*, BKPIMAGE_*).
const (
	idDataShort = 255
	idDataLong  = 254
	idOrigin    = 253
	idTopXID    = 252
	blockIDMax  = 32

	forkMask      = 0x0F
	blockHasImage = 0x10
	blockHasData  = 0x20
	blockSameRel  = 0x80

	imageHasHole = 0x01
	// imageCompressed14 is BKPIMAGE_IS_COMPRESSED up to 14; imageCompressed15 are the three methods since 15.
	imageCompressed14 = 0x02
	imageCompressed15 = 0x04 | 0x08 | 0x10

	blockSize = 8192
)

var errShortRecord = errors.New("record ends within its headers")

// Decode reads the headers of blocks and data as DecodeXLogRecord does. The slices point into the record.
func (r *Record) Decode() error {
	d := recordReader{rest: r.raw[recordHeaderSize:]}
	r.Blocks, r.Main, r.TopXID = r.Blocks[:0], nil, 0
	mainLength, err := r.decodeHeaders(&d)
	for i := range r.Blocks {
		d.bytes(r.Blocks[i].imageLength)
		r.Blocks[i].Data = d.bytes(r.Blocks[i].dataLength)
	}
	r.Main = d.bytes(mainLength)
	if err == nil && (d.short || len(d.rest) != 0) {
		err = errShortRecord
	}
	if err != nil {
		return &CorruptError{r.Start, err}
	}
	return nil
}

// decodeHeaders returns the length of the main data. Its header, where there is one, is the last.
func (r *Record) decodeHeaders(d *recordReader) (int, error) {
	dataTotal := 0
	for len(d.rest) > dataTotal && !d.short {
		switch id := d.u8(); {
		case id == idDataShort:
			return int(d.u8()), nil
		case id == idDataLong:
			return int(d.u32()), nil
		case id == idOrigin:
			d.u16()
		case id == idTopXID:
			r.TopXID = d.u32()
		case id <= blockIDMax:
			block, err := r.decodeBlockHeader(d, id)
			if err != nil {
				return 0, err
			}
			dataTotal += block.imageLength + block.dataLength
			r.Blocks = append(r.Blocks, block)
		default:
			return 0, fmt.Errorf("record has a header of unknown kind %d", id)
		}
	}
	return 0, nil
}

func (r *Record) decodeBlockHeader(d *recordReader, id uint8) (Block, error) {
	if n := len(r.Blocks); n > 0 && id <= r.Blocks[n-1].ID {
		return Block{}, fmt.Errorf("block %d is out of order", id)
	}
	flags := d.u8()
	block := Block{ID: id, Fork: Fork(flags & forkMask), HasImage: flags&blockHasImage != 0, dataLength: int(d.u16())}
	if (flags&blockHasData != 0) != (block.dataLength > 0) {
		return block, fmt.Errorf("block %d: its flags and its data length %d do not agree", id, block.dataLength)
	}
	if block.HasImage {
		block.imageLength = r.decodeImageHeader(d)
	}
	if flags&blockSameRel == 0 {
		block.Relation = Relation{d.u32(), d.u32(), d.u32()}
	} else if n := len(r.Blocks); n > 0 {
		block.Relation = r.Blocks[n-1].Relation
	} else {
		return block, fmt.Errorf("block %d refers to the relation of a block before it, and there is none", id)
	}
	block.Number = d.u32()
	return block, nil
}

// decodeImageHeader returns the image's length (XLogRecordBlockImageHeader and, for a compressed image with a hole,
// XLogRecordBlockCompressHeader).
func (r *Record) decodeImageHeader(d *recordReader) int {
	length := int(d.u16())
	d.u16() // hole offset
	info := d.u8()
	compressed := info&imageCompressed15 != 0
	if r.Version < 15 {
		compressed = info&imageCompressed14 != 0
	}
	if compressed && info&imageHasHole != 0 {
		d.u16() // hole length
	}
	return length
}

// recordReader reads little-endian numbers; once it runs short it returns zeros.
type recordReader struct {
	rest  []byte
	short bool
}

func (d *recordReader) bytes(n int) []byte {
	if n < 0 || n > len(d.rest) {
		d.rest, d.short = nil, true
		return nil
	}
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out
}

func (d *recordReader) u8() uint8 {
	if b := d.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *recordReader) u16() uint16 {
	if b := d.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *recordReader) u32() uint32 {
	if b := d.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *recordReader) i64() int64 {
	if b := d.bytes(8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
}
