package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"
)

// RetryOptions bounds how often a request is sent again and how long each may take.
type RetryOptions struct {
	Retries int           // after the first attempt; archive.store_retries
	Timeout time.Duration // for one attempt; archive.store_timeout
	Pause   time.Duration // before the first retry; it doubles, up to PauseMax, and is spread by half
	Notice  func(operation, key string, attempt int, err error)
}

// PauseMax is the longest pause between two attempts.
const PauseMax = 10 * time.Second

// Retry sends what has failed again. The answers of the contract (ErrNotExist, ErrExist, ErrRange, ErrKey), permanent errors and a cancelled
// context are final. A conditional put whose first attempt arrived although its answer was lost meets its own object and
// reports ErrExist: whoever puts conditionally compares the content.
func Retry(inner Store, opt RetryOptions) Store { return &retrying{inner, opt} }

type retrying struct {
	inner Store
	opt   RetryOptions
}

func final(err error) bool {
	for _, answer := range []error{ErrNotExist, ErrExist, ErrRange, ErrKey, ErrPermanent, ErrDenied, ErrLocked} {
		if errors.Is(err, answer) {
			return true
		}
	}
	return false
}

// do runs attempt until it succeeds, its error is final or the retries are used up.
func (r *retrying) do(ctx context.Context, operation, key string, attempt func(context.Context) error) error {
	pause := max(r.opt.Pause, time.Millisecond)
	for n := 0; ; n++ {
		err := attempt(ctx)
		if err == nil || final(err) || ctx.Err() != nil {
			return err
		}
		if n == r.opt.Retries {
			return fmt.Errorf("%s %s: gave up after %d attempts: %w", operation, key, n+1, err)
		}
		if r.opt.Notice != nil {
			r.opt.Notice(operation, key, n+1, err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(ctx.Err(), err)
		case <-timer.C:
		}
		pause = min(2*pause, PauseMax)
	}
}

func (r *retrying) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if r.opt.Timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, r.opt.Timeout)
}

func (r *retrying) Put(ctx context.Context, key string, content []byte, opt PutOptions) error {
	return r.do(ctx, "put", key, func(ctx context.Context) error {
		ctx, cancel := r.limited(ctx)
		defer cancel()
		return r.inner.Put(ctx, key, content, opt)
	})
}

func (r *retrying) Delete(ctx context.Context, key string) error {
	return r.do(ctx, "delete", key, func(ctx context.Context) error {
		ctx, cancel := r.limited(ctx)
		defer cancel()
		return r.inner.Delete(ctx, key)
	})
}

// Get retries until the object is open. A body that breaks off is the caller's to ask for again: it knows how far it came.
func (r *retrying) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	var body io.ReadCloser
	err := r.do(ctx, "get", key, func(ctx context.Context) error {
		ctx, cancel := r.limited(ctx)
		opened, err := r.inner.Get(ctx, key, offset, length)
		if err != nil {
			cancel()
			return err
		}
		body = &cancellingBody{opened, cancel}
		return nil
	})
	return body, err
}

// cancellingBody frees the attempt's context when the body is closed.
type cancellingBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *cancellingBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// List goes on behind the last object that it has yielded.
func (r *retrying) List(ctx context.Context, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		stopped := false
		err := r.do(ctx, "list", prefix, func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			for object, err := range r.inner.List(ctx, prefix, after) {
				if err != nil {
					return err
				}
				after = object.Key
				if !yield(object, nil) {
					stopped = true
					return nil
				}
			}
			return nil
		})
		if err != nil && !stopped {
			yield(Object{}, err)
		}
	}
}
