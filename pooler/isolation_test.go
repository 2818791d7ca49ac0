package pooler

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

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
		"replication=database":    "0A000",
		`application_name=\\';--`: "", // harmless
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

// TestWhoseRowIsIt lets many clients share few servers, each asking only for values that name it, in every way there is.
func TestWhoseRowIsIt(t *testing.T) {
	pg := server(t)
	clients, seconds := 200, 5
	if text := os.Getenv("PITR_STRESS_SECONDS"); text != "" {
		seconds, _ = strconv.Atoi(text)
	}
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.MaxPreparedStatements = 20 })
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	mustQuery(t, connect(t, r.dsn("")), "create table if not exists owned (client int, n int)")
	deadline := time.Now().Add(time.Duration(seconds) * time.Second)
	crowd(t, clients, func(client int) error {
		random := rand.New(rand.NewPCG(seed, uint64(client)))
		for time.Now().Before(deadline) {
			if err := rounds(t, r, client, random, deadline); err != nil {
				return fmt.Errorf("client %d: %w", client, err)
			}
		}
		return nil
	})
	st := r.Stats()
	t.Logf("%d transactions, %d cleanings, limits %+v", st.Pools[0].Transactions, st.Pools[0].Cleanings, st.Limits)
}

// rounds is one connection of a client, which may end in the middle of anything.
func rounds(t *testing.T, r *running, client int, random *rand.Rand, deadline time.Time) error {
	ctx := t.Context()
	name := fmt.Sprintf("client-%d", client)
	protocol := []string{"cache_statement", "exec", "simple_protocol", "describe_exec"}[random.IntN(4)]
	conn, err := pgx.Connect(ctx, r.dsn("application_name="+name+" default_query_exec_mode="+protocol))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for range 20 + random.IntN(50) {
		if time.Now().After(deadline) {
			return nil
		}
		n := random.IntN(1000)
		want := fmt.Sprintf("%s/%d", name, n)
		var got, app string
		switch random.IntN(7) {
		case 0, 1, 2:
			err = conn.QueryRow(ctx, "select $1::text, current_setting('application_name')", want).Scan(&got, &app)
		case 3:
			err = conn.QueryRow(ctx, fmt.Sprintf("select $1::text, current_setting('application_name') -- %d", n%40), want).Scan(&got, &app)
		case 4:
			got, app, err = transaction(t, conn, client, want, random)
		case 5:
			batch := &pgx.Batch{}
			batch.Queue("select 1")
			batch.Queue("select $1::text, current_setting('application_name')", want)
			results := conn.SendBatch(ctx, batch)
			_, _ = results.Exec()
			err = results.QueryRow().Scan(&got, &app)
			err = firstOf(err, results.Close())
		case 6:
			rest := conn.PgConn()
			if random.IntN(2) == 0 {
				rest.Frontend().SendQuery(&pgQuery{String: "begin; select pg_sleep(0.001)"})
				_ = rest.Frontend().Flush()
			}
			_ = rest.Conn().Close() // vanishes
			return nil
		}
		if err != nil {
			return err
		}
		if got != want || app != name {
			return fmt.Errorf("got the row %q of %q", got, app)
		}
	}
	return nil
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// transaction sets something, which must be there until the end and not after.
func transaction(t *testing.T, conn *pgx.Conn, client int, want string, random *rand.Rand) (got, app string, err error) {
	ctx := t.Context()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if random.IntN(4) == 0 {
		if _, err := tx.Exec(ctx, "set my.mark = '"+want+"'"); err != nil {
			return "", "", err
		}
	} else if _, err := tx.Exec(ctx, "select set_config('my.mark', $1, true)", want); err != nil {
		return "", "", err
	}
	if _, err := tx.Exec(ctx, "insert into owned values ($1, $2)", client, random.IntN(100)); err != nil {
		return "", "", err
	}
	var foreign int
	if err := tx.QueryRow(ctx, "select current_setting('my.mark'), current_setting('application_name')").Scan(&got, &app); err != nil {
		return "", "", err
	}
	if random.IntN(3) == 0 {
		return got, app, nil
	}
	if err := tx.QueryRow(ctx, "select count(*) from owned where xmin::text = txid_current()::text and client <> $1", client).Scan(&foreign); err != nil || foreign != 0 {
		return "", "", fmt.Errorf("%d foreign rows: %w", foreign, err)
	}
	return got, app, tx.Commit(ctx)
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
