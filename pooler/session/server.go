package session

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"unique"

	"pitr/internal/pgwire"
)

// Server is what is known about the state of one server connection. Whoever holds the connection owns it.
type Server struct {
	params   *Params           // settings applied by us
	reported map[string]string // values of the last ParameterStatus of each name, by the server's spelling
	dirty    bool              // somebody may have left something behind

	// What belongs to the present link lies here and not in the Session, so that an idle client costs little.
	replies replies            // what it still owes
	words   words              // of the client's current Query or Parse
	former  unnamed            // what was the client's unnamed statement before, in case its Parse is never carried out
	portals map[string]*script // what the statements of portals do, where that matters
	replay  replay
	uses    *prepared // what the last Bind or Describe has named
	reuse   *prepared // what the next Bind has to name instead of the unnamed statement
	objects objects   // what it has that cannot be made anew elsewhere, as far as anybody knows
	freed   bool      // some of them may have been dropped since it was asked
	moved   []moved   // what it has reported of its settings since the last end of a transaction
	// unsettled says that settings were changed over this link which decide how a text is read. Until the next link no statement is
	// taken to be the same as one that was parsed before.
	unsettled bool

	// The named statements that this server has, least recently used last.
	prepared map[preparedKey]*prepared
	sql      map[string]sqlStatement // those that PREPARE has made
	newest   *prepared
	oldest   *prepared
	// unnamedUsed says that somebody may have left an unnamed statement.
	unnamedUsed bool
	seen        *reuses // texts of unnamed statements; nil when they are not reused
	named       uint64  // counts names, none of which is ever used twice

	// What the client has said last, see Session.Statement.
	said     [saidMax]byte
	saidLen  uint8
	saidTail text // of the named statement that was bound since; zero when none was

	asked   bool // a query of the operator's was sent and has not been answered
	cleaned bool // DISCARD ALL was answered, ReadyForQuery not yet
	body    pgwire.Scanner
}

// NewServer returns what is known after a login: the reported parameters.
func NewServer(reported map[string]string) *Server {
	s := &Server{params: NoParams, reported: map[string]string{}, prepared: map[preparedKey]*prepared{}}
	for name, value := range reported {
		s.reported[name] = value
	}
	return s
}

// Reported returns the values that the server reported last, sorted by name: what a client is told at its login.
func (s *Server) Reported() []pgwire.Param {
	list := make([]pgwire.Param, 0, len(s.reported))
	for name, value := range s.reported {
		list = append(list, pgwire.Param{Name: name, Value: value})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// Prepared returns how many prepared statements of the protocol the server has.
func (s *Server) Prepared() int { return len(s.prepared) }

// Params returns the settings that were applied to the server.
func (s *Server) Params() *Params { return s.params }

// discardTag is the tag of the only command that cleans a server.
const discardTag = "DISCARD ALL\x00"

// AppendClean appends what makes a server that is Dirty clean again.
func (s *Server) AppendClean(out []byte) []byte {
	s.cleaned = false
	return pgwire.AppendQuery(out, "DISCARD ALL")
}

// AppendReset appends a query of the operator's, unless it is empty, and what makes a server clean whatever that has done.
func (s *Server) AppendReset(out []byte, query string) []byte {
	if s.asked = query != ""; s.asked {
		out = pgwire.AppendQuery(out, query)
	}
	return s.AppendClean(out)
}

// AppendCheck appends a query that shows whether the server is still there.
func (s *Server) AppendCheck(out []byte, query string) []byte {
	s.asked = true
	return pgwire.AppendQuery(out, query)
}

// Check takes what a server sends after AppendCheck, as Clean does.
func (s *Server) Check(in []byte) (n int, done bool, err error) {
	for s.asked {
		used, err := s.answer(in[n:])
		if n += used; err != nil || used == 0 {
			return n, false, err
		}
	}
	if n < len(in) {
		return n, false, fmt.Errorf("more than the answer to a query")
	}
	return n, true, nil
}

// answer takes one message of the answer to a query of the operator's, whose rows mean nothing. It uses nothing as long as the message is not whole.
func (s *Server) answer(in []byte) (used int, err error) {
	h, ok, err := pgwire.ServerHeader(in)
	if err != nil || !ok {
		return 0, err
	}
	if h.Body > cleanMessageMax {
		return 0, fmt.Errorf("a message %q of %d bytes", h.Type, h.Body)
	}
	if len(in) < pgwire.HeaderLen+h.Body {
		return 0, nil
	}
	body := in[pgwire.HeaderLen:][:h.Body]
	switch {
	case h.Type == pgwire.ParameterStatus:
		s.report(body)
	case h.Type == pgwire.ErrorResponse:
		return 0, fmt.Errorf("a query of the configuration: %s", pgwire.ErrorField(body, 'M'))
	case h.Type == pgwire.ReadyForQuery && string(body) != "I":
		return 0, fmt.Errorf("a query of the configuration has begun a transaction")
	case h.Type == pgwire.ReadyForQuery:
		s.asked = false
	case bytes.IndexByte([]byte{pgwire.NoticeResponse, pgwire.NotificationResponse, pgwire.CommandComplete, pgwire.EmptyQueryResponse, pgwire.RowDescription, pgwire.DataRow}, h.Type) < 0:
		return 0, fmt.Errorf("an unexpected message %q", h.Type)
	}
	return pgwire.HeaderLen + h.Body, nil
}

// cleanMessageMax bounds the messages that may come while a server is cleaned: a ParameterStatus, a notice, an error.
const cleanMessageMax = 8 << 10

// Clean takes what a server sends after AppendClean. It returns how many bytes it has used; the rest has to come again with more
// behind it. done means that the server is as it was after its login. An error means that nobody can know what it is.
func (s *Server) Clean(in []byte) (n int, done bool, err error) {
	for s.asked {
		used, err := s.answer(in[n:])
		if n += used; err != nil || used == 0 {
			return n, false, err
		}
	}
	for {
		h, ok, err := pgwire.ServerHeader(in[n:])
		if err != nil || !ok {
			return n, false, err
		}
		if h.Body > cleanMessageMax {
			return n, false, fmt.Errorf("a message %q of %d bytes", h.Type, h.Body)
		}
		if len(in)-n < pgwire.HeaderLen+h.Body {
			return n, false, nil
		}
		body := in[n+pgwire.HeaderLen:][:h.Body]
		n += pgwire.HeaderLen + h.Body
		switch {
		case h.Type == pgwire.ParameterStatus:
			s.report(body)
		case h.Type == pgwire.NoticeResponse || h.Type == pgwire.NotificationResponse:
		case h.Type == pgwire.CommandComplete && string(body) == discardTag && !s.cleaned:
			s.cleaned = true
		case h.Type == pgwire.ReadyForQuery && string(body) == "I" && s.cleaned && n == len(in):
			s.params, s.dirty, s.unnamedUsed, s.objects = NoParams, false, false, 0
			s.forgetAll()
			return n, true, nil
		case h.Type == pgwire.ErrorResponse:
			return n, false, fmt.Errorf("DISCARD ALL: %s", pgwire.ErrorField(body, 'M'))
		default:
			return n, false, fmt.Errorf("an unexpected message %q", h.Type)
		}
	}
}

// report notes a ParameterStatus and returns its name and the value it had before. ok is false when it had none.
func (s *Server) report(body []byte) (name, was string, ok bool) {
	parts := bytes.Split(body, []byte{0})
	if len(parts) != 3 || len(parts[0]) == 0 || len(parts[2]) != 0 {
		return "", "", false
	}
	name = string(parts[0])
	was, ok = s.reported[name]
	if !ok && len(s.reported) >= reportedMax {
		return "", "", false
	}
	s.reported[name] = string(parts[1])
	return name, was, ok
}

// reportedMax bounds the names that a server may report. PostgreSQL 18 has 16 variables with GUC_REPORT
// (src/backend/utils/misc/guc_tables.c).
const reportedMax = 256

// text is the text of a statement with its parameter types, as Parse has them after the name. All clients and servers that have
// the same one share one copy, which goes when nobody has it any more; and it is compared by its address, so that only a Parse
// costs a look at all of it.
type text = unique.Handle[string]

// preparedKey says which statements mean the same.
type preparedKey struct {
	text    text
	reading unique.Handle[string] // the settings under which it was parsed: Params.reading
}

// unsettledReading stands for settings that are neither those of Params nor known.
var unsettledReading = unique.Make("\x00")

func (s *Server) key(tail text) preparedKey {
	if s.unsettled {
		return preparedKey{tail, unsettledReading}
	}
	return preparedKey{tail, s.params.reading}
}

// prepared is a statement that a server has, or will have once it has read what was sent to it.
type prepared struct {
	key   preparedKey
	name  string // the name on this server
	hints hint
	there bool   // the server has answered ParseComplete
	gone  bool   // the server does not have it any more
	again bool   // it was parsed for a client that may know the columns that it had elsewhere
	link  uint64 // the Session.link of its last use, so that it is not closed under a batch that uses it

	newer, older *prepared
}

// namePrefix begins the names of our statements on a server. A client's own name never reaches a server.
const namePrefix = "pitr_"

// find returns the statement with this tail, parsed under the present settings, and makes it the most recently used one; nil when
// the server does not have it.
func (s *Server) find(tail text) *prepared { return s.use(s.prepared[s.key(tail)]) }

// earlier returns the statement with this tail that the client may have parsed before its settings were changed.
func (s *Server) earlier(tail text) *prepared {
	if p := s.prepared[s.key(tail)]; p != nil || !s.unsettled {
		return p
	}
	return s.prepared[preparedKey{tail, s.params.reading}]
}

func (s *Server) use(p *prepared) *prepared {
	if p != nil && p != s.newest {
		s.unlink(p)
		s.pushNewest(p)
	}
	return p
}

// add notes that the server is going to have a statement, under a name that was never used on it.
func (s *Server) add(tail text, hints hint) *prepared {
	s.named++
	return s.addAs(namePrefix+strconv.FormatUint(s.named, 10), tail, hints)
}

// surplus is a statement that the server is going to have besides one with the same tail.
func (s *Server) surplus(tail text) *prepared {
	s.named++
	s.dirty = true
	return &prepared{key: s.key(tail), name: namePrefix + strconv.FormatUint(s.named, 10)}
}

// addAs notes that the server is going to have a statement under this name.
func (s *Server) addAs(name string, tail text, hints hint) *prepared {
	key := s.key(tail)
	s.dirty = s.dirty || s.unsettled // nobody else may have it
	if old := s.prepared[key]; old != nil {
		s.forget(old)
		s.dirty = true // it has one that nobody knows of any more
	}
	p := &prepared{key: key, hints: hints, name: name}
	s.prepared[key] = p
	s.pushNewest(p)
	return p
}

// forget notes that the server does not have a statement.
func (s *Server) forget(p *prepared) {
	p.gone = true
	if s.prepared[p.key] == p {
		s.unlink(p)
		delete(s.prepared, p.key)
	}
}

func (s *Server) forgetAll() {
	s.sql, s.seen = nil, nil
	clear(s.prepared)
	s.newest, s.oldest = nil, nil
}

func (s *Server) pushNewest(p *prepared) {
	p.newer, p.older = nil, s.newest
	if s.newest != nil {
		s.newest.newer = p
	} else {
		s.oldest = p
	}
	s.newest = p
}

func (s *Server) unlink(p *prepared) {
	if p.newer != nil {
		p.newer.older = p.older
	} else {
		s.newest = p.older
	}
	if p.older != nil {
		p.older.newer = p.newer
	} else {
		s.oldest = p.newer
	}
	p.newer, p.older = nil, nil
}
