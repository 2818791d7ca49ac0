package restore

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"pitr/internal/pg"
)

// Target is what a restore should bring back.
type Target struct {
	Kind     TargetKind
	Time     time.Time
	LSN      pg.LSN
	Name     string
	XID      uint32
	Relation string
	Text     string // as it was written; of a relative time with the instant that it means
}

// TargetKind tells the forms of a target apart.
type TargetKind int

// The forms of --to, and of --before-drop and --before-xid.
const (
	Latest     TargetKind = iota // everything that is in the archive
	AtTime                       // every commit up to and including an instant
	AtLSN                        // up to and including the record that begins at, or first behind, a position
	AtPoint                      // up to a named restore point
	AtXID                        // up to and including the end of a transaction, or of the one that a subtransaction belongs to
	BeforeXID                    // up to that end, without it
	BeforeDrop                   // up to the commit that drops a relation, without it
)

// Errors of ParseTarget that a caller may want to tell apart.
var (
	ErrNoZone    = errors.New("the time has no zone")
	ErrAmbiguous = errors.New("the local time exists twice")
	ErrNoSuch    = errors.New("the local time does not exist")
)

// ParseTarget reads a value of --to, now by this machine's clock.
func ParseTarget(text string, zone *time.Location) (Target, error) {
	return ParseTargetAt(text, zone, time.Now())
}

// ParseTargetAt reads a value of --to. A time is written 2026-11-20 14:03:21, with a fraction if need be, and a zone behind it: Z, +01,
// +01:00 or +0100. Without one it is taken in zone; a nil zone refuses it. Local times that exist twice or never are refused. Relative times,
// such as "5 minutes ago" and "yesterday 14:00+01:00", are counted from now.
func ParseTargetAt(text string, zone *time.Location, now time.Time) (Target, error) {
	target := Target{Text: text}
	if text == "latest" {
		return target, nil
	}
	if value, found := strings.CutPrefix(text, "lsn:"); found {
		lsn, err := pg.ParseLSN(value)
		target.Kind, target.LSN = AtLSN, lsn
		return target, err
	}
	if value, found := strings.CutPrefix(text, "xid:"); found {
		xid, err := ParseXID(value)
		target.Kind, target.XID = AtXID, xid
		return target, err
	}
	if name, found := strings.CutPrefix(text, "name:"); found {
		if name == "" {
			return target, errors.New("name: needs the name of a restore point behind it")
		}
		target.Kind, target.Name = AtPoint, name
		return target, nil
	}
	target.Kind = AtTime
	at, err := parseRelative(text, zone, now)
	if err == nil {
		target.Time, target.Text = at, fmt.Sprintf("%s (%s)", text, at.Format("2006-01-02 15:04:05Z07:00"))
		return target, nil
	}
	if !errors.Is(err, ErrNoTime) {
		return target, err
	}
	if at, err = ParseTime(text, zone); errors.Is(err, ErrNoTime) {
		err = fmt.Errorf("%q is no target: write a time such as \"2026-11-20 14:03:21+01:00\" or \"5 minutes ago\", lsn:0/3000148, xid:4711, name:restore_point, or latest", text)
	}
	target.Time = at
	return target, err
}

// firstNormalXID is FirstNormalTransactionId of src/include/access/transam.h.
const firstNormalXID = 3

// ParseXID reads a transaction id: the 32 bits that the WAL has, or the 64 of pg_current_xact_id, whose upper half the WAL does not tell.
func ParseXID(text string) (uint32, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil || uint32(id) < firstNormalXID {
		return 0, fmt.Errorf("%q is no transaction id", text)
	}
	return uint32(id), nil
}

// BeforeTransaction is the target just before a transaction ends.
func BeforeTransaction(xid uint32) Target {
	return Target{Kind: BeforeXID, XID: xid, Text: fmt.Sprintf("before xid:%d", xid)}
}

// BeforeDropOf is the target just before a relation is dropped: name, schema.name or database.schema.name.
func BeforeDropOf(relation string) Target {
	return Target{Kind: BeforeDrop, Relation: relation, Text: "before the drop of " + relation}
}
