package archiver

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
	"pitr/internal/store"
)

// older is a store all of whose objects are older than they are.
type older struct {
	store.Store
	by time.Duration
}

func (o *older) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for object, err := range o.Store.List(ctx, prefix, after) {
			object.Modified = object.Modified.Add(-o.by)
			if !yield(object, err) {
				return
			}
		}
	}
}

// littered is a repository with what killed archivers leave behind on two timelines, and the keys of what a sweep must leave.
func littered(t *testing.T) (h *hooked, files *older, r *repo.Repo, stays []string) {
	t.Helper()
	h, _ = newStore(t)
	files = &older{Store: h}
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	r = repo.New(files, "main", compressor)
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	now := time.Now()
	litter := map[string]bool{}
	note := func(litters bool, put func() error) {
		t.Helper()
		before := keys(t, h)
		try(put())
		for _, key := range keys(t, h) {
			if !slices.Contains(before, key) {
				litter[key] = litters
			}
		}
	}
	note(false, func() error { return r.Bind(ctx, repo.Cluster{SystemID: 77, SegmentSize: mib}) })
	note(false, func() error { return r.PutHistory(ctx, 2, []byte("1\t0/480000\tx\n")) })
	for _, tli := range []pg.Timeline{1, 2} {
		for number := range uint64(3) {
			start := pg.Segment{Timeline: tli, Number: number}.Start(mib)
			for i := range pg.LSN(3) { // of the last segment they are all there is
				part := repo.Part{Timeline: tli, Start: start + 8*i, End: start + 8*i + 8}
				note(number < 2, func() error { return r.PutPart(ctx, mib, part, time.Time{}, r.Pack(make([]byte, 8))) })
			}
			if number < 2 {
				var b repo.StretchBuilder
				b.Add(make([]byte, mib), r.Pack(make([]byte, mib)))
				note(false, func() error {
					return r.PutStretch(ctx, mib, repo.Part{Timeline: tli, Start: start, End: start + pg.LSN(mib)}, time.Time{}, &b)
				})
			}
			for i := range 3 { // of one position; the last says all that the others do
				note(i < 2, func() error {
					return r.PutClock(ctx, tli, repo.Clock{LSN: start, Time: now.Add(time.Duration(i-9) * time.Hour)})
				})
			}
		}
	}
	for epoch := range uint64(3 * leasesKept) {
		note(epoch < leasesKept, func() error { return r.PutLease(ctx, repo.Lease{Epoch: epoch + 1, Owner: "us"}) })
	}
	note(true, func() error { return h.Put(ctx, store.ProbePrefix+"x", nil, store.PutOptions{}) })
	for key, litters := range litter {
		if !litters {
			stays = append(stays, key)
		}
	}
	slices.Sort(stays)
	return h, files, r, stays
}

func TestSweepRemovesWhatOthersHaveReplacedAndNothingElse(t *testing.T) {
	h, files, r, stays := littered(t)
	before := time.Now().Add(-10 * time.Minute)
	swept, err := Sweep(t.Context(), r, before)
	if err != nil || swept.Young != 12 {
		t.Fatalf("%+v: %v", swept, err)
	}
	parts := func() int {
		return len(slices.DeleteFunc(keys(t, h), func(key string) bool { return !strings.Contains(key, ".parts/") }))
	}
	if n := parts(); n != 18 {
		t.Errorf("%d parts are left of 18, though a reader may have just listed them", n)
	}
	files.by = 11 * time.Minute
	if swept, err = Sweep(t.Context(), r, before); err != nil || swept.Young != 0 || swept.Removed != 13 {
		t.Fatalf("%+v: %v", swept, err)
	}
	if left := keys(t, h); !slices.Equal(left, stays) {
		t.Errorf("left %q\nwant %q", left, stays)
	}
	if swept, err = Sweep(t.Context(), r, before); err != nil || swept != (Swept{}) {
		t.Errorf("a second sweep: %+v: %v", swept, err)
	}
}

func TestSweepThatWasKilledIsCompletedByTheNext(t *testing.T) {
	killed := errors.New("injected: killed")
	for deletions := 1; ; deletions++ {
		h, files, r, stays := littered(t)
		files.by = time.Hour
		left := deletions
		h.delete = func(string) error {
			if left--; left <= 0 {
				return killed
			}
			return nil
		}
		_, err := Sweep(t.Context(), r, time.Now())
		h.delete = nil
		if err == nil {
			if deletions < 30 {
				t.Errorf("only %d deletions", deletions)
			}
			return
		}
		if !errors.Is(err, killed) {
			t.Fatal(err)
		}
		if _, err := Sweep(t.Context(), r, time.Now()); err != nil {
			t.Fatal(err)
		}
		if left := keys(t, h); !slices.Equal(left, stays) {
			t.Fatalf("killed at deletion %d: left %q\nwant %q", deletions, left, stays)
		}
	}
}

func TestSweepStopsWhereItMayNotDeleteAndPassesWhatIsRetained(t *testing.T) {
	h, files, r, _ := littered(t)
	files.by = time.Hour
	asked := 0
	h.delete = func(string) error { asked++; return store.ErrDenied }
	if swept, err := Sweep(t.Context(), r, time.Now()); !errors.Is(err, repo.ErrDenied) || asked != 1 || swept.Removed != 0 {
		t.Errorf("asked %d times, %+v: %v", asked, swept, err)
	}
	h.delete = func(key string) error {
		if strings.Contains(key, ".parts/") {
			return store.ErrLocked
		}
		return nil
	}
	if swept, err := Sweep(t.Context(), r, time.Now()); err != nil || swept.Retained != 12 || swept.Removed == 0 {
		t.Errorf("%+v: %v", swept, err)
	}
}

func TestExpiryLeavesWhatIsRetainedWithAllThatItNeeds(t *testing.T) {
	h, r, plan := stocked(t)
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	all := keys(t, h)
	retained := map[string]bool{"main/backups/20260101T000000Z/manifest": true, "main/index/00000001/000000010000000000000000": true}
	h.delete = func(key string) error {
		if retained[key] {
			return store.ErrLocked
		}
		return nil
	}
	done, err := plan.CarryOut(t.Context(), r, now)
	if err != nil || done.Retained != 2 {
		t.Fatalf("%+v: %v", done, err)
	}
	left := keys(t, h)
	for _, key := range all { // the backup of the first of January is there, and begins in segment 1
		number := key[len(key)-1:]
		needed := strings.HasPrefix(key, "packs/20260101") || (strings.HasPrefix(key, "wal/") || strings.HasPrefix(key, "index/")) && !strings.Contains(key, ".parts") && number >= "1"
		if needed && !slices.Contains(left, key) {
			t.Errorf("%s has gone", key)
		}
	}
	h.delete = nil
	if _, err := plan.CarryOut(t.Context(), r, now); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, h); !slices.Equal(left, wantAfterExpiry()) {
		t.Errorf("when nothing is retained any more: %q", left)
	}
}

// TestPartsThatAKillHasLeftAreSwept has an archiver killed, again and again, before it has removed what it has replaced.
func TestPartsThatAKillHasLeftAreSwept(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	b.query("create table t (i int)")
	for range 3 {
		b.store.mu.Lock()
		b.store.delete = func(string) error { return errors.New("injected: killed") }
		b.store.mu.Unlock()
		a := b.run(b.options())
		for range 2 {
			b.query("insert into t values (1)")
			a.archived(b.written())
			b.query("select pg_switch_wal()")
		}
		b.query("insert into t values (1)")
		a.archived(b.written())
		if err := a.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.inventory(1).Superfluous(time.Now())) == 0 {
		t.Fatal("nothing was left: the test shows nothing")
	}
	b.store.mu.Lock()
	b.store.delete = nil
	b.store.mu.Unlock()
	a := b.run(b.options())
	until(t, "the parts are swept", func() bool { return len(b.inventory(1).Superfluous(time.Now())) == 0 && a.Stats().Swept > 0 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	b.compareWAL(1)
}

// TestArchiverWithoutTheRightToDeleteArchivesQuietly takes backups and WAL, and leaves expiry to others.
func TestArchiverWithoutTheRightToDeleteArchivesQuietly(t *testing.T) {
	b := newBench(t, 1, "wal_keep_size=1GB")
	b.store.mu.Lock()
	b.store.delete = func(string) error { return store.ErrDenied }
	b.store.mu.Unlock()
	opt := b.options()
	opt.Retention.Window = 0
	a := b.run(opt)
	b.query("create table t (i int)")
	for range 2 {
		a.archived(b.written())
		b.query("select pg_switch_wal()")
		b.query("insert into t values (1)")
		a.archived(b.written())
		a.wantBackup("the test wants one")
		before := a.Stats().BackupsDone
		until(t, "a backup is taken", func() bool { return a.Stats().BackupsDone > before })
	}
	until(t, "expiry is skipped", func() bool { return a.Stats().ExpiriesDenied > 0 })
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"level=WARN", "level=ERROR"} {
		if strings.Contains(b.log.String(), word) {
			t.Errorf("%s in the log:\n%s", word, b.log)
		}
	}
	b.compareWAL(1)
	b.store.mu.Lock()
	b.store.delete = nil
	b.store.mu.Unlock()
	if _, err := Sweep(t.Context(), b.repo, time.Now()); err != nil {
		t.Fatal(err)
	}
	if left := b.inventory(1).Superfluous(time.Now()); len(left) > 0 {
		t.Errorf("somebody else has left %v", left)
	}
}
