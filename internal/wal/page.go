// Package wal reads write-ahead log: pages, records, block references, and what commit, abort and restore point records say.
// It is pure and streams: bytes go in as they come, whole records come out, memory is that of one record. It follows
// src/backend/access/transam/xlogreader.c of PostgreSQL 13 to 18 and never trusts a length before bytes have arrived for it.
package wal

import (
	"encoding/binary"
	"fmt"

	"pitr/internal/pg"
)

// PageSize is XLOG_BLCKSZ; 8 KiB is the default, and the only one that distributions build.
const PageSize = 8192

// Page header sizes and flags: src/include/access/xlog_internal.h (SizeOfXLogShortPHD, SizeOfXLogLongPHD, XLP_*).
const (
	shortHeaderSize = 24
	longHeaderSize  = 40

	flagFirstIsContrecord          = 0x0001
	flagLongHeader                 = 0x0002
	flagFirstIsOverwriteContrecord = 0x0008
	flagsAll                       = 0x000F
)

// Version is the major version of Postgres whose format a page has.
type Version int

// versions maps XLOG_PAGE_MAGIC of src/include/access/xlog_internal.h to the major version that wrote it.
var versions = map[uint16]Version{0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}

// pageHeader is XLogPageHeaderData, and XLogLongPageHeaderData on the first page of a segment.
type pageHeader struct {
	version     Version
	info        uint16
	timeline    pg.Timeline
	address     pg.LSN
	remaining   uint32 // bytes of a record that began on an earlier page
	systemID    pg.SystemID
	segmentSize pg.SegmentSize
}

func parsePageHeader(b []byte) (pageHeader, error) {
	magic := binary.LittleEndian.Uint16(b)
	h := pageHeader{
		version:   versions[magic],
		info:      binary.LittleEndian.Uint16(b[2:]),
		timeline:  pg.Timeline(binary.LittleEndian.Uint32(b[4:])),
		address:   pg.LSN(binary.LittleEndian.Uint64(b[8:])),
		remaining: binary.LittleEndian.Uint32(b[16:]),
	}
	if h.version == 0 {
		return h, fmt.Errorf("page magic %04X is none of PostgreSQL 13 to 18", magic)
	}
	if h.info&^flagsAll != 0 {
		return h, fmt.Errorf("page flags %04X are unknown", h.info)
	}
	if (h.info&flagLongHeader != 0) != (len(b) == longHeaderSize) {
		return h, fmt.Errorf("page flags %04X: a long header belongs to the first page of a segment and no other", h.info)
	}
	if len(b) == longHeaderSize {
		h.systemID = pg.SystemID(binary.LittleEndian.Uint64(b[24:]))
		h.segmentSize = pg.SegmentSize(binary.LittleEndian.Uint32(b[32:]))
		if blockSize := binary.LittleEndian.Uint32(b[36:]); blockSize != PageSize {
			return h, fmt.Errorf("WAL block size %d is not supported, only %d is", blockSize, PageSize)
		}
	}
	return h, nil
}

// SegmentHeader is what the first page of a segment says of its cluster.
type SegmentHeader struct {
	Version     Version
	Timeline    pg.Timeline
	Address     pg.LSN
	SystemID    pg.SystemID
	SegmentSize pg.SegmentSize
}

// ParseSegmentHeader reads the long header with which every segment begins.
func ParseSegmentHeader(b []byte) (SegmentHeader, error) {
	if len(b) < longHeaderSize {
		return SegmentHeader{}, fmt.Errorf("segment header has %d bytes, want %d", len(b), longHeaderSize)
	}
	h, err := parsePageHeader(b[:longHeaderSize])
	return SegmentHeader{h.version, h.timeline, h.address, h.systemID, h.segmentSize}, err
}
