package session

import (
	"maps"
	"slices"
	"strings"
	"unique"

	"pitr/internal/pgwire"
)

// sqlStatement is a statement that PREPARE has made. The client's name reaches the server, which is brought from the statements of
// one client to those of another when they are linked, as it is with settings.
type sqlStatement struct {
	text    string                // what follows the name
	reading unique.Handle[string] // the settings under which it was made
}

// sqlStatementsMax bounds those of one client that follow it from server to server. Others end with the transaction.
const sqlStatementsMax = 100

// prepareCarriedOut takes note of a PREPARE.
func (s *Session) prepareCarriedOut(c *command, kind commandKind) {
	if kind != commandPrepare || len(c.value) > s.options.StatementLenMax || len(s.sql) >= sqlStatementsMax || s.server.dirty ||
		strings.HasPrefix(c.name, namePrefix) {
		s.lost() // when it is dirty already nobody knows what the statement may leave behind
		return
	}
	reading := s.server.params.reading
	if s.server.unsettled {
		reading = unsettledReading
	}
	s.setSQL(c.name, sqlStatement{c.value, reading})
	s.server.setSQL(c.name, sqlStatement{c.value, reading})
}

func (s *Session) setSQL(name string, st sqlStatement) {
	if s.sql == nil {
		s.sql = map[string]sqlStatement{}
	}
	s.sql[name] = st
}

func (s *Server) setSQL(name string, st sqlStatement) {
	if s.sql == nil {
		s.sql = map[string]sqlStatement{}
	}
	s.sql[name] = st
}

// deallocateCarriedOut takes note of a DEALLOCATE of one statement.
func (s *Session) deallocateCarriedOut(c *command, kind commandKind) {
	if kind != commandDeallocate || strings.HasPrefix(c.name, namePrefix) {
		s.server.dirty = true
		s.server.forgetAll()
		return
	}
	delete(s.sql, c.name)
	delete(s.server.sql, c.name)
}

// adjustStatements gives a server that was just linked the client's statements, and takes off it those of others. One that it refuses,
// for instance because a table has gone, is missing then.
func (s *Session) adjustStatements(out *Output) {
	if len(s.sql) == 0 && len(s.server.sql) == 0 {
		return
	}
	var drop strings.Builder
	for name, have := range s.server.sql {
		if want, found := s.sql[name]; !found || want != have {
			drop.WriteString("DEALLOCATE " + quoted(name) + ";")
			delete(s.server.sql, name)
		}
	}
	if drop.Len() > 0 {
		out.buf = pgwire.AppendQuery(out.open(), drop.String())
		s.server.unnamedUsed = false
		s.replies.push(reply{kind: replyPrelude})
	}
	for _, name := range slices.Sorted(maps.Keys(s.sql)) {
		st := s.sql[name]
		if _, found := s.server.sql[name]; found {
			continue
		}
		out.buf = pgwire.AppendQuery(out.open(), "PREPARE "+quoted(name)+" "+st.text)
		s.server.unnamedUsed = false
		s.server.setSQL(name, st)
		s.replies.push(reply{kind: replyPrelude, sql: name})
	}
}

// deallocates answers a DEALLOCATE of a statement whose name the server does not know: those of the protocol have another there. done
// is false when a server has to answer.
func (s *Session) deallocates(c *command) (step Step, done bool) {
	_, mine := s.sql[c.name]
	if s.server != nil && mine {
		_, there := s.server.sql[c.name]
		mine = !there
	}
	if c.kind != commandDeallocate || s.names[c.name] == nil && !mine {
		return Step{}, false
	}
	switch {
	case s.server == nil:
	case s.replies.readies > 0:
		return s.await(), true
	case s.replies.len() > 0 || s.batch || s.status == pgwire.Failed || s.fromServer.body.Inside():
		return Step{}, false
	}
	delete(s.names, c.name)
	delete(s.sql, c.name)
	state := s.state()
	if s.server != nil {
		state = s.status
	}
	s.answer("DEALLOCATE", state)
	return Step{}, true
}

// onlyForgets reports whether a text does nothing but drop statements, and is understood.
func (s *script) onlyForgets() bool {
	if s == nil || s.lost || len(s.commands) != 1 {
		return false
	}
	switch s.commands[0].kind {
	case commandDeallocate, commandDeallocateAll, commandDiscardAll:
		return true
	}
	return false
}

// quoted is a name in quotes, be it a key word or not.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
