package session

import (
	"bytes"
	"runtime"
	"testing"
	"unsafe"

	"pitr/internal/pgwire"
)

// exchange is a question of a client and the whole answer of its server.
type exchange struct{ ask, answer []byte }

// exchanges are what most clients do most of the time.
func exchanges() map[string]exchange {
	row := append(pgwire.AppendHeader(nil, 'D', 4), "row!"...)
	done := append(append(row, "C\x00\x00\x00\x0dSELECT 1\x00"...), pgwire.AppendReady(nil, 'I')...)
	sync := pgwire.AppendEmpty(nil, pgwire.Sync)
	text := "select abalance, filler from pgbench_accounts where aid = $1 and bid = $2"
	unnamed := pgwire.AppendParse(nil, "", text+"\x00\x00\x00")
	prepared := bytes.Join([][]byte{bindMessage("", "s1"), named('D', 'P', ""), executeMessage(""), sync}, nil)
	return map[string]exchange{
		"simple":   {pgwire.AppendQuery(nil, "select abalance, filler from pgbench_accounts where aid = 1234567"), append([]byte("T\x00\x00\x00\x06\x00\x00"), done...)},
		"extended": {bytes.Join([][]byte{unnamed, bindMessage("", ""), named('D', 'P', ""), executeMessage(""), sync}, nil), append([]byte("1\x00\x00\x00\x042\x00\x00\x00\x04n\x00\x00\x00\x04"), done...)},
		"prepared": {prepared, append([]byte("2\x00\x00\x00\x04n\x00\x00\x00\x04"), done...)},
		"pipeline": {bytes.Repeat(prepared, 10), bytes.Repeat(append([]byte("2\x00\x00\x00\x04n\x00\x00\x00\x04"), done...), 10)},
	}
}

// bench is a client with one statement, and a server that has it.
type bench struct {
	session          *Session
	server           *Server
	toward, backward Output
	keep             bool // the link is kept
}

func newBench(tb testing.TB, keep bool) *bench {
	b := &bench{server: NewServer(nil), keep: keep}
	b.session = New(&Options{Transaction: true, PreparedMax: 100, StatementLenMax: 1000, StatementsMax: 10, PipelineMax: 1000, SettingsLenMax: 1000, LazyBegin: true, ReplayLenMax: 4000}, NoParams)
	parse := append(pgwire.AppendParse(nil, "s1", "select abalance from pgbench_accounts where aid = $1\x00\x00\x00"), pgwire.AppendEmpty(nil, 'S')...)
	b.play(tb, exchange{parse, append(pgwire.AppendEmpty(nil, '1'), pgwire.AppendReady(nil, 'I')...)})
	return b
}

func (b *bench) play(tb testing.TB, e exchange) {
	step := Step{Verdict: Need}
	if b.session.Linked() == nil {
		b.toward.Reset(e.ask)
		if step = b.session.FromClient(e.ask, &b.toward); step.Verdict != Need {
			tb.Fatal(step)
		}
		b.toward.Reset(nil)
		b.session.Link(b.server, &b.toward)
	}
	b.toward.Reset(e.ask)
	step = b.session.FromClient(e.ask, &b.toward)
	b.backward.Reset(e.answer)
	n, failure := b.session.FromServer(e.answer, &b.backward)
	if failure != nil || n != len(e.answer) || step.Verdict != Read || step.N != len(e.ask) || !b.session.Due() {
		tb.Fatal(n, failure, step)
	}
	if !b.keep && b.session.Unlink() != Clean {
		tb.Fatal("the server is dirty")
	}
}

func BenchmarkSession(b *testing.B) {
	for name, e := range exchanges() {
		for _, keep := range []bool{true, false} {
			kind := map[bool]string{true: "/linked", false: "/link+unlink"}[keep]
			b.Run(name+kind, func(b *testing.B) {
				w := newBench(b, keep)
				b.ReportAllocs()
				for b.Loop() {
					w.play(b, e)
				}
			})
		}
	}
}

// TestForwardPathAllocatesNothing plays the exchanges of the benchmark, with and without a new link for each.
func TestForwardPathAllocatesNothing(t *testing.T) {
	for name, e := range exchanges() {
		for _, keep := range []bool{true, false} {
			w := newBench(t, keep)
			w.play(t, e) // buffers grow to their size
			if n := testing.AllocsPerRun(100, func() { w.play(t, e) }); n != 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		}
	}
}

// sessionSizeMax is what an idle client without statements may cost here.
const sessionSizeMax = 300

func TestAnIdleSessionIsSmall(t *testing.T) {
	if size := unsafe.Sizeof(Session{}); size > sessionSizeMax {
		t.Errorf("a Session has %d bytes", size)
	}
	w := newBench(t, false)
	query := exchanges()["simple"]
	sessions := make([]*Session, 1000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range sessions {
		sessions[i] = New(w.session.options, NoParams)
		w.session = sessions[i]
		w.play(t, query)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := int64(after.HeapAlloc-before.HeapAlloc) / int64(len(sessions)); each > sessionSizeMax+50 {
		t.Errorf("an idle Session that has been used holds %d bytes", each)
	}
	runtime.KeepAlive(sessions)
}
