package session

import (
	"fmt"
	"sort"
	"strings"
	"unique"

	"pitr/internal/pgwire"
)

// Params is a set of run-time parameters that a client wants to differ from the server's own. It does not change once it is made.
type Params struct {
	list []pgwire.Param        // lower-case names, sorted, each once
	key  unique.Handle[string] // equal for equal sets
	// reading is equal for sets under which Postgres reads a text alike. Literals get their value when a statement is parsed, from the
	// time zone, the date style, the encoding and others, so that every setting counts but the one that is only a name.
	reading unique.Handle[string]
}

// NoParams is the set of a server as it comes from its login and from DISCARD ALL.
var NoParams = newParams(nil)

// Key is equal for equal sets.
func (p *Params) Key() string { return p.key.Value() }

// StartupParams returns the set that a startup packet asks for, without "user", "database", "replication" and protocol options
// (_pq_.*), which are not settings. "options" is taken apart; of the server's command line switches only -c and -- are known.
func StartupParams(startup []pgwire.Param) (*Params, error) {
	set := map[string]string{}
	for _, p := range startup {
		name := strings.ToLower(p.Name)
		switch {
		case name == "user" || name == "database" || name == "replication" || strings.HasPrefix(name, "_pq_."):
		case name == "options":
			if err := parseOptions(p.Value, set); err != nil {
				return nil, err
			}
		case !validName(name):
			return nil, fmt.Errorf("invalid configuration parameter name %q", p.Name)
		default:
			set[name] = p.Value
		}
	}
	return newParams(set), nil
}

// parseOptions follows pg_split_opts in src/backend/utils/init/postinit.c: words are separated by white space, a backslash takes
// the next character literally; then process_postgres_switches in src/backend/tcop/postgres.c for -c and --.
func parseOptions(text string, set map[string]string) error {
	words := splitOptions(text)
	for i := 0; i < len(words); i++ {
		assignment, found := strings.CutPrefix(words[i], "--")
		if !found {
			assignment, found = strings.CutPrefix(words[i], "-c")
		}
		if found && assignment == "" && i+1 < len(words) {
			i++
			assignment = words[i]
		}
		name, value, isAssignment := strings.Cut(assignment, "=")
		name = strings.ToLower(strings.ReplaceAll(name, "-", "_"))
		if !found || !isAssignment || !validName(name) {
			return fmt.Errorf("startup parameter options: %q is not supported, only -c name=value is", words[i])
		}
		set[name] = value
	}
	return nil
}

func splitOptions(text string) []string {
	var words []string
	var word []byte
	inside := false
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c == ' ' || c >= '\t' && c <= '\r' {
			if inside {
				words, word, inside = append(words, string(word)), word[:0], false
			}
			continue
		}
		if c == '\\' && i+1 < len(text) {
			i++
			c = text[i]
		}
		word, inside = append(word, c), true
	}
	if inside {
		words = append(words, string(word))
	}
	return words
}

// validName accepts what valid_custom_variable_name in src/backend/utils/misc/guc.c does, ASCII only.
func validName(name string) bool {
	start := true
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z' || c == '_':
		case !start && (c >= '0' && c <= '9' || c == '$'):
		case !start && c == '.':
			start = true
			continue
		default:
			return false
		}
		start = false
	}
	return !start
}

func newParams(set map[string]string) *Params {
	p := &Params{}
	for name, value := range set {
		p.list = append(p.list, pgwire.Param{Name: name, Value: value})
	}
	sort.Slice(p.list, func(i, j int) bool { return p.list[i].Name < p.list[j].Name })
	var key, reading strings.Builder
	for _, param := range p.list {
		text := param.Name + "=" + param.Value + "\x00"
		key.WriteString(text)
		if !readsAlike(param.Name) {
			reading.WriteString(text)
		}
	}
	p.key, p.reading = unique.Make(key.String()), unique.Make(reading.String())
	return p
}

func (p *Params) get(name string) (string, bool) {
	for _, param := range p.list {
		if param.Name == name {
			return param.Value, true
		}
	}
	return "", false
}

// with returns the set with one more or one other value.
func (p *Params) with(name, value string) *Params {
	set := map[string]string{name: value}
	for _, param := range p.list {
		if param.Name != name {
			set[param.Name] = param.Value
		}
	}
	return newParams(set)
}

// change returns the statements that turn a server with the settings p into one with the settings to. They are one simple query,
// so that they take effect together or not at all. set_config is used and not SET, because it reads a value as a startup packet
// does: a list stays a list. The text is ASCII, whatever the values are, so that no client_encoding can change its meaning.
func (p *Params) change(to *Params) string {
	var text strings.Builder
	for _, param := range p.list {
		if _, found := to.get(param.Name); !found {
			text.WriteString(`RESET "` + strings.ReplaceAll(param.Name, ".", `"."`) + `";`)
		}
	}
	for _, param := range to.list {
		if old, found := p.get(param.Name); !found || old != param.Value {
			text.WriteString("SELECT pg_catalog.set_config(" + literal(param.Name) + "," + literal(param.Value) + ",false);")
		}
	}
	return text.String()
}

// literal quotes a value such that it means the same under every setting: only letters, digits and blanks stand for themselves.
func literal(value string) string {
	var text strings.Builder
	text.WriteString("E'")
	for i := range len(value) {
		c := value[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ' ' || c == '_' || c == '.' {
			text.WriteByte(c)
			continue
		}
		fmt.Fprintf(&text, `\x%02x`, c)
	}
	text.WriteByte('\'')
	return text.String()
}

// readsAlike reports whether a setting has no bearing on what a text means, so that statements parsed under different values of it
// are the same. Settings with a dot are those of extensions and applications.
func readsAlike(name string) bool {
	switch name {
	case "application_name", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
		"transaction_timeout", "work_mem", "maintenance_work_mem", "client_min_messages", "synchronous_commit", "role",
		"session_authorization", "default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable":
		return true
	}
	return strings.Contains(name, ".")
}

// remembered reports whether a setting that the server reports is the client's to choose, so that a change of it is carried over
// to the next server. They are the variables with GUC_REPORT in src/backend/utils/misc/guc_tables.c that SET can change.
func remembered(name string) bool {
	switch name {
	case "application_name", "client_encoding", "datestyle", "default_transaction_read_only", "intervalstyle", "scram_iterations",
		"search_path", "standard_conforming_strings", "timezone":
		return true
	}
	return false
}

// delicate reports whether the change to other settings may fail though they are valid, or fails to the harm of what follows it: a
// time limit of the former client's holds for it, or it is about who the server acts as. Such a change is answered before anything
// else is sent.
func (p *Params) delicate(to *Params) bool {
	for _, name := range [...]string{"statement_timeout", "transaction_timeout", "lock_timeout"} {
		if _, found := p.get(name); found {
			return true
		}
	}
	for _, name := range [...]string{"role", "session_authorization"} {
		was, had := p.get(name)
		will, has := to.get(name)
		if had != has || was != will {
			return true
		}
	}
	return false
}
