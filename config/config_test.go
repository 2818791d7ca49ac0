package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEveryFieldHasASettingAndBack(t *testing.T) {
	fields := map[string]bool{}
	var walk func(prefix string, kind reflect.Type)
	walk = func(prefix string, kind reflect.Type) {
		for i := range kind.NumField() {
			field := kind.Field(i)
			name := field.Tag.Get("yaml")
			if name == "-" {
				continue
			}
			switch key := join(prefix, name); {
			case field.Type.Kind() == reflect.Map:
				fields[key] = true
				walk(key+".*", field.Type.Elem())
			case field.Type.Kind() == reflect.Struct:
				walk(key, field.Type)
			default:
				fields[key] = true
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	for _, setting := range Settings() {
		if !fields[setting.Key] {
			t.Errorf("setting %s has no field", setting.Key)
		}
		delete(fields, setting.Key)
		if setting.Doc == "" {
			t.Errorf("setting %s has no documentation", setting.Key)
		}
	}
	for key := range fields {
		t.Errorf("field %s has no setting", key)
	}
}

func TestDefaultsAreValidAndInRange(t *testing.T) {
	cfg, err := Parse("empty", nil)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Cluster != "main" || cfg.Archive.FlushInterval.D() != time.Second || cfg.Pooler.Listen[0] != "127.0.0.1:6432" {
		t.Errorf("defaults are %+v", cfg)
	}
	for _, setting := range Settings() {
		if setting.Default == "" || setting.Range == "" {
			continue
		}
		if err := checkRange(setting.Key, setting.Default); err != nil {
			t.Errorf("default of %s: %v", setting.Key, err)
		}
	}
	again, err := Parse("shown", []byte(cfg.YAML()))
	if err != nil {
		t.Fatalf("what show prints is refused: %v", err)
	}
	if again.YAML() != cfg.YAML() {
		t.Errorf("what show prints reads back differently")
	}
}

func TestEveryProblemIsReportedWithLineAndKey(t *testing.T) {
	content := `cluster: main
pooler:
  pool_mod: session
  default_pool_size: many
  query_wait_timeout: 30
  pool_mode: request
  max_client_conn: 0
archive:
  store: "ftp://x"
  flush_interval: 2h
  slot: ${SLOT}
  slot: twice
postgres:
  dsn: "postgres://u:${PITR_TEST_UNSET}@h/d"
backup: 7
http: {archiver: nowhere}
restore: {time_zone: Mars/Olympus}
`
	_, err := Parse("pitr.yaml", []byte(content))
	if err == nil {
		t.Fatal("it was accepted")
	}
	for _, want := range []string{
		`line 3: pooler.pool_mod: unknown key; did you mean pool_mode?`,
		`line 4: pooler.default_pool_size: "many" is not a whole number`,
		`line 5: pooler.query_wait_timeout: "30" needs a unit, for example 30s, 5m, 1h or 7d`,
		`line 6: pooler.pool_mode: "request" is none of session, transaction, statement`,
		`line 7: pooler.max_client_conn: "0" is out of range: 1 to 1000000`,
		`line 10: archive.flush_interval: "2h" is out of range: 10ms to 1m`,
		`line 11: archive.slot: refers to the environment; only secrets may`,
		`archive.slot: is set twice`,
		`line 14: postgres.dsn: refers to ${PITR_TEST_UNSET}, which is not set in the environment`,
		`line 15: backup: expected a section of keys and values`,
		`line 9: archive.store: must begin with file:// or s3://`,
		`line 16: http.archiver: "nowhere" is no host:port`,
		`line 17: restore.time_zone: "Mars/Olympus" is no time zone, for example Europe/Berlin`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
}

func TestSyntaxErrorsNameTheLine(t *testing.T) {
	_, err := Parse("pitr.yaml", []byte("cluster: main\npooler: {listen: [\n"))
	if err == nil || !strings.Contains(err.Error(), "line ") {
		t.Errorf("got %v", err)
	}
}

func TestSecretsComeFromTheEnvironmentAndNeverPrint(t *testing.T) {
	t.Setenv("PITR_TEST_PASSWORD", "s3cr:t@x")
	cfg, err := Parse("pitr.yaml", []byte(`
postgres: {dsn: "host=h user=u password=${PITR_TEST_PASSWORD} dbname=d"}
archive: {store: "s3://bucket/p?endpoint=http://127.0.0.1:1"}
pooler: {users: {app: {password: "${PITR_TEST_PASSWORD}"}, odd: {password: "a$${b}"}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if got := cfg.Pooler.Users["app"].Password.Reveal(); got != "s3cr:t@x" {
		t.Errorf("password is %q", got)
	}
	if got := cfg.Pooler.Users["odd"].Password.Reveal(); got != "a${b}" {
		t.Errorf("a password with $${ is %q", got)
	}
	if shown := cfg.YAML(); strings.Contains(shown, "s3cr") || !strings.Contains(shown, "password=***") {
		t.Errorf("the secret shows:\n%s", shown)
	}
	if shown := DSN("postgres://u:pw@h:1/d?sslmode=disable").String(); shown != "postgres://u:***@h:1/d?sslmode=disable" {
		t.Errorf("DSN prints as %s", shown)
	}
}

func TestDurationsAndSizesRoundTrip(t *testing.T) {
	for _, text := range []string{"0s", "250ms", "30s", "2m", "1h30m", "7d", "1h"} {
		if d, err := ParseDuration(text); err != nil || d.String() != text {
			t.Errorf("%s came back as %s, %v", text, d, err)
		}
	}
	for _, text := range []string{"0B", "1B", "64KiB", "16MiB", "3GiB", "1025B"} {
		if b, err := ParseByteSize(text); err != nil || b.String() != text {
			t.Errorf("%s came back as %s, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "1", "1.5MiB", "-1B", "9999999999GiB", "MiB", "1MB"} {
		if b, err := ParseByteSize(text); err == nil {
			t.Errorf("ParseByteSize(%q) = %s", text, b)
		}
	}
}

func TestDocumentationIsUpToDate(t *testing.T) {
	const path = "../docs/CONFIG.md"
	if os.Getenv("PITR_UPDATE_DOCS") != "" {
		if err := os.WriteFile(path, []byte(Markdown()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(content) != Markdown() {
		t.Error("docs/CONFIG.md differs from config/settings.go; PITR_UPDATE_DOCS=1 go test ./config writes it")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("cluster: main\npooler: {users: {a: {password: x}}}\n")) // a small valid file
	f.Add([]byte("a: &x [*x]\n"))                                         // an anchor that contains itself
	f.Add([]byte("pooler: {listen: 7}\n---\nmore: 1\n"))                  // a wrong kind, a second document
	f.Fuzz(func(t *testing.T, content []byte) {
		if cfg, err := Parse("fuzz", content); err == nil {
			if _, err := Parse("again", []byte(cfg.YAML())); err != nil && !strings.Contains(cfg.YAML(), "***") {
				t.Fatalf("what show prints is refused: %v", err)
			}
		}
	})
}

func TestStoresOfAnArchiveAreDifferentOnesAndEnoughForTheQuorum(t *testing.T) {
	for text, want := range map[string]string{
		`{store: "file:///a", copies: ["s3://b/c?endpoint=https://x:y@h&region=r"], quorum: 2}`: "",
		`{store: "file:///a", copies: ["file:///a/"]}`:                                          "archive.copies[0] is the same place as archive.store",
		`{store: "s3://b/c?region=one", copies: ["file:///a", "s3://b/c/?region=two"]}`:         "archive.copies[1] is the same place as archive.store",
		`{store: "s3://b/c?endpoint=http://h1", copies: ["s3://b/c?endpoint=http://h2"]}`:       "",
		`{store: "file:///a", copies: ["ftp://b"]}`:                                             "archive.copies[0] must begin with file:// or s3://",
		`{store: "file:///a", quorum: 2}`:                                                       "archive.quorum is 2, but there are only 1 stores",
		`{copies: ["file:///a"]}`:                                                               "archive.copies are copies of archive.store, which is not set",
	} {
		_, err := Parse("pitr.yaml", []byte("archive: "+text))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), ": ", " "), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if name := StoreName("s3://b/c?endpoint=https://user:secret@h:9000&region=r"); name != "s3://b/c?endpoint=h:9000" {
		t.Errorf("the name is %s", name)
	}
}

func TestARetentionNeedsAStoreThatRetains(t *testing.T) {
	for settings, want := range map[string]string{
		`store: "s3://b/p", lock: 30d`:                               "",
		`store: "file:///r", copies: ["s3://b/p"], lock: 30d`:        "",
		`store: "file:///r", lock: 30d`:                              "archive.lock: needs a store that retains objects",
		`store: "s3://b/p", lock: 12h`:                               "archive.lock: must be 0 or at least 1d",
		`store: "s3://b/p", lock: 30d, lock_mode: legal`:             "is none of governance, compliance",
		`store: "s3://b/p", lock: 4000d`:                             "is out of range",
		`store: "s3://b/p", lock: 30d, lock_mode: compliance`:        "",
		`store: "file:///r", lock_mode: compliance, sweep_grace: 1h`: "",
	} {
		_, err := Parse("pitr.yaml", []byte("archive: {"+settings+"}\n"))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", settings, want, err)
		}
	}
}
