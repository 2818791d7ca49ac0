package pooler

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/internal/pgwire"
)

// demand puts rules before those of the package's Postgres, and encrypts it, with what the harness makes for poolers.
func demand(t testing.TB, pg *postgres, clientCA string, rules ...string) {
	t.Helper()
	var cfg config.Config
	encrypted(t, "require")(&cfg)
	direct := connect(t, pg.dsn(""))
	for name, from := range map[string]string{"server.crt": cfg.Pooler.ClientTLSCertFile, "server.key": cfg.Pooler.ClientTLSKeyFile, "clients.crt": clientCA} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		// As the server's user, who has to own it.
		mustQuery(t, direct, fmt.Sprintf(`copy (select unnest(string_to_array('%s', e'\n'))) to program 'cat > %s; chmod 600 %s'`, strings.TrimSpace(string(text)), name, name))
	}
	mustQuery(t, direct, "alter system set ssl = on")
	mustQuery(t, direct, "alter system set ssl_ca_file = 'clients.crt'")
	path := filepath.Join(pg.dir, "data", "pg_hba.conf")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		mustQuery(t, direct, "select pg_reload_conf()")
	}
	put(strings.Join(rules, "\n") + "\n" + string(before))
	t.Cleanup(func() {
		mustQuery(t, direct, "alter system reset ssl")
		mustQuery(t, direct, "alter system reset ssl_ca_file")
		put(string(before))
	})
	eventually(t, "the rules are in force", func() bool {
		return mustQuery(t, connect(t, pg.dsn("")), "select current_setting('ssl') || (select count(*) from pg_hba_file_rules where error is not null)") == "on0"
	})
}

// TestNoPlainPasswordIsNeededTowardsServers lets users on whom the pooler knows but what Postgres itself has stored.
func TestNoPlainPasswordIsNeededTowardsServers(t *testing.T) {
	pg := server(t)
	house := newAuthority(t)
	md5, scram := role(t, pg, "hashed", "swordfish", "md5"), role(t, pg, "salted", "swordfish", "scram-sha-256")
	other := role(t, pg, "salty", "swordfish", "scram-sha-256")
	role(t, pg, "salty", "swordfish", "scram-sha-256") // the same password, with another salt
	demand(t, pg, house.file, "host all hashed all md5", "host all salted,salty all scram-sha-256")
	for _, more := range []string{"sslmode=disable", "sslmode=require", "sslmode=require channel_binding=require"} {
		encrypt := encrypted(t, "prefer")
		r := start(t, pg, func(cfg *config.Config) {
			encrypt(cfg)
			cfg.Postgres.DSN = config.DSN(pg.dsn(more))
			cfg.Pooler.Auth = config.Auth{Type: "md5"}
			cfg.Pooler.Users = map[string]config.User{"hashed": {Password: config.Secret(md5)}, "salted": {Password: config.Secret(scram)}, "salty": {Password: config.Secret(other)}}
		})
		comeIn(t, pg, r.dsn("user=salted password=swordfish"), "")
		comeIn(t, pg, r.dsn("user=salted password=swordfish sslmode=require channel_binding=require"), "")
		comeIn(t, pg, r.dsn("user=salted password=wrong"), "password authentication failed")
		if got := mustQuery(t, connect(t, r.dsn("user=salted password=swordfish")), "select current_user || ssl from pg_stat_ssl where pid = pg_backend_pid()"); got != "salted"+strconv.FormatBool(more != "sslmode=disable") {
			t.Errorf("%s: the server knows the client as %s", more, got)
		}
		comeIn(t, pg, r.dsn("user=salty password=swordfish"), "salt or iterations differ")
		if strings.Contains(more, "channel_binding") {
			if out, err := psql(t, pg, r.dsn("user=hashed password=swordfish"), "select 1"); err == nil {
				t.Errorf("MD5 was used where channel binding is required: %s", out)
			}
			continue
		}
		comeIn(t, pg, r.dsn("user=hashed password=swordfish"), "")
		comeIn(t, pg, r.dsn("user=hashed password=wrong"), "password authentication failed")
	}
}

// TestPasswordsOfDatabasesAreUsed forces user and password.
func TestPasswordsOfDatabasesAreUsed(t *testing.T) {
	pg := server(t)
	role(t, pg, "forced", "swordfish", "scram-sha-256")
	demand(t, pg, newAuthority(t).file, "host all forced all scram-sha-256")
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.Databases = map[string]config.Database{
			"right": {DBName: "postgres", User: "forced", Password: "swordfish"}, "wrong": {DBName: "postgres", User: "forced", Password: "swordfis"}, "none": {DBName: "postgres", User: "forced"},
		}
	})
	if got := mustQuery(t, connect(t, r.dsn("dbname=right")), "select current_user"); got != "forced" {
		t.Errorf("the server knows the client as %s", got)
	}
	comeIn(t, pg, r.dsn("dbname=wrong"), "server login failed: password authentication failed")
	comeIn(t, pg, r.dsn("dbname=none"), "knows no password or key of this user")
}

func TestServersAreVerifiedAndShownCertificates(t *testing.T) {
	pg := server(t)
	house := newAuthority(t)
	mustQuery(t, connect(t, pg.dsn("")), "drop role if exists alice; create role alice login")
	shown := house.sign(pkix.Name{CommonName: "alice"})
	demand(t, pg, house.file, "hostssl all alice all cert", "host all alice all reject")
	words := map[string]string{}
	for _, word := range strings.Fields(shown) {
		name, value, _ := strings.Cut(word, "=")
		words[name] = value
	}
	serverCA := filepath.Join(t.TempDir(), "server.crt")
	text, err := os.ReadFile(filepath.Join(pg.dir, "data", "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(serverCA, text, 0o600); err != nil {
		t.Fatal(err)
	}
	try := func(want string, change func(*config.Pooler)) {
		t.Helper()
		r := start(t, pg, func(cfg *config.Config) { change(&cfg.Pooler) })
		comeIn(t, pg, r.dsn("user=alice"), want)
	}
	for _, mode := range []string{"require", "verify-ca", "verify-full"} {
		try("", func(cfg *config.Pooler) {
			cfg.ServerTLSSSLMode, cfg.ServerTLSCAFile, cfg.ServerTLSCertFile, cfg.ServerTLSKeyFile = mode, serverCA, words["sslcert"], words["sslkey"]
		})
		try("server login failed", func(cfg *config.Pooler) { cfg.ServerTLSSSLMode, cfg.ServerTLSCAFile = mode, serverCA })
	}
	try("server login failed", func(cfg *config.Pooler) { cfg.ServerTLSSSLMode = "disable" })
	for _, mode := range []string{"verify-ca", "verify-full"} {
		try("server is not reachable", func(cfg *config.Pooler) {
			cfg.ServerTLSSSLMode, cfg.ServerTLSCAFile, cfg.ServerTLSCertFile, cfg.ServerTLSKeyFile = mode, house.file, words["sslcert"], words["sslkey"]
		})
	}
	cfg := settings(pg)
	cfg.Pooler.ServerTLSSSLMode, cfg.Pooler.ServerTLSCAFile = "verify-full", serverCA+".missing"
	if _, err := New(cfg, start(t, pg, nil).log); err == nil || !strings.Contains(err.Error(), "pooler.server_tls_sslmode") {
		t.Errorf("a missing file gave %v", err)
	}
}

// TestServerThatTalksBehindItsAnswerIsRefused sends what somebody in the middle would: a login's answer right behind the S that says yes to
// encryption, which must not be believed. Compare CVE-2021-23222 of libpq.
func TestServerThatTalksBehindItsAnswerIsRefused(t *testing.T) {
	pg := server(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			var ask [8]byte
			_, _ = conn.Read(ask[:])
			answer := []byte{'S'}
			for _, message := range []pgproto3.BackendMessage{
				&pgproto3.AuthenticationOk{}, &pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{1, 2, 3, 4}}, &pgproto3.ReadyForQuery{TxStatus: 'I'},
			} {
				if answer, err = message.Encode(answer); err != nil {
					t.Error(err)
				}
			}
			_, _ = conn.Write(answer)
			buf := make([]byte, 1024)
			for err == nil {
				_, err = conn.Read(buf)
			}
			conn.Close()
		}
	}()
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Postgres.DSN = config.DSN(fmt.Sprintf("host=127.0.0.1 port=%d user=postgres sslmode=require", listener.Addr().(*net.TCPAddr).Port))
	})
	if err := startup(t, r, ""); err == nil || !strings.Contains(err.Error(), "08001") {
		t.Errorf("the client got %v", err)
	}
	r.stop()
	listener.Close()
	<-done
}

// hostileServer is a server that answers each login with these messages, the first as soon as it was asked, each other one after it was
// answered, and then waits until the pooler has gone.
func hostileServer(t *testing.T, messages ...[]byte) (port int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close()
				buf := make([]byte, 64<<10)
				for _, message := range messages {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					if _, nonce, found := strings.Cut(string(buf[:n]), ",r="); found { // so that the answer fits what was said
						message = bytes.ReplaceAll(message, []byte("<nonce>"), []byte(nonce))
						binary.BigEndian.PutUint32(message[1:], uint32(len(message)-1))
					}
					_, _ = conn.Write(message)
				}
				for err == nil {
					_, err = conn.Read(buf)
				}
			})
		}
	})
	t.Cleanup(func() { // comes after the pooler's
		listener.Close()
		work.Wait()
	})
	return listener.Addr().(*net.TCPAddr).Port
}

// authentication is a message of a server's side of a login.
func authentication(code uint32, text string) []byte {
	return append(binary.BigEndian.AppendUint32(pgwire.AppendHeader(nil, 'R', 4+len(text)), code), text...)
}

// TestCVE20266665And20266666MaliciousServers lets servers send what overflowed PgBouncer's buffers during SCRAM, and errors without an SQLSTATE.
func TestCVE20266665And20266666MaliciousServers(t *testing.T) {
	pg := server(t)
	scram := role(t, pg, "salted", "swordfish", "scram-sha-256")
	body, _, _ := strings.Cut(strings.TrimPrefix(scram, "SCRAM-SHA-256$4096:"), "$")
	offer, long := authentication(10, "SCRAM-SHA-256\x00\x00"), strings.Repeat("A", 20000)
	servers := map[string][][]byte{
		"a long nonce":          {offer, authentication(11, "r=<nonce>"+long+",s="+body+",i=4096")},
		"a long salt":           {offer, authentication(11, "r=<nonce>x,s="+long+",i=4096")},
		"another nonce":         {offer, authentication(11, "r=x,s="+body+",i=4096")},
		"nothing":               {offer, authentication(11, "")},
		"many attributes":       {offer, authentication(11, strings.Repeat("r=,", 5000))},
		"a signature too early": {offer, authentication(12, "v="+long)},
		"a wrong signature":     {offer, authentication(11, "r=<nonce>x,s="+body+",i=4096"), authentication(12, "v="+long)},
		"no signature":          {offer, authentication(11, "r=<nonce>x,s="+body+",i=4096"), authentication(0, "")},
		"work for ever":         {offer, authentication(11, "r=<nonce>x,s="+body+",i=2000000000")},
		"mechanisms for ever":   {authentication(10, long)},
		"an overlong message":   {append([]byte{'R'}, 0x7f, 0xff, 0xff, 0xff)},
		"a short message":       {[]byte{'R', 0, 0, 0, 3}},
		"an empty message":      {pgwire.AppendHeader(nil, 'R', 0)},
		"an error without code": {append(pgwire.AppendHeader(nil, 'E', 9), "SFATAL\x00\x00\x00"...)},
		"an error of nothing":   {append(pgwire.AppendHeader(nil, 'E', 1), 0)},
		"an error cut off":      {append(pgwire.AppendHeader(nil, 'E', 6), "C57P03"...)},
		"a late error":          {offer, append(pgwire.AppendHeader(nil, 'E', 4), "Mx\x00\x00"...)},
	}
	databases := map[string]config.Database{"postgres": {}}
	for name, messages := range servers {
		databases[name] = config.Database{Host: "127.0.0.1", Port: strconv.Itoa(hostileServer(t, messages...))}
	}
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.Databases, cfg.Pooler.ServerConnectTimeout = databases, config.Duration(2e9)
		cfg.Pooler.Auth = config.Auth{Type: "scram-sha-256"}
		cfg.Pooler.Users = map[string]config.User{"salted": {Password: config.Secret(scram)}, "plain": {Password: "swordfish"}}
	})
	for name := range servers {
		for _, user := range []string{"salted", "plain"} {
			err := startup(t, r, "user="+user+" password=swordfish dbname='"+name+"'")
			if err == nil || !strings.Contains(err.Error(), "FATAL: server") || !strings.Contains(err.Error(), "(SQLSTATE 08001)") {
				t.Errorf("%s as %s: %v", name, user, err)
			}
		}
	}
	stillServes(t, pg, r, r.dsn("user=salted password=swordfish"))
}
