package wal

// Records of the resource managers Storage and Database: src/include/catalog/storage_xlog.h and src/include/commands/dbcommands_xlog.h.
const (
	smgrCreate   = 0x10
	smgrTruncate = 0x20
	// SMGR_TRUNCATE_HEAP and SMGR_TRUNCATE_VM.
	smgrTruncateHeap = 1 << 0
	smgrTruncateVM   = 1 << 1
	// heapBlocksPerMapBlock is HEAPBLOCKS_PER_PAGE of src/backend/access/heap/visibilitymap.c: two bits for each in a page behind its header.
	heapBlocksPerMapBlock = (blockSize - 24) * 8 / 2

	// XLOG_DBASE_* since 15, when XLOG_DBASE_CREATE was split in two and XLOG_DBASE_DROP moved up.
	dbaseCreateFileCopy = 0x00
	dbaseCreateWALLog   = 0x10
	dbaseDrop           = 0x20
	dbaseDrop14         = 0x10
)

// Forks: src/include/common/relpath.h.
const (
	ForkMain Fork = 0
	ForkFSM  Fork = 1
	ForkVM   Fork = 2
	ForkInit Fork = 3
)

// Cut says that a fork has been made, cut off or removed: blocks at or behind Block have nothing to do with what was there before.
// Number zero of the relation means every relation in that database and tablespace.
type Cut struct {
	Relation Relation
	Fork     Fork
	Block    uint32
}

// CreatedFile reads the record that makes the main fork of a relation (xl_smgr_create); ok is false for any other.
func (r *Record) CreatedFile() (relation Relation, ok bool, err error) {
	if r.Rmgr != RmgrStorage || r.Info&infoMask != smgrCreate {
		return Relation{}, false, nil
	}
	d := recordReader{rest: r.Main}
	relation = d.relation()
	fork := d.u32()
	if d.short {
		return Relation{}, false, &CorruptError{r.Start, errShortRecord}
	}
	return relation, Fork(fork) == ForkMain, nil
}

// Cuts passes what SummarizeSmgrRecord, SummarizeDbaseRecord and SummarizeXactRecord of src/backend/postmaster/walsummarizer.c call
// limit blocks. The FSM is left out as there: it is not wholly in the WAL. The record must have been decoded.
func (r *Record) Cuts(visit func(Cut)) error {
	d := recordReader{rest: r.Main}
	switch r.Rmgr {
	case RmgrStorage:
		r.storageCuts(&d, visit)
	case RmgrDatabase:
		r.databaseCuts(&d, visit)
	case RmgrXact:
		if r.Info&xactHasInfo == 0 {
			return nil // no files, as for most
		}
		x, isEnd, err := r.Xact()
		if err != nil || !isEnd {
			return err
		}
		for _, relation := range x.Relations {
			for _, fork := range []Fork{ForkMain, ForkVM, ForkInit} {
				visit(Cut{relation, fork, 0})
			}
		}
	}
	if d.short {
		return &CorruptError{r.Start, errShortRecord}
	}
	return nil
}

func (r *Record) storageCuts(d *recordReader, visit func(Cut)) {
	switch r.Info & infoMask {
	case smgrCreate:
		relation := d.relation()
		if fork := Fork(d.u32()); !d.short && fork != ForkFSM {
			visit(Cut{relation, fork, 0})
		}
	case smgrTruncate:
		block := d.u32()
		relation := d.relation()
		flags := d.u32()
		if flags&smgrTruncateHeap != 0 {
			visit(Cut{relation, ForkMain, block})
		}
		if flags&smgrTruncateVM != 0 {
			// visibilitymap_prepare_truncate also clears bits in the map's last block that stays, without a block reference. (Postgres's
			// summarizer takes the heap's block number for the map's here, and so misses that block.)
			visit(Cut{relation, ForkVM, block / heapBlocksPerMapBlock})
		}
	}
}

func (r *Record) databaseCuts(d *recordReader, visit func(Cut)) {
	op := r.Info & infoMask
	database := d.u32()
	if r.isDatabaseDrop() {
		for range d.count(4) {
			visit(Cut{Relation{Tablespace: d.u32(), Database: database}, ForkMain, 0})
		}
		return
	}
	if op == dbaseCreateFileCopy || op == dbaseCreateWALLog {
		visit(Cut{Relation{Tablespace: d.u32(), Database: database}, ForkMain, 0})
	}
}

func (r *Record) isDatabaseDrop() bool {
	if r.Version < 15 {
		return r.Info&infoMask == dbaseDrop14
	}
	return r.Info&infoMask == dbaseDrop
}

// DroppedDatabase reads the record that DROP DATABASE leaves (xl_dbase_drop_rec); ok is false for any other.
func (r *Record) DroppedDatabase() (oid uint32, ok bool) {
	if r.Rmgr != RmgrDatabase || !r.isDatabaseDrop() {
		return 0, false
	}
	d := recordReader{rest: r.Main}
	oid = d.u32()
	return oid, !d.short
}

// XLOG_RUNNING_XACTS of src/include/storage/standbydefs.h.
const standbyRunningXacts = 0x10

// Running tells which transactions were running: those before Oldest have ended, those from Next on have not begun.
type Running struct {
	Next, Oldest uint32
}

// Running reads xl_running_xacts; ok is false for any other record.
func (r *Record) Running() (running Running, ok bool) {
	if r.Rmgr != RmgrStandby || r.Info&infoMask != standbyRunningXacts {
		return Running{}, false
	}
	d := recordReader{rest: r.Main}
	d.bytes(12) // xcnt, subxcnt, subxid_overflow with its padding
	running = Running{Next: d.u32(), Oldest: d.u32()}
	return running, !d.short
}

func (d *recordReader) relation() Relation { return Relation{d.u32(), d.u32(), d.u32()} }

// count reads a 32-bit count of items of a size, and is zero where the record is too short for so many.
func (d *recordReader) count(itemSize int) int {
	count := d.u32()
	if uint64(count)*uint64(itemSize) > uint64(len(d.rest)) {
		d.rest, d.short = nil, true
		return 0
	}
	return int(count)
}
