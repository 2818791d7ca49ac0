package pooler

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
	"pitr/internal/postmaster"
)

// ownPostgres is a server that a test may stop.
func ownPostgres(t *testing.T) *postgres {
	t.Helper()
	pg, err := startPostgres("fsync=off", "shared_buffers=32MB", "max_connections=100")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.stop(); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// standbyOf makes a streaming standby.
func standbyOf(t *testing.T, primary *postgres) *postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	install, err := postmaster.Find(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pooler-test-")
	if err != nil {
		t.Fatal(err)
	}
	p := &postgres{bin: install.Bin, dir: dir}
	if err := install.Own(dir); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if out, err := install.Command(ctx, "pg_basebackup", "-D", data, "-R", "-X", "stream", "-c", "fast", "-d", primary.dsn("")).CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	for range startAttempts {
		if p.port, err = freePort(); err != nil {
			t.Fatal(err)
		}
		if err = p.begin(ctx); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	direct := connect(t, primary.dsn(""))
	eventually(t, "the standby streams", func() bool {
		return mustQuery(t, direct, "select count(*) from pg_stat_replication where state = 'streaming'") == "1"
	})
	return p
}

// begin starts the server, on its port.
func (p *postgres) begin(ctx context.Context) error {
	install, err := postmaster.Find(ctx)
	if err != nil {
		return err
	}
	p.server, err = install.StartChild(ctx, postmaster.StartOptions{Dir: filepath.Join(p.dir, "data"), Port: p.port, Log: filepath.Join(p.dir, "log"),
		Settings: []string{"fsync=off", "shared_buffers=32MB", "max_connections=100"}})
	return err
}

// shut stops the server as an operator does.
func (p *postgres) shut(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := p.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
}

// onHosts makes the database postgres one of these servers.
func onHosts(db config.Database, servers ...*postgres) func(*config.Config) {
	return func(cfg *config.Config) {
		var hosts, ports []string
		for _, one := range servers {
			hosts, ports = append(hosts, "127.0.0.1"), append(ports, strconv.Itoa(one.port))
		}
		db.Host, db.Port = strings.Join(hosts, ","), strings.Join(ports, ",")
		cfg.Pooler.Databases = map[string]config.Database{"postgres": db}
		patient(cfg)
	}
}

// patient lets clients wait for longer than a server takes to start on a busy machine.
func patient(cfg *config.Config) {
	cfg.Pooler.QueryWaitTimeout, cfg.Pooler.ClientLoginTimeout = seconds(120), seconds(120)
	cfg.Pooler.HostPollInterval, cfg.Pooler.DNSMaxTTL = seconds(0.1), seconds(0.2)
	cfg.Pooler.LoadBalanceHosts = "round-robin"
}

// load is clients that write rows and remember which ones they were told of.
type load struct {
	t       *testing.T
	r       *running
	stop    chan struct{}
	clients sync.WaitGroup
	commits atomic.Int64
	errors  atomic.Int64 // of clients whose statement or transaction was on a server that went away

	mu   sync.Mutex
	told map[string]bool
	kind map[string]int
}

const loadClients = 16

func newLoad(t *testing.T, r *running) *load {
	l := &load{t: t, r: r, stop: make(chan struct{}), told: map[string]bool{}, kind: map[string]int{}}
	for n := range loadClients {
		l.clients.Go(func() { l.client(n) })
	}
	return l
}

// client writes until it is told to stop: single statements, or transactions. After an error that it may get it comes back.
func (l *load) client(n int) {
	var conn *pgconn.PgConn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		if conn == nil {
			var err error
			if conn, err = pgconn.Connect(context.Background(), l.r.dsn("")); err != nil {
				l.t.Errorf("client %d cannot log in: %v", n, err)
				return
			}
		}
		row := fmt.Sprintf("%d-%d", n, i)
		_, err := query(conn, l.statement(n, row))
		if err == nil && n%2 == 1 {
			_, err = query(conn, "insert into load values ('"+row+"b'); commit")
		}
		if err != nil {
			l.fails(n, err)
			_ = conn.Close(context.Background())
			conn = nil
			continue
		}
		l.mu.Lock()
		l.told[row] = true
		l.mu.Unlock()
		l.commits.Add(1)
	}
}

func (l *load) statement(n int, row string) string {
	insert := "insert into load values ('" + row + "')"
	if n%2 == 1 {
		return "begin; " + insert
	}
	return insert
}

// fails counts an error, which must be one that says that the server went away in the middle.
func (l *load) fails(n int, err error) {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "57P01" && pgErr.Code != "57P02" && pgErr.Code != "08006" {
		l.t.Errorf("client %d got %v", n, err)
		return
	}
	l.errors.Add(1)
	l.mu.Lock()
	l.kind[pgErr.Code]++
	l.mu.Unlock()
}

// works waits until the clients have committed so many more.
func (l *load) works(more int64) {
	l.t.Helper()
	until := l.commits.Load() + more
	eventually(l.t, "clients commit", func() bool { return l.commits.Load() >= until })
}

// check ends the load: no error but of those whose server went away, and every row that a client was told of is there.
func (l *load) check(pg *postgres) {
	l.t.Helper()
	close(l.stop)
	l.clients.Wait()
	servers := int64(l.r.Stats().Pools[0].Size)
	l.t.Logf("%d commits; %d errors of %d clients with %d servers, by code %v", l.commits.Load(), l.errors.Load(), loadClients, servers, l.kind)
	if l.errors.Load() > servers { // each server that went away had one client at most
		l.t.Errorf("%d errors, but there were only %d servers", l.errors.Load(), servers)
	}
	there := map[string]bool{}
	for row := range strings.SplitSeq(mustQuery(l.t, connect(l.t, pg.dsn("")), "select id from load"), ",") {
		there[row] = true
	}
	for row := range l.told {
		if !there[row] {
			l.t.Errorf("row %s is lost, which a client was told of", row)
		}
	}
}

func TestARestartCostsOnlyThoseWhoWereInTheMiddle(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *postgres){
		"fast shutdown": func(t *testing.T, pg *postgres) { pg.shut(t) },
		"crash": func(t *testing.T, pg *postgres) {
			if err := pg.server.Kill(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pg := ownPostgres(t)
			mustQuery(t, connect(t, pg.dsn("")), "create table load (id text)")
			r := start(t, pg, patient)
			l := newLoad(t, r)
			l.works(200)
			end(t, pg)
			refused := func() uint64 { return r.Stats().Pools[0].ConnectFailures }
			eventually(t, "the pooler is refused, and clients wait", func() bool { return refused() > 1 && r.Stats().ClientsWaiting > 0 })
			eventually(t, "Postgres is there again", func() bool { return pg.begin(t.Context()) == nil })
			l.works(200)
			l.check(pg)
		})
	}
}

func TestASwitchoverCostsOnlyThoseWhoWereInTheMiddle(t *testing.T) {
	primary := ownPostgres(t)
	mustQuery(t, connect(t, primary.dsn("")), "create table load (id text)")
	standby := standbyOf(t, primary)
	r := start(t, primary, onHosts(config.Database{TargetSessionAttrs: "primary"}, primary, standby))
	l := newLoad(t, r)
	l.works(200)
	begun := time.Now()
	primary.shut(t)
	direct := connect(t, standby.dsn(""))
	mustQuery(t, direct, "select pg_promote(false)")
	eventually(t, "the standby is promoted", func() bool { return mustQuery(t, direct, "select pg_is_in_recovery()") == "f" })
	promoted := time.Now()
	l.works(loadClients)
	t.Logf("clients commit on the new primary %v after it was promoted, %v after the old one was told to stop", time.Since(promoted).Round(time.Millisecond), time.Since(begun).Round(time.Millisecond))
	l.works(200)
	// The old one comes back as if nothing had been, which is what split-brain is made of.
	eventually(t, "the old primary is there again", func() bool { return primary.begin(t.Context()) == nil })
	old := connect(t, primary.dsn(""))
	eventually(t, "it was asked what it is", func() bool {
		return mustQuery(t, old, "select count(*) from pg_stat_activity where application_name = 'pitr host check' and state = 'idle' and query like 'select%'") != "0"
	})
	before := mustQuery(t, old, "select count(*) from load")
	l.works(200)
	if after := mustQuery(t, old, "select count(*) from load"); after != before {
		t.Errorf("the server that was left has %s rows, of %s before", after, before)
	}
	l.check(standby)
}

func TestAStandbyThatIsBehindLeavesTheRotation(t *testing.T) {
	primary := ownPostgres(t)
	on := connect(t, primary.dsn(""))
	mustQuery(t, on, "create table lagging (id int)")
	standby := standbyOf(t, primary)
	r := start(t, primary, onHosts(config.Database{TargetSessionAttrs: "prefer-standby", MaxReplicaLag: seconds(0.3)}, primary, standby))
	conn := connect(t, r.dsn(""))
	port := func() string { return mustQuery(t, conn, "select current_setting('port')") }
	if got := port(); got != strconv.Itoa(standby.port) {
		t.Fatalf("the first query went to %s, the primary is %d", got, primary.port)
	}
	replica := connect(t, standby.dsn(""))
	mustQuery(t, replica, "select pg_wal_replay_pause()")
	eventually(t, "the standby is behind for so long that the primary is used", func() bool {
		mustQuery(t, on, "insert into lagging values (1)")
		return port() == strconv.Itoa(primary.port)
	})
	eventually(t, "no connection is left on the standby", func() bool {
		return mustQuery(t, replica, "select count(*) from pg_stat_activity where application_name = 'pitr'") == "0"
	})
	mustQuery(t, replica, "select pg_wal_replay_resume()")
	eventually(t, "the standby is used again", func() bool { return port() == strconv.Itoa(standby.port) })
}

func TestAReloadMovesConnectionsToTheHostsThatFit(t *testing.T) {
	primary := ownPostgres(t)
	standby := standbyOf(t, primary)
	file := settings(primary)
	say := func(db config.Database) {
		db.LoadBalanceHosts = "disable"
		onHosts(db, standby, primary)(&file)
	}
	say(config.Database{})
	r := start(t, primary, func(cfg *config.Config) { *cfg = file })
	r.reloading.mu.Lock()
	r.reloading.read = func() (*config.Config, error) { next := file; return &next, nil }
	r.reloading.mu.Unlock()
	conn := connect(t, r.dsn(""))
	port := func() string { return mustQuery(t, conn, "select current_setting('port')") }
	if got := port(); got != strconv.Itoa(standby.port) {
		t.Errorf("the first host is passed over for %s", got)
	}
	say(config.Database{TargetSessionAttrs: "read-write"})
	if _, err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the primary is used", func() bool { return port() == strconv.Itoa(primary.port) })
}

func TestTargetSessionAttrsMeanWhatTheyMeanToLibpq(t *testing.T) {
	primary := ownPostgres(t)
	mustQuery(t, connect(t, primary.dsn("")), "create role plain login") // it takes no privilege to ask a server what it is
	standby := standbyOf(t, primary)
	for attrs, want := range map[string]*postgres{"read-write": primary, "primary": primary, "read-only": standby, "standby": standby, "prefer-standby": standby} {
		for _, servers := range [][]*postgres{{primary, standby}, {standby, primary}} {
			r := start(t, primary, onHosts(config.Database{TargetSessionAttrs: attrs}, servers...))
			if got := mustQuery(t, connect(t, r.dsn("user=plain")), "select current_setting('port')"); got != strconv.Itoa(want.port) {
				t.Errorf("%s: it went to %s, not to %d", attrs, got, want.port)
			}
			r.stop()
		}
		// postgres.dsn says the same.
		r := start(t, primary, func(cfg *config.Config) {
			patient(cfg)
			cfg.Pooler.HostPollInterval = 0 // then connections look for themselves
			cfg.Postgres.DSN = config.DSN(fmt.Sprintf("host=127.0.0.1,127.0.0.1 port=%d,%d user=postgres sslmode=disable target_session_attrs=%s", primary.port, standby.port, attrs))
		})
		if got := mustQuery(t, connect(t, r.dsn("user=plain")), "select current_setting('port')"); got != strconv.Itoa(want.port) {
			t.Errorf("%s in postgres.dsn: it went to %s, not to %d", attrs, got, want.port)
		}
		r.stop()
	}
	// With only the wrong kind there, clients wait: it may be promoted.
	r := start(t, primary, func(cfg *config.Config) {
		onHosts(config.Database{TargetSessionAttrs: "primary"}, standby)(cfg)
		cfg.Pooler.QueryWaitTimeout, cfg.Pooler.ClientLoginTimeout = seconds(0.5), seconds(5)
	})
	if err := startup(t, r, ""); err == nil || !strings.Contains(err.Error(), "query_wait_timeout") {
		t.Errorf("with a standby alone the client got %v", err)
	}
}

func TestADeadHostIsPassedOver(t *testing.T) {
	pg := server(t)
	dead := &postgres{port: closedDoor(t).port}
	for _, balance := range []string{"disable", "round-robin"} {
		r := start(t, pg, onHosts(config.Database{LoadBalanceHosts: balance}, dead, pg))
		for range 3 {
			crowd(t, 5, func(int) error {
				conn, err := pgconn.Connect(context.Background(), r.dsn(""))
				if err != nil {
					return err
				}
				defer conn.Close(context.Background())
				_, err = query(conn, "select pg_sleep(0.01)")
				return err
			})
		}
		if st := r.Stats().Pools[0]; st.ConnectFailures != 0 || st.Connects == 0 {
			t.Errorf("%s: %d connects failed of %d", balance, st.ConnectFailures, st.Connects)
		}
	}
}

func TestAServerThatTurnsReadOnlyIsNotHandedOut(t *testing.T) {
	pg := ownPostgres(t)
	r := start(t, pg, onHosts(config.Database{TargetSessionAttrs: "read-write"}, pg))
	conn, direct := connect(t, r.dsn("")), connect(t, pg.dsn(""))
	mustQuery(t, conn, "create table written (id int)")
	turn := func(to string) {
		mustQuery(t, direct, "alter system set default_transaction_read_only = "+to)
		mustQuery(t, direct, "select pg_reload_conf()")
	}
	eventually(t, "the server is asked what it is", func() bool {
		return mustQuery(t, direct, "select count(*) from pg_stat_activity where application_name = 'pitr host check'") == "1"
	})
	turn("on")
	eventually(t, "its idle connection is closed", func() bool { return r.Stats().Pools[0].Idle == 0 })
	done := make(chan error, 1)
	go func() {
		_, err := query(conn, "insert into written values (1)")
		done <- err
	}()
	eventually(t, "the client waits", func() bool { return r.Stats().ClientsWaiting == 1 })
	turn("off")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestAPrimaryThatHangsIsLeftForTheOneThatWasPromoted stops a postmaster where it stands: its backends work on, and whoever connects gets no answer.
func TestAPrimaryThatHangsIsLeftForTheOneThatWasPromoted(t *testing.T) {
	primary := ownPostgres(t)
	standby := standbyOf(t, primary)
	r := start(t, primary, func(cfg *config.Config) {
		onHosts(config.Database{TargetSessionAttrs: "primary"}, primary, standby)(cfg)
		cfg.Pooler.ServerConnectTimeout = seconds(600)
	})
	holder, other := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, holder, "begin; select 1")
	replica := connect(t, standby.dsn(""))
	eventually(t, "the standby is asked what it is", func() bool {
		return mustQuery(t, replica, "select count(*) from pg_stat_activity where application_name = 'pitr host check'") == "1"
	})
	postmaster := primary.server.Pid()
	if err := syscall.Kill(postmaster, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(postmaster, syscall.SIGCONT) })
	went := make(chan string, 1)
	go func() {
		port, err := query(other, "select current_setting('port')")
		if err != nil {
			port = err.Error()
		}
		went <- port
	}()
	eventually(t, "a connect hangs", func() bool { return r.Stats().Pools[0].Connecting == 1 })
	mustQuery(t, replica, "select pg_promote(false)")
	if got := <-went; got != strconv.Itoa(standby.port) {
		t.Errorf("the client that waited was served by %s", got)
	}
	if got := mustQuery(t, holder, "select current_setting('port')"); got != strconv.Itoa(primary.port) {
		t.Errorf("in the middle of its transaction a client is on %s", got)
	}
	mustQuery(t, holder, "commit")
	eventually(t, "the old primary's connections are closed", func() bool {
		return mustQuery(t, holder, "select current_setting('port')") == strconv.Itoa(standby.port) && r.Stats().Pools[0].Closed > 0
	})
}

func TestShowTellsOfHosts(t *testing.T) {
	pg := server(t)
	door := closedDoor(t)
	r := start(t, pg, func(cfg *config.Config) {
		operated(cfg)
		patient(cfg)
		port := strconv.Itoa(pg.port)
		cfg.Pooler.Databases = map[string]config.Database{
			"postgres": {Host: "localhost,127.0.0.1", Port: port}, "two": {Host: "127.0.0.1,127.0.0.1", Port: fmt.Sprintf("%d,%s", door.port, port), LoadBalanceHosts: "disable"}, "one": {},
		}
	})
	mustQuery(t, connect(t, r.dsn("")), "select 1")
	operator := r.console(t)
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "postgres"), "host", "localhost,127.0.0.1", "port", strconv.Itoa(pg.port), "load_balance_hosts", "round-robin")
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "two"), "host", fmt.Sprintf("127.0.0.1,127.0.0.1:%d", pg.port), "port", strconv.Itoa(door.port), "load_balance_hosts", "disable")
	expect(t, rowOf(t, operator, "SHOW DATABASES", "name", "one"), "host", "127.0.0.1", "port", strconv.Itoa(pg.port), "load_balance_hosts", "")
	expect(t, rowOf(t, operator, "SHOW SERVERS", "database", "postgres"), "port", strconv.Itoa(pg.port))
	if row := rowOf(t, operator, "SHOW DNS_HOSTS", "hostname", "localhost"); !strings.Contains(row["addrs"], "127.0.0.1") {
		t.Errorf("%v", row)
	}
}

func TestLoginsThatAskPostgresWaitForItsRestart(t *testing.T) {
	pg := ownPostgres(t)
	mustQuery(t, connect(t, pg.dsn("")), "create role late login password 'swordfish'")
	r := start(t, pg, func(cfg *config.Config) {
		asks(cfg)
		patient(cfg)
	})
	mustQuery(t, connect(t, r.dsn("user=late password=swordfish")), "select 1")
	pg.shut(t)
	came := make(chan error, 1)
	go func() {
		conn, err := pgconn.Connect(context.Background(), r.dsn("user=late password=swordfish"))
		if err == nil {
			_, err = query(conn, "select 1")
			_ = conn.Close(context.Background())
		}
		came <- err
	}()
	eventually(t, "somebody logs in", func() bool { return r.Stats().ClientsLogin == 1 })
	eventually(t, "Postgres is there again", func() bool { return pg.begin(t.Context()) == nil })
	if err := <-came; err != nil {
		t.Error(err)
	}
}

func TestAPausedDatabaseIsLeftAlone(t *testing.T) {
	pg := ownPostgres(t)
	r := start(t, pg, func(cfg *config.Config) {
		operated(cfg)
		onHosts(config.Database{TargetSessionAttrs: "primary"}, pg)(cfg)
	})
	conn, direct := connect(t, r.dsn("")), connect(t, pg.dsn(""))
	mustQuery(t, conn, "select 1")
	checks := func() string {
		return mustQuery(t, direct, "select count(*) from pg_stat_activity where application_name like 'pitr%'")
	}
	eventually(t, "the server is asked what it is", func() bool { return checks() == "2" })
	operator := r.console(t)
	mustQuery(t, operator, "PAUSE postgres")
	eventually(t, "nobody is connected", func() bool { return checks() == "0" })
	mustQuery(t, operator, "RESUME postgres")
	mustQuery(t, conn, "select 1")
	eventually(t, "the server is asked again", func() bool { return checks() == "2" })
}
