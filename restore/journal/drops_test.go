package journal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pitr/internal/pg"
)

// TestDropsAreFoundByNameAndNothingElseIsTakenForOne drops, truncates, rewrites and renames tables, some of them of the same name.
func TestDropsAreFoundByNameAndNothingElseIsTakenForOne(t *testing.T) {
	w := newWorld(t)
	w.archive()
	w.query("create table flushed (i int); create schema other; create table orders (i serial primary key, x text); create table other.orders (i int); create table kept (i int primary key)")
	w.query(`create table "Mixed Case" (i int); create table renamed (i int)`)
	w.named("Mixed Case", "postgres")
	begin, err := pg.ParseLSN(w.query("select pg_current_wal_flush_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	w.query("insert into orders (x) select repeat('x', 100) from generate_series(1, 20000)") // crosses segments
	w.query("truncate orders; insert into orders (x) values ('y')")
	w.query("vacuum full orders")
	w.query("vacuum full kept")
	rolledBack := w.xid(strings.Fields(w.query("begin; drop table orders; select pg_current_xact_id(); rollback"))[0])
	first := w.xact("drop table orders")
	w.query("select pg_switch_wal(); create table orders (i int)")
	other := w.xact("savepoint a; drop table other.orders")
	w.archived()
	w.until("the second table of the name is known", func() bool {
		drops, err := Drops(t.Context(), w.repo, Options{Relation: "public.orders", After: begin})
		return err == nil && len(drops) == 1 && w.knows("orders")
	})
	second := w.xact("drop table orders")
	mixed := w.xact(`drop table "Mixed Case"`)
	w.archived()
	found := func(relation string, after pg.LSN, want ...uint32) {
		t.Helper()
		drops, err := Drops(t.Context(), w.repo, Options{Relation: relation, After: after, Parallel: 2})
		if err != nil {
			t.Errorf("%s: %v", relation, err)
			return
		}
		var xids []uint32
		for _, d := range drops {
			xids = append(xids, d.XID)
			if !strings.HasSuffix(d.Relation, relation) || !d.Committed || d.LSN <= after {
				t.Errorf("%s: %+v", relation, d)
			}
		}
		if !slices.Equal(xids, want) {
			t.Errorf("%s: dropped by %v, want %v (rolled back was %d)", relation, xids, want, rolledBack)
		}
	}
	found("public.orders", begin, first, second)
	found("postgres.public.orders", begin, first, second)
	found("orders", begin, first, other, second)
	found("other.orders", begin, other)
	found("public.Mixed Case", begin, mixed)
	found("public.kept", begin)
	drops, err := Drops(t.Context(), w.repo, Options{Relation: "public.orders", After: begin})
	if err != nil || len(drops) != 2 {
		t.Fatalf("%d drops, %v", len(drops), err)
	}
	found("public.orders", drops[0].LSN+1, second)
	if _, err := Drops(t.Context(), w.repo, Options{Relation: "public.order", After: begin}); !errors.Is(err, ErrNoRelation) {
		t.Errorf("a name that is the beginning of another: %v", err)
	}
}

// knows reports whether the newest catalog has the relation in the schema public with a file that the server has now.
func (w *world) knows(relation string) bool {
	keys, err := w.repo.Catalogs(w.t.Context(), 1)
	if err != nil || len(keys) == 0 {
		return false
	}
	catalog, err := w.repo.ReadCatalog(w.t.Context(), keys[len(keys)-1])
	if err != nil {
		return false
	}
	oid := w.query(fmt.Sprintf("select '%s'::regclass::oid", relation))
	for _, db := range catalog.Databases {
		for _, r := range db.Relations {
			if r.Schema == "public" && fmt.Sprint(r.OID) == oid {
				return true
			}
		}
	}
	return false
}
