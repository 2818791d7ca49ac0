package archiver

import (
	"context"
	"fmt"
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
