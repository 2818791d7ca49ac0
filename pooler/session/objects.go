package session

import (
	"bytes"

	"pitr/internal/pgwire"
)

// ObjectPolicy says what is done about objects that live in a server connection and cannot be made anew on another one.
type ObjectPolicy uint8

// The ways to deal with session objects in transaction mode.
const (
	ObjectsReset  ObjectPolicy = iota // they end with the transaction
	ObjectsPin                        // the server stays with its client as long as it has any
	ObjectsRefuse                     // what would make one is refused
)

// objects are the kinds of them. The values of those that a server can be asked for are those of probeText.
type objects uint8

const (
	objectTemporary objects = 1 << iota // temporary tables, views and sequences
	objectCursor                        // cursors WITH HOLD
	objectLock                          // advisory locks of the session
	objectListen                        // channels
	objectUnclear                       // settings and statements that are not understood
)

// probeText asks a server for what it has.
const probeText = "SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema()) THEN 1 ELSE 0 END" +
	" + CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) THEN 2 ELSE 0 END" +
	" + CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()) THEN 4 ELSE 0 END" +
	" + CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_listening_channels()) THEN 8 ELSE 0 END"

// objectsOf returns what a text makes. It is asked for texts only that have a word of theirs somewhere.
func objectsOf(text []byte, does *script) objects {
	var made objects
	if does != nil {
		for i := range does.commands {
			switch c := &does.commands[i]; {
			case c.kind == commandListen:
				made |= objectListen
			case c.kind == commandDeclare && c.hold:
				made |= objectCursor
			}
		}
	}
	l := lexer{in: text}
	var f, g folded
	var before []byte
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		word := f.fold(t.text)
		switch {
		case t.kind != tokenWord:
		case string(word) == "temp" || string(word) == "temporary":
			switch string(before) {
			case "create", "local", "global", "replace", "into":
				made |= objectTemporary
			}
		case bytes.HasPrefix(word, []byte("pg_temp")):
			made |= objectTemporary
		case bytes.HasPrefix(word, []byte("pg_advisory_lock")) || bytes.HasPrefix(word, []byte("pg_try_advisory_lock")):
			made |= objectLock
		}
		before = append(g.buf[:0], word...)
	}
	if made&objectTemporary != 0 && containsFold(text, "on commit drop") {
		made &^= objectTemporary
	}
	return made
}

func containsFold(text []byte, what string) bool {
	return bytes.Contains(bytes.Join(bytes.Fields(bytes.ToLower(text)), []byte{' '}), []byte(what))
}

// makes takes note of what a text that is about to be sent makes. It returns the text to send instead, "" when it may be sent.
func (s *Session) makes(made objects) (instead string) {
	switch {
	case made == 0:
		return ""
	case s.refuses(made):
		return refusal
	}
	s.server.dirty = true
	if s.options.Listen && (s.listening == nil || len(s.listening.channels) < channelsMax) {
		made &^= objectListen
	}
	s.server.objects |= made
	return ""
}

func (s *Session) refuses(made objects) bool {
	if s.options.Listen {
		made &^= objectListen
	}
	return made != 0 && s.options.Objects == ObjectsRefuse
}

// refusal fails on the server, so that a transaction fails with it.
const refusal = "DO LANGUAGE plpgsql $pitr$BEGIN RAISE EXCEPTION USING ERRCODE = '0A000'," +
	" MESSAGE = 'temporary tables, cursors WITH HOLD, session-level advisory locks and LISTEN are not available through this pooler'," +
	" HINT = 'Use ON COMMIT DROP, pg_advisory_xact_lock, a pool in session mode, or pooler.session_objects: pin.'; END$pitr$"

// Pinned reports whether the server stays with the client beyond the end of its transaction.
func (s *Session) Pinned() bool {
	return s.server != nil && s.options.Transaction && s.options.Objects == ObjectsPin && s.server.objects != 0
}

// probe asks a pinned server in front of what is sent next whether it has any objects still, when something was said that may have
// dropped the last.
func (s *Session) probe(out *Output) {
	s.server.freed = false
	s.server.unnamedUsed = false
	s.unnamed.link = 0 // the server's unnamed statement is gone
	out.buf = pgwire.AppendQuery(out.open(), probeText)
	s.replies.push(reply{kind: replyPrelude, probe: true})
}

// probed reads the answer to a probe: a DataRow with one number, see DataRow in src/backend/access/common/printtup.c.
func (s *Session) probed(body []byte) {
	has := 0
	for _, c := range body[min(len(body), 2+4):] {
		if !isDigit(c) {
			return
		}
		has = has*10 + int(c-'0')
	}
	s.server.objects = s.server.objects&objectUnclear | objects(has)&^objectUnclear
}

// hints returns what a whole text may do to the server's state.
func (s *Server) hints(text []byte, does *script) hint {
	if does.onlyForgets() {
		return hintFrees // and nothing else
	}
	s.words.reset()
	s.words.scan(text)
	found := s.words.end()
	if found&hintConfig == 0 {
		return found
	}
	local, reads := localConfig(text)
	if local {
		found &^= hintConfig
	}
	if local && reads {
		found |= hintUnsettles
	}
	return found
}

// objects returns what a text makes in which these words were found.
func (found hint) objects(text []byte, does *script) objects {
	if found&hintLeaves == 0 && does == nil {
		return 0
	}
	return objectsOf(text, does)
}

// heedText acts on what a whole text that is about to be sent does to the server's state. It returns the text to send instead, ""
// when it may be sent.
func (s *Session) heedText(text []byte, does *script) (instead string) {
	found := s.server.hints(text, does)
	s.heed(found)
	return s.makes(found.objects(text, does))
}
