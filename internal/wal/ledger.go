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
	open  map[uint32]*work
	ended Ended   // the last one
	spare []*work // to be used again, at most spareMax
}

// spareMax is about as many transactions as are mostly open at once.
const spareMax = 64

// work is what an open transaction or subtransaction has done so far.
type work struct {
	began      pg.LSN
	bytes      uint64
	records    int
	rows       []RelationRows
	last       int              // index in rows of the relation that changed last
	index      map[Relation]int // into rows; nil while there are few
	created    []Relation
	truncated  []Object
	databases  []uint32
	incomplete bool
}

// fewRows is how many relations are found faster by looking at each.
const fewRows = 8

// RowCounts counts the rows of one relation by what has happened to them.
type RowCounts struct {
	Inserted, Updated, Deleted int
}

// RelationRows is what has happened to the rows of one relation.
type RelationRows struct {
	Relation Relation
	RowCounts
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
	Rows       []RelationRows // in the order of their first change
	Created    []Relation     // whose files it has made
	Truncated  []Object       // by TRUNCATE; known under wal_level = logical only
	Databases  []uint32       // dropped
	Incomplete bool           // a limit was reached: counts may be too low
}

// Add takes the next record and returns the transaction that it ends, valid until the next call; nil when it ends none. The record must have
// been decoded.
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
		w = l.newWork()
		w.began = r.Start
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
	if len(w.rows) > 0 && w.rows[w.last].Relation == relation {
		return &w.rows[w.last].RowCounts
	}
	i := w.find(relation)
	if i < 0 {
		if len(w.rows) >= openRelationsMax {
			w.incomplete = true
			return nil
		}
		i = len(w.rows)
		w.rows = append(w.rows, RelationRows{Relation: relation})
		w.note(i)
	}
	w.last = i
	return &w.rows[i].RowCounts
}

func (w *work) find(relation Relation) int {
	if w.index != nil {
		if i, found := w.index[relation]; found {
			return i
		}
		return -1
	}
	for i := range w.rows {
		if w.rows[i].Relation == relation {
			return i
		}
	}
	return -1
}

// note enters a new row into the index, once there are too many to look at each.
func (w *work) note(i int) {
	if w.index == nil && i >= fewRows {
		w.index = map[Relation]int{}
		for j := range w.rows {
			w.index[w.rows[j].Relation] = j
		}
	}
	if w.index != nil {
		w.index[w.rows[i].Relation] = i
	}
}

// end gathers what a transaction and its subtransactions have done, and follows them no longer.
func (l *Ledger) end(r *Record, xact Xact) *Ended {
	full := len(l.open) >= openXactsMax
	all := l.remove(xact.XID)
	if all == nil {
		all = l.newWork()
		all.began, all.incomplete = r.Start, full
	}
	if r.XID == 0 {
		all.bytes, all.records = all.bytes+uint64(r.Length), all.records+1 // COMMIT PREPARED, by a transaction that is none
	}
	for _, xid := range xact.Subxacts {
		l.merge(all, xid, full)
	}
	if r.XID != 0 && r.XID != xact.XID {
		l.merge(all, r.XID, full)
	}
	l.ended = Ended{Xact: xact, Start: r.Start, End: r.End, Began: all.began, Bytes: all.bytes, Records: all.records, Rows: all.rows, Created: all.created,
		Truncated: all.truncated, Databases: all.databases, Incomplete: all.incomplete}
	l.recycle(all) // what it holds is good until it is used again
	return &l.ended
}

func (l *Ledger) remove(xid uint32) *work {
	w := l.open[xid]
	delete(l.open, xid)
	return w
}

// merge adds what a subtransaction has done.
func (l *Ledger) merge(all *work, xid uint32, full bool) {
	w := l.remove(xid)
	if w == nil {
		all.incomplete = all.incomplete || full
		return
	}
	all.began = min(all.began, w.began)
	all.bytes += w.bytes
	all.records += w.records
	for _, rows := range w.rows {
		if sum := all.counts(rows.Relation); sum != nil {
			sum.Inserted += rows.Inserted
			sum.Updated += rows.Updated
			sum.Deleted += rows.Deleted
		}
	}
	all.created = append(all.created, w.created...)
	all.truncated = append(all.truncated, w.truncated...)
	all.databases = append(all.databases, w.databases...)
	all.incomplete = all.incomplete || w.incomplete
	l.recycle(w)
}

// newWork takes one that was used before. Of lists that their receiver may keep only that of rows is used again.
func (l *Ledger) newWork() *work {
	n := len(l.spare)
	if n == 0 {
		return &work{}
	}
	w := l.spare[n-1]
	l.spare = l.spare[:n-1]
	*w = work{rows: w.rows[:0]}
	return w
}

func (l *Ledger) recycle(w *work) {
	if len(l.spare) < spareMax && cap(w.rows) <= 4*fewRows {
		l.spare = append(l.spare, w)
	}
}
