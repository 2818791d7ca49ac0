package archiver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// catalogs reads all that are stored of timeline 1.
func (b *bench) catalogs() []repo.Catalog {
	b.t.Helper()
	keys, err := b.repo.Catalogs(b.t.Context(), 1)
	if err != nil {
		b.t.Fatal(err)
	}
	var list []repo.Catalog
	for _, key := range keys {
		c, err := b.repo.ReadCatalog(b.t.Context(), key)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// has reports whether a catalog knows a relation as database.schema.name.
func has(c repo.Catalog, name string) bool {
	for _, db := range c.Databases {
		for _, r := range db.Relations {
			if db.Name+"."+r.Schema+"."+r.Name == name {
				return true
			}
		}
	}
	return false
}

func TestNamesAreStoredSoonAfterDDLInEveryDatabaseAndOnlyWhenTheyChange(t *testing.T) {
	b := newBench(t, 1, "autovacuum=off")
	b.query("create database shop")
	opt := b.options()
	opt.CatalogInterval, opt.CatalogRelationsMax = time.Hour, 10_000
	r := b.run(opt)
	until(t, "the first names are stored", func() bool { return r.Stats().Catalogs == 1 })
	b.query("create table orders (i int primary key); insert into orders values (1)")
	until(t, "the table has a name", func() bool { return has(last(b.catalogs()), "postgres.public.orders") })
	// What changes no name is looked at, being DDL, and not stored.
	b.query("create temporary table passing (i int)")
	b.query("alter table orders rename to purchases")
	until(t, "the new name is stored", func() bool { return has(last(b.catalogs()), "postgres.public.purchases") })
	if n := len(b.catalogs()); n != 3 {
		t.Errorf("%d catalogs of three sets of names", n)
	}
	for _, want := range []string{"shop.pg_catalog.pg_class", "postgres.pg_catalog.pg_database", "postgres.public.orders_pkey"} {
		if !has(last(b.catalogs()), want) {
			t.Errorf("%s has no name", want)
		}
	}
	if has(last(b.catalogs()), "template1.pg_catalog.pg_class") {
		t.Error("a template was connected to, which CREATE DATABASE needs for itself")
	}
	if st := r.Stats(); st.CatalogFailures != 0 {
		t.Errorf("%d failures", st.CatalogFailures)
	}
}

func last(list []repo.Catalog) repo.Catalog {
	if len(list) == 0 {
		return repo.Catalog{}
	}
	return list[len(list)-1]
}

func TestNamesThatAreTooManyAreLeftOutAndArchivingGoesOn(t *testing.T) {
	b := newBench(t, 1)
	opt := b.options()
	opt.CatalogInterval, opt.CatalogRelationsMax = time.Hour, 10
	r := b.run(opt)
	until(t, "a failure is counted", func() bool { return r.Stats().CatalogFailures > 0 })
	if log := b.log.String(); !strings.Contains(log, "the cluster has more relations than archive.catalog_relations_max (10)") {
		t.Errorf("the log says nothing of it:\n%s", log)
	}
	for _, db := range last(b.catalogs()).Databases {
		if db.Relations != nil {
			t.Errorf("database %s has %d names", db.Name, len(db.Relations))
		}
	}
	r.archived(b.written())
}

func TestCatalogThatNamesWhatIsKeptStays(t *testing.T) {
	_, r := newStore(t)
	at := time.Unix(1_790_000_000, 0).UTC()
	for _, lsn := range []pg.LSN{10, 20, 30} {
		if err := r.PutCatalog(t.Context(), 1, repo.Catalog{LSN: lsn, Time: at}); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		before  pg.LSN
		removed int
		kept    []pg.LSN
	}{{9, 0, []pg.LSN{10, 20, 30}}, {25, 1, []pg.LSN{20, 30}}, {30, 1, []pg.LSN{30}}, {1000, 0, []pg.LSN{30}}} {
		var done removal
		err := expireCatalogs(t.Context(), r, 1, step.before, &done)
		n := done.Removed
		keys, listErr := r.Catalogs(t.Context(), 1)
		var kept []pg.LSN
		for _, key := range keys {
			kept = append(kept, key.LSN)
		}
		if err != nil || listErr != nil || n != step.removed || !slices.Equal(kept, step.kept) {
			t.Errorf("before %d: removed %d (%v), kept %v (%v), want %v", step.before, n, err, kept, listErr, step.kept)
		}
	}
}
