package store

import (
	"context"
	"errors"
	"sync"
	"time"
)

// deniedFor is how long a store that has denied a delete is not asked for another one: rights change rarely, and expiry would ask
// thousands of times.
const deniedFor = time.Hour

// Denied spares a store deletes that the credentials do not allow: after the first one that is refused, others fail with ErrDenied at once, for a
// while. Each counts in c. notice is called with the first.
func Denied(inner Store, c *Counts, notice func(err error)) Store {
	return &denied{Store: inner, counts: c, notice: notice, now: time.Now}
}

type denied struct {
	Store
	counts *Counts
	notice func(err error)
	now    func() time.Time

	mu    sync.Mutex // guards what follows
	cause error      // of the last refusal; nil: none, or a delete has succeeded since
	until time.Time
}

func (d *denied) Delete(ctx context.Context, key string) error {
	if err := d.known(); err != nil {
		d.counts.DeletesDenied.Add(1)
		return err
	}
	err := d.Store.Delete(ctx, key)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case errors.Is(err, ErrDenied):
		d.counts.DeletesDenied.Add(1)
		if d.cause == nil {
			d.notice(err)
		}
		d.cause, d.until = err, d.now().Add(deniedFor)
	case errors.Is(err, ErrLocked):
		d.counts.DeletesLocked.Add(1)
	case err == nil:
		d.cause = nil
	}
	return err
}

// known is the refusal that answers for the next ones; nil: the store is asked.
func (d *denied) known() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cause != nil && d.now().Before(d.until) {
		return d.cause
	}
	return nil
}
