package protocoltest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Message is one message of a server.
type Message struct {
	Type byte
	Body []byte
}

// Rules say what is not compared.
type Rules struct {
	Texts bool // the wording of errors and notices, though not their severity and code
	Late  bool // when a ParameterStatus comes
	Codes bool // which of several reasons there are to refuse a Parse: syntax, a name that exists, a transaction that has failed
}

// Normal returns answers line by line, without what differs from one connection to the next: keys, the OIDs of tables, file and line
// in Postgres's source. Postgres reports settings in an order of its own in front of a ReadyForQuery; they are sorted.
func Normal(answers []Message, rules Rules) []string {
	var lines, reported []string
	latest := map[string]string{}
	flush := func() {
		sort.Strings(reported)
		lines, reported = append(lines, reported...), nil
	}
	for _, m := range answers {
		if m.Type == 'S' {
			name, value, _ := strings.Cut(strings.TrimSuffix(string(m.Body), "\x00"), "\x00")
			latest[name] = value
			if !rules.Late {
				reported = append(reported, fmt.Sprintf("S %s = %q", name, value))
			}
			continue
		}
		flush()
		lines = append(lines, m.line(rules))
	}
	flush()
	if rules.Late {
		for name, value := range latest {
			reported = append(reported, fmt.Sprintf("in the end %s = %q", name, value))
		}
		flush()
	}
	return lines
}

func (m Message) line(rules Rules) string {
	switch m.Type {
	case 'E', 'N':
		return string(m.Type) + m.fields(rules)
	case 'T':
		return "T" + m.columns()
	case 'K':
		return "K"
	case 'Z', 'C':
		return string(m.Type) + " " + strings.TrimSuffix(string(m.Body), "\x00")
	}
	return fmt.Sprintf("%c %s", m.Type, shown(m.Body))
}

// shownMax is the most that is shown of a body.
const shownMax = 200

func shown(body []byte) string {
	if len(body) <= shownMax {
		return fmt.Sprintf("%q", body)
	}
	return fmt.Sprintf("%q… %d bytes, SHA-256 %x", body[:40], len(body), sha256.Sum256(body))
}

// ports is what a message may say of the connection.
var ports = regexp.MustCompile(`port "?\d+|PID \d+`)

// fields are those of an error or a notice, without the place in Postgres's source (F, L, R).
func (m Message) fields(rules Rules) string {
	var out strings.Builder
	skip := "FLR"
	if bytes.Contains(m.Body, []byte("\x00C57014\x00")) {
		skip = "FLRW" // where a cancel request hits a statement is a matter of luck
	}
	for _, field := range bytes.Split(m.Body, []byte{0}) {
		if len(field) == 0 || strings.IndexByte(skip, field[0]) >= 0 {
			continue
		}
		if rules.Texts && strings.IndexByte("SVC", field[0]) < 0 {
			continue
		}
		if text := string(field[1:]); rules.Codes && field[0] == 'C' && (text == "42601" || text == "42P05" || text == "25P02") {
			field = []byte("Crefused")
		}
		fmt.Fprintf(&out, " %c=%s", field[0], ports.ReplaceAllString(string(field[1:]), "#"))
	}
	return out.String()
}

// firstNormalOID is FirstNormalObjectId in src/include/access/transam.h.
const firstNormalOID = 16384

// columns are those of a RowDescription: name, table, attribute, type, length, modifier, format.
func (m Message) columns() string {
	if len(m.Body) < 2 {
		return " malformed"
	}
	var out strings.Builder
	rest := m.Body[2:]
	for range binary.BigEndian.Uint16(m.Body) {
		name, fixed, found := bytes.Cut(rest, []byte{0})
		if !found || len(fixed) < 18 {
			return out.String() + " malformed"
		}
		table, kind := binary.BigEndian.Uint32(fixed), binary.BigEndian.Uint32(fixed[6:])
		fmt.Fprintf(&out, " %q(%d %d %d %x)", name, min(table, firstNormalOID), binary.BigEndian.Uint16(fixed[4:]), min(kind, firstNormalOID), fixed[10:18])
		rest = fixed[18:]
	}
	return out.String()
}

// Statement returns what a pooler in statement mode makes of these answers: the first transaction block ends the client.
func Statement(lines []string, rules Rules) []string {
	refusal := Message{'E', []byte("SFATAL\x00VFATAL\x00C08P01\x00Mtransaction blocks not allowed in statement pooling mode\x00\x00")}
	for i, line := range lines {
		if line == "Z T" || line == "Z E" {
			return append(slices.Clone(lines[:i]), refusal.line(rules))
		}
	}
	return lines
}

// Difference shows where two answers part, "" when they do not.
func Difference(want, got []string) string {
	n := 0
	for n < len(want) && n < len(got) && want[n] == got[n] {
		n++
	}
	if n == len(want) && n == len(got) {
		return ""
	}
	from := max(0, n-4)
	tail := func(lines []string) string {
		end := min(len(lines), n+6)
		more := ""
		if end < len(lines) {
			more = fmt.Sprintf("\n    … %d more", len(lines)-end)
		}
		if n >= len(lines) {
			return "\n    (the end)"
		}
		return "\n    " + strings.Join(lines[n:end], "\n    ") + more
	}
	return fmt.Sprintf("both: … %s\n  directly:%s\n  through the pooler:%s", strings.Join(want[from:n], "\n    "), tail(want), tail(got))
}
