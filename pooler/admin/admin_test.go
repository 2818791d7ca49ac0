package admin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

func TestWordsAreCutAtBlanksAndQuotes(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                   nil,
		" ;; ":                               nil,
		"PAUSE orders;":                      {"PAUSE", "orders"},
		"move \"my \"\"db\" to 'a''b' 5\x00": {"move", `my "db`, "to", "a'b", "5"},
		"a'b'":                               {"a", "b"},
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

func (r *recorder) Pause(ctx context.Context, database string) error {
	r.told = append(r.told, "pause "+database)
	if r.waiting != nil {
		close(r.waiting)
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (r *recorder) Resume(database string) error {
	r.told = append(r.told, "resume "+database)
	return errors.New("not paused")
}

func (r *recorder) Move(database, host string, port int) (string, error) {
	r.told = append(r.told, "move "+database+" "+host)
	return "there:1", nil
}

// transcript lets a console answer messages, and says what kinds of answers there were, with their texts.
func transcript(t *testing.T, steering Steering, messages ...pgproto3.FrontendMessage) string {
	t.Helper()
	var in []byte
	for _, m := range messages {
		var err error
		if in, err = m.Encode(in); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	c := Console{In: bufio.NewReader(bytes.NewReader(in)), Out: &out, Steering: steering}
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
		}
	}
	return strings.Join(lines, "; ")
}

func TestTheConsoleAnswersEachCommandOnce(t *testing.T) {
	query := func(text string) pgproto3.FrontendMessage { return &pgproto3.Query{String: text} }
	r := &recorder{}
	got := transcript(t, r, query("pause orders"), query("RESUME orders;"), query(`MOVE "o" TO 'h' 5432`), query("MOVE o TO h 0"), query("SHOW everything"), query(""),
		&pgproto3.Parse{Query: "pause orders"}, &pgproto3.Describe{ObjectType: 'S'}, &pgproto3.Sync{}, query("'pause' orders"), &pgproto3.Terminate{})
	const unknown = "42601 the console knows PAUSE database, RESUME database and MOVE database TO 'host' port"
	want := "ready; PAUSE; ready; 55000 not paused; ready; there:1; MOVE; ready; 22023 \"0\" is no port; ready; " + unknown + "; ready; empty; ready; 0A000 the console takes simple queries only; ready; " + unknown + "; ready"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if told := strings.Join(r.told, ", "); told != "pause orders, resume orders, move o h" {
		t.Errorf("it was told %s", told)
	}
}

func TestAPauseIsGivenUpWhenTheOperatorGoesAway(t *testing.T) {
	here, there := net.Pipe()
	r := &recorder{waiting: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		c := Console{In: bufio.NewReader(here), Out: here, Steering: r}
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
