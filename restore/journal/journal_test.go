package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/archiver"
	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/store/file"
)

// world is a Postgres that a real archiver archives.
type world struct {
	t      *testing.T
	server *postmaster.Server
	repo   *repo.Repo
	arch   *archiver.Archiver
	major  int
	dsn    string
	log    io.Writer // of the archiver
}

func newWorld(t *testing.T, settings ...string) *world {
	t.Helper()
	install := postmastertest.Find(t)
	files, err1 := file.Open(t.TempDir())
	compressor, err2 := repo.NewCompressor("zstd:1")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, repo: repo.New(files, "main", compressor), major: install.Major}
	w.server = postmastertest.Start(t, install, postmastertest.Options{SegmentSizeMB: 1, Settings: append([]string{
		"wal_keep_size=1GB", "max_prepared_transactions=5", "autovacuum=off", "timezone=UTC"}, settings...)})
	w.dsn, w.log = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", w.server.Port), os.Stderr
	return w
}

// archive runs an archiver until the test ends or stop is called.
func (w *world) archive() (stop func()) {
	w.t.Helper()
	a, err := archiver.New(archiver.Options{DSN: w.dsn, Slot: "pitr",
		FlushInterval: 50 * time.Millisecond, PartSizeMax: 1 << 20, BufferMax: 8 << 20, ShutdownGrace: 5 * time.Second, BackupBufferMax: 64 << 20,
		CatalogInterval: time.Hour, CatalogRelationsMax: 10_000, Repo: w.repo, Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.arch = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) query(sql string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := w.server.Query(ctx, "postgres", "postgres", sql)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// xact runs statements as one transaction and returns its id.
func (w *world) xact(sql string) uint32 {
	w.t.Helper()
	return w.xid(w.query("begin; " + sql + "; select pg_current_xact_id(); commit"))
}

func (w *world) xid(text string) uint32 {
	w.t.Helper()
	lines := strings.Fields(text)
	xid, err := strconv.ParseUint(lines[len(lines)-1], 10, 32)
	if err != nil {
		w.t.Fatal(err)
	}
	return uint32(xid)
}

// archived waits until everything that was flushed is stored.
func (w *world) archived() {
	w.t.Helper()
	w.query("select pg_switch_wal(); insert into flushed values (1)")
	end, err := pg.ParseLSN(w.query("select pg_current_wal_flush_lsn()"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.until("the WAL is stored", func() bool { return w.arch.Stats().Stored >= end })
}

func (w *world) until(what string, holds func() bool) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !holds() {
		select {
		case <-deadline:
			w.t.Fatalf("waited in vain until %s", what)
		case <-ticker.C:
		}
	}
}

// named waits until the newest catalog holds a relation, and was begun when a database was there already.
func (w *world) named(relation, database string) {
	w.t.Helper()
	w.until(relation+" has a name", func() bool {
		keys, err := w.repo.Catalogs(w.t.Context(), 1)
		if err != nil || len(keys) == 0 {
			return false
		}
		c, err := w.repo.ReadCatalog(w.t.Context(), keys[len(keys)-1])
		if err != nil {
			w.t.Fatal(err)
		}
		table, there := false, false
		for _, db := range c.Databases {
			there = there || db.Name == database
			for _, r := range db.Relations {
				table = table || r.Name == relation
			}
		}
		return table && there
	})
}

func (w *world) read(opt Options) []Event {
	w.t.Helper()
	var events []Event
	if err := Read(w.t.Context(), w.repo, opt, func(e Event) error {
		events = append(events, e)
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return events
}

// brief is what of a transaction is compared.
func brief(tr *Transaction) string {
	var parts []string
	for _, r := range tr.Relations {
		if !r.System && r.Kind != "t" {
			parts = append(parts, fmt.Sprintf("%s +%d ~%d -%d", strings.TrimPrefix(r.Name, "postgres.public."), r.Inserted, r.Updated, r.Deleted))
		}
	}
	for _, m := range []struct {
		word  string
		names []string
	}{{"drop", tr.Dropped}, {"drop database", tr.DroppedDatabases}, {"truncate", tr.Truncated}, {"rewrite", tr.Rewritten}, {"mass", tr.MassDeletes}} {
		for _, name := range m.names {
			parts = append(parts, m.word+" "+strings.TrimPrefix(name, "postgres.public."))
		}
	}
	if !tr.Committed {
		parts = append(parts, "aborted")
	}
	return strings.Join(parts, ", ")
}

// story is what was done, by transaction.
type story struct {
	want        map[uint32]string
	order       []uint32
	destructive []uint32
	sub         [2]uint32 // a transaction, and one of its subtransactions
}

func (s *story) tell(xid uint32, want string) {
	s.want[xid] = want
	s.order = append(s.order, xid)
	if strings.Contains(want, "drop ") || strings.Contains(want, "truncate ") || strings.Contains(want, "mass ") {
		if !strings.Contains(want, "aborted") {
			s.destructive = append(s.destructive, xid)
		}
	}
}

func (w *world) live() *story {
	s := &story{want: map[uint32]string{}}
	s.tell(w.xact("insert into orders select i, 'x' from generate_series(1, 5000) i"), "orders +5000 ~0 -0")
	s.tell(w.xact("copy lines from program 'seq 1 4321'"), "lines +4321 ~0 -0")
	s.tell(w.xact("update orders set note = repeat('y', 300) where id <= 700; delete from orders where id > 4950; insert into lines values (0)"), "lines +1 ~0 -0, orders +0 ~700 -50")
	out := strings.Fields(w.query("begin; insert into lines values (1); select pg_current_xact_id(); savepoint a; insert into lines values (2); release a; savepoint b; insert into orders select i, 'gone' from generate_series(10001, 10010) i; " +
		"rollback to b; savepoint c; delete from lines where i = 7; select coalesce((select max(transactionid::text::int) from pg_locks where locktype = 'transactionid' and pid = pg_backend_pid()), 0); release c; commit"))
	s.sub = [2]uint32{w.xid(out[0]), w.xid(out[len(out)-1])}
	s.tell(s.sub[0], "lines +2 ~0 -1")
	s.tell(w.xact("insert into orders values (1, 'again'), (6001, 'new') on conflict (id) do update set note = excluded.note"), "orders +1 ~1 -0")
	s.tell(w.xact("insert into parts values (1, 1), (2, 2); update parts set k = 11 where v = 1"), "parts_a +1 ~1 -0, parts_b +2 ~0 -0")
	s.tell(w.xact("delete from orders where id between 1000 and 3999"), "orders +0 ~0 -3000, mass orders")
	s.tell(w.xid(w.query("begin; drop table orders; select pg_current_xact_id(); rollback")), "aborted")
	s.tell(w.xact("truncate lines"), "truncate lines")
	s.tell(w.xact("truncate emptied; insert into emptied select generate_series(1, 30)"), "emptied +30 ~0 -0, truncate emptied")
	prepared := w.xid(w.query("begin; insert into lines select generate_series(1, 7); select pg_current_xact_id(); prepare transaction 'p'"))
	s.tell(w.xact("insert into lines values (99)"), "lines +1 ~0 -0")
	w.query("commit prepared 'p'")
	s.tell(prepared, "lines +7 ~0 -0")
	s.tell(w.xact("create table brief (i int); insert into brief values (1); drop table brief"), "*")
	s.tell(w.xact("drop table doomed; truncate emptied"), "drop doomed, drop doomed_i_seq, truncate emptied")
	s.tell(w.xact("alter table orders alter id type bigint"), "*rewrite orders")
	s.tell(w.xact("drop table orders cascade"), "drop orders")
	s.tell(w.xact("drop table parts"), "*drop parts_a, drop parts_b")
	s.tell(w.xact("insert into toasted select repeat(i::text, 4000) from generate_series(1, 5) i"), "toasted +5 ~0 -0")
	return s
}

func TestJournalTellsWhatEachTransactionHasDone(t *testing.T) {
	for _, level := range []string{"replica", "logical"} { // logical writes more, and otherwise
		t.Run(level, func(t *testing.T) { tellsAll(t, level) })
	}
}

func tellsAll(t *testing.T, level string) {
	w := newWorld(t, "wal_level="+level)
	stop := w.archive()
	w.query("create database other")
	w.query("create table flushed (i int); create table orders (id int primary key, note text); create table lines (i int); create table emptied as select 1 i; create table doomed (i serial primary key, note text)")
	w.query("create table parts (k int, v int) partition by range (k); create table parts_a partition of parts for values from (0) to (2); create table parts_b partition of parts for values from (2) to (100)")
	w.query("create table toasted (v text); alter table toasted alter v set storage external")
	w.named("toasted", "other")
	before := time.Now()
	w.query("select pg_create_restore_point('here')")
	s := w.live()
	w.query("vacuum full toasted")
	w.query("drop database other")
	w.archived()
	stop()
	all := w.read(Options{From: before.Add(-time.Second)})
	w.compare(s, all)
	w.filters(s, all)
}

// compare holds what was told against what was done.
func (w *world) compare(s *story, all []Event) {
	w.t.Helper()
	told := map[uint32]string{}
	var order []uint32
	points, databases, rewritten := 0, 0, 0
	for _, e := range all {
		if e.RestorePoint != nil && e.RestorePoint.Name == "here" {
			points++
		}
		if e.Gap != nil {
			w.t.Errorf("a gap: %v", e.Gap)
		}
		if e.Transaction == nil {
			continue
		}
		told[e.Transaction.XID] = brief(e.Transaction)
		if _, mine := s.want[e.Transaction.XID]; mine {
			order = append(order, e.Transaction.XID)
			if e.Transaction.Incomplete || e.Transaction.Partial || e.Transaction.Bytes == 0 {
				w.t.Errorf("xid %d: %+v", e.Transaction.XID, e.Transaction)
			}
		} else {
			databases += strings.Count(brief(e.Transaction), "drop database other")
			rewritten += strings.Count(brief(e.Transaction), "rewrite toasted")
			if e.Transaction.Destructive() && len(e.Transaction.DroppedDatabases) == 0 {
				w.t.Errorf("xid %d is told to be destructive: %+v", e.Transaction.XID, e.Transaction)
			}
		}
	}
	for _, xid := range s.order {
		want, got := s.want[xid], told[xid]
		if after, any := strings.CutPrefix(want, "*"); any && strings.HasSuffix(got, after) && (after != "" || !strings.Contains(got, "drop")) {
			continue
		}
		if got != want {
			w.t.Errorf("xid %d is told as %q, and has done %q", xid, got, want)
		}
	}
	if diff := cmp.Diff(s.order, order); diff != "" {
		w.t.Errorf("order: -done +told\n%s", diff)
	}
	if points != 1 || databases != 1 || rewritten != 1 {
		for _, e := range all[max(0, len(all)-8):] {
			if e.Transaction != nil {
				w.t.Logf("xid %d at %s: %s", e.Transaction.XID, e.Transaction.LSN, brief(e.Transaction))
			}
		}
		w.t.Errorf("told of %d restore points, %d dropped databases, %d rewrites by VACUUM FULL; each was one", points, databases, rewritten)
	}
}

func (w *world) filters(s *story, all []Event) {
	w.t.Helper()
	xids := func(opt Options) (list []uint32) {
		for _, e := range w.read(opt) {
			if e.Transaction != nil {
				list = append(list, e.Transaction.XID)
			}
		}
		return list
	}
	for _, xid := range s.sub {
		if got := xids(Options{XID: xid}); len(got) != 1 || got[0] != s.sub[0] {
			w.t.Errorf("xid %d belongs to %v, want %d", xid, got, s.sub[0])
		}
	}
	got := xids(Options{Destructive: true})
	if len(got) > 0 {
		got = got[:len(got)-1] // DROP DATABASE
	}
	if diff := cmp.Diff(s.destructive, got); diff != "" {
		w.t.Errorf("destructive: -done +told\n%s", diff)
	}
	for _, name := range []string{"doomed", "public.doomed", "postgres.public.doomed"} {
		if got := xids(Options{Relation: name}); len(got) != 2 { // CREATE and DROP
			w.t.Errorf("%s was changed by %v", name, got)
		}
	}
	if err := Read(w.t.Context(), w.repo, Options{Relation: "public.nobody"}, func(Event) error { return nil }); !errors.Is(err, ErrNoRelation) {
		w.t.Errorf("a relation that never was: %v", err)
	}
	w.windows(all)
}

// TestManyTransactionsTakeNoMoreMemoryThanFew looks at what is still in use while 50,000 transactions go by: a word kept of each would show.
func TestManyTransactionsTakeNoMoreMemoryThanFew(t *testing.T) {
	const many, grown = 50_000, 1 << 20
	w := newWorld(t, "synchronous_commit=off")
	stop := w.archive()
	w.query("create table flushed (i int); create table orders (id int)")
	w.query(fmt.Sprintf("do $$ begin for i in 1..%d loop insert into orders values (i); commit; end loop; end $$", many))
	w.archived()
	stop()
	inUse := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	told, rows := 0, 0
	var early, late uint64
	err := Read(t.Context(), w.repo, Options{}, func(e Event) error {
		if e.Transaction == nil {
			return nil
		}
		for _, r := range e.Transaction.Relations {
			if !r.System {
				rows += r.Inserted
			}
		}
		switch told++; told {
		case many / 5:
			early = inUse()
		case many - 1000:
			late = inUse()
		}
		return nil
	})
	if err != nil || rows < many {
		t.Fatalf("%d rows in %d transactions, %v; want %d", rows, told, err, many)
	}
	if late > early+grown {
		t.Errorf("%d bytes in use after a fifth, %d at the end", early, late)
	}
	t.Logf("%d transactions; %d bytes in use after a fifth, %d at the end", told, early, late)
}

// counted is what does not depend on names: between a TRUNCATE and the next catalog only WAL in between tells them.
func counted(tr *Transaction) string {
	if tr == nil {
		return "nothing"
	}
	text := fmt.Sprint(tr.XID, tr.Time, tr.LSN, tr.Committed, tr.Bytes, tr.Subxacts, tr.Partial, tr.Incomplete, tr.Destructive())
	var rows []string
	for _, r := range tr.Relations {
		rows = append(rows, fmt.Sprint(r.Locator, r.Inserted, r.Updated, r.Deleted))
	}
	slices.Sort(rows)
	return text + strings.Join(rows, ", ")
}

// windows asks for each transaction by its own time, and compares with what was told when all was read: the way to it goes by indexes.
func (w *world) windows(all []Event) {
	w.t.Helper()
	for _, e := range all {
		if e.Transaction == nil {
			continue
		}
		var found *Transaction
		for _, near := range w.read(Options{From: e.Transaction.Time, To: e.Transaction.Time}) {
			if near.Transaction != nil && near.Transaction.LSN == e.Transaction.LSN {
				found = near.Transaction
			}
		}
		if diff := cmp.Diff(counted(e.Transaction), counted(found)); diff != "" {
			w.t.Errorf("xid %d by its time: -all +window\n%s", e.Transaction.XID, diff)
		}
	}
}

// TestSubtransactionIsFoundByItsIDWhereverItsCommitIs asks for a subtransaction whose commit lies in a later segment than its rows.
func TestSubtransactionIsFoundByItsIDWhereverItsCommitIs(t *testing.T) {
	w := newWorld(t)
	w.query("create table flushed (i int); create table t (i int)")
	stop := w.archive()
	out := w.query("begin; insert into t values (1); savepoint a; insert into t values (2); select xmin from t where i = 2; release a; select pg_switch_wal() is null; insert into t values (3); commit")
	w.query("select pg_switch_wal()")
	w.query("insert into t values (99)")
	w.query("select pg_switch_wal()")
	w.query("insert into t values (100)")
	w.archived()
	stop()
	text := strings.FieldsFunc(out, func(r rune) bool { return r < '0' || r > '9' })[0]
	sub, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	for _, xid := range []uint32{uint32(sub), uint32(sub) - 1} {
		found := 0
		err := Read(t.Context(), w.repo, Options{XID: xid}, func(e Event) error {
			if e.Transaction != nil && e.Transaction.XID == uint32(sub)-1 {
				found++
			}
			return nil
		})
		if err != nil || found != 1 {
			t.Errorf("xid %d was found %d times, %v", xid, found, err)
		}
	}
}
