package archiver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// removal carries deletes out. What the store retains is counted and left; credentials that may not delete end it.
type removal struct {
	Removed  int
	Retained int // not removed: the store retains them
}

// note takes the outcome of a delete, and returns it unless it is no reason to stop.
func (r *removal) note(err error) error {
	switch {
	case err == nil:
		r.Removed++
		return nil
	case errors.Is(err, repo.ErrLocked):
		r.Retained++
		return nil
	default:
		return err
	}
}

// sweepInterval is between two sweeps of an archiver. A sweep lists all WAL, which takes a request for each 1,000 objects.
const sweepInterval = time.Hour

// runSweep sweeps when the archiver begins, when what a predecessor has left is old enough, and then every sweepInterval, until ctx ends.
func (a *Archiver) runSweep(ctx context.Context) {
	for wait := time.Duration(0); sleep(ctx, wait); {
		wait = sweepInterval
		swept, err := Sweep(ctx, a.opt.Repo, time.Now().Add(-a.opt.SweepGrace))
		if swept.Removed > 0 {
			a.opt.Log.Info("swept", "objects", swept.Removed)
		}
		a.counts.swept.Add(uint64(swept.Removed))
		switch {
		case errors.Is(err, repo.ErrNotExist): // nothing was ever archived here
			wait = firstLook
		case err != nil && ctx.Err() == nil && !errors.Is(err, repo.ErrDenied):
			a.opt.Log.Warn("parts that are in larger objects were not all removed", "error", err)
		case a.opt.SweepGrace > 0 && swept.Young > 0:
			wait = min(wait, a.opt.SweepGrace)
		}
	}
}

// Swept is what a sweep has done.
type Swept struct {
	Removed  int
	Retained int // the store retains them
	Young    int // parts that a later sweep removes
}

// Sweep removes, on all timelines, what other objects have replaced: parts that are in larger objects since before an instant, clocks of an idle
// server and leases that others have followed. Whoever wrote them was killed, or may not delete. It stops when these credentials
// may not either: repo.ErrDenied.
func Sweep(ctx context.Context, r *repo.Repo, before time.Time) (Swept, error) {
	var done removal
	young, err := sweep(ctx, r, before, &done)
	return Swept{Removed: done.Removed, Retained: done.Retained, Young: young}, err
}

func sweep(ctx context.Context, r *repo.Repo, before time.Time, done *removal) (young int, err error) {
	cluster, err := r.Cluster(ctx)
	if err != nil {
		return 0, err
	}
	timelines, err := r.Timelines(ctx)
	if err != nil {
		return 0, err
	}
	for _, tli := range timelines {
		n, err := sweepParts(ctx, r, tli, cluster.SegmentSize, before, done)
		young += n
		if err == nil {
			err = sweepClocks(ctx, r, tli, before, done)
		}
		if err != nil {
			return young, fmt.Errorf("sweep timeline %d: %w", tli, err)
		}
	}
	if err := sweepLeases(ctx, r, done); err != nil {
		return young, err
	}
	probes, err := r.DeleteProbes(ctx, before)
	done.Removed += probes
	if errors.Is(err, repo.ErrLocked) {
		err = nil
	}
	return young, err
}

func sweepParts(ctx context.Context, r *repo.Repo, tli pg.Timeline, size pg.SegmentSize, before time.Time, done *removal) (young int, err error) {
	inv, err := r.Inventory(ctx, tli, size, 0)
	if err != nil {
		return 0, err
	}
	old := inv.Superfluous(before)
	for _, part := range old {
		if err := done.note(r.DeletePart(ctx, size, part)); err != nil {
			return 0, err
		}
	}
	// Far enough ahead for any clock of a store.
	return len(inv.Superfluous(time.Now().AddDate(1, 0, 0))) - len(old), nil
}

// sweepClocks removes clocks that were followed by one of the same position before an instant.
func sweepClocks(ctx context.Context, r *repo.Repo, tli pg.Timeline, before time.Time, done *removal) error {
	clocks, err := r.Clocks(ctx, tli)
	if err != nil {
		return err
	}
	for i, clock := range clocks {
		if i+1 == len(clocks) || clocks[i+1].LSN != clock.LSN || clocks[i+1].Time.After(before) {
			continue
		}
		if err := done.note(r.DeleteClock(ctx, tli, clock)); err != nil {
			return err
		}
	}
	return nil
}

func sweepLeases(ctx context.Context, r *repo.Repo, done *removal) error {
	newest, err := r.NewestLease(ctx, repo.Lease{})
	if err != nil || newest.Epoch <= 2*leasesKept {
		return err
	}
	removed, err := r.DeleteLeases(ctx, newest.Epoch-2*leasesKept)
	done.Removed += removed
	return err
}
