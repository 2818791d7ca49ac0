package session

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"unique"

	"pgregory.net/rapid"

	"pitr/internal/pgwire"
)

// TestClientsSeeWhatPostgresWouldTellThem plays random scripts to a server of the client's own and through the machine, over
// servers that are shared with others, in pieces of random size. The answers have to be the same.
func TestClientsSeeWhatPostgresWouldTellThem(t *testing.T) { rapid.Check(t, asPostgres) }

func asPostgres(t *rapid.T) {
	script := drawScript(t)
	rounds, want := playDirectly(script)
	for _, transaction := range []bool{true, false} {
		world := &world{t: t, options: &Options{
			Transaction: transaction, PreparedMax: rapid.SampledFrom([]int{1, 2, 100}).Draw(t, "prepared"), StatementLenMax: 1000,
			SettingsLenMax: 1000, ReplayLenMax: rapid.SampledFrom([]int{0, 60, 1000}).Draw(t, "replay"), LazyBegin: rapid.Bool().Draw(t, "lazy"),
			ReuseUnnamed:  rapid.Bool().Draw(t, "reuse"),
			StatementsMax: 100, PipelineMax: rapid.SampledFrom([]int{8, 1000}).Draw(t, "pipeline"),
		}}
		for range rapid.IntRange(1, 2).Draw(t, "servers") {
			world.servers = append(world.servers, newServerWorld(transaction, &world.table))
		}
		got := world.play(rounds)
		if refusals.Replace(messages(got)) != refusals.Replace(messages(want)) {
			t.Fatalf("transaction mode %v\nscript %s\nwant   %s\ngot    %s", transaction, messages(bytes.Join(script, nil)), messages(want), messages(got))
		}
	}
}

// refusals makes the reasons alike for which a Parse fails: in a transaction that has failed, a statement that has to be sent to the
// server first is refused for that reason.
var refusals = strings.NewReplacer("E 42601", "E refused", "E 42P05", "E refused", "E 25P02", "E refused")

// playDirectly returns what a server of the client's own answers. The script is cut where a client has to read before it goes on:
// behind a batch with an error.
func playDirectly(script [][]byte) (rounds [][]byte, want []byte) {
	direct := newModel()
	var round []byte
	failed := false
	for _, message := range script {
		out := direct.feed(message)
		want = append(want, out...)
		round = append(round, message...)
		text := " | " + messages(out)
		failed = failed || strings.Contains(text, " | E ")
		if failed && strings.Contains(text, " | Z ") {
			rounds, round, failed = append(rounds, round), nil, false
		}
	}
	return append(rounds, round), want
}

// drawScript draws messages that a client may send, up to a last Sync, so that all of it is answered. An unnamed statement is used
// in the batch that has parsed it, as clients do; what becomes of it across errors is a limit that is documented.
func drawScript(t *rapid.T) [][]byte {
	texts := []string{"a", "b", "c", "begin", "commit", "rollback", "error", "", "out x", "syntax",
		"set x.a = 1", "set x.a = 2", "set local x.a = 3", "set x.b = 4", "set timezone = t1", "set local timezone = t2", "reset x.a", "reset timezone",
		"reset all", "show x.a", "show x.b", "show timezone", "savepoint s", "savepoint t", "release s", "rollback to s", "rollback to t", "begin", "commit"}
	names := rapid.SampledFrom([]string{"", "", "s1", "s2", "pitr_1"})
	text := rapid.SampledFrom(texts)
	var script [][]byte
	add := func(message []byte) { script = append(script, message) }
	defined := map[string]bool{}
	least := rapid.SampledFrom([]int{0, 0, 11, 12}).Draw(t, "least") // 11, 12: mostly texts that come again
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		step := rapid.IntRange(0, 15).Draw(t, "step")
		if step < least && rapid.IntRange(0, 4).Draw(t, "other") > 0 {
			step = rapid.IntRange(least, 14).Draw(t, "one of them")
		}
		switch step {
		case 0, 1:
			query := text.Draw(t, "text")
			if rapid.Bool().Draw(t, "two") {
				query += ";" + text.Draw(t, "text")
			}
			add(pgwire.AppendQuery(nil, query))
		case 2, 3:
			name := names.Draw(t, "name")
			if name != "" && defined[name] && rapid.IntRange(0, 3).Draw(t, "again") > 0 {
				add(named('C', 'S', name))
			}
			defined[name] = true
			add(pgwire.AppendParse(nil, name, text.Draw(t, "text")+"\x00\x00\x00"))
		case 4, 5:
			name := names.Draw(t, "name")
			if name == "" {
				add(pgwire.AppendParse(nil, "", text.Draw(t, "text")+"\x00\x00\x00"))
			}
			add(bindMessage("", name))
			add(executeMessage(""))
		case 6:
			name := names.Draw(t, "name")
			// In a transaction that has failed a server that does not have the statement cannot describe it: another documented limit.
			add(pgwire.AppendEmpty(nil, pgwire.Sync))
			add(pgwire.AppendQuery(nil, "rollback"))
			if name == "" {
				add(pgwire.AppendParse(nil, "", text.Draw(t, "text")+"\x00\x00\x00"))
			}
			add(named('D', 'S', name))
		case 7:
			add(named('D', 'P', ""))
		case 8:
			add(named('C', rapid.SampledFrom([]byte{'S', 'P'}).Draw(t, "kind"), names.Draw(t, "name")))
		case 9:
			add(pgwire.AppendEmpty(nil, pgwire.Flush))
		case 10:
			for _, message := range drawCopy(t) {
				add(message)
			}
		case 11:
			add(pgwire.AppendQuery(nil, "alter"))
		case 12, 13, 14:
			for _, message := range drawReusable(t) {
				add(message)
			}
		default:
			add(pgwire.AppendEmpty(nil, pgwire.Sync))
		}
	}
	return append(script, pgwire.AppendEmpty(nil, pgwire.Sync))
}

// drawReusable draws a batch of an unnamed statement that may come again.
func drawReusable(t *rapid.T) [][]byte {
	text := rapid.SampledFrom([]string{"select 1", "select 2", "select t", "select t", "select bad"}).Draw(t, "repeated")
	batch := [][]byte{pgwire.AppendParse(nil, "", text+"\x00\x00\x00"), bindMessage("", "")}
	if rapid.Bool().Draw(t, "described") {
		batch = append(batch, named('D', 'P', ""))
	}
	return append(batch, executeMessage(""), pgwire.AppendEmpty(nil, pgwire.Sync))
}

// drawCopy draws a COPY of either protocol, good or bad, with what clients send around it.
func drawCopy(t *rapid.T) [][]byte {
	data := append(pgwire.AppendHeader(nil, 'd', 4), "data"...)
	end := pgwire.AppendEmpty(nil, 'c')
	if rapid.Bool().Draw(t, "fails") {
		end = append(pgwire.AppendHeader(nil, 'f', 1), 0)
	}
	if rapid.Bool().Draw(t, "simple") {
		return [][]byte{pgwire.AppendEmpty(nil, pgwire.Sync), pgwire.AppendQuery(nil, "rollback;copy"), data, data, end}
	}
	sync := pgwire.AppendEmpty(nil, pgwire.Sync)
	start := [][]byte{sync, pgwire.AppendQuery(nil, "rollback"), pgwire.AppendParse(nil, "", "copy\x00\x00\x00"), bindMessage("", ""), executeMessage("")}
	if rapid.Bool().Draw(t, "early sync") {
		start = append(start, sync) // as libpq does; Postgres ignores it
	}
	// What the unnamed statement is afterwards must not be a COPY that nobody feeds.
	return append(start, data, data, end, sync, pgwire.AppendParse(nil, "", "a\x00\x00\x00"), sync)
}

func named(kind, object byte, name string) []byte {
	out := pgwire.AppendHeader(nil, kind, 1+len(name)+1)
	return append(append(append(out, object), name...), 0)
}

func bindMessage(portal, name string) []byte {
	body := portal + "\x00" + name + "\x00\x00\x00\x00\x00\x00\x00"
	return append(pgwire.AppendHeader(nil, pgwire.Bind, len(body)), body...)
}

func executeMessage(portal string) []byte {
	body := portal + "\x00\x00\x00\x00\x00"
	return append(pgwire.AppendHeader(nil, pgwire.Execute, len(body)), body...)
}

// serverWorld is a server with what the pool knows of it.
type serverWorld struct {
	model *model
	state *Server
	sent  []byte // what the server has sent and the machine has not used
}

func newServerWorld(used bool, table *modelTable) *serverWorld {
	s := &serverWorld{model: newModel(), state: NewServer(map[string]string{"TimeZone": ""})}
	s.model.table = table
	if !used {
		return s
	}
	// Others have used it before: what they have left must not be seen.
	s.state.named = 1
	s.state.add(unique.Make("foreign\x00\x00\x00"), 0).there = true
	s.model.statements["pitr_2"] = "foreign"
	s.model.statements[""], s.state.unnamedUsed = "foreign", true
	s.state.params = newParams(map[string]string{"x.b": "foreign", "timezone": "foreign"})
	s.model.settings.now.session["x.b"], s.model.settings.now.session["timezone"] = "foreign", "foreign"
	s.model.settings.reported, s.state.reported["TimeZone"] = "foreign", "foreign"
	return s
}

// world drives a session as a driver would, with one choice after another drawn at random.
type world struct {
	t       *rapid.T
	options *Options
	session *Session
	servers []*serverWorld
	table   modelTable
	linked  *serverWorld
	got     []byte
	script  []byte
	toward  Output
	back    Output
}

func (w *world) play(rounds [][]byte) []byte {
	w.session, w.script = New(w.options, NoParams), bytes.Join(rounds, nil)
	for _, round := range rounds {
		w.round(round)
	}
	if w.linked != nil && w.session.CanRelease() != (w.linked.model.status == 'I' && w.linked.model.copyIn == nil && !w.options.Transaction) {
		w.t.Fatalf("a server in state %c is linked still: %+v", w.linked.model.status, w.session)
	}
	return w.got
}

// round plays what a client sends without reading, and then lets it read.
func (w *world) round(script []byte) {
	var in []byte // what the client has sent and the machine has not used
	blocked := false
	for step := 0; len(script) > 0 || len(in) > 0 || w.outstanding(); step++ {
		if step > 100_000 {
			w.t.Fatalf("stuck: unread %s, outstanding %v, got %s", messages(in), w.outstanding(), messages(w.got))
		}
		if w.linked != nil && len(w.linked.sent) > 0 && (blocked || len(script)+len(in) == 0 || rapid.Bool().Draw(w.t, "server's turn")) {
			w.fromServer()
			blocked = blocked && !w.session.Drained()
			continue
		}
		if blocked || len(script)+len(in) == 0 {
			continue // only what the server has sent can help, or nothing
		}
		n := rapid.IntRange(0, min(len(script), 40)).Draw(w.t, "piece")
		if sync := bytes.Index(script, pgwire.AppendEmpty(nil, pgwire.Sync)); sync >= 0 && rapid.Bool().Draw(w.t, "up to a Sync") {
			n = sync + pgwire.HeaderLen // as drivers do, and reusable batches come
		}
		in, script = append(in, script[:n]...), script[n:]
		step := w.fromClient(in)
		in = in[step.N:]
		blocked = step.Verdict == Full && !w.session.Drained()
	}
}

func (w *world) outstanding() bool {
	return w.linked != nil && (len(w.linked.sent) > 0 || w.session.replies.len() > 0 && w.linked.model.copyIn == nil)
}

func (w *world) fromClient(in []byte) Step {
	w.toward.Reset(in)
	step := w.session.FromClient(in, &w.toward)
	w.toServer()
	w.got = append(w.got, w.session.TakeReplies()...)
	w.settle()
	switch step.Verdict {
	case Full:
		if w.session.Drained() {
			w.t.Fatalf("the machine asks to wait for what has happened: the driver would spin")
		}
	case Need:
		w.link()
	case Fail:
		w.t.Fatalf("the machine gave up: %v", step.Failure)
	}
	return step
}

func (w *world) toServer() {
	if out := w.toward.Bytes(); len(out) > 0 {
		w.linked.sent = append(w.linked.sent, w.linked.model.feed(out)...)
	}
}

func (w *world) link() {
	w.linked = rapid.SampledFrom(w.servers).Draw(w.t, "server")
	for name, text := range w.linked.model.statements {
		if strings.HasPrefix(name, namePrefix) && text == "select 1" && rapid.IntRange(0, 9).Draw(w.t, "lost") == 0 {
			delete(w.linked.model.statements, name) // nobody has named this one
		}
	}
	w.toward.Reset(nil)
	w.session.Link(w.linked.state, &w.toward)
	w.toServer()
}

func (w *world) fromServer() {
	n := rapid.IntRange(1, len(w.linked.sent)).Draw(w.t, "reply piece")
	w.back.Reset(w.linked.sent[:n])
	used, failure := w.session.FromServer(w.linked.sent[:n], &w.back)
	if failure != nil {
		w.t.Fatalf("script %s\nthe machine found fault with %s: %v", messages(w.script), messages(w.linked.sent), failure)
	}
	w.got = append(w.got, w.back.Bytes()...)
	w.linked.sent = w.linked.sent[used:]
	if more := w.session.TakeResend(); more != nil {
		w.linked.sent = append(w.linked.sent, w.linked.model.feed(more)...)
	}
	w.settle()
}

// settle gives the server back when the machine says so, and checks that it may.
func (w *world) settle() {
	if !w.session.Due() {
		return
	}
	s := w.linked
	condition := w.session.Unlink()
	if condition != Broken && (s.model.status != 'I' || s.model.skip || s.model.copyIn != nil || len(s.model.in) > 0 || len(s.sent) > 0) {
		w.t.Fatalf("a server was given back in the state %+v with %s unread", s.model, messages(s.sent))
	}
	if condition == Clean && !maps.Equal(paramsMap(s.state.params), s.model.settings.now.session) {
		w.t.Fatalf("script %s\na server has the settings %v, and they are thought to be %q", messages(w.script), s.model.settings.now, s.state.params.Key())
	}
	if condition == Broken {
		w.replace(s)
	}
	if condition == Dirty {
		out := s.model.feed(s.state.AppendClean(nil))
		// The model's DISCARD ALL is spelt in lower case.
		_ = out
		s.model.simple([]string{"discard"})
		s.model.out = nil
		s.state.reported["TimeZone"] = ""
		s.state.params, s.state.dirty, s.state.unnamedUsed = NoParams, false, false
		s.state.forgetAll()
	}
	w.linked = nil
}

func paramsMap(p *Params) map[string]string {
	set := map[string]string{}
	for _, param := range p.list {
		set[param.Name] = param.Value
	}
	return set
}

func (w *world) replace(s *serverWorld) {
	for i := range w.servers {
		if w.servers[i] == s {
			w.servers[i] = newServerWorld(w.options.Transaction, &w.table)
		}
	}
}
