package restore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestADiskThatFillsUpDuringARestoreLeavesNothingThatStarts has others fill the file system, more and more of it, behind the check of free space.
func TestADiskThatFillsUpDuringARestoreLeavesNothingThatStarts(t *testing.T) {
	r, _, plan := smallBackup(t)
	const page = 4096
	disk := smallDisk(t, 1<<20)
	failed, whole := 0, 0
	for spare := 0; spare <= 220; spare += 11 {
		dir := filepath.Join(disk, fmt.Sprintf("data%d", spare))
		opt := into(dir)
		filled := filepath.Join(disk, "others")
		opt.Own = func(string) error { return nil }
		opt.Progress = nil
		opt.Tablespaces = map[string]string{"16400": newDir(t) + "-space"}
		if err := fill(filled, spare*page); err != nil {
			t.Fatal(err)
		}
		// The check of free space is not what is tested here.
		m, err := r.ReadManifest(t.Context(), plan.BackupID)
		if err != nil {
			t.Fatal(err)
		}
		l, err := newLayout(dir, m, opt.Tablespaces, false)
		if err != nil {
			t.Fatal(err)
		}
		opt.Dir = dir
		_, err = carryOut(t.Context(), r, plan, m, l, opt)
		if err != nil {
			failed++
			if !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("with %d pages taken: %v", spare, err)
			}
			notStartable(t, fmt.Sprintf("with %d pages taken", spare), dir)
			remove(t, filled)
			if _, err := carryOut(t.Context(), r, plan, m, l, opt); err != nil {
				t.Fatalf("with room the restore fails: %v", err)
			}
		} else {
			whole++
		}
		if err := isWhole(dir); err != nil {
			t.Errorf("with %d pages taken: %v", spare, err)
		}
		remove(t, dir)
	}
	if failed == 0 || whole == 0 {
		t.Errorf("%d restores failed, %d did not: the test shows nothing", failed, whole)
	}
}

// fill makes a file of so many bytes that takes as much room.
func fill(path string, size int) error { return os.WriteFile(path, make([]byte, size), 0o600) }
