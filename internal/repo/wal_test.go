package repo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pitr/internal/pg"
	"pitr/internal/store"
)

var segmentTwo = pg.Segment{Timeline: 1, Number: 2}

const two = pg.LSN(0x200000) // where segment 2 begins

func TestSegmentReadsBackAsWritten(t *testing.T) {
	r := newRepo(t, nil)
	putSegment(t, r, 1, 2)
	got, err := r.ReadSegment(t.Context(), mib, segmentTwo)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "segment", got, walBytes(two, two+pg.LSN(mib)))
}

func TestSegmentThatIsNeitherWholeNorInPartsIsCertainlyAbsent(t *testing.T) {
	r := newRepo(t, nil)
	putSegment(t, r, 1, 3)
	if _, err := r.ReadSegment(t.Context(), mib, segmentTwo); !errors.Is(err, ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestOpenSegmentIsReadFromOverlappingPartsAsFarAsTheyReach(t *testing.T) {
	r := newRepo(t, nil)
	read := func(want pg.LSN) {
		t.Helper()
		got, err := r.ReadSegment(t.Context(), mib, segmentTwo)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "the open segment", got, walBytes(two, want))
		inv, err := r.Inventory(t.Context(), 1, mib, 0)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Run{{two, want}}, inv.Runs()); diff != "" {
			t.Error(diff)
		}
	}
	putPart(t, r, 1, two, two+100)
	read(two + 100)
	putPart(t, r, 1, two+100, two+250)
	read(two + 250)
	// An archiver was killed after its part had arrived and before it knew; the next one cut otherwise.
	putPart(t, r, 1, two+100, two+180)
	read(two + 250)
	putPart(t, r, 1, two+180, two+300)
	read(two + 300)
	putPart(t, r, 1, two+301, two+400) // a byte is missing before it
	read(two + 300)
	putPart(t, r, 1, two+290, two+320)
	read(two + 400)
}

func TestPartsWithoutTheFirstAreDamageAndNotTheEndOfTheArchive(t *testing.T) {
	r := newRepo(t, nil)
	putPart(t, r, 1, two+100, two+200)
	if _, err := r.ReadSegment(t.Context(), mib, segmentTwo); !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotExist) {
		t.Errorf("got %v", err)
	}
	inv, err := r.Inventory(t.Context(), 1, mib, 0)
	if err != nil || len(inv.Runs()) != 0 || inv.Last() != two+200 {
		t.Errorf("runs %v, last %s, %v", inv.Runs(), inv.Last(), err)
	}
}

func TestDamagedPartIsNotReadAround(t *testing.T) {
	r := newRepo(t, nil)
	putPart(t, r, 1, two, two+100)
	putPart(t, r, 1, two+100, two+200)
	key := partKey(Part{Timeline: 1, Start: two + 100, End: two + 200}, mib)
	broken := object(t, r, key)
	broken[len(broken)-1] ^= 1
	overwrite(t, r, key, broken)
	if _, err := r.ReadSegment(t.Context(), mib, segmentTwo); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	// An object of another part under this key: its hash is right, its length is not.
	overwrite(t, r, key, seal(KindPart, clockZero, walBytes(0, 99), walBytes(0, 99), CodecNone))
	if _, err := r.ReadSegment(t.Context(), mib, segmentTwo); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

func TestPartClockIsThatOfItsPut(t *testing.T) {
	r := newRepo(t, nil)
	p := Part{Timeline: 1, Start: two, End: two + 100}
	putPart(t, r, 1, p.Start, p.End)
	if clock, err := r.PartClock(t.Context(), mib, p); err != nil || clock != (Clock{two + 100, clockZero}) {
		t.Errorf("got %v, %v", clock, err)
	}
}

// compactDuring stores a whole segment and removes its parts, as an archiver does, when the hook's condition is met for the first time.
func compactDuring(t *testing.T, at func(operation, key string) bool) *Repo {
	var r *Repo
	done, armed := false, false
	r = newRepo(t, func(s store.Store) store.Store {
		return &hooked{s, func(operation, key string) {
			if !armed || done || !at(operation, strings.TrimPrefix(key, "main/")) {
				return
			}
			done = true
			putSegment(t, r, 1, 2)
			for _, p := range []Part{{Timeline: 1, Start: two, End: two + 100}, {Timeline: 1, Start: two + 100, End: two + 200}} {
				if err := r.DeletePart(t.Context(), mib, p); err != nil {
					t.Error(err)
				}
			}
		}}
	})
	putSegment(t, r, 1, 1)
	putPart(t, r, 1, two, two+100)
	putPart(t, r, 1, two+100, two+200)
	armed = true
	t.Cleanup(func() {
		if !done {
			t.Error("the segment was never completed")
		}
	})
	return r
}

func TestReadingASegmentSurvivesItsCompletion(t *testing.T) {
	for _, operation := range []string{"list", "listed"} { // before its parts are listed; after that, before they are read
		r := compactDuring(t, func(op, _ string) bool { return op == operation })
		got, err := r.ReadSegment(t.Context(), mib, segmentTwo)
		if err != nil {
			t.Fatalf("completed when %s: %v", operation, err)
		}
		equal(t, "segment", got, walBytes(two, two+pg.LSN(mib)))
	}
}

func TestListingDoesNotMissASegmentThatIsCompletedMeanwhile(t *testing.T) {
	// The listing has passed the name of the whole segment, and its parts are gone when it comes to them.
	r := compactDuring(t, func(op, key string) bool {
		return op == "listed" && strings.HasSuffix(key, "/000000010000000000000001")
	})
	inv, err := r.Inventory(t.Context(), 1, mib, 0)
	if err != nil {
		t.Fatal(err)
	}
	if runs := inv.Runs(); len(runs) != 1 || runs[0].End < two+200 {
		t.Errorf("the log was there up to %s before the listing began, and the inventory has %v", two+200, runs)
	}
}

func TestInventoryCountsEveryObjectOnce(t *testing.T) {
	r := newRepo(t, nil)
	putSegment(t, r, 1, 1)
	putSegment(t, r, 1, 2)
	putSegment(t, r, 1, 4)
	putPart(t, r, 1, 0x500000, 0x500100)
	inv, err := r.Inventory(t.Context(), 1, mib, 0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{1, 2, 4}, inv.Segments); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Run{{0x100000, 0x300000}, {0x400000, 0x500100}}, inv.Runs()); diff != "" {
		t.Error(diff)
	}
	var bytes int64
	for object, err := range r.store.List(t.Context(), "main/wal/", "") {
		if err != nil {
			t.Fatal(err)
		}
		bytes += object.Size
	}
	if inv.Bytes != bytes || len(inv.Parts[5]) != 1 || inv.Last() != 0x500100 {
		t.Errorf("%d bytes, want %d; parts %v; last %s", inv.Bytes, bytes, inv.Parts, inv.Last())
	}
}

func TestInventoryFromAPositionHasItsSegmentAndNothingBefore(t *testing.T) {
	r := newRepo(t, nil)
	for _, number := range []uint64{0x8, 0x9, 0xA, 0xF, 0x10, 0x11, 0xFFF, 0x1000} {
		putSegment(t, r, 1, number)
		start := pg.Segment{Number: number}.Start(mib)
		putPart(t, r, 1, start, start+100)
	}
	for from, want := range map[uint64][]uint64{
		0x9: {0x9, 0xA, 0xF, 0x10, 0x11, 0xFFF, 0x1000}, 0xA: {0xA, 0xF, 0x10, 0x11, 0xFFF, 0x1000}, 0xF: {0xF, 0x10, 0x11, 0xFFF, 0x1000},
		0x10: {0x10, 0x11, 0xFFF, 0x1000}, 0x11: {0x11, 0xFFF, 0x1000}, 0x1000: {0x1000}, 0x1001: nil,
	} {
		inv, err := r.Inventory(t.Context(), 1, mib, pg.Segment{Number: from}.Start(mib)+77)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, inv.Segments); diff != "" || len(inv.Parts) != len(want) {
			t.Errorf("from %X: %s, parts of %d segments", from, diff, len(inv.Parts))
		}
	}
}

func TestStrangeObjectAmongTheWALIsAnErrorAndNotPassedOver(t *testing.T) {
	r := newRepo(t, nil)
	putSegment(t, r, 1, 1)
	overwrite(t, r, "wal/00000001/000000010000000000000002.gz", []byte("?"))
	if _, err := r.Inventory(t.Context(), 1, mib, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// slowChain is chain by the letter of docs/FORMAT.md: among the parts that begin at or before a position, the one that reaches farthest.
func slowChain(parts []Part, from pg.LSN) (reach pg.LSN) {
	for {
		best := from
		for _, part := range parts {
			if part.Start <= from {
				best = max(best, part.End)
			}
		}
		if best == from {
			return from
		}
		from = best
	}
}

func TestChainReachesAsFarAsPartsAllow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inv := &Inventory{Size: mib, Parts: map[uint64][]Part{}}
		for range rapid.IntRange(0, 30).Draw(t, "parts") {
			start := rapid.Uint64Range(0, 60).Draw(t, "start")
			inv.addPart(0, Part{Start: pg.LSN(start), End: pg.LSN(start + rapid.Uint64Range(1, 10).Draw(t, "length"))})
		}
		from := pg.LSN(rapid.Uint64Range(0, 40).Draw(t, "from"))
		at := from
		for _, part := range chain(inv.Parts[0], from) {
			if part.Start > at || part.End <= at {
				t.Fatalf("part %v does not continue %s", part, at)
			}
			at = part.End
		}
		if want := slowChain(inv.Parts[0], from); at != want {
			t.Fatalf("the chain ends at %s, the parts reach %s", at, want)
		}
	})
}

func TestDayOfPartsOfOneSegmentIsChainedInAnInstant(t *testing.T) {
	// A quiet server fills a segment in a day, and a part is cut every second.
	parts := make([]Part, 86_400)
	for i := range parts {
		parts[i] = Part{Timeline: 1, Start: two + pg.LSN(10*i), End: two + pg.LSN(10*i+10)}
	}
	begin := time.Now()
	if n := len(chain(parts, two)); n != len(parts) {
		t.Errorf("the chain has %d parts", n)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %s", took)
	}
}
