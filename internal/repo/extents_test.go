package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/wal"
)

// changed is what is known of one fork: the extents that have changed, and from where on it was cut off.
type changed struct {
	Cut     string
	Extents []uint32
}

// TestExtentsAreThoseThatPostgresSummarizes compares with pg_walsummary where there is one, that is since 17. Before, Postgres tells nobody
// what it would back up: there each block that pg_waldump shows has to be in an extent, and no extent may be without one.
func TestExtentsAreThoseThatPostgresSummarizes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := postmastertest.Find(t)
	settings := []string{"wal_keep_size=2GB", "max_prepared_transactions=5", "autovacuum=off", "full_page_writes=on"}
	if install.Major >= 17 {
		settings = append(settings, "summarize_wal=on")
	}
	server := postmastertest.Start(t, install, postmastertest.Options{SegmentSizeMB: 1, Settings: settings})
	query := func(sql string) string {
		t.Helper()
		out, err := server.Query(ctx, "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	query("checkpoint")
	start := extentWorkload(t, install.Major, query)
	if install.Major < 17 {
		t.Logf("PostgreSQL %d has no pg_walsummary: comparing with the block references that pg_waldump prints", install.Major)
		end := query("select pg_current_wal_insert_lsn()")
		if err := server.Stop(ctx, postmaster.Fast); err != nil {
			t.Fatal(err)
		}
		compareWithWaldump(t, install, server.Dir, start, end)
		return
	}
	query("checkpoint")
	for query("select count(*) > 0 and max(end_lsn) >= (select redo_lsn from pg_control_checkpoint()) from pg_available_wal_summaries()") != "t" {
		query("select pg_sleep(0.1)")
	}
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	compareWithSummaries(t, install, server.Dir)
}

// extentWorkload makes, changes, cuts off and removes relations in every way that the WAL knows, and returns where it began.
func extentWorkload(t *testing.T, major int, query func(string) string) string {
	t.Helper()
	start := query("select pg_current_wal_insert_lsn()")
	statements := []string{
		"create table t (id int primary key, note text)", "insert into t select i, repeat('x', 400) from generate_series(1, 20000) i",
		"create index on t (note)", "create unlogged table u (i int)", "insert into u select generate_series(1, 1000)",
		"update t set note = 'short' where id % 700 = 0", "vacuum t", "checkpoint",
		"delete from t where id > 9000", "vacuum (truncate) t", "insert into t select i, repeat('z', 300) from generate_series(30000, 31000) i", "checkpoint",
		"create table gone as select generate_series(1, 5000) i", "drop table gone",
		"begin; create table never (i int); insert into never select generate_series(1, 100); rollback",
		"create table p as select 1 i", "begin; drop table p; prepare transaction 'one'", "commit prepared 'one'",
		"begin; create table q (i int); prepare transaction 'two'", "rollback prepared 'two'",
		"create table emptied as select generate_series(1, 20000) i", "truncate emptied", "insert into emptied values (1)", "vacuum full t", "checkpoint",
		"create sequence s", "select nextval('s')", "create table toasted (v text)",
		"alter table toasted alter v set storage external; insert into toasted select repeat('t', 50000) from generate_series(1, 20)",
		"create index on t using gin (to_tsvector('simple', note))", "create index on t using brin (id)", "update t set note = 'again' where id < 500",
		"create database other", "drop database other",
	}
	if major >= 15 {
		statements = append(statements, "create database copied strategy file_copy", "drop database copied")
	}
	for _, sql := range append(statements, "insert into t values (-1, 'the last')") {
		query(sql)
	}
	return start
}

// collect decodes the server's WAL and collects the extents of the records that begin in a stretch of it.
func collect(t *testing.T, dir string, from, to pg.LSN) map[string]changed {
	t.Helper()
	var x extents
	at := mib.Start(from)
	decoder := wal.NewDecoder(wal.Options{Start: at, SegmentSize: mib, Timeline: 1}, func(r *wal.Record) error {
		if r.Start < from {
			return nil
		}
		if r.Start >= to {
			return wal.ErrEnd
		}
		return errors.Join(r.Decode(), x.add(r))
	})
	for ; at < to; at += pg.LSN(mib) {
		content, err := os.ReadFile(filepath.Join(dir, "pg_wal", mib.Segment(1, at).Name(mib)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decoder.Write(content); errors.Is(err, wal.ErrEnd) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]changed{}
	for _, c := range x.finish() {
		if c.Coarse || x.all {
			t.Fatalf("limits were reached by a small workload: %+v", c)
		}
		ranges, err := c.Ranges()
		if err != nil {
			t.Fatal(err)
		}
		entry := changed{}
		if c.Cut != nil {
			entry.Cut = fmt.Sprint(*c.Cut)
		}
		for _, r := range ranges {
			for extent := r.First; extent <= r.Last; extent++ {
				entry.Extents = append(entry.Extents, extent)
			}
		}
		fork := c.Fork
		if fork == "" {
			fork = "main"
		}
		got[c.Relation+" "+fork] = entry
	}
	return got
}

var summaryLine = regexp.MustCompile(`^TS (\d+), DB (\d+), REL (\d+), FORK (\w+): (limit|block) (\d+)$`)

func compareWithSummaries(t *testing.T, install *postmaster.Install, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "pg_wal", "summaries", "*.summary"))
	if err != nil || len(names) < 3 {
		t.Fatalf("%d summaries, %v", len(names), err)
	}
	forks, extents, cuts := 0, 0, 0
	for _, name := range names {
		base := filepath.Base(name)
		from, err1 := pg.ParseLSNHex(base[8:24])
		to, err2 := pg.ParseLSNHex(base[24:40])
		out, err3 := install.Command(t.Context(), "pg_walsummary", "-i", name).CombinedOutput()
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatalf("%s: %v\n%s", base, err, out)
		}
		want := parseSummary(t, string(out))
		got := collect(t, dir, from, to)
		allowLessOfMaps(t, want, got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%s to %s: -pg_walsummary +ours\n%s", from, to, diff)
		}
		forks += len(got)
		for _, c := range got {
			extents += len(c.Extents)
			if c.Cut != "" && c.Cut != "0" {
				cuts++
			}
		}
	}
	if forks < 100 || extents < 100 || cuts == 0 {
		t.Errorf("the workload has changed only %d forks, %d extents, and cut off %d", forks, extents, cuts)
	}
	t.Logf("%d summaries with %d forks, %d extents, %d cut off within: all equal", len(names), forks, extents, cuts)
}

// allowLessOfMaps lets us tell more of visibility maps than Postgres does: it notes the cutting off of a map under the heap's block number, and so
// misses the change of the map's last block (SummarizeSmgrRecord of src/backend/postmaster/walsummarizer.c).
func allowLessOfMaps(t *testing.T, want, got map[string]changed) {
	t.Helper()
	for key, ours := range got {
		theirs, found := want[key]
		if !strings.HasSuffix(key, " vm") || !found || cmp.Equal(ours, theirs) {
			continue
		}
		for _, extent := range theirs.Extents {
			if !slices.Contains(ours.Extents, extent) && ours.Cut != "0" {
				t.Errorf("%s: extent %d has changed and is not told", key, extent)
			}
		}
		if ours.Cut == "" && theirs.Cut != "" {
			t.Errorf("%s was cut off at %s", key, theirs.Cut)
		}
		want[key] = ours
	}
}

func parseSummary(t *testing.T, text string) map[string]changed {
	t.Helper()
	want := map[string]changed{}
	for line := range strings.Lines(text) {
		m := summaryLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			t.Fatalf("pg_walsummary printed %q", line)
		}
		number, err := strconv.ParseUint(m[6], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		key := fmt.Sprintf("%s/%s/%s %s", m[1], m[2], m[3], m[4])
		entry, extent := want[key], uint32(number)/blocksPerExtent
		if m[5] == "limit" {
			entry.Cut = m[6]
		}
		if m[5] == "block" || number%blocksPerExtent != 0 { // an extent that is cut in two has changed
			if i, found := slices.BinarySearch(entry.Extents, extent); !found {
				entry.Extents = slices.Insert(entry.Extents, i, extent)
			}
		}
		want[key] = entry
	}
	return want
}

var waldumpBlock = regexp.MustCompile(`blkref #\d+: rel (\d+/\d+/\d+)(?: fork (\w+))? blk (\d+)`)

// compareWithWaldump holds extents against block references. What was cut off may be missing, behind the cut.
func compareWithWaldump(t *testing.T, install *postmaster.Install, dir, start, end string) {
	t.Helper()
	out, err := install.Command(t.Context(), "pg_waldump", "-p", filepath.Join(dir, "pg_wal"), "-s", start, "-e", end).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[uint32]bool{}
	for _, m := range waldumpBlock.FindAllStringSubmatch(string(out), -1) {
		number, err := strconv.ParseUint(m[3], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		fork := m[2]
		if fork == "" {
			fork = "main"
		}
		if key := m[1] + " " + fork; fork != "fsm" {
			if want[key] == nil {
				want[key] = map[uint32]bool{}
			}
			want[key][uint32(number)/blocksPerExtent] = true
		}
	}
	from, err1 := pg.ParseLSN(start)
	to, err2 := pg.ParseLSN(end)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	got := collect(t, dir, from, to)
	extents, cut := 0, 0
	for key, blocks := range want {
		entry := got[key]
		limit := ^uint64(0)
		if entry.Cut != "" {
			if limit, err = strconv.ParseUint(entry.Cut, 10, 32); err != nil {
				t.Fatal(err)
			}
		}
		for extent := range blocks {
			switch {
			case slices.Contains(entry.Extents, extent):
				extents++
			case uint64(extent)*blocksPerExtent >= limit:
				cut++
			default:
				t.Errorf("%s: extent %d has changed and is not told", key, extent)
			}
		}
	}
	for key, entry := range got {
		for _, extent := range entry.Extents {
			if number, _ := strconv.ParseUint(entry.Cut, 10, 32); !want[key][extent] && uint32(number)/blocksPerExtent != extent {
				t.Errorf("%s: extent %d has not changed", key, extent)
			}
		}
	}
	if extents < 100 || cut == 0 {
		t.Errorf("the workload has changed only %d extents, and %d behind cuts", extents, cut)
	}
	t.Logf("%d extents of %d forks; %d more lie behind cuts", extents, len(want), cut)
}
