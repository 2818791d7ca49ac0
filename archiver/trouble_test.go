package archiver

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/store"
)

func TestConflictStopsTheArchiverEvenWhenItsBufferIsFull(t *testing.T) {
	b := newBench(t, 1)
	opt := b.options()
	opt.BufferMax, opt.PartSizeMax = 128<<10, 64<<10
	a := b.run(opt)
	a.archived(b.written())
	var foreign []byte // an object of the right kind with other content
	var once sync.Once
	full := make(chan struct{})
	b.store.onPut(func(ctx context.Context, key string, content []byte, put func() error) error {
		if !strings.Contains(key, ".parts/") {
			return put()
		}
		if foreign == nil {
			foreign = content
			return put()
		}
		once.Do(func() {
			<-full // the store is slow until the buffer is full; then it turns out that somebody else has written here
			if err := b.store.Store.Put(ctx, key, foreign, store.PutOptions{}); err != nil {
				t.Error(err)
			}
		})
		return put()
	})
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		b.pgbench("-i", "-s", "1", "-q")
	}()
	defer func() { <-loaded }()
	last, since := pg.LSN(0), time.Now()
	until(t, "the buffer is full and stays so", func() bool {
		st := a.Stats()
		if st.Received != last || st.BufferFull == 0 {
			last, since = st.Received, time.Now()
		}
		return time.Since(since) > 300*time.Millisecond
	})
	close(full)
	select {
	case <-a.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the archiver hangs")
	}
	if !errors.Is(a.err, repo.ErrConflict) || !strings.Contains(a.err.Error(), "two clusters?") {
		t.Errorf("got %v", a.err)
	}
}

func TestWALThatTheServerHasRemovedIsAVisibleGapAndABackupIsWanted(t *testing.T) {
	for how, settings := range map[string][]string{
		"the slot was dropped":     {"max_wal_size=2MB", "min_wal_size=2MB", "wal_keep_size=0"},
		"the slot was invalidated": {"max_wal_size=2MB", "min_wal_size=2MB", "wal_keep_size=0", "max_slot_wal_keep_size=1MB"},
	} {
		t.Run(how, func(t *testing.T) {
			b := newBench(t, 1, settings...)
			a := b.run(b.options())
			first := b.backup() // what it needs stays
			b.query("select pg_switch_wal()")
			a.archived(b.written())
			if err := a.stop(); err != nil {
				t.Fatal(err)
			}
			before := b.frontier(1)
			until(t, "the walsender is gone", func() bool { return b.query("select count(*) from pg_stat_replication") == "0" })
			if strings.Contains(how, "dropped") {
				b.query("select pg_drop_replication_slot('pitr')")
			}
			for range 6 {
				b.query("insert into flushed values (1); select pg_switch_wal()")
				b.query("checkpoint")
			}
			// Whoever finds the gap is killed before its backup is there.
			b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
				if strings.Contains(key, "/manifest") {
					return errors.New("injected: 503 SlowDown")
				}
				return put()
			})
			end := b.written()
			synchronous := strings.Contains(how, "dropped")
			if synchronous {
				b.query("alter system set synchronous_standby_names = 'pitr'")
				b.query("select pg_reload_conf()")
			}
			a = b.run(b.options())
			until(t, "what follows the gap is stored", func() bool { return a.Stats().Stored >= end })
			if st := a.Stats(); st.Gaps != 1 || !st.Streaming {
				t.Errorf("%d gaps were counted; last error %q", st.Gaps, st.LastError)
			}
			until(t, "a backup is tried", func() bool { return a.Stats().BackupsFailed > 0 })
			acknowledged := func() string {
				return b.query("select coalesce(max(flush_lsn), '0/0') from pg_stat_replication where application_name = 'pitr'")
			}
			if lsn := acknowledged(); synchronous && lsn != "0/0" || a.Stats().Exposed.IsZero() {
				t.Errorf("commits up to %s were told that they are safe, and no backup lies behind the gap", lsn)
			}
			if err := a.stop(); err != nil {
				t.Fatal(err)
			}
			b.store.onPut(nil)
			a = b.run(b.options())
			until(t, "a new recovery window begins", func() bool { return a.Stats().BackupsDone > 0 })
			a.archived(end)
			until(t, "the archive counts as whole again", func() bool { return a.Stats().Exposed.IsZero() })
			if err := a.stop(); err != nil {
				t.Fatal(err)
			}
			inv, err := b.repo.Inventory(t.Context(), 1, b.size, 0)
			if err != nil {
				t.Fatal(err)
			}
			runs := inv.Runs()
			if len(runs) != 2 || runs[0].Start > first.Start || runs[0].End != before || runs[1].Start <= before || runs[1].End < end {
				t.Fatalf("the archive ended at %s, the log at %s; runs %v", before, end, runs)
			}
			gaps, err := b.repo.Gaps(t.Context(), 1)
			if err != nil || len(gaps) != 1 || gaps[0].From != before || gaps[0].To > runs[1].Start || gaps[0].Reason == "" {
				t.Errorf("gaps %+v, %v; the archive has %v", gaps, err, runs)
			}
			backups, err := b.repo.Backups(t.Context())
			if err != nil || len(backups) != 2 || backups[1].Start < runs[1].Start {
				t.Errorf("backups %+v, %v", backups, err)
			}
		})
	}
}

func TestArchiveThatIsAheadOfTheServerIsNotContinued(t *testing.T) {
	b := newBench(t, 1)
	a := b.run(b.options())
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	// The archive of a server that has lost its newest WAL: a crash without fsync, or a volume that was set back.
	end := b.frontier(1)
	part := repo.Part{Timeline: 1, Start: end, End: b.size.Start(end) + pg.LSN(b.size)}
	if err := b.repo.PutPart(t.Context(), b.size, part, time.Now(), b.repo.Pack(make([]byte, part.End-part.Start))); err != nil {
		t.Fatal(err)
	}
	a = b.run(b.options())
	until(t, "the archiver says what is wrong", func() bool {
		return strings.Contains(a.Stats().LastError, "the server has written only up to")
	})
	if a.Stats().Streaming {
		t.Error("it streams")
	}
}
