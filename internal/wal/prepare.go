package wal

import (
	"bytes"
	"time"

	"pitr/internal/pg"
)

// xactPrepare is XLOG_XACT_PREPARE of src/include/access/xact.h.
const xactPrepare = 0x10

// gidSize is GIDSIZE of src/include/access/xact.h: the longest global identifier, its final zero included.
const gidSize = 200

// Prepared is a transaction that PREPARE TRANSACTION has put aside.
type Prepared struct {
	XID      uint32
	GID      string
	Database uint32
	Time     time.Time
}

// Prepared reads the record of a PREPARE TRANSACTION; ok is false for any other. The record must have been decoded.
func (r *Record) Prepared() (p Prepared, ok bool, err error) {
	if r.Rmgr != RmgrXact || r.Info&xactOpMask != xactPrepare {
		return Prepared{}, false, nil
	}
	p, ok = ParsePrepared(r.Main, r.Version)
	if !ok {
		return Prepared{}, false, &CorruptError{r.Start, errShortRecord}
	}
	return p, true, nil
}

// ParsePrepared reads xl_xact_prepare of src/include/access/xact.h, which is also what a file of pg_twophase begins with (TwoPhaseFileHeader of
// src/backend/access/transam/twophase.c). 15 has added two counts to it.
func ParsePrepared(content []byte, version Version) (p Prepared, ok bool) {
	d := recordReader{rest: content}
	d.bytes(8) // magic, total_len
	p.XID, p.Database, p.Time = d.u32(), d.u32(), pg.Time(d.i64())
	d.bytes(4 * 4) // owner, nsubxacts, ncommitrels, nabortrels
	header := 64
	if version >= 15 {
		d.bytes(2 * 4) // ncommitstats, nabortstats
		header = 72
	}
	d.bytes(4 + 1 + 1) // ninvalmsgs, initfileinval, padding
	length := int(d.u16())
	if d.short || length < 1 || length > gidSize || header+length > len(content) {
		return Prepared{}, false
	}
	gid, _, _ := bytes.Cut(content[header:header+length], []byte{0})
	p.GID = string(gid)
	return p, true
}
