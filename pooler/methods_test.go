package pooler

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

// psql runs psql with a connection string, and returns what it has printed, errors included.
func psql(t testing.TB, pg *postgres, dsn, sql string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, pg.bin+"/psql", "-X", "-w", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, dsn)
	cmd.Env = []string{"HOME=/nonexistent", "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// comeIn logs in with psql and with pgx, which both have to get the same: in as user, or the error want.
func comeIn(t testing.TB, pg *postgres, dsn, want string) {
	t.Helper()
	out, err := psql(t, pg, dsn, "select 'in'")
	if want == "" && (err != nil || out != "in") || want != "" && (err == nil || !strings.Contains(out, want)) {
		t.Errorf("psql %s: %q, %v; want %q", dsn, out, err, want)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, dsn)
	if err == nil {
		_, err = conn.Exec(ctx, "select 1").ReadAll()
		_ = conn.Close(ctx)
	}
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("pgx %s: %v; want %q", dsn, err, want)
	}
}

// role makes a user on the server, and returns what is stored of its password.
func role(t testing.TB, pg *postgres, name, password, encryption string) string {
	t.Helper()
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "set password_encryption = '"+encryption+"'; drop role if exists "+name+"; create role "+name+" login password '"+password+"'")
	return mustQuery(t, direct, "select rolpassword from pg_authid where rolname = '"+name+"'")
}

// TestEachMethodLetsInWhoKnowsTheSecret is each password method with each kind of secret, and its twin with a wrong one.
func TestEachMethodLetsInWhoKnowsTheSecret(t *testing.T) {
	pg := server(t)
	md5, scram := role(t, pg, "hashed", "swordfish", "md5"), role(t, pg, "salted", "swordfish", "scram-sha-256")
	role(t, pg, "plain", "swordfish", "scram-sha-256")
	encrypt := encrypted(t, "prefer")
	const wrong = "password authentication failed for user"
	for _, method := range []string{"plain", "md5", "scram-sha-256"} {
		t.Run(method, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "userlist.txt")
			text := "; PgBouncer's\n\"hashed\" \"" + md5 + "\" and more\n\"salted\" \"" + scram + "\"\n\"plain\" \"swordfish\"\n\"qu\"\"oted\" \"sword\"\"fish\"\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := start(t, pg, func(cfg *config.Config) {
				encrypt(cfg)
				cfg.Pooler.Auth = config.Auth{Type: method, File: file}
				cfg.Pooler.Databases = map[string]config.Database{"postgres": {User: "postgres"}, "own": {DBName: "postgres"}}
			})
			for _, name := range []string{"hashed", "salted", "plain"} {
				right := ""
				if name == "hashed" && method == "scram-sha-256" {
					right = wrong // as with PgBouncer: there is nothing to hold SCRAM against
				}
				for _, database := range []string{"postgres", "own"} {
					for _, mode := range []string{"disable", "require"} {
						dsn := r.dsn("user=" + name + " dbname=" + database + " sslmode=" + mode)
						comeIn(t, pg, dsn+" password=swordfish", right)
						comeIn(t, pg, dsn+" password=swordfis", wrong)
					}
				}
			}
			comeIn(t, pg, r.dsn(`user=qu"oted password=sword"fish`), "")
			comeIn(t, pg, r.dsn(`user=qu"oted password=swordfish`), wrong)
			comeIn(t, pg, r.dsn("user=nobody password=swordfish"), wrong)
		})
	}
}

func TestChannelBindingTiesTheLoginToTheCertificate(t *testing.T) {
	pg := server(t)
	encrypt := encrypted(t, "prefer")
	r := start(t, pg, func(cfg *config.Config) {
		encrypt(cfg)
		cfg.Pooler.Auth = config.Auth{Type: "scram-sha-256"}
		cfg.Pooler.Users = map[string]config.User{"postgres": {Password: "swordfish"}}
	})
	binding := r.dsn("sslmode=require channel_binding=require password=")
	comeIn(t, pg, binding+"swordfish", "")
	comeIn(t, pg, binding+"swordfis", "password authentication failed")
	comeIn(t, pg, r.dsn("sslmode=require channel_binding=disable password=swordfish"), "")
	comeIn(t, pg, r.dsn("sslmode=disable channel_binding=prefer password=swordfish"), "")
	middle := relay(t, r, encrypted(t, "prefer"))
	comeIn(t, pg, strings.Replace(binding+"swordfish", "port="+strconv.Itoa(r.port), "port="+strconv.Itoa(middle), 1), "password authentication failed")
}

// relay is somebody in the middle who has a certificate of its own, decrypts everything and passes it on.
func relay(t *testing.T, r *running, own func(*config.Config)) (port int) {
	t.Helper()
	var cfg config.Config
	own(&cfg)
	certificate, err := tls.LoadX509KeyPair(cfg.Pooler.ClientTLSCertFile, cfg.Pooler.ClientTLSKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	pass := func(from, to net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if _, failed := to.Write(buf[:n]); err != nil || failed != nil {
				from.Close()
				to.Close()
				return
			}
		}
	}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			var ask [8]byte
			server, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(r.port))
			if err != nil {
				return
			}
			if _, err := client.Read(ask[:]); err != nil {
				continue
			}
			_, _ = server.Write(ask[:])
			_, _ = server.Read(ask[:1])
			_, _ = client.Write(ask[:1])
			secure, onward := tls.Server(client, &tls.Config{Certificates: []tls.Certificate{certificate}}), tls.Client(server, &tls.Config{InsecureSkipVerify: true})
			go pass(secure, onward)
			go pass(onward, secure)
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// authority signs certificates of clients.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "authority"}}
	a.key = a.newKey()
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// sign returns the words of a connection string with which somebody shows a certificate.
func (a *authority) sign(subject pkix.Name) string {
	key := a.newKey()
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return " sslmode=require sslcert=" + a.write(subject.CommonName+".pem", "CERTIFICATE", der) + " sslkey=" + a.write(subject.CommonName+".key", "PRIVATE KEY", private)
}

func TestCertificatesLetClientsIn(t *testing.T) {
	pg := server(t)
	mustQuery(t, connect(t, pg.dsn("")), "drop role if exists alice; create role alice login")
	house, stranger := newAuthority(t), newAuthority(t)
	alice, foreign, bob := house.sign(pkix.Name{CommonName: "alice", Organization: []string{"house"}}), stranger.sign(pkix.Name{CommonName: "alice"}), house.sign(pkix.Name{CommonName: "bob"})
	encrypt := encrypted(t, "verify-full")
	r := start(t, pg, func(cfg *config.Config) {
		encrypt(cfg)
		cfg.Pooler.ClientTLSCAFile = house.file
		cfg.Pooler.Auth = config.Auth{Type: "cert"}
	})
	comeIn(t, pg, r.dsn("user=alice"+alice), "")
	comeIn(t, pg, r.dsn("user=alice"+bob), "certificate authentication failed for user")
	comeIn(t, pg, r.dsn("user=alice sslmode=disable"), "SSL connection is required")
	for _, dsn := range []string{"user=alice" + foreign, "user=alice sslmode=require"} {
		if out, err := psql(t, pg, r.dsn(dsn), "select 1"); err == nil {
			t.Errorf("%s let in: %s", dsn, out)
		}
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	rules := start(t, pg, func(cfg *config.Config) {
		encrypt(cfg)
		cfg.Pooler.ClientTLSSSLMode, cfg.Pooler.ClientTLSCAFile = "prefer", house.file
		cfg.Pooler.Auth = config.Auth{Type: "hba",
			HBAFile:   write("hba", "hostssl all alice 127.0.0.1/32 cert map=m clientname=DN\nhostnossl all postgres 127.0.0.0/8 password\nhost all all all reject\n"),
			IdentFile: write("ident", "m \"CN=alice,O=house\" alice\n")}
		cfg.Pooler.Users = map[string]config.User{"postgres": {Password: "swordfish"}, "alice": {}}
	})
	comeIn(t, pg, rules.dsn("user=alice"+alice), "")
	comeIn(t, pg, rules.dsn("user=alice"+bob), "certificate authentication failed for user")
	comeIn(t, pg, rules.dsn("user=alice"+foreign), "connection requires a valid client certificate")
	comeIn(t, pg, rules.dsn("user=alice sslmode=disable"), "rejected by the pooler's rules")
	comeIn(t, pg, rules.dsn("password=swordfish"), "")
	comeIn(t, pg, rules.dsn("password=wrong"), "password authentication failed")
	comeIn(t, pg, rules.dsn("password=swordfish sslmode=require"), "rejected by the pooler's rules")
}

func TestPeerOfUnixSocketIsKnown(t *testing.T) {
	pg := server(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir, abstract := t.TempDir(), "@pitr-test-"+strconv.Itoa(os.Getpid())
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, place := range []string{dir, abstract} {
		encrypt := encrypted(t, "require")
		r := start(t, pg, func(cfg *config.Config) {
			encrypt(cfg)
			cfg.Pooler.UnixSocketDir, cfg.Pooler.UnixSocketMode = place, "0700"
			cfg.Pooler.Auth = config.Auth{Type: "hba", HBAFile: write("hba", "local all all peer map=m\n"), IdentFile: write("ident", "m "+me.Username+" postgres\n")}
		})
		dsn := "host=" + place + " port=" + strconv.Itoa(r.port) + " dbname=postgres user="
		if out, err := psql(t, pg, dsn+"postgres", "select 'in'"); err != nil || out != "in" {
			t.Errorf("%s: %q, %v", place, out, err)
		}
		if out, err := psql(t, pg, dsn+"alice", "select 'in'"); err == nil || !strings.Contains(out, `Peer authentication failed for user "alice"`) {
			t.Errorf("%s: %q, %v", place, out, err)
		}
		if place == dir {
			comeIn(t, pg, dsn+"postgres", "")
			info, err := os.Stat(filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(r.port)))
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info, err)
			}
			r.stop()
			if _, err := os.Stat(filepath.Join(dir, ".s.PGSQL."+strconv.Itoa(r.port))); err == nil {
				t.Error("the socket has stayed")
			}
		}
	}
}
