//go:build regress

package wal_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// TestEveryRecordOfTheRegressionTestsEqualsPgWaldump runs the SQL of PostgreSQL's own regression tests (PITR_REGRESS: src/test/regress of
// the same major), group by group as their schedule says, and compares every record that they write. Debian has no regress.so, so
// that statements which need its C functions fail; what the rest writes is compared all the same.
func TestEveryRecordOfTheRegressionTestsEqualsPgWaldump(t *testing.T) {
	source := os.Getenv("PITR_REGRESS")
	if source == "" {
		t.Fatal("PITR_REGRESS names no src/test/regress: make regress")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	install := postmastertest.Find(t)
	settings := []string{"wal_level=logical", "wal_keep_size=32GB", "max_wal_size=256MB", "max_prepared_transactions=5", "wal_compression=on", "checkpoint_timeout=30s"}
	if install.Major >= 15 {
		settings = append(settings, "allow_in_place_tablespaces=on")
	}
	server := postmastertest.Start(t, install, postmastertest.Options{Settings: settings})
	if _, err := server.Query(ctx, "postgres", "postgres", "create database regression template template0 locale 'C'"); err != nil {
		t.Fatal(err)
	}
	scripts := runRegressionTests(ctx, t, install, server, source)
	if err := server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}

	files := segmentFiles(t, server.Dir)
	want := pgWaldump(t, install, server.Dir, files)
	got := decodeFiles(t, server.Dir, files, 16<<20, 128<<10)
	rmgrs := map[string]int{}
	for i := range min(len(got), len(want)) {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Fatalf("record %d of %d: -pg_waldump +decoder\n%s", i, len(want), diff)
		}
		rmgrs[got[i].Rmgr]++
	}
	if len(got) != len(want) || len(want) < 500_000 {
		t.Fatalf("decoder found %d records, pg_waldump %d; the tests write more than 500,000", len(got), len(want))
	}
	t.Logf("%d scripts, %d segments: %d records are equal, of %d resource managers: %v", scripts, len(files), len(got), len(rmgrs), rmgrs)
}

// runRegressionTests runs the schedule's groups, each script of a group beside the others, and returns how many scripts there were.
func runRegressionTests(ctx context.Context, t *testing.T, install *postmaster.Install, server *postmaster.Server, source string) (scripts int) {
	t.Helper()
	schedule, err := os.Open(filepath.Join(source, "parallel_schedule"))
	if err != nil {
		t.Fatal(err)
	}
	defer schedule.Close()
	lines := bufio.NewScanner(schedule)
	for lines.Scan() {
		group, isGroup := strings.CutPrefix(lines.Text(), "test:")
		if !isGroup {
			continue
		}
		var running sync.WaitGroup
		for _, name := range strings.Fields(group) {
			scripts++
			running.Go(func() {
				script, cancel := context.WithTimeout(ctx, 3*time.Minute)
				defer cancel()
				psql := install.Command(script, "psql", "-X", "-q", "-h", server.Dir, "-p", fmt.Sprint(server.Port), "-U", "postgres", "-d", "regression", "-f", filepath.Join(source, "sql", name+".sql"))
				psql.Env = append(psql.Env, "PG_ABS_SRCDIR="+source, "PG_LIBDIR=/nonexistent", "PG_DLSUFFIX=.so", "PGTZ=America/Los_Angeles", "PGDATESTYLE=Postgres, MDY")
				// Many statements fail, on purpose or for want of regress.so; what counts is the log.
				_ = psql.Run()
			})
		}
		running.Wait()
	}
	if err := lines.Err(); err != nil || scripts < 150 {
		t.Fatalf("%d scripts in the schedule: %v", scripts, err)
	}
	// The server has outlived them all.
	if _, err := server.Query(ctx, "postgres", "postgres", "checkpoint"); err != nil {
		t.Fatal(err)
	}
	return scripts
}
