package pooler

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"pitr/pooler/session"
)

// lockstep is a driver of one client and one server, without any concurrency.
type lockstep struct {
	t       *testing.T
	machine *session.Session
	conn    net.Conn
	state   *session.Server
}

func newLockstep(t *testing.T, pg *postgres, options *session.Options) *lockstep {
	conn, err := pgconn.Connect(context.Background(), pg.dsn(""))
	if err != nil {
		t.Fatal(err)
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hijacked.Conn.Close() })
	return &lockstep{t, session.New(options, session.NoParams), hijacked.Conn, session.NewServer(hijacked.ParameterStatuses)}
}

// ask sends messages that end with a Sync or are a Query, and returns the types and texts of the answer.
func (l *lockstep) ask(messages ...pgproto3.FrontendMessage) string {
	in := encode(messages...)
	var out session.Output
	for {
		out.Reset(in)
		step := l.machine.FromClient(in, &out)
		l.send(out.Bytes())
		in = in[step.N:]
		if step.Verdict != session.Need {
			break
		}
		out.Reset(nil)
		l.machine.Link(l.state, &out)
		l.send(out.Bytes())
	}
	var said strings.Builder
	var have []byte
	buf := make([]byte, 1<<16)
	for !l.machine.Due() {
		n, err := l.conn.Read(buf)
		if err != nil {
			l.t.Fatal(err)
		}
		have = append(have, buf[:n]...)
		out.Reset(have)
		used, failure := l.machine.FromServer(have, &out)
		if failure != nil {
			l.t.Fatal(failure)
		}
		said.Write(out.Bytes())
		have = append([]byte(nil), have[used:]...)
		l.send(l.machine.TakeResend())
	}
	l.machine.Unlink()
	return readable(said.String())
}

func (l *lockstep) send(out []byte) {
	if len(out) == 0 {
		return
	}
	if _, err := l.conn.Write(out); err != nil {
		l.t.Fatal(err)
	}
}

// readable prints the types of messages, and the codes of errors.
func readable(said string) string {
	var types strings.Builder
	for len(said) >= 5 {
		n := int(said[3])<<8 + int(said[4]) + 1
		types.WriteByte(said[0])
		if body := said[5:n]; said[0] == 'E' {
			_, code, _ := strings.Cut(body, "\x00C")
			types.WriteString(code[:5])
		}
		said = said[n:]
	}
	return types.String()
}

func TestABatchIsSentAgainWhenItsStatementIsStale(t *testing.T) {
	pg := server(t)
	options := &session.Options{Transaction: true, PreparedMax: 10, StatementLenMax: 1000, StatementsMax: 10, PipelineMax: 100, SettingsLenMax: 1000, ReplayLenMax: 1000}
	l := newLockstep(t, pg, options)
	describe := &pgproto3.Describe{ObjectType: 'P'}
	check := func(want string, messages ...pgproto3.FrontendMessage) {
		t.Helper()
		if got := l.ask(messages...); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	owner := connect(t, pg.dsn(""))
	mustQuery(t, owner, "create table stale (x int)")
	check("1Z", parse("s", "select * from stale"), syncNow)
	check("2CZ", bind("", "s"), execute, syncNow)
	mustQuery(t, owner, "alter table stale add y int")
	check("2CZ", bind("", "s"), execute, syncNow) // the client does not know the columns
	mustQuery(t, owner, "alter table stale add w int")
	check("2TCZ", bind("", "s"), describe, execute, syncNow)
	mustQuery(t, owner, "alter table stale add z int")
	check("2TC2CZ", bind("", "s"), describe, execute, bind("", "s"), execute, syncNow)
	if n := l.machine.Counters().Replays; n != 3 {
		t.Errorf("%d batches were sent again", n)
	}
}

func TestAStaleStatementIsParsedAnew(t *testing.T) {
	pg := server(t)
	r := start(t, pg, onePerPool)
	conn := raw(t, r)
	owner := connect(t, pg.dsn(""))
	mustQuery(t, owner, "create table stale2 (x int)")
	conn.send(parse("s1", "select * from stale2"), &pgproto3.Describe{ObjectType: 'S', Name: "s1"}, syncNow)
	conn.until('Z')
	mustQuery(t, owner, "alter table stale2 add y int")
	conn.send(bind("", "s1"), execute, syncNow)
	if got := conn.until('Z'); !strings.Contains(got, "0A000") {
		t.Errorf("a client that knows the columns got %s", got)
	}
	conn.send(parse("s2", "select * from stale2"), bind("", "s2"), execute, syncNow)
	if got := conn.until('Z'); strings.Contains(got, "0A000") {
		t.Errorf("a new Parse of the same text gave %s", got)
	}
}
