package archiver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/archiver/replication"
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

// TestSlotOfAServerOnAnotherTimelineStays promotes a standby that lacks WAL that is archived. What it writes at the same positions is other WAL.
func TestSlotOfAServerOnAnotherTimelineStays(t *testing.T) {
	b := newBench(t, 1)
	standby := b.standby()
	on := func(sql string) string {
		out, err := standby.Query(t.Context(), "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a, err := New(b.options())
	if err != nil {
		t.Fatal(err)
	}
	const slot = "select restart_lsn from pg_replication_slots where slot_name = 'pitr'"
	host := replication.Host{Name: "127.0.0.1", Port: uint16(standby.Port)}
	a.opt.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", standby.Port)
	a.opt.StreamFrom = replication.PreferStandby // what is no standby is the primary of the one that we stream from
	keep := func(stored position) string {
		if err := a.keepOtherSlot(t.Context(), host, stored); err != nil {
			t.Fatal(err)
		}
		return on(slot)
	}
	first := keep(position{1, 1})
	b.query("create table t (i int); insert into t select generate_series(1, 100000)")
	was := b.written()
	until(t, "the standby has it", func() bool { return on(fmt.Sprintf("select pg_last_wal_replay_lsn() >= '%s'", was)) == "t" })
	second := keep(position{1, was})
	if second == first {
		t.Errorf("the slot stays at %s on the same timeline", first)
	}
	on("select pg_promote()")
	until(t, "the standby is promoted", func() bool { return on("select pg_is_in_recovery()") == "f" })
	on("create table more (i int); insert into more select generate_series(1, 100000)")
	far := was + 1<<30 // the archive is ahead of where timeline 1 was left
	if third := keep(position{1, far}); third != second {
		t.Errorf("the slot was at %s, and is at %s: nobody has archived that", second, third)
	}
	if third := keep(position{2, far}); third == second {
		t.Errorf("the slot stays at %s on the same timeline", second)
	}
}

// TestGapThatAFailoverLeavesIsNotForgotten promotes a standby whose WAL is removed before anybody has archived it, and kills whoever finds the gap
// before the backup behind it is there. Each timeline for itself looks whole.
func TestGapThatAFailoverLeavesIsNotForgotten(t *testing.T) {
	b := newBench(t, 1, "max_wal_size=32MB")
	standby := b.standby()
	a := b.run(b.options())
	b.backup()
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	on := func(sql string) string {
		out, err := standby.Query(t.Context(), "postgres", "postgres", sql)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if err := b.server.Kill(); err != nil {
		t.Fatal(err)
	}
	on("select pg_promote()")
	for range 4 {
		on("create table if not exists more (i int); insert into more values (1)")
		on("select pg_switch_wal()")
		on("checkpoint")
	}
	b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		if strings.Contains(key, "/manifest") {
			return os.ErrDeadlineExceeded
		}
		return put()
	})
	opt := b.options()
	opt.DSN = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", standby.Port)
	a = b.run(opt)
	until(t, "the gap is found, and a backup is tried", func() bool { return a.Stats().Gaps == 1 && a.Stats().BackupsFailed > 0 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.store.onPut(nil)
	a = b.run(opt)
	until(t, "a backup lies behind the gap", func() bool { return a.Stats().BackupsDone > 0 })
	until(t, "the archive counts as whole again", func() bool { return a.Stats().Exposed.IsZero() })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
}
