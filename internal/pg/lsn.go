// Package pg owns the words in which Postgres speaks of positions: LSN, timeline, segment, history, system identifier, and its
// clock. It is pure: nothing here touches a file, a socket or the time. The formats are those of the PostgreSQL source.
package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the write-ahead log: a byte offset since the cluster was made. Zero is invalid (InvalidXLogRecPtr).
type LSN uint64

// String prints the usual form, two hexadecimal halves: 16/B374D848.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// ParseLSN reads the form that String prints (pg_lsn_in in src/backend/utils/adt/pg_lsn.c): up to eight digits on either side.
func ParseLSN(text string) (LSN, error) {
	high, low, found := strings.Cut(text, "/")
	if !found {
		return 0, fmt.Errorf("parse LSN %q: no slash, an LSN looks like 16/B374D848", text)
	}
	h, err1 := parseHex(high, 8)
	l, err2 := parseHex(low, 8)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("parse LSN %q: not two hexadecimal numbers of up to eight digits", text)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText is String, so that JSON shows positions as people know them.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is ParseLSN.
func (l *LSN) UnmarshalText(text []byte) error {
	lsn, err := ParseLSN(string(text))
	*l = lsn
	return err
}

// Hex prints sixteen digits, so that the order of names is the order of positions.
func (l LSN) Hex() string { return fmt.Sprintf("%016X", uint64(l)) }

// ParseLSNHex reads what Hex prints.
func ParseLSNHex(text string) (LSN, error) {
	if len(text) != 16 || strings.ToUpper(text) != text {
		return 0, fmt.Errorf("parse LSN %q: not sixteen upper-case hexadecimal digits", text)
	}
	v, err := parseHex(text, 16)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: not sixteen hexadecimal digits", text)
	}
	return LSN(v), nil
}

// parseHex is strconv.ParseUint without the sign, underscore and empty forms.
func parseHex(text string, digits int) (uint64, error) {
	if len(text) == 0 || len(text) > digits {
		return 0, strconv.ErrSyntax
	}
	for _, c := range []byte(text) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return 0, strconv.ErrSyntax
		}
	}
	return strconv.ParseUint(text, 16, 64)
}

// SystemID is the system identifier that initdb gives a cluster (ControlFileData.system_identifier); it prints as decimal.
type SystemID uint64

func (s SystemID) String() string { return strconv.FormatUint(uint64(s), 10) }

// ParseSystemID reads the decimal form. Zero is no identifier.
func ParseSystemID(text string) (SystemID, error) {
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil || v == 0 {
		return 0, fmt.Errorf("parse system identifier %q: not a positive number", text)
	}
	return SystemID(v), nil
}
