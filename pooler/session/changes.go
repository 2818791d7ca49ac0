package session

import (
	"strings"

	"pitr/internal/pgwire"
)

// changes is what a client has made of its settings since its transaction began: what is certain once that ends. It exists only
// while there is any, and follows AtEOXact_GUC in src/backend/utils/misc/guc.c.
type changes struct {
	log     []change
	touched []string // settings that were set since the last end of a transaction; "" stands for all
}

// change is one step: the settings of one statement, a RESET ALL, or a savepoint.
type change struct {
	sets      []setting
	all       bool
	savepoint string
	listen    *command
}

// changesMax bounds the steps of one transaction.
const changesMax = 1000

// carriedOut takes note of a statement that the server has carried out. c is nil when nobody knows what it was.
func (s *Session) carriedOut(c *command, tag []byte, lone bool) {
	kind := commandUnclear
	if c != nil {
		kind = c.kind
	}
	switch string(tag[:len(tag)-1]) {
	case "SET", "RESET":
		s.set(c, kind)
	case "SAVEPOINT":
		if kind == commandSavepoint && s.changes != nil && len(s.changes.log) > 0 {
			s.note(change{savepoint: c.name}) // one in front of all changes need not be known
		} else if kind != commandSavepoint {
			s.unclear()
		}
	case "RELEASE":
		s.release(c, kind)
	case "COMMIT", "PREPARE TRANSACTION":
		s.commit()
	case "ROLLBACK":
		s.rollback(c, kind)
	case "DISCARD ALL":
		s.discarded(lone)
	case "PREPARE":
		s.prepareCarriedOut(c, kind)
	case "LISTEN", "UNLISTEN":
		s.listenCarriedOut(c, kind)
	case "DECLARE CURSOR":
		if kind != commandDeclare || c.hold {
			s.server.dirty = true
		}
	case "DEALLOCATE":
		s.deallocateCarriedOut(c, kind)
	}
}

func (s *Session) set(c *command, kind commandKind) {
	switch kind {
	case commandSet, commandReset:
		s.note(change{sets: c.sets})
	case commandResetAll:
		s.note(change{all: true})
	case commandSetLocal:
	default:
		s.lost()
	}
}

// lost is called where the server has something of the client's that cannot be brought to another one.
func (s *Session) lost() {
	s.server.dirty = true
	s.server.objects |= objectUnclear
}

// unclear is called where something was done that may or may not take changes back.
func (s *Session) unclear() {
	if s.changes != nil && len(s.changes.log) > 0 {
		s.server.dirty = true
	}
}

func (s *Session) note(c change) {
	if s.changes == nil {
		s.changes = &changes{}
	}
	if len(s.changes.log) >= changesMax {
		s.lost()
		return
	}
	s.changes.log = append(s.changes.log, c)
	if c.all {
		s.changes.touched = append(s.changes.touched, "")
	}
	for _, set := range c.sets {
		s.changes.touched = append(s.changes.touched, set.name)
	}
}

// place returns where a savepoint is in the log. One that is not there was made before everything in it.
func (c *changes) place(savepoint string) int {
	for i := len(c.log) - 1; i >= 0; i-- {
		if c.log[i].savepoint == savepoint {
			return i
		}
	}
	return -1
}

func (s *Session) release(c *command, kind commandKind) {
	if kind != commandRelease {
		s.unclear()
		return
	}
	if s.changes == nil {
		return
	}
	from := s.changes.place(c.name)
	kept := s.changes.log[:max(from, 0)]
	for _, step := range s.changes.log[max(from, 0):] {
		if step.savepoint == "" {
			kept = append(kept, step)
		}
	}
	s.changes.log = kept
}

func (s *Session) rollback(c *command, kind commandKind) {
	switch {
	case s.changes == nil:
	case kind == commandRollbackTo:
		s.changes.log = s.changes.log[:s.changes.place(c.name)+1]
	case kind == commandRollback || kind == commandCommit: // the COMMIT of a transaction that has failed
		s.changes.log = s.changes.log[:0]
	default:
		s.unclear()
	}
}

// commit makes the changes last: on the server, and for the client.
func (s *Session) commit() {
	if s.changes == nil || len(s.changes.log) == 0 {
		return
	}
	log := s.changes.log
	s.changes.log = log[:0:0]
	for _, step := range log {
		if step.listen != nil {
			s.listens(step.listen)
		}
	}
	wanted, there := s.params.after(log, s.startup), s.server.params.after(log, NoParams)
	if len(wanted.Key()) > s.options.SettingsLenMax || s.foreign(log) {
		s.lost()
		return
	}
	s.server.params = there
	s.keep(wanted)
}

// keep takes the client's settings, which most often are those that its server has.
func (s *Session) keep(wanted *Params) {
	s.params = wanted
	if s.server.params.key == wanted.key {
		s.params = s.server.params
	}
}

// foreign reports whether a value's bytes mean something else to the server than to the client.
func (s *Session) foreign(log []change) bool {
	for _, step := range log {
		for _, set := range step.sets {
			if !isASCII(set.value) && s.server.reported["client_encoding"] != s.server.reported["server_encoding"] {
				return true
			}
		}
	}
	return false
}

// after returns the set as changes make it. reset is what RESET goes back to.
func (p *Params) after(log []change, reset *Params) *Params {
	set := map[string]string{}
	for _, param := range p.list {
		set[param.Name] = param.Value
	}
	for _, step := range log {
		if step.all {
			// Neither the role nor the session's user is reset: GUC_NO_RESET_ALL in src/backend/utils/misc/guc_tables.c.
			for name := range set {
				if name != "role" && name != "session_authorization" {
					delete(set, name)
				}
			}
			for _, param := range reset.list {
				set[param.Name] = param.Value
			}
		}
		for _, one := range step.sets {
			value, found := one.value, true
			if one.reset {
				value, found = reset.get(one.name)
			}
			delete(set, one.name)
			if one.name == "session_authorization" {
				delete(set, "role") // SetSessionAuthorization in src/backend/utils/init/miscinit.c
			}
			if found {
				set[one.name] = value
			}
		}
	}
	return newParams(set)
}

// discarded takes note of a DISCARD ALL by the client. When nothing was sent behind it the server is as after its login.
func (s *Session) discarded(lone bool) {
	s.changes = &changes{touched: []string{""}}
	s.discard()
	s.server.params, s.server.objects = NoParams, 0
	s.server.forgetAll()
	if lone {
		s.server.dirty, s.server.unnamedUsed = false, false
	}
}

// settle is called at the end of a transaction, when what the server reports of its settings is what will last.
func (s *Session) settle() {
	if s.changes != nil && len(s.changes.log) > 0 {
		if s.failed {
			s.changes.log = nil // whatever was not committed in between has gone with the error, but what was is not known in all cases
			s.server.dirty = true
		}
		s.commit()
	}
	if s.changes != nil || len(s.server.moved) > 0 {
		s.reports()
	}
	s.changes = nil
	s.server.freed = s.server.freed || s.failed // what an error has taken back may be all there was
}

// reports compares what the server has reported in the course of a transaction with what is known to have changed. A setting that
// a function has changed was changed by nobody whom we know: the server is cleaned. If it is one of those that are the client's to
// choose it follows the client.
func (s *Session) reports() {
	wanted, there := s.params, s.server.params
	for _, m := range s.server.moved {
		now, name := s.server.reported[m.name], strings.ToLower(m.name)
		if now == m.was {
			continue
		}
		if s.changes.explains(name) {
			value, _ := s.params.get(name)
			other, _ := s.server.params.get(name)
			s.tell = s.tell || value != other // RESET goes back to what the client has logged in with
			continue
		}
		s.server.dirty = true
		if remembered(name) {
			wanted = wanted.with(name, now)
		}
	}
	s.server.moved = s.server.moved[:0]
	// The value that is reported is the one that means the same on any server: "ISO" for the date style depends on what it was before.
	if s.changes != nil {
		for name, now := range s.server.reported {
			name = strings.ToLower(name)
			if !s.changes.explains(name) || !remembered(name) {
				continue
			}
			if _, found := wanted.get(name); found {
				if _, found = there.get(name); found {
					wanted, there = wanted.with(name, now), there.with(name, now)
				}
			}
		}
	}
	if wanted != s.params || there != s.server.params {
		s.server.params = there
		s.keep(wanted)
	}
}

// explains reports whether a statement that was understood has set this setting.
func (c *changes) explains(name string) bool {
	if c == nil {
		return false
	}
	for _, touched := range c.touched {
		roles := touched == "role" || touched == "session_authorization"
		if touched == name || touched == "" || roles && (name == "is_superuser" || name == "session_authorization") {
			return true
		}
	}
	return false
}

// moved is a setting that the server has reported since the last end of a transaction, and what it was then.
type moved struct{ name, was string }

// movedMax bounds them.
const movedMax = 64

// parameterStatus notes a setting that has changed under the client.
func (s *Session) parameterStatus(body []byte, gathered bool) {
	if !gathered {
		s.server.dirty = true
		return
	}
	name, was, ok := s.server.report(body)
	if !ok || !s.options.Transaction || len(s.server.moved) >= movedMax {
		s.server.dirty = true
		return
	}
	for _, m := range s.server.moved {
		if m.name == name {
			return
		}
	}
	s.server.moved = append(s.server.moved, moved{name, was})
}

// adjust brings the linked server to the client's settings, in front of what is sent next.
func (s *Session) adjust(out *Output) {
	server := s.server
	if server.params.key == s.params.key {
		server.params = s.params
		if s.tell {
			s.tell = false
			s.own = s.appendReported(s.own)
		}
		return
	}
	s.cautious = s.options.Cautious || server.params.delicate(s.params)
	s.settling = s.cautious
	out.buf = pgwire.AppendQuery(out.open(), server.params.change(s.params))
	server.params, server.unnamedUsed = s.params, false
	s.replies.push(reply{kind: replyPrelude})
	if s.tell {
		s.tell = false
		s.replies.push(reply{kind: replyOurReport})
	}
}

// appendReported appends what a client may have set and is told of.
func (s *Session) appendReported(out []byte) []byte {
	for _, param := range s.server.Reported() {
		if remembered(strings.ToLower(param.Name)) {
			out = pgwire.AppendParameterStatus(out, param)
		}
	}
	return out
}
