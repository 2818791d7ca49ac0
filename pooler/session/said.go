package session

import (
	"bytes"
	"strings"

	"pitr/internal/pgwire"
)

// saidMax is how many bytes of a statement's text are kept for the operator.
const saidMax = 64

// say notes the beginning of a text that goes to the server, and counts what is sent.
func (s *Server) say(m message, count *Counters) {
	body := m.body()
	switch m.Type {
	case pgwire.Query:
	case pgwire.Parse:
		count.ClientParses++
		body = body[bytes.IndexByte(body, 0)+1:]
	case pgwire.Bind:
		count.Binds++
		return
	default:
		return
	}
	s.saidLen, s.saidTail = uint8(copy(s.said[:], body)), text{}
}

// Statement returns the first words of the text that the client has sent last over the present link, or of the named statement that it has bound since;
// empty when it has no server, or has sent no text. In session mode statements are not known by their names.
func (s *Session) Statement() string {
	if s.server == nil {
		return ""
	}
	said := string(s.server.said[:s.server.saidLen])
	if s.server.saidTail != (text{}) {
		said = s.server.saidTail.Value()
		said = said[:min(len(said), saidMax)]
	}
	said, _, _ = strings.Cut(said, "\x00")
	return strings.Join(strings.Fields(strings.ToValidUTF8(said, "")), " ")
}

// Prepared returns how many named prepared statements of the protocol the client has.
func (s *Session) Prepared() int { return len(s.names) }

// Setting returns the value that a setting of the client has, where it has set it.
func (s *Session) Setting(name string) string { return s.params.Get(name) }

// Get returns the value of a setting, empty where there is none.
func (p *Params) Get(name string) string {
	value, _ := p.get(name)
	return value
}
