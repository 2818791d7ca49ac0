package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pitr/archiver"
	"pitr/archiver/replication"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
	"pitr/internal/repo"
)

// startStandby makes a standby of a server and runs it until the test ends.
func (w *world) startStandby(ctx context.Context, t *testing.T, primary *postmaster.Server, settings []string) *postmaster.Server {
	t.Helper()
	dir := filepath.Join(postmastertest.TempDir(t, w.install), "standby")
	if out, err := w.install.Command(ctx, "pg_basebackup", "-D", dir, "-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-p", fmt.Sprint(primary.Port), "-U", "postgres").CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	standby, err := w.install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: postmastertest.FreePort(t), Log: dir + ".log",
		Settings: append([]string{"fsync=off", "shared_buffers=32MB"}, settings...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Stop(context.Background(), postmaster.Immediate); err != nil {
			t.Error(err)
		}
	})
	return standby
}

// awaitReplay waits until a standby has replayed what its primary has flushed.
func awaitReplay(ctx context.Context, standby *postmaster.Server, lsn string) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		out, err := standby.Query(ctx, "postgres", "postgres", fmt.Sprintf("select pg_last_wal_replay_lsn() >= '%s'", lsn))
		if err != nil || out == "t" {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// TestABackupOfAStandbyRestoresWhatThePrimaryHeld takes a backup of the primary and two of its standby, the second of which refers to the first ones,
// while the primary writes on.
func TestABackupOfAStandbyRestoresWhatThePrimaryHeld(t *testing.T) {
	w := ownWorld(t)
	var settings []string
	if w.install.Major >= 17 {
		settings = append(settings, "summarize_wal=on")
	}
	const sum = "select count(*) || ' ' || sum(hashtext(t::text)::bigint) from t"
	var log bytes.Buffer
	var taken []repo.Backup
	var held string
	w.during(t, settings, func(ctx context.Context, primary *postmaster.Server, sql func(string) string) error {
		sql("create table t (i int primary key, x text); insert into t select i, md5(i::text) from generate_series(1, 20000) i")
		standby := w.startStandby(ctx, t, primary, settings)
		opt := archiver.BackupOptions{DSN: fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", primary.Port, standby.Port), Repo: w.repo,
			BufferMax: 64 << 20, WALWait: 30 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))}
		for _, from := range []replication.Role{replication.Primary, replication.Standby, replication.PreferStandby} {
			opt.From = from
			b, err := archiver.TakeBackup(ctx, opt)
			if err != nil {
				return err
			}
			taken = append(taken, b)
			sql("update t set x = x || '!' where i % 700 = 3; delete from t where i % 1000 = 1; select count(*) from t")
			sql("vacuum t")
			sql("create table if not exists other (i int); insert into other values (1)")
			sql("checkpoint")
			if err := awaitReplay(ctx, standby, sql("select pg_current_wal_flush_lsn()")); err != nil {
				return err
			}
		}
		sql("insert into t select i, 'late' from generate_series(30000, 30100) i")
		held = sql(sum)
		return nil
	})
	for i, b := range taken {
		if b.FromStandby != (i > 0) {
			t.Errorf("backup %d is said to be of a standby: %t", i, b.FromStandby)
		}
		if i > 0 && (b.ReferredBytes < b.UploadedBytes() || b.Previous != taken[i-1].ID) {
			t.Errorf("backup %d refers to %d bytes of %q and has uploaded %d", i, b.ReferredBytes, b.Previous, b.UploadedBytes())
		}
	}
	if n := strings.Count(log.String(), "a standby lack hint bits"); n != 2 {
		t.Errorf("it is said %d times that what has changed is not compared", n)
	}
	if n := strings.Count(log.String(), "incremental=true"); w.install.Major >= 17 && n != 2 || w.install.Major < 17 && n != 0 {
		t.Errorf("%d backups were sent as increments: %s", n, log.String())
	}
	plan, err := planFor(t, w.repo, Target{Kind: Latest, Text: "latest"}, 1)
	if err != nil || plan.BackupID != taken[2].ID {
		t.Fatalf("backup %s, %v", plan.BackupID, err)
	}
	ask := w.restored(t.Context(), t, "latest", 1, nil)
	if got := ask(sum); got != held {
		t.Errorf("the copy holds %s, the primary held %s", got, held)
	}
	if got := ask("select count(*) from other"); got != "3" {
		t.Errorf("other has %s rows", got)
	}
	ask("create extension amcheck")
	ask("select bt_index_check('t_pkey', true)")
}

// TestABackupThatNeedsAStandbyFailsWithoutOne has nothing but a primary.
func TestABackupThatNeedsAStandbyFailsWithoutOne(t *testing.T) {
	w := ownWorld(t)
	var log bytes.Buffer
	var errStandby, errEither error
	var b repo.Backup
	w.during(t, nil, func(ctx context.Context, primary *postmaster.Server, _ func(string) string) error {
		closed := postmastertest.FreePort(t)
		opt := archiver.BackupOptions{DSN: fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", closed, primary.Port), Repo: w.repo,
			BufferMax: 64 << 20, WALWait: 30 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))}
		opt.From = replication.Standby
		_, errStandby = archiver.TakeBackup(ctx, opt)
		opt.From = replication.PreferStandby
		b, errEither = archiver.TakeBackup(ctx, opt)
		return nil
	})
	if errStandby == nil || !strings.Contains(errStandby.Error(), "no host of postgres.dsn is a standby") {
		t.Errorf("without a standby: %v", errStandby)
	}
	if errEither != nil || b.FromStandby || !strings.Contains(log.String(), "there is no standby") {
		t.Errorf("the primary was not taken: %v; %s", errors.Join(errEither), log.String())
	}
}
