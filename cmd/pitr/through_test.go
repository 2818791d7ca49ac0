package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestArchiverWorksThroughThePooler(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	h.start(ctx, "pooler")
	text, err := os.ReadFile(h.config)
	if err != nil {
		t.Fatal(err)
	}
	through := filepath.Join(h.dir, "through.yaml")
	changed := strings.Replace(string(text), fmt.Sprintf("@127.0.0.1:%d/", h.server.Port), fmt.Sprintf("@127.0.0.1:%d/", h.pooler), 1)
	if changed == string(text) {
		t.Fatal("the configuration is another than it was")
	}
	if err := os.WriteFile(through, []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	h.own = map[string]string{"archiver": through}
	h.start(ctx, "archiver")
	h.psql(ctx, "create table t as select generate_series(1, 1000) i")
	cmd := h.install.Command(ctx, h.bin.plain, "-c", through, "backup")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, h.logs())
	}
	senders := h.psql(ctx, "select count(*) from pg_stat_replication where application_name = 'pitr'")
	if !strings.Contains(senders, "1") {
		t.Errorf("%s walsenders have the archiver's name", senders)
	}
	restored := filepath.Join(h.dir, "restored")
	out := h.mustPitr(ctx, "restore", "--to", "latest", "--into", restored, "--yes")
	if _, err := os.Stat(filepath.Join(restored, "global", "pg_control")); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
