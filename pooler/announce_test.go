package pooler

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

func TestClientsAddressIsInItsApplicationName(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) { cfg.Pooler.ApplicationNameAddHost = "on" })
	for range 2 {
		one, other := connect(t, r.dsn("application_name=shop")), connect(t, r.dsn(""))
		for range 2 { // they share servers
			for conn, begins := range map[*pgconn.PgConn]string{one: "shop - ", other: "app - "} {
				want := begins + conn.Conn().LocalAddr().String()
				if got := mustQuery(t, conn, "show application_name"); got != want {
					t.Errorf("the server knows it as %q, not %q", got, want)
				}
				if got := conn.ParameterStatus("application_name"); got != want {
					t.Errorf("it was told that it is %q, not %q", got, want)
				}
			}
		}
		mustQuery(t, one, "set application_name = mine")
		if got := mustQuery(t, one, "show application_name"); got != "mine" {
			t.Errorf("after SET it is %q", got)
		}
	}
}

func TestSimpleProtocolIsTurnedDownWhereItIsDisabled(t *testing.T) {
	for _, mode := range []string{"session", "transaction", "statement"} {
		r := start(t, server(t), func(cfg *config.Config) { cfg.Pooler.DisablePQExec, cfg.Pooler.PoolMode = "on", mode })
		conn := connect(t, r.dsn(""))
		if result := conn.ExecParams(t.Context(), "select 1", nil, nil, nil, nil).Read(); result.Err != nil {
			t.Errorf("%s: the extended protocol: %v", mode, result.Err)
		}
		mustFail(t, conn, "select 1; drop table users", "08P01", "PQexec disallowed")
		if _, err := query(conn, "select 1"); err == nil {
			t.Errorf("%s: the client goes on", mode)
		}
	}
}

func TestWhoHasLoggedInIsToldTheMessageAndLogged(t *testing.T) {
	log := &lines{}
	r := startLogging(t, server(t), func(cfg *config.Config) {
		cfg.Pooler.LoginNotifyMessage, cfg.Pooler.LogConnections, cfg.Pooler.LogDisconnections, cfg.Pooler.LogPoolerErrors = "maintenance at nine", "on", "on", "off"
		cfg.Pooler.Databases = map[string]config.Database{"postgres": {}}
	}, slog.New(slog.NewTextHandler(log, nil)))
	cfg, err := pgconn.ParseConfig(r.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	var notices []string
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { notices = append(notices, n.Message) }
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(notices) != 1 || notices[0] != "maintenance at nine" {
		t.Errorf("it was told %q", notices)
	}
	eventually(t, "the goodbye is logged", func() bool { return log.has(`msg="closing because: client close request`) })
	if _, err := pgconn.Connect(t.Context(), strings.Replace(r.dsn(""), "dbname=postgres", "dbname=nowhere", 1)); err == nil {
		t.Error("a database that is not configured is there")
	}
	if !log.has(`msg="login succeeded" database=postgres user=postgres`) || log.has("nowhere") {
		t.Error("the log lacks the login, or has what was refused")
	}
}

func TestServersAreLentInTurnWhereThatIsWanted(t *testing.T) {
	lent := func(roundRobin string) int {
		r := start(t, server(t), func(cfg *config.Config) { cfg.Pooler.ServerRoundRobin, cfg.Pooler.DefaultPoolSize = roundRobin, 3 })
		conns := []*pgconn.PgConn{connect(t, r.dsn("")), connect(t, r.dsn("")), connect(t, r.dsn(""))}
		for _, conn := range conns {
			mustQuery(t, conn, "begin; select 1")
		}
		for _, conn := range conns {
			mustQuery(t, conn, "commit")
		}
		seen := map[string]bool{}
		for range 9 {
			seen[mustQuery(t, conns[0], "select pg_backend_pid()")] = true
		}
		return len(seen)
	}
	if n := lent("off"); n != 1 {
		t.Errorf("one client has been lent %d servers", n)
	}
	if n := lent("on"); n != 3 {
		t.Errorf("one client has been lent %d servers in turn, and there are 3", n)
	}
}

func TestSessionsAreEndedForAServerThatIsToBeClosedWhereThatIsWanted(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) {
		operated(cfg)
		cfg.Pooler.PoolMode, cfg.Pooler.ServerFastClose, cfg.Pooler.DefaultPoolSize = "session", "on", 2
	})
	idle, busy := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, idle, "select 1")
	mustQuery(t, busy, "begin; select 1")
	mustQuery(t, r.console(t), "RECONNECT")
	ended := func(conn *pgconn.PgConn) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := conn.WaitForNotification(ctx)
		if err == nil || !strings.Contains(err.Error(), "server_fast_close") {
			t.Errorf("it ended with %v", err)
		}
	}
	ended(idle)
	if got := mustQuery(t, busy, "select 2"); got != "2" {
		t.Errorf("within its transaction the other got %q", got)
	}
	mustQuery(t, busy, "commit")
	ended(busy)
}

func TestOptionsOfSocketsAreThoseOfTheSettings(t *testing.T) {
	cfg := config.Pooler{TCPKeepalive: "on", TCPKeepidle: config.Duration(7 * time.Second), TCPKeepintvl: config.Duration(1500 * time.Millisecond), TCPKeepcnt: 5,
		TCPUserTimeout: config.Duration(12345 * time.Millisecond)}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := tune(fd, cfg); err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct{ level, option, want int }{
		{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 7}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 2},
		{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 5}, {syscall.IPPROTO_TCP, tcpUserTimeout, 12345},
	} {
		if got, err := syscall.GetsockoptInt(fd, o.level, o.option); err != nil || got != o.want {
			t.Errorf("option %d is %d, not %d; %v", o.option, got, o.want, err)
		}
	}
}

func TestPoolerOnAUnixSocketAloneListensUnderItsPort(t *testing.T) {
	dir := t.TempDir()
	cfg := settings(server(t))
	cfg.Pooler.Listen, cfg.Pooler.UnixSocketDir, cfg.Pooler.UnixSocketMode, cfg.Pooler.ListenPort = nil, dir, "0770", 7654
	p, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	conn := connect(t, "host="+dir+" port=7654 user=postgres dbname=postgres")
	if got := mustQuery(t, conn, "select 'here'"); got != "here" {
		t.Errorf("got %q", got)
	}
	if info, err := os.Stat(filepath.Join(dir, ".s.PGSQL.7654")); err != nil || info.Mode().Perm() != 0o770 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNewServersAreGreetedAsTheirDatabaseSays(t *testing.T) {
	r := start(t, server(t), func(cfg *config.Config) {
		cfg.Pooler.Databases = map[string]config.Database{
			"postgres": {ConnectQuery: "set application_name = 'greeted'; select set_config('app.greeted', 'yes', false)", TimeZone: "Asia/Tokyo", DateStyle: "German", ClientEncoding: "LATIN1"},
			"broken":   {DBName: "postgres", ConnectQuery: "select no_such_thing"},
		}
	})
	conn := connect(t, r.dsn(""))
	if got := mustQuery(t, conn, "show timezone") + mustQuery(t, conn, "show datestyle") + mustQuery(t, conn, "show client_encoding") + mustQuery(t, conn, "select current_setting('app.greeted')"); got != "Asia/TokyoGerman, DMYLATIN1yes" {
		t.Errorf("the servers were told %s", got)
	}
	if got := conn.ParameterStatus("TimeZone"); got != "Asia/Tokyo" {
		t.Errorf("the client was told that its zone is %s", got)
	}
	other := connect(t, r.dsn("timezone=UTC"))
	if got := mustQuery(t, other, "show timezone"); got != "UTC" {
		t.Errorf("a client that asks for UTC has %s", got)
	}
	if _, err := pgconn.Connect(t.Context(), strings.Replace(r.dsn(""), "dbname=postgres", "dbname=broken", 1)); err == nil || !strings.Contains(err.Error(), "no_such_thing") {
		t.Errorf("a connect_query that fails: %v", err)
	}
}
