package auth

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

type entry struct{ name, secret string }

// userlistLineMax bounds a line of the userlist. PgBouncer's MAX_USERNAME is 128 and its MAX_PASSWORD 2048 (include/bouncer.h).
const userlistLineMax = 8 << 10

// parseUserlist reads PgBouncer's userlist.txt: on each line "user" "password", in double quotes, where two quotes stand for one.
// What follows on the line is ignored, as are lines that begin with ; or # and empty ones; see load_auth_file in src/loader.c.
func parseUserlist(r io.Reader) ([]entry, error) {
	var entries []entry
	seen := map[string]bool{}
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, userlistLineMax)
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || line[0] == ';' || line[0] == '#' {
			continue
		}
		name, rest, err := quoted(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: user name: %w", number, err)
		}
		secret, _, err := quoted(strings.TrimLeft(rest, " \t"))
		if err != nil {
			return nil, fmt.Errorf("line %d: password of %q: %w", number, name, err)
		}
		if name == "" || seen[name] {
			return nil, fmt.Errorf("line %d: user %q is empty or listed twice", number, name)
		}
		seen[name] = true
		entries = append(entries, entry{name, secret})
	}
	return entries, scanner.Err()
}

func quoted(text string) (value, rest string, err error) {
	if !strings.HasPrefix(text, `"`) {
		return "", "", errors.New(`must be in double quotes: "user" "password"`)
	}
	var out strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] != '"' {
			out.WriteByte(text[i])
			continue
		}
		if i+1 < len(text) && text[i+1] == '"' {
			out.WriteByte('"')
			i++
			continue
		}
		return out.String(), text[i+1:], nil
	}
	return "", "", errors.New("the closing double quote is missing")
}
