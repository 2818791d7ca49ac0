package journal

import (
	"cmp"
	"maps"
	"slices"

	"pitr/internal/wal"
)

// relkinds of src/include/catalog/pg_class.h.
const (
	kindTable       = "r"
	kindPartitioned = "p"
	kindMatview     = "m"
	kindSequence    = "S"
)

// pgClass is the file of pg_class in a database in which it was never rewritten: RelationRelationId of src/include/catalog/pg_class.h.
const pgClass = 1259

// describe gives names to what a transaction has done.
func (rd *reader) describe(e *wal.Ended) *Transaction {
	t := &Transaction{XID: e.XID, Time: e.Time, LSN: e.Start, Timeline: rd.path.History.TimelineAt(rd.path.Tip, e.Start), Committed: e.Committed, Prepared: e.Prepared, Subxacts: len(e.Subxacts), Bytes: e.Bytes,
		Database: rd.names.database(e.Database), Incomplete: e.Incomplete, Partial: !rd.sure.covers(e.XID)}
	if e.Committed {
		rd.describeFiles(e, t)
	}
	for _, counts := range e.Rows {
		name := rd.names.file(counts.Relation, e.Start)
		r := Relation{Name: name.String(), Locator: counts.Relation.String(), Kind: name.kind, System: name.system(),
			Inserted: counts.Inserted, Updated: counts.Updated, Deleted: counts.Deleted}
		t.Relations = append(t.Relations, r)
		if e.Committed && !name.hidden() && counts.Deleted >= rd.opt.MassRows {
			t.MassDeletes = append(t.MassDeletes, r.Name)
		}
	}
	slices.SortFunc(t.Relations, func(a, b Relation) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Locator, b.Locator)) })
	slices.Sort(t.MassDeletes)
	for _, oid := range e.Databases {
		t.DroppedDatabases = append(t.DroppedDatabases, rd.names.databaseOrOID(oid))
	}
	return t
}

// fate is what has become of a relation whose file a commit removes.
type fate int

const (
	untold fate = iota // an index, a TOAST table, a file that the transaction itself has made
	dropped
	truncated
	rewritten
)

// describeFiles tells what has become of the relations whose files a commit removes, and of those that had none.
func (rd *reader) describeFiles(e *wal.Ended, t *Transaction) {
	found := map[fate]map[string]bool{dropped: {}, truncated: {}, rewritten: {}}
	f := newFiles(rd, e)
	for _, locator := range e.Relations {
		name := rd.names.file(locator, e.Start)
		if fate := f.fate(locator, name); fate != untold {
			found[fate][name.String()] = true
		}
	}
	for _, object := range e.Dropped {
		if name := rd.names.object(object, e.Start); name.table() && !name.system() {
			found[dropped][name.String()] = true
		}
	}
	for _, object := range e.Truncated {
		if name := rd.names.object(object, e.Start); name.known() {
			found[truncated][name.String()] = true
			delete(found[rewritten], name.String())
		}
	}
	t.Dropped, t.Truncated, t.Rewritten = sorted(found[dropped]), sorted(found[truncated]), sorted(found[rewritten])
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// files is what the WAL of a transaction says of the files that it has made and removed.
type files struct {
	rd         *reader
	e          *wal.Ended
	created    map[wal.Relation]bool
	surviving  int // of those it has made: not removed again by itself
	droppedOID map[wal.Object]bool
	newClasses int  // rows inserted into pg_class
	explained  bool // a table that is gone has a name: files without one are taken for those of its indexes and TOAST table
}

func newFiles(rd *reader, e *wal.Ended) *files {
	f := &files{rd: rd, e: e, created: map[wal.Relation]bool{}, droppedOID: map[wal.Object]bool{}}
	for _, locator := range e.Created {
		f.created[locator] = true
	}
	f.surviving = len(f.created)
	for _, locator := range e.Relations {
		if f.created[locator] {
			f.surviving--
		}
	}
	for _, object := range e.Dropped {
		f.droppedOID[object] = true
		f.explained = f.explained || rd.names.object(object, e.Start).table()
	}
	for _, counts := range e.Rows {
		if name := rd.names.file(counts.Relation, e.Start); counts.Relation.Number == pgClass || name.schema == systemSchema && name.name == "pg_class" {
			f.newClasses += counts.Inserted
		}
	}
	return f
}

// fate decides what has become of the relation that a removed file belonged to. DROP ends the relation's statistics, and its commit record says
// so since 15; TRUNCATE and rewrites make a new file for it instead. A rewrite (make_new_heap of src/backend/commands/cluster.c) makes a
// transient relation of its own, whose first file becomes the relation's; TRUNCATE (RelationSetNewRelfilenumber) makes none.
func (f *files) fate(locator wal.Relation, name name) fate {
	if f.created[locator] || name.known() && (name.hidden() || !name.table()) {
		return untold
	}
	if f.isDropped(locator, name) {
		if !name.known() && f.explained {
			return untold
		}
		return dropped
	}
	if name.kind == kindSequence {
		return untold // TRUNCATE … RESTART IDENTITY and ALTER SEQUENCE
	}
	if !f.sameTablespace(locator) {
		return rewritten // moved
	}
	if next, ok := f.rd.names.fileAfter(name.object(), f.e.Start); ok && f.created[next] {
		if f.fromTransient(next) {
			return rewritten
		}
		return truncated
	}
	for next := range f.created {
		if f.fromTransient(next) {
			return rewritten
		}
	}
	return truncated
}

func (f *files) isDropped(locator wal.Relation, name name) bool {
	if f.surviving == 0 {
		return true
	}
	if len(f.droppedOID) > 0 || f.rd.names.major >= 15 {
		return f.droppedOID[name.object()] || !name.known() && f.droppedOID[wal.Object{Database: locator.Database, OID: locator.Number}]
	}
	if next, later := f.rd.names.fileAfter(name.object(), f.e.Start); later {
		return next.Number == 0
	}
	return f.newClasses >= f.surviving // all that it has made are new relations
}

// fromTransient reports whether a file was made for a relation that the transaction has made and dropped again.
func (f *files) fromTransient(file wal.Relation) bool {
	if f.droppedOID[wal.Object{Database: file.Database, OID: file.Number}] {
		return true
	}
	return f.rd.names.major < 15 && f.newClasses > 0
}

func (f *files) sameTablespace(locator wal.Relation) bool {
	for next := range f.created {
		if next.Tablespace == locator.Tablespace {
			return true
		}
	}
	return false
}

// learn gives the names of files that were replaced to those that replace them, so that they have one before the next catalog is read. What
// cannot be told for certain is left to that catalog.
func (f *files) learn() {
	var replaced []name // in the order of the commit record
	for _, locator := range f.e.Relations {
		name := f.rd.names.file(locator, f.e.Start)
		if f.created[locator] || f.droppedOID[name.object()] {
			continue
		}
		replaced = append(replaced, name)
	}
	var transient, fresh []wal.Relation
	for _, locator := range f.e.Created {
		switch {
		case f.fromTransient(locator):
			transient = append(transient, locator)
		case !slices.Contains(f.e.Relations, locator):
			fresh = append(fresh, locator)
		}
	}
	if len(transient) == 0 && len(fresh) == len(replaced) {
		// Files are removed in the reverse of the order in which that was planned: PendingRelDelete of src/backend/catalog/storage.c.
		for i, name := range replaced {
			f.rd.names.learn(name, fresh[len(fresh)-1-i], f.e.Start)
		}
		return
	}
	tables := slices.DeleteFunc(replaced, func(n name) bool { return n.kind != kindTable && n.kind != kindMatview || n.hidden() })
	if len(tables) == 1 && len(transient) > 0 {
		f.rd.names.learn(tables[0], transient[0], f.e.Start) // make_new_heap makes the table's file first
	}
}

// touches reports whether a transaction has to do with the wanted relation.
func (rd *reader) touches(e *wal.Ended, t *Transaction) bool {
	for _, counts := range e.Rows {
		if counts.Relation.String() == rd.opt.Relation || rd.names.file(counts.Relation, e.Start).is(rd.opt.Relation) {
			return true
		}
	}
	for _, list := range [][]wal.Relation{e.Relations, e.Created} {
		for _, locator := range list {
			if locator.String() == rd.opt.Relation || rd.names.file(locator, e.Start).is(rd.opt.Relation) {
				return true
			}
		}
	}
	for _, object := range append(slices.Clone(e.Dropped), e.Truncated...) {
		if rd.names.object(object, e.Start).is(rd.opt.Relation) {
			return true
		}
	}
	return false
}
