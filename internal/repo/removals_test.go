package repo

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/store"
	"pitr/internal/wal"
)

// TestIndexTellsRemovalsSettingsAndIDs holds what an index says against what was done.
func TestIndexTellsRemovalsSettingsAndIDs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	install := postmastertest.Find(t)
	server := postmastertest.Start(t, install, postmastertest.Options{SegmentSizeMB: 1, Settings: []string{"wal_keep_size=1GB", "wal_level=logical", "autovacuum=off"}})
	query := func(sql string) string {
		t.Helper()
		out, err := server.Query(ctx, "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	query("create table a (i int); create table b (i int)")
	query("create database other")
	oids := strings.Fields(query("select 'a'::regclass::oid union all select 'b'::regclass::oid union all select oid from pg_database where datname = 'other'"))
	xids := []string{
		lastWord(query("begin; truncate b; select pg_current_xact_id(); commit")),
		lastWord(query("begin; drop table a; select pg_current_xact_id(); commit")),
	}
	query("begin; drop table b; rollback")
	query("drop database other")
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	var removals []Removal
	parameters := 0
	var ids *XIDs
	for _, index := range indexesOf(t, server.Dir) {
		removals = append(removals, index.Removals...)
		parameters += len(index.Parameters)
		for _, p := range index.Parameters {
			if p.WALLevel != "logical" || p.MaxConnections != 100 || p.At == 0 {
				t.Errorf("settings %+v", p)
			}
		}
		if index.Detail != indexDetail || len(index.Limits) > 0 || len(index.Extents) == 0 {
			t.Errorf("%s: detail %d, limits %v, %d forks", index.Segment, index.Detail, index.Limits, len(index.Extents))
		}
		ids = index.XIDs
	}
	if parameters == 0 {
		t.Error("initdb leaves wal_level = replica, the server was started with logical, and no index tells")
	}
	if len(removals) < 3 {
		t.Fatalf("removals %+v", removals)
	}
	removals = removals[len(removals)-3:]
	truncated, gone, database := removals[0], removals[1], removals[2]
	number := func(text string) uint32 {
		t.Helper()
		var n uint32
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	a, b := wal.Object{Database: truncated.Relcache[0].Database, OID: number(oids[0])}, wal.Object{Database: truncated.Relcache[0].Database, OID: number(oids[1])}
	if truncated.XID != number(xids[0]) || !slices.Equal(truncated.Truncated, []wal.Object{b}) || len(truncated.Dropped) > 0 || truncated.Created != 1 || len(truncated.Files) != 1 || !slices.Contains(truncated.Relcache, b) {
		t.Errorf("TRUNCATE of %v by %s: %+v", b, xids[0], truncated)
	}
	dropped := []wal.Object{a}
	if install.Major < 15 {
		dropped = nil
	}
	if gone.XID != number(xids[1]) || !slices.Equal(gone.Dropped, dropped) || gone.Created != 0 || len(gone.Files) != 1 || !slices.Contains(gone.Relcache, a) {
		t.Errorf("DROP of %v by %s: %+v", a, xids[1], gone)
	}
	if !slices.Equal(database.Databases, []uint32{number(oids[2])}) {
		t.Errorf("DROP DATABASE of %s: %+v", oids[2], database)
	}
	if !ids.Holds(gone.XID) || !ids.Holds(database.XID) || ids.Holds(database.XID+1000) || (*XIDs)(nil).Holds(3) {
		t.Errorf("ids %+v, and there were %d and %d", ids, gone.XID, database.XID)
	}
}

func lastWord(text string) string {
	words := strings.Fields(text)
	return words[len(words)-1]
}

// indexesOf makes the indexes of a stopped server's WAL.
func indexesOf(t *testing.T, dir string) []Index {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "pg_wal", "0000000100000000????????"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	sort.Strings(names)
	first, err := pg.ParseSegmentName(filepath.Base(names[0]), mib)
	if err != nil {
		t.Fatal(err)
	}
	var b IndexBuilder
	decoder := wal.NewDecoder(wal.Options{Start: first.Start(mib), SegmentSize: mib, Timeline: 1}, b.Add)
	var indexes []Index
	for i, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = decoder.Write(content)
		if err != nil && !errors.Is(err, wal.ErrEnd) {
			t.Fatal(err)
		}
		index := b.Finish(pg.Segment{Timeline: 1, Number: first.Number + uint64(i)}, mib, decoder.UnfinishedRecord())
		indexes = append(indexes, index)
		if err != nil {
			break
		}
	}
	return indexes
}

// An index as it was written before there were extents.
const oldIndex = `{"segment":"000000010000000000000002","last_record":"0/2FFFF00","unfinished":"0/0","marks":[{"at":"0/2000028","count":2,"min":"2026-11-20T13:03:21Z","max":"2026-11-20T13:03:22Z"}],"restore_points":null,"clocks":null}`

func TestIndexOfAnOlderProgramIsReadAsOne(t *testing.T) {
	r := newRepo(t, nil)
	object := seal(KindIndex, time.Time{}, []byte(oldIndex), r.compressor.Append(nil, []byte(oldIndex)), CodecZstd)
	if err := r.store.Put(t.Context(), r.prefix+indexKey(segmentTwo, mib), object, store.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	index, err := r.ReadIndex(t.Context(), mib, segmentTwo)
	if err != nil || index.Detail != 0 || index.XIDs != nil || index.Commits() != 2 || index.XIDs.Holds(1) {
		t.Errorf("%+v, %v", index, err)
	}
}

func TestExtentsStaySmallWhateverIsChanged(t *testing.T) {
	var x extents
	mark := func(relation, extent uint32) { x.mark(forkKey{relation: wal.Relation{Number: relation}}, extent) }
	for i := range uint32(200_000) { // every third extent of a relation of 150 GB
		mark(1, 3*i)
	}
	mark(2, 7)
	forks := x.finish()
	index, err := json.Marshal(Index{Extents: forks})
	if err != nil || len(index) > 1<<20 {
		t.Fatalf("an index of %d bytes, %v", len(index), err)
	}
	if !forks[0].Coarse || forks[1].Coarse || forks[1].Extents != "7" {
		t.Errorf("coarse: %v, %v; the small one %q", forks[0].Coarse, forks[1].Coarse, forks[1].Extents)
	}
	ranges, err := forks[0].Ranges()
	if err != nil || ranges[0].First != 0 || ranges[len(ranges)-1].Last < 3*199_999 {
		t.Errorf("%d ranges from %v, %v", len(ranges), ranges[0], err)
	}
	for chunk := range uint32(chunksMax + 10) { // a relation of more than 2 TB, all over
		mark(3, 64*chunk)
	}
	if f := x.forks[forkKey{relation: wal.Relation{Number: 3}}]; !f.whole || len(f.chunks) != 0 || x.chunks > chunksMax {
		t.Errorf("whole %v, %d of %d chunks", f.whole, len(f.chunks), x.chunks)
	}
	for relation := range uint32(changedForksMax + 10) {
		mark(100+relation, 0)
	}
	if !x.all || len(x.finish()) != 0 {
		t.Error("too many forks, and it is not said")
	}
}

func TestExtentsReadBackAsTheyAreWritten(t *testing.T) {
	list := []ExtentRange{{0, 3}, {7, 7}, {9, 4_000_000}}
	got, err := ChangedFork{Extents: rangesText(list)}.Ranges()
	if diff := cmp.Diff(list, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, text := range []string{"x", "3-1", "1,1", "5,2", "-3", "1-", ",", "99999999999"} {
		if got, err := (ChangedFork{Extents: text}).Ranges(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

func TestCatalogReadsBackInOrder(t *testing.T) {
	r := newRepo(t, nil)
	later := Catalog{LSN: two + 8, Time: clockZero.Add(time.Minute), Databases: []CatalogDatabase{{OID: 5, Name: "postgres", Relations: []CatalogRelation{
		{OID: 16384, Tablespace: 1663, File: 16390, Kind: "r", Schema: "public", Name: "naïve \"name\""}, {OID: 1262, Tablespace: 1664, File: 1262, Shared: true, Kind: "r", Schema: "pg_catalog", Name: "pg_database"}}}}}
	for _, c := range []Catalog{later, {LSN: two, Time: clockZero}, later} {
		if err := r.PutCatalog(t.Context(), 1, c); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := r.Catalogs(t.Context(), 1)
	if err != nil || !cmp.Equal(keys, []CatalogKey{{1, two, clockZero}, {1, two + 8, later.Time}}) {
		t.Fatal(keys, err)
	}
	got, err := r.ReadCatalog(t.Context(), keys[1])
	if diff := cmp.Diff(later, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	db := got.Databases[0]
	if a, b := db.Locator(db.Relations[0]).String(), db.Locator(db.Relations[1]).String(); a != "1663/5/16390" || b != "1664/0/1262" {
		t.Errorf("they lie at %s and %s", a, b)
	}
	damaged := object(t, r, catalogKey(keys[1]))
	binary.LittleEndian.PutUint32(damaged[len(damaged)-4:], 1)
	overwrite(t, r, catalogKey(keys[1]), damaged)
	if _, err := r.ReadCatalog(t.Context(), keys[1]); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged catalog: %v", err)
	}
	overwrite(t, r, catalogsDir+"00000001/nonsense", nil)
	if _, err := r.Catalogs(t.Context(), 1); !errors.Is(err, ErrDamaged) {
		t.Errorf("a name that is no catalog: %v", err)
	}
}
