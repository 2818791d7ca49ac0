package wal_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"pitr/internal/pg"
	"pitr/internal/wal"
)

// heapRecord inserts, updates or deletes a row of a relation; flags are those of xl_heap_delete.
func heapRecord(at pg.LSN, xid uint32, info, flags byte, file uint32) *wal.Record {
	return &wal.Record{Start: at, End: at + 8, XID: xid, Rmgr: wal.RmgrHeap, Info: info, Length: 100, Version: 18, Main: []byte{0, 0, 0, 0, 0, 0, 0, flags},
		Blocks: []wal.Block{{Relation: wal.Relation{Tablespace: 1663, Database: 5, Number: file}}}}
}

// endRecord commits (0x00) or aborts (0x20) a transaction, with the subtransactions that belong to it.
func endRecord(at pg.LSN, xid uint32, info byte, subxacts ...uint32) *wal.Record {
	main := make([]byte, 8)
	if len(subxacts) > 0 {
		info |= 0x80
		main = binary.LittleEndian.AppendUint32(main, 2) // XACT_XINFO_HAS_SUBXACTS
		main = binary.LittleEndian.AppendUint32(main, uint32(len(subxacts)))
		for _, sub := range subxacts {
			main = binary.LittleEndian.AppendUint32(main, sub)
		}
	}
	return &wal.Record{Start: at, End: at + 8, XID: xid, Rmgr: wal.RmgrXact, Info: info, Length: 34, Version: 18, Main: main}
}

func runningRecord(next, oldest uint32) *wal.Record {
	main := make([]byte, 24)
	binary.LittleEndian.PutUint32(main[12:], next)
	binary.LittleEndian.PutUint32(main[16:], oldest)
	return &wal.Record{Rmgr: wal.RmgrStandby, Info: 0x10, Main: main}
}

func add(t *testing.T, l *wal.Ledger, r *wal.Record) *wal.Ended {
	t.Helper()
	ended, err := l.Add(r)
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func TestLedgerCountsWhatStays(t *testing.T) {
	var l wal.Ledger
	const insert, remove, update, hot = 0x00, 0x10, 0x20, 0x40
	add(t, &l, heapRecord(8, 100, insert|0x80, 0, 1)) // on a new page
	add(t, &l, heapRecord(16, 100, insert, 0, 1))
	add(t, &l, heapRecord(24, 100, remove, 1<<3, 1)) // the insertion is taken back
	add(t, &l, heapRecord(32, 100, remove, 1<<4, 2)) // to another partition
	add(t, &l, heapRecord(40, 100, remove, 0, 1))
	add(t, &l, heapRecord(48, 101, update, 0, 1)) // a subtransaction that stays
	add(t, &l, heapRecord(56, 102, hot, 0, 1))    // one that is rolled back
	add(t, &l, heapRecord(64, 7, insert, 0, 1))   // somebody else
	add(t, &l, heapRecord(72, 0, 0x70, 0, 1))     // in place, by no transaction
	add(t, &l, heapRecord(80, 100, 0x60, 0, 1))   // a lock
	aborted := add(t, &l, endRecord(88, 102, 0x20))
	if aborted == nil || aborted.Committed || aborted.XID != 102 || len(aborted.Rows) != 1 || aborted.Rows[0].Updated != 1 {
		t.Errorf("rolled back to the savepoint: %+v", aborted)
	}
	e := add(t, &l, endRecord(96, 100, 0, 101))
	want := []wal.RelationRows{
		{Relation: wal.Relation{Tablespace: 1663, Database: 5, Number: 1}, RowCounts: wal.RowCounts{Inserted: 1, Updated: 1, Deleted: 1}},
		{Relation: wal.Relation{Tablespace: 1663, Database: 5, Number: 2}, RowCounts: wal.RowCounts{Updated: 1}}}
	if e == nil || !slices.Equal(e.Rows, want) || e.Began != 8 || e.Bytes != 7*100+34 || e.Records != 8 || e.Incomplete {
		t.Errorf("%+v, want rows %+v", e, want)
	}
	if l.Open() != 1 {
		t.Errorf("%d transactions are open, one is", l.Open())
	}
}

func TestLedgerForgetsWhatACrashHasLeftOpen(t *testing.T) {
	var l wal.Ledger
	for _, xid := range []uint32{4294967290, 3, 10, 11} { // ids wrap around behind 4294967295
		add(t, &l, heapRecord(8, xid, 0, 0, 1))
	}
	add(t, &l, runningRecord(12, 11))
	if l.Open() != 1 {
		t.Errorf("%d are open, 11 alone runs", l.Open())
	}
	if e := add(t, &l, endRecord(16, 11, 0)); len(e.Rows) != 1 || e.Rows[0].Inserted != 1 {
		t.Errorf("%+v", e)
	}
}

func TestLedgerStaysWithinItsBoundsAndSaysSo(t *testing.T) {
	var l wal.Ledger
	for i := range uint32(5000) {
		add(t, &l, heapRecord(8, 5, 0, 0, i+1))
	}
	if e := add(t, &l, endRecord(16, 5, 0)); !e.Incomplete || len(e.Rows) != 4096 {
		t.Errorf("%d relations of 5000, incomplete: %v", len(e.Rows), e.Incomplete)
	}
	for i := range uint32(200_000) { // as many savepoints
		add(t, &l, heapRecord(8, i+10, 0, 0, 1))
	}
	if l.Open() > 1<<17 {
		t.Errorf("%d are followed", l.Open())
	}
	if e := add(t, &l, endRecord(16, 200_009, 0)); !e.Incomplete || len(e.Rows) != 0 {
		t.Errorf("one too many: %+v", e)
	}
}

func TestHeapRecordsThatAreTooShortAreErrors(t *testing.T) {
	var l wal.Ledger
	short := heapRecord(8, 5, 0x10, 0, 1)
	short.Main = short.Main[:5]
	if _, err := l.Add(short); err == nil {
		t.Error("a deletion without its flags")
	}
	blind := heapRecord(8, 5, 0x00, 0, 1)
	blind.Blocks = nil
	if _, err := l.Add(blind); err == nil {
		t.Error("an insertion into no block")
	}
	hostile := endRecord(8, 5, 0x80)
	hostile.Main = binary.LittleEndian.AppendUint32(append(hostile.Main, 4, 0, 0, 0), 1<<31) // so many relations
	if _, err := l.Add(hostile); err == nil {
		t.Error("a commit with more relations than bytes")
	}
}
