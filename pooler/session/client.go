package session

import (
	"bytes"

	"pitr/internal/pgwire"
)

// Verdict is what a driver does after it has sent what is due.
type Verdict uint8

// The verdicts about a client's input.
const (
	Read  Verdict = iota // read more from the client; what was not used stays in front of it
	Need                 // link a server, then come again with what was not used
	Full                 // wait until Session.Drained, then come again with what was not used
	Leave                // the client has said goodbye
	Fail                 // tell the client Step.Failure and close both connections
)

// Step is a decision.
type Step struct {
	N       int // bytes of the input that were used; the others have to come again
	Verdict Verdict
	Want    int // Read: how many bytes the next input must have at least, where that is known
	Failure *pgwire.Failure
}

// FromClient takes what a client has sent. What is due to the server is put into out, which must have been Reset to in; what is
// due to the client by the machine itself waits in TakeReplies.
func (s *Session) FromClient(in []byte, out *Output) Step {
	if s.server != nil && s.server.replay.state == replayRecording {
		s.server.replay.mark = len(out.Bytes())
	}
	step := s.fromClientTo(in, out)
	s.record(out)
	return step
}

func (s *Session) fromClientTo(in []byte, out *Output) Step {
	n := 0
	for n < len(in) {
		if s.fromClient.body.Inside() {
			n += s.clientBody(in, n, out)
			continue
		}
		h, ok, err := pgwire.ClientHeader(in[n:])
		if err != nil {
			return s.fail(n, "08P01", err.Error(), "")
		}
		if !ok {
			return Step{N: n, Want: pgwire.HeaderLen}
		}
		used, step := s.message(message{Header: h, in: in, at: n, out: out})
		n += used
		if step.Verdict != Read || step.Want > 0 {
			step.N = n
			return step
		}
	}
	return Step{N: n}
}

// Drained reports whether a session that was Full can go on.
func (s *Session) Drained() bool {
	if s.server != nil && s.settling {
		return false
	}
	if s.awaiting {
		return s.server == nil || s.replies.readies == 0
	}
	return s.server == nil || s.replies.len() <= s.options.PipelineMax/2
}

// message is one message of the client of which at least the header has arrived: in[at:].
type message struct {
	pgwire.Header
	in  []byte
	at  int
	out *Output

	does *script // Query: what it does, where that is known and matters
}

// body returns the part of the body that has arrived.
func (m *message) body() []byte {
	from := m.at + pgwire.HeaderLen
	return m.in[from:min(from+m.Body, len(m.in))]
}

// query returns the text of a Query that has arrived as a whole, as far as a server would read it.
func (m *message) query() []byte {
	text, _, _ := bytes.Cut(m.body(), []byte{0})
	return text
}

// whole reports whether the message has arrived as a whole.
func (m *message) whole() bool { return len(m.body()) == m.Body }

func (s *Session) fail(n int, code, text, hint string) Step {
	return Step{N: n, Verdict: Fail, Failure: &pgwire.Failure{Severity: "FATAL", Code: code, Message: text, Hint: hint}}
}

// clientBody passes or drops a piece of a message whose header was dealt with.
func (s *Session) clientBody(in []byte, at int, out *Output) int {
	n := s.fromClient.body.Take(in[at:])
	if s.fromClient.watched {
		s.server.words.scan(in[at : at+n])
	}
	if !s.fromClient.swallow {
		out.pass(at, at+n)
	}
	if !s.fromClient.body.Inside() && s.fromClient.watched {
		s.fromClient.watched = false
		s.heed(s.server.words.end())
	}
	return n
}

// heed acts on what a text that was sent to the server may do to its state.
func (s *Session) heed(found hint) {
	if found&hintFrees != 0 {
		s.server.freed = true
	}
	if found&(hintLeaves|hintConfig) != 0 {
		s.server.dirty = true
	}
	if found&hintUnsettles != 0 {
		s.server.unsettled = true
	}
	if found&hintForgets != 0 {
		// Names are never used twice, so that forgetting too much costs no more than another Parse.
		s.server.forgetAll()
	}
}

// pass makes the header due, and lets the body follow.
func (s *Session) pass(m message) int {
	m.out.pass(m.at, m.at+pgwire.HeaderLen)
	s.fromClient = dialogue{body: s.fromClient.body}
	s.fromClient.body.Open(m.Body)
	return pgwire.HeaderLen
}

// swallow drops the message.
func (s *Session) swallow(m message) int {
	s.fromClient = dialogue{body: s.fromClient.body, swallow: true}
	s.fromClient.body.Open(m.Body)
	return pgwire.HeaderLen
}

// owes notes what the server owes for a message of the extended protocol.
func (s *Session) owes(kind replyKind) {
	s.batch = true
	s.replies.push(reply{kind: kind})
}

// pipelineRoom is the most that one message of the client adds to the replies: itself, two Closes and a Parse of ours.
const pipelineRoom = 4

// message decides about one message and returns how many bytes of the input it has used.
func (s *Session) message(m message) (int, Step) {
	s.awaiting = false
	if s.server != nil && (s.server.replay.state == replayFailed || s.server.replay.sending != nil) {
		return 0, s.await()
	}
	if s.server != nil && s.server.replay.original && s.server.replay.state == replayRecorded && !s.batch {
		return 0, s.await() // were the batch sent again, this would be carried out before it
	}
	switch {
	case m.Type == pgwire.Terminate:
		return 0, Step{Verdict: Leave}
	case m.Type == pgwire.Query && s.options.RefuseSimple:
		return 0, s.fail(0, "08P01", "PQexec disallowed", "disable_pqexec")
	}
	if s.cautious {
		if s.settling {
			return 0, s.await()
		}
		s.cautious = false
		if s.begin != 0 {
			s.sendBegin(m.out)
		}
	}
	switch m.Type {
	case pgwire.Sync:
		if !s.copyIn && s.full() {
			return 0, s.flushAndWait(m.out)
		}
		return s.sync(m), Step{}
	case pgwire.Flush:
		if s.server == nil || s.skip || !s.batch {
			return s.swallow(m), Step{}
		}
		return s.pass(m), Step{}
	case pgwire.CopyData, pgwire.CopyDone, pgwire.CopyFail:
		return s.copyMessage(m), Step{}
	}
	if s.skip {
		return s.swallow(m), Step{}
	}
	if s.full() {
		return 0, s.flushAndWait(m.out)
	}
	if used, step, done := s.closeLocally(m); done {
		return used, step
	}
	if m.Type == pgwire.Query && s.options.Transaction && m.Body <= lexMax {
		if !m.whole() {
			return 0, Step{Want: pgwire.HeaderLen + m.Body}
		}
		m.does = scriptOf(m.query())
		if used, step, done := s.queryLocally(m); done {
			return used, step
		}
	}
	if s.server == nil && s.options.Transaction && (m.Type == pgwire.Parse || m.Type == pgwire.Bind) {
		if used, done := s.answeredBatch(m); done {
			return used, Step{}
		}
	}
	if s.server == nil {
		if s.readsWhole(m) && !m.whole() {
			return 0, Step{Want: pgwire.HeaderLen + m.Body} // no server stands by while a client takes its time
		}
		return 0, Step{Verdict: Need}
	}
	s.flushed, s.copyIn = false, false // no such message belongs into a COPY: the server ends it with an error
	return s.request(m)
}

// readsWhole reports whether a message is only dealt with when all of it is here.
func (s *Session) readsWhole(m message) bool {
	return s.options.Transaction && (m.Type == pgwire.Describe || m.Type == pgwire.Parse && m.Body <= s.options.StatementLenMax)
}

// full reports whether one more message could be more than may be outstanding.
func (s *Session) full() bool {
	return s.server != nil && s.replies.len()+pipelineRoom > s.options.PipelineMax
}

// flushAndWait makes the server answer what it has got, and lets the client's next message wait for that.
func (s *Session) flushAndWait(out *Output) Step {
	if !s.flushed {
		s.flushed = true
		out.buf = pgwire.AppendEmpty(out.open(), pgwire.Flush)
	}
	return Step{Verdict: Full}
}

// queryLocally answers a simple query where no server has to. done is false when one has to.
func (s *Session) queryLocally(m message) (used int, step Step, done bool) {
	if m.does == nil || len(m.does.commands) != 1 {
		return 0, Step{}, false
	}
	c := &m.does.commands[0]
	if s.server == nil && s.answered(c) {
		return s.consume(m), Step{}, true
	}
	step, done = s.deallocates(c)
	if done && step.Verdict == Read {
		used = s.consume(m)
	}
	return used, step, done
}

// request decides about a message that a linked server answers, and notes it.
func (s *Session) request(m message) (int, Step) {
	used, step := s.requestOf(m)
	if used > 0 {
		s.server.say(m, &s.counters)
	}
	return used, step
}

func (s *Session) requestOf(m message) (int, Step) {
	if s.options.Transaction {
		if s.server.params != s.params && s.CanRelease() {
			s.adjust(m.out)
		}
		if s.server.freed && s.Pinned() && s.CanRelease() {
			s.probe(m.out)
		}
		if s.fresh {
			s.cleanSlot(m)
		}
	}
	switch m.Type {
	case pgwire.Query:
		return s.sendQuery(m), Step{}
	case pgwire.FunctionCall:
		s.server.dirty = s.server.dirty || s.options.Transaction // the function may be set_config
		s.replies.push(reply{kind: replyFunction})
		return s.pass(m), Step{}
	case pgwire.Execute:
		if s.options.Transaction && len(s.server.portals) > 0 && !m.whole() {
			return 0, Step{Want: pgwire.HeaderLen + m.Body}
		}
		s.batch = true
		does := s.server.executes(m.body())
		s.server.sends(does)
		s.replies.push(reply{kind: replyExecute, script: does})
		return s.pass(m), Step{}
	}
	if s.options.Transaction {
		return s.statementMessage(m)
	}
	switch m.Type {
	case pgwire.Parse:
		s.counters.ServerParses++
		s.owes(replyParse)
	case pgwire.Bind:
		s.owes(replyBind)
	case pgwire.Describe:
		s.owes(replyDescribe)
	case pgwire.Close:
		s.owes(replyClose)
	default:
		panic("session: a message type that pgwire accepts is not dealt with")
	}
	return s.pass(m), Step{}
}

// sendQuery passes a simple query.
func (s *Session) sendQuery(m message) int {
	r := reply{kind: replyQuery, script: m.does}
	s.dropUnnamed(&r) // as exec_simple_query in src/backend/tcop/postgres.c does
	s.replies.push(r)
	if !s.options.Transaction || m.Body > lexMax {
		used := s.pass(m)
		s.watch()
		return used
	}
	s.server.sends(m.does)
	if instead := s.heedText(m.query(), m.does); instead != "" {
		m.out.buf = pgwire.AppendQuery(m.out.open(), instead)
		return s.consume(m)
	}
	m.out.pass(m.at, m.at+s.consume(m))
	return s.consume(m)
}

// watch reads the words of the message whose header was just passed. In session mode nobody needs to know.
func (s *Session) watch() {
	s.fromClient.watched = s.options.Transaction && s.fromClient.body.Inside()
	s.server.words.reset()
}

// sync ends a batch. Without a server there is nothing that could be outstanding, and the answer is known.
func (s *Session) sync(m message) int {
	if s.server == nil {
		s.own = pgwire.AppendReady(s.own, s.state())
		return s.swallow(m)
	}
	if s.copyIn {
		// CopyGetData in src/backend/commands/copyfromparse.c: "Flush/Sync: ignore but keep waiting".
		s.ignored = true
		return s.pass(m)
	}
	s.batch, s.skip, s.flushed = false, false, false
	s.replies.push(reply{kind: replySync})
	if s.server.replay.state == replayRecording {
		s.server.replay.state = replayRecorded
	}
	return s.pass(m)
}

// copyMessage passes what belongs to a COPY and drops what comes after one has failed, as a server would.
func (s *Session) copyMessage(m message) int {
	if s.server == nil || s.skip || s.replies.len() == 0 {
		return s.swallow(m)
	}
	if m.Type != pgwire.CopyData {
		if !s.copyIn && s.replies.len() < s.options.PipelineMax {
			s.replies.push(reply{kind: replyCopyEnd}) // CopyInResponse may still be on its way
		}
		s.copyIn = false
	}
	return s.pass(m)
}
