package pooler

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/config"
)

// asks makes a pooler ask Postgres who may log in.
func asks(cfg *config.Config) {
	cfg.Pooler.Auth = config.Default().Pooler.Auth
	cfg.Pooler.Auth.User = "postgres"
	cfg.Pooler.Auth.QueryCacheLifetime = 0
}

func TestPostgresIsAskedWhoMayLogIn(t *testing.T) {
	pg := server(t)
	role(t, pg, "queried", "swordfish", "scram-sha-256")
	role(t, pg, "queried5", "swordfish", "md5")
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "drop role if exists group5; create role group5 nologin password 'swordfish'; drop role if exists nopass; create role nopass login; drop role if exists over; create role over login password 'swordfish' valid until '2001-01-01'")
	mustQuery(t, direct, `drop role if exists "o'quoted"; create role "o'quoted" login password 'swordfish'`)
	demand(t, pg, newAuthority(t).file, "host all queried all scram-sha-256", "host all queried5 all md5", "host all over all trust")
	r := start(t, pg, func(cfg *config.Config) {
		asks(cfg)
		cfg.Pooler.Auth.Type = "md5"
		cfg.Pooler.Databases = map[string]config.Database{
			"postgres": {}, "elsewhere": {DBName: "no such database", AuthDBName: "postgres"},
			"refusing": {DBName: "postgres", AuthQuery: "select null::text, null::text where $1 <> ''"}, "failing": {DBName: "postgres", AuthQuery: "select 1/0, $1"},
			"narrow": {DBName: "postgres", AuthQuery: "select $1::text"}, "mistaken": {DBName: "postgres", AuthQuery: "select 'postgres', $1::text"},
		}
	})
	const wrong = "password authentication failed for user"
	comeIn(t, pg, r.dsn("user=queried password=swordfish"), "")
	comeIn(t, pg, r.dsn("user=queried password=wrong"), wrong)
	comeIn(t, pg, r.dsn("user=queried5 password=swordfish"), "")
	comeIn(t, pg, r.dsn("user=queried5 password=wrong"), wrong)
	comeIn(t, pg, r.dsn("user=nobody password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user=group5 password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user=nopass password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user=o\\'quoted password=swordfish"), "")
	comeIn(t, pg, r.dsn("user='x\\' or true --' password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user="+strings.Repeat("q", 100)+" password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user=queried password=swordfish dbname=missing"), wrong)
	comeIn(t, pg, r.dsn("user=queried password=swordfish dbname=elsewhere"), `database "no such database" does not exist`)
	comeIn(t, pg, r.dsn("user=queried password=swordfish dbname=refusing"), wrong)
	for _, database := range []string{"failing", "narrow", "mistaken"} {
		comeIn(t, pg, r.dsn("user=queried password=swordfish dbname="+database), "cannot find out who may log in")
	}
	if n := mustQuery(t, direct, "select count(*) from pg_stat_activity where application_name = 'pitr auth_query' and state = 'idle'"); n == "0" || len(n) > 1 || n > "4" {
		t.Errorf("there are %s connections for auth_query", n)
	}
	// They end meanwhile, and nobody notices.
	mustQuery(t, direct, "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'pitr auth_query'")
	comeIn(t, pg, r.dsn("user=queried password=swordfish"), "")
	// A password that was changed works at once, the old one does not.
	mustQuery(t, direct, "alter role queried password 'trout'")
	comeIn(t, pg, r.dsn("user=queried password=swordfish"), wrong)
	comeIn(t, pg, r.dsn("user=queried password=trout"), "")
}

// TestAuthQueryIsBounded has more clients log in at once than there are connections to ask with.
func TestAuthQueryIsBounded(t *testing.T) {
	pg := server(t)
	direct := connect(t, pg.dsn(""))
	mustQuery(t, direct, "create or replace function slow_lookup(inout who text, out secret text) language sql as $$ select who, 'swordfish' from pg_sleep(0.02) $$")
	r := start(t, pg, func(cfg *config.Config) {
		asks(cfg)
		cfg.Pooler.Auth.QueryConnections = 2
		cfg.Pooler.Auth.Query = "select * from public.slow_lookup($1)"
	})
	count := func() string {
		return mustQuery(t, direct, "select count(*) from pg_stat_activity where application_name = 'pitr auth_query'")
	}
	var work sync.WaitGroup
	for i := range 20 {
		work.Go(func() {
			if err := startup(t, r, fmt.Sprintf("user=nobody%d password=wrong", i)); err == nil || !strings.Contains(err.Error(), "28P01") {
				t.Error(err)
			}
		})
	}
	most := "0"
	work.Go(func() {
		for range 50 {
			most = max(most, count())
		}
	})
	work.Wait()
	if most = max(most, count()); most != "1" && most != "2" {
		t.Errorf("there were %s connections", most)
	}
}

// TestUnknownUserTakesTheTimeOfAWrongPassword reports what a thousand tries of each take. The figures are only logged, since they depend on the
// machine; that the conversations are the same is held by TestUnknownUserAndWrongPasswordLookAlike.
func TestUnknownUserTakesTheTimeOfAWrongPassword(t *testing.T) {
	pg := server(t)
	scram := role(t, pg, "stored", "swordfish", "scram-sha-256")
	role(t, pg, "queried", "swordfish", "scram-sha-256")
	var log bytes.Buffer
	for _, method := range []string{"scram-sha-256", "plain"} {
		r := startLogging(t, pg, func(cfg *config.Config) {
			asks(cfg)
			cfg.Pooler.Auth.Type, cfg.Pooler.Auth.QueryCacheLifetime = method, config.Duration(time.Hour)
			cfg.Pooler.Users = map[string]config.User{"stored": {Password: config.Secret(scram)}, "plain": {Password: "swordfish"}}
		}, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})))
		took := map[string]time.Duration{}
		names := []string{"stored", "plain", "queried", "unknown"}
		for i := range 1000 {
			name := names[i%len(names)]
			for _, name := range []string{name, names[(i+1)%len(names)], names[(i+2)%len(names)], names[(i+3)%len(names)]} {
				begin := time.Now()
				err := startup(t, r, "user="+name+" password=wrong")
				took[name] += time.Since(begin)
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`password authentication failed for user "%s" (SQLSTATE 28P01)`, name)) {
					t.Fatalf("%s: %v", name, err)
				}
			}
		}
		for _, name := range names {
			t.Logf("%s: 1000 wrong passwords for %s took %v each", method, name, took[name]/1000)
		}
	}
}
