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

	// invalidatesRelcache is SHAREDINVALRELCACHE_ID of src/include/storage/sinval.h.
	invalidatesRelcache = -2
	// statsOfRelation is PGSTAT_KIND_RELATION of src/include/utils/pgstat_kind.h; src/include/pgstat.h in 15 to 17.
	statsOfRelation = 2
)

// Xact is the end of a transaction as a commit or abort record tells it.
type Xact struct {
	XID       uint32 // for COMMIT PREPARED and ROLLBACK PREPARED that of the prepared transaction
	Time      time.Time
	Committed bool
	Prepared  bool
	Database  uint32 // zero where the record does not name it

	Subxacts  []uint32   // its subtransactions, those that had an id of their own
	Relations []Relation // whose files are removed: dropped, or left behind by TRUNCATE or a rewrite
	Dropped   []Object   // dropped for good: relations whose statistics end with it, 15 and later
	Relcache  []Object   // relations of which other sessions must forget what they know, commits only
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
		x.Subxacts = make([]uint32, d.count(4))
		for i := range x.Subxacts {
			x.Subxacts[i] = d.u32()
		}
	}
	if info&xinfoHasRelations != 0 {
		x.Relations = make([]Relation, d.count(relationSize))
		for i := range x.Relations {
			x.Relations[i] = d.relation()
		}
	}
	if info&xinfoHasDroppedStats != 0 {
		r.droppedStats(d, x)
	}
	if x.Committed && info&xinfoHasInvals != 0 {
		invalidations(d, x)
	}
	if info&xinfoHasTwoPhase != 0 {
		x.XID = d.u32()
	}
}

// droppedStats reads xl_xact_stats_items. An item has grown by 4 bytes when 18 made object ids 64 bits wide.
func (r *Record) droppedStats(d *recordReader, x *Xact) {
	size := 12
	if r.Version >= 18 {
		size = 16
	}
	for range d.count(size) {
		item := recordReader{rest: d.bytes(size)}
		if kind, object := item.u32(), (Object{item.u32(), item.u32()}); kind == statsOfRelation && x.Committed {
			x.Dropped = append(x.Dropped, object)
		}
	}
}

// invalidations reads SharedInvalidationMessages. Of those for relations each is kept once, in order.
func invalidations(d *recordReader, x *Xact) {
	seen := map[Object]bool{}
	for range d.count(invalidationSize) {
		message := recordReader{rest: d.bytes(invalidationSize)}
		id := int8(message.u32()) // and padding
		object := Object{message.u32(), message.u32()}
		if id == invalidatesRelcache && object.OID != 0 && !seen[object] {
			seen[object] = true
			x.Relcache = append(x.Relcache, object)
		}
	}
}
