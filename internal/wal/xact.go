package wal

import (
	"time"

	"pitr/internal/pg"
)

// Transaction record kinds: XLOG_XACT_* of src/include/access/xact.h, under XLOG_XACT_OPMASK.
const (
	xactOpMask         = 0x70
	xactCommit         = 0x00
	xactAbort          = 0x20
	xactCommitPrepared = 0x30
	xactAbortPrepared  = 0x40
	xactHasInfo        = 0x80 // XLOG_XACT_HAS_INFO
)

// What follows the time of a commit or abort: XACT_XINFO_* of src/include/access/xact.h.
const (
	xinfoHasDatabase     = 1 << 0
	xinfoHasSubxacts     = 1 << 1
	xinfoHasRelations    = 1 << 2
	xinfoHasInvals       = 1 << 3
	xinfoHasTwoPhase     = 1 << 4
	xinfoHasDroppedStats = 1 << 8

	invalidationSize = 16 // sizeof(SharedInvalidationMessage)
	relationSize     = 12 // sizeof(RelFileLocator)
)

// Xact is the end of a transaction as a commit or abort record tells it.
type Xact struct {
	XID       uint32 // for COMMIT PREPARED and ROLLBACK PREPARED that of the prepared transaction
	Time      time.Time
	Committed bool
	Prepared  bool
	Database  uint32 // zero where the record does not name it
}

// Xact reads a commit or abort record; ok is false for any other. The record must have been decoded.
func (r *Record) Xact() (x Xact, ok bool, err error) {
	op := r.Info & xactOpMask
	if r.Rmgr != RmgrXact || op != xactCommit && op != xactAbort && op != xactCommitPrepared && op != xactAbortPrepared {
		return Xact{}, false, nil
	}
	d := recordReader{rest: r.Main}
	x = Xact{
		XID:       r.XID,
		Time:      pg.Time(d.i64()),
		Committed: op == xactCommit || op == xactCommitPrepared,
		Prepared:  op == xactCommitPrepared || op == xactAbortPrepared,
	}
	if r.Info&xactHasInfo != 0 {
		r.xactDetails(&d, &x)
	}
	if d.short {
		return Xact{}, false, &CorruptError{r.Start, errShortRecord}
	}
	return x, true, nil
}

// xactDetails follows ParseCommitRecord and ParseAbortRecord of src/backend/access/rmgrdesc/xactdesc.c.
func (r *Record) xactDetails(d *recordReader, x *Xact) {
	info := d.u32()
	if info&xinfoHasDatabase != 0 {
		x.Database = d.u32()
		d.u32() // tablespace
	}
	if info&xinfoHasSubxacts != 0 {
		d.array(4)
	}
	if info&xinfoHasRelations != 0 {
		d.array(relationSize)
	}
	if info&xinfoHasDroppedStats != 0 {
		// xl_xact_stats_item has grown by 4 bytes when 18 made object ids 64 bits wide.
		size := 12
		if r.Version >= 18 {
			size = 16
		}
		d.array(size)
	}
	if x.Committed && info&xinfoHasInvals != 0 {
		d.array(invalidationSize)
	}
	if info&xinfoHasTwoPhase != 0 {
		x.XID = d.u32()
	}
}
