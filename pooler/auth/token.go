package auth

import (
	"errors"
	"fmt"
	"strings"
)

// token is one word of a line of an HBA or ident file.
type token struct {
	text   string
	quoted bool // it is no keyword, whatever it says
	comma  bool // another of the same list follows
}

const (
	// rulesLenMax bounds an HBA or ident file, and each file of names.
	rulesLenMax = 1 << 20
	// wordLenMax bounds a word. PgBouncer's MAX_USERNAME is 128 (include/bouncer.h), a distinguished name is longer.
	wordLenMax = 1 << 10
)

// eachLine calls do with the words of each line that has any. Its errors name the file and the line.
func eachLine(path string, text []byte, do func([]token) error) error {
	if len(text) > rulesLenMax {
		return fmt.Errorf("%s: has more than %d bytes", path, rulesLenMax)
	}
	number := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		number++
		tokens, err := tokenize(line)
		if err == nil && len(tokens) > 0 {
			err = do(tokens)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", path, number, err)
		}
	}
	return nil
}

// tokenize splits a line: words are separated by blanks, those of a list by commas; # begins a comment; double quotes make a word of
// anything, and two of them stand for one. See next_token in src/hba.c of PgBouncer.
func tokenize(line string) ([]token, error) {
	var tokens []token
	for rest := line; ; {
		rest = strings.TrimLeft(rest, " \t\r\v\f")
		if rest == "" || rest[0] == '#' {
			break
		}
		if rest[0] == ',' {
			if len(tokens) == 0 || tokens[len(tokens)-1].comma {
				return nil, errors.New("a comma without a word before it")
			}
			tokens[len(tokens)-1].comma = true
			rest = rest[1:]
			continue
		}
		var t token
		var err error
		if t, rest, err = word(rest); err != nil {
			return nil, err
		}
		tokens = append(tokens, t)
	}
	if len(tokens) > 0 && tokens[len(tokens)-1].comma {
		return nil, errors.New("a comma without a word behind it")
	}
	return tokens, nil
}

func word(text string) (t token, rest string, err error) {
	if text[0] == '"' {
		t.quoted = true
		t.text, rest, err = quoted(text)
	} else {
		end := strings.IndexAny(text, " \t\r\v\f,#\"")
		if end < 0 {
			end = len(text)
		}
		t.text, rest = text[:end], text[end:]
	}
	switch {
	case err != nil:
		return t, rest, err
	case t.text == "":
		return t, rest, errors.New("an empty name")
	case len(t.text) > wordLenMax:
		return t, rest, fmt.Errorf("a word has more than %d bytes", wordLenMax)
	case strings.ContainsRune(t.text, 0):
		return t, rest, errors.New("a word holds a zero byte")
	case rest != "" && !strings.ContainsRune(" \t\r\v\f,#", rune(rest[0])):
		return t, rest, fmt.Errorf("%s is neither quoted nor a plain word", text[:len(text)-len(rest)])
	}
	return t, rest, nil
}
