package pooler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pitr/config"
)

func lazily(cfg *config.Config) {
	onePerPool(cfg)
	cfg.Pooler.LazyBegin, cfg.Pooler.SessionObjects = "on", "reset"
}

// say runs a script of one statement after another, in the simple protocol or the extended one, and returns what came of each: rows, tag, error, and the state.
func say(t *testing.T, conn *pgconn.PgConn, statement string, extended bool) string {
	t.Helper()
	var rows []string
	var results []*pgconn.Result
	var err error
	if extended {
		r := conn.ExecParams(context.Background(), statement, nil, nil, nil, nil).Read()
		results, err = []*pgconn.Result{r}, r.Err
	} else {
		results, err = conn.Exec(context.Background(), statement).ReadAll()
	}
	for _, r := range results {
		for _, row := range r.Rows {
			for _, value := range row {
				rows = append(rows, string(value))
			}
		}
		rows = append(rows, r.CommandTag.String())
	}
	if err != nil {
		rows = append(rows, strings.TrimSpace(err.Error()))
	}
	return fmt.Sprintf("%s %c", strings.Join(rows, ","), conn.TxStatus())
}

// TestTheSessionLooksAsOneOfPostgres runs scripts directly and through the pooler, where another client with other settings uses the same server
// whenever it can, and compares what is seen.
func TestTheSessionLooksAsOneOfPostgres(t *testing.T) {
	pg := server(t)
	r := start(t, pg, lazily)
	for _, script := range scripts {
		for _, extended := range []bool{false, true} {
			name := strings.SplitN(script, "\n", 2)[0]
			t.Run(fmt.Sprintf("%.40s/%v", name, extended), func(t *testing.T) {
				more := "application_name=me timezone=Asia/Tokyo options='-c work_mem=5MB'"
				direct, through, other := connect(t, pg.dsn(more)), connect(t, r.dsn(more)), connect(t, r.dsn("timezone=Europe/Paris"))
				for line := range strings.SplitSeq(strings.TrimSpace(script), "\n") {
					if extended && strings.Contains(line, ";") {
						continue
					}
					want, got := say(t, direct, line, extended), say(t, through, line, extended)
					if want != got {
						t.Errorf("%s\n  directly %s\n  through  %s", line, want, got)
					}
					if through.TxStatus() != 'E' {
						say(t, direct, "select 1", true) // what is reported of settings to which RESET goes back may come a little later
						say(t, through, "select 1", true)
					}
					for _, name := range []string{"TimeZone", "client_encoding", "DateStyle", "application_name", "is_superuser"} {
						if want, got := direct.ParameterStatus(name), through.ParameterStatus(name); want != got {
							t.Errorf("after %s: %s is %q directly, and %q through the pooler", line, name, want, got)
						}
					}
					if through.TxStatus() == 'I' {
						seen := "select concat_ws('|', current_setting('timezone'), current_setting('work_mem'), current_setting('search_path'), " +
							"current_user, session_user, current_setting('x.y', true), current_setting('statement_timeout'), (select string_agg(name, ',') from pg_prepared_statements where from_sql))"
						if got := mustQuery(t, other, seen); strings.TrimRight(got, "|0") != `Europe/Paris|4MB|"$user", public|postgres|postgres` {
							t.Errorf("after %s another client sees %s", line, got)
						}
					}
				}
			})
		}
	}
}

var scripts = []string{`
set work_mem = '77MB'
show work_mem
set work_mem to 64
show work_mem
set work_mem to default
show work_mem
reset work_mem
show work_mem
set statement_timeout = 5000
show statement_timeout
reset all
show work_mem
show statement_timeout
show timezone
`, `
set search_path = a, "B c", public
show search_path
set search_path to 'a, b'
show search_path
set schema 'x'
show search_path
set search_path to ''
show search_path
set search_path to "$user", 'user'
select 1
`, `
set time zone 'Europe/Berlin'
show timezone
set time zone -7
show timezone
set time zone local
show timezone
set timezone to 'UTC'
show timezone
set time zone default
show timezone
reset time zone
show timezone
set time zone interval '-08:00' hour to minute
select 1
`, `
begin
set work_mem = '11MB'
savepoint a
set work_mem = '12MB'
show work_mem
rollback to a
show work_mem
set x.y = 'z'
release a
commit
show work_mem
select coalesce(current_setting('x.y', true), '')
begin
set work_mem = '13MB'
rollback
show work_mem
begin
set local work_mem = '14MB'
set local timezone = 'UTC'
show work_mem
commit
show work_mem
show timezone
`, `
begin
set work_mem = '15MB'
select 1/0
select 1
rollback
show work_mem
begin
set work_mem = '16MB'
savepoint a
select 1/0
rollback to savepoint a
show work_mem
commit
show work_mem
begin
set work_mem = '17MB'
select 1/0
commit
show work_mem
`, `
set role pg_monitor
select current_user
set work_mem = '9MB'
select current_user, current_setting('work_mem')
reset all
select current_user, current_setting('work_mem')
set role none
select current_user
set session authorization pg_monitor
select current_user, session_user
set role pg_read_all_stats
select session_user
reset session authorization
select current_user, session_user
set session authorization default
select current_user, session_user
`, `
set names 'LATIN1'
show client_encoding
set names default
show client_encoding
set application_name to 'Ünicode''s'
show application_name
set datestyle to german
show datestyle
set datestyle to iso
show datestyle
reset datestyle
show datestyle
set session characteristics as transaction isolation level serializable, read only
show transaction_isolation
show transaction_read_only
set default_transaction_read_only = off
show default_transaction_read_only
`, `
select 1; set work_mem = '31MB'; select 2
show work_mem
set work_mem = '32MB'; select 1/0
show work_mem
begin; set work_mem = '33MB'; commit; select 1/0
show work_mem
set x.y = 'a;b'; set work_mem = '34MB' -- ; set work_mem = '35MB'
show work_mem
select coalesce(current_setting('x.y', true), '')
do $$begin set work_mem = '36MB'; end$$
select 1
`, `
begin
begin
select 1
commit
begin
commit
begin
rollback
begin
select 1/0
select 1
commit
select 1
BEGIN /* hello */ TRANSACTION ;
end
start transaction isolation level repeatable read, read only
show transaction_isolation
create table t (x int)
rollback
begin isolation level serializable read write not deferrable
show transaction_isolation
commit and chain
show transaction_isolation
commit
begin
savepoint a
rollback to a
release a
abort
begin isolation level nonsense
commit
rollback
start transaction
commit work
begin
commit prepared 'x'
rollback
`, `
set work_mem = '41MB'
discard all
show work_mem
show timezone
set nonsense = 1
show work_mem
discard plans
discard temp
select set_config('work_mem', '43MB', true)
show work_mem
begin
select set_config('work_mem', '44MB', true)
show work_mem
commit
show work_mem
`, `
prepare a as select 1
execute a
prepare a as select 2
execute a
prepare "B c" (int) as select $1 + 1 -- comment
execute "B c"(4)
begin
prepare c as select 3
rollback
execute c
deallocate a
execute a
deallocate prepare "B c"
execute "B c"(1)
deallocate nonsense
execute c
prepare d as select 5; execute d
execute d
deallocate all
execute c
prepare h as select pg_advisory_lock(17)
discard all
execute h
prepare i as select 9
execute i
deallocate i
`}

func TestStatementModeRefusesTransactions(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { lazily(cfg); cfg.Pooler.PoolMode = "statement" })
	for _, text := range []string{"begin", "start transaction", "select 1; begin", "begin; create table never (x int)"} {
		conn := connect(t, r.dsn(""))
		mustQuery(t, conn, "set x.y = 'mine'")
		if got := mustQuery(t, conn, "select current_setting('x.y')"); got != "mine" {
			t.Errorf("the setting is %q", got)
		}
		_, err := conn.Exec(context.Background(), text).ReadAll()
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != "08P01" || refused.Message != "transaction blocks not allowed in statement pooling mode" {
			t.Errorf("%q gave %v", text, err)
		}
	}
	if got := mustQuery(t, connect(t, r.dsn("")), "select to_regclass('never') is null"); got != "t" {
		t.Error("the transaction was committed")
	}
}

func TestLocalSetConfigCostsNoReset(t *testing.T) {
	r := start(t, server(t), lazily)
	conn, other := connect(t, r.dsn("")), connect(t, r.dsn(""))
	for range 3 {
		for _, extended := range []bool{false, true} {
			for _, text := range []string{"begin", "select set_config('app.tenant', '7', true)", "select current_setting('app.tenant')", "commit"} {
				if got := say(t, conn, text, extended); strings.HasPrefix(text, "select current") && got != "7,SELECT 1 T" {
					t.Errorf("%s gave %s", text, got)
				}
			}
			if got := mustQuery(t, other, "select coalesce(current_setting('app.tenant', true), '')"); got != "" {
				t.Errorf("another client has the tenant %q", got)
			}
		}
	}
	if resets := r.Stats().Pools[0].Cleanings; resets != 0 {
		t.Errorf("%d servers were reset", resets)
	}
}

func TestAnIdleTransactionThatHasDoneNothingHoldsNoServer(t *testing.T) {
	r := start(t, server(t), lazily)
	other := connect(t, r.dsn(""))
	for _, extended := range []bool{false, true} {
		conn := connect(t, r.dsn(""))
		for _, begin := range []string{"BEGIN", "start transaction isolation level serializable, read only;", "begin -- comment"} {
			tag := strings.ToUpper(strings.Fields(begin)[0])
			if got := say(t, conn, begin, extended); !strings.HasPrefix(got, tag) || !strings.HasSuffix(got, " T") {
				t.Errorf("%s gave %s", begin, got)
			}
			mustQuery(t, other, "select 1") // there is one server
			if got := say(t, conn, "show transaction_isolation", extended); strings.Contains(begin, "serializable") != strings.HasPrefix(got, "serializable") {
				t.Errorf("after %s the isolation level is %s", begin, got)
			}
			if got := say(t, conn, "commit", extended); got != "COMMIT I" {
				t.Errorf("commit gave %s", got)
			}
			say(t, conn, begin, extended)
			if got := say(t, conn, "rollback", extended); got != "ROLLBACK I" {
				t.Errorf("rollback gave %s", got)
			}
		}
	}
}
