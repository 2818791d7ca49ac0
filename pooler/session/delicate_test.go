package session

import (
	"testing"

	"pitr/internal/pgwire"
)

// errorReply57014 is what a server says whose statement_timeout is over.
func errorReply57014() []byte {
	return pgwire.AppendError(nil, &pgwire.Failure{Severity: "ERROR", Code: "57014", Message: "canceling statement due to statement timeout"})
}

// TestNothingIsSentBeforeDelicateSettingsAreInForce changes the settings of a server under a time limit of its former client's.
func TestNothingIsSentBeforeDelicateSettingsAreInForce(t *testing.T) {
	former := newParams(map[string]string{"statement_timeout": "1ms"})
	query := pgwire.AppendQuery(nil, "delete from everything")
	linked := func() (*Session, *Output) {
		s := New(&Options{Transaction: true, PipelineMax: 100, SettingsLenMax: 1000}, NoParams)
		server := NewServer(nil)
		server.params = former
		out := &Output{}
		out.Reset(nil)
		s.Link(server, out)
		if len(out.Bytes()) == 0 {
			t.Fatal("no settings were sent")
		}
		out.Reset(query)
		if step := s.FromClient(query, out); step.Verdict != Full || step.N != 0 || len(out.Bytes()) > 0 {
			t.Fatalf("%+v, %q was sent", step, out.Bytes())
		}
		if s.Drained() || s.Due() {
			t.Error("it does not wait")
		}
		return s, out
	}

	s, out := linked()
	in := append(pgwire.AppendHeader(nil, pgwire.CommandComplete, 6), "RESET\x00"...)
	in = pgwire.AppendReady(in, pgwire.Idle)
	out.Reset(in)
	if n, failure := s.FromServer(in, out); n != len(in) || failure != nil || len(out.Bytes()) > 0 {
		t.Fatalf("%d, %v, %q", n, failure, out.Bytes())
	}
	if !s.Drained() || s.Due() {
		t.Error("it is not ready for the query that waits")
	}
	out.Reset(query)
	if step := s.FromClient(query, out); step.Verdict != Read || string(out.Bytes()) != string(query) {
		t.Errorf("%+v, %q was sent", step, out.Bytes())
	}

	s, out = linked()
	in = errorReply57014()
	out.Reset(in)
	if _, failure := s.FromServer(in, out); failure == nil || !s.Another() {
		t.Errorf("%v, another server %v", failure, s.Another())
	}
	if s.Unlink() != Broken {
		t.Error("the server is not closed")
	}
	out.Reset(query)
	if step := s.FromClient(query, out); step.Verdict != Need {
		t.Errorf("%+v", step)
	}
}

func TestOnlySomeSettingsAreDelicate(t *testing.T) {
	check := func(from, to map[string]string, want bool) {
		t.Helper()
		if got := newParams(from).delicate(newParams(to)); got != want {
			t.Errorf("%v to %v: %v", from, to, got)
		}
	}
	check(nil, map[string]string{"application_name": "a", "statement_timeout": "1s"}, false)
	check(map[string]string{"application_name": "a"}, map[string]string{"timezone": "UTC"}, false)
	check(map[string]string{"statement_timeout": "1s"}, map[string]string{"statement_timeout": "1s", "timezone": "UTC"}, true)
	check(map[string]string{"role": "a"}, map[string]string{"role": "a", "timezone": "UTC"}, false)
	check(map[string]string{"role": "a"}, nil, true)
	check(nil, map[string]string{"session_authorization": "a"}, true)
}
