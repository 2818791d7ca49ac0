package auth

import (
	"bufio"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
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

// isMD5 follows get_password_type in src/backend/libpq/crypt.c.
func isMD5(secret string) bool {
	digits, found := strings.CutPrefix(secret, "md5")
	return found && len(digits) == 32 && strings.Trim(digits, "0123456789abcdef") == ""
}

// iterationsMax bounds the work factor of a secret that was configured.
const iterationsMax = 10_000_000

// parseSecret reads SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, the form of pg_authid.rolpassword; see
// parse_scram_secret in src/backend/libpq/auth-scram.c. isSecret is false for anything that does not begin like one.
func parseSecret(text string) (credentials scram.StoredCredentials, isSecret bool, err error) {
	body, found := strings.CutPrefix(text, Mechanism+"$")
	if !found {
		return credentials, false, nil
	}
	parts := strings.FieldsFunc(body, func(c rune) bool { return c == '$' || c == ':' })
	if len(parts) != 4 {
		return credentials, true, errors.New("malformed SCRAM-SHA-256 secret")
	}
	count, err := strconv.Atoi(parts[0])
	if err != nil || count < 1 || count > iterationsMax {
		return credentials, true, errors.New("malformed iteration count in the SCRAM-SHA-256 secret")
	}
	var decoded [3][]byte
	for i, part := range parts[1:] {
		if decoded[i], err = base64.StdEncoding.DecodeString(part); err != nil {
			return credentials, true, errors.New("malformed base64 in the SCRAM-SHA-256 secret")
		}
	}
	if len(decoded[0]) == 0 || len(decoded[1]) != sha256.Size || len(decoded[2]) != sha256.Size {
		return credentials, true, errors.New("malformed keys in the SCRAM-SHA-256 secret")
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(decoded[0]), Iters: count}, StoredKey: decoded[1], ServerKey: decoded[2],
	}, true, nil
}
