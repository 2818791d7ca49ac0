package pooler

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
)

func TestScramLetsInWhoKnowsTheSecret(t *testing.T) {
	pg := server(t)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "drop role if exists filed; create role filed login password 'swordfish'")
	secret := mustQuery(t, direct, "select rolpassword from pg_authid where rolname = 'filed'")
	file := filepath.Join(t.TempDir(), "userlist.txt")
	if err := os.WriteFile(file, []byte("; users\n\"filed\" \""+secret+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.Auth = config.Auth{Type: "scram-sha-256", File: file}
		cfg.Pooler.Users = map[string]config.User{"postgres": {Password: "plain as day"}}
	})
	try := func(parameter, want string) {
		t.Helper()
		err := startup(t, r, parameter)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", parameter, err, want)
		}
	}
	try("user=postgres password='plain as day'", "")
	try("user=filed password=swordfish", "")
	try("user=filed password=swordfis", `password authentication failed for user "filed" (SQLSTATE 28P01)`)
	try("user=postgres password=wrong", "28P01")
	try("user=nobody password=swordfish", `password authentication failed for user "nobody" (SQLSTATE 28P01)`)
	if got := mustQuery(t, connect(t, r.dsn("user=filed password=swordfish")), "select current_user"); got != "filed" {
		t.Errorf("the server knows the client as %s", got)
	}
}

func TestTrustKnowsOnlyListedUsersIfAnyAreListed(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.Users = map[string]config.User{"postgres": {}} })
	if err := startup(t, r, ""); err != nil {
		t.Error(err)
	}
	if err := startup(t, r, "user=nobody"); err == nil || !strings.Contains(err.Error(), "28000") {
		t.Errorf("an unlisted user got %v", err)
	}
}

func TestDatabasesAreRenamed(t *testing.T) {
	pg := server(t)
	mustQuery(t, connect(t, pg.dsn("")), "drop role if exists forced; create role forced login")
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.Databases = map[string]config.Database{
			"app":     {DBName: "postgres", User: "forced", Host: "127.0.0.1", Port: strconv.Itoa(pg.port), PoolSize: 1},
			"session": {DBName: "postgres", PoolMode: "session"},
		}
		cfg.Postgres.DSN = "host=127.0.0.1 port=1 sslmode=disable"
		cfg.Pooler.Databases["session"] = config.Database{DBName: "postgres", PoolMode: "session", Host: "127.0.0.1", Port: strconv.Itoa(pg.port)}
	})
	conn := connect(t, r.dsn("dbname=app"))
	if got := mustQuery(t, conn, "select current_user || ' in ' || current_database()"); got != "forced in postgres" {
		t.Errorf("the client is %s", got)
	}
	session := connect(t, r.dsn("dbname=session"))
	mustQuery(t, session, "set work_mem = '77MB'")
	if got := mustQuery(t, session, "show work_mem"); got != "77MB" {
		t.Errorf("in session mode work_mem is %s", got)
	}
	if err := startup(t, r, "dbname=other"); err == nil || !strings.Contains(err.Error(), "3D000") {
		t.Errorf("an unlisted database gave %v", err)
	}
}

func TestFirstPacketsThatAreRefused(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.ClientLoginTimeout = config.Duration(500 * time.Millisecond) })
	ssl := []byte{0, 0, 0, 8, 4, 210, 22, 47}
	gss := []byte{0, 0, 0, 8, 4, 210, 22, 48}
	session := encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
	try := func(what, want string, packets ...[]byte) {
		t.Helper()
		w := dial(t, r)
		for _, packet := range packets {
			if _, err := w.conn.Write(packet); err != nil {
				t.Fatal(err)
			}
			if len(packets) > 1 && (string(packet) == string(ssl) || string(packet) == string(gss)) {
				var no [1]byte
				if _, err := w.conn.Read(no[:]); err != nil || no[0] != 'N' {
					break
				}
			}
		}
		if got := w.rest(); !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	try("bytes behind an SSLRequest", "received unencrypted data after SSL request", append(append([]byte{}, ssl...), session...))
	try("SSLRequest twice", "encryption was asked for twice", ssl, ssl)
	try("a session after both requests", "no encryption, no session: terminate", ssl, gss, append(append([]byte{}, session...), unknownMessage...))
	try("a packet of a gigabyte", "invalid length of startup packet", binary.BigEndian.AppendUint32(nil, 1<<30))
	try("protocol 2", "0A000", []byte{0, 0, 0, 8, 0, 2, 0, 0})
	try("no user", "28000", encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"database": "postgres"}}))
	try("nothing at all", "client_login_timeout", []byte{0, 0})
	try("a cancel request for nobody", "", []byte{0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 1, 2, 3, 4})
}

// unknownMessage is a query whose error shows that the session was open.
var unknownMessage = encode(&pgQuery{String: `do $$ begin raise 'no encryption, no session: terminate'; end $$`}, &pgproto3.Terminate{})

func TestNewerProtocolIsNegotiatedDown(t *testing.T) {
	pg := server(t)
	r := start(t, pg, nil)
	w := dial(t, r)
	w.send(&pgproto3.StartupMessage{ProtocolVersion: 196610, Parameters: map[string]string{"user": "postgres", "_pq_.color": "red"}})
	got := w.until('Z')
	if !strings.HasPrefix(got, "v \x00") && !strings.HasPrefix(got, "v ") || !strings.Contains(got, "_pq_.color") {
		t.Errorf("got %q", got)
	}
}

func TestUnauthenticatedClientsAreBounded(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.MaxLoginConn = 2 })
	first := dial(t, r)
	dial(t, r)
	eventually(t, "both are counted", func() bool { return r.Stats().ClientsLogin == 2 })
	third := dial(t, r)
	if got := third.rest(); !strings.Contains(got, "53300") {
		t.Errorf("the third got %q", got)
	}
	first.conn.Close()
	eventually(t, "there is room again", func() bool { return startup(t, r, "") == nil })
	if r.Stats().Limits.MaxLoginConn == 0 {
		t.Error("the statistics do not count the limit")
	}
}

func TestBusyPortIsAnErrorOfListen(t *testing.T) {
	pg := server(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := settings(pg)
	cfg.Pooler.Listen = []string{"127.0.0.1:0", taken.Addr().String()}
	r := start(t, pg, nil)
	p, err := New(cfg, r.log)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Listen(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("Listen: %v", err)
	}
	p.Close()
}

func TestServersAreReplacedInTime(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.ServerIdleTimeout = config.Duration(100 * time.Millisecond)
	})
	mustQuery(t, connect(t, r.dsn("")), "select 1")
	eventually(t, "the idle server is closed", func() bool { return r.Stats().Pools[0].Idle == 0 })
	aging := start(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.ServerLifetime = config.Duration(100 * time.Millisecond)
	})
	conn := connect(t, aging.dsn(""))
	before := mustQuery(t, conn, "select pg_backend_pid()")
	eventually(t, "the old server is replaced", func() bool { return mustQuery(t, conn, "select pg_backend_pid()") != before })
}

func TestClientThatDoesNotReadIsCut(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		onePerPool(cfg)
		cfg.Pooler.ClientWriteTimeout = config.Duration(time.Second)
	})
	deaf := raw(t, r)
	deaf.send(&pgQuery{String: "select repeat('x', 1000) from generate_series(1, 1000000)"})
	eventually(t, "the deaf client has the server", func() bool { return r.Stats().ClientsActive == 1 })
	if got := mustQuery(t, connect(t, r.dsn("")), "select 1"); got != "1" {
		t.Errorf("the next client got %q", got)
	}
	eventually(t, "the statistics count the limit", func() bool { return r.Stats().Limits.ClientWriteTimeout == 1 })
}

// TestClientIsNotToldWhatIsWrongWithOurConfiguration takes the service file away after the start.
func TestClientIsNotToldWhatIsWrongWithOurConfiguration(t *testing.T) {
	pg := server(t)
	file := filepath.Join(t.TempDir(), "hidden.conf")
	if err := os.WriteFile(file, []byte("[pitr]\nhost=127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, pg, func(cfg *config.Config) { cfg.Postgres.DSN = config.DSN("service=pitr servicefile=" + file) })
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	err := startup(t, r, "")
	if err == nil || !strings.Contains(err.Error(), "58000") || strings.Contains(err.Error(), "hidden") {
		t.Errorf("the client got %v", err)
	}
}
