package repo

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/pg"
	"pitr/internal/store"
)

// forked is a repository with segments 1 to 3 of timeline 1, which was left at 0/280000, within segment 2.
func forked(t *testing.T) *Repo {
	t.Helper()
	r := newRepo(t, nil)
	for number := range uint64(3) {
		putSegment(t, r, 1, number+1)
	}
	if err := r.PutHistory(t.Context(), 2, []byte("1\t0/280000\tno recovery target specified\n")); err != nil {
		t.Fatal(err)
	}
	return r
}

const fork = pg.LSN(0x280000)

func path(t *testing.T, r *Repo, tip pg.Timeline, from pg.LSN) *Path {
	t.Helper()
	p, err := r.Path(t.Context(), tip, mib, from)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPathOfATimelineWithoutWALEndsWhereItsAncestorWasLeft(t *testing.T) {
	r := forked(t)
	p := path(t, r, 2, 0x100000)
	if p.Frontier(0x100000) != fork || p.Last() != fork {
		t.Errorf("frontier %s, last %s, want both at %s", p.Frontier(0x100000), p.Last(), fork)
	}
	want := []pg.Segment{{Timeline: 1, Number: 1}, {Timeline: 1, Number: 2}}
	if diff := cmp.Diff(want, p.Segments(0x100000, 0x400000)); diff != "" {
		t.Error(diff)
	}
	// The dead branch of timeline 1 reaches farther on its own path only.
	if p := path(t, r, 1, 0x100000); p.Frontier(0x100000) != 0x400000 {
		t.Errorf("on timeline 1 the frontier is %s", p.Frontier(0x100000))
	}
}

func TestSegmentOfTheForkIsReadFromTheNewestTimelineThatHasIt(t *testing.T) {
	r := forked(t)
	putPart(t, r, 2, 0x200000, 0x270000) // the copy of the ancestor's bytes, not up to the fork yet
	p := path(t, r, 2, 0x100000)
	if p.Frontier(0x100000) != fork {
		t.Errorf("frontier %s, want %s: the ancestor has the rest", p.Frontier(0x100000), fork)
	}
	putPart(t, r, 2, 0x270000, 0x2C0000)
	p = path(t, r, 2, 0x100000)
	if p.Frontier(0x100000) != 0x2C0000 {
		t.Errorf("frontier %s", p.Frontier(0x100000))
	}
	want := []pg.Segment{{Timeline: 1, Number: 1}, {Timeline: 2, Number: 2}}
	if diff := cmp.Diff(want, p.Segments(0x100000, 0x2C0000)); diff != "" {
		t.Error(diff)
	}
	if _, ok, err := r.IndexOf(t.Context(), p, pg.Segment{Timeline: 1, Number: 2}); ok || err != nil {
		t.Errorf("the index of a segment that the path leaves is used: %v, %v", ok, err)
	}
}

func TestPathOverSeveralTimelinesKnowsItsBounds(t *testing.T) {
	r := forked(t)
	if err := r.PutHistory(t.Context(), 5, []byte("1\t0/280000\tx\n2\t0/300000\tat a boundary\n")); err != nil {
		t.Fatal(err)
	}
	putSegment(t, r, 2, 2)
	putSegment(t, r, 2, 3) // behind the point at which timeline 2 was left
	putPart(t, r, 5, 0x300000, 0x300100)
	p := path(t, r, 5, 0x100000)
	if p.Frontier(0x100000) != 0x300100 || p.Last() != 0x300100 {
		t.Errorf("frontier %s, last %s", p.Frontier(0x100000), p.Last())
	}
	want := []pg.Segment{{Timeline: 1, Number: 1}, {Timeline: 2, Number: 2}, {Timeline: 5, Number: 3}}
	if diff := cmp.Diff(want, p.Segments(0x100000, 0x400000)); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		tli  pg.Timeline
		lsn  pg.LSN
		want bool
	}{{1, fork, true}, {1, fork + 1, false}, {2, 0x300000, true}, {2, 0x300001, false}, {5, 0xFFFF_0000_0000, true}, {3, 0x100000, false}} {
		if p.Contains(c.tli, c.lsn) != c.want {
			t.Errorf("timeline %d at %s: not %v", c.tli, c.lsn, c.want)
		}
	}
	// From behind a fork on, what lies before it is not even listed.
	if p := path(t, r, 5, 0x300000); p.Inventory(1) != nil || p.Inventory(2) != nil || p.Frontier(0x300000) != 0x300100 {
		t.Errorf("inventories %v, %v; frontier %s", p.Inventory(1), p.Inventory(2), p.Frontier(0x300000))
	}
	timelines, err := r.Timelines(t.Context())
	if diff := cmp.Diff([]pg.Timeline{1, 2, 5}, timelines); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestGapEndsTheFrontierAndShowsInWhatIsLast(t *testing.T) {
	r := forked(t)
	remove(t, r, segmentKey(pg.Segment{Timeline: 1, Number: 2}, mib))
	p := path(t, r, 1, 0x100000)
	if p.Frontier(0x100000) != 0x200000 || p.Last() != 0x400000 || p.Frontier(0x210000) != 0x210000 {
		t.Errorf("frontier %s, last %s, from within the gap %s", p.Frontier(0x100000), p.Last(), p.Frontier(0x210000))
	}
	if n := len(p.Segments(0x100000, 0x400000)); n != 1 {
		t.Errorf("%d segments before the gap", n)
	}
}

func TestHistoryThatIsAbsentIsNoHistory(t *testing.T) {
	r := forked(t)
	if _, err := r.Path(t.Context(), 3, mib, 0); !errors.Is(err, ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if err := r.PutHistory(t.Context(), 3, []byte("4\t0/280000\tfrom the future\n")); err == nil {
		t.Error("a history that cannot be was stored")
	}
}

func TestReadWALPassesEveryByteOfThePathOnce(t *testing.T) {
	r := forked(t)
	putPart(t, r, 2, 0x200000, 0x270000)
	putPart(t, r, 2, 0x270000, 0x2C0000)
	p := path(t, r, 2, 0x100000)
	var got []byte
	next := pg.LSN(0x100123)
	err := r.ReadWAL(t.Context(), p, next, 0x900000, func(at pg.LSN, content []byte) error {
		if at != next {
			t.Errorf("bytes from %s, expected %s", at, next)
		}
		next += pg.LSN(len(content))
		got = append(got, content...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the path", got, walBytes(0x100123, 0x2C0000))

	visits := 0
	err = r.ReadWAL(t.Context(), p, 0x100000, 0x2C0000, func(pg.LSN, []byte) error { visits++; return ErrStop })
	if err != nil || visits != 1 {
		t.Errorf("after ErrStop: %d visits, %v", visits, err)
	}
	remove(t, r, partKey(Part{Timeline: 2, Start: 0x270000, End: 0x2C0000}, mib))
	err = r.ReadWAL(t.Context(), p, 0x200000, 0x2C0000, func(pg.LSN, []byte) error { return nil })
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("what was listed has gone: %v", err)
	}
}

func TestStoreThatCannotTellIsNeverAnAbsence(t *testing.T) {
	down := errors.New("503 SlowDown")
	r := newRepo(t, func(s store.Store) store.Store { return failing{s, down} })
	for what, err := range map[string]error{
		"segment":   second(r.ReadSegment(t.Context(), mib, segmentTwo)),
		"history":   second(r.History(t.Context(), 2)),
		"path":      second(r.Path(t.Context(), 1, mib, 0)),
		"cluster":   second(r.Cluster(t.Context())),
		"backups":   second(r.Backups(t.Context())),
		"index":     second(r.ReadIndex(t.Context(), mib, segmentTwo)),
		"timelines": second(r.Timelines(t.Context())),
		"clocks":    second(r.Clocks(t.Context(), 1)),
	} {
		if !errors.Is(err, down) || errors.Is(err, ErrNotExist) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
