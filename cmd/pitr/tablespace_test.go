package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestARestoreNeverWritesIntoATablespaceOfItsOrigin restores beside an origin that has made a tablespace since the backup.
func TestARestoreNeverWritesIntoATablespaceOfItsOrigin(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.settings("verify: {directory: " + h.dir + "}")
	h.start(ctx, "archiver")
	h.mustPitr(ctx, "backup")
	place := filepath.Join(h.dir, "place")
	if err := errors.Join(os.Mkdir(place, 0o700), h.install.Own(place)); err != nil {
		t.Fatal(err)
	}
	h.psql(ctx, "create tablespace s location '"+place+"'")
	h.psql(ctx, "create table t (i int) tablespace s")
	h.psql(ctx, "insert into t select generate_series(1, 1000)")
	h.archived(ctx)
	into := filepath.Join(h.dir, "restored")
	for _, command := range [][]string{{"restore", "--to", "latest", "--into", into, "--start"}, {"verify", "--level", "restore", "--to", "latest"}} {
		_, err := h.pitr(ctx, command...)
		if err == nil || !strings.Contains(err.Error(), "was made behind the backup at "+place+", and recovery makes it there again; that directory holds PG_") {
			t.Errorf("%s: %v", command[0], err)
		}
	}
	if _, err := os.Stat(into); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}

	// Where nobody's files are it is made again.
	aside := filepath.Join(h.dir, "aside")
	h.psql(ctx, "checkpoint")
	if err := os.Rename(place, aside); err != nil {
		t.Fatal(err)
	}
	if rows := h.restored(ctx, "elsewhere", "select count(*) from t"); rows != "1000" {
		t.Errorf("%s rows came back", rows)
	}
	if err := errors.Join(os.RemoveAll(place), os.Rename(aside, place)); err != nil {
		t.Fatal(err)
	}

	// A backup behind it has it beside its own directory.
	h.mustPitr(ctx, "backup")
	if rows := h.restored(ctx, "later", "select count(*) from t"); rows != "1000" {
		t.Errorf("%s rows came back", rows)
	}
	h.psql(ctx, "insert into t select generate_series(1, 10)")
	if rows := h.psql(ctx, "select count(*) from t"); rows != "1010" {
		t.Errorf("the origin has %s rows", rows)
	}
}
