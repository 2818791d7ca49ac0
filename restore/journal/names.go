package journal

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/wal"
)

const (
	systemSchema = "pg_catalog"
	// firstNormalObject is FirstNormalObjectId of src/include/access/transam.h: what initdb has made is below.
	firstNormalObject = 16384
)

// name is what a relation was called at a position.
type name struct {
	locator      wal.Relation
	oid          uint32
	kind         string // empty: the archive knows no name
	db           string
	schema, name string
}

func (n name) known() bool { return n.kind != "" }

func (n name) object() wal.Object { return wal.Object{Database: n.locator.Database, OID: n.oid} }

// String is database.schema.name, or the locator.
func (n name) String() string {
	if !n.known() {
		return n.locator.String()
	}
	return n.db + "." + n.schema + "." + n.name
}

// is compares with what a person has written.
func (n name) is(text string) bool {
	return n.known() && (text == n.name || text == n.schema+"."+n.name || text == n.String())
}

// system reports whether the relation belongs to Postgres itself.
func (n name) system() bool {
	if !n.known() {
		return n.locator.Number < firstNormalObject
	}
	return n.schema == systemSchema || n.schema == "information_schema"
}

// hidden reports whether people do not want to hear of the relation's rows: catalogues, and TOAST, whose rows belong to another's.
func (n name) hidden() bool { return n.system() || n.kind == "t" || n.schema == "pg_toast" }

// table reports whether losing the relation is losing something.
func (n name) table() bool {
	return n.kind == kindTable || n.kind == kindMatview || n.kind == kindSequence || n.kind == kindPartitioned
}

// names knows what the stored catalogs say.
type names struct {
	major     int // of the server
	databases map[uint32]string
	files     map[wal.Relation][]named
	objects   map[wal.Object][]named
	catalogs  []pg.LSN // in order
}

// named is a name as catalogs have told it from a position on, until the next.
type named struct {
	from pg.LSN
	name name
}

// loadNames reads the catalogs that have something to say about the wanted time: the last before it, those within and the first behind.
func (rd *reader) loadNames(ctx context.Context) error {
	rd.names = &names{databases: map[uint32]string{}, files: map[wal.Relation][]named{}, objects: map[wal.Object][]named{}}
	var keys []repo.CatalogKey
	for tli := range rd.path.Timelines() {
		found, err := rd.repo.Catalogs(ctx, tli)
		if err != nil {
			return err
		}
		for _, key := range found {
			if rd.path.Contains(tli, key.LSN) {
				keys = append(keys, key)
			}
		}
	}
	slices.SortFunc(keys, func(a, b repo.CatalogKey) int { return a.Time.Compare(b.Time) })
	for _, key := range rd.neededCatalogs(keys) {
		catalog, err := rd.repo.ReadCatalog(ctx, key)
		if err != nil {
			return err
		}
		rd.names.add(catalog)
	}
	if rd.opt.Relation != "" && !rd.names.has(rd.opt.Relation) {
		return fmt.Errorf("%w: %q; %d catalogs of that time were looked at; write schema.table, database.schema.table or tablespace/database/file",
			ErrNoRelation, rd.opt.Relation, len(rd.names.catalogs))
	}
	return nil
}

func (rd *reader) neededCatalogs(keys []repo.CatalogKey) []repo.CatalogKey {
	first, last := 0, len(keys)
	for i, key := range keys {
		if !rd.opt.From.IsZero() && key.Time.Before(rd.opt.From) {
			first = i
		}
		if !rd.opt.To.IsZero() && key.Time.After(rd.opt.To) {
			last = i + 1
			break
		}
	}
	return keys[first:last]
}

func (n *names) add(c repo.Catalog) {
	n.catalogs = append(n.catalogs, c.LSN)
	for _, db := range c.Databases {
		n.databases[db.OID] = db.Name
		for _, r := range db.Relations {
			locator := db.Locator(r)
			entry := name{locator: locator, oid: r.OID, kind: r.Kind, db: db.Name, schema: r.Schema, name: r.Name}
			if r.File != 0 {
				addName(n.files, locator, c.LSN, entry)
			}
			addName(n.objects, wal.Object{Database: locator.Database, OID: r.OID}, c.LSN, entry)
		}
	}
}

func addName[K comparable](to map[K][]named, key K, from pg.LSN, entry name) {
	list := to[key]
	if n := len(list); n > 0 && list[n-1].name == entry {
		return
	}
	to[key] = append(list, named{from, entry})
}

// learn notes that a relation has a new file from a position on, unless a catalog tells whose the file is.
func (n *names) learn(of name, file wal.Relation, from pg.LSN) {
	if !of.known() || len(n.files[file]) > 0 {
		return
	}
	of.locator = file
	n.files[file] = []named{{from, of}}
}

// at is the name that held at a position: the last that was told before it, or the first that was told behind.
func at(list []named, lsn pg.LSN) name {
	best := list[0].name
	for _, candidate := range list {
		if candidate.from <= lsn {
			best = candidate.name
		}
	}
	return best
}

func (n *names) file(locator wal.Relation, lsn pg.LSN) name {
	if list := n.files[locator]; len(list) > 0 {
		return at(list, lsn)
	}
	return name{locator: locator}
}

func (n *names) object(object wal.Object, lsn pg.LSN) name {
	if list := n.objects[object]; len(list) > 0 {
		return at(list, lsn)
	}
	return name{locator: wal.Relation{Database: object.Database}, oid: object.OID}
}

// fileAfter is the file of a relation in the first catalog behind a position that tells of it.
func (n *names) fileAfter(object wal.Object, lsn pg.LSN) (wal.Relation, bool) {
	for _, candidate := range n.objects[object] {
		if candidate.from > lsn {
			return candidate.name.locator, true
		}
	}
	return wal.Relation{}, false
}

// has reports whether any relation may be meant.
func (n *names) has(text string) bool {
	var a, b, c uint32
	if _, err := fmt.Sscanf(text, "%d/%d/%d", &a, &b, &c); err == nil {
		return true
	}
	for _, list := range n.objects {
		for _, candidate := range list {
			if candidate.name.is(text) {
				return true
			}
		}
	}
	return false
}

func (n *names) database(oid uint32) string { return n.databases[oid] }

func (n *names) databaseOrOID(oid uint32) string {
	if known := n.databases[oid]; known != "" {
		return known
	}
	return strconv.FormatUint(uint64(oid), 10)
}
