package archiver

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pitr/internal/repo"
	"pitr/internal/store"
)

// view is the store as one archiver sees it.
func (b *bench) view() (*hooked, Options) {
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		b.t.Fatal(err)
	}
	h := &hooked{Store: b.store}
	opt := b.options()
	opt.Repo, opt.Lease = repo.New(h, "main", compressor), 2*time.Second
	return h, opt
}

func (h *hooked) unreachable() {
	h.onPut(func(ctx context.Context, _ string, _ []byte, _ func() error) error {
		<-ctx.Done()
		return ctx.Err()
	})
}

func TestStandByTakesOverFromAnArchiverThatDoesNotRenewItsLease(t *testing.T) {
	b := newBench(t, 1)
	store1, opt1 := b.view()
	_, opt2 := b.view()
	first := b.run(opt1)
	first.archived(b.written())
	second := b.run(opt2)
	until(t, "the second stands by", func() bool { return second.Stats().Lease.Epoch > 0 })
	if st := second.Stats(); !st.Lease.StandBy || st.Streaming || !st.Oldest.IsZero() {
		t.Fatalf("the second does not stand by: %+v", st)
	}
	b.pgbench("-i", "-s", "1", "-q")
	first.archived(b.written())

	// The first still streams, but it cannot reach the store any more.
	store1.unreachable()
	begin := time.Now()
	until(t, "the second streams", func() bool { return second.Stats().Streaming })
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the second took over after %s", took)
	}
	second.archived(b.written())
	store1.onPut(nil)
	until(t, "the first stands by", func() bool { st := first.Stats(); return st.Lease.StandBy && !st.Streaming })
	b.pgbench("-c", "4", "-t", "100")
	second.archived(b.written())

	// Who stops gives the lease back.
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	first.archived(b.written())
	t.Logf("the first was at work again after %s", time.Since(begin))
	if first.Stats().Lease.Terms != 2 || first.Stats().Gaps+second.Stats().Gaps > 0 {
		t.Errorf("terms and gaps: %+v, %+v", first.Stats(), second.Stats())
	}
	if b.compareWAL(1) == 0 {
		t.Error("nothing was compared")
	}
}

func TestArchiverThatCannotReachPostgresGivesTheLeaseToAnother(t *testing.T) {
	b := newBench(t, 1)
	_, opt1 := b.view()
	_, opt2 := b.view()
	opt1.DSN = "postgres://postgres@127.0.0.1:1/postgres?sslmode=disable"
	first := b.run(opt1)
	until(t, "the first holds the lease", func() bool { return first.Stats().Lease.Held })
	second := b.run(opt2)
	second.archived(b.written())
}

// slow is a store that takes long to list WAL, as one with much of it.
type slow struct{ store.Store }

func (s slow) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	if strings.Contains(prefix, "/wal/") {
		<-time.After(1500 * time.Millisecond)
	}
	return s.Store.List(ctx, prefix, after)
}

func TestArchiverThatTakesLongToResumeKeepsTheLease(t *testing.T) {
	b := newBench(t, 1)
	compressor, err := repo.NewCompressor("zstd:1")
	if err != nil {
		t.Fatal(err)
	}
	opt := b.options()
	opt.Repo, opt.Lease = repo.New(slow{b.store}, "main", compressor), 2*time.Second
	a := b.run(opt)
	until(t, "it streams", func() bool { return a.Stats().Streaming })
	if terms := a.Stats().Lease.Terms; terms != 1 {
		t.Errorf("it has taken the lease %d times", terms)
	}
}

// TestNoTwoHoldALease lets archivers claim and renew with puts that take long, fail, or fail after they were carried out.
func TestNoTwoHoldALease(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) { leaseRound(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func leaseRound(t *testing.T, rng *rand.Rand) {
	shared, _ := newStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	const n, length = 3, 5 * time.Second
	var all []*lease
	for range n {
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		bad := false
		h := &hooked{Store: shared}
		h.onPut(func(ctx context.Context, _ string, _ []byte, put func() error) error {
			if own.IntN(10) == 0 {
				bad = !bad
			}
			if bad || own.IntN(5) == 0 {
				<-time.After(time.Duration(own.IntN(8000)) * time.Millisecond)
			}
			if ctx.Err() != nil || own.IntN(10) == 0 {
				return errors.New("lost on its way")
			}
			err := put()
			if own.IntN(10) == 0 {
				return errors.New("the answer was lost")
			}
			return err
		})
		compressor, err := repo.NewCompressor("zstd:1")
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(Options{Lease: length, Repo: repo.New(store.Retry(h, store.RetryOptions{Retries: 1, Pause: time.Millisecond}), "main", compressor), Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a.lease)
		go func() {
			_ = a.lease.run(ctx, func(term context.Context) error { <-term.Done(); return nil })
		}()
	}
	terms := uint64(0)
	for range 3000 {
		<-time.After(100 * time.Millisecond)
		holders := 0
		for _, l := range all {
			if l.view().held {
				holders++
			}
		}
		if holders > 1 {
			t.Errorf("%d hold the lease", holders)
			break
		}
	}
	for _, l := range all {
		terms += l.view().terms
	}
	if terms < 2 {
		t.Errorf("%d terms: the round shows nothing", terms)
	}
	cancel()
	synctest.Wait()
	<-time.After(time.Minute) // what was begun ends
}
