package archiver

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pitr/internal/pg"
	"pitr/internal/repo"
)

// scheduled is an archiver that runs nowhere.
func scheduled(t *testing.T, schedule string, jitter time.Duration) *Archiver {
	t.Helper()
	_, r := newStore(t)
	a, err := New(Options{BackupSchedule: schedule, BackupJitter: jitter, Repo: r})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func begun(system pg.SystemID, at time.Time) []repo.Backup {
	return []repo.Backup{{SystemID: system, StartTime: at}}
}

func TestABackupIsDueOnceForEachInstantOfTheScheduleAndAfterADowntime(t *testing.T) {
	a := scheduled(t, "0 2 * * *", 0)
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 11, day, hour, minute, 0, 0, time.Local) }
	is := func(backups []repo.Backup, now time.Time, want string) {
		t.Helper()
		if got := a.dueReason(backups, now); got != want {
			t.Errorf("at %s a backup is due because of %q, want %q", now, got, want)
		}
	}
	is(nil, at(5, 12, 0), "the repository has none")
	is(begun(1, at(5, 2, 1)), at(5, 12, 0), "")
	is(begun(1, at(5, 2, 1)), at(6, 1, 59), "")
	is(begun(1, at(5, 2, 1)), at(6, 2, 0), "backup.schedule")
	is(begun(1, at(5, 2, 1)), at(9, 17, 0), "backup.schedule") // nobody was there at two, on four days: one backup makes up for it
	is(begun(1, at(9, 17, 0)), at(9, 17, 5), "")
	if wait := a.untilNext(begun(1, at(9, 17, 0)), at(9, 18, 0)); wait != 8*time.Hour {
		t.Errorf("the next look is in %s", wait)
	}
	if none := scheduled(t, "", time.Hour); none.dueReason(nil, at(5, 12, 0)) != "" {
		t.Error("without a schedule a backup is due")
	}
}

// TestADelayChangesNeitherWithARestartNorTheNumberOfBackups lets archivers die and be replaced at any moment, and looks at every minute of some weeks.
func TestADelayChangesNeitherWithARestartNorTheNumberOfBackups(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, c := range []struct {
		schedule string
		jitter   time.Duration
		period   time.Duration
	}{{"0 2 * * *", 3 * time.Hour, 24 * time.Hour}, {"*/30 * * * *", 24 * time.Hour, 30 * time.Minute}, {"0 */6 * * *", 10 * time.Minute, 6 * time.Hour}} {
		t.Run(fmt.Sprint(c.schedule, " ", c.jitter), func(t *testing.T) {
			now := time.Date(2026, 6, 1, 0, 0, 30, 0, time.UTC) // no change of summer time within a few weeks
			backups, per := begun(pg.SystemID(rng.Uint64()), now), map[time.Time]int{}
			delays := map[time.Duration]bool{}
			a := scheduled(t, c.schedule, c.jitter)
			for end := now.Add(40 * c.period); now.Before(end); now = now.Add(time.Minute) {
				if rng.IntN(20) == 0 {
					a = scheduled(t, c.schedule, c.jitter)
				}
				if a.dueReason(backups, now) == "" {
					if wait := a.untilNext(backups, now); a.dueReason(backups, now.Add(wait)) == "" {
						t.Fatalf("at %s the next look is in %s, and nothing is due then", now, wait)
					}
					continue
				}
				instant := a.schedule.Next(backups[0].StartTime.Local())
				per[instant]++
				delay := now.Sub(instant)
				delays[delay.Truncate(time.Minute)] = true
				if delay < 0 || delay > min(c.jitter, c.period)+time.Minute {
					t.Errorf("the backup of %s begins %s later", instant, delay)
				}
				backups = begun(backups[0].SystemID, now)
			}
			for instant, n := range per {
				if n != 1 {
					t.Errorf("%d backups for %s", n, instant)
				}
			}
			if len(per) < 38 || len(delays) < 4 {
				t.Errorf("%d backups in 40 periods, with %d delays", len(per), len(delays))
			}
		})
	}
}

func TestClustersAreDelayedDifferently(t *testing.T) {
	a := scheduled(t, "0 2 * * *", time.Hour)
	thirds := [3]int{}
	for i := range 300 {
		due := a.dueAt(repo.Backup{SystemID: 7_000_000_000_000_000_000 + pg.SystemID(i), StartTime: time.Date(2026, 6, 1, 12, 0, 0, 0, time.Local)})
		thirds[due.Sub(time.Date(2026, 6, 2, 2, 0, 0, 0, time.Local))/(20*time.Minute)]++
	}
	for _, n := range thirds {
		if n < 50 {
			t.Errorf("of 300 clusters begin in each third of the hour: %v", thirds)
		}
	}
}

// TestABackupThatWasMissedIsTakenWhenTheArchiverIsBack has an archiver without a schedule be followed by one with it.
func TestABackupThatWasMissedIsTakenWhenTheArchiverIsBack(t *testing.T) {
	b := newBench(t, 16)
	a := b.run(b.options())
	a.archived(b.written())
	b.backup()
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		backups, err := b.repo.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(backups)
	}
	opt := b.options()
	opt.BackupSchedule = "@every 1s" // an instant has passed for certain when it is first asked
	opt.Retention.Minimum = 100
	b.run(opt)
	until(t, "the backup is made up for", func() bool { return count() >= 2 })
}
