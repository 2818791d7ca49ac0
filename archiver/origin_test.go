package archiver

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
	"pitr/internal/store"
)

// configuration outside of the data directory, as Debian has it.
func outsideConfiguration(t *testing.T) (dir string, settings []string) {
	t.Helper()
	install := postmastertest.Find(t)
	dir = postmastertest.TempDir(t, install)
	for name, content := range map[string]string{
		"postgresql.conf": "# it's the origin's \\ configuration\n",
		"pg_hba.conf":     "local all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := install.Own(dir); err != nil {
		t.Fatal(err)
	}
	return dir, []string{"config_file=" + filepath.Join(dir, "postgresql.conf"), "hba_file=" + filepath.Join(dir, "pg_hba.conf")}
}

// furnish makes databases with what a backup tells of them.
func (b *bench) furnish() {
	b.query("create database furnished")
	b.query("create database barred allow_connections false")
	if _, err := b.server.Query(b.t.Context(), "postgres", "furnished", `create extension pg_trgm; create unlogged table volatile (i int);
		create schema "Odd One"; create table "Odd One".names (name text collate "de-x-icu", plain text collate "C", other text);
		create index names_name on "Odd One".names (name, other); create index names_plain on "Odd One".names (plain)`); err != nil {
		b.t.Fatal(err)
	}
}

func databaseOf(t *testing.T, origin *repo.Origin, name string) repo.OriginDatabase {
	t.Helper()
	i := slices.IndexFunc(origin.Databases, func(d repo.OriginDatabase) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("no database %s in %+v", name, origin.Databases)
	}
	return origin.Databases[i]
}

func (b *bench) originOf(id string) *repo.Origin {
	b.t.Helper()
	m, err := b.repo.ReadManifest(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	if m.Origin == nil {
		b.t.Fatalf("backup %s tells nothing of its origin; the log is %s", id, b.log)
	}
	return m.Origin
}

func TestBackupTellsWhatARestoreElsewhereIsHeldAgainst(t *testing.T) {
	etc, settings := outsideConfiguration(t)
	b := newBench(t, 16, append(settings, "shared_preload_libraries=pg_stat_statements")...)
	b.furnish()
	a := b.run(b.options())
	a.archived(b.written())
	origin := b.originOf(b.backup().ID)
	if p := origin.Preload; !slices.Equal(p.Shared, []string{"pg_stat_statements"}) || p.Session != nil {
		t.Errorf("libraries %+v", p)
	}
	furnished := databaseOf(t, origin, "furnished")
	if furnished.Unread != "" || !slices.Equal(furnished.Unlogged, []string{"public.volatile"}) || furnished.Size < 1<<20 {
		t.Errorf("the database is %+v", furnished)
	}
	trgm := slices.IndexFunc(furnished.Extensions, func(e repo.OriginExtension) bool { return e.Name == "pg_trgm" && e.Version != "" })
	if len(furnished.Extensions) != 2 || trgm < 0 {
		t.Errorf("extensions %+v", furnished.Extensions)
	}
	if len(furnished.Collations) != 1 {
		t.Fatalf("collations %+v", furnished.Collations)
	}
	c := furnished.Collations[0]
	if c.Name != "pg_catalog.de-x-icu" || c.Provider != "i" || !strings.HasPrefix(c.Locale, "de") || c.Version == "" || c.Actual != c.Version || !slices.Equal(c.Indexes, []string{"Odd One.names_name"}) {
		t.Errorf("the collation is %+v", c)
	}
	// It is not visited, and neither are templates, for which CREATE DATABASE would have to wait.
	if barred := databaseOf(t, origin, "barred"); barred.Unread == "" || barred.Size < 1<<20 || barred.Extensions != nil {
		t.Errorf("the database that nobody may enter is %+v", barred)
	}
	if template := databaseOf(t, origin, "template1"); template.Unread == "" {
		t.Errorf("the template is %+v", template)
	}
	if len(origin.Files) != 2 {
		t.Fatalf("files %+v", origin.Files)
	}
	for i, name := range []string{"postgresql.conf", "pg_hba.conf"} {
		want, err := os.ReadFile(filepath.Join(etc, name))
		if f := origin.Files[i]; err != nil || f.Name != name || f.Path != filepath.Join(etc, name) || f.Content != string(want) || f.Unread != "" {
			t.Errorf("%s is %+v, %v", name, f, err)
		}
	}
	if len(origin.Limits) > 0 {
		t.Errorf("limits %q", origin.Limits)
	}
}

func TestBackupOfAUserWithFewRightsTellsWhatItCouldNotFindOut(t *testing.T) {
	_, settings := outsideConfiguration(t)
	b := newBench(t, 16, settings...)
	b.furnish()
	b.query("create role backup replication login; grant pg_monitor to backup; revoke connect on database furnished from public")
	a := b.run(b.options())
	a.archived(b.written())
	opt := b.backupOptions()
	opt.DSN = strings.Replace(opt.DSN, "postgres@", "backup@", 1)
	origin := b.originOf(b.backupWith(opt).ID)
	if d := databaseOf(t, origin, "furnished"); !strings.Contains(d.Unread, "furnished") || d.Size < 1<<20 {
		t.Errorf("the database that it may not enter is %+v", d)
	}
	for _, f := range origin.Files {
		if f.Unread == "" || f.Content != "" {
			t.Errorf("%s was read", f.Path)
		}
	}
	if len(origin.Files) != 2 || strings.Count(b.log.String(), "could not be recorded with the backup") != 3 {
		t.Errorf("files %+v; the log is %s", origin.Files, b.log)
	}
}

func TestAStrangerDoesNotSeeWhatABackupTellsOfItsOrigin(t *testing.T) {
	_, settings := outsideConfiguration(t)
	b := newBench(t, 16, append(settings, "shared_preload_libraries=pg_stat_statements")...)
	b.furnish()
	writing, reading := b.encrypted()
	b.repo = b.with(writing)
	a := b.run(b.options())
	a.archived(b.written())
	backup := b.backup()
	b.repo = b.with(reading)
	if d := databaseOf(t, b.originOf(backup.ID), "furnished"); len(d.Extensions) != 2 {
		t.Errorf("extensions %+v", d.Extensions)
	}
	content, err := store.ReadAll(t.Context(), b.store, "main/backups/"+backup.ID+"/manifest", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"furnished", "pg_trgm", "pg_stat_statements", "postgresql.conf", "names_name", b.server.Dir} {
		if bytes.Contains(content, []byte(secret)) {
			t.Errorf("%q can be read in the encrypted manifest", secret)
		}
	}
	if !bytes.Contains(content, []byte("max_connections")) {
		t.Error(errors.New("nothing is in the clear: the test shows nothing"))
	}
}
