package pooler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pitr/config"
	"pitr/pooler/auth"
)

// TestGateIsReadAgainWithoutDroppingAnyone changes the certificate and the users under a client, and then breaks each file.
func TestGateIsReadAgainWithoutDroppingAnyone(t *testing.T) {
	pg := server(t)
	dir := t.TempDir()
	copyOf := func(from, name string) string {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var first, second config.Config
	encrypted(t, "require")(&first)
	encrypted(t, "require")(&second)
	users := filepath.Join(dir, "userlist.txt")
	list := func(text string) {
		if err := os.WriteFile(users, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list(`"postgres" "swordfish"`)
	r := start(t, pg, func(cfg *config.Config) {
		cfg.Pooler.ClientTLSSSLMode = "require"
		cfg.Pooler.ClientTLSCertFile, cfg.Pooler.ClientTLSKeyFile = copyOf(first.Pooler.ClientTLSCertFile, "cert"), copyOf(first.Pooler.ClientTLSKeyFile, "key")
		cfg.Pooler.Auth = config.Auth{Type: "scram-sha-256", File: users}
		cfg.Pooler.Databases = map[string]config.Database{"postgres": {User: "postgres"}}
	})
	trusting := func(ca, more string) string {
		return r.dsn("sslmode=verify-full sslrootcert=" + ca + " channel_binding=require " + more)
	}
	conn := connect(t, trusting(first.Pooler.ClientTLSCertFile, "password=swordfish"))
	copyOf(second.Pooler.ClientTLSCertFile, "cert")
	copyOf(second.Pooler.ClientTLSKeyFile, "key")
	list(`"postgres" "trout"` + "\n" + `"other" "carp"`)
	comeIn(t, pg, trusting(first.Pooler.ClientTLSCertFile, "password=swordfish"), "") // nothing has changed yet
	salt := func() string {
		t.Helper()
		login, err := r.gate.Load().users.Begin(t.Context(), auth.Request{User: "nobody"})
		if err != nil {
			t.Fatal(err)
		}
		if err := login.Choose(login.Mechanisms[0]); err != nil {
			t.Fatal(err)
		}
		answer, _, err := login.Step([]byte("n,,n=,r=x"))
		if err != nil {
			t.Fatal(err)
		}
		_, salt, _ := strings.Cut(string(answer), ",")
		return salt
	}
	before := salt()
	if err := r.again(); err != nil {
		t.Fatal(err)
	}
	if after := salt(); after != before {
		t.Errorf("who does not exist had %s, and has %s", before, after)
	}
	if got := mustQuery(t, conn, "select 'still in'"); got != "still in" {
		t.Errorf("got %q", got)
	}
	check := func() {
		t.Helper()
		comeIn(t, pg, trusting(second.Pooler.ClientTLSCertFile, "password=trout"), "")
		comeIn(t, pg, trusting(second.Pooler.ClientTLSCertFile, "password=carp user=other"), "")
		comeIn(t, pg, trusting(second.Pooler.ClientTLSCertFile, "password=swordfish"), "password authentication failed")
		comeIn(t, pg, trusting(first.Pooler.ClientTLSCertFile, "password=trout"), "certificate")
	}
	check()
	list(`"postgres" "lost`)
	if err := r.again(); err == nil || !strings.Contains(err.Error(), "pooler.auth.file") {
		t.Errorf("a broken list: %v", err)
	}
	check()
	list(`"postgres" "perch"`)
	copyOf(first.Pooler.ClientTLSCertFile, "cert") // which the key does not fit
	if err := r.again(); err == nil || !strings.Contains(err.Error(), "pooler.client_tls_cert_file") {
		t.Errorf("a broken pair: %v", err)
	}
	check()
}

// again reads what the settings name once more, as a reload does.
func (r *running) again() error {
	_, err := r.apply(r.live.Load())
	return err
}
