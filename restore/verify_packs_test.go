package restore

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/repo"
)

// TestAManifestThatRefersToWrongBytesIsADefect publishes manifests that are whole, of packs that are whole, and that do not fit each other.
func TestAManifestThatRefersToWrongBytesIsADefect(t *testing.T) {
	w := theWorld(t)
	_, r, _ := w.copyOf(t)
	ctx := t.Context()
	backups, err := r.Backups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	verify := func() []string {
		t.Helper()
		report, err := Verify(ctx, r, VerifyOptions{Level: Checksum, Plan: PlanOptions{Now: time.Now(), Parallel: 2}})
		if err != nil {
			t.Fatal(err)
		}
		return report.Defects
	}
	before := verify()
	m, err := r.ReadManifest(ctx, backups[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	file := slices.IndexFunc(m.Entries, func(f repo.File) bool { return len(f.Extents) > 0 })
	other := slices.IndexFunc(m.Entries, func(f repo.File) bool {
		return len(f.Extents) > 0 && f.Extents[0].Hash != m.Entries[file].Extents[0].Hash
	})
	for name, change := range map[string]func(e *repo.Extent){
		"another hash": func(e *repo.Extent) { e.Hash[0] ^= 1 },
		"another frame": func(e *repo.Extent) {
			e.Pack, e.Offset, e.Length = m.Entries[other].Extents[0].Pack, m.Entries[other].Extents[0].Offset, m.Entries[other].Extents[0].Length
		},
		"half a frame": func(e *repo.Extent) { e.Length-- },
	} {
		forged := r.NewManifest()
		for i, f := range m.Entries {
			f.Extents = slices.Clone(f.Extents)
			if i == file {
				change(&f.Extents[0])
			}
			if err := forged.Add(f); err != nil {
				t.Fatal(err)
			}
		}
		b := m.Backup
		b.ID = "20300101T000000Z"
		if err := forged.Publish(ctx, b); err != nil {
			t.Fatal(err)
		}
		after := verify()
		if len(after) != len(before)+1 || !strings.Contains(strings.Join(after, "\n"), "what a manifest refers to at byte") {
			t.Errorf("%s: %q", name, after)
		}
		if err := r.DeleteBackup(ctx, b.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
}
