package session

import (
	"bytes"
	"unique"

	"pitr/internal/pgwire"
)

// statement is a named statement of a client.
type statement struct {
	name  string // the client's
	tail  text
	hints hint

	script    *script    // what it does, where that matters
	objects   objects    // what it makes
	described bool       // the client may know the columns of its result
	valid     bool       // Parse was answered with ParseComplete
	replaces  *statement // what has the name if this one's Parse is not carried out
}

// unnamed is the client's unnamed statement. It is remembered so that it can be parsed again on another server, and
// forgotten when it has been dropped.
type unnamed struct {
	known   bool
	valid   bool   // Parse was answered with ParseComplete
	tail    []byte // nil when it was too long to be remembered
	hints   hint
	script  *script
	objects objects
	link    uint64 // the link over which it was sent last
	serial  uint32 // counts them
}

// dropUnnamed notes that what is sent now drops the unnamed statement. The reply says so, in case it is never carried out.
func (s *Session) dropUnnamed(r *reply) {
	r.dropped, r.serial = s.unnamed.known, s.unnamed.serial
	s.unnamed.known = false
}

// nameLenMax bounds the names of statements and portals. Postgres tells names apart by NAMEDATALEN (64) bytes
// (src/include/pg_config_manual.h).
const nameLenMax = 1023

// noStatement is a name that no server has. Binding it makes the server answer as it does for any statement that does not exist.
const noStatement = namePrefix + "none"

// closeLocally answers Close where the server does not have what is closed, or keeps it for others. done is false when the
// message has to go to a server.
func (s *Session) closeLocally(m message) (used int, step Step, done bool) {
	if m.Type != pgwire.Close || !s.options.Transaction {
		return 0, Step{}, false
	}
	if !m.whole() {
		return 0, Step{Want: pgwire.HeaderLen + m.Body}, true
	}
	body := m.body()
	name, ok := namedObject(body)
	if !ok {
		return 0, s.fail(0, "08P01", "invalid CLOSE message", ""), true
	}
	if body[0] != 'S' && body[0] != 'P' {
		return 0, Step{}, false // Postgres says what is wrong with it
	}
	passThrough := s.options.PreparedMax == 0
	var closed *statement
	switch {
	case s.server != nil && (body[0] != 'S' || len(name) == 0 || passThrough):
		return 0, Step{}, false
	case body[0] == 'S' && len(name) == 0:
		s.unnamed.known = false
	case body[0] == 'S' && s.unsettled(string(name), s.names[string(name)]):
		return 0, s.await(), true
	case body[0] == 'S':
		closed = s.names[string(name)]
		delete(s.names, string(name))
	}
	s.ourReply(replyOurClose, closed)
	return s.swallow(m), Step{}, true
}

// ourReply answers by itself, in the place where the server's answer would have come.
func (s *Session) ourReply(kind replyKind, statement *statement) {
	r := reply{kind: kind, statement: statement}
	if s.replies.len() == 0 && !s.fromServer.body.Inside() {
		s.own = pgwire.AppendEmpty(s.own, ourReplyType(kind))
		r.given()
		return
	}
	s.replies.push(r) // an error before it makes the server skip it
}

func ourReplyType(kind replyKind) byte {
	if kind == replyOurParse {
		return pgwire.ParseComplete
	}
	return pgwire.CloseComplete
}

// undoName takes a name back whose Parse was not carried out.
func (s *Session) undoName(st *statement) {
	if st.replaces == nil {
		delete(s.names, st.name)
		return
	}
	s.names[st.name] = st.replaces
}

// namedObject reads the body of Describe and Close: one byte of kind and a name.
func namedObject(body []byte) (name []byte, ok bool) {
	if len(body) < 2 || body[len(body)-1] != 0 {
		return nil, false
	}
	name = body[1 : len(body)-1]
	return name, bytes.IndexByte(name, 0) < 0
}

// statementMessage decides about Parse, Bind, Describe and Close in transaction mode, where a linked server can take them.
func (s *Session) statementMessage(m message) (int, Step) {
	switch m.Type {
	case pgwire.Parse:
		return s.parse(m)
	case pgwire.Bind:
		return s.bind(m)
	case pgwire.Describe:
		return s.describe(m)
	}
	r := reply{kind: replyClose}
	if body := m.body(); body[0] == 'S' && len(body) == 2 {
		s.dropUnnamed(&r)
	}
	s.batch = true
	s.replies.push(r)
	return s.pass(m), Step{}
}

// parse passes an unnamed statement, and gives a named one the name that it has on this server.
func (s *Session) parse(m message) (int, Step) {
	if len(m.body()) == 0 && m.Body > 0 {
		return 0, Step{Want: pgwire.HeaderLen + 1}
	}
	isUnnamed := m.Body == 0 || m.body()[0] == 0
	if !isUnnamed && s.options.PreparedMax == 0 {
		s.server.dirty = true // the name would be seen by the next client
		s.owes(replyParse)
		return s.pass(m), Step{}
	}
	if m.Body > s.options.StatementLenMax {
		if isUnnamed {
			return s.parseUnnamed(m), Step{}
		}
		return 0, s.fail(0, "54000", "the text of a prepared statement is too long for transaction pooling", "raise pooler.prepared_statement_size_max")
	}
	if !m.whole() {
		return 0, Step{Want: pgwire.HeaderLen + m.Body}
	}
	if isUnnamed {
		if used, done := s.reuse(m); done {
			return used, Step{}
		}
		return s.parseUnnamed(m), Step{}
	}
	name, tail, found := bytes.Cut(m.body(), []byte{0})
	end := bytes.IndexByte(tail, 0)
	if !found || end < 0 || len(name) > nameLenMax {
		return 0, s.fail(0, "08P01", "invalid PARSE message", "")
	}
	return s.parseNamed(m, string(name), unique.Make(string(tail)), tail[:end])
}

func (s *Session) parseUnnamed(m message) int {
	if s.unnamed.valid {
		s.server.former, s.unnamed = s.unnamed, s.server.former
	}
	s.serials++
	s.counters.ServerParses++
	s.server.unnamedUsed = true
	s.unnamed = unnamed{known: true, tail: s.unnamed.tail[:0], link: s.link, serial: s.serials}
	s.server.words.reset()
	s.batch = true
	s.replies.push(reply{kind: replyParse, serial: s.unnamed.serial})
	if m.Body > s.options.StatementLenMax || m.Body == 0 {
		s.unnamed.tail = nil
		used := s.pass(m)
		s.watch()
		return used
	}
	tail := m.body()[1:]
	s.unnamed.tail = append(s.unnamed.tail, tail...)
	text, _, _ := bytes.Cut(tail, []byte{0})
	s.unnamed.script = scriptOf(text)
	s.unnamed.hints = s.server.hints(text, s.unnamed.script)
	s.unnamed.objects = s.unnamed.hints.objects(text, s.unnamed.script)
	s.heed(s.unnamed.hints)
	if instead := s.makes(s.unnamed.objects); instead != "" {
		s.unnamed.tail = append(append(s.unnamed.tail[:0], instead...), 0, 0, 0)
		m.out.buf = pgwire.AppendParse(m.out.open(), "", string(s.unnamed.tail))
		return s.consume(m)
	}
	return s.pass(m)
}

func (s *Session) parseNamed(m message, name string, tail text, query []byte) (int, Step) {
	old := s.names[name]
	if s.unsettled(name, old) || old != nil && s.inDoubt(old) {
		return 0, s.await()
	}
	if old == nil && len(s.names) >= s.options.StatementsMax {
		return 0, s.fail(0, "53400", "the client has too many prepared statements", "raise pooler.max_client_prepared_statements")
	}
	st := &statement{name: name, tail: tail, script: scriptOf(query), replaces: old}
	st.hints = s.server.hints(query, st.script)
	st.objects = st.hints.objects(query, st.script)
	if s.refuses(st.objects) {
		tail = unique.Make(refusal + "\x00\x00\x00")
		st.tail, st.objects = tail, 0
	}
	if s.names == nil {
		s.names = map[string]*statement{}
	}
	s.names[name] = st
	p := s.server.find(tail)
	switch {
	case old != nil:
		// Postgres refuses the second statement of a name. Asked for a name that it has, the server does so, in the right place.
		p = s.server.addAs(s.ensure(old, m.out).name, tail, st.hints)
	case p != nil && p.there && s.status != pgwire.Failed && s.replies.readies == 0:
		p.link = s.link
		s.ourReply(replyOurParse, st)
		return s.consume(m), Step{}
	case p != nil && p.there:
		// Only the server can answer in a transaction that has failed, or may have failed by then. It gets one that nobody will use.
		p = s.server.surplus(tail)
	default:
		p = s.makeRoom(m.out).add(tail, st.hints)
	}
	p.link = s.link
	s.sendParse(m.out, p.name, tail.Value(), reply{kind: replyParse, statement: st, prepared: p})
	return s.consume(m), Step{}
}

// unsettled reports whether it depends on the outcome of an earlier batch what a name stands for: whether the server carries out
// its Parse or Close, or skips it.
func (s *Session) unsettled(name string, st *statement) bool {
	if s.replies.readies == 0 {
		return false
	}
	if st != nil {
		return !st.valid
	}
	for i := range s.replies.len() {
		if r := s.replies.at(i); r.statement != nil && r.statement.name == name {
			return true
		}
	}
	return false
}

// inDoubt reports whether it depends on the outcome of an earlier batch whether the server has a statement of the client.
func (s *Session) inDoubt(st *statement) bool {
	p := s.server.earlier(st.tail)
	return st.valid && p != nil && !p.there && s.replies.readies > 0
}

// await lets the client's next message wait until everything that was sent is answered. It will be, since a Sync was sent.
func (s *Session) await() Step {
	s.awaiting = true
	return Step{Verdict: Full}
}

// consume drops a message that has arrived as a whole and has been answered or replaced.
func (s *Session) consume(m message) int {
	return pgwire.HeaderLen + m.Body
}

func (s *Session) sendParse(out *Output, name, tail string, owed reply) {
	s.batch = true
	s.counters.ServerParses++
	s.replies.push(owed)
	out.buf = pgwire.AppendParse(out.open(), name, tail)
}

// ensure returns the client's statement on the server, and sends it there first if it is not.
func (s *Session) ensure(st *statement, out *Output) *prepared {
	p := s.server.use(s.server.earlier(st.tail))
	if p == nil {
		p = s.makeRoom(out).add(st.tail, st.hints)
		p.again = st.described
		s.sendParse(out, p.name, st.tail.Value(), reply{kind: replyParse, swallow: true, prepared: p})
	}
	p.link = s.link
	return p
}

// makeRoom closes the least recently used statement if the server has as many as it may. One that this client has used over the
// present link is spared, since a portal of the same batch may depend on it; the server then has more for a while.
func (s *Session) makeRoom(out *Output) *Server {
	victim := s.server.oldest
	if len(s.server.prepared) >= s.options.PreparedMax && victim != nil && victim.link != s.link {
		s.server.forget(victim)
		s.batch = true
		s.replies.push(reply{kind: replyClose, swallow: true})
		out.buf = pgwire.AppendNamed(out.open(), pgwire.Close, victim.name)
	}
	return s.server
}

// bind gives the statement the name that it has on this server. Only the two names at the beginning of the body have to be here.
func (s *Session) bind(m message) (int, Step) {
	portal, rest, found := bytes.Cut(m.body(), []byte{0})
	name, _, foundName := bytes.Cut(rest, []byte{0})
	if !found || !foundName {
		if m.whole() || len(m.body()) > 2*(nameLenMax+1) {
			return 0, s.fail(0, "08P01", "invalid BIND message", "")
		}
		return 0, Step{Want: min(pgwire.HeaderLen+m.Body, m.seen()+1)}
	}
	to, step, rewrite := s.statementName(name, m.out)
	if step.Verdict != Read {
		return 0, step
	}
	s.server.bound(portal, s.scriptOf(name))
	if st := s.names[string(name)]; st != nil {
		s.server.saidTail = st.tail
	}
	s.records(s.names[string(name)], s.server.uses, m.out)
	s.batch = true
	s.replies.push(reply{kind: replyBind, prepared: s.server.uses, parses: s.server.reuse != nil})
	s.server.reuse = nil
	if !rewrite {
		return s.pass(m), Step{}
	}
	used := pgwire.HeaderLen + len(portal) + 1 + len(name) + 1
	buf := pgwire.AppendHeader(m.out.open(), pgwire.Bind, m.Body-len(name)+len(to))
	buf = append(append(buf, portal...), 0)
	m.out.buf = append(append(buf, to...), 0)
	s.fromClient = dialogue{body: s.fromClient.body}
	s.fromClient.body.Open(m.Body - (used - pgwire.HeaderLen))
	return used, Step{}
}

// scriptOf returns what the client's statement does, nil where that does not matter.
func (s *Session) scriptOf(name []byte) *script {
	if len(name) == 0 {
		return s.unnamed.script
	}
	if st := s.names[string(name)]; st != nil {
		return st.script
	}
	return nil
}

// portalsMax bounds the portals of which it is known what they do.
const portalsMax = 1000

// bound notes what the statement of a portal does. Whether a portal is bound a second time or that is refused is not known yet.
func (s *Server) bound(portal []byte, does *script) {
	if _, again := s.portals[string(portal)]; again && len(portal) > 0 {
		does = &script{lost: true}
	}
	switch {
	case does == nil && len(s.portals) == 0:
	case does == nil:
		delete(s.portals, string(portal))
	case len(s.portals) < portalsMax:
		if s.portals == nil {
			s.portals = map[string]*script{}
		}
		s.portals[string(portal)] = does
	default:
		clear(s.portals)
	}
}

// executes returns what an Execute does, nil where that does not matter.
func (s *Server) executes(body []byte) *script {
	if len(s.portals) == 0 {
		return nil
	}
	portal, _, _ := bytes.Cut(body, []byte{0})
	return s.portals[string(portal)]
}

// seen is how many bytes of the message have arrived.
func (m *message) seen() int { return pgwire.HeaderLen + len(m.body()) }

func (s *Session) describe(m message) (int, Step) {
	if !m.whole() {
		return 0, Step{Want: pgwire.HeaderLen + m.Body}
	}
	name, ok := namedObject(m.body())
	if !ok {
		return 0, s.fail(0, "08P01", "invalid DESCRIBE message", "")
	}
	s.server.uses = nil
	to, step, rewrite := "", Step{}, false
	if m.body()[0] == 'S' {
		if to, step, rewrite = s.statementName(name, m.out); step.Verdict != Read {
			return 0, step
		}
	}
	s.server.replay.asks = true
	if st := s.names[string(name)]; st != nil && m.body()[0] == 'S' {
		st.described = true
	} else if s.server.replay.st != nil {
		s.server.replay.st.described = true
	}
	s.batch = true
	s.replies.push(reply{kind: replyDescribe, prepared: s.server.uses})
	if !rewrite {
		return s.pass(m), Step{}
	}
	m.out.buf = pgwire.AppendNamed(m.out.open(), pgwire.Describe, to)
	return s.consume(m), Step{}
}

// statementName says under which name the server has the client's statement, and sends it there if need be.
func (s *Session) statementName(name []byte, out *Output) (to string, step Step, rewrite bool) {
	s.server.uses = nil
	if len(name) == 0 {
		return s.unnamedName(out)
	}
	if s.options.PreparedMax == 0 {
		return "", Step{}, false
	}
	st := s.names[string(name)]
	if s.unsettled(string(name), st) {
		return "", s.await(), false
	}
	if st == nil {
		if bytes.HasPrefix(name, []byte(namePrefix)) {
			return noStatement, Step{}, true // it must not reach a statement of ours
		}
		return "", Step{}, false // the server has none of this name, or one that PREPARE made, and says so itself
	}
	if s.inDoubt(st) {
		return "", s.await(), false
	}
	p := s.ensure(st, out)
	s.heed(p.hints)
	s.makes(st.objects)
	s.server.uses = p
	return p.name, Step{}, true
}

// unnamedName sends the unnamed statement if it was parsed on another server. Otherwise the server knows best: what it has under
// no name is this client's, see cleanSlot.
func (s *Session) unnamedName(out *Output) (to string, step Step, rewrite bool) {
	if p := s.server.reuse; p != nil {
		s.server.uses = p
		return p.name, Step{}, true
	}
	u := &s.unnamed
	if u.known && u.link != s.link && u.tail != nil {
		u.link = s.link
		s.server.unnamedUsed = true
		s.sendParse(out, "", string(u.tail), reply{kind: replyParse, swallow: true, serial: u.serial})
		s.heed(u.hints)
		s.makes(u.objects)
	}
	return "", Step{}, false
}

// cleanSlot sees to it that the server does not have the unnamed statement of a former client, before anything else is sent over
// a new link. That must be certain: later the server might skip what would have replaced it.
func (s *Session) cleanSlot(m message) {
	s.fresh = false
	if !s.server.unnamedUsed || m.Type == pgwire.Parse && len(m.body()) > 0 && m.body()[0] == 0 {
		return
	}
	if m.Type == pgwire.Query {
		s.server.unnamedUsed = false
		return // exec_simple_query in src/backend/tcop/postgres.c drops it
	}
	s.closeSlot(m.out)
	s.batch = m.Type != pgwire.FunctionCall // which is answered with a ReadyForQuery of its own
}

// closeSlot closes the unnamed statement that the server may have.
func (s *Session) closeSlot(out *Output) {
	if !s.server.unnamedUsed {
		return
	}
	s.server.unnamedUsed = false
	s.replies.push(reply{kind: replyClose, swallow: true})
	out.buf = pgwire.AppendNamed(out.open(), pgwire.Close, "")
}
