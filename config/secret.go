package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Secret is a value that may refer to environment variables as ${NAME} and that prints as ***. $${ stands for ${ itself.
type Secret string

// Reveal returns the plain value.
func (s Secret) Reveal() string { return string(s) }

// String hides the value, so that no log line or error can leak it.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

func (s *Secret) set(text string) error {
	value, err := expandEnv(text)
	*s = Secret(value)
	return err
}

// DSN is a libpq connection string, as URL or keywords. It may refer to the environment like a Secret; its password prints as ***.
type DSN string

// Reveal returns the connection string with its password.
func (d DSN) Reveal() string { return string(d) }

var (
	urlPassword     = regexp.MustCompile(`^([a-z]+://[^:/?#@]*):[^@]*@`)
	keywordPassword = regexp.MustCompile(`(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)`)
)

// String hides the password.
func (d DSN) String() string {
	text := urlPassword.ReplaceAllString(string(d), "$1:***@")
	return keywordPassword.ReplaceAllString(text, "${1}***")
}

func (d *DSN) set(text string) error {
	value, err := expandEnv(text)
	*d = DSN(value)
	return err
}

var envReference = regexp.MustCompile(`\$\$\{|\$\{[^}]*\}`)
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expandEnv replaces ${NAME} by the variable's value. A variable that is not set is an error: an empty password that nobody
// meant is worse than a process that does not start.
func expandEnv(text string) (string, error) {
	var firstErr error
	out := envReference.ReplaceAllStringFunc(text, func(ref string) string {
		if ref == "$${" {
			return "${"
		}
		name := strings.TrimSuffix(strings.TrimPrefix(ref, "${"), "}")
		value, found := os.LookupEnv(name)
		switch {
		case !envName.MatchString(name):
			firstErr = fmt.Errorf("refers to %s, which is not a variable's name", ref)
		case !found:
			firstErr = fmt.Errorf("refers to %s, which is not set in the environment", ref)
		}
		return value
	})
	return out, firstErr
}
