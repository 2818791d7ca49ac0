package archiver

import (
	"testing"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// TestBackupOfADeadBranchCoversNoGap: a recovery from it does not come to what the server writes now.
func TestBackupOfADeadBranchCoversNoGap(t *testing.T) {
	a, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	covers := func(what string, want bool, backups ...repo.Backup) {
		t.Helper()
		a.noteBackups(backups)
		if a.exposed() == want || a.Stats().Exposed.IsZero() != want {
			t.Errorf("%s: exposed %v, since %v", what, a.exposed(), a.Stats().Exposed)
		}
	}
	early := repo.Backup{Timeline: 1, Start: 0x100, Stop: 0x200}
	late := repo.Backup{Timeline: 1, Start: 0x500, Stop: 0x600}
	behind := repo.Backup{Timeline: 2, Start: 0x480, Stop: 0x490}
	a.setWay(way{tip: 1})
	covers("without a gap", true, early)
	a.noteGap(0x400)
	covers("a gap behind the only backup", false, early)
	covers("a backup behind the gap", true, early, late)
	a.setWay(way{tip: 2, history: pg.History{{Timeline: 1, Switch: 0x300}}})
	covers("a gap on the branch that was left", true, early, late)
	a.noteGap(0x450)
	covers("a backup on the branch that was left", false, early, late)
	covers("a backup behind the gap", true, early, late, behind)
	a.setWay(way{tip: 3, history: pg.History{{Timeline: 1, Switch: 0x300}, {Timeline: 2, Switch: 0x470}}})
	covers("a gap on the way, and a backup that is not", false, early, late, behind)
}
