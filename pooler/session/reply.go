package session

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"pitr/internal/pgwire"
)

// tagLenMax is COMPLETION_TAG_BUFSIZE in src/include/tcop/cmdtag.h, the longest tag with its terminator.
const tagLenMax = 64

// gatherMax bounds the server's messages that are read as a whole. A longer one is passed, and makes the server dirty.
const gatherMax = 4096

// FromServer takes what the linked server has sent. What is due to the client is put into out, which must have been Reset to in.
// It returns how many bytes were used; the rest, never more than a few kilobytes, has to come again with more behind it. A
// failure means that the server must be closed, and the client too, after it was told.
func (s *Session) FromServer(in []byte, out *Output) (n int, failure *pgwire.Failure) {
	for n < len(in) {
		if s.fromServer.body.Inside() {
			taken := s.fromServer.body.Take(in[n:])
			if !s.fromServer.swallow {
				out.pass(n, n+taken)
			}
			n += taken
			s.giveOurs(out)
			continue
		}
		if rows := s.rows(in[n:]); rows > 0 {
			out.pass(n, n+rows)
			n += rows
			continue
		}
		h, ok, err := pgwire.ServerHeader(in[n:])
		if err != nil {
			s.doubt = true
			return n, broken(err.Error())
		}
		if !ok {
			return n, nil
		}
		gather := s.gathers(h)
		if gather && len(in)-n < pgwire.HeaderLen+h.Body {
			return n, nil
		}
		body := in[n+pgwire.HeaderLen : min(len(in), n+pgwire.HeaderLen+h.Body)]
		changed := h.Type == pgwire.ErrorResponse && gather && s.columnsChanged(body)
		var renamed []byte
		if h.Type == pgwire.ErrorResponse && gather && !changed {
			renamed = s.renamed(body)
		}
		held := s.holdsParse(h.Type)
		pass, failure := s.reply(h, body, gather)
		if held && pass && failure == nil {
			s.giveParse(out)
		}
		if changed && pass && failure == nil {
			pass = false
			out.buf = pgwire.AppendError(out.open(), errColumnsChanged)
		}
		if pass && renamed != nil && failure == nil {
			pass = false
			out.buf = append(pgwire.AppendHeader(out.open(), pgwire.ErrorResponse, len(renamed)), renamed...)
		}
		if failure != nil {
			s.doubt = true
			return n, failure
		}
		s.fromServer.swallow = !pass
		s.fromServer.body.Open(h.Body)
		if pass {
			out.pass(n, n+pgwire.HeaderLen)
		}
		n += pgwire.HeaderLen
		s.giveOurs(out)
	}
	return n, nil
}

// rows returns how many bytes at the beginning of in are whole rows of a result or of a COPY, which are the bulk of what a server
// sends and need no more than to be passed on. Whatever is odd about the next message, reply finds it.
func (s *Session) rows(in []byte) (n int) {
	front := s.replies.front()
	if front == nil || front.kind != replyExecute && front.kind != replyQuery || front.swallow {
		return 0
	}
	for len(in)-n > pgwire.HeaderLen && (in[n] == pgwire.DataRow || in[n] == pgwire.CopyData) {
		length := int64(binary.BigEndian.Uint32(in[n+1:]))
		if length < 4 || int64(len(in)-n) <= length {
			break
		}
		n += 1 + int(length)
	}
	return n
}

// renamed is an error that names the statement of a Parse as the client does, and not as the server; nil when it does not name it.
func (s *Session) renamed(body []byte) []byte {
	front := s.replies.front()
	if front == nil || front.kind != replyParse || front.statement == nil || front.prepared == nil {
		return nil
	}
	ours, theirs := []byte(`"`+front.prepared.name+`"`), []byte(`"`+front.statement.name+`"`)
	if !bytes.Contains(body, ours) {
		return nil
	}
	return bytes.Replace(body, ours, theirs, 1)
}

func broken(what string) *pgwire.Failure {
	return pgwire.Fatal("08P01", "the server broke the protocol: "+what)
}

// gathers reports whether the body of a message has to be read.
func (s *Session) gathers(h pgwire.Header) bool {
	switch h.Type {
	case pgwire.ReadyForQuery, pgwire.CommandComplete, pgwire.ParameterStatus, pgwire.ErrorResponse:
		return h.Body <= gatherMax
	case pgwire.DataRow:
		front := s.replies.front()
		return front != nil && front.probe && h.Body <= gatherMax
	}
	return false
}

// giveOurs makes the replies due that the machine itself has to give in this place.
func (s *Session) giveOurs(out *Output) {
	if s.fromServer.body.Inside() {
		return
	}
	s.giveNotifications(out)
	for s.replies.len() > 0 {
		switch kind := s.replies.front().kind; kind {
		case replyOurParse, replyOurClose:
			out.buf = pgwire.AppendEmpty(out.open(), ourReplyType(kind))
		case replyOurReady:
			out.buf = pgwire.AppendReady(out.open(), pgwire.Idle)
		case replyOurReport:
			out.buf = s.appendReported(out.open())
		case replyCopyEnd:
		default:
			return
		}
		s.replies.front().given()
		s.replies.pop()
	}
}

// reply accounts for one message of the server and reports whether it is the client's.
func (s *Session) reply(h pgwire.Header, body []byte, gathered bool) (pass bool, failure *pgwire.Failure) {
	front := s.replies.front()
	if front != nil && front.kind == replyPrelude {
		return false, s.prelude(h, body, gathered)
	}
	switch h.Type {
	case pgwire.NoticeResponse:
		return true, nil
	case pgwire.NotificationResponse:
		return !s.options.Listen || s.Pinned(), nil // otherwise it comes by Notify
	case pgwire.ParameterStatus:
		s.parameterStatus(body, gathered)
		return true, nil
	case pgwire.ErrorResponse:
		if s.Due() {
			s.doubt = true
			return false, nil // the server goes, without the client, whose last transaction is over
		}
		s.failed, s.fatal = true, gathered && closes(body)
		s.doubt = s.doubt || s.fatal || front == nil
		if front != nil && front.kind == replyBegin {
			failure = s.beginFailed(body)
			front = s.replies.front()
		}
		if failure == nil && s.recovers(front, body, gathered) {
			return false, nil
		}
		s.stale(front, body)
		s.errorReply(front)
		return true, failure
	}
	if front != nil && front.kind == replyBegin {
		return s.beginReply(h)
	}
	switch h.Type {
	case pgwire.ReadyForQuery:
		if front != nil && front.kind == replySync && front.swallow {
			return false, s.resends(body)
		}
		return true, s.ready(front, body)
	case pgwire.ParseComplete, pgwire.BindComplete, pgwire.CloseComplete, pgwire.NoData:
		return s.completes(h.Type, front)
	case pgwire.RowDescription:
		if front != nil && front.kind == replyDescribe {
			s.replies.pop()
			return true, nil
		}
		return true, expect(h.Type, front, replyQuery, 0)
	case pgwire.ParameterDescription:
		return true, expect(h.Type, front, replyDescribe, 0)
	case pgwire.FunctionCallResponse:
		return true, expect(h.Type, front, replyFunction, 0)
	case pgwire.DataRow, pgwire.CopyOutResponse, pgwire.CopyData, pgwire.CopyDone:
		return true, expect(h.Type, front, replyExecute, replyQuery)
	case pgwire.CopyInResponse:
		failure = expect(h.Type, front, replyExecute, replyQuery)
		if failure == nil {
			s.beginCopyIn()
		}
		return true, failure
	case pgwire.CommandComplete, pgwire.EmptyQueryResponse, pgwire.PortalSuspended:
		return true, s.commandEnd(h, body, front)
	}
	return false, broken(fmt.Sprintf("unexpected message %q", h.Type))
}

// closes reports whether the server closes the connection behind an error.
func closes(body []byte) bool {
	severity := pgwire.ErrorField(body, 'V')
	return severity == "FATAL" || severity == "PANIC"
}

// expect is the check that a message belongs to what the server owes first.
func expect(kind byte, front *reply, either, or replyKind) *pgwire.Failure {
	if front == nil || front.kind != either && front.kind != or {
		return broken(fmt.Sprintf("message %q where none is outstanding", kind))
	}
	return nil
}

// completes accounts for the messages that answer exactly one message of the extended protocol.
func (s *Session) completes(kind byte, front *reply) (pass bool, failure *pgwire.Failure) {
	want := replyDescribe
	switch kind {
	case pgwire.ParseComplete:
		want = replyParse
	case pgwire.BindComplete:
		want = replyBind
	case pgwire.CloseComplete:
		want = replyClose
	}
	if failure := expect(kind, front, want, 0); failure != nil {
		return false, failure
	}
	r := s.replies.pop()
	if r.prepared != nil && r.kind == replyParse {
		r.prepared.there = true
	}
	if r.kind == replyBind {
		s.server.replay.state = replayNone
	}
	if r.statement != nil {
		r.statement.valid, r.statement.replaces = true, nil
	}
	if r.kind == replyParse && r.prepared == nil && r.serial == s.unnamed.serial {
		s.unnamed.valid, s.server.former.valid = true, false
	}
	return !r.swallow, nil
}

// commandEnd accounts for the end of an Execute, or of one statement of a simple Query.
func (s *Session) commandEnd(h pgwire.Header, body []byte, front *reply) *pgwire.Failure {
	if failure := expect(h.Type, front, replyExecute, replyQuery); failure != nil {
		return failure
	}
	s.copyIn, s.ignored = false, false
	does := front.script.at(front.done)
	front.done++
	lone := front.kind == replyQuery && s.replies.len() == 1
	if front.kind == replyExecute {
		s.replies.pop()
	}
	if h.Type != pgwire.CommandComplete {
		return nil
	}
	if h.Body > tagLenMax || h.Body != len(body) {
		return broken("a command tag that is too long")
	}
	if !leavesNothing(body) {
		s.server.dirty = true
	}
	if s.options.Transaction && len(body) > 0 {
		s.carriedOut(does, body, lone)
	}
	if forgetsStatements(body) {
		s.server.forgetAll()
		clear(s.names)
		s.sql, s.unnamed.known = nil, false
	}
	return nil
}

// beginCopyIn takes back the Syncs that the client has sent ahead and that the server, which reads CopyData now, ignores.
func (s *Session) beginCopyIn() {
	dropped, ended, left := s.replies.dropSyncs(1)
	if dropped > 0 {
		s.ignored = true
		s.batch = s.batch || left == 0
	}
	s.copyIn = !ended
}

// errorReply accounts for an error: the server skips to the next Sync if it was reading the extended protocol, and what was sent
// in between was never done.
func (s *Session) errorReply(front *reply) {
	s.copyIn = false
	if s.ignored {
		s.doubt = true // whether the server ignored that Sync or ended its batch with it cannot be known
	}
	if front == nil {
		return // it is about to close the connection
	}
	switch front.kind {
	case replyQuery, replyFunction, replySync, replyOurReady:
		return
	}
	undone := 0
	for undone < s.replies.len() && !s.replies.at(undone).endsBatch() {
		undone++
	}
	for i := undone - 1; i >= 0; i-- {
		s.undo(s.replies.at(i), i == 0)
	}
	for range undone {
		s.replies.pop()
	}
	s.skip = s.replies.len() == 0
}

// undo takes back what was noted when a message was sent that the server has not carried out. It is called for the last of them
// first, so that each finds what it has left. failed means that the server has tried, and has not just skipped it.
func (s *Session) undo(r *reply, failed bool) {
	switch {
	case r.kind == replyClose && r.swallow:
		s.server.dirty = true // it has one statement more than it should
	case r.kind == replyOurClose && r.statement != nil:
		s.names[r.statement.name] = r.statement
	case r.kind == replyOurParse:
		s.undoName(r.statement)
	case r.dropped:
		s.unnamed.known = s.unnamed.known || r.serial == s.unnamed.serial
	case r.kind == replyParse && r.prepared == nil && r.swallow:
		s.unnamed.link = 0 // the client has it still
	case r.kind == replyParse && r.prepared == nil:
		s.undoUnnamed(r.serial, failed)
	case r.kind == replyParse:
		s.server.forget(r.prepared)
		if r.serial != 0 {
			s.undoUnnamed(r.serial, failed)
		}
		if r.statement != nil {
			s.undoName(r.statement)
		}
	}
}

// undoUnnamed takes back the Parse of an unnamed statement. exec_parse_message in src/backend/tcop/postgres.c drops the former one
// before it looks at the new one.
func (s *Session) undoUnnamed(serial uint32, failed bool) {
	if serial != s.unnamed.serial {
		return
	}
	s.unnamed.known, s.unnamed.valid = false, false
	if s.server.former.valid && !failed {
		s.server.former, s.unnamed = s.unnamed, s.server.former
	}
}

func (s *Session) ready(front *reply, body []byte) *pgwire.Failure {
	if len(body) != 1 || body[0] != pgwire.Idle && body[0] != pgwire.Transaction && body[0] != pgwire.Failed {
		return broken("malformed ReadyForQuery")
	}
	if front == nil && s.doubt {
		s.batch, s.skip = false, false // the server did not ignore that Sync
	} else {
		if front == nil || front.kind != replySync && front.kind != replyQuery && front.kind != replyFunction {
			return broken("ReadyForQuery where none is outstanding")
		}
		if r := s.replies.pop(); r.kind == replyQuery && r.serial == s.unnamed.serial {
			s.unnamed.known = false
		}
	}
	s.status, s.copyIn = body[0], false
	if s.status == pgwire.Idle && s.options.Transaction {
		s.settle()
	}
	s.failed = false
	if s.options.Statement && s.status != pgwire.Idle {
		return pgwire.Fatal("08P01", "transaction blocks not allowed in statement pooling mode") // as PgBouncer does
	}
	s.counters.Queries++
	if s.status == pgwire.Idle {
		s.counters.Transactions++
	}
	return nil
}

// prelude accounts for the answers to the settings that were sent ahead of the client's first message.
func (s *Session) prelude(h pgwire.Header, body []byte, gathered bool) *pgwire.Failure {
	switch h.Type {
	case pgwire.ParameterStatus:
		if gathered {
			s.server.report(body)
		}
	case pgwire.ErrorResponse:
		if s.replies.front().probe {
			s.server.freed = true // ask again
			return nil
		}
		if name := s.replies.front().sql; name != "" {
			delete(s.server.sql, name)
			return nil
		}
		if !gathered {
			return pgwire.Fatal("08P01", "the client's settings were refused")
		}
		failure := pgwire.Fatal(pgwire.ErrorField(body, 'C'), pgwire.ErrorField(body, 'M'))
		failure.Hint = pgwire.ErrorField(body, 'H')
		// Its time was over, somebody has cancelled it, or it has come to its end.
		s.settling = s.settling && (failure.Code == "57014" || closes(body))
		return failure
	case pgwire.ReadyForQuery:
		if string(body) != "I" {
			return broken("malformed ReadyForQuery")
		}
		s.replies.pop()
		s.settling = false // the settings come first
	case pgwire.DataRow:
		if s.replies.front().probe && gathered {
			s.probed(body)
		}
	case pgwire.RowDescription, pgwire.CommandComplete, pgwire.NoticeResponse, pgwire.NotificationResponse:
	default:
		return broken(fmt.Sprintf("unexpected message %q", h.Type))
	}
	return nil
}
