package pooler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/pooler/admin"
)

func operated(cfg *config.Config) {
	onePerPool(cfg)
	cfg.Pooler.AdminUsers, cfg.Pooler.StatsUsers = []string{"postgres"}, []string{"watcher"}
}

// console is an operator's connection.
func (r *running) console(t testing.TB) *pgconn.PgConn {
	t.Helper()
	return connect(t, strings.Replace(r.dsn(""), "dbname=postgres", "dbname="+admin.Database, 1))
}

// table returns the rows of a SHOW by their columns.
func table(t testing.TB, conn *pgconn.PgConn, show string) (rows []map[string]string) {
	t.Helper()
	results, err := conn.Exec(t.Context(), show).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", show, err)
	}
	for _, values := range results[0].Rows {
		row := map[string]string{}
		for i, value := range values {
			row[results[0].FieldDescriptions[i].Name] = string(value)
		}
		rows = append(rows, row)
	}
	return rows
}

// rowOf returns the row in which a column has a value.
func rowOf(t testing.TB, conn *pgconn.PgConn, show, column, value string) map[string]string {
	t.Helper()
	for _, row := range table(t, conn, show) {
		if row[column] == value {
			return row
		}
	}
	t.Fatalf("%s: no row has the %s %s", show, column, value)
	return nil
}

func expect(t testing.TB, row map[string]string, want ...string) {
	t.Helper()
	for i := 0; i < len(want); i += 2 {
		if row[want[i]] != want[i+1] {
			t.Errorf("%s is %q, not %q: %v", want[i], row[want[i]], want[i+1], row)
		}
	}
}

// TestWhatToolsAskOfTheConsoleIsAnswered replays what the tools send that people point at PgBouncer's console.
func TestWhatToolsAskOfTheConsoleIsAnswered(t *testing.T) {
	pg := server(t)
	r := start(t, pg, operated)
	mustQuery(t, connect(t, r.dsn("application_name=app")), "select 1")
	raw := r.console(t)
	// prometheus-community/pgbouncer_exporter (collector.go), over lib/pq: simple queries; Ping is an empty one. It reads each value as a number or a text.
	for _, sql := range []string{";", "SHOW VERSION;", "SHOW LISTS;", "SHOW CONFIG;", "SHOW DATABASES;", "SHOW POOLS;", "SHOW STATS;", "SHOW STATS_TOTALS", "SHOW CLIENTS;", "SHOW SERVERS;"} {
		if _, err := raw.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for show, columns := range map[string][]string{"SHOW LISTS": {"items"}, "SHOW STATS": {"total_query_count", "total_xact_time", "avg_wait_time"}, "SHOW POOLS": {"cl_active", "maxwait", "sv_idle"}, "SHOW DATABASES": {"pool_size", "max_connections", "paused"}} {
		for _, row := range table(t, raw, show) {
			for _, column := range columns {
				if _, err := strconv.ParseFloat(row[column], 64); err != nil {
					t.Errorf("%s: %s: %v", show, column, err)
				}
			}
		}
	}
	// What drivers and GUIs say when they have connected.
	for _, sql := range []string{"SET client_encoding TO 'UTF8'", "SET application_name = 'psql'", "SET extra_float_digits = 3", "set datestyle to 'ISO'"} {
		mustQuery(t, raw, sql)
	}
	// psql and pgx, in each way of pgx's.
	for _, name := range append(admin.Tables(), "HELP") {
		r.run(t, pg, "psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", admin.Database, "-c", "SHOW "+name)
	}
	cfg, err := pgx.ParseConfig(strings.Replace(r.dsn(""), "dbname=postgres", "dbname="+admin.Database, 1))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		cfg.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range admin.Tables() {
			rows, err := conn.Query(t.Context(), "SHOW "+name)
			if err == nil {
				_, err = pgx.CollectRows(rows, pgx.RowToMap)
			}
			if err != nil {
				t.Errorf("%s, SHOW %s: %v", mode, name, err)
			}
		}
		var items int32
		var list string
		if err := conn.QueryRow(t.Context(), "SHOW LISTS").Scan(&list, &items); err != nil || list != "databases" || items < 2 {
			t.Errorf("%s: %s %d, %v", mode, list, items, err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestShowTellsWhatThereIs(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		operated(cfg)
		cfg.Pooler.Databases = map[string]config.Database{"postgres": {PoolSize: 3, MaxDBConnections: 7, PoolMode: "transaction"}, "*": {}}
		cfg.Pooler.Users = map[string]config.User{"postgres": {MaxUserClientConnections: 50}}
		cfg.Pooler.StatsPeriod = config.Duration(100 * time.Millisecond)
	})
	app := connect(t, r.dsn("application_name=app"))
	mustQuery(t, app, "begin; select 'first words of it'")
	operator := r.console(t)
	client := rowOf(t, operator, "SHOW CLIENTS", "application_name", "app")
	server := rowOf(t, operator, "SHOW SERVERS", "link", client["ptr"])
	expect(t, client, "type", "C", "user", "postgres", "database", "postgres", "state", "active", "addr", "127.0.0.1", "local_port", strconv.Itoa(r.port), "link", server["ptr"], "tls", "")
	expect(t, server, "type", "S", "state", "active", "addr", "127.0.0.1", "port", strconv.Itoa(pg.port), "application_name", "app", "remote_pid", mustQuery(t, app, "select pg_backend_pid()"))
	if id := strconv.Itoa(int(app.PID())); client["id"] != id {
		t.Errorf("the id is %s, not %s", client["id"], id)
	}
	expect(t, rowOf(t, operator, "SHOW CLIENTS", "database", "pgbouncer"), "type", "C", "state", "active", "user", "postgres", "id", strconv.Itoa(int(operator.PID())))
	expect(t, rowOf(t, operator, "SHOW POOLS", "database", "pgbouncer"), "cl_active", "1")
	expect(t, rowOf(t, operator, "SHOW POOLS", "database", "postgres"), "user", "postgres", "cl_active", "1", "cl_waiting", "0", "sv_active", "1", "sv_idle", "0", "maxwait", "0", "pool_mode", "transaction")
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "postgres"), "host", "127.0.0.1", "port", strconv.Itoa(pg.port), "database", "postgres", "force_user", "", "pool_size", "3", "max_connections", "7",
		"current_connections", "1", "current_client_connections", "1", "paused", "0", "disabled", "0")
	expect(t, rowOf(t, operator, "SHOW USERS", "name", "postgres"), "max_user_client_connections", "50", "current_client_connections", "1", "current_connections", "1")
	expect(t, rowOf(t, operator, "SHOW LISTS", "list", "used_servers"), "items", "1")
	expect(t, rowOf(t, operator, "SHOW CONFIG", "key", "query_wait_timeout"), "value", "30", "default", "120", "changeable", "yes")
	expect(t, rowOf(t, operator, "SHOW CONFIG", "key", "workers"), "value", "2", "changeable", "no")
	expect(t, rowOf(t, operator, "SHOW STATE", "key", "paused"), "value", "no")
	mustQuery(t, app, "commit")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := app.Prepare(ctx, "p", "select 1", nil); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if result := app.ExecPrepared(ctx, "p", nil, nil, nil).Read(); result.Err != nil {
			t.Fatal(result.Err)
		}
	}
	expect(t, rowOf(t, operator, "SHOW CLIENTS", "application_name", "app"), "state", "idle", "prepared_statements", "1", "link", "")
	stats := rowOf(t, operator, "SHOW STATS", "database", "postgres")
	expect(t, stats, "total_client_parse_count", "1", "total_server_parse_count", "1", "total_bind_count", "3", "total_client_login_count", "1")
	for column, least := range map[string]int{"total_query_count": 6, "total_xact_count": 4, "total_received": 100, "total_sent": 100, "total_query_time": 1, "total_server_assignment_count": 4} {
		if n, err := strconv.Atoi(stats[column]); err != nil || n < least {
			t.Errorf("%s is %s", column, stats[column])
		}
	}
	eventually(t, "a period has an average", func() bool {
		mustQuery(t, app, "select 1; select 2")
		return rowOf(t, operator, "SHOW STATS_AVERAGES", "database", "postgres")["query_count"] != "0"
	})
}

func TestWaitsTellWhoHoldsTheServer(t *testing.T) {
	r := start(t, server(t), operated)
	holder, waiter := connect(t, r.dsn("application_name=culprit")), connect(t, r.dsn("application_name=victim"))
	mustQuery(t, holder, "begin; select   'the\n\tstatement that is to blame and that goes on and on and on and on and on'")
	answered := make(chan error, 1)
	go func() {
		_, err := query(waiter, "select 1")
		answered <- err
	}()
	operator := r.console(t)
	eventually(t, "somebody waits", func() bool { return len(table(t, operator, "SHOW WAITS")) == 2 })
	rows := table(t, operator, "SHOW WAITS")
	expect(t, rows[0], "kind", "waits", "application_name", "victim", "waits_for", "server", "user", "postgres", "pool_database", "postgres", "addr", "127.0.0.1", "transaction_us", "")
	expect(t, rows[1], "kind", "holds", "application_name", "culprit", "waits_for", "", "wait_us", "", "id", strconv.Itoa(int(holder.PID())))
	for _, number := range []string{rows[0]["wait_us"], rows[1]["transaction_us"]} {
		if n, err := strconv.Atoi(number); err != nil || n <= 0 {
			t.Errorf("a time is %q", number)
		}
	}
	if said := rows[1]["statement"]; !strings.HasPrefix(said, "begin; select 'the statement that is to blame") || len(said) > 64 {
		t.Errorf("its statement is %q", said)
	}
	expect(t, rowOf(t, operator, "SHOW POOLS", "database", "postgres"), "cl_waiting", "1", "cl_active", "1")
	expect(t, rowOf(t, operator, "SHOW CLIENTS", "application_name", "victim"), "state", "waiting")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := holder.Prepare(ctx, "named", "select 'of a named statement'", nil); err != nil {
		t.Fatal(err)
	}
	mustQuery(t, holder, "select 2")
	if result := holder.ExecPrepared(ctx, "named", nil, nil, nil).Read(); result.Err != nil {
		t.Fatal(result.Err)
	}
	expect(t, table(t, operator, "SHOW WAITS")[1], "statement", "select 'of a named statement'")
	mustQuery(t, holder, "commit")
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if rows := table(t, operator, "SHOW WAITS"); len(rows) > 0 {
		t.Errorf("nobody waits, but %v", rows)
	}
}

func mustFail(t testing.TB, conn *pgconn.PgConn, sql, code, text string) {
	t.Helper()
	_, err := query(conn, sql)
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != code || !strings.Contains(refused.Message, text) {
		t.Errorf("%s: %v, not %s %s", sql, err, code, text)
	}
}

func TestWhoHasNoRoleIsKeptOut(t *testing.T) {
	r := start(t, server(t), operated)
	for user, want := range map[string]string{"postgres": "", "watcher": "42501", "other": "42501"} {
		dsn := strings.NewReplacer("dbname=postgres", "dbname="+admin.Database, "user=postgres", "user="+user).Replace(r.dsn(""))
		conn, err := pgconn.Connect(t.Context(), dsn)
		if user == "other" {
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || refused.Code != want {
				t.Errorf("%s: %v", user, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		mustQuery(t, conn, "SHOW POOLS")
		if user == "watcher" {
			mustFail(t, conn, "PAUSE", want, "admin access needed")
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestOperatorsReachTheConsoleByOurNameToo(t *testing.T) {
	pg := server(t)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "drop role if exists third_user")
	mustQuery(t, direct, "create role third_user login")
	mustQuery(t, direct, "create database pitr")
	r := start(t, pg, operated)
	named := strings.Replace(r.dsn(""), "dbname=postgres", "dbname="+admin.Alias, 1)
	if got := mustQuery(t, connect(t, named), "SHOW VERSION"); !strings.HasPrefix(got, "PgBouncer 1.26") {
		t.Error(got)
	}
	if got := mustQuery(t, connect(t, strings.Replace(named, "user=postgres", "user=third_user", 1)), "select current_database()"); got != "pitr" {
		t.Errorf("who is no operator is in %s", got)
	}
	r.stop()
	r = start(t, pg, func(cfg *config.Config) {
		operated(cfg)
		cfg.Pooler.Databases = map[string]config.Database{"pitr": {}}
	})
	if got := mustQuery(t, connect(t, strings.Replace(r.dsn(""), "dbname=postgres", "dbname="+admin.Alias, 1)), "select current_database()"); got != "pitr" {
		t.Errorf("with a database of this name an operator is in %s", got)
	}
	r.stop()
	mustQuery(t, direct, "drop database pitr")
	mustQuery(t, direct, "drop role third_user")
}

func TestKillEndsClientsAndHoldsBackTheNext(t *testing.T) {
	r := start(t, server(t), operated)
	first, second := connect(t, r.dsn("")), connect(t, r.dsn(""))
	operator := r.console(t)
	mustFail(t, operator, "KILL_CLIENT 1", "55000", "client not found")
	mustQuery(t, operator, fmt.Sprintf("KILL_CLIENT %d", first.PID()))
	mustFail(t, first, "select 1", "57P01", "admin forced disconnect")
	mustQuery(t, second, "begin; select 1")
	mustQuery(t, operator, "KILL postgres")
	mustFail(t, second, "select 1", "57P01", "admin forced disconnect")
	mustFail(t, operator, "KILL nobody; x", "42601", "one command at a time")
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "postgres"), "paused", "1", "current_connections", "0", "current_client_connections", "0")
	logins := r.Stats().Logins
	came := make(chan *pgconn.PgConn, 1)
	go func() {
		conn, err := pgconn.Connect(context.WithoutCancel(t.Context()), r.dsn("")+" connect_timeout=60")
		if err != nil {
			t.Error(err)
		}
		came <- conn
	}()
	eventually(t, "the next one has come", func() bool { return r.Stats().Clients == 1 || r.Stats().Logins > logins })
	mustQuery(t, operator, "RESUME postgres")
	conn := <-came
	if got := mustQuery(t, conn, "select 1"); got != "1" {
		t.Error(got)
	}
	if err := conn.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestADisabledDatabaseTakesNoNewClients(t *testing.T) {
	r := start(t, server(t), operated)
	before := connect(t, r.dsn(""))
	operator := r.console(t)
	mustQuery(t, operator, "DISABLE postgres")
	if got := mustQuery(t, before, "select 1"); got != "1" {
		t.Error(got)
	}
	_, err := pgconn.Connect(t.Context(), r.dsn(""))
	if err == nil || !strings.Contains(err.Error(), `database "postgres" is disabled`) {
		t.Errorf("a new client: %v", err)
	}
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "postgres"), "disabled", "1")
	mustQuery(t, operator, "ENABLE postgres")
	connect(t, r.dsn(""))
}

func TestReconnectClosesServersOnceNobodyHasThem(t *testing.T) {
	r := start(t, server(t), operated)
	app := connect(t, r.dsn(""))
	backend := mustQuery(t, app, "select pg_backend_pid()")
	operator, waiter := r.console(t), r.console(t)
	mustQuery(t, operator, "RECONNECT")
	mustQuery(t, operator, "WAIT_CLOSE")
	next := mustQuery(t, app, "begin; select pg_backend_pid()")
	if next == backend {
		t.Error("the idle server was used again")
	}
	mustQuery(t, operator, "RECONNECT postgres")
	expect(t, rowOf(t, operator, "SHOW SERVERS", "remote_pid", next), "close_needed", "1")
	closed := make(chan error, 1)
	go func() {
		_, err := query(waiter, "WAIT_CLOSE postgres")
		closed <- err
	}()
	if got := mustQuery(t, app, "select pg_backend_pid()"); got != next {
		t.Errorf("its transaction went on with %s", got)
	}
	select {
	case err := <-closed:
		t.Errorf("WAIT_CLOSE returned while the server was lent: %v", err)
	default:
	}
	mustQuery(t, app, "commit")
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if last := mustQuery(t, app, "select pg_backend_pid()"); last == next {
		t.Error("the server was used again")
	}
}

func TestAPauseOfEverythingHoldsBackEveryDatabase(t *testing.T) {
	r := start(t, server(t), operated)
	app, other := connect(t, r.dsn("")), connect(t, strings.Replace(r.dsn(""), "dbname=postgres", "dbname=template1", 1))
	operator := r.console(t)
	mustFail(t, operator, "RESUME", "55000", "not paused")
	mustQuery(t, operator, "PAUSE")
	expect(t, rowOf(t, operator, "SHOW STATE", "key", "paused"), "value", "yes")
	mustFail(t, operator, "PAUSE", "55000", "paused already")
	done := make(chan error, 2)
	for _, conn := range []*pgconn.PgConn{app, other} {
		go func() {
			_, err := query(conn, "select 1")
			done <- err
		}()
	}
	eventually(t, "both wait", func() bool { return r.Stats().ClientsWaiting == 2 })
	expect(t, table(t, operator, "SHOW WAITS")[0], "waits_for", "resume")
	mustQuery(t, operator, "RESUME")
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAnOperatorMayThinkTwice(t *testing.T) {
	r := start(t, server(t), operated)
	app := connect(t, r.dsn(""))
	mustQuery(t, app, "begin; select 1")
	operator, other := r.console(t), r.console(t)
	paused := make(chan error, 1)
	go func() {
		_, err := query(operator, "PAUSE postgres")
		paused <- err
	}()
	eventually(t, "the pause has begun", func() bool { p, _ := r.pools.Paused("postgres"); return p })
	if err := operator.CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	var cancelled *pgconn.PgError
	if err := <-paused; !errors.As(err, &cancelled) || cancelled.Code != "57014" {
		t.Errorf("the pause that was cancelled: %v", err)
	}
	if p, _ := r.pools.Paused("postgres"); p {
		t.Error("the database is still paused")
	}
	if got := mustQuery(t, operator, "SHOW VERSION"); got == "" { // the console goes on
		t.Error("no version")
	}
	mustQuery(t, operator, fmt.Sprintf("KILL_CLIENT %d", other.PID()))
	if _, err := query(other, "SHOW VERSION"); err == nil {
		t.Error("the other console is still there")
	}
	mustQuery(t, app, "commit")
}

func TestShutdownWaitsForWhatItSays(t *testing.T) {
	for _, c := range []struct {
		command string
		goes    bool // the transaction goes on
		stays   bool // and so does the client
	}{{"SHUTDOWN", false, false}, {"SHUTDOWN WAIT_FOR_SERVERS", true, false}, {"SHUTDOWN WAIT_FOR_CLIENTS", true, true}} {
		r := start(t, server(t), operated)
		app := connect(t, r.dsn(""))
		mustQuery(t, app, "begin; select 1")
		operator := r.console(t)
		mustQuery(t, operator, c.command)
		if !c.goes {
			eventually(t, "the client is cut", func() bool { return r.Stats().Clients == 0 })
			if _, err := query(app, "select 1"); err == nil {
				t.Errorf("%s: the transaction went on", c.command)
			}
			r.stop()
			continue
		}
		eventually(t, "nobody is let in", func() bool {
			conn, err := pgconn.Connect(t.Context(), r.dsn("connect_timeout=5"))
			if err == nil {
				_ = conn.Close(t.Context())
			}
			return err != nil
		})
		if got := mustQuery(t, app, "select 2; commit"); got != "2" {
			t.Errorf("%s: %s", c.command, got)
		}
		if c.stays {
			if got := mustQuery(t, app, "select 3"); got != "3" {
				t.Errorf("%s: %s", c.command, got)
			}
			if err := app.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the client has gone", func() bool { return r.Stats().Clients == 0 })
		r.stop()
	}
}

func TestShowTellsWhoIsEncrypted(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) {
		operated(cfg)
		encrypted(t, "require")(cfg)
	})
	connect(t, strings.Replace(r.dsn("application_name=app"), "sslmode=disable", "sslmode=require", 1))
	operator := connect(t, strings.NewReplacer("dbname=postgres", "dbname="+admin.Database, "sslmode=disable", "sslmode=require").Replace(r.dsn("")))
	for _, row := range []map[string]string{rowOf(t, operator, "SHOW CLIENTS", "application_name", "app"), rowOf(t, operator, "SHOW CLIENTS", "database", admin.Database)} {
		if !strings.HasPrefix(row["tls"], "TLSv1.3/TLS_") {
			t.Errorf("tls is %q", row["tls"])
		}
	}
}

func TestAShutdownThatWaitsCanBeHastened(t *testing.T) {
	for _, hasten := range []func(r *running, operator *pgconn.PgConn){
		func(r *running, operator *pgconn.PgConn) { mustQuery(t, operator, "SHUTDOWN") },
		func(r *running, _ *pgconn.PgConn) { r.stop() }, // as SIGTERM does
	} {
		r := start(t, server(t), operated)
		app, operator := connect(t, r.dsn("")), r.console(t)
		mustQuery(t, operator, "SHUTDOWN WAIT_FOR_CLIENTS")
		if got := mustQuery(t, app, "select 1"); got != "1" {
			t.Error(got)
		}
		hasten(r, operator)
		eventually(t, "the client is told to go", func() bool { return r.Stats().Clients == 0 })
		mustFail(t, app, "select 1", "57P01", "administrator command")
		r.stop()
	}
}

// TestLookingAtClientsDisturbsNobody asks for everything again and again while more clients than are visited in one go work, come and leave.
func TestLookingAtClientsDisturbsNobody(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) {
		operated(cfg)
		cfg.Pooler.DefaultPoolSize, cfg.Pooler.Workers = 10, 2
		cfg.Pooler.QueryTimeout, cfg.Pooler.IdleTransactionTimeout = seconds(60), seconds(60)
	})
	const there = 2*visitMax + 100
	for range there {
		connect(t, r.dsn(""))
	}
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := pgconn.Connect(context.Background(), r.dsn(""))
				if err != nil {
					t.Error(err)
					return
				}
				for range 10 {
					if got, err := query(conn, "begin; select "+strconv.Itoa(n)+"; commit"); err != nil || got != strconv.Itoa(n) {
						t.Errorf("%s: %v", got, err)
					}
				}
				if err := conn.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	operator := r.console(t)
	for range 20 {
		for _, name := range admin.Tables() {
			mustQuery(t, operator, "SHOW "+name)
		}
		if n := len(table(t, operator, "SHOW CLIENTS")); n < there+1 || n > there+9 {
			t.Errorf("%d clients are shown", n)
		}
	}
	close(stop)
	clients.Wait()
}
