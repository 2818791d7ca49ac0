package wal

import "fmt"

// Heap records: XLOG_HEAP_* and XLOG_HEAP2_MULTI_INSERT of src/include/access/heapam_xlog.h, the same in 13 to 18.
const (
	heapOpMask       = 0x70
	heapInsert       = 0x00
	heapDelete       = 0x10
	heapUpdate       = 0x20
	heapTruncate     = 0x30
	heapHotUpdate    = 0x40
	heap2MultiInsert = 0x50

	// deleteIsSuper is XLH_DELETE_IS_SUPER: a speculative insertion of INSERT … ON CONFLICT is taken back.
	deleteIsSuper = 1 << 3
	// deleteIsPartitionMove is XLH_DELETE_IS_PARTITION_MOVE: an UPDATE has moved the row to another partition.
	deleteIsPartitionMove = 1 << 4
)

// RowKind says what has happened to rows.
type RowKind uint8

// The kinds of changes to rows.
const (
	Inserted RowKind = iota
	Updated
	Deleted
)

func (k RowKind) String() string { return [...]string{"inserted", "updated", "deleted"}[k] }

// Rows is what one heap record does to the rows of a relation. An insertion that is taken back counts -1.
type Rows struct {
	Relation Relation
	Kind     RowKind
	Count    int
}

// Rows reads a heap record that inserts, updates or deletes rows; ok is false for any other. The record must have been decoded. A row
// that an UPDATE moves to another partition is updated in the old one and inserted in the new one.
func (r *Record) Rows() (rows Rows, ok bool, err error) {
	op := r.Info & heapOpMask
	if r.Rmgr != RmgrHeap && (r.Rmgr != RmgrHeap2 || op != heap2MultiInsert) {
		return Rows{}, false, nil
	}
	d := recordReader{rest: r.Main}
	rows.Count = 1
	switch {
	case r.Rmgr == RmgrHeap2:
		d.u16() // xl_heap_multi_insert: flags, padding
		rows.Kind, rows.Count = Inserted, int(d.u16())
	case op == heapInsert:
		rows.Kind = Inserted
	case op == heapUpdate, op == heapHotUpdate:
		rows.Kind = Updated
	case op == heapDelete:
		d.bytes(7) // xl_heap_delete: xmax, offnum, infobits_set
		switch flags := d.u8(); {
		case flags&deleteIsSuper != 0:
			rows.Kind, rows.Count = Inserted, -1
		case flags&deleteIsPartitionMove != 0:
			rows.Kind = Updated
		default:
			rows.Kind = Deleted
		}
	default:
		return Rows{}, false, nil
	}
	if d.short {
		return Rows{}, false, &CorruptError{r.Start, errShortRecord}
	}
	if len(r.Blocks) == 0 {
		return Rows{}, false, &CorruptError{r.Start, fmt.Errorf("heap record of kind %02X refers to no block", r.Info)}
	}
	rows.Relation = r.Blocks[0].Relation
	return rows, true, nil
}

// Object is a relation by its object id, as catalogues and invalidations know it. Database is zero for those that all databases share.
type Object struct {
	Database uint32 `json:"database"`
	OID      uint32 `json:"oid"`
}

// Truncated reads the record that TRUNCATE leaves under wal_level = logical (xl_heap_truncate); nil for any other.
func (r *Record) Truncated() ([]Object, error) {
	if r.Rmgr != RmgrHeap || r.Info&heapOpMask != heapTruncate {
		return nil, nil
	}
	d := recordReader{rest: r.Main}
	database, count := d.u32(), d.u32()
	d.u32() // flags, padding
	if uint64(count)*4 > uint64(len(d.rest)) {
		return nil, &CorruptError{r.Start, errShortRecord}
	}
	objects := make([]Object, count)
	for i := range objects {
		objects[i] = Object{database, d.u32()}
	}
	return objects, nil
}
