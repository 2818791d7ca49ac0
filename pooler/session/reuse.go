package session

import (
	"bytes"
	"hash/maphash"
	"unique"

	"pitr/internal/pgwire"
)

// With Options.ReuseUnnamed the unnamed statement of a client may be a named one of the server, so that Postgres does not have to
// parse and plan again what it has parsed before. That is done for one whole batch at a time, in the form in which drivers send
// a statement with parameters: Parse, Bind, perhaps Describe of the portal, Execute, Sync, with nothing in front of it or behind it
// and outside of a transaction. ParseComplete waits for the outcome of Bind. An error in its place is dropped, and the batch is sent
// once more as the client has sent it: what the client is told is what its own Parse and Bind are answered with.
// For whatever comes later the unnamed statement is one that was parsed on another server, see unnamedName.

// reuseSets bounds the texts that a server remembers: two for each set. It is a power of two.
const reuseSets = 128

// reuses remembers which texts of unnamed statements were seen on a server. The first of a set has been seen twice, the second is
// the last one that was seen once: texts that never come again displace only each other.
type reuses struct {
	sets [reuseSets][2]seenText
}

// seenText is a text with its parameter types.
type seenText struct {
	hash  uint64 // zero: none
	p     *prepared
	never bool // it is not one that may be reused
}

var reuseSeed = maphash.MakeSeed()

// see returns what is known of a text, nil when it has not been seen before.
func (r *reuses) see(tail []byte) *seenText {
	hash := maphash.Bytes(reuseSeed, tail) | 1
	set := &r.sets[hash>>1&(reuseSets-1)]
	switch hash {
	case set[0].hash:
		return &set[0]
	case set[1].hash:
		set[0], set[1] = set[1], set[0]
		return &set[0]
	}
	set[1] = seenText{hash: hash}
	return nil
}

// reuse takes an unnamed Parse, if a named statement of the server can stand for it. done is false when it has to be sent as it is.
func (s *Session) reuse(m message) (used int, done bool) {
	if !s.options.ReuseUnnamed || s.options.PreparedMax == 0 || s.server.dirty || s.server.unsettled || s.server.objects != 0 || !s.quiet() {
		return 0, false
	}
	whole, messages := reusable(m.in[m.at:])
	if whole == 0 || whole > s.options.ReplayLenMax || s.replies.len()+messages+2*pipelineRoom > s.options.PipelineMax {
		return 0, false
	}
	tail := m.body()[1:]
	if s.server.seen == nil {
		s.server.seen = &reuses{}
	}
	seen := s.server.seen.see(tail)
	if seen == nil || seen.never {
		return 0, false
	}
	p, add := s.standsFor(seen, tail)
	if p == nil && !add {
		return 0, false
	}
	s.closeSlot(m.out)
	s.serials++
	s.server.former.valid = false
	s.unnamed = unnamed{known: true, tail: append(s.unnamed.tail[:0], tail...), serial: s.serials}
	if add {
		p = s.makeRoom(m.out).add(unique.Make(string(tail)), 0)
		seen.p = p
		s.sendParse(m.out, p.name, p.key.text.Value(), reply{kind: replyParse, swallow: true, prepared: p, serial: s.serials})
	}
	p.link = s.link
	s.batch = true
	r := &s.server.replay
	r.state, r.original, r.of, r.st, r.mark = replayRecorded, true, p, nil, -1
	r.buf = append(r.buf[:0], m.in[m.at:]...)
	s.server.reuse = p
	return s.consume(m), true
}

// quiet reports whether what is sent now is the first thing that the server does for this client outside of a transaction.
func (s *Session) quiet() bool {
	if s.status != pgwire.Idle || s.batch || s.server.replay.state != replayNone {
		return false
	}
	for i := range s.replies.len() {
		if owed := s.replies.at(i); owed.kind != replyPrelude && !(owed.kind == replyClose && owed.swallow) {
			return false
		}
	}
	return true
}

// reusable returns the length of the batch that in is, and of how many messages it is; zero when it is not one of this form.
func reusable(in []byte) (length, messages int) {
	b := batch{in: in}
	if !b.next(pgwire.Parse) || !typedText(b.body) || !b.next(pgwire.Bind) || len(b.body) < 2 || b.body[0] != 0 || b.body[1] != 0 {
		return 0, 0
	}
	if b.next(pgwire.Describe) && string(b.body) != "P\x00" {
		return 0, 0
	}
	if !b.next(pgwire.Execute) || len(b.body) != 5 || b.body[0] != 0 || !b.next(pgwire.Sync) || b.at != len(in) {
		return 0, 0
	}
	return b.at, 5
}

// typedText reports whether the body of an unnamed Parse is what it should be.
func typedText(body []byte) bool {
	if len(body) == 0 || body[0] != 0 {
		return false
	}
	_, types, found := bytes.Cut(body[1:], []byte{0})
	return found && len(types) >= 2 && len(types) == 2+4*(int(types[0])<<8+int(types[1]))
}

// standsFor returns the statement of the server that a text may be replaced with. add means that there is none and may be one.
func (s *Session) standsFor(seen *seenText, tail []byte) (p *prepared, add bool) {
	p = seen.p
	switch {
	case p != nil && (p.gone || p.key.text.Value() != string(tail)):
		seen.p = nil // it comes back if the text does
		return nil, false
	case p != nil && p.key.reading == s.server.params.reading:
	case p != nil:
		p = s.server.prepared[s.server.key(p.key.text)]
	default:
		if !s.repeatable(tail) {
			seen.never = true
			return nil, false
		}
		p = s.server.prepared[s.server.key(unique.Make(string(tail)))]
	}
	if p != nil {
		seen.p = p
		return s.server.use(p), false
	}
	oldest := s.server.oldest
	return nil, len(s.server.prepared) < s.options.PreparedMax || oldest.link != s.link
}

// repeatable reports whether a text means the same whenever it is parsed, as far as a text can tell. Without a literal there is none
// that depends on the moment of Parse, as 'today' and '12:00' do, or on what a name stands for, as 'sequence'::regclass does.
func (s *Session) repeatable(tail []byte) bool {
	text, _, _ := bytes.Cut(tail, []byte{0})
	for i, c := range text {
		if c == '\'' || c == '$' && (i+1 == len(text) || !isDigit(text[i+1])) {
			return false
		}
	}
	does := scriptOf(text)
	if does != nil || s.server.hints(text, nil) != 0 {
		return false
	}
	l, f := lexer{in: text}, folded{}
	switch string(f.fold(l.next().text)) {
	case "select", "insert", "update", "delete", "merge", "with", "values", "table":
		return true
	}
	return false
}

// holdsParse reports whether a message of the server is the one that ParseComplete of a reused statement waits for.
func (s *Session) holdsParse(kind byte) bool {
	front := s.replies.front()
	return front != nil && front.parses && (kind == pgwire.BindComplete || kind == pgwire.ErrorResponse)
}

// giveParse makes it due.
func (s *Session) giveParse(out *Output) {
	out.buf = pgwire.AppendEmpty(out.open(), pgwire.ParseComplete)
	s.unnamed.valid = true
}

// reparses reports whether an error in the place of a reused statement's Bind may be due to the reuse, or tell of it: all but those that
// come from outside, and would not be cured or were meant for the client. Their classes are those of src/backend/utils/errcodes.txt.
func (s *Session) reparses(front *reply, body []byte) bool {
	if front == nil || !front.parses || s.fatal {
		return false
	}
	code := pgwire.ErrorField(body, 'C')
	if len(code) != 5 {
		return false
	}
	switch code[:2] {
	case "40", "53", "55", "57", "58":
		return false
	}
	return true
}
