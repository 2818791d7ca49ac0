package restore

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pitr/internal/pg"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loaded, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestTargetsAreReadAsTheyAreWritten(t *testing.T) {
	berlin := zone(t, "Europe/Berlin")
	at := func(text string, zone *time.Location, want string) {
		t.Helper()
		target, err := ParseTarget(text, zone)
		if err != nil || target.Kind != AtTime || target.Time.Format(time.RFC3339Nano) != want || target.Text != text {
			t.Errorf("%q is %v (%v), want %s", text, target, err, want)
		}
	}
	at("2026-11-20 14:03:21+01:00", nil, "2026-11-20T13:03:21Z")
	at("2026-11-20T14:03:21.123456+0100", nil, "2026-11-20T13:03:21.123456Z")
	at("2026-11-20 14:03 +01", nil, "2026-11-20T13:03:00Z")
	at("2026-11-20 14:03:21Z", berlin, "2026-11-20T14:03:21Z")
	at("2026-11-20 14:03:21 UTC", nil, "2026-11-20T14:03:21Z")
	at("2026-11-20 00:15:00-00:30", nil, "2026-11-20T00:45:00Z")
	at(" 2026-11-20 14:03:21 ", berlin, "2026-11-20T13:03:21Z")
	at("2026-07-20 14:03:21", berlin, "2026-07-20T12:03:21Z")
	at("2024-02-29 23:59:59.999999+14:00", nil, "2024-02-29T09:59:59.999999Z")
	// Between the two o'clocks of these nights everything but one hour is plain.
	at("2026-03-29 01:59:59.999999", berlin, "2026-03-29T00:59:59.999999Z")
	at("2026-03-29 03:00", berlin, "2026-03-29T01:00:00Z")
	at("2026-10-25 01:59:59", berlin, "2026-10-24T23:59:59Z")
	at("2026-10-25 03:00", berlin, "2026-10-25T02:00:00Z")
	at("2026-10-25 02:30+02:00", berlin, "2026-10-25T00:30:00Z")
	at("2026-10-25 02:30+01:00", berlin, "2026-10-25T01:30:00Z")

	if target, err := ParseTarget("lsn:0/3000148", nil); err != nil || target.Kind != AtLSN || target.LSN != pg.LSN(0x3000148) {
		t.Errorf("lsn: %v (%v)", target, err)
	}
	if target, err := ParseTarget("name:before the migration", nil); err != nil || target.Kind != AtPoint || target.Name != "before the migration" {
		t.Errorf("name: %v (%v)", target, err)
	}
	if target, err := ParseTarget("latest", nil); err != nil || target.Kind != Latest {
		t.Errorf("latest: %v (%v)", target, err)
	}
}

func TestTargetsThatCouldMeanSomethingElseAreRefused(t *testing.T) {
	berlin, apia := zone(t, "Europe/Berlin"), zone(t, "Pacific/Apia")
	refused := func(text string, zone *time.Location, want string) {
		t.Helper()
		if target, err := ParseTarget(text, zone); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %v (%v), want %q", text, target, err, want)
		}
	}
	refused("2026-11-20 14:03:21", nil, "the time has no zone; add one")
	refused("2026-03-29 02:00", berlin, "the local time does not exist")
	refused("2026-03-29 02:59:59.999999", berlin, "the local time does not exist")
	refused("2026-10-25 02:00", berlin, "the local time exists twice")
	refused("2026-10-25 02:59:59.999999", berlin, "the local time exists twice")
	refused("2011-12-30 12:00", apia, "the local time does not exist") // a whole day that Samoa left out
	for _, text := range []string{"", "now", "yesterday", "14:03", "2026-11-20", "20.11.2026 14:03", "2026-11-20 14:03:21.1234567Z", "2026-11-20 14:03 CET",
		"2026-11-20 14:03:21+1", "LATEST", "2026-11-20 14:03Z; drop", "２026-11-20 14:03Z"} {
		refused(text, berlin, "is no target")
	}
	for _, text := range []string{"2026-02-30 12:00Z", "2026-13-01 12:00Z", "2026-11-20 24:00Z", "2026-11-20 23:60Z", "2026-11-20 23:59:60Z"} {
		refused(text, nil, "is no time")
	}
	for _, text := range []string{"2026-11-20 14:03+16:00", "2026-11-20 14:03+01:60"} {
		refused(text, nil, "is no offset from UTC")
	}
	refused("lsn:3000148", nil, "no slash")
	refused("lsn:", nil, "no slash")
	refused("name:", nil, "needs the name of a restore point")
}

// TestEveryInstantHasAnUnmistakableForm formats instants around the edges of clock changes: with an offset each reads back as itself; without
// one it does so too, or is refused, exactly as often as the zone's clocks show it.
func TestEveryInstantHasAnUnmistakableForm(t *testing.T) {
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu",
		"Africa/Casablanca", "Pacific/Kiritimati", "Asia/Pyongyang", "Antarctica/Troll", "America/Caracas"} {
		zones = append(zones, zone(t, name))
	}
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		at := time.Unix(rapid.Int64Range(946_684_800, 2_000_000_000).Draw(t, "second"), rapid.Int64Range(0, 999_999).Draw(t, "microsecond")*1000).In(zone)
		if _, change := at.ZoneBounds(); !change.IsZero() && rapid.Bool().Draw(t, "near a change") {
			at = change.Add(time.Duration(rapid.Int64Range(-3*3600_000_000, 3*3600_000_000).Draw(t, "from it")) * time.Microsecond).In(zone)
		}
		const layout = "2006-01-02 15:04:05.000000"
		text := at.Format(layout)
		with, err := ParseTarget(at.Format(layout+"Z07:00"), nil)
		if err != nil || !with.Time.Equal(at) {
			t.Fatalf("%s reads back as %s (%v)", at.Format(layout+"Z07:00"), with.Time, err)
		}
		// Every instant at which the clocks may show the text; offsets are multiples of a quarter of an hour here.
		wall, err := time.Parse(layout, text)
		if err != nil {
			t.Fatal(err)
		}
		shown := 0
		for offset := -14 * time.Hour; offset <= 15*time.Hour; offset += 15 * time.Minute {
			if wall.Add(-offset).In(zone).Format(layout) == text {
				shown++
			}
		}
		without, err := ParseTarget(text, zone)
		switch {
		case shown == 1 && (err != nil || !without.Time.Equal(at)):
			t.Fatalf("%s in %s is %s (%v), want %s", text, zone, without.Time, err, at)
		case shown > 1 && !errors.Is(err, ErrAmbiguous):
			t.Fatalf("%s in %s was shown %d times and is %s (%v)", text, zone, shown, without.Time, err)
		}
		// And the time that the clocks skip at the next change, if they do.
		_, before := at.Zone()
		if _, change := at.ZoneBounds(); !change.IsZero() {
			if _, after := change.Zone(); after > before {
				skipped := change.Add(time.Duration(before)*time.Second + time.Duration(rapid.Int64Range(0, int64(after-before)*1_000_000-1).Draw(t, "skipped"))*time.Microsecond)
				if _, err := ParseTarget(skipped.UTC().Format(layout), zone); !errors.Is(err, ErrNoSuch) {
					t.Fatalf("%s in %s was never shown, and is no error: %v", skipped.UTC().Format(layout), zone, err)
				}
			}
		}
	})
}
