package pooler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
)

func TestServerKilledMidQueryHurtsOnlyItsClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	victim, other := connect(t, r.dsn("application_name=victim")), connect(t, r.dsn(""))
	mustQuery(t, other, "begin; select 1")
	failed := make(chan error, 1)
	go func() {
		_, err := query(victim, "select pg_sleep(60)")
		failed <- err
	}()
	direct := connect(t, pg.dsn(""))
	eventually(t, "the victim's server is terminated", func() bool {
		return mustQuery(t, direct, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'victim' and state = 'active'") == "t"
	})
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "57P01") {
		t.Errorf("the victim got %v", err)
	}
	if got := mustQuery(t, other, "select 1") + mustQuery(t, other, "commit"); got != "1" {
		t.Errorf("the other client got %q", got)
	}
}

func TestServerKilledWhileIdleHurtsNobody(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	conn := connect(t, r.dsn(""))
	direct := connect(t, pg.dsn(""))
	for range 5 {
		backend := mustQuery(t, conn, "select pg_backend_pid()")
		eventually(t, "the server is idle", func() bool { return r.Stats().Pools[0].Idle == 1 })
		mustQuery(t, direct, "select pg_terminate_backend("+backend+", 5000)")
		eventually(t, "the pool has noticed", func() bool { return r.Stats().Pools[0].Idle == 0 })
		if after := mustQuery(t, conn, "select pg_backend_pid()"); after == backend {
			t.Error("the server that was terminated answers")
		}
	}
}

func TestClientThatVanishesTakesItsServerAlong(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "create table if not exists vanished (x text)")
	backend := func() string { return mustQuery(t, connect(t, r.dsn("")), "select pg_backend_pid()") }
	vanish := func(where string, last byte, messages ...pgproto3.FrontendMessage) {
		t.Helper()
		w := raw(t, r)
		before := backend()
		w.send(messages...)
		if last != 0 {
			w.until(last)
		}
		eventually(t, where+": the server works for the client", func() bool { return r.Stats().Pools[0].Active == 1 })
		w.conn.Close()
		if after := backend(); after == before {
			t.Errorf("%s: its server was used again", where)
		}
	}
	vanish("in a transaction", 'Z', &pgQuery{String: "begin; insert into vanished values ('tx')"})
	vanish("in a COPY", 'G', &pgQuery{String: "copy vanished from stdin"})
	vanish("in a query", 0, &pgQuery{String: "select pg_sleep(0.2)"})
	vanish("between Bind and Sync", '2', parse("", "insert into vanished values ('bind')"), bind("", ""), execute, &pgproto3.Flush{})
	vanish("in a rowset", 'D', &pgQuery{String: "select repeat('x', 1000) from generate_series(1, 1000000)"})

	w := raw(t, r)
	before := backend()
	half := encode(&pgQuery{String: "select '" + strings.Repeat("half a message", 1000) + "'"}) // a short one waits until it is whole
	if _, err := w.conn.Write(half[:12]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "half a query has a server", func() bool { return r.Stats().Pools[0].Active == 1 })
	w.conn.Close()
	if after := backend(); after == before {
		t.Error("in a message: its server was used again")
	}
	if got := mustQuery(t, direct, "select count(*) from vanished"); got != "0" {
		t.Errorf("%s rows of vanished clients were kept", got)
	}
}

func TestQueryWaitTimeoutEndsTheClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.QueryWaitTimeout = config.Duration(200 * time.Millisecond)
	})
	holder, waiter := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, holder, "begin; select 1")
	begun := time.Now()
	_, err := query(waiter, "select 1")
	var pgErr *pgconn.PgError
	if !asPgError(err, &pgErr) || pgErr.Message != "query_wait_timeout" || pgErr.Severity != "FATAL" || pgErr.Code != "08P01" {
		t.Errorf("the client that waits got %v", err)
	}
	if took := time.Since(begun); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	mustQuery(t, holder, "commit")
	if got := r.Stats(); got.Limits.QueryWaitTimeout != 1 || got.ClientsWaiting != 0 {
		t.Errorf("the statistics say %+v", got.Limits)
	}
}

func asPgError(err error, to **pgconn.PgError) bool {
	for err != nil {
		if pgErr, ok := err.(*pgconn.PgError); ok {
			*to = pgErr
			return true
		}
		switch wrapped := err.(type) {
		case interface{ Unwrap() error }:
			err = wrapped.Unwrap()
		case interface{ Unwrap() []error }:
			err = wrapped.Unwrap()[0]
		default:
			return false
		}
	}
	return false
}

func TestMaxClientConnRefusesOneMore(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.MaxClientConn = 3 })
	first := connect(t, r.dsn(""))
	connect(t, r.dsn(""))
	connect(t, r.dsn(""))
	if err := startup(t, r, ""); err == nil || !strings.Contains(err.Error(), "53300") {
		t.Errorf("the fourth client got %v", err)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is room again", func() bool { return startup(t, r, "") == nil })
	if hits := r.Stats().Limits.MaxClientConn; hits == 0 {
		t.Error("the statistics do not count the limit")
	}
}

func TestCancelHitsOnlyItsVictim(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.DefaultPoolSize = 2 })
	victim, other := connect(t, r.dsn("")), connect(t, r.dsn(""))
	mustQuery(t, victim, "select 1")
	direct := connect(t, pg.dsn(""))
	runs := func(sql string) { // in its backend, which ignores a cancel that comes earlier
		t.Helper()
		eventually(t, sql+" runs", func() bool {
			return mustQuery(t, direct, "select count(*) from pg_stat_activity where state = 'active' and query = '"+sql+"'") == "1"
		})
	}
	results := make(chan error, 2)
	go func() { _, err := query(victim, "select pg_sleep(60)"); results <- err }()
	runs("select pg_sleep(60)")
	done := make(chan error, 1)
	go func() { _, err := query(other, "select pg_sleep(1)"); done <- err }()
	runs("select pg_sleep(1)")
	if err := victim.CancelRequest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-results; err == nil || !strings.Contains(err.Error(), "57014") {
		t.Errorf("the victim got %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("the other client got %v", err)
	}
	wrong := raw(t, r)
	wrong.secret[0] ^= 1
	go func() { _, err := query(victim, "select pg_sleep(2)"); results <- err }()
	runs("select pg_sleep(2)")
	guess := dial(t, r)
	guess.send(&pgproto3.CancelRequest{ProcessID: victim.PID(), SecretKey: wrong.secret})
	guess.rest()
	if err := <-results; err != nil {
		t.Errorf("a cancel with a wrong key hit: %v", err)
	}
}

// TestLateCancelsNeverHitTheNextClient fires cancels at the moment when queries end and their server goes to somebody else.
func TestLateCancelsNeverHitTheNextClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	victim := connect(t, r.dsn(""))
	deadline := time.Now().Add(2 * time.Second)
	crowd(t, 6, func(n int) error {
		ctx := context.Background()
		if n == 0 {
			for time.Now().Before(deadline) {
				if err := victim.CancelRequest(ctx); err != nil {
					return fmt.Errorf("cancel: %w", err)
				}
			}
			return nil
		}
		conn := victim
		if n > 1 {
			var err error
			if conn, err = pgconn.Connect(ctx, r.dsn("")); err != nil {
				return err
			}
			defer conn.Close(ctx)
		}
		for time.Now().Before(deadline) {
			if _, err := query(conn, "select 1"); err != nil && n > 1 {
				return fmt.Errorf("an innocent client got: %w", err)
			}
		}
		return nil
	})
	if sent := r.Stats().CancelRequests; sent == 0 {
		t.Error("no cancel was passed on: the test shows nothing")
	}
}

func TestDrainLetsTransactionsEnd(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		r := start(t, pg, inMode(mode))
		idle, working := raw(t, r), connect(t, r.dsn(""))
		idle.send(&pgQuery{String: "select 1"})
		idle.until('Z')
		mustQuery(t, working, "create table if not exists drained (x int); truncate drained")
		mustQuery(t, working, "begin; insert into drained values (1)")
		stopped := make(chan struct{})
		go func() { r.stop(); close(stopped) }()
		if got := idle.until('E'); !strings.Contains(got, "57P01") {
			t.Errorf("%s mode: the idle client got %s", mode, got)
		}
		idle.rest()
		if _, err := net.Dial("tcp", r.Addr().String()); err == nil {
			t.Errorf("%s mode: a new client was accepted", mode)
		}
		mustQuery(t, working, "insert into drained values (2)")
		mustQuery(t, working, "commit")
		<-stopped
		if got := mustQuery(t, connect(t, pg.dsn("")), "select count(*) from drained"); got != "2" {
			t.Errorf("%s mode: %s rows were committed", mode, got)
		}
	}
}

func TestDrainCutsWhatDoesNotEnd(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.DrainTimeout = config.Duration(300 * time.Millisecond) })
	open, deaf, half := raw(t, r), raw(t, r), dial(t, r)
	open.send(&pgQuery{String: "begin; select 1"})
	open.until('Z')
	deaf.send(&pgQuery{String: "select repeat('x', 1000) from generate_series(1, 1000000)"})
	eventually(t, "both have a server", func() bool { return r.Stats().ClientsActive == 2 })
	if _, err := half.conn.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	r.stop()
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	open.rest()
}

func TestUnreachableServerIsToldAtOnceAndRetried(t *testing.T) {
	pg := server(t)
	door := closedDoor(t)
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Postgres.DSN = config.DSN(fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=disable", door.port))
	})
	for range 3 {
		if err := startup(t, r, ""); err == nil || !strings.Contains(err.Error(), "08001") {
			t.Errorf("the client got %v", err)
		}
	}
	if err := r.Ready(t.Context()); err == nil {
		t.Error("Ready says yes")
	}
	door.open(t, pg.port)
	eventually(t, "the server is found again", func() bool { return startup(t, r, "") == nil })
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("Ready says %v", err)
	}
	if err := startup(t, r, "dbname=nowhere"); err == nil || !strings.Contains(err.Error(), "3D000") {
		t.Errorf("the client got %v", err)
	}
}

// door is a port that is taken, so that nobody else can get it, and where nobody listens until it is opened.
type door struct{ socket, port int }

func closedDoor(t *testing.T) *door {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	return &door{socket, address.(*syscall.SockaddrInet4).Port}
}

// open makes the port lead to another.
func (d *door) open(t *testing.T, to int) {
	t.Helper()
	if err := syscall.Listen(d.socket, 16); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(d.socket), "door")
	listener, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
			if err != nil {
				near.Close()
				return
			}
			go func() { _, _ = io.Copy(far, near); far.Close() }()
			go func() { _, _ = io.Copy(near, far); near.Close() }()
		}
	}()
}

func TestHugeRowsNeedLittleMemory(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	w := raw(t, r)
	huge := encode(&pgproto3.Parse{Query: "select length($1)"}, &pgproto3.Bind{Parameters: [][]byte{bytes.Repeat([]byte{'y'}, 64<<20)}},
		execute, syncNow)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w.send(&pgQuery{String: "select repeat('x', 64 * 1024 * 1024)"})
	if kind, _, err := w.next(); kind != 'T' || err != nil {
		t.Fatal(kind, err)
	}
	if n, err := io.CopyN(io.Discard, w.conn, 5+2+4+64<<20); err != nil {
		t.Fatal(n, err)
	}
	w.until('Z')
	if _, err := w.conn.Write(huge); err != nil {
		t.Fatal(err)
	}
	if got := w.until('Z'); !strings.Contains(got, "67108864") {
		t.Errorf("the length of the parameter came back as %q", got)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
		t.Errorf("%d bytes were allocated to pass on %d", grown, 2*64<<20)
	}
}

func TestBytesOneAtATime(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		r := start(t, pg, inMode(mode))
		w := dial(t, r)
		all := encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres", "application_name": "slow"}},
			&pgQuery{String: "select 'simple'"},
			parse("s1", "select 'prepared' || $1::text"), &pgproto3.Describe{ObjectType: 'S', Name: "s1"},
			&pgproto3.Bind{PreparedStatement: "s1", Parameters: [][]byte{[]byte("!")}}, execute, &pgproto3.Close{ObjectType: 'S', Name: "s1"}, syncNow,
			&pgQuery{String: "select 'last'"}, &pgproto3.Terminate{})
		go func() {
			for i := range all {
				if _, err := w.conn.Write(all[i : i+1]); err != nil {
					return
				}
			}
		}()
		got := w.rest()
		for _, want := range []string{"simple", "prepared!", "last"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s mode: %q is missing in %q", mode, want, got)
			}
		}
	}
}

// TestBothDirectionsMoveAtOnce sends far more than any buffer holds before it reads an answer of the same size.
func TestBothDirectionsMoveAtOnce(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	w := raw(t, r)
	const queries = 20000
	go func() {
		one := encode(&pgQuery{String: "select '" + strings.Repeat("x", 1000) + "'"})
		for range queries {
			if _, err := w.conn.Write(one); err != nil {
				return
			}
		}
	}()
	for n := range queries {
		if got := w.until('Z'); strings.Count(got, "xxxx") == 0 {
			t.Fatalf("answer %d is %q", n, got)
		}
	}
}

// TestLoginDoesNotWaitForEverForServerThatHangs stops the server that is asked what the client's settings mean.
func TestLoginDoesNotWaitForEverForServerThatHangs(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.ClientLoginTimeout = config.Duration(300 * time.Millisecond)
	})
	backend, err := strconv.Atoi(mustQuery(t, connect(t, r.dsn("")), "select pg_backend_pid()"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(backend, syscall.SIGCONT) }()
	if err := startup(t, r, "timezone=Asia/Tokyo"); err == nil || !strings.Contains(err.Error(), "client_login_timeout") {
		t.Errorf("the client got %v", err)
	}
	if err := startup(t, r, "timezone=Asia/Tokyo"); err != nil {
		t.Errorf("with another server the client got %v", err)
	}
}
