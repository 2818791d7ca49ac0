package session

// words looks for words in SQL text that passes by in pieces, without understanding it: words that say that a statement leaves
// something behind which no CommandComplete tells of. It errs on the safe side, since text in quotes and comments counts too.
type words struct {
	word  [24]byte // the current word in lower case, cut
	n     int      // its length, which may be more
	found hint
}

// hint says what a text may do to the server's state.
type hint uint8

const (
	hintLeaves    hint = 1 << iota // it may leave temporary objects, settings or advisory locks
	hintForgets                    // it may drop prepared statements
	hintConfig                     // it may change settings by set_config
	hintUnsettles                  // it changes settings up to the end of the transaction, which may decide how a text is read
	hintFrees                      // it may drop what is only dropped on purpose: a temporary table, a lock, a cursor
)

func (w *words) reset() { *w = words{} }

func (w *words) scan(text []byte) {
	for _, c := range text {
		switch {
		case c >= 'a' && c <= 'z' || c == '_' || c >= '0' && c <= '9' || c >= 0x80 || c == '$':
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		default:
			if w.n > 0 {
				w.end()
			}
			continue
		}
		if w.n < len(w.word) {
			w.word[w.n] = c
		}
		w.n++
	}
}

// end finishes the current word; the text must end with it or with something that is no word.
func (w *words) end() hint {
	word := w.word[:min(w.n, len(w.word))]
	w.n = 0
	if len(word) < len("temp") {
		return w.found
	}
	switch string(word) {
	case "temp", "temporary":
		w.found |= hintLeaves
	case "set_config":
		w.found |= hintConfig
	case "deallocate", "discard":
		w.found |= hintForgets | hintLeaves | hintFrees
	case "drop", "close", "unlisten":
		w.found |= hintFrees
	}
	if len(word) >= len("pg_advisory_unlock") && string(word[:len("pg_advisory_unlock")]) == "pg_advisory_unlock" {
		w.found |= hintFrees
	}
	for _, prefix := range [...]string{"pg_temp", "pg_advisory_lock", "pg_try_advisory_lock"} {
		if len(word) >= len(prefix) && string(word[:len(prefix)]) == prefix {
			w.found |= hintLeaves
		}
	}
	return w.found
}

// leavesNothing reports whether a command whose CommandComplete has this tag leaves nothing in the server that outlives its
// transaction and that another client could notice. Tags that are not listed do, or might: SET, PREPARE, LISTEN, DECLARE CURSOR,
// CREATE of a temporary object, DO, CALL, LOAD. Tags are those of src/include/tcop/cmdtaglist.h.
func leavesNothing(tag []byte) bool {
	end := 0
	for end < len(tag) && tag[end] != ' ' && tag[end] != 0 {
		end++
	}
	switch string(tag[:end]) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "MOVE", "BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT",
		"RELEASE", "SHOW", "EXPLAIN", "VACUUM", "ANALYZE", "REINDEX", "CLUSTER", "CHECKPOINT", "NOTIFY", "LOCK", "TRUNCATE",
		"GRANT", "REVOKE", "COMMENT", "DROP", "REFRESH", "SET", "RESET":
		return true // of SET and RESET Session.set takes care, below of PREPARE and DEALLOCATE others
	case "DISCARD":
		return string(tag[end:]) != "\x00"
	case "DECLARE":
		return true // of what Session.carriedOut takes care
	case "PREPARE", "DEALLOCATE":
		return string(tag[end:]) != " TRANSACTION\x00"
	case "CLOSE":
		return string(tag[end:]) == " CURSOR\x00"
	}
	return false
}

// forgetsStatements reports whether a command with this tag has dropped all prepared statements.
func forgetsStatements(tag []byte) bool {
	return string(tag) == "DISCARD ALL\x00" || string(tag) == "DEALLOCATE ALL\x00"
}
