package session

import "strings"

// set reads what follows SET: VariableSetStmt in src/backend/parser/gram.y.
func (p *parser) set() command {
	local := p.word("local")
	session := !local && p.word("session")
	switch {
	case session && p.word("authorization"):
		if p.word("default") {
			return resets("session_authorization")
		}
		return p.role("session_authorization", false)
	case session && p.word("characteristics"):
		return p.characteristics()
	case p.word("transaction"):
		if p.assigns() {
			return command{kind: commandUnclear}
		}
		p.rest()
		return command{kind: commandSetLocal} // SET TRANSACTION
	case p.word("constraints"):
		p.rest()
		return command{} // it has a tag of its own
	}
	c := p.assignment()
	if local && c.kind == commandSet || local && c.kind == commandReset {
		c.kind = commandSetLocal
	}
	return c
}

func resets(name string) command {
	return command{kind: commandReset, sets: []setting{{name: name, reset: true}}}
}

func sets(name, value string) command {
	return command{kind: commandSet, sets: []setting{{name: name, value: value}}}
}

// assigns reports whether what was read last is the name of a setting that is assigned to.
func (p *parser) assigns() bool {
	return p.token.kind == tokenSymbol && (p.token.text[0] == '=' || p.token.text[0] == '.') ||
		p.token.kind == tokenWord && string(p.fold(p.token.text)) == "to"
}

// assignment reads set_rest_more and generic_set in gram.y.
func (p *parser) assignment() command {
	name, ok := p.identifier()
	if !ok {
		return command{kind: commandUnclear}
	}
	if p.assigns() {
		return p.generic(name)
	}
	switch name {
	case "time":
		if p.word("zone") {
			return p.timeZone()
		}
	case "role":
		return p.role("role", false)
	case "session":
		if p.word("authorization") {
			return p.role("session_authorization", true)
		}
	case "schema":
		if value, ok := p.text(); ok {
			return sets("search_path", quoteIdentifier(value))
		}
	case "names":
		if p.over() || p.word("default") {
			return resets("client_encoding")
		}
		if value, ok := p.text(); ok {
			return sets("client_encoding", value)
		}
	}
	return command{kind: commandUnclear}
}

// role reads the name of a role, which may be a word or a string. SET LOCAL SESSION AUTHORIZATION is the one that may be DEFAULT.
func (p *parser) role(name string, orDefault bool) command {
	if orDefault && p.word("default") {
		return resets(name)
	}
	value, ok := p.text()
	if !ok {
		value, ok = p.identifier()
	}
	if !ok {
		return command{kind: commandUnclear}
	}
	return sets(name, value)
}

func (p *parser) timeZone() command {
	if p.word("default", "local") {
		return resets("timezone")
	}
	if p.token.kind == tokenWord && string(p.fold(p.token.text)) == "interval" {
		return command{kind: commandUnclear}
	}
	value, _, ok := p.value()
	if !ok {
		return command{kind: commandUnclear}
	}
	return sets("timezone", value)
}

// generic reads name [. name] { TO | = } value [, …].
func (p *parser) generic(name string) command {
	name, ok := p.qualified(name)
	if !ok || !p.word("to") && !p.symbol('=') {
		return command{kind: commandUnclear}
	}
	switch name {
	case "transaction_isolation", "transaction_read_only", "transaction_deferrable":
		p.rest()
		return command{kind: commandSetLocal}
	case "seed":
		return command{kind: commandUnclear} // it is not a value that could be set again
	}
	if p.token.kind == tokenWord && string(p.fold(p.token.text)) == "default" {
		p.advance()
		return resets(name)
	}
	var list []string
	for {
		value, isName, ok := p.value()
		if !ok {
			return command{kind: commandUnclear}
		}
		if isName && listOfNames(name) {
			value = quoteIdentifier(value)
		}
		list = append(list, value)
		if !p.symbol(',') {
			return sets(name, strings.Join(list, ", "))
		}
	}
}

// qualified reads the rest of a setting's name. Names are found without regard to case, and two have older ones: map_old_guc_names
// in src/backend/utils/misc/guc.c.
func (p *parser) qualified(name string) (string, bool) {
	for p.symbol('.') {
		more, ok := p.identifier()
		if !ok {
			return "", false
		}
		name += "." + more
	}
	name = strings.ToLower(name)
	switch name {
	case "sort_mem":
		name = "work_mem"
	case "vacuum_mem":
		name = "maintenance_work_mem"
	}
	return name, validName(name)
}

// value reads var_value in gram.y, as flatten_set_variable_args in src/backend/utils/misc/guc_funcs.c turns it into text. isName
// says that it is quoted in a list of names.
func (p *parser) value() (value string, isName, ok bool) {
	if value, ok = p.text(); ok {
		return value, true, true
	}
	if value, ok = p.identifier(); ok {
		return value, true, true
	}
	sign := ""
	if p.symbol('-') {
		sign = "-"
	} else {
		p.symbol('+')
	}
	if p.token.kind != tokenNumber || !plainNumber(p.token.text) {
		return "", false, false
	}
	value = sign + string(p.token.text)
	p.advance()
	return value, false, true
}

// plainNumber reports whether Postgres would print a number as it stands.
func plainNumber(text []byte) bool {
	for i, c := range text {
		if !isDigit(c) && (c != '.' || i == 0 || i == len(text)-1) || i > 9 {
			return false
		}
	}
	return len(text) == 1 || text[0] != '0' || text[1] == '.'
}

// text takes a plain string.
func (p *parser) text() (value string, ok bool) {
	if p.token.kind != tokenString {
		return "", false
	}
	value = strings.ReplaceAll(string(p.token.text[1:len(p.token.text)-1]), "''", "'")
	p.advance()
	return value, p.token.kind != tokenString // two strings in a row are one, if a new line is between them
}

// listOfNames reports whether a setting has GUC_LIST_QUOTE in src/backend/utils/misc/guc_tables.c.
func listOfNames(name string) bool {
	switch name {
	case "search_path", "temp_tablespaces", "local_preload_libraries", "session_preload_libraries", "shared_preload_libraries",
		"unix_socket_directories":
		return true
	}
	return false
}

// quoteIdentifier is quote_identifier in src/backend/utils/adt/ruleutils.c, but for key words, which need no quotes in a list.
func quoteIdentifier(name string) string {
	safe := name != "" && !isDigit(name[0])
	for i := range len(name) {
		c := name[i]
		safe = safe && (c >= 'a' && c <= 'z' || c == '_' || isDigit(c))
	}
	if safe {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// characteristics reads SET SESSION CHARACTERISTICS AS TRANSACTION: ExecSetVariableStmt in src/backend/utils/misc/guc_funcs.c.
func (p *parser) characteristics() command {
	if !p.word("as") || !p.word("transaction") {
		return command{kind: commandUnclear}
	}
	mode, ok := p.modes()
	if !ok || mode == 0 {
		return command{kind: commandUnclear}
	}
	return command{kind: commandSet, sets: mode.defaults()}
}

// reset reads what follows RESET: VariableResetStmt in gram.y.
func (p *parser) reset() command {
	name, ok := p.identifier()
	if !ok {
		return command{kind: commandUnclear}
	}
	switch {
	case name == "all" && p.over():
		return command{kind: commandResetAll}
	case name == "time" && p.word("zone"):
		return resets("timezone")
	case name == "session" && p.word("authorization"):
		return resets("session_authorization")
	case name == "transaction" && p.word("isolation"):
		p.rest()
		return command{kind: commandSetLocal}
	}
	if name, ok = p.qualified(name); !ok || name == "seed" {
		return command{kind: commandUnclear}
	}
	return resets(name)
}
