package pgbouncer

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pitr/config"
)

// recorded are the settings of SHOW CONFIG of PgBouncer 1.26.1 with their defaults.
func recorded(t *testing.T) map[string]string {
	t.Helper()
	content, err := os.ReadFile("testdata/show_config.txt")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for line := range strings.Lines(string(content)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " |")
		list[name] = strings.TrimSpace(value)
	}
	if len(list) < 90 {
		t.Fatalf("only %d settings were recorded", len(list))
	}
	return list
}

func TestEverySettingOfPgBouncerIsTakenOverOrHasAReason(t *testing.T) {
	ours := map[string]bool{}
	for _, s := range config.Settings() {
		ours[s.Key] = true
	}
	known := recorded(t)
	for name := range known {
		if s, found := settings[name]; !found && !slices.Contains(processSettings, name) {
			t.Errorf("%s is forgotten", name)
		} else if s.key == "" && s.note == "" && found {
			t.Errorf("%s has neither a key nor a reason", name)
		}
	}
	for name, s := range settings {
		if s.key != "" && !ours[s.key] {
			t.Errorf("%s: there is no setting %s", name, s.key)
		}
		if _, found := known[name]; !found && name != "service_name" {
			t.Errorf("PgBouncer has no setting %s", name)
		}
	}
	for prefix, table := range map[string]map[string]setting{"pooler.databases.*.": databaseSettings, "pooler.users.*.": userSettings, "pooler.peers.*.": peerSettings} {
		for name, s := range table {
			if !ours[prefix+s.key] {
				t.Errorf("%s: there is no setting %s%s", name, prefix, s.key)
			}
		}
	}
}

func translate(t *testing.T, content string) (*Translation, *config.Config) {
	t.Helper()
	translation, err := Translate(write(t, "pgbouncer.ini", content))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Parse("pgbouncer.ini", []byte(translation.YAML))
	if err != nil {
		t.Fatalf("%v\n%s", err, translation.YAML)
	}
	return translation, cfg
}

func TestPgBouncersDefaultsHoldWhereNothingIsSaid(t *testing.T) {
	said := "[pgbouncer]\n"
	for name, value := range recorded(t) {
		if value != "" && name != "conffile" && name != "auth_query" { // ours names schemas, and means the same
			said += name + " = " + value + "\n"
		}
	}
	_, silent := translate(t, "[pgbouncer]\n")
	_, spoken := translate(t, said)
	if diff := cmp.Diff(silent.YAML(), spoken.YAML()); diff != "" {
		t.Errorf("PgBouncer's defaults left out, and written: %s", diff)
	}
}

func TestAnIniMeansWhatItMeansToPgBouncer(t *testing.T) {
	translation, cfg := translate(t, `
[databases]
app = host=db1 port=5433 dbname=app_production user=app password='it''s $ecret ${HOME} \n' pool_size=7 pool_mode=session server_lifetime=90 connect_query='set work_mem = ''8MB''' timezone=UTC
* = host=db2,db3 load_balance_hosts=disable
"odd ""name"": x" = dbname=odd
[users]
report = pool_mode=statement max_user_connections=3 query_timeout=1.5
[pgbouncer]
listen_addr = 127.0.0.1, ::1
listen_port = 6543
pool_mode = transaction
server_idle_timeout = 2.5
client_login_timeout = 0
server_reset_query_always = 1
admin_users = alice, bob
so_reuseport = 1
logfile = /var/log/pgbouncer.log
pidfile = /run/pgbouncer.pid
user = pgbouncer
verbose = 2
`)
	p := cfg.Pooler
	app := p.Databases["app"]
	if app.Host != "db1" || app.Port != "5433" || app.DBName != "app_production" || app.User != "app" || app.Password.Reveal() != `it's $ecret ${HOME} \n` || app.PoolSize != 7 || app.PoolMode != "session" ||
		app.ConnectQuery != "set work_mem = '8MB'" || app.TimeZone != "UTC" {
		t.Errorf("app is %+v with password %q", app, app.Password.Reveal())
	}
	if p.Databases["*"].Host != "db2,db3" || p.Databases["*"].LoadBalanceHosts != "disable" || p.Databases[`odd "name": x`].DBName != "odd" || len(p.Databases) != 3 {
		t.Errorf("databases are %+v", p.Databases)
	}
	if !slices.Equal(p.Listen, []string{"127.0.0.1:6543", "[::1]:6543"}) || p.PoolMode != "transaction" || p.ServerIdleTimeout.D().Milliseconds() != 2500 || p.ClientLoginTimeout.D().Hours() != 1 || !slices.Equal(p.AdminUsers, []string{"alice", "bob"}) {
		t.Errorf("the pooler is %+v", p)
	}
	if len(translation.Notes) != 1 || !strings.Contains(translation.Notes[0], "pgbouncer.ini:16: so_reuseport: ") {
		t.Errorf("notes %q", translation.Notes)
	}
	if want := (Process{"/var/log/pgbouncer.log", "/run/pgbouncer.pid", "pgbouncer", 2}); translation.Process != want {
		t.Errorf("the process is %+v", translation.Process)
	}
}

func TestWhatPgBouncerRefusesIsRefusedWithItsPlace(t *testing.T) {
	for content, want := range map[string]string{
		"[pgbouncer]\npool_size = 3":                     "pgbouncer.ini:2: unknown parameter: pgbouncer/pool_size",
		"[databases]\na = hots=x":                        "pgbouncer.ini:2: unknown parameter: databases/a: hots",
		"[pgbouncer]\n\ndefault_pool_size = many":        "pgbouncer.ini:3: default_pool_size: \"many\" is no whole number",
		"[pgbouncer]\nserver_lifetime = -1":              "is no time in seconds",
		"[pgbouncer]\nserver_reset_query_always = maybe": "is neither 0 nor 1",
		"[pgbouncer]\nauth_type = pam":                   "no auth_type pam",
		"[pgbouncer]\nlisten_port = none":                "is no whole number",
		"[databases]\na = password='x":                   "a quotation mark is missing",
		"[pgbouncer]\nunix_socket_mode = 999":            "is no file mode",
	} {
		_, err := Translate(write(t, "pgbouncer.ini", content))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
		if strings.Contains(want, "unknown parameter") && !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v is not ErrUnknown", content, err)
		}
	}
}
