package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// openedCopy restores the world's timeline 1 and starts the copy.
func (w *world) openedCopy(ctx context.Context, t *testing.T, target Target, change func(*Options), start func(*StartOptions)) (*postmaster.Server, Opened, string) {
	t.Helper()
	plan, err := planFor(t, w.repo, target, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(postmastertest.TempDir(t, w.install), "data")
	opt := w.options(dir)
	change(&opt)
	if _, err := CarryOut(ctx, w.repo, plan, opt); err != nil {
		t.Fatal(err)
	}
	begin := StartOptions{Dir: dir, Port: postmastertest.FreePort(t), Log: dir + ".log", OpenTimeout: time.Minute, Settings: []string{"fsync=off", "shared_buffers=32MB"}}
	if start != nil {
		start(&begin)
	}
	server, opened, err := Start(ctx, w.install, begin)
	if server != nil {
		t.Cleanup(func() {
			if err := server.Stop(context.Background(), postmaster.Immediate); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return server, opened, dir
}

func TestARecoveryThatPausesCanBeReadAndThenPromoted(t *testing.T) {
	w := theWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server, opened, _ := w.openedCopy(ctx, t, Target{Kind: AtPoint, Name: "fork", Text: "name:fork"}, func(opt *Options) { opt.Pause = true }, func(opt *StartOptions) { opt.Pause = true })
	ask := func(sql string) string {
		t.Helper()
		out, err := server.Query(ctx, "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := ask("select pg_is_in_recovery(), pg_is_wal_replay_paused(), max(i) from t"); got != "t|t|38" || !strings.Contains(opened.Stopping, `"fork"`) && opened.Stopping == "" {
		t.Errorf("at the target: %s; %+v", got, opened)
	}
	ask("select pg_wal_replay_resume()")
	for ask("select pg_is_in_recovery()") == "t" {
		ask("select pg_sleep(0.02)")
	}
	ask("insert into t values (-1)")
}

// TestAStandbyFollowsTheArchiveAndThePrimary restores a standby, and writes on the primary only afterwards.
func TestAStandbyFollowsTheArchiveAndThePrimary(t *testing.T) {
	w := ownWorld(t)
	w.during(t, nil, func(ctx context.Context, server *postmaster.Server, sql func(string) string) error {
		sql("create table t (i int)")
		if err := w.backup(ctx, server); err != nil {
			return err
		}
		sql("insert into t select generate_series(1, 30000)") // segments of the archive
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	primary, err := w.install.StartChild(ctx, postmaster.StartOptions{Dir: w.data(), Port: postmastertest.FreePort(t), Log: w.data() + ".log", Settings: []string{"fsync=off", "wal_keep_size=1GB"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := primary.Stop(context.Background(), postmaster.Immediate); err != nil {
			t.Error(err)
		}
	})
	standby, _, dir := w.openedCopy(ctx, t, Target{Kind: Latest, Text: "latest"}, func(opt *Options) {
		opt.Isolated, opt.Standby, opt.PrimaryInfo = false, true, w.dsn(primary)
	}, func(opt *StartOptions) { opt.Standby = true })
	if _, err := primary.Query(ctx, "postgres", "postgres", "insert into t values (-7)"); err != nil {
		t.Fatal(err)
	}
	for {
		out, err := standby.Query(ctx, "postgres", "postgres", "select count(*), min(i), pg_is_in_recovery(), (select count(*) from pg_stat_wal_receiver), pg_sleep(0.02) is null from t")
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(out, "30001|-7|t|1|") {
			break
		}
	}
	if !exists(filepath.Join(dir, "standby.signal")) || exists(filepath.Join(dir, "recovery.signal")) {
		t.Error("the signal files are wrong")
	}
}

// TestDatabasesThatAreLeftOutTakeNoRoomAndCanBeDropped changes and drops databases behind the backup too.
func TestDatabasesThatAreLeftOutTakeNoRoomAndCanBeDropped(t *testing.T) {
	w := ownWorld(t)
	query := func(server *postmaster.Server, database, sql string) {
		t.Helper()
		if out, err := server.Query(t.Context(), "postgres", database, sql); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	w.during(t, nil, func(ctx context.Context, server *postmaster.Server, sql func(string) string) error {
		for _, name := range []string{"wanted", `"Left Out"`, "gone"} {
			sql("create database " + name)
		}
		for _, name := range []string{"wanted", "Left Out", "gone"} {
			query(server, name, "create table big_"+strings.ToLower(name[:4])+" as select i, repeat('x', 500) as x from generate_series(1, 4000) i")
		}
		sql("create table in_postgres as select 1 as i; create table awaited (i int)")
		return errors.Join(w.awaitNames(ctx, "awaited"), w.awaitNames(ctx, "big_gone"), w.backup(ctx, server))
	})
	w.during(t, nil, func(_ context.Context, server *postmaster.Server, sql func(string) string) error {
		for _, name := range []string{"wanted", "Left Out", "gone"} {
			table := "big_" + strings.ToLower(name[:4])
			query(server, name, fmt.Sprintf("update \"%s\" set x = 'y' where i %% 7 = 0; delete from \"%s\" where i > 3500; create index on \"%s\" (i)", table, table, table))
			query(server, name, fmt.Sprintf("vacuum \"%s\"", table))
		}
		sql("drop database gone")
		sql("create database newer")
		return nil
	})
	plan, err := planFor(t, w.repo, Target{Kind: Latest, Text: "latest"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OtherDatabases(t.Context(), w.repo, plan, []string{"nobody"}); !errors.Is(err, ErrNoDatabase) {
		t.Errorf("a database that is not there: %v", err)
	}
	others, err := OtherDatabases(t.Context(), w.repo, plan, []string{"wanted"})
	if err != nil || len(others) != 2 {
		t.Fatalf("the others are %v (%v)", others, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server, _, dir := w.openedCopy(ctx, t, Target{Kind: Latest, Text: "latest"}, func(opt *Options) {
		opt.Sparse = map[uint32]bool{}
		for oid := range others {
			opt.Sparse[oid] = true
		}
	}, nil)
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	var names []string
	for oid, name := range others {
		names = append(names, name)
		if _, err := os.Stat(filepath.Join(dir, "base", fmt.Sprint(oid))); err != nil && name != "gone" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := DropDatabases(ctx, w.install, dir, names); err != nil {
		t.Fatal(err)
	}
	server, _, err = Start(ctx, w.install, StartOptions{Dir: dir, Port: server.Port, Log: dir + ".log", OpenTimeout: time.Minute, Settings: []string{"fsync=off"}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := server.Query(ctx, "postgres", "wanted", "set enable_seqscan = off; select count(*), count(*) filter (where x = 'y'), (select string_agg(datname, ',' order by datname) from pg_database) from big_want where i > 0")
	if want := "3500|500|newer,postgres,template0,template1,wanted"; err != nil || out != want {
		t.Errorf("the copy says %q, want %q (%v)", out, want, err)
	}
}
