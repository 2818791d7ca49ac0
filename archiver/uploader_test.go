package archiver

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// TestCommitsThatBeginToWaitInTheMiddleOfAStretchAreAnswered lets a commit wait for the archive when some pieces of a stretch were taken already that
// are not put by themselves.
func TestCommitsThatBeginToWaitInTheMiddleOfAStretchAreAnswered(t *testing.T) {
	_, r := newStore(t)
	start := pg.LSN(2 * mib)
	q := newQueue(queueOptions{Start: start, SegmentSize: mib, FlushInterval: time.Hour, PartSizeMax: int(mib / 4), SizeMax: int(4 * mib)})
	if err := q.append(t.Context(), chunk{content: make([]byte, mib), arrived: time.Now(), ends: true}); err != nil {
		t.Fatal(err)
	}
	u := &uploader{repo: r, log: slog.New(slog.DiscardHandler), size: mib, timeline: 1, counts: &counters{},
		slots: make(chan struct{}, 8), open: &stretch{}, stored: q.setStored, stop: func() {}}
	for i := range 4 {
		q.setEager(i > 0)
		u.slots <- struct{}{}
		p, ok, err := q.next(t.Context(), 0)
		if !ok || err != nil {
			t.Fatalf("piece %d: %v", i, err)
		}
		u.launch(context.Background(), q, p)
	}
	u.flights.Wait()
	u.finish(t.Context(), u.open)
	if at := q.positions(); at.Stored != start+pg.LSN(mib) || at.Waiting != 0 {
		t.Errorf("everything is in the store, and %s counts as stored, %d bytes as waiting", at.Stored, at.Waiting)
	}
	inv, err := u.repo.Inventory(t.Context(), 1, mib, 0)
	if err != nil || len(inv.Segments) != 1 || len(inv.Parts) != 0 || u.err != nil {
		t.Errorf("segments %v, parts %v, errors %v, %v", inv.Segments, inv.Parts, err, u.err)
	}
}

// TestFirstStretchOfALargeSegmentIsStoredBeforeTheNext: behind a hole at the start of a segment nothing of it can be read.
func TestFirstStretchOfALargeSegmentIsStoredBeforeTheNext(t *testing.T) {
	const size = pg.SegmentSize(128 * mib)
	h, r := newStore(t)
	q := newQueue(queueOptions{Start: pg.LSN(size), SegmentSize: size, FlushInterval: time.Hour, PartSizeMax: 64 << 20, SizeMax: 256 << 20})
	for range 2 {
		if err := q.append(t.Context(), chunk{content: make([]byte, repo.Stretch(size)), arrived: time.Now(), ends: true}); err != nil {
			t.Fatal(err)
		}
	}
	q.close()
	onTheirWay := atomic.Int64{}
	h.onPut(func(_ context.Context, key string, _ []byte, put func() error) error {
		defer onTheirWay.Add(-1)
		if onTheirWay.Add(1) > 1 {
			t.Errorf("%s is put while what lies before it is not there yet", key)
		}
		<-time.After(300 * time.Millisecond)
		return put()
	})
	u := &uploader{repo: r, log: slog.New(slog.DiscardHandler), size: size, timeline: 1, counts: &counters{}, slots: make(chan struct{}, 8), open: &stretch{}, stored: q.setStored}
	if err := u.run(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if at := q.positions(); at.Stored != 2*pg.LSN(size) {
		t.Errorf("stored up to %s", at.Stored)
	}
}
