package pooler

import (
	"crypto/x509/pkix"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
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
