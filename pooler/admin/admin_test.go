package admin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

func TestWordsAreCutAtBlanksAndQuotes(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                   nil,
		" ;; ":                               nil,
		"PAUSE orders;":                      {"PAUSE", "orders"},
		"move \"my \"\"db\" to 'a''b' 5\x00": {"move", `my "db`, "to", "a'b", "5"},
		"a'b'":                               {"a", "b"},
		"set a=5":                            {"set", "a", "=", "5"},
		"==":                                 {"=", "="},
	} {
		words, err := split(text)
		var got []string
		for _, w := range words {
			got = append(got, w.text)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"a; b", "'a", `"`, `'a''`} {
		if words, err := split(text); err == nil {
			t.Errorf("%q: %v", text, words)
		}
	}
}

// recorder notes what it is told.
type recorder struct {
	told    []string
	waiting chan struct{} // a pause waits until its context ends
}

func (r *recorder) tell(words ...string) error {
	r.told = append(r.told, strings.TrimSpace(strings.Join(words, " ")))
	return nil
}

func (r *recorder) Pause(ctx context.Context, database string) error {
	_ = r.tell("pause", database)
	if r.waiting != nil {
		close(r.waiting)
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (r *recorder) Resume(database string) error {
	_ = r.tell("resume", database)
	return errors.New("not paused")
}

func (r *recorder) Move(database, host string, port int) (string, error) {
	return "there:1", r.tell("move", database, host)
}

func (r *recorder) Show(table string) ([][]any, error) {
	row := make([]any, len(tables[table]))
	for i, column := range tables[table] {
		if row[i] = 12345678; column.OID == textOID {
			row[i] = "text"
		}
	}
	return [][]any{row}, r.tell("show", table)
}

func (r *recorder) Enable(database string, enabled bool) error {
	return r.tell("enable", database, strconv.FormatBool(enabled))
}
func (r *recorder) Reconnect(database string) error { return r.tell("reconnect", database) }
func (r *recorder) Kill(database string) error      { return r.tell("kill", database) }
func (r *recorder) KillClient(id uint32) error      { return r.tell("kill client", strconv.Itoa(int(id))) }
func (r *recorder) WaitClose(_ context.Context, database string) error {
	return r.tell("wait close", database)
}
func (r *recorder) Reload() ([]string, error) { return []string{"a: 1 -> 2"}, r.tell("reload") }
func (r *recorder) Set(name, value string) (string, error) {
	return name + ": 1 -> " + value, r.tell("set", name, value)
}
func (r *recorder) Shutdown(how Shutdown) { _ = r.tell("shutdown", strconv.Itoa(int(how))) }

// sink is an Out that is only written to.
type sink struct{ bytes.Buffer }

func (*sink) Close() error { return nil }

// transcript lets a console answer messages, and says what kinds of answers there were, with their texts.
func transcript(t *testing.T, role Role, steering Steering, messages ...pgproto3.FrontendMessage) string {
	t.Helper()
	var in []byte
	for _, m := range messages {
		var err error
		if in, err = m.Encode(in); err != nil {
			t.Fatal(err)
		}
	}
	var out sink
	c := Console{In: bufio.NewReader(bytes.NewReader(in)), Out: &out, Role: role, Steering: steering, Secret: make([]byte, 4)}
	if err := c.Serve(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lines []string
	front := pgproto3.NewFrontend(&out, nil)
	for out.Len() > 0 || front.ReadBufferLen() > 0 {
		m, err := front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *pgproto3.ErrorResponse:
			lines = append(lines, m.Code+" "+m.Message)
		case *pgproto3.CommandComplete:
			lines = append(lines, string(m.CommandTag))
		case *pgproto3.DataRow:
			lines = append(lines, string(m.Values[0]))
		case *pgproto3.ReadyForQuery:
			lines = append(lines, "ready")
		case *pgproto3.EmptyQueryResponse:
			lines = append(lines, "empty")
		case *pgproto3.NoticeResponse:
			lines = append(lines, "notice "+m.Message)
		case *pgproto3.RowDescription:
			lines = append(lines, "columns "+string(m.Fields[0].Name))
		case *pgproto3.ParseComplete, *pgproto3.BindComplete, *pgproto3.CloseComplete:
			lines = append(lines, "ok")
		case *pgproto3.NoData:
			lines = append(lines, "no data")
		case *pgproto3.PortalSuspended:
			lines = append(lines, "suspended")
		}
	}
	return strings.Join(lines, "; ")
}

func query(text string) pgproto3.FrontendMessage { return &pgproto3.Query{String: text} }

func TestTheConsoleAnswersEachCommandOnce(t *testing.T) {
	r := &recorder{}
	got := transcript(t, RoleAdmin, r, query("pause orders"), query("RESUME orders;"), query(`MOVE "o" TO 'h' 5432`), query("MOVE o TO h 0"), query("SHOW everything"), query(""),
		query("SET query_timeout = '5'"), query("set application_name to 'x'"), query("reload"), query("SHUTDOWN WAIT_FOR_CLIENTS"), query("suspend"), query("show fds"), query("help"),
		query("'pause' orders"), query("pause pgbouncer"), query("KILL_CLIENT x"), query("disable"))
	want := `ready; PAUSE; ready; 55000 not paused; ready; columns moved_from; there:1; MOVE; ready; 22023 "0" is no port; ready; 42601 invalid command 'SHOW everything', use SHOW HELP;; ready; empty; ready; ` +
		`notice query_timeout: 1 -> 5; SET; ready; SET; ready; notice a: 1 -> 2; RELOAD; ready; SHUTDOWN; ready; ` +
		`0A000 SUSPEND served PgBouncer's takeover by -R, which 1.26 does not have any more: use PAUSE, or SHUTDOWN WAIT_FOR_CLIENTS; ready; ` +
		`0A000 SHOW FDS served PgBouncer's takeover by -R, which 1.26 does not have any more; ready; notice Console usage; SHOW; ready; ` +
		`42601 invalid command ''pause' orders', use SHOW HELP;; ready; 22023 "pgbouncer" is no database with servers; ready; 22023 "x" is no id of a client: see SHOW CLIENTS; ready; 42601 a database is required; ready`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if told := strings.Join(r.told, ", "); told != "pause orders, resume orders, move o h, set query_timeout 5, reload, shutdown 2" {
		t.Errorf("it was told %s", told)
	}
}

func TestTheConsoleSpeaksTheExtendedProtocol(t *testing.T) {
	for _, c := range []struct {
		name, want, told string
		messages         []pgproto3.FrontendMessage
	}{
		{"a table", "ready; ok; columns version; ok; columns version; text; SHOW; ready", "show VERSION", []pgproto3.FrontendMessage{
			&pgproto3.Parse{Query: "show version"}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Bind{}, &pgproto3.Describe{ObjectType: 'P'}, &pgproto3.Execute{}, &pgproto3.Sync{}}},
		{"a command", "ready; ok; no data; ok; PAUSE; ready", "pause o", []pgproto3.FrontendMessage{
			&pgproto3.Parse{Name: "s", Query: "pause o"}, &pgproto3.Describe{ObjectType: 'S', Name: "s"}, &pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Execute{}, &pgproto3.Sync{}}},
		{"an error skips everything up to Sync", "ready; 42601 invalid command 'nonsense', use SHOW HELP;; ready; ok; ready", "", []pgproto3.FrontendMessage{
			&pgproto3.Parse{Query: "nonsense"}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}, &pgproto3.Parse{Query: "pause"}, &pgproto3.Sync{}}},
		{"nothing", "ready; ok; no data; ok; empty; ready", "", []pgproto3.FrontendMessage{
			&pgproto3.Parse{}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}}},
		{"in the wrong order", `ready; 34000 portal "" does not exist; ready; 26000 prepared statement "s" does not exist; ready; ok; 42P05 prepared statement "t" already exists; ready`, "", []pgproto3.FrontendMessage{
			&pgproto3.Execute{}, &pgproto3.Sync{}, &pgproto3.Bind{PreparedStatement: "s"}, &pgproto3.Sync{},
			&pgproto3.Parse{Name: "t", Query: "pause"}, &pgproto3.Parse{Name: "t", Query: "pause"}, &pgproto3.Sync{}}},
		{"parameters", "ready; ok; 08P01 commands of the console take no parameters; ready", "", []pgproto3.FrontendMessage{
			&pgproto3.Parse{Query: "show version"}, &pgproto3.Bind{Parameters: [][]byte{nil}}, &pgproto3.Sync{}}},
		{"it is carried out once", "ready; ok; ok; text; SHOW; SHOW; ready", "show VERSION", []pgproto3.FrontendMessage{
			&pgproto3.Parse{Query: "show version"}, &pgproto3.Bind{}, &pgproto3.Execute{MaxRows: 1}, &pgproto3.Execute{}, &pgproto3.Sync{}}},
	} {
		r := &recorder{}
		got := transcript(t, RoleAdmin, r, c.messages...)
		if got != c.want || strings.Join(r.told, ", ") != c.told {
			t.Errorf("%s:\ngot  %s\nwant %s\nit was told %s", c.name, got, c.want, r.told)
		}
	}
}

func TestTheConsoleBoundsWhatItKeeps(t *testing.T) {
	var messages []pgproto3.FrontendMessage
	for i := range statementsMax + 1 {
		messages = append(messages, &pgproto3.Parse{Name: strconv.Itoa(i), Query: "show version"})
	}
	if got := transcript(t, RoleAdmin, &recorder{}, append(messages, &pgproto3.Sync{})...); !strings.HasSuffix(got, "; 53400 the console keeps no more than 100 prepared statements; ready") {
		t.Error(got)
	}
	messages = []pgproto3.FrontendMessage{&pgproto3.Parse{Query: "show version"}}
	for i := range statementsMax + 1 {
		messages = append(messages, &pgproto3.Bind{DestinationPortal: strconv.Itoa(i)})
	}
	if got := transcript(t, RoleAdmin, &recorder{}, append(messages, &pgproto3.Sync{})...); !strings.HasSuffix(got, "; 53400 the console keeps no more than 100 portals; ready") {
		t.Error(got)
	}
}

// examples are commands of every verb.
var examples = map[string][]string{
	"SHOW": {"SHOW POOLS", "SHOW HELP"}, "HELP": {"HELP"}, "PAUSE": {"PAUSE", "PAUSE o"}, "RESUME": {"RESUME", "RESUME o"}, "MOVE": {"MOVE o TO h 1", "MOVE o TO h 0"}, "DISABLE": {"DISABLE o", "DISABLE"}, "ENABLE": {"ENABLE o"},
	"RECONNECT": {"RECONNECT", "RECONNECT o"}, "KILL": {"KILL", "KILL o"}, "KILL_CLIENT": {"KILL_CLIENT 1", "KILL_CLIENT x"}, "WAIT_CLOSE": {"WAIT_CLOSE", "WAIT_CLOSE o"}, "RELOAD": {"RELOAD"},
	"SET": {"SET query_timeout = 1"}, "SHUTDOWN": {"SHUTDOWN", "SHUTDOWN WAIT_FOR_SERVERS", "SHUTDOWN WAIT_FOR_CLIENTS"}, "SUSPEND": {"SUSPEND"},
}

func TestEveryVerbTakesItsRole(t *testing.T) {
	admins, stats := []string{"boss"}, []string{"watcher"}
	for _, v := range verbs {
		if len(examples[v.name]) == 0 {
			t.Errorf("%s has no example", v.name)
		}
		for _, text := range examples[v.name] {
			for _, user := range []string{"boss", "watcher", "other"} {
				role := RoleOf(user, admins, stats)
				may := role >= v.role && role > RoleNone
				for _, messages := range [][]pgproto3.FrontendMessage{
					{query(text)},
					{&pgproto3.Parse{Query: text}, &pgproto3.Bind{}, &pgproto3.Execute{}, &pgproto3.Sync{}},
				} {
					r := &recorder{}
					got := transcript(t, role, r, messages...)
					refused := strings.Contains(got, "; 42501 ")
					if refused == may || !may && len(r.told) > 0 {
						t.Errorf("%s says %s: %s; it was told %q", user, text, got, r.told)
					}
				}
			}
		}
	}
	if got := RoleOf("", nil, nil); got != RoleNone {
		t.Errorf("without settings somebody has the role %d", got)
	}
}

func TestTheColumnsAreThoseOfPgBouncer(t *testing.T) {
	recorded, err := os.ReadFile("testdata/pgbouncer-1.26.1.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(recorded)) {
		if name, columns, found := strings.Cut(strings.TrimSpace(line), ": "); found && !strings.HasPrefix(line, "#") {
			want[name] = columns
		}
	}
	if len(want) != 20 {
		t.Errorf("%d tables are recorded", len(want))
	}
	for name, columns := range want {
		if name == "HELP" {
			continue
		}
		var got []string
		for _, column := range tables[name] {
			got = append(got, column.Name)
		}
		if strings.Join(got, " ") != columns {
			t.Errorf("SHOW %s\ngot  %s\nwant %s", name, strings.Join(got, " "), columns)
		}
	}
	for _, name := range Tables() {
		if want[name] == "" && name != "WAITS" {
			t.Errorf("SHOW %s is not recorded", name)
		}
	}
}

func TestBinaryNumbersAreThoseOfPostgres(t *testing.T) {
	types := pgtype.NewMap()
	for _, n := range []int64{0, 1, 9999, 10000, 10001, 123456789, 100000000, math.MaxInt64} {
		var back pgtype.Numeric
		if err := types.Scan(numericOID, pgtype.BinaryFormatCode, encode(n, numericOID, true), &back); err != nil {
			t.Fatal(err)
		}
		value, err := back.Int64Value()
		if err != nil || value.Int64 != n {
			t.Errorf("%d: %v, %v", n, value, err)
		}
	}
	if got := encode(7, int4OID, true); !bytes.Equal(got, []byte{0, 0, 0, 7}) {
		t.Errorf("%v", got)
	}
}

func TestAPauseIsGivenUpWhenTheOperatorGoesAway(t *testing.T) {
	here, there := net.Pipe()
	r := &recorder{waiting: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		c := Console{In: bufio.NewReader(here), Out: here, Role: RoleAdmin, Steering: r, Secret: make([]byte, 4)}
		ended <- c.Serve(context.Background())
	}()
	front := pgproto3.NewFrontend(there, there)
	for {
		m, err := front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if _, ready := m.(*pgproto3.ReadyForQuery); ready {
			break
		}
	}
	front.Send(&pgproto3.Query{String: "PAUSE orders"})
	if err := front.Flush(); err != nil {
		t.Fatal(err)
	}
	<-r.waiting
	if err := there.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended // and so the pause has ended too
}
