package session

import (
	"bytes"
	"encoding/binary"

	"pitr/internal/pgwire"
)

// replay is a copy of the batch that was just sent, as long as it may turn out that its first Bind names a statement that the server
// cannot use any more: one whose result has other columns since a table was altered, or one that somebody has dropped. The client,
// who may never have parsed it on this server, need not know: the statement is parsed again and the batch sent once more.
type replay struct {
	state    replayState
	buf      []byte // what was sent, from the Bind on
	mark     int    // where in what is now due it goes on
	of       *prepared
	original bool // it is as the client has sent it, and begins with an unnamed Parse, see Session.reuse
	st       *statement
	asks     bool    // the batch has a Describe, which tells the client of other columns
	owed     []reply // what was owed for it
	sending  []byte  // for TakeResend
}

type replayState uint8

const (
	replayNone      replayState = iota
	replayRecording             // the batch is not over
	replayRecorded              // all of it is there
	replayFailed                // it has failed; its ReadyForQuery is still to come
)

// records begins a copy when a Bind is the first thing that the server has to do for this client outside of a transaction.
func (s *Session) records(st *statement, p *prepared, out *Output) {
	r := &s.server.replay
	if r.state != replayNone || s.options.ReplayLenMax == 0 || st == nil || p == nil || !p.there || s.status != pgwire.Idle {
		return
	}
	for i := range s.replies.len() {
		if owed := s.replies.at(i); owed.kind != replyPrelude && !(owed.kind == replyClose && owed.swallow) {
			return
		}
	}
	r.state, r.original, r.of, r.st, r.asks, r.buf, r.mark = replayRecording, false, p, st, false, r.buf[:0], len(out.Bytes())
}

// record copies what has become due since the last time.
func (s *Session) record(out *Output) {
	if s.server == nil {
		return
	}
	r := &s.server.replay
	if r.state != replayRecording && (r.state != replayRecorded || r.mark < 0) {
		return
	}
	r.buf = append(r.buf, out.Bytes()[min(r.mark, len(out.Bytes())):]...)
	if r.state == replayRecorded {
		r.mark = -1
	}
	if len(r.buf) > s.options.ReplayLenMax {
		r.state, r.buf = replayNone, nil
	}
}

// recovers reports whether an error in the place of the first Bind need not be the client's, and if so drops it: the server skips
// what follows up to the Sync, and is then sent all of it again.
func (s *Session) recovers(front *reply, body []byte, gathered bool) bool {
	r := &s.server.replay
	if r.original && r.state == replayRecorded {
		if !gathered || !s.reparses(front, body) {
			r.state = replayNone
			return false
		}
	} else if !gathered || front == nil || front.kind != replyBind || r.state != replayRecorded || !s.replayable(body) {
		return false
	}
	last := s.replies.len() - 1
	for i := range last {
		switch s.replies.at(i).kind {
		case replyBind, replyDescribe, replyExecute, replyClose, replyParse, replyOurParse, replyOurClose:
		default:
			return false
		}
	}
	if s.replies.at(last).kind != replySync {
		return false // something was sent behind it, and would be carried out before it
	}
	r.owed = r.owed[:0]
	for range last {
		r.owed = append(r.owed, s.replies.pop())
	}
	s.replies.front().swallow = true
	r.state = replayFailed
	return true
}

// replayable reports whether an error is one that a new Parse cures. When the columns are others than before the client must not have
// been told of the former ones, or must be told in the same batch; a client that has chosen a format for each column has
// relied on them. The place in the source is compared and not the text, which depends on lc_messages: RevalidateCachedQuery in
// src/backend/utils/cache/plancache.c, FetchPreparedStatement in src/backend/commands/prepare.c.
func (s *Session) replayable(body []byte) bool {
	r := &s.server.replay
	switch pgwire.ErrorField(body, 'C') {
	case "26000":
		return true
	case "0A000":
		return pgwire.ErrorField(body, 'R') == "RevalidateCachedQuery" && (!r.st.described || r.asks && resultFormats(r.buf) <= 1)
	}
	return false
}

// resultFormats returns how many formats a Bind chooses for the columns of its result.
func resultFormats(bind []byte) int {
	rest := bind[pgwire.HeaderLen:]
	for range 2 {
		end := bytes.IndexByte(rest, 0)
		rest = rest[end+1:]
	}
	number := func() int {
		if len(rest) < 2 {
			return 1 << 16
		}
		n := int(binary.BigEndian.Uint16(rest))
		rest = rest[2:]
		return n
	}
	formats := number()
	rest = rest[min(2*formats, len(rest)):]
	for range number() {
		if len(rest) < 4 {
			return 1 << 16
		}
		length := int32(binary.BigEndian.Uint32(rest))
		rest = rest[min(4+max(int(length), 0), len(rest)):]
	}
	return number()
}

// resends sends a batch again whose Sync was answered: it drops the statement, parses it again under its name, and goes on from the Bind.
func (s *Session) resends(body []byte) *pgwire.Failure {
	r := &s.server.replay
	if string(body) != "I" {
		return broken("malformed ReadyForQuery")
	}
	s.replies.pop()
	s.failed = false
	r.state = replayNone
	r.sending = pgwire.AppendNamed(nil, pgwire.Close, r.of.name)
	if r.original {
		s.resendsOriginal()
		return nil
	}
	r.sending = pgwire.AppendParse(r.sending, r.of.name, r.of.key.text.Value())
	r.sending = append(r.sending, r.buf...)
	r.of.there = false
	s.replies.push(reply{kind: replyClose, swallow: true})
	s.replies.push(reply{kind: replyParse, swallow: true, prepared: r.of})
	for _, owed := range r.owed {
		s.replies.push(owed)
	}
	s.replies.push(reply{kind: replySync})
	clear(r.owed)
	s.counters.Replays++
	return nil
}

// resendsOriginal sends a batch as the client has sent it, from its unnamed Parse on.
func (s *Session) resendsOriginal() {
	r := &s.server.replay
	s.server.forget(r.of)
	r.sending = append(r.sending, r.buf...)
	s.unnamed.link, s.server.unnamedUsed = s.link, true
	s.replies.push(reply{kind: replyClose, swallow: true})
	s.replies.push(reply{kind: replyParse, serial: s.unnamed.serial})
	r.owed[0].parses, r.owed[0].prepared = false, nil
	for _, owed := range r.owed {
		s.replies.push(owed)
	}
	s.replies.push(reply{kind: replySync})
	clear(r.owed)
	s.batch = false
	s.counters.Replays++
}

// TakeResend returns what has to be sent to the linked server after FromServer, nil when nothing. Until it is answered the client's
// next message waits. It is of use with Options.ReplayLenMax.
func (s *Session) TakeResend() []byte {
	if s.server == nil {
		return nil
	}
	out := s.server.replay.sending
	s.server.replay.sending = nil
	return out
}

// stale forgets a statement that the server cannot use any more, so that it is parsed anew when it is next asked for.
func (s *Session) stale(front *reply, body []byte) {
	if front == nil || front.prepared == nil || front.kind != replyBind && front.kind != replyDescribe {
		return
	}
	code := pgwire.ErrorField(body, 'C')
	if code == "26000" || code == "0A000" && pgwire.ErrorField(body, 'R') == "RevalidateCachedQuery" {
		s.server.forget(front.prepared)
		s.server.dirty = true // it has it still, perhaps
	}
}

// end forgets the copy, but for the memory of a short one.
func (r *replay) end() {
	r.state = replayNone
	r.of, r.st, r.sending, r.original = nil, nil, nil, false
	if cap(r.buf) > replayKept {
		r.buf = nil
	}
}

// replayKept is the size of the largest copy whose memory a server keeps, in bytes.
const replayKept = 4 << 10

// errColumnsChanged is what RevalidateCachedQuery in src/backend/utils/cache/plancache.c says.
var errColumnsChanged = &pgwire.Failure{Severity: "ERROR", Code: "0A000", Message: "cached plan must not change result type"}

// columnsChanged reports whether an error means that a statement, which was parsed here for a client that knows it from another
// server, has other columns than it had there: the client has chosen a format for each of those. Postgres complains of the number of
// formats (PortalSetResultFormat in src/backend/tcop/pquery.c), which no client expects; what it says when a statement's columns
// change on one and the same server is what makes a client forget what it knows.
func (s *Session) columnsChanged(body []byte) bool {
	front := s.replies.front()
	return front != nil && front.kind == replyBind && front.prepared != nil && front.prepared.again &&
		pgwire.ErrorField(body, 'C') == "08P01" && pgwire.ErrorField(body, 'R') == "PortalSetResultFormat"
}
