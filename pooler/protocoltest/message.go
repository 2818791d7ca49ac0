package protocoltest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// word is one word of a line.
type word struct {
	text   string
	quoted bool
	binary bool // written as x"…"
}

// split cuts a line into words.
func split(line string) ([]word, error) {
	var words []word
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		var w word
		hexed := strings.HasPrefix(line, `x"`)
		if hexed {
			line = line[1:]
		}
		if line[0] != '"' {
			end := strings.IndexByte(line, ' ')
			if end < 0 {
				end = len(line)
			}
			words, line = append(words, word{text: line[:end]}), line[end:]
			continue
		}
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		if w.text, err = strconv.Unquote(quoted); err != nil {
			return nil, err
		}
		line, w.quoted = line[len(quoted):], true
		if hexed {
			data, err := hex.DecodeString(strings.ReplaceAll(w.text, " ", ""))
			if err != nil {
				return nil, err
			}
			w.text, w.binary = string(data), true
		}
		if count, found := strings.CutPrefix(line, "*"); found {
			end := strings.IndexFunc(count, func(r rune) bool { return r < '0' || r > '9' })
			if end < 0 {
				end = len(count)
			}
			n, err := strconv.Atoi(count[:end])
			if err != nil {
				return nil, err
			}
			w.text, line = strings.Repeat(w.text, n), count[end:]
		}
		words = append(words, w)
	}
	return words, nil
}

// message makes a message of any type. kind 0 has no type, as a startup packet.
func message(kind byte, body string) []byte {
	out := make([]byte, 0, 5+len(body))
	if kind != 0 {
		out = append(out, kind)
	}
	out = binary.BigEndian.AppendUint32(out, uint32(4+len(body)))
	return append(out, body...)
}

func int16s(n int) string { return string(binary.BigEndian.AppendUint16(nil, uint16(n))) }
func int32s(n int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(n))) }

// encode makes the bytes of a message.
func encode(words []word) ([]byte, error) {
	kind, args := words[0].text, words[1:]
	arg := func(i int) string {
		if i < len(args) {
			return args[i].text
		}
		return ""
	}
	switch kind {
	case "S", "H", "X", "c":
		return message(kind[0], ""), nil
	case "Q", "f":
		return message(kind[0], arg(0)+"\x00"), nil
	case "d":
		return message('d', arg(0)), nil
	case "D", "C":
		return message(kind[0], arg(0)+arg(1)+"\x00"), nil
	case "P":
		return parse(args)
	case "B":
		return bind(args)
	case "E":
		rows := 0
		if len(args) > 1 {
			var err error
			if rows, err = strconv.Atoi(arg(1)); err != nil {
				return nil, err
			}
		}
		return message('E', arg(0)+"\x00"+int32s(rows)), nil
	case "F":
		oid, err := strconv.Atoi(arg(0))
		if err != nil {
			return nil, err
		}
		return message('F', int32s(oid)+int16s(0)+values(args[1:])+int16s(0)), nil
	case "raw":
		return message(arg(0)[0], arg(1)), nil
	case "bytes":
		return []byte(arg(0)), nil
	}
	return nil, fmt.Errorf("unknown step %q", kind)
}

func parse(args []word) ([]byte, error) {
	if len(args) < 2 {
		return nil, fmt.Errorf("want P name sql")
	}
	types := int16s(len(args) - 2)
	for _, arg := range args[2:] {
		oid, err := strconv.Atoi(arg.text)
		if err != nil {
			return nil, err
		}
		types += int32s(oid)
	}
	return message('P', args[0].text+"\x00"+args[1].text+"\x00"+types), nil
}

func bind(args []word) ([]byte, error) {
	if len(args) < 2 {
		return nil, fmt.Errorf("want B portal name")
	}
	head := args[0].text + "\x00" + args[1].text + "\x00"
	given, results := args[2:], ""
	if i := slices.IndexFunc(given, func(w word) bool { return w.text == "->" && !w.quoted }); i >= 0 {
		results = int16s(len(given) - i - 1)
		for _, format := range given[i+1:] {
			n, err := strconv.Atoi(format.text)
			if err != nil {
				return nil, err
			}
			results += int16s(n)
		}
		given = given[:i]
	} else {
		results = int16s(0)
	}
	formats := int16s(len(given))
	for _, value := range given {
		format := 0
		if value.binary {
			format = 1
		}
		formats += int16s(format)
	}
	return message('B', head+formats+values(given)+results), nil
}

// values is a list of parameters as Bind and FunctionCall have it.
func values(list []word) string {
	out := int16s(len(list))
	for _, value := range list {
		if value.text == "null" && !value.quoted {
			out += int32s(-1)
			continue
		}
		out += int32s(len(value.text)) + value.text
	}
	return out
}
