package session

import "bytes"

// localConfig reports whether every set_config in a text is a call whose last argument is the word true, so that what it sets
// ends with the transaction; and whether any of those settings may decide how a text is read. It is how applications tell row-level
// security who their user is, in each transaction.
func localConfig(text []byte) (local, reads bool) {
	l := lexer{in: text}
	calls := 0
	schema, dotted := false, false // what is in front: pg_catalog, and whether a dot follows
	var f folded
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		if t.kind != tokenWord || string(f.fold(t.text)) != "set_config" {
			dot := t.kind == tokenSymbol && t.text[0] == '.'
			schema, dotted = dot && schema || t.kind == tokenWord && string(f.fold(t.text)) == "pg_catalog", dot
			continue
		}
		if dotted && !schema {
			return false, false // somebody's own
		}
		name, ok := localCall(&l)
		if !ok {
			return false, false
		}
		reads = reads || name == "" || !readsAlike(name)
		calls++
	}
	return !l.lost && calls == bytes.Count(bytes.ToLower(text), []byte("set_config")), reads
}

// localCall reads the arguments of set_config. name is the setting's, if it is a plain string.
func localCall(l *lexer) (name string, ok bool) {
	if t := l.next(); t.kind != tokenSymbol || t.text[0] != '(' {
		return "", false
	}
	var f folded
	depth, arguments, tokens, isTrue := 1, 1, 0, false
	for t := l.next(); t.kind != tokenEnd; t = l.next() {
		symbol := byte(0)
		if t.kind == tokenSymbol {
			symbol = t.text[0]
		}
		switch {
		case symbol == '(' || symbol == '[':
			depth++
		case symbol == ']' || symbol == ')' && depth > 1:
			depth--
		case symbol == ')':
			return name, arguments == 3 && tokens == 1 && isTrue
		case symbol == ',' && depth == 1:
			arguments, tokens = arguments+1, 0
			continue
		}
		tokens++
		isTrue = t.kind == tokenWord && string(f.fold(t.text)) == "true"
		if arguments == 1 {
			name = ""
			if t.kind == tokenString && tokens == 1 {
				name = string(bytes.ToLower(t.text[1 : len(t.text)-1]))
			}
		}
	}
	return "", false
}
