// Package protocoltest plays scripts of raw protocol messages to whatever speaks as Postgres does, and writes down the answers in a
// form in which those of two servers can be compared. It owns the language of testdata/protocol/*.txt, which is described at
// Parse; it knows nothing of the pooler.
package protocoltest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Script is what one client sends, and where it reads before it goes on.
type Script struct {
	Name       string
	Login      map[string]string // startup parameters besides user and database
	Exceptions []Exception
	Steps      []Step
}

// Exception is a difference that is expected of a script where it is played. Each has a reason.
type Exception struct {
	Kind   string // "not", "known", "texts", "codes", "late"; see Parse
	Modes  []string
	Reason string
}

// Except returns the exception of this kind for a mode, which may have several names, nil when there is none.
func (s *Script) Except(kind string, names []string) *Exception {
	for i := range s.Exceptions {
		for _, one := range s.Exceptions[i].Modes {
			if slices.Contains(names, one) && s.Exceptions[i].Kind == kind {
				return &s.Exceptions[i]
			}
		}
	}
	return nil
}

// String is the script as it could stand in a file.
func (s *Script) String() string {
	var out strings.Builder
	for _, step := range s.Steps {
		out.WriteString(step.Text + "\n")
	}
	return out.String()
}

// Action is what a step does.
type Action uint8

// The actions of a step.
const (
	Send   Action = iota // Step.Bytes
	Until                // read until Step.Count messages of one of Step.Types have come, or the connection has ended
	Cancel               // send a cancel request over another connection
	Vanish               // close the connection without a word
)

// Step is one line of a script.
type Step struct {
	Text   string
	Action Action
	Bytes  []byte
	Types  string
	Count  int
}

// Parse reads scripts. A script begins with a line "### name"; what stands in front of the first one holds for all of the file.
// Empty lines and lines that begin with # are for the reader. Headers:
//
//	login NAME "value" ...            startup parameters; the value none leaves out application_name, which is "script" otherwise
//	not in MODE, ...: reason          it does not apply
//	known in MODE, ...: reason        its answers differ; it is an error if they do not
//	texts in MODE, ...: reason        the wording of errors and notices differs
//	codes in MODE, ...: reason        it may differ which of several reasons is given for refusing a Parse
//	late in MODE, ...: reason         a ParameterStatus may come at another moment; in the end all are the same
//
// Messages, of which each word may be "quoted as in Go", x"68 65 78", repeated as in "x"*1000, or plain:
//
//	Q sql                             Query
//	P name sql [type oid ...]         Parse
//	B portal name [value ...] [-> result format ...]   Bind; null is NULL, a value x"…" is binary
//	D S|P name, C S|P name            Describe, Close
//	E portal [rows]                   Execute
//	S, H, X, c                        Sync, Flush, Terminate, CopyDone
//	d data, f reason                  CopyData, CopyFail
//	F oid [value ...]                 FunctionCall, values and result as text
//	raw TYPE body                     a message of any type
//	bytes data                        anything
//	times N MESSAGE                   the message N times
//
// Other steps: "until TYPES [count]", where any one of several types counts, "cancel", "vanish". A script ends with Terminate and reading to the end of the connection.
func Parse(text string) ([]*Script, error) {
	var scripts []*Script
	current := &Script{Login: map[string]string{}}
	common := current
	for number, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if name, found := strings.CutPrefix(line, "### "); found {
			current = &Script{Name: name, Login: map[string]string{}}
			current.Exceptions = append(current.Exceptions, common.Exceptions...)
			for name, value := range common.Login {
				current.Login[name] = value
			}
			scripts = append(scripts, current)
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		if err := current.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", number+1, line, err)
		}
	}
	return scripts, nil
}

func (s *Script) line(line string) error {
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "not", "known", "texts", "late", "codes":
		modes, reason, found := strings.Cut(rest, ": ")
		modes, in := strings.CutPrefix(modes, "in ")
		if !found || !in {
			return fmt.Errorf("want %s in MODE, ...: reason", kind)
		}
		s.Exceptions = append(s.Exceptions, Exception{Kind: kind, Modes: strings.Split(modes, ", "), Reason: reason})
		return nil
	case "login":
		words, err := split(rest)
		if err != nil || len(words)%2 != 0 {
			return fmt.Errorf("want pairs of name and value: %w", err)
		}
		for i := 0; i < len(words); i += 2 {
			s.Login[words[i].text] = words[i+1].text
		}
		return nil
	}
	step, err := ParseStep(line)
	s.Steps = append(s.Steps, step)
	return err
}

// ParseStep reads one line that is no header.
func ParseStep(line string) (Step, error) {
	step := Step{Text: line}
	words, err := split(line)
	if err != nil {
		return step, err
	}
	switch words[0].text {
	case "cancel":
		step.Action = Cancel
		return step, nil
	case "vanish":
		step.Action = Vanish
		return step, nil
	case "until":
		if len(words) < 2 {
			return step, fmt.Errorf("until which message")
		}
		step.Action, step.Types, step.Count = Until, words[1].text, 1
		if len(words) > 2 {
			step.Count, err = strconv.Atoi(words[2].text)
		}
		return step, err
	case "times":
		if len(words) < 3 {
			return step, fmt.Errorf("which message how often")
		}
		n, err := strconv.Atoi(words[1].text)
		if err != nil {
			return step, err
		}
		one, err := encode(words[2:])
		step.Bytes = []byte(strings.Repeat(string(one), n))
		return step, err
	}
	step.Bytes, err = encode(words)
	return step, err
}

// Must is ParseStep for steps that are made by a program.
func Must(format string, args ...any) Step {
	step, err := ParseStep(fmt.Sprintf(format, args...))
	if err != nil {
		panic(fmt.Sprintf("protocoltest: %s: %v", step.Text, err))
	}
	return step
}
