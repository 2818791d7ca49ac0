package archiver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// TestLargeSegmentStaysInPartsThatFitIntoMemory archives a segment of which no more than half may be one object, kills the archiver in
// the middle of it, and reads it all back.
func TestLargeSegmentStaysInPartsThatFitIntoMemory(t *testing.T) {
	b := newBench(t, 128, "wal_keep_size=1GB")
	largest := atomic.Int64{}
	b.store.onPut(func(_ context.Context, _ string, content []byte, put func() error) error {
		largest.Store(max(largest.Load(), int64(len(content))))
		return put()
	})
	opt := b.options()
	opt.PartSizeMax = 4 << 20
	a := b.run(opt)
	b.query("create table t (x text); alter table t alter x set storage external")
	fill := func(mib int) {
		for range mib {
			b.query("insert into t select string_agg(md5(i::text || random()::text), '') from generate_series(1, 32768) i")
		}
	}
	fill(40)
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	a = b.run(opt)
	fill(60)
	b.query("select pg_switch_wal()")
	b.query("insert into t values ('next')")
	a.archived(b.written())
	first := b.size.Segment(1, b.frontier(1)-1).Number - 1
	until(t, "the stretches are put together", func() bool {
		inv := b.inventory(1)
		return inv.Complete(first) && len(inv.Parts[first]) == 2 && b.hasIndex(pg.Segment{Timeline: 1, Number: first})
	})
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	inv := b.inventory(1)
	for _, part := range inv.Parts[first] {
		if part.End-part.Start != repo.Stretch(b.size) {
			t.Errorf("a part from %s to %s", part.Start, part.End)
		}
	}
	if len(inv.Segments) != 0 || len(inv.Runs()) != 1 {
		t.Errorf("segments %v, runs %v", inv.Segments, inv.Runs())
	}
	t.Logf("%d bytes are equal, the largest object has %d", b.compareWAL(1), largest.Load())

	// What an archiver has left that was killed before it could clean up is swept by the next.
	stretch := inv.Parts[first][0]
	left := repo.Part{Timeline: 1, Start: stretch.Start + 100, End: stretch.Start + 200}
	if err := b.repo.PutPart(t.Context(), b.size, left, time.Time{}, b.repo.Pack(make([]byte, 100))); err != nil {
		t.Fatal(err)
	}
	a = b.run(opt)
	b.query("insert into t values ('after')")
	a.archived(b.written())
	if parts := b.inventory(1).Parts[first]; len(parts) != 2 {
		t.Errorf("parts %v", parts)
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) inventory(tli pg.Timeline) *repo.Inventory {
	b.t.Helper()
	inv, err := b.repo.Inventory(b.t.Context(), tli, b.size, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return inv
}

func (b *bench) hasIndex(segment pg.Segment) bool {
	_, err := b.repo.ReadIndex(b.t.Context(), b.size, segment)
	return err == nil
}

// TestPutsThatOvertakeEachOtherAreNeverAcknowledgedAcrossAGap lets puts take a random time while commits wait, kills the archiver with several
// in flight, and looks at every moment whether the server was told of more than a prefix.
func TestPutsThatOvertakeEachOtherAreNeverAcknowledgedAcrossAGap(t *testing.T) {
	b := newBench(t, 1, "synchronous_standby_names=pitr", "wal_keep_size=1GB")
	var mu sync.Mutex
	flying, most, overtaken := 0, 0, 0
	var order []string
	b.store.onPut(func(ctx context.Context, key string, _ []byte, put func() error) error {
		if !strings.Contains(key, ".parts/") {
			return put()
		}
		mu.Lock()
		flying++
		most = max(most, flying)
		n := len(order)
		order = append(order, key)
		mu.Unlock()
		pause := time.Duration(n*7919%40) * time.Millisecond
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		err := put()
		mu.Lock()
		flying--
		if order[len(order)-1] != key {
			overtaken++
		}
		mu.Unlock()
		return err
	})
	b.query("set synchronous_commit = local; create table t (i int)")
	over := make(chan struct{})
	committed := atomic.Int64{}
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				b.query(fmt.Sprintf("insert into t values (%d)", client*1_000_000+i))
				committed.Add(1)
			}
		})
	}
	for range 4 {
		a := b.run(b.options())
		was := committed.Load()
		until(t, "commits return", func() bool { return committed.Load() > was+40 })
		for range 20 {
			acknowledged := b.lsn("select coalesce(max(flush_lsn), '0/0') from pg_stat_replication where application_name = 'pitr'")
			if stored := b.frontier(1); acknowledged > stored {
				t.Errorf("the server was told of %s, and the store has the log up to %s", acknowledged, stored)
			}
		}
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
	}
	a := b.run(b.options())
	close(over)
	clients.Wait()
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if most < 3 || overtaken == 0 {
		t.Errorf("at most %d puts were in flight, %d overtook another: the test shows nothing", most, overtaken)
	}
	t.Logf("%d commits, at most %d puts in flight, %d overtaken; %d bytes are equal", committed.Load(), most, overtaken, b.compareWAL(1))
	b.everySegmentHasItsIndexAndNoParts()
}

// TestPartsBehindAHoleOutliveTheStretchBeforeThem lets an archiver end with parts of the second stretch of a segment in the store, and a hole
// before them: they are acknowledged by the next archiver, and must not go when it puts the first stretch together.
func TestPartsBehindAHoleOutliveTheStretchBeforeThem(t *testing.T) {
	b := newBench(t, 128, "wal_keep_size=1GB")
	blocked := atomic.Bool{}
	blocked.Store(true)
	b.store.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		if blocked.Load() && strings.HasSuffix(key, "-000000000C000000") { // the part that ends the first stretch of the segment at 8000000
			return errors.New("injected: 503 SlowDown")
		}
		return put()
	})
	opt := b.options()
	opt.PartSizeMax, opt.BufferMax, opt.FlushInterval, opt.ShutdownGrace = 4<<20, 256<<20, 200*time.Millisecond, time.Second
	a := b.run(opt)
	b.query("create table t (x text); alter table t alter x set storage external")
	until(t, "the archiver streams", func() bool { return a.Stats().Streaming })
	for range 78 {
		b.query("insert into t select string_agg(md5(i::text || random()::text), '') from generate_series(1, 32768) i")
	}
	behind := pg.LSN(0xC000000 + 8<<20)
	until(t, "parts lie behind the hole", func() bool { return b.inventory(1).Last() >= behind })
	if err := a.stop(); err == nil && b.inventory(1).Runs()[0].End >= behind {
		t.Fatal("there is no hole: the test shows nothing")
	}
	blocked.Store(false)
	a = b.run(opt)
	until(t, "what lies behind is acknowledged", func() bool { return a.Stats().Stored >= behind })
	until(t, "the first stretch is put together", func() bool {
		return slices.ContainsFunc(b.inventory(1).Parts[1], func(p repo.Part) bool { return p.Start == 0x8000000 && p.End == 0xC000000 })
	})
	for range 10 {
		acknowledged := a.Stats().Stored
		if runs := b.inventory(1).Runs(); runs[0].End < acknowledged {
			t.Fatalf("%s is acknowledged, and the store has %v", acknowledged, runs)
		}
		b.written()
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.compareWAL(1)
}

// TestHoleThatTheSlotStillCoversIsFilled pushes a segment that lies ahead of what was streamed.
func TestHoleThatTheSlotStillCoversIsFilled(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	a := b.run(b.options())
	b.query("create table t (i int)")
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	last := ""
	for range 5 {
		b.query("insert into t values (1)")
		last = b.query("select pg_walfile_name(pg_current_wal_insert_lsn())")
		b.query("select pg_switch_wal()")
	}
	if err := b.push(last, b.walFile(last), nil); err != nil {
		t.Fatal(err)
	}
	if runs := b.inventory(1).Runs(); len(runs) != 2 {
		t.Fatalf("runs %v: the test shows nothing", runs)
	}
	a = b.run(b.options())
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.compareWAL(1) // of one run
	b.everySegmentHasItsIndexAndNoParts()
}

// TestArchiverThatMayNotDeleteArchives leaves what it would have to remove.
func TestArchiverThatMayNotDeleteArchives(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	b.store.mu.Lock()
	b.store.delete = func(string) error { return errors.New("injected: access denied") }
	b.store.mu.Unlock()
	a := b.run(b.options())
	b.query("create table t (i int)")
	for range 3 {
		a.archived(b.written())
		b.query("select pg_switch_wal()")
		b.query("insert into t values (1)")
		a.archived(b.written())
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
		a = b.run(b.options())
	}
	a.archived(b.written())
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	if inv := b.inventory(1); len(inv.Superfluous(time.Now())) == 0 {
		t.Error("nothing was left: the test shows nothing")
	}
	b.compareWAL(1)
}
