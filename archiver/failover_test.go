package archiver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/postmaster/postmastertest"
)

// standby makes a streaming standby of the bench's server.
func (b *bench) standby() *postmaster.Server {
	b.t.Helper()
	dir := filepath.Join(postmastertest.TempDir(b.t, b.install), "data")
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	out, err := b.install.Command(ctx, "pg_basebackup", "-D", dir, "-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-p", fmt.Sprint(b.server.Port), "-U", "postgres").CombinedOutput()
	if err != nil {
		b.t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	server, err := b.install.StartChild(ctx, postmaster.StartOptions{Dir: dir, Port: postmastertest.FreePort(b.t), Log: dir + ".log",
		Settings: []string{"fsync=off", "shared_buffers=32MB", "max_wal_size=32MB"}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Stop(ctx, postmaster.Immediate); err != nil {
			b.t.Error(err)
		}
	})
	return server
}

// TestFailoverIsFollowedWithoutAGap kills a primary under load while the store is away, so that what the archive lacks is only on the standby,
// whose checkpoints would have removed it.
func TestFailoverIsFollowedWithoutAGap(t *testing.T) {
	b := newBench(t, 1, "max_wal_size=32MB", "wal_keep_size=64MB")
	standby := b.standby()
	opt := b.options()
	opt.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d,127.0.0.1:%d/postgres?sslmode=disable", standby.Port, b.server.Port)
	a := b.run(opt)
	b.pgbench("-i", "-s", "1", "-q")
	a.archived(b.written())
	on := func(s *postmaster.Server, sql string) string {
		out, err := s.Query(t.Context(), "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	restart := func() pg.LSN {
		lsn, err := pg.ParseLSN(on(standby, "select coalesce(max(restart_lsn), '0/0') from pg_replication_slots where slot_name = 'pitr'"))
		if err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	until(t, "the standby has a slot", func() bool { return restart() > 0 })
	was := restart()
	b.pgbench("-c", "2", "-t", "500", "-n")
	a.archived(b.written())
	until(t, "it is advanced", func() bool { return restart() > was })

	// From here on the archive falls behind.
	b.store.onPut(func(context.Context, string, []byte, func() error) error { return os.ErrDeadlineExceeded })
	var load sync.WaitGroup
	load.Go(func() {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		// It ends with its server.
		_, _ = b.install.Command(ctx, "pgbench", "-c", "2", "-T", "30", "-n", "-h", b.server.Dir, "-p", fmt.Sprint(b.server.Port), "-U", "postgres", "postgres").CombinedOutput()
	})
	behind := a.Stats().Stored
	until(t, "the standby is ahead of the archive", func() bool {
		lsn, err := pg.ParseLSN(on(standby, "select pg_last_wal_replay_lsn()"))
		return err == nil && lsn > behind+2*pg.LSN(mib)
	})
	if err := b.server.Kill(); err != nil {
		t.Fatal(err)
	}
	load.Wait()
	on(standby, "select pg_promote()")
	until(t, "the standby is promoted", func() bool { return on(standby, "select pg_is_in_recovery()") == "f" })
	for range 3 { // whatever no slot holds is removed now
		on(standby, "create table if not exists more (i int); insert into more values (1)")
		on(standby, "select pg_switch_wal()")
		on(standby, "checkpoint")
	}
	b.store.onPut(nil)
	until(t, "the second timeline is streamed", func() bool { return a.Stats().Timeline == 2 })
	on(standby, "insert into more values (2)")
	last, err := pg.ParseLSN(on(standby, "select pg_current_wal_flush_lsn()"))
	if err != nil {
		t.Fatal(err)
	}
	a.archived(last)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if gaps := a.Stats().Gaps; gaps > 0 {
		t.Errorf("%d gaps", gaps)
	}
	p, err := b.repo.Path(t.Context(), 2, b.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	if frontier := p.Frontier(p.Inventory(1).Runs()[0].Start); frontier < last {
		t.Errorf("the log is whole up to %s only, of %s; runs %v and %v", frontier, last, p.Inventory(1).Runs(), p.Inventory(2).Runs())
	}
}
