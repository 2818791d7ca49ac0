package pgwire

import "encoding/binary"

// AppendHeader appends a header for a body of n bytes.
func AppendHeader(out []byte, kind byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(out, kind), uint32(n+4))
}

// AppendEmpty appends a message without a body: Sync, Flush, ParseComplete, CloseComplete and their like.
func AppendEmpty(out []byte, kind byte) []byte { return AppendHeader(out, kind, 0) }

// AppendQuery appends a simple Query. The text must not contain a zero byte.
func AppendQuery(out []byte, text string) []byte {
	out = AppendHeader(out, Query, len(text)+1)
	return append(append(out, text...), 0)
}

// AppendParse appends a Parse of the statement name; tail is what follows the name: the text, and the parameter types.
func AppendParse(out []byte, name, tail string) []byte {
	out = AppendHeader(out, Parse, len(name)+1+len(tail))
	out = append(append(out, name...), 0)
	return append(out, tail...)
}

// AppendNamed appends a Close or Describe of the statement name.
func AppendNamed(out []byte, kind byte, name string) []byte {
	out = AppendHeader(out, kind, 1+len(name)+1)
	return append(append(append(out, 'S'), name...), 0)
}

// AppendReady appends ReadyForQuery with a transaction state.
func AppendReady(out []byte, state byte) []byte {
	return append(AppendHeader(out, ReadyForQuery, 1), state)
}

// AppendParameterStatus appends ParameterStatus.
func AppendParameterStatus(out []byte, p Param) []byte {
	out = AppendHeader(out, ParameterStatus, len(p.Name)+1+len(p.Value)+1)
	out = append(append(out, p.Name...), 0)
	return append(append(out, p.Value...), 0)
}

// Failure is an error as a client gets it: the fields of ErrorResponse that every client reads. Code is an SQLSTATE.
type Failure struct {
	Severity string
	Code     string
	Message  string
	Hint     string
}

func (f *Failure) Error() string { return f.Severity + ": " + f.Message + " (SQLSTATE " + f.Code + ")" }

// Fatal returns a failure that ends the connection.
func Fatal(code, message string) *Failure {
	return &Failure{Severity: "FATAL", Code: code, Message: message}
}

// AppendError appends ErrorResponse. The field letters are PG_DIAG_* in src/include/postgres_ext.h.
func AppendError(out []byte, f *Failure) []byte {
	start := len(out)
	out = AppendHeader(out, ErrorResponse, 0)
	for _, field := range [...]struct {
		letter byte
		value  string
	}{{'S', f.Severity}, {'V', f.Severity}, {'C', f.Code}, {'M', f.Message}, {'H', f.Hint}} {
		if field.value != "" {
			out = append(append(append(out, field.letter), field.value...), 0)
		}
	}
	out = append(out, 0)
	binary.BigEndian.PutUint32(out[start+1:], uint32(len(out)-start-1))
	return out
}

// ErrorField returns the field of an ErrorResponse's body that has this letter, "" when there is none.
func ErrorField(body []byte, letter byte) string {
	for len(body) > 1 {
		value := body[1:]
		end := 0
		for end < len(value) && value[end] != 0 {
			end++
		}
		if body[0] == letter {
			return string(value[:end])
		}
		body = value[min(end+1, len(value)):]
	}
	return ""
}

// AppendCancel appends a CancelRequest, which has no type.
func AppendCancel(out []byte, process uint32, secret []byte) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(4+4+4+len(secret)))
	out = binary.BigEndian.AppendUint32(out, cancelRequestCode)
	return append(binary.BigEndian.AppendUint32(out, process), secret...)
}
