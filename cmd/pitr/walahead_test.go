package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestAFetchThatRunsOutOfMemoryIsNoEndOfTheArchive lets a segment in the spool be larger than memory, where it has to be copied to another file
// system: nothing of the program is set up yet at that point, and what Go ends a program with, exit code 2, would have Postgres promote (law 6).
func TestAFetchThatRunsOutOfMemoryIsNoEndOfTheArchive(t *testing.T) {
	const name = "000000010000000000000001"
	bin, err := buildBinaries()
	if err != nil {
		t.Fatal(err)
	}
	data := t.TempDir()
	elsewhere, err := os.MkdirTemp("/dev/shm", "pitr-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(elsewhere); err != nil {
			t.Error(err)
		}
	})
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(string(boot), "-")
	spool := filepath.Join(data, "pgsql_tmp_pitr_wal_"+id)
	err = errors.Join(os.Symlink(elsewhere, filepath.Join(data, "pg_wal")), os.WriteFile(filepath.Join(data, "recovery.signal"), nil, 0o600),
		os.WriteFile(filepath.Join(data, "postmaster.pid"), fmt.Appendln(nil, os.Getpid()), 0o600), os.Mkdir(spool, 0o700),
		os.WriteFile(filepath.Join(spool, name), nil, 0o600), os.Truncate(filepath.Join(spool, name), 64<<30))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -c 0; ulimit -v 8000000; exec "$0" "$@"`, bin.plain, "wal", "fetch", name, "pg_wal/RECOVERYXLOG")
	cmd.Dir = data
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "out of memory") {
		t.Fatalf("%v: it has not run out of memory: %.500s", err, out)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
		t.Errorf("it ends with %v", err)
	}
}
