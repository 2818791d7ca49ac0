// Package pgbouncer reads PgBouncer's configuration and says it in pitr's words: docs of PgBouncer 1.26, pgbouncer.ini(5). It is pure but for reading
// the files that it is told to.
package pgbouncer

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Entry is one setting of a file.
type Entry struct {
	Section string
	Key     string
	Value   string
	Path    string
	Line    int
}

// place says where an entry is, for messages.
func (e Entry) place() string { return fmt.Sprintf("%s:%d", e.Path, e.Line) }

// ErrSyntax says that a file is none of PgBouncer's.
var ErrSyntax = errors.New("it is not understood")

const (
	// includesMax is how deep files may include others, as in PgBouncer (libusual's cfparser.c, MAX_INCLUDE).
	includesMax = 10
	// fileSizeMax bounds what is read of one file, entriesMax what all have together.
	fileSizeMax = 16 << 20
	entriesMax  = 1 << 20
)

// Sections are those that PgBouncer knows.
const (
	sectionMain      = "pgbouncer"
	sectionDatabases = "databases"
	sectionUsers     = "users"
	sectionPeers     = "peers"
)

var sections = []string{sectionMain, sectionDatabases, sectionUsers, sectionPeers}

// reader collects the entries of a file and of those that it includes.
type reader struct {
	section string
	entries []Entry
	depth   int
}

// Read returns the entries of a file in their order. Names of included files count from the working directory, as PgBouncer has it.
func Read(path string) ([]Entry, error) {
	r := &reader{}
	err := r.file(path)
	return r.entries, err
}

func (r *reader) file(path string) error {
	if r.depth >= includesMax {
		return fmt.Errorf("%s: it is included %d files deep: %w", path, r.depth, ErrSyntax)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() > fileSizeMax {
		return fmt.Errorf("%s: it has %d bytes, more than %d: %w", path, info.Size(), fileSizeMax, ErrSyntax)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	r.depth++
	defer func() { r.depth-- }()
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		if err := r.line(path, number, strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	return nil
}

// line reads one. A comment is a line of its own: further on # and ; mean nothing.
func (r *reader) line(path string, number int, line string) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s: %w", path, number, fmt.Sprintf(format, args...), ErrSyntax)
	}
	if strings.ContainsRune(line, 0) {
		return fail("it has a zero byte")
	}
	switch {
	case line == "" || line[0] == '#' || line[0] == ';':
		return nil
	case line[0] == '%':
		name, isInclude := strings.CutPrefix(line, "%include")
		if !isInclude || strings.TrimSpace(name) == "" || strings.TrimLeft(name, " \t") == name {
			return fail("%q is no directive", line)
		}
		if err := r.file(strings.TrimSpace(name)); err != nil {
			return fmt.Errorf("%s:%d: %w", path, number, err)
		}
		return nil
	case line[0] == '[':
		name, rest, closed := strings.Cut(line[1:], "]")
		if !closed || rest != "" {
			return fail("%q is no section", line)
		}
		if !slices.Contains(sections, name) {
			return fail("there is no section [%s]", name)
		}
		r.section = name
		return nil
	}
	key, rest, err := cutName(line)
	if err != nil {
		return fail("%v", err)
	}
	value, found := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
	switch {
	case !found:
		return fail("%q has no =", line)
	case r.section == "":
		return fail("%s stands in no section", key)
	case len(r.entries) >= entriesMax:
		return fail("there are more than %d settings", entriesMax)
	}
	r.entries = append(r.entries, Entry{r.section, key, strings.TrimSpace(value), path, number})
	return nil
}

// cutName reads a name: letters, digits and _ . - or *, or anything between double quotes, in which a doubled one stands for itself.
func cutName(line string) (name, rest string, err error) {
	if line[0] != '"' {
		n := strings.IndexFunc(line, func(c rune) bool {
			return !(c == '_' || c == '.' || c == '-' || c == '*' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80)
		})
		if n < 0 {
			n = len(line)
		}
		if n == 0 {
			return "", "", fmt.Errorf("%q begins with no name", line)
		}
		return line[:n], line[n:], nil
	}
	var b strings.Builder
	for i := 1; i < len(line); i++ {
		if line[i] != '"' {
			b.WriteByte(line[i])
			continue
		}
		if i+1 < len(line) && line[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		if b.Len() == 0 {
			return "", "", errors.New("a name is empty")
		}
		return b.String(), line[i+1:], nil
	}
	return "", "", fmt.Errorf("the name in %q does not end", line)
}

// Pair is a part of a connection string.
type Pair struct{ Key, Value string }

// parsePairs reads the value of an entry of [databases], [users] or [peers]: key=value with blanks between. A value with blanks stands between single
// quotes, in which a doubled one stands for itself.
func parsePairs(text string) ([]Pair, error) {
	var pairs []Pair
	for {
		text = strings.TrimLeft(text, " \t")
		if text == "" {
			return pairs, nil
		}
		key, rest, found := strings.Cut(text, "=")
		key = strings.TrimRight(key, " \t")
		if !found || key == "" || strings.ContainsAny(key, " \t'\"") {
			return nil, fmt.Errorf("%q is no key=value", text)
		}
		rest = strings.TrimLeft(rest, " \t")
		value := ""
		if !strings.HasPrefix(rest, "'") {
			n := strings.IndexAny(rest, " \t")
			if n < 0 {
				n = len(rest)
			}
			value, text = rest[:n], rest[n:]
			pairs = append(pairs, Pair{key, value})
			continue
		}
		value, rest, err := cutQuoted(rest[1:])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		if rest != "" && rest[0] != ' ' && rest[0] != '\t' {
			return nil, fmt.Errorf("%s: what follows the quotation mark is no blank", key)
		}
		pairs, text = append(pairs, Pair{key, value}), rest
	}
}

func cutQuoted(text string) (value, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\'' {
			b.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == '\'' {
			b.WriteByte('\'')
			i++
			continue
		}
		return b.String(), text[i+1:], nil
	}
	return "", "", errors.New("a quotation mark is missing")
}
