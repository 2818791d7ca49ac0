package wal

import "pitr/internal/pg"

// Limits of a Ledger. What they cut off is told by Ended.Incomplete.
const (
	// openXactsMax bounds the transactions and subtransactions that are followed at once: far above what max_connections allows, unless one
	// makes that many savepoints.
	openXactsMax = 1 << 17
	// openRelationsMax bounds the relations that are told apart in one of them.
	openRelationsMax = 1 << 12
)

// Ledger follows transactions from their first record to their end. It is pure; its memory is that of the transactions that are open.
type Ledger struct {
	open map[uint32]*work
}

// work is what an open transaction or subtransaction has done so far.
type work struct {
	began      pg.LSN
	bytes      uint64
	records    int
	rows       map[Relation]*RowCounts
	last       Relation // of lastRows
	lastRows   *RowCounts
	created    []Relation
	truncated  []Object
	databases  []uint32
	incomplete bool
}

// RowCounts counts the rows of one relation by what has happened to them.
type RowCounts struct {
	Inserted, Updated, Deleted int
}

func (c *RowCounts) add(kind RowKind, n int) {
	switch kind {
	case Inserted:
		c.Inserted += n
	case Updated:
		c.Updated += n
	case Deleted:
		c.Deleted += n
	}
}

// Ended is a transaction with all that it has done, its subtransactions that were not rolled back included.
type Ended struct {
	Xact
	Start, End pg.LSN // of the commit or abort record
	Began      pg.LSN // start of its first record that was seen
	Bytes      uint64 // of its records
	Records    int
	Rows       map[Relation]RowCounts
	Created    []Relation // whose files it has made
	Truncated  []Object   // by TRUNCATE; known under wal_level = logical only
	Databases  []uint32   // dropped
	Incomplete bool       // a limit was reached: counts may be too low
}

// Add takes the next record and returns the transaction that it ends; nil when it ends none. The record must have been decoded.
func (l *Ledger) Add(r *Record) (*Ended, error) {
	if running, ok := r.Running(); ok {
		l.forget(running)
		return nil, nil
	}
	var w *work
	if r.XID != 0 {
		if w = l.follow(r); w != nil {
			if err := w.add(r); err != nil {
				return nil, err
			}
		}
	}
	if r.Rmgr != RmgrXact {
		return nil, nil
	}
	xact, isEnd, err := r.Xact()
	if err != nil || !isEnd {
		return nil, err
	}
	return l.end(r, xact), nil
}

// Open is the number of transactions and subtransactions that are followed at present.
func (l *Ledger) Open() int { return len(l.open) }

// forget drops what a crash has left open: whoever began before the oldest that runs has ended.
func (l *Ledger) forget(running Running) {
	for xid := range l.open {
		if precedes(xid, running.Oldest) {
			delete(l.open, xid)
		}
	}
}

// precedes is TransactionIdPrecedes of src/backend/access/transam/transam.c for normal ids.
func precedes(a, b uint32) bool { return int32(a-b) < 0 }

func (l *Ledger) follow(r *Record) *work {
	w := l.open[r.XID]
	if w == nil && len(l.open) < openXactsMax {
		if l.open == nil {
			l.open = map[uint32]*work{}
		}
		w = &work{began: r.Start}
		l.open[r.XID] = w
	}
	return w
}

func (w *work) add(r *Record) error {
	w.bytes += uint64(r.Length)
	w.records++
	switch r.Rmgr {
	case RmgrHeap, RmgrHeap2:
		return w.addRows(r)
	case RmgrStorage:
		created, ok, err := r.CreatedFile()
		if err != nil {
			return err
		}
		if ok && len(w.created) < openRelationsMax {
			w.created = append(w.created, created)
		} else if ok {
			w.incomplete = true
		}
	case RmgrDatabase:
		if oid, ok := r.DroppedDatabase(); ok && len(w.databases) < openRelationsMax {
			w.databases = append(w.databases, oid)
		}
	}
	return nil
}

func (w *work) addRows(r *Record) error {
	rows, ok, err := r.Rows()
	if err != nil {
		return err
	}
	if ok {
		if counts := w.counts(rows.Relation); counts != nil {
			counts.add(rows.Kind, rows.Count)
		}
		return nil
	}
	truncated, err := r.Truncated()
	if len(w.truncated)+len(truncated) <= openRelationsMax {
		w.truncated = append(w.truncated, truncated...)
	}
	return err
}

func (w *work) counts(relation Relation) *RowCounts {
	if w.lastRows != nil && w.last == relation {
		return w.lastRows
	}
	counts := w.rows[relation]
	if counts == nil {
		if len(w.rows) >= openRelationsMax {
			w.incomplete = true
			return nil
		}
		if w.rows == nil {
			w.rows = map[Relation]*RowCounts{}
		}
		counts = &RowCounts{}
		w.rows[relation] = counts
	}
	w.last, w.lastRows = relation, counts
	return counts
}

// end gathers what a transaction and its subtransactions have done, and follows them no longer.
func (l *Ledger) end(r *Record, xact Xact) *Ended {
	ended := &Ended{Xact: xact, Start: r.Start, End: r.End, Began: r.Start, Rows: map[Relation]RowCounts{}}
	if r.XID == 0 {
		ended.Bytes, ended.Records = uint64(r.Length), 1 // COMMIT PREPARED, by a transaction that is none
	}
	ended.take(l, xact.XID)
	for _, xid := range xact.Subxacts {
		ended.take(l, xid)
	}
	if r.XID != xact.XID {
		ended.take(l, r.XID)
	}
	return ended
}

func (e *Ended) take(l *Ledger, xid uint32) {
	w := l.open[xid]
	if w == nil {
		e.Incomplete = e.Incomplete || len(l.open) >= openXactsMax
		return
	}
	delete(l.open, xid)
	e.Began = min(e.Began, w.began)
	e.Bytes += w.bytes
	e.Records += w.records
	for relation, counts := range w.rows {
		sum := e.Rows[relation]
		sum.Inserted += counts.Inserted
		sum.Updated += counts.Updated
		sum.Deleted += counts.Deleted
		e.Rows[relation] = sum
	}
	e.Created = append(e.Created, w.created...)
	e.Truncated = append(e.Truncated, w.truncated...)
	e.Databases = append(e.Databases, w.databases...)
	e.Incomplete = e.Incomplete || w.incomplete
}
