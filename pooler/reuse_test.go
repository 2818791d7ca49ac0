package pooler

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/config"
	"pitr/pooler/session"
)

func reusing(cfg *config.Config) { onePerPool(cfg); cfg.Pooler.ReuseUnnamedStatements = "on" }

// TestAnUnnamedStatementThatComesAgainIsANamedOne compares every answer with that of a connection of the client's own.
func TestAnUnnamedStatementThatComesAgainIsANamedOne(t *testing.T) {
	pg := server(t)
	options := &session.Options{Transaction: true, PreparedMax: 10, StatementLenMax: 1000, StatementsMax: 10, PipelineMax: 100, SettingsLenMax: 1000,
		ReplayLenMax: 1000, ReuseUnnamed: true}
	l := newLockstep(t, pg, options)
	plain := *options
	plain.ReuseUnnamed, plain.ReplayLenMax = false, 0
	direct := newLockstep(t, pg, &plain)
	owner := connect(t, pg.dsn(""))
	replays := func() uint64 { return l.machine.Counters().Replays }
	check := func(messages ...pgproto3.FrontendMessage) {
		t.Helper()
		if got, want := l.ask(messages...), direct.ask(messages...); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	describe := &pgproto3.Describe{ObjectType: 'P'}
	batch := func(text string, parameters ...string) []pgproto3.FrontendMessage {
		b := &pgproto3.Bind{}
		for _, p := range parameters {
			b.Parameters = append(b.Parameters, []byte(p))
		}
		return []pgproto3.FrontendMessage{parse("", text), b, describe, execute, syncNow}
	}
	mustQuery(t, owner, "create table reused (x int)")
	mustQuery(t, owner, "insert into reused values (1)")
	all := batch("select * from reused where x >= $1", "0")
	for range 8 {
		check(all...)
	}
	named := "select count(*) from pg_prepared_statements where name <> $1"
	if got := l.ask(batch(named, "no")...); got != "12TDCZ" {
		t.Error(got)
	}
	check(bind("", ""), execute, syncNow) // a batch without a Parse: the wrong number of parameters
	check(all...)
	check(&pgproto3.Bind{Parameters: [][]byte{[]byte("1")}}, execute, syncNow) // the unnamed statement is there still
	check(batch("select * from reused where x >= $1", "no number")...)
	check(batch("select * from reused where x >= $1")...) // the wrong number of parameters names the statement
	check(all...)
	check(all...)
	before := replays()
	mustQuery(t, owner, "alter table reused add y int")
	check(all...)
	if replays() != before+1 {
		t.Errorf("%d batches were sent again, %d before", replays(), before)
	}
	check(all...)
	check(all...)
	mustQuery(t, owner, "drop table reused")
	check(all...) // Parse fails
	check(bind("", ""), execute, syncNow)
	mustQuery(t, owner, "create table reused (x int)")
	check(all...)
	check(all...)
	check(&pgproto3.Query{String: "select"})
	check(bind("", ""), execute, syncNow)
	check(all...)
	check(&pgproto3.Close{ObjectType: 'S'}, bind("", ""), execute, syncNow) // a Close alone needs no server
}

// TestErrorsOfReusedStatementsNameNothingOfOurs reads the messages of errors.
func TestErrorsOfReusedStatementsNameNothingOfOurs(t *testing.T) {
	r := start(t, server(t), reusing)
	conn := raw(t, r)
	var errors []string
	for range 4 {
		conn.send(parse("", "select $1::int"), bind("", ""), execute, syncNow)
		got := conn.until('Z')
		if strings.Contains(got, "pitr_") || !strings.Contains(got, "requires 1") {
			t.Error(got)
		}
		errors = append(errors, got)
	}
	if errors[0] != errors[3] {
		t.Errorf("first %s, then %s", errors[0], errors[3])
	}
}

func TestReuseServesManyClients(t *testing.T) {
	pg := server(t)
	r := start(t, pg, func(cfg *config.Config) { cfg.Pooler.ReuseUnnamedStatements = "on"; cfg.Pooler.DefaultPoolSize = 3 })
	one := connect(t, pg.dsn(""))
	mustQuery(t, one, "create table reuse_many (x int)")
	crowd(t, 8, func(client int) error {
		conn := pgxConnect(t, r.dsn("default_query_exec_mode=exec"))
		defer conn.Close(t.Context())
		for n := range 100 {
			var got, other int
			if err := conn.QueryRow(t.Context(), "select $1::int", client*1000+n).Scan(&got); err != nil || got != client*1000+n {
				return fmt.Errorf("client %d got %d: %w", client, got, err)
			}
			if err := conn.QueryRow(t.Context(), fmt.Sprintf("select $1::int + %d", n%7), client).Scan(&other); err != nil || other != client+n%7 {
				return fmt.Errorf("client %d got %d: %w", client, other, err)
			}
			if _, err := conn.Exec(t.Context(), "insert into reuse_many values ($1)", n); err != nil {
				return err
			}
		}
		return nil
	})
	var n int
	check := pgxConnect(t, pg.dsn(""))
	defer check.Close(t.Context())
	if err := check.QueryRow(t.Context(), "select count(*) from reuse_many", pgx.QueryExecModeExec).Scan(&n); err != nil || n != 800 {
		t.Errorf("%d rows, %v", n, err)
	}
}
