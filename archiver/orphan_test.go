package archiver

import (
	"testing"
	"time"

	"pitr/internal/repo"
)

// TestPacksOfAnInterruptedBackupStayWhileOneThatMayUseThemIsTaken lets a backup take so long that what it found young is old when it ends.
func TestPacksOfAnInterruptedBackupStayWhileOneThatMayUseThemIsTaken(t *testing.T) {
	_, r := newStore(t)
	ctx := t.Context()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	try(r.Bind(ctx, repo.Cluster{SystemID: 7, SegmentSize: 16 << 20}))
	old := now.Add(-orphanAge - time.Hour)
	builder := r.NewPack()
	builder.Add(r.CompressExtent([]byte("a page")))
	_, err := r.PutPack(ctx, old.Format(BackupIDLayout), 0, builder)
	try(err)
	left := func(what string, want int) {
		t.Helper()
		c, err := LoadCatalogue(ctx, r)
		try(err)
		_, err = PlanExpiry(c, now, Retention{Minimum: 1}).CarryOut(ctx, r, now)
		try(err)
		packs, err := r.StoredPacks(ctx)
		try(err)
		if len(packs) != want {
			t.Errorf("%s: packs of %d backups are left, want %d", what, len(packs), want)
		}
	}
	began := old.Add(orphanReuse - time.Hour)
	running := began.Format(BackupIDLayout)
	_, err = r.BeginBackup(ctx, running, repo.Running{Since: began, Bases: []string{}})
	try(err)
	left("a backup is being taken", 1)
	try(r.EndBackup(ctx, running))
	later := old.Add(orphanReuse)
	_, err = r.BeginBackup(ctx, later.Format(BackupIDLayout), repo.Running{Since: later, Bases: []string{}})
	try(err)
	left("a backup that found it too old", 0)
}

// TestABackupThatIsKeptWhileOthersAreRemovedStays keeps one while the manifest of another is removed.
func TestABackupThatIsKeptWhileOthersAreRemovedStays(t *testing.T) {
	h, r := newStore(t)
	ctx := t.Context()
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	if err := r.Bind(ctx, repo.Cluster{SystemID: 7, SegmentSize: mib}); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 3 {
		at := now.Add(time.Duration(i-10) * time.Hour)
		ids = append(ids, at.Format(BackupIDLayout))
		if err := r.NewManifest().Publish(ctx, repo.Backup{ID: ids[i], SegmentSize: mib, Start: 0x100028, Stop: 0x100100, StartTime: at, StopTime: at}); err != nil {
			t.Fatal(err)
		}
	}
	h.delete = func(key string) error {
		if key == "main/backups/"+ids[0]+"/manifest" {
			return r.PutKeep(ctx, ids[1], repo.Keep{Since: now})
		}
		return nil
	}
	c, err := LoadCatalogue(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	plan := PlanExpiry(c, now, Retention{Minimum: 1})
	if _, err := plan.CarryOut(ctx, r, now); err != nil || len(plan.Expire) != 2 {
		t.Fatalf("%d expire: %v", len(plan.Expire), err)
	}
	left, err := r.BackupIDs(ctx)
	if err != nil || len(left) != 2 || !left[ids[1]] || !left[ids[2]] {
		t.Errorf("%v are left (%v)", left, err)
	}
}
