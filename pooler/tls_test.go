package pooler

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// encrypted makes a pooler offer TLS.
func encrypted(t testing.TB, mode string) func(*config.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certFile, keyFile := write("cert.pem", "CERTIFICATE", certificate), write("key.pem", "PRIVATE KEY", private)
	return func(cfg *config.Config) {
		cfg.Pooler.ClientTLSSSLMode, cfg.Pooler.ClientTLSCertFile, cfg.Pooler.ClientTLSKeyFile = mode, certFile, keyFile
	}
}

func (r *running) encryptedDSN() string {
	return strings.Replace(r.dsn(""), "sslmode=disable", "sslmode=require", 1)
}

func TestEncryptedClientsAreServed(t *testing.T) {
	pg := server(t)
	encrypt := encrypted(t, "prefer")
	r := start(t, pg, func(cfg *config.Config) { encrypt(cfg); cfg.Pooler.DefaultPoolSize = 8 })
	for _, dsn := range []string{r.encryptedDSN(), r.dsn("")} {
		conn := connect(t, dsn)
		if got := mustQuery(t, conn, "select length(repeat('x', 3000000)), repeat('y', 10)"); got != "3000000" {
			t.Errorf("got %q", got)
		}
		if got := mustQuery(t, conn, "select repeat('z', 3000000)"); got != strings.Repeat("z", 3000000) {
			t.Errorf("a large row came back with %d bytes", len(got))
		}
		if got := mustQuery(t, conn, "select length('"+strings.Repeat("q", 2000000)+"')"); got != "2000000" {
			t.Errorf("a large query was received as %q bytes", got)
		}
	}
	t.Setenv("PGSSLMODE", "require")
	out := r.run(t, pg, "pgbench", "-i", "-q", "-s", "1")
	if !strings.Contains(out, "done in") {
		t.Errorf("pgbench -i printed %q", out)
	}
	out = r.run(t, pg, "pgbench", "-n", "-M", "prepared", "-c", "8", "-j", "2", "-t", "100")
	if !strings.Contains(out, "number of transactions actually processed: 800/800") {
		t.Errorf("pgbench printed %q", out)
	}
}

func TestUnencryptedClientsAreRefusedIfSoConfigured(t *testing.T) {
	pg := server(t)
	r := start(t, pg, encrypted(t, "require"))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, r.dsn(""))
	if err == nil {
		_ = conn.Close(ctx)
		t.Fatal("let in without encryption")
	}
	if !strings.Contains(err.Error(), "SSL connection is required (pooler.client_tls_sslmode) (SQLSTATE 28000)") {
		t.Error(err)
	}
	if got := mustQuery(t, connect(t, r.encryptedDSN()), "select 1"); got != "1" {
		t.Errorf("got %q", got)
	}
}

// TestEncryptedServersAreUsed puts TLS between pooler and Postgres, which is encrypted on the way into the loop too.
func TestEncryptedServersAreUsed(t *testing.T) {
	pg := server(t)
	front := start(t, pg, encrypted(t, "require")) // stands for a Postgres with TLS
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Postgres.DSN = config.DSN(front.encryptedDSN())
		cfg.Pooler.DefaultPoolSize = 2
	})
	for range 3 {
		conn := connect(t, r.dsn(""))
		if got := mustQuery(t, conn, "select repeat('z', 3000000)"); got != strings.Repeat("z", 3000000) {
			t.Errorf("a large row came back with %d bytes", len(got))
		}
		if got := mustQuery(t, conn, "select length('"+strings.Repeat("q", 2000000)+"')"); got != "2000000" {
			t.Errorf("a large query was received as %q bytes", got)
		}
		mustQuery(t, conn, "set work_mem = '7MB'")
	}
}

// TestServersMayBeEncryptedDirectly asks a server for TLS without asking first, with what the DSN says and with pooler.server_tls_*.
func TestServersMayBeEncryptedDirectly(t *testing.T) {
	pg := server(t)
	front := start(t, pg, encrypted(t, "require")) // stands for a Postgres 17
	for _, mode := range []string{"", "require"} {
		r := start(t, pg, func(cfg *config.Config) {
			cfg.Postgres.DSN = config.DSN(front.dsn("sslmode=require sslnegotiation=direct"))
			cfg.Pooler.ServerTLSSSLMode = mode
		})
		if got := mustQuery(t, connect(t, r.dsn("")), "select 'in'"); got != "in" {
			t.Errorf("%q: got %q", mode, got)
		}
	}
}

func TestVersionsAndCiphersAreReadAsPgBouncerDoes(t *testing.T) {
	versions := func(text string, lowest, highest uint16) {
		t.Helper()
		if low, high, err := tlsVersions(text); err != nil || low != lowest || high != highest {
			t.Errorf("%q: %x to %x, %v", text, low, high, err)
		}
	}
	versions("secure", tls.VersionTLS12, tls.VersionTLS13)
	versions("", tls.VersionTLS12, tls.VersionTLS13)
	versions("all", tls.VersionTLS10, tls.VersionTLS13)
	versions("tlsv1.3", tls.VersionTLS13, tls.VersionTLS13)
	versions("tlsv1.3, tlsv1.2,tlsv1.2", tls.VersionTLS12, tls.VersionTLS13)
	for _, text := range []string{"tlsv1.1,tlsv1.3", "sslv3", ",", "TLSv1.2"} {
		if _, _, err := tlsVersions(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
	ciphers := func(text string, want ...uint16) {
		t.Helper()
		if got, err := cipherSuites(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %x, %v", text, got, err)
		}
	}
	ciphers("default")
	ciphers("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305", tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256)
	ciphers("AES256-GCM-SHA384 AES128-SHA ECDHE-RSA-AES256-SHA", tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA)
	ciphers("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)
	for _, text := range []string{"HIGH:!aNULL", "NULL", ":"} {
		if _, err := cipherSuites(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

// TestOldVersionsOfTLSAreRefused asks for less than the setting allows.
func TestOldVersionsOfTLSAreRefused(t *testing.T) {
	pg := server(t)
	encrypt := encrypted(t, "require")
	try := func(protocols string, version uint16, good bool) {
		t.Helper()
		r := start(t, pg, func(cfg *config.Config) { encrypt(cfg); cfg.Pooler.ClientTLSProtocols = protocols })
		conn, err := tls.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}, MinVersion: version, MaxVersion: version})
		if err == nil {
			conn.Close()
		}
		if good != (err == nil) {
			t.Errorf("%s and %x: %v", protocols, version, err)
		}
	}
	try("secure", tls.VersionTLS11, false)
	try("secure", tls.VersionTLS12, true)
	try("secure", tls.VersionTLS13, true)
	try("all", tls.VersionTLS11, true)
	try("tlsv1.3", tls.VersionTLS12, false)
	for _, broken := range []func(*config.Pooler){
		func(cfg *config.Pooler) { cfg.ClientTLSProtocols = "tlsv9" },
		func(cfg *config.Pooler) { cfg.ClientTLSCiphers = "none" },
		func(cfg *config.Pooler) { cfg.ClientTLSCAFile = "/missing" },
		func(cfg *config.Pooler) { cfg.ClientTLSCAFile = cfg.ClientTLSKeyFile },
		func(cfg *config.Pooler) { cfg.ClientTLSKeyFile = "/missing" },
	} {
		cfg := settings(pg)
		encrypt(&cfg)
		broken(&cfg.Pooler)
		if _, err := newClientTLS(cfg.Pooler); err == nil || !strings.Contains(err.Error(), "pooler.client_tls_") {
			t.Errorf("%v", err)
		}
	}
}

// TestSocketOfADeadProcessIsReplaced leaves a socket behind that nobody listens on, and one that somebody does.
func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := unixPath(config.Pooler{UnixSocketDir: dir}, 6432)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "somebody else listens there") {
		t.Errorf("a socket that is in use: %v", err)
	}
	dead.Close()
	listener, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file was removed: %v", err)
	}
}

// TestAnyUserIsAsGoodAsAnother is auth type any: what counts is the user of the database's entry.
func TestAnyUserIsAsGoodAsAnother(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.Auth = config.Auth{Type: "any"}
		cfg.Pooler.Users = map[string]config.User{"listed": {}}
		cfg.Pooler.Databases = map[string]config.Database{"app": {DBName: "postgres", User: "postgres"}}
	})
	if got := mustQuery(t, connect(t, r.dsn("dbname=app user=whoever")), "select current_user"); got != "postgres" {
		t.Errorf("the client is %s", got)
	}
}
