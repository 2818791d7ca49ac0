package restore

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRelativeTimesAreCountedFromNow(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	now := time.Date(2026, 11, 20, 23, 30, 0, 123456789, time.UTC) // in Berlin it is the 21st
	at := func(text string, zone *time.Location, want string) {
		t.Helper()
		target, err := ParseTargetAt(text, zone, now)
		if err != nil || target.Kind != AtTime || target.Time.Format(time.RFC3339Nano) != want || !strings.HasPrefix(target.Text, text+" (20") {
			t.Errorf("%q is %+v (%v), want %s", text, target, err, want)
		}
	}
	at("5 minutes ago", nil, "2026-11-20T23:25:00.123456Z")
	at("2h ago", nil, "2026-11-20T21:30:00.123456Z")
	at("1h30m ago", nil, "2026-11-20T22:00:00.123456Z")
	at("1 day 2 hours ago", nil, "2026-11-19T21:30:00.123456Z")
	at("3w ago", nil, "2026-10-30T23:30:00.123456Z")
	at("yesterday 14:00+01:00", nil, "2026-11-20T13:00:00Z") // there it is the 21st
	at("yesterday 14:00Z", berlin, "2026-11-19T14:00:00Z")   // the zone that is written decides
	at("yesterday 14:00", berlin, "2026-11-20T13:00:00Z")
	at("today 00:15:30.5", berlin, "2026-11-20T23:15:30.5Z")
	at("Today 14:00 UTC", nil, "2026-11-20T14:00:00Z")

	refused := func(text string, zone *time.Location, is error, want string) {
		t.Helper()
		if target, err := ParseTargetAt(text, zone, now); err == nil || is != nil && !errors.Is(err, is) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %+v (%v), want an error with %q", text, target, err, want)
		}
	}
	refused("yesterday 14:00", nil, ErrNoZone, "yesterday 14:00+00:00")
	refused("yesterday", berlin, nil, "is no target")
	refused("yesterday noon", berlin, nil, "is no target")
	refused("5 fortnights ago", nil, nil, `"fortnights" is no unit of time`)
	refused("99999999999999999999 h ago", nil, nil, "a hundred years")
	refused("99999 w ago", nil, nil, "a hundred years")
	refused("minutes ago", nil, nil, "is no target")
	refused("today 02:30+99:00", nil, nil, "no offset")
	// The night in which the clocks are put back, a day later.
	night := time.Date(2026, 10, 26, 12, 0, 0, 0, time.UTC)
	if _, err := ParseTargetAt("yesterday 02:30", berlin, night); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("an hour that exists twice: %v", err)
	}
}

func TestLocalTimesThatAreNotPlainAreRefusedWithBothReadings(t *testing.T) {
	refused := func(text, place string, is error, first, second string) {
		t.Helper()
		_, err := ParseTarget(text, zone(t, place))
		if !errors.Is(err, is) || !strings.Contains(err.Error(), `"`+first+`" or "`+second+`"`) {
			t.Errorf("%q in %s: %v, want %q or %q", text, place, err, first, second)
		}
		a, err1 := ParseTime(first, nil)
		b, err2 := ParseTime(second, nil)
		if err := errors.Join(err1, err2); err != nil || !a.Before(b) {
			t.Errorf("%s and %s are no two instants in order (%v)", first, second, err)
		}
	}
	refused("2026-10-25 02:30:00.25", "Europe/Berlin", ErrAmbiguous, "2026-10-25 02:30:00.25+02:00", "2026-10-25 02:30:00.25+01:00")
	refused("2026-03-29 02:30", "Europe/Berlin", ErrNoSuch, "2026-03-29 02:30:00+02:00", "2026-03-29 02:30:00+01:00")
	refused("2026-11-01 01:15", "America/New_York", ErrAmbiguous, "2026-11-01 01:15:00-04:00", "2026-11-01 01:15:00-05:00")
	refused("2026-04-05 01:45", "Australia/Lord_Howe", ErrAmbiguous, "2026-04-05 01:45:00+11:00", "2026-04-05 01:45:00+10:30")
}

func TestTransactionIDsAreReadAsPostgresShowsThem(t *testing.T) {
	for text, want := range map[string]uint32{"4711": 4711, "4294967295": 4294967295, "4294972007": 4711} {
		if target, err := ParseTarget("xid:"+text, nil); err != nil || target.Kind != AtXID || target.XID != want {
			t.Errorf("xid:%s is %+v (%v), want %d", text, target, err, want)
		}
	}
	for _, text := range []string{"", "0", "2", "-5", "4711x", "4294967296"} {
		if target, err := ParseTarget("xid:"+text, nil); err == nil {
			t.Errorf("xid:%s is taken for %d", text, target.XID)
		}
	}
}
