package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// standby makes a streaming standby of the world's server.
func (w *world) standby() *postmaster.Server {
	w.t.Helper()
	install := postmastertest.Find(w.t)
	dir := filepath.Join(postmastertest.TempDir(w.t, install), "data")
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := install.Command(ctx, "pg_basebackup", "-D", dir, "-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-p", fmt.Sprint(w.server.Port), "-U", "postgres").CombinedOutput()
	if err != nil {
		w.t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	server, err := install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: postmastertest.FreePort(w.t), Log: dir + ".log",
		Settings: []string{"fsync=off", "shared_buffers=32MB", "wal_keep_size=1GB", "max_prepared_transactions=5", "autovacuum=off", "timezone=UTC"}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Stop(ctx, postmaster.Immediate); err != nil {
			w.t.Error(err)
		}
	})
	return server
}

// failover kills the primary while the standby, which receives nothing any more, lacks what only has done, and promotes the standby.
func (w *world) failover(standby *postmaster.Server, only func()) {
	w.t.Helper()
	primary := w.server
	on := func(sql string) string {
		w.t.Helper()
		w.server = standby
		defer func() { w.server = primary }()
		return w.query(sql)
	}
	end := w.query("select pg_current_wal_flush_lsn()")
	w.until("the standby has replayed all", func() bool {
		return on("select coalesce(pg_last_wal_replay_lsn(), '0/0') >= '"+end+"'") == "t"
	})
	on("alter system set primary_conninfo = ''")
	on("select pg_reload_conf()")
	w.until("the standby receives nothing", func() bool { return on("select count(*) from pg_stat_wal_receiver") == "0" })
	only()
	w.archived()
	if err := primary.Kill(); err != nil {
		w.t.Fatal(err)
	}
	on("select pg_promote()")
	w.until("the standby is promoted", func() bool { return on("select pg_is_in_recovery()") == "f" })
	w.server = standby
}

func (w *world) anywhere(servers ...*postmaster.Server) string {
	var hosts []string
	for _, server := range servers {
		hosts = append(hosts, fmt.Sprintf("127.0.0.1:%d", server.Port))
	}
	return fmt.Sprintf("postgres://postgres@%s/postgres?sslmode=disable", strings.Join(hosts, ","))
}

// told is what of transactions was told, by their ids, without those of archived and of catalogues alone.
func told(events []Event) []string {
	var got []string
	for _, e := range events {
		if e.Branch != nil {
			got = append(got, fmt.Sprintf("branch of timeline %d", e.Branch.Timeline))
		}
		if e.Transaction == nil {
			continue
		}
		text := brief(e.Transaction)
		if text == "" || strings.HasPrefix(text, "flushed ") {
			continue
		}
		got = append(got, fmt.Sprintf("%d on %d: %s", e.Transaction.XID, e.Transaction.Timeline, text))
	}
	return got
}

// TestWhatOnlyADeadBranchHasIsTold fails over while the archive is ahead of the standby. What was prepared before and committed behind that point
// is counted whole; what was rolled back there is not lost.
func TestWhatOnlyADeadBranchHasIsTold(t *testing.T) {
	w := newWorld(t)
	standby := w.standby()
	log := &logBuffer{}
	w.dsn, w.log = w.anywhere(standby, w.server), log
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(log.String())
		}
	})
	stop := w.archive()
	w.query("create table flushed (i int); create table orders (id int); create table doomed (i int)")
	w.named("doomed", "postgres")
	begun := w.query("select now()")
	var main, lost []string
	tell := func(list *[]string, tli int, xid uint32, text string) {
		*list = append(*list, fmt.Sprintf("%d on %d: %s", xid, tli, text))
	}
	tell(&main, 1, w.xact("insert into orders select generate_series(1, 100)"), "orders +100 ~0 -0")
	prepared := w.xid(w.query("begin; insert into orders select generate_series(1, 9); select pg_current_xact_id(); prepare transaction 'p'"))
	w.archived()
	tell(&main, 1, w.xact("insert into orders values (150)"), "orders +1 ~0 -0") // in the segment in which the timelines part
	w.failover(standby, func() {
		tell(&lost, 1, w.xact("insert into orders select generate_series(101, 107)"), "orders +7 ~0 -0")
		w.query("begin; insert into orders values (0); rollback")
		tell(&lost, 1, w.xact("delete from orders where id <= 3; update orders set id = -id where id <= 5"), "orders +0 ~2 -3")
		w.query("commit prepared 'p'")
		tell(&lost, 1, prepared, "orders +9 ~0 -0")
		tell(&lost, 1, w.xact("drop table doomed"), "drop doomed")
	})
	tell(&main, 2, w.xact("insert into orders values (200), (201)"), "orders +2 ~0 -0")
	w.query("rollback prepared 'p'")
	tell(&main, 2, prepared, "orders +9 ~0 -0, aborted")
	tell(&main, 2, w.xact("truncate doomed"), "truncate doomed")
	w.until("the second timeline is archived", func() bool { return w.arch.Stats().Timeline == 2 })
	w.archived()
	stop()

	if diff := cmp.Diff(append([]string{"branch of timeline 1"}, lost...), told(w.read(Options{Lost: true}))); diff != "" {
		t.Errorf("lost: -done +told\n%s", diff)
	}
	since, err := time.Parse("2006-01-02 15:04:05.999999-07", begun)
	if err != nil {
		t.Fatal(err)
	}
	all := w.read(Options{From: since})
	if diff := cmp.Diff(main, told(all)); diff != "" {
		t.Errorf("on the path: -done +told\n%s", diff)
	}
	w.windows(all)
	w.narrowed(prepared, lost)
	if !strings.Contains(log.String(), "pitr log --lost") {
		t.Error("the archiver's warning does not say what tells of the dead branch")
	}
}

// narrowed looks for some of what is lost.
func (w *world) narrowed(prepared uint32, lost []string) {
	w.t.Helper()
	want := func(opt Options, lines ...string) {
		w.t.Helper()
		opt.Lost = true
		if diff := cmp.Diff(append([]string{"branch of timeline 1"}, lines...), told(w.read(opt))); diff != "" {
			w.t.Errorf("%+v: -done +told\n%s", opt, diff)
		}
	}
	want(Options{XID: prepared}, lost[2])
	want(Options{Destructive: true}, lost[3])
	want(Options{Relation: "public.orders"}, lost[:3]...)
	var middle *Transaction
	for _, e := range w.read(Options{Lost: true}) {
		if tr := e.Transaction; tr != nil {
			if brief(tr) == "orders +0 ~2 -3" {
				middle = tr
			}
			if tr.Partial || tr.Incomplete {
				w.t.Errorf("xid %d: partial %v, incomplete %v", tr.XID, tr.Partial, tr.Incomplete)
			}
		}
	}
	if middle == nil {
		w.t.Fatal("a lost transaction is not told")
	}
	want(Options{From: middle.Time, To: middle.Time}, lost[1])
	// Seen from the dead branch the other one is lost.
	other := told(w.read(Options{Lost: true, Timeline: 1}))
	if len(other) != 3 || other[0] != "branch of timeline 2" || !strings.HasSuffix(other[1], "on 2: orders +2 ~0 -0") || !strings.HasSuffix(other[2], "truncate doomed") {
		w.t.Errorf("seen from timeline 1: %q", other)
	}
	if err := Read(w.t.Context(), w.repo, Options{Lost: true, Relation: "public.nobody"}, func(Event) error { return nil }); !errors.Is(err, ErrNoRelation) {
		w.t.Errorf("a relation that never was: %v", err)
	}
}

func TestEachByteOfATimelineIsOnThePathOrOnOneDeadBranch(t *testing.T) {
	histories := map[pg.Timeline]pg.History{
		1: nil,
		2: {{Timeline: 1, Switch: 100}},
		3: {{Timeline: 1, Switch: 100}, {Timeline: 2, Switch: 200}}, // a failover of 2
		4: {{Timeline: 1, Switch: 50}},                              // a restore to a point before both
		5: {{Timeline: 1, Switch: 100}, {Timeline: 2, Switch: 150}}, // a restore to a point on 2
	}
	check := func(tip pg.Timeline, want ...Branch) {
		t.Helper()
		got := deadBranches(tip, histories)
		if !slices.Equal(got, want) {
			t.Errorf("beside the path to %d: %v, want %v", tip, got, want)
		}
	}
	check(5, Branch{1, 100, 0}, Branch{2, 150, 0}, Branch{3, 200, 0}, Branch{4, 50, 0})
	check(4, Branch{1, 50, 0}, Branch{2, 100, 0}, Branch{3, 200, 0}, Branch{5, 150, 0})
	check(3, Branch{1, 100, 0}, Branch{2, 200, 0}, Branch{4, 50, 0}, Branch{5, 150, 0})
	check(1, Branch{2, 100, 0}, Branch{3, 200, 0}, Branch{4, 50, 0}, Branch{5, 150, 0})
}
