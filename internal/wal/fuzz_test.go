package wal

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// rawRecord is a record of a kind with the bytes that follow its header.
func rawRecord(rmgr, info uint8, version Version, xid uint32, body []byte) *Record {
	raw := make([]byte, recordHeaderSize, recordHeaderSize+len(body))
	binary.LittleEndian.PutUint32(raw, uint32(recordHeaderSize+len(body)))
	binary.LittleEndian.PutUint32(raw[4:], xid)
	raw[16], raw[17] = info, rmgr
	r := &Record{}
	r.reset(8, 16, append(raw, body...), version)
	return r
}

// mainData wraps the main data of a record into its header.
func mainData(main []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{idDataLong}, uint32(len(main))), main...)
}

// heapBlock is the header of block 0, with neither image nor data.
var heapBlock = []byte{0, 0, 0, 0, 0x7F, 6, 0, 0, 5, 0, 0, 0, 1, 0x40, 0, 0, 9, 0, 0, 0}

func words(list ...uint32) []byte {
	var b []byte
	for _, word := range list {
		b = binary.LittleEndian.AppendUint32(b, word)
	}
	return b
}

// addDetails seeds a target with one of each kind of record that is looked into, and with counts that lie.
func addDetails(add func(rmgr, info uint8, body []byte)) {
	row := func(main ...byte) []byte {
		return append(append(bytes.Clone(heapBlock), idDataShort, byte(len(main))), main...)
	}
	add(uint8(RmgrHeap), heapInsert, row(1, 0, 0))
	add(uint8(RmgrHeap), heapDelete, row(1, 0, 0, 0, 1, 0, 0, deleteIsSuper))
	add(uint8(RmgrHeap), heapDelete, row(1, 0, 0, 0, 1, 0, 0, deleteIsPartitionMove))
	add(uint8(RmgrHeap), heapHotUpdate, row(1, 0, 0, 0, 1, 0, 0, 0))
	add(uint8(RmgrHeap2), heap2MultiInsert, row(0, 0, 0xFF, 0xFF))
	add(uint8(RmgrHeap), heapInsert, mainData([]byte{1, 0, 0})) // no block
	add(uint8(RmgrHeap), heapTruncate, mainData(words(5, 2, 0, 16384, 16385)))
	add(uint8(RmgrHeap), heapTruncate, mainData(words(5, 1<<30, 0, 16384)))
	for _, info := range []uint8{xactCommit, xactAbort, xactCommitPrepared, xactAbortPrepared} {
		add(uint8(RmgrXact), info, mainData(words(1, 2)))
		add(uint8(RmgrXact), info|xactHasInfo, mainData(words(1, 2, xinfoHasDatabase|xinfoHasSubxacts|xinfoHasTwoPhase, 5, 1663, 2, 101, 102, 100)))
		add(uint8(RmgrXact), info|xactHasInfo, mainData(words(1, 2, xinfoHasRelations|xinfoHasDroppedStats, 1, 1663, 5, 16384, 1, statsOfRelation, 5, 16384, 0)))
		add(uint8(RmgrXact), info|xactHasInfo, mainData(words(1, 2, xinfoHasInvals, 2, 0xFE, 5, 16384, 0, 0xFE, 5, 16384, 0)))
		for _, list := range []uint32{xinfoHasSubxacts, xinfoHasRelations, xinfoHasDroppedStats, xinfoHasInvals} {
			add(uint8(RmgrXact), info|xactHasInfo, mainData(words(1, 2, list, 0xFFFFFFFF, 1, 2, 3, 4))) // more than there is
		}
	}
	add(uint8(RmgrXLOG), xlogParameterChange, mainData(append(words(100, 8, 10, 0, 64, 1), 0, 1)))
	add(uint8(RmgrXLOG), xlogParameterChange, mainData(append(words(0xFFFFFFFF, 8, 10, 0, 64, 0xFFFFFFFF), 0, 1))) // a level that is none
	add(uint8(RmgrXLOG), xlogRestorePoint, mainData(append(words(1, 2), make([]byte, restorePointNameSize)...)))
	add(uint8(RmgrStorage), smgrCreate, mainData(words(1663, 5, 16384, 0)))
	add(uint8(RmgrStorage), smgrTruncate, mainData(words(7, 1663, 5, 16384, 7)))
	add(uint8(RmgrDatabase), dbaseDrop, mainData(words(5, 0xFFFFFFFF, 1663)))
	add(uint8(RmgrDatabase), dbaseDrop14, mainData(words(5, 1, 1663)))
	add(uint8(RmgrStandby), standbyRunningXacts, mainData(words(0, 0, 0, 100, 99, 98)))
}

// FuzzRecord gives every decoder of what a record says hostile bytes. Whatever they make must fit the bytes that they were given.
func FuzzRecord(f *testing.F) {
	addDetails(func(rmgr, info uint8, body []byte) {
		for _, version := range []uint8{13, 14, 15, 18} {
			f.Add(rmgr, info, version, body)
		}
	})
	f.Add(uint8(RmgrHeap), uint8(0), uint8(18), []byte{0, blockHasImage, 0, 0, 0xFF, 0xFF, 0, 0, 0xFF}) // an image that is not there
	f.Add(uint8(RmgrHeap), uint8(0), uint8(18), []byte{idDataLong, 0xFF, 0xFF, 0xFF, 0xFF})             // and main data
	f.Fuzz(func(t *testing.T, rmgr, info, version uint8, body []byte) {
		r := rawRecord(rmgr, info, Version(version), 100, body)
		if r.Decode() != nil {
			return
		}
		held := len(r.Main) + blockHeaderMin*len(r.Blocks)
		for _, block := range r.Blocks {
			held += len(block.Data) + block.imageLength
		}
		if held > len(body) {
			t.Fatalf("%d bytes of blocks and data in a record of %d", held, len(body))
		}
		lookInto(t, r)
	})
}

// blockHeaderMin is the size of the smallest block header: SizeOfXLogRecordBlockHeader and a block number, of src/include/access/xlogrecord.h.
const blockHeaderMin = 8

func lookInto(t *testing.T, r *Record) {
	made := func(what string, size int) {
		if size > len(r.Main) {
			t.Fatalf("%s take %d bytes, of %d", what, size, len(r.Main))
		}
	}
	if x, ok, err := r.Xact(); ok && err == nil {
		made("lists of a transaction", 4*cap(x.Subxacts)+relationSize*cap(x.Relations)+12*len(x.Dropped)+invalidationSize*len(x.Relcache))
	}
	if rows, ok, err := r.Rows(); ok && err == nil && (rows.Count < -1 || rows.Count > 1<<16) {
		t.Fatalf("%+v in one record", rows)
	}
	if objects, err := r.Truncated(); err == nil {
		made("truncated relations", 4*cap(objects))
	}
	cuts := 0
	if err := r.Cuts(func(Cut) { cuts++ }); err == nil && r.Rmgr != RmgrXact {
		made("cuts", 4*max(0, cuts-2))
	}
	if p, ok, err := r.Parameters(); ok && err == nil {
		made("parameters", 26)
		if p.MaxConnections < 0 || p.MaxLocksPerTransaction < 0 {
			t.Fatalf("%+v", p)
		}
	}
	if point, ok, err := r.RestorePoint(); ok && err == nil {
		made("a name", len(point.Name))
	}
	_, _, _ = r.CreatedFile()
	_, _ = r.DroppedDatabase()
	_, _ = r.Running()
}

// FuzzLedger feeds a ledger with records of hostile content in any order. Each is a length, a resource manager, an info byte, a transaction and a body.
func FuzzLedger(f *testing.F) {
	var all []byte
	addDetails(func(rmgr, info uint8, body []byte) {
		one := append([]byte{byte(len(body)), rmgr, info, 100}, body...)
		f.Add(append(bytes.Clone(one), one...))
		all = append(all, one...)
	})
	f.Add(all)
	f.Fuzz(func(t *testing.T, content []byte) {
		var l Ledger
		fed, rows := 0, 0
		for len(content) >= 4 {
			size, rmgr, info, xid := int(content[0]), content[1], content[2], uint32(content[3])
			content = content[4:]
			size = min(size, len(content))
			r := rawRecord(rmgr, info, 18, xid, content[:size])
			content = content[size:]
			if r.Decode() != nil {
				continue
			}
			fed++
			rows += 1 << 16
			ended, err := l.Add(r)
			if err != nil {
				return // as its users do
			}
			checkLedger(t, &l, ended, fed, rows)
		}
	})
}

// checkLedger holds what a ledger says against how many records it was fed with.
func checkLedger(t *testing.T, l *Ledger, ended *Ended, fed, rows int) {
	if l.Open() > fed || len(l.spare) > spareMax {
		t.Fatalf("%d transactions are open and %d spare after %d records", l.Open(), len(l.spare), fed)
	}
	if ended == nil {
		return
	}
	if ended.Records < 1 || ended.Records > fed || len(ended.Rows) > fed || len(ended.Created) > fed || len(ended.Databases) > fed || ended.Bytes == 0 {
		t.Fatalf("after %d records: %+v", fed, ended)
	}
	seen := map[Relation]bool{}
	for _, counts := range ended.Rows {
		if seen[counts.Relation] {
			t.Fatalf("%v is counted twice: %+v", counts.Relation, ended.Rows)
		}
		seen[counts.Relation] = true
		if counts.Inserted < -fed || counts.Inserted > rows || counts.Updated < 0 || counts.Updated > fed || counts.Deleted < 0 || counts.Deleted > fed {
			t.Fatalf("after %d records: %+v", fed, counts)
		}
	}
}
