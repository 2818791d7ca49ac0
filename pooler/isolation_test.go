package pooler

import (
	"strings"
	"testing"

	"pitr/config"
)

// onePerPool makes every client meet every other on the same server.
func onePerPool(cfg *config.Config) { cfg.Pooler.DefaultPoolSize = 1 }

func TestNothingOfOneClientReachesTheNext(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { onePerPool(cfg); cfg.Pooler.SessionObjects = "reset" })
	first, second := connect(t, r.dsn("")), connect(t, r.dsn(""))
	leave := func(sql, check, want string) {
		t.Helper()
		backend := mustQuery(t, first, "select pg_backend_pid()")
		mustQuery(t, first, sql)
		if got := mustQuery(t, second, check); got != want {
			t.Errorf("after %q another client reads %q from %q, want %q", sql, got, check, want)
		}
		if other := mustQuery(t, second, "select pg_backend_pid()"); other != backend {
			t.Errorf("after %q the server is another one: the test shows nothing", sql)
		}
	}
	leave("set work_mem = '77MB'", "show work_mem", "4MB")
	leave("set search_path = nowhere", "show search_path", `"$user", public`)
	leave("begin; set local work_mem = '77MB'; commit", "show work_mem", "4MB")
	leave("select set_config('work_mem', '77MB', false)", "show work_mem", "4MB")
	leave("set role pg_monitor", "select current_user", "postgres")
	leave("set session authorization pg_monitor", "select session_user", "postgres")
	leave("create temp table secrets (x int)", "select to_regclass('secrets') is null", "t")
	leave("create temporary table secrets as select 1", "select to_regclass('secrets') is null", "t")
	leave("select 1 into temp secrets", "select to_regclass('secrets') is null", "t")
	leave("create table pg_temp.secrets as select 1", "select to_regclass('secrets') is null", "t")
	leave("create temp view secrets as select 1", "select to_regclass('secrets') is null", "t")
	leave("do 'begin create temp table secrets (x int); end'", "select to_regclass('secrets') is null", "t")
	leave("prepare secret as select 1", "select count(*) from pg_prepared_statements where name = 'secret'", "0")
	leave("listen secrets", "select count(*) from pg_listening_channels()", "0")
	leave("begin; declare secret cursor with hold for select 1; commit", "select count(*) from pg_cursors", "0")
	leave("select pg_advisory_lock(42)", "select count(*) from pg_locks where locktype = 'advisory'", "0")
	leave("select pg_try_advisory_lock_shared(42)", "select count(*) from pg_locks where locktype = 'advisory'", "0")
	leave("select 1; create temp table secrets (x int); select 2", "select to_regclass('secrets') is null", "t")
}

func TestUnnamedStatementBelongsToItsClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	first, second := raw(t, r), raw(t, r)
	first.send(parse("", "select 'secret'"), syncNow)
	first.until('Z')
	second.send(bind("", ""), execute, syncNow)
	if got := second.until('Z'); !strings.Contains(got, "26000") || strings.Contains(got, "secret") {
		t.Errorf("binding somebody else's unnamed statement gave %s", got)
	}
	first.send(bind("", ""), execute, syncNow)
	if got := first.until('Z'); !strings.Contains(got, "secret") {
		t.Errorf("binding its own unnamed statement later gave %s", got)
	}
	second.send(parse("", "select 'other'"), syncNow)
	second.until('Z')
	first.send(bind("", ""), execute, syncNow)
	if got := first.until('Z'); !strings.Contains(got, "secret") {
		t.Errorf("binding its own unnamed statement after another's gave %s", got)
	}
	first.send(bind("", "pitr_1"), execute, syncNow)
	if got := first.until('Z'); !strings.Contains(got, "26000") {
		t.Errorf("binding a statement of the pooler gave %s", got)
	}
}

func TestStartupParametersAreTheClientsOwn(t *testing.T) {
	pg := server(t)
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			r := start(t, pg, func(cfg *config.Config) { inMode(mode)(cfg); cfg.Pooler.DefaultPoolSize = 3 })
			plain := connect(t, r.dsn(""))
			tokyo := connect(t, r.dsn(`timezone=Asia/Tokyo application_name=tokyo search_path='"a b", public' options='-c work_mem=5MB --statement-timeout=17s'`))
			german := connect(t, r.dsn(`datestyle=German client_encoding=LATIN1 extra_float_digits=0`))
			if got := tokyo.ParameterStatus("TimeZone"); got != "Asia/Tokyo" {
				t.Errorf("the login reported TimeZone %q", got)
			}
			if got := german.ParameterStatus("DateStyle") + " " + german.ParameterStatus("client_encoding"); got != "German, DMY LATIN1" {
				t.Errorf("the login reported %q", got)
			}
			if got := plain.ParameterStatus("TimeZone"); got != mustQuery(t, plain, "show timezone") || got == "Asia/Tokyo" {
				t.Errorf("the login without settings reported TimeZone %q", got)
			}
			for range 20 {
				all := "select concat_ws('|', current_setting('timezone'), current_setting('application_name'), current_setting('search_path'), " +
					"current_setting('work_mem'), current_setting('statement_timeout'), current_setting('datestyle'), current_setting('client_encoding'))"
				if got, want := mustQuery(t, tokyo, all), `Asia/Tokyo|tokyo|"a b", public|5MB|17s|ISO, MDY|UTF8`; got != want {
					t.Fatalf("tokyo has %s", got)
				}
				if got, want := mustQuery(t, german, all), `UTC|pitr|"$user", public|4MB|0|German, DMY|LATIN1`; !same(got, want) {
					t.Fatalf("german has %s", got)
				}
				if got, want := mustQuery(t, plain, all), `UTC|pitr|"$user", public|4MB|0|ISO, MDY|UTF8`; !same(got, want) {
					t.Fatalf("plain has %s", got)
				}
			}
		})
	}
}

// same compares all but the time zone, which is the machine's.
func same(got, want string) bool {
	_, got, _ = strings.Cut(got, "|")
	_, want, _ = strings.Cut(want, "|")
	return got == want
}

func TestReportedSettingsFollowTheClient(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	first, second := connect(t, r.dsn("")), connect(t, r.dsn("timezone=Asia/Tokyo"))
	mustQuery(t, first, "set timezone = 'Europe/Berlin'")
	mustQuery(t, first, "begin; set local datestyle = 'German'; rollback")
	for range 3 {
		if got := mustQuery(t, second, "show timezone"); got != "Asia/Tokyo" {
			t.Errorf("the second client has %s", got)
		}
		if got := mustQuery(t, first, "show timezone") + mustQuery(t, first, "show datestyle"); got != "Europe/BerlinISO, MDY" {
			t.Errorf("the first client has %s", got)
		}
	}
}

func TestInvalidStartupParameterIsRefusedAtLogin(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	for parameter, code := range map[string]string{
		"datestyle=nonsense":      "22023",
		"no_such_thing=1":         "42704",
		"options='-d 5'":          "22023",
		"replication=database":    "53300", // max_replication_connections is zero
		`application_name=\\';--`: "",      // harmless
	} {
		err := startup(t, r, parameter)
		if code == "" && err != nil || code != "" && (err == nil || !strings.Contains(err.Error(), code)) {
			t.Errorf("%s: %v, want %q", parameter, err, code)
		}
	}
	if got := mustQuery(t, connect(t, r.dsn("")), "select 1"); got != "1" {
		t.Error("the pool does not work any more")
	}
}

// TestStatementsMeanWhatTheirClientsSettingsSay lets clients prepare the same bytes under settings that decide, while Postgres
// parses, which value a literal is.
func TestStatementsMeanWhatTheirClientsSettingsSay(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	check := func(settings, text, want string) {
		t.Helper()
		conn := pgxConnect(t, r.dsn("default_query_exec_mode=cache_statement "+settings))
		for range 3 {
			var got string
			if err := conn.QueryRow(t.Context(), text).Scan(&got); err != nil || got != want {
				t.Errorf("with %s %s is %q, want %q, err %v", settings, text, got, want, err)
			}
		}
	}
	const instant = "select extract(epoch from timestamptz '2020-01-01 00:00')::int::text"
	check("timezone=UTC application_name=one", instant, "1577836800")
	check("timezone=Asia/Tokyo", instant, "1577804400")
	check("timezone=UTC application_name=two", instant, "1577836800")
	const date = "select extract(month from date '01/02/2003')::int::text"
	check("datestyle=ISO,MDY", date, "1")
	check("datestyle=ISO,DMY", date, "2")
	const letters = "select length('\xc3\xa9')::text"
	check("client_encoding=UTF8", letters, "1")
	check("client_encoding=LATIN1", letters, "2")
	if st := r.Stats().Pools[0]; st.Connects != 1 || st.Cleanings != 0 {
		t.Errorf("the statements did not meet on one server that kept them: %+v", st)
	}
}
