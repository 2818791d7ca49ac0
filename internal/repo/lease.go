package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"pitr/internal/store"
)

// Lease says which of several archivers may work. Each renewal is an object of its own with the next epoch: whoever puts it first has it.
// What counts as over is the archivers' business, by their own clocks.
type Lease struct {
	Epoch    uint64 `json:"-"`
	Owner    string `json:"owner"`
	Released bool   `json:"released,omitempty"` // its owner has gone, and says so
}

// leaseSizeMax bounds a lease.
const leaseSizeMax = 1 << 12

// ErrLeaseTaken says that somebody else has put a lease with this epoch.
var ErrLeaseTaken = errors.New("another archiver has the lease")

func leaseKey(epoch uint64) string { return fmt.Sprintf("%s%016X", leasesDir, epoch) }

// NewestLease is the lease with the highest epoch; its zero value when there is none. known is one that was read before: what is listed lies behind it.
func (r *Repo) NewestLease(ctx context.Context, known Lease) (Lease, error) {
	newest, err := r.newestEpoch(ctx, known.Epoch)
	switch {
	case err != nil:
		return Lease{}, err
	case newest == known.Epoch:
		return known, nil
	default:
		return r.lease(ctx, newest)
	}
}

// leasesListed is how many leases are listed in a row: where nobody may delete them there are millions after a while. It is what stores list at once.
const leasesListed = 1000

// newestEpoch is the highest epoch behind one that is known. Behind the oldest that is left none is missing, so that the end can be searched for.
func (r *Repo) newestEpoch(ctx context.Context, known uint64) (uint64, error) {
	newest, n, err := r.epochsBehind(ctx, known, leasesListed)
	if err != nil || n < leasesListed {
		return newest, err
	}
	end := uint64(0) // there is none behind it
	for step := uint64(leasesListed); end == 0; step *= 2 {
		behind := newest + step
		if newest, n, err = r.epochsBehind(ctx, behind, 1); err != nil {
			return 0, err
		}
		if n == 0 {
			newest, end = behind-step, behind
		}
	}
	for newest < end {
		middle := newest + (end-newest)/2
		next, n, err := r.epochsBehind(ctx, middle, 1)
		switch {
		case err != nil:
			return 0, err
		case n == 0:
			end = middle
		default:
			newest = next
		}
	}
	return newest, nil
}

// epochsBehind lists up to max epochs behind one, counts them, and returns the last; without any the one.
func (r *Repo) epochsBehind(ctx context.Context, epoch uint64, max int) (last uint64, n int, err error) {
	last = epoch
	for object, err := range r.store.List(ctx, r.prefix+leasesDir, r.prefix+leaseKey(epoch)) {
		if err != nil {
			return 0, 0, fmt.Errorf("list %s: %w", leasesDir, err)
		}
		key := object.Key[len(r.prefix):]
		if last, err = strconv.ParseUint(key[len(leasesDir):], 16, 64); err != nil || leaseKey(last) != key || last == 0 {
			return 0, 0, fmt.Errorf("%s is no lease: %w", key, ErrDamaged)
		}
		if n++; n == max {
			break
		}
	}
	return last, n, nil
}

func (r *Repo) lease(ctx context.Context, epoch uint64) (Lease, error) {
	content, err := store.ReadAll(ctx, r.store, r.prefix+leaseKey(epoch), leaseSizeMax)
	if err != nil {
		return Lease{}, fmt.Errorf("get %s: %w", leaseKey(epoch), err)
	}
	l := Lease{Epoch: epoch}
	if err := json.Unmarshal(content, &l); err != nil || l.Owner == "" {
		return Lease{}, fmt.Errorf("get %s: %w: %q", leaseKey(epoch), ErrDamaged, content)
	}
	return l, nil
}

// PutLease claims an epoch, or fails with ErrLeaseTaken. One that we have put ourselves is ours, although its answer was lost.
func (r *Repo) PutLease(ctx context.Context, l Lease) error {
	content, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("put %s: %w", leaseKey(l.Epoch), err)
	}
	err = r.store.Put(ctx, r.prefix+leaseKey(l.Epoch), append(content, '\n'), store.PutOptions{IfAbsent: true})
	if err == nil {
		return nil
	}
	if errors.Is(err, store.ErrExist) {
		have, readErr := r.lease(ctx, l.Epoch)
		switch {
		case errors.Is(readErr, store.ErrNotExist): // whoever put it has gone on, and removed it
			return ErrLeaseTaken
		case readErr != nil:
			return readErr
		case have == l:
			return nil
		default:
			return fmt.Errorf("%w: %s", ErrLeaseTaken, have.Owner)
		}
	}
	return fmt.Errorf("put %s: %w", leaseKey(l.Epoch), err)
}

// DeleteLeases removes leases up to an epoch, the oldest first: not more than are listed at once, and none behind one that cannot be removed.
func (r *Repo) DeleteLeases(ctx context.Context, upTo uint64) (removed int, err error) {
	var old []string
	for object, err := range r.store.List(ctx, r.prefix+leasesDir, "") {
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", leasesDir, err)
		}
		if object.Key > r.prefix+leaseKey(upTo) || len(old) == leasesListed {
			break
		}
		old = append(old, object.Key)
	}
	for _, key := range old {
		if err := r.store.Delete(ctx, key); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// DeleteLease removes a lease that a newer one has replaced.
func (r *Repo) DeleteLease(ctx context.Context, epoch uint64) error {
	return r.store.Delete(ctx, r.prefix+leaseKey(epoch))
}

// DeleteProbes removes what `config check` has left behind that could not remove it: store.Probe.
func (r *Repo) DeleteProbes(ctx context.Context, before time.Time) (removed int, err error) {
	var old []string
	for object, err := range r.store.List(ctx, store.ProbePrefix, "") {
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", store.ProbePrefix, err)
		}
		if !object.Modified.After(before) {
			old = append(old, object.Key)
		}
	}
	for _, key := range old {
		if err := r.store.Delete(ctx, key); err != nil {
			return removed, fmt.Errorf("delete %s: %w", key, err)
		}
		removed++
	}
	return removed, nil
}
