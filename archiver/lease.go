package archiver

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"pitr/archiver/replication"
	"pitr/internal/repo"
)

// lease lets one of several archivers work, and another take over when it does not renew its lease any more. Nobody compares clocks of two
// machines: a stand-by waits until it has seen the same lease for its whole length, by its own monotonic clock; the holder counts from
// before its put. That holds as long as no clock runs faster than another by more than leaseMargin. Should two work at once all the
// same, no harm is done: Postgres gives a slot to one of them only, and objects are written once.
type lease struct {
	archiver *Archiver
	length   time.Duration
	owner    string

	mu     sync.Mutex // guards what follows
	seen   repo.Lease // the newest
	since  time.Time  // when seen was first seen
	until  time.Time  // we hold it until then; zero: we do not
	inTerm bool       // we work, or try to
	tried  uint64     // the epoch that was last put, or may have been
	began  time.Time  // when it was first tried: others may have seen it since
	terms  uint64     // how often we have taken it
	failed time.Time  // when we gave it back because we did not get to work
}

const (
	// leaseMargin is the part of a lease's length by which two clocks may drift apart.
	leaseMargin = 4
	// leaseBeats is how often a lease is renewed, and looked at, within its length.
	leaseBeats = 5
	// leasesKept is how many epochs stay: none is removed within the length of a lease, so that a claim that was under way all the while meets it,
	// or has run out before it succeeds.
	leasesKept = 2 * leaseBeats
)

func newLease(a *Archiver) *lease {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails: crypto/rand
	return &lease{archiver: a, length: a.opt.Lease, owner: hex.EncodeToString(id)}
}

// run does work whenever we hold the lease, until ctx ends or work fails for good.
func (l *lease) run(ctx context.Context, work func(context.Context) error) error {
	log := l.archiver.opt.Log
	log.Info("waiting for the lease", "as", l.owner, "lease", l.length)
	for {
		if !l.acquire(ctx) {
			return nil
		}
		l.archiver.opt.Repo.Doubt()
		log.Info("holding the lease", "as", l.owner, "epoch", l.view().seen.Epoch)
		term, end := context.WithCancel(ctx)
		kept := make(chan error, 1)
		go func() {
			kept <- l.keep(term)
			end()
		}()
		err := work(term)
		end()
		lost := <-kept
		if err != nil || ctx.Err() != nil || errors.Is(lost, errNotAtWork) {
			l.release(ctx)
		}
		if err != nil || ctx.Err() != nil {
			return err
		}
		log.Warn("the lease is gone; standing by", "as", l.owner, "error", lost)
	}
}

// acquire waits for the lease; false: ctx has ended.
func (l *lease) acquire(ctx context.Context) bool {
	ticker := time.NewTicker(l.length / leaseBeats)
	defer ticker.Stop()
	for told := ""; ; {
		if err := l.try(ctx); err == nil {
			return true
		} else if ctx.Err() == nil && !errors.Is(err, repo.ErrLeaseTaken) && err.Error() != told {
			told = err.Error()
			l.archiver.opt.Log.Warn("the lease cannot be had", "error", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
}

// try claims the lease if nobody holds it.
func (l *lease) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.length)
	defer cancel()
	begin := time.Now() // the newest may be old by the time that we have claimed the next
	newest, err := l.archiver.opt.Repo.NewestLease(ctx, l.view().seen)
	if err != nil {
		return err
	}
	now := time.Now()
	l.mu.Lock()
	if newest != l.seen || l.since.IsZero() {
		l.seen, l.since = newest, now
	}
	free := newest.Epoch == 0 || newest.Released || now.Sub(l.since) >= l.length
	resting := now.Sub(l.failed) < 2*l.length // let another one try
	l.mu.Unlock()
	if !free || resting {
		return repo.ErrLeaseTaken
	}
	if err := l.claim(ctx, newest.Epoch+1, begin); err != nil {
		return err
	}
	l.sweep(ctx, newest.Epoch+1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.terms++
	l.inTerm = true
	return nil
}

// claim puts the lease with the next epoch, which was found to be the next one not before begin. Others count from when they could first
// see it, and so do we, although an attempt before this one may have brought it there.
func (l *lease) claim(ctx context.Context, epoch uint64, begin time.Time) error {
	l.mu.Lock()
	if l.tried != epoch {
		l.tried, l.began = epoch, begin
	}
	begin = l.began
	l.mu.Unlock()
	next := repo.Lease{Epoch: epoch, Owner: l.owner}
	if err := l.archiver.opt.Repo.PutLease(ctx, next); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen, l.since, l.until = next, begin, begin.Add(l.length-l.length/leaseMargin)
	return nil
}

// resumeMax is how long it may take to find out where to go on, with a large archive, before the lease is given back.
const resumeMax = 5 * time.Minute

// isAtWork reports whether we stream, or have been about to for some time: Postgres was reached, and the archive is being read.
func (a *Archiver) isAtWork(someTime time.Duration) bool {
	if a.Stats().Streaming {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	took := time.Since(a.resuming)
	return !a.resuming.IsZero() && someTime <= took && took < resumeMax
}

func (a *Archiver) setResuming(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resuming = since
}

var errNotAtWork = errors.New("given back: nothing could be streamed for as long as the lease lasts")

// keep renews the lease until ctx ends or another archiver has it. While the store does not answer nobody else gets it either, and the
// work goes on.
func (l *lease) keep(ctx context.Context) error {
	ticker := time.NewTicker(l.length / leaseBeats)
	defer ticker.Stop()
	defer l.drop()
	for worked := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		if l.archiver.isAtWork(l.length / leaseBeats) {
			worked = time.Now()
		} else if time.Since(worked) > l.length {
			l.mu.Lock()
			l.failed = time.Now()
			l.mu.Unlock()
			return errNotAtWork
		}
		if err := l.renew(ctx); errors.Is(err, repo.ErrLeaseTaken) {
			return err
		} else if err != nil && ctx.Err() == nil {
			l.archiver.opt.Log.Warn("the lease could not be renewed", "error", err)
		}
	}
}

// renew puts the next epoch. When ours has run out another archiver may have gone on long ago.
func (l *lease) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, l.length/2)
	defer cancel()
	begin, v := time.Now(), l.view()
	if !v.held {
		newest, err := l.archiver.opt.Repo.NewestLease(ctx, v.seen)
		if err != nil {
			return err
		}
		if newest.Owner != l.owner {
			return fmt.Errorf("%w: %s", repo.ErrLeaseTaken, newest.Owner)
		}
		v.seen = newest
	}
	if err := l.claim(ctx, v.seen.Epoch+1, begin); err != nil {
		return err
	}
	if old := v.seen.Epoch; old >= leasesKept {
		if err := l.archiver.opt.Repo.DeleteLease(ctx, old+1-leasesKept); err != nil && ctx.Err() == nil {
			l.archiver.opt.Log.Debug("an old lease was not removed", "error", err)
		}
	}
	return nil
}

// sweep removes what others have left behind.
func (l *lease) sweep(ctx context.Context, newest uint64) {
	if newest <= leasesKept {
		return
	}
	if _, err := l.archiver.opt.Repo.DeleteLeases(ctx, newest-leasesKept); err != nil && ctx.Err() == nil {
		l.archiver.opt.Log.Debug("old leases were not removed", "error", err)
	}
}

// drop says that we do not hold the lease any more.
func (l *lease) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until, l.inTerm = time.Time{}, false
}

// release tells stand-bys that they need not wait.
func (l *lease) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.length)
	defer cancel()
	seen := l.view().seen
	if seen.Owner != l.owner {
		return
	}
	err := l.archiver.opt.Repo.PutLease(ctx, repo.Lease{Epoch: seen.Epoch + 1, Owner: l.owner, Released: true})
	if err != nil && !errors.Is(err, repo.ErrLeaseTaken) {
		l.archiver.opt.Log.Warn("the lease was not given back; it runs out by itself", "error", err)
	}
}

// leaseView is what there is to know of a lease at a moment.
type leaseView struct {
	seen    repo.Lease
	held    bool
	standBy bool
	terms   uint64
}

func (l *lease) view() leaseView {
	l.mu.Lock()
	defer l.mu.Unlock()
	return leaseView{seen: l.seen, held: time.Now().Before(l.until), standBy: !l.inTerm, terms: l.terms}
}

// errTakenOver says that the slot was in use, and is free now or soon.
var errTakenOver = errors.New("the slot was held by an archiver that has lost its lease; its connection was ended")

// takeSlot ends the connection that still has the slot: its archiver does not renew its lease. A role may end its own connections:
// pg_signal_backend in src/backend/storage/ipc/signalfuncs.c.
func (s *session) takeSlot(ctx context.Context, cause error) error {
	l := s.archiver.lease
	if l == nil || !l.view().held || !replication.SlotInUse(cause) {
		return cause
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	conn, err := replication.Connect(ctx, replication.ConnectOptions{DSN: s.opt.DSN, ApplicationName: s.opt.Slot, Role: s.opt.StreamFrom})
	if err != nil {
		return errors.Join(cause, err)
	}
	defer func() { _ = conn.Close(ctx) }() // it held nothing that could be lost
	rows, err := conn.Query(ctx, fmt.Sprintf("SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots "+
		"WHERE slot_name = '%s' AND active_pid IS NOT NULL", s.opt.Slot))
	if err != nil {
		return errors.Join(cause, fmt.Errorf("take the slot over: %w", err))
	}
	s.log.Warn("took the slot over from an archiver that has lost its lease", "slot", s.opt.Slot, "connections_ended", len(rows))
	return errTakenOver
}
