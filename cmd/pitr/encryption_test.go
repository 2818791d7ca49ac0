package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/config"
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
		"copy": func(*testing.T) string { return "" },
	}
	for name, start := range stores {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			h := newHarness(t, start(t))
			main, second := filepath.Join(h.dir, "repository"), filepath.Join(h.dir, "second")
			if name == "copy" {
				if err := errors.Join(os.Mkdir(second, 0o755), h.install.Own(second)); err != nil {
					t.Fatal(err)
				}
				h.stores(fmt.Sprintf("store: %q, copies: [%q]", "file://"+main, "file://"+second))
			}
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
			if name == "copy" {
				h.filled(ctx, config.StoreName("file://"+second))
			}
			h.config = reader
			if out := h.mustPitr(ctx, "verify", "--level", "checksum"); !strings.Contains(out, ": 0 defects") {
				t.Errorf("the reader sees %s", out)
			}
			if name == "copy" { // from here on the main store is what the copy was, and the copy is empty
				h.kill("archiver")
				if err := errors.Join(os.Rename(main, main+".lost"), os.Rename(second, main), os.Mkdir(second, 0o755), h.install.Own(second)); err != nil {
					t.Fatal(err)
				}
			}
			if rows := h.restored(ctx, "restored", "select string_agg(i::text, ' ' order by i) from t"); rows != "1 10 11 12 20 21 22" {
				t.Errorf("rows %s came back", rows)
			}
		})
	}
}
