package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// moment is what the cluster looks like from a commit on.
type moment struct {
	at      time.Time // of the commit, by the server's clock
	xid     string
	content string
}

// seconds is a server whose whole content is known at every instant: one session does everything, and looks at it after each step.
type seconds struct {
	*harness
	node *node
	rng  *rand.Rand

	moments     []moment
	backups     []backupJSON
	offset      time.Duration       // of the server's clock
	idle        []time.Time         // instants at which nobody had done anything for long
	tables      map[string][]string // by database
	tablespaces []string
	spaces      []tablespaceBorn
	prepared    []string
	number      int
}

// tablespaceBorn is a CREATE TABLESPACE.
type tablespaceBorn struct {
	at   time.Time
	path string
}

// berlin is a zone in which the clock was set back while the workload ran.
const berlin = "Europe/Berlin"

// clockSetBack is when that was, in the server's time.
var clockSetBack = time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC)

func newSeconds(ctx context.Context, t *testing.T, rng *rand.Rand) *seconds {
	t.Helper()
	bin, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, bin: bin, install: postmastertest.Find(t), procs: map[string]*exec.Cmd{}, pooler: postmastertest.FreePort(t)}
	h.bin.raced = bin.plain // the clock of the server is another: nothing of ours is to be slow besides
	h.metrics = map[string]int{"pooler": postmastertest.FreePort(t), "archiver": postmastertest.FreePort(t)}
	h.dir = postmastertest.TempDir(t, h.install)
	h.config = filepath.Join(h.dir, "pitr.yaml")
	s := &seconds{harness: h, rng: rng, tables: map[string][]string{"postgres": nil}, node: newNode(t, h.install, true)}
	s.offset = clockSetBack.Add(-10 * time.Minute).Sub(time.Now())
	s.node.step(s.offset)
	if err := h.install.InitDB(ctx, postmaster.InitOptions{Dir: s.node.options.Dir, Superuser: "postgres", SegmentSizeMB: 1 << rng.IntN(5)}); err != nil {
		t.Fatal(err)
	}
	s.node.start(ctx)
	h.server = s.node.server
	for setting, value := range map[string]string{"track_commit_timestamp": "on", "autovacuum": "off", "archive_mode": "off", "wal_keep_size": "2GB"} {
		s.node.query(ctx, fmt.Sprintf("alter system set %s = '%s'", setting, value))
	}
	if err := s.node.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	s.node.start(ctx)
	h.server = s.node.server
	repository := filepath.Join(h.dir, "repository")
	text := fmt.Sprintf(harnessConfig, h.server.Port, h.pooler, "file://"+repository, h.metrics["pooler"], h.metrics["archiver"]) + "restore: {time_zone: " + berlin + "}\n"
	if err := errors.Join(os.Mkdir(repository, 0o755), os.WriteFile(h.config, []byte(text), 0o644), h.install.Own(h.dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.killAll)
	h.start(ctx, "archiver")
	return s
}

func (s *seconds) sql(ctx context.Context, database, statement string) {
	s.t.Helper()
	if _, err := s.server.Query(ctx, "postgres", database, statement); err != nil {
		s.t.Fatalf("%v\n%s", err, s.node.log())
	}
}

// name is one that was never used.
func (s *seconds) name(prefix string) string {
	s.number++
	return fmt.Sprintf("%s_%d", prefix, s.number)
}

func (s *seconds) database() string {
	names := make([]string, 0, len(s.tables))
	for name := range s.tables {
		names = append(names, name)
	}
	slices.Sort(names)
	return names[s.rng.IntN(len(names))]
}

// step does something, and notes what the cluster looks like afterwards.
func (s *seconds) step(ctx context.Context) {
	s.t.Helper()
	database := s.database()
	tables := s.tables[database]
	table := ""
	if len(tables) > 0 {
		table = tables[s.rng.IntN(len(tables))]
	}
	switch kind := s.rng.IntN(22); {
	case table == "" || kind < 2:
		s.makeTable(ctx, database)
	case kind < 9:
		s.sql(ctx, database, s.change(table))
	case kind == 9:
		s.sql(ctx, database, "begin; "+s.change(table)+"; savepoint a; "+s.change(table)+"; rollback to a; "+s.change(table)+"; commit")
	case kind == 10:
		s.sql(ctx, database, "begin; "+s.change(table)+"; rollback")
	case kind == 11:
		s.sql(ctx, database, "truncate "+table)
	case kind == 12:
		s.sql(ctx, database, "vacuum full "+table)
	case kind == 13:
		s.sql(ctx, database, fmt.Sprintf("alter table %s add column %s int default (random() * 1000)::int", table, s.name("c"))) // a rewrite
	case kind == 14 && len(tables) > 1:
		s.sql(ctx, database, "drop table "+table)
		s.tables[database] = slices.DeleteFunc(tables, func(name string) bool { return name == table })
	case kind == 15:
		s.makeDatabase(ctx, database)
	case kind == 16 && len(s.tables) > 3:
		s.dropDatabase(ctx)
	case kind == 17:
		s.prepare(ctx)
	case kind == 18 && len(s.tablespaces) < 3:
		s.makeTablespace(ctx)
	case kind == 19 && len(s.tablespaces) > 0:
		s.sql(ctx, database, fmt.Sprintf("alter table %s set tablespace %s", table, s.tablespaces[s.rng.IntN(len(s.tablespaces))]))
	default:
		s.sql(ctx, database, "begin; "+s.change(table)+"; create index on "+table+" (v); "+s.change(table)+"; commit")
	}
	s.look(ctx)
}

func (s *seconds) change(table string) string {
	switch s.rng.IntN(4) {
	case 0:
		return fmt.Sprintf("update %s set v = v + %d where i %% %d = 0", table, s.number, 2+s.rng.IntN(7))
	case 1:
		return fmt.Sprintf("delete from %s where i %% %d = 0", table, 3+s.rng.IntN(7))
	}
	return fmt.Sprintf("insert into %s (v, t) select i, repeat(md5(i::text), %d) from generate_series(1, %d) i", table, 1+s.rng.IntN(80), 1+s.rng.IntN(200))
}

func (s *seconds) makeTable(ctx context.Context, database string) {
	s.t.Helper()
	name, where := s.name("t"), ""
	if len(s.tablespaces) > 0 && s.rng.IntN(2) == 0 {
		where = " tablespace " + s.tablespaces[s.rng.IntN(len(s.tablespaces))]
	}
	s.sql(ctx, database, fmt.Sprintf("create table %s (i serial, v int, t text)%s; %s", name, where, s.change(name)))
	s.tables[database] = append(s.tables[database], name)
}

// makeDatabase copies one, in either of the two ways that 15 and later have.
func (s *seconds) makeDatabase(ctx context.Context, template string) {
	s.t.Helper()
	name, strategy := s.name("d"), ""
	if s.install.Major >= 15 {
		strategy = []string{" strategy wal_log", " strategy file_copy"}[s.rng.IntN(2)]
	}
	if template == "postgres" {
		template = "template1" // the archiver is connected to it
	}
	s.sql(ctx, "postgres", fmt.Sprintf("create database %s template %s%s", name, template, strategy))
	s.tables[name] = slices.Clone(s.tables[template])
}

func (s *seconds) dropDatabase(ctx context.Context) {
	s.t.Helper()
	name := s.database()
	if name == "postgres" {
		return
	}
	s.sql(ctx, "postgres", fmt.Sprintf("drop database %s with (force)", name))
	delete(s.tables, name)
}

// prepare puts a transaction aside, or ends one that was.
func (s *seconds) prepare(ctx context.Context) {
	s.t.Helper()
	if len(s.prepared) < 2 {
		gid := s.name("p")
		s.sql(ctx, "postgres", fmt.Sprintf("begin; insert into aside values ('%s'); prepare transaction '%s'", gid, gid)) // nothing else locks that table
		s.prepared = append(s.prepared, gid)
		return
	}
	s.endPrepared(ctx)
}

func (s *seconds) endPrepared(ctx context.Context) {
	s.t.Helper()
	if len(s.prepared) == 0 {
		return
	}
	how := []string{"commit", "rollback"}[s.rng.IntN(2)]
	s.sql(ctx, "postgres", fmt.Sprintf("%s prepared '%s'", how, s.prepared[0]))
	s.prepared = s.prepared[1:]
}

func (s *seconds) makeTablespace(ctx context.Context) {
	s.t.Helper()
	name := s.name("s")
	path := filepath.Join(s.dir, name)
	if err := errors.Join(os.Mkdir(path, 0o700), s.install.Own(path)); err != nil {
		s.t.Fatal(err)
	}
	s.sql(ctx, "postgres", fmt.Sprintf("create tablespace %s location '%s'", name, path))
	s.tablespaces = append(s.tablespaces, name)
	s.look(ctx)
	s.spaces = append(s.spaces, tablespaceBorn{s.moments[len(s.moments)-1].at, path})
}

// invalidDatabase is DATCONNLIMIT_INVALID_DB of src/include/catalog/pg_database.h: DROP DATABASE marks a database so, and removes its files, before it commits.
const invalidDatabase = "-2"

// contentOf prints every row of every table of every database that can be connected to: of each table a hash.
func contentOf(ctx context.Context, server *postmaster.Server) (string, error) {
	databases, err := server.Query(ctx, "postgres", "postgres", "select datname from pg_database where not datistemplate and datconnlimit <> "+invalidDatabase+" order by 1")
	if err != nil {
		return "", err
	}
	var all strings.Builder
	for database := range strings.Lines(databases) {
		database = strings.TrimSpace(database)
		out, err := server.Query(ctx, "postgres", database, `select relname, coalesce(spcname, 'default'), (xpath('/row/h/text()', query_to_xml(
			format('select md5(coalesce(string_agg(t::text, chr(10) order by t::text), '''')) || '' '' || count(*) as h from %I t', relname), false, true, '')))[1]
			from pg_class left join pg_tablespace s on s.oid = reltablespace where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1`)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "== %s\n%s\n", database, out)
	}
	return all.String(), nil
}

// look notes the last commit, and what the cluster looks like from then on.
func (s *seconds) look(ctx context.Context) {
	s.t.Helper()
	last := s.node.query(ctx, "select xid || ' ' || extract(epoch from timestamp)::numeric(20, 6) * 1000000 from pg_last_committed_xact()")
	xid, text, _ := strings.Cut(last, " ")
	var micros int64
	if _, err := fmt.Sscan(strings.TrimSuffix(text, ".000000"), &micros); err != nil {
		s.t.Fatalf("%q: %v", last, err)
	}
	content, err := contentOf(ctx, s.server)
	if err != nil {
		s.t.Fatal(err)
	}
	if n := len(s.moments); n > 0 && s.moments[n-1].xid == xid {
		if s.moments[n-1].content != content {
			s.t.Fatalf("without a commit behind xid %s the content has changed", xid)
		}
		return
	}
	s.moments = append(s.moments, moment{time.UnixMicro(micros).UTC(), xid, content})
}

// rest lets the server's clock go on while nobody does anything.
func (s *seconds) rest(ctx context.Context, span time.Duration) {
	s.t.Helper()
	s.archived(ctx)
	before := s.now(ctx)
	s.offset += span
	s.node.step(s.offset)
	s.idle = append(s.idle, before.Add(time.Duration(s.rng.Int64N(int64(span)))))
}

func (s *seconds) now(ctx context.Context) time.Time {
	s.t.Helper()
	var micros int64
	if _, err := fmt.Sscan(s.node.query(ctx, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint"), &micros); err != nil {
		s.t.Fatal(err)
	}
	return time.UnixMicro(micros).UTC()
}

// expected is what a restore to an instant must give, and the last and the next commit.
func (s *seconds) expected(at time.Time) (last, next *moment) {
	for i := range s.moments {
		if s.moments[i].at.After(at) {
			return last, &s.moments[i]
		}
		last = &s.moments[i]
	}
	return last, nil
}
