package session

import (
	"bytes"

	"pitr/internal/pgwire"
)

// batch reads the messages of a batch that is here as a whole.
type batch struct {
	in   []byte
	at   int
	kind byte
	body []byte
}

// next takes the next message, if it is of this kind and whole.
func (b *batch) next(kind byte) bool {
	h, ok, err := pgwire.ClientHeader(b.in[b.at:])
	from := b.at + pgwire.HeaderLen
	if err != nil || !ok || h.Type != kind || from+h.Body > len(b.in) {
		return false
	}
	b.kind, b.body, b.at = kind, b.in[from:from+h.Body], from+h.Body
	return true
}

// answeredBatch answers a batch of the extended protocol that is nothing but a BEGIN, or the end of a transaction that has begun so,
// in the form in which drivers send it: [Parse] Bind [Describe] Execute Sync, no parameters, and no names but the statement's.
func (s *Session) answeredBatch(m message) (used int, done bool) {
	if !s.options.LazyBegin || s.options.Statement || m.Body > lexMax {
		return 0, false
	}
	b := batch{in: m.in, at: m.at}
	var own [32]byte
	out := own[:0]
	var does *script
	var tail []byte
	if b.next(pgwire.Parse) {
		text, types, found := bytes.Cut(b.body[min(1, len(b.body)):], []byte{0})
		if len(b.body) == 0 || b.body[0] != 0 || !found || string(types) != "\x00\x00" {
			return 0, false
		}
		does, tail = scriptOf(text), b.body[1:]
		out = pgwire.AppendEmpty(out, pgwire.ParseComplete)
	}
	if !b.next(pgwire.Bind) {
		return 0, false
	}
	name, rest, ok := boundPlainly(b.body)
	if !ok || tail != nil && len(name) > 0 {
		return 0, false
	}
	if tail == nil {
		does = s.lasting(name)
	}
	c := does.at(0)
	if c == nil || len(does.commands) != 1 || !s.answerable(c) || len(rest) > 2 {
		return 0, false
	}
	out = pgwire.AppendEmpty(out, pgwire.BindComplete)
	if b.next(pgwire.Describe) {
		if string(b.body) != "P\x00" {
			return 0, false
		}
		out = pgwire.AppendEmpty(out, pgwire.NoData)
	}
	if !b.next(pgwire.Execute) || len(b.body) != 5 || b.body[0] != 0 || !b.next(pgwire.Sync) {
		return 0, false
	}
	s.own = append(s.own, out...)
	was := s.unnamed
	s.answered(c)
	if s.begin != 0 {
		s.begin |= keepsPortal
	}
	s.unnamed = was // only a simple query drops it
	if tail != nil {
		s.serials++
		s.unnamed = unnamed{known: true, valid: true, tail: append(s.unnamed.tail[:0], tail...), script: does, serial: s.serials}
	}
	return b.at - m.at, true
}

// boundPlainly reads a Bind without a portal's name and without parameters. rest is the formats of the result.
func boundPlainly(body []byte) (name, rest []byte, ok bool) {
	if len(body) == 0 || body[0] != 0 {
		return nil, nil, false
	}
	name, rest, _ = bytes.Cut(body[1:], []byte{0})
	if len(rest) < 6 || string(rest[:4]) != "\x00\x00\x00\x00" || len(rest) != 6+2*(int(rest[4])<<8+int(rest[5])) {
		return nil, nil, false
	}
	return name, rest[6:], true
}

// lasting returns what a statement does that the client has parsed before.
func (s *Session) lasting(name []byte) *script {
	if len(name) == 0 {
		if s.unnamed.known && s.unnamed.valid {
			return s.unnamed.script
		}
		return nil
	}
	if st := s.names[string(name)]; st != nil && st.valid {
		return st.script
	}
	return nil
}

// answerable reports whether a command is one of those that begin and end a transaction without a server.
func (s *Session) answerable(c *command) bool {
	switch c.kind {
	case commandBegin:
		return s.begin == 0
	case commandCommit, commandRollback:
		return s.begin != 0 && c.plain
	}
	return false
}
