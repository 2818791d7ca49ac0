package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// PathEnv names the variable that says where the configuration is.
const PathEnv = "PITR_CONFIG"

// Problem is one thing that is wrong with a configuration file.
type Problem struct {
	Line int // 0: the file as a whole
	Key  string
	Text string
}

func (p Problem) String() string {
	switch {
	case p.Line == 0 && p.Key == "":
		return p.Text
	case p.Key == "":
		return fmt.Sprintf("line %d: %s", p.Line, p.Text)
	case p.Line == 0:
		return fmt.Sprintf("%s: %s", p.Key, p.Text)
	default:
		return fmt.Sprintf("line %d: %s: %s", p.Line, p.Key, p.Text)
	}
}

// Error is everything that is wrong with one file, in the order of its lines.
type Error struct {
	Path     string
	Problems []Problem
}

func (e *Error) Error() string {
	lines := make([]string, 0, len(e.Problems))
	for _, problem := range e.Problems {
		lines = append(lines, problem.String())
	}
	return fmt.Sprintf("configuration %s: %s", e.Path, strings.Join(lines, "\n  "))
}

// ErrNotFound says that no configuration file is where one is looked for.
var ErrNotFound = errors.New("no configuration file: give -c FILE, set " + PathEnv + ", or write ./pitr.yaml or /etc/pitr/pitr.yaml")

// Find returns the path of the configuration: the flag's value, else $PITR_CONFIG, else ./pitr.yaml, else /etc/pitr/pitr.yaml.
func Find(flag string) (string, error) {
	for _, named := range []string{flag, os.Getenv(PathEnv)} {
		if named != "" {
			return filepath.Abs(named)
		}
	}
	for _, usual := range []string{"pitr.yaml", "/etc/pitr/pitr.yaml"} {
		if _, err := os.Stat(usual); err == nil {
			return filepath.Abs(usual)
		}
	}
	return "", ErrNotFound
}

// fileSizeMax bounds what is read as configuration.
const fileSizeMax = 1 << 20

// Load reads and checks the file. The error is an *Error when the file could be read.
func Load(path string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if info.Size() > fileSizeMax {
		return nil, &Error{path, []Problem{{Text: fmt.Sprintf("the file has %d bytes, more than %d", info.Size(), fileSizeMax)}}}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	cfg, err := Parse(path, content)
	if err != nil {
		return nil, err
	}
	if cfg.Path, err = filepath.Abs(path); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return cfg, nil
}
