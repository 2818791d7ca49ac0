package session

import (
	"bytes"
	"fmt"
	"testing"
)

// newReusingBench is a client whose unnamed statement was sent twice, so that the server has a named one for it.
func newReusingBench(tb testing.TB) (*bench, exchange) {
	b := newBench(tb, false)
	b.session.options.ReuseUnnamed = true
	e := exchanges()["extended"]
	b.play(tb, e)
	closed := []byte("3\x00\x00\x00\x04") // of what it had under no name
	b.play(tb, exchange{e.ask, append(closed, e.answer...)})
	parsed := []byte("1\x00\x00\x00\x04")
	return b, exchange{e.ask, bytes.TrimPrefix(e.answer, parsed)}
}

func TestReuseAllocatesNothing(t *testing.T) {
	b, e := newReusingBench(t)
	b.play(t, e)
	if n := testing.AllocsPerRun(100, func() { b.play(t, e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !bytes.HasPrefix(b.backward.Bytes(), []byte("1\x00\x00\x00\x042")) || bytes.Contains(b.toward.Bytes(), []byte("pgbench")) {
		t.Errorf("to client %s, to server %s", messages(b.backward.Bytes()), messages(b.toward.Bytes()))
	}
}

func BenchmarkReuse(b *testing.B) {
	w, e := newReusingBench(b)
	b.ReportAllocs()
	for b.Loop() {
		w.play(b, e)
	}
}

func TestTextsThatComeOnceDisplaceNoOther(t *testing.T) {
	var r reuses
	again := []byte("select again")
	r.see(again)
	kept := r.see(again)
	kept.never = true
	for i := range 10_000 {
		if seen := r.see(fmt.Appendf(nil, "select %d", i)); seen != nil {
			t.Fatalf("%d was never seen", i)
		}
	}
	if seen := r.see(again); seen == nil || !seen.never {
		t.Errorf("the text was forgotten: %v", seen)
	}
}

func TestRepeatableTexts(t *testing.T) {
	s := New(&Options{Transaction: true}, NoParams)
	s.server = NewServer(nil)
	check := func(want bool, text string) {
		t.Helper()
		if got := s.repeatable([]byte(text + "\x00\x00\x00")); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	check(true, "select x from y where z = $1")
	check(true, "/* c */ WITH a AS (SELECT 1) INSERT INTO b SELECT * FROM a")
	check(false, "select 'today'::date")
	check(false, "select $$now$$::timestamp")
	check(false, "select a; begin")
	check(false, "select set_config($1, $2, false)")
	check(false, "select x into temp y from z")
	check(false, "create table x (y int)")
	check(false, "")
}
