package archiver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"pitr/internal/repo"
)

// Waits of the backup schedule.
const (
	// firstLook is when the repository is first asked for its backups, and how soon after a failure to ask.
	firstLook = 2 * time.Second
	lookAgain = 30 * time.Second
	// After a failed backup the next attempt is made; the pause doubles. Behind a gap nothing can be restored until there is one.
	backupRetryMin = 5 * time.Second
	backupRetryMax = 5 * time.Minute
)

// runBackups takes a backup when the repository has none, when the schedule says so (also when it did while we were down), and when
// one is wanted, until ctx ends. Each is followed by expiry.
func (a *Archiver) runBackups(ctx context.Context) {
	wait, reason := firstLook, ""
	retry := backupRetryMin
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case reason = <-a.wanted:
			timer.Stop()
		case <-timer.C:
		}
		var done bool
		if wait, done = a.backupIfDue(ctx, reason, retry); done {
			reason, retry = "", backupRetryMin // a wish that could not be fulfilled yet stays
		} else if wait == retry {
			retry = min(2*retry, backupRetryMax)
		}
	}
}

// backupIfDue takes a backup for the given reason, or because it is time, and returns when to look again, which is after retry when it
// failed, and whether it took one.
func (a *Archiver) backupIfDue(ctx context.Context, reason string, retry time.Duration) (again time.Duration, done bool) {
	if st := a.Stats(); !st.Streaming || st.Lease.Used && !st.Lease.Held {
		return firstLook, false // not streaming yet: a backup would wait for its WAL in vain
	}
	backups, err := a.opt.Repo.Backups(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.opt.Log.Warn("the repository's backups could not be listed", "error", err)
		}
		return lookAgain, false
	}
	a.noteBackups(backups)
	now := time.Now()
	if reason == "" {
		reason = a.dueReason(backups, now)
	}
	if reason == "" {
		return min(a.untilNext(backups, now), time.Hour), false
	}
	a.opt.Log.Info("base backup is due", "because", reason)
	taken, err := a.backupNow(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.opt.Log.Error("base backup or the expiry behind it failed", "error", err, "again_in", retry)
		}
		return retry, taken
	}
	return time.Second, true
}

// dueReason says why a backup is due now; "" when none is.
func (a *Archiver) dueReason(backups []repo.Backup, now time.Time) string {
	if a.exposed() {
		return "no backup lies behind the last gap of the archive" // whoever noticed it may have been killed before the backup was there
	}
	if a.schedule == nil {
		return ""
	}
	if len(backups) == 0 {
		return "the repository has none"
	}
	if next := a.dueAt(backups[len(backups)-1]); !next.IsZero() && !next.After(now) {
		return "backup.schedule"
	}
	return ""
}

// dueAt is when the schedule wants the backup behind the last one; zero: never. It follows from the last backup and the cluster alone, so that whoever
// is restarted, or takes over, neither repeats a backup nor leaves one out. A delay takes three quarters of the time to the next instant at most: whoever
// comes late to its end has still begun before that instant, which would else count as served by this backup.
func (a *Archiver) dueAt(last repo.Backup) time.Time {
	instant := a.schedule.Next(last.StartTime.Local())
	if instant.IsZero() {
		return instant
	}
	room := a.opt.BackupJitter
	if next := a.schedule.Next(instant); !next.IsZero() {
		room = min(room, next.Sub(instant)*3/4)
	}
	if room <= 0 {
		return instant
	}
	hash := fnv.New64a()
	_, _ = fmt.Fprintf(hash, "%d %d", last.SystemID, instant.Unix()) // a hash takes everything
	return instant.Add(time.Duration(mix(hash.Sum64()) % uint64(room)))
}

// mix spreads a hash over all of its bits, of which FNV uses few for texts that differ in their last characters: the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// untilNext is how long the schedule leaves us in peace.
func (a *Archiver) untilNext(backups []repo.Backup, now time.Time) time.Duration {
	if a.schedule == nil || len(backups) == 0 {
		return time.Hour
	}
	due := a.dueAt(backups[len(backups)-1])
	if due.IsZero() {
		return time.Hour
	}
	return max(time.Second, due.Sub(now))
}

// backupNow takes a backup and then expires what is not needed any more; taken says whether the backup exists.
func (a *Archiver) backupNow(ctx context.Context) (taken bool, err error) {
	a.backupMu.Lock()
	defer a.backupMu.Unlock()
	_, err = TakeBackup(ctx, BackupOptions{DSN: a.opt.DSN, Repo: a.opt.Repo, BufferMax: a.opt.BackupBufferMax, WALWait: a.opt.BackupWALWait, Log: a.opt.Log,
		BackupRules: a.opt.BackupRules})
	if err != nil {
		a.counts.backupsFailed.Add(1)
		return false, err
	}
	a.counts.backupsDone.Add(1)
	return true, a.expire(ctx)
}

// Expire removes what the retention does not need any more, unless a backup is being taken, which ends with that.
func (a *Archiver) Expire(ctx context.Context) error {
	if !a.backupMu.TryLock() {
		return nil
	}
	defer a.backupMu.Unlock()
	return a.expire(ctx)
}

// expire removes what the retention does not need any more.
func (a *Archiver) expire(ctx context.Context) error {
	catalogue, err := LoadCatalogue(ctx, a.opt.Repo)
	if errors.Is(err, repo.ErrNotExist) {
		return nil // nothing was ever archived
	}
	if err != nil {
		return err
	}
	now := time.Now()
	plan := PlanExpiry(catalogue, now, a.opt.Retention)
	done, err := plan.CarryOut(ctx, a.opt.Repo, now)
	if len(plan.Condemn) > 0 || done.Removed > 0 || done.Retained > 0 {
		a.opt.Log.Info("expired", "backups", len(plan.Expire), "condemned", len(plan.Condemn), "objects", done.Removed, "still_retained", done.Retained,
			"wal_kept_from", plan.WALFrom)
	}
	a.noteBackups(plan.Stay())
	if errors.Is(err, repo.ErrDenied) {
		a.counts.expiriesDenied.Add(1)
		a.opt.Log.Info("expiry is left to `pitr expire` where it may delete: these credentials may not")
		return nil
	}
	if err != nil {
		return errors.Join(errors.New("expiry"), err)
	}
	return nil
}

func (a *Archiver) noteBackups(backups []repo.Backup) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cover(backups)
	a.backups = backupFacts{count: len(backups)}
	if n := len(backups); n > 0 {
		a.backups.last, a.backups.lastID = backups[n-1].StopTime, backups[n-1].ID
		a.backups.checksumFailures = backups[n-1].ChecksumFailures
	}
}
