package archiver

import (
	"context"
	"errors"
	"slices"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// Waits of the backup schedule.
const (
	// firstLook is when the repository is first asked for its backups, and how soon after a failure to ask.
	firstLook = 2 * time.Second
	lookAgain = 30 * time.Second
	// backupRetry is how long after a failed backup the next attempt is made.
	backupRetry = 5 * time.Minute
)

// runBackups takes a backup when the repository has none, when the schedule says so (also when it did while we were down), and when
// one is wanted, until ctx ends. Each is followed by expiry.
func (a *Archiver) runBackups(ctx context.Context) {
	wait, reason := firstLook, ""
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
		if wait, done = a.backupIfDue(ctx, reason); done {
			reason = "" // a wish that could not be fulfilled yet stays
		}
	}
}

// backupIfDue takes a backup for the given reason, or because it is time, and returns when to look again and whether it took one.
func (a *Archiver) backupIfDue(ctx context.Context, reason string) (again time.Duration, done bool) {
	if !a.Stats().Streaming {
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
		return min(a.untilNext(now), time.Hour), false
	}
	a.opt.Log.Info("base backup is due", "because", reason)
	taken, err := a.backupNow(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.opt.Log.Error("base backup or the expiry behind it failed", "error", err, "again_in", backupRetry)
		}
		return backupRetry, taken
	}
	return time.Second, true
}

// dueReason says why a backup is due now; "" when none is.
func (a *Archiver) dueReason(backups []repo.Backup, now time.Time) string {
	if gap := pg.LSN(a.gapEnd.Load()); gap > 0 && !slices.ContainsFunc(backups, func(b repo.Backup) bool { return b.Start >= gap }) {
		return "no backup lies behind the last gap of the archive" // whoever noticed it may have been killed before the backup was there
	}
	if a.schedule == nil {
		return ""
	}
	if len(backups) == 0 {
		return "the repository has none"
	}
	last := backups[len(backups)-1].StartTime
	if next := a.schedule.Next(last.Local()); !next.IsZero() && !next.After(now) {
		return "backup.schedule"
	}
	return ""
}

func (a *Archiver) untilNext(now time.Time) time.Duration {
	if a.schedule == nil {
		return time.Hour
	}
	return max(time.Second, a.schedule.Next(now).Sub(now))
}

// backupNow takes a backup and then expires what is not needed any more; taken says whether the backup exists.
func (a *Archiver) backupNow(ctx context.Context) (taken bool, err error) {
	a.backupMu.Lock()
	defer a.backupMu.Unlock()
	_, err = TakeBackup(ctx, BackupOptions{DSN: a.opt.DSN, Repo: a.opt.Repo, BufferMax: a.opt.BackupBufferMax, WALWait: a.opt.BackupWALWait, Log: a.opt.Log})
	if err != nil {
		a.counts.backupsFailed.Add(1)
		return false, err
	}
	a.counts.backupsDone.Add(1)
	return true, a.expire(ctx)
}

// expire removes what the retention does not need any more.
func (a *Archiver) expire(ctx context.Context) error {
	backups, err := a.opt.Repo.Backups(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	plan := PlanExpiry(backups, now, Retention{Window: a.opt.RetentionWindow, Minimum: a.opt.RetentionMinimum})
	removed, err := plan.CarryOut(ctx, a.opt.Repo, now)
	if removed > 0 {
		a.opt.Log.Info("expired", "backups", len(plan.Expire), "objects", removed, "wal_kept_from", plan.WALFrom)
	}
	a.noteBackups(plan.Keep)
	if err != nil {
		return errors.Join(errors.New("expiry"), err)
	}
	return nil
}

func (a *Archiver) noteBackups(backups []repo.Backup) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.backups = backupFacts{count: len(backups)}
	if n := len(backups); n > 0 {
		a.backups.last, a.backups.lastID = backups[n-1].StopTime, backups[n-1].ID
	}
}
