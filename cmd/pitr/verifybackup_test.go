package main

import (
	"context"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"pitr/internal/postmaster/postmastertest"
)

// TestPgVerifybackupPassesOnWhatARestoreWrites asks Postgres's own program about directories that came from backups that refer to one another.
func TestPgVerifybackupPassesOnWhatARestoreWrites(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var settings []string
	if postmastertest.Find(t).Major >= 17 {
		settings = []string{"summarize_wal=on"}
	}
	h := newHarness(t, "", settings...)
	h.start(ctx, "archiver")
	h.psql(ctx, "create table t as select i, repeat(md5(i::text), 10) from generate_series(1, 30000) i; create table gone as select 1")
	h.mustPitr(ctx, "backup")
	for i := range 3 {
		h.psql(ctx, "update t set i = -i where i % 1000 = "+strconv.Itoa(i)+"; delete from t where i > 29000; drop table if exists gone")
		h.psql(ctx, "vacuum t")
		h.mustPitr(ctx, "backup")
	}
	h.archived(ctx)
	into := filepath.Join(h.dir, "restored")
	h.mustPitr(ctx, "restore", "--to", "latest", "--into", into)
	// A restore writes the first two, and links the tablespaces itself; all else must be what the server's manifest says.
	out, err := h.install.Command(ctx, "pg_verifybackup", "--no-parse-wal", "--ignore=postgresql.auto.conf", "--ignore=recovery.signal", "--ignore=tablespace_map", into).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
