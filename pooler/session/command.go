package session

import (
	"bytes"
	"strings"
)

// commandKind is what a statement does to the session, where that has to be known.
type commandKind uint8

const (
	commandOther         commandKind = iota // nothing that has to be known beforehand; its tag says the rest
	commandUnclear                          // one of those below, in a form that is not understood
	commandSet                              // SET of a setting for the session
	commandReset                            // RESET, or SET … TO DEFAULT
	commandResetAll                         // RESET ALL
	commandSetLocal                         // SET of something that ends with the transaction
	commandBegin                            // BEGIN, START TRANSACTION
	commandCommit                           // COMMIT, END
	commandRollback                         // ROLLBACK, ABORT
	commandSavepoint                        // SAVEPOINT
	commandRelease                          // RELEASE SAVEPOINT
	commandRollbackTo                       // ROLLBACK TO SAVEPOINT
	commandDiscardAll                       // DISCARD ALL
	commandPrepare                          // PREPARE … AS
	commandDeallocate                       // DEALLOCATE
	commandDeallocateAll                    // DEALLOCATE ALL
	commandListen                           // LISTEN
	commandUnlisten                         // UNLISTEN
	commandUnlistenAll                      // UNLISTEN *
	commandDeclare                          // DECLARE CURSOR
)

// command is one statement.
type command struct {
	kind  commandKind
	plain bool      // Begin, Commit, Rollback: nothing is said that has to be passed on word by word
	begin beginMode // Begin
	name  string    // of a savepoint, a prepared statement, a channel
	value string    // Prepare: the statement
	sets  []setting // Set, SetLocal, Reset: what is set
	hold  bool      // Declare: WITH HOLD
}

// setting is a run-time parameter and what SET makes of it, as set_config has it.
type setting struct {
	name, value string
	reset       bool
}

// script is what a text does to the session: its statements, without empty ones. Postgres answers each with a CommandComplete.
type script struct {
	commands []command
	lost     bool // what it does cannot be known
}

// lexMax bounds the texts that are taken apart. A longer one passes; what it has done is told by tags alone.
const lexMax = 8 << 10

// scriptOf returns what a text does, nil when nothing of it matters. The usual statement costs a look at its first word.
func scriptOf(text []byte) *script {
	var l lexer
	var f folded
	l.in = text
	first := l.next()
	if !matters(f.fold(first.text)) {
		end := bytes.IndexByte(text, ';')
		if end < 0 || !matterBehind(text[end:]) {
			return nil
		}
	}
	p := &parser{lexer: lexer{in: text}}
	found := &script{}
	interesting := false
	for p.advance(); p.token.kind != tokenEnd; {
		if p.symbol(';') {
			continue
		}
		c := p.statement()
		interesting = interesting || c.kind != commandOther
		found.commands = append(found.commands, c)
		if len(found.commands) > commandsMax {
			p.lexer.lost = true
			break
		}
	}
	if p.lexer.lost {
		return &script{lost: true}
	}
	if !interesting {
		return nil
	}
	return found
}

// commandsMax bounds the statements of one text.
const commandsMax = 1000

// matters reports whether a statement that begins with this word is one that has to be understood.
func matters(word []byte) bool {
	switch string(word) {
	case "set", "reset", "begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "discard", "prepare",
		"deallocate", "listen", "unlisten", "declare":
		return true
	}
	return false
}

// matterBehind reports whether there is anything but white space and semicolons.
func matterBehind(text []byte) bool {
	for _, c := range text {
		if c != ';' && !isSpace(c) {
			return true
		}
	}
	return false
}

// parser reads statements, one token ahead.
type parser struct {
	lexer lexer
	token token
	folded
}

func (p *parser) advance() { p.token = p.lexer.next() }

// word takes a key word.
func (p *parser) word(words ...string) bool {
	if p.token.kind != tokenWord {
		return false
	}
	have := p.fold(p.token.text)
	for _, word := range words {
		if string(have) == word {
			p.advance()
			return true
		}
	}
	return false
}

// symbol takes a character.
func (p *parser) symbol(c byte) bool {
	if p.token.kind != tokenSymbol || p.token.text[0] != c {
		return false
	}
	p.advance()
	return true
}

// over reports whether the statement ends here.
func (p *parser) over() bool {
	return !p.lexer.lost && (p.token.kind == tokenEnd || p.token.kind == tokenSymbol && p.token.text[0] == ';')
}

// rest skips to the end of the statement. A semicolon in parentheses, as in CREATE RULE, does not end it; the body of a function
// in SQL (BEGIN ATOMIC) has some that do not either.
func (p *parser) rest() {
	depth := 0
	for p.token.kind != tokenEnd {
		switch {
		case p.token.kind == tokenWord && bytes.EqualFold(p.token.text, []byte("atomic")):
			p.lexer.lost = true
		case p.token.kind != tokenSymbol:
		case p.token.text[0] == '(':
			depth++
		case p.token.text[0] == ')':
			depth--
		case p.token.text[0] == ';' && depth <= 0:
			return
		}
		p.advance()
	}
}

// statement reads one statement up to its end.
func (p *parser) statement() command {
	c := p.understood()
	if c.kind != commandOther && !p.over() {
		c = command{kind: commandUnclear}
	}
	p.rest()
	return c
}

func (p *parser) understood() command {
	switch {
	case p.word("set"):
		return p.set()
	case p.word("reset"):
		return p.reset()
	case p.word("begin"):
		return p.begin(false)
	case p.word("start"):
		if !p.word("transaction") {
			return command{}
		}
		return p.begin(true)
	case p.word("commit"):
		if p.word("prepared") {
			return command{}
		}
		return p.end(commandCommit)
	case p.word("end"):
		return p.end(commandCommit)
	case p.word("rollback"):
		return p.rollback()
	case p.word("abort"):
		return p.end(commandRollback)
	case p.word("savepoint"):
		return p.named(commandSavepoint)
	case p.word("release"):
		p.word("savepoint")
		return p.named(commandRelease)
	case p.word("discard"):
		if p.word("all") {
			return command{kind: commandDiscardAll}
		}
		return command{}
	case p.word("deallocate"):
		p.word("prepare")
		if p.word("all") {
			return command{kind: commandDeallocateAll}
		}
		return p.named(commandDeallocate)
	case p.word("prepare"):
		return p.prepare()
	case p.word("declare"):
		return p.declare()
	case p.word("listen"):
		return p.named(commandListen)
	case p.word("unlisten"):
		if p.symbol('*') {
			return command{kind: commandUnlistenAll}
		}
		return p.named(commandUnlisten)
	}
	return command{}
}

// end reads what follows COMMIT, END, ROLLBACK and ABORT.
func (p *parser) end(kind commandKind) command {
	if !p.word("work") {
		p.word("transaction")
	}
	if p.over() {
		return command{kind: kind, plain: true}
	}
	if p.word("and") && (p.word("chain") || p.word("no") && p.word("chain")) {
		return command{kind: kind}
	}
	return command{kind: commandUnclear}
}

func (p *parser) rollback() command {
	if p.word("prepared") {
		return command{}
	}
	if !p.word("work") {
		p.word("transaction")
	}
	if p.word("to") {
		p.word("savepoint")
		return p.named(commandRollbackTo)
	}
	return p.end(commandRollback)
}

// named reads a name.
func (p *parser) named(kind commandKind) command {
	name, ok := p.identifier()
	if !ok {
		return command{kind: commandUnclear}
	}
	return command{kind: kind, name: name}
}

// identifier takes a name as Postgres has it: in lower case without quotes. A name that is cut, or that is not ASCII and has no
// quotes, is not understood: lower case then is a matter of the server's locale.
func (p *parser) identifier() (name string, ok bool) {
	switch p.token.kind {
	case tokenWord:
		name = string(p.fold(p.token.text))
	case tokenQuoted:
		name = strings.ReplaceAll(string(p.token.text[1:len(p.token.text)-1]), `""`, `"`)
	}
	if name == "" || len(name) > foldMax || p.token.kind == tokenWord && !isASCII(name) {
		return "", false
	}
	p.advance()
	return name, true
}

func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= 0x80 {
			return false
		}
	}
	return true
}

// declare reads DECLARE name … CURSOR [WITH HOLD | WITHOUT HOLD] FOR query.
func (p *parser) declare() command {
	c := p.named(commandDeclare)
	for c.kind == commandDeclare && !p.over() && !p.word("for") {
		with := p.word("with")
		if with && p.word("hold") {
			c.hold = true
			continue
		}
		if !with {
			p.advance()
		}
	}
	p.rest()
	return c
}

// prepare reads PREPARE name [(types)] AS statement. What follows the name is kept as it is.
func (p *parser) prepare() command {
	if p.word("transaction") {
		p.rest()
		return command{}
	}
	c := p.named(commandPrepare)
	from := p.lexer.at - len(p.token.text)
	p.rest()
	to := p.lexer.at - len(p.token.text)
	if p.lexer.lost || c.kind != commandPrepare || from >= to {
		return command{kind: commandUnclear}
	}
	c.value = strings.TrimRight(string(p.lexer.in[from:to]), " \t\r\n\f")
	return c
}

// at returns the i-th statement, nil when it is not known.
func (s *script) at(i int) *command {
	if s == nil || s.lost || i >= len(s.commands) {
		return nil
	}
	return &s.commands[i]
}

// rereads reports whether texts may be read in another way after this.
func (s *script) rereads() bool {
	if s.lost {
		return true
	}
	for i := range s.commands {
		switch c := &s.commands[i]; c.kind {
		case commandUnclear, commandResetAll, commandRollbackTo:
			return true
		case commandSet, commandReset, commandSetLocal:
			for _, set := range c.sets {
				if !readsAlike(set.name) {
					return true
				}
			}
		}
	}
	return false
}

// sends notes that a text is sent which does this.
func (s *Server) sends(does *script) {
	if does != nil && does.rereads() {
		s.unsettled = true
	}
}
