package session

import "bytes"

// tokenKind is what a piece of SQL text is, as far as anybody here has to know.
type tokenKind uint8

const (
	tokenEnd    tokenKind = iota // the text is over, or what follows cannot be told for certain (lexer.lost)
	tokenWord                    // a key word or an identifier, in any case
	tokenQuoted                  // an identifier in double quotes
	tokenString                  // '…' without a backslash, and nothing in front of it
	tokenNumber                  // what begins with a digit
	tokenSymbol                  // one character of anything else
	tokenOther                   // $1, $$…$$, E'…' and their like
)

type token struct {
	kind tokenKind
	text []byte // with its quotes
}

// lexer splits SQL text as src/backend/parser/scan.l does, as far as needed to know where statements begin and end. A backslash
// in a plain string means two things, as standard_conforming_strings says; nobody here asks, and the lexer is lost instead.
type lexer struct {
	in   []byte
	at   int
	lost bool
}

// charClass says how a character goes on: in identifiers, in numbers, as white space.
func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// isSpace is space in scan.l; \v was added in PostgreSQL 16.
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' }

func (l *lexer) peek(i int) byte {
	if l.at+i < len(l.in) {
		return l.in[l.at+i]
	}
	return 0
}

// skipSpace skips white space and comments, which nest.
func (l *lexer) skipSpace() {
	for l.at < len(l.in) {
		switch c := l.in[l.at]; {
		case isSpace(c):
			l.at++
		case c == '-' && l.peek(1) == '-':
			l.skipLine()
		case c == '/' && l.peek(1) == '*':
			l.skipComment()
		default:
			return
		}
	}
}

func (l *lexer) skipLine() {
	for l.at < len(l.in) && l.in[l.at] != '\n' && l.in[l.at] != '\r' {
		l.at++
	}
}

func (l *lexer) skipComment() {
	depth := 0
	for l.at < len(l.in) {
		switch {
		case l.in[l.at] == '/' && l.peek(1) == '*':
			depth++
			l.at += 2
		case l.in[l.at] == '*' && l.peek(1) == '/':
			depth--
			l.at += 2
			if depth == 0 {
				return
			}
		default:
			l.at++
		}
	}
	l.lost = true
}

// next returns the next token.
func (l *lexer) next() token {
	l.skipSpace()
	if l.at >= len(l.in) || l.lost {
		return token{}
	}
	from, kind := l.at, tokenSymbol
	switch c := l.in[l.at]; {
	case isWord(c):
		kind = l.word()
	case isDigit(c):
		kind = tokenNumber
		l.run(func(c byte) bool { return isWord(c) || isDigit(c) || c == '.' })
	case c == '\'':
		kind = tokenString
		l.quoted('\'')
	case c == '"':
		kind = tokenQuoted
		l.quoted('"')
	case c == '$':
		kind = tokenOther
		l.dollar()
	default:
		l.at++
	}
	if l.lost {
		return token{}
	}
	return token{kind, l.in[from:l.at]}
}

func (l *lexer) run(in func(byte) bool) {
	for l.at < len(l.in) && in(l.in[l.at]) {
		l.at++
	}
}

// word reads an identifier, or a string that begins with a letter: E'…', B'…', X'…', N'…', U&'…', U&"…".
func (l *lexer) word() tokenKind {
	from := l.at
	l.run(func(c byte) bool { return isWord(c) || isDigit(c) || c == '$' })
	if l.at-from != 1 {
		return tokenWord
	}
	switch c := l.in[from] | 0x20; {
	case c == 'e' && l.peek(0) == '\'':
		l.escaped()
		return tokenOther
	case (c == 'b' || c == 'x' || c == 'n') && l.peek(0) == '\'':
		l.quoted('\'')
		return tokenOther
	case c == 'u' && l.peek(0) == '&' && (l.peek(1) == '\'' || l.peek(1) == '"'):
		l.at++
		l.quoted(l.in[l.at])
		return tokenOther
	}
	return tokenWord
}

// quoted reads up to the closing quote; a doubled one stands for itself.
func (l *lexer) quoted(quote byte) {
	l.at++
	for l.at < len(l.in) {
		c := l.in[l.at]
		l.at++
		switch {
		case c == '\\' && quote == '\'':
			l.lost = true
			return
		case c == quote && l.peek(0) == quote:
			l.at++
		case c == quote:
			return
		}
	}
	l.lost = true
}

// escaped reads E'…'.
func (l *lexer) escaped() {
	l.at++
	for l.at < len(l.in) {
		c := l.in[l.at]
		l.at++
		switch {
		case c == '\\':
			l.at++
		case c == '\'' && l.peek(0) == '\'':
			l.at++
		case c == '\'':
			return
		}
	}
	l.lost = true
}

// dollar reads $1 or $tag$…$tag$.
func (l *lexer) dollar() {
	from := l.at
	l.at++
	if isDigit(l.peek(0)) {
		l.run(isDigit)
		return
	}
	l.run(func(c byte) bool { return isWord(c) || isDigit(c) })
	if l.peek(0) != '$' {
		l.lost = true // a dollar that means nothing
		return
	}
	l.at++
	tag := l.in[from:l.at]
	end := bytes.Index(l.in[l.at:], tag)
	if end < 0 {
		l.lost = true
		return
	}
	l.at += end + len(tag)
}

// foldMax is NAMEDATALEN - 1 (src/include/pg_config_manual.h), the length to which identifiers are cut.
const foldMax = 63

// folded is a word in lower case, in a place of its own.
type folded struct {
	buf [foldMax]byte
	n   int
}

// fold returns a word in lower case, valid until the next call, and empty when it is too long to be any that matters.
func (f *folded) fold(word []byte) []byte {
	if len(word) > len(f.buf) {
		return nil
	}
	for i, c := range word {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		f.buf[i] = c
	}
	f.n = len(word)
	return f.buf[:f.n]
}
