package admin

import (
	"errors"
	"strings"
)

// word is a word of a command.
type word struct {
	text   string
	quoted bool
}

// is reports whether a word is a key word, which is not quoted.
func (w word) is(key string) bool { return !w.quoted && strings.EqualFold(w.text, key) }

var errQuote = errors.New("a quote is not closed")

// split cuts a command into words, "names", 'texts' and equals signs, up to a semicolon, which only blanks may follow.
func split(text string) ([]word, error) {
	text = strings.TrimSuffix(text, "\x00")
	var words []word
	for {
		text = strings.TrimLeft(text, " \t\r\n")
		switch {
		case text == "":
			return words, nil
		case text[0] == ';':
			if strings.Trim(text, "; \t\r\n") != "" {
				return nil, errors.New("one command at a time")
			}
			return words, nil
		case text[0] == '"' || text[0] == '\'':
			quoted, rest, err := unquote(text)
			if err != nil {
				return nil, err
			}
			words, text = append(words, word{quoted, true}), rest
		default:
			end := strings.IndexAny(text, " \t\r\n;\"'=")
			if end < 0 {
				end = len(text)
			}
			end = max(end, 1) // "=" is a word
			words, text = append(words, word{text[:end], false}), text[end:]
		}
	}
}

// unquote reads a quoted word, in which the quote itself is doubled.
func unquote(text string) (word, rest string, err error) {
	quote := text[0]
	var out strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] != quote:
			out.WriteByte(text[i])
		case i+1 < len(text) && text[i+1] == quote:
			out.WriteByte(quote)
			i++
		default:
			return out.String(), text[i+1:], nil
		}
	}
	return "", "", errQuote
}
