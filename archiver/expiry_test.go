package archiver

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// newestBefore is the newest backup that was complete at an instant: the one that a restore to it begins with.
func newestBefore(backups []repo.Backup, at time.Time) (newest repo.Backup, there bool) {
	for _, b := range backups {
		if !b.StopTime.After(at) && (!there || b.StopTime.After(newest.StopTime)) {
			newest, there = b, true
		}
	}
	return newest, there
}

func TestExpiryKeepsEveryInstantOfTheWindowRestorable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1_790_000_000, 0)
		var backups []repo.Backup
		at, lsn := now.Add(-1000*time.Hour), pg.LSN(1<<20)
		for i := range rapid.IntRange(0, 12).Draw(t, "backups") {
			at = at.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "hours")) * time.Hour)
			lsn += pg.LSN(rapid.IntRange(1, 50<<20).Draw(t, "bytes"))
			took := time.Duration(rapid.IntRange(0, 200).Draw(t, "took")) * time.Hour // they may overlap
			backups = append(backups, repo.Backup{ID: fmt.Sprint(i), Start: lsn, SegmentSize: 16 << 20, StartTime: at, StopTime: at.Add(took)})
		}
		r := Retention{Window: time.Duration(rapid.IntRange(0, 2000).Draw(t, "window")) * time.Hour, Minimum: rapid.IntRange(0, 5).Draw(t, "minimum")}
		shuffled := rapid.Permutation(backups).Draw(t, "order")
		plan := PlanExpiry(Catalogue{Backups: shuffled}, now, r)

		if len(plan.Keep)+len(plan.Expire) != len(backups) || len(plan.Keep) < min(r.Minimum, len(backups)) {
			t.Fatalf("%d of %d are kept, %d expire, the minimum is %d", len(plan.Keep), len(backups), len(plan.Expire), r.Minimum)
		}
		if len(backups) > 0 && len(plan.Keep) == 0 {
			t.Fatal("the last backup expires")
		}
		for hour := range r.Window/time.Hour + 1 {
			instant := now.Add(-hour * time.Hour)
			before, was := newestBefore(backups, instant)
			after, is := newestBefore(plan.Keep, instant)
			if was != is || was && !before.StopTime.Equal(after.StopTime) {
				t.Fatalf("%d hours ago: a restore began with %v %v, and now with %v %v", hour, before.ID, was, after.ID, is)
			}
		}
		for _, b := range plan.Keep {
			if b.Start < plan.WALFrom {
				t.Fatalf("backup %s begins at %s, and WAL is kept from %s", b.ID, b.Start, plan.WALFrom)
			}
		}
		if again := PlanExpiry(Catalogue{Backups: plan.Keep}, now, r); len(again.Expire) != 0 || again.WALFrom != plan.WALFrom {
			t.Fatalf("what was kept expires when asked again: %+v", again)
		}
		if !cmp.Equal(plan, PlanExpiry(Catalogue{Backups: backups}, now, r), cmp.AllowUnexported(Expiry{})) && distinct(backups) {
			t.Fatal("the plan depends on the order of the list")
		}
	})
}

func distinct(backups []repo.Backup) bool {
	seen := map[time.Time]bool{}
	for _, b := range backups {
		seen[b.StopTime] = true
	}
	return len(seen) == len(backups)
}

const mib = pg.SegmentSize(1 << 20)

// stocked is a repository with segments 0 to 9 of two timelines, parts, clocks and two backups, the second of which uses a pack of the
// first.
func stocked(t *testing.T) (*hooked, *repo.Repo, Expiry) {
	t.Helper()
	h, r := newStore(t)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	try(r.Bind(ctx, repo.Cluster{SystemID: 77, SegmentSize: mib}))
	try(r.PutHistory(ctx, 2, []byte("1\t0/480000\tx\n")))
	for _, tli := range []pg.Timeline{1, 2} {
		for number := range uint64(10) {
			segment := pg.Segment{Timeline: tli, Number: number}
			var b repo.StretchBuilder
			b.Add(make([]byte, mib), r.Pack(make([]byte, mib)))
			try(r.PutStretch(ctx, mib, repo.Part{Timeline: tli, Start: segment.Start(mib), End: segment.End(mib)}, time.Time{}, &b))
			try(r.PutIndex(ctx, mib, segment, repo.Index{Segment: segment.Name(mib)}))
			try(r.PutClock(ctx, tli, repo.Clock{LSN: segment.Start(mib) + 8, Time: time.Unix(1_790_000_000, 0)}))
		}
		for _, start := range []pg.LSN{0x200000, 0xA00000} {
			try(r.PutPart(ctx, mib, repo.Part{Timeline: tli, Start: start, End: start + 8}, time.Time{}, r.Pack(make([]byte, 8))))
		}
	}
	pack := func(id string, number int) repo.Pack {
		var b repo.PackBuilder
		b.Add(r.CompressExtent([]byte(id)))
		stored, err := r.PutPack(ctx, id, number, &b)
		try(err)
		return stored
	}
	old := repo.Backup{ID: "20260101T000000Z", SegmentSize: mib, Start: 0x100028, Packs: []repo.Pack{pack("20260101T000000Z", 0), pack("20260101T000000Z", 1)}}
	kept := repo.Backup{ID: "20260102T000000Z", SegmentSize: mib, Start: 0x500028, Packs: []repo.Pack{pack("20260102T000000Z", 0), old.Packs[1]}}
	for _, b := range []repo.Backup{old, kept} {
		try(r.NewManifest().Publish(ctx, b))
	}
	pack("20260103T000000Z", 0) // a backup that was never published
	return h, r, Expiry{Keep: []repo.Backup{kept}, Expire: []repo.Backup{old}, WALFrom: 0x500000}
}

func keys(t *testing.T, h *hooked) []string {
	t.Helper()
	var list []string
	for object, err := range h.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, strings.TrimPrefix(object.Key, "main/"))
	}
	return list
}

// wantAfterExpiry is what is left: nothing before 0/500000, and of the expired backup the pack that is still referred to.
func wantAfterExpiry() []string {
	want := []string{"cluster.json", "timelines/00000002.history", "backups/20260102T000000Z/manifest",
		"packs/20260101T000000Z/000001", "packs/20260102T000000Z/000000"}
	for _, tli := range []string{"00000001", "00000002"} {
		for number := 5; number < 10; number++ {
			name := fmt.Sprintf("%s/%s000000000000000%d", tli, tli, number)
			want = append(want, "wal/"+name, "index/"+name, fmt.Sprintf("clocks/%s/0000000000%X00008-%016X", tli, number, uint64(1_790_000_000_000_000)))
		}
		want = append(want, fmt.Sprintf("wal/%s/%s000000000000000A.parts/0000000000A00000-0000000000A00008", tli, tli))
	}
	slices.Sort(want)
	return want
}

func TestExpiryRemovesWhatNoKeptBackupNeedsAndNothingElse(t *testing.T) {
	h, r, plan := stocked(t)
	now := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC).Add(orphanAge - time.Second)
	if _, err := plan.CarryOut(t.Context(), r, now); err != nil {
		t.Fatal(err)
	}
	want := append(wantAfterExpiry(), "packs/20260103T000000Z/000000") // it might still be running
	slices.Sort(want)
	if diff := cmp.Diff(want, keys(t, h)); diff != "" {
		t.Error(diff)
	}
	plan.Expire = nil
	if _, err := plan.CarryOut(t.Context(), r, now.Add(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantAfterExpiry(), keys(t, h)); diff != "" {
		t.Error(diff)
	}
}

func TestExpiryThatWasKilledIsCompletedByTheNext(t *testing.T) {
	killed := errors.New("injected: killed")
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for deletions := 1; ; deletions++ {
		h, r, plan := stocked(t)
		left := deletions
		h.delete = func(string) error {
			if left--; left <= 0 {
				return killed
			}
			return nil
		}
		_, err := plan.CarryOut(t.Context(), r, now)
		if err != nil && !errors.Is(err, killed) {
			t.Fatal(err)
		}
		h.delete = nil
		if err == nil {
			if deletions < 20 {
				t.Errorf("only %d deletions", deletions)
			}
			return
		}
		// The next archiver knows only what is there.
		catalogue, err := LoadCatalogue(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		plan = PlanExpiry(catalogue, now, Retention{Minimum: 1})
		if _, err := plan.CarryOut(t.Context(), r, now); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantAfterExpiry(), keys(t, h)); diff != "" {
			t.Fatalf("killed at deletion %d: %s", deletions, diff)
		}
	}
}
