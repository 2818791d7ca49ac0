package archiver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/postmaster"
	"pitr/internal/repo"
)

func (b *bench) compareAt(tli pg.Timeline, at pg.LSN, content []byte) error {
	segment := b.size.Segment(tli, at)
	f, err := os.Open(filepath.Join(b.server.Dir, "pg_wal", segment.Name(b.size)))
	if err != nil {
		return err
	}
	defer f.Close()
	own := make([]byte, len(content))
	if _, err := f.ReadAt(own, int64(b.size.Offset(at))); err != nil {
		return err
	}
	for i := range own {
		if own[i] != content[i] {
			return fmt.Errorf("the archive differs from the server's own WAL at %s", at+pg.LSN(i))
		}
	}
	return nil
}

func TestArchiveEqualsTheServersOwnWAL(t *testing.T) {
	for _, mb := range []int{1, 16} {
		t.Run(fmt.Sprintf("segments of %d MiB", mb), func(t *testing.T) {
			b := newBench(t, mb, "wal_keep_size=1GB")
			a := b.run(b.options())
			b.pgbench("-i", "-s", "2", "-q")
			b.pgbench("-c", "4", "-T", "2", "-n")
			b.query("select pg_logical_emit_message(false, 'pitr', repeat('big', 900000))") // spans segments of 1 MiB
			b.query("select pg_switch_wal()")
			end := b.written()
			a.archived(end)
			if err := a.stop(); err != nil {
				t.Fatal(err)
			}
			n := b.compareWAL(1)
			if frontier := b.frontier(1); frontier < end || n < 10<<20 {
				t.Errorf("the archive ends at %s, the server wrote up to %s; %d bytes are equal", frontier, end, n)
			}
			st := a.Stats()
			t.Logf("%d bytes are equal, %d segments, %d parts", n, st.Segments, st.Parts)
			b.everySegmentHasItsIndexAndNoParts()
		})
	}
}

func (b *bench) everySegmentHasItsIndexAndNoParts() {
	b.t.Helper()
	inv, err := b.repo.Inventory(b.t.Context(), 1, b.size, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, number := range inv.Segments {
		if _, err := b.repo.ReadIndex(b.t.Context(), b.size, pg.Segment{Timeline: 1, Number: number}); err != nil {
			b.t.Error(err)
		}
		if n := len(inv.Parts[number]); n != 0 {
			b.t.Errorf("segment %X is whole and has %d parts", number, n)
		}
	}
}

func TestNothingIsAcknowledgedThatTheStoreDoesNotHold(t *testing.T) {
	b := newBench(t, 1)
	var puts atomic.Int64
	b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		if !strings.Contains(key, "/wal/") {
			return put()
		}
		<-time.After(30 * time.Millisecond) // a slow store
		switch puts.Add(1) {
		case 15:
			return errors.New("injected: the connection broke before the object arrived")
		case 30:
			return errors.Join(errors.New("injected: the connection broke after the object had arrived"), put())
		default:
			return put()
		}
	})
	opt := b.options()
	opt.FlushInterval, opt.BufferMax, opt.PartSizeMax = 20*time.Millisecond, 512<<10, 128<<10
	a := b.run(opt)
	b.pgbench("-i", "-s", "1", "-q")
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.pgbench("-c", "4", "-T", "6", "-n", "-R", "300")
	}()
	samples, moved, last := 0, 0, pg.LSN(0)
	for running := true; running; {
		select {
		case <-over:
			running = false
		default:
		}
		// The acknowledgement is read first: what the store holds can only have grown since.
		flushed := b.lsn("select coalesce(max(flush_lsn), '0/0') from pg_stat_replication where application_name = 'pitr'")
		held := b.frontier(1)
		if held != 0 && flushed > held {
			t.Fatalf("Postgres was told that everything up to %s is flushed, and the store holds it up to %s", flushed, held)
		}
		if held == 0 && b.size.Offset(flushed) != 0 {
			t.Fatalf("Postgres was told that %s is flushed, and the store holds nothing", flushed)
		}
		samples++
		if flushed > last {
			moved, last = moved+1, flushed
		}
	}
	if samples < 20 || moved < 10 {
		t.Errorf("%d samples, in which the acknowledged position moved %d times, show little", samples, moved)
	}
	st := a.Stats()
	if st.StoreFailures == 0 {
		t.Error("no put has failed")
	}
	t.Logf("%d samples, %d positions, %d failed puts, back-pressure %d times", samples, moved, st.StoreFailures, st.BufferFull)
}

func TestServerStopsAtOnceAndEverythingIsStored(t *testing.T) {
	b := newBench(t, 16, "wal_keep_size=1GB")
	opt := b.options()
	opt.FlushInterval = 20 * time.Second // the shutdown must not wait for it
	a := b.run(opt)
	b.pgbench("-i", "-s", "1", "-q")
	end := b.written()
	until(t, "less than a part is left of the load", func() bool {
		return a.Stats().Received >= end && a.Stats().WaitingBytes < opt.PartSizeMax
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	if err := b.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	if took > 3*time.Second {
		t.Errorf("pg_ctl stop -m fast took %s", took)
	}
	t.Logf("stopped in %s", took)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	out, err := b.install.Command(t.Context(), "pg_controldata", b.server.Dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(out), "Latest checkpoint location:")
	checkpoint, err := pg.ParseLSN(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	if frontier := b.frontier(1); frontier <= checkpoint {
		t.Errorf("the shutdown checkpoint is at %s, the archive ends at %s", checkpoint, frontier)
	}
	b.compareWAL(1)
}

func TestCommitReturnsOnlyWhenTheStoreHasIt(t *testing.T) {
	b := newBench(t, 16, "synchronous_standby_names=pitr")
	b.query("set synchronous_commit = local; create table t (i int)")
	a := b.run(b.options())
	until(t, "the archiver is the synchronous standby", func() bool {
		return b.query("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
	})
	var worst time.Duration
	for i := range 20 {
		begin := time.Now()
		committed := b.lsn(fmt.Sprintf("insert into t values (%d); select pg_current_wal_insert_lsn()", i))
		worst = max(worst, time.Since(begin))
		if held := b.frontier(1); held < committed {
			t.Fatalf("a commit returned whose WAL ends at %s, and the store holds it up to %s", committed, held)
		}
	}
	t.Logf("20 commits, the slowest took %s with psql's start", worst)
	// While the store takes nothing, nothing is committed.
	release := make(chan struct{})
	b.store.onPut(func(_ context.Context, _ string, _ []byte, put func() error) error {
		<-release
		return put()
	})
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		b.query("insert into t values (-1)")
	}()
	until(t, "the commit waits", func() bool {
		return b.query("select count(*) from pg_stat_activity where wait_event = 'SyncRep'") == "1"
	})
	select {
	case <-returned:
		t.Error("a commit returned while the store held nothing of it")
	case <-time.After(500 * time.Millisecond):
	}
	close(release)
	<-returned
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestArchiverThatIsKilledAtAnyMomentGoesOnWithoutGapOrConflict(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=2GB")
	kills := b.killAtAnyMoment(func() *repo.Repo { return b.repo })
	n := b.compareWAL(1)
	b.everySegmentHasItsIndexAndNoParts()
	t.Logf("%d archivers died, %d bytes are equal", kills, n)
}

// killAtAnyMoment lets archivers die under load, one after the other, each with a repository of its own, and the last one finish.
func (b *bench) killAtAnyMoment(repository func() *repo.Repo) (kills int) {
	b.t.Helper()
	b.pgbench("-i", "-s", "1", "-q")
	over := make(chan struct{})
	go func() {
		defer close(over)
		b.pgbench("-c", "4", "-T", "8", "-n")
	}()
	for running := true; running; kills++ {
		// Each archiver dies at another request to the store: some before the object arrives, some after, none with a last word.
		var puts atomic.Int64
		dead := make(chan struct{})
		last := int64(3 + 5*(kills%7))
		b.store.onPut(func(ctx context.Context, _ string, _ []byte, put func() error) error {
			n := puts.Add(1)
			if n < last {
				return put()
			}
			if n == last && kills%2 == 0 {
				_ = put() // it arrives, and nobody hears of it
			}
			if n == last {
				close(dead)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		opt := b.options()
		opt.ShutdownGrace, opt.FlushInterval, opt.PartSizeMax = time.Millisecond, 10*time.Millisecond, 100_000+kills*1013
		opt.Repo = repository()
		a := b.run(opt)
		select {
		case <-dead:
		case <-over:
			running = false
		}
		if err := a.stop(); err != nil {
			b.t.Fatal(err)
		}
		if strings.Contains(b.log.String(), "holds other content") {
			b.t.Fatal("the archive has a conflict")
		}
	}
	b.store.onPut(nil)
	opt := b.options()
	opt.Repo = repository()
	a := b.run(opt)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		b.t.Fatal(err)
	}
	if kills < 4 {
		b.t.Errorf("only %d archivers died", kills)
	}
	return kills
}

func TestForeignClusterIsRefusedAndChangesNothing(t *testing.T) {
	b := newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	before := b.frontier(1)
	other := newBench(t, 16)
	opt := other.options()
	opt.Repo = b.repo
	stranger := other.run(opt)
	select {
	case <-stranger.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the archiver of another cluster goes on")
	}
	if !errors.Is(stranger.err, repo.ErrForeign) {
		t.Errorf("got %v", stranger.err)
	}
	if after := b.frontier(1); after != before {
		t.Errorf("the archive ended at %s and ends at %s now", before, after)
	}
	if n := other.query("select count(*) from pg_replication_slots"); n != "0" {
		t.Errorf("it has left %s slots on the server that it may not archive", n)
	}
}

func TestServerThatComesBackOnANewTimelineIsFollowed(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	a := b.run(b.options())
	b.pgbench("-i", "-s", "1", "-q")
	a.archived(b.written())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.server.Stop(ctx, postmaster.Fast); err != nil {
		t.Fatal(err)
	}
	// As a standby without a primary it ends its recovery where its WAL ends, and is promoted.
	if err := os.WriteFile(filepath.Join(b.server.Dir, "standby.signal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.restart(ctx)
	b.query("select pg_promote()")
	b.pgbench("-c", "2", "-T", "1", "-n")
	until(t, "the second timeline is streamed", func() bool { return a.Stats().Timeline == 2 })
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	history, err := b.repo.History(ctx, 2)
	if err != nil || len(history) != 1 {
		t.Fatalf("history %v, %v", history, err)
	}
	p, err := b.repo.Path(ctx, 2, b.size, 0)
	if err != nil {
		t.Fatal(err)
	}
	from := p.Inventory(1).Runs()[0].Start
	if frontier := p.Frontier(from); frontier != b.frontier(2) || frontier <= history[0].Switch {
		t.Errorf("the path ends at %s, the switch was at %s", frontier, history[0].Switch)
	}
	b.compareWAL(2)
}

func (b *bench) restart(ctx context.Context) {
	b.t.Helper()
	server, err := b.install.StartChild(ctx, postmaster.StartOptions{Dir: b.server.Dir, Port: b.server.Port, Log: b.server.Dir + ".log",
		Settings: []string{"fsync=off", "shared_buffers=32MB", "wal_keep_size=1GB"}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = server
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Stop(ctx, postmaster.Immediate); err != nil {
			b.t.Error(err)
		}
	})
}
