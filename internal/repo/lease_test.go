package repo

import (
	"context"
	"iter"
	"sync"
	"testing"

	"pitr/internal/store"
	"pitr/internal/store/file"
)

// listed counts what is listed.
type listed struct {
	store.Store
	objects int
}

func (l *listed) List(ctx context.Context, prefix, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for object, err := range l.Store.List(ctx, prefix, after) {
			if l.objects++; !yield(object, err) {
				return
			}
		}
	}
}

// TestNewestLeaseIsFoundWithoutListingAll: where nobody may delete, no lease ever goes.
func TestNewestLeaseIsFoundWithoutListingAll(t *testing.T) {
	files, err := file.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	counted := &listed{Store: files}
	r := New(counted, "main", nil)
	last := uint64(0)
	grow := func(to uint64) {
		var puts sync.WaitGroup
		for ; last < to; last++ {
			next := Lease{Epoch: last + 1, Owner: "a"}
			puts.Go(func() {
				if err := r.PutLease(t.Context(), next); err != nil {
					t.Error(err)
				}
			})
		}
		puts.Wait()
	}
	known := Lease{}
	for _, n := range []uint64{0, 1, 2, 999, 1000, 1001, 1002, 2100} {
		grow(n)
		for from, most := range map[Lease]int{{}: leasesListed + 20, known: 1100, {Epoch: n, Owner: "a"}: 0} {
			if n == 0 {
				from = Lease{}
			}
			counted.objects = 0
			newest, err := r.NewestLease(t.Context(), from)
			if err != nil || newest.Epoch != n || counted.objects > most {
				t.Errorf("of %d leases, behind %d: %d, after %d were listed, %v", n, from.Epoch, newest.Epoch, counted.objects, err)
			}
		}
		known = Lease{Epoch: n, Owner: "a"}
	}
	if _, err := r.DeleteLeases(t.Context(), 2000); err != nil {
		t.Fatal(err)
	}
	if newest, err := r.NewestLease(t.Context(), Lease{}); err != nil || newest.Epoch != 2100 {
		t.Errorf("behind those that were deleted: %d, %v", newest.Epoch, err)
	}
}
