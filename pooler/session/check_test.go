package session

import (
	"strings"
	"testing"

	"pitr/internal/pgwire"
)

func wire(kind byte, body string) string {
	return string(append(pgwire.AppendHeader(nil, kind, len(body)), body...))
}

// feedIn gives a machine its input in pieces of so many bytes, what was not used in front of the next.
func feedIn(in string, piece int, take func([]byte) (int, bool, error)) (done bool, rest string, err error) {
	have := ""
	for !done && err == nil && in != "" {
		n := min(piece, len(in))
		have, in = have+in[:n], in[n:]
		var used int
		used, done, err = take([]byte(have))
		have = have[used:]
	}
	return done, have + in, err
}

func TestACheckEndsWithAnAnswerOrAnError(t *testing.T) {
	ready := wire(pgwire.ReadyForQuery, "I")
	rows := wire(pgwire.RowDescription, "\x00\x00") + wire(pgwire.DataRow, "\x00\x00") + wire(pgwire.CommandComplete, "SELECT 1\x00")
	for _, c := range []struct {
		what, in, err string
		done          bool
	}{
		{"an empty query", wire(pgwire.EmptyQueryResponse, "") + ready, "", true},
		{"rows, a notice and a parameter", rows + wire(pgwire.NoticeResponse, "\x00") + wire(pgwire.ParameterStatus, "a\x00b\x00") + ready, "", true},
		{"nothing yet", rows, "", false},
		{"an error", wire(pgwire.ErrorResponse, "SERROR\x00Mdivision by zero\x00\x00") + ready, "division by zero", false},
		{"a transaction", rows + wire(pgwire.ReadyForQuery, "T"), "has begun a transaction", false},
		{"a COPY", wire(pgwire.CopyInResponse, "\x00\x00\x00"), "an unexpected message", false},
		{"a message that is too long", string(pgwire.AppendHeader(nil, pgwire.DataRow, cleanMessageMax+1)), "bytes", false},
		{"a length that cannot be", "D\x00\x00\x00\x01", "", false},
	} {
		for _, piece := range []int{1, 3, 1000} {
			s := NewServer(nil)
			s.AppendCheck(nil, "")
			done, _, err := feedIn(c.in, piece, s.Check)
			if c.what == "a length that cannot be" {
				if err == nil {
					t.Errorf("%s is taken", c.what)
				}
				continue
			}
			if done != c.done || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s, by %d bytes: done %v, %v", c.what, piece, done, err)
			}
		}
	}
	s := NewServer(nil)
	s.AppendCheck(nil, "")
	if _, done, err := s.Check([]byte(ready + ready)); done || err == nil {
		t.Errorf("more than was asked for: %v, %v", done, err)
	}
}

func TestAResetIsOverOnlyWhenBothAreAnswered(t *testing.T) {
	ready, discard := wire(pgwire.ReadyForQuery, "I"), wire(pgwire.CommandComplete, discardTag)
	query := wire(pgwire.CommandComplete, "INSERT 0 1\x00") + ready
	for _, piece := range []int{1, 7, 1000} {
		s := NewServer(nil)
		if got := string(s.AppendReset(nil, "x")); got != wire(pgwire.Query, "x\x00")+wire(pgwire.Query, "DISCARD ALL\x00") {
			t.Errorf("%q was sent", got)
		}
		if done, _, err := feedIn(query, piece, s.Clean); done || err != nil {
			t.Errorf("after the query alone: %v, %v", done, err)
		}
		if done, rest, err := feedIn(discard+ready, piece, s.Clean); !done || err != nil || rest != "" {
			t.Errorf("after both: %v, %q, %v", done, rest, err)
		}
		s.AppendReset(nil, "x")
		if done, _, err := feedIn(discard+ready, piece, s.Clean); done || err != nil {
			t.Errorf("DISCARD ALL of the query's is taken for ours: %v, %v", done, err)
		}
		s = NewServer(nil)
		if got := string(s.AppendReset(nil, "")); got != wire(pgwire.Query, "DISCARD ALL\x00") {
			t.Errorf("%q was sent", got)
		}
	}
}
