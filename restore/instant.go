package restore

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

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
	offsets := map[int]bool{}
	for _, around := range []time.Duration{-26 * time.Hour, 0, 26 * time.Hour} {
		_, offset := wall.Add(around).In(zone).Zone()
		offsets[offset] = true
		at := wall.Add(-time.Duration(offset) * time.Second)
		if _, same := at.In(zone).Zone(); same == offset {
			found[at.UnixNano()] = at
		}
	}
	shown := wall.Format("2006-01-02 15:04:05.999999")
	switch len(found) {
	case 0:
		return time.Time{}, fmt.Errorf("%s in %s: %w (the clocks were put forward); write %s", shown, zone, ErrNoSuch, readings(wall, slices.Sorted(maps.Keys(offsets))))
	case 1:
		for _, at := range found {
			return at.UTC(), nil
		}
	}
	clear(offsets)
	for _, at := range found {
		_, offset := at.In(zone).Zone()
		offsets[offset] = true
	}
	return time.Time{}, fmt.Errorf("%s in %s: %w (the clocks were put back); write %s", shown, zone, ErrAmbiguous, readings(wall, slices.Sorted(maps.Keys(offsets))))
}

// readings are the instants that may be meant, earliest first: the greatest offset from UTC makes the earliest.
func readings(wall time.Time, offsets []int) string {
	var texts []string
	for _, offset := range slices.Backward(offsets) {
		at := wall.Add(-time.Duration(offset) * time.Second)
		texts = append(texts, fmt.Sprintf("%q", at.In(time.FixedZone("", offset)).Format("2006-01-02 15:04:05.999999-07:00")))
	}
	return strings.Join(texts, " or ")
}

var (
	agoForm = regexp.MustCompile(`^((?:\d+ ?[a-z]+ ?)+)ago$`)
	agoPart = regexp.MustCompile(`(\d+) ?([a-z]+)`)
	dayForm = regexp.MustCompile(`^(yesterday|today) (.+)$`)
)

// units of "… ago". A day is 24 hours, whatever the clocks do.
var units = map[string]time.Duration{
	"s": time.Second, "sec": time.Second, "secs": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "mins": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
}

// agoMax bounds "… ago", so that adding up does not overflow.
const agoMax = 100 * 365 * 24 * time.Hour

// parseRelative reads a time that is counted from now; ErrNoTime says that text has not the form of one.
func parseRelative(text string, zone *time.Location, now time.Time) (time.Time, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	if m := agoForm.FindStringSubmatch(text); m != nil {
		back, err := parseAgo(m[1])
		if err != nil {
			return time.Time{}, fmt.Errorf("%q: %w", text, err)
		}
		return now.Add(-back).UTC().Truncate(time.Microsecond), nil
	}
	m := dayForm.FindStringSubmatch(text)
	if m == nil {
		return time.Time{}, ErrNoTime
	}
	// Which day it is depends on the zone: that of the text, if it names one.
	clock := strings.ToUpper(m[2])
	here := zone
	if with := timeForm.FindStringSubmatch("2000-01-01 " + clock); with != nil && with[3] != "" {
		offset, err := parseOffset(with[3])
		if err != nil {
			return time.Time{}, err
		}
		here = time.FixedZone("", int(offset/time.Second))
	}
	if here == nil {
		return time.Time{}, fmt.Errorf("%q: %w; add one, for example %q, or set restore.time_zone", text, ErrNoZone, text+"+00:00")
	}
	day := now.In(here)
	if m[1] == "yesterday" {
		day = day.AddDate(0, 0, -1)
	}
	return ParseTime(day.Format("2006-01-02")+" "+clock, here)
}

func parseAgo(text string) (time.Duration, error) {
	var sum time.Duration
	for _, m := range agoPart.FindAllStringSubmatch(text, -1) {
		unit, known := units[m[2]]
		if !known {
			return 0, fmt.Errorf("%q is no unit of time: s, m, h, d and w are", m[2])
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil || n > int64(agoMax/unit) || sum+time.Duration(n)*unit > agoMax {
			return 0, errors.New("that is more than a hundred years")
		}
		sum += time.Duration(n) * unit
	}
	return sum, nil
}
