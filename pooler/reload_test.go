package pooler

import (
	"errors"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// notices collects what an operator is told besides.
func (r *running) noticing(t testing.TB) (*pgconn.PgConn, *[]string) {
	t.Helper()
	var told []string
	cfg, err := pgconn.ParseConfig(strings.Replace(r.dsn(""), "dbname=postgres", "dbname=pgbouncer", 1))
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { told = append(told, n.Message) }
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn, &told
}

func TestReloadAppliesAllOrNothingAndSaysWhat(t *testing.T) {
	pg := server(t)
	r := start(t, pg, operated)
	file := settings(pg)
	operated(&file)
	var broken error
	r.reloading.mu.Lock()
	r.reloading.read = func() (*config.Config, error) {
		next := file
		return &next, broken
	}
	r.reloading.mu.Unlock()
	operator, told := r.noticing(t)
	reload := func(want ...string) {
		t.Helper()
		*told = nil
		mustQuery(t, operator, "RELOAD")
		if got := strings.Join(*told, "\n"); got != strings.Join(want, "\n") {
			t.Errorf("RELOAD said\n%s\nnot\n%s", got, strings.Join(want, "\n"))
		}
	}
	reload("nothing has changed")

	holder, waiter := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, holder, "begin; select 1")
	answered := make(chan error, 1)
	go func() {
		_, err := query(waiter, "select 1")
		answered <- err
	}()
	eventually(t, "somebody waits", func() bool { return r.Stats().ClientsWaiting == 1 })
	file.Pooler.DefaultPoolSize = 2
	file.Pooler.Workers = 7
	file.Pooler.Users = map[string]config.User{"postgres": {Password: "secret", QueryTimeout: config.Duration(time.Minute)}}
	want := []string{"pooler.default_pool_size: 1 -> 2", "pooler.users.postgres: \"\" -> there", "pooler.users.postgres.password: \"\" -> \"***\"",
		"pooler.users.postgres.query_timeout: \"\" -> 1m", "pooler.workers: 2 -> 7 needs a restart"}
	reload(want...)
	if err := <-answered; err != nil {
		t.Errorf("who waited while the pool grew: %v", err)
	}
	expect(t, rowOf(t, operator, "SHOW CONFIG", "key", "workers"), "value", "2")
	reload(want[4]) // as long as there was no restart

	file.Pooler.DefaultPoolSize = 1
	broken = errors.New("pitr.yaml: line 3: nonsense")
	mustFail(t, operator, "RELOAD", "55000", "line 3: nonsense")
	expect(t, rowOf(t, operator, "SHOW CONFIG", "key", "default_pool_size"), "value", "2")
	mustQuery(t, holder, "commit")
}

func TestReloadMovesADatabaseToItsNewServer(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		operated(cfg)
		cfg.Pooler.Databases = map[string]config.Database{"app": {DBName: "postgres"}}
	})
	file := settings(pg)
	operated(&file)
	file.Pooler.Databases = map[string]config.Database{"app": {DBName: "template1"}, "new": {DBName: "postgres"}}
	r.reloading.mu.Lock()
	r.reloading.read = func() (*config.Config, error) {
		next := file
		next.Pooler.Databases = maps.Clone(file.Pooler.Databases)
		return &next, nil
	}
	r.reloading.mu.Unlock()
	to := func(database string) string {
		return strings.Replace(r.dsn(""), "dbname=postgres", "dbname="+database, 1)
	}
	app := connect(t, to("app"))
	if got := mustQuery(t, app, "begin; select current_database()"); got != "postgres" {
		t.Error(got)
	}
	if _, err := pgconn.Connect(t.Context(), to("new")); err == nil {
		t.Error("a database is there that was not configured")
	}
	mustQuery(t, r.console(t), "RELOAD")
	if got := mustQuery(t, app, "select current_database()"); got != "postgres" {
		t.Errorf("its transaction went on in %s", got)
	}
	mustQuery(t, app, "commit")
	if got := mustQuery(t, app, "select current_database()"); got != "template1" {
		t.Errorf("its next transaction is in %s", got)
	}
	created := connect(t, to("new"))
	if got := mustQuery(t, created, "select current_database()"); got != "postgres" {
		t.Error(got)
	}
	delete(file.Pooler.Databases, "new")
	mustQuery(t, r.console(t), "RELOAD")
	mustFail(t, created, "select 1", "3D000", "database removed")
	if got := mustQuery(t, app, "select current_database()"); got != "template1" {
		t.Errorf("the database that stayed is %s", got)
	}
}

func TestSetChangesWhatCanChange(t *testing.T) {
	r := start(t, server(t), operated)
	operator, told := r.noticing(t)
	mustQuery(t, operator, "SET query_wait_timeout = 0.2")
	mustQuery(t, operator, "SET admin_users TO 'postgres, somebody'")
	if got := strings.Join(*told, "; "); got != "pooler.query_wait_timeout: 30s -> 200ms; pooler.admin_users: \"[postgres]\" -> \"[postgres, somebody]\"" {
		t.Error(got)
	}
	for sql, want := range map[string]string{"SET workers = 3": "without a restart", "SET bogus = 3": "no such setting", "SET max_client_conn = 'x'": "whole number", "SET databases = 1": "no such setting", "SET users.*.pool_size = 1": "no such setting",
		"SET max_client_conn = 0": "out of range", "SET pool_mode = yes": "is none of", "SET query_timeout = -1": "needs a unit", "SET query_timeout = 1e300": "needs a unit", "SET query_timeout = 8d": "out of range"} {
		if _, err := query(operator, sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", sql, err)
		}
	}
	holder, waiter := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, holder, "begin; select 1")
	mustFail(t, waiter, "select 1", "08P01", "query_wait_timeout")
	mustQuery(t, operator, "SET max_client_conn="+strconv.Itoa(1))
	if _, err := pgconn.Connect(t.Context(), r.dsn("")); err == nil || !strings.Contains(err.Error(), "max_client_conn") {
		t.Errorf("one client too many: %v", err)
	}
}

// TestReloadBringsAPoolThePasswordThatHasChanged has a pool whose servers go away after the user got another password.
func TestReloadBringsAPoolThePasswordThatHasChanged(t *testing.T) {
	pg, r := replicating(t, func(cfg *config.Config) {
		cfg.Pooler.Auth.Type = "scram-sha-256"
		cfg.Pooler.Users = map[string]config.User{"shop": {Password: "old"}}
	})
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "create role shop login password 'old'")
	demandSCRAM(t, pg, direct, "shop")
	dsn := func(password string) string {
		return strings.Replace(r.dsn(""), "user=postgres", "user=shop password="+password, 1)
	}
	stays := connect(t, dsn("old"))
	mustQuery(t, stays, "select 1")
	mustQuery(t, direct, "alter role shop password 'new'")
	to := *r.live.Load()
	to.Pooler.Users = map[string]config.User{"shop": {Password: "new"}}
	if _, err := r.apply(&to); err != nil {
		t.Fatal(err)
	}
	mustQuery(t, direct, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'shop'")
	eventually(t, "its servers are gone", func() bool {
		return mustQuery(t, direct, "select count(*) from pg_stat_activity where usename = 'shop'") == "0"
	})
	if got := mustQuery(t, connect(t, dsn("new")), "select 'in'"); got != "in" {
		t.Errorf("with the new password it got %q", got)
	}
	if got := mustQuery(t, stays, "select 'still'"); got != "still" {
		t.Errorf("who was in got %q", got)
	}
	if _, err := pgconn.Connect(t.Context(), dsn("old")); err == nil {
		t.Error("the old password lets in")
	}
}
