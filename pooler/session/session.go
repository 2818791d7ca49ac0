// Package session says what each message of the protocol means for one client and for the server that is linked to it. It is a
// pure state machine: bytes and links go in, decisions come out (pass these bytes, drop those, send this instead, a server is
// needed, the server may go back). It never touches a socket, a clock, a lock or a goroutine, so that a driver of any kind can
// own those, and so that a test can play every order of events. It owns law 7 for the protocol: a server goes back only at
// ReadyForQuery 'I' with no reply outstanding, and any doubt closes it. See docs/decisions/0002-pooler-session-machine.md.
package session

import (
	"pitr/internal/pgwire"
)

// Options are what all sessions of one kind have in common. They must not change while a session uses them.
type Options struct {
	Transaction     bool // the server goes back at the end of each transaction; otherwise with the client
	Statement       bool // together with Transaction: a transaction of more than one statement ends the client
	PreparedMax     int  // named statements kept on a server in transaction mode; zero: their names pass unchanged
	StatementLenMax int  // bytes of a named Parse, and of an unnamed one that can be repeated on another server
	StatementsMax   int  // named statements of one client
	ReplayLenMax    int  // bytes of a batch that may be sent again, see Session.TakeResend; zero: none is
	PipelineMax     int  // replies of a server that may be outstanding
	SettingsLenMax  int  // bytes of all settings of a client that follow it from server to server
	Objects         ObjectPolicy
	Listen          bool // LISTEN is the driver's to carry out, see Session.Listens
	Cautious        bool // nothing of the client is sent to a server before that has taken its settings
	LazyBegin       bool // a transaction begins on a server with its first statement
	RefuseSimple    bool // a message of the simple protocol ends the client
	ReuseUnnamed    bool // unnamed statements that come again are named ones of the server, see Session.reuse; takes PreparedMax and ReplayLenMax
}

// Session is the machine for one client. The zero value is not usable; see New. It is not safe for concurrent use.
type Session struct {
	options *Options
	startup *Params   // the settings that the client has logged in with, to which RESET goes back
	params  *Params   // the settings that the client's server must have
	changes *changes  // of the settings, by the transaction that is not over; nil when there are none
	begin   beginMode // the client was told that a transaction has begun; no server knows of it

	server  *Server  // nil while no server is linked
	link    uint64   // counts links, so that what was sent over an earlier one is known to be gone
	replies *replies // what the linked server still owes
	status  byte     // transaction state of the last ReadyForQuery
	batch   bool     // extended messages were sent that no Sync has followed yet
	skip    bool     // the server ignores everything until the next Sync
	copyIn  bool     // the server reads CopyData, and ignores Sync
	ignored bool     // it has ignored a Sync in this way, or seems to
	doubt   bool     // the server must not be used again
	fatal   bool     // the client was told by the server that the connection ends
	tell    bool     // the client does not know of all settings that the next server will report
	failed  bool     // an error since the last ReadyForQuery

	fromClient dialogue
	fromServer dialogue

	names     map[string]*statement // named statements of the client
	unnamed   unnamed
	listening *listening              // nil for those that do not
	sql       map[string]sqlStatement // what the client has PREPAREd
	serials   uint32                  // counts unnamed statements
	own       []byte                  // replies that the machine itself gives, for TakeReplies
	fresh     bool                    // nothing was sent over the present link yet
	cautious  bool                    // the client's settings have to be in force before anything of it is sent
	settling  bool                    // they are not yet
	awaiting  bool                    // the client's next message waits for all answers
	flushed   bool                    // a Flush of ours was sent because the pipeline is full
	counters  Counters
}

// Counters count since the session began.
type Counters struct {
	Queries      uint64 // ReadyForQuery messages that the client got from a server
	Transactions uint64 // those of them that ended a transaction
	Replays      uint64 // batches that were sent again
	ClientParses uint64 // Parse messages of the client that a server was linked for
	ServerParses uint64 // Parse messages that went to a server
	Binds        uint64
}

// dialogue is one direction's place in its current message.
type dialogue struct {
	body    pgwire.Scanner
	swallow bool // the rest of the message is dropped
	watched bool // its words are read
}

// New returns the machine of a client that has logged in and is owed nothing.
func New(options *Options, params *Params) *Session {
	return &Session{options: options, startup: params, params: params, replies: &nothing, status: pgwire.Idle}
}

// Params returns the settings that the client has now: those it logged in with, and what it has changed of the reported ones.
func (s *Session) Params() *Params { return s.params }

// Counters returns what was counted so far.
func (s *Session) Counters() Counters { return s.counters }

// Linked returns the linked server, nil when there is none.
func (s *Session) Linked() *Server { return s.server }

// Link gives the session a server that nobody else uses and that is not dirty. When its settings are not the client's, the
// statements that make them so are appended to out, before anything the client sends.
func (s *Session) Link(server *Server, out *Output) {
	if s.server != nil || server.dirty {
		panic("session: link of a second or of a dirty server")
	}
	s.server, s.replies = server, &server.replies
	s.link++
	s.server.saidLen, s.server.saidTail = 0, text{}
	s.status, s.doubt, s.ignored, s.flushed, s.fresh = pgwire.Idle, false, false, false, true
	s.adjust(out)
	s.adjustStatements(out)
	if s.begin != 0 && !s.cautious {
		s.sendBegin(out)
	}
}

// CanRelease reports whether the server owes nothing, is owed nothing and has no transaction: whether it could go back now. In
// session mode that is only of interest when the client has gone.
func (s *Session) CanRelease() bool {
	return s.server != nil && s.status == pgwire.Idle && s.replies.len() == 0 && !s.batch && !s.skip && !s.copyIn &&
		(!s.fromClient.body.Inside() || s.fromClient.swallow) && !s.fromServer.body.Inside()
}

// Due reports whether the server goes back now, by itself.
func (s *Session) Due() bool {
	return s.options.Transaction && s.CanRelease() && !s.Pinned() && !s.cautious
}

// Condition says what has to happen to a server before anybody else may have it.
type Condition uint8

// The conditions of a server.
const (
	Clean  Condition = iota // nothing
	Dirty                   // Server.AppendClean has to be sent, and its answer checked
	Broken                  // it is closed
)

// Unlink takes the server away, in whatever state the session is, and says in which condition it is.
func (s *Session) Unlink() Condition {
	server, clean := s.server, s.CanRelease()
	if server == nil {
		panic("session: unlink without a link")
	}
	s.server, s.replies = nil, &nothing
	s.batch, s.skip, s.copyIn, s.awaiting, s.cautious, s.settling = false, false, false, false, false, false
	if s.doubt || !clean {
		server.replies.clear()
		return Broken
	}
	server.replies.shrink()
	server.former.valid = false
	server.replay.end()
	server.unsettled, server.freed, server.moved = false, false, server.moved[:0]
	clear(server.portals)
	if server.dirty || !s.options.Transaction {
		server.dirty = true
		return Dirty
	}
	return Clean
}

// Another reports whether a failure of FromServer, or the end of the connection, concerns only the server: nothing of the client was
// sent to it, so that another one can be linked instead.
func (s *Session) Another() bool { return s.server != nil && s.settling }

// Awaiting reports whether a session that is Full waits for the outcome of something, and not because it has sent too much ahead.
func (s *Session) Awaiting() bool { return s.awaiting }

// Idle reports whether the client is between two transactions: it waits for nothing and has not begun to ask.
func (s *Session) Idle() bool {
	return s.begin == 0 && !s.fromClient.body.Inside() && (s.server == nil || s.CanRelease())
}

// InReply reports whether the client has got only a part of a server's message, so that nothing else can be told to it.
func (s *Session) InReply() bool { return s.fromServer.body.Inside() && !s.fromServer.swallow }

// ToldFatal reports whether the client has got a FATAL error of the server, so that another would be one too many.
func (s *Session) ToldFatal() bool { return s.fatal }

// Outstanding reports whether the linked server works for the client or holds its transaction, so that a cancel makes sense. It does
// not while the server is brought to the client's settings: they must not fail where what follows does not.
func (s *Session) Outstanding() bool {
	if s.server == nil || s.CanRelease() {
		return false
	}
	front := s.replies.front()
	return front == nil || front.kind != replyPrelude
}

// HasReplies reports whether TakeReplies has anything.
func (s *Session) HasReplies() bool { return s.own != nil }

// RepliesLen returns how many bytes TakeReplies has. The driver does not come with more of the client's input while they are many.
func (s *Session) RepliesLen() int { return len(s.own) }

// Owed reports whether the server is going to send a ReadyForQuery without any further message of the client.
func (s *Session) Owed() bool {
	return s.server != nil && !s.copyIn && s.replies.readies > 0
}

// TakeReplies returns what the machine has to say to the client by itself, nil when nothing. The caller owns it.
func (s *Session) TakeReplies() []byte {
	out := s.own
	s.own = nil
	return out
}
