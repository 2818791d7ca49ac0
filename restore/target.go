package restore

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"pitr/internal/pg"
)

// Target is what a restore should bring back.
type Target struct {
	Kind TargetKind
	Time time.Time
	LSN  pg.LSN
	Name string
	Text string // as it was written
}

// TargetKind tells the forms of --to apart.
type TargetKind int

// The forms of --to.
const (
	Latest  TargetKind = iota // everything that is in the archive
	AtTime                    // every commit up to and including an instant
	AtLSN                     // up to and including the record that begins at, or first behind, a position
	AtPoint                   // up to a named restore point
)

// Errors of ParseTarget that a caller may want to tell apart.
var (
	ErrNoZone    = errors.New("the time has no zone")
	ErrAmbiguous = errors.New("the local time exists twice")
	ErrNoSuch    = errors.New("the local time does not exist")
)

// ParseTarget reads a value of --to. A time is written 2026-11-20 14:03:21, with a fraction if need be, and a zone behind it: Z, +01,
// +01:00 or +0100. Without one it is taken in zone; a nil zone refuses it. Local times that exist twice or never are refused.
func ParseTarget(text string, zone *time.Location) (Target, error) {
	target := Target{Text: text}
	if text == "latest" {
		return target, nil
	}
	if value, found := strings.CutPrefix(text, "lsn:"); found {
		lsn, err := pg.ParseLSN(value)
		target.Kind, target.LSN = AtLSN, lsn
		return target, err
	}
	if name, found := strings.CutPrefix(text, "name:"); found {
		if name == "" {
			return target, errors.New("name: needs the name of a restore point behind it")
		}
		target.Kind, target.Name = AtPoint, name
		return target, nil
	}
	at, err := ParseTime(text, zone)
	if errors.Is(err, ErrNoTime) {
		err = fmt.Errorf("%q is no target: write a time such as \"2026-11-20 14:03:21+01:00\", lsn:0/3000148, name:restore_point, or latest", text)
	}
	target.Kind, target.Time = AtTime, at
	return target, err
}

var timeForm = regexp.MustCompile(`^(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?) ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?$`)

// ErrNoTime says that a text has not the form of a time.
var ErrNoTime = errors.New("not a time")

// ParseTime reads an instant by the rules of ParseTarget.
func ParseTime(text string, zone *time.Location) (time.Time, error) {
	m := timeForm.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil {
		return time.Time{}, fmt.Errorf("%q is %w: write it as \"2026-11-20 14:03:21+01:00\"", text, ErrNoTime)
	}
	layout := "2006-01-02 15:04"
	if strings.Count(m[2], ":") == 2 {
		layout += ":05"
	}
	wall, err := time.Parse(layout, m[1]+" "+m[2])
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: %w", text, err)
	}
	if m[3] != "" {
		offset, err := parseOffset(m[3])
		return wall.Add(-offset).UTC(), err
	}
	if zone == nil {
		return time.Time{}, fmt.Errorf("%q: %w; add one, for example %q, or set restore.time_zone", text, ErrNoZone, text+"+00:00")
	}
	return resolveLocal(wall, zone)
}

func parseOffset(text string) (time.Duration, error) {
	if text == "Z" || text == "UTC" {
		return 0, nil
	}
	var hours, minutes int
	digits := strings.ReplaceAll(text[1:], ":", "")
	if _, err := fmt.Sscanf(digits+"00", "%2d%2d", &hours, &minutes); err != nil || hours > 15 || minutes > 59 {
		return 0, fmt.Errorf("%q is no offset from UTC", text)
	}
	offset := time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute
	if text[0] == '-' {
		offset = -offset
	}
	return offset, nil
}

// resolveLocal finds the instant at which the clocks of a zone show wall. Offsets are those in force around it.
func resolveLocal(wall time.Time, zone *time.Location) (time.Time, error) {
	found := map[int64]time.Time{}
	for _, around := range []time.Duration{-26 * time.Hour, 0, 26 * time.Hour} {
		_, offset := wall.Add(around).In(zone).Zone()
		at := wall.Add(-time.Duration(offset) * time.Second)
		if _, same := at.In(zone).Zone(); same == offset {
			found[at.UnixNano()] = at
		}
	}
	shown := wall.Format("2006-01-02 15:04:05")
	switch len(found) {
	case 0:
		return time.Time{}, fmt.Errorf("%s in %s: %w (the clocks were put forward); write it with an offset", shown, zone, ErrNoSuch)
	case 1:
		for _, at := range found {
			return at.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s in %s: %w (the clocks were put back); write it with an offset", shown, zone, ErrAmbiguous)
}
