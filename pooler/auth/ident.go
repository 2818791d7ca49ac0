package auth

import (
	"fmt"
)

// identity is one line of an ident file: who the system says it is may come in as user.
type identity struct {
	system, user string
	all          bool // as any user
}

// Idents are the maps of an ident file, by name. Compare PgBouncer's manual, section "Ident map file format".
type Idents map[string][]identity

// ParseIdents reads an ident file: lines of a map's name, a system's name and a database's user name or all. Regular expressions,
// groups and includes are errors, as is every line that is not understood. path is for messages.
func ParseIdents(path string, text []byte) (Idents, error) {
	maps := Idents{}
	err := eachLine(path, text, func(tokens []token) error {
		if len(tokens) != 3 || tokens[0].comma || tokens[1].comma {
			return fmt.Errorf("expected three words: the map, the name that the system knows, the user's name")
		}
		for _, t := range tokens {
			if !t.quoted && t.text[0] == '/' {
				return fmt.Errorf("%s: regular expressions are not supported", t.text)
			}
			if !t.quoted && (t.text[0] == '+' || t.text[0] == '@') {
				return fmt.Errorf("%s: groups and files are not supported", t.text)
			}
		}
		name, user := tokens[0].text, tokens[2]
		maps[name] = append(maps[name], identity{system: tokens[1].text, user: user.text, all: !user.quoted && user.text == "all"})
		return nil
	})
	return maps, err
}

// allows reports whether whom the system calls so may come in as user. Without a map the names have to be the same.
func (m Idents) allows(name, system, user string) bool {
	if system == "" {
		return false
	}
	if name == "" {
		return system == user
	}
	for _, entry := range m[name] {
		if entry.system == system && (entry.all || entry.user == user) {
			return true
		}
	}
	return false
}
