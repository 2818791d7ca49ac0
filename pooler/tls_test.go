package pooler

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
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
