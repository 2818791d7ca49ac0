package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestABackupThatWasKilledIsGoneOnWith kills `pitr backup` in the midst and takes another.
func TestABackupThatWasKilledIsGoneOnWith(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	h := newHarness(t, "")
	content, err := os.ReadFile(h.config)
	if err == nil {
		err = os.WriteFile(h.config, []byte(strings.Replace(string(content), "backup: {", "backup: {buffer_max: 16MiB, ", 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.psql(ctx, "create table t as select i, md5(i::text) || md5((-i)::text) as m from generate_series(1, 800000) i; checkpoint")
	h.start(ctx, "archiver")
	h.archived(ctx)
	stored := func() (size int64, n int) {
		names, err := filepath.Glob(filepath.Join(h.dir, "repository", "*", "contents", "*", "[0-9]*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			info, err := os.Stat(strings.Replace(name, "/contents/", "/packs/", 1))
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		return size, len(names)
	}
	// Whatever the machine's mood, the last pack of so many cannot be there at the moment of the kill.
	cmd := h.install.Command(ctx, h.bin.plain, "-c", h.config, "backup")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually(ctx, "some packs are stored", func() bool { _, n := stored(); return n >= 4 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	before, packs := stored()
	if out := h.mustPitr(ctx, "backups"); !strings.Contains(out, "no backups") {
		t.Fatalf("a backup that was killed exists:\n%s", out)
	}
	var made []struct {
		Stored   int64 `json:"stored_bytes"`
		Uploaded int64 `json:"uploaded_bytes"`
		Referred int64 `json:"referred_bytes"`
	}
	if err := json.Unmarshal([]byte(h.mustPitr(ctx, "backup", "--json")), &made); err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	// The headers of packs are not referred to; some of the files have changed since: those of the server's state.
	if b := made[0]; b.Referred < before*9/10 || b.Uploaded+b.Referred != b.Stored || b.Uploaded > b.Stored-before*9/10 {
		t.Errorf("%d packs with %d bytes were there; %d bytes were uploaded, %d referred to", packs, before, b.Uploaded, b.Referred)
	}
	h.mustPitr(ctx, "verify", "--level", "checksum")
	t.Logf("%d packs with %d bytes were there; %+v", packs, before, made[0])
}
