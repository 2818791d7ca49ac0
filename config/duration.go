package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span that is written with its unit: 250ms, 30s, 5m, 1h30m, 7d, 2w.
type Duration time.Duration

// D returns the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String prints the form that ParseDuration reads, with days where they are whole.
func (d Duration) String() string {
	const day = 24 * time.Hour
	if d != 0 && time.Duration(d)%day == 0 {
		return strconv.Itoa(int(time.Duration(d)/day)) + "d"
	}
	text := time.Duration(d).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

var errNoUnit = errors.New("needs a unit, for example 30s, 5m, 1h or 7d")

// ParseDuration reads what time.ParseDuration reads, and whole days (d) and weeks (w). A bare number is an error, 0 is not.
func ParseDuration(text string) (Duration, error) {
	if text == "0" {
		return 0, nil
	}
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return 0, errNoUnit
	}
	for unit, span := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		count, found := strings.CutSuffix(text, unit)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(count, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("is not a number of %s: write 7d, 30s, 5m or 1h30m", unit)
		}
		return Duration(time.Duration(n) * span), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errors.New("is not a duration: write 30s, 5m, 1h30m or 7d")
	}
	return Duration(d), nil
}

func (d *Duration) set(text string) error {
	parsed, err := ParseDuration(text)
	if err == nil {
		*d = parsed
	}
	return err
}
