package main

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// TestADroppedDatabaseComesBackByTheHintOfThePlan restores to just before a DROP DATABASE has committed, which is too late, and then as the plan says.
func TestADroppedDatabaseComesBackByTheHintOfThePlan(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "", "track_commit_timestamp=on")
	h.start(ctx, "archiver")
	h.mustPitr(ctx, "backup")
	h.psql(ctx, "create database lost")
	if _, err := h.server.Query(ctx, "postgres", "lost", "create table t as select generate_series(1, 10) i"); err != nil {
		t.Fatal(err)
	}
	h.psql(ctx, "drop database lost")
	at := h.psql(ctx, "select to_char((timestamp - interval '1 us') at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z' from pg_last_committed_xact()")
	h.psql(ctx, "create table later (i int)")
	h.archived(ctx)

	restoreTo := func(name, to, query string) (answer restored, rows string, err error) {
		t.Helper()
		into, port := filepath.Join(h.dir, name), postmastertest.FreePort(t)
		out := h.mustPitr(ctx, "restore", "--to", to, "--into", into, "--start", "--port", strconv.Itoa(port), "--json")
		if err := json.Unmarshal([]byte(out), &answer); err != nil {
			t.Fatal(err)
		}
		copied := h.install.Attach(into, port)
		rows, err = copied.Query(ctx, "postgres", "lost", query)
		return answer, rows, errors.Join(err, copied.Stop(ctx, postmaster.Immediate))
	}
	const query = "select count(*) from t"
	answer, rows, err := restoreTo("before", at, query)
	hint := regexp.MustCompile(`database (?:lost|[0-9]+) cannot be used at this target: .*; --to (lsn:[0-9A-F]+/[0-9A-F]+) stops before that`)
	target := ""
	for _, warning := range answer.Plan.Warnings {
		if found := hint.FindStringSubmatch(warning); found != nil {
			target = found[1]
		}
	}
	if err == nil || target == "" {
		t.Fatalf("just before its end: %s rows, %v; the plan warns %q", rows, err, answer.Plan.Warnings)
	}
	if answer, rows, err := restoreTo("hint", target, query); err != nil || rows != "10" {
		t.Errorf("%s: %s rows, %v; the plan warns %q", target, rows, err, answer.Plan.Warnings)
	}
}
