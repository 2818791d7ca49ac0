package session

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"pitr/internal/pgwire"
)

// model is a Postgres in miniature: it follows PostgresMain and CopyGetData as far as the protocol goes, and answers with what it
// was asked, so that an answer that reaches the wrong client, or in the wrong order, shows.
type model struct {
	statements map[string]string // name to text
	portals    map[string]string // name to text
	settings   modelSettings
	status     byte
	skip       bool
	extended   bool
	copyIn     *copyIn
	in, out    []byte

	table    *modelTable
	versions map[string]int // of the table, by the name of the statement that was parsed then
}

// modelTable is t, which all servers have in common: "select t" needs it, "alter" drops it or makes another one.
type modelTable struct{ version int }

func (t *modelTable) gone() bool { return t.version%2 == 1 }

type copyIn struct {
	extended bool
	more     []string // the statements of the simple query that come after it
}

func newModel() *model {
	return &model{statements: map[string]string{}, portals: map[string]string{}, status: 'I', settings: newModelSettings(),
		table: &modelTable{}, versions: map[string]int{}}
}

// feed takes what was sent and returns what the server sends.
func (m *model) feed(in []byte) []byte {
	m.in = append(m.in, in...)
	for {
		h, ok, err := pgwire.ClientHeader(m.in)
		if err != nil {
			panic(err)
		}
		if !ok || len(m.in) < pgwire.HeaderLen+h.Body {
			break
		}
		body := m.in[pgwire.HeaderLen : pgwire.HeaderLen+h.Body]
		m.message(h.Type, body)
		m.in = m.in[pgwire.HeaderLen+h.Body:]
	}
	out := m.out
	m.out = nil
	return out
}

func (m *model) message(kind byte, body []byte) {
	if m.copyIn != nil {
		m.copyMessage(kind, body)
		return
	}
	switch kind {
	case 'Q', 'F', 'X':
		m.extended = false
	case 'S':
		m.extended, m.skip = false, false
	case 'd', 'c', 'f':
	default:
		m.extended = true
	}
	if m.skip {
		return
	}
	switch kind {
	case 'Q':
		delete(m.statements, "")
		m.simple(strings.Split(string(body[:len(body)-1]), ";"))
	case 'F':
		m.say('V', "function")
		m.ready()
	case 'S':
		if m.status == 'I' {
			clear(m.portals)
		}
		m.ready()
	case 'P', 'B', 'D', 'C', 'E':
		m.extendedMessage(kind, body)
	}
}

func (m *model) say(kind byte, body string) {
	m.out = append(pgwire.AppendHeader(m.out, kind, len(body)), body...)
}

func (m *model) ready() {
	m.copyIn = nil
	if m.status == 'I' {
		clear(m.portals)
		m.settings.commit() // of an implicit transaction
	}
	if now := m.settings.get("timezone"); now != m.settings.reported {
		m.settings.reported = now
		m.say('S', "TimeZone\x00"+now+"\x00")
	}
	m.out = pgwire.AppendReady(m.out, m.status)
}

func (m *model) fail(code string) {
	m.out = pgwire.AppendError(m.out, &pgwire.Failure{Severity: "ERROR", Code: code, Message: code})
	if m.status == 'T' {
		m.status = 'E'
	}
	if m.status == 'I' {
		m.settings.rollback()
	}
	m.skip = m.extended
	m.copyIn = nil
}

func (m *model) simple(texts []string) {
	whole := texts
	texts = nil
	for _, text := range whole {
		if text != "" {
			texts = append(texts, text)
		}
	}
	if len(texts) == 0 && len(whole) > 0 {
		texts = []string{""}
	}
	for i, text := range texts {
		done, failed := m.run(text, true)
		if failed {
			break
		}
		if !done {
			m.copyIn = &copyIn{more: texts[i+1:]}
			return
		}
	}
	m.ready()
}

// run carries a statement out. done is false when a COPY waits for its data.
func (m *model) run(text string, withRow bool) (done, failed bool) {
	word, rest, _ := strings.Cut(text, " ")
	word = strings.ToLower(word)
	if m.status == 'E' && word != "rollback" && word != "commit" {
		m.fail("25P02")
		return true, true
	}
	switch word {
	case "":
		m.say('I', "")
	case "begin":
		m.status = 'T'
		m.say('C', "BEGIN\x00")
	case "commit", "rollback":
		if savepoint, found := strings.CutPrefix(rest, "to "); found {
			return true, m.rollbackTo(savepoint)
		}
		if m.status == 'E' {
			word = "rollback"
		}
		if word == "commit" {
			m.settings.commit()
		} else {
			m.settings.rollback()
		}
		m.status = 'I'
		m.say('C', strings.ToUpper(word)+"\x00")
	case "savepoint", "release":
		if m.status == 'I' || word == "release" && !m.settings.release(rest) {
			m.fail("3B001")
			return true, true
		}
		if word == "savepoint" {
			m.settings.savepoint(rest)
		}
		m.say('C', strings.ToUpper(word)+"\x00")
	case "set", "reset":
		m.settings.change(word, rest, m.status == 'T')
		m.say('C', strings.ToUpper(word)+"\x00")
	case "show":
		m.say('D', "setting "+m.settings.get(rest))
		m.say('C', "SHOW\x00")
	case "copy":
		m.say('G', "\x00\x00\x00")
		return false, false
	case "out":
		m.say('H', "\x00\x00\x00")
		m.say('d', "copied "+rest)
		m.say('c', "")
		m.say('C', "COPY 1\x00")
	case "error":
		m.fail("22012")
		return true, true
	case "alter":
		m.table.version++
		m.say('C', "DROP TABLE\x00")
	case "discard":
		clear(m.statements)
		m.settings = newModelSettings()
		m.say('C', "DISCARD ALL\x00")
	default:
		if parts := strings.Split(rest, "'"); strings.HasPrefix(rest, "pg_catalog.set_config(") {
			m.settings.now.session[parts[1]] = parts[3]
		}
		if withRow {
			m.say('T', "\x00\x00")
		}
		m.say('D', "row of "+text)
		m.say('N', "a notice\x00")
		m.say('C', "SELECT 1\x00")
	}
	return true, false
}

func (m *model) copyMessage(kind byte, body []byte) {
	switch kind {
	case 'd':
		if string(body) == "bad" {
			m.copyFailed()
		}
	case 'H', 'S':
	case 'c':
		state := m.copyIn
		m.copyIn = nil
		m.say('C', "COPY 1\x00")
		if !state.extended {
			m.simple(state.more)
		}
	case 'f':
		m.copyFailed()
	default:
		m.copyFailed()
	}
}

func (m *model) copyFailed() {
	extended := m.copyIn.extended
	m.extended = extended
	m.fail("57014")
	if !extended {
		m.ready()
	}
}

func (m *model) extendedMessage(kind byte, body []byte) {
	name, rest, _ := bytes.Cut(body, []byte{0})
	switch kind {
	case 'P':
		text, _, _ := bytes.Cut(rest, []byte{0})
		if len(name) == 0 {
			delete(m.statements, "")
		}
		_, exists := m.statements[string(name)]
		switch {
		case strings.HasPrefix(string(text), "syntax"):
			m.fail("42601")
		case m.status == 'E' && !strings.HasPrefix(string(text), "rollback"):
			m.fail("25P02")
		case exists && len(name) > 0:
			m.fail("42P05")
		case string(text) == "select t" && m.table.gone():
			m.fail("42P01")
		default:
			m.statements[string(name)], m.versions[string(name)] = string(text), m.table.version
			m.say('1', "")
		}
	case 'B':
		statement, _, _ := bytes.Cut(rest, []byte{0})
		text, found := m.statements[string(statement)]
		switch {
		case !found:
			m.fail("26000")
		case m.status == 'E' && !strings.HasPrefix(text, "rollback"):
			m.fail("25P02")
		case text == "select t" && m.table.gone():
			m.fail("42P01")
		case text == "select t" && m.versions[string(statement)] != m.table.version:
			m.fail("0A000")
		case text == "select bad":
			m.fail("22P02")
		default:
			m.portals[string(name)] = text
			m.say('2', "")
		}
	case 'D':
		m.describe(string(name))
	case 'C':
		if name[0] == 'S' {
			delete(m.statements, string(name[1:]))
		} else {
			delete(m.portals, string(name[1:]))
		}
		m.say('3', "")
	case 'E':
		text, found := m.portals[string(name)]
		if !found {
			m.fail("34000")
			return
		}
		if done, _ := m.run(text, false); !done {
			m.copyIn = &copyIn{extended: true}
		}
	}
}

func (m *model) describe(name string) {
	kind, name := name[0], name[1:]
	if kind == 'P' {
		if _, found := m.portals[name]; !found {
			m.fail("34000")
			return
		}
		m.say('n', "")
		return
	}
	text, found := m.statements[name]
	if !found {
		m.fail("26000")
		return
	}
	m.say('t', "\x00\x00")
	if strings.HasPrefix(text, "begin") {
		m.say('n', "")
		return
	}
	m.say('T', "\x00\x00"+text)
}

// messages prints what a side was sent, one message a word.
func messages(in []byte) string {
	var out []string
	for len(in) >= pgwire.HeaderLen {
		n := int(binary.BigEndian.Uint32(in[1:])) + 1
		if n > len(in) {
			break
		}
		body := in[pgwire.HeaderLen:n]
		text := strings.Trim(strings.ReplaceAll(string(body), "\x00", " "), " ")
		if in[0] == 'E' && len(body) > 0 && body[0] == 'S' {
			text = pgwire.ErrorField(body, 'C')
			if told := pgwire.ErrorField(body, 'M'); strings.Contains(told, `"`) {
				text += " " + told // a name, which is not the same for all
			}
		}
		out = append(out, strings.TrimRight(fmt.Sprintf("%c %s", in[0], text), " "))
		in = in[n:]
	}
	if len(in) > 0 {
		out = append(out, fmt.Sprintf("(%d bytes of a message)", len(in)))
	}
	return strings.Join(out, " | ")
}
