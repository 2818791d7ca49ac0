package session

import (
	"fmt"

	"pitr/internal/pgwire"
)

// beginMode is what BEGIN or START TRANSACTION asks for: begun, and one value of each of the others, or none.
type beginMode uint16

const (
	begun beginMode = 1 << iota
	startTransaction
	readUncommitted
	readCommitted
	repeatableRead
	serializable
	readOnly
	readWrite
	deferrable
	notDeferrable
	keepsPortal // it was begun in the extended protocol, which leaves the unnamed portal behind
)

// modeTexts are the transaction modes as gram.y has them (transaction_mode_item), and what they make of which default.
var modeTexts = [...]struct {
	mode, same  beginMode // same: those that exclude each other
	text        string
	name, value string
}{
	{readUncommitted, readUncommitted | readCommitted | repeatableRead | serializable, " ISOLATION LEVEL READ UNCOMMITTED", "default_transaction_isolation", "read uncommitted"},
	{readCommitted, readUncommitted | readCommitted | repeatableRead | serializable, " ISOLATION LEVEL READ COMMITTED", "default_transaction_isolation", "read committed"},
	{repeatableRead, readUncommitted | readCommitted | repeatableRead | serializable, " ISOLATION LEVEL REPEATABLE READ", "default_transaction_isolation", "repeatable read"},
	{serializable, readUncommitted | readCommitted | repeatableRead | serializable, " ISOLATION LEVEL SERIALIZABLE", "default_transaction_isolation", "serializable"},
	{readOnly, readOnly | readWrite, " READ ONLY", "default_transaction_read_only", "on"},
	{readWrite, readOnly | readWrite, " READ WRITE", "default_transaction_read_only", "off"},
	{deferrable, deferrable | notDeferrable, " DEFERRABLE", "default_transaction_deferrable", "on"},
	{notDeferrable, deferrable | notDeferrable, " NOT DEFERRABLE", "default_transaction_deferrable", "off"},
}

// modes reads transaction_mode_list, empty or not. Modes that exclude each other are not understood.
func (p *parser) modes() (modes beginMode, ok bool) {
	for !p.over() {
		mode := p.mode()
		if mode == 0 {
			return 0, false
		}
		for _, m := range modeTexts {
			if m.mode == mode && modes&m.same != 0 {
				return 0, false
			}
		}
		modes |= mode
		if p.symbol(',') && p.over() {
			return 0, false
		}
	}
	return modes, true
}

// mode reads one mode, zero when it is none.
func (p *parser) mode() beginMode {
	switch {
	case p.word("isolation"):
		return p.isolation()
	case p.word("read"):
		switch {
		case p.word("only"):
			return readOnly
		case p.word("write"):
			return readWrite
		}
	case p.word("deferrable"):
		return deferrable
	case p.word("not"):
		if p.word("deferrable") {
			return notDeferrable
		}
	}
	return 0
}

func (p *parser) isolation() beginMode {
	if !p.word("level") {
		return 0
	}
	switch {
	case p.word("serializable"):
		return serializable
	case p.word("repeatable"):
		if p.word("read") {
			return repeatableRead
		}
	case p.word("read"):
		switch {
		case p.word("committed"):
			return readCommitted
		case p.word("uncommitted"):
			return readUncommitted
		}
	}
	return 0
}

// defaults is what SET SESSION CHARACTERISTICS makes of modes.
func (mode beginMode) defaults() []setting {
	var list []setting
	for _, m := range modeTexts {
		if mode&m.mode != 0 {
			list = append(list, setting{name: m.name, value: m.value})
		}
	}
	return list
}

// begin reads what follows BEGIN and START TRANSACTION.
func (p *parser) begin(start bool) command {
	mode := begun
	if start {
		mode |= startTransaction
	} else if !p.word("work") {
		p.word("transaction")
	}
	modes, ok := p.modes()
	if !ok {
		return command{kind: commandUnclear}
	}
	return command{kind: commandBegin, plain: true, begin: mode | modes}
}

// tag is the CommandComplete of a begin.
func (mode beginMode) tag() string {
	if mode&startTransaction != 0 {
		return "START TRANSACTION"
	}
	return "BEGIN"
}

// append appends the begin as messages of the extended protocol, without a Sync: when the server refuses it, it skips what
// follows up to a Sync, so that no statement is ever carried out outside of the transaction that it belongs to.
func (mode beginMode) append(out []byte) []byte {
	text := make([]byte, 0, 128)
	text = append(text, mode.tag()...)
	for _, m := range modeTexts {
		if mode&m.mode != 0 {
			text = append(text, m.text...)
		}
	}
	out = pgwire.AppendHeader(out, pgwire.Parse, 1+len(text)+1+2)
	out = append(append(append(out, 0), text...), 0, 0, 0)
	out = append(pgwire.AppendHeader(out, pgwire.Bind, 1+1+2+2+2), 0, 0, 0, 0, 0, 0, 0, 0)
	out = append(pgwire.AppendHeader(out, pgwire.Execute, 1+4), 0, 0, 0, 0, 0)
	if mode&keepsPortal == 0 {
		out = append(pgwire.AppendHeader(out, pgwire.Close, 1+1), 'P', 0)
	}
	return pgwire.AppendNamed(out, pgwire.Close, "")
}

// sendBegin lets the server begin the transaction that the client was told it has begun.
func (s *Session) sendBegin(out *Output) {
	out.buf = s.begin.append(out.open())
	r := reply{kind: replyBegin}
	if s.begin&keepsPortal != 0 {
		r.done = 1
	}
	s.begin, s.status = 0, pgwire.Transaction
	s.server.unnamedUsed = false
	s.replies.push(r)
}

// beginReply accounts for the answers to a begin that the client did not wait for.
func (s *Session) beginReply(h pgwire.Header) (pass bool, failure *pgwire.Failure) {
	switch h.Type {
	case pgwire.ParseComplete, pgwire.BindComplete, pgwire.CommandComplete:
	case pgwire.CloseComplete:
		front := s.replies.front()
		if front.done++; front.done == 2 { // the portal, and the statement
			s.replies.pop()
		}
	default:
		return false, broken(fmt.Sprintf("unexpected message %q", h.Type))
	}
	return false, nil
}

// beginFailed deals with an error in the place of a begin that the client was told had been carried out. In the extended protocol
// it is the first error of the batch, and the client's Sync ends it. A simple query is answered with it, and no transaction; the
// server, which waits for a Sync, is closed. What the client has sent behind that query was skipped as well: it has to be told.
func (s *Session) beginFailed(body []byte) *pgwire.Failure {
	s.server.unnamedUsed = true
	if s.replies.len() < 2 {
		return nil
	}
	next := s.replies.at(1)
	if next.kind != replyQuery && next.kind != replyFunction {
		return nil
	}
	s.doubt = true
	if s.replies.len() > 2 {
		return pgwire.Fatal(pgwire.ErrorField(body, 'C'), pgwire.ErrorField(body, 'M'))
	}
	s.replies.pop()
	s.replies.pop()
	s.replies.push(reply{kind: replyOurReady})
	s.status = pgwire.Idle
	return nil
}

// answer answers a simple query for the server.
func (s *Session) answer(tag string, state byte) {
	s.unnamed.known = false // as exec_simple_query in src/backend/tcop/postgres.c does
	s.own = append(append(pgwire.AppendHeader(s.own, pgwire.CommandComplete, len(tag)+1), tag...), 0)
	s.own = pgwire.AppendReady(s.own, state)
	s.counters.Queries++
	if state == pgwire.Idle {
		s.counters.Transactions++
	}
}

// state is the state of the transaction of a client without a server.
func (s *Session) state() byte {
	if s.begin != 0 {
		return pgwire.Transaction
	}
	return pgwire.Idle
}

// answered answers a simple query for which no server is needed: none is linked, and it is certain what one would say.
func (s *Session) answered(c *command) bool {
	switch c.kind {
	case commandBegin:
		if !s.options.LazyBegin || s.options.Statement || s.begin != 0 {
			return false
		}
		s.begin = c.begin
		s.answer(c.begin.tag(), pgwire.Transaction)
	case commandCommit, commandRollback:
		if s.begin == 0 || !c.plain {
			return false
		}
		s.begin = 0
		s.answer(map[commandKind]string{commandCommit: "COMMIT", commandRollback: "ROLLBACK"}[c.kind], pgwire.Idle)
	case commandDiscardAll:
		if s.begin != 0 {
			return false
		}
		s.discard()
		s.answer("DISCARD ALL", pgwire.Idle)
	case commandListen, commandUnlisten, commandUnlistenAll:
		if s.begin != 0 || !s.listenable(c) {
			return false
		}
		s.listens(c)
		tag := "UNLISTEN"
		if c.kind == commandListen {
			tag = "LISTEN"
		}
		s.answer(tag, pgwire.Idle)
	case commandDeallocateAll:
		clear(s.names)
		s.sql = nil
		s.answer("DEALLOCATE ALL", s.state())
	default:
		return false
	}
	return true
}

// discard forgets what the client has made of its session since it has logged in.
func (s *Session) discard() {
	s.tell = s.tell || s.params.key != s.startup.key
	s.params = s.startup
	s.unnamed.known = false
	clear(s.names)
	s.sql = nil
	if s.listening != nil {
		s.listens(&command{kind: commandUnlistenAll})
	}
}
