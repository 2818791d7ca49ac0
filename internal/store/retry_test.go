package store_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pitr/internal/store"
)

// script answers each call with the next error of its list, then with success.
type script struct {
	errs  []error
	calls int
	block bool // wait for the context instead of failing
}

func (s *script) next(ctx context.Context) error {
	s.calls++
	if s.calls > len(s.errs) {
		return nil
	}
	if s.block {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.errs[s.calls-1]
}

func (s *script) Put(ctx context.Context, _ string, _ []byte, _ store.PutOptions) error {
	return s.next(ctx)
}
func (s *script) Delete(ctx context.Context, _ string) error { return s.next(ctx) }
func (s *script) Get(ctx context.Context, _ string, _, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("x")), s.next(ctx)
}
func (s *script) List(ctx context.Context, _, after string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, key := range []string{"a", "b", "c"} {
			if key <= after {
				continue
			}
			if !yield(store.Object{Key: key}, nil) {
				return
			}
			if err := s.next(ctx); err != nil {
				yield(store.Object{}, err)
				return
			}
		}
	}
}

var errPassing = errors.New("503 SlowDown")

func TestPassingErrorsAreRetriedAndFinalOnesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(errs []error, retries, wantCalls int, want error) {
			t.Helper()
			s := &script{errs: errs}
			r := store.Retry(s, store.RetryOptions{Retries: retries, Pause: time.Second})
			err := r.Put(t.Context(), "k", nil, store.PutOptions{IfAbsent: true})
			if !errors.Is(err, want) || s.calls != wantCalls {
				t.Errorf("%v with %d retries: %d calls, %v", errs, retries, s.calls, err)
			}
		}
		check(nil, 0, 1, nil)
		check([]error{errPassing, errPassing}, 5, 3, nil)
		check([]error{errPassing, errPassing, errPassing}, 2, 3, errPassing)
		check([]error{errPassing, store.ErrExist}, 5, 2, store.ErrExist)
		check([]error{store.ErrNotExist, nil}, 5, 1, store.ErrNotExist)
		check([]error{errors.Join(errPassing, store.ErrPermanent), nil}, 5, 1, store.ErrPermanent)
	})
}

func TestAttemptThatHangsIsCutAndRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{errs: []error{errPassing}, block: true}
		r := store.Retry(s, store.RetryOptions{Retries: 1, Timeout: time.Minute, Pause: time.Second})
		begin := time.Now()
		if err := r.Delete(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < time.Minute || took > time.Minute+time.Second || s.calls != 2 {
			t.Errorf("it took %s and %d calls", took, s.calls)
		}
	})
}

func TestListingGoesOnWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{errs: []error{nil, errPassing}}
		var got string
		for object, err := range store.Retry(s, store.RetryOptions{Retries: 1, Pause: time.Second}).List(t.Context(), "", "") {
			if err != nil {
				t.Fatal(err)
			}
			got += object.Key
		}
		if got != "abc" {
			t.Errorf("listed %q", got)
		}
	})
}

func TestCancelledContextEndsRetrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		errs := make([]error, 1000)
		for i := range errs {
			errs[i] = errPassing
		}
		s := &script{errs: errs}
		err := store.Retry(s, store.RetryOptions{Retries: 1000, Pause: time.Second}).Put(ctx, "k", nil, store.PutOptions{})
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errPassing) {
			t.Errorf("got %v", err)
		}
	})
}
