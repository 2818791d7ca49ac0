package pooler

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

func withObjects(policy string) func(*config.Config) {
	return func(cfg *config.Config) { cfg.Pooler.SessionObjects = policy; cfg.Pooler.DefaultPoolSize = 2 }
}

func TestAServerIsPinnedAsLongAsItHasSessionObjects(t *testing.T) {
	r := start(t, server(t), withObjects("pin"))
	conn, other := connect(t, r.dsn("")), connect(t, r.dsn(""))
	pinned := func(make, use, want, drop string) {
		t.Helper()
		mustQuery(t, conn, make)
		backend := mustQuery(t, conn, "select pg_backend_pid()")
		for range 3 {
			if got := mustQuery(t, other, "select pg_backend_pid()"); got == backend {
				t.Errorf("%q: another client got the server", make)
			}
			if got := mustQuery(t, conn, use); got != want {
				t.Errorf("%q, then %q gave %q, want %q", make, use, got, want)
			}
		}
		if active := r.Stats().Pools[0].Active; active != 1 {
			t.Errorf("%q: %d servers are held", make, active)
		}
		mustQuery(t, conn, drop)
		mustQuery(t, conn, "select 1")
		eventually(t, drop+": the server goes back", func() bool { return r.Stats().Pools[0].Active == 0 })
	}
	pinned("create temp table mine (x int)", "select count(*) from mine", "0", "drop table mine")
	pinned("select 7 into temporary mine", "select * from mine", "7", "discard all")
	pinned("create table pg_temp.mine as select 8", "select * from mine", "8", "drop table mine")
	pinned("select pg_advisory_lock(42)", "select count(*) from pg_locks where locktype = 'advisory'", "1", "select pg_advisory_unlock(42)")
	pinned("select pg_try_advisory_lock_shared(1, 2)", "select count(*) from pg_locks where locktype = 'advisory'", "1", "select pg_advisory_unlock_all()")
	pinned("declare c cursor with hold for select generate_series(1, 9)", "select name from pg_cursors", "c", "close all")
	pinned("set time zone interval '+02:00' hour to minute", "show timezone", "<+02>-02", "discard all")
}

func TestWhatLastsNoLongerThanItsTransactionPinsNothing(t *testing.T) {
	r := start(t, server(t), withObjects("pin"))
	conn := connect(t, r.dsn(""))
	for _, text := range []string{
		"begin; create temp table mine (x int) on commit drop; commit", "select pg_advisory_xact_lock(3)", "select 'create temp table x'",
		"begin; declare c cursor for select 1; commit", "select 1 as temp", "notify mine", "set work_mem = '9MB'", "prepare p as select 1",
	} {
		if _, err := conn.Exec(context.Background(), text).ReadAll(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		eventually(t, text+": the server goes back", func() bool { return r.Stats().Pools[0].Active == 0 })
	}
	_, err := conn.Exec(context.Background(), "create temp table mine as select 1/0").ReadAll()
	if err == nil {
		t.Error("no error")
	}
	mustQuery(t, conn, "select 1")
	eventually(t, "an error: the server goes back", func() bool { return r.Stats().Pools[0].Active == 0 })
}

func TestSessionObjectsAreRefused(t *testing.T) {
	r := start(t, server(t), withObjects("refuse"))
	conn := connect(t, r.dsn(""))
	for _, text := range []string{
		"create temp table mine (x int)", "select pg_advisory_lock(5)", "declare c cursor with hold for select 1", "select 1 into temp mine",
	} {
		for _, extended := range []bool{false, true} {
			mustQuery(t, conn, "begin")
			var err error
			if extended {
				_, err = conn.ExecParams(context.Background(), text, nil, nil, nil, nil).Close()
			} else {
				_, err = conn.Exec(context.Background(), text).ReadAll()
			}
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != "0A000" || refused.Hint == "" || conn.TxStatus() != 'E' {
				t.Errorf("%q gave %v in state %c", text, err, conn.TxStatus())
			}
			mustQuery(t, conn, "rollback")
		}
	}
	if got := mustQuery(t, conn, "select 2"); got != "2" {
		t.Errorf("afterwards a query gives %q", got)
	}
}
