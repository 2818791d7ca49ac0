package archiver

import (
	"errors"
	"testing"
	"time"

	"pitr/internal/repo"
)

// TestBackupsThatBeginInOneSecondDoNotMeet lets others have begun in the seconds around.
func TestBackupsThatBeginInOneSecondDoNotMeet(t *testing.T) {
	b := newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	begin := func(at time.Time, since time.Time) error {
		_, err := b.repo.BeginBackup(t.Context(), at.UTC().Format(BackupIDLayout), repo.Running{Since: since.UTC(), Bases: []string{}})
		return err
	}
	now := time.Now()
	const others = 60
	for i := range others {
		if err := begin(now.Add(time.Duration(i)*time.Second), now); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin(now, now); err != nil {
		t.Errorf("the same mark again: %v", err)
	}
	if err := begin(now, now.Add(time.Microsecond)); !errors.Is(err, repo.ErrBegun) {
		t.Errorf("another's id: %v", err)
	}
	backup := b.backup()
	running, err := b.repo.RunningBackups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, taken := running[backup.ID]; taken || len(running) != others {
		t.Errorf("backup %s was taken, and %d marks of others are left of %d", backup.ID, len(running), others)
	}
}
