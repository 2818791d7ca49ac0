package restore

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pitr/internal/repo"
)

// TestAPlanWarnsOfWhatThisMachineLacks has a record of a server with locales that machines of tests mostly do not have.
func TestAPlanWarnsOfWhatThisMachineLacks(t *testing.T) {
	libdir := t.TempDir()
	write(t, filepath.Join(libdir, "here.so"), "")
	elsewhere := filepath.Join(t.TempDir(), "absolute.so")
	origin := repo.Origin{Libc: "2.31", Preload: repo.Preload{Shared: []string{"here", "$libdir/here", "absent", elsewhere, "some/dir/absent"}}, Databases: []repo.OriginDatabase{
		{Name: "app", Collation: repo.Collation{Provider: "c", Locale: "de_DE.UTF-8", Actual: "2.31", Indexes: []string{"public.a", "public.b"}}, Collations: []repo.Collation{
			{Name: "pg_catalog.fr-x-icu", Provider: "i", Locale: "fr", Actual: "153.112", Indexes: []string{"public.c"}},
			{Name: "pg_catalog.en_US", Provider: "c", Locale: "en_US", Actual: "2.31", Indexes: []string{"public.d"}}}},
		{Name: "plain", Collation: repo.Collation{Provider: "c", Locale: "C"}},
		{Name: "unused", Collation: repo.Collation{Provider: "c", Locale: "de_DE.UTF-8", Actual: "2.31"}},
	}}
	compare := func(m Machine, start bool) *Plan {
		plan := &Plan{manifest: &repo.Manifest{Origin: &origin}}
		plan.Compare(m, start)
		return plan
	}
	changed := compare(Machine{Libc: "2.36", Libraries: libdir}, true)
	if len(changed.Reordered) != 2 || !slices.Equal(changed.Reordered[0].Indexes, []string{"public.a", "public.b"}) || changed.Reordered[1].Collation != "pg_catalog.en_US" {
		t.Errorf("collations %+v", changed.Reordered)
	}
	if text := changed.Reordered[0].String(); !strings.Contains(text, "of version 2.36 here, and was of 2.31") || !strings.Contains(text, "public.a, public.b") {
		t.Errorf("it is told as %q", text)
	}
	if w := changed.Warnings; len(w) != 2 || !strings.Contains(w[0], `"absent"`) || !strings.Contains(w[1], elsewhere) {
		t.Errorf("warnings %q", w)
	}
	if err := os.WriteFile(elsewhere, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, same := range []*Plan{compare(Machine{Libc: "2.31", Libraries: libdir}, false), compare(Machine{}, true)} {
		if len(same.Reordered) > 0 || len(same.Warnings) > 0 {
			t.Errorf("collations %+v, warnings %q", same.Reordered, same.Warnings)
		}
	}
	origin.Files = []repo.OriginFile{{Name: "postgresql.conf", Path: "/etc/main.conf", Unread: "not allowed"}}
	if p := compare(Machine{Libraries: libdir}, true); len(p.Warnings) > 0 {
		t.Errorf("libraries of a configuration that is not in effect: %q", p.Warnings)
	}
	// What a manifest names is written only where it should be.
	dir := t.TempDir()
	hostile := &repo.Origin{Files: []repo.OriginFile{{Name: "../out", Content: "x"}, {Name: "pg_ident.conf", Content: "map"}}}
	if err := writeOriginFiles(dir, hostile); err != nil || read(t, filepath.Join(dir, "pg_ident.conf.origin")) != "map" || exists(filepath.Join(filepath.Dir(dir), "out.origin")) {
		t.Errorf("the files were not written as they should be: %v", err)
	}
}
