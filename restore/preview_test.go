package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// ownWorld is an empty world of a test's own: a server that is not archived yet, and a repository.
func ownWorld(t *testing.T) *world {
	t.Helper()
	w := &world{maker: t, size: 1 << 20, catalogs: time.Hour, install: postmastertest.Find(t), rows: map[pg.Timeline]map[uint32]int{1: {}}}
	w.dir = postmastertest.TempDir(t, w.install)
	w.root, w.self = filepath.Join(w.dir, "store"), filepath.Join(w.dir, "restore.test")
	binary, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.Mkdir(w.root, 0o755), os.WriteFile(w.self, binary, 0o755), w.install.Own(w.dir)); err != nil {
		t.Fatal(err)
	}
	w.repo, _ = openRepo(t, w.root)
	if err := w.install.InitDB(t.Context(), postmaster.InitOptions{Dir: w.data(), Superuser: "postgres", SegmentSizeMB: 1}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) data() string { return filepath.Join(w.dir, "origin") }

// during runs a server with settings and an archiver while work goes on.
func (w *world) during(t *testing.T, settings []string, work func(ctx context.Context, server *postmaster.Server, sql func(string) string) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server, err := w.install.StartChild(ctx, postmaster.StartOptions{Dir: w.data(), Port: postmastertest.FreePort(t), Log: w.data() + ".log",
		Settings: append([]string{"fsync=off", "shared_buffers=32MB", "wal_keep_size=1GB", "autovacuum=off"}, settings...)})
	if err != nil {
		t.Fatal(err)
	}
	err = w.archive(ctx, server, func(sql func(string) string) error { return work(ctx, server, sql) })
	if err := errors.Join(err, server.Stop(ctx, postmaster.Fast), w.install.Own(w.root)); err != nil {
		t.Fatal(err)
	}
}

// TestAPlanTellsWhatARestoreWillBring raises settings and prepares transactions behind a backup; without what the plan finds, recovery would
// fail for want of room for them.
func TestAPlanTellsWhatARestoreWillBring(t *testing.T) {
	w := ownWorld(t)
	w.during(t, []string{"max_prepared_transactions=2", "max_connections=20"}, func(ctx context.Context, server *postmaster.Server, sql func(string) string) error {
		sql("create table t (i int); create unlogged table scratch (i int); create unlogged table scratch_too (i int primary key, x text); create table doomed (i int)")
		sql("insert into scratch values (1)")
		sql("begin; insert into t values (1); prepare transaction 'before the backup'")
		sql("begin; insert into t values (2); prepare transaction 'ends in between'")
		sql("checkpoint")
		return errors.Join(w.awaitNames(ctx, "doomed"), w.backup(ctx, server))
	})
	w.during(t, []string{"max_prepared_transactions=12", "max_connections=35"}, func(_ context.Context, _ *postmaster.Server, sql func(string) string) error {
		sql("commit prepared 'ends in between'")
		for i := range 7 {
			sql(fmt.Sprintf("begin; insert into t values (%d); prepare transaction 'it''s %d'", 10+i, i))
		}
		sql("rollback prepared 'it''s 6'")
		sql("begin; insert into t select generate_series(100, 149); delete from t where i < 110; commit")
		sql("select pg_create_restore_point('here')")
		sql("begin; insert into t values (3); drop table doomed; commit")
		sql("commit prepared 'it''s 5'")
		sql("begin; insert into t values (4); prepare transaction 'too late'")
		return nil
	})
	target, err := ParseTarget("name:here", nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := planFor(t, w.repo, target, 1)
	if err != nil {
		t.Fatal(err)
	}
	plan.Describe(t.Context(), w.repo, 2)
	var gids []string
	for _, p := range plan.Prepared {
		gids = append(gids, p.GID)
	}
	slices.Sort(gids)
	if want := "before the backup,it's 0,it's 1,it's 2,it's 3,it's 4,it's 5"; strings.Join(gids, ",") != want {
		t.Errorf("prepared are %q, want %q", gids, want)
	}
	if want := "postgres.public.scratch,postgres.public.scratch_too"; strings.Join(plan.Unlogged, ",") != want {
		t.Errorf("unlogged are %q, want %q", plan.Unlogged, want)
	}
	raised := map[string]Raised{}
	for _, r := range plan.Raised {
		raised[r.Name] = r
	}
	if len(raised) != 2 || raised["max_connections"] != (Raised{"max_connections", 20, 35}) || raised["max_prepared_transactions"] != (Raised{"max_prepared_transactions", 2, 12}) {
		t.Errorf("raised are %v", plan.Raised)
	}
	if len(plan.Warnings) > 0 {
		t.Errorf("warnings: %q", plan.Warnings)
	}
	last, next := plan.LastIncluded.Touched, plan.FirstExcluded.Touched
	if last == nil || len(last.Relations) != 1 || last.Relations[0].Name != "postgres.public.t" || last.Relations[0].Inserted != 50 || last.Relations[0].Deleted != 11 {
		t.Errorf("the last included has done %+v", last)
	}
	if next == nil || !slices.Equal(next.Dropped, []string{"postgres.public.doomed"}) {
		t.Errorf("the first excluded has done %+v", next)
	}
	ask := w.restored(t.Context(), t, "name:here", 1, nil)
	if got := ask("select count(*) from pg_prepared_xacts"); got != "7" {
		t.Errorf("%s transactions are prepared in the copy", got)
	}
	if got := ask("select count(*) from scratch"); got != "0" {
		t.Errorf("the unlogged table has %s rows", got)
	}
	if got := ask("select count(*) from t"); got != "40" {
		t.Errorf("the table has %s rows", got)
	}
}

// awaitNames waits until a catalog has a relation.
func (w *world) awaitNames(ctx context.Context, relation string) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		keys, err := w.repo.Catalogs(ctx, 1)
		if err != nil {
			return err
		}
		for _, key := range keys {
			catalog, err := w.repo.ReadCatalog(ctx, key)
			if err != nil {
				return err
			}
			for _, db := range catalog.Databases {
				if slices.ContainsFunc(db.Relations, func(r repo.CatalogRelation) bool { return r.Name == relation }) {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the name of %s: %w", relation, ctx.Err())
		case <-ticker.C:
		}
	}
}

// TestTheBackupIsChosenByTheTimeThatItTakes has a small old backup and a large new one, or much WAL between them.
func TestTheBackupIsChosenByTheTimeThatItTakes(t *testing.T) {
	w := theWorld(t)
	old, fresh := w.backups[0], w.backups[1]
	chosen := func(rates Rates, want repo.Backup) *Plan {
		t.Helper()
		plan, err := NewPlan(t.Context(), w.repo, Target{Kind: Latest, Text: "latest"}, PlanOptions{Timeline: 1, Now: time.Now(), Parallel: 2, Rates: rates})
		if err != nil {
			t.Fatal(err)
		}
		if plan.BackupID != want.ID {
			t.Errorf("with %+v backup %s was chosen, want %s: %+v", rates, plan.BackupID, want.ID, plan.Expected)
		}
		return plan
	}
	if old.StoredBytes >= fresh.StoredBytes {
		t.Fatalf("the old backup has %d bytes, the new one %d: the test shows nothing", old.StoredBytes, fresh.StoredBytes)
	}
	slowReplay := chosen(Rates{Fetch: 1 << 30, Replay: 1}, fresh)
	measured := time.Unix(1_790_000_000, 0)
	slowFetch := chosen(Rates{Fetch: 1, Replay: 1 << 50, Measured: measured}, old)
	if slowFetch.StopLSN != slowReplay.StopLSN || slowFetch.LastIncluded == nil || *slowFetch.LastIncluded != *slowReplay.LastIncluded {
		t.Errorf("the target depends on the backup: %+v, %+v", slowFetch, slowReplay)
	}
	if e := slowFetch.Expected; e.Fetch != time.Duration(old.StoredBytes)*time.Second || e.Measured == nil || !e.Measured.Equal(measured) {
		t.Errorf("expected %+v for %d bytes", e, old.StoredBytes)
	}
	if e := chosen(Rates{}, fresh).Expected; e.Measured != nil || e.FetchRate != assumedFetchRate || e.ReplayRate != assumedReplayRate {
		t.Errorf("without a measurement: %+v", e)
	}
}

// TestTheOriginsConfigurationComesBesideTheData has it lie outside of the data directory, as Debian does.
func TestTheOriginsConfigurationComesBesideTheData(t *testing.T) {
	w := ownWorld(t)
	etc := filepath.Join(w.dir, "etc")
	conf := "# the origin's\nwork_mem = '7MB'\n"
	hba := "local all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\nhost replication all 127.0.0.1/32 trust\n"
	if err := errors.Join(os.Mkdir(etc, 0o755), os.WriteFile(filepath.Join(etc, "main.conf"), []byte(conf), 0o644), os.WriteFile(filepath.Join(etc, "hba"), []byte(hba), 0o644), w.install.Own(etc)); err != nil {
		t.Fatal(err)
	}
	w.during(t, []string{"config_file=" + filepath.Join(etc, "main.conf"), "hba_file=" + filepath.Join(etc, "hba")}, func(ctx context.Context, server *postmaster.Server, sql func(string) string) error {
		sql("create table t (i int)")
		err := w.backup(ctx, server)
		sql("insert into t values (1)")
		sql("insert into t values (2)")
		return err
	})
	plan, err := planFor(t, w.repo, Target{Kind: Latest, Text: "latest"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	plan.Describe(t.Context(), w.repo, 2)
	want := []Outside{{filepath.Join(etc, "main.conf"), "postgresql.conf.origin"}, {filepath.Join(etc, "hba"), "pg_hba.conf.origin"}}
	if !slices.Equal(plan.Outside, want) {
		t.Errorf("the plan tells of %+v", plan.Outside)
	}
	dir := ""
	ask := w.restored(t.Context(), t, "latest", 1, func(into string, _ *Plan, _ *Options) { dir = into })
	if got := ask("show work_mem"); got == "7MB" {
		t.Errorf("work_mem is %s: the configuration of another machine is in effect", got)
	}
	if got := read(t, filepath.Join(dir, "postgresql.conf.origin")); got != conf {
		t.Errorf("the copy holds %q", got)
	}
	if got := read(t, filepath.Join(dir, "pg_hba.conf.origin")); got != hba {
		t.Errorf("the copy holds %q", got)
	}
}
