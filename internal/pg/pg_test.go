package pg

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestLSNRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lsn := LSN(rapid.Uint64().Draw(t, "lsn"))
		if got, err := ParseLSN(lsn.String()); err != nil || got != lsn {
			t.Fatalf("ParseLSN(%s) = %s, %v", lsn, got, err)
		}
		if got, err := ParseLSNHex(lsn.Hex()); err != nil || got != lsn {
			t.Fatalf("ParseLSNHex(%s) = %s, %v", lsn.Hex(), got, err)
		}
	})
}

func TestLSNRefusesWhatIsNone(t *testing.T) {
	for _, text := range []string{"", "/", "0/", "/0", "123456789/0", "0/-1", "0/+1", "0x1/0", "0 /0", "0/0/0", "0/1_0"} {
		if lsn, err := ParseLSN(text); err == nil {
			t.Errorf("ParseLSN(%q) = %s, want an error", text, lsn)
		}
	}
}

func TestSegmentNamesFollowPostgres(t *testing.T) {
	check := func(size SegmentSize, tli Timeline, lsn, want string) {
		t.Helper()
		at, err := ParseLSN(lsn)
		if err != nil {
			t.Fatal(err)
		}
		segment := size.Segment(tli, at)
		if got := segment.Name(size); got != want {
			t.Errorf("%s on %d with %d bytes: %s, want %s", lsn, tli, size, got, want)
		}
		if back, err := ParseSegmentName(want, size); err != nil || back != segment {
			t.Errorf("ParseSegmentName(%s) = %v, %v; want %v", want, back, err, segment)
		}
	}
	check(16<<20, 1, "0/1000000", "000000010000000000000001")
	check(16<<20, 1, "0/1FFFFFF", "000000010000000000000001")
	check(16<<20, 0x1A, "16/B374D848", "0000001A00000016000000B3")
	check(1<<20, 1, "1/0", "000000010000000100000000")
	check(1<<30, 2, "1/C0000000", "000000020000000100000003")
}

func TestSegmentNamesThatCannotBeAreRefused(t *testing.T) {
	for _, name := range []string{"", "00000001000000000000000", "000000010000000000000001.partial", "00000001000000000000000g",
		"00000001000000000000000a", "000000000000000000000001", "000000010000000000000100"} {
		if segment, err := ParseSegmentName(name, 16<<20); err == nil {
			t.Errorf("ParseSegmentName(%q) = %v, want an error", name, segment)
		}
	}
}

func TestHistoryNamesTheOwnerOfEachByte(t *testing.T) {
	content := "1\t0/3000158\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore 2000-01-01\n"
	history, err := ParseHistory(3, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(History{{1, 0x3000158}, {2, 0x5000000}}, history); diff != "" {
		t.Fatal(diff)
	}
	owner := func(lsn LSN, want Timeline) {
		t.Helper()
		if got := history.TimelineAt(3, lsn); got != want {
			t.Errorf("TimelineAt(%s) = %d, want %d", lsn, got, want)
		}
	}
	owner(0x3000157, 1)
	owner(0x3000158, 2)
	owner(0x4FFFFFF, 2)
	owner(0x5000000, 3)
	if got := history.SegmentAt(3, 0x3000000, 16<<20); got != (Segment{2, 3}) {
		t.Errorf("the segment of a switch is read from %v, want timeline 2", got)
	}
	if got := history.SegmentAt(3, 0x4000000, 16<<20); got != (Segment{2, 4}) {
		t.Errorf("segment 4 is read from %v: the switch lies behind its last byte", got)
	}
	if begin := history.Begin(3, 2); begin != 0x3000158 {
		t.Errorf("timeline 2 begins at %s", begin)
	}
	if begin := history.Begin(3, 3); begin != 0x5000000 {
		t.Errorf("timeline 3 begins at %s", begin)
	}
}

func TestHistoryRefusesDisorder(t *testing.T) {
	for _, content := range []string{"2\t0/1\tx\n1\t0/2\tx\n", "x 0/1", "1", "1 zero", "3 0/1", "0 0/1"} {
		if history, err := ParseHistory(3, []byte(content)); err == nil {
			t.Errorf("ParseHistory(%q) = %v, want an error", content, history)
		}
	}
}

func TestSegmentSizesAreThoseOfShow(t *testing.T) {
	for text, want := range map[string]SegmentSize{"16MB": 16 << 20, "1GB": 1 << 30, "1MB": 1 << 20, "16777216": 16 << 20} {
		if got, err := ParseSegmentSize(text); err != nil || got != want {
			t.Errorf("ParseSegmentSize(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "16", "3MB", "2GB", "MB", "-16MB"} {
		if got, err := ParseSegmentSize(text); err == nil {
			t.Errorf("ParseSegmentSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestClockStartsAtPostgresEpoch(t *testing.T) {
	if got := Time(0); !got.Equal(Epoch) {
		t.Errorf("Time(0) = %s", got)
	}
	now := time.Date(2026, 11, 20, 14, 3, 21, 123456000, time.UTC)
	if got := Time(Micros(now)); !got.Equal(now) {
		t.Errorf("%s came back as %s", now, got)
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte("1\t0/3000158\tno recovery target specified\n")) // what Postgres writes
	f.Add([]byte("# only a comment\n"))                           // an empty history
	f.Add([]byte("1 0/1\n1 0/2\n"))                               // the same ancestor twice
	f.Fuzz(func(t *testing.T, content []byte) {
		history, err := ParseHistory(9, content)
		for i := 1; err == nil && i < len(history); i++ {
			if history[i].Timeline <= history[i-1].Timeline {
				t.Fatalf("disorder in %v", history)
			}
		}
	})
}
