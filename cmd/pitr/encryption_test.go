package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/store/s3/s3test"
)

// encrypt makes two configurations of the harness's: that of those who write, which is its own from now on, and that of those who read.
func (h *harness) encrypt() (reader string) {
	h.t.Helper()
	identity, recipient, err := repo.NewIdentity()
	if err != nil {
		h.t.Fatal(err)
	}
	file := filepath.Join(h.dir, "identity.txt")
	text, readErr := os.ReadFile(h.config)
	with := func(encryption string) []byte {
		return []byte(strings.Replace(string(text), "flush_interval: 200ms", "flush_interval: 200ms, encryption: {"+encryption+"}", 1))
	}
	reader = filepath.Join(h.dir, "reader.yaml")
	err = errors.Join(readErr, os.WriteFile(file, []byte(identity+"\n"), 0o600), os.WriteFile(h.config, with("recipients: ["+recipient+"]"), 0o644),
		os.WriteFile(reader, with("identity_file: "+file), 0o644), h.install.Own(h.dir))
	if err != nil {
		h.t.Fatal(err)
	}
	return reader
}

func TestEncryptedArchiveIsRestoredByWhomItIsMeantForAndNobodyElse(t *testing.T) {
	stores := map[string]func(t *testing.T) string{
		"file": func(*testing.T) string { return "" },
		"s3":   func(t *testing.T) string { return s3test.Start(t).URL("sealed") },
	}
	for name, start := range stores {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			h := newHarness(t, start(t))
			reader := h.encrypt()
			h.start(ctx, "archiver")
			h.psql(ctx, "create table t (i int); insert into t values (1)")
			h.mustPitr(ctx, "backup")
			for i := range 3 {
				h.psql(ctx, fmt.Sprintf("insert into t values (%d)", 10+i))
				h.archived(ctx)
				h.kill("archiver")
				h.psql(ctx, fmt.Sprintf("insert into t values (%d); select pg_switch_wal()", 20+i))
				h.start(ctx, "archiver")
			}
			h.archived(ctx)
			if out := h.mustPitr(ctx, "verify"); !strings.Contains(out, ": 0 defects") || !strings.Contains(out, "encrypted, and no identity opens it") {
				t.Errorf("the writer sees %s", out)
			}
			if out, err := h.pitr(ctx, "restore", "--to", "latest", "--into", filepath.Join(h.dir, "stolen")); err == nil || !strings.Contains(err.Error(), repo.ErrNoIdentity.Error()) {
				t.Errorf("the writer restores: %v %s", err, out)
			}
			h.config = reader
			if out := h.mustPitr(ctx, "verify", "--level", "checksum"); !strings.Contains(out, ": 0 defects") {
				t.Errorf("the reader sees %s", out)
			}
			into, port := filepath.Join(h.dir, "restored"), postmastertest.FreePort(t)
			h.mustPitr(ctx, "restore", "--to", "latest", "--into", into, "--start", "--port", strconv.Itoa(port))
			copied := h.install.Attach(into, port)
			rows, err := copied.Query(ctx, "postgres", "postgres", "select string_agg(i::text, ' ' order by i) from t")
			if err := errors.Join(err, copied.Stop(ctx, postmaster.Immediate)); err != nil {
				t.Fatal(err)
			}
			if rows != "1 10 11 12 20 21 22" {
				t.Errorf("rows %s came back", rows)
			}
		})
	}
}
