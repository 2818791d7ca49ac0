package pooler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/pgwire"
	"pitr/internal/postmaster"
)

func seconds(n float64) config.Duration { return config.Duration(n * float64(time.Second)) }

// lines is a log that tests read.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.buf.String(), text)
}

func startLogged(t testing.TB, pg *postgres, change func(*config.Config)) (*running, *lines) {
	t.Helper()
	log := &lines{}
	return startLogging(t, pg, change, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))), log
}

// dies reports whether what was asked for over a connection ended it with a FATAL error of this text.
func dies(t testing.TB, conn *pgconn.PgConn, sql, text string) {
	t.Helper()
	_, err := query(conn, sql)
	var failed *pgconn.PgError
	if !asPgError(err, &failed) || failed.Severity != "FATAL" || failed.Code != "08P01" || failed.Message != text {
		t.Errorf("%s: %v, not %q", sql, err, text)
	}
}

func TestClientsThatTakeTooLongAreEnded(t *testing.T) {
	for _, c := range []struct {
		name, phrase string
		change       func(*config.Pooler)
		user         func(*config.User) // the same for one user
		before, sql  string             // what it does, and how it learns of its end
		hits         func(LimitHits) uint64
	}{
		{"query_timeout", "query timeout", func(p *config.Pooler) { p.QueryTimeout = seconds(0.5) }, func(u *config.User) { u.QueryTimeout = seconds(0.5) },
			"select 1", "select pg_sleep(60)", func(h LimitHits) uint64 { return h.QueryTimeout }},
		{"transaction_timeout", "transaction timeout", func(p *config.Pooler) { p.TransactionTimeout = seconds(0.5) }, func(u *config.User) { u.TransactionTimeout = seconds(0.5) },
			"begin; select 1", "", func(h LimitHits) uint64 { return h.TransactionTimeout }},
		{"idle_transaction_timeout", "idle transaction timeout", func(p *config.Pooler) { p.IdleTransactionTimeout = seconds(0.5) }, func(u *config.User) { u.IdleTransactionTimeout = seconds(0.5) },
			"begin; select 1", "", func(h LimitHits) uint64 { return h.IdleTransactionTimeout }},
		{"idle_transaction_timeout of a lazy BEGIN", "idle transaction timeout", func(p *config.Pooler) { p.IdleTransactionTimeout = seconds(0.5) }, func(u *config.User) { u.IdleTransactionTimeout = seconds(0.5) },
			"begin", "", func(h LimitHits) uint64 { return h.IdleTransactionTimeout }},
		{"client_idle_timeout", "client_idle_timeout", func(p *config.Pooler) { p.ClientIdleTimeout = seconds(0.5) }, func(u *config.User) { u.ClientIdleTimeout = seconds(0.5) },
			"select 1", "", func(h LimitHits) uint64 { return h.ClientIdleTimeout }},
	} {
		direct := connect(t, server(t).dsn(""))
		for _, ofUser := range []bool{false, true} {
			r, log := startLogged(t, server(t), onePerPool)
			conn := connect(t, r.dsn(""))
			mustQuery(t, conn, c.before)
			without := *r.live.Load()
			with := without
			if ofUser {
				var user config.User
				c.user(&user)
				with.Pooler.Users = map[string]config.User{"postgres": user}
			} else {
				c.change(&with.Pooler)
			}
			if _, err := r.apply(&with); err != nil {
				t.Fatal(err)
			}
			sql := c.sql
			if sql == "" {
				eventually(t, c.name+" has ended it", func() bool { return r.Stats().Clients == 0 })
				sql = "select 1"
			}
			dies(t, conn, sql, c.phrase)
			if c.hits(r.Stats().Limits) != 1 {
				t.Errorf("%s: %+v", c.name, r.Stats().Limits)
			}
			if _, err := r.apply(&without); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the log tells why", func() bool { return log.has("closing because: " + c.phrase + " (age=") })
			if got := mustQuery(t, connect(t, r.dsn("")), "select 2"); got != "2" {
				t.Errorf("%s: the next client got %s", c.name, got)
			}
			eventually(t, "Postgres has given the query up", func() bool {
				return mustQuery(t, direct, "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'") == "0"
			})
			r.stop()
		}
	}
}

func TestEachTimeoutMeansOneKindOfWaiting(t *testing.T) {
	now := time.Now()
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	all := &timeouts{query: 10 * time.Second, transaction: 100 * time.Second, idleTransaction: 20 * time.Second, idle: 30 * time.Second}
	var never time.Time
	for _, c := range []struct {
		what string
		doing
		want *pgwire.Failure
	}{
		{"a short query", doing{false, true, true, ago(9), ago(9), ago(9)}, nil},
		{"a long query", doing{false, true, true, ago(11), ago(11), ago(11)}, errQueryTimeout},
		{"a short query late in a transaction", doing{false, true, true, ago(1), ago(99), ago(1)}, nil},
		{"a transaction of short queries that takes too long", doing{false, true, true, ago(1), ago(101), ago(1)}, errTransactionTimeout},
		{"one that idles for a moment", doing{false, true, false, never, ago(50), ago(19)}, nil},
		{"one that idles for long", doing{false, true, false, never, ago(50), ago(21)}, errIdleTransactionTimeout},
		{"a BEGIN that no server knows of", doing{false, false, false, never, never, ago(21)}, errIdleTransactionTimeout},
		{"an idle client", doing{true, false, false, never, never, ago(29)}, nil},
		{"one that is idle for long", doing{true, false, false, never, never, ago(31)}, errIdleTimeout},
		{"one that is idle for long and has a server, in session mode", doing{true, true, false, never, never, ago(1000)}, nil},
		{"one whose times were never noted", doing{true, false, false, never, never, never}, nil},
	} {
		if got := all.verdict(c.doing, now); got != c.want {
			t.Errorf("%s: %v, not %v", c.what, got, c.want)
		}
		if got := (&timeouts{}).verdict(c.doing, now); got != nil {
			t.Errorf("%s, without timeouts: %v", c.what, got)
		}
	}
}

func TestAClientThatWaitsIsToldSo(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.QueryWaitNotify = seconds(0.2)
	})
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 10)
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { told <- n.Severity + " " + n.Message }
	waiter, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	holder := connect(t, r.dsn(""))
	mustQuery(t, holder, "begin; select 1")
	answered := make(chan error, 1)
	go func() {
		_, err := query(waiter, "select 1")
		answered <- err
	}()
	if got := <-told; got != "NOTICE No server connection available in postgres backend, client being queued" {
		t.Error(got)
	}
	mustQuery(t, holder, "commit")
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := waiter.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if len(told) > 0 {
		t.Errorf("it was told %d times more", len(told))
	}
}

func TestClientsOfADatabaseOrAUserAreBounded(t *testing.T) {
	for _, c := range []struct {
		phrase string
		change func(*config.Pooler)
	}{
		{"max_db_client_connections", func(p *config.Pooler) { p.MaxDBClientConnections = 2 }},
		{"max_db_client_connections", func(p *config.Pooler) {
			p.Databases = map[string]config.Database{"postgres": {MaxDBClientConnections: 2}}
		}},
		{"max_user_client_connections", func(p *config.Pooler) { p.MaxUserClientConnections = 2 }},
		{"max_user_client_connections", func(p *config.Pooler) {
			p.MaxUserClientConnections, p.Users = 1, map[string]config.User{"postgres": {MaxUserClientConnections: 2}}
		}},
	} {
		r := start(t, server(t), func(cfg *config.Config) { c.change(&cfg.Pooler) })
		first := connect(t, r.dsn(""))
		connect(t, r.dsn(""))
		if _, err := pgconn.Connect(t.Context(), r.dsn("")); err == nil || !strings.Contains(err.Error(), "client connections exceeded ("+c.phrase+") (SQLSTATE 53300)") {
			t.Errorf("the third: %v", err)
		}
		if err := first.Close(t.Context()); err != nil {
			t.Error(err)
		}
		eventually(t, "the first has left", func() bool { return r.Stats().Clients == 1 })
		connect(t, r.dsn(""))
		if h := r.Stats().Limits; h.MaxDBClientConnections+h.MaxUserClientConnections != 1 {
			t.Errorf("%s: %+v", c.phrase, h)
		}
		r.stop()
	}
}

func TestServersOfADatabaseAreBoundedOverItsUsers(t *testing.T) {
	pg := server(t)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "drop role if exists second_user; create role second_user login superuser")
	r, log := startLogged(t, pg, func(cfg *config.Config) { cfg.Pooler.MaxDBConnections = 1 })
	one, two := connect(t, r.dsn("")), connect(t, strings.Replace(r.dsn(""), "user=postgres", "user=second_user", 1))
	for range 3 {
		for _, conn := range []*pgconn.PgConn{one, two} {
			mustQuery(t, conn, "select 1")
			servers := 0
			for _, one := range r.Stats().Pools {
				servers += one.Active + one.Idle + one.Cleaning + one.Connecting
			}
			if servers > 1 {
				t.Errorf("%d servers", servers)
			}
		}
	}
	mustQuery(t, one, "begin; select 1")
	answered := make(chan error, 1)
	go func() {
		_, err := query(two, "select 1")
		answered <- err
	}()
	eventually(t, "the other user waits", func() bool { return r.Stats().ClientsWaiting == 1 })
	mustQuery(t, one, "commit")
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if !log.has("closing because: evicted for max_db_connections (age=") || r.Stats().Limits.MaxDBConnections == 0 {
		t.Error("nobody was evicted")
	}
	r.stop()
	mustQuery(t, direct, "drop role second_user")
}

func TestReserveAndMinimumOfARealPool(t *testing.T) {
	r, log := startLogged(t, server(t), func(cfg *config.Config) {
		cfg.Pooler.DefaultPoolSize, cfg.Pooler.MinPoolSize, cfg.Pooler.ReservePoolSize, cfg.Pooler.ReservePoolTimeout = 2, 2, 1, seconds(0.2)
	})
	conns := []*pgconn.PgConn{connect(t, r.dsn("")), connect(t, r.dsn("")), connect(t, r.dsn(""))}
	eventually(t, "the minimum is there", func() bool { return r.Stats().Pools[0].Idle == 2 })
	for _, conn := range conns {
		mustQuery(t, conn, "begin; select 1")
	}
	if st := r.Stats().Pools[0]; st.Active != 3 || !log.has("taking connection from reserve_pool") {
		t.Errorf("%+v", st)
	}
}

func TestServersAreCheckedAndResetByTheQueriesThatAreConfigured(t *testing.T) {
	pg := server(t)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "drop table if exists queries_seen; create table queries_seen (what text)")
	count := func(what string) string {
		t.Helper()
		return mustQuery(t, direct, "select count(*) from queries_seen where what = '"+what+"'")
	}
	for what, change := range map[string]func(*config.Pooler){
		"check": func(p *config.Pooler) {
			p.ServerCheckQuery = "insert into queries_seen values ('check') returning what"
		},
		"reset": func(p *config.Pooler) {
			p.ServerResetQuery, p.ServerResetQueryAlways = "insert into queries_seen values ('reset')", "on"
		},
	} {
		r := start(t, pg, func(cfg *config.Config) {
			onePerPool(cfg)
			change(&cfg.Pooler)
		})
		conn := connect(t, r.dsn(""))
		free := func() bool { st := r.Stats().Pools[0]; return st.Idle+st.Used == 1 }
		eventually(t, "the server that has welcomed it is free", free)
		before, err := strconv.Atoi(count(what))
		if err != nil {
			t.Fatal(err)
		}
		backend := mustQuery(t, conn, "select pg_backend_pid()")
		for range 3 {
			eventually(t, "the server is free", free)
			if got := mustQuery(t, conn, "select pg_backend_pid()"); got != backend {
				t.Errorf("%s: another server: %s", what, got)
			}
		}
		eventually(t, "the server is free", free)
		if got := count(what); got != strconv.Itoa(before+4) {
			t.Errorf("%s: it was sent %s times, and %d before", what, got, before)
		}
		r.stop()
	}
	// A server that fails its check is closed, and its client gets a new one.
	r, log := startLogged(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.ServerCheckQuery = "select 1/0"
	})
	conn := connect(t, r.dsn(""))
	if mustQuery(t, conn, "select pg_backend_pid()") == mustQuery(t, conn, "select pg_backend_pid()") {
		t.Error("a server that failed its check was used again")
	}
	if !log.has("division by zero") {
		t.Error("the log does not say why")
	}
	mustQuery(t, direct, "drop table queries_seen")
}

func TestTooManyConnectionsMakeClientsWait(t *testing.T) {
	pg, err := startPostgres("max_connections=4", "superuser_reserved_connections=0", "max_wal_senders=0", "fsync=off")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.stop(); err != nil {
			t.Error(err)
		}
	})
	var direct []*pgconn.PgConn
	for range 4 {
		direct = append(direct, connect(t, pg.dsn("")))
	}
	r := start(t, pg, nil)
	came := make(chan error, 1)
	go func() {
		conn, err := pgconn.Connect(context.WithoutCancel(t.Context()), r.dsn(""))
		if err == nil {
			_, err = query(conn, "select 1")
			_ = conn.Close(context.Background())
		}
		came <- err
	}()
	eventually(t, "the server has refused some", func() bool { st := r.Stats(); return len(st.Pools) > 0 && st.Pools[0].ConnectFailures > 2 })
	if st := r.Stats(); st.ClientsWaiting != 1 || !strings.Contains(st.Pools[0].LastConnectErr, "53300") {
		t.Errorf("%+v", st)
	}
	for _, conn := range direct[:2] {
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := <-came; err != nil {
		t.Error(err)
	}
}

// TestAServerThatStartsMakesClientsWait lets a standby recover without letting anybody in, and then promotes it.
func TestAServerThatStartsMakesClientsWait(t *testing.T) {
	pg, err := startPostgres("fsync=off")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	install, err := postmaster.Find(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data := pg.dir + "/data"
	if err := errors.Join(pg.server.Stop(ctx, postmaster.Fast), os.WriteFile(data+"/standby.signal", nil, 0o600), install.Own(data)); err != nil {
		t.Fatal(err)
	}
	standby := postmaster.StartOptions{Dir: data, Port: pg.port, Log: pg.dir + "/log", Settings: []string{"fsync=off", "hot_standby=off"}}
	if pg.server, err = install.StartDetached(ctx, standby); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.stop(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "Postgres says that it starts", func() bool {
		conn, err := pgconn.Connect(ctx, pg.dsn(""))
		if err == nil {
			t.Fatal(conn.Close(ctx), "it lets somebody in")
		}
		return strings.Contains(err.Error(), "57P03")
	})
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.ClientLoginTimeout, cfg.Pooler.QueryWaitTimeout = seconds(120), seconds(120)
	})
	came := make(chan error, 1)
	go func() {
		conn, err := pgconn.Connect(context.WithoutCancel(ctx), r.dsn(""))
		if err == nil {
			_, err = query(conn, "select 1")
			_ = conn.Close(context.Background())
		}
		came <- err
	}()
	eventually(t, "the pooler has been refused again and again", func() bool { st := r.Stats(); return len(st.Pools) > 0 && st.Pools[0].ConnectFailures > 2 })
	if st := r.Stats(); st.ClientsWaiting != 1 || !strings.Contains(st.Pools[0].LastConnectErr, "57P03") {
		t.Errorf("%+v", st)
	}
	if out, err := install.Command(ctx, "pg_ctl", "promote", "-D", data).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := <-came; err != nil {
		t.Error(err)
	}
}

func TestACancelRequestIsGivenUpInTime(t *testing.T) {
	pg, err := startPostgres("fsync=off")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.CancelWaitTimeout = seconds(0.3) })
	conn := connect(t, r.dsn(""))
	asleep := make(chan error, 1)
	go func() {
		_, err := query(conn, "select pg_sleep(60)")
		asleep <- err
	}()
	eventually(t, "the query runs", func() bool { return r.Stats().ClientsActive == 1 })
	pid, err := strconv.Atoi(strings.SplitN(readFile(t, pg.dir+"/data/postmaster.pid"), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil { // it takes connections, and answers none
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cancelled := conn.CancelRequest(ctx)
	eventually(t, "the cancel is given up", func() bool { return r.Stats().CancelRequests == 1 })
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Errorf("the one who cancels has waited: %v", cancelled)
	}
	r.stop()
	<-asleep
	if err := pg.stop(); err != nil {
		t.Error(err)
	}
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestTheLogTellsWhyAClientWent(t *testing.T) {
	r, log := startLogged(t, server(t), operated)
	polite, rude := connect(t, r.dsn("")), connect(t, r.dsn(""))
	if err := polite.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := rude.Conn().Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "both have gone", func() bool { return r.Stats().Clients == 0 })
	for _, phrase := range []string{"client close request", "client unexpected eof"} {
		eventually(t, phrase, func() bool { return log.has("closing because: " + phrase + " (age=0s)") })
	}
	mustQuery(t, r.console(t), fmt.Sprintf("RECONNECT"))
	if !log.has("closing because: reconnect (age=") {
		t.Error("the server's end is not told")
	}
}
