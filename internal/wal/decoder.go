package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"pitr/internal/pg"
)

// ErrEnd says that the log ends here: a record of length zero, as in the part of a segment that was never written.
var ErrEnd = errors.New("end of WAL")

// CorruptError says at which position the log is not what Postgres writes.
type CorruptError struct {
	At    pg.LSN
	Cause error
}

func (e *CorruptError) Error() string { return fmt.Sprintf("WAL at %s: %v", e.At, e.Cause) }
func (e *CorruptError) Unwrap() error { return e.Cause }

// Options says what a Decoder starts from and what the log must agree with.
type Options struct {
	Start       pg.LSN         // the first byte that will be written; the start of a page
	SegmentSize pg.SegmentSize // of the cluster
	SystemID    pg.SystemID    // of the cluster; zero: not checked
	Timeline    pg.Timeline    // no page may be of a later one; zero: not checked
	Version     Version        // of the server; zero: that of the first page
	LastRecord  pg.LSN         // start of the record before the first one; zero: unknown, its prev link is not checked
}

// Decoder checks a stream of WAL and cuts it into records. Feed it with Write; it calls emit for each record. After an error it
// stays failed. It keeps the bytes of at most one record, and only of one that comes in pieces.
type Decoder struct {
	opt  Options
	emit func(*Record) error

	pos      pg.LSN // of the next byte that is written
	skipTo   pg.LSN // bytes before it are padding behind a segment switch
	contLeft uint32 // bytes still to come of a record that began before Start
	header   [longHeaderSize]byte
	held     int // bytes in header
	version  Version
	timeline pg.Timeline

	record     Record
	raw        []byte // bytes of the unfinished record
	start      pg.LSN // its first byte
	total      uint32 // its length; zero while unknown
	last       pg.LSN // start of the last whole record
	end        pg.LSN // behind the last whole record
	overwrites bool   // the next record must be the one that tells of a torn record before it
	err        error
}

// NewDecoder panics when Start is not the start of a page or the segment size is impossible: its caller knows both.
func NewDecoder(opt Options, emit func(*Record) error) *Decoder {
	if opt.Start%PageSize != 0 || !opt.SegmentSize.Valid() {
		panic("wal: a decoder starts at a page of a segment")
	}
	return &Decoder{opt: opt, emit: emit, version: opt.Version, pos: opt.Start, last: opt.LastRecord, end: opt.Start}
}

// Position is where the next byte that is written belongs.
func (d *Decoder) Position() pg.LSN { return d.pos }

// LastRecord is the start of the last whole record, or Options.LastRecord before there is one.
func (d *Decoder) LastRecord() pg.LSN { return d.last }

// RecordsEnd is the position behind the last whole record; Start before there is one.
func (d *Decoder) RecordsEnd() pg.LSN { return d.end }

// UnfinishedRecord is the start of the record that has begun and is not whole yet; zero when there is none.
func (d *Decoder) UnfinishedRecord() pg.LSN {
	if len(d.raw) == 0 {
		return 0
	}
	return d.start
}

// InForeignRecord reports whether the bytes so far belong to a record that began before Start.
func (d *Decoder) InForeignRecord() bool { return d.contLeft > 0 }

// Version is the major version of the server that wrote the pages so far; zero before the first.
func (d *Decoder) Version() Version { return d.version }

// Write takes the bytes that follow and emits the records that they complete.
func (d *Decoder) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 && d.err == nil {
		n, err := d.step(p)
		p = p[n:]
		d.pos += pg.LSN(n)
		if err != nil && d.err == nil {
			d.err = err
		}
	}
	return written - len(p), d.err
}

// step takes some bytes of p, never past the end of a page.
func (d *Decoder) step(p []byte) (int, error) {
	if d.pos < d.skipTo {
		return int(min(uint64(len(p)), uint64(d.skipTo-d.pos))), nil
	}
	if d.held > 0 || d.pos%PageSize == 0 {
		return d.takeHeader(p)
	}
	if room := PageSize - int(d.pos%PageSize); len(p) > room {
		p = p[:room]
	}
	switch {
	case d.contLeft > 0:
		n := min(len(p), int(d.contLeft))
		d.contLeft -= uint32(n)
		return n, nil
	case len(d.raw) == 0 && d.pos%alignment != 0:
		return min(len(p), int(alignment-d.pos%alignment)), nil
	default:
		return d.takeRecord(p)
	}
}

func (d *Decoder) takeHeader(p []byte) (int, error) {
	page := d.pos - pg.LSN(d.held)
	size := shortHeaderSize
	if d.opt.SegmentSize.Offset(page) == 0 {
		size = longHeaderSize
	}
	n := copy(d.header[d.held:size], p)
	d.held += n
	if d.held < size {
		return n, nil
	}
	d.held = 0
	h, err := parsePageHeader(d.header[:size])
	if err == nil {
		err = d.checkHeader(page, h)
	}
	if err == nil {
		err = d.continueRecord(page, h)
	}
	if err != nil {
		return n, &CorruptError{page, err}
	}
	return n, nil
}

func (d *Decoder) checkHeader(page pg.LSN, h pageHeader) error {
	if h.address != page {
		return fmt.Errorf("page says that it belongs at %s", h.address)
	}
	if d.version != 0 && d.version != h.version {
		return fmt.Errorf("page was written by PostgreSQL %d, the one before by %d", h.version, d.version)
	}
	if h.timeline < d.timeline || h.timeline == 0 || d.opt.Timeline != 0 && h.timeline > d.opt.Timeline {
		return fmt.Errorf("page belongs to timeline %d, expected %d to %d", h.timeline, d.timeline, d.opt.Timeline)
	}
	if h.info&flagLongHeader != 0 {
		if d.opt.SystemID != 0 && h.systemID != d.opt.SystemID {
			return fmt.Errorf("segment belongs to the cluster with system identifier %s, expected %s", h.systemID, d.opt.SystemID)
		}
		if h.segmentSize != d.opt.SegmentSize {
			return fmt.Errorf("segment size is %d bytes, expected %d", h.segmentSize, d.opt.SegmentSize)
		}
	}
	d.version, d.timeline = h.version, h.timeline
	return nil
}

// continueRecord compares what the page says of a record that spans into it with what is known of that record.
func (d *Decoder) continueRecord(page pg.LSN, h pageHeader) error {
	if h.info&flagFirstIsOverwriteContrecord != 0 {
		// The server crashed before it had written the rest of the record, and says so: XLOG_OVERWRITE_CONTRECORD follows.
		d.raw, d.total, d.contLeft, d.overwrites = d.raw[:0], 0, 0, true
		return nil
	}
	isContinuation := h.info&flagFirstIsContrecord != 0
	if page == d.opt.Start && isContinuation && h.remaining > 0 {
		d.contLeft = h.remaining
		return nil
	}
	expected := d.contLeft
	if len(d.raw) > 0 {
		expected = d.total - uint32(len(d.raw))
	}
	if isContinuation != (expected > 0) || h.remaining != expected {
		return fmt.Errorf("page continues a record by %d bytes, expected %d", h.remaining, expected)
	}
	return nil
}

// takeRecord collects the bytes of a record. A record begins aligned, so its length word is never split by a page.
func (d *Decoder) takeRecord(p []byte) (int, error) {
	if len(d.raw) == 0 {
		d.start = d.pos
		if len(p) >= 4 {
			if n := binary.LittleEndian.Uint32(p); n >= recordHeaderSize && uint64(n) <= uint64(len(p)) {
				return d.finishRecord(p[:n:n], int(n)) // all of it is there: nothing needs to be kept
			}
		}
	}
	want := 4
	if len(d.raw) >= 4 {
		want = int(d.total)
	}
	n := min(len(p), want-len(d.raw))
	d.raw = append(d.raw, p[:n]...)
	if len(d.raw) < want {
		return n, nil
	}
	if want == 4 {
		return n, d.startRecord()
	}
	return d.finishRecord(d.raw, n)
}

func (d *Decoder) startRecord() error {
	d.total = binary.LittleEndian.Uint32(d.raw)
	if d.total == 0 {
		return ErrEnd
	}
	if d.total < recordHeaderSize || d.total > recordSizeMax {
		return &CorruptError{d.start, fmt.Errorf("record length %d is out of range", d.total)}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// finishRecord checks and emits a record whose last n bytes are those at the position.
func (d *Decoder) finishRecord(raw []byte, n int) (int, error) {
	d.pos += pg.LSN(n) // emit may ask for the position
	err := d.checkRecord(raw)
	if err == nil {
		d.last, d.end = d.start, d.record.End
		err = d.emit(&d.record)
		d.raw, d.total = d.raw[:0], 0
		if cap(d.raw) > rawKept {
			d.raw = nil
		}
	}
	d.pos -= pg.LSN(n)
	return n, err
}

func (d *Decoder) checkRecord(raw []byte) error {
	// ValidXLogRecord: the CRC covers what follows the header, then the header up to the CRC.
	sum := crc32.Update(0, castagnoli, raw[recordHeaderSize:])
	sum = crc32.Update(sum, castagnoli, raw[:recordCRCOffset])
	r := &d.record
	r.reset(d.start, align(d.pos), raw, d.version)
	if sum != binary.LittleEndian.Uint32(raw[recordCRCOffset:]) {
		return &CorruptError{d.start, errors.New("record checksum is wrong")}
	}
	if d.last != 0 && r.Prev != d.last {
		return &CorruptError{d.start, fmt.Errorf("record follows %s by its own word, but the one before it is at %s", r.Prev, d.last)}
	}
	if d.overwrites != (r.Rmgr == RmgrXLOG && r.Info&infoMask == xlogOverwriteContrecord) {
		return &CorruptError{d.start, errors.New("a torn record and XLOG_OVERWRITE_CONTRECORD belong together")}
	}
	d.overwrites = false
	if r.Rmgr == RmgrXLOG && r.Info&infoMask == xlogSwitch {
		if d.opt.SegmentSize.Offset(d.pos) != 0 {
			d.skipTo = d.opt.SegmentSize.Start(d.pos) + pg.LSN(d.opt.SegmentSize)
			r.End = d.skipTo
		}
	}
	return nil
}

// rawKept is how much of the buffer for a record is kept for the next one; larger records are rare.
const rawKept = 1 << 20
