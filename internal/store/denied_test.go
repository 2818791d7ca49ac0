package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pitr/internal/store"
)

// deleting answers deletes alone.
type deleting struct {
	store.Store
	asked  int
	answer error
}

func (d *deleting) Delete(context.Context, string) error {
	d.asked++
	return d.answer
}

func TestDeniedDeletesAreToldOnceAndNotAskedAgainForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var counts store.Counts
		inner, told := &deleting{answer: errors.Join(store.ErrDenied, store.ErrPermanent)}, 0
		s := store.Retry(store.Denied(store.Counted(inner, &counts), &counts, func(error) { told++ }), store.RetryOptions{Retries: 5, Pause: time.Second})
		try := func(times int, want error) {
			t.Helper()
			for range times {
				if err := s.Delete(t.Context(), "key"); !errors.Is(err, want) {
					t.Fatalf("a delete said %v, want %v", err, want)
				}
			}
		}
		expect := func(asked, tells int, denied, locked uint64) {
			t.Helper()
			if inner.asked != asked || told != tells || counts.DeletesDenied.Load() != denied || counts.DeletesLocked.Load() != locked || counts.Failures.Load() != 0 {
				t.Fatalf("asked %d, told %d, %d denied, %d retained, %d failures; want %d, %d, %d, %d, 0", inner.asked, told,
					counts.DeletesDenied.Load(), counts.DeletesLocked.Load(), counts.Failures.Load(), asked, tells, denied, locked)
			}
		}
		try(100, store.ErrDenied)
		expect(1, 1, 100, 0)
		<-time.After(61 * time.Minute)
		try(100, store.ErrDenied)
		expect(2, 1, 200, 0)
		<-time.After(61 * time.Minute)
		inner.answer = nil
		try(3, nil)
		expect(5, 1, 200, 0)
		inner.answer = errors.Join(store.ErrLocked, store.ErrPermanent) // says nothing about other objects
		try(3, store.ErrLocked)
		expect(8, 1, 200, 3)
		inner.answer = store.ErrDenied
		try(1, store.ErrDenied)
		expect(9, 2, 201, 3)
	})
}
