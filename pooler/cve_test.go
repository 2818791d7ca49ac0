package pooler

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
)

// These tests send what the attacks send that PgBouncer's advisories about logins describe, and look whether the pooler still serves others.

// stillServes logs an ordinary client in.
func stillServes(t *testing.T, pg *postgres, r *running, dsn string) {
	t.Helper()
	if out, err := psql(t, pg, dsn, "select 'in'"); err != nil || out != "in" {
		t.Errorf("the next client got %q, %v", out, err)
	}
	eventually(t, "nobody is left behind", func() bool { return r.Stats().Clients == 0 && r.Stats().ClientsLogin == 0 })
}

// withUsers demands SCRAM of postgres, whose password is swordfish.
func withUsers(cfg *config.Config) {
	cfg.Pooler.Auth = config.Auth{Type: "scram-sha-256"}
	cfg.Pooler.Users = map[string]config.User{"postgres": {Password: "swordfish"}}
}

// TestCVE20124575LongDatabaseName asks for databases with names that have no room in PgBouncer's tables.
func TestCVE20124575LongDatabaseName(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		withUsers(cfg)
		cfg.Pooler.Databases = map[string]config.Database{"postgres": {}, "*": {}}
	})
	for _, length := range []int{63, 64, 65, 128, 4096, 9000} {
		w := dial(t, r)
		w.send(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres", "database": strings.Repeat("d", length)}})
		w.until('R')
		w.conn.Close()
		if length < 4096 { // and as somebody who may log in
			if err := startup(t, r, "password=swordfish dbname="+strings.Repeat("d", length)); err == nil || !strings.Contains(err.Error(), "3D000") {
				t.Errorf("a name of %d bytes: %v", length, err)
			}
		}
	}
	stillServes(t, pg, r, r.dsn("password=swordfish"))
}

// TestCVE20154054PasswordBeforeStartup sends a password when no startup packet has come yet, which PgBouncer took for one of nobody.
func TestCVE20154054PasswordBeforeStartup(t *testing.T) {
	pg := server(t)
	r := start(t, pg, withUsers)
	password := encode(&pgproto3.PasswordMessage{Password: "swordfish"})
	startupPacket := encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
	for _, packets := range [][][]byte{{password}, {password, startupPacket}, {password, password}, {encode(&pgQuery{String: "select 1"})}} {
		w := dial(t, r)
		for _, packet := range packets {
			_, _ = w.conn.Write(packet)
		}
		if got := w.rest(); got != "" && !strings.Contains(got, "invalid length of startup packet") {
			t.Errorf("got %q", got)
		}
	}
	stillServes(t, pg, r, r.dsn("password=swordfish"))
}

// TestCVE20156817UnknownUserIsNotAuthUser logs in as somebody who does not exist, which PgBouncer let in as auth_user.
func TestCVE20156817UnknownUserIsNotAuthUser(t *testing.T) {
	pg := server(t)
	role(t, pg, "known", "swordfish", "scram-sha-256")
	for _, method := range []string{"md5", "scram-sha-256", "plain", "trust"} {
		for _, lifetime := range []string{"0", "1h"} {
			r := start(t, pg, func(cfg *config.Config) {
				asks(cfg)
				cfg.Pooler.Auth.Type = method
				if lifetime != "0" {
					cfg.Pooler.Auth.QueryCacheLifetime = 3600e9
				}
			})
			for range 2 { // the second one finds what was remembered of the first
				want := "password authentication failed"
				if method == "trust" {
					want = "may not log in"
				}
				comeIn(t, pg, r.dsn("user=unknown password=swordfish"), want)
				if err := startup(t, r, "user=unknown password=''"); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s without a password: %v", method, err)
				}
			}
			stillServes(t, pg, r, r.dsn("user=known password=swordfish"))
		}
	}
}

// TestCVE20213935BytesBehindSSLRequest puts a whole session behind an SSLRequest, as somebody in the middle does with the login of another by certificate.
func TestCVE20213935BytesBehindSSLRequest(t *testing.T) {
	pg := server(t)
	encrypt := encrypted(t, "prefer")
	path := filepath.Join(t.TempDir(), "hba")
	if err := os.WriteFile(path, []byte("hostssl all all all cert\nhostnossl all postgres all trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	house := newAuthority(t)
	r := start(t, pg, func(cfg *config.Config) {
		encrypt(cfg)
		cfg.Pooler.ClientTLSCAFile = house.file
		cfg.Pooler.Auth = config.Auth{Type: "hba", HBAFile: path}
	})
	session := append(encode(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}}), unknownMessage...)
	for _, code := range []uint32{80877103, 80877104} { // SSLRequest and GSSENCRequest
		request := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 8}, code)
		w := dial(t, r)
		if _, err := w.conn.Write(append(request, session...)); err != nil {
			t.Fatal(err)
		}
		if got := w.rest(); !strings.Contains(got, "received unencrypted data after SSL request") || strings.ContainsAny(got[:1], "SN") {
			t.Errorf("got %q", got)
		}
	}
	// Later than the request, but before the handshake: it is no TLS, and nothing of it is carried out.
	w := dial(t, r)
	_, _ = w.conn.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47})
	var yes [1]byte
	if _, err := w.conn.Read(yes[:]); err != nil || yes[0] != 'S' {
		t.Fatalf("got %q, %v", yes, err)
	}
	_, _ = w.conn.Write(session)
	if got := w.rest(); strings.Contains(got, "terminate") {
		t.Errorf("got %q", got)
	}
	stillServes(t, pg, r, r.dsn(""))
}

// TestCVE20252291PasswordThatHasExpired logs in with a password whose VALID UNTIL is over.
func TestCVE20252291PasswordThatHasExpired(t *testing.T) {
	pg := server(t)
	role(t, pg, "expiring", "swordfish", "scram-sha-256")
	direct := connect(t, pg.dsn(""))
	r := start(t, pg, asks)
	comeIn(t, pg, r.dsn("user=expiring password=swordfish"), "")
	mustQuery(t, direct, "alter role expiring valid until '2001-01-01'")
	comeIn(t, pg, r.dsn("user=expiring password=swordfish"), "password authentication failed")
	mustQuery(t, direct, "alter role expiring valid until 'infinity'")
	comeIn(t, pg, r.dsn("user=expiring password=swordfish"), "")
	mustQuery(t, direct, "alter role expiring nologin")
	comeIn(t, pg, r.dsn("user=expiring password=swordfish"), "password authentication failed")
}

// TestCVE202512819SearchPathOfStrangers sends a search_path before the login that would have auth_query find an attacker's tables and operators.
func TestCVE202512819SearchPathOfStrangers(t *testing.T) {
	pg := server(t)
	role(t, pg, "victim", "swordfish", "scram-sha-256")
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, `drop schema if exists evil cascade; create schema evil; create table evil.asked (who text);
		create function evil.answer(text) returns text language plpgsql as $$ begin insert into evil.asked values (current_user); return 'known to the attacker'; end $$;
		create view evil.pg_authid as select 'victim'::name as rolname, evil.answer('') as rolpassword, true as rolcanlogin, null::timestamptz as rolvaliduntil;
		create function evil.now() returns timestamptz language sql as $$ select evil.answer('')::text::timestamptz $$;
		create function evil.equal(name, text) returns bool language sql as $$ select evil.answer('') <> '' $$;
		create operator evil.= (leftarg = name, rightarg = text, function = evil.equal);
		grant usage on schema evil to public; grant all on evil.asked, evil.pg_authid to public`)
	for _, query := range []string{"", "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin"} {
		r := start(t, pg, func(cfg *config.Config) {
			asks(cfg)
			if query != "" { // PgBouncer's own default, which trusts its search_path
				cfg.Pooler.Auth.Query = query
			}
		})
		for _, parameter := range []string{"search_path", "options"} {
			for _, password := range []string{"known to the attacker", "swordfish"} {
				value := "evil, pg_catalog"
				if parameter == "options" {
					value = "-c search_path=evil,pg_catalog"
				}
				err := startup(t, r, "user=victim password='"+password+"' "+parameter+"='"+value+"'")
				if (password == "swordfish") != (err == nil) {
					t.Errorf("%s and %s: %v", parameter, password, err)
				}
			}
		}
	}
	if got := mustQuery(t, direct, "select count(*) from evil.asked"); got != "0" {
		t.Errorf("the attacker's function has run %s times", got)
	}
}

// TestCVE20266664LengthsInSCRAMMessages sends lengths within SCRAM messages that overflow when something is added to them.
func TestCVE20266664LengthsInSCRAMMessages(t *testing.T) {
	pg := server(t)
	r := start(t, pg, withUsers)
	for _, length := range []uint32{0xffffffff, 0xfffffffe, 0x80000000, 0x7fffffff, 0x7ffffff0, 1 << 20, 0, 1} {
		w := dial(t, r)
		w.send(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
		w.until('R')
		body := binary.BigEndian.AppendUint32([]byte("SCRAM-SHA-256\x00"), length)
		body = append(body, "n,,n=,r=nonce"...)
		_, _ = w.conn.Write(append(binary.BigEndian.AppendUint32([]byte{'p'}, uint32(len(body)+4)), body...))
		if got := w.rest(); !strings.Contains(got, "malformed SASLInitialResponse") {
			t.Errorf("a length of %#x got %q", length, got)
		}
	}
	for _, body := range []string{"", "SCRAM-SHA-256", "SCRAM-SHA-256\x00\x00\x00", "\x00\xff\xff\xff\xff", "SCRAM-SHA-256\x00\xff\xff\xff\xff", "SCRAM-SHA-256-PLUS\x00\x00\x00\x00\x00"} {
		w := dial(t, r)
		w.send(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
		w.until('R')
		_, _ = w.conn.Write(append(binary.BigEndian.AppendUint32([]byte{'p'}, uint32(len(body)+4)), body...))
		if got := w.rest(); !strings.Contains(got, "SFATAL") {
			t.Errorf("%q got %q", body, got)
		}
	}
	stillServes(t, pg, r, r.dsn("password=swordfish"))
}

// TestLengthsBeforeAuthenticationAreCapped announces more than each state of a login takes.
func TestLengthsBeforeAuthenticationAreCapped(t *testing.T) {
	pg := server(t)
	try := func(method string, length uint32, want string) {
		t.Helper()
		r := start(t, pg, func(cfg *config.Config) {
			withUsers(cfg)
			cfg.Pooler.Auth.Type, cfg.Pooler.ClientLoginTimeout = method, config.Duration(1e9)
		})
		w := dial(t, r)
		w.send(&pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "postgres"}})
		w.until('R')
		_, _ = w.conn.Write(binary.BigEndian.AppendUint32([]byte{'p'}, length))
		if got := w.rest(); !strings.Contains(got, want) {
			t.Errorf("%s, %d: got %q, want %q", method, length, got, want)
		}
	}
	try("scram-sha-256", 1024+5, "got something else")
	try("scram-sha-256", 1024+4, "client_login_timeout") // it waits for what was announced
	try("md5", 1024+5, "got something else")
	try("plain", 65535+5, "got something else")
	try("plain", 65535+4, "client_login_timeout")
	try("plain", 0xffffffff, "got something else")
	try("plain", 3, "got something else")
}

func TestOneAddressHasItsShareOfLogins(t *testing.T) {
	pg := server(t)
	dir := t.TempDir()
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.MaxLoginConnPerAddress, cfg.Pooler.UnixSocketDir = 2, dir
	})
	first := dial(t, r)
	dial(t, r)
	eventually(t, "both are counted", func() bool { return r.Stats().ClientsLogin == 2 })
	if got := dial(t, r).rest(); !strings.Contains(got, "max_login_conn_per_address") || !strings.Contains(got, "53300") {
		t.Errorf("the third got %q", got)
	}
	other := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 7)}}
	conn, err := other.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := &wire{t: t, conn: conn}
	w.login()
	if out, err := psql(t, pg, "host="+dir+" port="+strconv.Itoa(r.port)+" user=postgres dbname=postgres", "select 'in'"); err != nil || out != "in" {
		t.Errorf("over the Unix socket: %q, %v", out, err)
	}
	first.conn.Close()
	eventually(t, "there is room again", func() bool { return startup(t, r, "") == nil })
	for range 5 { // who is in takes no room
		connect(t, r.dsn(""))
	}
	if r.Stats().Limits.MaxLoginConnAddress == 0 {
		t.Error("the statistics do not count the limit")
	}
	eventually(t, "nobody else is counted", func() bool { return r.Stats().ClientsLogin == 1 })
	r.entrance.mu.Lock()
	defer r.entrance.mu.Unlock()
	if len(r.entrance.from) != 1 {
		t.Errorf("addresses are left: %v", r.entrance.from)
	}
}

// TestTLSMayBeginDirectly is sslnegotiation=direct, as libpq 17 and pgx do it.
func TestTLSMayBeginDirectly(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"allow", "require"} {
		r := start(t, pg, encrypted(t, mode))
		dsn := r.dsn("sslmode=require sslnegotiation=direct")
		if got := mustQuery(t, connect(t, dsn), "select 'in'"); got != "in" {
			t.Errorf("got %q", got)
		}
		if v := mustQuery(t, connect(t, pg.dsn("")), "select current_setting('server_version_num')::int / 10000 >= 17"); v == "t" { // its libpq can
			comeIn(t, pg, dsn, "")
		}
		try := func(protocols []string, want string) {
			t.Helper()
			conn, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port), &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
			if err != nil {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q: %v", protocols, err)
				}
				return
			}
			defer conn.Close()
			w := &wire{t: t, conn: conn}
			_, _ = conn.Write(encode(&pgproto3.SSLRequest{}))
			if got := w.rest(); !strings.Contains(got, want) {
				t.Errorf("%q: got %q", protocols, got)
			}
		}
		try(nil, "without ALPN")
		try([]string{"http/1.1"}, "no application protocol")
		try([]string{"postgresql"}, "encryption was asked for twice")
	}
	r := start(t, pg, nil)
	if _, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}); err == nil {
		t.Error("TLS where there is none")
	}
	stillServes(t, pg, r, r.dsn(""))
}

// TestCVE20266667KillClientOfWhoMayOnlyLook has somebody of stats_users, and somebody of neither, end the session of another, which PgBouncer allowed to the former.
func TestCVE20266667KillClientOfWhoMayOnlyLook(t *testing.T) {
	r := start(t, server(t), operated)
	victim := connect(t, r.dsn(""))
	kill := fmt.Sprintf("KILL_CLIENT %d", victim.PID())
	watcher := connect(t, strings.NewReplacer("dbname=postgres", "dbname=pgbouncer", "user=postgres", "user=watcher").Replace(r.dsn("")))
	mustFail(t, watcher, kill, "42501", "")
	if result := watcher.ExecParams(t.Context(), kill, nil, nil, nil, nil).Read(); result.Err == nil || !strings.Contains(result.Err.Error(), "42501") {
		t.Errorf("by the extended protocol: %v", result.Err)
	}
	if _, err := pgconn.Connect(t.Context(), strings.NewReplacer("dbname=postgres", "dbname=pgbouncer", "user=postgres", "user=stranger").Replace(r.dsn(""))); err == nil {
		t.Error("a stranger has a console")
	}
	if got := mustQuery(t, victim, "select 'alive'"); got != "alive" {
		t.Errorf("got %q", got)
	}
	mustQuery(t, r.console(t), kill)
	if _, err := query(victim, "select 1"); err == nil {
		t.Error("an operator cannot end it either: the test shows nothing")
	}
}
